//! `cargo xtask run`: the walkthrough, or a command under interception.

use std::ffi::OsString;
use std::os::unix::process::CommandExt as _;

use anyhow::{Context, Result, bail};

use crate::build::{self, Package, Profile};
use crate::install::Install;
use crate::shell::{Shown, as_root, is_executable};
use crate::toolchain;

/// Play the walkthrough; with `-- COMMAND…`, run COMMAND under interception
///
/// Without anything: the walkthrough, in a small internet of its own. With a command after `--`, or
/// with options of `interceptor run`: that, on this machine's own network, and its exit status.
#[derive(clap::Args)]
#[command(override_usage = "cargo xtask run [--keep] [--release] [--no-install]\n       \
                            cargo xtask run [--release] [--no-install] [OPTIONS OF interceptor run]… [-- COMMAND…]")]
pub(crate) struct Args {
    /// Walkthrough: leave its world up afterwards, and open a shell in the workload
    #[arg(long)]
    keep: bool,
    /// Build with optimisations
    #[arg(long)]
    release: bool,
    #[command(flatten)]
    install: Install,
    /// Options of `interceptor run`, such as `-f policy.yaml --outbound registry-only`
    #[arg(value_name = "OPTIONS", trailing_var_arg = true, allow_hyphen_values = true)]
    options: Vec<OsString>,
}

pub(crate) fn run(mut args: Args, command: Option<Vec<OsString>>) -> Result<()> {
    args.take_own_options();
    if command.as_ref().is_some_and(Vec::is_empty) {
        bail!("nothing follows `--`; to be intercepted, a command must");
    }
    let walkthrough = command.is_none() && args.options.is_empty();
    if args.keep && !walkthrough {
        bail!("--keep is for the walkthrough, which runs without options of `interceptor run`");
    }

    let profile = Profile::new(args.release);
    build::kernel_side(&toolchain::set_up(&args.install)?)?;
    let interceptor = profile.binary("interceptor");
    let mut run = if walkthrough {
        build::user_space(profile, &[Package::Interceptor, Package::Walkthrough])?;
        let program = profile.binary("interceptor-walkthrough");
        if !is_executable(&program) {
            bail!("the build left no {}", program.display());
        }
        let mut run = as_root(program, "make network namespaces and attach BPF programs")?;
        run.arg("--interceptor").arg(interceptor);
        if args.keep {
            run.arg("--keep");
        }
        run
    } else {
        build::user_space(profile, &[Package::Interceptor])?;
        let mut run = as_root(interceptor, "attach BPF programs")?;
        run.arg("run").args(&args.options);
        if let Some(command) = command {
            run.arg("--").args(command);
        }
        // What the user runs begins where the user is, in the user's own environment.
        run.current_dir(std::env::current_dir()?);
        run.env_remove("RUSTUP_TOOLCHAIN").env_remove("RUST_RECURSION_COUNT");
        run
    };
    // Takes our place: signals and the exit status are its own.
    let shown = Shown(&run).to_string();
    Err(run.exec()).with_context(|| format!("cannot run `{shown}`"))
}

impl Args {
    /// Takes our own options out of what is passed on, so that their place before `--` is free.
    fn take_own_options(&mut self) {
        let Self { keep, release, install, options } = self;
        options.retain(|option| {
            match option.to_str() {
                Some("--keep") => *keep = true,
                Some("--release") => *release = true,
                Some("--no-install") => install.no_install = true,
                _ => return true,
            }
            false
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Task;

    fn parse(line: &str) -> Args {
        let Task::Run(mut args) = Task::of("run", line) else { panic!("{line}") };
        args.take_own_options();
        args
    }

    #[test]
    fn options_of_interceptor_pass_through_in_order_and_ours_are_taken_anywhere() {
        for line in [
            "--release -f a.yaml --outbound registry-only",
            "-f a.yaml --release --outbound registry-only",
            "-f a.yaml --outbound registry-only --release",
        ] {
            let args = parse(line);
            assert!(args.release, "{line}");
            assert_eq!(args.options, ["-f", "a.yaml", "--outbound", "registry-only"], "{line}");
        }
        let args = parse("--bypass 10.0.0.0/8 --keep-caps --no-install");
        assert_eq!(args.options, ["--bypass", "10.0.0.0/8", "--keep-caps"]);
        assert!(args.install.no_install && !args.keep && !args.release);
    }

    #[test]
    fn nothing_given_is_the_walkthrough() {
        assert!(parse("").options.is_empty());
        let kept = parse("--keep");
        assert!(kept.keep && kept.options.is_empty());
    }
}
