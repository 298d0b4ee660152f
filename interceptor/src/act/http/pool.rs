//! The upstream connections of one downstream connection. They serve nobody else (T-46).

use std::future::poll_fn;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use http::{Request, Response};
use hyper::body::Incoming;
use hyper::client::conn::{TrySendError, http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::sync::oneshot;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::act::carrier::{Carried, Held, Stream};
use crate::act::door::Left;
use crate::act::tls::{Stamp, TlsSession};
use crate::decide::door::Door;
use crate::decide::traffic::TrafficPolicy;
use crate::decide::{ClusterName, Upstream};

use super::framing::{HEAD_MAX, HEADERS_MAX};
use super::upload::Upload;

/// Idle upstream connections kept for one client connection; the oldest goes first.
const IDLE_MAX: usize = 4;

/// Idle connections, and the tasks that drive those that are not at rest; dropping it ends them.
#[derive(Default)]
pub(super) struct Pool {
    idle: Mutex<Vec<Kept>>,
    drivers: Mutex<JoinSet<()>>,
}

/// How long an idle upstream connection is kept unless the cluster says otherwise (DR-9).
const IDLE_LIMIT: Duration = Duration::from_secs(3600);

/// What a connection was made for. Only the very same verdict uses it again (T-46).
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Purpose {
    pub(super) cluster: Option<ClusterName>,
    pub(super) upstream: Upstream,
    pub(super) door: Door,
    pub(super) traffic: Arc<TrafficPolicy>,
    /// The Host for which an egress proxy may have been given no tunnel.
    pub(super) plain: Option<String>,
    /// The Host that TLS was made for.
    pub(super) host: Option<String>,
    /// What TLS was made of; a credential that changed or went is served by no kept connection.
    pub(super) made_of: Option<Stamp>,
    /// Whether HTTP/2 is spoken.
    pub(super) http2: bool,
    /// Whether it may become a tunnel.
    pub(super) upgrades: bool,
}

/// One upstream connection, ready for a request or soon so.
pub(super) struct Connection {
    /// Between whom, and for what.
    /// Boxed, as many of them may wait at a time.
    pub(super) ends: Box<Ends>,
    /// Sends requests.
    pub(super) sender: Sender,
}

/// What is known of an upstream connection.
#[derive(Clone)]
pub(super) struct Ends {
    purpose: Purpose,
    /// Its far end.
    pub(super) upstream: SocketAddr,
    /// Our end.
    pub(super) local: SocketAddr,
    /// What TLS agreed on, where it was originated.
    pub(super) tls: Option<Arc<TlsSession>>,
    /// The unix socket in place of addresses.
    pub(super) socket: Option<Arc<Path>>,
    /// The egress proxy through which it leaves.
    pub(super) left: Option<Arc<Left>>,
    made: Instant,
    last_used: Instant,
    /// Requests that were sent on it.
    uses: u32,
}

/// An idle connection.
enum Kept {
    /// In the hands of the HTTP library.
    Awake(Connection),
    /// The library, which keeps some 16 KiB for a connection, has given it back.
    Resting(Box<Ends>, Stream, Held),
}

impl Kept {
    fn ends(&self) -> &Ends {
        match self {
            Self::Awake(Connection { ends, .. }) | Self::Resting(ends, ..) => ends,
        }
    }

    /// Whether it can serve another request.
    fn is_usable(&mut self) -> bool {
        let is_open = match self {
            Self::Awake(connection) => !connection.sender.is_closed(),
            Self::Resting(_, stream, _) => {
                stream.poll_speaks(&mut Context::from_waker(Waker::noop())).is_pending()
            }
        };
        is_open && !self.ends().is_worn()
    }
}

/// Sends requests in the protocol of the connection.
pub(super) enum Sender {
    /// One request at a time.
    Http1(http1::SendRequest<Upload>, AskBack),
    /// Many at once.
    Http2(http2::SendRequest<Upload>),
}

/// Asks a connection's driver for the stream, before the sender goes.
type AskBack = oneshot::Sender<oneshot::Sender<(Stream, Held)>>;

impl Sender {
    /// Waits until a request can be sent.
    pub(super) async fn ready(&mut self) -> hyper::Result<()> {
        match self {
            Self::Http1(sender, _) => sender.ready().await,
            Self::Http2(sender) => sender.ready().await,
        }
    }

    /// Sends `request`; an error gives it back where no byte of it was sent.
    pub(super) async fn try_send(
        &mut self,
        request: Request<Upload>,
    ) -> Result<Response<Incoming>, TrySendError<Request<Upload>>> {
        match self {
            Self::Http1(sender, _) => sender.try_send_request(request).await,
            Self::Http2(sender) => sender.try_send_request(request).await,
        }
    }

    /// Whether its stream can be had back.
    fn gives_back(&self) -> bool {
        matches!(self, Self::Http1(_, ask) if !ask.is_closed())
    }

    fn is_closed(&self) -> bool {
        match self {
            Self::Http1(sender, _) => sender.is_closed(),
            Self::Http2(sender) => sender.is_closed(),
        }
    }
}

impl Connection {
    /// As the log has it.
    pub(super) fn protocol(&self) -> &'static str {
        match self.sender {
            Sender::Http1(..) => "HTTP/1.1",
            Sender::Http2(_) => "HTTP/2",
        }
    }

    /// Takes an idle connection from the library. `None`: it stays in its hands till its end (HTTP/2,
    /// or a possible tunnel), or is over.
    async fn lie_down(self) -> Option<Kept> {
        let Self { ends, sender: Sender::Http1(sender, ask) } = self else { return None };
        let (give, given) = oneshot::channel();
        ask.send(give).ok()?;
        drop(sender);
        let (stream, held) = given.await.ok()?;
        Some(Kept::Resting(ends, stream, held))
    }
}

impl Ends {
    /// Whether it has served as much, or as long, as its cluster allows (DR-9).
    fn is_worn(&self) -> bool {
        let limits = &self.purpose.traffic.limits;
        limits.max_requests_per_connection.is_some_and(|max| self.uses >= max)
            || limits.max_connection_duration.is_some_and(|max| self.made.elapsed() >= max)
            || self.last_used.elapsed() >= limits.http_idle_timeout.unwrap_or(IDLE_LIMIT)
    }
}

impl Pool {
    /// A kept connection made for `purpose` to an address that `suits`; one of HTTP/2 stays here for
    /// others as well.
    pub(super) async fn take(
        &self,
        purpose: &Purpose,
        suits: impl Fn(SocketAddr) -> bool,
    ) -> Option<Connection> {
        match self.find(purpose, suits)? {
            Kept::Awake(connection) => Some(connection),
            Kept::Resting(ends, stream, held) => {
                let sender = self.speak(stream, held, purpose).await.ok()?;
                Some(Connection { ends, sender })
            }
        }
    }

    fn find(&self, purpose: &Purpose, suits: impl Fn(SocketAddr) -> bool) -> Option<Kept> {
        let mut idle = lock(&self.idle);
        idle.retain_mut(Kept::is_usable);
        let at = idle.iter().position(|kept| {
            let ends = kept.ends();
            ends.purpose == *purpose && suits(ends.upstream)
        })?;
        let ends = match &mut idle[at] {
            Kept::Awake(Connection { ends, .. }) | Kept::Resting(ends, ..) => ends,
        };
        ends.uses += 1;
        ends.last_used = Instant::now();
        if let Kept::Awake(Connection { ends, sender: Sender::Http2(sender) }) = &idle[at] {
            let (ends, sender) = (ends.clone(), Sender::Http2(sender.clone()));
            return Some(Kept::Awake(Connection { ends, sender }));
        }
        Some(idle.remove(at))
    }

    /// Keeps `connection` for the next request of its purpose.
    pub(super) fn put(&self, mut connection: Connection) {
        let ends = &mut connection.ends;
        // Where connections are counted, none is kept from others.
        let counted = ends.purpose.traffic.limits.max_connections.is_some();
        if ends.is_worn() || (counted && !ends.purpose.http2) {
            return;
        }
        ends.last_used = Instant::now();
        let mut idle = lock(&self.idle);
        let same = |kept: &Kept| {
            let kept = kept.ends();
            (kept.upstream, kept.local) == (ends.upstream, ends.local)
        };
        if idle.iter().any(same) {
            // Of HTTP/2, and never left.
            return;
        }
        if idle.len() == IDLE_MAX {
            idle.remove(0);
        }
        idle.push(Kept::Awake(connection));
    }

    /// Takes idle connections from the library, while the client's own is not in its hands either.
    /// Lets go of those that the other side ends. Never returns.
    pub(super) async fn rest(&self) {
        // Boxed, so that what rests does not keep the room that lying down takes.
        Box::pin(self.lie_down()).await;
        while lock(&self.drivers).try_join_next().is_some() {}
        poll_fn(|cx| {
            lock(&self.idle).retain_mut(|kept| match kept {
                Kept::Awake(_) => true,
                Kept::Resting(_, stream, _) => stream.poll_speaks(cx).is_pending(),
            });
            Poll::Pending
        })
        .await
    }

    async fn lie_down(&self) {
        let is_awake = |kept: &mut Kept| matches!(kept, Kept::Awake(connection) if connection.sender.gives_back());
        let awake: Vec<Kept> = lock(&self.idle).extract_if(.., is_awake).collect();
        for kept in awake {
            let Kept::Awake(connection) = kept else { continue };
            if let Some(kept) = connection.lie_down().await {
                lock(&self.idle).push(kept);
            }
        }
    }

    /// Starts HTTP on a new connection.
    ///
    /// # Errors
    /// The connection is broken already.
    pub(super) async fn start(
        &self,
        purpose: Purpose,
        carried: Carried,
    ) -> hyper::Result<Connection> {
        let Carried { stream, upstream, local, tls, socket, left, held } = carried;
        let sender = self.speak(stream, held, &purpose).await?;
        let now = Instant::now();
        let (made, last_used) = (now, now);
        let uses = 1;
        let ends = Ends { purpose, upstream, local, tls, socket, left, made, last_used, uses };
        let ends = Box::new(ends);
        Ok(Connection { ends, sender })
    }

    async fn speak(&self, stream: Stream, held: Held, purpose: &Purpose) -> hyper::Result<Sender> {
        match stream {
            Stream::Plain(stream) => self.speak_on(stream, Stream::Plain, held, purpose).await,
            Stream::Wrapped(stream) => self.speak_on(stream, Stream::Wrapped, held, purpose).await,
        }
    }

    async fn speak_on<S>(
        &self,
        stream: S,
        again: fn(S) -> Stream,
        held: Held,
        purpose: &Purpose,
    ) -> hyper::Result<Sender>
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let io = TokioIo::new(stream);
        if purpose.http2 {
            let (sender, driver) = http2::Builder::new(TokioExecutor::new())
                .max_header_list_size(HEAD_MAX as u32)
                .handshake(io)
                .await?;
            self.drive(driver, held);
            return Ok(Sender::Http2(sender));
        }
        let (sender, driver) = library().handshake(io).await?;
        let (ask, mut asked) = oneshot::channel::<oneshot::Sender<_>>();
        if purpose.upgrades {
            self.drive(driver.with_upgrades(), held);
        } else {
            lock(&self.drivers).spawn(async move {
                let Ok(mut parts) = driver.without_shutdown().await else { return };
                match asked.try_recv() {
                    // Bytes that nobody asked for end the connection (T-46).
                    Ok(give) if parts.read_buf.is_empty() => {
                        let _ = give.send((again(parts.io.into_inner()), held));
                    }
                    _ => {
                        let _ = parts.io.inner_mut().shutdown().await;
                    }
                }
            });
        }
        Ok(Sender::Http1(sender, ask))
    }

    /// Runs a connection's own part for as long as the pool lives; it counts until then.
    fn drive(&self, driver: impl Future<Output = hyper::Result<()>> + Send + 'static, held: Held) {
        lock(&self.drivers).spawn(async move {
            // Whoever waits for an answer is told of the error by the library.
            let _ = driver.await;
            drop(held);
        });
    }
}

/// The HTTP library's client.
pub(super) fn library() -> http1::Builder {
    let mut library = http1::Builder::new();
    library.preserve_header_case(true).max_headers(HEADERS_MAX);
    library
}

/// No critical section here leaves anything half done when it panics.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use tokio::net::{TcpListener, TcpStream};
    use tokio::time::timeout;

    use super::*;

    fn resting(pool: &Pool) -> usize {
        lock(&pool.idle).iter().filter(|kept| matches!(kept, Kept::Resting(..))).count()
    }

    /// At rest nothing of a connection is in the library's hands, and no task is left of it.
    #[tokio::test]
    async fn at_rest_only_the_stream_is_left() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let upstream = listener.local_addr().unwrap();
        let stream = TcpStream::connect(upstream).await.unwrap();
        let (far, local) = listener.accept().await.unwrap();
        let stream = Stream::Plain(stream);
        let (tls, socket, left, held) = (None, None, None, Held::default());
        let carried = Carried { stream, upstream, local, tls, socket, left, held };
        let purpose = Purpose {
            cluster: None,
            upstream: Upstream::None,
            door: Door::Direct,
            traffic: Arc::default(),
            plain: None,
            host: None,
            made_of: None,
            http2: false,
            upgrades: false,
        };
        let pool = Pool::default();
        pool.put(pool.start(purpose.clone(), carried).await.unwrap());
        assert_eq!((resting(&pool), lock(&pool.drivers).len()), (0, 1));
        assert!(timeout(Duration::from_millis(50), pool.rest()).await.is_err());
        assert_eq!((resting(&pool), lock(&pool.drivers).len()), (1, 0));
        let mut woken = pool.take(&purpose, |_| true).await.expect("the same connection");
        woken.sender.ready().await.unwrap();
        assert_eq!((woken.ends.local, lock(&pool.drivers).len()), (local, 1));
        pool.put(woken);
        drop(far);
        let ended = async {
            while !lock(&pool.idle).is_empty() {
                tokio::task::yield_now().await;
            }
        };
        tokio::select! {
            () = pool.rest() => {}
            () = ended => {}
        }
    }
}
