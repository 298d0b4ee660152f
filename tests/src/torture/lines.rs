//! The access log of a long run: read as it grows, rotated before it fills its disk, and every line
//! looked at once.

use std::collections::{BTreeMap, HashSet};
use std::fs::{self, File};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::Read;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use anyhow::Result;

use crate::log::Line;

/// A file that is longer gets another name, which the product has to notice.
const ROTATE: u64 = 8 << 20;

/// What was read so far.
#[derive(Debug)]
pub struct Lines {
    path: PathBuf,
    open: Option<File>,
    read: u64,
    renamed: bool,
    /// The beginning of a line whose end is not there yet.
    rest: Vec<u8>,
    total: u64,
    /// How many connections the lines of each destination stand for.
    connections: BTreeMap<SocketAddr, u64>,
    /// Lines of each destination for connections that left from the client's own socket.
    direct: BTreeMap<SocketAddr, u64>,
    /// What was wrong, and is not told yet.
    problems: Vec<String>,
    seen: HashSet<u64>,
}

impl Lines {
    /// The log at `path`, which need not exist yet.
    #[must_use]
    pub fn of(path: &Path) -> Self {
        Self {
            path: path.to_owned(),
            open: None,
            read: 0,
            renamed: false,
            rest: Vec::new(),
            total: 0,
            connections: BTreeMap::new(),
            direct: BTreeMap::new(),
            problems: Vec::new(),
            seen: HashSet::new(),
        }
    }

    /// Lines so far.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.total
    }

    /// Connections to `to` that lines so far stand for.
    #[must_use]
    pub fn connections(&self, to: SocketAddr) -> u64 {
        self.connections.get(&to).copied().unwrap_or(0)
    }

    /// Lines so far for connections to `to` that no proxy carried.
    #[must_use]
    pub fn direct(&self, to: SocketAddr) -> u64 {
        self.direct.get(&to).copied().unwrap_or(0)
    }

    /// Takes what was wrong with lines since the last time.
    pub fn problems(&mut self) -> Vec<String> {
        std::mem::take(&mut self.problems)
    }

    /// Reads what is new.
    ///
    /// # Errors
    /// When the file can't be read.
    pub fn follow(&mut self) -> Result<()> {
        // Whoever writes goes over to the new file for good: once that is there, the old one is whole.
        let replaced = self.renamed && self.path.exists();
        self.read_on()?;
        if replaced {
            fs::remove_file(self.aside())?;
            (self.open, self.renamed, self.read) = (None, false, 0);
            self.read_on()?;
        }
        if self.read > ROTATE && !self.renamed {
            fs::rename(&self.path, self.aside())?;
            self.renamed = true;
        }
        Ok(())
    }

    fn aside(&self) -> PathBuf {
        self.path.with_extension("1")
    }

    fn read_on(&mut self) -> Result<()> {
        if self.open.is_none() {
            self.open = File::open(&self.path).ok();
        }
        let Some(file) = &mut self.open else { return Ok(()) };
        let mut bytes = std::mem::take(&mut self.rest);
        self.read += file.read_to_end(&mut bytes)? as u64;
        let end = bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
        self.rest = bytes.split_off(end);
        for line in String::from_utf8_lossy(&bytes).lines() {
            let problem = self.take(line);
            self.problems.extend(problem);
        }
        Ok(())
    }

    /// What is wrong with a line, if anything.
    fn take(&mut self, text: &str) -> Option<String> {
        self.total += 1;
        let line = match Line::parse(text) {
            Ok(line) => line,
            Err(error) => return Some(format!("no line of the log ({error}): {text}")),
        };
        // The form of every line has an address there.
        let to = line.field("DOWNSTREAM_LOCAL_ADDRESS").parse().ok()?;
        *self.connections.entry(to).or_default() += line.stands_for();
        let own = line.field("DOWNSTREAM_REMOTE_ADDRESS");
        if line.field("UPSTREAM_LOCAL_ADDRESS") == own {
            *self.direct.entry(to).or_default() += 1;
        }
        // What the kernel refused has no port; two of them may well look alike.
        let known = !own.ends_with(":0");
        let mut hasher = DefaultHasher::new();
        text.hash(&mut hasher);
        (known && !self.seen.insert(hasher.finish())).then(|| format!("twice in the log: {text}"))
    }
}
