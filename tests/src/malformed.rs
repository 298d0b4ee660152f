//! Documents that a policy file may hold by mistake or by malice: the resources of the validation
//! scenarios, each broken in every way listed here. Always the same ones, in the same order (T-61).
//!
//! Pure text; the unit tests of `policy` read this very file too.

use std::fs;
use std::path::Path;

/// A broken document.
#[derive(Debug, Clone)]
pub struct Malformed {
    /// The resource that it was made of, and how it was broken.
    pub what: String,
    /// What the file holds.
    pub bytes: Vec<u8>,
    /// Whether no reading of it is policy: a set with it must be refused whole. The others may
    /// have stayed valid, or be rejected alone.
    pub hopeless: bool,
}

/// Spoils a document.
type Fault = fn(&str) -> Vec<u8>;

/// How a resource is broken so that nothing can be made of it.
const HOPELESS: [(&str, Fault); 21] = [
    ("an unclosed list", |text| bytes([text, "\nmore: [a, b"])),
    ("an unclosed mapping", |text| bytes([text, "\nmore: {a: b"])),
    ("an unclosed quote", |text| bytes([text, "\nmore: \"a"])),
    ("a stray bracket", |text| bytes([text, "\n]"])),
    ("tabs as indentation", |text| text.replace("\n  ", "\n\t").into()),
    ("a line out of line", |text| bytes([text, "\n   out: of line\n"])),
    ("a field twice", |text| bytes([text, "\nkind: ServiceEntry\n"])),
    ("spec twice", |text| bytes([text, "\nspec: {}\n"])),
    ("an unknown field", |text| bytes([text, "\nnonsense: 1\n"])),
    ("an unknown kind", |text| text.replacen("kind: ", "kind: Un", 1).into()),
    ("no kind", |text| text.replacen("\nkind: ", "\nkindly: ", 1).into()),
    ("a version that never was", |text| text.replacen("/v1", "/v99", 1).into()),
    ("a number for a spec", |text| bytes([before_spec(text), "spec: 5\n"])),
    ("a list for a spec", |text| bytes([before_spec(text), "spec: [a, b]\n"])),
    ("text for metadata", |text| text.replacen("\nmetadata:\n", "\nmetadata: x\nwas:\n", 1).into()),
    ("a list around it", |text| bytes(["- a\n- b\n---\n", text])),
    ("a bare word beside it", |text| bytes([text, "\n---\njust words\n"])),
    ("an alias of nothing", |text| bytes([text, "\nmore: *nowhere\n"])),
    ("an anchor in itself", |text| bytes([text, "\nmore: &a [*a]\n"])),
    ("a NUL", |text| bytes([text, "\nmore: \"a\0b\"\n\0"])),
    ("bytes that are not UTF-8", |text| [text.as_bytes(), b"\n# \xff\xfe\xc3\x28\n"].concat()),
];

/// How a resource is broken so that something may still be made of it.
const DOUBTFUL: [(&str, Fault); 9] = [
    ("a huge number", |text| numbers(text, "99999999999999999999999999999999")),
    ("a huge float", |text| numbers(text, "1e400")),
    ("not a number", |text| numbers(text, ".nan")),
    ("a number below zero", |text| numbers(text, "-1")),
    ("lists for values", |text| values(text, "[[[[]]]]")),
    ("mappings for values", |text| values(text, "{a: {b: {}}}")),
    ("nothing for values", |text| values(text, "")),
    ("one blank less", |text| text.replace("\n  ", "\n ").into()),
    ("it twice", |text| bytes([text, "\n---\n", text])),
];

/// In how many places each resource is cut off.
const CUTS: usize = 4;

/// Every broken document that `scenarios`, a directory, gives.
///
/// # Panics
/// When there are no such files: a test must not pass by testing nothing.
#[must_use]
pub fn documents(scenarios: &Path) -> Vec<Malformed> {
    let mut found = Vec::new();
    let mut number = Numbers(0x9e37_79b9_7f4a_7c15);
    for (index, (name, text)) in resources(scenarios).into_iter().enumerate() {
        let mut add = |how: &str, bytes: Vec<u8>, hopeless: bool| {
            // A break that does not apply here leaves the resource as it was.
            if bytes != text.as_bytes() {
                found.push(Malformed { what: format!("{name}: {how}"), bytes, hopeless });
            }
        };
        for (how, broken) in HOPELESS {
            add(how, broken(&text), true);
        }
        for (how, broken) in DOUBTFUL {
            add(how, broken(&text), false);
        }
        // What it costs to refuse one is the same for all.
        if index % 20 == 0 {
            add("an alias bomb", bytes([&text, &bomb()]), true);
        }
        for _ in 0..CUTS {
            let cut = number.below(text.len());
            add(&format!("cut off at byte {cut}"), text.as_bytes()[..cut].to_vec(), false);
            let at = number.below(text.len());
            let mut flipped = text.clone().into_bytes();
            flipped[at] ^= 1 << number.below(8);
            add(&format!("a bit of byte {at} flipped"), flipped, false);
        }
    }
    for (what, text) in [
        ("a number", "5"),
        ("a list of lists", "[[[[[[]]]]]]"),
        ("only a tag", "!!binary"),
        ("an unknown directive", "%NONSENSE 1\n---\na: b\n"),
        ("no colon", "kind ServiceEntry\n"),
        ("JSON cut off", "{\"kind\": \"ServiceEntry\", \"spec\": {"),
    ] {
        let bytes = text.as_bytes().to_vec();
        found.push(Malformed { what: what.to_owned(), bytes, hopeless: true });
    }
    let deep = "[".repeat(100_000).into_bytes();
    found.push(Malformed { what: "very deep lists".to_owned(), bytes: deep, hopeless: true });
    found
}

/// The resources of all `validation-*.yaml`, each as a file of its own would have it.
fn resources(scenarios: &Path) -> Vec<(String, String)> {
    let listed = fs::read_dir(scenarios).expect("the scenarios");
    let mut files: Vec<_> = listed.map(|file| file.expect("a file").path()).collect();
    files.retain(|file| {
        let name = file.file_name().unwrap_or_default().to_string_lossy();
        name.starts_with("validation-") && name.ends_with(".yaml")
    });
    files.sort();
    let found: Vec<_> = files.iter().flat_map(|file| resources_of(file)).collect();
    assert!(found.len() > 50, "{} resources in {}", found.len(), scenarios.display());
    found
}

/// What stands below `resources:`, by the indentation that all scenario files have.
fn resources_of(file: &Path) -> Vec<(String, String)> {
    const ITEM: &str = "      - ";
    const INSIDE: &str = "        ";
    let text = fs::read_to_string(file).expect("a scenario file");
    let mut found: Vec<(String, String)> = Vec::new();
    let (mut case, mut inside) = ("", false);
    for line in text.lines() {
        if let Some(id) = line.strip_prefix("  - id: ") {
            (case, inside) = (id, false);
        } else if line == "    resources:" {
            inside = true;
        } else if inside && let Some(first) = line.strip_prefix(ITEM) {
            found.push((case.to_owned(), format!("{first}\n")));
        } else if inside
            && let Some(more) = line.strip_prefix(INSIDE)
            && let Some((_, resource)) = found.last_mut()
        {
            resource.push_str(more);
            resource.push('\n');
        } else {
            inside = false;
        }
    }
    found
}

fn bytes<const N: usize>(parts: [&str; N]) -> Vec<u8> {
    parts.concat().into_bytes()
}

/// Everything that stands before `spec`.
fn before_spec(text: &str) -> &str {
    text.find("spec:").map_or(text, |at| &text[..at])
}

/// A few lines that stand for millions of nodes.
fn bomb() -> String {
    let mut text = "\na: &a0 [x, x, x, x, x, x, x, x, x]\n".to_owned();
    for level in 1..=9 {
        let one = format!("*a{}, ", level - 1);
        text.push_str(&format!("b{level}: &a{level} [{}]\n", one.repeat(9)));
    }
    text
}

/// Every number in place of the one that stands there.
fn numbers(text: &str, new: &str) -> Vec<u8> {
    with_values(text, |old| old.bytes().all(|byte| byte.is_ascii_digit()).then_some(new))
}

/// Every value of `spec` in place of the one that stands there.
fn values(text: &str, new: &str) -> Vec<u8> {
    let head = before_spec(text);
    let mut broken = head.as_bytes().to_vec();
    broken.extend(with_values(&text[head.len()..], |_| Some(new)));
    broken
}

fn with_values<'t>(text: &'t str, new: impl Fn(&'t str) -> Option<&'t str>) -> Vec<u8> {
    let mut broken = String::new();
    for line in text.lines() {
        let value = line.split_once(": ").filter(|(_, value)| !value.is_empty());
        match value.and_then(|(key, old)| Some((key, new(old)?))) {
            Some((key, value)) => broken.push_str(&format!("{key}: {value}\n")),
            None => broken.push_str(&format!("{line}\n")),
        }
    }
    broken.into()
}

/// Numbers that look random and are the same each time (xorshift64).
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 % limit.max(1) as u64).unwrap_or(0)
    }
}
