//! The istio profile, read from sections 2, 5 and 8.

use std::net::SocketAddr;

use interceptor::policy::{Enforcement, Outbound};

use crate::observe::{Seen, Verdicts};
use crate::registry::{Kind, Service, black_hole, passthrough, services, unknown_request};
use crate::request;
use crate::world::{Bytes, Flow, World};

/// One connection and the services that its handler is made of.
struct Reading<'a> {
    world: &'a World,
    dst: SocketAddr,
    /// LIS-1, LIS-2: the service bound to exactly this address and port.
    bound: Option<Service<'a>>,
    /// The services of the port's handler on any address.
    port: Vec<Service<'a>>,
}

pub(crate) fn verdicts(world: &World, flow: &Flow) -> Verdicts {
    let reading = Reading::new(world, flow.dst);
    let inspects = reading.inspects();
    let dialled = reading.opaque(None);
    if !inspects {
        return Verdicts { inspects, dialled, hello: None, request: None };
    }
    let hello = reading.hello(flow.hello);
    let request = hello.serves_http().then(|| match request::host(&flow.head, flow.dst, world.profile) {
        Ok(host) => reading.request(&host),
        Err(answer) => answer,
    });
    Verdicts { inspects, dialled, hello: Some(hello), request }
}

impl<'a> Reading<'a> {
    fn new(world: &'a World, dst: SocketAddr) -> Self {
        let mut here = services(world);
        here.retain(|service| service.port.number == dst.port());
        let is_bound = |service: &&Service<'_>| {
            service.kind() != Kind::Http && service.prefix(dst.ip(), Some(true)).is_some()
        };
        let bound = here.iter().find(is_bound).cloned();
        let mut port: Vec<Service<'a>> = Vec::new();
        for service in here {
            let any_address =
                service.kind() == Kind::Http || !service.has_addresses() || service.has_networks();
            // LIS-17: MONGO does not share the handler with another group.
            let conflicts = port.iter().any(|other| {
                (other.is_mongo() || service.is_mongo()) && other.kind() != service.kind()
            });
            if any_address && !conflicts {
                port.push(service);
            }
        }
        Self { world, dst, bound, port }
    }

    /// LIS-21, LIS-22, LIS-26, MESH-31.
    fn inspects(&self) -> bool {
        match &self.bound {
            Some(service) => service.kind() == Kind::Sniffed,
            None if self.port.is_empty() => self.world.mode == Outbound::AllowAnyDynamicDns,
            None => self.port.iter().any(|service| service.kind() != Kind::Tcp),
        }
    }

    /// LIS-6: the chains of the longest prefix that holds the address, else those without an
    /// address condition.
    fn group(&self) -> (bool, Vec<&Service<'a>>) {
        let prefix = |service: &Service<'_>| match service.kind() {
            Kind::Http => None,
            _ => service.prefix(self.dst.ip(), Some(false)),
        };
        let longest = self.port.iter().filter_map(prefix).max();
        let here = |service: &&Service<'_>| match longest {
            Some(longest) => service.kind() != Kind::Http && self.has_network_of(service, longest),
            None => service.kind() == Kind::Http || !service.has_addresses(),
        };
        (longest.is_some(), self.port.iter().filter(here).collect())
    }

    fn has_network_of(&self, service: &Service<'_>, longest: u8) -> bool {
        service.prefix(self.dst.ip(), Some(false)) == Some(longest)
    }

    /// Bytes that are not routed as HTTP: TLS with this name, or anything else.
    fn opaque(&self, name: Option<&str>) -> Seen {
        if let Some(service) = &self.bound {
            return service.relay(self.dst, name, Enforcement::Istio);
        }
        let (_, group) = self.group();
        let unconditional = |services: &[&Service<'a>]| {
            let mut all = services.iter().copied();
            all.find(|s| matches!(s.kind(), Kind::Tcp | Kind::Sniffed)).cloned()
        };
        let any: Vec<_> = self.port.iter().filter(|service| !service.has_addresses()).collect();
        let found = name
            .and_then(|name| named(&group, name))
            .or_else(|| unconditional(&group))
            // LIS-8: the unconditional chain is the port's default.
            .or_else(|| unconditional(&any));
        match found {
            Some(service) => service.relay(self.dst, name, Enforcement::Istio),
            None if self.world.mode == Outbound::RegistryOnly => black_hole(),
            None => Seen::Relay {
                to: vec![passthrough(self.dst, name, Enforcement::Istio)],
                rule: None,
            },
        }
    }

    fn hello(&self, bytes: Bytes) -> Seen {
        match bytes {
            Bytes::Closed => Seen::Close { cluster: None },
            // T-19 and T-20 hold in both profiles.
            Bytes::Malformed => black_hole(),
            Bytes::Tls(name) => self.opaque(name),
            Bytes::Opaque | Bytes::Silent => self.opaque(None),
            Bytes::Http1 | Bytes::Http2 if self.routes_http() => Seen::Requests,
            Bytes::Http1 | Bytes::Http2 => self.opaque(None),
        }
    }

    /// Whether plaintext HTTP meets an HTTP handling (LIS-10, LIS-11, LIS-15, LIS-16, MESH-31).
    fn routes_http(&self) -> bool {
        if let Some(service) = &self.bound {
            return service.kind() == Kind::Sniffed;
        }
        if self.port.is_empty() {
            return self.world.mode == Outbound::AllowAnyDynamicDns;
        }
        match self.group() {
            // LIS-7: of chains with one condition the first stands.
            (true, group) => {
                let plain = group.iter().find(|service| service.kind() != Kind::Tls);
                plain.is_some_and(|service| service.kind() == Kind::Sniffed)
            }
            (false, group) => {
                group.iter().any(|s| matches!(s.kind(), Kind::Http | Kind::Sniffed))
            }
        }
    }

    fn request(&self, host: &crate::registry::Host) -> Seen {
        let found = match (&self.bound, self.group()) {
            (Some(service), _) => Some(service.clone()),
            // HTTP-9: at its own address a sniffed service answers to any Host.
            (None, (true, group)) => {
                group.into_iter().find(|service| service.kind() == Kind::Sniffed).cloned()
            }
            (None, (false, group)) => route(&group, host),
        };
        match found {
            Some(service) => service.forward(self.dst, host.name.as_deref(), Enforcement::Istio),
            None => unknown_request(self.world, self.dst, host, false),
        }
    }
}

/// The TLS service that fits an SNI best. HTTP-6: a partial wildcard is not usable for SNI.
fn named<'a>(group: &[&Service<'a>], name: &str) -> Option<Service<'a>> {
    let usable = |service: &&&Service<'a>| {
        service.kind() == Kind::Tls
            && (!service.host.starts_with('*') || service.host.starts_with("*."))
    };
    let fitting = group.iter().filter(usable).filter(|service| service.fit(name).is_some());
    fitting.min_by_key(|service| service.fit(name)).map(|service| (*service).clone())
}

/// HTTP-2, HTTP-7, HTTP-9: by name, or by an address that counts as one.
fn route<'a>(group: &[&Service<'a>], host: &crate::registry::Host) -> Option<Service<'a>> {
    let http = group.iter().filter(|s| matches!(s.kind(), Kind::Http | Kind::Sniffed));
    let found = match (&host.name, host.ip) {
        (Some(name), _) => {
            http.filter(|service| service.fit(name).is_some()).min_by_key(|s| s.fit(name))
        }
        (None, Some(ip)) => {
            let mut http = http;
            http.find(|s| s.kind() == Kind::Http && s.prefix(ip, Some(true)).is_some())
        }
        (None, None) => None,
    };
    found.map(|service| (*service).clone())
}
