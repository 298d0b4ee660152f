use super::*;
use crate::policy::{OnLogLoss, OnLoss, Outbound};

fn parse_line(line: &str) -> Result<Cli, ParseExit> {
    parse(line.split_whitespace())
}

fn run(line: &str) -> Run {
    match parse_line(line) {
        Ok(Cli { verb: Verb::Run(run) }) => *run,
        other => panic!("{line}: {other:?}"),
    }
}

#[test]
fn the_definition_is_consistent() {
    Cli::command().debug_assert();
}

#[test]
fn run_with_every_option() {
    let all = run("interceptor run -f a.yaml -f dir --mesh-config mesh.yaml --outbound \
                   registry-only --enforcement istio --bypass 203.0.113.0/24 --bypass ::1 \
                   --resolver 192.0.2.53 --resolver [2001:db8::53]:5353 --cgroup a/b \
                   --netns blue --keep-existing --on-daemon-loss closed --on-log-loss refuse --access-log - --no-bypass-log --name ci-7 --keep-caps --wait \
                   --bpf-log -- curl -f --name x");
    assert_eq!(all.files, [PathBuf::from("a.yaml"), PathBuf::from("dir")]);
    assert_eq!(all.mesh.mesh_config, Some("mesh.yaml".into()));
    assert_eq!(all.mesh.outbound, Some(Outbound::RegistryOnly));
    assert_eq!(all.mesh.enforcement, Some(Enforcement::Istio));
    let bypass: Vec<String> = all.bypass.iter().map(ToString::to_string).collect();
    assert_eq!(bypass, ["203.0.113.0/24", "::1/128"]);
    let resolvers: Vec<String> = all.resolvers.iter().map(ToString::to_string).collect();
    assert_eq!(resolvers, ["192.0.2.53:53", "[2001:db8::53]:5353"]);
    assert_eq!(all.cgroups, [PathBuf::from("a/b")]);
    assert_eq!(all.netns.as_deref(), Some("blue"));
    assert_eq!(all.access_log, Some(LogTarget::Stdout));
    assert_eq!(all.name, "ci-7");
    assert_eq!(all.on_daemon_loss, Some(OnLoss::Closed));
    assert_eq!(all.on_log_loss, Some(OnLogLoss::Refuse));
    assert!(all.no_bypass_log && all.keep_caps && all.wait && all.bpf_log && all.keep_existing);
    assert_eq!(all.command, ["curl", "-f", "--name", "x"], "after -- all is the command's");
}

#[test]
fn a_place_can_be_taken_but_not_a_commands() {
    let taking = run("interceptor run --take-over --drain-time 5 --cgroup a");
    assert!(taking.take_over);
    assert_eq!((taking.drain_time, run("interceptor run --cgroup a").drain_time), (5, 45));
    for line in ["run --take-over -- true", "run --drain-time 5 -- true", "run --drain-time x"] {
        let exit = parse_line(&format!("interceptor {line}")).expect_err(line);
        assert_eq!(exit.exit, Exit::Usage, "{line}");
    }
}

#[test]
fn run_defaults_leave_the_choice_to_the_configuration() {
    let plain = run("interceptor run -- true");
    assert_eq!((plain.mesh.outbound, plain.mesh.enforcement, plain.access_log), (None, None, None));
    assert_eq!(plain.name, "default");
    assert_eq!((plain.on_daemon_loss, plain.on_log_loss), (None, None));
    assert!(!(plain.keep_caps || plain.wait || plain.bpf_log || plain.no_bypass_log));
    assert!(!plain.keep_existing);
}

#[test]
fn other_verbs() {
    for (line, want) in [
        (
            "interceptor exec --name a -- true",
            Verb::Exec(Exec { name: "a".into(), keep_caps: false, command: vec!["true".into()] }),
        ),
        (
            "interceptor status -o json",
            Verb::Status(Status {
                name: "default".into(),
                output: Output::Json,
                ready: false,
                allow_single_layer: false,
                here: false,
            }),
        ),
        (
            "interceptor status --name agent --ready --allow-single-layer --here",
            Verb::Status(Status {
                name: "agent".into(),
                output: Output::Text,
                ready: true,
                allow_single_layer: true,
                here: true,
            }),
        ),
        (
            "interceptor metrics --listen [::]:9464",
            Verb::Metrics(Metrics {
                name: "default".into(),
                listen: Some("[::]:9464".parse().unwrap()),
            }),
        ),
        (
            "interceptor bypass add 192.0.2.1 --name b",
            Verb::Bypass(Bypass {
                change: BypassChange::Add { cidr: "192.0.2.1/32".parse().unwrap() },
                name: "b".into(),
            }),
        ),
        (
            "interceptor bypass list",
            Verb::Bypass(Bypass { change: BypassChange::List, name: "default".into() }),
        ),
        (
            "interceptor detach",
            Verb::Detach(Detach { name: "default".into(), cni_conf_dir: None, cni_bin_dir: None }),
        ),
    ] {
        assert_eq!(parse_line(line).map(|cli| cli.verb), Ok(want), "{line}");
    }
}

#[test]
fn wrong_lines_exit_64_and_say_why() {
    for (line, says) in [
        ("interceptor", "Usage"),
        ("interceptor frobnicate", "frobnicate"),
        ("interceptor run", "nothing to intercept"),
        ("interceptor run curl", "curl"),
        ("interceptor run --outbound maybe -- true", "registry-only"),
        ("interceptor run --wait --cgroup a", "COMMAND"),
        ("interceptor run --bypass 10.0.0.1/8 -- true", "write 10.0.0.0/8"),
        ("interceptor run --bypass 10.0.0.0/33 -- true", "not a network"),
        ("interceptor run --resolver dns.example -- true", "not an address"),
        ("interceptor run --resolver 0.0.0.0 -- true", "cannot be a DNS server"),
        ("interceptor run --resolver 192.0.2.1:0 -- true", "cannot be a DNS server"),
        ("interceptor run --name ../x -- true", "a-z"),
        ("interceptor status --name 123456789012345678901234567890123", "1 to 32"),
        ("interceptor status --allow-single-layer", "--ready"),
        ("interceptor status --ready -o json", "--output"),
        ("interceptor metrics --listen 9464", "invalid socket address"),
        ("interceptor agent --node n --check --once", "--once"),
        ("interceptor exec", "COMMAND"),
        ("interceptor bypass add", "CIDR"),
    ] {
        let end = parse_line(line).unwrap_err();
        assert_eq!(end.exit.code(), 64, "{line}");
        assert!(end.text.contains(says), "{line}: {}", end.text);
    }
}

#[test]
fn help_and_version_are_no_errors() {
    for (line, says) in [
        ("interceptor --help", "Exit status"),
        ("interceptor run --help", "registry-only"),
        ("interceptor --version", env!("CARGO_PKG_VERSION")),
    ] {
        let end = parse_line(line).unwrap_err();
        assert_eq!(end.exit, Exit::Success, "{line}");
        assert!(end.text.contains(says), "{line}: {}", end.text);
    }
}

#[test]
fn mapped_networks_are_ipv4() {
    for (text, want) in [
        ("::ffff:192.0.2.0/120", "192.0.2.0/24"),
        ("::ffff:192.0.2.7", "192.0.2.7/32"),
        ("::/0", "::/0"),
        ("::ffff:0:0/95", "::fffe:0:0/95"),
    ] {
        match parse_cidr(text) {
            Ok(net) => assert_eq!(net.to_string(), want, "{text}"),
            Err(error) => assert!(error.contains(want), "{text}: {error}"),
        }
    }
}

#[test]
fn exit_statuses() {
    for (exit, code) in [
        (Exit::Success, 0),
        (Exit::Failure, 1),
        (Exit::Usage, 64),
        (Exit::Resources, 65),
        (Exit::MissingKernelFeature, 69),
        (Exit::Internal, 70),
        (Exit::Busy, 73),
        (Exit::Privilege, 77),
        (Exit::Signal(15), 143),
        (Exit::Command(3), 3),
    ] {
        assert_eq!(exit.code(), code, "{exit:?}");
    }
}

#[test]
fn explain_takes_what_run_takes_of_policy() {
    let line = "interceptor explain -f a.yaml --mesh-config m.yaml --outbound registry-only \
                --enforcement istio --dst 192.0.2.1 --namespace shop --bypass 10.0.0.0/8 --resolve \
                -o json https://a.test/x";
    let Ok(Cli { verb: Verb::Explain(explain) }) = parse_line(line) else { panic!("{line}") };
    assert_eq!(explain.target, "https://a.test/x");
    assert_eq!(explain.files, [PathBuf::from("a.yaml")]);
    assert_eq!(explain.mesh.mesh_config, Some("m.yaml".into()));
    assert_eq!(explain.mesh.outbound, Some(Outbound::RegistryOnly));
    assert_eq!(explain.mesh.enforcement, Some(Enforcement::Istio));
    assert_eq!(
        (explain.dst.as_deref(), explain.workload.namespace.as_str()),
        (Some("192.0.2.1"), "shop")
    );
    assert_eq!(explain.bypass.len(), 1);
    assert_eq!((explain.resolve, explain.output), (true, Output::Json));
    assert!(parse_line("interceptor explain").is_err());
}

#[test]
fn the_workload_is_named_alike_everywhere() {
    let labels = |pairs: &[(&str, &str)]| -> Vec<(String, String)> {
        pairs.iter().map(|(key, value)| ((*key).into(), (*value).into())).collect()
    };
    let given = run("interceptor run --namespace shop --labels app=a,tier= --labels v=1 -- true");
    assert_eq!(given.workload.namespace, "shop");
    assert_eq!(given.workload.labels, labels(&[("app", "a"), ("tier", ""), ("v", "1")]));
    let plain = run("interceptor run -- true").workload;
    assert_eq!((plain.namespace.as_str(), plain.labels.len()), ("default", 0));
    for wrong in
        ["--namespace A", "--namespace -a", "--namespace a.b", "--labels app", "--labels =a"]
    {
        assert!(parse_line(&format!("interceptor run {wrong} -- true")).is_err(), "{wrong}");
    }
}
