//! Whole questions against files, as the program asks them.

use clap::ValueEnum as _;
use proptest::prelude::*;
use tempfile::TempDir;

use super::*;
use crate::policy::Outbound;

/// A document of Istio's networking API, in the namespace default.
fn resource(kind: &str, name: &str, spec: &str) -> String {
    format!(
        "---\napiVersion: networking.istio.io/v1\nkind: {kind}\n\
         metadata: {{name: {name}, namespace: default}}\nspec: {spec}\n"
    )
}

fn entry(name: &str, spec: &str) -> String {
    resource("ServiceEntry", name, spec)
}

/// Entries of each sort: by name, by wildcard, by address.
fn registry() -> String {
    [
        entry(
            "google",
            "{hosts: [www.google.com], ports: [{number: 443, name: tls, protocol: TLS}], \
             resolution: DNS}",
        ),
        entry(
            "wiki",
            "{hosts: ['*.wikipedia.org'], ports: [{number: 80, name: http, protocol: HTTP}]}",
        ),
        entry(
            "db",
            "{hosts: [db.example.com], addresses: [10.1.0.0/16], \
             ports: [{number: 5432, name: tcp, protocol: TCP}]}",
        ),
    ]
    .concat()
}

struct Files {
    dir: TempDir,
}

impl Files {
    fn of(text: &str) -> Self {
        let files = Self { dir: TempDir::new().expect("a directory") };
        files.add("a.yaml", text);
        files
    }

    fn add(&self, name: &str, text: &str) {
        std::fs::write(self.dir.path().join(name), text).expect("written");
    }

    fn setting(&self, enforcement: Enforcement, outbound: Outbound) -> Setting {
        Setting {
            sources: Sources {
                files: vec![self.dir.path().to_owned()],
                outbound: Some(outbound),
                enforcement: Some(enforcement),
                ..Sources::default()
            },
            caller: crate::policy::Caller::new("default"),
            bypass: vec!["198.18.0.0/15".parse().expect("a network")],
            resolvers: None,
        }
    }

    fn ask(
        &self,
        profile: Enforcement,
        mode: Outbound,
        target: &str,
        dst: Option<&str>,
    ) -> Explanation {
        let question = Question::parse(target, dst).expect("a question");
        ask(&self.setting(profile, mode), &question)
    }
}

fn ask(setting: &Setting, question: &Question) -> Explanation {
    tokio::runtime::Builder::new_current_thread()
        .build()
        .expect("a runtime")
        .block_on(explain(setting, question))
        .expect("it loads")
}

use Enforcement::{Istio, Strict};
use Outbound::RegistryOnly;

/// The tier, in text and JSON, and why it is the proxy's.
#[test]
fn the_tier_is_named_and_why_it_is_the_proxys() {
    let files = Files::of(&registry());
    for (fast_path, target, dst, tier, why) in [
        (true, "https://www.google.com", None, "name", None),
        // Names decide, and nobody knows that this address is one of the name's.
        (true, "https://www.google.com", Some("192.0.2.7"), "proxy", Some("name_not_resolved")),
        (true, "http://de.wikipedia.org/x", None, "proxy", Some("http")),
        (true, "tcp://db.example.com:5432", Some("10.1.2.3"), "direct", None),
        (true, "tcp://x.test:9", Some("192.0.2.7"), "proxy", Some("nothing_allowed")),
        (true, "http://m/", Some("169.254.169.254"), "refused", None),
        (true, "http://x.org/", Some("198.18.0.1"), "bypass", None),
        (false, "https://www.google.com", None, "proxy", Some("fast_path_off")),
    ] {
        let mut setting = files.setting(Strict, RegistryOnly);
        setting.sources.fast_path = Some(fast_path);
        let question = Question::parse(target, dst).expect("a question");
        let explained = ask(&setting, &question);
        assert_eq!((explained.way.tier, explained.way.why), (tier, why), "{target} {dst:?}");
        let json: serde_json::Value =
            serde_json::from_str(&explained.to_json().expect("JSON")).expect("JSON");
        assert_eq!((json["tier"].as_str(), json["why"].as_str()), (Some(tier), why), "{target}");
        let text = explained.to_string();
        let shown = why.map_or(format!("tier         {tier}:"), |why| format!("{tier} ({why}):"));
        assert!(text.contains(&shown), "{text}");
    }
}

/// Profile, mode, target and dialled address; verdict, cluster, route and upstream. Without: `-`.
const VERDICTS: [&str; 12] = [
    "strict registry-only https://www.google.com    -           forward     outbound|443||www.google.com  -         www.google.com:443",
    "istio  registry-only https://www.google.com    -           forward     outbound|443||www.google.com  -         www.google.com:443",
    "strict registry-only https://www.gogle.com     -           reset       BlackHoleCluster              -         -",
    "strict allow-any     https://www.gogle.com     -           forward     PassthroughCluster            -         IP:443",
    "strict registry-only http://de.wikipedia.org/x -           forward     outbound|80||*.wikipedia.org  default   IP:80",
    "istio  registry-only http://wikipedia.org/     -           local_reply -                             block_all -",
    "istio  allow-any     http://other.org/         192.0.2.9   forward     PassthroughCluster            allow_any 192.0.2.9:80",
    "strict registry-only tcp://db.example.com:5432 10.1.2.3    forward     outbound|5432||db.example.com -         10.1.2.3:5432",
    "strict registry-only tcp://db.example.com:5432 -           reset       BlackHoleCluster              -         -",
    "strict registry-only http://x.org/             198.18.0.1  bypass      BypassCluster                 -         198.18.0.1:80",
    "istio  registry-only http://x.org/             198.18.0.1  bypass      -                             -         198.18.0.1:80",
    "strict registry-only http://localhost:8080/    127.0.0.1   bypass      -                             -         127.0.0.1:8080",
];

/// Verdict, cluster, route, upstream: what the daemon does with the same connection.
#[test]
fn verdicts_in_both_profiles_and_modes() {
    let files = Files::of(&registry());
    for line in VERDICTS {
        let words: Vec<&str> = line.split_whitespace().collect();
        let [profile, mode, target, dst, expected @ ..] = &*words else { panic!("{line}") };
        let profile = Enforcement::from_str(profile, false).expect(line);
        let mode = Outbound::from_str(mode, false).expect(line);
        let got = files.ask(profile, mode, target, Some(*dst).filter(|dst| *dst != "-"));
        let outcome = &got.outcome;
        let upstreams = match &*outcome.upstreams {
            [] => "-".to_owned(),
            upstreams => upstreams.join(","),
        };
        let expect = &outcome.expect;
        assert_eq!(
            [expect.verdict, &*expect.cluster, &*expect.route, &*upstreams],
            *expected,
            "{line}\n{got}"
        );
        assert_eq!(outcome.allowed, matches!(expect.verdict, "forward" | "bypass"), "{line}");
    }
}

/// Each candidate says why it lost.
#[test]
fn candidates_and_why_each_lost() {
    let files = Files::of(&registry());
    let exact = entry(
        "exact",
        "{hosts: [de.wikipedia.org], ports: [{number: 80, name: http, protocol: HTTP}, \
         {number: 8443, name: tls, protocol: TLS}]}",
    );
    files.add("b.yaml", &exact);
    let got = files.ask(Strict, RegistryOnly, "http://de.wikipedia.org/", None);
    let listed: Vec<_> = got
        .candidates
        .iter()
        .map(|one| (one.resource.as_str(), one.offers.as_str(), one.chosen, one.because.as_str()))
        .collect();
    assert_eq!(
        listed,
        [
            (
                "ServiceEntry default/exact",
                "de.wikipedia.org:80 (HTTP)",
                true,
                "its host is the name asked for"
            ),
            (
                "ServiceEntry default/exact",
                "de.wikipedia.org:8443 (TLS)",
                false,
                "it is for port 8443, not 80"
            ),
            (
                "ServiceEntry default/wiki",
                "*.wikipedia.org:80 (HTTP)",
                false,
                "de.wikipedia.org is exact and goes first (HTTP-2)"
            ),
        ]
    );
    let got = files.ask(Strict, RegistryOnly, "tls://de.wikipedia.org:80", None);
    assert_eq!(got.candidates[1].because, "it is for port 8443, not 80");
    assert_eq!(got.candidates[2].because, "it declares HTTP, and the client sends TLS");
    let got = files.ask(Strict, RegistryOnly, "tcp://db.example.com:5432", Some("10.2.0.1"));
    assert_eq!(got.candidates[0].because, "its addresses do not hold the dialled one");
}

/// A VirtualService decides in its own name: what its route does shows, and what it answers itself
/// is nobody's traffic (VS-25, VS-26).
#[test]
fn routes_of_a_virtual_service() {
    let files = Files::of(&registry());
    let route = resource(
        "VirtualService",
        "route",
        "
  hosts: [de.wikipedia.org]
  http:
  - match: [{uri: {prefix: /teapot}}]
    directResponse: {status: 418}
  - name: primary
    rewrite: {uri: /new}
    route: [{destination: {host: '*.wikipedia.org'}}]",
    );
    let host = entry(
        "de",
        "{hosts: [de.wikipedia.org], ports: [{number: 80, name: http, protocol: HTTP}]}",
    );
    files.add("b.yaml", &format!("{route}{host}"));
    let got = files.ask(Istio, RegistryOnly, "http://de.wikipedia.org/teapot", None);
    assert_eq!((got.outcome.expect.verdict, got.outcome.expect.status), ("local_reply", Some(418)));
    assert_eq!(got.rule.as_deref(), Some("VirtualService default/route"), "{got}");
    assert_eq!(got.candidates[0].because, "VirtualService default/route decides in its place");
    assert!(got.outcome.allowed && got.would_allow.is_none(), "{got}");
    let got = files.ask(Istio, RegistryOnly, "http://de.wikipedia.org/x", None);
    assert_eq!(got.outcome.expect.route, "primary", "{got}");
}

/// A refusal names what came nearest.
#[test]
fn nearest_resource() {
    let files = Files::of(&registry());
    for (target, dst, name, hint) in [
        ("https://www.gogle.com", None, "google", "did you mean www.google.com?"),
        (
            "https://maps.google.com",
            None,
            "google",
            "www.google.com is a sibling; *.google.com would cover both",
        ),
        (
            "http://www.google.com",
            None,
            "google",
            "it names www.google.com for port 443; add port 80",
        ),
        (
            "http://wikipedia.org",
            None,
            "wiki",
            "*.wikipedia.org covers the names below wikipedia.org, not wikipedia.org itself; add it",
        ),
        ("tcp://10.1.0.1:5433", None, "db", "it names 10.1.0.1 for port 5432; add port 5433"),
        (
            "tcp://db.example.com:5432",
            Some("10.2.0.1"),
            "db",
            "it names host and port, but its addresses do not hold the dialled one",
        ),
    ] {
        let got = files.ask(Strict, RegistryOnly, target, dst);
        let nearest = got.nearest.as_ref().unwrap_or_else(|| panic!("{target}\n{got}"));
        assert_eq!(nearest.resource, format!("ServiceEntry default/{name}"), "{target}");
        assert_eq!(nearest.hint, hint, "{target}");
    }
    assert_eq!(files.ask(Strict, RegistryOnly, "https://unrelated.test", None).nearest, None);
    assert_eq!(files.ask(Strict, RegistryOnly, "https://www.google.com", None).nearest, None);
}

/// Where the same host and port are declared otherwise, no further entry helps, and it says so.
#[test]
fn no_entry_beside_a_wrong_one() {
    let files = Files::of(&registry());
    let got = files.ask(Strict, RegistryOnly, "http://www.google.com:443/", None);
    assert_eq!((got.outcome.allowed, got.would_allow.clone()), (false, None), "{got}");
    let nearest = got.nearest.expect("the entry itself");
    assert!(nearest.hint.contains("correct the protocol"), "{}", nearest.hint);
}

/// The log line is the writer's own, with words where values vary.
#[test]
fn log_line_and_json() {
    let files = Files::of(&registry());
    let got = files.ask(Strict, RegistryOnly, "https://www.gogle.com", None);
    assert_eq!(
        got.outcome.log.as_deref(),
        Some(
            "[TIME] \"- - -\" 0 UH - not_registered \"-\" 0 0 0 - \"-\" \"-\" \"-\" \"-\" \"-\" \
             BlackHoleCluster - IP:443 IP:PORT www.gogle.com -"
        )
    );
    let got = files.ask(Istio, RegistryOnly, "http://www.google.com/a", Some("192.0.2.9"));
    assert_eq!(
        got.outcome.log.as_deref(),
        Some(
            "[TIME] \"GET /a HTTP/1.1\" 502 - direct_response - \"-\" 0 0 0 - \"-\" \"-\" \"ID\" \
             \"www.google.com\" \"-\" - - 192.0.2.9:80 IP:PORT - block_all"
        )
    );
    let json: serde_json::Value =
        serde_json::from_str(&got.to_json().expect("JSON")).expect("valid JSON");
    assert_eq!(json["expect"]["verdict"], "local_reply");
    assert_eq!(json["expect"]["status"], 502);
    assert_eq!(json["expect"]["details"], "direct_response");
    assert_eq!(json["expect"]["cluster"], "-");
    assert_eq!(json["flow"]["http"]["host"], "www.google.com");
    assert_eq!(json["flow"]["dst"], "192.0.2.9:80");
}

fn protocol() -> impl Strategy<Value = &'static str> {
    prop::sample::select(vec!["HTTP", "TLS", "TCP", "HTTPS", ""])
}

fn host() -> impl Strategy<Value = &'static str> {
    prop::sample::select(vec![
        "a.example.com",
        "*.example.com",
        "example.com",
        "b.example.com",
        "c.other.net",
    ])
}

fn any_entry() -> impl Strategy<Value = String> {
    let address = prop::sample::select(vec!["", "192.0.2.7", "192.0.2.0/24"]);
    let port = prop::sample::select(vec![80, 443, 5000]);
    let resolution = prop::sample::select(vec!["NONE", "DNS"]);
    let namespace = prop::sample::select(vec!["default", "other"]);
    (host(), address, port, protocol(), resolution, namespace).prop_map(
        |(host, address, port, protocol, resolution, namespace)| {
            let addresses = if address.is_empty() {
                String::new()
            } else {
                format!("  addresses: [{address}]\n")
            };
            let protocol =
                if protocol.is_empty() { String::new() } else { format!(", protocol: {protocol}") };
            format!(
                "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {{name: NAME, \
                 namespace: {namespace}}}\nspec:\n  hosts: ['{host}']\n{addresses}  ports:\n  - \
                 {{number: {port}, name: p{protocol}}}\n  resolution: {resolution}\n"
            )
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(192))]

    /// What is suggested loads, by itself and beside the rest, and makes the refusal an allow.
    #[test]
    fn what_is_suggested_allows(
        entries in prop::collection::vec(any_entry(), 0..4),
        scheme in prop::sample::select(vec!["http", "https", "h2c", "tcp", "server-first"]),
        name in prop::sample::select(vec!["a.example.com", "example.com", "x.y.test", "192.0.2.7", "169.254.169.254"]),
        port in prop::sample::select(vec![80u16, 443, 5000]),
        dst in prop::sample::select(vec![None, Some("192.0.2.7"), Some("203.0.113.5")]),
        strict in any::<bool>(),
    ) {
        let text: Vec<_> = entries
            .iter()
            .enumerate()
            .map(|(i, text)| text.replace("NAME", &format!("entry-{i}")))
            .collect();
        let files = Files::of(&text.join("---\n"));
        let dst = dst.filter(|_| !name.starts_with(char::is_numeric));
        let target = format!("{scheme}://{name}:{port}");
        let profile = if strict { Strict } else { Istio };
        let before = files.ask(profile, RegistryOnly, &target, dst);
        prop_assert!(before.outcome.allowed || before.would_allow.is_some() || before.nearest.is_some()
            || !before.candidates.is_empty() || !entries.is_empty(), "{}", before);
        if let Some(yaml) = &before.would_allow {
            prop_assert!(!before.outcome.allowed);
            files.add("suggested.yaml", yaml);
            let after = files.ask(profile, RegistryOnly, &target, dst);
            prop_assert!(after.outcome.allowed, "{}\n{}", before, after);
            prop_assert_eq!(after.outcome.expect.verdict, "forward");
        } else if entries.is_empty() {
            prop_assert!(before.outcome.allowed, "an empty registry can always be added to: {}", before);
        }
    }
}
