//! A bound on what an HTTP/2 client may make us do for nothing (T-36).
//!
//! The library answers every PING and SETTINGS and reads over empty frames for as long as they come.
//! Only the heads of frames are read here, of both directions: what asks for no work of an upstream
//! costs, what the client is told earns. A client that acknowledges or cancels what it gets never
//! runs out; one that only keeps us busy does, and its connection ends.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Instant;

use super::wire::{End, Shared};

/// Frames that may come at once without a cause.
const BURST: u32 = 1_000;
/// And again, each second.
const PER_SECOND: u32 = 100;
/// What each frame of an answer is worth: clients send PINGs and two WINDOW_UPDATEs for one.
const PER_ANSWER: u32 = 10;

const PREFACE_LEN: u64 = 24;
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const END_STREAM: u8 = 1;

/// The client's stream; ends with an error when the client has overdrawn.
pub(super) struct Watched<S> {
    inner: S,
    asked: Frames,
    told: Frames,
    budget: Budget,
    shared: Arc<Shared>,
}

impl<S> Watched<S> {
    /// `inner` starts with the preface.
    pub(super) fn new(inner: S, shared: Arc<Shared>) -> Self {
        let asked = Frames { skip: PREFACE_LEN, ..Frames::default() };
        Self { inner, asked, told: Frames::default(), budget: Budget::new(), shared }
    }

    fn tell(&mut self, bytes: &[u8]) {
        self.told.pass(bytes, |frame| {
            if matches!(frame.kind, DATA | HEADERS) {
                self.budget.earn(PER_ANSWER);
            }
        });
    }
}

/// Frames that may be had for nothing: a bucket that fills by itself and by answers.
struct Budget {
    left: u32,
    filled: Instant,
}

impl Budget {
    fn new() -> Self {
        Self { left: BURST, filled: Instant::now() }
    }

    fn earn(&mut self, frames: u32) {
        self.left = self.left.saturating_add(frames).min(BURST);
    }

    /// False: there is nothing left.
    fn pay(&mut self) -> bool {
        if self.left == 0 {
            let seconds = self.filled.elapsed().as_secs();
            let earned = u32::try_from(seconds).unwrap_or(u32::MAX).saturating_mul(PER_SECOND);
            if earned > 0 {
                self.filled = Instant::now();
                self.earn(earned);
            }
        }
        let paid = self.left > 0;
        self.left = self.left.saturating_sub(1);
        paid
    }
}

/// What a frame's head says, as far as it matters here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Frame {
    length: u32,
    kind: u8,
    flags: u8,
}

impl Frame {
    /// Whether the frame brings a request on: its head, its body, its end. (How long a head may be
    /// in how many pieces, the library sees to.)
    fn is_useful(self) -> bool {
        match self.kind {
            HEADERS => true,
            DATA => self.length > 0 || self.flags & END_STREAM != 0,
            _ => false,
        }
    }
}

/// Finds the heads of frames in bytes that pass by in any pieces (RFC 9113 section 4.1).
#[derive(Default)]
struct Frames {
    /// Bytes before the next head.
    skip: u64,
    head: [u8; 9],
    have: usize,
}

impl Frames {
    fn pass(&mut self, mut bytes: &[u8], mut each: impl FnMut(Frame)) {
        while !bytes.is_empty() {
            if self.skip > 0 {
                let n = usize::try_from(self.skip).map_or(bytes.len(), |n| n.min(bytes.len()));
                self.skip -= n as u64;
                bytes = &bytes[n..];
                continue;
            }
            let n = (self.head.len() - self.have).min(bytes.len());
            self.head[self.have..self.have + n].copy_from_slice(&bytes[..n]);
            self.have += n;
            bytes = &bytes[n..];
            if self.have == self.head.len() {
                let [a, b, c, kind, flags, ..] = self.head;
                let length = u32::from_be_bytes([0, a, b, c]);
                (self.have, self.skip) = (0, length.into());
                each(Frame { length, kind, flags });
            }
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Watched<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buf.filled().len();
        ready!(Pin::new(&mut this.inner).poll_read(cx, buf))?;
        let mut solvent = true;
        this.asked.pass(&buf.filled()[before..], |frame| {
            solvent &= frame.is_useful() || this.budget.pay();
        });
        if !solvent {
            this.shared.end_by(End::Flood);
            buf.set_filled(before);
            return Poll::Ready(Err(io::Error::other("too many frames that ask for nothing")));
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Watched<S> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let n = ready!(Pin::new(&mut this.inner).poll_write(cx, buf))?;
        this.tell(&buf[..n]);
        Poll::Ready(Ok(n))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let n = ready!(Pin::new(&mut this.inner).poll_write_vectored(cx, bufs))?;
        let mut left = n;
        for buf in bufs {
            let part = left.min(buf.len());
            this.tell(&buf[..part]);
            left -= part;
        }
        Poll::Ready(Ok(n))
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

#[cfg(test)]
mod tests {
    use super::*;

    /// Whatever the pieces, the same frames.
    #[test]
    fn heads_in_any_pieces() {
        let stream = [
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".as_slice(),
            &[0, 0, 0, 4, 0, 0, 0, 0, 0],
            &[0, 0, 3, 0, 1, 0, 0, 0, 1, b'a', b'b', b'c'],
            &[0, 1, 0, 9, 4, 0, 0, 0, 3],
            &[7; 256],
            &[0, 0, 8, 6, 0, 0, 0, 0, 0],
        ]
        .concat();
        let expected = [(0, 4, 0), (3, 0, 1), (256, 9, 4), (8, 6, 0)]
            .map(|(length, kind, flags)| Frame { length, kind, flags });
        for piece in [1, 2, 7, 24, 33, stream.len()] {
            let mut frames = Frames { skip: PREFACE_LEN, ..Frames::default() };
            let mut seen = Vec::new();
            stream.chunks(piece).for_each(|bytes| frames.pass(bytes, |frame| seen.push(frame)));
            assert_eq!(seen, expected, "{piece}");
        }
    }

    #[test]
    fn what_brings_a_request_on_is_free() {
        let frame = |length, kind, flags| Frame { length, kind, flags }.is_useful();
        assert!(frame(0, HEADERS, 4) && frame(1, DATA, 0) && frame(0, DATA, END_STREAM));
        // Padding is no body, but it is paid for in flow control.
        assert!(!frame(0, DATA, 0));
        assert!((2..=10).all(|kind| !frame(8, kind, 1)));
    }

    #[tokio::test(start_paused = true)]
    async fn the_budget_fills_again() {
        let mut budget = Budget::new();
        let paid = |budget: &mut Budget| (0..5_000).take_while(|_| budget.pay()).count();
        assert_eq!(paid(&mut budget), BURST as usize);
        tokio::time::advance(std::time::Duration::from_secs(3)).await;
        assert_eq!(paid(&mut budget), 3 * PER_SECOND as usize);
        budget.earn(PER_ANSWER);
        assert_eq!(paid(&mut budget), PER_ANSWER as usize);
        tokio::time::advance(std::time::Duration::from_secs(1_000)).await;
        assert_eq!(paid(&mut budget), BURST as usize);
    }
}
