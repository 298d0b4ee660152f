//! The covered namespaces: which there are, and whose.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use interceptor_common::Namespace;
use tokio::sync::Notify;
use tokio::task::JoinHandle;

use super::by_cgroup::HostPod;
use super::enrol::key_of;
use super::tenant::Tenant;
use crate::accept::Doors;
use crate::admit::Room;
use crate::conn::Site;
use crate::netns::diag::Diag;
use crate::netns::{NetNs, WaysOut};
use crate::workloads::cgroup::Cgroup;
use crate::workloads::{Audit, Workload};

/// A covered namespace, or a pod in the node's own.
pub(super) struct CoveredNamespace {
    pub(super) netns: Arc<NetNs>,
    /// Not all that is in there, but this pod.
    pub(super) pod: Option<HostPod>,
    pub(super) doors: Doors,
    pub(super) ways: ArcSwap<WaysOut>,
    /// What its cover cannot hold for what it is, in words.
    pub(super) limits: Vec<String>,
    pub(super) room: Arc<Room>,
    /// What its next connection is served by.
    pub(super) site: Arc<ArcSwap<Site>>,
    pub(super) whose: ArcSwap<Whose>,
    /// What its connections ask whether [`Whose::audited`] still holds.
    pub(super) audit: Audit,
    /// What ends refused connections in it.
    pub(super) destroyer: Option<Diag>,
    /// What follows its routes.
    pub(super) following: Mutex<Option<JoinHandle<()>>>,
}

/// Whose a namespace is, and the rules that it has.
#[derive(Clone)]
pub(super) struct Whose {
    pub(super) tenant: Arc<Tenant>,
    pub(super) workload: Arc<Workload>,
    /// What would be refused passes, and is told.
    pub(super) audited: bool,
}

impl Whose {
    /// What the hooks are told of a namespace of this kind, whose listeners are `at`.
    pub(super) fn entry(&self, at: Namespace) -> Namespace {
        self.tenant.rules.entry(at, &self.tenant.policy(), self.audited)
    }
}

impl CoveredNamespace {
    /// Whose it is now.
    pub(super) fn whose(&self) -> Arc<Whose> {
        self.whose.load_full()
    }

    /// Its key in the kernel's table.
    pub(super) fn key(&self) -> u64 {
        key_of(&self.netns, self.pod.as_ref())
    }

    /// Those of its cgroups that are covered; `all`: of all that are.
    pub(super) fn cgroups<'c>(&'c self, all: &'c [Cgroup]) -> &'c [Cgroup] {
        self.pod.as_ref().map_or(all, |pod| std::slice::from_ref(&pod.cgroup))
    }

    /// Stops what writes the kernel's tables for it.
    pub(super) async fn stop_following(&self) {
        let task = self.following.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(task) = task {
            task.abort();
            // Cancelled, as it was asked.
            let _ = task.await;
        }
    }
}

/// For how long it is known whose a namespace was that is gone: reports of it are still on their way.
const REMEMBERED: Duration = Duration::from_secs(10);

/// The covered namespaces, by their keys in the kernel's table.
#[derive(Default)]
pub(super) struct Registry {
    live: ArcSwap<BTreeMap<u64, Arc<CoveredNamespace>>>,
    gone: Mutex<HashMap<u64, (Instant, Arc<Whose>)>>,
    changed: Notify,
    uncovered: ArcSwap<BTreeMap<String, String>>,
}

impl Registry {
    /// Pods that were meant to be covered and are not, and why.
    pub(super) fn uncovered(&self) -> Arc<BTreeMap<String, String>> {
        self.uncovered.load_full()
    }

    /// Says which those are.
    pub(super) fn set_uncovered(&self, uncovered: BTreeMap<String, String>) {
        self.uncovered.store(Arc::new(uncovered));
    }

    /// All of them.
    pub(super) fn all(&self) -> Arc<BTreeMap<u64, Arc<CoveredNamespace>>> {
        self.live.load_full()
    }

    /// Whose a namespace is, or was until just now.
    pub(super) fn whose(&self, key: u64) -> Option<Arc<Whose>> {
        match self.live.load().get(&key) {
            Some(covered) => Some(covered.whose()),
            None => self.gone().get(&key).map(|(_, whose)| Arc::clone(whose)),
        }
    }

    /// The rules that any of them has, each once.
    pub(super) fn tenants(&self) -> Vec<Arc<Tenant>> {
        let live = self.live.load();
        let tenants = live.values().map(|covered| Arc::clone(&covered.whose().tenant));
        let by_id: BTreeMap<u16, _> = tenants.map(|tenant| (tenant.rules.id, tenant)).collect();
        by_id.into_values().collect()
    }

    /// Adds one. Only one task at a time adds and removes.
    pub(super) fn add(&self, covered: Arc<CoveredNamespace>) {
        let mut all = BTreeMap::clone(&self.live.load());
        all.insert(covered.key(), covered);
        self.live.store(Arc::new(all));
        self.changed.notify_one();
    }

    /// Takes one out.
    pub(super) fn remove(&self, key: u64) -> Option<Arc<CoveredNamespace>> {
        let mut all = BTreeMap::clone(&self.live.load());
        let removed = all.remove(&key)?;
        let now = Instant::now();
        let mut gone = self.gone();
        gone.retain(|_, (since, _)| now.duration_since(*since) < REMEMBERED);
        gone.insert(key, (now, removed.whose()));
        drop(gone);
        self.live.store(Arc::new(all));
        self.changed.notify_one();
        Some(removed)
    }

    /// Waits until one was added or removed since.
    pub(super) async fn changed(&self) {
        self.changed.notified().await;
    }

    fn gone(&self) -> MutexGuard<'_, HashMap<u64, (Instant, Arc<Whose>)>> {
        self.gone.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
