//! Answers of resolvers.

use crate::decide::host::HostName;
use crate::resolve::fuzzed::addresses;
use crate::tiers::name_in;

/// What the daemon takes from its own resolver's answer, and what it hears in a workload's.
pub(super) fn answers(datagram: &[u8]) {
    addresses(datagram);
    // The kernel copies heads only (T-39).
    let head = &datagram[..datagram.len().min(interceptor_common::HINT_BYTES)];
    let Some(heard) = name_in(head) else { return };
    assert_eq!(HostName::parse(heard.as_str()).as_ref(), Ok(&heard), "in its one form");
    let (flags, counts) = (&head[2..4], &head[4..12]);
    assert!(flags[0] & 0x80 != 0 && flags[1] & 0x0f == 0, "a good answer");
    assert!(counts[..2] == [0, 1] && counts[2..4] != [0, 0], "one question, and answers");
    // A pointer in a question leads into the header; no such name was asked for, but it is one.
    if let Some(name) = question(&head[12..]) {
        assert_eq!(name, heard.as_str());
    }
}

/// The name of a question (RFC 1035 section 4.1.2), read without a library; `None` where it points
/// elsewhere, or is cut off.
fn question(mut rest: &[u8]) -> Option<String> {
    let mut labels: Vec<String> = Vec::new();
    loop {
        let (length, after) = rest.split_first()?;
        match usize::from(*length) {
            0 => return Some(labels.join(".")),
            length @ 1..64 => {
                let label = after.get(..length)?;
                labels
                    .push(label.iter().map(|byte| char::from(byte.to_ascii_lowercase())).collect());
                rest = &after[length..];
            }
            _ => return None,
        }
    }
}
