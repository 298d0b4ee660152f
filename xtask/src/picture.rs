//! `cargo xtask picture`: docs/walkthrough.svg, drawn from a real run of the walkthrough.

use std::fmt::Write as _;
use std::process::Stdio;
use std::{fs, iter};

use anyhow::{Context, Result, bail};

use crate::build::{self, Package, Profile};
use crate::install::Install;
use crate::shell::{as_root, root, say};
use crate::toolchain;

/// Play the walkthrough, and redraw the README's picture from what it printed
#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    install: Install,
}

/// What is shown, by how its paragraph's heading begins; the whole would be too long to read.
const SHOWN: [&str; 3] = ["Step 6", "Step 7 · The same", "  step rule"];
/// Columns of the picture's terminal; what is longer goes on in the next line.
const COLUMNS: usize = 112;
/// In the font's size of 13 pixels.
const CHARACTER_WIDTH: f32 = 7.85;
const LINE_HEIGHT: usize = 17;
const MARGIN: usize = 18;
const TITLE_HEIGHT: usize = 34;

pub(crate) fn run(args: &Args) -> Result<()> {
    let profile = Profile::new(false);
    build::kernel_side(&toolchain::set_up(&args.install)?)?;
    build::user_space(profile, &[Package::Interceptor, Package::Walkthrough])?;
    let program = profile.binary("interceptor-walkthrough");
    let mut walkthrough = as_root(program, "make network namespaces and attach BPF programs")?;
    walkthrough.args(["--color", "always", "--interceptor"]).arg(profile.binary("interceptor"));
    let output = walkthrough.stderr(Stdio::inherit()).output().context("the walkthrough")?;
    if !output.status.success() {
        eprint!("{}", String::from_utf8_lossy(&output.stdout));
        bail!("not every step of the walkthrough holds: that is no picture to show");
    }
    let picture = root().join("docs/walkthrough.svg");
    let text = String::from_utf8(output.stdout).context("the walkthrough's output")?;
    fs::write(&picture, svg(&text)).with_context(|| picture.display().to_string())?;
    say(format_args!("drew docs/walkthrough.svg"));
    Ok(())
}

/// One character and the style sheet's class for it.
type Cell = (char, &'static str);

/// A terminal with what is [`SHOWN`] of `text`.
fn svg(text: &str) -> String {
    let lines: Vec<Vec<Cell>> =
        cells(text).iter().filter(shown()).flat_map(|line| wrap(line)).collect();
    let width = (COLUMNS as f32 * CHARACTER_WIDTH) as usize + 2 * MARGIN;
    let height = TITLE_HEIGHT + (lines.len() + 1) * LINE_HEIGHT + MARGIN;
    let mut svg = format!(
        r##"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="img" aria-label="The walkthrough: commands, results, access-log lines, and a table in which every step holds">
<style>
text {{ font: 13px ui-monospace, "DejaVu Sans Mono", Menlo, Consolas, monospace; fill: #d1d7e0; white-space: pre }}
.bold {{ fill: #ffffff; font-weight: bold }} .dim {{ fill: #949eaa }} .green {{ fill: #3fb950 }} .red {{ fill: #ff7b72 }} .cyan {{ fill: #79c0ff }}
</style>
<rect width="100%" height="100%" rx="8" fill="#0d1117"/>
<circle cx="20" cy="17" r="5" fill="#ff5f57"/><circle cx="38" cy="17" r="5" fill="#febc2e"/><circle cx="56" cy="17" r="5" fill="#28c840"/>
<text x="76" y="21" class="dim">cargo xtask run (parts of its output)</text>
"##
    );
    for (row, line) in (1..).zip(&lines) {
        let y = TITLE_HEIGHT + row * LINE_HEIGHT;
        // Writing to a String cannot fail.
        let _ = write!(svg, r#"<text x="{MARGIN}" y="{y}" xml:space="preserve">"#);
        for run in line.chunk_by(|a, b| a.1 == b.1) {
            let text: String = run.iter().map(|(c, _)| escaped(*c)).collect();
            let _ = write!(svg, r#"<tspan class="{}">{text}</tspan>"#, run[0].1);
        }
        svg.push_str("</text>\n");
    }
    svg.push_str("</svg>\n");
    svg
}

/// Tells line by line whether it belongs to a paragraph that is shown.
fn shown() -> impl FnMut(&&Vec<Cell>) -> bool {
    let mut within = false;
    move |line| {
        if line.first().is_some_and(|cell| cell.1 == "bold") {
            let text: String = line.iter().map(|cell| cell.0).collect();
            within = SHOWN.iter().any(|heading| text.starts_with(heading));
        }
        within
    }
}

/// Takes the colours that the walkthrough uses out of the text and into the cells.
fn cells(text: &str) -> Vec<Vec<Cell>> {
    let line = |line: &str| {
        let mut class = "plain";
        let mut cells = Vec::new();
        for (n, part) in line.split("\x1b[").enumerate() {
            let rest = match (n, part.split_once('m')) {
                (1.., Some((code, rest))) => {
                    class = match code {
                        "1" => "bold",
                        "2" => "dim",
                        "31" => "red",
                        "32" => "green",
                        "36" => "cyan",
                        _ => "plain",
                    };
                    rest
                }
                _ => part,
            };
            cells.extend(rest.chars().map(|c| (c, class)));
        }
        cells
    };
    text.lines().map(line).collect()
}

/// Cuts a line at spaces into lines of at most [`COLUMNS`].
fn wrap(mut line: &[Cell]) -> Vec<Vec<Cell>> {
    const INDENT: usize = 6;
    let mut wrapped = Vec::new();
    let mut indent = 0;
    while indent + line.len() > COLUMNS {
        let room = COLUMNS - indent;
        let space = line[..room].iter().rposition(|cell| cell.0 == ' ').filter(|at| *at > INDENT);
        let (head, tail) = line.split_at(space.map_or(room, |at| at + 1));
        wrapped.push(indented(indent, head));
        (line, indent) = (tail, INDENT);
    }
    wrapped.push(indented(indent, line));
    wrapped
}

fn indented(indent: usize, line: &[Cell]) -> Vec<Cell> {
    iter::repeat_n((' ', "plain"), indent).chain(line.iter().copied()).collect()
}

fn escaped(c: char) -> String {
    match c {
        '&' => "&amp;".into(),
        '<' => "&lt;".into(),
        '>' => "&gt;".into(),
        c => c.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shown_paragraphs_become_escaped_coloured_text() {
        let svg = svg(
            "\x1b[1mStep 3 · no\x1b[0m\n  hidden\n\x1b[1mStep 6 · yes\x1b[0m\n  \x1b[32m✓\x1b[0m a<b",
        );
        assert!(svg.contains(r#"<tspan class="bold">Step 6 · yes</tspan>"#), "{svg}");
        assert!(
            svg.contains(r#"<tspan class="green">✓</tspan><tspan class="plain"> a&lt;b"#),
            "{svg}"
        );
        assert!(!svg.contains("hidden") && !svg.contains('\x1b'), "{svg}");
    }

    #[test]
    fn long_lines_go_on_indented_and_lose_nothing() {
        let words = "word ".repeat(60);
        let lines = wrap(&cells(&words)[0]);
        assert!(lines.len() > 1 && lines.iter().all(|line| line.len() <= COLUMNS));
        let text = |line: &Vec<Cell>| line.iter().map(|cell| cell.0).collect::<String>();
        assert!(lines[1..].iter().all(|line| text(line).starts_with("      word")));
        let joined: String = lines.iter().map(|line| text(line).trim_start().to_owned()).collect();
        assert_eq!(joined, words);
    }
}
