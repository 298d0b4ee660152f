//! Everything put in place and started.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use arc_swap::{ArcSwap, ArcSwapOption};
use interceptor_common::Settings;
use ipnet::IpNet;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;

use super::cut::Ended;
use super::direct::{Direct, hear};
use super::enrol::{self, Enrolled};
use super::existing::Existing;
use super::handler::{CoveredNamespace, Running, Successor, hidden};
use super::reload::{Reloader, said};
use super::report::Reporter;
use super::run::Place;
use super::wanted::{governed, log_settings, stale_for};
use super::watchdog::{self, Repairs};
use super::{AppError, scope, system};
use crate::account::{AccessLog, Folds};
use crate::act::carrier::Outbound;
use crate::act::dial::Dialer;
use crate::admin::ExecInfo;
use crate::admit::{Room, Rooms};
use crate::cli;
use crate::conn::{self, Site};
use crate::drain::Drainer;
use crate::kernel::{EventReader, HintReader, Kernel, Pins, Plan, Programs};
use crate::netns::{Isolated, NetNs};
use crate::policy::{Loaded, Snapshot, Sources, Store, Watch};
use crate::resolve::{Resolver, ResolverConfig};
use crate::tiers::{Labels, Sync};
use crate::workloads::Workload;
use crate::workloads::cgroup::Cgroup;
use crate::workloads::session::Session;

/// Where policy comes from, and who says when it changes.
pub(super) struct Watched {
    pub(super) watch: Watch,
    pub(super) sources: Sources,
}

/// Everything that runs between start and stop.
pub(super) struct Started {
    pub(super) running: Arc<Running>,
    pub(super) netns: Arc<NetNs>,
    pub(super) etc_netns: Option<String>,
    pub(super) isolated: Option<Isolated>,
    pub(super) admin: JoinHandle<()>,
    pub(super) reloader: JoinHandle<()>,
    pub(super) reporter: JoinHandle<()>,
    /// What looks after the hooks, and where they have to be.
    pub(super) watchdog: [JoinHandle<()>; 2],
    /// What keeps tables, and direct connections, in order.
    pub(super) background: Vec<JoinHandle<()>>,
    pub(super) stop_reporter: oneshot::Sender<()>,
    pub(super) folds: Arc<Folds>,
    /// Ends connections, once another daemon has taken over.
    pub(super) drainer: Drainer,
    /// Daemons that ask for our place.
    pub(super) successors: mpsc::Receiver<Successor>,
}

/// What is attached, with what it reports.
struct Attached {
    kernel: Arc<Kernel>,
    events: EventReader,
    hints: HintReader,
    existing: Existing,
    /// What of the settings policy does not change.
    settings: Settings,
}

/// Prepares everything, takes `place`, and from then on changes things. What fails before has changed
/// nothing, and a daemon whose place was to be taken goes on.
pub(super) async fn start(
    args: &cli::Run,
    loaded: Loaded,
    watched: Watched,
    session: &mut Session,
    mut place: Place,
) -> Result<Started, AppError> {
    let Loaded { snapshot, inventory, warnings, rejected, .. } = loaded;
    let cgroups = scope::cgroups(args, session)?;
    let resolvers = scope::resolvers(args)?;
    // What a killed one left of the name: its command, if it still runs, is cut off.
    Isolated::clean_stale(&args.name).await?;
    let (isolated, files, namespaces) = if args.isolate {
        let (netns, isolated, files) = enrol::isolate(&args.name, &resolvers).await?;
        (Some(isolated), files, vec![netns])
    } else {
        (None, Vec::new(), scope::namespaces(args, &cgroups)?)
    };
    let namespaces = scope::with_handed_over(namespaces, place.namespaces())
        .map_err(system("cannot take over the listeners"))?;
    let bypass: Vec<IpNet> = args.bypass.iter().copied().chain(place.bypass()?).collect();
    let etc_netns = scope::etc_netns(args).map(str::to_owned);
    let mut enrolled = Vec::new();
    for (netns, listeners) in namespaces {
        let label = netns.label().to_owned();
        let ready = Enrolled::prepare(Arc::new(netns), listeners).await;
        enrolled.push(ready.map_err(|source| AppError::Busy {
            what: format!("cannot cover network namespace {label}"),
            source,
        })?);
    }
    let log = AccessLog::open(&log_settings(args, &snapshot))
        .map_err(system("cannot open the access log"))?;
    let programs = Programs::load(&args.name, args.bpf_log)?;
    let (server, succeeds) = place.take(session).await?;

    let attached = attach(
        args, session, programs, &snapshot, &cgroups, &enrolled, &resolvers, &bypass, succeeds,
    )?;
    let Attached { kernel, events, hints, existing, settings } = attached;
    let beat = tokio::spawn(watchdog::beat(Arc::clone(&kernel)));
    let resolver = Arc::new(Resolver::new(ResolverConfig {
        servers: resolvers.clone(),
        stale_for: stale_for(&snapshot),
        refresh: snapshot.dns_refresh,
    }));
    let policy = Arc::new(Store::new(snapshot));
    let labels = Arc::new(Labels::default());
    let destroyers = scope::destroyers(&enrolled);
    let sync = Arc::new(Sync::new(
        Arc::clone(&kernel),
        Arc::clone(&resolver),
        Arc::clone(&labels),
        &args.workload.namespace,
        destroyers.is_ok(),
    ));
    if let Err(error) = &destroyers
        && policy.current().fast_path
    {
        eprintln!("interceptor: warning: {error}; fastPath is off, everything goes by the proxy");
    }
    if succeeds {
        sync.inherit();
    }
    if let Err(error) = sync.apply(&policy.current()) {
        eprintln!("interceptor: {error}");
    }
    let direct = Arc::new(Direct {
        kernel: Arc::clone(&kernel),
        policy: Arc::clone(&policy),
        labels: Arc::clone(&labels),
        sync: Arc::clone(&sync),
        destroyers: destroyers.unwrap_or_default(),
        namespace: args.workload.namespace.as_str().into(),
    });
    let mut background = vec![
        beat,
        tokio::spawn(Arc::clone(&direct).watch()),
        tokio::spawn(Arc::clone(&sync).follow(Arc::clone(&policy))),
        tokio::spawn(hear(hints, Arc::clone(&sync))),
        tokio::spawn(enrol::sweep(Arc::clone(&kernel))),
        tokio::spawn(watchdog::mind_log(log.clone(), Arc::clone(&policy), Arc::clone(&sync))),
    ];
    let (stop_reporter, stopped) = oneshot::channel::<()>();
    let ended = Ended::default();
    let folds = Arc::new(Folds::new(log.clone()));
    let reporter = Reporter::new(
        log.clone(),
        Arc::clone(&folds),
        Arc::clone(&policy),
        !args.no_bypass_log,
        ended.clone(),
        Arc::clone(&direct) as _,
    );
    let reporter = tokio::spawn(reporter.run(events, async {
        let _ = stopped.await;
    }));

    let netns = Arc::clone(&enrolled[0].netns);
    let rooms = Arc::new(Rooms::default());
    let drainer = Drainer::default();
    let workload = Arc::new(Workload {
        namespace: args.workload.namespace.as_str().into(),
        name: args.name.as_str().into(),
        labels: args.workload.labels.iter().cloned().collect(),
    });
    let (mut workloads, mut namespaces) = (Vec::new(), Vec::new());
    for one in enrolled {
        let room = Room::new(Arc::clone(&rooms), Arc::clone(&policy));
        workloads.push(Arc::clone(&room));
        let snapshot = policy.current();
        let outbound = Arc::new(Outbound::new(Arc::clone(&policy) as _));
        let site = Site {
            kernel: Arc::clone(&kernel),
            policy: Arc::clone(&policy),
            dialer: Dialer {
                netns: Arc::clone(&one.netns),
                resolver: Arc::clone(&resolver),
                connect_timeout: snapshot.connect_timeout,
                enforcement: snapshot.enforcement,
            },
            outbound: Arc::clone(&outbound),
            log: log.clone(),
            workload: Arc::clone(&workload),
            room,
            folds: Arc::clone(&folds),
            tiers: Arc::clone(&sync),
            drain: drainer.subscribe(),
        };
        let failing = Arc::clone(&rooms);
        let (netns, ways) = (Arc::clone(&one.netns), ArcSwap::from_pointee(one.ways.clone()));
        let (listeners, following) = one.follow(Arc::clone(&kernel));
        background.push(following);
        let doors = listeners.spawn(
            Arc::new(move |accepted| conn::take_in(accepted, &site)),
            Arc::new(move || failing.accept_failed()),
        );
        namespaces.push(CoveredNamespace { netns, doors, ways, outbound });
    }
    let (successor, successors) = mpsc::channel(1);
    let running = Arc::new(Running {
        name: args.name.clone(),
        started: Instant::now(),
        kernel,
        policy,
        log,
        rooms,
        workloads,
        namespaces,
        cgroups: cgroups.clone(),
        ended,
        repairs: Repairs::default(),
        resolver,
        resolvers,
        exec: ExecInfo {
            cgroup: scope::exec_cgroup(args, session, &cgroups),
            netns: Some(netns.path()),
            etc_netns: etc_netns.clone(),
            files,
            hide: hidden(),
        },
        last_reload: ArcSwapOption::empty(),
        reloads: Default::default(),
        sync,
        labels,
        namespace: args.workload.namespace.as_str().into(),
        has_command: !args.command.is_empty(),
        bypass: args.bypass.clone(),
        successor,
    });
    existing.settle(&running);
    let watchdog = [
        tokio::spawn(watchdog::watch(Arc::clone(&running), Arc::new(existing))),
        tokio::spawn(enrol::follow_interfaces(Arc::clone(&running))),
    ];
    let reloader = Reloader {
        watch: watched.watch,
        sources: watched.sources,
        args: args.clone(),
        running: Arc::clone(&running),
        settings,
        inventory,
        said: said(&warnings, &rejected).into_iter().collect(),
    };
    let reloader = tokio::spawn(reloader.run());
    let admin = tokio::spawn(server.serve(Arc::clone(&running) as _));
    Ok(Started {
        running,
        netns,
        etc_netns,
        isolated,
        admin,
        reloader,
        reporter,
        watchdog,
        background,
        stop_reporter,
        folds,
        drainer,
        successors,
    })
}

/// Fills the kernel's tables and attaches the programs.
#[expect(clippy::too_many_arguments, reason = "all that the tables are filled from")]
fn attach(
    args: &cli::Run,
    session: &Session,
    programs: Programs,
    snapshot: &Snapshot,
    cgroups: &[Cgroup],
    enrolled: &[Enrolled],
    resolvers: &[SocketAddr],
    bypass: &[IpNet],
    succeeds: bool,
) -> Result<Attached, AppError> {
    let (daemon, draining) = (session.daemon(), session.draining());
    let daemon_cgroups = [daemon.id()?, draining.id()?];
    let settings = Settings { daemon_cgroups, ..Settings::default() };
    let settings = governed(settings, snapshot);
    let fresh = Pins::of(&args.name).link_names().is_empty();
    let mut existing =
        Existing::new(args.keep_existing, bypass, cgroups, [daemon, draining], fresh);
    let gates: Vec<_> = enrolled.iter().flat_map(|one| one.ways.gates.clone()).collect();
    let plan = Plan { workloads: cgroups, daemon, gates: &gates, log: args.bpf_log, succeeds };
    let cookies: Vec<u64> = enrolled.iter().map(|one| one.netns.cookie()).collect();
    let (kernel, events, hints) = Kernel::attach(programs, &plan, |tables| {
        tables.beat()?;
        tables.set_datagrams(resolvers, &snapshot.udp_allowed)?;
        tables.set_bypass(bypass)?;
        tables.set_settings(settings)?;
        enrolled.iter().try_for_each(|one| one.cover(tables))?;
        tables.keep_namespaces(&cookies)?;
        existing.prepare(enrolled.iter().map(|one| &*one.netns), tables, succeeds)
    })?;
    Ok(Attached { kernel: Arc::new(kernel), events, hints, existing, settings })
}
