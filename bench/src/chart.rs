//! The ratios as a picture: a bar for each tier and peer, grouped by scenario.

use std::fmt::Write as _;

use crate::report::{Row, Run};
use crate::scenario::IN_ROUNDS;

const WIDTH: usize = 860;
/// Where bars begin.
const LEFT: usize = 190;
/// The length of a ratio of 1.
const ONE: f64 = 520.0;
const BAR: usize = 14;
const HEAD: usize = 58;
const GROUP: usize = 34;

/// A picture of all rows that have a rate.
pub(crate) fn svg(run: &Run) -> String {
    let mut body = String::new();
    let mut y = HEAD;
    for scenario in &IN_ROUNDS {
        let rows: Vec<&Row> = run
            .rows
            .iter()
            .filter(|row| row.scenario == scenario.id && row.rate.is_some() && row.tier != "direct")
            .collect();
        if rows.is_empty() {
            continue;
        }
        y += GROUP;
        // Writing to a String cannot fail.
        let _ = writeln!(
            body,
            "<text x=\"18\" y=\"{}\"><tspan class=\"bold\">{}</tspan> <tspan class=\"dim\">{}</tspan></text>",
            y - 8,
            scenario.id,
            scenario.what
        );
        for row in rows {
            bar(&mut body, row, y);
            y += BAR + 3;
        }
    }
    let height = y + 24;
    let mut svg = format!(
        r##"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" role="img" aria-label="Speed of each tier and peer as a ratio to no interception">
<style>
text {{ font: 12px ui-monospace, "DejaVu Sans Mono", Menlo, Consolas, monospace; fill: #d1d7e0 }}
.bold {{ fill: #ffffff; font-weight: bold }} .dim {{ fill: #949eaa }}
.interceptor {{ fill: #3fb950 }} .other {{ fill: #6e7681 }} line {{ stroke: #949eaa }} .spread {{ stroke: #ffffff; stroke-width: 2 }}
</style>
<rect width="100%" height="100%" rx="8" fill="#0d1117"/>
<text x="18" y="24" class="bold">Speed against no interception (1.0 is as fast; longer is better)</text>
<text x="18" y="42" class="dim">{}; white: the middle half of {} rounds</text>
"##,
        escaped(&run.machine),
        run.rounds
    );
    for tenth in (0..=10).step_by(2) {
        let x = LEFT as f64 + ONE * f64::from(tenth) / 10.0;
        let dashes = if tenth == 10 { "" } else { r#" stroke-dasharray="2 4" opacity="0.5""# };
        let _ = write!(
            svg,
            "<line x1=\"{x:.0}\" x2=\"{x:.0}\" y1=\"{HEAD}\" y2=\"{}\"{dashes}/>\n\
             <text x=\"{:.0}\" y=\"{}\" class=\"dim\">{:.1}</text>\n",
            height - 22,
            x - 9.0,
            height - 8,
            f64::from(tenth) / 10.0
        );
    }
    svg + &body + "</svg>\n"
}

fn bar(body: &mut String, row: &Row, y: usize) {
    let (Some(ratio), Some(spread)) = (row.ratio, row.spread) else { return };
    let ours = row.peer == "interceptor";
    let class = if ours { "interceptor" } else { "other" };
    let name = if ours { format!("interceptor, {}", row.tier) } else { row.peer.to_owned() };
    // Beyond the picture's edge is still only "faster".
    let length = (ratio * ONE).clamp(1.0, (WIDTH - LEFT - 70) as f64);
    let (text, middle) = (y + BAR - 3, y + BAR / 2);
    let half = spread * ONE / 2.0;
    let end = LEFT as f64 + length;
    // The figure stays in the picture.
    let reach = (end + half).min((WIDTH - 54) as f64);
    let _ = write!(
        body,
        "<text x=\"34\" y=\"{text}\">{name}</text>\n\
         <rect x=\"{LEFT}\" y=\"{y}\" width=\"{length:.1}\" height=\"{BAR}\" class=\"{class}\"/>\n\
         <line x1=\"{:.1}\" x2=\"{:.1}\" y1=\"{middle}\" y2=\"{middle}\" class=\"spread\"/>\n\
         <text x=\"{:.0}\" y=\"{text}\">{ratio:.2}</text>\n",
        end - half,
        reach,
        reach + 6.0
    );
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bars_are_as_long_as_their_ratios() {
        let row = |peer, ratio| Row {
            ratio: Some(ratio),
            spread: Some(0.1),
            rate: Some(1.0),
            ..Row::new("http-64", "http", peer)
        };
        let run = Run {
            machine: "a <machine>".into(),
            versions: vec![],
            rounds: 7,
            milliseconds: 1,
            skipped: vec![],
            failures: vec![],
            rows: vec![row("interceptor", 0.5), row("envoy", 0.25)],
        };
        let far = Run { rows: vec![row("nginx", 9.0)], ..run.clone() };
        assert!(super::svg(&far).contains(&format!("x=\"{}\" y=", WIDTH - 48)));
        let svg = svg(&run);
        assert!(svg.contains(r#"width="260.0" height="14" class="interceptor""#), "{svg}");
        assert!(svg.contains(r#"width="130.0" height="14" class="other""#), "{svg}");
        assert!(svg.contains("a &lt;machine&gt;") && !svg.contains("bulk-1"), "{svg}");
    }
}
