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

/// Key of the `PEERS` table: a socket, and someone who wrote to it.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DatagramPeer {
    /// The socket's cookie.
    pub socket: u64,
    /// Who wrote.
    pub peer: Endpoint,
    /// Always zero.
    pub pad: [u8; 4],
}

const _: () = assert!(size_of::<DatagramPeer>() == 32);
