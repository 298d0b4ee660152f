//! Answers that come before, beside or instead of what one would expect.

use super::*;

/// An upstream may answer before the upload is over: the client has the answer, whether the
/// upstream then reads on, stops reading, or closes.
#[tokio::test]
async fn answer_during_the_upload() {
    let answer = b"HTTP/1.1 413 Too Large\r\nContent-Length: 4\r\n\r\nfull";
    for then in ["reads", "stops", "closes"] {
        let (at, stub) = upstream(move |mut stream| async move {
            read_head(&mut stream).await.expect("a head");
            stream.write_all(answer).await.expect("writes");
            let mut rest = Vec::new();
            match then {
                "reads" => drop(stream.read_to_end(&mut rest).await),
                "stops" => tokio::time::sleep(PATIENCE).await,
                _ => stream.shutdown().await.expect("closes"),
            }
        })
        .await;
        let mut client = Client::connect(&Names::default().allow("a.com", at)).await;
        client.send("POST / HTTP/1.1\r\nHost: a.com\r\nContent-Length: 1000000\r\n\r\nabc").await;
        let response = client.response().await;
        assert!(response.starts_with("HTTP/1.1 413 "), "{then}: {response}");
        assert!(response.ends_with("full"), "{then}: {response}");
        // What is left of the upload is no request, whatever it looks like.
        client.send("GET / HTTP/1.1\r\nHost: a.com\r\n\r\n").await;
        let rest = timeout(Duration::from_secs(2), client.stream.read_u8()).await;
        assert!(!matches!(rest, Ok(Ok(_))), "{then}: {rest:?}");
        stub.abort();
        let records = client.records().await;
        assert_eq!(records.len(), 1, "{then}: {records:?}");
        assert_eq!((records[0].response_code, records[0].bytes_sent), (413, 4), "{then}");
    }
}

/// Informational answers are passed over: the answer is the final one (RFC 9110 15.2).
#[tokio::test]
async fn informational_answers() {
    let stub = Stub::answering(
        "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n\
         HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
        false,
    )
    .await;
    let mut client = Client::connect(&Names::default().allow("a.com", stub.at)).await;
    for _ in 0..2 {
        client.send("GET / HTTP/1.1\r\nHost: a.com\r\n\r\n").await;
        let response = client.response().await;
        assert!(response.starts_with("HTTP/1.1 200 OK\r\n"), "{response}");
        assert_eq!(header(&response, "link"), None);
    }
    assert_eq!(stub.connections(), 1);
    assert_eq!(client.records().await.len(), 2);
}

/// `Expect: 100-continue` on a request that is refused: the refusal comes at once, and a client
/// that then keeps its body to itself and goes on is not misread.
#[tokio::test]
async fn expectation_of_a_refused_request() {
    let stub = Stub::saying("ok").await;
    let names = Names::default().allow("a.com", stub.at);
    for body in ["", "abcd"] {
        let mut client = Client::connect(&names).await;
        client
            .send(
                "PUT / HTTP/1.1\r\nHost: no.com\r\nContent-Length: 4\r\n\
                 Expect: 100-continue\r\n\r\n",
            )
            .await;
        let response = client.response().await;
        assert!(response.starts_with("HTTP/1.1 502 "), "{response}");
        let _ = client.stream.write_all(body.as_bytes()).await;
        // Four bytes short: read on, it would be `/smuggled`.
        let next = "GET /x HTTP/1.1\r\nHost: a.com\r\n\r\n";
        let _ = client.stream.write_all(next.as_bytes()).await;
        let _ = client.stream.shutdown().await;
        let rest = String::from_utf8(client.rest().await).expect("text");
        for seen in stub.seen() {
            assert!(seen.starts_with("GET /x HTTP/1.1\r\n"), "{seen}");
        }
        assert!(rest.is_empty() || rest.starts_with("HTTP/1.1 "), "{rest}");
    }
}

/// A refused request's body is its body: it is read over, or the connection ends; never a request.
#[tokio::test]
async fn body_of_a_refused_request() {
    let stub = Stub::saying("ok").await;
    let names = Names::default().allow("a.com", stub.at);
    let inner = "GET /inner HTTP/1.1\r\nHost: a.com\r\n\r\n";
    let length = inner.len();
    for framing in [
        format!("Content-Length: {length}\r\n\r\n{inner}"),
        format!("Transfer-Encoding: chunked\r\n\r\n{length:x}\r\n{inner}\r\n0\r\n\r\n"),
    ] {
        for names in [names.clone(), names.clone().strict()] {
            let mut client = Client::connect(&names).await;
            client.send(format!("POST / HTTP/1.1\r\nHost: no.com\r\n{framing}")).await;
            assert!(client.response().await.starts_with("HTTP/1.1 502 "));
            let _ = client.stream.write_all(b"GET /next HTTP/1.1\r\nHost: a.com\r\n\r\n").await;
            let _ = client.stream.shutdown().await;
            client.rest().await;
            assert!(stub.seen().iter().all(|seen| seen.starts_with("GET /next ")));
        }
    }
}

/// T-34: a websocket to a host that is refused, or whose answer is no 101, is no tunnel; bytes
/// sent ahead of the answer are requests like any others.
#[tokio::test]
async fn websocket_without_consent() {
    let stub = Stub::saying("no").await;
    let ask = |host: &str| {
        format!(
            "GET /ws HTTP/1.1\r\nHost: {host}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n\
             GET /inner HTTP/1.1\r\nHost: no.com\r\n\r\n"
        )
    };
    let names = Names::default().allow("a.com", stub.at);
    for (host, status, reached) in [("no.com", "502", 0), ("a.com", "200", 1)] {
        let mut client = Client::connect(&names).await;
        client.send(ask(host)).await;
        let response = client.response().await;
        assert!(response.starts_with(&format!("HTTP/1.1 {status} ")), "{response}");
        assert!(client.response().await.starts_with("HTTP/1.1 502 "));
        assert_eq!(stub.seen().len(), reached);
        assert_eq!(client.records().await.len(), 2);
    }
}

/// Answers that announce their length more than once, or beside another framing, reach the client
/// with one reading.
#[tokio::test]
async fn answers_with_two_readings() {
    let cases = [
        ("Content-Length: 2\r\nContent-Length: 2\r\n\r\nok", Some("ok")),
        ("Content-Length: 2\r\nContent-Length: 3\r\n\r\nok!", None),
        ("Content-Length: 2, 2\r\n\r\nok", None),
        ("Content-Length: +2\r\n\r\nok", None),
        ("Content-Length: 9\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n", Some("ok")),
    ];
    for (answer, body) in cases {
        let stub = Stub::answering(format!("HTTP/1.1 200 OK\r\n{answer}"), true).await;
        let mut client = Client::connect(&Names::default().allow("a.com", stub.at)).await;
        client.send("GET / HTTP/1.1\r\nHost: a.com\r\nConnection: close\r\n\r\n").await;
        let rest = String::from_utf8(client.rest().await).expect("text");
        let framings = rest.to_lowercase();
        let framings = framings.lines().filter(|line| {
            line.starts_with("content-length:") || line.starts_with("transfer-encoding:")
        });
        assert_eq!(framings.count(), 1, "{answer:?}: {rest}");
        match body {
            Some(body) => {
                assert!(rest.starts_with("HTTP/1.1 200 ") && rest.contains(body), "{rest}")
            }
            None => assert!(rest.starts_with("HTTP/1.1 502 "), "{answer:?}: {rest}"),
        }
    }
}

/// RFC 9110 6.5.1: what frames or routes a message is no trailer, in either direction.
#[tokio::test]
async fn trailers_that_are_none() {
    let (at, stub) = upstream(|mut stream| async move {
        let mut all = Vec::new();
        while !all.ends_with(b"\r\n\r\n") || !all.windows(5).any(|w| w == b"\r\n0\r\n") {
            all.push(stream.read_u8().await.expect("a byte"));
        }
        stream
            .write_all(
                b"HTTP/1.1 200 OK\r\nTrailer: Content-Length, X-B\r\n\
                  Transfer-Encoding: chunked\r\n\r\n0\r\nContent-Length: 5\r\nX-B: 1\r\n\r\n",
            )
            .await
            .expect("writes");
        String::from_utf8(all).expect("text")
    })
    .await;
    let mut client = Client::connect(&Names::default().allow("a.com", at)).await;
    client
        .send(
            "POST / HTTP/1.1\r\nHost: a.com\r\nTE: trailers\r\n\
             Trailer: Host, X-A\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n\
             0\r\nHost: b.com\r\nX-A: 1\r\n\r\n",
        )
        .await;
    let rest = String::from_utf8(client.rest().await).expect("text").to_lowercase();
    let up = stub.await.expect("no panic").to_lowercase();
    assert!(up.ends_with("0\r\nx-a: 1\r\n\r\n"), "{up}");
    assert!(rest.ends_with("0\r\nx-b: 1\r\n\r\n"), "{rest}");
}
