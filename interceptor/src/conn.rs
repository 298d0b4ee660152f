//! THE PATH: one connection, every stage in order: accept, origin, sniff, decide, act, account.
//! The only module that knows that order.

mod cut;
mod lasting;
mod sniffed;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

use futures_util::{StreamExt, stream};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::accept::Accepted;
use crate::account::{AccessLog, ConnectionAccount, Flag, Record};
use crate::act::carrier::{Ask, Carried, Carrier, CarryError, Outbound};
use crate::act::cluster::hash_of;
use crate::act::dial::{DialError, Dialer};
use crate::act::http::HttpContext;
use crate::act::tls::TlsSession;
use crate::act::{block, pick};
use crate::decide::route::Destination;
use crate::decide::traffic::{HashKey, LoadBalancer, TrafficPolicy};
use crate::decide::{self, Action, Block, ByAddress, Claim, ClusterName, Decision, Reason};
use crate::kernel::Kernel;
use crate::origin::{Intercepted, Origin, OriginalDst};
use crate::policy::{Enforcement, Snapshot, Store};
use crate::sniff::Hello;
use crate::sniff::prefixed::Prefixed;
use crate::tiers::Sync;
use crate::workloads::Workload;

use lasting::{Established, Lasting, Relaying, Requests};
use sniffed::{Sniffed, sniff};

/// How many names are looked up at a time where several may own the dialled address.
const LOOKUPS_AT_ONCE: usize = 32;

/// What every connection of one covered namespace shares.
#[derive(Clone)]
pub struct Site {
    /// The kernel side: original destinations.
    pub kernel: Arc<Kernel>,
    /// The newest policy.
    pub policy: Arc<Store>,
    /// Opens upstream connections in the namespace.
    pub dialer: Dialer,
    /// State that its upstream connections share.
    pub outbound: Arc<Outbound>,
    /// Where lines go.
    pub log: AccessLog,
    /// Who runs in the namespace.
    pub workload: Arc<Workload>,
    /// Gauges.
    pub counts: Arc<Counts>,
    /// What goes direct, and why the rest comes here.
    pub tiers: Arc<Sync>,
}

/// Connections now and so far.
#[derive(Debug, Default)]
pub struct Counts {
    active: AtomicU64,
    total: AtomicU64,
}

impl Counts {
    /// Connections that are open.
    pub fn active(&self) -> u64 {
        self.active.load(Ordering::Relaxed)
    }

    /// Connections so far.
    pub fn total(&self) -> u64 {
        self.total.load(Ordering::Relaxed)
    }
}

/// Counts one connection for as long as it lives.
struct Counted(Arc<Counts>);

impl Counted {
    /// Gives the connection's number too.
    fn new(counts: &Arc<Counts>) -> (Self, u64) {
        counts.active.fetch_add(1, Ordering::Relaxed);
        let number = counts.total.fetch_add(1, Ordering::Relaxed) + 1;
        (Self(Arc::clone(counts)), number)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.active.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Serves one accepted connection to its end.
pub async fn serve(accepted: Accepted, site: Site) {
    let (_counted, id) = Counted::new(&site.counts);
    let lasting = match intercept(accepted, &site, id) {
        // Boxed, so that a connection that lasts does not keep the room that opening it took.
        Ok(intercepted) => Box::pin(proxy(intercepted, site)).await,
        Err(accepted) => return refuse_unknown(accepted, &site, id),
    };
    if let Some(lasting) = lasting {
        lasting.last().await;
    }
}

/// Accepted to intercepted: what the kernel handed over. Nothing is ever taken from the client's
/// own bytes, and a miss is never a guess (T-11).
fn intercept(accepted: Accepted, site: &Site, id: u64) -> Result<Intercepted, Accepted> {
    let Some(handover) = site.kernel.handover(&accepted.client) else { return Err(accepted) };
    let (dst, src) = crate::kernel::ends(&handover);
    site.tiers.fallbacks().count(dst);
    let origin = Origin {
        id,
        dst: OriginalDst::new(dst),
        src,
        workload: Arc::clone(&site.workload),
        accepted: Instant::now(),
        accepted_wall: SystemTime::now(),
    };
    Ok(Intercepted { client: accepted.client, origin })
}

/// Somebody talks to the listener itself (CAP-11, T-11).
fn refuse_unknown(accepted: Accepted, site: &Site, id: u64) {
    let mut record = Record::new(SystemTime::now(), accepted.local, accepted.peer);
    record.upstream_cluster = Some(ClusterName::black_hole());
    record.flags = vec![Flag::UH];
    record.reason = Reason::NoOriginalDst;
    record.more.connection_id = Some(id);
    if site.policy.current().enforcement == Enforcement::Strict {
        record.connection_termination_details = Some(Reason::NoOriginalDst.label().into());
    }
    site.log.write(record);
    block::reset(accepted.client);
}

/// Intercepted to decided, and done; what lasts is handed back.
async fn proxy(intercepted: Intercepted, mut site: Site) -> Option<Lasting> {
    let Intercepted { client, origin } = intercepted;
    let changes = site.policy.subscribe();
    let snapshot = site.policy.current();
    site.dialer.connect_timeout = snapshot.connect_timeout;
    site.dialer.enforcement = snapshot.enforcement;
    let mut account = ConnectionAccount::open(site.log.clone(), &origin);
    let sniffed = match decide::by_address(&snapshot.policy, &origin.flow()) {
        ByAddress::Decided(decision) => {
            Sniffed::without_bytes(settle(decision, &origin, &site).await)
        }
        ByAddress::Inspect { unless_client_speaks } => {
            let otherwise = settle(unless_client_speaks, &origin, &site).await;
            match sniff(&client, &origin, &site, &snapshot, otherwise).await {
                Ok(sniffed) => sniffed,
                // The client is gone, by a reset.
                Err(_) => {
                    let explain = snapshot.enforcement == Enforcement::Strict;
                    account.refused(Reason::EarlyClose, explain);
                    account.close(0, 0);
                    return None;
                }
            }
        }
    };
    act(client, origin, site, &snapshot, sniffed, changes, account).await
}

/// Answers the one question that deciding may leave open: whether the daemon's own resolution of a
/// host contains the dialled address. A name that does not resolve owns nothing.
async fn settle(decision: Decision, origin: &Origin, site: &Site) -> Decision {
    let Action::ByResolution(open) = &decision.action else { return decision };
    let dialled = origin.dst.addr().ip();
    let owns = |claim: &Claim| {
        let (resolver, host) = (Arc::clone(&site.dialer.resolver), claim.host.clone());
        async move {
            let addresses = resolver.lookup(&host).await;
            addresses.is_ok_and(|addresses| addresses.contains(&dialled))
        }
    };
    // In the order of the claims, whichever is answered first.
    let mut owning = stream::iter(open.claims.iter().map(owns)).buffered(LOOKUPS_AT_ONCE);
    for claim in open.claims.iter() {
        if owning.next().await == Some(true) {
            return claim.decision.clone();
        }
    }
    open.otherwise.clone()
}

/// Connects to `destination`, as its policy has it.
async fn connect(
    destination: &Destination,
    origin: &Origin,
    site: &Site,
) -> Result<Carried, CarryError> {
    let (dst, src) = (origin.dst, origin.src);
    let hash = source_hash(&destination.traffic, src);
    let ask = Ask { dst, src, host: None, hash, avoid: &[] };
    let carrier = Carrier { dialer: site.dialer.clone(), outbound: Arc::clone(&site.outbound) };
    carrier.connect(destination, ask).await
}

/// Does what was decided. What is over then has its account closed.
async fn act(
    client: TcpStream,
    origin: Origin,
    site: Site,
    snapshot: &Snapshot,
    sniffed: Sniffed,
    changes: watch::Receiver<u64>,
    mut account: ConnectionAccount,
) -> Option<Lasting> {
    let Sniffed { decision, bytes, hello, carried } = sniffed;
    let explain = snapshot.enforcement == Enforcement::Strict;
    account.decided(&decision, explain);
    if let Some(Hello::Tls(hello)) = &hello {
        if let Some(name) = &hello.sni {
            account.server_name(name.to_string());
        }
        if hello.ech && explain {
            account.offered_ech();
        }
    }
    match decision.action {
        Action::Block(Block::Reset) => {
            block::reset(client);
            account.close(0, 0);
        }
        Action::Block(Block::Close | Block::Http { .. }) => {
            block::close(client).await;
            account.close(0, 0);
        }
        Action::Relay(destinations) => {
            if decision.reason == Reason::AllowAny && !matches!(hello, Some(Hello::Malformed(_))) {
                site.tiers.spoke(snapshot, origin.dst.addr());
            }
            let destination = pick(&destinations).clone();
            account.cluster(destination.cluster.clone());
            let carried = match carried {
                Some(carried) => carried,
                None => connect(&destination, &origin, &site).await,
            };
            match carried {
                Ok(carried) => {
                    let tls = || carried.tls.as_deref().map(TlsSession::fields);
                    match &carried.socket {
                        None => account.upstream(carried.upstream, carried.local, tls),
                        Some(path) => account.upstream_socket(Arc::clone(path), tls),
                    }
                    let peer = carried.upstream;
                    let established = Established { origin, hello, destination, peer };
                    let client = Prefixed::new(bytes, client);
                    let relaying =
                        Relaying { client, carried, established, site, changes, account };
                    return Some(Lasting::Relay(Box::new(relaying)));
                }
                Err(error) => {
                    carry_failed(&mut account, &error, explain);
                    // As a connect without us would have ended: no byte went back, so a reset.
                    block::reset(client);
                    account.close(bytes.len() as u64, 0);
                }
            }
        }
        Action::Http => {
            account.per_request();
            let carrier = Carrier { dialer: site.dialer, outbound: site.outbound };
            let context = HttpContext { carrier, policy: site.policy, log: site.log };
            let client = Prefixed::new(bytes, client);
            return Some(Lasting::Http(Box::new(Requests { client, origin, context })));
        }
        // Only by_request answers the one, and settling leaves none of the other: refuse.
        Action::Forward(_) | Action::Reply(_) | Action::ByResolution(_) => {
            account.refused(Reason::NoPolicy, explain);
            block::reset(client);
            account.close(0, 0);
        }
    }
    None
}

/// What a consistent hash over the workload's address goes by; a connection has nothing else.
fn source_hash(traffic: &TrafficPolicy, src: SocketAddr) -> Option<u64> {
    let by_source = traffic.load_balancer == LoadBalancer::Hash(HashKey::SourceIp);
    by_source.then(|| hash_of(&src.ip().to_canonical().to_string()))
}

fn carry_failed(account: &mut ConnectionAccount, error: &CarryError, explain: bool) {
    match error {
        CarryError::Dial(DialError::NoEndpoint | DialError::Resolve(_)) => {
            account.upstream_failed(None, vec![Flag::UH], None);
        }
        CarryError::Dial(DialError::Special(_)) => {
            account.refused(Reason::SpecialAddress, explain);
        }
        CarryError::Dial(DialError::NotVerified { .. }) => {
            account.refused(Reason::AddressNotVerified, explain);
        }
        CarryError::NoCluster => account.upstream_failed(None, vec![Flag::NC], None),
        CarryError::Overflow(_) => account.upstream_failed(None, vec![Flag::UO], None),
        CarryError::Tunnel { .. } => {
            account.upstream_failed(error.tried(), vec![Flag::UF], Some(error.details()));
        }
        CarryError::Dial(DialError::Connect { .. } | DialError::Unix { .. })
        | CarryError::Tls { .. } => {
            account.upstream_failed(
                error.tried(),
                vec![Flag::UF, Flag::URX],
                Some(error.details()),
            );
        }
    }
}
