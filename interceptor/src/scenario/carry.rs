//! Carrying out a decision in the model world: what `act` does on sockets, done on paper. Connections
//! here, requests in `exchange`.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use super::client::Request;
use super::observed::{Response, Seen, SeenConnect};
use super::tls::seen_tls;
use super::world::{Failure, Nowhere, World};
use crate::account::Flag;
use crate::decide::route::Destination;
use crate::decide::traffic::{ProxyProtocol, TrafficPolicy, UpstreamProtocol};

/// The proxy's end of upstream connections, and the client's end of its own.
pub(super) fn near(far: SocketAddr, port: u16) -> SocketAddr {
    let ip = match far.ip() {
        IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::new(10, 244, 0, 5)),
        IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 5)),
    };
    SocketAddr::new(ip, port)
}

/// The client's port.
pub(super) const CLIENT_PORT: u16 = 40_000;
/// The port of the proxy's upstream connections.
pub(super) const UPSTREAM_PORT: u16 = 50_000;

/// What the client of a relayed connection speaks with the server.
#[derive(Debug, Clone, Copy)]
pub(super) struct Speech<'a> {
    pub(super) dst: SocketAddr,
    pub(super) request: Option<&'a Request>,
    /// It speaks TLS; and the name that it shows.
    pub(super) tls: Option<Option<&'a str>>,
}

/// How a relayed connection went.
#[derive(Debug, Clone)]
pub(super) struct Relayed {
    pub(super) upstream: Option<SocketAddr>,
    pub(super) failed: Option<RelayFailure>,
    pub(super) duration: Duration,
    pub(super) bytes: (u64, u64),
    pub(super) response: Option<Response>,
    /// How the client's curl ends, if the connection stood.
    pub(super) curl_exit: u8,
    pub(super) seen: Option<Seen>,
}

/// Why a relay did not come about.
#[derive(Debug, Clone)]
pub(super) enum RelayFailure {
    Nowhere(Nowhere),
    Overflow,
    Connect(Failure),
}

impl RelayFailure {
    /// LOG-54, DR-10, VS-21.
    pub(super) fn flags(&self) -> Vec<Flag> {
        match self {
            Self::Nowhere(Nowhere::NoCluster) => vec![Flag::NC],
            Self::Nowhere(Nowhere::NoHost | Nowhere::Refused(_)) => vec![Flag::UH],
            Self::Overflow => vec![Flag::UO],
            Self::Connect(_) => vec![Flag::UF, Flag::URX],
        }
    }
}

/// Relays a connection to `destination`.
pub(super) fn relay(
    world: &mut World<'_>,
    destination: &Destination,
    speech: Speech<'_>,
) -> Relayed {
    let mut relayed = Relayed {
        upstream: None,
        failed: None,
        duration: Duration::ZERO,
        bytes: (0, 0),
        response: None,
        curl_exit: 0,
        seen: None,
    };
    if !world.admit(destination, false) {
        relayed.failed = Some(RelayFailure::Overflow);
        return relayed;
    }
    let client = near(speech.dst, CLIENT_PORT).ip();
    let upstream = match world.endpoint(destination, speech.dst, client, None, &[]) {
        Ok(upstream) => upstream,
        Err(nowhere) => {
            relayed.failed = Some(RelayFailure::Nowhere(nowhere));
            return relayed;
        }
    };
    relayed.upstream = Some(upstream);
    let traffic = &destination.traffic;
    let (took, connected) = world.connect(traffic, None, upstream);
    relayed.duration += took;
    world.outcome(destination, speech.dst, upstream, connected.as_ref().ok().map(|()| 200));
    if let Err(failure) = connected {
        relayed.failed = Some(RelayFailure::Connect(failure));
        return relayed;
    }
    relayed.seen = Some(Seen {
        tls: traffic.tls.as_ref().map(|tls| seen_tls(tls, traffic.protocol, None, None)),
        connect: connect_request(traffic),
        proxy_protocol: proxy_protocol(traffic),
        ..Seen::default()
    });
    converse(world, speech, upstream, traffic.tls.is_some(), &mut relayed);
    relayed
}

/// What client and server say to each other, the proxy only carrying it.
fn converse(
    world: &World<'_>,
    speech: Speech<'_>,
    upstream: SocketAddr,
    wrapped: bool,
    relayed: &mut Relayed,
) {
    let plain = |bytes: &Response| (bytes.body.len() + 120) as u64;
    match (speech.tls, speech.request) {
        (Some(sni), request) => match world.client_tls(sni) {
            Ok(()) => {
                let (method, path) = request.map_or(("GET", "/"), |r| (&*r.method, &*r.path));
                // The inner request is the client's and the server's own affair.
                let host = sni.unwrap_or_default();
                let (took, answer) = world.answer(upstream.port(), true, method, host, path);
                relayed.duration += took;
                relayed.bytes = (600, 2_400 + plain(&answer));
                relayed.response = Some(answer);
            }
            Err(exit) => {
                relayed.bytes = (600, 2_400);
                relayed.curl_exit = exit;
            }
        },
        (None, Some(request)) => {
            let host = request.host().unwrap_or_default();
            let (took, answer) =
                world.answer(upstream.port(), wrapped, &request.method, host, &request.path);
            relayed.duration += took;
            relayed.bytes = (80 + request.path.len() as u64, plain(&answer));
            if let Some(seen) = &mut relayed.seen {
                seen.path = Some(request.path.clone());
                seen.host = request.host().map(str::to_owned);
                seen.headers.clone_from(&request.headers);
                seen.version = Some(if request.version >= 20 { "2" } else { "1.1" });
            }
            relayed.response = Some(answer);
        }
        (None, None) => {
            relayed.duration += world.delay();
            relayed.bytes = (4, 16);
        }
    }
}

/// GW-20, GW-21.
fn connect_request(traffic: &TrafficPolicy) -> Option<SeenConnect> {
    let tunnel = traffic.tunnel.as_ref()?;
    let authority = match tunnel.host.contains(':') {
        true => format!("[{}]:{}", tunnel.host, tunnel.port),
        false => format!("{}:{}", tunnel.host, tunnel.port),
    };
    Some(SeenConnect {
        method: if tunnel.post { "POST" } else { "CONNECT" },
        authority,
        version: if traffic.protocol == UpstreamProtocol::Http2 { "2" } else { "1.1" },
    })
}

/// DR-16.
pub(super) fn proxy_protocol(traffic: &TrafficPolicy) -> Option<&'static str> {
    traffic.proxy_protocol.map(|version| match version {
        ProxyProtocol::V1 => "V1",
        ProxyProtocol::V2 => "V2",
    })
}
