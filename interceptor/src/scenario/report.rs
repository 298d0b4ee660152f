//! Results as text for people and as JUnit for CI.

use std::fmt::Write as _;
use std::time::Duration;

use super::{Case, Fault};

/// One case's lines: `ok ID title`, or `FAILED ID title` with what differs below.
pub fn text(case: &Case, result: &Result<(), Fault>) -> String {
    let Err(fault) = result else { return format!("ok {} {}\n", case.id, case.title) };
    let mut out = format!("FAILED {} {}\n", case.id, case.title);
    let _ = writeln!(out, "    at {}:{}", case.file.display(), case.line);
    for line in said(fault) {
        let _ = writeln!(out, "    {line}");
    }
    out
}

/// What is wrong, a line each.
fn said(fault: &Fault) -> Vec<String> {
    match fault {
        Fault::Broken(why) => why.lines().map(|line| format!("cannot be run: {line}")).collect(),
        Fault::Differs(differences) => differences
            .iter()
            .map(|d| {
                format!(
                    "{}: expected {}, observed {}",
                    d.field,
                    shown(&d.expected),
                    shown(&d.observed)
                )
            })
            .collect(),
    }
}

/// A value, visible also where it is empty or has line ends.
fn shown(value: &str) -> String {
    match value {
        "" => "\"\"".to_owned(),
        value => value.replace('\n', "\\n"),
    }
}

/// A JUnit file: one suite, one testcase a case, its name the case's id.
pub fn junit(results: &[(&Case, Result<(), Fault>, Duration)]) -> String {
    let failures = results.iter().filter(|(_, result, _)| result.is_err()).count();
    let total: Duration = results.iter().map(|(_, _, took)| *took).sum();
    let mut out = String::from("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<testsuites>\n");
    let _ = writeln!(
        out,
        "<testsuite name=\"interceptor test\" tests=\"{}\" failures=\"{failures}\" errors=\"0\" \
         skipped=\"0\" time=\"{:.3}\">",
        results.len(),
        total.as_secs_f64()
    );
    for (case, result, took) in results {
        let _ = write!(
            out,
            "<testcase classname=\"{}\" name=\"{}\" time=\"{:.3}\"",
            escaped(&case.file.display().to_string()),
            escaped(&case.id),
            took.as_secs_f64()
        );
        let _ = match result {
            Ok(()) => writeln!(out, "/>"),
            Err(fault) => {
                let lines = said(fault).join("\n");
                let first = lines.lines().next().unwrap_or_default();
                let text = escaped(&format!("{}\n{lines}", case.title));
                writeln!(
                    out,
                    ">\n<failure message=\"{}\">{text}</failure>\n</testcase>",
                    escaped(first)
                )
            }
        };
    }
    out.push_str("</testsuite>\n</testsuites>\n");
    out
}

/// XML text or attribute value. Characters that XML 1.0 cannot hold become U+FFFD.
fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\n' | '\t' => out.push(c),
            c if c.is_control() || matches!(c, '\u{fffe}' | '\u{ffff}') => out.push('\u{fffd}'),
            c => out.push(c),
        }
    }
    out
}
