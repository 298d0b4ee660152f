//! Requests inside TLS, behind a PROXY header, and in the upstream's own HTTP version.

use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use hyper_util::rt::TokioExecutor;

use super::*;
use crate::act::tls::testing::{Authority, Leaf, REVOKED, Server, serve};
use crate::decide::route::RetryOn;
use crate::decide::traffic::{Identity, Origination, ProxyProtocol, Trust, Verify};
use crate::policy::{Caller, Snapshot, Sources, Store, load};

const GET: &str = "GET /p HTTP/1.1\r\nHost: a.com\r\n\r\n";

/// Answers HTTP/1.1 requests with what was asked.
async fn http1_server(authority: &Authority, names: &[&str]) -> Server {
    answering(authority.leaf(names, |_| {}), None).await
}

/// The same with this certificate, for clients with one of `clients`.
async fn answering(leaf: Leaf, clients: Option<&Authority>) -> Server {
    serve(leaf, clients, |mut stream| async move {
        let mut head = Vec::new();
        while let Ok(byte) = stream.read_u8().await {
            head.push(byte);
            if head.ends_with(b"\r\n\r\n") {
                let line = head.split(|b| *b == b'\r').next().expect("a line").to_vec();
                let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", line.len());
                stream.write_all(&[answer.as_bytes(), &line].concat()).await.expect("writes");
                stream.flush().await.expect("flushes");
                head.clear();
            }
        }
    })
    .await
}

fn names(at: SocketAddr, origination: Origination) -> Names {
    Names::default().allow("a.com", at).traffic(|traffic| {
        traffic.tls = Some(Arc::new(origination));
        traffic.protocol = UpstreamProtocol::Http1;
    })
}

/// TLS-1, TLS-3, TLS-4, TLS-5: plaintext in, TLS out, one handshake for several requests.
#[tokio::test]
async fn simple() {
    let authority = Authority::new();
    let server = http1_server(&authority, &["a.com"]).await;
    let mut client = Client::connect(&names(server.at, authority.trusted())).await;
    for _ in 0..3 {
        client.send(GET).await;
        assert!(client.response().await.ends_with("GET /p HTTP/1.1"));
    }
    let seen = server.seen.lock().expect("no panic").clone();
    assert_eq!(seen.len(), 1);
    assert_eq!(
        (seen[0].sni.as_deref(), seen[0].alpn.as_slice()),
        (Some("a.com"), &["http/1.1".to_owned()][..])
    );
    let records = client.records().await;
    assert_eq!(brief(&records[0]), (200, vec![], "via_upstream", 0, 15));
    assert_eq!(
        (records[0].upstream_host, &records[0].requested_server_name),
        (Some(server.at), &None)
    );
}

/// TLS-5: a rewrite does not change whom the handshake names.
#[tokio::test]
async fn original_host() {
    let authority = Authority::new();
    let server = http1_server(&authority, &["a.com"]).await;
    let names = names(server.at, authority.trusted()).route(|route| {
        let authority = Some("b.com".into());
        route.rewrite = Some(crate::decide::route::Rewrite { path: None, authority });
    });
    let mut client = Client::connect(&names).await;
    client.send(GET).await;
    assert!(client.response().await.starts_with("HTTP/1.1 200 "));
    assert_eq!(server.seen.lock().expect("no panic")[0].sni.as_deref(), Some("a.com"));
}

/// TLS-10, LOG-49, T-44: 503 with the reason, and not one byte of the request.
#[tokio::test]
async fn refused() {
    let (authority, stranger) = (Authority::new(), Authority::new());
    let server = http1_server(&stranger, &["a.com"]).await;
    for attempts in [0, 2] {
        let names = names(server.at, authority.trusted()).route(|route| {
            route.retries.attempts = attempts;
            route.retries.on = vec![RetryOn::ConnectFailure];
        });
        let mut client = Client::connect(&names).await;
        client.send(GET).await;
        let response = client.response().await;
        assert!(
            response.contains(
                "reset reason: remote connection failure, transport failure reason: TLS_error:"
            ),
            "{response}"
        );
        let record = client.records().await.remove(0);
        let expected = if attempts == 0 { vec![Flag::UF] } else { vec![Flag::URX, Flag::UF] };
        assert_eq!((record.response_code, &record.flags), (503, &expected));
        let details = record.response_code_details.expect("details");
        assert!(
            details.starts_with(
                "upstream_reset_before_response_started{remote_connection_failure|TLS_error:"
            ),
            "{details}"
        );
        assert!(details.contains("CERTIFICATE_VERIFY_FAILED"), "{details}");
        assert!(record.upstream_transport_failure_reason.expect("why").starts_with("TLS_error:"));
        assert_eq!(record.upstream_host, Some(server.at));
    }
    assert_eq!(server.seen.lock().expect("no panic").len(), 0);
}

/// GAP-18: no TLS can be made, so nothing is sent, in plaintext least of all.
#[tokio::test]
async fn impossible() {
    let stub = Stub::saying("ok").await;
    let rule = Origination { verify: Verify::Impossible, ..Origination::default() };
    let mut client = Client::connect(&names(stub.at, rule)).await;
    client.send(GET).await;
    assert!(client.response().await.starts_with("HTTP/1.1 503 "));
    assert_eq!(client.records().await[0].flags, [Flag::UF]);
    assert_eq!(stub.connections(), 0);
}

/// A policy that holds nothing but the secret `cred` of this namespace.
fn secret(namespace: &str, parts: &[(&str, &str)]) -> Snapshot {
    let data: String = parts.iter().map(|(key, pem)| format!("  {key}: {pem:?}\n")).collect();
    let text = format!(
        "apiVersion: v1\nkind: Secret\nmetadata: {{name: cred, namespace: {namespace}}}\n\
         stringData:\n{data}"
    );
    let sources = Sources { texts: vec![("p.yaml".into(), text)], ..Sources::default() };
    load(&sources, &Caller::new("default")).expect("a policy").snapshot
}

/// TLS-9, TLS-10, T-44: a credential is what the policy in force has of it, for the workload's own
/// namespace. One that changed or went is served by no kept connection either.
#[tokio::test]
async fn credentials() {
    let authority = Authority::new();
    let ours = authority.leaf(&[], |params| {
        params.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ClientAuth];
    });
    let leaf = authority.leaf(&["a.com"], |params| {
        params.serial_number = Some(rcgen::SerialNumber::from(REVOKED));
    });
    let server = answering(leaf, Some(&authority)).await;
    let (ca, crl) = (authority.pem(), authority.crl());
    let good = [("tls.crt", &*ours.certificate_pem), ("tls.key", &ours.key_pem), ("ca.crt", &ca)];
    let revoking = [&good[..], &[("ca.crl", &crl)]].concat();

    let store = Arc::new(Store::new(secret("default", &good)));
    let mut names = names(
        server.at,
        Origination {
            trust: Trust::Secret("cred".into()),
            identity: Some(Identity::Secret("cred".into())),
            ..Origination::default()
        },
    );
    names.carrier.outbound = Arc::new(Outbound::new(Arc::clone(&store) as _));
    let mut client = Client::connect(&names).await;
    let handshakes = || server.seen.lock().expect("no panic").clone();
    for (snapshot, reason) in [
        (secret("default", &good), None),
        (secret("default", &good), None),
        (secret("default", &revoking), Some("certificate_is_revoked")),
        (secret("other", &good), Some("there_is_no_credential_\"cred\"_here")),
        (secret("default", &good[..2]), Some("holds_no_usable_CA_certificate")),
        (secret("default", &good), None),
    ] {
        store.replace(snapshot);
        client.send(GET).await;
        let answer = client.response().await;
        assert_eq!(answer.starts_with("HTTP/1.1 200 "), reason.is_none(), "{answer}");
        if let Some(reason) = reason {
            assert!(answer.starts_with("HTTP/1.1 503 ") && answer.contains(reason), "{answer}");
        }
    }
    assert_eq!(handshakes().len(), 1, "the same credential again is the same connection");
    assert!(handshakes()[0].client_certificate);
}

/// T-46: a connection made for one Host is not used for another.
#[tokio::test]
async fn pooled_by_host() {
    let authority = Authority::new();
    let server = http1_server(&authority, &["a.com", "b.com"]).await;
    let mut names = names(server.at, authority.trusted()).allow("b.com", server.at);
    // The very same destination for both.
    names.destinations = vec![names.destination("*", names.allowed["a.com"].clone())];
    let mut client = Client::connect(&names).await;
    for host in ["a.com", "b.com", "a.com"] {
        client.send(format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n")).await;
        assert!(client.response().await.starts_with("HTTP/1.1 200 "));
    }
    let seen = server.seen.lock().expect("no panic").clone();
    let named: Vec<_> = seen.iter().map(|one| one.sni.as_deref().unwrap_or("-")).collect();
    assert_eq!(named, ["a.com", "b.com"]);
}

/// TLS-11, SE-15: an HTTP/1.1 client's request in HTTP/2, with ALPN `h2`; the trailers come along.
#[tokio::test]
async fn http2_upstream() {
    let authority = Authority::new();
    let server = serve(authority.leaf(&["a.com"], |_| {}), None, |stream| async move {
        let service = service_fn(|request: http::Request<hyper::body::Incoming>| async move {
            let (parts, body) = request.into_parts();
            let size = body.collect().await?.to_bytes().len();
            let asked = format!("{} {} {:?} {size}", parts.method, parts.uri, parts.headers);
            let mut trailers = http::HeaderMap::new();
            trailers.insert("grpc-status", http::HeaderValue::from_static("0"));
            // As gRPC has it: no length ahead, or there would be no room for trailers in HTTP/1.1.
            let frames = [Frame::data(Bytes::from(asked)), Frame::trailers(trailers)];
            let body = StreamBody::new(futures_util::stream::iter(frames.map(hyper::Result::Ok)));
            let response = http::Response::builder().header("trailer", "grpc-status").body(body);
            hyper::Result::Ok(response.expect("a response"))
        });
        let _ = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
            .serve_connection(TokioIo::new(stream), service)
            .await;
    })
    .await;
    let names = names(server.at, authority.trusted())
        .traffic(|traffic| traffic.protocol = UpstreamProtocol::Http2);
    let mut client = Client::connect(&names).await;
    let request = "POST /p HTTP/1.1\r\nHost: a.com\r\nTE: trailers\r\nConnection: TE, keep-alive, x-hop\r\n\
                   X-Hop: 1\r\nKeep-Alive: 5\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n";
    client.send(request).await;
    let mut rest = String::new();
    while !rest.contains("\r\n0\r\n") || !rest.ends_with("\r\n\r\n") {
        let byte = timeout(PATIENCE, client.stream.read_u8()).await.expect("in time");
        rest.push(char::from(byte.expect("a byte")));
    }
    assert!(rest.starts_with("HTTP/1.1 200 OK\r\n"), "{rest}");
    assert!(
        rest.contains("POST https://a.com/p {\"te\": \"trailers\", \"x-request-id\""),
        "{rest}"
    );
    assert!(rest.contains(" 3\r\n") && rest.contains("grpc-status: 0"), "{rest}");
    assert!(!rest.contains("x-hop") && !rest.contains("keep-alive"), "{rest}");
    assert_eq!(server.seen.lock().expect("no panic")[0].alpn, ["h2"]);
    let records = client.records().await;
    assert_eq!(records[0].http.as_ref().expect("HTTP").protocol, "HTTP/1.1");
}

/// DR-16: the header once per connection, ahead of everything, with the workload's two ends.
#[tokio::test]
async fn proxy_protocol() {
    let (at, upstream) = upstream(|mut stream| async move {
        let mut all = Vec::new();
        while !all.ends_with(b"\r\n\r\n") {
            all.push(stream.read_u8().await.expect("a byte"));
        }
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await.expect("writes");
        String::from_utf8(all).expect("text")
    })
    .await;
    let names = Names::default()
        .allow("a.com", at)
        .traffic(|traffic| traffic.proxy_protocol = Some(ProxyProtocol::V1));
    let mut client = Client::connect(&names).await;
    client.send(GET).await;
    client.response().await;
    let got = upstream.await.expect("no panic");
    let port = client.local.port();
    let expected = format!("PROXY TCP4 127.0.0.1 192.0.2.1 {port} 80\r\nGET /p HTTP/1.1\r\n");
    assert!(got.starts_with(&expected), "{got}");
}
