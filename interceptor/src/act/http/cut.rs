//! `onPolicyRemoval: cut`: a request that is under way is judged again whenever policy changes
//! (T-62).

use std::future::{Future, pending};
use std::pin::Pin;
use std::sync::Arc;

use http::request::Parts;
use tokio::sync::watch;

use crate::decide::Action;
use crate::decide::route::Destination;

use super::World;
use super::exchange::Session;

/// Resolves with the reason once policy no longer allows a request.
pub(super) type Withdrawal = Pin<Box<dyn Future<Output = &'static str> + Send>>;

/// Policy no longer allows what is being answered.
#[derive(Debug, thiserror::Error)]
#[error("policy does not allow it any more")]
pub(super) struct Removed;

/// Waits for a withdrawal that may never come.
pub(super) async fn withdrawn(withdrawal: &mut Option<Withdrawal>) -> &'static str {
    match withdrawal {
        Some(withdrawal) => withdrawal.await,
        None => pending().await,
    }
}

/// What the access log says of it.
pub(super) fn details(why: &str) -> String {
    format!("policy_removed{{{why}}}")
}

impl<W: World> Session<W> {
    /// Follows policy for a request that goes to `destination`. `changes` was subscribed to before
    /// the request was judged.
    pub(super) fn withdrawal(
        self: &Arc<Self>,
        mut changes: watch::Receiver<u64>,
        parts: &Parts,
        destination: &Destination,
    ) -> Withdrawal {
        let (session, parts) = (Arc::clone(self), parts.clone());
        let (upstream, cluster) = (destination.upstream.clone(), destination.cluster.clone());
        Box::pin(async move {
            loop {
                if changes.changed().await.is_err() {
                    return pending().await;
                }
                if session.world.changes().is_none() {
                    continue;
                }
                let (decision, _) = session.verdict(&parts);
                let Action::Forward(forward) = &decision.action else {
                    return decision.reason.label();
                };
                let mut destinations = forward.destinations.iter();
                if !destinations.any(|to| to.upstream == upstream || to.cluster == cluster) {
                    return "other_upstream";
                }
            }
        })
    }
}
