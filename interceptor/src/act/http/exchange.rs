//! One request, from its head to its line in the log.

use std::borrow::Cow;
use std::convert::Infallible;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use http::header::{
    CONNECTION, CONTENT_TYPE, HOST, HeaderMap, HeaderName, HeaderValue, USER_AGENT,
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
use crate::act::dial::DialError;
use crate::act::pick;
use crate::decide::{Action, Block, Headers, Reason, RequestHead};
use crate::origin::Origin;
use crate::policy::Enforcement;

use super::entry::{Answer, Content, Entry, Upload};
use super::pool::{Connection, Pool, Purpose, lock};
use super::reply::{Failure, Reply, refusal_body};
use super::wire::{End, Exchange, Shared};
use super::{World, blank_record, canon, tunnel};

const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");

/// One downstream connection.
pub(super) struct Session<W> {
    world: W,
    pub(super) origin: Origin,
    pub(super) log: AccessLog,
    shared: Arc<Shared>,
    pool: Pool,
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

/// A request that may go.
struct Allowed {
    purpose: Purpose,
    /// The name that was judged.
    host: HeaderValue,
    /// Whether the strict profile is in force.
    strict: bool,
}

/// An upstream's answer and the connection that it came by.
struct Answered {
    response: Response<Incoming>,
    connection: Connection,
}

impl<W: World> Session<W> {
    pub(super) fn new(world: W, origin: Origin, log: AccessLog, shared: Arc<Shared>) -> Self {
        let (pool, tunnels) = (Pool::default(), Mutex::default());
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
        let mut entry = Entry::new(self.log.clone(), self.record(&parts));
        let verdict = if parts.version < Version::HTTP_11 {
            Err(Reply::low_version())
        } else {
            self.judge(&parts, &mut entry)
        };
        self.carry_out(verdict, parts, body, client_side, entry, exchange)
    }

    async fn carry_out(
        self: Arc<Self>,
        verdict: Result<Allowed, Reply>,
        parts: Parts,
        body: Incoming,
        client_side: OnUpgrade,
        mut entry: Entry,
        exchange: Exchange,
    ) -> Result<Response<Answer>, Infallible> {
        let http2 = parts.version == Version::HTTP_2;
        let outcome = match verdict {
            Ok(allowed) => self.exchange(allowed, parts, body, client_side, &mut entry).await,
            Err(refusal) => Err(refusal),
        };
        Ok(match outcome {
            Err(mut reply) => {
                // In HTTP/2 a refusal ends its stream; the others are judged on their own.
                reply.close &= !http2;
                entry.edit(|record| {
                    record.response_code = reply.status;
                    record.flags.clone_from(&reply.flags);
                    record.response_code_details = Some(reply.details.clone());
                    record.upstream_transport_failure_reason.clone_from(&reply.transport);
                });
                local(reply).map(|text| Answer::new(Content::Local(text), Some(entry), exchange))
            }
            Ok((response, None)) => {
                response.map(|body| Answer::new(Content::Upstream(body), Some(entry), exchange))
            }
            Ok((response, Some((client, upstream)))) => {
                self.shared.start_tunnel();
                lock(&self.tunnels).spawn(tunnel::run(client, upstream, entry));
                response.map(|_| Answer::new(Content::Nothing, None, exchange))
            }
        })
    }

    /// From the judgement to the upstream's answer, and the two ends of a tunnel if it becomes one.
    async fn exchange(
        &self,
        Allowed { purpose, host, strict }: Allowed,
        mut parts: Parts,
        body: Incoming,
        client_side: OnUpgrade,
        entry: &mut Entry,
    ) -> Result<(Response<Incoming>, Option<(OnUpgrade, OnUpgrade)>), Reply> {
        let version = parts.version;
        let http1 = version == Version::HTTP_11;
        let websocket = http1 && body.is_end_stream() && canon::is_websocket(&parts.headers);
        if http1 {
            canon::request(&mut parts, host, websocket, strict);
        } else {
            canon::request_h2(&mut parts, &host, strict);
        }

        let Answered { mut response, connection } = self.send(parts, body, purpose, entry).await?;
        let switched = response.status() == StatusCode::SWITCHING_PROTOCOLS;
        if switched && !(websocket && canon::is_websocket(response.headers())) {
            return Err(Reply::no_answer(Failure::Protocol));
        }
        if switched && self.shared.end().is_some() {
            // Bytes sent ahead of the answer were refused: the tunnel would lack them.
            return Err(Reply::bad_body());
        }
        let Some(headers) = canon::response(response.headers(), switched) else {
            return Err(Reply::no_answer(Failure::Protocol));
        };
        *response.headers_mut() = headers;
        *response.version_mut() = version;
        entry.edit(|record| {
            record.response_code = response.status().as_u16();
            record.response_code_details = Some("via_upstream".into());
        });
        if switched {
            let upstream_side = hyper::upgrade::on(&mut response);
            return Ok((response, Some((client_side, upstream_side))));
        }
        self.pool.put(connection);
        Ok((response, None))
    }

    /// The verdict: where the request goes and the Host that it goes with, or the refusal.
    fn judge(&self, parts: &Parts, entry: &mut Entry) -> Result<Allowed, Reply> {
        // Bytes beyond ASCII are in no host name: what does not read as text stays unreadable.
        let hosts: Vec<&str> =
            parts.headers.get_all(HOST).iter().map(|h| h.to_str().unwrap_or("\u{fffd}")).collect();
        let authority = parts.uri.authority().map(|a| a.as_str());
        let path = canon::path(&parts.uri);
        let http2 = parts.version == Version::HTTP_2;
        let head = RequestHead {
            method: parts.method.as_str(),
            authority,
            hosts: &hosts,
            path: &path,
            version: if http2 { 20 } else { 11 },
            headers: &Sent(&parts.headers),
        };
        let (decision, enforcement) = self.world.judge(&self.origin.flow(), &head);
        entry.edit(|record| {
            record.upstream_cluster.clone_from(&decision.cluster);
            record.route_name.clone_from(&decision.route);
            record.reason = decision.reason;
        });
        let named = hosts.len() + usize::from(authority.is_some());
        // Held here too: a request is forwarded with one name or not at all (T-30).
        let effective = match (authority, hosts.as_slice()) {
            // T-36: HTTP/2 has no absolute form that would explain a difference.
            (Some(authority), [host]) if http2 && *host != authority => None,
            (Some(authority), [] | [_]) => Some(authority),
            (None, [host]) => Some(*host),
            _ => None,
        };
        let port = self.origin.dst.addr().port();
        let explanation = |explain: bool| match explain {
            true => refusal_body(effective.unwrap_or(""), port, &decision),
            false => String::new(),
        };
        match &decision.action {
            Action::Forward(forward) if parts.method != Method::CONNECT => {
                let destination = pick(&forward.destinations);
                entry.edit(|record| record.upstream_cluster.clone_from(&destination.cluster));
                let host = effective.and_then(|name| HeaderValue::from_str(name).ok());
                match host {
                    Some(host) => Ok(Allowed {
                        purpose: Purpose {
                            cluster: destination.cluster.clone(),
                            upstream: destination.upstream.clone(),
                        },
                        host,
                        strict: enforcement == Enforcement::Strict,
                    }),
                    None => {
                        entry.edit(|record| record.reason = Reason::BadHost);
                        Err(Reply::refused(400, true, String::new(), named))
                    }
                }
            }
            Action::Block(Block::Http { status, explain, close }) => {
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
            | Action::Forward(_) => {
                let explain = enforcement == Enforcement::Strict;
                Err(Reply::refused(502, true, explanation(explain), named))
            }
        }
    }

    /// Sends the request upstream and waits for the head of the answer. A kept connection that
    /// turns out to be dead is replaced once, where the request can be sent again.
    async fn send(
        &self,
        parts: Parts,
        body: Incoming,
        purpose: Purpose,
        entry: &mut Entry,
    ) -> Result<Answered, Reply> {
        let bodiless = body.is_end_stream();
        let body = Upload::new((!bodiless).then_some(body), entry);
        let (mut request, again) = match self.pool.take(&purpose) {
            None => (Request::from_parts(parts, body), None),
            Some(connection) => {
                let repeatable = bodiless && parts.method.is_idempotent();
                let copy = repeatable.then(|| parts.clone());
                (Request::from_parts(parts, body), Some((connection, copy)))
            }
        };
        if let Some((connection, copy)) = again {
            match self.try_on(connection, request, entry).await {
                Ok(answered) => return Ok(answered),
                Err(Lost { unsent: Some(same), .. }) => request = *same,
                Err(Lost { error, .. }) => match copy {
                    Some(parts) if !error.is_parse() => {
                        request = Request::from_parts(parts, Upload::new(None, entry));
                    }
                    _ => return Err(self.failed(&error)),
                },
            }
        }
        let connection = self.connect(purpose, request.version(), entry).await?;
        self.try_on(connection, request, entry).await.map_err(|lost| self.failed(&lost.error))
    }

    async fn connect(
        &self,
        purpose: Purpose,
        version: Version,
        entry: &mut Entry,
    ) -> Result<Connection, Reply> {
        let dialled = match self.world.dial(&purpose.upstream, self.origin.dst).await {
            Ok(dialled) => dialled,
            Err(error) => {
                entry.edit(|record| note_dial_error(record, &error));
                return Err(Reply::not_dialled(&error));
            }
        };
        entry.edit(|record| record.upstream_host = Some(dialled.upstream));
        self.pool
            .start(purpose, dialled, version)
            .await
            .map_err(|_| Reply::no_answer(Failure::Closed))
    }

    async fn try_on(
        &self,
        mut connection: Connection,
        request: Request<Upload>,
        entry: &mut Entry,
    ) -> Result<Answered, Lost> {
        entry.edit(|record| {
            record.upstream_host = Some(connection.upstream);
            record.upstream_local_address = Some(connection.local);
        });
        if let Err(error) = connection.sender.ready().await {
            return Err(Lost { error, unsent: Some(Box::new(request)) });
        }
        let sent = Instant::now();
        match connection.sender.try_send(request).await {
            Ok(response) => {
                let took = sent.elapsed();
                entry.edit(|record| {
                    if let Some(http) = &mut record.http {
                        http.upstream_service_time = Some(took);
                    }
                });
                Ok(Answered { response, connection })
            }
            Err(mut error) => {
                let unsent = error.take_message().map(Box::new);
                Err(Lost { error: error.into_error(), unsent })
            }
        }
    }

    fn failed(&self, error: &hyper::Error) -> Reply {
        if self.shared.end() == Some(End::Body) {
            Reply::bad_body()
        } else if error.is_user() {
            Reply::client_gone()
        } else if error.is_parse() {
            Reply::no_answer(Failure::Protocol)
        } else {
            Reply::no_answer(Failure::Closed)
        }
    }

    /// What is known when the head has come.
    fn record(&self, parts: &Parts) -> Record {
        let authority = parts.uri.authority().map(|a| a.as_str().to_owned());
        Record {
            http: Some(HttpFields {
                method: parts.method.as_str().to_owned(),
                path: canon::path(&parts.uri),
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

/// A request that got no answer.
struct Lost {
    error: hyper::Error,
    /// The request, where certainly no byte of it was sent.
    unsent: Option<Box<Request<Upload>>>,
}

fn note_dial_error(record: &mut Record, error: &DialError) {
    match error {
        DialError::NoEndpoint | DialError::Resolve(_) => {}
        DialError::Special(tried) => {
            record.upstream_host = Some(*tried);
            record.reason = Reason::SpecialAddress;
        }
        DialError::NotVerified { .. } => record.reason = Reason::AddressNotVerified,
        DialError::Connect { tried, .. } => record.upstream_host = Some(*tried),
    }
}

/// Our own answer as a response.
fn local(reply: Reply) -> Response<Full<Bytes>> {
    let is_empty = reply.body.is_empty();
    let mut response = Response::new(Full::new(Bytes::from(reply.body)));
    *response.status_mut() =
        StatusCode::from_u16(reply.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    if !is_empty {
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain"));
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
