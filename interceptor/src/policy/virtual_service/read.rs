//! VirtualService as written, field by field, with what VSV says of the whole.

use super::super::fields::{Context, Fields, Findings, Located};
use super::super::metadata::Meta;
use super::super::node::Node;
use super::super::reader::Reader;
use super::{HttpAction, HttpRule, MESH, StreamRule, VirtualService, actions, matches};
use crate::decide::RuleId;
use crate::decide::http_route::{HttpMatch, RewriteRule};
use crate::decide::pattern::EntryHost;
use crate::decide::route::{Fault, TextMatch};

impl VirtualService {
    /// Reads and checks `spec`; `None` where a rule rejects it, all rejections noted.
    pub(in super::super) fn read(
        meta: Meta,
        spec: Fields<'_>,
        cx: &Context,
        out: &mut Findings,
    ) -> Option<Self> {
        let before = (out.rejected.len(), out.errors.len());
        let mut f = spec;
        let at = Located { value: (), at: f.at(), path: "spec".to_owned() };
        let namespace = meta.namespace.clone();
        let mut r = Reader { cx, out, namespace: &namespace };
        let listed = r.texts(&mut f, "hosts");
        let gateways = matches::gateways(&mut r, &mut f);
        let delegate = listed.is_empty();
        let hosts = hosts(&mut r, &listed, &gateways);
        let http = r.list(&mut f, "http");
        let http: Vec<_> = http.iter().map(|node| http_rule(&mut r, node, delegate)).collect();
        let tls = r.list(&mut f, "tls");
        let tls: Vec<_> = tls.iter().map(|n| stream_rule(&mut r, n, Some(&hosts))).collect();
        let tcp = r.list(&mut f, "tcp");
        let tcp: Vec<_> = tcp.iter().map(|node| stream_rule(&mut r, node, None)).collect();
        if http.is_empty() && tls.is_empty() && tcp.is_empty() {
            r.reject(&at, "http, tls or tcp is required (VSV-1)");
        }
        if delegate && !(gateways.is_empty() && tls.is_empty() && tcp.is_empty()) {
            let message = "at least one host is required; only a delegate, with http alone and no \
                           gateways, has none (VSV-1)";
            r.reject(&at, message);
        }
        hints(&mut r, &http);
        let export_to = r.texts(&mut f, "exportTo");
        let export_to = r.export_to(&export_to);
        r.finish(f);
        if (out.rejected.len(), out.errors.len()) != before {
            return None;
        }
        let id = RuleId {
            kind: "VirtualService",
            namespace: meta.namespace.clone(),
            name: meta.name.clone(),
        };
        let context = cx.clone();
        Some(Self { meta, id, hosts, gateways, http, tls, tcp, export_to, at, context })
    }
}

/// VSV-1, VSV-2.
fn hosts(r: &mut Reader<'_>, listed: &[Located<String>], gateways: &[String]) -> Vec<EntryHost> {
    let mesh = gateways.is_empty() || gateways.iter().any(|gateway| gateway == MESH);
    let mut hosts: Vec<EntryHost> = Vec::with_capacity(listed.len());
    for host in listed {
        if host.value == "*" {
            if mesh {
                r.reject(host, "\"*\" is for gateways only (VSV-2)");
            }
            continue;
        }
        if host.value.parse::<std::net::IpAddr>().is_ok() {
            continue;
        }
        let Some(found) = r.host(host) else { continue };
        if hosts.iter().any(|other| other.covers(&found) || found.covers(other)) {
            r.reject(host, format!("{found} is given twice, or under a wildcard (VSV-2)"));
        }
        hosts.push(found);
    }
    hosts
}

fn http_rule(r: &mut Reader<'_>, node: &Located<&Node>, delegate: bool) -> HttpRule {
    let mut f = r.fields(node);
    let at = Located { value: (), at: node.at, path: node.path.clone() };
    let name = r.text(&mut f, "name").map(|name| name.value).unwrap_or_default();
    let items = r.list(&mut f, "match");
    let matches: Vec<_> = items.iter().map(|item| matches::http(r, item)).collect();
    let nodes = r.list(&mut f, "route");
    let route = actions::route(r, &nodes, true);
    let redirect = f.take("redirect");
    let reply = f.take("directResponse");
    let delegated = f.take("delegate");
    let fault = f.take("fault");
    let rewrite = f.take("rewrite");

    let given = usize::from(!nodes.is_empty())
        + [&redirect, &reply, &delegated].into_iter().flatten().count();
    if given == 0 {
        r.reject(node, "route, redirect, directResponse or delegate is required (VSV-3)");
    } else if given > 1 {
        r.reject(node, "route, redirect, directResponse and delegate exclude each other (VSV-3)");
    }
    if (redirect.is_some() || reply.is_some()) && (fault.is_some() || rewrite.is_some()) {
        r.reject(node, "a local answer takes neither fault nor rewrite (VSV-4)");
    }
    if delegate && let Some(delegated) = &delegated {
        r.reject(delegated, "a delegate does not delegate (VS-8)");
    }
    let fault = fault.map_or_else(Fault::default, |node| actions::fault(r, &node));
    let mut rewrite = rewrite.map(|node| actions::rewrite(r, &node));
    let (headers, authority) = actions::headers(r, &mut f);
    if let Some(authority) = authority {
        let rewrite = rewrite.get_or_insert_with(RewriteRule::default);
        if rewrite.authority.is_some() {
            r.reject(node, "the authority is set by rewrite and by headers (VSV-13)");
        }
        rewrite.authority = Some(authority);
    }
    let retries = f.take("retries").map(|node| actions::retries(r, &node));
    let cors = f.take("corsPolicy").map(|node| actions::cors(r, &node));
    let mirrors = actions::mirrors(r, &mut f);
    let timeout = r.duration(&mut f, "timeout", true);
    let action = if let Some(node) = redirect {
        let (redirect, own_port) = actions::redirect(r, &node);
        let by_prefix = |item: &HttpMatch| {
            let uri = item.uri.as_ref();
            uri.is_none_or(|uri| matches!(uri.text, TextMatch::Prefix(_)))
        };
        if redirect.prefix.is_some() && !matches.iter().all(|(_, item)| by_prefix(item)) {
            r.reject(&node, "a prefix is replaced only where uri is matched by prefix");
        }
        HttpAction::Redirect(redirect, own_port)
    } else if let Some(node) = reply {
        let (status, body) = actions::direct_response(r, &node);
        HttpAction::Reply(status, body)
    } else if let Some(node) = delegated {
        let mut inner = r.fields(&node);
        let name = r.some_text(&mut inner, "name");
        if name.is_none() {
            r.reject(&node, "name is required");
        }
        let namespace = r.some_text(&mut inner, "namespace").map(|text| text.value);
        let namespace = namespace.unwrap_or_else(|| r.namespace.to_owned());
        r.finish(inner);
        HttpAction::Delegate(name.map(|name| name.value).unwrap_or_default(), namespace)
    } else {
        HttpAction::Route(route)
    };
    r.finish(f);
    HttpRule { name, matches, action, rewrite, timeout, retries, fault, mirrors, cors, headers, at }
}

/// VSV-7, VSV-8; `hosts` for a `tls` rule.
fn stream_rule(
    r: &mut Reader<'_>,
    node: &Located<&Node>,
    hosts: Option<&[EntryHost]>,
) -> StreamRule {
    let mut f = r.fields(node);
    let items = r.list(&mut f, "match");
    if hosts.is_some() && items.is_empty() {
        r.reject(node, "match is required (VSV-7)");
    }
    let matches = items.iter().map(|item| matches::stream(r, item, hosts)).collect();
    let nodes = r.list(&mut f, "route");
    if nodes.is_empty() {
        r.reject(node, "route is required (VSV-7, VSV-8)");
    }
    let route = actions::route(r, &nodes, false);
    r.finish(f);
    StreamRule { matches, route }
}

/// VSV-15: rules that no request reaches.
fn hints(r: &mut Reader<'_>, rules: &[HttpRule]) {
    let mut all_taken = false;
    let mut seen = std::collections::HashSet::new();
    for rule in rules {
        if all_taken {
            r.warn(&rule.at, "never reached: a rule before it matches everything (VSV-15)");
        }
        all_taken |= rule.matches.is_empty();
        for (scope, item) in &rule.matches {
            let unnamed = HttpMatch { name: String::new(), ..item.clone() };
            if !seen.insert(format!("{scope:?} {unnamed:?}")) {
                r.warn(&rule.at, "repeats the match of a rule before it (VSV-15)");
            }
        }
    }
}
