//! What was tried and what was seen: a line each as it comes, and a table at the end.

use std::collections::BTreeMap;
use std::fmt;
use std::io::Write;
use std::time::{Duration, Instant};

use anyhow::Result;

use super::judge::Seen;

/// Everything that was seen.
#[derive(Debug)]
pub struct Report {
    begun: Instant,
    rows: BTreeMap<&'static str, Row>,
    notes: Vec<String>,
    violations: u64,
}

/// What was seen of one action.
#[derive(Clone, Copy, Debug, Default)]
struct Row {
    times: u64,
    violations: usize,
    sum: Duration,
    slowest: Option<(Duration, &'static str)>,
}

impl Default for Report {
    fn default() -> Self {
        Self { begun: Instant::now(), rows: BTreeMap::new(), notes: Vec::new(), violations: 0 }
    }
}

impl Report {
    /// Things that did not hold.
    #[must_use]
    pub fn violations(&self) -> u64 {
        self.violations
    }

    /// Takes what an action did and what was seen then, and writes its line to `out`:
    /// `SECONDS NUMBER ACTION: WHAT; back after N ms (KIND)`, and each violation on a line below.
    ///
    /// # Errors
    /// When it can't be written.
    pub fn action(
        &mut self,
        out: &mut dyn Write,
        name: &'static str,
        what: &str,
        seen: &Seen,
    ) -> Result<()> {
        let row = self.rows.entry(name).or_default();
        row.times += 1;
        row.violations += seen.violations.len();
        if let Some(back) = seen.back {
            row.sum += back.0;
            row.slowest = row.slowest.max(Some(back));
        }
        let number: u64 = self.rows.values().map(|row| row.times).sum();
        let back = seen.back.map_or(String::new(), |(took, kind)| {
            format!("; back after {} ms ({kind})", took.as_millis())
        });
        let at = self.begun.elapsed().as_secs_f32();
        writeln!(out, "{at:8.1} {number:4} {name}: {what}{back}")?;
        self.violated(out, &seen.violations)
    }

    /// Takes what does not hold, and says it.
    ///
    /// # Errors
    /// When it can't be written.
    pub fn violated(&mut self, out: &mut dyn Write, violations: &[String]) -> Result<()> {
        for violation in violations {
            writeln!(out, "         VIOLATION: {violation}")?;
        }
        self.violations += violations.len() as u64;
        Ok(out.flush()?)
    }

    /// Something that holds, to be said at the end.
    pub fn note(&mut self, note: String) {
        self.notes.push(note);
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{:32} {:>5} {:>9} {:>9}  slowest kind of traffic",
            "action", "times", "back, ms", "slowest"
        )?;
        for (name, row) in &self.rows {
            let mean = row.sum.as_millis() / u128::from(row.times.max(1));
            let (slowest, kind) =
                row.slowest.map_or((0, "-"), |(took, kind)| (took.as_millis(), kind));
            write!(f, "{name:32} {:5} {mean:9} {slowest:9}  {kind}", row.times)?;
            match row.violations {
                0 => writeln!(f)?,
                count => writeln!(f, "  {count} VIOLATIONS")?,
            }
        }
        for note in &self.notes {
            writeln!(f, "{note}")?;
        }
        match self.violations {
            0 => write!(f, "everything held"),
            count => write!(f, "{count} violations"),
        }
    }
}
