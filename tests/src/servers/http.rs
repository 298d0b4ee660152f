//! The web of the stub internet: one server that plays every site, by the name it is asked for.

use std::convert::Infallible;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use anyhow::Result;
use bytes::Bytes;
use http_body_util::{BodyExt, Either, Full};
use hyper::body::{Body, Frame, Incoming, SizeHint};
use hyper::header::{CONTENT_LENGTH, CONTENT_TYPE, HOST, LOCATION};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use rustls::ServerConfig;
use serde_json::{Map, Value, json};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;

use super::{Seen, canonical};
use crate::ca::Authority;
use crate::pattern;

/// About what the front page of a news site weighs in the tutorial's log.
const NEWS_PAGE: usize = 2 << 20;

/// An answer.
type Page = Response<Either<Full<Bytes>, Stretch>>;

/// One port's web server; cheap to clone.
#[derive(Clone)]
pub(super) struct Site {
    seen: Arc<Mutex<Vec<Seen>>>,
    tls: Option<TlsAcceptor>,
}

impl Site {
    /// Plain HTTP, or HTTPS with certificates of `authority`.
    pub(super) fn new(
        seen: Arc<Mutex<Vec<Seen>>>,
        authority: Option<Arc<Authority>>,
    ) -> Result<Self> {
        let tls = authority.map(tls_acceptor).transpose()?;
        Ok(Self { seen, tls })
    }

    /// Serves one connection, HTTP/1.1 or HTTP/2, to its end.
    pub(super) async fn serve(self, stream: TcpStream) -> io::Result<()> {
        let mut connection = Seen {
            scheme: if self.tls.is_some() { "https" } else { "http" },
            sni: None,
            alpn: None,
            local: canonical(stream.local_addr()?),
            peer: canonical(stream.peer_addr()?),
            host: String::new(),
            path: String::new(),
        };
        match &self.tls {
            None => self.requests(connection, stream).await,
            Some(acceptor) => {
                let stream = acceptor.accept(stream).await?;
                let tls = stream.get_ref().1;
                connection.sni = tls.server_name().map(str::to_owned);
                let text = |alpn| String::from_utf8_lossy(alpn).into_owned();
                connection.alpn = tls.alpn_protocol().map(text);
                self.requests(connection, stream).await
            }
        }
    }

    async fn requests(
        &self,
        connection: Seen,
        stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    ) -> io::Result<()> {
        let service = service_fn(|request: Request<Incoming>| {
            let seen = Seen {
                host: host(&request),
                path: request.uri().path_and_query().map_or("/", |path| path.as_str()).to_owned(),
                ..connection.clone()
            };
            let log = Arc::clone(&self.seen);
            async move {
                log.lock().unwrap_or_else(PoisonError::into_inner).push(seen.clone());
                let head = request.method() == Method::HEAD;
                let response = page(&seen, request).await;
                Ok::<_, Infallible>(if head { without_body(response) } else { response })
            }
        });
        auto::Builder::new(TokioExecutor::new())
            .serve_connection(TokioIo::new(stream), service)
            .await
            .map_err(io::Error::other)
    }
}

/// The answer to HEAD: the length that GET would have, and no body (HTTP/2 wants it so, and hyper
/// leaves it to us there).
fn without_body(response: Page) -> Page {
    let length = response.body().size_hint().lower();
    let mut response = response.map(|_| Either::Left(Full::default()));
    response.headers_mut().insert(CONTENT_LENGTH, length.into());
    response
}

fn tls_acceptor(authority: Arc<Authority>) -> Result<TlsAcceptor> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_cert_resolver(authority);
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(TlsAcceptor::from(Arc::new(config)))
}

/// The name that the request is for, without a port.
fn host(request: &Request<Incoming>) -> String {
    let header = || request.headers().get(HOST).and_then(|host| host.to_str().ok());
    let host = request.uri().host().or_else(header).unwrap_or_default();
    host.rsplit_once(':').map_or(host, |(name, _)| name).to_ascii_lowercase()
}

/// What the site of that name answers.
async fn page(seen: &Seen, request: Request<Incoming>) -> Page {
    let (scheme, path) = (seen.scheme, seen.path.as_str());
    match seen.host.as_str() {
        "edition.cnn.com" if scheme == "http" => {
            let mut response = text(StatusCode::MOVED_PERMANENTLY, "");
            let target = "https://edition.cnn.com/politics";
            response.headers_mut().insert(LOCATION, target.try_into().expect("a plain URL"));
            response
        }
        "edition.cnn.com" => text(StatusCode::OK, "x".repeat(NEWS_PAGE)),
        "en.wikipedia.org" => html("Wikipedia, the free encyclopedia"),
        "de.wikipedia.org" => html("Wikipedia – Die freie Enzyklopädie"),
        "www.google.com" => html("Google"),
        _ => service(path, request).await,
    }
}

/// The parts of httpbin.org that the tutorial and the tests use; served for any other name.
async fn service(path: &str, request: Request<Incoming>) -> Page {
    let (verb, argument) = path[1..].split_once('/').unwrap_or((&path[1..], ""));
    let number = argument.parse::<u32>().ok();
    match (verb, number) {
        ("headers", _) => echo_headers(&request),
        ("delay", Some(seconds)) => {
            tokio::time::sleep(Duration::from_secs(seconds.into())).await;
            echo_headers(&request)
        }
        ("bytes", Some(length)) => {
            text(StatusCode::OK, "").map(|_| Either::Right(Stretch { at: 0, end: length.into() }))
        }
        ("status", Some(code)) => {
            let code = u16::try_from(code).ok().and_then(|code| StatusCode::from_u16(code).ok());
            text(code.unwrap_or(StatusCode::BAD_REQUEST), "")
        }
        ("upload", _) => upload(request).await,
        ("page", Some(parts)) => page_of_parts(parts),
        ("part", _) => text(StatusCode::OK, "loaded++;\n"),
        _ => text(StatusCode::OK, "stub internet\n"),
    }
}

/// `{"headers": {…}}` with every header as it arrived.
fn echo_headers(request: &Request<Incoming>) -> Page {
    let headers: Map<String, Value> = request
        .headers()
        .iter()
        .map(|(name, value)| {
            (name.as_str().to_owned(), String::from_utf8_lossy(value.as_bytes()).into())
        })
        .collect();
    let body = serde_json::to_vec_pretty(&json!({ "headers": headers })).expect("string keys");
    let mut response = text(StatusCode::OK, body);
    let json = "application/json".try_into().expect("a plain type");
    response.headers_mut().insert(CONTENT_TYPE, json);
    response
}

/// A body of the pattern, made as it is read.
struct Stretch {
    at: u64,
    end: u64,
}

impl Body for Stretch {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let left = usize::try_from(self.end - self.at).unwrap_or(usize::MAX);
        let piece = pattern::stretch(self.at, left);
        self.at += piece.len() as u64;
        Poll::Ready((!piece.is_empty()).then(|| Ok(Frame::data(Bytes::from_static(piece)))))
    }

    fn is_end_stream(&self) -> bool {
        self.at == self.end
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.end - self.at)
    }
}

/// Says how many bytes of the pattern arrived, and whether they were right.
async fn upload(request: Request<Incoming>) -> Page {
    let (mut body, mut total, mut intact) = (request.into_body(), 0, true);
    while let Some(frame) = body.frame().await {
        let Ok(frame) = frame else { return text(StatusCode::BAD_REQUEST, "broken body\n") };
        if let Some(data) = frame.data_ref() {
            intact &= pattern::matches(total, data);
            total += data.len() as u64;
        }
    }
    let verdict = if intact { "intact" } else { "corrupt" };
    text(StatusCode::OK, format!("{total} {verdict}\n"))
}

/// A page with so many scripts of its own site and a picture of another one. In a browser it says in
/// the end how many scripts came, and whether the picture did.
fn page_of_parts(parts: u32) -> Page {
    let mut body = String::from("<!doctype html>\n<html><body><script>loaded = 0</script>\n");
    for part in 0..parts {
        body += &format!("<script src=\"/part/{part}\"></script>\n");
    }
    body += "<img src=\"https://other.example.com/\" onload=\"picture = 'shown'\" \
             onerror=\"picture = 'refused'\">\n\
             <script>onload = () => document.body.append(`${loaded} parts, ${picture}`)</script>\n\
             </body></html>\n";
    html_body(body)
}

fn html(title: &str) -> Page {
    html_body(format!("<!doctype html>\n<html><head><title>{title}</title></head></html>\n"))
}

fn html_body(body: String) -> Page {
    let mut response = text(StatusCode::OK, body);
    let kind = "text/html; charset=utf-8".try_into().expect("a plain type");
    response.headers_mut().insert(CONTENT_TYPE, kind);
    response
}

fn text(status: StatusCode, body: impl Into<Bytes>) -> Page {
    let mut response = Response::new(Either::Left(Full::new(body.into())));
    *response.status_mut() = status;
    response
}
