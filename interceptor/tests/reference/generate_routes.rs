//! Random VirtualServices and Sidecars over the universe of [`crate::generate`].

use proptest::collection::vec;
use proptest::option::{of, weighted};
use proptest::prelude::*;
use proptest::sample::select;

use crate::world::{
    Destination, HttpAction, HttpMatch, HttpRule, Sidecar, StreamRule, Text, Virtual,
};

pub(crate) fn virtuals() -> impl Strategy<Value = Vec<Virtual>> {
    let some = vec(service(), 1..4).prop_map(|mut virtuals| {
        for (i, service) in virtuals.iter_mut().enumerate() {
            service.name = format!("v{}", i * 5 + 3);
        }
        virtuals
    });
    prop_oneof![2 => Just(vec![]), 1 => some]
}

fn service() -> impl Strategy<Value = Virtual> {
    // Sets without a host twice or under a wildcard of the same set (VSV-2).
    let hosts = select(vec![
        vec!["a.com"],
        vec!["b.a.com"],
        vec!["*.a.com"],
        vec!["*.com"],
        vec!["*.A.com", "a.com"],
        vec!["x.org", "b.a.com"],
        vec!["unknown.net"],
        vec!["*.org"],
    ]);
    let gateways =
        select(vec![vec![], vec![], vec![], vec!["mesh"], vec!["egress"], vec!["egress", "mesh"]]);
    let exports = select(vec![vec![], vec![], vec!["*"], vec!["."], vec!["default"], vec!["~"]]);
    (
        select(vec!["default", "default", "other"]),
        of(1_u8..4),
        hosts,
        gateways,
        exports,
        vec(http_rule(), 0..4),
        vec(stream_rule(), 0..3),
        vec(stream_rule(), 0..3),
    )
        .prop_map(
            |(namespace, created, hosts, gateways, export_to, http, mut tls, mut tcp)| {
                // VSV-7: names within the hosts.
                for rule in &mut tls {
                    rule.sni = match hosts[0] {
                        "*.a.com" | "*.A.com" | "*.com" => vec!["*.a.com", "b.a.com", "z.a.com"],
                        "*.org" => vec!["x.org"],
                        host => vec![host],
                    };
                    // Some of them only, or every rule would shadow the next.
                    let keep = rule.route[0].weight as usize % rule.sni.len();
                    rule.sni = vec![rule.sni[keep]];
                }
                for rule in &mut tcp {
                    rule.sni.clear();
                }
                let mut http = http;
                if http.is_empty() && tls.is_empty() && tcp.is_empty() {
                    http = vec![HttpRule {
                        name: "only",
                        matches: Vec::new(),
                        action: HttpAction::Reply(418),
                        timeout: None,
                    }];
                }
                Virtual {
                    name: String::new(),
                    namespace,
                    created,
                    hosts,
                    gateways,
                    export_to,
                    http,
                    tls,
                    tcp,
                }
            },
        )
}

fn http_rule() -> impl Strategy<Value = HttpRule> {
    let action = prop_oneof![
        6 => route().prop_map(HttpAction::Route),
        1 => select(vec![301_u16, 308]).prop_map(HttpAction::Redirect),
        1 => select(vec![200_u16, 418]).prop_map(HttpAction::Reply),
    ];
    (select(vec!["", "r1", "r2"]), vec(http_match(), 0..3), action, weighted(0.2, 1_u64..9))
        .prop_map(|(name, matches, action, timeout)| {
            let timeout = timeout.filter(|_| matches!(action, HttpAction::Route(_)));
            HttpRule { name, matches, action, timeout }
        })
}

fn http_match() -> impl Strategy<Value = HttpMatch> {
    let uri = select::<Text>(vec![
        ("exact", "/a"),
        ("prefix", "/a"),
        ("prefix", "/"),
        ("regex", "/a.*"),
        ("regex", "a"),
        ("exact", "/b"),
    ]);
    let method = select::<Text>(vec![("exact", "GET"), ("prefix", "P"), ("regex", "G.T")]);
    let authority = select::<Text>(vec![
        ("exact", "a.com"),
        ("prefix", "b.a.com"),
        ("regex", ".*\\.com(:[0-9]+)?"),
        ("exact", "a.com:443"),
    ]);
    let header = || {
        of(select::<Text>(vec![("exact", "v"), ("prefix", "v"), ("regex", "v,.*"), ("exact", "w")]))
    };
    let query = select::<Text>(vec![("exact", "1"), ("prefix", "1"), ("regex", "[0-9]+")]);
    (
        select(vec!["", "m1", "m2"]),
        weighted(0.5, uri),
        weighted(0.3, method),
        weighted(0.2, authority),
        weighted(0.3, header()),
        weighted(0.2, header()),
        weighted(0.2, query),
        weighted(0.2, select(vec![80_u16, 443])),
        weighted(0.2, select(vec!["default", "other"])),
    )
        .prop_map(|(name, uri, method, authority, header, without, query, port, from)| {
            HttpMatch { name, uri, method, authority, header, without, query, port, from }
        })
}

/// One destination, or several with weights of which some are not 0 (VSV-5).
fn route() -> impl Strategy<Value = Vec<Destination>> {
    vec(destination(), 1..4).prop_map(|mut route| {
        if route.iter().all(|to| to.weight == 0) {
            route[0].weight = 7;
        }
        route
    })
}

fn destination() -> impl Strategy<Value = Destination> {
    let host = select(vec!["a.com", "b.a.com", "B.A.COM", "x.org", "missing.net"]);
    (host, of(select(vec![80_u16, 443, 9000, 81])), weighted(0.1, Just(())), 0_u32..9).prop_map(
        |(host, port, subset, weight)| Destination { host, port, subset: subset.is_some(), weight },
    )
}

fn stream_rule() -> impl Strategy<Value = StreamRule> {
    (weighted(0.4, select(vec![80_u16, 443, 9000])), route()).prop_map(|(port, route)| StreamRule {
        sni: Vec::new(),
        port,
        route,
    })
}

pub(crate) fn sidecars() -> impl Strategy<Value = Vec<Sidecar>> {
    let some = vec(sidecar(), 1..4).prop_map(|mut sidecars| {
        for (i, sidecar) in sidecars.iter_mut().enumerate() {
            sidecar.name = format!("s{}", i * 5 + 3);
        }
        sidecars
    });
    prop_oneof![4 => Just(vec![]), 1 => some]
}

fn sidecar() -> impl Strategy<Value = Sidecar> {
    let hosts = select(vec![
        vec![],
        vec!["*/*"],
        vec!["./*"],
        vec!["default/*", "other/a.com"],
        vec!["*/*.a.com"],
        vec!["*/*.com", "~other/a.com"],
        vec!["*/*", "~/*.a.com"],
        vec!["~/*"],
        vec!["*/a.com", "*/x.org"],
    ]);
    (
        select(vec!["default", "default", "istio-system", "other"]),
        of(1_u8..4),
        weighted(0.3, select(vec!["blue", "red"])),
        weighted(0.4, of(select(vec!["REGISTRY_ONLY", "ALLOW_ANY"]))),
        hosts,
    )
        .prop_map(|(namespace, created, selects, policy, hosts)| {
            // A Sidecar that says nothing is rejected (SC-9).
            let says = policy.is_some() || !hosts.is_empty();
            let policy = if says { policy } else { Some(None) };
            Sidecar { name: String::new(), namespace, created, selects, policy, hosts }
        })
}
