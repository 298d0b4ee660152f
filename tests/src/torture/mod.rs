//! A long run in which things are done to the product at random while its workload does everything it
//! can: killed, stopped, reloaded, starved, taken apart. A capture at the far side judges what left,
//! the workload itself what came back, and the access log whether everything was told of.
//!
//! The same seed does the same things in the same order; when each falls depends on the machine. The
//! machine's clock is never set, so a step of it is not among the things that are done.
//!
//! `cargo xtask torture` runs it for as long as one likes, `tests/tests/torture.rs` for about a minute.

pub mod actions;
pub mod judge;
pub mod lines;
pub mod load;
mod report;
pub mod stage;

use std::io::Write;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::Result;

pub use report::Report;

use crate::hellos::Random;
use crate::process::Held;
use crate::snapshot::Snapshot;
use actions::{ACTIONS, Action, BREAK_HOOKS};
use judge::{Judge, Seen};
use stage::{Ground, SOON, Stage};

/// After so many actions connections are counted.
const COUNTED_EVERY: usize = 4;
/// What goes wrong so often is known by then.
const ENOUGH: u64 = 20;

/// How to run.
#[derive(Clone, Debug)]
pub struct Options {
    /// The product's binary.
    pub interceptor: PathBuf,
    /// `interceptor-test-client`.
    pub client: PathBuf,
    /// How long actions go on; each is done once, however long that takes.
    pub length: Duration,
    /// Chooses what is done.
    pub seed: u64,
    /// Breaks the product, to see that this is found.
    pub breakage: Option<Breakage>,
}

/// A way of breaking the product.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Breakage {
    /// Two hooks are taken away while the daemon cannot see it
    Hooks,
    /// Policy allows an address that the judge takes for forbidden
    Policy,
}

/// Runs it; lines about each action go to `out` as they come. What does not hold is in the report.
///
/// # Errors
/// When it cannot be run: no privilege, a program that is missing, a namespace that can't be made.
pub fn run(options: &Options, out: &mut dyn Write) -> Result<Report> {
    let mut report = Report::default();
    writeln!(out, "seed {}, {} s", options.seed, options.length.as_secs())?;
    {
        let ground = Ground::new()?;
        let mut stage = Stage::start(&ground, options)?;
        play(&mut stage, options, &mut report, out)?;
        report.note(format!("{} packets looked at", stage.capture.looked_at()));
        report.note(format!("{} lines in the log", stage.lines.total()));
        if let Err(error) = judge::control(stage) {
            report.violated(out, &[format!("{error:#}")])?;
        }
    }
    // Of this process: others may be testing, too.
    let own = format!("ix-{}-", std::process::id());
    let left = Snapshot::take();
    let left: Vec<_> =
        left.with(&own).iter().map(|thing| format!("left behind: {thing}")).collect();
    report.violated(out, &left)?;
    Ok(report)
}

fn play(
    stage: &mut Stage<'_>,
    options: &Options,
    report: &mut Report,
    out: &mut dyn Write,
) -> Result<()> {
    let mut random = Random::new(options.seed);
    let mut judge = Judge::default();
    let mut first: Vec<&Action> = ACTIONS.iter().collect();
    if options.breakage == Some(Breakage::Hooks) {
        first.push(&BREAK_HOOKS);
    }
    // The first crowd shows what the daemon keeps for the next.
    let warm = warm_up(stage)?;
    let seen = judge.after_action(stage, Duration::ZERO)?;
    report.action(out, "start", "everything goes on", &seen)?;
    let before = Held::by(stage.running.pid())?;
    let begun = Instant::now();
    let mut number = 0;
    while !first.is_empty() || begun.elapsed() < options.length {
        // Each once, in some order, and then whatever comes.
        let action = match first.len() {
            0 => random.pick(&ACTIONS),
            left => first.swap_remove(random.below(left)),
        };
        let done = (action.act)(stage, &mut random);
        let (what, failed) = match done {
            Ok(what) => (what, None),
            Err(error) => ("failed".to_owned(), Some(format!("{error:#}"))),
        };
        let mut seen = judge.after_action(stage, action.more).unwrap_or_else(|error| Seen {
            violations: vec![format!("cannot be judged: {error:#}")],
            ..Seen::default()
        });
        seen.violations.splice(0..0, failed);
        number += 1;
        if number % COUNTED_EVERY == 0 {
            seen.violations.extend(judge::count_lines(stage)?);
        }
        report.action(out, action.name, &what, &seen)?;
        if report.violations() > ENOUGH {
            report.violated(out, &["too much does not hold; ended".into()])?;
            break;
        }
    }
    report.violated(out, &judge::count_lines(stage)?)?;
    let again = warm_up(stage)?;
    let (held, problem) = judge::given_back(stage, before)?;
    report.note(format!(
        "at the start {before:?} (in full use {warm:?}), at the end {held:?} (in full use {again:?})"
    ));
    report.violated(out, problem.as_slice())
}

/// Some crowds of a known size, so that memory at the start and at the end is memory after the same;
/// what is held while they are there.
fn warm_up(stage: &Stage<'_>) -> Result<Held> {
    const SIZE: usize = 300;
    let pid = stage.running.pid();
    let mut held = Held::by(pid)?;
    // But for a few of the load itself.
    let wanted = held.descriptors + SIZE as u64 * 9 / 10;
    for manner in ["idle", "hello", "head"].repeat(2) {
        let deadline = Instant::now() + SOON;
        let mut crowd = stage.crowd(manner, SIZE)?;
        crowd.wait_for("connected")?;
        while Held::by(pid)?.descriptors < wanted && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(20));
        }
        held = Held::by(pid)?;
    }
    Ok(held)
}
