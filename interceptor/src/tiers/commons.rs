//! What the policies of one daemon share.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::labels::Labels;
use super::sets::NameSets;
use crate::kernel::Kernel;
use crate::resolve::Resolver;

/// What all policies of a daemon have in common.
pub struct Commons {
    pub(super) kernel: Arc<Kernel>,
    pub(super) resolver: Arc<Resolver>,
    pub(super) labels: Arc<Labels>,
    sets: Mutex<NameSets>,
    enabled: bool,
    suspended: AtomicBool,
}

impl Commons {
    /// Nothing is ever written where it is not `enabled`.
    pub fn new(
        kernel: Arc<Kernel>,
        resolver: Arc<Resolver>,
        labels: Arc<Labels>,
        enabled: bool,
    ) -> Arc<Self> {
        let (sets, suspended) = Default::default();
        Arc::new(Self { kernel, resolver, labels, sets, enabled, suspended })
    }

    /// Whether anything goes direct at all.
    pub fn is_enabled(&self) -> bool {
        self.enabled
    }

    /// While `suspended`, everything is the proxy's, whatever policies let go direct: those in force from
    /// their next [`Sync::apply`](super::Sync::apply) on, later ones from the first.
    pub fn suspend(&self, suspended: bool) {
        self.suspended.store(suspended, Ordering::SeqCst);
    }

    /// Whether anything goes direct now.
    pub(super) fn lets_go(&self) -> bool {
        self.enabled && !self.suspended.load(Ordering::SeqCst)
    }

    /// The sets of names that lie in the tables.
    pub(super) fn sets(&self) -> MutexGuard<'_, NameSets> {
        self.sets.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
