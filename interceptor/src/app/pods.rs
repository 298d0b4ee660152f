//! The node's pods under cover: what the agent knows of them, brought together with what is on the node.

mod find;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use interceptor_common::{EndpointKey, Namespace};
use tokio::task::spawn_blocking;

use super::begin::Charge;
use super::by_cgroup::Held;
use super::covered::{CoveredNamespace, Whose};
use super::cut;
use super::existing::Existing;
use super::handler::Running;
use super::sandboxes::Sandboxes;
use super::tenant::{Rules, Tenant};
use crate::accept::Listeners;
use crate::agent::cgroups::PodUid;
use crate::agent::pods::Mode;
use crate::agent::{Name, State};
use crate::netns::NetNs;
use crate::policy::{OnRemoval, Snapshot, Store};
use crate::tiers::Numbers;
use crate::workloads::Workload;
use crate::workloads::annotations::CaptureLists;
use crate::workloads::cgroup::Hierarchy;

/// Rules that no pod has any more are kept for so long: connections that were let go by them may still
/// have to show a name.
const UNUSED: Duration = Duration::from_secs(10);

/// What is known of the node beside its pods.
pub(super) struct Node {
    pub(super) hierarchy: Hierarchy,
    /// kubelet's `--cgroup-root`.
    pub(super) root: PathBuf,
    /// The cluster's name servers, where the command line says.
    pub(super) cluster_dns: Vec<SocketAddr>,
    /// The node's own.
    pub(super) dns: Vec<SocketAddr>,
    /// What the CNI plugin told of.
    pub(super) sandboxes: Arc<Sandboxes>,
}

/// A pod as it is to be.
pub(super) struct Wanted {
    name: Name,
    uid: PodUid,
    paths: Vec<PathBuf>,
    /// It is in the node's network namespace.
    is_on_host: bool,
    /// Its privileged containers, in words; such a pod can leave its namespace.
    privileged: Option<String>,
    /// What holds for it; `None`: it is left alone.
    rules: Option<WantedRules>,
    workload: Arc<Workload>,
}

struct WantedRules {
    policy: Arc<Store>,
    resolvers: Vec<SocketAddr>,
    lists: CaptureLists,
    /// What would be refused passes, and is told: by the pod's own mode, and by nothing else.
    audited: bool,
}

/// Pods that are covered or exempt.
pub(super) struct Pods {
    node: Node,
    known: BTreeMap<Name, Known>,
    rules: Vec<InForce>,
    ids: Numbers,
    /// What was said of pods that cannot be covered.
    troubles: HashMap<Name, String>,
    /// Pods that will not be covered although somebody meant them to be, and why.
    left: BTreeMap<Name, String>,
    /// Privileged pods in other namespaces than their own.
    held: Held,
    /// Where those may be that are to be covered in the node's namespace.
    on_host: Vec<PathBuf>,
}

/// A pod whose namespace was found, or whose cgroup, where the namespace is the node's.
struct Known {
    uid: PodUid,
    number: u64,
    /// In the kernel's table.
    key: u64,
    covered: bool,
    /// Open for as long, so that its number becomes no other's.
    _netns: Arc<NetNs>,
}

/// Rules that a pod has, or had until just now.
struct InForce {
    rules: Arc<Rules>,
    /// From the start on.
    tenant: Option<Arc<Tenant>>,
    /// As last written.
    applied: Arc<Snapshot>,
    unused: Option<Instant>,
}

impl Wanted {
    /// The uid of the pod, and its policy, where it is to be covered.
    pub(super) fn covered(&self) -> Option<(Arc<str>, &Arc<Store>)> {
        let (pod, rules) = (self.workload.pod.as_ref()?, self.rules.as_ref()?);
        Some((Arc::clone(&pod.uid), &rules.policy))
    }
}

impl Pods {
    /// Nothing is covered yet. `last`: the number of a policy that an earlier run may have given last.
    pub(super) fn new(node: Node, last: u16) -> Self {
        Self {
            node,
            known: BTreeMap::new(),
            rules: Vec::new(),
            ids: Numbers::after(last),
            troubles: HashMap::new(),
            left: BTreeMap::new(),
            held: Held::default(),
            on_host: Vec::new(),
        }
    }

    /// The pods as they are to be.
    pub(super) fn wanted(&mut self, state: &State) -> Vec<Wanted> {
        let cluster = state.cluster_dns(&self.node.cluster_dns);
        let mut wanted = Vec::new();
        self.left.clear();
        self.on_host.clear();
        for (name, one) in state.pods() {
            let pod = &one.pod;
            let is_left = one.cover.mode == Mode::Disabled;
            if is_left && !one.cover.notes.is_empty() {
                self.left.insert(name.clone(), one.cover.notes.join("; "));
            }
            let Some(uid) = pod.uid() else { continue };
            // Of the node's own namespace nothing is held that is not to be covered.
            if pod.has_ended() || (pod.is_on_host_network() && is_left) {
                continue;
            }
            let paths = pod.cgroup_paths(&self.node.root);
            if pod.is_on_host_network() {
                self.on_host.extend(paths.iter().cloned());
            }
            let rules = match one.cover.mode {
                Mode::Disabled => None,
                Mode::Enforce | Mode::Audit => {
                    // Nothing is in force: it stays held.
                    let Some(policy) = state.policy(pod) else { continue };
                    let bypass = policy.store.current().bypass.clone();
                    Some(WantedRules {
                        policy: Arc::clone(&policy.store),
                        resolvers: pod.resolvers(&cluster, &self.node.dns),
                        lists: state.capture_lists(pod).without(bypass),
                        audited: one.cover.mode == Mode::Audit,
                    })
                }
            };
            let workload = Arc::new(Workload {
                namespace: pod.namespace().into(),
                name: pod.name().into(),
                service_account: pod.service_account().into(),
                labels: pod.labels().clone(),
                pod: Some(Arc::new(pod.identity())),
            });
            wanted.push(Wanted {
                name: name.clone(),
                uid,
                paths,
                is_on_host: pod.is_on_host_network(),
                privileged: pod.privileged(),
                rules,
                workload,
            });
        }
        wanted
    }

    /// Prepares what is there at the start: namespaces to be covered, with the listeners that a predecessor
    /// handed over, and cookies of exempt ones.
    pub(super) async fn first(
        &mut self,
        wanted: Vec<Wanted>,
        mut handed_over: Vec<(NetNs, Option<Listeners>)>,
    ) -> (Vec<Charge>, Vec<u64>) {
        let (mut charges, mut exempt) = (Vec::new(), Vec::new());
        for one in wanted {
            let Some(found) = self.find(&one) else { continue };
            let (key, number, netns) = (found.key(), found.number, Arc::clone(&found.netns));
            // Several are in the node's, each by its name.
            let own = handed_over.iter_mut().find(|(other, _)| {
                other.cookie() == netns.cookie()
                    && (!one.is_on_host || other.label() == netns.label())
            });
            let listeners = own.and_then(|(_, listeners)| listeners.take());
            let covered = match &one.rules {
                None => {
                    exempt.push(key);
                    false
                }
                Some(wanted) => match self.prepare(&one, found, listeners).await {
                    Ok(enrolled) => {
                        let Some(rules) = self.rules_of(wanted, &one.workload) else { continue };
                        let workload = Arc::clone(&one.workload);
                        let audited = wanted.audited;
                        charges.push(Charge { enrolled, rules, workload, audited });
                        true
                    }
                    // It is tried again.
                    Err(error) => {
                        self.say(&one.name, error.to_string());
                        continue;
                    }
                },
            };
            let known = Known { uid: one.uid, number, key, covered, _netns: netns };
            self.known.insert(one.name, known);
        }
        (charges, exempt)
    }

    /// Everything is as the kernel's tables, the listeners and the interfaces have it to be. What is
    /// not possible now is said, and tried again the next time.
    pub(super) async fn settle(
        &mut self,
        running: &Arc<Running>,
        existing: &Arc<Existing>,
        wanted: Vec<Wanted>,
    ) {
        for in_force in self.rules.iter_mut().filter(|one| one.tenant.is_none()) {
            let id = in_force.rules.id;
            in_force.tenant = running.covered.tenants().into_iter().find(|one| one.rules.id == id);
        }
        self.apply(running).await;
        let stays = |name: &Name, known: &Known| {
            wanted.iter().any(|one| one.name == *name && one.uid == known.uid)
        };
        let gone = self.known.iter().filter(|(name, known)| !stays(name, known));
        let gone: Vec<Name> = gone.map(|(name, _)| name.clone()).collect();
        let left = !gone.is_empty();
        for name in gone {
            self.drop(running, &name).await;
        }
        if left {
            let uids: HashSet<_> = wanted
                .iter()
                .filter_map(|one| one.workload.pod.as_ref())
                .map(|pod| &*pod.uid)
                .collect();
            running.log.keep_pods(|pod| uids.contains(&*pod.uid));
        }
        self.troubles.retain(|name, _| wanted.iter().any(|one| one.name == *name));
        // Of an audited one nothing is refused.
        let enforced = |one: &&Wanted| one.rules.as_ref().is_some_and(|rules| !rules.audited);
        let privileged: Vec<PathBuf> = wanted
            .iter()
            .filter(enforced)
            .filter(|one| one.privileged.is_some() && !one.is_on_host)
            .flat_map(|one| one.paths.iter().cloned())
            .collect();
        let mut opened = false;
        for one in wanted {
            match self.settle_one(running, &one).await {
                Ok(was_open) => {
                    opened |= was_open;
                    self.troubles.remove(&one.name);
                }
                Err(error) => self.say(&one.name, error.to_string()),
            }
        }
        if opened {
            // What an exempt pod had open, or an audited one since before us, was judged by nobody.
            let (running, existing) = (Arc::clone(running), Arc::clone(existing));
            if let Err(error) = spawn_blocking(move || existing.settle_gap(&running)).await {
                tracing::error!("ending connections from before broke off: {error}");
            }
        }
        self.retire(running);
        self.hold_elsewhere(running, &privileged);
        let held =
            self.troubles.iter().map(|(name, why)| (name.to_string(), format!("held: {why}")));
        let left = self.left.iter().map(|(name, why)| (name.to_string(), why.clone()));
        running.covered.set_uncovered(left.chain(held).collect());
    }

    /// One pod. Whether what it had open was judged by nobody until now, or refused nothing, and is from now on.
    async fn settle_one(&mut self, running: &Arc<Running>, one: &Wanted) -> io::Result<bool> {
        let found = self.find(one);
        let known = self.known.get(&one.name);
        let found = match (known, found) {
            // Without a process just now it stays as it is.
            (None, None) => return Ok(false),
            (Some(known), found)
                if found.as_ref().is_none_or(|found| found.number == known.number) =>
            {
                if known.covered == one.rules.is_some() {
                    return self.keep(running, one);
                }
                found
            }
            (_, found) => {
                // A new sandbox.
                self.drop(running, &one.name).await;
                found
            }
        };
        let Some(found) = found else { return Ok(false) };
        let (key, number, netns) = (found.key(), found.number, Arc::clone(&found.netns));
        if let Some((other, _)) =
            self.known.iter().find(|(name, known)| known.key == key && **name != one.name)
        {
            return Err(io::Error::other(format!("it shares its network namespace with {other}")));
        }
        let before = running.kernel.tables().namespace(key);
        let was_exempt = one.is_on_host || before.is_some_and(|known| known.is_exempt());
        match &one.rules {
            None => {
                running.withdraw(key).await;
                let exempt = Namespace { kind: Namespace::EXEMPT, ..Namespace::default() };
                running.kernel.tables().cover(key, exempt).map_err(io::Error::other)?;
            }
            Some(wanted) => {
                let enrolled = self.prepare(one, found, None).await?;
                let tenant = self.tenant_of(running, wanted, &one.workload)?;
                let workload = Arc::clone(&one.workload);
                let audited = wanted.audited;
                running.cover(enrolled, Whose { tenant, workload, audited }).await?;
            }
        }
        let covered = one.rules.is_some();
        let known = Known { uid: one.uid.clone(), number, key, covered, _netns: netns };
        self.known.insert(one.name.clone(), known);
        Ok(was_exempt && covered)
    }

    /// Gives a pod that is covered already the rules that it has now. Whether it was audited until now.
    fn keep(&mut self, running: &Running, one: &Wanted) -> io::Result<bool> {
        let Some(wanted) = &one.rules else { return Ok(false) };
        let all = running.covered.all();
        let known = self.known.get(&one.name).and_then(|known| all.get(&known.key));
        let Some(covered) = known.map(Arc::clone) else { return Ok(false) };
        let tenant = self.tenant_of(running, wanted, &one.workload)?;
        let whose = covered.whose();
        let audited = wanted.audited;
        if Arc::ptr_eq(&tenant, &whose.tenant)
            && one.workload == whose.workload
            && audited == whose.audited
        {
            return Ok(false);
        }
        let workload = Arc::clone(&one.workload);
        let changed = running.change(&covered, Whose { tenant, workload, audited });
        changed.map_err(io::Error::other).map(|()| whose.audited && !audited)
    }

    /// Forgets a pod that is gone: nothing leaves its namespace any more.
    async fn drop(&mut self, running: &Running, name: &Name) {
        let Some(known) = self.known.remove(name) else { return };
        if known.covered {
            running.withdraw(known.key).await;
        } else if let Err(error) = running.kernel.tables().forget_namespace(known.key) {
            tracing::warn!("pod {name}: {error}");
        }
    }

    /// Writes what changed of policies since it was last written, and cuts what they have cut.
    async fn apply(&mut self, running: &Arc<Running>) {
        let mut cuts = HashMap::new();
        for in_force in &mut self.rules {
            let Some(tenant) = &in_force.tenant else { continue };
            let now = tenant.policy();
            if now.generation == in_force.applied.generation {
                continue;
            }
            let id = tenant.rules.id;
            let all = running.covered.all();
            let has = |one: &&Arc<CoveredNamespace>| one.whose().tenant.rules.id == id;
            let set = {
                let mut tables = running.kernel.tables();
                tenant.rules.set_datagrams(&now, &mut tables).and_then(|()| {
                    all.values().filter(has).try_for_each(|covered| {
                        let at = covered.doors.addresses();
                        let entry = tenant.rules.entry(at, &now, covered.whose().audited);
                        tables.cover(covered.key(), entry)
                    })
                })
            };
            let rows = tenant.sync.apply(&now);
            if let Err(error) =
                set.map_err(|error| error.to_string()).and(rows.map_err(|e| e.to_string()))
            {
                eprintln!("interceptor: policy generation {}: {error}", now.generation);
            }
            let before = std::mem::replace(&mut in_force.applied, Arc::clone(&now));
            if now.on_removal == OnRemoval::Cut {
                cuts.insert(id, (before, now));
            }
        }
        if cuts.is_empty() {
            return;
        }
        let at = Arc::clone(running);
        let cut = move || (cut::datagrams(&at, &cuts), cut::direct(&at));
        match spawn_blocking(cut).await {
            Ok((0, 0)) => {}
            Ok((datagrams, direct)) => {
                eprintln!("interceptor: policy changed{}", cut::told(datagrams, direct));
            }
            Err(error) => tracing::error!("cutting direct flows broke off: {error}"),
        }
    }

    /// The rules that are these, in force.
    fn tenant_of(
        &mut self,
        running: &Running,
        wanted: &WantedRules,
        workload: &Workload,
    ) -> io::Result<Arc<Tenant>> {
        let rules = self.rules_of(wanted, workload).ok_or_else(|| {
            io::Error::other("there are too many different policies on this node")
        })?;
        let in_force = self.rules.iter_mut().find(|one| Arc::ptr_eq(&one.rules, &rules));
        let in_force = in_force.ok_or_else(|| io::Error::other("its policy is gone"))?;
        if let Some(tenant) = &in_force.tenant {
            return Ok(Arc::clone(tenant));
        }
        let written = rules.set_datagrams(&rules.policy.current(), &mut running.kernel.tables());
        written.map_err(io::Error::other)?;
        let tenant = Tenant::start(&running.kernel, &running.commons, &rules, false);
        in_force.tenant = Some(Arc::clone(&tenant));
        Ok(tenant)
    }

    /// The rules that are these; new ones where no pod had them. `None`: there are too many.
    fn rules_of(&mut self, wanted: &WantedRules, workload: &Workload) -> Option<Arc<Rules>> {
        let same = |one: &&mut InForce| {
            Arc::ptr_eq(&one.rules.policy, &wanted.policy)
                && one.rules.resolvers == wanted.resolvers
                && one.rules.lists == wanted.lists
        };
        if let Some(one) = self.rules.iter_mut().find(same) {
            one.unused = None;
            return Some(Arc::clone(&one.rules));
        }
        let taken: HashSet<u16> = self.rules.iter().map(|one| one.rules.id).collect();
        let most = EndpointKey::CAPTURE - 1;
        let id = self.ids.take(most, Instant::now(), |id| taken.contains(&id))?;
        let rules = Arc::new(Rules {
            id,
            namespace: Arc::clone(&workload.namespace),
            policy: Arc::clone(&wanted.policy),
            resolvers: wanted.resolvers.clone(),
            lists: wanted.lists.clone(),
        });
        self.rules.push(InForce {
            rules: Arc::clone(&rules),
            tenant: None,
            applied: wanted.policy.current(),
            unused: None,
        });
        Some(rules)
    }

    /// Takes rules out of the tables that no pod has any more.
    fn retire(&mut self, running: &Running) {
        let now = Instant::now();
        let used: HashSet<u16> =
            running.covered.tenants().iter().map(|tenant| tenant.rules.id).collect();
        let ids = &mut self.ids;
        self.rules.retain_mut(|one| {
            if used.contains(&one.rules.id) {
                one.unused = None;
                return true;
            }
            if now.duration_since(*one.unused.get_or_insert(now)) < UNUSED {
                return true;
            }
            if let Some(tenant) = &one.tenant {
                tenant.retire(&running.kernel);
            }
            ids.give_back(one.rules.id, now);
            false
        });
    }

    /// Whether the namespace of one of these pods is not found yet.
    pub(super) fn waits(&self, wanted: &[Wanted]) -> bool {
        wanted.iter().any(|one| !self.known.contains_key(&one.name))
    }

    /// Says once what is wrong with a pod.
    fn say(&mut self, name: &Name, trouble: String) {
        if self.troubles.get(name) != Some(&trouble) {
            eprintln!("interceptor: warning: pod {name} is held, and not covered yet: {trouble}");
            self.troubles.insert(name.clone(), trouble);
        }
    }
}
