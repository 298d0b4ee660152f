//! Tables as text: resources as YAML, addresses of names, and what the kernel is told.

use std::net::IpAddr;
use std::time::Instant;

use super::compile::compile;
use super::{AddressBook, Row, Survey};
use crate::decide::host::HostName;
use crate::policy::{Caller, Enforcement, Outbound, Snapshot, Sources, load};

fn snapshot(yaml: &str, profile: Enforcement, outbound: Outbound) -> Snapshot {
    let sources = Sources {
        texts: vec![("p.yaml".into(), yaml.to_owned())],
        outbound: Some(outbound),
        enforcement: Some(profile),
        ..Sources::default()
    };
    let loaded =
        load(&sources, &Caller::new("default")).unwrap_or_else(|errors| panic!("{errors}"));
    assert!(loaded.rejected.is_empty(), "{:?}", loaded.rejected);
    loaded.snapshot
}

fn entry(name: &str, spec: &str) -> String {
    format!(
        "---\napiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {{name: {name}}}\n\
         spec: {{{spec}}}\n"
    )
}

fn book(names: &[(&str, &[&str])]) -> AddressBook {
    let mut book = AddressBook::default();
    for (name, addresses) in names {
        let name = HostName::parse(name).expect("a name");
        let addresses: Vec<IpAddr> =
            addresses.iter().map(|ip| ip.parse().expect("an address")).collect();
        book.update([(&name, &*addresses)], Instant::now());
    }
    book
}

/// Each row as `PORT NETWORK what`, without those for every port.
fn rows(snapshot: &Snapshot, book: &AddressBook) -> Vec<String> {
    let compiled = compile(snapshot, "default", &Survey::of(&snapshot.policy), book);
    let of_ports = compiled.rows.iter().filter(|((port, _), _)| *port != 0);
    of_ports.map(|((port, network), row)| format!("{port} {network} {}", show(row))).collect()
}

fn show(row: &Row) -> String {
    match row {
        Row::Proxy => "proxy".into(),
        Row::Refused(reason) => format!("refused {}", reason.label()),
        Row::Direct(label) => format!("direct {}", label.cluster.as_deref().unwrap_or("-")),
        Row::Named(set) => {
            let names = set.0.iter().map(|(pattern, label)| {
                let below = if pattern.below { "*." } else { "" };
                let not = if label.is_some() { "" } else { "!" };
                format!("{not}{below}{}", pattern.name)
            });
            format!("named {}", names.collect::<Vec<_>>().join(" "))
        }
    }
}

fn strict(yaml: &str, names: &[(&str, &[&str])]) -> Vec<String> {
    rows(&snapshot(yaml, Enforcement::Strict, Outbound::RegistryOnly), &book(names))
}

const TLS: &str = "ports: [{number: 443, name: tls, protocol: TLS}]";

#[test]
fn r3_a_dns_entrys_name_is_asked_for_at_its_own_addresses() {
    let yaml = entry("a", &format!("hosts: [a.test, b.test], {TLS}, resolution: DNS"));
    assert_eq!(
        strict(
            &yaml,
            &[
                ("a.test", &["192.0.2.1", "2001:db8::1", "192.0.2.9"]),
                ("b.test", &["192.0.2.2", "192.0.2.9"]),
                ("other.test", &["192.0.2.3"]),
            ]
        ),
        [
            "443 192.0.2.1/32 named a.test",
            "443 192.0.2.2/32 named b.test",
            "443 192.0.2.9/32 named a.test b.test",
            "443 2001:db8::1/128 named a.test",
        ]
    );
}

#[test]
fn t_13_and_t_40_special_addresses_of_names_are_refused() {
    let yaml = entry("a", &format!("hosts: [a.test], {TLS}, resolution: DNS"));
    assert_eq!(
        strict(&yaml, &[("a.test", &["169.254.1.1", "127.0.0.1"])]),
        ["443 127.0.0.1/32 refused special_address", "443 169.254.1.1/32 refused special_address"]
    );
}

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

#[test]
fn t_22_wildcards_are_asked_for_by_concrete_name_or_in_their_networks() {
    let yaml = entry("w", &format!("hosts: ['*.w.test'], {TLS}, resolution: DNS"));
    assert_eq!(
        strict(&yaml, &[("x.w.test", &["192.0.2.1"]), ("w.test", &["192.0.2.2"])]),
        ["443 192.0.2.1/32 named x.w.test"]
    );
    let given = entry(
        "w",
        &format!("hosts: ['*.w.test'], {TLS}, addresses: [10.9.0.0/16], resolution: NONE"),
    );
    let narrower = entry("n", &format!("hosts: [n.w.test, '*.m.w.test'], {TLS}, resolution: DNS"));
    assert_eq!(
        strict(&format!("{given}{narrower}"), &[("n.w.test", &["192.0.2.1"])]),
        [
            // LIS-6: there the wildcard's network counts for more than the narrower names.
            "443 10.9.0.0/16 named *.m.w.test n.w.test *.w.test",
            "443 192.0.2.1/32 named n.w.test",
        ]
    );
}

#[test]
fn lis_6_opaque_entries_go_direct_by_the_longest_network() {
    let tcp = |name: &str, addresses: &str| {
        entry(
            name,
            &format!(
                "hosts: [{name}.test], addresses: [{addresses}], \
            ports: [{{number: 5432, name: t, protocol: TCP}}], resolution: NONE"
            ),
        )
    };
    let tls = entry(
        "t",
        "hosts: [t.test], addresses: [10.1.2.0/24], ports: [{number: 5432, name: t, protocol: TLS}], resolution: NONE",
    );
    let fixed = entry(
        "s",
        "hosts: [s.test], addresses: [10.1.3.0/24], ports: [{number: 5432, name: t, protocol: TCP}], resolution: STATIC, endpoints: [{address: 10.7.7.7}]",
    );
    let yaml = [tcp("a", "10.0.0.0/8"), tcp("b", "10.1.0.0/16"), tls, fixed].concat();
    assert_eq!(
        strict(&yaml, &[]),
        [
            "5432 10.0.0.0/8 direct outbound|5432||a.test",
            "5432 10.1.0.0/16 direct outbound|5432||b.test",
            "5432 10.1.2.0/24 proxy",
            "5432 10.1.3.0/24 proxy",
            "5432 10.7.7.7/32 direct outbound|5432||a.test",
        ]
    );
}

#[test]
fn t_13_special_addresses_are_refused_on_every_port() {
    let listed = entry(
        "l",
        "hosts: [l.test], addresses: [169.254.5.5], ports: [{number: 80, name: t, protocol: TCP}], resolution: NONE",
    );
    let snapshot = snapshot(&listed, Enforcement::Strict, Outbound::RegistryOnly);
    let compiled = compile(&snapshot, "default", &Survey::of(&snapshot.policy), &book(&[]));
    let shown: Vec<String> = compiled
        .rows
        .iter()
        .map(|((port, network), row)| format!("{port} {network} {}", show(row)))
        .collect();
    assert!(shown.contains(&"0 169.254.0.0/16 refused special_address".into()), "{shown:?}");
    assert!(shown.contains(&"80 169.254.5.5/32 direct outbound|80||l.test".into()), "{shown:?}");
}
