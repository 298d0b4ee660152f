//! The upstream connections of one downstream connection. They serve nobody else (T-46).

use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use http::{Request, Response};
use hyper::body::Incoming;
use hyper::client::conn::{TrySendError, http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::act::carrier::{Carried, Held, Stream};
use crate::act::tls::{Stamp, TlsSession};
use crate::decide::traffic::TrafficPolicy;
use crate::decide::{ClusterName, Upstream};

use super::framing::{HEAD_MAX, HEADERS_MAX};
use super::upload::Upload;

/// Idle upstream connections kept for one client connection; the oldest goes first.
const IDLE_MAX: usize = 4;

/// Idle connections, and the tasks that drive all of them; dropping it ends them.
#[derive(Default)]
pub(super) struct Pool {
    idle: Mutex<Vec<Connection>>,
    drivers: Mutex<JoinSet<()>>,
}

/// How long an idle upstream connection is kept unless the cluster says otherwise (DR-9).
const IDLE_LIMIT: Duration = Duration::from_secs(3600);

/// What a connection was made for. Only the very same verdict uses it again (T-46).
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Purpose {
    pub(super) cluster: Option<ClusterName>,
    pub(super) upstream: Upstream,
    pub(super) traffic: Arc<TrafficPolicy>,
    /// The Host that TLS was made for.
    pub(super) host: Option<String>,
    /// What TLS was made of; a credential that changed or went is served by no kept connection.
    pub(super) made_of: Option<Stamp>,
    /// Whether HTTP/2 is spoken.
    pub(super) http2: bool,
}

/// One upstream connection, ready for a request or soon so.
pub(super) struct Connection {
    purpose: Purpose,
    /// Sends requests.
    pub(super) sender: Sender,
    /// Its far end.
    pub(super) upstream: SocketAddr,
    /// Our end.
    pub(super) local: SocketAddr,
    /// What TLS agreed on, where it was originated.
    pub(super) tls: Option<Arc<TlsSession>>,
    /// The unix socket in place of addresses.
    pub(super) socket: Option<Arc<Path>>,
    made: Instant,
    last_used: Instant,
    /// Requests that were sent on it.
    uses: u32,
}

/// Sends requests in the protocol of the connection.
pub(super) enum Sender {
    /// One request at a time.
    Http1(http1::SendRequest<Upload>),
    /// Many at once.
    Http2(http2::SendRequest<Upload>),
}

impl Sender {
    /// Waits until a request can be sent.
    pub(super) async fn ready(&mut self) -> hyper::Result<()> {
        match self {
            Self::Http1(sender) => sender.ready().await,
            Self::Http2(sender) => sender.ready().await,
        }
    }

    /// Sends `request`; an error gives it back where no byte of it was sent.
    pub(super) async fn try_send(
        &mut self,
        request: Request<Upload>,
    ) -> Result<Response<Incoming>, TrySendError<Request<Upload>>> {
        match self {
            Self::Http1(sender) => sender.try_send_request(request).await,
            Self::Http2(sender) => sender.try_send_request(request).await,
        }
    }

    fn is_closed(&self) -> bool {
        match self {
            Self::Http1(sender) => sender.is_closed(),
            Self::Http2(sender) => sender.is_closed(),
        }
    }
}

impl Connection {
    /// As the log has it.
    pub(super) fn protocol(&self) -> &'static str {
        match self.sender {
            Sender::Http1(_) => "HTTP/1.1",
            Sender::Http2(_) => "HTTP/2",
        }
    }

    /// Whether it has served as much, or as long, as its cluster allows (DR-9).
    fn is_worn(&self) -> bool {
        let limits = &self.purpose.traffic.limits;
        limits.max_requests_per_connection.is_some_and(|max| self.uses >= max)
            || limits.max_connection_duration.is_some_and(|max| self.made.elapsed() >= max)
            || self.last_used.elapsed() >= limits.http_idle_timeout.unwrap_or(IDLE_LIMIT)
    }
}

impl Pool {
    /// A kept connection made for `purpose` to an address that `suits`; one of HTTP/2 stays here for
    /// others as well.
    pub(super) fn take(
        &self,
        purpose: &Purpose,
        suits: impl Fn(SocketAddr) -> bool,
    ) -> Option<Connection> {
        let mut idle = lock(&self.idle);
        idle.retain(|connection| !connection.sender.is_closed() && !connection.is_worn());
        let at = idle
            .iter()
            .position(|connection| connection.purpose == *purpose && suits(connection.upstream))?;
        let kept = &mut idle[at];
        kept.uses += 1;
        kept.last_used = Instant::now();
        if let Sender::Http2(sender) = &kept.sender {
            return Some(Connection {
                purpose: kept.purpose.clone(),
                sender: Sender::Http2(sender.clone()),
                tls: kept.tls.clone(),
                socket: kept.socket.clone(),
                ..*kept
            });
        }
        Some(idle.remove(at))
    }

    /// Keeps `connection` for the next request of its purpose.
    pub(super) fn put(&self, mut connection: Connection) {
        // Where connections are counted, none is kept from others.
        let counted = connection.purpose.traffic.limits.max_connections.is_some();
        if connection.is_worn() || (counted && !connection.purpose.http2) {
            return;
        }
        connection.last_used = Instant::now();
        let mut idle = lock(&self.idle);
        let ends = |c: &Connection| (c.upstream, c.local);
        if idle.iter().any(|kept| ends(kept) == ends(&connection)) {
            // Of HTTP/2, and never left.
            return;
        }
        if idle.len() == IDLE_MAX {
            idle.remove(0);
        }
        idle.push(connection);
    }

    /// Starts HTTP on a new connection.
    ///
    /// # Errors
    /// The connection is broken already.
    pub(super) async fn start(
        &self,
        purpose: Purpose,
        carried: Carried,
    ) -> hyper::Result<Connection> {
        let Carried { stream, upstream, local, tls, socket, held } = carried;
        let sender = match stream {
            Stream::Plain(stream) => self.speak(stream, held, purpose.http2).await?,
            Stream::Wrapped(stream) => self.speak(stream, held, purpose.http2).await?,
        };
        let now = Instant::now();
        let (made, last_used) = (now, now);
        let uses = 1;
        Ok(Connection { purpose, sender, upstream, local, tls, socket, made, last_used, uses })
    }

    async fn speak<S>(&self, stream: S, held: Held, http2: bool) -> hyper::Result<Sender>
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let io = TokioIo::new(stream);
        if http2 {
            let (sender, driver) = http2::Builder::new(TokioExecutor::new())
                .max_header_list_size(HEAD_MAX as u32)
                .handshake(io)
                .await?;
            self.drive(driver, held);
            Ok(Sender::Http2(sender))
        } else {
            let (sender, driver) = http1::Builder::new()
                .preserve_header_case(true)
                .max_headers(HEADERS_MAX)
                .handshake(io)
                .await?;
            self.drive(driver.with_upgrades(), held);
            Ok(Sender::Http1(sender))
        }
    }

    /// Runs a connection's own part for as long as the pool lives; it counts until then.
    fn drive(&self, driver: impl Future<Output = hyper::Result<()>> + Send + 'static, held: Held) {
        let mut drivers = lock(&self.drivers);
        // Forget the ones that have ended.
        while drivers.try_join_next().is_some() {}
        drivers.spawn(async move {
            // Whoever waits for an answer is told of the error by the library.
            let _ = driver.await;
            drop(held);
        });
    }
}

/// No critical section here leaves anything half done when it panics.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
