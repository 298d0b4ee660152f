//! Around the proxy by address: direct, live, independent of the daemon, and still accounted.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Result;
use interceptor_tests::log::{Line, expect_lines};
use interceptor_tests::product::{Interceptor, binary};
use interceptor_tests::shapes::passed;
use interceptor_tests::world::{self, World, kernel_tests};
use nix::sys::signal::Signal;

const CLIENT: &str = env!("CARGO_BIN_EXE_interceptor-test-client");
const CURL: [&str; 3] = ["curl", "-sSI", "https://www.google.com"];

#[test]
fn a_bypassed_range_is_direct_with_one_line_a_flow() -> Result<()> {
    if !kernel_tests() {
        return Ok(());
    }
    let world = World::new()?;
    let flags = ["--outbound", "registry-only", "--bypass", "198.51.100.0/24"];
    let outcome = Interceptor::new(&world, &binary(), &flags).run(&CURL)?;
    assert_eq!(outcome.finished.code, 0, "{}", outcome.finished.stderr);
    let shape = passed(SocketAddr::new(world::GOOGLE, 443), "BypassCluster", "…");
    expect_lines(&outcome.log, &[&shape]).unwrap_or_else(|problems| panic!("{problems}"));
    let line = Line::parse(&outcome.log[0]).expect("a line");
    assert_eq!(
        line.field("UPSTREAM_LOCAL_ADDRESS"),
        line.field("DOWNSTREAM_REMOTE_ADDRESS"),
        "the workload's own socket reaches the upstream"
    );
    Ok(())
}

#[test]
fn both_families_can_be_bypassed_at_start() -> Result<()> {
    if !kernel_tests() {
        return Ok(());
    }
    let world = World::new()?;
    let flags = [
        "--outbound",
        "registry-only",
        "--bypass",
        "203.0.113.40/32",
        "--bypass",
        "2001:db8:1::/64",
    ];
    let product = Interceptor::new(&world, &binary(), &flags);
    for (url, code) in [
        ("https://v4.example.com", 0),
        ("https://v6.example.com", 0),
        ("http://v6.example.com", 0),
        ("https://edition.cnn.com", 35),
    ] {
        let outcome = product.run(&["curl", "-sSI", url])?;
        assert_eq!(outcome.finished.code, code, "{url}: {}", outcome.finished.stderr);
    }
    Ok(())
}

#[test]
fn a_change_acts_on_the_next_connect() -> Result<()> {
    if !kernel_tests() {
        return Ok(());
    }
    let world = World::new()?;
    let running = Interceptor::new(&world, &binary(), &["--outbound", "registry-only"]).start()?;
    let expect = |code: i32, when: &str| -> Result<()> {
        let outcome = running.exec(&CURL, 1)?;
        assert_eq!(outcome.finished.code, code, "{when}: {}", outcome.finished.stderr);
        Ok(())
    };
    expect(35, "at first")?;
    for _ in 0..2 {
        assert_eq!(running.verb(&["bypass", "add", "198.51.100.0/24"])?.code, 0);
        let list = running.verb(&["bypass", "list"])?;
        assert!(list.stdout.contains("198.51.100.0/24"), "{list:?}");
        expect(0, "added")?;
        assert_eq!(running.verb(&["bypass", "del", "198.51.100.0/24"])?.code, 0);
        let list = running.verb(&["bypass", "list"])?;
        assert!(!list.stdout.contains("198.51.100.0/24"), "{list:?}");
        expect(35, "removed")?;
    }
    Ok(())
}

#[test]
fn bypassed_flows_need_no_daemon() -> Result<()> {
    if !kernel_tests() {
        return Ok(());
    }
    let world = World::new()?;
    let flags = ["--outbound", "registry-only", "--bypass", "203.0.113.0/24"];
    // The command waits for a word from the test, so that the daemon is stopped before it starts.
    let go = world.dir().join("go");
    let script = format!(
        "echo ready; while ! [ -e {} ]; do sleep 0.05; done; \
         {CLIENT} many 203.0.113.1 --count 1000 --concurrency 20; echo done",
        go.display()
    );
    let product = Interceptor::new(&world, &binary(), &flags);
    let command = product.run_command(&["sh", "-c", &script]);
    let mut running = product.start_as(command, "ready")?;

    running.signal(Signal::SIGSTOP)?;
    std::fs::write(&go, "")?;
    let connections = wait_until("done", || Ok(running.stdout()?.contains("done")));
    let while_stopped = running.lines().len();
    running.signal(Signal::SIGCONT)?;
    connections?;
    assert_eq!(running.wait(Duration::from_secs(20))?, 0, "{}", running.stderr()?);
    assert_eq!(running.stdout()?.lines().nth(1), Some("200=1000"));
    let bypassed = running.lines().iter().filter(|l| l.contains(" BypassCluster ")).count();
    assert_eq!((while_stopped, bypassed), (0, 1000), "recorded once the daemon goes on");
    Ok(())
}

fn wait_until(what: &str, mut holds: impl FnMut() -> Result<bool>) -> Result<()> {
    for _ in 0..600 {
        if holds()? {
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    anyhow::bail!("not within 30 s: {what}")
}
