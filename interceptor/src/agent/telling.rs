//! Tells objects in their status what became of them.
//!
//! Every agent of the cluster comes to the same result, and one of them is to write it. None is chosen:
//! each waits for a time that its name and the object make, and writes only what no other has written
//! meanwhile, which it sees by the watch that it has anyhow. Who comes second is refused by the object's
//! version (409), and waits again. The times are spread so that of 5,000 agents some ten get as far as
//! asking, and a lone one need not wait for long (docs/scale.md).
//!
//! Nothing here has a say in what is enforced: what cannot be written is said once, and tried later.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use k8s_openapi::jiff::Timestamp;
use kube::api::{ApiResource, DynamicObject, GroupVersionKind, Patch, PatchParams};
use kube::{Api, Client};
use tokio::sync::{Notify, mpsc};
use tokio::task::spawn_blocking;
use tokio::time::{Instant, sleep_until, timeout};

use super::conditions::Overdue;
use super::kinds::{Kind, Name};
use super::state::State;
use super::watch::{Told, status, why};

/// The longest that an agent waits for another to write. Of N agents the first waits for about this
/// divided by the cube root of N.
const SPREAD: Duration = Duration::from_secs(15);

/// Pause between two writes of one agent.
const PACE: Duration = Duration::from_secs(1);

/// Until what was written comes by the watch, or is written again.
const ECHO: Duration = Duration::from_secs(60);

/// Until a kind is tried again whose statuses may not be written.
const FORBIDDEN: Duration = Duration::from_secs(600);

/// How long the API server may take to answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// Changes that come together are seen to together.
const CALM: Duration = Duration::from_millis(500);

/// What tells.
pub(super) struct Teller {
    client: Client,
    node: String,
    state: Arc<Mutex<State>>,
    changed: Arc<Notify>,
    out: mpsc::Sender<Told>,
    /// When what is overdue is written.
    due: BTreeMap<(Kind, Name), Due>,
    /// Kinds that are left alone for now.
    forbidden: BTreeMap<Kind, Instant>,
}

struct Due {
    /// The object's version that this is of.
    of: (String, i64),
    at: Instant,
    /// How often it was tried.
    tries: u32,
}

/// How a write went.
enum Outcome {
    Written,
    /// Somebody else wrote first, or the object is gone: the watch tells.
    Overtaken,
    Failed(String),
    /// It may not be.
    Forbidden(String),
}

impl Teller {
    /// Tells what `state` has to tell whenever `changed` says that it may have changed, for ever.
    pub(super) fn new(
        client: Client,
        node: String,
        state: Arc<Mutex<State>>,
        changed: Arc<Notify>,
        out: mpsc::Sender<Told>,
    ) -> Self {
        let (due, forbidden) = (BTreeMap::new(), BTreeMap::new());
        Self { client, node, state, changed, out, due, forbidden }
    }

    pub(super) async fn run(mut self) {
        loop {
            let next = self.due.values().map(|due| due.at).min();
            tokio::select! {
                () = self.changed.notified() => tokio::time::sleep(CALM).await,
                () = until(next) => {}
            }
            let overdue = self.overdue().await;
            let now = Instant::now();
            self.plan(&overdue, now);
            let first =
                overdue.iter().find(|one| self.due.get(&key(one)).is_some_and(|due| due.at <= now));
            if let Some(one) = first {
                self.tell(one).await;
                tokio::time::sleep(PACE).await;
            }
        }
    }

    /// Beside the runtime: while a set is compiled the state is not to be had.
    async fn overdue(&self) -> Vec<Overdue> {
        let state = Arc::clone(&self.state);
        let look = move || state.lock().unwrap_or_else(PoisonError::into_inner).overdue();
        // A look that broke off is followed by the next.
        spawn_blocking(look).await.unwrap_or_default()
    }

    /// Notes when each is written, and forgets those that somebody wrote.
    fn plan(&mut self, overdue: &[Overdue], now: Instant) {
        let before = std::mem::take(&mut self.due);
        for one in overdue {
            let key = key(one);
            let forbidden = self.forbidden.get(&one.kind).copied().filter(|until| *until > now);
            let of = (one.standing.uid.clone(), one.standing.generation);
            let due = match before.get(&key) {
                Some(known) if known.of == of => Due { of, at: known.at, tries: known.tries },
                _ => Due { at: now + wait(&self.node, one, 0), of, tries: 0 },
            };
            let at = forbidden.map_or(due.at, |until| due.at.max(until));
            self.due.insert(key, Due { at, ..due });
        }
    }

    async fn tell(&mut self, one: &Overdue) {
        let outcome = self.write(one).await;
        let now = Instant::now();
        let Some(due) = self.due.get_mut(&key(one)) else { return };
        due.tries += 1;
        match outcome {
            // Should the watch not show it, it is written again.
            Outcome::Written => due.at = now + ECHO,
            Outcome::Overtaken => due.at = now + PACE + wait(&self.node, one, due.tries),
            Outcome::Failed(why) => {
                due.at = now + ECHO + wait(&self.node, one, due.tries);
                tracing::warn!("status of {} {}: {why}", one.kind, one.name);
            }
            Outcome::Forbidden(why) => {
                let until = now + FORBIDDEN + wait(&self.node, one, due.tries);
                if self.forbidden.insert(one.kind, until).is_none() {
                    let said = format!(
                        "{}/status cannot be written, so that nobody finds there what is wrong; what is \
                         enforced does not hang on it: {why}",
                        one.kind.plural()
                    );
                    let _ = self.out.send(Told::Said(said)).await;
                }
            }
        }
    }

    async fn write(&self, one: &Overdue) -> Outcome {
        // Where the kind is served in another version too, the status is the same one.
        let mut last = String::new();
        for version in one.kind.versions() {
            let gvk = GroupVersionKind::gvk(one.kind.group(), version, one.kind.name());
            let resource = ApiResource::from_gvk_with_plural(&gvk, one.kind.plural());
            let api: Api<DynamicObject> =
                Api::namespaced_with(self.client.clone(), &one.name.namespace, &resource);
            let patch = Patch::Merge(one.patch(Timestamp::now()));
            let parameters = PatchParams::default();
            let asked = api.patch_status(&one.name.name, &parameters, &patch);
            let error = match timeout(PATIENCE, asked).await {
                Ok(Ok(_)) => return Outcome::Written,
                Ok(Err(error)) => error,
                Err(_) => return Outcome::Failed("no answer".to_owned()),
            };
            match status(&error) {
                // Not in this version, or gone.
                Some(404) => last = why(&error),
                Some(409 | 410) => return Outcome::Overtaken,
                Some(401 | 403) => return Outcome::Forbidden(why(&error)),
                _ => return Outcome::Failed(why(&error)),
            }
        }
        Outcome::Failed(last)
    }
}

fn key(one: &Overdue) -> (Kind, Name) {
    (one.kind, one.name.clone())
}

/// How long an agent waits for the others.
fn wait(node: &str, one: &Overdue, tries: u32) -> Duration {
    let mut hasher = DefaultHasher::new();
    (node, &one.standing.uid, one.standing.generation, tries).hash(&mut hasher);
    // 53 bits are as many as a fraction has.
    let fraction = (hasher.finish() >> 11) as f64 / (1_u64 << 53) as f64;
    SPREAD.mul_f64(fraction.cbrt())
}

async fn until(time: Option<Instant>) {
    match time {
        Some(time) => sleep_until(time).await,
        None => std::future::pending().await,
    }
}
