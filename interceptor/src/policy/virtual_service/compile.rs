//! From VirtualServices to what services meet: which one binds a host (VS-2 to VS-4), which rules
//! concern the workload and port (VS-14), and which clusters they lead to (VS-20, VS-21).

use std::collections::HashMap;
use std::sync::Arc;

use super::super::Enforcement;
use super::super::load::Caller;
use super::actions::default_retries;
use super::{Destination, HttpAction, HttpRule, MESH, Scope, VirtualService, delegate};
use crate::decide::http_route::{self, HttpForward, HttpRoutes};
use crate::decide::pattern::EntryHost;
use crate::decide::route::{Retries, RouteActions};
use crate::decide::uri::{Normalization, Redirect};
use crate::decide::{Cluster, Group, RouteTo, StreamRule};

/// The clusters that destinations may name.
pub(in super::super) trait Clusters {
    /// The cluster of a host, port and subset; `None` where there is none (VS-21).
    fn find(&self, host: &EntryHost, port: u16, subset: Option<&str>) -> Option<Arc<Cluster>>;
    /// The ports of a host, as far as it is in the registry.
    fn ports(&self, host: &EntryHost) -> &[u16];
}

/// What binding depends on besides the resources.
#[derive(Clone)]
pub(in super::super) struct Settings<'a> {
    pub(in super::super) caller: &'a Caller,
    /// The gateway that the caller is, as `namespace/name`; `None` = a sidecar, `mesh`.
    pub(in super::super) gateway: Option<String>,
    pub(in super::super) profile: Enforcement,
    pub(in super::super) normalization: Normalization,
    /// `defaultHttpRetryPolicy` (MESH-16).
    pub(in super::super) retries: Option<Retries>,
}

/// The VirtualServices of a workload, by host.
pub(in super::super) struct Binder<'a, C> {
    settings: &'a Settings<'a>,
    clusters: &'a C,
    /// Those that a sidecar sees, the oldest first (VS-3).
    bound: &'a [&'a VirtualService],
    /// All that may be delegated to.
    all: &'a [VirtualService],
    hosts: HashMap<String, usize>,
    partial: Vec<(&'a EntryHost, usize)>,
    routes: HashMap<(usize, u16), Option<Arc<HttpRoutes>>>,
}

impl Settings<'_> {
    /// What a route without a policy of its own does (VS-40, GAP-17).
    pub(in super::super) fn default_actions(&self) -> Arc<RouteActions> {
        let strict = self.profile == Enforcement::Strict;
        let retries = self.retries.clone().unwrap_or_else(|| default_retries(strict));
        Arc::new(RouteActions { retries, ..RouteActions::default() })
    }

    /// VS-14: whether a match item concerns this workload and port at all.
    fn concerns(&self, scope: &Scope, port: u16) -> bool {
        if scope.port.is_some_and(|own| own != port) {
            return false;
        }
        if scope.namespace.as_ref().is_some_and(|own| *own != self.caller.namespace) {
            return false;
        }
        if scope.gateways.is_empty() {
            self.caller.has(&scope.labels)
        } else {
            // With gateways listed, sourceLabels is not considered.
            let own = self.gateway.as_deref().unwrap_or(MESH);
            scope.gateways.iter().any(|gateway| gateway == own)
        }
    }
}

impl<'a, C: Clusters> Binder<'a, C> {
    /// `bound` are those visible to the workload, the oldest first; `all` also holds delegates.
    pub(in super::super) fn new(
        settings: &'a Settings<'a>,
        clusters: &'a C,
        bound: &'a [&'a VirtualService],
        all: &'a [VirtualService],
    ) -> Self {
        let (mut hosts, mut partial) = (HashMap::new(), Vec::new());
        for (index, service) in bound.iter().enumerate() {
            for host in &service.hosts {
                if matches!(host, EntryHost::Partial(_)) {
                    partial.push((host, index));
                }
                hosts.entry(host.to_string()).or_insert(index);
            }
        }
        partial.sort_by_key(|(host, _)| std::cmp::Reverse(host.specificity()));
        Self { settings, clusters, bound, all, hosts, partial, routes: HashMap::new() }
    }

    /// The VirtualService of a host: its own, else the one with the longest wildcard over it (VS-4).
    fn of(&self, host: &EntryHost) -> Option<usize> {
        if let Some(index) = self.hosts.get(&host.to_string()) {
            return Some(*index);
        }
        let (EntryHost::Exact(name) | EntryHost::Wildcard(name) | EntryHost::Partial(name)) = host;
        let wildcard = name.parents().find_map(|suffix| self.hosts.get(&format!("*.{suffix}")));
        wildcard.copied().or_else(|| {
            self.partial.iter().find(|(partial, _)| partial.covers(host)).map(|(_, index)| *index)
        })
    }

    /// The routes of a host on an HTTP port, if a VirtualService has any for it (VS-9).
    pub(in super::super) fn routes(
        &mut self,
        host: &EntryHost,
        port: u16,
    ) -> Option<Arc<HttpRoutes>> {
        let index = self.of(host)?;
        if let Some(known) = self.routes.get(&(index, port)) {
            return known.clone();
        }
        let service = self.bound.get(index)?;
        let routes = (!service.http.is_empty()).then(|| Arc::new(self.http(service, port)));
        self.routes.insert((index, port), routes.clone());
        routes
    }

    /// Hosts that have routes without an entry for them, where `covered` says whether a wildcard
    /// stands over a service (VS-2, VS-4).
    pub(in super::super) fn nominal(
        &mut self,
        port: u16,
        covered: impl Fn(&EntryHost) -> bool,
    ) -> Vec<(EntryHost, Arc<HttpRoutes>)> {
        let bound = self.bound;
        let mut found = Vec::new();
        for (index, host) in bound
            .iter()
            .enumerate()
            .flat_map(|(i, service)| service.hosts.iter().map(move |h| (i, h)))
        {
            let own = self.hosts.get(&host.to_string()) == Some(&index);
            if own
                && self.clusters.ports(host).is_empty()
                && !covered(host)
                && let Some(routes) = self.routes(host, port)
            {
                found.push((host.clone(), routes));
            }
        }
        found
    }

    /// Every bound host with routes on `port`, and the namespace of its VirtualService: what a
    /// gateway serves.
    pub(in super::super) fn served(
        &mut self,
        port: u16,
    ) -> Vec<(Arc<str>, EntryHost, Arc<HttpRoutes>)> {
        let mut found = Vec::new();
        for (index, service) in self.bound.iter().enumerate() {
            for host in &service.hosts {
                if self.hosts.get(&host.to_string()) == Some(&index)
                    && let Some(routes) = self.routes(host, port)
                {
                    found.push((service.meta.namespace.clone(), host.clone(), routes));
                }
            }
        }
        found
    }

    /// Every bound host with `tls` rules on `port`: what a gateway passes on by its name (GW-3).
    pub(in super::super) fn passed(&self, port: u16) -> Vec<Passed> {
        let mut found = Vec::new();
        for (index, service) in self.bound.iter().enumerate() {
            for host in &service.hosts {
                let own = self.hosts.get(&host.to_string()) == Some(&index);
                let rules = self.chains(host, port, Group::Tls).rules;
                if own && !rules.is_empty() {
                    let namespace = service.meta.namespace.clone();
                    found.push(Passed { namespace, host: host.clone(), rules });
                }
            }
        }
        found
    }

    fn http(&self, service: &VirtualService, port: u16) -> HttpRoutes {
        let find = |name: &str, namespace: &str| {
            let mut all = self.all.iter();
            all.find(|other| {
                other.hosts.is_empty()
                    && *other.meta.name == *name
                    && *other.meta.namespace == *namespace
                    && super::super::reader::exported(
                        &other.export_to,
                        &["*".to_owned()],
                        namespace,
                        &service.meta.namespace,
                    )
            })
        };
        let rules = delegate::expand(service, find);
        let rules = rules.iter().filter_map(|rule| self.http_rule(rule, port)).collect();
        let normalization = self.settings.normalization;
        HttpRoutes { rule: service.id.clone(), normalization, rules }
    }

    /// A rule as this workload meets it on `port`; `None` where it does not.
    fn http_rule(&self, rule: &HttpRule, port: u16) -> Option<http_route::HttpRule> {
        let concerns = |(scope, _): &&(Scope, _)| self.settings.concerns(scope, port);
        let matches: Vec<_> =
            rule.matches.iter().filter(concerns).map(|(_, item)| item.clone()).collect();
        if matches.is_empty() && !rule.matches.is_empty() {
            return None;
        }
        let response = || rule.headers.response.clone();
        let action = match &rule.action {
            HttpAction::Redirect(redirect, own_port) => {
                let port = if *own_port { Some(port) } else { redirect.port };
                http_route::HttpAction::Redirect(Redirect { port, ..redirect.clone() }, response())
            }
            HttpAction::Reply(status, body) => {
                http_route::HttpAction::Reply(*status, body.clone(), response())
            }
            HttpAction::Route(to) => {
                http_route::HttpAction::Route(Box::new(self.forward(rule, to, port)))
            }
            // Validation keeps a delegate from delegating.
            HttpAction::Delegate(..) => return None,
        };
        Some(http_route::HttpRule { name: rule.name.clone(), matches, action })
    }

    fn forward(&self, rule: &HttpRule, to: &[Destination], port: u16) -> HttpForward {
        let retries = || self.settings.default_actions().retries.clone();
        HttpForward {
            to: self.destinations(to, port),
            actions: Arc::new(RouteActions {
                timeout: rule.timeout,
                retries: rule.retries.clone().unwrap_or_else(retries),
                fault: rule.fault.clone(),
                rewrite: None,
                headers: rule.headers.clone(),
                mirrors: Vec::new(),
                cors: rule.cors.clone(),
            }),
            rewrite: rule.rewrite.clone(),
            mirrors: rule
                .mirrors
                .iter()
                .map(|(to, percent)| (self.destination(to, port), *percent))
                .collect(),
        }
    }

    /// Those that get something (VS-22); the others count as imported all the same (SC-6).
    fn destinations(&self, to: &[Destination], port: u16) -> Vec<RouteTo> {
        to.iter().filter(|to| to.weight > 0).map(|to| self.destination(to, port)).collect()
    }

    /// VS-20: the given port, else the host's only one, else the handler's.
    fn destination(&self, to: &Destination, handler: u16) -> RouteTo {
        let port = to.port.unwrap_or(match self.clusters.ports(&to.host) {
            [only] => *only,
            _ => handler,
        });
        RouteTo {
            weight: to.weight,
            cluster: self.clusters.find(&to.host, port, to.subset.as_deref()),
            headers: Arc::new(to.headers.clone()),
        }
    }

    /// What connections of a service meet in place of its own chain: `tls` rules on TLS ports,
    /// `tcp` rules on the others (VS-60 to VS-63). Empty where no rule applies.
    pub(in super::super) fn chains(&self, host: &EntryHost, port: u16, group: Group) -> Chains {
        let mut chains = Chains::default();
        let Some(service) = self.of(host).and_then(|index| self.bound.get(index)) else {
            return chains;
        };
        let rules = match group {
            Group::Http => return chains,
            Group::Tls => &service.tls,
            Group::Tcp | Group::Sniffed => &service.tcp,
        };
        for rule in rules {
            let to: Arc<[RouteTo]> = self.destinations(&rule.route, port).into();
            let chain = |sni: &[EntryHost], subnets: &[_]| StreamRule {
                sni: sni.to_vec(),
                subnets: subnets.to_vec(),
                to: Arc::clone(&to),
                rule: service.id.clone(),
            };
            if rule.matches.is_empty() {
                chains.rules.push(chain(&[], &[]));
                chains.complete = true;
                return chains;
            }
            for item in &rule.matches {
                if !self.settings.concerns(&item.scope, port)
                    || (group == Group::Tls && item.sni.is_empty())
                {
                    continue;
                }
                chains.rules.push(chain(&item.sni, &item.subnets));
                // VS-61: any rule for a TLS port takes the place of its own chain. VS-62: a tcp
                // rule without subnets ends the list.
                chains.complete |= group == Group::Tls || item.subnets.is_empty();
                if group != Group::Tls && item.subnets.is_empty() {
                    return chains;
                }
            }
        }
        chains
    }
}

/// A host that a gateway passes on, the namespace of its VirtualService, and that one's rules.
#[derive(Debug)]
pub(in super::super) struct Passed {
    pub(in super::super) namespace: Arc<str>,
    pub(in super::super) host: EntryHost,
    pub(in super::super) rules: Vec<StreamRule>,
}

/// The chains of rules on one port of a host.
#[derive(Debug, Default)]
pub(in super::super) struct Chains {
    pub(in super::super) rules: Vec<StreamRule>,
    /// They leave nothing to the service's own chain.
    pub(in super::super) complete: bool,
}
