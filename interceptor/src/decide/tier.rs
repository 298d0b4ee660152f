//! Which connections need no proxy: those whose only allowed ends are "direct to where it dialled".
//!
//! Nothing is decided here a second time. Both doors ask [`by_address`] and [`by_hello`] and say
//! whether the kernel can do what they answer; what it cannot is the proxy's.

use super::host::HostName;
use super::traffic::{LoadBalancer, TrafficPolicy, UpstreamProtocol};
use super::{
    Action, ByAddress, Decision, Flow, Group, Place, Policy, Reason, Upstream, by_address, by_hello,
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
    /// Let them go direct: every byte of every client is allowed, and leads there.
    Direct(Decision),
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

/// Why connections are the proxy's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum WhyProxy {
    /// HTTP that some entry may allow, request by request.
    Http,
    /// The verdict hangs on bytes that the kernel does not read.
    Bytes,
    /// Several destinations to choose from.
    Several,
    /// A DestinationRule says how it is carried.
    Traffic,
    /// It goes elsewhere than to the address and port that were dialled.
    OtherPlace,
    /// Only a resolution can tell whose address it is (GAP-1).
    Resolution,
}

/// What the kernel can do before any byte.
pub fn by_destination(policy: &Policy, flow: &Flow<'_>) -> Tier {
    match by_address(policy, flow) {
        ByAddress::Decided(decision) => match &decision.action {
            Action::Block(_) => Tier::Refused(decision.reason),
            _ => match leads_there(&decision, flow) {
                Ok(None) => Tier::Direct(decision),
                Ok(Some(_)) => Tier::Proxy(WhyProxy::Resolution),
                Err(why) => Tier::Proxy(why),
            },
        },
        ByAddress::Inspect { unless_client_speaks } => {
            match only_names_decide(policy, flow, &unless_client_speaks) {
                Ok(()) => Tier::Named,
                Err(why) => Tier::Proxy(why),
            }
        }
    }
}

/// What the kernel can do with a name there.
pub fn by_name(policy: &Policy, flow: &Flow<'_>, name: &HostName) -> NameTier {
    let decision = by_hello(policy, flow, &tls(Some(name.clone())));
    if matches!(decision.action, Action::Block(_)) {
        return NameTier::Refused;
    }
    match leads_there(&decision, flow) {
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
    let port = flow.dst.addr().port();
    let Some(rules) = policy.rules(flow) else { return false };
    rules.outbound != Outbound::RegistryOnly
        || rules.services.iter().any(|service| {
            service.port == port && matches!(service.group, Group::Http | Group::Sniffed)
        })
}

/// Whether an allowed connection may as well be made by the client itself: to one place, where it
/// dialled, carried as it is. With a name: where the daemon's own resolution of that has the dialled
/// address, which then counts as the balancer's choice.
fn leads_there<'a>(
    decision: &'a Decision,
    flow: &Flow<'_>,
) -> Result<Option<&'a HostName>, WhyProxy> {
    let dialled = flow.dst.addr();
    let to = match &decision.action {
        Action::Relay(to) => to,
        Action::ByResolution(_) => return Err(WhyProxy::Resolution),
        _ => return Err(WhyProxy::Http),
    };
    let [to] = to.as_slice() else { return Err(WhyProxy::Several) };
    if !is_plain(&to.traffic) {
        return Err(WhyProxy::Traffic);
    }
    match &to.upstream {
        Upstream::OriginalDst { port, .. } if *port == dialled.port() => Ok(None),
        Upstream::VerifiedOriginalDst { host, port } if *port == dialled.port() => Ok(Some(host)),
        Upstream::Static(endpoints) => match &**endpoints {
            [one] if one.target == dialled => Ok(None),
            [_] => Err(WhyProxy::OtherPlace),
            _ => Err(WhyProxy::Several),
        },
        Upstream::Dns { endpoints, .. } => match &**endpoints {
            [one] if one.target.1 != dialled.port() => Err(WhyProxy::OtherPlace),
            [one] => match &one.target.0 {
                Place::Name(name) => Ok(Some(name)),
                Place::Ip(ip) if *ip == dialled.ip().to_canonical() => Ok(None),
                Place::Ip(_) => Err(WhyProxy::OtherPlace),
            },
            _ => Err(WhyProxy::Several),
        },
        _ => Err(WhyProxy::OtherPlace),
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
