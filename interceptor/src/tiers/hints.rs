//! Answers that a workload had from its resolver, as hints (T-39). A hint never authorises: it makes
//! the daemon ask its own resolver for the name, and only that answer enters the tables.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use hickory_resolver::proto::op::{Header, MessageType, Query, ResponseCode};
use hickory_resolver::proto::rr::RecordType;
use hickory_resolver::proto::serialize::binary::{BinDecodable, BinDecoder};

use crate::decide::host::HostName;

/// How long a name is asked for again after it was last heard.
const LIFE: Duration = Duration::from_secs(600);
/// Most names; the one not heard for longest goes.
const MAX_HEARD: usize = 512;

/// Names that were heard, and when last.
#[derive(Debug, Default)]
pub(super) struct Heard(HashMap<HostName, Instant>);

impl Heard {
    /// Notes a name.
    pub(super) fn note(&mut self, name: HostName, now: Instant) {
        if self.0.len() >= MAX_HEARD && !self.0.contains_key(&name) {
            let oldest = self.0.iter().min_by_key(|(_, at)| **at).map(|(name, _)| name.clone());
            oldest.and_then(|oldest| self.0.remove(&oldest));
        }
        self.0.insert(name, now);
    }

    /// The names that are still worth asking for.
    pub(super) fn names(&mut self, now: Instant) -> Vec<HostName> {
        self.0.retain(|_, at| now.duration_since(*at) < LIFE);
        self.0.keys().cloned().collect()
    }
}

/// The name that a datagram answers addresses of; `None`: it is no such answer. Only its header and
/// question are read.
pub fn name_in(datagram: &[u8]) -> Option<HostName> {
    let mut decoder = BinDecoder::new(datagram);
    let header = Header::read(&mut decoder).ok()?;
    let answers = header.counts.answers > 0
        && header.counts.queries == 1
        && header.metadata.message_type == MessageType::Response
        && header.metadata.response_code == ResponseCode::NoError;
    if !answers {
        return None;
    }
    let query = Query::read(&mut decoder).ok()?;
    let addresses = matches!(query.query_type(), RecordType::A | RecordType::AAAA);
    let name = query.name().to_ascii();
    addresses.then(|| HostName::parse(name.trim_end_matches('.')).ok()).flatten()
}

#[cfg(test)]
mod tests {
    use hickory_resolver::proto::op::{Message, OpCode};
    use hickory_resolver::proto::rr::rdata::A;
    use hickory_resolver::proto::rr::{Name, RData, Record};

    use super::*;

    fn answer(name: &str, kind: RecordType, records: usize) -> Message {
        let name = Name::from_ascii(name).expect("a name");
        let mut message = Message::response(7, OpCode::Query);
        message.add_query(Query::query(name.clone(), kind));
        for last in 0..records {
            let data = RData::A(A::new(192, 0, 2, last as u8));
            message.add_answer(Record::from_rdata(name.clone(), 1, data));
        }
        message
    }

    fn heard(message: &Message) -> Option<String> {
        let bytes = message.to_vec().expect("bytes");
        let head = &bytes[..bytes.len().min(interceptor_common::HINT_BYTES)];
        name_in(head).map(|name| name.to_string())
    }

    #[test]
    fn only_the_name_of_an_answer_with_addresses_is_heard() {
        // Longer than what is kept of it.
        let long = answer("A.Example.com.", RecordType::A, 60);
        assert_eq!(heard(&long).as_deref(), Some("a.example.com"));
        let plain = answer("a.test.", RecordType::AAAA, 1);
        assert_eq!(heard(&plain).as_deref(), Some("a.test"));
        let mut query = plain.clone();
        query.metadata.message_type = MessageType::Query;
        let mut failed = plain.clone();
        failed.metadata.response_code = ResponseCode::NXDomain;
        let mut two = plain.clone();
        two.add_query(two.queries[0].clone());
        let none = answer("a.test.", RecordType::A, 0);
        let text = answer("a.test.", RecordType::TXT, 1);
        for (what, message) in
            [("query", query), ("failed", failed), ("two", two), ("none", none), ("text", text)]
        {
            assert_eq!(heard(&message), None, "{what}");
        }
        assert_eq!(name_in(b"\0\x01"), None);
        assert_eq!(name_in(&plain.to_vec().expect("bytes")[..14]), None);
    }

    #[test]
    fn the_oldest_name_makes_room() {
        let (mut all, start) = (Heard::default(), Instant::now());
        let name = |number: usize| HostName::parse(&format!("n{number}.test")).expect("a name");
        for number in 0..=MAX_HEARD {
            all.note(name(number), start + Duration::from_millis(number as u64));
        }
        let names = all.names(start + Duration::from_secs(1));
        assert_eq!(names.len(), MAX_HEARD);
        assert!(!names.contains(&name(0)) && names.contains(&name(MAX_HEARD)));
        assert!(all.names(start + LIFE + Duration::from_secs(1)).is_empty());
    }
}
