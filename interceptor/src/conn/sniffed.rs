//! What the client says first, where the verdict needs it, and the verdict on it.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::net::TcpStream;
use tokio::time::Instant;

use super::{Site, connect, settle};
use crate::act::carrier::{Carried, CarryError};
use crate::act::{http, pick, relay};
use crate::admit::Undecided;
use crate::decide::route::Destination;
use crate::decide::{self, Action, Block, Decision, Upstream};
use crate::origin::Origin;
use crate::policy::{Enforcement, Snapshot};
use crate::sniff::{Hello, Sniffer};

/// How long a client may take to speak first before the upstream is dialled all the same, where
/// every verdict without its bytes is "pass": a server that speaks first is not kept waiting, and
/// a client that does is mostly not dialled for twice.
const SPEAK_FIRST: Duration = Duration::from_millis(10);

/// A decided connection, with what was read and opened on the way.
pub(super) struct Sniffed {
    pub(super) decision: Decision,
    pub(super) bytes: Bytes,
    /// When the first of them came.
    pub(super) began: Option<Instant>,
    /// What the client began with, where that was waited for.
    pub(super) hello: Option<Hello>,
    /// The connection to the decision's one destination, if it was made already.
    pub(super) carried: Option<Result<Carried, CarryError>>,
}

impl Sniffed {
    pub(super) fn without_bytes(decision: Decision) -> Self {
        Self { decision, bytes: Bytes::new(), began: None, hello: None, carried: None }
    }

    /// Under audit: HTTP whose first request would be refused unread, since it cannot be served, is relayed
    /// as bytes.
    pub(super) async fn served_or_relayed(
        self,
        client: &TcpStream,
        origin: &Origin,
        site: &Site,
    ) -> Self {
        let is_http1 = self.decision.action == Action::Http && self.hello == Some(Hello::Http1);
        if !is_http1 || !site.audit.is_on() {
            return self;
        }
        // Where there is no place for it, it is refused as one that is served.
        let Ok(_place) = site.room.undecided() else { return self };
        let mut bytes = BytesMut::from(self.bytes);
        let reason = http::unservable(client, &mut bytes).await;
        let decision = match reason {
            None => self.decision,
            Some(reason) => {
                let action = Action::Block(Block::Close);
                decide::audited(Decision { action, reason, ..self.decision }, origin.dst)
            }
        };
        Self { decision, bytes: bytes.freeze(), ..self }
    }
}

/// Reads what the verdict needs. Where the answer without any byte is "pass", the upstream is
/// dialled meanwhile and may speak first; else nothing leaves before the verdict (R2). No time that
/// a client lets pass makes its bytes pass unjudged: only a server's own do.
pub(super) async fn sniff(
    client: &TcpStream,
    origin: &Origin,
    site: &Site,
    snapshot: &Snapshot,
    otherwise: Decision,
    undecided: &mut Option<Undecided>,
) -> std::io::Result<Sniffed> {
    let mut sniffer = Sniffer::default();
    let deadline = snapshot.sniff_timeout.map(|limit| origin.accepted + limit);
    // Istio waits for the client wherever it inspects, server-first protocols or not (LIS-21). Audit keeps
    // nobody waiting for a verdict that refuses nothing.
    let patient = snapshot.enforcement == Enforcement::Istio && !site.audit.is_on();
    let (Some(destinations), false) = (otherwise.action.relays_to(), patient) else {
        let hello = sniffer.read_from(client, deadline).await?;
        return Ok(decide_hello(sniffer, hello, origin, site, snapshot, otherwise).await);
    };
    let destination = pick(destinations).clone();
    let first = sniffer.read_from(client, Some(origin.accepted + SPEAK_FIRST)).await?;
    if first != Hello::Silent {
        return Ok(decide_hello(sniffer, first, origin, site, snapshot, otherwise).await);
    }
    let otherwise = match otherwise.action {
        Action::Relay(_) => {
            Decision { action: Action::Relay(vec![destination.clone()]), ..otherwise }
        }
        _ => otherwise,
    };
    // No verdict on the connection hangs on these bytes any more, only names and routes do: they
    // may take their time, and nobody's place.
    *undecided = None;
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
    let relays = otherwise.action.relays_to().is_some();
    let decision = match &hello {
        Hello::Silent => otherwise,
        // Where no byte could refuse, a client that half-closes at once may still be answered.
        Hello::Closed if relays && snapshot.enforcement == Enforcement::Strict => otherwise,
        hello => {
            let decision = decide::by_hello(&snapshot.policy, &origin.flow(), hello);
            site.to_be_done(settle(decision, origin, site).await, origin)
        }
    };
    let began = sniffer.began();
    Sniffed { decision, bytes: sniffer.into_bytes(), began, hello: Some(hello), carried: None }
}

/// Whether the decision relays to where a connection to `to` leads, in the same way. A name that was
/// noticed in passing does not change the place.
fn same_place(decision: &Decision, to: &Destination) -> bool {
    let Some([only]) = decision.action.relays_to() else { return false };
    let same = match (&only.upstream, &to.upstream) {
        (Upstream::OriginalDst { port: a, .. }, Upstream::OriginalDst { port: b, .. }) => a == b,
        (a, b) => a == b,
    };
    same && only.door == to.door && only.traffic == to.traffic
}
