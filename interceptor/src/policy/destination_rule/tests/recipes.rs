//! Whole recipes of entry and rule, from YAML to what the cluster does (TLS-2, TLS-11, TLS-17, GW-20,
//! GW-21).

use super::super::super::parts::Known;
use super::*;
use crate::decide::traffic::{Trust, Tunnel, UpstreamProtocol, Verify};

/// What `text`'s rules say of one port of its only entry.
fn lookup(text: &str, number: u16, subset: Option<&str>, profile: Enforcement) -> Lookup {
    let mut out = Findings::default();
    let mut resources = Resources::default();
    resources.read(&Arc::from(std::path::Path::new("p.yaml")), text, &mut out);
    let written = resources.service_entries.remove(0);
    let entry = written.check(profile, &mut Known::new(), &mut out).expect("valid");
    assert!(out.errors.is_empty() && out.rejected.is_empty(), "{out:?}");
    let defaults =
        Defaults { root_namespace: "istio-system".into(), export_to: vec!["*".into()], profile };
    let rules = Rules::new(resources.destination_rules, defaults, &mut out);
    let host = entry.hosts[0].to_string();
    let port = entry.ports.iter().find(|port| port.number == number).expect("the port");
    rules.lookup(&CALLER, &ServicePort::of(&entry, &host, port), subset)
}

fn entry(spec: &str) -> String {
    format!(
        "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\n\
         metadata: {{name: e, namespace: shared}}\nspec: {{{spec}, resolution: DNS}}\n"
    )
}

#[test]
fn tls_2_tls_7_and_tls_17_http_on_80_becomes_tls_and_443_stays_as_it_is() {
    let entry = entry(
        "hosts: [edition.cnn.com], subjectAltNames: [cnn.com], ports: [\
         {number: 80, name: http-port, protocol: HTTP, targetPort: 443}, \
         {number: 443, name: https-port, protocol: HTTPS}]",
    );
    let rule = rule(
        "default/d",
        "host: edition.cnn.com, trafficPolicy: {portLevelSettings: [{port: {number: 80}, tls: {mode: SIMPLE}}]}",
    );
    for profile in [Enforcement::Istio, Enforcement::Strict] {
        let on_80 = lookup(&format!("{entry}{rule}"), 80, None, profile);
        let tls = on_80.traffic.tls.as_deref().expect("TLS");
        assert_eq!((&tls.trust, tls.verify), (&Trust::System, Verify::ChainAndName));
        assert_eq!(
            (tls.sni.as_deref(), &tls.subject_alt_names[..]),
            (None, &["cnn.com".into()][..])
        );
        assert_eq!(on_80.traffic.protocol, UpstreamProtocol::Http1);
        assert_eq!(on_80.rule.expect("a rule").to_string(), "DestinationRule default/d");
        let on_443 = lookup(&format!("{entry}{rule}"), 443, None, profile);
        assert_eq!(on_443.traffic.tls, None);
    }
}

#[test]
fn gw_20_and_gw_21_a_tunnel_speaks_as_the_proxy_s_port_does() {
    let rule = rule(
        "default/proxy",
        "host: proxy.example.com, subsets: [{name: tls, trafficPolicy: {\
         tunnel: {targetHost: external.example.com, targetPort: 443, protocol: CONNECT}, \
         tls: {mode: SIMPLE, insecureSkipVerify: true}}}]",
    );
    for (protocol, expected) in [
        ("HTTP", UpstreamProtocol::Http1),
        ("HTTP2", UpstreamProtocol::Http2),
        ("grpc", UpstreamProtocol::Http2),
        ("TCP", UpstreamProtocol::Http1),
    ] {
        let ports = format!("ports: [{{number: 6128, name: proxy, protocol: {protocol}}}]");
        let text = entry(&format!("hosts: [proxy.example.com], {ports}")) + &rule;
        let found = lookup(&text, 6128, Some("tls"), Enforcement::Istio);
        let tunnel = Tunnel { post: false, host: "external.example.com".into(), port: 443 };
        assert_eq!(found.traffic.tunnel, Some(tunnel), "{protocol}");
        assert_eq!(found.traffic.protocol, expected, "{protocol}");
        assert_eq!(found.traffic.tls.as_deref().map(|tls| tls.verify), Some(Verify::Nothing));
        let plain = lookup(&text, 6128, None, Enforcement::Istio);
        assert_eq!((&plain.traffic.tunnel, &plain.traffic.tls), (&None, &None), "{protocol}");
    }
}
