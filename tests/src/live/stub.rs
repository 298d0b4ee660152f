//! The upstream of a scenario: one server on every port that the case needs, which finds out what
//! it is spoken to in and notes everything that arrives.

use std::collections::{BTreeSet, HashMap};
use std::convert::Infallible;
use std::future::Future;
use std::io::{self, Cursor};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread::{self, JoinHandle};

use anyhow::{Context, Result, anyhow};
use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{HOST, HeaderValue, LOCATION};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode, Version};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::UdpSocket;
use tokio::sync::mpsc as orders;
use tokio::task::AbortHandle;
use tokio_rustls::LazyConfigAcceptor;

use super::behaviour::{Behaviour, Server};
use super::tls::Certificates;
use crate::netns::Namespace;
use crate::servers::{canonical, listener};

/// The header that every answer of the stub carries: whatever lacks it was made by the proxy.
pub const MARK: &str = "x-stub";
/// What a server that speaks first says.
pub const GREETING: &str = "220 stub ready\r\n";
/// What HTTP is answered with.
pub const PAGE: &str = "stub\n";

/// One connection as it arrived.
#[derive(Clone, Debug)]
pub struct Contact {
    /// The address that it came in on.
    pub local: SocketAddr,
    /// Where it came from.
    pub peer: SocketAddr,
    /// Its first layer of TLS, if there was one.
    pub tls: Option<Hello>,
    /// How many layers of TLS there were.
    pub layers: usize,
    /// Its requests, in order.
    pub requests: Vec<Asked>,
    /// The version of a PROXY header.
    pub proxy_protocol: Option<u8>,
    /// Bytes of another protocol.
    pub raw: usize,
}

/// A ClientHello, and what became of the handshake.
#[derive(Clone, Debug, Default)]
pub struct Hello {
    /// The name.
    pub sni: Option<String>,
    /// The protocols.
    pub alpn: Vec<String>,
    /// Whether the client showed a certificate.
    pub certificate: bool,
}

/// A request as it arrived.
#[derive(Clone, Debug)]
pub struct Asked {
    /// Method.
    pub method: String,
    /// Target: path and query, or the authority of CONNECT.
    pub target: String,
    /// Host, or `:authority`.
    pub host: String,
    /// `HTTP/1.1`, `HTTP/2`, …
    pub version: &'static str,
    /// All headers.
    pub headers: Vec<(String, String)>,
}

impl Contact {
    /// Of which nothing but its ends is known yet.
    fn new(local: SocketAddr, peer: SocketAddr) -> Self {
        Self {
            local: canonical(local),
            peer: canonical(peer),
            tls: None,
            layers: 0,
            requests: Vec::new(),
            proxy_protocol: None,
            raw: 0,
        }
    }

    /// Whether something of the client's reached us.
    #[must_use]
    pub fn spoke(&self) -> bool {
        self.tls.is_some() || !self.requests.is_empty() || self.raw > 0
    }
}

type Noted = Arc<Mutex<Vec<Arc<Mutex<Contact>>>>>;

struct Order {
    behaviour: Behaviour,
    ports: BTreeSet<u16>,
    udp: Option<SocketAddr>,
    done: mpsc::Sender<Result<()>>,
}

/// The running stub. Dropping it ends it.
pub struct Stub {
    orders: Option<orders::UnboundedSender<Order>>,
    noted: Noted,
    thread: Option<JoinHandle<()>>,
}

impl Stub {
    /// Starts a stub in `namespace`; it listens nowhere yet.
    ///
    /// # Errors
    /// When the namespace can't be entered.
    pub fn start(namespace: &Namespace, certificates: Arc<Certificates>) -> Result<Self> {
        let (sender, receiver) = orders::unbounded_channel();
        let noted = Noted::default();
        let thread = namespace.inside(|| {
            let noted = Arc::clone(&noted);
            thread::spawn(move || {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
                match runtime {
                    Ok(runtime) => runtime.block_on(obey(receiver, noted, certificates)),
                    Err(error) => eprintln!("the stub has no runtime: {error}"),
                }
            })
        })?;
        Ok(Self { orders: Some(sender), noted, thread: Some(thread) })
    }

    /// Listens on exactly these ports, behaves like this, and forgets what it noted.
    ///
    /// # Errors
    /// When a port can't be opened.
    pub fn prepare(
        &self,
        behaviour: Behaviour,
        ports: BTreeSet<u16>,
        udp: Option<SocketAddr>,
    ) -> Result<()> {
        let (done, answer) = mpsc::channel();
        let gone = || anyhow!("the stub has ended");
        let order = Order { behaviour, ports, udp, done };
        self.orders.as_ref().ok_or_else(gone)?.send(order).map_err(|_| gone())?;
        answer.recv().map_err(|_| gone())??;
        self.noted.lock().unwrap_or_else(PoisonError::into_inner).clear();
        Ok(())
    }

    /// What arrived since [`Stub::prepare`].
    #[must_use]
    pub fn contacts(&self) -> Vec<Contact> {
        let noted = self.noted.lock().unwrap_or_else(PoisonError::into_inner);
        noted.iter().map(|c| c.lock().unwrap_or_else(PoisonError::into_inner).clone()).collect()
    }
}

impl Drop for Stub {
    fn drop(&mut self) {
        self.orders.take();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

async fn obey(
    mut orders: orders::UnboundedReceiver<Order>,
    noted: Noted,
    certificates: Arc<Certificates>,
) {
    let mut open: HashMap<u16, AbortHandle> = HashMap::new();
    let mut datagrams: Option<AbortHandle> = None;
    let behaviour = Arc::new(Mutex::new(Arc::new(Behaviour::default())));
    while let Some(order) = orders.recv().await {
        if let Some(task) = datagrams.take() {
            task.abort();
        }
        let refuses = order.behaviour.server == Server::Refuses;
        open.retain(|port, task| {
            let keep = !refuses && order.ports.contains(port);
            if !keep {
                task.abort();
            }
            keep
        });
        // Aborted tasks close their sockets when they are polled next.
        tokio::task::yield_now().await;
        *behaviour.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(order.behaviour);
        let mut result = Ok(());
        for port in order.ports.into_iter().filter(|_| !refuses) {
            if open.contains_key(&port) {
                continue;
            }
            let context = Shared {
                behaviour: Arc::clone(&behaviour),
                noted: Arc::clone(&noted),
                certificates: Arc::clone(&certificates),
            };
            match listen(port, context) {
                Ok(task) => drop(open.insert(port, task)),
                Err(error) => result = Err(error),
            }
        }
        if let (Some(at), false) = (order.udp, refuses) {
            match echo_datagrams(at, Arc::clone(&noted)).await {
                Ok(task) => datagrams = Some(task),
                Err(error) => result = Err(error),
            }
        }
        let _ = order.done.send(result);
    }
}

#[derive(Clone)]
struct Shared {
    behaviour: Arc<Mutex<Arc<Behaviour>>>,
    noted: Noted,
    certificates: Arc<Certificates>,
}

fn listen(port: u16, shared: Shared) -> Result<AbortHandle> {
    let listener = listener(port)?;
    let task = tokio::spawn(async move {
        loop {
            let Ok((stream, peer)) = listener.accept().await else { continue };
            let Ok(local) = stream.local_addr() else { continue };
            let behaviour =
                Arc::clone(&shared.behaviour.lock().unwrap_or_else(PoisonError::into_inner));
            let contact = Arc::new(Mutex::new(Contact::new(local, peer)));
            shared.noted.lock().unwrap_or_else(PoisonError::into_inner).push(Arc::clone(&contact));
            let session =
                Session { behaviour, contact, certificates: Arc::clone(&shared.certificates) };
            // How a connection ends is the client's business; what arrived is noted.
            tokio::spawn(async move {
                let _ = session.serve(Box::new(stream)).await;
            });
        }
    });
    Ok(task.abort_handle())
}

async fn echo_datagrams(at: SocketAddr, noted: Noted) -> Result<AbortHandle> {
    let socket = UdpSocket::bind(at).await.with_context(|| format!("UDP on {at}"))?;
    let task = tokio::spawn(async move {
        let mut buffer = [0; 2048];
        while let Ok((length, peer)) = socket.recv_from(&mut buffer).await {
            let contact = Contact { raw: length, ..Contact::new(at, peer) };
            noted
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .push(Arc::new(Mutex::new(contact)));
            let _ = socket.send_to(&buffer[..length], peer).await;
        }
    });
    Ok(task.abort_handle())
}

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}
type Io = Box<dyn Stream>;

#[derive(Clone)]
struct Session {
    behaviour: Arc<Behaviour>,
    contact: Arc<Mutex<Contact>>,
    certificates: Arc<Certificates>,
}

impl Session {
    fn note(&self, change: impl FnOnce(&mut Contact)) {
        change(&mut self.contact.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// Serves whatever comes: a PROXY header, TLS, HTTP, CONNECT, or other bytes.
    fn serve(self, mut io: Io) -> Pin<Box<dyn Future<Output = io::Result<()>> + Send>> {
        Box::pin(async move {
            if self.behaviour.speaks_first {
                io.write_all(GREETING.as_bytes()).await?;
            }
            let mut first = vec![0; 4096];
            let length = io.read(&mut first).await?;
            first.truncate(length);
            if let Some((version, rest)) = proxy_header(&first) {
                self.note(|contact| contact.proxy_protocol = Some(version));
                first.drain(..rest);
                if first.is_empty() {
                    let mut more = vec![0; 4096];
                    let length = io.read(&mut more).await?;
                    first.extend_from_slice(&more[..length]);
                }
            }
            let kind = first.first().copied();
            let (read, write) = tokio::io::split(io);
            let whole: Io = Box::new(tokio::io::join(Cursor::new(first).chain(read), write));
            match kind {
                None => Ok(()),
                Some(0x16) => self.tls(whole).await,
                Some(b'A'..=b'Z') => self.http(whole).await,
                Some(_) => self.echo(whole).await,
            }
        })
    }

    async fn tls(self, io: Io) -> io::Result<()> {
        let start = LazyConfigAcceptor::new(rustls::server::Acceptor::default(), io).await?;
        let hello = start.client_hello();
        let name = hello.server_name().map(str::to_owned);
        let alpn = hello
            .alpn()
            .map(|protocols| protocols.map(|p| String::from_utf8_lossy(p).into_owned()).collect());
        let seen = Hello { sni: name.clone(), alpn: alpn.unwrap_or_default(), certificate: false };
        self.note(|contact| {
            contact.layers += 1;
            contact.tls.get_or_insert(seen);
        });
        let config = self.certificates.server(&self.behaviour.server, name.as_deref());
        let stream = start.into_stream(config.map_err(io::Error::other)?).await?;
        let certificate = stream.get_ref().1.peer_certificates().is_some();
        self.note(|contact| {
            if let Some(tls) = &mut contact.tls {
                tls.certificate |= certificate;
            }
        });
        self.serve(Box::new(stream)).await
    }

    async fn http(self, io: Io) -> io::Result<()> {
        let service = service_fn(|request: Request<Incoming>| {
            let session = self.clone();
            async move { Ok::<_, Infallible>(session.answer(request).await) }
        });
        auto::Builder::new(TokioExecutor::new())
            .serve_connection_with_upgrades(TokioIo::new(io), service)
            .await
            .map_err(io::Error::other)
    }

    async fn answer(self, mut request: Request<Incoming>) -> Response<Full<Bytes>> {
        let asked = asked(&request);
        let path = request.uri().path().to_owned();
        let host = asked.host.clone();
        self.note(|contact| contact.requests.push(asked));
        let mut response = Response::new(Full::new(Bytes::from_static(PAGE.as_bytes())));
        response.headers_mut().insert(MARK, HeaderValue::from_static("1"));
        if request.method() == Method::CONNECT {
            let upgrade = hyper::upgrade::on(&mut request);
            tokio::spawn(async move {
                if let Ok(upgraded) = upgrade.await {
                    let _ = self.serve(Box::new(TokioIo::new(upgraded))).await;
                }
            });
            *response.body_mut() = Full::default();
            return response;
        }
        tokio::time::sleep(self.behaviour.delay).await;
        let port = self.contact.lock().unwrap_or_else(PoisonError::into_inner).local.port();
        let status = path.strip_prefix("/status/").and_then(|code| code.parse().ok());
        if self.behaviour.server == Server::Redirects && port == 80 {
            *response.status_mut() = StatusCode::MOVED_PERMANENTLY;
            let name = host.rsplit_once(':').map_or(host.as_str(), |(name, _)| name);
            if let Ok(target) = format!("https://{name}{path}").parse() {
                response.headers_mut().insert(LOCATION, target);
            }
        } else if let Some(status) = status.and_then(|code: u16| StatusCode::from_u16(code).ok()) {
            *response.status_mut() = status;
        }
        response
    }

    async fn echo(self, mut io: Io) -> io::Result<()> {
        let mut buffer = vec![0; 16 * 1024];
        loop {
            let length = io.read(&mut buffer).await?;
            if length == 0 {
                return io.shutdown().await;
            }
            self.note(|contact| contact.raw += length);
            tokio::time::sleep(self.behaviour.delay).await;
            io.write_all(&buffer[..length]).await?;
        }
    }
}

fn asked(request: &Request<Incoming>) -> Asked {
    let header = request.headers().get(HOST).and_then(|host| host.to_str().ok());
    let authority = request.uri().authority().map(|authority| authority.as_str());
    let path = request.uri().path_and_query().map(|path| path.as_str());
    Asked {
        method: request.method().to_string(),
        target: path.or(authority).unwrap_or("/").to_owned(),
        host: header.or(authority).unwrap_or_default().to_owned(),
        version: match request.version() {
            Version::HTTP_10 => "HTTP/1.0",
            Version::HTTP_2 => "HTTP/2",
            _ => "HTTP/1.1",
        },
        headers: request
            .headers()
            .iter()
            .map(|(name, value)| {
                (name.to_string(), String::from_utf8_lossy(value.as_bytes()).into_owned())
            })
            .collect(),
    }
}

/// The version of a PROXY header at the start, and its length.
fn proxy_header(bytes: &[u8]) -> Option<(u8, usize)> {
    const SIGNATURE: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";
    if bytes.starts_with(b"PROXY ") {
        let end = bytes.windows(2).position(|pair| pair == b"\r\n")?;
        return Some((1, end + 2));
    }
    if bytes.starts_with(SIGNATURE) {
        let length = u16::from_be_bytes([*bytes.get(14)?, *bytes.get(15)?]);
        return Some((2, (16 + usize::from(length)).min(bytes.len())));
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn proxy_headers_of_both_versions() {
        assert_eq!(proxy_header(b"PROXY TCP4 1 2 3 4\r\nGET"), Some((1, 20)));
        let mut two = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x02".to_vec();
        two.extend_from_slice(b"abrest");
        assert_eq!(proxy_header(&two), Some((2, 18)));
        assert_eq!(proxy_header(b"GET / HTTP/1.1\r\n"), None);
    }
}
