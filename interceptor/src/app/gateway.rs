//! `interceptor gateway`: its files to a running gateway, and that to its end.

mod front;
mod nodes;
mod status;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{sleep, timeout};

use self::status::{Role, Watched};
use super::signals::Signals;
use super::wanted::{log_settings, stale_for};
use super::{AppError, resolv_conf, system};
use crate::account::{AccessLog, Folds, LogTarget};
use crate::admit::Rooms;
use crate::cli::{self, Exit};
use crate::descriptors;
use crate::drain::Drainer;
use crate::gateway::{KeyFiles, Shared};
use crate::netns::NetNs;
use crate::policy::{Loaded, Sources};
use crate::resolve::{Resolver, ResolverConfig};

/// How often refusals that were folded come to be written.
const UNFOLD: Duration = Duration::from_secs(1);
/// After the last connection, for its line.
const LAST_LINES: Duration = Duration::from_millis(200);

/// Runs until a signal, and then until what it carries has ended.
pub(super) async fn run(args: cli::Gateway) -> Result<Exit, AppError> {
    let signals = Signals::listen().map_err(system("cannot listen for signals"))?;
    match (args.listen, args.address) {
        (Some(at), _) => nodes::run(args, at, signals).await,
        (None, Some(address)) => front::run(args, address, signals).await,
        (None, None) => Err(AppError::Usage("give --listen or --address".into())),
    }
}

fn sources(args: &cli::Gateway) -> Sources {
    Sources {
        files: args.files.clone(),
        mesh_config: args.mesh_config.clone(),
        outbound: args.outbound,
        enforcement: args.enforcement,
        gateway: args.address,
        ..Sources::default()
    }
}

/// The files of the gateway's certificate, if they are given: all, or none.
fn key_files(args: &cli::Gateway) -> Option<KeyFiles> {
    Some(KeyFiles {
        certificate: args.tls_cert.clone()?,
        key: args.tls_key.clone()?,
        client_ca: args.client_ca.clone()?,
        client_crl: args.client_crl.clone(),
    })
}

fn unusable(error: impl std::error::Error) -> AppError {
    AppError::Resources(format!("{error}; nothing was started"))
}

/// What every gateway has.
struct Ground {
    shared: Shared,
    drainer: Drainer,
    resolvers: Vec<SocketAddr>,
}

impl Ground {
    /// As the files say at the start.
    fn lay(args: &cli::Gateway, loaded: &Loaded) -> Result<Self, AppError> {
        descriptors::raise_limit();
        descriptors::keep(loaded.snapshot.limits.descriptor_reserve);
        let settings = log_settings(args.access_log.as_ref(), LogTarget::Stdout, &loaded.snapshot);
        let log = AccessLog::open(&settings).map_err(system("cannot open the access log"))?;
        let servers = match args.resolvers.is_empty() {
            false => args.resolvers.clone(),
            true => resolv_conf::read("/etc/resolv.conf".as_ref()).unwrap_or_default(),
        };
        let resolver = Resolver::new(ResolverConfig {
            servers: servers.clone(),
            stale_for: stale_for(&loaded.snapshot),
            refresh: loaded.snapshot.dns_refresh,
        });
        let netns = NetNs::current().map_err(system("cannot open our own network namespace"))?;
        let drainer = Drainer::default();
        let shared = Shared {
            netns: Arc::new(netns),
            resolver: Arc::new(resolver),
            folds: Arc::new(Folds::new(log.clone())),
            log,
            rooms: Arc::new(Rooms::default()),
            drain: drainer.subscribe(),
        };
        Ok(Self { shared, drainer, resolvers: servers })
    }
}

impl Shared {
    /// Takes over what a changed set of files says of the log and of names.
    async fn follow(&self, target: Option<&cli::LogTarget>, loaded: &Loaded) -> Result<(), String> {
        let settings = log_settings(target, LogTarget::Stdout, &loaded.snapshot);
        let replaced = self.log.replace(&settings).await;
        replaced.map_err(|error| format!("the access log: {error}"))?;
        self.resolver.hold(stale_for(&loaded.snapshot), loaded.snapshot.dns_refresh);
        descriptors::keep(loaded.snapshot.limits.descriptor_reserve);
        Ok(())
    }
}

/// What `status` is told of, where the gateway has a name.
fn watched(args: &cli::Gateway, ground: &Ground, role: Role) -> Watched {
    let resolvers = ground.resolvers.iter().map(ToString::to_string).collect();
    Watched::new(args.name.clone().unwrap_or_default(), ground.shared.clone(), resolvers, role)
}

/// Writes what repeats.
async fn unfold(folds: Arc<Folds>) {
    loop {
        sleep(UNFOLD).await;
        folds.unfold(true, false);
    }
}

/// Lets what is open go on once the gateway takes in nothing new, until `gone`, the time is over, or a
/// second signal.
async fn drain(
    drainer: &Drainer,
    gone: impl Future<Output = ()>,
    limit: Duration,
    signals: &mut Signals,
) -> Exit {
    drainer.begin();
    let drained = tokio::select! {
        drained = timeout(limit, gone) => drained.is_ok(),
        _ = signals.next() => false,
    };
    drainer.end();
    if drained { Exit::Success } else { Exit::Failure }
}

/// A file of its own that is followed.
fn alone(path: PathBuf) -> Sources {
    Sources { files: vec![path], ..Sources::default() }
}
