//! THE PATH: one connection, every stage in order: accept, admit, origin, sniff, decide, act,
//! account.
//! The only module that knows that order.

mod cut;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use futures_util::{StreamExt, stream};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::accept::Accepted;
use crate::account::{AccessLog, ConnectionAccount, Flag, Folds, Record, Same};
use crate::act::carrier::{Ask, Carried, Carrier, CarryError, Outbound};
use crate::act::cluster::hash_of;
use crate::act::dial::{DialError, Dialer};
use crate::act::http::HttpContext;
use crate::act::relay::{RelayEnd, RelayLimits};
use crate::act::tls::TlsSession;
use crate::act::{block, http, pick, relay};
use crate::admit::{Admitted, Full, Room, Undecided};
use crate::decide::route::Destination;
use crate::decide::traffic::{HashKey, LoadBalancer, TrafficPolicy};
use crate::decide::{
    self, Action, Block, ByAddress, Claim, ClusterName, Decision, Reason, Upstream,
};
use crate::kernel::Kernel;
use crate::origin::{Intercepted, Origin, OriginalDst};
use crate::policy::{Enforcement, Snapshot, Store};
use crate::sniff::prefixed::Prefixed;
use crate::sniff::{Hello, Sniffer};
use crate::tiers::Sync;
use crate::workloads::Workload;

/// How long a client may take to speak first before the upstream is dialled all the same, where
/// every verdict without its bytes is "pass": a server that speaks first is not kept waiting, and
/// a client that does is mostly not dialled for twice.
const SPEAK_FIRST: Duration = Duration::from_millis(10);

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
    /// The workload's places.
    pub room: Arc<Room>,
    /// Refusals that repeat.
    pub folds: Arc<Folds>,
    /// What goes direct, and why the rest comes here.
    pub tiers: Arc<Sync>,
}

/// Takes in what was accepted: serves it on a task of its own, or refuses it at once where there is
/// no room.
pub fn take_in(accepted: Accepted, site: &Site) {
    match site.room.admit(&accepted.client) {
        Ok(admitted) => drop(tokio::spawn(serve(accepted, admitted, site.clone()))),
        Err((id, full)) => refuse_full(accepted, site, id, full),
    }
}

/// Serves one connection to its end.
async fn serve(accepted: Accepted, admitted: Admitted, site: Site) {
    match intercept(accepted, &site, admitted.number) {
        Ok(intercepted) => proxy(intercepted, admitted, site).await,
        Err(accepted) => refuse_unknown(accepted, &site, admitted.number),
    }
}

/// A limit is reached (T-49, T-50): a reset, and one line for many of a destination.
fn refuse_full(accepted: Accepted, site: &Site, id: u64, full: Full) {
    let (dst, src) = match site.kernel.handover(&accepted.client) {
        Some(handover) => crate::kernel::ends(&handover),
        None => (accepted.local, accepted.peer),
    };
    let mut record = refused(OriginalDst::new(dst).addr(), src, Reason::LimitReached, id);
    record.flags = vec![Flag::OM];
    let why = format!("{}{{{}}}", Reason::LimitReached.label(), full.label());
    if site.policy.current().enforcement == Enforcement::Strict {
        record.connection_termination_details = Some(why.clone().into());
    }
    let same = Same { dst: record.downstream_local_address, why: why.into(), name: None };
    site.folds.fold(same, record, 1);
    block::reset(accepted.client);
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
    let mut record = refused(accepted.local, accepted.peer, Reason::NoOriginalDst, id);
    if site.policy.current().enforcement == Enforcement::Strict {
        record.connection_termination_details = Some(Reason::NoOriginalDst.label().into());
    }
    site.log.write(record);
    block::reset(accepted.client);
}

/// The record of a connection that came no further than being accepted.
fn refused(dst: SocketAddr, src: SocketAddr, reason: Reason, id: u64) -> Record {
    let mut record = Record::new(SystemTime::now(), dst, src);
    record.upstream_cluster = Some(ClusterName::black_hole());
    record.flags = vec![Flag::UH];
    record.reason = reason;
    record.more.connection_id = Some(id);
    record
}

/// Intercepted to finished.
async fn proxy(intercepted: Intercepted, mut admitted: Admitted, mut site: Site) {
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
            let place = &mut admitted.undecided;
            match Box::pin(sniff(&client, &origin, &site, &snapshot, otherwise, place)).await {
                Ok(sniffed) => sniffed,
                // The client is gone, by a reset.
                Err(_) => {
                    let explain = snapshot.enforcement == Enforcement::Strict;
                    account.refused(Reason::EarlyClose, explain);
                    return account.close(0, 0);
                }
            }
        }
    };
    admitted.undecided = None;
    act(client, origin, site, &snapshot, sniffed, changes, account).await;
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

/// A decided connection, with what was read and opened on the way.
struct Sniffed {
    decision: Decision,
    bytes: Bytes,
    /// When the first of them came.
    began: Option<Instant>,
    /// What the client began with, where that was waited for.
    hello: Option<Hello>,
    /// The connection to the decision's one destination, if it was made already.
    carried: Option<Result<Carried, CarryError>>,
}

impl Sniffed {
    fn without_bytes(decision: Decision) -> Self {
        Self { decision, bytes: Bytes::new(), began: None, hello: None, carried: None }
    }
}

/// Reads what the verdict needs. Where the answer without any byte is "pass", the upstream is
/// dialled meanwhile and may speak first; else nothing leaves before the verdict (R2). No time that
/// a client lets pass makes its bytes pass unjudged: only a server's own do.
async fn sniff(
    client: &TcpStream,
    origin: &Origin,
    site: &Site,
    snapshot: &Snapshot,
    otherwise: Decision,
    place: &mut Option<Undecided>,
) -> std::io::Result<Sniffed> {
    let mut sniffer = Sniffer::default();
    let deadline = snapshot.sniff_timeout.map(|limit| origin.accepted + limit);
    // Istio waits for the client wherever it inspects, server-first protocols or not (LIS-21).
    let patient = snapshot.enforcement == Enforcement::Istio;
    let (Action::Relay(destinations), false) = (&otherwise.action, patient) else {
        let hello = sniffer.read_from(client, deadline).await?;
        return Ok(decide_hello(sniffer, hello, origin, site, snapshot, otherwise).await);
    };
    let destination = pick(destinations).clone();
    let first = sniffer.read_from(client, Some(origin.accepted + SPEAK_FIRST)).await?;
    if first != Hello::Silent {
        return Ok(decide_hello(sniffer, first, origin, site, snapshot, otherwise).await);
    }
    let otherwise = Decision { action: Action::Relay(vec![destination.clone()]), ..otherwise };
    // No verdict on the connection hangs on these bytes any more, only names and routes do: they
    // may take their time, and nobody's place.
    *place = None;
    let patience = Some(origin.accepted + relay::IDLE);
    let mut connecting = std::pin::pin!(connect(&destination, origin, site));
    let carried = tokio::select! {
        carried = &mut connecting => carried,
        hello = sniffer.read_from(client, patience) => {
            let mut sniffed =
                decide_hello(sniffer, hello?, origin, site, snapshot, otherwise).await;
            // The dial under way is used if the bytes changed nothing about where to.
            if same_place(&sniffed.decision, &destination) {
                sniffed.carried = Some(connecting.await);
            }
            return Ok(sniffed);
        }
    };
    let without_hello = |sniffer: Sniffer, carried| Sniffed {
        bytes: sniffer.into_bytes(),
        carried: Some(carried),
        ..Sniffed::without_bytes(otherwise.clone())
    };
    let mut carried = match carried {
        Ok(carried) => carried,
        Err(error) => return Ok(without_hello(sniffer, Err(error))),
    };
    tokio::select! {
        biased;
        hello = sniffer.read_from(client, patience) => {
            let mut sniffed =
                decide_hello(sniffer, hello?, origin, site, snapshot, otherwise).await;
            if same_place(&sniffed.decision, &destination) {
                sniffed.carried = Some(Ok(carried));
            }
            Ok(sniffed)
        }
        // The server speaks first, or hangs up.
        () = carried.stream.speaks() => Ok(without_hello(sniffer, Ok(carried))),
    }
}

async fn decide_hello(
    sniffer: Sniffer,
    hello: Hello,
    origin: &Origin,
    site: &Site,
    snapshot: &Snapshot,
    otherwise: Decision,
) -> Sniffed {
    let relays = matches!(otherwise.action, Action::Relay(_));
    let decision = match &hello {
        Hello::Silent => otherwise,
        // Where no byte could refuse, a client that half-closes at once may still be answered.
        Hello::Closed if relays && snapshot.enforcement == Enforcement::Strict => otherwise,
        hello => {
            settle(decide::by_hello(&snapshot.policy, &origin.flow(), hello), origin, site).await
        }
    };
    let began = sniffer.began();
    Sniffed { decision, bytes: sniffer.into_bytes(), began, hello: Some(hello), carried: None }
}

/// Whether the decision relays to where a connection to `to` leads, in the same way. A name that was
/// noticed in passing does not change the place.
fn same_place(decision: &Decision, to: &Destination) -> bool {
    let Action::Relay(destinations) = &decision.action else { return false };
    let [only] = destinations.as_slice() else { return false };
    let same = match (&only.upstream, &to.upstream) {
        (Upstream::OriginalDst { port: a, .. }, Upstream::OriginalDst { port: b, .. }) => a == b,
        (a, b) => a == b,
    };
    same && only.traffic == to.traffic
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
    // Apart, so that an established connection does not keep the room that opening it took.
    Box::pin(carrier.connect(destination, ask)).await
}

/// Does what was decided, and closes the account.
async fn act(
    client: TcpStream,
    origin: Origin,
    site: Site,
    snapshot: &Snapshot,
    sniffed: Sniffed,
    changes: watch::Receiver<u64>,
    mut account: ConnectionAccount,
) {
    let Sniffed { decision, bytes, began, hello, carried } = sniffed;
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
            let destination = pick(&destinations);
            account.cluster(destination.cluster.clone());
            let carried = match carried {
                Some(carried) => carried,
                None => connect(destination, &origin, &site).await,
            };
            match carried {
                Ok(carried) => {
                    let tls = || carried.tls.as_deref().map(TlsSession::fields);
                    match &carried.socket {
                        None => account.upstream(carried.upstream, carried.local, tls),
                        Some(path) => account.upstream_socket(Arc::clone(path), tls),
                    }
                    let client = Prefixed::new(bytes, client);
                    let limits = RelayLimits::of(&destination.traffic.limits);
                    let established = cut::Established {
                        origin: &origin,
                        hello: hello.as_ref(),
                        upstream: &destination.upstream,
                        peer: carried.upstream,
                    };
                    let mut why = "";
                    let cut = async {
                        why = cut::withdrawn(&site, &established, changes).await;
                    };
                    let relayed = relay::relay(client, carried.stream, limits, cut).await;
                    match relayed.end {
                        RelayEnd::Cut => {
                            account.terminated(Some(Flag::UH), format!("policy_removed{{{why}}}"));
                        }
                        RelayEnd::Idle => account.terminated(None, "idle_timeout"),
                        RelayEnd::TooLong => {
                            account.terminated(Some(Flag::DT), "max_duration_timeout");
                        }
                        _ => {}
                    }
                    account.close(relayed.bytes_received, relayed.bytes_sent);
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
            let Site { policy, log, room, .. } = site;
            let context = HttpContext { carrier, policy, log, room, began };
            Box::pin(http::serve(Prefixed::new(bytes, client), origin, context)).await;
        }
        // Only by_request answers the one, and settling leaves none of the other: refuse.
        Action::Forward(_) | Action::Reply(_) | Action::ByResolution(_) => {
            account.refused(Reason::NoPolicy, explain);
            block::reset(client);
            account.close(0, 0);
        }
    }
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
