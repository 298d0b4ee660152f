//! What the plugin touches: a network namespace's number, the kernel's table, the hooks, the agent.

use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use interceptor_common::Namespace;

use super::Settings;
use crate::admin::{AdminError, Covering, Sandbox, client};
use crate::agent::cgroups;
use crate::kernel::{PinnedNamespaces, Pins, Standing, standing};
use crate::netns::NetNs;
use crate::workloads::cgroup::Hierarchy;

/// The node as the plugin sees it. Errors are in words, for whoever reads the pod's events.
pub trait Node {
    /// The kernel's number for the network namespace at `path`.
    ///
    /// # Errors
    /// It is none, or the node's own.
    fn cookie(&self, path: &Path) -> Result<u64, String>;

    /// Whether the table of namespaces is pinned.
    ///
    /// # Errors
    /// It cannot be opened.
    fn has_table(&self) -> Result<bool, String>;

    /// What the table says of a namespace; nothing where there is no table.
    ///
    /// # Errors
    /// It cannot be read.
    fn get(&self, cookie: u64) -> Result<Option<Namespace>, String>;

    /// Writes that into the table; `false` where there is none.
    ///
    /// # Errors
    /// It is full, or cannot be written.
    fn put(&self, cookie: u64, entry: Namespace) -> Result<bool, String>;

    /// Takes a namespace out of the table, if there is one.
    ///
    /// # Errors
    /// It cannot be written.
    fn remove(&self, cookie: u64) -> Result<(), String>;

    /// Whose hooks are in effect where pods are.
    ///
    /// # Errors
    /// The kernel does not say.
    fn hooks(&self) -> Result<Standing, String>;

    /// Asks the agent about a pod, waiting no longer than `patience` for each step.
    ///
    /// # Errors
    /// It does not run or answer, or covers no pods.
    fn ask(&self, sandbox: &Sandbox, patience: Duration) -> Result<Covering, String>;

    /// How long it has been since the call.
    fn elapsed(&self) -> Duration;

    /// Waits a moment.
    fn pause(&self, moment: Duration);
}

/// This machine.
pub struct Machine {
    instance: String,
    pins: Pins,
    cgroup_root: PathBuf,
    begun: Instant,
}

impl Machine {
    /// As the settings have it.
    pub fn of(settings: &Settings) -> Self {
        Self {
            instance: settings.instance.clone(),
            pins: Pins::of(&settings.instance),
            cgroup_root: settings.cgroup_root.clone(),
            begun: Instant::now(),
        }
    }

    fn table(&self) -> Result<Option<PinnedNamespaces>, String> {
        PinnedNamespaces::open(&self.pins).map_err(|error| error.to_string())
    }
}

impl Node for Machine {
    fn cookie(&self, path: &Path) -> Result<u64, String> {
        // A name without a slash would be looked up below /run/netns.
        let path = path.to_str().filter(|path| path.contains('/')).ok_or("not a path")?;
        let netns = NetNs::named(path).map_err(|error| error.to_string())?;
        match netns.is_home() {
            true => Err("it is the node's own".to_owned()),
            false => Ok(netns.cookie()),
        }
    }

    fn has_table(&self) -> Result<bool, String> {
        Ok(self.table()?.is_some())
    }

    fn get(&self, cookie: u64) -> Result<Option<Namespace>, String> {
        match self.table()? {
            Some(table) => table.get(cookie).map_err(|error| error.to_string()),
            None => Ok(None),
        }
    }

    fn put(&self, cookie: u64, entry: Namespace) -> Result<bool, String> {
        match self.table()? {
            Some(mut table) => {
                table.put(cookie, entry).map(|()| true).map_err(|error| error.to_string())
            }
            None => Ok(false),
        }
    }

    fn remove(&self, cookie: u64) -> Result<(), String> {
        match self.table()? {
            Some(mut table) => table.remove(cookie).map_err(|error| error.to_string()),
            None => Ok(()),
        }
    }

    fn hooks(&self) -> Result<Standing, String> {
        let Ok(hierarchy) = Hierarchy::discover() else { return Ok(Standing::None) };
        let table = self.table()?;
        let mount = hierarchy.mount_point();
        let parents = cgroups::all_pods_paths(&self.cgroup_root).map(|path| mount.join(path));
        let mut found = None;
        for cgroup in parents.iter().filter(|path| path.is_dir()) {
            let here = standing(cgroup, table.as_ref()).map_err(|error| {
                format!("asking for the hooks at {}: {error}", cgroup.display())
            })?;
            // A pod will be in one of them, and nobody says in which.
            found = Some(if found.is_none_or(|before| before == here) {
                here
            } else {
                Standing::Others
            });
        }
        match found {
            Some(found) => Ok(found),
            // The node's first pod.
            None => standing(mount, table.as_ref())
                .map_err(|error| format!("asking for the hooks at {}: {error}", mount.display())),
        }
    }

    fn ask(&self, sandbox: &Sandbox, patience: Duration) -> Result<Covering, String> {
        client::cover(&self.instance, sandbox.clone(), patience).map_err(|error| match error {
            AdminError::NotRunning(name) => {
                format!("no interceptor agent named {name} runs on this node; look at its DaemonSet's pod")
            }
            other => other.to_string(),
        })
    }

    fn elapsed(&self) -> Duration {
        self.begun.elapsed()
    }

    fn pause(&self, moment: Duration) {
        thread::sleep(moment);
    }
}
