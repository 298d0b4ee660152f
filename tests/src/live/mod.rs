//! Scenario files, live: every flow case with the real product, real sockets and a kernel, and
//! what client, upstream, packets and access log show against what the case expects.
//!
//! The product is a black box here too: what is known of the format is what its README says.

pub mod behaviour;
pub mod case;
pub mod client;
pub mod compare;
mod files;
pub mod log;
pub mod stage;
pub mod stub;
pub mod tls;
mod verbatim;

use std::io::Write;
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Instant;

use anyhow::{Context, Result};

use self::case::Case;
pub use self::case::Profile;
pub use self::client::run as call;
use self::stage::Stage;

/// What to play.
#[derive(Debug)]
pub struct Options {
    /// The product.
    pub binary: PathBuf,
    /// Its profile.
    pub profile: Profile,
    /// Scenario files.
    pub files: Vec<PathBuf>,
    /// Only cases whose name contains one of these.
    pub only: Vec<String>,
    /// How many worlds at the same time.
    pub jobs: usize,
    /// Show what was seen of failed cases.
    pub verbose: bool,
}

/// How many cases ended how.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sum {
    /// As expected.
    pub passed: usize,
    /// Otherwise, or not playable.
    pub failed: usize,
    /// Not for a machine without Kubernetes and gateways.
    pub not_applicable: usize,
}

impl std::fmt::Display for Sum {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} passed, {} failed", self.passed, self.failed)?;
        if self.not_applicable > 0 {
            write!(f, " ({} not applicable live)", self.not_applicable)?;
        }
        Ok(())
    }
}

/// How one case ended.
enum Ending {
    Passed,
    Failed(Vec<String>),
    NotApplicable(&'static str),
}

/// Plays everything, one line a case to `out`.
///
/// # Errors
/// When a file is not in the format, or no world can be made.
pub fn play(options: &Options, out: &mut (impl Write + Send)) -> Result<Sum> {
    let mut cases = Vec::new();
    for file in &options.files {
        cases.extend(case::read(file)?);
    }
    let wanted = |case: &Case| {
        options.only.is_empty() || options.only.iter().any(|part| case.id.contains(part.as_str()))
    };
    cases.retain(wanted);
    let all = cases.len();
    cases.retain(|case| case.kind == case::Kind::Flow);
    if cases.len() < all {
        writeln!(out, "{} validation cases have no flow to play", all - cases.len())?;
    }

    let next = AtomicUsize::new(0);
    let told = Mutex::new((out, Sum::default()));
    let jobs = options.jobs.clamp(1, cases.len().max(1));
    thread::scope(|scope| {
        let workers: Vec<_> =
            (0..jobs).map(|_| scope.spawn(|| work(options, &cases, &next, &told))).collect();
        for worker in workers {
            worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        }
        anyhow::Ok(())
    })?;
    let (_, sum) = told.into_inner().unwrap_or_else(PoisonError::into_inner);
    Ok(sum)
}

fn work<W: Write>(
    options: &Options,
    cases: &[Case],
    next: &AtomicUsize,
    told: &Mutex<(W, Sum)>,
) -> Result<()> {
    let mut stage = None;
    while let Some(case) = cases.get(next.fetch_add(1, Ordering::Relaxed)) {
        let begun = Instant::now();
        let ending = match case.not_applicable() {
            Some(why) => Ending::NotApplicable(why),
            None => {
                let ready = match stage.take() {
                    Some(ready) => ready,
                    None => Stage::new(&options.binary).context("a world to play in")?,
                };
                let ending = one(&ready, case, options);
                stage = Some(ready);
                ending
            }
        };
        let mut told = told.lock().unwrap_or_else(PoisonError::into_inner);
        let (out, sum) = &mut *told;
        let id = &case.id;
        match ending {
            Ending::Passed => {
                sum.passed += 1;
                writeln!(out, "ok    {id} ({} ms)", begun.elapsed().as_millis())?;
            }
            Ending::NotApplicable(why) => {
                sum.not_applicable += 1;
                writeln!(out, "n/a   {id} not applicable live: {why}")?;
            }
            Ending::Failed(differences) => {
                sum.failed += 1;
                let title = case.title.as_deref().unwrap_or_default();
                writeln!(out, "FAIL  {id} ({} ms) {title}", begun.elapsed().as_millis())?;
                for difference in differences {
                    writeln!(out, "        {}", difference.replace('\n', "\n        "))?;
                }
            }
        }
    }
    Ok(())
}

fn one(stage: &Stage, case: &Case, options: &Options) -> Ending {
    let expected = case.expected(options.profile);
    let Some(flow) = &case.flow else { return Ending::Failed(vec!["no flow".into()]) };
    match stage.play(case, options.profile) {
        Err(error) => Ending::Failed(vec![format!("cannot be played: {error:#}")]),
        Ok(seen) => {
            let mut differences = compare::compare(&expected, flow, &seen);
            if differences.is_empty() {
                return Ending::Passed;
            }
            let said = seen.stderr.trim();
            if !said.is_empty() {
                differences.push(format!("the product said: {said}"));
            }
            if options.verbose {
                differences.push(format!("{seen:#?}"));
            }
            Ending::Failed(differences)
        }
    }
}
