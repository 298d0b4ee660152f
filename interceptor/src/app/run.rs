//! `interceptor run`: put everything in place, wait, take everything away again.

use std::collections::{BTreeSet, HashMap};
use std::io::IsTerminal;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwapOption;
use interceptor_common::Settings;
use nix::sys::signal::Signal;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use super::cut::Ended;
use super::direct::{Direct, hear};
use super::enrol::{self, Enrolled, namespaces_of};
use super::existing::Existing;
use super::handler::{CoveredNamespace, Running, hidden};
use super::reload::{Reloader, said};
use super::report::Reporter;
use super::signals::Signals;
use super::watchdog::{self, LOSS_LIMIT, Repairs};
use super::{AppError, GRACE, resolv_conf, system};
use crate::account::{AccessLog, Folds, LogSettings, LogTarget};
use crate::act::carrier::Outbound;
use crate::act::dial::Dialer;
use crate::admin::{self, ExecInfo, Server};
use crate::admit::{Room, Rooms};
use crate::cli::{self, Exit};
use crate::conn::{self, Site};
use crate::descriptors;
use crate::kernel::{EventReader, HintReader, Kernel, Pins, Plan};
use crate::memory;
use crate::netns::diag::Diag;
use crate::netns::{Isolated, NetNs};
use crate::policy::{self, Caller, Enforcement, Loaded, OnLoss, Snapshot, Sources, Store, Watch};
use crate::resolve::{Resolver, ResolverConfig};
use crate::tiers::{Labels, Sync};
use crate::workloads::Workload;
use crate::workloads::capture::PROXY_UID;
use crate::workloads::cgroup::{Cgroup, Hierarchy};
use crate::workloads::command::{Launch, LaunchError, Launched, RunAs};
use crate::workloads::session::Session;

/// How long open connections may finish after the hooks are gone.
const DRAIN: Duration = Duration::from_secs(2);

/// How long the last records of a command that ended may take.
const SETTLE: Duration = Duration::from_secs(1);

/// How long the daemon may lean on an old answer while its resolver fails (T-42).
const STALE_FOR: Duration = Duration::from_secs(300);

/// Runs until COMMAND ends, or until it is told to stop.
pub(super) async fn run(args: cli::Run) -> Result<Exit, AppError> {
    if !nix::unistd::geteuid().is_root() {
        return Err(AppError::Root("loading BPF programs and making cgroups; use sudo"));
    }
    let mut signals = Signals::listen().map_err(system("cannot listen for signals"))?;
    let sources = sources(&args);
    // Before the files are read: no change of them is missed.
    let watch = Watch::new(&sources);
    let loaded = load_policy(&args, &sources)?;
    let server = Server::bind(Path::new(admin::DIR), &args.name)?;
    let descriptors = descriptors::raise_limit();
    descriptors::keep(loaded.snapshot.limits.descriptor_reserve);
    let session = Session::enter(&args.name)?;
    let started = start(&args, loaded, Watched { watch, sources }, &session, server).await?;
    memory::give_back();
    let outcome = if args.command.is_empty() {
        Ok(Exit::Signal(signals.next().await as i32))
    } else {
        supervise(&args, &started, session.workload(), descriptors, &mut signals).await
    };
    let stopped = started.stop(&session, args.command.is_empty()).await;
    session.close()?;
    stopped?;
    outcome
}

/// Where policy comes from, and who says when it changes.
struct Watched {
    watch: Watch,
    sources: Sources,
}

fn sources(args: &cli::Run) -> Sources {
    Sources {
        files: args.files.clone(),
        mesh_config: args.mesh_config.clone(),
        outbound: args.outbound,
        enforcement: args.enforcement,
        on_removal: args.on_policy_removal,
        on_loss: args.on_daemon_loss,
        on_log_loss: args.on_log_loss,
        fast_path: args.fast_path,
        ..Sources::default()
    }
}

pub(super) fn caller(args: &cli::Run) -> Caller {
    Caller { namespace: args.workload.namespace.clone(), labels: args.workload.labels.clone() }
}

fn load_policy(args: &cli::Run, sources: &Sources) -> Result<Loaded, AppError> {
    let loaded = policy::load(sources, &caller(args)).map_err(|errors| {
        AppError::Resources(format!(
            "these resources cannot be used; nothing was started\n{errors}"
        ))
    })?;
    for text in said(&loaded.warnings, &loaded.rejected) {
        eprintln!("interceptor: {text}");
    }
    // One bad resource leaves the others in force; but nothing in force is no policy (T-61).
    if !loaded.rejected.is_empty() && loaded.summary.service_entries == 0 {
        return Err(AppError::Resources("no valid resource is left; nothing was started".into()));
    }
    if args.outbound.is_none()
        && args.mesh_config.is_none()
        && loaded.snapshot.outbound == policy::Outbound::AllowAny
    {
        eprintln!(
            "interceptor: outbound policy ALLOW_ANY (the default): destinations that no resource names \
             pass and are logged; --outbound registry-only refuses them"
        );
    }
    Ok(loaded)
}

/// Everything that runs between start and stop.
struct Started {
    running: Arc<Running>,
    netns: Arc<NetNs>,
    etc_netns: Option<String>,
    isolated: Option<Isolated>,
    admin: JoinHandle<()>,
    reloader: JoinHandle<()>,
    reporter: JoinHandle<()>,
    /// What looks after the hooks.
    watchdog: JoinHandle<()>,
    /// What keeps direct connections in order.
    background: [JoinHandle<()>; 6],
    stop_reporter: oneshot::Sender<()>,
}

async fn start(
    args: &cli::Run,
    loaded: Loaded,
    watched: Watched,
    session: &Session,
    server: Server,
) -> Result<Started, AppError> {
    let Loaded { snapshot, inventory, warnings, rejected, .. } = loaded;
    let cgroups = covered_cgroups(args, session)?;
    let resolvers = resolvers(args)?;
    // What a killed one left of the name: its command, if it still runs, is cut off.
    Isolated::clean_stale(&args.name).await?;
    let (isolated, files, namespaces) = if args.isolate {
        let (netns, isolated, files) = enrol::isolate(&args.name, &resolvers).await?;
        (Some(isolated), files, vec![netns])
    } else {
        (None, Vec::new(), covered_namespaces(args, &cgroups)?)
    };
    let etc_netns = etc_netns(args).map(str::to_owned);
    let mut enrolled = Vec::new();
    for netns in namespaces {
        let label = netns.label().to_owned();
        let ready = Enrolled::prepare(Arc::new(netns)).await;
        enrolled.push(ready.map_err(|source| AppError::Busy {
            what: format!("cannot cover network namespace {label}"),
            source,
        })?);
    }
    let log = AccessLog::open(&log_settings(args, &snapshot))
        .map_err(system("cannot open the access log"))?;
    let daemon_cgroups = [session.daemon().id()?, 0];
    let settings = governed(Settings { daemon_cgroups, ..Settings::default() }, &snapshot);
    let fresh = Pins::of(&args.name).link_names().is_empty();
    let daemon = session.daemon();
    let mut existing = Existing::new(args.keep_existing, &args.bypass, &cgroups, daemon, fresh);
    let gates: Vec<_> = enrolled.iter().flat_map(|one| one.ways.gates.clone()).collect();
    let plan =
        Plan { name: &args.name, workloads: &cgroups, daemon, gates: &gates, log: args.bpf_log };
    let (kernel, events, hints) =
        load_kernel(args, &plan, &snapshot, settings, &enrolled, &resolvers, &mut existing)?;

    let kernel = Arc::new(kernel);
    let beat = tokio::spawn(watchdog::beat(Arc::clone(&kernel)));
    let resolver = Arc::new(Resolver::new(ResolverConfig {
        servers: resolvers.clone(),
        stale_for: stale_for(&snapshot),
        refresh: snapshot.dns_refresh,
    }));
    let enforcement = snapshot.enforcement;
    let connect_timeout = snapshot.connect_timeout;
    let policy = Arc::new(Store::new(snapshot));
    let rooms = Arc::new(Rooms::default());
    let mut workloads = Vec::new();
    let workload = Arc::new(Workload {
        namespace: args.workload.namespace.as_str().into(),
        name: args.name.as_str().into(),
        labels: args.workload.labels.iter().cloned().collect(),
    });
    let labels = Arc::new(Labels::default());
    let destroyers = destroyers(&enrolled);
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
    let background = [
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
    let covered = |one: &Enrolled| CoveredNamespace {
        netns: Arc::clone(&one.netns),
        listeners: one.listeners.addresses(),
        ways: one.ways.clone(),
    };
    let namespaces = enrolled.iter().map(covered).collect();
    for one in enrolled {
        let room = Room::new(Arc::clone(&rooms), Arc::clone(&policy));
        workloads.push(Arc::clone(&room));
        let site = Site {
            kernel: Arc::clone(&kernel),
            policy: Arc::clone(&policy),
            dialer: Dialer {
                netns: Arc::clone(&one.netns),
                resolver: Arc::clone(&resolver),
                connect_timeout,
                enforcement,
            },
            outbound: Arc::new(Outbound::new(Arc::clone(&policy) as _)),
            log: log.clone(),
            workload: Arc::clone(&workload),
            room,
            folds: Arc::clone(&folds),
            tiers: Arc::clone(&sync),
        };
        let failing = Arc::clone(&rooms);
        one.follow(Arc::clone(&kernel)).spawn(
            Arc::new(move |accepted| conn::take_in(accepted, &site)),
            Arc::new(move || failing.accept_failed()),
        );
    }
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
            cgroup: exec_cgroup(args, session, &cgroups),
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
    });
    let existing = Arc::new(existing);
    existing.settle(&running);
    let watchdog = tokio::spawn(watchdog::watch(Arc::clone(&running), existing));
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
    })
}

/// What ends refused connections in each namespace.
fn destroyers(enrolled: &[Enrolled]) -> Result<HashMap<u64, Diag>, String> {
    let open = |one: &Enrolled| {
        let diag = Diag::open(&one.netns);
        let diag = diag.and_then(|diag| diag.require_destroy().map(|()| diag)).map_err(|error| {
            format!(
                "cannot end connections in network namespace {} (SOCK_DESTROY, CONFIG_INET_DIAG_DESTROY): \
                 {error}",
                one.netns.label()
            )
        })?;
        Ok((one.netns.cookie(), diag))
    };
    enrolled.iter().map(open).collect()
}

/// What of the kernel's settings policy governs.
pub(super) fn governed(settings: Settings, snapshot: &Snapshot) -> Settings {
    let exempt_id = match snapshot.enforcement {
        Enforcement::Istio => PROXY_UID,
        // T-8: whoever can become that user would be past us.
        Enforcement::Strict => 0,
    };
    let loss_limit = match snapshot.on_loss {
        OnLoss::DirectTier => Duration::ZERO,
        OnLoss::Closed => LOSS_LIMIT,
    };
    Settings {
        refuse_datagrams: u32::from(snapshot.refuse_datagrams),
        exempt_id,
        loss_limit_ns: loss_limit.as_nanos() as u64,
        ..settings
    }
}

/// T-42: strict leans on old answers for a while only.
pub(super) fn stale_for(snapshot: &Snapshot) -> Option<Duration> {
    (snapshot.enforcement == Enforcement::Strict).then_some(STALE_FOR)
}

/// Where `exec` puts further commands: beside COMMAND, or into the first given cgroup.
fn exec_cgroup(args: &cli::Run, session: &Session, cgroups: &[Cgroup]) -> std::path::PathBuf {
    let own = session.workload();
    let target = if args.command.is_empty() { cgroups.first().unwrap_or(own) } else { own };
    target.path().to_owned()
}

/// Our own workload cgroup and the given ones, without those that lie below another: a parent's
/// hooks run for its children, and twice would be wrong.
fn covered_cgroups(args: &cli::Run, session: &Session) -> Result<Vec<Cgroup>, AppError> {
    let hierarchy = Hierarchy::discover()?;
    let mut all = Vec::new();
    for path in &args.cgroups {
        all.push(hierarchy.resolve(path)?);
    }
    all.push(session.workload().clone());
    let paths: BTreeSet<_> = all.iter().map(|cgroup| cgroup.path().to_owned()).collect();
    let mut seen = BTreeSet::new();
    all.retain(|cgroup| {
        let below = cgroup.path().ancestors().skip(1).any(|above| paths.contains(above));
        !below && seen.insert(cgroup.path().to_owned())
    });
    Ok(all)
}

/// With COMMAND the namespace that it runs in; else those that the cgroups' processes are in now,
/// or, where there are none yet, ours.
fn covered_namespaces(args: &cli::Run, cgroups: &[Cgroup]) -> Result<Vec<NetNs>, AppError> {
    let mut namespaces = Vec::new();
    if let Some(given) = &args.netns {
        let netns = NetNs::named(given).map_err(|source| AppError::Busy {
            what: format!("network namespace {given} (a name as `ip netns` knows it, or a path)"),
            source,
        })?;
        namespaces.push(netns);
    }
    if args.command.is_empty() {
        namespaces.extend(namespaces_of(cgroups));
    }
    if namespaces.is_empty() {
        namespaces.push(NetNs::current().map_err(system("cannot open our own network namespace"))?);
    }
    let mut seen = BTreeSet::new();
    namespaces.retain(|netns| seen.insert(netns.cookie()));
    Ok(namespaces)
}

/// The namespace's name in /etc/netns, where it was given by one.
fn etc_netns(args: &cli::Run) -> Option<&str> {
    args.netns.as_deref().filter(|given| !given.contains('/'))
}

/// The name servers that the workload may ask, and that we ask: `--resolver`, else /etc/resolv.conf
/// as it is now, and the namespace's own file where a command finds that instead.
fn resolvers(args: &cli::Run) -> Result<Vec<SocketAddr>, AppError> {
    if !args.resolvers.is_empty() {
        return Ok(args.resolvers.clone());
    }
    let own = Path::new("/etc/resolv.conf");
    let mut servers = match resolv_conf::read(own) {
        Ok(servers) => servers,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Vec::new(),
        Err(error) => return Err(system("cannot read /etc/resolv.conf")(error)),
    };
    if let Some(name) = etc_netns(args) {
        let theirs = Path::new("/etc/netns").join(name).join("resolv.conf");
        for server in resolv_conf::read(&theirs).unwrap_or_default() {
            if !servers.contains(&server) {
                servers.push(server);
            }
        }
    }
    if servers.is_empty() {
        eprintln!(
            "interceptor: warning: /etc/resolv.conf names no server; names will not resolve (--resolver IP)"
        );
    }
    Ok(servers)
}

/// The flag, else what mesh config and Telemetry say, else standard error beside COMMAND's own
/// output, else standard output. The flag moves every output to its place; formats and filters stay.
pub(super) fn log_settings(args: &cli::Run, snapshot: &Snapshot) -> Vec<LogSettings> {
    let forced = args.access_log.as_ref().map(|flag| match flag {
        cli::LogTarget::Stdout => LogTarget::Stdout,
        cli::LogTarget::File(path) => LogTarget::File(path.clone()),
    });
    let default = if args.command.is_empty() { LogTarget::Stdout } else { LogTarget::Stderr };
    let everything = |target| {
        vec![LogSettings { target, format: Arc::clone(&snapshot.log_format), filter: None }]
    };
    match (forced, snapshot.access_log.clone()) {
        (None, None) => everything(default),
        (None, Some(governed)) => governed,
        (Some(target), None) => everything(target),
        (Some(target), Some(governed)) if governed.is_empty() => everything(target),
        (Some(target), Some(governed)) => {
            let mut moved: Vec<LogSettings> = Vec::new();
            for one in governed {
                let one = LogSettings { target: target.clone(), ..one };
                // Two places that became one need no line twice.
                if !moved.contains(&one) {
                    moved.push(one);
                }
            }
            moved
        }
    }
}

fn load_kernel(
    args: &cli::Run,
    plan: &Plan<'_>,
    snapshot: &Snapshot,
    settings: Settings,
    enrolled: &[Enrolled],
    resolvers: &[SocketAddr],
    existing: &mut Existing,
) -> Result<(Kernel, EventReader, HintReader), AppError> {
    let cookies: Vec<u64> = enrolled.iter().map(|one| one.netns.cookie()).collect();
    let loaded = Kernel::load(plan, |tables| {
        tables.beat()?;
        tables.set_datagrams(resolvers, &snapshot.udp_allowed)?;
        tables.set_bypass(&args.bypass)?;
        tables.set_settings(settings)?;
        enrolled.iter().try_for_each(|one| one.cover(tables))?;
        tables.keep_namespaces(&cookies)?;
        existing.prepare(enrolled.iter().map(|one| &*one.netns), tables)
    })?;
    Ok(loaded)
}

/// Runs COMMAND to its end; terminates (or, with `--wait`, waits for) what it leaves behind.
async fn supervise(
    args: &cli::Run,
    started: &Started,
    workload: &Cgroup,
    descriptors: Option<(u64, u64)>,
    signals: &mut Signals,
) -> Result<Exit, AppError> {
    let launch = Launch {
        argv: args.command.clone(),
        cgroup: workload,
        netns: Some(
            started.netns.try_clone_fd().map_err(system("cannot hold the network namespace"))?,
        ),
        etc_netns: started.etc_netns.clone(),
        run_as: RunAs::from_env(|name| std::env::var_os(name)).map_err(AppError::from)?,
        keep_caps: args.keep_caps,
        files: started.running.exec.files.clone(),
        also_keep: &[],
        hide: hidden(),
        descriptors,
    };
    let mut command = launch.spawn().map_err(AppError::from)?;
    let exit = wait_for(&mut command, workload, signals).await?;
    if args.wait {
        tokio::select! {
            () = emptied(workload) => {}
            _ = signals.next() => {}
        }
    }
    workload.terminate(GRACE).await?;
    Ok(exit)
}

/// Passes signals on. After SIGTERM, SIGHUP or a SIGINT that the terminal did not send to COMMAND
/// itself, it has [`GRACE`] to end.
async fn wait_for(
    command: &mut Launched,
    workload: &Cgroup,
    signals: &mut Signals,
) -> Result<Exit, AppError> {
    loop {
        tokio::select! {
            exit = command.wait() => return exit.map_err(waiting),
            signal = signals.next() => {
                let from_terminal = matches!(signal, Signal::SIGINT | Signal::SIGQUIT)
                    && std::io::stdin().is_terminal();
                if from_terminal {
                    continue;
                }
                command.signal(signal);
                if let Ok(exit) = tokio::time::timeout(GRACE, command.wait()).await {
                    return exit.map_err(waiting);
                }
                workload.terminate(Duration::ZERO).await?;
            }
        }
    }
}

fn waiting(source: std::io::Error) -> AppError {
    AppError::Launch(LaunchError::Prepare { what: "wait for it".into(), source })
}

async fn emptied(cgroup: &Cgroup) {
    while cgroup.is_populated().unwrap_or(false) {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

impl Started {
    /// Takes everything away. A command's own connections end with it, so their records are waited
    /// for before the hooks go; connections of cgroups that live on are drained after.
    async fn stop(self, session: &Session, drain: bool) -> Result<(), AppError> {
        self.admin.abort();
        self.reloader.abort();
        self.watchdog.abort();
        session.workload().terminate(GRACE).await?;
        if !drain {
            self.settled(SETTLE).await;
        }
        let detached = self.running.kernel.detach();
        if drain {
            self.settled(DRAIN).await;
        }
        let _ = self.stop_reporter.send(());
        let _ = self.reporter.await;
        self.background.iter().for_each(JoinHandle::abort);
        self.running.log.flush().await;
        if let Some(isolated) = self.isolated {
            isolated.remove().await?;
        }
        Ok(detached?)
    }

    /// Waits until no connection is open and none came in for a moment: what the workload's last
    /// breath left in the accept queues has its record too.
    async fn settled(&self, at_most: Duration) {
        const QUIET: u32 = 8;
        let counts = &self.running.rooms;
        let until = Instant::now() + at_most;
        let (mut quiet, mut total) = (0, counts.total());
        while quiet < QUIET && Instant::now() < until {
            tokio::time::sleep(Duration::from_millis(5)).await;
            let idle = counts.active() == 0 && counts.total() == total;
            total = counts.total();
            quiet = if idle { quiet + 1 } else { 0 };
        }
    }
}
