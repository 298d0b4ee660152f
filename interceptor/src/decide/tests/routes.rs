//! VirtualService rules at work (section 10), in both profiles where they agree.

use super::super::route::RetryOn;
use super::*;

/// Two hosts on two HTTP ports, a TLS one and a TCP one.
const REGISTRY: &str = "\
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: a}
spec:
  hosts: [a.com]
  ports: [{number: 80, name: h, protocol: HTTP}, {number: 8080, name: g, protocol: HTTP}]
  resolution: STATIC
  endpoints: [{address: 192.0.2.1}]
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: b}
spec:
  hosts: [b.com]
  ports: [{number: 80, name: h, protocol: HTTP}, {number: 8080, name: g, protocol: HTTP}]
  resolution: STATIC
  endpoints: [{address: 192.0.2.2}]
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: one}
spec:
  hosts: [one.com]
  ports: [{number: 9000, name: h, protocol: HTTP}]
  resolution: STATIC
  endpoints: [{address: 192.0.2.3}]
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: tls}
spec:
  hosts: [s.com, t.com]
  ports: [{number: 443, name: t, protocol: TLS}]
  resolution: DNS
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: db}
spec:
  hosts: [db.com]
  addresses: [10.9.9.9]
  ports: [{number: 5432, name: t, protocol: TCP}]
  resolution: STATIC
  endpoints: [{address: 192.0.2.5}]
";

/// A VirtualService in namespace `default`.
fn service(name: &str, spec: &str) -> String {
    format!(
        "---\napiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {{name: {name}}}\n\
         spec: {{{spec}}}\n"
    )
}

fn routed(services: &[String], profile: Enforcement) -> Policy {
    policy(&(REGISTRY.to_owned() + &services.concat()), profile, RegistryOnly)
}

/// A request with everything that rules look at.
struct Ask<'a> {
    dst: &'a str,
    method: &'a str,
    host: &'a str,
    path: &'a str,
    headers: &'a [(&'a str, &'a str)],
}

const PLAIN: Ask<'static> =
    Ask { dst: "198.51.100.7:80", method: "GET", host: "a.com", path: "/", headers: &[] };

fn decide(policy: &Policy, ask: &Ask<'_>) -> Decision {
    let headers: Vec<_> =
        ask.headers.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
    let hosts = [ask.host];
    let head = RequestHead {
        method: ask.method,
        authority: None,
        hosts: &hosts,
        path: ask.path,
        version: 11,
        headers: &headers,
    };
    by_request(policy, &flow(ask.dst), &head)
}

/// Whether the only rule, a direct response, takes the request.
fn matches(condition: &str, ask: &Ask<'_>) -> bool {
    let rule = format!(
        "hosts: [a.com], http: [{{match: [{condition}], directResponse: {{status: 418}}}}]"
    );
    let answers = [Strict, Istio].map(|profile| {
        let policy = routed(&[service("v", &rule)], profile);
        match decide(&policy, ask).action {
            Action::Reply(reply) => reply.status == 418,
            other => panic!("{other:?}"),
        }
    });
    assert_eq!(answers[0], answers[1], "{condition}");
    answers[0]
}

#[test]
fn vs_11_to_vs_15_matches() {
    let at = |path| Ask { path, ..PLAIN };
    let with = |headers| Ask { headers, ..PLAIN };
    for (condition, ask, expected) in [
        ("{uri: {exact: /foo}}", at("/foo"), true),
        ("{uri: {exact: /foo}}", at("/foo/"), false),
        ("{uri: {exact: /foo}}", at("/foo?x=1"), true),
        ("{uri: {exact: /foo}}", at("/FOO"), false),
        ("{uri: {exact: /foo}, ignoreUriCase: true}", at("/FOO"), true),
        ("{uri: {prefix: /foo}}", at("/foobar"), true),
        ("{uri: {prefix: /foo}}", at("/x/../foobar"), true),
        ("{uri: {prefix: /foo}}", at("/foo/../x"), false),
        ("{uri: {prefix: /foo}, ignoreUriCase: true}", at("/Foobar"), true),
        ("{uri: {regex: \"/f.o\"}}", at("/foo"), true),
        ("{uri: {regex: \"/f.o\"}}", at("/foo/x"), false),
        ("{uri: {regex: \"/f.o\"}}", at("/foo?q"), true),
        ("{scheme: {exact: http}}", PLAIN, true),
        ("{scheme: {exact: https}}", PLAIN, false),
        ("{method: {exact: POST}}", Ask { method: "POST", ..PLAIN }, true),
        ("{method: {exact: POST}}", PLAIN, false),
        ("{authority: {exact: a.com}}", PLAIN, true),
        ("{authority: {exact: a.com}}", Ask { host: "a.com:80", ..PLAIN }, false),
        ("{authority: {prefix: \"a.com:\"}}", Ask { host: "a.com:80", ..PLAIN }, true),
        ("{headers: {x-a: {exact: b}}}", with(&[("x-a", "b")]), true),
        ("{headers: {X-A: {exact: b}}}", with(&[("x-a", "b")]), true),
        ("{headers: {x-a: {exact: \"b,c\"}}}", with(&[("x-a", "b"), ("x-a", "c")]), true),
        ("{headers: {x-a: {}}}", with(&[("x-a", "")]), true),
        ("{headers: {x-a: {}}}", PLAIN, false),
        ("{headers: {x-a: {regex: \"[0-9]+\"}}}", with(&[("x-a", "12x")]), false),
        ("{withoutHeaders: {x-a: {}}}", PLAIN, true),
        ("{withoutHeaders: {x-a: {exact: b}}}", with(&[("x-a", "b")]), false),
        ("{withoutHeaders: {x-a: {exact: b}}}", with(&[("x-a", "c")]), true),
        ("{queryParams: {q: {exact: \"1\"}}}", at("/?p=2&q=1"), true),
        ("{queryParams: {q: {exact: \"1\"}}}", at("/?q=%31"), false),
        ("{queryParams: {q: {exact: \"\"}}}", at("/"), false),
        ("{queryParams: {q: {prefix: a}}}", at("/?q=abc"), true),
        ("{port: 80}", PLAIN, true),
        ("{port: 8080}", PLAIN, false),
        ("{sourceNamespace: default}", PLAIN, true),
        ("{sourceNamespace: other}", PLAIN, false),
        ("{sourceLabels: {app: x}}", PLAIN, false),
        ("{gateways: [egress]}", PLAIN, false),
        ("{gateways: [mesh], sourceLabels: {app: x}}", PLAIN, true),
        ("{uri: {exact: /a}}, {uri: {exact: /b}}", at("/b"), true),
        ("{uri: {exact: /a}, method: {exact: PUT}}", at("/a"), false),
    ] {
        assert_eq!(matches(condition, &ask), expected, "{condition} on {}", ask.path);
    }
}

#[test]
fn vs_9_vs_10_vs_16_order_names_and_no_route() {
    let spec = "hosts: [a.com], http: [\
        {name: one, match: [{name: m, uri: {prefix: /one}}, {uri: {prefix: /1}}], \
         route: [{destination: {host: a.com}}]}, \
        {match: [{uri: {prefix: /one}}], directResponse: {status: 500}}, \
        {match: [{uri: {prefix: /two}}], route: [{destination: {host: b.com}}]}]";
    let policy = routed(&[service("v", spec)], Istio);
    for (path, expected) in [
        ("/one", "forward 192.0.2.1:80*1 outbound|80||a.com one.m"),
        ("/1", "forward 192.0.2.1:80*1 outbound|80||a.com one"),
        ("/two", "forward 192.0.2.2:80*1 outbound|80||b.com"),
        ("/three", "reply 404 - no_route"),
    ] {
        assert_eq!(show(&decide(&policy, &Ask { path, ..PLAIN })), expected, "{path}");
    }
    let none = decide(&policy, &Ask { path: "/three", ..PLAIN });
    let Action::Reply(reply) = none.action else { panic!("must be answered") };
    assert_eq!(
        (reply.details, reply.flag, reply.body),
        ("route_not_found", Some("NR"), Vec::new())
    );
    let explained = decide(&routed(&[service("v", spec)], Strict), &Ask { path: "/x", ..PLAIN });
    let Action::Reply(reply) = explained.action else { panic!("must be answered") };
    assert!(String::from_utf8_lossy(&reply.body).contains("VirtualService default/v"));
}

#[test]
fn vs_20_to_vs_22_destinations() {
    for (route, dst, expected) in [
        (
            "{destination: {host: b.com}}",
            "198.51.100.7:80",
            "forward 192.0.2.2:80*1 outbound|80||b.com",
        ),
        (
            "{destination: {host: b.com}}",
            "198.51.100.7:8080",
            "forward 192.0.2.2:8080*1 outbound|8080||b.com",
        ),
        (
            "{destination: {host: b.com, port: {number: 80}}}",
            "198.51.100.7:8080",
            "forward 192.0.2.2:80*1 outbound|80||b.com",
        ),
        (
            "{destination: {host: one.com}}",
            "198.51.100.7:80",
            "forward 192.0.2.3:9000*1 outbound|9000||one.com",
        ),
        (
            "{destination: {host: one.com, port: {number: 80}}}",
            "198.51.100.7:80",
            "forward no cluster -",
        ),
        ("{destination: {host: gone.com}}", "198.51.100.7:80", "forward no cluster -"),
        ("{destination: {host: b.com, subset: v9}}", "198.51.100.7:80", "forward no cluster -"),
    ] {
        for profile in [Strict, Istio] {
            let spec = format!("hosts: [a.com], http: [{{route: [{route}]}}]");
            let policy = routed(&[service("v", &spec)], profile);
            assert_eq!(show(&decide(&policy, &Ask { dst, ..PLAIN })), expected, "{route}");
        }
    }
    let spec = "hosts: [a.com], http: [{route: [\
        {destination: {host: a.com}, weight: 1}, {destination: {host: b.com}, weight: 3}, \
        {destination: {host: one.com}, weight: 0}]}]";
    let decision = decide(&routed(&[service("v", spec)], Istio), &PLAIN);
    let Action::Forward(forward) = decision.action else { panic!("must be forwarded") };
    let weights: Vec<_> = forward.destinations.iter().map(|to| to.weight).collect();
    assert_eq!(weights, [1, 3]);
}

#[test]
fn vs_2_to_vs_4_which_service_binds_a_host() {
    let to = |hosts: &str, host: &str| {
        format!(
            "hosts: [{hosts}], http: [{{name: {host}, route: [{{destination: {{host: {host}}}}}]}}]"
        )
    };
    let wild = service("wild", &to("\"*.com\"", "b.com"));
    let exact = service("exact", &to("a.com", "one.com"));
    let new = service("new", &to("new.org", "b.com"));
    let open = service("open", &to("\"*.net\"", "b.com"));
    for (services, host, expected) in [
        // An exact host beats a wildcard, and a wildcard takes what is left under it.
        (vec![&wild, &exact], "a.com", "forward 192.0.2.3:9000*1 outbound|9000||one.com one.com"),
        (vec![&wild, &exact], "b.com", "forward 192.0.2.2:80*1 outbound|80||b.com b.com"),
        // It covers services, so other names under it stay unknown.
        (vec![&wild], "z.com", "502 - block_all not_registered"),
        // VS-2: without an entry, on port 80 only.
        (vec![&new], "new.org", "forward 192.0.2.2:80*1 outbound|80||b.com b.com"),
        (vec![&open], "any.net", "forward 192.0.2.2:80*1 outbound|80||b.com b.com"),
    ] {
        let services: Vec<_> = services.into_iter().cloned().collect();
        let policy = routed(&services, Istio);
        assert_eq!(show(&decide(&policy, &Ask { host, ..PLAIN })), expected, "{host}");
    }
    let policy = routed(std::slice::from_ref(&new), Istio);
    let elsewhere = Ask { host: "new.org", dst: "198.51.100.7:8080", ..PLAIN };
    assert_eq!(show(&decide(&policy, &elsewhere)), "502 - block_all not_registered");
    // No HTTP handler on port 80: nothing there in istio; in strict the flow alone decides.
    let bare = "---\napiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {name: b}\n\
        spec: {hosts: [b.com], ports: [{number: 8080, name: h, protocol: HTTP}], \
        resolution: STATIC, endpoints: [{address: 192.0.2.2}]}\n"
        .to_owned()
        + &new;
    let unhandled = super::policy(&bare, Istio, RegistryOnly);
    assert_eq!(
        get(&unhandled, "198.51.100.7:80", "new.org"),
        "close BlackHoleCluster not_registered"
    );
    let strict = super::policy(&bare, Strict, RegistryOnly);
    assert_eq!(
        get(&strict, "198.51.100.7:80", "new.org"),
        "forward 192.0.2.2:8080*1 outbound|8080||b.com b.com"
    );
}

#[test]
fn vs_24_and_vs_25_local_answers() {
    let spec = "hosts: [a.com], http: [\
        {match: [{uri: {prefix: /old}}], redirect: {uriPrefix: /new, redirectCode: 308}}, \
        {match: [{uri: {exact: /up}}], redirect: {scheme: https, derivePort: FROM_REQUEST_PORT}}, \
        {name: d, directResponse: {status: 451, body: {string: no}}, \
         headers: {response: {set: {x-a: b}}}}]";
    let policy = routed(&[service("v", spec)], Istio);
    let reply = |path| {
        let decision = decide(&policy, &Ask { path, ..PLAIN });
        let Action::Reply(reply) = decision.action else { panic!("{path}: must be answered") };
        assert_eq!((reply.details, reply.flag, decision.cluster), ("direct_response", None, None));
        (reply.status, reply.location, reply.body, reply.headers.set.len())
    };
    assert_eq!(reply("/old/x?q"), (308, Some("http://a.com/new/x?q".to_owned()), Vec::new(), 0));
    assert_eq!(reply("/up"), (301, Some("https://a.com:80/up".to_owned()), Vec::new(), 0));
    assert_eq!(reply("/"), (451, None, b"no".to_vec(), 1));
}

#[test]
fn vs_26_to_vs_51_what_a_route_does() {
    let spec = "hosts: [a.com], http: [{\
        match: [{uri: {prefix: /old}}], \
        rewrite: {uri: /new}, \
        headers: {request: {set: {Host: in.a.com, x-a: \"1%%\"}, remove: [x-b]}}, \
        timeout: 3s, \
        retries: {attempts: 4, retryOn: \"503,reset\", perTryTimeout: 1s, backoff: 2s, \
            retryIgnorePreviousHosts: false}, \
        fault: {delay: {fixedDelay: 2s, percentage: {value: 0.5}}, abort: {httpStatus: 500}}, \
        mirrors: [{destination: {host: b.com}, percentage: {value: 10}}], \
        corsPolicy: {allowOrigins: [{exact: x}], unmatchedPreflights: IGNORE}, \
        route: [{destination: {host: a.com}, headers: {\
            request: {set: {Host: one.a.com}}, response: {add: {x-c: d}}}}]}]";
    let policy = routed(&[service("v", spec)], Strict);
    let decision = decide(&policy, &Ask { path: "/old/x?q=1", ..PLAIN });
    let Action::Forward(forward) = decision.action else { panic!("must be forwarded") };
    let route = &forward.route;
    let rewrite = route.rewrite.as_ref().expect("a rewrite");
    assert_eq!(rewrite.path.as_deref(), Some("/new/x?q=1"));
    assert_eq!(rewrite.authority.as_deref(), Some("in.a.com"));
    assert_eq!(route.headers.request.set, [("x-a".to_owned(), "1%%".to_owned())]);
    assert_eq!(route.headers.request.remove, ["x-b"]);
    let own = &forward.destinations[0].headers;
    assert_eq!(own.response.add.len(), 1);
    assert_eq!(own.request.set, [(":authority".to_owned(), "one.a.com".to_owned())]);
    assert_eq!(route.timeout, Some(std::time::Duration::from_secs(3)));
    assert_eq!(route.retries.attempts, 4);
    assert_eq!(route.retries.back_off, std::time::Duration::from_secs(2));
    assert!(!route.retries.elsewhere);
    assert_eq!(route.retries.statuses, [503]);
    assert_eq!(route.retries.on, [RetryOn::Reset, RetryOn::StatusCodes]);
    assert!(!route.retries.idempotent_only, "a resource says so (GAP-17)");
    assert_eq!(route.fault.delay, Some((std::time::Duration::from_secs(2), 0.5)));
    let never = route.fault.abort.as_ref().map(|(_, percent)| *percent);
    assert_eq!(never, Some(0.0), "VS-50: no percentage, no abort");
    assert_eq!(route.mirrors[0].destination.cluster, Some(ClusterName::outbound(80, "b.com")));
    assert!(route.cors.as_ref().is_some_and(|cors| !cors.forward_unmatched));
}

#[test]
fn vs_40_to_vs_42_default_retries() {
    for (profile, idempotent_only) in [(Strict, true), (Istio, false)] {
        let plain = routed(&[], profile);
        let spec = "hosts: [a.com], http: [{route: [{destination: {host: a.com}}]}]";
        let ruled = routed(&[service("v", spec)], profile);
        for policy in [plain, ruled] {
            let Action::Forward(forward) = decide(&policy, &PLAIN).action else {
                panic!("must be forwarded");
            };
            assert_eq!(forward.route.retries.attempts, 2);
            assert_eq!(forward.route.retries.idempotent_only, idempotent_only);
        }
        let off = "hosts: [a.com], http: [{retries: {attempts: 0}, route: [{destination: {host: a.com}}]}]";
        let Action::Forward(forward) =
            decide(&routed(&[service("v", off)], profile), &PLAIN).action
        else {
            panic!("must be forwarded");
        };
        assert_eq!(forward.route.retries.attempts, 0);
        let open = super::policy(REGISTRY, profile, AllowAny);
        let Action::Forward(forward) = decide(&open, &Ask { host: "z.org", ..PLAIN }).action else {
            panic!("must be forwarded");
        };
        assert_eq!(forward.route.retries.attempts, 0, "VS-42");
    }
}

#[test]
fn vs_60_to_vs_63_connections() {
    let tls_rule = service(
        "t",
        "hosts: [s.com, t.com], tls: [{match: [{port: 443, sniHosts: [s.com]}], \
         route: [{destination: {host: db.com, port: {number: 5432}}}]}]",
    );
    let tcp_rule = service(
        "d",
        "hosts: [db.com], tcp: [{match: [{port: 5432}], \
         route: [{destination: {host: one.com}, weight: 2}, {destination: {host: b.com, port: {number: 80}}, weight: 1}]}]",
    );
    for profile in [Strict, Istio] {
        let policy = routed(&[tls_rule.clone(), tcp_rule.clone()], profile);
        let dst = "198.51.100.7:443";
        assert_eq!(
            connect(&policy, dst, &tls("s.com")),
            "relay 192.0.2.5:5432*1 outbound|5432||db.com"
        );
        // t.com has a VirtualService, too, but no rule of it names t.com: VS-61.
        let other = connect(&policy, dst, &tls("t.com"));
        assert!(other.starts_with("close BlackHoleCluster"), "{other}");
        let raw = connect(&policy, "10.9.9.9:5432", &Hello::Opaque);
        assert_eq!(raw, "relay 192.0.2.3:9000*1 outbound|9000||one.com");
    }
    // VS-62: subnets of a rule leave the rest to the service; VS-63: http rules do not concern it.
    let subnets = service(
        "d",
        "hosts: [db.com], http: [{directResponse: {status: 500}}], \
         tcp: [{match: [{destinationSubnets: [10.0.0.0/8]}], route: [{destination: {host: one.com}}]}]",
    );
    let policy = routed(&[subnets], Istio);
    assert_eq!(
        connect(&policy, "10.9.9.9:5432", &Hello::Opaque),
        "relay 192.0.2.3:9000*1 outbound|9000||one.com"
    );
}

#[test]
fn vs_8_delegates() {
    let root = service(
        "root",
        "hosts: [a.com], http: [{name: r, match: [{uri: {prefix: /api}}], timeout: 5s, \
         delegate: {name: leaf}}]",
    );
    let leaf = service(
        "leaf",
        "http: [{name: l, match: [{uri: {prefix: /api/one}}], route: [{destination: {host: b.com}}]}, \
         {match: [{uri: {prefix: /other}}], directResponse: {status: 500}}]",
    );
    let policy = routed(&[root, leaf], Istio);
    for (path, expected) in [
        ("/api/one/x", "forward 192.0.2.2:80*1 outbound|80||b.com r-l"),
        ("/api/two", "reply 404 - no_route"),
        ("/other", "reply 404 - no_route"),
    ] {
        assert_eq!(show(&decide(&policy, &Ask { path, ..PLAIN })), expected, "{path}");
    }
    let Action::Forward(forward) = decide(&policy, &Ask { path: "/api/one", ..PLAIN }).action
    else {
        panic!("must be forwarded");
    };
    assert_eq!(forward.route.timeout, Some(std::time::Duration::from_secs(5)));
}
