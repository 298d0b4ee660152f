//! What came of a command under interception, and what a test expects of it.

use crate::log::expect_lines;
use crate::world::Finished;

/// What a command under interception did, and the access-log lines that it caused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// The command, for whoever reads why a test failed.
    pub command: String,
    /// Exit status and output.
    pub finished: Finished,
    /// The access log's new lines.
    pub log: Vec<String>,
}

impl Outcome {
    /// Asserts the exit status.
    ///
    /// # Panics
    /// When it is another, with the command and what it said.
    #[track_caller]
    pub fn assert_code(&self, code: i32) {
        let Finished { code: found, stdout, stderr } = &self.finished;
        assert_eq!(*found, code, "`{}`: {stderr}{stdout}", self.command);
    }

    /// Asserts that the log has these lines ([`crate::shapes`]), each once, and no other.
    ///
    /// # Panics
    /// When it has not, with the command and what differs.
    #[track_caller]
    pub fn assert_log(&self, shapes: &[&str]) {
        if let Err(problems) = expect_lines(&self.log, shapes) {
            panic!("`{}`: {problems}", self.command);
        }
    }
}
