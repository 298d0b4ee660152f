//! `cargo xtask scenarios`: scenario files through the rules, and with `--live` through the real
//! product too. Where the two disagree, the case fails.

use std::env;
use std::path::PathBuf;
use std::process::{Command, ExitStatus};

use anyhow::{Context, Result, bail};

use crate::build::{self, Package, Profile};
use crate::install::Install;
use crate::shell::{as_root, command};
use crate::toolchain;

/// Run scenario files: by the rules, and with --live against the real product (as root)
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
    /// Play live only cases whose name contains this; repeatable
    #[arg(long, requires = "live")]
    only: Vec<String>,
    #[command(flatten)]
    install: Install,
    /// Scenario files, or directories of them (not searched deeper)
    #[arg(required = true)]
    files: Vec<PathBuf>,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let profile = Profile::new(false);
    let here = env::current_dir()?;
    // They hold in any directory that a command is run in.
    let files: Vec<_> = args.files.iter().map(|file| here.join(file)).collect();
    build::kernel_side(&toolchain::set_up(&args.install)?)?;
    build::user_space(profile, &[Package::Interceptor, Package::Walkthrough])?;

    println!("── by the rules, {}", args.enforcement);
    let mut test = command(profile.binary("interceptor"));
    test.args(["test", "--enforcement", &args.enforcement]).args(&files);
    let mut held = done(&mut test, "interceptor test")?;
    if args.live {
        println!("── live, {}", args.enforcement);
        let program = profile.binary("interceptor-live-scenarios");
        let mut play = as_root(program, "make network namespaces and attach BPF programs")?;
        play.arg("play").arg("--interceptor").arg(profile.binary("interceptor"));
        play.args(["--enforcement", &args.enforcement, "--jobs", &args.jobs.to_string()]);
        for part in &args.only {
            play.args(["--only", part]);
        }
        held &= done(play.args(&files), "the live scenarios")?;
    }
    if !held {
        bail!("scenarios failed");
    }
    Ok(())
}

/// Runs what ends with 0 where all cases hold and with 1 where one does not.
fn done(command: &mut Command, what: &str) -> Result<bool> {
    let status = command.status().with_context(|| format!("running {what}"))?;
    held(status).with_context(|| format!("{what} ended with {status}"))
}

fn held(status: ExitStatus) -> Option<bool> {
    match status.code() {
        Some(0) => Some(true),
        Some(1) => Some(false),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt as _;

    use super::*;

    #[test]
    fn only_0_and_1_are_verdicts() {
        for (raw, verdict) in [(0, Some(true)), (1 << 8, Some(false)), (65 << 8, None), (9, None)] {
            assert_eq!(held(ExitStatus::from_raw(raw)), verdict, "{raw}");
        }
    }
}
