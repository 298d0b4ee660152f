//! What the API server said, folded into a set of documents. Pure: the watching is in `watch`.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use super::kinds::{Kind, Name, Object, Shelf, Standing};
use super::piecewise::StandIns;

/// What is watched together: all objects of a kind that the agent may see, or one of them.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Feed {
    /// What.
    pub kind: Kind,
    /// The only one that is watched, where it is one only.
    pub only: Option<Name>,
}

impl Feed {
    /// All objects of `kind`.
    pub fn all(kind: Kind) -> Self {
        Self { kind, only: None }
    }

    /// One object.
    pub fn one(kind: Kind, name: Name) -> Self {
        Self { kind, only: Some(name) }
    }
}

impl std::fmt::Display for Feed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.only {
            None => write!(f, "{}", self.kind.plural()),
            Some(name) => write!(f, "{} {name}", self.kind),
        }
    }
}

/// What a watch has to say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A list begins. Until it is complete, what was known before holds.
    ListBegins,
    /// An object of the list.
    Listed(Object),
    /// The list is complete: what was not in it is gone.
    ListEnds,
    /// An object is new or different.
    Put(Object),
    /// An object is gone.
    Gone(Name),
}

/// The documents, and how far they are known.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Documents {
    feeds: BTreeMap<Feed, Held>,
}

/// What is known by one feed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Held {
    objects: BTreeMap<Name, String>,
    /// Of those that have one, as the API server said it last.
    standings: BTreeMap<Name, Standing>,
    /// The list that is under way.
    listing: Option<BTreeMap<Name, String>>,
    /// The API server gave a whole list since the start. Before, it is what the disk had.
    is_fresh: bool,
}

/// What an event changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Changed {
    /// A document is other than it was.
    pub content: bool,
    /// A feed has its first list.
    pub freshness: bool,
    /// A status, or the version that it belongs to, is other than it was.
    pub standing: bool,
}

impl Documents {
    /// None yet, of `feeds`.
    pub fn new(feeds: impl IntoIterator<Item = Feed>) -> Self {
        Self { feeds: feeds.into_iter().map(|feed| (feed, Held::default())).collect() }
    }

    /// Adds what a disk kept. It holds until the API server gives a list of its own.
    pub fn restore(&mut self, feed: Feed, object: Object) {
        self.feeds.entry(feed).or_default().objects.insert(object.name, object.text);
    }

    /// Folds one event in. Those of a feed that is not known (any more) change nothing.
    pub fn apply(&mut self, feed: &Feed, event: Event) -> Changed {
        let Some(held) = self.feeds.get_mut(feed) else { return Changed::default() };
        let only_content = |content| Changed { content, ..Changed::default() };
        match event {
            Event::ListBegins => {
                held.listing = Some(BTreeMap::new());
                held.standings.clear();
                Changed::default()
            }
            Event::Listed(Object { name, text, standing }) => {
                if let Some(listing) = &mut held.listing {
                    if let Some(standing) = standing {
                        held.standings.insert(name.clone(), standing);
                    }
                    listing.insert(name, text);
                }
                Changed::default()
            }
            Event::ListEnds => {
                let Some(listing) = held.listing.take() else { return Changed::default() };
                let content = listing != held.objects;
                let freshness = !std::mem::replace(&mut held.is_fresh, true);
                held.objects = listing;
                Changed { content, freshness, standing: !held.standings.is_empty() }
            }
            Event::Put(Object { name, text, standing }) => {
                let stands = standing.is_some();
                match standing {
                    Some(standing) => _ = held.standings.insert(name.clone(), standing),
                    None => _ = held.standings.remove(&name),
                }
                let before = held.objects.insert(name, text.clone());
                Changed {
                    standing: stands,
                    ..only_content(before.as_deref() != Some(text.as_str()))
                }
            }
            Event::Gone(name) => {
                held.standings.remove(&name);
                only_content(held.objects.remove(&name).is_some())
            }
        }
    }

    /// Sets which single objects of `kinds` are watched beside the feeds from the start; the others
    /// are forgotten. Whether a document went with them.
    pub fn set_wanted(&mut self, wanted: &BTreeSet<Feed>, fixed: &BTreeSet<Feed>) -> bool {
        let before = self.feeds.values().map(|held| held.objects.len()).sum::<usize>();
        self.feeds.retain(|feed, _| wanted.contains(feed) || fixed.contains(feed));
        for feed in wanted {
            self.feeds.entry(feed.clone()).or_default();
        }
        before != self.feeds.values().map(|held| held.objects.len()).sum::<usize>()
    }

    /// The feeds that have not given a list since the start.
    pub fn stale(&self) -> impl Iterator<Item = &Feed> {
        self.feeds.iter().filter(|(_, held)| !held.is_fresh).map(|(feed, _)| feed)
    }

    /// Every object of a kind, with its document.
    pub fn of(&self, kind: Kind) -> impl Iterator<Item = (&Name, &str)> {
        let feeds = self.feeds.iter().filter(move |(feed, _)| feed.kind == kind);
        feeds.flat_map(|(_, held)| &held.objects).map(|(name, text)| (name, text.as_str()))
    }

    /// One object's document.
    pub fn get(&self, (kind, name): &(Kind, Name)) -> Option<&str> {
        let mut feeds = self.feeds.iter().filter(|(feed, _)| feed.kind == *kind);
        feeds.find_map(|(_, held)| held.objects.get(name)).map(String::as_str)
    }

    /// What the statuses of a kind's objects say, each beside its document.
    pub fn standings(&self, kind: Kind) -> impl Iterator<Item = (&Name, &str, &Standing)> {
        let held = self.feeds.get(&Feed::all(kind)).into_iter();
        held.flat_map(|held| {
            held.standings.iter().filter_map(|(name, standing)| {
                Some((name, held.objects.get(name)?.as_str(), standing))
            })
        })
    }

    /// The documents of a shelf as one text, in an order of their own: a policy file.
    pub fn text(&self, shelf: Shelf) -> String {
        let mut text = String::new();
        for (_, document) in self.on(shelf) {
            // Writing to a string cannot fail.
            let _ = writeln!(text, "---\n{document}");
        }
        text
    }

    /// What policy is made of, Secrets included, as one text; with what stands in for some of it.
    pub(super) fn in_place(&self, stand_ins: &StandIns) -> String {
        let mut text = String::new();
        for (object, document) in self.in_policy() {
            let document = match stand_ins.get(&object) {
                None => Some(document),
                Some(stand_in) => stand_in.text(),
            };
            if let Some(document) = document {
                let _ = writeln!(text, "---\n{document}");
            }
        }
        text
    }

    /// The documents that policy is made of, Secrets included.
    pub(super) fn in_policy(&self) -> impl Iterator<Item = ((Kind, Name), &str)> {
        let all = self.on(Shelf::Policy).chain(self.on(Shelf::Secrets));
        all.map(|((kind, name), document)| ((kind, name.clone()), document))
    }

    /// The documents as they are in force: with what stands in for some.
    pub(super) fn standing(&self, stand_ins: &StandIns) -> Self {
        let mut standing = self.clone();
        for ((kind, name), stand_in) in stand_ins {
            for (_, held) in standing.feeds.iter_mut().filter(|(feed, _)| feed.kind == *kind) {
                if held.objects.remove(name).is_some()
                    && let Some(text) = stand_in.text()
                {
                    held.objects.insert(name.clone(), text.to_owned());
                }
            }
        }
        standing
    }

    /// Each document of a shelf once: two feeds may show the same object.
    fn on(&self, shelf: Shelf) -> impl Iterator<Item = ((Kind, &Name), &str)> {
        let mut seen = BTreeSet::new();
        let feeds = self.feeds.iter().filter(move |(feed, _)| feed.kind.shelf() == shelf);
        let all = feeds.flat_map(|(feed, held)| {
            held.objects.iter().map(|(name, text)| ((feed.kind, name), text.as_str()))
        });
        all.filter(move |(object, _)| seen.insert(*object))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(name: &str, text: &str) -> Object {
        Object { name: named(name), text: format!("{{\"x\":\"{text}\"}}"), standing: None }
    }

    fn named(name: &str) -> Name {
        Name { namespace: "shop".to_owned(), name: name.to_owned() }
    }

    fn feed() -> Feed {
        Feed::all(Kind::ServiceEntry)
    }

    fn names(documents: &Documents) -> Vec<&str> {
        documents.of(Kind::ServiceEntry).map(|(name, _)| name.name.as_str()).collect()
    }

    const CONTENT: Changed = Changed { content: true, freshness: false, standing: false };
    const NOTHING: Changed = Changed { content: false, freshness: false, standing: false };

    #[test]
    fn a_list_takes_effect_as_a_whole() {
        let mut documents = Documents::new([feed()]);
        documents.restore(feed(), object("old", "1"));
        documents.restore(feed(), object("both", "1"));
        assert_eq!(documents.stale().count(), 1);
        assert_eq!(documents.apply(&feed(), Event::ListBegins), NOTHING);
        assert_eq!(documents.apply(&feed(), Event::Listed(object("new", "1"))), NOTHING);
        assert_eq!(documents.apply(&feed(), Event::Listed(object("both", "1"))), NOTHING);
        assert_eq!(names(&documents), ["both", "old"], "the last good state until the list ends");
        let changed = documents.apply(&feed(), Event::ListEnds);
        assert_eq!(changed, Changed { content: true, freshness: true, standing: false });
        assert_eq!(names(&documents), ["both", "new"]);
        assert_eq!(documents.stale().count(), 0);
    }

    #[test]
    fn a_list_that_breaks_off_has_no_effect() {
        let mut documents = Documents::new([feed()]);
        let list = |documents: &mut Documents, names: &[&str]| {
            documents.apply(&feed(), Event::ListBegins);
            for name in names {
                documents.apply(&feed(), Event::Listed(object(name, "1")));
            }
        };
        list(&mut documents, &["a", "b"]);
        documents.apply(&feed(), Event::ListEnds);
        list(&mut documents, &["a"]);
        assert_eq!(names(&documents), ["a", "b"]);
        // The next one begins anew.
        list(&mut documents, &["b"]);
        assert_eq!(documents.apply(&feed(), Event::ListEnds), CONTENT);
        assert_eq!(names(&documents), ["b"]);
        // An end without a beginning is none.
        assert_eq!(documents.apply(&feed(), Event::ListEnds), NOTHING);
        assert_eq!(names(&documents), ["b"]);
    }

    #[test]
    fn what_says_nothing_new_changes_nothing() {
        let mut documents = Documents::new([feed()]);
        assert_eq!(documents.apply(&feed(), Event::Put(object("a", "1"))), CONTENT);
        assert_eq!(documents.apply(&feed(), Event::Put(object("a", "1"))), NOTHING);
        assert_eq!(documents.apply(&feed(), Event::Put(object("a", "2"))), CONTENT);
        assert_eq!(documents.apply(&feed(), Event::Gone(named("a"))), CONTENT);
        assert_eq!(documents.apply(&feed(), Event::Gone(named("a"))), NOTHING);
        let other = Feed::all(Kind::Sidecar);
        assert_eq!(documents.apply(&other, Event::Put(object("a", "1"))), NOTHING, "unknown feed");
    }

    #[test]
    fn single_objects_come_and_go() {
        let fixed: BTreeSet<_> = [feed()].into();
        let secret = Feed::one(Kind::Secret, named("cred"));
        let mut documents = Documents::new(fixed.clone());
        documents.restore(secret.clone(), object("cred", "1"));
        assert!(!documents.set_wanted(&[secret.clone()].into(), &fixed));
        assert_eq!(documents.text(Shelf::Secrets), "---\n{\"x\":\"1\"}\n");
        assert_eq!(documents.text(Shelf::Policy), "");
        assert!(documents.set_wanted(&BTreeSet::new(), &fixed), "a document went");
        assert_eq!(documents.text(Shelf::Secrets), "");
        // A watch that is not yet stopped has no say any more.
        assert_eq!(documents.apply(&secret, Event::Put(object("cred", "2"))), NOTHING);
    }
}
