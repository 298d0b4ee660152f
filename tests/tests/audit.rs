//! Audit: nothing is refused, each line says what would be, and nobody else gets a thing of it.

use std::net::{IpAddr, SocketAddr};
use std::process::Stdio;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use interceptor_tests::capture::Packet;
use interceptor_tests::cluster::Cluster;
use interceptor_tests::log::Line;
use interceptor_tests::node::{Node, Pod, SOON};
use interceptor_tests::ongoing::Ongoing;
use interceptor_tests::product::{Interceptor, binary};
use interceptor_tests::servers::port;
use interceptor_tests::world::{self, World, kernel_tests};
use serde_json::{Value, json};

const CLIENT: &str = env!("CARGO_BIN_EXE_interceptor-test-client");
const PODS: &str = "api/v1/pods";
const MODE: &str = "egress.interceptor.io/mode";
const STRICT: [&str; 2] = ["--outbound", "registry-only"];

fn at(ip: IpAddr) -> SocketAddr {
    SocketAddr::new(ip, port::ECHO)
}

/// Where the pod with this number is.
fn address(number: u8) -> IpAddr {
    IpAddr::from([10, 80, number, 2])
}

/// A cluster in which everybody may reach HTTPBIN, and nobody else; pods of shop are enforced, of lab audited.
fn cluster(world: &World) -> Result<Cluster> {
    let cluster = Cluster::start(world)?;
    for (name, mode) in [("shop", "enforce"), ("lab", "audit")] {
        let labels = json!({MODE: mode});
        cluster.put("api/v1/namespaces", json!({"metadata": {"name": name, "labels": labels}}));
    }
    let entry = json!({
        "apiVersion": "networking.istio.io/v1", "kind": "ServiceEntry",
        "metadata": {"name": "httpbin", "namespace": "shop"},
        "spec": {"hosts": ["httpbin.test"], "addresses": [world::HTTPBIN.to_string()],
            "ports": [{"number": port::ECHO, "name": "echo", "protocol": "TCP"}]},
    });
    cluster.put("apis/networking.istio.io/v1/serviceentries", entry);
    Ok(cluster)
}

fn tell(cluster: &Cluster, pod: &mut Pod<'_>) {
    cluster.put(PODS, pod.object().clone());
}

/// Waits until the log has a line to `to` with this word in field 8; gives it.
fn line(node: &Node<'_>, to: SocketAddr, word: &str) -> Result<String> {
    let deadline = Instant::now() + SOON;
    let is_it = |text: &&str| {
        Line::parse(text).is_ok_and(|line| {
            line.field("DOWNSTREAM_LOCAL_ADDRESS") == to.to_string()
                && line.field("CONNECTION_TERMINATION_DETAILS").split(',').any(|one| one == word)
        })
    };
    loop {
        let log = node.log();
        if let Some(found) = log.lines().find(is_it) {
            return Ok(found.to_owned());
        }
        ensure!(Instant::now() < deadline, "no line to {to} with {word}:\n{log}\n{}", node.said());
        sleep(Duration::from_millis(50));
    }
}

fn parsed_line(text: &str) -> Result<Line> {
    Line::parse(text).map_err(anyhow::Error::msg)
}

/// The line of what passed although it would be refused: as ALLOW_ANY has it, and with the reason.
fn is_passed(node: &Node<'_>, to: SocketAddr, word: &str) -> Result<()> {
    let found = line(node, to, word)?;
    let parsed = parsed_line(&found)?;
    ensure!(parsed.field("UPSTREAM_CLUSTER_RAW") == "PassthroughCluster", "{found}");
    ensure!(parsed.field("RESPONSE_FLAGS") == "-", "{found}");
    Ok(())
}

/// Writes to a server, in the shell's way; gives what comes back in a line.
fn answer(pod: &Pod<'_>, protocol: &str, to: SocketAddr, text: &str) -> Result<String> {
    let script = "exec 3<>/dev/$0/$1/$2 || exit 1; printf \"$3\" >&3; IFS= read -r -t 4 x <&3; printf %s \"$x\"";
    let (ip, port) = (to.ip().to_string(), to.port().to_string());
    Ok(pod.output(&["timeout", "8", "bash", "-c", script, protocol, &ip, &port, text])?.stdout)
}

/// What would be refused reaches where it was going, as without us, whatever it is; the pod beside it, of a
/// namespace that is audited too but with a label of its own, reaches nothing.
#[test]
fn an_audited_pod_is_refused_nothing_and_told_all() -> Result<()> {
    if !kernel_tests() {
        return Ok(());
    }
    let world = World::new()?;
    let cluster = cluster(&world)?;
    let mut node = Node::new(&world, &cluster, &STRICT)?;
    let (mut watched, mut own) = (node.pod(1, "lab", "watched")?, node.pod(2, "lab", "own")?);
    let mut web = node.pod(3, "shop", "web")?;
    own.label(MODE, "enforce");
    for pod in [&mut watched, &mut own, &mut web] {
        tell(&cluster, pod);
    }
    let groups = "/proc/sys/net/ipv4/ping_group_range";
    for pod in [&watched, &own] {
        pod.netns()?.inside(|| std::fs::write(groups, "0 2147483647"))??;
    }
    node.start()?;
    for name in ["lab/watched", "lab/own", "shop/web"] {
        node.until_covered(name, true)?;
    }
    let (httpbin, google, cnn) = (at(world::HTTPBIN), at(world::GOOGLE), at(world::CNN));
    let udp = at(world::UDP_ECHO);
    let capture = world.capture()?;

    // TCP that shows nothing.
    watched.until_echoes(httpbin, true)?;
    ensure!(watched.echoes(google)?, "{}", node.said());
    is_passed(&node, google, "audit:not_registered")?;
    for pod in [&own, &web] {
        pod.until_echoes(httpbin, true)?;
        ensure!(!pod.echoes(google)?, "{}", node.said());
    }
    line(&node, google, "not_registered")?;
    let to_allowed = httpbin.to_string();
    let told = |text: &str| text.contains(&to_allowed) && text.contains("audit:");
    ensure!(!node.log().lines().any(told), "what is allowed is not told: {}", node.log());

    // TLS by name, requests, and what no request can be made of.
    let https = SocketAddr::new(world::GOOGLE, 443);
    for (url, more) in [
        ("https://www.google.com/", &["--http1.1"][..]),
        ("http://www.google.com/", &[]),
        ("http://www.google.com/", &["--http1.0"]),
        ("http://www.google.com/", &["--http2-prior-knowledge"]),
    ] {
        let resolve = [443, 80].map(|port| format!("www.google.com:{port}:{}", world::GOOGLE));
        let mut command = vec!["curl", "-sSkI", "-m8", "-w", "%{http_code}"];
        resolve.iter().for_each(|one| command.extend(["--resolve", one]));
        command.extend(more);
        command.push(url);
        let done = watched.output(&command)?;
        let code = done.stdout.get(done.stdout.len().saturating_sub(3)..).unwrap_or_default();
        ensure!(done.code == 0 && code == "200", "{url} {more:?}: {done:?} {}", node.log());
        let refused = own.output(&command)?;
        ensure!(refused.code != 0 || !refused.stdout.ends_with("200"), "{refused:?}");
    }
    is_passed(&node, https, "audit:not_registered")?;
    let http = SocketAddr::new(world::GOOGLE, 80);
    is_passed(&node, http, "audit:http_version")?;
    let found = line(&node, http, "audit:not_registered")?;
    let parsed = parsed_line(&found)?;
    assert_eq!((parsed.field("RESPONSE_CODE"), parsed.field("ROUTE_NAME")), ("200", "allow_any"));
    let connect = "CONNECT a.test:443 HTTP/1.1\\r\\nHost: a.test\\r\\n\\r\\n";
    ensure!(answer(&watched, "tcp", cnn, connect)? == "CONNECT a.test:443 HTTP/1.1\r");
    is_passed(&node, cnn, "audit:connect_method")?;
    ensure!(
        answer(
            &watched,
            "tcp",
            at(world::WIKIPEDIA_EN),
            "GET / HTTP/1.1\\r\\nHost: a.test\\r\\n b\\r\\n\\r\\n"
        )? == "GET / HTTP/1.1\r"
    );
    is_passed(&node, at(world::WIKIPEDIA_EN), "audit:malformed")?;

    // A server that speaks first does not wait for a verdict.
    let banner = SocketAddr::new(world::GOOGLE, port::BANNER);
    let since = Instant::now();
    ensure!(answer(&watched, "tcp", banner, "")?.starts_with("220"), "{}", node.said());
    ensure!(since.elapsed() < Duration::from_secs(3), "{:?}", since.elapsed());
    is_passed(&node, banner, "audit:sniff_timeout")?;

    // Datagrams, and other protocols.
    ensure!(answer(&watched, "udp", udp, "x\\n")? == "x", "{}", node.said());
    ensure!(answer(&own, "udp", udp, "x\\n")? != "x");
    is_passed(&node, udp, "audit:refused_datagram_udp")?;
    let cnn_ip = world::CNN.to_string();
    let pinged = watched.output(&[CLIENT, "ping", &cnn_ip])?;
    ensure!(pinged.stdout == "reply\n", "{pinged:?}");
    ensure!(own.output(&[CLIENT, "ping", &cnn_ip])?.stdout == "EPROTONOSUPPORT\n");
    is_passed(&node, SocketAddr::new(world::CNN, 0), "audit:refused_datagram_icmp")?;

    // Who is told of it.
    let status: Value = serde_json::from_str(&node.verb(&["status", "-o", "json"])?.stdout)?;
    let mode_of = |pod: &str| {
        let all = status["namespaces"].as_array().into_iter().flatten();
        all.filter(|one| one["label"] == pod).map(|one| one["mode"].clone()).next()
    };
    assert_eq!(mode_of("lab/watched"), Some(json!("audit")));
    assert_eq!(mode_of("lab/own"), Some(json!("enforce")));
    let metrics = node.verb(&["metrics"])?.stdout;
    let counted = |pod: &str, reason: &str| {
        let start =
            format!("interceptor_pod_records_total{{pod_namespace=\"lab\",pod_name=\"{pod}\"");
        let reason = format!("reason=\"{reason}\"");
        metrics.lines().any(|line| line.starts_with(&start) && line.contains(&reason))
    };
    ensure!(
        counted("watched", "audit:not_registered") && counted("own", "not_registered"),
        "{metrics}"
    );
    ensure!(
        !counted("watched", "not_registered") && !counted("own", "audit:not_registered"),
        "{metrics}"
    );
    let deadline = Instant::now() + SOON;
    let reason_of = |name: &str| {
        let about = |event: &Value| event["regarding"]["name"] == name;
        let found = cluster.events().into_iter().find(about);
        found.and_then(|event| Some(event["reason"].as_str()?.to_owned()))
    };
    while reason_of("watched").is_none() || reason_of("own").is_none() {
        ensure!(Instant::now() < deadline, "{:?} {}", cluster.events(), node.said());
        sleep(Duration::from_millis(50));
    }
    assert_eq!(reason_of("watched").as_deref(), Some("EgressAudited"));
    assert_eq!(reason_of("own").as_deref(), Some("EgressRefused"));

    let packets = capture.packets();
    let reached = |number: u8, ip: IpAddr| {
        packets.iter().any(|one| one.source == address(number) && one.destination == ip)
    };
    ensure!(reached(1, google.ip()) && reached(1, udp.ip()), "the control");
    ensure!(reached(2, httpbin.ip()) && reached(3, httpbin.ip()), "the control");
    for number in [2, 3] {
        for ip in [google.ip(), cnn.ip(), udp.ip()] {
            ensure!(!reached(number, ip), "pod {number} reached {ip}");
        }
    }
    Ok(())
}

/// Requests on one connection: the next one whenever the file is there. Says each status line.
fn requests(world: &World, pod: &Pod<'_>, go: &str) -> Result<Ongoing> {
    let script = "exec 3<>/dev/tcp/$0/80 || exit 1; while printf 'HEAD / HTTP/1.1\\r\\nHost: www.google.com\\r\\n\\r\\n' >&3; \
                  do IFS= read -r x <&3 || exit 3; echo \"${x%?}\"; while IFS= read -r x <&3 && [ \"$x\" != $'\\r' ]; \
                  do :; done; until [ -e $1 ]; do sleep 0.05; done; rm $1; done";
    let ip = world::GOOGLE.to_string();
    let mut command = pod.command(&["bash", "-c", script, &ip, go]);
    command.stdin(Stdio::null()).stdout(Stdio::piped());
    Ok(Ongoing::from(world.spawn(&mut command)?))
}

/// From enforce to audit and back, by the pod's label, while it runs; requests on an open connection too. The
/// agent's death costs an audited pod nothing for longer than a moment, and gives an enforced one nothing.
#[test]
fn audit_comes_and_goes_with_the_label_and_outlives_the_agent() -> Result<()> {
    if !kernel_tests() {
        return Ok(());
    }
    let world = World::new()?;
    let cluster = cluster(&world)?;
    let mut node = Node::new(&world, &cluster, &STRICT)?;
    let (mut web, mut other) = (node.pod(1, "shop", "web")?, node.pod(2, "shop", "other")?);
    tell(&cluster, &mut web);
    tell(&cluster, &mut other);
    node.start()?;
    node.until_covered("shop/web", true)?;
    node.until_covered("shop/other", true)?;
    let (httpbin, google, udp) = (at(world::HTTPBIN), at(world::GOOGLE), at(world::UDP_ECHO));
    other.until_echoes(httpbin, true)?;
    ensure!(!web.echoes(google)? && answer(&web, "udp", udp, "x\\n")? != "x");

    web.label(MODE, "audit");
    tell(&cluster, &mut web);
    web.until_echoes(google, true)?;
    ensure!(answer(&web, "udp", udp, "x\\n")? == "x", "{}", node.said());
    let go = world.dir().join("go").to_string_lossy().into_owned();
    let mut kept = requests(&world, &web, &go)?;
    kept.wait_for("HTTP/1.1 200 OK")?;

    web.label(MODE, "enforce");
    tell(&cluster, &mut web);
    web.until_echoes(google, false)?;
    // A request on a connection from before.
    std::fs::write(&go, "")?;
    kept.wait_for("HTTP/1.1 502 Bad Gateway")?;
    let capture = world.capture()?;
    ensure!(!web.echoes(google)? && answer(&web, "udp", udp, "x\\n")? != "x");
    ensure!(web.echoes(httpbin)?, "{}", node.said());
    let packets = capture.packets();
    // What audit let go ends when it ends; nothing begins.
    let reached = |ip: IpAddr| {
        let began = |one: &&Packet| one.is_syn() || one.protocol != 6;
        let own = |one: &&Packet| one.source == address(1) && one.destination == ip;
        packets.iter().filter(own).any(|one| began(&one))
    };
    ensure!(reached(httpbin.ip()), "the control");
    ensure!(!reached(google.ip()) && !reached(udp.ip()), "{packets:?}");
    drop(capture);

    web.label(MODE, "audit");
    tell(&cluster, &mut web);
    web.until_echoes(google, true)?;
    let capture = world.capture()?;
    node.kill()?;
    // No sign of life for five seconds.
    web.until_echoes(google, true)?;
    ensure!(!other.echoes(google)?, "without an agent");
    node.start()?;
    is_passed(&node, google, "audit:unjudged")?;
    other.until_echoes(httpbin, true)?;
    web.until_echoes(google, true)?;
    ensure!(!other.echoes(google)?, "{}", node.said());
    let packets = capture.packets();
    let reached = |number: u8, ip: IpAddr| {
        packets.iter().any(|one| one.source == address(number) && one.destination == ip)
    };
    ensure!(reached(1, google.ip()) && reached(2, httpbin.ip()), "the control");
    ensure!(!reached(2, google.ip()), "an enforced pod got out: {}", node.said());
    Ok(())
}

/// `run --audit`, and `run` without it.
#[test]
fn run_audits_where_it_is_told_to() -> Result<()> {
    if !kernel_tests() {
        return Ok(());
    }
    let world = World::new()?;
    let curl = ["curl", "-sSI", "https://www.google.com"];
    let flags = ["--outbound", "registry-only", "--audit"];
    let passed = Interceptor::new(&world, &binary(), &flags).run(&curl)?;
    assert_eq!(passed.finished.code, 0, "{:?}", passed.finished);
    let line = parsed_line(&passed.log[0])?;
    assert_eq!(line.field("CONNECTION_TERMINATION_DETAILS"), "audit:not_registered");
    assert_eq!(line.field("UPSTREAM_CLUSTER_RAW"), "PassthroughCluster");
    assert_eq!(line.field("REQUESTED_SERVER_NAME"), "www.google.com");
    let capture = world.capture()?;
    let refused = Interceptor::new(&world, &binary(), &flags[..2]).run(&curl)?;
    assert_eq!(refused.finished.code, 35, "{:?}", refused.finished);
    assert_eq!(capture.packets_to(world::GOOGLE), 0);
    Ok(())
}
