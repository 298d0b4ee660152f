//! Files to a snapshot: read everything, report everything, then compile.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::fs;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use super::compile::{Registry, compile};
use super::fields::{Context, Findings};
use super::inventory::{Inventory, Substitutes};
use super::mesh::MeshConfig;
use super::node::{At, MAX_FILE_BYTES};
use super::notice::{LoadErrors, Notice};
use super::resource::Resources;
use super::{Enforcement, Outbound, Snapshot, telemetry, validate};
use crate::decide::Policy;

/// Where rules come from, and what overrides them.
#[derive(Debug, Clone, Default)]
pub struct Sources {
    /// Files, or directories of `*.yaml` and `*.yml` (not searched deeper), in order.
    pub files: Vec<PathBuf>,
    /// A mesh configuration: bare, as `meshConfig` of an IstioOperator, or Istio's ConfigMap.
    pub mesh_config: Option<PathBuf>,
    /// The workload's labels, by which Telemetry may select it.
    pub labels: Vec<(String, String)>,
    /// Overrides the mesh configuration's mode.
    pub outbound: Option<Outbound>,
    /// Overrides `InterceptorConfig`'s `enforcement`.
    pub enforcement: Option<Enforcement>,
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

/// Reads, validates and compiles `sources` for workloads of `namespace`.
///
/// # Errors
/// Everything that is wrong with the set, in the order of the files: unreadable files, YAML that
/// does not parse, unknown fields and kinds, and what is not supported yet and would restrict.
/// Resources that only Istio's validation rejects are errors beside others, but alone they come
/// back in [`Loaded::rejected`].
pub fn load(sources: &Sources, namespace: &str) -> Result<Loaded, LoadErrors> {
    load_over(sources, namespace, &Inventory::default())
}

/// Loads what is to follow `before` (T-61): a resource that is rejected keeps the version that it
/// has there, and a file without any content is an error, since it is most likely half written.
///
/// # Errors
/// As for [`load`].
pub fn load_over(
    sources: &Sources,
    namespace: &str,
    before: &Inventory,
) -> Result<Loaded, LoadErrors> {
    let again = !before.is_empty();
    let loaded = load_once(sources, namespace, again, Substitutes::new())?;
    let names = loaded.rejected.iter().filter_map(|notice| notice.resource.as_deref());
    let substitutes = before.documents(names);
    if substitutes.is_empty() {
        return Ok(loaded);
    }
    let mut kept: Vec<_> = substitutes.keys().cloned().collect();
    let mut second = load_once(sources, namespace, again, substitutes)?;
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
    namespace: &str,
    again: bool,
    substitutes: Substitutes,
) -> Result<Loaded, LoadErrors> {
    let mut out = Findings::default();
    let mut resources = Resources { substitutes, ..Resources::default() };
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
    if let [_, second, ..] = resources.meshes.as_slice()
        && let Some(context) = &second.context
    {
        let message = "a second mesh configuration; give one only";
        out.errors.push(context.notice(At { line: 1, column: 1 }, "", message));
    }
    check_unique(&resources, &mut out);

    let profile = sources.enforcement.or(resources.enforcement).unwrap_or_default();
    let entries: Vec<_> = resources
        .service_entries
        .iter()
        .filter_map(|entry| validate::check(entry, profile, &mut out))
        .collect();
    if !out.errors.is_empty() {
        let mut all = out.errors;
        all.append(&mut out.rejected);
        all.sort_by(|a, b| a.place.cmp(&b.place));
        return Err(LoadErrors(all));
    }

    let mesh = resources.meshes.pop().unwrap_or_default();
    let exports = |m: &MeshConfig| {
        let given = m.default_export.as_ref().filter(|items| !items.is_empty())?;
        Some(given.iter().map(|item| item.value.clone()).collect::<Vec<_>>())
    };
    let default_export = exports(&mesh).unwrap_or_else(|| vec!["*".to_owned()]);
    let summary = Summary {
        documents: resources.documents,
        service_entries: entries.len(),
        services: 0,
        telemetries: resources.telemetries.len(),
    };
    let registry = compile(entries, namespace, &default_export, profile, &mut out);
    let summary = Summary { services: registry.services.len(), ..summary };
    let outbound = sources.outbound.or(mesh.outbound).unwrap_or_default();
    let logged = telemetry::Logged { namespace, labels: &sources.labels };
    let access_log = telemetry::outputs(&resources.telemetries, &mesh, logged, &mut out);
    let sniff_timeout = sniff_timeout(&mesh, profile, &mut out);
    let snapshot = snapshot(registry, mesh, profile, outbound, namespace);
    let snapshot = Snapshot { access_log, sniff_timeout, ..snapshot };
    let inventory = {
        let rejected: HashSet<_> =
            out.rejected.iter().filter_map(|notice| notice.resource.as_deref()).collect();
        Inventory::of(resources.seen, &texts, |id| rejected.contains(id))
    };
    Ok(Loaded { snapshot, warnings: out.warnings, rejected: out.rejected, summary, inventory })
}

fn snapshot(
    registry: Registry,
    mesh: MeshConfig,
    enforcement: Enforcement,
    outbound: Outbound,
    namespace: &str,
) -> Snapshot {
    Snapshot {
        generation: 1,
        policy: Policy::new(namespace, enforcement, outbound, registry.services),
        enforcement,
        outbound,
        sniff_timeout: None,
        connect_timeout: mesh.connect_timeout.unwrap_or(Duration::from_secs(10)),
        dns_refresh: mesh.dns_refresh.unwrap_or(Duration::from_secs(60)),
        access_log: None,
        log_format: mesh.log_format,
        udp_allowed: registry.udp,
        refuse_datagrams: enforcement == Enforcement::Strict && outbound == Outbound::RegistryOnly,
    }
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

/// Two resources of one name would shadow each other silently.
fn check_unique(resources: &Resources, out: &mut Findings) {
    let mut seen = std::collections::HashSet::new();
    for entry in &resources.service_entries {
        if !seen.insert((&entry.meta.namespace, &entry.meta.name)) {
            let at = &entry.spec;
            let message = "a second resource of this name; rename or remove one";
            out.errors.push(entry.context.notice(at.at, "metadata.name", message));
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
