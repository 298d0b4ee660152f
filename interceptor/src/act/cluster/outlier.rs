//! Outlier detection (DR-12): endpoints that fail again and again are left out for a while.
//!
//! Looked at when something happens, not by a clock of its own: an ejection ends when its time is
//! over (Envoy ends it at the next tick of `interval`), and every `interval` without an ejection
//! takes one off the number that the next one's time is multiplied by.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::time::Instant;

use super::Cluster;
use crate::decide::traffic::OutlierDetection;

/// No ejection lasts longer, however often there were some (Envoy's default), unless the base
/// time is longer already.
const EJECTION_MAX: Duration = Duration::from_secs(300);

/// How one attempt at an endpoint ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// An HTTP status.
    Status(u16),
    /// A TCP connection was made, or anything else that went well.
    Success,
    /// No connection, or one that broke before an answer.
    Failure,
}

#[derive(Debug, Default)]
pub(super) struct Health {
    consecutive_5xx: u32,
    consecutive_gateway: u32,
    consecutive_local: u32,
    ejections: u32,
    ejected_until: Option<Instant>,
}

impl Health {
    pub(super) fn is_ejected(&self, now: Instant) -> bool {
        self.ejected_until.is_some_and(|until| now < until)
    }

    /// Whether forgetting it would change anything.
    pub(super) fn is_notable(&self) -> bool {
        self.consecutive_5xx > 0 || self.consecutive_local > 0 || self.ejected_until.is_some()
    }

    /// Counts `outcome`; true when that is one too many.
    fn count(&mut self, outcome: Outcome, rules: &OutlierDetection) -> bool {
        let reached = |count: u32, limit: u32| limit > 0 && count >= limit;
        let status = match (outcome, rules.consecutive_local_origin_failures) {
            (Outcome::Failure, Some(limit)) => {
                self.consecutive_local += 1;
                return reached(self.consecutive_local, limit);
            }
            (Outcome::Failure, None) => 503,
            (Outcome::Status(status), _) => status,
            (Outcome::Success, _) => 200,
        };
        self.consecutive_local = 0;
        let after = |count: u32, hit: bool| if hit { count.saturating_add(1) } else { 0 };
        self.consecutive_5xx = after(self.consecutive_5xx, status >= 500);
        self.consecutive_gateway = after(self.consecutive_gateway, matches!(status, 502..=504));
        reached(self.consecutive_5xx, rules.consecutive_5xx)
            || reached(self.consecutive_gateway, rules.consecutive_gateway_errors)
    }

    fn eject(&mut self, now: Instant, rules: &OutlierDetection) {
        if let Some(until) = self.ejected_until {
            let calm = now.saturating_duration_since(until).as_millis();
            let off = calm.checked_div(rules.interval.as_millis()).unwrap_or(0);
            self.ejections = self.ejections.saturating_sub(u32::try_from(off).unwrap_or(u32::MAX));
        }
        self.ejections = self.ejections.saturating_add(1);
        let longest = EJECTION_MAX.max(rules.base_ejection_time);
        let time = rules.base_ejection_time.saturating_mul(self.ejections).min(longest);
        self.ejected_until = now.checked_add(time);
        (self.consecutive_5xx, self.consecutive_gateway, self.consecutive_local) = (0, 0, 0);
    }
}

impl Cluster {
    /// Takes note of how an attempt at `address`, one of the cluster's `total` endpoints, ended.
    pub fn report(
        &self,
        address: SocketAddr,
        outcome: Outcome,
        rules: Option<&OutlierDetection>,
        total: usize,
    ) {
        let Some(rules) = rules else { return };
        let now = Instant::now();
        let mut endpoints = self.endpoints();
        let state = endpoints.entry(address).or_default();
        if state.health.is_ejected(now) || !state.health.count(outcome, rules) {
            return;
        }
        // One more must stay within the share that may be out.
        let out = endpoints.values().filter(|state| state.health.is_ejected(now)).count() + 1;
        if out as u64 * 100 > u64::from(rules.max_ejection_percent) * total as u64 {
            return;
        }
        if let Some(state) = endpoints.get_mut(&address) {
            state.health.eject(now, rules);
        }
    }

    /// Which of `addresses` may be used, in order. None of them: all are ejected (UH).
    pub(super) fn healthy(
        &self,
        addresses: impl Iterator<Item = SocketAddr>,
        rules: Option<&OutlierDetection>,
    ) -> Vec<SocketAddr> {
        let all: Vec<_> = addresses.collect();
        let Some(rules) = rules else { return all };
        let now = Instant::now();
        let endpoints = self.endpoints();
        let is_ejected = |address: &SocketAddr| {
            endpoints.get(address).is_some_and(|state| state.health.is_ejected(now))
        };
        let healthy: Vec<_> = all.iter().copied().filter(|one| !is_ejected(one)).collect();
        let too_few =
            (healthy.len() as u64) * 100 < u64::from(rules.min_health_percent) * all.len() as u64;
        if too_few { all } else { healthy }
    }
}
