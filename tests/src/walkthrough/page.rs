//! How the walkthrough looks on a terminal, or in a file.

use std::io::{self, Write};
use std::time::Duration;

use super::script::{Step, Try};
use crate::product::Outcome;

/// Lines of a command's output that are shown.
const SHOWN_LINES: usize = 10;
/// Characters of a line that are shown, of output and in the table.
const SHOWN_WIDTH: usize = 240;
/// The width of the column of commands in the table.
const COMMAND_WIDTH: usize = 58;

/// Writes the walkthrough's page to one place.
#[derive(Debug)]
pub(super) struct Page<W> {
    out: W,
    colour: bool,
}

/// One row of the table at the end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Row {
    /// The tutorial's number.
    pub(super) chapter: &'static str,
    /// The sample's number in the specification.
    pub(super) rule: &'static str,
    /// What was typed.
    pub(super) command: &'static str,
    /// Whether everything was as expected.
    pub(super) holds: bool,
}

/// The colours, as the terminal's own palette has them.
#[derive(Clone, Copy)]
enum Ink {
    Bold,
    Dim,
    Green,
    Red,
    Cyan,
}

impl<W: Write> Page<W> {
    /// A page on `out`, with or without colours.
    pub(super) fn new(out: W, colour: bool) -> Self {
        Self { out, colour }
    }

    /// The first lines: what this is.
    ///
    /// # Errors
    /// When the page can't be written; so for all that follow.
    pub(super) fn opening(&mut self) -> io::Result<()> {
        let title = self.ink(Ink::Bold, "interceptor walkthrough");
        writeln!(self.out, "{title}: an egress tutorial, played in a small internet of its own")?;
        self.note("(network namespaces, documentation addresses, a throw-away CA; all offline)")
    }

    /// A remark that is not a result.
    ///
    /// # Errors
    /// When the page can't be written.
    pub(super) fn note(&mut self, text: &str) -> io::Result<()> {
        let text = self.ink(Ink::Dim, text);
        writeln!(self.out, "{text}")
    }

    /// What another page was told.
    ///
    /// # Errors
    /// When the page can't be written.
    pub(super) fn insert(&mut self, text: &[u8]) -> io::Result<()> {
        self.out.write_all(text)
    }

    /// The heading of a step, with the command line that its commands run under.
    ///
    /// # Errors
    /// When the page can't be written.
    pub(super) fn heading(&mut self, step: &Step) -> io::Result<()> {
        let title = self.ink(Ink::Bold, &format!("Step {} · {}", step.chapter, step.title));
        writeln!(self.out, "\n{title}")?;
        self.note(&format!("  interceptor run {} -- …", step.flags.join(" ")))?;
        if let Some(flags) = step.gateway {
            let at = crate::gateway::FIRST.ip();
            self.note(&format!("  interceptor gateway --address {at} {}", flags.join(" ")))?;
        }
        if step.slow {
            self.note("  (played beside the steps before it, in a small internet of its own)")?;
        }
        Ok(())
    }

    /// A verb of the product, and what it said.
    ///
    /// # Errors
    /// When the page can't be written.
    pub(super) fn verb(&mut self, verb: &str, output: &str, code: i32) -> io::Result<()> {
        let prompt = self.ink(Ink::Cyan, &format!("$ interceptor {verb}"));
        writeln!(self.out, "\n  {prompt}")?;
        self.output(output)?;
        let code = self.ink(Ink::Dim, &format!("exit {code}"));
        writeln!(self.out, "    {code}")
    }

    /// A command, what it printed, its exit status, its log lines, and how many connections were
    /// seen at the far side (for each of `tried.arrives`).
    ///
    /// # Errors
    /// When the page can't be written.
    pub(super) fn command(
        &mut self,
        tried: &Try,
        outcome: &Outcome,
        arrived: &[usize],
    ) -> io::Result<()> {
        let prompt = self.ink(Ink::Cyan, &format!("$ {}", tried.command));
        writeln!(self.out, "\n  {prompt}")?;
        self.output(&outcome.finished.stdout)?;
        self.output(&outcome.finished.stderr)?;
        let code = self.ink(Ink::Dim, &format!("exit {}", outcome.finished.code));
        writeln!(self.out, "    {code}")?;
        for line in &outcome.log {
            let line = self.ink(Ink::Dim, line);
            writeln!(self.out, "  log {line}")?;
        }
        for ((place, _), count) in tried.arrives.iter().zip(arrived) {
            let count = match count {
                0 => "no connection",
                1 => "1 connection",
                _ => "several connections",
            };
            let seen = self.ink(Ink::Dim, &format!("{count} seen to {place}"));
            writeln!(self.out, "  net {seen}")?;
        }
        Ok(())
    }

    /// What the gateway logged of it.
    ///
    /// # Errors
    /// When the page can't be written.
    pub(super) fn gateway(&mut self, lines: &[String]) -> io::Result<()> {
        for line in lines {
            let line = self.ink(Ink::Dim, line);
            writeln!(self.out, "  log of the gateway {line}")?;
        }
        Ok(())
    }

    /// What was expected, and whether it came so; the differences when not.
    ///
    /// # Errors
    /// When the page can't be written.
    pub(super) fn verdict(&mut self, expected: &str, problems: &[String]) -> io::Result<()> {
        let mark = self.mark(problems.is_empty());
        writeln!(self.out, "  {mark} {expected}")?;
        for line in problems.iter().flat_map(|problem| problem.lines()) {
            let line = self.ink(Ink::Red, line);
            writeln!(self.out, "      {line}")?;
        }
        Ok(())
    }

    /// The table of everything that was tried, and the sum.
    ///
    /// # Errors
    /// When the page can't be written.
    pub(super) fn table(&mut self, rows: &[Row], took: Duration) -> io::Result<()> {
        let head = format!("  {:4} {:8} command", "step", "rule");
        let head = self.ink(Ink::Bold, &head);
        writeln!(self.out, "\n{head}")?;
        for row in rows {
            let command = shorten(row.command, COMMAND_WIDTH);
            let mark = self.mark(row.holds);
            writeln!(
                self.out,
                "  {:4} {:8} {command:COMMAND_WIDTH$} {mark}",
                row.chapter, row.rule
            )?;
        }
        let held = rows.iter().filter(|row| row.holds).count();
        let sum = format!("{held} of {} as expected, in {:.1} s", rows.len(), took.as_secs_f32());
        let sum = self.ink(if held == rows.len() { Ink::Green } else { Ink::Red }, &sum);
        writeln!(self.out, "  {sum}")
    }

    fn output(&mut self, text: &str) -> io::Result<()> {
        let lines: Vec<_> = text.lines().map(str::trim_end).filter(|l| !l.is_empty()).collect();
        for line in lines.iter().take(SHOWN_LINES) {
            writeln!(self.out, "    {}", shorten(line, SHOWN_WIDTH))?;
        }
        match lines.len().saturating_sub(SHOWN_LINES) {
            0 => Ok(()),
            more => writeln!(self.out, "    … {more} more lines"),
        }
    }

    fn mark(&self, holds: bool) -> String {
        if holds { self.ink(Ink::Green, "✓") } else { self.ink(Ink::Red, "✗") }
    }

    fn ink(&self, ink: Ink, text: &str) -> String {
        if !self.colour {
            return text.to_owned();
        }
        let code = match ink {
            Ink::Bold => "1",
            Ink::Dim => "2",
            Ink::Green => "32",
            Ink::Red => "31",
            Ink::Cyan => "36",
        };
        format!("\x1b[{code}m{text}\x1b[0m")
    }
}

/// The text, cut with `…` when it has more than `width` characters; control characters, which a
/// server could send, are replaced, tabs by a blank.
fn shorten(text: &str, width: usize) -> String {
    let harmless = |c: char| match c {
        '\t' => ' ',
        c if c.is_control() => '·',
        c => c,
    };
    let mut shown: String = text.chars().take(width).map(harmless).collect();
    if text.chars().count() > width {
        shown.pop();
        shown.push('…');
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(holds: bool) -> Row {
        Row { chapter: "8.1", rule: "SEED-12", command: "curl http://a", holds }
    }

    fn written(colour: bool, write: impl Fn(&mut Page<&mut Vec<u8>>) -> io::Result<()>) -> String {
        let mut out = Vec::new();
        write(&mut Page::new(&mut out, colour)).expect("a vector takes everything");
        String::from_utf8(out).expect("text")
    }

    #[test]
    fn the_table_counts_what_holds() {
        let took = Duration::from_millis(1250);
        let table = written(false, |page| page.table(&[row(true), row(false)], took));
        assert!(table.contains("SEED-12  curl http://a"), "{table}");
        assert!(table.contains('✓') && table.contains('✗'), "{table}");
        assert!(table.ends_with("1 of 2 as expected, in 1.2 s\n"), "{table}");
        assert!(!table.contains('\x1b'), "no colours unless asked for");
    }

    #[test]
    fn a_verdict_says_every_difference() {
        let text = written(true, |page| page.verdict("200", &["a: 1\nb: 2".to_owned()]));
        assert!(text.contains("\x1b[31m✗\x1b[0m 200"), "{text:?}");
        assert!(text.contains("a: 1") && text.contains("b: 2"), "{text:?}");
    }

    #[test]
    fn what_a_server_sends_cannot_drive_the_terminal() {
        assert_eq!(shorten("a\x1b[2Jb", 10), "a·[2Jb");
        assert_eq!(shorten("real\t0m3.002s", 20), "real 0m3.002s");
        assert_eq!(shorten("abcdef", 4), "abc…");
    }
}
