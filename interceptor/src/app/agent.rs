//! `interceptor agent`: its arguments to a running agent, and what that has to say to people.

use std::fmt::Write as _;
use std::fs::{DirBuilder, create_dir_all};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use kube::{Client, Config};

use super::signals::Signals;
use super::{AppError, system};
use crate::agent::cgroups::pod_paths;
use crate::agent::pods::{Mode, Pod};
use crate::agent::{Agent, Disk, Options, State};
use crate::cli::{self, Exit};
use crate::policy::{Outbound, Sources};
use crate::workloads::cgroup::Hierarchy;

/// How long `--once` waits for the API server.
const PATIENCE: Duration = Duration::from_secs(30);

/// A connection on which nothing comes for this long is dead: the API server ends each watch before.
const SILENCE: Duration = Duration::from_secs(330);

pub(super) async fn run(args: cli::Agent) -> Result<Exit, AppError> {
    let mut signals = Signals::listen().map_err(system("cannot catch signals"))?;
    let client = client().await?;
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
            overrides: Sources {
                outbound: args.outbound,
                enforcement: args.enforcement,
                ..Sources::default()
            },
            disk,
        },
    );
    if args.once {
        return once(&mut agent, &args, &mut signals).await;
    }
    loop {
        tokio::select! {
            lines = agent.next() => say(&lines),
            _ = signals.next() => break,
        }
    }
    agent.write().await;
    Ok(Exit::Success)
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
    let uid = pod.uid()?;
    let paths = pod.qos().iter().flat_map(|qos| pod_paths(root, *qos, &uid));
    paths.map(|(_, path)| path).find(|path| mount.join(path).is_dir())
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
shop/host: hostNetwork: it shares the node's interfaces, so that it can be covered by its cgroup only
";
        assert_eq!(text, expected);
    }
}
