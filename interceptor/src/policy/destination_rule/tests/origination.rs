//! TLS-5 to TLS-9 and GAP-18, in both profiles.

use std::path::PathBuf;

use super::*;
use crate::decide::traffic::{Identity, Origination, Trust, Verify};

/// The TLS for `service`, of one rule in the namespace `default`.
fn origination(
    tls: &str,
    more: &str,
    service: &ServicePort<'_>,
    profile: Enforcement,
) -> Option<Origination> {
    let host = service.host;
    let spec = format!("host: \"{host}\", trafficPolicy: {{tls: {{{tls}}}}}{more}");
    let rules = rules(&[rule("default/d", &spec)], profile);
    let labels = vec![("app".to_owned(), "x".to_owned())];
    let caller = Caller { namespace: "default".into(), labels };
    rules.lookup(&caller, service, None).traffic.tls.as_deref().cloned()
}

/// What is checked, and which names.
type Checked<'a> = (Verify, &'a [&'a str]);
/// TLS, kind, names of the entry, host; what istio checks, and what strict.
type Row<'a> = (&'a str, PortKind, &'a [String], &'a str, Checked<'a>, Checked<'a>);

#[test]
fn tls_5_to_tls_8_what_is_checked() {
    use PortKind::{Http1, Opaque, Sniffed};
    use Verify::{ChainAndName, ChainOnly, Impossible, Nothing};
    let (simple, sni) = ("mode: SIMPLE", "mode: SIMPLE, sni: s.com");
    let san = "mode: SIMPLE, subjectAltNames: [n.com]";
    let both = "mode: SIMPLE, sni: s.com, subjectAltNames: [n.com]";
    let skip = "mode: SIMPLE, insecureSkipVerify: true";
    let skip_sni = "mode: SIMPLE, insecureSkipVerify: true, sni: s.com";
    let entry = ["e.com".to_owned()];
    let rows: [Row<'_>; 18] = [
        (simple, Http1, &[], "a.com", (ChainAndName, &[]), (ChainAndName, &[])),
        (simple, Sniffed, &[], "a.com", (ChainAndName, &[]), (ChainAndName, &[])),
        (simple, Http1, &entry, "a.com", (ChainAndName, &["e.com"]), (ChainAndName, &["e.com"])),
        (san, Http1, &[], "a.com", (ChainAndName, &["n.com"]), (ChainAndName, &["n.com"])),
        (san, Http1, &entry, "a.com", (ChainAndName, &["n.com"]), (ChainAndName, &["n.com"])),
        (both, Http1, &[], "a.com", (ChainAndName, &["n.com"]), (ChainAndName, &["n.com"])),
        (sni, Http1, &entry, "a.com", (ChainAndName, &["e.com"]), (ChainAndName, &["e.com"])),
        (sni, Http1, &[], "a.com", (ChainOnly, &[]), (ChainAndName, &["s.com"])),
        (sni, Http1, &[], "*.a.com", (ChainOnly, &[]), (ChainAndName, &["s.com"])),
        (simple, Opaque, &[], "a.com", (ChainOnly, &[]), (ChainAndName, &["a.com"])),
        (simple, Opaque, &[], "*.a.com", (ChainOnly, &[]), (Impossible, &[])),
        (simple, Http1, &[], "*.a.com", (ChainAndName, &[]), (ChainAndName, &[])),
        (sni, Opaque, &[], "a.com", (ChainOnly, &[]), (ChainAndName, &["s.com"])),
        (sni, Opaque, &[], "*.a.com", (ChainOnly, &[]), (ChainAndName, &["s.com"])),
        (san, Opaque, &[], "*.a.com", (ChainAndName, &["n.com"]), (ChainAndName, &["n.com"])),
        (skip, Http1, &[], "a.com", (Nothing, &[]), (Nothing, &[])),
        (skip_sni, Http1, &[], "a.com", (Nothing, &[]), (Nothing, &[])),
        (skip, Opaque, &[], "*.a.com", (Nothing, &[]), (Nothing, &[])),
    ];
    for (tls, kind, entry, host, istio, strict) in rows {
        let service = ServicePort { kind, subject_alt_names: entry, ..port(host, 80) };
        for (profile, (verify, names)) in
            [(Enforcement::Istio, istio), (Enforcement::Strict, strict)]
        {
            let row = format!("{profile:?} {tls} {kind:?} {entry:?} {host}");
            let found = origination(tls, "", &service, profile).expect(&row);
            assert_eq!(
                (found.verify, found.subject_alt_names),
                (verify, names.iter().map(|&n| n.to_owned()).collect()),
                "{row}"
            );
            let expected = tls.contains("sni").then_some("s.com");
            assert_eq!(found.sni.as_deref(), expected, "{row}");
            assert_eq!((found.trust, found.identity), (Trust::System, None), "{row}");
        }
    }
}

#[test]
fn tls_6_and_tls_9_trust_identity_and_credentials() {
    let selected = ", workloadSelector: {matchLabels: {app: x}}";
    let secret = |name: &str| Some(Identity::Secret(name.into()));
    let system = || Origination::default();
    let files = Origination {
        trust: Trust::File(PathBuf::from("/ca.pem")),
        identity: Some(Identity::Files { certificate: "/c.pem".into(), key: "/k.pem".into() }),
        crl: Some(PathBuf::from("/crl.pem")),
        ..system()
    };
    let impossible = Some(Origination { verify: Verify::Impossible, ..system() });
    let of_secret =
        |identity| Some(Origination { trust: Trust::Secret("c".into()), identity, ..system() });
    let config_map = Origination { trust: Trust::Secret("configmap://c".into()), ..system() };
    for (tls, more, istio, strict) in [
        ("mode: DISABLE", "", None, None),
        ("mode: DISABLE, credentialName: c", "", None, None),
        ("mode: SIMPLE", "", Some(system()), Some(system())),
        (
            "mode: MUTUAL, clientCertificate: /c.pem, privateKey: /k.pem, caCertificates: /ca.pem, caCrl: /crl.pem",
            "",
            Some(files.clone()),
            Some(files),
        ),
        // SIMPLE shows no certificate even where the rule has one.
        (
            "mode: SIMPLE, clientCertificate: /c.pem, privateKey: /k.pem",
            "",
            Some(system()),
            Some(system()),
        ),
        (
            "mode: MUTUAL, credentialName: c",
            selected,
            of_secret(secret("c")),
            of_secret(secret("c")),
        ),
        ("mode: SIMPLE, credentialName: c", selected, of_secret(None), of_secret(None)),
        (
            "mode: SIMPLE, credentialName: 'configmap://c'",
            "",
            Some(config_map.clone()),
            Some(config_map),
        ),
        // Out of a sidecar's reach: plaintext in istio, never in strict.
        ("mode: SIMPLE, credentialName: c", "", None, impossible.clone()),
        ("mode: MUTUAL, credentialName: c", "", None, impossible.clone()),
        ("mode: ISTIO_MUTUAL", "", impossible.clone(), impossible.clone()),
    ] {
        let service = port("a.com", 80);
        let found = origination(tls, more, &service, Enforcement::Istio);
        assert_eq!(found, istio, "istio {tls} {more}");
        let found = origination(tls, more, &service, Enforcement::Strict);
        assert_eq!(found, strict, "strict {tls} {more}");
    }
}

#[test]
fn gap_18_strict_says_at_load_what_it_will_refuse() {
    for (tls, more, expected) in [
        ("mode: SIMPLE, credentialName: c", "", true),
        ("mode: ISTIO_MUTUAL", "", true),
        ("mode: SIMPLE, credentialName: c", ", workloadSelector: {matchLabels: {app: x}}", false),
        ("mode: SIMPLE", "", false),
    ] {
        let spec = format!(
            "host: a.com, trafficPolicy: {{portLevelSettings: [{{port: {{number: 80}}, tls: {{{tls}}}}}]}}{more}"
        );
        for (profile, expected) in [(Enforcement::Strict, expected), (Enforcement::Istio, false)] {
            let (rules, mut out) = read(&rule("default/d", &spec));
            let defaults =
                Defaults { root_namespace: "r".into(), export_to: vec!["*".into()], profile };
            Rules::new(rules, defaults, &mut out);
            let said = out.warnings.iter().any(|w| w.message.contains("never sent in plaintext"));
            assert_eq!(said, expected, "{profile:?} {tls}");
        }
    }
}

#[test]
fn gap_18_a_rule_for_the_plain_port_that_also_wraps_tls() {
    let ports = [(80, false), (443, true)];
    for (policy, ports, expected) in [
        ("tls: {mode: SIMPLE}", &ports[..], true),
        ("tls: {mode: DISABLE}", &ports, false),
        ("portLevelSettings: [{port: {number: 80}, tls: {mode: SIMPLE}}]", &ports, false),
        (
            "tls: {mode: SIMPLE}, portLevelSettings: [{port: {number: 443}, tls: {mode: DISABLE}}]",
            &ports,
            false,
        ),
        ("tls: {mode: SIMPLE}", &ports[..1], false),
        ("tls: {mode: SIMPLE}", &ports[1..], false),
    ] {
        let spec = format!("host: a.com, trafficPolicy: {{{policy}}}");
        let rules = rules(&[rule("default/d", &spec)], Enforcement::Istio);
        let notice = rules.double_tls(&CALLER, "a.com", "shared", ports);
        assert_eq!(notice.is_some(), expected, "{policy} {ports:?}");
        if let Some(notice) = notice {
            assert_eq!(notice.path, "spec.trafficPolicy.tls");
            assert!(notice.message.contains("also applies to port 443 of a.com"), "{notice}");
        }
    }
}
