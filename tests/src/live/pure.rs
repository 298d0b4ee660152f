//! The same cases by the rules alone: what `interceptor test` says of them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::case::Profile;

/// By a case's name, whether it passed.
pub(super) type Results = BTreeMap<String, bool>;

/// Runs `interceptor test` on these files.
///
/// # Errors
/// When it cannot be run, or does not get as far as a report.
pub(super) fn run(binary: &Path, profile: Profile, files: &[PathBuf]) -> Result<Results> {
    let report = tempfile::NamedTempFile::new()?;
    let mut test = Command::new(binary);
    test.args(["test", "--enforcement", profile.word(), "--junit"]).arg(report.path()).args(files);
    let done = test.output().with_context(|| format!("running {}", binary.display()))?;
    if !matches!(done.status.code(), Some(0 | 1)) {
        let said = String::from_utf8_lossy(&done.stderr);
        bail!("`interceptor test` ended with {}: {}", done.status, said.trim());
    }
    Ok(of_report(&std::fs::read_to_string(report.path())?))
}

/// The cases of a JUnit report as `interceptor test` writes it: a `testcase` a line, closed at once
/// where it passed.
fn of_report(report: &str) -> Results {
    let mut results = Results::new();
    for line in report.lines() {
        let Some(rest) = line.trim_start().strip_prefix("<testcase ") else { continue };
        let Some((_, rest)) = rest.split_once(" name=\"") else { continue };
        let Some((id, rest)) = rest.split_once('"') else { continue };
        let passed = rest.trim_end().ends_with("/>");
        *results.entry(id.to_owned()).or_insert(true) &= passed;
    }
    results
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_tells_what_passed() {
        let report = "<testsuite>\n<testcase classname=\"a.yaml\" name=\"A-1\" time=\"0.1\"/>\n\
                      <testcase classname=\"a.yaml\" name=\"A-2\" time=\"0.1\">\n\
                      <failure message=\"m\">t</failure>\n</testcase>\n</testsuite>\n";
        let expected = [("A-1".to_owned(), true), ("A-2".to_owned(), false)];
        assert_eq!(of_report(report), Results::from(expected));
    }
}
