//! Why connections came to the proxy, counted: what the tables had to say of each one's destination.

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{PoisonError, RwLock};

use super::rows::{Compiled, Row};
use super::survey::network_of;
use crate::decide::net::Prefixes;
use crate::decide::tier::WhyProxy;

/// Reasons by destination, and how many connections each had.
#[derive(Debug, Default)]
pub struct Fallbacks {
    reasons: RwLock<Reasons>,
    counts: [AtomicU64; WhyProxy::ALL.len()],
}

#[derive(Debug)]
struct Reasons {
    /// By port, then by network.
    networks: HashMap<u16, Prefixes<WhyProxy>>,
    ports: BTreeMap<u16, WhyProxy>,
    elsewhere: WhyProxy,
}

impl Default for Reasons {
    fn default() -> Self {
        Self { networks: HashMap::new(), ports: BTreeMap::new(), elsewhere: WhyProxy::Off }
    }
}

impl Fallbacks {
    /// Counts a connection to `dst` that came to the proxy.
    pub fn count(&self, dst: SocketAddr) {
        let why = self.reasons.read().unwrap_or_else(PoisonError::into_inner).why(dst);
        let slot = WhyProxy::ALL.iter().position(|one| *one == why);
        if let Some(count) = slot.and_then(|slot| self.counts.get(slot)) {
            count.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// How many connections each reason had, by its label; those that had none are left out.
    pub fn counts(&self) -> BTreeMap<&'static str, u64> {
        let counts = self.counts.iter().map(|count| count.load(Ordering::Relaxed));
        let all = WhyProxy::ALL.iter().zip(counts);
        all.filter(|(_, count)| *count > 0).map(|(why, count)| (why.label(), count)).collect()
    }

    /// Takes the reasons of other tables.
    pub(super) fn replace(&self, compiled: &Compiled) {
        let mut reasons = Reasons {
            ports: compiled.without.ports.clone(),
            elsewhere: compiled.without.elsewhere,
            ..Reasons::default()
        };
        let rows = compiled.rows.iter().filter_map(|(place, row)| match row {
            Row::Proxy(why) => Some((place, why)),
            Row::Retiring(_) => Some((place, &WhyProxy::Unresolved)),
            _ => None,
        });
        for ((port, network), why) in compiled.without.networks.iter().chain(rows) {
            *reasons.networks.entry(*port).or_default().entry(*network, || *why) = *why;
        }
        *self.reasons.write().unwrap_or_else(PoisonError::into_inner) = reasons;
    }

    /// Connections to `dst` are the proxy's from now on, whatever policy says.
    pub(super) fn remember(&self, dst: SocketAddr) {
        let mut reasons = self.reasons.write().unwrap_or_else(PoisonError::into_inner);
        let networks = reasons.networks.entry(dst.port()).or_default();
        let why = WhyProxy::Remembered;
        *networks.entry(network_of(dst.ip()), || why) = why;
    }
}

impl Reasons {
    fn why(&self, dst: SocketAddr) -> WhyProxy {
        let own = self.networks.get(&dst.port());
        let own = own.and_then(|networks| networks.longest(dst.ip().to_canonical()));
        *own.or_else(|| self.ports.get(&dst.port())).unwrap_or(&self.elsewhere)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_narrowest_reason_counts_and_what_is_remembered_above_all() {
        let fallbacks = Fallbacks::default();
        let count = |dst: &str| fallbacks.count(dst.parse().expect("an address"));
        count("192.0.2.1:443");
        let mut compiled = Compiled::default();
        let network = |text: &str| text.parse().expect("a network");
        let rows = &mut compiled.rows;
        rows.insert((443, network("192.0.2.0/24")), Row::Proxy(WhyProxy::DestinationRule));
        compiled.without.networks.insert((443, network("192.0.2.8/32")), WhyProxy::TargetPort);
        compiled.without.ports.insert(443, WhyProxy::Unresolved);
        compiled.without.elsewhere = WhyProxy::Nothing;
        fallbacks.replace(&compiled);
        for dst in ["192.0.2.1:443", "[::ffff:192.0.2.8]:443", "203.0.113.1:443", "192.0.2.1:80"] {
            count(dst);
        }
        let to = "192.0.2.8:443".parse().expect("an address");
        fallbacks.remember(to);
        fallbacks.count(to);
        let expected = [
            ("destination_rule", 1),
            ("fast_path_off", 1),
            ("name_not_resolved", 1),
            ("nothing_allowed", 1),
            ("remembered", 1),
            ("target_port", 1),
        ];
        assert_eq!(fallbacks.counts(), BTreeMap::from(expected));
    }
}
