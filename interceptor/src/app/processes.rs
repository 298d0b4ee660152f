//! Processes of a cgroup, and the network namespaces that they are in.

use std::os::unix::fs::MetadataExt as _;

use crate::workloads::cgroup::Cgroup;

/// The inode of the network namespace that a process is in.
pub(super) fn inode_of(process: &str) -> Option<u64> {
    std::fs::metadata(format!("/proc/{process}/ns/net")).ok().map(|meta| meta.ino())
}

/// The processes of a cgroup and below.
pub(super) fn oldest_first(cgroup: &Cgroup) -> Vec<u32> {
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
