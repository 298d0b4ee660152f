//! UDP: resolvers pass, what an entry allows by address passes, replies pass; the rest by mode.

use aya_ebpf::programs::SockAddrContext;
use interceptor_common::{
    DatagramPeer, Endpoint, Finding, FlowKind, Namespace, Permit, REPLY_WINDOW_NS, Route, Settings,
    TOLD_WINDOW_NS,
};

use crate::count::{count, report_audited, report_refusal};
use crate::ctx::{self, Verdict};
use crate::{maps, select};

/// sendmsg4/6: a datagram with a destination. The packet hook sees it again; this one is there to
/// answer at once, and before a route is looked up.
#[inline(always)]
pub fn sendmsg(ctx: &SockAddrContext, dst: Endpoint) -> Verdict {
    if dst.is_loopback() {
        return Verdict::Allow;
    }
    let Some(settings) = select::settings() else {
        count(Finding::NoSettings);
        return Verdict::Refuse;
    };
    let cgroup = ctx::current_cgroup();
    let netns = ctx::netns_cookie(ctx.sock_addr);
    let sender = select::sender(netns, ctx::current_ancestor);
    // What audit lets pass the packet hook tells.
    if select::passes(settings, sender.known) || select::is_daemon(settings, cgroup) {
        return Verdict::Allow;
    }
    // To an address of the namespace itself: stays inside (T-16).
    if select::route(netns, &dst).is_some_and(|route| route.kind == Route::LOCAL) {
        return Verdict::Allow;
    }
    // Counted once, by the packet hook.
    let socket = ctx::socket_cookie(ctx.sock_addr);
    if judge(settings, sender.known, socket, &dst) != Finding::DatagramRefused {
        return Verdict::Allow;
    }
    refuse(sender.key, cgroup, dst, ctx::sock_addr_protocol(ctx))
}

/// What a datagram from `socket` in a namespace to `dst` is.
#[inline(always)]
pub fn judge(
    settings: &Settings,
    namespace: Option<&Namespace>,
    socket: u64,
    dst: &Endpoint,
) -> Finding {
    match select::permit(select::policy(namespace), dst) {
        Some(Permit::Resolver) => return Finding::Resolver,
        Some(Permit::Entry) if select::is_led(settings) => return Finding::DatagramAllowed,
        Some(Permit::Entry) | None => {}
    }
    if select::is_open(settings, namespace) {
        return Finding::DatagramUnrestricted;
    }
    let key = DatagramPeer { socket, peer: *dst, what: DatagramPeer::HEARD };
    // SAFETY: a torn read of the time at worst misjudges one reply's age.
    match unsafe { maps::PEERS.get(&key) } {
        Some(&heard) if ctx::now_ns().wrapping_sub(heard) < REPLY_WINDOW_NS => {
            Finding::DatagramReply
        }
        _ if select::is_audited(namespace) => Finding::Audited,
        _ => Finding::DatagramRefused,
    }
}

/// Notes that `peer` wrote to `socket`.
#[inline(always)]
pub fn heard(socket: u64, peer: Endpoint) {
    let key = DatagramPeer { socket, peer, what: DatagramPeer::HEARD };
    // A failed insert means a refused reply.
    let _ = maps::PEERS.insert(&key, &ctx::now_ns(), 0);
}

/// Reports what audit lets pass from `socket` to `dst`, unless that was done a short while ago: each of
/// them is counted.
#[inline(always)]
pub fn tell_audited(netns: u64, cgroup: u64, socket: u64, dst: Endpoint, protocol: u32) {
    let key = DatagramPeer { socket, peer: dst, what: DatagramPeer::TOLD };
    let now = ctx::now_ns();
    // SAFETY: a torn read of the time at worst tells once more, or once less.
    if let Some(&told) = unsafe { maps::PEERS.get(&key) }
        && now.wrapping_sub(told) < TOLD_WINDOW_NS
    {
        return;
    }
    // A failed insert means that it is told again.
    let _ = maps::PEERS.insert(&key, &now, 0);
    report_audited(netns, cgroup, dst, protocol);
}

/// Counts and reports a refused datagram or packet of another protocol.
#[inline(always)]
pub fn refuse(whose: u64, cgroup: u64, dst: Endpoint, protocol: u32) -> Verdict {
    count(Finding::DatagramRefused);
    let (kind, finding) = (FlowKind::RefusedDatagram, Finding::DatagramRefused);
    report_refusal(kind, finding, whose, cgroup, dst, protocol);
    Verdict::Refuse
}
