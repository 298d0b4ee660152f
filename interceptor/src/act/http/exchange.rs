//! One request, from its head to its line in the log.

use std::borrow::Cow;
use std::convert::Infallible;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use http::header::{
    CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, HOST, HeaderMap, HeaderName, HeaderValue, USER_AGENT,
};
use http::request::Parts;
use http::{Method, Request, Response, StatusCode, Version};
use http_body_util::Full;
use hyper::body::{Body, Incoming};
use hyper::upgrade::OnUpgrade;
use tokio::task::JoinSet;
use tokio::time::Instant;
use uuid::Uuid;

use crate::account::{AccessLog, HttpFields, Record};
use crate::act::pick;
use crate::decide::route::Destination;
use crate::decide::{Action, Block, Decision, Headers, Reason, RequestHead, canonical_host};
use crate::drain::Drain;
use crate::origin::Origin;
use crate::policy::Enforcement;

use super::cut::{self, Withdrawal};
use super::entry::{Answer, Content, Entry};
use super::forward::{Allowed, Forwarded};
use super::pool::{Pool, lock};
use super::reply::{Reply, refusal_body};
use super::wire::{Exchange, Shared};
use super::{World, blank_record, canon, http2, tunnel};

const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");

/// One downstream connection.
pub(super) struct Session<W> {
    pub(super) world: W,
    pub(super) origin: Origin,
    pub(super) log: AccessLog,
    pub(super) shared: Arc<Shared>,
    pub(super) pool: Arc<Pool>,
    tunnels: Mutex<JoinSet<()>>,
}

/// A request's headers, as decisions read them.
struct Sent<'a>(&'a HeaderMap);

impl Headers for Sent<'_> {
    fn joined(&self, name: &str) -> Option<Cow<'_, str>> {
        let values: Vec<_> =
            self.0.get_all(name).iter().map(|value| value.to_str().unwrap_or("\u{fffd}")).collect();
        match values.as_slice() {
            [] => None,
            [one] => Some(Cow::Borrowed(one)),
            several => Some(Cow::Owned(several.join(","))),
        }
    }
}

impl<W: World> Session<W> {
    pub(super) fn new(world: W, origin: Origin, log: AccessLog, shared: Arc<Shared>) -> Self {
        let (pool, tunnels) = (Arc::default(), Mutex::default());
        Self { world, origin, log, shared, pool, tunnels }
    }

    /// Waits for the tunnels that this connection became.
    pub(super) async fn tunnels_end(&self) {
        let mut tunnels = std::mem::take(&mut *lock(&self.tunnels));
        while tunnels.join_next().await.is_some() {}
    }

    /// Judges one request and answers it. Judged, and its record opened, before the future is first
    /// polled: the HTTP library drops it unpolled if the client's FIN came along with the request.
    pub(super) fn answer(
        self: Arc<Self>,
        mut request: Request<Incoming>,
    ) -> impl Future<Output = Result<Response<Answer>, Infallible>> {
        let exchange = self.shared.exchange();
        let client_side = hyper::upgrade::on(&mut request);
        let (mut parts, body) = request.into_parts();
        if !parts.headers.contains_key(canon::REQUEST_ID) {
            parts.headers.insert(canon::REQUEST_ID, new_request_id());
        }
        let pen = self.log.pen();
        let mut record = self.record(&parts);
        record.more.request_headers = pen.wanted().request.pick(&parts.headers);
        let mut entry = Entry::new(pen, record);
        if body.is_end_stream() {
            let _ = entry.complete.set(Instant::now());
        }
        let changes = self.world.changes();
        let verdict = if parts.version < Version::HTTP_11 {
            Err(Reply::low_version())
        } else {
            http2::check(&parts).and_then(|()| self.judge(&parts, &mut entry))
        };
        let withdrawal = match (&verdict, changes) {
            (Ok(to), Some(changes)) => Some(self.withdrawal(changes, &parts, &to.destination)),
            _ => None,
        };
        // Boxed, since the library keeps the room for this as long as the connection lives.
        Box::pin(self.carry_out(verdict, withdrawal, parts, body, client_side, entry, exchange))
    }

    #[expect(clippy::too_many_arguments, reason = "all that there is of one exchange")]
    async fn carry_out(
        self: Arc<Self>,
        verdict: Result<Allowed, Reply>,
        mut withdrawal: Option<Withdrawal>,
        parts: Parts,
        body: Incoming,
        client_side: OnUpgrade,
        mut entry: Entry,
        exchange: Exchange,
    ) -> Result<Response<Answer>, Infallible> {
        let http2 = parts.version == Version::HTTP_2;
        let head_only = parts.method == Method::HEAD;
        let outcome = match verdict {
            Ok(allowed) => tokio::select! {
                outcome = self.forward(allowed, parts, body, client_side, &mut entry) => outcome,
                why = cut::withdrawn(&mut withdrawal) => Err(Reply::withdrawn(why)),
            },
            Err(refusal) => Err(refusal),
        };
        let mut response = match outcome {
            Err(mut reply) => {
                // In HTTP/2 a refusal ends its stream; the others are judged on their own.
                reply.close &= !http2;
                entry.edit(|record| {
                    record.response_code = reply.status;
                    record.flags.extend(&reply.flags);
                    record.response_code_details = Some(reply.details.clone());
                    record.upstream_transport_failure_reason =
                        reply.transport.as_deref().map(str::to_owned);
                });
                let response = local(reply, head_only);
                entry.head(response.headers());
                response.map(|text| Answer::new(Content::Local(text), Some(entry), exchange))
            }
            Ok(Forwarded { response, deadline, under_way, tunnel: None }) => {
                entry.head(response.headers());
                response.map(|body| {
                    Answer::new(Content::Upstream(body), Some(entry), exchange)
                        .within(deadline, under_way, withdrawal)
                })
            }
            Ok(Forwarded { response, under_way, tunnel: Some(ends), .. }) => {
                entry.head(response.headers());
                let (client, upstream, limits) = ends;
                self.shared.start_tunnel();
                lock(&self.tunnels).spawn(async move {
                    let _under_way = under_way;
                    tunnel::run(client, upstream, limits, entry, withdrawal).await;
                });
                response.map(|_| Answer::new(Content::Nothing, None, exchange))
            }
        };
        // The client's next request is on a new connection, which is another daemon's.
        let draining = self.world.drain().is_some_and(Drain::has_begun);
        if draining && !http2 && response.status() != StatusCode::SWITCHING_PROTOCOLS {
            response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
        }
        Ok(response)
    }

    /// The verdict: where the request goes and the Host that it goes with, or the refusal.
    fn judge(&self, parts: &Parts, entry: &mut Entry) -> Result<Allowed, Reply> {
        let (decision, enforcement) = self.verdict(parts);
        entry.edit(|record| {
            record.upstream_cluster.clone_from(&decision.cluster);
            record.route_name.clone_from(&decision.route);
            record.reason = decision.reason;
            record.audited = matches!(decision.action, Action::Audited(_));
        });
        let named = hosts(parts).count() + usize::from(parts.uri.authority().is_some());
        let effective = effective(parts);
        let port = self.origin.dst.addr().port();
        let explanation = |explain: bool| match explain {
            true => refusal_body(effective.unwrap_or(""), port, &decision),
            false => String::new(),
        };
        match &decision.action {
            Action::Forward(forward) if parts.method != Method::CONNECT => {
                let destination = pick(&forward.destinations);
                entry.edit(|record| record.upstream_cluster.clone_from(&destination.cluster));
                match effective.and_then(passed_on) {
                    Some(host) => Ok(Allowed {
                        destination: destination.clone(),
                        route: Arc::clone(&forward.route),
                        host,
                        strict: enforcement == Enforcement::Strict,
                    }),
                    None => {
                        entry.edit(|record| record.reason = Reason::BadHost);
                        Err(Reply::refused(400, true, String::new(), named))
                    }
                }
            }
            Action::Audited(destination) if parts.method != Method::CONNECT => Ok(Allowed {
                destination: Destination::clone(destination),
                route: Arc::default(),
                host: self.as_sent(parts),
                strict: enforcement == Enforcement::Strict,
            }),
            Action::Reply(rule) if parts.method != Method::CONNECT => {
                Err(Reply::of_rule(rule, entry.record(), &parts.headers))
            }
            Action::Block(Block::Http { status, explain, close }) => {
                entry.refused(self.world.folds());
                // What follows a CONNECT can not be read as requests.
                let close = *close || parts.method == Method::CONNECT;
                Err(Reply::refused(*status, close, explanation(*explain), named))
            }
            // No verdict on a request asks for these; without a usable verdict the answer is no.
            Action::Block(Block::Close | Block::Reset)
            | Action::Relay(_)
            | Action::Http
            | Action::ByResolution(_)
            | Action::Reply(_)
            | Action::Audited(_)
            | Action::Forward(_) => {
                entry.edit(|record| record.audited = false);
                let explain = enforcement == Enforcement::Strict;
                Err(Reply::refused(502, true, explanation(explain), named))
            }
        }
    }

    /// The Host of a request that goes on whatever it says: as it came, else the address that was dialled.
    fn as_sent(&self, parts: &Parts) -> HeaderValue {
        let authority = parts.uri.authority().and_then(|a| HeaderValue::from_str(a.as_str()).ok());
        let host = authority.or_else(|| parts.headers.get(HOST).cloned());
        host.unwrap_or_else(|| {
            let dialled = self.origin.dst.addr().to_string();
            HeaderValue::try_from(dialled).expect("an address is ASCII")
        })
    }

    /// What the newest policy says of a request.
    pub(super) fn verdict(&self, parts: &Parts) -> (Decision, Enforcement) {
        let head = RequestHead {
            method: parts.method.as_str(),
            authority: parts.uri.authority().map(|a| a.as_str()),
            hosts: &hosts(parts).collect::<Vec<_>>(),
            path: &canon::path(&parts.uri),
            version: if parts.version == Version::HTTP_2 { 20 } else { 11 },
            headers: &Sent(&parts.headers),
        };
        self.world.judge(&self.origin.flow(), &head)
    }

    /// What is known when the head has come.
    fn record(&self, parts: &Parts) -> Record {
        let authority = parts.uri.authority().map(|a| a.as_str().to_owned());
        Record {
            http: Some(HttpFields {
                method: parts.method.as_str().to_owned(),
                path: canon::path(&parts.uri).into_owned(),
                protocol: match parts.version {
                    Version::HTTP_2 => "HTTP/2",
                    Version::HTTP_11 => "HTTP/1.1",
                    _ => "HTTP/1.0",
                },
                upstream_service_time: None,
                x_forwarded_for: text(&parts.headers, &FORWARDED_FOR),
                user_agent: text(&parts.headers, &USER_AGENT),
                request_id: text(&parts.headers, &canon::REQUEST_ID),
                authority: authority.or_else(|| text(&parts.headers, &HOST)),
            }),
            ..blank_record(&self.origin)
        }
    }
}

/// Every Host. Bytes beyond ASCII are in no host name: what does not read as text stays unreadable.
fn hosts(parts: &Parts) -> impl Iterator<Item = &str> {
    let hosts = parts.headers.get_all(HOST).iter();
    hosts.map(|host| host.to_str().unwrap_or("\u{fffd}"))
}

/// The one name that a request is for. It is forwarded with that or not at all (T-30).
pub(super) fn effective(parts: &Parts) -> Option<&str> {
    let authority = parts.uri.authority().map(|a| a.as_str());
    let mut hosts = hosts(parts);
    match (authority, hosts.next(), hosts.next()) {
        // T-36: HTTP/2 has no absolute form that would explain a difference.
        (Some(authority), Some(host), None)
            if parts.version == Version::HTTP_2 && host != authority =>
        {
            None
        }
        (Some(authority), _, None) => Some(authority),
        (None, Some(host), None) => Some(host),
        _ => None,
    }
}

/// The Host that a request for `name` is forwarded with. What is forwarded is what was judged: the
/// name in its one form (R4, T-20).
pub(super) fn passed_on(name: &str) -> Option<HeaderValue> {
    HeaderValue::try_from(canonical_host(name)?).ok()
}

/// Our own answer as a response; `head_only`: to HEAD, which has the length of the body and not the
/// body (the library sees to that in HTTP/1.1 only).
fn local(reply: Reply, head_only: bool) -> Response<Full<Bytes>> {
    let is_empty = reply.body.is_empty();
    let length = HeaderValue::from(reply.body.len());
    let body = if head_only { Bytes::new() } else { reply.body };
    let mut response = Response::new(Full::new(body));
    if head_only {
        response.headers_mut().insert(CONTENT_LENGTH, length);
    }
    *response.status_mut() =
        StatusCode::from_u16(reply.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    if !is_empty {
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain"));
    }
    for (name, value) in reply.headers {
        response.headers_mut().insert(name, value);
    }
    if reply.close {
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    }
    response
}

/// A header's value for the log; what is not UTF-8 shows as replacement characters.
fn text(headers: &HeaderMap, name: &HeaderName) -> Option<String> {
    headers.get(name).map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned())
}

fn new_request_id() -> HeaderValue {
    let mut buffer = Uuid::encode_buffer();
    HeaderValue::from_str(Uuid::new_v4().hyphenated().encode_lower(&mut buffer))
        .expect("a UUID is ASCII")
}
