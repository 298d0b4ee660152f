//! `interceptor gateway`: its files to a running gateway, and that to its end.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::net::TcpListener;
use tokio::time::timeout;

use super::reload::said;
use super::signals::Signals;
use super::wanted::{log_settings, stale_for};
use super::{AppError, resolv_conf, system};
use crate::account::{AccessLog, Folds, LogTarget};
use crate::admit::Rooms;
use crate::cli::{self, Exit};
use crate::descriptors;
use crate::drain::Drainer;
use crate::gateway::{Gateway, KeyFiles, Keys, Loopback, Nodes, Policies, Shared};
use crate::memory;
use crate::netns::NetNs;
use crate::policy::{self, Caller, Checked, Inventory, Sources, Watch};
use crate::resolve::{Resolver, ResolverConfig};

/// How often refusals that were folded come to be written.
const UNFOLD: Duration = Duration::from_secs(1);
/// After the last stream, for its line.
const LAST_LINES: Duration = Duration::from_millis(200);

/// Runs until a signal, and then until its streams have ended.
pub(super) async fn run(args: cli::Gateway) -> Result<Exit, AppError> {
    let mut signals = Signals::listen().map_err(system("cannot listen for signals"))?;
    let sources = Sources {
        files: args.files.clone(),
        mesh_config: args.mesh_config.clone(),
        outbound: args.outbound,
        enforcement: args.enforcement,
        ..Sources::default()
    };
    // Before the files are read: no change of them is missed.
    let watch = Watch::new(&sources);
    let checked = check(&sources, &Inventory::default())?;
    let loaded = checked.compile(&own());
    said(&loaded.warnings, &loaded.rejected)
        .iter()
        .for_each(|text| eprintln!("interceptor: {text}"));
    let table = Sources { files: vec![args.nodes.clone()], ..Sources::default() };
    let table = Watch::new(&table);
    let nodes = Nodes::read(&args.nodes).map_err(unusable)?;
    let keys = Keys::read(KeyFiles {
        certificate: args.tls_cert.clone(),
        key: args.tls_key.clone(),
        client_ca: args.client_ca.clone(),
        client_crl: args.client_crl.clone(),
    })
    .map_err(unusable)?;
    descriptors::raise_limit();
    descriptors::keep(loaded.snapshot.limits.descriptor_reserve);
    let settings = log_settings(args.access_log.as_ref(), LogTarget::Stdout, &loaded.snapshot);
    let log = AccessLog::open(&settings).map_err(system("cannot open the access log"))?;
    let listener = TcpListener::bind(args.listen).await.map_err(|source| AppError::Busy {
        what: format!("cannot listen on {}", args.listen),
        source,
    })?;
    let servers = match args.resolvers.is_empty() {
        false => args.resolvers.clone(),
        true => resolv_conf::read("/etc/resolv.conf".as_ref()).unwrap_or_default(),
    };
    let drainer = Drainer::default();
    let folds = Arc::new(Folds::new(log.clone()));
    let resolver = Arc::new(Resolver::new(ResolverConfig {
        servers,
        stale_for: stale_for(&loaded.snapshot),
        refresh: loaded.snapshot.dns_refresh,
    }));
    let netns = NetNs::current().map_err(system("cannot open our own network namespace"))?;
    let shared = Shared {
        netns: Arc::new(netns),
        resolver: Arc::clone(&resolver),
        log: log.clone(),
        folds: Arc::clone(&folds),
        rooms: Arc::new(Rooms::default()),
        drain: drainer.subscribe(),
    };
    let policies = Policies::new(shared, checked, &nodes);
    let known = nodes.len();
    let gateway = Arc::new(Gateway {
        keys,
        nodes: ArcSwap::from_pointee(nodes),
        policies: Mutex::new(policies),
        loopback: Loopback::open().await.map_err(system("cannot listen on loopback"))?,
        log: log.clone(),
        drain: drainer.subscribe(),
    });
    let at = listener.local_addr().map_err(system("cannot tell the listener's address"))?;
    let drain_time = Duration::from_secs(args.drain_time);
    let follower = Follower { args, sources, gateway: Arc::clone(&gateway), resolver, log };
    let following = [
        tokio::spawn(follower.clone().policy(watch, loaded.inventory)),
        tokio::spawn(follower.table(table)),
        tokio::spawn(unfold(folds)),
    ];
    memory::give_back();
    eprintln!("interceptor: gateway on {at}: {known} nodes");
    let outcome = until_drained(&gateway, listener, &drainer, drain_time, &mut signals).await;
    following.iter().for_each(tokio::task::JoinHandle::abort);
    tokio::time::sleep(LAST_LINES).await;
    Ok(outcome)
}

/// For whom the gateway's own settings are read: its log, its limits.
fn own() -> Caller {
    Caller::new("default")
}

fn unusable(error: impl std::error::Error) -> AppError {
    AppError::Resources(format!("{error}; nothing was started"))
}

fn check(sources: &Sources, before: &Inventory) -> Result<Checked, AppError> {
    policy::check_over(sources, before).map_err(|errors| {
        AppError::Resources(format!(
            "these resources cannot be used; nothing was started\n{errors}"
        ))
    })
}

/// Serves until a signal; then takes in nothing new, and waits for what there is.
async fn until_drained(
    gateway: &Arc<Gateway>,
    listener: TcpListener,
    drainer: &Drainer,
    drain_time: Duration,
    signals: &mut Signals,
) -> Exit {
    let serving = tokio::spawn(Arc::clone(gateway).serve(listener));
    signals.next().await;
    drainer.begin();
    let Ok(places) = serving.await else { return Exit::Internal };
    let gone = async {
        // All places are free again once no node is connected.
        let all = places.acquire_many(Gateway::places());
        matches!(timeout(drain_time, all).await, Ok(Ok(_)))
    };
    let drained = tokio::select! {
        drained = gone => drained,
        _ = signals.next() => false,
    };
    drainer.end();
    if drained { Exit::Success } else { Exit::Failure }
}

/// What follows the files.
#[derive(Clone)]
struct Follower {
    args: cli::Gateway,
    sources: Sources,
    gateway: Arc<Gateway>,
    resolver: Arc<Resolver>,
    log: AccessLog,
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
                    eprintln!("interceptor: the policy before stays in force:\n{errors}");
                    continue;
                }
                Err(panic) => {
                    eprintln!("interceptor: the policy before stays in force: {panic}");
                    continue;
                }
            };
            let loaded = checked.compile(&own());
            let settings =
                log_settings(self.args.access_log.as_ref(), LogTarget::Stdout, &loaded.snapshot);
            if let Err(error) = self.log.replace(&settings).await {
                eprintln!("interceptor: the policy before stays in force: the access log: {error}");
                continue;
            }
            self.resolver.hold(stale_for(&loaded.snapshot), loaded.snapshot.dns_refresh);
            descriptors::keep(loaded.snapshot.limits.descriptor_reserve);
            let generation = self.gateway.policies().replace(checked);
            let changes = inventory.changes(&loaded.inventory);
            for text in said(&loaded.warnings, &loaded.rejected) {
                eprintln!("interceptor: {text}");
            }
            eprintln!("interceptor: policy generation {generation}: {changes}");
            inventory = loaded.inventory;
            memory::give_back();
        }
    }

    /// Puts a changed table of nodes in force.
    async fn table(self, mut watch: Watch) {
        loop {
            watch.changed().await;
            match Nodes::read(&self.args.nodes) {
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

/// Writes what repeats.
async fn unfold(folds: Arc<Folds>) {
    loop {
        tokio::time::sleep(UNFOLD).await;
        folds.unfold(true, false);
    }
}
