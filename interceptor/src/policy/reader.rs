//! Reading and checking in one pass: what the resources of routing share.

use std::collections::HashSet;
use std::net::IpAddr;
use std::time::Duration;

use ipnet::IpNet;

use super::entry::{is_dns_label, parse_network};
use super::fields::{Context, Fields, Findings, Located, text};
use super::node::Node;
use crate::decide::host::HostName;
use crate::decide::pattern::EntryHost;

/// Where cluster-local short names end (VS-6).
const DOMAIN: &str = "svc.cluster.local";

/// The document being read and what is found in it.
pub(super) struct Reader<'a> {
    pub(super) cx: &'a Context,
    pub(super) out: &'a mut Findings,
    pub(super) namespace: &'a str,
}

impl Reader<'_> {
    pub(super) fn fields<'n>(&mut self, node: &Located<&'n Node>) -> Fields<'n> {
        Fields::of(node.value, node.path.clone(), self.cx, self.out)
    }

    pub(super) fn reject<T>(&mut self, at: &Located<T>, message: impl Into<String>) {
        self.out.rejected.push(self.cx.notice(at.at, &at.path, message));
    }

    pub(super) fn warn<T>(&mut self, at: &Located<T>, message: impl Into<String>) {
        self.out.warnings.push(self.cx.notice(at.at, &at.path, message));
    }

    /// A field that is read and has no effect.
    pub(super) fn unused(&mut self, f: &mut Fields<'_>, field: &str, why: &str) {
        if let Some(found) = f.take(field) {
            self.warn(&found, format!("has no effect here: {why}"));
        }
    }

    pub(super) fn finish(&mut self, f: Fields<'_>) {
        f.finish(self.cx, self.out);
    }

    pub(super) fn text(&mut self, f: &mut Fields<'_>, field: &str) -> Option<Located<String>> {
        f.text(field, self.cx, self.out)
    }

    /// A text; empty counts as absent, as in protobuf.
    pub(super) fn some_text(&mut self, f: &mut Fields<'_>, field: &str) -> Option<Located<String>> {
        self.text(f, field).filter(|text| !text.value.is_empty())
    }

    pub(super) fn texts(&mut self, f: &mut Fields<'_>, field: &str) -> Vec<Located<String>> {
        f.texts(field, self.cx, self.out)
    }

    pub(super) fn int(&mut self, f: &mut Fields<'_>, field: &str) -> Option<Located<i64>> {
        f.int(field, self.cx, self.out)
    }

    pub(super) fn boolean(&mut self, f: &mut Fields<'_>, field: &str) -> Option<Located<bool>> {
        f.boolean(field, self.cx, self.out)
    }

    pub(super) fn list<'n>(&mut self, f: &mut Fields<'n>, field: &str) -> Vec<Located<&'n Node>> {
        f.list(field, self.cx, self.out)
    }

    pub(super) fn entries<'n>(
        &mut self,
        f: &mut Fields<'n>,
        field: &str,
    ) -> Vec<(String, Located<&'n Node>)> {
        f.entries(field, self.cx, self.out).unwrap_or_default()
    }

    /// A mapping of names to texts.
    pub(super) fn pairs(
        &mut self,
        f: &mut Fields<'_>,
        field: &str,
    ) -> Vec<(String, Located<String>)> {
        let entries = self.entries(f, field).into_iter();
        entries.filter_map(|(k, v)| text(v, self.cx, self.out).map(|v| (k, v))).collect()
    }

    /// Labels (VS-14, SC-1); Kubernetes' own rules for them are the API server's to check.
    pub(super) fn labels(&mut self, f: &mut Fields<'_>, field: &str) -> Vec<(String, String)> {
        self.pairs(f, field).into_iter().map(|(key, value)| (key, value.value)).collect()
    }

    /// A duration of at least 1 ms in whole milliseconds; `zero` says whether 0 may switch off.
    pub(super) fn duration(
        &mut self,
        f: &mut Fields<'_>,
        field: &str,
        zero: bool,
    ) -> Option<Duration> {
        let found = f.duration(field, self.cx, self.out)?;
        if zero && found.value.is_zero() {
            return None;
        }
        if found.value < Duration::from_millis(1) || found.value.subsec_nanos() % 1_000_000 != 0 {
            self.reject(&found, "must be whole milliseconds and at least 1ms");
        }
        Some(found.value)
    }

    /// A port between 1 and 65535.
    pub(super) fn port(&mut self, f: &mut Fields<'_>, field: &str) -> Option<u16> {
        let found = self.int(f, field)?;
        let port = u16::try_from(found.value).ok().filter(|port| *port > 0);
        if port.is_none() {
            self.reject(&found, format!("port {} is not between 1 and 65535", found.value));
        }
        port
    }

    /// A share in percent, given as `{value: N}`.
    pub(super) fn percentage(&mut self, f: &mut Fields<'_>, field: &str) -> Option<f64> {
        let node = f.take(field)?;
        let mut inner = self.fields(&node);
        let value = inner.number("value", self.cx, self.out);
        self.finish(inner);
        let Some(value) = value else { return Some(0.0) };
        if !(0.0..=100.0).contains(&value.value) || (value.value > 0.0 && value.value < 0.0001) {
            self.reject(&value, "must lie between 0 and 100, in steps of 0.0001 (VSV-9)");
        }
        Some(value.value)
    }

    /// A host, short names expanded (VS-6).
    pub(super) fn host(&mut self, host: &Located<String>) -> Option<EntryHost> {
        match EntryHost::parse(&expand(&host.value, self.namespace)) {
            Ok(found) => Some(found),
            Err(bad) => {
                self.reject(host, format!("\"{}\": {bad}", host.value));
                None
            }
        }
    }

    pub(super) fn subnets(&mut self, f: &mut Fields<'_>, field: &str) -> Vec<IpNet> {
        let mut subnets = Vec::new();
        for found in self.texts(f, field) {
            match parse_network(&found.value) {
                Some(network) => subnets.push(network),
                None => {
                    let message =
                        format!("\"{}\" is neither an IP address nor a CIDR", found.value);
                    self.reject(&found, message);
                }
            }
        }
        subnets
    }

    /// `exportTo` (SEV-21, VSV-17), sorted.
    pub(super) fn export_to(&mut self, items: &[Located<String>]) -> Vec<String> {
        let mut seen = HashSet::new();
        for item in items {
            let name = if item.value == "." { self.namespace } else { item.value.as_str() };
            if !seen.insert(name) {
                self.reject(item, format!("\"{}\" is given twice (SEV-21)", item.value));
            }
            if matches!(name, "*" | "~") {
                if items.len() > 1 {
                    self.reject(item, format!("\"{name}\" stands alone or not at all (SEV-21)"));
                }
            } else if !is_dns_label(name) {
                self.reject(item, format!("\"{name}\" is not a namespace (SEV-21)"));
            }
        }
        let mut names: Vec<String> = items.iter().map(|item| item.value.clone()).collect();
        names.sort();
        names
    }
}

/// A short name in full (VS-6); anything else as it stands.
pub(super) fn expand(host: &str, namespace: &str) -> String {
    let short = !host.contains('.') && !host.starts_with('*') && host.parse::<IpAddr>().is_err();
    if short && HostName::parse(host).is_ok() {
        format!("{host}.{namespace}.{DOMAIN}")
    } else {
        host.to_owned()
    }
}

/// Whether what is exported like this can be seen from `namespace` (SE-9); `default` stands for an
/// empty list (MESH-8).
pub(super) fn exported(
    export_to: &[String],
    default: &[String],
    owner: &str,
    namespace: &str,
) -> bool {
    let items = if export_to.is_empty() { default } else { export_to };
    items.iter().any(|item| match item.as_str() {
        "*" => true,
        "." => owner == namespace,
        name => name == namespace,
    })
}
