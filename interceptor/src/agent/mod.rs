//! The node agent's knowledge: policy from the Kubernetes API for the pods of one node, and the last good
//! state of it on disk, as a policy file that `run -f` and `explain -f` read too (docs/agent.md). It says
//! which pods are to be covered, and what with; `app/pods.rs` does it.
//!
//! `watch` asks the API server; `kinds` says what of an object is kept, `documents` folds events into
//! a set, `state` makes of it each pod's policy (`pods`, `policies`), `piecewise` and `stand_in` although
//! some objects cannot be used; `conditions` says what objects are to be told, `telling` tells them,
//! `refusals` the owners of pods; `disk` keeps the set; `cgroups` knows
//! where a pod is on the node; `check` looks beforehand whether all is there.

pub mod cgroups;
pub mod check;
mod cluster_dns;
mod conditions;
mod disk;
mod documents;
pub(crate) mod kinds;
mod piecewise;
pub mod pods;
mod policies;
mod stand_in;
pub mod refusals;
mod state;
mod telling;
#[cfg(test)]
pub(crate) mod tests;
mod watch;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use kube::Client;
use tokio::sync::{Notify, mpsc};
use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep_until};

pub use self::disk::{BadState, Disk};
use self::documents::Feed;
pub use self::kinds::Name;
use self::pods::Mode;
pub use self::state::{Covered, State};
use self::telling::Teller;
use self::watch::{Told, Watcher};
use crate::policy::Sources;
use crate::workloads::annotations::CaptureLists;

/// Events that belong together come within this.
const QUIET: Duration = Duration::from_millis(100);

/// Events that never rest are seen to after this long all the same.
const RESTLESS: Duration = Duration::from_secs(1);

/// The state is written at most this often: endpoints change all the time in a large cluster.
const WRITE_EVERY: Duration = Duration::from_secs(10);

/// Events that wait to be folded in. Beyond them the watches wait.
const QUEUE: usize = 1024;

/// What the agent is told at its start.
#[derive(Debug, Clone)]
pub struct Options {
    /// The node whose pods it covers.
    pub node: String,
    /// The ConfigMap with the mesh configuration.
    pub mesh: Name,
    /// The mode of pods that neither their label nor their namespace's gives one.
    pub default: Mode,
    /// What is captured of pods whose annotations do not say (CAP-3).
    pub capture: CaptureLists,
    /// What flags say over the resources.
    pub overrides: Sources,
    /// Where the last good state is kept, if it is.
    pub disk: Option<Disk>,
    /// Whether objects are told in their status what became of them.
    pub tells: bool,
}

/// The agent of one node, watching.
pub struct Agent {
    state: Arc<Mutex<State>>,
    /// What objects are to be told may have changed.
    to_tell: Arc<Notify>,
    disk: Option<Disk>,
    watcher: Watcher,
    told: mpsc::Receiver<Told>,
    /// Watches of single objects, beside those that always run.
    singles: BTreeMap<Feed, AbortHandle>,
    always: Vec<AbortHandle>,
    /// What does not work, each said once.
    failing: BTreeMap<String, String>,
    /// When what changed is to be seen to: at the latest, and if nothing comes any more.
    due: Option<(Instant, Instant)>,
    /// When the state may be written again.
    may_write: Instant,
    to_write: bool,
    /// What is still to be said of the start.
    first: Vec<String>,
}

impl Agent {
    /// Takes up the state on disk, if there is one, and starts to watch. Must be called within a
    /// runtime.
    pub fn start(client: Client, options: Options) -> Self {
        let Options { node, mesh, default, capture, overrides, disk, tells } = options;
        let mut state = State::new(mesh.clone(), default, overrides).capturing(capture);
        let kept = disk.as_ref().map_or(Ok(Vec::new()), Disk::read);
        let first = match kept {
            Ok(objects) if objects.is_empty() => Vec::new(),
            Ok(objects) => {
                let count = objects.len();
                let mut lines = vec![format!("took up the last state on disk: {count} objects")];
                lines.extend(state.restore(objects));
                lines
            }
            Err(bad) => vec![format!("the last state on disk is left aside: {bad}")],
        };
        let (out, told) = mpsc::channel(QUEUE);
        let watcher = Watcher::start(client.clone(), node.clone(), mesh, out.clone());
        let mut always: Vec<_> =
            state.fixed().iter().map(|feed| watcher.follow(feed.clone())).collect();
        let (state, to_tell) = (Arc::new(Mutex::new(state)), Arc::new(Notify::new()));
        if tells {
            let teller = Teller::new(client, node, Arc::clone(&state), Arc::clone(&to_tell), out);
            always.push(tokio::spawn(teller.run()).abort_handle());
        }
        let mut agent = Self {
            state,
            to_tell,
            disk,
            watcher,
            told,
            singles: BTreeMap::new(),
            always,
            failing: BTreeMap::new(),
            due: None,
            may_write: Instant::now(),
            to_write: false,
            first,
        };
        agent.watch_singles();
        agent
    }

    /// The same, for who looks while it goes on.
    pub fn shared(&self) -> Arc<Mutex<State>> {
        Arc::clone(&self.state)
    }

    /// What it knows.
    pub fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What the API server was asked for and has not answered, or does not answer any more.
    pub fn troubles(&self) -> Vec<String> {
        let failing = self.failing.iter().map(|(what, why)| format!("{what}: {why}"));
        let awaited: Vec<_> = self.state().awaited().map(ToString::to_string).collect();
        let silent = awaited.into_iter().filter(|feed| !self.failing.contains_key(feed));
        failing.chain(silent.map(|feed| format!("{feed}: no answer yet"))).collect()
    }

    /// Waits until there is something to say, which may be nothing, or something changed; having done what
    /// there was to do. To be broken off only at the very end.
    pub async fn next(&mut self) -> Vec<String> {
        loop {
            let first = std::mem::take(&mut self.first);
            if !first.is_empty() {
                return first;
            }
            let due = self.due.map(|(latest, quiet)| latest.min(quiet));
            let write = self.to_write.then_some(self.may_write);
            tokio::select! {
                told = self.told.recv() => self.hear(told),
                () = at(due) => {
                    self.due = None;
                    self.settle().await;
                    return std::mem::take(&mut self.first);
                }
                () = at(write) => self.write().await,
            }
        }
    }

    fn hear(&mut self, told: Option<Told>) {
        match told {
            Some(Told::Event(feed, event)) => {
                let changed = self.state().apply(&feed, event);
                if changed.standing {
                    self.to_tell.notify_one();
                }
                if changed.content || changed.freshness {
                    let now = Instant::now();
                    let latest = self.due.map_or(now + RESTLESS, |(latest, _)| latest);
                    self.due = Some((latest, now + QUIET));
                }
            }
            // Said once, whatever else goes wrong with it.
            Some(Told::Failing(what, why)) => {
                if let Some(before) = self.failing.get_mut(&what) {
                    *before = why;
                } else {
                    self.first
                        .push(format!("{what} cannot be watched; what is known stays: {why}"));
                    self.failing.insert(what, why);
                }
            }
            Some(Told::Working(what)) => {
                let was_failing = self.failing.remove(&what).is_some();
                self.first.extend(was_failing.then(|| format!("{what} can be watched again")));
            }
            Some(Told::Said(line)) => self.first.push(line),
            // The watcher itself holds one end.
            None => {}
        }
    }

    /// Compiles beside the runtime: a large set takes a while.
    async fn settle(&mut self) {
        let state = Arc::clone(&self.state);
        let settle = move || state.lock().unwrap_or_else(PoisonError::into_inner).settle();
        match tokio::task::spawn_blocking(settle).await {
            Ok(lines) => self.first.extend(lines),
            Err(panic) => self.first.push(format!("compiling broke off: {panic}")),
        }
        self.to_tell.notify_one();
        crate::memory::give_back();
        self.to_write = true;
        self.watch_singles();
    }

    /// Watches the credentials that rules name, and no others.
    fn watch_singles(&mut self) {
        let wanted: BTreeSet<Feed> = self.state().wanted();
        self.singles.retain(|feed, handle| {
            let stays = wanted.contains(feed);
            if !stays {
                handle.abort();
                self.failing.remove(&feed.to_string());
            }
            stays
        });
        for feed in wanted {
            let watcher = &self.watcher;
            self.singles.entry(feed).or_insert_with_key(|feed| watcher.follow(feed.clone()));
        }
    }

    /// Keeps what is in force, if that is all that is known.
    pub async fn write(&mut self) {
        self.to_write = false;
        self.may_write = Instant::now() + WRITE_EVERY;
        let Some(disk) = self.disk.clone() else { return };
        let state = Arc::clone(&self.state);
        let write = move || {
            let state = state.lock().unwrap_or_else(PoisonError::into_inner);
            state.in_force().map_or(Ok(()), |documents| disk.write(&documents))
        };
        match tokio::task::spawn_blocking(write).await {
            Ok(Ok(())) => {}
            Ok(Err(bad)) => self.first.push(format!("the state cannot be kept: {bad}")),
            Err(panic) => self.first.push(format!("keeping the state broke off: {panic}")),
        }
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.always.iter().chain(self.singles.values()).for_each(AbortHandle::abort);
    }
}

/// Waits until then; for ever without a time.
async fn at(time: Option<Instant>) {
    match time {
        Some(time) => sleep_until(time).await,
        None => std::future::pending().await,
    }
}
