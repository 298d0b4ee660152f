//! Starting a command as a covered workload.

use std::ffi::{CString, OsStr, OsString};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};

use caps::Capability;
use nix::fcntl::OFlag;
use nix::mount::MsFlags;
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Gid, Pid, Uid, User, getgrouplist, pipe2};
use tokio::process::Child;
use tokio::signal::unix::{SignalKind, signal};

use super::cgroup::Cgroup;
use super::child::{self, Step};
use super::mounts;
use crate::cli::Exit;

/// The capabilities that a root command keeps, those of an ordinary container: none opens a packet
/// socket (T-6), changes the network or mounts, loads BPF or reads other processes.
const KEPT_BY_ROOT: [Capability; 12] = [
    Capability::CAP_CHOWN,
    Capability::CAP_DAC_OVERRIDE,
    Capability::CAP_FOWNER,
    Capability::CAP_FSETID,
    Capability::CAP_KILL,
    Capability::CAP_SETGID,
    Capability::CAP_SETUID,
    Capability::CAP_SETPCAP,
    Capability::CAP_NET_BIND_SERVICE,
    Capability::CAP_SYS_CHROOT,
    Capability::CAP_AUDIT_WRITE,
    Capability::CAP_SETFCAP,
];

/// How often a launch is tried while mounts come and go.
const ATTEMPTS: usize = 4;

/// Who a command runs as.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RunAs {
    /// As we do.
    Root,
    /// As the user who called sudo.
    Invoker {
        /// User id.
        uid: u32,
        /// Primary group.
        gid: u32,
        /// Login name, where there is one.
        user: Option<String>,
    },
}

impl RunAs {
    /// What sudo says in the environment: SUDO_UID and SUDO_GID, both or neither.
    ///
    /// # Errors
    /// Only one of them is set, or they are no numbers: we don't guess and run as root.
    pub fn from_env(var: impl Fn(&str) -> Option<OsString>) -> Result<Self, LaunchError> {
        let number = |name| match var(name) {
            None => Ok(None),
            Some(value) => match value.to_str().and_then(|text| text.parse::<u32>().ok()) {
                Some(id) if id != u32::MAX => Ok(Some(id)),
                _ => Err(LaunchError::Invoker),
            },
        };
        match (number("SUDO_UID")?, number("SUDO_GID")?) {
            (None, None) | (Some(0), Some(_)) => Ok(Self::Root),
            (Some(uid), Some(gid)) => {
                let user = var("SUDO_USER").and_then(|name| name.into_string().ok());
                Ok(Self::Invoker { uid, gid, user })
            }
            _ => Err(LaunchError::Invoker),
        }
    }
}

/// A command to be started as a covered workload.
#[derive(Debug)]
pub struct Launch<'a> {
    /// Program and arguments.
    pub argv: Vec<OsString>,
    /// The cgroup that it is put in.
    pub cgroup: &'a Cgroup,
    /// The network namespace that it is put in; `None` leaves it in ours.
    pub netns: Option<OwnedFd>,
    /// The name of that namespace: the files of /etc/netns/NAME lie over those of /etc, as with
    /// `ip netns exec`.
    pub etc_netns: Option<String>,
    /// Who it runs as.
    pub run_as: RunAs,
    /// Leave it its capabilities: a root command can then undo what covers it.
    pub keep_caps: bool,
    /// Files that lie over others: the file, and the one that it covers.
    pub files: Vec<(PathBuf, PathBuf)>,
    /// Capabilities that root keeps beside those that a command has by default.
    pub also_keep: &'a [Capability],
    /// Directories that it finds empty (T-12: the one of the control sockets). They must exist: one
    /// made later would show.
    pub hide: Vec<PathBuf>,
    /// Its limits on open files, soft and hard, where ours were changed; `None` leaves it ours.
    pub descriptors: Option<(u64, u64)>,
}

/// Why a command did not start.
#[derive(Debug, thiserror::Error)]
pub enum LaunchError {
    /// Nothing to run.
    #[error("no command given")]
    Empty,
    /// A NUL byte where the system takes none.
    #[error("{0:?} contains a NUL byte")]
    Nul(PathBuf),
    /// sudo's variables are not as sudo sets them.
    #[error("SUDO_UID and SUDO_GID must both be numbers, or both be unset")]
    Invoker,
    /// A namespace name that is no file name.
    #[error("{0:?} is not the name of a network namespace")]
    NetnsName(String),
    /// Preparing it failed.
    #[error("{what}: {source}")]
    Prepare {
        /// What we were doing.
        what: String,
        /// Why not.
        source: io::Error,
    },
    /// The new process could not be confined; the command was not run.
    #[error("cannot confine the command: {step}: {source}")]
    Step {
        /// The step that failed.
        step: String,
        /// Why.
        source: io::Error,
    },
    /// No such program.
    #[error("{}: command not found", .0.display())]
    NotFound(PathBuf),
    /// It is there, but not a program, or not for this user.
    #[error("{program}: cannot be executed: {why}", program = .0.display(), why = .1)]
    NotExecutable(PathBuf, io::Error),
    /// Out of processes or memory.
    #[error("cannot start a process: {0}")]
    Spawn(io::Error),
}

impl LaunchError {
    /// The status that a process ends with because of this: 126 and 127 as shells use them.
    pub fn exit(&self) -> Exit {
        match self {
            Self::Empty | Self::Nul(_) | Self::Invoker | Self::NetnsName(_) => Exit::Usage,
            Self::Prepare { source, .. } | Self::Step { source, .. }
                if source.kind() == io::ErrorKind::PermissionDenied =>
            {
                Exit::Privilege
            }
            Self::Prepare { .. } | Self::Step { .. } | Self::Spawn(_) => Exit::Internal,
            Self::NotFound(_) => Exit::Command(127),
            Self::NotExecutable(..) => Exit::Command(126),
        }
    }

    fn prepare(what: String) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Prepare { what, source }
    }
}

impl Launch<'_> {
    /// Starts it. Returns when the program is executed; from its first instruction it is covered and
    /// confined. Needs a tokio runtime with I/O and signals.
    ///
    /// # Errors
    /// It could not be confined or executed; nothing of it runs then.
    pub fn spawn(self) -> Result<Launched, LaunchError> {
        // A mount may vanish between our look at the table and the child's; then we look again.
        for _ in 1..ATTEMPTS {
            match self.attempt() {
                Err(LaunchError::Step { source, .. }) if vanished(&source) => {}
                result => return result,
            }
        }
        self.attempt()
    }

    fn attempt(&self) -> Result<Launched, LaunchError> {
        let (program, arguments) = self.argv.split_first().ok_or(LaunchError::Empty)?;
        let mut command = Command::new(program);
        command.args(arguments);
        if let RunAs::Invoker { uid, user, .. } = &self.run_as {
            identity_env(&mut command, *uid, user.as_deref());
        }
        let (read, write) =
            pipe2(OFlag::O_CLOEXEC).map_err(|error| LaunchError::Spawn(error.into()))?;
        let program = PathBuf::from(program);
        let steps = child::before_exec(&mut command, self.steps()?, File::from(write));
        let mut command = tokio::process::Command::from(command);
        let spawned = command.spawn();
        // Closes our copy of the pipe's writing end, so that the read below ends.
        drop(command);
        match spawned {
            Ok(child) => Ok(Launched { child }),
            Err(error) => Err(explain(program, &steps, File::from(read), error)),
        }
    }

    /// What the child does, in order: covered before anything else; mounts while it may; then down
    /// with privileges, the bounding set first because that needs one.
    fn steps(&self) -> Result<Vec<Step>, LaunchError> {
        let procs = self.cgroup.path().join("cgroup.procs");
        let file = OpenOptions::new().write(true).open(&procs);
        let file = file.map_err(LaunchError::prepare(format!("open {}", procs.display())))?;
        let mut steps = vec![Step::JoinCgroup(file.into())];
        if let Some(netns) = &self.netns {
            let netns = netns.try_clone();
            let netns =
                netns.map_err(LaunchError::prepare("copy the namespace's handle".into()))?;
            steps.push(Step::EnterNetNs(netns));
        }
        steps.extend([Step::NewMountNs, Step::PrivateMounts]);
        // Before directories are hidden: the files may lie in one.
        for (file, over) in &self.files {
            steps.push(Step::Bind { from: c_path(file)?, over: c_path(over)? });
        }
        mount_steps(&mut steps, &self.hide)?;
        if !self.keep_caps {
            kernel_settings_steps(&mut steps)?;
        }
        if let Some(name) = &self.etc_netns {
            etc_steps(&mut steps, Path::new("/etc/netns"), name)?;
        }
        let kept = match self.run_as {
            RunAs::Root => {
                let all = KEPT_BY_ROOT.iter().chain(self.also_keep);
                all.fold(0, |kept, capability| kept | capability.bitmask())
            }
            RunAs::Invoker { .. } => 0,
        };
        if !self.keep_caps {
            steps.push(Step::BoundCapabilities { keep: kept, last: last_capability()? });
        }
        if let RunAs::Invoker { uid, gid, user } = &self.run_as {
            let (uid, gid) = (Uid::from_raw(*uid), Gid::from_raw(*gid));
            steps.push(Step::Become { uid, gid, groups: groups_of(user.as_deref(), gid)? });
        }
        if !self.keep_caps {
            steps.push(Step::SetCapabilities { keep: kept });
        }
        if let Some((soft, hard)) = self.descriptors {
            steps.push(Step::LimitDescriptors { soft, hard });
        }
        steps.extend([Step::NoNewPrivs, Step::ResetSignals]);
        Ok(steps)
    }
}

/// cgroup file systems become read-only (T-9), BPF file systems and `hide` empty.
fn mount_steps(steps: &mut Vec<Step>, hide: &[PathBuf]) -> Result<(), LaunchError> {
    let mounts = mounts::mounts().map_err(LaunchError::prepare("read /proc".into()))?;
    let mut covered = hide.to_vec();
    for mount in mounts.iter().filter(|mount| mount.is_reachable()) {
        match mount.fs_type.as_str() {
            "cgroup" | "cgroup2" => {
                let keep = mount.flags - MsFlags::MS_RDONLY;
                steps.push(Step::ReadOnly { point: c_path(&mount.point)?, keep });
            }
            // Read-only is not enough here (T-15): BPF_OBJ_GET opens a pinned map for writing
            // through a read-only mount, and since Linux 5.19 without a capability.
            "bpf" => covered.push(mount.point.clone()),
            _ => {}
        }
    }
    for path in &covered {
        steps.push(Step::Cover { point: c_path(path)? });
    }
    // A working directory keeps hold of what lies under the cover.
    let here = std::env::current_dir();
    if here.is_ok_and(|here| covered.iter().any(|path| here.starts_with(path))) {
        steps.push(Step::ChangeDir(c"/".to_owned()));
    }
    Ok(())
}

/// The kernel's settings become read-only, as in a container. Root may write most of them without
/// any capability, and what `kernel.core_pattern`, `kernel.modprobe` or `uevent_helper` name runs
/// as full root outside every covered cgroup (T-9).
fn kernel_settings_steps(steps: &mut Vec<Step>) -> Result<(), LaunchError> {
    let mounts = mounts::mounts().map_err(LaunchError::prepare("read /proc".into()))?;
    for mount in mounts.iter().filter(|mount| mount.is_reachable()) {
        let keep = mount.flags - MsFlags::MS_RDONLY;
        match mount.fs_type.as_str() {
            "sysfs" => steps.push(Step::ReadOnly { point: c_path(&mount.point)?, keep }),
            "proc" => {
                for name in ["sys", "sysrq-trigger"] {
                    let path = mount.point.join(name);
                    if path.exists() {
                        let path = c_path(&path)?;
                        steps.push(Step::Bind { from: path.clone(), over: path.clone() });
                        steps.push(Step::ReadOnly { point: path, keep });
                    }
                }
            }
            _ => {}
        }
    }
    Ok(())
}

/// The files of `/etc/netns/NAME`, each over the one of its name in /etc.
fn etc_steps(steps: &mut Vec<Step>, top: &Path, name: &str) -> Result<(), LaunchError> {
    if name.is_empty() || name.contains('/') || name == "." || name == ".." {
        return Err(LaunchError::NetnsName(name.to_owned()));
    }
    let dir = top.join(name);
    let failed = |source| LaunchError::Prepare { what: format!("read {}", dir.display()), source };
    let entries = match fs::read_dir(&dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(failed(error)),
    };
    for entry in entries {
        let entry = entry.map_err(failed)?;
        let over = Path::new("/etc").join(entry.file_name());
        steps.push(Step::Bind { from: c_path(&entry.path())?, over: c_path(&over)? });
    }
    Ok(())
}

/// The highest capability that this kernel knows.
fn last_capability() -> Result<u8, LaunchError> {
    let path = "/proc/sys/kernel/cap_last_cap";
    fs::read_to_string(path)
        .and_then(|text| text.trim().parse::<u8>().map_err(io::Error::other))
        .and_then(|last| match last {
            0..64 => Ok(last),
            _ => Err(io::Error::other("more capabilities than capset(2) can set")),
        })
        .map_err(LaunchError::prepare(format!("read {path}")))
}

/// All groups of a user; only `gid` if there is no such user.
fn groups_of(user: Option<&str>, gid: Gid) -> Result<Vec<Gid>, LaunchError> {
    let Some(user) = user else { return Ok(vec![gid]) };
    let name = c_path(Path::new(user))?;
    getgrouplist(&name, gid)
        .map_err(|error| LaunchError::prepare(format!("read the groups of {user}"))(error.into()))
}

/// HOME, USER and LOGNAME of the user, not root's.
fn identity_env(command: &mut Command, uid: u32, user: Option<&str>) {
    let account = User::from_uid(Uid::from_raw(uid)).ok().flatten();
    let home = account.as_ref().map_or(Path::new("/"), |account| &account.dir);
    command.env("HOME", home);
    let name = user.or(account.as_ref().map(|account| account.name.as_str()));
    for variable in ["USER", "LOGNAME"] {
        match name {
            Some(name) => command.env(variable, name),
            None => command.env_remove(variable),
        };
    }
}

/// What mount(2) says of a place that is not there, or not a mount any more.
fn vanished(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOENT | libc::EINVAL))
}

fn c_path(path: &Path) -> Result<CString, LaunchError> {
    let bytes: &OsStr = path.as_os_str();
    CString::new(bytes.as_bytes()).map_err(|_| LaunchError::Nul(path.to_owned()))
}

/// The child's report tells a failed step from a failed exec.
fn explain(program: PathBuf, steps: &[String], mut report: File, error: io::Error) -> LaunchError {
    let mut number = [0_u8];
    if matches!(report.read(&mut number), Ok(1)) {
        let step = steps.get(usize::from(number[0])).cloned().unwrap_or_default();
        return LaunchError::Step { step, source: error };
    }
    match error.kind() {
        io::ErrorKind::NotFound => LaunchError::NotFound(program),
        io::ErrorKind::InvalidInput => LaunchError::Nul(program),
        _ => match error.raw_os_error() {
            Some(libc::EAGAIN | libc::ENOMEM | libc::EMFILE | libc::ENFILE) => {
                LaunchError::Spawn(error)
            }
            _ => LaunchError::NotExecutable(program, error),
        },
    }
}

/// A command that runs.
#[derive(Debug)]
pub struct Launched {
    child: Child,
}

impl Launched {
    /// Its process; none once it was waited for.
    pub fn pid(&self) -> Option<u32> {
        self.child.id()
    }

    /// Passes a signal on to it. One that ended is no error.
    pub fn signal(&self, signal: Signal) {
        if let Some(pid) = self.pid().and_then(|pid| i32::try_from(pid).ok()) {
            let _ = kill(Pid::from_raw(pid), signal);
        }
    }

    /// Waits for its end. May be called again, and be cancelled.
    ///
    /// # Errors
    /// Someone else waited for it.
    pub async fn wait(&mut self) -> io::Result<Exit> {
        self.child.wait().await.map(exit_of)
    }

    /// Waits for its end and passes SIGTERM and SIGHUP on to it. SIGINT and SIGQUIT come from the
    /// terminal to both: what to do about them is the command's choice.
    ///
    /// # Errors
    /// Signals cannot be caught, or someone else waited for it.
    pub async fn wait_forwarding(&mut self) -> io::Result<Exit> {
        let mut term = signal(SignalKind::terminate())?;
        let mut hangup = signal(SignalKind::hangup())?;
        let _interrupt = signal(SignalKind::interrupt())?;
        let _quit = signal(SignalKind::quit())?;
        loop {
            tokio::select! {
                exit = self.wait() => return exit,
                _ = term.recv() => self.signal(Signal::SIGTERM),
                _ = hangup.recv() => self.signal(Signal::SIGHUP),
            }
        }
    }
}

fn exit_of(status: ExitStatus) -> Exit {
    match (status.code(), status.signal()) {
        (Some(code), _) => Exit::Command(u8::try_from(code).unwrap_or(u8::MAX)),
        (None, Some(signal)) => Exit::Signal(signal),
        (None, None) => Exit::Internal,
    }
}

#[cfg(test)]
#[path = "command_tests.rs"]
mod tests;
