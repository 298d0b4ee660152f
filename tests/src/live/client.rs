//! The caller of a scenario, inside the covered cgroup: does what the flow says and writes down what
//! came of it.

use std::env;
use std::fs;
use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper::client::conn::{http1, http2};
use hyper::header::{HOST, HeaderName, HeaderValue, USER_AGENT};
use hyper::{Request, Response, Version, body::Incoming};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use super::case::{FirstBytes, Flow, Http};
use super::stub::MARK;
use super::verbatim;

/// What raw flows send: neither TLS nor HTTP.
const RAW: &[u8] = b"\x00\x01 a protocol of its own\n";

/// What a caller is told to do.
#[derive(Debug, Deserialize, Serialize)]
pub struct Task {
    /// The flow, its `then` included.
    pub flow: Flow,
    /// How often.
    pub repeat: u32,
    /// As whom.
    pub uid: Option<u32>,
    /// How long it waits for anything, in milliseconds.
    pub patience_ms: u64,
}

/// What came of one exchange.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub struct Exchange {
    /// The caller's own end, once connected.
    pub local: Option<SocketAddr>,
    /// Status of the answer.
    pub status: Option<u16>,
    /// Its body.
    pub body: String,
    /// Its headers, names in lower case.
    pub headers: Vec<(String, String)>,
    /// Bytes of the connection's payload that came back, where they were counted.
    pub received: u64,
    /// What curl would have exited with.
    pub curl_exit: i32,
    /// How long it took, in milliseconds.
    pub elapsed_ms: u64,
    /// Nothing came in time.
    pub hung: bool,
    /// What went wrong.
    pub error: Option<String>,
}

impl Exchange {
    /// Whether the upstream, not the proxy, made the answer.
    #[must_use]
    pub fn from_upstream(&self) -> bool {
        self.headers.iter().any(|(name, _)| name == MARK)
    }
}

/// Does what the file `task` says and writes the exchanges to the file `result`.
///
/// # Errors
/// When the task can't be read or done at all.
pub fn run(task: &Path, result: &Path) -> Result<()> {
    let task: Task = serde_json::from_slice(&fs::read(task)?)?;
    // Opened before the identity changes.
    let result = fs::File::create(result)?;
    if let Some(uid) = task.uid.filter(|uid| *uid != 0) {
        nix::unistd::setuid(uid.into()).with_context(|| format!("becoming user {uid}"))?;
    }
    let patience = Duration::from_millis(task.patience_ms);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let exchanges = runtime.block_on(async {
        let mut exchanges = Vec::new();
        let mut next = Some(&task.flow);
        while let Some(flow) = next {
            let mut kept = None;
            for _ in 0..task.repeat.max(1) {
                exchanges.push(exchange(flow, patience, &mut kept).await?);
            }
            next = flow.then.as_deref();
        }
        anyhow::Ok(exchanges)
    })?;
    Ok(serde_json::to_writer(result, &exchanges)?)
}

/// A connection that further requests may use.
type Kept = Option<(http1::SendRequest<Empty<Bytes>>, SocketAddr)>;

async fn exchange(flow: &Flow, patience: Duration, kept: &mut Kept) -> Result<Exchange> {
    let begun = Instant::now();
    let mut exchange = Exchange::default();
    let done = timeout(patience, attempt(flow, &mut exchange, kept)).await;
    exchange.elapsed_ms = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX);
    match done {
        Ok(Ok(())) => {}
        Ok(Err(Failed::Exit(code, why))) => {
            exchange.curl_exit = code;
            exchange.error = Some(why);
        }
        Ok(Err(Failed::Task(error))) => return Err(error),
        Err(_) => {
            exchange.curl_exit = 28;
            exchange.hung = exchange.received == 0 && exchange.status.is_none();
            exchange.error = Some(format!("nothing came in {patience:?}"));
        }
    }
    Ok(exchange)
}

/// Why there is no answer.
enum Failed {
    /// As curl would exit.
    Exit(i32, String),
    /// The task can't be done by any client.
    Task(anyhow::Error),
}

impl From<anyhow::Error> for Failed {
    fn from(error: anyhow::Error) -> Self {
        Self::Task(error)
    }
}

/// curl's exit for an I/O error after the connect.
fn broken(error: &io::Error, otherwise: i32) -> Failed {
    let code = match error.kind() {
        io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => 56,
        _ => otherwise,
    };
    Failed::Exit(code, error.to_string())
}

fn http_failed(error: &hyper::Error) -> Failed {
    let mut source = std::error::Error::source(error);
    while let Some(inner) = source {
        if let Some(error) = inner.downcast_ref::<io::Error>() {
            return broken(error, 52);
        }
        source = inner.source();
    }
    let code = if error.is_parse() { 1 } else { 52 };
    Failed::Exit(code, error.to_string())
}

async fn attempt(flow: &Flow, exchange: &mut Exchange, kept: &mut Kept) -> Result<(), Failed> {
    if flow.transport == "udp" {
        return datagram(flow, exchange).await;
    }
    if let (FirstBytes::Http1, Some((sender, local))) = (flow.first_bytes, kept.as_mut())
        && sender.ready().await.is_ok()
    {
        exchange.local = Some(*local);
        let request = request(flow.http.as_ref(), flow.dst, false)?;
        let answer = sender.send_request(request).await.map_err(|error| http_failed(&error))?;
        return take(answer, exchange).await;
    }
    let stream = TcpStream::connect(flow.dst)
        .await
        .map_err(|error| Failed::Exit(7, format!("connect: {error}")))?;
    exchange.local = stream.local_addr().ok();
    match flow.first_bytes {
        // What the library won't send is written as it is.
        FirstBytes::Http1 if request(flow.http.as_ref(), flow.dst, false).is_err() => {
            let http = flow.http.as_ref().context("a request")?;
            verbatim::exchange(stream, http, exchange).await.map_err(|error| broken(&error, 52))
        }
        FirstBytes::Http1 => {
            let local = exchange.local.unwrap_or(flow.dst);
            let (sender, answer) = over_http1(stream, flow).await?;
            let kept_sender = sender;
            let done = take(answer, exchange).await;
            *kept = Some((kept_sender, local));
            done
        }
        FirstBytes::H2c => over_http2(stream, flow, exchange).await,
        FirstBytes::Tls => over_tls(stream, flow, exchange).await,
        FirstBytes::Raw => bytes(stream, RAW, exchange).await,
        FirstBytes::None => bytes(stream, b"", exchange).await,
    }
}

async fn over_http1<S>(
    stream: S,
    flow: &Flow,
) -> Result<(http1::SendRequest<Empty<Bytes>>, Response<Incoming>), Failed>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let (mut sender, connection) =
        http1::handshake(TokioIo::new(stream)).await.map_err(|error| http_failed(&error))?;
    tokio::spawn(connection);
    let request = request(flow.http.as_ref(), flow.dst, false)?;
    let answer = sender.send_request(request).await.map_err(|error| http_failed(&error))?;
    Ok((sender, answer))
}

async fn over_http2<S>(stream: S, flow: &Flow, exchange: &mut Exchange) -> Result<(), Failed>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let (mut sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
        .await
        .map_err(|error| http_failed(&error))?;
    tokio::spawn(connection);
    let request = request(flow.http.as_ref(), flow.dst, true)?;
    let answer = sender.send_request(request).await.map_err(|error| http_failed(&error))?;
    take(answer, exchange).await
}

async fn over_tls(stream: TcpStream, flow: &Flow, exchange: &mut Exchange) -> Result<(), Failed> {
    let (config, refused) = tls_config(flow)?;
    let name = match &flow.sni {
        Some(name) => ServerName::try_from(name.clone())
            .with_context(|| format!("{name:?} cannot be sent as SNI"))?,
        // An address is never sent as a name.
        None => ServerName::IpAddress(flow.dst.ip().into()),
    };
    let connected = TlsConnector::from(Arc::new(config)).connect(name, stream).await;
    let stream = connected.map_err(|error| {
        let untrusted = refused.lock().unwrap_or_else(PoisonError::into_inner).take();
        match untrusted {
            Some(why) => Failed::Exit(60, why),
            // Whatever ends the connection before the handshake is done.
            None => Failed::Exit(35, error.to_string()),
        }
    })?;
    let protocol = stream.get_ref().1.alpn_protocol().map(<[u8]>::to_vec);
    let mut inner = flow.clone();
    inner.http.get_or_insert_with(|| Http {
        method: "GET".into(),
        path: "/".into(),
        host: Some(flow.sni.clone().unwrap_or_else(|| flow.dst.ip().to_string())),
        version: None,
        headers: Default::default(),
    });
    if protocol.as_deref() == Some(b"h2") {
        return over_http2(stream, &inner, exchange).await;
    }
    let (_sender, answer) = over_http1(stream, &inner).await?;
    take(answer, exchange).await
}

/// Sends bytes and reads what comes back: the same number, or anything if none are sent.
async fn bytes(mut stream: TcpStream, bytes: &[u8], exchange: &mut Exchange) -> Result<(), Failed> {
    stream.write_all(bytes).await.map_err(|error| broken(&error, 55))?;
    let mut buffer = [0; 4096];
    let wanted = bytes.len().max(1) as u64;
    while exchange.received < wanted {
        match stream.read(&mut buffer).await {
            Ok(0) => return Err(Failed::Exit(52, "closed".into())),
            Ok(length) => {
                exchange.received += length as u64;
                exchange.body.push_str(&String::from_utf8_lossy(&buffer[..length]));
            }
            Err(error) => return Err(broken(&error, 56)),
        }
    }
    // Ended in order, both ways, so that the log knows the end.
    let _ = stream.shutdown().await;
    while matches!(stream.read(&mut buffer).await, Ok(length) if length > 0) {}
    Ok(())
}

async fn datagram(flow: &Flow, exchange: &mut Exchange) -> Result<(), Failed> {
    let any = if flow.dst.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let socket = UdpSocket::bind(any).await.context("a UDP socket")?;
    socket.connect(flow.dst).await.map_err(|error| Failed::Exit(7, error.to_string()))?;
    exchange.local = socket.local_addr().ok();
    socket.send(RAW).await.map_err(|error| Failed::Exit(7, error.to_string()))?;
    let mut buffer = [0; 2048];
    match socket.recv(&mut buffer).await {
        Ok(length) => exchange.received = length as u64,
        Err(error) => return Err(Failed::Exit(7, error.to_string())),
    }
    Ok(())
}

fn request(http: Option<&Http>, dst: SocketAddr, h2: bool) -> Result<Request<Empty<Bytes>>> {
    let Some(http) = http else { bail!("a request that the flow does not describe") };
    let host = http.host.as_deref().unwrap_or_default();
    let target = match (h2, http.method.as_str()) {
        (false, _) => http.path.clone(),
        (true, "CONNECT") => host.to_owned(),
        (true, _) => format!("http://{host}{}", http.path),
    };
    let mut request = Request::builder().method(http.method.as_str()).uri(&target);
    if !h2 && http.version.as_deref() == Some("1.0") {
        request = request.version(Version::HTTP_10);
    }
    let mut request = request
        .body(Empty::new())
        .with_context(|| format!("{} {target} to {dst} is no request", http.method))?;
    let headers = request.headers_mut();
    if let (false, Some(host)) = (h2, &http.host) {
        headers.insert(HOST, HeaderValue::from_bytes(host.as_bytes())?);
    }
    headers.insert(USER_AGENT, HeaderValue::from_static("curl/8.10.1"));
    for (name, value) in &http.headers {
        headers.insert(HeaderName::from_bytes(name.as_bytes())?, value.parse()?);
    }
    Ok(request)
}

async fn take(answer: Response<Incoming>, exchange: &mut Exchange) -> Result<(), Failed> {
    exchange.status = Some(answer.status().as_u16());
    exchange.headers = answer
        .headers()
        .iter()
        .map(|(name, value)| {
            (name.to_string(), String::from_utf8_lossy(value.as_bytes()).into_owned())
        })
        .collect();
    let body = answer.into_body().collect().await.map_err(|error| http_failed(&error))?.to_bytes();
    exchange.received += body.len() as u64;
    exchange.body = String::from_utf8_lossy(&body).into_owned();
    Ok(())
}

type Refused = Arc<Mutex<Option<String>>>;

fn tls_config(flow: &Flow) -> Result<(ClientConfig, Refused)> {
    let file = env::var_os("SSL_CERT_FILE").context("SSL_CERT_FILE is not set")?;
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_file_iter(file)? {
        roots.add(certificate?)?;
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let inner = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider));
    let refused = Refused::default();
    let verifier = Verifier { inner: inner.build()?, refused: Arc::clone(&refused) };
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_no_client_auth();
    config.alpn_protocols =
        flow.alpn.iter().map(|protocol| protocol.clone().into_bytes()).collect();
    Ok((config, refused))
}

/// Checks names as curl does, says why it refused, and takes anything where no name was sent.
#[derive(Debug)]
struct Verifier {
    inner: Arc<WebPkiServerVerifier>,
    refused: Refused,
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        if matches!(name, ServerName::IpAddress(_)) {
            return Ok(ServerCertVerified::assertion());
        }
        self.inner.verify_server_cert(end_entity, intermediates, name, ocsp, now).inspect_err(
            |error| {
                let mut refused = self.refused.lock().unwrap_or_else(PoisonError::into_inner);
                *refused = Some(error.to_string());
            },
        )
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.inner.verify_tls12_signature(message, certificate, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.inner.verify_tls13_signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.supported_verify_schemes()
    }
}
