//! What must hold of any bytes of a client or an upstream that speak HTTP.
//!
//! The HTTP library stands between the product's own parts as it does when serving; the connections
//! are in memory, and time moves only when nothing else does.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use http::header::HeaderValue;
use http::request::Parts;
use http::{Method, Request, Response, Version};
use hyper::body::{Body as _, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::timeout;

use super::exchange::{effective, passed_on};
use super::frames::Watched;
use super::framing::{Framer, Violation};
use super::pool::{self, lock};
use super::second::{self, Message};
use super::upload::Source;
use super::wire::{Reading, Shared, Wire};
use super::{canon, http2, library};
use crate::decide::canonical_host;
use crate::fuzzing::{pieces, split};

/// The framing of requests: the same bytes are released whatever the pieces, and a second reader
/// finds in them the same messages (T-32, T-33).
pub(crate) fn framing(input: &[u8]) {
    let (bytes, sizes) = split(input);
    let (released, refused) = release(bytes, sizes);
    assert_eq!(released, bytes[..released.len()]);
    let at_once = release(bytes, &[255; 7]);
    assert_eq!((&at_once.0, at_once.1), (&released, refused), "whatever the pieces");

    let read = second::requests(&released).expect("what is released has one reading");
    // Byte by byte a head is released whole, and all else as it comes.
    let (mut framer, mut held, mut heads, mut at) = (Framer::new(), Vec::new(), Vec::new(), 0);
    for byte in bytes {
        held.push(*byte);
        let in_head = framer.in_head();
        let Ok(n) = framer.admit(&held) else { break };
        if in_head && n > 0 {
            heads.push((at, n));
        }
        at += n;
        held.drain(..n);
    }
    let starts = read.iter().scan(0, |end, message| {
        let start = *end;
        *end += message.length;
        Some((start, message.head))
    });
    assert_eq!(heads, starts.collect::<Vec<_>>(), "where requests begin");
}

/// What of `bytes` is released, and why it ended.
fn release(bytes: &[u8], sizes: &[u8]) -> (Vec<u8>, Option<Violation>) {
    let (mut framer, mut held, mut out) = (Framer::new(), Vec::new(), Vec::new());
    for piece in pieces(bytes, sizes) {
        held.extend_from_slice(piece);
        loop {
            match framer.admit(&held) {
                Ok(0) => break,
                Ok(n) => out.extend(held.drain(..n)),
                Err(violation) => return (out, Some(violation)),
            }
        }
    }
    (out, None)
}

/// Requests over HTTP/1.1: what goes upstream is, request by request, the same message in canonical
/// form, and one to every reader (R4, T-30 to T-33).
pub(crate) fn requests(input: &[u8]) {
    let (bytes, sizes) = split(input);
    let (released, _) = release(bytes, sizes);
    let Ok(asked) = second::requests(&released) else { return };
    let passed = play(bytes, sizes, false);
    assert!(passed.len() <= asked.len(), "{} of {}", passed.len(), asked.len());
    for (passed, asked) in passed.iter().zip(&asked) {
        let Some(sent) = passed.sent() else { continue };
        assert_eq!(sent.start, (asked.start.0.clone(), origin_form(&asked.start.1)));
        let hosts: Vec<_> = asked.all("host").collect();
        if let ([host], true) = (hosts.as_slice(), asked.start.1.starts_with('/')) {
            let host = str::from_utf8(host).ok().and_then(canonical_host).expect("a name");
            assert_eq!(sent.all("host").collect::<Vec<_>>(), [host.as_bytes()]);
        }
        assert_eq!(sent.whole, asked.whole, "{sent:?} {asked:?}");
        let there = if asked.whole { sent.body.len() } else { asked.body.len() };
        assert!(asked.body[..there].starts_with(&sent.body), "{sent:?} {asked:?}");
        assert!(!asked.whole || asked.body.len() == sent.body.len(), "{sent:?} {asked:?}");
        for (name, value) in sent.fields.iter().filter(|(name, _)| !is_ours(name)) {
            assert!(asked.fields.contains(&(name.clone(), value.clone())), "{name} is made up");
        }
    }
}

/// Requests over HTTP/2 that go on as HTTP/1.1 (T-36): the same.
pub(crate) fn http2_requests(input: &[u8]) {
    let (bytes, sizes) = split(input);
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
    let bytes = [&preface[..], bytes].concat();
    for passed in play(&bytes, sizes, true) {
        let Some(sent) = passed.sent() else { continue };
        assert_eq!(sent.start, passed.start);
        for (name, value) in sent.fields.iter().filter(|(name, _)| !is_ours(name)) {
            // Crumbs become one field (RFC 9113 section 8.2.3).
            let known = passed.fields.contains(&(name.clone(), value.clone()));
            assert!(known || name == "cookie", "{name} is made up");
        }
    }
}

/// What concerns one hop, or is written anew.
fn is_ours(name: &str) -> bool {
    ["host", "connection", "te", "content-length", "transfer-encoding"].contains(&name)
}

/// The target without what may stand before its path (RFC 9112 section 3.2.2).
fn origin_form(target: &str) -> String {
    if target.starts_with('/') || target == "*" {
        return target.to_owned();
    }
    let rest = &target["http://".len()..];
    match rest.find(['/', '?']) {
        None => "/".to_owned(),
        Some(at) if rest[at..].starts_with('?') => format!("/{}", &rest[at..]),
        Some(at) => rest[at..].to_owned(),
    }
}

/// A request that the library read.
struct Passed {
    /// Its method and target, as the library has them.
    start: (String, String),
    fields: Vec<(String, Vec<u8>)>,
    /// The name that it was passed on with; `None`: it was refused.
    host: Option<HeaderValue>,
    /// What its upstream connection was told.
    told: Arc<Mutex<Vec<u8>>>,
}

impl Passed {
    /// What was sent upstream, which must be one canonical request.
    fn sent(&self) -> Option<Message> {
        let told = lock(&self.told);
        let Some(host) = self.host.as_ref().filter(|_| !told.is_empty()) else {
            assert!(told.is_empty(), "a refused request was sent");
            return None;
        };
        let (released, refused) = release(&told, &[255; 7]);
        assert_eq!((released.len(), refused), (told.len(), None), "{}", told.escape_ascii());
        let mut read = second::requests(&told).expect("one reading");
        let sent = read.pop().expect("a request");
        assert!(read.is_empty(), "one request became two: {}", told.escape_ascii());
        assert_eq!(sent.minor, 1);
        assert_eq!(sent.all("host").collect::<Vec<_>>(), [host.as_bytes()], "one Host");
        for name in ["keep-alive", "proxy-connection", "proxy-authorization", "upgrade", "expect"] {
            assert_eq!(sent.all(name).next(), None, "{name} concerns one hop");
        }
        assert!(sent.all("te").all(|value| value == b"trailers"));
        for name in ["host", "content-length", "transfer-encoding", "trailer", "connection"] {
            assert!(!sent.trailers.iter().any(|trailer| trailer == name), "{name} as a trailer");
        }
        Some(sent)
    }
}

/// Has a client say `bytes`, and gives what becomes of its requests.
fn play(bytes: &[u8], sizes: &[u8], is_http2: bool) -> Vec<Passed> {
    let passed = Arc::new(Mutex::new(Vec::new()));
    let client = Scripted::new(bytes, sizes);
    let service = service_fn(|request| pass_on(request, Arc::clone(&passed)));
    in_memory(async {
        if is_http2 {
            let client = Watched::new(client, Arc::new(Shared::default()));
            let serving = http2::library().serve_connection(TokioIo::new(client), service);
            let _ = timeout(IDLE, serving).await;
        } else {
            let (wire, _) = Wire::new(client, Reading::default());
            let serving = library().serve_connection(TokioIo::new(wire), service);
            let _ = timeout(IDLE, serving).await;
        }
    });
    std::mem::take(&mut *lock(&passed))
}

/// Time stands still until nothing moves any more: less than any limit, and never waited for.
const IDLE: Duration = Duration::from_millis(1);

fn in_memory<T>(work: impl Future<Output = T>) -> T {
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    runtime.enable_time().start_paused(true).build().expect("a runtime").block_on(work)
}

/// One request, as far as a session takes it: refused, or canonical and on its way.
async fn pass_on(
    request: Request<Incoming>,
    passed: Arc<Mutex<Vec<Passed>>>,
) -> Result<Response<String>, Infallible> {
    let (mut parts, body) = request.into_parts();
    let host = host_of(&parts);
    let told = Arc::default();
    let upstream = Upstream { told: Arc::clone(&told), answered: false, waiting: None };
    let field = |(name, value): (&http::HeaderName, &HeaderValue)| {
        (name.as_str().to_owned(), value.as_bytes().to_vec())
    };
    lock(&passed).push(Passed {
        start: (parts.method.to_string(), canon::path(&parts.uri).into_owned()),
        fields: parts.headers.iter().map(field).collect(),
        host: host.clone(),
        told,
    });
    let mut answer = Response::new(String::new());
    let Some(host) = host else {
        *answer.status_mut() = http::StatusCode::BAD_REQUEST;
        return Ok(answer);
    };
    canon::request(&mut parts, host, false, true);
    let body = (!body.is_end_stream()).then_some(body);
    let source = Source::new(body, false, Arc::default(), Arc::default());
    let upload = source.again().expect("the first attempt has one");
    let connected = pool::library().handshake(TokioIo::new(upstream)).await;
    let (mut sender, driver) = connected.expect("a connection in memory");
    tokio::spawn(driver);
    if sender.try_send_request(Request::from_parts(parts, upload)).await.is_err() {
        *answer.status_mut() = http::StatusCode::BAD_GATEWAY;
    }
    Ok(answer)
}

/// The Host that a request goes on with; `None`: it is refused whatever policy says.
fn host_of(parts: &Parts) -> Option<HeaderValue> {
    let refused = parts.version < Version::HTTP_11
        || parts.method == Method::CONNECT
        || http2::check(parts).is_err();
    effective(parts).filter(|_| !refused).and_then(passed_on)
}

/// What an upstream answers to one request: the client reads one answer, the same, or is told that
/// there was none (T-32, T-46).
pub(crate) fn answers(input: &[u8]) {
    let (bytes, sizes) = split(input);
    let method = if sizes.len() % 2 == 0 { "GET" } else { "HEAD" };
    let asking = format!("{method} / HTTP/1.1\r\nHost: a.test\r\n\r\n").repeat(2);
    let client = Scripted::new(asking.as_bytes(), &[255; 7]);
    let told = Arc::clone(&client.told);
    let service = service_fn(|request: Request<Incoming>| {
        let upstream = Scripted { end: true, ..Scripted::new(bytes, sizes) };
        async move { Ok::<_, Infallible>(ask(request, upstream).await) }
    });
    in_memory(async {
        let (wire, _) = Wire::new(client, Reading::default());
        let serving = library().serve_connection(TokioIo::new(wire), service);
        let _ = timeout(IDLE, serving).await;
    });
    let told = lock(&told);
    let read = second::answers(&told, &[method, method]);
    let read = read.unwrap_or_else(|why| panic!("{why}: {}", told.escape_ascii()));
    for answer in &read {
        for name in ["keep-alive", "proxy-connection", "upgrade"] {
            assert_eq!(answer.all(name).next(), None, "{name} concerns one hop");
        }
    }
}

/// The answer of `upstream`, as it is passed on.
async fn ask(
    request: Request<Incoming>,
    upstream: Scripted,
) -> Response<http_body_util::Either<Incoming, String>> {
    use http_body_util::Either;
    let refusal = || {
        let mut refusal = Response::new(Either::Right(String::new()));
        *refusal.status_mut() = http::StatusCode::BAD_GATEWAY;
        refusal
    };
    let (mut parts, _) = request.into_parts();
    let Some(host) = host_of(&parts) else { return refusal() };
    canon::request(&mut parts, host, false, true);
    let connected = pool::library().handshake(TokioIo::new(upstream)).await;
    let (mut sender, driver) = connected.expect("a connection in memory");
    tokio::spawn(driver);
    let Ok(answer) = sender.try_send_request(Request::from_parts(parts, String::new())).await
    else {
        return refusal();
    };
    let (mut head, body) = answer.into_parts();
    let framed = canon::response(&mut head.headers, false);
    if !framed || head.status == http::StatusCode::SWITCHING_PROTOCOLS {
        return refusal();
    }
    head.version = Version::HTTP_11;
    Response::from_parts(head, Either::Left(body))
}

/// An end of a connection that says what was written down, in pieces, whatever it hears.
struct Scripted {
    pieces: VecDeque<Vec<u8>>,
    /// It closes when all is said.
    end: bool,
    told: Arc<Mutex<Vec<u8>>>,
}

impl Scripted {
    fn new(bytes: &[u8], sizes: &[u8]) -> Self {
        let pieces = pieces(bytes, sizes).map(<[u8]>::to_vec).collect();
        Self { pieces, end: false, told: Arc::default() }
    }
}

impl AsyncRead for Scripted {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.pieces.pop_front() {
            Some(mut piece) => {
                let rest = piece.split_off(piece.len().min(buf.remaining()));
                buf.put_slice(&piece);
                if !rest.is_empty() {
                    self.pieces.push_front(rest);
                }
                Poll::Ready(Ok(()))
            }
            None if self.end => Poll::Ready(Ok(())),
            None => Poll::Pending,
        }
    }
}

/// An upstream that answers once it has heard a whole request.
struct Upstream {
    told: Arc<Mutex<Vec<u8>>>,
    answered: bool,
    waiting: Option<Waker>,
}

impl AsyncRead for Upstream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let heard = second::requests(&lock(&self.told));
        let whole = heard.is_ok_and(|heard| heard.first().is_some_and(|first| first.whole));
        if self.answered || !whole {
            self.waiting = Some(cx.waker().clone());
            return Poll::Pending;
        }
        buf.put_slice(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n");
        self.answered = true;
        Poll::Ready(Ok(()))
    }
}

/// What is written is kept.
macro_rules! keeps_what_is_written {
    ($end:ty, $then:expr) => {
        impl AsyncWrite for $end {
            fn poll_write(
                mut self: Pin<&mut Self>,
                _: &mut Context<'_>,
                buf: &[u8],
            ) -> Poll<io::Result<usize>> {
                lock(&self.told).extend_from_slice(buf);
                ($then)(&mut *self);
                Poll::Ready(Ok(buf.len()))
            }

            fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
                Poll::Ready(Ok(()))
            }

            fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
                Poll::Ready(Ok(()))
            }
        }
    };
}

keeps_what_is_written!(Scripted, |_: &mut Self| {});
keeps_what_is_written!(Upstream, |end: &mut Self| end.waiting.take().map(Waker::wake));
