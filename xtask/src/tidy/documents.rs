//! Whether the documents still say what the code does, where a text search can tell.

use std::fs;

use anyhow::{Context, Result};

use crate::shell::root;

/// What is missing from the documents, or wrong in them.
pub(super) fn complaints() -> Result<Vec<String>> {
    let mut found = Vec::new();
    let decision = read("interceptor/src/decide/decision.rs")?;
    let common = read("interceptor-common/src/lib.rs")?;
    let finding = read("interceptor-common/src/finding.rs")?;
    for (what, names, document) in [
        ("reason", quoted(&decision, "pub fn label", "\n    }\n"), "docs/access-log.md"),
        ("finding", quoted(&finding, "\nfindings! {", "\n}"), "docs/access-log.md"),
        ("map", quoted(&common, "pub mod maps", "/// Every pinned map"), "ARCHITECTURE.md"),
    ] {
        let text = read(document)?;
        if names.is_empty() {
            found.push(format!("{document}: no {what} was found in the source to compare with"));
        }
        let missing = names.iter().filter(|name| !text.contains(&format!("`{name}`")));
        found.extend(missing.map(|name| format!("{document}: the {what} `{name}` is missing")));
    }
    let limits = "docs/limits.md";
    for (number, row) in read(limits)?.lines().enumerate() {
        let Some((name, value, file)) = limit(row) else { continue };
        let source = read(file)?;
        if !source.lines().any(|line| defines(line, name, value)) {
            let number = number + 1;
            found.push(format!("{limits}:{number}: {file} has no constant {name} = {value}"));
        }
    }
    Ok(found)
}

fn read(name: &str) -> Result<String> {
    fs::read_to_string(root().join(name)).with_context(|| name.to_owned())
}

/// What stands in double quotes between two marks.
fn quoted<'t>(text: &'t str, from: &str, to: &str) -> Vec<&'t str> {
    let part = text.split_once(from).map_or("", |(_, rest)| rest);
    let part = part.split_once(to).map_or(part, |(part, _)| part);
    part.split('"').skip(1).step_by(2).collect()
}

/// Constant, value and file of a row of a table: ``| `NAME` | `value` | `file` | …``.
fn limit(row: &str) -> Option<(&str, &str, &str)> {
    let mut cells = row.strip_prefix("| `")?.split('|').map(|cell| cell.trim().trim_matches('`'));
    Some((cells.next()?, cells.next()?, cells.next()?))
}

/// Is this line `const NAME: … = value;`?
fn defines(line: &str, name: &str, value: &str) -> bool {
    let Some((_, definition)) = line.split_once("const ") else { return false };
    definition.split_once(": ").is_some_and(|(defined, rest)| {
        defined == name && rest.split_once(" = ").is_some_and(|(_, is)| is == format!("{value};"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_found_between_the_marks_only() {
        let text = "\"no\" from \"a\", x => \"b\" to \"no\"";
        assert_eq!(quoted(text, "from", "to"), ["a", "b"]);
        assert!(quoted(text, "elsewhere", "to").is_empty());
    }

    #[test]
    fn a_limit_is_compared_with_its_constant() {
        let row = limit("| `MAX` | `64 * 1024` | `a/b.rs` | bytes |").expect("a row");
        assert_eq!(row, ("MAX", "64 * 1024", "a/b.rs"));
        assert_eq!(limit("| constant | value |"), None);
        assert!(defines("pub(super) const MAX: usize = 64 * 1024;", row.0, row.1));
        assert!(!defines("const MAX: usize = 32 * 1024;", row.0, row.1));
        assert!(!defines("const MAX_MORE: usize = 64 * 1024;", row.0, row.1));
    }
}
