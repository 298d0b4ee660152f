//! Names for addresses, for the log (GAP-4): those that a workload asked its resolver for, with the
//! addresses that the daemon's own resolver gave for them. They tell what an address is called, and
//! decide nothing.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::Instant;

use crate::decide::host::HostName;

/// Most addresses; those not learned again for longest go, many at once.
const MAX_LEARNED: usize = 8192;
const FORGOTTEN_AT_ONCE: usize = MAX_LEARNED / 16;

/// Names by address.
#[derive(Debug, Default)]
pub(super) struct Learned(HashMap<IpAddr, (HostName, Instant)>);

impl Learned {
    /// `name` has these addresses. Of several names of an address the newest counts.
    pub(super) fn note(&mut self, name: &HostName, addresses: &[IpAddr], now: Instant) {
        for ip in addresses {
            if self.0.len() >= MAX_LEARNED && !self.0.contains_key(ip) {
                self.make_room();
            }
            self.0.insert(*ip, (name.clone(), now));
        }
    }

    /// What an address is called.
    pub(super) fn get(&self, ip: IpAddr) -> Option<&HostName> {
        self.0.get(&ip).map(|(name, _)| name)
    }

    fn make_room(&mut self) {
        let mut times: Vec<Instant> = self.0.values().map(|(_, at)| *at).collect();
        let (_, &mut cutoff, _) = times.select_nth_unstable(FORGOTTEN_AT_ONCE);
        self.0.retain(|_, (_, at)| *at > cutoff);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn the_newest_name_counts_and_the_oldest_addresses_go() {
        let name = |text: &str| HostName::parse(text).expect("a name");
        let ip = |number: u32| IpAddr::from(std::net::Ipv4Addr::from_bits(number));
        let (mut learned, start) = (Learned::default(), Instant::now());
        let at = |second: u32| start + Duration::from_secs(second.into());
        learned.note(&name("a.test"), &[ip(1), ip(2)], at(0));
        learned.note(&name("b.test"), &[ip(2)], at(1));
        assert_eq!(learned.get(ip(1)), Some(&name("a.test")));
        assert_eq!(learned.get(ip(2)), Some(&name("b.test")));
        assert_eq!(learned.get(ip(3)), None);
        for number in 3..=MAX_LEARNED as u32 + 1 {
            learned.note(&name("c.test"), &[ip(number)], at(number));
        }
        assert_eq!(learned.get(ip(1)), None);
        assert_eq!(learned.get(ip(MAX_LEARNED as u32 + 1)), Some(&name("c.test")));
        assert!(learned.0.len() <= MAX_LEARNED);
    }
}
