//! What of a policy the tables have to know: for each port, the networks that verdicts depend on and
//! the names that may be shown.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::net::IpAddr;

use ipnet::IpNet;

use crate::decide::host::HostName;
use crate::decide::pattern::EntryHost;
use crate::decide::tier::WhyProxy;
use crate::decide::traffic::LoadBalancer;
use crate::decide::{Cluster, Group, Place, Policy, Service, Target, Upstream};

/// A policy's ports.
#[derive(Debug, Default)]
pub struct Survey {
    pub(super) ports: BTreeMap<u16, Port>,
    /// Hosts whose addresses count.
    exact: HashSet<HostName>,
    /// Names below which others' addresses count.
    below: HashSet<Box<str>>,
}

/// What decisions on one port depend on.
#[derive(Debug, Default)]
pub(super) struct Port {
    /// Every network that some address condition or endpoint names.
    pub(super) networks: BTreeSet<IpNet>,
    /// Every name that some chain asks for.
    pub(super) names: Vec<Named>,
    /// Hosts that claim what they resolve to (GAP-1).
    pub(super) claims: Vec<HostName>,
}

/// A name that may be shown on a port, and where that may be.
#[derive(Debug)]
pub(super) struct Named {
    pub(super) host: EntryHost,
    /// Networks in which it may be allowed. Empty: wherever its hosts resolve to, or anywhere.
    pub(super) networks: Vec<IpNet>,
    /// Hosts whose addresses it may be allowed at.
    pub(super) resolved: Vec<HostName>,
    /// It goes where the client dials, and no network says where that may be (RES-1, DR-13).
    pub(super) anywhere: bool,
}

impl Survey {
    /// Looks at every service of a policy.
    pub fn of(policy: &Policy) -> Self {
        let mut survey = Self::default();
        for service in policy.services().iter().filter(|service| !service.nominal) {
            survey.ports.entry(service.port).or_default().add(service);
        }
        for port in policy.ports() {
            survey.ports.entry(port).or_default();
        }
        survey.exact = survey.hosts().into_iter().cloned().collect();
        let names = survey.ports.values().flat_map(|port| &port.names);
        let below = names.filter_map(|named| match &named.host {
            EntryHost::Wildcard(parent) => Some(parent.as_str().into()),
            _ => None,
        });
        survey.below = below.collect();
        survey
    }

    /// Whether some row may depend on the addresses of `name`.
    pub fn could_use(&self, name: &HostName) -> bool {
        self.exact.contains(name) || name.parents().any(|parent| self.below.contains(parent))
    }

    /// The hosts whose addresses the tables need.
    pub fn hosts(&self) -> BTreeSet<&HostName> {
        let names = self.ports.values().flat_map(|port| &port.names);
        let claims = self.ports.values().flat_map(|port| &port.claims);
        names.flat_map(|name| &name.resolved).chain(claims).collect()
    }
}

impl Port {
    /// Why no name may be shown at an address where names decide.
    pub(super) fn why_no_name(&self) -> WhyProxy {
        match self.names.as_slice() {
            [] => WhyProxy::Nothing,
            names if names.iter().all(|named| named.host.exact().is_none()) => WhyProxy::Wildcard,
            _ => WhyProxy::Unresolved,
        }
    }

    fn add(&mut self, service: &Service) {
        self.networks.extend(service.cluster.addresses.iter().map(IpNet::trunc));
        self.networks.extend(endpoints(&service.cluster));
        if service.group == Group::Tcp && service.cluster.addresses.is_empty() {
            self.claims.extend(service.cluster.host.exact().cloned());
        }
        if service.chains.is_empty() {
            if matches!(service.group, Group::Tls | Group::Sniffed) {
                let networks = service.cluster.addresses.iter().copied();
                self.add_name(service.cluster.host.clone(), networks, [&*service.cluster]);
            }
            return;
        }
        for rule in service.chains.iter() {
            let clusters = || rule.to.iter().filter_map(|to| to.cluster.as_deref());
            self.networks.extend(rule.subnets.iter().map(IpNet::trunc));
            self.networks.extend(clusters().flat_map(endpoints));
            let networks = || {
                let own = if rule.subnets.is_empty() {
                    &*service.cluster.addresses
                } else {
                    &rule.subnets
                };
                own.iter().copied()
            };
            for host in &rule.sni {
                self.add_name(host.clone(), networks(), clusters());
            }
            if rule.sni.is_empty() && matches!(service.group, Group::Tls | Group::Sniffed) {
                self.add_name(service.cluster.host.clone(), networks(), clusters());
            }
        }
    }

    fn add_name<'a>(
        &mut self,
        host: EntryHost,
        networks: impl Iterator<Item = IpNet>,
        clusters: impl IntoIterator<Item = &'a Cluster>,
    ) {
        let mut networks: Vec<IpNet> = networks.map(|network| network.trunc()).collect();
        let mut resolved: Vec<HostName> = host.exact().cloned().into_iter().collect();
        let mut anywhere = false;
        for cluster in clusters {
            anywhere |= networks.is_empty() && goes_where_dialled(cluster);
            networks.extend(endpoints(cluster));
            if let Target::Fixed(Upstream::Dns { endpoints, .. }) = &cluster.target {
                for endpoint in endpoints.iter() {
                    match &endpoint.target.0 {
                        Place::Name(name) => resolved.push(name.clone()),
                        Place::Ip(ip) => networks.push(network_of(*ip)),
                    }
                }
            }
        }
        resolved.sort();
        resolved.dedup();
        self.names.push(Named { host, networks, resolved, anywhere });
    }
}

fn goes_where_dialled(cluster: &Cluster) -> bool {
    matches!(cluster.target, Target::Original(_))
        || cluster.traffic.load_balancer == LoadBalancer::Passthrough
}

/// The addresses of a cluster's endpoints, where the operator gives them.
fn endpoints(cluster: &Cluster) -> impl Iterator<Item = IpNet> + use<> {
    let endpoints = match &cluster.target {
        Target::Fixed(Upstream::Static(endpoints)) => {
            endpoints.iter().map(|endpoint| network_of(endpoint.target.ip())).collect()
        }
        _ => Vec::new(),
    };
    endpoints.into_iter()
}

/// The network of one address.
pub(super) fn network_of(ip: IpAddr) -> IpNet {
    IpNet::from(ip.to_canonical())
}
