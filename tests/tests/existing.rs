//! T-7: connections that were open before the attach. Judged by what the far side sees, and by what
//! the workload does.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::Result;
use interceptor_tests::capture::Capture;
use interceptor_tests::cgroup::Cgroup;
use interceptor_tests::dweller::Dweller;
use interceptor_tests::product::{Interceptor, Running, binary};
use interceptor_tests::servers::port;
use interceptor_tests::world::{self, World, kernel_tests};

const CLIENT: &str = env!("CARGO_BIN_EXE_interceptor-test-client");
const REGISTRY_ONLY: [&str; 2] = ["--outbound", "registry-only"];

/// From the attach to what it changes; a busy machine gets more.
const SOON: Duration = Duration::from_secs(3);
/// Where the workload answers connections from outside.
const SERVICE: u16 = 7007;

fn echo(ip: IpAddr) -> String {
    SocketAddr::new(ip, port::ECHO).to_string()
}

/// Packets with payload that the workload sent to an address so far.
fn sent_to(capture: &Capture, ip: IpAddr) -> usize {
    capture.packets().iter().filter(|p| p.destination == ip && p.payload > 0).count()
}

/// A covered service below the cgroup, and its peers outside, as they are before the attach.
struct Service {
    // Dropped in this order: what is in a cgroup before it, and it before its parent.
    /// In a child of the cgroup: has connections out, one to itself, and serves.
    inside: Dweller,
    /// Talks to the service from outside.
    caller: Dweller,
    _child: Cgroup,
    cgroup: Cgroup,
}

impl Service {
    fn start(world: &World, more: &[&str]) -> Result<Self> {
        let cgroup = Cgroup::create("service")?;
        let child = cgroup.child("below")?;
        let (v4, v6) = (echo(world::HTTPBIN), echo(world::EXAMPLE_V6));
        let (udp, port) = (echo(world::UDP_ECHO), SERVICE.to_string());
        let what =
            ["--keep", &v4, "--keep", &v6, "--datagrams", &udp, "--loopback", "--echo", &port];
        let what = [&what[..], more].concat();
        let inside = Dweller::start(world, &world.workload, Some(&child), CLIENT, &what)?;
        let caller = Self::call(world)?;
        for (dweller, name) in [(&inside, &v4), (&inside, &v6), (&caller, &service())] {
            dweller.goes_on(name, SOON)?;
        }
        inside.goes_on("loopback", SOON)?;
        inside.goes_on(&format!("udp/{udp}"), SOON)?;
        Ok(Self { inside, caller, _child: child, cgroup })
    }

    fn call(world: &World) -> Result<Dweller> {
        Dweller::start(world, &world.internet, None, CLIENT, &["--keep", &service()])
    }
}

fn service() -> String {
    SocketAddr::new(world::WORKLOAD_V4, SERVICE).to_string()
}

fn attach<'w>(world: &'w World, service: &Service, flags: &[&str]) -> Result<Running<'w>> {
    let flags = [&REGISTRY_ONLY[..], flags].concat();
    Interceptor::new(world, &binary(), &flags).cover(service.cgroup.path())
}

fn lines_of(running: &Running<'_>, peer: &str) -> Vec<String> {
    let of_peer = |line: &String| line.contains("open_before_attach") && line.contains(peer);
    running.lines().into_iter().filter(of_peer).collect()
}

#[test]
fn t7_what_was_open_before_is_cut_in_the_whole_subtree() -> Result<()> {
    if !kernel_tests() {
        return Ok(());
    }
    let world = World::new()?;
    let before = Service::start(&world, &[])?;
    let mut running = attach(&world, &before, &[])?;

    let inside = &before.inside;
    for peer in [echo(world::HTTPBIN), echo(world::EXAMPLE_V6)] {
        inside.until(&peer, "ECONNABORTED", SOON)?;
        let lines = lines_of(&running, &peer);
        assert_eq!(lines.len(), 1, "{lines:?}");
        assert!(lines[0].contains(" UH ") && lines[0].contains("BlackHoleCluster"), "{lines:?}");
        let said = running.stderr()?;
        assert!(said.contains(&format!("to {peer} was open before the attach: cut")), "{said}");
    }
    // What was accepted cannot be told from what was dialled. The peer is told at once.
    before.caller.until(&service(), "ECONNRESET", SOON)?;
    // Its peer was taken from it.
    inside.until(&format!("udp/{}", echo(world::UDP_ECHO)), "EDESTADDRREQ", SOON)?;
    inside.goes_on("loopback", SOON)?;

    let capture = world.capture()?;
    // T-16, and the control that the capture sees the workload's packets.
    let caller = Service::call(&world)?;
    caller.goes_on(&service(), SOON)?;
    assert!(sent_to(&capture, "10.77.0.1".parse()?) > 0, "answers to a new caller");
    for ip in [world::HTTPBIN, world::EXAMPLE_V6, world::UDP_ECHO] {
        assert_eq!(sent_to(&capture, ip), 0, "{ip}");
    }
    Ok(())
}

#[test]
fn t7_keep_existing_lets_it_go_on_and_logs_it() -> Result<()> {
    if !kernel_tests() {
        return Ok(());
    }
    let world = World::new()?;
    let refused = echo(world::CNN);
    let before = Service::start(&world, &["--again", &refused])?;
    before.inside.goes_on(&refused, SOON)?;
    let mut running = attach(&world, &before, &["--keep-existing"])?;

    let peers = [echo(world::HTTPBIN), echo(world::EXAMPLE_V6)];
    for peer in &peers {
        before.inside.goes_on(peer, SOON)?;
        let lines = lines_of(&running, peer);
        assert_eq!(lines.len(), 1, "{lines:?}");
        let said = running.stderr()?;
        assert!(said.contains(&format!("to {peer} was open before the attach: kept")), "{said}");
    }
    before.caller.goes_on(&service(), SOON)?;
    // New ones are judged.
    before.inside.fails(&refused, SOON)?;
    before.inside.until(&format!("udp/{}", echo(world::UDP_ECHO)), "EPERM", SOON)?;

    // Killed and started again in the same way, it keeps them again.
    running.kill()?;
    for peer in &peers {
        before.inside.goes_on(peer, SOON)?;
    }
    let again = running.cover_command(before.cgroup.path());
    running.start_again(again)?;
    running.until_ready()?;
    for peer in &peers {
        before.inside.goes_on(peer, SOON)?;
    }
    // Without the flag, the next start cuts.
    running.stop()?;
    let _running = attach(&world, &before, &[])?;
    before.inside.until(&peers[0], "ECONNABORTED", SOON)?;
    Ok(())
}

/// Where traffic may go unjudged anyway, nothing is cut; elsewhere it is.
#[test]
fn t7_connections_to_bypassed_networks_go_on() -> Result<()> {
    if !kernel_tests() {
        return Ok(());
    }
    let world = World::new()?;
    let before = Service::start(&world, &[])?;
    let network = format!("{}/32", world::HTTPBIN);
    let running = attach(&world, &before, &["--bypass", &network])?;
    before.inside.until(&echo(world::EXAMPLE_V6), "ECONNABORTED", SOON)?;
    before.inside.goes_on(&echo(world::HTTPBIN), SOON)?;
    assert_eq!(lines_of(&running, &echo(world::HTTPBIN)).len(), 1);
    Ok(())
}

/// A process that brings its connection along from another cgroup.
#[test]
fn t7_what_a_process_brought_along_is_cut() -> Result<()> {
    if !kernel_tests() {
        return Ok(());
    }
    let world = World::new()?;
    let peer = echo(world::HTTPBIN);
    let cgroup = Cgroup::create("service")?;
    let control = Dweller::start(&world, &world.workload, None, CLIENT, &["--keep", &peer])?;
    let moved = Dweller::start(&world, &world.workload, None, CLIENT, &["--keep", &peer])?;
    cgroup.add(moved.pid())?;
    let _running = Interceptor::new(&world, &binary(), &REGISTRY_ONLY).cover(cgroup.path())?;
    moved.until(&peer, "ECONNABORTED", SOON)?;
    control.goes_on(&peer, SOON)?;
    Ok(())
}

/// The hooks hold what cannot be listed: the connection lies in a namespace in which no covered
/// process is any more.
#[test]
fn t7_nothing_leaves_by_a_connection_that_is_not_found() -> Result<()> {
    if !kernel_tests() {
        return Ok(());
    }
    let world = World::new()?;
    let peer = echo(world::HTTPBIN);
    let cgroup = Cgroup::create("service")?;
    let elsewhere = world.internet.path().display().to_string();
    let what = ["--keep", &peer, "--netns", &elsewhere];
    let inside = Dweller::start(&world, &world.workload, Some(&cgroup), CLIENT, &what)?;
    let capture = world.capture()?;
    inside.goes_on(&peer, SOON)?;
    assert!(sent_to(&capture, world::HTTPBIN) > 0, "the control gets out");

    let running = Interceptor::new(&world, &binary(), &REGISTRY_ONLY).cover(cgroup.path())?;
    inside.until(&peer, "silent", SOON)?;
    let before = running.counter("dropped_unapproved")?;
    let capture = world.capture()?;
    // TCP tries again and again.
    let dropped = || Ok::<_, anyhow::Error>(running.counter("dropped_unapproved")? > before);
    let deadline = std::time::Instant::now() + SOON;
    while !dropped()? {
        anyhow::ensure!(std::time::Instant::now() < deadline, "nothing was sent, or it got out");
        std::thread::sleep(Duration::from_millis(20));
    }
    assert_eq!(sent_to(&capture, world::HTTPBIN), 0);
    Ok(())
}
