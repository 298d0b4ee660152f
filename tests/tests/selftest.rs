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

fn is_borrowed(id: &str) -> bool {
    id.starts_with("lent-") || id.starts_with("own-")
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
    // Sockets that others made and handed in: no hook of theirs can say no, and the interface drops
    // what they send without a word.
    let told: Vec<_> = of("hung").into_iter().filter(|(_, id, ..)| !is_borrowed(id)).collect();
    assert!(told.is_empty(), "{told:#?}");
    assert!(of("failed").is_empty(), "{:#?}", of("failed"));
    assert!(of("broken").is_empty(), "{:#?}", of("broken"));
    assert!(of("leaked").is_empty(), "{:#?}", of("leaked"));
    assert_eq!(status, i32::from(!of("hung").is_empty()), "the exit status says it");

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
