//! `interceptor run`: what its arguments ask for, put in place and started.

use std::path::PathBuf;
use std::sync::Arc;

use ipnet::IpNet;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::begin::{Begun, Charge, Others, Setup, begin};
use super::enrol::{self, Enrolled};
use super::handler::{Successor, hidden};
use super::reload::{Reloader, said};
use super::run::Place;
use super::tenant::Rules;
use super::wanted::{default_log, log_settings};
use super::{AppError, scope, system};
use crate::account::PodOutputs;
use crate::admin::ExecInfo;
use crate::cli;
use crate::netns::{Isolated, NetNs};
use crate::policy::{Loaded, Sources, Store, Watch};
use crate::workloads::Workload;
use crate::workloads::annotations::CaptureLists;
use crate::workloads::session::Session;

/// The number of the one policy that `run` has.
const POLICY: u16 = 1;

/// Where policy comes from, and who says when it changes.
pub(super) struct Watched {
    pub(super) watch: Watch,
    pub(super) sources: Sources,
}

/// Everything that runs between start and stop.
pub(super) struct Started {
    pub(super) begun: Begun,
    pub(super) netns: Arc<NetNs>,
    pub(super) etc_netns: Option<String>,
    pub(super) isolated: Option<Isolated>,
    /// What COMMAND finds over files of the machine.
    pub(super) files: Vec<(PathBuf, PathBuf)>,
    pub(super) reloader: JoinHandle<()>,
    /// Daemons that ask for our place.
    pub(super) successors: mpsc::Receiver<Successor>,
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
    let log = log_settings(args.access_log.as_ref(), default_log(args), &snapshot);
    let rules = Arc::new(Rules {
        id: POLICY,
        namespace: args.workload.namespace.as_str().into(),
        policy: Arc::new(Store::new(snapshot)),
        resolvers: resolvers.clone(),
        lists: CaptureLists::default(),
    });
    let workload = Arc::new(Workload {
        namespace: args.workload.namespace.as_str().into(),
        name: args.name.as_str().into(),
        service_account: "".into(),
        labels: args.workload.labels.iter().cloned().collect(),
        pod: None,
    });
    let mut charges = Vec::new();
    for (netns, listeners) in namespaces {
        let label = netns.label().to_owned();
        let ready = Enrolled::prepare(Arc::new(netns), None, listeners).await;
        let enrolled = ready.map_err(|source| AppError::Busy {
            what: format!("cannot cover network namespace {label}"),
            source,
        })?;
        let (rules, workload) = (Arc::clone(&rules), Arc::clone(&workload));
        charges.push(Charge { enrolled, rules, workload, audited: args.audit });
    }
    let netns = Arc::clone(&charges[0].enrolled.netns);
    let (successor, successors) = mpsc::channel(1);
    let setup = Setup {
        name: args.name.clone(),
        bpf_log: args.bpf_log,
        policy: Arc::clone(&rules.policy),
        charges,
        others: Others::Forgotten,
        resolvers,
        log,
        pod_logs: PodOutputs::new(),
        bypass_log: !args.no_bypass_log,
        keep_existing: args.keep_existing,
        given_bypass: args.bypass.clone(),
        bypass,
        exec: Ok(ExecInfo {
            cgroup: scope::exec_cgroup(args, session, &cgroups),
            netns: Some(netns.path()),
            etc_netns: etc_netns.clone(),
            files: files.clone(),
            hide: hidden(),
        }),
        successor: match args.command.is_empty() {
            true => Ok(successor),
            false => Err(format!(
                "the interceptor named {} runs a command of its own, which is its child and ends with it: \
                 its place cannot be taken. Cover the command's cgroup with `run --cgroup` where that \
                 must be possible",
                args.name
            )),
        },
        cgroups,
        pod_levels: [0, 0],
        sandboxes: None,
        tunnels: None,
    };
    let begun = begin(setup, session, place).await?;
    let reloader = Reloader {
        watch: watched.watch,
        sources: watched.sources,
        args: args.clone(),
        running: Arc::clone(&begun.running),
        rules,
        settings: begun.settings,
        inventory,
        said: said(&warnings, &rejected).into_iter().collect(),
    };
    let reloader = tokio::spawn(reloader.run());
    Ok(Started { begun, netns, etc_netns, isolated, files, reloader, successors })
}
