//! sock_ops of workloads: the source port is known now, so the original destination can be found
//! from the other end; what was accepted is marked; direct flows are accounted when they close.

use aya_ebpf::programs::SockOpsContext;
use interceptor_common::{
    Endpoint, Event, Finding, FlowKind, Handover, HandoverKey, Pending, Proof, SocketState, Tier,
};

use crate::count::{count, report, report_named, report_refused_hello};
use crate::ctx::{self, End};
use crate::{interface, maps, select};

const TCP_CONNECT_CB: u32 = 3;
const ACTIVE_ESTABLISHED_CB: u32 = 4;
const PASSIVE_ESTABLISHED_CB: u32 = 5;
const STATE_CB: u32 = 10;
const PARSE_HDR_OPT_CB: u32 = 13;

const STATE_CB_FLAG: i32 = 4;
const PARSE_ALL_HDR_OPT_CB_FLAG: i32 = 16;

const FIN_WAIT1: u32 = 4;
const FIN_WAIT2: u32 = 5;
const CLOSE: u32 = 7;
const CLOSE_WAIT: u32 = 8;
const LAST_ACK: u32 = 9;
const CLOSING: u32 = 11;

const TCP_FLAG_FIN: u32 = 1;
const TCP_PROTOCOL: u32 = 6;

/// One callback.
#[inline(always)]
pub fn workload(ctx: &SockOpsContext) {
    let op = ctx.op();
    if op == PASSIVE_ESTABLISHED_CB {
        return accepted(ctx);
    }
    if !matches!(op, TCP_CONNECT_CB | ACTIVE_ESTABLISHED_CB | STATE_CB | PARSE_HDR_OPT_CB) {
        return;
    }
    let Some(state) = ctx::state_of_ops(ctx) else { return };
    if state.tier == Tier::None as u8 {
        return;
    }
    match op {
        TCP_CONNECT_CB => {
            let _ = ctx.set_cb_flags(STATE_CB_FLAG);
        }
        ACTIVE_ESTABLISHED_CB => established(ctx, state),
        // Asked for only after our FIN: is the peer's in this packet? It counts as a byte.
        PARSE_HDR_OPT_CB => {
            if ctx::ops_tcp_flags(ctx) & TCP_FLAG_FIN != 0 {
                state.fin_received = 1;
            }
        }
        _ => changed(ctx, state),
    }
}

/// Lets an accepted connection answer out of the namespace (T-16). One that has a state dialled: it met
/// its peer's SYN on the way, and connect's word stands. Over loopback nothing is asked.
#[inline(always)]
fn accepted(ctx: &SockOpsContext) {
    let remote = ctx::ops_end(ctx, End::Remote);
    if remote.is_loopback() || ctx::state_of_ops(ctx).is_some() {
        return;
    }
    let Some(state) = ctx::make_state_of_ops(ctx) else { return count(Finding::NoStorage) };
    state.tier = Tier::Accepted as u8;
    state.netns = ctx::netns_cookie(ctx.ops);
    state.whose = state.netns;
    if select::has_interface(state.netns) {
        state.dst = remote;
        state.local = ctx::ops_end(ctx, End::Local);
        let _ = ctx.set_cb_flags(STATE_CB_FLAG);
    }
}

#[inline(always)]
fn established(ctx: &SockOpsContext, state: &mut SocketState) {
    state.local = ctx::ops_end(ctx, End::Local);
    let _ = ctx.set_cb_flags(STATE_CB_FLAG);
    if state.proof == Proof::Owed as u8 {
        await_name(ctx, state);
    }
    if state.tier != Tier::Redirected as u8 {
        return;
    }
    let handover = Handover {
        cgroup: state.cgroup,
        netns: state.netns,
        dst: state.dst,
        src: Endpoint::new(shown_source(state), state.local.port()),
    };
    if maps::HANDOVERS.insert(&key(state), &handover, 0).is_err() {
        count(Finding::HandoverFull);
    }
}

/// Lets the daemon know of a connection that owes a name; one that it cannot know of is refused.
#[inline(always)]
fn await_name(ctx: &SockOpsContext, state: &mut SocketState) {
    let socket = ctx::socket_cookie(ctx.ops);
    let pending = Pending {
        netns: state.whose,
        started_ns: state.started_ns,
        src: state.local,
        dst: state.dst,
        refused: 0,
        held: 0,
    };
    if maps::PENDING.insert(&socket, &pending, 0).is_err() {
        state.proof = Proof::Refused as u8;
        count(Finding::PendingFull);
        report_refused_hello(Finding::PendingFull, socket, state, None);
    }
}

/// What getsockname says: the route's source, unless the workload bound one itself.
#[inline(always)]
fn shown_source(state: &SocketState) -> [u8; 16] {
    if state.local.is_loopback() { state.src.addr() } else { state.local.addr() }
}

#[inline(always)]
fn key(state: &SocketState) -> HandoverKey {
    HandoverKey { netns: state.netns, client: state.local, listener: state.listener }
}

#[inline(always)]
fn changed(ctx: &SockOpsContext, state: &mut SocketState) {
    let (old, new) = ctx::ops_args(ctx);
    let redirected = state.tier == Tier::Redirected as u8;
    // It has the flags of its listener, which may have dialled before.
    let accepted = state.tier == Tier::Accepted as u8;
    match new {
        FIN_WAIT1 if !redirected && !accepted => {
            let _ = ctx.set_cb_flags(STATE_CB_FLAG | PARSE_ALL_HDR_OPT_CB_FLAG);
        }
        FIN_WAIT2 => state.fin_acked = 1,
        CLOSE_WAIT | CLOSING => state.fin_received = 1,
        CLOSE => {
            // The last FIN's acknowledgement closes these without a state of its own.
            if old == LAST_ACK || old == CLOSING {
                state.fin_acked = 1;
            }
            if redirected {
                // Taken already, unless the daemon's end never came to be.
                if state.local.port() != 0 {
                    let _ = maps::HANDOVERS.remove(&key(state));
                }
                return;
            }
            if state.local.port() != 0 && select::has_interface(state.netns) {
                interface::closed(state.netns, state.local, state.dst);
            }
            if !accepted {
                account(ctx, state);
            }
        }
        _ => {}
    }
}

#[inline(always)]
fn account(ctx: &SockOpsContext, state: &SocketState) {
    let was_established = state.local.port() != 0;
    let (acked, received) = ctx::ops_bytes(ctx);
    let socket = ctx::socket_cookie(ctx.ops);
    let proven = state.proof == Proof::Done as u8 || state.proof == Proof::Noticed as u8;
    if !proven {
        let _ = maps::PENDING.remove(&socket);
        // A refusal had its record.
        if state.proof == Proof::Refused as u8 {
            return;
        }
    }
    // The kernel counts SYN and FIN as a byte each.
    let syn = u64::from(was_established);
    let event = || Event {
        netns: state.whose,
        cgroup: state.cgroup,
        socket,
        started_ns: state.started_ns,
        duration_ns: ctx::now_ns() - state.started_ns,
        bytes_sent: acked.saturating_sub(syn + u64::from(state.fin_acked)),
        bytes_received: received.saturating_sub(u64::from(state.fin_received)),
        dst: state.dst,
        src: state.local,
        kind: kind(state),
        finding: 0,
        established: u32::from(was_established),
        protocol: TCP_PROTOCOL,
        label: state.label,
        marks: if proven { ech(state) } else { Event::UNPROVEN },
        error: if was_established { 0 } else { ctx::socket_error(ctx) },
        pad: 0,
    };
    if state.name_kept != 0
        && let Some(name) = ctx::shown_name(ctx)
    {
        return report_named(&maps::FLOWS, Finding::FlowLost, event, Some(name));
    }
    report(&maps::FLOWS, Finding::FlowLost, event);
}

#[inline(always)]
fn ech(state: &SocketState) -> u32 {
    if state.ech != 0 { Event::ECH } else { 0 }
}

#[inline(always)]
fn kind(state: &SocketState) -> u32 {
    let kind = if state.tier == Tier::Resolver as u8 {
        FlowKind::Resolver
    } else if state.tier == Tier::Direct as u8 {
        FlowKind::Direct
    } else if state.tier == Tier::Named as u8 {
        FlowKind::Named
    } else {
        FlowKind::Bypassed
    };
    kind as u32
}
