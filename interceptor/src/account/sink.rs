//! The access log: records in, lines out, to as many places as the policy names (T-55, TEL-2).
//!
//! A record becomes its lines where it was made; `writer` takes them from there.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use arc_swap::ArcSwap;
use tokio::sync::mpsc;

use super::format::{Encoding, Format};
use super::refusals::{Listener, Refusal};
use super::tally::{PodCounts, Tally};
use super::wanted::Wanted;
use super::writer::{Lines, Progress};
use super::{Filter, Record};
use crate::workloads::PodIdentity;

/// The access log: cheap to clone, shared by every connection; every clone sees new settings.
#[derive(Debug, Clone)]
pub struct AccessLog {
    shared: Arc<Shared>,
}

/// Where lines go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LogTarget {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
    /// A file, appended to; made if absent.
    File(PathBuf),
}

/// One output of the log, as mesh configuration, Telemetry and flags make it together.
#[derive(Debug, Clone, PartialEq)]
pub struct LogSettings {
    /// Where to.
    pub target: LogTarget,
    /// As what.
    pub format: Arc<Format>,
    /// Only records that it admits (TEL-5).
    pub filter: Option<Arc<Filter>>,
}

impl LogSettings {
    /// Every record, in a built-in format.
    pub fn built_in(target: LogTarget, encoding: Encoding) -> Self {
        Self { target, format: Arc::new(Format::built_in(encoding)), filter: None }
    }

    /// The line that this output writes for `record`, if it writes one.
    pub fn line(&self, record: &Record) -> Option<String> {
        let admitted = self.filter.as_ref().is_none_or(|filter| filter.admits(record));
        admitted.then(|| self.format.line(record))
    }
}

/// Earlier settings that are kept for flows that no part of the daemon carries.
const BEFORE: usize = 8;

/// Records that [`AccessLog::memory`] collected, oldest first.
#[derive(Debug, Clone, Default)]
pub struct Captured(Arc<Mutex<Vec<Record>>>);

#[derive(Debug)]
struct Shared {
    outputs: ArcSwap<Outputs>,
    /// Lines lost so far, because a queue was full or a target refused them.
    dropped: Arc<AtomicU64>,
    /// Earlier settings, each with when it went out of force.
    before: Mutex<VecDeque<(Instant, Pen)>>,
    /// Writers of earlier settings: whatever began under these may still write.
    earlier: Mutex<Vec<Progress>>,
}

/// Outputs of pods by the uid of each.
pub type PodOutputs = BTreeMap<Arc<str>, Vec<LogSettings>>;

/// The settings in force.
#[derive(Debug, Default)]
struct Outputs {
    list: Vec<Output>,
    /// Of pods that have outputs of their own, in the place of `list`.
    pods: HashMap<Arc<str>, Vec<Output>>,
    wanted: Wanted,
    tally: Arc<Tally>,
    listener: Arc<Listener>,
}

/// The settings that were in force at one moment. What begins then is logged by them, whatever
/// comes later (MESH-20).
#[derive(Debug, Clone)]
pub struct Pen(Arc<Outputs>);

impl Pen {
    /// What a [`Record`] has to carry for these formats and filters. Whoever makes records of
    /// requests fills [`More`](super::record::More) with [`Names::pick`]:
    /// `record.more.request_headers = pen.wanted().request.pick(&parts.headers)`.
    ///
    /// [`Names::pick`]: super::wanted::Names::pick
    pub fn wanted(&self) -> &Wanted {
        &self.0.wanted
    }

    /// Hands one record to the writers. Never blocks: a full queue drops the line and counts it.
    pub fn write(&self, record: Record) {
        self.0.tally.count(record.reason, record.audited, record.more.pod.as_ref());
        self.0.listener.hear(&record);
        for output in self.0.of(&record) {
            match output {
                Output::Memory(captured) => captured.lock().push(record.clone()),
                Output::Lines(settings, lines) => {
                    if let Some(line) = settings.line(&record) {
                        lines.hand_over(line);
                    }
                }
            }
        }
    }
}

#[derive(Debug)]
enum Output {
    Memory(Captured),
    Lines(LogSettings, Arc<Lines>),
}

impl AccessLog {
    /// Opens every target; none is a log that is off. Writers end when the last clone is gone.
    ///
    /// # Errors
    /// A target cannot be opened, or no thread can be started.
    pub fn open(settings: &[LogSettings]) -> io::Result<Self> {
        let dropped = Arc::default();
        let (pods, before) = (PodOutputs::new(), Outputs::default());
        Ok(Self::of(Outputs::open(settings, &pods, &before, &dropped)?, dropped))
    }

    /// A log that keeps its records, for whoever wants to look at them instead of at lines.
    pub fn memory() -> (Self, Captured) {
        let captured = Captured::default();
        let list = vec![Output::Memory(captured.clone())];
        (Self::of(Outputs { list, ..Outputs::default() }, Arc::default()), captured)
    }

    fn of(outputs: Outputs, dropped: Arc<AtomicU64>) -> Self {
        let outputs = ArcSwap::from_pointee(outputs);
        let (before, earlier) = (Mutex::default(), Mutex::default());
        Self { shared: Arc::new(Shared { outputs, dropped, before, earlier }) }
    }

    /// The settings in force now.
    pub fn pen(&self) -> Pen {
        Pen(self.shared.outputs.load_full())
    }

    /// The settings that were in force when something began that is heard of only now: of the last
    /// [`BEFORE`] ones.
    pub fn pen_at(&self, begun: Instant) -> Pen {
        let before = self.shared.before.lock().unwrap_or_else(PoisonError::into_inner);
        let then = before.iter().find(|(until, _)| *until > begun).map(|(_, pen)| pen.clone());
        then.unwrap_or_else(|| self.pen())
    }

    /// Goes over to other settings (MESH-20): a target that stays is not opened again, and what was
    /// handed over before is written before this returns. Whoever holds a [`Pen`] keeps writing by
    /// the earlier settings, whose targets stay open until then.
    ///
    /// # Errors
    /// A target cannot be opened; then everything stays as it was.
    pub async fn replace(&self, settings: &[LogSettings]) -> io::Result<()> {
        self.replace_each(settings, &PodOutputs::new()).await
    }

    /// The same, with outputs of their own for some pods (TEL-1).
    ///
    /// # Errors
    /// As [`AccessLog::replace`].
    pub async fn replace_each(
        &self,
        settings: &[LogSettings],
        pods: &PodOutputs,
    ) -> io::Result<()> {
        let before = self.shared.outputs.load_full();
        let opened = Outputs::open(settings, pods, &before, &self.shared.dropped)?;
        let outputs = Arc::new(Outputs {
            tally: Arc::clone(&before.tally),
            listener: Arc::clone(&before.listener),
            ..opened
        });
        self.shared.outputs.store(Arc::clone(&outputs));
        {
            let mut all = self.shared.before.lock().unwrap_or_else(PoisonError::into_inner);
            all.push_back((Instant::now(), Pen(Arc::clone(&before))));
            if all.len() > BEFORE {
                all.pop_front();
            }
        }
        {
            let mut earlier = self.earlier();
            earlier.retain(|writer| !writer.ended());
            let stays = |lines: &&Arc<Lines>| outputs.lines().any(|kept| Arc::ptr_eq(kept, lines));
            earlier.extend(
                before.lines().filter(|lines| !stays(lines)).map(|lines| lines.progress.clone()),
            );
        }
        for lines in before.lines() {
            lines.progress.flush().await;
        }
        Ok(())
    }

    /// Hands one record of something that is not under way, but has just happened, to the writers.
    /// Never blocks: a full queue drops the line and counts it.
    pub fn write(&self, record: Record) {
        self.pen().write(record);
    }

    /// Lines lost so far, because a queue was full or a target refused them.
    pub fn dropped(&self) -> u64 {
        self.shared.dropped.load(Ordering::Relaxed)
    }

    /// Whether lines are being lost now: an output lost its newest one. The next that it writes ends
    /// that.
    pub fn fails(&self) -> bool {
        self.pen().0.lines().any(|lines| lines.fails())
    }

    /// Records so far by the label of their reason, whatever outputs there are.
    pub fn records(&self) -> Vec<(&'static str, u64)> {
        self.pen().0.tally.counts()
    }

    /// From here on `listener` hears what is refused to pods, as far as it keeps up.
    pub fn tell_refusals(&self, listener: mpsc::Sender<Refusal>) {
        self.pen().0.listener.set(listener);
    }

    /// Records so far of each pod, by the label of their reason.
    pub fn records_by_pod(&self) -> Vec<PodCounts> {
        self.pen().0.tally.by_pod()
    }

    /// Forgets the counts of pods that are not to be kept.
    pub fn keep_pods(&self, keeps: impl Fn(&PodIdentity) -> bool) {
        self.pen().0.tally.keep_pods(keeps);
    }

    /// Waits until every line handed over so far is written (or was refused by its target).
    pub async fn flush(&self) {
        let now = self.pen();
        let earlier = self.earlier().clone();
        for progress in now.0.lines().map(|lines| &lines.progress).chain(&earlier) {
            progress.flush().await;
        }
    }

    fn earlier(&self) -> MutexGuard<'_, Vec<Progress>> {
        // Nothing in here is ever half done.
        self.shared.earlier.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Outputs {
    /// Opens what is not open yet: one writer a target, also for several outputs.
    fn open(
        settings: &[LogSettings],
        pods: &PodOutputs,
        before: &Self,
        dropped: &Arc<AtomicU64>,
    ) -> io::Result<Self> {
        let mut writers: Vec<Arc<Lines>> = before.lines().cloned().collect();
        let mut wanted = Wanted::default();
        let mut open = |settings: &[LogSettings]| {
            let mut list = Vec::new();
            for one in settings {
                let lines = match writers.iter().find(|lines| lines.target == one.target) {
                    Some(lines) => Arc::clone(lines),
                    None => {
                        let lines = Arc::new(Lines::open(&one.target, dropped)?);
                        writers.push(Arc::clone(&lines));
                        lines
                    }
                };
                one.format.want(&mut wanted);
                if let Some(filter) = &one.filter {
                    filter.want(&mut wanted);
                }
                list.push(Output::Lines(one.clone(), lines));
            }
            Ok::<_, io::Error>(list)
        };
        let list = open(settings)?;
        let mut own = HashMap::new();
        for (pod, settings) in pods {
            own.insert(Arc::clone(pod), open(settings)?);
        }
        Ok(Self { list, pods: own, wanted, ..Self::default() })
    }

    /// Where a record goes.
    fn of(&self, record: &Record) -> &[Output] {
        let own = record.more.pod.as_ref().and_then(|pod| self.pods.get(&pod.uid));
        own.unwrap_or(&self.list)
    }

    /// Every writer once.
    fn lines(&self) -> impl Iterator<Item = &Arc<Lines>> {
        let mut writers: Vec<&Arc<Lines>> = Vec::new();
        let all = self.list.iter().chain(self.pods.values().flatten());
        for lines in all.filter_map(Output::lines) {
            if !writers.iter().any(|seen| Arc::ptr_eq(seen, lines)) {
                writers.push(lines);
            }
        }
        writers.into_iter()
    }
}

impl Output {
    fn lines(&self) -> Option<&Arc<Lines>> {
        match self {
            Self::Memory(_) => None,
            Self::Lines(_, lines) => Some(lines),
        }
    }
}

impl Captured {
    /// A copy of the records so far.
    pub fn records(&self) -> Vec<Record> {
        self.lock().clone()
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Record>> {
        // A push that panicked left the list whole.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
#[path = "sink_tests.rs"]
mod tests;
