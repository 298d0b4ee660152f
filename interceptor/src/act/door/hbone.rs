//! To a gateway: one TLS connection to each, a CONNECT stream of HTTP/2 on it for each connection of a
//! workload, with whose it is in its head.
//!
//! A connection that a certificate was changed under serves its streams to their end, and new ones go
//! by a new one. So it is with one that the gateway drains.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use h2::client::SendRequest;
use h2::{Ping, PingPong, SendStream};
use http::Request;
use tokio::sync::Mutex;
use tokio::time::{Instant, sleep, timeout};

use super::Shut;
use crate::act::dial::{DialError, Dialer, Dialled, random_below};
use crate::act::tls::{Alpn, Originator, Stamp};
use crate::decide::door::EgressProxy;
use crate::decide::traffic::Origination;
use crate::hbone::{
    CONNECTION_WINDOW, FRAME_MAX, HEAD_MAX, Metadata, STREAM_WINDOW, STREAMS_MAX, Tunnel,
};
use crate::netns::NetNs;

/// Gateways remembered; those of former policies go first.
const KEPT_MAX: usize = 64;
/// What a gateway's name stood for is forgotten when nobody asked for that for so long.
const FORMER: Duration = Duration::from_secs(60);
/// Streams on one of our connections, beyond which there is another: fewer than any gateway takes.
const STREAMS: u32 = STREAMS_MAX - 48;
/// A gateway is asked so often whether it is there, and given so long to say so.
const PING_EVERY: Duration = Duration::from_secs(5);
const PING_WAIT: Duration = Duration::from_secs(10);
/// An address of a gateway that did not answer is not chosen for so long, while there are others.
const REST: Duration = Duration::from_secs(5);
/// Connections of before on which a stream is tried, ahead of a new one.
const TRIES: usize = 3;
/// No reason that a gateway gives is longer.
const REASON_MAX: usize = 64;

/// Why a gateway gave no stream.
#[derive(Debug, thiserror::Error)]
pub enum NoStream {
    /// It said no, and why.
    #[error("the gateway answered {status} ({reason})")]
    Refused {
        /// The status.
        status: u16,
        /// In its words.
        reason: String,
    },
    /// It takes no more: it is full, or on its way out.
    #[error("the gateway takes no more streams now")]
    Unavailable,
    /// The connection to it broke.
    #[error("the connection to the gateway broke: {0}")]
    Broken(#[from] h2::Error),
    /// Whose connection it is cannot be said.
    #[error("the workload's name cannot be sent: {0}")]
    Nameless(#[from] crate::hbone::Unreadable),
    /// The target is none.
    #[error("the target cannot be asked for")]
    Target,
}

impl NoStream {
    /// Whether the gateway answered, so that no other one is asked.
    pub(super) fn is_answer(&self) -> bool {
        matches!(self, Self::Refused { .. } | Self::Nameless(_) | Self::Target)
    }
}

/// The connections to gateways that a site has, or all sites of a node together.
#[derive(Debug, Default)]
pub struct Tunnels {
    gateways: std::sync::Mutex<Vec<Arc<Gateway>>>,
    /// Where they are made from; `None`: from where the workload is.
    node: Option<Arc<NetNs>>,
}

/// One gateway as the configuration has it.
#[derive(Debug)]
struct Gateway {
    proxy: EgressProxy,
    /// When a stream was last asked for.
    used: std::sync::Mutex<Instant>,
    /// Held while a connection is made: who comes meanwhile uses that.
    links: Mutex<Links>,
}

#[derive(Debug, Default)]
struct Links {
    links: Vec<Link>,
    /// Addresses that did not answer.
    resting: Vec<(SocketAddr, Instant)>,
}

/// One connection to a gateway.
#[derive(Debug, Clone)]
struct Link {
    number: u64,
    at: SocketAddr,
    local: SocketAddr,
    made_of: Stamp,
    sender: SendRequest<Bytes>,
    open: Arc<AtomicU32>,
}

/// A stream's place on its connection.
#[derive(Debug)]
pub(super) struct Place(Arc<AtomicU32>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A stream that a gateway gave.
pub(super) struct Streamed {
    pub(super) tunnel: Tunnel<Place>,
    /// The gateway's address.
    pub(super) upstream: SocketAddr,
    /// Our end.
    pub(super) local: SocketAddr,
}

/// With what connections are made.
#[derive(Clone, Copy)]
pub(super) struct Means<'a> {
    pub(super) tls: &'a Origination,
    pub(super) originator: &'a Originator,
    pub(super) dialer: &'a Dialer,
}

impl Tunnels {
    /// Of a node, in whose network namespace they are made: one connection serves all its workloads.
    pub fn of_node(node: Arc<NetNs>) -> Self {
        Self { node: Some(node), ..Self::default() }
    }

    /// Asks `proxy` for a stream to `target`, an authority. `tried` is told the address.
    ///
    /// # Errors
    /// [`Shut`].
    pub(super) async fn open(
        &self,
        proxy: &EgressProxy,
        target: &str,
        metadata: &Metadata,
        means: Means<'_>,
        tried: &mut Option<SocketAddr>,
    ) -> Result<Streamed, Shut> {
        let from_node = self.node.clone().map(|netns| Dialer { netns, ..means.dialer.clone() });
        let means = Means { dialer: from_node.as_ref().unwrap_or(means.dialer), ..means };
        let gateway = self.gateway(proxy);
        let made_of = means.originator.stamp(means.tls).await?;
        let mut request = Request::connect(target).body(()).map_err(|_| NoStream::Target)?;
        *request.headers_mut() = metadata.to_headers().map_err(NoStream::from)?;
        for left in (0..=TRIES).rev() {
            let (link, place, is_new) = gateway.link(&made_of, means, left == 0).await?;
            *tried = Some(link.at);
            let error = match ask(link.sender.clone(), request.clone()).await {
                Ok((send, response)) => {
                    let (status, receive) = (response.status(), response.headers());
                    if status == 200 {
                        let (upstream, local) = (link.at, link.local);
                        let tunnel = Tunnel::new(send, response.into_body(), place);
                        return Ok(Streamed { tunnel, upstream, local });
                    }
                    let reason =
                        receive.get("interceptor-reason").and_then(|why| why.to_str().ok());
                    return Err(refusal(status.as_u16(), reason.unwrap_or_default()).into());
                }
                Err(error) => error,
            };
            // It is on its way out, or gone. Streams that it has go on as they can.
            gateway.forget(link.number).await;
            if is_new {
                return Err(NoStream::Broken(error).into());
            }
        }
        Err(NoStream::Unavailable.into())
    }

    fn gateway(&self, proxy: &EgressProxy) -> Arc<Gateway> {
        // Nothing here leaves a list half written.
        let mut gateways = self.gateways.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        if let Some(known) = gateways.iter().find(|known| known.proxy == *proxy) {
            *known.used() = now;
            return Arc::clone(known);
        }
        // What the name meant before, unless it means that to another workload.
        let is_former = |known: &Gateway| {
            known.proxy.name == proxy.name && now.duration_since(*known.used()) >= FORMER
        };
        gateways.retain(|known| !is_former(known));
        if gateways.len() == KEPT_MAX {
            gateways.remove(0);
        }
        let (used, links) = (std::sync::Mutex::new(now), Mutex::default());
        let new = Arc::new(Gateway { proxy: proxy.clone(), used, links });
        gateways.push(Arc::clone(&new));
        new
    }
}

async fn ask(
    sender: SendRequest<Bytes>,
    request: Request<()>,
) -> Result<(SendStream<Bytes>, http::Response<h2::RecvStream>), h2::Error> {
    let mut sender = sender.ready().await?;
    let (answer, send) = sender.send_request(request, false)?;
    Ok((send, answer.await?))
}

fn refusal(status: u16, reason: &str) -> NoStream {
    if status == 503 {
        return NoStream::Unavailable;
    }
    let word = |c: char| c.is_ascii_lowercase() || c == '_';
    let reason = match !reason.is_empty() && reason.len() <= REASON_MAX && reason.chars().all(word)
    {
        true => reason,
        false => "no_reason_given",
    };
    NoStream::Refused { status, reason: reason.to_owned() }
}

impl Gateway {
    fn used(&self) -> std::sync::MutexGuard<'_, Instant> {
        self.used.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A connection with room for one more stream, and whether it was made for this one. `anew`: no
    /// other will do.
    async fn link(
        &self,
        made_of: &Stamp,
        means: Means<'_>,
        anew: bool,
    ) -> Result<(Link, Place, bool), Shut> {
        let Means { tls, originator, dialer } = means;
        let EgressProxy { place, port, .. } = &self.proxy;
        let addresses = dialer.addresses_of(place, *port).await?;
        let mut links = self.links.lock().await;
        // What was made of another certificate serves what it has.
        links.links.retain(|link| link.made_of == *made_of && addresses.contains(&link.at));
        let now = Instant::now();
        links.resting.retain(|(_, until)| *until > now);
        let order = links.order(addresses);
        let fits = |link: &&Link, at| link.at == at && link.open.load(Ordering::Relaxed) < STREAMS;
        let found = order.first().and_then(|at| links.links.iter().find(|link| fits(link, *at)));
        if let Some(link) = found.filter(|_| !anew) {
            return Ok((link.clone(), link.place(), false));
        }
        let name = place.to_string();
        let name = tls.sni.as_deref().unwrap_or(&name);
        let handshake = originator.prepare(tls, Some(name), Alpn::Http2).await?;
        let mut silent = Vec::new();
        {
            let silent = std::sync::Mutex::new(&mut silent);
            let failed = |at| silent.lock().unwrap_or_else(PoisonError::into_inner).push(at);
            let dialled = dialer.connect(order, true, failed).await;
            let Dialled { stream, upstream, local } = match dialled {
                Ok(dialled) => dialled,
                Err(error) => return Err(error.into()),
            };
            let late = || DialError::Connect {
                tried: upstream,
                source: std::io::ErrorKind::TimedOut.into(),
            };
            let shaken = timeout(dialer.connect_timeout, handshake.run(stream)).await;
            let stream = shaken.map_err(|_| late())??;
            let mut client = h2::client::Builder::new();
            client
                .initial_window_size(STREAM_WINDOW)
                .initial_connection_window_size(CONNECTION_WINDOW)
                .max_frame_size(FRAME_MAX)
                .max_header_list_size(HEAD_MAX)
                .enable_push(false);
            let shaken =
                timeout(dialer.connect_timeout, client.handshake::<_, Bytes>(stream)).await;
            let (sender, mut connection) = shaken.map_err(|_| late())?.map_err(NoStream::from)?;
            let pings = connection.ping_pong();
            // Ends with its last stream, once nobody wants new ones.
            tokio::spawn(async move {
                tokio::select! {
                    _ = connection => {}
                    () = falls_silent(pings) => {}
                }
            });
            let (number, made_of) = (random_below(u64::MAX), made_of.clone());
            let open = Arc::new(AtomicU32::new(0));
            let link = Link { number, at: upstream, local, made_of, sender, open };
            links.links.push(link);
        }
        links.resting.extend(silent.into_iter().map(|at| (at, now + REST)));
        let link = links.links[links.links.len() - 1].clone();
        let place = link.place();
        Ok((link, place, true))
    }

    async fn forget(&self, number: u64) {
        self.links.lock().await.links.retain(|link| link.number != number);
    }
}

impl Links {
    /// The addresses, those that rest behind the others, from a random one on: equal gateways.
    fn order(&self, addresses: Vec<SocketAddr>) -> Vec<SocketAddr> {
        let rests = |at: &SocketAddr| self.resting.iter().any(|(resting, _)| resting == at);
        let (resting, mut order): (Vec<_>, Vec<_>) = addresses.into_iter().partition(rests);
        let start = usize::try_from(random_below(order.len() as u64)).unwrap_or(0);
        order.rotate_left(start);
        order.extend(resting);
        order
    }
}

impl Link {
    fn place(&self) -> Place {
        self.open.fetch_add(1, Ordering::Relaxed);
        Place(Arc::clone(&self.open))
    }
}

/// Returns once the other end does not answer any more.
async fn falls_silent(pings: Option<PingPong>) {
    let Some(mut pings) = pings else { return std::future::pending().await };
    loop {
        sleep(PING_EVERY).await;
        if !matches!(timeout(PING_WAIT, pings.ping(Ping::opaque())).await, Ok(Ok(_))) {
            return;
        }
    }
}
