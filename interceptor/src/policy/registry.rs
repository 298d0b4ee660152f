//! The clusters of a workload's registry: every host, port and subset that traffic may go to
//! (SE-4, RES-1 to RES-5, DR-8, VS-20).

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;

use ipnet::IpNet;

use super::compile::Carry;
use super::entry::{EndpointAddress, Entry, ServicePort};
use super::service_entry::Resolution;
use super::virtual_service::compile::Clusters;
use crate::decide::pattern::EntryHost;
use crate::decide::traffic::{LoadBalancer, TrafficPolicy};
use crate::decide::{Cluster, ClusterName, Endpoint, Place, Target, Upstream};

/// What carries a cluster's traffic, and which of its endpoints.
#[derive(Debug, Clone, Default)]
pub(super) struct Carriage {
    pub(super) traffic: Arc<TrafficPolicy>,
    /// Labels that a subset selects by (DR-8); empty = all endpoints.
    pub(super) labels: Vec<(String, String)>,
}

/// Every host and port that a workload sees.
pub(super) struct Registry<'a> {
    carriage: &'a Carry<'a>,
    /// It is a gateway's: where its clients dialled is itself, and nowhere to go (RES-12).
    gateway: bool,
    hosts: HashMap<&'a EntryHost, Host<'a>>,
}

/// The ports of a host, and what each was made of, in the same order.
#[derive(Default)]
struct Host<'a> {
    ports: Vec<u16>,
    sources: Vec<Source<'a>>,
}

/// What a host's port was made of.
struct Source<'a> {
    entry: &'a Entry,
    port: &'a ServicePort,
    cluster: Arc<Cluster>,
}

impl<'a> Registry<'a> {
    /// For about so many hosts.
    pub(super) fn new(carriage: &'a Carry<'a>, capacity: usize, gateway: bool) -> Self {
        Self { carriage, gateway, hosts: HashMap::with_capacity(capacity) }
    }

    /// Adds the port of a host; its own cluster.
    pub(super) fn add(
        &mut self,
        entry: &'a Entry,
        host: &'a EntryHost,
        port: &'a ServicePort,
        addresses: Arc<[IpNet]>,
    ) -> Option<Arc<Cluster>> {
        let cluster = Arc::new(self.cluster(entry, host, port, addresses, None)?);
        let source = Source { entry, port, cluster: Arc::clone(&cluster) };
        let known = self.hosts.entry(host).or_default();
        known.sources.push(source);
        known.ports.push(port.number);
        Some(cluster)
    }

    fn cluster(
        &self,
        entry: &Entry,
        host: &EntryHost,
        port: &ServicePort,
        addresses: Arc<[IpNet]>,
        subset: Option<&str>,
    ) -> Option<Cluster> {
        let carriage = (self.carriage)(entry, host, port, subset)?;
        let mut traffic = carriage.traffic;
        let mut target = target(entry, host, port, &carriage.labels);
        let passes_on = traffic.load_balancer == LoadBalancer::Passthrough;
        if self.gateway && (passes_on || matches!(target, Target::Original(_))) {
            target = Target::Fixed(Upstream::None);
            Arc::make_mut(&mut traffic).load_balancer = LoadBalancer::default();
        }
        Some(Cluster {
            name: ClusterName::subset(port.number, subset.unwrap_or_default(), &host.to_string()),
            host: host.clone(),
            addresses,
            target,
            traffic,
        })
    }
}

impl Clusters for Registry<'_> {
    fn find(&self, host: &EntryHost, port: u16, subset: Option<&str>) -> Option<Arc<Cluster>> {
        let mut sources = self.hosts.get(host)?.sources.iter();
        let source = sources.find(|source| source.port.number == port)?;
        if subset.is_none() {
            return Some(Arc::clone(&source.cluster));
        }
        let addresses = Arc::clone(&source.cluster.addresses);
        self.cluster(source.entry, host, source.port, addresses, subset).map(Arc::new)
    }

    fn ports(&self, host: &EntryHost) -> &[u16] {
        self.hosts.get(host).map_or(&[], |known| &known.ports)
    }
}

/// Where the traffic of one host and port goes.
fn target(
    entry: &Entry,
    host: &EntryHost,
    port: &ServicePort,
    labels: &[(String, String)],
) -> Target {
    let own_port = port.target_port.unwrap_or(port.number);
    let round_robin = entry.resolution == Resolution::DnsRoundRobin;
    match entry.resolution {
        Resolution::None => Target::Original(port.target_port),
        Resolution::DynamicDns => Target::Concrete { port: own_port, round_robin },
        Resolution::Static => Target::Fixed(given(entry, port, labels, false)),
        Resolution::Dns | Resolution::DnsRoundRobin
            if !entry.endpoints.is_empty() || entry.selector.is_some() =>
        {
            Target::Fixed(given(entry, port, labels, round_robin))
        }
        // RES-3, RES-13: without endpoints each host resolves itself; a wildcard has to wait for
        // the name that the client shows.
        Resolution::Dns | Resolution::DnsRoundRobin => match host.exact() {
            Some(name) => Target::Fixed(Upstream::Dns {
                endpoints: [Endpoint { target: (name.clone().into(), own_port), weight: 1 }].into(),
                round_robin,
            }),
            None => Target::Concrete { port: own_port, round_robin },
        },
    }
}

/// The endpoints of an entry for one of its ports (SE-4). A subset takes those with its labels
/// (DR-8). Where there are addresses only, nothing is resolved.
fn given(
    entry: &Entry,
    port: &ServicePort,
    labels: &[(String, String)],
    round_robin: bool,
) -> Upstream {
    let mut addresses = Vec::new();
    let mut places = Vec::new();
    let mut sockets = Vec::new();
    for endpoint in &entry.endpoints {
        if !labels.iter().all(|label| endpoint.labels.contains(label)) {
            continue;
        }
        let own = endpoint.ports.iter().find(|(name, _)| *name == port.name);
        let number = own.map_or(port.target_port.unwrap_or(port.number), |(_, number)| *number);
        let weight = endpoint.weight;
        match &endpoint.address {
            EndpointAddress::Ip(ip) => {
                addresses.push(Endpoint { target: SocketAddr::new(*ip, number), weight });
                places.push(Endpoint { target: (Place::Ip(*ip), number), weight });
            }
            EndpointAddress::Name(name) => {
                places.push(Endpoint { target: (name.clone().into(), number), weight });
            }
            EndpointAddress::Unix(path) => {
                sockets.push(Endpoint { target: Arc::clone(path), weight });
            }
        }
    }
    if places.len() > addresses.len() {
        Upstream::Dns { endpoints: Arc::from(places), round_robin }
    } else if !addresses.is_empty() {
        Upstream::Static(Arc::from(addresses))
    } else if !sockets.is_empty() {
        Upstream::Unix(Arc::from(sockets))
    } else {
        Upstream::None
    }
}
