//! Which network namespaces there are on the machine.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use super::NetNs;
use crate::workloads::mounts::mounts;

/// The cookies of all namespaces that a process is in, or that are mounted somewhere, as container
/// runtimes and `ip netns` do. One that only a descriptor or a socket holds is not among them, and no
/// pod's.
///
/// # Errors
/// One of them cannot be looked at, so that nothing may be concluded from its absence.
pub fn alive() -> io::Result<HashSet<u64>> {
    let mut places: HashMap<u64, PathBuf> = HashMap::new();
    for process in fs::read_dir("/proc")?.flatten() {
        let is_process =
            process.file_name().to_str().is_some_and(|name| name.parse::<u32>().is_ok());
        let place = process.path().join("ns/net");
        // One that ended meanwhile is in none.
        if is_process && let Ok(meta) = fs::metadata(&place) {
            places.entry(meta.ino()).or_insert(place);
        }
    }
    for mount in mounts()?.into_iter().filter(|mount| mount.fs_type == "nsfs") {
        let is_net = mount.root.to_str().is_some_and(|root| root.starts_with("net:["));
        if is_net && mount.is_reachable() {
            places.entry(fs::metadata(&mount.point)?.ino()).or_insert(mount.point);
        }
    }
    let mut cookies = HashSet::new();
    for place in places.values() {
        match NetNs::open(place, String::new()) {
            Ok(netns) => drop(cookies.insert(netns.cookie())),
            Err(error) if has_ended(place, &error) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(cookies)
}

/// Whether a process ended before it was looked at.
fn has_ended(place: &Path, error: &io::Error) -> bool {
    let gone = matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ESRCH));
    gone && place.starts_with("/proc")
}
