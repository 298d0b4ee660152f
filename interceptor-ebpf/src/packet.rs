//! cgroup_skb: every packet of a workload's sockets. Judges datagrams that no sendmsg hook saw
//! (connected sockets) and stands behind connect: what TCP sends by a socket that nobody approved is
//! dropped.

use aya_ebpf::programs::SkBuffContext;
use interceptor_common::{Endpoint, Finding, Permit, Proof, Tier};

use crate::count::count;
use crate::ctx::{self, PacketSocket, Verdict};
use crate::select::{self, Sender};
use crate::{datagram, hint, prove};

const TCP: u32 = 6;
const UDP: u32 = 17;
const STREAM: u32 = 1;
const DGRAM: u32 = 2;
pub(crate) const SYN_SENT: u32 = 2;
const SYN_RECV: u32 = 3;
const LISTEN: u32 = 10;
const LOOPBACK_IFINDEX: u32 = 1;

/// Egress.
#[inline(always)]
pub fn egress(ctx: &SkBuffContext) -> Verdict {
    // The kernel's own packets (resets, neighbour discovery) belong to no cgroup and do not come
    // here; timewait and request sockets send no payload.
    let Some(socket) = ctx::packet_socket(ctx) else { return Verdict::Allow };
    if socket.protocol == TCP && socket.kind == STREAM {
        return tcp(ctx, &socket);
    }
    if ctx::packet_ifindex(ctx) == LOOPBACK_IFINDEX {
        return Verdict::Allow;
    }
    let Some(settings) = select::settings() else {
        count(Finding::NoSettings);
        return Verdict::Refuse;
    };
    let cgroup = ctx::packet_cgroup(ctx);
    if select::is_daemon(settings, cgroup) {
        return Verdict::Allow;
    }
    let sender = sender(ctx, &socket);
    let namespace = sender.known;
    if sender.is_exempt() {
        return Verdict::Allow;
    }
    let is_udp = socket.protocol == UDP && socket.kind == DGRAM;
    let Some(dst) = remote(ctx, Side::Destination, is_udp) else {
        // Neither IPv4 nor IPv6, or headers that we cannot find our way through.
        return if select::passes(settings, namespace) {
            Verdict::Allow
        } else {
            datagram::refuse(sender.key, cgroup, Endpoint::default(), socket.protocol)
        };
    };
    let finding = if is_udp {
        datagram::judge(settings, namespace, ctx::socket_cookie(ctx.skb.skb), &dst)
    } else if select::is_open(settings, namespace) {
        Finding::DatagramUnrestricted
    } else if select::is_audited(namespace) {
        Finding::Audited
    } else {
        Finding::DatagramRefused
    };
    if finding == Finding::DatagramRefused {
        return datagram::refuse(sender.key, cgroup, dst, socket.protocol);
    }
    if finding == Finding::Audited {
        let cookie = ctx::socket_cookie(ctx.skb.skb);
        datagram::tell_audited(sender.key, cgroup, cookie, dst, socket.protocol);
    }
    count(finding);
    Verdict::Allow
}

/// A socket of the workload, TCP. Over loopback it may do as it likes. Out of the namespace goes
/// only what connect let go direct, and what was accepted from outside or kept from before the attach
/// (T-7); and nothing whose header leads it elsewhere than its socket says: a routing header or
/// source-route option, set before the SYN or on an open connection, takes it to a hop of the
/// workload's choice (T-2).
#[inline(always)]
fn tcp(ctx: &SkBuffContext, socket: &PacketSocket) -> Verdict {
    if ctx::packet_ifindex(ctx) == LOOPBACK_IFINDEX {
        return Verdict::Allow;
    }
    if is_plain(ctx) {
        let state = socket.state_slot();
        let is_unknown = state.is_none();
        if let Some(state) = state
            && Tier::may_leave(state.tier)
        {
            if state.proof == Proof::Done as u8 {
                return Verdict::Allow;
            }
            return prove::packet(ctx, socket, state);
        }
        // An answer to somebody's SYN, without payload: what it becomes has no state yet, and what
        // listens may have one of its own.
        if socket.state == LISTEN || socket.state == SYN_RECV {
            return Verdict::Allow;
        }
        if is_unknown && (select::is_kept(ctx) || is_of_daemon(ctx)) {
            return Verdict::Allow;
        }
        if sender(ctx, socket).is_exempt() {
            return Verdict::Allow;
        }
        // What is cut may tell its peer.
        if socket.state != SYN_SENT && is_bare_reset(ctx) {
            return Verdict::Allow;
        }
    }
    if select::is_audited(sender(ctx, socket).known) {
        // Where there is an interface layer, that counts and tells it.
        if !select::has_interface(socket.netns(ctx)) {
            count(Finding::Audited);
        }
        return Verdict::Allow;
    }
    count(Finding::Unapproved);
    Verdict::Refuse
}

#[inline(always)]
fn sender(ctx: &SkBuffContext, socket: &PacketSocket) -> Sender {
    select::sender(socket.netns(ctx), |level| ctx::packet_ancestor(ctx, level))
}

#[inline(always)]
fn is_of_daemon(ctx: &SkBuffContext) -> bool {
    select::settings().is_some_and(|settings| select::is_daemon(settings, ctx::packet_cgroup(ctx)))
}

/// Whether a packet ends its connection and carries nothing.
#[inline(always)]
fn is_bare_reset(ctx: &SkBuffContext) -> bool {
    const RST: u8 = 4;
    prove::payload(ctx)
        .is_some_and(|(offset, flags)| flags & RST != 0 && offset >= ctx.len() as usize)
}

/// Whether the IP header has neither options nor extension headers, so that nothing in it sends the
/// packet elsewhere than where it says it goes.
#[inline(always)]
fn is_plain(ctx: &SkBuffContext) -> bool {
    const V4_WITHOUT_OPTIONS: u8 = 0x45;
    let Ok(first) = ctx.load::<u8>(0) else { return false };
    first == V4_WITHOUT_OPTIONS
        || (first >> 4 == 6 && ctx.load::<u8>(6).is_ok_and(|next| u32::from(next) == TCP))
}

/// Ingress: a peer that wrote to a UDP socket may be answered for a while, and what a resolver said
/// is a hint.
#[inline(always)]
pub fn ingress(ctx: &SkBuffContext) {
    let Some(settings) = select::settings() else { return };
    let Some(socket) = ctx::packet_socket(ctx) else { return };
    if socket.protocol != UDP || socket.kind != DGRAM {
        return;
    }
    let Some(peer) = remote(ctx, Side::Source, true) else { return };
    let namespace = sender(ctx, &socket).known;
    if !select::is_open(settings, namespace) {
        datagram::heard(ctx::socket_cookie(ctx.skb.skb), peer);
    }
    if select::permit(select::policy(namespace), &peer) == Some(Permit::Resolver) {
        let ip = if peer.as_v4().is_some() { V4_HEADER } else { V6_HEADER };
        hint::heard(ctx, peer, ip + UDP_HEADER);
    }
}

/// Without options. A resolver has no use for them.
const V4_HEADER: usize = 20;
const V6_HEADER: usize = 40;
const UDP_HEADER: usize = 8;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Side {
    Source,
    Destination,
}

/// The remote end in a packet's own headers. `with_port`: the packet is UDP without extension
/// headers (what has some gives `None`).
#[inline(always)]
fn remote(ctx: &SkBuffContext, side: Side, with_port: bool) -> Option<Endpoint> {
    let first: u8 = ctx.load(0).ok()?;
    let source = side == Side::Source;
    let port_offset = if source { 0 } else { 2 };
    match first >> 4 {
        4 => {
            let addr: [u8; 4] = ctx.load(if source { 12 } else { 16 }).ok()?;
            let header = usize::from(first & 15) * 4;
            let port = if with_port {
                u16::from_be_bytes(ctx.load(header + port_offset).ok()?)
            } else {
                0
            };
            Some(Endpoint::v4(addr, port))
        }
        6 => {
            let addr: [u8; 16] = ctx.load(if source { 8 } else { 24 }).ok()?;
            let port = if with_port {
                let next: u8 = ctx.load(6).ok()?;
                if u32::from(next) != UDP {
                    return None;
                }
                u16::from_be_bytes(ctx.load(40 + port_offset).ok()?)
            } else {
                0
            };
            Some(Endpoint::new(addr, port))
        }
        _ => None,
    }
}
