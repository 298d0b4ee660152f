//! The verdict: resources and flow in, a [`Decision`] out. No I/O, no clock, no async.
//!
//! Three doors, each asked only when the one before could not answer: [`by_address`], [`by_hello`]
//! and [`by_request`]. What they answer is the profile's: `istio` and `strict` each compile the
//! same services into tables of their own and read those.

mod audit;
mod decision;
pub mod door;
pub mod gateway;
pub mod host;
pub(crate) mod http_route;
mod istio;
pub mod net;
pub(crate) mod pattern;
mod request;
pub mod route;
pub(crate) mod service;
mod strict;
pub mod tier;
pub mod trace;
pub mod traffic;
pub(crate) mod uri;
mod view;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;

pub use audit::{as_dialled, audited};
pub use decision::*;
pub(crate) use service::{Cluster, Group, RouteTo, Service, StreamRule, Target};

use self::door::{Door, Doors};
use self::gateway::Listeners;
use self::pattern::HostIndex;
pub use self::request::canonical_host;
use self::request::{Host, effective_host};
use self::route::{Destination, Forward};
use self::service::Asked;
use self::traffic::{Origination, TrafficPolicy, UpstreamProtocol};
use crate::origin::OriginalDst;
use crate::policy::{Enforcement, Outbound};
use crate::sniff::Hello;

/// Everything that a verdict may depend on, compiled and immutable. The default knows no rule and
/// denies everything ([`Reason::NoPolicy`], T-61).
#[derive(Debug, Clone, Default)]
pub struct Policy {
    inner: Option<Arc<Inner>>,
}

#[derive(Debug)]
struct Inner {
    namespace: Box<str>,
    outbound: Outbound,
    egress_proxy: Option<RouteTo>,
    dynamic_tls: Option<Arc<Origination>>,
    gateway: Option<Listeners>,
    unknown: Arc<TrafficPolicy>,
    doors: Doors,
    services: Vec<Service>,
    /// Every host of the registry, whatever its ports (MESH-30).
    known: HostIndex,
    /// Ports that entries mention or that have a handler without any, and what is asked there.
    ports: HashMap<u16, Asks>,
    tables: Tables,
}

/// What the services of a port ask for.
#[derive(Debug, Clone, Copy, Default)]
struct Asks {
    /// Requests: HTTP, declared or found.
    requests: bool,
    /// Requests, names, or anything else that a client says.
    bytes: bool,
}

/// What is compiled for one workload.
#[derive(Debug, Default)]
pub(crate) struct Rules {
    pub(crate) outbound: Outbound,
    /// In the order of REG-4, filtered to what the workload sees; nominal ones last (VS-2).
    pub(crate) services: Vec<Service>,
    /// Ports that have a handler whatever services there are (SC-8).
    pub(crate) listeners: Vec<(u16, Group)>,
    /// Where unknown traffic goes instead of where it was going (SC-3).
    pub(crate) egress_proxy: Option<RouteTo>,
    /// TLS for requests of ALLOW_ANY_DYNAMIC_DNS (MESH-31).
    pub(crate) dynamic_tls: Option<Arc<Origination>>,
    /// They are a gateway's, with these ports: what it does not serve is not found (GW-5), whatever the
    /// mode.
    pub(crate) gateway: Option<Listeners>,
    /// What carries unknown traffic, but for the protocol, which is the client's (MESH-18, MESH-25).
    pub(crate) unknown: TrafficPolicy,
    /// How what is allowed leaves.
    pub(crate) doors: Doors,
}

#[derive(Debug)]
enum Tables {
    Strict(strict::Tables),
    Istio(istio::Tables),
}

impl Policy {
    /// Compiles `rules` for workloads of `namespace`.
    pub(crate) fn new(namespace: &str, enforcement: Enforcement, rules: Rules) -> Self {
        let Rules {
            outbound,
            services,
            listeners,
            egress_proxy,
            dynamic_tls,
            gateway,
            unknown,
            doors,
        } = rules;
        let unknown = Arc::new(TrafficPolicy { protocol: UpstreamProtocol::AsClient, ..unknown });
        let mut known = HostIndex::default();
        for (id, service) in (0..).zip(&services).filter(|(_, service)| !service.nominal) {
            known.insert(service.host(), id);
        }
        let mut ports: HashMap<u16, Asks> = HashMap::new();
        let ruled = |service: &Service| service.nominal || !service.chains.is_empty();
        let served = services.iter().map(|service| (service.port, service.group, ruled(service)));
        let listening = listeners.iter().map(|(port, group)| (*port, *group, false));
        for (port, group, ruled) in served.chain(listening) {
            let asks = ports.entry(port).or_default();
            asks.requests |= matches!(group, Group::Http | Group::Sniffed);
            asks.bytes |= group != Group::Tcp || ruled;
        }
        let tables = match enforcement {
            Enforcement::Strict => Tables::Strict(strict::Tables::new(&services)),
            Enforcement::Istio => Tables::Istio(istio::Tables::new(&services, &listeners)),
        };
        let namespace = namespace.into();
        let inner = Inner {
            namespace,
            outbound,
            egress_proxy,
            dynamic_tls,
            gateway,
            unknown,
            doors,
            services,
            known,
            ports,
            tables,
        };
        Self { inner: Some(Arc::new(inner)) }
    }

    /// Ports on which something else may hold than on those that nothing mentions.
    pub(crate) fn ports(&self) -> impl Iterator<Item = u16> {
        self.inner.iter().flat_map(|inner| inner.ports.keys().copied())
    }

    /// The ports that a gateway listens on; `None`: these rules are not a gateway's.
    pub fn listeners(&self) -> Option<&Listeners> {
        self.inner.as_deref()?.gateway.as_ref()
    }

    /// Whether connections may leave for elsewhere than where they were dialled: through an egress proxy, by
    /// a VirtualService or `tunnel`, to endpoints that an entry gives.
    pub fn may_reroute(&self) -> bool {
        self.inner.as_deref().is_some_and(|rules| {
            rules.egress_proxy.is_some()
                || rules.doors.any()
                || rules.services.iter().any(Service::may_reroute)
        })
    }

    /// The rules for this flow: only those of the namespace that they were compiled for.
    fn rules(&self, flow: &Flow<'_>) -> Option<&Inner> {
        self.inner.as_deref().filter(|inner| *inner.namespace == *flow.namespace)
    }
}

/// What is known of a connection before its first byte.
#[derive(Debug, Clone, Copy)]
pub struct Flow<'a> {
    /// The address that the workload dialled.
    pub dst: OriginalDst,
    /// The workload's namespace (visibility: SE-9, REG-5).
    pub namespace: &'a str,
}

/// The verdict where address and port suffice, else what to do while waiting for bytes.
pub fn by_address(policy: &Policy, flow: &Flow<'_>) -> ByAddress {
    let Some(rules) = policy.rules(flow) else { return ByAddress::Decided(no_policy()) };
    let dst = flow.dst.addr();
    let found = match &rules.tables {
        Tables::Strict(tables) => tables.by_address(rules, dst),
        Tables::Istio(tables) => tables.by_address(rules, dst),
    };
    rules.doors.by_address(found, dst)
}

/// The verdict once the first bytes are known. Only asked after [`by_address`] said
/// [`ByAddress::Inspect`].
pub fn by_hello(policy: &Policy, flow: &Flow<'_>, hello: &Hello) -> Decision {
    let Some(rules) = policy.rules(flow) else { return no_policy() };
    if *hello == Hello::Closed {
        // Nothing was asked for, so nothing is refused either: no cluster (LIS-25).
        return Decision { cluster: None, ..refuse(Block::Close, Reason::EarlyClose) };
    }
    let dst = flow.dst.addr();
    let found = match &rules.tables {
        Tables::Strict(tables) => tables.by_hello(rules, dst, hello),
        Tables::Istio(tables) => tables.by_hello(rules, dst, hello),
    };
    rules.doors.through(found, dst)
}

/// The verdict on one HTTP request of a connection for which [`by_hello`] said [`Action::Http`].
pub fn by_request(policy: &Policy, flow: &Flow<'_>, head: &RequestHead<'_>) -> Decision {
    let Some(rules) = policy.rules(flow) else {
        return refuse_request(503, Enforcement::Strict, true, Reason::NoPolicy);
    };
    let profile = rules.profile();
    let dst = flow.dst.addr();
    if head.version < 11 {
        return refuse_request(426, profile, true, Reason::HttpVersion);
    }
    if head.method == "CONNECT" {
        return match profile {
            Enforcement::Istio => refuse_request(404, profile, false, Reason::ConnectMethod),
            Enforcement::Strict => refuse_request(403, profile, true, Reason::ConnectMethod),
        };
    }
    let Ok((host, port)) = effective_host(head, rules.asked_at(dst), profile) else {
        return refuse_request(400, profile, true, Reason::BadHost);
    };
    let name = host.name();
    let found = match &rules.tables {
        Tables::Strict(tables) => tables.by_request(rules, dst, &host),
        Tables::Istio(tables) => tables.by_request(rules, dst, &host),
    };
    let decision = match found {
        Ok(id) => {
            let service = rules.service(id);
            let asked = Asked { dst, name, profile };
            match &service.routes {
                Some(routes) => routes.decide(head, &asked),
                None => service.forward(&asked),
            }
        }
        Err(reason) => rules.unknown_request(dst, &host, port, reason),
    };
    rules.doors.through(decision, dst)
}

/// The refusal of a request that the access log could not tell of (T-57).
pub fn unlogged(profile: Enforcement) -> Decision {
    refuse_request(503, profile, true, Reason::LogLost)
}

/// MESH-10.
pub(crate) const CAPTURE_PORTS: [u16; 2] = [15001, 15006];

impl Inner {
    fn profile(&self) -> Enforcement {
        match self.tables {
            Tables::Strict(_) => Enforcement::Strict,
            Tables::Istio(_) => Enforcement::Istio,
        }
    }

    fn service(&self, id: u32) -> &Service {
        // Ids are positions in `services`, given out when the tables were built from it.
        &self.services[id as usize]
    }

    /// Whether an unknown connection passes. To a capture port it never does: that would be a way
    /// past the proxy (CAP-11).
    fn passes_unknown(&self, dst: SocketAddr) -> bool {
        self.outbound.is_open() && !CAPTURE_PORTS.contains(&dst.port()) && self.gateway.is_none()
    }

    /// Where a client means to ask: at a gateway, which it does not see, the server's own port.
    fn asked_at(&self, dst: SocketAddr) -> SocketAddr {
        let listener = self.gateway.as_ref().and_then(|ports| ports.get(&dst.port()));
        SocketAddr::new(dst.ip(), listener.map_or(dst.port(), |listener| listener.server_port))
    }

    /// A refused connection. At a gateway it met no server, and no cluster either (GW-5).
    fn refuse(&self, block: Block, reason: Reason) -> Decision {
        let refused = refuse(block, reason);
        match reason {
            Reason::NotServed => Decision { cluster: None, ..refused },
            _ => refused,
        }
    }

    /// Unknown traffic that is passed where it was going (MESH-21, MESH-22, MESH-25).
    fn passthrough(&self, dst: SocketAddr, name: Option<&host::HostName>) -> Destination {
        let name = name.filter(|_| self.profile() == Enforcement::Strict).cloned();
        Destination {
            weight: 1,
            cluster: Some(ClusterName::passthrough()),
            upstream: Upstream::OriginalDst { port: dst.port(), name },
            judged: None,
            door: Door::Direct,
            traffic: Arc::clone(&self.unknown),
            headers: Arc::default(),
        }
    }

    /// Unknown TCP or TLS where unknown traffic passes (MESH-21, SC-3).
    fn pass_connection(&self, dst: SocketAddr, name: Option<&host::HostName>) -> Decision {
        let to = self.unknown_destination(dst, name);
        let cluster = to.cluster.clone();
        Decision {
            action: Action::Relay(vec![to]),
            cluster,
            route: None,
            reason: Reason::AllowAny,
            rule: None,
        }
    }

    fn unknown_destination(&self, dst: SocketAddr, name: Option<&host::HostName>) -> Destination {
        match &self.egress_proxy {
            Some(proxy) => proxy.destination(&Asked { dst, name, profile: self.profile() }),
            None => self.passthrough(dst, name),
        }
    }

    /// A request that nothing claims, and why not.
    fn unknown_request(
        &self,
        dst: SocketAddr,
        host: &Host,
        port: Option<u16>,
        reason: Reason,
    ) -> Decision {
        if self.gateway.is_some() {
            return refuse_request(404, self.profile(), false, reason);
        }
        let closed = reason == Reason::SpecialAddress;
        if closed || !self.passes_unknown(dst) {
            return block_all(self.profile(), reason);
        }
        let (to, route) = if self.outbound == Outbound::AllowAnyDynamicDns {
            (self.dynamic(host, port.unwrap_or(dst.port())), "allow_any_dynamic_dns")
        } else {
            (self.unknown_destination(dst, host.name()), "allow_any")
        };
        let cluster = to.cluster.clone();
        Decision {
            // MESH-22, VS-42: no limit, no retry.
            action: Action::Forward(Box::new(Forward::to(to, Arc::default()))),
            cluster,
            route: Some(route.into()),
            reason: Reason::AllowAny,
            rule: None,
        }
    }

    /// Where the proxy itself finds the host of a request (MESH-31).
    fn dynamic(&self, host: &Host, port: u16) -> Destination {
        let upstream = match host {
            Host::Ip(ip) => {
                let target = SocketAddr::new(*ip, port);
                Upstream::Static([Endpoint { target, weight: 1 }].into())
            }
            Host::Name(name) => Upstream::Dns {
                endpoints: [Endpoint { target: (name.clone().into(), port), weight: 1 }].into(),
                round_robin: false,
            },
        };
        Destination {
            weight: 1,
            cluster: Some(ClusterName::allow_any_dynamic_dns()),
            upstream,
            judged: None,
            door: Door::Direct,
            traffic: Arc::new(TrafficPolicy {
                protocol: UpstreamProtocol::AsClient,
                tls: self.dynamic_tls.clone(),
                ..TrafficPolicy::default()
            }),
            headers: Arc::default(),
        }
    }

    /// Why a name is unknown on this flow: nowhere in the registry, or there with another port
    /// (MESH-30), other addresses, or another protocol.
    fn unknown_reason(&self, dst: SocketAddr, name: Option<&host::HostName>) -> Reason {
        if self.gateway.is_some() {
            return Reason::NotServed;
        }
        let Some(name) = name else { return Reason::NotRegistered };
        let mut reason = Reason::NotRegistered;
        for id in self.known.matches(name) {
            let service = self.service(id);
            if service.port != dst.port() {
                reason = Reason::PortNotRegistered;
            } else if service.holds(dst.ip()) {
                return Reason::WrongProtocol;
            } else {
                return Reason::AddressNotVerified;
            }
        }
        reason
    }
}

/// A refused connection (MESH-26).
fn refuse(block: Block, reason: Reason) -> Decision {
    Decision {
        action: Action::Block(block),
        cluster: Some(ClusterName::black_hole()),
        route: None,
        reason,
        rule: None,
    }
}

/// A request that is answered here; strict says why.
fn refuse_request(status: u16, profile: Enforcement, close: bool, reason: Reason) -> Decision {
    let explain = profile == Enforcement::Strict;
    Decision {
        action: Action::Block(Block::Http { status, explain, close }),
        cluster: None,
        route: None,
        reason,
        rule: None,
    }
}

/// A request that REGISTRY_ONLY does not allow (MESH-27; T-31 closes in strict).
fn block_all(profile: Enforcement, reason: Reason) -> Decision {
    let close = profile == Enforcement::Strict;
    Decision { route: Some("block_all".into()), ..refuse_request(502, profile, close, reason) }
}

/// Serve it as HTTP; every request gets a verdict of its own.
fn judge_requests() -> Decision {
    Decision {
        action: Action::Http,
        cluster: None,
        route: None,
        reason: Reason::Registered,
        rule: None,
    }
}

fn no_policy() -> Decision {
    refuse(Block::Close, Reason::NoPolicy)
}
