//! `egressProxy`: which way out an allowed connection has, and what a proxy is asked for (T-47).

use super::*;
use crate::decide::door::Door;

fn config(more: &str) -> String {
    format!(
        "---\napiVersion: egress.interceptor.io/v1alpha1\nkind: InterceptorConfig\n\
         metadata: {{name: default}}\nspec:\n  egressProxy:\n    proxies:\n    \
         - {{name: one, url: 'http://one.corp:3128'}}\n    \
         - {{name: two, url: 'http://192.0.2.200:3128'}}\n    {more}\n"
    )
}

/// The proxies and what they are asked for, or `direct`.
fn door(to: &Destination) -> String {
    let Door::Proxies(via) = &to.door else { return "direct".into() };
    let names: Vec<&str> = via.proxies.iter().map(|proxy| &*proxy.name).collect();
    let targets: Vec<String> =
        via.targets.iter().map(|one| format!("{}:{}", one.target.0, one.target.1)).collect();
    let noticed = via.noticed.as_ref().map(|name| format!(" or {name}")).unwrap_or_default();
    format!("{}: {}{noticed}", names.join(","), targets.join(","))
}

fn doors(decision: &Decision) -> String {
    match &decision.action {
        Action::Relay(to) => to.iter().map(door).collect::<Vec<_>>().join("; "),
        Action::Forward(forward) => {
            let mirrors = forward.route.mirrors.iter().map(|mirror| &mirror.destination);
            forward.destinations.iter().chain(mirrors).map(door).collect::<Vec<_>>().join("; ")
        }
        Action::ByResolution(open) => {
            let claims = open.claims.iter().map(|claim| doors(&claim.decision));
            claims.chain([doors(&open.otherwise)]).collect::<Vec<_>>().join(" | ")
        }
        Action::Block(_) => "blocked".into(),
        other => format!("{other:?}"),
    }
}

fn connected(policy: &Policy, dst: &str, hello: &Hello) -> String {
    doors(&match by_address(policy, &flow(dst)) {
        ByAddress::Decided(decision) => decision,
        ByAddress::Inspect { .. } => by_hello(policy, &flow(dst), hello),
    })
}

fn requested(policy: &Policy, dst: &str, host: &str) -> String {
    let head = RequestHead {
        method: "GET",
        authority: None,
        hosts: &[host],
        path: "/",
        version: 11,
        headers: &(),
    };
    doors(&by_request(policy, &flow(dst), &head))
}

fn registry() -> String {
    [
        entry(
            "dns",
            "hosts: [dns.test], ports: [{number: 443, name: tls, protocol: TLS}, \
                      {number: 80, name: http, protocol: HTTP, targetPort: 8080}], resolution: DNS",
        ),
        entry(
            "none",
            "hosts: ['*.none.test'], ports: [{number: 443, name: tls, protocol: TLS}], \
                       addresses: [192.0.2.0/25], resolution: NONE",
        ),
        entry(
            "tcp",
            "hosts: [db.test], ports: [{number: 5432, name: tcp, protocol: TCP}], \
                      addresses: [198.51.100.0/24], resolution: NONE",
        ),
        entry(
            "claim",
            "hosts: [claim.test], ports: [{number: 6000, name: tcp, protocol: TCP}], \
                        resolution: NONE",
        ),
        entry(
            "static",
            "hosts: [static.test], ports: [{number: 443, name: tls, protocol: TLS}], \
                         endpoints: [{address: 203.0.113.7}], resolution: STATIC",
        ),
    ]
    .concat()
}

/// T-47: names where names were judged, whatever address was dialled; addresses where the verdict was
/// on those.
#[test]
fn t_47_a_proxy_is_asked_for_what_was_judged() {
    for profile in [Strict, Istio] {
        let policy = policy(&(registry() + &config("")), profile, RegistryOnly);
        for (dst, hello, expected) in [
            ("192.0.2.199:443", tls("dns.test"), "one,two: dns.test:443"),
            ("192.0.2.9:443", tls("a.none.test"), "one,two: a.none.test:443"),
            ("198.51.100.7:5432", Hello::Opaque, "one,two: 198.51.100.7:5432"),
            ("192.0.2.199:443", tls("static.test"), "one,two: 203.0.113.7:443"),
            ("192.0.2.199:443", tls("other.test"), "blocked"),
        ] {
            assert_eq!(connected(&policy, dst, &hello), expected, "{profile:?} {dst}");
        }
        assert_eq!(requested(&policy, "192.0.2.199:80", "dns.test"), "one,two: dns.test:8080");
    }
    let policy = policy(&(registry() + &config("")), Strict, RegistryOnly);
    let claimed = connected(&policy, "192.0.2.199:6000", &Hello::Opaque);
    assert_eq!(claimed, "one,two: claim.test:6000 | blocked");
}

/// T-47: where nobody judges, the dialled address is asked for, unless the daemon itself knows it by
/// the name that was shown; and that name chooses no door.
#[test]
fn t_47_a_name_that_only_a_client_says_chooses_nothing() {
    let rules = "rules: [{hosts: ['*.corp'], direct: true}, {hosts: [192.0.2.0/24], direct: true}]";
    let policy = policy(&(registry() + &config(rules)), Strict, AllowAny);
    for (dst, hello, expected) in [
        ("203.0.113.9:443", tls("a.corp"), "one,two: 203.0.113.9:443 or a.corp"),
        ("203.0.113.9:443", Hello::Opaque, "one,two: 203.0.113.9:443"),
        ("192.0.2.9:443", tls("a.test"), "direct"),
    ] {
        assert_eq!(connected(&policy, dst, &hello), expected, "{dst}");
    }
    let request = requested(&policy, "203.0.113.9:8000", "a.corp");
    assert_eq!(request, "one,two: 203.0.113.9:8000 or a.corp");
}

#[test]
fn the_first_rule_that_matches_is_the_one() {
    let rules = "noProxy: 'static.test, 203.0.113.7'\n    \
                 rules: [{hosts: [b.none.test], direct: true}, {hosts: ['*.none.test:443'], proxies: \
                 [two, one]}, {hosts: [198.51.100.0/28], proxies: [two]}, {hosts: [dns.test:80], \
                 direct: true}]";
    let policy = policy(&(registry() + &config(rules)), Strict, RegistryOnly);
    for (dst, hello, expected) in [
        ("192.0.2.9:443", tls("a.none.test"), "two,one: a.none.test:443"),
        ("192.0.2.9:443", tls("b.none.test"), "direct"),
        ("198.51.100.7:5432", Hello::Opaque, "two: 198.51.100.7:5432"),
        ("198.51.100.77:5432", Hello::Opaque, "one,two: 198.51.100.77:5432"),
        ("192.0.2.199:443", tls("dns.test"), "one,two: dns.test:443"),
        ("192.0.2.199:443", tls("static.test"), "direct"),
    ] {
        assert_eq!(connected(&policy, dst, &hello), expected, "{dst}");
    }
    // The port is that of the target.
    assert_eq!(requested(&policy, "192.0.2.199:80", "dns.test"), "one,two: dns.test:8080");
}

/// Copies of requests and all of several destinations leave by doors too; of endpoints with different
/// doors none goes direct.
#[test]
fn nothing_of_a_route_goes_round_the_proxy() {
    let route = "---\napiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: v}\n\
                 spec:\n  hosts: [dns.test]\n  http:\n  - route:\n    - {destination: {host: dns.test, \
                 port: {number: 80}}, weight: 50}\n    - {destination: {host: two.test, port: {number: \
                 80}}, weight: 50}\n    mirror: {host: two.test, port: {number: 80}}\n";
    let two = entry(
        "two",
        "hosts: [two.test], ports: [{number: 80, name: http, protocol: HTTP}], \
                            endpoints: [{address: in.test}, {address: out.test}], resolution: DNS",
    );
    let rules = "rules: [{hosts: [in.test], direct: true}]";
    let policy =
        policy(&[registry(), two, route.into(), config(rules)].concat(), Strict, RegistryOnly);
    let two = "one,two: in.test:80,out.test:80";
    assert_eq!(
        requested(&policy, "192.0.2.199:80", "dns.test"),
        format!("one,two: dns.test:8080; {two}; {two}")
    );
}
