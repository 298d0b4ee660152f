//! The gateway that is dialled: Istio's form.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::sleep;

use super::super::reload::said;
use super::super::{AppError, system};
use super::status::{Role, Watched};
use super::{Ground, LAST_LINES, drain, key_files, sources, unfold, unusable, watched};
use crate::app::signals::Signals;
use crate::cli::{self, Exit};
use crate::gateway::{Front, Keys, Loopback, Shared, Unopened};
use crate::memory;
use crate::policy::{self, Caller, Inventory, Loaded, Snapshot, Sources, Store, Watch};
use crate::workloads::Workload;

/// How often it is looked whether the last connection has ended.
const LOOK: Duration = Duration::from_millis(50);
/// What is spoken in mutual TLS.
const PROTOCOLS: &[&[u8]] = &[b"h2", b"http/1.1"];

pub(super) async fn run(
    args: cli::Gateway,
    address: IpAddr,
    mut signals: Signals,
) -> Result<Exit, AppError> {
    let sources = sources(&args);
    let caller = Caller { namespace: args.namespace.clone(), labels: args.labels.clone() };
    // Before the files are read: no change of them is missed.
    let watch = Watch::new(&sources);
    let loaded = policy::load_over(&sources, &caller, &Inventory::default()).map_err(|errors| {
        AppError::Resources(format!(
            "these resources cannot be used; nothing was started\n{errors}"
        ))
    })?;
    tell(&loaded);
    let serves = loaded.snapshot.policy.listeners().is_some_and(|ports| !ports.is_empty());
    if !serves {
        return Err(AppError::Resources(format!(
            "no Gateway in these files has servers and a `selector` that --labels ({}) meets; nothing \
             was started",
            shown(&args.labels)
        )));
    }
    let keys = key_files(&args).map(|files| Keys::read(files, PROTOCOLS)).transpose();
    let keys = keys.map_err(unusable)?;
    let ground = Ground::lay(&args, &loaded)?;
    let Ground { shared, drainer, .. } = &ground;
    let shared = shared.clone();
    let loopback = Loopback::open().await.map_err(system("cannot listen on loopback"))?;
    let workload = Workload {
        namespace: args.namespace.as_str().into(),
        name: "gateway".into(),
        service_account: "".into(),
        labels: args.labels.iter().cloned().collect(),
        pod: None,
    };
    let Loaded { snapshot, inventory, .. } = loaded;
    let store = Arc::new(Store::new(snapshot.clone()));
    let front = Arc::new(Front::new(address, workload, &store, keys, loopback, &shared));
    for problem in front.follow(snapshot) {
        match problem {
            Unopened::Listen { at, source } => {
                return Err(AppError::Busy { what: format!("cannot listen on {at}"), source });
            }
            other => eprintln!("interceptor: {other}"),
        }
    }
    let ports = listed(&front);
    if ports.is_empty() {
        return Err(AppError::Usage("there is no port that it could listen on".into()));
    }
    let drain_time = Duration::from_secs(args.drain_time);
    let rooms = Arc::clone(&shared.rooms);
    let watched = Arc::new(watched(&args, &ground, Role::Front(Arc::clone(&front))));
    let answering = watched.open()?;
    let folds = Arc::clone(&shared.folds);
    let follower = Follower { args, sources, caller, front, shared, watched };
    let following = [tokio::spawn(unfold(folds)), tokio::spawn(follower.policy(watch, inventory))];
    memory::give_back();
    eprintln!("interceptor: gateway on {address}: {ports}");
    signals.next().await;
    let gone = async {
        while rooms.active() > 0 {
            sleep(LOOK).await;
        }
    };
    let outcome = drain(drainer, gone, drain_time, &mut signals).await;
    following.iter().chain(&answering).for_each(tokio::task::JoinHandle::abort);
    sleep(LAST_LINES).await;
    Ok(outcome)
}

fn shown(labels: &[(String, String)]) -> String {
    let labels: Vec<_> = labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
    if labels.is_empty() { "none".into() } else { labels.join(",") }
}

/// Its ports, in words; nothing where it has none.
fn listed(front: &Front) -> String {
    let ports: Vec<_> = front.listens().iter().map(|at| at.port().to_string()).collect();
    match ports.as_slice() {
        [] => String::new(),
        [one] => format!("port {one}"),
        all => format!("ports {}", all.join(", ")),
    }
}

fn tell(loaded: &Loaded) {
    said(&loaded.warnings, &loaded.rejected)
        .iter()
        .for_each(|text| eprintln!("interceptor: {text}"));
}

/// What follows the files.
struct Follower {
    args: cli::Gateway,
    sources: Sources,
    caller: Caller,
    front: Arc<Front>,
    shared: Shared,
    watched: Arc<Watched>,
}

impl Follower {
    /// Puts changed resources in force, whole or not at all (T-61).
    async fn policy(self, mut watch: Watch, mut inventory: Inventory) {
        let mut generation = 1;
        loop {
            watch.changed().await;
            let (sources, caller) = (self.sources.clone(), self.caller.clone());
            let before = inventory.clone();
            let loading =
                tokio::task::spawn_blocking(move || policy::load_over(&sources, &caller, &before));
            let loaded = match loading.await {
                Ok(Ok(loaded)) => loaded,
                Ok(Err(errors)) => {
                    self.watched.stays(&errors);
                    continue;
                }
                Err(panic) => {
                    self.watched.stays(&panic);
                    continue;
                }
            };
            if let Err(why) = self.shared.follow(self.args.access_log.as_ref(), &loaded).await {
                self.watched.stays(&why);
                continue;
            }
            generation += 1;
            tell(&loaded);
            let changes = inventory.changes(&loaded.inventory);
            inventory = loaded.inventory;
            for problem in self.front.follow(Snapshot { generation, ..loaded.snapshot }) {
                eprintln!("interceptor: {problem}");
            }
            let ports = listed(&self.front);
            eprintln!("interceptor: policy generation {generation}: {changes}; on {ports}");
            self.watched.reloaded(true, &changes.to_string());
            memory::give_back();
        }
    }
}
