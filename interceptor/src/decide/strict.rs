//! The strict profile: the flow alone decides (GAP-20), a name only with an address behind it (R3),
//! all candidates count (GAP-15), and refusals say why.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;

use ipnet::IpNet;

use super::host::HostName;
use super::net::{Prefixes, is_metadata, is_special};
use super::pattern::HostIndex;
use super::request::Host;
use super::{
    Action, Block, ByAddress, ByResolution, Claim, Decision, Group, Inner, Reason, Service, Target,
    Upstream, block_all, judge_requests, refuse,
};
use crate::policy::{Enforcement, Outbound};
use crate::sniff::Hello;

#[derive(Debug, Default)]
pub(super) struct Tables {
    ports: HashMap<u16, Port>,
}

/// What the registry says of one port.
#[derive(Debug, Default)]
struct Port {
    /// TLS and sniffed services, by SNI.
    tls: HostIndex,
    /// HTTP and sniffed services, by Host.
    http: HostIndex,
    /// TCP services by address: any bytes to there.
    tcp: Prefixes<u32>,
    /// Sniffed services by address: bytes that show no name.
    sniffed: Prefixes<u32>,
    /// Every network that some service lists (T-13).
    listed: Prefixes<()>,
    /// Services by a literal Host (HTTP-7).
    literals: HashMap<std::net::IpAddr, u32>,
    /// Address-less TCP services: theirs is what their hosts resolve to (GAP-1).
    tcp_claims: Option<Arc<[Claim]>>,
    /// The same, and address-less sniffed ones.
    all_claims: Option<Arc<[Claim]>>,
}

impl Tables {
    pub(super) fn new(services: &[Service]) -> Self {
        let mut tables = Self::default();
        let mut claims: HashMap<u16, Vec<(Group, Claim)>> = HashMap::new();
        for (id, service) in (0..).zip(services) {
            tables.ports.entry(service.port).or_default().add(id, service);
            if matches!(service.group, Group::Tcp | Group::Sniffed)
                && service.addresses.is_empty()
                && let Some(host) = service.host.exact()
            {
                let upstream = service.upstream(service.port, Some(host));
                let claim = Claim { host: host.clone(), decision: service.relay(upstream) };
                claims.entry(service.port).or_default().push((service.group, claim));
            }
        }
        for (number, claims) in claims {
            let port = tables.ports.entry(number).or_default();
            let tcp = claims.iter().filter(|(group, _)| *group == Group::Tcp);
            port.tcp_claims = non_empty(tcp.map(|(_, claim)| claim.clone()).collect());
            port.all_claims = non_empty(claims.into_iter().map(|(_, claim)| claim).collect());
        }
        tables
    }

    pub(super) fn by_address(&self, rules: &Inner, dst: SocketAddr) -> ByAddress {
        let port = self.ports.get(&dst.port());
        let listed = port.is_some_and(|port| port.listed.contains(dst.ip()));
        if closed_special(rules, dst) && !listed {
            return ByAddress::Decided(refuse(Block::Reset, Reason::SpecialAddress));
        }
        if let Some(id) = port.and_then(|port| port.tcp.longest(dst.ip())) {
            let service = rules.service(*id);
            return ByAddress::Decided(service.relay(service.verified(dst.port(), None)));
        }
        // MESH-21: nothing that a client says changes the verdict on what nobody claims, so the
        // bytes are only noticed in passing and a server may speak first.
        let silent = unknown(rules, dst, None, Block::Close, Reason::SniffTimeout);
        ByAddress::Inspect { unless_client_speaks: nameless(port, rules, dst, silent) }
    }

    pub(super) fn by_hello(&self, rules: &Inner, dst: SocketAddr, hello: &Hello) -> Decision {
        let port = self.ports.get(&dst.port());
        match hello {
            Hello::Tls(hello) => tls(port, rules, dst, hello.sni.as_ref()),
            Hello::Http1 | Hello::Http2 => http(port),
            Hello::Opaque => {
                let named = port.is_some_and(|port| !port.tls.is_empty() || !port.http.is_empty());
                let reason = if named { Reason::WrongProtocol } else { Reason::NotRegistered };
                let otherwise = unknown(rules, dst, None, Block::Reset, reason);
                nameless(port, rules, dst, otherwise)
            }
            Hello::Silent | Hello::Closed => {
                let otherwise = unknown(rules, dst, None, Block::Close, Reason::SniffTimeout);
                nameless(port, rules, dst, otherwise)
            }
            // Where names decide, bytes that hide the name are refused. On a port that no entry
            // with names uses, ALLOW_ANY passes any bytes, these included.
            Hello::Malformed(_) => match rules.outbound {
                Outbound::AllowAny if port.is_none_or(Port::is_nameless) => {
                    let otherwise = unknown(rules, dst, None, Block::Close, Reason::Malformed);
                    nameless(port, rules, dst, otherwise)
                }
                _ => refuse(Block::Close, Reason::Malformed),
            },
        }
    }

    pub(super) fn by_request(&self, rules: &Inner, dst: SocketAddr, host: &Host) -> Decision {
        let port = self.ports.get(&dst.port());
        let name = match host {
            Host::Name(name) => Some(name),
            Host::Ip(_) => None,
        };
        let mut candidates = Vec::new();
        match (port, host) {
            (Some(port), Host::Name(name)) => candidates.extend(port.http.matches(name)),
            (Some(port), Host::Ip(ip)) => candidates.extend(port.literals.get(ip)),
            (None, _) => {}
        }
        let mut services = candidates.iter().map(|id| rules.service(*id));
        if let Some(service) = services.find(|service| accepts_request(service, dst)) {
            return service.forward(service.verified(dst.port(), name));
        }
        if rules.outbound == Outbound::AllowAny && !closed_special(rules, dst) {
            return rules.pass_request(dst, host);
        }
        let reason = if closed_special(rules, dst) {
            Reason::SpecialAddress
        } else if candidates.is_empty() {
            rules.unknown_reason(dst, name)
        } else {
            Reason::AddressNotVerified
        };
        block_all(Enforcement::Strict, reason)
    }
}

impl Port {
    fn add(&mut self, id: u32, service: &Service) {
        for network in &service.addresses {
            self.listed.entry(*network, || ());
            if service.group == Group::Http
                && let Some(ip) = super::net::single(network)
            {
                self.literals.entry(ip).or_insert(id);
            }
        }
        match service.group {
            Group::Http => self.http.insert(&service.host, id),
            Group::Tls => self.tls.insert(&service.host, id),
            Group::Tcp => {
                for network in own_networks(service) {
                    self.tcp.entry(network, || id);
                }
            }
            Group::Sniffed => {
                self.tls.insert(&service.host, id);
                self.http.insert(&service.host, id);
                for network in own_networks(service) {
                    self.sniffed.entry(network, || id);
                }
            }
        }
    }

    fn is_nameless(&self) -> bool {
        self.tls.is_empty() && self.http.is_empty()
    }
}

/// The networks that are a service's by the operator's word: its addresses, else the addresses of
/// its endpoints (R3).
fn own_networks(service: &Service) -> Vec<IpNet> {
    match &service.target {
        Target::Fixed(Upstream::Static(endpoints)) if service.addresses.is_empty() => {
            endpoints.iter().map(|endpoint| IpNet::from(endpoint.target.ip())).collect()
        }
        _ => service.addresses.clone(),
    }
}

/// A ClientHello: by its name, among all services whose address condition holds (GAP-15, T-27).
fn tls(port: Option<&Port>, rules: &Inner, dst: SocketAddr, sni: Option<&HostName>) -> Decision {
    let claims = port.and_then(|port| port.tcp_claims.as_ref());
    let Some(name) = sni else {
        let otherwise = unknown(rules, dst, None, Block::Close, Reason::NoServerName);
        return by_resolution(claims, otherwise);
    };
    let candidates = || port.into_iter().flat_map(|port| port.tls.matches(name));
    let mut services = candidates().map(|id| rules.service(id));
    if let Some(service) = services.find(|service| service.holds(dst.ip())) {
        return service.relay(service.verified(dst.port(), Some(name)));
    }
    let reason = if candidates().next().is_some() {
        Reason::AddressNotVerified
    } else {
        rules.unknown_reason(dst, Some(name))
    };
    by_resolution(claims, unknown(rules, dst, Some(name), Block::Close, reason))
}

/// Plaintext HTTP is judged request by request on every port, unless the port is for opaque bytes
/// and the address belongs to one of its hosts.
fn http(port: Option<&Port>) -> Decision {
    let claims = port.filter(|port| port.http.is_empty()).and_then(|port| port.tcp_claims.as_ref());
    by_resolution(claims, judge_requests())
}

/// Bytes without a name, or no bytes: by address only.
fn nameless(port: Option<&Port>, rules: &Inner, dst: SocketAddr, otherwise: Decision) -> Decision {
    let Some(port) = port else { return otherwise };
    if let Some(id) = port.sniffed.longest(dst.ip()) {
        let service = rules.service(*id);
        return service.relay(service.verified(dst.port(), None));
    }
    by_resolution(port.all_claims.as_ref(), otherwise)
}

fn by_resolution(claims: Option<&Arc<[Claim]>>, otherwise: Decision) -> Decision {
    let Some(claims) = claims else { return otherwise };
    let hanging = ByResolution { claims: Arc::clone(claims), otherwise: otherwise.clone() };
    Decision { action: Action::ByResolution(Box::new(hanging)), ..otherwise }
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
    match rules.outbound {
        Outbound::AllowAny => rules.pass_connection(dst, name),
        Outbound::RegistryOnly => refuse(block, reason),
    }
}

/// T-13: special addresses need an entry that lists them; in ALLOW_ANY that is asked for metadata
/// services only.
fn closed_special(rules: &Inner, dst: SocketAddr) -> bool {
    match rules.outbound {
        Outbound::AllowAny => is_metadata(dst.ip()),
        Outbound::RegistryOnly => is_special(dst.ip()),
    }
}

/// SE-2: Host decides for HTTP services at any dialled address, except where the dialled address is
/// also where the request goes.
fn accepts_request(service: &Service, dst: SocketAddr) -> bool {
    match (service.group, &service.target) {
        (Group::Http, Target::Fixed(_) | Target::Concrete { .. }) => true,
        _ => service.holds(dst.ip()),
    }
}

fn non_empty(claims: Vec<Claim>) -> Option<Arc<[Claim]>> {
    (!claims.is_empty()).then(|| claims.into())
}
