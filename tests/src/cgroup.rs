//! Control groups (v2) of the tests' own.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::netns::next_number;
use crate::snapshot::cgroup2_mount;

/// A cgroup with a guard. Dropping it ends what is in it and removes it.
#[derive(Debug)]
pub struct Cgroup(PathBuf);

impl Cgroup {
    /// Makes one below the top.
    ///
    /// # Errors
    /// When there is no hierarchy or no privilege.
    pub fn create(name: &str) -> Result<Self> {
        let root = cgroup2_mount().context("no cgroup v2 mount")?;
        Self::make(root.join(format!("ix-{}-{}-{name}", std::process::id(), next_number())))
    }

    /// Makes one in this one.
    ///
    /// # Errors
    /// As [`Cgroup::create`].
    pub fn child(&self, name: &str) -> Result<Self> {
        Self::make(self.0.join(name))
    }

    fn make(path: PathBuf) -> Result<Self> {
        fs::create_dir(&path).with_context(|| path.display().to_string())?;
        Ok(Self(path))
    }

    /// Its directory.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// `sh` code that moves the shell into the cgroup.
    #[must_use]
    pub fn enter(&self) -> String {
        format!("echo $$ > {}/cgroup.procs", self.0.display())
    }

    /// Moves a process into it.
    ///
    /// # Errors
    /// When the process is gone.
    pub fn add(&self, pid: u32) -> Result<()> {
        Ok(fs::write(self.0.join("cgroup.procs"), pid.to_string())?)
    }

    /// A program that is in it from its first instruction on. `shell` is `sh` with the environment
    /// that the program is to have.
    pub fn command<'c>(&self, shell: &'c mut Command, program: &[&str]) -> &'c mut Command {
        let script = format!("{}; exec \"$@\"", self.enter());
        shell.args(["-c", &script, "sh"]).args(program)
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        let _ = fs::write(self.0.join("cgroup.kill"), "1");
        for _ in 0..100 {
            if fs::remove_dir(&self.0).is_ok() {
                return;
            }
            thread::sleep(Duration::from_millis(20));
        }
        eprintln!("cannot remove the cgroup {}", self.0.display());
    }
}
