//! Pods' network namespaces as the CNI plugin tells of them, before anything runs there.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::sync::{Mutex, MutexGuard, PoisonError};

use interceptor_common::capacity;

use crate::admin::Sandbox;
use crate::agent::Name;
use crate::agent::cgroups::PodUid;
use crate::cni::{Record, Records};
use crate::netns::NetNs;

/// The newest of each pod.
#[derive(Debug, Default)]
pub(super) struct Sandboxes(Mutex<BTreeMap<Name, Sandbox>>);

impl Sandboxes {
    /// Those that the plugin attached while no agent was there to hear of it.
    pub(super) fn recorded(records: &Records) -> Self {
        let sandboxes = Self::default();
        for Record { netns, cookie, namespace, name, uid, .. } in records.all() {
            sandboxes.put(Sandbox { netns, cookie, namespace, name, uid });
        }
        sandboxes
    }

    /// Notes one.
    pub(super) fn put(&self, sandbox: Sandbox) {
        let Sandbox { namespace, name, .. } = &sandbox;
        let pod = Name { namespace: namespace.clone(), name: name.clone() };
        let mut all = self.all();
        if all.len() >= capacity::NAMESPACES as usize {
            all.retain(|_, one| one.netns.exists());
        }
        // No more than fit into the kernel's table; a pod beyond them could not be covered either.
        if all.len() < capacity::NAMESPACES as usize {
            all.insert(pod, sandbox);
        }
    }

    /// The namespace of a pod and its inode, where it is known and still there.
    pub(super) fn netns(&self, pod: &Name, uid: &PodUid) -> Option<(NetNs, u64)> {
        let sandbox = self.all().get(pod)?.clone();
        if sandbox.uid.is_some_and(|known| known != uid.to_string()) {
            return None;
        }
        let netns = NetNs::named(sandbox.netns.to_str()?).ok()?;
        let inode = fs::metadata(&sandbox.netns).ok()?.ino();
        // Not ours, and no other that was made at the same path.
        (!netns.is_home() && netns.cookie() == sandbox.cookie)
            .then(|| (netns.labelled(pod.to_string()), inode))
    }

    fn all(&self) -> MutexGuard<'_, BTreeMap<Name, Sandbox>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
