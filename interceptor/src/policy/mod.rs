//! Where rules come from: resources as written, validated, compiled into one snapshot.

mod base64;
mod checked;
mod compile;
mod destination_rule;
mod egress_proxy;
mod entry;
mod fields;
mod gateway;
mod interceptor_config;
mod inventory;
mod kubernetes;
mod limits;
mod load;
mod mesh;
mod metadata;
mod node;
mod notice;
mod parts;
mod providers;
mod reader;
mod registry;
mod resource;
mod selection;
mod service_entry;
mod sidecar;
mod telemetry;
#[cfg(test)]
mod tests;
mod validate;
mod virtual_service;
mod watch;
mod workload_entry;

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use ipnet::IpNet;

pub(crate) use self::base64::encode as encode_base64;
pub use self::checked::Checked;
pub use self::inventory::{Changes, Inventory};
pub use self::kubernetes::{Credentials, Keyring};
pub use self::limits::Limits;
pub use self::load::{Caller, Loaded, Sources, Summary, check_over, load, load_over};
pub use self::node::is_readable;
pub use self::notice::{LoadErrors, Notice, Place};
pub use self::watch::Watch;
use crate::account::{Format, LogSettings};
use crate::decide::Policy;

/// `strict` (default) or `istio`: docs/profiles.md.
#[derive(
    Debug,
    Clone,
    Copy,
    PartialEq,
    Eq,
    Default,
    clap::ValueEnum,
    serde::Deserialize,
    serde::Serialize,
)]
#[serde(rename_all = "lowercase")]
pub enum Enforcement {
    /// Refuse when in doubt, and say why.
    #[default]
    Strict,
    /// Istio's behaviour to the letter.
    Istio,
}

/// The outbound traffic policy (MESH-1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum Outbound {
    /// Unknown traffic passes.
    #[default]
    AllowAny,
    /// Unknown traffic is refused.
    RegistryOnly,
    /// As `AllowAny`, but plaintext HTTP goes where the proxy resolves its Host (MESH-31).
    AllowAnyDynamicDns,
}

impl Outbound {
    /// Whether unknown connections pass.
    pub fn is_open(self) -> bool {
        self != Self::RegistryOnly
    }
}

/// What happens to established connections that a change of policy no longer allows
/// (`onPolicyRemoval`, T-62).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum OnRemoval {
    /// They go on.
    #[default]
    Keep,
    /// They are ended, and the log says why.
    Cut,
}

/// What may still go direct while no daemon lives (`onDaemonLoss`, R6).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum OnLoss {
    /// What the kernel can judge by itself: addresses and names that were allowed last.
    #[default]
    DirectTier,
    /// Nothing that policy judges. Established connections go on.
    Closed,
}

/// What happens while lines of the access log cannot be written (`onLogLoss`, T-57).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum OnLogLoss {
    /// Traffic goes on, and lost lines are counted.
    #[default]
    Continue,
    /// New connections and requests are refused.
    Refuse,
}

/// One compiled, immutable set of rules and settings.
#[derive(Debug, Clone)]
pub struct Snapshot {
    /// Counts up with each change.
    pub generation: u64,
    /// What decisions read.
    pub policy: Policy,
    /// Profile in force.
    pub enforcement: Enforcement,
    /// Mode in force.
    pub outbound: Outbound,
    /// How long to wait for first bytes where the verdict needs them; `None` = for ever (MESH-5;
    /// strict: 5 s if unset, T-28).
    pub sniff_timeout: Option<Duration>,
    /// MESH-6.
    pub connect_timeout: Duration,
    /// MESH-7.
    pub dns_refresh: Duration,
    /// What mesh config and Telemetry say of the access log, one item an output, none where it is
    /// switched off; `None` where they say nothing.
    pub access_log: Option<Vec<LogSettings>>,
    /// The mesh configuration's format (MESH-3, MESH-4), for a place that only a flag names.
    pub log_format: Arc<Format>,
    /// UDP destinations that entries with addresses allow in REGISTRY_ONLY (profiles.md).
    pub udp_allowed: Vec<(IpNet, u16)>,
    /// Whether datagrams and other protocols that nothing allows are refused (profiles.md: in
    /// strict with REGISTRY_ONLY).
    pub refuse_datagrams: bool,
    /// What `credentialName` means to the workload (TLS-9).
    pub credentials: Keyring,
    /// What happens to what is no longer allowed when this comes into force.
    pub on_removal: OnRemoval,
    /// What may still go direct while no daemon lives.
    pub on_loss: OnLoss,
    /// What happens while lines of the access log cannot be written.
    pub on_log_loss: OnLogLoss,
    /// Whether connections that need no proxy go direct.
    pub fast_path: bool,
    /// How much one workload, and all together, may take.
    pub limits: Limits,
    /// Networks to which a pod's TCP goes as without us: `bypassCIDRs` of an InterceptorConfig.
    pub bypass: Vec<IpNet>,
}

impl Snapshot {
    /// Whether nothing new may pass that the access log cannot tell of (T-57).
    pub fn needs_log(&self) -> bool {
        self.on_log_loss == OnLogLoss::Refuse
    }
}

#[cfg(test)]
impl Snapshot {
    /// One that allows nothing.
    pub(crate) fn nothing() -> Self {
        Self {
            generation: 1,
            policy: Policy::default(),
            enforcement: Enforcement::default(),
            outbound: Outbound::default(),
            sniff_timeout: None,
            connect_timeout: Duration::from_secs(1),
            dns_refresh: Duration::from_secs(1),
            access_log: None,
            log_format: Arc::default(),
            credentials: Keyring::default(),
            on_removal: OnRemoval::default(),
            on_loss: OnLoss::default(),
            on_log_loss: OnLogLoss::default(),
            fast_path: false,
            udp_allowed: Vec::new(),
            limits: Limits::default(),
            bypass: Vec::new(),
            refuse_datagrams: true,
        }
    }
}

/// The current snapshot, swapped whole.
#[derive(Debug)]
pub struct Store {
    current: ArcSwap<Snapshot>,
    /// The generation in force.
    changes: tokio::sync::watch::Sender<u64>,
}

impl Store {
    /// Starts with `snapshot`.
    pub fn new(snapshot: Snapshot) -> Self {
        let changes = tokio::sync::watch::Sender::new(snapshot.generation);
        Self { current: ArcSwap::from_pointee(snapshot), changes }
    }

    /// The newest snapshot.
    pub fn current(&self) -> Arc<Snapshot> {
        self.current.load_full()
    }

    /// Replaces the snapshot for everything that asks from now on.
    pub fn replace(&self, snapshot: Snapshot) {
        let generation = snapshot.generation;
        self.current.store(Arc::new(snapshot));
        self.changes.send_replace(generation);
    }

    /// Says when a snapshot is replaced from now on; subscribe before reading the current one.
    pub fn subscribe(&self) -> tokio::sync::watch::Receiver<u64> {
        self.changes.subscribe()
    }
}
