//! Requests through egress proxies: in absolute form where they may be, through a tunnel else (RFC 9112
//! 3.2.2, T-47).

use super::*;
use crate::decide::Place;
use crate::decide::door::{EgressProxy, Login, PlainHttp, Speaks, Via};
use crate::decide::host::HostName;
use crate::decide::route::Rewrite;

const GET: &str = "GET /x?y HTTP/1.1\r\nHost: a.com\r\nProxy-Authorization: Basic mine\r\n\r\n";

/// `a.com` behind a proxy at `at`; where it really is, nobody should hear of it.
fn behind(
    at: SocketAddr,
    plain_http: PlainHttp,
    login: Option<Login>,
) -> (Names, Arc<EgressProxy>) {
    let proxy = Arc::new(EgressProxy {
        name: "corp".into(),
        speaks: Speaks::Http,
        place: Place::Ip(at.ip()),
        port: at.port(),
        login,
    });
    let place = Place::Name(HostName::parse("a.com").expect("a name"));
    let via = Via {
        proxies: [Arc::clone(&proxy)].into(),
        targets: [Endpoint { target: (place, 80), weight: 1 }].into(),
        noticed: None,
        plain_http,
    };
    let mut names = Names::default().allow("a.com", "192.0.2.1:80".parse().expect("an address"));
    let upstream = Upstream::None;
    let destination = names.destination("a.com", upstream);
    names.destinations = vec![Destination { door: Door::Proxies(Arc::new(via)), ..destination }];
    (names, proxy)
}

/// As curl hands a request to a proxy: absolute target, its own credentials and not the client's; one
/// connection for several.
#[tokio::test]
async fn plain_requests_go_in_absolute_form() {
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("credentials");
    std::fs::write(&file, "user:pass\n").expect("written");
    let proxy = Stub::saying("hi").await;
    let (names, _) = behind(proxy.at, PlainHttp::AbsoluteForm, Some(Login::File(file)));
    let mut client = Client::connect(&names).await;
    for _ in 0..2 {
        client.send(GET).await;
        assert!(client.response().await.ends_with("hi"));
    }
    let expected = "GET http://a.com/x?y HTTP/1.1\r\n";
    for head in proxy.seen() {
        assert!(head.starts_with(expected), "{head}");
        assert_eq!(header(&head, "host"), Some("a.com"));
        assert_eq!(header(&head, "proxy-authorization"), Some("Basic dXNlcjpwYXNz"));
        assert!(!head.contains("mine"), "{head}");
    }
    assert_eq!((proxy.seen().len(), proxy.connections()), (2, 1));
    let records = client.records().await;
    let more = &records[0].more;
    assert_eq!(
        (more.egress_proxy.as_deref(), more.proxy_target.as_deref()),
        (Some("corp"), Some("a.com:80"))
    );
    assert_eq!(records[0].upstream_host, Some(proxy.at));
    assert_eq!(records[0].upstream_cluster, Some(ClusterName::outbound(80, "a.com")));
    assert!(!format!("{records:?}").contains("dXNlcjpwYXNz"));
}

/// A proxy that wants other credentials says so to us, not to the client.
#[tokio::test]
async fn t_47_407_is_a_refusal() {
    let proxy = Stub::answering(
        "HTTP/1.1 407 No\r\nProxy-Authenticate: Basic realm=x\r\nContent-Length: 0\r\n\r\n",
        false,
    )
    .await;
    let (names, _) = behind(proxy.at, PlainHttp::AbsoluteForm, None);
    let mut client = Client::connect(&names).await;
    client.send(GET).await;
    let response = client.response().await;
    assert!(response.starts_with("HTTP/1.1 503 "), "{response}");
    assert_eq!(header(&response, "proxy-authenticate"), None);
    assert!(response.contains("egress_proxy{corp|the_proxy_answered_407}"), "{response}");
    let record = client.records().await.remove(0);
    assert_eq!(
        (record.upstream_host, record.more.egress_proxy.as_deref()),
        (Some(proxy.at), Some("corp"))
    );
}

/// Through a tunnel: where the setting says so, and where the request's Host is not the target's, which
/// the proxy would put in its place.
#[tokio::test]
async fn what_needs_a_tunnel_has_one() {
    for (setting, rewritten) in
        [(PlainHttp::Connect, None), (PlainHttp::AbsoluteForm, Some("b.com"))]
    {
        let (at, heard) = upstream(|mut stream| async move {
            let connect = read_head(&mut stream).await.expect("CONNECT");
            stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await.expect("writes");
            let request = read_head(&mut stream).await.expect("a request");
            stream
                .write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi")
                .await
                .expect("writes");
            (connect, request)
        })
        .await;
        let (names, _) = behind(at, setting, None);
        let names = names.route(|route| {
            let authority = rewritten.map(str::to_owned);
            route.rewrite = authority.map(|name| Rewrite { path: None, authority: Some(name) });
        });
        let mut client = Client::connect(&names).await;
        client.send(GET).await;
        assert!(client.response().await.ends_with("hi"));
        let (connect, request) = heard.await.expect("no panic");
        assert_eq!(connect, "CONNECT a.com:80 HTTP/1.1\r\nHost: a.com:80\r\n\r\n");
        assert!(
            request.starts_with("GET /x?y HTTP/1.1\r\n") && !request.contains("roxy"),
            "{request}"
        );
        assert_eq!(header(&request, "host"), Some(rewritten.unwrap_or("a.com")));
    }
}
