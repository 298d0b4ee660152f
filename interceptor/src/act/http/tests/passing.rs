//! What is allowed behaves as without us.

use uuid::Uuid;

use super::*;

/// LOG-44: every field of a forwarded request's record; R4: exactly what the upstream gets, with
/// the client's spelling and order of headers.
#[tokio::test]
async fn forwarded_request_and_its_record() {
    let stub = Stub::answering(
        "HTTP/1.1 200 Fine\r\nX-Upper: Kept\r\nConnection: keep-alive\r\nContent-Length: 5\r\n\r\nhello",
        false,
    )
    .await;
    let names = Names::default().allow("A.com", stub.at);
    // The first bytes were read by the sniffer and come in front.
    let mut client = Client::connect_with(&names, "GET /headers?x=%20y HTT").await;
    client
        .send(
            "P/1.1\r\nHost: A.com\r\nUser-AGENT: t/1\r\nX-Forwarded-For: 9.9.9.9\r\n\
             X-Request-Id: mine\r\nConnection: keep-alive, X-Hop\r\nX-Hop: 1\r\nAccept: */*\r\n\r\n",
        )
        .await;
    let response = client.response().await;
    assert_eq!(response, "HTTP/1.1 200 Fine\r\nX-Upper: Kept\r\nContent-Length: 5\r\n\r\nhello");
    assert_eq!(
        stub.seen(),
        ["GET /headers?x=%20y HTTP/1.1\r\nHost: a.com\r\nUser-AGENT: t/1\r\n\
         X-Forwarded-For: 9.9.9.9\r\nX-Request-Id: mine\r\nAccept: */*\r\n\r\n"]
    );
    let local = client.local;
    let records = client.records().await;
    let [record] = records.as_slice() else { panic!("{records:?}") };
    let http = record.http.clone().expect("an HTTP record");
    assert!(record.upstream_local_address.is_some_and(|a| a.ip().is_loopback()));
    assert!(http.upstream_service_time.is_some_and(|t| t <= record.duration));
    assert!(record.duration < PATIENCE);
    assert!(crate::clock::wall().duration_since(record.start).is_ok_and(|age| age < PATIENCE));
    let expected = Record {
        start: record.start,
        http: Some(HttpFields {
            method: "GET".into(),
            path: "/headers?x=%20y".into(),
            protocol: "HTTP/1.1",
            upstream_service_time: http.upstream_service_time,
            x_forwarded_for: Some("9.9.9.9".into()),
            user_agent: Some("t/1".into()),
            request_id: Some("mine".into()),
            authority: Some("A.com".into()),
        }),
        response_code: 200,
        flags: vec![],
        response_code_details: Some("via_upstream".into()),
        connection_termination_details: None,
        upstream_transport_failure_reason: None,
        bytes_received: 0,
        bytes_sent: 5,
        duration: record.duration,
        upstream_host: Some(stub.at),
        upstream_cluster: Some(ClusterName("outbound|80||A.com".into())),
        upstream_local_address: record.upstream_local_address,
        downstream_local_address: DIALLED.parse().expect("an address"),
        downstream_remote_address: local,
        requested_server_name: None,
        route_name: Some("default".into()),
        reason: Reason::Registered,
        audited: false,
        more: crate::account::More {
            upstream_protocol: Some("HTTP/1.1"),
            attempts: Some(1),
            connection_id: Some(1),
            ..record.more.clone()
        },
    };
    assert_eq!(*record, expected);
}

/// A request id is made where there is none, sent and logged (LOG-3 field 16).
#[tokio::test]
async fn request_id_is_added() {
    let stub = Stub::saying("x").await;
    let mut client = Client::connect(&Names::default().allow("a.com", stub.at)).await;
    client.send("GET / HTTP/1.1\r\nHost: a.com\r\n\r\n").await;
    client.response().await;
    let seen = stub.seen();
    let id = header(&seen[0], "x-request-id").expect("an id");
    assert_eq!(Uuid::parse_str(id).expect("a UUID").get_version_num(), 4);
    let records = client.records().await;
    let logged = records[0].http.as_ref().and_then(|h| h.request_id.clone());
    assert_eq!(logged.as_deref(), Some(id));
}

/// R5, T-31, T-46: alternating hosts on one connection each reach their own upstream, by one kept
/// connection each.
#[tokio::test]
async fn keep_alive_with_alternating_hosts() {
    let (a, b) = (Stub::saying("from a").await, Stub::saying("from b").await);
    let names = Names::default().allow("a.com", a.at).allow("b.com", b.at);
    let mut client = Client::connect(&names).await;
    for round in 0..3 {
        for name in ["a", "b"] {
            client.send(format!("GET /{round} HTTP/1.1\r\nHost: {name}.com\r\n\r\n")).await;
            assert!(client.response().await.ends_with(&format!("from {name}")));
        }
    }
    for (stub, name) in [(&a, "a.com"), (&b, "b.com")] {
        assert_eq!(stub.connections(), 1);
        let hosts: Vec<_> =
            stub.seen().iter().map(|h| header(h, "host").map(str::to_owned)).collect();
        assert_eq!(hosts, vec![Some(name.to_owned()); 3]);
    }
    assert_eq!(client.records().await.len(), 6);
}

/// T-31: pipelined requests are answered in order and judged alone.
#[tokio::test]
async fn pipelining() {
    let (a, b) = (Stub::saying("from a").await, Stub::saying("from b").await);
    let names = Names::default().allow("a.com", a.at).allow("b.com", b.at);
    let mut client = Client::connect(&names).await;
    client
        .send(
            "GET /1 HTTP/1.1\r\nHost: a.com\r\n\r\nGET /2 HTTP/1.1\r\nHost: no.com\r\n\r\n\
             GET /3 HTTP/1.1\r\nHost: b.com\r\n\r\n",
        )
        .await;
    assert!(client.response().await.ends_with("from a"));
    assert!(client.response().await.starts_with("HTTP/1.1 502 "));
    assert!(client.response().await.ends_with("from b"));
    assert_eq!((a.seen().len(), b.seen().len()), (1, 1));
    let codes: Vec<_> = client.records().await.iter().map(|r| r.response_code).collect();
    assert_eq!(codes, [200, 502, 200]);
}

/// An absolute-form target leaves in origin form with its authority as Host.
#[tokio::test]
async fn absolute_form() {
    let stub = Stub::saying("x").await;
    let mut client = Client::connect(&Names::default().allow("a.com:80", stub.at)).await;
    client.send("GET http://a.com:80/x?y HTTP/1.1\r\nHost: other\r\nX-Request-Id: 1\r\n\r\n").await;
    client.response().await;
    assert_eq!(stub.seen(), ["GET /x?y HTTP/1.1\r\nHost: a.com:80\r\nX-Request-Id: 1\r\n\r\n"]);
    let records = client.records().await;
    assert_eq!(records[0].http.as_ref().and_then(|h| h.authority.as_deref()), Some("a.com:80"));
}

/// VS-31: the client's timeout header goes in strict and stays in istio.
#[tokio::test]
async fn envoy_timeout_header() {
    let stub = Stub::saying("x").await;
    let istio = Names::default().allow("a.com", stub.at);
    for names in [istio.clone(), istio.strict()] {
        let mut client = Client::connect(&names).await;
        client
            .send("GET / HTTP/1.1\r\nHost: a.com\r\nx-envoy-upstream-rq-timeout-ms: 5\r\n\r\n")
            .await;
        client.response().await;
    }
    let kept: Vec<_> = stub
        .seen()
        .iter()
        .map(|head| header(head, "x-envoy-upstream-rq-timeout-ms").is_some())
        .collect();
    assert_eq!(kept, [true, false]);
}

/// Answers without a body stay so (a 304 loses its optional Content-Length to the library); the
/// connection lives on.
#[tokio::test]
async fn bodiless_answers() {
    let cases = [
        ("HEAD", "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", Some("5")),
        ("GET", "HTTP/1.1 204 No Content\r\nX: y\r\n\r\n", None),
        ("GET", "HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\nEtag: x\r\n\r\n", None),
    ];
    for (method, answer, length) in cases {
        let stub = Stub::answering(answer, false).await;
        let mut client = Client::connect(&Names::default().allow("a.com", stub.at)).await;
        for _ in 0..2 {
            client.send(format!("{method} / HTTP/1.1\r\nHost: a.com\r\n\r\n")).await;
            let head = client.response_to(true).await;
            assert_eq!(head.lines().next(), answer.lines().next());
            assert_eq!(header(&head, "content-length"), length, "{answer}");
            assert_eq!(header(&head, "transfer-encoding"), None, "{answer}");
        }
        assert_eq!(stub.connections(), 1);
        let records = client.records().await;
        let status = answer[9..12].parse().expect("a status");
        assert_eq!(brief(&records[1]), (status, vec![], "via_upstream", 0, 0));
    }
}

/// An answer that ends with its connection (HTTP/1.0 servers) arrives whole and is framed.
#[tokio::test]
async fn close_delimited_answer() {
    let stub = Stub::answering("HTTP/1.0 200 OK\r\n\r\nuntil the end", true).await;
    let mut client = Client::connect(&Names::default().allow("a.com", stub.at)).await;
    client.send("GET / HTTP/1.1\r\nHost: a.com\r\n\r\n").await;
    let head = client.response_to(true).await;
    assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
    assert_eq!(header(&head, "transfer-encoding"), Some("chunked"));
    let mut body = [0; "D\r\nuntil the end\r\n0\r\n\r\n".len()];
    client.stream.read_exact(&mut body).await.expect("reads");
    assert_eq!(body.as_slice(), b"D\r\nuntil the end\r\n0\r\n\r\n");
    assert_eq!(brief(&client.records().await[0]), (200, vec![], "via_upstream", 0, 13));
}

/// 10 MB up and down, chunked, at once: streamed, not collected; trailers carried both ways.
#[tokio::test]
async fn large_chunked_bodies_and_trailers() {
    const CHUNKS: usize = 160;
    const CHUNK: usize = 65_536;
    // Echoes chunk by chunk: it would stand still if anybody waited for the whole.
    let (at, stub) = upstream(|mut stream| async move {
        let head = read_head(&mut stream).await.expect("a head");
        stream
            .write_all(b"HTTP/1.1 200 OK\r\nTrailer: X-Down\r\nTransfer-Encoding: chunked\r\n\r\n")
            .await
            .expect("writes");
        let (mut all, mut piece) = (Vec::new(), vec![0; 100_000]);
        while !all.ends_with(b"0\r\nx-up: 1\r\n\r\n") {
            let n = stream.read(&mut piece).await.expect("reads");
            assert_ne!(n, 0, "upload ended early");
            all.extend_from_slice(&piece[..n]);
            let echo = format!("{n:x}\r\n");
            stream.write_all(echo.as_bytes()).await.expect("writes");
            stream.write_all(&piece[..n]).await.expect("writes");
            stream.write_all(b"\r\n").await.expect("writes");
        }
        stream.write_all(b"0\r\nX-Down: 2\r\n\r\n").await.expect("writes");
        // Chunk framing is at least 1 and at most a few bytes a chunk.
        (head, all.len())
    })
    .await;
    let client = Client::connect(&Names::default().allow("a.com", at)).await;
    let Client { stream, captured, serving, .. } = client;
    let (mut down, mut up) = stream.into_split();
    let upload = tokio::spawn(async move {
        up.write_all(
            b"POST / HTTP/1.1\r\nHost: a.com\r\nTE: trailers\r\nTrailer: X-Up\r\n\
              Transfer-Encoding: chunked\r\n\r\n",
        )
        .await
        .expect("writes");
        for n in 0..CHUNKS {
            let chunk = vec![b'a' + (n % 26) as u8; CHUNK];
            up.write_all(format!("{CHUNK:x}\r\n").as_bytes()).await.expect("writes");
            up.write_all(&chunk).await.expect("writes");
            up.write_all(b"\r\n").await.expect("writes");
        }
        up.write_all(b"0\r\nX-Up: 1\r\n\r\n").await.expect("writes");
        up
    });
    let mut all = Vec::new();
    let mut piece = vec![0; 100_000];
    while !all.to_ascii_lowercase().ends_with(b"0\r\nx-down: 2\r\n\r\n") {
        let n = timeout(PATIENCE, down.read(&mut piece)).await.expect("in time").expect("reads");
        assert_ne!(n, 0, "download ended early");
        all = all.split_off(all.len().saturating_sub(64));
        all.extend_from_slice(&piece[..n]);
    }
    drop((upload.await.expect("uploads"), down));
    let (head, echoed) = stub.await.expect("no panic");
    assert_eq!(header(&head, "transfer-encoding"), Some("chunked"));
    serving.await.expect("no panic");
    let record = &captured.records()[0];
    assert_eq!(
        brief(record),
        (200, vec![], "via_upstream", (CHUNKS * CHUNK) as u64, echoed as u64)
    );
}

/// Back-pressure: an upstream that reads nothing stops the client's upload (T-51).
#[tokio::test]
async fn uploads_feel_a_slow_upstream() {
    let (at, stub) = upstream(|mut stream| async move {
        read_head(&mut stream).await.expect("a head");
        tokio::time::sleep(PATIENCE).await;
    })
    .await;
    let mut client = Client::connect(&Names::default().allow("a.com", at)).await;
    client.send("POST / HTTP/1.1\r\nHost: a.com\r\nContent-Length: 1000000000\r\n\r\n").await;
    let chunk = vec![0; 1 << 20];
    let mut taken = 0;
    // Stops once the buffers of four sockets are full, long before the gigabyte.
    while let Ok(sent) = timeout(Duration::from_secs(1), client.stream.write(&chunk)).await {
        taken += sent.expect("writes");
        assert!(taken < 200 << 20, "no back-pressure");
    }
    stub.abort();
}

/// `Expect: 100-continue` is answered by us, so the upstream need not.
#[tokio::test]
async fn expect_continue() {
    let (at, stub) = upstream(|mut stream| async move {
        let head = read_head(&mut stream).await.expect("a head");
        let mut body = [0; 4];
        stream.read_exact(&mut body).await.expect("a body");
        stream.write_all(b"HTTP/1.1 201 Created\r\nContent-Length: 0\r\n\r\n").await.expect("ok");
        (head, body)
    })
    .await;
    let mut client = Client::connect(&Names::default().allow("a.com", at)).await;
    client
        .send("PUT / HTTP/1.1\r\nHost: a.com\r\nContent-Length: 4\r\nExpect: 100-continue\r\n\r\n")
        .await;
    assert_eq!(client.response_to(true).await, "HTTP/1.1 100 Continue\r\n\r\n");
    client.send("body").await;
    assert!(client.response().await.starts_with("HTTP/1.1 201 Created\r\n"));
    let (head, body) = stub.await.expect("no panic");
    assert_eq!((header(&head, "expect"), &body), (None, b"body"));
    assert_eq!(brief(&client.records().await[0]), (201, vec![], "via_upstream", 4, 0));
}

/// LIS-20, T-34: after the upstream's 101 bytes pass as they are, and the record comes at the end.
#[tokio::test]
async fn websocket() {
    let (at, stub) = upstream(|mut stream| async move {
        let head = read_head(&mut stream).await.expect("a head");
        stream
            .write_all(
                b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\
                  Connection: Upgrade\r\nSec-WebSocket-Accept: k\r\n\r\nfirst",
            )
            .await
            .expect("writes");
        let mut got = Vec::new();
        stream.read_to_end(&mut got).await.expect("reads");
        stream.write_all(b"last").await.expect("writes");
        (head, got)
    })
    .await;
    let mut client = Client::connect(&Names::default().allow("a.com", at)).await;
    client
        .send(
            "GET /ws HTTP/1.1\r\nHost: a.com\r\nConnection: keep-alive, Upgrade\r\n\
             Upgrade: websocket\r\nSec-WebSocket-Key: k\r\n\r\n",
        )
        .await;
    let head = client.response_to(true).await;
    assert!(head.starts_with("HTTP/1.1 101 Switching Protocols\r\n"), "{head}");
    assert_eq!(header(&head, "upgrade"), Some("websocket"));
    assert_eq!(header(&head, "sec-websocket-accept"), Some("k"));
    // No HTTP from here on: bytes that no head may hold.
    client.send(b"\0\n\r \xff").await;
    client.stream.shutdown().await.expect("half-closes");
    assert_eq!(client.captured.records(), []);
    assert_eq!(client.rest().await, b"firstlast");
    let (head, got) = stub.await.expect("no panic");
    assert_eq!(got, b"\0\n\r \xff");
    assert_eq!(header(&head, "connection"), Some("Upgrade"));
    assert_eq!(header(&head, "upgrade"), Some("websocket"));
    let records = client.records().await;
    assert_eq!(records.len(), 1);
    assert_eq!(brief(&records[0]), (101, vec![], "via_upstream", 5, 9));
}

/// DR-9, LOG-15: a tunnel on which nothing moves, and one that has lasted long enough.
#[tokio::test]
async fn websocket_limits() {
    let limit = Some(Duration::from_millis(80));
    for (idle, flag, details) in
        [(true, Flag::SI, "stream_idle_timeout"), (false, Flag::UMSDR, "max_duration_timeout")]
    {
        let (at, stub) = upstream(|mut stream| async move {
            read_head(&mut stream).await.expect("a head");
            let answer = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\
                          Connection: Upgrade\r\n\r\n";
            stream.write_all(answer.as_bytes()).await.expect("writes");
            let _ = stream.read_to_end(&mut Vec::new()).await;
        })
        .await;
        let names = Names::default().allow("a.com", at).traffic(|traffic| match idle {
            true => traffic.limits.tcp_idle_timeout = limit,
            false => traffic.limits.max_connection_duration = limit,
        });
        let mut client = Client::connect(&names).await;
        client
            .send("GET / HTTP/1.1\r\nHost: a.com\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
            .await;
        assert!(client.response_to(true).await.starts_with("HTTP/1.1 101 "));
        assert_eq!(client.rest().await, b"");
        timeout(PATIENCE, stub).await.expect("upstream is let go").expect("no panic");
        assert_eq!(brief(&client.records().await[0]), (101, vec![flag], details, 0, 0));
    }
}

/// R4, T-20: the Host that is passed on is the one that was judged, in its one form; the log has it
/// as it was sent.
#[tokio::test]
async fn host_in_its_one_form() {
    let stub = Stub::saying("ok").await;
    for (sent, passed_on) in [
        ("a.com", "a.com"),
        ("A.Com", "a.com"),
        ("a.com.", "a.com"),
        ("A.COM.:80", "a.com:80"),
        ("[2001:DB8::1]", "[2001:db8::1]"),
    ] {
        let mut client = Client::connect(&Names::default().allow(sent, stub.at)).await;
        for request in [
            format!("GET / HTTP/1.1\r\nHost: {sent}\r\n\r\n"),
            format!("GET http://{sent}/ HTTP/1.1\r\nHost: {sent}\r\n\r\n"),
        ] {
            client.send(request).await;
            assert!(client.response().await.starts_with("HTTP/1.1 200 "));
            let seen = stub.seen();
            assert_eq!(header(seen.last().expect("a head"), "host"), Some(passed_on), "{sent}");
        }
        let records = client.records().await;
        let authority = records[0].http.as_ref().and_then(|http| http.authority.as_deref());
        assert_eq!(authority, Some(sent));
    }
}

/// T-34: an upgrade that the upstream refuses stays HTTP, and h2c is never asked for.
#[tokio::test]
async fn refused_upgrade_keeps_parsing() {
    let stub = Stub::saying("no").await;
    let mut client = Client::connect(&Names::default().allow("a.com", stub.at)).await;
    let cases = [("Upgrade", "websocket", true), ("Upgrade, HTTP2-Settings", "h2c", false)];
    for (connection, upgrade, passes) in cases {
        client
            .send(format!(
                "GET / HTTP/1.1\r\nHost: a.com\r\nConnection: {connection}\r\n\
                 HTTP2-Settings: AA\r\nUpgrade: {upgrade}\r\n\r\n"
            ))
            .await;
        assert!(client.response().await.ends_with("no"));
        let seen = stub.seen();
        let last = seen.last().expect("a head");
        assert_eq!(header(last, "upgrade").is_some(), passes, "{last}");
        assert_eq!(header(last, "http2-settings"), None);
    }
    client.send("GET / HTTP/1.1\r\nHost: no.com\r\n\r\n").await;
    assert!(client.response().await.starts_with("HTTP/1.1 502 "));
    assert_eq!(client.records().await.len(), 3);
}
