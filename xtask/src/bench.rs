//! `cargo xtask bench`: interceptor's tiers and its peers against no interception.

use std::path::PathBuf;
use std::{env, fs};

use anyhow::{Result, bail};

use crate::build::{self, Package, Profile};
use crate::install::Install;
use crate::shell::{as_root, root};
use crate::toolchain;

/// Measure interceptor's tiers, and Envoy, HAProxy and nginx, against no interception (as root)
///
/// All scenarios with all peers, without --quick, also renew docs/benchmark.md and its chart.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Scenarios, such as rtt-64; all when none is named (a wrong name lists them)
    scenarios: Vec<String>,
    /// Whom to compare with, separated by commas: envoy, haproxy, nginx, direct [default: all]
    #[arg(long)]
    against: Option<String>,
    /// Under two minutes in all: a first look, not figures to quote
    #[arg(long)]
    quick: bool,
    /// Write the results here as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Set interceptor up wrongly (`policy` or `tier`), to see that the checks find it
    #[arg(long = "break", value_name = "WHAT")]
    breakage: Option<String>,
    #[command(flatten)]
    install: Install,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let profile = Profile::new(true);
    build::kernel_side(&toolchain::set_up(&args.install)?)?;
    build::user_space(profile, &[Package::Interceptor, Package::Bench])?;
    let program = profile.binary("interceptor-bench");
    let mut bench = as_root(program, "make network namespaces and attach BPF programs")?;
    bench.arg("run").arg("--interceptor").arg(profile.binary("interceptor"));
    bench.arg("--peers").arg(root().join("target/peers")).args(args.options()?);
    let status = bench.status()?;
    if !status.success() {
        bail!("the benchmark ended with {status}");
    }
    Ok(())
}

impl Args {
    /// What is passed on.
    fn options(&self) -> Result<Vec<String>> {
        let mut options = self.scenarios.clone();
        for (name, value) in [("--against", &self.against), ("--break", &self.breakage)] {
            if let Some(value) = value {
                options.extend([name.to_owned(), value.clone()]);
            }
        }
        if self.quick {
            options.push("--quick".into());
        }
        if let Some(json) = &self.json {
            // It means the directory that this was typed in; the program runs in the repository's.
            let json = env::current_dir()?.join(json);
            options.extend(["--json".to_owned(), json.to_string_lossy().into_owned()]);
        }
        if self.is_whole() {
            let docs = fs::canonicalize(root().join("docs"))?;
            for (option, file) in [("--chart", "benchmark.svg"), ("--document", "benchmark.md")] {
                options.extend([option.to_owned(), docs.join(file).to_string_lossy().into_owned()]);
            }
        }
        Ok(options)
    }

    /// Whether this is the run that the documentation shows.
    fn is_whole(&self) -> bool {
        self.scenarios.is_empty()
            && self.against.is_none()
            && self.breakage.is_none()
            && !self.quick
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Task;

    fn options(line: &str) -> String {
        let Task::Bench(args) = Task::of("bench", line) else { panic!("{line}") };
        args.options().expect("options").join(" ")
    }

    #[test]
    fn only_a_whole_run_renews_the_documentation() {
        let whole = options("");
        assert!(whole.contains("docs/benchmark.svg") && whole.contains("docs/benchmark.md"));
        for part in ["rtt-64", "--against direct", "--quick", "--break tier"] {
            assert!(!options(part).contains("docs/"), "{part}");
        }
    }

    #[test]
    fn files_mean_the_directory_that_they_were_typed_in() {
        let here = env::current_dir().expect("a directory").join("out.json");
        let passed = options("rtt-64 http-1 --against envoy,direct --json out.json");
        assert_eq!(
            passed,
            format!("rtt-64 http-1 --against envoy,direct --json {}", here.display())
        );
    }
}
