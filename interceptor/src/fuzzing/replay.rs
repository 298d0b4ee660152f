//! Inputs that fuzzing found worth keeping, played again without a fuzzer.

use std::collections::BTreeSet;
use std::fs;
use std::panic::catch_unwind;
use std::path::{Path, PathBuf};

use super::TARGETS;

/// Fewer than this is no corpus.
const LEAST: usize = 10;

fn below(directory: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fuzz").join(directory)
}

/// What the corpus has, and what once broke something.
fn kept(target: &str) -> Vec<PathBuf> {
    let files = ["corpus", "regressions"].into_iter().flat_map(|kind| {
        fs::read_dir(below(kind).join(target))
            .into_iter()
            .flatten()
            .map(|entry| entry.unwrap().path())
    });
    let mut files: Vec<_> = files.collect();
    files.sort();
    files
}

#[test]
fn every_kept_input_holds() {
    let mut broken = Vec::new();
    for (name, target) in TARGETS {
        let files = kept(name);
        assert!(files.len() >= LEAST, "{name} has {} kept inputs", files.len());
        for file in files {
            let bytes = fs::read(&file).unwrap();
            if catch_unwind(|| target(&bytes)).is_err() {
                broken.push(file.display().to_string());
            }
        }
    }
    assert!(broken.is_empty(), "these do not hold; what they broke stands above:\n{broken:#?}");
}

#[test]
fn every_target_is_a_program_and_every_program_a_target() {
    let entries = fs::read_dir(below("fuzz_targets")).unwrap();
    let programs: BTreeSet<String> = entries
        .map(|entry| entry.unwrap().path().file_stem().unwrap().to_str().unwrap().to_owned())
        .collect();
    let targets = TARGETS.iter().map(|(name, _)| (*name).to_owned()).collect();
    assert_eq!(programs, targets);
    let manifest = fs::read_to_string(below("Cargo.toml")).unwrap();
    assert_eq!(manifest.matches("[[bin]]").count(), TARGETS.len());
}
