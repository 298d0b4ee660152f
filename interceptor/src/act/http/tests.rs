//! Requests over loopback: raw bytes in, raw bytes at a stub upstream, records asserted.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Mutex;

use bytes::Bytes;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout};

use super::*;
use crate::account::Captured;
use crate::act::carrier::Outbound;
use crate::act::dial::Dialer;
use crate::act::tls::testing::NoSecrets;
use crate::decide::door::Door;
use crate::decide::route::{Destination, Forward, LocalReply, RouteActions};
use crate::decide::traffic::{TrafficPolicy, UpstreamProtocol};
use crate::decide::{Action, Block, ClusterName, Endpoint, RuleId, Upstream};
use crate::netns::NetNs;
use crate::origin::OriginalDst;
use crate::policy::Enforcement;
use crate::resolve::Resolver;
use crate::workloads::Workload;

mod clusters;
mod doors;
mod downgrade;
mod early;
mod failures;
mod hardening;
mod http2;
mod log;
mod originated;
mod passing;
mod refusals;
mod resting;
mod routes;

const PATIENCE: Duration = Duration::from_secs(20);

/// Names and what becomes of requests for them.
#[derive(Clone)]
struct Names {
    allowed: HashMap<&'static str, Upstream>,
    /// Of all that is allowed.
    route: Arc<RouteActions>,
    traffic: Arc<TrafficPolicy>,
    /// In place of the one destination that a name makes.
    destinations: Vec<Destination>,
    /// What is answered here.
    reply: Option<LocalReply>,
    strict: bool,
    carrier: Carrier,
}

impl Default for Names {
    fn default() -> Self {
        let dialer = Dialer {
            netns: Arc::new(NetNs::current().expect("a namespace")),
            resolver: Arc::new(Resolver::of_table(&[])),
            connect_timeout: Duration::from_secs(5),
            enforcement: Enforcement::Istio,
            own: None,
        };
        let outbound = Arc::new(Outbound::new(Arc::new(NoSecrets)));
        Self {
            allowed: HashMap::new(),
            route: Arc::default(),
            traffic: Arc::new(TrafficPolicy {
                protocol: UpstreamProtocol::AsClient,
                ..TrafficPolicy::default()
            }),
            destinations: Vec::new(),
            reply: None,
            strict: false,
            carrier: Carrier { dialer, outbound },
        }
    }
}

impl Names {
    fn allow(mut self, name: &'static str, at: SocketAddr) -> Self {
        let endpoints = [Endpoint { target: at, weight: 1 }];
        self.allowed.insert(name, Upstream::Static(Arc::from(endpoints)));
        self
    }

    /// One name at several endpoints.
    fn allow_all(mut self, name: &'static str, at: &[SocketAddr]) -> Self {
        let endpoints = at.iter().map(|at| Endpoint { target: *at, weight: 1 });
        self.allowed.insert(name, Upstream::Static(endpoints.collect()));
        self
    }

    fn route(mut self, change: impl FnOnce(&mut RouteActions)) -> Self {
        change(Arc::make_mut(&mut self.route));
        self
    }

    fn traffic(mut self, change: impl FnOnce(&mut TrafficPolicy)) -> Self {
        change(Arc::make_mut(&mut self.traffic));
        self
    }

    fn destination(&self, name: &str, upstream: Upstream) -> Destination {
        Destination {
            weight: 1,
            cluster: Some(ClusterName::outbound(80, name)),
            upstream,
            judged: None,
            door: Door::Direct,
            traffic: Arc::clone(&self.traffic),
            headers: Arc::default(),
        }
    }

    fn strict(mut self) -> Self {
        self.strict = true;
        self
    }
}

impl World for Names {
    fn judge(&self, _: &Flow<'_>, head: &RequestHead<'_>) -> (Decision, Enforcement) {
        let name = head.authority.or(head.hosts.first().copied()).unwrap_or_default();
        let block = |status| {
            Action::Block(Block::Http { status, explain: self.strict, close: self.strict })
        };
        let (action, reason) = match (head.method, self.allowed.get(name)) {
            ("CONNECT", _) => (block(403), Reason::ConnectMethod),
            (_, _) if head.hosts.is_empty() && head.authority.is_none() => {
                (block(400), Reason::BadHost)
            }
            (_, None) => (block(502), Reason::NotRegistered),
            (_, Some(_)) if self.reply.is_some() => {
                let reply = self.reply.clone().expect("a reply");
                (Action::Reply(Box::new(reply)), Reason::Registered)
            }
            (_, Some(upstream)) => {
                let destinations = match self.destinations.as_slice() {
                    [] => vec![self.destination(name, upstream.clone())],
                    several => several.to_vec(),
                };
                let forward = Forward { destinations, route: Arc::clone(&self.route) };
                (Action::Forward(Box::new(forward)), Reason::Registered)
            }
        };
        let forward = matches!(action, Action::Forward(_));
        let decision = Decision {
            action,
            cluster: forward.then(|| ClusterName::outbound(80, name)),
            route: Some(if forward { "default" } else { "block_all" }.into()),
            reason,
            rule: None::<RuleId>,
        };
        let enforcement = if self.strict { Enforcement::Strict } else { Enforcement::Istio };
        (decision, enforcement)
    }

    fn carrier(&self) -> &Carrier {
        &self.carrier
    }
}

/// A client's connection that is being served.
struct Client {
    stream: TcpStream,
    local: SocketAddr,
    captured: Captured,
    serving: JoinHandle<()>,
}

const DIALLED: &str = "192.0.2.1:80";

impl Client {
    async fn connect(names: &Names) -> Self {
        Self::connect_with(names, "").await
    }

    /// `sniffed` was read from the connection before.
    async fn connect_with(names: &Names, sniffed: &'static str) -> Self {
        let (log, captured) = AccessLog::memory();
        Self { captured, ..Self::connect_logged(names, sniffed, log).await }
    }

    /// Its lines go to `log`.
    async fn connect_logged(names: &Names, sniffed: &'static str, log: AccessLog) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("listens");
        let at = listener.local_addr().expect("an address");
        let stream = TcpStream::connect(at).await.expect("connects");
        let (accepted, src) = listener.accept().await.expect("accepts");
        let origin = Origin {
            id: 1,
            dst: OriginalDst::new(DIALLED.parse().expect("an address")),
            src,
            workload: Arc::new(Workload::default()),
            arrival: None,
            accepted: Instant::now(),
            accepted_wall: clock::wall(),
        };
        let client = Prefixed::new(Bytes::from_static(sniffed.as_bytes()), accepted);
        let serving = tokio::spawn(serve_in(client, origin, log, names.clone()));
        Self { stream, local: src, captured: Captured::default(), serving }
    }

    async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.stream.write_all(bytes.as_ref()).await.expect("writes");
    }

    /// Reads one response with a Content-Length, or without a body if `head_only`.
    async fn response_to(&mut self, head_only: bool) -> String {
        let head = timeout(PATIENCE, read_head(&mut self.stream)).await.expect("in time");
        let head = head.expect("a head");
        let length = header(&head, "content-length").and_then(|l| l.parse().ok()).unwrap_or(0);
        let mut body = vec![0; if head_only { 0 } else { length }];
        timeout(PATIENCE, self.stream.read_exact(&mut body)).await.expect("in time").expect("body");
        head + std::str::from_utf8(&body).expect("text")
    }

    async fn response(&mut self) -> String {
        self.response_to(false).await
    }

    /// Everything until the connection ends, by FIN or RST.
    async fn rest(&mut self) -> Vec<u8> {
        let mut rest = Vec::new();
        let _ = timeout(PATIENCE, self.stream.read_to_end(&mut rest)).await.expect("ends in time");
        rest
    }

    /// Closes, waits until serving has ended, and gives the records.
    async fn records(self) -> Vec<Record> {
        drop(self.stream);
        timeout(PATIENCE, self.serving).await.expect("in time").expect("no panic");
        self.captured.records()
    }
}

async fn read_head(stream: &mut TcpStream) -> Option<String> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        match stream.read_u8().await {
            Ok(byte) => head.push(byte),
            Err(_) => return None,
        }
    }
    Some(String::from_utf8(head).expect("text"))
}

/// The value of header `name` in `head`.
fn header<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    head.lines().find_map(|line| {
        let (n, value) = line.split_once(':')?;
        n.eq_ignore_ascii_case(name).then(|| value.trim())
    })
}

/// A stub upstream: each connection gets one answer after the other; the heads are kept.
#[derive(Clone)]
struct Stub {
    at: SocketAddr,
    seen: Arc<Mutex<Vec<String>>>,
    /// Connections so far.
    connections: Arc<Mutex<usize>>,
}

impl Stub {
    /// Answers every request with `answer`; closes after each if `once`.
    async fn answering(answer: impl AsRef<[u8]>, once: bool) -> Self {
        let answer = answer.as_ref().to_vec();
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("listens");
        let at = listener.local_addr().expect("an address");
        let stub = Self { at, seen: Arc::default(), connections: Arc::default() };
        let mine = stub.clone();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                *mine.connections.lock().expect("no panic") += 1;
                let (mine, answer) = (mine.clone(), answer.clone());
                tokio::spawn(async move {
                    while let Some(head) = read_head(&mut stream).await {
                        mine.seen.lock().expect("no panic").push(head);
                        if stream.write_all(&answer).await.is_err() || once {
                            break;
                        }
                    }
                });
            }
        });
        stub
    }

    async fn saying(body: &str) -> Self {
        let length = body.len();
        Self::answering(format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n{body}"), false)
            .await
    }

    fn seen(&self) -> Vec<String> {
        self.seen.lock().expect("no panic").clone()
    }

    fn connections(&self) -> usize {
        *self.connections.lock().expect("no panic")
    }
}

/// An upstream whose one connection is handled by `handle`.
async fn upstream<F, R>(handle: F) -> (SocketAddr, JoinHandle<R::Output>)
where
    F: FnOnce(TcpStream) -> R + Send + 'static,
    R: Future + Send + 'static,
    R::Output: Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("listens");
    let at = listener.local_addr().expect("an address");
    let task = tokio::spawn(async move {
        let (stream, _) = listener.accept().await.expect("accepts");
        handle(stream).await
    });
    (at, task)
}

/// What most assertions on a record look at.
fn brief(record: &Record) -> (u16, Vec<Flag>, &str, u64, u64) {
    (
        record.response_code,
        record.flags.clone(),
        record.response_code_details.as_deref().unwrap_or("-"),
        record.bytes_received,
        record.bytes_sent,
    )
}
