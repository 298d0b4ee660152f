//! A policy and its names' addresses to the rows of the kernel's tables.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use interceptor_common::EndpointKey;
use ipnet::IpNet;

use super::book::AddressBook;
use super::survey::{Named, Port, Survey, network_of};
use crate::decide::host::HostName;
use crate::decide::net::is_special;
use crate::decide::pattern::EntryHost;
use crate::decide::tier::{NameTier, Tier, by_destination, by_name};
use crate::decide::{Action, ClusterName, Decision, Flow, Policy, Reason};
use crate::origin::OriginalDst;
use crate::policy::{Enforcement, Snapshot};

/// The rows of `ENDPOINTS`, by port and network. What has no row is the proxy's.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Compiled {
    /// Of the longest network that holds an address, its row counts. Port
    /// [`EndpointKey::ANY_PORT`] is for ports without a row for the address.
    pub rows: BTreeMap<(u16, IpNet), Row>,
}

/// What the kernel does with a destination.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Row {
    /// To the proxy: a hole in a larger network.
    Proxy,
    /// Refused.
    Refused(Reason),
    /// Direct.
    Direct(Label),
    /// Direct after a name of the set.
    Named(Arc<NameSet>),
}

/// Names that may be shown at a destination; `None`: one that may not, in spite of a wildcard around
/// it. What is not in the set may not either.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct NameSet(pub BTreeMap<Pattern, Option<Label>>);

/// A name, or all names below it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Pattern {
    /// The name.
    pub name: HostName,
    /// Those below it, instead of itself (T-22).
    pub below: bool,
}

/// What the log says of a direct flow.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Label {
    /// The cluster.
    pub cluster: Option<Arc<str>>,
    /// The pattern that the shown name fits; `None`: no name had to be shown.
    pub shown: Option<Pattern>,
}

impl Label {
    fn new(decision: &Decision, shown: Option<Pattern>) -> Self {
        let cluster = match &decision.action {
            Action::Relay(to) => to.first().and_then(|to| to.cluster.clone()),
            _ => None,
        };
        let cluster = cluster.or_else(|| decision.cluster.clone());
        Self { cluster: cluster.map(|ClusterName(name)| name), shown }
    }

    /// Whether several names have this label, so that the name itself is to be kept.
    pub fn keeps_name(&self) -> bool {
        self.shown.as_ref().is_some_and(|pattern| pattern.below)
    }
}

/// Compiles the tables of one workload's policy.
pub fn compile(
    snapshot: &Snapshot,
    namespace: &str,
    survey: &Survey,
    book: &AddressBook,
) -> Compiled {
    let compiler = Compiler {
        policy: &snapshot.policy,
        namespace,
        book,
        istio: snapshot.enforcement == Enforcement::Istio,
    };
    let mut rows = BTreeMap::new();
    for (port, facts) in &survey.ports {
        compiler.port(*port, facts, &mut rows);
    }
    compiler.any_port(survey, &mut rows);
    Compiled { rows }
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

/// What a name is worth at a place.
enum Shown {
    Direct(Label),
    Refused,
    Proxy,
}

impl Compiler<'_> {
    fn flow(&self, ip: IpAddr, port: u16) -> Flow<'_> {
        Flow { dst: OriginalDst::new(SocketAddr::new(ip, port)), namespace: self.namespace }
    }

    /// The rows of one port: one for each network that a verdict may depend on, judged at an address
    /// of it that lies in no narrower one.
    fn port(&self, port: u16, facts: &Port, rows: &mut BTreeMap<(u16, IpNet), Row>) {
        let mut places: BTreeMap<IpNet, BTreeSet<Candidate>> =
            facts.networks.iter().map(|network| (*network, BTreeSet::new())).collect();
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
            if row != Row::Proxy || around().next().is_some() {
                rows.insert((port, *network), row);
            }
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
        match by_destination(self.policy, flow) {
            Tier::Proxy(_) => Row::Proxy,
            Tier::Refused(reason) => Row::Refused(reason),
            Tier::Direct(decision) => Row::Direct(Label::new(&decision, None)),
            Tier::Named => {
                let set = self.names(flow, network, candidates, facts);
                set.map_or(Row::Proxy, |set| Row::Named(Arc::new(set)))
            }
        }
    }

    /// The names that may be shown at a place; `None` if there is none, or if one of them needs the
    /// proxy there: its clients must not meet a refusal.
    fn names(
        &self,
        flow: &Flow<'_>,
        network: IpNet,
        candidates: BTreeSet<&Candidate>,
        facts: &Port,
    ) -> Option<NameSet> {
        let mut set = BTreeMap::new();
        for candidate in candidates {
            match self.name(flow, network, candidate) {
                Shown::Direct(label) => {
                    set.insert(candidate.pattern.clone(), Some(label));
                }
                Shown::Refused => {}
                Shown::Proxy => return None,
            }
        }
        if set.is_empty() {
            return None;
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
                    Shown::Direct(label) => Some(label),
                    Shown::Refused | Shown::Proxy => None,
                };
                set.entry(candidate.pattern).or_insert(label);
            }
        }
        Some(NameSet(set))
    }

    /// What a name is worth at a place.
    fn name(&self, flow: &Flow<'_>, network: IpNet, candidate: &Candidate) -> Shown {
        let Candidate { pattern, sample } = candidate;
        let (decision, host) = match by_name(self.policy, flow, sample) {
            NameTier::Refused => return Shown::Refused,
            NameTier::Proxy(_) => return Shown::Proxy,
            NameTier::Direct(decision, host) => (decision, host),
        };
        if let Some(host) = host {
            // The names below a wildcard have addresses each of its own, and are candidates of
            // their own.
            if pattern.below && host == *sample {
                return Shown::Refused;
            }
            let ip = flow.dst.addr().ip();
            let alone = network.prefix_len() == network.max_prefix_len();
            // T-40: the proxy refuses to dial it.
            let special = !self.istio && is_special(ip);
            if !alone || special || !self.book.has(&host, ip) {
                return Shown::Proxy;
            }
        }
        Shown::Direct(Label::new(&decision, Some(pattern.clone())))
    }

    /// Refusals by address alone, whatever the port.
    fn any_port(&self, survey: &Survey, rows: &mut BTreeMap<(u16, IpNet), Row>) {
        // A port that no entry mentions stands for all of those.
        let Some(port) = (1..=u16::MAX).rev().find(|port| !survey.ports.contains_key(port)) else {
            return;
        };
        for network in special_networks() {
            let flow = self.flow(network.addr(), port);
            if let Tier::Refused(reason) = by_destination(self.policy, &flow) {
                rows.insert((EndpointKey::ANY_PORT, network), Row::Refused(reason));
            }
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

/// Networks in which all addresses are special, or metadata services (T-13).
fn special_networks() -> impl Iterator<Item = IpNet> {
    const NETWORKS: [&str; 8] = [
        "0.0.0.0/8",
        "169.254.0.0/16",
        "169.254.169.254/32",
        "224.0.0.0/4",
        "255.255.255.255/32",
        "fe80::/10",
        "ff00::/8",
        "fd00:ec2::254/128",
    ];
    NETWORKS.iter().filter_map(|network| network.parse().ok())
}
