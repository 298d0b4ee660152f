//! One attempt to have a request answered: a connection, kept or new, and what comes back on it.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use http::request::Parts;
use http::{Request, Response, StatusCode};
use hyper::body::Incoming;
use tokio::time::Instant;

use crate::account::Record;
use crate::act::carrier::{Ask, Carrier, CarryError};
use crate::act::cluster::{Kind, Outcome};
use crate::act::dial::DialError;
use crate::act::door::DoorError;
use crate::act::tls::{Alpn, TlsError};
use crate::act::tunnel::NoTunnel;
use crate::decide::route::Destination;
use crate::decide::{ClusterName, Reason};

use super::canon;
use super::entry::{Entry, UnderWay, is_reset};
use super::pool::{Connection, Ends, Pool, Purpose};
use super::reply::{Failure, Reply};
use super::retry::Cause;
use super::upload::Upload;

/// Where attempts of one request go.
pub(super) struct Target<'a> {
    pub(super) carrier: &'a Carrier,
    pub(super) pool: &'a Pool,
    pub(super) destination: &'a Destination,
    pub(super) ask: Ask<'a>,
    pub(super) http2: bool,
    /// Whether the request asks for an upgrade.
    pub(super) upgrades: bool,
    /// A kept connection that turns out dead may be replaced even if the request was on it.
    pub(super) repeatable: bool,
}

/// Endpoints that had their chance.
#[derive(Debug, Default)]
pub(super) struct Tried {
    /// By earlier attempts.
    pub(super) before: Vec<SocketAddr>,
    /// By this one.
    pub(super) now: Option<SocketAddr>,
}

/// An upstream's answer and the connection that it came by.
pub(super) struct Answered {
    pub(super) response: Response<Incoming>,
    pub(super) connection: Connection,
    pub(super) under_way: UnderWay,
    /// From sending to the answer's head.
    pub(super) took: Duration,
}

/// No answer.
pub(super) struct Failed {
    pub(super) cause: Cause,
    /// What the client is told.
    pub(super) reply: Box<Reply>,
    /// The upload broke, not the upstream.
    pub(super) upload: bool,
}

impl Failed {
    fn of(error: &CarryError, destination: &Destination) -> Self {
        let cause = match error {
            CarryError::Dial(DialError::Connect { .. } | DialError::Unix { .. }) => Cause::Connect,
            // What cannot be made here cannot be made by trying again.
            CarryError::Tls { error: TlsError::Handshake(_), .. } => Cause::Connect,
            CarryError::Door(error) if error.is_connect() => Cause::Connect,
            _ => Cause::Other,
        };
        let dynamic = destination.cluster == Some(ClusterName::allow_any_dynamic_dns());
        let reply = match error {
            CarryError::Dial(DialError::Resolve(_)) if dynamic => Reply::not_resolved(),
            error => Reply::not_carried(error),
        };
        Self { cause, reply: reply.into(), upload: false }
    }
}

impl Target<'_> {
    /// What a connection for the request has to be made for, and of, now.
    async fn purpose(&self) -> Result<Purpose, TlsError> {
        let traffic = &self.destination.traffic;
        let made_of = match &traffic.tls {
            None => None,
            Some(rule) => Some(self.carrier.outbound.originator.stamp(rule).await?),
        };
        Ok(Purpose {
            cluster: self.destination.cluster.clone(),
            upstream: self.destination.upstream.clone(),
            door: self.destination.door.clone(),
            traffic: traffic.clone(),
            plain: self.ask.plain.map(str::to_owned),
            host: traffic.tls.as_ref().and_then(|_| self.ask.host.map(str::to_owned)),
            made_of,
            http2: self.http2,
            upgrades: self.upgrades,
        })
    }

    /// Sends the request and waits for the head of the answer. A kept connection that turns out to
    /// be dead is replaced once, where the request can be sent again; that is no retry.
    pub(super) async fn attempt(
        &self,
        parts: &Parts,
        upload: Upload,
        entry: &mut Entry,
        tried: &mut Tried,
        again: impl Fn() -> Option<Upload>,
    ) -> Result<Answered, Failed> {
        let failed = |error: CarryError, entry: &mut Entry| {
            entry.edit(|record| note_error(record, &error));
            Err(Failed::of(&error, self.destination))
        };
        let limits = &self.destination.traffic.limits;
        let avoid = tried.before.as_slice();
        let ask = Ask { avoid, ..self.ask };
        let choice = match self.carrier.choose(self.destination, ask).await {
            Ok(choice) => choice,
            Err(error) => return failed(error, entry),
        };
        let request = choice.cluster.admit(Kind::Request, limits);
        let permit = match request {
            Ok(permit) => permit,
            Err(overflow) => return failed(overflow.into(), entry),
        };
        entry.edit(|record| *record.more.attempts.get_or_insert(0) += 1);
        let (cluster, total) = (choice.cluster.clone(), choice.total());
        let report = |address, outcome| {
            let rules = self.destination.traffic.outlier.as_ref();
            cluster.report(address, outcome, rules, total);
        };
        let purpose = match self.purpose().await {
            Ok(purpose) => purpose,
            Err(error) => {
                let tried = choice.first();
                return failed(CarryError::Tls { tried, error }, entry);
            }
        };
        let suits = |address| choice.suits(address, avoid);
        let mut request = Request::from_parts(parts.clone(), upload);
        if let Some(connection) = self.pool.take(&purpose, suits).await {
            let busy = cluster.busy(connection.ends.upstream);
            let address = connection.ends.upstream;
            match try_on(connection, request, entry).await {
                Ok((response, connection, took)) => {
                    if let Some(error) = proxy_refusal(&connection, &response) {
                        return failed(error.into(), entry);
                    }
                    report(address, Outcome::Status(response.status().as_u16()));
                    tried.now = Some(address);
                    let under_way = UnderWay { _request: permit, _busy: busy, lent: None };
                    return Ok(Answered { response, connection, under_way, took });
                }
                Err(Lost { unsent: Some(same), .. }) => request = *same,
                Err(lost) => match self.repeatable.then(&again).flatten() {
                    Some(upload) if !lost.error.is_parse() => {
                        request = Request::from_parts(parts.clone(), upload);
                    }
                    _ => {
                        report(address, Outcome::Failure);
                        tried.now = Some(address);
                        return Err(lost.failed());
                    }
                },
            }
        }
        // Waits for its turn where the connections are counted; the queue has its limit (DR-10).
        // Boxed, since most requests find a kept connection and need not carry room for this.
        let opened = Box::pin(async {
            let pending = cluster.admit(Kind::Pending, limits)?;
            let connection = cluster.connection(limits).await;
            let alpn = if self.http2 { Alpn::Http2 } else { Alpn::Http1 };
            let carried =
                self.carrier.open(self.destination, choice, ask, alpn, connection).await?;
            drop(pending);
            Ok(carried)
        });
        let carried = match opened.await {
            Ok(carried) => carried,
            Err(error) => {
                tried.now = CarryError::tried(&error);
                return failed(error, entry);
            }
        };
        let address = carried.upstream;
        tried.now = Some(address);
        entry.edit(|record| {
            note_end(record, address, None, carried.socket.clone());
            record.note_door(carried.left.as_deref());
        });
        let busy = cluster.busy(address);
        let lost = match Box::pin(self.pool.start(purpose, carried)).await {
            Err(error) => Lost { error, unsent: None },
            Ok(connection) => match try_on(connection, request, entry).await {
                Err(lost) => lost,
                Ok((response, connection, took)) => {
                    if let Some(error) = proxy_refusal(&connection, &response) {
                        return failed(error.into(), entry);
                    }
                    report(address, Outcome::Status(response.status().as_u16()));
                    let under_way = UnderWay { _request: permit, _busy: busy, lent: None };
                    return Ok(Answered { response, connection, under_way, took });
                }
            },
        };
        if !lost.error.is_user() {
            report(address, Outcome::Failure);
        }
        Err(lost.failed())
    }
}

/// A request that got no answer.
struct Lost {
    error: hyper::Error,
    /// The request, where certainly no byte of it was sent.
    unsent: Option<Box<Request<Upload>>>,
}

impl Lost {
    fn failed(self) -> Failed {
        // The stream's error code; the library shows it in words only.
        let refused = std::error::Error::source(&self.error)
            .is_some_and(|source| source.to_string().contains("refused stream"));
        let failure = match &self.error {
            error if error.is_parse() => Failure::Protocol,
            error if is_reset(error) => Failure::Reset,
            _ => Failure::Closed,
        };
        Failed {
            cause: match (refused, self.error.is_user()) {
                (true, _) => Cause::Refused,
                (_, true) => Cause::Other,
                _ => Cause::Reset { sent: self.unsent.is_none() },
            },
            reply: Reply::no_answer(failure).into(),
            upload: self.error.is_user(),
        }
    }
}

async fn try_on(
    mut connection: Connection,
    mut request: Request<Upload>,
    entry: &mut Entry,
) -> Result<(Response<Incoming>, Connection, Duration), Lost> {
    let session = connection.ends.tls.as_ref().filter(|_| entry.wanted().tls);
    let tls = session.map(|session| session.fields());
    entry.edit(|record| {
        let Ends { upstream, local, socket, .. } = &*connection.ends;
        note_end(record, *upstream, Some(*local), socket.clone());
        record.note_door(connection.ends.left.as_deref());
        record.more.upstream_protocol = Some(connection.protocol());
        record.more.upstream_tls = tls;
    });
    if let Err(error) = connection.sender.ready().await {
        return Err(Lost { error, unsent: Some(Box::new(request)) });
    }
    let absolute = connection.ends.left.as_deref().and_then(|left| left.absolute.as_ref());
    canon::address(&mut request, absolute);
    let sent = Instant::now();
    let sent_after = entry.elapsed();
    entry.edit(|record| record.more.sending_duration = Some(sent_after));
    match connection.sender.try_send(request).await {
        Ok(response) => Ok((response, connection, sent.elapsed())),
        Err(mut error) => {
            let unsent = error.take_message().map(Box::new);
            Err(Lost { error: error.into_error(), unsent })
        }
    }
}

/// The refusal of an egress proxy that a request was given without a tunnel, where it can be told from
/// an upstream's: it wants credentials, or others. Its answer is none for the client.
fn proxy_refusal(connection: &Connection, response: &Response<Incoming>) -> Option<DoorError> {
    let left = connection.ends.left.as_ref().filter(|left| left.absolute.is_some())?;
    let refused = response.status() == StatusCode::PROXY_AUTHENTICATION_REQUIRED;
    refused.then(|| DoorError {
        proxy: Arc::clone(&left.proxy),
        tried: Some(connection.ends.upstream),
        why: NoTunnel::Answered(response.status().as_u16()).into(),
    })
}

/// Where the request went: to an address, or to a unix socket.
fn note_end(
    record: &mut Record,
    upstream: SocketAddr,
    local: Option<SocketAddr>,
    socket: Option<Arc<Path>>,
) {
    let named = socket.is_none();
    record.more.upstream_socket = socket;
    record.upstream_host = Some(upstream).filter(|_| named);
    record.upstream_local_address = local.filter(|_| named);
}

fn note_error(record: &mut Record, error: &CarryError) {
    match error {
        // Nothing was dialled (T-40), so there is no upstream to name.
        CarryError::Dial(DialError::Special(_)) => record.reason = Reason::SpecialAddress,
        CarryError::Dial(DialError::NotVerified { .. }) => {
            record.reason = Reason::AddressNotVerified;
        }
        CarryError::NoCluster => record.upstream_cluster = None,
        CarryError::Overflow(_) => record.upstream_host = None,
        CarryError::Dial(_) | CarryError::Tls { .. } | CarryError::Tunnel { .. } => {
            record.upstream_host = error.tried();
        }
        CarryError::Door(door) => {
            record.upstream_host = door.tried;
            record.more.egress_proxy = Some(Arc::clone(&door.proxy));
        }
    }
}
