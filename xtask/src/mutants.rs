//! `cargo xtask mutants`: whether the reference test notices faults in what it tests.
//!
//! Each fault is put into a copy of the sources, never into the sources themselves, and the test
//! must fail there. One that passes is a hole in the test, not in the product.

mod faults;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use self::faults::{FAULTS, Fault};
use crate::shell::{cargo, check, root, say};

/// Seed faults into a copy of `decide`, one at a time, and see that the reference test fails
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Only faults whose name contains this
    name: Option<String>,
}

/// What became of a fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    Caught,
    Survived,
    /// It does not compile: nothing was tested.
    Broken,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let wanted = args.name.as_deref().unwrap_or_default();
    let faults: Vec<&Fault> = FAULTS.iter().filter(|fault| fault.name.contains(wanted)).collect();
    if faults.is_empty() {
        bail!("no fault has \"{wanted}\" in its name");
    }
    for fault in &faults {
        apply(root(), fault).with_context(|| format!("fault \"{}\"", fault.name))?;
    }
    let copy = root().join("target/mutants/sources");
    copy_sources(&copy)?;
    say(format_args!("the test passes as things are?"));
    check(test(&copy).env_remove("PROPTEST_MAX_SHRINK_ITERS"))?;

    let mut escaped = 0;
    for fault in &faults {
        let path = copy.join(fault.file);
        let before = fs::read(&path)?;
        fs::write(&path, apply(&copy, fault)?)?;
        let fate = fate(&copy)?;
        fs::write(&path, before)?;
        println!("{:<9} {:<34} {}", format!("{fate:?}").to_lowercase(), fault.name, fault.file);
        escaped += usize::from(fate != Fate::Caught);
    }
    println!("{} caught, {escaped} not", faults.len() - escaped);
    if escaped > 0 {
        bail!("{escaped} faults were not caught");
    }
    Ok(())
}

/// The text of the fault's file with the fault in it.
fn apply(root: &Path, fault: &Fault) -> Result<String> {
    let path = root.join(fault.file);
    let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    if text.matches(fault.sound).count() != 1 {
        bail!("{} does not hold this exactly once: {}", fault.file, fault.sound);
    }
    Ok(text.replacen(fault.sound, fault.faulty, 1))
}

fn fate(copy: &Path) -> Result<Fate> {
    let built = quiet(test(copy).arg("--no-run"))?;
    if !built {
        return Ok(Fate::Broken);
    }
    Ok(if quiet(&mut test(copy))? { Fate::Survived } else { Fate::Caught })
}

/// The reference test of the copy. All copies share a target directory of their own: a faulty
/// binary must not lie where the sound one is looked for.
fn test(copy: &Path) -> Command {
    let mut test = cargo("test");
    test.args(["--quiet", "--locked", "--package", "interceptor", "--test", "reference"])
        .current_dir(copy)
        .env("CARGO_TARGET_DIR", root().join("target/mutants/target"))
        .env("INTERCEPTOR_BPF_OBJECT", "/dev/null")
        // A counterexample is enough; nobody reads it.
        .env("PROPTEST_MAX_SHRINK_ITERS", "0");
    test
}

fn quiet(command: &mut Command) -> Result<bool> {
    let status = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status();
    Ok(status.context("cargo cannot be run")?.success())
}

/// What building the test takes, copied anew.
fn copy_sources(to: &Path) -> Result<()> {
    if to.exists() {
        fs::remove_dir_all(to)?;
    }
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(root())? {
        let entry = entry?;
        let name = entry.file_name();
        let hidden = name.to_string_lossy().starts_with('.');
        if !hidden && name != "target" {
            copy_tree(&entry.path(), &to.join(&name))?;
        }
    }
    Ok(())
}

fn copy_tree(from: &PathBuf, to: &Path) -> Result<()> {
    if !from.is_dir() {
        fs::copy(from, to).with_context(|| from.display().to_string())?;
        return Ok(());
    }
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        copy_tree(&entry.path(), &to.join(entry.file_name()))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_fault_applies_and_has_a_name_of_its_own() {
        assert!(FAULTS.len() >= 20);
        for (i, fault) in FAULTS.iter().enumerate() {
            let faulty = apply(root(), fault).unwrap_or_else(|e| panic!("{}: {e}", fault.name));
            assert_ne!(fault.sound, fault.faulty, "{}", fault.name);
            assert!(!faulty.is_empty());
            assert!(FAULTS[..i].iter().all(|other| other.name != fault.name), "{}", fault.name);
        }
    }
}
