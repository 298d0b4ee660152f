//! Telemetry, as far as access logging goes (TEL-1 to TEL-7).

mod shapes;

use std::sync::Arc;

use super::fields::{Context, Fields, Findings, Located};
use super::mesh::MeshConfig;
use super::metadata::Meta;
use super::node::{At, Node};
use super::providers::Writes;
use super::service_entry::{one_of, string_map};
use crate::account::{Filter, LogSettings, LogTarget};

/// The provider that exists without being defined (TEL-6).
const ENVOY: &str = "envoy";

/// A Telemetry resource as written.
#[derive(Debug, Clone)]
pub(super) struct Telemetry {
    pub(super) meta: Meta,
    context: Context,
    /// Whom it concerns.
    scope: Scope,
    access_logging: Vec<AccessLogging>,
}

/// Whom a Telemetry concerns within its namespace.
#[derive(Debug, Clone)]
enum Scope {
    Everybody,
    /// Workloads with all of these labels.
    Labels(Vec<(String, String)>),
    /// Gateways and services by `targetRefs`, never a workload's own proxy.
    Targets,
}

/// `spec.accessLogging[]`.
#[derive(Debug, Clone)]
struct AccessLogging {
    providers: Vec<Located<String>>,
    disabled: bool,
    filter: Option<Arc<Filter>>,
    /// TEL-4: whether it concerns outbound lines.
    outbound: bool,
}

/// The workload whose log is asked for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Logged<'a> {
    pub(super) namespace: &'a str,
    pub(super) labels: &'a [(String, String)],
}

impl Telemetry {
    /// Reads `spec`; `None` where the resource is rejected.
    pub(super) fn read(
        meta: Meta,
        spec: Fields<'_>,
        cx: &Context,
        out: &mut Findings,
    ) -> Option<Self> {
        let mut f = spec;
        let rejected = out.rejected.len();
        let scope = scope(&mut f, cx, out);
        shapes::read_unused(&mut f, cx, out);
        let items = f.list("accessLogging", cx, out);
        let access_logging =
            items.into_iter().map(|item| AccessLogging::read(item, cx, out)).collect();
        f.finish(cx, out);
        let valid = out.rejected.len() == rejected;
        valid.then(|| Self { meta, context: cx.clone(), scope, access_logging })
    }
}

fn scope(f: &mut Fields<'_>, cx: &Context, out: &mut Findings) -> Scope {
    let selector = f.take("selector");
    let labels = selector.as_ref().map(|found| {
        let mut inner = Fields::of(found.value, found.path.clone(), cx, out);
        let labels = string_map(inner.entries("matchLabels", cx, out), cx, out);
        inner.finish(cx, out);
        if let Some((key, _)) = labels.iter().find(|(k, v)| k.is_empty() || v.contains('*')) {
            let message = format!("label \"{key}\": neither an empty name nor a * in its value");
            out.rejected.push(cx.notice(found.at, &found.path, message));
        }
        labels
    });
    let targets = ["targetRefs", "targetRef"].into_iter().filter_map(|field| f.take(field)).last();
    match (labels, targets) {
        (Some(_), Some(found)) => {
            let message = "only one of selector and targetRefs";
            out.rejected.push(cx.notice(found.at, &found.path, message));
            Scope::Targets
        }
        (_, Some(found)) => {
            let message = "targets are gateways and services; workloads here are not concerned";
            out.warnings.push(cx.notice(found.at, &found.path, message));
            Scope::Targets
        }
        (Some(labels), None) if !labels.is_empty() => Scope::Labels(labels),
        _ => Scope::Everybody,
    }
}

impl AccessLogging {
    fn read(node: Located<&Node>, cx: &Context, out: &mut Findings) -> Self {
        let mut f = Fields::of(node.value, node.path, cx, out);
        let providers = providers(&mut f, cx, out);
        let outbound = matched(&mut f, cx, out, |_, _, _| {});
        let filter = f.take("filter").and_then(|found| filter(found, cx, out));
        let disabled = f.boolean("disabled", cx, out).is_some_and(|d| d.value);
        f.finish(cx, out);
        Self { providers, disabled, filter, outbound }
    }
}

/// `providers[]`, by name.
fn providers(f: &mut Fields<'_>, cx: &Context, out: &mut Findings) -> Vec<Located<String>> {
    let mut providers = Vec::new();
    for item in f.list("providers", cx, out) {
        let mut provider = Fields::of(item.value, item.path.clone(), cx, out);
        match provider.text("name", cx, out).filter(|name| !name.value.is_empty()) {
            Some(name) => providers.push(name),
            None => {
                let path = provider.path_of("name");
                out.rejected.push(cx.notice(item.at, &path, "missing"));
            }
        }
        provider.finish(cx, out);
    }
    providers
}

/// `match`: whether its mode concerns outbound traffic (TEL-4). `more` reads what else is in it.
fn matched(
    f: &mut Fields<'_>,
    cx: &Context,
    out: &mut Findings,
    more: impl FnOnce(&mut Fields<'_>, &Context, &mut Findings),
) -> bool {
    let Some(found) = f.take("match") else { return true };
    let mut inner = Fields::of(found.value, found.path, cx, out);
    let modes = [("CLIENT_AND_SERVER", true), ("CLIENT", true), ("SERVER", false)];
    let outbound = one_of(inner.text("mode", cx, out), &modes, cx, out).unwrap_or(true);
    more(&mut inner, cx, out);
    inner.finish(cx, out);
    outbound
}

/// TEL-5: the expression has to parse.
fn filter(found: Located<&Node>, cx: &Context, out: &mut Findings) -> Option<Arc<Filter>> {
    let mut f = Fields::of(found.value, found.path, cx, out);
    let expression = f.text("expression", cx, out).filter(|text| !text.value.is_empty());
    f.finish(cx, out);
    let expression = expression?;
    match Filter::parse(&expression.value) {
        Ok(filter) => Some(Arc::new(filter)),
        Err(error) => {
            // A plain scalar's columns are the expression's; of a block, the lines are.
            let at = At {
                line: expression.at.line + error.line - 1,
                column: if error.line == 1 {
                    expression.at.column + error.column - 1
                } else {
                    error.column
                },
            };
            out.rejected.push(cx.notice(at, &expression.path, error.to_string()));
            None
        }
    }
}

/// What one provider of the combined levels does.
struct Chosen<'a> {
    name: &'a Located<String>,
    /// Where it is named, for messages.
    context: Option<&'a Context>,
    disabled: bool,
    filter: Option<&'a Arc<Filter>>,
}

/// The outputs of the access log of one workload, from all levels together (TEL-1 to TEL-3, TEL-6,
/// MESH-2); `None` where nobody says anything, an empty list where it is switched off.
pub(super) fn outputs(
    all: &[Telemetry],
    mesh: &MeshConfig,
    workload: Logged<'_>,
    out: &mut Findings,
) -> Option<Vec<LogSettings>> {
    let file = || {
        mesh.log_target.as_ref().map(|target| {
            let output = |target: &LogTarget| LogSettings {
                target: target.clone(),
                format: Arc::clone(&mesh.log_format),
                filter: None,
            };
            target.iter().map(output).collect::<Vec<_>>()
        })
    };
    let levels = levels(all, mesh, workload);
    if levels.is_empty() && mesh.default_logging.is_empty() {
        return file();
    }
    let chosen = combine(&levels, mesh);
    let mut outputs = Vec::new();
    let mut known = false;
    for one in &chosen {
        let provider = mesh.providers.iter().find(|provider| provider.name == one.name.value);
        let output = match provider.map(|provider| &provider.writes) {
            Some(Writes::To(settings)) => settings.clone(),
            None if one.name.value == ENVOY => LogSettings {
                target: LogTarget::Stdout,
                format: Arc::clone(&mesh.log_format),
                filter: None,
            },
            other => {
                if let Some(context) = one.context.or(mesh.context.as_ref()) {
                    let message = explain_missing(one.name, other, mesh);
                    out.warnings.push(context.notice(one.name.at, &one.name.path, message));
                }
                known |= other.is_some();
                continue;
            }
        };
        known = true;
        if !one.disabled {
            outputs.push(LogSettings { filter: one.filter.cloned(), ..output });
        }
    }
    if known {
        return Some(outputs);
    }
    let items = || levels.iter().flat_map(|level| &level.access_logging);
    let off = items().rfind(|item| item.outbound).is_some_and(|item| item.disabled);
    match file() {
        _ if off => Some(Vec::new()),
        Some(file) => Some(file),
        None => (!chosen.is_empty()).then(Vec::new),
    }
}

fn explain_missing(name: &Located<String>, found: Option<&Writes>, mesh: &MeshConfig) -> String {
    let name = &name.value;
    if let Some(Writes::Elsewhere(kind)) = found {
        return format!(
            "provider \"{name}\" logs by {kind}, which is not supported; it is ignored"
        );
    }
    let mut known = vec![ENVOY];
    known.extend(mesh.providers.iter().map(|provider| provider.name.as_str()));
    format!("provider \"{name}\" is not known and is ignored; known: {}", known.join(", "))
}

/// The resources that count for a workload, from the widest to the narrowest (TEL-1).
fn levels<'a>(all: &'a [Telemetry], mesh: &MeshConfig, workload: Logged<'_>) -> Vec<&'a Telemetry> {
    let root = mesh.root_namespace.as_deref().unwrap_or("istio-system");
    let oldest = |namespace: &str, fits: &dyn Fn(&Scope) -> bool| {
        all.iter()
            .filter(|t| &*t.meta.namespace == namespace && fits(&t.scope))
            .min_by_key(|t| (&t.meta.created, &t.meta.name))
    };
    let everybody = |scope: &Scope| matches!(scope, Scope::Everybody);
    let selected = |scope: &Scope| match scope {
        Scope::Labels(wanted) => wanted.iter().all(|label| workload.labels.contains(label)),
        _ => false,
    };
    let own = (workload.namespace != root).then(|| oldest(workload.namespace, &everybody));
    let levels = [oldest(root, &everybody), own.flatten(), oldest(workload.namespace, &selected)];
    levels.into_iter().flatten().filter(|t| !t.access_logging.is_empty()).collect()
}

/// Every provider that some level names and that no deeper level replaces, in order.
fn combine<'a>(levels: &[&'a Telemetry], mesh: &'a MeshConfig) -> Vec<Chosen<'a>> {
    let outbound = |level: &&'a Telemetry| {
        let level: &'a Telemetry = level;
        level.access_logging.iter().filter(|item| item.outbound)
    };
    // TEL-2: the deepest level that names providers names all of them.
    let named = |level: &&'a Telemetry| outbound(level).any(|item| !item.providers.is_empty());
    let deepest = levels.iter().rposition(named);
    let in_scope = |name: &str| match deepest {
        Some(level) => {
            let mut listed = outbound(&levels[level]).flat_map(|item| &item.providers);
            listed.any(|provider| provider.value == name)
        }
        None => true,
    };
    let mut chosen: Vec<Chosen<'a>> = Vec::new();
    let mut inherited: (Option<&'a Context>, &'a [Located<String>]) = (None, &mesh.default_logging);
    if levels.is_empty() {
        let default = |name| Chosen { name, context: None, disabled: false, filter: None };
        return mesh.default_logging.iter().map(default).collect();
    }
    for level in levels {
        for item in outbound(level) {
            let explicit = !item.providers.is_empty();
            if explicit {
                inherited = (Some(&level.context), &item.providers);
            }
            for name in inherited.1.iter().filter(|name| in_scope(&name.value)) {
                let known = chosen.iter().position(|one| one.name.value == name.value);
                let index = known.unwrap_or_else(|| {
                    let context = inherited.0;
                    chosen.push(Chosen { name, context, disabled: false, filter: None });
                    chosen.len() - 1
                });
                let one = &mut chosen[index];
                one.disabled = item.disabled;
                if explicit || item.filter.is_some() {
                    one.filter = item.filter.as_ref();
                }
            }
        }
    }
    chosen
}
