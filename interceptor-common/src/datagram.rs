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

/// Key of the `DATAGRAMS` table: family and port match exactly, the address by prefix.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct DatagramKey {
    family: [u8; 2],
    port: [u8; 2],
    addr: [u8; 16],
}

const _: () = assert!(size_of::<DatagramKey>() == 20);

impl DatagramKey {
    /// Bits in front of the address.
    pub const FIXED_BITS: u32 = 32;

    /// The key and the length of its whole prefix, in bits, for one destination.
    #[inline(always)]
    pub fn exact(dst: &Endpoint) -> (Self, u32) {
        match dst.as_v4() {
            Some(a) => (Self::v4(a, dst.port()), Self::FIXED_BITS + 32),
            None => (Self::v6(dst.addr(), dst.port()), Self::FIXED_BITS + 128),
        }
    }

    /// A v4 address (network order) and port (host order).
    #[inline(always)]
    pub const fn v4(a: [u8; 4], port: u16) -> Self {
        let addr = [a[0], a[1], a[2], a[3], 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        Self { family: [4, 0], port: port.to_be_bytes(), addr }
    }

    /// A v6 address (network order) and port (host order).
    #[inline(always)]
    pub const fn v6(addr: [u8; 16], port: u16) -> Self {
        Self { family: [6, 0], port: port.to_be_bytes(), addr }
    }
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
