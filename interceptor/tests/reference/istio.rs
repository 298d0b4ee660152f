//! The istio profile, read from sections 2, 5 and 8.

use std::net::SocketAddr;

use interceptor::policy::{Enforcement, Outbound};

use crate::observe::{Seen, Verdicts};
use crate::registry::{
    Host, Kind, Named, Service, black_hole, passthrough, services, unknown_request,
};
use crate::request;
use crate::routing::{Chain, nominal};
use crate::sidecar::mode;
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
    let request =
        hello.serves_http().then(|| match request::host(&flow.head, flow.dst, world.profile) {
            Ok(host) => reading.request(flow, &host),
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
            Some(service) => {
                let names = service.chains(true).iter().any(|chain| !chain.sni.is_empty());
                service.kind() == Kind::Sniffed || names
            }
            None if self.port.is_empty() => mode(self.world) == Outbound::AllowAnyDynamicDns,
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
        let (group, any): (Vec<Chain<'_>>, Vec<Chain<'_>>) = match &self.bound {
            Some(service) => (service.chains(true), Vec::new()),
            None => {
                let any = self.port.iter().filter(|service| !service.has_addresses());
                (chains(self.group().1.into_iter()), chains(any))
            }
        };
        let unconditional =
            |chains: &[Chain<'a>]| chains.iter().find(|chain| chain.sni.is_empty()).cloned();
        let named = |name: &str| {
            let fitting = group.iter().filter(|chain| chain.fit(name).is_some());
            fitting.min_by_key(|chain| chain.fit(name)).cloned()
        };
        let found = name
            .and_then(named)
            .or_else(|| unconditional(&group))
            // LIS-8: the unconditional chain is the port's default.
            .or_else(|| unconditional(&any));
        match found {
            Some(chain) => chain.relay(self.world, self.dst, name),
            None if mode(self.world) == Outbound::RegistryOnly => black_hole(),
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
            return mode(self.world) == Outbound::AllowAnyDynamicDns;
        }
        match self.group() {
            // LIS-7: of chains with one condition the first stands.
            (true, group) => {
                let plain = group.iter().find(|service| service.kind() != Kind::Tls);
                plain.is_some_and(|service| service.kind() == Kind::Sniffed)
            }
            (false, group) => group.iter().any(|s| matches!(s.kind(), Kind::Http | Kind::Sniffed)),
        }
    }

    fn request(&self, flow: &Flow, host: &Host) -> Seen {
        let found = match (&self.bound, self.group()) {
            (Some(service), _) => Some(Named::Service(service.clone())),
            // HTTP-9: at its own address a sniffed service answers to any Host.
            (None, (true, group)) => {
                let sniffed = group.into_iter().find(|service| service.kind() == Kind::Sniffed);
                sniffed.cloned().map(Named::Service)
            }
            (None, (false, group)) => self.route(&group, host),
        };
        match found {
            Some(named) => named.request(self.world, flow, host),
            None => unknown_request(self.world, self.dst, host, false),
        }
    }

    /// HTTP-2, HTTP-7, HTTP-9: by name, or by an address that counts as one.
    fn route(&self, group: &[&Service<'a>], host: &Host) -> Option<Named<'a>> {
        let http = group.iter().filter(|s| matches!(s.kind(), Kind::Http | Kind::Sniffed));
        let mut named: Vec<_> = http.map(|service| Named::Service((*service).clone())).collect();
        let Some(name) = &host.name else {
            let ip = host.ip?;
            return named.into_iter().find(|named| match named {
                Named::Service(s) => s.kind() == Kind::Http && s.prefix(ip, Some(true)).is_some(),
                Named::Nominal(..) => false,
            });
        };
        // LIS-17: where MONGO has the port, no HTTP has.
        if !self.port.iter().any(Service::is_mongo) {
            let nominal = nominal(self.world, self.dst.port()).into_iter();
            named.extend(nominal.map(|(host, rules)| Named::Nominal(host, rules)));
        }
        let fitting = named.into_iter().filter(|named| named.fit(name).is_some());
        fitting.min_by_key(|named| named.fit(name))
    }
}

/// HTTP services have no chains (HTTP-3).
fn chains<'a, 'b>(services: impl Iterator<Item = &'b Service<'a>>) -> Vec<Chain<'a>>
where
    'a: 'b,
{
    services.filter(|s| s.kind() != Kind::Http).flat_map(|s| s.chains(false)).collect()
}
