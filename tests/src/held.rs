//! A covered command that waits for the word to go on: for what is to happen without the daemon, since
//! nobody can be covered once it is gone.

use std::fs;
use std::io::{PipeWriter, Write};
use std::process::Child;
use std::thread;
use std::time::Duration;

use anyhow::{Result, ensure};
use tempfile::NamedTempFile;

use crate::product::Running;
use crate::world::{World, wait};

/// A shell that was started under interception and has done nothing yet.
#[derive(Debug)]
pub struct Held {
    shell: Child,
    word: PipeWriter,
    output: NamedTempFile,
}

impl Held {
    /// Starts a shell that will run this script; when it returns, that one is covered and waits.
    ///
    /// # Errors
    /// When it can't be started, or ends by itself.
    pub fn start(world: &World, running: &Running<'_>, script: &str) -> Result<Self> {
        let script = format!("echo ready; read go; {script}");
        let mut command = running.exec_command(&["sh", "-c", &script]);
        let (reader, word) = std::io::pipe()?;
        let output = NamedTempFile::new()?;
        command.stdin(reader).stdout(output.reopen()?).stderr(output.reopen()?);
        let mut shell = world.spawn(&mut command)?;
        while !fs::read_to_string(output.path())?.contains("ready") {
            ensure!(shell.try_wait()?.is_none(), "it ended before it was told to go");
            thread::sleep(Duration::from_millis(10));
        }
        Ok(Self { shell, word, output })
    }

    /// Lets it go on and waits for its end, at most `limit`; what the script said, on both outputs.
    ///
    /// # Errors
    /// When it is still running then, with what it said.
    pub fn go(mut self, limit: Duration) -> Result<String> {
        self.word.write_all(b"go\n")?;
        let ended = wait(&mut self.shell, limit)?;
        let said = fs::read_to_string(self.output.path())?;
        ensure!(ended.is_some(), "still running after {limit:?}: {said}");
        Ok(said)
    }
}
