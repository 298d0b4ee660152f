//! Limits, outliers and hashes as requests meet them (DR-9 to DR-13).

use super::*;
use crate::decide::route::RetryOn;
use crate::decide::traffic::{HashKey, LoadBalancer, OutlierDetection};

const GET: &str = "GET / HTTP/1.1\r\nHost: a.com\r\n\r\n";

/// An upstream that answers each request when it is told to.
async fn patient() -> (SocketAddr, Arc<tokio::sync::Semaphore>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("listens");
    let at = listener.local_addr().expect("an address");
    let turns = Arc::new(tokio::sync::Semaphore::new(0));
    let mine = Arc::clone(&turns);
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mine = Arc::clone(&mine);
            tokio::spawn(async move {
                while read_head(&mut stream).await.is_some() {
                    mine.acquire().await.expect("open").forget();
                    let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
                    stream.write_all(answer).await.expect("writes");
                }
            });
        }
    });
    (at, turns)
}

/// DR-10, LOG-50: as many requests as the limit allows, 503 for the next, and room again after.
#[tokio::test]
async fn overflow() {
    let (at, turns) = patient().await;
    for queue in [false, true] {
        let names = Names::default().allow("a.com", at).traffic(|traffic| {
            if queue {
                // One has the only connection, one waits for it.
                traffic.limits.max_connections = Some(1);
                traffic.limits.max_pending_requests = Some(1);
            } else {
                traffic.limits.max_requests = Some(2);
            }
        });
        let (mut first, mut second) =
            (Client::connect(&names).await, Client::connect(&names).await);
        first.send(GET).await;
        tokio::time::sleep(Duration::from_millis(50)).await;
        second.send(GET).await;
        tokio::time::sleep(Duration::from_millis(50)).await;
        let mut third = Client::connect(&names).await;
        third.send(GET).await;
        let response = third.response().await;
        assert!(response.starts_with("HTTP/1.1 503 "), "{response}");
        assert_eq!(header(&response, "x-envoy-overloaded"), Some("true"));
        turns.add_permits(2);
        assert!(first.response().await.ends_with("ok"));
        assert!(second.response().await.ends_with("ok"));
        turns.add_permits(1);
        third.send(GET).await;
        assert!(third.response().await.ends_with("ok"));
        let records = third.records().await;
        let details = "upstream_reset_before_response_started{overflow}";
        assert_eq!(brief(&records[0]), (503, vec![Flag::UO], details, 0, 81));
        assert_eq!(records[0].upstream_host, None);
    }
}

/// DR-9: maxRequestsPerConnection.
#[tokio::test]
async fn requests_per_connection() {
    for (limit, expected) in [(None, 1), (Some(1), 4), (Some(2), 2)] {
        let stub = Stub::saying("ok").await;
        let names = Names::default()
            .allow("a.com", stub.at)
            .traffic(|traffic| traffic.limits.max_requests_per_connection = limit);
        let mut client = Client::connect(&names).await;
        for _ in 0..4 {
            client.send(GET).await;
            client.response().await;
        }
        assert_eq!(stub.connections(), expected, "{limit:?}");
    }
}

/// DR-9: maxRetries; the answer that would have been retried is the client's.
#[tokio::test]
async fn retry_limit() {
    let stub = Stub::answering("HTTP/1.1 500 Oh\r\nContent-Length: 0\r\n\r\n", false).await;
    let names = Names::default()
        .allow("a.com", stub.at)
        .traffic(|traffic| traffic.limits.max_retries = Some(0))
        .route(|route| {
            route.retries.attempts = 2;
            route.retries.on = vec![RetryOn::ServerError];
        });
    let mut client = Client::connect(&names).await;
    client.send(GET).await;
    assert!(client.response().await.starts_with("HTTP/1.1 500 "));
    assert_eq!(client.records().await[0].flags, [Flag::UO]);
    assert_eq!(stub.seen().len(), 1);
}

/// DR-12: the endpoint that fails is left alone; when all do, UH.
#[tokio::test]
async fn outliers() {
    let bad = Stub::answering("HTTP/1.1 500 Oh\r\nContent-Length: 0\r\n\r\n", false).await;
    let good = Stub::saying("ok").await;
    let names = Names::default().allow_all("a.com", &[bad.at, good.at]).traffic(|traffic| {
        traffic.outlier = Some(OutlierDetection {
            consecutive_5xx: 2,
            consecutive_gateway_errors: 0,
            consecutive_local_origin_failures: None,
            interval: Duration::from_secs(10),
            base_ejection_time: Duration::from_secs(30),
            max_ejection_percent: 100,
            min_health_percent: 0,
        });
    });
    let mut client = Client::connect(&names).await;
    for _ in 0..60 {
        client.send(GET).await;
        client.response().await;
    }
    assert_eq!((bad.seen().len(), good.seen().len()), (2, 58));
    // Another client's requests know it too.
    let mut other = Client::connect(&names).await;
    other.send(GET).await;
    assert!(other.response().await.ends_with("ok"));

    let names = names.allow("a.com", bad.at);
    let mut client = Client::connect(&names).await;
    client.send(GET).await;
    assert!(client.response().await.ends_with("no healthy upstream"));
    assert_eq!(brief(&client.records().await[0]).1, [Flag::UH]);
}

/// DR-13: one key, one endpoint; a cookie is made where there is none, and leads back.
#[tokio::test]
async fn hashed() {
    let stubs = [Stub::saying("0").await, Stub::saying("1").await, Stub::saying("2").await];
    let addresses = [stubs[0].at, stubs[1].at, stubs[2].at];
    let by = |key: HashKey| {
        let names = Names::default().allow_all("a.com", &addresses);
        names.traffic(|traffic| traffic.load_balancer = LoadBalancer::Hash(key))
    };
    let names = by(HashKey::Header("x-user".into()));
    let mut client = Client::connect(&names).await;
    let mut places = std::collections::HashSet::new();
    for user in 0..12 {
        let request = format!("GET / HTTP/1.1\r\nHost: a.com\r\nX-User: {user}\r\n\r\n");
        let mut answers = std::collections::HashSet::new();
        for _ in 0..4 {
            client.send(&request).await;
            let response = client.response().await;
            answers.insert(response.chars().last());
        }
        assert_eq!(answers.len(), 1, "{user}");
        places.extend(answers);
    }
    assert!(places.len() > 1);

    let cookie = HashKey::Cookie { name: "c".into(), path: None, ttl: Some(Duration::ZERO) };
    let names = by(cookie);
    let mut client = Client::connect(&names).await;
    client.send(GET).await;
    let response = client.response().await;
    let place = response.chars().last();
    let made = header(&response, "set-cookie").expect("a cookie");
    let pair = made.split(';').next().expect("a pair").replace('"', "");
    for _ in 0..5 {
        client.send(format!("GET / HTTP/1.1\r\nHost: a.com\r\nCookie: {pair}\r\n\r\n")).await;
        let response = client.response().await;
        assert_eq!(response.chars().last(), place);
        assert_eq!(header(&response, "set-cookie"), None);
    }
}

/// SE-4, LOG-3: a request to a unix socket, whose path the log prints in place of an address.
#[tokio::test]
async fn unix_socket() {
    let stub = Stub::saying("ok").await;
    let dir = tempfile::tempdir().expect("a directory");
    let path: Arc<std::path::Path> = dir.path().join("s").into();
    let listener = tokio::net::UnixListener::bind(&path).expect("listens");
    let at = stub.at;
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut behind = TcpStream::connect(at).await.expect("connects");
            let _ = tokio::io::copy_bidirectional(&mut stream, &mut behind).await;
        }
    });
    let mut names = Names::default();
    let sockets = [Endpoint { target: Arc::clone(&path), weight: 1 }];
    names.allowed.insert("a.com", Upstream::Unix(Arc::from(sockets)));
    let mut client = Client::connect(&names).await;
    for _ in 0..2 {
        client.send(GET).await;
        assert!(client.response().await.ends_with("ok"));
    }
    assert_eq!(stub.connections(), 1, "kept for the second request");
    for record in client.records().await {
        assert_eq!((record.upstream_host, record.upstream_local_address), (None, None));
        let line = crate::account::Format::default().line(&record);
        assert!(line.contains(&format!(" \"{}\" ", path.display())), "{line}");
    }
}
