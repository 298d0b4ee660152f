//! `limits` of an InterceptorConfig: how much one workload, and all together, may take (R8, T-49).

use super::fields::{Context, Fields, Findings};

/// Bounds that an operator can set. What is not given follows from the number of file descriptors
/// or has a default; docs/limits.md has the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Connections at the proxy in total; `None`: half of the descriptors, since each takes two.
    pub connections: Option<u64>,
    /// Connections of one workload; `None`: [`WORKLOAD_CONNECTIONS`], and never quite all.
    pub connections_per_workload: Option<u64>,
    /// Connections in total whose first bytes, or next request's head, are being read.
    pub undecided: u64,
    /// The same of one workload.
    pub undecided_per_workload: u64,
    /// File descriptors that no connection gets.
    pub descriptor_reserve: u64,
}

/// Connections of one workload, where nothing is configured.
const WORKLOAD_CONNECTIONS: u64 = 10_000;
/// What one workload leaves to others, where nothing is configured: one part in so many.
const LEFT_TO_OTHERS: u64 = 20;
/// Undecided connections in total, where nothing is configured: 128 KiB each at most.
const UNDECIDED: u64 = 8192;
/// The same of one workload.
const WORKLOAD_UNDECIDED: u64 = 2048;
/// Descriptors kept for the daemon, where nothing is configured.
const DESCRIPTOR_RESERVE: u64 = 512;
/// Descriptors of one proxied connection: one for each leg.
const EACH: u64 = 2;
/// The largest number that makes sense for any of them.
const LARGEST: u64 = 10_000_000;

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: None,
            connections_per_workload: None,
            undecided: UNDECIDED,
            undecided_per_workload: WORKLOAD_UNDECIDED,
            descriptor_reserve: DESCRIPTOR_RESERVE,
        }
    }
}

/// What was given of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct LimitsGiven {
    pub(super) connections: Option<u64>,
    pub(super) connections_per_workload: Option<u64>,
    pub(super) undecided: Option<u64>,
    pub(super) undecided_per_workload: Option<u64>,
    pub(super) descriptor_reserve: Option<u64>,
}

impl Limits {
    /// Most connections, where there are so many `descriptors` for them.
    pub fn connections(&self, descriptors: u64) -> u64 {
        self.connections.unwrap_or(descriptors / EACH)
    }

    /// Most connections of one workload, likewise.
    pub fn connections_per_workload(&self, descriptors: u64) -> u64 {
        let all = self.connections(descriptors);
        let most = || WORKLOAD_CONNECTIONS.min(all - all / LEFT_TO_OTHERS);
        self.connections_per_workload.unwrap_or_else(most)
    }
}

impl LimitsGiven {
    /// Reads `limits`.
    pub(super) fn read(mut f: Fields<'_>, cx: &Context, out: &mut Findings) -> Self {
        let mut number = |field: &str| {
            let given = f.int(field, cx, out)?;
            let fits = u64::try_from(given.value).ok().filter(|n| (1..=LARGEST).contains(n));
            if fits.is_none() {
                let message = format!("{} must lie between 1 and {LARGEST}", given.value);
                out.errors.push(cx.notice(given.at, &given.path, message));
            }
            fits
        };
        let read = Self {
            connections: number("connections"),
            connections_per_workload: number("connectionsPerWorkload"),
            undecided: number("undecided"),
            undecided_per_workload: number("undecidedPerWorkload"),
            descriptor_reserve: number("descriptorReserve"),
        };
        f.finish(cx, out);
        read
    }

    /// Those of one workload.
    pub(super) fn of_one(self) -> Self {
        let Self { connections_per_workload, undecided_per_workload, .. } = self;
        Self { connections_per_workload, undecided_per_workload, ..Self::default() }
    }

    /// These, and what `other` gives beyond them.
    pub(super) fn or(self, other: Self) -> Self {
        Self {
            connections: self.connections.or(other.connections),
            connections_per_workload: self
                .connections_per_workload
                .or(other.connections_per_workload),
            undecided: self.undecided.or(other.undecided),
            undecided_per_workload: self.undecided_per_workload.or(other.undecided_per_workload),
            descriptor_reserve: self.descriptor_reserve.or(other.descriptor_reserve),
        }
    }

    /// With the defaults for what was not given.
    pub(super) fn with_defaults(self) -> Limits {
        let defaults = Limits::default();
        Limits {
            connections: self.connections,
            connections_per_workload: self.connections_per_workload,
            undecided: self.undecided.unwrap_or(defaults.undecided),
            undecided_per_workload: self
                .undecided_per_workload
                .unwrap_or(defaults.undecided_per_workload),
            descriptor_reserve: self.descriptor_reserve.unwrap_or(defaults.descriptor_reserve),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// T-49: what is not configured follows from the descriptors, and one workload leaves some.
    #[test]
    fn defaults_follow_from_the_descriptors() {
        let limits = Limits::default();
        let both = |n| (limits.connections(n), limits.connections_per_workload(n));
        assert_eq!(both(20_000 - 512), (9_744, 9_257));
        assert_eq!(both(1 << 20), (1 << 19, WORKLOAD_CONNECTIONS));
        let given = Limits { connections: Some(100), ..limits };
        assert_eq!((given.connections(8), given.connections_per_workload(8)), (100, 95));
        let given = Limits { connections_per_workload: Some(7), ..given };
        assert_eq!(given.connections_per_workload(8), 7);
    }
}
