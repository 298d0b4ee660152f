//! One host on one port of the registry, ready to decide with, and the clusters that traffic goes
//! to.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use ipnet::IpNet;

use super::door::Door;
use super::host::HostName;
use super::http_route::HttpRoutes;
use super::pattern::EntryHost;
use super::route::{Destination, Forward, HeaderChanges, RouteActions};
use super::traffic::{LoadBalancer, TrafficPolicy};
use super::{Action, ClusterName, Decision, Place, Reason, RuleId, Upstream};
use crate::policy::Enforcement;
use crate::sniff::ClientHello;

/// Which handling a port's protocol asks for (LIS-2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Group {
    /// Plaintext HTTP, routed by Host.
    Http,
    /// Opaque TLS, routed by SNI.
    Tls,
    /// Opaque bytes, routed by address.
    Tcp,
    /// No protocol declared: what the bytes turn out to be.
    Sniffed,
}

/// A host of an entry on one of its ports.
#[derive(Debug, Clone)]
pub(crate) struct Service {
    /// Its own cluster, which also holds its host and addresses.
    pub(crate) cluster: Arc<Cluster>,
    /// The port that workloads dial.
    pub(crate) port: u16,
    pub(crate) group: Group,
    /// MONGO and MYSQL do not share a port handler with other groups (LIS-17).
    pub(crate) exclusive: bool,
    pub(crate) rule: RuleId,
    /// Other names of plaintext HTTP routing (HTTP-9).
    pub(crate) aliases: Arc<[EntryHost]>,
    /// What a request of this service meets instead of its default route (VS-9).
    pub(crate) routes: Option<Arc<HttpRoutes>>,
    /// What its connections meet instead of its own chain (VS-60 to VS-62), in order. Where it is
    /// empty, the service's own chain stands.
    pub(crate) chains: Arc<[StreamRule]>,
    /// What its own route does on failure (VS-40).
    pub(crate) actions: Arc<RouteActions>,
    /// TLS to it may not offer encrypted_client_hello (T-26).
    pub(crate) forbids_ech: bool,
    /// It stands for a host of a VirtualService that no entry has (VS-2): a name, not a cluster.
    pub(crate) nominal: bool,
}

/// A place that traffic goes to: one host, port and subset.
#[derive(Debug, Clone)]
pub(crate) struct Cluster {
    pub(crate) name: ClusterName,
    pub(crate) host: EntryHost,
    /// What recognises the dialled address (SE-2); empty = any.
    pub(crate) addresses: Arc<[IpNet]>,
    pub(crate) target: Target,
    pub(crate) traffic: Arc<TrafficPolicy>,
}

/// Where a cluster's traffic goes (section 9).
#[derive(Debug, Clone)]
pub(crate) enum Target {
    /// NONE: where the workload dialled (RES-1), at this port if one is given (SE-4).
    Original(Option<u16>),
    /// The same for every flow.
    Fixed(Upstream),
    /// The concrete name that the client showed, resolved by the daemon (GAP-2, RES-5).
    Concrete { port: u16, round_robin: bool },
}

/// A rule for connections (VS-60, VS-62), or the part of one that a service's handler takes.
#[derive(Debug, Clone)]
pub(crate) struct StreamRule {
    /// SNI condition; empty = none.
    pub(crate) sni: Vec<EntryHost>,
    /// `destinationSubnets` in place of the service's own addresses; empty = those.
    pub(crate) subnets: Vec<IpNet>,
    /// Never empty.
    pub(crate) to: Arc<[RouteTo]>,
    /// The VirtualService.
    pub(crate) rule: RuleId,
}

/// A destination of a rule.
#[derive(Debug, Clone)]
pub(crate) struct RouteTo {
    /// At least 1.
    pub(crate) weight: u32,
    /// `None`: there is no such cluster (VS-21).
    pub(crate) cluster: Option<Arc<Cluster>>,
    pub(crate) headers: Arc<HeaderChanges>,
}

/// What upstreams depend on besides the rules.
#[derive(Debug, Clone, Copy)]
pub(super) struct Asked<'a> {
    pub(super) dst: SocketAddr,
    /// The name that the client showed.
    pub(super) name: Option<&'a HostName>,
    pub(super) profile: Enforcement,
}

impl Service {
    pub(super) fn host(&self) -> &EntryHost {
        &self.cluster.host
    }

    /// Whether the entry's addresses, if it has any, hold the dialled one.
    pub(crate) fn holds(&self, ip: IpAddr) -> bool {
        self.cluster.holds(ip)
    }

    /// Whether the entry names this address.
    pub(crate) fn lists(&self, ip: IpAddr) -> bool {
        self.cluster.lists(ip)
    }

    /// Whether what dials it may be led elsewhere.
    pub(super) fn may_reroute(&self) -> bool {
        let own = |place: &Place| match place {
            Place::Name(name) => self.host().exact() == Some(name),
            Place::Ip(_) => false,
        };
        let given = match self.cluster.target() {
            Target::Fixed(Upstream::Static(_) | Upstream::Unix(_)) => true,
            Target::Fixed(Upstream::Dns { endpoints, .. }) => {
                !endpoints.iter().all(|endpoint| own(&endpoint.target.0))
            }
            _ => false,
        };
        let routed = self.routes.is_some() || !self.chains.is_empty();
        given || routed || self.cluster.traffic.tunnel.is_some()
    }

    /// Whether the entry forbids what a hello offers (T-26).
    pub(super) fn forbids(&self, hello: &ClientHello) -> bool {
        self.forbids_ech && hello.ech
    }

    /// Every name of plaintext HTTP routing.
    pub(super) fn names(&self) -> impl Iterator<Item = &EntryHost> {
        std::iter::once(self.host()).chain(self.aliases.iter())
    }

    /// Its own chain, and the rules' chains in place of it.
    pub(super) fn chain_numbers(&self) -> impl Iterator<Item = Option<u32>> + use<> {
        let rules = u32::try_from(self.chains.len()).unwrap_or(u32::MAX);
        let own = (rules == 0).then_some(None);
        own.into_iter().chain((0..rules).map(Some))
    }

    /// The verdict of one of its chains for a connection.
    pub(super) fn relay(&self, chain: Option<u32>, asked: &Asked<'_>) -> Decision {
        match chain.and_then(|number| self.chains.get(number as usize)) {
            Some(rule) => {
                let to: Vec<_> = rule.to.iter().map(|to| to.destination(asked)).collect();
                let cluster = to.first().and_then(|first| first.cluster.clone());
                allow(Action::Relay(to), cluster, None, &rule.rule)
            }
            None => self.relay_to(self.cluster.destination(asked)),
        }
    }

    /// The verdict for a connection to `port` whose dialled address is known to belong to the host
    /// (GAP-1).
    pub(super) fn relay_claimed(&self, port: u16) -> Decision {
        let (upstream, host) = (self.cluster.claimed(port), self.host().exact());
        self.relay_to(self.cluster.at(upstream, host.cloned()))
    }

    /// The verdict "this service's traffic, to there" for a connection.
    fn relay_to(&self, to: Destination) -> Decision {
        allow(Action::Relay(vec![to]), Some(self.cluster.name.clone()), None, &self.rule)
    }

    /// The verdict of its own default route (LOG-12).
    pub(super) fn forward(&self, asked: &Asked<'_>) -> Decision {
        let to = self.cluster.destination(asked);
        let forward = Forward::to(to, Arc::clone(&self.actions));
        let route = Some("default".into());
        let cluster = Some(self.cluster.name.clone());
        allow(Action::Forward(Box::new(forward)), cluster, route, &self.rule)
    }
}

/// The verdict "a rule allows it".
pub(super) fn allow(
    action: Action,
    cluster: Option<ClusterName>,
    route: Option<Arc<str>>,
    rule: &RuleId,
) -> Decision {
    Decision { action, cluster, route, reason: Reason::Registered, rule: Some(rule.clone()) }
}

impl Cluster {
    pub(crate) fn holds(&self, ip: IpAddr) -> bool {
        self.addresses.is_empty() || self.lists(ip)
    }

    pub(crate) fn lists(&self, ip: IpAddr) -> bool {
        longest(&self.addresses, ip).is_some()
    }

    /// Where its traffic goes, load balancing PASSTHROUGH included (DR-13).
    pub(super) fn target(&self) -> &Target {
        match self.traffic.load_balancer {
            LoadBalancer::Passthrough => &Target::Original(None),
            _ => &self.target,
        }
    }

    /// The destination for this flow.
    fn destination(&self, asked: &Asked<'_>) -> Destination {
        // An alias, or a name that only a rule knows, stands for the host.
        let by_name = |name: &HostName| match self.host.matches(name) {
            true => Some(name.clone()),
            false => self.host.exact().cloned(),
        };
        self.at(self.upstream(asked), asked.name.and_then(by_name))
    }

    fn at(&self, upstream: Upstream, judged: Option<HostName>) -> Destination {
        Destination {
            weight: 1,
            cluster: Some(self.name.clone()),
            upstream,
            judged,
            door: Door::Direct,
            traffic: Arc::clone(&self.traffic),
            headers: Arc::default(),
        }
    }

    /// Where it goes for this flow. In istio, NONE goes where the workload dialled, unchecked. In
    /// strict the addresses must hold the dialled one, or, where there are none, the daemon's own
    /// resolution of the name must (R3).
    fn upstream(&self, asked: &Asked<'_>) -> Upstream {
        let shown = asked.name.filter(|name| self.host.matches(name));
        let name = self.host.exact().or(shown);
        match (self.target(), name) {
            (Target::Original(port), name) => {
                let port = port.unwrap_or(asked.dst.port());
                match (asked.profile, name) {
                    (Enforcement::Istio, _) => Upstream::OriginalDst { port, name: None },
                    (Enforcement::Strict, _) if self.lists(asked.dst.ip()) => {
                        Upstream::OriginalDst { port, name: None }
                    }
                    (Enforcement::Strict, Some(name)) if self.addresses.is_empty() => {
                        Upstream::VerifiedOriginalDst { host: name.clone(), port }
                    }
                    (Enforcement::Strict, _) => Upstream::None,
                }
            }
            (Target::Fixed(upstream), _) => upstream.clone(),
            (Target::Concrete { port, round_robin }, Some(name)) => Upstream::Dns {
                endpoints: [super::Endpoint { target: (name.clone().into(), *port), weight: 1 }]
                    .into(),
                round_robin: *round_robin,
            },
            // Without a name there is nothing to resolve.
            (Target::Concrete { .. }, None) => Upstream::None,
        }
    }

    /// Where it goes once the dialled address is known to belong to its host (GAP-1).
    fn claimed(&self, port: u16) -> Upstream {
        match (self.target(), self.host.exact()) {
            (Target::Original(own), _) => {
                Upstream::OriginalDst { port: own.unwrap_or(port), name: None }
            }
            (Target::Fixed(upstream), _) => upstream.clone(),
            (Target::Concrete { .. }, _) => Upstream::None,
        }
    }
}

/// The longest prefix among `networks` that holds `ip`.
pub(super) fn longest(networks: &[IpNet], ip: IpAddr) -> Option<u8> {
    networks.iter().filter(|network| network.contains(&ip)).map(IpNet::prefix_len).max()
}

impl RouteTo {
    /// The destination for this flow.
    pub(super) fn destination(&self, asked: &Asked<'_>) -> Destination {
        let Some(cluster) = &self.cluster else {
            return Destination {
                weight: self.weight,
                cluster: None,
                upstream: Upstream::NoCluster,
                judged: None,
                door: Door::Direct,
                traffic: Arc::default(),
                headers: Arc::clone(&self.headers),
            };
        };
        Destination {
            weight: self.weight,
            headers: Arc::clone(&self.headers),
            ..cluster.destination(asked)
        }
    }
}
