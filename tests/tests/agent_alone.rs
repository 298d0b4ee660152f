//! The node agent without what it leans on: the API server for long, or its place, once another agent has it;
//! and pods that ask for it although Istio's own data plane is there.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::thread::sleep;
use std::time::{Duration, Instant};
use std::{env, fs};

use anyhow::{Context, Result, ensure};
use interceptor_tests::cluster::Cluster;
use interceptor_tests::node::{Node, Pod, SOON};
use interceptor_tests::servers::port;
use interceptor_tests::world::{self, World, kernel_tests};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

const MODE: &str = "egress.interceptor.io/mode";
const STRICT: [&str; 2] = ["--outbound", "registry-only"];
const PODS: &str = "api/v1/pods";
const ENTRIES: &str = "apis/networking.istio.io/v1/serviceentries";

fn at(ip: IpAddr) -> SocketAddr {
    SocketAddr::new(ip, port::ECHO)
}

fn tell(cluster: &Cluster, pod: &mut Pod<'_>) {
    cluster.put(PODS, pod.object().clone());
}

/// A cluster in which pods of shop are covered, and may reach HTTPBIN.
fn cluster(world: &World) -> Result<Cluster> {
    let cluster = Cluster::start(world)?;
    let labels = json!({MODE: "enforce"});
    cluster.put("api/v1/namespaces", json!({"metadata": {"name": "shop", "labels": labels}}));
    cluster.put(ENTRIES, entry("httpbin", world::HTTPBIN));
    Ok(cluster)
}

fn entry(name: &str, ip: IpAddr) -> Value {
    json!({
        "apiVersion": "networking.istio.io/v1", "kind": "ServiceEntry",
        "metadata": {"name": name, "namespace": "shop", "uid": name, "generation": 1},
        "spec": {"hosts": [format!("{name}.test")], "exportTo": ["."], "addresses": [ip.to_string()],
            "ports": [{"number": port::ECHO, "name": "echo", "protocol": "TCP"}]},
    })
}

/// For how long the API server is away: `INTERCEPTOR_AWAY`, in seconds; 600 is the ten minutes that it may be.
fn away() -> Result<Duration> {
    let asked = env::var("INTERCEPTOR_AWAY").unwrap_or_else(|_| "8".to_owned());
    Ok(Duration::from_secs(asked.parse().context("INTERCEPTOR_AWAY")?))
}

/// As long as the API server is away, what was known stays in force, for connections that go direct and for
/// those that need the proxy, and a pod that nobody could tell of is held. What changed comes with it.
#[test]
fn while_the_api_server_is_away_everything_stays() -> Result<()> {
    if !kernel_tests() {
        return Ok(());
    }
    let world = World::new()?;
    let cluster = cluster(&world)?;
    let http = json!({
        "apiVersion": "networking.istio.io/v1", "kind": "ServiceEntry",
        "metadata": {"name": "http", "namespace": "shop"},
        "spec": {"hosts": ["v4.example.com"], "exportTo": ["."], "resolution": "DNS",
            "ports": [{"number": 80, "name": "http", "protocol": "HTTP"}]},
    });
    cluster.put(ENTRIES, http);
    let mut node = Node::new(&world, &cluster, &STRICT)?;
    let (mut web, mut off) = (node.pod(1, "shop", "web")?, node.pod(2, "shop", "off")?);
    off.label(MODE, "disabled");
    tell(&cluster, &mut web);
    tell(&cluster, &mut off);
    node.start()?;
    node.until_covered("shop/web", true)?;
    let (httpbin, cnn) = (at(world::HTTPBIN), at(world::CNN));
    web.until_echoes(httpbin, true)?;
    let resolve = format!("v4.example.com:80:{}", world::EXAMPLE_V4);
    let curl = ["curl", "-sSfm5", "-o/dev/null", "--resolve", &resolve, "http://v4.example.com/"];
    let is_served = |pod: &Pod<'_>| -> Result<bool> { Ok(pod.output(&curl)?.code == 0) };
    let deadline = Instant::now() + SOON;
    while !is_served(&web)? {
        ensure!(Instant::now() < deadline, "{}{}", node.said(), node.log());
    }

    let capture = world.capture()?;
    cluster.set_down(true);
    // None of it is heard of.
    cluster.put(ENTRIES, entry("cnn", world::CNN));
    web.label(MODE, "disabled");
    tell(&cluster, &mut web);
    let mut new = node.pod(3, "shop", "new")?;
    tell(&cluster, &mut new);
    let (begun, away, mut rounds) = (Instant::now(), away()?, 0);
    while begun.elapsed() < away || rounds < 3 {
        let which = format!("after {:?}: {}", begun.elapsed(), node.said());
        ensure!(web.echoes(httpbin)? && is_served(&web)?, "{which}");
        ensure!(!web.echoes(cnn)? && !new.echoes(httpbin)? && !new.echoes(cnn)?, "{which}");
        rounds += 1;
        sleep((away / 100).min(Duration::from_secs(2)));
    }
    let from = |number: u8| IpAddr::from([10, 80, number, 2]);
    let packets = capture.packets();
    ensure!(packets.iter().all(|one| one.source != from(1) || one.destination != cnn.ip()));
    ensure!(packets.iter().all(|one| one.source != from(3)), "one of which nobody told");
    ensure!(packets.iter().any(|one| one.source == from(1)), "the control");
    ensure!(off.echoes(cnn)?);
    assert!(capture.syns_to(cnn.ip(), cnn.port()) > 0, "the control");

    cluster.set_down(false);
    let deadline = Instant::now() + SOON * 4;
    while !(web.echoes(at(world::GOOGLE))? && new.echoes(cnn)?) {
        ensure!(Instant::now() < deadline, "what changed meanwhile: {}", node.said());
    }
    println!("the API server was away for {:?}, {rounds} rounds", begun.elapsed());
    Ok(())
}

/// The files that an agent keeps its state in.
fn state(world: &World) -> Result<BTreeMap<String, String>> {
    let mut files = BTreeMap::new();
    for file in fs::read_dir(world.dir().join("state"))?.flatten() {
        let name = file.file_name().to_string_lossy().into_owned();
        files.insert(name, fs::read_to_string(file.path())?);
    }
    Ok(files)
}

/// Stops a process for as long as this lives.
struct Stopped(Pid);

impl Stopped {
    fn new(pid: u32) -> Result<Self> {
        let pid = Pid::from_raw(i32::try_from(pid)?);
        kill(pid, Signal::SIGSTOP)?;
        Ok(Self(pid))
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        let _ = kill(self.0, Signal::SIGCONT);
    }
}

/// State and statuses are written at most this long after a change.
const WRITTEN: Duration = Duration::from_secs(18);

/// An agent whose place was taken writes neither the state nor any status any more, whether it drains, waits
/// for its signal or ends: both are the new one's.
#[test]
fn who_hands_over_writes_nothing_any_more() -> Result<()> {
    if !kernel_tests() {
        return Ok(());
    }
    let world = World::new()?;
    let cluster = cluster(&world)?;
    let mut node = Node::new(&world, &cluster, &STRICT)?;
    let mut web = node.pod(1, "shop", "web")?;
    tell(&cluster, &mut web);
    node.start()?;
    node.until_covered("shop/web", true)?;
    let mut old = node.succeed()?;
    let deadline = Instant::now() + SOON;
    while !node.said().contains("took the place") {
        ensure!(Instant::now() < deadline, "{}", node.said());
        sleep(Duration::from_millis(20));
    }
    let deadline = Instant::now() + WRITTEN;
    while !state(&world)?.get("workloads.yaml").is_some_and(|text| text.contains("\"web\"")) {
        ensure!(Instant::now() < deadline, "{}", node.said());
        sleep(Duration::from_millis(50));
    }
    let told = || cluster.object(ENTRIES, "shop", "bad").unwrap_or_default()["status"].clone();
    let before = state(&world)?;
    let stopped = Stopped::new(node.pid()?)?;
    // For the state, and for a status.
    cluster.put(ENTRIES, entry("cnn", world::CNN));
    let mut bad = entry("bad", world::GOOGLE);
    bad["spec"]["hosts"] = json!(["a_b.example.com"]);
    cluster.put(ENTRIES, bad);
    sleep(WRITTEN);
    assert_eq!(told(), Value::Null, "{}", node.said());
    ensure!(state(&world)? == before, "the old one wrote the state");
    ensure!(old.try_wait()?.is_none(), "it waits for its signal: {}", node.said());
    world::stop(&mut old)?;
    ensure!(state(&world)? == before, "the old one wrote the state at its end");
    drop(stopped);
    let deadline = Instant::now() + WRITTEN * 2;
    let is_kept = || -> Result<bool> {
        Ok(state(&world)?.get("policy.yaml").is_some_and(|text| text.contains("cnn.test")))
    };
    while told() == Value::Null || !is_kept()? {
        ensure!(Instant::now() < deadline, "the control: {} {}", told(), node.said());
        sleep(Duration::from_millis(200));
    }
    Ok(())
}

/// A pod with Istio's proxy in it, or in an ambient mesh, is left alone and that is said, until its own label
/// asks; then what it sends is judged like any pod's.
#[test]
fn pods_that_istio_carries_are_covered_where_they_ask() -> Result<()> {
    if !kernel_tests() {
        return Ok(());
    }
    let world = World::new()?;
    let cluster = cluster(&world)?;
    let labels = json!({MODE: "enforce", "istio.io/dataplane-mode": "ambient"});
    cluster.put("api/v1/namespaces", json!({"metadata": {"name": "mesh", "labels": labels}}));
    let mut in_mesh = entry("own", world::HTTPBIN);
    in_mesh["metadata"]["namespace"] = json!("mesh");
    cluster.put(ENTRIES, in_mesh);
    let mut node = Node::new(&world, &cluster, &STRICT)?;
    let (mut side, mut ambient) = (node.pod(1, "shop", "side")?, node.pod(2, "mesh", "ambient")?);
    side.object()["spec"]["containers"] = json!([{"name": "app"}, {"name": "istio-proxy"}]);
    tell(&cluster, &mut side);
    tell(&cluster, &mut ambient);
    node.start()?;
    node.until_attached()?;
    let (httpbin, cnn) = (at(world::HTTPBIN), at(world::CNN));
    let left = |name: &str| -> Result<Option<String>> {
        let status: Value = serde_json::from_str(&node.verb(&["status", "-o", "json"])?.stdout)?;
        let all = status["uncovered"].as_array().cloned().unwrap_or_default();
        let one = all.into_iter().find(|one| one["pod"] == name);
        Ok(one.and_then(|one| one["why"].as_str().map(str::to_owned)))
    };
    for (pod, name, why) in [
        (&mut side, "shop/side", "istio-proxy container"),
        (&mut ambient, "mesh/ambient", "ambient mesh"),
    ] {
        pod.until_echoes(cnn, true)?;
        let said = left(name)?.unwrap_or_default();
        ensure!(said.contains(why) && said.contains("its own label"), "{name}: {said:?}");

        pod.label(MODE, "enforce");
        tell(&cluster, pod);
        node.until_covered(name, true)?;
        pod.until_echoes(cnn, false)?;
        let capture = world.capture()?;
        ensure!(pod.echoes(httpbin)? && !pod.echoes(cnn)?, "{}{}", node.said(), node.log());
        assert_eq!(capture.syns_to(cnn.ip(), cnn.port()), 0, "{name}: {}", node.log());
        assert!(capture.syns_to(httpbin.ip(), httpbin.port()) > 0, "the control");
        assert_eq!(left(name)?, None, "{}", node.said());
        let asked = format!("pod {name}: it ");
        let said = node.said();
        let mut said = said.lines().filter(|line| line.contains(&asked));
        let last = said.next_back();
        ensure!(last.is_some_and(|line| line.ends_with("is judged too")), "{}", node.said());
    }
    Ok(())
}
