//! How many records there were of each reason, whatever outputs the log has; those apart that were only
//! audited.

use std::array;
use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::decide::Reason;
use crate::workloads::PodIdentity;

/// A pod, and how many records it has by the label of their reason.
pub type PodCounts = (Arc<PodIdentity>, Vec<(&'static str, u64)>);

/// A number for each reason, then one for each that was only audited.
const ALL: usize = 2 * Reason::ALL.len();

type Each = [u64; ALL];

/// Where a number is.
fn place(reason: Reason, audited: bool) -> usize {
    reason as usize + if audited { Reason::ALL.len() } else { 0 }
}

/// What they are called.
fn labels() -> impl Iterator<Item = &'static str> {
    let refused = Reason::ALL.iter().map(|reason| reason.label());
    refused.chain(Reason::ALL.iter().map(|reason| reason.audit_label()))
}

/// The counts.
#[derive(Debug)]
pub(super) struct Tally {
    all: [AtomicU64; ALL],
    /// Of each pod that is there, or was when its last record came.
    pods: Mutex<HashMap<Arc<PodIdentity>, Each>>,
}

impl Default for Tally {
    fn default() -> Self {
        Self { all: array::from_fn(|_| AtomicU64::new(0)), pods: Mutex::default() }
    }
}

impl Tally {
    pub(super) fn count(&self, reason: Reason, audited: bool, pod: Option<&Arc<PodIdentity>>) {
        let place = place(reason, audited);
        if let Some(count) = self.all.get(place) {
            count.fetch_add(1, Ordering::Relaxed);
        }
        let Some(pod) = pod else { return };
        let mut pods = self.pods();
        if !pods.contains_key(pod) {
            pods.insert(Arc::clone(pod), [0; _]);
        }
        let each = pods.get_mut(pod).and_then(|each| each.get_mut(place));
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
            let all = labels().zip(each.iter().copied());
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
        labels().zip(counts).collect()
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
            (0..times).for_each(|_| tally.count(reason, false, None));
            (0..times + Reason::ALL.len()).for_each(|_| tally.count(reason, true, None));
        }
        let counts = tally.counts();
        assert_eq!(counts[Reason::ALL.len() + 2].0, "audit:not_registered");
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
            tally.count(Reason::NotRegistered, false, Some(pod));
        }
        tally.count(Reason::Registered, false, Some(&web));
        let refused = |count| vec![("not_registered", count)];
        let of_web = vec![("registered", 1), ("not_registered", 2)];
        assert_eq!(tally.by_pod(), [(Arc::clone(&api), refused(1)), (Arc::clone(&web), of_web)]);
        tally.keep_pods(|pod| *pod == *api);
        assert_eq!(tally.by_pod(), [(api, refused(1))]);
        assert_eq!(tally.counts()[2], ("not_registered", 3));
    }
}
