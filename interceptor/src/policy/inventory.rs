//! What a set of files put in force, resource by resource: what a reload changes, and the version
//! that a resource falls back to when its next one is invalid (T-61).

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::path::Path;
use std::sync::Arc;

use super::fields::Context;
use super::node::{Node, parse};
use super::parts::{self, Known, Piece};

/// The resources in force, by name (`ServiceEntry default/google`).
#[derive(Debug, Clone, Default)]
pub struct Inventory {
    resources: BTreeMap<Arc<str>, Kept>,
    /// What the next load need not read again.
    known: Arc<Known>,
}

/// Where a resource's version in force stands.
#[derive(Clone)]
struct Kept {
    /// Differs where the content does.
    digest: u64,
    file: Arc<Path>,
    /// The whole file's text, shared by its resources.
    text: Arc<str>,
}

impl fmt::Debug for Kept {
    /// Without the text, which may hold secrets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x} of {}", self.digest, self.file.display())
    }
}

/// A resource that was read.
#[derive(Debug)]
pub(super) struct Seen {
    pub(super) id: Arc<str>,
    pub(super) digest: u64,
    pub(super) file: Arc<Path>,
}

/// Documents to take in place of what the files hold now, by resource.
pub(super) type Substitutes = HashMap<Arc<str>, (Arc<Node>, Context)>;

impl Inventory {
    /// The resources that `seen` lists, without those that `is_out` names.
    pub(super) fn of(
        seen: Vec<Seen>,
        texts: &HashMap<Arc<Path>, Arc<str>>,
        is_out: impl Fn(&str) -> bool,
    ) -> Self {
        let mut resources = BTreeMap::new();
        for Seen { id, digest, file } in seen {
            if let Some(text) = texts.get(&file)
                && !is_out(&id)
            {
                resources.insert(id, Kept { digest, file, text: Arc::clone(text) });
            }
        }
        Self { resources, known: Arc::default() }
    }

    /// The same, with what the next load need not read again.
    pub(super) fn with_known(self, known: Known) -> Self {
        Self { known: Arc::new(known), ..self }
    }

    pub(super) fn known(&self) -> Arc<Known> {
        Arc::clone(&self.known)
    }

    /// Whether nothing is in force.
    pub fn is_empty(&self) -> bool {
        self.resources.is_empty()
    }

    /// Whether some version of a resource is in force.
    pub fn has(&self, id: &str) -> bool {
        self.resources.contains_key(id)
    }

    /// The documents of those of `ids` that this inventory has.
    pub(super) fn documents<'a>(&self, ids: impl Iterator<Item = &'a str>) -> Substitutes {
        let mut found = Substitutes::new();
        for id in ids {
            let Some((id, kept)) = self.resources.get_key_value(id) else { continue };
            // It parsed when it was put in force.
            let nodes = parse(&kept.text).unwrap_or_default();
            for (index, node) in nodes.into_iter().enumerate() {
                if let Some(node) = find(node, id) {
                    let context = Context::new(&kept.file, index + 1);
                    found.insert(Arc::clone(id), (Arc::new(node), context));
                }
            }
        }
        found
    }

    /// The text of a resource's document, without the marker before it.
    pub fn text_of(&self, id: &str) -> Option<String> {
        let kept = self.resources.get(id)?;
        let name = id.rsplit_once('/').map_or(id, |(_, name)| name);
        let is_it = |piece: &&Piece<'_>| {
            // A name may be written otherwise than it reads, but no API server does.
            piece.text.contains(name)
                && parse(piece.text)
                    .unwrap_or_default()
                    .iter()
                    .any(|node| identity(node).as_deref() == Some(id))
        };
        let pieces = parts::cut(&kept.text);
        let text = pieces.iter().find(is_it)?.text;
        Some(text.strip_prefix("---").unwrap_or(text).trim().to_owned())
    }

    /// What the next load need not read again, and nothing to fall back to.
    pub fn without_resources(&self) -> Self {
        Self { resources: BTreeMap::new(), known: Arc::clone(&self.known) }
    }

    /// Forgets resources: they are nothing to fall back to.
    pub(super) fn forget(&mut self, ids: &BTreeSet<String>) {
        self.resources.retain(|id, _| !ids.contains(&**id));
    }

    /// Takes over `before`'s version of `ids`.
    pub(super) fn keep<'a>(&mut self, before: &Self, ids: impl Iterator<Item = &'a Arc<str>>) {
        for id in ids {
            if let Some(kept) = before.resources.get(id) {
                self.resources.insert(Arc::clone(id), kept.clone());
            }
        }
    }

    /// What becomes different when `after` follows this.
    pub fn changes(&self, after: &Self) -> Changes {
        let mut kinds: BTreeMap<String, Change> = BTreeMap::new();
        let mut count = |id: &str, what: fn(&mut Change)| {
            let kind = id.split(' ').next().unwrap_or(id).to_owned();
            what(kinds.entry(kind).or_default());
        };
        for (id, kept) in &after.resources {
            match self.resources.get(id) {
                None => count(id, |kind| kind.added += 1),
                Some(old) if old.digest != kept.digest => count(id, |kind| kind.changed += 1),
                Some(_) => {}
            }
        }
        for id in self.resources.keys().filter(|id| !after.resources.contains_key(*id)) {
            count(id, |kind| kind.removed += 1);
        }
        Changes(kinds)
    }
}

/// The document called `id` in `node`: itself or an item of a list.
fn find(node: Node, id: &str) -> Option<Node> {
    if identity(&node).as_deref() == Some(id) {
        return Some(node);
    }
    let items = node.get("items").and_then(Node::items)?;
    items.iter().find(|item| identity(item).as_deref() == Some(id)).cloned()
}

/// How messages call the resource of a document, if it has a name.
pub(super) fn identity(node: &Node) -> Option<String> {
    let kind = node.get_text("kind")?;
    let meta = node.get("metadata")?;
    let name = meta.get_text("name").filter(|name| !name.is_empty())?;
    Some(format!("{kind} {}/{name}", meta.get_text("namespace").unwrap_or("default")))
}

/// Counts by kind. Displays as `+2 -1 ~3 ServiceEntry, +1 Telemetry`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Changes(BTreeMap<String, Change>);

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Change {
    added: usize,
    removed: usize,
    changed: usize,
}

impl fmt::Display for Changes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return f.write_str("no resource changed");
        }
        for (i, (kind, change)) in self.0.iter().enumerate() {
            if i > 0 {
                f.write_str(", ")?;
            }
            for (sign, count) in [('+', change.added), ('-', change.removed), ('~', change.changed)]
            {
                if count > 0 {
                    write!(f, "{sign}{count} ")?;
                }
            }
            f.write_str(kind)?;
        }
        Ok(())
    }
}
