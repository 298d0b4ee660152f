//! Listeners inside a covered namespace, and what comes in by them.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use interceptor_common::Namespace;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

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

/// Listeners that accept. The sockets are their tasks' and close when those end, unless somebody else
/// has them as well.
#[derive(Debug)]
pub struct Doors {
    v4: Vec<Weak<TcpListener>>,
    v6: Option<Weak<TcpListener>>,
    addresses: Namespace,
    tasks: Mutex<Vec<JoinHandle<()>>>,
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
        Self::of(v4, v6)
    }

    /// Goes on with the listeners of a daemon that this one takes over from: the same sockets, with
    /// whoever waits in their queues. `v4` are those of 127.0.0.1 and its neighbours, in order.
    ///
    /// # Errors
    /// They are not what they are said to be.
    pub fn adopt(v4: Vec<OwnedFd>, v6: Option<OwnedFd>) -> io::Result<Self> {
        let v4: Vec<Socket> = v4.into_iter().map(Socket::from).collect();
        let v6 = v6.map(Socket::from);
        let port = v4.first().map_or(Ok(None), address)?.map_or(0, |at| at.port());
        let neighbours = (1..).map(|n| SocketAddr::from((Ipv4Addr::new(127, 0, 0, n), port)));
        let loopback = v6.iter().map(|_| IpAddr::from(Ipv6Addr::LOCALHOST));
        let mut as_said = port != 0 && v4.len() <= usize::from(V4_LISTENERS);
        for (socket, expected) in v4.iter().zip(neighbours) {
            as_said &= socket.is_listener()? && address(socket)? == Some(expected);
        }
        for (socket, expected) in v6.iter().zip(loopback) {
            as_said &=
                socket.is_listener()? && address(socket)?.map(|at| at.ip()) == Some(expected);
        }
        if !as_said {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "what was handed over are no listeners of an interceptor",
            ));
        }
        Self::of(v4, v6)
    }

    fn of(v4: Vec<Socket>, v6: Option<Socket>) -> io::Result<Self> {
        let v4 = v4.into_iter().map(tokio_listener).collect::<io::Result<Vec<_>>>()?;
        let v6 = v6.map(tokio_listener).transpose()?;
        let port = |listener: &TcpListener| listener.local_addr().map(|addr| addr.port());
        let addresses = Namespace {
            port_v4: v4.first().map_or(Ok(0), port)?,
            port_v6: v6.as_ref().map_or(Ok(0), port)?,
            v4_listeners: v4.len() as u8,
            ..Namespace::default()
        };
        Ok(Self { v4, v6, addresses })
    }

    /// What the connect hook needs to know of them.
    pub fn addresses(&self) -> Namespace {
        self.addresses
    }

    /// Accepts, each listener in a task of its own, and hands connections to `serve`, failed accepts to
    /// `failed`.
    pub fn spawn(
        self,
        serve: Arc<dyn Fn(Accepted) + Send + Sync>,
        failed: Arc<dyn Fn() + Send + Sync>,
    ) -> Doors {
        let mut tasks = Vec::new();
        let mut open = |listener: TcpListener| {
            let listener = Arc::new(listener);
            let door = Arc::downgrade(&listener);
            let (serve, failed) = (Arc::clone(&serve), Arc::clone(&failed));
            tasks.push(tokio::spawn(accept_all(listener, serve, failed)));
            door
        };
        let v4 = self.v4.into_iter().map(&mut open).collect();
        let v6 = self.v6.map(&mut open);
        Doors { v4, v6, addresses: self.addresses, tasks: tasks.into() }
    }
}

impl Doors {
    /// What the connect hook knows of them.
    pub fn addresses(&self) -> Namespace {
        self.addresses
    }

    /// The same sockets once more, for [`Listeners::adopt`] in another process.
    ///
    /// # Errors
    /// Out of file descriptors, or they are shut already.
    pub fn share(&self) -> io::Result<(Vec<OwnedFd>, Option<OwnedFd>)> {
        let share = |door: &Weak<TcpListener>| {
            let listener = door.upgrade().ok_or(io::ErrorKind::NotConnected)?;
            listener.as_fd().try_clone_to_owned()
        };
        let v4 = self.v4.iter().map(share).collect::<io::Result<_>>()?;
        Ok((v4, self.v6.as_ref().map(share).transpose()?))
    }

    /// Stops accepting: when this returns, every connection that was accepted is with `serve`, and
    /// those that wait are whoever's that has the sockets too.
    pub async fn shut(&self) {
        let tasks = self.tasks.lock().map(|mut tasks| std::mem::take(&mut *tasks));
        for task in tasks.unwrap_or_default() {
            task.abort();
            // Cancelled, as it was asked.
            let _ = task.await;
        }
    }
}

async fn accept_all(
    listener: Arc<TcpListener>,
    serve: Arc<dyn Fn(Accepted) + Send + Sync>,
    failed: Arc<dyn Fn() + Send + Sync>,
) {
    let mut failing = false;
    loop {
        match accept(&listener).await {
            Ok(accepted) => {
                if std::mem::take(&mut failing) {
                    tracing::warn!("accepting connections again");
                }
                serve(accepted);
                // One a turn: what comes all at once waits in the kernel, in its own workload's queue,
                // and not before another workload's connections here.
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

fn address(socket: &Socket) -> io::Result<Option<SocketAddr>> {
    Ok(socket.local_addr()?.as_socket())
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
        let serve: Arc<dyn Fn(Accepted) + Send + Sync> = Arc::new(move |accepted: Accepted| {
            let _ = sender.send(accepted.local);
        });
        let doors = listeners.spawn(Arc::clone(&serve), Arc::new(|| {}));
        for n in 1..=V4_LISTENERS {
            let addr: SocketAddr = (Ipv4Addr::new(127, 0, 0, n), port).into();
            let _client = TcpStream::connect(addr).await.expect("connected");
            assert_eq!(accepted.recv().await, Some(addr));
        }

        // Whoever comes while nobody accepts is served by the next one.
        let (v4, v6) = doors.share().expect("shared");
        let addresses = doors.addresses();
        doors.shut().await;
        let addr: SocketAddr = (Ipv4Addr::LOCALHOST, port).into();
        let _client = TcpStream::connect(addr).await.expect("connected");
        assert!(doors.share().is_err() && accepted.try_recv().is_err());
        let listeners = Listeners::adopt(v4, v6).expect("adopted");
        assert_eq!(listeners.addresses(), addresses);
        let _doors = listeners.spawn(serve, Arc::new(|| {}));
        assert_eq!(accepted.recv().await, Some(addr));
    }

    #[tokio::test]
    async fn only_an_interceptors_listeners_are_adopted() {
        let fd = |socket: Socket| OwnedFd::from(socket);
        let listening = |at: [u8; 4]| fd(listen((at, 0).into()).expect("bound"));
        let idle = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
        for v4 in [
            vec![],
            vec![fd(idle)],
            vec![listening([127, 0, 0, 2])],
            vec![listening([127, 0, 0, 1]), listening([127, 0, 0, 2])],
        ] {
            assert!(Listeners::adopt(v4, None).is_err());
        }
        let v6 = Some(listening([127, 0, 0, 1]));
        assert!(Listeners::adopt(vec![listening([127, 0, 0, 1])], v6).is_err());
    }
}
