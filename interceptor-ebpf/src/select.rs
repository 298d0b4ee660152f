//! Is this caller ours, and is its destination let go? Asked by every hook that judges.

use aya_ebpf::maps::lpm_trie::Key;
use aya_ebpf::programs::SkBuffContext;
use interceptor_common::{
    Endpoint, EndpointKey, EndpointRule, EndpointVerdict, Namespace, Permit, Route, RouteKey,
    Settings,
};

use crate::{ctx, maps};

/// The daemon's settings. Missing means refuse.
#[inline(always)]
pub fn settings() -> Option<&'static Settings> {
    maps::SETTINGS.get(0)
}

/// Whether `cgroup` is the daemon's.
#[inline(always)]
pub fn is_daemon(settings: &Settings, cgroup: u64) -> bool {
    cgroup == settings.daemon_cgroups[0] || cgroup == settings.daemon_cgroups[1]
}

/// Who is judged.
#[derive(Clone, Copy)]
pub struct Sender {
    /// Key in `NAMESPACES`.
    pub key: u64,
    /// What is known.
    pub known: Option<&'static Namespace>,
}

impl Sender {
    /// Whether what it sends passes.
    #[inline(always)]
    pub fn is_exempt(&self) -> bool {
        self.known.is_some_and(Namespace::is_exempt)
    }
}

/// Whoever sends from a namespace. In an exempt one, as the node's is, that may be a pod that is known by
/// its cgroup; `ancestor` tells the cgroup that the sender's lies in, at a level.
#[inline(always)]
pub fn sender(netns: u64, ancestor: impl Fn(u32) -> u64) -> Sender {
    let all = Sender { key: netns, known: namespace(netns) };
    if !all.is_exempt() {
        return all;
    }
    let Some(&Settings { pod_levels: [first, last], .. }) = settings() else { return all };
    let mut tried = 0;
    while tried < MOST_LEVELS && last != 0 && first + tried <= last {
        let id = ancestor(first + tried);
        // It lies less deep.
        if id == 0 {
            break;
        }
        let key = Namespace::by_cgroup(id);
        if let Some(pod) = namespace(key) {
            return Sender { key, known: Some(pod) };
        }
        tried += 1;
    }
    all
}

/// So many levels are looked at, whatever the settings say.
const MOST_LEVELS: u32 = 12;

/// What is known of a namespace, or by a cgroup.
#[inline(always)]
pub fn namespace(netns: u64) -> Option<&'static Namespace> {
    // SAFETY: the entry may be replaced meanwhile; it is small, and any mix of old and new only leads
    // to a listener that is not there, or to one of both policies.
    unsafe { maps::NAMESPACES.get(&netns) }
}

/// Whether datagrams, and what is neither TCP nor UDP, pass in a namespace without anybody's leave.
#[inline(always)]
pub fn is_open(settings: &Settings, namespace: Option<&Namespace>) -> bool {
    match namespace {
        Some(namespace) => namespace.is_exempt() || namespace.flags & Namespace::OPEN != 0,
        None => settings.refuse_datagrams == 0,
    }
}

/// Whether nothing that leaves a namespace is refused: what would be passes, and is told.
#[inline(always)]
pub fn is_audited(namespace: Option<&Namespace>) -> bool {
    namespace.is_some_and(Namespace::is_audited)
}

/// Whether datagrams, and what is neither TCP nor UDP, pass whether policy would have it so or not.
#[inline(always)]
pub fn passes(settings: &Settings, namespace: Option<&Namespace>) -> bool {
    is_open(settings, namespace) || is_audited(namespace)
}

/// Whose permits count there.
#[inline(always)]
pub fn policy(namespace: Option<&Namespace>) -> u16 {
    match namespace {
        Some(namespace) => namespace.policy,
        None => 0,
    }
}

/// Whether the calling task is whom the settings exempt, by user or group.
#[inline(always)]
pub fn is_exempt(settings: &Settings) -> bool {
    let (user, group) = ctx::current_ids();
    settings.exempt_id != 0 && (user == settings.exempt_id || group == settings.exempt_id)
}

/// Whether what the daemon judged still counts: always, unless that asks for a daemon that lives
/// (`onDaemonLoss: closed`). No sign of life that can be read is none.
#[inline(always)]
pub fn is_led(settings: &Settings) -> bool {
    settings.loss_limit_ns == 0 || is_alive(settings.loss_limit_ns)
}

/// Whether the daemon's last sign of life is younger than `limit_ns`.
#[inline(always)]
pub fn is_alive(limit_ns: u64) -> bool {
    let Some(&beat) = maps::HEARTBEAT.get(0) else { return false };
    ctx::now_ns().saturating_sub(beat) < limit_ns
}

/// Whether the daemon found a packet's connection open when it attached the hooks, and lets it go on.
#[inline(always)]
pub fn is_kept(ctx: &SkBuffContext) -> bool {
    let cookie = ctx::socket_cookie(ctx.skb.skb);
    maps::KEPT.get_ptr(&cookie).is_some()
}

/// Whether an operator's CIDR covers the destination.
#[inline(always)]
pub fn is_bypassed(dst: &Endpoint) -> bool {
    match dst.as_v4() {
        Some(v4) => maps::BYPASS4.get(Key::new(32, v4)).is_some(),
        None => maps::BYPASS6.get(Key::new(128, dst.addr())).is_some(),
    }
}

/// Whether the annotations of the namespace's pod leave the destination alone (CAP-2).
#[inline(always)]
pub fn is_uncaptured(namespace: &Namespace, dst: &Endpoint) -> bool {
    if namespace.flags & Namespace::PARTLY_CAPTURED == 0 {
        return false;
    }
    endpoint(namespace.policy | EndpointKey::CAPTURE, dst)
        .is_some_and(|rule| rule.verdict == EndpointVerdict::Direct as u8)
}

/// Whether datagrams to the destination pass by a policy, and as what.
#[inline(always)]
pub fn permit(policy: u16, dst: &Endpoint) -> Option<Permit> {
    let (key, bits) = EndpointKey::exact(policy, dst, dst.port());
    match maps::DATAGRAMS.get(Key::new(bits, key)) {
        Some(&value) if value == Permit::Resolver as u32 => Some(Permit::Resolver),
        Some(&value) if value == Permit::Entry as u32 => Some(Permit::Entry),
        _ => None,
    }
}

/// Whether the interface layer stands at the namespace's interfaces.
#[inline(always)]
pub fn has_interface(netns: u64) -> bool {
    maps::PASSAGE_QUOTAS.get_ptr(&netns).is_some()
}

/// The namespace's route to the destination, if it has one.
#[inline(always)]
pub fn route(netns: u64, dst: &Endpoint) -> Option<&'static Route> {
    let (key, bits) = match dst.as_v4() {
        Some(v4) => (RouteKey::v4(netns, v4), RouteKey::FIXED_BITS + 32),
        None => (RouteKey::v6(netns, dst.addr()), RouteKey::FIXED_BITS + 128),
    };
    maps::ROUTES.get(Key::new(bits, key)).filter(|route| route.kind != Route::UNREACHABLE)
}

/// What a policy says of a destination, at its port or at any.
#[inline(always)]
pub fn endpoint(policy: u16, dst: &Endpoint) -> Option<EndpointRule> {
    let (key, bits) = EndpointKey::exact(policy, dst, dst.port());
    let row = maps::ENDPOINTS.get(Key::new(bits, key));
    let row = match row {
        Some(row) => row,
        None => {
            let (key, bits) = EndpointKey::exact(policy, dst, EndpointKey::ANY_PORT);
            maps::ENDPOINTS.get(Key::new(bits, key))?
        }
    };
    Some(*row)
}
