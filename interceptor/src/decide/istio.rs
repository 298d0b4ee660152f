//! The istio profile: Istio's handlers, chains and names to the letter (LIS-1 to LIS-26).

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};

use super::host::HostName;
use super::net::{Prefixes, single};
use super::pattern::{EntryHost, HostIndex};
use super::request::Host;
use super::{
    Block, ByAddress, Decision, Group, Inner, Reason, Service, block_all, judge_requests, refuse,
};
use crate::policy::{Enforcement, Outbound};
use crate::sniff::Hello;

#[derive(Debug, Default)]
pub(super) struct Tables {
    /// Handlers bound to exactly one address and port.
    bound: HashMap<(IpAddr, u16), u32>,
    /// Handlers for a port on any address.
    ports: HashMap<u16, Port>,
}

/// The handler of a port on any address.
#[derive(Debug, Default)]
struct Port {
    /// Chains with an address condition: the longest prefix wins and is final (LIS-6).
    networks: Prefixes<Chains>,
    /// Chains without one.
    any: Chains,
    /// Names of plaintext HTTP routing (HTTP-9).
    names: HostIndex,
    /// Addresses that count as names of plaintext HTTP routing (HTTP-7).
    literals: HashMap<IpAddr, u32>,
    /// A MONGO or MYSQL entry owns this handler (LIS-17).
    exclusive: bool,
    /// Some chain needs the first bytes (LIS-21, LIS-22).
    inspects: bool,
}

/// What competes once the address step is done.
#[derive(Debug, Default)]
struct Chains {
    sni: HostIndex,
    /// The unconditional chain: a TCP or sniffed service, the first (REG-9).
    rest: Option<u32>,
}

/// The handler of one connection.
enum Handler<'a> {
    Bound(&'a Service),
    Port(&'a Port),
    CatchAll,
}

impl Tables {
    pub(super) fn new(services: &[Service]) -> Self {
        let mut tables = Self::default();
        for (id, service) in (0..).zip(services) {
            tables.add(id, service);
        }
        tables
    }

    /// Adds a service under each of its keys (LIS-2 to LIS-4). What is taken stays taken: services
    /// come in the order of REG-4.
    fn add(&mut self, id: u32, service: &Service) {
        let plain = || service.addresses.iter().filter_map(single);
        let networks = service.addresses.iter().filter(|network| single(network).is_none());
        if service.group != Group::Http {
            for ip in plain() {
                self.bound.entry((ip, service.port)).or_insert(id);
            }
            if !service.addresses.is_empty() && networks.clone().next().is_none() {
                return;
            }
        }
        let shared = self.ports.contains_key(&service.port);
        let port = self.ports.entry(service.port).or_default();
        if shared && port.exclusive != service.exclusive {
            return;
        }
        port.exclusive = service.exclusive;
        port.inspects |= service.group != Group::Tcp;
        if service.group == Group::Http {
            port.names.insert(&service.host, id);
            for ip in plain() {
                port.literals.entry(ip).or_insert(id);
            }
        } else if service.addresses.is_empty() {
            port.any.add(id, service);
            if service.group == Group::Sniffed {
                port.names.insert(&service.host, id);
            }
        } else {
            for network in networks {
                port.networks.entry(*network, Chains::default).add(id, service);
            }
        }
    }

    fn handler<'a>(&'a self, rules: &'a Inner, dst: SocketAddr) -> Handler<'a> {
        if let Some(id) = self.bound.get(&(dst.ip(), dst.port())) {
            return Handler::Bound(rules.service(*id));
        }
        self.ports.get(&dst.port()).map_or(Handler::CatchAll, Handler::Port)
    }

    pub(super) fn by_address(&self, rules: &Inner, dst: SocketAddr) -> ByAddress {
        match self.handler(rules, dst) {
            // LIS-26: bound to its address, even a TLS service takes any bytes.
            Handler::Bound(service) if service.group != Group::Sniffed => {
                ByAddress::Decided(relay(service, dst, None))
            }
            Handler::Bound(service) => {
                ByAddress::Inspect { unless_client_speaks: relay(service, dst, None) }
            }
            Handler::Port(port) if port.inspects => {
                ByAddress::Inspect { unless_client_speaks: port.raw(rules, dst, None) }
            }
            Handler::Port(port) => ByAddress::Decided(port.raw(rules, dst, None)),
            Handler::CatchAll => ByAddress::Decided(unknown(rules, dst, None)),
        }
    }

    pub(super) fn by_hello(&self, rules: &Inner, dst: SocketAddr, hello: &Hello) -> Decision {
        let handler = self.handler(rules, dst);
        let name = match hello {
            Hello::Tls(hello) => hello.sni.as_ref(),
            // T-19, T-20, R4: what has two readings is refused in both profiles.
            Hello::Malformed(_) => return refuse(Block::Close, Reason::Malformed),
            _ => None,
        };
        let http = matches!(hello, Hello::Http1 | Hello::Http2);
        match handler {
            Handler::Bound(service) if http && service.group == Group::Sniffed => judge_requests(),
            Handler::Bound(service) => relay(service, dst, name),
            Handler::Port(port) if http && port.routes_http(rules, dst) => judge_requests(),
            Handler::Port(port) => port.raw(rules, dst, name),
            Handler::CatchAll => unknown(rules, dst, name),
        }
    }

    pub(super) fn by_request(&self, rules: &Inner, dst: SocketAddr, host: &Host) -> Decision {
        let found = match self.handler(rules, dst) {
            // HTTP-9: a sniffed service bound to its address answers to any Host.
            Handler::Bound(service) => Some(service),
            Handler::Port(port) => match port.networks.longest(dst.ip()) {
                Some(chains) => chains.rest.map(|id| rules.service(id)),
                None => port.named(host).map(|id| rules.service(id)),
            },
            Handler::CatchAll => None,
        };
        let name = match host {
            Host::Name(name) => Some(name),
            Host::Ip(_) => None,
        };
        match (found, rules.outbound) {
            (Some(service), _) => service.forward(service.upstream(dst.port(), name)),
            (None, Outbound::AllowAny) => rules.pass_request(dst, host),
            (None, Outbound::RegistryOnly) => {
                block_all(Enforcement::Istio, rules.unknown_reason(dst, name))
            }
        }
    }
}

impl Port {
    /// Whether plaintext HTTP from this address meets an HTTP chain (LIS-10, LIS-15, LIS-16).
    fn routes_http(&self, rules: &Inner, dst: SocketAddr) -> bool {
        match self.networks.longest(dst.ip()) {
            Some(chains) => chains.sniffs(rules),
            None => !self.names.is_empty(),
        }
    }

    /// The verdict on bytes that are not routed as HTTP: address, then SNI, then the chain without a
    /// condition; no way back from a step taken (LIS-6). The port's default is the unconditional
    /// chain, else the mode (LIS-8).
    fn raw(&self, rules: &Inner, dst: SocketAddr, name: Option<&HostName>) -> Decision {
        let chains = self.networks.longest(dst.ip()).unwrap_or(&self.any);
        let by_name = name.and_then(|name| chains.sni.matches(name).next());
        match by_name.or(chains.rest).or(self.any.rest) {
            Some(id) => relay(rules.service(id), dst, name),
            None => unknown(rules, dst, name),
        }
    }

    fn named(&self, host: &Host) -> Option<u32> {
        match host {
            Host::Name(name) => self.names.matches(name).next(),
            Host::Ip(ip) => self.literals.get(ip).copied(),
        }
    }
}

impl Chains {
    fn add(&mut self, id: u32, service: &Service) {
        match service.group {
            // HTTP-6: a partial wildcard is not usable for SNI.
            Group::Tls if matches!(service.host, EntryHost::Partial(_)) => {}
            Group::Tls => self.sni.insert(&service.host, id),
            Group::Tcp | Group::Sniffed => {
                self.rest.get_or_insert(id);
            }
            // HTTP routing has names of its own, and no address condition (HTTP-3).
            Group::Http => {}
        }
    }

    fn sniffs(&self, rules: &Inner) -> bool {
        self.rest.is_some_and(|id| rules.service(id).group == Group::Sniffed)
    }
}

fn relay(service: &Service, dst: SocketAddr, name: Option<&HostName>) -> Decision {
    service.relay(service.upstream(dst.port(), name))
}

/// The mode's answer for a connection (MESH-21, MESH-26).
fn unknown(rules: &Inner, dst: SocketAddr, name: Option<&HostName>) -> Decision {
    match rules.outbound {
        Outbound::AllowAny => rules.pass_connection(dst, name),
        Outbound::RegistryOnly => refuse(Block::Close, rules.unknown_reason(dst, name)),
    }
}
