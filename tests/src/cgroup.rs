//! A cgroup of the test's own, to be covered with `--cgroup`.

use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::snapshot::cgroup2_mount;

/// The cgroup; removed with its last process.
#[derive(Debug)]
pub struct Cgroup(PathBuf);

impl Cgroup {
    /// Makes `ix-<pid>-NAME` below the root.
    ///
    /// # Errors
    /// When there is no cgroup v2, or it can't be made.
    pub fn create(name: &str) -> Result<Self> {
        let root = cgroup2_mount().context("no cgroup v2 mount")?;
        let path = root.join(format!("ix-{}-{name}", std::process::id()));
        fs::create_dir(&path)?;
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
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        for _ in 0..100 {
            if fs::remove_dir(&self.0).is_ok() {
                return;
            }
            thread::sleep(Duration::from_millis(20));
        }
        eprintln!("cannot remove the cgroup {}", self.0.display());
    }
}
