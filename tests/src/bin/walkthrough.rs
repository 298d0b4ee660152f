//! `interceptor-walkthrough`: plays the tutorial under interception and judges every step.
//!
//! `cargo xtask run` builds the product and calls this as root.

use std::env;
use std::io::{self, IsTerminal};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, ValueEnum};
use interceptor_tests::walkthrough::{Options, play};
use nix::unistd::geteuid;

/// Plays an egress tutorial in a small internet of its own, under interception, and judges it.
#[derive(Debug, Parser)]
#[command(name = "interceptor-walkthrough", version)]
struct Arguments {
    /// The product's binary
    #[arg(long, value_name = "PATH")]
    interceptor: PathBuf,
    /// Leave the small internet up afterwards and open a shell in the workload
    #[arg(long)]
    keep: bool,
    /// When to write colours
    #[arg(long, value_enum, default_value_t = Colour::Auto)]
    color: Colour,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Colour {
    /// On a terminal, unless NO_COLOR is set
    Auto,
    /// Always
    Always,
    /// Never
    Never,
}

/// Exit status of a missing privilege (sysexits: EX_NOPERM).
const NO_PERMISSION: u8 = 77;

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if !geteuid().is_root() {
        eprintln!("the walkthrough makes network namespaces and needs root: `cargo xtask run`");
        return ExitCode::from(NO_PERMISSION);
    }
    let colour = match arguments.color {
        Colour::Always => true,
        Colour::Never => false,
        Colour::Auto => io::stdout().is_terminal() && env::var_os("NO_COLOR").is_none(),
    };
    // The product is started from other directories.
    let interceptor = match arguments.interceptor.canonicalize() {
        Ok(path) => path,
        Err(error) => {
            eprintln!("{}: {error}; run `cargo xtask build`", arguments.interceptor.display());
            return ExitCode::FAILURE;
        }
    };
    match play(&Options { interceptor, keep: arguments.keep, colour }) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("walkthrough: {error:#}");
            ExitCode::FAILURE
        }
    }
}
