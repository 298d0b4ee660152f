//! Random worlds over a small universe, so that resources and flows meet often.

use std::net::{IpAddr, SocketAddr};

use interceptor::policy::{Enforcement, Outbound};
use proptest::collection::vec;
use proptest::option::{of, weighted};
use proptest::prelude::*;
use proptest::sample::{select, subsequence};

use crate::generate_routes::{sidecars, virtuals};
use crate::world::{Bytes, Endpoint, Entry, Flow, Head, Port, World};

const HOSTS: [&str; 10] = [
    "a.com",
    "b.a.com",
    "c.b.a.com",
    "x.org",
    "B.A.com",
    "*.a.com",
    "*.com",
    "*.b.a.com",
    "*.org",
    "*.A.COM",
];
/// Partial wildcards, which only the istio profile knows (HTTP-6).
const PARTIAL: [&str; 2] = ["*a.com", "*b.a.com"];
const NAMES: [&str; 9] = [
    "a.com",
    "b.a.com",
    "c.b.a.com",
    "z.a.com",
    "x.org",
    "y.x.org",
    "ba.com",
    "unknown.net",
    "com",
];
/// Few, so that entries share them.
const PORTS: [&[u16]; 5] = [&[443], &[443], &[80], &[80, 443], &[443, 9000]];
const PROTOCOLS: [&str; 13] = [
    "HTTP", "HTTP", "http2", "GRPC", "TLS", "TLS", "https", "TCP", "TCP", "MONGO", "redis", "UDP",
    "",
];
const ADDRESSES: [&str; 10] = [
    "192.0.2.1",
    "192.0.2.2",
    "192.0.2.2/32",
    "192.0.2.0/24",
    "192.0.2.0/28",
    "192.0.0.0/16",
    "2001:db8::1",
    "2001:db8::/32",
    "169.254.169.254",
    "127.0.0.0/8",
];
const DIALLED: [&str; 13] = [
    "192.0.2.1",
    "192.0.2.2",
    "192.0.2.3",
    "192.0.2.9",
    "192.0.2.77",
    "192.0.3.1",
    "198.51.100.1",
    "203.0.113.9",
    "2001:db8::1",
    "2001:db8::2",
    "169.254.169.254",
    "169.254.1.1",
    "127.0.0.1",
];

pub(crate) fn world(profile: Enforcement) -> impl Strategy<Value = World> {
    let mode = prop_oneof![
        3 => Just(Outbound::RegistryOnly),
        2 => Just(Outbound::AllowAny),
        1 => Just(Outbound::AllowAnyDynamicDns),
    ];
    (mode, vec(entry(profile), 0..7), virtuals(), sidecars()).prop_map(
        move |(mesh_mode, mut entries, virtuals, sidecars)| {
            // Names and age must not go together, or REG-4 would be tested by half.
            for (i, entry) in entries.iter_mut().enumerate() {
                entry.name = format!("e{}", i * 5 + 3);
            }
            World { profile, mesh_mode, entries, virtuals, sidecars }
        },
    )
}

fn entry(profile: Enforcement) -> impl Strategy<Value = Entry> {
    let mut hosts = HOSTS.to_vec();
    if profile == Enforcement::Istio {
        hosts.extend(PARTIAL);
    }
    let exports: Vec<Vec<&str>> = vec![
        vec![],
        vec![],
        vec![],
        vec!["*"],
        vec!["*"],
        vec!["."],
        vec!["default"],
        vec!["~"],
        vec!["other"],
        vec![".", "default"],
        vec!["default", "."],
    ];
    (
        select(vec!["default", "default", "default", "other", "third"]),
        of(1_u8..4),
        weighted(0.1, Just(())),
        subsequence(hosts, 1..=2).prop_shuffle(),
        prop_oneof![
            3 => Just(vec![]),
            4 => subsequence(ADDRESSES.to_vec(), 1..=2).prop_shuffle(),
        ],
        select(PORTS.to_vec()).prop_map(<[u16]>::to_vec),
        vec((select(PROTOCOLS.to_vec()), weighted(0.3, select(vec![8080_u16, 8443]))), 2),
        select(vec!["NONE", "STATIC", "DNS", "DNS", "DNS_ROUND_ROBIN", "DYNAMIC_DNS"]),
        (vec(endpoint(), 0..3), any::<bool>()),
        select(exports),
    )
        .prop_map(move |parts| {
            let (
                namespace,
                created,
                labelled,
                hosts,
                addresses,
                numbers,
                kinds,
                resolution,
                endpoints,
                export_to,
            ) = parts;
            let ports = numbers.into_iter().zip(kinds).map(|(number, (protocol, target))| Port {
                number,
                protocol,
                target,
            });
            let entry = Entry {
                name: String::new(),
                namespace,
                created,
                labelled: labelled.is_some(),
                hosts,
                addresses,
                ports: ports.collect(),
                resolution,
                endpoints: Vec::new(),
                export_to,
            };
            valid(entry, endpoints.0, endpoints.1, profile)
        })
}

/// An endpoint as address, name, own port and weight.
type AnyEndpoint = (&'static str, &'static str, Option<u16>, Option<u32>);

fn endpoint() -> impl Strategy<Value = AnyEndpoint> {
    (
        select(vec!["192.0.2.9", "192.0.2.2", "10.0.0.1"]),
        select(vec!["e.net", "f.net"]),
        weighted(0.4, Just(7000_u16)),
        of(0_u32..4),
    )
}

/// Turns what validation would reject into what it accepts (section 9a).
fn valid(
    mut entry: Entry,
    endpoints: Vec<AnyEndpoint>,
    named: bool,
    profile: Enforcement,
) -> Entry {
    let mut seen = Vec::new();
    entry.hosts.retain(|host| {
        let lower = host.to_lowercase();
        let new = !seen.contains(&lower);
        seen.push(lower);
        new
    });
    if entry.export_to.contains(&".") && entry.export_to.contains(&entry.namespace) {
        entry.export_to = vec!["."];
    }
    let strict = profile == Enforcement::Strict;
    let wildcard = entry.hosts.iter().any(|host| host.starts_with('*'));
    if entry.resolution == "DYNAMIC_DNS" {
        entry.hosts.retain(|host| host.starts_with("*."));
        entry.ports.retain(|port| matches!(port.protocol, "HTTP" | "http2" | "GRPC" | "TLS"));
        entry.addresses.clear();
        if entry.hosts.is_empty() || entry.ports.is_empty() {
            entry.hosts = vec!["*.a.com"];
            entry.ports = vec![Port { number: 80, protocol: "HTTP", target: None }];
        }
        return entry;
    }
    let most = match entry.resolution {
        "NONE" => 0,
        "DNS_ROUND_ROBIN" => 1,
        _ => endpoints.len(),
    };
    let names = named && entry.resolution != "STATIC";
    for (ip, name, own, weight) in endpoints.into_iter().take(most) {
        let address = if names { name } else { ip };
        let port = own.map(|own| (entry.ports[0].number, own));
        entry.endpoints.push(Endpoint { address, port, weight });
    }
    if entry.resolution.starts_with("DNS") {
        entry.addresses.retain(|address| !address.contains('/'));
        if wildcard && entry.endpoints.is_empty() && !strict {
            entry.resolution = "NONE";
        }
    }
    let opaque = |port: &Port| {
        !["HTTP", "HTTP2", "GRPC", "TLS", "HTTPS"].contains(&port.protocol.to_uppercase().as_str())
    };
    if entry.resolution != "NONE" && entry.ports.iter().any(opaque) {
        entry.hosts.truncate(1);
    }
    entry
}

pub(crate) fn flow() -> impl Strategy<Value = Flow> {
    let dst = (select(DIALLED.to_vec()), select(vec![443_u16, 443, 443, 443, 80, 80, 9000, 81]));
    (dst, hello(), head()).prop_map(|((ip, port), hello, mut head)| {
        let ip: IpAddr = ip.parse().expect("an address");
        let dst = SocketAddr::new(ip, port);
        let written = match ip {
            IpAddr::V4(ip) => ip.to_string(),
            IpAddr::V6(ip) => format!("[{ip}]"),
        };
        for host in head.hosts.iter_mut().chain(&mut head.authority) {
            *host = host.replace("IP", &written).replace("PORT", &port.to_string());
        }
        Flow { dst, hello, head }
    })
}

fn hello() -> impl Strategy<Value = Bytes> {
    prop_oneof![
        6 => select(NAMES.to_vec()).prop_map(|name| Bytes::Tls(Some(name))),
        1 => Just(Bytes::Tls(None)),
        6 => Just(Bytes::Http1),
        1 => Just(Bytes::Http2),
        2 => Just(Bytes::Opaque),
        1 => Just(Bytes::Silent),
        1 => Just(Bytes::Closed),
        1 => Just(Bytes::Malformed),
    ]
}

/// `IP` and `PORT` stand for what is dialled.
fn host() -> impl Strategy<Value = String> {
    let name = select(NAMES.to_vec());
    let form = select(vec![
        "NAME",
        "NAME",
        "NAME",
        "NAME",
        "NAME.",
        "NAME:PORT",
        "NAME:9999",
        "NAME.:PORT",
        "NAME..",
        "NAME:",
        "NAME:0",
        "NAME:+80",
        "NAME:080",
        "u@NAME",
        "NAME/",
        ".NAME",
        "NAME,NAME",
        "*.NAME",
        "",
    ]);
    let literal = select(vec![
        "IP",
        "IP",
        "IP:PORT",
        "IP:9999",
        "192.0.2.1",
        "192.0.2.2",
        "[2001:db8::1]",
        "[2001:DB8::1]",
        "[2001:db8:0::1]",
        "[::ffff:192.0.2.1]",
        "::1",
        "[a.com]",
        "192.0.2.01",
        "0xc0.0.2.1",
    ]);
    prop_oneof![
        8 => (form, name, any::<bool>()).prop_map(|(form, name, upper)| {
            form.replace("NAME", &if upper { name.to_uppercase() } else { name.to_owned() })
        }),
        1 => literal.prop_map(str::to_owned),
    ]
}

fn head() -> impl Strategy<Value = Head> {
    let version = prop_oneof![1 => Just(10_u8), 12 => Just(11), 3 => Just(20)];
    let method = prop_oneof![1 => Just("CONNECT"), 12 => Just("GET"), 4 => Just("POST")];
    let hosts = prop_oneof![
        1 => Just(vec![]),
        12 => host().prop_map(|host| vec![host]),
        1 => host().prop_map(|host| vec![host.clone(), host]),
    ];
    let path = select(vec![
        "/",
        "/a",
        "/a/b",
        "/ab",
        "/A",
        "/x/../a",
        "/./b",
        "/a?q=1",
        "/b?p=2&q=12",
        "/?q",
    ]);
    let headers = vec(select(vec![("x-k", "v"), ("x-k", "w"), ("x-k", "v1"), ("x-o", "v")]), 0..3);
    (method, weighted(0.25, host()), hosts, any::<bool>(), version, path, headers).prop_map(
        |(method, mut authority, hosts, same, version, path, headers)| {
            if same && authority.is_some() {
                authority = hosts.first().cloned().or(authority);
            }
            let headers = headers.into_iter().map(|(k, v)| (k.to_owned(), v.to_owned())).collect();
            Head { method, authority, hosts, path, headers, version }
        },
    )
}
