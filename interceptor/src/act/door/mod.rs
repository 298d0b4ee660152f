//! Through an upstream proxy (`egressProxy`): the proxies in their order, each asked for the judged
//! target, until one gives a way out. Never direct: without a proxy there is no connection (T-47).
//!
//! The next proxy is tried as soon as one fails, and beside it where it is slow; whoever answers first
//! is used. An answer, be it a refusal, ends the search: another proxy is asked where there was none.

mod hbone;
mod health;
mod login;
mod socks;
#[cfg(test)]
mod tests;

use std::future::ready;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use http::HeaderValue;
use http::uri::Authority;
use tokio::time::{Instant, timeout};

use super::carrier::{Ask, Carrier, wrapped};
use super::dial::{DialError, Dialer, Dialled, by_weight};
use super::race::{Lost, race};
use super::stream::Stream;
use super::tls::{Alpn, TlsError};
use super::tunnel::{self, NoTunnel};
use crate::decide::Place;
use crate::decide::door::{EgressProxy, PlainHttp, Speaks, Target, Via};
use crate::decide::host::HostName;
use crate::decide::traffic::{Origination, TrafficPolicy};
use crate::hbone::{Claim, Metadata, Refusal, Trace};
use crate::origin::OriginalDst;
use hbone::{Means, NoStream, Streamed};
use health::Fault;
use login::{LoginError, Pair};
use socks::NoSocks;

pub use hbone::Tunnels;
pub use health::{Health, ProxyState};

/// Head start of one proxy over the next.
const STAGGER: Duration = Duration::from_millis(600);
/// How long the daemon's own resolution may take to confirm a name that nobody judged.
const CONFIRM: Duration = Duration::from_secs(1);

/// A connection that leaves through a proxy.
pub(super) struct Through {
    pub(super) stream: Stream,
    /// The proxy's address.
    pub(super) upstream: SocketAddr,
    /// Our end.
    pub(super) local: SocketAddr,
    pub(super) how: Left,
}

/// How a connection left.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Left {
    /// The proxy's name.
    pub proxy: Arc<str>,
    /// What it was asked for, as an authority.
    pub target: Arc<str>,
    /// What requests must carry where the proxy has them in absolute form; `None`: it is a tunnel.
    pub absolute: Option<Absolute>,
    /// The trace that a gateway's line has too.
    pub trace: Option<Arc<str>>,
    /// Why a gateway's policy refused it, once that is heard.
    pub refusal: Refusal,
}

/// What makes a request one to a proxy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Absolute {
    /// Of its target.
    pub authority: Authority,
    /// `Proxy-Authorization`; marked as sensitive.
    pub authorization: Option<HeaderValue>,
}

/// Why nothing left through a proxy.
#[derive(Debug, thiserror::Error)]
#[error("egress proxy {proxy}: {why}")]
pub struct DoorError {
    /// The proxy that was tried last.
    pub proxy: Arc<str>,
    /// Its address, where it came as far as that.
    pub tried: Option<SocketAddr>,
    /// Why.
    pub why: Shut,
}

/// What was wrong with a proxy.
#[derive(Debug, thiserror::Error)]
pub enum Shut {
    /// No connection to it.
    #[error(transparent)]
    Dial(#[from] DialError),
    /// No TLS with it.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// Our credentials cannot be read.
    #[error(transparent)]
    Login(#[from] LoginError),
    /// No tunnel.
    #[error(transparent)]
    Tunnel(#[from] NoTunnel),
    /// No connection by SOCKS.
    #[error(transparent)]
    Socks(#[from] NoSocks),
    /// No stream of a gateway.
    #[error(transparent)]
    Stream(#[from] NoStream),
}

impl Shut {
    /// What it says of the proxy's health; `None`: nothing. It answered, or the fault is ours.
    fn fault(&self) -> Option<Fault> {
        match self {
            Self::Dial(_) | Self::Tls(TlsError::Handshake(_)) => Some(Fault::Down),
            Self::Tls(_) | Self::Login(_) => None,
            Self::Tunnel(NoTunnel::Answered(_)) => None,
            Self::Tunnel(_) => Some(Fault::Mute),
            Self::Socks(error) => (!error.is_answer()).then_some(Fault::Mute),
            Self::Stream(NoStream::Unavailable) => Some(Fault::Down),
            Self::Stream(error) => (!error.is_answer()).then_some(Fault::Mute),
        }
    }
}

impl Left {
    /// What the gateway's policy said against it, as the access log's field 9 prints it.
    pub fn refused(&self) -> Option<String> {
        let reason = self.refusal.reason()?;
        Some(format!("egress_proxy{{{}|the_gateway_refused_({})}}", self.proxy, reason.label()))
    }
}

impl DoorError {
    /// The failure as the access log's field 9 prints it.
    pub fn details(&self) -> String {
        let why = match &self.why {
            Shut::Dial(error) => error.details(),
            Shut::Tls(error) => error.details(),
            other => other.to_string(),
        };
        format!("egress_proxy{{{}|{}}}", self.proxy, why.replace(' ', "_"))
    }

    /// Whether another try may end otherwise.
    pub(super) fn is_connect(&self) -> bool {
        self.why.fault().is_some()
    }
}

impl Carrier {
    /// Leaves through one of the proxies of `via`.
    ///
    /// # Errors
    /// The last proxy's failure, or the refusal of the one that answered.
    pub(super) fn leave<'a>(
        &'a self,
        via: &'a Via,
        ask: Ask<'a>,
        traffic: &'a TrafficPolicy,
        dialer: &'a Dialer,
    ) -> BoxFuture<'a, Result<Through, DoorError>> {
        // Its type ends here: it would be a part of the types of all futures around it.
        Box::pin(self.leave_by(via, ask, traffic, dialer))
    }

    async fn leave_by(
        &self,
        via: &Via,
        ask: Ask<'_>,
        traffic: &TrafficPolicy,
        dialer: &Dialer,
    ) -> Result<Through, DoorError> {
        let deadline = Instant::now() + dialer.connect_timeout;
        let target = target(via, ask.dst, dialer).await;
        let plain = ask.plain.filter(|host| {
            via.plain_http == PlainHttp::AbsoluteForm && is_authority_of(host, &target)
        });
        let wish = Wish { target: &target, dst: judged_as(&target, ask, traffic), src: ask.src };
        let trials = self.outbound.proxies.order(&via.proxies);
        let knock = async |at: usize| {
            let trial = &trials[at];
            let knocking: BoxFuture<'_, _> =
                Box::pin(self.knock(trial.proxy, wish, plain.is_some(), dialer));
            match knocking.await {
                Ok(through) => {
                    trial.worked();
                    Ok(Ok(through))
                }
                Err(error) => match error.why.fault() {
                    Some(fault) => {
                        trial.failed(fault, &error.why);
                        Err(error)
                    }
                    None => Ok(Err(error)),
                },
            }
        };
        let all = (0..trials.len()).collect();
        match race(all, ready(Vec::new()), STAGGER, deadline, &knock).await {
            Ok((winner, outcome)) => {
                if outcome.is_ok() {
                    trials[..winner].iter().for_each(health::Trial::overtaken);
                }
                outcome
            }
            Err(Lost { failure: Some(error), .. }) => Err(error),
            Err(Lost { tried, failure: None }) => {
                let last = tried.and_then(|at| trials.get(at)).or(trials.first());
                let proxy = last.map_or("-".into(), |trial| Arc::clone(&trial.proxy.name));
                Err(DoorError { proxy, tried: None, why: NoTunnel::Late.into() })
            }
        }
    }

    /// Asks one proxy for what is wished; `plain`: for requests in plain HTTP, which need no tunnel.
    async fn knock(
        &self,
        proxy: &EgressProxy,
        wish: Wish<'_>,
        plain: bool,
        dialer: &Dialer,
    ) -> Result<Through, DoorError> {
        let mut tried = None;
        let knocked = self.knocked(proxy, wish, plain, dialer, &mut tried).await;
        knocked.map_err(|why| DoorError { proxy: Arc::clone(&proxy.name), tried, why })
    }

    async fn knocked(
        &self,
        proxy: &EgressProxy,
        wish: Wish<'_>,
        plain: bool,
        dialer: &Dialer,
        tried: &mut Option<SocketAddr>,
    ) -> Result<Through, Shut> {
        let target = wish.target;
        if let Speaks::Gateway(tls) = &proxy.speaks {
            return self.stream(proxy, tls, wish, dialer, tried).await;
        }
        let login = match &proxy.login {
            None => None,
            Some(login) => Some(login::read(login).await?),
        };
        let handshake = match &proxy.speaks {
            Speaks::Http | Speaks::Socks5 | Speaks::Gateway(_) => None,
            Speaks::Https(tls) => {
                let place = proxy.place.to_string();
                let name = tls.sni.as_deref().unwrap_or(&place);
                Some(self.outbound.originator.prepare(tls, Some(name), Alpn::Http1).await?)
            }
        };
        let dialled = dialer.dial_server(&proxy.place, proxy.port).await;
        let Dialled { stream, upstream, local } =
            dialled.inspect_err(|error| *tried = error.tried())?;
        *tried = Some(upstream);
        let mut stream = match handshake {
            None => Stream::Plain(stream),
            Some(handshake) => wrapped(handshake.run(stream).await?).0,
        };
        let authority = format!("{}:{}", target.0, target.1);
        let basic = || login.as_ref().map(Pair::basic);
        let mut absolute = None;
        match &proxy.speaks {
            Speaks::Socks5 => socks::connect(&mut stream, target, login.as_ref()).await?,
            Speaks::Http | Speaks::Https(_) | Speaks::Gateway(_) => {
                match plain.then(|| to_authority(target)).flatten() {
                    Some(authority) => {
                        absolute = Some(Absolute { authority, authorization: basic() });
                    }
                    None => {
                        let request = tunnel::Request::connect(&authority, basic());
                        tunnel::ask_http1(&mut stream, &request).await?;
                    }
                }
            }
        }
        let (proxy, target) = (Arc::clone(&proxy.name), authority.into());
        let how = Left { proxy, target, absolute, trace: None, refusal: Refusal::default() };
        Ok(Through { stream, upstream, local, how })
    }

    /// A stream of a gateway.
    async fn stream(
        &self,
        proxy: &EgressProxy,
        tls: &Origination,
        wish: Wish<'_>,
        dialer: &Dialer,
        tried: &mut Option<SocketAddr>,
    ) -> Result<Through, Shut> {
        let Wish { target, dst, src } = wish;
        let workload = &self.outbound.workload;
        let claim = Claim {
            namespace: workload.namespace.to_string(),
            name: workload.name.to_string(),
            service_account: workload.service_account.to_string(),
        };
        let metadata = Metadata { claim, dst, src, trace: Trace::new() };
        let means = Means { tls, originator: &self.outbound.originator, dialer };
        let authority = format!("{}:{}", target.0, target.1);
        let tunnels = &self.outbound.tunnels;
        let Streamed { tunnel, upstream, local } =
            tunnels.open(proxy, &authority, &metadata, means, tried).await?;
        let how = Left {
            proxy: Arc::clone(&proxy.name),
            target: authority.into(),
            absolute: None,
            trace: Some(metadata.trace.id),
            refusal: Refusal::default(),
        };
        let tunnel = tunnel.refused_by(how.refusal.clone());
        Ok(Through { stream: Stream::Wrapped(Box::new(tunnel)), upstream, local, how })
    }
}

/// What a proxy is asked for, and for whom.
#[derive(Clone, Copy)]
struct Wish<'a> {
    target: &'a Target,
    /// Where a gateway's policy is to see it go.
    dst: SocketAddr,
    src: SocketAddr,
}

/// Where a gateway's policy is to see a connection go: to where the workload dialled, whose bytes these
/// are; but to the target where we ourselves speak TLS, or to another proxy.
fn judged_as((place, port): &Target, ask: Ask<'_>, traffic: &TrafficPolicy) -> SocketAddr {
    let dst = ask.dst.addr();
    if traffic.tls.is_none() && traffic.tunnel.is_none() {
        return dst;
    }
    match place {
        Place::Ip(ip) => SocketAddr::new(*ip, *port),
        Place::Name(_) => SocketAddr::new(dst.ip(), *port),
    }
}

/// What to ask for: one of the targets, or the noticed name in place of the dialled address where the
/// daemon itself knows that to be its.
async fn target(via: &Via, dst: OriginalDst, dialer: &Dialer) -> Target {
    let (place, port) = match by_weight(&via.targets).next() {
        Some(target) => target.clone(),
        // There is always one; this one leads nowhere.
        None => (Place::Ip(IpAddr::from([0, 0, 0, 0])), 0),
    };
    let Some(name) = &via.noticed else { return (place, port) };
    let found = timeout(CONFIRM, dialer.resolver.lookup(name)).await;
    let dialled = dst.addr().ip().to_canonical();
    let owns = matches!(found, Ok(Ok(addresses)) if addresses.contains(&dialled));
    (if owns { name.clone().into() } else { place }, port)
}

/// The authority of a request's target; port 80 is left out, as clients do.
fn to_authority((place, port): &Target) -> Option<Authority> {
    let text = if *port == 80 { place.to_string() } else { format!("{place}:{port}") };
    text.parse().ok()
}

/// Whether a request with this Host may be sent with the target's authority: a proxy replaces the one
/// by the other (RFC 9112 3.2.2).
fn is_authority_of(host: &str, (place, port): &Target) -> bool {
    let Ok(host) = host.parse::<Authority>() else { return false };
    if host.port_u16().unwrap_or(80) != *port || host.as_str().contains('@') {
        return false;
    }
    match place {
        Place::Name(name) => HostName::parse(host.host()).is_ok_and(|host| host == *name),
        Place::Ip(_) => host.host() == place.to_string(),
    }
}
