//! What a workload heard from its resolver.

use crate::Endpoint;

/// Bytes of an answer that are kept: header and question, but for names that nobody has.
pub const HINT_BYTES: usize = 256;

/// One record of `HINTS`: the head of a datagram that a workload got from a configured resolver's
/// address. Anybody may have sent it: it authorises nothing.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hint {
    /// The payload's head.
    pub bytes: [u8; HINT_BYTES],
    /// Whose address it came from.
    pub from: Endpoint,
    /// How many of `bytes` are the datagram's.
    pub len: u32,
}

const _: () = assert!(size_of::<Hint>() == HINT_BYTES + 24);
