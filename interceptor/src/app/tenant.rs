//! Rules that workloads share: a policy under its number in the kernel's tables, the resolvers that may
//! be asked, and what pods' annotations leave alone.

use std::net::SocketAddr;
use std::sync::Arc;

use interceptor_common::{EndpointKey, EndpointRule, EndpointVerdict, Namespace};
use tokio::task::AbortHandle;

use crate::kernel::{DirectTables, EndpointRow, Kernel, TableError, Tables};
use crate::policy::{Snapshot, Store};
use crate::tiers::{Commons, Sync};
use crate::workloads::annotations::CaptureLists;
use crate::workloads::capture;

/// The rules themselves.
#[derive(Debug)]
pub(super) struct Rules {
    /// The policy's number in the kernel's tables: no other rules' at the same time, nor shortly after.
    pub(super) id: u16,
    /// The workloads' namespace in policy.
    pub(super) namespace: Arc<str>,
    pub(super) policy: Arc<Store>,
    /// Whom the workloads may ask for names.
    pub(super) resolvers: Vec<SocketAddr>,
    /// What is captured at all.
    pub(super) lists: CaptureLists,
}

impl Rules {
    /// What the hooks are told of a namespace with these rules, whose listeners are `at`, and of which nothing
    /// is refused where it is `audited`.
    pub(super) fn entry(&self, at: Namespace, snapshot: &Snapshot, audited: bool) -> Namespace {
        let open = if snapshot.refuse_datagrams { 0 } else { Namespace::OPEN };
        let partly = match self.lists == CaptureLists::default() {
            true => 0,
            false => Namespace::PARTLY_CAPTURED,
        };
        let reroutes = match snapshot.policy.may_reroute() {
            true => Namespace::REROUTES,
            false => 0,
        };
        let audit = if audited { Namespace::AUDIT } else { 0 };
        Namespace { policy: self.id, flags: open | partly | reroutes | audit, ..at }
    }

    /// Writes where datagrams may go.
    ///
    /// # Errors
    /// [`TableError`]; the table is full.
    pub(super) fn set_datagrams(
        &self,
        snapshot: &Snapshot,
        tables: &mut Tables,
    ) -> Result<(), TableError> {
        tables.set_datagrams(self.id, &self.resolvers, &snapshot.udp_allowed)
    }

    fn set_capture(&self, tables: &mut DirectTables) -> Result<(), TableError> {
        for ((port, network), uncaptured) in capture::rows(&self.lists) {
            let verdict = match uncaptured {
                true => EndpointVerdict::Direct,
                false => EndpointVerdict::Proxy,
            };
            let row = EndpointRow { policy: self.id | EndpointKey::CAPTURE, port, network };
            let rule = EndpointRule { verdict: verdict as u8, pad: 0, names: 0, label: 0 };
            tables.set_endpoint(row, rule)?;
        }
        Ok(())
    }
}

/// Rules in force.
pub(super) struct Tenant {
    pub(super) rules: Arc<Rules>,
    /// What keeps the tables of direct traffic in step.
    pub(super) sync: Arc<Sync>,
    following: AbortHandle,
}

impl Tenant {
    /// Writes what goes direct by these rules, and follows it. `inherits`: what a predecessor wrote
    /// holds until then.
    pub(super) fn start(
        kernel: &Kernel,
        commons: &Arc<Commons>,
        rules: &Arc<Rules>,
        inherits: bool,
    ) -> Arc<Self> {
        let sync = Arc::new(Sync::new(Arc::clone(commons), rules.id, &rules.namespace));
        if inherits {
            sync.inherit();
        }
        if let Err(error) = sync.apply(&rules.policy.current()) {
            eprintln!("interceptor: {error}");
        }
        // Until it is written, policy decides of everything.
        if let Err(error) = rules.set_capture(&mut kernel.direct()) {
            eprintln!("interceptor: what annotations leave alone is captured: {error}");
        }
        let following = tokio::spawn(Arc::clone(&sync).follow(Arc::clone(&rules.policy)));
        Arc::new(Self { rules: Arc::clone(rules), sync, following: following.abort_handle() })
    }

    /// The policy in force.
    pub(super) fn policy(&self) -> Arc<Snapshot> {
        self.rules.policy.current()
    }

    /// Takes the rules out of the tables: no namespace has them any more.
    pub(super) fn retire(&self, kernel: &Kernel) {
        self.following.abort();
        let cleared = self.sync.clear();
        let capture = kernel.direct().clear_policy(self.rules.id | EndpointKey::CAPTURE);
        let datagrams = kernel.tables().set_datagrams(self.rules.id, &[], &[]);
        if let Err(error) = cleared.and(capture).and(datagrams) {
            tracing::warn!("rows of a policy that nobody has are left: {error}");
        }
    }
}

impl Drop for Tenant {
    fn drop(&mut self) {
        self.following.abort();
    }
}
