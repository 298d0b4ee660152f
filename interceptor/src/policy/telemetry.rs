//! Telemetry, as far as access logging goes (TEL-1 to TEL-7).

use super::fields::{Context, Fields, Findings, Located};
use super::resource::Meta;
use super::service_entry::{not_yet, one_of};

/// A Telemetry resource as written.
#[derive(Debug, Clone)]
pub(super) struct Telemetry {
    pub(super) meta: Meta,
    /// It picks workloads by label or target; such a one is not applied yet.
    pub(super) selective: bool,
    /// `None` where the field is absent.
    pub(super) access_logging: Option<Vec<AccessLogging>>,
}

/// `spec.accessLogging[]`.
#[derive(Debug, Clone)]
pub(super) struct AccessLogging {
    pub(super) providers: Option<Vec<String>>,
    pub(super) disabled: Option<bool>,
    /// TEL-4: whether it concerns outbound lines.
    pub(super) outbound: bool,
}

/// What all levels together say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Verdict {
    /// No Telemetry concerns access logging.
    Silent,
    /// Switched off.
    Off,
    /// On, with the mesh configuration's own file.
    MeshFile,
    /// On, with the built-in `envoy` provider (TEL-6).
    Envoy,
}

impl Telemetry {
    pub(super) fn read(meta: Meta, spec: Fields<'_>, cx: &Context, out: &mut Findings) -> Self {
        let mut f = spec;
        let mut selective = false;
        for field in ["selector", "targetRefs", "targetRef"] {
            if let Some(found) = f.take(field) {
                not_yet(cx, out, &found, "this resource is ignored");
                selective = true;
            }
        }
        for field in ["metrics", "tracing"] {
            if let Some(found) = f.take(field) {
                not_yet(cx, out, &found, "only accessLogging is read");
            }
        }
        let access_logging = f.has("accessLogging").then(|| {
            let items = f.list("accessLogging", cx, out);
            items.into_iter().map(|item| AccessLogging::read(item, cx, out)).collect()
        });
        f.finish(cx, out);
        Self { meta, selective, access_logging }
    }
}

impl AccessLogging {
    fn read(node: Located<&super::node::Node>, cx: &Context, out: &mut Findings) -> Self {
        let mut f = Fields::of(node.value, node.path, cx, out);
        let listed = f.list("providers", cx, out);
        let mut providers = Vec::new();
        for item in listed {
            let mut provider = Fields::of(item.value, item.path, cx, out);
            if let Some(name) = provider.text("name", cx, out) {
                if name.value != "envoy" {
                    let message = format!(
                        "provider \"{}\" is not known here and is ignored; known: envoy",
                        name.value
                    );
                    out.warnings.push(cx.notice(name.at, &name.path, message));
                }
                providers.push(name.value);
            }
            provider.finish(cx, out);
        }
        let mut outbound = true;
        if let Some(found) = f.take("match") {
            let mut inner = Fields::of(found.value, found.path, cx, out);
            let modes = [("CLIENT_AND_SERVER", true), ("CLIENT", true), ("SERVER", false)];
            outbound = one_of(inner.text("mode", cx, out), &modes, cx, out).unwrap_or(true);
            inner.finish(cx, out);
        }
        if let Some(filter) = f.take("filter") {
            let message = "not supported yet; remove it to log every line";
            out.errors.push(cx.notice(filter.at, &filter.path, message));
        }
        let disabled = f.boolean("disabled", cx, out).map(|d| d.value);
        f.finish(cx, out);
        Self { providers: (!providers.is_empty()).then_some(providers), disabled, outbound }
    }
}

/// Combines the levels: root namespace, then the workload's own (TEL-1 to TEL-3).
pub(super) fn combine(all: &[Telemetry], root: &str, namespace: &str) -> Verdict {
    let mut levels = vec![root];
    if namespace != root {
        levels.push(namespace);
    }
    let mut spoken = false;
    let mut providers: Option<&[String]> = None;
    let mut disabled = false;
    for level in levels {
        let oldest = all
            .iter()
            .filter(|t| &*t.meta.namespace == level && !t.selective)
            .min_by_key(|t| (&t.meta.created, &t.meta.name));
        let Some(items) = oldest.and_then(|t| t.access_logging.as_ref()) else { continue };
        for item in items.iter().filter(|item| item.outbound) {
            spoken = true;
            if let Some(named) = &item.providers {
                providers = Some(named);
                disabled = false;
            }
            disabled = item.disabled.unwrap_or(disabled);
        }
    }
    match (spoken, disabled, providers) {
        (false, ..) => Verdict::Silent,
        (true, true, _) => Verdict::Off,
        (true, false, None) => Verdict::MeshFile,
        (true, false, Some(names)) if names.iter().any(|n| n == "envoy") => Verdict::Envoy,
        (true, false, Some(_)) => Verdict::Off,
    }
}
