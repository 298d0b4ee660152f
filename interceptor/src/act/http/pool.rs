//! The upstream connections of one downstream connection. They serve nobody else (T-46).

use std::net::SocketAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};

use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use tokio::task::JoinSet;

use crate::act::dial::Dialled;
use crate::decide::{ClusterName, Upstream};

use super::entry::Upload;
use super::framing::HEADERS_MAX;

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
    pub(super) sender: SendRequest<Upload>,
    /// Its far end.
    pub(super) upstream: SocketAddr,
    /// Our end.
    pub(super) local: SocketAddr,
    /// Whether it has served before and may have gone stale.
    pub(super) reused: bool,
}

impl Pool {
    /// An idle connection made for `purpose`.
    pub(super) fn take(&self, purpose: &Purpose) -> Option<Connection> {
        let mut idle = lock(&self.idle);
        idle.retain(|connection| !connection.sender.is_closed());
        let at = idle.iter().position(|connection| connection.purpose == *purpose)?;
        Some(idle.remove(at))
    }

    /// Keeps `connection` for the next request of its purpose.
    pub(super) fn put(&self, mut connection: Connection) {
        connection.reused = true;
        let mut idle = lock(&self.idle);
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
    ) -> hyper::Result<Connection> {
        let (sender, driver) = http1::Builder::new()
            .preserve_header_case(true)
            .max_headers(HEADERS_MAX)
            .handshake(TokioIo::new(dialled.stream))
            .await?;
        let mut drivers = lock(&self.drivers);
        // Forget the ones that have ended.
        while drivers.try_join_next().is_some() {}
        drivers.spawn(async move {
            // Whoever waits for an answer is told of the error by the library.
            let _ = driver.with_upgrades().await;
        });
        Ok(Connection {
            purpose,
            sender,
            upstream: dialled.upstream,
            local: dialled.local,
            reused: false,
        })
    }
}

/// No critical section here leaves anything half done when it panics.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
