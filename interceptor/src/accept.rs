//! Listeners inside a covered namespace, and what comes in by them.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use interceptor_common::Namespace;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::{TcpListener, TcpStream};

use crate::netns::NetNs;

/// Loopback addresses that listen for IPv4: one destination must not exhaust the source ports of a
/// single address pair.
const V4_LISTENERS: u8 = 4;

/// The kernel caps it at net.core.somaxconn.
const BACKLOG: i32 = 4096;

/// How often a port is looked for that is free on every address.
const BIND_TRIES: u32 = 16;

/// After a failed accept (mostly: out of descriptors) the loop waits instead of spinning (T-50).
const BACK_OFF: Duration = Duration::from_millis(50);

/// The listeners of one namespace. Ports are chosen by the kernel; never SO_REUSEPORT (a process
/// of the same user could join the group), never TCP_FASTOPEN (data would come before the original
/// destination is known).
#[derive(Debug)]
pub struct Listeners {
    v4: Vec<TcpListener>,
    v6: Option<TcpListener>,
    addresses: Namespace,
}

/// A connection that was just accepted; nothing is known of it yet.
#[derive(Debug)]
pub struct Accepted {
    /// The workload's side.
    pub client: TcpStream,
    /// The loopback end that it came from.
    pub peer: SocketAddr,
    /// The listener that it came to.
    pub local: SocketAddr,
}

impl Listeners {
    /// Binds in `netns`. A namespace without `::1` gets IPv4 only; its IPv6 is then refused.
    ///
    /// # Errors
    /// No IPv4 loopback, or no free port.
    pub fn bind(netns: &NetNs) -> io::Result<Self> {
        let (v4, v6) = netns.run(|| {
            let v4 = bind_v4()?;
            let v6 = listen((Ipv6Addr::LOCALHOST, 0).into()).ok();
            Ok::<_, io::Error>((v4, v6))
        })??;
        let v4 = v4.into_iter().map(tokio_listener).collect::<io::Result<Vec<_>>>()?;
        let v6 = v6.map(tokio_listener).transpose()?;
        let port = |listener: &TcpListener| listener.local_addr().map(|addr| addr.port());
        let addresses = Namespace {
            port_v4: v4.first().map_or(Ok(0), port)?,
            port_v6: v6.as_ref().map_or(Ok(0), port)?,
            v4_listeners: v4.len() as u8,
            interface: 0,
            policy: 0,
        };
        Ok(Self { v4, v6, addresses })
    }

    /// What the connect hook needs to know of them.
    pub fn addresses(&self) -> Namespace {
        self.addresses
    }

    /// Accepts for ever, each listener in a task of its own, and hands connections to `serve`, failed
    /// accepts to `failed`.
    pub fn spawn(
        self,
        serve: Arc<dyn Fn(Accepted) + Send + Sync>,
        failed: Arc<dyn Fn() + Send + Sync>,
    ) {
        for listener in self.v4.into_iter().chain(self.v6) {
            let (serve, failed) = (Arc::clone(&serve), Arc::clone(&failed));
            tokio::spawn(async move {
                let mut failing = false;
                loop {
                    match accept(&listener).await {
                        Ok(accepted) => {
                            if std::mem::take(&mut failing) {
                                tracing::warn!("accepting connections again");
                            }
                            serve(accepted);
                            // One a turn: what comes all at once waits in the kernel, in its own
                            // workload's queue, and not before another workload's connections here.
                            tokio::task::yield_now().await;
                        }
                        Err(error) => {
                            // Once for each time of trouble: it comes back twenty times a second.
                            if !std::mem::replace(&mut failing, true) {
                                tracing::error!("connections cannot be accepted: {error}");
                            }
                            failed();
                            tokio::time::sleep(BACK_OFF).await;
                        }
                    }
                }
            });
        }
    }
}

/// The next connection; those that are gone before they can be looked at are passed over, since a
/// client that comes and goes must not make the others wait.
async fn accept(listener: &TcpListener) -> io::Result<Accepted> {
    loop {
        let (client, peer) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => continue,
            Err(error) => return Err(error),
        };
        if let Ok(local) = client.local_addr()
            && client.set_nodelay(true).is_ok()
        {
            return Ok(Accepted { client, peer, local });
        }
    }
}

/// One port that is free on 127.0.0.1 and its neighbours.
fn bind_v4() -> io::Result<Vec<Socket>> {
    let mut last = None;
    for _ in 0..BIND_TRIES {
        let first = listen((Ipv4Addr::LOCALHOST, 0).into())?;
        let port = first.local_addr()?.as_socket().map_or(0, |addr| addr.port());
        let rest = (1..V4_LISTENERS)
            .map(|n| listen((IpAddr::from(Ipv4Addr::new(127, 0, 0, 1 + n)), port).into()))
            .collect::<io::Result<Vec<_>>>();
        match rest {
            Ok(rest) => return Ok(std::iter::once(first).chain(rest).collect()),
            Err(error) => last = Some(error),
        }
    }
    let why = last.unwrap_or_else(|| io::Error::from(io::ErrorKind::AddrInUse));
    let message = format!(
        "no port is free on all of 127.0.0.1 to 127.0.0.{V4_LISTENERS} ({why}); end what listens \
         there, or widen net.ipv4.ip_local_port_range"
    );
    Err(io::Error::new(why.kind(), message))
}

fn listen(addr: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(addr), Type::STREAM, Some(Protocol::TCP))?;
    if addr.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.bind(&addr.into())?;
    socket.listen(BACKLOG)?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}

fn tokio_listener(socket: Socket) -> io::Result<TcpListener> {
    TcpListener::from_std(socket.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// R8: between two connections of a flood, whatever else can go on has its turn.
    #[tokio::test]
    async fn a_flood_is_taken_in_one_by_one() {
        const FLOOD: usize = 64;
        let listeners = Listeners::bind(&NetNs::current().expect("a namespace")).expect("bound");
        let addr = SocketAddr::from((Ipv4Addr::LOCALHOST, listeners.addresses().port_v4));
        let flood: Vec<_> =
            (0..FLOOD).map(|_| std::net::TcpStream::connect(addr).expect("queued")).collect();
        let (sender, mut accepted) = tokio::sync::mpsc::unbounded_channel();
        let serve = move |_: Accepted| {
            let _ = sender.send(());
        };
        listeners.spawn(Arc::new(serve), Arc::new(|| {}));
        let mut taken_in = 0;
        while taken_in < FLOOD {
            tokio::task::yield_now().await;
            let before = taken_in;
            while accepted.try_recv().is_ok() {
                taken_in += 1;
            }
            assert!(taken_in - before <= 2, "{} in one turn", taken_in - before);
        }
        drop(flood);
    }

    #[tokio::test]
    async fn every_loopback_neighbour_listens_on_one_port() {
        let listeners = Listeners::bind(&NetNs::current().expect("a namespace")).expect("bound");
        let port = listeners.addresses().port_v4;
        assert_eq!(listeners.addresses().v4_listeners, V4_LISTENERS);
        let (sender, mut accepted) = tokio::sync::mpsc::unbounded_channel();
        listeners.spawn(
            Arc::new(move |accepted: Accepted| {
                let _ = sender.send(accepted.local);
            }),
            Arc::new(|| {}),
        );
        for n in 1..=V4_LISTENERS {
            let addr: SocketAddr = (Ipv4Addr::new(127, 0, 0, n), port).into();
            let _client = TcpStream::connect(addr).await.expect("connected");
            assert_eq!(accepted.recv().await, Some(addr));
        }
    }
}
