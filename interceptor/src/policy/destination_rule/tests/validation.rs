//! DRV-1 to DRV-16.

use super::*;

/// The verdict on one rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Said {
    Accept,
    Warn,
    Reject,
}
use Said::{Accept, Reject, Warn};

fn verdict(spec: &str) -> (Said, Findings) {
    let (rules, out) = read(&rule("ns5/foo", spec));
    assert!(out.errors.is_empty(), "{spec}\n{out:?}");
    let said = match (rules.len(), out.rejected.len(), out.warnings.len()) {
        (1, 0, 0) => Accept,
        (1, 0, _) => Warn,
        (0, 1.., _) => Reject,
        other => panic!("{spec}: {other:?} {out:?}"),
    };
    (said, out)
}

/// Rows of a table, each put into `around` at `%`.
fn table(around: &str, rows: &[(&str, Said)]) {
    for (row, expected) in rows {
        let spec = around.replace('%', row);
        let (said, out) = verdict(&spec);
        assert_eq!(said, *expected, "{spec}\n{out:?}");
        for notice in &out.rejected {
            let resource = notice.resource.as_deref();
            assert_eq!(resource, Some("DestinationRule ns5/foo"), "{spec}");
            assert!(notice.place.line == 5 && notice.path.starts_with("spec"), "{notice}");
        }
    }
}

const SUBSETS: &str =
    "subsets: [{name: v1, labels: {version: v1}}, {name: v2, labels: {version: v2}}]";

#[test]
fn drv_1_hosts() {
    table(
        "host: %",
        &[
            ("reviews", Accept),
            ("reviews.prod.svc.cluster.local", Accept),
            ("REVIEWS.example.com.", Accept),
            ("\"*\"", Accept),
            ("\"*.example.com\"", Accept),
            ("\"*foo.com\"", Accept),
            ("\"\"", Reject),
            ("foo!.bar", Reject),
            ("under_score.com", Reject),
            ("-foo.com", Reject),
            ("\"a.*.com\"", Reject),
            ("a..b", Reject),
            ("1.2.3.4", Reject),
            ("a.123", Reject),
            ("\"*-foo.com\"", Accept),
            ("\"*-\"", Reject),
        ],
    );
    table("%", &[(SUBSETS, Reject)]);
}

#[test]
fn drv_2_and_drv_3_policies_need_content() {
    table(
        "host: a.com, trafficPolicy: {%}",
        &[
            ("", Reject),
            ("portLevelSettings: []", Reject),
            ("portLevelSettings: [{port: {number: 80}}]", Reject),
            ("portLevelSettings: [{tls: {mode: SIMPLE}}]", Reject),
            ("portLevelSettings: [{port: {}, tls: {mode: SIMPLE}}]", Reject),
            ("portLevelSettings: [{port: {number: 0}, tls: {mode: SIMPLE}}]", Reject),
            ("portLevelSettings: [{port: {number: 80}, tls: {mode: SIMPLE}}]", Accept),
            ("tls: {}", Accept),
            ("outlierDetection: {}", Accept),
            ("loadBalancer: {}", Accept),
            ("proxyProtocol: {}", Accept),
            ("proxyProtocol: {version: V2}", Accept),
            ("retryBudget: {percent: 20.5, minRetryConcurrency: 3}", Warn),
            ("tunnel: {targetHost: a.com, targetPort: 443}", Accept),
            ("tunnel: {targetHost: a.com, targetPort: 443, protocol: POST}", Accept),
            ("tunnel: {targetHost: 192.0.2.1, targetPort: 443, protocol: CONNECT}", Accept),
            ("tunnel: {targetHost: \"2001:db8::1\", targetPort: 443}", Accept),
            ("tunnel: {targetHost: a.com, targetPort: 443, protocol: GET}", Reject),
            ("tunnel: {targetHost: \"a/b\", targetPort: 443}", Reject),
            ("tunnel: {targetHost: \"*.a.com\", targetPort: 443}", Reject),
            ("tunnel: {targetHost: \"\", targetPort: 443}", Reject),
            ("tunnel: {targetPort: 443}", Reject),
            ("tunnel: {targetHost: a.com}", Reject),
            ("tunnel: {targetHost: a.com, targetPort: 0}", Reject),
            ("tunnel: {targetHost: a.com, targetPort: 65536}", Reject),
            ("tunnel: {targetHost: a.com, targetPort: 443}, proxyProtocol: {version: V1}", Reject),
            (
                "loadBalancer: {simple: ROUND_ROBIN}, connectionPool: {}, outlierDetection: {minHealthPercent: 20}",
                Reject,
            ),
        ],
    );
    // The same blocks are checked wherever they stand.
    let bad = "connectionPool: {tcp: {maxConnections: -1}}";
    for around in [
        format!(
            "host: a.com, trafficPolicy: {{portLevelSettings: [{{port: {{number: 1}}, {bad}}}]}}"
        ),
        format!("host: a.com, subsets: [{{name: a, labels: {{a: b}}, trafficPolicy: {{{bad}}}}}]"),
    ] {
        assert_eq!(verdict(&around).0, Reject, "{around}");
    }
}

#[test]
fn drv_4_to_drv_6_connection_pools() {
    table(
        "host: a.com, trafficPolicy: {connectionPool: {%}}",
        &[
            ("", Reject),
            ("tcp: {}", Reject),
            ("http: {}", Reject),
            ("tcp: {maxConnections: 7}, http: {}", Reject),
            ("tcp: {maxConnections: 7}, http: {http2MaxRequests: 11}", Accept),
            ("tcp: {maxConnections: 7, connectTimeout: 2s}", Accept),
            ("tcp: {maxConnections: -1}", Reject),
            ("tcp: {maxConnections: 2147483648}", Reject),
            ("tcp: {connectTimeout: 999999999s}", Reject),
            ("tcp: {connectTimeout: 1h}", Accept),
            ("tcp: {connectTimeout: 1ms}", Accept),
            ("tcp: {connectTimeout: 0s}", Reject),
            ("tcp: {connectTimeout: -1s}", Reject),
            ("tcp: {connectTimeout: 2.000000005s}", Reject),
            ("tcp: {idleTimeout: 0s}", Accept),
            ("tcp: {idleTimeout: 0.5ms}", Reject),
            ("tcp: {maxConnectionDuration: 1.5s}", Accept),
            ("tcp: {maxConnectionDuration: 0s}", Reject),
            ("tcp: {tcpKeepalive: {probes: 3, time: 7200s, interval: 75s}}", Accept),
            ("tcp: {tcpKeepalive: {time: 1us}}", Reject),
            ("http: {http1MaxPendingRequests: -1}", Reject),
            ("http: {http2MaxRequests: -1}", Reject),
            ("http: {maxRequestsPerConnection: -1}", Reject),
            ("http: {maxRequestsPerConnection: 0}", Accept),
            ("http: {maxRetries: -1}", Reject),
            ("http: {maxConcurrentStreams: -1}", Reject),
            ("http: {idleTimeout: 30s}", Accept),
            ("http: {idleTimeout: 30.000000005s}", Reject),
            ("http: {idleTimeout: 0s}", Reject),
            ("http: {h2UpgradePolicy: UPGRADE}", Accept),
            ("http: {h2UpgradePolicy: DO_NOT_UPGRADE, useClientProtocol: true}", Accept),
            ("http: {h2UpgradePolicy: UPGRADE, useClientProtocol: true}", Reject),
            ("http: {http2KeepAlive: {interval: 15s, timeout: 5s}}", Accept),
            ("http: {http2KeepAlive: {interval: 15s}}", Reject),
            ("http: {http2KeepAlive: {timeout: 5s}}", Reject),
        ],
    );
}

#[test]
fn drv_7_outlier_detection() {
    table(
        "host: a.com, trafficPolicy: {outlierDetection: {%}}",
        &[
            ("interval: 2s, baseEjectionTime: 2s, maxEjectionPercent: 50", Accept),
            ("interval: 2.000000005s", Reject),
            ("baseEjectionTime: 2.000000005s", Reject),
            ("interval: 0s", Reject),
            ("maxEjectionPercent: 105", Reject),
            ("minHealthPercent: -1", Reject),
            ("minHealthPercent: 101", Reject),
            ("minHealthPercent: 100", Accept),
            ("consecutiveErrors: 101", Warn),
            ("consecutiveLocalOriginFailures: 10", Reject),
            ("consecutiveLocalOriginFailures: 10, splitExternalLocalOriginErrors: true", Accept),
            ("consecutive5xxErrors: 0, consecutiveGatewayErrors: 3", Accept),
            ("consecutive5xxErrors: -1", Reject),
        ],
    );
}

#[test]
fn drv_8_to_drv_11_and_drv_16_tls() {
    let simple = "mode: SIMPLE";
    let mutual = "mode: MUTUAL, clientCertificate: cert, privateKey: key";
    let san = "subjectAltNames: [reviews.default.svc]";
    let skip = "insecureSkipVerify: true";
    let rows: Vec<(String, Said)> = vec![
        ("mode: DISABLE".into(), Accept),
        (simple.into(), Accept),
        (format!("{simple}, caCertificates: test, {san}, insecureSkipVerify: false"), Accept),
        (format!("{simple}, {skip}"), Accept),
        (format!("{simple}, {skip}, caCertificates: ca"), Reject),
        (format!("{simple}, {skip}, {san}"), Reject),
        (format!("{simple}, {skip}, credentialName: test"), Reject),
        (format!("{simple}, {skip}, subjectAltNames: []"), Accept),
        (format!("{simple}, credentialName: credential, clientCertificate: '', privateKey: key, caCertificates: ''"), Reject),
        (format!("{simple}, credentialName: credential, clientCertificate: cert"), Reject),
        (format!("{simple}, credentialName: credential, caCertificates: ca"), Reject),
        (format!("{simple}, credentialName: credential, caCrl: ca"), Reject),
        (format!("{simple}, credentialName: credential, clientCertificate: '', caCrl: ''"), Accept),
        (mutual.into(), Accept),
        (format!("{mutual}, {skip}"), Accept),
        (format!("{mutual}, {san}, {skip}"), Reject),
        (format!("{mutual}, caCertificates: ca, {skip}"), Reject),
        ("mode: MUTUAL".into(), Reject),
        ("mode: MUTUAL, clientCertificate: cert".into(), Reject),
        ("mode: MUTUAL, privateKey: key".into(), Reject),
        (format!("mode: MUTUAL, credentialName: test, {san}"), Accept),
        (format!("mode: MUTUAL, credentialName: test, {skip}"), Accept),
        ("mode: MUTUAL, credentialName: credential, clientCertificate: '', privateKey: '', caCrl: ca".into(), Reject),
        ("mode: ISTIO_MUTUAL".into(), Accept),
        ("mode: ISTIO_MUTUAL, caCertificates: ca".into(), Reject),
        ("mode: ISTIO_MUTUAL, credentialName: a".into(), Reject),
    ];
    for (row, expected) in &rows {
        table("host: reviews, trafficPolicy: {tls: {%}}", &[(row, *expected)]);
    }
}

#[test]
fn drv_12_subsets() {
    table(
        "host: reviews, %",
        &[
            (SUBSETS, Accept),
            ("subsets: [{name: v1, labels: {a: b}}, {name: v1, labels: {a: c}}]", Reject),
            ("subsets: [{name: '', labels: {a: b}}]", Reject),
            ("subsets: [{labels: {a: b}}]", Reject),
            ("subsets: [{name: v_1, labels: {a: b}}]", Reject),
            ("subsets: [{name: v1}]", Warn),
            ("subsets: [{name: v1, labels: {'a b': c}}]", Reject),
            ("subsets: [{name: v1, labels: {a: 'b c'}}]", Reject),
            ("subsets: [{name: v1, labels: {x.io/a: ''}}]", Accept),
            ("subsets: [{name: v1, labels: {a: b}, trafficPolicy: {}}]", Reject),
        ],
    );
}

#[test]
fn drv_13_load_balancers() {
    table(
        "host: a.com, trafficPolicy: {loadBalancer: {%}}",
        &[
            ("simple: ROUND_ROBIN", Accept),
            ("simple: LEAST_CONN", Accept),
            ("simple: PASSTHROUGH", Accept),
            ("consistentHash: {}", Reject),
            ("consistentHash: {httpHeaderName: ''}", Reject),
            ("consistentHash: {useSourceIp: false}", Reject),
            ("consistentHash: {useSourceIp: true}", Accept),
            ("consistentHash: {httpHeaderName: x-user}", Accept),
            ("consistentHash: {httpQueryParameterName: user}", Accept),
            ("consistentHash: {httpCookie: {name: user, ttl: 0s}}", Accept),
            ("consistentHash: {httpCookie: {name: user}}", Reject),
            ("consistentHash: {httpCookie: {ttl: 1h}}", Reject),
            ("consistentHash: {httpHeaderName: a, useSourceIp: true}", Reject),
            ("consistentHash: {useSourceIp: true, minimumRingSize: 1024}", Warn),
            ("consistentHash: {useSourceIp: true, minimumRingSize: 1024, ringHash: {}}", Reject),
            ("consistentHash: {useSourceIp: true, ringHash: {minimumRingSize: 9}}", Accept),
            ("consistentHash: {useSourceIp: true, maglev: {tableSize: 65537}}", Accept),
            ("consistentHash: {useSourceIp: true, maglev: {tableSize: 65536}}", Reject),
            ("consistentHash: {useSourceIp: true, maglev: {tableSize: 5000011}}", Reject),
            ("consistentHash: {useSourceIp: true, maglev: {tableSize: 1}}", Reject),
            ("consistentHash: {useSourceIp: true, maglev: {}}", Reject),
            ("consistentHash: {useSourceIp: true, maglev: {tableSize: 7}, ringHash: {}}", Reject),
            ("simple: RANDOM, consistentHash: {useSourceIp: true}", Reject),
            ("warmupDurationSecs: 1ns", Reject),
            ("warmupDurationSecs: 60s", Warn),
            ("warmup: {duration: 60s, minimumPercent: 10.5, aggression: 1}", Warn),
            ("warmup: {minimumPercent: 10}", Reject),
            ("warmupDurationSecs: 60s, warmup: {duration: 60s}", Reject),
            ("localityLbSetting: {distribute: [{from: a/*, to: {a/*: 80, b/*: 20}}]}", Warn),
            ("localityLbSetting: {distribute: [{from: a/*, to: {a/*: 80}}]}", Reject),
            ("localityLbSetting: {failover: [{from: a, to: a}]}", Reject),
        ],
    );
}

#[test]
fn drv_14_exports() {
    table(
        "host: a.com, trafficPolicy: {tls: {mode: SIMPLE}}, %",
        &[
            ("exportTo: []", Accept),
            ("exportTo: ['*']", Accept),
            ("exportTo: [., ns1]", Accept),
            ("exportTo: [ns1, ns2]", Accept),
            ("exportTo: [., '*']", Reject),
            ("exportTo: ['*', ns1]", Reject),
            ("exportTo: [., ns5]", Reject),
            ("exportTo: [ns1, ns1]", Reject),
            ("exportTo: ['*', '*']", Reject),
            ("exportTo: [ns_1]", Reject),
            ("exportTo: ['~']", Reject),
            ("workloadSelector: {matchLabels: {app: x}}", Accept),
            ("workloadSelector: {matchLabels: {app: x}}, exportTo: [.]", Accept),
            ("workloadSelector: {matchLabels: {app: x}}, exportTo: [ns5]", Accept),
            ("workloadSelector: {matchLabels: {app: x}}, exportTo: ['*']", Reject),
            ("workloadSelector: {matchLabels: {app: x}}, exportTo: [ns1]", Reject),
            ("workloadSelector: {matchLabels: {app: '*'}}", Reject),
            ("workloadSelector: {}", Warn),
        ],
    );
}

#[test]
fn unknown_fields_and_wrong_types_are_errors_in_their_place() {
    for (spec, path, message) in [
        ("host: a.com, nope: 1", "spec.nope", "unknown field"),
        ("host: 5", "spec.host", "expected text"),
        (
            "host: a.com, trafficPolicy: {tls: {mode: PLAIN}}",
            "spec.trafficPolicy.tls.mode",
            "use one of DISABLE",
        ),
        (
            "host: a.com, trafficPolicy: {tls: {modus: SIMPLE}}",
            "spec.trafficPolicy.tls.modus",
            "unknown field",
        ),
        (
            "host: a.com, trafficPolicy: {connectionPool: {tcp: {connectTimeout: soon}}}",
            "spec.trafficPolicy.connectionPool.tcp.connectTimeout",
            "not a duration",
        ),
        (
            "host: a.com, trafficPolicy: {portLevelSettings: [{port: {number: 80}, tunnel: {}, tls: {}}]}",
            "spec.trafficPolicy.portLevelSettings[0].tunnel",
            "unknown field",
        ),
        (
            "host: a.com, subsets: [{name: a, labels: {a: 1}}]",
            "spec.subsets[0].labels.a",
            "expected text",
        ),
    ] {
        let (_, out) = read(&rule("ns5/foo", spec));
        let found: Vec<_> = out.errors.iter().map(|n| (n.path.as_str(), &n.message)).collect();
        assert_eq!(found.len(), 1, "{spec}: {found:?}");
        assert!(found[0].0 == path && found[0].1.contains(message), "{spec}: {found:?}");
    }
}
