//! Audit: what comes of a connection whose first request cannot be served here. It would be refused; so it is
//! for the bytes to go on as they are, and to know that before anything was answered.

use bytes::BytesMut;
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout_at};

use super::framing::Framer;
use super::wire::HEAD_DEADLINE;
use crate::decide::Reason;

/// Least room offered to one read.
const READ_ROOM: usize = 4 * 1024;

/// Reads on until the first head is whole; `bytes` are what was read so far, and all of it then. Why it would
/// be refused whatever policy says: it has no one reading, or is none that is served. `None`: it is.
pub(crate) async fn unservable(client: &TcpStream, bytes: &mut BytesMut) -> Option<Reason> {
    let (mut framer, deadline) = (Framer::new(), Instant::now() + HEAD_DEADLINE);
    loop {
        match framer.admit(bytes) {
            Err(_) => return Some(Reason::Malformed),
            Ok(0) => {}
            Ok(_) => return unserved(bytes),
        }
        match timeout_at(deadline, client.readable()).await {
            Err(_) => return Some(Reason::SniffTimeout),
            // Whoever serves it finds the same.
            Ok(Err(_)) => return None,
            Ok(Ok(())) => {}
        }
        bytes.reserve(READ_ROOM);
        match client.try_read_buf(bytes) {
            Ok(0) => return Some(Reason::Malformed),
            Ok(_) => {}
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
            Err(_) => return None,
        }
    }
}

/// The same of a head that has one reading.
fn unserved(head: &[u8]) -> Option<Reason> {
    let line = head.split(|byte| *byte == b'\r').next().unwrap_or_default();
    if line.starts_with(b"CONNECT ") {
        return Some(Reason::ConnectMethod);
    }
    line.ends_with(b" HTTP/1.0").then_some(Reason::HttpVersion)
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt as _;
    use tokio::net::TcpListener;

    use super::*;

    #[tokio::test]
    async fn what_cannot_be_served_is_known_by_its_first_head() {
        for (sent, expected) in [
            ("GET / HTTP/1.1\r\nHost: a.test\r\n\r\nGET / HTTP/1.0\r\n\r\n", None),
            ("GET / HTTP/1.0\r\nHost: a.test\r\n\r\n", Some(Reason::HttpVersion)),
            (
                "CONNECT a.test:443 HTTP/1.1\r\nHost: a.test\r\n\r\n\x16",
                Some(Reason::ConnectMethod),
            ),
            ("GET / HTTP/1.1\nHost: a.test\n\n", Some(Reason::Malformed)),
            ("GET / HTTP/1.1\r\nHost: a.test\r\n", Some(Reason::Malformed)),
        ] {
            let listener = TcpListener::bind("127.0.0.1:0").await.expect("a listener");
            let address = listener.local_addr().expect("an address");
            let mut client = TcpStream::connect(address).await.expect("connected");
            let (served, _) = listener.accept().await.expect("accepted");
            let (sniffed, rest) = sent.split_at(9);
            client.write_all(rest.as_bytes()).await.expect("sent");
            client.shutdown().await.expect("half closed");
            let mut bytes = BytesMut::from(sniffed);
            assert_eq!(unservable(&served, &mut bytes).await, expected, "{sent:?}");
            assert_eq!(bytes, sent.as_bytes(), "nothing is lost");
        }
    }
}
