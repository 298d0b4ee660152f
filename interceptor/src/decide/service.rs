//! One host on one port of the registry, ready to decide with.

use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use super::host::HostName;
use super::pattern::EntryHost;
use super::route::{Destination, Forward};
use super::traffic::TrafficPolicy;
use super::{Action, ClusterName, Decision, Reason, RuleId, Upstream};

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
    pub(crate) host: EntryHost,
    /// The port that workloads dial.
    pub(crate) port: u16,
    pub(crate) group: Group,
    /// MONGO and MYSQL do not share a port handler with other groups (LIS-17).
    pub(crate) exclusive: bool,
    /// What recognises the dialled address (SE-2); empty = any.
    pub(crate) addresses: Vec<IpNet>,
    pub(crate) target: Target,
    pub(crate) cluster: ClusterName,
    pub(crate) traffic: Arc<TrafficPolicy>,
    pub(crate) rule: RuleId,
}

/// Where a service's traffic goes (section 9).
#[derive(Debug, Clone)]
pub(crate) enum Target {
    /// NONE: where the workload dialled (RES-1), at this port if one is given (SE-4).
    Original(Option<u16>),
    /// The same for every flow.
    Fixed(Upstream),
    /// The concrete name that the client showed, resolved by the daemon (GAP-2, RES-5).
    Concrete { port: u16, round_robin: bool },
}

impl Service {
    /// Whether the entry's addresses, if it has any, hold the dialled one.
    pub(crate) fn holds(&self, ip: IpAddr) -> bool {
        self.addresses.is_empty() || self.lists(ip)
    }

    /// Whether the entry names this address.
    pub(crate) fn lists(&self, ip: IpAddr) -> bool {
        self.addresses.iter().any(|network| network.contains(&ip))
    }

    /// The verdict "this service's traffic" for a connection.
    pub(super) fn relay(&self, upstream: Upstream) -> Decision {
        self.allow(Action::Relay(vec![self.destination(upstream)]), None)
    }

    /// The verdict "this service's traffic" for a request.
    pub(super) fn forward(&self, upstream: Upstream) -> Decision {
        let forward = Forward::to(self.destination(upstream), Arc::default());
        self.allow(Action::Forward(Box::new(forward)), Some("default"))
    }

    fn destination(&self, upstream: Upstream) -> Destination {
        Destination {
            weight: 1,
            cluster: Some(self.cluster.clone()),
            upstream,
            traffic: Arc::clone(&self.traffic),
            headers: Arc::default(),
        }
    }

    fn allow(&self, action: Action, route: Option<&str>) -> Decision {
        Decision {
            action,
            cluster: Some(self.cluster.clone()),
            route: route.map(Into::into),
            reason: Reason::Registered,
            rule: Some(self.rule.clone()),
        }
    }

    /// The upstream in the istio profile: a NONE service goes where the workload dialled, unchecked.
    pub(super) fn upstream(&self, dialled_port: u16, name: Option<&HostName>) -> Upstream {
        match (&self.target, name) {
            (Target::Original(port), _) => {
                Upstream::OriginalDst { port: port.unwrap_or(dialled_port), name: None }
            }
            (Target::Fixed(upstream), _) => upstream.clone(),
            (Target::Concrete { port, round_robin }, Some(name)) => Upstream::Dns {
                endpoints: [super::Endpoint { target: (name.clone(), *port), weight: 1 }].into(),
                round_robin: *round_robin,
            },
            // Without a name there is nothing to resolve.
            (Target::Concrete { .. }, None) => Upstream::None,
        }
    }

    /// The upstream in the strict profile: where nothing but a name speaks for the dialled address,
    /// the daemon's own resolution of that name must (R3).
    pub(super) fn verified(&self, dialled_port: u16, name: Option<&HostName>) -> Upstream {
        match (&self.target, name) {
            (Target::Original(port), Some(name)) if self.addresses.is_empty() => {
                Upstream::VerifiedOriginalDst {
                    host: name.clone(),
                    port: port.unwrap_or(dialled_port),
                }
            }
            _ => self.upstream(dialled_port, name),
        }
    }
}
