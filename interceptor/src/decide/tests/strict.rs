//! The strict profile: the rows of docs/profiles.md.

use super::*;

const DNS: &str = "resolution: DNS";

fn port(number: u16, protocol: &str) -> String {
    format!("ports: [{{number: {number}, name: p, protocol: {protocol}}}]")
}

#[test]
fn seed_4_to_9_12_15_16_the_tutorial() {
    let open = policy("", Strict, AllowAny);
    assert_eq!(
        connect(&open, "203.0.113.1:443", &tls("www.google.com")),
        "relay odst:443(www.google.com) PassthroughCluster"
    );
    assert_eq!(
        dial(&open, "203.0.113.1:443"),
        "inspect, else relay odst:443 PassthroughCluster",
        "a server may speak first"
    );
    let closed = policy("", Strict, RegistryOnly);
    assert_eq!(
        connect(&closed, "203.0.113.1:443", &tls("www.google.com")),
        "close BlackHoleCluster not_registered"
    );
    assert_eq!(
        get(&closed, "203.0.113.1:80", "httpbin.org"),
        "502 explained closing - block_all not_registered",
        "502 also where no HTTP entry exists (GAP-20)"
    );
    for mode in [AllowAny, RegistryOnly] {
        let all = [GOOGLE, HTTPBIN, CNN, WIKIPEDIA].join("---\n");
        let policy = policy(&all, Strict, mode);
        let dst = "203.0.113.1";
        for (port, name, expected) in [
            (80, "httpbin.org", "forward httpbin.org:80*1 outbound|80||httpbin.org default"),
            (
                80,
                "edition.cnn.com",
                "forward edition.cnn.com:80*1 outbound|80||edition.cnn.com default",
            ),
            (443, "edition.cnn.com", "relay edition.cnn.com:443*1 outbound|443||edition.cnn.com"),
            (443, "www.google.com", "relay www.google.com:443*1 outbound|443||www.google.com"),
            (
                443,
                "en.wikipedia.org",
                "relay verified:en.wikipedia.org:443 outbound|443||*.wikipedia.org",
            ),
        ] {
            let dst = format!("{dst}:{port}");
            let verdict = match port {
                80 => get(&policy, &dst, name),
                _ => connect(&policy, &dst, &tls(name)),
            };
            assert_eq!(verdict, expected, "{mode:?} {name}");
        }
    }
    let google = policy(GOOGLE, Strict, RegistryOnly);
    assert_eq!(
        connect(&google, "203.0.113.2:443", &tls("edition.cnn.com")),
        "close BlackHoleCluster not_registered"
    );
    assert_eq!(
        get(&google, "203.0.113.1:80", "www.google.com"),
        "502 explained closing - block_all port_not_registered",
        "MESH-30"
    );
    let wikipedia = policy(WIKIPEDIA, Strict, RegistryOnly);
    for sni in ["wikipedia.org", "evilwikipedia.org", "en.wikipedia.org.evil.com"] {
        assert_eq!(
            connect(&wikipedia, "203.0.113.1:443", &tls(sni)),
            "close BlackHoleCluster not_registered",
            "{sni}"
        );
    }
}

#[test]
fn t_21_t_23_t_27_t_28_what_is_not_a_named_hello() {
    let rows = [
        (
            tls_nameless(),
            "close BlackHoleCluster no_server_name",
            "relay odst:443 PassthroughCluster",
        ),
        (
            Hello::Opaque,
            "reset BlackHoleCluster wrong_protocol",
            "relay odst:443 PassthroughCluster",
        ),
        (
            Hello::Silent,
            "close BlackHoleCluster sniff_timeout",
            "relay odst:443 PassthroughCluster",
        ),
        (Hello::Closed, "close - early_close", "close - early_close"),
        (malformed(), "close BlackHoleCluster malformed", "close BlackHoleCluster malformed"),
    ];
    let (closed, open) = (policy(GOOGLE, Strict, RegistryOnly), policy(GOOGLE, Strict, AllowAny));
    for (hello, registry_only, allow_any) in rows {
        assert_eq!(connect(&closed, "203.0.113.1:443", &hello), registry_only, "{hello:?}");
        assert_eq!(connect(&open, "203.0.113.1:443", &hello), allow_any, "{hello:?}");
    }
    assert_eq!(
        connect(&open, "203.0.113.1:8443", &malformed()),
        "relay odst:8443 PassthroughCluster",
        "where no entry decides by name, every verdict is to pass"
    );
    assert_eq!(
        connect(&closed, "203.0.113.1:8443", &malformed()),
        "close BlackHoleCluster malformed"
    );
    assert_eq!(
        dial(&closed, "203.0.113.1:443"),
        "inspect, else close BlackHoleCluster sniff_timeout"
    );
}

#[test]
fn gap_15_lis_11_res_1_addresses_and_names_together() {
    let se = |name: &str, host: &str, rest: &str, protocol: &str| {
        entry(name, &format!("hosts: [{host}], {rest}, {}", port(99, protocol)))
    };
    let yaml = se("a", "wide.com", "addresses: [10.0.0.0/8]", "TLS")
        + &se("b", "narrow.com", "addresses: [10.1.2.0/24]", "TLS")
        + &se("c", "plain.com", &format!("addresses: [192.0.2.1], {DNS}"), "TLS")
        + &se("d", "none.com", "resolution: NONE", "TLS")
        + &se("e", "auto.com", &format!("addresses: [192.0.2.2], {DNS}"), "\"\"")
        + &se("f", "tcp.com", "addresses: [192.0.2.3, 192.0.2.128/25]", "TCP");
    let policy = policy(&yaml, Strict, RegistryOnly);
    for (ip, hello, expected) in [
        ("10.1.2.3", tls("wide.com"), "relay odst:99 outbound|99||wide.com"),
        ("10.1.2.3", tls("narrow.com"), "relay odst:99 outbound|99||narrow.com"),
        ("10.9.9.9", tls("narrow.com"), "close BlackHoleCluster address_not_verified"),
        ("192.0.2.1", tls("plain.com"), "relay plain.com:99*1 outbound|99||plain.com"),
        ("192.0.2.1", tls("other.com"), "close BlackHoleCluster not_registered"),
        ("192.0.2.1", Hello::Opaque, "reset BlackHoleCluster wrong_protocol"),
        ("192.0.2.77", tls("none.com"), "relay verified:none.com:99 outbound|99||none.com"),
        ("192.0.2.2", tls("auto.com"), "relay auto.com:99*1 outbound|99||auto.com"),
        ("192.0.2.2", tls("other.com"), "close BlackHoleCluster not_registered"),
        ("192.0.2.2", Hello::Opaque, "relay auto.com:99*1 outbound|99||auto.com"),
        ("192.0.2.2", Hello::Silent, "close BlackHoleCluster sniff_timeout"),
        ("192.0.2.3", Hello::Silent, "relay odst:99 outbound|99||tcp.com"),
        ("192.0.2.4", tls("auto.com"), "close BlackHoleCluster address_not_verified"),
        ("192.0.2.3", tls("anything.com"), "relay odst:99 outbound|99||tcp.com"),
        ("192.0.2.200", Hello::Opaque, "relay odst:99 outbound|99||tcp.com"),
        ("192.0.2.4", Hello::Opaque, "reset BlackHoleCluster wrong_protocol"),
    ] {
        assert_eq!(connect(&policy, &format!("{ip}:99"), &hello), expected, "{ip} {hello:?}");
    }
    assert_eq!(dial(&policy, "192.0.2.3:99"), "decided relay odst:99 outbound|99||tcp.com");
    assert_eq!(
        dial(&policy, "192.0.2.2:99"),
        "inspect, else close BlackHoleCluster sniff_timeout",
        "T-28: a name said late is still a name"
    );
    // HTTP-9 in strict: at a sniffed entry's address the Host must be listed.
    for (ip, host, expected) in [
        ("192.0.2.2", "auto.com", "forward auto.com:99*1 outbound|99||auto.com default"),
        ("192.0.2.2", "other.com", "502 explained closing - block_all not_registered"),
        ("192.0.2.4", "auto.com", "502 explained closing - block_all address_not_verified"),
        ("192.0.2.77", "none.com", "502 explained closing - block_all wrong_protocol"),
    ] {
        assert_eq!(get(&policy, &format!("{ip}:99"), host), expected, "{ip} {host}");
    }
}

/// LIS-6 and LIS-14 hold in strict as well, only that a candidate whose name does not fit is passed
/// over: the longer prefix comes before the better name, and address-less TCP after everything.
#[test]
fn lis_6_address_before_name_before_opaque_bytes() {
    let at = |name: &str, host: &str, protocol: &str, rest: &str| {
        entry(name, &format!("hosts: [{host}], {}, {rest}", port(99, protocol)))
    };
    let yaml = at("a", "tcp.com", "TCP", "addresses: [10.0.0.0/8]")
        + &at("b", "\"*.tls.com\"", "TLS", "addresses: [10.1.0.0/16]")
        + &at("c", "a.tls.com", "TLS", "addresses: [10.0.0.0/8]")
        + &at("d", "st.com", "TCP", "resolution: STATIC, endpoints: [{address: 192.0.2.9}]")
        + &at("e", "any.com", "TLS", DNS);
    let policy = policy(&yaml, Strict, RegistryOnly);
    for (ip, hello, expected) in [
        ("10.1.0.1", tls("a.tls.com"), "relay odst:99 outbound|99||*.tls.com"),
        ("10.2.0.1", tls("a.tls.com"), "relay odst:99 outbound|99||a.tls.com"),
        ("10.1.0.1", tls("other.com"), "relay odst:99 outbound|99||tcp.com"),
        ("10.1.0.1", Hello::Opaque, "relay odst:99 outbound|99||tcp.com"),
        ("10.1.0.1", tls("any.com"), "relay odst:99 outbound|99||tcp.com"),
        ("192.0.2.9", tls("any.com"), "relay any.com:99*1 outbound|99||any.com"),
        ("192.0.2.9", Hello::Opaque, "relay 192.0.2.9:99*1 outbound|99||st.com"),
    ] {
        assert_eq!(connect(&policy, &format!("{ip}:99"), &hello), expected, "{ip} {hello:?}");
    }
}

#[test]
fn gap_1_address_less_tcp_is_tied_to_its_hosts_addresses() {
    let yaml = entry("a", &format!("hosts: [db.com], {}, {DNS}", port(3306, "MYSQL")))
        + &entry("b", &format!("hosts: [raw.com], {}", port(3306, "TCP")))
        + &entry(
            "c",
            &format!(
                "hosts: [st.com], {}, resolution: STATIC, endpoints: [{{address: 192.0.2.9}}]",
                port(3306, "TCP")
            ),
        );
    let (closed, open) = (policy(&yaml, Strict, RegistryOnly), policy(&yaml, Strict, AllowAny));
    let claims = "if db.com: relay db.com:3306*1 outbound|3306||db.com; \
                  if raw.com: relay odst:3306 outbound|3306||raw.com; \
                  if st.com: relay 192.0.2.9:3306*1 outbound|3306||st.com; else";
    let dst = "198.51.100.1:3306";
    assert_eq!(
        dial(&closed, dst),
        format!("inspect, else {claims} close BlackHoleCluster sniff_timeout"),
        "a server of these hosts may speak first"
    );
    assert_eq!(
        dial(&open, dst),
        format!("inspect, else {claims} relay odst:3306 PassthroughCluster")
    );
    assert_eq!(
        connect(&closed, dst, &tls("other.com")),
        format!("{claims} close BlackHoleCluster not_registered")
    );
    assert_eq!(
        connect(&closed, dst, &tls_nameless()),
        format!("{claims} close BlackHoleCluster no_server_name")
    );
    assert_eq!(
        dial(&closed, "192.0.2.9:3306"),
        "decided relay 192.0.2.9:3306*1 outbound|3306||st.com",
        "R3: the endpoints are the operator's own word"
    );
}

#[test]
fn settling_takes_the_first_owner_else_the_other_verdict() {
    let yaml = entry("a", &format!("hosts: [a.com], {}, {DNS}", port(5, "TCP")))
        + &entry("b", &format!("hosts: [b.com], {}, {DNS}", port(5, "TCP")));
    let policy = policy(&yaml, Strict, RegistryOnly);
    let Action::ByResolution(hanging) =
        by_hello(&policy, &flow("192.0.2.1:5"), &Hello::Opaque).action
    else {
        panic!("must hang on resolution");
    };
    let settled = |owners: &[&str]| show(hanging.settle(|host| owners.contains(&host.as_str())));
    assert_eq!(settled(&["b.com"]), "relay b.com:5*1 outbound|5||b.com");
    assert_eq!(settled(&["b.com", "a.com"]), "relay a.com:5*1 outbound|5||a.com");
    assert_eq!(settled(&[]), "reset BlackHoleCluster not_registered");
}

#[test]
fn gap_2_wildcards_resolve_the_concrete_name() {
    let yaml = entry(
        "a",
        "hosts: [\"*.x.com\"], resolution: DNS, ports: [{number: 80, name: h, protocol: HTTP}, {number: 443, name: t, protocol: TLS, targetPort: 8443}]",
    );
    let policy = policy(&yaml, Strict, RegistryOnly);
    assert_eq!(
        get(&policy, "192.0.2.1:80", "a.x.com"),
        "forward a.x.com:80*1 outbound|80||*.x.com default"
    );
    assert_eq!(
        connect(&policy, "192.0.2.1:443", &tls("a.b.x.com")),
        "relay a.b.x.com:8443*1 outbound|443||*.x.com"
    );
}

#[test]
fn http_3_http_7_res_1_requests() {
    let yaml =
        entry("a", &format!("hosts: [a.com], addresses: [192.0.2.5], {}, {DNS}", port(80, "HTTP")))
            + &entry("b", &format!("hosts: [n.com], addresses: [192.0.2.6], {}", port(80, "HTTP")))
            + &entry("c", &format!("hosts: [\"*.w.com\"], {}", port(80, "HTTP")));
    let policy_ = policy(&yaml, Strict, RegistryOnly);
    for (ip, host, expected) in [
        ("198.51.100.1", "a.com", "forward a.com:80*1 outbound|80||a.com default"),
        ("192.0.2.5", "192.0.2.5", "forward a.com:80*1 outbound|80||a.com default"),
        ("198.51.100.1", "192.0.2.5", "400 explained closing - bad_host"),
        ("198.51.100.1", "198.51.100.1", "502 explained closing - block_all not_registered"),
        ("192.0.2.6", "n.com", "forward odst:80 outbound|80||n.com default"),
        ("198.51.100.1", "n.com", "502 explained closing - block_all address_not_verified"),
        ("198.51.100.1", "x.w.com", "forward verified:x.w.com:80 outbound|80||*.w.com default"),
        ("198.51.100.1", "a.com:81", "400 explained closing - bad_host"),
    ] {
        assert_eq!(get(&policy_, &format!("{ip}:80"), host), expected, "{ip} {host}");
    }
    let dst = "198.51.100.1:80";
    let ask = |policy: &Policy, method, authority, hosts: &[&str], version| {
        request(policy, dst, method, authority, hosts, version)
    };
    assert_eq!(
        ask(&policy_, "CONNECT", Some("a.com:80"), &["a.com:80"], 11),
        "403 explained closing - connect_method"
    );
    assert_eq!(
        ask(&policy_, "GET", Some("b.com"), &["a.com"], 11),
        "400 explained closing - bad_host"
    );
    assert_eq!(ask(&policy_, "GET", None, &["a.com"], 10), "426 explained closing - http_version");
    let open = policy(&yaml, Strict, AllowAny);
    assert_eq!(
        ask(&open, "GET", None, &["unknown.com"], 11),
        "forward odst:80(unknown.com) PassthroughCluster allow_any"
    );
}

#[test]
fn t_13_special_addresses() {
    let named = entry(
        "m",
        &format!("hosts: [meta.internal], addresses: [169.254.169.254], {}", port(80, "HTTP")),
    ) + &entry(
        "t",
        &format!("hosts: [lo.internal], addresses: [127.0.0.0/8], {}", port(5432, "TCP")),
    );
    let special = "decided reset BlackHoleCluster special_address";
    let (open, closed) = (policy("", Strict, AllowAny), policy("", Strict, RegistryOnly));
    for (dst, in_open) in [
        ("169.254.169.254:80", special),
        ("[fd00:ec2::254]:80", special),
        ("[::ffff:169.254.169.254]:80", special),
        ("169.254.1.1:80", "inspect, else relay odst:80 PassthroughCluster"),
        ("127.1.1.1:80", "inspect, else relay odst:80 PassthroughCluster"),
    ] {
        assert_eq!(dial(&open, dst), in_open, "{dst}");
        assert_eq!(dial(&closed, dst), special, "{dst}");
    }
    for mode in [AllowAny, RegistryOnly] {
        let policy = policy(&named, Strict, mode);
        let meta = "169.254.169.254:80";
        assert_eq!(
            get(&policy, meta, "meta.internal"),
            "forward odst:80 outbound|80||meta.internal default"
        );
        assert_eq!(
            get(&policy, meta, "other.com"),
            "502 explained closing - block_all special_address",
            "{mode:?}: named by address does not mean open to any Host"
        );
        assert_eq!(
            connect(&policy, meta, &Hello::Opaque),
            "reset BlackHoleCluster special_address",
            "{mode:?}"
        );
        assert_eq!(
            dial(&policy, "127.0.0.1:5432"),
            "decided relay odst:5432 outbound|5432||lo.internal"
        );
    }
}

/// T-26: an entry may forbid hellos that hide the name they mean; by default only the log tells.
#[test]
fn t_26_an_entry_may_forbid_encrypted_client_hello() {
    let hidden = |name: &str| {
        let sni = HostName::parse(name).ok();
        Hello::Tls(ClientHello { sni, ech: true, ..ClientHello::default() })
    };
    let tls_port = port(443, "TLS");
    let with = |value: &str, host: &str, more: &str| {
        let metadata = format!("a, annotations: {{egress.interceptor.io/ech: {value}}}");
        entry(&metadata, &format!("hosts: ['{host}'], {tls_port}, {more}"))
    };
    for profile in [Strict, Istio] {
        let given = "addresses: [192.0.2.1], resolution: NONE";
        for (host, shown, more) in
            [("a.com", "a.com", DNS), ("a.com", "a.com", given), ("*.a.com", "b.a.com", given)]
        {
            let allowed = policy(&with("allow", host, more), profile, RegistryOnly);
            let verdict = |policy: &Policy, hello: &Hello| connect(policy, "192.0.2.1:443", hello);
            let plain = verdict(&allowed, &tls(shown));
            assert!(plain.starts_with("relay "), "{plain}");
            assert_eq!(verdict(&allowed, &hidden(shown)), plain);
            let forbidden = policy(&with("forbid", host, more), profile, RegistryOnly);
            assert_eq!(verdict(&forbidden, &tls(shown)), plain);
            assert_eq!(
                verdict(&forbidden, &hidden(shown)),
                "close BlackHoleCluster hidden_name",
                "{profile:?} {host} {more}"
            );
        }
    }
}
