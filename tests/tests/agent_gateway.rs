//! A node's pods and a gateway: all of them have their streams on one connection, each in its own name.

use std::fs::File;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::process::Stdio;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use interceptor_tests::capture::Packet;
use interceptor_tests::cluster::Cluster;
use interceptor_tests::node::Node;
use interceptor_tests::ongoing::Ongoing;
use interceptor_tests::product::binary;
use interceptor_tests::world::{DNS, EXAMPLE_V4, World, kernel_tests};
use serde_json::{Value, json};

const GATEWAY: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(203, 0, 113, 90)), 15008);
const NODE: &str = "node-1.nodes.test";
const CONFIGS: &str = "apis/egress.interceptor.io/v1alpha1/interceptorconfigs";
const ENTRIES: &str = "apis/networking.istio.io/v1/serviceentries";
const PODS: &str = "api/v1/pods";
/// Connections of each pod.
const TIMES: usize = 5;

fn entry() -> Value {
    json!({
        "apiVersion": "networking.istio.io/v1", "kind": "ServiceEntry",
        "metadata": {"name": "example", "namespace": "istio-system"},
        "spec": {"hosts": ["v4.example.com"], "resolution": "DNS",
            "ports": [{"number": 443, "name": "tls", "protocol": "TLS"}]},
    })
}

/// A gateway in the internet of `world`, for which NODE speaks for two namespaces.
fn gateway(world: &World) -> Result<Ongoing> {
    let keep = |name: &str, keys: (String, String)| -> Result<(String, String)> {
        let certificate = world.file(&format!("{name}.pem"), &keys.0)?;
        Ok((certificate, world.file(&format!("{name}.key"), &keys.1)?))
    };
    let (certificate, key) = keep("gw-1.test", world.authority.server("gw-1.test")?)?;
    keep(NODE, world.authority.client(NODE)?)?;
    world.zone.set("gw-1.test", &[GATEWAY.ip()]);
    let nodes = world.file(
        "nodes.yaml",
        &format!(
            "nodes:\n- identity: {NODE}\n  workloads: [{{namespace: shop}}, {{namespace: bank}}]\n"
        ),
    )?;
    let policy = world.file("gateway.yaml", &entry().to_string())?;
    let mut command = world.command(binary());
    command
        .args(["gateway", "--listen", &GATEWAY.to_string(), "--resolver", &DNS.to_string()])
        .args(["--tls-cert", &certificate, "--tls-key", &key, "--client-ca"])
        .arg(world.ca_file())
        .args(["--outbound", "registry-only", "-f", &policy, "--nodes", &nodes])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(File::create(world.dir().join("gateway.err"))?);
    let child = world.internet.inside(|| command.spawn())??;
    let deadline = Instant::now() + Duration::from_secs(15);
    let said = || std::fs::read_to_string(world.dir().join("gateway.err")).unwrap_or_default();
    while !said().contains("gateway on") {
        ensure!(Instant::now() < deadline, "{}", said());
        sleep(Duration::from_millis(20));
    }
    Ok(Ongoing::from(child))
}

#[test]
fn pods_of_two_namespaces_share_one_connection_to_a_gateway() -> Result<()> {
    if !kernel_tests() {
        return Ok(());
    }
    let world = World::new()?;
    let cluster = Cluster::start(&world)?;
    for name in ["shop", "bank"] {
        let labels = json!({"egress.interceptor.io/mode": "enforce"});
        cluster.put("api/v1/namespaces", json!({"metadata": {"name": name, "labels": labels}}));
    }
    let _gateway = gateway(&world)?;
    let file = |name: &str| world.dir().join(name).display().to_string();
    let tls = json!({
        "caCertificates": world.ca_file(),
        "clientCertificate": file(&format!("{NODE}.pem")),
        "privateKey": file(&format!("{NODE}.key")),
    });
    let url = format!("hbone://gw-1.test:{}", GATEWAY.port());
    cluster.put(
        CONFIGS,
        json!({
            "apiVersion": "egress.interceptor.io/v1alpha1", "kind": "InterceptorConfig",
            "metadata": {"name": "mesh", "namespace": "istio-system", "uid": "c", "generation": 1},
            "spec": {"egressProxy": {"proxies": [{"name": "gw-1", "url": url, "tls": tls}]}},
        }),
    );
    cluster.put(ENTRIES, entry());
    let mut node = Node::new(&world, &cluster, &["--outbound", "registry-only"])?;
    let (mut web, mut vault) = (node.pod(1, "shop", "web")?, node.pod(2, "bank", "vault")?);
    cluster.put(PODS, web.object().clone());
    cluster.put(PODS, vault.object().clone());
    let capture = world.capture()?;
    node.start()?;
    for name in ["shop/web", "bank/vault"] {
        node.until_covered(name, true)?;
    }
    let resolve = format!("v4.example.com:443:{EXAMPLE_V4}");
    let ca = world.ca_file().display().to_string();
    for _ in 0..TIMES {
        for pod in [&web, &vault] {
            let curl = ["curl", "-sS", "-m", "10", "-o", "/dev/null", "-w", "%{http_code}"];
            let to = ["--cacert", &ca, "--resolve", &resolve, "https://v4.example.com/"];
            let done = pod.output(&[&curl[..], &to].concat())?;
            assert_eq!(done.stdout, "200", "{} {} {}", done.stderr, node.log(), node.said());
        }
    }
    assert_eq!(capture.syns_to(GATEWAY.ip(), GATEWAY.port()), 1, "one connection serves all");
    // The gateway is in there with the site, so its own come from the site's address.
    let is_round =
        |packet: &&Packet| packet.destination == EXAMPLE_V4 && packet.source != EXAMPLE_V4;
    assert_eq!(capture.packets().iter().filter(is_round).count(), 0, "none went round it");
    let lines = node.log();
    assert_eq!(lines.lines().filter(|line| line.contains("v4.example.com")).count(), 2 * TIMES);
    Ok(())
}
