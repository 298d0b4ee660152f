//! T-15: hooks and pins that somebody with the privilege takes away are put back within five seconds,
//! and reported.

use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use interceptor_tests::capture::{Capture, Packet};
use interceptor_tests::cgroup::Cgroup;
use interceptor_tests::dweller::Dweller;
use interceptor_tests::product::{Interceptor, Running, binary};
use interceptor_tests::servers::port;
use interceptor_tests::tamper::{detach, link, pins, unseen};
use interceptor_tests::world::{self, World, kernel_tests};

const CLIENT: &str = env!("CARGO_BIN_EXE_interceptor-test-client");

/// What T-15 asks for.
const LIMIT: Duration = Duration::from_secs(5);

/// Waits until standard error holds all of `words`; how long that took.
fn until_said(running: &mut Running<'_>, words: &[&str]) -> Result<Duration> {
    let begun = Instant::now();
    loop {
        let said = running.stderr()?;
        if words.iter().all(|word| said.contains(word)) {
            return Ok(begun.elapsed());
        }
        ensure!(begun.elapsed() < LIMIT, "{words:?} is not in: {said}");
        sleep(Duration::from_millis(20));
    }
}

fn covered<'w>(world: &'w World, what: &[&str]) -> Result<(Cgroup, Dweller, Running<'w>)> {
    let cgroup = Cgroup::create("watched")?;
    let product = Interceptor::new(world, &binary(), &["--outbound", "registry-only"]);
    let running = product.cover(cgroup.path())?;
    let inside = Dweller::start(world, &world.workload, Some(&cgroup), CLIENT, what)?;
    Ok((cgroup, inside, running))
}

/// What went to an address, but for the kernel's own reset in answer to a late packet.
fn opened(capture: &Capture, ip: IpAddr) -> Vec<Packet> {
    let told = |p: &Packet| p.protocol == 6 && p.payload == 0 && !p.is_syn();
    capture.packets().into_iter().filter(|p| p.destination == ip && !told(p)).collect()
}

fn repairs(running: &Running<'_>) -> Result<u64> {
    running.status()?["repairs"]["count"].as_u64().context("no count")
}

/// While connect4 alone is away, the packet hook holds; while both are, connections get out, and are
/// cut when the hooks are back.
#[test]
fn t15_a_detached_hook_is_back_within_five_seconds() -> Result<()> {
    if !kernel_tests() {
        return Ok(());
    }
    let world = World::new()?;
    let forbidden = SocketAddr::new(world::CNN, 80);
    let (cgroup, inside, mut running) = covered(&world, &["--attempt", &forbidden.to_string()])?;
    let capture = world.capture()?;
    inside.goes_on(&forbidden.to_string(), LIMIT)?;

    detach(&link(&running, "connect4", &cgroup)?)?;
    let words = ["hook connect4 of cgroup", "was detached, and not by interceptor; it is back"];
    until_said(&mut running, &words)?;
    assert_eq!(opened(&capture, forbidden.ip()), [], "the packet hook stands behind connect");
    assert_eq!(repairs(&running)?, 1);
    let status = running.verb(&["status"])?;
    assert!(status.stdout.contains("1 made; the last: hook connect4"), "{}", status.stdout);

    let echo = SocketAddr::new(world::HTTPBIN, port::ECHO).to_string();
    let gap = unseen(&running, || {
        for hook in ["connect4", "egress"] {
            detach(&link(&running, hook, &cgroup)?)?;
        }
        Dweller::start(&world, &world.workload, Some(&cgroup), CLIENT, &["--keep", &echo])
    })?;
    assert!(capture.packets_to(world::HTTPBIN) > 0, "the control: it is open without them");
    until_said(&mut running, &["hook egress of cgroup"])?;
    gap.until(&echo, "ECONNABORTED", LIMIT)?;
    assert_eq!(repairs(&running)?, 3);

    // All is as before.
    let capture = world.capture()?;
    let tried =
        Dweller::start(&world, &world.workload, Some(&cgroup), CLIENT, &["--attempt", &echo])?;
    tried.goes_on(&echo, LIMIT)?;
    inside.goes_on(&forbidden.to_string(), LIMIT)?;
    assert_eq!(opened(&capture, world::HTTPBIN), []);
    assert_eq!(opened(&capture, forbidden.ip()), []);
    Ok(())
}

/// Without its pins, enforcement would end with the daemon.
#[test]
fn t15_pins_that_were_removed_are_back_within_five_seconds() -> Result<()> {
    if !kernel_tests() {
        return Ok(());
    }
    let world = World::new()?;
    let forbidden = SocketAddr::new(world::CNN, 80);
    let (cgroup, inside, mut running) = covered(&world, &["--attempt", &forbidden.to_string()])?;
    let links = pins(&running, "links")?;
    let maps = pins(&running, "maps")?;
    let count = || -> Result<[usize; 2]> {
        let count = |dir: &PathBuf| Ok::<_, anyhow::Error>(fs::read_dir(dir)?.count());
        Ok([count(&links)?, count(&maps)?])
    };
    let before = count()?;
    fs::remove_file(link(&running, "egress", &cgroup)?)?;
    fs::remove_file(maps.join("SOCKETS"))?;
    let words =
        ["hook egress of cgroup", "map SOCKETS was unpinned, and not by interceptor; it is back"];
    until_said(&mut running, &words)?;
    assert_eq!(count()?, before);
    assert_eq!(repairs(&running)?, 2);

    // All of them, directories and all.
    unseen(&running, || {
        [&links, &maps].into_iter().try_for_each(|dir| Ok(fs::remove_dir_all(dir)?))
    })?;
    until_said(&mut running, &["hook connect6 of cgroup", "map NAMESPACES was unpinned"])?;
    assert_eq!(count()?, before);
    let capture = world.capture()?;
    running.kill()?;
    inside.goes_on(&forbidden.to_string(), LIMIT)?;
    assert_eq!(capture.packets_to(forbidden.ip()), 0, "what was put back outlives the daemon");
    Ok(())
}

/// A service that is stopped and started again has another cgroup of the same name.
#[test]
fn t15_a_cgroup_that_is_made_anew_is_covered_again() -> Result<()> {
    if !kernel_tests() {
        return Ok(());
    }
    let world = World::new()?;
    let parent = Cgroup::create("slice")?;
    let forbidden = SocketAddr::new(world::CNN, 80);
    let cgroup = parent.child("app")?;
    let path = cgroup.path().to_owned();
    let what = ["--attempt", &forbidden.to_string()];
    let inside = Dweller::start(&world, &world.workload, Some(&cgroup), CLIENT, &what)?;
    let product = Interceptor::new(&world, &binary(), &["--outbound", "registry-only"]);
    let mut running = product.cover(&path)?;
    drop((inside, cgroup));
    until_said(&mut running, &["hook connect4 of cgroup", "is gone with its cgroup"])?;

    let cgroup = parent.child("app")?;
    until_said(
        &mut running,
        &["hook connect6 of cgroup", "was lost: the cgroup was removed and made anew"],
    )?;
    let capture = world.capture()?;
    let inside = Dweller::start(&world, &world.workload, Some(&cgroup), CLIENT, &what)?;
    inside.goes_on(&forbidden.to_string(), LIMIT)?;
    assert_eq!(capture.packets_to(forbidden.ip()), 0);
    Ok(())
}
