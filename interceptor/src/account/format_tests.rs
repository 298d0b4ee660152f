//! Golden lines: each shape of LOG-40 to LOG-54 that this proxy makes, against literal text.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use super::*;
use crate::account::escape::is_hazard;
use crate::account::{Flag, HttpFields, More, TlsFields};
use crate::decide::{ClusterName, Reason};
use crate::workloads::testing::web_0;

const DIALLED: &str = "151.101.195.5:443";

/// A relayed TLS connection that no entry claims (LOG-40).
pub(in crate::account) fn tcp_record() -> Record {
    Record {
        start: SystemTime::UNIX_EPOCH + Duration::from_millis(1_721_988_041_036),
        http: None,
        response_code: 0,
        flags: Vec::new(),
        response_code_details: None,
        connection_termination_details: None,
        upstream_transport_failure_reason: None,
        bytes_received: 892,
        bytes_sent: 5627,
        duration: Duration::from_micros(2_082_900),
        upstream_host: Some(DIALLED.parse().expect("an address")),
        upstream_cluster: Some(ClusterName::passthrough()),
        upstream_local_address: Some("10.1.0.7:51316".parse().expect("an address")),
        downstream_local_address: DIALLED.parse().expect("an address"),
        downstream_remote_address: "10.1.0.7:51310".parse().expect("an address"),
        requested_server_name: None,
        route_name: None,
        reason: Reason::AllowAny,
        audited: false,
        more: More::default(),
    }
}

fn text(record: &Record) -> String {
    Format::built_in(Encoding::Text).line(record)
}

fn json(record: &Record) -> String {
    Format::built_in(Encoding::Json).line(record)
}

/// A forwarded request that no entry claims (LOG-41).
pub(in crate::account) fn http_record() -> Record {
    Record {
        http: Some(HttpFields {
            method: "GET".into(),
            path: "/".into(),
            protocol: "HTTP/1.1",
            upstream_service_time: Some(Duration::from_millis(12)),
            x_forwarded_for: None,
            user_agent: Some("curl/8.8.0".into()),
            request_id: Some("2b5b0a24-0b58-4b9c-8b1c-4f3a3d6f0d7e".into()),
            authority: Some("example.com".into()),
        }),
        response_code: 200,
        response_code_details: Some("via_upstream".into()),
        bytes_received: 0,
        bytes_sent: 2381,
        duration: Duration::from_millis(12),
        upstream_host: Some("192.0.2.1:80".parse().expect("an address")),
        downstream_local_address: "192.0.2.1:80".parse().expect("an address"),
        route_name: Some("allow_any".into()),
        ..tcp_record()
    }
}

fn local_reply(record: Record) -> Record {
    let mut http = record.http.expect("an HTTP record");
    http.upstream_service_time = None;
    Record { http: Some(http), upstream_local_address: None, ..record }
}

#[test]
fn golden_lines() {
    let outbound = |host| Some(ClusterName::outbound(80, host));
    let default = Some(Arc::from("default"));
    let cases = [
        ("LOG-40", tcp_record(),
         r#""- - -" 0 - - - "-" 892 5627 2082 - "-" "-" "-" "-" "151.101.195.5:443" PassthroughCluster 10.1.0.7:51316 151.101.195.5:443 10.1.0.7:51310 - -"#),
        ("LOG-41", http_record(),
         r#""GET / HTTP/1.1" 200 - via_upstream - "-" 0 2381 12 12 "-" "curl/8.8.0" "2b5b0a24-0b58-4b9c-8b1c-4f3a3d6f0d7e" "example.com" "192.0.2.1:80" PassthroughCluster 10.1.0.7:51316 192.0.2.1:80 10.1.0.7:51310 - allow_any"#),
        ("LOG-42", Record {
            response_code: 502,
            response_code_details: Some("direct_response".into()),
            bytes_sent: 0,
            duration: Duration::from_micros(900),
            upstream_host: None,
            upstream_cluster: None,
            route_name: Some("block_all".into()),
            ..local_reply(http_record())
        }, r#""GET / HTTP/1.1" 502 - direct_response - "-" 0 0 0 - "-" "curl/8.8.0" "2b5b0a24-0b58-4b9c-8b1c-4f3a3d6f0d7e" "example.com" "-" - - 192.0.2.1:80 10.1.0.7:51310 - block_all"#),
        ("LOG-43", Record {
            flags: vec![Flag::UH],
            bytes_received: 0,
            bytes_sent: 0,
            duration: Duration::ZERO,
            upstream_host: None,
            upstream_cluster: Some(ClusterName::black_hole()),
            upstream_local_address: None,
            requested_server_name: Some("www.google.com".into()),
            ..tcp_record()
        }, r#""- - -" 0 UH - - "-" 0 0 0 - "-" "-" "-" "-" "-" BlackHoleCluster - 151.101.195.5:443 10.1.0.7:51310 www.google.com -"#),
        ("LOG-44", Record {
            upstream_cluster: outbound("httpbin.org"),
            route_name: default.clone(),
            ..http_record()
        }, r#""GET / HTTP/1.1" 200 - via_upstream - "-" 0 2381 12 12 "-" "curl/8.8.0" "2b5b0a24-0b58-4b9c-8b1c-4f3a3d6f0d7e" "example.com" "192.0.2.1:80" outbound|80||httpbin.org 10.1.0.7:51316 192.0.2.1:80 10.1.0.7:51310 - default"#),
        // LOG-6: the upstream need not be the address dialled; IPv6 in brackets (LOG-4).
        ("LOG-45", Record {
            upstream_host: Some("[2001:db8::1]:443".parse().expect("an address")),
            upstream_cluster: Some(ClusterName::outbound(443, "*.wikipedia.org")),
            requested_server_name: Some("en.wikipedia.org".into()),
            ..tcp_record()
        }, r#""- - -" 0 - - - "-" 892 5627 2082 - "-" "-" "-" "-" "[2001:db8::1]:443" outbound|443||*.wikipedia.org 10.1.0.7:51316 151.101.195.5:443 10.1.0.7:51310 en.wikipedia.org -"#),
        ("LOG-46", Record {
            response_code: 504,
            flags: vec![Flag::UT],
            response_code_details: Some("response_timeout".into()),
            bytes_sent: 24,
            duration: Duration::from_millis(3001),
            upstream_cluster: outbound("httpbin.org"),
            route_name: None,
            ..local_reply(http_record())
        }, r#""GET / HTTP/1.1" 504 UT response_timeout - "-" 0 24 3001 - "-" "curl/8.8.0" "2b5b0a24-0b58-4b9c-8b1c-4f3a3d6f0d7e" "example.com" "192.0.2.1:80" outbound|80||httpbin.org - 192.0.2.1:80 10.1.0.7:51310 - -"#),
        ("LOG-47", Record {
            response_code: 503,
            flags: vec![Flag::UH],
            response_code_details: Some("no_healthy_upstream".into()),
            bytes_sent: 19,
            duration: Duration::ZERO,
            upstream_host: None,
            upstream_cluster: outbound("h"),
            route_name: default.clone(),
            ..local_reply(http_record())
        }, r#""GET / HTTP/1.1" 503 UH no_healthy_upstream - "-" 0 19 0 - "-" "curl/8.8.0" "2b5b0a24-0b58-4b9c-8b1c-4f3a3d6f0d7e" "example.com" "-" outbound|80||h - 192.0.2.1:80 10.1.0.7:51310 - default"#),
        ("LOG-48, LOG-4 (spaces of fields 7 and 9)", Record {
            response_code: 503,
            flags: vec![Flag::URX, Flag::UF],
            response_code_details: Some("upstream_reset_before_response_started{remote_connection_failure|delayed connect error: 111}".into()),
            upstream_transport_failure_reason: Some("delayed connect error: 111".into()),
            bytes_sent: 152,
            upstream_cluster: outbound("h"),
            route_name: default,
            ..local_reply(http_record())
        }, r#""GET / HTTP/1.1" 503 URX,UF upstream_reset_before_response_started{remote_connection_failure|delayed_connect_error:_111} - "delayed_connect_error:_111" 0 152 12 - "-" "curl/8.8.0" "2b5b0a24-0b58-4b9c-8b1c-4f3a3d6f0d7e" "example.com" "192.0.2.1:80" outbound|80||h - 192.0.2.1:80 10.1.0.7:51310 - default"#),
        ("LOG-53", Record {
            response_code: 0,
            flags: vec![Flag::DC],
            response_code_details: Some("downstream_remote_disconnect".into()),
            bytes_sent: 0,
            ..local_reply(http_record())
        }, r#""GET / HTTP/1.1" 0 DC downstream_remote_disconnect - "-" 0 0 12 - "-" "curl/8.8.0" "2b5b0a24-0b58-4b9c-8b1c-4f3a3d6f0d7e" "example.com" "192.0.2.1:80" PassthroughCluster - 192.0.2.1:80 10.1.0.7:51310 - allow_any"#),
        ("LOG-54, LOG-4 (field 8)", Record {
            flags: vec![Flag::UF, Flag::URX],
            connection_termination_details: Some("not registered".into()),
            upstream_transport_failure_reason: Some("delayed connect error: 111".into()),
            bytes_received: 0,
            bytes_sent: 0,
            upstream_local_address: None,
            ..tcp_record()
        }, r#""- - -" 0 UF,URX - not_registered "delayed_connect_error:_111" 0 0 2082 - "-" "-" "-" "-" "151.101.195.5:443" PassthroughCluster - 151.101.195.5:443 10.1.0.7:51310 - -"#),
    ];
    for (rule, record, expected) in cases {
        assert_eq!(text(&record), format!("[2024-07-26T10:00:41.036Z] {expected}\n"), "{rule}");
    }
}

/// T-56: whatever the client chose stays inside its field and its line.
#[test]
fn hostile_fields_are_escaped() {
    let cases = [
        ("a\" 200 -", r#"a\" 200 -"#),
        ("a\\", r"a\\"),
        ("a\r\n[2024", r"a\x0d\x0a[2024"),
        ("\u{1b}[31m\u{7f}\0", r"\x1b[31m\x7f\x00"),
        ("\u{85}\u{9b}", r"\u{85}\u{9b}"),
        ("\u{2028}\u{2029}", r"\u{2028}\u{2029}"),
        ("\u{202e}txt\u{2066}\u{feff}", r"\u{202e}txt\u{2066}\u{feff}"),
        ("grüße", "grüße"),
        ("", "-"),
    ];
    for (raw, expected) in cases {
        let mut record = http_record();
        let http = record.http.as_mut().expect("an HTTP record");
        http.user_agent = Some(raw.into());
        http.path = raw.into();
        let line = text(&record);
        assert!(line.contains(&format!("\"-\" \"{expected}\" \"2b5b")), "{raw:?}: {line}");
        let bare = expected.replace(' ', "\\x20");
        assert!(line.contains(&format!("\"GET {bare} HTTP/1.1\"")), "{raw:?}: {line}");
        assert_eq!(line.matches('\n').count(), 1, "{raw:?}");

        let json = json(&record);
        assert_eq!(json.matches('\n').count(), 1, "{raw:?}");
        assert!(!json.trim_end().chars().any(is_hazard), "{raw:?}: {json}");
        let value: serde_json::Value = serde_json::from_str(&json).expect("valid JSON");
        assert_eq!(value["user_agent"], raw);
    }
}

/// T-56: no field is longer than 1 KiB, escaped or not, and cuts fall between characters.
#[test]
fn fields_are_cut() {
    for raw in ["a".repeat(70_000), "\0".repeat(70_000), "ü".repeat(70_000)] {
        let mut record = http_record();
        record.http.as_mut().expect("an HTTP record").user_agent = Some(raw.clone());
        let line = text(&record);
        let agent = line.split('"').nth(7).expect("field 15");
        assert!((1000..=1024).contains(&agent.len()), "{}", agent.len());
        let value: serde_json::Value = serde_json::from_str(&json(&record)).expect("valid JSON");
        assert_eq!(value["user_agent"].as_str().map(str::len), Some(1024));
    }
}

/// LOG-30, LOG-31: numbers are numbers, missing is null, the service time is a string.
#[test]
fn json_types() {
    let value: serde_json::Value = serde_json::from_str(&json(&http_record())).expect("JSON");
    assert_eq!(
        value,
        serde_json::json!({
            "start_time": "2024-07-26T10:00:41.036Z",
            "route_name": "allow_any",
            "method": "GET",
            "path": "/",
            "protocol": "HTTP/1.1",
            "response_code": 200,
            "response_flags": null,
            "response_code_details": "via_upstream",
            "connection_termination_details": null,
            "bytes_received": 0,
            "bytes_sent": 2381,
            "duration": 12,
            "upstream_service_time": "12",
            "x_forwarded_for": null,
            "user_agent": "curl/8.8.0",
            "request_id": "2b5b0a24-0b58-4b9c-8b1c-4f3a3d6f0d7e",
            "authority": "example.com",
            "upstream_host": "192.0.2.1:80",
            "upstream_cluster": "PassthroughCluster",
            "upstream_local_address": "10.1.0.7:51316",
            "downstream_local_address": "192.0.2.1:80",
            "downstream_remote_address": "10.1.0.7:51310",
            "requested_server_name": null,
            "upstream_transport_failure_reason": null,
        })
    );
    let tcp: serde_json::Value = serde_json::from_str(&json(&tcp_record())).expect("JSON");
    assert_eq!(tcp["method"], serde_json::Value::Null);
    assert_eq!(tcp["response_code"], 0);
}

/// A line of a node tells whose it is: in JSON, and where a format asks a sidecar's environment for it. The
/// text form stays Envoy's (LOG-1).
#[test]
fn a_pods_line_names_the_pod() {
    let mut record = tcp_record();
    let (plain, plain_json) = (text(&record), json(&record));
    record.more.pod = Some(Arc::new(web_0()));
    assert_eq!(text(&record), plain);
    let mut expected: serde_json::Value = serde_json::from_str(&plain_json).expect("JSON");
    assert_eq!(expected.get("pod_name"), None);
    for (key, value) in
        [("pod_namespace", "shop"), ("pod_name", "web-0"), ("service_account", "web")]
    {
        expected[key] = value.into();
    }
    let line: serde_json::Value = serde_json::from_str(&json(&record)).expect("JSON");
    assert_eq!(line, expected);
    let own = "%ENVIRONMENT(POD_NAMESPACE)%/%ENVIRONMENT(POD_NAME)% %ENVIRONMENT(SERVICE_ACCOUNT)% \
               %HOSTNAME% %ENVIRONMENT(CARGO_PKG_NAME)%";
    let own = Format::text(own).expect("parses");
    assert!(own.line(&record).starts_with("shop/web-0 web web-0 "), "{}", own.line(&record));
    assert!(!own.line(&tcp_record()).contains("web-0"));
}

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
