//! Covering network namespaces: listeners in them, their routes in the kernel's table.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use interceptor_common::Namespace;

use crate::accept::Listeners;
use crate::kernel::{Kernel, RouteEntry, TableError, Tables};
use crate::netns::{NetNs, Routes};
use crate::tiers::POLICY;
use crate::workloads::cgroup::Cgroup;

/// A namespace that is about to be covered: everything is ready but the kernel's table.
pub(super) struct Enrolled {
    pub(super) netns: Arc<NetNs>,
    pub(super) listeners: Listeners,
    routes: Routes,
    entries: Vec<RouteEntry>,
}

impl Enrolled {
    /// Makes listeners in `netns` and reads its routes.
    pub(super) async fn prepare(netns: Arc<NetNs>) -> io::Result<Self> {
        let listeners = Listeners::bind(&netns)?;
        let mut routes = Routes::open(&netns)?;
        let entries = routes.read(&netns).await?;
        Ok(Self { netns, listeners, routes, entries })
    }

    /// Enters it into the kernel's tables; routes first, so that no connect finds the namespace
    /// without them.
    pub(super) fn cover(&self, tables: &mut Tables) -> Result<(), TableError> {
        tables.set_routes(self.netns.cookie(), &self.entries)?;
        let namespace = Namespace { policy: POLICY, ..self.listeners.addresses() };
        tables.cover(self.netns.cookie(), namespace)
    }

    /// Starts following its routes, and gives the listeners away.
    pub(super) fn follow(self, kernel: Arc<Kernel>) -> Listeners {
        let Self { netns, listeners, mut routes, .. } = self;
        tokio::spawn(async move {
            while routes.changed().await {
                match routes.read(&netns).await {
                    Ok(entries) => {
                        if let Err(error) = kernel.tables().set_routes(netns.cookie(), &entries) {
                            tracing::warn!("routes of {}: {error}", netns.label());
                        }
                    }
                    Err(error) => tracing::warn!("routes of {}: {error}", netns.label()),
                }
            }
        });
        listeners
    }
}

/// The namespaces that the processes of `cgroups` are in now, each once.
pub(super) fn namespaces_of(cgroups: &[Cgroup]) -> Vec<NetNs> {
    let mut found = BTreeMap::new();
    for pid in cgroups.iter().filter_map(|cgroup| cgroup.procs().ok()).flatten() {
        // A process that ended meanwhile is no error.
        if let Ok(netns) = NetNs::of_process(pid) {
            found.entry(netns.cookie()).or_insert(netns);
        }
    }
    found.into_values().collect()
}
