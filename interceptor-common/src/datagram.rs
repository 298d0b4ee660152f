//! UDP: where datagrams may go.

use crate::Endpoint;

/// Why a datagram passes. Value of the `DATAGRAMS` table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Permit {
    /// A configured resolver: UDP and TCP pass (design, DNS).
    Resolver = 1,
    /// A UDP port of an entry with addresses (profiles.md).
    Entry = 2,
}

/// Key of the `PEERS` table: a socket, and someone who wrote to it, or to whom it wrote.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DatagramPeer {
    /// The socket's cookie.
    pub socket: u64,
    /// Who wrote, or was written to.
    pub peer: Endpoint,
    /// [`DatagramPeer::HEARD`] or [`DatagramPeer::TOLD`].
    pub what: u32,
}

impl DatagramPeer {
    /// The peer wrote: it may be answered.
    pub const HEARD: u32 = 0;
    /// It was told that the socket writes to the peer, which audit lets pass. Allows nothing.
    pub const TOLD: u32 = 1;
}

const _: () = assert!(size_of::<DatagramPeer>() == 32);
