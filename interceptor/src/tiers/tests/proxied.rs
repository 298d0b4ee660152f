//! What stays the proxy's, and why.

use super::*;

#[test]
fn where_names_do_not_decide_alone_it_is_the_proxys() {
    let known: &[(&str, &[&str])] = &[("a.test", &["192.0.2.1"])];
    let tls = entry("a", &format!("hosts: [a.test], {TLS}, resolution: DNS"));
    let open = snapshot(&tls, Enforcement::Strict, Outbound::AllowAny);
    assert_eq!(rows(&open, &book(known)), [""; 0], "any name passes");
    for (what, more) in [
        (
            "HTTP on the port",
            entry(
                "h",
                "hosts: [h.test], ports: [{number: 443, name: h, protocol: HTTP}], resolution: DNS",
            ),
        ),
        (
            "no protocol",
            entry("h", "hosts: [h.test], ports: [{number: 443, name: h}], resolution: DNS"),
        ),
        (
            "opaque names",
            entry(
                "h",
                "hosts: [h.test], ports: [{number: 443, name: h, protocol: TCP}], resolution: DNS",
            ),
        ),
    ] {
        assert_eq!(strict(&format!("{tls}{more}"), known), [""; 0], "{what}");
    }
}

/// T-26: the kernel reads what a hello offers, but refuses none for it.
#[test]
fn t_26_where_encrypted_client_hello_is_forbidden_it_is_the_proxys() {
    let known: &[(&str, &[&str])] = &[("a.test", &["192.0.2.1"])];
    let spec = format!("hosts: [a.test], {TLS}, resolution: DNS");
    let yaml = entry("a, annotations: {egress.interceptor.io/ech: forbid}", &spec);
    assert_eq!(strict(&yaml, known), [""; 0]);
    assert_eq!(strict(&yaml.replace("forbid", "allow"), known), ["443 192.0.2.1/32 named a.test"]);
    assert_eq!(why(&yaml, known, Outbound::RegistryOnly, "192.0.2.1:443"), "bytes");
}

#[test]
fn what_is_the_proxys_says_why() {
    use Outbound::{AllowAny, RegistryOnly};
    let known: &[(&str, &[&str])] = &[("a.test", &["192.0.2.1"]), ("b.test", &["192.0.2.1"])];
    let tls = entry("a", &format!("hosts: [a.test], {TLS}, resolution: DNS"));
    let port =
        |port: &str| entry("a", &format!("hosts: [a.test], ports: [{{{port}}}], resolution: DNS"));
    let more = |kind: &str, spec: &str| {
        format!(
            "{tls}---\napiVersion: networking.istio.io/v1\nkind: {kind}\nmetadata: {{name: d}}\nspec: {{{spec}}}\n"
        )
    };
    let split = "hosts: [a.test], tls: [{match: [{sniHosts: [a.test]}], route: [{destination: {host: a.test}, weight: 1}, {destination: {host: b.test}, weight: 1}]}]";
    let wildcard = entry("w", &format!("hosts: ['*.w.test'], {TLS}, resolution: DNS"));
    let fixed = entry(
        "s",
        &format!(
            "hosts: [s.test], addresses: [10.1.0.0/16], {TLS}, resolution: STATIC, endpoints: [{{address: 10.2.0.1}}]"
        ),
    );
    let claims = port("number: 443, name: t, protocol: TCP");
    let (at, away) = ("192.0.2.1:443", "192.0.2.9:443");
    for (yaml, mode, dst, expected) in [
        (tls.clone(), RegistryOnly, away, "name_not_resolved"),
        (wildcard.clone(), RegistryOnly, at, "wildcard"),
        (format!("{tls}{wildcard}"), RegistryOnly, away, "name_not_resolved"),
        (tls.clone(), RegistryOnly, "192.0.2.1:80", "nothing_allowed"),
        (port("number: 443, name: h, protocol: HTTP"), RegistryOnly, at, "http"),
        (tls.clone(), AllowAny, at, "bytes"),
        (
            port("number: 443, name: t, protocol: TLS, targetPort: 8443"),
            RegistryOnly,
            at,
            "target_port",
        ),
        (more("VirtualService", split), RegistryOnly, at, "virtual_service"),
        (
            more("DestinationRule", "host: a.test, trafficPolicy: {tls: {mode: SIMPLE}}"),
            RegistryOnly,
            at,
            "destination_rule",
        ),
        (fixed, RegistryOnly, "10.1.2.3:443", "endpoint"),
        (claims, RegistryOnly, away, "resolution"),
    ] {
        assert_eq!(why(&yaml, known, mode, dst), expected, "{yaml}");
    }
}

#[test]
fn what_is_carried_otherwise_is_the_proxys() {
    let known: &[(&str, &[&str])] = &[("a.test", &["192.0.2.1"]), ("b.test", &["192.0.2.1"])];
    let tls = entry("a", &format!("hosts: [a.test, b.test], {TLS}, resolution: DNS"));
    let rule = |policy: &str| {
        format!(
            "{tls}---\napiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {{name: d}}\n\
             spec: {{host: a.test, trafficPolicy: {{{policy}}}}}\n"
        )
    };
    for policy in [
        "tls: {mode: SIMPLE}",
        "connectionPool: {tcp: {maxConnections: 3}}",
        "connectionPool: {tcp: {tcpKeepalive: {time: 5s}}}",
        "outlierDetection: {consecutive5xxErrors: 3}",
        "loadBalancer: {simple: PASSTHROUGH}",
        "loadBalancer: {consistentHash: {useSourceIp: true}}",
        "proxyProtocol: {version: V2}",
        "tunnel: {targetHost: t.test, targetPort: 443}",
    ] {
        // The address is one of b.test too, but a.test's clients dial it as well.
        assert_eq!(strict(&rule(policy), known), [""; 0], "{policy}");
    }
    assert_eq!(
        strict(&rule("loadBalancer: {simple: ROUND_ROBIN}"), known),
        ["443 192.0.2.1/32 named a.test b.test"]
    );
}

#[test]
fn other_places_than_the_dialled_are_the_proxys() {
    let known: &[(&str, &[&str])] = &[("a.test", &["192.0.2.1"]), ("e.test", &["192.0.2.2"])];
    for (what, spec, expected) in [
        (
            "target port",
            "ports: [{number: 443, name: t, protocol: TLS, targetPort: 8443}], resolution: DNS",
            &[][..],
        ),
        (
            "named endpoint",
            &format!("{TLS}, resolution: DNS, endpoints: [{{address: e.test}}]"),
            &["443 192.0.2.2/32 named a.test"],
        ),
        (
            "static endpoint",
            &format!("{TLS}, resolution: STATIC, endpoints: [{{address: 192.0.2.7}}]"),
            &["443 192.0.2.7/32 named a.test"],
        ),
        (
            "two of them",
            &format!(
                "{TLS}, resolution: STATIC, endpoints: [{{address: 192.0.2.7}}, {{address: 192.0.2.8}}]"
            ),
            &[],
        ),
        ("virtual address", &format!("{TLS}, addresses: [10.9.0.1], resolution: DNS"), &[]),
        (
            "own addresses",
            &format!("{TLS}, addresses: [10.9.0.0/24], resolution: NONE"),
            &["443 10.9.0.0/24 named a.test"],
        ),
    ] {
        let yaml = entry("a", &format!("hosts: [a.test], {spec}"));
        assert_eq!(strict(&yaml, known), expected, "{what}");
    }
}
