//! A set of objects put in force object by object: one that cannot be used has a stand-in, and the
//! others move on (T-61). Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use super::documents::Documents;
use super::kinds::{Kind, Name};
use super::stand_in::{StandIn, closed};
use crate::policy::{Checked, Inventory, LoadErrors, Notice, Sources, check_over, is_readable};

/// What stands in for which objects.
pub(super) type StandIns = BTreeMap<(Kind, Name), StandIn>;

/// Each object has three stand-ins at most, one after the other, and all take theirs together.
const ROUNDS: usize = 6;

/// Reads and validates `documents`, which are to follow `before`. What is wrong with objects that have
/// a stand-in is among what the result rejects.
///
/// # Errors
/// What is wrong is of no object, or nobody can tell what an object is about: nothing of the set can be
/// used.
pub(super) fn check(
    documents: &Documents,
    overrides: &Sources,
    before: &Inventory,
) -> Result<(Checked, StandIns), LoadErrors> {
    // The loader has no say in what stands in for what.
    let alone = before.without_resources();
    let mut stand_ins = StandIns::new();
    let mut said: Vec<Notice> = Vec::new();
    for _ in 0..ROUNDS {
        let texts = vec![(PathBuf::new(), documents.in_place(&stand_ins))];
        let wrong = match check_over(&Sources { texts, ..overrides.clone() }, &alone) {
            Ok(checked) if checked.rejected().is_empty() => {
                return Ok(finish(checked, stand_ins, said));
            }
            Ok(checked) => checked.rejected().to_vec(),
            Err(LoadErrors(wrong)) => wrong,
        };
        let (objects, nobodys) = objects_of(wrong, documents, &stand_ins)?;
        for ((kind, name), notices) in objects {
            let object = (kind, name);
            // Istio's own rules keep such an entry out of the cluster: as if nobody had written it.
            let is_invalid =
                object.0 == Kind::ServiceEntry && notices.iter().all(Notice::is_istios);
            let next = match stand_ins.get(&object) {
                None => {
                    said.extend(notices);
                    let good = before.text_of(&id(&object)).map(StandIn::LastGood);
                    match good {
                        None if is_invalid => Some(StandIn::Nothing),
                        None => closed_of(documents, &object),
                        good => good,
                    }
                }
                Some(StandIn::LastGood(_)) => closed_of(documents, &object),
                Some(StandIn::Closed(_)) if object.0 == Kind::ServiceEntry => {
                    Some(StandIn::Nothing)
                }
                Some(_) => None,
            };
            let Some(next) = next else { return Err(LoadErrors([said, nobodys].concat())) };
            stand_ins.insert(object, next);
        }
    }
    Err(LoadErrors(said))
}

/// What is wrong, by object. A document that cannot be read at all is an object that is wrong.
///
/// # Errors
/// Something is wrong with no object.
#[expect(clippy::type_complexity, reason = "made and taken apart in one place")]
fn objects_of(
    wrong: Vec<Notice>,
    documents: &Documents,
    stand_ins: &StandIns,
) -> Result<(BTreeMap<(Kind, Name), Vec<Notice>>, Vec<Notice>), LoadErrors> {
    let mut objects: BTreeMap<_, Vec<Notice>> = BTreeMap::new();
    let mut nobodys = Vec::new();
    for notice in wrong {
        match notice.resource.as_deref().and_then(object_of) {
            Some(object) => objects.entry(object).or_default().push(notice),
            None => nobodys.push(notice),
        }
    }
    if let [first, ..] = &nobodys[..] {
        let unreadable = documents
            .in_policy()
            .filter(|(object, text)| !stand_ins.contains_key(object) && !is_readable(text));
        let unreadable: Vec<_> = unreadable.map(|(object, _)| object).collect();
        if unreadable.is_empty() {
            return Err(LoadErrors(nobodys));
        }
        for object in unreadable {
            let mut notice = first.clone();
            notice.resource = Some(id(&object));
            objects.entry(object).or_default().push(notice);
        }
    }
    Ok((objects, nobodys))
}

fn closed_of(documents: &Documents, object: &(Kind, Name)) -> Option<StandIn> {
    closed(object.0, documents.get(object)?)
}

/// The set as it is in force.
fn finish(mut checked: Checked, stand_ins: StandIns, said: Vec<Notice>) -> (Checked, StandIns) {
    let remarked = said.into_iter().map(|mut notice| {
        let object = notice.resource.as_deref().and_then(object_of);
        let stand_in = object.and_then(|object| stand_ins.get(&object));
        notice.message.push_str(stand_in.map_or("", StandIn::remark));
        notice
    });
    let remarked = remarked.collect();
    // What refuses is nobody's good version.
    let is_closed =
        |(_, stand_in): &(&(Kind, Name), &StandIn)| matches!(stand_in, StandIn::Closed(_));
    let closed: BTreeSet<String> =
        stand_ins.iter().filter(is_closed).map(|(object, _)| id(object)).collect();
    checked.stand_in(remarked, &closed);
    (checked, stand_ins)
}

/// How the loader calls an object.
fn id((kind, name): &(Kind, Name)) -> String {
    format!("{kind} {}/{}", name.namespace, name.name)
}

fn object_of(id: &str) -> Option<(Kind, Name)> {
    let (kind, name) = id.split_once(' ')?;
    let kind = Kind::ALL.into_iter().find(|known| known.name() == kind)?;
    let (namespace, name) = name.split_once('/')?;
    Some((kind, Name { namespace: namespace.to_owned(), name: name.to_owned() }))
}
