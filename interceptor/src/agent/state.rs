//! What the agent knows and what follows from it: events are folded into documents, and documents
//! into each pod's policy. Pure; who watches, writes and looks at cgroups is the agent itself.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::net::SocketAddr;
use std::sync::Arc;

use serde_json::Value;

use super::cluster_dns;
use super::conditions::{self, Overdue};
use super::documents::{Changed, Documents, Event, Feed};
use super::kinds::{Kind, Name, Object, Shelf};
use super::pods::{Cover, Mode, Pod};
use super::policies::{Compiled, Policies};
use crate::policy::{Caller, Sources, Store};
use crate::workloads::annotations::CaptureLists;

/// The feeds of the whole cluster, beside the mesh configuration.
const CLUSTER: [Kind; 11] = [
    Kind::Namespace,
    Kind::Pod,
    Kind::ServiceEntry,
    Kind::WorkloadEntry,
    Kind::VirtualService,
    Kind::DestinationRule,
    Kind::Sidecar,
    Kind::Telemetry,
    Kind::InterceptorConfig,
    Kind::Service,
    Kind::EndpointSlice,
];

/// Everything that the agent knows.
#[derive(Debug)]
pub struct State {
    documents: Documents,
    /// What is watched from the start to the end.
    fixed: BTreeSet<Feed>,
    mesh: Name,
    default: Mode,
    capture: CaptureLists,
    policies: Policies,
    pods: BTreeMap<Name, Covered>,
    /// Policy documents changed since they were last put in force.
    is_new: bool,
    /// The policy documents as they stand are in force.
    is_accepted: bool,
    /// What was said of the set in force.
    said: HashSet<String>,
}

/// A pod of the node and what becomes of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Covered {
    /// The object.
    pub pod: Pod,
    /// Whether it is covered.
    pub cover: Cover,
}

impl State {
    /// Knows nothing yet. `mesh` is the ConfigMap with the mesh configuration, `default` the mode of
    /// pods without a label; `overrides` is what flags say over the documents.
    pub fn new(mesh: Name, default: Mode, overrides: Sources) -> Self {
        let mesh_feed = Feed::one(Kind::ConfigMap, mesh.clone());
        let fixed: BTreeSet<_> = CLUSTER.map(Feed::all).into_iter().chain([mesh_feed]).collect();
        Self {
            documents: Documents::new(fixed.clone()),
            fixed,
            mesh,
            default,
            capture: CaptureLists::default(),
            policies: Policies::new(overrides),
            pods: BTreeMap::new(),
            is_new: true,
            is_accepted: false,
            said: HashSet::new(),
        }
    }

    /// The same, with what is captured of pods whose annotations do not say (CAP-3).
    pub fn capturing(self, capture: CaptureLists) -> Self {
        Self { capture, ..self }
    }

    /// Puts in force what a disk kept; the API server may be away for long. What to say.
    pub fn restore(&mut self, objects: Vec<(Kind, Object)>) -> Vec<String> {
        for (kind, object) in objects {
            let feed = match kind {
                Kind::Secret | Kind::ConfigMap => Feed::one(kind, object.name.clone()),
                _ => Feed::all(kind),
            };
            self.documents.restore(feed, object);
        }
        self.put_in_force()
    }

    /// What is watched from the start to the end.
    pub fn fixed(&self) -> &BTreeSet<Feed> {
        &self.fixed
    }

    /// Folds one event in. What changed that [`Self::settle`] should see to.
    pub fn apply(&mut self, feed: &Feed, event: Event) -> Changed {
        let changed = self.documents.apply(feed, event);
        self.is_new |= changed.content && feed.kind.shelf() != Shelf::Workloads;
        changed
    }

    /// The feeds whose first list is still waited for. Until it is there, nothing new takes effect:
    /// a part of the policy may allow more than the whole.
    pub fn awaited(&self) -> impl Iterator<Item = &Feed> {
        self.documents.stale().filter(|feed| self.fixed.contains(feed))
    }

    /// Makes of the documents what they are worth. What to say.
    pub fn settle(&mut self) -> Vec<String> {
        if self.awaited().next().is_some() {
            return Vec::new();
        }
        self.put_in_force()
    }

    fn put_in_force(&mut self) -> Vec<String> {
        let mut lines = Vec::new();
        self.take_pods(&mut lines);
        self.is_new |= self.documents.set_wanted(&self.wanted(), &self.fixed);
        if std::mem::take(&mut self.is_new) {
            let profile = self.policies.enforcement();
            let set = self.policies.set_documents(&self.documents);
            self.is_accepted = set.is_ok();
            let generation = self.policies.generation();
            lines.push(match (set, generation) {
                (Ok(changes), _) => format!("policy generation {generation}: {changes}"),
                (Err(errors), 0) => format!("no policy is in force: the resources cannot be used\n{errors}"),
                (Err(errors), _) => format!(
                    "policy generation {generation} stays in force: the changed resources cannot be \
                     used\n{errors}"
                ),
            });
            if self.policies.enforcement() != profile {
                self.take_pods(&mut lines);
            }
        }
        let covered = self.pods.values().filter(|one| one.cover.mode != Mode::Disabled);
        let callers = covered.map(|one| one.pod.caller()).chain([self.agent()]);
        self.policies.set_callers(&callers.collect());
        self.say(&mut lines);
        lines
    }

    fn take_pods(&mut self, lines: &mut Vec<String>) {
        let pods = self.read_pods(lines);
        lines.extend(self.differences(&pods));
        self.pods = pods;
    }

    fn read_pods(&self, lines: &mut Vec<String>) -> BTreeMap<Name, Covered> {
        let namespaces: BTreeMap<&str, BTreeMap<String, String>> = self
            .documents
            .of(Kind::Namespace)
            .map(|(name, text)| (&*name.name, labels(text)))
            .collect();
        let none = BTreeMap::new();
        let profile = self.policies.enforcement();
        let mut pods = BTreeMap::new();
        for (name, text) in self.documents.of(Kind::Pod) {
            match Pod::parse(text) {
                Ok(pod) => {
                    let labels = namespaces.get(pod.namespace()).unwrap_or(&none);
                    let cover = pod.cover(labels, self.default, profile);
                    pods.insert(name.clone(), Covered { pod, cover });
                }
                Err(error) => lines.push(format!("pod {name} cannot be read: {error}")),
            }
        }
        pods
    }

    /// What became of pods since.
    fn differences(&self, pods: &BTreeMap<Name, Covered>) -> Vec<String> {
        let mut lines = Vec::new();
        for (name, now) in pods {
            let before = self.pods.get(name);
            let was_left = before.is_none_or(|before| before.cover.mode == Mode::Disabled);
            let Cover { mode, because, notes } = &now.cover;
            if before.is_some_and(|before| before.cover == now.cover)
                || (was_left && *mode == Mode::Disabled && notes.is_empty())
            {
                continue;
            }
            lines.push(format!("pod {name}: {mode}, by {because}"));
            lines.extend(notes.iter().map(|note| format!("pod {name}: {note}")));
        }
        let gone = self.pods.iter().filter(|(name, before)| {
            before.cover.mode != Mode::Disabled && !pods.contains_key(*name)
        });
        lines.extend(gone.map(|(name, _)| format!("pod {name}: gone")));
        lines
    }

    /// Adds what there is to say of the policies and was not said.
    fn say(&mut self, lines: &mut Vec<String>) {
        let of_pods = self.pods.values().filter_map(|one| self.policies.of(&one.pod.caller()));
        let warnings = of_pods.flat_map(|compiled| &compiled.warnings);
        let warnings = warnings.map(|notice| format!("warning: {notice}"));
        let rejected = self.policies.rejected().iter();
        let now: BTreeSet<String> =
            rejected.map(|notice| format!("left out: {notice}")).chain(warnings).collect();
        lines.extend(now.iter().filter(|text| !self.said.contains(*text)).cloned());
        self.said = now.into_iter().collect();
    }

    /// The credentials that rules name, of namespaces with covered pods: nobody else may use them
    /// (TLS-9), so that nothing else is asked for.
    pub fn wanted(&self) -> BTreeSet<Feed> {
        let covered = self.pods.values().filter(|one| one.cover.mode != Mode::Disabled);
        let namespaces: BTreeSet<&str> = covered.map(|one| one.pod.namespace()).collect();
        let mut wanted = BTreeSet::new();
        for (rule, text) in self.documents.of(Kind::DestinationRule) {
            let mut names = Vec::new();
            if let Ok(rule) = serde_json::from_str::<Value>(text) {
                credentials(&rule, &mut names);
            }
            for credential in names {
                if let Some(name) = credential.strip_prefix("configmap://") {
                    wanted.extend(namespaces.iter().map(|namespace| {
                        let (namespace, name) = ((*namespace).to_owned(), name.to_owned());
                        Feed::one(Kind::ConfigMap, Name { namespace, name })
                    }));
                } else if namespaces.contains(&*rule.namespace) {
                    let name = credential.strip_prefix("kubernetes://").unwrap_or(&credential);
                    wanted.extend([name.to_owned(), format!("{name}-cacert")].map(|name| {
                        let namespace = rule.namespace.clone();
                        Feed::one(Kind::Secret, Name { namespace, name })
                    }));
                }
            }
        }
        for (config, text) in self.documents.of(Kind::InterceptorConfig) {
            let mut names = Vec::new();
            if let Ok(config) = serde_json::from_str::<Value>(text) {
                credentials(&config, &mut names);
            }
            // The mesh's hold for everybody.
            let concerns = namespaces.contains(&*config.namespace)
                || config.namespace == self.mesh.namespace && !namespaces.is_empty();
            for name in names.into_iter().filter(|_| concerns) {
                let namespace = config.namespace.clone();
                wanted.insert(Feed::one(Kind::Secret, Name { namespace, name }));
            }
        }
        // It is watched anyhow, and is no credential.
        wanted.remove(&Feed::one(Kind::ConfigMap, self.mesh.clone()));
        // What cannot be a name is none, and must not become a part of a path.
        wanted.retain(|feed| feed.only.as_ref().is_some_and(|one| Name::is_plain(&one.name)));
        wanted
    }

    /// The statuses that are not as they should be, as far as everything was seen to.
    pub(super) fn overdue(&self) -> Vec<Overdue> {
        match self.has_settled() {
            true => conditions::overdue(&self.documents, &self.policies),
            false => Vec::new(),
        }
    }

    /// The pods of the node.
    pub fn pods(&self) -> impl Iterator<Item = (&Name, &Covered)> {
        self.pods.iter()
    }

    /// The policy of a pod, if it is covered and there is one.
    pub fn policy(&self, pod: &Pod) -> Option<&Compiled> {
        self.policies.of(&pod.caller())
    }

    /// What is captured of a pod. With a malformed annotation it is everything.
    pub fn capture_lists(&self, pod: &Pod) -> CaptureLists {
        pod.capture_lists(self.capture.clone()).unwrap_or_default()
    }

    /// Who the agent itself is to policy: whom nothing is about but what is about everybody.
    fn agent(&self) -> Caller {
        Caller { namespace: self.mesh.namespace.clone(), labels: Vec::new() }
    }

    /// What the agent itself goes by, once there is a policy.
    pub fn own(&self) -> Option<Arc<Store>> {
        self.policies.of(&self.agent()).map(|compiled| Arc::clone(&compiled.store))
    }

    /// The cluster's name servers: `given` or, without, the Service that is called so by convention; and
    /// what is behind them, where a program of somebody else's may send what is for the Service.
    pub fn cluster_dns(&self, given: &[SocketAddr]) -> Vec<SocketAddr> {
        cluster_dns::servers(&self.documents, given)
    }

    /// Counts up with each set of documents that came into force; 0 before the first.
    pub fn generation(&self) -> u64 {
        self.policies.generation()
    }

    /// Whether everything that is known was seen to, and that is all there is.
    pub fn has_settled(&self) -> bool {
        !self.is_new && self.awaited().next().is_none()
    }

    /// The documents as they are in force, where that is all that is known and may be kept.
    pub fn in_force(&self) -> Option<Cow<'_, Documents>> {
        let stand_ins = self.policies.stand_ins();
        (self.is_accepted && self.has_settled()).then(|| match stand_ins.is_empty() {
            true => Cow::Borrowed(&self.documents),
            false => Cow::Owned(self.documents.standing(stand_ins)),
        })
    }
}

/// Every `credentialName` in a resource.
fn credentials(value: &Value, found: &mut Vec<String>) {
    match value {
        Value::Object(fields) => {
            for (key, value) in fields {
                match value {
                    Value::String(name) if key == "credentialName" => found.push(name.clone()),
                    value => credentials(value, found),
                }
            }
        }
        Value::Array(items) => items.iter().for_each(|item| credentials(item, found)),
        _ => {}
    }
}

/// The labels of an object.
fn labels(text: &str) -> BTreeMap<String, String> {
    let object: Value = serde_json::from_str(text).unwrap_or_default();
    let labels = object.pointer("/metadata/labels").cloned().unwrap_or_default();
    serde_json::from_value(labels).unwrap_or_default()
}
