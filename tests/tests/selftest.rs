//! `interceptor selftest`: what it finds, that it sees a leak when there is one, and that it leaves
//! nothing behind.

use std::fs;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use interceptor_tests::product::binary;
use interceptor_tests::snapshot::{BPFFS, Snapshot};
use interceptor_tests::world::{exit_code, kernel_tests, wait};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

/// How long a whole run may take before the test gives up; it is about 60 seconds on two cores.
const LIMIT: Duration = Duration::from_secs(240);

fn selftest(arguments: &[&str]) -> Command {
    let mut command = Command::new(binary());
    command.arg("selftest").args(arguments).stdin(Stdio::null());
    command
}

/// What a run left behind.
fn remains(pid: u32) -> Vec<String> {
    let (everything, own) = (Snapshot::take(), pid.to_string());
    everything
        .with("selftest")
        .into_iter()
        .filter(|t| t.contains(&own))
        .map(str::to_owned)
        .collect()
}

/// Runs it to its end: exit status, and the report. It must leave nothing behind.
fn report(arguments: &[&str]) -> Result<(i32, Value)> {
    let (stdout, stderr) = (tempfile::NamedTempFile::new()?, tempfile::NamedTempFile::new()?);
    let mut command = selftest(arguments);
    command.arg("--json").stdout(stdout.reopen()?).stderr(stderr.reopen()?);
    let mut child = command.spawn()?;
    let status = ended(&mut child)?;
    assert_eq!(remains(child.id()), Vec::<String>::new(), "left behind");
    let said = fs::read_to_string(stderr.path())?;
    let text = fs::read_to_string(stdout.path())?;
    let report = serde_json::from_str(&text).with_context(|| format!("{text}\n{said}"))?;
    Ok((status, report))
}

fn ended(child: &mut Child) -> Result<i32> {
    match wait(child, LIMIT)? {
        Some(status) => Ok(exit_code(status)),
        None => {
            kill(Pid::from_raw(i32::try_from(child.id())?), Signal::SIGTERM)?;
            child.wait()?;
            anyhow::bail!("not done after {LIMIT:?}")
        }
    }
}

/// Every finding: mode, id, mark, and how.
fn findings(report: &Value) -> Vec<(String, String, String, String)> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let rows = report["rows"].as_array().into_iter().flatten();
    let of_row = |row: &Value| {
        let id = text(&row["id"]);
        let modes = row["modes"].as_array().cloned().unwrap_or_default();
        modes
            .into_iter()
            .map(move |one| (text(&one["mode"]), id.clone(), text(&one["mark"]), text(&one["how"])))
    };
    rows.flat_map(of_row).collect()
}

/// The acceptance of the escape suite.
#[test]
fn what_is_claimed_to_hold_holds() -> Result<()> {
    if !kernel_tests() {
        return Ok(());
    }
    let (status, report) = report(&[])?;
    let findings = findings(&report);
    let of = |wanted: &str| -> Vec<_> {
        findings.iter().filter(|(_, _, mark, _)| mark == wanted).collect()
    };
    assert!(of("hung").is_empty(), "{:#?}", of("hung"));
    assert!(of("failed").is_empty(), "{:#?}", of("failed"));
    assert!(of("broken").is_empty(), "{:#?}", of("broken"));
    assert!(of("leaked").is_empty(), "{:#?}", of("leaked"));
    assert_eq!(status, 0, "the exit status says it");

    // A way that gets out of no room shows nothing; enough of them must show something.
    let shown = |mode: &str| {
        let applies = |(of, _, mark, _): &&(String, String, String, String)| {
            of == mode && mark != "not-applicable"
        };
        findings.iter().filter(applies).count()
    };
    for (mode, at_least) in [("container", 240), ("command", 210), ("user", 200)] {
        assert!(shown(mode) >= at_least, "{mode}: {}", shown(mode));
    }
    Ok(())
}

/// With what holds a way taken off, it gets out, and the run says so; one layer that is left holds it.
#[test]
fn a_missing_layer_shows_as_a_leak() -> Result<()> {
    if !kernel_tests() {
        return Ok(());
    }
    let sockets = ["connect4", "egress"];
    let both = ["connect4", "egress", "interface_out"];
    for (way, hooks, mark) in [
        ("tcp-low-port", &sockets[..], "held"),
        ("tcp-low-port", &both[..], "leaked"),
        ("packet4", &both[2..], "leaked"),
    ] {
        let (status, report) = report_without(way, hooks)?;
        let all = findings(&report);
        let seen = all.iter().any(|(_, _, found, _)| found == mark);
        let leaked = all.iter().any(|(_, _, found, _)| found == "leaked");
        assert!(seen && leaked == (mark == "leaked"), "{way} without {hooks:?}: {report:#}");
        assert_eq!(status, i32::from(leaked), "{way} without {hooks:?}: the exit status says it");
    }
    Ok(())
}

/// Runs one way to its end while somebody takes these hooks off, again and again: the watchdog puts them
/// back.
fn report_without(way: &str, hooks: &[&str]) -> Result<(i32, Value)> {
    let stdout = tempfile::NamedTempFile::new()?;
    let mut command = selftest(&["--only", way, "--json"]);
    let mut child = command.stdout(stdout.reopen()?).stderr(Stdio::null()).spawn()?;
    let links = format!("{BPFFS}/interceptor/selftest-{}/links", child.id());
    let until = Instant::now() + LIMIT;
    let mut detached = 0;
    while Instant::now() < until && child.try_wait()?.is_none() {
        detached += detach(&links, hooks)?;
        thread::sleep(Duration::from_millis(20));
    }
    let status = ended(&mut child)?;
    ensure!(detached >= hooks.len(), "{detached} links were found in {links}");
    Ok((status, serde_json::from_str(&fs::read_to_string(stdout.path())?)?))
}

/// Detaches what is pinned of these hooks. Gives of how many.
fn detach(links: &str, hooks: &[&str]) -> Result<usize> {
    let mut detached = 0;
    for link in fs::read_dir(links).into_iter().flatten().flatten() {
        let name = link.file_name().to_string_lossy().into_owned();
        if hooks.iter().any(|hook| name.starts_with(&format!("{hook}-"))) {
            let arguments = ["link", "detach", "pinned"];
            let done = Command::new("bpftool").args(arguments).arg(link.path()).output()?;
            detached += usize::from(done.status.success());
        }
    }
    Ok(detached)
}

/// Stopped in the middle, by whom it is started in a terminal or otherwise, it takes everything away.
#[test]
fn stopped_early_it_leaves_nothing() -> Result<()> {
    if !kernel_tests() {
        return Ok(());
    }
    for (signal, expected) in [(Signal::SIGINT, 130), (Signal::SIGTERM, 143)] {
        let mut command = selftest(&["--only", "late"]);
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
        let pins = format!("{BPFFS}/interceptor/selftest-{}/links", child.id());
        let until = Instant::now() + Duration::from_secs(30);
        while fs::read_dir(&pins).is_err() && Instant::now() < until {
            thread::sleep(Duration::from_millis(5));
        }
        ensure!(fs::read_dir(&pins).is_ok(), "it did not start");
        kill(Pid::from_raw(i32::try_from(child.id())?), signal)?;
        assert_eq!(ended(&mut child)?, expected);
        assert_eq!(remains(child.id()), Vec::<String>::new(), "{signal}");
    }
    Ok(())
}

#[test]
fn the_list_needs_no_privilege() -> Result<()> {
    let listed = selftest(&["--list", "--only", "T-6"]).output()?;
    assert!(listed.status.success());
    let text = String::from_utf8(listed.stdout)?;
    assert!(text.lines().count() >= 10 && text.lines().all(|line| line.contains("T-6")), "{text}");
    let wrong = selftest(&["--only", "no-such-way"]).output()?;
    assert_eq!(wrong.status.code(), Some(if nix::unistd::geteuid().is_root() { 64 } else { 77 }));
    Ok(())
}
