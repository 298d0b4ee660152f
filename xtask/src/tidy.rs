//! `cargo xtask tidy`: what no compiler checks.

mod documents;
mod threats;

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};

use crate::shell::{answer, command, root, say};

/// A Rust file above this is asked to be split; said, not forbidden.
const LINES: usize = 500;

pub(crate) fn run() -> Result<()> {
    let listed = answer(command("git").args(["ls-files", "-z"])).context("git lists no files")?;
    let (mut found, mut known) = (0, threats::Known::default());
    for name in listed.split('\0').filter(|name| !name.is_empty()) {
        // What isn't text, or was deleted since, has nothing to say.
        let Ok(text) = fs::read_to_string(root().join(name)) else { continue };
        if name.starts_with("tests/fuzz/corpus/") || name.starts_with("tests/fuzz/regressions/") {
            // Nobody wrote these.
            continue;
        }
        known.read(name, &text);
        for (number, line) in text.lines().enumerate() {
            if let Some(complaint) = complaint(line) {
                println!("{name}:{}: {complaint}", number + 1);
                found += 1;
            }
        }
        let lines = text.lines().count();
        if Path::new(name).extension().is_some_and(|extension| extension == "rs") && lines > LINES {
            say(format_args!("{name}: {lines} lines: is it still one job?"));
        }
    }
    let document = "docs/threats.md";
    let text = fs::read_to_string(root().join(document)).context(document)?;
    let threats = threats::complaints(&text, &known).into_iter();
    let threats = threats.map(|complaint| format!("{document}: {complaint}"));
    for complaint in documents::complaints()?.into_iter().chain(threats) {
        println!("{complaint}");
        found += 1;
    }
    if found > 0 {
        bail!("{found} lines to tidy");
    }
    println!("tidy");
    Ok(())
}

/// What is wrong with a line. The patterns are put together here, so that they don't find themselves.
fn complaint(line: &str) -> Option<&'static str> {
    let has = |parts: [&str; 2]| line.contains(&parts.concat());
    if has(["-----BEGIN", ""]) && has(["PRIVATE ", "KEY-----"]) {
        return Some("a private key");
    }
    if has(["FIX", "ME"]) || has(["XX", "X:"]) || has(["todo", "!("]) {
        return Some("unfinished; finish it, or file it as an issue");
    }
    if has(["#[ign", "ore"]) {
        return Some("a test that doesn't run; run it, or remove it");
    }
    let machine_path = [["/ho", "me/"], ["/ro", "ot/"], ["/wo", "rk/"], ["/Us", "ers/"]];
    // A path begins a word; `proxy/home/` is not one.
    let begins_word = |parts: [&str; 2]| {
        let path = parts.concat();
        line.match_indices(&path).any(|(at, _)| {
            !line[..at].ends_with(|c: char| c.is_alphanumeric() || "_-.~}/$".contains(c))
        })
    };
    machine_path.into_iter().any(begins_word).then_some("a path of one machine")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn complaints() {
        for (line, wrong) in [
            (["see /ho", "me/me/notes"], true),
            (["\"/ro", "ot/x\""], true),
            (["api/ro", "ot/x"], false),
            (["https://example.org/wo", "rk/"], false),
            (["-----BEGIN PRIVATE ", "KEY-----"], true),
            (["-----BEGIN CERTI", "FICATE-----"], false),
            (["// FIX", "ME later"], true),
            (["let plain = ", "1;"], false),
        ] {
            assert_eq!(complaint(&line.concat()).is_some(), wrong, "{line:?}");
        }
    }
}
