//! The `http` rules of a VirtualService at work: the first that matches a request, and what it
//! makes of it (sections 10.2 and 10.3).

use std::borrow::Cow;
use std::sync::Arc;

use super::route::{Forward, HeaderOps, LocalReply, Mirror, Rewrite, RouteActions, TextMatch};
use super::service::{Asked, RouteTo, allow};
use super::uri::{
    Normalization, Redirect, RegexRewrite, UriMatch, normalize, replace_prefix, split_query,
};
use super::{Action, Decision, Reason, RequestHead, RuleId};
use crate::policy::Enforcement;

/// The rules that a VirtualService gives one host on one port.
#[derive(Debug)]
pub(crate) struct HttpRoutes {
    pub(crate) rule: RuleId,
    pub(crate) normalization: Normalization,
    /// In order; the first match wins (VS-10).
    pub(crate) rules: Vec<HttpRule>,
}

/// One rule of `http`, as far as it concerns this workload and port (VS-14).
#[derive(Debug)]
pub(crate) struct HttpRule {
    pub(crate) name: String,
    /// One of them; empty = every request.
    pub(crate) matches: Vec<HttpMatch>,
    pub(crate) action: HttpAction,
}

/// All of these.
#[derive(Debug, Clone, Default)]
pub(crate) struct HttpMatch {
    pub(crate) name: String,
    pub(crate) uri: Option<UriMatch>,
    pub(crate) scheme: Option<TextMatch>,
    pub(crate) method: Option<TextMatch>,
    pub(crate) authority: Option<TextMatch>,
    /// `None` = presence. Names in lower case.
    pub(crate) headers: Vec<(String, Option<TextMatch>)>,
    pub(crate) without_headers: Vec<(String, Option<TextMatch>)>,
    pub(crate) query: Vec<(String, Option<TextMatch>)>,
}

/// What a rule does.
#[derive(Debug)]
pub(crate) enum HttpAction {
    /// `route`.
    Route(Box<HttpForward>),
    /// `redirect`.
    Redirect(Redirect, HeaderOps),
    /// `directResponse`: status, body.
    Reply(u16, Vec<u8>, HeaderOps),
}

/// Where `route` goes, and what is done on the way.
#[derive(Debug)]
pub(crate) struct HttpForward {
    /// Never empty.
    pub(crate) to: Vec<RouteTo>,
    /// All that does not depend on the request.
    pub(crate) actions: Arc<RouteActions>,
    pub(crate) rewrite: Option<RewriteRule>,
    pub(crate) mirrors: Vec<(RouteTo, f64)>,
}

/// `rewrite`, and `Host` of `headers.request.set` (VS-27).
#[derive(Debug, Clone, Default)]
pub(crate) struct RewriteRule {
    pub(crate) uri: Option<String>,
    pub(crate) regex: Option<RegexRewrite>,
    pub(crate) authority: Option<String>,
}

/// A request as rules look at it.
struct Request<'a> {
    head: &'a RequestHead<'a>,
    /// Host as sent (VS-13).
    host: &'a str,
    /// In normal form, without query.
    path: String,
    /// With its `?`.
    query: &'a str,
}

impl HttpRoutes {
    /// What becomes of a request to a host of this VirtualService.
    pub(super) fn decide(&self, head: &RequestHead<'_>, asked: &Asked<'_>) -> Decision {
        let (path, query) = split_query(head.path);
        let host = head.authority.or_else(|| head.hosts.first().copied()).unwrap_or_default();
        let request = Request { head, host, path: normalize(path, self.normalization), query };
        for rule in &self.rules {
            if rule.matches.is_empty() {
                return self.act(rule, None, &request, asked);
            }
            if let Some(found) = rule.matches.iter().find(|item| item.matches(&request)) {
                return self.act(rule, Some(found), &request, asked);
            }
        }
        self.no_route(asked)
    }

    /// VS-9; strict says which resource is meant (GAP-3).
    fn no_route(&self, asked: &Asked<'_>) -> Decision {
        let body = match asked.profile {
            Enforcement::Istio => String::new(),
            Enforcement::Strict => {
                format!("interceptor refused this request: no rule of {} matches it\n", self.rule)
            }
        };
        let reply = LocalReply {
            status: 404,
            body: body.into_bytes(),
            details: "route_not_found",
            flag: Some("NR"),
            ..LocalReply::default()
        };
        let found = allow(Action::Reply(Box::new(reply)), None, None, &self.rule);
        Decision { reason: Reason::NoRoute, ..found }
    }

    fn act(
        &self,
        rule: &HttpRule,
        found: Option<&HttpMatch>,
        request: &Request<'_>,
        asked: &Asked<'_>,
    ) -> Decision {
        let route = route_name(&rule.name, found.map_or("", |item| &item.name));
        let uri = found.and_then(|item| item.uri.as_ref());
        let local = |reply: LocalReply| {
            let reply = LocalReply { details: "direct_response", ..reply };
            allow(Action::Reply(Box::new(reply)), None, route.clone(), &self.rule)
        };
        match &rule.action {
            HttpAction::Redirect(redirect, headers) => {
                let location = redirect.location(request.host, &request.path, request.query, uri);
                let (status, headers) = (redirect.status, headers.clone());
                local(LocalReply {
                    status,
                    location: Some(location),
                    headers,
                    ..LocalReply::default()
                })
            }
            HttpAction::Reply(status, body, headers) => {
                let (status, body, headers) = (*status, body.clone(), headers.clone());
                local(LocalReply { status, body, headers, ..LocalReply::default() })
            }
            HttpAction::Route(forward) => {
                let destinations: Vec<_> =
                    forward.to.iter().map(|to| to.destination(asked)).collect();
                let cluster = destinations.first().and_then(|first| first.cluster.clone());
                let actions = forward.actions(uri, request, asked);
                let forward = Forward { destinations, route: actions };
                allow(Action::Forward(Box::new(forward)), cluster, route.clone(), &self.rule)
            }
        }
    }
}

/// VS-16: `name`, `name.matchname`, or nothing.
fn route_name(rule: &str, found: &str) -> Option<Arc<str>> {
    match (rule, found) {
        ("", "") => None,
        (rule, "") => Some(rule.into()),
        (rule, found) => Some(format!("{rule}.{found}").into()),
    }
}

impl HttpForward {
    /// The actions for this request; shared where nothing depends on it.
    fn actions(
        &self,
        uri: Option<&UriMatch>,
        request: &Request<'_>,
        asked: &Asked<'_>,
    ) -> Arc<RouteActions> {
        if self.rewrite.is_none() && self.mirrors.is_empty() {
            return Arc::clone(&self.actions);
        }
        let mirror = |(to, percent): &(RouteTo, f64)| Mirror {
            destination: to.destination(asked),
            percent: *percent,
        };
        Arc::new(RouteActions {
            rewrite: self.rewrite.as_ref().map(|rule| rule.apply(uri, request)),
            mirrors: self.mirrors.iter().map(mirror).collect(),
            ..(*self.actions).clone()
        })
    }
}

impl RewriteRule {
    fn apply(&self, uri: Option<&UriMatch>, request: &Request<'_>) -> Rewrite {
        let path = match (&self.uri, &self.regex) {
            (Some(with), _) => Some(replace_prefix(&request.path, uri, with)),
            (None, Some(regex)) => Some(regex.apply(&request.path)),
            (None, None) => None,
        };
        let path = path.map(|path| if path.starts_with('/') { path } else { format!("/{path}") });
        Rewrite { path: path.map(|path| path + request.query), authority: self.authority.clone() }
    }
}

impl HttpMatch {
    fn matches(&self, request: &Request<'_>) -> bool {
        let text = |want: &Option<TextMatch>, have: &str| {
            want.as_ref().is_none_or(|want| want.matches(have))
        };
        self.uri.as_ref().is_none_or(|uri| uri.matches(&request.path))
            // Only plaintext is served, so that is the scheme (VS-13).
            && text(&self.scheme, "http")
            && text(&self.method, request.head.method)
            && text(&self.authority, request.host)
            && self.headers.iter().all(|(name, want)| {
                request.header(name).is_some_and(|value| text(want, &value))
            })
            && !self.without_headers.iter().any(|(name, want)| {
                request.header(name).is_some_and(|value| text(want, &value))
            })
            && self.query.iter().all(|(name, want)| {
                request.query(name).is_some_and(|value| text(want, value))
            })
    }
}

impl Request<'_> {
    fn header(&self, name: &str) -> Option<Cow<'_, str>> {
        if name == "host" {
            return Some(Cow::Borrowed(self.host));
        }
        self.head.headers.joined(name)
    }

    /// The first parameter of this name, not decoded (VS-15).
    fn query(&self, name: &str) -> Option<&str> {
        let pairs = self.query.strip_prefix('?')?.split('&');
        let mut pairs = pairs.map(|pair| pair.split_once('=').unwrap_or((pair, "")));
        pairs.find(|(have, _)| *have == name).map(|(_, value)| value)
    }
}
