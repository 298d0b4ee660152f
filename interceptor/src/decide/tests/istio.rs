//! The istio profile, rule by rule.

use super::*;

const DNS: &str = "resolution: DNS";

fn port(number: u16, protocol: &str) -> String {
    format!("ports: [{{number: {number}, name: p, protocol: {protocol}}}]")
}

#[test]
fn seed_4_to_9_and_15_16_the_tutorial() {
    let a = "203.0.113.1";
    let open = policy("", Istio, AllowAny);
    assert_eq!(dial(&open, &format!("{a}:443")), "decided relay odst:443 PassthroughCluster");
    let closed = policy("", Istio, RegistryOnly);
    assert_eq!(dial(&closed, &format!("{a}:443")), "decided close BlackHoleCluster not_registered");
    assert_eq!(dial(&closed, &format!("{a}:80")), "decided close BlackHoleCluster not_registered");

    for mode in [AllowAny, RegistryOnly] {
        let httpbin = policy(HTTPBIN, Istio, mode);
        assert_eq!(
            get(&httpbin, &format!("{a}:80"), "httpbin.org"),
            "forward httpbin.org:80*1 outbound|80||httpbin.org default"
        );
    }
    let google = policy(GOOGLE, Istio, RegistryOnly);
    let google_443 = |hello: &Hello| connect(&google, &format!("{a}:443"), hello);
    assert_eq!(
        google_443(&tls("www.google.com")),
        "relay www.google.com:443*1 outbound|443||www.google.com"
    );
    assert_eq!(google_443(&tls("edition.cnn.com")), "close BlackHoleCluster not_registered");
    assert_eq!(
        dial(&google, &format!("{a}:443")),
        "inspect, else close BlackHoleCluster not_registered"
    );
    assert_eq!(dial(&google, &format!("{a}:80")), "decided close BlackHoleCluster not_registered");

    let wikipedia = policy(WIKIPEDIA, Istio, RegistryOnly);
    for (sni, expected) in [
        ("en.wikipedia.org", "relay odst:443 outbound|443||*.wikipedia.org"),
        ("de.wikipedia.org", "relay odst:443 outbound|443||*.wikipedia.org"),
        ("wikipedia.org", "close BlackHoleCluster not_registered"),
        ("evil.org", "close BlackHoleCluster not_registered"),
    ] {
        assert_eq!(connect(&wikipedia, &format!("{a}:443"), &tls(sni)), expected, "{sni}");
    }
}

#[test]
fn lis_9_to_16_crossed_protocols() {
    let http = entry("a", &format!("hosts: [h.com], {}, {DNS}", port(90, "HTTP")));
    let tls_bare = entry("b", &format!("hosts: [t.com], {}, {DNS}", port(90, "TLS")));
    let tls_ip =
        entry("c", &format!("hosts: [i.com], addresses: [192.0.2.1], {}, {DNS}", port(90, "TLS")));
    let tcp = entry("d", &format!("hosts: [c.com], {}, {DNS}", port(90, "TCP")));
    let black = "close BlackHoleCluster not_registered";
    let to_tcp = "relay c.com:90*1 outbound|90||c.com";
    let to_tls = "relay t.com:90*1 outbound|90||t.com";
    let to_ip = "relay i.com:90*1 outbound|90||i.com";
    let blocked = "502 - block_all not_registered";
    let rows: &[(&str, String, &str, Hello, &str)] = &[
        (
            "LIS-9",
            http.clone(),
            "198.51.100.1",
            tls("h.com"),
            "close BlackHoleCluster wrong_protocol",
        ),
        ("LIS-10", tls_bare.clone(), "198.51.100.1", Hello::Http1, black),
        ("LIS-11", tls_ip.clone(), "192.0.2.1", Hello::Http1, to_ip),
        ("LIS-11", tls_ip.clone(), "192.0.2.1", Hello::Opaque, to_ip),
        ("LIS-26", tls_ip.clone(), "192.0.2.1", tls("other.com"), to_ip),
        ("LIS-1", tls_ip.clone(), "192.0.2.2", tls("i.com"), black),
        ("LIS-12", tls_bare.clone(), "198.51.100.1", tls_nameless(), black),
        ("LIS-13", tls_bare.clone(), "198.51.100.1", tls("other.com"), black),
        ("LIS-14", tcp.clone(), "198.51.100.1", tls("other.com"), to_tcp),
        ("LIS-14", format!("{tls_bare}{tcp}"), "198.51.100.1", tls("other.com"), to_tcp),
        ("LIS-14", format!("{tls_bare}{tcp}"), "198.51.100.1", tls("t.com"), to_tls),
        ("LIS-14", tcp.clone(), "198.51.100.1", Hello::Http1, to_tcp),
        ("LIS-15", format!("{http}{tcp}"), "198.51.100.1", Hello::Http1, blocked),
        ("LIS-15", format!("{http}{tcp}"), "198.51.100.1", Hello::Opaque, to_tcp),
        ("LIS-15", format!("{http}{tcp}"), "198.51.100.1", tls("h.com"), to_tcp),
        ("LIS-16", format!("{http}{tls_bare}"), "198.51.100.1", tls("t.com"), to_tls),
        ("LIS-16", format!("{http}{tls_bare}"), "198.51.100.1", Hello::Opaque, black),
        ("LIS-16", format!("{http}{tls_bare}"), "198.51.100.1", Hello::Http1, blocked),
        ("LIS-21", tls_bare.clone(), "198.51.100.1", Hello::Silent, black),
        ("R4", tls_bare, "198.51.100.1", malformed(), "close BlackHoleCluster malformed"),
    ];
    for (rule, yaml, ip, hello, expected) in rows {
        let policy = policy(yaml, Istio, RegistryOnly);
        let dst = format!("{ip}:90");
        let verdict = match hello {
            Hello::Http1 => get(&policy, &dst, "unknown.com"),
            other => connect(&policy, &dst, other),
        };
        assert_eq!(verdict, *expected, "{rule} {hello:?}");
    }
    // LIS-22: only TCP on the port: no inspection, server-first works.
    assert_eq!(
        dial(&policy(&tcp, Istio, RegistryOnly), "198.51.100.1:90"),
        format!("decided {to_tcp}")
    );
}

#[test]
fn lis_3_to_8_addresses() {
    let tcp = |name: &str, host: &str, nets: &str| {
        entry(name, &format!("hosts: [{host}], addresses: [{nets}], {}", port(99, "TCP")))
    };
    let yaml = tcp("a", "a.com", "10.0.0.0/8")
        + &tcp("b", "b.com", "10.1.0.0/16, 192.0.2.7")
        + &tcp("c", "c.com", "10.0.0.0/8, 192.0.2.7/32, 192.0.2.8/32");
    let policy_ = policy(&yaml, Istio, RegistryOnly);
    for (ip, expected) in [
        ("10.2.0.1", "decided relay odst:99 outbound|99||a.com"),
        ("10.1.0.1", "decided relay odst:99 outbound|99||b.com"),
        ("192.0.2.7", "decided relay odst:99 outbound|99||b.com"),
        ("192.0.2.8", "decided relay odst:99 outbound|99||c.com"),
        ("192.0.2.9", "decided close BlackHoleCluster not_registered"),
    ] {
        assert_eq!(dial(&policy_, &format!("{ip}:99")), expected, "{ip}");
    }
    // LIS-6: the longest prefix is final even where its chain does not know the name.
    let tls_net = |name: &str, host: &str, net: &str| {
        entry(name, &format!("hosts: [{host}], addresses: [{net}], {}", port(99, "TLS")))
    };
    let yaml = tls_net("a", "blah1.somedomain", "10.0.0.0/8")
        + &tls_net("b", "blah2.somedomain", "10.1.2.0/24");
    let policy_ = policy(&yaml, Istio, RegistryOnly);
    for (ip, sni, expected) in [
        ("10.1.2.3", "blah1.somedomain", "close BlackHoleCluster wrong_protocol"),
        ("10.1.2.3", "blah2.somedomain", "relay odst:99 outbound|99||blah2.somedomain"),
        ("10.9.9.9", "blah1.somedomain", "relay odst:99 outbound|99||blah1.somedomain"),
    ] {
        assert_eq!(connect(&policy_, &format!("{ip}:99"), &tls(sni)), expected, "{ip} {sni}");
    }
}

#[test]
fn lis_17_mongo_does_not_share_a_port() {
    let mongo = entry("b", &format!("hosts: [m.com], {}, {DNS}", port(70, "MONGO")));
    let http = |name| entry(name, &format!("hosts: [h.com], {}, {DNS}", port(70, "HTTP")));
    let later = policy(&(http("a") + &mongo), Istio, RegistryOnly);
    assert_eq!(
        connect(&later, "198.51.100.1:70", &Hello::Opaque),
        "close BlackHoleCluster not_registered"
    );
    let first = policy(&(mongo + &http("c")), Istio, RegistryOnly);
    assert_eq!(get(&first, "198.51.100.1:70", "h.com"), "relay m.com:70*1 outbound|70||m.com");
}

#[test]
fn reg_3_to_reg_10_merging_and_conflicts() {
    // REG-3: equal resolution: ports unite; unequal: the first counts.
    let p = |n: u16, protocol: &str| {
        format!("ports: [{{number: {n}, name: p{n}, protocol: {protocol}}}]")
    };
    let one = entry("one", &format!("hosts: [a.com], {}, {DNS}", p(80, "HTTP")));
    let two = entry("two", &format!("hosts: [a.com], {}, {DNS}", p(443, "HTTPS")));
    let other = entry("two", &format!("hosts: [a.com], {}, resolution: NONE", p(443, "HTTPS")));
    let united = policy(&format!("{one}{two}"), Istio, RegistryOnly);
    assert_eq!(
        connect(&united, "198.51.100.1:443", &tls("a.com")),
        "relay a.com:443*1 outbound|443||a.com"
    );
    let first = policy(&format!("{one}{other}"), Istio, RegistryOnly);
    assert_eq!(
        connect(&first, "198.51.100.1:443", &tls("a.com")),
        "close BlackHoleCluster not_registered"
    );

    // REG-4: age before name. REG-9: two address-less TCP entries: the first gets all.
    let aged = |name: &str, host: &str, when: &str| {
        entry(name, &format!("hosts: [{host}], {}, {DNS}", p(5, "TCP")))
            .replace("metadata: {", &format!("metadata: {{creationTimestamp: \"{when}\", "))
    };
    let yaml = aged("a", "young.com", "2021-01-01T00:00:00Z")
        + &aged("b", "old.com", "2020-01-01T00:00:00Z");
    assert_eq!(
        dial(&policy(&yaml, Istio, RegistryOnly), "198.51.100.1:5"),
        "decided relay old.com:5*1 outbound|5||old.com"
    );

    // REG-5: own namespace first, else the first; no union.
    let foreign = one.replace("name: one", "name: one, namespace: aaa");
    let own = entry("zzz", &format!("hosts: [a.com], {}, {DNS}", p(81, "HTTP")));
    let policy_ = policy(&format!("{foreign}{own}"), Istio, RegistryOnly);
    assert_eq!(
        get(&policy_, "198.51.100.1:81", "a.com"),
        "forward a.com:81*1 outbound|81||a.com default"
    );
    assert_eq!(get(&policy_, "198.51.100.1:80", "a.com"), "close BlackHoleCluster not_registered");

    // REG-8: partial address overlap.
    let yaml = entry("se1", &format!("hosts: [one.com], addresses: [1.1.1.1], {}", p(9999, "TCP")))
        + &entry(
            "se2",
            &format!("hosts: [two.com], addresses: [2.2.2.2, 1.1.1.1], {}", p(9999, "TCP")),
        );
    let policy_ = policy(&yaml, Istio, RegistryOnly);
    assert_eq!(dial(&policy_, "1.1.1.1:9999"), "decided relay odst:9999 outbound|9999||one.com");
    assert_eq!(dial(&policy_, "2.2.2.2:9999"), "decided relay odst:9999 outbound|9999||two.com");

    // REG-10: exact SNI beats wildcard SNI whatever the age.
    let yaml = entry("a", &format!("hosts: [\"*.x.com\"], {}", p(443, "TLS")))
        + &entry("b", &format!("hosts: [a.x.com], {}, {DNS}", p(443, "TLS")));
    let policy_ = policy(&yaml, Istio, RegistryOnly);
    assert_eq!(
        connect(&policy_, "198.51.100.1:443", &tls("a.x.com")),
        "relay a.x.com:443*1 outbound|443||a.x.com"
    );
    assert_eq!(
        connect(&policy_, "198.51.100.1:443", &tls("b.x.com")),
        "relay odst:443 outbound|443||*.x.com"
    );
}

#[test]
fn se_9_visibility() {
    let yaml = |export: &str, namespace: &str| {
        entry("a", &format!("hosts: [a.com], {}, {DNS}, exportTo: [{export}]", port(443, "TLS")))
            .replace("name: a", &format!("name: a, namespace: {namespace}"))
    };
    for (export, namespace, seen) in [
        ("\".\"", "default", true),
        ("\".\"", "other", false),
        ("\"*\"", "other", true),
        ("default", "other", true),
        ("third", "other", false),
        ("\"~\"", "default", false),
    ] {
        let policy = policy(&yaml(export, namespace), Istio, RegistryOnly);
        let verdict = connect(&policy, "198.51.100.1:443", &tls("a.com"));
        assert_eq!(verdict.contains("outbound|"), seen, "{export} in {namespace}: {verdict}");
    }
}

#[test]
fn http_1_to_9_host_routing() {
    let yaml = entry(
        "a",
        &format!("hosts: [a.com], addresses: [192.0.2.5], {}, {DNS}", port(80, "HTTP")),
    ) + &entry("b", &format!("hosts: [\"*.foo.com\"], {}", port(80, "HTTP")))
        + &entry("c", &format!("hosts: [\"*.b.foo.com\", x.foo.com], {}", port(80, "HTTP")))
        + &entry(
            "d",
            "hosts: [s.com], addresses: [192.0.2.6], ports: [{number: 80, name: p}], resolution: DNS",
        );
    let policy_ = policy(&yaml, Istio, RegistryOnly);
    for (ip, host, expected) in [
        ("1.1.1.1", "a.com", "forward a.com:80*1 outbound|80||a.com default"),
        ("1.1.1.1", "A.com.", "forward a.com:80*1 outbound|80||a.com default"),
        ("1.1.1.1", "a.com:9999", "forward a.com:80*1 outbound|80||a.com default"),
        ("1.1.1.1", "192.0.2.5", "forward a.com:80*1 outbound|80||a.com default"),
        ("1.1.1.1", "192.0.2.9", "502 - block_all not_registered"),
        ("1.1.1.1", "a.foo.com", "forward odst:80 outbound|80||*.foo.com default"),
        ("1.1.1.1", "a.b.foo.com", "forward odst:80 outbound|80||*.b.foo.com default"),
        ("1.1.1.1", "x.foo.com", "forward odst:80 outbound|80||x.foo.com default"),
        ("1.1.1.1", "foo.com", "502 - block_all not_registered"),
        ("1.1.1.1", "s.com", "502 - block_all address_not_verified"),
        ("192.0.2.6", "any.com", "forward s.com:80*1 outbound|80||s.com default"),
        ("1.1.1.1", "", "400 closing - bad_host"),
    ] {
        assert_eq!(get(&policy_, &format!("{ip}:80"), host), expected, "{ip} {host}");
    }
    let dst = "1.1.1.1:80";
    let ask = |method, authority, hosts: &[&str], version| {
        request(&policy_, dst, method, authority, hosts, version)
    };
    assert_eq!(ask("GET", None, &[], 11), "400 closing - bad_host", "HTTP-8");
    assert_eq!(ask("GET", None, &["a.com"], 10), "426 closing - http_version", "LIS-18");
    assert_eq!(ask("CONNECT", Some("a.com:80"), &["a.com"], 11), "404 - connect_method", "MESH-29");
    assert_eq!(
        ask("GET", Some("a.com"), &["b.com"], 11),
        "forward a.com:80*1 outbound|80||a.com default",
        "MESH-29"
    );
    let open = policy(&yaml, Istio, AllowAny);
    assert_eq!(
        get(&open, dst, "unknown.com"),
        "forward odst:80 PassthroughCluster allow_any",
        "MESH-22"
    );
}

#[test]
fn se_4_and_res_1_to_4_upstreams() {
    let ports = "ports: [{number: 80, name: h, protocol: HTTP, targetPort: 8080}, \
                 {number: 443, name: t, protocol: TLS}]";
    let rows = [
        (
            "resolution: STATIC, endpoints: [{address: 192.0.2.1, ports: {h: 9000}, weight: 3}, \
             {address: 192.0.2.2, weight: 0}]",
            "forward 192.0.2.1:9000*3,192.0.2.2:8080*1 outbound|80||a.com default",
            "relay 192.0.2.1:443*3,192.0.2.2:443*1 outbound|443||a.com",
        ),
        (
            "resolution: DNS, endpoints: [{address: lon.a.com, ports: {t: 4443}}, {address: x.a.com}]",
            "forward lon.a.com:8080*1,x.a.com:8080*1 outbound|80||a.com default",
            "relay lon.a.com:4443*1,x.a.com:443*1 outbound|443||a.com",
        ),
        (
            "resolution: DNS_ROUND_ROBIN",
            "forward a.com:8080*1 rr outbound|80||a.com default",
            "relay a.com:443*1 rr outbound|443||a.com",
        ),
        (
            "resolution: NONE",
            "forward odst:8080 outbound|80||a.com default",
            "relay odst:443 outbound|443||a.com",
        ),
        (
            "resolution: STATIC",
            "forward nowhere outbound|80||a.com default",
            "relay nowhere outbound|443||a.com",
        ),
    ];
    for (spec, http, tls_) in rows {
        let yaml = entry("a", &format!("hosts: [a.com], {ports}, {spec}"));
        let policy = policy(&yaml, Istio, RegistryOnly);
        assert_eq!(get(&policy, "1.1.1.1:80", "a.com"), http, "{spec}");
        assert_eq!(connect(&policy, "1.1.1.1:443", &tls("a.com")), tls_, "{spec}");
    }
    let dynamic = entry(
        "a",
        "hosts: [\"*.a.com\"], ports: [{number: 80, name: h, protocol: HTTP, targetPort: 81}], resolution: DYNAMIC_DNS",
    );
    let policy = policy(&dynamic, Istio, RegistryOnly);
    assert_eq!(
        get(&policy, "1.1.1.1:80", "x.a.com"),
        "forward x.a.com:81*1 outbound|80||*.a.com default",
        "RES-5"
    );
}

#[test]
fn http_5_sni_with_a_trailing_dot_matches_nothing() {
    let yaml = entry(
        "a",
        "hosts: [a.com, \"*.b.com\"], ports: [{number: 443, name: t, protocol: TLS}], resolution: NONE",
    );
    for (enforcement, expected) in [(Istio, "close"), (Strict, "relay")] {
        let policy = policy(&yaml, enforcement, RegistryOnly);
        for (name, dotted) in [("a.com", "a.com."), ("x.b.com", "x.b.com.")] {
            assert!(connect(&policy, "1.1.1.1:443", &tls(name)).starts_with("relay"), "{name}");
            let found = connect(&policy, "1.1.1.1:443", &tls(dotted));
            assert!(found.starts_with(expected), "{enforcement:?} {dotted}: {found}");
        }
    }
}
