//! What the first bytes of a connection are: pure readers over a growing prefix, and one loop that
//! feeds them under a bound and a deadline.
//!
//! A reader never guesses. It says [`Found`](Scan::Found), [`NeedMore`](Scan::NeedMore) or
//! [`NotMine`](Scan::NotMine), and what it cannot read as one thing only is
//! [`Malformed`](Scan::Malformed), which refuses (threats R1, R4).

pub mod http;
pub mod prefixed;
pub mod tls;

use std::{fmt, io};

use bytes::{BufMut, Bytes, BytesMut};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout_at};

/// Answer of a reader that was shown the bytes so far.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Scan<T> {
    /// The prefix holds the whole thing.
    Found(T),
    /// So far it fits; more bytes decide.
    NeedMore,
    /// The bytes are some other protocol.
    NotMine,
    /// The bytes claim to be this protocol and break its rules.
    Malformed(Malformed),
}

/// Why bytes that claimed a protocol were not readable as it. Shown in logs, so: short and stable.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Malformed(pub &'static str);

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

/// What a connection turned out to start with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Hello {
    /// A complete TLS ClientHello.
    Tls(ClientHello),
    /// A plaintext HTTP/1.x request line (LIS-24); its requests are judged one by one.
    Http1,
    /// The HTTP/2 connection preface in plaintext (LIS-19).
    Http2,
    /// Bytes that are neither TLS nor HTTP.
    Opaque,
    /// The client sent nothing, or not enough, before the deadline (LIS-21, T-28).
    Silent,
    /// The client closed its side before it had sent enough to tell.
    Closed,
    /// Bytes that claim to be TLS or HTTP and are not readable as such (T-19 to T-23).
    Malformed(Malformed),
}

/// The parts of a ClientHello that decisions and logs read.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ClientHello {
    /// The one host name of `server_name` (RFC 6066), validated and in normal form: lower case,
    /// without a trailing dot.
    pub sni: Option<crate::decide::host::HostName>,
    /// The client wrote that name with a trailing dot, which no valid TLS has (HTTP-5).
    pub dotted: bool,
    /// Protocols offered by ALPN (RFC 7301), in order.
    pub alpn: Vec<Vec<u8>>,
    /// An encrypted_client_hello extension is present: `sni` is the outer name (T-26).
    pub ech: bool,
}

/// Least room offered to one read.
const READ_ROOM: usize = 4 * 1024;

/// Collects a connection's first bytes and reads them incrementally.
///
/// Holds at most [`tls::MAX_BYTES`] of what it reads itself, and as much again while it joins a
/// fragmented ClientHello.
#[derive(Debug, Default)]
pub struct Sniffer {
    bytes: BytesMut,
    tls: tls::Reader,
    /// What the connection starts with, once that is certain. It never changes.
    hello: Option<Hello>,
    began: Option<Instant>,
}

impl Sniffer {
    /// Takes more bytes and says what the connection starts with as soon as that is certain. Says
    /// the same again when pushed further; those bytes are kept but not judged.
    pub fn push(&mut self, more: &[u8]) -> Option<Hello> {
        let judged = self.bytes.len();
        self.bytes.extend_from_slice(more);
        self.judge(judged);
        self.hello.clone()
    }

    /// Whether no byte was taken yet.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// How many bytes were taken.
    pub fn bytes_len(&self) -> usize {
        self.bytes.len()
    }

    /// When the first byte was read from a socket.
    pub fn began(&self) -> Option<Instant> {
        self.began
    }

    /// Every byte taken so far, to be replayed.
    pub fn into_bytes(self) -> Bytes {
        self.bytes.freeze()
    }

    /// Reads from `client` until the hello is certain. Cancel-safe: nothing read is lost when the
    /// future is dropped, so it can be raced and called again. Returns [`Hello::Closed`] at end of
    /// stream and [`Hello::Silent`] at `deadline` (`None` waits for ever).
    ///
    /// # Errors
    /// The socket's own, for instance a reset.
    pub async fn read_from(
        &mut self,
        client: &TcpStream,
        deadline: Option<Instant>,
    ) -> io::Result<Hello> {
        let certain = self.read_until_certain(client);
        match deadline {
            None => certain.await,
            Some(deadline) => timeout_at(deadline, certain).await.unwrap_or(Ok(Hello::Silent)),
        }
    }

    async fn read_until_certain(&mut self, client: &TcpStream) -> io::Result<Hello> {
        loop {
            if let Some(hello) = &self.hello {
                return Ok(hello.clone());
            }
            client.readable().await?;
            // From here to the next turn nothing awaits, so what was read cannot be lost.
            let judged = self.bytes.len();
            self.bytes.reserve(READ_ROOM);
            let room = tls::MAX_BYTES.saturating_sub(judged);
            match client.try_read_buf(&mut (&mut self.bytes).limit(room)) {
                Ok(0) => return Ok(Hello::Closed),
                Ok(_) => {
                    self.began.get_or_insert_with(Instant::now);
                    self.judge(judged);
                }
                Err(e)
                    if matches!(
                        e.kind(),
                        io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
                    ) => {}
                Err(e) => return Err(e),
            }
        }
    }

    /// Shows the bytes from `judged` on to the readers, unless all is said.
    fn judge(&mut self, judged: usize) {
        if self.hello.is_some() {
            return;
        }
        self.hello = match self.tls.push(&self.bytes[judged..]) {
            // One byte 0x16 and more: it cannot become HTTP.
            Scan::NeedMore => None,
            Scan::Found(hello) => Some(Hello::Tls(hello)),
            Scan::Malformed(malformed) => Some(Hello::Malformed(malformed)),
            Scan::NotMine => match http::scan(&self.bytes) {
                Scan::NeedMore => None,
                Scan::Found(http::Start::Http1) => Some(Hello::Http1),
                Scan::Found(http::Start::Http2) => Some(Hello::Http2),
                Scan::Malformed(malformed) => Some(Hello::Malformed(malformed)),
                Scan::NotMine => Some(Hello::Opaque),
            },
        };
    }
}

#[cfg(test)]
mod tests;
