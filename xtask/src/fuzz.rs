//! `cargo xtask fuzz`: what others wrote, made up by a fuzzer that is led by coverage.
//!
//! The coverage is a pass of LLVM that every rustc has, so the user's own compiler does, stable or not,
//! and nothing is installed. (A sanitizer of memory would need a nightly, and finds little in code
//! without `unsafe`; `tests/fuzz` has cargo-fuzz's layout for those who want one.) What a target checks
//! stands in interceptor/src/fuzzing, and `cargo xtask test` plays the kept inputs again.

mod corpus;

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::{env, fmt, thread};

use anyhow::{Context, Result, bail};

use crate::shell::{Shown, cargo, check, command, find, root, say};

/// How the targets and all that they stand on are compiled: what libFuzzer counts and compares by
/// (those of cargo-fuzz), `cfg(fuzzing)`, and the checks of a debug build.
const FLAGS: [&str; 11] = [
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=4",
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
    "-Cllvm-args=-sanitizer-coverage-pc-table",
    "-Cllvm-args=-sanitizer-coverage-trace-compares",
    "--cfg",
    "fuzzing",
    "-Cllvm-args=-simplifycfg-branch-fold-threshold=0",
    "-Cllvm-args=-sanitizer-coverage-stack-depth",
    "-Cdebug-assertions",
    "-Ccodegen-units=16",
];

/// Longest input, in bytes: what is kept lies in the repository.
const LONGEST: usize = 4096;

/// Fuzz the readers of hostile bytes, each for a while; what breaks one is kept and played by `test`
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Which (a wrong name lists them); all when none is named
    targets: Vec<String>,
    /// How long each target runs
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    minutes: u32,
    /// How many run at the same time
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    jobs: u32,
    /// Afterwards choose anew what lies in tests/fuzz/corpus, from there and from what was found
    #[arg(long)]
    keep: bool,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let targets = chosen(&args.targets)?;
    build(&targets)?;
    say(format_args!(
        "{} targets, {} min each, {} at a time; output in target/fuzz/NAME.log",
        targets.len(),
        args.minutes,
        args.jobs
    ));
    let (next, broken) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    thread::scope(|scope| {
        for _ in 0..args.jobs {
            scope.spawn(|| {
                while let Some(target) = targets.get(next.fetch_add(1, Ordering::Relaxed)) {
                    match target.fuzz(args.minutes) {
                        Ok(progress) => println!("{:<18} {progress}", target.0),
                        Err(error) => {
                            println!("{:<18} {error:#}", target.0);
                            broken.lock().expect("no panic in here").push(target.0.as_str());
                        }
                    }
                }
            });
        }
    });
    if args.keep {
        for target in &targets {
            corpus::keep(target)?;
        }
    }
    let broken = broken.into_inner().expect("no panic in there");
    if !broken.is_empty() {
        bail!("broken: {}", broken.join(", "));
    }
    Ok(())
}

/// A target by its name.
struct Target(String);

impl Target {
    /// What [`build`] left.
    fn program(&self) -> PathBuf {
        root().join("target/fuzz").join(triple()).join("release").join(&self.0)
    }

    /// Inputs in the repository.
    fn kept(&self) -> PathBuf {
        root().join("tests/fuzz/corpus").join(&self.0)
    }

    /// Inputs that this machine has found.
    fn found(&self) -> PathBuf {
        root().join("target/fuzz/corpus").join(&self.0)
    }

    /// The program, with what holds for every run.
    fn libfuzzer(&self) -> Command {
        let mut program = command(self.program());
        program.args([
            &format!("-max_len={LONGEST}"),
            "-timeout=10",
            "-rss_limit_mb=2048",
            "-print_final_stats=1",
        ]);
        program
    }

    /// Runs it.
    ///
    /// # Errors
    /// An input broke it: where that is kept.
    fn fuzz(&self, minutes: u32) -> Result<Progress> {
        let broken = root().join("target/fuzz/broken").join(&self.0);
        for directory in [&self.kept(), &self.found(), &broken] {
            fs::create_dir_all(directory).with_context(|| directory.display().to_string())?;
        }
        let log = root().join("target/fuzz").join(format!("{}.log", self.0));
        let output = File::create(&log).with_context(|| log.display().to_string())?;
        let mut fuzzer = self.libfuzzer();
        fuzzer.arg(format!("-max_total_time={}", minutes * 60));
        fuzzer.arg(format!("-artifact_prefix={}/", broken.display()));
        fuzzer.args([self.found(), self.kept()]);
        fuzzer.stdin(Stdio::null()).stdout(Stdio::null()).stderr(output);
        let status = fuzzer.status().with_context(|| Shown(&fuzzer).to_string())?;
        let said = String::from_utf8_lossy(&fs::read(&log)?).into_owned();
        if status.success() {
            return Progress::of(&said).with_context(|| format!("no figures in {}", log.display()));
        }
        let inputs = self.remember(&broken)?;
        bail!("BROKEN, as {} says; kept: {}", log.display(), inputs.join(" "))
    }

    /// Moves what broke it to where `cargo xtask test` plays it again.
    fn remember(&self, broken: &Path) -> Result<Vec<String>> {
        let kept = Path::new("tests/fuzz/regressions").join(&self.0);
        fs::create_dir_all(root().join(&kept))?;
        let mut inputs = Vec::new();
        for entry in fs::read_dir(broken)? {
            let entry = entry?;
            let to = kept.join(entry.file_name());
            fs::copy(entry.path(), root().join(&to))?;
            fs::remove_file(entry.path())?;
            inputs.push(to.display().to_string());
        }
        Ok(inputs)
    }
}

/// How far coverage came: edges, and features (edges by how often).
#[derive(Debug, PartialEq)]
struct Progress {
    runs: u64,
    edges: [u64; 2],
    features: [u64; 2],
}

impl Progress {
    /// From what libFuzzer says: `#12 INITED cov: 5 ft: 9 …` and `#34 DONE cov: 6 ft: 11 …`.
    fn of(said: &str) -> Option<Self> {
        let line = |word: &str| said.lines().find(|line| line.contains(word));
        let number = |line: &str, name: &str| {
            let words: Vec<_> = line.split_whitespace().collect();
            let at = words.iter().position(|word| *word == name)?;
            words.get(at + 1)?.parse().ok()
        };
        let (first, last) = (line("\tINITED ")?, line("\tDONE ")?);
        let both = |name| Some([number(first, name)?, number(last, name)?]);
        let runs = last.trim_start_matches('#').split_whitespace().next()?.parse().ok()?;
        Some(Self { runs, edges: both("cov:")?, features: both("ft:")? })
    }
}

impl fmt::Display for Progress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { runs, edges: [edges, to], features: [features, many] } = self;
        write!(f, "{runs:>9} runs, cov {edges} to {to}, ft {features} to {many}")
    }
}

/// The targets that are meant.
fn chosen(names: &[String]) -> Result<Vec<Target>> {
    let mut all = Vec::new();
    for entry in fs::read_dir(root().join("tests/fuzz/fuzz_targets"))? {
        all.extend(entry?.path().file_stem().map(|name| name.to_string_lossy().into_owned()));
    }
    all.sort();
    if let Some(unknown) = names.iter().find(|name| !all.contains(name)) {
        bail!("no target is named {unknown}; there are: {}", all.join(", "));
    }
    all.retain(|name| names.is_empty() || names.contains(name));
    Ok(all.into_iter().map(Target).collect())
}

/// The target of the compiler: named, since flags would be for build scripts too otherwise.
fn triple() -> String {
    let libc = if cfg!(target_env = "musl") { "musl" } else { "gnu" };
    format!("{}-unknown-linux-{libc}", env::consts::ARCH)
}

fn build(targets: &[Target]) -> Result<()> {
    if find("c++").is_none() {
        bail!("libFuzzer is C++, and there is no c++ here: install a compiler (Debian: g++)");
    }
    let mut build = cargo("build");
    build.args(["--release", "--locked", "--manifest-path", "tests/fuzz/Cargo.toml"]);
    build.args(["--target", &triple()]);
    build.args(targets.iter().flat_map(|target| ["--bin", &target.0]));
    build.env("CARGO_TARGET_DIR", root().join("target/fuzz"));
    build.env_remove("RUSTFLAGS").env("CARGO_ENCODED_RUSTFLAGS", FLAGS.join("\x1f"));
    // No kernel side is needed.
    build.env("INTERCEPTOR_BPF_OBJECT", "/dev/null");
    check(&mut build).context("the fuzz targets do not compile")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_is_read_from_what_the_fuzzer_says() {
        let said = "INFO: seed corpus: files: 2\n#3\tINITED cov: 120 ft: 130 corp: 2/9b exec/s: 0\n\
                    #9\tNEW    cov: 125 ft: 140 corp: 3/12b lim: 4\n\
                    #4096\tDONE   cov: 125 ft: 141 corp: 3/12b lim: 40 exec/s: 80 rss: 40Mb\n";
        let expected = Progress { runs: 4096, edges: [120, 125], features: [130, 141] };
        assert_eq!(Progress::of(said), Some(expected));
        assert_eq!(Progress::of("#3\tINITED cov: 1 ft: 1\n"), None, "it did not end");
    }

    #[test]
    fn a_wrong_name_lists_the_targets() {
        let error = chosen(&["tls".to_owned()]).err().expect("no such target").to_string();
        assert!(error.contains("no target is named tls") && error.contains("tls_client_hello"));
        assert_eq!(chosen(&["dns".to_owned()]).expect("a target").len(), 1);
    }
}
