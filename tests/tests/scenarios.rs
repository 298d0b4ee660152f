//! The scenario files, live and by the rules alone: each flow case with the real product, and the
//! same verdict from `interceptor test`.

use std::path::{Path, PathBuf};

use anyhow::Result;
use interceptor_tests::live::{Options, Profile, Sum, play};
use interceptor_tests::product::binary;
use interceptor_tests::world::kernel_tests;

/// As many as CI's machine has cores; each job plays in a world of its own.
const JOBS: usize = 2;

/// Plays a directory of `tests/scenarios`; a line for each case that does not hold.
fn hold(directory: &str, profile: Profile) -> Result<Sum> {
    let options = Options {
        binary: binary(),
        caller: PathBuf::from(env!("CARGO_BIN_EXE_interceptor-live-scenarios")),
        profile,
        files: vec![files_of(directory)],
        only: Vec::new(),
        jobs: JOBS,
        verbose: false,
    };
    let mut out = Vec::new();
    let sum = play(&options, &mut out)?;
    let out = String::from_utf8_lossy(&out);
    let failed: Vec<_> = out.lines().filter(|line| line.starts_with("FAIL")).collect();
    assert!(sum.failed == 0, "{sum}\n{}", failed.join("\n"));
    Ok(sum)
}

fn files_of(directory: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("scenarios").join(directory)
}

/// How many flow cases the files of a directory have.
fn flows(directory: &str) -> Result<usize> {
    let mut count = 0;
    for file in std::fs::read_dir(files_of(directory))? {
        let text = std::fs::read_to_string(file?.path())?;
        count += text.lines().filter(|line| line.trim() == "kind: flow").count();
    }
    Ok(count)
}

#[test]
fn the_examples_of_the_format_hold_live() -> Result<()> {
    if !kernel_tests() {
        return Ok(());
    }
    let sum = hold("istio", Profile::Istio)?;
    assert_eq!(sum.passed + sum.waiting, flows("istio")?, "every flow case is played");
    Ok(())
}

#[test]
fn our_own_cases_hold_live_in_strict() -> Result<()> {
    if !kernel_tests() {
        return Ok(());
    }
    let sum = hold("strict", Profile::Strict)?;
    assert!(sum.passed >= 40, "{sum}");
    Ok(())
}
