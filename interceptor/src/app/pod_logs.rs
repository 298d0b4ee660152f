//! Where lines go: the mesh's for everybody, and of each pod what Telemetry of its namespace, or for its labels,
//! makes of it (TEL-1).

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::handler::Running;
use super::pods::Wanted;
use super::wanted::log_settings;
use crate::account::{LogSettings, LogTarget, PodOutputs};
use crate::cli;
use crate::policy::Snapshot;

/// For how long a pod that is gone keeps its outputs: reports of it are still on their way.
const REMEMBERED: Duration = Duration::from_secs(10);

/// What is in force.
pub(super) struct PodLogs {
    /// Moves every output to its place.
    flag: Option<cli::LogTarget>,
    everybody: Vec<LogSettings>,
    pods: PodOutputs,
    gone: BTreeMap<Arc<str>, Instant>,
}

impl PodLogs {
    /// What holds for `wanted`, where `own` is what holds for everybody.
    pub(super) fn new(flag: Option<cli::LogTarget>, own: &Snapshot, wanted: &[Wanted]) -> Self {
        let (everybody, pods, gone) = (Vec::new(), PodOutputs::new(), BTreeMap::new());
        let mut logs = Self { flag, everybody, pods, gone };
        logs.see(own, wanted, Instant::now());
        logs
    }

    /// The mesh's outputs.
    pub(super) fn everybody(&self) -> &[LogSettings] {
        &self.everybody
    }

    /// Those of pods for which others hold.
    pub(super) fn pods(&self) -> &PodOutputs {
        &self.pods
    }

    /// Has the access log follow what changed.
    pub(super) async fn follow(&mut self, running: &Running, own: &Snapshot, wanted: &[Wanted]) {
        if self.see(own, wanted, Instant::now())
            && let Err(error) = running.log.replace_each(&self.everybody, &self.pods).await
        {
            eprintln!("interceptor: the access log stays where it was: {error}");
        }
    }

    /// Whether anything changed.
    fn see(&mut self, own: &Snapshot, wanted: &[Wanted], now: Instant) -> bool {
        let settings =
            |snapshot: &Snapshot| log_settings(self.flag.as_ref(), LogTarget::Stdout, snapshot);
        let everybody = settings(own);
        // The flag has a log where the mesh has none; what is off for a pod alone stays off.
        let own_of = |snapshot: &Snapshot| match &snapshot.access_log {
            same if *same == own.access_log => everybody.clone(),
            Some(off) if off.is_empty() => Vec::new(),
            _ => settings(snapshot),
        };
        let mut pods = PodOutputs::new();
        for (uid, policy) in wanted.iter().filter_map(Wanted::covered) {
            let settings = own_of(&policy.current());
            if settings != everybody {
                pods.insert(uid, settings);
            }
        }
        let is_here = |uid: &Arc<str>| {
            wanted.iter().filter_map(Wanted::covered).any(|(known, _)| known == *uid)
        };
        for (uid, settings) in &self.pods {
            if pods.contains_key(uid) || is_here(uid) {
                continue;
            }
            let since = *self.gone.entry(Arc::clone(uid)).or_insert(now);
            if now.duration_since(since) < REMEMBERED {
                pods.insert(Arc::clone(uid), settings.clone());
            }
        }
        self.gone.retain(|uid, _| pods.contains_key(uid) && !is_here(uid));
        let changed = everybody != self.everybody || pods != self.pods;
        (self.everybody, self.pods) = (everybody, pods);
        changed
    }
}
