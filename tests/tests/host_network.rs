//! Pods in the node's own network namespace, which the hooks know by their cgroup; and privileged pods that
//! get there. All of them have the node's address, so what left is told by where it went, and when.

use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::process::Stdio;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use interceptor_tests::cluster::Cluster;
use interceptor_tests::containers::{self, Sandbox};
use interceptor_tests::node::{Node, Pod, SOON};
use interceptor_tests::ongoing::Ongoing;
use interceptor_tests::servers::port;
use interceptor_tests::world::{self, World, kernel_tests};
use serde_json::{Value, json};

const CLIENT: &str = env!("CARGO_BIN_EXE_interceptor-test-client");
const PODS: &str = "api/v1/pods";
const MODE: &str = "egress.interceptor.io/mode";
const STRICT: [&str; 2] = ["--outbound", "registry-only"];

/// Namespaces whose pods are covered: shop may reach HTTPBIN, and bank CNN, at this port.
fn cluster(world: &World, port: u16) -> Result<Cluster> {
    let cluster = Cluster::start(world)?;
    for (name, host) in [("shop", world::HTTPBIN), ("bank", world::CNN)] {
        let labels = json!({MODE: "enforce"});
        let metadata = json!({"name": name, "labels": labels});
        cluster.apply(json!({"kind": "Namespace", "metadata": metadata}))?;
        entry(&cluster, name, host, port)?;
    }
    Ok(cluster)
}

fn entry(cluster: &Cluster, namespace: &str, ip: IpAddr, port: u16) -> Result<()> {
    cluster.apply(json!({
        "apiVersion": "networking.istio.io/v1", "kind": "ServiceEntry",
        "metadata": {"name": "own", "namespace": namespace},
        "spec": {"hosts": [format!("own.{namespace}.test")], "exportTo": ["."],
            "addresses": [ip.to_string()],
            "ports": [{"number": port, "name": "tcp", "protocol": "TCP"}]},
    }))
}

/// Requests of a container: whether each was answered.
fn answered(node: &containers::Node<'_>, sandbox: &Sandbox, to: &[IpAddr]) -> Result<Vec<bool>> {
    let to: Vec<_> = to.iter().map(|ip| SocketAddr::new(*ip, 80).to_string()).collect();
    let calls: Vec<_> = to.iter().map(|to| ["get", to, "site.test"]).collect();
    let calls: Vec<_> = calls.iter().map(|call| &call[..]).collect();
    let done = node.run(sandbox, &calls)?;
    let said: Vec<_> = done.stdout.lines().map(|line| line.starts_with("200 ")).collect();
    ensure!(said.len() == to.len(), "{done:?}");
    Ok(said)
}

/// Containers that runc starts in the node's network namespace each have the rules of their pod; those that
/// the node needs are left alone, and so is the node itself.
#[test]
fn containers_on_the_hosts_network_have_their_own_rules() -> Result<()> {
    if !kernel_tests() {
        return Ok(());
    }
    let world = World::new()?;
    let cluster = cluster(&world, 80)?;
    let mut agent = Node::new(&world, &cluster, &STRICT)?;
    let node = containers::Node::below(&world, Path::new(CLIENT), agent.cgroup_root())?;
    let (shop, bank) = (node.host_sandbox("shop")?, node.host_sandbox("bank")?);
    let (needed, other) = (node.host_sandbox("shop")?, node.host_sandbox("default")?);
    let mut critical = needed.object();
    critical["spec"]["priorityClassName"] = json!("system-node-critical");
    for object in [shop.object(), bank.object(), critical, other.object()] {
        cluster.apply(object)?;
    }
    agent.start()?;
    agent.until_covered(&format!("shop/{}", shop.name()), true)?;
    agent.until_covered(&format!("bank/{}", bank.name()), true)?;

    let (httpbin, cnn, example) = (world::HTTPBIN, world::CNN, world::EXAMPLE_V4);
    let capture = world.capture()?;
    let all = [example, cnn, httpbin];
    let said = answered(&node, &shop, &all)?;
    assert_eq!(said, [false, false, true], "shop: {}{}", agent.said(), agent.log());
    assert_eq!(capture.syns_to(cnn, 80), 0, "what bank alone may");
    let said = answered(&node, &bank, &all)?;
    assert_eq!(said, [false, true, false], "bank: {}{}", agent.said(), agent.log());
    let seen = all.map(|ip| capture.syns_to(ip, 80));
    assert_eq!(seen, [0, 1, 1], "each what it may, and no more: {}", agent.log());

    // The controls: nobody else in this namespace is judged.
    for sandbox in [&needed, &other] {
        let said = answered(&node, sandbox, &all)?;
        assert_eq!(said, [true; 3], "{}: {}", sandbox.name(), agent.said());
    }
    let mut curl = world.command("curl");
    let curl = world.output(curl.args(["-sSm5", "-o/dev/null", "http://203.0.113.40/"]), SOON)?;
    ensure!(curl.code == 0, "the node itself: {curl:?}");
    assert_eq!(capture.syns_to(example, 80), 3, "the control");

    let status = agent.verb(&["status", "-o", "json"])?.stdout;
    let status: Value = serde_json::from_str(&status).context(status.clone())?;
    let of = |list: &str, key: &str, name: &str| {
        let mut all = status[list].as_array().cloned().unwrap_or_default().into_iter();
        all.find(|one| one[key] == name).unwrap_or_default()
    };
    let limits = of("namespaces", "label", &format!("shop/{}", shop.name()))["limits"].clone();
    let limits = limits[0].as_str().unwrap_or_default().to_owned();
    ensure!(limits.starts_with("hostNetwork: no interface of its own"), "{status}");
    let why = of("uncovered", "pod", &format!("shop/{}", needed.name()))["why"].clone();
    ensure!(why.as_str().is_some_and(|why| why.contains("system-node-critical")), "{status}");
    // Nobody meant this one to be covered.
    assert_eq!(of("uncovered", "pod", &format!("default/{}", other.name())), Value::Null);
    ensure!(agent.verb(&["status", "--ready"])?.code == 0, "{status}");
    Ok(())
}

fn at(ip: IpAddr) -> SocketAddr {
    SocketAddr::new(ip, port::ECHO)
}

fn tell(cluster: &Cluster, pod: &mut Pod<'_>) {
    cluster.put(PODS, pod.object().clone());
}

/// A connection that says a word every tenth of a second, and ends when it gets no answer.
fn keep(world: &World, pod: &Pod<'_>, to: SocketAddr) -> Result<Ongoing> {
    let script = "exec 3<>/dev/tcp/$0/$1 || exit 1; echo up; while echo x >&3 && read -t 3 y <&3; do \
                  sleep 0.1; done; exit 2";
    let (ip, port) = (to.ip().to_string(), to.port().to_string());
    let mut command = pod.command(&["bash", "-c", script, &ip, &port]);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut kept = Ongoing::from(world.spawn(&mut command)?);
    kept.wait_for("up")?;
    Ok(kept)
}

const ENTRIES: &str = "apis/networking.istio.io/v1/serviceentries";

/// A request that needs the proxy.
fn is_served(pod: &Pod<'_>) -> Result<bool> {
    let (name, ip) = ("v4.example.com", world::EXAMPLE_V4);
    let resolve = format!("{name}:80:{ip}");
    let url = format!("http://{name}/");
    let curl = ["curl", "-sSfm5", "-o/dev/null", "--resolve", &resolve, &url];
    Ok(pod.output(&curl)?.code == 0)
}

fn says_over_udp(pod: &Pod<'_>) -> Result<()> {
    pod.output(&["bash", "-c", &format!("echo x > /dev/udp/{}/7", world::UDP_ECHO)])?;
    Ok(())
}

/// A label covers a pod in the node's namespace from its next connect on, and what it had open is cut. Then
/// nothing else leaves, whether an agent runs, was killed, or hands over to another one; without the label
/// it is as the node.
#[test]
fn on_the_hosts_network_it_holds_without_an_agent_too() -> Result<()> {
    if !kernel_tests() {
        return Ok(());
    }
    let world = World::new()?;
    let cluster = cluster(&world, port::ECHO)?;
    entry(&cluster, "plain", world::HTTPBIN, port::ECHO)?;
    cluster.put(
        ENTRIES,
        json!({
            "apiVersion": "networking.istio.io/v1", "kind": "ServiceEntry",
            "metadata": {"name": "http", "namespace": "plain"},
            "spec": {"hosts": ["v4.example.com"], "exportTo": ["."], "resolution": "DNS",
                "ports": [{"number": 80, "name": "http", "protocol": "HTTP"}]},
        }),
    );
    let mut node = Node::new(&world, &cluster, &STRICT)?;
    let mut web = node.host_pod(1, "plain", "web")?;
    let mut vault = node.host_pod(2, "bank", "vault")?;
    let mut other = node.host_pod(3, "plain", "other")?;
    for pod in [&mut web, &mut vault, &mut other] {
        tell(&cluster, pod);
    }
    node.start()?;
    node.until_covered("bank/vault", true)?;
    let (httpbin, cnn, google) = (at(world::HTTPBIN), at(world::CNN), at(world::GOOGLE));
    ensure!(web.echoes(google)?, "without a label it is as the node: {}", node.said());
    let mut kept = keep(&world, &web, google)?;
    let mut others = keep(&world, &other, google)?;

    web.label(MODE, "enforce");
    tell(&cluster, &mut web);
    node.until_covered("plain/web", true)?;
    web.until_echoes(google, false)?;
    let deadline = Instant::now() + SOON;
    while kept.goes_on()? {
        ensure!(Instant::now() < deadline, "what nobody judged goes on: {}", node.said());
        sleep(Duration::from_millis(50));
    }
    ensure!(others.goes_on()?, "nobody else's is cut: {}", node.said());
    drop(others);
    web.until_echoes(httpbin, true)?;

    let capture = world.capture()?;
    let shut = |pod: &Pod<'_>| -> Result<bool> {
        Ok(!pod.echoes(google)? && !pod.echoes(SocketAddr::new(world::EXAMPLE_V6, port::ECHO))?)
    };
    let deadline = Instant::now() + SOON;
    while !is_served(&web)? {
        ensure!(Instant::now() < deadline, "{}{}", node.said(), node.log());
    }
    ensure!(shut(&web)? && shut(&vault)? && !is_served(&vault)?, "{}", node.log());
    ensure!(!web.echoes(cnn)? && vault.echoes(cnn)? && !vault.echoes(httpbin)?, "{}", node.log());
    says_over_udp(&web)?;
    let mut direct = keep(&world, &web, httpbin)?;

    node.kill()?;
    ensure!(shut(&web)? && shut(&vault)? && !web.echoes(cnn)?, "without an agent");
    ensure!(web.echoes(httpbin)? && !is_served(&web)?, "without an agent");
    says_over_udp(&web)?;
    node.start()?;
    let deadline = Instant::now() + SOON;
    while !is_served(&web)? {
        ensure!(shut(&web)? && Instant::now() < deadline, "{}", node.said());
    }
    ensure!(direct.goes_on()? && vault.echoes(cnn)? && shut(&vault)?, "{}", node.said());

    let before = listeners(&node)?;
    ensure!(before.len() == 2, "{before:?}");
    let mut old = node.succeed()?;
    let deadline = Instant::now() + SOON;
    while !node.said().contains("took the place") {
        ensure!(shut(&web)? && Instant::now() < deadline, "{}", node.said());
    }
    world::stop(&mut old)?;
    assert_eq!(listeners(&node)?, before, "whoever waits in them would be lost");
    ensure!(is_served(&web)? && !is_served(&vault)? && shut(&web)? && shut(&vault)?);
    ensure!(direct.goes_on()? && web.echoes(httpbin)? && vault.echoes(cnn)?);

    for to in [google.ip(), world::EXAMPLE_V6] {
        assert_eq!(capture.syns_to(to, port::ECHO), 0, "{to}: {}", node.log());
    }
    assert_eq!(capture.packets_to(world::UDP_ECHO), 0, "{}", node.log());
    for to in [google, SocketAddr::new(world::EXAMPLE_V6, port::ECHO)] {
        ensure!(other.echoes(to)?, "one that nobody covers: {}", node.said());
        assert!(capture.syns_to(to.ip(), port::ECHO) > 0, "the control: {to}");
    }
    says_over_udp(&other)?;
    assert!(capture.packets_to(world::UDP_ECHO) > 0, "the control");

    web.object()["metadata"]["labels"] = json!({});
    tell(&cluster, &mut web);
    web.until_echoes(google, true)?;
    ensure!(!vault.echoes(google)?, "{}", node.said());
    Ok(())
}

/// The listeners of each covered pod, by its name.
fn listeners(node: &Node<'_>) -> Result<Vec<[Value; 3]>> {
    let status: Value = serde_json::from_str(&node.verb(&["status", "-o", "json"])?.stdout)?;
    let namespaces = status["namespaces"].as_array().cloned().unwrap_or_default();
    let of = |one: &Value| ["label", "listener_v4", "listener_v6"].map(|field| one[field].clone());
    let mut all: Vec<_> = namespaces.iter().map(of).collect();
    all.sort_by_key(|one| one[0].to_string());
    Ok(all)
}

/// A privileged pod is covered in its own namespace, and in the node's, which is exempt, it is held.
#[test]
fn a_privileged_pod_gets_nothing_out_of_the_nodes_namespace() -> Result<()> {
    if !kernel_tests() {
        return Ok(());
    }
    let world = World::new()?;
    let cluster = cluster(&world, port::ECHO)?;
    let mut node = Node::new(&world, &cluster, &STRICT)?;
    let (mut tool, mut web) = (node.pod(1, "shop", "tool")?, node.pod(2, "shop", "web")?);
    let privileged = json!([{"name": "app", "securityContext": {"privileged": true}}]);
    tool.object()["spec"]["containers"] = privileged;
    tell(&cluster, &mut tool);
    tell(&cluster, &mut web);
    node.start()?;
    node.until_covered("shop/tool", true)?;
    node.until_covered("shop/web", true)?;
    let (httpbin, cnn) = (at(world::HTTPBIN), at(world::CNN));
    tool.until_echoes(httpbin, true)?;

    // As a privileged program can; no other one gets there.
    let outside = |pod: &Pod<'_>, to: SocketAddr| -> Result<bool> {
        let script =
            "exec 3<>/dev/tcp/$0/$1 || exit 1; echo hello >&3; read -t 2 x <&3; [ \"$x\" = hello ]";
        let (ip, port) = (to.ip().to_string(), to.port().to_string());
        let enter = ["ip", "netns", "exec", world.workload.name(), "timeout", "4"];
        Ok(pod.output(&[&enter[..], &["bash", "-c", script, &ip, &port]].concat())?.code == 0)
    };
    let capture = world.capture()?;
    ensure!(!outside(&tool, cnn)? && !outside(&tool, httpbin)? && !tool.echoes(cnn)?);
    assert_eq!(capture.syns_to(cnn.ip(), cnn.port()), 0, "{}", node.log());
    ensure!(outside(&web, cnn)?, "the control: {}", node.log());
    assert!(capture.syns_to(cnn.ip(), cnn.port()) > 0, "the control");
    let status = node.verb(&["status"])?.stdout;
    ensure!(status.contains("privileged (app): covered as long as"), "{status}");

    // An agent that comes back finds it held, and one that is not covered any more is not.
    node.kill()?;
    ensure!(!outside(&tool, cnn)?, "without an agent");
    node.start()?;
    node.until_covered("shop/tool", true)?;
    ensure!(!outside(&tool, cnn)?);
    tool.label(MODE, "disabled");
    tell(&cluster, &mut tool);
    tool.until_echoes(cnn, true)?;
    ensure!(outside(&tool, cnn)?, "{}", node.said());
    Ok(())
}
