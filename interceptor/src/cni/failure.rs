//! Errors as the CNI specification has them.

use std::fmt;

/// Why a call failed. Those below 100 are the specification's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Code {
    /// The configuration is of a version that we don't speak.
    IncompatibleVersion,
    /// There is no such attachment.
    UnknownContainer,
    /// A variable is missing or wrong.
    Environment,
    /// A file or the kernel.
    Io,
    /// The input is no JSON.
    Decode,
    /// The configuration is wrong.
    Configuration,
    /// Not now.
    TryAgainLater,
    /// Of STATUS: not ready.
    NotReady,
    /// Of CHECK: all that leaves the pod is refused.
    Held,
    /// Of CHECK: nothing that leaves the pod is judged.
    NotCovered,
}

impl Code {
    /// The number in the answer.
    pub fn number(self) -> u32 {
        match self {
            Self::IncompatibleVersion => 1,
            Self::UnknownContainer => 3,
            Self::Environment => 4,
            Self::Io => 5,
            Self::Decode => 6,
            Self::Configuration => 7,
            Self::TryAgainLater => 11,
            Self::NotReady => 50,
            Self::Held => 101,
            Self::NotCovered => 102,
        }
    }
}

/// A call that failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// Which kind.
    pub code: Code,
    /// What was not done, to whom.
    pub message: String,
    /// Why, and what to do.
    pub details: String,
}

impl Failure {
    pub(super) fn new(code: Code, message: impl Into<String>, details: impl fmt::Display) -> Self {
        Self { code, message: message.into(), details: details.to_string() }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.message, self.details)
    }
}
