//! Network namespaces with a guard: made by name, entered by threads, removed on drop.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;

use anyhow::{Context, Result, bail};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, setns, unshare};

/// Every namespace and interface of the harness starts with this, so that the sweep knows them.
const PREFIX: &str = "ix-";
/// Where iproute2 keeps its named namespaces.
const NETNS_DIR: &str = "/run/netns";

static COUNTER: AtomicU32 = AtomicU32::new(0);

/// A number that no other namespace of this process has.
pub(crate) fn next_number() -> u32 {
    COUNTER.fetch_add(1, Ordering::Relaxed)
}

/// One named network namespace. Dropping it removes the name; the kernel frees the namespace when
/// its last process and socket are gone.
#[derive(Debug)]
pub struct Namespace {
    name: String,
}

impl Namespace {
    /// Makes the namespace `ix-<pid>-<number>-<role>` with its loopback interface up.
    ///
    /// # Errors
    /// When `ip netns add` fails: not root, or no iproute2.
    pub fn create(number: u32, role: &str) -> Result<Self> {
        let name = format!("{PREFIX}{}-{number}-{role}", std::process::id());
        ip(&["netns", "add", &name])?;
        let namespace = Self { name };
        namespace.ip(&["link", "set", "lo", "up"])?;
        Ok(namespace)
    }

    /// The name that `ip netns` knows it by.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The file that stands for the namespace.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        Path::new(NETNS_DIR).join(&self.name)
    }

    /// Runs `ip` with these arguments for this namespace (`ip -n NAME …`).
    ///
    /// # Errors
    /// When `ip` fails; the message carries its standard error.
    pub fn ip(&self, args: &[&str]) -> Result<()> {
        let mut all = vec!["-n", self.name.as_str()];
        all.extend_from_slice(args);
        ip(&all)
    }

    /// Moves the calling thread, for good, into this namespace. Sockets that it makes and
    /// programs that it starts from then on belong to it.
    ///
    /// # Errors
    /// When the namespace is gone or the caller may not enter it.
    pub fn enter(&self) -> Result<()> {
        let file = File::open(self.path()).with_context(|| format!("opening {}", self.name))?;
        setns(file, CloneFlags::CLONE_NEWNET).with_context(|| format!("entering {}", self.name))
    }

    /// Runs `work` on a thread of its own inside this namespace and hands back what it returns.
    ///
    /// # Errors
    /// When the namespace can't be entered.
    ///
    /// # Panics
    /// With the panic of `work`.
    pub fn inside<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        thread::scope(|scope| {
            scope
                .spawn(|| self.enter().map(|()| work()))
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Like [`Namespace::inside`], and in a mount namespace of its own in which each file lies
    /// over another: `(source, target)`. A target that doesn't exist is passed over.
    ///
    /// `ip netns exec` would also mount a new /sys and so hide cgroupfs and bpffs, which the
    /// product needs; here they stay as they are.
    ///
    /// # Errors
    /// When the namespace can't be entered or a mount fails.
    pub fn inside_with_files<T: Send>(
        &self,
        files: &[(PathBuf, &str)],
        work: impl FnOnce() -> T + Send,
    ) -> Result<T> {
        self.inside(|| {
            unshare(CloneFlags::CLONE_NEWNS).context("a mount namespace for the workload")?;
            let none: Option<&str> = None;
            // Mounts of the machine still arrive here; ours don't go there.
            mount(none, "/", none, MsFlags::MS_SLAVE | MsFlags::MS_REC, none)
                .context("making all mounts slaves")?;
            for (source, target) in files.iter().filter(|(_, target)| Path::new(target).exists()) {
                mount(Some(source), *target, none, MsFlags::MS_BIND, none)
                    .with_context(|| format!("laying a file over {target}"))?;
            }
            Ok(work())
        })?
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        if let Err(error) = ip(&["netns", "del", &self.name]) {
            eprintln!("cannot remove the namespace {}: {error:#}", self.name);
        }
    }
}

/// Joins two namespaces by a veth pair; both ends are named `veth0` and are up.
///
/// # Errors
/// When the kernel has no veth or one of the namespaces already has a `veth0`.
pub fn join(left: &Namespace, right: &Namespace) -> Result<()> {
    left.ip(&[
        "link",
        "add",
        "veth0",
        "type",
        "veth",
        "peer",
        "name",
        "veth0",
        "netns",
        right.name(),
    ])?;
    left.ip(&["link", "set", "veth0", "up"])?;
    right.ip(&["link", "set", "veth0", "up"])
}

/// Runs `ip` on the machine.
fn ip(args: &[&str]) -> Result<()> {
    let output = Command::new("ip")
        .args(args)
        .stdin(Stdio::null())
        .output()
        .context("running `ip` (package iproute2)")?;
    if !output.status.success() {
        bail!("ip {}: {}", args.join(" "), String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}

/// The process that made a namespace of this name, when the harness did.
fn maker(name: &str) -> Option<u32> {
    name.strip_prefix(PREFIX)?.split('-').next()?.parse().ok()
}

/// Removes the namespaces of harness processes that are no longer alive.
pub fn sweep_leftovers() {
    let Ok(entries) = fs::read_dir(NETNS_DIR) else { return };
    for entry in entries.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let dead = maker(&name).is_some_and(|pid| !Path::new(&format!("/proc/{pid}")).exists());
        if dead && let Err(error) = ip(&["netns", "del", &name]) {
            eprintln!("cannot sweep the namespace {name}: {error:#}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_of_the_harness_have_a_maker() {
        assert_eq!(maker("ix-4711-0-net"), Some(4711));
        for other in ["ix-", "ix-x-0-net", "cni-4711", "4711", "my-ix-4711-0-net"] {
            assert_eq!(maker(other), None, "{other}");
        }
    }
}
