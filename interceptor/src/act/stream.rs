//! What carries a connection's bytes upstream.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use crate::sniff::prefixed::Prefixed;

/// A stream that is no plain socket.
pub trait Io: AsyncRead + AsyncWrite + Send + Unpin {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin> Io for S {}

/// What carries the bytes.
pub enum Stream {
    /// The socket itself.
    Plain(TcpStream),
    /// TLS or a tunnel on it.
    Wrapped(Box<dyn Io>),
}

impl Stream {
    /// Returns when the other side has said something, or has ended; nothing of it is lost. Can be
    /// dropped and called again.
    pub async fn speaks(&mut self) {
        let stream = match self {
            Self::Plain(socket) => {
                // An error is for whoever reads.
                let _ = socket.readable().await;
                return;
            }
            Self::Wrapped(stream) => stream,
        };
        let mut words = BytesMut::with_capacity(FIRST_WORDS);
        // An error or the end will be met again by whoever reads on.
        let _ = stream.read_buf(&mut words).await;
        let nothing: Box<dyn Io> = Box::new(tokio::io::empty());
        let inner = std::mem::replace(stream, nothing);
        *stream = Box::new(Prefixed::new(words.freeze(), inner));
    }
}

impl Stream {
    /// Ready when the other side has said something, or has ended. A byte that it said is lost.
    pub fn poll_speaks(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let mut byte = [0];
        let mut byte = ReadBuf::new(&mut byte);
        match self {
            Self::Plain(socket) => Pin::new(socket).poll_read(cx, &mut byte).map(|_| ()),
            Self::Wrapped(stream) => Pin::new(stream).poll_read(cx, &mut byte).map(|_| ()),
        }
    }
}

/// How much of a wrapped stream's first words is read ahead.
const FIRST_WORDS: usize = 4096;

impl Stream {
    fn parts(&mut self) -> Pin<&mut dyn Io> {
        match self {
            Self::Plain(socket) => Pin::new(socket),
            Self::Wrapped(stream) => Pin::new(stream.as_mut()),
        }
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.get_mut().parts().poll_read(cx, buf)
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.get_mut().parts().poll_write(cx, buf)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.get_mut().parts().poll_write_vectored(cx, bufs)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.get_mut().parts().poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.get_mut().parts().poll_shutdown(cx)
    }
}
