//! What must hold of any bytes that a resolver answers with.

use std::collections::HashSet;
use std::net::IpAddr;

use hickory_resolver::proto::op::Message;
use hickory_resolver::proto::rr::{Name, RData, Record};

use super::ask::{Family, addresses_of};
use super::cache::MAX_ADDRESSES;

/// The addresses of an answer: each belongs to the name that was asked for, or to what that is an
/// alias of; there are few of them, and they live no longer than any of their records (T-41).
pub(crate) fn addresses(datagram: &[u8]) {
    let Ok(message) = Message::from_vec(datagram) else { return };
    let asked = message.queries.first().map(|query| query.name().clone()).unwrap_or_default();
    let Family::Found { addresses, ttl } = addresses_of(&asked, &message.answers) else { return };
    let owners = closure(&asked, &message.answers);
    let own: Vec<&Record> =
        message.answers.iter().filter(|record| owners.contains(&record.name)).collect();
    assert!((1..=MAX_ADDRESSES).contains(&addresses.len()), "{addresses:?}");
    for ip in &addresses {
        let record = own.iter().find(|record| match &record.data {
            RData::A(a) => *ip == IpAddr::V4(a.0),
            RData::AAAA(aaaa) => *ip == IpAddr::V6(aaaa.0).to_canonical(),
            _ => false,
        });
        assert!(record.is_some(), "{ip} is nobody's that was asked for");
        assert_eq!(*ip, ip.to_canonical(), "an IPv4 address in disguise");
    }
    let longest = own.iter().map(|record| record.ttl).max();
    assert!(ttl.as_secs() <= longest.unwrap_or_default().into(), "{ttl:?}");
}

/// Every name that `name` may be an alias of, itself included, however long the way.
fn closure(name: &Name, records: &[Record]) -> HashSet<Name> {
    let mut found = HashSet::from([name.clone()]);
    loop {
        let before = found.len();
        for record in records {
            if let RData::CNAME(target) = &record.data
                && found.contains(&record.name)
            {
                found.insert(target.0.clone());
            }
        }
        if found.len() == before {
            return found;
        }
    }
}
