//! Tables as text: resources as YAML, addresses of names, and what the kernel is told.

mod doors;
mod proxied;

use std::net::IpAddr;
use std::time::{Duration, Instant};

use super::compile::compile;
use super::{AddressBook, Row, Survey};
use crate::decide::host::HostName;
use crate::decide::tier::withdrawn;
use crate::decide::{ClusterName, Flow, Group, Policy, Rules};
use crate::origin::OriginalDst;
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
    let compiled = compile(snapshot, "default", &Survey::of(&snapshot.policy), book, []);
    let of_ports = compiled.rows.iter().filter(|((port, _), _)| *port != 0);
    of_ports.map(|((port, network), row)| format!("{port} {network} {}", show(row))).collect()
}

fn show(row: &Row) -> String {
    match row {
        Row::Proxy(_) => "proxy".into(),
        Row::Refused(reason) => format!("refused {}", reason.label()),
        Row::Direct(label) => format!("direct {}", label.cluster.as_deref().unwrap_or("-")),
        Row::Noticed(label) => format!("noticed {}", label.cluster.as_deref().unwrap_or("-")),
        Row::Named(set) | Row::Retiring(set) => {
            let how = if matches!(row, Row::Named(_)) { "named" } else { "retiring" };
            let names = set.0.iter().map(|(pattern, label)| {
                let below = if pattern.below { "*." } else { "" };
                let not = if label.is_some() { "" } else { "!" };
                format!("{not}{below}{}", pattern.name)
            });
            format!("{how} {}", names.collect::<Vec<_>>().join(" "))
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

/// An address that an answer has no more: new connections go to the proxy, those under way may still
/// show the name.
#[test]
fn addresses_of_old_answers_retire() {
    let yaml = entry("a", &format!("hosts: [a.test, b.test], {TLS}, resolution: DNS"));
    let snapshot = snapshot(&yaml, Enforcement::Strict, Outbound::RegistryOnly);
    let mut book = book(&[("a.test", &["192.0.2.1", "192.0.2.2"])]);
    let b = HostName::parse("b.test").expect("a name");
    let ip: IpAddr = "192.0.2.2".parse().expect("an address");
    book.update([(&b, &[ip][..])], Instant::now() + Duration::from_secs(10));
    assert_eq!(
        rows(&snapshot, &book),
        ["443 192.0.2.1/32 retiring a.test", "443 192.0.2.2/32 named a.test b.test"]
    );
    assert_eq!(why(&yaml, &[], Outbound::RegistryOnly, "192.0.2.1:443"), "name_not_resolved");
}

#[test]
fn t_13_and_t_40_special_addresses_of_names_are_refused() {
    let yaml = entry("a", &format!("hosts: [a.test], {TLS}, resolution: DNS"));
    assert_eq!(
        strict(&yaml, &[("a.test", &["169.254.1.1", "127.0.0.1"])]),
        ["443 127.0.0.1/32 refused special_address", "443 169.254.1.1/32 refused special_address"]
    );
}

/// GAP-1: any bytes to the addresses of a DNS entry are its own, so no byte has to be read.
#[test]
fn gap_1_opaque_dns_entries_go_direct_at_their_own_addresses() {
    let tcp = |name: &str, port: u16| {
        entry(
            name,
            &format!(
                "hosts: [{name}.test], ports: [{{number: {port}, name: t, protocol: TCP}}], resolution: DNS"
            ),
        )
    };
    let known: &[(&str, &[&str])] =
        &[("a.test", &["192.0.2.1", "192.0.2.2", "169.254.1.1"]), ("b.test", &["192.0.2.2"])];
    let both = format!("{}{}", tcp("a", 5432), tcp("b", 5432));
    assert_eq!(
        strict(&both, known),
        [
            "5432 169.254.1.1/32 refused special_address",
            "5432 192.0.2.1/32 direct outbound|5432||a.test",
            "5432 192.0.2.2/32 direct outbound|5432||a.test",
        ]
    );
    // While the first one's addresses are not known, it may be the owner of all.
    assert_eq!(strict(&both, &known[1..]), [""; 0]);
    // A name on the port: TLS with it is judged by it.
    let tls = entry(
        "t",
        "hosts: [t.test], ports: [{number: 5432, name: t, protocol: TLS}], resolution: DNS",
    );
    assert_eq!(
        strict(&format!("{both}{tls}"), known),
        ["5432 169.254.1.1/32 refused special_address"]
    );
}

#[test]
fn mesh_21_what_nobody_claims_goes_direct_in_allow_any() {
    let tcp = entry(
        "a",
        "hosts: [a.test], addresses: [10.1.0.0/16], ports: [{number: 5432, name: t, protocol: TCP}], resolution: NONE",
    );
    let open = |yaml: &str, profile, spoken: &[&str]| {
        let snapshot = snapshot(yaml, profile, Outbound::AllowAny);
        let survey = Survey::of(&snapshot.policy);
        let spoken = spoken.iter().map(|dst| dst.parse().expect("an address"));
        let compiled = compile(&snapshot, "default", &survey, &book(&[]), spoken);
        let shown =
            |((port, network), row): (&(u16, _), &Row)| format!("{port} {network} {}", show(row));
        let all: Vec<String> = compiled.rows.iter().map(shown).collect();
        // Special networks are like others here, but for metadata services; so are those that carry
        // IPv4 addresses.
        let dull = |row: &String| {
            let carries = [" 64:ff9b:", " 2002:"].iter().any(|part| row.contains(part))
                || (row.contains(" ::") && !row.contains(" ::/0 "));
            let special = ["/4 ", "/8 ", "/10 ", "169.254.0.0/16", "255.255."];
            carries || special.iter().any(|part| row.contains(part))
        };
        all.into_iter().filter(|row| !dull(row)).collect::<Vec<_>>()
    };
    let metadata = [
        "0 169.254.169.254/32 refused special_address",
        "0 fd00:ec2::254/128 refused special_address",
    ];
    let https = [
        "443 0.0.0.0/0 noticed PassthroughCluster",
        "443 169.254.169.254/32 refused special_address",
        "443 ::/0 noticed PassthroughCluster",
        "443 fd00:ec2::254/128 refused special_address",
    ];
    let strict = Enforcement::Strict;
    // Of other ports, where a client spoke something else than HTTP.
    let spoken = ["192.0.2.9:22", "192.0.2.9:5432", "10.1.2.3:5432", "169.254.169.254:22"];
    let learned = [
        "22 192.0.2.9/32 noticed PassthroughCluster",
        "5432 10.1.0.0/16 direct outbound|5432||a.test",
        "5432 192.0.2.9/32 noticed PassthroughCluster",
    ];
    assert_eq!(
        open(&tcp, strict, &spoken),
        [&metadata[..], &learned[..1], &https, &learned[1..]].concat()
    );
    // Where names or requests decide on the port, it is the proxy's.
    for protocol in ["TLS", "HTTP", "HTTPS"] {
        let entry = entry(
            "t",
            &format!(
                "hosts: [t.test], ports: [{{number: 443, name: t, protocol: {protocol}}}], resolution: DNS"
            ),
        );
        assert_eq!(open(&entry, strict, &["192.0.2.9:443"]), metadata, "{protocol}");
    }
    // istio reads nothing where no entry is, so that every port is open; those with entries keep
    // their own rows for all addresses.
    let istio = open(&tcp, Enforcement::Istio, &[]);
    let all =
        |port: u16, what: &str| [format!("{port} 0.0.0.0/0 {what}"), format!("{port} ::/0 {what}")];
    for row in [
        all(0, "direct PassthroughCluster"),
        all(15001, "refused not_registered"),
        all(5432, "direct PassthroughCluster"),
    ]
    .concat()
    {
        assert!(istio.contains(&row), "{row}: {istio:?}");
    }
    let named = entry("t", &format!("hosts: [t.test], {TLS}, resolution: DNS"));
    let istio = open(&named, Enforcement::Istio, &[]);
    for row in all(443, "proxy") {
        assert!(istio.contains(&row), "{row}: {istio:?}");
    }
}

/// SC-8: a port with a handler of its own is not one of those that nothing mentions.
#[test]
fn sc_8_a_listener_without_services_keeps_its_port() {
    let rules = Rules {
        outbound: Outbound::AllowAny,
        listeners: vec![(80, Group::Http)],
        ..Rules::default()
    };
    let mut snapshot = snapshot("", Enforcement::Istio, Outbound::AllowAny);
    snapshot.policy = Policy::new("default", Enforcement::Istio, rules);
    let compiled = compile(&snapshot, "default", &Survey::of(&snapshot.policy), &book(&[]), []);
    let find = |dst: &str| compiled.find(dst.parse().expect("an address")).map(show);
    assert_eq!(find("192.0.2.1:81"), Ok("direct PassthroughCluster".into()));
    assert!(find("192.0.2.1:80").is_err(), "HTTP is judged request by request");
}

/// T-62: what of an established direct connection a changed policy says.
#[test]
fn t_62_direct_connections_are_judged_again() {
    let tls = |host: &str| entry("a", &format!("hosts: [{host}], {TLS}, resolution: DNS"));
    let tcp = |spec: &str| {
        entry(
            "a",
            &format!("hosts: [a.test], ports: [{{number: 443, name: t, protocol: TCP}}], {spec}"),
        )
    };
    let cluster = "outbound|443||a.test";
    let known: &[(&str, &[&str])] = &[("a.test", &["192.0.2.1"])];
    let given = |ip: &str| tcp(&format!("resolution: STATIC, endpoints: [{{address: {ip}}}]"));
    for (what, yaml, shown, expected) in [
        ("its entry is there", tls("a.test"), Some("a.test"), None),
        ("another one only", tls("b.test"), Some("a.test"), Some("not_registered")),
        ("a wildcard now", tls("'*.test'"), Some("a.test"), None),
        ("its name has to be shown now", tls("a.test"), None, Some("wrong_protocol")),
        ("its network", tcp("resolution: NONE, addresses: [192.0.2.0/24]"), None, None),
        (
            "another network",
            tcp("resolution: NONE, addresses: [198.51.100.0/24]"),
            None,
            Some("not_registered"),
        ),
        ("its endpoint", given("192.0.2.1"), None, None),
        ("what it resolves to", tcp("resolution: DNS"), None, None),
    ] {
        let snapshot = snapshot(&yaml, Enforcement::Strict, Outbound::RegistryOnly);
        let judge = |names: &[(&str, &[&str])], cluster: &str| {
            let (dst, book) = ("192.0.2.1:443".parse().expect("an address"), book(names));
            let flow = Flow { dst: OriginalDst::new(dst), namespace: "default" };
            let shown = shown.map(|name| HostName::parse(name).expect("a name"));
            let owns = |host: &HostName| book.has(host, dst.ip());
            let cluster = ClusterName(cluster.into());
            withdrawn(&snapshot.policy, &flow, shown.as_ref(), Some(&cluster), &owns)
        };
        assert_eq!(judge(known, "other"), expected, "{what}");
        // The name has other addresses since: that is no reason.
        assert_eq!(judge(&[("a.test", &["192.0.2.9"])], cluster), expected, "{what}");
    }
}

fn why(yaml: &str, names: &[(&str, &[&str])], outbound: Outbound, dst: &str) -> &'static str {
    let snapshot = snapshot(yaml, Enforcement::Strict, outbound);
    let compiled = compile(&snapshot, "default", &Survey::of(&snapshot.policy), &book(names), []);
    match compiled.find(dst.parse().expect("an address")) {
        Ok(row) => panic!("{dst}: {}", show(row)),
        Err(why) => why.label(),
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
    let compiled = compile(&snapshot, "default", &Survey::of(&snapshot.policy), &book(&[]), []);
    let shown: Vec<String> = compiled
        .rows
        .iter()
        .map(|((port, network), row)| format!("{port} {network} {}", show(row)))
        .collect();
    assert!(shown.contains(&"0 169.254.0.0/16 refused special_address".into()), "{shown:?}");
    assert!(shown.contains(&"80 169.254.5.5/32 direct outbound|80||l.test".into()), "{shown:?}");
}
