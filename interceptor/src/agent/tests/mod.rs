//! The agent against an API server in the process.

mod deciding;
pub(crate) mod fake;
mod injection;
mod keeping;
mod telling;
mod watching;

use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::timeout;

use self::fake::Fake;
use super::pods::Mode;
use super::{Agent, Disk, Name, Options};
use crate::policy::{Outbound, Sources};
use crate::workloads::annotations::CaptureLists;

/// A node with its agent.
pub(crate) struct Node {
    pub(crate) agent: Agent,
    /// All that it said.
    pub(crate) said: Vec<String>,
    disk: Option<tempfile::TempDir>,
}

/// The API server's own time passes with the test's: a minute is at once over.
pub(crate) const MINUTE: Duration = Duration::from_secs(60);

impl Node {
    /// An agent that keeps nothing.
    pub(crate) fn start(fake: &Fake, overrides: Sources) -> Self {
        Self::start_on(fake, overrides, None)
    }

    /// An agent that keeps its state in `disk`.
    fn start_on(fake: &Fake, overrides: Sources, disk: Option<tempfile::TempDir>) -> Self {
        Self::start_as("n", fake, overrides, disk)
    }

    /// An agent of another node.
    fn named(fake: &Fake, node: &str) -> Self {
        Self::start_as(node, fake, registry_only(), None)
    }

    fn start_as(
        node: &str,
        fake: &Fake,
        overrides: Sources,
        disk: Option<tempfile::TempDir>,
    ) -> Self {
        let kept = disk
            .as_ref()
            .map(|dir| Disk { state: dir.path().to_owned(), secrets: dir.path().to_owned() });
        let options = Options {
            node: node.to_owned(),
            mesh: Name { namespace: "istio-system".to_owned(), name: "istio".to_owned() },
            default: Mode::Enforce,
            capture: CaptureLists::default(),
            overrides,
            disk: kept,
            tells: true,
        };
        let agent = Agent::start(fake.client(), options);
        Self { agent, said: Vec::new(), disk }
    }

    /// Lets the agent do what it wants to for a minute at least. What it said.
    pub(crate) async fn settle(&mut self) -> Vec<String> {
        self.pass(MINUTE).await
    }

    async fn pass(&mut self, time: Duration) -> Vec<String> {
        let mut said = Vec::new();
        while let Ok(lines) = timeout(time, self.agent.next()).await {
            said.extend(lines);
        }
        self.said.extend(said.iter().cloned());
        said
    }

    /// The hosts and ports that a pod's policy has; `None` without a policy.
    fn services(&self, pod: &str) -> Option<Vec<String>> {
        let state = self.agent.state();
        let (_, covered) = state.pods().find(|(name, _)| name.to_string() == pod)?;
        let snapshot = state.policy(&covered.pod)?.store.current();
        let services = snapshot.policy.services().iter();
        let mut services: Vec<_> =
            services.map(|service| format!("{}:{}", service.cluster.host, service.port)).collect();
        services.sort();
        Some(services)
    }

    fn generation(&self) -> u64 {
        self.agent.state().generation()
    }
}

/// What flags say in most of these tests.
fn registry_only() -> Sources {
    Sources { outbound: Some(Outbound::RegistryOnly), ..Sources::default() }
}

fn namespace(name: &str, labels: Value) -> Value {
    json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}})
}

fn pod(namespace: &str, name: &str, labels: Value) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "namespace": namespace, "uid": format!("{namespace}-{name}"), "labels": labels},
        "spec": {"nodeName": "n", "containers": [{"name": "c"}]},
        "status": {"phase": "Running", "qosClass": "BestEffort"},
    })
}

fn entry(namespace: &str, name: &str, host: &str) -> Value {
    json!({
        "apiVersion": "networking.istio.io/v1", "kind": "ServiceEntry",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {
            "hosts": [host], "resolution": "DNS", "exportTo": ["."],
            "ports": [{"number": 443, "name": "tls", "protocol": "TLS"}],
        },
    })
}

/// A server with one pod, `shop/web`, and one entry that it sees, `a.example.com`.
fn shop() -> Fake {
    let fake = Fake::with_istio();
    fake.put(namespace("shop", json!({})));
    fake.put(pod("shop", "web", json!({"app": "web"})));
    fake.put(entry("shop", "a", "a.example.com"));
    fake
}
