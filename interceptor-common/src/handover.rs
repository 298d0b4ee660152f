//! The original destination on its way from the workload's socket to the daemon's.

use crate::Endpoint;

/// How a socket of a workload was let through. In [`SocketState::tier`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Tier {
    /// Nothing approved: a socket that was disconnected, or talks to loopback.
    None = 0,
    /// Turned to the proxy.
    Redirected = 1,
    /// Direct, by an operator's CIDR.
    Bypassed = 2,
    /// Direct, to a configured resolver.
    Resolver = 3,
    /// Direct, by its address.
    Direct = 4,
    /// Direct, by the name that it shows first: see [`Proof`].
    Named = 5,
    /// Accepted from outside the namespace: the other end connected (T-16).
    Accepted = 6,
}

impl Tier {
    /// Whether packets of a socket with this [`SocketState::tier`] may leave its namespace.
    #[inline(always)]
    pub fn may_leave(tier: u8) -> bool {
        tier >= Self::Bypassed as u8 && tier <= Self::Accepted as u8
    }
}

/// Whether a socket has shown the name that [`Tier::Named`] asks for. In [`SocketState::proof`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Proof {
    /// Nothing to show, or shown.
    Done = 0,
    /// Data is held until the name is known.
    Owed = 1,
    /// Refused: no data leaves any more.
    Refused = 2,
    /// Nothing to show; a name in the first bytes is kept for the log.
    Noticed = 3,
}

/// What connect4/6 decided for a workload's socket, or that it was accepted. Lives in the socket
/// (SK_STORAGE).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SocketState {
    /// Namespace cookie.
    pub netns: u64,
    /// Key in `NAMESPACES` of who was judged: the same cookie, or a pod's by its cgroup.
    pub whose: u64,
    /// Cgroup id of the caller.
    pub cgroup: u64,
    /// `bpf_ktime_get_ns` at connect.
    pub started_ns: u64,
    /// The address dialled.
    pub dst: Endpoint,
    /// The source that the route to `dst` chooses; the port is filled in by the reader.
    pub src: Endpoint,
    /// The socket's own end once established, for the hand-over key.
    pub local: Endpoint,
    /// The listener that the socket was turned to.
    pub listener: Endpoint,
    /// A [`Tier`].
    pub tier: u8,
    /// 1 once our FIN was acknowledged: it is counted in `bytes_acked`.
    pub fin_acked: u8,
    /// 1 once the peer's FIN came: it is counted in `bytes_received`.
    pub fin_received: u8,
    /// A [`Proof`].
    pub proof: u8,
    /// 1 where `SHOWN` has the name.
    pub name_kept: u8,
    /// 1 where its hello offered encrypted_client_hello.
    pub ech: u8,
    /// Which policy's rows in `ENDPOINTS` are asked.
    pub policy: u16,
    /// What user space calls the flow; 0: nothing.
    pub label: u32,
    /// Always zero.
    pub pad2: [u8; 4],
}

const _: () = assert!(size_of::<SocketState>() == 32 + 80 + 16);

/// Finds a redirected connection from the other end of its handshake. All four parts of the tuple:
/// the kernel gives one source port to several connections if their destinations differ, and a
/// namespace has several listeners (T-14).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HandoverKey {
    /// Namespace cookie: loopback four-tuples of two namespaces collide.
    pub netns: u64,
    /// The workload's end of the loopback connection.
    pub client: Endpoint,
    /// The listener's end.
    pub listener: Endpoint,
}

const _: () = assert!(size_of::<HandoverKey>() == 48);

/// What the accepted socket learns. Lives in the accepted socket (SK_STORAGE).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Handover {
    /// Cgroup id of the workload that connected.
    pub cgroup: u64,
    /// Namespace cookie.
    pub netns: u64,
    /// The address dialled.
    pub dst: Endpoint,
    /// The workload's end as it sees it itself (getsockname).
    pub src: Endpoint,
}

const _: () = assert!(size_of::<Handover>() == 56);

#[cfg(test)]
mod tests {
    use super::*;

    /// T-14: the kernel may use one client port for two listeners at the same time.
    #[test]
    fn one_client_end_at_two_listeners_is_two_keys() {
        let client = Endpoint::v4([127, 0, 0, 1], 40_000);
        let key = |last| HandoverKey {
            netns: 1,
            client,
            listener: Endpoint::v4([127, 0, 0, last], 15_001),
        };
        assert_eq!(key(1), key(1));
        assert_ne!(key(1), key(2));
    }
}
