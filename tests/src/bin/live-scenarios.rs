//! `interceptor-live-scenarios`: plays scenario files with the real product. `cargo xtask scenarios
//! --live` builds everything and calls this as root.

use std::path::PathBuf;
use std::process::ExitCode;
use std::{env, io};

use clap::{Args, Parser, Subcommand};
use interceptor_tests::live::{Options, Profile, call, play};
use nix::unistd::geteuid;

#[derive(Debug, Parser)]
#[command(name = "interceptor-live-scenarios")]
struct Arguments {
    #[command(subcommand)]
    job: Job,
}

#[derive(Debug, Subcommand)]
enum Job {
    /// Plays scenario files and judges what is seen
    Play(Play),
    /// One case's caller; what `play` starts under interception
    Caller {
        /// What to do
        task: PathBuf,
        /// Where to write what came of it
        result: PathBuf,
    },
}

#[derive(Debug, Args)]
struct Play {
    /// The product's binary
    #[arg(long, value_name = "PATH")]
    interceptor: PathBuf,
    /// The profile to play in
    #[arg(long, value_enum, default_value_t = Profile::Istio)]
    enforcement: Profile,
    /// Only cases whose name contains this; repeatable
    #[arg(long)]
    only: Vec<String>,
    /// How many worlds at the same time
    #[arg(long, default_value_t = 2)]
    jobs: usize,
    /// Show everything that was seen of failed cases
    #[arg(long, short)]
    verbose: bool,
    /// Scenario files, or directories of them (not searched deeper)
    #[arg(required = true)]
    files: Vec<PathBuf>,
}

/// Exit status of a missing privilege (sysexits: EX_NOPERM).
const NO_PERMISSION: u8 = 77;

fn main() -> ExitCode {
    let done = match Arguments::parse().job {
        Job::Caller { task, result } => call(&task, &result).map(|()| true),
        Job::Play(_) if !geteuid().is_root() => {
            eprintln!("live scenarios need namespaces and so root: `cargo xtask scenarios --live`");
            return ExitCode::from(NO_PERMISSION);
        }
        Job::Play(arguments) => env::current_exe().map_err(Into::into).and_then(|caller| {
            let options = Options {
                binary: arguments.interceptor,
                caller,
                profile: arguments.enforcement,
                files: arguments.files,
                only: arguments.only,
                jobs: arguments.jobs,
                verbose: arguments.verbose,
            };
            play(&options, &mut io::stdout()).map(|sum| {
                println!("{sum}");
                sum.failed == 0
            })
        }),
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("live scenarios: {error:#}");
            ExitCode::FAILURE
        }
    }
}
