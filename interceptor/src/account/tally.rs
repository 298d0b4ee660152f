//! How many records there were of each reason, whatever outputs the log has.

use std::array;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::decide::Reason;

/// The counts.
#[derive(Debug)]
pub(super) struct Tally([AtomicU64; Reason::ALL.len()]);

impl Default for Tally {
    fn default() -> Self {
        Self(array::from_fn(|_| AtomicU64::new(0)))
    }
}

impl Tally {
    pub(super) fn count(&self, reason: Reason) {
        if let Some(count) = self.0.get(reason as usize) {
            count.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// By label, those of none too.
    pub(super) fn counts(&self) -> Vec<(&'static str, u64)> {
        let counts = self.0.iter().map(|count| count.load(Ordering::Relaxed));
        Reason::ALL.iter().map(|reason| reason.label()).zip(counts).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each reason has a place of its own.
    #[test]
    fn reasons_are_counted_apart() {
        let tally = Tally::default();
        for (times, reason) in Reason::ALL.into_iter().enumerate() {
            (0..times).for_each(|_| tally.count(reason));
        }
        let counts = tally.counts();
        assert_eq!(counts[2], ("not_registered", 2));
        assert!(counts.iter().enumerate().all(|(times, (_, count))| *count == times as u64));
    }
}
