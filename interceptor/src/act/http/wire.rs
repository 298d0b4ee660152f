//! The client's side of an HTTP connection as the HTTP library sees it: only bytes that have one
//! reading, heads under a deadline, idle connections under a limit.

use std::future::Future;
use std::io;
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep, sleep_until};

use super::framing::{Framer, HEADERS_MAX, Violation};
use crate::admit::{Full, Room, Undecided};

/// From the first byte of a head to its last (T-37). Absolute: a byte now and then gains nothing.
pub(super) const HEAD_DEADLINE: Duration = Duration::from_secs(10);
/// How long a connection may stay without a request (Envoy's default).
pub(super) const IDLE_LIMIT: Duration = Duration::from_secs(3600);

/// How long a connection may be idle before what the library keeps for it is given back.
pub(super) const REST_AFTER: Duration = Duration::from_secs(1);

/// What the stream and the service of one connection tell each other.
#[derive(Debug, Default)]
pub(super) struct Shared {
    tunnel: AtomicBool,
    /// Exchanges under way.
    exchanges: AtomicUsize,
    /// Exchanges so far.
    begun: AtomicUsize,
    /// Nothing was read that the library does not have, and a head would come next.
    between: AtomicBool,
    /// The client does not take what it is given.
    blocked: AtomicBool,
    end: OnceLock<End>,
}

/// Why a connection ended outside of any exchange.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    /// A head broke the rules: answered by 400 or 431.
    Head(Violation),
    /// A body broke the rules.
    Body,
    /// A head was not complete in time.
    Deadline,
    /// There is no place for another connection whose head is being read.
    Crowded(Full),
    /// The client closed in the middle of a head.
    Incomplete,
    /// HTTP/2 frames that ask for nothing, too many of them.
    Flood,
}

/// One exchange under way; held until its answer is written.
#[derive(Debug)]
pub(super) struct Exchange(Arc<Shared>);

impl Shared {
    /// From now on bytes pass as they are: the upstream has said 101 (T-34).
    pub(super) fn start_tunnel(&self) {
        self.tunnel.store(true, Ordering::Release);
    }

    /// Marks an exchange as under way: the connection is not idle.
    pub(super) fn exchange(self: &Arc<Self>) -> Exchange {
        self.begun.fetch_add(1, Ordering::AcqRel);
        self.exchanges.fetch_add(1, Ordering::AcqRel);
        Exchange(Arc::clone(self))
    }

    /// Says why the stream ends. The first reason is the true one.
    pub(super) fn end_by(&self, end: End) {
        let _ = self.end.set(end);
    }

    /// Why the stream ended, if by our rules.
    pub(super) fn end(&self) -> Option<End> {
        self.end.get().copied()
    }

    /// Whether an exchange is under way.
    pub(super) fn busy(&self) -> bool {
        self.exchanges.load(Ordering::Acquire) > 0
    }

    /// Whether a request was ever complete on this connection.
    pub(super) fn spoken(&self) -> bool {
        self.begun.load(Ordering::Acquire) > 0
    }

    /// Returns once the connection has been idle for [`REST_AFTER`], after an exchange at least.
    pub(super) async fn idled(&self) {
        loop {
            let begun = self.begun.load(Ordering::Acquire);
            tokio::time::sleep(REST_AFTER).await;
            let is_idle = !self.busy()
                && self.between.load(Ordering::Acquire)
                && !self.blocked.load(Ordering::Acquire)
                && !self.tunnel.load(Ordering::Acquire);
            if is_idle && begun > 0 && begun == self.begun.load(Ordering::Acquire) {
                return;
            }
        }
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        self.0.exchanges.fetch_sub(1, Ordering::AcqRel);
    }
}

/// The stream.
pub(super) struct Wire<S> {
    inner: S,
    framer: Framer,
    held: BytesMut,
    /// How much of the front of `held` the library may have.
    released: usize,
    /// Nothing further is read: a refusal is on its way.
    stopped: bool,
    timer: Pin<Box<Sleep>>,
    /// What the timer is set for.
    waiting: Waiting,
    reading: Reading,
    /// Held while a head is read.
    place: Option<Undecided>,
    shared: Arc<Shared>,
}

/// What bounds the reading of heads, besides the deadline.
#[derive(Debug, Default)]
pub(super) struct Reading {
    /// Where a place is taken for the time.
    pub(super) room: Option<Arc<Room>>,
    /// When the first byte of the first head came, which was read before.
    pub(super) began: Option<Instant>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Waiting {
    Nothing,
    Head,
    Idle,
}

impl<S> Wire<S> {
    pub(super) fn new(inner: S, reading: Reading) -> (Self, Arc<Shared>) {
        let shared = Arc::new(Shared::default());
        let wire = Self {
            inner,
            framer: Framer::new(),
            held: BytesMut::new(),
            released: 0,
            stopped: false,
            timer: Box::pin(sleep_until(Instant::now())),
            waiting: Waiting::Nothing,
            reading,
            place: None,
            shared: Arc::clone(&shared),
        };
        (wire, shared)
    }

    /// Puts a head in place of the refused one that the library refuses with the right status. It
    /// keeps the refusal's place behind the answers to earlier requests.
    fn refuse_head(&mut self, violation: Violation) {
        self.shared.end_by(End::Head(violation));
        self.held.clear();
        match violation {
            Violation::Malformed(_) => self.held.extend_from_slice(b"\0\r\n\r\n"),
            Violation::TooLarge => {
                self.held.extend_from_slice(b"GET / HTTP/1.1\r\n");
                self.held.extend_from_slice(&b"a:\r\n".repeat(HEADERS_MAX + 1));
                self.held.extend_from_slice(b"\r\n");
            }
        }
        self.released = self.held.len();
        self.stopped = true;
    }

    /// Takes or gives back the place of a connection whose head is being read.
    fn take_place(&mut self) -> Result<(), Full> {
        self.place = match &self.reading.room {
            Some(room) if self.waiting == Waiting::Head => Some(room.undecided()?),
            _ => None,
        };
        Ok(())
    }

    /// Sets the timer to what is waited for now; true once it has run out, or where there is no
    /// place to wait in.
    fn poll_overdue(&mut self, cx: &mut Context<'_>) -> bool {
        let waiting = match (self.framer.in_head(), self.held.is_empty()) {
            (true, true) => Waiting::Idle,
            (true, false) => Waiting::Head,
            (false, _) => Waiting::Nothing,
        };
        if waiting != self.waiting {
            self.waiting = waiting;
            if let Err(full) = self.take_place() {
                self.shared.end_by(End::Crowded(full));
                return true;
            }
            self.arm();
        }
        while waiting != Waiting::Nothing && self.timer.as_mut().poll(cx).is_ready() {
            // A long answer is no idleness; nor is a next head that must wait for it.
            if !self.shared.busy() {
                return true;
            }
            self.arm();
        }
        false
    }

    fn arm(&mut self) {
        let until = match self.waiting {
            Waiting::Nothing => return,
            Waiting::Head => self.reading.began.take().unwrap_or_else(Instant::now) + HEAD_DEADLINE,
            Waiting::Idle => Instant::now() + IDLE_LIMIT,
        };
        self.timer.as_mut().reset(until);
    }
}

impl<S: AsyncRead + Unpin> Wire<S> {
    /// Waits, without the library and without a buffer, until there is something for it to read: the
    /// client's next bytes, its end, or ours by the idle limit.
    pub(super) async fn rest(&mut self) {
        self.held = BytesMut::new();
        std::future::poll_fn(|cx| {
            if self.poll_overdue(cx) {
                return Poll::Ready(());
            }
            // An end or an error comes again when the library reads.
            poll_more(&mut self.inner, cx, &mut self.held).map(|_| ())
        })
        .await;
    }

    fn poll_released(
        &mut self,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self;
        loop {
            if this.shared.tunnel.load(Ordering::Acquire) {
                if this.held.is_empty() {
                    return Pin::new(&mut this.inner).poll_read(cx, buf);
                }
                this.released = this.held.len();
            }
            if this.released > 0 {
                let n = this.released.min(buf.remaining());
                buf.put_slice(&this.held[..n]);
                this.held.advance(n);
                this.released -= n;
                return Poll::Ready(Ok(()));
            }
            if this.stopped || this.framer.ended() {
                return Poll::Pending;
            }
            if !this.held.is_empty() {
                let in_head = this.framer.in_head();
                match this.framer.admit(&this.held) {
                    Ok(0) => {}
                    Ok(n) => {
                        this.released = n;
                        this.reading.began = None;
                        continue;
                    }
                    Err(violation) if in_head => {
                        this.refuse_head(violation);
                        continue;
                    }
                    Err(_) => {
                        this.shared.end_by(End::Body);
                        this.stopped = true;
                        return Poll::Ready(Err(io::ErrorKind::InvalidData.into()));
                    }
                }
            }
            if this.poll_overdue(cx) {
                if this.waiting == Waiting::Head {
                    this.shared.end_by(End::Deadline);
                }
                this.stopped = true;
                return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
            }
            let before = this.held.len();
            ready!(poll_more(&mut this.inner, cx, &mut this.held))?;
            if this.held.len() == before {
                if this.framer.in_head() && before > 0 {
                    this.shared.end_by(End::Incomplete);
                }
                return Poll::Ready(Ok(()));
            }
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Wire<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let read = this.poll_released(cx, buf);
        let between = read.is_pending() && this.waiting == Waiting::Idle;
        this.shared.between.store(between, Ordering::Release);
        read
    }
}

/// Reads once and appends to `held`; as many bytes as before mean end of stream.
fn poll_more<S: AsyncRead + Unpin>(
    inner: &mut S,
    cx: &mut Context<'_>,
    held: &mut BytesMut,
) -> Poll<io::Result<()>> {
    // On the stack, so that an idle connection owns no buffer.
    let mut room = [MaybeUninit::uninit(); 16 * 1024];
    let mut room = ReadBuf::uninit(&mut room);
    let result = Pin::new(inner).poll_read(cx, &mut room);
    held.extend_from_slice(room.filled());
    result
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Wire<S> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = Pin::new(&mut this.inner).poll_write(cx, buf);
        this.shared.blocked.store(written.is_pending(), Ordering::Release);
        written
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = Pin::new(&mut this.inner).poll_write_vectored(cx, bufs);
        this.shared.blocked.store(written.is_pending(), Ordering::Release);
        written
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().inner).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().inner).poll_shutdown(cx)
    }
}
