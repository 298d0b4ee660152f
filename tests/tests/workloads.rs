//! Who is covered and who isn't: two workloads at once, programs outside, existing cgroups, and
//! a command that tries to get out of its cover.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result};
use interceptor_tests::cgroup::Cgroup;
use interceptor_tests::product::{Interceptor, binary};
use interceptor_tests::snapshot::cgroup2_mount;
use interceptor_tests::world::{self, World, kernel_tests};

const CURL: [&str; 3] = ["curl", "-sSI", "https://www.google.com"];
const REGISTRY_ONLY: [&str; 2] = ["--outbound", "registry-only"];

#[test]
fn two_workloads_have_their_own_policies_at_the_same_time() -> Result<()> {
    if !kernel_tests() {
        return Ok(());
    }
    let world = World::new()?;
    let script =
        "for i in 1 2 3 4 5; do curl -s -o /dev/null https://www.google.com; echo $?; done";
    let strict = Interceptor::new(&world, &binary(), &REGISTRY_ONLY);
    let open = Interceptor::new(&world, &binary(), &["--outbound", "allow-any"]);
    let commands = [&strict, &open].map(|product| product.run_command(&["sh", "-c", script]));
    let finished = world.outputs(commands.into(), Duration::from_secs(60))?;
    assert_eq!(finished[0].stdout, "35\n".repeat(5), "{}", finished[0].stderr);
    assert_eq!(finished[1].stdout, "0\n".repeat(5), "{}", finished[1].stderr);
    assert!(strict.lines().iter().all(|line| line.contains(" BlackHoleCluster ")));
    assert!(open.lines().iter().all(|line| line.contains(" PassthroughCluster ")));
    assert_eq!((strict.lines().len(), open.lines().len()), (5, 5));
    Ok(())
}

#[test]
fn two_worlds_with_the_same_addresses_do_not_mix() -> Result<()> {
    if !kernel_tests() {
        return Ok(());
    }
    let (one, other) = (World::new()?, World::new()?);
    let entry = one.entry("www.google.com", 443, "TLS", "  resolution: DNS\n")?;
    let listed = Interceptor::new(&one, &binary(), &["--outbound", "registry-only", "-f", &entry]);
    let unlisted = Interceptor::new(&other, &binary(), &REGISTRY_ONLY);
    let (listed, unlisted) = (listed.start()?, unlisted.start()?);
    for _ in 0..3 {
        assert_eq!(listed.exec(&CURL, 1)?.finished.code, 0);
        assert_eq!(unlisted.exec(&CURL, 1)?.finished.code, 35);
    }
    assert_eq!((one.seen().len(), other.seen().len()), (3, 0));
    Ok(())
}

#[test]
fn programs_outside_are_untouched() -> Result<()> {
    if !kernel_tests() {
        return Ok(());
    }
    let world = World::new()?;
    let running = Interceptor::new(&world, &binary(), &REGISTRY_ONLY).start()?;
    let outside = world.curl(&CURL[1..])?;
    assert_eq!(outside.code, 0, "{}", outside.stderr);
    assert_eq!(running.lines(), Vec::<String>::new());
    Ok(())
}

/// The daemon and the workload below one covered cgroup: the daemon's own connections, made in
/// the same namespace, don't come back to it.
#[test]
fn a_daemon_below_the_covered_cgroup_does_not_catch_itself() -> Result<()> {
    if !kernel_tests() {
        return Ok(());
    }
    let world = World::new()?;
    let cgroup = Cgroup::create("parent")?;
    let entry = world.entry("www.google.com", 443, "TLS", "  resolution: DNS\n")?;
    // Somebody is in the cgroup when it is enrolled, so its network namespace is known.
    let script = format!("{}; echo ready; exec sleep 86400", cgroup.enter());
    let mut resident = world.command("sh");
    let mut resident = world.spawn(resident.args(["-c", &script]))?;
    std::thread::sleep(Duration::from_millis(100));

    let outcome = || -> Result<_> {
        let product = Interceptor::new(&world, &binary(), &[]);
        let log = world.dir().join("parent.log");
        let run = format!(
            "{}; exec {} run --name {} --cgroup {} --outbound registry-only -f {entry} \
             --access-log {}",
            cgroup.enter(),
            binary().display(),
            product.name(),
            cgroup.path().display(),
            log.display()
        );
        let mut daemon = world.command("sh");
        daemon.args(["-c", &run]);
        let running = product.start_as(daemon, "")?;
        running.wait_for_status()?;
        let mut inside = world.command("sh");
        let script = format!("{}; exec {}", cgroup.enter(), CURL.join(" "));
        let listed = world.output(inside.args(["-c", &script]), Duration::from_secs(20))?;
        let mut inside = world.command("sh");
        let script = format!("{}; exec curl -sSI https://edition.cnn.com", cgroup.enter());
        let other = world.output(inside.args(["-c", &script]), Duration::from_secs(20))?;
        running.stop()?;
        Ok((listed, other, fs::read_to_string(&log)?))
    };
    let outcome = outcome();
    world::stop(&mut resident)?;
    let (listed, other, log) = outcome?;
    assert_eq!(listed.code, 0, "{}", listed.stderr);
    assert_eq!(other.code, 35, "{}", other.stderr);
    assert_eq!(log.lines().count(), 2, "one line each, none for the daemon itself:\n{log}");
    Ok(())
}

/// The ways out that a command has without privileges, and as root without its network
/// capabilities: leave the cgroup, take the pins away, mount anew, send raw packets.
#[test]
fn a_command_cannot_leave_its_cover() -> Result<()> {
    if !kernel_tests() {
        return Ok(());
    }
    let world = World::new()?;
    let capture = world.capture()?;
    let root = cgroup2_mount().context("no cgroup v2 mount")?;
    let product = Interceptor::new(&world, &binary(), &REGISTRY_ONLY);
    let new = root.join(format!("ix-{}-escape", std::process::id()));
    // Only the pins of this very run, lest a failing test hurts another.
    let pins = format!("find /sys/fs/bpf -path '*{}*'", product.name());
    for escape in [
        format!("echo $$ > {}/cgroup.procs", root.display()),
        format!("mkdir {0} && echo $$ > {0}/cgroup.procs", new.display()),
        format!("n=$({pins} | wc -l); {pins} -delete; [ $({pins} | wc -l) -lt $n ]"),
        "mount -o remount,rw /sys/fs/bpf".to_owned(),
        format!("mount -o remount,rw {}", root.display()),
        "ip link set veth0 down".to_owned(),
    ] {
        let script = format!("({escape}) 2>/dev/null && echo escaped; {}", CURL.join(" "));
        let outcome = product.run(&["sh", "-c", &script])?;
        let _ = fs::remove_dir(&new);
        assert!(!outcome.finished.stdout.contains("escaped"), "{escape}");
        assert_eq!(outcome.finished.code, 35, "{escape}: {}", outcome.finished.stderr);
    }
    assert_eq!(capture.packets_to(world::GOOGLE), 0);
    Ok(())
}
