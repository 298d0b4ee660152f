//! Istio's form of a gateway (GW-1): listeners where the servers of its Gateways are, and what dials
//! them on its way, judged by those Gateways' hosts and the VirtualServices that are bound to them.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::net::{TcpListener, TcpSocket};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;

use super::keys::Keys;
use super::loopback::Loopback;
use super::peer::Peer;
use super::policies::Shared;
use crate::accept::Accepted;
use crate::act::block;
use crate::act::carrier::Stream;
use crate::act::relay::{RelayLimits, relay};
use crate::conn::{self, Entrance, Site};
use crate::policy::{Snapshot, Store};
use crate::sniff::prefixed::Prefixed;
use crate::workloads::Workload;

/// The kernel caps it at net.core.somaxconn.
const BACKLOG: u32 = 4096;
/// Clients that have not shown a certificate where one is asked for, at a time; more wait.
const UNKNOWN_MAX: usize = 256;
/// How long one may take to show it.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// After an accept that failed, mostly for want of a descriptor.
const BREATH: Duration = Duration::from_millis(100);

/// A gateway that is dialled.
pub struct Front {
    /// Where it is dialled.
    address: IpAddr,
    site: Site,
    /// For servers with mutual TLS.
    keys: Option<Keys>,
    loopback: Loopback,
    unknown: Arc<Semaphore>,
    open: Mutex<BTreeMap<u16, JoinHandle<()>>>,
}

/// A port of a server that is not listened on.
#[derive(Debug, thiserror::Error)]
pub enum Unopened {
    /// It cannot be.
    #[error("cannot listen on {at}: {source}")]
    Listen {
        /// Where.
        at: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// Mutual TLS, and no certificate.
    #[error(
        "{0} is to take mutual TLS (ISTIO_MUTUAL); give --tls-cert, --tls-key and --client-ca for it"
    )]
    Keyless(SocketAddr),
    /// It is, but not for all of its servers.
    #[error(
        "{0} takes mutual TLS only: its servers without ISTIO_MUTUAL are out of reach; give them a port \
         of their own"
    )]
    Shared(SocketAddr),
}

impl Front {
    /// For what dials `address`, by the policy in `store`, which is that of `workload`: the gateway.
    /// Listens nowhere yet.
    pub fn new(
        address: IpAddr,
        workload: Workload,
        store: &Arc<Store>,
        keys: Option<Keys>,
        loopback: Loopback,
        shared: &Shared,
    ) -> Self {
        let site = shared.site(Arc::new(workload), store, Entrance::Dialled, Some(address));
        let unknown = Arc::new(Semaphore::new(UNKNOWN_MAX));
        Self { address, site, keys, loopback, unknown, open: Mutex::default() }
    }

    /// Puts a changed policy in force, and listens where it has servers, and nowhere else. What is open
    /// goes on, with every next request judged by the new one. Gives what cannot be listened on.
    pub fn follow(self: &Arc<Self>, snapshot: Snapshot) -> Vec<Unopened> {
        let wanted = snapshot.policy.listeners().cloned().unwrap_or_default();
        self.site.policy.replace(snapshot);
        // Nothing here leaves it half written.
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.retain(|port, task| {
            let stays = wanted.contains_key(port) && !task.is_finished();
            if !stays {
                task.abort();
            }
            stays
        });
        let mut unopened = Vec::new();
        for (port, listener) in wanted {
            let at = SocketAddr::new(self.address, port);
            if listener.mutual && self.keys.is_none() {
                unopened.push(Unopened::Keyless(at));
                continue;
            }
            if listener.mutual && listener.plain {
                unopened.push(Unopened::Shared(at));
            }
            if open.contains_key(&port) {
                continue;
            }
            match listen(at) {
                Ok(socket) => {
                    let task = tokio::spawn(Arc::clone(self).serve(socket, port));
                    open.insert(port, task);
                }
                Err(source) => unopened.push(Unopened::Listen { at, source }),
            }
        }
        unopened
    }

    /// Where it listens.
    pub fn listens(&self) -> Vec<SocketAddr> {
        let open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.keys().map(|port| SocketAddr::new(self.address, *port)).collect()
    }

    /// What its connections are served by.
    pub fn site(&self) -> &Site {
        &self.site
    }

    /// Takes in what dials a port, until the gateway is to end.
    async fn serve(self: Arc<Self>, listener: TcpListener, port: u16) {
        let drain = self.site.drain.clone();
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                () = drain.begun() => return,
            };
            let (client, peer) = match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::warn!("accept: {error}");
                    sleep(BREATH).await;
                    continue;
                }
            };
            let _ = client.set_nodelay(true);
            let accepted = Accepted { client, peer, local: SocketAddr::new(self.address, port) };
            let snapshot = self.site.policy.current();
            match snapshot.policy.listeners().and_then(|ports| ports.get(&port)) {
                Some(listener) if listener.mutual => {
                    let Ok(place) = Arc::clone(&self.unknown).acquire_owned().await else { return };
                    tokio::spawn(Arc::clone(&self).meet(accepted, place));
                }
                Some(_) => conn::take_in(accepted, &self.site),
                // Its server went a moment ago.
                None => block::reset(accepted.client),
            }
        }
    }

    /// Has a client show its certificate; what is inside the TLS then goes its way as what is not.
    async fn meet(self: Arc<Self>, accepted: Accepted, place: OwnedSemaphorePermit) {
        let Accepted { client, peer, local } = accepted;
        let Some(keys) = &self.keys else { return block::reset(client) };
        let shaken = timeout(HANDSHAKE, TlsAcceptor::from(keys.now()).accept(client)).await;
        drop(place);
        let stream = match shaken {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => return tracing::info!("{peer}: {error}"),
            Err(_) => return tracing::info!("{peer}: no TLS in {HANDSHAKE:?}"),
        };
        if Peer::of(stream.get_ref().1).is_none() {
            return tracing::info!("{peer}: its certificate has no URI and no DNS name");
        }
        let (near, far) = match self.loopback.pair().await {
            Ok(pair) => pair,
            Err(error) => return tracing::warn!("{peer}: {error}"),
        };
        conn::take_in(Accepted { client: far, peer, local }, &self.site);
        let near = Prefixed::new(Bytes::new(), near);
        // The path has limits of its own.
        let limits = RelayLimits { idle: None, duration: None };
        let mut over = Box::pin(self.site.drain.over());
        relay(near, Stream::Wrapped(Box::new(stream)), limits, over.as_mut()).await;
    }
}

fn listen(at: SocketAddr) -> io::Result<TcpListener> {
    let socket = if at.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    socket.set_reuseaddr(true)?;
    socket.bind(at)?;
    socket.listen(BACKLOG)
}
