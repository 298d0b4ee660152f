//! Refusals that repeat: one line at once (of connections that were made: some), then one a second
//! with the count, so that counts always add up and no workload writes the log full (T-55).

use std::borrow::Cow;
use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::{AccessLog, Record};
use crate::workloads::PodIdentity;

/// How often folded refusals are written.
pub const FOLD: Duration = Duration::from_secs(1);

/// Destinations whose refusals are folded at a time; beyond, each refusal has a line of its own.
const MAX_FOLDED: usize = 1024;

/// Refusals of one source that have lines of their own, or are told apart by the names that were
/// shown, in [`FOLD`]: more are folded by destination and reason alone (T-53, T-55).
const MAX_OWN: u64 = 256;

/// Refusals by the proxy of one destination, reason and name that have a line of their own before
/// they are folded.
const REFUSALS: u64 = 64;

/// What refusals that are folded have in common.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Same {
    /// Where to.
    pub dst: SocketAddr,
    /// Why, as field 8 says it.
    pub why: Cow<'static, str>,
    /// The name that was shown.
    pub name: Option<String>,
}

/// The refusals that are being folded.
#[derive(Debug)]
pub struct Folds {
    log: AccessLog,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// By whose they are, too.
    folded: HashMap<(Option<Arc<PodIdentity>>, Same), Folded>,
    /// Refusals of each source in this [`FOLD`].
    sources: HashMap<IpAddr, u64>,
    since: Option<Instant>,
}

impl State {
    /// Whether a source has more refusals than are told apart.
    fn is_flood(&mut self, source: IpAddr) -> bool {
        if self.since.is_none_or(|since| since.elapsed() >= FOLD) {
            self.since = Some(Instant::now());
            self.sources.clear();
        }
        if self.sources.len() >= MAX_FOLDED && !self.sources.contains_key(&source) {
            return true;
        }
        let count = self.sources.entry(source).or_default();
        *count += 1;
        *count > MAX_OWN
    }
}

#[derive(Debug)]
struct Folded {
    since: Instant,
    /// Lines since then.
    lines: u64,
    /// The newest of those without a line, and how many there are.
    last: Record,
    more: u64,
}

impl Folds {
    /// None so far.
    pub fn new(log: AccessLog) -> Self {
        Self { log, state: Mutex::default() }
    }

    /// Writes a refusal by the proxy, or folds it into those like it.
    pub fn refused(&self, record: Record) {
        let said = record.connection_termination_details.clone();
        let same = Same {
            dst: record.downstream_local_address,
            why: said.unwrap_or(Cow::Borrowed(record.reason.label())),
            name: record.named().map(str::to_owned),
        };
        self.fold(same, record, REFUSALS);
    }

    /// Writes a refusal, or folds it into those like it, of which `lines` had one of their own.
    pub fn fold(&self, mut same: Same, record: Record, mut lines: u64) {
        let mut state = self.lock();
        if state.is_flood(record.downstream_remote_address.ip()) {
            (same.name, lines) = (None, 1);
        }
        let all = &mut state.folded;
        let same = (record.more.pod.clone(), same);
        if let Some(folded) = all.get_mut(&same) {
            if folded.lines >= lines {
                folded.more += 1;
                folded.last = record;
                return;
            }
            folded.lines += 1;
        } else if all.len() < MAX_FOLDED {
            let folded = Folded { since: Instant::now(), lines: 1, last: record.clone(), more: 0 };
            all.insert(same, folded);
        }
        drop(state);
        self.log.write(record);
    }

    /// Writes what was folded long enough; `all`: everything. With the count where `explain`.
    pub fn unfold(&self, explain: bool, all: bool) {
        let mut due = Vec::new();
        self.lock().folded.retain(|(_, same), folded| {
            if !all && folded.since.elapsed() < FOLD {
                return true;
            }
            if folded.more == 0 {
                return false;
            }
            let mut record = folded.last.clone();
            if explain || record.audited {
                let times = format!("{}_{}_times", same.why, folded.more);
                record.connection_termination_details = Some(Cow::Owned(times));
            }
            due.push(record);
            // Still at it: goes on being folded, with the next line in a second.
            (folded.since, folded.more) = (Instant::now(), 0);
            !all
        });
        for record in due {
            self.log.write(record);
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::account::Captured;
    use crate::account::format::tests::tcp_record;

    fn folds() -> (Folds, Captured) {
        let (log, captured) = AccessLog::memory();
        (Folds::new(log), captured)
    }

    fn refusal(name: &str) -> Record {
        Record {
            requested_server_name: Some(name.to_owned()),
            connection_termination_details: Some("not_registered".into()),
            ..tcp_record()
        }
    }

    /// How many refusals the lines stand for.
    fn counted(captured: &Captured) -> u64 {
        let count = |record: &Record| {
            let why = record.connection_termination_details.clone().expect("a reason");
            let times = why.strip_prefix("not_registered_").and_then(|t| t.strip_suffix("_times"));
            times.map_or(1, |times| times.parse().expect("a count"))
        };
        captured.records().iter().map(count).sum()
    }

    /// T-55: what the proxy refuses again and again is folded, and counts add up.
    #[test]
    fn refusals_by_the_proxy_are_folded_too() {
        let (folds, captured) = folds();
        for _ in 0..200 {
            folds.refused(refusal("a.test"));
        }
        folds.refused(refusal("b.test"));
        assert_eq!(captured.records().len() as u64, REFUSALS + 1);
        folds.unfold(true, true);
        assert_eq!(captured.records().len() as u64, REFUSALS + 2);
        assert_eq!(counted(&captured), 201);
    }

    /// Nobody's refusals are counted as another's.
    #[test]
    fn refusals_of_two_pods_are_not_folded_together() {
        let (folds, captured) = folds();
        let web = Arc::new(crate::workloads::testing::web_0());
        let api = Arc::new(PodIdentity { name: "api-0".into(), ..PodIdentity::clone(&web) });
        for pod in [&web, &api] {
            for _ in 0..REFUSALS + 3 {
                let mut record = refusal("a.test");
                record.more.pod = Some(Arc::clone(pod));
                folds.refused(record);
            }
        }
        folds.unfold(true, true);
        let counts: Vec<_> = captured
            .records()
            .iter()
            .filter(|record| {
                record.connection_termination_details.as_deref() == Some("not_registered_3_times")
            })
            .filter_map(|record| record.more.pod.clone())
            .collect();
        assert!(counts.len() == 2 && counts.contains(&web) && counts.contains(&api), "{counts:?}");
    }

    /// T-53: a workload that shows a new name each time does not fill the log either.
    #[test]
    fn a_flood_of_names_is_folded_by_destination() {
        let (folds, captured) = folds();
        let another = Record {
            downstream_remote_address: "192.0.2.77:1".parse().expect("an address"),
            ..refusal("other.test")
        };
        for number in 0..20_000 {
            folds.refused(refusal(&format!("n{number}.test")));
        }
        folds.refused(another.clone());
        assert_eq!(captured.records().last(), Some(&another), "others keep their lines");
        folds.unfold(true, true);
        assert!((captured.records().len() as u64) < 2 * MAX_OWN, "{}", captured.records().len());
        assert_eq!(counted(&captured), 20_001);
    }
}
