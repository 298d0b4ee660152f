//! Carrying out a verdict on a request in the model world: faults, retries, timeouts, rewriting and
//! the answers that the proxy gives itself (sections 10.3 to 10.5, 11, 14.3, 14.4).

use std::borrow::Cow;
use std::net::SocketAddr;
use std::time::Duration;

use super::carry::{CLIENT_PORT, near, proxy_protocol};
use super::client::Request;
use super::cors::{allow_origin, preflight};
use super::observed::{Response, Seen, Verdict};
use super::tls::seen_tls;
use super::world::{Draw, Failure, Nowhere, World};
use crate::account::Flag;
use crate::decide::route::{
    Abort, Destination, Fault, Forward, HeaderOps, LocalReply, Retries, RetryOn, RouteActions,
};
use crate::decide::traffic::UpstreamProtocol;
use crate::decide::{ClusterName, Reason, canonical_host};

/// A client's order to Envoy (VS-31).
const CLIENT_TIMEOUT: &str = "x-envoy-upstream-rq-timeout-ms";

/// LOG-21.
const BEFORE_HEADERS: &str = "upstream connect error or disconnect/reset before headers. ";

/// How a request went.
#[derive(Debug, Clone)]
pub(super) struct Exchanged {
    pub(super) verdict: Verdict,
    pub(super) response: Response,
    pub(super) cluster: Option<ClusterName>,
    pub(super) upstream: Option<SocketAddr>,
    /// Whether the upstream connection stood.
    pub(super) connected: bool,
    pub(super) flags: Vec<Flag>,
    pub(super) details: Cow<'static, str>,
    pub(super) transport: Option<String>,
    /// Host as the log prints it.
    pub(super) authority: Option<String>,
    pub(super) service_time: Option<Duration>,
    pub(super) duration: Duration,
    pub(super) attempts: u32,
    pub(super) seen: Option<Seen>,
    /// Where it was refused after the decision.
    pub(super) reason: Option<Reason>,
}

impl Exchanged {
    /// An answer of the proxy's own.
    pub(super) fn local(
        status: u16,
        details: impl Into<Cow<'static, str>>,
        body: impl Into<Vec<u8>>,
    ) -> Self {
        let body = body.into();
        let headers = match body.is_empty() {
            true => Vec::new(),
            false => vec![("content-type".to_owned(), "text/plain".to_owned())],
        };
        Self {
            verdict: Verdict::LocalReply,
            response: Response { status, headers, body },
            cluster: None,
            upstream: None,
            connected: false,
            flags: Vec::new(),
            details: details.into(),
            transport: None,
            authority: None,
            service_time: None,
            duration: Duration::ZERO,
            attempts: 0,
            seen: None,
            reason: None,
        }
    }
}

/// VS-24, VS-25, VS-9.
pub(super) fn reply(local: &LocalReply) -> Exchanged {
    let mut done = Exchanged::local(local.status, local.details, local.body.clone());
    done.flags = match local.flag {
        Some("NR") => vec![Flag::NR],
        Some("NC") => vec![Flag::NC],
        _ => Vec::new(),
    };
    if let Some(location) = &local.location {
        done.response.headers.push(("location".into(), location.clone()));
    }
    change(&mut done.response.headers, &local.headers);
    done
}

/// Forwards a request, as far as its route lets it.
pub(super) fn forward(
    world: &mut World<'_>,
    forward: &Forward,
    request: &Request,
    dst: SocketAddr,
) -> Exchanged {
    let route = &*forward.route;
    if let Some(done) = route.cors.as_ref().and_then(|cors| preflight(cors, request)) {
        return done;
    }
    let destination = world.pick(&forward.destinations);
    let mut flags = Vec::new();
    let mut waited = Duration::ZERO;
    let Fault { delay, abort } = &route.fault;
    if let Some((delay, percent)) = delay
        && world.hits(Draw::Delay, *percent)
    {
        flags.push(Flag::DI);
        waited = *delay;
    }
    let aborted = abort.filter(|(_, percent)| world.hits(Draw::Abort, *percent));
    let mut done = match aborted {
        Some((abort, _)) => aborted_by(abort),
        None => Attempts::new(world, destination, route, request, dst).run(),
    };
    done.cluster = match done.flags.contains(&Flag::NC) {
        true => None,
        false => destination.cluster.clone(),
    };
    done.flags.splice(0..0, flags);
    done.duration += waited;
    done.authority = route.rewrite.as_ref().and_then(|rewrite| rewrite.authority.clone());
    if let Some(seen) = &mut done.seen {
        for mirror in &route.mirrors {
            let client = near(dst, CLIENT_PORT).ip();
            if world.hits(Draw::Mirror, mirror.percent)
                && let Ok(copy) =
                    world.endpoint(&mirror.destination, dst, client, Some(request), &[])
            {
                let cluster = mirror.destination.cluster.as_ref();
                seen.mirrored.push((copy, cluster.map_or_else(String::new, ToString::to_string)));
            }
        }
    }
    if done.verdict == Verdict::Forward {
        change(&mut done.response.headers, &route.headers.response);
        change(&mut done.response.headers, &destination.headers.response);
        if let Some(cors) = &route.cors {
            allow_origin(cors, request, &mut done.response.headers);
        }
    }
    done
}

/// VS-51.
fn aborted_by(abort: Abort) -> Exchanged {
    let mut done = match abort {
        Abort::Http(status) => Exchanged::local(status, "fault_filter_abort", "fault filter abort"),
        Abort::Grpc(status) => {
            let mut done = Exchanged::local(200, "fault_filter_abort", "");
            done.response.headers.push(("grpc-status".into(), status.to_string()));
            done
        }
    };
    done.flags = vec![Flag::FI];
    done
}

/// One request's tries at one destination.
struct Attempts<'a, 'n> {
    world: &'a mut World<'n>,
    destination: &'a Destination,
    route: &'a RouteActions,
    request: &'a Request,
    dst: SocketAddr,
    used: Vec<SocketAddr>,
    elapsed: Duration,
    made: u32,
}

/// How one try ended.
enum Attempt {
    Answered(Response, Duration),
    Failed(Failure),
    /// `perTryTimeout` ran out.
    TooSlow,
}

impl<'a, 'n> Attempts<'a, 'n> {
    fn new(
        world: &'a mut World<'n>,
        destination: &'a Destination,
        route: &'a RouteActions,
        request: &'a Request,
        dst: SocketAddr,
    ) -> Self {
        let (used, elapsed, made) = (Vec::new(), Duration::ZERO, 0);
        Self { world, destination, route, request, dst, used, elapsed, made }
    }

    fn run(mut self) -> Exchanged {
        let retries = &self.route.retries;
        let allowed = match retries.idempotent_only && !is_idempotent(&self.request.method) {
            true => 0,
            false => retries.attempts,
        };
        if !self.world.admit(self.destination, true) {
            let mut done = Exchanged::local(
                503,
                "upstream_reset_before_response_started{overflow}",
                format!("{BEFORE_HEADERS}reset reason: overflow"),
            );
            done.flags = vec![Flag::UO];
            done.response.headers.push(("x-envoy-overloaded".into(), "true".into()));
            return done;
        }
        let limit = self.timeout();
        loop {
            let client = near(self.dst, CLIENT_PORT).ip();
            let found = self.world.endpoint(
                self.destination,
                self.dst,
                client,
                Some(self.request),
                &self.used,
            );
            let upstream = match found {
                Ok(upstream) => upstream,
                Err(nowhere) => return self.finish(to_nowhere(nowhere, self.destination), None),
            };
            self.used.push(upstream);
            self.made += 1;
            let (took, attempt) = self.attempt(upstream);
            if let Some(limit) = limit.filter(|limit| self.elapsed + took >= *limit) {
                return self.timed_out(limit, upstream, &attempt);
            }
            self.elapsed += took;
            let status = match &attempt {
                Attempt::Answered(answer, _) => Some(answer.status),
                Attempt::Failed(_) => None,
                Attempt::TooSlow => Some(504),
            };
            self.world.outcome(self.destination, self.dst, upstream, status);
            let wanted = wants_retry(retries, &attempt);
            if !wanted || self.made > allowed {
                let exhausted = wanted && allowed > 0;
                return self.end(attempt, upstream, exhausted);
            }
            self.elapsed += retries.back_off;
        }
    }

    /// VS-30, VS-31: what the client asks for goes before what the route says; 0 is no limit.
    fn timeout(&self) -> Option<Duration> {
        let asked = self.request.header(CLIENT_TIMEOUT).and_then(|value| value.parse().ok());
        match asked.filter(|_| self.world.habits().obeys_client_timeout) {
            Some(0) => None,
            Some(milliseconds) => Some(Duration::from_millis(milliseconds)),
            None => self.route.timeout,
        }
    }

    /// One try, and the time it takes.
    fn attempt(&self, upstream: SocketAddr) -> (Duration, Attempt) {
        let traffic = &self.destination.traffic;
        let name = self.request.name();
        let limit = self.route.retries.per_try_timeout;
        let within = |took: Duration, attempt: Attempt| match limit {
            Some(limit) if took >= limit => (limit, Attempt::TooSlow),
            _ => (took, attempt),
        };
        let (connecting, connected) = self.world.connect(traffic, name.as_deref(), upstream);
        if let Err(failure) = connected {
            return within(connecting, Attempt::Failed(failure));
        }
        let host = self.host().unwrap_or_default();
        let over_tls = traffic.tls.is_some();
        let (answering, answer) =
            self.world.answer(upstream.port(), over_tls, &self.request.method, &host, &self.path());
        within(connecting + answering, Attempt::Answered(answer, answering))
    }

    /// VS-30.
    fn timed_out(mut self, limit: Duration, upstream: SocketAddr, attempt: &Attempt) -> Exchanged {
        self.elapsed = limit;
        let connected = matches!(attempt, Attempt::Answered(..) | Attempt::TooSlow);
        let mut done = Exchanged::local(504, "response_timeout", "upstream request timeout");
        done.flags = vec![Flag::UT];
        done.connected = connected;
        done.seen = connected.then(|| self.seen());
        self.finish(done, Some(upstream))
    }

    /// The last try's end is the request's.
    fn end(self, attempt: Attempt, upstream: SocketAddr, exhausted: bool) -> Exchanged {
        let mut done = match attempt {
            Attempt::Answered(response, took) => Exchanged {
                verdict: Verdict::Forward,
                response,
                connected: true,
                service_time: Some(took),
                ..Exchanged::local(0, "via_upstream", "")
            },
            Attempt::TooSlow => {
                let mut done =
                    Exchanged::local(504, "upstream_per_try_timeout", "upstream request timeout");
                done.flags = vec![Flag::UT];
                done.connected = true;
                done
            }
            Attempt::Failed(failure) => {
                let mut done = not_connected(&failure);
                if matches!(failure, Failure::Tls(_)) {
                    // The server saw a handshake, and no request.
                    done.seen = Some(Seen { tls: self.seen().tls, ..Seen::default() });
                }
                done
            }
        };
        if exhausted {
            done.flags.insert(0, Flag::URX);
        }
        if done.connected {
            done.seen = Some(self.seen());
        }
        self.finish(done, Some(upstream))
    }

    fn finish(&self, mut done: Exchanged, upstream: Option<SocketAddr>) -> Exchanged {
        done.upstream = upstream;
        done.duration = self.elapsed;
        done.attempts = self.made;
        done
    }

    fn path(&self) -> String {
        let rewritten = self.route.rewrite.as_ref().and_then(|rewrite| rewrite.path.clone());
        rewritten.unwrap_or_else(|| self.request.path.clone())
    }

    fn host(&self) -> Option<String> {
        let rewritten = self.route.rewrite.as_ref().and_then(|rewrite| rewrite.authority.clone());
        rewritten.or_else(|| self.request.host().and_then(canonical_host))
    }

    /// What the upstream gets.
    fn seen(&self) -> Seen {
        let traffic = &self.destination.traffic;
        let name = self.request.name();
        let client = if self.request.version >= 20 { "2" } else { "1.1" };
        let mut headers = self.request.headers.clone();
        if !self.world.habits().obeys_client_timeout {
            headers.retain(|(name, _)| name != CLIENT_TIMEOUT);
        }
        if self.path() != self.request.path {
            headers.push(("x-envoy-original-path".into(), self.request.path.clone()));
        }
        change(&mut headers, &self.route.headers.request);
        change(&mut headers, &self.destination.headers.request);
        let set_host = headers.iter().position(|(name, _)| name == "host" || name == ":authority");
        let host = set_host.map(|at| headers.remove(at).1);
        Seen {
            tls: traffic
                .tls
                .as_ref()
                .map(|tls| seen_tls(tls, traffic.protocol, Some(self.request), name.as_deref())),
            version: Some(match traffic.protocol {
                UpstreamProtocol::Http1 => "1.1",
                UpstreamProtocol::Http2 => "2",
                UpstreamProtocol::AsClient => client,
            }),
            path: Some(self.path()),
            host: host.or_else(|| self.host()),
            headers,
            connect: None,
            proxy_protocol: proxy_protocol(traffic),
            mirrored: Vec::new(),
        }
    }
}

/// RES-8, VS-21, and refusals that came after the decision.
fn to_nowhere(nowhere: Nowhere, destination: &Destination) -> Exchanged {
    match nowhere {
        // MESH-31.
        Nowhere::NoHost if destination.cluster == Some(ClusterName::allow_any_dynamic_dns()) => {
            let mut done =
                Exchanged::local(503, "dns_resolution_failure", "DNS resolution failure");
            done.flags = vec![Flag::DF];
            done
        }
        Nowhere::NoHost => {
            let mut done = Exchanged::local(503, "no_healthy_upstream", "no healthy upstream");
            done.flags = vec![Flag::UH];
            done
        }
        Nowhere::NoCluster => {
            let mut done = Exchanged::local(503, "cluster_not_found", "");
            done.flags = vec![Flag::NC];
            done
        }
        Nowhere::Refused(reason) => {
            let body = format!("interceptor refused this request: {}\n", reason.explain());
            let mut done = Exchanged::local(502, "direct_response", body);
            done.reason = Some(reason);
            done
        }
    }
}

/// LOG-20, LOG-48, LOG-49, DR-11. LOG-21 would have a connect that was tried again say so in its body;
/// the whole line of LOG-48, 152 bytes after retries, goes before it, here as in `act`.
fn not_connected(failure: &Failure) -> Exchanged {
    let reason = failure.reason();
    let transport = failure.transport();
    let (log, people) = match &transport {
        Some(text) => (format!("|{text}"), format!(", transport failure reason: {text}")),
        None => Default::default(),
    };
    let details =
        format!("upstream_reset_before_response_started{{{reason}{log}}}").replace(' ', "_");
    let body = format!("{BEFORE_HEADERS}reset reason: {reason}{people}");
    let mut done = Exchanged::local(503, details, body);
    done.flags = vec![Flag::UF];
    done.transport = transport;
    done
}

/// Whether the route's conditions ask for another try (VS-40, VS-41).
fn wants_retry(retries: &Retries, attempt: &Attempt) -> bool {
    retries.on.iter().any(|on| match (on, attempt) {
        (RetryOn::ServerError, Attempt::Answered(answer, _)) => answer.status >= 500,
        (RetryOn::GatewayError, Attempt::Answered(answer, _)) => {
            (502..=504).contains(&answer.status)
        }
        (RetryOn::Retriable4xx, Attempt::Answered(answer, _)) => answer.status == 409,
        (RetryOn::StatusCodes, Attempt::Answered(answer, _)) => {
            retries.statuses.contains(&answer.status)
        }
        (RetryOn::ConnectFailure, Attempt::Failed(_)) => true,
        (
            RetryOn::ServerError | RetryOn::GatewayError | RetryOn::Reset,
            Attempt::Failed(_) | Attempt::TooSlow,
        ) => true,
        (RetryOn::ResetBeforeRequest, Attempt::Failed(_)) => true,
        _ => false,
    })
}

/// RFC 9110 section 9.2.2.
fn is_idempotent(method: &str) -> bool {
    matches!(method, "GET" | "HEAD" | "OPTIONS" | "TRACE" | "PUT" | "DELETE")
}

/// Remove, set, add. Of operators only `%%` is known to the model.
fn change(headers: &mut Vec<(String, String)>, ops: &HeaderOps) {
    let is = |name: &str, other: &str| name.eq_ignore_ascii_case(other);
    headers.retain(|(name, _)| !ops.remove.iter().any(|gone| is(gone, name)));
    for (name, value) in &ops.set {
        headers.retain(|(have, _)| !is(name, have));
        headers.push((name.to_ascii_lowercase(), value.replace("%%", "%")));
    }
    let plain =
        |(name, value): &(String, String)| (name.to_ascii_lowercase(), value.replace("%%", "%"));
    let added = ops.add.iter().map(plain);
    headers.extend(added);
}
