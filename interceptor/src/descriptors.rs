//! File descriptors: what this process may have, and the last of them, which stay its own (T-50).
//!
//! The kernel hands out the lowest free number, so a high one says how many are in use: whether
//! the reserve is touched shows in the number of a descriptor that was just made, at no cost. The
//! table belongs to the process, and so do these facts.

use std::os::fd::{AsFd, AsRawFd};
use std::sync::atomic::{AtomicU64, Ordering};

use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// At least so much of the limit is for connections, however large a reserve is asked for.
const FOR_CONNECTIONS: u64 = 2;

/// Most that this process may have.
static LIMIT: AtomicU64 = AtomicU64::new(u64::MAX);
/// How many of them are the daemon's own.
static RESERVE: AtomicU64 = AtomicU64::new(0);
/// Connections refused for the reserve's sake.
static REFUSED: AtomicU64 = AtomicU64::new(0);

/// The soft limit is raised to the hard one: a proxied connection takes two descriptors. Gives both
/// as they were, for COMMAND, which is to find what it would find without us.
pub fn raise_limit() -> Option<(u64, u64)> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).ok()?;
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).ok()?;
    LIMIT.store(hard, Ordering::Relaxed);
    Some((soft, hard))
}

/// Keeps the last `count` descriptors for the daemon: its log, its control socket, questions to
/// resolvers. Never more than half of what there is.
pub fn keep(count: u64) {
    RESERVE.store(count, Ordering::Relaxed);
}

/// Most that this process may have; `u64::MAX` if that is not known.
pub fn limit() -> u64 {
    LIMIT.load(Ordering::Relaxed)
}

/// How many are open now; 0 if /proc does not say.
pub fn open() -> u64 {
    // The directory is one of them while it is read.
    std::fs::read_dir("/proc/self/fd").map_or(0, |all| all.count().saturating_sub(1) as u64)
}

/// How many are there for connections.
pub fn for_connections() -> u64 {
    let limit = limit();
    limit - RESERVE.load(Ordering::Relaxed).min(limit / FOR_CONNECTIONS)
}

/// Whether a descriptor that was just made for a connection is one of the reserve, and so must be
/// closed again.
pub fn is_reserved(fd: impl AsFd) -> bool {
    let number = u64::try_from(fd.as_fd().as_raw_fd()).unwrap_or(0);
    number >= for_connections()
}

/// Counts a connection, or one leg of it, that was refused for that.
pub fn refused() {
    REFUSED.fetch_add(1, Ordering::Relaxed);
}

/// How many were refused for that.
pub fn refusals() -> u64 {
    REFUSED.load(Ordering::Relaxed)
}
