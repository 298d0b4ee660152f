//! The contract between kernel and user space: keys, values, findings and map names.
//!
//! Rules of the contract: every type is `repr(C)` without implicit padding; multi-byte network
//! fields are big-endian byte arrays; no Rust enum or bool lies in a map; sizes are asserted here.
//! IPv4 addresses are v4-mapped IPv6 (`::ffff:a.b.c.d`) unless a table is for one family alone.
#![no_std]
#![warn(missing_docs)]

mod datagram;
mod direct;
mod endpoint;
mod event;
mod finding;
mod handover;
mod hint;
mod interface;
mod namespace;
mod settings;
#[cfg(feature = "user")]
#[expect(unsafe_code, reason = "Pod is an unsafe trait; each impl says why it holds")]
mod user;

pub use datagram::{DatagramPeer, Permit};
pub use direct::{
    CUT, EndpointKey, EndpointRule, EndpointVerdict, HELD, LABEL_KEEPS_NAME, LABEL_REFUSED,
    LABEL_UNJUDGED, Label, NameKey, Pending, ShownName,
};
pub use endpoint::Endpoint;
pub use event::{Event, FlowKind, NamedEvent};
pub use finding::Finding;
pub use handover::{Handover, HandoverKey, Proof, SocketState, Tier};
pub use hint::{HINT_BYTES, Hint};
pub use interface::{Interface, Passage, PassageKey};
pub use namespace::{Namespace, Route, RouteKey};
pub use settings::Settings;

/// Version of the contract: raised with every change to the layout or meaning of a map. Maps that
/// another version left pinned are not adopted; its links are, with programs of this version.
pub const VERSION: u32 = 8;

/// Map names, as the kernel object declares them and as they are pinned.
pub mod maps {
    /// `Array<Settings>`, one element.
    pub const SETTINGS: &str = "SETTINGS";
    /// `HashMap<u64, Namespace>` by network namespace cookie, or by cgroup.
    pub const NAMESPACES: &str = "NAMESPACES";
    /// `LpmTrie<RouteKey, Route>`.
    pub const ROUTES: &str = "ROUTES";
    /// `LpmTrie<[u8; 4], u32>`.
    pub const BYPASS4: &str = "BYPASS4";
    /// `LpmTrie<[u8; 16], u32>`.
    pub const BYPASS6: &str = "BYPASS6";
    /// `LpmTrie<EndpointKey, u32>`: a [`Permit`](super::Permit).
    pub const DATAGRAMS: &str = "DATAGRAMS";
    /// `LruHashMap<DatagramPeer, u64>`: when a socket last heard from a peer, or it was
    /// told that it writes to it.
    pub const PEERS: &str = "PEERS";
    /// `LpmTrie<EndpointKey, EndpointRule>`.
    pub const ENDPOINTS: &str = "ENDPOINTS";
    /// `LpmTrie<NameKey, u32>`.
    pub const NAMES: &str = "NAMES";
    /// `HashMap<u64, Pending>` by socket cookie.
    pub const PENDING: &str = "PENDING";
    /// `SkStorage<ShownName>` of workloads' sockets whose name the label does not tell.
    pub const SHOWN: &str = "SHOWN";
    /// `SkStorage<SocketState>` of workloads' sockets.
    pub const SOCKETS: &str = "SOCKETS";
    /// `HashMap<u64, u32>` by socket cookie: sockets from before the attach that may go on.
    pub const KEPT: &str = "KEPT";
    /// `Array<u64>`, one element: the daemon's last sign of life, `CLOCK_MONOTONIC` in nanoseconds.
    pub const HEARTBEAT: &str = "HEARTBEAT";
    /// `HashMap<HandoverKey, Handover>`.
    pub const HANDOVERS: &str = "HANDOVERS";
    /// `SkStorage<Handover>` of the daemon's accepted sockets.
    pub const ACCEPTED: &str = "ACCEPTED";
    /// `HashMap<u32, Interface>` by interface index.
    pub const INTERFACES: &str = "INTERFACES";
    /// `HashMap<PassageKey, Passage>`.
    pub const PASSAGES: &str = "PASSAGES";
    /// `HashMap<u64, u64>` by network namespace cookie: how many passages were ever made.
    pub const PASSAGE_COUNTS: &str = "PASSAGE_COUNTS";
    /// `HashMap<u64, u64>` by network namespace cookie: how many may ever be made, as of now.
    pub const PASSAGE_QUOTAS: &str = "PASSAGE_QUOTAS";
    /// `RingBuf` of [`Event`](super::Event) and [`NamedEvent`](super::NamedEvent): closed direct
    /// flows.
    pub const FLOWS: &str = "FLOWS";
    /// `RingBuf` of the same: refusals. Apart from `FLOWS`, so that a flood of
    /// refused packets cannot push accounting out.
    pub const REFUSALS: &str = "REFUSALS";
    /// `RingBuf` of [`Hint`](super::Hint): what workloads heard from resolvers.
    pub const HINTS: &str = "HINTS";
    /// `PerCpuArray<u64>` by [`Finding`](super::Finding).
    pub const COUNTERS: &str = "COUNTERS";

    /// Every pinned map.
    pub const ALL: [&str; 24] = [
        SETTINGS,
        NAMESPACES,
        ROUTES,
        BYPASS4,
        BYPASS6,
        DATAGRAMS,
        ENDPOINTS,
        NAMES,
        PEERS,
        SOCKETS,
        KEPT,
        HEARTBEAT,
        PENDING,
        SHOWN,
        HANDOVERS,
        ACCEPTED,
        INTERFACES,
        PASSAGES,
        PASSAGE_COUNTS,
        PASSAGE_QUOTAS,
        FLOWS,
        REFUSALS,
        HINTS,
        COUNTERS,
    ];
}

/// Capacities, in entries unless said otherwise. Each is a limit that `status` shows.
pub mod capacity {
    /// Known network namespaces, and pods that are known by their cgroup.
    pub const NAMESPACES: u32 = 4096;
    /// Routes and local addresses of all covered namespaces.
    pub const ROUTES: u32 = 65_536;
    /// Bypass prefixes, per family.
    pub const BYPASS: u32 = 16_384;
    /// Resolvers and UDP destinations of entries.
    pub const DATAGRAMS: u32 = 16_384;
    /// Destinations that need no proxy.
    pub const ENDPOINTS: u32 = 131_072;
    /// Names in sets of names.
    pub const NAMES: u32 = 131_072;
    /// Direct connections that have not shown their name yet.
    pub const PENDING: u32 = 16_384;
    /// Connections from before the attach that may go on.
    pub const KEPT: u32 = 65_536;
    /// Peers that wrote to a workload's UDP socket.
    pub const PEERS: u32 = 65_536;
    /// Redirected connections between the workload's and the daemon's side of the handshake.
    pub const HANDOVERS: u32 = 65_536;
    /// Covered interfaces.
    pub const INTERFACES: u32 = 4096;
    /// Flows whose packets pass without a socket that vouches for them.
    pub const PASSAGES: u32 = 262_144;
    /// Those of one workload.
    pub const PASSAGES_EACH: u32 = PASSAGES / 4;
    /// Bytes: about 20,000 records of flows that closed while the daemon was not reading.
    pub const FLOWS_BYTES: u32 = 4 << 20;
    /// Bytes.
    pub const REFUSALS_BYTES: u32 = 256 << 10;
    /// Bytes: some 400 answers.
    pub const HINTS_BYTES: u32 = 128 << 10;
}

/// Dropped packets of one interface that are reported in [`TOLD_NS`]; further ones are counted.
pub const TOLD: u64 = 100;

/// For how long [`TOLD`] holds, in nanoseconds.
pub const TOLD_NS: u64 = 1_000_000_000;

/// How long after a datagram from a peer a datagram to it counts as a reply, in nanoseconds.
pub const REPLY_WINDOW_NS: u64 = 60_000_000_000;

/// For how long a datagram from a socket to a peer that audit lets pass is not told again, in nanoseconds.
pub const TOLD_WINDOW_NS: u64 = 60_000_000_000;

/// Audit: a daemon's last sign of life that is older than this counts for nothing, in nanoseconds, and what
/// would be turned to it goes direct.
pub const AUDIT_LOSS_NS: u64 = 5_000_000_000;

/// How long a passage stands after what last kept it open, in nanoseconds.
pub const PASSAGE_NS: u64 = 120_000_000_000;

/// The same of a connection that closed, in nanoseconds: a FIN is sent again seven times by then.
pub const PASSAGE_CLOSING_NS: u64 = 30_000_000_000;

/// The same of an established inbound connection whose listener is not of a covered cgroup, in
/// nanoseconds.
pub const PASSAGE_IDLE_NS: u64 = 7_200_000_000_000;
