//! One case on the stage: the world outside as the case gives it, the product with the case's
//! resources, the caller; and everything that was seen.

use std::collections::BTreeSet;
use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::{Map, Value, json};

use super::behaviour::{Behaviour, Server};
use super::case::{Case, Flow, Profile};
use super::client::{Exchange, Task};
use super::stub::{Contact, Stub};
use super::tls::Certificates;
use super::{files, gateway, log, pod};
use crate::capture::let_out;
use crate::netns::next_number;
use crate::world::{DNS, World};

/// How long a caller waits for what should come.
const PATIENCE: Duration = Duration::from_secs(8);
/// How long it waits before it calls it a hang, where that is expected.
const HANG: Duration = Duration::from_secs(1);
/// Requests of a case that measures shares and does not say how many.
const SHARES: u32 = 1000;
/// How long one run of the product may take.
const LIMIT: Duration = Duration::from_secs(45);

/// A world that cases are played in, one after the other.
pub struct Stage {
    // Dropped in this order: servers before the namespaces that they are in.
    outside: Stub,
    /// What listens on the workload's own loopback.
    inside: Stub,
    certificates: Arc<Certificates>,
    binary: PathBuf,
    caller: PathBuf,
    world: World,
}

/// Everything that was seen of a case.
#[derive(Debug)]
pub struct Seen {
    /// By the caller.
    pub exchanges: Vec<Exchange>,
    /// By the servers.
    pub contacts: Vec<Contact>,
    /// Connection attempts on the wire, each once; those to the name server aside.
    pub attempts: Vec<SocketAddr>,
    /// The access log.
    pub lines: Vec<log::Entry>,
    /// What the product said to people.
    pub stderr: String,
}

/// What a run of the product left, beside what the caller wrote.
pub(super) struct Ran {
    /// The caller's exit status, or the product's for it.
    pub(super) code: i32,
    pub(super) log: String,
    pub(super) stderr: String,
}

impl Stage {
    /// Sets up a stage for this binary; `caller` is what it is told to run.
    ///
    /// # Errors
    /// When not root, or when a namespace, link or server can't be made.
    pub fn new(binary: &Path, caller: &Path) -> Result<Self> {
        let world = World::bare()?;
        let certificates = Arc::new(Certificates::new(Arc::clone(&world.authority))?);
        Ok(Self {
            outside: Stub::start(&world.internet, Arc::clone(&certificates))?,
            inside: Stub::start(&world.workload, Arc::clone(&certificates))?,
            certificates,
            binary: binary.to_owned(),
            caller: caller.to_owned(),
            world,
        })
    }

    /// Plays a case.
    ///
    /// # Errors
    /// When it can't be played; the message carries what the product said.
    pub fn play(&self, case: &Case, profile: Profile) -> Result<Seen> {
        let flow = case.flow.as_ref().context("a flow")?;
        let expected = case.expected(profile);
        let server = Server::parse(case.network.server.as_deref())?;
        for (name, addresses) in &case.network.dns {
            self.world.zone.set(name, addresses);
        }
        let swallowed = if server == Server::Silent { addresses(case) } else { BTreeSet::new() };
        for address in &swallowed {
            self.world.internet.ip(&["route", "add", "blackhole", &address.to_string()])?;
        }
        let seen = self.perform(case, profile, flow, &expected, server);
        for address in &swallowed {
            self.world.internet.ip(&["route", "del", "blackhole", &address.to_string()])?;
        }
        for name in case.network.dns.keys() {
            self.world.zone.remove(name);
        }
        seen
    }

    fn perform(
        &self,
        case: &Case,
        profile: Profile,
        flow: &Flow,
        expected: &Map<String, Value>,
        server: Server,
    ) -> Result<Seen> {
        let behaviour = Behaviour {
            server,
            delay: Duration::from_millis(case.network.server_delay_ms),
            speaks_first: flow.first_bytes == super::case::FirstBytes::None,
        };
        let local = flow.dst.ip().is_loopback();
        let udp = (flow.transport == "udp").then_some(flow.dst);
        let ports = ports(case, flow);
        let none = BTreeSet::new();
        let (outside, inside) = if local { (&none, &ports) } else { (&ports, &none) };
        self.outside.prepare(behaviour.clone(), outside.clone(), udp.filter(|_| !local))?;
        self.inside.prepare(behaviour, inside.clone(), udp.filter(|_| local))?;
        let capture = self.world.capture()?;

        let directory = tempfile::Builder::new().prefix("case-").tempdir_in(self.world.dir())?;
        let at = directory.path();
        let resources = files::resources(case, at, &self.certificates)?;
        // A log that the case's own resources govern goes where they say; else it is asked for.
        let governed = case.mesh.contains_key("accessLogFile")
            || expected.contains_key("log_lines")
            || case.resources.iter().any(|resource| resource["kind"] == "Telemetry");
        let hangs = expected.get("verdict") == Some(&json!("hang"));
        let shares = expected.contains_key("distribution").then_some(SHARES);
        let patience = if hangs { HANG } else { PATIENCE };
        let task = Task {
            flow: flow.clone(),
            repeat: flow.repeat.or(shares).unwrap_or(1),
            uid: case.workload.uid,
            patience_ms: u64::try_from(patience.as_millis())?,
        };
        fs::write(at.join("task.json"), serde_json::to_vec(&task)?)?;

        let caller = pod::Caller { product: &self.binary, program: &self.caller, at, limit: LIMIT };
        let Ran { code, log: text, stderr } = if case.is_gateway() {
            gateway::run(&self.world, case, profile, &resources, &caller)?
        } else if case.needs_pod() {
            pod::run(&self.world, case, profile, &resources, &caller)?
        } else {
            fs::write(at.join("resources.yaml"), files::stream(&resources))?;
            fs::write(at.join("mesh.yaml"), files::mesh(case))?;
            let mut run = self.command(case, profile, at, governed);
            let finished = self.world.output(&mut run, LIMIT)?;
            let log = match governed {
                true => finished.stdout,
                false => fs::read_to_string(at.join("access.log")).unwrap_or_default(),
            };
            Ran { code: finished.code, log, stderr: finished.stderr }
        };
        let result = fs::read(at.join("result.json")).unwrap_or_default();
        let Ok(exchanges) = serde_json::from_slice::<Vec<Exchange>>(&result) else {
            bail!("the caller did nothing (exit {code}): {}", stderr.trim());
        };
        let stub = if local { &self.inside } else { &self.outside };
        let packets = capture.packets();
        let let_out = let_out(&packets);
        let mut contacts = stub.contacts();
        // A handshake that was refused by what would have followed it is none.
        contacts.retain(|contact| {
            let ends = (contact.peer, contact.local);
            let_out.contains(&ends) || !packets.iter().any(|p| p.is_syn() && p.ends() == ends)
        });
        Ok(Seen {
            exchanges,
            contacts,
            attempts: attempts(let_out),
            lines: text.lines().map(log::Entry::read).collect(),
            stderr,
        })
    }

    fn command(&self, case: &Case, profile: Profile, at: &Path, governed: bool) -> Command {
        let mut run = self.world.command(&self.binary);
        // The caller becomes whom the case says, not who called sudo.
        for name in ["SUDO_UID", "SUDO_GID", "SUDO_USER"] {
            run.env_remove(name);
        }
        run.args(["run", "--name", &format!("ix-{}-{}", std::process::id(), next_number())]);
        run.args(["--enforcement", profile.word()]);
        run.arg("-f").arg(at.join("resources.yaml"));
        run.arg("--mesh-config").arg(at.join("mesh.yaml"));
        if let Some(namespace) = &case.workload.namespace {
            run.args(["--namespace", namespace]);
        }
        if !case.workload.labels.is_empty() {
            let labels = case.workload.labels.iter().map(|(key, value)| format!("{key}={value}"));
            run.args(["--labels", &labels.collect::<Vec<_>>().join(",")]);
        }
        if !governed {
            run.arg("--access-log").arg(at.join("access.log"));
        }
        for network in case.bypass().unwrap_or_default() {
            run.args(["--bypass", network]);
        }
        run.arg("--").arg(&self.caller).arg("caller");
        run.arg(at.join("task.json")).arg(at.join("result.json"));
        run
    }
}

/// Every port that somebody may be dialled on: of the flow, and of everything that the resources
/// name.
fn ports(case: &Case, flow: &Flow) -> BTreeSet<u16> {
    let mut ports = BTreeSet::new();
    let mut next = Some(flow);
    while let Some(flow) = next {
        ports.insert(flow.dst.port());
        next = flow.then.as_deref();
    }
    for resource in &case.resources {
        visit(resource, "", &mut |key, value| {
            let names_a_port = matches!(key, "number" | "port" | "targetPort" | "ports");
            let number = value.as_u64().and_then(|number| u16::try_from(number).ok());
            if let (true, Some(port)) = (names_a_port, number) {
                ports.insert(port);
            }
        });
    }
    // The name server's.
    ports.remove(&53);
    ports.remove(&0);
    ports
}

/// Every address that the case names.
fn addresses(case: &Case) -> BTreeSet<IpAddr> {
    let mut all: BTreeSet<IpAddr> = case.network.dns.values().flatten().copied().collect();
    all.extend(case.flow.iter().map(|flow| flow.dst.ip()));
    for resource in &case.resources {
        visit(resource, "", &mut |_, value| {
            all.extend(value.as_str().and_then(|text| text.parse::<IpAddr>().ok()));
        });
    }
    all
}

/// Calls `each` with every leaf and the nearest key above it; in a map of ports by name that is
/// `ports`.
fn visit(value: &Value, key: &str, each: &mut impl FnMut(&str, &Value)) {
    match value {
        Value::Object(map) => {
            for (name, value) in map {
                let key = if key == "ports" && !value.is_object() { key } else { name };
                visit(value, key, each);
                if key == "ports" {
                    visit(value, name, each);
                }
            }
        }
        Value::Array(items) => items.iter().for_each(|item| visit(item, key, each)),
        leaf => each(key, leaf),
    }
}

/// Where connections that were let out went, each once, in order.
fn attempts(let_out: Vec<(SocketAddr, SocketAddr)>) -> Vec<SocketAddr> {
    let mut sources = BTreeSet::new();
    let_out
        .into_iter()
        .filter(|(from, to)| to.ip() != DNS && sources.insert(*from))
        .map(|(_, to)| to)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_of_every_kind_are_found() {
        let entry = json!({"spec": {
            "ports": [{"number": 80, "name": "http", "targetPort": 8080}],
            "endpoints": [{"address": "192.0.2.1", "ports": {"http": 7070}, "weight": 99}],
            "http": [{"route": [{"destination": {"port": {"number": 6060}}}]}],
            "tcp": [{"match": [{"port": 5432}]}],
        }});
        let mut found = BTreeSet::new();
        visit(&entry, "", &mut |key, value| {
            if matches!(key, "number" | "port" | "targetPort" | "ports") {
                found.extend(value.as_u64());
            }
        });
        assert_eq!(found, BTreeSet::from([80, 5432, 6060, 7070, 8080]));
    }
}
