//! ServiceEntry as written: every field of the schema, typed and located (SE-1 to SE-18).

use std::net::IpAddr;
use std::sync::Arc;

use super::fields::{Context, Fields, Findings, Located, int, text};
use super::metadata::Meta;
use super::node::Node;
use crate::decide::pattern::EntryHost;

/// A ServiceEntry whose shape is right; whether it makes sense is `validate`'s question.
#[derive(Debug, Clone)]
pub(super) struct ServiceEntry {
    pub(super) meta: Meta,
    pub(super) context: Context,
    /// Where `spec` starts, for what is missing in it.
    pub(super) spec: Located<()>,
    pub(super) hosts: Vec<Located<String>>,
    pub(super) addresses: Vec<Located<String>>,
    pub(super) ports: Vec<Port>,
    pub(super) internal: bool,
    pub(super) resolution: Resolution,
    pub(super) endpoints: Vec<Endpoint>,
    pub(super) selector: Option<Located<Vec<(String, String)>>>,
    pub(super) export_to: Vec<Located<String>>,
    /// `status.addresses` (RES-18).
    pub(super) allocated: Vec<(EntryHost, IpAddr)>,
    /// Checked by nobody (SEV-25).
    pub(super) subject_alt_names: Vec<String>,
}

/// `spec.ports[]` (SE-3, SE-4).
#[derive(Debug, Clone)]
pub(super) struct Port {
    /// Absent only where that is already an error.
    pub(super) number: Option<Located<i64>>,
    pub(super) name: Located<String>,
    pub(super) protocol: Located<String>,
    pub(super) target_port: Option<Located<i64>>,
}

/// `spec.endpoints[]` (SE-7).
#[derive(Debug, Clone)]
pub(super) struct Endpoint {
    pub(super) address: Located<String>,
    pub(super) ports: Vec<(String, Located<i64>)>,
    pub(super) weight: Option<Located<i64>>,
    /// Sorted.
    pub(super) labels: Vec<(String, String)>,
    pub(super) network: Option<Located<String>>,
}

/// `spec.resolution` (SE-6, RES-1 to RES-5).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Resolution {
    None,
    Static,
    Dns,
    DnsRoundRobin,
    DynamicDns,
}

impl Resolution {
    const NAMES: [(&str, Self); 5] = [
        ("NONE", Self::None),
        ("STATIC", Self::Static),
        ("DNS", Self::Dns),
        ("DNS_ROUND_ROBIN", Self::DnsRoundRobin),
        ("DYNAMIC_DNS", Self::DynamicDns),
    ];

    pub(super) fn name(self) -> &'static str {
        Self::NAMES.iter().find(|(_, r)| *r == self).map_or("NONE", |(name, _)| name)
    }
}

impl ServiceEntry {
    /// Reads `spec`. Mistakes of shape are errors; fields with no effect yet are warnings.
    pub(super) fn read(meta: Meta, spec: Fields<'_>, cx: &Context, out: &mut Findings) -> Self {
        let mut f = spec;
        let location = f.text("location", cx, out);
        let location =
            one_of(location, &[("MESH_EXTERNAL", false), ("MESH_INTERNAL", true)], cx, out);
        let resolution = one_of(f.text("resolution", cx, out), &Resolution::NAMES, cx, out);
        let selector = f.take("workloadSelector").map(|node| {
            let mut inner = Fields::of(node.value, node.path.clone(), cx, out);
            let labels = string_map(inner.entries("labels", cx, out), cx, out);
            inner.finish(cx, out);
            Located { value: labels, at: node.at, path: node.path }
        });
        let entry = Self {
            hosts: f.texts("hosts", cx, out),
            addresses: f.texts("addresses", cx, out),
            ports: f.list("ports", cx, out).into_iter().map(|n| Port::read(n, cx, out)).collect(),
            internal: location.unwrap_or(false),
            resolution: resolution.unwrap_or(Resolution::None),
            endpoints: f
                .list("endpoints", cx, out)
                .into_iter()
                .map(|n| Endpoint::read(n, cx, out))
                .collect(),
            selector,
            export_to: f.texts("exportTo", cx, out),
            allocated: Vec::new(),
            subject_alt_names: f
                .texts("subjectAltNames", cx, out)
                .into_iter()
                .map(|name| name.value)
                .collect(),
            spec: Located { value: (), at: f.at(), path: f.path_of("hosts") },
            meta,
            context: cx.clone(),
        };
        f.finish(cx, out);
        entry
    }
}

impl Port {
    fn read(node: Located<&Node>, cx: &Context, out: &mut Findings) -> Self {
        let mut f = Fields::of(node.value, node.path.clone(), cx, out);
        let absent = |field: &str| (node.at, format!("{}.{field}", node.path));
        let or_empty = |found: Option<Located<String>>, field: &str| {
            let (at, path) = absent(field);
            found.unwrap_or(Located { value: String::new(), at, path })
        };
        if !f.has("number") {
            let (at, path) = absent("number");
            out.errors.push(cx.notice(at, &path, "missing"));
        }
        let port = Self {
            number: f.int("number", cx, out),
            name: or_empty(f.text("name", cx, out), "name"),
            protocol: or_empty(f.text("protocol", cx, out), "protocol"),
            target_port: f.int("targetPort", cx, out),
        };
        f.finish(cx, out);
        port
    }
}

impl Endpoint {
    fn read(node: Located<&Node>, cx: &Context, out: &mut Findings) -> Self {
        let mut f = Fields::of(node.value, node.path.clone(), cx, out);
        let network = without_effect(&mut f, cx, out);
        let ports = f.entries("ports", cx, out).unwrap_or_default();
        let mut labels = string_map(f.entries("labels", cx, out), cx, out);
        labels.sort();
        let endpoint = Self {
            address: f.text("address", cx, out).unwrap_or_else(|| Located {
                value: String::new(),
                at: node.at,
                path: format!("{}.address", node.path),
            }),
            ports: ports
                .into_iter()
                .filter_map(|(name, n)| int(n, cx, out).map(|port| (name, port)))
                .collect(),
            weight: f.int("weight", cx, out),
            labels,
            network,
        };
        f.finish(cx, out);
        endpoint
    }
}

/// What an endpoint may say that changes nothing here, said so; gives its `network`.
pub(super) fn without_effect(
    f: &mut Fields<'_>,
    cx: &Context,
    out: &mut Findings,
) -> Option<Located<String>> {
    let locality = f.text("locality", cx, out);
    let account = f.text("serviceAccount", cx, out);
    let network = f.text("network", cx, out);
    for (found, why) in [
        (&locality, "where the workload runs is not known, so all endpoints are equally near"),
        (&account, "no mesh identity is checked; list names in subjectAltNames"),
        (&network, "endpoints are dialled directly, in whatever network they are"),
    ] {
        if let Some(found) = found {
            let message = format!("has no effect here: {why}");
            out.warnings.push(cx.notice(found.at, &found.path, message));
        }
    }
    network
}

/// The meaning of an enumerated text, or an error that lists what is allowed.
pub(super) fn one_of<T: Copy>(
    found: Option<Located<String>>,
    names: &[(&str, T)],
    cx: &Context,
    out: &mut Findings,
) -> Option<T> {
    let found = found?;
    if let Some((_, value)) = names.iter().find(|(name, _)| *name == found.value) {
        return Some(*value);
    }
    let allowed: Vec<&str> = names.iter().map(|(name, _)| *name).collect();
    let message = format!("unknown value \"{}\"; use one of {}", found.value, allowed.join(", "));
    out.errors.push(cx.notice(found.at, &found.path, message));
    None
}

/// Labels and the like.
pub(super) fn string_map(
    entries: Option<Vec<(String, Located<&Node>)>>,
    cx: &Context,
    out: &mut Findings,
) -> Vec<(String, String)> {
    let entries = entries.unwrap_or_default().into_iter();
    entries.filter_map(|(k, v)| text(v, cx, out).map(|v| (k, v.value))).collect()
}

pub(super) fn not_yet<T>(cx: &Context, out: &mut Findings, at: &Located<T>, effect: &str) {
    let message = format!("not supported yet: {effect}");
    out.warnings.push(cx.notice(at.at, &at.path, message));
}

impl ServiceEntry {
    /// Takes over what a control plane wrote into `status`. It is nobody's mistake if that is not
    /// understood, so nothing is said of it.
    pub(super) fn read_status(&mut self, status: &Node) {
        let address = |item: &Node| {
            let host = EntryHost::parse(item.get_text("host")?).ok()?;
            let ip: IpAddr = item.get_text("value")?.parse().ok()?;
            Some((host, ip.to_canonical()))
        };
        let items = status.get("addresses").and_then(Node::items).unwrap_or_default();
        self.allocated = items.iter().filter_map(address).collect();
    }

    /// `ServiceEntry default/google`.
    pub(super) fn id(&self) -> crate::decide::RuleId {
        crate::decide::RuleId {
            kind: "ServiceEntry",
            namespace: Arc::clone(&self.meta.namespace),
            name: Arc::clone(&self.meta.name),
        }
    }
}
