//! Beside another program at the sockets of a cgroup above, which sends connects to a service's address to
//! a backend, as what replaces kube-proxy does.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Result, ensure};
use interceptor_tests::cluster::Cluster;
use interceptor_tests::node::Node;
use interceptor_tests::rewriter::Rewriter;
use interceptor_tests::servers::port;
use interceptor_tests::world::{self, World, kernel_tests};
use serde_json::{Value, json};

/// Nothing is there: who reaches it reached the backend.
const SERVICE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 96, 0, 1));
const CLUSTER_DNS: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 96, 0, 10));

const BACKEND: IpAddr = world::HTTPBIN;

/// A cluster in which shop may reach the service, and bank nothing; pods of both are covered.
fn cluster(world: &World) -> Result<Cluster> {
    let cluster = Cluster::start(world)?;
    for name in ["shop", "bank"] {
        let labels = json!({"egress.interceptor.io/mode": "enforce"});
        let metadata = json!({"name": name, "labels": labels});
        cluster.apply(json!({"kind": "Namespace", "metadata": metadata}))?;
    }
    cluster.apply(json!({
        "apiVersion": "networking.istio.io/v1", "kind": "ServiceEntry",
        "metadata": {"name": "echo", "namespace": "shop"},
        "spec": {"hosts": ["echo.shop.test"], "exportTo": ["."], "addresses": [SERVICE.to_string()],
            "ports": [{"number": port::ECHO, "name": "echo", "protocol": "TCP"}]},
    }))?;
    service(&cluster, "shop", "web", SERVICE, 80, BACKEND)?;
    service(&cluster, "kube-system", "kube-dns", CLUSTER_DNS, 53, world::DNS)?;
    cluster.apply(json!({
        "apiVersion": "networking.istio.io/v1", "kind": "Sidecar",
        "metadata": {"name": "default", "namespace": "bank"},
        "spec": {"egress": [{"hosts": ["./*"]}]},
    }))?;
    Ok(cluster)
}

/// A Service with one endpoint.
fn service(
    cluster: &Cluster,
    namespace: &str,
    name: &str,
    ip: IpAddr,
    port: u16,
    endpoint: IpAddr,
) -> Result<()> {
    cluster.apply(json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": namespace},
        "spec": {"clusterIP": ip.to_string(), "clusterIPs": [ip.to_string()],
            "ports": [{"name": "http", "port": port, "targetPort": port, "protocol": "TCP"}]},
    }))?;
    let labels = json!({"kubernetes.io/service-name": name});
    cluster.apply(json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {"name": format!("{name}-1"), "namespace": namespace, "labels": labels},
        "addressType": "IPv4", "endpoints": [{"addresses": [endpoint.to_string()]}],
        "ports": [{"name": "http", "port": port, "protocol": "TCP"}],
    }))
}

/// What the other program does.
fn rewriters(at: &std::path::Path) -> Result<Vec<Rewriter>> {
    let to = |from: IpAddr, to: IpAddr, port| {
        Rewriter::attach(at, SocketAddr::new(from, port), SocketAddr::new(to, port))
    };
    Ok(vec![
        to(SERVICE, BACKEND, port::ECHO)?,
        to(SERVICE, BACKEND, 80)?,
        to(CLUSTER_DNS, world::DNS, 53)?,
    ])
}

/// The same for all of the node.
fn on_the_node(node: &Node<'_>) -> Result<Vec<Rewriter>> {
    let mut all = rewriters(node.top())?;
    all.extend(rewriters(&node.agents()?)?);
    Ok(all)
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum First {
    Other,
    Ours,
}

/// A pod's connect is judged by the address that it names, and goes where the other program sends it,
/// whichever of the two was attached first: the kernel asks the inner cgroup's programs first.
fn judged_by_the_service(first: First) -> Result<()> {
    let world = World::new()?;
    let cluster = cluster(&world)?;
    let mut node = Node::new(&world, &cluster, &["--outbound", "registry-only"])?;
    let (mut web, mut vault) = (node.pod(1, "shop", "web")?, node.pod(2, "bank", "vault")?);
    for pod in [&mut web, &mut vault] {
        cluster.apply(pod.object().clone())?;
    }
    let before = (first == First::Other).then(|| on_the_node(&node)).transpose()?;
    node.start()?;
    node.until_covered("shop/web", true)?;
    node.until_covered("bank/vault", true)?;
    let _after = (first == First::Ours).then(|| on_the_node(&node)).transpose()?;

    let capture = world.capture()?;
    let (service, backend) =
        (SocketAddr::new(SERVICE, port::ECHO), SocketAddr::new(BACKEND, port::ECHO));
    // Direct: the kernel alone judges it.
    ensure!(web.echoes(service)?, "{}{}", node.said(), node.log());
    ensure!(!vault.echoes(service)?, "{}", node.log());
    // The backend by its own address is somebody else.
    ensure!(!web.echoes(backend)? && !vault.echoes(backend)?, "{}", node.log());
    // By the proxy: the agent's own connect is rewritten too.
    let get = ["curl", "-sS", "-m", "5", "-o", "/dev/null", "-w", "%{http_code}", "-H"];
    let host = "Host: web.shop.svc.cluster.local";
    let url = format!("http://{SERVICE}/status/204");
    let got = web.output(&[&get[..], &[host, &url]].concat())?;
    ensure!(got.stdout == "204", "{got:?} {}{}", node.said(), node.log());
    let got = vault.output(&[&get[..], &[host, &url]].concat())?;
    ensure!(got.stdout == "502" || got.code != 0, "{got:?} {}", node.log());
    // A question to the cluster's name server, which a packet no longer names.
    let ask = format!("echo question > /dev/udp/{CLUSTER_DNS}/53");
    web.output(&["bash", "-c", &ask])?;

    let packets = capture.packets();
    let from = |number: u8| IpAddr::from([10, 80, number, 2]);
    let went = |number: u8, to: IpAddr, port: u16| {
        packets
            .iter()
            .any(|one| one.source == from(number) && one.ends().1 == SocketAddr::new(to, port))
    };
    assert!(went(1, BACKEND, port::ECHO) && went(1, BACKEND, 80), "the controls");
    assert!(went(1, world::DNS, 53), "the name server behind the service: {}", node.log());
    assert!(
        packets.iter().all(|one| one.destination != SERVICE),
        "nothing is sent to the service itself"
    );
    let by_vault = packets.iter().filter(|one| one.source == from(2)).count();
    assert_eq!(by_vault, 0, "{}", node.log());
    // What is logged names the service, not the backend.
    node.stop()?;
    let log = node.log();
    assert!(log.contains(&format!("outbound|{}||echo.shop.test", port::ECHO)), "{log}");
    drop(before);
    Ok(())
}

#[test]
fn a_service_is_judged_by_its_own_address_where_the_other_was_first() -> Result<()> {
    if !kernel_tests() {
        return Ok(());
    }
    judged_by_the_service(First::Other)
}

#[test]
fn a_service_is_judged_by_its_own_address_where_we_were_first() -> Result<()> {
    if !kernel_tests() {
        return Ok(());
    }
    judged_by_the_service(First::Ours)
}

/// A program in an inner cgroup is asked before us: what it makes of a destination is what is judged, so
/// that it gets nothing out that policy does not name.
#[test]
fn what_an_inner_program_makes_of_it_is_judged() -> Result<()> {
    if !kernel_tests() {
        return Ok(());
    }
    let world = World::new()?;
    let cluster = cluster(&world)?;
    let mut node = Node::new(&world, &cluster, &["--outbound", "registry-only"])?;
    let mut web = node.pod(1, "shop", "web")?;
    cluster.apply(web.object().clone())?;
    node.start()?;
    node.until_covered("shop/web", true)?;
    let _inner = rewriters(node.burstable())?;
    let service = SocketAddr::new(SERVICE, port::ECHO);
    let capture = world.capture()?;
    ensure!(!web.echoes(service)?, "the backend is not allowed: {}", node.log());
    assert_eq!(capture.syns_to(BACKEND, port::ECHO), 0, "{}", node.log());
    let backend: Value = json!({
        "apiVersion": "networking.istio.io/v1", "kind": "ServiceEntry",
        "metadata": {"name": "backend", "namespace": "shop"},
        "spec": {"hosts": ["backend.shop.test"], "exportTo": ["."], "addresses": [BACKEND.to_string()],
            "ports": [{"number": port::ECHO, "name": "echo", "protocol": "TCP"}]},
    });
    cluster.apply(backend)?;
    web.until_echoes(service, true)?;
    assert!(capture.syns_to(BACKEND, port::ECHO) > 0, "the control");
    Ok(())
}
