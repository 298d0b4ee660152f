//! Resources that hold, of everybody, and what they make for one workload.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::compile::{Compiled, Input, Mesh, compile};
use super::destination_rule::{self, Defaults, Rules as DestinationRules};
use super::entry::{Entry, ServicePort};
use super::fields::Findings;
use super::interceptor_config::{self, Scope};
use super::inventory::Inventory;
use super::load::{Caller, Loaded, Sources, Summary};
use super::mesh::MeshConfig;
use super::notice::Notice;
use super::registry::Carriage;
use super::resource::Resources;
use super::selection::Workload;
use super::virtual_service::VirtualService;
use super::virtual_service::compile::Settings;
use super::workload_entry::WorkloadEntry;
use super::{Enforcement, Outbound, Snapshot, telemetry};
use crate::decide::pattern::EntryHost;
use crate::decide::{Group, Policy, Service};

/// The root namespace where the mesh configuration names none.
pub(super) const ROOT: &str = "istio-system";

/// T-28: strict's wait for first bytes where nothing is configured.
const STRICT_SNIFF_TIMEOUT: Duration = Duration::from_secs(5);

/// A set of documents that was read and validated: the same for every workload, so that it is read
/// once for all of them.
#[derive(Debug)]
pub struct Checked {
    /// What flags say over the documents.
    overrides: Sources,
    profile: Enforcement,
    mesh: MeshConfig,
    rules: DestinationRules,
    /// ServiceEntries; the platform's own Services become entries for each workload.
    entries: Vec<Entry>,
    virtual_services: Vec<VirtualService>,
    workloads: Vec<Workload>,
    /// All the other kinds.
    resources: Resources,
    warnings: Vec<Notice>,
    pub(super) rejected: Vec<Notice>,
    /// Of InterceptorConfigs that have no effect, or not all of it.
    overruled: Vec<Notice>,
    /// There is one workload only.
    is_lone: bool,
    pub(super) inventory: Inventory,
}

impl Checked {
    /// Takes over what was read; `out` has no errors.
    pub(super) fn new(
        overrides: Sources,
        profile: Enforcement,
        entries: Vec<Entry>,
        mut resources: Resources,
        inventory: Inventory,
        mut out: Findings,
    ) -> Self {
        let mesh = resources.meshes.pop().unwrap_or_default();
        let rules = destination_rules(&mut resources, &mesh, profile, &mut out);
        let named = resources.workload_entries.iter().filter_map(WorkloadEntry::to_workload);
        let workloads = named.chain(std::mem::take(&mut resources.pods)).collect();
        Self {
            overrides,
            profile,
            mesh,
            rules,
            entries,
            virtual_services: std::mem::take(&mut resources.virtual_services),
            workloads,
            resources,
            warnings: out.warnings,
            rejected: out.rejected,
            overruled: Vec::new(),
            is_lone: false,
            inventory,
        }
    }

    /// The profile that it was validated for.
    pub fn enforcement(&self) -> Enforcement {
        self.profile
    }

    /// Says which InterceptorConfigs have no effect; `lone` is the only workload, if there is one only.
    pub(super) fn judge_configs(&mut self, lone: Option<&Caller>) {
        self.is_lone = lone.is_some();
        let (configs, scope) = (&self.resources.configs, self.scope());
        let mut overruled = interceptor_config::overruled(configs, scope);
        overruled.extend(lone.and_then(|caller| interceptor_config::idle(configs, caller, scope)));
        self.warnings.extend(overruled.iter().cloned());
        self.overruled = overruled;
    }

    fn scope(&self) -> Scope<'_> {
        let root = self.mesh.root_namespace.as_deref().unwrap_or(ROOT);
        Scope { root, is_lone: self.is_lone }
    }

    /// Of InterceptorConfigs that have no effect, or not all of it.
    pub fn overruled(&self) -> &[Notice] {
        &self.overruled
    }

    /// Resources that are left out, and why.
    pub fn rejected(&self) -> &[Notice] {
        &self.rejected
    }

    /// Says what is wrong with resources for which something stands in: `closed` are stand-ins that are
    /// nothing to fall back to.
    pub fn stand_in(&mut self, rejected: Vec<Notice>, closed: &BTreeSet<String>) {
        self.rejected.extend(rejected);
        self.inventory.forget(closed);
    }

    /// What is in force.
    pub fn inventory(&self) -> &Inventory {
        &self.inventory
    }

    /// Compiles it for one workload.
    pub fn compile(&self, caller: &Caller) -> Loaded {
        let mut out = Findings { warnings: self.warnings.clone(), ..Findings::default() };
        let (namespace, resources) = (caller.namespace.as_str(), &self.resources);
        let slices = &resources.endpoint_slices;
        let platform = resources.services.iter().filter_map(|service| {
            service.to_entry(slices, |host| {
                let routed = self.virtual_services.iter().flat_map(|routes| &routes.hosts);
                let mut routed = routed.filter_map(EntryHost::exact);
                self.rules.concern(caller, host.as_str(), &service.meta.namespace)
                    || routed.any(|routed| routed == host)
            })
        });
        let input = Input {
            entries: self.entries.iter().cloned().chain(platform).collect(),
            virtual_services: self.virtual_services.clone(),
            sidecars: resources.sidecars.clone(),
            gateways: resources.gateways.clone(),
            workloads: self.workloads.clone(),
        };
        let mut compiled =
            compile_for(caller, input, &self.mesh, &self.overrides, &self.rules, &mut out);
        let says = interceptor_config::says(&resources.configs, caller, self.scope());
        if let Some(proxies) = &says.egress_proxies {
            compiled.rules.doors = proxies.doors(&resources.secrets);
        }
        out.warnings.extend(double_tls(&self.rules, caller, &compiled.rules.services));
        let services = compiled.rules.services.iter().filter(|service| !service.nominal).count();
        let summary = Summary {
            documents: resources.documents,
            service_entries: self.entries.len(),
            services,
            telemetries: resources.telemetries.len(),
            virtual_services: self.virtual_services.len(),
            sidecars: resources.sidecars.len(),
        };
        let outbound = compiled.rules.outbound;
        let logged = telemetry::Logged { namespace, labels: &caller.labels };
        let access_log = telemetry::outputs(&resources.telemetries, &self.mesh, logged, &mut out);
        let (profile, sources) = (self.profile, &self.overrides);
        let snapshot = Snapshot {
            generation: 1,
            policy: Policy::new(namespace, profile, compiled.rules),
            enforcement: profile,
            outbound,
            sniff_timeout: sniff_timeout(&self.mesh, profile, &mut out),
            connect_timeout: self.mesh.connect_timeout.unwrap_or(Duration::from_secs(10)),
            dns_refresh: self.mesh.dns_refresh.unwrap_or(Duration::from_secs(60)),
            access_log,
            log_format: self.mesh.log_format.clone(),
            udp_allowed: compiled.udp,
            refuse_datagrams: profile == Enforcement::Strict && outbound == Outbound::RegistryOnly,
            credentials: resources.secrets.keyring(namespace),
            on_removal: sources.on_removal.or(says.on_removal).unwrap_or_default(),
            on_loss: sources.on_loss.or(says.on_loss).unwrap_or_default(),
            on_log_loss: sources.on_log_loss.or(says.on_log_loss).unwrap_or_default(),
            fast_path: sources.fast_path.or(says.fast_path).unwrap_or(true),
            limits: says.limits(),
            bypass: says.bypass.unwrap_or_default(),
        };
        Loaded {
            snapshot,
            warnings: out.warnings,
            rejected: self.rejected.clone(),
            summary,
            inventory: self.inventory.clone(),
        }
    }
}

/// MESH-8 where the mesh configuration says nothing.
fn or_all(items: &[String]) -> Vec<String> {
    if items.is_empty() { vec!["*".to_owned()] } else { items.to_vec() }
}

fn destination_rules(
    resources: &mut Resources,
    mesh: &MeshConfig,
    profile: Enforcement,
    out: &mut Findings,
) -> DestinationRules {
    let defaults = Defaults {
        root_namespace: mesh.root_namespace.clone().unwrap_or_else(|| ROOT.to_owned()),
        export_to: or_all(&mesh.destination_rule_export),
        profile,
    };
    DestinationRules::new(std::mem::take(&mut resources.destination_rules), defaults, out)
        .in_mesh(mesh.h2_upgrade, mesh.default_policy.clone())
}

/// GAP-18: rules that wrap what is TLS already.
fn double_tls(rules: &DestinationRules, caller: &Caller, services: &[Service]) -> Vec<Notice> {
    if rules.is_empty() {
        return Vec::new();
    }
    let mut ports: BTreeMap<(String, &str), Vec<(u16, bool)>> = BTreeMap::new();
    for service in services {
        let host = service.cluster.host.to_string();
        let port = (service.port, service.group == Group::Tls);
        ports.entry((host, &service.rule.namespace)).or_default().push(port);
    }
    let found = ports
        .iter()
        .filter_map(|((host, namespace), ports)| rules.double_tls(caller, host, namespace, ports));
    found.collect()
}

fn compile_for(
    caller: &Caller,
    input: Input,
    config: &MeshConfig,
    sources: &Sources,
    rules: &DestinationRules,
    out: &mut Findings,
) -> Compiled {
    let profile = rules.profile();
    // DestinationRules are asked here and nowhere else: what carries the traffic of this port, or of
    // a subset of it (VS-21: `None` where no rule defines the subset).
    let carriage = |entry: &Entry, host: &EntryHost, port: &ServicePort, subset: Option<&str>| {
        let host = host.to_string();
        let service = destination_rule::ServicePort::of(entry, &host, port);
        let found = match sources.gateway {
            None => rules.lookup(caller, &service, subset),
            Some(_) => rules.lookup_at_gateway(caller, &service, subset),
        };
        let labels = found.subset_labels.unwrap_or_default();
        (!found.missing_subset).then_some(Carriage { traffic: found.traffic, labels })
    };
    let service_export: Vec<String> =
        config.default_export.iter().flatten().map(|item| item.value.clone()).collect();
    let mesh = Mesh {
        root: config.root_namespace.as_deref().unwrap_or(ROOT),
        service_export: or_all(&service_export),
        virtual_service_export: or_all(&config.virtual_service_export),
        outbound: sources.outbound.or(config.outbound).unwrap_or_default(),
        dns_capture: sources.dns_capture || config.dns_capture,
        gateway: sources.gateway,
        dynamic_tls: config.dynamic_tls.clone(),
        unknown: rules.of_unknown(),
        settings: Settings {
            caller,
            gateway: None,
            profile,
            normalization: config.normalization,
            retries: config.retries.clone(),
        },
        carriage: &carriage,
    };
    compile(input, &mesh, out)
}

/// MESH-5: 0 waits for ever in istio; strict never does (T-28).
fn sniff_timeout(mesh: &MeshConfig, profile: Enforcement, out: &mut Findings) -> Option<Duration> {
    let given = mesh.detection_timeout.as_ref();
    match (given, profile) {
        (Some(timeout), _) if !timeout.value.is_zero() => Some(timeout.value),
        (_, Enforcement::Istio) => None,
        (None, Enforcement::Strict) => Some(STRICT_SNIFF_TIMEOUT),
        (Some(timeout), Enforcement::Strict) => {
            if let Some(context) = &mesh.context {
                let message = "0 would wait for ever; strict waits 5s (T-28)";
                out.warnings.push(context.notice(timeout.at, &timeout.path, message));
            }
            Some(STRICT_SNIFF_TIMEOUT)
        }
    }
}
