//! Files to a snapshot: read everything, report everything, then compile.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::fs;
use std::io::Read as _;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::checked::{Checked, ROOT};
use super::fields::{Context, Findings};
use super::interceptor_config::{self, Scope};
use super::inventory::{Inventory, Substitutes};
use super::node::{At, MAX_FILE_BYTES};
use super::notice::{LoadErrors, Notice};
use super::parts::Known;
use super::resource::Resources;
use super::{Enforcement, OnLogLoss, OnLoss, OnRemoval, Outbound, Snapshot};
use crate::decide::pattern::EntryHost;

/// Where rules come from, and what overrides them.
#[derive(Debug, Clone, Default)]
pub struct Sources {
    /// Files, or directories of `*.yaml` and `*.yml` (not searched deeper), in order.
    pub files: Vec<PathBuf>,
    /// A mesh configuration: bare, as `meshConfig` of an IstioOperator, or Istio's ConfigMap.
    pub mesh_config: Option<PathBuf>,
    /// Resources given as text, after the files, each under the name that messages call it by; with
    /// an empty one they begin with the resource.
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
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
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
    check_for(sources, before, Some(caller)).map(|checked| checked.compile(caller))
}

/// Reads and validates what is to follow `before`, for whichever workload it is compiled then.
///
/// # Errors
/// As for [`load`].
pub fn check_over(sources: &Sources, before: &Inventory) -> Result<Checked, LoadErrors> {
    check_for(sources, before, None)
}

/// The same; `lone` is the only workload, if there is one only.
fn check_for(
    sources: &Sources,
    before: &Inventory,
    lone: Option<&Caller>,
) -> Result<Checked, LoadErrors> {
    let again = !before.is_empty();
    let known = before.known();
    let checked = check_once(sources, again, Substitutes::new(), &known, lone)?;
    let names = checked.rejected.iter().filter_map(|notice| notice.resource.as_deref());
    let substitutes = before.documents(names);
    if substitutes.is_empty() {
        return Ok(checked);
    }
    let mut kept: Vec<_> = substitutes.keys().cloned().collect();
    let mut second = check_once(sources, again, substitutes, &known, lone)?;
    // What was good once need not be beside other settings.
    kept.retain(|id| second.rejected.iter().all(|notice| notice.resource.as_deref() != Some(id)));
    second.inventory.keep(before, kept.iter());
    for mut notice in checked.rejected {
        let is_kept = |id: &str| kept.iter().any(|kept| **kept == *id);
        if notice.resource.as_deref().is_some_and(is_kept) {
            notice.message.push_str("; its last good version stays");
            second.rejected.push(notice);
        }
    }
    second.rejected.sort_by(|a, b| a.place.cmp(&b.place));
    Ok(second)
}

fn check_once(
    sources: &Sources,
    again: bool,
    substitutes: Substitutes,
    known: &Arc<Known>,
    lone: Option<&Caller>,
) -> Result<Checked, LoadErrors> {
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
    let profile = sources.enforcement.or(enforcement(&resources, lone)).unwrap_or_default();
    let written = std::mem::take(&mut resources.service_entries).into_iter();
    let mut known = Known::with_capacity(written.len());
    let entries: Vec<_> =
        written.filter_map(|entry| entry.check(profile, &mut known, &mut out)).collect();
    reject_partial(&mut resources, profile, &mut out);
    if !out.errors.is_empty() {
        let mut all = out.errors;
        all.append(&mut out.rejected);
        all.sort_by(|a, b| a.place.cmp(&b.place));
        return Err(LoadErrors(all));
    }

    let inventory = {
        let rejected: HashSet<_> =
            out.rejected.iter().filter_map(|notice| notice.resource.as_deref()).collect();
        let seen = std::mem::take(&mut resources.seen);
        Inventory::of(seen, &texts, |id| rejected.contains(id)).with_known(known)
    };
    let mut checked =
        Checked::new(sources.overrides(), profile, entries, resources, inventory, out);
    checked.judge_configs(lone);
    Ok(checked)
}

impl Sources {
    /// What it says over the documents, without them.
    fn overrides(&self) -> Self {
        Self { files: Vec::new(), mesh_config: None, texts: Vec::new(), mesh_text: None, ..*self }
    }
}

/// The profile that InterceptorConfigs ask for.
fn enforcement(resources: &Resources, lone: Option<&Caller>) -> Option<Enforcement> {
    let root = resources.meshes.last().and_then(|mesh| mesh.root_namespace.as_deref());
    let root = root.unwrap_or(ROOT);
    let anybody = Caller::new(root);
    let scope = Scope { root, is_lone: lone.is_some() };
    interceptor_config::says(&resources.configs, lone.unwrap_or(&anybody), scope).enforcement
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
