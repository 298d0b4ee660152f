//! A workload that stays (`interceptor-test-client dwell`), seen from outside.

use std::fs;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};

use crate::cgroup::Cgroup;
use crate::netns::{Namespace, next_number};
use crate::world::World;

/// The running client. Dropping it kills it.
#[derive(Debug)]
pub struct Dweller {
    child: Child,
    report: PathBuf,
}

/// How one thing that it does is doing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Doing {
    /// `alive`, `ok`, `tried`; `silent`; else the last error's name.
    pub state: String,
    /// How often it went well.
    pub count: u64,
    /// The last error's name, or `-`.
    pub failure: String,
}

impl Dweller {
    /// Starts it in a namespace and, if given, in a cgroup; returns when it has connected whatever it
    /// is to keep.
    ///
    /// # Errors
    /// When it ends instead, or has not in 10 seconds.
    pub fn start(
        world: &World,
        namespace: &Namespace,
        cgroup: Option<&Cgroup>,
        client: &str,
        what: &[&str],
    ) -> Result<Self> {
        let report = world.dir().join(format!("dweller-{}", next_number()));
        let report_name = report.display().to_string();
        let program = [&[client, "dwell", &report_name][..], what].concat();
        let mut command = match cgroup {
            Some(_) => world.command("sh"),
            None => world.command(client),
        };
        match cgroup {
            Some(cgroup) => cgroup.command(&mut command, &program),
            None => command.args(&program[1..]),
        };
        command.stdin(Stdio::null()).stdout(Stdio::null());
        let child = namespace.inside(|| Command::spawn(&mut command))??;
        let mut dweller = Self { child, report };
        let deadline = Instant::now() + Duration::from_secs(10);
        while !dweller.report.exists() {
            if let Some(status) = dweller.child.try_wait()? {
                bail!("the client ended ({status}): {what:?}");
            }
            ensure!(Instant::now() < deadline, "the client did not connect: {what:?}");
            thread::sleep(Duration::from_millis(10));
        }
        Ok(dweller)
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Waits until it has ended by itself, having done everything.
    ///
    /// # Errors
    /// When it has not, `limit` from now, or failed.
    pub fn wait(&mut self, limit: Duration) -> Result<()> {
        let status = crate::world::wait(&mut self.child, limit)?;
        ensure!(status.is_some_and(|status| status.success()), "the client: {status:?}");
        Ok(())
    }

    /// How it goes with `name`, an option's value.
    ///
    /// # Errors
    /// When it does no such thing.
    pub fn doing(&self, name: &str) -> Result<Doing> {
        let text = fs::read_to_string(&self.report)?;
        for line in text.lines() {
            let mut words = line.split(' ');
            if words.next() == Some(name)
                && let (Some(state), Some(count), failure) =
                    (words.next(), words.next(), words.next())
            {
                let failure = failure.unwrap_or("-").to_owned();
                return Ok(Doing { state: state.to_owned(), count: count.parse()?, failure });
            }
        }
        bail!("{name} is not in the report: {text}")
    }

    /// Waits until `name` is in this state; how long that took.
    ///
    /// # Errors
    /// When it is not, `limit` from now.
    pub fn until(&self, name: &str, state: &str, limit: Duration) -> Result<Duration> {
        self.wait_for(name, limit, |doing| doing.state == state)
    }

    /// Waits until `name` has failed; how long that took.
    ///
    /// # Errors
    /// When it has not, `limit` from now.
    pub fn fails(&self, name: &str, limit: Duration) -> Result<Duration> {
        let well = ["new", "alive", "ok", "tried"];
        self.wait_for(name, limit, |doing| !well.contains(&doing.state.as_str()))
    }

    /// Waits until it went well with `name` once more; how long that took.
    ///
    /// # Errors
    /// When it did not, `limit` from now.
    pub fn goes_on(&self, name: &str, limit: Duration) -> Result<Duration> {
        // What was under way may end by what held before: the second one began after this moment.
        let before = self.doing(name)?.count;
        self.wait_for(name, limit, |doing| doing.count > before + 1)
    }

    fn wait_for(
        &self,
        name: &str,
        limit: Duration,
        holds: impl Fn(&Doing) -> bool,
    ) -> Result<Duration> {
        let begun = Instant::now();
        loop {
            let doing = self.doing(name)?;
            let passed = begun.elapsed();
            if holds(&doing) {
                return Ok(passed);
            }
            ensure!(passed < limit, "{name} after {passed:?}: {doing:?}");
            thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Dweller {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
