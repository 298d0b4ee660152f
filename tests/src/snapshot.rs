//! What the kernel and the file system hold for the product, to see that nothing stays behind.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Where bpffs is by convention.
pub const BPFFS: &str = "/sys/fs/bpf";
/// Where the product keeps its control sockets.
pub const CONTROL_DIR: &str = "/run/interceptor";

/// Everything that must be the same after the product as before it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    things: BTreeSet<String>,
}

impl Snapshot {
    /// Looks at bpffs, BPF links, cgroups, named network namespaces and control sockets.
    /// BPF links are listed only where `bpftool` is installed.
    #[must_use]
    pub fn take() -> Self {
        let mut things = BTreeSet::new();
        walk(Path::new(BPFFS), &mut |path| {
            things.insert(format!("bpffs {}", path.display()));
        });
        if let Some(root) = cgroup2_mount() {
            walk(&root, &mut |path| {
                if path.is_dir() {
                    things.insert(format!("cgroup {}", path.display()));
                }
            });
        }
        for (kind, directory) in [("netns", "/run/netns"), ("control", CONTROL_DIR)] {
            for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
                things.insert(format!("{kind} {}", entry.file_name().to_string_lossy()));
            }
        }
        things.extend(bpf_links());
        Self { things }
    }

    /// What one of the two has and the other doesn't: `+` for new, `-` for gone.
    #[must_use]
    pub fn difference(&self, after: &Self) -> Vec<String> {
        let new = after.things.difference(&self.things).map(|thing| format!("+ {thing}"));
        let gone = self.things.difference(&after.things).map(|thing| format!("- {thing}"));
        new.chain(gone).collect()
    }

    /// The things whose description contains `word`.
    #[must_use]
    pub fn with(&self, word: &str) -> Vec<&str> {
        self.things.iter().map(String::as_str).filter(|thing| thing.contains(word)).collect()
    }
}

/// Where cgroup v2 is mounted: /sys/fs/cgroup, or beside v1 in /sys/fs/cgroup/unified.
#[must_use]
pub fn cgroup2_mount() -> Option<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mounts").ok()?;
    mounts.lines().find_map(|line| {
        let mut words = line.split(' ');
        let (place, kind) = (words.nth(1)?, words.next()?);
        (kind == "cgroup2").then(|| PathBuf::from(place))
    })
}

/// One line a link, as `bpftool` numbers them; a number is never used twice while the machine is up.
fn bpf_links() -> Vec<String> {
    let Ok(output) = Command::new("bpftool").args(["-j", "link", "show"]).output() else {
        return Vec::new();
    };
    let links: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
    let word = |link: &serde_json::Value, key: &str| link[key].to_string().replace('"', "");
    links
        .as_array()
        .into_iter()
        .flatten()
        .map(|link| format!("link {} {}", word(link, "id"), word(link, "type")))
        .collect()
}

/// Calls `found` for everything below a directory; what vanishes meanwhile is passed over.
fn walk(directory: &Path, found: &mut impl FnMut(&Path)) {
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        let path = entry.path();
        found(&path);
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            walk(&path, found);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_difference_names_both_directions() {
        let snapshot =
            |things: &[&str]| Snapshot { things: things.iter().map(ToString::to_string).collect() };
        let before = snapshot(&["link 1", "cgroup a"]);
        let after = snapshot(&["link 1", "cgroup b"]);
        assert_eq!(before.difference(&after), ["+ cgroup b", "- cgroup a"]);
        assert_eq!(before.difference(&before), Vec::<String>::new());
    }
}
