//! The product as a user meets it: the binary, its command line and its access log.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};
use std::{env, thread};

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::log::Line;
use crate::netns::next_number;
pub use crate::outcome::Outcome;
use crate::world::{Finished, World, exit_code, stop, text, wait};

/// How long one command under interception may take before the test gives up.
const LIMIT: Duration = Duration::from_secs(60);
/// How long the product may take to start and attach.
const START: Duration = Duration::from_secs(15);
/// Said by the placeholder command of [`Interceptor::start`] when it is running, and so covered.
const COVERED: &str = "covered";

/// The binary under test: `INTERCEPTOR_BIN`, or `interceptor` beside the running executable's
/// directory (target/debug).
///
/// # Panics
/// When there is none, with what to type.
#[must_use]
pub fn binary() -> PathBuf {
    let found = env::var_os("INTERCEPTOR_BIN").map(PathBuf::from).or_else(|| {
        let test = env::current_exe().ok()?;
        Some(test.parent()?.parent()?.join("interceptor"))
    });
    match found {
        Some(path) if path.is_file() => path,
        other => panic!("no binary at {other:?}: run `cargo xtask build` (or `cargo xtask test`)"),
    }
}

/// One way of running the product in a world: its policy flags, a name and an access log of its
/// own.
#[derive(Debug)]
pub struct Interceptor<'w> {
    world: &'w World,
    binary: PathBuf,
    flags: Vec<String>,
    name: String,
    log: PathBuf,
    directory: Option<PathBuf>,
}

impl<'w> Interceptor<'w> {
    /// The product with these flags of `interceptor run` (`--outbound`, `-f`, `--bypass` …).
    #[must_use]
    pub fn new(world: &'w World, binary: &Path, flags: &[&str]) -> Self {
        let name = format!("ix-{}-{}", std::process::id(), next_number());
        Self {
            log: world.dir().join(format!("{name}.log")),
            flags: flags.iter().map(ToString::to_string).collect(),
            binary: binary.to_owned(),
            directory: None,
            name,
            world,
        }
    }

    /// The product that allows what this file of resources lists and nothing else, direct where the
    /// kernel can judge; with `more` flags.
    #[must_use]
    pub fn fast(world: &'w World, resources: &str, more: &[&str]) -> Self {
        let flags = ["--outbound", "registry-only", "--fast-path", "true", "-f", resources];
        Self::new(world, &binary(), &[&flags[..], more].concat())
    }

    /// Runs it from this directory, against which `-f FILE` is read.
    #[must_use]
    pub fn directory(mut self, directory: &Path) -> Self {
        self.directory = Some(directory.to_owned());
        self
    }

    /// Writes its access log here.
    #[must_use]
    pub fn log(mut self, path: &Path) -> Self {
        self.log = path.to_owned();
        self
    }

    /// The name of its control socket.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// `interceptor run FLAGS -- COMMAND`, not yet started.
    #[must_use]
    pub fn run_command(&self, command: &[&str]) -> Command {
        let mut run = self.verb_command("run");
        run.args(["--name", &self.name, "--access-log"]).arg(&self.log);
        run.args(&self.flags).arg("--").args(command);
        run
    }

    /// `interceptor run FLAGS -- COMMAND`, not yet started, that is not told where its access log
    /// goes.
    #[must_use]
    pub fn run_visibly(&self, command: &[&str]) -> Command {
        let mut run = self.verb_command("run");
        run.args(["--name", &self.name]).args(&self.flags).arg("--").args(command);
        run
    }

    /// `interceptor run FLAGS --cgroup PATH`, not yet started.
    #[must_use]
    pub fn cover_command(&self, cgroup: &Path) -> Command {
        let mut run = self.verb_command("run");
        run.args(["--name", &self.name, "--access-log"]).arg(&self.log);
        run.args(&self.flags).arg("--cgroup").arg(cgroup);
        run
    }

    /// Covers a cgroup in the background; when it returns, that is done.
    ///
    /// # Errors
    /// When the product ends instead, or is not ready in time, with what it said.
    pub fn cover(self, cgroup: &Path) -> Result<Running<'w>> {
        let command = self.cover_command(cgroup);
        let mut running = self.start_as(command, "")?;
        running.until_ready()?;
        Ok(running)
    }

    /// Runs a command under interception to its end.
    ///
    /// # Errors
    /// When the product can't be started or doesn't end in a minute.
    pub fn run(&self, command: &[&str]) -> Result<Outcome> {
        self.run_with(command, |_| {})
    }

    /// [`Interceptor::run`] with something changed about the command line, such as a variable of
    /// the environment.
    ///
    /// # Errors
    /// As [`Interceptor::run`].
    pub fn run_with(&self, command: &[&str], change: impl Fn(&mut Command)) -> Result<Outcome> {
        let before = self.lines().len();
        let mut run = self.run_command(command);
        change(&mut run);
        let finished = self.world.output(&mut run, LIMIT)?;
        Ok(Outcome { command: command.join(" "), finished, log: self.lines().split_off(before) })
    }

    /// Runs a command under interception to its end, the access log going where the resources say,
    /// which must be standard output: [`Outcome::log`] has the lines that came there, and
    /// [`Finished::stdout`] what else did.
    ///
    /// # Errors
    /// As [`Interceptor::run`].
    pub fn run_logging_itself(&self, command: &[&str]) -> Result<Outcome> {
        let mut finished = self.world.output(&mut self.run_visibly(command), LIMIT)?;
        let lines = finished.stdout.lines().map(str::to_owned);
        let (log, rest): (Vec<_>, Vec<_>) = lines.partition(|line| Line::parse(line).is_ok());
        finished.stdout = rest.iter().flat_map(|line| [line, "\n"]).collect();
        Ok(Outcome { command: command.join(" "), finished, log })
    }

    /// Starts it around a command that does nothing, for [`Running::exec`]; when it returns,
    /// the workload is covered.
    ///
    /// # Errors
    /// When the product ends instead of covering the command, with what it said.
    pub fn start(self) -> Result<Running<'w>> {
        let script = format!("echo {COVERED}; exec sleep 86400");
        let command = self.run_command(&["sh", "-c", &script]);
        self.start_as(command, COVERED)
    }

    /// Starts a command line of the product in the background and waits until it, or its COMMAND,
    /// says `ready` on standard output.
    ///
    /// # Errors
    /// When it ends before, with what it said.
    pub fn start_as(self, mut command: Command, ready: &str) -> Result<Running<'w>> {
        let (stdout, stderr) = (tempfile::tempfile()?, tempfile::tempfile()?);
        command.stdin(Stdio::null()).stdout(stdout.try_clone()?).stderr(stderr.try_clone()?);
        let child = self.world.spawn(&mut command)?;
        let mut running = Running { interceptor: self, child, stdout, stderr };
        let deadline = Instant::now() + START;
        while !running.stdout()?.contains(ready) {
            if let Some(status) = running.child.try_wait()? {
                bail!("the product ended ({status}) at its start: {}", running.stderr()?);
            }
            if Instant::now() > deadline {
                bail!("not ready in {START:?}: {}", running.stderr()?);
            }
            thread::sleep(Duration::from_millis(10));
        }
        Ok(running)
    }

    /// Every line of the access log so far.
    #[must_use]
    pub fn lines(&self) -> Vec<String> {
        let log = fs::read_to_string(&self.log).unwrap_or_default();
        log.lines().map(str::to_owned).collect()
    }

    fn verb_command(&self, verb: &str) -> Command {
        let mut command = self.world.command(&self.binary);
        command.arg(verb);
        if let Some(directory) = &self.directory {
            command.current_dir(directory);
        }
        command
    }
}

/// The product in the background, with a covered workload. Dropping it stops it, and cleans up
/// after it when it had to be killed.
#[derive(Debug)]
pub struct Running<'w> {
    interceptor: Interceptor<'w>,
    child: Child,
    stdout: File,
    stderr: File,
}

impl Running<'_> {
    /// The daemon's process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The name of its control socket.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.interceptor.name
    }

    /// Waits until the daemon answers: everything is attached then.
    ///
    /// # Errors
    /// When it ends instead, or does not answer in time, with what it said.
    pub fn until_ready(&mut self) -> Result<()> {
        let deadline = Instant::now() + START;
        while self.verb(&["status"])?.code != 0 {
            if let Some(status) = self.child.try_wait()? {
                bail!("the product ended ({status}) at its start: {}", self.stderr()?);
            }
            if Instant::now() > deadline {
                bail!("not ready in {START:?}: {}", self.stderr()?);
            }
            thread::sleep(Duration::from_millis(10));
        }
        Ok(())
    }

    /// Starts a command line of the product in the place of a daemon that was killed, or is about to
    /// lose it; gives that one. Does not wait until it is ready. What it says comes behind what the
    /// other said.
    ///
    /// # Errors
    /// When it can't be started.
    pub fn start_again(&mut self, command: Command) -> Result<Child> {
        let child = self.start_beside(command)?;
        Ok(std::mem::replace(&mut self.child, child))
    }

    /// The same, with the one that runs staying the one that this is about.
    ///
    /// # Errors
    /// When it can't be started.
    pub fn start_beside(&self, mut command: Command) -> Result<Child> {
        command.stdin(Stdio::null());
        command.stdout(self.stdout.try_clone()?).stderr(self.stderr.try_clone()?);
        self.interceptor.world.spawn(&mut command)
    }

    /// Makes the one that was started beside the one that this is about.
    pub fn adopt(&mut self, child: Child) {
        self.child = child;
    }

    /// `interceptor run FLAGS --cgroup PATH` once more, not yet started.
    #[must_use]
    pub fn cover_command(&self, cgroup: &Path) -> Command {
        self.interceptor.cover_command(cgroup)
    }

    /// What the daemon and its COMMAND wrote to standard output so far.
    ///
    /// # Errors
    /// When the file can't be read.
    pub fn stdout(&mut self) -> Result<String> {
        text(&mut self.stdout)
    }

    /// What the daemon wrote to standard error so far.
    ///
    /// # Errors
    /// When the file can't be read.
    pub fn stderr(&mut self) -> Result<String> {
        text(&mut self.stderr)
    }

    /// `interceptor exec --name NAME -- COMMAND`: one more command in the covered workload. Waits
    /// until the log has `lines` new lines, at most 3 seconds, and a moment for unexpected ones.
    ///
    /// # Errors
    /// When it doesn't end in a minute.
    pub fn exec(&self, command: &[&str], lines: usize) -> Result<Outcome> {
        let before = self.interceptor.lines().len();
        let mut exec = self.exec_command(command);
        let finished = self.interceptor.world.output(&mut exec, LIMIT)?;
        let log = self.wait_for_lines(before, lines);
        Ok(Outcome { command: command.join(" "), finished, log })
    }

    /// [`Running::exec`] of a test client, its arguments in one text with blanks between them.
    ///
    /// # Errors
    /// As [`Running::exec`].
    pub fn exec_client(&self, client: &str, arguments: &str, lines: usize) -> Result<Outcome> {
        let command: Vec<_> = [client].into_iter().chain(arguments.split_whitespace()).collect();
        self.exec(&command, lines)
    }

    /// `interceptor exec --name NAME -- COMMAND`, not yet started.
    #[must_use]
    pub fn exec_command(&self, command: &[&str]) -> Command {
        let mut exec = self.interceptor.verb_command("exec");
        exec.args(["--name", &self.interceptor.name, "--"]).args(command);
        exec
    }

    /// Another verb of the command line, with `--name NAME` at its end.
    ///
    /// # Errors
    /// When it doesn't end in a minute.
    pub fn verb(&self, words: &[&str]) -> Result<Finished> {
        let (verb, arguments) = words.split_first().context("a verb")?;
        let mut command = self.interceptor.verb_command(verb);
        command.args(arguments).args(["--name", &self.interceptor.name]);
        self.interceptor.world.output(&mut command, LIMIT)
    }

    /// What `interceptor status -o json` says.
    ///
    /// # Errors
    /// When it can't be asked.
    pub fn status(&self) -> Result<serde_json::Value> {
        let status = self.verb(&["status", "-o", "json"])?;
        serde_json::from_str(&status.stdout).context(status.stderr)
    }

    /// Waits until the daemon answers, at most 15 seconds.
    ///
    /// # Errors
    /// When it still does not then.
    pub fn wait_for_status(&self) -> Result<()> {
        let deadline = Instant::now() + START;
        while self.verb(&["status"])?.code != 0 {
            anyhow::ensure!(Instant::now() < deadline, "the daemon doesn't answer");
            thread::sleep(Duration::from_millis(50));
        }
        Ok(())
    }

    /// One of the kernel's counters.
    ///
    /// # Errors
    /// When there is none of this name.
    pub fn counter(&self, name: &str) -> Result<u64> {
        self.status()?["counters"][name].as_u64().with_context(|| format!("no counter {name}"))
    }

    /// How many entries a kernel table has.
    ///
    /// # Errors
    /// When there is none of this name.
    pub fn entries(&self, table: &str) -> Result<u64> {
        let status = self.status()?;
        let tables = status["tables"].as_array().context("tables")?;
        let entries = tables.iter().find(|row| row["name"] == table).map(|row| &row["entries"]);
        entries.and_then(serde_json::Value::as_u64).with_context(|| format!("{table}: {status}"))
    }

    /// Waits until a kernel table has so many entries, at most 20 seconds.
    ///
    /// # Errors
    /// When it still has not then.
    pub fn wait_for_entries(&self, table: &str, count: u64) -> Result<()> {
        let deadline = Instant::now() + Duration::from_secs(20);
        while self.entries(table)? != count {
            let status = self.status()?;
            anyhow::ensure!(Instant::now() < deadline, "{table}, not {count}: {status}");
            thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    /// Every line of the access log so far.
    #[must_use]
    pub fn lines(&self) -> Vec<String> {
        self.interceptor.lines()
    }

    /// The lines after the first `before`, once there are `count` of them (or 3 seconds passed).
    #[must_use]
    pub fn wait_for_lines(&self, before: usize, count: usize) -> Vec<String> {
        let deadline = Instant::now() + Duration::from_secs(3);
        while self.lines().len() < before + count && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(10));
        }
        thread::sleep(Duration::from_millis(50));
        self.lines().split_off(before)
    }

    /// Sends SIGTERM and waits for the end.
    ///
    /// # Errors
    /// When the process can't be waited for.
    pub fn stop(mut self) -> Result<ExitStatus> {
        stop(&mut self.child)
    }

    /// Sends a signal to the daemon.
    ///
    /// # Errors
    /// When the process is gone.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        let pid = Pid::from_raw(i32::try_from(self.pid()).context("a process id")?);
        Ok(kill(pid, signal)?)
    }

    /// Waits for the end, at most `limit`; the exit status as a shell tells it.
    ///
    /// # Errors
    /// When it is still running then.
    pub fn wait(&mut self, limit: Duration) -> Result<i32> {
        let status = wait(&mut self.child, limit)?;
        Ok(exit_code(status.with_context(|| format!("still running after {limit:?}"))?))
    }

    /// Its exit status as a shell tells it, if it has ended.
    ///
    /// # Errors
    /// When the process can't be waited for.
    pub fn ended(&mut self) -> Result<Option<i32>> {
        Ok(self.child.try_wait()?.map(exit_code))
    }

    /// Kills the daemon with SIGKILL; what it pinned stays.
    ///
    /// # Errors
    /// When the process can't be killed.
    pub fn kill(&mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// `interceptor detach --name NAME`.
    ///
    /// # Errors
    /// When it doesn't end in a minute.
    pub fn detach(&self) -> Result<Finished> {
        self.verb(&["detach"])
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        let ended_in_order = match stop(&mut self.child) {
            // 128 + 9: it was killed, by the test or because it didn't stop.
            Ok(status) => exit_code(status) != 137,
            Err(_) => false,
        };
        if !ended_in_order && let Err(error) = self.detach() {
            eprintln!("cannot clean up after {}: {error:#}", self.interceptor.name);
        }
    }
}
