//! `metadata`: whose a resource is, and how old.

use std::sync::Arc;

use super::fields::{Context, Fields, Findings};
use super::node::Node;
use super::service_entry::string_map;

/// Name, namespace and age.
#[derive(Debug, Clone)]
pub(super) struct Meta {
    pub(super) name: Arc<str>,
    pub(super) namespace: Arc<str>,
    /// RFC 3339 text in UTC sorts as time does; absent sorts first, like a file of unknown age.
    pub(super) created: Arc<str>,
    /// Sorted by key.
    pub(super) labels: Vec<(String, String)>,
    /// Its owner forbids hellos that offer to hide the name they mean (T-26), by [`ECH`].
    pub(super) forbids_ech: bool,
}

/// The annotation of a ServiceEntry that says whether TLS to its hosts may offer
/// encrypted_client_hello: `allow` (the default) or `forbid`.
const ECH: &str = "egress.interceptor.io/ech";

impl Meta {
    /// Whether its owner lets automatic addresses be allocated (RES-18).
    pub(super) fn allocates(&self) -> bool {
        let off = |(key, value): &(String, String)| {
            key == "networking.istio.io/enable-autoallocate-ip"
                && value.eq_ignore_ascii_case("false")
        };
        !self.labels.iter().any(off)
    }
}

/// Kinds that nothing can be said about without a name.
const NAMED: [&str; 9] = [
    "ServiceEntry",
    "Telemetry",
    "DestinationRule",
    "WorkloadEntry",
    "Service",
    "EndpointSlice",
    "Secret",
    "VirtualService",
    "Sidecar",
];

/// Whether a second resource of this kind and name would take the first one's place.
pub(super) fn shadows(kind: &str) -> bool {
    NAMED.contains(&kind) || kind == "ConfigMap"
}

/// Reads it; `cx` learns the resource's name.
pub(super) fn read_meta(
    node: &Node,
    top: &mut Fields<'_>,
    kind: &str,
    cx: &mut Context,
    out: &mut Findings,
) -> Meta {
    let given = node.get("metadata");
    let name = given.and_then(|m| m.get_text("name")).unwrap_or_default();
    let namespace = given.and_then(|m| m.get_text("namespace")).unwrap_or("default");
    if !name.is_empty() {
        cx.resource = Some(format!("{kind} {namespace}/{name}").into());
    }
    let mut meta = Meta {
        name: name.into(),
        namespace: namespace.into(),
        created: given.and_then(|m| m.get_text("creationTimestamp")).unwrap_or_default().into(),
        labels: Vec::new(),
        forbids_ech: false,
    };
    let Some(metadata) = top.take("metadata") else {
        if NAMED.contains(&kind) {
            out.errors.push(cx.notice(node.at, "metadata.name", "missing"));
        }
        return meta;
    };
    let mut f = Fields::of(metadata.value, "metadata", cx, out);
    if f.text("name", cx, out).is_none_or(|n| n.value.is_empty()) && NAMED.contains(&kind) {
        out.errors.push(cx.notice(metadata.at, "metadata.name", "missing"));
    }
    f.text("namespace", cx, out);
    f.text("creationTimestamp", cx, out);
    meta.labels = string_map(f.entries("labels", cx, out), cx, out);
    meta.labels.sort();
    let annotations = string_map(f.entries("annotations", cx, out), cx, out);
    if let Some((_, value)) = annotations.iter().find(|(key, _)| key == ECH) {
        match (kind, value.as_str()) {
            ("ServiceEntry", "forbid") => meta.forbids_ech = true,
            ("ServiceEntry", "allow") => {}
            _ => {
                let message = format!("{ECH} is allow or forbid, of a ServiceEntry");
                out.errors.push(cx.notice(metadata.at, "metadata.annotations", message));
            }
        }
    }
    // What the API server adds and what nothing here depends on.
    for other in [
        "uid",
        "resourceVersion",
        "generation",
        "managedFields",
        "ownerReferences",
        "finalizers",
        "selfLink",
        "generateName",
        "deletionTimestamp",
        "deletionGracePeriodSeconds",
    ] {
        f.take(other);
    }
    f.finish(cx, out);
    meta
}
