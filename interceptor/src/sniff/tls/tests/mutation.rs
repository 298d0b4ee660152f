//! What is done to the bytes of honest hellos.

use proptest::prelude::*;

/// One change to the bytes of a hello.
#[derive(Debug, Clone)]
pub(super) enum Mutation {
    Set(usize, u8),
    Add(usize, u8),
    Insert(usize, u8),
    Delete(usize),
    Truncate(usize),
    Repeat(usize, usize),
}

impl Mutation {
    pub(super) fn apply(&self, bytes: &mut Vec<u8>) {
        let at = |i: &usize, len: usize| i % len.max(1);
        let len = bytes.len();
        match self {
            _ if len == 0 => {}
            Self::Set(i, byte) => bytes[at(i, len)] = *byte,
            Self::Add(i, change) => bytes[at(i, len)] = bytes[at(i, len)].wrapping_add(*change),
            Self::Insert(i, byte) => bytes.insert(at(i, len), *byte),
            Self::Delete(i) => drop(bytes.remove(at(i, len))),
            Self::Truncate(i) => bytes.truncate(at(i, len)),
            Self::Repeat(from, n) => {
                bytes.extend_from_within(at(from, len)..(at(from, len) + n).min(len))
            }
        }
    }
}

/// Any change, mostly near the ends.
pub(super) fn mutation() -> impl Strategy<Value = Mutation> {
    // Lengths and names stand near the ends; a whole hello is under 2 KiB.
    let at = || prop_oneof![0usize..120, 0usize..2000];
    prop_oneof![
        (at(), any::<u8>()).prop_map(|(i, byte)| Mutation::Set(i, byte)),
        (at(), prop_oneof![Just(1u8), Just(255)]).prop_map(|(i, change)| Mutation::Add(i, change)),
        (at(), any::<u8>()).prop_map(|(i, byte)| Mutation::Insert(i, byte)),
        at().prop_map(Mutation::Delete),
        at().prop_map(Mutation::Truncate),
        (at(), 0usize..300).prop_map(|(from, n)| Mutation::Repeat(from, n)),
    ]
}
