//! Telemetry under the node agent: of a namespace, and of the pods that one selects, the access log is their own.

use std::net::SocketAddr;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use interceptor_tests::cluster::Cluster;
use interceptor_tests::node::{Node, Pod, SOON};
use interceptor_tests::servers::port;
use interceptor_tests::world::{self, World, kernel_tests};
use serde_json::{Value, json};

const PODS: &str = "api/v1/pods";
const TELEMETRIES: &str = "apis/telemetry.istio.io/v1/telemetries";

fn telemetry(namespace: &str, spec: Value) -> Value {
    json!({
        "apiVersion": "telemetry.istio.io/v1", "kind": "Telemetry",
        "metadata": {"name": "log", "namespace": namespace},
        "spec": spec,
    })
}

/// Lines of pods to a destination, by the pods' addresses: whether it is exactly these pods that have some.
/// Each tries again until it is so.
fn until_logged(node: &Node<'_>, pods: &[&Pod<'_>], to: SocketAddr, expected: &[u8]) -> Result<()> {
    let deadline = Instant::now() + SOON * 2;
    loop {
        let before = node.log().len();
        for pod in pods {
            ensure!(!pod.echoes(to)?, "refused: {}", node.said());
            // A refusal in the kernel.
            pod.output(&["bash", "-c", "printf x > /dev/udp/203.0.113.50/7"])?;
        }
        // All are written at once, or within the second in which they are folded.
        sleep(Duration::from_millis(1500));
        let log = node.log();
        let new = &log[before..];
        let has = |number: u8, to: &str| {
            let from = format!(" 10.80.{number}.2:");
            new.lines().any(|line| line.contains(&from) && line.contains(to))
        };
        let to = to.to_string();
        let logged: Vec<u8> = (1..=3).filter(|number| has(*number, &to)).collect();
        if logged == expected {
            // A datagram's line has no port of its own, nor then an address: by their number.
            let datagrams =
                new.lines().filter(|line| line.contains("refused_datagram_udp")).count();
            if datagrams >= expected.len() && (!expected.is_empty() || datagrams == 0) {
                return Ok(());
            }
        }
        ensure!(Instant::now() < deadline, "{logged:?}, not {expected:?}: {new}\n{}", node.said());
    }
}

#[test]
fn each_pod_has_the_log_of_its_own_telemetry() -> Result<()> {
    if !kernel_tests() {
        return Ok(());
    }
    let world = World::new()?;
    let cluster = Cluster::start(&world)?;
    for name in ["shop", "bank"] {
        let labels = json!({"egress.interceptor.io/mode": "enforce"});
        cluster.put("api/v1/namespaces", json!({"metadata": {"name": name, "labels": labels}}));
    }
    let off = json!([{"providers": [{"name": "envoy"}], "disabled": true}]);
    cluster.put(
        TELEMETRIES,
        telemetry("istio-system", json!({"accessLogging": [{"providers": [{"name": "envoy"}]}]})),
    );
    cluster.put(TELEMETRIES, telemetry("bank", json!({"accessLogging": off})));
    let selector = json!({"matchLabels": {"app": "quiet"}});
    cluster
        .put(TELEMETRIES, telemetry("shop", json!({"selector": selector, "accessLogging": off})));
    let mut node = Node::new(&world, &cluster, &["--outbound", "registry-only"])?;
    let (mut web, mut quiet) = (node.pod(1, "shop", "web")?, node.pod(2, "shop", "quiet")?);
    let mut vault = node.pod(3, "bank", "vault")?;
    for pod in [&mut web, &mut quiet, &mut vault] {
        cluster.put(PODS, pod.object().clone());
    }
    node.start()?;
    for name in ["shop/web", "shop/quiet", "bank/vault"] {
        node.until_covered(name, true)?;
    }
    let pods = [&web, &quiet, &vault];
    let google = SocketAddr::new(world::GOOGLE, port::ECHO);
    until_logged(&node, &pods, google, &[1])?;
    // Without one of its own it has the mesh's.
    cluster.delete(TELEMETRIES, "bank", "log");
    until_logged(&node, &pods, google, &[1, 3])?;
    // By a filter, and the other one selected no more.
    let never = json!({"expression": "connection.requested_server_name == 'nowhere.test'"});
    let filtered = json!([{"providers": [{"name": "envoy"}], "filter": never}]);
    cluster.put(TELEMETRIES, telemetry("bank", json!({"accessLogging": filtered})));
    cluster.delete(TELEMETRIES, "shop", "log");
    until_logged(&node, &pods, google, &[1, 2])?;
    let metrics = node.verb(&["metrics"])?.stdout;
    ensure!(metrics.contains("pod_name=\"vault\""), "counted all the same: {metrics}");
    Ok(())
}
