//! Formats of the user's own: operator by operator, what is wrong with them, and what they ask for.

use std::time::Duration;

use super::tests::{http_record, tcp_record};
use super::*;
use crate::account::{Flag, More, TlsFields};

/// LOG-32 and the rest of LOG-1: operator by operator, for a request and for a connection.
#[test]
fn operators() {
    let request = Record {
        flags: vec![Flag::URX, Flag::UF],
        more: More {
            request_headers: vec![("x-team".into(), "blue".into())],
            response_headers: vec![("server".into(), "nginx".into())],
            response_trailers: vec![("grpc-status".into(), "0".into())],
            request_duration: Some(Duration::from_millis(3)),
            sending_duration: Some(Duration::from_millis(4)),
            response_duration: Some(Duration::from_millis(9)),
            upstream_protocol: Some("HTTP/2"),
            attempts: Some(2),
            connection_id: Some(77),
            upstream_tls: Some(TlsFields {
                version: Some("TLSv1.3".into()),
                cipher: Some("TLS_AES_256_GCM_SHA384".into()),
                peer_subject: Some("CN=example.com".into()),
                peer_issuer: Some("CN=somebody".into()),
                peer_dns_san: Some("example.com,example.org".into()),
                peer_uri_san: Some("spiffe://x/y".into()),
                peer_ip_san: Some("192.0.2.1".into()),
            }),
            upstream_socket: None,
            address_of: None,
            egress_proxy: Some("corp-1".into()),
            proxy_target: Some("example.com:443".into()),
            pod: None,
            trace_id: Some("4bf92f3577b34da6a3ce929d0e0e4736".into()),
            node: Some("spiffe://x/node".into()),
            workload: Some("shop/checkout".into()),
        },
        ..http_record()
    };
    let connection = Record {
        downstream_remote_address: "[2001:db8::7]:51310".parse().expect("an address"),
        requested_server_name: Some("a.com".into()),
        ..tcp_record()
    };
    for (format, of_request, of_connection) in [
        ("%START_TIME%", "2024-07-26T10:00:41.036Z", "2024-07-26T10:00:41.036Z"),
        ("%START_TIME(%s.%3f)%", "1721988041.036", "1721988041.036"),
        ("%EMIT_TIME(%s.%3f)%", "1721988041.048", "1721988043.118"),
        ("%REQ(:METHOD)%", "GET", "-"),
        ("%REQ(X-ENVOY-ORIGINAL-PATH?:PATH)%", "/", "-"),
        ("%REQ(X-Team)%", "blue", "-"),
        ("%REQ(X-NONE?X-TEAM)%", "blue", "-"),
        ("%REQ(HOST)%", "example.com", "-"),
        ("%REQ(USER-AGENT):4%", "curl", "-"),
        ("%REQ(USER-AGENT):400%", "curl/8.8.0", "-"),
        ("%REQ(:SCHEME)%", "http", "-"),
        ("%RESP(SERVER)%", "nginx", "-"),
        ("%RESP(:STATUS)%", "200", "-"),
        ("%RESP(X-ENVOY-UPSTREAM-SERVICE-TIME)%", "12", "-"),
        ("%TRAILER(GRPC-STATUS)%", "0", "-"),
        ("%RESPONSE_CODE%", "200", "0"),
        ("%RESPONSE_FLAGS%", "URX,UF", "-"),
        ("%RESPONSE_FLAGS_LONG%", "UpstreamRetryLimitExceeded,UpstreamConnectionFailure", "-"),
        ("%RESPONSE_CODE_DETAILS%", "via_upstream", "-"),
        ("%CONNECTION_TERMINATION_DETAILS%", "-", "-"),
        ("%UPSTREAM_TRANSPORT_FAILURE_REASON%", "-", "-"),
        ("%BYTES_RECEIVED%/%BYTES_SENT%", "0/2381", "892/5627"),
        ("%DURATION%", "12", "2082"),
        ("%REQUEST_DURATION%", "3", "-"),
        ("%RESPONSE_DURATION%", "9", "-"),
        ("%RESPONSE_TX_DURATION%", "3", "-"),
        ("%UPSTREAM_HOST%", "192.0.2.1:80", "151.101.195.5:443"),
        ("%UPSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%", "192.0.2.1", "151.101.195.5"),
        ("%UPSTREAM_CLUSTER%", "PassthroughCluster", "PassthroughCluster"),
        ("%UPSTREAM_CLUSTER_RAW%", "PassthroughCluster", "PassthroughCluster"),
        ("%UPSTREAM_LOCAL_ADDRESS_WITHOUT_PORT%", "10.1.0.7", "10.1.0.7"),
        ("%DOWNSTREAM_LOCAL_ADDRESS%", "192.0.2.1:80", "151.101.195.5:443"),
        ("%DOWNSTREAM_LOCAL_PORT%", "80", "443"),
        ("%DOWNSTREAM_REMOTE_ADDRESS%", "10.1.0.7:51310", "[2001:db8::7]:51310"),
        ("%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%", "10.1.0.7", "2001:db8::7"),
        ("%DOWNSTREAM_REMOTE_PORT%", "51310", "51310"),
        ("%REQUESTED_SERVER_NAME%", "-", "a.com"),
        ("%ROUTE_NAME%", "allow_any", "-"),
        ("%PROTOCOL%", "HTTP/1.1", "-"),
        ("%UPSTREAM_PROTOCOL%", "HTTP/2", "-"),
        ("%UPSTREAM_REQUEST_ATTEMPT_COUNT%", "2", "-"),
        ("%CONNECTION_ID%", "77", "-"),
        ("%UPSTREAM_TLS_VERSION%", "TLSv1.3", "-"),
        ("%UPSTREAM_TLS_CIPHER%", "TLS_AES_256_GCM_SHA384", "-"),
        ("%UPSTREAM_PEER_SUBJECT%", "CN=example.com", "-"),
        ("%UPSTREAM_PEER_ISSUER%", "CN=somebody", "-"),
        ("%UPSTREAM_PEER_DNS_SAN%", "example.com,example.org", "-"),
        ("%UPSTREAM_PEER_URI_SAN%", "spiffe://x/y", "-"),
        ("%UPSTREAM_PEER_IP_SAN%", "192.0.2.1", "-"),
        ("%REQUEST_TX_DURATION%", "4", "-"),
        ("%COMMON_DURATION(DS_RX_BEG:DS_RX_END:ms)%", "3", "-"),
        ("%COMMON_DURATION(DS_RX_END:US_TX_BEG:us)%", "1000", "-"),
        ("%COMMON_DURATION(US_TX_END:US_RX_BEG:ns)%", "5000000", "-"),
        ("%COMMON_DURATION(DS_TX_BEG:US_RX_END:ms)%", "3", "-"),
        ("%COMMON_DURATION(DS_RX_BEG:DS_TX_END:ms)%", "12", "2082"),
        ("%COMMON_DURATION(DS_TX_END:DS_RX_BEG:ms)%", "-", "-"),
        ("%ACCESS_LOG_TYPE%", "DownstreamEnd", "TcpConnectionEnd"),
        ("%QUERY_PARAM(a)%", "-", "-"),
        ("%DOWNSTREAM_TLS_VERSION%", "-", "-"),
        ("%DYNAMIC_METADATA(a:b)%", "-", "-"),
        ("%DYNAMIC_METADATA(interceptor:egress_proxy)%", "corp-1", "-"),
        ("%DYNAMIC_METADATA(interceptor:proxy_target)%", "example.com:443", "-"),
        ("%TRACE_ID%", "4bf92f3577b34da6a3ce929d0e0e4736", "-"),
        ("%DYNAMIC_METADATA(interceptor:node)%", "spiffe://x/node", "-"),
        ("%DYNAMIC_METADATA(interceptor:workload)%", "shop/checkout", "-"),
        ("%FILTER_STATE(wasm.a:PLAIN):10%", "-", "-"),
        ("%ENVIRONMENT(SURELY_NOT_SET_ANYWHERE)%", "-", "-"),
        ("%UPSTREAM_WIRE_BYTES_SENT%", "-", "-"),
        ("100%% of %PROTOCOL%", "100% of HTTP/1.1", "100% of -"),
        ("nothing", "nothing", "nothing"),
    ] {
        let parsed = Format::text(format).unwrap_or_else(|error| panic!("{format}: {error}"));
        assert_eq!(parsed.line(&request), format!("{of_request}\n"), "{format}");
        assert_eq!(parsed.line(&connection), format!("{of_connection}\n"), "{format}");
    }
    let own = nix::unistd::gethostname().expect("a name").into_string().expect("text");
    let hostname = Format::text("%HOSTNAME%").expect("parses").line(&request);
    assert_eq!(hostname, format!("{own}\n"));
    let path = Format::text("%ENVIRONMENT(PATH):3%\n").expect("parses").line(&request);
    assert_eq!(path.trim_end(), &std::env::var("PATH").expect("a PATH")[..3]);
}

/// LOG-32: what is not an operator makes the configuration invalid, and says where and why.
#[test]
fn mistakes_in_formats() {
    for (format, expected) in [
        ("%PROTOCOL", "character 1: PROTOCOL is not ended by %"),
        ("ü %REQ(:PATH%", "character 3: REQ( is not closed"),
        ("%REQ%", "character 1: REQ needs a header: %REQ(X-NAME)%"),
        ("%REQ()%", "character 1: \"\" is not a header name"),
        ("%REQ(a b)%", "character 1: \"a b\" is not a header name"),
        ("%REQ(A):x%", "character 1: REQ: a length follows the colon"),
        ("%PROTOCOL(x)%", "character 1: PROTOCOL takes no argument"),
        ("%ENVIRONMENT%", "character 1: ENVIRONMENT needs a variable's name"),
        ("%QUERY_PARAM%", "character 1: QUERY_PARAM needs a parameter's name"),
        (
            "50% off",
            "character 3: a % starts an operator like %PROTOCOL%; write %% for the sign itself",
        ),
        ("%START_TIME(%Q)%", "character 1: %Q is not a conversion of times known here"),
    ] {
        assert_eq!(Format::text(format).expect_err(format).to_string(), expected);
    }
    for wrong in
        ["", "(DS_RX_BEG)", "(DS_RX_BEG:DS_RX_END)", "(A:DS_RX_END:ms)", "(DS_RX_BEG:DS_RX_END:s)"]
    {
        let error = Format::text(&format!("%COMMON_DURATION{wrong}%")).expect_err(wrong);
        assert!(error.to_string().contains("needs two points and a precision"), "{error}");
    }
    let unknown = Format::text("a %PROTOCOLS%").expect_err("unknown").to_string();
    assert!(
        unknown.starts_with("character 3: unknown operator PROTOCOLS; known: ACCESS_LOG_TYPE, ")
    );
    for known in ["REQ", "START_TIME", "RESPONSE_FLAGS_LONG", "FILTER_STATE"] {
        assert!(unknown.contains(&format!(", {known},")), "{known}: {unknown}");
    }
    for (format, expected) in [
        ("[]", "expected a JSON object of key to format"),
        ("{\"a\": \"%REQ%\"}", "a: character 1: REQ needs a header: %REQ(X-NAME)%"),
        (
            "{\"a\": {\"b\": [\"%\"]}}",
            "a: b: character 1: a % starts an operator like %PROTOCOL%; write %% for the sign itself",
        ),
    ] {
        assert_eq!(Format::json_text(format).expect_err(format).to_string(), expected);
    }
    Format::json_text("%PROTOCOL%").expect_err("not JSON");
}

/// MESH-3, LOG-31: custom JSON keeps the types of single operators; mixed values are strings.
#[test]
fn custom_json() {
    let format = r#"{"who": "%REQ(:AUTHORITY)%", "code": "%RESPONSE_CODE%",
        "sni": "%REQUESTED_SERVER_NAME%", "mixed": "%PROTOCOL% %RESPONSE_CODE% %REQUESTED_SERVER_NAME%",
        "time": "%RESP(X-ENVOY-UPSTREAM-SERVICE-TIME)%", "nested": {"list": ["%BYTES_SENT%", 1, null, true]},
        "word": "x"}"#;
    let line = Format::json_text(format).expect("parses").line(&http_record());
    assert_eq!(line.matches('\n').count(), 1);
    let value: serde_json::Value = serde_json::from_str(&line).expect("JSON");
    assert_eq!(
        value,
        serde_json::json!({
            "who": "example.com",
            "code": 200,
            "sni": null,
            "mixed": "HTTP/1.1 200 -",
            "time": "12",
            "nested": {"list": [2381, 1, null, true]},
            "word": "x",
        })
    );
}

/// T-56 holds for custom formats: spaces stay only where quotes enclose the operator.
#[test]
fn custom_formats_escape() {
    let mut record = http_record();
    record.http.as_mut().expect("an HTTP record").user_agent = Some("a b\"\n".into());
    for (format, expected) in [
        ("%REQ(USER-AGENT)%|", "a\\x20b\\\"\\x0a|\n"),
        ("\"%REQ(USER-AGENT)%\"", "\"a b\\\"\\x0a\"\n"),
        ("%REQ(USER-AGENT)%\n", "a\\x20b\\\"\\x0a\n"),
    ] {
        assert_eq!(Format::text(format).expect("parses").line(&record), expected);
    }
}

/// Formats ask for the headers that not every record has.
#[test]
fn headers_are_asked_for() {
    let wanted = |format: &str| {
        let mut wanted = Wanted::default();
        Format::text(format).expect("parses").want(&mut wanted);
        wanted
    };
    assert_eq!(wanted("%REQ(USER-AGENT?X-REQUEST-ID)% %RESP(:STATUS)%"), Wanted::default());
    let wanted = wanted("%REQ(X-A?X-B):3% %RESP(Server)% %TRAILER(t)%");
    let mut headers = http::HeaderMap::new();
    for (name, value) in [("x-b", "1"), ("server", "s"), ("t", "2"), ("x-b", "3"), ("x-c", "4")] {
        headers.append(name, http::HeaderValue::from_static(value));
    }
    let pair = |name: &str, value: &str| vec![(name.to_owned(), value.to_owned())];
    assert_eq!(wanted.request.pick(&headers), pair("x-b", "1,3"));
    assert_eq!(wanted.response.pick(&headers), pair("server", "s"));
    assert_eq!(wanted.trailers.pick(&headers), pair("t", "2"));
}
