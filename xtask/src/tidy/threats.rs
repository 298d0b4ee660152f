//! docs/threats.md: a row for each threat, and no test that does not exist.

use std::collections::BTreeSet;
use std::path::Path;

/// The last threat that the project counts.
const THREATS: u32 = 66;

/// What is wrong with the document, given what the repository has.
pub(super) fn complaints(document: &str, known: &Known) -> Vec<String> {
    let mut found = Vec::new();
    let rows: Vec<_> = document.lines().filter_map(row).collect();
    for number in 1..=THREATS {
        match rows.iter().filter(|(threat, _)| *threat == number).count() {
            1 => {}
            0 => found.push(format!("T-{number} has no row")),
            _ => found.push(format!("T-{number} has more than one row")),
        }
    }
    for (number, tests) in rows {
        for word in tests.split_whitespace() {
            let test = word.strip_prefix('`').and_then(|word| word.strip_suffix('`'));
            let exists = match test {
                Some(test) => known.tests.contains(test),
                None => known.cases.contains(word),
            };
            if !exists {
                found.push(format!("T-{number} names {word}, which is no test and no case"));
            }
        }
    }
    found
}

/// The number of a row, and its last cell.
fn row(line: &str) -> Option<(u32, &str)> {
    let (number, rest) = line.strip_prefix("| T-")?.split_once(" |")?;
    let (_, tests) = rest.strip_suffix('|')?.rsplit_once('|')?;
    Some((number.parse().ok()?, tests.trim()))
}

/// The tests and the cases of the repository.
#[derive(Default)]
pub(super) struct Known {
    tests: BTreeSet<String>,
    cases: BTreeSet<String>,
}

impl Known {
    /// Takes what a file has.
    pub(super) fn read(&mut self, name: &str, text: &str) {
        let extension = Path::new(name).extension().and_then(|extension| extension.to_str());
        match extension {
            Some("rs") => self.tests.extend(tests(text)),
            Some("yaml") => self.cases.extend(cases(text)),
            _ => {}
        }
    }
}

/// The functions behind a test's attribute; `proptest!` has its own, which is the same word.
fn tests(text: &str) -> impl Iterator<Item = String> {
    let attribute = |line: &str| line.starts_with("#[test]") || line.starts_with("#[tokio::test");
    let mut is_test = false;
    text.lines().map(str::trim_start).filter_map(move |line| {
        if line.starts_with("#[") || line.starts_with("//") || line.is_empty() {
            is_test |= attribute(line);
            return None;
        }
        let was_test = std::mem::take(&mut is_test);
        let (_, rest) = line.split_once("fn ")?;
        let end = rest.find(|c: char| !c.is_alphanumeric() && c != '_')?;
        was_test.then(|| rest[..end].to_owned())
    })
}

/// The ids of scenario cases.
fn cases(text: &str) -> impl Iterator<Item = String> {
    text.lines().filter_map(|line| Some(line.trim().strip_prefix("- id: ")?.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn known() -> Known {
        let mut known = Known::default();
        known.read("a.rs", "fn helper() {}\n#[test]\nfn good() {}\nfn later() {}\n");
        known.read("b.rs", "    #[tokio::test(start_paused = true)]\n    async fn slow() {}\n");
        known.read("c.yaml", "  - id: CASE-1\n");
        known
    }

    fn document(tests_of_last: &str) -> String {
        let rows = (1..THREATS).map(|n| format!("| T-{n} | threat | done | where | `good` |\n"));
        let last = format!("| T-{THREATS} | threat | done | | {tests_of_last} |\n");
        rows.chain([last]).collect()
    }

    #[test]
    fn a_document_that_is_true_is_left_alone() {
        assert_eq!(complaints(&document("`good` `slow` CASE-1"), &known()), [""; 0]);
        assert_eq!(complaints(&document(""), &known()), [""; 0]);
    }

    #[test]
    fn what_is_not_there_is_named() {
        for word in ["`helper`", "`later`", "`gone`", "CASE-2", "slow"] {
            let found = complaints(&document(&format!("`good` {word}")), &known());
            assert_eq!(found, [format!("T-66 names {word}, which is no test and no case")]);
        }
        let document = document("").replace("| T-7 |", "| T-8 |");
        assert_eq!(
            complaints(&document, &known()),
            ["T-7 has no row", "T-8 has more than one row"]
        );
    }
}
