//! From valid resources to what decisions read: visibility, precedence and merging (SE-9, SC, REG-2
//! to REG-7), and what each port's traffic meets there.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use ipnet::IpNet;

use super::Enforcement;
use super::Outbound;
use super::entry::{Entry, Protocol, ServicePort};
use super::fields::Findings;
use super::gateway::{Gateway, Served};
use super::reader::exported;
use super::registry::{Carriage, Registry};
use super::selection::{Workload, select_endpoints};
use super::service_entry::Resolution;
use super::sidecar::{self, Imports, Sidecar};
use super::virtual_service::VirtualService;
use super::virtual_service::compile::{Binder, Clusters, Settings};
use crate::decide::door::Doors;
use crate::decide::http_route::HttpRoutes;
use crate::decide::pattern::EntryHost;
use crate::decide::route::{HeaderChanges, RouteActions};
use crate::decide::traffic::{Origination, TrafficPolicy};
use crate::decide::{
    Cluster, ClusterName, Group, RouteTo, RuleId, Rules, Service, StreamRule, Target, Upstream,
};

/// Everything that takes part, each in the order of the files.
#[derive(Debug, Default)]
pub(super) struct Input {
    pub(super) entries: Vec<Entry>,
    pub(super) virtual_services: Vec<VirtualService>,
    pub(super) sidecars: Vec<Sidecar>,
    pub(super) gateways: Vec<Gateway>,
    pub(super) workloads: Vec<Workload>,
}

/// The mesh's part.
pub(super) struct Mesh<'a> {
    pub(super) root: &'a str,
    /// MESH-8.
    pub(super) service_export: Vec<String>,
    pub(super) virtual_service_export: Vec<String>,
    pub(super) outbound: Outbound,
    pub(super) dns_capture: bool,
    /// See [`super::load::Sources::gateway`].
    pub(super) gateway: Option<IpAddr>,
    pub(super) dynamic_tls: Option<Arc<Origination>>,
    /// What carries unknown traffic (MESH-18).
    pub(super) unknown: TrafficPolicy,
    pub(super) settings: Settings<'a>,
    /// What carries the traffic of an entry's port, or of a subset of it; `None` = no such subset.
    pub(super) carriage: &'a Carry<'a>,
}

/// See [`Mesh::carriage`].
pub(super) type Carry<'a> =
    dyn Fn(&Entry, &EntryHost, &ServicePort, Option<&str>) -> Option<Carriage> + 'a;

/// What is compiled for one workload.
#[derive(Debug, Default)]
pub(super) struct Compiled {
    pub(super) rules: Rules,
    /// UDP ports of entries with addresses.
    pub(super) udp: Vec<(IpNet, u16)>,
}

/// Compiles `input` for `mesh.settings.caller`. What loses to something else is noted as a warning
/// (GAP-5).
pub(super) fn compile(mut input: Input, mesh: &Mesh<'_>, out: &mut Findings) -> Compiled {
    let caller = mesh.settings.caller;
    let namespace = caller.namespace.as_str();
    input.sidecars.sort_by_cached_key(|s| (s.meta.created.clone(), s.meta.name.clone()));
    let own: Vec<&Gateway> =
        input.gateways.iter().filter(|gateway| gateway.selects(caller)).collect();
    // Sidecars are for sidecars (SC-1).
    let sidecar = match mesh.gateway {
        None => sidecar::select(&input.sidecars, caller, mesh.root),
        Some(_) => None,
    };
    note_listeners(sidecar, out);
    let mut imports = Imports::new(sidecar, namespace);

    let mut bound: Vec<&VirtualService> = input
        .virtual_services
        .iter()
        .filter(|service| {
            let owner = &service.meta.namespace;
            let seen = exported(&service.export_to, &mesh.virtual_service_export, owner, namespace);
            let bound = match mesh.gateway {
                None => service.in_mesh(),
                Some(_) => own.iter().any(|gateway| gateway.binds(service)),
            };
            bound && !service.hosts.is_empty() && seen && imports.brings(service)
        })
        .collect();
    bound.sort_by_cached_key(|service| {
        let meta = &service.meta;
        (meta.created.clone(), meta.name.clone(), meta.namespace.clone())
    });
    note_losers(&bound, out);
    for service in &bound {
        imports.follow(service);
    }

    for entry in &mut input.entries {
        select_endpoints(entry, &input.workloads, mesh.settings.profile, out);
    }
    let entries = visible(input.entries, mesh, namespace);
    let mut compiled = Compiled::default();
    let mut registry = Registry::new(mesh.carriage, entries.len(), mesh.gateway.is_some());
    let automatic = automatic_addresses(&entries, mesh.dns_capture);
    let services =
        services(&entries, &imports, &automatic, namespace, &mut registry, out, &mut compiled.udp);
    if mesh.settings.profile == Enforcement::Istio {
        note_port_owners(&entries, out);
    }

    let policy = sidecar.and_then(|sidecar| sidecar.outbound.as_ref());
    let proxy = policy.and_then(|policy| policy.proxy.as_ref());
    compiled.rules = Rules {
        outbound: policy.map_or(mesh.outbound, |policy| policy.mode),
        services: Vec::new(),
        listeners: imports.listeners(),
        egress_proxy: proxy.map(|(host, port, subset)| RouteTo {
            weight: 1,
            cluster: registry.find(host, *port, subset.as_deref()),
            headers: Arc::new(HeaderChanges::default()),
        }),
        dynamic_tls: mesh.dynamic_tls.clone(),
        gateway: None,
        unknown: mesh.unknown.clone(),
        doors: Doors::default(),
    };
    let all = &input.virtual_services;
    match mesh.gateway {
        None => {
            let mut binder = Binder::new(&mesh.settings, &registry, &bound, all);
            compiled.rules.services = bind(services, &mut binder, mesh, &compiled.rules.listeners);
        }
        Some(address) => {
            let mut served = Served::default();
            let actions = mesh.settings.default_actions();
            for gateway in own {
                let settings =
                    Settings { gateway: Some(gateway.id.clone()), ..mesh.settings.clone() };
                let bound: Vec<_> =
                    bound.iter().copied().filter(|service| gateway.binds(service)).collect();
                let mut binder = Binder::new(&settings, &registry, &bound, all);
                gateway.serve(address, &entries, &mut binder, &actions, &mut served);
                out.warnings.extend(gateway.problems.iter().cloned());
            }
            let Served { services, listeners } = served;
            compiled.rules.services = services;
            // What no VirtualService binds is answered too (GW-5).
            let http = listeners.iter().filter(|(_, listener)| listener.http);
            compiled.rules.listeners = http.map(|(port, _)| (*port, Group::Http)).collect();
            compiled.rules.gateway = Some(listeners);
        }
    }
    compiled
}

/// The entries that the workload may see, in the order of REG-4.
fn visible(mut entries: Vec<Entry>, mesh: &Mesh<'_>, namespace: &str) -> Vec<Entry> {
    let default = &mesh.service_export;
    entries.retain(|entry| exported(&entry.export_to, default, &entry.meta.namespace, namespace));
    entries.sort_by_cached_key(|entry| {
        let meta = &entry.meta;
        let items = if entry.export_to.is_empty() { default } else { &entry.export_to };
        let public = items.iter().any(|item| item == "*");
        // REG-4; names of one kind and namespace are unique, so this is a total order.
        (public, meta.created.clone(), meta.name.clone(), meta.namespace.clone())
    });
    entries
}

/// Who has a host, and which of its ports are taken.
struct Owned<'a> {
    /// The least has it.
    rank: (usize, bool, bool),
    owner: &'a Entry,
    ports: BTreeSet<u16>,
}

/// The services that the workload reaches, before VirtualServices; `registry` gets all that it
/// sees.
fn services<'a>(
    entries: &'a [Entry],
    imports: &Imports<'_>,
    automatic: &HashMap<&EntryHost, Vec<IpNet>>,
    namespace: &str,
    registry: &mut Registry<'a>,
    out: &mut Findings,
    udp: &mut Vec<(IpNet, u16)>,
) -> Vec<Service> {
    // REG-2, REG-5: one namespace owns a host: a platform Service's, else the workload's own if it
    // has it, else the first's. Among what a Sidecar imports: the earliest item's, then the
    // workload's own before a platform Service's (REG-7).
    let mut hosts: HashMap<&EntryHost, Owned<'_>> = HashMap::with_capacity(entries.len());
    let rank = |entry: &Entry, host: &EntryHost| {
        let (foreign, entry_only) = (*entry.meta.namespace != *namespace, entry.platform.is_none());
        match imports.item(&entry.meta.namespace, host) {
            None => (0, entry_only, foreign),
            Some(item) => (item, foreign, entry_only),
        }
    };
    let seen = |entry: &&Entry, host: &EntryHost| imports.sees(&entry.meta.namespace, host);
    for entry in entries {
        for host in entry.hosts.iter().filter(|host| seen(&entry, host)) {
            let rank = rank(entry, host);
            let owned =
                hosts.entry(host).or_insert(Owned { rank, owner: entry, ports: BTreeSet::new() });
            if rank < owned.rank {
                (owned.rank, owned.owner) = (rank, entry);
            }
        }
    }
    let mut services = Vec::new();
    for entry in entries {
        for host in entry.hosts.iter().filter(|host| seen(&entry, host)) {
            let Some(Owned { owner, ports: taken, .. }) = hosts.get_mut(host) else { continue };
            if !std::ptr::eq(*owner, entry) && !merges(owner, entry) {
                let message = format!(
                    "host {host} is ignored here: {} has it first (REG-3, REG-5)",
                    owner.id
                );
                let at = &entry.notice_at;
                out.warnings.push(entry.context.notice(at.at, &at.path, message));
                continue;
            }
            for port in entry.ports.iter().filter(|port| taken.insert(port.number)) {
                let reached = imports.reaches(&entry.meta.namespace, host, port.number);
                let Protocol::Stream(group, exclusive) = port.protocol else {
                    let allowed = entry.addresses.iter().map(|network| (*network, port.number));
                    udp.extend(allowed.filter(|_| reached));
                    continue;
                };
                let own = !entry.addresses.is_empty() || entry.platform.is_some();
                let addresses: Arc<[IpNet]> = match automatic.get(host).filter(|_| !own) {
                    Some(automatic) => automatic.clone().into(),
                    None => entry.addresses.clone().into(),
                };
                let cluster = registry.add(entry, host, port, addresses);
                if let Some(cluster) = cluster.filter(|_| reached) {
                    services.push(service(
                        cluster,
                        entry,
                        port.number,
                        group,
                        exclusive,
                        namespace,
                    ));
                }
            }
        }
    }
    let mut known = HashSet::new();
    udp.retain(|allowed| known.insert(*allowed));
    services
}

fn service(
    cluster: Arc<Cluster>,
    entry: &Entry,
    port: u16,
    group: Group,
    exclusive: bool,
    namespace: &str,
) -> Service {
    // HTTP-9: a Service's short names; the shortest in its own namespace only.
    let own = *entry.meta.namespace == *namespace;
    let aliases = entry.platform.iter().flat_map(|platform| {
        let local = Some(&platform.local_name).filter(|_| own);
        platform.short_names.iter().chain(local).cloned().map(EntryHost::Exact)
    });
    Service {
        cluster,
        port,
        group,
        exclusive,
        rule: entry.id.clone(),
        aliases: aliases.collect(),
        routes: None,
        chains: Arc::default(),
        actions: Arc::default(),
        forbids_ech: entry.meta.forbids_ech,
        nominal: false,
    }
}

/// Lets VirtualServices have their say, and adds the hosts that only they know (VS-2).
fn bind<C: Clusters>(
    mut services: Vec<Service>,
    binder: &mut Binder<'_, C>,
    mesh: &Mesh<'_>,
    listeners: &[(u16, Group)],
) -> Vec<Service> {
    const PORT: u16 = 80;
    let actions = mesh.settings.default_actions();
    for service in &mut services {
        let host = &service.cluster.host;
        service.actions = Arc::clone(&actions);
        if matches!(service.group, Group::Http | Group::Sniffed) {
            service.routes = binder.routes(host, service.port);
        }
        let mut found = binder.chains(host, service.port, service.group);
        if found.rules.is_empty() {
            continue;
        }
        if !found.complete {
            let to = RouteTo {
                weight: 1,
                cluster: Some(Arc::clone(&service.cluster)),
                headers: Arc::default(),
            };
            let rule = service.rule.clone();
            let own = StreamRule { sni: Vec::new(), subnets: Vec::new(), to: [to].into(), rule };
            found.rules.push(own);
        }
        service.chains = found.rules.into();
    }
    // VS-2: Istio installs them where some service made an HTTP handler; in strict the flow alone
    // decides (GAP-20).
    let sniffs = |service: &Service| {
        service.group == Group::Http
            || service.group == Group::Sniffed && service.cluster.addresses.is_empty()
    };
    let handler = services.iter().any(|service| service.port == PORT && sniffs(service))
        || listeners.iter().any(|(port, group)| *port == PORT && *group == Group::Http);
    if mesh.settings.profile == Enforcement::Strict || handler {
        let on_port: Vec<EntryHost> = services
            .iter()
            .filter(|service| service.port == PORT && sniffs(service))
            .map(|service| service.cluster.host.clone())
            .collect();
        let covered = |host: &EntryHost| on_port.iter().any(|known| host.covers(known));
        for (host, routes) in binder.nominal(PORT, covered) {
            services.push(nominal(host, PORT, routes, &actions));
        }
    }
    services
}

/// A host that only routes know.
pub(super) fn nominal(
    host: EntryHost,
    port: u16,
    routes: Arc<HttpRoutes>,
    actions: &Arc<RouteActions>,
) -> Service {
    let rule = routes.rule.clone();
    Service {
        routes: Some(routes),
        actions: Arc::clone(actions),
        ..host_without_entry(host, port, rule)
    }
}

/// The same, without routes.
pub(super) fn host_without_entry(host: EntryHost, port: u16, rule: RuleId) -> Service {
    let cluster = Cluster {
        name: ClusterName::outbound(port, &host.to_string()),
        host,
        addresses: Arc::default(),
        target: Target::Fixed(Upstream::None),
        traffic: Arc::default(),
    };
    Service {
        cluster: Arc::new(cluster),
        port,
        group: Group::Http,
        exclusive: false,
        rule,
        aliases: Arc::default(),
        routes: None,
        chains: Arc::default(),
        actions: Arc::default(),
        forbids_ech: false,
        nominal: true,
    }
}

/// RES-18, RES-19: with DNS capture, entries without addresses are recognised by automatic ones:
/// those that a control plane allocated, else one of each family for each host.
fn automatic_addresses(entries: &[Entry], capture: bool) -> HashMap<&EntryHost, Vec<IpNet>> {
    let mut addresses: HashMap<&EntryHost, Vec<IpNet>> = HashMap::new();
    if !capture {
        return addresses;
    }
    let eligible = || {
        entries.iter().filter(|entry| {
            entry.addresses.is_empty()
                && entry.platform.is_none()
                && entry.resolution != Resolution::None
                && entry.meta.allocates()
        })
    };
    let allocated = eligible().flat_map(|entry| &entry.allocated);
    for (host, ip) in allocated {
        addresses.entry(host).or_default().push(IpNet::from(*ip));
    }
    let taken: HashSet<IpNet> = addresses.values().flatten().copied().collect();
    let pair = |high: u8, low: u8| {
        let four = IpAddr::V4(Ipv4Addr::new(240, 240, high, low));
        let tail = u16::from_be_bytes([high, low]);
        let six = IpAddr::V6(Ipv6Addr::new(0x2001, 2, 0, 0, 0, 0, 0xf0f0, tail));
        vec![IpNet::from(four), IpNet::from(six)]
    };
    let mut free = (0..=255_u8)
        .flat_map(|high| (1..=254_u8).map(move |low| pair(high, low)))
        .filter(|pair| !pair.iter().any(|one| taken.contains(one)));
    for host in eligible().flat_map(|entry| &entry.hosts).filter(|host| host.exact().is_some()) {
        if addresses.contains_key(host) {
            continue;
        }
        let Some(pair) = free.next() else { break };
        addresses.insert(host, pair);
    }
    addresses
}

/// REG-9, LIS-14: in the istio profile the first address-less TCP or unset port takes all opaque
/// traffic of its number, and Istio says so nowhere (GAP-1).
fn note_port_owners(entries: &[Entry], out: &mut Findings) {
    let mut owners: HashMap<u16, &Entry> = HashMap::new();
    for entry in entries.iter().filter(|entry| entry.addresses.is_empty()) {
        for port in &entry.ports {
            let opaque = matches!(port.protocol, Protocol::Stream(Group::Tcp | Group::Sniffed, _));
            if !opaque {
                continue;
            }
            let owner = *owners.entry(port.number).or_insert(entry);
            if owner.id != entry.id {
                let message = format!(
                    "port {} gets no opaque traffic: {} has no addresses either and comes first \
                     (REG-9)",
                    port.number, owner.id
                );
                let at = &entry.notice_at;
                out.warnings.push(entry.context.notice(at.at, "spec.ports", message));
            }
        }
    }
}

/// VS-3: the oldest takes a host entirely.
fn note_losers(bound: &[&VirtualService], out: &mut Findings) {
    let mut owners: HashMap<&EntryHost, &VirtualService> = HashMap::new();
    for service in bound {
        for host in &service.hosts {
            let owner = *owners.entry(host).or_insert(service);
            if owner.id != service.id {
                let message = format!("host {host} is ignored here: {} is older (VS-3)", owner.id);
                out.warnings.push(service.context.notice(service.at.at, "spec.hosts", message));
            }
        }
    }
}

/// Listeners that Istio would open and this product does not.
fn note_listeners(sidecar: Option<&Sidecar>, out: &mut Findings) {
    let Some(sidecar) = sidecar else { return };
    if let Some(item) = sidecar.egress.iter().find(|item| item.unreachable)
        && let Some(host) = item.hosts.first()
    {
        let message = "not supported: a listener of its own (bind, captureMode NONE) is not opened; \
                       only captured traffic is served";
        out.warnings.push(sidecar.context.notice(host.at.at, "spec.egress", message));
    }
}

/// REG-3: whether two entries of one host unite.
fn merges(first: &Entry, later: &Entry) -> bool {
    first.meta.namespace == later.meta.namespace
        && first.platform.is_some() == later.platform.is_some()
        && first.resolution == later.resolution
        && first.meta.labels == later.meta.labels
        && first.selector == later.selector
        && first.export_to == later.export_to
}
