//! What objects are to be told in their status of what became of them, and how that is said. Pure; who
//! writes it is `telling`.

use std::collections::HashMap;

use k8s_openapi::jiff::Timestamp;
use serde_json::{Value, json};

use super::documents::Documents;
use super::kinds::{Kind, Name, Standing};
use super::policies::Policies;
use crate::policy::Notice;

/// On Istio's own objects, whose statuses have other writers.
const OURS: &str = "egress.interceptor.io/Accepted";

/// The longest message, in characters.
const LONGEST: usize = 1024;

/// One thing to be said of an object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Condition {
    kind: &'static str,
    holds: bool,
    reason: &'static str,
    message: String,
}

/// A status that is not as it should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Overdue {
    pub(super) kind: Kind,
    pub(super) name: Name,
    pub(super) standing: Standing,
    conditions: Vec<Condition>,
}

/// Every status that is not as it should be.
///
/// Of Istio's objects those that are refused are told so, and then that they no longer are; others are
/// never written to: in a large cluster each write goes to every node.
pub(super) fn overdue(documents: &Documents, policies: &Policies) -> Vec<Overdue> {
    let mut notices: HashMap<&str, Vec<&Notice>> = HashMap::new();
    for notice in policies.errors().iter().chain(policies.rejected()) {
        if let Some(resource) = &notice.resource {
            notices.entry(resource).or_default().push(notice);
        }
    }
    let overruled: HashMap<&str, &Notice> = policies
        .overruled()
        .iter()
        .filter_map(|one| Some((one.resource.as_deref()?, one)))
        .collect();
    let mut all = Vec::new();
    for kind in Kind::ALL.into_iter().filter(|kind| kind.has_conditions()) {
        for (name, _, standing) in documents.standings(kind) {
            let resource = format!("{kind} {name}");
            let invalid = notices.get(resource.as_str()).map(|notices| said(notices));
            let conditions = match kind {
                Kind::InterceptorConfig => {
                    let overruled = overruled.get(resource.as_str()).copied();
                    of_config(invalid, overruled, policies, &resource)
                }
                _ => of_istios(invalid, standing),
            };
            if conditions.iter().any(|one| !one.stands_in(standing)) {
                let (name, standing) = (name.clone(), standing.clone());
                all.push(Overdue { kind, name, standing, conditions });
            }
        }
    }
    all
}

fn of_istios(invalid: Option<String>, standing: &Standing) -> Vec<Condition> {
    let known = standing.conditions.iter().any(|one| one["type"] == OURS);
    match invalid {
        Some(message) => vec![Condition { kind: OURS, holds: false, reason: "Invalid", message }],
        None if known => {
            let message = String::new();
            vec![Condition { kind: OURS, holds: true, reason: "Valid", message }]
        }
        None => Vec::new(),
    }
}

fn of_config(
    invalid: Option<String>,
    overruled: Option<&Notice>,
    policies: &Policies,
    resource: &str,
) -> Vec<Condition> {
    let accepted = |holds, reason, message| Condition { kind: "Accepted", holds, reason, message };
    let programmed =
        |holds, reason, message| Condition { kind: "Programmed", holds, reason, message };
    if let Some(message) = invalid {
        let programmed = match policies.has(resource) {
            true => programmed(true, "LastGoodInForce", "its last good version stays".to_owned()),
            false => programmed(false, "Invalid", "it was never in force".to_owned()),
        };
        return vec![accepted(false, "Invalid", message), programmed];
    }
    let refused = policies.errors().first().map(|first| {
        // By name only: what another namespace's says is not this one's to read.
        let which = first.resource.as_deref().unwrap_or("a resource");
        let message = format!("{which} keeps the whole set out; the last good one stays");
        programmed(false, "SetRefused", message)
    });
    let in_force = || refused.unwrap_or_else(|| programmed(true, "InForce", String::new()));
    match overruled {
        Some(notice) if notice.path.is_empty() => vec![
            accepted(false, "Overruled", cut(notice.message.clone())),
            programmed(false, "Overruled", String::new()),
        ],
        Some(notice) => {
            vec![accepted(true, "PartlyInForce", cut(notice.message.clone())), in_force()]
        }
        None => vec![accepted(true, "Valid", String::new()), in_force()],
    }
}

fn said(notices: &[&Notice]) -> String {
    let one = |notice: &&Notice| match notice.path.as_str() {
        "" => notice.message.clone(),
        path => format!("{path}: {}", notice.message),
    };
    let mut all: Vec<_> = notices.iter().map(one).collect();
    all.dedup();
    cut(all.join("; "))
}

fn cut(mut text: String) -> String {
    if let Some((end, _)) = text.char_indices().nth(LONGEST) {
        text.truncate(end);
    }
    text
}

impl Condition {
    fn status(&self) -> &'static str {
        if self.holds { "True" } else { "False" }
    }

    /// Whether the status says so, of the object as it is now.
    fn stands_in(&self, standing: &Standing) -> bool {
        standing.conditions.iter().any(|one| {
            // A definition that has no such field drops it.
            let observed = match &one["observedGeneration"] {
                Value::Null => true,
                Value::String(text) => *text == standing.generation.to_string(),
                number => number.as_i64() == Some(standing.generation),
            };
            let message = one["message"].as_str().unwrap_or_default();
            one["type"] == self.kind
                && one["status"] == self.status()
                && one["reason"] == self.reason
                && message == self.message
                && observed
        })
    }
}

impl Overdue {
    /// The status as it should be: its own conditions changed, everybody else's left; of this version of
    /// the object only.
    pub(super) fn patch(&self, now: Timestamp) -> Value {
        let mut all = self.standing.conditions.clone();
        for one in &self.conditions {
            let before = all.iter().position(|other| other["type"] == one.kind);
            let same = before.filter(|at| all[*at]["status"] == one.status());
            let since = same.and_then(|at| all[at]["lastTransitionTime"].as_str());
            let since = since.map_or_else(|| format!("{now:.0}"), str::to_owned);
            let condition = json!({
                "type": one.kind, "status": one.status(), "reason": one.reason,
                "message": one.message, "lastTransitionTime": since,
                "observedGeneration": self.standing.generation,
            });
            match before {
                Some(at) => all[at] = condition,
                None => all.push(condition),
            }
        }
        json!({
            "metadata": {"resourceVersion": self.standing.resource_version},
            "status": {"conditions": all},
        })
    }
}
