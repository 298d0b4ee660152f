//! Where the interface layer stands: interfaces that come, go and move while it runs; what it says of what
//! it drops; and that one workload leaves room in its table for the others.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::process::Command;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use interceptor_tests::cgroup::Cgroup;
use interceptor_tests::netns::Namespace;
use interceptor_tests::pod::{Behind, NEXT_HOP, POD_V4, Pod};
use interceptor_tests::product::{Interceptor, Running, binary};
use interceptor_tests::world::{self, World, kernel_tests};

const CLIENT: &str = env!("CARGO_BIN_EXE_interceptor-test-client");
/// What no entry allows.
const FORBIDDEN: IpAddr = world::EXAMPLE_V4;
/// How long it may take until a new interface is covered.
const NOTICED: Duration = Duration::from_secs(5);
/// Link-layer address of the next hop behind a second interface.
const SECOND_HOP: &str = "02:00:0a:4e:00:02";

fn product<'w>(world: &'w World, pod: &Pod) -> Result<Interceptor<'w>> {
    let entry = world.entry("direct.example.net", 7, "TCP", "  resolution: DNS\n")?;
    let flags = ["--netns", pod.namespace.name(), "--outbound", "registry-only"];
    let more = ["--resolver", "192.0.2.53", "-f", &entry];
    Ok(Interceptor::new(world, &binary(), &[&flags[..], &more[..]].concat()))
}

/// Frames by an interface of the pod's, made by hand.
fn escape(way: &str, interface: &str, via: &str) -> Vec<String> {
    let to = SocketAddr::new(FORBIDDEN, 9).to_string();
    let from = POD_V4.to_string();
    let words = ["escape", way, &to, "--from", &from, "--via", via, "--interface", interface];
    [CLIENT].iter().chain(&words).map(|word| (*word).to_owned()).collect()
}

fn words(command: &[String]) -> Vec<&str> {
    command.iter().map(String::as_str).collect()
}

/// A second link between pod and node.
fn second_link(world: &World, pod: &Pod) -> Result<()> {
    let add = ["link", "add", "pod1", "address", SECOND_HOP, "type", "veth"];
    let peer = ["peer", "name", "eth1", "netns", pod.namespace.name()];
    world.workload.ip(&[&add[..], &peer[..]].concat())?;
    pod.namespace.ip(&["link", "set", "eth1", "up"])?;
    world.workload.ip(&["link", "set", "pod1", "up"])
}

/// Waits until `status` says that the layer stands at these interfaces of the pod.
fn stands_at(running: &Running<'_>, interfaces: &[&str]) -> Result<()> {
    let begun = Instant::now();
    loop {
        let status = running.status()?;
        let attached = |interface: &&str| {
            let target = format!("interface {interface}");
            let all = status["attachments"].as_array().into_iter().flatten();
            all.filter(|one| one["target"] == target.as_str()).count() == 2
        };
        if status["namespaces"][0]["interfaces"] == serde_json::json!(interfaces)
            && interfaces.iter().all(attached)
        {
            return Ok(());
        }
        ensure!(begun.elapsed() < NOTICED, "not at {interfaces:?}: {status}");
        sleep(Duration::from_millis(50));
    }
}

/// An interface that comes later is covered, one that goes is forgotten.
#[test]
fn t06_an_interface_that_comes_later_is_covered() -> Result<()> {
    if !kernel_tests() {
        return Ok(());
    }
    let world = World::new()?;
    let pod = Pod::new(&world, Behind::Node)?;
    let by_second = escape("packet", "eth1", SECOND_HOP);
    second_link(&world, &pod)?;
    let control = world.capture()?;
    pod.output(&world, &words(&by_second))?;
    assert!(control.packets_to(FORBIDDEN) > 0, "the control does not get out");
    world.workload.ip(&["link", "del", "pod1"])?;

    let mut running = product(&world, &pod)?.start()?;
    stands_at(&running, &["pod0"])?;
    let capture = world.capture()?;
    second_link(&world, &pod)?;
    stands_at(&running, &["pod0", "pod1"])?;
    let said = running.stderr()?;
    assert!(said.contains("interface pod1 leads out of"), "{said}");
    let tried = pod.output(&world, &words(&by_second))?;
    assert_eq!(tried.stdout, "sent\n", "{}", tried.stderr);
    assert_eq!(capture.packets_to(FORBIDDEN), 0);
    assert_eq!(running.counter("dropped_interface_socket")?, 1);

    world.workload.ip(&["link", "del", "pod1"])?;
    stands_at(&running, &["pod0"])?;
    // The watchdog has looked meanwhile, and missed nothing.
    sleep(Duration::from_secs(3));
    let status = running.status()?;
    assert_eq!(status["repairs"]["count"], 0, "{status}");
    assert_eq!(status["repairs"]["failing"], 0, "{status}");
    Ok(())
}

/// Who moves his end of the link into another namespace takes it past no layer.
#[test]
fn t06_a_link_that_is_moved_on_stays_covered() -> Result<()> {
    if !kernel_tests() {
        return Ok(());
    }
    let world = World::new()?;
    let pod = Pod::new(&world, Behind::Node)?;
    let beyond = Namespace::create(900, "beyond")?;
    let running = product(&world, &pod)?.start()?;
    pod.namespace.ip(&["link", "set", "eth0", "netns", beyond.name()])?;
    beyond.ip(&["link", "set", "eth0", "up"])?;
    // Long enough for the daemon to have looked.
    sleep(Duration::from_secs(3));
    stands_at(&running, &["pod0"])?;
    let command = escape("packet", "eth0", NEXT_HOP);
    let attempt = || {
        let mut whole = world.command("ip");
        whole.args(["netns", "exec", beyond.name()]).args(&command);
        world.output(&mut whole, Duration::from_secs(20))
    };
    let capture = world.capture()?;
    assert_eq!(attempt()?.stdout, "sent\n");
    assert_eq!(capture.packets_to(FORBIDDEN), 0);
    assert_eq!(running.counter("dropped_interface_socket")?, 1);
    running.stop()?;
    attempt()?;
    assert!(capture.packets_to(FORBIDDEN) > 0, "the control does not get out");
    Ok(())
}

/// T-55: what is dropped at an interface has a line, with both ends; a flood is counted, and takes no line
/// from others.
#[test]
fn t55_what_an_interface_drops_has_a_line() -> Result<()> {
    if !kernel_tests() {
        return Ok(());
    }
    const FLOOD: u64 = 5000;
    let world = World::new()?;
    let pod = Pod::new(&world, Behind::Node)?;
    let running = product(&world, &pod)?.start()?;
    let tried = pod.output(&world, &words(&escape("packet", "eth0", NEXT_HOP)))?;
    assert_eq!(tried.stdout, "sent\n", "{}", tried.stderr);
    let log = running.wait_for_lines(0, 2);
    let line = |why: &str, from: u16| {
        let (from, to) = (SocketAddr::new(POD_V4, from), SocketAddr::new(FORBIDDEN, 9));
        let fits = |line: &&String| {
            let ends = [from.to_string(), to.to_string()];
            line.contains(why) && ends.iter().all(|end| line.contains(end.as_str()))
        };
        log.iter().filter(fits).count()
    };
    assert_eq!(line("dropped_interface_socket_tcp{pod0}", 40_001), 1, "{log:#?}");
    assert_eq!(line("dropped_interface_datagram_udp{pod0}", 40_002), 1, "{log:#?}");

    let before = running.lines().len();
    let flooded = pod.output(&world, &words(&escape("packet-flood", "eth0", NEXT_HOP)))?;
    assert_eq!(flooded.stdout, "sent\n", "{}", flooded.stderr);
    let other = SocketAddr::new(FORBIDDEN, 5353).to_string();
    let refused = running.exec(&[CLIENT, "datagram", &other], 1)?;
    assert!(refused.log.iter().any(|line| line.contains(&other)), "{:#?}", refused.log);
    assert_eq!(running.counter("dropped_interface_socket")?, FLOOD + 1);
    let lines = running.lines().len() - before;
    let untold = running.counter("interface_drop_unreported")?;
    assert!((50..1000).contains(&lines), "{lines} lines");
    assert!(untold + lines as u64 >= FLOOD && untold >= FLOOD / 2, "{untold} and {lines} lines");
    assert_eq!(running.counter("refusal_record_lost")?, 0);
    Ok(())
}

const OTHER_V4: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 80, 0, 2));

/// A second workload's namespace, on a link of its own to the node.
fn other(world: &World) -> Result<Namespace> {
    let other = Namespace::create(901, "other")?;
    let link = ["link", "add", "other0", "type", "veth", "peer", "name", "eth0"];
    world.workload.ip(&[&link[..], &["netns", other.name()]].concat())?;
    for (at, device, address) in
        [(&world.workload, "other0", "10.80.0.1/24"), (&other, "eth0", "10.80.0.2/24")]
    {
        at.ip(&["addr", "add", address, "dev", device])?;
        at.ip(&["link", "set", device, "up"])?;
    }
    Ok(other)
}

/// Whether somebody at the node gets a connection into a namespace, to a listener that is not covered:
/// what answers it passes by the table only.
fn is_answered(world: &World, namespace: &Namespace, at: SocketAddr) -> Result<bool> {
    let listener = namespace.inside(|| TcpListener::bind(at))??;
    let reached =
        world.workload.inside(|| TcpStream::connect_timeout(&at, Duration::from_secs(2)))?;
    let Ok(mut stream) = reached else { return Ok(false) };
    stream.set_read_timeout(Some(Duration::from_secs(2)))?;
    listener.accept()?.0.write_all(b"!")?;
    stream.read_exact(&mut [0]).context("accepted, and silent")?;
    Ok(true)
}

/// T-52: as many flows as there can be towards one workload leave room for those of another.
#[test]
fn t52_one_workload_leaves_the_table_to_others() -> Result<()> {
    if !kernel_tests() {
        return Ok(());
    }
    const EACH: u64 = 65_536;
    let world = World::new()?;
    let pod = Pod::new(&world, Behind::Node)?;
    let other = other(&world)?;
    let cgroup = Cgroup::create("other")?;
    let mut resident = Command::new("sh");
    cgroup.command(&mut resident, &["sleep", "86400"]);
    let mut resident = other.inside(|| resident.spawn())??;
    let procs = cgroup.path().join("cgroup.procs");
    while std::fs::read_to_string(&procs)?.is_empty() {
        sleep(Duration::from_millis(5));
    }
    let running = product(&world, &pod)?.cover(cgroup.path())?;
    let status = running.status()?;
    let interfaces: Vec<_> =
        (0..2).map(|which| status["namespaces"][which]["interfaces"][0].clone()).collect();
    assert_eq!(interfaces, ["pod0", "other0"], "{status}");
    let at = [SocketAddr::new(POD_V4, 8000), SocketAddr::new(OTHER_V4, 8000)];
    assert!(is_answered(&world, &pod.namespace, at[0])?);
    assert!(is_answered(&world, &other, at[1])?);

    world.workload.inside(|| -> Result<()> {
        for _ in 0..2 {
            let socket = UdpSocket::bind("10.78.0.1:0")?;
            for port in 1..=u16::MAX {
                // A port that nobody has is said back to the socket as an error.
                let _ = socket.send_to(b"anyone?", SocketAddr::new(POD_V4, port));
            }
        }
        Ok(())
    })??;
    assert!(running.counter("passage_table_full")? > 0);
    let full = running.entries("PASSAGES")?;
    // A few of the other's.
    assert!((EACH..EACH + 10).contains(&full), "{full}");
    assert!(is_answered(&world, &other, at[1])?, "the other workload is not answered any more");
    assert!(!is_answered(&world, &pod.namespace, SocketAddr::new(POD_V4, 8001))?, "it is full");
    resident.kill()?;
    resident.wait()?;
    Ok(())
}
