//! `cargo xtask`: everything one does with this repository, each command a file.
//!
//! Every command does the set-up it needs ([`toolchain`] finds what the machine has, [`install`]
//! gets what it lacks), so nothing has to be typed before it.

mod bench;
mod build;
mod chart;
mod fuzz;
mod image;
mod install;
mod lint;
mod mutants;
mod picture;
mod run;
mod scenarios;
mod shell;
mod test;
mod tidy;
mod toolchain;
mod torture;

use std::ffi::OsString;
use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};

use crate::install::Install;

/// Everything one does with interceptor's sources. Set-up happens by itself.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", disable_help_subcommand = true)]
struct Cli {
    #[command(subcommand)]
    command: Option<Task>,
}

#[derive(Subcommand)]
enum Task {
    Run(run::Args),
    Test(test::Args),
    Scenarios(scenarios::Args),
    Build(build::Args),
    Setup(SetupArgs),
    Lint(lint::Args),
    Picture(picture::Args),
    Mutants(mutants::Args),
    Fuzz(fuzz::Args),
    Bench(bench::Args),
    Torture(torture::Args),
    Chart(chart::Args),
    Image(image::Args),
    /// Look for what no compiler checks: paths of one machine, keys, leftovers, long files, and
    /// documents that no longer say what the code does
    Tidy,
}

#[cfg(test)]
impl Task {
    /// What a line means that begins with this command.
    fn of(command: &str, line: &str) -> Self {
        let words = ["cargo xtask", command].into_iter().chain(line.split_whitespace());
        let cli = Cli::try_parse_from(words).unwrap_or_else(|error| panic!("{line}: {error}"));
        cli.command.expect("a command")
    }
}

/// Find out what this machine can build with, and install what is missing; the others do it too
#[derive(clap::Args)]
struct SetupArgs {
    #[command(flatten)]
    install: Install,
}

fn main() -> ExitCode {
    // What follows `--` belongs to somebody else's command line and is not for clap to read.
    let mut own: Vec<OsString> = std::env::args_os().collect();
    let command = own.iter().position(|arg| arg == "--").map(|at| {
        let rest = own.split_off(at + 1);
        own.pop();
        rest
    });

    let done = match Cli::parse_from(own).command {
        None => {
            // A failing write of the help text has nowhere to be told.
            let _ = Cli::command().print_help();
            Ok(())
        }
        Some(Task::Run(args)) => run::run(args, command),
        Some(_) if command.is_some() => {
            Err(anyhow::anyhow!("`--` is for `cargo xtask run [OPTIONS] -- COMMAND…` only"))
        }
        Some(Task::Test(args)) => test::run(&args),
        Some(Task::Scenarios(args)) => scenarios::run(&args),
        Some(Task::Build(args)) => build::run(&args),
        Some(Task::Setup(args)) => toolchain::set_up(&args.install).map(|_| ()),
        Some(Task::Lint(args)) => lint::run(&args),
        Some(Task::Picture(args)) => picture::run(&args),
        Some(Task::Mutants(args)) => mutants::run(&args),
        Some(Task::Fuzz(args)) => fuzz::run(&args),
        Some(Task::Bench(args)) => bench::run(&args),
        Some(Task::Torture(args)) => torture::run(&args),
        Some(Task::Chart(args)) => chart::run(&args),
        Some(Task::Image(args)) => image::run(&args),
        Some(Task::Tidy) => tidy::run(),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            shell::say(format_args!("error: {error:#}"));
            ExitCode::FAILURE
        }
    }
}
