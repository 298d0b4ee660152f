//! What should become of a flow: `decide`, with the proxy's own reader; and whether the kernel should
//! have handled it.

use std::collections::{BTreeSet, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use interceptor::decide::host::HostName;
use interceptor::decide::route::Destination;
use interceptor::decide::traffic::{LoadBalancer, TrafficPolicy};
use interceptor::decide::{
    self, Action, ByAddress, Decision, Flow, Place, RequestHead, Upstream, by_request,
};
use interceptor::origin::OriginalDst;
use interceptor::policy::{Caller, Snapshot, Sources, load};
use interceptor::sniff::{Hello, Sniffer};
use interceptor::tiers::compile::compile;
use interceptor::tiers::{AddressBook, Compiled, NameSet, Row, Survey};

use super::plan::Mode;

const NAMESPACE: &str = "default";

/// Policy and addresses, as the daemon has them.
pub(crate) struct Oracle {
    snapshot: Snapshot,
    survey: Survey,
    book: AddressBook,
    compiled: Compiled,
    names: HashMap<HostName, Vec<IpAddr>>,
}

/// What `decide` says of a flow.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub(crate) struct Expected {
    /// Where it may end. Empty: it is refused, or leads nowhere.
    pub(crate) ends: BTreeSet<SocketAddr>,
    /// How: its bytes as they are; else in TLS, through a tunnel, or as requests.
    pub(crate) plainly: bool,
    /// Whichever of its destinations is chosen, it gets somewhere.
    pub(crate) surely: bool,
    /// The client itself may make the connection: to one place, where it dials, carried as it is.
    pub(crate) alone: bool,
    /// The kernel's tables let it go direct.
    pub(crate) eligible: bool,
    /// More bytes could still make a hello of these.
    pub(crate) unfinished: bool,
    /// The cluster in the log.
    pub(crate) cluster: Option<String>,
    /// The name that the client shows.
    pub(crate) shown: Option<String>,
    /// Whether it goes direct without a look at what it says.
    pub(crate) unread: bool,
}

impl Expected {
    /// Whether the policy lets it pass, to somewhere.
    pub(crate) fn passes(&self) -> bool {
        !self.ends.is_empty()
    }
}

impl Oracle {
    pub(crate) fn new(file: PathBuf, mode: Mode, zone: &[(String, Vec<IpAddr>)]) -> Result<Self> {
        let sources = Sources {
            files: vec![file],
            outbound: Some(mode.outbound),
            enforcement: Some(mode.enforcement),
            ..Sources::default()
        };
        let loaded = load(&sources, &Caller::new(NAMESPACE)).map_err(|e| anyhow::anyhow!("{e}"))?;
        ensure!(loaded.rejected.is_empty(), "{:?}", loaded.rejected);
        let mut names = HashMap::new();
        for (name, addresses) in zone {
            let name = HostName::parse(name).ok().context("a name of the zone")?;
            names.insert(name, addresses.clone());
        }
        let snapshot = loaded.snapshot;
        let survey = Survey::of(&snapshot.policy);
        // What the daemon asks for by itself, before anybody connects.
        let hosts = survey.hosts();
        let asked = names.iter().filter(|(name, _)| hosts.contains(name));
        let mut book = AddressBook::default();
        book.update(asked.map(|(name, ips)| (name, &**ips)), Instant::now());
        let compiled = compile(&snapshot, NAMESPACE, &survey, &book, std::iter::empty());
        Ok(Self { snapshot, survey, book, compiled, names })
    }

    /// How many rows the kernel's table of destinations has.
    pub(crate) fn rows(&self) -> usize {
        self.compiled.rows.len()
    }

    /// Somebody spoke at these destinations, and not HTTP.
    pub(crate) fn visit(&mut self, visited: &[SocketAddr]) {
        let visited = visited.iter().copied();
        self.compiled = compile(&self.snapshot, NAMESPACE, &self.survey, &self.book, visited);
    }

    pub(crate) fn ask(&self, to: SocketAddr, bytes: &[u8]) -> Expected {
        let hello = Sniffer::default().push(bytes);
        let flow = Flow { dst: OriginalDst::new(to), namespace: NAMESPACE };
        let policy = &self.snapshot.policy;
        let decision = match decide::by_address(policy, &flow) {
            ByAddress::Decided(decision) => decision,
            ByAddress::Inspect { unless_client_speaks } => match &hello {
                Some(hello) => decide::by_hello(policy, &flow, hello),
                None => unless_client_speaks,
            },
        };
        let decision = self.settle(&decision, to.ip());
        let request;
        let mut expected = match &decision.action {
            Action::Relay(to_all) => self.carried(to_all, decision, to),
            Action::Http => {
                let host = host_in(bytes);
                request = by_request(policy, &flow, &head(&&*host));
                match &request.action {
                    Action::Forward(forward) => {
                        let whole = self.carried(&forward.destinations, &request, to);
                        Expected { plainly: false, ..whole }
                    }
                    _ => Expected::default(),
                }
            }
            _ => Expected::default(),
        };
        let row = self.compiled.find(to).ok();
        expected.unread = matches!(row, Some(Row::Direct(_)));
        expected.eligible = expected.passes() && is_direct(row, hello.as_ref());
        expected.unfinished = hello.is_none();
        if let Some(Hello::Tls(hello)) = &hello {
            expected.shown = hello.sni.as_ref().map(ToString::to_string);
        }
        expected
    }

    fn settle<'d>(&self, decision: &'d Decision, dialled: IpAddr) -> &'d Decision {
        let Action::ByResolution(open) = &decision.action else { return decision };
        open.settle(|host| self.names.get(host).is_some_and(|ips| ips.contains(&dialled)))
    }

    /// A flow that goes to one of `all`.
    fn carried(&self, all: &[Destination], decision: &Decision, to: SocketAddr) -> Expected {
        let each: Vec<_> = all.iter().map(|one| self.ends(&one.upstream, to)).collect();
        let surely = each.iter().all(|ends| !ends.is_empty());
        let ends: BTreeSet<SocketAddr> = each.into_iter().flatten().collect();
        let wrapped = |traffic: &TrafficPolicy| {
            traffic.tls.is_some() || traffic.tunnel.is_some() || traffic.proxy_protocol.is_some()
        };
        let cluster = all.first().and_then(|one| one.cluster.clone());
        let cluster = cluster.or_else(|| decision.cluster.clone());
        Expected {
            plainly: !all.iter().any(|one| wrapped(&one.traffic)),
            alone: all.len() == 1 && is_one(&all[0]) && ends.contains(&to),
            surely,
            ends,
            cluster: cluster.map(|name| name.to_string()),
            ..Expected::default()
        }
    }

    /// Where an upstream leads.
    fn ends(&self, upstream: &Upstream, dialled: SocketAddr) -> Vec<SocketAddr> {
        let of = |name: &HostName, port: u16| {
            let ips = self.names.get(name).into_iter().flatten();
            ips.map(move |ip| SocketAddr::new(*ip, port)).collect::<Vec<_>>()
        };
        match upstream {
            Upstream::OriginalDst { port, .. } => vec![SocketAddr::new(dialled.ip(), *port)],
            // The dialled address, if it is one of these.
            Upstream::VerifiedOriginalDst { host, port } => {
                let all = of(host, *port);
                let own = SocketAddr::new(dialled.ip(), *port);
                if all.contains(&own) { vec![own] } else { all }
            }
            Upstream::Static(all) => all.iter().map(|endpoint| endpoint.target).collect(),
            Upstream::Dns { endpoints, .. } => {
                let each = endpoints.iter().map(|endpoint| &endpoint.target);
                each.flat_map(|(place, port)| match place {
                    Place::Name(name) => of(name, *port),
                    Place::Ip(ip) => vec![SocketAddr::new(*ip, *port)],
                })
                .collect()
            }
            _ => Vec::new(),
        }
    }
}

/// Whether it is one place, if a name's several addresses count as one, and nothing is said of how
/// traffic gets there.
fn is_one(to: &Destination) -> bool {
    let one = match &to.upstream {
        Upstream::Static(all) => all.len() == 1,
        Upstream::Dns { endpoints, .. } => endpoints.len() == 1,
        _ => true,
    };
    one && is_free(&to.traffic)
}

/// Whether nothing is said of how the traffic is carried but the choice among equal addresses.
fn is_free(traffic: &TrafficPolicy) -> bool {
    let plain = TrafficPolicy {
        load_balancer: traffic.load_balancer.clone(),
        protocol: traffic.protocol,
        ..TrafficPolicy::default()
    };
    *traffic == plain && !matches!(traffic.load_balancer, LoadBalancer::Hash(_))
}

/// The Host of an HTTP request.
fn host_in(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    let host = text.lines().find_map(|line| line.strip_prefix("Host: "));
    host.unwrap_or_default().to_owned()
}

/// The plan's only kind of request.
fn head<'a>(host: &'a &'a str) -> RequestHead<'a> {
    RequestHead {
        method: "GET",
        authority: None,
        hosts: std::slice::from_ref(host),
        path: "/",
        version: 11,
        headers: &(),
    }
}

fn is_direct(row: Option<&Row>, hello: Option<&Hello>) -> bool {
    match (row, hello) {
        (Some(Row::Direct(_) | Row::Noticed(_)), _) => true,
        (Some(Row::Named(set)), Some(Hello::Tls(hello))) => {
            hello.sni.as_ref().is_some_and(|name| lists(set, name))
        }
        _ => false,
    }
}

/// Whether the set's narrowest pattern for the name lets it go.
fn lists(set: &NameSet, name: &HostName) -> bool {
    let fits = |pattern: &&interceptor::tiers::Pattern| {
        let own = pattern.name.as_str();
        match pattern.below {
            false => own == name.as_str(),
            true => name.as_str().strip_suffix(own).is_some_and(|front| front.ends_with('.')),
        }
    };
    let patterns = set.0.keys().filter(fits);
    let narrowest = patterns.max_by_key(|pattern| (!pattern.below, pattern.name.as_str().len()));
    narrowest.is_some_and(|pattern| set.0[pattern].is_some())
}
