//! Every field of an expectation counts: right values pass, each wrong one is the only difference.

use super::*;

/// Runs a flow case with this expectation and names the fields that differ.
fn differing(case: &str, expect: &str) -> Vec<String> {
    match one(&format!("{case}expect: {{{expect}}}")) {
        Ok(()) => Vec::new(),
        Err(Fault::Differs(differences)) => differences.into_iter().map(|d| d.field).collect(),
        Err(Fault::Broken(why)) => panic!("{expect}: {why}"),
    }
}

const KNOWN: &str = "kind: flow\n\
    mesh: {outboundTrafficPolicy: {mode: REGISTRY_ONLY}, accessLogFile: /dev/stdout}\n\
    resources:\n\
    - {apiVersion: networking.istio.io/v1, kind: ServiceEntry, metadata: {name: a, namespace: default},\n\
    \u{20} spec: {hosts: [a.example.com], ports: [{number: 80, name: http, protocol: HTTP}], resolution: STATIC,\n\
    \u{20} endpoints: [{address: 192.0.2.1, weight: 3}, {address: 192.0.2.2, weight: 1}]}}\n";

#[test]
fn a_forwarded_request() {
    let flow = "flow: {dst: '203.0.113.1:80', first_bytes: http1, http: {path: /p, host: a.example.com, \
                headers: {x-one: '1'}}}\nnetwork: {server_delay_ms: 70}\n";
    let case = format!("{KNOWN}{flow}");
    // field, right, wrong
    let table: &[(&str, &str, &str)] = &[
        ("verdict", "forward", "reset"),
        ("status", "200", "201"),
        ("statuses", "[200]", "[200, 200]"),
        ("body", "\"ok\\n\"", "'ok'"),
        ("cluster", "outbound|80||a.example.com", "outbound|81||a.example.com"),
        ("route", "default", "'-'"),
        ("upstream", "'192.0.2.1:80'", "'192.0.2.2:80'"),
        ("flags", "[]", "[UH]"),
        ("details", "via_upstream", "'-'"),
        ("details_contains", "[via, upstream]", "[timeout]"),
        ("upstream_protocol", "HTTP/1.1", "h2"),
        ("upstream_path", "/p", "/q"),
        ("upstream_host_header", "a.example.com", "b.example.com"),
        ("proxy_protocol", "none", "V1"),
        ("attempts", "1", "{min: 2}"),
        ("duration_ms", "{min: 70, max: 80}", "{max: 69}"),
        ("bytes_sent", "3", "{min: 4}"),
        ("bytes_to_client", "{min: 3, max: 500}", "0"),
        ("curl_exit", "[0, 35]", "35"),
        ("log_lines", "1", "0"),
        ("log_regex", "'.* \"GET /p HTTP/1.1\" 200 .*'", "'\"GET /p HTTP/1.1\"'"),
        (
            "metric",
            "{name: istio_requests_total, response_code: 200}",
            "{name: istio_requests_total, reporter: destination}",
        ),
    ];
    for (field, right, wrong) in table {
        assert_eq!(differing(&case, &format!("{field}: {right}")), Vec::<String>::new(), "{field}");
        assert_eq!(differing(&case, &format!("{field}: {wrong}")), [*field], "{field}: {wrong}");
    }
    let parts: &[(&str, &str, &str)] = &[
        (
            "log.path",
            "log: {path: /p, response_code: 200, requested_server_name: '-'}",
            "log: {path: /}",
        ),
        ("log.route_name", "log: {route_name: default}", "log: {route_name: null}"),
        (
            "response_headers.content-type",
            "response_headers: {Content-Type: text/plain, x: null}",
            "response_headers: {content-type: null}",
        ),
        (
            "upstream_headers.x-one",
            "upstream_headers: {x-one: '1', x-two: null}",
            "upstream_headers: {x-one: '2'}",
        ),
        (
            "upstream_tls.originated",
            "upstream_tls: {originated: false}",
            "upstream_tls: {originated: true}",
        ),
        ("upstream_tls.sni", "upstream_tls: {}", "upstream_tls: {sni: null}"),
        ("connect_request.method", "note_upstream: x", "connect_request: {method: CONNECT}"),
        ("also_sent_to", "application_result: x", "also_sent_to: '192.0.2.9:80'"),
        ("log_json_keys", "bytes_sent: 3", "log_json_keys: [who]"),
        ("log_json.who", "bytes_sent: 3", "log_json: {who: x}"),
    ];
    for (field, right, wrong) in parts {
        assert_eq!(differing(&case, right), Vec::<String>::new(), "{right}");
        assert_eq!(differing(&case, wrong), [*field], "{wrong}");
    }
}

#[test]
fn shares() {
    let case = format!(
        "{KNOWN}flow: {{dst: '203.0.113.1:80', first_bytes: http1, http: {{host: a.example.com}}, repeat: 200}}\n"
    );
    let right = "distribution: {'192.0.2.1:80': 0.75, '192.0.2.2:80': 0.25}, tolerance: 0.01, log_lines: 200";
    assert_eq!(differing(&case, right), Vec::<String>::new());
    assert_eq!(
        differing(&case, "distribution: {outbound|80||a.example.com: 1}"),
        Vec::<String>::new()
    );
    let wrong = "distribution: {'192.0.2.1:80': 0.6, '192.0.2.2:80': 0.25}";
    assert_eq!(differing(&case, wrong), ["distribution.192.0.2.1:80"]);
    // One of several values is not the value.
    assert_eq!(differing(&case, "upstream: '192.0.2.1:80'"), ["upstream"]);
}

#[test]
fn failures() {
    let flow = "flow: {dst: '203.0.113.1:80', first_bytes: http1, http: {host: a.example.com}}\n";
    let case = |server: &str| format!("{KNOWN}{flow}network: {{server: {server}}}\n");
    let refused = case("refuses connections");
    for right in [
        "verdict: local_reply, status: 503, upstream: '192.0.2.1:80', curl_exit: 0",
        "details_on_503: 'upstream_reset_before_response_started{remote_connection_failure|delayed_connect_error:_111}'",
        "details_contains: [connection_failure]",
        "body_bytes_on_503: {min: 152}",
        "log: {upstream_transport_failure_reason: 'delayed connect error: 111', upstream_local_address: null}",
    ] {
        assert_eq!(differing(&refused, right), Vec::<String>::new(), "{right}");
    }
    assert_eq!(differing(&refused, "details_on_503: via_upstream"), ["details_on_503"]);
    assert_eq!(differing(&refused, "flags_on_503: [UO]"), ["flags_on_503"]);
    assert_eq!(differing(&refused, "body_bytes_on_503: 81"), ["body_bytes_on_503"]);
    let silent = case("drops SYN");
    let late = "status: 503, details: 'upstream_reset_before_response_started{connection_timeout}', duration_ms: {min: 10000}";
    assert_eq!(differing(&silent, late), Vec::<String>::new());
    // Fields for 503 do not count elsewhere.
    let fine = format!("{KNOWN}{flow}");
    assert_eq!(differing(&fine, "flags_on_503: [UO], details_on_503: x"), Vec::<String>::new());
}

#[test]
fn what_comes_then() {
    let case = format!(
        "{KNOWN}network: {{server: 301 to https on port 80}}\nflow:\n  dst: '203.0.113.1:80'\n  first_bytes: http1\n  \
         http: {{path: /p, host: a.example.com}}\n  then: {{dst: '203.0.113.1:443', first_bytes: tls, sni: a.example.com}}\n"
    );
    let right = "verdict: mixed, statuses: [301], log_lines: 2, log_regex: ['.*BlackHoleCluster.*', '.*\" 301 - .*']";
    assert_eq!(differing(&case, right), Vec::<String>::new());
    // Each line answers to one pattern only.
    assert_eq!(differing(&case, "log_regex: ['.*', '.* 301 .*', '.*']"), ["log_regex"]);
    assert_eq!(
        differing(&case, "response_headers: {location: 'https://a.example.com/p'}"),
        ["response_headers.location"]
    );
}

#[test]
fn validation() {
    let entry = |hosts: &str| {
        format!(
            "kind: validation\nlayer: webhook\nresources:\n- {{apiVersion: networking.istio.io/v1, kind: ServiceEntry, \
             metadata: {{name: a}}, spec: {{hosts: [{hosts}], ports: [{{number: 80, name: http, protocol: HTTP}}]}}}}\n"
        )
    };
    let good = entry("a.example.com");
    assert_eq!(differing(&good, "accepted: true, warning: false"), Vec::<String>::new());
    assert_eq!(differing(&good, "accepted: false, warning: true"), ["accepted", "warning"]);
    assert_eq!(differing(&entry("'*'"), "accepted: false, warning: null"), Vec::<String>::new());
    assert_eq!(
        differing(&entry("'*foo.com'"), "accepted: true, warning: true"),
        Vec::<String>::new()
    );
    let mesh = |text: &str| format!("kind: validation\nlayer: meshconfig\nmesh: {{{text}}}\n");
    assert_eq!(differing(&mesh("connectTimeout: 31s"), "accepted: true"), Vec::<String>::new());
    assert_eq!(differing(&mesh("connectTimeout: 31h"), "accepted: true"), ["accepted"]);
}
