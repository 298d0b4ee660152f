//! What is refused, by policy or by the rules of the protocol.

use super::*;

/// LOG-42, SEED-6: field for field; the connection lives on in istio.
#[tokio::test]
async fn blocked_in_istio() {
    let mut client = Client::connect(&Names::default()).await;
    for _ in 0..2 {
        client.send("GET /p HTTP/1.1\r\nHost: no.com\r\nUser-Agent: curl/8\r\n\r\n").await;
        let response = client.response().await;
        assert_eq!(response, "HTTP/1.1 502 Bad Gateway\r\ncontent-length: 0\r\n\r\n");
    }
    let local = client.local;
    let records = client.records().await;
    assert_eq!(records.len(), 2);
    let record = &records[0];
    let request_id = record.http.as_ref().and_then(|h| h.request_id.clone());
    assert!(request_id.is_some());
    let expected = Record {
        start: record.start,
        duration: record.duration,
        http: Some(HttpFields {
            method: "GET".into(),
            path: "/p".into(),
            protocol: "HTTP/1.1",
            user_agent: Some("curl/8".into()),
            request_id,
            authority: Some("no.com".into()),
            ..HttpFields::default()
        }),
        response_code: 502,
        flags: vec![],
        response_code_details: Some("direct_response".into()),
        connection_termination_details: None,
        upstream_transport_failure_reason: None,
        bytes_received: 0,
        bytes_sent: 0,
        upstream_host: None,
        upstream_cluster: None,
        upstream_local_address: None,
        downstream_local_address: DIALLED.parse().expect("an address"),
        downstream_remote_address: local,
        requested_server_name: None,
        route_name: Some("block_all".into()),
        reason: Reason::NotRegistered,
        audited: false,
        more: crate::account::More {
            request_duration: record.more.request_duration,
            attempts: Some(0),
            connection_id: Some(1),
            ..crate::account::More::default()
        },
    };
    assert_eq!(*record, expected);
}

/// GAP-3, T-31: strict says why and ends the connection; what was pipelined behind goes nowhere.
#[tokio::test]
async fn blocked_in_strict() {
    let stub = Stub::saying("x").await;
    let mut client = Client::connect(&Names::default().allow("a.com", stub.at).strict()).await;
    client.send("GET /1 HTTP/1.1\r\nHost: a.com\r\n\r\n").await;
    client.response().await;
    client
        .send("GET /2 HTTP/1.1\r\nHost: no.com\r\n\r\nGET /3 HTTP/1.1\r\nHost: a.com\r\n\r\n")
        .await;
    let response = client.response().await;
    assert!(response.starts_with("HTTP/1.1 502 Bad Gateway\r\n"), "{response}");
    assert_eq!(header(&response, "connection"), Some("close"));
    assert_eq!(header(&response, "content-type"), Some("text/plain"));
    assert!(response.contains("no.com port 80 (not_registered): "), "{response}");
    assert_eq!(client.rest().await, b"");
    assert_eq!(stub.seen().len(), 1);
    let records = client.records().await;
    assert_eq!(records.len(), 2);
    assert_eq!(records[1].response_code, 502);
    assert!(records[1].bytes_sent > 0);
}

/// T-32, T-33, T-30: each shape is answered by 400 and the end, reaches no upstream, also behind a
/// good request, and leaves one record. (All shapes: `framing`.)
#[tokio::test]
async fn ambiguous_requests() {
    let post = |headers: &str| format!("POST / HTTP/1.1\r\nHost: a.com\r\n{headers}\r\n\r\nabcde");
    let cases = [
        post("Content-Length: 5\r\nTransfer-Encoding: chunked"),
        post("Content-Length: 5\r\nContent-Length: 6"),
        post("Content-Length: +5"),
        post("Content-Length: 0x5"),
        post("Content-Length: 5, 5"),
        post("Transfer-Encoding: gzip, chunked"),
        post("Transfer-Encoding : chunked"),
        post("X: a\r\n folded"),
        post("X: a\0b"),
        "POST / HTTP/1.0\r\nHost: a.com\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n".into(),
        "GET / HTTP/1.1\nHost: a.com\n\n".into(),
        "GET / HTTP/1.1\r\nHost: a.com\r\nX: a\rb\r\n\r\n".into(),
        " GET / HTTP/1.1\r\nHost: a.com\r\n\r\n".into(),
        "GET\t/ HTTP/1.1\r\nHost: a.com\r\n\r\n".into(),
        "GET  / HTTP/1.1\r\nHost: a.com\r\n\r\n".into(),
        "GET / HTTP/3.0\r\nHost: a.com\r\n\r\n".into(),
        "GET / HTTP/0.9\r\nHost: a.com\r\n\r\n".into(),
        "GET /\r\n\r\n".into(),
        "\x16\x03\x01".to_owned() + &"\0".repeat(8) + "\n",
    ];
    let stub = Stub::saying("good").await;
    let names = Names::default().allow("a.com", stub.at);
    for bad in cases {
        let mut client = Client::connect(&names).await;
        client.send(&bad).await;
        let response = client.response().await;
        assert!(response.starts_with("HTTP/1.1 400 Bad Request\r\n"), "{bad:?}: {response}");
        assert_eq!(client.rest().await, b"", "{bad:?}");
        assert_eq!(stub.seen().len(), 0, "{bad:?}");
        let records = client.records().await;
        let [record] = records.as_slice() else { panic!("{bad:?}: {records:?}") };
        assert_eq!(brief(record), (400, vec![Flag::DPE], "http1.codec_error", 0, 0), "{bad:?}");
        assert_eq!(record.upstream_cluster, None);

        let mut client = Client::connect(&names).await;
        client.send(format!("GET / HTTP/1.1\r\nHost: a.com\r\n\r\n{bad}")).await;
        assert!(client.response().await.ends_with("good"), "{bad:?}");
        assert!(client.response().await.starts_with("HTTP/1.1 400 "), "{bad:?}");
        assert_eq!(client.rest().await, b"", "{bad:?}");
        assert_eq!(stub.seen().len(), 1, "{bad:?}");
        stub.seen.lock().expect("no panic").clear();
        assert_eq!(client.records().await.len(), 2, "{bad:?}");
    }
}

/// T-30: names that are not one name are never forwarded, whatever the verdict said.
#[tokio::test]
async fn not_one_host() {
    let stub = Stub::saying("x").await;
    let names = Names::default().allow("a.com", stub.at);
    let cases = [
        ("Host: a.com\r\nHost: b.com\r\n", "bad_host"),
        ("Host: a.com\r\nHost: a.com\r\n", "bad_host"),
        ("", "missing_host_header"),
    ];
    for (hosts, details) in cases {
        let mut client = Client::connect(&names).await;
        client.send(format!("GET / HTTP/1.1\r\n{hosts}\r\n")).await;
        assert!(client.response().await.starts_with("HTTP/1.1 400 "), "{hosts}");
        let records = client.records().await;
        assert_eq!(brief(&records[0]), (400, vec![], details, 0, 0));
        assert_eq!(records[0].reason, Reason::BadHost);
    }
    assert_eq!(stub.connections(), 0);
}

/// LIS-18.
#[tokio::test]
async fn http_1_0() {
    let stub = Stub::saying("x").await;
    let mut client = Client::connect(&Names::default().allow("a.com", stub.at)).await;
    client.send("GET / HTTP/1.0\r\nHost: a.com\r\n\r\n").await;
    let rest = String::from_utf8(client.rest().await).expect("text");
    assert!(rest.contains(" 426 Upgrade Required\r\n"), "{rest}");
    assert_eq!(stub.connections(), 0);
    let records = client.records().await;
    assert_eq!(brief(&records[0]), (426, vec![], "low_version", 0, 0));
    assert_eq!(records[0].http.as_ref().map(|h| h.protocol), Some("HTTP/1.0"));
}

/// T-35: CONNECT is refused, and what follows it is neither request nor tunnel.
#[tokio::test]
async fn connect_method() {
    let stub = Stub::saying("x").await;
    let mut client = Client::connect(&Names::default().allow("a.com", stub.at)).await;
    client
        .send(
            "CONNECT a.com:443 HTTP/1.1\r\nHost: a.com:443\r\n\r\n\
             GET / HTTP/1.1\r\nHost: a.com\r\n\r\n",
        )
        .await;
    let rest = String::from_utf8(client.rest().await).expect("text");
    assert!(rest.starts_with("HTTP/1.1 403 Forbidden\r\n"), "{rest}");
    assert_eq!(rest.matches("HTTP/1.1").count(), 1, "{rest}");
    assert_eq!(stub.connections(), 0);
    let records = client.records().await;
    assert_eq!(records.len(), 1);
    assert_eq!(brief(&records[0]), (403, vec![], "direct_response", 0, 0));
    assert_eq!(records[0].http.as_ref().map(|h| h.authority.as_deref()), Some(Some("a.com:443")));
}

/// T-32: a body that turns ambiguous on its way: what was good is not completed.
#[tokio::test]
async fn bad_chunks() {
    let (at, stub) = upstream(|mut stream| async move {
        let mut got = Vec::new();
        let _ = stream.read_to_end(&mut got).await;
        String::from_utf8(got).expect("text")
    })
    .await;
    let mut client = Client::connect(&Names::default().allow("a.com", at)).await;
    client
        .send("POST / HTTP/1.1\r\nHost: a.com\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n")
        .await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    client.send("+0\r\n\r\nGET / HTTP/1.1\r\nHost: a.com\r\n\r\n").await;
    let rest = String::from_utf8(client.rest().await).expect("text");
    assert!(rest.starts_with("HTTP/1.1 400 Bad Request\r\n"), "{rest}");
    let got = timeout(PATIENCE, stub).await.expect("in time").expect("no panic");
    assert!(got.ends_with("\r\n\r\n5\r\nhello\r\n"), "{got}");
    let records = client.records().await;
    assert_eq!(records.len(), 1);
    assert_eq!(brief(&records[0]), (400, vec![Flag::DPE], "http1.codec_error", 5, 0));
}

/// T-37: 64 KiB of head pass, more is 431; 200 headers pass, more is 431.
#[tokio::test]
async fn head_limits() {
    let stub = Stub::saying("x").await;
    let names = Names::default().allow("a.com", stub.at);
    let head = |headers: String| format!("GET / HTTP/1.1\r\nHost: a.com\r\n{headers}\r\n");
    let filler = |n: usize, len: usize| format!("X: {}\r\n", "a".repeat(len)).repeat(n);
    let cases = [
        (head(filler(10, 6_000)), 200),
        (head(filler(199, 10)), 200),
        (head(filler(20, 6_000)), 431),
        (head(filler(200, 10)), 431),
    ];
    for (request, status) in cases {
        let mut client = Client::connect(&names).await;
        client.send(&request).await;
        let response = client.response().await;
        assert!(response.starts_with(&format!("HTTP/1.1 {status} ")), "{response}");
        let records = client.records().await;
        assert_eq!(records.len(), 1);
        assert_eq!(records[0].response_code, status);
    }
}

/// T-37, T-48: a head has 10 s from its first byte; a byte now and then gains nothing.
#[tokio::test(start_paused = true)]
async fn head_deadline() {
    let mut client = Client::connect(&Names::default()).await;
    let started = Instant::now();
    let mut read = [0; 1];
    for byte in b"GET / HTTP/1.1\r\n" {
        client.send([*byte]).await;
        // Ends when the proxy has closed.
        if timeout(Duration::from_secs(2), client.stream.read(&mut read)).await.is_ok() {
            break;
        }
    }
    let took = started.elapsed();
    assert!(took >= wire::HEAD_DEADLINE && took < wire::HEAD_DEADLINE * 2, "{took:?}");
    let records = client.records().await;
    assert_eq!(records.len(), 1);
    assert_eq!(brief(&records[0]), (0, vec![Flag::DPE], "request_header_timeout", 0, 0));
}

/// An idle connection outlives the head's deadline by far, and leaves no record (LIS-25).
#[tokio::test(start_paused = true)]
async fn idle_limit() {
    let mut client = Client::connect(&Names::default()).await;
    client.send("GET / HTTP/1.1\r\nHost: no.com\r\n\r\n").await;
    client.response().await;
    let started = Instant::now();
    let mut rest = Vec::new();
    let _ = client.stream.read_to_end(&mut rest).await;
    let took = started.elapsed();
    assert!(took >= wire::IDLE_LIMIT && took < wire::IDLE_LIMIT * 2, "{took:?}");
    assert_eq!(client.records().await.len(), 1);
}
