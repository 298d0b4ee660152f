//! `run --isolate`: a network of the command's own with both layers, what it needs, and that nothing of
//! it stays.

use std::fs;
use std::net::SocketAddr;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use interceptor_tests::netns::Namespace;
use interceptor_tests::pod::forward;
use interceptor_tests::product::{Interceptor, Running, binary};
use interceptor_tests::snapshot::Snapshot;
use interceptor_tests::world::{self, Finished, World, kernel_tests};

const CLIENT: &str = env!("CARGO_BIN_EXE_interceptor-test-client");
const RESOLVER: &str = "192.0.2.53";
const FLAGS: [&str; 5] = ["--isolate", "--outbound", "registry-only", "--resolver", RESOLVER];

/// What there is of `--isolate` in the namespace where the product runs: links and tables.
fn traces(world: &World) -> Result<Vec<String>> {
    let name = world.workload.name();
    let mut found = Vec::new();
    for (program, mark) in [("ip -o link show", ": ix-"), ("nft list tables", "interceptor-")] {
        let mut command = Command::new("ip");
        let output = command.args(["netns", "exec", name]).args(program.split(' ')).output()?;
        ensure!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
        let text = String::from_utf8(output.stdout)?;
        found.extend(text.lines().filter(|line| line.contains(mark)).map(str::to_owned));
    }
    Ok(found)
}

/// Links and cgroups go a moment after their last user.
fn check_nothing_stayed(world: &World, before: &Snapshot) -> Result<()> {
    let deadline = Instant::now() + Duration::from_secs(3);
    loop {
        let mut left = before.difference(&Snapshot::take());
        left.extend(traces(world)?);
        if left.is_empty() {
            return Ok(());
        }
        assert!(Instant::now() < deadline, "left behind: {left:#?}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Names, proxied and direct connections work in both families, and `status` says that both layers
/// stand.
#[test]
fn a_command_reaches_what_it_may_from_a_network_of_its_own() -> Result<()> {
    if !kernel_tests() {
        return Ok(());
    }
    let world = World::new()?;
    forward(&world.workload)?;
    let direct = "  resolution: NONE\n  addresses: [203.0.113.60, \"2001:db8:1::60\"]\n";
    let entries = [
        world.entry("direct.example.net", 7, "TCP", direct)?,
        world.entry("v4.example.com", 80, "HTTP", "  resolution: DNS\n")?,
        world.entry("v6.example.com", 80, "HTTP", "  resolution: DNS\n")?,
    ];
    let files = entries.iter().flat_map(|entry| ["-f", entry.as_str()]);
    let flags: Vec<&str> = FLAGS.into_iter().chain(files).collect();
    let running = Interceptor::new(&world, &binary(), &flags).start()?;
    let addresses = running.exec(&["ip", "-o", "addr"], 0)?.finished.stdout;
    assert!(addresses.contains("eth0    inet 198.19.0.2/30"), "{addresses}");
    assert!(!addresses.contains("10.77.0.2"), "{addresses}");

    for (host, version) in [("v4.example.com", "-4"), ("v6.example.com", "-6")] {
        let url = format!("http://{host}/");
        let curl = running.exec(&["curl", "-sS", version, "-o", "/dev/null", &url], 1)?;
        assert_eq!(curl.finished.code, 0, "{}", curl.finished.stderr);
    }
    for to in ["203.0.113.60:7", "[2001:db8:1::60]:7"] {
        let echo = running.exec(&[CLIENT, "echo", to, "--bytes", "1000000"], 1)?;
        assert_eq!(echo.finished.stdout, "1000000 intact\n", "{}", echo.finished.stderr);
    }
    assert_eq!(running.counter("direct")?, 2);
    let refused = running.exec(&[CLIENT, "echo", "203.0.113.61:7", "--bytes", "10"], 1)?;
    assert_ne!(refused.finished.code, 0);
    assert!(refused.log[0].contains("BlackHoleCluster"), "{:?}", refused.log);
    let status = running.status()?;
    let namespace = &status["namespaces"][0];
    assert_eq!(namespace["gaps"], serde_json::json!([]), "{status}");
    assert_eq!(namespace["interfaces"].as_array().map(Vec::len), Some(1), "{status}");
    assert_eq!(running.counter("dropped_interface_socket")?, 0);
    Ok(())
}

/// Takes the interface layer away from under a running product.
fn detach_layer(running: &Running<'_>) -> Result<()> {
    let status = running.status()?;
    let all = status["attachments"].as_array().context("attachments")?;
    let layer = all.iter().find(|one| one["hook"] == "interface_out").context("a layer")?;
    let listed = Command::new("bpftool").args(["-j", "link", "show"]).output()?;
    let links: serde_json::Value = serde_json::from_slice(&listed.stdout)?;
    let links = links.as_array().context("links")?;
    let link =
        links.iter().find(|link| link["prog_id"] == layer["program_id"]).context("a link")?;
    let id = link["id"].to_string();
    let done = Command::new("bpftool").args(["link", "detach", "id", &id]).status()?;
    ensure!(done.success(), "bpftool link detach");
    Ok(())
}

/// One more command, with its capabilities.
fn exec_keeping(world: &World, running: &Running<'_>, command: &[&str]) -> Result<Finished> {
    let mut exec = world.command(binary());
    exec.args(["exec", "--keep-caps", "--name", running.name(), "--"]).args(command);
    world.output(&mut exec, Duration::from_secs(20))
}

fn hardware_address(namespace: &Namespace, interface: &str) -> Result<String> {
    let arguments = ["-n", namespace.name(), "-j", "link", "show", interface];
    let shown = Command::new("ip").args(arguments).output()?;
    let shown: serde_json::Value = serde_json::from_slice(&shown.stdout)?;
    Ok(shown[0]["address"].as_str().context("an address")?.to_owned())
}

/// T-6: frames made by hand get nothing out, until the layer is taken away.
#[test]
fn t06_frames_made_by_hand_stay_inside() -> Result<()> {
    if !kernel_tests() {
        return Ok(());
    }
    let world = World::new()?;
    forward(&world.workload)?;
    let flags = [&FLAGS[..], &["--keep-caps"]].concat();
    let running = Interceptor::new(&world, &binary(), &flags).start()?;
    let status = running.status()?;
    let interface = status["namespaces"][0]["interfaces"][0].as_str().context("one")?.to_owned();
    let hop = &hardware_address(&world.workload, &interface)?;
    let to = SocketAddr::new(world::EXAMPLE_V4, 9).to_string();
    for way in ["packet", "packet-bypass", "packet-echo"] {
        let capture = world.capture()?;
        let escape = [CLIENT, "escape", way, &to, "--from", "198.19.0.2", "--via", hop];
        let tried = exec_keeping(&world, &running, &escape)?;
        assert_eq!(tried.stdout, "sent\n", "{way}: {}", tried.stderr);
        assert_eq!(capture.packets_to(world::EXAMPLE_V4), 0, "{way}");
    }
    for name in ["socket", "datagram", "icmp"] {
        assert!(running.counter(&format!("dropped_interface_{name}"))? > 0, "{name}");
    }
    detach_layer(&running)?;
    let control = world.capture()?;
    let escape = [CLIENT, "escape", "packet", &to, "--from", "198.19.0.2", "--via", hop];
    exec_keeping(&world, &running, &escape)?;
    assert!(control.packets_to(world::EXAMPLE_V4) > 0, "the control does not get out");
    Ok(())
}

/// T-8: without a namespace of its own COMMAND has no way to a packet socket that leads anywhere: not by
/// itself, not in a user namespace, and in one with a network of its own there is none.
#[test]
fn t08_a_user_namespace_gives_no_way_out() -> Result<()> {
    if !kernel_tests() {
        return Ok(());
    }
    let world = World::new()?;
    let hop = hardware_address(&world.internet, "veth0")?;
    let to = SocketAddr::new(world::EXAMPLE_V4, 9).to_string();
    let escape = [CLIENT, "escape", "packet", &to, "--from", "10.77.0.2", "--via", &hop];
    let escape = [&escape[..], &["--interface", "veth0"]].concat();
    let control = world.capture()?;
    let mut plain = world.command(escape[0]);
    let sent = world.output(plain.args(&escape[1..]), Duration::from_secs(20))?;
    assert_eq!(sent.stdout, "sent\n", "{}", sent.stderr);
    assert!(control.packets_to(world::EXAMPLE_V4) > 0, "the control does not get out");

    let capture = world.capture()?;
    let running = Interceptor::new(&world, &binary(), &FLAGS[1..]).start()?;
    let ways: [&[&str]; 3] = [&[], &["unshare", "-U", "-r"], &["unshare", "-U", "-r", "-n"]];
    for way in ways {
        let tried = running.exec(&[way, &escape[..]].concat(), 0)?.finished;
        assert_ne!(tried.stdout, "sent\n", "{way:?}");
    }
    let capabilities = running.exec(&["grep", "CapBnd", "/proc/self/status"], 0)?.finished.stdout;
    let bounding =
        u64::from_str_radix(capabilities.trim().rsplit('\t').next().context("caps")?, 16)?;
    const NET_ADMIN: u64 = 1 << 12;
    const NET_RAW: u64 = 1 << 13;
    assert_eq!(bounding & (NET_ADMIN | NET_RAW), 0, "{capabilities}");
    assert_eq!(capture.packets_to(world::EXAMPLE_V4), 0);
    Ok(())
}

/// T-65: what is missing is said before anything starts.
#[test]
fn t65_what_isolation_lacks_is_said() -> Result<()> {
    if !kernel_tests() {
        return Ok(());
    }
    let world = World::alone()?;
    let before = Snapshot::take();
    let run = |flags: &[&str], path: Option<&str>| {
        Interceptor::new(&world, &binary(), flags).run_with(&["touch", "/nowhere/at/all"], |run| {
            if let Some(path) = path {
                run.env("PATH", path);
            }
        })
    };
    // A new namespace has the machine's own setting.
    world.workload.inside(|| fs::write("/proc/sys/net/ipv4/ip_forward", "0"))??;
    let not_forwarding = run(&FLAGS, None)?.finished;
    assert_eq!(not_forwarding.code, 69, "{}", not_forwarding.stderr);
    assert!(not_forwarding.stderr.contains("sysctl -w net.ipv4.ip_forward=1"));

    forward(&world.workload)?;
    let own_resolver = [&FLAGS[..3], &["--resolver", "127.0.0.53"]].concat();
    let unreachable = run(&own_resolver, None)?.finished;
    assert_eq!(unreachable.code, 64, "{}", unreachable.stderr);
    assert!(unreachable.stderr.contains("127.0.0.53:53"), "{}", unreachable.stderr);
    assert!(unreachable.stderr.contains("--resolver"), "{}", unreachable.stderr);

    let no_nft = run(&FLAGS, Some("/nowhere"))?.finished;
    assert_eq!(no_nft.code, 69, "{}", no_nft.stderr);
    assert!(no_nft.stderr.contains("nft"), "{}", no_nft.stderr);
    check_nothing_stayed(&world, &before)
}

#[test]
fn nothing_of_it_stays() -> Result<()> {
    if !kernel_tests() {
        return Ok(());
    }
    let world = World::alone()?;
    forward(&world.workload)?;
    let before = Snapshot::take();
    let product = Interceptor::new(&world, &binary(), &FLAGS);
    let ended = product.run(&["sh", "-c", "exit 42"])?.finished;
    assert_eq!(ended.code, 42, "{}", ended.stderr);
    check_nothing_stayed(&world, &before)?;

    let mut running = Interceptor::new(&world, &binary(), &FLAGS).start()?;
    assert_eq!(traces(&world)?.len(), 2);
    running.kill()?;
    assert_eq!(traces(&world)?.len(), 2, "link and table outlive the daemon, as hooks do");
    let detached = running.detach()?;
    assert_eq!(detached.code, 0, "{}", detached.stderr);
    check_nothing_stayed(&world, &before)
}

/// The next start of the name, isolated or not, takes away what a killed one left.
#[test]
fn the_next_start_takes_a_killed_ones_network_away() -> Result<()> {
    if !kernel_tests() {
        return Ok(());
    }
    let world = World::alone()?;
    forward(&world.workload)?;
    let before = Snapshot::take();
    for again in [&FLAGS[..], &FLAGS[1..]] {
        let mut running = Interceptor::new(&world, &binary(), &FLAGS).start()?;
        running.kill()?;
        let mut run = world.command(binary());
        run.args(["run", "--name", running.name()]).args(again).args(["--", "true"]);
        let ended = world.output(&mut run, Duration::from_secs(30))?;
        assert_eq!(ended.code, 0, "{}", ended.stderr);
        check_nothing_stayed(&world, &before)?;
    }
    Ok(())
}
