//! Services below HTTP: bytes in, bytes out.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpStream, UdpSocket};

use super::{GREETING, canonical};
use crate::pattern;

/// Bytes moved at once.
const BUFFER: usize = 64 * 1024;

/// Sends everything back, and ends its direction when the client ended the other.
pub(super) async fn echo(mut stream: TcpStream) -> io::Result<()> {
    let mut buffer = vec![0; BUFFER];
    loop {
        match stream.read(&mut buffer).await? {
            0 => return stream.shutdown().await,
            length => stream.write_all(&buffer[..length]).await?,
        }
    }
}

/// Reads to the end, then answers over the half-closed connection.
pub(super) async fn sink(mut stream: TcpStream) -> io::Result<()> {
    let mut buffer = vec![0; BUFFER];
    let (mut total, mut intact) = (0, true);
    loop {
        let length = stream.read(&mut buffer).await?;
        if length == 0 {
            break;
        }
        intact &= pattern::matches(total, &buffer[..length]);
        total += length as u64;
    }
    let verdict = if intact { "intact" } else { "corrupt" };
    stream.write_all(format!("{total} {verdict}\n").as_bytes()).await?;
    stream.shutdown().await
}

/// Tells the client which address it reached, and from where.
pub(super) async fn whoami(mut stream: TcpStream) -> io::Result<()> {
    let (local, peer) = (canonical(stream.local_addr()?), canonical(stream.peer_addr()?));
    stream.write_all(format!("{local} {peer}\n").as_bytes()).await?;
    stream.shutdown().await
}

/// Sends as many bytes of the pattern as the client's first line asks for.
pub(super) async fn source(stream: TcpStream) -> io::Result<()> {
    let mut stream = BufReader::new(stream);
    let mut line = String::new();
    (&mut stream).take(32).read_line(&mut line).await?;
    let total: u64 = line.trim().parse().map_err(io::Error::other)?;
    let mut buffer = vec![0; BUFFER];
    let mut sent = 0;
    while sent < total {
        let length = usize::try_from(total - sent).map_or(BUFFER, |left| left.min(BUFFER));
        pattern::fill(sent, &mut buffer[..length]);
        stream.write_all(&buffer[..length]).await?;
        sent += length as u64;
    }
    stream.shutdown().await
}

/// Speaks before the client does, then echoes.
pub(super) async fn banner(mut stream: TcpStream) -> io::Result<()> {
    stream.write_all(GREETING.as_bytes()).await?;
    echo(stream).await
}

/// Holds the connection open and does nothing.
pub(super) async fn stall(stream: TcpStream) -> io::Result<()> {
    tokio::time::sleep(Duration::from_secs(3600)).await;
    drop(stream);
    Ok(())
}

/// Waits for a byte and then closes with a reset instead of an end of stream.
pub(super) async fn reset(mut stream: TcpStream) -> io::Result<()> {
    stream.read_u8().await?;
    stream.set_zero_linger()
}

/// Sends every datagram back from the address it was sent to.
pub(super) async fn udp_echo(at: SocketAddr) -> Result<()> {
    let socket = UdpSocket::bind(at).await.with_context(|| format!("UDP echo on {at}"))?;
    tokio::spawn(async move {
        let mut buffer = vec![0; BUFFER];
        loop {
            if let Ok((length, client)) = socket.recv_from(&mut buffer).await {
                let _ = socket.send_to(&buffer[..length], client).await;
            }
        }
    });
    Ok(())
}
