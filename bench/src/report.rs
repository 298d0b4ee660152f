//! What a run came to: rows as JSON, and as a table in Markdown.

use std::fmt::Write as _;

use serde::Serialize;

/// The result of one scenario in one tier. What does not apply is null.
#[derive(Clone, Debug, Default, Serialize)]
pub(crate) struct Row {
    /// The scenario's id.
    pub(crate) scenario: &'static str,
    /// `direct`, `bypass`, `name`, `relay` or `http`.
    pub(crate) tier: &'static str,
    /// Who did it: `direct` (nobody), `interceptor`, `envoy`, `haproxy` or `nginx`.
    pub(crate) peer: &'static str,
    /// Median over rounds against the same round without interception; above 1 is better.
    pub(crate) ratio: Option<f64>,
    /// Third quartile less first of the ratios (idle-1000: of the KiB per connection).
    pub(crate) spread: Option<f64>,
    /// Processor seconds of the program per [`Row::cpu_per`].
    pub(crate) cpu_proxy: Option<f64>,
    /// Processor seconds of the whole machine, kernel, client and server included.
    pub(crate) cpu_all: Option<f64>,
    /// `cpu_all` less that without interception: program and kernel together.
    pub(crate) cpu_added: Option<f64>,
    /// `GiB`, or `1000` operations.
    pub(crate) cpu_per: Option<&'static str>,
    /// Median time of an operation.
    pub(crate) p50_us: Option<f64>,
    /// 99th percentile of it.
    pub(crate) p99_us: Option<f64>,
    /// Medians of the differences to no interception.
    pub(crate) added_p50_us: Option<f64>,
    /// As `added_p50_us`.
    pub(crate) added_p99_us: Option<f64>,
    /// How much was done in a second.
    pub(crate) rate: Option<f64>,
    /// What `rate` counts.
    pub(crate) rate_unit: Option<&'static str>,
    /// Resident memory without connections.
    pub(crate) rss_mib: Option<f64>,
    /// Resident memory that one idle connection adds.
    pub(crate) kib_per_connection: Option<f64>,
    /// From the start of the program to the first allowed connection.
    pub(crate) start_ms: Option<f64>,
    /// From the changed policy to the first connection that it allows.
    pub(crate) add_ms: Option<f64>,
    /// How many rounds went into this.
    pub(crate) rounds: usize,
}

impl Row {
    /// A row without figures.
    pub(crate) fn new(scenario: &'static str, tier: &'static str, peer: &'static str) -> Self {
        Self { scenario, tier, peer, ..Self::default() }
    }
}

/// A whole run.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Run {
    /// Kernel, cores, load.
    pub(crate) machine: String,
    /// Peers and their versions.
    pub(crate) versions: Vec<String>,
    /// Rounds, milliseconds of each.
    pub(crate) rounds: usize,
    pub(crate) milliseconds: u64,
    /// Peers that are not installed.
    pub(crate) skipped: Vec<String>,
    /// What went wrong; there is no row for that.
    pub(crate) failures: Vec<String>,
    /// The results.
    pub(crate) rows: Vec<Row>,
}

/// A column: its heading, and what a row has there.
type Column = (&'static str, fn(&Row) -> Option<String>);

const SPEED: [Column; 11] = [
    ("scenario", |r| Some(r.scenario.into())),
    ("tier", |r| Some(r.tier.into())),
    ("by", |r| Some(r.peer.into())),
    ("ratio", |r| number(r.ratio, 3)),
    ("spread", |r| number(r.spread, 3)),
    ("rate", |r| Some(format!("{} {}", number(r.rate, 0)?, r.rate_unit?))),
    ("p50 µs", |r| number(r.p50_us, 1)),
    ("p99 µs", |r| number(r.p99_us, 1)),
    ("CPU ms, program", |r| number(r.cpu_proxy.map(milli), 1)),
    ("CPU ms, added", |r| number(r.cpu_added.map(milli), 1)),
    ("per", |r| r.cpu_per.map(Into::into)),
];

const SIZE: [Column; 9] = [
    ("scenario", |r| Some(r.scenario.into())),
    ("tier", |r| Some(r.tier.into())),
    ("by", |r| Some(r.peer.into())),
    ("MiB", |r| number(r.rss_mib, 1)),
    ("KiB/connection", |r| number(r.kib_per_connection, 1)),
    ("start ms", |r| number(r.start_ms, 0)),
    ("one more ms", |r| number(r.add_ms, 0)),
    ("p50 µs", |r| number(r.p50_us, 1)),
    ("ratio", |r| number(r.ratio, 3)),
];

fn milli(seconds: f64) -> f64 {
    seconds * 1e3
}

fn number(value: Option<f64>, digits: usize) -> Option<String> {
    value.map(|value| format!("{value:.digits$}"))
}

impl Run {
    /// The results in Markdown that is also read well as it is.
    pub(crate) fn tables(&self) -> String {
        let mut text =
            format!("{}. {} rounds of {} ms.", self.machine, self.rounds, self.milliseconds);
        for version in &self.versions {
            let _ = write!(text, " {version}.");
        }
        text.push('\n');
        let (speed, size): (Vec<_>, Vec<_>) = self.rows.iter().partition(|r| r.rate.is_some());
        text += &table(&SPEED, &speed);
        text += &table(&SIZE, &size);
        for skipped in &self.skipped {
            let _ = write!(text, "\nSkipped: {skipped}\n");
        }
        text
    }
}

fn table(columns: &[Column], rows: &[&Row]) -> String {
    if rows.is_empty() {
        return String::new();
    }
    let heads = columns.iter().map(|(head, _)| (*head).to_owned()).collect();
    let cells = |row: &&Row| -> Vec<String> {
        columns.iter().map(|(_, cell)| cell(row).unwrap_or_default()).collect()
    };
    let lines: Vec<Vec<String>> = std::iter::once(heads).chain(rows.iter().map(cells)).collect();
    let width = |column: usize| {
        lines.iter().map(|line| line[column].chars().count()).max().unwrap_or_default().max(3)
    };
    let widths: Vec<usize> = (0..columns.len()).map(width).collect();
    let mut text = "\n".to_owned();
    for (number, line) in lines.iter().enumerate() {
        for (column, (cell, width)) in line.iter().zip(&widths).enumerate() {
            // Words to the left, figures to the right.
            let _ = if column < 3 {
                write!(text, "| {cell:<width$} ")
            } else {
                write!(text, "| {cell:>width$} ")
            };
        }
        text += "|\n";
        if number == 0 {
            for (column, width) in widths.iter().enumerate() {
                let dashes = "-".repeat(*width);
                text += &if column < 3 { format!("| {dashes} ") } else { format!("| {dashes}:") };
            }
            text += "|\n";
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_has_the_fields_that_were_promised() {
        let row = Row { ratio: Some(0.97), ..Row::new("rtt-64", "name", "interceptor") };
        let json = serde_json::to_value(&row).expect("JSON");
        for field in [
            "scenario",
            "tier",
            "peer",
            "ratio",
            "spread",
            "cpu_proxy",
            "cpu_all",
            "p50_us",
            "p99_us",
        ] {
            assert!(json.get(field).is_some(), "{field}");
        }
        assert_eq!(json["ratio"], 0.97);
    }

    #[test]
    fn speed_and_size_have_a_table_each() {
        let rate = Some(5.0);
        let speed = Row { rate, rate_unit: Some("1/s"), ..Row::new("http-1", "http", "nginx") };
        let size = Row { rss_mib: Some(16.0), ..Row::new("idle-1000", "relay", "nginx") };
        let run = Run {
            machine: "a machine".into(),
            versions: vec!["nginx 1".into()],
            rounds: 7,
            milliseconds: 1000,
            skipped: vec!["envoy is not installed".into()],
            failures: vec![],
            rows: vec![speed, size],
        };
        let text = run.tables();
        assert_eq!(text.matches("| scenario").count(), 2, "{text}");
        assert!(text.contains("| 5 1/s |") && text.contains("16.0"), "{text}");
        assert!(text.contains("Skipped: envoy"), "{text}");
    }
}
