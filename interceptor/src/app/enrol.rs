//! Covering network namespaces: listeners in them, their routes in the kernel's table; a command's own.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use interceptor_common::Namespace;
use tokio::task::JoinHandle;

use super::{AppError, system};
use crate::accept::Listeners;
use crate::kernel::{Kernel, KernelError, RouteEntry, TableError, Tables, require_interface_hooks};
use crate::netns::{Isolated, NetNs, Routes, WaysOut};
use crate::tiers::POLICY;
use crate::workloads::cgroup::Cgroup;

/// A namespace that is about to be covered: everything is ready but the kernel's table.
pub(super) struct Enrolled {
    pub(super) netns: Arc<NetNs>,
    pub(super) listeners: Listeners,
    /// Where its interface layer stands, and where it cannot.
    pub(super) ways: WaysOut,
    routes: Routes,
    entries: Vec<RouteEntry>,
}

impl Enrolled {
    /// Makes listeners in `netns`, unless it has some, and reads its routes.
    pub(super) async fn prepare(
        netns: Arc<NetNs>,
        listeners: Option<Listeners>,
    ) -> io::Result<Self> {
        let listeners = listeners.map_or_else(|| Listeners::bind(&netns), Ok)?;
        let mut routes = Routes::open(&netns)?;
        let entries = routes.read(&netns).await?;
        let mut ways = WaysOut::of(&netns).await?;
        if !ways.gates.is_empty()
            && let Err(missing) = require_interface_hooks()
        {
            ways.gates.clear();
            ways.gaps.push(missing.to_string());
        }
        // The daemon's own namespace has none at all, and everyone knows.
        if !netns.is_home() && !ways.gaps.is_empty() {
            eprintln!(
                "interceptor: warning: network namespace {} is covered at its sockets, but not at each \
                 interface: {}; what has CAP_NET_RAW or a socket from elsewhere gets out there",
                netns.label(),
                ways.gaps.join("; ")
            );
        }
        Ok(Self { netns, listeners, ways, routes, entries })
    }

    /// Enters it into the kernel's tables; routes first, so that no connect finds the namespace
    /// without them.
    pub(super) fn cover(&self, tables: &mut Tables) -> Result<(), TableError> {
        tables.set_routes(self.netns.cookie(), &self.entries)?;
        let interface = u8::from(!self.ways.gates.is_empty());
        let namespace = Namespace { policy: POLICY, interface, ..self.listeners.addresses() };
        tables.cover(self.netns.cookie(), namespace)
    }

    /// Starts following its routes, and gives the listeners away.
    pub(super) fn follow(self, kernel: Arc<Kernel>) -> (Listeners, JoinHandle<()>) {
        let Self { netns, listeners, mut routes, .. } = self;
        let following = tokio::spawn(async move {
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
        (listeners, following)
    }
}

/// How often room is made in the kernel's table of passages.
const SWEEP: Duration = Duration::from_secs(10);

/// Frees what no longer stands in the interface layer's table, for ever.
pub(super) async fn sweep(kernel: Arc<Kernel>) {
    loop {
        tokio::time::sleep(SWEEP).await;
        if let Err(error) = kernel.interface().sweep() {
            tracing::warn!("{error}");
        }
    }
}

/// A namespace of COMMAND's own, and the resolv.conf that it finds there over the machine's.
pub(super) async fn isolate(
    name: &str,
    resolvers: &[SocketAddr],
) -> Result<(NetNs, Isolated, Vec<(PathBuf, PathBuf)>), AppError> {
    // Without the interface layer it would hold nothing more than without a namespace.
    require_interface_hooks().map_err(KernelError::Missing)?;
    if let Some(local) = resolvers.iter().find(|resolver| resolver.ip().is_loopback()) {
        return Err(AppError::Usage(format!(
            "--isolate: the DNS server {local} is on this machine's loopback, which the command's network \
             does not have; name one that is not with --resolver (`resolvectl dns` shows what is behind \
             127.0.0.53)"
        )));
    }
    let (netns, isolated) = Isolated::create(name).await?;
    let own = isolated.resolv_conf(resolvers).map_err(system("cannot write a resolv.conf"))?;
    let machines = Path::new("/etc/resolv.conf");
    let files = machines.exists().then(|| (own, machines.to_owned())).into_iter().collect();
    Ok((netns, isolated, files))
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
