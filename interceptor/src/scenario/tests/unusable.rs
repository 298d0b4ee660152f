//! Objects that the agent cannot use and never could: what they are about is refused, whoever asks, and
//! nothing else is. Each case is played twice: without the object it gets through.

use super::cluster::rules_by_agent;
use super::*;

const SITE: &str = "
- apiVersion: networking.istio.io/v1
  kind: ServiceEntry
  metadata: {name: site, namespace: default}
  spec:
    hosts: [site.example.com]
    addresses: [192.0.2.7]
    ports:
    - {number: 80, name: http, protocol: HTTP}
    - {number: 443, name: tls, protocol: TLS}
    - {number: 9000, name: tcp, protocol: TCP}
    resolution: DNS";

/// A VirtualService that leads to a delegate.
const ROOT: &str = "
- apiVersion: networking.istio.io/v1
  kind: VirtualService
  metadata: {name: root, namespace: default}
  spec:
    hosts: [site.example.com]
    http:
    - match: [{uri: {prefix: /}}]
      delegate: {name: part, namespace: default}
    - route: [{destination: {host: site.example.com}}]";

const HTTP: &str =
    "{dst: '192.0.2.7:80', first_bytes: http1, http: {host: site.example.com, path: /}}";
const TLS: &str = "{dst: '192.0.2.7:443', first_bytes: tls, sni: site.example.com}";
const RAW: &str = "{dst: '192.0.2.7:9000', first_bytes: raw}";
const OTHER: &str = "{dst: '198.51.100.9:443', first_bytes: tls, sni: other.example.net}";

const ROUTES: &str = "
- apiVersion: networking.istio.io/v1
  kind: VirtualService
  metadata: {name: bad, namespace: default}
  spec: {hosts: [site.example.com], surprise: 1, http: [{directResponse: {status: 403}}]}";
const RULE: &str = "
- apiVersion: networking.istio.io/v1
  kind: DestinationRule
  metadata: {name: bad, namespace: default}
  spec: {host: site.example.com, trafficPolicy: {surprise: 1}}";
const DELEGATE: &str = "
- apiVersion: networking.istio.io/v1
  kind: VirtualService
  metadata: {name: part, namespace: default}
  spec: {surprise: 1, http: [{directResponse: {status: 403}}]}";
const SIDECAR: &str = "
- apiVersion: networking.istio.io/v1
  kind: Sidecar
  metadata: {name: bad, namespace: default}
  spec: {surprise: 1, egress: [{hosts: ['~/*']}]}";
const ROOT_SIDECAR: &str = "
- apiVersion: networking.istio.io/v1
  kind: Sidecar
  metadata: {name: bad, namespace: istio-system}
  spec: {egress: [{hosts: [nonsense]}]}";
const ENTRY: &str = "
- apiVersion: networking.istio.io/v1
  kind: ServiceEntry
  metadata: {name: bad, namespace: default}
  spec:
    hosts: [other.example.net]
    surprise: 1
    addresses: [198.51.100.9]
    ports: [{number: 443, name: tls, protocol: TLS}]
    resolution: STATIC
    endpoints: [{address: 192.0.2.99}]";

/// What, the mode, the objects that can be used, the one that cannot, the flow, and the verdict.
const CASES: [[&str; 6]; 10] = [
    ["routes, HTTP", "REGISTRY_ONLY", SITE, ROUTES, HTTP, "local_reply"],
    ["routes, TLS", "REGISTRY_ONLY", SITE, ROUTES, TLS, "reset"],
    ["routes, TCP", "REGISTRY_ONLY", SITE, ROUTES, RAW, "reset"],
    ["rule, HTTP", "REGISTRY_ONLY", SITE, RULE, HTTP, "local_reply"],
    ["rule, TLS", "REGISTRY_ONLY", SITE, RULE, TLS, "reset"],
    ["rule, TCP", "REGISTRY_ONLY", SITE, RULE, RAW, "reset"],
    ["Sidecar, what is known", "ALLOW_ANY", SITE, SIDECAR, RAW, "reset"],
    ["Sidecar, what is not", "ALLOW_ANY", SITE, SIDECAR, OTHER, "reset"],
    ["Sidecar of the root", "ALLOW_ANY", SITE, ROOT_SIDECAR, OTHER, "reset"],
    ["entry", "ALLOW_ANY", SITE, ENTRY, OTHER, "reset"],
];

fn play(mode: &str, resources: &str, flow: &str, verdict: &str) -> String {
    let resources = resources.replace('\n', "\n    ");
    let text = format!(
        "format: egress-scenario/1\ncases:\n  - id: T-1\n    title: t\n    kind: flow\n    \
         mesh: {{outboundTrafficPolicy: {{mode: {mode}}}}}\n    resources:{resources}\n    \
         network: {{dns: {{site.example.com: [192.0.2.7], other.example.net: [198.51.100.9]}}}}\n    \
         flow: {flow}\n    expect: {{verdict: {verdict}}}\n"
    );
    let mut said = String::new();
    for profile in [Enforcement::Istio, Enforcement::Strict] {
        for case in file::read_text(Path::new("t.yaml"), &text, profile).expect("a file") {
            let result = run_by(&case, profile, &rules_by_agent);
            if result.is_err() {
                said.push_str(&format!("{profile:?}: {}", report::text(&case, &result)));
            }
        }
    }
    said
}

#[test]
fn what_an_unusable_object_is_about_is_refused() {
    let mut said = String::new();
    for [what, mode, good, bad, flow, verdict] in CASES {
        let with = play(mode, &format!("{good}{bad}"), flow, verdict);
        let without = play(mode, good, flow, "forward");
        for (how, wrong) in [("with it", with), ("without it", without)] {
            if !wrong.is_empty() {
                said.push_str(&format!("{what}, {how}: {wrong}\n"));
            }
        }
    }
    assert!(said.is_empty(), "{said}");
}

#[test]
fn a_delegate_that_is_unusable_answers_for_its_root() {
    assert_eq!(play("REGISTRY_ONLY", &format!("{SITE}{ROOT}{DELEGATE}"), HTTP, "local_reply"), "");
    // Without it the root goes on to its next rule.
    assert_eq!(play("REGISTRY_ONLY", &format!("{SITE}{ROOT}"), HTTP, "forward"), "");
}

#[test]
fn what_it_is_not_about_is_not_refused() {
    let elsewhere = |bad: &str| bad.replace("site.example.com", "elsewhere.example.com");
    let foreign = |bad: &str| {
        bad.replace("namespace: default}", "namespace: shop}")
            .replace("spec: {", "spec: {exportTo: ['.'], ")
    };
    for (what, bad) in [
        ("other host", elsewhere(ROUTES)),
        ("other host", elsewhere(RULE)),
        ("not exported", foreign(ROUTES)),
        ("not exported", foreign(RULE)),
        ("other namespace", SIDECAR.replace("namespace: default}", "namespace: shop}")),
        (
            "other labels",
            SIDECAR.replace("surprise: 1", "surprise: 1, workloadSelector: {labels: {app: x}}"),
        ),
        ("left out", ENTRY.to_owned()),
    ] {
        for flow in [HTTP, TLS, RAW] {
            let said = play("REGISTRY_ONLY", &format!("{SITE}{bad}"), flow, "forward");
            assert!(said.is_empty(), "{what}: {flow}: {said}");
        }
    }
}
