//! HTTP on a workload's connection: every request is judged on its own (R5), re-serialised from its
//! parsed form (R4), and leaves one access-log line.
//!
//! `first` tells for audit what cannot be served, `framing` lets only unambiguous bytes through to the HTTP library, `wire` puts it under the
//! library's feet; `http2` needs neither since that framing has one reading, but `frames` bounds what
//! may come in it for nothing; `exchange` takes one request from head to log line, `forward` does what its route asks for, `attempt` sends it once,
//! `retry` says when to do so again, `upload` has the body ready for that, `shape` changes heads as
//! a route says, `mirror` sends copies, `canon` says what of a head is passed on, `pool` keeps the
//! connection's own upstream connections, `tunnel` carries a websocket, `entry` sees to the record,
//! `cut` ends what policy allows no more, `reply` holds the answers that we give ourselves.

mod canon;
mod cut;
mod entry;
mod attempt;
mod exchange;
mod first;
mod forward;
mod frames;
mod framing;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzzed;
mod http2;
mod mirror;
mod pool;
mod reply;
mod retry;
#[cfg(any(test, fuzzing))]
mod second;
mod shape;
mod tunnel;
mod upload;
mod wire;

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::Either;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::account::{AccessLog, Flag, Folds, HttpFields, Record};
use crate::act::carrier::Carrier;
use crate::admit::Room;
use crate::clock;
use crate::decide::{self, Decision, Flow, Reason, RequestHead};
use crate::drain::Drain;
use crate::memory;
use crate::origin::Origin;
use crate::policy::{Enforcement, OnRemoval, Store};
use crate::sniff::prefixed::Prefixed;
use crate::workloads::Audit;

pub(crate) use first::unservable;
pub(crate) use reply::refusal_body;

use exchange::Session;
use framing::Violation;
use wire::{End, Reading, Wire};

/// What serving needs besides the connection itself.
#[derive(Debug, Clone)]
pub struct HttpContext {
    /// Opens upstream connections.
    pub carrier: Carrier,
    /// The newest policy; read anew for each request.
    pub policy: Arc<Store>,
    /// Where lines go.
    pub log: AccessLog,
    /// Refusals that repeat.
    pub folds: Arc<Folds>,
    /// The workload's places.
    pub room: Arc<Room>,
    /// When connections end because another daemon has taken over.
    pub drain: Drain,
    /// Whether what is refused passes, and is told; asked anew for each request.
    pub audit: Audit,
    /// When its first byte came.
    pub began: Option<Instant>,
}

/// Serves `client` until it ends. Dropping the future ends everything that it started; requests
/// under way are then recorded as given up.
pub fn serve(
    client: Prefixed<TcpStream>,
    origin: Origin,
    context: HttpContext,
) -> impl Future<Output = ()> + Send {
    let log = context.log.clone();
    serve_in(client, origin, log, context)
}

/// What a connection asks of the rest of the program.
trait World: Send + Sync + 'static {
    /// The verdict on one request, by the newest policy, and the profile in force.
    fn judge(&self, flow: &Flow<'_>, head: &RequestHead<'_>) -> (Decision, Enforcement);

    /// Opens upstream connections.
    fn carrier(&self) -> &Carrier;

    /// Says when policy changes from now on, where that ends what is no longer allowed.
    fn changes(&self) -> Option<watch::Receiver<u64>> {
        None
    }

    /// What bounds the reading of heads.
    fn reading(&self) -> Reading {
        Reading::default()
    }

    /// When the connection is to end; without one, when the client has it so.
    fn drain(&self) -> Option<&Drain> {
        None
    }

    /// Where refusals go that may repeat; `None`: each has its line.
    fn folds(&self) -> Option<Arc<Folds>> {
        None
    }
}

impl World for HttpContext {
    fn judge(&self, flow: &Flow<'_>, head: &RequestHead<'_>) -> (Decision, Enforcement) {
        let snapshot = self.policy.current();
        let profile = snapshot.enforcement;
        if self.audit.is_on() {
            let decision = decide::by_request(&snapshot.policy, flow, head);
            return (decide::audited(decision, flow.dst), profile);
        }
        match snapshot.needs_log() && self.log.fails() {
            true => (decide::unlogged(profile), profile),
            false => (decide::by_request(&snapshot.policy, flow, head), profile),
        }
    }

    fn carrier(&self) -> &Carrier {
        &self.carrier
    }

    fn changes(&self) -> Option<watch::Receiver<u64>> {
        let changes = self.policy.subscribe();
        let cuts = self.policy.current().on_removal == OnRemoval::Cut && !self.audit.is_on();
        cuts.then_some(changes)
    }

    fn reading(&self) -> Reading {
        Reading { room: Some(Arc::clone(&self.room)), began: self.began }
    }

    fn drain(&self) -> Option<&Drain> {
        Some(&self.drain)
    }

    fn folds(&self) -> Option<Arc<Folds>> {
        // In istio each has its line (LOG-5).
        let strict = self.policy.current().enforcement == Enforcement::Strict;
        strict.then(|| Arc::clone(&self.folds))
    }
}

/// Not an `async fn`, which would keep its arguments beside what is made of them.
fn serve_in<W: World>(
    client: Prefixed<TcpStream>,
    origin: Origin,
    log: AccessLog,
    world: W,
) -> impl Future<Output = ()> + Send {
    let (sniffed, stream) = client.into_parts();
    let is_http2 = sniffed.starts_with(http2::PREFACE);
    let client = Prefixed::new(sniffed, stream);
    if is_http2 {
        return Either::Left(Box::pin(http2::serve(client, origin, log, world)));
    }
    let (wire, shared) = Wire::new(client, world.reading());
    let session = Arc::new(Session::new(world, origin, log, shared));
    Either::Right(over_http1(wire, session))
}

async fn over_http1<W: World>(wire: Wire<Prefixed<TcpStream>>, session: Arc<Session<W>>) {
    let library_refused = requests(wire, &session).await.is_err_and(|error| error.is_parse());
    session.tunnels_end().await;

    if let Some(ending) = ending(session.shared.end(), library_refused) {
        session.log.write(unread_record(&session.origin, "HTTP/1.1", ending));
    }
}

/// Has the HTTP library serve one request after another. It keeps some 16 KiB for a connection: one
/// that is idle is taken from it, and given to it again when the client goes on.
async fn requests<W: World>(
    mut wire: Wire<Prefixed<TcpStream>>,
    session: &Arc<Session<W>>,
) -> hyper::Result<()> {
    loop {
        let serving = Arc::clone(session);
        let connection = library()
            .serve_connection(
                TokioIo::new(wire),
                service_fn(move |request| Arc::clone(&serving).answer(request)),
            )
            .with_upgrades();
        let mut connection = Box::new(connection);
        tokio::select! {
            biased;
            ended = &mut connection => return ended,
            () = session.shared.idled() => {}
        }
        // None is an upgraded one. Bytes that the library read and nobody judged are not read again.
        let Some(http1::Parts { io, read_buf, .. }) = connection.into_parts() else {
            return Ok(());
        };
        if !read_buf.is_empty() {
            return Ok(());
        }
        // Not kept for the time of the rest: its place alone is 8 KiB.
        drop(read_buf);
        memory::spent();
        wire = io.into_inner();
        tokio::select! {
            () = wire.rest() => {}
            () = session.pool.rest() => {}
        }
    }
}

/// The HTTP library's server.
fn library() -> http1::Builder {
    let mut library = http1::Builder::new();
    library
        .auto_date_header(false)
        .header_read_timeout(None::<Duration>)
        .max_headers(framing::HEADERS_MAX)
        .preserve_header_case(true);
    library
}

/// The record of bytes that never became a request.
fn unread_record(
    origin: &Origin,
    protocol: &'static str,
    (code, flag, details): (u16, Flag, &'static str),
) -> Record {
    Record {
        http: Some(HttpFields { protocol, ..HttpFields::default() }),
        response_code: code,
        flags: vec![flag],
        response_code_details: Some(details.into()),
        ..blank_record(origin)
    }
}

/// Status, flag and details where a connection ended with bytes that never became a request
/// (T-55).
fn ending(end: Option<End>, library_refused: bool) -> Option<(u16, Flag, &'static str)> {
    match end {
        Some(End::Head(Violation::Malformed(_))) => Some((400, Flag::DPE, "http1.codec_error")),
        Some(End::Head(Violation::TooLarge)) => Some((431, Flag::DPE, "request_headers_too_large")),
        Some(End::Crowded(full)) => Some((0, Flag::OM, full.label())),
        Some(End::Deadline) => Some((0, Flag::DPE, "request_header_timeout")),
        Some(End::Incomplete) => Some((0, Flag::DC, "downstream_remote_disconnect")),
        Some(End::Flood) => Some((0, Flag::DPE, "http2.inbound_frames_flood")),
        // Its exchange has recorded it.
        Some(End::Body) => None,
        None => library_refused.then_some((400, Flag::DPE, "http1.codec_error")),
    }
}

/// A record of something that starts now on the connection of `origin`.
fn blank_record(origin: &Origin) -> Record {
    let mut record = Record::new(clock::wall(), origin.dst.addr(), origin.src);
    record.reason = Reason::Malformed;
    record.more.connection_id = Some(origin.id);
    record.more.attempts = Some(0);
    record.note_arrival(origin);
    record
}

#[cfg(test)]
mod tests;
