//! What must hold for any policy and any flow.

use proptest::prelude::*;

use super::*;

fn host() -> impl Strategy<Value = &'static str> {
    prop::sample::select(vec!["a.com", "b.a.com", "c.b.a.com", "x.org", "a.com.", "192.0.2.1"])
}

fn entry_strategy() -> impl Strategy<Value = String> {
    let hosts = prop::sample::select(vec!["a.com", "\"*.a.com\"", "b.a.com", "x.org", "\"*.org\""]);
    let protocols =
        prop::sample::select(vec!["HTTP", "TLS", "TCP", "\"\"", "MONGO", "GRPC", "UDP"]);
    let addresses = prop::sample::select(vec![
        "",
        "addresses: [192.0.2.1], ",
        "addresses: [192.0.2.0/24, 192.0.2.1/32], ",
        "addresses: [\"2001:db8::/32\"], ",
        "addresses: [169.254.169.254], ",
    ]);
    let resolutions = prop::sample::select(vec![
        "resolution: NONE",
        "resolution: STATIC, endpoints: [{address: 192.0.2.200}]",
        "resolution: STATIC",
        "resolution: DNS",
        "resolution: DNS, endpoints: [{address: e.com, weight: 2}]",
    ]);
    (hosts, protocols, addresses, resolutions, 80_u16..83).prop_map(
        |(host, protocol, addresses, resolution, port)| {
            format!(
                "hosts: [{host}], {addresses}ports: [{{number: {port}, name: p, protocol: \
                 {protocol}}}], {resolution}"
            )
        },
    )
}

fn hello() -> impl Strategy<Value = Hello> {
    prop_oneof![
        prop::sample::select(vec!["a.com", "b.a.com", "x.org", "unknown.net"]).prop_map(tls),
        Just(tls_nameless()),
        Just(Hello::Http1),
        Just(Hello::Http2),
        Just(Hello::Opaque),
        Just(Hello::Silent),
        Just(Hello::Closed),
        Just(malformed()),
    ]
}

/// Compiles what validation accepts and leaves out the rest.
fn compile(entries: &[String], profile: Enforcement, outbound: Outbound) -> Policy {
    let yaml: String =
        entries.iter().enumerate().map(|(i, spec)| entry(&format!("e{i}"), spec)).collect();
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("p.yaml");
    std::fs::write(&file, yaml).expect("written");
    let sources = Sources {
        files: vec![file],
        outbound: Some(outbound),
        enforcement: Some(profile),
        ..Sources::default()
    };
    load(&sources, &Caller::new("default"))
        .unwrap_or_else(|errors| panic!("{errors}"))
        .snapshot
        .policy
}

/// Whether the decision lets anything out that no entry named.
fn passes_unknown(decision: &Decision) -> bool {
    match &decision.action {
        Action::ByResolution(hanging) => {
            passes_unknown(&hanging.otherwise)
                || hanging.claims.iter().any(|claim| passes_unknown(&claim.decision))
        }
        Action::Relay(_) | Action::Forward(_) | Action::Reply(_) => decision.rule.is_none(),
        Action::Block(_) | Action::Http => false,
        Action::Audited(_) => true,
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// No panic anywhere; REGISTRY_ONLY never lets out what no resource named; every allowed or
    /// refused decision is well formed; deciding twice gives the same answer.
    #[test]
    fn decisions_are_total_pure_and_closed(
        entries in prop::collection::vec(entry_strategy(), 0..6),
        ip in prop::sample::select(vec![
            "192.0.2.1", "192.0.2.77", "198.51.100.1", "169.254.169.254", "[2001:db8::1]", "[::1]",
        ]),
        port in 79_u16..84,
        hello in hello(),
        name in host(),
        authority in prop::option::of(host()),
        version in prop::sample::select(vec![10_u8, 11, 20]),
        strict in any::<bool>(),
        closed in any::<bool>(),
    ) {
        let profile = if strict { Strict } else { Istio };
        let outbound = if closed { RegistryOnly } else { AllowAny };
        let policy = compile(&entries, profile, outbound);
        let dst = format!("{ip}:{port}");
        let flow = flow(&dst);
        let first = match by_address(&policy, &flow) {
            ByAddress::Decided(decision) => decision,
            ByAddress::Inspect { unless_client_speaks } => unless_client_speaks,
        };
        let second = by_hello(&policy, &flow, &hello);
        let hosts = [name];
        let head = RequestHead { method: "GET", authority, hosts: &hosts, path: "/", version, headers: &() };
        let third = by_request(&policy, &flow, &head);
        prop_assert_eq!(&third, &by_request(&policy, &flow, &head));
        prop_assert!(!matches!(first.action, Action::Http | Action::Forward(_)));
        prop_assert!(!matches!(second.action, Action::Forward(_)));
        let answers = matches!(third.action, Action::Forward(_) | Action::Block(Block::Http { .. }));
        prop_assert!(answers, "{}", show(&third));
        for decision in [&first, &second, &third] {
            prop_assert!(!(closed && passes_unknown(decision)), "{}", show(decision));
            prop_assert!(!decision.reason.explain().is_empty());
        }
    }

    /// Whatever stands in a policy file, loading it ends without a panic.
    #[test]
    fn loading_any_text_never_panics(text in "(?s).{0,200}") {
        let dir = tempfile::tempdir().expect("a directory");
        let file = dir.path().join("p.yaml");
        std::fs::write(&file, text).expect("written");
        let _ = load(&Sources { files: vec![file.clone()], ..Sources::default() }, &Caller::new("default"));
        let mesh = Sources { mesh_config: Some(file), ..Sources::default() };
        let _ = load(&mesh, &Caller::new("default"));
    }
}
