//! A policy and its names' addresses to the rows of the kernel's tables.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use interceptor_common::EndpointKey;
use ipnet::IpNet;

use super::book::AddressBook;
use super::rows::{Compiled, Label, NameSet, Pattern, Row};
use super::survey::{Named, Port, Survey, network_of};
use crate::decide::host::HostName;
use crate::decide::net::{is_special, special_networks};
use crate::decide::pattern::EntryHost;
use crate::decide::tier::{NameTier, Tier, WhyProxy, by_destination, by_name};
use crate::decide::{CAPTURE_PORTS, Flow, Policy};
use crate::origin::OriginalDst;
use crate::policy::{Enforcement, Snapshot};

/// Compiles the tables of one workload's policy. `spoken`: destinations at which a client spoke, and
/// not HTTP.
pub fn compile(
    snapshot: &Snapshot,
    namespace: &str,
    survey: &Survey,
    book: &AddressBook,
    spoken: impl IntoIterator<Item = SocketAddr>,
) -> Compiled {
    let compiler = Compiler::new(snapshot, namespace, book);
    let mut compiled = Compiled::default();
    for (port, facts) in &survey.ports {
        compiler.port(*port, facts, &mut compiled);
    }
    compiler.any_port(survey, &mut compiled);
    for dst in spoken {
        if let Some(row) = compiler.spoken(dst) {
            compiled.rows.insert((dst.port(), network_of(dst.ip())), row);
        }
    }
    compiled
}

/// The row of a destination at which a client spoke, and not HTTP; `None`: none of its own.
pub fn spoken(
    snapshot: &Snapshot,
    namespace: &str,
    book: &AddressBook,
    dst: SocketAddr,
) -> Option<Row> {
    Compiler::new(snapshot, namespace, book).spoken(dst)
}

struct Compiler<'a> {
    policy: &'a Policy,
    namespace: &'a str,
    book: &'a AddressBook,
    istio: bool,
}

/// A name to ask for at a place.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Candidate {
    pattern: Pattern,
    /// A name that fits the pattern and no narrower one.
    sample: HostName,
}

/// Whether a name has an address by the newest answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Age {
    Fresh,
    Retiring,
}

/// What a name is worth at a place.
enum Shown {
    Direct(Label, Age),
    Refused,
    Proxy(WhyProxy),
}

impl<'a> Compiler<'a> {
    fn new(snapshot: &'a Snapshot, namespace: &'a str, book: &'a AddressBook) -> Self {
        let istio = snapshot.enforcement == Enforcement::Istio;
        Self { policy: &snapshot.policy, namespace, book, istio }
    }

    fn spoken(&self, dst: SocketAddr) -> Option<Row> {
        match self.tier(&self.flow(dst.ip(), dst.port())) {
            Tier::Noticed(decision) => Some(Row::Noticed(Label::new(&decision, None))),
            _ => None,
        }
    }

    fn flow(&self, ip: IpAddr, port: u16) -> Flow<'_> {
        Flow { dst: OriginalDst::new(SocketAddr::new(ip, port)), namespace: self.namespace }
    }

    /// The rows of one port: one for each network that a verdict may depend on, judged at an address
    /// of it that lies in no narrower one.
    fn port(&self, port: u16, facts: &Port, compiled: &mut Compiled) {
        let claimed = facts.claims.iter().flat_map(|host| self.book.addresses(host));
        let networks = facts.networks.iter().copied().chain(claimed.map(network_of));
        let mut places: BTreeMap<IpNet, BTreeSet<Candidate>> =
            networks.map(|network| (network, BTreeSet::new())).collect();
        let mut anywhere = BTreeSet::new();
        for named in &facts.names {
            self.place(named, &mut places, &mut anywhere);
        }
        let networks: Vec<IpNet> = places.keys().copied().collect();
        let wide: Vec<IpNet> =
            networks.iter().filter(|n| n.prefix_len() < n.max_prefix_len()).copied().collect();
        for (network, own) in &places {
            let around = || wide.iter().filter(|w| *w != network && w.contains(network));
            let Some(ip) = address_outside(*network, &networks) else { continue };
            let inherited = around().filter_map(|network| places.get(network)).flatten();
            let candidates = own.iter().chain(inherited).chain(&anywhere).collect();
            let row = self.row(&self.flow(ip, port), *network, candidates, facts);
            match row {
                Row::Proxy(why) if around().next().is_none() => {
                    compiled.without.networks.insert((port, *network), why);
                }
                row => drop(compiled.rows.insert((port, *network), row)),
            }
        }
        let why = self.without(port, &networks, &anywhere, facts);
        compiled.without.ports.insert(port, why);
    }

    /// Why addresses in none of a port's networks are the proxy's.
    fn without(
        &self,
        port: u16,
        networks: &[IpNet],
        anywhere: &BTreeSet<Candidate>,
        facts: &Port,
    ) -> WhyProxy {
        let ip = address_outside(EVERYWHERE, networks);
        let Some(ip) = ip else { return WhyProxy::Unresolved };
        match self.row(&self.flow(ip, port), EVERYWHERE, anywhere.iter().collect(), facts) {
            Row::Proxy(why) => why,
            Row::Noticed(_) => WhyProxy::Unheard,
            _ => WhyProxy::Unresolved,
        }
    }

    /// Where a name may be shown.
    fn place(
        &self,
        named: &Named,
        places: &mut BTreeMap<IpNet, BTreeSet<Candidate>>,
        anywhere: &mut BTreeSet<Candidate>,
    ) {
        let mut add = |network: IpNet, candidate: &Candidate| {
            places.entry(network).or_default().insert(candidate.clone());
        };
        if let Some(candidate) = Candidate::of(&named.host) {
            let resolved = named.resolved.iter().flat_map(|host| self.book.addresses(host));
            for network in named.networks.iter().copied().chain(resolved.map(network_of)) {
                add(network, &candidate);
            }
            // In strict the dialled address must be one of the name's own (R3).
            if named.anywhere && self.istio {
                anywhere.insert(candidate);
            }
        }
        // Concrete names below a wildcard, as far as the daemon has resolved them.
        if named.host.exact().is_none() {
            for name in self.book.names().filter(|name| named.host.matches(name)) {
                let pattern = Pattern { name: name.clone(), below: false };
                let candidate = Candidate { pattern, sample: name.clone() };
                for ip in self.book.addresses(name) {
                    add(network_of(ip), &candidate);
                }
            }
        }
    }

    fn row(
        &self,
        flow: &Flow<'_>,
        network: IpNet,
        candidates: BTreeSet<&Candidate>,
        facts: &Port,
    ) -> Row {
        match self.tier(flow) {
            Tier::Proxy(why) => Row::Proxy(why),
            Tier::Refused(reason) => Row::Refused(reason),
            Tier::Direct(_, Some(host))
                if self.is_own(&host, flow, network) != Some(Age::Fresh) =>
            {
                Row::Proxy(WhyProxy::Unresolved)
            }
            Tier::Direct(decision, _) => Row::Direct(Label::new(&decision, None)),
            Tier::Noticed(decision) => Row::Noticed(Label::new(&decision, None)),
            Tier::Named => match self.names(flow, network, candidates, facts) {
                Ok((set, true)) => Row::Named(Arc::new(set)),
                Ok((set, false)) => Row::Retiring(Arc::new(set)),
                Err(why) => Row::Proxy(why),
            },
        }
    }

    fn tier(&self, flow: &Flow<'_>) -> Tier {
        let ip = flow.dst.addr().ip();
        let owns = |host: &HostName| self.book.knows(host).then(|| self.book.has(host, ip));
        by_destination(self.policy, flow, &owns)
    }

    /// Whether the dialled address is all of the network, and one that a connection to `host` may
    /// go to (R3).
    fn is_own(&self, host: &HostName, flow: &Flow<'_>, network: IpNet) -> Option<Age> {
        let ip = flow.dst.addr().ip();
        let alone = network.prefix_len() == network.max_prefix_len();
        // T-40: the proxy refuses to dial it.
        let special = !self.istio && is_special(ip);
        if !alone || special || !self.book.had(host, ip) {
            return None;
        }
        Some(if self.book.has(host, ip) { Age::Fresh } else { Age::Retiring })
    }

    /// The names that may be shown at a place; none if there is no name, or if one of them needs the
    /// proxy there: its clients must not meet a refusal. True: new connections may go there.
    fn names(
        &self,
        flow: &Flow<'_>,
        network: IpNet,
        candidates: BTreeSet<&Candidate>,
        facts: &Port,
    ) -> Result<(NameSet, bool), WhyProxy> {
        let (mut set, mut fresh) = (BTreeMap::new(), false);
        for candidate in candidates {
            match self.name(flow, network, candidate) {
                Shown::Direct(label, age) => {
                    fresh |= age == Age::Fresh;
                    set.insert(candidate.pattern.clone(), Some(label));
                }
                Shown::Refused => {}
                Shown::Proxy(why) => return Err(why),
            }
        }
        if set.is_empty() {
            return Err(facts.why_no_name());
        }
        let wide: Vec<EntryHost> = set
            .keys()
            .filter(|pattern| pattern.below)
            .map(|pattern| EntryHost::Wildcard(pattern.name.clone()))
            .collect();
        if !wide.is_empty() {
            let narrower =
                facts.names.iter().filter(|named| wide.iter().any(|w| w.covers(&named.host)));
            for candidate in narrower.filter_map(|named| Candidate::of(&named.host)) {
                // Not one of this place's own names: a wildcard over it must not stand for it.
                let label = match self.name(flow, network, &candidate) {
                    Shown::Direct(label, _) => Some(label),
                    Shown::Refused | Shown::Proxy(_) => None,
                };
                set.entry(candidate.pattern).or_insert(label);
            }
        }
        Ok((NameSet(set), fresh))
    }

    /// What a name is worth at a place.
    fn name(&self, flow: &Flow<'_>, network: IpNet, candidate: &Candidate) -> Shown {
        let Candidate { pattern, sample } = candidate;
        // One name stands for all below it.
        if pattern.below && self.policy.may_proxy_below(&pattern.name) {
            return Shown::Proxy(WhyProxy::EgressProxy);
        }
        let (decision, host) = match by_name(self.policy, flow, sample) {
            NameTier::Refused => return Shown::Refused,
            NameTier::Proxy(why) => return Shown::Proxy(why),
            NameTier::Direct(decision, host) => (decision, host),
        };
        let mut age = Age::Fresh;
        if let Some(host) = host {
            // The names below a wildcard have addresses each of its own, and are candidates of
            // their own.
            if pattern.below && host == *sample {
                return Shown::Refused;
            }
            match self.is_own(&host, flow, network) {
                Some(own) => age = own,
                None => return Shown::Proxy(WhyProxy::Unresolved),
            }
        }
        Shown::Direct(Label::new(&decision, Some(pattern.clone())), age)
    }

    /// What holds on every port that no entry mentions.
    fn any_port(&self, survey: &Survey, compiled: &mut Compiled) {
        // One that stands for all of those.
        let Some(port) = (1..=u16::MAX).rev().find(|port| !survey.ports.contains_key(port)) else {
            return;
        };
        let without = self.without(port, &[], &BTreeSet::new(), &Port::default());
        compiled.without.elsewhere = without;
        for network in special_networks() {
            if let Tier::Refused(reason) = self.tier(&self.flow(network.addr(), port)) {
                compiled.rows.insert((EndpointKey::ANY_PORT, network), Row::Refused(reason));
            }
        }
        let unknown = address_outside(EVERYWHERE, &[]).map(|ip| self.tier(&self.flow(ip, port)));
        match unknown {
            // No bytes are read. Ports with rows are asked before this one, so they need a row for
            // every address.
            Some(Tier::Direct(decision, None)) => {
                let mentioned = survey.ports.keys().copied();
                for port in mentioned.chain(CAPTURE_PORTS) {
                    self.every_address(port, survey, compiled);
                }
                for network in WHOLE {
                    let row = Row::Direct(Label::new(&decision, None));
                    compiled.rows.insert((EndpointKey::ANY_PORT, network), row);
                }
            }
            // Elsewhere it may be HTTP, which the proxy logs request by request.
            Some(Tier::Noticed(_)) => {
                let there =
                    address_outside(EVERYWHERE, &[]).map(|ip| self.tier(&self.flow(ip, HTTPS)));
                if matches!(there, Some(Tier::Noticed(_))) {
                    self.every_address(HTTPS, survey, compiled);
                }
            }
            _ => {}
        }
    }

    /// Gives a port rows for all addresses that have none.
    fn every_address(&self, port: u16, survey: &Survey, compiled: &mut Compiled) {
        let none = Port::default();
        let facts = survey.ports.get(&port).unwrap_or(&none);
        // What had no wide row around it and so needed none of its own, does now.
        let own: Vec<_> =
            compiled.without.networks.iter().filter(|((p, _), _)| *p == port).collect();
        let own: Vec<_> = own.into_iter().map(|(place, why)| (*place, Row::Proxy(*why))).collect();
        for (place, row) in own {
            compiled.rows.entry(place).or_insert(row);
        }
        let rows = compiled.rows.keys().filter(|(p, _)| *p == port);
        let wide: Vec<IpNet> = special_networks().chain(WHOLE).collect();
        let mut networks: Vec<IpNet> = rows.map(|(_, network)| *network).collect();
        networks.extend(&wide);
        networks.sort();
        networks.dedup();
        for network in wide {
            let Some(ip) = address_outside(network, &networks) else { continue };
            let row = self.row(&self.flow(ip, port), network, BTreeSet::new(), facts);
            compiled.rows.entry((port, network)).or_insert(row);
        }
    }
}

impl Candidate {
    /// `None` for a pattern that no SNI is matched with (HTTP-6), or without room for a sample.
    fn of(host: &EntryHost) -> Option<Self> {
        let (name, below) = match host {
            EntryHost::Exact(name) => (name, false),
            EntryHost::Wildcard(name) => (name, true),
            EntryHost::Partial(_) => return None,
        };
        let sample = match below {
            false => name.clone(),
            true => HostName::parse(&format!("interceptor-probe.{name}")).ok()?,
        };
        Some(Self { pattern: Pattern { name: name.clone(), below }, sample })
    }
}

/// An address of `network` that is in no narrower one of `networks`, which are sorted; `None` if they
/// fill it.
fn address_outside(network: IpNet, networks: &[IpNet]) -> Option<IpAddr> {
    let mut ip = network.network();
    // What lies inside comes behind it, sorted by address: the next free one is behind the last that
    // holds it.
    let from = networks.partition_point(|other| *other <= network);
    let inside = networks[from..].iter().take_while(|other| network.contains(*other));
    for taken in inside {
        if taken.contains(&ip) {
            ip = after(taken.broadcast())?;
            if !network.contains(&ip) {
                return None;
            }
        }
    }
    Some(ip)
}

fn after(ip: IpAddr) -> Option<IpAddr> {
    match ip {
        IpAddr::V4(ip) => ip.to_bits().checked_add(1).map(|bits| Ipv4Addr::from_bits(bits).into()),
        IpAddr::V6(ip) => ip.to_bits().checked_add(1).map(|bits| Ipv6Addr::from_bits(bits).into()),
    }
}

/// Public addresses, of which most are in no entry: what holds at one without a network of its own.
const EVERYWHERE: IpNet = IpNet::new_assert(IpAddr::V4(Ipv4Addr::new(192, 0, 2, 0)), 24);

/// Every address.
const WHOLE: [IpNet; 2] = [
    IpNet::new_assert(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0),
    IpNet::new_assert(IpAddr::V6(Ipv6Addr::UNSPECIFIED), 0),
];

/// Where nobody speaks plain HTTP.
const HTTPS: u16 = 443;
