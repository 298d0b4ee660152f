//! Where a pod's cgroup is: what kubelet, containerd and CRI-O call it, under either driver. Pure.
//!
//! ```text
//! systemd   kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod<uid, _ for ->.slice/
//!           cri-containerd-<id>.scope, crio-<id>.scope
//! cgroupfs  kubepods/burstable/pod<uid>/
//!           <id> (containerd), crio-<id> (CRI-O)
//! ```
//!
//! Guaranteed pods have no class in their path. Below `--cgroup-root` systemd repeats the parents in
//! each name: `kubelet.slice/kubelet-kubepods.slice/…`.

use std::fmt;
use std::path::{Path, PathBuf};

/// A pod's quality of service, which is a part of its path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Deserialize)]
pub enum Qos {
    /// Requests are limits.
    Guaranteed,
    /// Something is requested.
    Burstable,
    /// Nothing is.
    BestEffort,
}

impl Qos {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Guaranteed, Self::Burstable, Self::BestEffort];

    /// What it adds to a path.
    fn part(self) -> Option<&'static str> {
        match self {
            Self::Guaranteed => None,
            Self::Burstable => Some("burstable"),
            Self::BestEffort => Some("besteffort"),
        }
    }
}

/// Who names cgroups: kubelet's `cgroupDriver`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Driver {
    /// Slices and scopes.
    Systemd,
    /// Plain directories.
    Cgroupfs,
}

impl Driver {
    /// Both of them.
    pub const ALL: [Self; 2] = [Self::Systemd, Self::Cgroupfs];
}

/// A container's id as its runtime gave it, at least [`MIN_ID`] hexadecimal digits.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ContainerId {
    /// Who runs it.
    pub runtime: Runtime,
    /// Lower-case hexadecimal; nothing in it means anything in a path.
    id: String,
}

/// A container runtime.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Runtime {
    /// containerd.
    Containerd,
    /// CRI-O.
    Crio,
}

/// Shorter ids are none: both runtimes give 64 digits.
const MIN_ID: usize = 32;

impl ContainerId {
    /// Reads `containerStatuses[].containerID`, such as `containerd://0a1b…`; `None` where it is of
    /// another runtime, or cannot be a part of a path.
    pub fn parse(text: &str) -> Option<Self> {
        let (runtime, id) = text.split_once("://")?;
        let runtime = match runtime {
            "containerd" => Runtime::Containerd,
            "cri-o" => Runtime::Crio,
            _ => return None,
        };
        is_id(id).then(|| Self { runtime, id: id.to_owned() })
    }

    /// The name of its cgroup in its pod's.
    pub fn cgroup(&self, driver: Driver) -> String {
        let id = &self.id;
        match (driver, self.runtime) {
            (Driver::Systemd, Runtime::Containerd) => format!("cri-containerd-{id}.scope"),
            (Driver::Systemd, Runtime::Crio) => format!("crio-{id}.scope"),
            (Driver::Cgroupfs, Runtime::Containerd) => id.clone(),
            (Driver::Cgroupfs, Runtime::Crio) => format!("crio-{id}"),
        }
    }
}

fn is_id(text: &str) -> bool {
    text.len() >= MIN_ID && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

/// A pod's uid as its cgroup has it. For a static pod that is not the API object's uid but kubelet's
/// own, which the object has in the annotation `kubernetes.io/config.hash`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PodUid(String);

impl PodUid {
    /// Reads it; `None` where it has anything but letters, digits and hyphens, and so could lead
    /// elsewhere in a path.
    pub fn parse(text: &str) -> Option<Self> {
        let good = |b: u8| b.is_ascii_alphanumeric() || b == b'-';
        let plain = (1..=63).contains(&text.len()) && text.bytes().all(good);
        plain.then(|| Self(text.to_owned()))
    }
}

impl fmt::Display for PodUid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Where a pod's cgroup may be, relative to the mount of cgroup v2, kubelet's `--cgroup-root` being
/// `root` (`/` unless it says otherwise): one path for each driver.
pub fn pod_paths(root: &Path, qos: Qos, uid: &PodUid) -> [(Driver, PathBuf); 2] {
    Driver::ALL.map(|driver| (driver, pod_path(driver, root, qos, uid)))
}

/// Where the cgroup of all pods may be, one path for each driver.
pub fn all_pods_paths(root: &Path) -> [PathBuf; 2] {
    Driver::ALL.map(|driver| {
        let nobodys = PodUid("x".to_owned());
        let mut path = pod_path(driver, root, Qos::Guaranteed, &nobodys);
        path.pop();
        path
    })
}

fn pod_path(driver: Driver, root: &Path, qos: Qos, uid: &PodUid) -> PathBuf {
    let root = root.components().filter_map(|part| match part {
        std::path::Component::Normal(part) => part.to_str(),
        _ => None,
    });
    let parents = root.chain(["kubepods"]).chain(qos.part());
    match driver {
        Driver::Cgroupfs => {
            let mut path: PathBuf = parents.collect();
            path.push(format!("pod{uid}"));
            path
        }
        Driver::Systemd => {
            let uid = uid.0.replace('-', "_");
            let (mut path, mut name) = (PathBuf::new(), String::new());
            for part in parents.map(systemd_part).chain([format!("pod{uid}")]) {
                if !name.is_empty() {
                    name.push('-');
                }
                name.push_str(&part);
                path.push(format!("{name}.slice"));
            }
            path
        }
    }
}

/// A hyphen separates levels in a slice's name; kubelet puts an underscore for one within a level.
fn systemd_part(part: &str) -> String {
    part.trim_end_matches(".slice").replace('-', "_")
}

/// Whose a cgroup is, by its path alone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Location {
    /// The pod.
    pub uid: PodUid,
    /// Its class, as the path has it.
    pub qos: Qos,
    /// The driver, by the form of the path.
    pub driver: Driver,
    /// The container, where the path goes that far.
    pub container: Option<ContainerId>,
}

impl Location {
    /// Reads a path of any depth, absolute or relative, of either cgroup layout; `None` where it is
    /// no pod's. What lies deeper than a container belongs to the container.
    pub fn of(path: &Path) -> Option<Self> {
        let parts: Vec<&str> = path.iter().filter_map(|part| part.to_str()).collect();
        let (index, (driver, qos, uid)) = parts.iter().enumerate().find_map(|(index, part)| {
            pod_part(&parts[..index], part).map(|found| (index, found))
        })?;
        let container = parts.get(index + 1).and_then(|part| container_part(driver, part));
        Some(Self { uid, qos, driver, container })
    }
}

/// What says in `part` that it is a pod, `before` being what it lies in.
fn pod_part(before: &[&str], part: &str) -> Option<(Driver, Qos, PodUid)> {
    if let Some(name) = part.strip_suffix(".slice") {
        let (parents, uid) = name.rsplit_once("-pod")?;
        let qos = match parents.rsplit('-').next()? {
            "kubepods" => Qos::Guaranteed,
            "burstable" => Qos::Burstable,
            "besteffort" => Qos::BestEffort,
            _ => return None,
        };
        // Its parents are repeated in its name, or it is somebody's look-alike.
        let parent = before.last().and_then(|parent| parent.strip_suffix(".slice"));
        (parent == Some(parents) && parents.contains("kubepods")).then_some(())?;
        return Some((Driver::Systemd, qos, PodUid::parse(&uid.replace('_', "-"))?));
    }
    let uid = part.strip_prefix("pod")?;
    let qos = match before {
        [.., "kubepods"] => Qos::Guaranteed,
        [.., "kubepods", "burstable"] => Qos::Burstable,
        [.., "kubepods", "besteffort"] => Qos::BestEffort,
        _ => return None,
    };
    Some((Driver::Cgroupfs, qos, PodUid::parse(uid)?))
}

fn container_part(driver: Driver, part: &str) -> Option<ContainerId> {
    let (runtime, id) = match driver {
        Driver::Systemd => {
            let name = part.strip_suffix(".scope")?;
            match name.strip_prefix("cri-containerd-") {
                Some(id) => (Runtime::Containerd, id),
                None => (Runtime::Crio, name.strip_prefix("crio-")?),
            }
        }
        Driver::Cgroupfs => match part.strip_prefix("crio-") {
            Some(id) => (Runtime::Crio, id),
            None => (Runtime::Containerd, part),
        },
    };
    // CRI-O's `crio-conmon-ID` is its own helper's, and no container.
    is_id(id).then(|| ContainerId { runtime, id: id.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    const UID: &str = "0f0d9b4e-6c1f-4f7c-9a55-0b7d0e0a1c11";
    const ID: &str = "4c01db0b339c4c01db0b339c4c01db0b339c4c01db0b339c4c01db0b339c4c01";

    fn uid() -> PodUid {
        PodUid::parse(UID).unwrap()
    }

    #[test]
    fn paths_of_both_drivers_and_all_classes() {
        let table = [
            (
                "/",
                Qos::Burstable,
                "kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod0f0d9b4e_6c1f_4f7c_9a55_0b7d0e0a1c11.slice",
                "kubepods/burstable/pod0f0d9b4e-6c1f-4f7c-9a55-0b7d0e0a1c11",
            ),
            (
                "/",
                Qos::BestEffort,
                "kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod0f0d9b4e_6c1f_4f7c_9a55_0b7d0e0a1c11.slice",
                "kubepods/besteffort/pod0f0d9b4e-6c1f-4f7c-9a55-0b7d0e0a1c11",
            ),
            (
                "/",
                Qos::Guaranteed,
                "kubepods.slice/kubepods-pod0f0d9b4e_6c1f_4f7c_9a55_0b7d0e0a1c11.slice",
                "kubepods/pod0f0d9b4e-6c1f-4f7c-9a55-0b7d0e0a1c11",
            ),
            (
                "/kubelet",
                Qos::Burstable,
                "kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-burstable.slice/kubelet-kubepods-burstable-pod0f0d9b4e_6c1f_4f7c_9a55_0b7d0e0a1c11.slice",
                "kubelet/kubepods/burstable/pod0f0d9b4e-6c1f-4f7c-9a55-0b7d0e0a1c11",
            ),
        ];
        for (root, qos, systemd, cgroupfs) in table {
            let paths = pod_paths(Path::new(root), qos, &uid());
            assert_eq!(paths[0], (Driver::Systemd, systemd.into()), "{root} {qos:?}");
            assert_eq!(paths[1], (Driver::Cgroupfs, cgroupfs.into()), "{root} {qos:?}");
            for (driver, path) in paths {
                let read = Location::of(&path).expect("read back");
                assert_eq!((read.driver, read.qos, read.uid), (driver, qos, uid()));
            }
        }
    }

    #[test]
    fn where_all_pods_are() {
        let at =
            |root: &str| all_pods_paths(Path::new(root)).map(|path| path.display().to_string());
        assert_eq!(at("/"), ["kubepods.slice", "kubepods"]);
        assert_eq!(at("/kubelet"), ["kubelet.slice/kubelet-kubepods.slice", "kubelet/kubepods"]);
    }

    #[test]
    fn containers_of_both_runtimes() {
        let table = [
            ("containerd", Driver::Systemd, format!("cri-containerd-{ID}.scope")),
            ("containerd", Driver::Cgroupfs, ID.to_owned()),
            ("cri-o", Driver::Systemd, format!("crio-{ID}.scope")),
            ("cri-o", Driver::Cgroupfs, format!("crio-{ID}")),
        ];
        for (runtime, driver, name) in table {
            let id = ContainerId::parse(&format!("{runtime}://{ID}")).unwrap();
            assert_eq!(id.cgroup(driver), name);
            let pod = pod_path(driver, Path::new("/"), Qos::Burstable, &uid());
            for deeper in ["", "inner/deeper"] {
                let read = Location::of(&pod.join(&name).join(deeper)).expect("a pod's");
                assert_eq!(read.container.as_ref(), Some(&id), "{runtime} {driver:?}");
            }
        }
    }

    #[test]
    fn whose_a_path_is() {
        let short = "4c01db0b339c";
        let (pod, slice) = (format!("pod{UID}"), UID.replace('-', "_"));
        let burstable = "kubepods.slice/kubepods-burstable.slice";
        // Path; whether it is a pod's, and whether a container's.
        let table = [
            (format!("/sys/fs/cgroup/unified/kubepods/burstable/{pod}/{ID}"), true, true),
            (format!("/sys/fs/cgroup/kubepods/{pod}"), true, false),
            (
                format!("/sys/fs/cgroup/{burstable}/kubepods-burstable-pod{slice}.slice"),
                true,
                false,
            ),
            (
                format!("{burstable}/kubepods-burstable-pod{slice}.slice/crio-conmon-{ID}.scope"),
                true,
                false,
            ),
            (format!("kubepods/burstable/{pod}/{short}"), true, false),
            ("kubepods/burstable".into(), false, false),
            ("kubepods.slice/kubepods-burstable.slice".into(), false, false),
            (format!("system.slice/{pod}"), false, false),
            (format!("user.slice/kubepods-burstable-pod{slice}.slice"), false, false),
            (format!("user.slice/x-burstable.slice/x-burstable-pod{slice}.slice"), false, false),
            ("kubepods/burstable/pod..".into(), false, false),
            ("".into(), false, false),
        ];
        for (path, is_pod, is_container) in table {
            let read = Location::of(Path::new(&path));
            assert_eq!(read.is_some(), is_pod, "{path}");
            let container = read.and_then(|read| read.container);
            assert_eq!(container.is_some(), is_container, "{path}");
        }
    }

    /// What the API says goes into paths, so nothing in it may lead elsewhere.
    #[test]
    fn what_cannot_be_a_part_of_a_path_is_no_id() {
        for bad in ["", "..", "a/b", "../../x", "a_b", "a.slice"] {
            assert_eq!(PodUid::parse(bad), None, "{bad}");
        }
        for bad in
            ["containerd://", "containerd://../x", "docker://0a", &format!("containerd://{ID}/x")]
        {
            assert_eq!(ContainerId::parse(bad), None, "{bad}");
        }
    }
}
