//! What happens to an HTTP request that a rule takes: destinations and everything done on the way
//! there (sections 10.3 to 10.5). Data only; acting is `act::http`'s.

use std::sync::Arc;
use std::time::Duration;

use super::door::Door;
use super::host::HostName;
use super::traffic::TrafficPolicy;
use super::{ClusterName, Upstream};

/// A request that goes upstream.
#[derive(Debug, Clone, PartialEq)]
pub struct Forward {
    /// Chosen among per request, by weight (VS-22). Never empty.
    pub destinations: Vec<Destination>,
    /// What the route does besides.
    pub route: Arc<RouteActions>,
}

impl Forward {
    /// To one place, with a service's own defaults (route `default`) or none at all.
    pub fn to(destination: Destination, route: Arc<RouteActions>) -> Self {
        Self { destinations: vec![destination], route }
    }
}

/// One place that a request or connection may go to.
#[derive(Debug, Clone, PartialEq)]
pub struct Destination {
    /// Share; at least 1.
    pub weight: u32,
    /// Cluster for the log; `None`: there is no such cluster (VS-21: 503 `NC`).
    pub cluster: Option<ClusterName>,
    /// Where it goes.
    pub upstream: Upstream,
    /// The name by which the traffic was found to belong there; `None`: it was not by a name.
    pub judged: Option<HostName>,
    /// The way out.
    pub door: Door,
    /// How it is carried.
    pub traffic: Arc<TrafficPolicy>,
    /// Header changes of this destination, after the route's (VS-27).
    pub headers: Arc<HeaderChanges>,
}

/// What a route does with a request and its answer.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct RouteActions {
    /// VS-30; `None` = no limit.
    pub timeout: Option<Duration>,
    /// VS-40 to VS-44.
    pub retries: Retries,
    /// VS-50 to VS-52.
    pub fault: Fault,
    /// VS-26.
    pub rewrite: Option<Rewrite>,
    /// VS-27.
    pub headers: HeaderChanges,
    /// VS-28.
    pub mirrors: Vec<Mirror>,
    /// VS-29.
    pub cors: Option<Cors>,
}

/// VS-40: the base of the waits between attempts, unless a resource says otherwise.
pub const BACK_OFF: Duration = Duration::from_millis(25);

/// When a failed attempt is repeated.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Retries {
    /// Attempts after the first; 0 = none.
    pub attempts: u32,
    /// `perTryTimeout` (VS-32).
    pub per_try_timeout: Option<Duration>,
    /// Envoy's words: `connect-failure`, `refused-stream`, `5xx`, `gateway-error`, `reset`, ...
    pub on: Vec<RetryOn>,
    /// Extra status codes (VS-41).
    pub statuses: Vec<u16>,
    /// strict: only requests with idempotent methods, unless a resource says so (GAP-17).
    pub idempotent_only: bool,
    /// `backoff`: the first wait is below this, each next below twice as much and more, none longer
    /// than ten times this (VS-40).
    pub back_off: Duration,
    /// Whether an endpoint that was tried is avoided where there are others (VS-40;
    /// `retryIgnorePreviousHosts`).
    pub elsewhere: bool,
}

impl Default for Retries {
    /// None.
    fn default() -> Self {
        Self {
            attempts: 0,
            per_try_timeout: None,
            on: Vec::new(),
            statuses: Vec::new(),
            idempotent_only: false,
            back_off: BACK_OFF,
            elsewhere: true,
        }
    }
}

/// One condition of `retryOn`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum RetryOn {
    /// `connect-failure`.
    ConnectFailure,
    /// `refused-stream`.
    RefusedStream,
    /// `reset`: no answer, or cut off.
    Reset,
    /// `reset-before-request`.
    ResetBeforeRequest,
    /// `5xx`: any 5xx answer, and what `reset` means.
    ServerError,
    /// `gateway-error`: 502, 503, 504.
    GatewayError,
    /// `retriable-4xx`: 409.
    Retriable4xx,
    /// `retriable-status-codes`: those in `statuses`.
    StatusCodes,
    /// gRPC statuses by name (`cancelled`, `unavailable`, ...): the number.
    Grpc(u8),
    /// `envoy-ratelimited` and other words that never hold here.
    Never,
}

/// Faults to inject.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Fault {
    /// Delay, and the share of requests in percent.
    pub delay: Option<(Duration, f64)>,
    /// Status, and the share of requests in percent.
    pub abort: Option<(Abort, f64)>,
}

/// How an injected abort answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Abort {
    /// An HTTP status.
    Http(u16),
    /// A gRPC status.
    Grpc(u8),
}

/// Changes to path and Host.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Rewrite {
    /// The new path (and query, as it will be sent), already computed for this request.
    pub path: Option<String>,
    /// The new Host.
    pub authority: Option<String>,
}

/// Header operations, in the order remove, set, add.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct HeaderChanges {
    /// On the request.
    pub request: HeaderOps,
    /// On the response.
    pub response: HeaderOps,
}

/// Operations on one side's headers. Values are texts with operators between percent signs, as in
/// the access log's formats ([`Substitution`](crate::account::Substitution)), `%%` the sign itself.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct HeaderOps {
    /// Replaces.
    pub set: Vec<(String, String)>,
    /// Appends.
    pub add: Vec<(String, String)>,
    /// Removes.
    pub remove: Vec<String>,
}

/// A copy of the request that nobody waits for.
#[derive(Debug, Clone, PartialEq)]
pub struct Mirror {
    /// Where to.
    pub destination: Destination,
    /// Share of requests in percent.
    pub percent: f64,
}

/// An answer that is given here: redirect or direct response (VS-24, VS-25), no route (VS-9).
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct LocalReply {
    /// Status.
    pub status: u16,
    /// Body; empty for redirects.
    pub body: Vec<u8>,
    /// `Location`, for redirects.
    pub location: Option<String>,
    /// Header changes on the response.
    pub headers: HeaderOps,
    /// Details for the log: `direct_response`, `route_not_found`, `cluster_not_found`.
    pub details: &'static str,
    /// Flag for the log, where there is one: `NR` or `NC`.
    pub flag: Option<&'static str>,
}

/// `corsPolicy` (VS-29).
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Cors {
    /// Origins that may ask.
    pub origins: Vec<TextMatch>,
    /// `Access-Control-Allow-Methods`.
    pub methods: Vec<String>,
    /// `Access-Control-Allow-Headers`.
    pub headers: Vec<String>,
    /// `Access-Control-Expose-Headers`.
    pub expose: Vec<String>,
    /// `Access-Control-Max-Age`.
    pub max_age: Option<Duration>,
    /// `Access-Control-Allow-Credentials`.
    pub credentials: Option<bool>,
    /// Whether preflights of other origins are forwarded (`unmatchedPreflights: FORWARD`, the
    /// default) or answered here.
    pub forward_unmatched: bool,
}

/// A text condition: exact, prefix or RE2-style regular expression (full match).
#[derive(Debug, Clone)]
pub enum TextMatch {
    /// The whole text.
    Exact(String),
    /// Its start.
    Prefix(String),
    /// The whole text, as a pattern.
    Regex(regex::Regex),
}

impl PartialEq for TextMatch {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Exact(a), Self::Exact(b)) | (Self::Prefix(a), Self::Prefix(b)) => a == b,
            (Self::Regex(a), Self::Regex(b)) => a.as_str() == b.as_str(),
            _ => false,
        }
    }
}

impl TextMatch {
    /// Whether `text` meets it.
    pub fn matches(&self, text: &str) -> bool {
        match self {
            Self::Exact(exact) => text == exact,
            Self::Prefix(prefix) => text.starts_with(prefix.as_str()),
            // Compiled with anchors at both ends.
            Self::Regex(regex) => regex.is_match(text),
        }
    }
}
