//! Bytes both ways after an upgrade (LIS-20, T-34).

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};

use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf, copy_bidirectional_with_sizes};

use super::entry::Entry;

/// As design and measurements have it for relays.
const BUFFER: usize = 64 * 1024;

/// Relays until both sides ended, then writes the record (LOG-5).
pub(super) async fn run(client: OnUpgrade, upstream: OnUpgrade, entry: Entry) {
    let (Ok(client), Ok(upstream)) = tokio::join!(client, upstream) else {
        return;
    };
    let mut client = Counted::new(client, &entry.received);
    let mut upstream = Counted::new(upstream, &entry.sent);
    // A reset on either side ends the tunnel like a close; the bytes are counted either way.
    let _ = copy_bidirectional_with_sizes(&mut client, &mut upstream, BUFFER, BUFFER).await;
    entry.finish();
}

/// A stream that counts what is read from it.
struct Counted {
    stream: TokioIo<Upgraded>,
    read: Arc<AtomicU64>,
}

impl Counted {
    fn new(stream: Upgraded, read: &Arc<AtomicU64>) -> Self {
        Self { stream: TokioIo::new(stream), read: Arc::clone(read) }
    }
}

impl AsyncRead for Counted {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let result = ready!(Pin::new(&mut self.stream).poll_read(cx, buf));
        self.read.fetch_add((buf.filled().len() - before) as u64, Ordering::Relaxed);
        Poll::Ready(result)
    }
}

impl AsyncWrite for Counted {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
