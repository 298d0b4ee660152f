//! The resolver against a small name server on loopback.

use std::net::Ipv4Addr;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use hickory_resolver::proto::op::{Message, OpCode, ResponseCode};
use hickory_resolver::proto::rr::rdata::{A, AAAA, CNAME};
use hickory_resolver::proto::rr::{Name, RData, Record, RecordType};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, UdpSocket};
use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep};

use super::*;

/// What the server does with a question.
enum Reply {
    Records(Vec<Record>),
    Code(ResponseCode),
    Silence,
}

type Script = fn(&str, RecordType) -> Reply;

/// A name server, UDP and TCP on one port, that counts questions. Answers over 512 bytes are
/// truncated over UDP.
struct Server {
    at: SocketAddr,
    asked: Arc<AtomicUsize>,
    script: Arc<Mutex<Script>>,
    tasks: [AbortHandle; 2],
}

impl Drop for Server {
    fn drop(&mut self) {
        self.tasks.iter().for_each(AbortHandle::abort);
    }
}

impl Server {
    async fn start(script: Script) -> Self {
        let (udp, tcp) = loop {
            let udp = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
            // Somebody else's connection may have this port.
            match TcpListener::bind(udp.local_addr().unwrap()).await {
                Ok(tcp) => break (udp, tcp),
                Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::AddrInUse),
            }
        };
        let at = udp.local_addr().unwrap();
        let asked = Arc::new(AtomicUsize::new(0));
        let script = Arc::new(Mutex::new(script));
        let tasks = [
            tokio::spawn(Self::serve_udp(udp, Arc::clone(&script), Arc::clone(&asked))),
            tokio::spawn(Self::serve_tcp(tcp, Arc::clone(&script))),
        ]
        .map(|task| task.abort_handle());
        Self { at, asked, script, tasks }
    }

    async fn serve_udp(socket: UdpSocket, script: Arc<Mutex<Script>>, asked: Arc<AtomicUsize>) {
        let mut buf = [0; 4096];
        loop {
            let (n, from) = socket.recv_from(&mut buf).await.unwrap();
            asked.fetch_add(1, Ordering::Relaxed);
            let Some(mut message) = reply(&buf[..n], *script.lock().unwrap()) else { continue };
            let mut bytes = message.to_vec().unwrap();
            if bytes.len() > 512 {
                message.answers.clear();
                message.metadata.truncation = true;
                bytes = message.to_vec().unwrap();
            }
            socket.send_to(&bytes, from).await.unwrap();
        }
    }

    async fn serve_tcp(listener: TcpListener, script: Arc<Mutex<Script>>) {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let script = Arc::clone(&script);
            tokio::spawn(async move {
                while let Ok(n) = stream.read_u16().await {
                    let mut buf = vec![0; n.into()];
                    stream.read_exact(&mut buf).await.unwrap();
                    let Some(message) = reply(&buf, *script.lock().unwrap()) else { continue };
                    let bytes = message.to_vec().unwrap();
                    stream.write_u16(bytes.len().try_into().unwrap()).await.unwrap();
                    stream.write_all(&bytes).await.unwrap();
                }
            });
        }
    }

    fn now(&self, script: Script) {
        *self.script.lock().unwrap() = script;
    }

    fn asked(&self) -> usize {
        self.asked.load(Ordering::Relaxed)
    }
}

fn reply(question: &[u8], script: Script) -> Option<Message> {
    let question = Message::from_vec(question).unwrap();
    let query = question.queries[0].clone();
    let mut message = Message::response(question.metadata.id, OpCode::Query);
    message.metadata.recursion_available = true;
    let name = query.name().to_string();
    match script(name.trim_end_matches('.'), query.query_type()) {
        Reply::Records(records) => message.answers = records,
        Reply::Code(code) => message.metadata.response_code = code,
        Reply::Silence => return None,
    }
    message.queries.push(query);
    Some(message)
}

fn record(owner: &str, ttl: u32, data: RData) -> Record {
    Record::from_rdata(Name::from_ascii(format!("{owner}.")).unwrap(), ttl, data)
}

fn a(owner: &str, ttl: u32, ip: &str) -> Record {
    record(owner, ttl, RData::A(A(ip.parse().unwrap())))
}

fn aaaa(owner: &str, ttl: u32, ip: &str) -> Record {
    record(owner, ttl, RData::AAAA(AAAA(ip.parse().unwrap())))
}

fn cname(owner: &str, target: &str) -> Record {
    record(owner, 60, RData::CNAME(CNAME(Name::from_ascii(format!("{target}.")).unwrap())))
}

fn resolver(servers: &[SocketAddr], stale_for: Option<Duration>) -> Resolver {
    let refresh = Duration::from_secs(60);
    Resolver::new(ResolverConfig { servers: servers.to_vec(), stale_for, refresh })
}

fn host(name: &str) -> HostName {
    HostName::parse(name).unwrap()
}

fn texts(addresses: &[IpAddr]) -> Vec<String> {
    addresses.iter().map(ToString::to_string).collect()
}

/// One name for each kind of answer.
fn zoo(name: &str, kind: RecordType) -> Reply {
    let v4 = kind == RecordType::A;
    Reply::Records(match (name, v4) {
        ("both.example", true) => vec![a(name, 60, "192.0.2.2"), a(name, 60, "192.0.2.1")],
        ("both.example", false) => vec![aaaa(name, 60, "2001:db8::1")],
        ("v4.example" | "v6broken.example", true) => vec![a(name, 60, "192.0.2.1")],
        ("v6broken.example", false) => return Reply::Code(ResponseCode::ServFail),
        ("v6silent.example", true) => vec![a(name, 60, "192.0.2.1")],
        ("v6silent.example", false) => return Reply::Silence,
        ("mapped.example", true) => vec![a(name, 60, "192.0.2.7"), a(name, 60, "192.0.2.7")],
        ("mapped.example", false) => vec![aaaa(name, 60, "::ffff:192.0.2.7")],
        ("short.example", true) => vec![a(name, 1, "192.0.2.1")],
        ("alias.example", true) => vec![
            cname(name, "middle.example"),
            cname("middle.example", "end.example"),
            a("end.example", 60, "192.0.2.5"),
            a("stranger.example", 60, "192.0.2.66"),
        ],
        ("many.example", true) => (0..100).map(|n| a(name, 60, &format!("192.0.2.{n}"))).collect(),
        ("many.example", false) => vec![aaaa(name, 60, "2001:db8::1")],
        ("broken.example", _) => return Reply::Code(ResponseCode::ServFail),
        ("silent.example", _) => return Reply::Silence,
        ("nowhere.example", _) => return Reply::Code(ResponseCode::NXDomain),
        _ => vec![],
    })
}

#[tokio::test]
async fn answers_are_read_as_they_are_meant() {
    let server = Server::start(zoo).await;
    let resolver = resolver(&[server.at], None);
    let cases: [(&str, &[&str]); 6] = [
        ("both.example", &["192.0.2.2", "192.0.2.1", "2001:db8::1"]),
        ("v4.example", &["192.0.2.1"]),
        ("v6broken.example", &["192.0.2.1"]),
        ("v6silent.example", &["192.0.2.1"]),
        ("mapped.example", &["192.0.2.7"]),
        ("alias.example", &["192.0.2.5"]),
    ];
    for (name, expected) in cases {
        let start = Instant::now();
        assert_eq!(texts(&resolver.lookup(&host(name)).await.unwrap()), expected, "{name}");
        assert!(start.elapsed() < Duration::from_secs(1), "{name}: {:?}", start.elapsed());
    }
    for name in ["nowhere.example", "empty.example"] {
        let expected = ResolveError::NoAddress(host(name));
        assert_eq!(resolver.lookup(&host(name)).await, Err(expected));
    }
    let broken = resolver.lookup(&host("broken.example")).await;
    assert!(matches!(broken, Err(ResolveError::Failed { .. })), "{broken:?}");
}

#[tokio::test]
async fn t41_a_hundred_addresses_come_over_tcp_and_are_cut_to_64_with_both_families() {
    let server = Server::start(zoo).await;
    let addresses = resolver(&[server.at], None).lookup(&host("many.example")).await.unwrap();
    assert_eq!(addresses.len(), 64);
    assert_eq!(addresses[62].to_string(), "192.0.2.62");
    assert_eq!(addresses[63].to_string(), "2001:db8::1");
}

#[tokio::test]
async fn one_question_per_family_serves_everyone_while_the_ttl_lasts() {
    let server = Server::start(zoo).await;
    let resolver = resolver(&[server.at], None);
    let host = host("both.example");
    let (a, b) = tokio::join!(resolver.lookup(&host), resolver.lookup(&host));
    assert_eq!(a, b);
    resolver.lookup(&host).await.unwrap();
    assert_eq!(server.asked(), 2);
}

#[tokio::test]
async fn t42_a_server_that_goes_silent_leaves_the_last_good_answer() {
    let server = Server::start(zoo).await;
    let keeps = resolver(&[server.at], None);
    let refuses = resolver(&[server.at], Some(Duration::ZERO));
    let host = host("short.example");
    for resolver in [&keeps, &refuses] {
        resolver.lookup(&host).await.unwrap();
    }
    server.now(|_, _| Reply::Silence);
    sleep(Duration::from_millis(1100)).await;
    let (kept, refused) = tokio::join!(keeps.lookup(&host), refuses.lookup(&host));
    assert_eq!(texts(&kept.unwrap()), ["192.0.2.1"]);
    assert!(matches!(refused, Err(ResolveError::Failed { .. })), "{refused:?}");
    // What the server says next is heard: the name is gone.
    server.now(|_, _| Reply::Code(ResponseCode::NXDomain));
    sleep(Duration::from_millis(5100)).await;
    assert_eq!(keeps.lookup(&host).await, Err(ResolveError::NoAddress(host.clone())));
}

#[tokio::test]
async fn a_silent_name_fails_within_five_seconds() {
    let server = Server::start(zoo).await;
    let start = Instant::now();
    let failed = resolver(&[server.at], None).lookup(&host("silent.example")).await;
    assert!(matches!(failed, Err(ResolveError::Failed { .. })), "{failed:?}");
    assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
}

#[tokio::test]
async fn the_next_server_is_asked_when_one_does_not_answer_and_then_asked_first() {
    let silent = Server::start(|_, _| Reply::Silence).await;
    let good = Server::start(zoo).await;
    let resolver = resolver(&[silent.at, good.at], None);
    assert_eq!(texts(&resolver.lookup(&host("v4.example")).await.unwrap()), ["192.0.2.1"]);
    let start = Instant::now();
    resolver.lookup(&host("both.example")).await.unwrap();
    assert!(start.elapsed() < Duration::from_secs(1), "{:?}", start.elapsed());
}

#[tokio::test]
async fn without_servers_nothing_resolves_and_the_error_says_why() {
    let error = resolver(&[], None).lookup(&host("a.example")).await.unwrap_err();
    assert_eq!(
        error.to_string(),
        "no name server answered for a.example: no name server is configured"
    );
}
