//! `onPolicyRemoval: cut`: an established connection is judged again whenever policy changes, by the
//! same pure functions and with all that is known of it (T-62).

use std::future::pending;
use std::net::SocketAddr;

use tokio::sync::watch;

use super::lasting::Established;
use super::{Site, settle};
use crate::decide::{self, Action, ByAddress, Decision, Place, Policy, Upstream};
use crate::policy::OnRemoval;
use crate::sniff::Hello;

/// Returns why, once policy cuts and no longer allows the connection. `changes` was subscribed to
/// before the connection was judged, so that no change is missed in between.
pub(super) async fn withdrawn(
    site: &Site,
    connection: &Established,
    mut changes: watch::Receiver<u64>,
) -> &'static str {
    loop {
        if changes.changed().await.is_err() {
            return pending().await;
        }
        let snapshot = site.policy.current();
        if snapshot.on_removal == OnRemoval::Keep {
            continue;
        }
        if site.audit.is_on() {
            continue;
        }
        // Boxed: what waits for a change, mostly in vain, is to stay small.
        if let Some(why) = Box::pin(refusal(&snapshot.policy, connection, site)).await {
            return why;
        }
    }
}

/// Why a policy does not allow the connection, if it does not.
async fn refusal(policy: &Policy, connection: &Established, site: &Site) -> Option<&'static str> {
    let decision = judge(policy, connection, site).await;
    match &decision.action {
        Action::Block(_) => Some(decision.reason.label()),
        Action::Relay(_) => {
            (!leads_to(&decision, connection, site).await).then_some("other_upstream")
        }
        // As opaque bytes it would not be relayed any more.
        _ => Some("other_protocol"),
    }
}

/// The verdict if the connection came now.
async fn judge(policy: &Policy, connection: &Established, site: &Site) -> Decision {
    let flow = connection.origin.flow();
    let decision = match decide::by_address(policy, &flow) {
        ByAddress::Decided(decision) => decision,
        ByAddress::Inspect { .. } => {
            // Bytes that nobody looked at show no name.
            let hello = connection.hello.as_ref().filter(|hello| **hello != Hello::Closed);
            decide::by_hello(policy, &flow, hello.unwrap_or(&Hello::Opaque))
        }
    };
    settle(decision, &connection.origin, site).await
}

/// Whether one of the destinations is where the connection leads already.
async fn leads_to(decision: &Decision, connection: &Established, site: &Site) -> bool {
    let Action::Relay(destinations) = &decision.action else { return false };
    let (peer, dialled) = (connection.peer, connection.origin.dst.addr().ip());
    for destination in destinations {
        let upstream = &destination.upstream;
        // Through a proxy, the peer says nothing of where it leads.
        let (now, then) = (&destination.door, &connection.destination.door);
        if now != then {
            continue;
        }
        if now.via().is_some() {
            return true;
        }
        let names = match upstream {
            same if *same == connection.destination.upstream => return true,
            Upstream::Static(endpoints) => {
                if endpoints.iter().any(|endpoint| endpoint.target == peer) {
                    return true;
                }
                continue;
            }
            Upstream::OriginalDst { port, name } => {
                if *port == peer.port() && dialled.to_canonical() == peer.ip().to_canonical() {
                    return true;
                }
                name.iter().map(|name| (name, *port)).collect()
            }
            Upstream::VerifiedOriginalDst { host, port } => vec![(host, *port)],
            Upstream::Dns { endpoints, .. } => {
                let mut names = Vec::new();
                for (place, port) in endpoints.iter().map(|endpoint| &endpoint.target) {
                    match place {
                        Place::Ip(ip) if SocketAddr::new(*ip, *port) == peer => return true,
                        Place::Ip(_) => {}
                        Place::Name(name) => names.push((name, *port)),
                    }
                }
                names
            }
            Upstream::Unix(_) | Upstream::None | Upstream::NoCluster => continue,
        };
        for (name, _) in names.into_iter().filter(|(_, port)| *port == peer.port()) {
            let addresses = site.dialer.resolver.lookup(name).await;
            if addresses.is_ok_and(|addresses| addresses.contains(&peer.ip().to_canonical())) {
                return true;
            }
        }
    }
    false
}
