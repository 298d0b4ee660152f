//! Reading a tree field by field: every wrong type and every unknown field becomes a notice with
//! place and path, and reading goes on.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use super::node::{At, Key, Node, Value};
use super::notice::{Notice, Place};

/// The document that is being read.
#[derive(Debug, Clone)]
pub(super) struct Context {
    pub(super) file: Arc<Path>,
    pub(super) document: usize,
    /// `ServiceEntry default/google`.
    pub(super) resource: Option<Arc<str>>,
    /// Added to positions of a document that stands inside another one's text.
    pub(super) shift: At,
}

impl Context {
    pub(super) fn place(&self, at: At) -> Place {
        Place {
            file: self.file.to_path_buf(),
            line: at.line + self.shift.line,
            column: at.column + self.shift.column,
            document: self.document,
        }
    }

    pub(super) fn notice(&self, at: At, path: &str, message: impl Into<String>) -> Notice {
        Notice {
            place: self.place(at),
            resource: self.resource.as_deref().map(str::to_owned),
            path: path.to_owned(),
            message: message.into(),
        }
    }
}

/// What reading and checking found.
#[derive(Debug, Default)]
pub(super) struct Findings {
    /// The set cannot be used.
    pub(super) errors: Vec<Notice>,
    /// The resource is left out.
    pub(super) rejected: Vec<Notice>,
    /// Accepted, with something to say.
    pub(super) warnings: Vec<Notice>,
}

/// A value with the place and path that messages about it name.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Located<T> {
    pub(super) value: T,
    pub(super) at: At,
    pub(super) path: String,
}

impl<T> Located<T> {
    pub(super) fn map<U>(self, f: impl FnOnce(T) -> U) -> Located<U> {
        Located { value: f(self.value), at: self.at, path: self.path }
    }
}

/// The fields of one mapping, taken one by one; what is left over at the end is unknown.
pub(super) struct Fields<'n> {
    at: At,
    path: String,
    left: Vec<(&'n Key, &'n Node)>,
}

impl<'n> Fields<'n> {
    /// Starts reading `node`, which must be a mapping (`null` reads as an empty one).
    pub(super) fn of(
        node: &'n Node,
        path: impl Into<String>,
        context: &Context,
        findings: &mut Findings,
    ) -> Self {
        let path = path.into();
        let left = match &node.value {
            Value::Map(entries) => entries.iter().map(|(k, v)| (k, v)).collect(),
            Value::Null => Vec::new(),
            _ => {
                let message = format!("expected a mapping, found {}", node.kind());
                findings.errors.push(context.notice(node.at, &path, message));
                Vec::new()
            }
        };
        Self { at: node.at, path, left }
    }

    /// A mapping without fields, standing for one that is missing.
    pub(super) fn empty(path: &str, at: At) -> Self {
        Self { at, path: path.to_owned(), left: Vec::new() }
    }

    /// Whether the field is there and not yet taken.
    pub(super) fn has(&self, field: &str) -> bool {
        self.left.iter().any(|(key, _)| key.name == field)
    }

    pub(super) fn at(&self) -> At {
        self.at
    }

    pub(super) fn path_of(&self, field: &str) -> String {
        if self.path.is_empty() { field.to_owned() } else { format!("{}.{field}", self.path) }
    }

    /// Takes a field as it stands; `null` counts as absent.
    pub(super) fn take(&mut self, field: &str) -> Option<Located<&'n Node>> {
        let node = self.take_present(field)?;
        (!matches!(node.value.value, Value::Null)).then_some(node)
    }

    /// Takes a field as it stands, `null` included.
    pub(super) fn take_present(&mut self, field: &str) -> Option<Located<&'n Node>> {
        let index = self.left.iter().position(|(key, _)| key.name == field)?;
        let (_, node) = self.left.swap_remove(index);
        Some(Located { value: node, at: node.at, path: self.path_of(field) })
    }

    pub(super) fn text(
        &mut self,
        field: &str,
        context: &Context,
        findings: &mut Findings,
    ) -> Option<Located<String>> {
        self.take(field).and_then(|node| text(node, context, findings))
    }

    pub(super) fn boolean(
        &mut self,
        field: &str,
        context: &Context,
        findings: &mut Findings,
    ) -> Option<Located<bool>> {
        let node = self.take(field)?;
        match node.value.value {
            Value::Bool(value) => Some(node.map(|_| value)),
            _ => wrong(&node, "true or false", context, findings),
        }
    }

    pub(super) fn int(
        &mut self,
        field: &str,
        context: &Context,
        findings: &mut Findings,
    ) -> Option<Located<i64>> {
        self.take(field).and_then(|node| int(node, context, findings))
    }

    /// A number, whole or not.
    pub(super) fn number(
        &mut self,
        field: &str,
        context: &Context,
        findings: &mut Findings,
    ) -> Option<Located<f64>> {
        let node = self.take(field)?;
        match node.value.value {
            Value::Float(value) => Some(node.map(|_| value)),
            // Where precision is lost, the value is far outside of what any field takes.
            #[expect(clippy::cast_precision_loss, reason = "see above")]
            Value::Int(value) => Some(node.map(|_| value as f64)),
            _ => wrong(&node, "a number", context, findings),
        }
    }

    pub(super) fn list(
        &mut self,
        field: &str,
        context: &Context,
        findings: &mut Findings,
    ) -> Vec<Located<&'n Node>> {
        let Some(node) = self.take(field) else { return Vec::new() };
        let Value::List(items) = &node.value.value else {
            wrong::<()>(&node, "a list", context, findings);
            return Vec::new();
        };
        let item = |(i, n): (usize, &'n Node)| Located {
            value: n,
            at: n.at,
            path: format!("{}[{i}]", node.path),
        };
        items.iter().enumerate().map(item).collect()
    }

    pub(super) fn texts(
        &mut self,
        field: &str,
        context: &Context,
        findings: &mut Findings,
    ) -> Vec<Located<String>> {
        let items = self.list(field, context, findings);
        items.into_iter().filter_map(|item| text(item, context, findings)).collect()
    }

    /// A mapping of names to values, each with its place.
    pub(super) fn entries(
        &mut self,
        field: &str,
        context: &Context,
        findings: &mut Findings,
    ) -> Option<Vec<(String, Located<&'n Node>)>> {
        let node = self.take(field)?;
        let Value::Map(entries) = &node.value.value else {
            return wrong(&node, "a mapping", context, findings);
        };
        let entry = |(k, v): &'n (Key, Node)| {
            (
                k.name.clone(),
                Located { value: v, at: k.at, path: format!("{}.{}", node.path, k.name) },
            )
        };
        Some(entries.iter().map(entry).collect())
    }

    /// A duration as Istio writes it: `5s`, `100ms`, `1m30s`, `0s`.
    pub(super) fn duration(
        &mut self,
        field: &str,
        context: &Context,
        findings: &mut Findings,
    ) -> Option<Located<Duration>> {
        let text = self.text(field, context, findings)?;
        match parse_duration(&text.value) {
            Some(value) => Some(text.map(|_| value)),
            None => {
                let message =
                    format!("\"{}\" is not a duration; write it like 5s or 100ms", text.value);
                findings.errors.push(context.notice(text.at, &text.path, message));
                None
            }
        }
    }

    /// The fields that nobody took.
    pub(super) fn rest(&mut self) -> Vec<(&'n Key, &'n Node)> {
        std::mem::take(&mut self.left)
    }

    /// Reports every field that nobody took.
    pub(super) fn finish(self, context: &Context, findings: &mut Findings) {
        for (key, _) in &self.left {
            let path = self.path_of(&key.name);
            findings.errors.push(context.notice(key.at, &path, "unknown field"));
        }
    }
}

pub(super) fn text(
    node: Located<&Node>,
    context: &Context,
    findings: &mut Findings,
) -> Option<Located<String>> {
    match &node.value.value {
        Value::Text(text) => {
            let text = text.clone();
            Some(node.map(|_| text))
        }
        _ => wrong(&node, "text (put it in quotes)", context, findings),
    }
}

pub(super) fn int(
    node: Located<&Node>,
    context: &Context,
    findings: &mut Findings,
) -> Option<Located<i64>> {
    match node.value.value {
        Value::Int(value) => Some(node.map(|_| value)),
        _ => wrong(&node, "a whole number", context, findings),
    }
}

fn wrong<T>(
    node: &Located<&Node>,
    wanted: &str,
    context: &Context,
    findings: &mut Findings,
) -> Option<T> {
    let message = format!("expected {wanted}, found {}", node.value.kind());
    findings.errors.push(context.notice(node.at, &node.path, message));
    None
}

/// Reads Go's duration syntax without signs; `None` where it is anything else or overflows.
pub(super) fn parse_duration(text: &str) -> Option<Duration> {
    if text == "0" {
        return Some(Duration::ZERO);
    }
    let mut rest = text;
    let mut total = Duration::ZERO;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let (number, tail) = rest.split_at(digits);
        let unit_end = tail.find(|c: char| c.is_ascii_digit()).unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(unit_end);
        let seconds = match unit {
            "h" => 3600.0,
            "m" => 60.0,
            "s" => 1.0,
            "ms" => 1e-3,
            "us" | "µs" => 1e-6,
            "ns" => 1e-9,
            _ => return None,
        };
        let number: f64 = number.parse().ok()?;
        total = total.checked_add(Duration::try_from_secs_f64(number * seconds).ok()?)?;
        rest = tail;
    }
    (!text.is_empty()).then_some(total)
}
