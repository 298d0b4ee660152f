//! Limits (DR-9, DR-10): how much of a cluster may be under way at a time.

use std::sync::Arc;

use super::{Cluster, lock};
use crate::decide::traffic::Limits;

/// What is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Connections: `tcp.maxConnections`.
    Connection,
    /// Requests that have no connection yet: `http.http1MaxPendingRequests`.
    Pending,
    /// Requests: `http.http2MaxRequests`.
    Request,
    /// Repeated attempts: `http.maxRetries`.
    Retry,
}

/// The limit is reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the cluster's limit is reached")]
pub struct Overflow;

#[derive(Debug, Default)]
pub(super) struct Counts([u32; 4]);

impl Counts {
    fn of(&mut self, kind: Kind) -> &mut u32 {
        &mut self.0[kind as usize]
    }
}

impl Kind {
    fn limit(self, limits: &Limits) -> Option<u32> {
        match self {
            Self::Connection => limits.max_connections,
            Self::Pending => limits.max_pending_requests,
            Self::Request => limits.max_requests,
            Self::Retry => limits.max_retries,
        }
    }
}

/// One of the counted things; given back when dropped.
#[derive(Debug)]
pub struct Permit {
    cluster: Arc<Cluster>,
    kind: Kind,
}

impl Cluster {
    /// Counts one more `kind`.
    ///
    /// # Errors
    /// [`Overflow`]: as many as `limits` allow are under way.
    pub fn admit(self: &Arc<Self>, kind: Kind, limits: &Limits) -> Result<Permit, Overflow> {
        let mut counts = lock(&self.counts);
        let count = counts.of(kind);
        if kind.limit(limits).is_some_and(|limit| *count >= limit) {
            return Err(Overflow);
        }
        *count += 1;
        Ok(Permit { cluster: Arc::clone(self), kind })
    }

    /// Waits until one more connection is allowed. That maxConnections is reached refuses no HTTP
    /// request: it queues, and the queue has its own limit (DR-10).
    pub async fn connection(self: &Arc<Self>, limits: &Limits) -> Permit {
        loop {
            // Asked for before the look, so that nothing given back in between is missed.
            let freed = self.freed.notified();
            if let Ok(permit) = self.admit(Kind::Connection, limits) {
                return permit;
            }
            freed.await;
        }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        {
            let mut counts = lock(&self.cluster.counts);
            let count = counts.of(self.kind);
            *count = count.saturating_sub(1);
        }
        if self.kind == Kind::Connection {
            self.cluster.freed.notify_waiters();
        }
    }
}
