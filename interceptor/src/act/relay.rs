//! Bytes both ways, untouched: half-close, reset and back-pressure carried through.
//!
//! Each direction is a [`pump::pump`] of its own; what concerns both (who died, the idle limit,
//! the end) is here. Everything of one relay runs in one task, so that nothing happens between a
//! pump's failure and what follows from it.

mod joined;
mod pump;
mod splice;

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::Either;
use tokio::io::Interest;
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep_until, timeout};

use super::block;
use super::carrier::{Io, Stream};
use crate::decide::traffic::Limits;
use crate::sniff::prefixed::Prefixed;
use pump::{Broken, pump};

pub(super) use joined::join;

/// A relay on which nothing moves is ended after this long (Envoy's default for TCP, T-54).
pub(crate) const IDLE: Duration = Duration::from_secs(3600);

/// How long what a dead side has sent may still take to reach the other side, before that is reset.
const LAST_WORDS: Duration = Duration::from_millis(500);

/// How a relay ended and what it moved.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Relayed {
    /// Bytes taken from the client, the replayed prefix included (LOG-3 field 10).
    pub bytes_received: u64,
    /// Bytes written to the client (LOG-3 field 11).
    pub bytes_sent: u64,
    /// What ended it.
    pub end: RelayEnd,
}

/// What ended a relay.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum RelayEnd {
    /// Both sides said FIN.
    #[default]
    Closed,
    /// The client reset; the upstream was reset too.
    ClientReset,
    /// The upstream reset or died; the client was reset too.
    UpstreamReset,
    /// Nothing moved for the idle limit.
    Idle,
    /// It had lasted as long as it may.
    TooLong,
    /// It was cut; both sides were reset.
    Cut,
}

/// How long a relay may be idle, and last (DR-9). `None`: no bound.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RelayLimits {
    /// `tcp.idleTimeout`.
    pub idle: Option<Duration>,
    /// `tcp.maxConnectionDuration`.
    pub duration: Option<Duration>,
}

impl RelayLimits {
    /// Those of a cluster: an hour of idleness unless it says otherwise, zero for none at all.
    pub fn of(limits: &Limits) -> Self {
        let idle = match limits.tcp_idle_timeout {
            None => Some(IDLE),
            Some(limit) => (!limit.is_zero()).then_some(limit),
        };
        Self { idle, duration: limits.max_connection_duration }
    }
}

/// One direction's account, shared by its pump and the relay.
#[derive(Debug)]
struct Progress {
    /// Bytes taken from the source.
    read: AtomicU64,
    /// Bytes given to the sink.
    written: AtomicU64,
    /// Of these, bytes that went through the kernel's pipe.
    spliced: AtomicU64,
    /// Milliseconds from `start` to the last byte that moved.
    moved_at: AtomicU64,
    /// The source is dead: an end of file from it is no FIN and must not be passed on as one.
    source_dead: AtomicBool,
    start: Instant,
}

impl Progress {
    fn new(start: Instant) -> Self {
        Self {
            read: AtomicU64::new(0),
            written: AtomicU64::new(0),
            spliced: AtomicU64::new(0),
            moved_at: AtomicU64::new(0),
            source_dead: AtomicBool::new(false),
            start,
        }
    }

    fn took(&self, bytes: usize) {
        self.read.fetch_add(bytes as u64, Ordering::Relaxed);
        self.touch();
    }

    fn gave(&self, bytes: usize) {
        self.written.fetch_add(bytes as u64, Ordering::Relaxed);
        self.touch();
    }

    fn touch(&self) {
        let elapsed = u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.moved_at.store(elapsed, Ordering::Relaxed);
    }

    fn last_moved(&self) -> Instant {
        self.start + Duration::from_millis(self.moved_at.load(Ordering::Relaxed))
    }
}

/// Relays until both directions ended. Consumes both sockets.
///
/// A FIN is passed on once everything before it is; the other direction goes on (T-54). A reset of
/// either side resets the other one, after what the dead side had sent was passed on if the other
/// side takes it within half a second.
///
/// When `cut` resolves first, both sides are reset at once. It is pinned outside, since each `async fn`
/// that takes it whole has a place of its own for it.
pub fn relay<'a, Cut: Future<Output = ()>>(
    client: Prefixed<TcpStream>,
    upstream: Stream,
    limits: RelayLimits,
    cut: Pin<&'a mut Cut>,
) -> impl Future<Output = Relayed> + use<'a, Cut> {
    match upstream {
        Stream::Plain(upstream) => Either::Left(plain(client, upstream, limits, cut)),
        Stream::Wrapped(upstream) => Either::Right(wrapped(client, upstream, limits, cut)),
    }
}

/// With one end that is more than a socket.
async fn wrapped(
    mut client: Prefixed<TcpStream>,
    mut upstream: Box<dyn Io>,
    limits: RelayLimits,
    cut: Pin<&mut impl Future<Output = ()>>,
) -> Relayed {
    let (received, sent) = (Arc::default(), Arc::default());
    let end = tokio::select! {
        end = join(&mut client, &mut upstream, limits, &received, &sent) => end,
        () = cut => RelayEnd::Cut,
    };
    if matches!(end, RelayEnd::UpstreamReset | RelayEnd::Cut) {
        block::reset(client.into_parts().1);
    }
    Relayed {
        bytes_received: received.load(Ordering::Relaxed),
        bytes_sent: sent.load(Ordering::Relaxed),
        end,
    }
}

/// Between two sockets. Not an `async fn`, which would keep its arguments beside what is made of them.
fn plain<'a, Cut: Future<Output = ()>>(
    client: Prefixed<TcpStream>,
    upstream: TcpStream,
    limits: RelayLimits,
    cut: Pin<&'a mut Cut>,
) -> impl Future<Output = Relayed> + use<'a, Cut> {
    let (prefix, client) = client.into_parts();
    let start = Instant::now();
    async move {
        let (up, down) = (Progress::new(start), Progress::new(start));
        let end = tokio::select! {
            end = run(prefix, &client, &upstream, limits.idle, &up, &down) => end,
            () = overdue(limits.duration) => RelayEnd::TooLong,
            () = cut => RelayEnd::Cut,
        };
        if matches!(end, RelayEnd::ClientReset | RelayEnd::UpstreamReset | RelayEnd::Cut) {
            block::reset(client);
            block::reset(upstream);
        }
        tracing::trace!(?end, ?up, ?down, "relay ended");
        Relayed {
            bytes_received: up.read.load(Ordering::Relaxed),
            bytes_sent: down.written.load(Ordering::Relaxed),
            end,
        }
    }
}

async fn run(
    prefix: Bytes,
    client: &TcpStream,
    upstream: &TcpStream,
    idle: Option<Duration>,
    up: &Progress,
    down: &Progress,
) -> RelayEnd {
    let mut upward = std::pin::pin!(pump(prefix, client, upstream, up));
    let mut downward = std::pin::pin!(pump(Bytes::new(), upstream, client, down));
    let mut client_died = std::pin::pin!(died(client));
    let mut upstream_died = std::pin::pin!(died(upstream));
    let mut idled = std::pin::pin!(idled(idle, up, down));
    let (mut up_open, mut down_open) = (true, true);
    let end = loop {
        // Pumps first: a pump that sees a reset has passed on all that came before it.
        tokio::select! {
            biased;
            ended = &mut upward, if up_open => {
                up_open = false;
                match ended {
                    Ok(()) => {}
                    Err(Broken::Source) => break RelayEnd::ClientReset,
                    Err(Broken::Sink) => break RelayEnd::UpstreamReset,
                }
            }
            ended = &mut downward, if down_open => {
                down_open = false;
                match ended {
                    Ok(()) => {}
                    Err(Broken::Source) => break RelayEnd::UpstreamReset,
                    Err(Broken::Sink) => break RelayEnd::ClientReset,
                }
            }
            () = &mut client_died => break RelayEnd::ClientReset,
            () = &mut upstream_died => break RelayEnd::UpstreamReset,
            () = &mut idled => return RelayEnd::Idle,
        }
        if !up_open && !down_open {
            return RelayEnd::Closed;
        }
    };
    // What the dead side sent before it died is still in its receive queue.
    match end {
        RelayEnd::ClientReset if up_open => {
            up.source_dead.store(true, Ordering::Relaxed);
            let _ = timeout(LAST_WORDS, upward).await;
        }
        RelayEnd::UpstreamReset if down_open => {
            down.source_dead.store(true, Ordering::Relaxed);
            let _ = timeout(LAST_WORDS, downward).await;
        }
        _ => {}
    }
    end
}

/// Returns when `stream` has an error pending, whoever else is reading or writing it: a reset is
/// noticed while its direction is blocked by the other side, and after its FIN.
async fn died(stream: &TcpStream) {
    // An error here means that the runtime is shutting down.
    let _ = stream.ready(Interest::ERROR).await;
}

/// Returns when `limit` has passed.
async fn overdue(limit: Option<Duration>) {
    match limit {
        Some(limit) => tokio::time::sleep(limit).await,
        None => std::future::pending().await,
    }
}

/// Returns when neither direction has moved a byte for `limit`.
async fn idled(limit: Option<Duration>, up: &Progress, down: &Progress) {
    let Some(limit) = limit else { return std::future::pending().await };
    loop {
        let due = up.last_moved().max(down.last_moved()) + limit;
        if due <= Instant::now() {
            return;
        }
        sleep_until(due).await;
    }
}

#[cfg(test)]
mod tests;
