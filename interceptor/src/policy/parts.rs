//! A file's text cut into its documents, and what became of each ServiceEntry: a document that
//! stands in the files as it did is neither parsed nor validated again, so that a change costs what
//! it changes and not what there is.
//!
//! What is remembered goes by the document's whole text, so a load with memories gives exactly what
//! one without gives.

use std::collections::HashMap;
use std::sync::Arc;

use super::Enforcement;
use super::entry::Entry;
use super::fields::{Context, Findings};
use super::notice::Notice;
use super::resource::Resources;
use super::service_entry::ServiceEntry;
use super::validate;

/// ServiceEntries that hold, by the text of their documents.
pub(super) type Known = HashMap<Arc<str>, Arc<Part>>;

/// A document with a ServiceEntry that holds.
#[derive(Debug)]
pub(super) struct Part {
    pub(super) id: Arc<str>,
    pub(super) digest: u64,
    /// The profile that it was validated for.
    profile: Enforcement,
    entry: Entry,
    /// What there was to say when it was read, and when it was validated.
    read: Vec<Notice>,
    checked: Vec<Notice>,
}

/// A piece of a file: one document, or all of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Piece<'t> {
    pub(super) text: &'t str,
    /// Lines of the file before it.
    pub(super) line: usize,
}

/// A file with more documents than this is read in one piece, which refuses it.
const MAX_PIECES: usize = 1_000_000;

/// Cuts a file before each line `---`, where no document can go on. What may reach across that
/// line (directives, anchors) or makes lines hard to count keeps a file in one piece.
pub(super) fn cut(text: &str) -> Vec<Piece<'_>> {
    let whole = vec![Piece { text, line: 0 }];
    let lone_return = || text.contains('\r') && text.replace("\r\n", "").contains('\r');
    if text.contains(['&', '\u{feff}']) || lone_return() {
        return whole;
    }
    let mut pieces = Vec::new();
    let (mut start, mut first_line, mut at) = (0, 0, 0);
    for (number, line) in text.split_inclusive('\n').enumerate() {
        if line.starts_with('%') || is_marker(line, "...") {
            return whole;
        }
        if is_marker(line, "---") && at > start {
            pieces.push(Piece { text: &text[start..at], line: first_line });
            (start, first_line) = (at, number);
        }
        at += line.len();
    }
    pieces.push(Piece { text: &text[start..], line: first_line });
    if pieces.len() > MAX_PIECES { whole } else { pieces }
}

/// Whether a line is a marker of documents: at its start, and followed by nothing or white space.
fn is_marker(line: &str, marker: &str) -> bool {
    let rest = line.strip_prefix(marker);
    rest.is_some_and(|rest| rest.is_empty() || rest.starts_with([' ', '\t', '\r', '\n']))
}

/// A ServiceEntry of the files.
#[derive(Debug)]
pub(super) enum Written {
    /// Read just now.
    New {
        entry: Box<ServiceEntry>,
        /// Its document, where that holds nothing else.
        origin: Option<Origin>,
    },
    /// Read and validated for an earlier load.
    Known { part: Arc<Part>, text: Arc<str>, context: Context },
}

/// A document that was read.
#[derive(Debug)]
pub(super) struct Origin {
    pub(super) text: Arc<str>,
    pub(super) id: Arc<str>,
    pub(super) digest: u64,
    /// What there was to say.
    pub(super) read: Vec<Notice>,
}

impl Written {
    /// Validates it; `None` where a rule rejects it. One that holds is remembered in `known`.
    pub(super) fn check(
        self,
        profile: Enforcement,
        known: &mut Known,
        out: &mut Findings,
    ) -> Option<Entry> {
        let (entry, origin) = match self {
            Self::New { entry, origin } => (entry, origin),
            Self::Known { part, text, context } if part.profile == profile => {
                out.warnings.extend(part.checked.iter().map(|notice| part.moved(notice, &context)));
                let entry = Entry { says: Arc::clone(&part.entry.says), context };
                known.insert(text, part);
                return Some(entry);
            }
            // Read again for another profile; what there is to say of that was said.
            Self::Known { part, text, context } => {
                let mut again = Resources::default();
                again.read_piece(
                    &Piece { text: &text, line: 0 },
                    &context,
                    &mut Findings::default(),
                );
                let Some(Self::New { entry, .. }) = again.service_entries.pop() else {
                    return None;
                };
                let read = part.read.iter().map(|notice| part.moved(notice, &context)).collect();
                let origin = Origin { text, id: Arc::clone(&part.id), digest: part.digest, read };
                (entry, Some(origin))
            }
        };
        let said = out.warnings.len();
        let checked = validate::check(&entry, profile, out)?;
        if let Some(Origin { text, id, digest, read }) = origin {
            let (entry, said) = (checked.clone(), out.warnings[said..].to_vec());
            known.insert(text, Arc::new(Part { id, digest, profile, entry, read, checked: said }));
        }
        Some(checked)
    }
}

impl Part {
    /// What was said when it was read, of the place where it stands now.
    pub(super) fn read(&self, context: &Context) -> impl Iterator<Item = Notice> {
        self.read.iter().map(|notice| self.moved(notice, context))
    }

    fn moved(&self, notice: &Notice, to: &Context) -> Notice {
        let from = &self.entry.context;
        let mut notice = notice.clone();
        notice.place.file = to.file.to_path_buf();
        notice.place.document = to.document;
        notice.place.line = notice.place.line - from.shift.line + to.shift.line;
        notice
    }
}
