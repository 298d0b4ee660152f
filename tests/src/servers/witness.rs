//! A service that writes down what reaches it, of every connection, and sends it back.

use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Result;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::background::Background;
use super::{canonical, listen};
use crate::netns::Namespace;

/// Length of what comes before the echo, see [`encode`].
pub const REPORT: usize = 20;

/// A connection that carried at least one byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Arrival {
    /// Where it came from.
    pub peer: SocketAddr,
    /// Where it came in.
    pub local: SocketAddr,
    /// How many bytes it brought so far.
    pub bytes: u64,
}

/// The running service. Dropping the value ends it.
#[derive(Debug)]
pub struct Witness {
    arrivals: Arc<Mutex<Vec<Arrival>>>,
    _background: Background,
}

impl Witness {
    /// Starts it on these ports of every address of `namespace`.
    ///
    /// # Errors
    /// When the namespace can't be entered or a port is taken.
    pub fn start(namespace: &Namespace, ports: &[u16]) -> Result<Self> {
        let arrivals = Arc::new(Mutex::new(Vec::new()));
        let (noted, ports) = (Arc::clone(&arrivals), ports.to_vec());
        let background = Background::start(namespace, move || async move {
            for port in ports {
                let arrivals = Arc::clone(&noted);
                listen(port, move |stream| serve(stream, Arc::clone(&arrivals)))?;
            }
            Ok(())
        })?;
        Ok(Self { arrivals, _background: background })
    }

    /// Every connection so far that carried a byte.
    #[must_use]
    pub fn arrivals(&self) -> Vec<Arrival> {
        self.arrivals.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

async fn serve(mut stream: TcpStream, arrivals: Arc<Mutex<Vec<Arrival>>>) -> std::io::Result<()> {
    let (peer, local) = (canonical(stream.peer_addr()?), canonical(stream.local_addr()?));
    let mut buffer = vec![0; 32 * 1024];
    let mut number = None;
    loop {
        let length = stream.read(&mut buffer).await?;
        if length == 0 {
            return stream.shutdown().await;
        }
        let first = number.is_none();
        {
            let mut arrivals = arrivals.lock().unwrap_or_else(PoisonError::into_inner);
            let number = *number.get_or_insert_with(|| {
                arrivals.push(Arrival { peer, local, bytes: 0 });
                arrivals.len() - 1
            });
            arrivals[number].bytes += length as u64;
        }
        if first {
            stream.write_all(&encode(peer.port(), local)).await?;
        }
        stream.write_all(&buffer[..length]).await?;
    }
}

/// What the service tells its client first: the port that it sees, and the address that was reached.
#[must_use]
pub fn encode(peer: u16, local: SocketAddr) -> [u8; REPORT] {
    let ip = match local.ip() {
        IpAddr::V4(v4) => v4.to_ipv6_mapped(),
        IpAddr::V6(v6) => v6,
    };
    let mut report = [0; REPORT];
    report[..2].copy_from_slice(&peer.to_be_bytes());
    report[2..18].copy_from_slice(&ip.octets());
    report[18..].copy_from_slice(&local.port().to_be_bytes());
    report
}

/// Reads [`encode`]'s words.
#[must_use]
pub fn decode(report: &[u8; REPORT]) -> (u16, SocketAddr) {
    let mut ip = [0; 16];
    ip.copy_from_slice(&report[2..18]);
    let port = |at: usize| u16::from_be_bytes([report[at], report[at + 1]]);
    (port(0), SocketAddr::new(IpAddr::from(ip).to_canonical(), port(18)))
}
