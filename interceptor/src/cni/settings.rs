//! What the configuration on disk says: enough to know which pods need no agent.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::agent::pods::Mode;
use crate::cli::{AGENT_NAME, parse_name};

/// The longest wait for the agent: the runtime itself is waited for, two minutes in kubelet.
const MOST_WAIT: u64 = 60;

/// The plugin's part of a network's configuration. What is not there is as in the default, which
/// exempts nobody without the agent's word.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Settings {
    /// The name of the node's agent.
    pub instance: String,
    /// Namespaces whose pods are never covered, whatever their labels say, and never wait for an agent.
    pub exempt_namespaces: BTreeSet<String>,
    /// What namespaces' labels say.
    pub namespaces: BTreeMap<String, Mode>,
    /// What becomes of pods in other namespaces.
    pub default_mode: Mode,
    /// Whether a pod's own label counts. Only the agent knows it, so then pods of all namespaces but the
    /// exempt ones wait for the agent.
    pub pod_labels: bool,
    /// How long ADD waits for the agent, in seconds, at most 60.
    pub wait_seconds: u64,
    /// kubelet's `--cgroup-root`.
    pub cgroup_root: PathBuf,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            instance: AGENT_NAME.to_owned(),
            exempt_namespaces: BTreeSet::new(),
            namespaces: BTreeMap::new(),
            default_mode: Mode::Disabled,
            pod_labels: true,
            wait_seconds: 10,
            cgroup_root: PathBuf::from("/"),
        }
    }
}

/// What is to be done about a pod, as far as its namespace says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Rule {
    /// It is exempt, and nobody is asked.
    Exempt,
    /// The agent is asked; where none answers, it is exempt.
    ExemptWithoutAgent,
    /// The agent is asked; where none answers, it does not start.
    Ask,
}

impl Settings {
    /// What is to be done about a pod of `namespace`.
    pub(super) fn rule(&self, namespace: &str) -> Rule {
        if self.exempt_namespaces.contains(namespace) {
            return Rule::Exempt;
        }
        match self.namespaces.get(namespace).unwrap_or(&self.default_mode) {
            Mode::Disabled if !self.pod_labels => Rule::ExemptWithoutAgent,
            _ => Rule::Ask,
        }
    }

    /// How long ADD waits for the agent.
    pub(super) fn wait(&self) -> Duration {
        Duration::from_secs(self.wait_seconds)
    }

    /// What is wrong with it, in words.
    pub(super) fn check(&self) -> Result<(), String> {
        parse_name(&self.instance)
            .map_err(|why| format!("instance \"{}\": {why}", self.instance))?;
        if self.wait_seconds > MOST_WAIT {
            return Err(format!("waitSeconds: {} is more than {MOST_WAIT}", self.wait_seconds));
        }
        Ok(())
    }
}
