//! Who is calling, and how the programs that we cover are started.

pub mod annotations;
mod audit;
pub mod capture;
pub mod cgroup;
pub mod cgroupns;
mod child;
pub mod command;
pub mod mounts;
pub mod session;
#[cfg(test)]
pub(crate) mod testing;

use std::collections::BTreeMap;
use std::sync::Arc;

pub use audit::Audit;

/// A covered workload as policy and logs know it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Workload {
    /// Its namespace: decides which resources it sees. `default` on a dev box.
    pub namespace: Arc<str>,
    /// How logs and status call it.
    pub name: Arc<str>,
    /// The service account that it runs as; empty: none.
    pub service_account: Arc<str>,
    /// Its labels (workloadSelector).
    pub labels: BTreeMap<String, String>,
    /// The pod that it is, where it is one.
    pub pod: Option<Arc<PodIdentity>>,
}

/// A pod as log lines and metrics tell it from others.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PodIdentity {
    /// Its namespace.
    pub namespace: Arc<str>,
    /// Its name.
    pub name: Arc<str>,
    /// The object's uid: a pod of a StatefulSet has the name of the one before it.
    pub uid: Arc<str>,
    /// The service account that it runs as.
    pub service_account: Arc<str>,
}
