//! Where a connection was going before the kernel turned it to us, and who made it.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::SystemTime;

use tokio::net::TcpStream;
use tokio::time::Instant;

use crate::decide;
use crate::hbone::Refusal;
use crate::workloads::Workload;

/// The address that the workload passed to `connect()`. Never a v4-mapped IPv6 address: those are
/// IPv4 here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct OriginalDst(SocketAddr);

impl OriginalDst {
    /// Takes an address as the kernel recorded it and unmaps v4-mapped IPv6.
    pub fn new(addr: SocketAddr) -> Self {
        Self(SocketAddr::new(addr.ip().to_canonical(), addr.port()))
    }

    /// The address in canonical form.
    pub fn addr(self) -> SocketAddr {
        self.0
    }
}

impl fmt::Display for OriginalDst {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// How a connection came to a gateway.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Arrival {
    /// The node, by the name in its certificate.
    pub node: Arc<str>,
    /// The trace that the node's line has too.
    pub trace: Arc<str>,
    /// Where the node is told why it was refused.
    pub refusal: Refusal,
}

/// What is known of a connection before its first byte. Lives as long as the connection.
#[derive(Debug, Clone)]
pub struct Origin {
    /// Number of the connection, unique while the daemon runs.
    pub id: u64,
    /// The address that the workload dialled (LOG-3 field 21).
    pub dst: OriginalDst,
    /// The workload's end as the workload itself sees it (`getsockname`; LOG-3 field 22).
    pub src: SocketAddr,
    /// Who connected.
    pub workload: Arc<Workload>,
    /// How it came, where this is a gateway.
    pub arrival: Option<Arc<Arrival>>,
    /// When it was accepted, for durations and deadlines.
    pub accepted: Instant,
    /// When it was accepted, for people (LOG-3 field 1).
    pub accepted_wall: SystemTime,
}

impl Origin {
    /// The part that decisions read.
    pub fn flow(&self) -> decide::Flow<'_> {
        decide::Flow { dst: self.dst, namespace: &self.workload.namespace }
    }
}

/// An accepted connection whose original destination is known.
#[derive(Debug)]
pub struct Intercepted {
    /// The workload's side.
    pub client: TcpStream,
    /// Where it was going and who made it.
    pub origin: Origin,
}
