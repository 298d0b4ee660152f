//! SEV-1 to SEV-25: accepted, warned, rejected; in both profiles where they differ.

use super::*;

const HTTP: &str = "ports: [{number: 80, name: http, protocol: HTTP}]";

/// What validation says: how many rejections and warnings, and a part of the first message.
#[derive(Debug, PartialEq, Eq)]
enum Said {
    Accept,
    Warn(&'static str),
    Reject(&'static str),
}
use Said::{Accept, Reject, Warn};

fn check(spec: &str, enforcement: Enforcement, expected: &Said) {
    let text = format!(
        "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\n\
         metadata: {{name: foo, namespace: bar}}\nspec: {{{spec}}}\n"
    );
    let loaded = load_text(&text, enforcement).unwrap_or_else(|e| panic!("{spec}: {e:?}"));
    let (rejected, warned) = (texts(&loaded.rejected), texts(&loaded.warnings));
    let row = format!("{enforcement:?} {spec}\nrejected {rejected:#?}\nwarned {warned:#?}");
    match expected {
        Accept => assert!(rejected.is_empty() && warned.is_empty(), "{row}"),
        Warn(part) => {
            assert!(rejected.is_empty() && warned.iter().any(|w| w.contains(part)), "{row}");
        }
        Reject(part) => {
            assert!(rejected.iter().any(|r| r.contains(part)), "{row}");
            assert_eq!(loaded.summary.service_entries, 0, "{row}");
            assert!(rejected[0].starts_with("p.yaml:4:"), "{row}");
        }
    }
}

#[test]
fn sev_1_to_sev_25_equal_in_both_profiles() {
    let dns = "resolution: DNS";
    let many_hosts: Vec<String> = (0..257).map(|i| format!("h{i}.com")).collect();
    let rows: Vec<(String, Said)> = vec![
        (format!("{HTTP}, {dns}"), Reject("SEV-1")),
        (format!("hosts: [\"*\"], {HTTP}"), Reject("SEV-1")),
        (format!("hosts: [\"\"], {HTTP}"), Reject("SEV-1")),
        (format!("hosts: [\"a b.com\"], {HTTP}"), Reject("SEV-1")),
        (format!("hosts: [a.123], {HTTP}"), Reject("SEV-1")),
        (format!("hosts: [{}.com], {HTTP}", "a".repeat(64)), Reject("SEV-1")),
        (format!("hosts: [a_b.com], {HTTP}, {dns}"), Reject("SEV-1")),
        (format!("hosts: [-a.com], {HTTP}, {dns}"), Reject("SEV-1")),
        (
            format!("hosts: [a.com], {HTTP}, {dns}, endpoints: [{{address: a_b.com}}]"),
            Reject("is not a host name"),
        ),
        (
            format!("hosts: [a.com], {HTTP}, {dns}, endpoints: [{{address: b.com, labels: {{\"a b\": c}}}}]"),
            Reject("is not a label key"),
        ),
        (format!("hosts: [{}], {HTTP}, {dns}", many_hosts.join(", ")), Reject("256 hosts")),
        (format!("hosts: [\"a.*.com\"], {HTTP}"), Reject("SEV-1")),
        (format!("hosts: [a.com], addresses: [nonsense], {HTTP}"), Reject("SEV-4")),
        (format!("hosts: [a.com], addresses: [\"\"], {HTTP}"), Reject("SEV-4")),
        (format!("hosts: [a.com], addresses: [10.0.0.0/33], {HTTP}"), Reject("SEV-4")),
        (format!("hosts: [a.com], addresses: [10.0.0.0/8], {HTTP}, {dns}"), Reject("SEV-5")),
        (format!("hosts: [a.com], addresses: [10.0.0.1/8], {HTTP}, resolution: STATIC"), Accept),
        (format!("hosts: [a.com], {dns}"), Accept),
        (format!("hosts: [a.com], {dns}, ports: [{{number: 80, protocol: HTTP}}]"), Reject("SEV-7")),
        (
            format!("hosts: [a.com], {dns}, ports: [{{number: 80, name: a_b, protocol: HTTP}}]"),
            Reject("SEV-7"),
        ),
        (
            format!("hosts: [a.com], {dns}, ports: [{{number: 80, name: a}}, {{number: 80, name: b}}]"),
            Reject("port 80 is given twice"),
        ),
        (
            format!("hosts: [a.com], {dns}, ports: [{{number: 80, name: a}}, {{number: 81, name: a}}]"),
            Reject("\"a\" is given twice"),
        ),
        (format!("hosts: [a.com], {dns}, ports: [{{number: 0, name: a}}]"), Reject("65535")),
        (format!("hosts: [a.com], {dns}, ports: [{{number: 65536, name: a}}]"), Reject("65535")),
        (
            format!("hosts: [a.com], {dns}, ports: [{{number: 1, name: a, targetPort: 65536}}]"),
            Reject("spec.ports[0].targetPort"),
        ),
        (
            format!("hosts: [a.com], {dns}, ports: [{{number: 1, name: a, protocol: SCTP}}]"),
            Reject("unknown protocol \"SCTP\""),
        ),
        (
            format!("hosts: [a.com], {HTTP}, {dns}, workloadSelector: {{labels: {{a: b}}}}, endpoints: [{{address: b.com}}]"),
            Reject("SEV-9"),
        ),
        (format!("hosts: [a.com], {HTTP}, {dns}, workloadSelector: {{}}"), Warn("SEV-10")),
        (
            format!("hosts: [a.com], {HTTP}, {dns}, workloadSelector: {{labels: {{a: \"*\"}}}}"),
            Reject("SEV-10"),
        ),
        (format!("hosts: [a.com], {HTTP}, endpoints: [{{address: b.com}}]"), Reject("SEV-11")),
        (
            format!("hosts: [a.com], {HTTP}, workloadSelector: {{labels: {{a: b}}}}"),
            Warn("SEV-11"),
        ),
        (
            format!("hosts: [a.com], {HTTP}, resolution: STATIC, endpoints: [{{address: b.com}}]"),
            Reject("SEV-12"),
        ),
        (format!("hosts: [a.com], {HTTP}, resolution: STATIC"), Accept),
        (
            format!("hosts: [a.com], {HTTP}, resolution: STATIC, endpoints: [{{address: \"unix://x\"}}]"),
            Reject("SEV-13"),
        ),
        (
            format!("hosts: [a.com], {HTTP}, resolution: STATIC, endpoints: [{{address: \"unix:///x\", ports: {{http: 1}}}}]"),
            Reject("SEV-13"),
        ),
        (
            format!("hosts: [a.com], {HTTP}, {dns}, endpoints: [{{address: b.com, ports: {{dne: 1}}}}]"),
            Reject("SEV-14"),
        ),
        (
            format!("hosts: [a.com], {HTTP}, {dns}, endpoints: [{{address: b.com, ports: {{http: 0}}}}]"),
            Reject("65535"),
        ),
        (
            format!("hosts: [\"*.a.com\"], {HTTP}, {dns}, endpoints: [{{address: b.com}}]"),
            Accept,
        ),
        (
            format!("hosts: [a.com], {HTTP}, resolution: DNS_ROUND_ROBIN, endpoints: [{{address: b.com}}, {{address: c.com}}]"),
            Reject("SEV-16"),
        ),
        (
            format!("hosts: [a.com], {HTTP}, {dns}, endpoints: [{{address: \"unix:///x\"}}]"),
            Reject("SEV-17"),
        ),
        (format!("hosts: [a.com], {HTTP}, {dns}, endpoints: [{{address: 192.0.2.1}}]"), Accept),
        (
            format!("hosts: [a.com, b.com], {dns}, ports: [{{number: 1, name: a, protocol: TCP}}]"),
            Reject("SEV-18"),
        ),
        (
            format!("hosts: [a.com, b.com], {dns}, {HTTP}"),
            Accept,
        ),
        (
            "hosts: [a.com, b.com], addresses: [192.0.2.1], ports: [{number: 1, name: a, protocol: TCP}]".into(),
            Warn("SEV-19"),
        ),
        (format!("hosts: [a.com], {HTTP}, resolution: DYNAMIC_DNS"), Reject("SEV-20")),
        (
            format!("hosts: [\"*.a.com\"], addresses: [192.0.2.1], {HTTP}, resolution: DYNAMIC_DNS"),
            Reject("SEV-20"),
        ),
        (
            "hosts: [\"*.a.com\"], ports: [{number: 1, name: a, protocol: HTTPS}], resolution: DYNAMIC_DNS".into(),
            Reject("SEV-20"),
        ),
        (format!("hosts: [\"*.a.com\"], {HTTP}, resolution: DYNAMIC_DNS"), Accept),
        (format!("hosts: [a.com], {HTTP}, {dns}, exportTo: [\".\", bar]"), Reject("SEV-21")),
        (format!("hosts: [a.com], {HTTP}, {dns}, exportTo: [\"*\", bar]"), Reject("SEV-21")),
        (format!("hosts: [a.com], {HTTP}, {dns}, exportTo: [\"~\", bar]"), Reject("SEV-21")),
        (format!("hosts: [a.com], {HTTP}, {dns}, exportTo: [a_b]"), Reject("SEV-21")),
        (format!("hosts: [a.com], {HTTP}, {dns}, endpoints: [{{network: n}}]"), Reject("SEV-22")),
        (
            format!("hosts: [a.com], {HTTP}, resolution: STATIC, endpoints: [{{network: n}}]"),
            Warn("SEV-22"),
        ),
        (format!("hosts: [a.com], {HTTP}, {dns}, endpoints: [{{ports: {{http: 1}}}}]"), Reject("SEV-22")),
        (
            "hosts: [a.com], ports: [{number: 1, name: a, protocol: TCP}]".into(),
            Warn("SEV-6"),
        ),
        ("hosts: [a.com], ports: [{number: 1, name: a}]".into(), Warn("SEV-6")),
        (
            format!("hosts: [a.com], {dns}, ports: [{{number: 1, name: a, protocol: TCP}}]"),
            Accept,
        ),
    ];
    for (spec, expected) in &rows {
        for enforcement in [Enforcement::Strict, Enforcement::Istio] {
            check(spec, enforcement, expected);
        }
    }
}

#[test]
fn http_6_gap_2_gap_9_where_the_profiles_differ() {
    let rows = [
        (format!("hosts: [\"*foo.com\"], {HTTP}"), Reject("SEV-2"), Warn("SEV-2")),
        (format!("hosts: [\"*.foo.com\"], {HTTP}, resolution: DNS"), Accept, Reject("SEV-15")),
        (format!("hosts: [\"*.foo.com\"], {HTTP}"), Accept, Warn("spoofable")),
    ];
    for (spec, strict, istio) in &rows {
        check(spec, Enforcement::Strict, strict);
        check(spec, Enforcement::Istio, istio);
    }
}

#[test]
fn a_rejected_resource_is_left_out_and_the_others_stay() {
    let text = "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {name: bad}\n\
                spec: {hosts: [\"*\"], ports: [{number: 443, name: t, protocol: TLS}]}\n---\n\
                apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {name: good}\n\
                spec: {hosts: [a.com], ports: [{number: 443, name: t, protocol: TLS}], resolution: DNS}\n";
    let loaded = load_text(text, Enforcement::Strict).expect("usable");
    assert_eq!(loaded.summary.service_entries, 1);
    assert_eq!(
        texts(&loaded.rejected),
        ["p.yaml:4:16: ServiceEntry default/bad: spec.hosts[0]: \"*\": \
             \"*\" matches every host; name the hosts, or the domain as *.example.com (SEV-1)"]
    );
}
