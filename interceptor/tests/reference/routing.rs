//! VirtualServices: which one a host has, and what its rules make of a flow (section 10).

use std::net::SocketAddr;

use interceptor::policy::Enforcement;
use regex::Regex;

use crate::observe::{Place, Seen, To};
use crate::registry::{Kind, Service, WORKLOAD_NAMESPACE, fit, services, visible};
use crate::sidecar;
use crate::world::{Destination, Head, HttpAction, HttpMatch, StreamRule, Text, Virtual, World};

/// The VirtualService of a host, if it has one.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rules<'a>(Option<&'a Virtual>);

/// A chain of a service's handler: its own, or a rule's in place of it.
#[derive(Clone)]
pub(crate) struct Chain<'a> {
    pub(crate) service: Service<'a>,
    /// Names that it takes; empty = no condition.
    pub(crate) sni: Vec<String>,
    rule: Option<(&'a Virtual, &'a StreamRule)>,
}

/// VS-1, VS-3: what the workload sees, the oldest first.
pub(crate) fn bound(world: &World) -> Vec<&Virtual> {
    let mesh = |v: &&Virtual| v.gateways.is_empty() || v.gateways.contains(&"mesh");
    let seen = |v: &&Virtual| visible(&v.export_to, v.namespace);
    let mut bound: Vec<&Virtual> = world.virtuals.iter().filter(mesh).filter(seen).collect();
    bound.retain(|v| sidecar::brings(world, v));
    bound.sort_by_key(|v| (v.created.unwrap_or(0), v.name.clone(), v.namespace));
    bound
}

impl<'a> Rules<'a> {
    /// VS-3, VS-4: the oldest with the host itself, else with the longest wildcard over it.
    pub(crate) fn of(world: &'a World, host: &str) -> Self {
        let covers = |listed: &str| {
            let listed = listed.to_lowercase();
            let inside = host.strip_prefix("*.").unwrap_or(host);
            if listed == host {
                Some(0)
            } else {
                fit(&listed, inside).filter(|_| listed.starts_with('*'))
            }
        };
        let all = bound(world)
            .into_iter()
            .filter_map(|v| Some((v.hosts.iter().filter_map(|listed| covers(listed)).min()?, v)));
        Self(all.min_by_key(|(fit, _)| *fit).map(|(_, v)| v))
    }

    /// VS-9: what a request meets; `None` = the service's default route.
    pub(crate) fn request(
        self,
        world: &World,
        head: &Head,
        dst: SocketAddr,
        name: Option<&str>,
    ) -> Option<Seen> {
        let service = self.0.filter(|v| !v.http.is_empty())?;
        let id = Some(format!("VirtualService {}/{}", service.namespace, service.name));
        for rule in &service.http {
            let found = rule.matches.iter().find(|item| holds(item, head, dst.port()));
            let matched = match (found, rule.matches.is_empty()) {
                (None, false) => continue,
                (None, true) => "",
                (Some(item), _) => item.name,
            };
            // VS-16.
            let route = match (rule.name, matched) {
                ("", "") => None,
                (name, "") => Some(name.to_owned()),
                (name, matched) => Some(format!("{name}.{matched}")),
            };
            let local = |status, location| Seen::Local {
                status,
                location,
                route: route.clone(),
                rule: id.clone(),
            };
            return Some(match &rule.action {
                HttpAction::Route(to) => Seen::Forward {
                    to: places(world, to, dst, name),
                    route,
                    rule: id,
                    timeout: rule.timeout,
                },
                HttpAction::Reply(status) => local(*status, None),
                HttpAction::Redirect(code) => {
                    let host = head.authority.as_ref().or(head.hosts.first()).expect("a host");
                    let query = head.path.find('?').map_or("", |at| &head.path[at..]);
                    local(*code, Some(format!("http://{host}/new{query}")))
                }
            });
        }
        Some(Seen::Local { status: 404, location: None, route: None, rule: id })
    }
}

/// VS-10 to VS-15.
fn holds(item: &HttpMatch, head: &Head, port: u16) -> bool {
    let (path, query) = head.path.split_once('?').unwrap_or((head.path, ""));
    let host = head.authority.as_ref().or(head.hosts.first()).expect("a host");
    let header: Vec<&str> =
        head.headers.iter().filter(|(name, _)| name == "x-k").map(|(_, v)| v.as_str()).collect();
    let header = (!header.is_empty()).then(|| header.join(","));
    let has = |want: &Option<Text>| match (want, &header) {
        (_, None) => false,
        (None, Some(_)) => true,
        (Some(want), Some(value)) => text(want, value),
    };
    let parameter = query.split('&').find_map(|pair| pair.strip_prefix("q="));
    item.port.is_none_or(|own| own == port)
        && item.from.is_none_or(|from| from == WORKLOAD_NAMESPACE)
        && item.uri.as_ref().is_none_or(|want| text(want, &plain(path)))
        && item.method.as_ref().is_none_or(|want| text(want, head.method))
        && item.authority.as_ref().is_none_or(|want| text(want, host))
        && item.header.as_ref().is_none_or(&has)
        && !item.without.as_ref().is_some_and(&has)
        && item.query.as_ref().is_none_or(|want| parameter.is_some_and(|value| text(want, value)))
}

fn text((kind, want): &Text, have: &str) -> bool {
    match *kind {
        "exact" => have == *want,
        "prefix" => have.starts_with(want),
        _ => Regex::new(&format!("^(?:{want})$")).expect("a pattern").is_match(have),
    }
}

/// VS-11: without `.` and `..`.
fn plain(path: &str) -> String {
    let mut kept: Vec<&str> = Vec::new();
    for part in path.split('/').skip(1) {
        match part {
            "." => {}
            ".." => drop(kept.pop()),
            part => kept.push(part),
        }
    }
    format!("/{}", kept.join("/"))
}

/// VS-20 to VS-22: the destinations that get something.
fn places(world: &World, to: &[Destination], dst: SocketAddr, name: Option<&str>) -> Vec<Place> {
    let all = services(world);
    let place = |to: &Destination| {
        let weight = to.weight;
        let host: Vec<&Service<'_>> =
            all.iter().filter(|service| service.host == to.host.to_lowercase()).collect();
        let port =
            to.port.unwrap_or(if let [only] = host[..] { only.port.number } else { dst.port() });
        // No DestinationRule, so no subset either.
        let found = host.iter().find(|service| service.port.number == port && !to.subset);
        match found {
            None => Place { weight, cluster: None, to: To::NoCluster },
            Some(service) => Place {
                weight,
                cluster: Some(service.cluster()),
                to: service.upstream(dst, name, world.profile),
            },
        }
    };
    match to {
        [only] => vec![Place { weight: 1, ..place(only) }],
        several => several.iter().filter(|to| to.weight > 0).map(place).collect(),
    }
}

impl<'a> Service<'a> {
    /// VS-60 to VS-63: the chains of its handler; `bound` to its address its own has no condition.
    pub(crate) fn chains(&self, bound: bool) -> Vec<Chain<'a>> {
        let applies = |rule: &&StreamRule| rule.port.is_none_or(|port| port == self.port.number);
        let chain = |v: &'a Virtual, rule: &'a StreamRule| Chain {
            service: self.clone(),
            sni: rule.sni.iter().map(|sni| sni.to_lowercase()).collect(),
            rule: Some((v, rule)),
        };
        let mut chains: Vec<Chain<'a>> = Vec::new();
        match (self.rules.0, self.kind()) {
            (Some(v), Kind::Tls) => {
                chains.extend(v.tls.iter().filter(applies).map(|rule| chain(v, rule)));
            }
            (Some(v), Kind::Tcp | Kind::Sniffed) => {
                chains.extend(v.tcp.iter().find(applies).map(|rule| chain(v, rule)));
            }
            _ => {}
        }
        if chains.is_empty() {
            let sni =
                if self.kind() == Kind::Tls && !bound { vec![self.host.clone()] } else { vec![] };
            chains.push(Chain { service: self.clone(), sni, rule: None });
        }
        chains
    }
}

impl Chain<'_> {
    /// How well it takes this SNI (LIS-6). HTTP-6: a partial wildcard is not usable.
    pub(crate) fn fit(&self, name: &str) -> Option<usize> {
        let usable = |sni: &&String| !sni.starts_with('*') || sni.starts_with("*.");
        self.sni.iter().filter(usable).filter_map(|sni| fit(sni, name)).min()
    }

    pub(crate) fn relay(&self, world: &World, dst: SocketAddr, name: Option<&str>) -> Seen {
        match self.rule {
            None => self.service.relay(dst, name, world.profile),
            Some((v, rule)) => Seen::Relay {
                to: places(world, &rule.route, dst, name),
                rule: Some(format!("VirtualService {}/{}", v.namespace, v.name)),
            },
        }
    }

    pub(crate) fn is_own(&self) -> bool {
        self.rule.is_none()
    }
}

/// VS-2, VS-4: hosts on port 80 that only VirtualServices know: each with its rules. They take
/// requests and have no cluster.
pub(crate) fn nominal<'a>(world: &'a World, port: u16) -> Vec<(String, Rules<'a>)> {
    let all = services(world);
    let routes = |service: &&Service<'_>| {
        service.port.number == 80
            && match service.kind() {
                Kind::Http => true,
                Kind::Sniffed => !service.has_addresses(),
                Kind::Tls | Kind::Tcp => false,
            }
    };
    let handler = all.iter().any(|service| routes(&service));
    if port != 80 || !(handler || world.profile == Enforcement::Strict) {
        return Vec::new();
    }
    let mut found: Vec<(String, Rules<'a>)> = Vec::new();
    for v in bound(world) {
        for host in v.hosts.iter().map(|host| host.to_lowercase()) {
            let known = all.iter().any(|service| service.host == host);
            let over = |service: &Service<'_>| {
                let inside = service.host.strip_prefix("*.").unwrap_or(&service.host);
                host.starts_with('*') && fit(&host, inside).is_some()
            };
            let covers = all.iter().filter(routes).any(over);
            let taken = found.iter().any(|(other, _)| *other == host);
            let rules = Rules::of(world, &host);
            let first = rules.0.is_some_and(|owner| std::ptr::eq(owner, v));
            if !known && !covers && !taken && first && !v.http.is_empty() {
                found.push((host, rules));
            }
        }
    }
    found
}
