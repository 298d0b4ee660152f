//! The runner against itself: the examples of the format, our own cases, and what must never pass.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use super::*;

mod fields;

/// Examples that do not pass yet, each with what they wait for. A case that passes has to leave
/// this list, so that it stays true in both directions.
const WAITING: &[(&str, &[&str])] = &[
    ("the gateway role", &["FLOW-GW-002"]),
    ("names and addresses among the endpoints of one entry", &["VAL-SE-007"]),
];

/// Own cases that wait, in either profile.
const OWN_WAITING: &[(&str, &[&str])] = &[];

/// First column of docs/profiles.md. Each row has a case of ours that names it.
const ROWS: &[&str] = &[
    "UDP, ICMP, other protocols",
    "uid/gid 1337",
    "workload's own loopback",
    "special addresses",
    "sniff time-out",
    "ALLOW_ANY, unclaimed",
    "address-less TCP or unset protocol",
    "TLS entry with a plain IP",
    "TLS without SNI",
    "NONE, or loadBalancer PASSTHROUGH",
    "IP:port of a sniffed entry",
    "port in Host",
    "absolute URI differing from Host",
    "IP literal as Host",
    "`*foo.com`",
    "trailing dot",
    "wildcard with DNS",
    "longest prefix lacks this SNI",
    "resolver failure",
    "resolved address in special ranges",
    "CONNECT",
    "origination: name check, missing secret",
    "retries",
    "`x-envoy-upstream-rq-timeout-ms`",
    "same policy, other entries on the port",
    "TEXT log escaping",
    "Host as metric label",
    "bypassed flows in the log",
    "refusals",
];

fn scenarios(of: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/scenarios").join(of)
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

#[test]
fn every_row_of_the_profiles_has_a_case() {
    let mut named = BTreeSet::new();
    for file in std::fs::read_dir(scenarios("strict")).unwrap() {
        let text = std::fs::read_to_string(file.unwrap().path()).unwrap();
        let reasons =
            text.lines().filter_map(|line| line.trim().strip_prefix("expectStrictReason: "));
        named.extend(reasons.map(|reason| reason.trim_matches('\'').to_owned()));
    }
    let rows: BTreeSet<String> = ROWS.iter().map(|row| (*row).to_owned()).collect();
    assert_eq!(named, rows);
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
