//! Names to addresses: the daemon's own answers, never the workload's (T-39).

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use crate::decide::host::HostName;

/// How the resolver behaves.
#[derive(Debug, Clone)]
pub struct ResolverConfig {
    /// Name servers to ask, in order.
    pub servers: Vec<SocketAddr>,
    /// How long the last good answer may stand in for a failing resolver; `None` = for ever
    /// (RES-7 in istio; 5 minutes in strict, T-42).
    pub stale_for: Option<Duration>,
    /// Refresh interval for answers without a usable TTL (MESH-7).
    pub refresh: Duration,
}

/// The daemon's resolver. Asks from the daemon's own network namespace; hosts are absolute; no
/// search list, no /etc/hosts.
#[derive(Debug)]
pub struct Resolver {}

/// Why a name gave no address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ResolveError {
    /// The name exists without addresses, or does not exist.
    #[error("{0} has no address")]
    NoAddress(HostName),
    /// No server answered in time and no earlier answer is young enough.
    #[error("no name server answered for {host}: {why}")]
    Failed {
        /// The name asked for.
        host: HostName,
        /// The last failure.
        why: Arc<str>,
    },
}

impl Resolver {
    /// Makes a resolver.
    pub fn new(_config: ResolverConfig) -> Self {
        todo!()
    }

    /// The addresses of `host`, from the cache while the answer's TTL lasts (floor 1 s, T-41), else
    /// asked now. Concurrent questions for one name share one query. At most 64 addresses, in the
    /// order of the answer; both families.
    ///
    /// # Errors
    /// [`ResolveError`].
    pub async fn lookup(&self, _host: &HostName) -> Result<Arc<[IpAddr]>, ResolveError> {
        todo!()
    }
}
