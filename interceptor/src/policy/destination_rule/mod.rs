//! DestinationRule: every field of the schema, typed, validated (DRV-1 to DRV-16), and looked up
//! (DR-1 to DR-8). A rule never creates a service and never changes what is allowed (DR-17).

mod blocks;
mod reader;
mod rules;
#[cfg(test)]
mod tests;
mod tls;

use std::collections::HashSet;
use std::sync::Arc;

pub(super) use self::blocks::Blocks;
use self::blocks::Policy;
pub(super) use self::reader::{Reader, string_pairs};
pub(crate) use self::rules::{Defaults, PortKind, Rules, ServicePort};
use super::entry::is_dns_label;
use super::fields::{Context, Fields, Findings, Located};
use super::metadata::Meta;
use super::node::Node;
use super::workload_entry::bad_label;
use crate::decide::RuleId;

/// A DestinationRule that holds.
#[derive(Debug, Clone)]
pub(crate) struct DestinationRule {
    pub(super) meta: Meta,
    pub(super) context: Context,
    /// In normal form, short names expanded (DR-5): `a.com`, `*.a.com`, `*a.com` or `*`.
    pub(super) host: String,
    /// The top-level `trafficPolicy`.
    pub(super) policy: Option<Policy>,
    /// Each name once.
    pub(super) subsets: Vec<Subset>,
    /// `workloadSelector.matchLabels` (DR-4).
    pub(super) selector: Option<Vec<(String, String)>>,
    /// Namespaces and `*`, sorted, `.` replaced; empty = the mesh default (MESH-8).
    pub(super) export_to: Vec<String>,
}

/// `spec.subsets[]` (DR-8).
#[derive(Debug, Clone)]
pub(crate) struct Subset {
    pub(super) name: String,
    pub(super) labels: Vec<(String, String)>,
    pub(super) policy: Option<Policy>,
}

impl DestinationRule {
    /// Reads and checks `spec`; `None` where a rule of validation rejects it, all rejections noted.
    /// Mistakes of shape (types, unknown fields) are errors of the document.
    pub(super) fn read(
        meta: Meta,
        spec: Fields<'_>,
        cx: &Context,
        out: &mut Findings,
    ) -> Option<Self> {
        let mut f = spec;
        let mut r = Reader::new(cx, out);
        let absent = Located { value: (), at: f.at(), path: f.path_of("host") };
        let host = match r.text(&mut f, "host") {
            Some(host) => rule_host(&host, &meta.namespace, &mut r),
            None => {
                r.reject(&absent, "missing (DRV-1)");
                String::new()
            }
        };
        let policy = f.take("trafficPolicy").map(|node| Policy::read(&node, &mut r));
        let subsets = subsets(&mut f, &mut r);
        let selector = f.take("workloadSelector").map(|n| r.selector(&n, "matchLabels"));
        let export_to = r.export_to(&mut f, &meta.namespace, selector.is_some());
        f.finish(r.cx, r.out);
        let good = r.good;
        let context = cx.clone();
        good.then_some(Self { meta, context, host, policy, subsets, selector, export_to })
    }

    /// `DestinationRule default/google`.
    pub(super) fn id(&self) -> RuleId {
        RuleId {
            kind: "DestinationRule",
            namespace: Arc::clone(&self.meta.namespace),
            name: Arc::clone(&self.meta.name),
        }
    }
}

/// DRV-1 and DR-5: a host name, `*`, or a wildcard in front of one; in normal form.
fn rule_host(host: &Located<String>, namespace: &str, r: &mut Reader<'_>) -> String {
    let text = host.value.to_ascii_lowercase();
    let text = text.strip_suffix('.').unwrap_or(&text);
    let (wildcard, rest) = match text.strip_prefix('*') {
        // What follows may be whole labels or, in istio's partial wildcards, the end of one.
        Some(rest) => (true, rest.strip_prefix(['.', '-']).unwrap_or(rest)),
        None => (false, text),
    };
    let numeric = rest.rsplit_once('.').is_some_and(|(_, top)| is_number(top));
    let name = rest.split('.').all(is_dns_label) && !numeric;
    if text.len() > 255 || !(name || text == "*") {
        r.reject(host, format!("\"{}\" is not a host name (DRV-1)", host.value));
    }
    if wildcard { text.to_owned() } else { expand(text, namespace) }
}

fn is_number(label: &str) -> bool {
    label.bytes().all(|b| b.is_ascii_digit())
}

/// VS-6: a name without dots belongs to the resource's own namespace.
pub(super) fn expand(host: &str, namespace: &str) -> String {
    if host.contains('.') {
        host.to_owned()
    } else {
        format!("{host}.{namespace}.svc.cluster.local")
    }
}

/// DRV-12.
fn subsets(f: &mut Fields<'_>, r: &mut Reader<'_>) -> Vec<Subset> {
    let mut names = HashSet::new();
    let items = f.list("subsets", r.cx, r.out);
    items.iter().filter_map(|node| subset(node, &mut names, r)).collect()
}

fn subset(
    node: &Located<&Node>,
    names: &mut HashSet<String>,
    r: &mut Reader<'_>,
) -> Option<Subset> {
    let mut f = r.fields(node);
    let name = r.text(&mut f, "name");
    match &name {
        None => r.reject(node, "name is missing (DRV-12)"),
        Some(name) if !is_dns_label(&name.value) => {
            r.reject(name, format!("\"{}\" is not a DNS label (DRV-12)", name.value));
        }
        Some(name) if !names.insert(name.value.clone()) => {
            r.reject(name, format!("subset \"{}\" is given twice (DRV-12)", name.value));
        }
        Some(_) => {}
    }
    let labels = string_pairs(&mut f, "labels", r);
    if labels.is_empty() {
        r.warn(node, "a subset without labels selects every endpoint (DRV-12)");
    }
    for (key, value) in &labels {
        if let Some(why) = bad_label(key, value) {
            r.reject(node, why);
        }
    }
    let policy = f.take("trafficPolicy").map(|node| Policy::read(&node, r));
    f.finish(r.cx, r.out);
    Some(Subset { name: name?.value, labels, policy })
}
