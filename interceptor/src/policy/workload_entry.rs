//! WorkloadEntry: one endpoint that ServiceEntries select by its labels (SE-8, SE-11; SEV-24).

use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;

use super::destination_rule::{Reader, string_pairs};
use super::entry::{EndpointAddress, ServiceEndpoint, is_dns_label};
use super::fields::{Context, Fields, Findings, Located, int};
use super::metadata::Meta;
use super::selection::Workload;
use super::service_entry::without_effect;
use crate::decide::RuleId;
use crate::decide::host::HostName;

/// A WorkloadEntry that holds.
#[derive(Debug, Clone)]
pub(crate) struct WorkloadEntry {
    pub(super) meta: Meta,
    /// `None`: only `network` is given, and nothing can be dialled directly.
    pub(super) address: Option<EndpointAddress>,
    /// By the name of the service's port.
    pub(super) ports: Vec<(String, u16)>,
    /// Sorted.
    pub(super) labels: Vec<(String, String)>,
    /// At least 1.
    pub(super) weight: u32,
}

impl WorkloadEntry {
    /// Reads and checks `spec`; `None` where SEV-24 rejects it.
    pub(super) fn read(
        meta: Meta,
        spec: Fields<'_>,
        cx: &Context,
        out: &mut Findings,
    ) -> Option<Self> {
        let mut f = spec;
        let mut r = Reader::new(cx, out);
        let absent = Located { value: (), at: f.at(), path: f.path_of("address") };
        let ports = read_ports(&mut f, &mut r);
        let network = without_effect(&mut f, r.cx, r.out).filter(|n| !n.value.is_empty());
        let given = f.text("address", r.cx, r.out).filter(|n| !n.value.is_empty());
        if given.is_none() && network.is_none() {
            r.reject(&absent, "missing, and no network instead (SEV-24)");
        }
        let address = given.and_then(|text| read_address(&text, !ports.is_empty(), &mut r));
        let labels_at = Located { value: (), at: f.at(), path: f.path_of("labels") };
        let labels = string_pairs(&mut f, "labels", &mut r);
        for (key, value) in &labels {
            if let Some(why) = bad_label(key, value) {
                r.reject(&labels_at, format!("{why} (SEV-24)"));
            }
        }
        let entry = Self {
            meta,
            address,
            ports,
            labels,
            weight: r.number(&mut f, "weight").map_or(1, |weight| weight.value.max(1)),
        };
        f.finish(r.cx, r.out);
        r.good.then_some(entry)
    }

    /// `WorkloadEntry default/vm1`.
    fn id(&self) -> RuleId {
        RuleId {
            kind: "WorkloadEntry",
            namespace: Arc::clone(&self.meta.namespace),
            name: Arc::clone(&self.meta.name),
        }
    }

    /// It as entries select it, where it has an address.
    pub(super) fn to_workload(&self) -> Option<Workload> {
        let address = self.address.as_ref()?;
        Some(Workload {
            id: self.id(),
            namespace: Arc::clone(&self.meta.namespace),
            labels: self.labels.clone(),
            endpoint: ServiceEndpoint {
                address: address.clone(),
                ports: self.ports.clone(),
                weight: self.weight,
                labels: self.labels.clone(),
            },
        })
    }
}

fn read_ports(f: &mut Fields<'_>, r: &mut Reader<'_>) -> Vec<(String, u16)> {
    let mut ports = Vec::new();
    for (name, node) in f.entries("ports", r.cx, r.out).unwrap_or_default() {
        if !is_dns_label(&name) {
            r.reject(&node, format!("\"{name}\" is not the name of a port (SEV-24)"));
        }
        if let Some(port) = int(node, r.cx, r.out).and_then(|number| r.port(&number)) {
            ports.push((name, port));
        }
    }
    ports
}

fn read_address(
    text: &Located<String>,
    has_ports: bool,
    r: &mut Reader<'_>,
) -> Option<EndpointAddress> {
    if let Some(path) = text.value.strip_prefix("unix://") {
        if !path.starts_with('/') {
            r.reject(text, "a unix socket needs an absolute path (SEV-24)");
        }
        if has_ports {
            r.reject(text, "a unix socket has no ports (SEV-24)");
        }
        return Some(EndpointAddress::Unix(Path::new(path).into()));
    }
    if let Ok(ip) = text.value.parse::<IpAddr>() {
        return Some(EndpointAddress::Ip(ip.to_canonical()));
    }
    match HostName::parse(&text.value) {
        Ok(name) if !name.is_rfc_1123() => {
            r.reject(text, format!("\"{name}\" is not a host name (SEV-24)"));
            None
        }
        Ok(name) => Some(EndpointAddress::Name(name)),
        Err(bad) => {
            r.reject(text, format!("\"{}\": {bad} (SEV-24)", text.value));
            None
        }
    }
}

/// Why a label is none by the rules of Kubernetes; `None` if it is one.
pub(super) fn bad_label(key: &str, value: &str) -> Option<String> {
    let (prefix, name) = match key.split_once('/') {
        Some((prefix, name)) => (Some(prefix), name),
        None => (None, key),
    };
    let word = |text: &str| {
        let inner = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
        let edge = |b: Option<u8>| b.is_some_and(|b| b.is_ascii_alphanumeric());
        text.len() <= 63
            && text.bytes().all(inner)
            && edge(text.bytes().next())
            && edge(text.bytes().next_back())
    };
    let domain = |text: &str| text.len() <= 253 && text.split('.').all(is_dns_label);
    if !word(name) || prefix.is_some_and(|prefix| !domain(prefix)) {
        return Some(format!("\"{key}\" is not a label key"));
    }
    (!value.is_empty() && !word(value)).then(|| format!("\"{value}\" is not a label value"))
}

#[cfg(test)]
mod tests;
