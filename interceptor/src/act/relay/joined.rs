//! Two streams joined that are not both plain sockets: an upstream inside TLS or a tunnel, an
//! upgraded HTTP connection. Copies only, since there is nothing to splice.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf, copy_bidirectional_with_sizes};
use tokio::time::{Instant, sleep_until};

use super::{RelayEnd, overdue};

/// As the relay's copy buffers.
const BUFFER: usize = 64 * 1024;

/// Copies both ways until both sides have ended, one has failed, or a limit is reached. `received`
/// counts what comes from the client, `sent` what it is given.
pub(crate) async fn join<A, B>(
    client: A,
    upstream: B,
    limits: super::RelayLimits,
    received: &Arc<AtomicU64>,
    sent: &Arc<AtomicU64>,
) -> RelayEnd
where
    A: AsyncRead + AsyncWrite + Unpin,
    B: AsyncRead + AsyncWrite + Unpin,
{
    let moved = Arc::new(Moved { start: Instant::now(), at: AtomicU64::new(0) });
    let mut client =
        Counted { stream: client, read: Arc::clone(received), moved: Arc::clone(&moved) };
    let mut upstream =
        Counted { stream: upstream, read: Arc::clone(sent), moved: Arc::clone(&moved) };
    tokio::select! {
        copied = copy_bidirectional_with_sizes(&mut client, &mut upstream, BUFFER, BUFFER) => {
            match copied {
                Ok(_) => RelayEnd::Closed,
                // Which side it was does not show; both are reset.
                Err(_) => RelayEnd::UpstreamReset,
            }
        }
        () = moved.idled(limits.idle) => RelayEnd::Idle,
        () = overdue(limits.duration) => RelayEnd::TooLong,
    }
}

/// When a byte last moved, in milliseconds since `start`.
struct Moved {
    start: Instant,
    at: AtomicU64,
}

impl Moved {
    fn touch(&self) {
        let elapsed = u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.at.store(elapsed, Ordering::Relaxed);
    }

    async fn idled(&self, limit: Option<Duration>) {
        let Some(limit) = limit else { return std::future::pending().await };
        loop {
            let last = self.start + Duration::from_millis(self.at.load(Ordering::Relaxed));
            if last + limit <= Instant::now() {
                return;
            }
            sleep_until(last + limit).await;
        }
    }
}

/// A stream that counts what is read from it.
struct Counted<S> {
    stream: S,
    read: Arc<AtomicU64>,
    moved: Arc<Moved>,
}

impl<S: AsyncRead + Unpin> AsyncRead for Counted<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let result = ready!(Pin::new(&mut self.stream).poll_read(cx, buf));
        self.read.fetch_add((buf.filled().len() - before) as u64, Ordering::Relaxed);
        self.moved.touch();
        Poll::Ready(result)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Counted<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let result = ready!(Pin::new(&mut self.stream).poll_write(cx, buf));
        self.moved.touch();
        Poll::Ready(result)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
