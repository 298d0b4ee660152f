//! The strict profile: the flow alone decides (GAP-20), a name only with an address behind it (R3),
//! all candidates count (GAP-15), and refusals say why.
//!
//! Candidates are ranked as in LIS-6, by address before name; one whose conditions do not hold is
//! passed over instead of ending the search.

mod claims;
mod port;

use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use self::claims::Claims;
use self::port::{Port, Rank};
use super::host::HostName;
use super::net::{is_metadata, is_special};
use super::request::Host;
use super::service::{Asked, longest};
use super::{
    Action, Block, ByAddress, ByResolution, Decision, Group, Inner, Reason, Service, Target,
    judge_requests, refuse,
};
use crate::policy::{Enforcement, Outbound};
use crate::sniff::{ClientHello, Hello};

#[derive(Debug, Default)]
pub(super) struct Tables {
    ports: HashMap<u16, Port>,
    /// What chain numbers stand for.
    chains: Vec<Chain>,
}

/// A service, and the rule in place of its own chain.
type Chain = (u32, Option<u32>);

impl Tables {
    pub(super) fn new(services: &[Service]) -> Self {
        let mut tables = Self::default();
        for (id, service) in (0..).zip(services) {
            tables.add(id, service);
        }
        let chains = &tables.chains;
        for (number, port) in &mut tables.ports {
            let any = SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), *number);
            let same = port.tcp_claims.hosts.len() == port.all_claims.hosts.len();
            port.all_claims.prepare(services, chains, any);
            if same {
                port.tcp_claims.ready.clone_from(&port.all_claims.ready);
            } else {
                port.tcp_claims.prepare(services, chains, any);
            }
        }
        tables
    }

    /// Adds a service: its own chain, or those of the rules in place of it.
    fn add(&mut self, id: u32, service: &Service) {
        let port = self.ports.entry(service.port).or_default();
        port.add(id, service);
        for rule in service.chain_numbers() {
            // Memory ends long before 2^32 chains.
            let Ok(number) = u32::try_from(self.chains.len()) else { break };
            self.chains.push((id, rule));
            port.add_chain(number, service, rule);
            port.add_claim(number, service, rule);
        }
    }

    /// The verdict of a chain.
    fn relay(
        &self,
        rules: &Inner,
        dst: SocketAddr,
        name: Option<&HostName>,
        number: u32,
    ) -> Option<Decision> {
        let (id, rule) = self.chains.get(number as usize)?;
        Some(rules.service(*id).relay(*rule, &asked(dst, name)))
    }

    /// What a chain's service is.
    fn group(&self, rules: &Inner, number: u32) -> Option<Group> {
        self.chains.get(number as usize).map(|(id, _)| rules.service(*id).group)
    }

    /// How well the address condition of a chain holds, if it does.
    fn rank(&self, rules: &Inner, dst: SocketAddr, number: u32) -> Option<Rank> {
        let (id, rule) = self.chains.get(number as usize)?;
        let service = rules.service(*id);
        let networks = match rule.and_then(|rule| service.chains.get(rule as usize)) {
            Some(rule) if !rule.subnets.is_empty() => &rule.subnets,
            _ => &*service.cluster.addresses,
        };
        if networks.is_empty() { Some(None) } else { longest(networks, dst.ip()).map(Some) }
    }

    pub(super) fn by_address(&self, rules: &Inner, dst: SocketAddr) -> ByAddress {
        let port = self.ports.get(&dst.port());
        let listed = port.is_some_and(|port| port.listed.contains(dst.ip()));
        if closed_special(rules, dst) && !listed {
            return ByAddress::Decided(refuse(Block::Reset, Reason::SpecialAddress));
        }
        if let Some(port) = port
            && let Some((rank, number)) = port.tcp.find(dst.ip())
            && !port.may_outrank(rank, dst.ip())
            && let Some(decision) = self.relay(rules, dst, None, *number)
        {
            return ByAddress::Decided(decision);
        }
        // MESH-21: nothing that a client says changes the verdict on what nobody claims, so the
        // bytes are only noticed in passing and a server may speak first.
        ByAddress::Inspect { unless_client_speaks: self.silent(port, rules, dst) }
    }

    pub(super) fn by_hello(&self, rules: &Inner, dst: SocketAddr, hello: &Hello) -> Decision {
        let port = self.ports.get(&dst.port());
        match hello {
            Hello::Tls(hello) => self.tls(port, rules, dst, hello),
            Hello::Http1 | Hello::Http2 => self.http(port, rules, dst),
            Hello::Opaque => {
                let named = port.is_some_and(|port| !port.tls.is_empty() || !port.http.is_empty());
                let reason = match named {
                    true => Reason::WrongProtocol,
                    false => rules.unknown_reason(dst, None),
                };
                let otherwise = unknown(rules, dst, None, Block::Reset, reason);
                self.nameless(port, rules, dst, otherwise)
            }
            Hello::Silent | Hello::Closed => self.silent(port, rules, dst),
            // Where names decide, bytes that hide the name are refused. On a port that no entry
            // with names uses, they are bytes as any.
            Hello::Malformed(_) if port.is_none_or(Port::is_nameless) => {
                let otherwise = unknown(rules, dst, None, Block::Close, Reason::Malformed);
                self.nameless(port, rules, dst, otherwise)
            }
            Hello::Malformed(_) => refuse(Block::Close, Reason::Malformed),
        }
    }

    /// The service that a request belongs to, or why none.
    pub(super) fn by_request(
        &self,
        rules: &Inner,
        dst: SocketAddr,
        host: &Host,
    ) -> Result<u32, Reason> {
        let mut candidates = Vec::new();
        match (self.ports.get(&dst.port()), host) {
            (Some(port), Host::Name(name)) => candidates.extend(port.http.matches(name)),
            (Some(port), Host::Ip(ip)) => candidates.extend(port.literals.get(ip)),
            (None, _) => {}
        }
        let accepted = candidates.iter().filter(|id| accepts_request(rules.service(**id), dst));
        // HTTP services have no address condition (HTTP-3); sniffed ones do (HTTP-9).
        let rank = |id: &u32| match rules.service(*id) {
            service if service.group == Group::Sniffed => {
                longest(&service.cluster.addresses, dst.ip())
            }
            _ => None,
        };
        if let Some((_, id)) = best(accepted.map(|id| (rank(id), *id))) {
            return Ok(id);
        }
        Err(if closed_special(rules, dst) {
            Reason::SpecialAddress
        } else if candidates.is_empty() {
            rules.unknown_reason(dst, host.name())
        } else {
            Reason::AddressNotVerified
        })
    }

    /// A ClientHello: by its name, among all chains whose address condition holds (GAP-15, T-27).
    fn tls(
        &self,
        port: Option<&Port>,
        rules: &Inner,
        dst: SocketAddr,
        hello: &ClientHello,
    ) -> Decision {
        let sni = hello.sni.as_ref();
        let claims = port.map(|port| &port.tcp_claims);
        let candidates =
            || sni.zip(port).into_iter().flat_map(|(name, port)| port.tls.matches(name));
        let named =
            candidates().filter_map(|number| Some((self.rank(rules, dst, number)?, (number, sni))));
        // Any bytes to the address of a TCP service are its own, where no name is more specific.
        let owner = port.and_then(|port| port.tcp.find(dst.ip()));
        let owner = owner.map(|(rank, number)| (rank, (*number, None)));
        if let Some((_, (number, name))) = best(named.chain(owner))
            && let Some(decision) = self.relay(rules, dst, name, number)
        {
            let (id, _) = self.chains[number as usize];
            return match rules.service(id).forbids(hello) {
                true => refuse(Block::Close, Reason::HiddenName),
                false => decision,
            };
        }
        let Some(name) = sni else {
            let otherwise = unknown(rules, dst, None, Block::Close, Reason::NoServerName);
            return self.by_resolution(rules, dst, claims, otherwise);
        };
        let reason = if candidates().next().is_some() {
            Reason::AddressNotVerified
        } else {
            rules.unknown_reason(dst, Some(name))
        };
        let otherwise = unknown(rules, dst, Some(name), Block::Close, reason);
        self.by_resolution(rules, dst, claims, otherwise)
    }

    /// No bytes, or too few to tell: what takes any bytes passes, so that its server may speak
    /// first. Where a name could still refuse, silence is refused at the time-out, or a client
    /// would say the name afterwards (T-28).
    fn silent(&self, port: Option<&Port>, rules: &Inner, dst: SocketAddr) -> Decision {
        let otherwise = unknown(rules, dst, None, Block::Close, Reason::SniffTimeout);
        let (Some(closed), Action::Block(_)) = (port, &otherwise.action) else {
            return self.nameless(port, rules, dst, otherwise);
        };
        match closed.opaque.find(dst.ip()) {
            Some((_, number)) if self.group(rules, *number) != Some(Group::Tcp) => otherwise,
            Some((_, number)) => self.relay(rules, dst, None, *number).unwrap_or(otherwise),
            None => self.by_resolution(rules, dst, Some(&closed.tcp_claims), otherwise),
        }
    }

    /// Bytes without a name: by address only.
    fn nameless(
        &self,
        port: Option<&Port>,
        rules: &Inner,
        dst: SocketAddr,
        otherwise: Decision,
    ) -> Decision {
        let Some(port) = port else { return otherwise };
        let owner = port.opaque.find(dst.ip());
        if let Some(decision) = owner.and_then(|(_, n)| self.relay(rules, dst, None, *n)) {
            return decision;
        }
        self.by_resolution(rules, dst, Some(&port.all_claims), otherwise)
    }

    /// Plaintext HTTP is judged request by request on every port, unless the port is for opaque
    /// bytes, or the address is more specifically.
    fn http(&self, port: Option<&Port>, rules: &Inner, dst: SocketAddr) -> Decision {
        let Some(port) = port else { return judge_requests() };
        let owner = port.opaque.find(dst.ip()).filter(|(rank, number)| {
            self.group(rules, **number) == Some(Group::Tcp)
                && (rank.is_some() || port.http.is_empty())
        });
        if let Some(decision) = owner.and_then(|(_, n)| self.relay(rules, dst, None, *n)) {
            return decision;
        }
        let claims = port.http.is_empty().then_some(&port.tcp_claims);
        self.by_resolution(rules, dst, claims, judge_requests())
    }

    /// A verdict that hangs on what these hosts resolve to, if there are any.
    fn by_resolution(
        &self,
        rules: &Inner,
        dst: SocketAddr,
        claims: Option<&Claims>,
        otherwise: Decision,
    ) -> Decision {
        let Some(claims) = claims.filter(|claims| !claims.hosts.is_empty()) else {
            return otherwise;
        };
        let claims = match &claims.ready {
            Some(ready) => Arc::clone(ready),
            None => claims.made(&rules.services, &self.chains, dst),
        };
        let hanging = ByResolution { claims, otherwise: otherwise.clone() };
        Decision { action: Action::ByResolution(Box::new(hanging)), ..otherwise }
    }
}

/// The candidate that claims the address most specifically; the first among equals.
fn best<T>(candidates: impl Iterator<Item = (Rank, T)>) -> Option<(Rank, T)> {
    candidates.reduce(|best, next| if next.0 > best.0 { next } else { best })
}

/// What upstreams depend on, in this profile.
fn asked(dst: SocketAddr, name: Option<&HostName>) -> Asked<'_> {
    Asked { dst, name, profile: Enforcement::Strict }
}

/// The mode's answer for a connection, given how and why it would be refused.
fn unknown(
    rules: &Inner,
    dst: SocketAddr,
    name: Option<&HostName>,
    block: Block,
    reason: Reason,
) -> Decision {
    if closed_special(rules, dst) {
        return refuse(block, Reason::SpecialAddress);
    }
    if rules.passes_unknown(dst) {
        rules.pass_connection(dst, name)
    } else {
        rules.refuse(block, reason)
    }
}

/// T-13: special addresses need an entry that lists them; in ALLOW_ANY that is asked for metadata
/// services only. What dials a gateway dials the gateway.
fn closed_special(rules: &Inner, dst: SocketAddr) -> bool {
    if rules.gateway.is_some() {
        return false;
    }
    match rules.outbound {
        Outbound::AllowAny | Outbound::AllowAnyDynamicDns => is_metadata(dst.ip()),
        Outbound::RegistryOnly => is_special(dst.ip()),
    }
}

/// SE-2: Host decides for HTTP services at any dialled address, except where the dialled address is
/// also where the request goes.
fn accepts_request(service: &Service, dst: SocketAddr) -> bool {
    match (service.group, service.cluster.target()) {
        (Group::Http, Target::Fixed(_) | Target::Concrete { .. }) => true,
        _ => service.holds(dst.ip()),
    }
}
