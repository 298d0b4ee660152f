//! From a destination to a connection that carries its traffic as its policy has it: an endpoint by
//! the load balancer, within the limits, behind a PROXY header, inside TLS, through a proxy.

use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout_at};
use tokio_rustls::client::TlsStream;

use super::cluster::{Busy, Cluster, Clusters, Kind, Outcome, Overflow, Permit, Wish, order};
use super::dial::{DialError, Dialer, Dialled};
use super::door::{DoorError, Health, Left, Through, Tunnels};
use super::preamble;
pub use super::stream::{Io, Stream};
use super::tls::{Alpn, Originator, Secrets, TlsError, TlsSession};
use super::tunnel::{self, NoTunnel};
use crate::decide::Upstream;
use crate::decide::route::Destination;
use crate::decide::traffic::{LoadBalancer, TrafficPolicy, UpstreamProtocol};
use crate::origin::OriginalDst;
use crate::policy::Enforcement;
use crate::workloads::Workload;

/// The ends of a connection to a unix socket: none that could be told.
pub const UNNAMED: SocketAddr = SocketAddr::new(IpAddr::V6(Ipv6Addr::UNSPECIFIED), 0);

/// Mirrored requests under way at a time; what is beyond is not mirrored.
const MIRRORS_MAX: usize = 64;

/// What all connections of a site share for their upstreams.
#[derive(Debug)]
pub struct Outbound {
    /// State of the clusters.
    pub clusters: Clusters,
    /// TLS.
    pub originator: Originator,
    /// How egress proxies do.
    pub proxies: Health,
    /// Connections to gateways.
    pub(super) tunnels: Arc<Tunnels>,
    /// Whose connections leave.
    pub(super) workload: Arc<Workload>,
    /// Room for mirrored requests (VS-28).
    pub(super) mirrors: Arc<Semaphore>,
}

impl Outbound {
    /// With the credentials of `secrets`.
    pub fn new(secrets: Arc<dyn Secrets>) -> Self {
        Self {
            clusters: Clusters::default(),
            originator: Originator::new(secrets),
            proxies: Health::default(),
            tunnels: Arc::default(),
            workload: Arc::default(),
            mirrors: Arc::new(Semaphore::new(MIRRORS_MAX)),
        }
    }

    /// The same for a workload that a gateway is told of.
    #[must_use]
    pub fn of(self, workload: Arc<Workload>) -> Self {
        Self { workload, ..self }
    }

    /// The same by connections to gateways that others have as well.
    #[must_use]
    pub fn by(self, tunnels: Arc<Tunnels>) -> Self {
        Self { tunnels, ..self }
    }
}

/// Opens connections to destinations.
#[derive(Debug, Clone)]
pub struct Carrier {
    /// Opens TCP connections.
    pub dialer: Dialer,
    /// Shared state.
    pub outbound: Arc<Outbound>,
}

/// For whom a connection is made.
#[derive(Debug, Clone, Copy)]
pub struct Ask<'a> {
    /// What the workload dialled.
    pub dst: OriginalDst,
    /// The workload's end.
    pub src: SocketAddr,
    /// The request's original Host (TLS-5); `None`: it is not HTTP.
    pub host: Option<&'a str>,
    /// The hash that the load balancer goes by, where there is one.
    pub hash: Option<u64>,
    /// Endpoints that were tried already.
    pub avoid: &'a [SocketAddr],
    /// The Host of a request in plain HTTP/1.1, which an egress proxy may be given as it is; `None`:
    /// bytes that want a tunnel.
    pub plain: Option<&'a str>,
}

/// A stream in TLS, and what TLS agreed on.
pub(super) fn wrapped<S>(stream: TlsStream<S>) -> (Stream, Arc<TlsSession>)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let session = Arc::new(TlsSession::of(stream.get_ref().1));
    (Stream::Wrapped(Box::new(stream)), session)
}

/// A connection to a destination.
pub struct Carried {
    /// Carries the bytes.
    pub stream: Stream,
    /// Address connected to.
    pub upstream: SocketAddr,
    /// Our end.
    pub local: SocketAddr,
    /// What TLS agreed on, where it was originated.
    pub tls: Option<Arc<TlsSession>>,
    /// The unix socket in place of addresses, which are [`UNNAMED`] then.
    pub socket: Option<Arc<Path>>,
    /// The egress proxy through which it leaves.
    pub left: Option<Arc<Left>>,
    /// Held while the connection lives.
    pub held: Held,
}

/// What a connection counts for; given back when dropped.
#[derive(Debug, Default)]
pub struct Held {
    _permit: Option<Permit>,
    _busy: Option<Busy>,
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum CarryError {
    /// No TCP connection.
    #[error(transparent)]
    Dial(#[from] DialError),
    /// There is no such cluster (VS-21).
    #[error("there is no such cluster")]
    NoCluster,
    /// A limit is reached (DR-10).
    #[error(transparent)]
    Overflow(#[from] Overflow),
    /// No TLS.
    #[error("{error}")]
    Tls {
        /// Where; `None`: it did not come as far as that.
        tried: Option<SocketAddr>,
        /// Why.
        error: TlsError,
    },
    /// The proxy gave no tunnel (GW-23).
    #[error("proxy at {tried}: {source}")]
    Tunnel {
        /// The proxy.
        tried: SocketAddr,
        /// Why.
        source: NoTunnel,
    },
    /// No egress proxy let it out (T-47).
    #[error(transparent)]
    Door(#[from] DoorError),
}

impl CarryError {
    /// The address that was tried last.
    pub fn tried(&self) -> Option<SocketAddr> {
        match self {
            Self::Dial(error) => error.tried(),
            Self::Tls { tried, .. } => *tried,
            Self::Tunnel { tried, .. } => Some(*tried),
            Self::Door(error) => error.tried,
            Self::NoCluster | Self::Overflow(_) => None,
        }
    }

    /// The failure as the access log's field 9 prints it.
    pub fn details(&self) -> String {
        match self {
            Self::Dial(error) => error.details(),
            Self::Tls { error, .. } => error.details(),
            Self::Door(error) => error.details(),
            other => other.to_string().replace(' ', "_"),
        }
    }
}

/// Where a destination's next connection goes, decided but not yet made.
#[derive(Debug)]
pub struct Choice {
    /// The cluster's state.
    pub cluster: Arc<Cluster>,
    /// Addresses in the order in which they are tried; `None`: the upstream itself says.
    order: Option<Vec<SocketAddr>>,
    /// How many endpoints the cluster has.
    total: usize,
    /// Any of them will do on which the workload's connection has a connection already.
    spreads: bool,
}

impl Choice {
    /// The address that is meant, where one is.
    pub fn first(&self) -> Option<SocketAddr> {
        self.order.as_ref().and_then(|order| order.first().copied())
    }

    /// How many endpoints the cluster has.
    pub fn total(&self) -> usize {
        self.total
    }

    /// Whether a kept connection to `address` would do: one to the very choice, since every request
    /// is balanced (RES-2, RES-3); else any that is not ruled out.
    pub fn suits(&self, address: SocketAddr, avoid: &[SocketAddr]) -> bool {
        match &self.order {
            None => !avoid.contains(&address),
            Some(order) if self.spreads => order.contains(&address) && !avoid.contains(&address),
            Some(order) => order.first() == Some(&address),
        }
    }
}

impl Carrier {
    /// Chooses an endpoint.
    ///
    /// # Errors
    /// [`CarryError::NoCluster`], or there is no (healthy) endpoint.
    pub async fn choose(
        &self,
        destination: &Destination,
        ask: Ask<'_>,
    ) -> Result<Choice, CarryError> {
        let Some(name) = &destination.cluster else { return Err(CarryError::NoCluster) };
        if destination.upstream == Upstream::NoCluster {
            return Err(CarryError::NoCluster);
        }
        let cluster = self.outbound.clusters.get(name);
        if destination.door.via().is_some() {
            // The proxy's own address is none of the cluster's, and names are the proxy's to resolve.
            return Ok(Choice { cluster, order: None, total: 1, spreads: false });
        }
        let dialer = self.dialer_for(&destination.traffic);
        let Some(candidates) = dialer.candidates(&destination.upstream).await? else {
            return Ok(Choice { cluster, order: None, total: 1, spreads: false });
        };
        // In strict the workload's resolver has balanced over a name's addresses already: its choice
        // stands, and so does the connection made for it. An operator's list of endpoints is ours
        // to balance, and in istio all are (RES-3).
        let is_named = matches!(destination.upstream, Upstream::Dns { .. });
        let heeds_client = is_named && dialer.enforcement == Enforcement::Strict;
        let dialled = ask.dst.addr().ip();
        let own = candidates.iter().find(|one| heeds_client && one.address.ip() == dialled);
        let spreads = heeds_client
            && matches!(
                destination.traffic.load_balancer,
                LoadBalancer::LeastRequest | LoadBalancer::Random | LoadBalancer::Passthrough
            );
        let wish = Wish {
            balancer: &destination.traffic.load_balancer,
            outlier: destination.traffic.outlier.as_ref(),
            hash: ask.hash,
            avoid: ask.avoid,
            dialled: own.map(|one| one.address),
        };
        let order = order(&cluster, &candidates, wish);
        if order.is_empty() {
            return Err(DialError::NoEndpoint.into());
        }
        Ok(Choice { cluster, total: candidates.len(), order: Some(order), spreads })
    }

    /// Connects for a client's bytes as they are (TCP and TLS). That the limit of connections is
    /// reached is an overflow (DR-10).
    ///
    /// # Errors
    /// [`CarryError`].
    pub async fn connect(
        &self,
        destination: &Destination,
        ask: Ask<'_>,
    ) -> Result<Carried, CarryError> {
        let choice = self.choose(destination, ask).await?;
        let permit = choice.cluster.admit(Kind::Connection, &destination.traffic.limits)?;
        let mut carried = self.open(destination, choice, ask, Alpn::None, permit).await?;
        let Some(tunnel) = &destination.traffic.tunnel else { return Ok(carried) };
        let tried = carried.upstream;
        let deadline = Instant::now() + self.timeout(&destination.traffic);
        let http2 = destination.traffic.protocol == UpstreamProtocol::Http2;
        let request = tunnel::Request::of_rule(tunnel);
        carried.stream = timeout_at(deadline, async {
            let mut stream = carried.stream;
            if http2 {
                let tunnelled = tunnel::ask_http2(stream, &request).await?;
                return Ok(Stream::Wrapped(Box::new(tunnelled)));
            }
            tunnel::ask_http1(&mut stream, &request).await?;
            Ok(stream)
        })
        .await
        .unwrap_or(Err(NoTunnel::Late))
        .map_err(|source| CarryError::Tunnel { tried, source })?;
        Ok(carried)
    }

    /// Makes the connection that was chosen, up to and with TLS.
    ///
    /// # Errors
    /// [`CarryError`]. Where TLS is asked for and cannot be had, nothing is sent in its stead.
    pub async fn open(
        &self,
        destination: &Destination,
        choice: Choice,
        ask: Ask<'_>,
        alpn: Alpn,
        permit: Permit,
    ) -> Result<Carried, CarryError> {
        let traffic = &*destination.traffic;
        let deadline = Instant::now() + self.timeout(traffic);
        let alpn = match (alpn, &traffic.tunnel, traffic.protocol) {
            // To a proxy we speak HTTP whatever goes through the tunnel.
            (Alpn::None, Some(_), UpstreamProtocol::Http2) => Alpn::Http2,
            (Alpn::None, Some(_), _) => Alpn::Http1,
            (alpn, _, _) => alpn,
        };
        let handshake = match &traffic.tls {
            None => None,
            Some(origination) => Some(
                self.outbound
                    .originator
                    .prepare(origination, ask.host, alpn)
                    .await
                    .map_err(|error| CarryError::Tls { tried: choice.first(), error })?,
            ),
        };
        let dialer = self.dialer_for(traffic);
        let report = |address, outcome| {
            choice.cluster.report(address, outcome, traffic.outlier.as_ref(), choice.total);
        };
        let mut left = None;
        let (mut stream, upstream, local, socket) = match (&destination.upstream, choice.order) {
            _ if let Some(via) = destination.door.via() => {
                let Through { stream, upstream, local, how } =
                    self.leave(via, ask, traffic, &dialer).await?;
                left = Some(Arc::new(how));
                (stream, upstream, local, None)
            }
            (Upstream::Unix(sockets), _) => {
                let (stream, path) = dialer.dial_unix(sockets).await?;
                (Stream::Wrapped(Box::new(stream)), UNNAMED, UNNAMED, Some(path))
            }
            (upstream, None) => {
                let Dialled { stream, upstream, local } = dialer.dial(upstream, ask.dst).await?;
                (Stream::Plain(stream), upstream, local, None)
            }
            (upstream, Some(order)) => {
                let equals = matches!(upstream, Upstream::Static(_));
                let failed = |address| report(address, Outcome::Failure);
                let Dialled { stream, upstream, local } =
                    dialer.connect(order, equals, failed).await?;
                (Stream::Plain(stream), upstream, local, None)
            }
        };
        // A request counts while it is under way, not the connection kept for the next one.
        let busy = ask.host.is_none().then(|| choice.cluster.busy(upstream));
        let held = Held { _permit: Some(permit), _busy: busy };
        let late =
            || DialError::Connect { tried: upstream, source: io::ErrorKind::TimedOut.into() };
        if let Some(version) = traffic.proxy_protocol {
            let header = preamble::proxy_header(version, ask.src, ask.dst.addr());
            timeout_at(deadline, stream.write_all(&header))
                .await
                .map_err(|_| late())?
                .map_err(|source| DialError::Connect { tried: upstream, source })?;
        }
        let (stream, tls) = match handshake {
            None => (stream, None),
            Some(handshake) => {
                let shaken = async { handshake.run(stream).await.map(wrapped) };
                let shaken = timeout_at(deadline, shaken).await;
                match shaken
                    .map_err(|_| late())
                    .inspect_err(|_| report(upstream, Outcome::Failure))?
                {
                    Ok((stream, session)) => (stream, Some(session)),
                    Err(error) => {
                        report(upstream, Outcome::Failure);
                        return Err(CarryError::Tls { tried: Some(upstream), error });
                    }
                }
            }
        };
        if ask.host.is_none() {
            report(upstream, Outcome::Success);
        }
        Ok(Carried { stream, upstream, local, tls, socket, left, held })
    }

    fn timeout(&self, traffic: &TrafficPolicy) -> Duration {
        traffic.connect_timeout.unwrap_or(self.dialer.connect_timeout)
    }

    fn dialer_for(&self, traffic: &TrafficPolicy) -> Dialer {
        Dialer { connect_timeout: self.timeout(traffic), ..self.dialer.clone() }
    }
}

#[cfg(test)]
mod tests;
