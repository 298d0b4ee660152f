//! YAML as a tree that remembers where everything stands, so that every mistake of a file can be
//! reported at once and in its place. Bounded against hostile input.

use std::collections::HashSet;
use std::fmt;
use std::hash::{DefaultHasher, Hash, Hasher};

use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_saphyr::Spanned;

/// Files above this size are refused.
pub(super) const MAX_FILE_BYTES: u64 = 50 * 1024 * 1024;

/// A value and where it starts.
#[derive(Debug, Clone)]
pub(super) struct Node {
    pub(super) at: At,
    pub(super) value: Value,
}

/// Line and column, both from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct At {
    pub(super) line: usize,
    pub(super) column: usize,
}

/// What YAML can hold.
#[derive(Debug, Clone)]
pub(super) enum Value {
    Null,
    Bool(bool),
    Int(i64),
    Float(f64),
    Text(String),
    List(Vec<Node>),
    Map(Vec<(Key, Node)>),
}

/// A mapping's key and where it stands.
#[derive(Debug, Clone)]
pub(super) struct Key {
    pub(super) at: At,
    pub(super) name: String,
}

impl Node {
    /// What the value is, in the words of a message.
    pub(super) fn kind(&self) -> &'static str {
        match self.value {
            Value::Null => "nothing",
            Value::Bool(_) => "true or false",
            Value::Int(_) | Value::Float(_) => "a number",
            Value::Text(_) => "text",
            Value::List(_) => "a list",
            Value::Map(_) => "a mapping",
        }
    }

    /// The value of `key`, if this is a mapping that has it.
    pub(super) fn get(&self, key: &str) -> Option<&Node> {
        match &self.value {
            Value::Map(entries) => entries.iter().find(|(k, _)| k.name == key).map(|(_, v)| v),
            _ => None,
        }
    }

    /// The items, if this is a list.
    pub(super) fn items(&self) -> Option<&[Node]> {
        match &self.value {
            Value::List(items) => Some(items),
            _ => None,
        }
    }

    /// The first key that a mapping in here has twice. The library does not take keys for the same that
    /// differ in their tags, nor would an error of ours amid its reading have a place.
    fn twice(&self) -> Option<&Key> {
        match &self.value {
            Value::List(items) => items.iter().find_map(Self::twice),
            Value::Map(entries) => {
                let mut seen = HashSet::new();
                entries.iter().find_map(|(key, value)| match seen.insert(key.name.as_str()) {
                    true => value.twice(),
                    false => Some(key),
                })
            }
            _ => None,
        }
    }

    /// A number that differs where the content does, wherever it stands.
    pub(super) fn digest(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        self.hash_into(&mut hasher);
        hasher.finish()
    }

    fn hash_into(&self, hasher: &mut DefaultHasher) {
        std::mem::discriminant(&self.value).hash(hasher);
        match &self.value {
            Value::Null => {}
            Value::Float(value) => value.to_bits().hash(hasher),
            Value::Bool(value) => value.hash(hasher),
            Value::Int(value) => value.hash(hasher),
            Value::Text(text) => text.hash(hasher),
            Value::List(items) => {
                items.len().hash(hasher);
                items.iter().for_each(|item| item.hash_into(hasher));
            }
            Value::Map(entries) => {
                entries.len().hash(hasher);
                for (key, value) in entries {
                    key.name.hash(hasher);
                    value.hash_into(hasher);
                }
            }
        }
    }

    /// The text of `key`, if this is a mapping that has it as text.
    pub(super) fn get_text(&self, key: &str) -> Option<&str> {
        match &self.get(key)?.value {
            Value::Text(text) => Some(text),
            _ => None,
        }
    }
}

/// Why a text is not YAML, and where.
#[derive(Debug)]
pub(super) struct BadYaml {
    pub(super) at: At,
    pub(super) message: String,
}

/// Whether a text can be read at all, as whatever.
pub fn is_readable(text: &str) -> bool {
    parse(text).is_ok()
}

/// Reads every document of `text`; empty ones are left out.
pub(super) fn parse(text: &str) -> Result<Vec<Node>, BadYaml> {
    let documents: Vec<Node> = read(text)?;
    match documents.iter().find_map(Node::twice) {
        Some(Key { at, name }) => {
            Err(BadYaml { at: *at, message: format!("{} is given twice", name.escape_debug()) })
        }
        None => Ok(documents),
    }
}

fn read(text: &str) -> Result<Vec<Node>, BadYaml> {
    serde_saphyr::from_multiple_with_options(text, options()).map_err(|error| {
        let error = error.without_snippet();
        let at = error.location().map_or(At::default(), |l| At::from(&l));
        let mut message = error.to_string();
        // The position is said by whoever shows the message; the library repeats it.
        for marker in [" at line ", " (line ", ", set DuplicateKeyPolicy", "\n"] {
            if let Some(cut) = message.find(marker) {
                message.truncate(cut);
            }
        }
        if ["budget breached", "alias replay"].iter().any(|limit| message.starts_with(limit)) {
            message =
                "more documents, nodes, anchors or aliases than a policy file may have".into();
        }
        BadYaml { at, message }
    })
}

/// Enough for tens of thousands of resources in [`MAX_FILE_BYTES`], while anchors and aliases, which
/// such files rarely have, stay narrow: an alias bomb ends within milliseconds.
fn options() -> serde_saphyr::Options {
    serde_saphyr::options! {
        strict_booleans: true,
        budget: serde_saphyr::budget! {
            max_events: 30_000_000,
            max_nodes: 20_000_000,
            max_documents: 1_000_000,
            max_recorded_anchor_events: 100_000,
        },
        alias_limits: serde_saphyr::alias_limits! {
            max_total_replayed_events: 100_000,
        },
    }
}

impl From<&serde_saphyr::Location> for At {
    fn from(location: &serde_saphyr::Location) -> Self {
        // Lossless on every platform this runs on; a saturated line still names the file.
        let narrow = |n: u64| usize::try_from(n).unwrap_or(usize::MAX);
        Self { line: narrow(location.line()), column: narrow(location.column()) }
    }
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let spanned = Spanned::<Value>::deserialize(deserializer)?;
        Ok(Self { at: At::from(&spanned.referenced), value: spanned.value })
    }
}

impl<'de> Deserialize<'de> for Key {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let spanned = Spanned::<String>::deserialize(deserializer)?;
        Ok(Self { at: At::from(&spanned.referenced), name: spanned.value })
    }
}

impl<'de> Deserialize<'de> for Value {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ValueVisitor)
    }
}

struct ValueVisitor;

impl<'de> Visitor<'de> for ValueVisitor {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a YAML value")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_none<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(Value::Int(value))
    }

    /// What is too large for any whole number is read as what it is about, so that its field can be
    /// named.
    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        #[expect(clippy::cast_precision_loss, reason = "no field takes it")]
        let about = Value::Float(value as f64);
        Ok(i64::try_from(value).map_or(about, Value::Int))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(Value::Float(value))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::Text(value.to_owned()))
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(Value::Text(value))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut list = Vec::new();
        while let Some(item) = items.next_element()? {
            list.push(item);
        }
        Ok(Value::List(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        let mut map = Vec::new();
        while let Some(entry) = entries.next_entry::<Key, Node>()? {
            map.push(entry);
        }
        Ok(Value::Map(map))
    }
}
