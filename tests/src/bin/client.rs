//! `interceptor-test-client`: a workload that uses sockets in the ways that real programs do and
//! curl doesn't. The end-to-end tests run it under interception and read what it prints.

use std::process::ExitCode;

use clap::Parser;
use interceptor_tests::client::{Job, run};

#[derive(Debug, Parser)]
#[command(name = "interceptor-test-client")]
struct Arguments {
    #[command(subcommand)]
    job: Job,
}

fn main() -> ExitCode {
    match run(Arguments::parse().job) {
        Ok(said) => {
            println!("{said}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}
