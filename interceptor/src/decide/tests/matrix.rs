//! Section 2.5 as data: one DNS entry for istio.io with a port of every protocol; the calls name
//! `foo` and go to an unrelated address.

use super::*;

const PORTS: &str = "ports: [{number: 80, name: http, protocol: HTTP}, {number: 81, name: auto}, \
    {number: 82, name: tcp, protocol: TCP}, {number: 83, name: tls, protocol: TLS}, \
    {number: 84, name: https, protocol: HTTPS}, {number: 85, name: grpc, protocol: GRPC}, \
    {number: 86, name: h2, protocol: HTTP2}], location: MESH_EXTERNAL, resolution: DNS";

fn world(profile: Enforcement, outbound: Outbound, address: bool) -> Policy {
    let addresses = if address { "addresses: [203.0.113.9], " } else { "" };
    let spec = format!("hosts: [istio.io], {addresses}{PORTS}");
    policy(&entry("se", &spec), profile, outbound)
}

/// The call as the matrix's rows name it: the verdict's cluster or `block_all`.
fn call(policy: &Policy, port: u16, hello: &Hello) -> String {
    let dst = format!("1.3.3.7:{port}");
    let verdict = match hello {
        Hello::Http1 | Hello::Http2 => get(policy, &dst, "foo"),
        other => connect(policy, &dst, other),
    };
    let known = ["BlackHoleCluster", "PassthroughCluster", "block_all", "outbound|"];
    let found = known.iter().find(|name| verdict.contains(**name));
    match found {
        Some(&"outbound|") => {
            verdict.split(' ').find(|word| word.starts_with("outbound|")).map(str::to_owned)
        }
        other => other.map(|name| (*name).to_owned()),
    }
    .unwrap_or(verdict)
}

/// Whether the entry has an address, calls, ports, and what REGISTRY_ONLY and ALLOW_ANY make of
/// them.
type Row<'a> = (bool, &'a [Hello], &'a [u16], &'a str, &'a str);

#[test]
fn mesh_21_to_33_the_istio_matrix() {
    let http = [Hello::Http1, Hello::Http2];
    let raw = [tls("foo"), tls_nameless(), Hello::Opaque];
    let rows: [Row<'_>; 8] = [
        (false, &http, &[80, 81, 85, 86], "block_all", "PassthroughCluster"),
        (false, &http, &[83, 84], "BlackHoleCluster", "PassthroughCluster"),
        (false, &raw, &[80, 83, 84, 85, 86], "BlackHoleCluster", "PassthroughCluster"),
        (false, &http, &[82], "outbound|82||istio.io", "outbound|82||istio.io"),
        (false, &raw, &[82], "outbound|82||istio.io", "outbound|82||istio.io"),
        (false, &raw, &[81], "outbound|81||istio.io", "outbound|81||istio.io"),
        (true, &http, &[80, 85, 86], "block_all", "PassthroughCluster"),
        (true, &raw, &[80, 81, 82, 83, 84, 85, 86], "BlackHoleCluster", "PassthroughCluster"),
    ];
    for (address, hellos, ports, registry_only, allow_any) in rows {
        for (mode, expected) in [(RegistryOnly, registry_only), (AllowAny, allow_any)] {
            let policy = world(Istio, mode, address);
            for (port, hello) in ports.iter().flat_map(|p| hellos.iter().map(move |h| (p, h))) {
                let row = format!("address {address}, {mode:?}, port {port}, {hello:?}");
                assert_eq!(call(&policy, *port, hello), expected, "{row}");
            }
        }
    }
    for (mode, expected) in [(RegistryOnly, "BlackHoleCluster"), (AllowAny, "PassthroughCluster")] {
        let policy = world(Istio, mode, true);
        for port in [81, 82, 83, 84] {
            assert_eq!(call(&policy, port, &Hello::Http1), expected, "{mode:?} {port}");
        }
    }
}

/// GAP-20: the verdict on unknown traffic is the same on every port, whatever else is registered
/// there; GAP-1: address-less TCP owns only what its host resolves to.
#[test]
fn gap_20_and_gap_1_the_strict_matrix() {
    for address in [false, true] {
        let closed = world(Strict, RegistryOnly, address);
        let open = world(Strict, AllowAny, address);
        for port in [80, 83, 84, 85, 86] {
            assert_eq!(call(&closed, port, &Hello::Http1), "block_all", "{address} {port}");
            assert_eq!(call(&closed, port, &tls("foo")), "BlackHoleCluster", "{address} {port}");
            assert_eq!(call(&closed, port, &Hello::Opaque), "BlackHoleCluster", "{address} {port}");
            for hello in [Hello::Http1, tls("foo"), tls_nameless(), Hello::Opaque] {
                assert_eq!(call(&open, port, &hello), "PassthroughCluster", "{address} {port}");
            }
        }
    }
    let closed = world(Strict, RegistryOnly, false);
    assert_eq!(
        connect(&closed, "1.3.3.7:82", &Hello::Opaque),
        "if istio.io: relay istio.io:82*1 outbound|82||istio.io; \
         else reset BlackHoleCluster not_registered"
    );
    assert_eq!(
        connect(&closed, "1.3.3.7:81", &Hello::Opaque),
        "if istio.io: relay istio.io:81*1 outbound|81||istio.io; \
         else reset BlackHoleCluster wrong_protocol"
    );
    assert_eq!(
        connect(&closed, "1.3.3.7:81", &tls("foo")),
        "close BlackHoleCluster not_registered"
    );
    assert_eq!(
        connect(&closed, "1.3.3.7:82", &Hello::Http1),
        "if istio.io: relay istio.io:82*1 outbound|82||istio.io; else http"
    );
}
