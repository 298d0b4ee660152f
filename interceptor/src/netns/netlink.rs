//! Netlink in a namespace: asking, and hearing of changes.

use std::io;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::BoxStream;
use rtnetlink::{Handle, MulticastGroup, new_connection, new_multicast_connection};
use tokio::time::{Instant, timeout};

use super::NetNs;

/// Changes come in bursts (an interface up, its address, its routes): one of them is told once it pauses.
const SETTLE: Duration = Duration::from_millis(20);

/// A burst is no longer.
const BURST: Duration = Duration::from_millis(500);

/// Speaks netlink in a namespace. Must be called within a tokio runtime.
///
/// # Errors
/// No netlink socket could be made there.
pub(crate) fn open(netns: &NetNs) -> io::Result<Handle> {
    let (connection, handle, _) = netns.run(new_connection)??;
    tokio::spawn(connection);
    Ok(handle)
}

/// Changes in a namespace.
pub struct Changes(BoxStream<'static, ()>);

impl Changes {
    /// Of its interfaces: which there are, and what they are.
    ///
    /// # Errors
    /// As [`open`].
    pub fn of_links(netns: &NetNs) -> io::Result<Self> {
        Ok(Self::subscribe(netns, &[MulticastGroup::Link])?.1)
    }

    /// Subscribes before anything is read, so that no change is missed.
    pub(super) fn subscribe(
        netns: &NetNs,
        groups: &[MulticastGroup],
    ) -> io::Result<(Handle, Self)> {
        let (connection, handle, changes) = netns.run(|| new_multicast_connection(groups))??;
        tokio::spawn(connection);
        Ok((handle, Self(changes.map(drop).boxed())))
    }

    /// As one: of any of them.
    pub fn any(all: Vec<Self>) -> Self {
        Self(futures_util::stream::select_all(all.into_iter().map(|one| one.0)).boxed())
    }

    /// Waits for the next change, and for the burst that it belongs to, but not for ever: who changes
    /// something all the time is not unseen by that. False: netlink ended.
    pub async fn next(&mut self) -> bool {
        if self.0.next().await.is_none() {
            return false;
        }
        let until = Instant::now() + BURST;
        while Instant::now() < until
            && let Ok(Some(())) = timeout(SETTLE, self.0.next()).await
        {}
        true
    }
}
