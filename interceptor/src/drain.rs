//! The end of a daemon that another one has taken over from: no connection is new to it any more, and
//! those that it has go on for a while.

use tokio::sync::watch;

/// Where a daemon is on its way out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Phase {
    Serving,
    Draining,
    Over,
}

/// Says when connections are to end.
#[derive(Debug)]
pub struct Drainer(watch::Sender<Phase>);

/// What a connection knows of that.
#[derive(Debug, Clone)]
pub struct Drain(watch::Receiver<Phase>);

impl Default for Drainer {
    fn default() -> Self {
        Self(watch::Sender::new(Phase::Serving))
    }
}

impl Drainer {
    /// For connections.
    pub fn subscribe(&self) -> Drain {
        Drain(self.0.subscribe())
    }

    /// Connections are to end where their protocol has a place for it.
    pub fn begin(&self) {
        self.0.send_replace(Phase::Draining);
    }

    /// Connections end now.
    pub fn end(&self) {
        self.0.send_replace(Phase::Over);
    }
}

impl Drain {
    /// Whether connections are to end.
    pub fn has_begun(&self) -> bool {
        *self.0.borrow() >= Phase::Draining
    }

    /// Returns once they are to end.
    pub async fn begun(&self) {
        self.reached(Phase::Draining).await;
    }

    /// Returns once they end.
    pub async fn over(&self) {
        self.reached(Phase::Over).await;
    }

    async fn reached(&self, phase: Phase) {
        // Without a drainer nothing ends for this reason.
        if self.0.clone().wait_for(|now| *now >= phase).await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    #[tokio::test]
    async fn first_connections_are_asked_then_they_end() {
        let drainer = Drainer::default();
        let drain = drainer.subscribe();
        assert!(!drain.has_begun() && drain.begun().now_or_never().is_none());
        drainer.begin();
        assert!(drain.has_begun() && drain.over().now_or_never().is_none());
        drain.begun().await;
        drainer.end();
        drain.over().await;
        let forgotten = Drainer::default().subscribe();
        assert!(forgotten.begun().now_or_never().is_none());
    }
}
