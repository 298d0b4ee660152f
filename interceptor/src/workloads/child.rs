//! What happens in the new process between fork and exec.
//!
//! The daemon has many threads, so after fork only system calls are safe: no allocation, no locks.
//! Therefore everything is made beforehand as a list of [`Step`]s, and the child only walks it.
#![expect(
    unsafe_code,
    reason = "pre_exec, and system calls that no crate wraps without allocating"
)]

use std::ffi::CString;
use std::fmt;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::process::Command;

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::prctl::set_no_new_privs;
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::signal::{SigHandler, SigSet, SigmaskHow, Signal, pthread_sigmask, signal};
use nix::unistd::{Gid, Uid, chdir, setgroups, setresgid, setresuid};

/// One thing that the child does before exec, with all that it needs.
#[derive(Debug)]
pub(super) enum Step {
    /// Write itself into this `cgroup.procs`: from here on it is covered.
    JoinCgroup(OwnedFd),
    /// Enter a network namespace.
    EnterNetNs(OwnedFd),
    /// A mount namespace of its own.
    NewMountNs,
    /// No mount or unmount passes in or out.
    PrivateMounts,
    /// Make one mount read-only; `keep` are the restrictions that it has already.
    ReadOnly { point: CString, keep: MsFlags },
    /// Lay an empty read-only directory over one.
    Cover { point: CString },
    /// Lay one file over another.
    Bind { from: CString, over: CString },
    /// Change the working directory.
    ChangeDir(CString),
    /// Take all other capabilities from the bounding set (bit per capability number).
    BoundCapabilities { keep: u64, last: u8 },
    /// Take over a user's identity.
    Become { uid: Uid, gid: Gid, groups: Vec<Gid> },
    /// No ambient capabilities, and no permitted or effective but these; none inheritable.
    SetCapabilities { keep: u64 },
    /// Nothing executed from here on gains privileges.
    NoNewPrivs,
    /// No signal blocked, SIGPIPE with its default.
    ResetSignals,
    /// At most so many open files: soft and hard limit.
    LimitDescriptors { soft: u64, hard: u64 },
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = |path: &CString| path.to_string_lossy().into_owned();
        match self {
            Self::JoinCgroup(_) => write!(f, "join the workload's cgroup"),
            Self::EnterNetNs(_) => write!(f, "enter the network namespace"),
            Self::NewMountNs => write!(f, "make a mount namespace"),
            Self::PrivateMounts => write!(f, "make mounts private"),
            Self::ReadOnly { point, .. } => write!(f, "mount read-only {}", text(point)),
            Self::Cover { point } => write!(f, "hide {}", text(point)),
            Self::Bind { from, over } => write!(f, "mount {} over {}", text(from), text(over)),
            Self::ChangeDir(path) => write!(f, "change directory to {}", text(path)),
            Self::BoundCapabilities { .. } => write!(f, "drop capabilities from the bounding set"),
            Self::Become { uid, gid, .. } => write!(f, "become uid {uid} gid {gid}"),
            Self::SetCapabilities { .. } => write!(f, "drop capabilities"),
            Self::NoNewPrivs => write!(f, "set no_new_privs"),
            Self::ResetSignals => write!(f, "reset signals"),
            Self::LimitDescriptors { soft, .. } => write!(f, "limit open files to {soft}"),
        }
    }
}

impl Step {
    /// Does it. Runs in the child: must not allocate.
    fn take(&self) -> io::Result<()> {
        let none: Option<&std::ffi::CStr> = None;
        match self {
            // 0 stands for the writer.
            Self::JoinCgroup(procs) => nix::unistd::write(procs, b"0").map(drop)?,
            Self::EnterNetNs(ns) => setns(ns, CloneFlags::CLONE_NEWNET)?,
            Self::NewMountNs => unshare(CloneFlags::CLONE_NEWNS)?,
            Self::PrivateMounts => {
                mount(none, c"/", none, MsFlags::MS_PRIVATE | MsFlags::MS_REC, none)?;
            }
            Self::ReadOnly { point, keep } => {
                // With MS_BIND it is the mount that changes, not the file system for everyone.
                let flags = MsFlags::MS_REMOUNT | MsFlags::MS_BIND | MsFlags::MS_RDONLY | *keep;
                mount(none, point.as_c_str(), none, flags, none)?;
            }
            Self::Cover { point } => {
                let flags = MsFlags::MS_RDONLY
                    | MsFlags::MS_NOSUID
                    | MsFlags::MS_NODEV
                    | MsFlags::MS_NOEXEC;
                let options = Some(c"mode=0555");
                mount(Some(c"none"), point.as_c_str(), Some(c"tmpfs"), flags, options)?;
            }
            Self::Bind { from, over } => {
                mount(Some(from.as_c_str()), over.as_c_str(), none, MsFlags::MS_BIND, none)?;
            }
            Self::ChangeDir(path) => chdir(path.as_c_str())?,
            Self::BoundCapabilities { keep, last } => {
                for capability in (0..=*last).filter(|number| keep & (1 << number) == 0) {
                    drop_from_bounding_set(capability)?;
                }
            }
            Self::Become { uid, gid, groups } => {
                setgroups(groups)?;
                setresgid(*gid, *gid, *gid)?;
                setresuid(*uid, *uid, *uid)?;
            }
            Self::SetCapabilities { keep } => {
                clear_ambient()?;
                set_capabilities(*keep)?;
            }
            Self::NoNewPrivs => set_no_new_privs()?,
            Self::LimitDescriptors { soft, hard } => {
                setrlimit(Resource::RLIMIT_NOFILE, *soft, *hard)?;
            }
            Self::ResetSignals => {
                pthread_sigmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None)?;
                // SAFETY: the default disposition is no handler, so no code of ours runs.
                unsafe { signal(Signal::SIGPIPE, SigHandler::SigDfl) }.map(drop)?;
            }
        }
        Ok(())
    }
}

/// Makes `command` take `steps` in its child. The number of a step that fails (one byte) is written
/// to `report` before the spawn fails with the step's error.
pub(super) fn before_exec(command: &mut Command, steps: Vec<Step>, report: File) -> Vec<String> {
    let names = steps.iter().map(ToString::to_string).collect();
    let walk = move || {
        for (number, step) in (0_u8..).zip(&steps) {
            if let Err(error) = step.take() {
                // Without the report the error is still passed on, only less well explained.
                let _ = (&report).write_all(&[number]);
                return Err(error);
            }
        }
        Ok(())
    };
    // SAFETY: the closure makes system calls and nothing else: `take` neither allocates nor locks,
    // and everything that it reads was made before the fork.
    unsafe { command.pre_exec(walk) };
    names
}

fn drop_from_bounding_set(capability: u8) -> io::Result<()> {
    // SAFETY: no pointers are passed.
    let result = unsafe {
        libc::prctl(libc::PR_CAPBSET_DROP, libc::c_ulong::from(capability), 0_u64, 0_u64, 0_u64)
    };
    done(result.into())
}

fn clear_ambient() -> io::Result<()> {
    let all = libc::PR_CAP_AMBIENT_CLEAR_ALL as libc::c_ulong;
    // SAFETY: no pointers are passed.
    done(unsafe { libc::prctl(libc::PR_CAP_AMBIENT, all, 0_u64, 0_u64, 0_u64) }.into())
}

/// capset(2), version 3. glibc has no wrapper.
fn set_capabilities(keep: u64) -> io::Result<()> {
    #[repr(C)]
    struct Header {
        version: u32,
        pid: libc::c_int,
    }
    #[repr(C)]
    struct Data {
        effective: u32,
        permitted: u32,
        inheritable: u32,
    }
    const VERSION_3: u32 = 0x2008_0522;
    let header = Header { version: VERSION_3, pid: 0 };
    let half = |bits: u64| {
        let bits = (bits & u64::from(u32::MAX)) as u32;
        Data { effective: bits, permitted: bits, inheritable: 0 }
    };
    let data = [half(keep), half(keep >> 32)];
    // SAFETY: the two structures have the kernel's layout for version 3 (a header and two data
    // elements) and live through the call.
    done(unsafe { libc::syscall(libc::SYS_capset, &raw const header, data.as_ptr()) })
}

fn done(result: libc::c_long) -> io::Result<()> {
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
