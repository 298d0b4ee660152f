//! The upstream connections of one downstream connection. They serve nobody else (T-46).

use std::net::SocketAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};

use http::{Request, Response, Version};
use hyper::body::Incoming;
use hyper::client::conn::{TrySendError, http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::task::JoinSet;

use crate::act::dial::Dialled;
use crate::decide::{ClusterName, Upstream};

use super::entry::Upload;
use super::framing::{HEAD_MAX, HEADERS_MAX};

/// Idle upstream connections kept for one client connection; the oldest goes first.
const IDLE_MAX: usize = 4;

/// Idle connections, and the tasks that drive all of them; dropping it ends them.
#[derive(Default)]
pub(super) struct Pool {
    idle: Mutex<Vec<Connection>>,
    drivers: Mutex<JoinSet<()>>,
}

/// What a connection was made for. Only the very same verdict uses it again.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Purpose {
    pub(super) cluster: Option<ClusterName>,
    pub(super) upstream: Upstream,
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

impl Pool {
    /// A kept connection made for `purpose`; one of HTTP/2 stays here for others as well.
    pub(super) fn take(&self, purpose: &Purpose) -> Option<Connection> {
        let mut idle = lock(&self.idle);
        idle.retain(|connection| !connection.sender.is_closed());
        let at = idle.iter().position(|connection| connection.purpose == *purpose)?;
        let kept = &idle[at];
        if let Sender::Http2(sender) = &kept.sender {
            return Some(Connection {
                purpose: kept.purpose.clone(),
                sender: Sender::Http2(sender.clone()),
                ..*kept
            });
        }
        Some(idle.remove(at))
    }

    /// Keeps `connection` for the next request of its purpose.
    pub(super) fn put(&self, connection: Connection) {
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
        dialled: Dialled,
        version: Version,
    ) -> hyper::Result<Connection> {
        let io = TokioIo::new(dialled.stream);
        let sender = if version == Version::HTTP_2 {
            let (sender, driver) = http2::Builder::new(TokioExecutor::new())
                .max_header_list_size(HEAD_MAX as u32)
                .handshake(io)
                .await?;
            self.drive(driver);
            Sender::Http2(sender)
        } else {
            let (sender, driver) = http1::Builder::new()
                .preserve_header_case(true)
                .max_headers(HEADERS_MAX)
                .handshake(io)
                .await?;
            self.drive(driver.with_upgrades());
            Sender::Http1(sender)
        };
        Ok(Connection { purpose, sender, upstream: dialled.upstream, local: dialled.local })
    }
    /// Runs a connection's own part for as long as the pool lives.
    fn drive(&self, driver: impl Future<Output = hyper::Result<()>> + Send + 'static) {
        let mut drivers = lock(&self.drivers);
        // Forget the ones that have ended.
        while drivers.try_join_next().is_some() {}
        drivers.spawn(async move {
            // Whoever waits for an answer is told of the error by the library.
            let _ = driver.await;
        });
    }
}

/// No critical section here leaves anything half done when it panics.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
