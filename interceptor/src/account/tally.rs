//! How many records there were of each reason, whatever outputs the log has.

use std::array;
use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::decide::Reason;
use crate::workloads::PodIdentity;

/// A pod, and how many records it has by the label of their reason.
pub type PodCounts = (Arc<PodIdentity>, Vec<(&'static str, u64)>);

/// One number for each reason.
type Each = [u64; Reason::ALL.len()];

/// The counts.
#[derive(Debug)]
pub(super) struct Tally {
    all: [AtomicU64; Reason::ALL.len()],
    /// Of each pod that is there, or was when its last record came.
    pods: Mutex<HashMap<Arc<PodIdentity>, Each>>,
}

impl Default for Tally {
    fn default() -> Self {
        Self { all: array::from_fn(|_| AtomicU64::new(0)), pods: Mutex::default() }
    }
}

impl Tally {
    pub(super) fn count(&self, reason: Reason, pod: Option<&Arc<PodIdentity>>) {
        if let Some(count) = self.all.get(reason as usize) {
            count.fetch_add(1, Ordering::Relaxed);
        }
        let Some(pod) = pod else { return };
        let mut pods = self.pods();
        if !pods.contains_key(pod) {
            pods.insert(Arc::clone(pod), [0; _]);
        }
        let each = pods.get_mut(pod).and_then(|each| each.get_mut(reason as usize));
        if let Some(count) = each {
            *count += 1;
        }
    }

    /// Forgets the pods that are not to be kept.
    pub(super) fn keep_pods(&self, keeps: impl Fn(&PodIdentity) -> bool) {
        self.pods().retain(|pod, _| keeps(pod));
    }

    /// Of each pod by label, those of none not; in the order of their names.
    pub(super) fn by_pod(&self) -> Vec<PodCounts> {
        let labelled = |each: &Each| {
            let all = Reason::ALL.iter().map(|reason| reason.label()).zip(each.iter().copied());
            all.filter(|(_, count)| *count > 0).collect()
        };
        let pods = self.pods();
        let mut all: Vec<_> =
            pods.iter().map(|(pod, each)| (Arc::clone(pod), labelled(each))).collect();
        all.sort_by(|a, b| a.0.cmp(&b.0));
        all
    }

    fn pods(&self) -> MutexGuard<'_, HashMap<Arc<PodIdentity>, Each>> {
        // A count is never half done.
        self.pods.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// By label, those of none too.
    pub(super) fn counts(&self) -> Vec<(&'static str, u64)> {
        let counts = self.all.iter().map(|count| count.load(Ordering::Relaxed));
        Reason::ALL.iter().map(|reason| reason.label()).zip(counts).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::workloads::testing::web_0;

    /// Each reason has a place of its own.
    #[test]
    fn reasons_are_counted_apart() {
        let tally = Tally::default();
        for (times, reason) in Reason::ALL.into_iter().enumerate() {
            (0..times).for_each(|_| tally.count(reason, None));
        }
        let counts = tally.counts();
        assert_eq!(counts[2], ("not_registered", 2));
        assert!(counts.iter().enumerate().all(|(times, (_, count))| *count == times as u64));
        assert_eq!(tally.by_pod(), []);
    }

    /// A pod that is gone takes its counts with it; the sum stays.
    #[test]
    fn pods_are_counted_apart() {
        let tally = Tally::default();
        let (web, api) =
            (Arc::new(web_0()), Arc::new(PodIdentity { name: "api-0".into(), ..web_0() }));
        for pod in [&web, &api, &web] {
            tally.count(Reason::NotRegistered, Some(pod));
        }
        tally.count(Reason::Registered, Some(&web));
        let refused = |count| vec![("not_registered", count)];
        let of_web = vec![("registered", 1), ("not_registered", 2)];
        assert_eq!(tally.by_pod(), [(Arc::clone(&api), refused(1)), (Arc::clone(&web), of_web)]);
        tally.keep_pods(|pod| *pod == *api);
        assert_eq!(tally.by_pod(), [(api, refused(1))]);
        assert_eq!(tally.counts()[2], ("not_registered", 3));
    }
}
