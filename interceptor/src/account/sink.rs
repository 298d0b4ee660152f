//! Where lines go: stdout, stderr or a file, without ever blocking a connection (T-57).

use std::path::PathBuf;

use super::Record;

/// The access log: cheap to clone, shared by every connection.
#[derive(Debug, Clone)]
pub struct AccessLog {}

/// Where lines go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LogTarget {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
    /// A file, appended to; made if absent.
    File(PathBuf),
    /// Nowhere.
    Off,
}

/// How lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Encoding {
    /// LOG-1.
    #[default]
    Text,
    /// LOG-30.
    Json,
}

/// What the mesh config, Telemetry and flags make of the log together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogSettings {
    /// Where to.
    pub target: LogTarget,
    /// As what.
    pub encoding: Encoding,
}

impl AccessLog {
    /// Opens the target and starts the writer.
    ///
    /// # Errors
    /// The file cannot be opened.
    pub fn open(_settings: &LogSettings) -> std::io::Result<Self> {
        todo!()
    }

    /// Hands one record to the writer. Never blocks: a full queue drops the line and counts it.
    pub fn write(&self, _record: Record) {
        todo!()
    }

    /// Lines lost so far.
    pub fn dropped(&self) -> u64 {
        todo!()
    }

    /// Waits until every line handed over so far is written.
    pub async fn flush(&self) {
        todo!()
    }
}
