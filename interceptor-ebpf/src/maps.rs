//! Every map: owner, writer, key lifetime, and what happens when it is full.

use aya_ebpf::bindings::BPF_F_NO_PREALLOC;
use aya_ebpf::btf_maps::SkStorage;
use aya_ebpf::macros::{btf_map, map};
use aya_ebpf::maps::{Array, HashMap, LpmTrie, LruHashMap, PerCpuArray, RingBuf};
use interceptor_common::{
    DatagramPeer, EndpointKey, EndpointRule, Finding, Handover, HandoverKey, Interface, Label,
    NameKey, Namespace, Passage, PassageKey, Pending, Route, RouteKey, Settings, ShownName,
    SocketState, capacity,
};

use crate::scratch::Scratch;

/// Written by the daemon, read by every hook. One element.
#[map]
pub static SETTINGS: Array<Settings> = Array::with_max_entries(1, 0);

/// Known namespaces by cookie. Written by the daemon at enrolment, by the CNI plugin before that. Full:
/// enrolment fails; what is not in here is refused.
#[map]
pub static NAMESPACES: HashMap<u64, Namespace> =
    HashMap::with_max_entries(capacity::NAMESPACES, BPF_F_NO_PREALLOC);

/// Routes and local addresses of covered namespaces. Written by the daemon, which follows the
/// namespace's routing. Full: the route is missing, so the connect gets ENETUNREACH.
#[map]
pub static ROUTES: LpmTrie<RouteKey, Route> =
    LpmTrie::with_max_entries(capacity::ROUTES, BPF_F_NO_PREALLOC);

/// Operators' IPv4 prefixes. Written by the daemon. Full: adding fails, the traffic goes to the
/// proxy.
#[map]
pub static BYPASS4: LpmTrie<[u8; 4], u32> =
    LpmTrie::with_max_entries(capacity::BYPASS, BPF_F_NO_PREALLOC);

/// Operators' IPv6 prefixes. As `BYPASS4`. Apart, since `::/0` would otherwise mean IPv4 too.
#[map]
pub static BYPASS6: LpmTrie<[u8; 16], u32> =
    LpmTrie::with_max_entries(capacity::BYPASS, BPF_F_NO_PREALLOC);

/// Resolvers and UDP destinations of entries. Written by the daemon. Full: refused.
#[map]
pub static DATAGRAMS: LpmTrie<EndpointKey, u32> =
    LpmTrie::with_max_entries(capacity::DATAGRAMS, BPF_F_NO_PREALLOC);

/// Destinations that need no proxy. Written by the daemon. Full: it empties the table, everything
/// goes to the proxy.
#[map]
pub static ENDPOINTS: LpmTrie<EndpointKey, EndpointRule> =
    LpmTrie::with_max_entries(capacity::ENDPOINTS, BPF_F_NO_PREALLOC);

/// Names that may be shown at them. Written by the daemon, before the row of `ENDPOINTS` that names
/// the set. Full: as there.
#[map]
pub static NAMES: LpmTrie<NameKey, Label> =
    LpmTrie::with_max_entries(capacity::NAMES, BPF_F_NO_PREALLOC);

/// Direct connections that have not shown their name yet. Written when established, removed when
/// shown or closed; the daemon destroys those that are refused or too old. Full: the connection is
/// refused.
#[map]
pub static PENDING: HashMap<u64, Pending> =
    HashMap::with_max_entries(capacity::PENDING, BPF_F_NO_PREALLOC);

/// The name that a direct connection showed, where its label does not tell it. Lives and dies with
/// the socket. No memory: the log line has no name.
#[btf_map]
pub static SHOWN: SkStorage<ShownName> = SkStorage::new();

/// Where a socket's hello is read. Of the socket, since neither preemption nor a softirq may bring
/// another connection's bytes in between; removed as soon as the hello is judged. Not pinned: what it
/// holds is written anew for each packet. No memory: the packet is held.
#[btf_map]
pub static SCRATCH: SkStorage<Scratch> = SkStorage::new();

/// Who wrote to which UDP socket, and when. Written by the ingress hook. An LRU: an entry that is
/// pushed out means a refused reply, never a wrong permission.
#[map]
pub static PEERS: LruHashMap<DatagramPeer, u64> = LruHashMap::with_max_entries(capacity::PEERS, 0);

/// What connect decided for a workload's socket, or that it was accepted. Lives and dies with the
/// socket.
#[btf_map]
pub static SOCKETS: SkStorage<SocketState> = SkStorage::new();

/// Connections that were open before the hooks were and may go on, by socket cookie. Written by the
/// daemon at its start. A cookie is never another socket's. Full: the connection is cut.
#[map]
pub static KEPT: HashMap<u64, u32> = HashMap::with_max_entries(capacity::KEPT, BPF_F_NO_PREALLOC);

/// The daemon's last sign of life. Written by it every second. One element.
#[map]
pub static HEARTBEAT: Array<u64> = Array::with_max_entries(1, 0);

/// Original destinations between the two ends of a handshake: written when the workload's end is
/// established, taken when the daemon's end is, removed at the latest when the workload's end
/// closes. A plain hash, never an LRU (T-14). Full: the proxy finds none and refuses.
#[map]
pub static HANDOVERS: HashMap<HandoverKey, Handover> =
    HashMap::with_max_entries(capacity::HANDOVERS, BPF_F_NO_PREALLOC);

/// The original destination of an accepted socket. Lives and dies with the socket.
#[btf_map]
pub static ACCEPTED: SkStorage<Handover> = SkStorage::new();

/// Covered interfaces by index. Written by the daemon at enrolment. Full: the start fails.
#[map]
pub static INTERFACES: HashMap<u32, Interface> =
    HashMap::with_max_entries(capacity::INTERFACES, BPF_F_NO_PREALLOC);

/// Flows whose packets pass an interface without a socket that vouches for them. Written when the
/// other end begins, and when a connection closes; an entry counts for a time only, and the daemon
/// removes old ones. A plain hash, never an LRU. Full, or a namespace's quota reached: answers to its new
/// inbound flows are dropped.
#[map]
pub static PASSAGES: HashMap<PassageKey, Passage> =
    HashMap::with_max_entries(capacity::PASSAGES, BPF_F_NO_PREALLOC);

/// How many passages each namespace ever had. Entries are the daemon's, with `INTERFACES`; counted by who
/// writes `PASSAGES`. Full: the start fails.
#[map]
pub static PASSAGE_COUNTS: HashMap<u64, u64> =
    HashMap::with_max_entries(capacity::NAMESPACES, BPF_F_NO_PREALLOC);

/// How many it may ever have had: the count of a moment, and what there was room for in that. Written by
/// the daemon, each time that it removed old ones. No entry: no interface layer there. Full: the start
/// fails.
#[map]
pub static PASSAGE_QUOTAS: HashMap<u64, u64> =
    HashMap::with_max_entries(capacity::NAMESPACES, BPF_F_NO_PREALLOC);

/// Records of closed direct flows. Full: the record is lost and counted; traffic goes on.
#[map]
pub static FLOWS: RingBuf = RingBuf::with_byte_size(capacity::FLOWS_BYTES, 0);

/// Records of refusals. Full: the record is lost and counted; the refusal stands.
#[map]
pub static REFUSALS: RingBuf = RingBuf::with_byte_size(capacity::REFUSALS_BYTES, 0);

/// What workloads heard from resolvers. Full: the hint is lost and counted; the answer goes on.
#[map]
pub static HINTS: RingBuf = RingBuf::with_byte_size(capacity::HINTS_BYTES, 0);

/// How often each finding was made, per CPU.
#[map]
pub static COUNTERS: PerCpuArray<u64> = PerCpuArray::with_max_entries(Finding::ALL.len() as u32, 0);
