//! Which addresses the daemon itself found for which names. Old ones stay a moment longer than the
//! answer that had them, and then retire for another: a connection under way to one must not be
//! refused for a new answer.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use crate::decide::host::HostName;

/// How long an address stays after it was last in an answer.
const LINGER: Duration = Duration::from_secs(5);

/// How long it goes on retiring after that: new connections do not go to it any more, those made
/// before may still show the name. More than a client takes to say its hello.
pub(super) const RETIRING: Duration = Duration::from_secs(30);

/// Most addresses kept of one name: several answers' worth (T-41).
const MAX_ADDRESSES: usize = 512;

/// Names and their addresses.
#[derive(Debug, Default)]
pub struct AddressBook {
    names: BTreeMap<HostName, HashMap<IpAddr, Seen>>,
}

#[derive(Debug)]
struct Seen {
    /// When it was last in an answer.
    at: Instant,
    retiring: bool,
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
                if known.len() >= MAX_ADDRESSES && !known.contains_key(&ip) {
                    drop_oldest_retiring(known);
                }
                if known.len() < MAX_ADDRESSES || known.contains_key(&ip) {
                    let before = known.insert(ip, Seen { at: now, retiring: false });
                    changed |= before.is_none_or(|before| before.retiring);
                }
            }
        }
        self.names.retain(|_, known| {
            let before = known.len();
            known.retain(|_, seen| now.duration_since(seen.at) < LINGER + RETIRING);
            changed |= known.len() != before;
            for seen in known.values_mut() {
                let retiring = now.duration_since(seen.at) >= LINGER;
                changed |= retiring != seen.retiring;
                seen.retiring = retiring;
            }
            !known.is_empty()
        });
        changed
    }

    /// Whether any address of `name` is known.
    pub fn knows(&self, name: &HostName) -> bool {
        self.names.contains_key(name)
    }

    /// Whether `ip` is one of the addresses of `name` that new connections may go to.
    pub fn has(&self, name: &HostName, ip: IpAddr) -> bool {
        let seen = self.names.get(name).and_then(|known| known.get(&ip));
        seen.is_some_and(|seen| !seen.retiring)
    }

    /// Whether `ip` is one of the addresses of `name`, if only a retiring one.
    pub fn had(&self, name: &HostName, ip: IpAddr) -> bool {
        self.names.get(name).is_some_and(|known| known.contains_key(&ip))
    }

    /// The addresses of `name`, retiring ones too.
    pub fn addresses(&self, name: &HostName) -> impl Iterator<Item = IpAddr> {
        self.names.get(name).into_iter().flat_map(|known| known.keys().copied())
    }

    /// Every name that has addresses.
    pub fn names(&self) -> impl Iterator<Item = &HostName> {
        self.names.keys()
    }
}

fn drop_oldest_retiring(known: &mut HashMap<IpAddr, Seen>) {
    let retiring = known.iter().filter(|(_, seen)| seen.retiring);
    let oldest = retiring.min_by_key(|(_, seen)| seen.at).map(|(ip, _)| *ip);
    oldest.and_then(|oldest| known.remove(&oldest));
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
        assert!(!book.has(&name, one) && book.had(&name, one) && book.has(&name, two));
        // It comes back, and goes again.
        let late = start + LINGER + RETIRING / 2;
        assert!(book.update([(&name, &[one, two][..])], late));
        assert!(book.has(&name, one));
        assert!(book.update([(&name, &[two][..])], late + LINGER));
        assert!(book.update([(&name, &[two][..])], late + LINGER + RETIRING));
        assert!(!book.had(&name, one) && book.has(&name, two));
        assert!(book.update([], late + 2 * (LINGER + RETIRING)));
        assert_eq!(book.names().count(), 0);
    }

    #[test]
    fn retiring_addresses_make_room_and_others_do_not() {
        let name = HostName::parse("a.test").expect("a name");
        let ip = |number: u32| IpAddr::from(std::net::Ipv4Addr::from_bits(number));
        let (mut book, start) = (AddressBook::default(), Instant::now());
        let first: Vec<IpAddr> = (0..MAX_ADDRESSES as u32).map(ip).collect();
        book.update([(&name, &first[..])], start);
        let more = [ip(u32::MAX)];
        assert!(!book.update([(&name, &more[..])], start), "no room");
        book.update([], start + LINGER);
        assert!(book.update([(&name, &more[..])], start + LINGER));
        assert!(book.has(&name, more[0]));
        assert_eq!(book.addresses(&name).count(), MAX_ADDRESSES);
    }
}
