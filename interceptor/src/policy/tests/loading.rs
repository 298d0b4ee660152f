//! Files, documents, kinds, fields: every mistake in its place, all at once.

use super::*;
use crate::decide;
use crate::decide::host::HostName;
use crate::gateway::Nodes;
use crate::origin::OriginalDst;
use crate::sniff::{ClientHello, Hello};

const GOOD: &str = "apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata:
  name: a
spec:
  hosts: [a.com]
  ports:
  - number: 80
    name: http
    protocol: HTTP
  resolution: DNS
";

fn errors(text: &str) -> Vec<String> {
    load_text(text, Enforcement::Strict).expect_err("must be refused")
}

#[test]
fn every_mistake_of_a_set_is_reported_at_once_and_in_its_place() {
    let text = "apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata:
  name: x
  namespace: shop
  labels:
    a: 1
spec:
  hosts: [a.com]
  hots: 1
  ports:
  - number: \"80\"
    protocl: HTTP
    name: http
  location: FOO
  addresses: 10.0.0.1
---
kind: Foo
---
just text
---
apiVersion: networking.istio.io/v2
kind: ServiceEntry
metadata: {name: y}
spec: {hosts: [b.com]}
";
    assert_eq!(
        errors(text),
        [
            "p.yaml:7:5: ServiceEntry shop/x: metadata.labels.a: expected text (put it in quotes), \
             found a number",
            "p.yaml:10:3: ServiceEntry shop/x: spec.hots: unknown field",
            "p.yaml:12:13: ServiceEntry shop/x: spec.ports[0].number: expected a whole number, \
             found text",
            "p.yaml:13:5: ServiceEntry shop/x: spec.ports[0].protocl: unknown field",
            "p.yaml:15:13: ServiceEntry shop/x: spec.location: unknown value \"FOO\"; use one of \
             MESH_EXTERNAL, MESH_INTERNAL",
            "p.yaml:16:14: ServiceEntry shop/x: spec.addresses: expected a list, found text",
            "p.yaml:18:7: kind: unknown kind \"Foo\"",
            "p.yaml:20:1: expected a resource, found text",
            "p.yaml:22:13: ServiceEntry default/y: apiVersion: \"networking.istio.io/v2\" is not a \
             version of ServiceEntry; use networking.istio.io/v1, networking.istio.io/v1beta1, \
             networking.istio.io/v1alpha3",
        ]
    );
}

#[test]
fn broken_yaml_names_line_and_column() {
    for (text, expected) in [
        ("a: [\n", "p.yaml:1:4: not readable as YAML: unclosed bracket '['"),
        (
            "a: b: c\n",
            "p.yaml:1:5: not readable as YAML: mapping values are not allowed in this context",
        ),
        ("a: 1\na: 2\n", "p.yaml:2:1: not readable as YAML: duplicate mapping key: a"),
        ("a: {b: 1}\n!x a: 2\n", "p.yaml:2:4: not readable as YAML: a is given twice"),
    ] {
        assert_eq!(errors(text), [expected], "{text:?}");
    }
}

#[test]
fn an_alias_bomb_ends_early() {
    let mut text = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
    for i in 1..9 {
        let item = format!("*a{}", i - 1);
        text += &format!("a{i}: &a{i} [{}]\n", [item.as_str(); 10].join(", "));
    }
    let errors = errors(&text);
    assert_eq!(errors.len(), 1);
    let expected = "not readable as YAML: more documents, nodes, anchors or aliases than a policy \
                    file may have";
    assert!(errors[0].ends_with(expected), "{errors:?}");
}

#[test]
fn files_that_cannot_be_read_and_those_beside_them() {
    let dir = tempfile::tempdir().expect("a directory");
    std::fs::write(dir.path().join("bad.yaml"), b"a: \xff\n").expect("written");
    std::fs::write(dir.path().join("worse.yml"), "kind: Foo\n").expect("written");
    std::fs::write(dir.path().join("notes.txt"), "not: [yaml").expect("written");
    let sources = Sources {
        files: vec![dir.path().join("absent.yaml"), dir.path().to_owned()],
        ..Sources::default()
    };
    let errors = load(&sources, &Caller::new("default")).expect_err("must be refused");
    assert_eq!(
        lines(&errors, dir.path()),
        [
            "absent.yaml: cannot be read: No such file or directory (os error 2)",
            "bad.yaml: is not UTF-8 (byte 3)",
            "worse.yml:1:7: kind: unknown kind \"Foo\"",
        ]
    );
}

#[test]
fn a_file_above_the_limit_is_refused() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("big.yaml");
    let file = std::fs::File::create(&path).expect("made");
    file.set_len(51 * 1024 * 1024).expect("grown");
    let sources = Sources { files: vec![path], ..Sources::default() };
    let errors = load(&sources, &Caller::new("default")).expect_err("must be refused");
    assert_eq!(lines(&errors, dir.path()), ["big.yaml: is larger than 50 MiB"]);
}

#[test]
fn empty_files_and_directories_hold_no_resources() {
    for text in ["", "# nothing\n", "---\n---\n"] {
        let loaded = load_text(text, Enforcement::Strict).expect("accepted");
        assert_eq!(loaded.summary, Summary::default(), "{text:?}");
    }
}

#[test]
fn lists_and_documents_are_counted() {
    let indented = GOOD.replace('\n', "\n  ");
    let other = indented.replace("name: a\n", "name: b\n").replace("a.com", "b.com");
    let list = format!("apiVersion: v1\nkind: List\nitems:\n- {indented}\n- {other}\n");
    let loaded = load_text(&list, Enforcement::Strict).expect("accepted");
    let expected = Summary { documents: 2, service_entries: 2, services: 2, ..Summary::default() };
    assert_eq!(loaded.summary, expected);
    assert_eq!(loaded.summary.to_string(), "2 documents, 2 service entries, 2 services");
}

#[test]
fn what_an_api_server_adds_is_accepted() {
    let text = GOOD.replace(
        "  name: a\n",
        "  name: a\n  uid: x\n  generation: 1\n  resourceVersion: \"1\"\n  managedFields: []\n  \
         creationTimestamp: 2020-01-01T00:00:00Z\n",
    ) + "status: {}\n";
    let loaded = load_text(&text, Enforcement::Strict).expect("accepted");
    assert_eq!(texts(&loaded.warnings), [""; 0]);
}

#[test]
fn what_is_not_supported_yet_is_said() {
    let warned =
        |text: &str| texts(&load_text(text, Enforcement::Strict).expect("accepted").warnings);
    for version in ["v1", "apps/v1", "networking.k8s.io/v1"] {
        let said = warned(&format!("apiVersion: {version}\nkind: Some\nmetadata: {{name: s}}\n"));
        assert_eq!(
            said,
            ["p.yaml:2:7: Some default/s: kind: Some: not supported yet; ignored"],
            "{version}"
        );
    }
    for (version, kind) in [("example.com/v1", "Some"), ("networking.istio.io/v1", "ServiceEntri")]
    {
        let text = format!("apiVersion: {version}\nkind: {kind}\nmetadata: {{name: s}}\n");
        assert_eq!(
            errors(&text),
            [format!("p.yaml:2:7: {kind} default/s: kind: unknown kind \"{kind}\"")]
        );
    }
    let fields = GOOD.to_owned()
        + "  endpoints:\n  - address: b.com\n    locality: r/z\n    serviceAccount: sa\n";
    let said = warned(&fields);
    assert_eq!(said.len(), 2, "{said:?}");
    assert!(said.iter().all(|line| line.contains("has no effect here")), "{said:?}");
}

/// SE-4, SE-7, T-12: unix sockets are endpoints in istio, and none in strict, which says why.
#[test]
fn se_7_unix_sockets_by_profile() {
    let fixed = GOOD.replace("DNS", "STATIC");
    let listed = fixed.clone() + "  endpoints:\n  - address: unix:///run/x\n";
    let mixed = listed.clone() + "  - address: 192.0.2.1\n";
    let selected = fixed
        + "  workloadSelector: {labels: {app: a}}\n---\napiVersion: networking.istio.io/v1\n\
           kind: WorkloadEntry\nmetadata: {name: w}\n\
           spec: {address: 'unix:///run/x', labels: {app: a}}\n";
    for text in [&listed, &selected] {
        let loaded = load_text(text, Enforcement::Istio).expect("accepted");
        assert_eq!((texts(&loaded.warnings), texts(&loaded.rejected)), (vec![], vec![]));
        let decide::Upstream::Unix(sockets) = upstream(&loaded) else { panic!("{text}") };
        let paths: Vec<_> = sockets.iter().map(|one| (&*one.target, one.weight)).collect();
        assert_eq!(paths, [(Path::new("/run/x"), 1)]);
    }
    let why = "the daemon would open this unix socket with its own rights, and strict reaches none \
               for a workload (T-12); use an IP address, or enforcement istio";
    let loaded = load_text(&listed, Enforcement::Strict).expect("usable");
    let at = "p.yaml:13:14: ServiceEntry default/a: spec.endpoints[0].address:";
    assert_eq!(texts(&loaded.rejected), [format!("{at} {why}")]);
    let loaded = load_text(&selected, Enforcement::Strict).expect("accepted");
    assert_eq!(upstream(&loaded), decide::Upstream::None);
    let at = "p.yaml:6:3: ServiceEntry default/a: spec.workloadSelector: WorkloadEntry default/w is \
              left out:";
    assert_eq!(texts(&loaded.warnings), [format!("{at} {why}")]);
    let loaded = load_text(&mixed, Enforcement::Istio).expect("usable");
    assert!(texts(&loaded.rejected)[0].contains("give each its own entry"));
}

#[test]
fn two_resources_of_one_name_are_refused() {
    let text = format!("{GOOD}---\n{GOOD}");
    assert_eq!(
        errors(&text),
        ["p.yaml:16:9: ServiceEntry default/a: metadata.name: a second resource of this name; \
          rename or remove one"]
    );
    let istio = "networking.istio.io/v1";
    for (version, kind, body) in [
        (istio, "DestinationRule", "spec: {host: a.com, trafficPolicy: {tls: {mode: DISABLE}}}"),
        (istio, "WorkloadEntry", "spec: {address: 192.0.2.1}"),
        (
            istio,
            "VirtualService",
            "spec: {hosts: [a.com], http: [{directResponse: {status: 200}}]}",
        ),
        (istio, "Sidecar", "spec: {egress: [{hosts: ['*/*']}]}"),
        ("v1", "Service", "spec: {clusterIP: 10.0.0.1, ports: [{port: 80}]}"),
        ("v1", "Secret", "stringData: {tls.key: HUSH}"),
        ("v1", "ConfigMap", "data: {ca.crt: x}"),
    ] {
        let one = |name: &str, namespace: &str| {
            format!(
                "---\napiVersion: {version}\nkind: {kind}\n\
                 metadata: {{name: {name}, namespace: {namespace}}}\n{body}\n"
            )
        };
        let twice = errors(&(one("x", "n") + &one("x", "n")));
        let said =
            format!("p.yaml:9:18: {kind} n/x: metadata.name: a second resource of this name; ");
        assert_eq!(twice, [said + "rename or remove one"]);
        let apart = one("x", "n") + &one("y", "n") + &one("x", "o");
        assert!(load_text(&apart, Enforcement::Strict).is_ok(), "{kind}");
    }
}

/// SE-8: the workloads that an entry selects, addresses only where nothing is resolved; RES-3,
/// SE-15: addresses beside names, and HTTP/2, need no remark.
#[test]
fn se_8_workloads_by_resolution() {
    let workload = |name: &str, address: &str| {
        format!(
            "---\napiVersion: networking.istio.io/v1\nkind: WorkloadEntry\nmetadata: {{name: {name}}}\n\
             spec: {{address: {address}, labels: {{app: a}}}}\n"
        )
    };
    let workloads = workload("one", "192.0.2.1") + &workload("two", "vm.example.com");
    let entry = GOOD.replace("HTTP", "GRPC") + "  workloadSelector: {labels: {app: a}}\n";
    let left_out = "p.yaml:6:3: ServiceEntry default/a: spec.workloadSelector: WorkloadEntry \
                    default/two is left out: vm.example.com is a name, and STATIC takes addresses; \
                    use resolution DNS (SE-8)";
    for (resolution, said, places) in [
        ("STATIC", vec![left_out], "192.0.2.1:80"),
        ("DNS", vec![], "192.0.2.1:80, vm.example.com:80"),
    ] {
        let text = entry.replace("resolution: DNS", &format!("resolution: {resolution}"));
        for profile in [Enforcement::Strict, Enforcement::Istio] {
            let loaded = load_text(&format!("{text}{workloads}"), profile).expect("accepted");
            assert_eq!(texts(&loaded.warnings), said);
            let shown = match upstream(&loaded) {
                decide::Upstream::Static(found) => {
                    found.iter().map(|one| one.target.to_string()).collect::<Vec<_>>()
                }
                decide::Upstream::Dns { endpoints, .. } => {
                    let targets = endpoints.iter().map(|one| &one.target);
                    targets.map(|(place, port)| format!("{place}:{port}")).collect()
                }
                other => panic!("{other:?}"),
            };
            assert_eq!(shown.join(", "), places);
        }
    }
}

/// Where a request for a.com goes.
fn upstream(loaded: &Loaded) -> decide::Upstream {
    let head = decide::RequestHead {
        method: "GET",
        authority: None,
        hosts: &["a.com"],
        path: "/",
        version: 11,
        headers: &(),
    };
    let dst = OriginalDst::new("192.0.2.9:80".parse().expect("an address"));
    let flow = decide::Flow { dst, namespace: "default" };
    let decision = decide::by_request(&loaded.snapshot.policy, &flow, &head);
    let decide::Action::Forward(forward) = decision.action else { panic!("{decision:?}") };
    forward.destinations[0].upstream.clone()
}

#[test]
fn interceptor_config_sets_the_profile_and_the_flag_overrides_it() {
    let config = "apiVersion: egress.interceptor.io/v1alpha1\nkind: InterceptorConfig\n\
                  metadata: {name: default}\nspec: {enforcement: istio}\n";
    let with = |enforcement| {
        load_from(config, |file| Sources { files: vec![file], enforcement, ..Sources::default() })
            .expect("accepted")
            .snapshot
            .enforcement
    };
    assert_eq!(with(None), Enforcement::Istio);
    assert_eq!(with(Some(Enforcement::Strict)), Enforcement::Strict);
    let more =
        config.replace("istio}", "istio, limits: {bytes: 1, undecided: 0}, mode: audit, no: 1}");
    assert_eq!(
        errors(&more),
        [
            "p.yaml:4:37: InterceptorConfig default/default: spec.limits.bytes: unknown field",
            "p.yaml:4:58: InterceptorConfig default/default: spec.limits.undecided: 0 must lie \
             between 1 and 10000000",
            "p.yaml:4:62: InterceptorConfig default/default: spec.mode: not supported yet",
            "p.yaml:4:75: InterceptorConfig default/default: spec.no: unknown field",
        ]
    );
}

#[test]
fn interceptor_config_sets_the_fast_path_and_the_flag_overrides_it() {
    let config = "apiVersion: egress.interceptor.io/v1alpha1\nkind: InterceptorConfig\n\
                  metadata: {name: default}\nspec: {fastPath: false}\n";
    let with = |text: &str, fast_path| {
        load_from(text, |file| Sources { files: vec![file], fast_path, ..Sources::default() })
            .expect("accepted")
            .snapshot
            .fast_path
    };
    assert!(!with(config, None));
    assert!(with(config, Some(true)));
    assert!(with(GOOD, None), "the default");
    assert!(!with(GOOD, Some(false)));
}

#[test]
fn interceptor_config_says_what_goes_on_without_a_daemon_and_the_flag_overrides_it() {
    let config = "apiVersion: egress.interceptor.io/v1alpha1\nkind: InterceptorConfig\n\
                  metadata: {name: default}\nspec: {onDaemonLoss: closed}\n";
    let with = |text: &str, on_loss| {
        load_from(text, |file| Sources { files: vec![file], on_loss, ..Sources::default() })
            .expect("accepted")
            .snapshot
            .on_loss
    };
    assert_eq!(with(config, None), OnLoss::Closed);
    assert_eq!(with(config, Some(OnLoss::DirectTier)), OnLoss::DirectTier);
    assert_eq!(with(GOOD, None), OnLoss::DirectTier, "the default");
    assert_eq!(with(&config.replace("closed", "direct-tier"), None), OnLoss::DirectTier);
    let bad = errors(&config.replace("closed", "open"));
    assert!(bad[0].contains("spec.onDaemonLoss"), "{bad:?}");
}

#[test]
fn interceptor_config_says_what_happens_without_a_log_and_the_flag_overrides_it() {
    let config = "apiVersion: egress.interceptor.io/v1alpha1\nkind: InterceptorConfig\n\
                  metadata: {name: default}\nspec: {onLogLoss: refuse}\n";
    let with = |text: &str, on_log_loss| {
        load_from(text, |file| Sources { files: vec![file], on_log_loss, ..Sources::default() })
            .expect("accepted")
            .snapshot
            .on_log_loss
    };
    assert_eq!(with(config, None), OnLogLoss::Refuse);
    assert_eq!(with(config, Some(OnLogLoss::Continue)), OnLogLoss::Continue);
    assert_eq!(with(GOOD, None), OnLogLoss::Continue, "the default");
    let bad = errors(&config.replace("refuse", "drop"));
    assert!(bad[0].contains("spec.onLogLoss"), "{bad:?}");
}

#[test]
fn a_losing_entry_is_named_with_the_winner() {
    let later =
        GOOD.replace("name: a\n", "name: b\n").replace("resolution: DNS", "resolution: NONE");
    let loaded = load_text(&format!("{GOOD}---\n{later}"), Enforcement::Strict).expect("accepted");
    assert_eq!(
        texts(&loaded.warnings),
        ["p.yaml:18:3: ServiceEntry default/b: spec.hosts: host a.com is ignored here: \
          ServiceEntry default/a has it first (REG-3, REG-5)"]
    );
}

#[test]
fn gap_1_a_port_taken_by_an_earlier_entry_is_said() {
    let tcp = GOOD.replace("protocol: HTTP", "protocol: TCP");
    let later = tcp.replace("name: a\n", "name: b\n").replace("a.com", "b.com");
    let both = format!("{tcp}---\n{later}");
    let warned = |profile| texts(&load_text(&both, profile).expect("accepted").warnings);
    assert_eq!(
        warned(Enforcement::Istio),
        ["p.yaml:18:3: ServiceEntry default/b: spec.ports: port 80 gets no opaque traffic: \
          ServiceEntry default/a has no addresses either and comes first (REG-9)"]
    );
    assert_eq!(warned(Enforcement::Strict), [""; 0], "strict ties each to its own addresses");
}

#[test]
fn the_examples_load_in_both_profiles() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples");
    for enforcement in [Enforcement::Strict, Enforcement::Istio] {
        let mut seen = 0;
        let all = [dir.clone(), dir.join("walkthrough"), dir.join("gateway")];
        let listed = all.iter().flat_map(|dir| std::fs::read_dir(dir).expect("examples"));
        for path in listed.map(|file| file.expect("an entry").path()).filter(|path| path.is_file())
        {
            if path.ends_with("gateway/nodes.yaml") {
                let nodes = Nodes::read(&path).unwrap_or_else(|e| panic!("{e}"));
                assert_eq!(nodes.len(), 2);
                seen += 1;
                continue;
            }
            let mesh = path.file_name().is_some_and(|n| n.to_string_lossy().starts_with("mesh"));
            let sources = Sources {
                files: if mesh { vec![] } else { vec![path.clone()] },
                mesh_config: mesh.then(|| path.clone()),
                enforcement: Some(enforcement),
                ..Sources::default()
            };
            let loaded = load(&sources, &Caller::new("default")).unwrap_or_else(|e| panic!("{e}"));
            assert!(loaded.rejected.is_empty(), "{}: {:?}", path.display(), loaded.rejected);
            seen += 1;
        }
        assert!(seen >= 20, "{seen}");
    }
}

/// What the examples of a gateway are for: two doors for the node, and the ports of Istio's form.
#[test]
fn the_examples_of_gateways_make_some() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples");
    let of = |file: &str, gateway: Option<&str>, labels: &[(&str, &str)]| {
        let sources = Sources {
            files: vec![dir.join(file)],
            gateway: gateway.map(|at| at.parse().expect("an address")),
            ..Sources::default()
        };
        let labels = labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
        let namespace = if gateway.is_some() { "istio-system" } else { "default" };
        let caller = Caller { namespace: namespace.to_owned(), labels: labels.collect() };
        load(&sources, &caller).unwrap_or_else(|e| panic!("{e}")).snapshot.policy
    };
    assert!(of("gateway/node.yaml", None, &[]).may_reroute());
    let file = "walkthrough/10-egress-gateway.yaml";
    let listens = |policy: &decide::Policy| {
        policy.listeners().map(|ports| ports.keys().copied().collect::<Vec<_>>())
    };
    let own = [("istio", "egressgateway")];
    assert_eq!(listens(&of(file, Some("10.77.0.1"), &own)), Some(vec![8080, 8443]));
    // Its Service leads elsewhere; it is not selected; it is no gateway.
    assert_eq!(listens(&of(file, Some("10.77.0.9"), &own)), Some(vec![80, 443]));
    assert_eq!(listens(&of(file, Some("10.77.0.1"), &[])), Some(vec![]));
    assert_eq!(listens(&of(file, None, &own)), None);
}

#[test]
fn udp_ports_of_entries_with_addresses_are_listed() {
    let text = GOOD
        .replace("protocol: HTTP", "protocol: UDP")
        .replace("  resolution: DNS", "  addresses: [192.0.2.1, \"2001:db8::/32\"]");
    let loaded = load_text(&text, Enforcement::Strict).expect("accepted");
    let expected: Vec<(IpNet, u16)> =
        ["192.0.2.1/32", "2001:db8::/32"].map(|net| (net.parse().expect("a network"), 80)).into();
    assert_eq!(loaded.snapshot.udp_allowed, expected);
}

#[test]
fn ten_thousand_hosts_load_and_decide() {
    let mut text = String::new();
    for i in 0..40 {
        let hosts: Vec<String> = (0..250).map(|j| format!("h{}.com", i * 250 + j)).collect();
        text += &format!(
            "---\napiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {{name: e{i}}}\n\
             spec: {{hosts: [{}], ports: [{{number: 443, name: t, protocol: TLS}}], \
             resolution: DNS}}\n",
            hosts.join(", ")
        );
    }
    let loaded = load_text(&text, Enforcement::Strict).expect("accepted");
    assert_eq!(loaded.summary.services, 10_000);
    let flow = decide::Flow {
        dst: OriginalDst::new("192.0.2.1:443".parse().expect("an address")),
        namespace: "default",
    };
    for i in 0..10_000 {
        let sni = Some(HostName::parse(&format!("h{i}.com")).expect("a name"));
        let hello = Hello::Tls(ClientHello { sni, ..ClientHello::default() });
        let decision = decide::by_hello(&loaded.snapshot.policy, &flow, &hello);
        let cluster = decide::ClusterName::outbound(443, &format!("h{i}.com"));
        assert_eq!(decision.cluster, Some(cluster));
    }
}
