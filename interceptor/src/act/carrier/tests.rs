//! Connections as clients' bytes meet them: TLS, tunnels, limits, relays over both.

use std::pin::pin;
use std::sync::Mutex;

use bytes::Bytes;
use http_body_util::Empty;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::AsyncReadExt;
use tokio::net::{TcpListener, TcpStream};

use super::*;
use crate::act::relay::{RelayEnd, RelayLimits, relay};
use crate::act::tls::testing::NoSecrets;
use crate::act::tls::testing::{Authority, serve};
use crate::decide::door::Door;
use crate::decide::traffic::{Origination, Tunnel, Verify};
use crate::decide::{ClusterName, Endpoint};
use crate::netns::NetNs;
use crate::policy::Enforcement;
use crate::resolve::Resolver;
use crate::sniff::prefixed::Prefixed;

fn carrier() -> Carrier {
    let dialer = Dialer {
        netns: Arc::new(NetNs::current().unwrap()),
        resolver: Arc::new(Resolver::of_table(&[])),
        connect_timeout: Duration::from_secs(5),
        enforcement: Enforcement::Istio,
        own: None,
    };
    Carrier { dialer, outbound: Arc::new(Outbound::new(Arc::new(NoSecrets))) }
}

fn destination(at: SocketAddr, change: impl FnOnce(&mut TrafficPolicy)) -> Destination {
    let mut traffic = TrafficPolicy::default();
    change(&mut traffic);
    Destination {
        weight: 1,
        cluster: Some(ClusterName("c".into())),
        upstream: Upstream::Static(Arc::from([Endpoint { target: at, weight: 1 }])),
        judged: None,
        door: Door::Direct,
        traffic: Arc::new(traffic),
        headers: Arc::default(),
    }
}

fn ask() -> Ask<'static> {
    let dst = OriginalDst::new("192.0.2.1:443".parse().unwrap());
    Ask {
        dst,
        src: "10.0.0.1:4000".parse().unwrap(),
        host: None,
        hash: None,
        avoid: &[],
        plain: None,
    }
}

async fn exchange(carried: Carried) -> String {
    let mut stream = match carried.stream {
        Stream::Plain(stream) => Box::new(stream) as Box<dyn Io>,
        Stream::Wrapped(stream) => stream,
    };
    stream.write_all(b"ping").await.unwrap();
    stream.flush().await.unwrap();
    let mut answer = [0; 4];
    stream.read_exact(&mut answer).await.unwrap();
    String::from_utf8(answer.to_vec()).unwrap()
}

/// Answers `ping` with `pong`, after as much of a CONNECT as there is.
async fn pong<S: AsyncRead + AsyncWrite + Unpin>(stream: &mut S, connect: &Mutex<String>) {
    let mut got = Vec::new();
    while !got.ends_with(b"ping") {
        let Ok(byte) = stream.read_u8().await else { return };
        got.push(byte);
        if got.ends_with(b"\r\n\r\n") {
            *connect.lock().unwrap() = String::from_utf8(std::mem::take(&mut got)).unwrap();
            stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await.unwrap();
        }
    }
    stream.write_all(b"pong").await.unwrap();
    stream.flush().await.unwrap();
    let _ = stream.read(&mut [0; 1]).await;
}

fn tunnel() -> Tunnel {
    Tunnel { post: false, host: "a.com".into(), port: 443 }
}

/// GW-20, GW-21: HTTP/1.1, in plaintext and in TLS with the ALPN of the proxy's protocol.
#[tokio::test]
async fn tunnels_in_http1() {
    let expected = "CONNECT a.com:443 HTTP/1.1\r\nHost: a.com:443\r\n\r\n";
    let connect = Arc::new(Mutex::new(String::new()));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = listener.local_addr().unwrap();
    let seen = Arc::clone(&connect);
    tokio::spawn(async move { pong(&mut listener.accept().await.unwrap().0, &seen).await });
    let plain = destination(at, |traffic| traffic.tunnel = Some(tunnel()));
    let carried = carrier().connect(&plain, ask()).await.unwrap();
    // Nothing but the socket: it can be spliced.
    assert!(matches!(carried.stream, Stream::Plain(_)));
    assert_eq!((carried.upstream, exchange(carried).await.as_str()), (at, "pong"));
    assert_eq!(*connect.lock().unwrap(), expected);

    connect.lock().unwrap().clear();
    let authority = Authority::new();
    let seen = Arc::clone(&connect);
    let server = serve(authority.leaf(&["proxy"], |_| {}), None, move |mut stream| {
        let seen = Arc::clone(&seen);
        async move { pong(&mut stream, &seen).await }
    })
    .await;
    let inside = destination(server.at, |traffic| {
        let chain = Verify::ChainOnly;
        let origination =
            crate::decide::traffic::Origination { verify: chain, ..authority.trusted() };
        traffic.tls = Some(Arc::new(origination));
        traffic.tunnel = Some(tunnel());
    });
    let carried = carrier().connect(&inside, ask()).await.unwrap();
    assert_eq!(exchange(carried).await, "pong");
    assert_eq!(*connect.lock().unwrap(), expected);
    assert_eq!(server.seen.lock().unwrap()[0].alpn, ["http/1.1"]);
}

/// GW-21: HTTP/2; GW-23: a proxy that says no.
#[tokio::test]
async fn tunnels_in_http2() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let service =
                service_fn(|mut request: http::Request<hyper::body::Incoming>| async move {
                    let to = request.uri().to_string();
                    let allowed = request.method() == http::Method::CONNECT && to == "a.com:443";
                    let upgraded = hyper::upgrade::on(&mut request);
                    tokio::spawn(async move {
                        if let Ok(upgraded) = upgraded.await {
                            pong(&mut TokioIo::new(upgraded), &Mutex::default()).await;
                        }
                    });
                    let status = if allowed { 200 } else { 403 };
                    let response =
                        http::Response::builder().status(status).body(Empty::<Bytes>::new());
                    Ok::<_, std::convert::Infallible>(response.unwrap())
                });
            tokio::spawn(
                hyper::server::conn::http2::Builder::new(TokioExecutor::new())
                    .serve_connection(TokioIo::new(stream), service),
            );
        }
    });
    let to = |host: &str, post| {
        destination(at, |traffic| {
            traffic.tunnel = Some(Tunnel { host: host.into(), post, ..tunnel() });
            traffic.protocol = UpstreamProtocol::Http2;
        })
    };
    let carried = carrier().connect(&to("a.com", false), ask()).await.unwrap();
    assert_eq!(exchange(carried).await, "pong");
    for refused in [to("b.com", false), to("a.com", true)] {
        let error = carrier().connect(&refused, ask()).await.err().unwrap();
        assert!(matches!(error, CarryError::Tunnel { tried, .. } if tried == at), "{error}");
    }
}

/// DR-10: connections beyond the limit are refused, and there is room again after one has ended.
#[tokio::test]
async fn tcp_overflow() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let one = destination(listener.local_addr().unwrap(), |traffic| {
        traffic.limits.max_connections = Some(1);
    });
    let carrier = carrier();
    let held = carrier.connect(&one, ask()).await.unwrap();
    let error = carrier.connect(&one, ask()).await.err().unwrap();
    assert!(matches!(error, CarryError::Overflow(_)), "{error}");
    drop(held);
    carrier.connect(&one, ask()).await.unwrap();
}

/// TLS-1, LOG-8, DR-9: a client's bytes relayed inside TLS, counted in plaintext, half-close and
/// limits as on a plain relay.
#[tokio::test]
async fn relayed_in_tls() {
    let authority = Authority::new();
    let server = serve(authority.leaf(&["db"], |_| {}), None, |mut stream| async move {
        let mut all = Vec::new();
        // Answers only after the client's FIN has come through.
        if stream.read_to_end(&mut all).await.is_ok() {
            let _ = stream.write_all(&[all.as_slice(), b"!"].concat()).await;
            let _ = stream.shutdown().await;
        }
    })
    .await;
    let carrier = carrier();
    let wrapped = destination(server.at, |traffic| {
        let origination = crate::decide::traffic::Origination {
            subject_alt_names: vec!["db".into()],
            ..authority.trusted()
        };
        traffic.tls = Some(Arc::new(origination));
    });
    for (limits, expected) in [
        (RelayLimits { idle: None, duration: None }, RelayEnd::Closed),
        (RelayLimits { idle: Some(Duration::from_millis(50)), duration: None }, RelayEnd::Idle),
        (RelayLimits { idle: None, duration: Some(Duration::from_millis(50)) }, RelayEnd::TooLong),
    ] {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let ours = Prefixed::new(Bytes::from_static(b"hel"), listener.accept().await.unwrap().0);
        let carried = carrier.connect(&wrapped, ask()).await.unwrap();
        let relaying = tokio::spawn(async move {
            relay(ours, carried.stream, limits, pin!(std::future::pending())).await
        });
        client.write_all(b"lo").await.unwrap();
        let mut answer = String::new();
        if expected == RelayEnd::Closed {
            client.shutdown().await.unwrap();
            client.read_to_string(&mut answer).await.unwrap();
            assert_eq!(answer, "hello!");
        }
        let relayed = relaying.await.unwrap();
        let sent = answer.len() as u64;
        assert_eq!((relayed.bytes_received, relayed.bytes_sent, relayed.end), (5, sent, expected));
    }
    // Nothing is sent without a name: rules for TCP must say whom to expect (strict, T-44).
    let nameless = destination(server.at, |traffic| {
        traffic.tls = Some(Arc::new(authority.trusted()));
    });
    let error = carrier.connect(&nameless, ask()).await.err().unwrap();
    assert!(matches!(error, CarryError::Tls { error: TlsError::Impossible(_), .. }), "{error}");
}

/// What the other side says first is noticed, and is still there for whoever reads it.
#[tokio::test]
async fn first_words_are_not_lost() {
    let (near, mut far) = tokio::io::duplex(64);
    let mut stream = Stream::Wrapped(Box::new(near));
    let silence = tokio::time::timeout(Duration::from_millis(20), stream.speaks()).await;
    assert!(silence.is_err());
    far.write_all(b"220 hello\r\n").await.expect("writes");
    stream.speaks().await;
    far.write_all(b"more").await.expect("writes");
    drop(far);
    let Stream::Wrapped(mut stream) = stream else { panic!("as it was") };
    let mut all = String::new();
    stream.read_to_string(&mut all).await.expect("reads");
    assert_eq!(all, "220 hello\r\nmore");
}

/// SE-4, TLS-1: bytes to a unix socket, in plaintext and in TLS.
#[tokio::test]
async fn unix_sockets() {
    let dir = tempfile::tempdir().unwrap();
    let path: Arc<Path> = dir.path().join("s").into();
    let listener = tokio::net::UnixListener::bind(&path).unwrap();
    let authority = Authority::new();
    let server = serve(authority.leaf(&["a.com"], |_| {}), None, |mut stream| async move {
        pong(&mut stream, &Mutex::default()).await;
    })
    .await;
    let to = |change: &dyn Fn(&mut TrafficPolicy)| Destination {
        upstream: Upstream::Unix([Endpoint { target: Arc::clone(&path), weight: 1 }].into()),
        ..destination(server.at, change)
    };
    let tls = Origination { sni: Some("a.com".into()), ..authority.trusted() };
    let plain = to(&|_| {});
    let wrapped = to(&|traffic| traffic.tls = Some(Arc::new(tls.clone())));
    for (destination, secure) in [(plain, false), (wrapped, true)] {
        let serving = async {
            let (mut stream, _) = listener.accept().await.unwrap();
            if secure {
                let mut behind = tokio::net::TcpStream::connect(server.at).await.unwrap();
                let _ = tokio::io::copy_bidirectional(&mut stream, &mut behind).await;
            } else {
                pong(&mut stream, &Mutex::default()).await;
            }
        };
        let asking = async {
            let carried = carrier().connect(&destination, ask()).await.unwrap();
            assert_eq!(carried.socket.as_deref(), Some(&*path));
            assert_eq!(exchange(carried).await, "pong");
        };
        tokio::join!(serving, asking);
    }
}
