//! Which addresses the daemon itself found for which names. Old ones stay a moment longer than the
//! answer that had them: a connection under way to one must not be refused for a new answer.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use crate::decide::host::HostName;

/// How long an address stays after it was last in an answer.
const LINGER: Duration = Duration::from_secs(5);

/// Most addresses kept of one name: several answers' worth (T-41).
const MAX_ADDRESSES: usize = 512;

/// Names and their addresses.
#[derive(Debug, Default)]
pub struct AddressBook {
    names: BTreeMap<HostName, HashMap<IpAddr, Instant>>,
}

impl AddressBook {
    /// Takes what the resolver knows `now`: every name of `answers` with its addresses. True if that
    /// changes which addresses the names have.
    pub fn update<'a>(
        &mut self,
        answers: impl IntoIterator<Item = (&'a HostName, &'a [IpAddr])>,
        now: Instant,
    ) -> bool {
        let mut changed = false;
        for (name, addresses) in answers {
            if !self.names.contains_key(name) {
                self.names.insert(name.clone(), HashMap::new());
            }
            let Some(known) = self.names.get_mut(name) else { continue };
            for &ip in addresses {
                if known.len() < MAX_ADDRESSES || known.contains_key(&ip) {
                    changed |= known.insert(ip, now).is_none();
                }
            }
        }
        self.names.retain(|_, known| {
            let before = known.len();
            known.retain(|_, seen| now.duration_since(*seen) < LINGER);
            changed |= known.len() != before;
            !known.is_empty()
        });
        changed
    }

    /// Whether `ip` is one of the addresses of `name`.
    pub fn has(&self, name: &HostName, ip: IpAddr) -> bool {
        self.names.get(name).is_some_and(|known| known.contains_key(&ip))
    }

    /// The addresses of `name`.
    pub fn addresses(&self, name: &HostName) -> impl Iterator<Item = IpAddr> {
        self.names.get(name).into_iter().flat_map(|known| known.keys().copied())
    }

    /// Every name that has addresses.
    pub fn names(&self) -> impl Iterator<Item = &HostName> {
        self.names.keys()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_lingers_and_then_goes() {
        let name = HostName::parse("a.test").expect("a name");
        let [one, two]: [IpAddr; 2] = ["192.0.2.1", "192.0.2.2"].map(|ip| ip.parse().expect("ip"));
        let (mut book, start) = (AddressBook::default(), Instant::now());
        assert!(book.update([(&name, &[one][..])], start));
        assert!(!book.update([(&name, &[one][..])], start));
        let soon = start + LINGER / 2;
        assert!(book.update([(&name, &[two][..])], soon));
        assert!(book.has(&name, one) && book.has(&name, two));
        assert!(book.update([(&name, &[two][..])], start + LINGER));
        assert!(!book.has(&name, one) && book.has(&name, two));
        assert!(book.update([], start + 2 * LINGER));
        assert_eq!(book.names().count(), 0);
    }
}
