//! From documents to resources: what kind, whose, and what of it is understood.

use std::collections::HashSet;
use std::path::Path;
use std::sync::Arc;

use super::destination_rule::DestinationRule;
use super::fields::{Context, Fields, Findings};
use super::gateway::Gateway;
use super::interceptor_config::InterceptorConfig;
use super::inventory::{Seen, Substitutes, identity};
use super::kubernetes::{EndpointSlice, KubernetesService, SecretStore, read_pod};
use super::mesh::MeshConfig;
use super::metadata::{read_meta, shadows};
use super::node::{At, BadYaml, Node, Value, parse};
use super::parts::{self, Known, Origin, Part, Piece, Written};
use super::selection::Workload;
use super::service_entry::ServiceEntry;
use super::sidecar::Sidecar;
use super::telemetry::Telemetry;
use super::virtual_service::VirtualService;
use super::workload_entry::WorkloadEntry;

/// Everything that the files hold, as written.
#[derive(Debug, Default)]
pub(super) struct Resources {
    pub(super) service_entries: Vec<Written>,
    pub(super) destination_rules: Vec<DestinationRule>,
    pub(super) workload_entries: Vec<WorkloadEntry>,
    /// Pods that run (SE-8).
    pub(super) pods: Vec<Workload>,
    pub(super) services: Vec<KubernetesService>,
    pub(super) endpoint_slices: Vec<EndpointSlice>,
    pub(super) secrets: SecretStore,
    pub(super) virtual_services: Vec<VirtualService>,
    pub(super) sidecars: Vec<Sidecar>,
    pub(super) telemetries: Vec<Telemetry>,
    pub(super) meshes: Vec<MeshConfig>,
    pub(super) configs: Vec<InterceptorConfig>,
    /// See [`Gateway`]: for workloads that are one.
    pub(super) gateways: Vec<Gateway>,
    /// Documents read, understood or not.
    pub(super) documents: usize,
    /// Every resource read, in order.
    pub(super) seen: Vec<Seen>,
    /// What to read in place of some resources.
    pub(super) substitutes: Substitutes,
    /// The resources so far of kinds that would shadow each other.
    pub(super) names: HashSet<Arc<str>>,
    /// What need not be read again.
    pub(super) known: Arc<Known>,
}

/// Istio kinds that come with a later part and whose absence opens nothing that the outbound mode
/// would not open.
const LATER: [&str; 8] = [
    "WorkloadGroup",
    "Gateway",
    "EnvoyFilter",
    "ProxyConfig",
    "WasmPlugin",
    "AuthorizationPolicy",
    "PeerAuthentication",
    "RequestAuthentication",
];

/// Whether an `apiVersion` is one of Kubernetes' own, whose kinds commonly stand in the same files.
fn is_kubernetes(version: &str) -> bool {
    let Some((group, _)) = version.rsplit_once('/') else { return version == "v1" };
    matches!(group, "apps" | "autoscaling" | "batch" | "policy") || group.ends_with(".k8s.io")
}

/// A piece of a file that was understood.
enum Parsed<'t> {
    Known(Arc<str>, Arc<Part>),
    Nodes(Piece<'t>, Vec<Node>),
}

impl Resources {
    /// Reads one file's text: every document of it or, where one cannot be parsed, none.
    pub(super) fn read(&mut self, file: &Arc<Path>, text: &str, out: &mut Findings) {
        let pieces = parts::cut(text);
        let mut parsed = Vec::with_capacity(pieces.len());
        for piece in &pieces {
            let known = self.known.get_key_value(piece.text);
            let known = known.filter(|(_, part)| !self.substitutes.contains_key(&part.id));
            if let Some((text, part)) = known {
                parsed.push(Parsed::Known(Arc::clone(text), Arc::clone(part)));
                continue;
            }
            match parse(piece.text) {
                Ok(nodes) => parsed.push(Parsed::Nodes(*piece, nodes)),
                Err(bad) if pieces.len() == 1 => return unreadable(file, bad, out),
                // The whole text has the message, and the last word.
                Err(_) => {
                    let whole = Piece { text, line: 0 };
                    parsed = vec![Parsed::Nodes(whole, documents(file, text, out))];
                    break;
                }
            }
        }
        let mut index = 0;
        for (parsed, piece) in parsed.into_iter().zip(&pieces) {
            let mut cx = Context::new(file, index + 1);
            match parsed {
                // Its name is taken: it is read again, which says so and where.
                Parsed::Known(text, part) if !self.names.insert(Arc::clone(&part.id)) => {
                    cx.shift.line = piece.line;
                    self.read_piece(&Piece { text: &text, line: piece.line }, &cx, out);
                    index += 1;
                }
                Parsed::Known(text, part) => {
                    cx.shift.line = piece.line;
                    cx.resource = Some(Arc::clone(&part.id));
                    out.warnings.extend(part.read(&cx));
                    let (id, digest) = (Arc::clone(&part.id), part.digest);
                    self.seen.push(Seen { id, digest, file: Arc::clone(file) });
                    self.service_entries.push(Written::Known { part, text, context: cx });
                    self.documents += 1;
                    index += 1;
                }
                Parsed::Nodes(piece, nodes) => {
                    cx.shift.line = piece.line;
                    index += nodes.len();
                    self.nodes(&piece, &nodes, &cx, out);
                }
            }
        }
    }

    /// Reads one piece, known to parse, whose first document is `cx`.
    pub(super) fn read_piece(&mut self, piece: &Piece<'_>, cx: &Context, out: &mut Findings) {
        self.nodes(piece, &parse(piece.text).unwrap_or_default(), cx, out);
    }

    fn nodes(&mut self, piece: &Piece<'_>, nodes: &[Node], first: &Context, out: &mut Findings) {
        let before = (self.documents, self.seen.len(), self.service_entries.len());
        let said = out.warnings.len();
        for (index, node) in nodes.iter().enumerate() {
            let mut cx = Context::new(&first.file, first.document + index);
            cx.shift = first.shift;
            self.document(node, cx, out);
        }
        // A piece that is one ServiceEntry and nothing else can be remembered.
        let after = (self.documents, self.seen.len(), self.service_entries.len());
        if after == (before.0 + 1, before.1 + 1, before.2 + 1)
            && let Some(Written::New { origin, .. }) = self.service_entries.last_mut()
            && let Some(seen) = self.seen.last()
        {
            let (text, id) = (piece.text.into(), Arc::clone(&seen.id));
            let read = out.warnings[said..].to_vec();
            *origin = Some(Origin { text, id, digest: seen.digest, read });
        }
    }

    /// Reads the file given as mesh configuration, which may also be bare.
    pub(super) fn read_mesh(&mut self, file: &Arc<Path>, text: &str, out: &mut Findings) {
        let nodes = documents(file, text, out);
        if nodes.is_empty() {
            self.meshes.push(MeshConfig::default());
        }
        for (index, node) in nodes.iter().enumerate() {
            let context = Context::new(file, index + 1);
            if node.get("kind").is_some() {
                let before = self.meshes.len();
                let errors = out.errors.len();
                self.document(node, context.clone(), out);
                if self.meshes.len() == before && out.errors.len() == errors {
                    let message = "holds no mesh configuration; give resources with -f";
                    out.errors.push(context.notice(node.at, "", message));
                }
            } else if node.get("spec").is_some() {
                self.documents += 1;
                self.note("MeshConfig".into(), node, &context);
                let mut top = Fields::of(node, "", &context, out);
                self.operator(&mut top, &context, out);
                top.finish(&context, out);
            } else {
                self.documents += 1;
                self.note("MeshConfig".into(), node, &context);
                let config = MeshConfig::read(Fields::of(node, "", &context, out), &context, out);
                self.meshes.push(config);
            }
        }
    }

    fn note(&mut self, id: Arc<str>, node: &Node, cx: &Context) {
        self.seen.push(Seen { id, digest: node.digest(), file: Arc::clone(&cx.file) });
    }

    fn document(&mut self, node: &Node, cx: Context, out: &mut Findings) {
        let id = identity(node);
        match id.as_deref().and_then(|id| self.substitutes.get(id)).cloned() {
            Some((node, cx)) => self.resource(&node, cx, out),
            None => {
                if let Some(id) = id {
                    self.note(id.into(), node, &cx);
                }
                self.resource(node, cx, out);
            }
        }
    }

    fn resource(&mut self, node: &Node, mut cx: Context, out: &mut Findings) {
        if !matches!(node.value, Value::Map(_)) {
            let message = format!("expected a resource, found {}", node.kind());
            out.errors.push(cx.notice(node.at, "", message));
            return;
        }
        let mut top = Fields::of(node, "", &cx, out);
        let version = top.text("apiVersion", &cx, out);
        let Some(kind) = top.text("kind", &cx, out) else {
            let message = "no kind; every resource starts with apiVersion and kind";
            out.errors.push(cx.notice(node.at, "kind", message));
            return;
        };
        let version_text = version.as_ref().map_or("", |v| v.value.as_str());
        let group = version_text.rsplit_once('/').map_or("", |(group, _)| group);
        if kind.value == "List" || (kind.value.ends_with("List") && node.get("items").is_some()) {
            for item in top.list("items", &cx, out) {
                self.document(item.value, cx.clone(), out);
            }
            return;
        }
        self.documents += 1;
        let meta = read_meta(node, &mut top, &kind.value, &mut cx, out);
        let known: &[&str] = match kind.value.as_str() {
            "ServiceEntry" | "VirtualService" | "Sidecar" | "DestinationRule" | "WorkloadEntry" => {
                &[
                    "networking.istio.io/v1",
                    "networking.istio.io/v1beta1",
                    "networking.istio.io/v1alpha3",
                ]
            }
            "Telemetry" => &["telemetry.istio.io/v1", "telemetry.istio.io/v1alpha1"],
            "IstioOperator" => &["install.istio.io/v1alpha1"],
            "ConfigMap" | "Service" | "Secret" | "Pod" => &["v1"],
            "EndpointSlice" => &["discovery.k8s.io/v1"],
            "InterceptorConfig" => &["egress.interceptor.io/v1alpha1"],
            _ => &[],
        };
        if !known.is_empty() && !known.contains(&version_text) {
            let at = version.as_ref().map_or(node.at, |v| v.at);
            let message = format!(
                "\"{version_text}\" is not a version of {}; use {}",
                kind.value,
                known.join(", ")
            );
            out.errors.push(cx.notice(at, "apiVersion", message));
            return;
        }
        self.check_unique(&kind.value, node, &cx, out);
        match kind.value.as_str() {
            "ServiceEntry" => {
                let status = top.take("status");
                let spec = spec(&mut top, node, &cx, out);
                let mut entry = ServiceEntry::read(meta, spec, &cx, out);
                if let Some(status) = status {
                    entry.read_status(status.value);
                }
                self.service_entries.push(Written::New { entry: entry.into(), origin: None });
            }
            "DestinationRule" => {
                top.take("status");
                let spec = spec(&mut top, node, &cx, out);
                self.destination_rules.extend(DestinationRule::read(meta, spec, &cx, out));
            }
            "WorkloadEntry" => {
                top.take("status");
                let spec = spec(&mut top, node, &cx, out);
                self.workload_entries.extend(WorkloadEntry::read(meta, spec, &cx, out));
            }
            "Service" => {
                let spec = spec(&mut top, node, &cx, out);
                self.services.extend(KubernetesService::read(meta, node, spec, &cx, out));
                return;
            }
            "Pod" => {
                self.pods.extend(read_pod(&meta, node));
                return;
            }
            "EndpointSlice" => {
                self.endpoint_slices.extend(EndpointSlice::read(&meta, &mut top, &cx, out));
                return;
            }
            "Secret" => {
                self.secrets.read_secret(&meta, &mut top, &cx, out);
                return;
            }
            "ConfigMap" if node.get("data").is_none_or(|data| data.get("mesh").is_none()) => {
                self.secrets.read_config_map(&meta, &mut top, &cx, out);
                return;
            }
            "VirtualService" => {
                top.take("status");
                let spec = spec(&mut top, node, &cx, out);
                self.virtual_services.extend(VirtualService::read(meta, spec, &cx, out));
            }
            "Sidecar" => {
                top.take("status");
                let spec = spec(&mut top, node, &cx, out);
                let rejected = out.rejected.len();
                self.sidecars.extend(Sidecar::read(meta, spec, &cx, out));
                // A Sidecar restricts: leaving out one that does not hold would allow what it
                // forbids, so it takes the set with it.
                let bad = out.rejected.split_off(rejected);
                out.errors.extend(bad);
            }
            "Telemetry" => {
                top.take("status");
                let spec = spec(&mut top, node, &cx, out);
                self.telemetries.extend(Telemetry::read(meta, spec, &cx, out));
            }
            "IstioOperator" => {
                top.take("status");
                self.operator(&mut top, &cx, out);
            }
            "ConfigMap" => {
                self.config_map(node, &cx, out);
                return;
            }
            "InterceptorConfig" => {
                top.take("status");
                let spec = spec(&mut top, node, &cx, out);
                self.configs.push(InterceptorConfig::read(meta, node.at, spec, &cx, out));
            }
            other
                if group.ends_with("istio.io") && LATER.contains(&other)
                    || is_kubernetes(version_text) =>
            {
                let mut message = format!("{other}: not supported yet; ignored");
                if other == "Gateway" && group.ends_with("istio.io") {
                    self.gateways.push(Gateway::read(&meta, node, &cx));
                    message =
                        "Gateway: `interceptor gateway --address` serves it; all others ignore it"
                            .into();
                }
                out.warnings.push(cx.notice(kind.at, "kind", message));
                return;
            }
            other => {
                let message = format!("unknown kind \"{other}\"");
                out.errors.push(cx.notice(kind.at, "kind", message));
                return;
            }
        }
        top.finish(&cx, out);
    }

    /// Two resources of one name would shadow each other silently.
    fn check_unique(&mut self, kind: &str, node: &Node, cx: &Context, out: &mut Findings) {
        let Some(id) = cx.resource.as_ref().filter(|_| shadows(kind)) else { return };
        if !self.names.insert(Arc::clone(id)) {
            let name = node.get("metadata").and_then(|metadata| metadata.get("name"));
            let message = "a second resource of this name; rename or remove one";
            out.errors.push(cx.notice(name.map_or(node.at, |n| n.at), "metadata.name", message));
        }
    }

    /// `spec.meshConfig` of an IstioOperator, the kind itself given or not.
    fn operator(&mut self, top: &mut Fields<'_>, cx: &Context, out: &mut Findings) {
        let Some(spec) = top.take("spec") else { return };
        let mut spec = Fields::of(spec.value, "spec", cx, out);
        if let Some(mesh) = spec.take_present("meshConfig") {
            let fields = Fields::of(mesh.value, mesh.path, cx, out);
            self.meshes.push(MeshConfig::read(fields, cx, out));
        }
        for (key, _) in spec.rest() {
            let path = format!("spec.{}", key.name);
            out.warnings.push(cx.notice(key.at, &path, "not used by interceptor"));
        }
    }

    /// The `mesh` key of Istio's own ConfigMap.
    fn config_map(&mut self, node: &Node, cx: &Context, out: &mut Findings) {
        let mesh = node.get("data").and_then(|data| data.get("mesh"));
        let Some((mesh, inner)) = mesh.and_then(|m| match &m.value {
            Value::Text(inner) => Some((m, inner)),
            _ => None,
        }) else {
            out.warnings.push(cx.notice(node.at, "data.mesh", "absent; this ConfigMap is ignored"));
            return;
        };
        let mut inside = cx.clone();
        // A block scalar's position is that of its first character, indent included.
        inside.shift = At {
            line: cx.shift.line + mesh.at.line.saturating_sub(1),
            column: mesh.at.column.saturating_sub(1),
        };
        match parse(inner) {
            Ok(nodes) => {
                let empty = Node { at: mesh.at, value: Value::Null };
                let first = nodes.first().unwrap_or(&empty);
                let fields = Fields::of(first, "data.mesh", &inside, out);
                self.meshes.push(MeshConfig::read(fields, &inside, out));
            }
            Err(bad) => out.errors.push(inside.notice(bad.at, "data.mesh", bad.message)),
        }
    }
}

impl Context {
    pub(super) fn new(file: &Arc<Path>, document: usize) -> Self {
        Self { file: Arc::clone(file), document, resource: None, shift: At::default() }
    }
}

fn documents(file: &Arc<Path>, text: &str, out: &mut Findings) -> Vec<Node> {
    parse(text).unwrap_or_else(|bad| {
        unreadable(file, bad, out);
        Vec::new()
    })
}

fn unreadable(file: &Arc<Path>, bad: BadYaml, out: &mut Findings) {
    let message = format!("not readable as YAML: {}", bad.message);
    out.errors.push(Context::new(file, 0).notice(bad.at, "", message));
}

fn spec<'n>(top: &mut Fields<'n>, node: &'n Node, cx: &Context, out: &mut Findings) -> Fields<'n> {
    match top.take("spec") {
        Some(spec) => Fields::of(spec.value, "spec", cx, out),
        None => {
            out.errors.push(cx.notice(node.at, "spec", "missing"));
            Fields::empty("spec", node.at)
        }
    }
}
