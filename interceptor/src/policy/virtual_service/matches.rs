//! `match` items and the texts that they compare (VS-10 to VS-15, VSV-14).

use regex::{Regex, RegexBuilder};

use super::super::fields::{Fields, Located};
use super::super::node::{Node, Value};
use super::super::reader::Reader;
use super::{MESH, Scope, StreamMatch};
use crate::decide::http_route::HttpMatch;
use crate::decide::pattern::EntryHost;
use crate::decide::route::TextMatch;
use crate::decide::uri::UriMatch;

/// VSV-14.
const MAX_PATTERN: usize = 1024;
/// What one compiled pattern may take.
const MAX_COMPILED_BYTES: usize = 1 << 20;

/// Compiles an RE2 pattern; `whole` anchors it at both ends.
pub(super) fn pattern(r: &mut Reader<'_>, text: &Located<String>, whole: bool) -> Option<Regex> {
    if text.value.is_empty() {
        r.reject(text, "an empty pattern (VSV-14)");
        return None;
    }
    if text.value.len() > MAX_PATTERN {
        r.reject(text, "a pattern longer than 1024 bytes (VSV-14)");
        return None;
    }
    let source = if whole { format!(r"\A(?:{})\z", text.value) } else { text.value.clone() };
    match RegexBuilder::new(&source).size_limit(MAX_COMPILED_BYTES).build() {
        Ok(regex) => Some(regex),
        Err(error) => {
            let reason = error.to_string();
            let reason = reason.lines().last().unwrap_or_default().trim_start_matches("error: ");
            r.reject(text, format!("not a pattern: {reason} (VSV-14)"));
            None
        }
    }
}

/// What a `StringMatch` says: nothing (presence), or one of its forms.
pub(super) fn string_match(
    r: &mut Reader<'_>,
    node: &Located<&Node>,
    allow_empty_prefix: bool,
) -> Option<TextMatch> {
    let mut f = r.fields(node);
    let exact = r.text(&mut f, "exact");
    let prefix = r.text(&mut f, "prefix");
    let regex = r.text(&mut f, "regex");
    r.finish(f);
    let given = [&exact, &prefix, &regex].into_iter().flatten().count();
    if given > 1 {
        r.reject(node, "give one of exact, prefix and regex");
    }
    if let Some(exact) = exact {
        return Some(TextMatch::Exact(exact.value));
    }
    if let Some(prefix) = prefix {
        if prefix.value.is_empty() && !allow_empty_prefix {
            r.reject(&prefix, "an empty prefix matches everything; leave it out (VSV-14)");
        }
        return Some(TextMatch::Prefix(prefix.value));
    }
    pattern(r, &regex?, true).map(TextMatch::Regex)
}

/// `http[].match[]`.
pub(super) fn http(r: &mut Reader<'_>, node: &Located<&Node>) -> (Scope, HttpMatch) {
    let mut f = r.fields(node);
    let scope = scope(r, &mut f);
    let field = |r: &mut Reader<'_>, f: &mut Fields<'_>, name: &str| {
        f.take(name).and_then(|node| string_match(r, &node, true))
    };
    let ignore_case = r.boolean(&mut f, "ignoreUriCase").is_some_and(|flag| flag.value);
    let uri = field(r, &mut f, "uri").map(|text| UriMatch { text, ignore_case });
    let found = HttpMatch {
        name: r.text(&mut f, "name").map(|name| name.value).unwrap_or_default(),
        uri,
        scheme: field(r, &mut f, "scheme"),
        method: field(r, &mut f, "method"),
        authority: field(r, &mut f, "authority"),
        headers: header_matches(r, &mut f, "headers"),
        without_headers: header_matches(r, &mut f, "withoutHeaders"),
        query: r
            .entries(&mut f, "queryParams")
            .into_iter()
            .map(|(name, node)| (name, string_match(r, &node, true)))
            .collect(),
    };
    // VS-16: no effect on logs, and there is nothing else that shows it.
    f.take("statPrefix");
    r.finish(f);
    (scope, found)
}

/// VS-12: the request's own parts have fields of their own, and as header names are ignored.
fn header_matches(
    r: &mut Reader<'_>,
    f: &mut Fields<'_>,
    field: &str,
) -> Vec<(String, Option<TextMatch>)> {
    let mut matches = Vec::new();
    for (name, node) in r.entries(f, field) {
        if !is_header_name(&name) {
            r.reject(&node, format!("\"{name}\" is not a header name"));
        }
        let want = match node.value.value {
            Value::Null => None,
            _ => string_match(r, &node, false),
        };
        let name = name.to_ascii_lowercase();
        if matches!(name.as_str(), "uri" | "scheme" | "method" | "authority") {
            let message = format!("ignored: use the field {name} of the match (VS-12)");
            r.warn(&node, message);
            continue;
        }
        matches.push((name, want));
    }
    matches
}

pub(super) fn is_header_name(name: &str) -> bool {
    !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_".contains(&b))
}

/// VS-14: the parts that concern the workload and not the traffic.
fn scope(r: &mut Reader<'_>, f: &mut Fields<'_>) -> Scope {
    Scope {
        gateways: gateways(r, f),
        labels: r.labels(f, "sourceLabels"),
        namespace: r.some_text(f, "sourceNamespace").map(|name| name.value),
        port: r.port(f, "port"),
    }
}

/// The field `gateways`: `mesh`, or in full.
pub(super) fn gateways(r: &mut Reader<'_>, f: &mut Fields<'_>) -> Vec<String> {
    let listed = r.texts(f, "gateways");
    for gateway in &listed {
        check_gateway(r, gateway);
    }
    let own = r.namespace;
    let in_full = |name: String| match name.split_once('/') {
        _ if name == MESH => name,
        Some((".", name)) => format!("{own}/{name}"),
        Some(_) => name,
        None => format!("{own}/{name}"),
    };
    listed.into_iter().map(|gateway| in_full(gateway.value)).collect()
}

/// `mesh`, a name, or `namespace/name`.
fn check_gateway(r: &mut Reader<'_>, gateway: &Located<String>) {
    let name = match gateway.value.split_once('/') {
        Some((namespace, name)) => {
            if namespace != "." && !super::super::entry::is_dns_label(namespace) {
                r.reject(gateway, format!("\"{namespace}\" is not a namespace"));
            }
            name
        }
        None => gateway.value.as_str(),
    };
    if !matches!(EntryHost::parse(name), Ok(EntryHost::Exact(_))) {
        r.reject(gateway, format!("\"{name}\" is not the name of a gateway"));
    }
}

/// `tls[].match[]` and `tcp[].match[]`.
pub(super) fn stream(
    r: &mut Reader<'_>,
    node: &Located<&Node>,
    hosts: Option<&[EntryHost]>,
) -> StreamMatch {
    let mut f = r.fields(node);
    let scope = scope(r, &mut f);
    let subnets = r.subnets(&mut f, "destinationSubnets");
    r.unused(&mut f, "sourceSubnet", "Istio ignores it as well");
    let sni = match hosts {
        Some(hosts) => sni_hosts(r, &mut f, node, hosts),
        None => Vec::new(),
    };
    r.finish(f);
    StreamMatch { scope, sni, subnets }
}

/// VSV-7.
fn sni_hosts(
    r: &mut Reader<'_>,
    f: &mut Fields<'_>,
    node: &Located<&Node>,
    hosts: &[EntryHost],
) -> Vec<EntryHost> {
    let listed = r.texts(f, "sniHosts");
    if listed.is_empty() {
        r.reject(node, "sniHosts is required (VSV-7)");
    }
    let mut found = Vec::new();
    for host in &listed {
        if host.value.parse::<std::net::IpAddr>().is_ok() {
            r.warn(
                host,
                "an IP address is not valid as SNI, and hardly any client sends one (VSV-7)",
            );
            continue;
        }
        let Some(sni) = r.host(host) else { continue };
        if hosts.iter().any(|own| own.covers(&sni)) {
            found.push(sni);
        } else {
            r.reject(host, format!("{sni} is not covered by the hosts of this resource (VSV-7)"));
        }
    }
    found
}
