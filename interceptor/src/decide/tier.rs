//! Which connections need no proxy: those whose only allowed ends are "direct to where it dialled".
//!
//! Nothing is decided here a second time. Both doors ask [`by_address`] and [`by_hello`] and say
//! whether the kernel can do what they answer; what it cannot is the proxy's.

use std::net::SocketAddr;

use super::door::{Door, Scope};
use super::host::HostName;
use super::route::Destination;
use super::traffic::{LoadBalancer, TrafficPolicy, UpstreamProtocol};
use super::{
    Action, ByAddress, Claim, ClusterName, Decision, Flow, Place, Policy, Reason, Upstream,
    by_address, by_hello,
};
use crate::policy::Outbound;
use crate::sniff::{ClientHello, Hello, Malformed};

/// What the kernel can do with connections to a destination.
#[derive(Debug, Clone, PartialEq)]
pub enum Tier {
    /// Nothing: they are the proxy's.
    Proxy(WhyProxy),
    /// Refuse them: no byte of any client is allowed.
    Refused(Reason),
    /// Let them go direct: every byte of every client is allowed, and leads there. With a name: only
    /// if the daemon's own resolution of that has the address (R3).
    Direct(Decision, Option<HostName>),
    /// The same, but that HTTP would be judged request by request and allowed, and that the log
    /// has the name that is shown (MESH-21).
    Noticed(Decision),
    /// Let them go direct once they have shown a name that [`by_name`] allows; whatever else they
    /// send is refused.
    Named,
}

/// What the kernel can do with a name shown at a destination for which [`by_destination`] said
/// [`Tier::Named`].
#[derive(Debug, Clone, PartialEq)]
pub enum NameTier {
    /// Nothing: connections that show it are the proxy's.
    Proxy(WhyProxy),
    /// Refuse it.
    Refused,
    /// Let it pass. With a name: only if the daemon's own resolution of that has the address (R3).
    Direct(Decision, Option<HostName>),
}

/// Why connections are the proxy's. A small closed set: it labels metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum WhyProxy {
    /// `fastPath` is off, or the kernel cannot end connections.
    Off,
    /// The kernel could not judge what an earlier connection to this destination said.
    Remembered,
    /// Names decide, and none of them is known to have this address (yet).
    Unresolved,
    /// The same, where all those names are wildcards: no name below one was looked up yet.
    Wildcard,
    /// Nothing is allowed there: the proxy refuses it, and says so in the client's protocol.
    Nothing,
    /// HTTP that some entry may allow, request by request.
    Http,
    /// It passes whatever it says, but it is not known (yet) whether that is HTTP, which is logged
    /// request by request.
    Unheard,
    /// The verdict hangs on bytes that the kernel does not read.
    Bytes,
    /// A VirtualService shares it among several destinations.
    VirtualService,
    /// A DestinationRule says how it is carried.
    DestinationRule,
    /// It goes to a target port other than the dialled one.
    TargetPort,
    /// It goes to endpoints other than the dialled address, or to one of several.
    Endpoint,
    /// It leaves through an egress proxy: `egressProxy`, or a Sidecar's.
    EgressProxy,
    /// Only a resolution can tell whose address it is (GAP-1).
    Resolution,
}

impl WhyProxy {
    /// Every reason.
    pub const ALL: [Self; 14] = [
        Self::Off,
        Self::Remembered,
        Self::Unresolved,
        Self::Wildcard,
        Self::Nothing,
        Self::Http,
        Self::Unheard,
        Self::Bytes,
        Self::VirtualService,
        Self::DestinationRule,
        Self::TargetPort,
        Self::Endpoint,
        Self::EgressProxy,
        Self::Resolution,
    ];

    /// The label in metrics and status.
    pub fn label(self) -> &'static str {
        match self {
            Self::Off => "fast_path_off",
            Self::Remembered => "remembered",
            Self::Unresolved => "name_not_resolved",
            Self::Wildcard => "wildcard",
            Self::Nothing => "nothing_allowed",
            Self::Http => "http",
            Self::Unheard => "protocol_unknown",
            Self::Bytes => "bytes",
            Self::VirtualService => "virtual_service",
            Self::DestinationRule => "destination_rule",
            Self::TargetPort => "target_port",
            Self::Endpoint => "endpoint",
            Self::EgressProxy => "egress_proxy",
            Self::Resolution => "resolution",
        }
    }

    /// The reason as a clause for people.
    pub fn explain(self) -> &'static str {
        match self {
            Self::Off => "fastPath is off",
            Self::Remembered => "the kernel could not judge an earlier connection to there",
            Self::Unresolved => {
                "names decide there, and none that is allowed is known to have this address"
            }
            Self::Wildcard => {
                "wildcards decide there, and no name below one is known to have this address"
            }
            Self::Nothing => "nothing is allowed there, and the proxy can say so",
            Self::Http => "HTTP is judged request by request",
            Self::Unheard => "it may be HTTP, which is logged request by request",
            Self::Bytes => "the verdict hangs on bytes that the kernel does not read",
            Self::VirtualService => "a VirtualService shares it among several destinations",
            Self::DestinationRule => "a DestinationRule says how it is carried",
            Self::TargetPort => "it goes to a target port other than the dialled one",
            Self::Endpoint => "it goes to other endpoints than the dialled address",
            Self::EgressProxy => "it leaves through an egress proxy",
            Self::Resolution => "only a resolution can tell whose address it is",
        }
    }
}

/// What the kernel can do before any byte. `owns`: whether the daemon's own resolution of a host has
/// the dialled address; `None`: it has none.
pub fn by_destination(
    policy: &Policy,
    flow: &Flow<'_>,
    owns: &dyn Fn(&HostName) -> Option<bool>,
) -> Tier {
    match by_address(policy, flow) {
        ByAddress::Decided(decision) => match &decision.action {
            Action::Block(_) => Tier::Refused(decision.reason),
            _ => direct(policy, decision, flow, owns),
        },
        ByAddress::Inspect { unless_client_speaks } => {
            if no_byte_matters(policy, flow) {
                return whatever_is_said(policy, flow, unless_client_speaks, owns);
            }
            match only_names_decide(policy, flow, &unless_client_speaks) {
                Ok(()) => Tier::Named,
                Err(why) => Tier::Proxy(why),
            }
        }
    }
}

fn direct(
    policy: &Policy,
    decision: Decision,
    flow: &Flow<'_>,
    owns: &dyn Fn(&HostName) -> Option<bool>,
) -> Tier {
    let settled = match settle(decision, owns) {
        Some(settled) => settled,
        None => return Tier::Proxy(WhyProxy::Resolution),
    };
    match leads_there(policy, &settled, flow) {
        Ok(host) => {
            let host = host.cloned();
            Tier::Direct(settled, host)
        }
        Err(why) => Tier::Proxy(why),
    }
}

/// The verdict on an address that a claiming host is known to have; `None`: no claim is known to
/// hold, or one that comes before cannot be told.
fn settle(decision: Decision, owns: &dyn Fn(&HostName) -> Option<bool>) -> Option<Decision> {
    let Action::ByResolution(open) = &decision.action else { return Some(decision) };
    for claim in open.claims.iter() {
        match owns(&claim.host) {
            Some(true) => return Some(claim.decision.clone()),
            Some(false) => {}
            None => return None,
        }
    }
    None
}

/// Whether nothing on this port asks for a name or a request, at any address.
fn no_byte_matters(policy: &Policy, flow: &Flow<'_>) -> bool {
    let Some(rules) = policy.rules(flow) else { return false };
    let asks = rules.ports.get(&flow.dst.addr().port());
    rules.outbound != Outbound::AllowAnyDynamicDns && asks.is_none_or(|asks| !asks.bytes)
}

/// Where no byte matters: what becomes of the connection, whatever it says.
fn whatever_is_said(
    policy: &Policy,
    flow: &Flow<'_>,
    silent: Decision,
    owns: &dyn Fn(&HostName) -> Option<bool>,
) -> Tier {
    let claimed = matches!(silent.action, Action::ByResolution(_));
    let passes = matches!(silent.action, Action::Relay(_));
    if !claimed && !passes {
        // Refused with an answer, whatever it says.
        return Tier::Named;
    }
    let whole = direct(policy, silent, flow, owns);
    let Tier::Direct(decision, _) = &whole else { return whole };
    let unknown = HostName::parse("interceptor-probe.invalid").ok();
    let probes = [Hello::Opaque, Hello::Malformed(Malformed("")), tls(None), tls(unknown)];
    let alike = |hello: &Hello| {
        let said = settle(by_hello(policy, flow, hello), owns);
        said.is_some_and(|said| {
            said.cluster == decision.cluster && leads_there(policy, &said, flow).is_ok()
        })
    };
    if !probes.iter().all(alike) {
        return Tier::Proxy(WhyProxy::Bytes);
    }
    match settle(by_hello(policy, flow, &Hello::Http1), owns) {
        Some(Decision { action: Action::Http, .. }) if decision.reason == Reason::AllowAny => {
            Tier::Noticed(decision.clone())
        }
        Some(said) if said.cluster == decision.cluster => whole,
        _ => Tier::Proxy(WhyProxy::Http),
    }
}

/// What the kernel can do with a name there.
pub fn by_name(policy: &Policy, flow: &Flow<'_>, name: &HostName) -> NameTier {
    let decision = by_hello(policy, flow, &tls(Some(name.clone())));
    if matches!(decision.action, Action::Block(_)) {
        return NameTier::Refused;
    }
    // The kernel notes what a hello offers, and refuses none for it.
    let hidden = ClientHello { sni: Some(name.clone()), ech: true, ..ClientHello::default() };
    if matches!(by_hello(policy, flow, &Hello::Tls(hidden)).action, Action::Block(_)) {
        return NameTier::Proxy(WhyProxy::Bytes);
    }
    match leads_there(policy, &decision, flow) {
        Ok(host) => {
            let host = host.cloned();
            NameTier::Direct(decision, host)
        }
        Err(why) => NameTier::Proxy(why),
    }
}

/// Whether everything but a name is refused at this destination.
fn only_names_decide(policy: &Policy, flow: &Flow<'_>, silent: &Decision) -> Result<(), WhyProxy> {
    // No entry has this name: `.invalid` is nobody's (RFC 6761), and a wildcard over it would match.
    let unknown = HostName::parse("interceptor-probe.invalid").ok();
    let probes =
        [Hello::Opaque, Hello::Malformed(Malformed("")), Hello::Closed, tls(None), tls(unknown)];
    let answers = probes.iter().map(|hello| by_hello(policy, flow, hello));
    for decision in answers.chain([silent.clone()]) {
        match decision.action {
            Action::Block(_) => {}
            Action::ByResolution(_) => return Err(WhyProxy::Resolution),
            _ => return Err(WhyProxy::Bytes),
        }
    }
    for hello in [Hello::Http1, Hello::Http2] {
        match by_hello(policy, flow, &hello).action {
            Action::Block(_) => {}
            Action::Http if !may_allow_requests(policy, flow) => {}
            _ => return Err(WhyProxy::Http),
        }
    }
    Ok(())
}

/// Whether some request to this port may be allowed.
fn may_allow_requests(policy: &Policy, flow: &Flow<'_>) -> bool {
    let Some(rules) = policy.rules(flow) else { return false };
    let asks = rules.ports.get(&flow.dst.addr().port());
    rules.outbound != Outbound::RegistryOnly || asks.is_some_and(|asks| asks.requests)
}

/// Whether an allowed connection may as well be made by the client itself: to one place, where it
/// dialled, carried as it is. With a name: where the daemon's own resolution of that has the dialled
/// address, which then counts as the balancer's choice.
fn leads_there<'a>(
    policy: &Policy,
    decision: &'a Decision,
    flow: &Flow<'_>,
) -> Result<Option<&'a HostName>, WhyProxy> {
    let dialled = flow.dst.addr();
    let to = match &decision.action {
        Action::Relay(to) => to,
        Action::ByResolution(_) => return Err(WhyProxy::Resolution),
        _ => return Err(WhyProxy::Http),
    };
    // What is judged by its address is judged once for a whole network, and doors may divide that.
    let divided = || policy.rules(flow).is_none_or(|rules| rules.doors.may_proxy(Scope::Addresses));
    let by_address = |to: &Destination| {
        to.judged.is_none() && matches!(to.upstream, Upstream::OriginalDst { .. })
    };
    if to.iter().any(|to| to.door != Door::Direct || (by_address(to) && divided())) {
        return Err(WhyProxy::EgressProxy);
    }
    let [to] = to.as_slice() else { return Err(WhyProxy::VirtualService) };
    if !is_plain(&to.traffic) {
        return Err(WhyProxy::DestinationRule);
    }
    place(to, decision.reason, dialled)
}

/// Where a destination leads, as [`leads_there`] has it.
fn place(
    to: &Destination,
    reason: Reason,
    dialled: SocketAddr,
) -> Result<Option<&HostName>, WhyProxy> {
    // What nobody claims leads where it dialled, but for an egress proxy.
    let elsewhere = match reason {
        Reason::AllowAny => WhyProxy::EgressProxy,
        _ => WhyProxy::Endpoint,
    };
    match &to.upstream {
        Upstream::OriginalDst { port, .. } if *port == dialled.port() => Ok(None),
        Upstream::VerifiedOriginalDst { host, port } if *port == dialled.port() => Ok(Some(host)),
        Upstream::OriginalDst { .. } | Upstream::VerifiedOriginalDst { .. } => {
            Err(WhyProxy::TargetPort)
        }
        Upstream::Static(endpoints) => match &**endpoints {
            [one] if one.target == dialled => Ok(None),
            [one] if one.target.ip() == dialled.ip() => Err(WhyProxy::TargetPort),
            _ => Err(elsewhere),
        },
        Upstream::Dns { endpoints, .. } => match &**endpoints {
            [one] => match &one.target.0 {
                Place::Ip(ip) if *ip != dialled.ip().to_canonical() => Err(elsewhere),
                _ if one.target.1 != dialled.port() && reason != Reason::AllowAny => {
                    Err(WhyProxy::TargetPort)
                }
                _ if one.target.1 != dialled.port() => Err(elsewhere),
                Place::Name(name) => Ok(Some(name)),
                Place::Ip(_) => Ok(None),
            },
            _ => Err(elsewhere),
        },
        _ => Err(elsewhere),
    }
}

/// Why a policy does not allow a connection that went direct, if it does not (T-62). `shown`: the name
/// that it showed; `cluster`: whose it was; `owns`: whether the daemon's own resolution of a host has
/// the dialled address. That a name has lost the address since is no reason.
pub fn withdrawn(
    policy: &Policy,
    flow: &Flow<'_>,
    shown: Option<&HostName>,
    cluster: Option<&ClusterName>,
    owns: &dyn Fn(&HostName) -> bool,
) -> Option<&'static str> {
    let decision = match by_address(policy, flow) {
        ByAddress::Decided(decision) => decision,
        ByAddress::Inspect { .. } => {
            // As the proxy does it: bytes that nobody looked at show no name.
            let hello = shown.map_or(Hello::Opaque, |name| tls(Some(name.clone())));
            by_hello(policy, flow, &hello)
        }
    };
    let is_own = |of: Option<&ClusterName>| cluster.is_some() && of == cluster;
    let decision = match &decision.action {
        Action::ByResolution(open) => {
            let holds =
                |claim: &&Claim| is_own(claim.decision.cluster.as_ref()) || owns(&claim.host);
            open.claims.iter().find(holds).map_or(&open.otherwise, |claim| &claim.decision)
        }
        _ => &decision,
    };
    let dialled = flow.dst.addr();
    let leads = |to: &Destination| match (&to.upstream, place(to, decision.reason, dialled)) {
        (_, Ok(None)) => true,
        // The name that was shown had the address then.
        (_, Ok(Some(host))) => owns(host) || shown == Some(host) || is_own(to.cluster.as_ref()),
        (Upstream::Static(all), Err(_)) => all.iter().any(|endpoint| endpoint.target == dialled),
        _ => false,
    };
    match &decision.action {
        Action::Block(_) => Some(decision.reason.label()),
        Action::Relay(to) if to.iter().any(|to| to.door == Door::Direct && leads(to)) => None,
        Action::Relay(_) => Some("other_upstream"),
        _ => Some("other_protocol"),
    }
}

/// Whether traffic is carried as the client itself would: nothing but the choice among equal
/// addresses is said of it.
fn is_plain(traffic: &TrafficPolicy) -> bool {
    let free = matches!(
        traffic.load_balancer,
        LoadBalancer::LeastRequest | LoadBalancer::Random | LoadBalancer::RoundRobin
    );
    let rest = TrafficPolicy {
        load_balancer: LoadBalancer::default(),
        // Of HTTP only.
        protocol: UpstreamProtocol::default(),
        ..traffic.clone()
    };
    free && rest == TrafficPolicy::default()
}

fn tls(sni: Option<HostName>) -> Hello {
    Hello::Tls(ClientHello { sni, ..ClientHello::default() })
}
