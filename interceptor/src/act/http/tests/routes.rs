//! What routes ask for: time-outs, retries, faults, rewrites, headers, mirrors, replies (10.3-10.5).

use super::*;
use crate::decide::route::{Abort, Cors, HeaderOps, Mirror, Retries, RetryOn, Rewrite, TextMatch};

const GET: &str = "GET /p?q HTTP/1.1\r\nHost: a.com\r\n\r\n";

/// An upstream that accepts and never answers.
async fn silent() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("listens");
    let at = listener.local_addr().expect("an address");
    tokio::spawn(async move {
        let mut kept = Vec::new();
        while let Ok((stream, _)) = listener.accept().await {
            kept.push(stream);
        }
    });
    at
}

fn pairs(list: &[(&str, &str)]) -> Vec<(String, String)> {
    list.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect()
}

async fn ask(names: &Names, request: &str) -> (String, Vec<Record>) {
    let mut client = Client::connect(names).await;
    client.send(request).await;
    let response = client.response().await;
    (response, client.records().await)
}

/// VS-30, LOG-46.
#[tokio::test]
async fn timeout_before_the_answer() {
    let at = silent().await;
    let names = Names::default()
        .allow("a.com", at)
        .route(|route| route.timeout = Some(Duration::from_millis(100)));
    let (response, records) = ask(&names, GET).await;
    assert!(response.starts_with("HTTP/1.1 504 Gateway Timeout\r\n"), "{response}");
    assert!(response.ends_with("\r\n\r\nupstream request timeout"));
    assert_eq!(brief(&records[0]), (504, vec![Flag::UT], "response_timeout", 0, 24));
    assert_eq!(records[0].upstream_host, Some(at));
    assert!(records[0].duration >= Duration::from_millis(100));
}

/// VS-30: after the head the answer is broken off.
#[tokio::test]
async fn timeout_in_the_answer() {
    let stub = Stub::answering("HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhello", false).await;
    let names = Names::default()
        .allow("a.com", stub.at)
        .route(|route| route.timeout = Some(Duration::from_millis(100)));
    let mut client = Client::connect(&names).await;
    client.send(GET).await;
    let rest = String::from_utf8(client.rest().await).expect("text");
    assert!(rest.ends_with("\r\n\r\nhello"), "{rest}");
    let records = client.records().await;
    assert_eq!(brief(&records[0]), (200, vec![Flag::UT], "response_timeout", 0, 5));
}

/// VS-31: the client's own limit counts in istio, and is no header of strict.
#[tokio::test]
async fn timeout_by_header() {
    let request = "GET / HTTP/1.1\r\nHost: a.com\r\nx-envoy-upstream-rq-timeout-ms: 50\r\n\r\n";
    let names = Names::default().allow("a.com", silent().await);
    assert_eq!(brief(&ask(&names, request).await.1[0]).2, "response_timeout");
    let strict = names.strict().route(|route| route.timeout = Some(Duration::from_millis(300)));
    let (_, records) = ask(&strict, request).await;
    assert!(records[0].duration >= Duration::from_millis(300));
}

/// VS-30: an upload is the client's time, not the upstream's.
#[tokio::test]
async fn timeout_starts_after_the_request() {
    let stub = Stub::saying("ok").await;
    let names = Names::default()
        .allow("a.com", stub.at)
        .route(|route| route.timeout = Some(Duration::from_millis(150)));
    let (at, _upstream) = upstream(|mut stream| async move {
        let mut all = [0; 4096];
        let mut got = Vec::new();
        while !got.ends_with(b"body") {
            let n = stream.read(&mut all).await.expect("reads");
            got.extend_from_slice(&all[..n]);
        }
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await.expect("writes");
        let _ = stream.read(&mut all).await;
    })
    .await;
    let names = names.allow("a.com", at);
    let mut client = Client::connect(&names).await;
    client.send("POST / HTTP/1.1\r\nHost: a.com\r\nContent-Length: 4\r\n\r\nbo").await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    client.send("dy").await;
    assert!(client.response().await.starts_with("HTTP/1.1 200 "));
    assert_eq!(brief(&client.records().await[0]), (200, vec![], "via_upstream", 4, 2));
}

/// VS-40, VS-41, VS-43: attempts at the stub, flags, body.
#[tokio::test]
async fn retries() {
    let unavailable = "HTTP/1.1 503 Service Unavailable\r\nContent-Length: 4\r\n\r\nbusy";
    // attempts, conditions, statuses, idempotent only, request, expected at the stub, flags
    type Case = (u32, Vec<RetryOn>, Vec<u16>, bool, &'static str, usize, Vec<Flag>);
    let post = "POST / HTTP/1.1\r\nHost: a.com\r\nContent-Length: 3\r\n\r\nabc";
    let cases: Vec<Case> = vec![
        (2, vec![RetryOn::ServerError], vec![], false, GET, 3, vec![Flag::URX]),
        (2, vec![RetryOn::StatusCodes], vec![503], false, GET, 3, vec![Flag::URX]),
        (1, vec![RetryOn::GatewayError], vec![], false, post, 2, vec![Flag::URX]),
        (2, vec![RetryOn::ServerError], vec![], true, post, 1, vec![]),
        (2, vec![RetryOn::ConnectFailure], vec![], false, GET, 1, vec![]),
        (0, vec![RetryOn::ServerError], vec![503], false, GET, 1, vec![]),
    ];
    for (attempts, on, statuses, idempotent_only, request, expected, flags) in cases {
        let stub = counting(unavailable).await;
        let names = Names::default().allow("a.com", stub.at).route(|route| {
            route.retries =
                Retries { attempts, on, statuses, idempotent_only, ..Retries::default() };
        });
        let (response, records) = ask(&names, request).await;
        assert!(response.ends_with("busy"), "{response}");
        assert_eq!(stub.seen().len(), expected, "{request}");
        let body = request.split_once("\r\n\r\n").map_or("", |(_, body)| body);
        assert!(stub.seen().iter().all(|seen| seen.ends_with(body)));
        assert_eq!(records[0].flags, flags, "{request}");
        assert_eq!(records[0].bytes_received, body.len() as u64);
    }
}

/// A stub that reads bodies by their length and keeps them with the heads.
async fn counting(answer: &'static str) -> Stub {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("listens");
    let at = listener.local_addr().expect("an address");
    let stub = Stub { at, seen: Arc::default(), connections: Arc::default() };
    let mine = stub.clone();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            *mine.connections.lock().expect("no panic") += 1;
            let mine = mine.clone();
            tokio::spawn(async move {
                while let Some(mut head) = read_head(&mut stream).await {
                    let length = header(&head, "content-length").and_then(|l| l.parse().ok());
                    let mut body = vec![0; length.unwrap_or(0)];
                    if stream.read_exact(&mut body).await.is_err() {
                        break;
                    }
                    head.push_str(&String::from_utf8(body).expect("text"));
                    mine.seen.lock().expect("no panic").push(head);
                    if stream.write_all(answer.as_bytes()).await.is_err() {
                        break;
                    }
                }
            });
        }
    });
    stub
}

/// VS-43, LOG-21: an upstream that hangs up, retried, says so.
#[tokio::test]
async fn retried_resets() {
    let stub = Stub::answering("", true).await;
    let names = Names::default().allow("a.com", stub.at).route(|route| {
        route.retries.attempts = 1;
        route.retries.on = vec![RetryOn::Reset];
    });
    let (response, records) = ask(&names, GET).await;
    assert!(
        response.ends_with("headers. retried and the latest reset reason: connection termination"),
        "{response}"
    );
    assert_eq!(records[0].flags, [Flag::URX, Flag::UC]);
    assert_eq!(stub.connections(), 2);
}

/// VS-40: another endpoint has its turn, and VS-44: what is too large is not sent twice.
#[tokio::test]
async fn retries_elsewhere() {
    let bad = counting("HTTP/1.1 500 Oh\r\nContent-Length: 0\r\n\r\n").await;
    let good = counting("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await;
    let names = Names::default().allow_all("a.com", &[bad.at, good.at]).route(|route| {
        route.retries.attempts = 1;
        route.retries.on = vec![RetryOn::ServerError];
    });
    for _ in 0..20 {
        let (response, records) = ask(&names, GET).await;
        assert!(response.starts_with("HTTP/1.1 200 "), "{response}");
        assert_eq!((records[0].upstream_host, records[0].flags.len()), (Some(good.at), 0));
    }
    assert!(!bad.seen().is_empty());

    let bad = counting("HTTP/1.1 500 Oh\r\nContent-Length: 0\r\n\r\n").await;
    let names = names.allow("a.com", bad.at);
    for (size, expected) in [(64 * 1024, 2), (64 * 1024 + 1, 1)] {
        bad.seen.lock().expect("no panic").clear();
        let body = "x".repeat(size);
        let request =
            format!("POST / HTTP/1.1\r\nHost: a.com\r\nContent-Length: {size}\r\n\r\n{body}");
        ask(&names, &request).await;
        assert_eq!(bad.seen().len(), expected, "{size}");
        assert!(bad.seen().iter().all(|seen| seen.ends_with(&format!("\r\n\r\n{body}"))));
    }
}

/// VS-32.
#[tokio::test]
async fn per_try_timeout() {
    let names = Names::default().allow("a.com", silent().await).route(|route| {
        route.retries.attempts = 1;
        route.retries.per_try_timeout = Some(Duration::from_millis(50));
        route.retries.on = vec![RetryOn::ServerError];
    });
    let (response, records) = ask(&names, GET).await;
    assert!(response.ends_with("upstream request timeout"), "{response}");
    let expected = (504, vec![Flag::URX, Flag::UT], "upstream_per_try_timeout", 0, 24);
    assert_eq!(brief(&records[0]), expected);
    assert!(records[0].duration >= Duration::from_millis(100));
    // Not among the conditions: one attempt.
    let names = names.route(|route| route.retries.on = vec![RetryOn::ConnectFailure]);
    let (_, records) = ask(&names, GET).await;
    assert_eq!(records[0].flags, [Flag::UT]);
    assert!(records[0].duration < Duration::from_millis(100));
}

/// VS-50, VS-51, LOG-52.
#[tokio::test]
async fn faults() {
    let stub = Stub::saying("ok").await;
    let names = Names::default().allow("a.com", stub.at);
    let abort = names.clone().route(|route| route.fault.abort = Some((Abort::Http(500), 100.0)));
    let (response, records) = ask(&abort, GET).await;
    assert!(response.ends_with("\r\n\r\nfault filter abort"), "{response}");
    assert_eq!(brief(&records[0]), (500, vec![Flag::FI], "fault_filter_abort", 0, 18));
    assert_eq!(records[0].upstream_host, None);
    assert_eq!(records[0].upstream_cluster, Some(ClusterName("outbound|80||a.com".into())));
    assert_eq!(stub.seen().len(), 0);

    let late = Duration::from_millis(80);
    let delay = names.clone().route(|route| {
        route.fault.delay = Some((late, 100.0));
        // VS-52: the router's time begins after it.
        route.timeout = Some(Duration::from_millis(40));
    });
    let (_, records) = ask(&delay, GET).await;
    assert_eq!(brief(&records[0]), (200, vec![Flag::DI], "via_upstream", 0, 2));
    assert!(records[0].duration >= late);

    let both = delay.route(|route| route.fault.abort = Some((Abort::Grpc(14), 100.0)));
    let (response, records) = ask(&both, GET).await;
    assert_eq!(header(&response, "grpc-status"), Some("14"));
    assert_eq!(brief(&records[0]), (200, vec![Flag::DI, Flag::FI], "fault_filter_abort", 0, 0));

    let never = names.route(|route| route.fault.abort = Some((Abort::Http(500), 0.0)));
    assert!(ask(&never, GET).await.0.ends_with("ok"));
}

/// VS-26, VS-27.
#[tokio::test]
async fn rewrites_and_headers() {
    let stub = Stub::answering(
        "HTTP/1.1 200 OK\r\nContent-Length: 0\r\nX-Old: 1\r\nX-Gone: 1\r\n\r\n",
        false,
    )
    .await;
    let mut names = Names::default().allow("a.com", stub.at).route(|route| {
        let (path, authority) = (Some("/new?q".into()), Some("b.com".into()));
        route.rewrite = Some(Rewrite { path, authority });
        route.headers.request.set = pairs(&[("x-a", "route"), ("x-b", "route")]);
        route.headers.request.remove = vec!["x-c".into()];
        route.headers.response.remove = vec!["x-gone".into()];
        route.headers.response.set = pairs(&[("x-old", "2")]);
    });
    let upstream = names.allowed["a.com"].clone();
    let mut destination = names.destination("a.com", upstream);
    let own = Arc::make_mut(&mut destination.headers);
    own.request.set = pairs(&[("x-b", "destination")]);
    own.response.add = pairs(&[("x-old", "3")]);
    names.destinations = vec![destination];
    let request = "GET /p?q HTTP/1.1\r\nHost: a.com\r\nX-B: 0\r\nX-C: 0\r\n\r\n";
    let (response, records) = ask(&names, request).await;
    let seen = stub.seen().pop().expect("a request");
    assert!(seen.starts_with("GET /new?q HTTP/1.1\r\n"), "{seen}");
    for (name, value) in [
        ("host", Some("b.com")),
        ("x-envoy-original-path", Some("/p?q")),
        ("x-a", Some("route")),
        ("x-b", Some("destination")),
        ("x-c", None),
    ] {
        assert_eq!(header(&seen, name), value, "{seen}");
    }
    let old: Vec<_> = response.lines().filter(|l| l.to_lowercase().starts_with("x-old")).collect();
    assert_eq!(old.len(), 2, "{response}");
    assert_eq!(header(&response, "x-gone"), None);
    let http = records[0].http.as_ref().expect("HTTP");
    assert_eq!((http.path.as_str(), http.authority.as_deref()), ("/p?q", Some("b.com")));

    // VS-27: a Host that is set is a rewrite.
    let names = Names::default().allow("a.com", stub.at).route(|route| {
        route.headers.request.set = pairs(&[("Host", "c.com")]);
    });
    ask(&names, GET).await;
    assert_eq!(header(&stub.seen().pop().expect("a request"), "host"), Some("c.com"));
}

/// VS-28: the copy has its body, and nobody waits for it.
#[tokio::test]
async fn mirrors() {
    let stub = counting("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
    let copy = counting("HTTP/1.1 500 Oh\r\nContent-Length: 0\r\n\r\n").await;
    let none = counting("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await;
    let names = Names::default().allow("a.com", stub.at);
    let mirror = |at: SocketAddr, percent| {
        let endpoints = Arc::from([Endpoint { target: at, weight: 1 }]);
        Mirror { destination: names.destination("m", Upstream::Static(endpoints)), percent }
    };
    let mirrors = vec![mirror(copy.at, 100.0), mirror(none.at, 0.0), mirror(silent().await, 100.0)];
    let names = names.clone().route(|route| route.mirrors = mirrors);
    let request = "POST / HTTP/1.1\r\nHost: a.com\r\nContent-Length: 3\r\n\r\nabc";
    let (response, records) = ask(&names, request).await;
    assert!(response.starts_with("HTTP/1.1 200 ") && response.ends_with("ok"));
    assert_eq!(records.len(), 1);
    let copied = async {
        while copy.seen().is_empty() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(PATIENCE, copied).await.expect("in time");
    let seen = copy.seen().pop().expect("a copy");
    assert!(seen.ends_with("\r\n\r\nabc"), "{seen}");
    assert_eq!(header(&seen, "host"), Some("a.com"));
    assert_eq!((none.seen().len(), copy.seen().len()), (0, 1));
}

/// VS-9, VS-24, VS-25, VS-21.
#[tokio::test]
async fn replies() {
    let stub = Stub::saying("ok").await;
    let mut names = Names::default().allow("a.com", stub.at);
    let direct = LocalReply {
        status: 418,
        body: b"tea".to_vec(),
        details: "direct_response",
        headers: HeaderOps { set: pairs(&[("x-a", "1")]), ..HeaderOps::default() },
        ..LocalReply::default()
    };
    let redirect = LocalReply {
        status: 302,
        location: Some("https://b.com/".into()),
        details: "direct_response",
        ..LocalReply::default()
    };
    let no_route = LocalReply {
        status: 404,
        details: "route_not_found",
        flag: Some("NR"),
        ..LocalReply::default()
    };
    for (reply, header_name, value, flags, sent) in [
        (direct, "x-a", "1", vec![], 3),
        (redirect, "location", "https://b.com/", vec![], 0),
        (no_route, "content-length", "0", vec![Flag::NR], 0),
    ] {
        names.reply = Some(reply.clone());
        let (response, records) = ask(&names, GET).await;
        assert_eq!(header(&response, header_name), Some(value), "{response}");
        assert_eq!(brief(&records[0]), (reply.status, flags, reply.details, 0, sent));
    }
    assert_eq!(stub.seen().len(), 0);

    names.reply = None;
    for (cluster, upstream) in [
        (None, names.allowed["a.com"].clone()),
        (Some(ClusterName("outbound|80|v9|a.com".into())), Upstream::NoCluster),
    ] {
        names.destinations = vec![Destination { cluster, ..names.destination("a.com", upstream) }];
        let (_, records) = ask(&names, GET).await;
        assert_eq!(brief(&records[0]), (503, vec![Flag::NC], "cluster_not_found", 0, 0));
        assert_eq!(records[0].upstream_cluster, None);
    }
}

/// VS-29.
#[tokio::test]
async fn cors() {
    let stub = Stub::saying("ok").await;
    let names = Names::default().allow("a.com", stub.at).route(|route| {
        route.cors = Some(Cors {
            origins: vec![TextMatch::Exact("https://x.com".into())],
            methods: vec!["PUT".into()],
            forward_unmatched: true,
            ..Cors::default()
        });
    });
    let preflight = "OPTIONS / HTTP/1.1\r\nHost: a.com\r\nOrigin: https://x.com\r\n\
                     Access-Control-Request-Method: PUT\r\n\r\n";
    let (response, records) = ask(&names, preflight).await;
    assert_eq!(header(&response, "access-control-allow-origin"), Some("https://x.com"));
    assert_eq!(header(&response, "access-control-allow-methods"), Some("PUT"));
    assert_eq!((records[0].response_code, stub.seen().len()), (200, 0));
    let (response, _) =
        ask(&names, "GET / HTTP/1.1\r\nHost: a.com\r\nOrigin: https://x.com\r\n\r\n").await;
    assert_eq!(header(&response, "access-control-allow-origin"), Some("https://x.com"));
    assert!(response.ends_with("ok"));
    let (response, _) =
        ask(&names, "GET / HTTP/1.1\r\nHost: a.com\r\nOrigin: https://y.com\r\n\r\n").await;
    assert_eq!(header(&response, "access-control-allow-origin"), None);
}

/// VS-22: shares of weighted destinations, each named by its own cluster.
#[tokio::test]
async fn weights() {
    let (one, three) = (Stub::saying("1").await, Stub::saying("3").await);
    let mut names = Names::default().allow("a.com", one.at);
    let to = |name: &str, stub: &Stub, weight| {
        let endpoints = Arc::from([Endpoint { target: stub.at, weight: 1 }]);
        Destination { weight, ..names.destination(name, Upstream::Static(endpoints)) }
    };
    names.destinations = vec![to("one", &one, 1), to("three", &three, 3)];
    let mut client = Client::connect(&names).await;
    for _ in 0..400 {
        client.send(GET).await;
        client.response().await;
    }
    let share = one.seen().len();
    assert!((60..140).contains(&share), "{share}");
    assert_eq!((one.connections(), three.connections()), (1, 1));
    let records = client.records().await;
    let named = ClusterName::outbound(80, "one");
    let of_one = records.iter().filter(|record| record.upstream_cluster.as_ref() == Some(&named));
    assert_eq!(of_one.count(), share);
}

/// VS-27, LOG-32: operators in header values, of the request and of the answer.
#[tokio::test]
async fn header_values_with_operators() {
    let stub = Stub::saying("ok").await;
    let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    let names = Names::default().allow("a.com", stub.at).route(|route| {
        route.headers.request.set = vec![
            pair("x-from", "%DOWNSTREAM_REMOTE_ADDRESS%"),
            pair("x-was", "%REQ(X-A?X-B)%"),
            pair("x-share", "100%%"),
        ];
        route.headers.response.add =
            vec![pair("x-asked", "%REQ(x-a)%"), pair("x-code", "%RESPONSE_CODE%")];
    });
    let (response, records) = ask(&names, "GET / HTTP/1.1\r\nHost: a.com\r\nX-A: 7\r\n\r\n").await;
    let seen = stub.seen()[0].to_ascii_lowercase();
    let from = format!("x-from: {}\r\n", records[0].downstream_remote_address);
    for wanted in [from.as_str(), "x-was: 7\r\n", "x-share: 100%\r\n"] {
        assert!(seen.contains(wanted), "{wanted} in {seen}");
    }
    let response = response.to_ascii_lowercase();
    assert!(
        response.contains("x-asked: 7\r\n") && response.contains("x-code: 200\r\n"),
        "{response}"
    );
}
