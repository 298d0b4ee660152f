//! DR-1 to DR-8, DR-9, DR-12, DR-13: which rule, and what it makes of a service port.

use std::time::Duration;

use super::*;
use crate::decide::traffic::*;

/// The names of the rules that decided, for callers of some namespaces.
fn deciding(rules: &Rules, caller: &Caller, service: &ServicePort<'_>) -> Option<String> {
    rules.lookup(caller, service, None).rule.map(|id| format!("{}/{}", id.namespace, id.name))
}

const SIMPLE: &str = "trafficPolicy: {tls: {mode: SIMPLE}}";

#[test]
fn dr_1_the_first_namespace_that_has_a_rule_supplies_it() {
    let near = rule("default/near", "host: a.com, trafficPolicy: {tls: {}}");
    let far = rule("shared/far", "host: a.com, trafficPolicy: {tls: {}}");
    let root = rule("istio-system/root", "host: a.com, trafficPolicy: {tls: {}}");
    let hidden = rule("shared/far", "host: a.com, trafficPolicy: {tls: {}}, exportTo: [.]");
    let named = rule("shared/far", "host: a.com, trafficPolicy: {tls: {}}, exportTo: [default]");
    let elsewhere =
        rule("default/near", "host: a.com, trafficPolicy: {tls: {}}, exportTo: [other]");
    let other = rule("other/x", "host: a.com, trafficPolicy: {tls: {}}");
    let wild = rule("default/wild", "host: '*.com', trafficPolicy: {tls: {}}");
    for (texts, caller, expected) in [
        (vec![&near, &far, &root], "default", Some("default/near")),
        (vec![&far, &root], "default", Some("shared/far")),
        (vec![&root], "default", Some("istio-system/root")),
        (vec![&other], "default", None),
        (vec![&hidden, &root], "default", Some("istio-system/root")),
        (vec![&hidden, &root], "shared", Some("shared/far")),
        (vec![&named, &root], "default", Some("shared/far")),
        (vec![&named, &root], "third", Some("istio-system/root")),
        (vec![&elsewhere, &root], "default", Some("istio-system/root")),
        // The root's callers look at the service's namespace first.
        (vec![&far, &root], "istio-system", Some("shared/far")),
        (vec![&root], "istio-system", Some("istio-system/root")),
        // A less specific rule that is nearer wins.
        (vec![&wild, &far], "default", Some("default/wild")),
    ] {
        let texts: Vec<String> = texts.into_iter().cloned().collect();
        let rules = rules(&texts, Enforcement::Istio);
        let caller = Caller::new(caller);
        let found = deciding(&rules, &caller, &port("a.com", 80));
        assert_eq!(found.as_deref(), expected, "{} {texts:#?}", caller.namespace);
    }
}

#[test]
fn mesh_8_the_default_export_hides_rules_from_other_namespaces_only() {
    let texts = [rule("shared/far", "host: a.com, trafficPolicy: {tls: {}}")];
    for (default, caller, expected) in [
        ("*", "default", true),
        (".", "default", false),
        (".", "shared", true),
        ("default", "default", true),
        ("default", "third", false),
        ("default", "shared", true),
    ] {
        let rules = rules_with(&texts, Enforcement::Istio, &[default]);
        let caller = Caller::new(caller);
        let found = deciding(&rules, &caller, &port("a.com", 80)).is_some();
        assert_eq!(found, expected, "{default} {}", caller.namespace);
    }
}

#[test]
fn dr_2_and_dr_5_the_most_specific_host_and_what_it_covers() {
    let texts: Vec<String> = [
        ("any", "\"*\""),
        ("com", "\"*.com\""),
        ("partial", "\"*foo.com\""),
        ("foo", "\"*.foo.com\""),
        ("exact", "A.foo.com."),
        ("short", "db"),
        ("dotted", "db.shared"),
    ]
    .iter()
    .map(|(name, host)| rule(&format!("default/{name}"), &format!("host: {host}, {SIMPLE}")))
    .collect();
    let rules = rules(&texts, Enforcement::Istio);
    for (host, expected) in [
        ("a.foo.com", "exact"),
        ("b.foo.com", "foo"),
        ("b.a.foo.com", "foo"),
        ("*.foo.com", "foo"),
        ("*.b.foo.com", "foo"),
        ("foo.com", "com"),
        ("xfoo.com", "partial"),
        ("*.com", "com"),
        ("x.org", "any"),
        ("*.org", "any"),
        ("db.default.svc.cluster.local", "short"),
        ("db.shared", "dotted"),
        // A short name means the rule's own namespace.
        ("db.shared.svc.cluster.local", "any"),
        ("db", "any"),
    ] {
        let found = deciding(&rules, &CALLER, &port(host, 80));
        assert_eq!(found, Some(format!("default/{expected}")), "{host}");
    }
}

#[test]
fn dr_3_rules_of_one_host_merge_where_they_are_seen_alike() {
    let dated = |text: String, year: u16| {
        text.replacen(
            "}\nspec",
            &format!(", creationTimestamp: \"{year}-01-01T00:00:00Z\"}}\nspec"),
            1,
        )
    };
    let subset = |name: &str, value: &str| format!("{{name: {name}, labels: {{v: {value}}}}}");
    let texts = [
        dated(
            rule(
                "default/aaa-new",
                &format!(
                    "host: a.com, trafficPolicy: {{loadBalancer: {{simple: RANDOM}}}}, subsets: [{}, {}]",
                    subset("s", "new"),
                    subset("only-new", "x")
                ),
            ),
            2022,
        ),
        dated(
            rule(
                "default/old",
                &format!(
                    "host: a.com, trafficPolicy: {{connectionPool: {{tcp: {{maxConnections: 1}}}}}}, subsets: [{}]",
                    subset("s", "old")
                ),
            ),
            2021,
        ),
        dated(
            rule(
                "default/limited",
                &format!("host: a.com, exportTo: [.], subsets: [{}]", subset("private", "x")),
            ),
            2023,
        ),
    ];
    let rules = rules(&texts, Enforcement::Istio);
    let labels = |name: &str| rules.lookup(&CALLER, &port("a.com", 80), Some(name)).subset_labels;
    let whole = rules.lookup(&CALLER, &port("a.com", 80), None);
    assert_eq!(whole.rule.expect("a rule").name.as_ref(), "old");
    assert_eq!(whole.traffic.limits.max_connections, Some(1), "the oldest policy");
    assert_eq!(whole.traffic.load_balancer, LoadBalancer::LeastRequest, "and all of it");
    assert_eq!(labels("s"), Some(vec![("v".into(), "old".into())]), "first definition");
    assert_eq!(labels("only-new"), Some(vec![("v".into(), "x".into())]), "joined");
    assert_eq!(labels("private"), None, "seen differently, so not merged");
}

#[test]
fn dr_3_a_rule_of_subsets_only_leaves_the_policy_to_the_next() {
    let texts = [
        rule("default/a", "host: a.com, subsets: [{name: s, labels: {a: b}}]"),
        rule("default/b", &format!("host: a.com, {SIMPLE}")),
    ];
    let rules = rules(&texts, Enforcement::Istio);
    assert!(rules.lookup(&CALLER, &port("a.com", 80), None).traffic.tls.is_some());
}

#[test]
fn dr_4_selecting_rules_first_and_only_at_home() {
    let texts = [
        rule("default/a-general", "host: a.com, trafficPolicy: {tls: {}}"),
        rule(
            "default/selecting",
            "host: a.com, trafficPolicy: {tls: {}}, workloadSelector: {matchLabels: {app: x, tier: y}}",
        ),
        rule(
            "shared/selecting",
            "host: b.com, trafficPolicy: {tls: {}}, workloadSelector: {matchLabels: {app: x}}",
        ),
    ];
    let rules = rules(&texts, Enforcement::Istio);
    let label = |k: &str, v: &str| (k.to_owned(), v.to_owned());
    let both = [label("app", "x"), label("more", "z"), label("tier", "y")];
    let one = [label("app", "x")];
    for (labels, host, expected) in [
        (&both[..], "a.com", Some("default/selecting")),
        (&one[..], "a.com", Some("default/a-general")),
        (&[], "a.com", Some("default/a-general")),
        // In the service's namespace, but the caller is of another.
        (&both[..], "b.com", None),
    ] {
        let caller = Caller { namespace: "default".into(), labels: labels.to_vec() };
        assert_eq!(deciding(&rules, &caller, &port(host, 80)).as_deref(), expected, "{labels:?}");
    }
}

/// What tells the levels apart: connect timeout, balancer, TLS, PROXY protocol.
fn shape(traffic: &TrafficPolicy) -> (Option<u64>, &LoadBalancer, bool, Option<ProxyProtocol>) {
    let timeout = traffic.connect_timeout.map(|t| t.as_secs());
    (timeout, &traffic.load_balancer, traffic.tls.is_some(), traffic.proxy_protocol)
}

#[test]
fn dr_6_and_dr_7_precedence() {
    let pool = |seconds: u8| format!("connectionPool: {{tcp: {{connectTimeout: {seconds}s}}}}");
    let spec = format!(
        "host: a.com, trafficPolicy: {{{top}, loadBalancer: {{simple: RANDOM}}, tls: {{mode: SIMPLE}}, proxyProtocol: {{}}, \
         portLevelSettings: [{{port: {{number: 80}}, {at80}}}, {{port: {{number: 80}}, {never}}}]}}, \
         subsets: [{{name: none, labels: {{a: b}}}}, \
         {{name: pool, labels: {{a: b}}, trafficPolicy: {{{sub}}}}}, \
         {{name: port, labels: {{a: b}}, trafficPolicy: {{{sub}, portLevelSettings: [{{port: {{number: 80}}, loadBalancer: {{simple: ROUND_ROBIN}}}}]}}}}, \
         {{name: tunnel, labels: {{a: b}}, trafficPolicy: {{tunnel: {{targetHost: x.com, targetPort: 1}}}}}}]",
        top = pool(1),
        at80 = pool(2),
        never = pool(9),
        sub = pool(3),
    );
    let rules = rules(&[rule("default/d", &spec)], Enforcement::Istio);
    let (least, random, robin) =
        (LoadBalancer::LeastRequest, LoadBalancer::Random, LoadBalancer::RoundRobin);
    let v1 = Some(ProxyProtocol::V1);
    for (number, subset, expected) in [
        (443, None, (Some(1), &random, true, v1)),
        // The whole is replaced; what is left out gets defaults. Not so what is never port-level.
        (80, None, (Some(2), &least, false, v1)),
        (443, Some("none"), (Some(1), &random, true, v1)),
        (80, Some("none"), (Some(2), &least, false, v1)),
        // Block by block.
        (443, Some("pool"), (Some(3), &random, true, v1)),
        (80, Some("pool"), (Some(3), &least, false, v1)),
        (443, Some("port"), (Some(3), &random, true, v1)),
        (80, Some("port"), (None, &robin, false, v1)),
        (443, Some("tunnel"), (Some(1), &random, true, None)),
    ] {
        let found = rules.lookup(&CALLER, &port("a.com", number), subset);
        assert!(!found.missing_subset);
        assert_eq!(shape(&found.traffic), expected, "{number} {subset:?}");
    }
    let tunnel = rules.lookup(&CALLER, &port("a.com", 80), Some("tunnel"));
    let expected = Tunnel { post: false, host: "x.com".into(), port: 1 };
    assert_eq!(tunnel.traffic.tunnel, Some(expected));
}

#[test]
fn dr_8_missing_subsets_and_no_rule() {
    let rules = rules(
        &[rule("default/d", "host: a.com, subsets: [{name: v1, labels: {b: c, a: b}}]")],
        Enforcement::Istio,
    );
    for (host, subset, missing, labels) in [
        ("a.com", None, false, 0),
        ("a.com", Some("v1"), false, 2),
        ("a.com", Some("v2"), true, 0),
        ("b.com", None, false, 0),
        ("b.com", Some("v1"), true, 0),
    ] {
        let found = rules.lookup(&CALLER, &port(host, 80), subset);
        assert_eq!(found.missing_subset, missing, "{host} {subset:?}");
        assert_eq!(found.subset_labels.map_or(0, |l| l.len()), labels, "{host} {subset:?}");
        assert_eq!(*found.traffic, TrafficPolicy::default(), "{host} {subset:?}");
    }
}

#[test]
fn dr_9_dr_12_dr_13_and_dr_16_values_and_defaults() {
    let policy = |text: &str| {
        let spec = format!("host: a.com, trafficPolicy: {{{text}}}");
        let rules = rules(&[rule("default/d", &spec)], Enforcement::Istio);
        TrafficPolicy::clone(&rules.lookup(&CALLER, &port("a.com", 80), None).traffic)
    };
    let seconds = |n| Some(Duration::from_secs(n));
    let pool = policy(
        "connectionPool: {tcp: {maxConnections: 5, connectTimeout: 3s, maxConnectionDuration: 4s, idleTimeout: 0s, tcpKeepalive: {probes: 3, time: 60s}}, \
         http: {http1MaxPendingRequests: 1, http2MaxRequests: 2, maxRequestsPerConnection: 3, maxRetries: 4, idleTimeout: 6s, maxConcurrentStreams: 7, http2KeepAlive: {interval: 15s, timeout: 5s}}}",
    );
    let expected = TrafficPolicy {
        connect_timeout: seconds(3),
        limits: Limits {
            max_connections: Some(5),
            max_connection_duration: seconds(4),
            tcp_idle_timeout: Some(Duration::ZERO),
            max_pending_requests: Some(1),
            max_requests: Some(2),
            max_requests_per_connection: Some(3),
            max_retries: Some(4),
            http_idle_timeout: seconds(6),
            max_concurrent_streams: Some(7),
            http2_keepalive: seconds(15).zip(seconds(5)),
        },
        keepalive: Some(Keepalive { probes: Some(3), time: seconds(60), interval: None }),
        ..TrafficPolicy::default()
    };
    assert_eq!(pool, expected);
    let zero =
        policy("connectionPool: {tcp: {maxConnections: 0}, http: {maxRequestsPerConnection: 0}}");
    assert_eq!(zero, TrafficPolicy::default(), "0 limits nothing");

    let default = OutlierDetection {
        consecutive_5xx: 5,
        consecutive_gateway_errors: 0,
        consecutive_local_origin_failures: None,
        interval: Duration::from_secs(10),
        base_ejection_time: Duration::from_secs(30),
        max_ejection_percent: 10,
        min_health_percent: 0,
    };
    assert_eq!(policy("outlierDetection: {}").outlier, Some(default.clone()));
    let split = policy(
        "outlierDetection: {splitExternalLocalOriginErrors: true, consecutive5xxErrors: 0, maxEjectionPercent: 100}",
    );
    let expected = OutlierDetection {
        consecutive_5xx: 0,
        consecutive_local_origin_failures: Some(5),
        max_ejection_percent: 100,
        ..default
    };
    assert_eq!(split.outlier, Some(expected));
    assert_eq!(policy("tls: {}").outlier, None);

    let cookie = |ttl| HashKey::Cookie { name: "c".into(), path: Some("/p".into()), ttl };
    for (text, expected) in [
        ("simple: UNSPECIFIED", LoadBalancer::LeastRequest),
        ("simple: LEAST_CONN", LoadBalancer::LeastRequest),
        ("simple: RANDOM", LoadBalancer::Random),
        ("simple: PASSTHROUGH", LoadBalancer::Passthrough),
        ("consistentHash: {httpHeaderName: h}", LoadBalancer::Hash(HashKey::Header("h".into()))),
        (
            "consistentHash: {httpQueryParameterName: q}",
            LoadBalancer::Hash(HashKey::Query("q".into())),
        ),
        ("consistentHash: {useSourceIp: true}", LoadBalancer::Hash(HashKey::SourceIp)),
        (
            "consistentHash: {httpCookie: {name: c, path: /p, ttl: 60s}}",
            LoadBalancer::Hash(cookie(seconds(60))),
        ),
    ] {
        assert_eq!(policy(&format!("loadBalancer: {{{text}}}")).load_balancer, expected, "{text}");
    }
    assert_eq!(policy("proxyProtocol: {version: V2}").proxy_protocol, Some(ProxyProtocol::V2));
}

#[test]
fn se_15_tls_11_and_tls_12_http_version_upstream() {
    use PortKind::{Http1, Http2, Opaque, Sniffed};
    use UpstreamProtocol as P;
    let with = |http: &str| {
        let spec = format!("host: a.com, trafficPolicy: {{connectionPool: {{http: {{{http}}}}}}}");
        rules(&[rule("default/d", &spec)], Enforcement::Istio)
    };
    let (plain, upgrade) = (with("maxRetries: 1"), with("h2UpgradePolicy: UPGRADE"));
    let client = with("useClientProtocol: true");
    // MESH-12: what a rule says goes before what the mesh says.
    let by_mesh = with("h2UpgradePolicy: DEFAULT").in_mesh(true, Blocks::default());
    let not_here = with("h2UpgradePolicy: DO_NOT_UPGRADE").in_mesh(true, Blocks::default());
    for (kind, as_is, upgraded, as_client) in [
        (Http1, P::Http1, P::Http2, P::AsClient),
        (Http2, P::Http2, P::Http2, P::AsClient),
        (Sniffed, P::AsClient, P::AsClient, P::AsClient),
        (Opaque, P::Http1, P::Http1, P::Http1),
    ] {
        let service = ServicePort { kind, ..port("a.com", 80) };
        for (rules, expected) in [
            (&plain, as_is),
            (&upgrade, upgraded),
            (&client, as_client),
            (&by_mesh, upgraded),
            (&not_here, as_is),
        ] {
            let found = rules.lookup(&CALLER, &service, None).traffic.protocol;
            assert_eq!(found, expected, "{kind:?}");
        }
    }
    for (text, expected) in [
        ("http", Http1),
        ("HTTP", Http1),
        ("grpc-web", Http1),
        ("HTTP2", Http2),
        ("Grpc", Http2),
        ("", Sniffed),
        ("HTTPS", Opaque),
        ("TLS", Opaque),
        ("tcp", Opaque),
    ] {
        assert_eq!(PortKind::of(text), expected, "{text}");
    }
}
