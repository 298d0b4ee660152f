//! Files to a snapshot: read everything, report everything, then compile.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt;
use std::fs;
use std::io::Read as _;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use super::compile::{Compiled, Input, Mesh, compile};
use super::destination_rule::{self, Defaults, Rules as DestinationRules};
use super::entry::{Entry, ServicePort};
use super::fields::{Context, Findings};
use super::inventory::{Inventory, Substitutes};
use super::mesh::MeshConfig;
use super::node::{At, MAX_FILE_BYTES};
use super::notice::{LoadErrors, Notice};
use super::parts::Known;
use super::registry::Carriage;
use super::resource::Resources;
use super::virtual_service::compile::Settings;
use super::workload_entry::WorkloadEntry;
use super::{Enforcement, OnLogLoss, OnLoss, OnRemoval, Outbound, Snapshot, telemetry};
use crate::decide::pattern::EntryHost;
use crate::decide::{Group, Policy, Service};

/// Where rules come from, and what overrides them.
#[derive(Debug, Clone, Default)]
pub struct Sources {
    /// Files, or directories of `*.yaml` and `*.yml` (not searched deeper), in order.
    pub files: Vec<PathBuf>,
    /// A mesh configuration: bare, as `meshConfig` of an IstioOperator, or Istio's ConfigMap.
    pub mesh_config: Option<PathBuf>,
    /// Resources given as text, after the files, each under the name that messages call it by.
    pub texts: Vec<(PathBuf, String)>,
    /// A mesh configuration given as text, likewise.
    pub mesh_text: Option<(PathBuf, String)>,
    /// Overrides the mesh configuration's mode.
    pub outbound: Option<Outbound>,
    /// Overrides `InterceptorConfig`'s `enforcement`.
    pub enforcement: Option<Enforcement>,
    /// Overrides `InterceptorConfig`'s `onPolicyRemoval`.
    pub on_removal: Option<OnRemoval>,
    /// Overrides `InterceptorConfig`'s `onDaemonLoss`.
    pub on_loss: Option<OnLoss>,
    /// Overrides `InterceptorConfig`'s `onLogLoss`.
    pub on_log_loss: Option<OnLogLoss>,
    /// Overrides `InterceptorConfig`'s `fastPath`.
    pub fast_path: Option<bool>,
    /// The workload's names are answered by the proxy (`ISTIO_META_DNS_CAPTURE`): entries without
    /// addresses are recognised by automatic ones (RES-18, RES-19).
    pub dns_capture: bool,
    /// The workload is a gateway at this address (GW-1): it serves what its Gateways list, and
    /// nothing else.
    pub gateway: Option<IpAddr>,
}

/// The workload that the rules are compiled for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caller {
    /// Its namespace: visibility (SE-9), Sidecars (SC-1), `sourceNamespace` (VS-14).
    pub namespace: String,
    /// Its labels: `workloadSelector` (SC-1), `sourceLabels` (VS-14).
    pub labels: Vec<(String, String)>,
}

impl Caller {
    /// A workload of `namespace` without labels.
    pub fn new(namespace: &str) -> Self {
        Self { namespace: namespace.to_owned(), labels: Vec::new() }
    }

    /// Whether it has all of `labels`.
    pub(super) fn has(&self, labels: &[(String, String)]) -> bool {
        labels.iter().all(|label| self.labels.contains(label))
    }
}

/// A set of files that can be used.
#[derive(Debug, Clone)]
pub struct Loaded {
    /// What is in force once somebody puts it into the store; generation 1.
    pub snapshot: Snapshot,
    /// Accepted, with something to say.
    pub warnings: Vec<Notice>,
    /// Resources that are left out, and why (SEV rules). The snapshot allows nothing on their
    /// behalf.
    pub rejected: Vec<Notice>,
    /// What was read.
    pub summary: Summary,
    /// What is in force, for the next load and for what it changes.
    pub inventory: Inventory,
}

/// Counts for people.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Summary {
    /// Documents read, whatever their kind.
    pub documents: usize,
    /// ServiceEntries in force.
    pub service_entries: usize,
    /// Hosts times ports that they make.
    pub services: usize,
    /// Telemetry resources read.
    pub telemetries: usize,
    /// VirtualServices in force.
    pub virtual_services: usize,
    /// Sidecars in force.
    pub sidecars: usize,
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} documents, {} service entries, {} services",
            self.documents, self.service_entries, self.services
        )
    }
}

/// T-28: strict's wait for first bytes where nothing is configured.
const STRICT_SNIFF_TIMEOUT: Duration = Duration::from_secs(5);

/// Reads, validates and compiles `sources` for `caller`.
///
/// # Errors
/// Everything that is wrong with the set, in the order of the files: unreadable files, YAML that
/// does not parse, unknown fields and kinds, and what is not supported yet and would restrict.
/// Resources that only Istio's validation rejects are errors beside others, but alone they come
/// back in [`Loaded::rejected`].
pub fn load(sources: &Sources, caller: &Caller) -> Result<Loaded, LoadErrors> {
    load_over(sources, caller, &Inventory::default())
}

/// Loads what is to follow `before` (T-61): a resource that is rejected keeps the version that it
/// has there, and a file without any content is an error, since it is most likely half written.
///
/// # Errors
/// As for [`load`].
pub fn load_over(
    sources: &Sources,
    caller: &Caller,
    before: &Inventory,
) -> Result<Loaded, LoadErrors> {
    let again = !before.is_empty();
    let known = before.known();
    let loaded = load_once(sources, caller, again, Substitutes::new(), &known)?;
    let names = loaded.rejected.iter().filter_map(|notice| notice.resource.as_deref());
    let substitutes = before.documents(names);
    if substitutes.is_empty() {
        return Ok(loaded);
    }
    let mut kept: Vec<_> = substitutes.keys().cloned().collect();
    let mut second = load_once(sources, caller, again, substitutes, &known)?;
    // What was good once need not be beside other settings.
    kept.retain(|id| second.rejected.iter().all(|notice| notice.resource.as_deref() != Some(id)));
    second.inventory.keep(before, kept.iter());
    for mut notice in loaded.rejected {
        let is_kept = |id: &str| kept.iter().any(|kept| **kept == *id);
        if notice.resource.as_deref().is_some_and(is_kept) {
            notice.message.push_str("; its last good version stays");
            second.rejected.push(notice);
        }
    }
    second.rejected.sort_by(|a, b| a.place.cmp(&b.place));
    Ok(second)
}

fn load_once(
    sources: &Sources,
    caller: &Caller,
    again: bool,
    substitutes: Substitutes,
    known: &Arc<Known>,
) -> Result<Loaded, LoadErrors> {
    let namespace = caller.namespace.as_str();
    let mut out = Findings::default();
    let known = Arc::clone(known);
    let mut resources = Resources { substitutes, known, ..Resources::default() };
    let mut texts = HashMap::new();
    let mut read = |path: &Path, out: &mut Findings| {
        let text: Arc<str> = read(path, again, out)?.into();
        let file: Arc<Path> = path.into();
        texts.insert(Arc::clone(&file), Arc::clone(&text));
        Some((file, text))
    };
    for path in &sources.files {
        for path in listed(path, &mut out) {
            if let Some((file, text)) = read(&path, &mut out) {
                resources.read(&file, &text, &mut out);
            }
        }
    }
    if let Some(path) = &sources.mesh_config
        && let Some((file, text)) = read(path, &mut out)
    {
        resources.read_mesh(&file, &text, &mut out);
    }
    let mut given = |name: &Path, text: &str| {
        let (file, text): (Arc<Path>, Arc<str>) = (name.into(), text.into());
        texts.insert(Arc::clone(&file), Arc::clone(&text));
        (file, text)
    };
    for (name, text) in &sources.texts {
        let (file, text) = given(name, text);
        resources.read(&file, &text, &mut out);
    }
    if let Some((name, text)) = &sources.mesh_text {
        let (file, text) = given(name, text);
        resources.read_mesh(&file, &text, &mut out);
    }
    if let [_, second, ..] = resources.meshes.as_slice()
        && let Some(context) = &second.context
    {
        let message = "a second mesh configuration; give one only";
        out.errors.push(context.notice(At { line: 1, column: 1 }, "", message));
    }
    let profile = sources.enforcement.or(resources.enforcement).unwrap_or_default();
    let written = std::mem::take(&mut resources.service_entries).into_iter();
    let mut known = Known::with_capacity(written.len());
    let mut entries: Vec<_> =
        written.filter_map(|entry| entry.check(profile, &mut known, &mut out)).collect();
    reject_partial(&mut resources, profile, &mut out);
    if !out.errors.is_empty() {
        let mut all = out.errors;
        all.append(&mut out.rejected);
        all.sort_by(|a, b| a.place.cmp(&b.place));
        return Err(LoadErrors(all));
    }

    let mesh = resources.meshes.pop().unwrap_or_default();
    let summary = Summary {
        documents: resources.documents,
        service_entries: entries.len(),
        services: 0,
        telemetries: resources.telemetries.len(),
        virtual_services: resources.virtual_services.len(),
        sidecars: resources.sidecars.len(),
    };
    let rules = destination_rules(&mut resources, &mesh, profile, &mut out);
    let virtual_services = std::mem::take(&mut resources.virtual_services);
    let slices = &resources.endpoint_slices;
    entries.extend(resources.services.iter().filter_map(|service| {
        service.to_entry(slices, |host| {
            let routed = virtual_services.iter().flat_map(|routes| &routes.hosts);
            let mut routed = routed.filter_map(EntryHost::exact);
            rules.concern(caller, host.as_str(), &service.meta.namespace)
                || routed.any(|routed| routed == host)
        })
    }));
    let workloads = resources.workload_entries.iter().filter_map(WorkloadEntry::to_workload);
    let workloads = workloads.chain(std::mem::take(&mut resources.pods));
    let input = Input {
        entries,
        virtual_services,
        sidecars: std::mem::take(&mut resources.sidecars),
        gateways: std::mem::take(&mut resources.gateways),
        workloads: workloads.collect(),
    };
    let compiled = compile_for(caller, input, &mesh, sources, &rules, &mut out);
    out.warnings.extend(double_tls(&rules, caller, &compiled.rules.services));
    let services = compiled.rules.services.iter().filter(|service| !service.nominal).count();
    let summary = Summary { services, ..summary };
    let outbound = compiled.rules.outbound;
    let logged = telemetry::Logged { namespace, labels: &caller.labels };
    let access_log = telemetry::outputs(&resources.telemetries, &mesh, logged, &mut out);
    let snapshot = Snapshot {
        generation: 1,
        policy: Policy::new(namespace, profile, compiled.rules),
        enforcement: profile,
        outbound,
        sniff_timeout: sniff_timeout(&mesh, profile, &mut out),
        connect_timeout: mesh.connect_timeout.unwrap_or(Duration::from_secs(10)),
        dns_refresh: mesh.dns_refresh.unwrap_or(Duration::from_secs(60)),
        access_log,
        log_format: mesh.log_format,
        udp_allowed: compiled.udp,
        refuse_datagrams: profile == Enforcement::Strict && outbound == Outbound::RegistryOnly,
        credentials: resources.secrets.keyring(namespace),
        on_removal: sources.on_removal.or(resources.on_removal).unwrap_or_default(),
        on_loss: sources.on_loss.or(resources.on_loss).unwrap_or_default(),
        on_log_loss: sources.on_log_loss.or(resources.on_log_loss).unwrap_or_default(),
        fast_path: sources.fast_path.or(resources.fast_path).unwrap_or(true),
        limits: resources.limits.unwrap_or_default(),
    };
    let inventory = {
        let rejected: HashSet<_> =
            out.rejected.iter().filter_map(|notice| notice.resource.as_deref()).collect();
        Inventory::of(resources.seen, &texts, |id| rejected.contains(id)).with_known(known)
    };
    Ok(Loaded { snapshot, warnings: out.warnings, rejected: out.rejected, summary, inventory })
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
        root_namespace: mesh.root_namespace.clone().unwrap_or_else(|| "istio-system".to_owned()),
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
        let found = rules.lookup(caller, &service, subset);
        let labels = found.subset_labels.unwrap_or_default();
        (!found.missing_subset).then_some(Carriage { traffic: found.traffic, labels })
    };
    let service_export: Vec<String> =
        config.default_export.iter().flatten().map(|item| item.value.clone()).collect();
    let mesh = Mesh {
        root: config.root_namespace.as_deref().unwrap_or("istio-system"),
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

/// T-22: strict takes no host that also matches names of other owners.
fn reject_partial(resources: &mut Resources, profile: Enforcement, out: &mut Findings) {
    if profile != Enforcement::Strict {
        return;
    }
    resources.virtual_services.retain(|service| {
        let partial = service.hosts.iter().find(|host| matches!(host, EntryHost::Partial(_)));
        if let Some(host) = partial {
            let message = format!("\"{host}\" also matches names of other owners (T-22)");
            out.rejected.push(service.context.notice(service.at.at, "spec.hosts", message));
        }
        partial.is_none()
    });
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

/// The files that a path stands for; none where that is an error.
fn listed(path: &Path, out: &mut Findings) -> Vec<PathBuf> {
    expand(path).unwrap_or_else(|error| {
        whole_file(path, format!("cannot be listed: {error}"), out);
        Vec::new()
    })
}

/// The files that a path stands for: itself, or of a directory the YAML files, sorted.
pub(super) fn expand(path: &Path) -> std::io::Result<Vec<PathBuf>> {
    if !path.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let files: std::io::Result<Vec<_>> = fs::read_dir(path)?.map(|e| e.map(|e| e.path())).collect();
    let mut files = files?;
    files.retain(|file| {
        file.extension().is_some_and(|e| e == "yaml" || e == "yml") && !file.is_dir()
    });
    files.sort();
    Ok(files)
}

/// A file's text, if it is readable, small enough, UTF-8 and, `again`, not empty.
fn read(path: &Path, again: bool, out: &mut Findings) -> Option<String> {
    let mut bytes = Vec::new();
    let limited =
        fs::File::open(path).and_then(|file| file.take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes));
    if let Err(error) = limited {
        whole_file(path, format!("cannot be read: {error}"), out);
        return None;
    }
    if bytes.len() as u64 > MAX_FILE_BYTES {
        whole_file(path, format!("is larger than {} MiB", MAX_FILE_BYTES >> 20), out);
        return None;
    }
    if again && bytes.trim_ascii().is_empty() {
        let message = "is empty, which is most likely a half-written file; to take its resources \
                       back, remove it or leave a comment in it";
        whole_file(path, message.into(), out);
        return None;
    }
    match String::from_utf8(bytes) {
        Ok(text) => Some(text),
        Err(error) => {
            let at = error.utf8_error().valid_up_to();
            whole_file(path, format!("is not UTF-8 (byte {at})"), out);
            None
        }
    }
}

fn whole_file(path: &Path, message: String, out: &mut Findings) {
    let context = Context::new(&Arc::from(path), 0);
    out.errors.push(context.notice(At::default(), "", message));
}
