//! What the connections of one site know together of the clusters that they use: what is under way
//! (limits, the less busy endpoint) and which endpoints misbehave (outlier detection).
//!
//! State belongs to a cluster's name and outlives a policy: what is under way stays so when the
//! rules change. The rules themselves come with every decision.

mod balance;
mod outlier;
mod permit;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use crate::decide::ClusterName;

pub(crate) use balance::{Candidate, Wish, hash_of, order};
pub use outlier::Outcome;
pub use permit::{Kind, Overflow, Permit};

use outlier::Health;

/// Clusters remembered while nothing is under way on them.
const CLUSTERS_MAX: usize = 1024;
/// Endpoints remembered per cluster while nothing is under way on them and nothing is wrong.
const ENDPOINTS_MAX: usize = 256;

/// Every cluster that was used.
#[derive(Debug, Default)]
pub struct Clusters {
    all: Mutex<HashMap<ClusterName, Arc<Cluster>>>,
}

impl Clusters {
    /// The state of the cluster called `name`.
    pub fn get(&self, name: &ClusterName) -> Arc<Cluster> {
        let mut all = lock(&self.all);
        if let Some(cluster) = all.get(name) {
            return Arc::clone(cluster);
        }
        if all.len() >= CLUSTERS_MAX {
            // Only those that somebody holds have anything to remember that matters.
            all.retain(|_, cluster| Arc::strong_count(cluster) > 1);
        }
        Arc::clone(all.entry(name.clone()).or_default())
    }
}

/// One cluster's state.
#[derive(Debug, Default)]
pub struct Cluster {
    counts: Mutex<permit::Counts>,
    /// Told whenever a connection is given back.
    freed: Notify,
    endpoints: Mutex<HashMap<SocketAddr, EndpointState>>,
    /// Turns taken (round robin).
    turn: AtomicU64,
}

/// What is known of one endpoint.
#[derive(Debug, Default)]
struct EndpointState {
    /// Requests and connections under way.
    active: u32,
    health: Health,
}

impl Cluster {
    fn endpoints(&self) -> MutexGuard<'_, HashMap<SocketAddr, EndpointState>> {
        lock(&self.endpoints)
    }

    /// Marks something as under way at `address` until the answer is dropped.
    pub fn busy(self: &Arc<Self>, address: SocketAddr) -> Busy {
        let mut endpoints = self.endpoints();
        if endpoints.len() >= ENDPOINTS_MAX && !endpoints.contains_key(&address) {
            endpoints.retain(|_, state| state.active > 0 || state.health.is_notable());
        }
        endpoints.entry(address).or_default().active += 1;
        drop(endpoints);
        Busy { cluster: Arc::clone(self), address }
    }
}

/// Something under way at an endpoint.
#[derive(Debug)]
pub struct Busy {
    cluster: Arc<Cluster>,
    address: SocketAddr,
}

impl Drop for Busy {
    fn drop(&mut self) {
        if let Some(state) = self.cluster.endpoints().get_mut(&self.address) {
            state.active = state.active.saturating_sub(1);
        }
    }
}

/// No critical section here leaves anything half done when it panics.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
