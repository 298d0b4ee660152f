//! The machine: kernel, file systems, privileges.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use caps::{CapSet, Capability};
use nix::mount::MsFlags;
use nix::sys::resource::{Resource, getrlimit};
use nix::unistd::{AccessFlags, access};

use super::super::cgroups::all_pods_paths;
use super::Finding;
use crate::kernel::{KernelError, Pins, Programs, require_floor, require_interface_hooks};
use crate::workloads::cgroup::Hierarchy;
use crate::workloads::mounts::{self, Mount};

/// Where the agent would work.
#[derive(Debug)]
pub struct Place<'a> {
    /// kubelet's `--cgroup-root`.
    pub cgroup_root: &'a Path,
    /// The directories that it writes.
    pub directories: [&'a Path; 2],
}

/// What has to be effective, with what for; CAP_BPF is a part of CAP_SYS_ADMIN.
const CAPABILITIES: [(Capability, &str); 3] = [
    (Capability::CAP_SYS_ADMIN, "joining pods' network namespaces"),
    (Capability::CAP_NET_ADMIN, "programs at interfaces, ending sockets"),
    (Capability::CAP_SYS_PTRACE, "finding the namespaces of other users' processes"),
];

/// With fewer file descriptors than this there is no use in a proxy.
const FEWEST_DESCRIPTORS: u64 = 4096;

/// With fewer than this a busy node may come to its limit: two for each proxied connection.
const FEW_DESCRIPTORS: u64 = 65_536;

/// Looks at everything.
pub fn look(place: &Place<'_>) -> Vec<Finding> {
    let mut all = vec![kernel(), type_information(Path::new("/sys/kernel/btf/vmlinux"))];
    all.extend(cgroups(place.cgroup_root));
    all.push(bpffs(&mounts::mounts().unwrap_or_default()));
    all.push(capabilities(|one| caps::has_cap(None, CapSet::Effective, one).unwrap_or(false)));
    all.push(programs());
    all.push(interface_layer());
    let limit = getrlimit(Resource::RLIMIT_NOFILE).map_or(0, |(_, hard)| hard);
    all.push(descriptors(limit));
    all.extend(place.directories.iter().map(|directory| writable(directory)));
    all
}

fn kernel() -> Finding {
    match require_floor() {
        Ok(version) => Finding::good("kernel", format!("Linux {version}")),
        Err(missing) => Finding::missing(
            "kernel",
            missing.to_string(),
            "run the agent on nodes with a newer one",
        ),
    }
}

/// Programs and tables are described by types, which the kernel compares with its own.
fn type_information(file: &Path) -> Finding {
    const WHAT: &str = "type information";
    match file.metadata() {
        Ok(_) => Finding::good(WHAT, file.display().to_string()),
        Err(error) => Finding::missing(
            WHAT,
            format!("{}: {error}", file.display()),
            "use a kernel with CONFIG_DEBUG_INFO_BTF=y, as distributions have it",
        ),
    }
}

fn cgroups(root: &Path) -> Vec<Finding> {
    let hierarchy = match Hierarchy::discover() {
        Ok(hierarchy) => hierarchy,
        Err(error) => {
            let fix = "mount the host's /sys/fs/cgroup, on a node that has version 2";
            return vec![Finding::missing("cgroups", error.to_string(), fix)];
        }
    };
    let own = match hierarchy.own() {
        // It makes cgroups of its own in there.
        Ok(own) if access(own.path(), AccessFlags::W_OK).is_err() => Finding::missing(
            "cgroups",
            format!("{} cannot be written", own.path().display()),
            "mount the host's /sys/fs/cgroup without readOnly",
        ),
        Ok(own) => Finding::good(
            "cgroups",
            format!(
                "at {}; our own is {}",
                hierarchy.mount_point().display(),
                own.path().display()
            ),
        ),
        Err(error) => Finding::missing(
            "cgroups",
            error.to_string(),
            "hostPID: true and CAP_SYS_PTRACE, so that the agent can join the host's cgroup namespace",
        ),
    };
    vec![own, pods(hierarchy.mount_point(), root)]
}

/// The pods' parent, and whether what runs below it can be seen.
fn pods(mount: &Path, root: &Path) -> Finding {
    const WHAT: &str = "pods' cgroup";
    let Some(parent) = parent_of_pods(mount, root) else {
        return Finding::lacking(
            WHAT,
            format!(
                "no kubepods.slice and no kubepods below {} in {}",
                root.display(),
                mount.display()
            ),
            "none is needed before the node's first pod; else give kubelet's --cgroup-root",
        );
    };
    let shown = parent.display();
    match seen(&processes(&parent)) {
        Seen::Nobody => Finding::good(WHAT, format!("{shown}; nothing runs there")),
        Seen::Namespace(pid) => {
            Finding::good(WHAT, format!("{shown}; process {pid} was looked at"))
        }
        Seen::Hidden => Finding::missing(
            WHAT,
            format!("{shown}: its processes are of another PID namespace"),
            "hostPID: true",
        ),
        Seen::Closed(pid, error) => Finding::missing(
            WHAT,
            format!("the network namespace of process {pid} cannot be opened: {error}"),
            "CAP_SYS_PTRACE, and appArmorProfile: Unconfined",
        ),
    }
}

/// The cgroup of all pods, by either driver.
fn parent_of_pods(mount: &Path, root: &Path) -> Option<PathBuf> {
    all_pods_paths(root).into_iter().map(|path| mount.join(path)).find(|path| path.is_dir())
}

/// Processes below a cgroup as cgroup.procs lists them, of the first few cgroups that have any; 0
/// stands for one of another PID namespace.
fn processes(parent: &Path) -> Vec<u32> {
    const ENOUGH: usize = 8;
    let mut left = vec![parent.to_owned()];
    let mut found = Vec::new();
    while let Some(directory) = left.pop()
        && found.len() < ENOUGH
    {
        let text = fs::read_to_string(directory.join("cgroup.procs")).unwrap_or_default();
        found.extend(text.lines().filter_map(|line| line.parse::<u32>().ok()).take(ENOUGH));
        let entries = fs::read_dir(&directory).into_iter().flatten().flatten();
        left.extend(entries.map(|entry| entry.path()).filter(|path| path.is_dir()));
    }
    found
}

/// What can be seen of the pods' processes.
enum Seen {
    Nobody,
    Hidden,
    Namespace(u32),
    Closed(u32, io::Error),
}

fn seen(processes: &[u32]) -> Seen {
    if processes.contains(&0) {
        return Seen::Hidden;
    }
    for pid in processes {
        match fs::File::open(format!("/proc/{pid}/ns/net")) {
            Ok(_) => return Seen::Namespace(*pid),
            // It ended.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Seen::Closed(*pid, error),
        }
    }
    Seen::Nobody
}

/// Where pins go. One that is mounted in the agent's own mount namespace would end with it.
fn bpffs(mounts: &[Mount]) -> Finding {
    const WHAT: &str = "bpffs";
    const PATH: &str = "/sys/fs/bpf";
    let mounted = mounts.iter().rfind(|mount| mount.point == Path::new(PATH));
    match mounted.filter(|mount| mount.fs_type == "bpf") {
        None => Finding::missing(
            WHAT,
            format!("not mounted at {PATH}"),
            "mount it on the node (mount -t bpf bpf /sys/fs/bpf, as systemd does), and have it as hostPath",
        ),
        Some(mount) if mount.flags.contains(MsFlags::MS_RDONLY) => Finding::missing(
            WHAT,
            format!("{PATH} is read-only"),
            "mount it into the container without readOnly",
        ),
        Some(_) => Finding::good(WHAT, PATH),
    }
}

fn capabilities(has: impl Fn(Capability) -> bool) -> Finding {
    const WHAT: &str = "capabilities";
    let (there, lacking): (Vec<_>, Vec<_>) =
        CAPABILITIES.into_iter().partition(|(one, _)| has(*one));
    let names = |all: Vec<(Capability, &str)>| {
        let names: Vec<_> = all.iter().map(|(one, what)| format!("{one} ({what})")).collect();
        names.join(", ")
    };
    match lacking.is_empty() {
        true => {
            let names: Vec<_> = there.iter().map(|(one, _)| one.to_string()).collect();
            Finding::good(WHAT, names.join(", "))
        }
        false => Finding::missing(
            WHAT,
            format!("without {}", names(lacking)),
            "run it as root; in a pod, securityContext.capabilities.add as in the chart",
        ),
    }
}

/// Whether the kernel takes every program: hooks, helpers and privileges in one.
fn programs() -> Finding {
    const WHAT: &str = "programs";
    let name = format!("check-{}", std::process::id());
    let loaded = Programs::load(&name, false);
    // Tables are pinned while programs are loaded.
    let gone = Pins::of(&name).remove();
    match (loaded, gone) {
        (Ok(_), Ok(())) => Finding::good(WHAT, "the kernel's verifier takes all of them"),
        (Ok(_), Err(error)) => {
            Finding::lacking(WHAT, format!("they load, but {error}"), "remove it by hand")
        }
        (Err(error), _) => {
            let fix = match &error {
                KernelError::Missing(_) => "run the agent on nodes with a newer kernel",
                KernelError::Privilege(_) => {
                    "CAP_SYS_ADMIN and CAP_NET_ADMIN; a kernel that is not locked down; a seccomp \
                     profile that lets bpf(2) pass"
                }
                KernelError::NoObject => "use a binary of cargo xtask build, or of the image",
                KernelError::Pin(_) => "see bpffs",
                _ => "report it, with what INTERCEPTOR_LOG=debug says",
            };
            Finding::missing(WHAT, error.to_string(), fix)
        }
    }
}

fn interface_layer() -> Finding {
    const WHAT: &str = "interface layer";
    match require_interface_hooks() {
        Ok(()) => Finding::good(WHAT, "this kernel has what it hangs on"),
        Err(missing) => Finding::lacking(
            WHAT,
            missing.to_string(),
            "pods are covered at their sockets only, and the agent is ready with \
             --allow-single-layer (agent.allowSingleLayer) only",
        ),
    }
}

fn descriptors(limit: u64) -> Finding {
    const WHAT: &str = "descriptors";
    const FIX: &str = "raise the container runtime's limit on open files (LimitNOFILE of its unit)";
    match limit {
        limit if limit < FEWEST_DESCRIPTORS => {
            Finding::missing(WHAT, format!("{limit}; at least {FEWEST_DESCRIPTORS}"), FIX)
        }
        limit if limit < FEW_DESCRIPTORS => {
            let found = format!("{limit}: {} connections at the proxy at once", limit / 2);
            Finding::lacking(WHAT, found, FIX)
        }
        limit => Finding::good(WHAT, limit.to_string()),
    }
}

fn writable(directory: &Path) -> Finding {
    const WHAT: &str = "state";
    let shown = directory.display();
    // The first that is there: the rest is made at start.
    let existing = directory.ancestors().find(|path| path.is_dir()).unwrap_or(Path::new("/"));
    match access(existing, AccessFlags::W_OK | AccessFlags::X_OK) {
        Ok(()) => Finding::good(WHAT, shown.to_string()),
        Err(error) => Finding::missing(
            WHAT,
            format!("{shown}: cannot write {}: {error}", existing.display()),
            "have it as hostPath, writable for root",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::super::Verdict;
    use super::*;

    #[test]
    fn each_lack_has_its_remedy() {
        let mount = |fs_type: &str, flags| Mount {
            device: 1,
            root: "/".into(),
            point: "/sys/fs/bpf".into(),
            fs_type: fs_type.to_owned(),
            flags,
        };
        let without = |lacking| move |one| one != lacking;
        let table = [
            (bpffs(&[]), Verdict::Missing, "not mounted"),
            (bpffs(&[mount("tmpfs", MsFlags::empty())]), Verdict::Missing, "not mounted"),
            (bpffs(&[mount("bpf", MsFlags::MS_RDONLY)]), Verdict::Missing, "read-only"),
            (bpffs(&[mount("bpf", MsFlags::empty())]), Verdict::Good, "/sys/fs/bpf"),
            (capabilities(|_| true), Verdict::Good, "CAP_SYS_ADMIN"),
            (
                capabilities(without(Capability::CAP_SYS_PTRACE)),
                Verdict::Missing,
                "without CAP_SYS_PTRACE (finding",
            ),
            (descriptors(1024), Verdict::Missing, "1024"),
            (descriptors(20_000), Verdict::Lacking, "10000 connections"),
            (descriptors(1 << 20), Verdict::Good, "1048576"),
            (type_information(Path::new("/nowhere")), Verdict::Missing, "/nowhere"),
        ];
        for (finding, verdict, found) in table {
            assert_eq!(finding.verdict, verdict, "{finding:?}");
            assert!(finding.found.contains(found), "{finding:?}");
            assert_eq!(finding.fix.is_empty(), verdict == Verdict::Good, "{finding:?}");
        }
    }

    #[test]
    fn pods_are_looked_for_where_either_driver_puts_them() {
        let mount = tempfile::tempdir().expect("a directory");
        let look = |root: &str| parent_of_pods(mount.path(), Path::new(root));
        assert_eq!(look("/"), None);
        assert_eq!(pods(mount.path(), Path::new("/")).verdict, Verdict::Lacking);
        for path in ["kubepods", "kubelet.slice/kubelet-kubepods.slice", "a/kubepods"] {
            fs::create_dir_all(mount.path().join(path)).expect("made");
        }
        assert_eq!(look("/"), Some(mount.path().join("kubepods")));
        assert_eq!(look("/a"), Some(mount.path().join("a/kubepods")));
        let slice = mount.path().join("kubelet.slice/kubelet-kubepods.slice");
        assert_eq!(look("/kubelet"), Some(slice));
        fs::create_dir_all(mount.path().join("kubepods.slice")).expect("made");
        assert_eq!(look("/"), Some(mount.path().join("kubepods.slice")));
    }

    #[test]
    fn processes_of_elsewhere_are_told_from_none() {
        let parent = tempfile::tempdir().expect("a directory");
        let pod = parent.path().join("burstable/pod1");
        fs::create_dir_all(&pod).expect("made");
        assert!(matches!(seen(&processes(parent.path())), Seen::Nobody));
        fs::write(pod.join("cgroup.procs"), format!("{}\n", std::process::id())).expect("written");
        assert!(
            matches!(seen(&processes(parent.path())), Seen::Namespace(pid) if pid == std::process::id())
        );
        fs::write(pod.join("cgroup.procs"), "0\n0\n").expect("written");
        assert!(matches!(seen(&processes(parent.path())), Seen::Hidden));
    }
}
