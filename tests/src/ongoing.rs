//! A client that goes on until it is told to end, and then says how it went.

use std::io::Read;
use std::process::{Child, Stdio};

use anyhow::{Context, Result, ensure};

use crate::cgroup::Cgroup;
use crate::world::World;

/// The running client. Dropping it kills it.
#[derive(Debug)]
pub struct Ongoing(Child);

impl Ongoing {
    /// Starts a program in the world's workload namespace and in `cgroup`.
    ///
    /// # Errors
    /// When it can't be started.
    pub fn start(world: &World, cgroup: &Cgroup, program: &[&str]) -> Result<Self> {
        let mut shell = world.command("sh");
        cgroup.command(&mut shell, program);
        shell.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::inherit());
        Ok(Self(world.spawn(&mut shell)?))
    }

    /// Waits until it says, first of all, `word` on a line of its own.
    ///
    /// # Errors
    /// When it says something else, or ends.
    pub fn wait_for(&mut self, word: &str) -> Result<()> {
        let mut said = vec![0; word.len() + 1];
        self.0.stdout.as_mut().context("its output")?.read_exact(&mut said)?;
        ensure!(said == format!("{word}\n").as_bytes(), "{said:?}");
        Ok(())
    }

    /// Whether it is still running.
    ///
    /// # Errors
    /// When it isn't a child of this process.
    pub fn goes_on(&mut self) -> Result<bool> {
        Ok(self.0.try_wait()?.is_none())
    }

    /// Tells it to end, if it has not; what it says last.
    ///
    /// # Errors
    /// When it fails.
    pub fn end(mut self) -> Result<String> {
        drop(self.0.stdin.take());
        let mut said = String::new();
        self.0.stdout.as_mut().context("its output")?.read_to_string(&mut said)?;
        ensure!(self.0.wait()?.success(), "{said}");
        Ok(said.lines().last().unwrap_or_default().to_owned())
    }
}

impl From<Child> for Ongoing {
    fn from(child: Child) -> Self {
        Self(child)
    }
}

impl Drop for Ongoing {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Every `WORD=NUMBER` in what a client said.
pub fn numbers(text: &str) -> impl Iterator<Item = (&str, u64)> {
    let pairs = text.split_whitespace().filter_map(|pair| pair.split_once('='));
    pairs.filter_map(|(word, number)| Some((word, number.parse().ok()?)))
}

/// The number behind `WORD=` in what a client said.
#[must_use]
pub fn said(text: &str, word: &str) -> u64 {
    numbers(text).filter(|(have, _)| *have == word).map(|(_, number)| number).sum()
}

/// How many of a crowd were reset before they had done anything.
#[must_use]
pub fn reset_at_once(text: &str) -> u64 {
    said(text, "ECONNRESET") + said(text, "connect-ECONNRESET") + said(text, "ended-after-0s")
}
