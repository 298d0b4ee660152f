//! Mesh configuration: MESH-1 to MESH-9.

use std::time::Duration;

use super::*;
use crate::decide;
use crate::decide::host::HostName;
use crate::origin::OriginalDst;
use crate::sniff::{ClientHello, Hello};

#[test]
fn mesh_1_modes() {
    for (text, expected) in [
        ("", Outbound::AllowAny),
        ("accessLogFile: /dev/stdout", Outbound::AllowAny),
        ("outboundTrafficPolicy: {mode: ALLOW_ANY}", Outbound::AllowAny),
        ("outboundTrafficPolicy: {mode: REGISTRY_ONLY}", Outbound::RegistryOnly),
        ("outboundTrafficPolicy: {}", Outbound::RegistryOnly),
        ("outboundTrafficPolicy: {mode: 0}", Outbound::RegistryOnly),
        ("outboundTrafficPolicy: {mode: 1}", Outbound::AllowAny),
        (
            "spec: {meshConfig: {outboundTrafficPolicy: {mode: REGISTRY_ONLY}}}",
            Outbound::RegistryOnly,
        ),
        (
            "apiVersion: install.istio.io/v1alpha1\nkind: IstioOperator\nspec:\n  profile: demo\n  \
             meshConfig:\n    outboundTrafficPolicy:\n      mode: REGISTRY_ONLY\n",
            Outbound::RegistryOnly,
        ),
        (
            "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: istio, namespace: istio-system}\n\
             data:\n  mesh: |-\n    outboundTrafficPolicy:\n      mode: REGISTRY_ONLY\n    \
             trustDomain: cluster.local\n  meshNetworks: 'networks: {}'\n",
            Outbound::RegistryOnly,
        ),
    ] {
        let loaded =
            load_mesh(text, Enforcement::Strict).unwrap_or_else(|e| panic!("{text}: {e:?}"));
        assert_eq!(loaded.snapshot.outbound, expected, "{text}");
        if text.contains("kind") {
            let same = load_text(text, Enforcement::Strict).expect("accepted with -f too");
            assert_eq!(same.snapshot.outbound, expected, "{text}");
        }
        let refuses = expected == Outbound::RegistryOnly;
        assert_eq!(loaded.snapshot.refuse_datagrams, refuses, "{text}");
        let istio = load_mesh(text, Enforcement::Istio).expect("accepted");
        assert!(!istio.snapshot.refuse_datagrams, "CAP-1: {text}");
    }
}

/// MESH-8, DR-1: a DestinationRule that does not say who sees it is seen by whom the mesh says.
#[test]
fn mesh_8_default_export_of_destination_rules() {
    let rules = "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {name: e, namespace: other}\n\
                 spec: {hosts: [a.com], ports: [{number: 443, name: t, protocol: TLS}], resolution: DNS}\n---\n\
                 apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {name: d, namespace: other}\n\
                 spec: {host: a.com, trafficPolicy: {connectionPool: {tcp: {connectTimeout: 7s}}}}\n";
    let own = rules.replace("spec: {host: a.com,", "spec: {host: a.com, exportTo: ['*'],");
    for (mesh, text, seen) in [
        ("{}", rules, true),
        ("defaultDestinationRuleExportTo: ['*']", rules, true),
        ("defaultDestinationRuleExportTo: ['.']", rules, false),
        ("defaultDestinationRuleExportTo: [default]", rules, true),
        ("defaultDestinationRuleExportTo: ['.']", &own, true),
    ] {
        let loaded = load_from(text, |file| Sources {
            files: vec![file],
            mesh_text: Some(("mesh".into(), mesh.to_owned())),
            ..Sources::default()
        });
        let loaded = loaded.expect("accepted");
        let flow = decide::Flow {
            dst: OriginalDst::new("192.0.2.1:443".parse().expect("an address")),
            namespace: "default",
        };
        let sni = HostName::parse("a.com").ok();
        let hello = Hello::Tls(ClientHello { sni, ..ClientHello::default() });
        let decision = decide::by_hello(&loaded.snapshot.policy, &flow, &hello);
        let decide::Action::Relay(to) = decision.action else { panic!("{decision:?}") };
        let timeout = seen.then_some(Duration::from_secs(7));
        assert_eq!(to[0].traffic.connect_timeout, timeout, "{mesh}");
    }
}

#[test]
fn the_flag_overrides_the_mode() {
    let loaded = load_from("outboundTrafficPolicy: {mode: ALLOW_ANY}", |file| Sources {
        mesh_config: Some(file),
        outbound: Some(Outbound::RegistryOnly),
        ..Sources::default()
    });
    assert_eq!(loaded.expect("accepted").snapshot.outbound, Outbound::RegistryOnly);
}

#[test]
fn mesh_2_to_9_mistakes_and_what_is_not_used() {
    for (text, expected) in [
        (
            "outboundTrafficPolicy: {mode: ALLOW_SOME}",
            "p.yaml:1:31: outboundTrafficPolicy.mode: unknown value \"ALLOW_SOME\"; use one of \
             REGISTRY_ONLY, ALLOW_ANY, ALLOW_ANY_DYNAMIC_DNS",
        ),
        (
            "accessLogFormat: \"x %REQ%\"",
            "p.yaml:1:18: accessLogFormat: character 3: REQ needs a header: %REQ(X-NAME)%",
        ),
        (
            "accessLogEncoding: JSON\naccessLogFormat: '{\"a\": \"%\"}'",
            "p.yaml:2:18: accessLogFormat: a: character 1: a % starts an operator like %PROTOCOL%; \
             write %% for the sign itself",
        ),
        (
            "defaultHttpRetryPolicy: {retryOn: x}",
            "p.yaml:1:25: defaultHttpRetryPolicy: attempts: 0 switches retries off and stands \
             alone (VSV-10)\np.yaml:1:35: defaultHttpRetryPolicy.retryOn: unknown condition \
             \"x\" (VSV-10)",
        ),
        ("acessLogFile: x", "p.yaml:1:1: acessLogFile: unknown field"),
        (
            "connectTimeout: 10",
            "p.yaml:1:17: connectTimeout: expected text (put it in quotes), found a number",
        ),
        ("connectTimeout: 2h", "p.yaml:1:17: connectTimeout: must lie between 1ms and 1h (MESH-6)"),
        (
            "dnsRefreshRate: soon",
            "p.yaml:1:17: dnsRefreshRate: \"soon\" is not a duration; write it like 5s or 100ms",
        ),
        (
            "protocolDetectionTimeout: 1500us",
            "p.yaml:1:27: protocolDetectionTimeout: must be a whole number of milliseconds (MESH-5)",
        ),
        ("[a]", "p.yaml:1:1: expected a mapping, found a list"),
        (
            "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: istio}\ndata:\n  mesh: |-\n    \
             trustDomain: x\n    nonsense: 1\n",
            "p.yaml:7:5: ConfigMap default/istio: data.mesh.nonsense: unknown field",
        ),
        (
            "apiVersion: networking.istio.io/v1\nkind: Gateway\nmetadata: {name: g}\n",
            "p.yaml:1:1: holds no mesh configuration; give resources with -f",
        ),
    ] {
        let expected: Vec<_> = expected.lines().collect();
        assert_eq!(load_mesh(text, Enforcement::Strict).expect_err(text), expected);
    }
    let text = "enableTracing: true\ndefaultConfig:\n  concurrency: 2\n  proxyMetadata:\n    \
                ISTIO_META_IDLE_TIMEOUT: 1s\n    ISTIO_META_DNS_AUTO_ALLOCATE: 'true'\n";
    assert_eq!(
        texts(&load_mesh(text, Enforcement::Strict).expect("accepted").warnings),
        [
            "p.yaml:3:3: defaultConfig.concurrency: not used by interceptor",
            "p.yaml:5:5: defaultConfig.proxyMetadata.ISTIO_META_IDLE_TIMEOUT: not used by \
             interceptor",
            "p.yaml:1:1: enableTracing: not used by interceptor",
        ]
    );
}

#[test]
fn res_18_dns_capture_is_taken_and_its_limit_is_said() {
    for (value, warnings) in [("'true'", 1), ("'false'", 0)] {
        let text =
            format!("defaultConfig: {{proxyMetadata: {{ISTIO_META_DNS_CAPTURE: {value}}}}}\n");
        let loaded = load_mesh(&text, Enforcement::Istio).expect("accepted");
        let said = texts(&loaded.warnings);
        assert_eq!(said.len(), warnings, "{said:?}");
        assert!(said.iter().all(|text| text.contains("does not answer DNS itself")), "{said:?}");
    }
    let text = "defaultConfig: {proxyMetadata: {ISTIO_META_DNS_CAPTURE: true}}\n";
    load_mesh(text, Enforcement::Istio).expect_err("proxyMetadata is text");
}

#[test]
fn two_mesh_configurations_are_refused() {
    let one = "apiVersion: install.istio.io/v1alpha1\nkind: IstioOperator\nmetadata: {name: m}\n\
               spec: {meshConfig: {}}\n";
    let errors = load_text(&format!("{one}---\n{one}"), Enforcement::Strict);
    assert_eq!(
        errors.expect_err("refused"),
        ["p.yaml:5:1: IstioOperator default/m: a second mesh configuration; give one only"]
    );
}

#[test]
fn mesh_5_to_7_times() {
    let strict = |text| load_mesh(text, Enforcement::Strict).expect("accepted").snapshot;
    let istio = |text| load_mesh(text, Enforcement::Istio).expect("accepted").snapshot;
    let five = Some(Duration::from_secs(5));
    assert_eq!(strict("").sniff_timeout, five, "T-28");
    assert_eq!(istio("").sniff_timeout, None);
    assert_eq!(strict("protocolDetectionTimeout: 0s").sniff_timeout, five);
    assert_eq!(istio("protocolDetectionTimeout: 0s").sniff_timeout, None);
    let short = "protocolDetectionTimeout: 100ms";
    for snapshot in [strict(short), istio(short)] {
        assert_eq!(snapshot.sniff_timeout, Some(Duration::from_millis(100)));
    }
    assert_eq!(strict("").connect_timeout, Duration::from_secs(10));
    assert_eq!(strict("").dns_refresh, Duration::from_secs(60));
    let set = strict("connectTimeout: 1m30s\ndnsRefreshRate: 0.5s\n");
    assert_eq!(set.connect_timeout, Duration::from_secs(90));
    assert_eq!(set.dns_refresh, Duration::from_millis(500));
}

#[test]
fn mesh_8_default_visibility() {
    let text = "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\n\
                metadata: {name: a, namespace: other}\nspec: {hosts: [a.com], resolution: DNS, \
                ports: [{number: 80, name: h, protocol: HTTP}]}\n";
    let dir = tempfile::tempdir().expect("a directory");
    let (se, mesh) = (dir.path().join("se.yaml"), dir.path().join("mesh.yaml"));
    std::fs::write(&se, text).expect("written");
    for (config, services) in [("{}", 1), ("defaultServiceExportTo: [\".\"]", 0)] {
        std::fs::write(&mesh, config).expect("written");
        let sources = Sources {
            files: vec![se.clone()],
            mesh_config: Some(mesh.clone()),
            ..Sources::default()
        };
        let loaded = load(&sources, &Caller::new("default")).expect("accepted");
        assert_eq!(loaded.summary.services, services, "{config}");
    }
}
