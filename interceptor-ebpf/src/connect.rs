//! connect4/6: select, remember the destination, turn to the proxy.

use aya_ebpf::programs::SockAddrContext;
use aya_log_ebpf::debug;
use interceptor_common::{
    AUDIT_LOSS_NS, Endpoint, EndpointVerdict, Finding, FlowKind, LABEL_UNJUDGED, Namespace, Permit,
    Proof, Route, SocketState, Tier,
};

use crate::count::{count, report_refusal};
use crate::ctx::{self, Family, Verdict};
use crate::select;

const TCP: u32 = 6;
const MPTCP: u32 = 262;

/// Judges one connect.
#[inline(always)]
pub fn connect(ctx: &SockAddrContext, dst: Endpoint, family: Family) -> Verdict {
    let netns = ctx::netns_cookie(ctx.sock_addr);
    match ctx::sock_addr_protocol(ctx) {
        TCP => {}
        MPTCP if select::sender(netns, ctx::current_ancestor).is_exempt() => {
            return Verdict::Allow;
        }
        MPTCP => {
            count(Finding::Mptcp);
            return ctx::refuse_with(ctx::PROTONOSUPPORT);
        }
        // Not traffic: getaddrinfo connects a datagram socket per candidate to sort addresses.
        // What such a socket sends is judged packet by packet.
        _ => return Verdict::Allow,
    }
    let cgroup = ctx::current_cgroup();
    let mut whose = netns;
    let finding = judge(ctx, &dst, family, netns, cgroup, &mut whose);
    count(finding);
    debug!(ctx, "connect port {}: finding {}", dst.port(), finding as u32);
    match finding {
        Finding::Redirected
        | Finding::Bypassed
        | Finding::Resolver
        | Finding::Direct
        | Finding::NameAsked
        | Finding::AuditedUnjudged
        | Finding::Loopback
        | Finding::Daemon
        | Finding::Exempt => Verdict::Allow,
        // What a connect without us would have said: clients that race families go on at once.
        Finding::NoRoute => ctx::refuse_with(ctx::NETUNREACH),
        _ => {
            report_refusal(FlowKind::RefusedConnect, finding, whose, cgroup, dst, TCP);
            Verdict::Refuse
        }
    }
}

/// What a TCP connect is; `whose` becomes the key of who makes it.
#[inline(always)]
fn judge(
    ctx: &SockAddrContext,
    dst: &Endpoint,
    family: Family,
    netns: u64,
    cgroup: u64,
    whose: &mut u64,
) -> Finding {
    if dst.is_loopback() {
        // A socket may have been connected elsewhere before (AF_UNSPEC): forget that.
        if let Some(state) = ctx::state_of_sock_addr(ctx) {
            state.tier = Tier::None as u8;
            state.proof = Proof::Done as u8;
        }
        return Finding::Loopback;
    }
    let Some(settings) = select::settings() else { return Finding::NoSettings };
    if select::is_daemon(settings, cgroup) {
        return Finding::Daemon;
    }
    let sender = select::sender(netns, ctx::current_ancestor);
    let Some(namespace) = sender.known else { return Finding::NamespaceUnknown };
    *whose = sender.key;
    if namespace.is_exempt() {
        return Finding::Exempt;
    }
    if namespace.is_unserved() {
        return Finding::NoListener;
    }
    let Some(state) = ctx::state_to_fill(ctx) else { return Finding::NoStorage };
    // Until the end of this hook nothing is approved, whatever an earlier connect had.
    state.tier = Tier::None as u8;
    state.netns = netns;
    state.whose = sender.key;
    state.cgroup = cgroup;
    state.started_ns = ctx::now_ns();
    state.dst = *dst;
    state.src = Endpoint::default();
    state.local = Endpoint::default();
    state.fin_acked = 0;
    state.fin_received = 0;
    state.proof = Proof::Done as u8;
    state.name_kept = 0;
    state.ech = 0;
    state.policy = namespace.policy;
    state.label = 0;
    if select::is_bypassed(dst)
        || select::is_exempt(settings)
        || select::is_uncaptured(namespace, dst)
    {
        state.tier = Tier::Bypassed as u8;
        return Finding::Bypassed;
    }
    if select::permit(namespace.policy, dst) == Some(Permit::Resolver) {
        state.tier = Tier::Resolver as u8;
        return Finding::Resolver;
    }
    let Some(route) = select::route(netns, dst) else { return Finding::NoRoute };
    // Where no route leads, policy may: the proxy's own dial then tells the truth.
    if route.kind == Route::BY_POLICY && namespace.flags & Namespace::REROUTES == 0 {
        return Finding::NoRoute;
    }
    // An address of the workload's own namespace is its own loopback (CAP-2, T-16): the packets stay
    // inside, and with no tier none of them may leave.
    if route.kind == Route::LOCAL {
        return Finding::Loopback;
    }
    let audited = namespace.is_audited();
    if !select::is_led(settings) && !audited {
        return Finding::DaemonLost;
    }
    state.src = Endpoint::new(route.src, 0);
    if let Some(finding) = direct(ctx, state, dst, audited) {
        return finding;
    }
    // Nobody to ask: nothing is refused for that, and the line says that nobody judged it.
    if audited && !select::is_alive(AUDIT_LOSS_NS) {
        return let_go(state);
    }
    let finding = redirect(ctx, namespace, state, dst, family);
    if audited && finding != Finding::Redirected {
        return let_go(state);
    }
    finding
}

/// Lets a connection of an audited namespace go direct that nobody judged.
#[inline(always)]
fn let_go(state: &mut SocketState) -> Finding {
    state.tier = Tier::Direct as u8;
    state.label = LABEL_UNJUDGED;
    Finding::AuditedUnjudged
}

/// What the tables say without the proxy; `None`: it is the proxy's, as is all that they may refuse of what
/// is `audited`.
#[inline(always)]
fn direct(
    ctx: &SockAddrContext,
    state: &mut SocketState,
    dst: &Endpoint,
    audited: bool,
) -> Option<Finding> {
    if state.policy == 0 {
        return None;
    }
    let rule = select::endpoint(state.policy, dst)?;
    if rule.verdict == EndpointVerdict::Direct as u8 {
        state.tier = Tier::Direct as u8;
        state.label = rule.label;
        return Some(Finding::Direct);
    }
    if rule.verdict == EndpointVerdict::Noticed as u8 {
        state.tier = Tier::Direct as u8;
        state.label = rule.label;
        state.proof = Proof::Noticed as u8;
        return Some(Finding::Direct);
    }
    if audited {
        return None;
    }
    // A socket bound to a device is not found by its addresses alone when it must be destroyed.
    if rule.verdict == EndpointVerdict::Named as u8 && !ctx::is_bound_to_device(ctx) {
        state.tier = Tier::Named as u8;
        state.proof = Proof::Owed as u8;
        return Some(Finding::NameAsked);
    }
    (rule.verdict == EndpointVerdict::Refused as u8).then_some(Finding::AddressRefused)
}

#[inline(always)]
fn redirect(
    ctx: &SockAddrContext,
    namespace: &Namespace,
    state: &mut SocketState,
    dst: &Endpoint,
    family: Family,
) -> Finding {
    let v4 = dst.as_v4();
    let port = if v4.is_some() { namespace.port_v4 } else { namespace.port_v6 };
    if port == 0 || (v4.is_some() && namespace.v4_listeners == 0) {
        return Finding::NoListener;
    }
    if !ctx::unbind_device(ctx) {
        return Finding::BoundDevice;
    }
    let listener = match v4 {
        Some(v4) => Endpoint::v4(listener_v4(namespace, v4, dst.port()), port),
        None => Endpoint::new(LOOPBACK_V6, port),
    };
    match (family, listener.as_v4()) {
        (Family::V4, Some(v4)) => ctx::set_addr_v4(ctx, v4),
        // An AF_INET connect always has a v4 destination.
        (Family::V4, None) => return Finding::NoListener,
        (Family::V6, _) => ctx::set_addr_v6(ctx, listener.addr()),
    }
    ctx::set_port(ctx, port);
    state.listener = listener;
    state.tier = Tier::Redirected as u8;
    Finding::Redirected
}

const LOOPBACK_V6: [u8; 16] = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];

/// One of the namespace's loopback listeners, by destination: connections to one destination share
/// an address pair, different destinations mostly do not.
#[inline(always)]
fn listener_v4(namespace: &Namespace, dst: [u8; 4], port: u16) -> [u8; 4] {
    let hash = dst[3] ^ dst[2] ^ (port as u8) ^ ((port >> 8) as u8);
    // The entry may change under us: `max` keeps the compiler's check for zero, and its panic, out.
    [127, 0, 0, 1 + hash % namespace.v4_listeners.max(1)]
}
