//! Golden lines: each shape of LOG-40 to LOG-54 that this proxy makes, against literal text.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use super::*;
use crate::account::escape::is_hazard;
use crate::account::{Flag, HttpFields, More};
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
