//! Covering network namespaces: listeners in them, their routes in the kernel's table; a command's own.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use interceptor_common::Namespace;
use tokio::task::JoinHandle;

use super::by_cgroup::HostPod;
use super::handler::Running;
use super::tenant::Rules;
use super::{AppError, system};
use crate::accept::Listeners;
use crate::kernel::{Kernel, KernelError, RouteEntry, TableError, Tables, require_interface_hooks};
use crate::netns::diag::Diag;
use crate::netns::{Changes, Gate, Isolated, NetNs, Routes, WaysOut};
use crate::workloads::cgroup::Cgroup;

/// A namespace that is about to be covered: everything is ready but the kernel's table.
pub(super) struct Enrolled {
    pub(super) netns: Arc<NetNs>,
    /// Not all that is in there, but this pod of the node's own.
    pub(super) pod: Option<HostPod>,
    pub(super) listeners: Listeners,
    /// Where its interface layer stands, and where it cannot.
    pub(super) ways: WaysOut,
    /// What its cover cannot hold for what it is, in words.
    pub(super) limits: Vec<String>,
    routes: Routes,
    entries: Vec<RouteEntry>,
}

impl Enrolled {
    /// Makes listeners in `netns`, unless it has some, and reads its routes. `pod`: for this one alone.
    pub(super) async fn prepare(
        netns: Arc<NetNs>,
        pod: Option<HostPod>,
        listeners: Option<Listeners>,
    ) -> io::Result<Self> {
        let listeners = listeners.map_or_else(|| Listeners::bind(&netns), Ok)?;
        let mut routes = Routes::open(&netns)?;
        let entries = routes.read(&netns).await?;
        let ways = match &pod {
            // Where the node's packets leave nobody can tell whose they are.
            Some(_) => WaysOut::default(),
            None => ways_out(&netns, &WaysOut::default()).await?,
        };
        Ok(Self { netns, pod, listeners, ways, limits: Vec::new(), routes, entries })
    }

    /// The same, with what its cover cannot hold.
    pub(super) fn limited(self, limits: Vec<String>) -> Self {
        Self { limits, ..self }
    }

    /// Its key in the kernel's table.
    pub(super) fn key(&self) -> u64 {
        key_of(&self.netns, self.pod.as_ref())
    }

    /// Enters it into the kernel's tables; routes first, so that no connect finds the namespace
    /// without them.
    pub(super) fn cover(
        &self,
        rules: &Rules,
        audited: bool,
        tables: &mut Tables,
    ) -> Result<(), TableError> {
        let entry = rules.entry(self.listeners.addresses(), &rules.policy.current(), audited);
        self.enter(entry, tables)
    }

    /// The same, as `entry`.
    pub(super) fn enter(&self, entry: Namespace, tables: &mut Tables) -> Result<(), TableError> {
        tables.set_routes(self.netns.cookie(), &self.entries)?;
        tables.cover(self.key(), entry)
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

/// The key, in the kernel's table of namespaces, of a namespace or a pod of the node's own.
pub(super) fn key_of(netns: &NetNs, pod: Option<&HostPod>) -> u64 {
    pod.map_or_else(|| netns.cookie(), |pod| pod.key)
}

/// Where the interface layer can stand, and where it cannot, which is said unless it was so `before`.
async fn ways_out(netns: &NetNs, before: &WaysOut) -> io::Result<WaysOut> {
    let mut ways = WaysOut::of(netns, &before.gates).await?;
    if !ways.gates.is_empty()
        && let Err(missing) = require_interface_hooks()
    {
        ways.gates.clear();
        ways.gaps.push(missing.to_string());
    }
    // The daemon's own namespace has none at all, and everyone knows.
    if !netns.is_home() && !ways.gaps.is_empty() && ways.gaps != before.gaps {
        eprintln!(
            "interceptor: warning: network namespace {} is covered at its sockets, but not at each \
             interface: {}; what has CAP_NET_RAW or a socket from elsewhere gets out there",
            netns.label(),
            ways.gaps.join("; ")
        );
    }
    Ok(ways)
}

/// Changes of interfaces are looked at once in so long, at the most.
const REST: Duration = Duration::from_secs(1);

/// They are looked at once in so long, at the least: netlink loses what comes too fast.
const LOOK: Duration = Duration::from_secs(30);

/// Covers interfaces that come into covered namespaces, and forgets those that are gone, for ever.
pub(super) async fn follow_interfaces(running: Arc<Running>) {
    let subscribe = || -> io::Result<Changes> {
        let mut all = vec![Changes::of_links(&NetNs::current()?)?];
        for covered in running.covered.all().values() {
            all.push(Changes::of_links(&covered.netns)?);
        }
        Ok(Changes::any(all))
    };
    loop {
        let mut changes = match subscribe() {
            Ok(changes) => changes,
            Err(error) => return tracing::warn!("interfaces are not followed: {error}"),
        };
        // Until other namespaces are covered.
        loop {
            // Some may have come before we listened.
            if let Err(error) = cover_interfaces(&running).await {
                eprintln!("interceptor: warning: an interface is not covered: {error}");
            }
            tokio::time::sleep(REST).await;
            tokio::select! {
                () = running.covered.changed() => break,
                changed = tokio::time::timeout(LOOK, changes.next()) => if changed == Ok(false) {
                    return tracing::warn!("interfaces are not followed any more: netlink ended");
                },
            }
        }
    }
}

/// Puts the interface layer at every way out that is known, and takes it from where nothing is covered any
/// more.
pub(super) async fn set_gates(running: &Running) -> io::Result<()> {
    let _alone = running.at_gates.lock().await;
    let all = running.covered.all();
    let gates = all.values().flat_map(|covered| covered.ways.load().gates.clone());
    running.kernel.set_gates(&gates.collect::<Vec<_>>()).map_err(io::Error::other)
}

/// Looks for ways out that came or went.
async fn cover_interfaces(running: &Running) -> io::Result<()> {
    let _alone = running.at_gates.lock().await;
    let mut found = Vec::new();
    let all = running.covered.all();
    for covered in all.values().filter(|covered| covered.pod.is_none()) {
        let before = covered.ways.load_full();
        let ways = ways_out(&covered.netns, &before).await?;
        found.push((covered, before, ways));
    }
    let gates: Vec<Gate> =
        found.iter().flat_map(|(_, _, ways)| ways.gates.iter().cloned()).collect();
    running.kernel.set_gates(&gates).map_err(io::Error::other)?;
    for (covered, before, ways) in found {
        let was_one = |gate: &&Gate| before.gates.iter().any(|old| old.index == gate.index);
        for gate in ways.gates.iter().filter(|gate| !was_one(gate)) {
            let label = covered.netns.label();
            eprintln!("interceptor: interface {} leads out of {label} now: covered", gate.name);
        }
        covered.ways.store(Arc::new(ways));
    }
    Ok(())
}

/// Whether connections can be ended in these namespaces, as those must be whose name is refused; in the
/// daemon's own where there is none.
///
/// # Errors
/// What is missing, in words.
pub(super) fn can_destroy<'n>(namespaces: impl Iterator<Item = &'n NetNs>) -> Result<(), String> {
    let mut asked = false;
    for netns in namespaces {
        asked = true;
        destroyer(netns)?;
    }
    if !asked {
        destroyer(&NetNs::current().map_err(|error| error.to_string())?)?;
    }
    Ok(())
}

/// What ends connections in a namespace.
///
/// # Errors
/// What is missing, in words.
pub(super) fn destroyer(netns: &NetNs) -> Result<Diag, String> {
    let diag = Diag::open(netns);
    diag.and_then(|diag| diag.require_destroy().map(|()| diag)).map_err(|error| {
        format!(
            "cannot end connections in network namespace {} (SOCK_DESTROY, CONFIG_INET_DIAG_DESTROY): \
             {error}",
            netns.label()
        )
    })
}

/// How often room is made in the kernel's table of passages.
const SWEEP: Duration = Duration::from_secs(10);

/// Frees what no longer stands in the interface layer's table, for ever.
pub(super) async fn sweep(kernel: Arc<Kernel>) {
    loop {
        tokio::time::sleep(SWEEP).await;
        let kernel = Arc::clone(&kernel);
        match tokio::task::spawn_blocking(move || kernel.interface().sweep()).await {
            Ok(Ok(_)) => {}
            Ok(Err(error)) => tracing::warn!("{error}"),
            Err(error) => tracing::error!("sweeping passages broke off: {error}"),
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
