//! Where a pod is: its network namespace, by the runtime's word or its processes; of a pod in the node's own
//! its cgroup.

use std::collections::BTreeSet;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;
use std::sync::Arc;

use super::super::by_cgroup::HostPod;
use super::super::enrol::{Enrolled, key_of};
use super::super::handler::Running;
use super::{Pods, Wanted};
use crate::accept::Listeners;
use crate::netns::NetNs;
use crate::workloads::cgroup::Cgroup;

/// Where a pod is.
pub(super) struct Found {
    pub(super) netns: Arc<NetNs>,
    /// Inode of its namespace, or of its cgroup.
    pub(super) number: u64,
    pub(super) pod: Option<HostPod>,
}

impl Found {
    pub(super) fn key(&self) -> u64 {
        key_of(&self.netns, self.pod.as_ref())
    }
}

impl Pods {
    /// Listeners and routes for a pod.
    pub(super) async fn prepare(
        &self,
        one: &Wanted,
        found: Found,
        listeners: Option<Listeners>,
    ) -> io::Result<Enrolled> {
        let mount = self.node.hierarchy.mount_point();
        let host = found.pod.as_ref().map(|pod| pod.limits(mount));
        let limits = host.into_iter().chain(one.privileged.clone()).collect();
        let enrolled = Enrolled::prepare(found.netns, found.pod, listeners).await?;
        Ok(enrolled.limited(limits))
    }

    /// Holds covered pods that are privileged wherever they get beside their own namespace.
    pub(super) fn hold_elsewhere(&mut self, running: &Running, privileged: &[PathBuf]) {
        let keys = |paths: &[PathBuf]| -> BTreeSet<u64> {
            let cgroups = paths.iter().filter_map(|path| self.node.hierarchy.at(path));
            cgroups.filter_map(|cgroup| HostPod::of(cgroup).ok()).map(|pod| pod.key).collect()
        };
        let (wanted, on_host) = (keys(privileged), keys(&self.on_host));
        if let Err(error) = self.held.settle(running, wanted, &on_host) {
            tracing::warn!("privileged pods in other namespaces: {error}");
        }
    }

    /// The namespace of a pod: the one that the runtime said; else that of its oldest process that is not in
    /// the node's own. A pod's first process is its sandbox's; what a container's does later is younger. Of a
    /// pod in the node's own it is the cgroup that is looked for: from before its first process on.
    pub(super) fn find(&self, one: &Wanted) -> Option<Found> {
        let mut cgroups = one.paths.iter().filter_map(|path| self.node.hierarchy.at(path));
        let own = |netns: NetNs, number| Found { netns: Arc::new(netns), number, pod: None };
        if one.is_on_host {
            let pod = HostPod::of(cgroups.next()?).ok()?;
            let netns = NetNs::current().ok()?.labelled(one.name.to_string());
            return Some(Found { netns: Arc::new(netns), number: pod.key, pod: Some(pod) });
        }
        if let Some((netns, inode)) = self.node.sandboxes.netns(&one.name, &one.uid) {
            return Some(own(netns, inode));
        }
        let home = inode_of("self")?;
        for pid in cgroups.flat_map(|cgroup| oldest_first(&cgroup)) {
            let inode = inode_of(&pid.to_string());
            let Some(inode) = inode.filter(|inode| *inode != home) else { continue };
            // One that ended meanwhile is no error.
            if let Ok(netns) = NetNs::of_process(pid) {
                return Some(own(netns.labelled(one.name.to_string()), inode));
            }
        }
        None
    }
}

fn inode_of(process: &str) -> Option<u64> {
    std::fs::metadata(format!("/proc/{process}/ns/net")).ok().map(|meta| meta.ino())
}

/// The processes of a cgroup and below.
fn oldest_first(cgroup: &Cgroup) -> Vec<u32> {
    let mut pids: Vec<_> = cgroup
        .procs()
        .unwrap_or_default()
        .into_iter()
        .filter_map(|pid| Some((started(pid)?, pid)))
        .collect();
    pids.sort_unstable();
    pids.into_iter().map(|(_, pid)| pid).collect()
}

/// When a process started, in ticks since the boot (proc_pid_stat(5), field 22).
fn started(pid: u32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // Its name, which may hold anything, ends at the last parenthesis; field 3 follows.
    let (_, fields) = stat.rsplit_once(") ")?;
    fields.split(' ').nth(19)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_older_than_its_child() {
        let mut child = std::process::Command::new("sleep").arg("9").spawn().expect("a child");
        let (own, younger) = (started(std::process::id()), started(child.id()));
        child.kill().expect("killed");
        child.wait().expect("ended");
        assert!(own.expect("a time") <= younger.expect("a time"));
    }
}
