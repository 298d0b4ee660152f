//! Proxies that do as they should, and proxies that do not (T-47).

use std::path::PathBuf;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;

use super::*;
use crate::act::carrier::{Carried, CarryError, Outbound};
use crate::act::tls::testing::{Authority as Ca, NoSecrets, serve};
use crate::decide::door::{Door, Login};
use crate::decide::route::Destination;
use crate::decide::traffic::{Identity, Origination};
use crate::decide::{ClusterName, Endpoint, Upstream};
use crate::netns::NetNs;
use crate::policy::Enforcement;
use crate::resolve::Resolver;

fn carrier() -> Carrier {
    let dialer = Dialer {
        netns: Arc::new(NetNs::current().unwrap()),
        resolver: Arc::new(Resolver::of_table(&[("noticed.test", &["192.0.2.1"])])),
        connect_timeout: Duration::from_secs(3),
        enforcement: Enforcement::Strict,
        own: None,
    };
    Carrier { dialer, outbound: Arc::new(Outbound::new(Arc::new(NoSecrets))) }
}

fn proxy(name: &str, at: SocketAddr, speaks: Speaks, login: Option<Login>) -> Arc<EgressProxy> {
    let place = Place::Ip(at.ip());
    Arc::new(EgressProxy { name: name.into(), speaks, place, port: at.port(), login })
}

fn http(name: &str, at: SocketAddr) -> Arc<EgressProxy> {
    proxy(name, at, Speaks::Http, None)
}

/// To `a.test:443`, whose one address is `direct`, through `proxies`.
fn to(proxies: Vec<Arc<EgressProxy>>, direct: SocketAddr) -> Destination {
    let place = Place::Name(HostName::parse("a.test").unwrap());
    Destination {
        weight: 1,
        cluster: Some(ClusterName("c".into())),
        upstream: Upstream::Static([Endpoint { target: direct, weight: 1 }].into()),
        judged: None,
        door: Door::Proxies(Arc::new(Via {
            proxies: proxies.into(),
            targets: [Endpoint { target: (place, 443), weight: 1 }].into(),
            noticed: None,
            plain_http: PlainHttp::default(),
        })),
        traffic: Arc::default(),
        headers: Arc::default(),
    }
}

async fn go(carrier: &Carrier, destination: &Destination) -> Result<Carried, CarryError> {
    let dst = OriginalDst::new("192.0.2.1:443".parse().unwrap());
    let src = "10.0.0.1:4000".parse().unwrap();
    let ask = Ask { dst, src, host: None, hash: None, avoid: &[], plain: None };
    carrier.connect(destination, ask).await
}

/// Accepts connections, reads as much as `reads` says, answers and (if `closes`) hangs up. Tells what
/// it read.
async fn fake(
    answer: &'static [u8],
    closes: bool,
) -> (SocketAddr, mpsc::UnboundedReceiver<Vec<u8>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = listener.local_addr().unwrap();
    let (tell, told) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let tell = tell.clone();
            tokio::spawn(async move {
                let mut got = Vec::new();
                while !got.ends_with(b"\r\n\r\n") {
                    match stream.read_u8().await {
                        Ok(byte) => got.push(byte),
                        Err(_) => return,
                    }
                }
                let _ = tell.send(got);
                let _ = stream.write_all(answer).await;
                if !closes {
                    // Until the other side hangs up.
                    let _ = stream.read(&mut [0; 1]).await;
                }
            });
        }
    });
    (at, told)
}

/// A destination that must hear nothing.
async fn witness() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = listener.local_addr().unwrap();
    (listener, at)
}

async fn heard(witness: &TcpListener) -> bool {
    timeout(Duration::from_millis(50), witness.accept()).await.is_ok()
}

async fn read_all(carried: Carried) -> String {
    let Carried { mut stream, held: _held, .. } = carried;
    let mut all = String::new();
    stream.read_to_string(&mut all).await.unwrap();
    all
}

const LONG: &[u8] = &[b'x'; 20_000];

/// T-47: whatever a proxy says that is no consent is a refusal that says so, and never a way round it.
#[tokio::test]
async fn t_47_what_is_no_consent_is_a_refusal_and_nothing_goes_direct() {
    let long: &'static [u8] = [b"HTTP/1.1 200 OK\r\nX: ", LONG].concat().leak();
    for (answer, closes, expected) in [
        (
            &b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n"[..],
            false,
            "the_proxy_answered_407",
        ),
        (b"HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\n\r\nno", true, "the_proxy_answered_403"),
        (b"HTTP/1.1 503 Service Unavailable\r\n\r\n", true, "the_proxy_answered_503"),
        (b"HTTP/1.1 101 Switching Protocols\r\n\r\n", true, "the_proxy_answered_101"),
        (b"HTTP/1.1 302 Found\r\nLocation: http://b.test/\r\n\r\n", true, "the_proxy_answered_302"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", false, "the_proxy_does_not_speak_HTTP"),
        (b"HTTP/1.1 2OO OK\r\n\r\n", false, "the_proxy_does_not_speak_HTTP"),
        (b"HTTP/1.1 200 OK\r\nbad header\r\n\r\n", false, "the_proxy_does_not_speak_HTTP"),
        (b"HTTP/1.1 200 OK\r\nX: y", true, "the_proxy_closed_before_it_had_answered"),
        (b"", true, "the_proxy_closed_before_it_had_answered"),
        (long, false, "the_proxy's_answer_is_too_long"),
        (b"HTTP/1.1 100 Continue\r\n\r\n", false, "the_proxy_did_not_answer_in_time"),
        (b"", false, "the_proxy_did_not_answer_in_time"),
    ] {
        let (witness, direct) = witness().await;
        let (at, mut asked) = fake(answer, closes).await;
        let mut carrier = carrier();
        carrier.dialer.connect_timeout = Duration::from_millis(300);
        let error = go(&carrier, &to(vec![http("corp", at)], direct)).await.err().expect(expected);
        assert_eq!(error.details(), format!("egress_proxy{{corp|{expected}}}"));
        let request = String::from_utf8(asked.recv().await.unwrap()).unwrap();
        assert_eq!(request, "CONNECT a.test:443 HTTP/1.1\r\nHost: a.test:443\r\n\r\n");
        assert!(!heard(&witness).await, "{expected}: direct");
        // The control: without a door it is reached.
        let open = Destination { door: Door::Direct, ..to(vec![], direct) };
        assert!(go(&carrier, &open).await.is_ok() && heard(&witness).await);
    }
}

/// What comes behind the proxy's consent is the server's, to the byte.
#[tokio::test]
async fn bytes_behind_the_answer_are_the_streams() {
    let (at, _asked) = fake(b"HTTP/1.1 200 OK\r\n\r\nSSH-2.0-server\r\n", true).await;
    let carried = go(&carrier(), &to(vec![http("corp", at)], at)).await.unwrap();
    assert_eq!((carried.upstream, carried.left.as_ref().unwrap().proxy.as_ref()), (at, "corp"));
    assert_eq!(&*carried.left.as_ref().unwrap().target, "a.test:443");
    assert!(matches!(carried.stream, Stream::Plain(_)), "it can be spliced");
    assert_eq!(read_all(carried).await, "SSH-2.0-server\r\n");
}

/// A name that nobody judged is asked for only where the daemon's own resolution has the address.
#[tokio::test]
async fn noticed_names_are_confirmed() {
    for (noticed, dialled, expected) in [
        ("noticed.test", "192.0.2.1", "noticed.test:443"),
        ("noticed.test", "192.0.2.2", "192.0.2.2:443"),
        ("unknown.test", "192.0.2.1", "192.0.2.1:443"),
    ] {
        let ip = dialled.parse().unwrap();
        let via = Via {
            proxies: [].into(),
            targets: [Endpoint { target: (Place::Ip(ip), 443), weight: 1 }].into(),
            noticed: Some(HostName::parse(noticed).unwrap()),
            plain_http: PlainHttp::default(),
        };
        let dst = OriginalDst::new(SocketAddr::new(ip, 443));
        let (place, port) = target(&via, dst, &carrier().dialer).await;
        assert_eq!(format!("{place}:{port}"), expected, "{noticed} {dialled}");
    }
}

async fn closed_port() -> SocketAddr {
    witness().await.1
}

const CONSENT: &[u8] = b"HTTP/1.1 200 OK\r\n\r\nhello";

/// The next proxy stands in for one that is down, hangs up, or says nothing; within a second. It then
/// rests, and nobody waits for it.
#[tokio::test]
async fn the_next_proxy_stands_in() {
    for (first, rests_after) in [
        (closed_port().await, 1),
        (fake(b"", true).await.0, 3),
        (fake(b"", false).await.0, 3),
        (fake(b"SSH-2.0-x\r\n\r\n", true).await.0, 3),
    ] {
        let (second, mut asked) = fake(CONSENT, true).await;
        let (carrier, (witness, direct)) = (carrier(), witness().await);
        let destination = to(vec![http("first", first), http("second", second)], direct);
        for _ in 0..rests_after {
            let start = Instant::now();
            let carried = go(&carrier, &destination).await.unwrap();
            assert_eq!(carried.upstream, second);
            assert!(start.elapsed() < Duration::from_secs(1), "{:?}", start.elapsed());
            assert_eq!(read_all(carried).await, "hello");
            asked.recv().await.unwrap();
        }
        let report = carrier.outbound.proxies.report();
        assert!(report[0].rests_ms.is_some() && report[0].served == 0, "{report:?}");
        assert_eq!(report[1].served, rests_after);
        assert!(!heard(&witness).await);
    }
}

/// A refusal is an answer: another proxy is no way round it.
#[tokio::test]
async fn a_refusal_ends_the_search() {
    let (first, _) = fake(b"HTTP/1.1 403 Forbidden\r\n\r\n", true).await;
    let (second, mut asked) = fake(CONSENT, true).await;
    let destination = to(vec![http("first", first), http("second", second)], second);
    let error = go(&carrier(), &destination).await.err().unwrap();
    assert_eq!(error.details(), "egress_proxy{first|the_proxy_answered_403}");
    assert!(asked.try_recv().is_err());
}

fn credentials(text: &str) -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("credentials");
    std::fs::write(&file, text).unwrap();
    (dir, file)
}

/// T-47: credentials go to the proxy, and nowhere else: not into what is shown, logged or kept.
#[tokio::test]
async fn t_47_credentials_are_shown_to_the_proxy_only() {
    let (_dir, file) = credentials("user:hunter2\n");
    let (at, mut asked) = fake(b"HTTP/1.1 407 No\r\n\r\n", true).await;
    let login = Some(Login::File(file.clone()));
    let (carrier, corp) = (carrier(), proxy("corp", at, Speaks::Http, login));
    let destination = to(vec![corp], at);
    let error = go(&carrier, &destination).await.err().unwrap();
    let request = String::from_utf8(asked.recv().await.unwrap()).unwrap();
    assert!(request.contains("\r\nProxy-Authorization: Basic dXNlcjpodW50ZXIy\r\n"), "{request}");
    let report = carrier.outbound.proxies.report();
    let shown = format!("{error} {error:?} {} {report:?} {destination:?}", error.details());
    assert!(!shown.contains("hunter2") && !shown.contains("dXNlcjpodW50ZXIy"), "{shown}");
    // Without them nothing is asked.
    std::fs::write(&file, "no colon").unwrap();
    let error = go(&carrier, &destination).await.err().unwrap().details();
    assert!(error.contains("does_not_hold_user:password") && !error.contains("colon"), "{error}");
    assert!(asked.try_recv().is_err());
}

/// TLS to the proxy with an authority and a client certificate of its own; one of another authority
/// gets nothing.
#[tokio::test]
async fn https_proxies() {
    let (ca, clients) = (Ca::new(), Ca::new());
    let client = clients.leaf(&["us"], |params| {
        params.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ClientAuth];
    });
    let identity = Identity::Files {
        certificate: ca.file("client.pem", &client.certificate_pem),
        key: ca.file("client.key", &client.key_pem),
    };
    let server = serve(ca.leaf(&["proxy.corp"], |_| {}), Some(&clients), |mut stream| async move {
        let mut got = Vec::new();
        while !got.ends_with(b"\r\n\r\n") {
            let Ok(byte) = stream.read_u8().await else { return };
            got.push(byte);
        }
        assert!(got.starts_with(b"CONNECT a.test:443 "));
        let _ = stream.write_all(CONSENT).await;
        let _ = stream.shutdown().await;
    })
    .await;
    let tls = |change: &dyn Fn(&mut Origination)| {
        let mut tls = Origination {
            sni: Some("proxy.corp".into()),
            identity: Some(identity.clone()),
            ..ca.trusted()
        };
        change(&mut tls);
        to(vec![proxy("corp", server.at, Speaks::Https(Arc::new(tls)), None)], server.at)
    };
    let carried = go(&carrier(), &tls(&|_| {})).await.unwrap();
    assert_eq!(read_all(carried).await, "hello");
    let seen = server.seen.lock().unwrap()[0].clone();
    assert_eq!((seen.sni.as_deref(), seen.client_certificate), (Some("proxy.corp"), true));
    let stranger = Ca::new().trusted().trust;
    for wrong in
        [tls(&|tls| tls.trust = stranger.clone()), tls(&|tls| tls.sni = Some("other.corp".into()))]
    {
        let error = go(&carrier(), &wrong).await.err().unwrap().details();
        assert!(error.starts_with("egress_proxy{corp|TLS_error:"), "{error}");
    }
}

/// One exchange with a SOCKS proxy that says `script`: after each of our messages the next item.
async fn socks(
    script: Vec<&'static [u8]>,
    login: Option<&str>,
) -> (Result<String, String>, Vec<Vec<u8>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = listener.local_addr().unwrap();
    let serving = tokio::spawn(async move {
        let (mut stream, _): (TcpStream, _) = listener.accept().await.unwrap();
        let mut heard = Vec::new();
        for answer in script {
            let mut message = vec![0; 512];
            let length = stream.read(&mut message).await.unwrap();
            message.truncate(length);
            heard.push(message);
            stream.write_all(answer).await.unwrap();
        }
        heard
    });
    let file = login.map(credentials);
    let login = file.as_ref().map(|(_, file)| Login::File(file.clone()));
    let destination = to(vec![proxy("corp", at, Speaks::Socks5, login)], at);
    let outcome = match go(&carrier(), &destination).await {
        Ok(carried) => Ok(read_all(carried).await),
        Err(error) => Err(error.details()),
    };
    (outcome, serving.await.unwrap())
}

const CONNECTED: &[u8] = b"\x05\0\0\x01\x7f\0\0\x01\x1f\x90hello";

#[tokio::test]
async fn rfc_1928_and_1929() {
    let (outcome, heard) = socks(vec![b"\x05\0", CONNECTED], None).await;
    assert_eq!(outcome.as_deref(), Ok("hello"));
    // Remote resolution: the judged name as a name.
    assert_eq!(heard, [b"\x05\x01\0".to_vec(), b"\x05\x01\0\x03\x06a.test\x01\xbb".to_vec()]);

    let script: Vec<&[u8]> = vec![b"\x05\x02", b"\x01\0", b"\x05\0\0\x03\x02abxxhello"];
    let (outcome, heard) = socks(script, Some("user:pass")).await;
    assert_eq!(outcome.as_deref(), Ok("hello"));
    assert_eq!(heard[..2], [b"\x05\x02\0\x02".to_vec(), b"\x01\x04user\x04pass".to_vec()]);

    for (script, login, expected) in [
        (vec![&b"\x05\xff"[..]], None, "the_proxy_accepts_none_of_our_ways_to_log_in"),
        (vec![b"\x05\x02"], None, "the_proxy_accepts_none_of_our_ways_to_log_in"),
        (vec![b"\x05\x02", b"\x01\x01"], Some("u:p"), "the_proxy_refused_user_and_password"),
        (
            vec![b"\x05\0", b"\x05\x02\0\x01"],
            None,
            "the_proxy_answered_2_(not_allowed_by_its_rules)",
        ),
        (vec![b"\x05\0", b"\x05\x05"], None, "the_proxy_answered_5_(connection_refused)"),
        (vec![b"\x04\0"], None, "the_proxy_does_not_speak_SOCKS_5"),
        (vec![b"HTTP/1.1 400"], None, "the_proxy_does_not_speak_SOCKS_5"),
        (vec![b"\x05\0", b"\x05\0\0\x09"], None, "the_proxy_does_not_speak_SOCKS_5"),
        (vec![b"\x05\0", b"\x05\0\0\x01\x7f"], None, "the_proxy_closed_before_it_had_answered"),
        (vec![b"\x05"], None, "the_proxy_closed_before_it_had_answered"),
    ] {
        let (outcome, _) = socks(script, login).await;
        assert_eq!(outcome, Err(format!("egress_proxy{{corp|{expected}}}")));
    }
}

#[test]
fn only_the_targets_own_host_may_be_sent_in_absolute_form() {
    for (host, place, port, expected) in [
        ("a.test", "a.test", 80, true),
        ("A.test:80", "a.test", 80, true),
        ("a.test:8080", "a.test", 8080, true),
        ("a.test", "a.test", 8080, false),
        ("b.test", "a.test", 80, false),
        ("a.test", "192.0.2.1", 80, false),
        ("192.0.2.1", "192.0.2.1", 80, true),
        ("[2001:db8::1]", "2001:db8::1", 80, true),
        ("u@a.test", "a.test", 80, false),
        ("a.test/x", "a.test", 80, false),
    ] {
        let place = match place.parse() {
            Ok(ip) => Place::Ip(ip),
            Err(_) => Place::Name(HostName::parse(place).unwrap()),
        };
        assert_eq!(is_authority_of(host, &(place, port)), expected, "{host}");
    }
}
