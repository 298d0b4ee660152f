//! The host's cgroup namespace. A container of its own one sees its cgroup as `/`, wherever it is; a
//! runtime gives the host's to privileged containers only.

use std::fs::{File, metadata};
use std::io;
use std::os::unix::fs::MetadataExt as _;

use nix::sched::{CloneFlags, setns};

const OWN: &str = "/proc/self/ns/cgroup";
const HOSTS: &str = "/proc/1/ns/cgroup";

/// Joins the cgroup namespace of process 1, if that is another one: with the host's PID namespace
/// (`hostPID`) it is the host's. To be called while there is one thread, which is what joins.
///
/// # Errors
/// Process 1 may not be looked at (CAP_SYS_PTRACE), or joining is not allowed (CAP_SYS_ADMIN).
pub fn join_hosts() -> io::Result<()> {
    let (own, hosts) = (metadata(OWN)?, metadata(HOSTS)?);
    if (own.dev(), own.ino()) == (hosts.dev(), hosts.ino()) {
        return Ok(());
    }
    Ok(setns(File::open(HOSTS)?, CloneFlags::CLONE_NEWCGROUP)?)
}

/// Whether this process is in the machine's first cgroup namespace, in which paths begin at the top of the
/// tree. The kernel gives that one a number of its own (`PROC_CGROUP_INIT_INO`).
pub fn is_first() -> bool {
    const FIRST: u64 = 0xEFFF_FFFB;
    metadata(OWN).is_ok_and(|own| own.ino() == FIRST)
}
