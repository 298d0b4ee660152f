//! One port of the strict profile: whom it finds by name, by Host, and by address.

use std::collections::HashMap;
use std::net::IpAddr;

use ipnet::IpNet;

use super::claims::Claims;
use crate::decide::net::{Prefixes, single};
use crate::decide::pattern::HostIndex;
use crate::decide::{Group, Place, Service, Target, Upstream};

/// What the registry says of one port.
#[derive(Debug, Default)]
pub(super) struct Port {
    /// Chains of TLS and sniffed services, by SNI.
    pub(super) tls: HostIndex,
    /// HTTP and sniffed services, by Host.
    pub(super) http: HostIndex,
    /// Where chains of TLS and sniffed services look at the bytes.
    looks: Addresses<()>,
    /// Chains of TCP services by address: any bytes to there.
    pub(super) tcp: Addresses<u32>,
    /// The same and chains of sniffed services: bytes that show no name.
    pub(super) opaque: Addresses<u32>,
    /// Every network that some service lists (T-13).
    pub(super) listed: Prefixes<()>,
    /// Services by a literal Host (HTTP-7).
    pub(super) literals: HashMap<IpAddr, u32>,
    /// Address-less TCP services: theirs is what their hosts resolve to (GAP-1).
    pub(super) tcp_claims: Claims,
    /// The same, and address-less sniffed ones.
    pub(super) all_claims: Claims,
}

/// How specifically a candidate claims the dialled address: with a prefix of this length, or (`None`,
/// the least) without an address condition.
pub(super) type Rank = Option<u8>;

/// What is found by the dialled address.
#[derive(Debug)]
pub(super) struct Addresses<T> {
    /// By the `addresses` of entries, or the subnets of rules.
    networks: Prefixes<T>,
    /// By the addresses of an address-less entry's endpoints: the operator's own word (R3), but not a
    /// condition that ranks it above others (LIS-14).
    endpoints: HashMap<IpAddr, T>,
    /// At any address.
    anywhere: Option<T>,
}

impl Port {
    pub(super) fn add(&mut self, id: u32, service: &Service) {
        for network in service.cluster.addresses.iter() {
            self.listed.entry(*network, || ());
            if service.group == Group::Http
                && let Some(ip) = single(network)
            {
                self.literals.entry(ip).or_insert(id);
            }
        }
        if matches!(service.group, Group::Http | Group::Sniffed) {
            for name in service.names() {
                self.http.insert(name, id);
            }
        }
    }

    pub(super) fn add_chain(&mut self, number: u32, service: &Service, rule: Option<u32>) {
        let rule = rule.and_then(|rule| service.chains.get(rule as usize));
        let subnets = rule.map_or(&[][..], |rule| &rule.subnets);
        let named = rule.is_some_and(|rule| !rule.sni.is_empty());
        if named || matches!(service.group, Group::Tls | Group::Sniffed) {
            self.looks.add((), service, subnets);
        }
        match rule {
            Some(rule) if !rule.sni.is_empty() => {
                for host in &rule.sni {
                    self.tls.insert(host, number);
                }
                return;
            }
            // A rule for connections without a name concerns a sniffed service's names as well.
            _ if matches!(service.group, Group::Tls | Group::Sniffed) => {
                self.tls.insert(service.host(), number);
            }
            _ => {}
        }
        if matches!(service.group, Group::Tcp | Group::Sniffed) {
            self.opaque.add(number, service, subnets);
        }
        if service.group == Group::Tcp {
            self.tcp.add(number, service, subnets);
        }
    }

    /// GAP-1: the first chain of an address-less service of opaque bytes that any address may take.
    pub(super) fn add_claim(&mut self, number: u32, service: &Service, rule: Option<u32>) {
        let rule = rule.and_then(|rule| service.chains.get(rule as usize));
        let unconditional = rule.is_none_or(|rule| rule.subnets.is_empty());
        let Some(host) = service.host().exact() else { return };
        if !unconditional || !service.cluster.addresses.is_empty() {
            return;
        }
        match service.group {
            Group::Tcp => {
                self.tcp_claims.add(host, number);
                self.all_claims.add(host, number);
            }
            Group::Sniffed => self.all_claims.add(host, number),
            Group::Http | Group::Tls => {}
        }
    }

    /// Whether some service that looks at the bytes may come before a TCP service of this rank.
    pub(super) fn may_outrank(&self, rank: Rank, ip: IpAddr) -> bool {
        let looks = self.looks.networks.best(ip).map(|(length, ())| length);
        match rank {
            Some(rank) => looks >= Some(rank),
            None => looks.is_some() || self.looks.anywhere.is_some() || !self.http.is_empty(),
        }
    }

    pub(super) fn is_nameless(&self) -> bool {
        self.tls.is_empty() && self.http.is_empty()
    }
}

impl<T> Default for Addresses<T> {
    fn default() -> Self {
        Self { networks: Prefixes::default(), endpoints: HashMap::new(), anywhere: None }
    }
}

impl<T: Copy> Addresses<T> {
    /// Adds what a service has at its own addresses, or at `subnets` instead if there are any.
    /// What is taken stays taken.
    fn add(&mut self, value: T, service: &Service, subnets: &[IpNet]) {
        let addresses = &service.cluster.addresses;
        let networks = if subnets.is_empty() { &**addresses } else { subnets };
        for network in networks {
            self.networks.entry(*network, || value);
        }
        if !subnets.is_empty() || !addresses.is_empty() {
            return;
        }
        self.anywhere.get_or_insert(value);
        let mut own = |ip| _ = self.endpoints.entry(ip).or_insert(value);
        match &service.cluster.target {
            Target::Fixed(Upstream::Static(endpoints)) => {
                endpoints.iter().for_each(|endpoint| own(endpoint.target.ip()));
            }
            Target::Fixed(Upstream::Dns { endpoints, .. }) => {
                for endpoint in endpoints.iter() {
                    if let (Place::Ip(ip), _) = &endpoint.target {
                        own(*ip);
                    }
                }
            }
            _ => {}
        }
    }

    /// What is given for this address.
    pub(super) fn find(&self, ip: IpAddr) -> Option<(Rank, &T)> {
        let network = self.networks.best(ip).map(|(length, value)| (Some(length), value));
        network.or_else(|| self.endpoints.get(&ip).map(|value| (None, value)))
    }
}
