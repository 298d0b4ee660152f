//! The node agent over a small API server: each pod by its own rules, from its first packet on, and with
//! nothing open while the agent, or the API server, is away.

use std::net::SocketAddr;
use std::process::Stdio;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use interceptor_tests::cluster::Cluster;
use interceptor_tests::node::{Node, Pod, SOON};
use interceptor_tests::ongoing::Ongoing;
use interceptor_tests::servers::port;
use interceptor_tests::world::{self, World, kernel_tests};
use serde_json::{Value, json};

const PODS: &str = "api/v1/pods";
const MODE: &str = "egress.interceptor.io/mode";

fn at(ip: std::net::IpAddr) -> SocketAddr {
    SocketAddr::new(ip, port::ECHO)
}

/// An entry of a namespace, for itself alone, that allows the echo server of an address.
fn entry(namespace: &str, name: &str, ip: std::net::IpAddr) -> Value {
    json!({
        "apiVersion": "networking.istio.io/v1", "kind": "ServiceEntry",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {"hosts": [format!("{name}.test")], "exportTo": ["."], "addresses": [ip.to_string()],
            "ports": [{"number": port::ECHO, "name": "echo", "protocol": "TCP"}]},
    })
}

const ENTRIES: &str = "apis/networking.istio.io/v1/serviceentries";

/// A cluster in which shop may reach HTTPBIN, and bank CNN; pods of both are covered.
fn cluster(world: &World) -> Result<Cluster> {
    let cluster = Cluster::start(world)?;
    for name in ["shop", "bank"] {
        let labels = json!({MODE: "enforce"});
        cluster.put("api/v1/namespaces", json!({"metadata": {"name": name, "labels": labels}}));
    }
    cluster.put(ENTRIES, entry("shop", "httpbin", world::HTTPBIN));
    cluster.put(ENTRIES, entry("bank", "cnn", world::CNN));
    Ok(cluster)
}

const STRICT: [&str; 2] = ["--outbound", "registry-only"];

fn tell(cluster: &Cluster, pod: &mut Pod<'_>) {
    cluster.put(PODS, pod.object().clone());
}

/// Pods of two namespaces have the rules of their own, live: labels, annotations and the pods themselves
/// come and go.
#[test]
fn each_pod_has_its_own_rules() -> Result<()> {
    if !kernel_tests() {
        return Ok(());
    }
    let world = World::new()?;
    let cluster = cluster(&world)?;
    let mut node = Node::new(&world, &cluster, &STRICT)?;
    let (mut web, mut vault) = (node.pod(1, "shop", "web")?, node.pod(2, "bank", "vault")?);
    let (mut off, stranger) = (node.pod(3, "shop", "off")?, node.pod(4, "shop", "stranger")?);
    off.label(MODE, "disabled");
    for pod in [&mut web, &mut vault, &mut off] {
        tell(&cluster, pod);
    }
    node.start()?;
    node.until_covered("shop/web", true)?;
    node.until_covered("bank/vault", true)?;
    let (httpbin, cnn, google) = (at(world::HTTPBIN), at(world::CNN), at(world::GOOGLE));

    let capture = world.capture()?;
    ensure!(web.echoes(httpbin)? && !vault.echoes(httpbin)?, "{}", node.log());
    ensure!(vault.echoes(cnn)? && !web.echoes(cnn)?, "{}", node.log());
    ensure!(off.echoes(google)?, "one that is disabled passes: {}", node.said());
    // What nobody knows is held, whatever it does.
    ensure!(!stranger.echoes(httpbin)?);
    let udp = "printf x > /dev/udp/203.0.113.50/7";
    stranger.output(&["bash", "-c", udp])?;
    let from = |number: u8| std::net::IpAddr::from([10, 80, number, 2]);
    let packets = capture.packets();
    let reached = |number: u8, to: SocketAddr| {
        packets.iter().any(|packet| packet.source == from(number) && packet.destination == to.ip())
    };
    assert!(reached(1, httpbin) && reached(2, cnn) && reached(3, google), "the controls");
    assert!(!reached(1, cnn) && !reached(2, httpbin));
    assert!(packets.iter().all(|packet| packet.source != from(4)), "{:?}", packets.last());

    // A label: from the next connect on.
    off.label(MODE, "enforce");
    tell(&cluster, &mut off);
    off.until_echoes(google, false)?;
    ensure!(off.echoes(httpbin)?, "{}", node.said());
    off.label(MODE, "disabled");
    tell(&cluster, &mut off);
    off.until_echoes(google, true)?;
    // An annotation (CAP-2), of one pod.
    let key = "traffic.sidecar.istio.io/excludeOutboundIPRanges";
    vault.object()["metadata"]["annotations"][key] = json!("198.51.100.0/24");
    tell(&cluster, &mut vault);
    vault.until_echoes(google, true)?;
    ensure!(!web.echoes(google)? && !vault.echoes(httpbin)?);
    vault.object()["metadata"]["annotations"] = json!({});
    tell(&cluster, &mut vault);
    vault.until_echoes(google, false)?;
    // An entry.
    cluster.put(ENTRIES, entry("bank", "google", world::GOOGLE));
    vault.until_echoes(google, true)?;
    ensure!(!web.echoes(google)?);
    cluster.delete(ENTRIES, "bank", "google");
    vault.until_echoes(google, false)?;

    // One that is gone leaves nothing.
    let mut more = node.pod(5, "bank", "more")?;
    let before = more.sockets()?;
    tell(&cluster, &mut more);
    node.until_covered("bank/more", true)?;
    ensure!(more.echoes(cnn)?);
    ensure!(more.sockets()? > before && node.holds(more.netns()?)?, "the control");
    cluster.delete(PODS, "bank", "more");
    node.until_covered("bank/more", false)?;
    ensure!(!more.echoes(cnn)?, "nothing leaves by what is gone");
    let deadline = Instant::now() + SOON;
    while more.sockets()? > before || node.holds(more.netns()?)? {
        let left =
            more.output(&["tail", "-n+2", "/proc/net/tcp", "/proc/net/udp", "/proc/net/netlink"])?;
        ensure!(Instant::now() < deadline, "{before} sockets before, now {left:?}");
        sleep(Duration::from_millis(100));
    }
    Ok(())
}

/// T-14: two pods with one address are two pods.
#[test]
fn identical_addresses_do_not_mix() -> Result<()> {
    if !kernel_tests() {
        return Ok(());
    }
    let world = World::new()?;
    let cluster = cluster(&world)?;
    let mut node = Node::new(&world, &cluster, &STRICT)?;
    // The answers' route leads to the first one.
    let mut web = node.pod_at(1, "10.80.9", "shop", "web")?;
    let mut vault = node.pod_at(2, "10.80.9", "bank", "vault")?;
    tell(&cluster, &mut web);
    tell(&cluster, &mut vault);
    node.start()?;
    node.until_covered("shop/web", true)?;
    node.until_covered("bank/vault", true)?;
    let (httpbin, cnn) = (at(world::HTTPBIN), at(world::CNN));
    let capture = world.capture()?;
    ensure!(!vault.echoes(httpbin)? && !web.echoes(cnn)?);
    assert_eq!(capture.syns_to(httpbin.ip(), httpbin.port()), 0);
    assert_eq!(capture.syns_to(cnn.ip(), cnn.port()), 0);
    ensure!(web.echoes(httpbin)?, "{}", node.log());
    vault.echoes(cnn)?;
    assert!(capture.syns_to(httpbin.ip(), httpbin.port()) > 0, "the control");
    assert!(capture.syns_to(cnn.ip(), cnn.port()) > 0, "the control");
    Ok(())
}

/// A connection that goes direct, says a word every tenth of a second, and ends when it gets no answer.
fn keep(world: &World, pod: &Pod<'_>, to: SocketAddr) -> Result<Ongoing> {
    let script = "exec 3<>/dev/tcp/$0/$1 || exit 1; echo up; while echo x >&3 && read -t 3 y <&3; do \
                  sleep 0.1; done; exit 2";
    let (ip, port) = (to.ip().to_string(), to.port().to_string());
    let mut command = pod.command(&["bash", "-c", script, &ip, &port]);
    command.stdin(Stdio::null()).stdout(Stdio::piped());
    let mut kept = Ongoing::from(world.spawn(&mut command)?);
    kept.wait_for("up")?;
    Ok(kept)
}

/// The API server goes away, the agent is killed, and comes back without a server: what was allowed is
/// allowed, nothing else ever leaves, and what is open and direct goes on.
#[test]
fn nothing_is_open_while_agent_and_server_are_away() -> Result<()> {
    if !kernel_tests() {
        return Ok(());
    }
    let world = World::new()?;
    let cluster = cluster(&world)?;
    let mut node = Node::new(&world, &cluster, &STRICT)?;
    let mut web = node.pod(1, "shop", "web")?;
    let mut off = node.pod(2, "shop", "off")?;
    off.label(MODE, "disabled");
    tell(&cluster, &mut web);
    tell(&cluster, &mut off);
    node.start()?;
    node.until_covered("shop/web", true)?;
    let (httpbin, cnn) = (at(world::HTTPBIN), at(world::CNN));
    web.until_echoes(httpbin, true)?;
    off.until_echoes(cnn, true)?;
    let mut kept = keep(&world, &web, httpbin)?;
    let deadline = Instant::now() + SOON * 2;
    while !std::fs::read_to_string(world.dir().join("state/workloads.yaml"))
        .is_ok_and(|text| text.contains("\"web\""))
    {
        ensure!(Instant::now() < deadline, "the state was never written: {}", node.said());
        sleep(Duration::from_millis(50));
    }

    let capture = world.capture()?;
    let from_web = |capture: &interceptor_tests::capture::Capture| {
        let web = std::net::IpAddr::from([10, 80, 1, 2]);
        let packets = capture.packets();
        packets.iter().filter(|one| one.source == web && one.destination == cnn.ip()).count()
    };
    cluster.set_down(true);
    ensure!(web.echoes(httpbin)? && !web.echoes(cnn)? && off.echoes(cnn)?, "without a server");
    node.kill()?;
    ensure!(!web.echoes(cnn)? && off.echoes(cnn)?, "without an agent");
    ensure!(kept.goes_on()?, "an open direct connection needs no agent");
    let mut new = node.pod(3, "shop", "new")?;
    ensure!(!new.echoes(httpbin)?, "what is not known is held");
    node.start()?;
    // Tried all the while.
    let deadline = Instant::now() + SOON;
    while !web.echoes(httpbin)? {
        ensure!(!web.echoes(cnn)? && Instant::now() < deadline, "{}", node.said());
    }
    ensure!(!web.echoes(cnn)? && off.echoes(cnn)? && kept.goes_on()?);
    cluster.set_down(false);
    tell(&cluster, &mut new);
    new.until_echoes(httpbin, true)?;
    node.stop()?;
    ensure!(!web.echoes(cnn)? && off.echoes(cnn)? && kept.goes_on()?, "a signal detaches nothing");
    assert_eq!(from_web(&capture), 0, "{}", node.said());
    assert!(capture.syns_to(cnn.ip(), cnn.port()) > 0, "the control");
    let detached = node.verb(&["detach"])?;
    ensure!(detached.code == 0, "{detached:?}");
    // The kernel lets go of links some time later.
    web.until_echoes(cnn, true)?;
    Ok(())
}

/// Entries of the kernel's table of namespaces.
fn namespaces(node: &Node<'_>) -> Result<usize> {
    let pins = std::path::Path::new("/sys/fs/bpf/interceptor").join(node.name());
    let maps = std::fs::read_dir(&pins)?.flatten().map(|one| one.path());
    let mut maps = maps.filter(|path| path.to_string_lossy().contains("maps"));
    let map = maps.next().context("maps")?.join("NAMESPACES");
    let shown = std::process::Command::new("bpftool")
        .args(["-j", "map", "dump", "pinned", &map.to_string_lossy()])
        .output()?;
    let shown: Value = serde_json::from_slice(&shown.stdout)?;
    Ok(shown.as_array().context("entries")?.len())
}

/// Pods that went while no agent ran leave nothing in the kernel's table; those that are there keep what they
/// have, also where no object says so.
#[test]
fn entries_of_pods_that_went_meanwhile_go() -> Result<()> {
    if !kernel_tests() {
        return Ok(());
    }
    let world = World::new()?;
    let cluster = cluster(&world)?;
    let mut node = Node::new(&world, &cluster, &STRICT)?;
    let (mut web, mut gone) = (node.pod(1, "shop", "web")?, node.pod(2, "shop", "gone")?);
    let (mut off, mut gone_off) = (node.pod(3, "shop", "off")?, node.pod(4, "shop", "gone-off")?);
    for pod in [&mut off, &mut gone_off] {
        pod.label(MODE, "disabled");
    }
    for pod in [&mut web, &mut gone, &mut off, &mut gone_off] {
        tell(&cluster, pod);
    }
    node.start()?;
    for name in ["shop/web", "shop/gone"] {
        node.until_covered(name, true)?;
    }
    let (httpbin, cnn) = (at(world::HTTPBIN), at(world::CNN));
    for pod in [&off, &gone_off] {
        pod.until_echoes(cnn, true)?;
    }
    // And the node's own.
    assert_eq!(namespaces(&node)?, 5, "{}", node.said());
    node.kill()?;
    drop((gone, gone_off));
    for name in ["gone", "gone-off"] {
        cluster.delete(PODS, "shop", name);
    }
    assert_eq!(namespaces(&node)?, 5, "nobody was there to remove them");
    node.start()?;
    // What goes direct does so without an agent.
    let deadline = Instant::now() + SOON;
    while namespaces(&node)? != 3 {
        ensure!(Instant::now() < deadline, "{} {}", namespaces(&node)?, node.said());
        sleep(Duration::from_millis(50));
    }
    web.until_echoes(httpbin, true)?;
    ensure!(off.echoes(cnn)? && !web.echoes(cnn)?, "{}", node.said());
    Ok(())
}

/// The listeners of each covered namespace.
fn listeners(node: &Node<'_>) -> Result<Vec<[Value; 3]>> {
    let status: Value = serde_json::from_str(&node.verb(&["status", "-o", "json"])?.stdout)?;
    let namespaces = status["namespaces"].as_array().cloned().unwrap_or_default();
    let of = |one: &Value| ["cookie", "listener_v4", "listener_v6"].map(|field| one[field].clone());
    Ok(namespaces.iter().map(of).collect())
}

/// T-60: another agent takes the place of the one that runs, twice. Nothing is refused meanwhile, whether it
/// goes direct or by the proxy, nothing else gets out, and what is open goes on.
#[test]
fn t60_an_agent_takes_the_place_of_another() -> Result<()> {
    if !kernel_tests() {
        return Ok(());
    }
    let world = World::new()?;
    let cluster = cluster(&world)?;
    let mut node = Node::new(&world, &cluster, &STRICT)?;
    let (mut web, mut vault) = (node.pod(1, "shop", "web")?, node.pod(2, "bank", "vault")?);
    tell(&cluster, &mut web);
    tell(&cluster, &mut vault);
    let http = json!({
        "apiVersion": "networking.istio.io/v1", "kind": "ServiceEntry",
        "metadata": {"name": "http", "namespace": "shop"},
        "spec": {"hosts": ["v4.example.com"], "exportTo": ["."], "resolution": "DNS",
            "ports": [{"number": 80, "name": "http", "protocol": "HTTP"}]},
    });
    cluster.put(ENTRIES, http);
    node.start()?;
    node.until_covered("shop/web", true)?;
    node.until_covered("bank/vault", true)?;
    let (httpbin, cnn) = (at(world::HTTPBIN), at(world::CNN));
    web.until_echoes(httpbin, true)?;
    let capture = world.capture()?;
    let mut kept = keep(&world, &web, httpbin)?;

    let stop = world.dir().join("stop");
    let script = "n=0; until [ -e $0 ]; do curl -sSf -m5 -o/dev/null --resolve v4.example.com:80:$1 \
                  http://v4.example.com/ || exit 1; timeout 5 bash -c 'exec 3<>/dev/tcp/$0/7 && echo x >&3 && \
                  read -t 4 y <&3 && [ \"$y\" = x ]' $2 || exit 2; n=$((n+1)); done; echo $n";
    let (example, echo) = (world::EXAMPLE_V4.to_string(), httpbin.ip().to_string());
    let path = stop.to_string_lossy();
    let mut command = web.command(&["bash", "-c", script, &path, &example, &echo]);
    command.stdin(Stdio::null()).stdout(Stdio::piped());
    let load = world.spawn(&mut command)?;
    let before = listeners(&node)?;
    ensure!(before.len() == 2 && before.iter().flatten().all(|one| !one.is_null()), "{before:?}");
    for turn in 1..=2 {
        sleep(Duration::from_millis(500));
        let mut old = node.succeed()?;
        let deadline = Instant::now() + SOON;
        while node.said().matches("took the place").count() < turn {
            ensure!(Instant::now() < deadline, "{}", node.said());
            sleep(Duration::from_millis(20));
        }
        // It goes when it is told to, not before: it would be started again.
        sleep(Duration::from_millis(500));
        ensure!(old.try_wait()?.is_none(), "turn {turn}: {}", node.said());
        world::stop(&mut old)?;
        ensure!(!web.echoes(cnn)? && vault.echoes(cnn)?, "turn {turn}: {}", node.said());
        assert_eq!(listeners(&node)?, before, "turn {turn}: whoever waits in them would be lost");
    }
    // What comes after it is the new one's.
    cluster.delete(ENTRIES, "bank", "cnn");
    vault.until_echoes(cnn, false)?;
    std::fs::write(&stop, "")?;
    let done = load.wait_with_output()?;
    let rounds: u32 = String::from_utf8_lossy(&done.stdout).trim().parse().unwrap_or(0);
    ensure!(done.status.success() && rounds > 20, "{done:?} {} {}", node.log(), node.said());
    ensure!(kept.goes_on()?);
    let web = std::net::IpAddr::from([10, 80, 1, 2]);
    let packets = capture.packets();
    let escaped = packets.iter().filter(|one| one.source == web && one.destination == cnn.ip());
    assert_eq!(escaped.count(), 0);
    assert!(capture.syns_to(cnn.ip(), cnn.port()) > 0, "the control");
    Ok(())
}

/// Pods that are started so often, some while the agent is away.
const STARTS: u8 = 100;
/// So many at a time.
const AT_ONCE: u8 = 10;

/// A pod's first act is a forbidden and an allowed connect.
#[test]
fn the_first_packet_does_not_leave() -> Result<()> {
    if !kernel_tests() {
        return Ok(());
    }
    let world = World::new()?;
    let cluster = cluster(&world)?;
    let mut node = Node::new(&world, &cluster, &STRICT)?;
    let mut first = node.pod(1, "shop", "first")?;
    tell(&cluster, &mut first);
    node.start()?;
    node.until_covered("shop/first", true)?;
    let (httpbin, cnn) = (at(world::HTTPBIN), at(world::CNN));
    let capture = world.capture()?;
    // The forbidden one until the allowed one is reached, and once more.
    // A connect that is turned to the proxy works, and then nothing comes of it: the capture is the judge.
    let script = "try() { timeout 2 bash -c 'exec 3<>/dev/tcp/$0/7 || exit 1; echo x >&3; read -t 1 y <&3; \
                  [ \"$y\" = x ]' $1; }; for i in $(seq 200); do try $1 && exit 3; try $0 && { try $1 && exit 3; \
                  exit 0; }; sleep 0.05; done; exit 4";
    let (allowed, forbidden) = (httpbin.ip().to_string(), cnn.ip().to_string());
    let mut started = 0;
    for round in 0..STARTS / AT_ONCE {
        let away = round % 5 == 4;
        if away {
            node.kill()?;
        }
        let mut pods = Vec::new();
        for number in 0..AT_ONCE {
            let mut pod = node.pod(10 + number, "shop", &format!("new-{round}-{number}"))?;
            let uid = format!("0f0d9b4e-6c1f-4f7c-9a55-{:012x}", u32::from(number) + 11);
            assert_eq!(pod.object()["metadata"]["uid"], json!(uid));
            tell(&cluster, &mut pod);
            let mut command = pod.command(&["bash", "-c", script, &allowed, &forbidden]);
            command.stdin(Stdio::null()).stderr(Stdio::null());
            let act = world.spawn(&mut command)?;
            pods.push((pod, act));
        }
        if away {
            node.start()?;
        }
        for (mut pod, mut act) in pods {
            let status = world::wait(&mut act, SOON * 2)?;
            let ended = status.map(world::exit_code);
            ensure!(ended == Some(0), "{ended:?} {}: {}", pod.object(), node.said());
            started += 1;
            let name = pod.object()["metadata"]["name"].clone();
            cluster.delete(PODS, "shop", name.as_str().unwrap_or_default());
        }
    }
    assert_eq!(capture.syns_to(cnn.ip(), cnn.port()), 0, "of {started} starts");
    assert!(capture.syns_to(httpbin.ip(), httpbin.port()) >= usize::from(STARTS), "the control");
    Ok(())
}

const CONFIGS: &str = "apis/egress.interceptor.io/v1alpha1/interceptorconfigs";

/// An InterceptorConfig that lets a network go as without us.
fn bypass(generation: u64, network: &str) -> Value {
    json!({
        "apiVersion": "egress.interceptor.io/v1alpha1", "kind": "InterceptorConfig",
        "metadata": {"name": "c", "namespace": "shop", "uid": "c", "generation": generation},
        "spec": {"bypassCIDRs": [network]},
    })
}

/// Waits until the condition of a type is so for a generation.
fn until_told(cluster: &Cluster, node: &Node<'_>, generation: u64, accepted: &str) -> Result<()> {
    let deadline = Instant::now() + SOON * 4;
    loop {
        let object = cluster.object(CONFIGS, "shop", "c").unwrap_or_default();
        let all = object["status"]["conditions"].as_array().cloned().unwrap_or_default();
        let stands = |one: &Value| {
            one["type"] == "Accepted"
                && one["status"] == accepted
                && one["observedGeneration"] == generation
        };
        if all.iter().any(stands) {
            return Ok(());
        }
        ensure!(Instant::now() < deadline, "{object}: {}", node.said());
        sleep(Duration::from_millis(200));
    }
}

/// Log, status, metrics and an Event say whose a refusal is; a namespace's InterceptorConfig holds for its
/// pods and no others, live, and is told so.
#[test]
fn what_was_refused_to_whom_is_said() -> Result<()> {
    if !kernel_tests() {
        return Ok(());
    }
    let world = World::new()?;
    let cluster = cluster(&world)?;
    let mut node = Node::new(&world, &cluster, &STRICT)?;
    let (mut web, mut vault) = (node.pod(1, "shop", "web")?, node.pod(2, "bank", "vault")?);
    cluster.apply(json!({
        "apiVersion": "v1", "kind": "ConfigMap",
        "metadata": {"name": "istio", "namespace": "istio-system"},
        "data": {"mesh": "accessLogEncoding: JSON\n"},
    }))?;
    web.object()["spec"]["serviceAccountName"] = json!("seller");
    tell(&cluster, &mut web);
    tell(&cluster, &mut vault);
    node.start()?;
    node.until_covered("shop/web", true)?;
    node.until_covered("bank/vault", true)?;
    let (httpbin, google) = (at(world::HTTPBIN), at(world::GOOGLE));
    ensure!(
        web.echoes(httpbin)? && !web.echoes(google)? && !vault.echoes(google)?,
        "{}",
        node.said()
    );
    let deadline = Instant::now() + SOON;
    let line = |whose: [&str; 3], to: SocketAddr| {
        node.log().lines().filter(|line| line.contains(&to.to_string())).any(|line| {
            let line: Value = serde_json::from_str(line).unwrap_or_default();
            ["pod_namespace", "pod_name", "service_account"].map(|key| line[key].clone()) == whose
        })
    };
    let (seller, clerk) = (["shop", "web", "seller"], ["bank", "vault", "default"]);
    while !(line(seller, google) && line(clerk, google) && line(seller, httpbin)) {
        ensure!(Instant::now() < deadline, "{}", node.log());
        sleep(Duration::from_millis(50));
    }
    ensure!(!line(clerk, httpbin), "the control: {}", node.log());
    let metrics = node.verb(&["metrics"])?;
    let counted = "interceptor_pod_records_total{pod_namespace=\"shop\",pod_name=\"web\",\
                   service_account=\"seller\",reason=\"not_registered\"}";
    ensure!(metrics.stdout.contains(counted), "{metrics:?}");
    let status = node.verb(&["status"])?;
    ensure!(status.stdout.contains("shop/web") && status.stdout.contains("seller"), "{status:?}");
    let about =
        |name: &str| cluster.events().into_iter().find(|event| event["regarding"]["name"] == name);
    while about("web").is_none() || about("vault").is_none() {
        ensure!(Instant::now() < deadline, "{:?} {}", cluster.events(), node.said());
        sleep(Duration::from_millis(50));
    }
    let note = about("web").unwrap_or_default()["note"].as_str().unwrap_or_default().to_owned();
    let expected =
        format!("egress to {google} refused (not_registered): no ServiceEntry that namespace shop");
    ensure!(note.starts_with(&expected), "{note}");

    let capture = world.capture()?;
    cluster.put(CONFIGS, bypass(1, &format!("{}/32", google.ip())));
    web.until_echoes(google, true)?;
    until_told(&cluster, &node, 1, "True")?;
    ensure!(!vault.echoes(google)?, "another namespace's");
    // An invalid one leaves the last good one in force.
    cluster.put(CONFIGS, bypass(2, "10.0.0.1/8"));
    until_told(&cluster, &node, 2, "False")?;
    ensure!(web.echoes(google)? && !vault.echoes(google)?, "{}", node.said());
    cluster.delete(CONFIGS, "shop", "c");
    web.until_echoes(google, false)?;
    let from = |number: u8| std::net::IpAddr::from([10, 80, number, 2]);
    let packets = capture.packets();
    let reached = |number: u8| {
        packets.iter().any(|one| one.source == from(number) && one.destination == google.ip())
    };
    ensure!(reached(1), "the control");
    ensure!(!reached(2), "nothing of another namespace's left");
    Ok(())
}
