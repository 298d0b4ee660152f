//! Which door an allowed connection leaves by (`egressProxy`): directly, or through one of some
//! upstream proxies, and what those are asked for.
//!
//! Policy judges first, and doors change no verdict. Everything that the three doors of `decide`
//! answer passes [`Doors::through`], so no destination can be forgotten. A rule is found by where
//! the connection goes: by the name where a name was judged, else by the address. Nothing that
//! only a client says chooses a door (T-47).

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;

use ipnet::IpNet;

use super::host::HostName;
use super::pattern::EntryHost;
use super::route::{Destination, Forward, Mirror, RouteActions};
use super::traffic::Origination;
use super::{Action, ByAddress, ByResolution, Claim, Decision, Endpoint, Place, Upstream};
use crate::policy::Credentials;

/// How an allowed connection leaves.
#[derive(Debug, Clone, PartialEq, Default)]
pub enum Door {
    /// To where its upstream says.
    #[default]
    Direct,
    /// Through an upstream proxy, and no other way.
    Proxies(Arc<Via>),
}

impl Door {
    /// The proxies, where there are any.
    pub fn via(&self) -> Option<&Via> {
        match self {
            Self::Direct => None,
            Self::Proxies(via) => Some(via),
        }
    }
}

/// A way through upstream proxies.
#[derive(Debug, Clone, PartialEq)]
pub struct Via {
    /// In the order in which they are tried. Never empty.
    pub proxies: Arc<[Arc<EgressProxy>]>,
    /// What the proxy is asked for, one of these by weight: judged names, operators' endpoints, or
    /// the dialled address where the verdict was on that. Never empty.
    pub targets: Arc<[Endpoint<Target>]>,
    /// A name that the client showed and nobody judged: asked for in place of the dialled address if
    /// the daemon's own resolution of it has that address.
    pub noticed: Option<HostName>,
    /// How requests in plain HTTP are handed to the proxy.
    pub plain_http: PlainHttp,
}

/// A name or address, and a port.
pub type Target = (Place, u16);

/// An upstream proxy.
#[derive(Debug, Clone, PartialEq)]
pub struct EgressProxy {
    /// Its name in the configuration.
    pub name: Arc<str>,
    /// What is spoken to it.
    pub speaks: Speaks,
    /// Where it is; a name is resolved by the daemon.
    pub place: Place,
    /// Its port.
    pub port: u16,
    /// What we log in with.
    pub login: Option<Login>,
}

impl fmt::Display for EgressProxy {
    /// `corp-1 (http://proxy-1.corp.example:3128)`; never with credentials.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = match &self.speaks {
            Speaks::Http => "http",
            Speaks::Https(_) => "https",
            Speaks::Socks5 => "socks5",
            Speaks::Gateway(_) => "hbone",
        };
        write!(f, "{} ({scheme}://{}:{})", self.name, self.place, self.port)
    }
}

/// A proxy's protocol.
#[derive(Debug, Clone, PartialEq)]
pub enum Speaks {
    /// HTTP/1.1.
    Http,
    /// HTTP/1.1 in TLS.
    Https(Arc<Origination>),
    /// SOCKS 5 (RFC 1928, RFC 1929); names are resolved by the proxy.
    Socks5,
    /// Streams of HTTP/2 in mutual TLS, to a gateway of our own.
    Gateway(Arc<Origination>),
}

/// Where user and password are found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Login {
    /// A file with `user:password`, read for each connection.
    File(PathBuf),
    /// A Secret by its name, as it was when the policy was made; `None`: there was none.
    Secret(String, Option<Arc<Credentials>>),
}

/// How requests in plain HTTP are handed to an HTTP proxy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum PlainHttp {
    /// As requests with an absolute target (RFC 9112 3.2.2), as curl does.
    #[default]
    AbsoluteForm,
    /// Through CONNECT, as everything else.
    Connect,
}

/// The configured doors. The default has none: everything is direct.
#[derive(Debug, Clone, Default)]
pub(crate) struct Doors {
    pub(crate) rules: Arc<[DoorRule]>,
}

/// One rule; the first that matches a target is the one.
#[derive(Debug, Clone)]
pub(crate) struct DoorRule {
    /// Any of these; empty: every target.
    pub(crate) to: Vec<Pattern>,
    /// Empty: direct.
    pub(crate) proxies: Arc<[Arc<EgressProxy>]>,
    pub(crate) plain_http: PlainHttp,
}

/// What targets a rule is for: a host, and a port where one is given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Pattern {
    pub(crate) what: What,
    pub(crate) port: Option<u16>,
}

/// The host of a [`Pattern`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum What {
    /// Everything.
    Any,
    /// Names as ServiceEntries write them.
    Host(EntryHost),
    /// A name and all names below it, as in NO_PROXY.
    Domain(HostName),
    /// Targets that are addresses.
    Network(IpNet),
}

impl Pattern {
    fn matches(&self, (place, port): &Target) -> bool {
        self.port.is_none_or(|own| own == *port)
            && match (&self.what, place) {
                (What::Any, _) => true,
                (What::Host(host), Place::Name(name)) => host.matches(name),
                (What::Domain(own), Place::Name(name)) => is_at_or_below(name, own),
                (What::Network(network), Place::Ip(ip)) => network.contains(ip),
                (What::Host(_) | What::Domain(_), Place::Ip(_))
                | (What::Network(_), Place::Name(_)) => false,
            }
    }
}

/// Many targets at once.
#[derive(Debug, Clone, Copy)]
pub(super) enum Scope<'a> {
    /// Every address.
    Addresses,
    /// Every name below this one.
    Below(&'a HostName),
}

impl Pattern {
    /// Whether some target of `scope` matches.
    fn meets(&self, scope: Scope<'_>) -> bool {
        match (&self.what, scope) {
            (What::Any, _) | (What::Network(_), Scope::Addresses) => true,
            (What::Network(_), Scope::Below(_)) => false,
            (What::Host(_) | What::Domain(_), Scope::Addresses) => false,
            (What::Host(host), Scope::Below(top)) => {
                let below = EntryHost::Wildcard(top.clone());
                below.covers(host) || host.covers(&below)
            }
            (What::Domain(own), Scope::Below(top)) => {
                is_at_or_below(own, top) || is_at_or_below(top, own)
            }
        }
    }

    /// Whether every target of `scope` matches.
    fn holds(&self, scope: Scope<'_>) -> bool {
        self.port.is_none()
            && match (&self.what, scope) {
                (What::Any, _) => true,
                (What::Host(host), Scope::Below(top)) => {
                    host.covers(&EntryHost::Wildcard(top.clone()))
                }
                (What::Domain(own), Scope::Below(top)) => is_at_or_below(top, own),
                _ => false,
            }
    }
}

fn is_at_or_below(name: &HostName, top: &HostName) -> bool {
    name == top || name.parents().any(|parent| parent == top.as_str())
}

impl Doors {
    /// Whether some target may leave through a proxy.
    pub(super) fn any(&self) -> bool {
        self.rules.iter().any(|rule| !rule.proxies.is_empty())
    }

    /// Whether some target of `scope` may leave through a proxy: what judges them all by one of them
    /// must not call them direct.
    pub(super) fn may_proxy(&self, scope: Scope<'_>) -> bool {
        for rule in self.rules.iter() {
            let meets = rule.to.is_empty() || rule.to.iter().any(|to| to.meets(scope));
            if meets && !rule.proxies.is_empty() {
                return true;
            }
            if rule.to.is_empty() || rule.to.iter().any(|to| to.holds(scope)) {
                return false;
            }
        }
        false
    }

    /// What was decided before the first byte, each way out through its door.
    pub(super) fn by_address(&self, found: ByAddress, dialled: SocketAddr) -> ByAddress {
        match found {
            ByAddress::Decided(decision) => ByAddress::Decided(self.through(decision, dialled)),
            ByAddress::Inspect { unless_client_speaks } => ByAddress::Inspect {
                unless_client_speaks: self.through(unless_client_speaks, dialled),
            },
        }
    }

    /// A decision with a door for everything that it lets out.
    pub(super) fn through(&self, decision: Decision, dialled: SocketAddr) -> Decision {
        if self.rules.is_empty() {
            return decision;
        }
        let all = |to: Vec<Destination>| to.into_iter().map(|to| self.leave(to, dialled)).collect();
        let action = match decision.action {
            Action::Relay(to) => Action::Relay(all(to)),
            Action::Forward(forward) => {
                let Forward { destinations, route } = *forward;
                let (destinations, route) = (all(destinations), self.mirrors(route, dialled));
                Action::Forward(Box::new(Forward { destinations, route }))
            }
            Action::ByResolution(open) => {
                let ByResolution { claims, otherwise } = *open;
                let claim = |claim: &Claim| Claim {
                    host: claim.host.clone(),
                    decision: self.through(claim.decision.clone(), dialled),
                };
                Action::ByResolution(Box::new(ByResolution {
                    claims: claims.iter().map(claim).collect(),
                    otherwise: self.through(otherwise, dialled),
                }))
            }
            // What is audited goes as without us, and comes after this.
            as_is @ (Action::Block(_) | Action::Http | Action::Reply(_) | Action::Audited(_)) => {
                as_is
            }
        };
        Decision { action, ..decision }
    }

    /// Copies of a request leave as requests do.
    fn mirrors(&self, route: Arc<RouteActions>, dialled: SocketAddr) -> Arc<RouteActions> {
        if route.mirrors.is_empty() {
            return route;
        }
        let mirror = |mirror: &Mirror| Mirror {
            destination: self.leave(mirror.destination.clone(), dialled),
            percent: mirror.percent,
        };
        let mirrors = route.mirrors.iter().map(mirror).collect();
        Arc::new(RouteActions { mirrors, ..(*route).clone() })
    }

    fn leave(&self, to: Destination, dialled: SocketAddr) -> Destination {
        let targets = targets(&to, dialled);
        // Of endpoints with different doors none goes direct.
        let mut rules = targets.iter().map(|one| self.find(&one.target));
        let rule = rules.clone().find(|rule| !rule.proxies.is_empty()).or_else(|| rules.next());
        let door = match rule {
            Some(rule) if !rule.proxies.is_empty() => Door::Proxies(Arc::new(Via {
                proxies: Arc::clone(&rule.proxies),
                targets: targets.into(),
                noticed: noticed(&to),
                plain_http: rule.plain_http,
            })),
            _ => Door::Direct,
        };
        Destination { door, ..to }
    }

    /// The rule for a target. The last one is for every target.
    fn find(&self, target: &Target) -> &DoorRule {
        let matches = |rule: &&DoorRule| {
            rule.to.is_empty() || rule.to.iter().any(|pattern| pattern.matches(target))
        };
        self.rules.iter().find(matches).unwrap_or(&self.rules[self.rules.len() - 1])
    }
}

/// What a proxy would be asked for. A unix socket, or no endpoint at all, is nothing to ask for.
fn targets(to: &Destination, dialled: SocketAddr) -> Vec<Endpoint<Target>> {
    let one = |place: Place, port: u16| vec![Endpoint { target: (place, port), weight: 1 }];
    match &to.upstream {
        Upstream::OriginalDst { port, .. } => match &to.judged {
            Some(name) => one(name.clone().into(), *port),
            None => one(Place::Ip(canonical(dialled)), *port),
        },
        Upstream::VerifiedOriginalDst { host, port } => one(host.clone().into(), *port),
        Upstream::Static(endpoints) => endpoints
            .iter()
            .map(|endpoint| Endpoint {
                target: (Place::Ip(canonical(endpoint.target)), endpoint.target.port()),
                weight: endpoint.weight,
            })
            .collect(),
        Upstream::Dns { endpoints, .. } => endpoints.to_vec(),
        Upstream::Unix(_) | Upstream::None | Upstream::NoCluster => Vec::new(),
    }
}

fn noticed(to: &Destination) -> Option<HostName> {
    match (&to.upstream, &to.judged) {
        (Upstream::OriginalDst { name, .. }, None) => name.clone(),
        _ => None,
    }
}

fn canonical(address: SocketAddr) -> IpAddr {
    address.ip().to_canonical()
}
