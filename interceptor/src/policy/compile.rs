//! From valid entries to what decisions read: visibility, precedence and merging (SE-9, REG-3 to
//! REG-5), and where each port's traffic goes (SE-4, RES-1 to RES-5).

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::Arc;

use ipnet::IpNet;

use super::Enforcement;
use super::entry::{EndpointAddress, Entry, Protocol, ServicePort};
use super::fields::Findings;
use super::service_entry::Resolution;
use crate::decide::pattern::EntryHost;
use crate::decide::{Cluster, ClusterName, Endpoint, Group, Service, Target, Upstream};

/// What is compiled from the entries that one namespace sees.
#[derive(Debug, Default)]
pub(super) struct Registry {
    /// In the order of REG-4.
    pub(super) services: Vec<Service>,
    /// UDP ports of entries with addresses.
    pub(super) udp: Vec<(IpNet, u16)>,
}

/// Compiles `entries` for workloads of `namespace`. Entries or ports that lose to others are noted
/// as warnings (GAP-5).
pub(super) fn compile(
    mut entries: Vec<Entry>,
    namespace: &str,
    default_export: &[String],
    profile: Enforcement,
    out: &mut Findings,
) -> Registry {
    let export = |entry: &Entry| -> Vec<String> {
        if entry.export_to.is_empty() { default_export.to_vec() } else { entry.export_to.clone() }
    };
    let public = |entry: &Entry| export(entry).iter().any(|item| item == "*");
    entries.retain(|entry| {
        export(entry).iter().any(|item| match item.as_str() {
            "*" => true,
            "." => *entry.meta.namespace == *namespace,
            name => name == namespace,
        })
    });
    entries.sort_by_cached_key(|entry| {
        let meta = &entry.meta;
        // REG-4; names of one kind and namespace are unique, so this is a total order.
        (public(entry), meta.created.clone(), meta.name.clone(), meta.namespace.clone())
    });

    // REG-5: one namespace owns a host: the workload's own if it has it, else the first's.
    let mut owners: HashMap<&EntryHost, &Entry> = HashMap::new();
    for entry in &entries {
        for host in &entry.hosts {
            let owner = owners.entry(host).or_insert(entry);
            if *entry.meta.namespace == *namespace && *owner.meta.namespace != *namespace {
                *owner = entry;
            }
        }
    }

    let mut registry = Registry::default();
    let mut ports_of: HashMap<&EntryHost, HashSet<u16>> = HashMap::new();
    for entry in &entries {
        for host in &entry.hosts {
            let owner = owners.get(host).copied().unwrap_or(entry);
            if !std::ptr::eq(owner, entry) && !merges(owner, entry) {
                let message = format!(
                    "host {host} is ignored here: {} has it first (REG-3, REG-5)",
                    owner.id
                );
                let at = &entry.notice_at;
                out.warnings.push(entry.context.notice(at.at, &at.path, message));
                continue;
            }
            let taken = ports_of.entry(host).or_default();
            for port in &entry.ports {
                if taken.insert(port.number) {
                    registry.add(entry, host, port);
                }
            }
        }
    }
    if profile == Enforcement::Istio {
        note_port_owners(&entries, out);
    }
    registry
}

/// REG-9, LIS-14: in the istio profile the first address-less TCP or unset port takes all opaque
/// traffic of its number, and Istio says so nowhere (GAP-1).
fn note_port_owners(entries: &[Entry], out: &mut Findings) {
    let mut owners: HashMap<u16, &Entry> = HashMap::new();
    for entry in entries.iter().filter(|entry| entry.addresses.is_empty()) {
        for port in &entry.ports {
            let opaque = matches!(port.protocol, Protocol::Stream(Group::Tcp | Group::Sniffed, _));
            if !opaque {
                continue;
            }
            let owner = *owners.entry(port.number).or_insert(entry);
            if owner.id != entry.id {
                let message = format!(
                    "port {} gets no opaque traffic: {} has no addresses either and comes first \
                     (REG-9)",
                    port.number, owner.id
                );
                let at = &entry.notice_at;
                out.warnings.push(entry.context.notice(at.at, "spec.ports", message));
            }
        }
    }
}

/// REG-3: whether two entries of one host unite.
fn merges(first: &Entry, later: &Entry) -> bool {
    first.meta.namespace == later.meta.namespace
        && first.resolution == later.resolution
        && first.meta.labels == later.meta.labels
        && first.selector == later.selector
        && first.export_to == later.export_to
}

impl Registry {
    fn add(&mut self, entry: &Entry, host: &EntryHost, port: &ServicePort) {
        match port.protocol {
            Protocol::Udp => {
                let ports = entry.addresses.iter().map(|network| (*network, port.number));
                for allowed in ports {
                    if !self.udp.contains(&allowed) {
                        self.udp.push(allowed);
                    }
                }
            }
            Protocol::Stream(group, exclusive) => {
                let cluster = Cluster {
                    name: ClusterName::outbound(port.number, &host.to_string()),
                    host: host.clone(),
                    addresses: entry.addresses.clone().into(),
                    target: target(entry, host, port),
                    traffic: Arc::default(),
                };
                self.services.push(Service {
                    cluster: Arc::new(cluster),
                    port: port.number,
                    group,
                    exclusive,
                    rule: entry.id.clone(),
                    aliases: Arc::default(),
                    routes: None,
                    chains: Arc::default(),
                    actions: Arc::default(),
                    nominal: false,
                });
            }
        }
    }
}

/// Where the traffic of one host and port goes.
fn target(entry: &Entry, host: &EntryHost, port: &ServicePort) -> Target {
    let own_port = port.target_port.unwrap_or(port.number);
    let round_robin = entry.resolution == Resolution::DnsRoundRobin;
    match entry.resolution {
        Resolution::None => Target::Original(port.target_port),
        Resolution::DynamicDns => Target::Concrete { port: own_port, round_robin },
        _ if entry.selector.is_some() => Target::Fixed(Upstream::None),
        Resolution::Static => Target::Fixed(given(entry, port, false)),
        Resolution::Dns | Resolution::DnsRoundRobin if !entry.endpoints.is_empty() => {
            Target::Fixed(given(entry, port, round_robin))
        }
        // RES-3, RES-13: without endpoints each host resolves itself; a wildcard has to wait for
        // the name that the client shows.
        Resolution::Dns | Resolution::DnsRoundRobin => match host.exact() {
            Some(name) => Target::Fixed(Upstream::Dns {
                endpoints: [Endpoint { target: (name.clone(), own_port), weight: 1 }].into(),
                round_robin,
            }),
            None => Target::Concrete { port: own_port, round_robin },
        },
    }
}

/// The endpoints of an entry for one of its ports (SE-4): all addresses, or all names.
fn given(entry: &Entry, port: &ServicePort, round_robin: bool) -> Upstream {
    let mut addresses = Vec::new();
    let mut names = Vec::new();
    for endpoint in &entry.endpoints {
        let own = endpoint.ports.iter().find(|(name, _)| *name == port.name);
        let number = own.map_or(port.target_port.unwrap_or(port.number), |(_, number)| *number);
        let weight = endpoint.weight;
        match &endpoint.address {
            EndpointAddress::Ip(ip) => {
                addresses.push(Endpoint { target: SocketAddr::new(*ip, number), weight });
            }
            EndpointAddress::Name(name) => {
                names.push(Endpoint { target: (name.clone(), number), weight });
            }
        }
    }
    if !names.is_empty() {
        Upstream::Dns { endpoints: Arc::from(names), round_robin }
    } else if !addresses.is_empty() {
        Upstream::Static(Arc::from(addresses))
    } else {
        Upstream::None
    }
}
