//! Everything that answers in the stub internet: one runtime on one thread, whose sockets belong
//! to the namespace that the thread entered.

mod background;
mod http;
pub mod protocols;
mod raw;
pub mod witness;

use std::future::Future;
use std::net::{Ipv6Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, Result};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::{TcpListener, TcpStream};

use crate::ca::Authority;
use crate::dns::{self, Zone};
use crate::netns::Namespace;
use background::Background;

/// Ports of the raw services; every address of the stub internet has them.
pub mod port {
    /// Sends back what it gets; TCP everywhere, UDP on [`crate::world::UDP_ECHO`].
    pub const ECHO: u16 = 7;
    /// Reads to the end of the stream, then says `BYTES intact` or `BYTES corrupt` (see
    /// [`crate::pattern`]) and closes.
    pub const SINK: u16 = 9;
    /// Says `SERVER CLIENT`, both as `IP:PORT`, and closes.
    pub const WHOAMI: u16 = 17;
    /// Reads a line with a number and sends so many bytes of [`crate::pattern`], then closes.
    pub const SOURCE: u16 = 19;
    /// Speaks first (`220 stub ready`), then echoes.
    pub const BANNER: u16 = 25;
    /// A WebSocket that sends every message back.
    pub const WEBSOCKET: u16 = 8081;
    /// gRPC, plaintext: the health service, which knows the service `stub`, and
    /// [`super::protocols::TALK`].
    pub const GRPC: u16 = 50051;
    /// Accepts and then neither reads nor writes.
    pub const STALL: u16 = 9000;
    /// Resets the connection at the first byte that it gets.
    pub const RESET: u16 = 9001;
}

/// What a server-first service says.
pub const GREETING: &str = "220 stub ready\r\n";

/// One HTTP request as it arrived in the stub internet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// `http` or `https`.
    pub scheme: &'static str,
    /// The name in the TLS hello, if it had one.
    pub sni: Option<String>,
    /// The protocol that was agreed on in TLS, if one was.
    pub alpn: Option<String>,
    /// The address that the connection came in on.
    pub local: SocketAddr,
    /// Where it came from.
    pub peer: SocketAddr,
    /// Host, or the authority of HTTP/2; without a port.
    pub host: String,
    /// Path and query.
    pub path: String,
}

/// The running servers. Dropping the value ends them.
#[derive(Debug)]
pub struct Servers {
    seen: Arc<Mutex<Vec<Seen>>>,
    _background: Background,
}

impl Servers {
    /// Starts everything in `namespace`; when it returns, all ports are open. Without an authority
    /// only names are served.
    ///
    /// # Errors
    /// When the namespace can't be entered or a port is taken.
    pub fn start(
        namespace: &Namespace,
        authority: Option<Arc<Authority>>,
        zone: Arc<Zone>,
        resolvers: &[SocketAddr],
    ) -> Result<Self> {
        let seen = Arc::new(Mutex::new(Vec::new()));
        let (noted, resolvers) = (Arc::clone(&seen), resolvers.to_vec());
        let background = Background::start(namespace, move || async move {
            open(authority, zone, &resolvers, noted).await
        })?;
        Ok(Self { seen, _background: background })
    }

    /// All HTTP requests that arrived so far, in order.
    #[must_use]
    pub fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Opens every port. They are bound to any address: the namespace's routes decide which exist.
async fn open(
    authority: Option<Arc<Authority>>,
    zone: Arc<Zone>,
    resolvers: &[SocketAddr],
    seen: Arc<Mutex<Vec<Seen>>>,
) -> Result<()> {
    for &resolver in resolvers {
        dns::serve(Arc::clone(&zone), resolver).await?;
    }
    let Some(authority) = authority else { return Ok(()) };
    let plain = http::Site::new(Arc::clone(&seen), None)?;
    listen(80, move |stream| plain.clone().serve(stream))?;
    let secure = http::Site::new(seen, Some(authority))?;
    listen(443, move |stream| secure.clone().serve(stream))?;
    listen(port::ECHO, raw::echo)?;
    listen(port::SINK, raw::sink)?;
    listen(port::WHOAMI, raw::whoami)?;
    listen(port::SOURCE, raw::source)?;
    listen(port::BANNER, raw::banner)?;
    listen(port::WEBSOCKET, protocols::websocket)?;
    listen(port::GRPC, protocols::grpc)?;
    listen(port::STALL, raw::stall)?;
    listen(port::RESET, raw::reset)?;
    raw::udp_echo((crate::world::UDP_ECHO, port::ECHO).into()).await
}

/// Accepts on one port of both families, each connection on a task of its own.
fn listen<F>(port: u16, serve: impl Fn(TcpStream) -> F + Send + 'static) -> Result<()>
where
    F: Future<Output = std::io::Result<()>> + Send + 'static,
{
    let listener = listener(port)?;
    tokio::spawn(async move {
        loop {
            match listener.accept().await {
                // A client that goes away is no failure of the server.
                Ok((stream, _)) => drop(tokio::spawn(serve(stream))),
                Err(error) => eprintln!("stub server on port {port}: {error}"),
            }
        }
    });
    Ok(())
}

/// A port of every address, of both families.
pub(crate) fn listener(port: u16) -> Result<TcpListener> {
    let socket = Socket::new(Domain::IPV6, Type::STREAM, Some(Protocol::TCP))?;
    socket.set_only_v6(false)?;
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket
        .bind(&SocketAddr::from((Ipv6Addr::UNSPECIFIED, port)).into())
        .with_context(|| format!("port {port} of the stub internet"))?;
    socket.listen(4096)?;
    Ok(TcpListener::from_std(socket.into())?)
}

/// An address as the user wrote it: IPv4 stays IPv4 on a listener of both families.
pub(crate) fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}
