//! The short form of `cargo xtask torture`: everything that is done to the product once, and then for
//! a while at random.
//!
//! `INTERCEPTOR_SEED=N` does the same again.

use std::io;
use std::time::Duration;

use anyhow::Result;
use interceptor_tests::product::binary;
use interceptor_tests::torture::{Options, run};
use interceptor_tests::world::kernel_tests;

const CLIENT: &str = env!("CARGO_BIN_EXE_interceptor-test-client");

fn options() -> Options {
    let seed = std::env::var("INTERCEPTOR_SEED").ok().and_then(|seed| seed.parse().ok());
    Options {
        interceptor: binary(),
        client: CLIENT.into(),
        length: Duration::from_secs(60),
        seed: seed.unwrap_or_else(|| u64::from(std::process::id())),
        breakage: None,
    }
}

#[test]
fn a_minute_of_torture() -> Result<()> {
    if !kernel_tests() {
        return Ok(());
    }
    let report = run(&options(), &mut io::stdout())?;
    println!("{report}");
    assert_eq!(report.violations(), 0);
    Ok(())
}
