//! The CNI plugin with real containers: what a pod's first act puts on the wire, judged by a capture at the
//! far side. The pods' cgroup is covered, so that a namespace of which the kernel knows nothing is held.

use std::env;
use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use interceptor_tests::capture::Capture;
use interceptor_tests::cluster::Cluster;
use interceptor_tests::containers::{Node, Sandbox};
use interceptor_tests::node;
use interceptor_tests::product::{Interceptor, Running, binary};
use interceptor_tests::snapshot::{BPFFS, CONTROL_DIR};
use interceptor_tests::world::{self, World, kernel_tests};
use serde_json::{Value, json};

const CLIENT: &str = env!("CARGO_BIN_EXE_interceptor-test-client");
/// What an entry allows.
const ALLOWED: SocketAddr = SocketAddr::new(world::HTTPBIN, 80);
/// What none does.
const FORBIDDEN: SocketAddr = SocketAddr::new(world::EXAMPLE_V4, 80);
/// The system's namespace.
const SYSTEM: &str = "kube-system";
/// How long the daemon may take to put back what was taken away.
const MENDED: Duration = Duration::from_secs(10);

/// How many containers are started: `INTERCEPTOR_STARTS`, at least ten.
fn starts() -> Result<usize> {
    let asked = env::var("INTERCEPTOR_STARTS").unwrap_or_else(|_| "30".to_owned());
    Ok(asked.parse::<usize>().context("INTERCEPTOR_STARTS")?.max(10))
}

/// The plugin's configuration.
fn network(running: &str) -> Value {
    json!({"instance": running, "exemptNamespaces": [SYSTEM], "waitSeconds": 0})
}

fn cover<'w>(world: &'w World, node: &Node<'_>) -> Result<Running<'w>> {
    let entry = world.entry("httpbin.org", 80, "HTTP", "  resolution: DNS\n")?;
    let flags = ["--outbound", "registry-only", "--resolver", "192.0.2.53", "-f", &entry];
    Interceptor::new(world, &binary(), &flags).cover(&node.pods_cgroup()?)
}

/// The first act of a container: a forbidden and an allowed request; what it was told of each.
fn act(node: &Node<'_>, sandbox: &Sandbox) -> Result<(String, String)> {
    let (forbidden, allowed) = (FORBIDDEN.to_string(), ALLOWED.to_string());
    let calls = [["get", &forbidden, "v4.example.com"], ["get", &allowed, "httpbin.org"]];
    let done = node.run(sandbox, &calls.each_ref().map(|call| &call[..]))?;
    let mut lines = done.stdout.lines().map(str::to_owned);
    let both = lines.next().zip(lines.next());
    both.with_context(|| format!("{} {} {}", done.code, done.stdout, done.stderr))
}

fn is_answered(said: &str) -> bool {
    said.starts_with("200 ")
}

/// Connection attempts by this pod on the wire.
fn syns(capture: &Capture, sandbox: &Sandbox) -> (usize, usize) {
    let packets = capture.packets();
    let count = |to: SocketAddr| {
        let of = packets.iter().filter(|packet| {
            packet.is_syn() && packet.ends().1 == to && packet.source == IpAddr::V4(sandbox.address)
        });
        of.map(|packet| packet.source_port).collect::<std::collections::BTreeSet<_>>().len()
    };
    (count(FORBIDDEN), count(ALLOWED))
}

/// What a held pod shows: both refused at once, and nothing on the wire.
fn is_held(node: &Node<'_>, sandbox: &Sandbox) -> Result<()> {
    let capture = node.capture()?;
    let said = act(node, sandbox)?;
    let refused = |said: &str| said.contains("Operation not permitted");
    ensure!(refused(&said.0) && refused(&said.1), "{}: {said:?}", sandbox.name());
    ensure!(syns(&capture, sandbox) == (0, 0), "{}: {:?}", sandbox.name(), syns(&capture, sandbox));
    Ok(())
}

/// What an exempt pod shows: both get there.
fn is_free(node: &Node<'_>, sandbox: &Sandbox) -> Result<()> {
    let capture = node.capture()?;
    let said = act(node, sandbox)?;
    ensure!(is_answered(&said.0) && is_answered(&said.1), "{}: {said:?}", sandbox.name());
    ensure!(syns(&capture, sandbox) == (1, 1), "{}: {:?}", sandbox.name(), syns(&capture, sandbox));
    Ok(())
}

fn records(name: &str) -> PathBuf {
    Path::new(CONTROL_DIR).join("cni").join(name)
}

fn count(directory: &Path) -> usize {
    fs::read_dir(directory).map_or(0, Iterator::count)
}

/// Removes what an instance pinned, as somebody with the privilege may.
fn unpin(name: &str) -> Result<()> {
    let root = Path::new(BPFFS).join("interceptor").join(name);
    for directory in fs::read_dir(&root)?.flatten() {
        for pin in fs::read_dir(directory.path())?.flatten() {
            fs::remove_file(pin.path())?;
        }
        fs::remove_dir(directory.path())?;
    }
    Ok(fs::remove_dir(root)?)
}

/// Removes the records of an instance at the end, also of a test that failed.
struct Swept(String);

impl Drop for Swept {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(records(&self.0));
        let _ = fs::remove_dir(records(&self.0).with_file_name(""));
    }
}

/// Opted-out and system pods start with the right to everything, covered ones with none, whatever became of
/// the daemon: it runs, it was killed, somebody took its pins. Each is a new container in a new namespace.
#[test]
fn first_packets_are_as_the_configuration_on_disk_says() -> Result<()> {
    if !kernel_tests() {
        return Ok(());
    }
    let world = World::new()?;
    let node = Node::new(&world, Path::new(CLIENT))?;
    let mut running = cover(&world, &node)?;
    let name = running.name().to_owned();
    let _swept = Swept(name.clone());
    let network = network(&name);
    let plugin =
        |command: &str, sandbox: &Sandbox| node.plugin(&binary(), command, sandbox, &network);
    let starts = starts()?;
    for start in 0..starts {
        // A tenth with the daemon killed, a tenth after its pins were taken away.
        match start % 10 {
            3 => running.kill()?,
            4 => {
                let command = running.cover_command(&node.pods_cgroup()?);
                running.start_again(command)?;
                running.until_ready()?;
            }
            7 => unpin(&name)?,
            _ => {}
        }
        let of = if start % 2 == 0 { "shop" } else { SYSTEM };
        let sandbox = node.sandbox(of)?;
        let begun = Instant::now();
        let mut answer = plugin("ADD", &sandbox)?;
        // As kubelet does.
        while of == SYSTEM && answer.code == 11 && begun.elapsed() < MENDED {
            ensure!(start % 10 == 7, "start {start}: {}", answer.said);
            sleep(Duration::from_millis(200));
            answer = plugin("ADD", &sandbox)?;
        }
        let which = format!("start {start}, pod of {of}: {}", answer.said);
        if of == SYSTEM {
            ensure!(answer.code == 0, "{which}");
            ensure!(answer.said["ips"][0]["interface"] == 0, "prevResult: {which}");
            ensure!(plugin("CHECK", &sandbox)?.code == 0, "{which}");
            is_free(&node, &sandbox).context(which)?;
        } else {
            ensure!(answer.code == 11, "{which}");
            // No runtime would go on; a workload that gets to run all the same gets nowhere.
            is_held(&node, &sandbox).context(which)?;
        }
        ensure!(plugin("DEL", &sandbox)?.code == 0);
        ensure!(count(&records(&name)) == 0, "start {start}: records");
    }
    Ok(())
}

/// DEL takes the right away again; a second one, or one for what is gone, succeeds.
#[test]
fn a_deleted_pod_is_held() -> Result<()> {
    if !kernel_tests() {
        return Ok(());
    }
    let world = World::new()?;
    let node = Node::new(&world, Path::new(CLIENT))?;
    let running = cover(&world, &node)?;
    let _swept = Swept(running.name().to_owned());
    let network = network(running.name());
    let plugin =
        |command: &str, sandbox: &Sandbox| node.plugin(&binary(), command, sandbox, &network);
    let before = running.entries("NAMESPACES")?;
    let (one, other) = (node.sandbox(SYSTEM)?, node.sandbox(SYSTEM)?);
    is_held(&node, &one).context("before it is attached")?;
    for sandbox in [&one, &other] {
        let answer = plugin("ADD", sandbox)?;
        ensure!(answer.code == 0, "{}", answer.said);
        is_free(&node, sandbox)?;
    }
    ensure!(running.entries("NAMESPACES")? == before + 2);
    ensure!(plugin("DEL", &one)?.code == 0);
    ensure!(running.entries("NAMESPACES")? == before + 1);
    is_held(&node, &one).context("after DEL")?;
    is_free(&node, &other).context("the other one")?;
    ensure!(plugin("CHECK", &one)?.code == 3, "nobody attached it");
    ensure!(plugin("DEL", &one)?.code == 0, "once more");
    ensure!(plugin("STATUS", &other)?.code == 0);
    Ok(())
}

/// Before any agent, or after a reboot: exempt pods start, and leave a record for an agent that comes.
#[test]
fn without_hooks_exempt_pods_need_nothing() -> Result<()> {
    if !kernel_tests() {
        return Ok(());
    }
    let world = World::new()?;
    let node = Node::new(&world, Path::new(CLIENT))?;
    let name = format!("ix-{}-none", std::process::id());
    let _swept = Swept(name.clone());
    let network = network(&name);
    let (system, shop) = (node.sandbox(SYSTEM)?, node.sandbox("shop")?);
    ensure!(node.plugin(&binary(), "STATUS", &system, &network)?.code == 0);
    let answer = node.plugin(&binary(), "ADD", &system, &network)?;
    ensure!(answer.code == 0, "{}", answer.said);
    is_free(&node, &system)?;
    ensure!(count(&records(&name)) == 1);
    let refused = node.plugin(&binary(), "ADD", &shop, &network)?;
    ensure!(refused.code == 11, "{}", refused.said);
    ensure!(
        refused.said["details"]
            .as_str()
            .is_some_and(|why| why.contains("no interceptor agent named"))
    );
    ensure!(count(&records(&name)) == 1, "who does not start has no record");

    // Somebody else's hooks at the pods' cgroup hold them, and their table is not to be found.
    let running = cover(&world, &node)?;
    let other = node.sandbox(SYSTEM)?;
    let refused = node.plugin(&binary(), "ADD", &other, &network)?;
    ensure!(refused.code == 11, "{}", refused.said);
    ensure!(node.plugin(&binary(), "STATUS", &other, &network)?.code == 50);
    is_held(&node, &other)?;
    running.stop()?;
    ensure!(node.plugin(&binary(), "ADD", &other, &network)?.code == 0);
    is_free(&node, &other)
}

/// The agent's first packets: each start is a new pod of a covered namespace, of which the API server has just
/// told, and whose first act is a forbidden and an allowed connection. A tenth starts while the agent is
/// down and comes back three seconds later, a tenth after it and all its pins are gone.
#[test]
fn first_packets_of_covered_pods() -> Result<()> {
    if !kernel_tests() {
        return Ok(());
    }
    let world = World::new()?;
    let cluster = Cluster::start(&world)?;
    let labels = json!({"egress.interceptor.io/mode": "enforce"});
    cluster.put("api/v1/namespaces", json!({"metadata": {"name": "shop", "labels": labels}}));
    cluster.put(
        "apis/networking.istio.io/v1/serviceentries",
        json!({
            "apiVersion": "networking.istio.io/v1", "kind": "ServiceEntry",
            "metadata": {"name": "httpbin", "namespace": "shop"},
            "spec": {"hosts": ["httpbin.test"], "addresses": [ALLOWED.ip().to_string()],
                "ports": [{"number": ALLOWED.port(), "name": "tcp", "protocol": "TCP"}]},
        }),
    );
    let mut agent = node::Node::new(&world, &cluster, &["--outbound", "registry-only"])?;
    let node = Node::below(&world, Path::new(CLIENT), agent.cgroup_root())?;
    let name = agent.name().to_owned();
    let _swept = Swept(name.clone());
    let mut network = network(&name);
    agent.start()?;
    let capture = node.capture()?;
    let starts = starts()?;
    let (mut slowest, mut refused) = (Duration::ZERO, 0);
    for start in 0..starts {
        let sandbox = node.sandbox("shop")?;
        let mut back = None;
        if matches!(start % 10, 3 | 7) {
            agent.kill()?;
            if start % 10 == 7 {
                unpin(&name)?;
            }
            network["waitSeconds"] = json!(0);
            let answer = node.plugin(&binary(), "ADD", &sandbox, &network)?;
            ensure!(answer.code == 11, "start {start}, without an agent: {}", answer.said);
            back = Some(Instant::now() + Duration::from_secs(3));
        }
        cluster.put("api/v1/pods", sandbox.object());
        network["waitSeconds"] = json!(2);
        let begun = Instant::now();
        // As kubelet does: it tries again.
        loop {
            if back.is_some_and(|back| Instant::now() >= back) {
                agent.start()?;
                back = None;
            }
            let answer = node.plugin(&binary(), "ADD", &sandbox, &network)?;
            if answer.code == 0 {
                break;
            }
            let why = format!("start {start}: {}\n{}", answer.said, agent.said());
            ensure!(answer.code == 11 && begun.elapsed() < Duration::from_secs(40), "{why}");
            refused += 1;
            sleep(Duration::from_millis(100));
        }
        if !matches!(start % 10, 3 | 7) && start > 0 {
            slowest = slowest.max(begun.elapsed());
        }
        ensure!(node.plugin(&binary(), "CHECK", &sandbox, &network)?.code == 0);
        let said = act(&node, &sandbox)?;
        ensure!(!is_answered(&said.0) && is_answered(&said.1), "start {start}: {said:?}");
        ensure!(node.plugin(&binary(), "DEL", &sandbox, &network)?.code == 0);
        ensure!(
            syns(&capture, &sandbox) == (0, 1),
            "start {start}: {:?}",
            syns(&capture, &sandbox)
        );
        cluster.delete("api/v1/pods", "shop", &sandbox.name());
    }
    ensure!(capture.lost()? == 0, "the capture missed something");
    ensure!(capture.syns_to(FORBIDDEN.ip(), FORBIDDEN.port()) == 0);
    println!("{starts} starts, {refused} tried again, the slowest ADD with an agent {slowest:?}");
    Ok(())
}
