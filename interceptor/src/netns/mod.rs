//! Network namespaces: opening one, making a socket in it, following its routes, ending its sockets.

mod alive;
pub mod diag;
mod isolated;
mod links;
mod nat;
pub(crate) mod netlink;
mod routes;

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

pub use alive::alive;
pub use isolated::{IsolateError, Isolated};
pub use links::{Gate, WaysOut};
pub use netlink::Changes;
pub use routes::Routes;

use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

/// A network namespace that we hold open.
#[derive(Debug)]
pub struct NetNs {
    file: File,
    path: PathBuf,
    cookie: u64,
    /// Ours: nothing needs to be entered.
    home: bool,
    label: String,
}

impl NetNs {
    /// The namespace of this process.
    ///
    /// # Errors
    /// /proc is not mounted, or the kernel has no namespace cookies (before 5.14).
    pub fn current() -> io::Result<Self> {
        Self::open(Path::new("/proc/self/ns/net"), "host".into())
    }

    /// The namespace of process `pid`.
    ///
    /// # Errors
    /// The process is gone, or may not be looked at.
    pub fn of_process(pid: u32) -> io::Result<Self> {
        Self::open(Path::new(&format!("/proc/{pid}/ns/net")), format!("pid {pid}"))
    }

    /// A namespace by name (as `ip netns` knows it) or by path.
    ///
    /// # Errors
    /// There is no such namespace.
    pub fn named(name_or_path: &str) -> io::Result<Self> {
        let path = if name_or_path.contains('/') {
            PathBuf::from(name_or_path)
        } else {
            Path::new("/run/netns").join(name_or_path)
        };
        Self::open(&path, name_or_path.to_owned())
    }

    /// A namespace that another daemon held, which knew it by `path` and called it `label`.
    ///
    /// # Errors
    /// It is no network namespace.
    pub fn handed_over(fd: OwnedFd, path: &Path, label: String) -> io::Result<Self> {
        Self::of_file(fd.into(), path, label)
    }

    /// A new namespace without a name: it goes with the last descriptor, socket and process that hold
    /// it.
    ///
    /// # Errors
    /// No CAP_SYS_ADMIN, or out of namespaces.
    pub fn anonymous(label: &str) -> io::Result<Self> {
        let label = label.to_owned();
        // A thread of its own: this one stays where it is.
        let made = std::thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET)?;
            Self::open(Path::new("/proc/thread-self/ns/net"), label)
        });
        made.join().unwrap_or_else(|_| Err(io::Error::other("the thread that made it panicked")))
    }

    fn open(path: &Path, label: String) -> io::Result<Self> {
        Self::of_file(File::open(path)?, path, label)
    }

    /// The namespace behind an open file. `path`: how others may open it, below /proc for "not at all".
    fn of_file(file: File, path: &Path, label: String) -> io::Result<Self> {
        let home = file.metadata()?.ino() == std::fs::metadata("/proc/self/ns/net")?.ino();
        let mut ns = Self { file, path: path.to_owned(), cookie: 0, home, label };
        ns.cookie = ns.run(|| {
            let probe =
                socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
            cookie_of(&probe)
        })??;
        Ok(ns)
    }

    /// The kernel's number for this namespace: never reused while the machine runs.
    pub fn cookie(&self) -> u64 {
        self.cookie
    }

    /// Whether it is the daemon's own.
    pub fn is_home(&self) -> bool {
        self.home
    }

    /// How people call it.
    pub fn label(&self) -> &str {
        &self.label
    }

    /// The same, called otherwise.
    #[must_use]
    pub fn labelled(self, label: String) -> Self {
        Self { label, ..self }
    }

    /// As it was opened, for [`Self::handed_over`].
    pub fn opened_as(&self) -> &Path {
        &self.path
    }

    /// A path by which another process can open it: the given one, or ours through our own handle.
    pub fn path(&self) -> PathBuf {
        if self.path.starts_with("/proc") {
            PathBuf::from(format!("/proc/{}/fd/{}", std::process::id(), self.file.as_raw_fd()))
        } else {
            self.path.clone()
        }
    }

    /// A second handle to the namespace, to be entered by a child process.
    ///
    /// # Errors
    /// Out of file descriptors.
    pub fn try_clone_fd(&self) -> io::Result<OwnedFd> {
        self.file.as_fd().try_clone_to_owned()
    }

    /// Runs `make` with the calling thread in this namespace. `make` must not block or await: it
    /// is there to create a socket, which stays in the namespace where it was made.
    ///
    /// # Errors
    /// The namespace cannot be entered. A thread that cannot come back ends the process: it would
    /// make every later socket in the wrong namespace.
    pub fn run<T>(&self, make: impl FnOnce() -> T) -> io::Result<T> {
        if self.home {
            return Ok(make());
        }
        let home = File::open("/proc/thread-self/ns/net")?;
        setns(&self.file, CloneFlags::CLONE_NEWNET)?;
        let made = make();
        if let Err(error) = setns(&home, CloneFlags::CLONE_NEWNET) {
            eprintln!(
                "interceptor: cannot return to the daemon's own network namespace: {error}; stopping"
            );
            std::process::abort();
        }
        Ok(made)
    }
}

/// SO_NETNS_COOKIE of a socket (Linux 5.14).
#[expect(unsafe_code, reason = "no crate in use wraps SO_NETNS_COOKIE")]
fn cookie_of(fd: &OwnedFd) -> io::Result<u64> {
    let mut cookie = 0_u64;
    let mut len = size_of::<u64>() as libc::socklen_t;
    // SAFETY: `cookie` and `len` outlive the call and `len` states the size of `cookie`.
    let result = unsafe {
        libc::getsockopt(
            fd.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_NETNS_COOKIE,
            (&raw mut cookie).cast(),
            &raw mut len,
        )
    };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(cookie)
}
