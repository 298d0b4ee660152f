//! What the kernel reports: one closed direct flow, or one refusal.

use crate::{Endpoint, ShownName};

/// Kind of an [`Event`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum FlowKind {
    /// A bypassed TCP connection closed.
    Bypassed = 1,
    /// A TCP connection to a configured resolver closed.
    Resolver = 2,
    /// A TCP connect was refused.
    RefusedConnect = 3,
    /// A datagram, or a packet of another protocol, was refused.
    RefusedDatagram = 4,
    /// A TCP connection that went direct by its address closed.
    Direct = 5,
    /// A TCP connection that had to show a name closed, with its name shown or not.
    Named = 6,
    /// The first bytes of a direct connection were refused: it is to be destroyed.
    RefusedHello = 7,
    /// A packet was dropped at an interface.
    RefusedPacket = 8,
}

/// One record of `FLOWS` or `REFUSALS`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event {
    /// Key in `NAMESPACES` of whose it is: a cookie, or [`Namespace::by_cgroup`](crate::Namespace::by_cgroup).
    pub netns: u64,
    /// Cgroup id of the workload.
    pub cgroup: u64,
    /// Socket cookie, where there is a socket.
    pub socket: u64,
    /// Monotonic time of the connect or refusal, nanoseconds.
    pub started_ns: u64,
    /// Connect to close, nanoseconds.
    pub duration_ns: u64,
    /// Payload bytes that the peer acknowledged.
    pub bytes_sent: u64,
    /// Payload bytes that the peer sent.
    pub bytes_received: u64,
    /// Destination.
    pub dst: Endpoint,
    /// The workload's end.
    pub src: Endpoint,
    /// A [`FlowKind`].
    pub kind: u32,
    /// The [`Finding`](crate::Finding) behind a refusal.
    pub finding: u32,
    /// 1 if the connection was established before it closed.
    pub established: u32,
    /// IP protocol number; [`Event::FRAME`] and the ethertype, of what is not IP.
    pub protocol: u32,
    /// What user space calls the flow; 0: nothing. Of a dropped packet: the index of its interface.
    pub label: u32,
    /// [`Event::UNPROVEN`], [`Event::ECH`] and [`Event::AUDITED`].
    pub marks: u32,
    /// Why a connection was not established, as a number of errno(3); 0: its program gave up first,
    /// or the kernel does not tell.
    pub error: u32,
    /// Unused, 0.
    pub pad: u32,
}

const _: () = assert!(size_of::<Event>() == 128);

impl Event {
    /// A name had to be shown and was not. In [`Event::marks`].
    pub const UNPROVEN: u32 = 1;
    /// The hello offered encrypted_client_hello. In [`Event::marks`].
    pub const ECH: u32 = 2;
    /// Nothing was refused: the namespace is audited. In [`Event::marks`].
    pub const AUDITED: u32 = 4;
    /// More than any protocol number. In [`Event::protocol`].
    pub const FRAME: u32 = 1 << 16;
}

/// An event with the name that the client showed.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NamedEvent {
    /// What happened.
    pub event: Event,
    /// All zero: no name.
    pub name: ShownName,
}

const _: () = assert!(size_of::<NamedEvent>() == 384);
