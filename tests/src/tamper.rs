//! What somebody with the privilege does to the product: takes its hooks and pins away, fills its
//! tables.

use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use nix::errno::Errno;
use nix::sys::signal::Signal;

use crate::cgroup::Cgroup;
use crate::product::Running;
use crate::snapshot::BPFFS;

/// The directory of a daemon's pinned `links` or `maps`.
///
/// # Errors
/// When it pinned none.
pub fn pins(running: &Running<'_>, kind: &str) -> Result<PathBuf> {
    let root = PathBuf::from(BPFFS).join("interceptor").join(running.name());
    let found = fs::read_dir(&root)?
        .flatten()
        .find(|entry| entry.file_name().to_string_lossy().starts_with(kind));
    Ok(found.with_context(|| format!("no {kind} in {}", root.display()))?.path())
}

/// The pinned link of a hook of the workload's cgroup.
///
/// # Errors
/// When links are not pinned, or the cgroup is gone.
pub fn link(running: &Running<'_>, hook: &str, cgroup: &Cgroup) -> Result<PathBuf> {
    let id = fs::metadata(cgroup.path())?.ino();
    Ok(pins(running, "links")?.join(format!("{hook}-{id}")))
}

/// Detaches a pinned link from its hook. The pin stays.
///
/// # Errors
/// When `bpftool` cannot.
pub fn detach(link: &Path) -> Result<()> {
    bpftool(&["link", "detach", "pinned", &link.to_string_lossy()]).map(drop)
}

/// Does something while the daemon cannot look.
///
/// # Errors
/// As `work`, or when the daemon is gone.
pub fn unseen<T>(running: &Running<'_>, work: impl FnOnce() -> Result<T>) -> Result<T> {
    running.signal(Signal::SIGSTOP)?;
    let done = work();
    running.signal(Signal::SIGCONT)?;
    done
}

/// A hash table of the product that somebody filled. Dropping it takes the entries out again.
#[derive(Debug)]
pub struct Filled {
    map: OwnedFd,
    key: usize,
    entries: u32,
}

impl Filled {
    /// Puts entries of nobody's into a pinned hash table until there is no room.
    ///
    /// # Errors
    /// When there is no such table, or it takes none.
    pub fn table(running: &Running<'_>, table: &str) -> Result<Self> {
        let pin = pins(running, "maps")?.join(table);
        let shown = bpftool(&["-j", "map", "show", "pinned", &pin.to_string_lossy()])?;
        let shown: serde_json::Value = serde_json::from_str(&shown)?;
        let size = |what: &str| shown[what].as_u64().with_context(|| format!("{what}: {shown}"));
        let (key, value) = (size("bytes_key")? as usize, size("bytes_value")? as usize);
        let mut filled = Self { map: bpf::open(&pin)?, key, entries: 0 };
        let value = vec![0; value];
        loop {
            match bpf::insert(&filled.map, &filled.key(filled.entries), &value) {
                Ok(()) => filled.entries += 1,
                Err(Errno::E2BIG) if filled.entries > 0 => return Ok(filled),
                Err(error) => return Err(error).with_context(|| format!("filling {table}")),
            }
        }
    }

    /// How many entries that took.
    #[must_use]
    pub fn entries(&self) -> u32 {
        self.entries
    }

    /// No socket's cookie and no namespace's: those begin at 1 and count up.
    fn key(&self, entry: u32) -> Vec<u8> {
        let mut key = vec![0xee; self.key];
        key[..4].copy_from_slice(&entry.to_le_bytes());
        key
    }
}

impl Drop for Filled {
    fn drop(&mut self) {
        for entry in 0..self.entries {
            // The daemon may have found it out already.
            let _ = bpf::remove(&self.map, &self.key(entry));
        }
    }
}

/// The few commands of bpf(2) that take too long one at a time by `bpftool`.
mod bpf {
    use std::ffi::CString;
    use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
    use std::os::unix::ffi::OsStrExt;
    use std::path::Path;

    use nix::errno::Errno;

    const MAP_UPDATE_ELEM: i32 = 2;
    const MAP_DELETE_ELEM: i32 = 3;
    const OBJ_GET: i32 = 7;
    /// Only where the key is not there yet.
    const NOEXIST: u64 = 1;

    /// The beginning of `union bpf_attr`, as the three commands have it.
    #[repr(C)]
    #[derive(Default)]
    struct Attributes {
        /// The map; of OBJ_GET the lower half of the path's address.
        first: [u32; 2],
        key: u64,
        value: u64,
        flags: u64,
    }

    /// The map that is pinned there.
    pub(super) fn open(pin: &Path) -> Result<OwnedFd, Errno> {
        let path = CString::new(pin.as_os_str().as_bytes()).map_err(|_| Errno::EINVAL)?;
        let address = (path.as_ptr() as u64).to_ne_bytes();
        let half = |at: usize| u32::from_ne_bytes([0, 1, 2, 3].map(|byte| address[at + byte]));
        let descriptor =
            call(OBJ_GET, &Attributes { first: [half(0), half(4)], ..Attributes::default() })?;
        #[expect(unsafe_code, reason = "a descriptor that a system call made")]
        // SAFETY: the kernel made it for us just now, and nobody else owns it.
        Ok(unsafe { OwnedFd::from_raw_fd(descriptor) })
    }

    pub(super) fn insert(map: &OwnedFd, key: &[u8], value: &[u8]) -> Result<(), Errno> {
        let (key, value) = (key.as_ptr() as u64, value.as_ptr() as u64);
        call(MAP_UPDATE_ELEM, &Attributes { first: first(map), key, value, flags: NOEXIST })
            .map(drop)
    }

    pub(super) fn remove(map: &OwnedFd, key: &[u8]) -> Result<(), Errno> {
        let key = key.as_ptr() as u64;
        call(MAP_DELETE_ELEM, &Attributes { first: first(map), key, ..Attributes::default() })
            .map(drop)
    }

    fn first(map: &OwnedFd) -> [u32; 2] {
        [u32::try_from(map.as_raw_fd()).unwrap_or(u32::MAX), 0]
    }

    fn call(command: i32, attributes: &Attributes) -> Result<i32, Errno> {
        #[expect(unsafe_code, reason = "a system call that no crate of ours wraps")]
        // SAFETY: the kernel reads so many bytes of the attributes, and key and value of the sizes
        // that the map has, which the callers made them with; all outlive the call.
        let result = unsafe {
            libc::syscall(libc::SYS_bpf, command, &raw const *attributes, size_of::<Attributes>())
        };
        Errno::result(result).map(|descriptor| descriptor as i32)
    }
}

fn bpftool(arguments: &[&str]) -> Result<String> {
    let done = Command::new("bpftool").args(arguments).output().context("running bpftool")?;
    ensure!(done.status.success(), "bpftool: {}", String::from_utf8_lossy(&done.stderr));
    Ok(String::from_utf8_lossy(&done.stdout).into_owned())
}
