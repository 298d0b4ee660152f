//! What custom formats print of real exchanges, operator by operator (LOG-32), and what nobody asks
//! for is not collected.

use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::{Value, json};
use tempfile::TempDir;

use super::*;
use crate::account::{Filter, Format, LogSettings, LogTarget, More};
use crate::act::tls::testing::{Authority, Server, serve};
use crate::decide::route::RetryOn;
use crate::decide::traffic::Origination;

/// A log in a file.
struct Lines {
    dir: TempDir,
    log: AccessLog,
}

impl Lines {
    /// One JSON object a line, of these operators by their names; only of what `filter` admits.
    fn new(operators: &[&str], filter: Option<&str>) -> Self {
        let labels =
            operators.iter().map(|name| ((*name).to_owned(), format!("%{name}%").into())).collect();
        let dir = tempfile::tempdir().expect("a directory");
        let log = AccessLog::open(&[LogSettings {
            target: LogTarget::File(dir.path().join("log")),
            format: Arc::new(Format::json(&labels).expect("parses")),
            filter: filter.map(|text| Arc::new(Filter::parse(text).expect("parses"))),
        }])
        .expect("opens");
        Self { dir, log }
    }

    async fn read(&self) -> Vec<Value> {
        self.log.flush().await;
        let text = std::fs::read_to_string(self.dir.path().join("log")).expect("reads");
        text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
    }
}

/// Answers the first request with 503; the others slowly, with a trailer.
async fn unsteady(authority: &Authority) -> Server {
    let asked = Arc::new(AtomicUsize::new(0));
    let leaf = authority.leaf(&["a.com"], |params| {
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(rcgen::DnType::OrganizationName, "Test");
        params.distinguished_name.push(rcgen::DnType::CommonName, "a.com");
    });
    serve(leaf, None, move |mut stream| {
        let asked = Arc::clone(&asked);
        async move {
            let mut got = Vec::new();
            while !got.ends_with(b"hello") {
                let Ok(byte) = stream.read_u8().await else { return };
                got.push(byte);
            }
            let answer: &[&str] = match asked.fetch_add(1, Ordering::Relaxed) {
                0 => &["HTTP/1.1 503 No\r\nContent-Length: 0\r\n\r\n"],
                _ => &[
                    "",
                    "HTTP/1.1 200 OK\r\nX-Served: me\r\nX-Served: too\r\nTrailer: X-Sum\r\n\
                     Transfer-Encoding: chunked\r\n\r\n5\r\nworld\r\n",
                    "0\r\nX-Sum: 7\r\n\r\n",
                ],
            };
            for (n, part) in answer.iter().enumerate() {
                if n > 0 {
                    tokio::time::sleep(STEP).await;
                }
                stream.write_all(part.as_bytes()).await.expect("writes");
                stream.flush().await.expect("flushes");
            }
            let _ = stream.read_u8().await;
        }
    })
    .await
}

/// How long client and server take for each of their steps.
const STEP: Duration = Duration::from_millis(150);

fn originated(at: SocketAddr, origination: Origination) -> Names {
    Names::default()
        .allow("a.com", at)
        .traffic(|traffic| {
            traffic.tls = Some(Arc::new(origination));
            traffic.protocol = UpstreamProtocol::Http1;
        })
        .route(|route| {
            route.retries.attempts = 2;
            route.retries.on = vec![RetryOn::ServerError];
        })
}

/// Sends a request in two steps and reads the answer to its end.
async fn post(client: &mut Client) {
    client
        .send(
            "POST /p?a=1&b=2%203&a=9 HTTP/1.1\r\nHost: a.com\r\nX-Team: blue\r\nX-Team: red\r\n\
             Referer: here\r\nContent-Length: 5\r\n\r\nhe",
        )
        .await;
    tokio::time::sleep(STEP).await;
    client.send("llo").await;
    let mut answer = Vec::new();
    while !answer.ends_with(b"0\r\n\r\n") && !answer.ends_with(b"X-Sum: 7\r\n\r\n") {
        let byte = timeout(PATIENCE, client.stream.read_u8()).await.expect("in time");
        answer.push(byte.expect("a byte"));
    }
    assert!(answer.starts_with(b"HTTP/1.1 200 OK\r\n"));
}

/// LOG-32: a request over originated TLS, the second attempt of which is answered.
#[tokio::test]
async fn every_operator_of_a_request() {
    let exact = [
        ("REQ(X-TEAM)", json!("blue,red")),
        ("REQ(X-NONE?REFERER)", json!("here")),
        ("REQ(:METHOD)", json!("POST")),
        ("RESP(X-SERVED)", json!("me,too")),
        ("RESP(:STATUS)", json!("200")),
        ("RESP(X-NONE)", Value::Null),
        ("TRAILER(X-SUM)", json!("7")),
        ("QUERY_PARAM(b)", json!("2%203")),
        ("QUERY_PARAM(a)", json!("1")),
        ("QUERY_PARAM(c)", Value::Null),
        ("PROTOCOL", json!("HTTP/1.1")),
        ("UPSTREAM_PROTOCOL", json!("HTTP/1.1")),
        ("UPSTREAM_REQUEST_ATTEMPT_COUNT", json!(2)),
        ("CONNECTION_ID", json!(1)),
        ("UPSTREAM_TLS_VERSION", json!("TLSv1.3")),
        ("UPSTREAM_PEER_SUBJECT", json!("CN=a.com,O=Test")),
        ("UPSTREAM_PEER_DNS_SAN", json!("a.com")),
        ("UPSTREAM_PEER_URI_SAN", Value::Null),
        ("ACCESS_LOG_TYPE", json!("DownstreamEnd")),
        ("RESPONSE_FLAGS", Value::Null),
        ("RESPONSE_CODE", json!(200)),
        ("BYTES_RECEIVED", json!(5)),
        ("BYTES_SENT", json!(5)),
    ];
    let times = [
        "REQUEST_DURATION",
        "REQUEST_TX_DURATION",
        "RESPONSE_DURATION",
        "RESPONSE_TX_DURATION",
        "DURATION",
        "COMMON_DURATION(DS_RX_BEG:US_TX_BEG:us)",
        "COMMON_DURATION(DS_RX_END:US_RX_BEG:ms)",
        "COMMON_DURATION(US_TX_BEG:US_RX_BEG:ns)",
        "COMMON_DURATION(US_RX_BEG:DS_TX_END:ms)",
        "COMMON_DURATION(DS_TX_END:DS_RX_BEG:ms)",
    ];
    let others = ["UPSTREAM_TLS_CIPHER", "UPSTREAM_PEER_ISSUER", "UPSTREAM_LOCAL_PORT"];
    let names: Vec<_> = exact.iter().map(|(name, _)| *name).chain(times).chain(others).collect();
    let lines = Lines::new(&names, None);
    let authority = Authority::new();
    let server = unsteady(&authority).await;
    let names = originated(server.at, authority.trusted());
    let mut client = Client::connect_logged(&names, "", lines.log.clone()).await;
    post(&mut client).await;
    client.records().await;
    let line = lines.read().await.remove(0);
    for (name, expected) in exact {
        assert_eq!(line[name], expected, "{name}");
    }
    let cipher = line["UPSTREAM_TLS_CIPHER"].as_str().expect("a cipher");
    assert!(cipher.starts_with("TLS_AES_") || cipher.starts_with("TLS_CHACHA20"), "{cipher}");
    let issuer = line["UPSTREAM_PEER_ISSUER"].as_str().expect("an issuer");
    assert!(issuer.starts_with("CN=test authority "), "{issuer}");
    assert!(line["UPSTREAM_LOCAL_PORT"].as_u64().expect("a port") > 0);

    // A busy machine sees the begin of a step late.
    let step = STEP.as_millis() as u64 / 3;
    let time = |name: &str| line[name].as_u64().unwrap_or_else(|| panic!("{name}: {line}"));
    assert!(time("REQUEST_DURATION") >= step, "{line}");
    // The answered attempt was the second one: it was sent whole, after the request's end.
    assert!(time("REQUEST_TX_DURATION") >= time("REQUEST_DURATION"), "{line}");
    assert!(time("COMMON_DURATION(DS_RX_BEG:US_TX_BEG:us)") >= step * 1000, "{line}");
    assert!(time("COMMON_DURATION(DS_RX_END:US_RX_BEG:ms)") >= step, "{line}");
    assert!(time("COMMON_DURATION(US_TX_BEG:US_RX_BEG:ns)") >= step * 1_000_000, "{line}");
    assert!(time("RESPONSE_DURATION") >= time("REQUEST_DURATION") + step, "{line}");
    assert!(time("RESPONSE_TX_DURATION") >= step, "{line}");
    assert_eq!(time("COMMON_DURATION(US_RX_BEG:DS_TX_END:ms)"), time("RESPONSE_TX_DURATION"));
    assert!(time("DURATION") >= time("RESPONSE_DURATION") + step, "{line}");
    // Time does not run backwards.
    assert_eq!(line["COMMON_DURATION(DS_TX_END:DS_RX_BEG:ms)"], Value::Null);
}

/// An answer of our own: never attempted, no upstream to speak of, headers as they were sent.
#[tokio::test]
async fn operators_of_a_refusal() {
    let names = [
        "UPSTREAM_REQUEST_ATTEMPT_COUNT",
        "UPSTREAM_PROTOCOL",
        "RESPONSE_DURATION",
        "COMMON_DURATION(DS_RX_BEG:US_TX_BEG:ms)",
        "REQUEST_DURATION",
        "RESP(CONTENT-TYPE)",
        "REQ(X-A)",
        "CONNECTION_ID",
        "UPSTREAM_TLS_VERSION",
    ];
    let lines = Lines::new(&names, None);
    let mut client =
        Client::connect_logged(&Names::default().strict(), "", lines.log.clone()).await;
    client.send("GET / HTTP/1.1\r\nHost: no.com\r\nX-A: \"b\"\r\n\r\n").await;
    assert!(client.response().await.starts_with("HTTP/1.1 502 "));
    client.records().await;
    assert_eq!(
        lines.read().await,
        [json!({
            "UPSTREAM_REQUEST_ATTEMPT_COUNT": 0,
            "UPSTREAM_PROTOCOL": null,
            "RESPONSE_DURATION": null,
            "COMMON_DURATION(DS_RX_BEG:US_TX_BEG:ms)": null,
            "REQUEST_DURATION": 0,
            "RESP(CONTENT-TYPE)": "text/plain",
            "REQ(X-A)": "\"b\"",
            "CONNECTION_ID": 1,
            "UPSTREAM_TLS_VERSION": null,
        })]
    );
}

/// TEL-5: filters see what they name, also what no format prints.
#[tokio::test]
async fn filters_see_what_they_name() {
    let authority = Authority::new();
    for (filter, admitted) in [
        ("response.code == 200 && request.headers['x-team'] == 'blue,red'", 1),
        ("response.headers['x-served'] == 'me,too' && response.trailers['x-sum'] == '7'", 1),
        ("request.referer == 'here'", 1),
        ("upstream.tls_version == 'TLSv1.3' && upstream.request_attempt_count == 2", 1),
        ("upstream.subject_peer_certificate == 'CN=a.com,O=Test'", 1),
        ("connection.id == 1 && request.size == 5", 1),
        ("response.code >= 400", 0),
        ("connection.requested_server_name == 'a.com'", 0),
    ] {
        let lines = Lines::new(&["RESPONSE_CODE"], Some(filter));
        let server = unsteady(&authority).await;
        let names = originated(server.at, authority.trusted());
        let mut client = Client::connect_logged(&names, "", lines.log.clone()).await;
        post(&mut client).await;
        client.records().await;
        assert_eq!(lines.read().await, vec![json!({"RESPONSE_CODE": 200}); admitted], "{filter}");
    }
}

/// The default format asks for nothing, so headers are not copied and certificates not read.
#[tokio::test]
async fn nothing_is_collected_that_nobody_asks_for() {
    let authority = Authority::new();
    let server = unsteady(&authority).await;
    let mut client = Client::connect(&originated(server.at, authority.trusted())).await;
    post(&mut client).await;
    let more = client.records().await.remove(0).more;
    assert!(more.response_duration.is_some());
    let collected =
        More { request_duration: None, sending_duration: None, response_duration: None, ..more };
    let expected = More {
        upstream_protocol: Some("HTTP/1.1"),
        attempts: Some(2),
        connection_id: Some(1),
        ..More::default()
    };
    assert_eq!(collected, expected);
}
