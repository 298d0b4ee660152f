//! What the driver asks of the load generator and what that answers, one JSON object a line.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

/// The first byte of what a client sends says what it wants; an HTTP request begins with `G`.
pub(crate) mod opcode {
    /// This byte comes back, then the server closes.
    pub(crate) const CLOSE: u8 = 1;
    /// 64 bytes, this one included, come back.
    pub(crate) const TRIP: u8 = 2;
    /// A length in 8 bytes, big endian, follows; so many bytes of [`super::PATTERN`] come back.
    pub(crate) const BULK: u8 = 3;
}

/// The length of a round trip's message, each way.
pub(crate) const TRIP_BYTES: usize = 64;
/// What one request for bulk asks for. Large enough that asking costs nothing.
pub(crate) const BULK_BYTES: u64 = 4 << 20;
/// The length of an HTTP answer's body.
pub(crate) const BODY_BYTES: usize = 128;
/// A period of what bulk transfers carry.
pub(crate) static PATTERN: [u8; 64 << 10] = pattern();

const fn pattern() -> [u8; 64 << 10] {
    let mut bytes = [0; 64 << 10];
    let mut at = 0;
    while at < bytes.len() {
        // No power of two, so that a lost or repeated block shows.
        bytes[at] = (at % 251) as u8;
        at += 1;
    }
    bytes
}

/// What each worker does again and again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Work {
    /// Connect, exchange one byte, close.
    Connect,
    /// On one connection: 64 bytes there and back.
    RoundTrip,
    /// On one connection: [`BULK_BYTES`] from the server.
    Bulk,
    /// On one connection: an HTTP/1.1 request and its answer.
    Request,
    /// Connect and be refused before any byte came back.
    Refused,
    /// Connect, exchange one byte (HTTP: a request), and keep the connection until the next job.
    Hold,
}

/// When a worker stops.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Until {
    /// After so many milliseconds.
    Milliseconds(u64),
    /// After so many operations.
    Operations(u64),
}

/// One job for the load generator.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Job {
    /// What to do.
    pub(crate) work: Work,
    /// The address to dial.
    pub(crate) to: SocketAddr,
    /// The name to show: in the TLS hello, and in `Host`.
    pub(crate) name: String,
    /// Whether the client speaks TLS.
    pub(crate) tls: bool,
    /// How many workers do it at the same time.
    pub(crate) at_once: usize,
    /// When they stop.
    pub(crate) until: Until,
}

/// What a job came to.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Report {
    /// Connections opened (for [`Work::Refused`]: tried).
    pub(crate) connections: u64,
    /// Operations done, each with its bytes checked.
    pub(crate) operations: u64,
    /// Bytes that came back, headers left out.
    pub(crate) bytes: u64,
    /// From the first operation's start to the last one's end.
    pub(crate) seconds: f64,
    /// Median time of an operation in microseconds.
    pub(crate) p50_us: f64,
    /// 99th percentile of it.
    pub(crate) p99_us: f64,
    /// Why a worker gave up; with this, nothing else counts.
    pub(crate) failure: Option<String>,
}
