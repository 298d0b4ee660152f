//! `onPolicyRemoval: cut` under the node agent: what a pod has open and policy allows no more ends, of pods whose
//! configuration has it so.

use std::net::{IpAddr, SocketAddr};
use std::process::Stdio;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use interceptor_tests::cluster::Cluster;
use interceptor_tests::node::{Node, Pod, SOON};
use interceptor_tests::ongoing::Ongoing;
use interceptor_tests::servers::port;
use interceptor_tests::world::{self, World, kernel_tests};
use serde_json::json;

const PODS: &str = "api/v1/pods";
const ENTRIES: &str = "apis/networking.istio.io/v1/serviceentries";
const CONFIGS: &str = "apis/egress.interceptor.io/v1alpha1/interceptorconfigs";

fn at(ip: IpAddr) -> SocketAddr {
    SocketAddr::new(ip, port::ECHO)
}

fn entry(name: &str, protocol: &str, ip: IpAddr) -> serde_json::Value {
    json!({
        "apiVersion": "networking.istio.io/v1", "kind": "ServiceEntry",
        "metadata": {"name": name, "namespace": "istio-system"},
        "spec": {"hosts": [format!("{name}.test")], "addresses": [ip.to_string()],
            "ports": [{"number": port::ECHO, "name": "echo", "protocol": protocol}]},
    })
}

/// Opens a socket, hears from its peer once, and waits for more: says whether that was to no end, or the socket
/// was ended.
fn wait(
    world: &World,
    pod: &Pod<'_>,
    protocol: &str,
    to: SocketAddr,
    seconds: u8,
) -> Result<Ongoing> {
    let script = "exec 3<>/dev/$0/$1/$2 || exit 1; echo x >&3; read -n1 -t 5 y <&3 || exit 2; read -n1 -t 1 y <&3; echo up; \
                  read -n1 -t $3 y <&3; [ $? -gt 128 ] && echo waited || echo ended";
    let (ip, port, limit) = (to.ip().to_string(), to.port().to_string(), seconds.to_string());
    let mut command = pod.command(&["bash", "-c", script, protocol, &ip, &port, &limit]);
    command.stdin(Stdio::null()).stdout(Stdio::piped());
    let mut waiting = Ongoing::from(world.spawn(&mut command)?);
    waiting.wait_for("up")?;
    Ok(waiting)
}

#[test]
fn udp_sockets_and_direct_connections_end_where_the_configuration_has_it_so() -> Result<()> {
    if !kernel_tests() {
        return Ok(());
    }
    let world = World::new()?;
    let cluster = Cluster::start(&world)?;
    for name in ["shop", "bank"] {
        let labels = json!({"egress.interceptor.io/mode": "enforce"});
        cluster.put("api/v1/namespaces", json!({"metadata": {"name": name, "labels": labels}}));
    }
    cluster.put(
        CONFIGS,
        json!({
            "apiVersion": "egress.interceptor.io/v1alpha1", "kind": "InterceptorConfig",
            "metadata": {"name": "c", "namespace": "shop", "uid": "c", "generation": 1},
            "spec": {"onPolicyRemoval": "cut"},
        }),
    );
    let (udp, tcp) = (at(world::UDP_ECHO), at(world::HTTPBIN));
    cluster.put(ENTRIES, entry("udp", "UDP", udp.ip()));
    cluster.put(ENTRIES, entry("tcp", "TCP", tcp.ip()));
    let mut node = Node::new(&world, &cluster, &["--outbound", "registry-only"])?;
    let (mut web, mut vault) = (node.pod(1, "shop", "web")?, node.pod(2, "bank", "vault")?);
    cluster.put(PODS, web.object().clone());
    cluster.put(PODS, vault.object().clone());
    node.start()?;
    for (name, pod) in [("shop/web", &web), ("bank/vault", &vault)] {
        node.until_covered(name, true)?;
        pod.until_echoes(tcp, true)?;
    }
    let mut of_web = [wait(&world, &web, "udp", udp, 30)?, wait(&world, &web, "tcp", tcp, 30)?];
    let mut of_vault = [wait(&world, &vault, "udp", udp, 8)?, wait(&world, &vault, "tcp", tcp, 8)?];

    cluster.delete(ENTRIES, "istio-system", "udp");
    cluster.delete(ENTRIES, "istio-system", "tcp");
    let since = Instant::now();
    for one in &mut of_web {
        one.wait_for("ended")?;
    }
    ensure!(since.elapsed() < Duration::from_secs(15), "{:?} {}", since.elapsed(), node.said());
    let told = |to: SocketAddr| {
        let to = to.to_string();
        let is_it =
            |line: &&str| line.contains(&to) && line.contains("policy_removed{not_registered}");
        node.log().lines().filter(is_it).count()
    };
    let deadline = Instant::now() + SOON;
    while told(udp) == 0 || told(tcp) == 0 {
        ensure!(Instant::now() < deadline, "{} {}", node.log(), node.said());
        sleep(Duration::from_millis(50));
    }
    // Another namespace's keep theirs, as nobody says otherwise.
    for one in &mut of_vault {
        one.wait_for("waited")?;
    }
    assert_eq!((told(udp), told(tcp)), (1, 1), "{}", node.log());
    Ok(())
}
