//! What was found, for people and for programs.

use std::fmt::Write as _;
use std::time::Duration;

use serde::Serialize;

use super::Mode;
use super::allowed::is_answer;
use super::inside::{Met, Tried};
use super::way::{Shows, Way};

/// What is to be said of one way in one mode.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mark {
    /// Nothing of it arrived, and the refusal came in time. Of a control: it works.
    Held,
    /// It got out.
    Leaked,
    /// Nothing of it arrived, but it was left waiting.
    Hung,
    /// Of a control: what is allowed does not work.
    Failed,
    /// It does not get out without interceptor either: nothing is shown.
    NotApplicable,
    /// It could not be tried.
    Broken,
}

impl Mark {
    /// Whether the run must fail for it.
    pub fn is_failure(self) -> bool {
        matches!(self, Self::Leaked | Self::Hung | Self::Failed | Self::Broken)
    }

    fn sign(self) -> &'static str {
        match self {
            Self::Held => "✓",
            Self::Leaked | Self::Hung | Self::Failed | Self::Broken => "✗",
            Self::NotApplicable => "–",
        }
    }
}

/// One way in one mode.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Finding {
    /// The mode.
    pub mode: Mode,
    /// What is to be said.
    pub mark: Mark,
    /// How it was refused, or why nothing is shown.
    pub how: String,
    /// How long the refusal took, in milliseconds; of what got out, how long it ran.
    pub ms: f64,
}

/// One way, or control, in every mode.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Row {
    /// [`Way::id`].
    pub id: &'static str,
    /// The number of its threat.
    pub threat: u8,
    /// What it does.
    pub what: &'static str,
    /// Something that must go on working.
    pub control: bool,
    /// Each mode's finding.
    pub modes: Vec<Finding>,
}

/// Everything that was found.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Report {
    /// Ways that got out without interceptor, in some mode.
    pub ways: usize,
    /// Findings of each kind; a way counts once a mode.
    pub held: usize,
    /// As `held`.
    pub leaked: usize,
    /// As `held`.
    pub hung: usize,
    /// As `held`.
    pub not_applicable: usize,
    /// Controls that do not work, and what could not be tried.
    pub failed: usize,
    /// Controls that work.
    pub controls: usize,
    /// How long it all took, in seconds.
    pub seconds: f64,
    /// Row by row.
    pub rows: Vec<Row>,
}

/// Judges one way in one mode: what it met in the room without interceptor and whether it arrived;
/// then, if it was tried there, the same of the covered room.
pub(super) fn judge(
    way: &Way,
    mode: Mode,
    bare: &(Tried, bool),
    covered: Option<&(Tried, bool)>,
) -> Finding {
    let finding = |mark, how: String, tried: &Tried| Finding {
        mode,
        mark,
        how,
        ms: tried.micros as f64 / 1000.0,
    };
    let (tried, _) = bare;
    if let Met::Broken(why) = &tried.met {
        return finding(Mark::Broken, why.clone(), tried);
    }
    let Some((tried, arrived)) = covered else {
        let how = match &tried.met {
            Met::Refused(error) => format!("{error} without interceptor too"),
            met => format!("does not arrive without interceptor either ({})", met.text()),
        };
        return finding(Mark::NotApplicable, how, tried);
    };
    if let Met::Broken(why) = &tried.met {
        return finding(Mark::Broken, why.clone(), tried);
    }
    let limit = way.within.limit();
    if *arrived {
        finding(Mark::Leaked, format!("arrived ({})", tried.met.text()), tried)
    } else if Duration::from_micros(tried.micros) > limit {
        finding(Mark::Hung, format!("{} only after {limit:?}", tried.met.text()), tried)
    } else {
        finding(Mark::Held, tried.met.text().to_owned(), tried)
    }
}

/// Judges a control in one room: it must arrive where it goes, and be answered.
pub(super) fn judge_control(way: &Way, mode: Mode, (tried, arrived): &(Tried, bool)) -> Finding {
    let answered = matches!(&tried.met, Met::Done(text) if is_answer(text));
    let came = *arrived || way.shows == Shows::Nothing;
    let mark = match &tried.met {
        Met::Broken(_) => Mark::Broken,
        _ if answered && came => Mark::Held,
        _ => Mark::Failed,
    };
    let missing = if came { "" } else { ", did not arrive" };
    let how = format!("{}{missing}", tried.met.text());
    Finding { mode, mark, how, ms: tried.micros as f64 / 1000.0 }
}

impl Report {
    /// Counts the rows.
    pub(super) fn new(rows: Vec<Row>, took: Duration) -> Self {
        let count = |control: bool, mark: &dyn Fn(Mark) -> bool| {
            let of = rows.iter().filter(|row| row.control == control);
            of.flat_map(|row| &row.modes).filter(|finding| mark(finding.mark)).count()
        };
        let applies = |row: &&Row| {
            !row.control && row.modes.iter().any(|one| one.mark != Mark::NotApplicable)
        };
        Self {
            ways: rows.iter().filter(applies).count(),
            held: count(false, &|mark| mark == Mark::Held),
            leaked: count(false, &|mark| mark == Mark::Leaked),
            hung: count(false, &|mark| mark == Mark::Hung),
            not_applicable: count(false, &|mark| mark == Mark::NotApplicable),
            failed: count(true, &Mark::is_failure) + count(false, &|mark| mark == Mark::Broken),
            controls: count(true, &|mark| mark == Mark::Held),
            seconds: took.as_secs_f64(),
            rows,
        }
    }

    /// Whether nothing leaked, hung or failed.
    pub fn is_good(&self) -> bool {
        !self.rows.iter().flat_map(|row| &row.modes).any(|finding| finding.mark.is_failure())
    }

    /// A table, a line for what the table is too narrow for, and a summary.
    pub fn text(&self) -> String {
        let modes: Vec<Mode> = self
            .rows
            .first()
            .map_or_else(Vec::new, |row| row.modes.iter().map(|f| f.mode).collect());
        let mut text = String::new();
        let width = self.rows.iter().map(|row| row.id.len()).max().unwrap_or(0);
        let says = self.rows.iter().map(|row| row.what.chars().count()).max().unwrap_or(0);
        let heads: String = modes.iter().map(|mode| format!("  {:<9}", mode.label())).collect();
        let _ =
            writeln!(text, "{:<width$}  T   {heads}  {:<says$}  how it was refused", "way", "what");
        for control in [true, false] {
            for row in self.rows.iter().filter(|row| row.control == control) {
                let marks: String =
                    row.modes.iter().map(|one| format!("  {:<9}", one.mark.sign())).collect();
                let line = format!(
                    "{:<width$}  {:<4}{marks}  {:<says$}  {}",
                    row.id,
                    row.threat,
                    row.what,
                    hows(&row.modes)
                );
                let _ = writeln!(text, "{}", line.trim_end());
            }
        }
        let _ = writeln!(
            text,
            "\n{} ways out in {} modes: {} held, {} leaked, {} hung, {} not applicable; \
             {} controls work, {} failures; {:.0} s",
            self.ways,
            modes.len(),
            self.held,
            self.leaked,
            self.hung,
            self.not_applicable,
            self.controls,
            self.failed,
            self.seconds
        );
        text
    }
}

/// Each way of being refused once, with the modes that it is for where they differ.
fn hows(modes: &[Finding]) -> String {
    let text = |one: &Finding| {
        let word = match one.mark {
            Mark::Leaked => "LEAKED: ",
            Mark::Hung => "HUNG: ",
            Mark::Failed => "FAILED: ",
            Mark::Broken => "NOT TRIED: ",
            Mark::Held | Mark::NotApplicable => "",
        };
        format!("{word}{}", one.how)
    };
    let mut told: Vec<(String, Vec<&Finding>)> = Vec::new();
    for one in modes {
        let text = text(one);
        match told.iter_mut().find(|(known, _)| *known == text) {
            Some((_, who)) => who.push(one),
            None => told.push((text, vec![one])),
        }
    }
    let slowest = |who: &[&Finding]| who.iter().map(|one| one.ms).fold(0.0, f64::max);
    let parts: Vec<String> = told
        .iter()
        .map(|(text, who)| {
            let time = if who.iter().all(|one| one.mark == Mark::NotApplicable) {
                String::new()
            } else {
                format!(", {:.1} ms", slowest(who))
            };
            if told.len() == 1 {
                return format!("{text}{time}");
            }
            let names: Vec<_> = who.iter().map(|one| one.mode.label()).collect();
            format!("{}: {text}{time}", names.join(" and "))
        })
        .collect();
    parts.join("; ")
}

#[cfg(test)]
mod tests {
    use super::super::way;
    use super::*;

    fn tried(met: Met, micros: u64) -> Tried {
        Tried { id: "x".to_owned(), met, micros }
    }

    #[test]
    fn the_canary_judges_and_never_the_call() {
        let way = way::ways().find(|way| way.id == "udp4").unwrap();
        let refused = || Met::Refused("EPERM".to_owned());
        let bare = (tried(Met::Done("sent".to_owned()), 10), true);
        let of = |met, micros, arrived| {
            judge(way, Mode::User, &bare, Some(&(tried(met, micros), arrived))).mark
        };
        assert_eq!(of(refused(), 10, false), Mark::Held);
        assert_eq!(of(Met::Done("sent".to_owned()), 10, false), Mark::Held);
        assert_eq!(of(refused(), 10, true), Mark::Leaked);
        assert_eq!(of(refused(), 100_001, false), Mark::Hung);
        assert_eq!(of(Met::Broken("signal".to_owned()), 0, false), Mark::Broken);
        assert_eq!(judge(way, Mode::User, &bare, None).mark, Mark::NotApplicable);
        let bare = (tried(Met::Broken("signal".to_owned()), 0), false);
        assert_eq!(judge(way, Mode::User, &bare, None).mark, Mark::Broken, "never n/a");
    }

    #[test]
    fn a_control_must_arrive_and_be_answered() {
        let way = way::controls().find(|way| way.id == "allowed-tcp4").unwrap();
        let of = |text: &str, arrived| {
            let tried = (tried(Met::Done(text.to_owned()), 10), arrived);
            judge_control(way, Mode::User, &tried).mark
        };
        assert_eq!(of("answer \"x\"", true), Mark::Held);
        assert_eq!(of("answer \"x\"", false), Mark::Failed);
        assert_eq!(of("closed", true), Mark::Failed);
        assert_eq!(of("HTTP 502", true), Mark::Failed);
    }
}
