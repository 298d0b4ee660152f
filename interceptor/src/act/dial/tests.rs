//! Dialling real sockets on loopback, from this process's own namespace.

use std::collections::HashSet;
use std::net::Ipv4Addr;

use socket2::{Domain, SockRef, Socket, Type};
use tokio::net::TcpListener;

use super::*;

const QUICK: Duration = Duration::from_secs(2);

fn dialer(table: &[(&str, &[&str])], enforcement: Enforcement) -> Dialer {
    Dialer {
        netns: Arc::new(NetNs::current().unwrap()),
        resolver: Arc::new(Resolver::of_table(table)),
        connect_timeout: QUICK,
        enforcement,
        own: None,
    }
}

fn host(name: &str) -> HostName {
    HostName::parse(name).unwrap()
}

fn dst(ip: &str, port: u16) -> OriginalDst {
    OriginalDst::new(SocketAddr::new(ip.parse().unwrap(), port))
}

async fn listen(ip: &str) -> (TcpListener, u16) {
    let listener = TcpListener::bind((ip, 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    (listener, port)
}

/// A port of 127.0.0.1 where nothing listens (reserved by a bound socket).
fn refusing() -> (Socket, u16) {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into()).unwrap();
    let port = socket.local_addr().unwrap().as_socket().unwrap().port();
    (socket, port)
}

/// An address that drops SYNs: a listener whose accept queue is full.
struct BlackHole {
    _listener: Socket,
    _queued: Vec<Socket>,
    port: u16,
}

impl BlackHole {
    fn at(ip: &str, port: u16) -> Self {
        let listener = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        let address = SocketAddr::new(ip.parse().unwrap(), port);
        listener.bind(&address.into()).unwrap();
        listener.listen(0).unwrap();
        let bound = listener.local_addr().unwrap();
        let connect = |_| {
            let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
            socket.set_nonblocking(true).unwrap();
            let _ = socket.connect(&bound);
            socket
        };
        let queued = (0..4).map(connect).collect();
        let port = bound.as_socket().unwrap().port();
        Self { _listener: listener, _queued: queued, port }
    }
}

/// A black hole at 127.0.0.1, and a listener at another address with the same port.
async fn hole_beside(ip: &str) -> (BlackHole, TcpListener) {
    for _ in 0..20 {
        let hole = BlackHole::at("127.0.0.1", 0);
        // Another test may have the port there.
        if let Ok(listener) = TcpListener::bind((ip, hole.port)).await {
            return (hole, listener);
        }
    }
    panic!("no port is free at both addresses");
}

fn original(port: u16, name: Option<&str>) -> Upstream {
    Upstream::OriginalDst { port, name: name.map(host) }
}

fn verified(name: &str, port: u16) -> Upstream {
    Upstream::VerifiedOriginalDst { host: host(name), port }
}

fn names(list: &[(&str, u16)], round_robin: bool) -> Upstream {
    let place = |name: &str| name.parse().map_or_else(|_| host(name).into(), Place::Ip);
    let endpoint =
        |&(name, port): &(&str, u16)| Endpoint { target: (place(name), port), weight: 1 };
    Upstream::Dns { endpoints: list.iter().map(endpoint).collect(), round_robin }
}

fn fixed(list: &[(&str, u16, u32)]) -> Upstream {
    let endpoint = |&(ip, port, weight): &(&str, u16, u32)| Endpoint {
        target: SocketAddr::new(ip.parse().unwrap(), port),
        weight,
    };
    Upstream::Static(list.iter().map(endpoint).collect())
}

#[tokio::test]
async fn res1_the_dialled_address_is_used_at_the_given_port_and_set_up() {
    let (listener, port) = listen("127.0.0.1").await;
    let dialled = dialer(&[], Enforcement::Istio)
        .dial(&original(port, None), dst("127.0.0.1", 9))
        .await
        .unwrap();
    let (_, from) = listener.accept().await.unwrap();
    assert_eq!(dialled.upstream, SocketAddr::from((Ipv4Addr::LOCALHOST, port)));
    assert_eq!(dialled.local, from);
    let socket = SockRef::from(&dialled.stream);
    assert!(socket.tcp_nodelay().unwrap() && socket.keepalive().unwrap());
    assert_eq!(socket.tcp_keepalive_time().unwrap(), Duration::from_secs(60));
    assert_eq!(socket.tcp_keepalive_interval().unwrap(), Duration::from_secs(10));
    assert_eq!(socket.tcp_keepalive_retries().unwrap(), 6);
}

#[tokio::test]
async fn sockets_are_made_in_the_workloads_namespace() {
    // A new namespace has no route, not even to itself.
    let (send, receive) = std::sync::mpsc::channel();
    let elsewhere = std::thread::spawn(move || {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
        send.send(NetNs::named("/proc/thread-self/ns/net").unwrap()).unwrap();
    });
    let mut dialer = dialer(&[], Enforcement::Istio);
    let own = Arc::clone(&dialer.netns);
    let netns = receive.recv().unwrap();
    elsewhere.join().unwrap();
    dialer.netns = Arc::new(netns);
    let (_listener, port) = listen("127.0.0.1").await;
    let error = dialer.dial(&original(port, None), dst("127.0.0.1", 9)).await.unwrap_err();
    assert_eq!(error.details(), format!("delayed_connect_error:_{}", libc::ENETUNREACH));
    // And this thread is back at home.
    assert_eq!(NetNs::current().unwrap().cookie(), own.cookie());
    dialer.netns = own;
    dialer.dial(&original(port, None), dst("127.0.0.1", 9)).await.unwrap();
}

#[tokio::test]
async fn log48_a_refusal_is_told_with_its_errno_and_address() {
    let (_reserved, port) = refusing();
    let error = dialer(&[], Enforcement::Istio)
        .dial(&original(port, None), dst("127.0.0.1", 9))
        .await
        .unwrap_err();
    assert_eq!(error.details(), "delayed_connect_error:_111");
    assert_eq!(error.tried(), Some(SocketAddr::from((Ipv4Addr::LOCALHOST, port))));
    let DialError::Connect { source, .. } = error else { panic!("{error}") };
    assert_eq!(source.kind(), io::ErrorKind::ConnectionRefused);
}

#[tokio::test]
async fn mesh6_dr11_silence_ends_at_the_connect_timeout() {
    let hole = BlackHole::at("127.0.0.1", 0);
    let mut dialer = dialer(&[], Enforcement::Istio);
    dialer.connect_timeout = Duration::from_millis(600);
    let start = Instant::now();
    let error = dialer.dial(&original(hole.port, None), dst("127.0.0.1", 9)).await.unwrap_err();
    assert!((600..900).contains(&start.elapsed().as_millis()), "{:?}", start.elapsed());
    assert_eq!(error.details(), "connection_timeout");
    assert_eq!(error.tried(), Some(SocketAddr::from((Ipv4Addr::LOCALHOST, hole.port))));
}

#[tokio::test]
async fn an_honest_connect_falls_over_to_a_sibling_of_the_dialled_address() {
    let (hole, _listener) = hole_beside("127.0.0.2").await;
    let port = hole.port;
    let table: &[(&str, &[&str])] =
        &[("both.example", &["127.0.0.1", "127.0.0.2"]), ("other.example", &["127.0.0.2"])];
    let mut dialer = dialer(table, Enforcement::Istio);
    // Silent at the dialled address: the sibling 250 ms later. Refused (127.0.0.3): at once.
    let start = Instant::now();
    let dialled = dialer.dial(&original(port, Some("both.example")), dst("127.0.0.1", 9)).await;
    assert_eq!(dialled.unwrap().upstream.to_string(), format!("127.0.0.2:{port}"));
    assert!((240..600).contains(&start.elapsed().as_millis()), "{:?}", start.elapsed());
    // A name that does not lead to the dialled address lends it nothing (R3).
    let error = dialer.dial(&original(port, Some("other.example")), dst("127.0.0.3", 9)).await;
    assert_eq!(error.unwrap_err().tried().unwrap().to_string(), format!("127.0.0.3:{port}"));
    // MESH-21: without a name, exactly as dialled.
    dialer.connect_timeout = Duration::from_millis(600);
    let error = dialer.dial(&original(hole.port, None), dst("127.0.0.1", 9)).await.unwrap_err();
    assert_eq!(error.tried().unwrap().to_string(), format!("127.0.0.1:{port}"));
}

#[tokio::test]
async fn t40_a_sibling_in_a_special_range_is_not_dialled_in_strict() {
    let (_listener, port) = listen("127.0.0.2").await;
    let dialer = dialer(&[("both.example", &["127.0.0.3", "127.0.0.2"])], Enforcement::Strict);
    let error = dialer.dial(&original(port, Some("both.example")), dst("127.0.0.3", 9)).await;
    assert_eq!(error.unwrap_err().tried().unwrap().to_string(), format!("127.0.0.3:{port}"));
}

#[tokio::test]
async fn r3_a_verified_name_decides_the_address() {
    let (_listener, port) = listen("127.0.0.2").await;
    let _decoy = TcpListener::bind(("127.0.0.9", port)).await.unwrap();
    let _second = TcpListener::bind(("127.0.0.3", port)).await.unwrap();
    let dialer = dialer(&[("a.example", &["127.0.0.3", "127.0.0.2"])], Enforcement::Istio);
    for _ in 0..8 {
        // In the set: used.
        let dialled = dialer.dial(&verified("a.example", port), dst("127.0.0.2", 9)).await.unwrap();
        assert_eq!(dialled.upstream.to_string(), format!("127.0.0.2:{port}"));
        // Not in the set, though something listens there: an address of the set.
        let dialled = dialer.dial(&verified("a.example", port), dst("127.0.0.9", 9)).await.unwrap();
        assert!(["127.0.0.2", "127.0.0.3"].contains(&dialled.upstream.ip().to_string().as_str()));
    }
}

#[tokio::test]
async fn t40_names_that_lead_to_special_addresses_are_refused_in_strict() {
    let table: &[(&str, &[&str])] =
        &[("rebound.example", &["127.0.0.1", "::1"]), ("metadata.example", &["169.254.169.254"])];
    let dialer = dialer(table, Enforcement::Strict);
    let upstreams = [
        verified("rebound.example", 80),
        names(&[("rebound.example", 80)], false),
        names(&[("metadata.example", 80)], true),
    ];
    for upstream in upstreams {
        let error = dialer.dial(&upstream, dst("127.0.0.1", 80)).await.unwrap_err();
        assert!(matches!(error, DialError::Special(_)), "{error}");
        assert_eq!(error.tried(), None);
    }
}

#[tokio::test]
async fn res2_static_endpoints_are_drawn_by_weight_and_stand_in_for_each_other() {
    let (a, a_port) = listen("127.0.0.1").await;
    let (b, b_port) = listen("127.0.0.1").await;
    let dialer = dialer(&[], Enforcement::Strict);
    let upstream = fixed(&[("127.0.0.1", a_port, 9), ("127.0.0.1", b_port, 1)]);
    let mut hits = 0;
    for _ in 0..100 {
        let dialled = dialer.dial(&upstream, dst("192.0.2.1", 80)).await.unwrap();
        hits += u32::from(dialled.upstream.port() == a_port);
        let listener = if dialled.upstream.port() == a_port { &a } else { &b };
        listener.accept().await.unwrap();
    }
    assert!((75..=99).contains(&hits), "{hits} of 100 for a weight of 9 in 10");
    let (_reserved, dead) = refusing();
    let upstream = fixed(&[("127.0.0.1", dead, 1000), ("127.0.0.1", a_port, 1)]);
    let dialled = dialer.dial(&upstream, dst("192.0.2.1", 80)).await.unwrap();
    assert_eq!(dialled.upstream.port(), a_port);
}

#[tokio::test]
async fn res3_all_addresses_are_balanced_over_and_the_dialled_one_is_kept() {
    let (_a, port) = listen("127.0.0.1").await;
    let _b = TcpListener::bind(("127.0.0.2", port)).await.unwrap();
    let dialer = dialer(&[("a.example", &["127.0.0.1", "127.0.0.2"])], Enforcement::Istio);
    let ip = |dialled: Result<Dialled, DialError>| dialled.unwrap().upstream.ip().to_string();
    let balanced = names(&[("a.example", port)], false);
    let mut seen = HashSet::new();
    for _ in 0..40 {
        seen.insert(ip(dialer.dial(&balanced, dst("192.0.2.1", 80)).await));
        assert_eq!(ip(dialer.dial(&balanced, dst("127.0.0.2", 80)).await), "127.0.0.2");
        // RES-4: the first of the answer, whatever was dialled.
        let first = names(&[("a.example", port)], true);
        assert_eq!(ip(dialer.dial(&first, dst("127.0.0.2", 80)).await), "127.0.0.1");
    }
    assert_eq!(seen.len(), 2);
}

#[tokio::test]
async fn a_dead_family_costs_less_than_300_ms() {
    let (hole, _v6) = hole_beside("::1").await;
    let port = hole.port;
    let dialer = dialer(&[("a.example", &["127.0.0.1", "127.0.0.1", "::1"])], Enforcement::Istio);
    let start = Instant::now();
    let dialled = dialer.dial(&names(&[("a.example", port)], true), dst("192.0.2.1", 80)).await;
    assert!(dialled.unwrap().upstream.is_ipv6());
    assert!(start.elapsed() < Duration::from_millis(300), "{:?}", start.elapsed());
}

#[tokio::test]
async fn endpoints_stand_in_for_one_that_does_not_resolve_or_answer() {
    let (_listener, port) = listen("127.0.0.1").await;
    let (_reserved, dead) = refusing();
    let table: &[(&str, &[&str])] = &[("a.example", &["127.0.0.1"]), ("b.example", &["127.0.0.1"])];
    let dialer = dialer(table, Enforcement::Istio);
    for other in [("nowhere.example", port), ("b.example", dead)] {
        for _ in 0..8 {
            let upstream = names(&[other, ("a.example", port)], false);
            let dialled = dialer.dial(&upstream, dst("192.0.2.1", 80)).await.unwrap();
            assert_eq!(dialled.upstream.port(), port);
        }
    }
}

/// RES-3, T-40: an entry's own address needs no resolution and no permission, whatever stands beside it.
#[tokio::test]
async fn res3_addresses_among_names() {
    let (_listener, port) = listen("127.0.0.1").await;
    let dialer = dialer(&[("a.example", &["127.0.0.1"])], Enforcement::Strict);
    let at = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    for beside in ["nowhere.example", "a.example"] {
        let upstream = names(&[(beside, port), ("127.0.0.1", port)], false);
        let dialled = dialer.dial(&upstream, dst("192.0.2.1", 80)).await.unwrap();
        assert_eq!(dialled.upstream, at);
        let candidates = dialer.candidates(&upstream).await.unwrap().unwrap();
        assert_eq!(candidates.iter().map(|one| one.address).collect::<Vec<_>>(), [at]);
    }
}

/// SE-4: by weight, the others standing in; never through a symbolic link.
#[tokio::test]
async fn se4_unix_sockets() {
    let dir = tempfile::tempdir().unwrap();
    let (real, link) = (dir.path().join("real"), dir.path().join("link"));
    let listener = tokio::net::UnixListener::bind(&real).unwrap();
    std::os::unix::fs::symlink(&real, &link).unwrap();
    let nothing = dir.path().join("nothing");
    let dialer = dialer(&[], Enforcement::Strict);
    let dial = |paths: &[&Path]| {
        let endpoint = |path: &&Path| Endpoint { target: Arc::from(*path), weight: 1 };
        let sockets: Vec<_> = paths.iter().map(endpoint).collect();
        let dialer = &dialer;
        async move { dialer.dial_unix(&sockets).await }
    };
    for _ in 0..8 {
        let (_stream, path) = dial(&[&nothing, &real, &link]).await.unwrap();
        assert_eq!(*path, *real);
        listener.accept().await.unwrap();
    }
    for (path, errno) in [(&link, 40), (&nothing, 2)] {
        let error = dial(&[path]).await.unwrap_err();
        assert_eq!(error.details(), format!("delayed_connect_error:_{errno}"));
    }
    assert!(matches!(dial(&[]).await, Err(DialError::NoEndpoint)));
}

#[tokio::test]
async fn uh_without_endpoint_or_address() {
    let dialer = dialer(&[], Enforcement::Istio);
    for upstream in [Upstream::None, fixed(&[]), names(&[], false)] {
        let error = dialer.dial(&upstream, dst("192.0.2.1", 80)).await.unwrap_err();
        assert!(matches!(error, DialError::NoEndpoint), "{error}");
    }
    let upstream = names(&[("nowhere.example", 80)], false);
    let error = dialer.dial(&upstream, dst("192.0.2.1", 80)).await.unwrap_err();
    assert!(matches!(error, DialError::Resolve(ResolveError::NoAddress(_))), "{error}");
    assert_eq!(error.details(), "nowhere.example_has_no_address");
}

#[tokio::test]
async fn r3_verify_asks_the_daemons_own_resolution() {
    let table: &[(&str, &[&str])] = &[
        ("db.example", &["192.0.2.1", "2001:db8::1"]),
        ("mail.example", &["192.0.2.2"]),
        ("rebound.example", &["127.0.0.1"]),
    ];
    let hosts = ["nowhere.example", "db.example", "mail.example", "rebound.example"].map(host);
    let cases = [
        ("192.0.2.1", true),
        ("2001:db8::1", true),
        ("::ffff:192.0.2.2", true),
        ("192.0.2.3", false),
        ("127.0.0.1", false),
    ];
    let strict = dialer(table, Enforcement::Strict);
    for (ip, fine) in cases {
        assert_eq!(strict.verify(&hosts, dst(ip, 5432)).await.is_ok(), fine, "{ip}");
    }
    let refused = strict.verify(&hosts, dst("192.0.2.3", 5432)).await.unwrap_err();
    assert!(matches!(refused, DialError::NotVerified { .. }), "{refused}");
    assert!(strict.verify(&[], dst("192.0.2.1", 5432)).await.is_err());
    assert!(dialer(table, Enforcement::Istio).verify(&hosts, dst("127.0.0.1", 5432)).await.is_ok());
}

#[test]
fn random_numbers_stay_in_bounds_and_reach_all_of_them() {
    assert_eq!(random_below(0), 0);
    let drawn = (0..500).map(|_| random_below(5)).collect::<HashSet<_>>();
    assert_eq!(drawn, (0..5).collect());
}
