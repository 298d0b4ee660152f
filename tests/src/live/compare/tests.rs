use super::*;
use crate::live::log::Entry;
use crate::live::stub::Hello;
use serde_json::json;

const LINE: &str = r#"[2024-11-03T15:30:47.911Z] "GET /headers HTTP/1.1" 200 - via_upstream - "-" 0 980 707 706 "-" "curl/8.10.1" "fe4df2bc-cf84-990c-a870-8e68b1380541" "httpbin.org" "192.0.2.1:80" outbound|80||httpbin.org 10.1.3.61:47086 192.0.2.1:80 10.1.3.61:47084 - default"#;

fn flow() -> Flow {
    serde_json::from_value(json!({"dst": "192.0.2.1:80", "first_bytes": "http1"})).expect("a flow")
}

fn forwarded() -> Seen {
    let at = "192.0.2.1:80".parse().expect("an address");
    Seen {
        exchanges: vec![Exchange {
            local: Some("10.77.0.2:4000".parse().expect("an address")),
            status: Some(200),
            body: "stub\n".into(),
            headers: vec![("x-stub".into(), "1".into())],
            elapsed_ms: 12,
            ..Exchange::default()
        }],
        contacts: vec![Contact {
            local: at,
            peer: "10.77.0.2:5000".parse().expect("an address"),
            tls: Some(Hello {
                sni: Some("a.test".into()),
                alpn: vec!["h2".into()],
                certificate: false,
            }),
            layers: 1,
            requests: vec![Asked {
                method: "GET".into(),
                target: "/headers".into(),
                host: "httpbin.org".into(),
                version: "HTTP/1.1",
                headers: vec![("x-a".into(), "1".into())],
            }],
            proxy_protocol: None,
            raw: 0,
        }],
        attempts: vec![at],
        lines: vec![Entry::read(LINE)],
        stderr: String::new(),
    }
}

fn differences(expected: &Value, seen: &Seen) -> Vec<String> {
    compare(expected.as_object().expect("a map"), &flow(), false, seen)
}

#[test]
fn what_is_as_expected_has_no_difference() {
    let expected = json!({
        "verdict": "forward", "status": 200, "statuses": [200], "body": "stub\n",
        "cluster": "outbound|80||httpbin.org", "route": "default", "upstream": "192.0.2.1:80",
        "flags": [], "details": "via_upstream", "details_contains": ["upstream"],
        "upstream_tls": {"originated": true, "sni": "a.test", "alpn": ["h2"], "verify": "system",
                         "client_certificate": false},
        "upstream_protocol": "HTTP/1.1", "upstream_path": "/headers",
        "upstream_host_header": "httpbin.org", "upstream_headers": {"X-A": "1", "x-b": null},
        "attempts": 1, "distribution": {"192.0.2.1:80": 1.0, "outbound|80||httpbin.org": 1},
        "duration_ms": {"min": 10, "max": 20}, "bytes_sent": 980, "curl_exit": 0,
        "log": {"path": "/headers", "requested_server_name": "-"}, "log_lines": 1,
        "log_regex": "GET /headers.* default$",
    });
    assert_eq!(differences(&expected, &forwarded()), Vec::<String>::new());
}

#[test]
fn everything_else_is_a_difference() {
    for wrong in [
        json!({"verdict": "local_reply"}),
        json!({"status": 404}),
        json!({"statuses": [200, 200]}),
        json!({"body": ""}),
        json!({"cluster": "-"}),
        json!({"route": "-"}),
        json!({"upstream": "192.0.2.2:80"}),
        json!({"upstream": "-"}),
        json!({"flags": ["UH"]}),
        json!({"details": "direct_response"}),
        json!({"details_contains": ["timeout"]}),
        json!({"details_contains": "timeout"}),
        json!({"upstream_tls": {"originated": false}}),
        json!({"upstream_tls": {"sni": null}}),
        json!({"upstream_tls": {"alpn": []}}),
        json!({"upstream_tls": {"client_certificate": true}}),
        json!({"upstream_protocol": "HTTP/2"}),
        json!({"upstream_path": "/"}),
        json!({"upstream_host_header": "a"}),
        json!({"upstream_headers": {"x-a": null}}),
        json!({"upstream_headers": {"x-b": "1"}}),
        json!({"response_headers": {"x-stub": null}}),
        json!({"connect_request": {"method": "CONNECT"}}),
        json!({"proxy_protocol": 1}),
        json!({"also_sent_to": "192.0.2.2:80"}),
        json!({"attempts": 2}),
        json!({"distribution": {"192.0.2.2:80": 0.5}}),
        json!({"duration_ms": {"min": 100}}),
        json!({"bytes_sent": 1}),
        json!({"bytes_to_client": 1}),
        json!({"curl_exit": 35}),
        json!({"curl_exit": [35, 56]}),
        json!({"log": {"path": "/"}}),
        json!({"log_lines": 0}),
        json!({"log_regex": "^nothing$"}),
        json!({"log_regex": ["GET", "GET"]}),
        json!({"log_json": {"a": 1}}),
        json!({"log_json_keys": ["a"]}),
        json!({"what": 1}),
    ] {
        assert_ne!(differences(&wrong, &forwarded()), Vec::<String>::new(), "{wrong}");
    }
}

#[test]
fn what_ends_at_once_may_take_a_moment_on_a_busy_machine() {
    let pattern = json!({"log_regex": r#""-" 0 980 0 706 "#});
    let mut seen = forwarded();
    assert_eq!(differences(&pattern, &seen).len(), 1, "707 ms are not at once");
    seen.lines = vec![Entry::read(&LINE.replace(" 707 ", " 7 "))];
    assert_eq!(differences(&pattern, &seen), Vec::<String>::new());
    let other = json!({"log_regex": r#""-" 0 981 0 706 "#});
    assert_eq!(differences(&other, &seen).len(), 1, "bytes are exact");
}

#[test]
fn a_busy_machine_is_late_and_never_early() {
    let mut seen = forwarded();
    seen.exchanges[0].elapsed_ms = 600;
    for (expected, holds) in [
        (json!({"min": 100, "max": 200}), true),
        (json!({"max": 99}), false),
        (json!({"min": 700}), false),
        (json!({"min": 601, "max": 800}), false),
        (json!(200), true),
        (json!(601), false),
    ] {
        let none = differences(&json!({"duration_ms": expected}), &seen).is_empty();
        assert_eq!(none, holds, "{expected}");
    }
}

#[test]
fn a_list_of_exits_allows_each() {
    let seen = forwarded();
    assert!(differences(&json!({"curl_exit": [0, 56]}), &seen).is_empty());
}

#[test]
fn a_dash_is_no_request() {
    let dash = json!({"upstream_path": "-"});
    let mut seen = forwarded();
    assert_eq!(differences(&dash, &seen).len(), 1, "there was one");
    seen.contacts.clear();
    assert_eq!(differences(&dash, &seen), Vec::<String>::new());
    assert_eq!(differences(&json!({"upstream_path": "/"}), &seen).len(), 1);
}

#[test]
fn verdicts() {
    let mut seen = forwarded();
    assert_eq!(verdict(&seen), "forward");
    seen.exchanges[0].headers.clear();
    assert_eq!(verdict(&seen), "local_reply");
    seen.exchanges[0].local = Some(seen.contacts[0].peer);
    seen.lines.clear();
    assert_eq!(verdict(&seen), "bypass");
    let line = |cluster: &str| {
        Entry::read(&format!(
            r#"{{"upstream_local_address": "10.77.0.2:5000", "upstream_cluster": "{cluster}"}}"#
        ))
    };
    seen.lines.push(line("BypassCluster"));
    assert_eq!(verdict(&seen), "bypass");
    seen.lines.push(line("outbound|80||a.test"));
    assert_eq!(verdict(&seen), "local_reply", "the proxy's port, by chance the caller's too");
    seen.lines.clear();
    seen.exchanges[0] = Exchange::default();
    assert_eq!(verdict(&seen), "forward", "something arrived");
    seen.contacts.clear();
    assert_eq!(verdict(&seen), "reset");
    seen.exchanges[0].hung = true;
    assert_eq!(verdict(&seen), "hang");
    seen.exchanges.push(Exchange::default());
    assert_eq!(verdict(&seen), "mixed");
}

/// Where the silent pass, a dial of where the client dialled is no upstream until a byte follows.
#[test]
fn a_dial_without_a_byte_is_none_where_policy_is_open() {
    let expected = json!({"upstream": "-"});
    let judged = |open: bool, seen: &Seen| {
        compare(expected.as_object().expect("a map"), &flow(), open, seen).len()
    };
    let mut seen = forwarded();
    seen.lines.clear();
    assert_eq!(judged(true, &seen), 1, "it spoke");
    let contact = &mut seen.contacts[0];
    (contact.tls, contact.layers) = (None, 0);
    contact.requests.clear();
    assert_eq!((judged(true, &seen), judged(false, &seen)), (0, 1));
    seen.attempts.push("192.0.2.9:80".parse().expect("an address"));
    assert_eq!(judged(true, &seen), 1, "elsewhere");
}
