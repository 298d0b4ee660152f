//! How long the layer lasts: beyond the daemon, and from one to the next.

use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use interceptor_tests::pod::{Behind, Pod};
use interceptor_tests::product::{Running, binary};
use interceptor_tests::world::{self, World};

use super::{CLIENT, FORBIDDEN, RESOLVER, escape, product};

/// R6: the layer stands while the daemon is dead, and the next start adopts it.
#[test]
fn the_layer_outlives_the_daemon() -> Result<()> {
    let Some(world) = World::testable()? else { return Ok(()) };
    let pod = Pod::new(&world, Behind::Node)?;
    let arguments = escape("packet").join(" ");
    let script = format!(
        "echo ready; while true; do {CLIENT} {arguments} >/dev/null; echo tried; sleep 0.1; done"
    );
    let first = product(&world, &pod, &[])?;
    let run = first.run_command(&["sh", "-c", &script]);
    let mut running = first.start_as(run, "tried")?;
    let links = |running: &Running<'_>| -> Result<Vec<String>> {
        let status = running.status()?;
        let all = status["attachments"].as_array().context("attachments")?.clone();
        let at = |one: &serde_json::Value| one["target"] == "interface pod0";
        Ok(all.iter().filter(|one| at(one)).map(|one| one["hook"].to_string()).collect())
    };
    assert_eq!(links(&running)?, ["\"interface_in\"", "\"interface_out\""]);
    let capture = world.capture()?;
    let before = running.stdout()?.lines().count();
    running.kill()?;
    let deadline = Instant::now() + Duration::from_secs(10);
    while running.stdout()?.lines().count() < before + 3 {
        assert!(Instant::now() < deadline, "the command does not try any more");
        thread::sleep(Duration::from_millis(20));
    }
    assert_eq!(capture.packets_to(FORBIDDEN), 0, "the daemon is dead, the layer is not");
    let detached = running.detach()?;
    assert_eq!(detached.code, 0, "{}", detached.stderr);
    Ok(())
}

/// The links on the pod's interface, and the program on each, by the kernel's numbers.
fn links_of(programs: &[u64]) -> Result<Vec<(u64, u64)>> {
    let listed = Command::new("bpftool").args(["-j", "link", "show"]).output()?;
    let listed: serde_json::Value = serde_json::from_slice(&listed.stdout)?;
    let number = |link: &serde_json::Value, key: &str| link[key].as_u64().unwrap_or(0);
    let all = listed.as_array().context("links")?.iter();
    let all = all.map(|link| (number(link, "id"), number(link, "prog_id")));
    Ok(all.filter(|(_, program)| programs.contains(program)).collect())
}

/// T-60: the next start puts its programs into the links that are there; there is no moment without.
#[test]
fn t60_the_next_start_adopts_the_links() -> Result<()> {
    let Some(world) = World::testable()? else { return Ok(()) };
    let pod = Pod::new(&world, Behind::Node)?;
    let programs = |status: &serde_json::Value| -> Vec<u64> {
        let all = status["attachments"].as_array().cloned().unwrap_or_default();
        let mine = all.iter().filter(|one| one["target"] == "interface pod0");
        mine.filter_map(|one| one["program_id"].as_u64()).collect()
    };
    let mut first = product(&world, &pod, &[])?.start()?;
    let before = programs(&first.status()?);
    let old = links_of(&before)?;
    assert_eq!(old.len(), 2, "{before:?}");
    first.kill()?;
    assert_eq!(links_of(&before)?, old, "they outlive the daemon");

    let mut again = world.command(binary());
    again.args(["run", "--name", first.name(), "--netns", pod.namespace.name()]);
    again.args(["--resolver", RESOLVER, "--", "sleep", "86400"]);
    let mut second = world.spawn(&mut again)?;
    let deadline = Instant::now() + Duration::from_secs(15);
    let after = loop {
        if let Ok(status) = first.status() {
            break programs(&status);
        }
        assert!(Instant::now() < deadline, "the second one does not answer");
        thread::sleep(Duration::from_millis(50));
    };
    let new = links_of(&after)?;
    let ids = |links: &[(u64, u64)]| links.iter().map(|(id, _)| *id).collect::<Vec<_>>();
    assert_eq!(ids(&new), ids(&old), "the same links");
    assert!(before.iter().all(|program| !after.contains(program)), "{before:?} {after:?}");
    world::stop(&mut second)?;
    assert_eq!(links_of(&after)?, []);
    Ok(())
}
