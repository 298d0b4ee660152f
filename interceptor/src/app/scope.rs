//! What is covered: which cgroups and namespaces, which resolvers they have, and who can reach into
//! them.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use super::enrol::namespaces_of;
use super::{AppError, resolv_conf, system};
use crate::accept::Listeners;
use crate::admin::HandedOver;
use crate::cli;
use crate::netns::NetNs;
use crate::workloads::cgroup::{Cgroup, Hierarchy};
use crate::workloads::session::Session;

/// Our own workload cgroup and the given ones, without those that lie below another: a parent's
/// hooks run for its children, and twice would be wrong.
pub(super) fn cgroups(args: &cli::Run, session: &Session) -> Result<Vec<Cgroup>, AppError> {
    let hierarchy = Hierarchy::discover()?;
    let mut all = Vec::new();
    for path in &args.cgroups {
        all.push(hierarchy.resolve(path)?);
    }
    all.push(session.workload().clone());
    let paths: BTreeSet<_> = all.iter().map(|cgroup| cgroup.path().to_owned()).collect();
    let mut seen = BTreeSet::new();
    all.retain(|cgroup| {
        let below = cgroup.path().ancestors().skip(1).any(|above| paths.contains(above));
        !below && seen.insert(cgroup.path().to_owned())
    });
    Ok(all)
}

/// With COMMAND the namespace that it runs in; else those that the cgroups' processes are in now,
/// or, where there are none yet, ours.
pub(super) fn namespaces(args: &cli::Run, cgroups: &[Cgroup]) -> Result<Vec<NetNs>, AppError> {
    let mut namespaces = Vec::new();
    if let Some(given) = &args.netns {
        let netns = NetNs::named(given).map_err(|source| AppError::Busy {
            what: format!("network namespace {given} (a name as `ip netns` knows it, or a path)"),
            source,
        })?;
        namespaces.push(netns);
    }
    if args.command.is_empty() {
        namespaces.extend(namespaces_of(cgroups));
    }
    if namespaces.is_empty() {
        namespaces.push(NetNs::current().map_err(system("cannot open our own network namespace"))?);
    }
    let mut seen = BTreeSet::new();
    namespaces.retain(|netns| seen.insert(netns.cookie()));
    Ok(namespaces)
}

/// The same, and those that a predecessor covers, with its listeners: one may have no process just now.
pub(super) fn with_handed_over(
    namespaces: Vec<NetNs>,
    handed_over: Vec<HandedOver>,
) -> std::io::Result<Vec<(NetNs, Option<Listeners>)>> {
    let mut all: Vec<_> = namespaces.into_iter().map(|netns| (netns, None)).collect();
    for one in handed_over {
        let (netns, listeners) = adopt(one)?;
        match all.iter_mut().find(|(known, _)| known.cookie() == netns.cookie()) {
            Some((_, known)) => *known = listeners,
            None => all.push((netns, listeners)),
        }
    }
    Ok(all)
}

/// A namespace that a predecessor covers, with its listeners.
pub(super) fn adopt(handed_over: HandedOver) -> std::io::Result<(NetNs, Option<Listeners>)> {
    let HandedOver { label, path, netns, v4, v6 } = handed_over;
    let netns = NetNs::handed_over(netns, &path, label)?;
    Ok((netns, Some(Listeners::adopt(v4, v6)?)))
}

/// The namespace's name in /etc/netns, where it was given by one.
pub(super) fn etc_netns(args: &cli::Run) -> Option<&str> {
    args.netns.as_deref().filter(|given| !given.contains('/'))
}

/// The name servers that the workload may ask, and that we ask: `--resolver`, else /etc/resolv.conf
/// as it is now, and the namespace's own file where a command finds that instead.
pub(super) fn resolvers(args: &cli::Run) -> Result<Vec<SocketAddr>, AppError> {
    if !args.resolvers.is_empty() {
        return Ok(args.resolvers.clone());
    }
    let own = Path::new("/etc/resolv.conf");
    let mut servers = match resolv_conf::read(own) {
        Ok(servers) => servers,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Vec::new(),
        Err(error) => return Err(system("cannot read /etc/resolv.conf")(error)),
    };
    if let Some(name) = etc_netns(args) {
        let theirs = Path::new("/etc/netns").join(name).join("resolv.conf");
        for server in resolv_conf::read(&theirs).unwrap_or_default() {
            if !servers.contains(&server) {
                servers.push(server);
            }
        }
    }
    if servers.is_empty() {
        eprintln!(
            "interceptor: warning: /etc/resolv.conf names no server; names will not resolve (--resolver IP)"
        );
    }
    Ok(servers)
}

/// Where `exec` puts further commands: beside COMMAND, or into the first given cgroup.
pub(super) fn exec_cgroup(args: &cli::Run, session: &Session, cgroups: &[Cgroup]) -> PathBuf {
    let own = session.workload();
    let target = if args.command.is_empty() { cgroups.first().unwrap_or(own) } else { own };
    target.path().to_owned()
}
