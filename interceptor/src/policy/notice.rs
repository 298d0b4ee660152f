//! What loading has to say to people: where, which resource, which field, what is wrong, and how to
//! mend it.

use std::fmt;
use std::path::PathBuf;

/// A position in a policy file.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Place {
    /// The file, as it was given; empty where the resource came from elsewhere and names itself.
    pub file: PathBuf,
    /// Line, from 1; 0 where the whole file is meant.
    pub line: usize,
    /// Column, from 1; 0 where the whole file is meant.
    pub column: usize,
    /// Which of the file's documents, from 1, empty ones not counted; 0 where none is meant.
    pub document: usize,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.file.display())?;
        if self.line > 0 {
            write!(f, ":{}:{}", self.line, self.column)?;
        }
        Ok(())
    }
}

/// One thing to say about one field of one resource.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Notice {
    /// Where.
    pub place: Place,
    /// `ServiceEntry default/google`, once that much is known.
    pub resource: Option<String>,
    /// `spec.ports[0].protocol`; empty for a whole document.
    pub path: String,
    /// What is the matter and, where one is known, the fix.
    pub message: String,
}

impl Notice {
    /// Whether Istio's own validation says this too: then the message cites its row of the
    /// validation tables, as in `(SEV-6)`. Everything else is advice of this program.
    pub fn is_istios(&self) -> bool {
        ["(SEV-", "(DRV-", "(VSV-", "(SC-", "(TEL-"].iter().any(|row| self.message.contains(row))
    }
}

impl fmt::Display for Notice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.place.file.as_os_str().is_empty() {
            write!(f, "{}: ", self.place)?;
        }
        if let Some(resource) = &self.resource {
            write!(f, "{resource}: ")?;
        }
        if !self.path.is_empty() {
            write!(f, "{}: ", self.path)?;
        }
        f.write_str(&self.message)
    }
}

/// Everything that keeps a set of files from being policy, at least one thing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct LoadErrors(pub Vec<Notice>);

impl fmt::Display for LoadErrors {
    /// One line each.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, notice) in self.0.iter().enumerate() {
            if i > 0 {
                f.write_str("\n")?;
            }
            notice.fmt(f)?;
        }
        Ok(())
    }
}
