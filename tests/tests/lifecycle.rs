//! From start to end, in order or killed: what is covered, and that nothing stays behind.
//!
//! Each test has the machine for itself ([`World::alone`]), since it compares all of it.

use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, Instant};

use anyhow::Result;
use interceptor_tests::product::{Interceptor, Running, binary};
use interceptor_tests::snapshot::Snapshot;
use interceptor_tests::world::{self, World, kernel_tests};
use nix::sys::signal::Signal;

const CURL: [&str; 3] = ["curl", "-sSI", "https://www.google.com"];
const REGISTRY_ONLY: [&str; 2] = ["--outbound", "registry-only"];

fn start(world: &World) -> Result<Running<'_>> {
    Interceptor::new(world, &binary(), &REGISTRY_ONLY).start()
}

/// The kernel frees links and cgroups a moment after their last user.
fn check_nothing_stayed(before: &Snapshot) {
    let deadline = Instant::now() + Duration::from_secs(2);
    loop {
        let left = before.difference(&Snapshot::take());
        if left.is_empty() {
            return;
        }
        assert!(Instant::now() < deadline, "left behind: {left:#?}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn a_run_that_ends_leaves_nothing_and_gives_the_commands_status() -> Result<()> {
    if !kernel_tests() {
        return Ok(());
    }
    let world = World::alone()?;
    let before = Snapshot::take();
    for (script, code) in [("true", 0), ("exit 42", 42), ("kill -TERM $$", 143)] {
        let product = Interceptor::new(&world, &binary(), &REGISTRY_ONLY);
        let outcome = product.run(&["sh", "-c", script])?;
        assert_eq!(outcome.finished.code, code, "{script}: {}", outcome.finished.stderr);
        check_nothing_stayed(&before);
    }
    Ok(())
}

#[test]
fn what_is_attached_shows_while_it_runs() -> Result<()> {
    if !kernel_tests() {
        return Ok(());
    }
    let world = World::alone()?;
    let before = Snapshot::take();
    let running = start(&world)?;
    let during = before.difference(&Snapshot::take());
    for kind in ["+ bpffs ", "+ cgroup ", "+ control "] {
        assert!(during.iter().any(|thing| thing.starts_with(kind)), "{kind}: {during:#?}");
    }
    let status = running.verb(&["status"])?;
    assert_eq!(status.code, 0, "{}", status.stderr);
    assert!(status.stdout.contains("connect4"), "{}", status.stdout);
    running.stop()?;
    check_nothing_stayed(&before);
    Ok(())
}

#[test]
fn term_and_interrupt_detach_in_order() -> Result<()> {
    if !kernel_tests() {
        return Ok(());
    }
    let world = World::alone()?;
    let before = Snapshot::take();
    for (signal, code) in [(Signal::SIGTERM, 143), (Signal::SIGINT, 130)] {
        let mut running = start(&world)?;
        running.signal(signal)?;
        assert_eq!(running.wait(Duration::from_secs(10))?, code, "{}", running.stderr()?);
        check_nothing_stayed(&before);
    }
    Ok(())
}

#[test]
fn a_killed_daemon_leaves_refusal_until_detach() -> Result<()> {
    if !kernel_tests() {
        return Ok(());
    }
    let world = World::alone()?;
    let before = Snapshot::take();
    let capture = world.capture()?;

    // The command outlives its daemon, and goes on trying to get out.
    let script = format!(
        "echo ready; while true; do {} >/dev/null 2>&1; echo curl $?; sleep 0.2; done",
        CURL.join(" ")
    );
    let product = Interceptor::new(&world, &binary(), &REGISTRY_ONLY);
    let command = product.run_command(&["sh", "-c", &script]);
    let mut running = product.start_as(command, "curl 35")?;
    running.kill()?;
    let so_far = running.stdout()?.lines().count();
    std::thread::sleep(Duration::from_secs(1));
    let said = running.stdout()?;
    let after: Vec<_> = said.lines().skip(so_far + 1).collect();
    assert!(!after.contains(&"curl 0"), "{after:?}");
    assert_eq!(capture.packets_to(world::GOOGLE), 0, "fail closed");

    let detached = running.detach()?;
    assert_eq!(detached.code, 0, "{}", detached.stderr);
    check_nothing_stayed(&before);
    Ok(())
}

#[test]
fn the_next_start_adopts_what_a_killed_one_left() -> Result<()> {
    if !kernel_tests() {
        return Ok(());
    }
    let world = World::alone()?;
    let before = Snapshot::take();
    let product = Interceptor::new(&world, &binary(), &REGISTRY_ONLY);
    let again = product.run_command(&CURL);
    let covered = product.run_command(&["sh", "-c", "echo covered; exec sleep 86400"]);
    let mut running = product.start_as(covered, "covered")?;
    running.kill()?;

    let mut again = again;
    let adopted = world.output(&mut again, Duration::from_secs(30))?;
    assert_eq!(adopted.code, 35, "the same name starts again and refuses: {}", adopted.stderr);
    running.detach()?;
    check_nothing_stayed(&before);
    Ok(())
}

/// The first packet is covered, and the last: what remains is ended before the cover goes.
#[test]
fn nothing_that_the_command_left_running_outlives_its_cover() -> Result<()> {
    if !kernel_tests() {
        return Ok(());
    }
    let world = World::alone()?;
    let before = Snapshot::take();
    let capture = world.capture()?;
    let script = "(setsid sh -c 'trap \"\" TERM; while true; do curl -s https://www.google.com; done' \
                  >/dev/null 2>&1 &) ; exit 7";
    let start = Instant::now();
    let product = Interceptor::new(&world, &binary(), &REGISTRY_ONLY);
    let outcome = product.run(&["sh", "-c", script])?;
    assert_eq!(outcome.finished.code, 7, "{}", outcome.finished.stderr);
    assert!(start.elapsed() < Duration::from_secs(15), "TERM, 5 s, then killed");
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(capture.packets_to(world::GOOGLE), 0);
    check_nothing_stayed(&before);
    Ok(())
}

#[test]
fn wait_lets_what_the_command_left_finish() -> Result<()> {
    if !kernel_tests() {
        return Ok(());
    }
    let world = World::alone()?;
    // Under sudo the command is the invoking user, who needs a place to write to.
    let open = world.dir().join("open");
    std::fs::create_dir(&open)?;
    std::fs::set_permissions(&open, std::fs::Permissions::from_mode(0o1777))?;
    let mark = open.join("mark");
    let flags = [&REGISTRY_ONLY[..], &["--wait"]].concat();
    let product = Interceptor::new(&world, &binary(), &flags);
    let script = format!("(setsid sh -c 'sleep 1; echo late > {}' &) ; exit 0", mark.display());
    let outcome = product.run(&["sh", "-c", &script])?;
    assert_eq!(outcome.finished.code, 0, "{}", outcome.finished.stderr);
    assert_eq!(std::fs::read_to_string(&mark)?, "late\n");
    Ok(())
}
