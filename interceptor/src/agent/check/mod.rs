//! `agent --check`: what this machine and this cluster have of what the agent needs, looked at one by
//! one, with the remedy for what is missing. Changes nothing that stays.

mod cluster;
mod machine;
#[cfg(test)]
mod tests;

use std::fmt;

pub use self::cluster::{Wanted, look as look_at_cluster};
pub use self::machine::{Place, look as look_at_machine};

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// What it is, in a word or two.
    what: String,
    verdict: Verdict,
    /// What was found.
    found: String,
    /// How to mend it, where it is not as it should be.
    fix: String,
}

/// How it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Good,
    /// The agent runs without it, and does less.
    Lacking,
    /// The agent does not run without it.
    Missing,
}

impl Finding {
    fn good(what: impl Into<String>, found: impl Into<String>) -> Self {
        let (what, found) = (what.into(), found.into());
        Self { what, verdict: Verdict::Good, found, fix: String::new() }
    }

    fn lacking(what: impl Into<String>, found: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { verdict: Verdict::Lacking, fix: fix.into(), ..Self::good(what, found) }
    }

    fn missing(what: impl Into<String>, found: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { verdict: Verdict::Missing, fix: fix.into(), ..Self::good(what, found) }
    }

    /// Something that the caller found to be missing before there was anything to look at.
    pub fn no_cluster(why: impl fmt::Display) -> Self {
        let fix = "run it in a pod with a service account, or set KUBECONFIG";
        Self::missing("API server", why.to_string(), fix)
    }
}

/// All that was found. Its `Display` is for people.
#[derive(Debug, Default)]
pub struct Findings(pub Vec<Finding>);

impl Findings {
    /// Whether the agent can run here.
    pub fn suffice(&self) -> bool {
        self.0.iter().all(|finding| finding.verdict != Verdict::Missing)
    }
}

impl fmt::Display for Findings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let width = self.0.iter().map(|one| one.what.chars().count()).max().unwrap_or(0);
        for Finding { what, verdict, found, fix } in &self.0 {
            let sign = match verdict {
                Verdict::Good => '✓',
                Verdict::Lacking => '!',
                Verdict::Missing => '✗',
            };
            writeln!(f, "{sign} {what:<width$}  {found}")?;
            if !fix.is_empty() {
                writeln!(f, "  {:<width$}  fix: {fix}", "")?;
            }
        }
        let count = |verdict| self.0.iter().filter(|one| one.verdict == verdict).count();
        let (lacking, missing) = (count(Verdict::Lacking), count(Verdict::Missing));
        match missing {
            0 => writeln!(f, "The agent can run here; {lacking} to think about (!)."),
            _ => writeln!(f, "The agent cannot run here: {missing} missing (✗)."),
        }
    }
}
