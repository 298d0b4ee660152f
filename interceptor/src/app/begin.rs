//! The core that `run` and `agent` share: kernel side and proxy put in place and started.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use arc_swap::ArcSwapOption;
use interceptor_common::{Namespace, Settings};
use ipnet::IpNet;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;

use super::covered::{Registry, Whose};
use super::cut::{self, Ended};
use super::direct::{Direct, hear};
use super::enrol::{self, Enrolled};
use super::existing::Existing;
use super::handler::{Running, Successor};
use super::report::Reporter;
use super::run::Place;
use super::sandboxes::Sandboxes;
use super::tenant::{Rules, Tenant};
use super::wanted::{governed, stale_for};
use super::watchdog::{self, Repairs};
use super::{AppError, system};
use crate::account::{AccessLog, Folds, LogSettings, PodOutputs};
use crate::act::door::Tunnels;
use crate::admin::ExecInfo;
use crate::admit::Rooms;
use crate::cni;
use crate::drain::Drainer;
use crate::kernel::{
    EventReader, HintReader, Kernel, KernelError, Pins, Plan, Programs, TableError, Tables,
};
use crate::netns;
use crate::policy::Store;
use crate::resolve::{Resolver, ResolverConfig};
use crate::tiers::{Commons, Labels};
use crate::workloads::Workload;
use crate::workloads::cgroup::Cgroup;
use crate::workloads::session::Session;

/// What is to be put in place.
pub(super) struct Setup {
    pub(super) name: String,
    pub(super) bpf_log: bool,
    /// What the daemon itself goes by: limits, its log, what all workloads have in common.
    pub(super) policy: Arc<Store>,
    /// The covered cgroups.
    pub(super) cgroups: Vec<Cgroup>,
    /// Between which levels pods of the node's namespace are looked for; zeros: not at all.
    pub(super) pod_levels: [u32; 2],
    /// The namespaces that are covered from the start.
    pub(super) charges: Vec<Charge>,
    /// What becomes of other namespaces that the tables know.
    pub(super) others: Others,
    /// Whom the daemon asks for names.
    pub(super) resolvers: Vec<SocketAddr>,
    pub(super) log: Vec<LogSettings>,
    /// Outputs of pods for which others hold.
    pub(super) pod_logs: PodOutputs,
    /// Whether bypassed flows have lines.
    pub(super) bypass_log: bool,
    /// Connections from before the attach go on.
    pub(super) keep_existing: bool,
    /// Networks that are bypassed.
    pub(super) bypass: Vec<IpNet>,
    /// Those of them that the command line names.
    pub(super) given_bypass: Vec<IpNet>,
    /// Where `exec` puts commands, or why it puts none.
    pub(super) exec: Result<ExecInfo, String>,
    /// Tells the daemon to lay everything down, or why nobody can take its place.
    pub(super) successor: Result<mpsc::Sender<Successor>, String>,
    /// What the CNI plugin told of; none where no pods are covered.
    pub(super) sandboxes: Option<Arc<Sandboxes>>,
    /// Connections to gateways that all workloads share; `None`: each has its own.
    pub(super) tunnels: Option<Arc<Tunnels>>,
}

/// A namespace to be covered: everything is ready but the tables.
pub(super) struct Charge {
    pub(super) enrolled: Enrolled,
    pub(super) rules: Arc<Rules>,
    pub(super) workload: Arc<Workload>,
    /// What would be refused passes, and is told.
    pub(super) audited: bool,
}

/// What becomes of namespaces that an earlier run, or a CNI plugin, entered.
pub(super) enum Others {
    /// They are not known any more: nothing leaves them.
    Forgotten,
    /// Exempt ones stay exempt, as do these; covered ones are held until they are served again. What no
    /// namespace of the machine has any more goes.
    Held {
        /// Cookies of exempt namespaces.
        exempt: Vec<u64>,
    },
}

/// Everything that runs.
pub(super) struct Begun {
    pub(super) running: Arc<Running>,
    pub(super) admin: JoinHandle<()>,
    pub(super) reporter: JoinHandle<()>,
    /// What looks after the hooks, and where they have to be.
    pub(super) watchdog: [JoinHandle<()>; 2],
    /// What keeps tables, and direct connections, in order.
    pub(super) background: Vec<JoinHandle<()>>,
    pub(super) stop_reporter: oneshot::Sender<()>,
    /// What sees to connections that no hook saw.
    pub(super) existing: Arc<Existing>,
    /// What of the settings policy does not change.
    pub(super) settings: Settings,
}

/// What is attached, with what it reports.
struct Attached {
    kernel: Arc<Kernel>,
    events: EventReader,
    hints: HintReader,
    existing: Existing,
    settings: Settings,
}

/// Loads, takes `place`, and from then on changes things.
pub(super) async fn begin(
    setup: Setup,
    session: &mut Session,
    place: Place,
) -> Result<Begun, AppError> {
    let log = AccessLog::open(&setup.log).map_err(system("cannot open the access log"))?;
    if !setup.pod_logs.is_empty() {
        let opened = log.replace_each(&setup.log, &setup.pod_logs).await;
        opened.map_err(system("cannot open the access log"))?;
    }
    let programs = Programs::load(&setup.name, setup.bpf_log)?;
    let (server, succeeds) = place.take(session).await?;

    let Attached { kernel, events, hints, existing, settings } =
        attach(&setup, session, programs, succeeds)?;
    let beat = tokio::spawn(watchdog::beat(Arc::clone(&kernel)));
    let Setup {
        name,
        policy,
        cgroups,
        charges,
        resolvers,
        exec,
        successor,
        sandboxes,
        tunnels,
        ..
    } = setup;
    let snapshot = policy.current();
    let resolver = Arc::new(Resolver::new(ResolverConfig {
        servers: resolvers.clone(),
        stale_for: stale_for(&snapshot),
        refresh: snapshot.dns_refresh,
    }));
    let labels = Arc::new(Labels::default());
    let can_destroy = enrol::can_destroy(charges.iter().map(|charge| &*charge.enrolled.netns));
    if let Err(error) = &can_destroy
        && snapshot.fast_path
    {
        eprintln!("interceptor: warning: {error}; fastPath is off, everything goes by the proxy");
    }
    let commons = Commons::new(
        Arc::clone(&kernel),
        Arc::clone(&resolver),
        Arc::clone(&labels),
        can_destroy.is_ok(),
    );
    let mut tenants = BTreeMap::new();
    // All that a predecessor wrote is the first one's to let go.
    let mut inherits = succeeds;
    for Charge { rules, .. } in &charges {
        tenants.entry(rules.id).or_insert_with(|| {
            Tenant::start(&kernel, &commons, rules, std::mem::take(&mut inherits))
        });
    }
    if inherits {
        kernel.direct().clear().map_err(KernelError::from)?;
    }
    let covered = Arc::new(Registry::default());
    let direct = Arc::new(Direct {
        kernel: Arc::clone(&kernel),
        policy: Arc::clone(&policy),
        labels: Arc::clone(&labels),
        covered: Arc::clone(&covered),
    });
    let background = vec![
        beat,
        tokio::spawn(Arc::clone(&direct).watch()),
        tokio::spawn(hear(hints, Arc::clone(&covered))),
        tokio::spawn(enrol::sweep(Arc::clone(&kernel))),
        tokio::spawn(watchdog::mind_log(
            log.clone(),
            Arc::clone(&policy),
            Arc::clone(&commons),
            Arc::clone(&covered),
        )),
    ];
    let (stop_reporter, stopped) = oneshot::channel::<()>();
    let ended = Ended::default();
    let folds = Arc::new(Folds::new(log.clone()));
    let reporter = Reporter::new(
        log.clone(),
        Arc::clone(&folds),
        Arc::clone(&policy),
        setup.bypass_log,
        ended.clone(),
        Arc::clone(&direct) as _,
    );
    let reporter = tokio::spawn(reporter.run(events, async {
        let _ = stopped.await;
    }));

    let running = Arc::new(Running {
        name,
        started: Instant::now(),
        kernel,
        policy,
        log,
        folds,
        rooms: Arc::new(Rooms::default()),
        covered,
        at_gates: tokio::sync::Mutex::default(),
        cgroups,
        ended,
        repairs: Repairs::default(),
        resolver,
        resolvers,
        exec,
        last_reload: ArcSwapOption::empty(),
        reloads: Default::default(),
        commons,
        labels,
        bypass: setup.given_bypass,
        successor,
        drainer: Drainer::default(),
        sandboxes,
        tunnels,
    });
    for Charge { enrolled, rules, workload, audited } in charges {
        let tenant = Arc::clone(&tenants[&rules.id]);
        running.open(enrolled, Whose { tenant, workload, audited });
    }
    existing.settle(&running);
    let existing = Arc::new(existing);
    let watchdog = [
        tokio::spawn(watchdog::watch(Arc::clone(&running), Arc::clone(&existing))),
        tokio::spawn(enrol::follow_interfaces(Arc::clone(&running))),
    ];
    let admin = tokio::spawn(server.serve(Arc::clone(&running) as _));
    Ok(Begun { running, admin, reporter, watchdog, background, stop_reporter, existing, settings })
}

/// Fills the kernel's tables and attaches the programs.
fn attach(
    setup: &Setup,
    session: &Session,
    programs: Programs,
    succeeds: bool,
) -> Result<Attached, AppError> {
    let Setup { charges, cgroups, bypass, .. } = setup;
    let [daemon, draining] = session.exempt();
    let daemon_cgroups = [daemon.id()?, draining.id()?];
    let settings = Settings { daemon_cgroups, pod_levels: setup.pod_levels, ..Settings::default() };
    let governed = governed(settings, &setup.policy.current(), &setup.others);
    let fresh = Pins::of(&setup.name).link_names().is_empty();
    let mut existing = Existing::new(setup.keep_existing, bypass, cgroups, session.exempt(), fresh);
    let gates: Vec<_> = charges.iter().flat_map(|one| one.enrolled.ways.gates.clone()).collect();
    let plan = Plan { workloads: cgroups, daemon, gates: &gates, log: setup.bpf_log, succeeds };
    let (kernel, events, hints) = Kernel::attach(programs, &plan, |tables| {
        tables.beat()?;
        for Charge { rules, .. } in charges {
            rules.set_datagrams(&rules.policy.current(), tables)?;
        }
        tables.set_bypass(bypass)?;
        tables.set_settings(governed)?;
        charges.iter().try_for_each(|one| one.enrolled.cover(&one.rules, one.audited, tables))?;
        setup.others.settle(setup, tables)?;
        let rules: Vec<u16> = charges.iter().map(|one| one.rules.id).collect();
        tables.keep_datagrams(&rules)?;
        existing.prepare(charges.iter().map(|one| &one.enrolled), tables, succeeds)
    })?;
    Ok(Attached { kernel: Arc::new(kernel), events, hints, existing, settings })
}

impl Others {
    /// Sees to the namespaces that are not among the charges.
    fn settle(&self, setup: &Setup, tables: &mut Tables) -> Result<(), TableError> {
        let ours: Vec<u64> = setup.charges.iter().map(|one| one.enrolled.key()).collect();
        let Self::Held { exempt } = self else { return tables.keep_namespaces(&ours) };
        // Read now that the table is pinned: a CNI plugin that comes later writes there itself.
        let recorded = cni::exempt(&setup.name).into_iter().filter(|cookie| !ours.contains(cookie));
        let exempt: Vec<u64> = exempt.iter().copied().chain(recorded).collect();
        for cookie in &exempt {
            let exempt = Namespace { kind: Namespace::EXEMPT, ..Namespace::default() };
            tables.cover(*cookie, exempt)?;
        }
        // Pods that went while no agent ran left their entries, and no namespace ever has their cookies.
        let alive = netns::alive()
            .inspect_err(|error| {
                eprintln!("interceptor: warning: entries of pods that are gone stay: {error}")
            })
            .ok();
        let cgroups = cut::Covered::new(&setup.cgroups);
        for (cookie, namespace) in tables.namespaces() {
            if ours.contains(&cookie) || exempt.contains(&cookie) {
                continue;
            }
            let is_gone = match Namespace::is_by_cgroup(cookie) {
                true => !cgroups.includes_key(cookie),
                false => alive.as_ref().is_some_and(|alive| !alive.contains(&cookie)),
            };
            if is_gone {
                tables.forget_namespace(cookie)?;
            } else if !namespace.is_exempt() {
                tables.cover(cookie, Namespace::default())?;
            }
        }
        Ok(())
    }

    /// Whether datagrams and other protocols pass in namespaces that are not known, where `open` ones
    /// pass by policy.
    pub(super) fn refuse_unknown(&self, by_policy: bool) -> bool {
        by_policy || matches!(self, Self::Held { .. })
    }
}
