//! The gateway to which nodes bring streams.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;

use super::super::reload::said;
use super::super::{AppError, system};
use super::status::{Role, Watched};
use super::{Ground, LAST_LINES, alone, drain, key_files, sources, unfold, unusable, watched};
use crate::app::signals::Signals;
use crate::cli::{self, Exit};
use crate::gateway::{Gateway, Keys, Loopback, Nodes, Policies, Shared};
use crate::memory;
use crate::policy::{self, Caller, Checked, Inventory, Sources, Watch};

pub(super) async fn run(
    args: cli::Gateway,
    at: SocketAddr,
    mut signals: Signals,
) -> Result<Exit, AppError> {
    let sources = sources(&args);
    // Before the files are read: no change of them is missed.
    let watch = Watch::new(&sources);
    let checked = check(&sources, &Inventory::default())?;
    let loaded = checked.compile(&own());
    said(&loaded.warnings, &loaded.rejected)
        .iter()
        .for_each(|text| eprintln!("interceptor: {text}"));
    let (Some(table), Some(keys)) = (args.nodes.clone(), key_files(&args)) else {
        return Err(AppError::Usage("--listen needs --nodes and a certificate".into()));
    };
    let table_watch = Watch::new(&alone(table.clone()));
    let nodes = Nodes::read(&table).map_err(unusable)?;
    let keys = Keys::read(keys, &[b"h2"]).map_err(unusable)?;
    let ground = Ground::lay(&args, &loaded)?;
    let Ground { shared, drainer, .. } = &ground;
    let shared = shared.clone();
    let listener = TcpListener::bind(at)
        .await
        .map_err(|source| AppError::Busy { what: format!("cannot listen on {at}"), source })?;
    let policies = Policies::new(shared.clone(), checked, &nodes);
    let known = nodes.len();
    let gateway = Arc::new(Gateway {
        keys,
        nodes: ArcSwap::from_pointee(nodes),
        policies: Mutex::new(policies),
        loopback: Loopback::open().await.map_err(system("cannot listen on loopback"))?,
        log: shared.log.clone(),
        drain: drainer.subscribe(),
        places: Arc::new(Semaphore::new(Gateway::places() as usize)),
    });
    let at = listener.local_addr().map_err(system("cannot tell the listener's address"))?;
    let drain_time = Duration::from_secs(args.drain_time);
    let folds = Arc::clone(&shared.folds);
    let role = Role::Nodes(Arc::clone(&gateway), at.to_string());
    let watched = Arc::new(watched(&args, &ground, role));
    let answering = watched.open()?;
    let follower = Follower { args, sources, gateway: Arc::clone(&gateway), shared, watched };
    let following = [
        tokio::spawn(follower.clone().policy(watch, loaded.inventory)),
        tokio::spawn(follower.table(table, table_watch)),
        tokio::spawn(unfold(folds)),
    ];
    memory::give_back();
    eprintln!("interceptor: gateway on {at}: {known} nodes");
    let serving = tokio::spawn(Arc::clone(&gateway).serve(listener));
    signals.next().await;
    let gone = async {
        // All places are free again once no node is connected.
        let Ok(places) = serving.await else { return };
        drop(places.acquire_many(Gateway::places()).await);
    };
    let outcome = drain(drainer, gone, drain_time, &mut signals).await;
    following.iter().chain(&answering).for_each(tokio::task::JoinHandle::abort);
    tokio::time::sleep(LAST_LINES).await;
    Ok(outcome)
}

/// For whom the gateway's own settings are read: its log, its limits.
fn own() -> Caller {
    Caller::new("default")
}

fn check(sources: &Sources, before: &Inventory) -> Result<Checked, AppError> {
    policy::check_over(sources, before).map_err(|errors| {
        AppError::Resources(format!(
            "these resources cannot be used; nothing was started\n{errors}"
        ))
    })
}

/// What follows the files.
#[derive(Clone)]
struct Follower {
    args: cli::Gateway,
    sources: Sources,
    gateway: Arc<Gateway>,
    shared: Shared,
    watched: Arc<Watched>,
}

impl Follower {
    /// Puts changed resources in force, whole or not at all (T-61).
    async fn policy(self, mut watch: Watch, mut inventory: Inventory) {
        loop {
            watch.changed().await;
            let (sources, before) = (self.sources.clone(), inventory.clone());
            let checked =
                tokio::task::spawn_blocking(move || policy::check_over(&sources, &before)).await;
            let checked = match checked {
                Ok(Ok(checked)) => checked,
                Ok(Err(errors)) => {
                    self.watched.stays(&errors);
                    continue;
                }
                Err(panic) => {
                    self.watched.stays(&panic);
                    continue;
                }
            };
            let loaded = checked.compile(&own());
            if let Err(why) = self.shared.follow(self.args.access_log.as_ref(), &loaded).await {
                self.watched.stays(&why);
                continue;
            }
            let generation = self.gateway.policies().replace(checked);
            let changes = inventory.changes(&loaded.inventory);
            for text in said(&loaded.warnings, &loaded.rejected) {
                eprintln!("interceptor: {text}");
            }
            eprintln!("interceptor: policy generation {generation}: {changes}");
            self.watched.reloaded(true, &changes.to_string());
            inventory = loaded.inventory;
            memory::give_back();
        }
    }

    /// Puts a changed table of nodes in force.
    async fn table(self, path: PathBuf, mut watch: Watch) {
        loop {
            watch.changed().await;
            match Nodes::read(&path) {
                Ok(nodes) => {
                    self.gateway.policies().follow(&nodes);
                    eprintln!("interceptor: table of nodes: {} nodes", nodes.len());
                    self.gateway.nodes.store(Arc::new(nodes));
                }
                Err(error) => {
                    eprintln!("interceptor: the table of nodes before stays in force: {error}");
                }
            }
        }
    }
}
