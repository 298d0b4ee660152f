//! The only place that opens a connection to the outside, always in the workload's own namespace
//! and always to a judged address.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpStream;

use crate::decide::Upstream;
use crate::netns::NetNs;
use crate::origin::OriginalDst;
use crate::resolve::{ResolveError, Resolver};

/// Opens upstream connections for the workloads of one network namespace.
#[derive(Debug, Clone)]
pub struct Dialer {
    /// Where upstream sockets are made.
    pub netns: Arc<NetNs>,
    /// Names to addresses.
    pub resolver: Arc<Resolver>,
    /// Bound on one connect (MESH-6).
    pub connect_timeout: Duration,
    /// Whether resolved addresses in special ranges are dialled (istio) or refused (strict, T-40).
    pub dial_special: bool,
}

/// An open upstream connection.
#[derive(Debug)]
pub struct Dialled {
    /// The connection: TCP_NODELAY on, keep-alive 60 s / 10 s / 6.
    pub stream: TcpStream,
    /// Address connected to (LOG-3 field 18).
    pub upstream: SocketAddr,
    /// Our end of it (LOG-3 field 20).
    pub local: SocketAddr,
}

/// Why there is no upstream connection.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    /// The cluster has no endpoint (UH).
    #[error("the service has no endpoint")]
    NoEndpoint,
    /// The name has no address (UH).
    #[error(transparent)]
    Resolve(#[from] ResolveError),
    /// Every resolved address lies in a special range (T-40).
    #[error("{0} is a special address that no entry names")]
    Special(SocketAddr),
    /// The connect failed (UF).
    #[error("connect to {tried}: {source}")]
    Connect {
        /// The address tried last.
        tried: SocketAddr,
        /// Why.
        source: io::Error,
    },
}

impl Dialer {
    /// Connects to one of `upstream`'s addresses.
    ///
    /// # Errors
    /// [`DialError`]; a failure tried every address that the upstream allows, within the timeout.
    pub async fn dial(&self, _upstream: &Upstream, _dst: OriginalDst) -> Result<Dialled, DialError> {
        todo!()
    }
}
