//! `cargo xtask torture`: things are done to the product at random, for as long as one likes.

use std::env;
use std::path::PathBuf;

use anyhow::{Result, bail};

use crate::build::{self, Package, Profile};
use crate::install::Install;
use crate::shell::as_root;
use crate::toolchain;

/// Kill, stop, starve, reload and take apart the product at random, under load, and judge by a packet
/// capture what left and by the workload what came back (as root)
///
/// Ends with 1 if anything did not hold. The clock of the machine is not touched.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// How long; each thing is done once in any case
    #[arg(long, default_value_t = 10)]
    minutes: u64,
    /// Do the same things in the same order as a run that said this seed
    #[arg(long)]
    seed: Option<u64>,
    /// Write what is said to this file, too
    #[arg(long, value_name = "FILE")]
    log: Option<PathBuf>,
    /// Build with optimisations: allowed traffic then has to be back within 2 s, not 10
    #[arg(long)]
    release: bool,
    /// Break the product (`hooks` or `policy`), to see that this is found
    #[arg(long = "break", value_name = "WHAT")]
    breakage: Option<String>,
    #[command(flatten)]
    install: Install,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let profile = Profile::new(args.release);
    build::kernel_side(&toolchain::set_up(&args.install)?)?;
    build::user_space(profile, &[Package::Interceptor, Package::Walkthrough])?;
    let program = profile.binary("interceptor-torture");
    let mut torture = as_root(program, "make network namespaces and attach BPF programs")?;
    torture.arg("--interceptor").arg(profile.binary("interceptor"));
    torture.arg("--client").arg(profile.binary("interceptor-test-client"));
    torture.args(["--minutes", &args.minutes.to_string()]);
    if let Some(seed) = args.seed {
        torture.args(["--seed", &seed.to_string()]);
    }
    if let Some(log) = &args.log {
        // It means the directory that this was typed in.
        torture.arg("--log").arg(env::current_dir()?.join(log));
    }
    if let Some(breakage) = &args.breakage {
        torture.args(["--break", breakage]);
    }
    let status = torture.status()?;
    if !status.success() {
        bail!("torture ended with {status}");
    }
    Ok(())
}
