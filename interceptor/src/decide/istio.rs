//! The istio profile: Istio's handlers, chains and names to the letter (LIS-1 to LIS-26).

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};

use super::host::HostName;
use super::net::{Prefixes, single};
use super::pattern::{EntryHost, HostIndex};
use super::request::Host;
use super::service::Asked;
use super::{Block, ByAddress, Decision, Group, Inner, Reason, Service, judge_requests, refuse};
use crate::policy::{Enforcement, Outbound};
use crate::sniff::Hello;

#[derive(Debug, Default)]
pub(super) struct Tables {
    /// Handlers bound to exactly one address and port.
    bound: HashMap<(IpAddr, u16), Bound>,
    /// Handlers for a port on any address.
    ports: HashMap<u16, Port>,
    /// What chain numbers stand for: a service, and the rule in place of its own chain.
    chains: Vec<(u32, Option<u32>)>,
}

/// The handler of one service at one of its addresses.
#[derive(Debug)]
struct Bound {
    service: u32,
    chains: Chains,
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
    /// A MONGO or MYSQL entry has a part in this handler (LIS-17).
    exclusive: bool,
    /// An entry of another group than TCP has a part in it.
    mixed: bool,
    /// Some chain needs the first bytes (LIS-21, LIS-22).
    inspects: bool,
    /// Plaintext HTTP is routed here, names or not (SC-8).
    http: bool,
}

/// What competes once the address step is done, by chain number.
#[derive(Debug, Default)]
struct Chains {
    sni: HostIndex,
    /// The unconditional chain: a TCP or sniffed service, the first (REG-9).
    rest: Option<u32>,
}

/// The handler of one connection.
enum Handler<'a> {
    Bound(&'a Bound),
    Port(&'a Port),
    CatchAll,
}

impl Tables {
    pub(super) fn new(services: &[Service], listeners: &[(u16, Group)]) -> Self {
        let mut tables = Self::default();
        for (port, group) in listeners {
            let port = tables.ports.entry(*port).or_default();
            port.inspects |= *group != Group::Tcp;
            port.http |= matches!(group, Group::Http | Group::Sniffed);
        }
        for (id, service) in (0..).zip(services) {
            tables.add(id, service);
        }
        tables
    }

    /// Adds a service under each of its keys (LIS-2 to LIS-4). What is taken stays taken: services
    /// come in the order of REG-4.
    fn add(&mut self, id: u32, service: &Service) {
        let addresses = &service.cluster.addresses;
        let networks = || addresses.iter().filter(|network| single(network).is_none());
        if service.group != Group::Http {
            let numbers = self.number(id, service);
            for ip in addresses.iter().filter_map(single) {
                self.bound.entry((ip, service.port)).or_insert_with(|| {
                    let mut chains = Chains::default();
                    for (number, rule) in &numbers {
                        chains.add_bound(*number, service, *rule, ip);
                    }
                    Bound { service: id, chains }
                });
            }
            if !addresses.is_empty() && networks().next().is_none() {
                return;
            }
        }
        let numbers = self.number(id, service);
        let port = self.ports.entry(service.port).or_default();
        let other = service.group != Group::Tcp;
        if (port.exclusive && other) || (service.exclusive && port.mixed) {
            return;
        }
        port.exclusive |= service.exclusive;
        port.mixed |= other;
        port.inspects |=
            service.group != Group::Tcp || service.chains.iter().any(|c| !c.sni.is_empty());
        if service.group == Group::Http {
            for name in service.names() {
                port.names.insert(name, id);
            }
            for ip in addresses.iter().filter_map(single) {
                port.literals.entry(ip).or_insert(id);
            }
            return;
        }
        if addresses.is_empty() && service.group == Group::Sniffed {
            for name in service.names() {
                port.names.insert(name, id);
            }
        }
        for (number, rule) in numbers {
            let own = rule.and_then(|rule| service.chains.get(rule as usize));
            let subnets = own.map_or(&[][..], |rule| &rule.subnets);
            if !subnets.is_empty() {
                for network in subnets {
                    port.networks.entry(*network, Chains::default).add(number, service, rule);
                }
            } else if addresses.is_empty() {
                port.any.add(number, service, rule);
            } else {
                for network in networks() {
                    port.networks.entry(*network, Chains::default).add(number, service, rule);
                }
            }
        }
    }

    /// Numbers for the chains of a service, its own or its rules'.
    fn number(&mut self, id: u32, service: &Service) -> Vec<(u32, Option<u32>)> {
        let mut numbers = Vec::new();
        for rule in service.chain_numbers() {
            // Memory ends long before 2^32 chains.
            let Ok(number) = u32::try_from(self.chains.len()) else { break };
            self.chains.push((id, rule));
            numbers.push((number, rule));
        }
        numbers
    }

    fn handler(&self, dst: SocketAddr) -> Handler<'_> {
        if let Some(bound) = self.bound.get(&(dst.ip(), dst.port())) {
            return Handler::Bound(bound);
        }
        self.ports.get(&dst.port()).map_or(Handler::CatchAll, Handler::Port)
    }

    pub(super) fn by_address(&self, rules: &Inner, dst: SocketAddr) -> ByAddress {
        let (inspects, silent) = match self.handler(dst) {
            Handler::Bound(bound) => {
                // LIS-26: bound to its address, even a TLS service takes any bytes.
                let sniffed = rules.service(bound.service).group == Group::Sniffed;
                let service = rules.service(bound.service);
                let reads = sniffed || service.forbids_ech || !bound.chains.sni.is_empty();
                (reads, bound.chains.pick(None))
            }
            Handler::Port(port) => (port.inspects, port.pick(dst, None)),
            // MESH-31: the mode looks for HTTP on every port.
            Handler::CatchAll => (rules.outbound == Outbound::AllowAnyDynamicDns, None),
        };
        let decision = self.raw(rules, dst, None, silent);
        if inspects {
            ByAddress::Inspect { unless_client_speaks: decision }
        } else {
            ByAddress::Decided(decision)
        }
    }

    pub(super) fn by_hello(&self, rules: &Inner, dst: SocketAddr, hello: &Hello) -> Decision {
        let name = match hello {
            // HTTP-5: with a trailing dot it matches no chain's name.
            Hello::Tls(hello) => hello.sni.as_ref().filter(|_| !hello.dotted),
            // T-19, T-20, R4: what has two readings is refused in both profiles.
            Hello::Malformed(_) => return refuse(Block::Close, Reason::Malformed),
            _ => None,
        };
        let http = matches!(hello, Hello::Http1 | Hello::Http2);
        let picked = match self.handler(dst) {
            Handler::Bound(bound) => {
                if http && rules.service(bound.service).group == Group::Sniffed {
                    return judge_requests();
                }
                bound.chains.pick(name)
            }
            Handler::Port(port) => {
                if http && self.routes_http(port, rules, dst) {
                    return judge_requests();
                }
                port.pick(dst, name)
            }
            Handler::CatchAll if http && rules.outbound == Outbound::AllowAnyDynamicDns => {
                return judge_requests();
            }
            Handler::CatchAll => None,
        };
        if let (Hello::Tls(hello), Some(id)) = (hello, picked.and_then(|n| self.service(n)))
            && rules.service(id).forbids(hello)
        {
            return refuse(Block::Close, Reason::HiddenName);
        }
        self.raw(rules, dst, name, picked)
    }

    /// The service that a request belongs to, or why none.
    pub(super) fn by_request(
        &self,
        rules: &Inner,
        dst: SocketAddr,
        host: &Host,
    ) -> Result<u32, Reason> {
        let found = match self.handler(dst) {
            // HTTP-9: a sniffed service bound to its address answers to any Host.
            Handler::Bound(bound) => Some(bound.service),
            Handler::Port(port) => match port.networks.longest(dst.ip()) {
                Some(chains) => chains.rest.and_then(|number| self.service(number)),
                None => port.named(host),
            },
            Handler::CatchAll => None,
        };
        found.ok_or_else(|| rules.unknown_reason(dst, host.name()))
    }

    /// Whether plaintext HTTP from this address meets an HTTP chain (LIS-10, LIS-15, LIS-16).
    fn routes_http(&self, port: &Port, rules: &Inner, dst: SocketAddr) -> bool {
        match port.networks.longest(dst.ip()) {
            Some(chains) => chains.rest.is_some_and(|number| self.sniffs(rules, number)),
            None => port.http || !port.names.is_empty(),
        }
    }

    fn sniffs(&self, rules: &Inner, number: u32) -> bool {
        self.service(number).is_some_and(|id| rules.service(id).group == Group::Sniffed)
    }

    fn service(&self, number: u32) -> Option<u32> {
        self.chains.get(number as usize).map(|(id, _)| *id)
    }

    /// The verdict of a chain, or of the mode where none was found (MESH-21, MESH-26).
    fn raw(
        &self,
        rules: &Inner,
        dst: SocketAddr,
        name: Option<&HostName>,
        picked: Option<u32>,
    ) -> Decision {
        match picked.and_then(|number| self.chains.get(number as usize)) {
            Some((id, rule)) => {
                let asked = Asked { dst, name, profile: Enforcement::Istio };
                rules.service(*id).relay(*rule, &asked)
            }
            None if rules.passes_unknown(dst) => rules.pass_connection(dst, name),
            None => rules.refuse(Block::Close, rules.unknown_reason(dst, name)),
        }
    }
}

impl Port {
    /// The chain for bytes that are not routed as HTTP: address, then SNI, then the chain without
    /// a condition; no way back from a step taken (LIS-6). The port's default is the unconditional
    /// chain, else the mode (LIS-8).
    fn pick(&self, dst: SocketAddr, name: Option<&HostName>) -> Option<u32> {
        let chains = self.networks.longest(dst.ip()).unwrap_or(&self.any);
        chains.pick(name).or(self.any.rest)
    }

    fn named(&self, host: &Host) -> Option<u32> {
        match host {
            Host::Name(name) => self.names.matches(name).next(),
            Host::Ip(ip) => self.literals.get(ip).copied(),
        }
    }
}

impl Chains {
    /// Adds a chain of a service's handler on any address.
    fn add(&mut self, number: u32, service: &Service, rule: Option<u32>) {
        match rule.and_then(|rule| service.chains.get(rule as usize)) {
            Some(rule) => self.add_rule(number, &rule.sni),
            None => match service.group {
                Group::Tls => self.add_rule(number, std::slice::from_ref(service.host())),
                Group::Tcp | Group::Sniffed => self.add_rule(number, &[]),
                // HTTP routing has names of its own, and no address condition (HTTP-3).
                Group::Http => {}
            },
        }
    }

    /// Adds a chain of the handler at `ip`: there a service's own has no condition (LIS-26).
    fn add_bound(&mut self, number: u32, service: &Service, rule: Option<u32>, ip: IpAddr) {
        match rule.and_then(|rule| service.chains.get(rule as usize)) {
            Some(rule)
                if !rule.subnets.is_empty() && !rule.subnets.iter().any(|n| n.contains(&ip)) => {}
            Some(rule) => self.add_rule(number, &rule.sni),
            None => self.add_rule(number, &[]),
        }
    }

    fn add_rule(&mut self, number: u32, sni: &[EntryHost]) {
        if sni.is_empty() {
            self.rest.get_or_insert(number);
        }
        // HTTP-6: a partial wildcard is not usable for SNI.
        for host in sni.iter().filter(|host| !matches!(host, EntryHost::Partial(_))) {
            self.sni.insert(host, number);
        }
    }

    fn pick(&self, name: Option<&HostName>) -> Option<u32> {
        name.and_then(|name| self.sni.matches(name).next()).or(self.rest)
    }
}
