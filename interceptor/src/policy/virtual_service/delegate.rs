//! Delegation (VS-8): a rule of a root stands for the rules of its delegate, narrowed by its own
//! matches.

use super::{HttpAction, HttpRule, Scope, VirtualService};
use crate::decide::http_route::HttpMatch;
use crate::decide::route::{Fault, HeaderChanges, TextMatch};
use crate::decide::uri::UriMatch;

/// The rules of `root` with every delegation carried out; `find` gives the rules of a delegate that
/// the root may use.
pub(super) fn expand<'a>(
    root: &VirtualService,
    find: impl Fn(&str, &str) -> Option<&'a VirtualService>,
) -> Vec<HttpRule> {
    let mut rules = Vec::new();
    for rule in &root.http {
        match &rule.action {
            HttpAction::Delegate(name, namespace) => {
                // A delegate that is not there routes nothing, as in Istio.
                let own = find(name, namespace).into_iter().flat_map(|delegate| &delegate.http);
                rules.extend(own.filter_map(|own| merge(rule, own)));
            }
            _ => rules.push(rule.clone()),
        }
    }
    rules
}

/// One rule of a delegate under the rule that delegates; `None` where no request meets both.
fn merge(root: &HttpRule, own: &HttpRule) -> Option<HttpRule> {
    let matches: Vec<_> = match (root.matches.is_empty(), own.matches.is_empty()) {
        (true, _) => own.matches.clone(),
        (_, true) => root.matches.clone(),
        _ => {
            let pairs = root.matches.iter().flat_map(|a| own.matches.iter().map(move |b| (a, b)));
            pairs.filter_map(|(a, b)| both(a, b)).collect()
        }
    };
    if matches.is_empty() && !(root.matches.is_empty() && own.matches.is_empty()) {
        return None;
    }
    let name = joined(&root.name, &own.name);
    let or = |own: &HeaderChanges, root: &HeaderChanges| {
        if *own == HeaderChanges::default() { root.clone() } else { own.clone() }
    };
    let fault = if own.fault == Fault::default() { &root.fault } else { &own.fault };
    Some(HttpRule {
        name,
        matches,
        action: own.action.clone(),
        rewrite: own.rewrite.clone().or_else(|| root.rewrite.clone()),
        timeout: own.timeout.or(root.timeout),
        retries: own.retries.clone().or_else(|| root.retries.clone()),
        fault: fault.clone(),
        mirrors: if own.mirrors.is_empty() { &root.mirrors } else { &own.mirrors }.clone(),
        cors: own.cors.clone().or_else(|| root.cors.clone()),
        headers: or(&own.headers, &root.headers),
        at: own.at.clone(),
    })
}

fn joined(root: &str, own: &str) -> String {
    match (root, own) {
        (root, "") => root.to_owned(),
        ("", own) => own.to_owned(),
        (root, own) => format!("{root}-{own}"),
    }
}

/// Both items at once; `None` where they conflict.
fn both(
    (root_scope, root): &(Scope, HttpMatch),
    (own_scope, own): &(Scope, HttpMatch),
) -> Option<(Scope, HttpMatch)> {
    let scope = Scope {
        gateways: if own_scope.gateways.is_empty() { root_scope } else { own_scope }
            .gateways
            .clone(),
        labels: root_scope.labels.iter().chain(&own_scope.labels).cloned().collect(),
        namespace: one(&root_scope.namespace, &own_scope.namespace)?,
        port: one(&root_scope.port, &own_scope.port)?,
    };
    let found = HttpMatch {
        name: joined(&root.name, &own.name),
        uri: uri(root.uri.as_ref(), own.uri.as_ref())?,
        scheme: one(&root.scheme, &own.scheme)?,
        method: one(&root.method, &own.method)?,
        authority: one(&root.authority, &own.authority)?,
        headers: union(&root.headers, &own.headers)?,
        without_headers: union(&root.without_headers, &own.without_headers)?,
        query: union(&root.query, &own.query)?,
    };
    Some((scope, found))
}

/// The one that is given; both only where they are the same.
#[expect(clippy::option_option, reason = "the outer is the conflict, the inner what is asked for")]
fn one<T: Clone + PartialEq>(root: &Option<T>, own: &Option<T>) -> Option<Option<T>> {
    match (root, own) {
        (Some(root), Some(own)) => (root == own).then(|| Some(own.clone())),
        (root, own) => Some(own.clone().or_else(|| root.clone())),
    }
}

/// A delegate's path lies within a prefix of the root, or the two conflict.
#[expect(clippy::option_option, reason = "the outer is the conflict, the inner what is asked for")]
fn uri(root: Option<&UriMatch>, own: Option<&UriMatch>) -> Option<Option<UriMatch>> {
    let (Some(root), Some(own)) = (root, own) else { return Some(own.or(root).cloned()) };
    let TextMatch::Prefix(within) = &root.text else { return None };
    match &own.text {
        TextMatch::Exact(text) | TextMatch::Prefix(text) if text.starts_with(within.as_str()) => {
            Some(Some(own.clone()))
        }
        _ => None,
    }
}

type Named = Vec<(String, Option<TextMatch>)>;

/// All conditions; `None` where two ask different things of one name.
fn union(root: &Named, own: &Named) -> Option<Named> {
    let mut all = own.clone();
    for (name, want) in root {
        match own.iter().find(|(have, _)| have == name) {
            Some((_, have)) if have != want => return None,
            Some(_) => {}
            None => all.push((name.clone(), want.clone())),
        }
    }
    Some(all)
}
