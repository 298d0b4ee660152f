//! The nodes' connections: accepted, known by their certificates, and their streams taken in.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use bytes::Bytes;
use socket2::{SockRef, TcpKeepalive};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;

use super::keys::Keys;
use super::loopback::Loopback;
use super::nodes::Nodes;
use super::peer::Peer;
use super::policies::Policies;
use crate::account::AccessLog;
use crate::drain::Drain;
use crate::hbone::{CONNECTION_WINDOW, FRAME_MAX, HEAD_MAX, STREAM_WINDOW, STREAMS_MAX};

/// Connections of nodes at a time; what is beyond waits in the listener's queue.
const CONNECTIONS_MAX: usize = 4096;
/// Of these, such as have not shown who they are.
const UNKNOWN_MAX: usize = 256;
/// How long one may take to show that.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// After an accept that failed, mostly for want of a descriptor.
const BREATH: Duration = Duration::from_millis(100);
/// A node that is gone is noticed.
const KEEPALIVE: TcpKeepalive = TcpKeepalive::new()
    .with_time(Duration::from_secs(30))
    .with_interval(Duration::from_secs(10))
    .with_retries(3);

/// A gateway that runs.
pub struct Gateway {
    /// Certificates.
    pub keys: Keys,
    /// Who speaks for whom.
    pub nodes: ArcSwap<Nodes>,
    /// By which policy.
    pub policies: Mutex<Policies>,
    /// Makes sockets of streams.
    pub loopback: Loopback,
    /// Where refusals go that come before any policy.
    pub log: AccessLog,
    /// When it ends.
    pub drain: Drain,
    /// Room for nodes' connections.
    pub places: Arc<Semaphore>,
}

impl Gateway {
    /// The policies, for who changes or asks them. Held for a moment only.
    pub fn policies(&self) -> MutexGuard<'_, Policies> {
        // Nothing here leaves them half changed.
        self.policies.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes in connections until it is to end; gives those that are open then, all returned when all
    /// have ended.
    pub async fn serve(self: Arc<Self>, listener: TcpListener) -> Arc<Semaphore> {
        let places = Arc::clone(&self.places);
        let unknown = Arc::new(Semaphore::new(UNKNOWN_MAX));
        loop {
            let accepted = async {
                let place = Arc::clone(&places).acquire_owned().await;
                let known = Arc::clone(&unknown).acquire_owned().await;
                (place, known, listener.accept().await)
            };
            let (place, known, accepted) = tokio::select! {
                accepted = accepted => accepted,
                () = self.drain.begun() => return places,
            };
            let stream = match accepted {
                Ok((stream, _)) => stream,
                Err(error) => {
                    tracing::warn!("accept: {error}");
                    sleep(BREATH).await;
                    continue;
                }
            };
            let gateway = Arc::clone(&self);
            tokio::spawn(async move {
                let shaken = timeout(HANDSHAKE, gateway.meet(stream)).await;
                drop(known);
                if let Ok(Some((server, peer))) = shaken {
                    gateway.attend(server, peer).await;
                }
                drop(place);
            });
        }
    }

    /// How many places there are for connections.
    pub fn places() -> u32 {
        CONNECTIONS_MAX as u32
    }

    /// Connections of nodes that are open.
    pub fn connected(&self) -> u64 {
        // One place is the listener's own, which waits with it.
        let taken = CONNECTIONS_MAX.saturating_sub(self.places.available_permits());
        taken.saturating_sub(1) as u64
    }

    /// Who is there.
    async fn meet(&self, stream: TcpStream) -> Option<(Server, Peer)> {
        let _ = stream.set_nodelay(true);
        let _ = SockRef::from(&stream).set_tcp_keepalive(&KEEPALIVE);
        let from = stream.peer_addr().ok()?;
        let said = |what: &str| tracing::info!("{from}: {what}");
        let shaken = TlsAcceptor::from(self.keys.now()).accept(stream).await;
        let stream = shaken.inspect_err(|error| said(&error.to_string())).ok()?;
        let Some(peer) = Peer::of(stream.get_ref().1) else {
            said("its certificate has no URI and no DNS name");
            return None;
        };
        let mut server = h2::server::Builder::new();
        server
            .initial_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_concurrent_streams(STREAMS_MAX)
            .max_frame_size(FRAME_MAX)
            .max_header_list_size(HEAD_MAX);
        let server = server.handshake::<_, Bytes>(stream).await;
        Some((server.inspect_err(|error| said(&error.to_string())).ok()?, peer))
    }

    /// Serves the streams of one node. Once the gateway drains, the node is told to bring no more, and
    /// those that it has go on.
    async fn attend(self: &Arc<Self>, mut server: Server, peer: Peer) {
        let peer = Arc::new(peer);
        let mut draining = false;
        loop {
            let next = tokio::select! {
                next = server.accept() => next,
                () = self.drain.begun(), if !draining => {
                    draining = true;
                    server.graceful_shutdown();
                    continue;
                }
                () = self.drain.over() => return,
            };
            let Some(Ok((request, respond))) = next else { return };
            let (gateway, peer) = (Arc::clone(self), Arc::clone(&peer));
            tokio::spawn(async move { gateway.brought(request, respond, &peer).await });
        }
    }
}

type Server = h2::server::Connection<tokio_rustls::server::TlsStream<TcpStream>, Bytes>;
