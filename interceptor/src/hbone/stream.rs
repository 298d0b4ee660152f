//! One CONNECT stream as bytes both ways: back-pressure, half-close and reset are the stream's own.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use h2::{RecvStream, SendStream};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::{FRAME_MAX, Refusal};

/// The bytes of one stream. Dropped before both directions have ended, it resets the stream: what was
/// cut short must not look whole.
pub struct Tunnel<Held = ()> {
    send: SendStream<Bytes>,
    receive: RecvStream,
    /// Received, and not read yet. Its place in the window is given back as it is read.
    unread: Bytes,
    said_end: bool,
    heard_end: bool,
    /// Why its policy refused it, said or heard.
    refusal: Refusal,
    /// Given back with the stream.
    _held: Held,
}

impl<Held> Tunnel<Held> {
    /// Both halves of a stream whose CONNECT was answered with 200.
    pub fn new(send: SendStream<Bytes>, receive: RecvStream, held: Held) -> Self {
        let unread = Bytes::new();
        let refusal = Refusal::default();
        Self { send, receive, unread, said_end: false, heard_end: false, refusal, _held: held }
    }

    /// The same with a place for why policy refused it: what is set there is said as the stream ends, and
    /// what the other end says is set there.
    #[must_use]
    pub fn refused_by(mut self, refusal: Refusal) -> Self {
        self.refusal = refusal;
        self
    }
}

/// As a TCP connection would have failed.
fn broken(error: h2::Error, refusal: &Refusal) -> io::Error {
    refusal.hear(error.reason());
    match error.get_io() {
        Some(io) => io::Error::new(io.kind(), error),
        None => io::Error::new(io::ErrorKind::ConnectionReset, error),
    }
}

impl<Held: Unpin> AsyncRead for Tunnel<Held> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        while this.unread.is_empty() {
            if this.heard_end {
                return Poll::Ready(Ok(()));
            }
            match ready!(this.receive.poll_data(cx)) {
                Some(Ok(bytes)) => this.unread = bytes,
                Some(Err(error)) => return Poll::Ready(Err(broken(error, &this.refusal))),
                None => this.heard_end = true,
            }
        }
        let taken = this.unread.len().min(buf.remaining());
        buf.put_slice(&this.unread[..taken]);
        this.unread.advance(taken);
        // Fails only for more than was received.
        let _ = this.receive.flow_control().release_capacity(taken);
        Poll::Ready(Ok(()))
    }
}

impl<Held: Unpin> AsyncWrite for Tunnel<Held> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if buf.is_empty() {
            return Poll::Ready(Ok(0));
        }
        let wanted = buf.len().min(FRAME_MAX as usize);
        this.send.reserve_capacity(wanted);
        loop {
            // What was given already is told of once only.
            let given = match this.send.capacity() {
                0 => match ready!(this.send.poll_capacity(cx)) {
                    Some(Ok(given)) => given,
                    Some(Err(error)) => return Poll::Ready(Err(broken(error, &this.refusal))),
                    None => return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
                },
                given => given,
            };
            let given = given.min(wanted);
            if given > 0 {
                let bytes = Bytes::copy_from_slice(&buf[..given]);
                let sent = this.send.send_data(bytes, false);
                sent.map_err(|error| broken(error, &this.refusal))?;
                return Poll::Ready(Ok(given));
            }
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        // The connection's own task sends.
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if !this.said_end && this.refusal.reason().is_some() {
            // An end would say nothing.
            this.send.send_reset(this.refusal.code());
            this.said_end = true;
        }
        if !this.said_end {
            let sent = this.send.send_data(Bytes::new(), true);
            sent.map_err(|error| broken(error, &this.refusal))?;
            this.said_end = true;
        }
        Poll::Ready(Ok(()))
    }
}

impl<Held> Drop for Tunnel<Held> {
    fn drop(&mut self) {
        if !(self.said_end && self.heard_end) {
            self.send.send_reset(self.refusal.code());
        }
    }
}

#[cfg(test)]
mod tests {
    use http::{Request, Response};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::super::{CONNECTION_WINDOW, STREAM_WINDOW, STREAMS_MAX};
    use super::*;

    /// `count` streams of one connection, both ends of each.
    async fn streams(count: usize) -> Vec<(Tunnel, Tunnel)> {
        let (near, far) = tokio::io::duplex(64 * 1024);
        let (theirs, mut accepted) = tokio::sync::mpsc::unbounded_channel();
        tokio::spawn(async move {
            let mut server = h2::server::Builder::new();
            server
                .initial_window_size(STREAM_WINDOW)
                .initial_connection_window_size(CONNECTION_WINDOW)
                .max_concurrent_streams(STREAMS_MAX);
            let mut server = server.handshake::<_, Bytes>(far).await.expect("a connection");
            while let Some(Ok((request, mut respond))) = server.accept().await {
                let send = respond.send_response(Response::new(()), false).expect("answered");
                let _ = theirs.send(Tunnel::new(send, request.into_body(), ()));
            }
        });
        let (mut sender, connection) =
            h2::client::handshake::<_>(near).await.expect("a connection");
        tokio::spawn(connection);
        let mut both = Vec::new();
        for _ in 0..count {
            let request = Request::connect("a.test:443").body(()).expect("a request");
            sender = sender.ready().await.expect("ready");
            let (answer, send) = sender.send_request(request, false).expect("sent");
            let receive = answer.await.expect("an answer").into_body();
            let other = accepted.recv().await.expect("accepted");
            both.push((Tunnel::new(send, receive, ()), other));
        }
        both
    }

    #[tokio::test]
    async fn half_close_is_passed_on_and_what_is_cut_short_is_no_end() {
        let mut both = streams(2).await;
        let (mut near, mut far) = both.pop().expect("a stream");
        near.write_all(b"ask").await.expect("written");
        near.shutdown().await.expect("ended");
        let mut heard = Vec::new();
        far.read_to_end(&mut heard).await.expect("whole");
        assert_eq!(heard, b"ask");
        far.write_all(b"answer").await.expect("written");
        far.shutdown().await.expect("ended");
        let mut heard = Vec::new();
        near.read_to_end(&mut heard).await.expect("whole");
        assert_eq!(heard, b"answer");

        let (mut near, mut far) = both.pop().expect("a stream");
        near.write_all(b"ask").await.expect("written");
        let mut some = [0; 3];
        far.read_exact(&mut some).await.expect("what came before");
        drop(near);
        let error = far.read(&mut some).await.expect_err("no end");
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
        assert!(far.write_all(&[0; 4096]).await.is_err());
    }

    /// A reader that stands still stops its own stream after one window, and no other.
    #[tokio::test]
    async fn one_that_stands_still_stops_nobody_else() {
        let mut both = streams(4).await;
        let (mut near, mut far) = both.pop().expect("a stream");
        let mut stalled = Vec::new();
        for (mut near, far) in both {
            let filling = tokio::spawn(async move {
                let mut written = 0;
                while near.write(&[7; 8192]).await.map(|n| written += n).is_ok() {
                    if written > 2 * STREAM_WINDOW as usize {
                        return;
                    }
                }
            });
            stalled.push((filling, far));
        }
        let moving = tokio::spawn(async move {
            for _ in 0..64 {
                near.write_all(&[1; 64 * 1024]).await.expect("written");
            }
            near.shutdown().await.expect("ended");
            near
        });
        let mut heard = Vec::new();
        far.read_to_end(&mut heard).await.expect("whole");
        assert_eq!(heard.len(), 64 * 64 * 1024);
        drop(moving.await.expect("no panic"));
        for (filling, _) in &stalled {
            assert!(!filling.is_finished(), "more than a window went to who does not read");
        }
    }
}
