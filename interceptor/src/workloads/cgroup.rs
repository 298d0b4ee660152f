//! Control groups (v2): finding the hierarchy, making, filling and emptying one.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::sys::statfs::{CGROUP2_SUPER_MAGIC, statfs};
use nix::unistd::Pid;
use tokio::time::{Instant, sleep};

use super::cgroupns::is_first;
use super::mounts::{self, Mount};
use crate::cli::Exit;

/// How often a cgroup that is being emptied is looked at.
const POLL: Duration = Duration::from_millis(20);

/// How long killed processes may take to be gone.
const KILL_WAIT: Duration = Duration::from_secs(5);

/// What can go wrong with cgroups.
#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    /// No version 2 hierarchy.
    #[error(
        "no cgroup v2 hierarchy is mounted; mount one: mount -t cgroup2 none /sys/fs/cgroup/unified"
    )]
    NoHierarchy,
    /// Our own cgroup lies outside the mount (a container with a part of the tree).
    #[error("this process's own cgroup {0} is not visible below the cgroup v2 mount {1}")]
    OwnNotVisible(String, PathBuf),
    /// A path that a user gave does not exist.
    #[error("no cgroup {path}: it exists neither as a path nor below {mount}", path = .0.display(), mount = .1.display())]
    NotFound(PathBuf, PathBuf),
    /// A path that a user gave is something else.
    #[error("{} is not a cgroup v2 directory (they lie below {})", .0.display(), .1.display())]
    NotCgroup2(PathBuf, PathBuf),
    /// Another interceptor lives in it.
    #[error("cgroup {} is in use by a running interceptor (pid {}); choose another --name", .0.display(), pid_list(.1))]
    Busy(PathBuf, Vec<u32>),
    /// It would end ourselves, or everything.
    #[error("refusing to terminate cgroup {path}: {why}", path = .0.display(), why = .1)]
    NotOurs(PathBuf, &'static str),
    /// Processes that even SIGKILL did not end.
    #[error("cgroup {} still holds processes after SIGKILL: pid {}", .0.display(), pid_list(.1))]
    StillPopulated(PathBuf, Vec<u32>),
    /// The system refused.
    #[error("{what} {}: {source}", .path.display())]
    Io {
        /// What we were doing.
        what: &'static str,
        /// To what.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

impl CgroupError {
    /// The status that a process ends with because of this.
    pub fn exit(&self) -> Exit {
        match self {
            Self::NoHierarchy => Exit::MissingKernelFeature,
            Self::NotFound(..) | Self::NotCgroup2(..) | Self::Busy(..) => Exit::Busy,
            Self::Io { source, .. } => match source.kind() {
                io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
                    Exit::Privilege
                }
                _ => Exit::Internal,
            },
            Self::OwnNotVisible(..) | Self::NotOurs(..) | Self::StillPopulated(..) => {
                Exit::Internal
            }
        }
    }

    fn io(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { what, path: path.to_owned(), source }
    }
}

fn pid_list(pids: &[u32]) -> String {
    pids.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

/// The cgroup v2 tree as mounted here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hierarchy {
    /// The directory of the tree that is mounted: `/` but in some containers.
    root: PathBuf,
    /// Where it is mounted.
    point: PathBuf,
}

impl Hierarchy {
    /// Looks in this process's mount table.
    ///
    /// # Errors
    /// There is none, or /proc is not mounted.
    pub fn discover() -> Result<Self, CgroupError> {
        let mounts = mounts::mounts().map_err(CgroupError::io("read", Path::new("/proc")))?;
        let reachable: Vec<Mount> = mounts.into_iter().filter(Mount::is_reachable).collect();
        Self::find(&reachable).ok_or(CgroupError::NoHierarchy)
    }

    /// The mount that shows most of the tree: shortest root, first of equals.
    fn find(mounts: &[Mount]) -> Option<Self> {
        mounts
            .iter()
            .filter(|mount| mount.fs_type == "cgroup2")
            .min_by_key(|mount| mount.root.components().count())
            .map(|mount| Self { root: mount.root.clone(), point: mount.point.clone() })
    }

    /// The topmost cgroup that is visible.
    pub fn top(&self) -> Cgroup {
        Cgroup { path: self.point.clone() }
    }

    /// The top directory.
    pub fn mount_point(&self) -> &Path {
        &self.point
    }

    /// The cgroup that this process is in.
    ///
    /// # Errors
    /// It lies outside what is mounted.
    pub fn own(&self) -> Result<Cgroup, CgroupError> {
        let path = Path::new("/proc/self/cgroup");
        let table = fs::read_to_string(path).map_err(CgroupError::io("read", path))?;
        self.own_in(&table)
    }

    /// Reads /proc/self/cgroup (cgroups(7)): the line of version 2 begins with `0::`.
    fn own_in(&self, table: &str) -> Result<Cgroup, CgroupError> {
        let own = table.lines().find_map(|line| line.strip_prefix("0::"));
        let own = own.ok_or(CgroupError::NoHierarchy)?;
        let visible = Path::new(own)
            .strip_prefix(&self.root)
            .ok()
            // Outside the cgroup namespace's root it is written with `..`; and an empty cgroup that
            // was removed ends in ` (deleted)`.
            .filter(|path| path.components().all(|part| part.as_os_str() != ".."))
            .filter(|_| !own.ends_with(" (deleted)"));
        match visible {
            Some(relative) => Ok(Cgroup { path: self.join(relative) }),
            None => Err(CgroupError::OwnNotVisible(own.to_owned(), self.point.clone())),
        }
    }

    /// A cgroup as a user writes it: a path below a cgroup v2 mount, or one relative to the mount,
    /// with or without the leading `/` (as /proc/PID/cgroup shows it).
    ///
    /// # Errors
    /// It does not exist, or is not on cgroup v2.
    pub fn resolve(&self, given: &Path) -> Result<Cgroup, CgroupError> {
        let relative = given.strip_prefix("/").unwrap_or(given);
        let below = self.join(relative);
        let absolute = given.is_absolute().then(|| given.to_owned());
        let found = absolute.into_iter().chain([below]).find_map(|path| path.canonicalize().ok());
        let Some(path) = found else {
            return Err(CgroupError::NotFound(given.to_owned(), self.point.clone()));
        };
        let on_cgroup2 = statfs(&path).is_ok_and(|fs| fs.filesystem_type() == CGROUP2_SUPER_MAGIC);
        if !on_cgroup2 || !path.is_dir() {
            return Err(CgroupError::NotCgroup2(given.to_owned(), self.point.clone()));
        }
        Ok(Cgroup { path })
    }

    /// The cgroup at `path` below the mount, if there is one.
    pub fn at(&self, path: &Path) -> Option<Cgroup> {
        let path = self.join(path);
        path.is_dir().then_some(Cgroup { path })
    }

    /// The level of a cgroup in the machine's tree, whose top is 0. `None` in a cgroup namespace that is not
    /// the machine's first: nobody tells how deep what is seen there lies.
    pub fn level(&self, cgroup: &Cgroup) -> Option<u32> {
        let below = cgroup.path.strip_prefix(&self.point).ok()?;
        let parts = self.root.components().chain(below.components());
        let level = parts.filter(|part| matches!(part, Component::Normal(_))).count();
        is_first().then(|| u32::try_from(level).ok()).flatten()
    }

    /// Every cgroup of this directory name that is root's, wherever it is in the tree. One that a
    /// user made under a cgroup of their own is no leftover of ours: adopting it would let that user
    /// put processes in with the daemon (T-8).
    pub(super) fn find_named(&self, name: &str) -> Vec<Cgroup> {
        let all = self.top().subtree().unwrap_or_default();
        let is_ours = |cgroup: &Cgroup| {
            cgroup.path.ends_with(name)
                && cgroup.path.symlink_metadata().is_ok_and(|meta| meta.uid() == 0)
        };
        all.into_iter().filter(is_ours).collect()
    }

    /// `join("")` would leave a `/` at the end.
    fn join(&self, relative: &Path) -> PathBuf {
        if relative.as_os_str().is_empty() { self.point.clone() } else { self.point.join(relative) }
    }
}

/// One control group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cgroup {
    path: PathBuf,
}

impl Cgroup {
    /// Its directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The kernel's number for it: what `bpf_get_current_cgroup_id` gives, the directory's inode.
    ///
    /// # Errors
    /// It is gone.
    pub fn id(&self) -> Result<u64, CgroupError> {
        let meta = self.path.metadata().map_err(CgroupError::io("look at cgroup", &self.path))?;
        Ok(meta.ino())
    }

    /// Makes a cgroup in this one, or takes the one that is there.
    ///
    /// # Errors
    /// Not allowed, or not possible here.
    pub fn create(&self, child: &str) -> Result<Self, CgroupError> {
        let child = self.child(child);
        match fs::create_dir(&child.path) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                Err(CgroupError::io("create cgroup", &child.path)(error))
            }
            _ => Ok(child),
        }
    }

    /// A cgroup in this one, whether it exists or not.
    pub(super) fn child(&self, name: &str) -> Self {
        Self { path: self.path.join(name) }
    }

    /// The cgroup that holds this one.
    pub(super) fn parent(&self) -> Option<Self> {
        self.path.parent().map(|path| Self { path: path.to_owned() })
    }

    /// Whether it is directly in the other one.
    pub(super) fn is_in(&self, other: &Self) -> bool {
        self.path.parent() == Some(&other.path)
    }

    /// Moves this process, with all its threads, into the cgroup.
    ///
    /// # Errors
    /// Not allowed, or the cgroup takes no processes.
    pub fn add_self(&self) -> Result<(), CgroupError> {
        self.add(0)
    }

    /// Moves process `pid` into the cgroup.
    ///
    /// # Errors
    /// As [`Self::add_self`], or there is no such process.
    pub fn add(&self, pid: u32) -> Result<(), CgroupError> {
        let file = self.path.join("cgroup.procs");
        fs::write(&file, pid.to_string()).map_err(CgroupError::io("move a process to", &file))
    }

    /// The processes in it and below, in order of number. Those of other pid namespaces, which have
    /// no number here, are left out.
    ///
    /// # Errors
    /// It cannot be read. A cgroup that is gone has none.
    pub fn procs(&self) -> Result<Vec<u32>, CgroupError> {
        let mut pids = BTreeSet::new();
        for cgroup in self.subtree()? {
            let file = cgroup.path.join("cgroup.procs");
            match fs::read_to_string(&file) {
                Ok(text) => pids.extend(text.lines().filter_map(|line| line.parse::<u32>().ok())),
                Err(error) if is_gone(&error) => {}
                Err(error) => return Err(CgroupError::io("read", &file)(error)),
            }
        }
        // The kernel writes 0 for a process without a number here, and kill(0) would mean us.
        pids.remove(&0);
        Ok(pids.into_iter().collect())
    }

    /// Whether a process is in it or below, of whatever pid namespace.
    ///
    /// # Errors
    /// It cannot be read. A cgroup that is gone is empty.
    pub fn is_populated(&self) -> Result<bool, CgroupError> {
        let file = self.path.join("cgroup.events");
        match fs::read_to_string(&file) {
            Ok(text) => Ok(text.lines().any(|line| line == "populated 1")),
            Err(error) if is_gone(&error) => Ok(false),
            Err(error) => Err(CgroupError::io("read", &file)(error)),
        }
    }

    /// Waits until no process is left in it or below.
    ///
    /// # Errors
    /// It cannot be read.
    pub async fn wait_empty(&self) -> Result<(), CgroupError> {
        while self.is_populated()? {
            sleep(POLL).await;
        }
        Ok(())
    }

    /// Ends everything in it and below: SIGTERM, and what is left after `grace` is killed.
    ///
    /// # Errors
    /// This process is in it, it is the top of the tree, or processes outlive SIGKILL (they hang in
    /// the kernel).
    pub async fn terminate(&self, grace: Duration) -> Result<(), CgroupError> {
        // Only the top has no cgroup.events.
        if self.path.exists() && !self.path.join("cgroup.events").exists() {
            return Err(CgroupError::NotOurs(self.path.clone(), "it is the top of the tree"));
        }
        let pids = self.procs()?;
        if pids.contains(&std::process::id()) {
            return Err(CgroupError::NotOurs(self.path.clone(), "this process is in it"));
        }
        for signal in [Signal::SIGTERM, Signal::SIGCONT] {
            // A stopped process takes its SIGTERM only when it goes on.
            signal_all(&pids, signal);
        }
        if self.is_empty_by(Instant::now() + grace).await? {
            return Ok(());
        }
        let deadline = Instant::now() + KILL_WAIT;
        // cgroup.kill (Linux 5.14) also catches what forks meanwhile; without it we go round.
        if fs::write(self.path.join("cgroup.kill"), "1").is_err() {
            while self.is_populated()? && Instant::now() < deadline {
                signal_all(&self.procs()?, Signal::SIGKILL);
                sleep(POLL).await;
            }
        }
        if self.is_empty_by(deadline).await? {
            return Ok(());
        }
        Err(CgroupError::StillPopulated(self.path.clone(), self.procs()?))
    }

    async fn is_empty_by(&self, deadline: Instant) -> Result<bool, CgroupError> {
        match tokio::time::timeout_at(deadline, self.wait_empty()).await {
            Ok(done) => done.map(|()| true),
            Err(_) => Ok(!self.is_populated()?),
        }
    }

    /// Removes it and every cgroup below. Gone already is as good.
    ///
    /// # Errors
    /// A process is still in one of them.
    pub fn remove(&self) -> Result<(), CgroupError> {
        for cgroup in self.subtree()?.iter().rev() {
            match fs::remove_dir(&cgroup.path) {
                Err(error) if !is_gone(&error) => {
                    return Err(CgroupError::io("remove cgroup", &cgroup.path)(error));
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// It and all below, parents before children.
    fn subtree(&self) -> Result<Vec<Self>, CgroupError> {
        let mut found = vec![self.clone()];
        let mut next = 0;
        while let Some(cgroup) = found.get(next) {
            next += 1;
            let path = cgroup.path.clone();
            let entries = match fs::read_dir(&path) {
                Ok(entries) => entries,
                Err(error) if is_gone(&error) => continue,
                Err(error) => return Err(CgroupError::io("read", &path)(error)),
            };
            // In cgroupfs every directory is a cgroup, and there are no links.
            let children =
                entries.flatten().filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
            found.extend(children.map(|entry| Self { path: entry.path() }));
        }
        Ok(found)
    }
}

/// The directory was removed: before the open (ENOENT) or after it (ENODEV).
fn is_gone(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENODEV))
}

fn signal_all(pids: &[u32], signal: Signal) {
    for pid in pids.iter().filter_map(|pid| i32::try_from(*pid).ok()) {
        // One that ended meanwhile is what we want.
        let _ = kill(Pid::from_raw(pid), signal);
    }
}

#[cfg(test)]
#[path = "cgroup_tests.rs"]
mod tests;
