//! The front door: the walkthrough holds from its first step to its last, and soon.

use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::Result;
use interceptor_tests::product::binary;
use interceptor_tests::world::kernel_tests;

/// Three times what it takes on a machine with other work to do.
const LIMIT: Duration = Duration::from_secs(60);

#[test]
fn every_step_of_the_walkthrough_holds() -> Result<()> {
    if !kernel_tests() {
        return Ok(());
    }
    let start = Instant::now();
    let output = Command::new(env!("CARGO_BIN_EXE_interceptor-walkthrough"))
        .arg("--interceptor")
        .arg(binary())
        .args(["--color", "never"])
        .output()?;
    let (page, errors) =
        (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{page}\n{errors}");
    assert!(!page.contains('✗') && page.contains('✓'), "{page}");
    assert!(start.elapsed() < LIMIT, "{:?}", start.elapsed());
    Ok(())
}
