//! What leaves through an egress proxy is neither direct nor the name tier's, however rows are made.

use super::*;

const CONFIG: &str = "---\napiVersion: egress.interceptor.io/v1alpha1\nkind: InterceptorConfig\n\
                      metadata: {name: default}\nspec:\n  egressProxy:\n    proxies: [{name: p, url: \
                      'http://p.corp:3128'}]\n    rules: ";

fn registry() -> String {
    [
        entry("a", &format!("hosts: [a.test], {TLS}, resolution: DNS")),
        entry(
            "w",
            "hosts: ['*.w.test'], ports: [{number: 444, name: tls, protocol: TLS}], addresses: \
             [192.0.2.0/24], resolution: NONE",
        ),
        entry(
            "t",
            "hosts: [t.test], ports: [{number: 5432, name: t, protocol: TCP}], addresses: \
             [198.51.100.0/24], resolution: NONE",
        ),
    ]
    .concat()
}

/// A rule that changes moves them from one tier to the other.
#[test]
fn egress_proxies_take_destinations_out_of_the_kernels_hands() {
    let known: &[(&str, &[&str])] = &[("a.test", &["203.0.113.1"])];
    let (a, w, t) = (
        "443 203.0.113.1/32 named a.test",
        "444 192.0.2.0/24 named *.w.test",
        "5432 198.51.100.0/24 direct outbound|5432||t.test",
    );
    for (rules, expected) in [
        (None, vec![a, w, t]),
        (Some("[{direct: true}]"), vec![a, w, t]),
        (Some("[]"), vec![]),
        // One name below the wildcard, one part of the network: the row stands for all of it.
        (Some("[{hosts: [x.w.test], proxies: [p]}, {direct: true}]"), vec![a, t]),
        (Some("[{hosts: [198.51.100.128/25], proxies: [p]}, {direct: true}]"), vec![a, w]),
        (Some("[{hosts: ['*:5433'], proxies: [p]}, {direct: true}]"), vec![a]),
        (Some("[{hosts: [a.test], direct: true}, {proxies: [p]}]"), vec![a]),
        (Some("[{hosts: ['*.w.test'], direct: true}]"), vec![w]),
        (Some("[{hosts: [a.test:8443], direct: true}]"), vec![]),
    ] {
        let config = rules.map(|rules| format!("{CONFIG}{rules}\n")).unwrap_or_default();
        let rows = strict(&(registry() + &config), known);
        assert_eq!(rows, expected, "{rules:?}");
    }
    let config = format!("{CONFIG}[]\n");
    let why =
        |dst| super::why(&(registry() + &config), known, Outbound::RegistryOnly, dst).to_owned();
    for dst in ["203.0.113.1:443", "192.0.2.7:444", "198.51.100.7:5432"] {
        assert_eq!(why(dst), "egress_proxy", "{dst}");
    }
}

/// What nobody judges goes through the proxy as well, in both profiles; and no row opens a port.
#[test]
fn egress_proxies_take_unknown_traffic() {
    for profile in [Enforcement::Strict, Enforcement::Istio] {
        let rows_of = |rules: &str| {
            let yaml = format!("{CONFIG}{rules}\n");
            let snapshot = snapshot(&yaml, profile, Outbound::AllowAny);
            let survey = Survey::of(&snapshot.policy);
            let compiled = compile(&snapshot, "default", &survey, &book(&[]), []);
            let open = |row: &&Row| matches!(row, Row::Direct(_) | Row::Noticed(_));
            compiled.rows.values().filter(open).count()
        };
        assert!(rows_of("[{direct: true}]") > 0, "{profile:?}");
        for rules in ["[]", "[{hosts: [203.0.113.0/24], proxies: [p]}, {direct: true}]"] {
            assert_eq!(rows_of(rules), 0, "{profile:?} {rules}");
        }
    }
}

/// T-62: what went direct is judged by its door too.
#[test]
fn t_62_a_new_proxy_withdraws_direct_connections() {
    let (dst, flow_of) = ("198.51.100.7:5432", |dst: &str| OriginalDst::new(dst.parse().unwrap()));
    for (rules, expected) in [("[{direct: true}]", None), ("[]", Some("other_upstream"))] {
        let yaml = format!("{}{CONFIG}{rules}\n", registry());
        let snapshot = snapshot(&yaml, Enforcement::Strict, Outbound::RegistryOnly);
        let flow = Flow { dst: flow_of(dst), namespace: "default" };
        let cluster = ClusterName("outbound|5432||t.test".into());
        let said = withdrawn(&snapshot.policy, &flow, None, Some(&cluster), &|_| false);
        assert_eq!(said, expected, "{rules}");
    }
}
