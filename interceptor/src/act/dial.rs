//! The only place that opens a connection to the outside, always in the workload's own namespace
//! and always to a judged address.

mod socket;

use std::future::ready;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::net::{TcpStream, UnixStream};
use tokio::time::{Instant, timeout_at};

use super::cluster::Candidate;
use super::race::{Lost, alternate_families, race};
use crate::decide::host::HostName;
use crate::decide::net::is_special;
use crate::decide::{Endpoint, Place, Upstream};
use crate::netns::NetNs;
use crate::origin::OriginalDst;
use crate::policy::Enforcement;
use crate::resolve::{ResolveError, Resolver};

/// Head start of one address over the next (RFC 8305 section 5).
const ATTEMPT_DELAY: Duration = Duration::from_millis(250);
/// Head start of one operator-given endpoint over the next: these are equal servers, chosen by
/// weight, not ways to one server, so a slow one is not given up lightly.
const ENDPOINT_DELAY: Duration = Duration::from_secs(1);

/// Opens upstream connections for the workloads of one network namespace.
#[derive(Debug, Clone)]
pub struct Dialer {
    /// Where upstream sockets are made.
    pub netns: Arc<NetNs>,
    /// Names to addresses.
    pub resolver: Arc<Resolver>,
    /// Bound on resolving and connecting, all tries together (MESH-6).
    pub connect_timeout: Duration,
    /// Whether resolved addresses in special ranges are dialled (istio) or refused (strict, T-40),
    /// and whether the address that the workload dialled counts (docs/profiles.md).
    pub enforcement: Enforcement,
    /// An address that is never dialled: a gateway's own, which would lead back to it for ever.
    pub own: Option<IpAddr>,
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
    /// Every resolved address lies in a special range (T-40), or is the gateway itself.
    #[error("{0} is a special address that no entry names")]
    Special(SocketAddr),
    /// The dialled address is not among those of the names that may be dialled there (R3).
    #[error("{dst} is not an address of a registered host")]
    NotVerified {
        /// The address that the workload dialled.
        dst: SocketAddr,
    },
    /// The connect failed (UF).
    #[error("connect to {tried}: {source}")]
    Connect {
        /// The address tried last.
        tried: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// The connect to a unix socket failed (UF).
    #[error("connect to {path}: {source}", path = .path.display())]
    Unix {
        /// The socket tried last.
        path: Arc<Path>,
        /// Why.
        source: io::Error,
    },
}

impl DialError {
    /// The address that was tried last, if the failure came as late as that (LOG-3 field 18).
    pub fn tried(&self) -> Option<SocketAddr> {
        match self {
            Self::Connect { tried, .. } => Some(*tried),
            _ => None,
        }
    }

    /// The failure as the access log's upstream transport failure reason prints it (LOG-3 field 9,
    /// LOG-48, DR-11): `delayed_connect_error:_111`, `connection_timeout`; for what failed before a
    /// connect, the message with `_` for spaces.
    pub fn details(&self) -> String {
        if let Self::Connect { source, .. } | Self::Unix { source, .. } = self {
            if let Some(errno) = source.raw_os_error() {
                return connect_error(errno);
            }
            if source.kind() == io::ErrorKind::TimedOut {
                return "connection_timeout".to_owned();
            }
        }
        self.to_string().replace(' ', "_")
    }
}

/// A connect that failed with a number of errno(3), as the access log's field 9 prints it.
pub fn connect_error(errno: i32) -> String {
    format!("delayed_connect_error:_{errno}")
}

impl Dialer {
    /// T-40.
    fn dials_special(&self) -> bool {
        self.enforcement == Enforcement::Istio
    }

    /// Connects to one of `upstream`'s addresses. Where several are allowed they are tried a moment
    /// apart, and the first to answer is used.
    ///
    /// # Errors
    /// [`DialError`]; a failure tried every address that the upstream allows, within the timeout.
    pub async fn dial(&self, upstream: &Upstream, dst: OriginalDst) -> Result<Dialled, DialError> {
        let deadline = Instant::now() + self.connect_timeout;
        let dialled = dst.addr();
        match upstream {
            Upstream::OriginalDst { port, name } => {
                let first = SocketAddr::new(dialled.ip(), *port);
                let others = async {
                    match name {
                        Some(name) => self.siblings(name, first).await,
                        None => Vec::new(),
                    }
                };
                self.connect_first(vec![first], others, ATTEMPT_DELAY, deadline).await
            }
            Upstream::VerifiedOriginalDst { host, port } => {
                let mut addresses = self.resolve(host, *port, deadline).await?;
                start_at(&mut addresses, dialled.ip(), false);
                let addresses = alternate_families(addresses);
                self.connect_first(addresses, ready(Vec::new()), ATTEMPT_DELAY, deadline).await
            }
            Upstream::Static(endpoints) => {
                let addresses = by_weight(endpoints).copied().collect::<Vec<_>>();
                if addresses.is_empty() {
                    return Err(DialError::NoEndpoint);
                }
                self.connect_first(addresses, ready(Vec::new()), ENDPOINT_DELAY, deadline).await
            }
            Upstream::Dns { endpoints, round_robin } => {
                self.dial_names(endpoints, *round_robin, dialled.ip(), deadline).await
            }
            // They have a door of their own: what comes of them is no TCP connection.
            Upstream::Unix(_) | Upstream::None | Upstream::NoCluster => Err(DialError::NoEndpoint),
        }
    }

    /// Connects to one of `sockets`, drawn by weight; the others stand in where it does not answer.
    ///
    /// # Errors
    /// [`DialError::Unix`] of the last one, or there is none.
    pub async fn dial_unix(
        &self,
        sockets: &[Endpoint<Arc<Path>>],
    ) -> Result<(UnixStream, Arc<Path>), DialError> {
        let deadline = Instant::now() + self.connect_timeout;
        let mut failure = DialError::NoEndpoint;
        for path in by_weight(sockets) {
            let made = timeout_at(deadline, socket::connect_unix(path)).await;
            match made.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())) {
                Ok(stream) => return Ok((stream, Arc::clone(path))),
                Err(source) => failure = DialError::Unix { path: Arc::clone(path), source },
            }
        }
        Err(failure)
    }

    /// The addresses among which `upstream` may be balanced, each with its weight (RES-2, RES-3);
    /// `None` where there is nothing to balance: the dialled address itself, the first of the latest
    /// answer (RES-4), or unix sockets. Names that do not resolve have no part, and those that are slower
    /// than the first by more than a moment have none this time.
    ///
    /// # Errors
    /// [`DialError`]: there is no address at all.
    pub(super) async fn candidates(
        &self,
        upstream: &Upstream,
    ) -> Result<Option<Vec<Candidate>>, DialError> {
        let endpoints = match upstream {
            Upstream::OriginalDst { .. }
            | Upstream::VerifiedOriginalDst { .. }
            | Upstream::Unix(_)
            | Upstream::Dns { round_robin: true, .. } => return Ok(None),
            Upstream::None | Upstream::NoCluster => return Err(DialError::NoEndpoint),
            Upstream::Static(endpoints) => {
                let candidates = endpoints.iter().map(|endpoint| Candidate {
                    address: endpoint.target,
                    weight: endpoint.weight,
                });
                return Ok(Some(candidates.collect()));
            }
            Upstream::Dns { endpoints, .. } => endpoints,
        };
        let mut deadline = Instant::now() + self.connect_timeout;
        let mut lookups = endpoints
            .iter()
            .map(|endpoint| async move {
                (endpoint.weight, self.addresses(&endpoint.target, deadline).await)
            })
            .collect::<FuturesUnordered<_>>();
        let (mut candidates, mut failure) = (Vec::<Candidate>::new(), DialError::NoEndpoint);
        while let Ok(Some((weight, found))) = timeout_at(deadline, lookups.next()).await {
            match found {
                Ok(addresses) => {
                    for address in addresses {
                        if !candidates.iter().any(|one| one.address == address) {
                            candidates.push(Candidate { address, weight });
                        }
                    }
                    deadline = deadline.min(Instant::now() + ATTEMPT_DELAY);
                }
                Err(error) => failure = error,
            }
        }
        if candidates.is_empty() { Err(failure) } else { Ok(Some(candidates)) }
    }

    /// Connects to the first of `addresses` that answers. `equals`: they are an operator's
    /// endpoints, not ways to one host. `failed` is told of each that did not answer.
    ///
    /// # Errors
    /// [`DialError`].
    pub(super) async fn connect(
        &self,
        addresses: Vec<SocketAddr>,
        equals: bool,
        failed: impl Fn(SocketAddr),
    ) -> Result<Dialled, DialError> {
        let deadline = Instant::now() + self.connect_timeout;
        let (addresses, stagger) = match equals {
            true => (addresses, ENDPOINT_DELAY),
            false => (alternate_families(addresses), ATTEMPT_DELAY),
        };
        self.race(addresses, ready(Vec::new()), stagger, deadline, failed).await
    }

    /// Whether the dialled address is an address of one of `hosts` in the daemon's own resolution
    /// (R3): for TCP that shows no name. Takes at most the connect timeout.
    ///
    /// # Errors
    /// [`DialError::NotVerified`], also when a name that might have said yes did not resolve;
    /// [`DialError::Special`] for an address that no name may lead to (T-40).
    pub async fn verify(&self, hosts: &[HostName], dst: OriginalDst) -> Result<(), DialError> {
        let dst = dst.addr();
        if !self.dials_special() && is_special(dst.ip()) {
            return Err(DialError::Special(dst));
        }
        let deadline = Instant::now() + self.connect_timeout;
        let mut lookups =
            hosts.iter().map(|host| self.resolver.lookup(host)).collect::<FuturesUnordered<_>>();
        while let Ok(Some(found)) = timeout_at(deadline, lookups.next()).await {
            if found.is_ok_and(|addresses| addresses.contains(&dst.ip())) {
                return Ok(());
            }
        }
        Err(DialError::NotVerified { dst })
    }

    /// Connects to a server that the configuration names, not to a judged destination.
    ///
    /// # Errors
    /// [`DialError`].
    pub(super) async fn dial_server(&self, place: &Place, port: u16) -> Result<Dialled, DialError> {
        let deadline = Instant::now() + self.connect_timeout;
        let addresses = self.addresses(&(place.clone(), port), deadline).await?;
        let addresses = alternate_families(addresses);
        self.connect_first(addresses, ready(Vec::new()), ATTEMPT_DELAY, deadline).await
    }

    /// The addresses of such a server; at least one.
    ///
    /// # Errors
    /// [`DialError`].
    pub(super) async fn addresses_of(
        &self,
        place: &Place,
        port: u16,
    ) -> Result<Vec<SocketAddr>, DialError> {
        self.addresses(&(place.clone(), port), Instant::now() + self.connect_timeout).await
    }

    /// Dials an endpoint chosen by weight, over all of its addresses; the other endpoints stand in
    /// when it has none or none answers (RES-3, RES-4).
    async fn dial_names(
        &self,
        endpoints: &[Endpoint<(Place, u16)>],
        round_robin: bool,
        dialled: IpAddr,
        deadline: Instant,
    ) -> Result<Dialled, DialError> {
        let order_of = |mut addresses: Vec<SocketAddr>| {
            start_at(&mut addresses, dialled, round_robin);
            alternate_families(addresses)
        };
        let mut endpoints = by_weight(endpoints);
        let mut failure = DialError::NoEndpoint;
        for target in endpoints.by_ref() {
            match self.addresses(target, deadline).await {
                Ok(addresses) => {
                    let others = async {
                        let mut all = Vec::new();
                        for target in endpoints {
                            // One that does not resolve has no address to try.
                            let found = self.addresses(target, deadline).await;
                            all.extend(found.map(order_of).unwrap_or_default());
                        }
                        all
                    };
                    return self
                        .connect_first(order_of(addresses), others, ATTEMPT_DELAY, deadline)
                        .await;
                }
                Err(error) => failure = error,
            }
        }
        Err(failure)
    }

    /// The other addresses of `name`, if `dialled` is one of its addresses: ways to the same
    /// service, the other family first. Else none.
    async fn siblings(&self, name: &HostName, dialled: SocketAddr) -> Vec<SocketAddr> {
        let Ok(addresses) = self.resolver.lookup(name).await else { return Vec::new() };
        if !addresses.contains(&dialled.ip()) {
            return Vec::new();
        }
        let mut others = addresses
            .iter()
            .filter(|&&ip| ip != dialled.ip() && (self.dials_special() || !is_special(ip)))
            .map(|&ip| SocketAddr::new(ip, dialled.port()))
            .collect::<Vec<_>>();
        others.sort_by_key(|other| other.is_ipv4() == dialled.is_ipv4());
        alternate_families(others)
    }

    /// The addresses of an endpoint that may be dialled; at least one. An address that the entry
    /// itself gives may always be: T-40 is about what names resolve to.
    async fn addresses(
        &self,
        (place, port): &(Place, u16),
        deadline: Instant,
    ) -> Result<Vec<SocketAddr>, DialError> {
        match place {
            Place::Ip(ip) => Ok(vec![SocketAddr::new(*ip, *port)]),
            Place::Name(host) => self.resolve(host, *port, deadline).await,
        }
    }

    /// The addresses of `host` that may be dialled; at least one.
    async fn resolve(
        &self,
        host: &HostName,
        port: u16,
        deadline: Instant,
    ) -> Result<Vec<SocketAddr>, DialError> {
        let found =
            timeout_at(deadline, self.resolver.lookup(host)).await.unwrap_or_else(|_| {
                Err(ResolveError::Failed { host: host.clone(), why: "no answer in time".into() })
            })?;
        let (special, mut fit) = (found.iter().map(|&ip| SocketAddr::new(ip, port)))
            .partition::<Vec<_>, _>(|address| is_special(address.ip()));
        match special.first() {
            Some(_) if self.dials_special() => {
                // In the order of the answer.
                fit = found.iter().map(|&ip| SocketAddr::new(ip, port)).collect();
            }
            Some(&special) if fit.is_empty() => return Err(DialError::Special(special)),
            _ => {}
        }
        Ok(fit)
    }

    /// Races `addresses`, then `others`, and readies the winner for use.
    async fn connect_first(
        &self,
        addresses: Vec<SocketAddr>,
        others: impl Future<Output = Vec<SocketAddr>>,
        stagger: Duration,
        deadline: Instant,
    ) -> Result<Dialled, DialError> {
        self.race(addresses, others, stagger, deadline, |_| {}).await
    }

    async fn race(
        &self,
        mut addresses: Vec<SocketAddr>,
        others: impl Future<Output = Vec<SocketAddr>>,
        stagger: Duration,
        deadline: Instant,
        failed: impl Fn(SocketAddr),
    ) -> Result<Dialled, DialError> {
        let failed = &failed;
        let leads_on = |address: &SocketAddr| Some(address.ip()) != self.own;
        let first = addresses.first().copied();
        addresses.retain(leads_on);
        if let Some(own) = first.filter(|_| addresses.is_empty()) {
            return Err(DialError::Special(own));
        }
        let others = async {
            let mut others = others.await;
            others.retain(leads_on);
            others
        };
        let connect = |address| async move {
            let made = async {
                let stream = socket::connect(&self.netns, address).await?;
                let local = stream.local_addr()?;
                Ok((stream, local))
            };
            made.await.inspect_err(|_: &io::Error| failed(address))
        };
        match race(addresses, others, stagger, deadline, connect).await {
            Ok((upstream, (stream, local))) => Ok(Dialled { stream, upstream, local }),
            Err(Lost { tried: Some(tried), failure: Some(source) }) => {
                Err(DialError::Connect { tried, source })
            }
            Err(Lost { tried: Some(tried), failure: None }) => {
                // Cut off here, so its own end was never seen.
                failed(tried);
                Err(DialError::Connect { tried, source: io::ErrorKind::TimedOut.into() })
            }
            Err(Lost { tried: None, .. }) => Err(DialError::NoEndpoint),
        }
    }
}

/// Rotates `addresses` to begin at `dialled` if it is one of them (the client's resolver balanced
/// already), else at a random one, or at the first of the answer if `first` says so (RES-4).
fn start_at(addresses: &mut [SocketAddr], dialled: IpAddr, first: bool) {
    if first || addresses.is_empty() {
        return;
    }
    let start = addresses.iter().position(|address| address.ip() == dialled);
    addresses.rotate_left(start.unwrap_or_else(|| random_below(addresses.len() as u64) as usize));
}

/// The endpoints in a random order in which each next one is drawn by weight among those left.
pub(super) fn by_weight<A>(endpoints: &[Endpoint<A>]) -> impl Iterator<Item = &A> {
    let mut left = endpoints.iter().collect::<Vec<_>>();
    std::iter::from_fn(move || {
        let weight = |endpoint: &Endpoint<A>| u64::from(endpoint.weight.max(1));
        let total = left.iter().map(|endpoint| weight(endpoint)).sum::<u64>();
        let mut draw = random_below(total);
        let drawn = left.iter().position(|endpoint| {
            let hit = draw < weight(endpoint);
            draw = draw.saturating_sub(weight(endpoint));
            hit
        })?;
        Some(&left.swap_remove(drawn).target)
    })
}

/// A random number below `bound`; 0 for 0. Good enough to balance load, no secret.
pub(super) fn random_below(bound: u64) -> u64 {
    use std::hash::{BuildHasher, RandomState};
    // Every RandomState has new keys; the hash of nothing under them is a random number.
    let random = RandomState::new().hash_one(());
    // The high half of the product maps evenly onto 0..bound.
    ((u128::from(random) * u128::from(bound)) >> 64) as u64
}

#[cfg(test)]
mod tests;
