//! Bytes both ways, untouched: half-close, reset and back-pressure carried through.

use std::time::Duration;

use tokio::net::TcpStream;

use crate::sniff::prefixed::Prefixed;

/// How a relay ended and what it moved.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Relayed {
    /// Bytes taken from the client, the replayed prefix included (LOG-3 field 10).
    pub bytes_received: u64,
    /// Bytes written to the client (LOG-3 field 11).
    pub bytes_sent: u64,
    /// What ended it.
    pub end: RelayEnd,
}

/// What ended a relay.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum RelayEnd {
    /// Both sides said FIN.
    #[default]
    Closed,
    /// The client reset; the upstream was reset too.
    ClientReset,
    /// The upstream reset or died; the client was reset too.
    UpstreamReset,
    /// Nothing moved for the idle limit.
    Idle,
}

/// Relays until both directions ended. Consumes both sockets.
pub async fn relay(_client: Prefixed<TcpStream>, _upstream: TcpStream, _idle: Option<Duration>) -> Relayed {
    todo!()
}
