//! `cargo xtask test`: all tests, those that need the kernel and root included, and one sum.

use std::ffi::OsStr;
use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Command, Stdio};
use std::time::Instant;
use std::{env, fmt, fs, io};

use anyhow::{Context, Result, bail};

use crate::build::{self, Profile};
use crate::install::Install;
use crate::shell::{Shown, as_root, cargo, is_root, on_terminal, root, say};
use crate::toolchain;

/// Run all tests: unit, in-process, and end to end with the real kernel (as root)
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Leave out what needs root and a kernel that takes our programs
    #[arg(long)]
    no_kernel: bool,
    #[command(flatten)]
    install: Install,
    /// Only tests whose name contains one of these
    filter: Vec<String>,
}

/// What end-to-end tests look at: the binary under test, and whether the kernel is out of bounds.
const BINARY_VARIABLE: &str = "INTERCEPTOR_BIN";
const NO_KERNEL_VARIABLE: &str = "INTERCEPTOR_NO_KERNEL";

pub(crate) fn run(args: &Args) -> Result<()> {
    let begun = Instant::now();
    if !args.no_kernel {
        build::kernel_side(&toolchain::set_up(&args.install)?)?;
    }
    // Everything at once: binaries and test programs share what they depend on.
    let mut everything = cargo("build");
    build::select_all(&mut everything);
    everything.args(["--lib", "--bins", "--tests"]);
    crate::shell::check(build::own_object(&mut everything))?;
    let built = begun.elapsed();

    let mut sum = Sum::default();
    for step in steps(args)? {
        sum += step.run()?;
    }
    say(format_args!(
        "built in {} s, tested in {} s",
        built.as_secs(),
        (begun.elapsed() - built).as_secs()
    ));
    println!("{sum}");
    if sum.failed > 0 {
        bail!("tests failed");
    }
    if sum.passed == 0 {
        // A run that tested nothing must not look like one that found nothing.
        bail!("no test ran: nothing has that word in its name");
    }
    Ok(())
}

/// One call of `cargo test`.
struct Step {
    what: &'static str,
    cargo: Command,
}

fn steps(args: &Args) -> Result<Vec<Step>> {
    let of_workspace = |targets: &[&str]| {
        let mut test = cargo("test");
        build::select_all(&mut test);
        build::own_object(&mut test).arg("--no-fail-fast").args(targets);
        if args.no_kernel {
            test.env(NO_KERNEL_VARIABLE, "1");
        }
        test.env(BINARY_VARIABLE, Profile::Debug.binary("interceptor"));
        test
    };
    let of_package = |arguments: &[&str]| {
        let mut test = cargo("test");
        test.args(["--locked", "--no-fail-fast"]).args(arguments);
        test
    };

    let mut steps = vec![
        Step { what: "unit tests", cargo: of_workspace(&["--lib", "--bins"]) },
        Step { what: "unit tests of xtask", cargo: of_package(&["--package", "xtask"]) },
    ];
    if root().join("interceptor-ebpf/src/lib.rs").exists() {
        let pure = of_package(&["--package", "interceptor-ebpf", "--lib"]);
        steps.push(Step { what: "unit tests of the kernel side's pure parts", cargo: pure });
    }
    steps.push(Step { what: "examples in the documentation", cargo: of_workspace(&["--doc"]) });
    for step in &mut steps {
        step.cargo.arg("--").args(&args.filter);
    }
    if has_end_to_end_tests() {
        let mut cargo = of_workspace(&["--test", "*"]);
        if !args.no_kernel {
            run_as_root(&mut cargo)?;
        }
        // Few at a time: they measure time, on machines with few cores.
        cargo.args(["--", "--test-threads=1"]).args(&args.filter);
        steps.push(Step { what: "end-to-end tests", cargo });
    }
    Ok(steps)
}

/// `--test '*'` is an error to cargo where there are none.
fn has_end_to_end_tests() -> bool {
    ["interceptor/tests", "tests/tests"].iter().any(|directory| {
        fs::read_dir(root().join(directory)).is_ok_and(|mut entries| {
            entries.any(|entry| {
                entry.is_ok_and(|entry| {
                    entry.path().extension() == Some(OsStr::new("rs"))
                        || entry.path().join("main.rs").exists()
                })
            })
        })
    })
}

/// Has cargo start the test programs, and only them, through sudo unless we are root.
fn run_as_root(cargo: &mut Command) -> Result<()> {
    if is_root() {
        return Ok(());
    }
    // Asks for the password now, not in the middle of the tests' output.
    crate::shell::check(as_root("true", "run the end-to-end tests")?.stdout(Stdio::null()))?;
    let target = format!("{}-unknown-linux-{}", env::consts::ARCH, environment());
    let runner = format!("CARGO_TARGET_{}_RUNNER", target.to_uppercase().replace('-', "_"));
    let sudo =
        if on_terminal() { "sudo --preserve-env" } else { "sudo --preserve-env --non-interactive" };
    cargo.env(runner, sudo);
    Ok(())
}

/// The C library in the name of the target that we, and so the tests, are compiled for.
const fn environment() -> &'static str {
    if cfg!(target_env = "musl") { "musl" } else { "gnu" }
}

impl Step {
    /// Runs it; its output passes through as it comes, and its results are summed.
    fn run(mut self) -> Result<Sum> {
        println!("\n── {}", self.what);
        let shown = Shown(&self.cargo).to_string();
        if io::IsTerminal::is_terminal(&io::stdout()) {
            self.cargo.env("CARGO_TERM_COLOR", "always");
        }
        let mut child = self
            .cargo
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot run `{shown}`"))?;
        let stdout = child.stdout.take().context("the output was asked for and is not there")?;

        let mut sum = Sum::default();
        for line in BufReader::new(stdout).split(b'\n') {
            let line = line?;
            let line = String::from_utf8_lossy(&line);
            println!("{line}");
            if let Some(result) = Sum::of_line(&line) {
                sum += result;
            }
        }
        io::stdout().flush()?;
        let status = child.wait()?;
        // A test program that dies, or does not compile, prints no result.
        if !status.success() && sum.failed == 0 {
            say(format_args!("`{shown}` ended with {status}"));
            sum.failed = 1;
        }
        Ok(sum)
    }
}

/// How many tests ended how.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Sum {
    passed: u64,
    failed: u64,
    ignored: u64,
}

impl Sum {
    /// Reads the line with which a test program ends:
    /// "test result: ok. 12 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; …".
    fn of_line(line: &str) -> Option<Self> {
        let (_, counts) = line.strip_prefix("test result: ")?.split_once(". ")?;
        let count = |what: &str| {
            let part = counts.split(';').find_map(|part| part.trim().strip_suffix(what))?;
            part.trim().parse().ok()
        };
        Some(Self {
            passed: count("passed")?,
            failed: count("failed")?,
            ignored: count("ignored")?,
        })
    }
}

impl std::ops::AddAssign for Sum {
    fn add_assign(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.ignored += other.ignored;
    }
}

impl fmt::Display for Sum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} passed, {} failed", self.passed, self.failed)?;
        if self.ignored > 0 {
            write!(f, ", {} ignored", self.ignored)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_are_read_and_summed() {
        let ok = "test result: ok. 12 passed; 0 failed; 1 ignored; 0 measured; 3 filtered out; \
                  finished in 0.01s";
        let failed =
            "test result: FAILED. 3 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out";
        let mut sum = Sum::of_line(ok).expect("a result");
        sum += Sum::of_line(failed).expect("a result");
        assert_eq!(sum, Sum { passed: 15, failed: 2, ignored: 1 });
        assert_eq!(sum.to_string(), "15 passed, 2 failed, 1 ignored");
        assert_eq!(Sum::of_line("test sniff::tls ... ok"), None);
        assert_eq!(Sum::of_line("test result: 3 passed"), None);
    }

    #[test]
    fn a_program_that_fails_without_a_result_counts_as_a_failure() {
        let mut dies = Command::new("sh");
        dies.args(["-c", "echo running 1 test; exit 101"]);
        let sum = Step { what: "a test of tests", cargo: dies }.run().expect("it ran");
        assert_eq!(sum, Sum { passed: 0, failed: 1, ignored: 0 });
    }
}
