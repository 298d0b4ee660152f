//! A stream as a socket: what a node brings goes through a connection of the gateway with itself, so
//! that it is served by the same path as a workload's own socket, resets and half-closes included.

use std::io;
use std::net::Ipv4Addr;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Mutex;

/// Makes such connections.
#[derive(Debug)]
pub struct Loopback(Mutex<TcpListener>);

impl Loopback {
    /// Ready to make them.
    ///
    /// # Errors
    /// No loopback address can be listened on.
    pub async fn open() -> io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        Ok(Self(Mutex::new(listener)))
    }

    /// Both ends of a new one. Whoever else on this machine connects meanwhile is hung up on.
    ///
    /// # Errors
    /// No descriptor or no port is left.
    pub(super) async fn pair(&self) -> io::Result<(TcpStream, TcpStream)> {
        let listener = self.0.lock().await;
        let near = TcpStream::connect(listener.local_addr()?).await?;
        let own = near.local_addr()?;
        loop {
            let (far, peer) = listener.accept().await?;
            if peer == own {
                near.set_nodelay(true)?;
                far.set_nodelay(true)?;
                return Ok((near, far));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[tokio::test]
    async fn strangers_get_no_end_of_it() {
        let loopback = Loopback::open().await.expect("listens");
        let at = loopback.0.lock().await.local_addr().expect("an address");
        let mut stranger = TcpStream::connect(at).await.expect("connects");
        let (mut near, mut far) = loopback.pair().await.expect("a pair");
        near.write_all(b"ours").await.expect("written");
        let mut heard = [0; 4];
        far.read_exact(&mut heard).await.expect("read");
        assert_eq!(&heard, b"ours");
        assert!(matches!(stranger.read(&mut heard).await, Ok(0) | Err(_)));
    }
}
