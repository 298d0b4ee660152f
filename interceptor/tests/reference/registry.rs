//! What both profiles share: who is in the registry, what names and addresses mean, where traffic
//! goes. Every question is a scan over the resources.

use std::net::{IpAddr, SocketAddr};

use interceptor::policy::{Enforcement, Outbound};

use crate::observe::{Place, Seen, To};
use crate::routing::Rules;
use crate::sidecar;
use crate::world::{Entry, Flow, Port, World};

pub(crate) const WORKLOAD_NAMESPACE: &str = "default";

/// A host of an entry on one of its ports.
#[derive(Debug, Clone)]
pub(crate) struct Service<'a> {
    pub(crate) entry: &'a Entry,
    /// In lower case (SE-1).
    pub(crate) host: String,
    pub(crate) port: &'a Port,
    /// What its VirtualService says, if it has one.
    pub(crate) rules: Rules<'a>,
}

/// What has a name on a port: a service, or a host that only a VirtualService knows (VS-2).
#[derive(Debug, Clone)]
pub(crate) enum Named<'a> {
    Service(Service<'a>),
    Nominal(String, Rules<'a>),
}

impl Named<'_> {
    pub(crate) fn fit(&self, name: &str) -> Option<usize> {
        match self {
            Self::Service(service) => service.fit(name),
            Self::Nominal(host, _) => fit(host, name),
        }
    }

    /// What a request of it gets (VS-9, LOG-12).
    pub(crate) fn request(&self, world: &World, flow: &Flow, host: &Host) -> Seen {
        let name = host.name.as_deref();
        let rules = match self {
            Self::Service(service) => service.rules,
            Self::Nominal(_, rules) => *rules,
        };
        let routed = rules.request(world, &flow.head, flow.dst, name);
        routed.unwrap_or_else(|| match self {
            Self::Service(service) => service.forward(flow.dst, name, world.profile),
            Self::Nominal(..) => unreachable!("it is there for its rules"),
        })
    }
}

/// The rows of LIS-2.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Http,
    Tls,
    Tcp,
    Sniffed,
}

/// SE-9: what the workload may see.
pub(crate) fn visible(export_to: &[&str], namespace: &str) -> bool {
    let exported = |to: &&str| match *to {
        "*" => true,
        "." => namespace == WORKLOAD_NAMESPACE,
        named => named == WORKLOAD_NAMESPACE,
    };
    export_to.is_empty() || export_to.iter().any(exported)
}

/// REG-4: private before public, then age, name, namespace. An entry of unknown age is the oldest.
fn order(entry: &Entry) -> (bool, u8, String, &str) {
    let public = entry.export_to.is_empty() || entry.export_to.contains(&"*");
    (public, entry.created.unwrap_or(0), entry.name.clone(), entry.namespace)
}

fn has_host(entry: &Entry, host: &str) -> bool {
    entry.hosts.iter().any(|own| own.to_lowercase() == host)
}

/// REG-3: what has to be equal for two entries of one host to unite.
fn unites(a: &Entry, b: &Entry) -> bool {
    let sorted = |entry: &Entry| {
        let mut exports = entry.export_to.clone();
        exports.sort_unstable();
        exports
    };
    a.namespace == b.namespace
        && a.resolution == b.resolution
        && a.labelled == b.labelled
        && sorted(a) == sorted(b)
}

/// REG-1 to REG-5: every host and port that the workload knows, in order.
pub(crate) fn services(world: &World) -> Vec<Service<'_>> {
    let seen = |entry: &&Entry| visible(&entry.export_to, entry.namespace);
    let mut entries: Vec<&Entry> = world.entries.iter().filter(seen).collect();
    entries.sort_by_key(|entry| (order(entry).0, order(entry).1, order(entry).2, entry.namespace));
    let mut services: Vec<Service<'_>> = Vec::new();
    for entry in &entries {
        for host in &entry.hosts {
            let host = host.to_lowercase();
            let sees = |entry: &Entry| sidecar::sees(world, entry.namespace, &host);
            if !sees(entry) {
                continue;
            }
            let has = |other: &&&Entry| has_host(other, &host) && sees(other);
            let same: Vec<&&Entry> = entries.iter().filter(has).collect();
            // REG-7: what a Sidecar's item lists goes before what a VirtualService leads to.
            let lists = |other: &&&&Entry| sidecar::lists(world, other.namespace, &host);
            let mut first: Vec<&Entry> = same.iter().filter(lists).map(|other| **other).collect();
            if first.is_empty() {
                first = same.iter().map(|other| **other).collect();
            }
            let own = first.iter().find(|other| other.namespace == WORKLOAD_NAMESPACE);
            let owner = *own.unwrap_or(&first[0]);
            if !std::ptr::eq(owner, *entry) && !unites(owner, entry) {
                continue;
            }
            for port in &entry.ports {
                let taken = services.iter().any(|s| s.host == host && s.port.number == port.number);
                if !taken {
                    let rules = Rules::of(world, &host);
                    services.push(Service { entry, host: host.clone(), port, rules });
                }
            }
        }
    }
    // UDP takes the port's number and is inert (SE-13).
    services.retain(|service| service.port.protocol != "UDP");
    services
}

impl Service<'_> {
    pub(crate) fn kind(&self) -> Kind {
        match self.port.protocol.to_uppercase().as_str() {
            "HTTP" | "HTTP2" | "GRPC" => Kind::Http,
            "TLS" | "HTTPS" => Kind::Tls,
            "" => Kind::Sniffed,
            _ => Kind::Tcp,
        }
    }

    pub(crate) fn is_mongo(&self) -> bool {
        self.port.protocol == "MONGO"
    }

    /// The concrete name, if it is one.
    pub(crate) fn exact(&self) -> Option<&str> {
        (!self.host.starts_with('*')).then_some(self.host.as_str())
    }

    /// HTTP-4, HTTP-6: how well a name fits: 0 exactly, else less the longer the suffix.
    pub(crate) fn fit(&self, name: &str) -> Option<usize> {
        fit(&self.host, name)
    }

    /// LIS-3, LIS-6: the longest prefix of an address that holds `ip`; with `plain`, of single
    /// addresses only, else (`Some(false)`) of networks only.
    pub(crate) fn prefix(&self, ip: IpAddr, plain: Option<bool>) -> Option<u8> {
        let addresses = self.entry.addresses.iter();
        let lengths = addresses.filter_map(|address| holds(address, ip));
        let full = if ip.is_ipv4() { 32 } else { 128 };
        lengths.filter(|length| plain.is_none_or(|plain| plain == (*length == full))).max()
    }

    pub(crate) fn has_addresses(&self) -> bool {
        !self.entry.addresses.is_empty()
    }

    /// Whether some address is a network rather than one address.
    pub(crate) fn has_networks(&self) -> bool {
        self.entry.addresses.iter().any(|address| is_network(address))
    }

    /// No address, or one that holds it.
    pub(crate) fn covers(&self, ip: IpAddr) -> bool {
        !self.has_addresses() || self.prefix(ip, None).is_some()
    }

    /// Whether an endpoint has this address.
    pub(crate) fn has_endpoint(&self, ip: IpAddr) -> bool {
        self.entry.endpoints.iter().any(|endpoint| endpoint.address.parse() == Ok(ip))
    }

    pub(crate) fn cluster(&self) -> String {
        format!("outbound|{}||{}", self.port.number, self.host)
    }

    pub(crate) fn rule(&self) -> Option<String> {
        Some(format!("ServiceEntry {}/{}", self.entry.namespace, self.entry.name))
    }

    /// Section 9: where a flow of it goes.
    pub(crate) fn upstream(&self, dst: SocketAddr, name: Option<&str>, profile: Enforcement) -> To {
        let entry = self.entry;
        let port = self.port.target.unwrap_or(self.port.number);
        let first_only = entry.resolution == "DNS_ROUND_ROBIN";
        let concrete = self.exact().or(name.filter(|name| self.fit(name).is_some()));
        if entry.resolution == "NONE" {
            // RES-1: the dialled port, also on the way to another port's cluster.
            let port = self.port.target.unwrap_or(dst.port());
            return match (profile, concrete) {
                (Enforcement::Istio, _) => To::Dialled { port, name: None },
                (Enforcement::Strict, _) if self.prefix(dst.ip(), None).is_some() => {
                    To::Dialled { port, name: None }
                }
                (Enforcement::Strict, Some(host)) if !self.has_addresses() => {
                    To::Checked { host: host.to_owned(), port }
                }
                (Enforcement::Strict, _) => To::Nowhere,
            };
        }
        let (mut fixed, mut names) = (Vec::new(), Vec::new());
        for endpoint in &entry.endpoints {
            let own = endpoint.port.filter(|(service, _)| *service == self.port.number);
            let port = own.map_or(port, |(_, own)| own);
            let weight = endpoint.weight.unwrap_or(1).max(1);
            match endpoint.address.parse::<IpAddr>() {
                Ok(ip) => fixed.push((SocketAddr::new(ip, port), weight)),
                Err(_) => names.push((endpoint.address.to_owned(), port, weight)),
            }
        }
        if !fixed.is_empty() {
            return To::Fixed(fixed);
        }
        if names.is_empty() && entry.resolution != "STATIC" {
            names.extend(concrete.map(|name| (name.to_owned(), port, 1)));
        }
        if names.is_empty() { To::Nowhere } else { To::Names { names, first_only } }
    }

    /// Its own chain, whatever rules there are.
    pub(crate) fn relay(&self, dst: SocketAddr, name: Option<&str>, profile: Enforcement) -> Seen {
        self.relay_to(self.upstream(dst, name, profile))
    }

    pub(crate) fn relay_to(&self, to: To) -> Seen {
        Seen::Relay { to: vec![self.place(to)], rule: self.rule() }
    }

    pub(crate) fn forward(
        &self,
        dst: SocketAddr,
        name: Option<&str>,
        profile: Enforcement,
    ) -> Seen {
        Seen::Forward {
            to: vec![self.place(self.upstream(dst, name, profile))],
            route: Some("default".to_owned()),
            rule: self.rule(),
            timeout: None,
        }
    }

    fn place(&self, to: To) -> Place {
        Place { weight: 1, cluster: Some(self.cluster()), to }
    }
}

/// See [`Service::fit`].
pub(crate) fn fit(host: &str, name: &str) -> Option<usize> {
    match host.strip_prefix('*') {
        None => (host == name).then_some(0),
        Some(suffix) => {
            (name.len() > suffix.len() && name.ends_with(suffix)).then(|| 1000 - suffix.len())
        }
    }
}

fn is_network(address: &str) -> bool {
    match address.split_once('/') {
        None => false,
        Some((ip, length)) => length != if ip.contains(':') { "128" } else { "32" },
    }
}

/// Whether an address or CIDR holds `ip`, and how many bits of it are given.
fn holds(address: &str, ip: IpAddr) -> Option<u8> {
    let (base, length) = match address.split_once('/') {
        Some((base, length)) => (base, Some(length.parse::<u8>().expect("a length"))),
        None => (address, None),
    };
    let bits = |ip: IpAddr| match ip {
        IpAddr::V4(ip) => (u128::from(ip.to_bits()) << 96, 32),
        IpAddr::V6(ip) => (ip.to_bits(), 128),
    };
    let base: IpAddr = base.parse().expect("an address");
    if base.is_ipv4() != ip.is_ipv4() {
        return None;
    }
    let ((base, full), (ip, _)) = (bits(base), bits(ip));
    let length = length.unwrap_or(full);
    let same = (base ^ ip).leading_zeros() >= u32::from(length);
    same.then_some(length)
}

/// MESH-21 and MESH-22: on to where it was going. Strict notices the name in passing.
pub(crate) fn passthrough(dst: SocketAddr, name: Option<&str>, profile: Enforcement) -> Place {
    let name = name.filter(|_| profile == Enforcement::Strict).map(str::to_owned);
    Place {
        weight: 1,
        cluster: Some("PassthroughCluster".to_owned()),
        to: To::Dialled { port: dst.port(), name },
    }
}

/// MESH-26.
pub(crate) fn black_hole() -> Seen {
    Seen::Close { cluster: Some("BlackHoleCluster".to_owned()) }
}

/// A request that no service has (MESH-22, MESH-27, MESH-31).
pub(crate) fn unknown_request(world: &World, dst: SocketAddr, host: &Host, closed: bool) -> Seen {
    let strict = world.profile == Enforcement::Strict;
    let route = |route: &str| Some(route.to_owned());
    let forward = |to: Place, name: &str| Seen::Forward {
        to: vec![to],
        route: route(name),
        rule: None,
        timeout: None,
    };
    match sidecar::mode(world) {
        _ if closed => {}
        Outbound::RegistryOnly => {}
        Outbound::AllowAny => {
            return forward(passthrough(dst, host.name.as_deref(), world.profile), "allow_any");
        }
        Outbound::AllowAnyDynamicDns => {
            // The rule says "the scheme's default", its scenarios the dialled port; they decide.
            let port = host.port.unwrap_or(dst.port());
            let to = match (&host.name, host.ip) {
                (Some(name), _) => {
                    To::Names { names: vec![(name.clone(), port, 1)], first_only: false }
                }
                (None, Some(ip)) => To::Fixed(vec![(SocketAddr::new(ip, port), 1)]),
                (None, None) => To::Nowhere,
            };
            let cluster = Some("AllowAnyDynamicDNSCluster".to_owned());
            return forward(Place { weight: 1, cluster, to }, "allow_any_dynamic_dns");
        }
    }
    Seen::Reply { status: 502, explain: strict, close: strict, route: route("block_all") }
}

/// The effective host of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Host {
    pub(crate) name: Option<String>,
    pub(crate) ip: Option<IpAddr>,
    pub(crate) port: Option<u16>,
}
