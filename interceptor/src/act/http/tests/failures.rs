//! Upstreams and clients that fail.

use futures_util::StreamExt;
use http_body_util::StreamBody;
use hyper::body::Frame;
use hyper_util::rt::TokioExecutor;

use super::*;
use crate::decide::route::RetryOn;

/// LOG-48: nobody listens.
#[tokio::test]
async fn refused_connect() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("listens");
    let at = listener.local_addr().expect("an address");
    drop(listener);
    let names = Names::default().allow("a.com", at).route(|route| {
        route.retries.attempts = 2;
        route.retries.on = vec![RetryOn::ConnectFailure];
    });
    let mut client = Client::connect(&names).await;
    client.send("GET / HTTP/1.1\r\nHost: a.com\r\n\r\n").await;
    let response = client.response().await;
    assert!(response.starts_with("HTTP/1.1 503 Service Unavailable\r\n"), "{response}");
    assert_eq!(header(&response, "content-length"), Some("152"));
    let records = client.records().await;
    let record = &records[0];
    assert_eq!(
        brief(record),
        (
            503,
            vec![Flag::URX, Flag::UF],
            "upstream_reset_before_response_started{remote_connection_failure|delayed_connect_error:_111}",
            0,
            152
        )
    );
    assert_eq!(
        record.upstream_transport_failure_reason.as_deref(),
        Some("delayed connect error: 111")
    );
    assert_eq!((record.upstream_host, record.upstream_local_address), (Some(at), None));
    assert_eq!(record.upstream_cluster, Some(ClusterName("outbound|80||a.com".into())));
    assert_eq!(record.http.as_ref().and_then(|h| h.upstream_service_time), None);
}

/// LOG-47: no endpoint.
#[tokio::test]
async fn no_endpoint() {
    let mut names = Names::default();
    names.allowed.insert("a.com", Upstream::None);
    let mut client = Client::connect(&names).await;
    client.send("GET / HTTP/1.1\r\nHost: a.com\r\n\r\n").await;
    assert!(client.response().await.ends_with("\r\n\r\nno healthy upstream"));
    let records = client.records().await;
    assert_eq!(brief(&records[0]), (503, vec![Flag::UH], "no_healthy_upstream", 0, 19));
    assert_eq!(records[0].upstream_host, None);
}

/// LOG-20: what an upstream says instead of an answer.
#[tokio::test]
async fn no_answer() {
    let closed = "upstream_reset_before_response_started{connection_termination}";
    let protocol = "upstream_reset_before_response_started{protocol_error}";
    let cases = [
        ("", 503, Flag::UC, closed),
        ("HTTP/1.1 200 O", 503, Flag::UC, closed),
        ("SSH-2.0-x\r\n\r\n", 502, Flag::UPE, protocol),
        (
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
            502,
            Flag::UPE,
            protocol,
        ),
        // T-34: nobody asked for it.
        (
            "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\n",
            502,
            Flag::UPE,
            protocol,
        ),
    ];
    for (answer, status, flag, details) in cases {
        let stub = Stub::answering(answer, true).await;
        let mut client = Client::connect(&Names::default().allow("a.com", stub.at)).await;
        client.send("GET / HTTP/1.1\r\nHost: a.com\r\n\r\n").await;
        let response = client.response().await;
        assert!(response.starts_with(&format!("HTTP/1.1 {status} ")), "{answer}: {response}");
        let records = client.records().await;
        let sent = response.split_once("\r\n\r\n").map_or(0, |(_, body)| body.len() as u64);
        assert_eq!(brief(&records[0]), (status, vec![flag], details, 0, sent), "{answer}");
        // A fresh connection is not tried twice.
        assert_eq!(stub.connections(), 1);
        assert_eq!(records[0].upstream_host, Some(stub.at));
    }
}

/// LOG-15: an HTTP/2 upstream that resets the stream, before and after its answer's head.
#[tokio::test]
async fn reset_stream() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("listens");
    let at = listener.local_addr().expect("an address");
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let service = service_fn(|request: http::Request<hyper::body::Incoming>| async move {
                if request.uri().path() == "/early" {
                    return Err(std::io::Error::other("no"));
                }
                let frames =
                    [Ok(Frame::data(Bytes::from("hello"))), Err(std::io::Error::other("no"))];
                // A moment apart, or the library sends the reset only.
                let frames = futures_util::stream::iter(frames).then(async |frame| {
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    frame
                });
                Ok(http::Response::new(StreamBody::new(Box::pin(frames))))
            });
            tokio::spawn(
                hyper::server::conn::http2::Builder::new(TokioExecutor::new())
                    .serve_connection(TokioIo::new(stream), service),
            );
        }
    });
    let names = Names::default()
        .allow("a.com", at)
        .traffic(|traffic| traffic.protocol = UpstreamProtocol::Http2);
    let mut client = Client::connect(&names).await;
    client.send("GET /early HTTP/1.1\r\nHost: a.com\r\n\r\n").await;
    let response = client.response().await;
    assert!(response.ends_with("before headers. reset reason: remote reset"), "{response}");
    client.send("GET /late HTTP/1.1\r\nHost: a.com\r\n\r\n").await;
    client.rest().await;
    let records = client.records().await;
    let body = response.split_once("\r\n\r\n").expect("a body").1.len() as u64;
    let (early, late) = (
        "upstream_reset_before_response_started{remote_reset}",
        "upstream_reset_after_response_started{remote_reset}",
    );
    assert_eq!(brief(&records[0]), (503, vec![Flag::UR], early, 0, body));
    assert_eq!(brief(&records[1]), (200, vec![Flag::UR], late, 0, 5));
}

fn resolved(host: &str) -> Upstream {
    let host = crate::decide::host::HostName::parse(host).expect("a name");
    Upstream::Dns {
        endpoints: Arc::from([Endpoint { target: (host.into(), 80), weight: 1 }]),
        round_robin: false,
    }
}

/// RES-8, MESH-31: a name without an address; where the request itself named it, the flag says so.
#[tokio::test]
async fn no_address() {
    for (cluster, flag, details, body) in [
        (
            ClusterName::outbound(80, "a.com"),
            Flag::UH,
            "no_healthy_upstream",
            "no healthy upstream",
        ),
        (
            ClusterName::allow_any_dynamic_dns(),
            Flag::DF,
            "dns_resolution_failure",
            "DNS resolution failure",
        ),
    ] {
        let mut names = Names::default();
        names.allowed.insert("a.com", Upstream::None);
        let destination = names.destination("a.com", resolved("a.com"));
        names.destinations = vec![Destination { cluster: Some(cluster), ..destination }];
        let mut client = Client::connect(&names).await;
        client.send("GET / HTTP/1.1\r\nHost: a.com\r\n\r\n").await;
        assert!(client.response().await.ends_with(body));
        let records = client.records().await;
        assert_eq!(brief(&records[0]), (503, vec![flag], details, 0, body.len() as u64));
        assert_eq!(records[0].more.attempts, Some(0));
    }
}

/// T-40: an address that is not dialled is no upstream.
#[tokio::test]
async fn special_address() {
    let mut names = Names::default().strict();
    names.carrier.dialer.resolver = Arc::new(Resolver::of_table(&[("a.com", &["127.0.0.1"])]));
    names.carrier.dialer.enforcement = Enforcement::Strict;
    names.allowed.insert("a.com", resolved("a.com"));
    let mut client = Client::connect(&names).await;
    client.send("GET / HTTP/1.1\r\nHost: a.com\r\n\r\n").await;
    assert!(client.response().await.starts_with("HTTP/1.1 502 "));
    let records = client.records().await;
    assert_eq!(records[0].upstream_host, None);
    assert_eq!((records[0].reason, &records[0].flags), (Reason::SpecialAddress, &vec![]));
}

/// An answer that breaks off is broken off for the client too, never completed.
#[tokio::test]
async fn truncated_answer() {
    let cases = [
        "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhello",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n",
    ];
    for answer in cases {
        let stub = Stub::answering(answer, true).await;
        let mut client = Client::connect(&Names::default().allow("a.com", stub.at)).await;
        client.send("GET / HTTP/1.1\r\nHost: a.com\r\n\r\n").await;
        let rest = String::from_utf8(client.rest().await).expect("text");
        assert!(rest.contains("hello") && !rest.ends_with("0\r\n\r\n"), "{rest}");
        let records = client.records().await;
        assert_eq!(records.len(), 1);
        assert_eq!(
            brief(&records[0]),
            (
                200,
                vec![Flag::UC],
                "upstream_reset_after_response_started{connection_termination}",
                0,
                5
            )
        );
    }
}

/// A kept connection that died meanwhile is replaced once for what can be sent again.
#[tokio::test]
async fn stale_connection() {
    for (request, status) in [
        ("GET / HTTP/1.1\r\nHost: a.com\r\n\r\n", 200),
        ("POST / HTTP/1.1\r\nHost: a.com\r\nContent-Length: 2\r\n\r\nhi", 503),
    ] {
        // Takes a second request on a connection and dies of it, like a server whose idle limit
        // ran out just then.
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("listens");
        let at = listener.local_addr().expect("an address");
        let stub = tokio::spawn(async move {
            for _ in 0..2 {
                let (mut stream, _) = listener.accept().await.expect("accepts");
                read_head(&mut stream).await.expect("a head");
                stream
                    .write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nx")
                    .await
                    .expect("ok");
                read_head(&mut stream).await;
            }
        });
        let mut client = Client::connect(&Names::default().allow("a.com", at)).await;
        client.send("GET / HTTP/1.1\r\nHost: a.com\r\n\r\n").await;
        assert!(client.response().await.starts_with("HTTP/1.1 200 "));
        client.send(request).await;
        let response = client.response().await;
        assert!(response.starts_with(&format!("HTTP/1.1 {status} ")), "{request}: {response}");
        let records = client.records().await;
        assert_eq!(records.len(), 2);
        assert_eq!(records[1].response_code, status);
        stub.abort();
    }
}

/// T-46: bytes behind an answer end that upstream connection; they answer nobody.
#[tokio::test]
async fn surplus_answer() {
    let stub = Stub::answering(
        "HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nxHTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nforged",
        false,
    )
    .await;
    let mut client = Client::connect(&Names::default().allow("a.com", stub.at)).await;
    for _ in 0..2 {
        client.send("GET / HTTP/1.1\r\nHost: a.com\r\n\r\n").await;
        let response = client.response().await;
        assert!(response.ends_with("\r\n\r\nx"), "{response}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(stub.connections(), 2);
}

/// LOG-53: the client leaves before, or in the middle of, the answer; recorded once, and the
/// upstream's connection ends too.
#[tokio::test]
async fn client_gives_up() {
    for (answer, code, sent) in
        [("", 0, 0), ("HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhello", 200, 5)]
    {
        let (at, stub) = upstream(move |mut stream| async move {
            read_head(&mut stream).await.expect("a head");
            stream.write_all(answer.as_bytes()).await.expect("writes");
            let mut rest = Vec::new();
            let _ = stream.read_to_end(&mut rest).await;
        })
        .await;
        let mut client = Client::connect(&Names::default().allow("a.com", at)).await;
        client.send("GET / HTTP/1.1\r\nHost: a.com\r\n\r\n").await;
        if !answer.is_empty() {
            client.stream.read_u8().await.expect("the answer starts");
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
        let records = client.records().await;
        assert_eq!(records.len(), 1);
        assert_eq!(
            brief(&records[0]),
            (code, vec![Flag::DC], "downstream_remote_disconnect", 0, sent)
        );
        timeout(PATIENCE, stub).await.expect("upstream is let go").expect("no panic");
    }
}

/// LOG-53: the client leaves in the middle of its upload; the upstream does not take it for whole.
#[tokio::test]
async fn client_gives_up_uploading() {
    for (framing, end) in [("Content-Length: 9", "hello"), ("Transfer-Encoding: chunked", "")] {
        let (at, stub) = upstream(move |mut stream| async move {
            read_head(&mut stream).await.expect("a head");
            let mut rest = Vec::new();
            let _ = stream.read_to_end(&mut rest).await;
            rest
        })
        .await;
        let mut client = Client::connect(&Names::default().allow("a.com", at)).await;
        client.send(format!("POST / HTTP/1.1\r\nHost: a.com\r\n{framing}\r\n\r\n{end}")).await;
        tokio::time::sleep(Duration::from_millis(100)).await;
        let records = client.records().await;
        assert_eq!(records.len(), 1);
        assert_eq!(
            brief(&records[0]),
            (0, vec![Flag::DC], "downstream_remote_disconnect", end.len() as u64, 0)
        );
        let got = timeout(PATIENCE, stub).await.expect("upstream is let go").expect("no panic");
        assert_eq!(got, end.as_bytes());
    }
}

/// T-55: a connection that is dropped from above leaves its record as well.
#[tokio::test]
async fn dropped_from_above() {
    let (at, stub) = upstream(|mut stream| async move {
        read_head(&mut stream).await.expect("a head");
        let mut rest = Vec::new();
        let _ = stream.read_to_end(&mut rest).await;
    })
    .await;
    let mut client = Client::connect(&Names::default().allow("a.com", at)).await;
    client.send("GET / HTTP/1.1\r\nHost: a.com\r\n\r\n").await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    client.serving.abort();
    timeout(PATIENCE, stub).await.expect("upstream is let go").expect("no panic");
    assert_eq!(client.rest().await, b"");
    let records = client.captured.records();
    assert_eq!(records.len(), 1);
    assert_eq!(records[0].flags, [Flag::DC]);
}

/// A head that breaks off leaves a record; a connection that never spoke leaves none (LIS-25).
#[tokio::test]
async fn unfinished_head() {
    let mut client = Client::connect(&Names::default()).await;
    client.send("GET / HT").await;
    let records = client.records().await;
    assert_eq!(records.len(), 1);
    assert_eq!(brief(&records[0]), (0, vec![Flag::DC], "downstream_remote_disconnect", 0, 0));
    let client = Client::connect(&Names::default()).await;
    assert_eq!(client.records().await, []);
}
