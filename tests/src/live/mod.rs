//! Scenario files, live: every flow case with the real product, real sockets and a kernel, and
//! what client, upstream, packets and access log show against what the case expects. Where that and
//! the product's own answer by its rules alone (`interceptor test`) disagree, the case fails.
//!
//! The product is a black box here too: what is known of the format is what its README says.

pub mod behaviour;
pub mod case;
pub mod client;
pub mod compare;
mod files;
mod gateway;
pub mod log;
mod pod;
mod pure;
pub mod stage;
pub mod stub;
pub mod tls;
mod verbatim;
mod verdict;
mod waiting;

use std::io::Write;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use self::case::Case;
pub use self::case::Profile;
pub use self::client::run as call;
use self::stage::Stage;
use self::verdict::{Ending, Played};

/// What to play.
#[derive(Debug)]
pub struct Options {
    /// The product.
    pub binary: PathBuf,
    /// What the product is told to run, followed by `caller TASK RESULT`, which calls [`call`].
    pub caller: PathBuf,
    /// Its profile.
    pub profile: Profile,
    /// Scenario files, or directories of them.
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
    /// Otherwise.
    pub failed: usize,
    /// Cannot hold yet, and are listed as that.
    pub waiting: usize,
}

impl std::fmt::Display for Sum {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} passed, {} failed", self.passed, self.failed)?;
        if self.waiting > 0 {
            write!(f, " ({} wait for what is not there yet)", self.waiting)?;
        }
        Ok(())
    }
}

/// Plays every flow case, one line a case to `out`: `ok`, `wait` or `FAIL`, the name, and what is to
/// be said.
///
/// # Errors
/// When a file is not in the format, or no world can be made.
pub fn play(options: &Options, out: &mut (impl Write + Send)) -> Result<Sum> {
    let files = case::expand(&options.files)?;
    let mut cases = case::read_all(&files)?;
    let wanted = |case: &Case| {
        options.only.is_empty() || options.only.iter().any(|part| case.id.contains(part.as_str()))
    };
    cases.retain(|case| case.kind == case::Kind::Flow && wanted(case));
    let pure = pure::run(&options.binary, options.profile, &files)?;

    let next = AtomicUsize::new(0);
    let told = Mutex::new((out, Sum::default()));
    let jobs = options.jobs.clamp(1, cases.len().max(1));
    let queue = Queue { options, cases: &cases, pure: &pure, next: &next };
    thread::scope(|scope| {
        let workers: Vec<_> = (0..jobs).map(|_| scope.spawn(|| queue.work(&told))).collect();
        for worker in workers {
            worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        }
        anyhow::Ok(())
    })?;
    let (_, sum) = told.into_inner().unwrap_or_else(PoisonError::into_inner);
    Ok(sum)
}

/// What is to be played; each worker takes the next case, in a world of its own.
struct Queue<'a> {
    options: &'a Options,
    cases: &'a [Case],
    pure: &'a pure::Results,
    next: &'a AtomicUsize,
}

impl Queue<'_> {
    fn work<W: Write>(&self, told: &Mutex<(W, Sum)>) -> Result<()> {
        let mut stage = None;
        while let Some(case) = self.cases.get(self.next.fetch_add(1, Ordering::Relaxed)) {
            let begun = Instant::now();
            let played = match case.unplayable() {
                Some(why) => Played::Unplayable(why),
                None => {
                    let ready = match stage.take() {
                        Some(ready) => ready,
                        None => Stage::new(&self.options.binary, &self.options.caller)
                            .context("a world to play in")?,
                    };
                    let played = self.one(&ready, case);
                    stage = Some(ready);
                    played
                }
            };
            let pure = self.pure.get(&case.id).copied();
            let ending = verdict::judge(played, pure, waiting::reason(&case.id));
            tell(told, case, &ending, begun.elapsed())?;
        }
        Ok(())
    }

    fn one(&self, stage: &Stage, case: &Case) -> Played {
        let expected = case.expected(self.options.profile);
        let Some(flow) = &case.flow else { return Played::Failed(vec!["no flow".into()]) };
        match stage.play(case, self.options.profile) {
            Err(error) => Played::Failed(vec![format!("cannot be played: {error:#}")]),
            Ok(seen) => {
                let open = self.options.profile == Profile::Strict && case.is_open();
                let mut differences = compare::compare(&expected, flow, open, &seen);
                if differences.is_empty() {
                    return Played::Passed;
                }
                let said = seen.stderr.trim();
                if !said.is_empty() {
                    differences.push(format!("the product said: {said}"));
                }
                if self.options.verbose {
                    differences.push(format!("{seen:#?}"));
                }
                Played::Failed(differences)
            }
        }
    }
}

/// Counts a case, and says in one line how it ended.
fn tell<W: Write>(
    told: &Mutex<(W, Sum)>,
    case: &Case,
    ending: &Ending,
    took: Duration,
) -> Result<()> {
    let mut told = told.lock().unwrap_or_else(PoisonError::into_inner);
    let (out, sum) = &mut *told;
    let (id, took) = (&case.id, took.as_millis());
    match ending {
        Ending::Passed => {
            sum.passed += 1;
            writeln!(out, "ok    {id} ({took} ms)")?;
        }
        Ending::Waiting(reason) => {
            sum.waiting += 1;
            writeln!(out, "wait  {id} for {reason}")?;
        }
        Ending::Failed(wrong) => {
            sum.failed += 1;
            let title = case.title.as_deref().unwrap_or_default();
            let wrong = wrong.join("; ").replace('\n', " ⏎ ");
            writeln!(out, "FAIL  {id} ({took} ms) {title}: {wrong}")?;
        }
    }
    Ok(())
}
