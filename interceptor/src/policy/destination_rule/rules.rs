//! Which rule a caller's traffic to a service gets, and what it makes of it (DR-1 to DR-8).

use std::collections::HashMap;
use std::sync::Arc;

use super::super::entry::{self, Entry};
use super::super::fields::Findings;
use super::super::notice::Notice;
use super::super::{Caller, Enforcement};
use super::blocks::{Blocks, Policy};
use super::tls::Mode;
use super::{DestinationRule, Subset};
use crate::decide::RuleId;
use crate::decide::traffic::{ProxyProtocol, TrafficPolicy, Tunnel, UpstreamProtocol};

/// What holds for all rules.
#[derive(Debug, Clone)]
pub(crate) struct Defaults {
    /// MESH-9.
    pub(crate) root_namespace: String,
    /// MESH-8, for rules without `exportTo`.
    pub(crate) export_to: Vec<String>,
    /// Profile in force.
    pub(crate) profile: Enforcement,
}

/// The port of the service that is called.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ServicePort<'a> {
    /// Host of the entry in normal form: `a.com`, `*.a.com`.
    pub(crate) host: &'a str,
    /// Namespace of the entry.
    pub(crate) namespace: &'a str,
    /// The service port (DR-7), never `targetPort`.
    pub(crate) port: u16,
    pub(crate) kind: PortKind,
    /// `subjectAltNames` of the entry (SE-10).
    pub(crate) subject_alt_names: &'a [String],
}

impl<'a> ServicePort<'a> {
    /// Of an entry; `host` is one of its hosts as text.
    pub(in crate::policy) fn of(
        entry: &'a Entry,
        host: &'a str,
        port: &entry::ServicePort,
    ) -> Self {
        Self {
            host,
            namespace: &entry.meta.namespace,
            port: port.number,
            kind: port.kind,
            subject_alt_names: &entry.subject_alt_names,
        }
    }
}

/// What a port's protocol says of HTTP (SE-15, TLS-11).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PortKind {
    /// HTTP, GRPC-WEB, HTTP_PROXY.
    Http1,
    /// HTTP2, GRPC.
    Http2,
    /// No protocol declared.
    Sniffed,
    /// Everything else.
    Opaque,
}

impl PortKind {
    /// Of a port's `protocol`, in any case (SE-3).
    pub(crate) fn of(protocol: &str) -> Self {
        match protocol.to_ascii_uppercase().as_str() {
            "" => Self::Sniffed,
            "HTTP" | "GRPC-WEB" | "HTTP_PROXY" => Self::Http1,
            "HTTP2" | "GRPC" => Self::Http2,
            _ => Self::Opaque,
        }
    }
}

/// What the rules say of one service port.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Lookup {
    /// How traffic is carried; the default where no rule applies.
    pub(crate) traffic: Arc<TrafficPolicy>,
    /// Labels of the subset that was asked for (DR-8); sorted, may be empty.
    pub(crate) subset_labels: Option<Vec<(String, String)>>,
    /// A subset was asked for that no rule defines: there is no such cluster (VS-21).
    pub(crate) missing_subset: bool,
    /// The rule that decided, the oldest of merged ones.
    pub(crate) rule: Option<RuleId>,
}

/// All rules, by namespace and host.
#[derive(Debug)]
pub(crate) struct Rules {
    defaults: Defaults,
    /// MESH-12.
    upgrade: bool,
    /// MESH-18: under every policy.
    base: Blocks,
    by_namespace: HashMap<Arc<str>, Namespace>,
}

/// The rules of one namespace.
#[derive(Debug, Default)]
struct Namespace {
    /// By host as the rules write it, wildcards included; each list in the order of REG-4.
    by_host: HashMap<String, Vec<DestinationRule>>,
    wildcards: bool,
}

impl Rules {
    /// Orders `rules`; what strict refuses at run time is said now (TLS-9, GAP-18).
    pub(crate) fn new(
        mut rules: Vec<DestinationRule>,
        defaults: Defaults,
        out: &mut Findings,
    ) -> Self {
        rules.sort_by_cached_key(|rule| (rule.meta.created.clone(), rule.meta.name.clone()));
        let mut by_namespace: HashMap<Arc<str>, Namespace> = HashMap::new();
        for rule in rules {
            if defaults.profile == Enforcement::Strict {
                out.warnings.extend(rule.refusals());
            }
            let namespace = by_namespace.entry(Arc::clone(&rule.meta.namespace)).or_default();
            namespace.wildcards |= rule.host.starts_with('*');
            namespace.by_host.entry(rule.host.clone()).or_default().push(rule);
        }
        Self { defaults, upgrade: false, base: Blocks::default(), by_namespace }
    }

    /// The same in a mesh that says whether HTTP/1.1 ports are spoken to in HTTP/2 (MESH-12), and
    /// what stands under every policy (MESH-18).
    pub(crate) fn in_mesh(self, upgrade: bool, base: Blocks) -> Self {
        Self { upgrade, base, ..self }
    }

    /// What carries unknown traffic: of the mesh's defaults the pool (MESH-18).
    pub(crate) fn of_unknown(&self) -> TrafficPolicy {
        let pool = self.base.pool.clone().unwrap_or_default();
        TrafficPolicy {
            connect_timeout: pool.connect_timeout,
            limits: pool.limits,
            keepalive: pool.keepalive,
            ..TrafficPolicy::default()
        }
    }

    /// Whether there is none.
    pub(crate) fn is_empty(&self) -> bool {
        self.by_namespace.is_empty()
    }

    /// The profile that they are read in.
    pub(crate) fn profile(&self) -> Enforcement {
        self.defaults.profile
    }

    /// What `caller`'s traffic to `service` gets, or to one subset of it.
    pub(crate) fn lookup(
        &self,
        caller: &Caller,
        service: &ServicePort<'_>,
        subset: Option<&str>,
    ) -> Lookup {
        self.looked_up(caller, service, subset, false)
    }

    /// The same for a gateway, which may read secrets whoever a rule selects (TLS-9).
    pub(crate) fn lookup_at_gateway(
        &self,
        caller: &Caller,
        service: &ServicePort<'_>,
        subset: Option<&str>,
    ) -> Lookup {
        self.looked_up(caller, service, subset, true)
    }

    fn looked_up(
        &self,
        caller: &Caller,
        service: &ServicePort<'_>,
        subset: Option<&str>,
        at_gateway: bool,
    ) -> Lookup {
        let found = self.find(caller, service.host, service.namespace);
        let named = subset.and_then(|name| found.as_ref()?.subset(name));
        let policy = found.as_ref().and_then(Found::policy);
        let under = named.and_then(|subset| subset.policy.as_ref());
        let selected = found.as_ref().is_some_and(|found| found.head.selector.is_some());
        let mut effective = Effective::of(policy, under, service.port);
        effective.blocks = self.base.overridden(&effective.blocks);
        let traffic = effective.traffic(service, selected || at_gateway, self);
        Lookup {
            traffic: Arc::new(traffic),
            subset_labels: named.map(|subset| subset.labels.clone()),
            missing_subset: subset.is_some() && named.is_none(),
            rule: found.map(|found| found.head.id()),
        }
    }

    /// A rule that means to originate TLS for a plaintext HTTP port and also wraps the TLS of another
    /// port of the host (TLS-1, GAP-18); `None` if there is none. `ports` are all ports of the host,
    /// and whether each carries the client's own TLS.
    pub(crate) fn double_tls(
        &self,
        caller: &Caller,
        host: &str,
        namespace: &str,
        ports: &[(u16, bool)],
    ) -> Option<Notice> {
        let found = self.find(caller, host, namespace)?;
        let policy = found.policy()?;
        let wraps = |port: u16| {
            let effective = Effective::of(Some(policy), None, port);
            effective.blocks.tls.filter(|tls| matches!(tls.mode, Mode::Simple | Mode::Mutual))
        };
        let plain = ports.iter().find(|(port, tls)| !tls && wraps(*port).is_some())?.0;
        let (port, tls) =
            ports.iter().filter(|(_, tls)| *tls).find_map(|(p, _)| Some((p, wraps(*p)?)))?;
        let message = format!(
            "also applies to port {port} of {host}, where clients speak TLS themselves: TLS inside \
             TLS; move it to portLevelSettings of port {plain} (TLS-1, GAP-18)"
        );
        let rule = found.policy_rule()?;
        Some(rule.context.notice(tls.at.at, &tls.at.path, message))
    }

    /// Whether any rule speaks for the host.
    pub(crate) fn concern(&self, caller: &Caller, host: &str, namespace: &str) -> bool {
        self.find(caller, host, namespace).is_some()
    }

    /// DR-1: the caller's namespace (unless it is the root), the service's, the root.
    fn find(&self, caller: &Caller, host: &str, namespace: &str) -> Option<Found<'_>> {
        let root = self.defaults.root_namespace.as_str();
        let own = (caller.namespace != root).then_some(caller.namespace.as_str());
        let namespaces = own.into_iter().chain([namespace, root]);
        namespaces
            .filter_map(|name| self.by_namespace.get(name))
            .find_map(|rules| self.find_in(rules, caller, host))
    }

    /// DR-2: the most specific host that has a rule for this caller.
    fn find_in<'r>(
        &'r self,
        rules: &'r Namespace,
        caller: &Caller,
        host: &str,
    ) -> Option<Found<'r>> {
        let exact = rules.by_host.get(host);
        let wildcards = rules.wildcards.then(|| covering(host)).into_iter().flatten();
        let wildcards = wildcards.filter_map(|wildcard| rules.by_host.get(&wildcard));
        exact.into_iter().chain(wildcards).find_map(|list| self.applying(list, caller))
    }

    /// DR-3 and DR-4: of the rules of one host those that apply: selecting ones first, then the
    /// oldest, and what merges with it.
    fn applying<'r>(&self, list: &'r [DestinationRule], caller: &Caller) -> Option<Found<'r>> {
        let applies =
            |rule: &&DestinationRule| self.visible(rule, &caller.namespace) && rule.selects(caller);
        let selecting = list.iter().filter(applies).find(|rule| rule.selector.is_some());
        let head = selecting.or_else(|| list.iter().find(applies))?;
        let merges = |rule: &&DestinationRule| {
            rule.selector == head.selector && self.exports(rule) == self.exports(head)
        };
        Some(Found { head, rules: list.iter().filter(merges).collect() })
    }

    /// Where a rule is seen besides its own namespace, without `.`.
    fn exports<'r>(&'r self, rule: &'r DestinationRule) -> Vec<&'r str> {
        let default = || self.defaults.export_to.iter().map(String::as_str);
        let own = &*rule.meta.namespace;
        let mut names: Vec<&str> = match rule.export_to.as_slice() {
            [] => default().map(|name| if name == "." { own } else { name }).collect(),
            given => given.iter().map(String::as_str).collect(),
        };
        names.sort_unstable();
        names
    }

    fn visible(&self, rule: &DestinationRule, namespace: &str) -> bool {
        // The default never hides a rule from its own namespace.
        let own = rule.export_to.is_empty() && *rule.meta.namespace == *namespace;
        own || self.exports(rule).iter().any(|name| *name == "*" || *name == namespace)
    }
}

/// The wildcards that cover `host`, a name or itself a wildcard, the longest first.
fn covering(host: &str) -> impl Iterator<Item = String> + '_ {
    let text = host.strip_prefix('*').unwrap_or(host);
    let rests = (1..=text.len()).filter_map(|start| text.get(start..));
    // "*." stands for nothing that "*" does not.
    rests.filter(|rest| *rest != ".").map(|rest| format!("*{rest}"))
}

impl DestinationRule {
    /// DR-4.
    fn selects(&self, caller: &Caller) -> bool {
        let Some(selector) = &self.selector else { return true };
        *self.meta.namespace == *caller.namespace && caller.has(selector)
    }

    /// What of it will be refused in strict, for want of a credential.
    fn refusals(&self) -> Vec<Notice> {
        let policies =
            self.policy.iter().chain(self.subsets.iter().filter_map(|s| s.policy.as_ref()));
        let blocks =
            policies.flat_map(|p| std::iter::once(&p.blocks).chain(p.ports.iter().map(|(_, b)| b)));
        let tls = blocks.filter_map(|blocks| blocks.tls.as_ref());
        let refused = tls.filter_map(|tls| {
            let why = if tls.mode == Mode::IstioMutual {
                "there is no mesh identity here (TLS-16)"
            } else if tls.out_of_reach(self.selector.is_some()) {
                "credentialName needs a workloadSelector outside of gateways (TLS-9)"
            } else {
                return None;
            };
            let message = format!("{why}: connections are refused, never sent in plaintext");
            Some(self.context.notice(tls.at.at, &tls.at.path, message))
        });
        refused.collect()
    }
}

/// The rules that together speak for a host.
struct Found<'r> {
    /// The one that applies first.
    head: &'r DestinationRule,
    /// All of them, `head` included, the oldest first.
    rules: Vec<&'r DestinationRule>,
}

impl<'r> Found<'r> {
    /// DR-3: the oldest rule that has a policy gives all of it.
    fn policy_rule(&self) -> Option<&'r DestinationRule> {
        self.rules.iter().copied().find(|rule| rule.policy.is_some())
    }

    fn policy(&self) -> Option<&'r Policy> {
        self.policy_rule()?.policy.as_ref()
    }

    /// DR-3: the first definition of a name wins.
    fn subset(&self, name: &str) -> Option<&'r Subset> {
        self.rules.iter().flat_map(|rule| &rule.subsets).find(|subset| subset.name == name)
    }
}

/// What is left of a policy once port and subset are known.
#[derive(Default)]
struct Effective {
    blocks: Blocks,
    tunnel: Option<Tunnel>,
    proxy_protocol: Option<ProxyProtocol>,
}

impl Effective {
    /// DR-6.
    fn of(policy: Option<&Policy>, subset: Option<&Policy>, port: u16) -> Self {
        let level = |p: &Policy| p.ports.iter().find(|(n, _)| *n == port).map(|(_, b)| b.clone());
        let mut this = Self::default();
        if let Some(policy) = policy {
            this.blocks = level(policy).unwrap_or_else(|| policy.blocks.clone());
            this.tunnel = policy.tunnel.clone();
            this.proxy_protocol = policy.proxy_protocol;
        }
        if let Some(subset) = subset {
            this.blocks = level(subset).unwrap_or_else(|| this.blocks.overridden(&subset.blocks));
            // Each excludes the other (DRV-3), so one of the subset also ends the other.
            if subset.tunnel.is_some() || subset.proxy_protocol.is_some() {
                this.tunnel = subset.tunnel.clone();
                this.proxy_protocol = subset.proxy_protocol;
            }
        }
        this
    }

    fn traffic(self, service: &ServicePort<'_>, selected: bool, rules: &Rules) -> TrafficPolicy {
        let pool = self.blocks.pool.unwrap_or_default();
        let profile = rules.defaults.profile;
        let tls = self.blocks.tls.and_then(|tls| tls.origination(service, selected, profile));
        let protocol = match service.kind {
            PortKind::Sniffed => UpstreamProtocol::AsClient,
            PortKind::Http1 | PortKind::Http2 if pool.use_client_protocol => {
                UpstreamProtocol::AsClient
            }
            PortKind::Http2 => UpstreamProtocol::Http2,
            PortKind::Http1 if pool.upgrade.unwrap_or(rules.upgrade) => UpstreamProtocol::Http2,
            PortKind::Http1 | PortKind::Opaque => UpstreamProtocol::Http1,
        };
        TrafficPolicy {
            connect_timeout: pool.connect_timeout,
            limits: pool.limits,
            keepalive: pool.keepalive,
            load_balancer: self.blocks.balancer.unwrap_or_default(),
            outlier: self.blocks.outlier,
            tls: tls.map(Arc::new),
            tunnel: self.tunnel,
            proxy_protocol: self.proxy_protocol,
            protocol,
        }
    }
}
