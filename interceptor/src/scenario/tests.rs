//! The runner against itself: the examples of the format, our own cases, and what must never pass.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use super::*;

mod cluster;
mod fields;
mod unusable;

/// Examples that do not pass yet, each with what they wait for. A case that passes has to leave
/// this list, so that it stays true in both directions.
const WAITING: &[(&str, &[&str])] = &[];

/// Own cases that wait, in either profile.
const OWN_WAITING: &[(&str, &[&str])] = &[];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn scenarios(of: &str) -> PathBuf {
    root().join("tests/scenarios").join(of)
}

/// The ids that fail, and everything that is said of them.
fn failing(of: &str, profile: Enforcement) -> (usize, BTreeSet<String>, String) {
    let cases = read(&[scenarios(of)], profile).unwrap();
    let mut ids = BTreeSet::new();
    let mut said = String::new();
    for case in &cases {
        let result = run(case, profile);
        if result.is_err() {
            ids.insert(case.id.clone());
            said.push_str(&text(case, &result));
        }
    }
    (cases.len(), ids, said)
}

fn listed(waiting: &[(&str, &[&str])]) -> BTreeSet<String> {
    waiting.iter().flat_map(|(_, ids)| ids.iter().map(|id| (*id).to_owned())).collect()
}

#[test]
fn examples_of_the_format() {
    let (count, failing, said) = failing("istio", Enforcement::Istio);
    assert!(count >= 152, "{count} cases");
    let waiting = listed(WAITING);
    let worse: Vec<_> = failing.difference(&waiting).collect();
    let better: Vec<_> = waiting.difference(&failing).collect();
    assert!(worse.is_empty() && better.is_empty(), "worse {worse:?}, better {better:?}\n{said}");
}

#[test]
fn own_cases_in_both_profiles() {
    let mut seen = BTreeSet::new();
    let mut said = String::new();
    for (name, profile) in [("istio", Enforcement::Istio), ("strict", Enforcement::Strict)] {
        let (count, failing, why) = failing("strict", profile);
        assert!(count >= 40, "{count} cases");
        seen.extend(failing.into_iter().map(|id| format!("{name} {id}")));
        said.push_str(&why);
    }
    assert_eq!(seen, listed(OWN_WAITING), "{said}");
}

/// The rows of the table below `heading` in docs/profiles.md, each as its columns.
fn table(heading: &str) -> Vec<Vec<String>> {
    let text = std::fs::read_to_string(root().join("docs/profiles.md")).unwrap();
    let (_, below) = text.split_once(heading).unwrap_or_else(|| panic!("no {heading:?}"));
    let rows = below.lines().skip_while(|line| !line.starts_with('|'));
    let rows = rows.take_while(|line| line.starts_with('|')).skip(2);
    rows.map(|row| row.trim_matches('|').split('|').map(|cell| cell.trim().to_owned()).collect())
        .collect()
}

/// Each row of the profiles' table has cases of ours that name it, or a test; docs/profiles.md lists
/// which, and nothing else.
#[test]
fn every_row_of_the_profiles_is_shown() {
    let mut named: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for file in std::fs::read_dir(scenarios("strict")).unwrap() {
        let mut id = String::new();
        for line in std::fs::read_to_string(file.unwrap().path()).unwrap().lines() {
            if let Some(found) = line.strip_prefix("  - id: ") {
                found.clone_into(&mut id);
            } else if let Some(row) = line.trim().strip_prefix("expectStrictReason: ") {
                named.entry(row.trim_matches('\'').to_owned()).or_default().insert(id.clone());
            }
        }
    }
    // "question (rules / threats)".
    let question = |cell: &str| cell.rsplit_once(" (").map_or(cell, |(text, _)| text).to_owned();
    let rows: Vec<_> =
        table("# Two profiles").iter().map(|columns| question(&columns[0])).collect();
    let shown = table("## Where each row is shown");
    assert_eq!(shown.iter().map(|columns| columns[0].clone()).collect::<Vec<_>>(), rows);
    for columns in &shown {
        let [row, cases, tests] = columns.as_slice() else { panic!("{columns:?}") };
        let cases: BTreeSet<_> = cases.split(", ").map(str::to_owned).collect();
        assert_eq!(Some(&cases), named.get(row), "{row}");
        for test in tests.split("<br>").filter(|test| !test.is_empty()) {
            let (file, name) = test.trim_matches('`').split_once(": ").unwrap();
            let text = std::fs::read_to_string(root().join(file)).unwrap();
            assert!(text.contains(&format!("fn {name}()")), "{row}: no {test}");
        }
    }
    assert_eq!(named.len(), rows.len(), "a case names a row that is not there");
}

fn cases(text: &str) -> Vec<Case> {
    file::read_text(Path::new("t.yaml"), text, Enforcement::Istio).unwrap()
}

fn one(body: &str) -> Result<(), Fault> {
    let indented: String = body.lines().map(|line| format!("    {line}\n")).collect();
    let text = format!("format: egress-scenario/1\ncases:\n  - id: T-1\n    title: t\n{indented}");
    let mut cases = cases(&text);
    assert_eq!(cases.len(), 1);
    run(&cases.remove(0), Enforcement::Istio)
}

const FLOW: &str = "kind: flow\nflow: {dst: '198.51.100.7:443', first_bytes: raw}\n";

/// RES-18 to RES-20, by the mesh configuration itself: with DNS capture an entry is at its automatic
/// address, and its real one is unknown.
#[test]
fn dns_capture_is_part_of_the_mesh_configuration() {
    let case = |capture: &str, verdict: &str| {
        format!(
            "kind: flow\nmesh:\n  outboundTrafficPolicy: {{mode: REGISTRY_ONLY}}\n  \
             defaultConfig: {{proxyMetadata: {{ISTIO_META_DNS_CAPTURE: '{capture}'}}}}\n\
             resources:\n  - apiVersion: networking.istio.io/v1\n    kind: ServiceEntry\n    \
             metadata: {{name: db, namespace: default}}\n    spec:\n      \
             hosts: [db.example.com]\n      \
             ports: [{{number: 3306, name: tcp, protocol: TCP}}]\n      resolution: STATIC\n      \
             endpoints: [{{address: 192.0.2.5}}]\n\
             flow: {{dst: '192.0.2.5:3306', first_bytes: raw}}\nexpect: {{verdict: {verdict}}}"
        )
    };
    assert_eq!(one(&case("false", "forward")), Ok(()));
    assert_eq!(one(&case("true", "reset")), Ok(()));
}

/// GW-1, GW-5: a gateway serves what its Gateway lists and a VirtualService binds, where its Service
/// leads the port; the rest is not found there, whatever the registry knows.
#[test]
fn a_gateway_serves_its_own_hosts() {
    let case = |host: &str, port: u16, labels: &str, expect: &str| {
        format!(
            r#"kind: flow
mesh: {{outboundTrafficPolicy: {{mode: ALLOW_ANY}}}}
workload: {{namespace: edge, labels: {{{labels}}}, role: gateway}}
resources:
  - apiVersion: networking.istio.io/v1
    kind: ServiceEntry
    metadata: {{name: gateway, namespace: edge}}
    spec:
      hosts: [gateway.edge.svc.cluster.local]
      ports: [{{number: 80, name: http, protocol: HTTP, targetPort: 8080}}]
      resolution: STATIC
      endpoints: [{{address: 10.1.0.50}}]
  - apiVersion: networking.istio.io/v1
    kind: ServiceEntry
    metadata: {{name: out, namespace: default}}
    spec:
      hosts: [a.example.com, b.example.com, c.example.com]
      ports: [{{number: 80, name: http, protocol: HTTP}}]
      resolution: DNS
  - apiVersion: networking.istio.io/v1
    kind: Gateway
    metadata: {{name: g, namespace: default}}
    spec:
      selector: {{app: gateway}}
      servers:
        - {{port: {{number: 80, name: http, protocol: HTTP}}, hosts: [a.example.com, "*/c.example.com"]}}
  - apiVersion: networking.istio.io/v1
    kind: VirtualService
    metadata: {{name: v, namespace: default}}
    spec:
      hosts: [a.example.com, b.example.com]
      gateways: [g, mesh]
      http:
        - match: [{{gateways: [mesh]}}]
          route: [{{destination: {{host: gateway.edge.svc.cluster.local}}}}]
        - match: [{{gateways: [g], port: 80}}]
          route: [{{destination: {{host: b.example.com}}}}]
network: {{dns: {{a.example.com: [192.0.2.1], b.example.com: [192.0.2.2]}}}}
flow: {{dst: '10.1.0.50:{port}', first_bytes: http1, http: {{host: {host}}}}}
expect: {{{expect}}}"#
        )
    };
    let served = "verdict: forward, cluster: outbound|80||b.example.com, upstream: '192.0.2.2:80'";
    let unknown =
        "verdict: local_reply, status: 404, flags: [NR], details: route_not_found, upstream: '-'";
    let closed = "verdict: reset, upstream: '-'";
    for (host, port, labels, expect) in [
        ("a.example.com", 8080, "app: gateway", served),
        // Bound, but not by the Gateway; by it, but not bound; neither.
        ("b.example.com", 8080, "app: gateway", unknown),
        ("c.example.com", 8080, "app: gateway", unknown),
        ("d.example.com", 8080, "app: gateway", unknown),
        ("a.example.com", 80, "app: gateway", closed),
        ("a.example.com", 8080, "app: other", closed),
    ] {
        assert_eq!(one(&case(host, port, labels, expect)), Ok(()), "{host} {port} {labels}");
    }
}

/// "An unknown key or value makes the case an error, never a pass."
#[test]
fn what_a_case_must_not_say() {
    assert_eq!(one(&format!("{FLOW}expect: {{verdict: forward}}")), Ok(()));
    let flow = |flow: &str| format!("kind: flow\nflow: {{{flow}}}\nexpect: {{verdict: forward}}");
    let with = |more: &str| format!("{FLOW}expect: {{verdict: forward}}\n{more}");
    let expect = |more: &str| format!("{FLOW}expect: {{verdict: forward, {more}}}");
    let table = [
        (with("extra: 1"), "extra: unknown key"),
        (with("layer: crd"), "layer: unknown key, or not one of this kind"),
        (with("mesh: {outboundTrafficPolicy: {mode: NEVER}}"), "NEVER"),
        (with("mesh: {values: {global.proxy.image: x}}"), "mesh.values.global.proxy.image"),
        (with("workload: {user: 0}"), "workload: unknown field `user`"),
        (with("workload: {role: router}"), "workload: unknown variant `router`"),
        (with("network: {server: sleeps}"), "server: unknown value \"sleeps\""),
        (with("network: {secrets: [other]}"), "network: unknown variant `other`"),
        (with("network: {dns: {a: [x]}}"), "network: invalid IP address"),
        (with("provenance: hearsay"), "provenance: unknown variant `hearsay`"),
        (with("source: {url: x}"), "source: unknown field `url`"),
        (with("expectStrict: {verdct: reset}"), "expectStrict: unknown field `verdct`"),
        (with("resources: [{apiVersion: v9, kind: Nothing, metadata: {name: a}}]"), "Nothing"),
        (expect("sttus: 200"), "expect: unknown field `sttus`"),
        (expect("accepted: true"), "expect.accepted: not for a flow case"),
        (expect("log_regex: '('"), "expect: log_regex"),
        (expect("upstream_tls: {verify: maybe}"), "expect: verify: unknown value"),
        (expect("upstream_protocol: h9"), "expect: unknown HTTP version"),
        (expect("proxy_protocol: V3"), "expect: proxy_protocol: unknown value"),
        (expect("duration_ms: {about: 5}"), "expect: "),
        (format!("{FLOW}expect: {{verdict: lost}}"), "expect: unknown variant `lost`"),
        (format!("{FLOW}expect: {{}}"), "expect: asks nothing"),
        (FLOW.to_owned(), "expect: missing"),
        (flow("dst: '198.51.100.7', first_bytes: raw"), "flow: invalid socket address"),
        (flow("dst: '198.51.100.7:1', first_bytes: morse"), "flow: unknown variant `morse`"),
        (flow("dst: '198.51.100.7:1', first_bytes: http1"), "flow.http: missing"),
        (flow("dst: '198.51.100.7:1', first_bytes: raw, sni: a.com"), "sni and alpn are for"),
        (flow("dst: '198.51.100.7:1', first_bytes: raw, repeat: 0"), "flow.repeat"),
        (flow("dst: '198.51.100.7:1', first_bytes: raw, transport: sctp"), "unknown variant"),
        ("kind: validation\nexpect: {accepted: true}".to_owned(), "layer: missing"),
        ("kind: validation\nlayer: crd\nexpect: {warning: true}".to_owned(), "accepted: missing"),
        ("kind: guess\nexpect: {accepted: true}".to_owned(), "kind: unknown variant `guess`"),
    ];
    for (body, want) in table {
        match one(&body) {
            Err(Fault::Broken(why)) if why.contains(want) => {}
            other => panic!("{body}\nwanted {want:?}, got {other:?}"),
        }
    }
}

#[test]
fn files_that_are_none() {
    let read = |text: &str| {
        file::read_text(Path::new("t.yaml"), text, Enforcement::Istio).map(|_| ()).unwrap_err()
    };
    let bad = read("format: egress-scenario/2\ncases: []").to_string();
    assert_eq!(
        bad,
        "t.yaml: format is \"egress-scenario/2\"; this program reads egress-scenario/1"
    );
    for text in ["", "kind: ServiceEntry", "format: egress-scenario/1\ncases: {}", "\u{7}: ["] {
        assert!(read(text).to_string().starts_with("t.yaml: "), "{text}");
    }
    let missing = super::read(&["/nonexistent.yaml".into()], Enforcement::Istio).unwrap_err();
    assert!(missing.to_string().contains("cannot be read"), "{missing}");
}

#[test]
fn directories() {
    let dir = tempfile::tempdir().unwrap();
    let put = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
    let here = || super::read(&[dir.path().to_owned()], Enforcement::Istio);
    put("policy.yaml", "apiVersion: v1\nkind: Secret\n");
    assert!(here().unwrap_err().to_string().ends_with("holds no scenario file"));
    let case = |id: &str| {
        format!(
            "format: egress-scenario/1\ncases:\n  - id: {id}\n    title: t\n    kind: flow\n    \
             flow: {{dst: '192.0.2.1:1', first_bytes: raw}}\n    expect: {{verdict: forward}}\n"
        )
    };
    put("b.yaml", &case("T-2"));
    put("a.yml", &case("T-1"));
    put("c.txt", &case("T-3"));
    let found = here().unwrap();
    let ids: Vec<&str> = found.iter().map(|case| case.id.as_str()).collect();
    assert_eq!(ids, ["T-1", "T-2"]);
    assert!(found.iter().all(|case| run(case, Enforcement::Istio).is_ok()));
    // Two cases of one id cannot be told apart in a report.
    put("d.yaml", &case("T-1"));
    let twice = here().unwrap();
    assert!(
        matches!(run(&twice[2], Enforcement::Istio), Err(Fault::Broken(why)) if why.starts_with("id:"))
    );
}

#[test]
fn a_case_says_where_it_stands() {
    let cases =
        cases("format: egress-scenario/1\ncases:\n  - id: A\n    title: t\n\n  - title: no id\n");
    let places: Vec<_> = cases.iter().map(|case| (case.id.as_str(), case.line)).collect();
    assert_eq!(places, [("A", 3), ("t.yaml:6", 6)]);
}

#[test]
fn reports() {
    let text_of = "format: egress-scenario/1\ncases:\n  - id: A<1>\n    title: a & \"b\"\n    kind: flow\n    \
        flow: {dst: '192.0.2.1:1', first_bytes: raw}\n    expect: {verdict: reset, body: ''}\n";
    let cases = cases(text_of);
    let result = run(&cases[0], Enforcement::Istio);
    assert_eq!(
        text(&cases[0], &result),
        "FAILED A<1> a & \"b\"\n    at t.yaml:3\n    verdict: expected reset, observed forward\n    \
         body: expected \"\", observed -\n"
    );
    assert_eq!(text(&cases[0], &Ok(())), "ok A<1> a & \"b\"\n");
    let results =
        [(&cases[0], result, Duration::from_millis(1500)), (&cases[0], Ok(()), Duration::ZERO)];
    assert_eq!(
        junit(&results),
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<testsuites>\n\
         <testsuite name=\"interceptor test\" tests=\"2\" failures=\"1\" errors=\"0\" skipped=\"0\" \
         time=\"1.500\">\n\
         <testcase classname=\"t.yaml\" name=\"A&lt;1&gt;\" time=\"1.500\">\n\
         <failure message=\"verdict: expected reset, observed forward\">a &amp; &quot;b&quot;\n\
         verdict: expected reset, observed forward\nbody: expected &quot;&quot;, observed -</failure>\n\
         </testcase>\n\
         <testcase classname=\"t.yaml\" name=\"A&lt;1&gt;\" time=\"0.000\"/>\n\
         </testsuite>\n</testsuites>\n"
    );
}

/// The manual's example is a scenario file, and it passes.
#[test]
fn the_example_of_the_manual() {
    let manual = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/policy-tests.md");
    let manual = std::fs::read_to_string(manual).unwrap();
    let (_, rest) = manual.split_once("```yaml\nformat:").unwrap();
    let (example, _) = rest.split_once("```").unwrap();
    let cases = cases(&format!("format:{example}"));
    assert_eq!(cases.len(), 1);
    for profile in [Enforcement::Istio, Enforcement::Strict] {
        assert_eq!(run(&cases[0], profile), Ok(()));
    }
}
