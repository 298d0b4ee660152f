//! `cargo xtask scenarios`: scenario files through the rules, and with `--live` through the real
//! product too. Where the two disagree, the case fails.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::{env, fs};

use anyhow::{Context, Result, bail};

use crate::build::{self, Package, Profile};
use crate::install::Install;
use crate::shell::{as_root, command, root};
use crate::toolchain;

/// Run scenario files: pure, and with --live against the real product (as root)
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Play every flow case live too: real kernel, real sockets, stub servers
    #[arg(long)]
    live: bool,
    /// The profile to run in
    #[arg(long, value_parser = ["istio", "strict"], default_value = "istio")]
    enforcement: String,
    /// How many worlds to play in at the same time
    #[arg(long, default_value_t = 2, requires = "live")]
    jobs: usize,
    #[command(flatten)]
    install: Install,
    /// Scenario files, or directories of them (not searched deeper)
    #[arg(required = true)]
    files: Vec<PathBuf>,
}

/// How a case ended: by its name, whether it passed. What has no entry was not run.
type Results = BTreeMap<String, bool>;

pub(crate) fn run(args: &Args) -> Result<()> {
    let profile = Profile::new(false);
    let files = expand(&args.files)?;
    build::kernel_side(&toolchain::set_up(&args.install)?)?;
    build::user_space(profile, &[Package::Interceptor, Package::Walkthrough])?;

    let pure = pure(profile, &args.enforcement, &files)?;
    let live = if args.live { live(profile, args, &files)? } else { Results::new() };
    let mut failed = 0;
    for (id, passed) in &pure {
        match live.get(id) {
            Some(played) if played != passed => {
                let word = |passed: bool| if passed { "passed" } else { "failed" };
                println!("FAIL  {id}: pure {}, live {}", word(*passed), word(*played));
                failed += 1;
            }
            _ => failed += usize::from(!passed),
        }
    }
    // A case that only the live run knows would be a case that was not tested.
    let unknown: Vec<_> = live.keys().filter(|id| !pure.contains_key(*id)).collect();
    failed += unknown.len();
    for id in &unknown {
        println!("FAIL  {id}: no result of the pure run");
    }
    let all = pure.len() + unknown.len();
    println!("{} passed, {failed} failed", all - failed);
    if failed > 0 {
        bail!("scenarios failed");
    }
    Ok(())
}

/// Runs `interceptor test`, its output passing through.
fn pure(profile: Profile, enforcement: &str, files: &[PathBuf]) -> Result<Results> {
    println!("── pure, {enforcement}");
    let junit = root().join("target/scenarios.xml");
    // Of an earlier run: what is read must be of this one.
    let _ = fs::remove_file(&junit);
    let mut test = command(profile.binary("interceptor"));
    test.args(["test", "--enforcement", enforcement, "--junit"]).arg(&junit).args(files);
    let status = test.status().context("running `interceptor test`")?;
    if !matches!(status.code(), Some(0 | 1)) {
        bail!("`interceptor test` ended with {status}");
    }
    let report = fs::read_to_string(&junit).with_context(|| junit.display().to_string())?;
    Ok(of_report(&report))
}

/// The cases of a JUnit report as `interceptor test` writes it: a `testcase` a line, closed at once
/// where it passed.
fn of_report(report: &str) -> Results {
    let mut results = Results::new();
    for line in report.lines() {
        let Some(rest) = line.trim_start().strip_prefix("<testcase ") else { continue };
        let Some((_, rest)) = rest.split_once(" name=\"") else { continue };
        let Some((id, rest)) = rest.split_once('"') else { continue };
        let passed = rest.trim_end().ends_with("/>");
        *results.entry(id.to_owned()).or_insert(true) &= passed;
    }
    results
}

/// Plays the cases live, as root, its output passing through.
fn live(profile: Profile, args: &Args, files: &[PathBuf]) -> Result<Results> {
    println!("── live, {}", args.enforcement);
    let program = profile.binary("interceptor-live-scenarios");
    let mut play = as_root(program, "make network namespaces and attach BPF programs")?;
    play.arg("play").arg("--interceptor").arg(profile.binary("interceptor"));
    play.args(["--enforcement", &args.enforcement, "--jobs", &args.jobs.to_string()]).args(files);
    let mut child = play.stdout(Stdio::piped()).spawn().context("the live scenarios")?;
    let output = child.stdout.take().context("the output was asked for and is not there")?;
    let mut results = Results::new();
    for line in BufReader::new(output).lines() {
        let line = line?;
        println!("{line}");
        if let Some((id, passed)) = of_line(&line) {
            *results.entry(id.to_owned()).or_insert(true) &= passed;
        }
    }
    let status = child.wait()?;
    if !matches!(status.code(), Some(0 | 1)) {
        bail!("the live scenarios ended with {status}");
    }
    // Status 1 without a failed case is a run that broke off.
    if !status.success() && results.values().all(|passed| *passed) {
        bail!("the live scenarios broke off");
    }
    Ok(results)
}

/// Reads `ok    ID (…)` and `FAIL  ID (…)`.
fn of_line(line: &str) -> Option<(&str, bool)> {
    let (rest, passed) = match (line.strip_prefix("ok    "), line.strip_prefix("FAIL  ")) {
        (Some(rest), _) => (rest, true),
        (None, Some(rest)) => (rest, false),
        (None, None) => return None,
    };
    Some((rest.split(' ').next()?, passed))
}

/// The files that are meant, with paths that hold in any directory.
fn expand(given: &[PathBuf]) -> Result<Vec<PathBuf>> {
    let here = env::current_dir()?;
    let mut files = Vec::new();
    for path in given {
        let path = here.join(path);
        if !path.is_dir() {
            files.push(path);
            continue;
        }
        let yaml = |path: &Path| path.extension().is_some_and(|end| end == "yaml" || end == "yml");
        let listed = fs::read_dir(&path).with_context(|| path.display().to_string())?;
        let mut inside: Vec<PathBuf> =
            listed.map(|entry| Ok(entry?.path())).collect::<Result<_>>()?;
        inside.retain(|path| yaml(path));
        inside.sort();
        if inside.is_empty() {
            bail!("{} holds no scenario file", path.display());
        }
        files.extend(inside);
    }
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_tells_what_passed() {
        let report = "<testsuite>\n<testcase classname=\"a.yaml\" name=\"A-1\" time=\"0.1\"/>\n\
                      <testcase classname=\"a.yaml\" name=\"A-2\" time=\"0.1\">\n\
                      <failure message=\"m\">t</failure>\n</testcase>\n</testsuite>\n";
        let expected = [("A-1".to_owned(), true), ("A-2".to_owned(), false)];
        assert_eq!(of_report(report), Results::from(expected));
    }

    #[test]
    fn a_line_tells_how_a_case_ended() {
        assert_eq!(of_line("ok    A-1 (12 ms)"), Some(("A-1", true)));
        assert_eq!(of_line("FAIL  A-2 (12 ms) a title"), Some(("A-2", false)));
        for other in
            ["n/a   A-3 not applicable live: x", "        status: ok    x", "2 passed, 0 failed"]
        {
            assert_eq!(of_line(other), None, "{other}");
        }
    }
}
