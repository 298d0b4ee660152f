//! `onDaemonLoss`: what goes on while the daemon is killed, or hangs.

use std::net::SocketAddr;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use interceptor_tests::cgroup::Cgroup;
use interceptor_tests::dweller::Dweller;
use interceptor_tests::product::{Interceptor, Running, binary};
use interceptor_tests::servers::port;
use interceptor_tests::world::{self, World, kernel_tests};
use nix::sys::signal::Signal;

const CLIENT: &str = env!("CARGO_BIN_EXE_interceptor-test-client");

/// The oldest sign of life that counts, and time for those who look.
const LOST: Duration = Duration::from_secs(5 + 2);
/// From the daemon's return to the first connection.
const BACK: Duration = Duration::from_secs(2);

/// A covered workload: a direct connection to an entry's address that it keeps, new ones to another,
/// new ones to a bypassed network, and datagrams to an entry that are answered.
struct Covered<'w> {
    inside: Dweller,
    running: Running<'w>,
    cgroup: Cgroup,
    world: &'w World,
    kept: String,
    direct: String,
    bypassed: String,
    datagrams: String,
}

impl<'w> Covered<'w> {
    fn start(world: &'w World, on_loss: &str) -> Result<Self> {
        let at = |ip| SocketAddr::new(ip, port::ECHO).to_string();
        let (direct, bypassed) = (at(world::HTTPBIN), at(world::CNN));
        let addresses = format!("  addresses: [{}, {}]\n", world::HTTPBIN, world::GOOGLE);
        let entry = world.entry("echo.test", port::ECHO, "TCP", &addresses)?;
        let addresses = format!("  addresses: [{}]\n", world::UDP_ECHO);
        let udp = world.entry("udp.test", port::ECHO, "UDP", &addresses)?;
        let config = format!(
            "apiVersion: egress.interceptor.io/v1alpha1\nkind: InterceptorConfig\n\
             metadata: {{name: default}}\nspec: {{onDaemonLoss: {on_loss}}}\n"
        );
        let config = world.file("config.yaml", &config)?;
        let network = format!("{}/32", world::CNN);
        let cgroup = Cgroup::create("loss")?;
        let files = ["-f", &entry, "-f", &udp, "-f", &config];
        let flags = [&["--outbound", "registry-only", "--bypass", &network], &files[..]].concat();
        let running = Interceptor::new(world, &binary(), &flags).cover(cgroup.path())?;
        let (kept, datagrams) = (at(world::GOOGLE), at(world::UDP_ECHO));
        let what = ["--keep", &kept, "--again", &direct, "--again", &bypassed];
        let what = [&what[..], &["--datagrams", &datagrams]].concat();
        let inside = Dweller::start(world, &world.workload, Some(&cgroup), CLIENT, &what)?;
        for name in [&kept, &direct, &bypassed, &format!("udp/{datagrams}")] {
            inside.goes_on(name, BACK)?;
        }
        Ok(Self { inside, running, cgroup, world, kept, direct, bypassed, datagrams })
    }

    /// Waits until new direct connections are refused; what is established or bypassed goes on, and
    /// nothing leaves to where they would go.
    fn check_closed(&self) -> Result<()> {
        self.inside.until(&self.direct, "EPERM", LOST)?;
        let capture = self.world.capture()?;
        self.inside.goes_on(&self.kept, BACK)?;
        self.inside.goes_on(&self.bypassed, BACK)?;
        let udp = format!("udp/{}", self.datagrams);
        self.inside.goes_on(&udp, BACK)?;
        let what = ["--datagrams", &self.datagrams];
        let (world, cgroup) = (self.world, &self.cgroup);
        let new = Dweller::start(world, &world.workload, Some(cgroup), CLIENT, &what)?;
        new.until(&udp, "EPERM", BACK)?;
        assert_eq!(capture.packets_to(world::HTTPBIN), 0);
        assert!(capture.syns_to(world::CNN, port::ECHO) > 0, "the control");
        Ok(())
    }
}

#[test]
fn t59_closed_refuses_new_direct_connections_while_no_daemon_lives() -> Result<()> {
    if !kernel_tests() {
        return Ok(());
    }
    let world = World::new()?;
    let mut covered = Covered::start(&world, "closed")?;
    assert_eq!(covered.running.status()?["on_daemon_loss"], "closed");

    covered.running.signal(Signal::SIGSTOP)?;
    covered.check_closed()?;
    covered.running.signal(Signal::SIGCONT)?;
    covered.inside.goes_on(&covered.direct, BACK)?;

    covered.running.kill()?;
    covered.check_closed()?;
    let again = covered.running.cover_command(covered.cgroup.path());
    covered.running.start_again(again)?;
    covered.running.until_ready()?;
    covered.inside.goes_on(&covered.direct, BACK)?;
    covered.inside.goes_on(&covered.kept, BACK)?;
    assert!(covered.running.counter("refused_daemon_lost")? > 0);
    Ok(())
}

#[test]
fn t59_direct_tier_goes_on_without_a_daemon() -> Result<()> {
    if !kernel_tests() {
        return Ok(());
    }
    let world = World::new()?;
    let covered = Covered::start(&world, "direct-tier")?;
    // Longer than `closed` would wait.
    covered.running.signal(Signal::SIGSTOP)?;
    let begun = Instant::now();
    while begun.elapsed() < LOST {
        for name in [&covered.direct, &covered.kept, &covered.bypassed] {
            covered.inside.goes_on(name, BACK)?;
        }
        sleep(Duration::from_millis(200));
    }
    covered.running.signal(Signal::SIGCONT)?;
    let state = covered.inside.doing(&covered.direct)?.state;
    ensure!(state == "ok", "{state}");
    Ok(())
}
