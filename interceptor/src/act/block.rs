//! How a refusal of a connection looks to the client. (Refused HTTP requests: `http.rs`.)

use std::io::ErrorKind;
use std::os::fd::AsRawFd;
use std::time::Duration;

use nix::sys::socket::{Shutdown, shutdown};
use socket2::SockRef;
use tokio::net::TcpStream;
use tokio::time::timeout;

/// How long a client may take to close its side after we closed ours.
const DRAIN_TIME: Duration = Duration::from_secs(1);
/// How much it may still send meanwhile.
const DRAIN_BYTES: usize = 64 * 1024;

/// Ends the connection with FIN and without an answer (curl over TLS: exit 35).
///
/// Closing a socket that holds unread bytes sends RST, not FIN. So what the client still sends is
/// read and thrown away, until it closes too, a second has passed or 64 KiB have come.
pub async fn close(client: TcpStream) {
    // A client that is gone already needs no FIN.
    if shutdown(client.as_raw_fd(), Shutdown::Write).is_ok() {
        let _ = timeout(DRAIN_TIME, drain(&client)).await;
    }
}

/// Reads until the end, an error or the limit; none of the three matters to the caller.
async fn drain(client: &TcpStream) {
    let mut left = DRAIN_BYTES;
    while left > 0 && client.readable().await.is_ok() {
        // No longer than the call: what lives while waiting is memory of every connection.
        match client.try_read(&mut [0; 4096]) {
            Ok(0) => return,
            Ok(n) => left = left.saturating_sub(n),
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(_) => return,
        }
    }
}

/// Ends the connection with RST.
pub fn reset(client: TcpStream) {
    // Fails only where the connection is gone, and then there is nothing to reset.
    let _ = SockRef::from(&client).set_linger(Some(Duration::ZERO));
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;
    use tokio::time::Instant;

    use super::*;

    /// Two ends of one connection.
    async fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        (client, listener.accept().await.unwrap().0)
    }

    #[tokio::test]
    async fn close_is_a_fin_even_with_unread_bytes() {
        let (mut client, ours) = pair().await;
        client.write_all(&[7; 10_000]).await.unwrap();
        let closing = tokio::spawn(close(ours));
        assert_eq!(client.read(&mut [0; 16]).await.unwrap(), 0);
        // Bytes sent after our FIN do not turn it into a reset either.
        client.write_all(b"more").await.unwrap();
        client.shutdown().await.unwrap();
        closing.await.unwrap();
        assert_eq!(client.read(&mut [0; 16]).await.unwrap(), 0);
    }

    #[tokio::test]
    async fn close_waits_a_second_at_most_for_a_client_that_stays() {
        let (_client, ours) = pair().await;
        let start = Instant::now();
        close(ours).await;
        assert!(start.elapsed() < Duration::from_millis(1500));
    }

    #[tokio::test]
    async fn close_swallows_a_bounded_amount() {
        let (mut client, ours) = pair().await;
        let flood = tokio::spawn(async move {
            let mut sent = 0_usize;
            while client.write_all(&[7; 16 * 1024]).await.is_ok() {
                sent += 16 * 1024;
            }
            sent
        });
        let start = Instant::now();
        close(ours).await;
        flood.await.unwrap();
        assert!(start.elapsed() < Duration::from_millis(900), "{:?}", start.elapsed());
    }

    #[tokio::test]
    async fn reset_is_a_reset() {
        let (mut client, ours) = pair().await;
        reset(ours);
        let error = client.read(&mut [0; 16]).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    }
}
