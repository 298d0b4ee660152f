//! `interceptor agent`: its arguments to a running agent, and what that has to say to people.

use std::fmt::Write as _;
use std::fs::{DirBuilder, create_dir_all};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use interceptor_common::Settings;
use kube::{Client, Config};
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::{interval, timeout};

use super::begin::{Others, Setup, begin};
use super::cni::Keeper;
use super::handler::Running;
use super::pod_logs::PodLogs;
use super::pods::{Node, Pods};
use super::run::Place;
use super::sandboxes::Sandboxes;
use super::signals::Signals;
use super::wanted::{governed, stale_for};
use super::{AppError, by_cgroup, resolv_conf, scope, system};
use crate::act::door::Tunnels;
use crate::agent::cgroups::all_pods_paths;
use crate::agent::pods::{Mode, Pod};
use crate::agent::refusals::{self, Refusals};
use crate::agent::{Agent, Disk, Options, State};
use crate::cli::{self, Exit};
use crate::cni::Records;
use crate::kernel::{Pins, last_policy};
use crate::netns::NetNs;
use crate::policy::{Outbound, Snapshot, Sources, Store};
use crate::workloads::cgroup::{Cgroup, Hierarchy};
use crate::workloads::session::Base;
use crate::{descriptors, memory};

/// How many policies the agent whose place is taken may still give a number to.
const TO_COME: u16 = 1024;

/// How long `--once` and `--take-over` wait for the API server.
const PATIENCE: Duration = Duration::from_secs(30);

/// A connection on which nothing comes for this long is dead: the API server ends each watch before.
const SILENCE: Duration = Duration::from_secs(330);

pub(super) async fn run(args: cli::Agent) -> Result<Exit, AppError> {
    let mut signals = Signals::listen().map_err(system("cannot catch signals"))?;
    let client = client().await?;
    let for_events = client.clone();
    let disk = match args.once {
        true => None,
        false => Some(disk(&args)?),
    };
    let mut agent = Agent::start(
        client,
        Options {
            node: args.node.clone(),
            mesh: args.mesh_config_map.clone(),
            default: args.default_mode,
            capture: args.capture_lists(),
            overrides: Sources {
                outbound: args.outbound,
                enforcement: args.enforcement,
                ..Sources::default()
            },
            disk,
            tells: !args.once,
        },
    );
    if args.once {
        return once(&mut agent, &args, &mut signals).await;
    }
    if !nix::unistd::geteuid().is_root() {
        return Err(AppError::Root("loading BPF programs and entering pods' namespaces"));
    }
    descriptors::raise_limit();
    let follower = Follower::start(agent);
    let ended = match Ground::wait(&follower, &args, &mut signals).await? {
        Some(ground) => cover(&follower, &args, ground, &mut signals, for_events).await,
        None => Ok(()),
    };
    follower.stop().await;
    ended.map(|()| Exit::Success)
}

/// The agent that follows the cluster, on a task of its own: what it is at must not be broken off.
struct Follower {
    state: Arc<Mutex<State>>,
    news: Arc<Notify>,
    stop: oneshot::Sender<()>,
    task: JoinHandle<()>,
}

impl Follower {
    fn start(mut agent: Agent) -> Self {
        let (state, news) = (agent.shared(), Arc::new(Notify::new()));
        let (stop, mut stopped) = oneshot::channel();
        let tell = Arc::clone(&news);
        let task = tokio::spawn(async move {
            loop {
                tokio::select! {
                    lines = agent.next() => say(&lines),
                    _ = &mut stopped => break,
                }
                tell.notify_one();
            }
            agent.write().await;
        });
        Self { state, news, stop, task }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until something may have changed.
    async fn changed(&self) {
        self.news.notified().await;
    }

    /// Ends it at once: state and statuses are another agent's to write.
    fn leave(&self) {
        self.task.abort();
    }

    /// Ends it, with what is known written.
    async fn stop(self) {
        let _ = self.stop.send(());
        let _ = self.task.await;
    }
}

/// What there has to be before anything can be covered.
struct Ground {
    hierarchy: Hierarchy,
    /// The cgroups that all pods are in.
    cgroups: Vec<Cgroup>,
    /// What the agent itself goes by.
    own: Arc<Store>,
}

impl Ground {
    /// Waits for it; `None`: a signal came first. Until something was known for the first time, nothing
    /// is held: it would be every pod of the node, and the API server itself.
    async fn wait(
        follower: &Follower,
        args: &cli::Agent,
        signals: &mut Signals,
    ) -> Result<Option<Self>, AppError> {
        let hierarchy = Hierarchy::discover()?;
        let paths = all_pods_paths(&args.cgroup_root);
        let mut said = false;
        let mut tick = interval(LOOK);
        loop {
            let cgroups: Vec<_> = paths.iter().filter_map(|path| hierarchy.at(path)).collect();
            let own = follower.state().own();
            if let Some(own) = &own
                && !cgroups.is_empty()
            {
                return Ok(Some(Self { hierarchy, cgroups, own: Arc::clone(own) }));
            }
            if own.is_some() && !std::mem::replace(&mut said, true) {
                let [systemd, cgroupfs] = paths.each_ref().map(|path| path.display());
                let mount = hierarchy.mount_point().display();
                eprintln!(
                    "interceptor: waiting for the pods' cgroup: neither {systemd} nor {cgroupfs} is below \
                     {mount} (--cgroup-root)"
                );
            }
            tokio::select! {
                () = follower.changed() => {}
                _ = tick.tick() => {}
                _ = signals.next() => return Ok(None),
            }
        }
    }
}

/// How often pods are looked for whose namespace is not known, and how often the others are.
const LOOK: Duration = Duration::from_millis(100);
const REST: Duration = Duration::from_secs(2);

/// Covers the node's pods until a signal comes. What is attached stays so.
async fn cover(
    follower: &Follower,
    args: &cli::Agent,
    ground: Ground,
    signals: &mut Signals,
    client: Client,
) -> Result<(), AppError> {
    let Ground { hierarchy, cgroups, own } = ground;
    let pod_levels = by_cgroup::levels(&hierarchy, &cgroups);
    let dns = resolv_conf::read(&args.resolv_conf).unwrap_or_default();
    let boot = Records::boot().map_err(system("cannot read which boot this is"))?;
    let mut place = Place::find(&args.name, args.take_over).await?;
    // Before any listener is made: the hooks of the daemon's side are its cgroup's.
    let mut session = place.session(&args.name, Base::Top)?;
    if place.is_taken() {
        // What is not known of would be held, although the one that runs serves it.
        let settled = async {
            while !follower.state().has_settled() {
                follower.changed().await;
            }
        };
        let _ = timeout(PATIENCE, settled).await;
    }
    let sandboxes = Arc::new(Sandboxes::recorded(&Records::of(&args.name, boot)));
    let node = Node {
        hierarchy,
        root: args.cgroup_root.clone(),
        cluster_dns: args.cluster_dns.clone(),
        dns: dns.clone(),
        sandboxes: Arc::clone(&sandboxes),
    };
    let last = last_policy(&Pins::of(&args.name));
    let last = if place.is_taken() { last.wrapping_add(TO_COME) } else { last };
    let mut pods = Pods::new(node, last);
    let wanted = pods.wanted(&follower.state());
    let snapshot = own.current();
    let mut logs = PodLogs::new(args.access_log.clone(), &snapshot, &wanted);
    let handed_over: Result<Vec<_>, _> = place.namespaces().into_iter().map(scope::adopt).collect();
    let handed_over = handed_over.map_err(system("cannot take over the listeners"))?;
    let (charges, mut exempt) = pods.first(wanted, handed_over).await;
    // The node's own; of pods that are in there, those to be covered are known by their cgroup.
    let home = NetNs::current().map_err(system("cannot open our own network namespace"))?;
    exempt.push(home.cookie());
    let bypass = args.bypass.iter().copied().chain(place.bypass()?).collect();
    let (successor, mut successors) = mpsc::channel(1);
    let setup = Setup {
        name: args.name.clone(),
        bpf_log: false,
        policy: Arc::clone(&own),
        cgroups,
        pod_levels,
        charges,
        others: Others::Held { exempt },
        resolvers: if args.resolvers.is_empty() { dns } else { args.resolvers.clone() },
        log: logs.everybody().to_vec(),
        pod_logs: logs.pods().clone(),
        bypass_log: true,
        keep_existing: false,
        bypass,
        given_bypass: args.bypass.clone(),
        exec: Err("the node agent starts no commands; `kubectl exec` does".to_owned()),
        successor: Ok(successor),
        sandboxes: Some(sandboxes),
        tunnels: Some(Arc::new(Tunnels::of_node(Arc::new(home)))),
    };
    let begun = begin(setup, &mut session, place).await?;
    memory::give_back();
    let running = Arc::clone(&begun.running);
    eprintln!(
        "interceptor: covering {} of the node's pods; everything else in their cgroup is held until it is \
         known",
        running.covered.all().len()
    );
    let (listener, heard) = mpsc::channel(refusals::QUEUE);
    running.log.tell_refusals(listener);
    let refusals = Refusals::new(client, &args.node, Arc::clone(&follower.state));
    let refusals = tokio::spawn(refusals.run(heard));
    let mut applied = snapshot;
    let mut plugin = Keeper::new(args);
    loop {
        if let Some(plugin) = &mut plugin {
            plugin.keep();
        }
        let wanted = pods.wanted(&follower.state());
        let waits = pods.waits(&wanted);
        // Before those that are new begin.
        logs.follow(&running, &running.policy.current(), &wanted).await;
        pods.settle(&running, &begun.existing, wanted).await;
        follow_own(&running, begun.settings, &mut applied);
        let pause = if waits { LOOK } else { REST };
        tokio::select! {
            () = follower.changed() => {}
            () = tokio::time::sleep(pause) => {}
            _ = signals.next() => break,
            Some(successor) = successors.recv() => {
                drop(successors);
                follower.leave();
                if let Err(error) = session.hand_over() {
                    tracing::warn!("cgroup of those that drain: {error}");
                }
                let drain_time = Duration::from_secs(args.drain_time);
                // Whoever starts agents would start it again, to take the place back.
                if !begun.hand_over([], successor, drain_time, signals).await {
                    signals.next().await;
                }
                return Ok(());
            }
        }
    }
    refusals.abort();
    begun.admin.abort();
    begun.watchdog.iter().for_each(JoinHandle::abort);
    session.stay();
    begun.finish().await;
    Ok(())
}

/// What all workloads have in common follows the mesh's configuration.
fn follow_own(running: &Running, settings: Settings, applied: &mut Arc<Snapshot>) {
    let now = running.policy.current();
    if now.generation == applied.generation {
        return;
    }
    let others = Others::Held { exempt: Vec::new() };
    let settings = governed(settings, &now, &others);
    if let Err(error) = running.kernel.tables().set_settings(settings) {
        eprintln!("interceptor: policy generation {}: {error}", now.generation);
    }
    running.resolver.hold(stale_for(&now), now.dns_refresh);
    descriptors::keep(now.limits.descriptor_reserve);
    *applied = now;
}

/// A client of the API server.
pub(super) async fn client() -> Result<Client, AppError> {
    let unusable = |error: &dyn std::error::Error| AppError::Cluster(error.to_string());
    let mut config = Config::infer().await.map_err(|error| unusable(&error))?;
    config.read_timeout = Some(SILENCE);
    Client::try_from(config).map_err(|error| unusable(&error))
}

/// The directories of the state, which nobody else reads.
fn disk(args: &cli::Agent) -> Result<Disk, AppError> {
    for directory in [&args.state_dir, &args.secrets_dir] {
        let made = match directory.parent() {
            Some(parent) if !directory.exists() => create_dir_all(parent)
                .and_then(|()| DirBuilder::new().mode(0o700).create(directory)),
            _ => Ok(()),
        };
        made.map_err(system(format!("cannot make {}", directory.display())))?;
    }
    Ok(Disk { state: args.state_dir.clone(), secrets: args.secrets_dir.clone() })
}

fn say(lines: &[String]) {
    for line in lines {
        eprintln!("interceptor: {line}");
    }
}

/// Waits until everything is known, and prints it.
async fn once(
    agent: &mut Agent,
    args: &cli::Agent,
    signals: &mut Signals,
) -> Result<Exit, AppError> {
    let mut patience = std::pin::pin!(tokio::time::sleep(PATIENCE));
    while !agent.state().has_settled() {
        tokio::select! {
            lines = agent.next() => say(&lines),
            signal = signals.next() => return Ok(Exit::Signal(signal as i32)),
            () = &mut patience => {
                return Err(AppError::Cluster(agent.troubles().join("\n")));
            }
        }
    }
    let state = agent.state();
    if state.generation() == 0 {
        return Err(AppError::Resources("no policy is in force".to_owned()));
    }
    let hierarchy = Hierarchy::discover().ok();
    let mount = hierarchy.as_ref().map(Hierarchy::mount_point);
    print!("{}", table(&state, |pod| mount.and_then(|mount| find(mount, &args.cgroup_root, pod))));
    Ok(Exit::Success)
}

/// The pod's cgroup below `mount`, if there is one.
fn find(mount: &Path, root: &Path, pod: &Pod) -> Option<PathBuf> {
    pod.cgroup_paths(root).into_iter().find(|path| mount.join(path).is_dir())
}

/// The node's pods, one a line, with what they would get.
fn table(state: &State, cgroup: impl Fn(&Pod) -> Option<PathBuf>) -> String {
    let mut rows = vec![["POD", "MODE", "BY", "UNKNOWN", "SERVICES", "CGROUP"].map(str::to_owned)];
    let mut notes = String::new();
    for (name, one) in state.pods() {
        let policy = state.policy(&one.pod);
        let cgroup = cgroup(&one.pod).map_or("-".to_owned(), |path| path.display().to_string());
        rows.push([
            name.to_string(),
            one.cover.mode.to_string(),
            one.cover.because.clone(),
            policy.map_or("-", |policy| outbound(policy.store.current().outbound)).to_owned(),
            policy.map_or("-".to_owned(), |policy| policy.summary.services.to_string()),
            if one.cover.mode == Mode::Disabled { "-".to_owned() } else { cgroup },
        ]);
        for note in &one.cover.notes {
            // Writing to a string cannot fail.
            let _ = writeln!(notes, "{name}: {note}");
        }
    }
    aligned(&rows) + &notes
}

fn outbound(outbound: Outbound) -> &'static str {
    if outbound.is_open() { "passes" } else { "refused" }
}

fn aligned<const N: usize>(rows: &[[String; N]]) -> String {
    let width = |column: usize| rows.iter().map(|row| row[column].len()).max().unwrap_or(0);
    let mut text = String::new();
    for row in rows {
        let mut line = String::new();
        for (column, cell) in row.iter().enumerate() {
            let _ = write!(line, "{cell:<width$}  ", width = width(column));
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::agent::kinds::{Kind, Object};
    use crate::agent::{Name, State};

    #[test]
    fn the_table_says_what_each_pod_would_get() {
        let mesh = Name { namespace: "istio-system".to_owned(), name: "istio".to_owned() };
        let flags = Sources { outbound: Some(Outbound::RegistryOnly), ..Sources::default() };
        let mut state = State::new(mesh, Mode::Disabled, flags);
        let pod = |name: &str, label: &str| {
            json!({
                "metadata": {"name": name, "namespace": "shop", "uid": name,
                    "labels": {"egress.interceptor.io/mode": label}},
                "spec": {"hostNetwork": name == "host"},
                "status": {"phase": "Running", "qosClass": "Burstable"},
            })
        };
        let entry = json!({
            "metadata": {"name": "e", "namespace": "shop"},
            "spec": {"hosts": ["a.example.com"], "resolution": "DNS",
                "ports": [{"number": 443, "name": "t", "protocol": "TLS"}]},
        });
        let objects = [
            (Kind::Pod, pod("web", "enforce")),
            (Kind::Pod, pod("host", "audit")),
            (Kind::Pod, pod("idle", "disabled")),
            (Kind::ServiceEntry, entry),
        ];
        let objects = objects
            .into_iter()
            .map(|(kind, object)| (kind, Object::of(kind, "v1", &object).expect("named")));
        state.restore(objects.collect());
        // Hybrid, with the cgroupfs driver.
        let mount = tempfile::tempdir().expect("a directory");
        create_dir_all(mount.path().join("kubepods/burstable/podweb")).expect("made");
        let text = table(&state, |pod| find(mount.path(), Path::new("/"), pod));
        let expected = "\
POD        MODE      BY               UNKNOWN  SERVICES  CGROUP
shop/host  audit     the pod's label  refused  1         -
shop/idle  disabled  the pod's label  -        -         -
shop/web   enforce   the pod's label  refused  1         kubepods/burstable/podweb
shop/host: hostNetwork: covered by its cgroup, at its sockets alone; `interceptor status` says what gets round that
";
        assert_eq!(text, expected);
    }
}
