//! VirtualService: what it says (section 10), read and checked, and what it makes of a workload's
//! services.

pub(super) mod actions;
pub(super) mod compile;
mod delegate;
mod matches;
mod read;

use std::time::Duration;

use ipnet::IpNet;

use super::fields::{Context, Located};
use super::metadata::Meta;
use crate::decide::RuleId;
use crate::decide::http_route::{HttpMatch, RewriteRule};
use crate::decide::pattern::EntryHost;
use crate::decide::route::{Cors, Fault, HeaderChanges, Retries};
use crate::decide::uri::Redirect;

/// The gateway that stands for all sidecars (VS-1).
pub(super) const MESH: &str = "mesh";

/// A VirtualService that holds.
#[derive(Debug, Clone)]
pub(super) struct VirtualService {
    pub(super) meta: Meta,
    pub(super) id: RuleId,
    /// Empty for a delegate (VS-8). Hosts that are IP addresses concern gateways only.
    pub(super) hosts: Vec<EntryHost>,
    /// `mesh`, or `namespace/name`; empty = `mesh`.
    pub(super) gateways: Vec<String>,
    pub(super) http: Vec<HttpRule>,
    pub(super) tls: Vec<StreamRule>,
    pub(super) tcp: Vec<StreamRule>,
    pub(super) export_to: Vec<String>,
    /// For messages about it as a whole.
    pub(super) at: Located<()>,
    pub(super) context: Context,
}

/// Whom a match item concerns (VS-14): decided once per workload.
#[derive(Debug, Clone, Default)]
pub(super) struct Scope {
    pub(super) gateways: Vec<String>,
    pub(super) labels: Vec<(String, String)>,
    pub(super) namespace: Option<String>,
    pub(super) port: Option<u16>,
}

/// `http[]`.
#[derive(Debug, Clone)]
pub(super) struct HttpRule {
    pub(super) name: String,
    /// Empty = every request.
    pub(super) matches: Vec<(Scope, HttpMatch)>,
    pub(super) action: HttpAction,
    pub(super) rewrite: Option<RewriteRule>,
    pub(super) timeout: Option<Duration>,
    /// `None` = the defaults (VS-40).
    pub(super) retries: Option<Retries>,
    pub(super) fault: Fault,
    pub(super) mirrors: Vec<(Destination, f64)>,
    pub(super) cors: Option<Cors>,
    pub(super) headers: HeaderChanges,
    /// Where the rule stands.
    pub(super) at: Located<()>,
}

/// What an `http` rule does.
#[derive(Debug, Clone)]
pub(super) enum HttpAction {
    Route(Vec<Destination>),
    /// The flag: the port is the request's (`derivePort: FROM_REQUEST_PORT`).
    Redirect(Redirect, bool),
    Reply(u16, Vec<u8>),
    /// Name and namespace.
    Delegate(String, String),
}

/// `destination` with its weight and headers.
#[derive(Debug, Clone)]
pub(super) struct Destination {
    pub(super) host: EntryHost,
    pub(super) port: Option<u16>,
    pub(super) subset: Option<String>,
    pub(super) weight: u32,
    pub(super) headers: HeaderChanges,
}

/// `tls[]` and `tcp[]`.
#[derive(Debug, Clone)]
pub(super) struct StreamRule {
    /// Empty = every connection (`tcp` only).
    pub(super) matches: Vec<StreamMatch>,
    pub(super) route: Vec<Destination>,
}

/// An item of `match` there.
#[derive(Debug, Clone)]
pub(super) struct StreamMatch {
    pub(super) scope: Scope,
    /// `tls` only, and never empty there.
    pub(super) sni: Vec<EntryHost>,
    pub(super) subnets: Vec<IpNet>,
}

impl VirtualService {
    /// Every host that it leads to (SC-6).
    pub(super) fn destinations(&self) -> impl Iterator<Item = &EntryHost> {
        let http = self.http.iter().flat_map(|rule| {
            let routes = match &rule.action {
                HttpAction::Route(to) => to.as_slice(),
                _ => &[],
            };
            routes.iter().chain(rule.mirrors.iter().map(|(to, _)| to))
        });
        let streams = self.tls.iter().chain(&self.tcp).flat_map(|rule| &rule.route);
        http.chain(streams).map(|to| &to.host)
    }

    /// Whether it concerns sidecars at all (VS-1).
    pub(super) fn in_mesh(&self) -> bool {
        self.gateways.is_empty() || self.gateways.iter().any(|gateway| gateway == MESH)
    }
}
