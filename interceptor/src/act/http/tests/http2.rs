//! HTTP/2 by prior knowledge (LIS-19, T-36).

use http::{HeaderMap, HeaderValue, Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http2::{self as client, SendRequest};
use hyper::server::conn::http2 as server;
use hyper_util::rt::TokioExecutor;

use super::*;
use crate::act::http::http2::PREFACE;

/// An upstream that tells what it was asked, with a trailer; never answers `/hang`.
async fn echo() -> (SocketAddr, Arc<Mutex<usize>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("listens");
    let at = listener.local_addr().expect("an address");
    let connections = Arc::new(Mutex::new(0));
    let counter = Arc::clone(&connections);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            *counter.lock().expect("no panic") += 1;
            let service = service_fn(|request: Request<Incoming>| async move {
                if request.uri().path() == "/hang" {
                    std::future::pending::<()>().await;
                }
                let asked =
                    format!("{} {} {:?}", request.method(), request.uri(), request.headers());
                let body = request.into_body().collect().await?.to_bytes().len();
                let trailers = HeaderMap::from_iter([(
                    http::HeaderName::from_static("grpc-status"),
                    HeaderValue::from_static("0"),
                )]);
                let body = Full::new(Bytes::from(format!("{asked} {body}")))
                    .with_trailers(async { Some(Ok(trailers)) });
                hyper::Result::Ok(Response::new(body))
            });
            tokio::spawn(
                server::Builder::new(TokioExecutor::new())
                    .serve_connection(TokioIo::new(stream), service),
            );
        }
    });
    (at, connections)
}

/// A served connection whose preface was sniffed.
pub(super) async fn connect(names: &Names) -> (TcpStream, Captured, JoinHandle<()>) {
    let (log, captured) = AccessLog::memory();
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("listens");
    let at = listener.local_addr().expect("an address");
    let (stream, accepted) = tokio::join!(TcpStream::connect(at), listener.accept());
    let (mut accepted, src) = accepted.expect("accepts");
    let names = names.clone();
    let serving = tokio::spawn(async move {
        let mut sniffed = vec![0; PREFACE.len()];
        accepted.read_exact(&mut sniffed).await.expect("a preface");
        let origin = Origin {
            id: 1,
            dst: OriginalDst::new(DIALLED.parse().expect("an address")),
            src,
            workload: Arc::new(Workload::default()),
            arrival: None,
            accepted: Instant::now(),
            accepted_wall: clock::wall(),
        };
        serve_in(Prefixed::new(sniffed.into(), accepted), origin, log, names).await;
    });
    (stream.expect("connects"), captured, serving)
}

async fn speak(stream: TcpStream) -> SendRequest<Full<Bytes>> {
    let (sender, driver) = client::Builder::new(TokioExecutor::new())
        .handshake(TokioIo::new(stream))
        .await
        .expect("speaks HTTP/2");
    tokio::spawn(driver);
    sender
}

fn request(uri: &str, headers: &[(&'static str, &'static str)]) -> Request<Full<Bytes>> {
    let mut request = Request::post(uri).body(Full::from("four")).expect("a request");
    for (name, value) in headers {
        request.headers_mut().append(*name, HeaderValue::from_static(value));
    }
    request
}

pub(super) async fn ended(captured: &Captured, records: usize) -> Vec<Record> {
    let enough = async {
        while captured.records().len() < records {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(PATIENCE, enough).await.expect("records in time");
    captured.records()
}

/// Streams are judged one by one; what is allowed arrives as sent, trailers included, over one
/// upstream connection.
#[tokio::test]
async fn streams() {
    let (at, connections) = echo().await;
    let (stream, captured, serving) = connect(&Names::default().strict().allow("a.com", at)).await;
    let mut sender = speak(stream).await;
    let headers = [("te", "trailers"), ("x-request-id", "1"), ("proxy-authorization", "s")];
    for _ in 0..2 {
        let response = sender.send_request(request("http://a.com/p?q", &headers)).await;
        let body = response.expect("a response").into_body().collect().await.expect("a body");
        let grpc = body.trailers().and_then(|t| t.get("grpc-status")).cloned();
        assert_eq!(grpc, Some(HeaderValue::from_static("0")));
        assert_eq!(
            String::from_utf8_lossy(&body.to_bytes()),
            "POST http://a.com/p?q {\"te\": \"trailers\", \"x-request-id\": \"1\", \
             \"content-length\": \"4\"} 4"
        );
        let refused = sender.send_request(request("http://no.com/", &[])).await.expect("502");
        assert_eq!(refused.status(), 502);
    }
    assert_eq!(*connections.lock().expect("no panic"), 1);
    drop(sender);
    timeout(PATIENCE, serving).await.expect("ends").expect("no panic");
    let records = captured.records();
    assert_eq!(records.iter().map(|r| r.response_code).collect::<Vec<_>>(), [200, 502, 200, 502]);
    let http = records[0].http.as_ref().expect("an HTTP record");
    assert_eq!((http.protocol, http.authority.as_deref()), ("HTTP/2", Some("a.com")));
    assert_eq!((http.path.as_str(), records[0].bytes_received), ("/p?q", 4));
    assert_eq!(records[0].response_code_details.as_deref(), Some("via_upstream"));
}

/// T-36: `:authority` and `host` that differ, or two hosts, go nowhere.
#[tokio::test]
async fn two_names() {
    let (at, connections) = echo().await;
    let (stream, captured, _serving) = connect(&Names::default().allow("a.com", at)).await;
    let mut sender = speak(stream).await;
    for headers in [&[("host", "b.com")][..], &[("host", "a.com"), ("host", "a.com")]] {
        let response = sender.send_request(request("http://a.com/", headers)).await;
        assert_eq!(response.expect("a response").status(), 400, "{headers:?}");
    }
    assert_eq!(*connections.lock().expect("no panic"), 0);
    assert_eq!(ended(&captured, 2).await[1].reason, Reason::BadHost);
}

/// LOG-53, T-55: a reset stream, and a connection dropped from above, leave their records.
#[tokio::test]
async fn given_up() {
    let (at, _) = echo().await;
    let (stream, captured, serving) = connect(&Names::default().allow("a.com", at)).await;
    let mut sender = speak(stream).await;
    let hanging = sender.send_request(request("http://a.com/hang", &[]));
    let _ = timeout(Duration::from_millis(200), hanging).await;
    let records = ended(&captured, 1).await;
    assert_eq!(brief(&records[0]), (0, vec![Flag::DC], "downstream_remote_disconnect", 4, 0));
    let hanging = tokio::spawn(sender.send_request(request("http://a.com/hang", &[])));
    tokio::time::sleep(Duration::from_millis(200)).await;
    serving.abort();
    assert_eq!(ended(&captured, 2).await[1].flags, [Flag::DC]);
    assert!(hanging.await.expect("no panic").is_err());
}

/// T-37, T-48: a preface alone does not hold a connection; T-55: nonsense behind it is recorded.
#[tokio::test(start_paused = true)]
async fn only_a_preface() {
    let whole = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    let settings = b"\0\0\0\x04\0\0\0\0\0";
    for (bytes, records) in [
        (&whole[..14], 0),
        (&whole[..], 0),
        (&[&whole[..], settings].concat(), 0),
        (&[&whole[..], b"GET / HTTP/1.1\r\nHost: a.com\r\n\r\n"].concat(), 1),
    ] {
        let (mut stream, captured, serving) = connect(&Names::default()).await;
        stream.write_all(bytes).await.expect("writes");
        let started = Instant::now();
        serving.await.expect("no panic");
        assert!(started.elapsed() <= wire::HEAD_DEADLINE * 2 + Duration::from_secs(1));
        let got = captured.records();
        assert_eq!(got.len(), records, "{}: {got:?}", bytes.escape_ascii());
        for record in got {
            assert_eq!(brief(&record), (0, vec![Flag::DPE], "http2.protocol_error", 0, 0));
        }
    }
}

/// TLS-12: an HTTP-port entry is spoken to in HTTP/1.1, whatever the client speaks.
#[tokio::test]
async fn translated() {
    let stub = Stub::answering("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", false).await;
    let names = Names::default()
        .allow("a.com", stub.at)
        .traffic(|traffic| traffic.protocol = UpstreamProtocol::Http1);
    let (stream, captured, serving) = connect(&names).await;
    let mut sender = speak(stream).await;
    let mut request = Request::get("http://a.com/p").body(Full::default()).expect("a request");
    for crumb in ["a=1", "b=2"] {
        request.headers_mut().append("cookie", HeaderValue::from_static(crumb));
    }
    let response = sender.send_request(request).await.expect("an answer");
    assert_eq!(response.into_body().collect().await.expect("a body").to_bytes(), "ok");
    let seen = stub.seen().pop().expect("a request");
    assert!(seen.starts_with("GET /p HTTP/1.1\r\n"), "{seen}");
    assert_eq!((header(&seen, "host"), header(&seen, "cookie")), (Some("a.com"), Some("a=1; b=2")));
    drop(sender);
    serving.await.expect("no panic");
    assert_eq!(captured.records()[0].http.as_ref().expect("HTTP").protocol, "HTTP/2");
}

/// TLS-12: a stream waits for no other stream's answer, though HTTP/1.1 answers one at a time.
#[tokio::test]
async fn translated_at_the_same_time() {
    // Says that much is to come, and then nothing.
    let stub = Stub::answering("HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nsome", false).await;
    let names = Names::default()
        .allow("a.com", stub.at)
        .traffic(|traffic| traffic.protocol = UpstreamProtocol::Http1);
    let (stream, _captured, _serving) = connect(&names).await;
    let mut sender = speak(stream).await;
    let mut answers = Vec::new();
    for _ in 0..3 {
        let request = Request::get("http://a.com/").body(Full::default()).expect("a request");
        let answer = timeout(PATIENCE, sender.send_request(request)).await.expect("in time");
        answers.push(answer.expect("an answer"));
    }
    assert_eq!(stub.connections(), 3);
}

/// RFC 9110 9.3.2: HEAD has no body, a refusal's neither; the connection lives on.
#[tokio::test]
async fn head_refused() {
    let (stream, captured, _serving) = connect(&Names::default().strict()).await;
    let mut sender = speak(stream).await;
    for _ in 0..2 {
        let request = Request::head("http://no.com/").body(Full::default()).expect("a request");
        let answer = sender.send_request(request).await.expect("an answer");
        assert_eq!(answer.status(), 502);
        let length =
            answer.headers().get("content-length").and_then(|l| l.to_str().ok()?.parse().ok());
        assert!(length.is_some_and(|length: usize| length > 20), "{answer:?}");
        let body = answer.into_body().collect().await.expect("an end").to_bytes();
        assert_eq!(body, "");
    }
    assert_eq!(brief(&ended(&captured, 2).await[1]), (502, vec![], "direct_response", 0, 0));
}
