//! Pods that the hooks know by their cgroup: those with `hostNetwork`, which share the node's network
//! namespace with others; and privileged ones, which can go there. Both are asked for in exempt namespaces
//! only, after the daemon itself.

use std::collections::BTreeSet;
use std::path::Path;

use interceptor_common::Namespace;

use super::handler::Running;
use crate::kernel::{TableError, Tables};
use crate::workloads::cgroup::{Cgroup, CgroupError, Hierarchy};

/// A pod in the node's namespace.
#[derive(Debug, Clone)]
pub(super) struct HostPod {
    /// The pod's, with those of its containers below.
    pub(super) cgroup: Cgroup,
    /// Its key in the kernel's table of namespaces.
    pub(super) key: u64,
}

impl HostPod {
    /// # Errors
    /// Its cgroup is gone.
    pub(super) fn of(cgroup: Cgroup) -> Result<Self, CgroupError> {
        let key = Namespace::by_cgroup(cgroup.id()?);
        Ok(Self { cgroup, key })
    }

    /// What its cover cannot hold, for people.
    pub(super) fn limits(&self, mount: &Path) -> String {
        let cgroup = self.cgroup.path();
        format!(
            "hostNetwork: no interface of its own, so it is covered by its cgroup {} alone: packets that it \
             makes itself (CAP_NET_RAW), and sockets that others made and gave it, get out; the node's loopback is \
             open to it; what it opened before it was found is cut then",
            cgroup.strip_prefix(mount).unwrap_or(cgroup).display()
        )
    }
}

/// Levels at which pods' cgroups are looked for where nobody knows how deep the tree is that is seen.
const ANY: [u32; 2] = [1, 12];

/// The first and the last level of pods' cgroups: directly in that of all pods (`all`), or in its class's.
pub(super) fn levels(hierarchy: &Hierarchy, all: &[Cgroup]) -> [u32; 2] {
    let levels: Option<Vec<u32>> = all.iter().map(|cgroup| hierarchy.level(cgroup)).collect();
    let levels = levels.unwrap_or_default();
    match (levels.iter().min(), levels.iter().max()) {
        (Some(first), Some(last)) => [first + 1, last + 2],
        _ => ANY,
    }
}

/// Pods that are held in every exempt namespace.
#[derive(Debug, Default)]
pub(super) struct Held {
    /// What is in the table for it; `None`: what is there may be an earlier run's.
    keys: Option<BTreeSet<u64>>,
}

impl Held {
    /// Holds these, and no others. What neither they nor `others` are goes out of the table.
    ///
    /// # Errors
    /// [`TableError`]; the table is full.
    pub(super) fn settle(
        &mut self,
        running: &Running,
        wanted: BTreeSet<u64>,
        others: &BTreeSet<u64>,
    ) -> Result<(), TableError> {
        if self.keys.as_ref() == Some(&wanted) {
            return Ok(());
        }
        let mut tables = running.kernel.tables();
        let known = match self.keys.take() {
            Some(known) => known,
            None => by_cgroup(&tables).collect(),
        };
        for key in known.iter().filter(|key| !wanted.contains(*key) && !others.contains(*key)) {
            tables.forget_namespace(*key)?;
        }
        for key in &wanted {
            tables.cover(*key, Namespace::default())?;
        }
        self.keys = Some(wanted);
        Ok(())
    }
}

fn by_cgroup(tables: &Tables) -> impl Iterator<Item = u64> + use<> {
    let keys = tables.namespaces().into_iter().map(|(key, _)| key);
    keys.filter(|key| Namespace::is_by_cgroup(*key))
}
