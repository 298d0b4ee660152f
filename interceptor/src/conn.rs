//! THE PATH: one connection, every stage in order: accept, admit, origin, sniff, decide, act,
//! account.
//! The only module that knows that order.

mod cut;
mod lasting;
mod sniffed;

use std::borrow::Cow;
use std::net::SocketAddr;
use std::sync::Arc;

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
use crate::act::tls::TlsSession;
use crate::act::{block, pick};
use crate::admit::{Admitted, Full, Room};
use crate::clock;
use crate::decide::route::Destination;
use crate::decide::traffic::{HashKey, LoadBalancer, TrafficPolicy};
use crate::decide::{self, Action, Block, ByAddress, Claim, ClusterName, Decision, Reason};
use crate::drain::Drain;
use crate::kernel::Kernel;
use crate::origin::{Intercepted, Origin, OriginalDst};
use crate::policy::{Enforcement, Snapshot, Store};
use crate::sniff::Hello;
use crate::sniff::prefixed::Prefixed;
use crate::tiers::Sync;
use crate::workloads::{Audit, Workload};

use lasting::{Established, Lasting, Relaying, Requests};
use sniffed::{Sniffed, sniff};

/// How many names are looked up at a time where several may own the dialled address.
const LOOKUPS_AT_ONCE: usize = 32;

/// What every connection of one covered namespace shares.
#[derive(Clone)]
pub struct Site {
    /// How connections come to us.
    pub entrance: Entrance,
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
    /// Whether what is refused passes, and is told.
    pub audit: Audit,
    /// The workload's places.
    pub room: Arc<Room>,
    /// Refusals that repeat.
    pub folds: Arc<Folds>,
    /// When connections end because another daemon has taken over.
    pub drain: Drain,
}

/// How connections come to us, and with that where they were going.
#[derive(Clone)]
pub enum Entrance {
    /// The kernel turns them to us, and knows.
    Turned(Captured),
    /// Nodes bring them to this gateway, and say so.
    Brought,
    /// This gateway is what they dialled.
    Dialled,
}

/// What the kernel knows of connections that it turned to us.
#[derive(Clone)]
pub struct Captured {
    /// Original destinations.
    pub kernel: Arc<Kernel>,
    /// What goes direct, and why the rest comes here.
    pub tiers: Arc<Sync>,
}

impl Site {
    /// Where a connection was going, and who made it: what the kernel recorded, where it turns them.
    fn handover(&self, accepted: &Accepted) -> Option<(SocketAddr, SocketAddr)> {
        match &self.entrance {
            Entrance::Turned(captured) => {
                let handover = captured.kernel.handover(&accepted.client)?;
                Some(crate::kernel::ends(&handover))
            }
            Entrance::Brought => None,
            Entrance::Dialled => Some((accepted.local, accepted.peer)),
        }
    }

    fn captured(&self) -> Option<&Captured> {
        match &self.entrance {
            Entrance::Turned(captured) => Some(captured),
            Entrance::Brought | Entrance::Dialled => None,
        }
    }

    /// Whether nothing new may pass, since the log could not tell of it (T-57). Audit refuses nothing for
    /// that.
    fn lacks_log(&self) -> bool {
        self.policy.current().needs_log() && self.log.fails() && !self.audit.is_on()
    }

    /// What is done for this workload where that was decided.
    fn to_be_done(&self, decision: Decision, origin: &Origin) -> Decision {
        match self.audit.is_on() {
            true => decide::audited(decision, origin.dst),
            false => decision,
        }
    }
}

/// Takes in what was accepted: serves it on a task of its own, or refuses it at once where there is
/// no room.
pub fn take_in(accepted: Accepted, site: &Site) {
    match site.room.admit(&accepted.client) {
        Ok(admitted) if site.lacks_log() => {
            let record = unserved(&accepted, site, Reason::LogLost, admitted.number);
            turn_away(accepted.client, record, Reason::LogLost.label().into(), site);
        }
        Ok(admitted) => drop(tokio::spawn(serve(accepted, admitted, site.clone()))),
        Err((id, full)) => {
            let record = unserved(&accepted, site, Reason::LimitReached, id);
            refuse_full(accepted.client, record, full, site);
        }
    }
}

/// The record of a connection for which nothing more is done than that.
fn unserved(accepted: &Accepted, site: &Site, reason: Reason, id: u64) -> Record {
    let (dst, src) = site.handover(accepted).unwrap_or((accepted.local, accepted.peer));
    refused(OriginalDst::new(dst).addr(), src, reason, id, site)
}

/// Serves one connection to its end.
async fn serve(accepted: Accepted, admitted: Admitted, site: Site) {
    let drain = site.drain.clone();
    let lasting = match intercept(accepted, &site, admitted.number) {
        // Boxed, so that a connection that lasts does not keep the room that opening it took.
        Ok(intercepted) => Box::pin(proxy(intercepted, site)).await,
        Err(accepted) => return refuse_unknown(accepted, &site, admitted.number),
    };
    if let Some(lasting) = lasting {
        lasting.last(&drain).await;
    }
}

/// Serves a connection that a node brought, to its end.
pub async fn serve_brought(intercepted: Intercepted, _admitted: Admitted, site: Site) {
    let drain = site.drain.clone();
    if site.lacks_log() {
        let Intercepted { client, origin } = intercepted;
        let mut record = refused(origin.dst.addr(), origin.src, Reason::LogLost, origin.id, &site);
        record.note_arrival(&origin);
        return turn_away(client, record, Reason::LogLost.label().into(), &site);
    }
    if let Some(lasting) = Box::pin(proxy(intercepted, site)).await {
        lasting.last(&drain).await;
    }
}

/// A limit is reached (T-49, T-50).
fn refuse_full(client: TcpStream, record: Record, full: Full, site: &Site) {
    let why = format!("{}{{{}}}", Reason::LimitReached.label(), full.label());
    turn_away(client, record, why.into(), site);
}

/// A reset, and one line for many of a destination.
fn turn_away(client: TcpStream, mut record: Record, why: Cow<'static, str>, site: &Site) {
    record.flags = vec![Flag::OM];
    if site.policy.current().enforcement == Enforcement::Strict {
        record.connection_termination_details = Some(why.clone());
    }
    let same = Same { dst: record.downstream_local_address, why, name: None };
    site.folds.fold(same, record, 1);
    block::reset(client);
}

/// Accepted to intercepted: what the kernel handed over. Nothing is ever taken from the client's
/// own bytes, and a miss is never a guess (T-11).
fn intercept(accepted: Accepted, site: &Site, id: u64) -> Result<Intercepted, Accepted> {
    let Some((dst, src)) = site.handover(&accepted) else { return Err(accepted) };
    if let Some(captured) = site.captured() {
        captured.tiers.fallbacks().count(dst);
    }
    let origin = Origin {
        id,
        dst: OriginalDst::new(dst),
        src,
        workload: Arc::clone(&site.workload),
        arrival: None,
        accepted: Instant::now(),
        accepted_wall: clock::wall(),
    };
    Ok(Intercepted { client: accepted.client, origin })
}

/// Somebody talks to the listener itself (CAP-11, T-11).
fn refuse_unknown(accepted: Accepted, site: &Site, id: u64) {
    let mut record = refused(accepted.local, accepted.peer, Reason::NoOriginalDst, id, site);
    if site.policy.current().enforcement == Enforcement::Strict {
        record.connection_termination_details = Some(Reason::NoOriginalDst.label().into());
    }
    site.log.write(record);
    block::reset(accepted.client);
}

/// The record of a connection that came no further than being accepted.
fn refused(dst: SocketAddr, src: SocketAddr, reason: Reason, id: u64, site: &Site) -> Record {
    let mut record = Record::new(clock::wall(), dst, src);
    record.upstream_cluster = Some(ClusterName::black_hole());
    record.flags = vec![Flag::UH];
    record.reason = reason;
    record.more.connection_id = Some(id);
    record.more.pod.clone_from(&site.workload.pod);
    record
}

/// Intercepted to decided, and done; what lasts is handed back.
async fn proxy(intercepted: Intercepted, mut site: Site) -> Option<Lasting> {
    let Intercepted { client, origin } = intercepted;
    let changes = site.policy.subscribe();
    let snapshot = site.policy.current();
    site.dialer.connect_timeout = snapshot.connect_timeout;
    site.dialer.enforcement = snapshot.enforcement;
    let by_address = decide::by_address(&snapshot.policy, &origin.flow());
    let mut place = None;
    if let ByAddress::Inspect { .. } = by_address {
        place = match site.room.undecided() {
            Ok(place) => Some(place),
            Err(full) => {
                let (dst, src) = (origin.dst.addr(), origin.src);
                let record = refused(dst, src, Reason::LimitReached, origin.id, &site);
                refuse_full(client, record, full, &site);
                return None;
            }
        };
    }
    let mut account = ConnectionAccount::open(site.log.clone(), &origin);
    let sniffed = match by_address {
        ByAddress::Decided(decision) => {
            let decision = settle(decision, &origin, &site).await;
            Sniffed::without_bytes(site.to_be_done(decision, &origin))
        }
        ByAddress::Inspect { unless_client_speaks } => {
            let otherwise = settle(unless_client_speaks, &origin, &site).await;
            let otherwise = site.to_be_done(otherwise, &origin);
            match sniff(&client, &origin, &site, &snapshot, otherwise, &mut place).await {
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
    drop(place);
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
    let ask = Ask { dst, src, host: None, hash, avoid: &[], plain: None };
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
    let sniffed = sniffed.served_or_relayed(&client, &origin, &site).await;
    let Sniffed { decision, bytes, began, hello, carried } = sniffed;
    let explain = snapshot.enforcement == Enforcement::Strict;
    account.decided(&decision, explain);
    if let Some(Captured { tiers, .. }) = site.captured() {
        account.address_of(tiers.name_of(origin.dst.addr().ip()), explain);
    }
    if let Some(Hello::Tls(hello)) = &hello {
        if let Some(name) = &hello.sni {
            account.server_name(name.to_string());
        }
        if hello.ech && explain {
            account.offered_ech();
        }
    }
    match decision.action {
        Action::Block(how) => {
            if let Some(arrival) = &origin.arrival {
                arrival.refusal.set(decision.reason);
            }
            match how {
                Block::Reset => block::reset(client),
                Block::Close | Block::Http { .. } => block::close(client).await,
            }
            // In istio each has its line (LOG-5).
            match explain {
                true => account.close_refused(&site.folds),
                false => account.close(0, 0),
            }
        }
        Action::Relay(_) | Action::Audited(_) => {
            if decision.reason == Reason::AllowAny
                && !matches!(hello, Some(Hello::Malformed(_)))
                && let Some(Captured { tiers, .. }) = site.captured()
            {
                tiers.spoke(snapshot, origin.dst.addr());
            }
            let destinations = decision.action.relays_to().unwrap_or_default();
            let mut destination = pick(destinations).clone();
            account.cluster(destination.cluster.clone());
            let mut carried = match carried {
                Some(carried) => carried,
                None => connect(&destination, &origin, &site).await,
            };
            if let Err(error) = &carried
                && let Some(reason) = refusal(error).filter(|_| site.audit.is_on())
            {
                account.audited(reason);
                destination = decide::as_dialled(origin.dst);
                account.cluster(destination.cluster.clone());
                carried = connect(&destination, &origin, &site).await;
            }
            match carried {
                Ok(carried) => {
                    let tls = || carried.tls.as_deref().map(TlsSession::fields);
                    match &carried.socket {
                        None => account.upstream(carried.upstream, carried.local, tls),
                        Some(path) => account.upstream_socket(Arc::clone(path), tls),
                    }
                    account.left(carried.left.as_deref());
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
            let Site { policy, log, folds, room, drain, audit, .. } = site;
            let context = HttpContext { carrier, policy, log, folds, room, drain, audit, began };
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

/// Why there is no connection, where that is not the destination's fault: what policy allows leads nowhere, or
/// to where nothing may go.
fn refusal(error: &CarryError) -> Option<Reason> {
    match error {
        CarryError::Dial(DialError::Special(_)) => Some(Reason::SpecialAddress),
        CarryError::Dial(
            DialError::NotVerified { .. } | DialError::NoEndpoint | DialError::Resolve(_),
        ) => Some(Reason::AddressNotVerified),
        _ => None,
    }
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
        CarryError::Door(door) => {
            account.upstream_failed(door.tried, vec![Flag::UF], Some(error.details()));
            account.shut(Arc::clone(&door.proxy));
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
