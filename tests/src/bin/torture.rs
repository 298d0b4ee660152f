//! `interceptor-torture`: the long run of `interceptor_tests::torture`. `cargo xtask torture` builds
//! everything and calls this as root.

use std::fs::File;
use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::Parser;
use interceptor_tests::torture::{Breakage, Options, run};

/// Does things to the product at random, and judges what is seen. Ends with 0 where everything held, with
/// 1 where something did not, and with 2 where it could not be tried.
#[derive(Debug, Parser)]
#[command(name = "interceptor-torture")]
struct Arguments {
    /// The product's binary
    #[arg(long, value_name = "PATH")]
    interceptor: PathBuf,
    /// `interceptor-test-client`
    #[arg(long, value_name = "PATH")]
    client: PathBuf,
    /// How long
    #[arg(long, default_value_t = 10)]
    minutes: u64,
    /// Does what another run with this seed did [default: another one each time]
    #[arg(long)]
    seed: Option<u64>,
    /// Writes what is said here, too
    #[arg(long, value_name = "FILE")]
    log: Option<PathBuf>,
    /// Breaks the product, to see that this is found
    #[arg(long = "break", value_name = "WHAT")]
    breakage: Option<Breakage>,
}

/// Standard output and, if there is one, a file.
struct Both(Option<File>);

impl Write for Both {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        io::stdout().write_all(bytes)?;
        if let Some(file) = &mut self.0 {
            file.write_all(bytes)?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stdout().flush()
    }
}

fn main() -> ExitCode {
    match torture(Arguments::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("torture: {error:#}");
            ExitCode::from(2)
        }
    }
}

fn torture(arguments: Arguments) -> Result<bool> {
    let file = arguments.log.map(|path| {
        File::create(&path).with_context(|| format!("cannot write {}", path.display()))
    });
    let mut out = Both(file.transpose()?);
    let options = Options {
        interceptor: arguments.interceptor,
        client: arguments.client,
        length: Duration::from_secs(arguments.minutes * 60),
        seed: arguments.seed.unwrap_or_else(|| u64::from(std::process::id())),
        breakage: arguments.breakage,
    };
    let report = run(&options, &mut out)?;
    writeln!(out, "\n{report}")?;
    Ok(report.violations() == 0)
}
