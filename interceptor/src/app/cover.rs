//! Namespaces that come under cover and leave it.

use std::io;
use std::sync::{Arc, Mutex};

use arc_swap::ArcSwap;
use interceptor_common::Namespace;

use super::covered::{CoveredNamespace, Whose};
use super::enrol::{self, Enrolled};
use super::handler::Running;
use crate::act::carrier::Outbound;
use crate::act::dial::Dialer;
use crate::admit::Room;
use crate::conn::{self, Captured, Entrance, Site};
use crate::kernel::TableError;
use crate::netns::NetNs;
use crate::workloads::Audit;

impl Running {
    /// Serves a namespace that is in the kernel's tables.
    pub(super) fn open(&self, one: Enrolled, whose: Whose) -> Arc<CoveredNamespace> {
        let room = Room::new(Arc::clone(&self.rooms), Arc::clone(&self.policy));
        let (netns, pod) = (Arc::clone(&one.netns), one.pod.clone());
        let audit = Audit::new(whose.audited);
        let site = self.site(&netns, &room, &whose, &audit);
        let site = Arc::new(ArcSwap::from_pointee(site));
        let ways = ArcSwap::from_pointee(one.ways.clone());
        let limits = one.limits.clone();
        let destroyer = enrol::destroyer(&netns)
            .inspect_err(|error| eprintln!("interceptor: warning: {error}"))
            .ok();
        let (listeners, following) = one.follow(Arc::clone(&self.kernel));
        let (serving, failing) = (Arc::clone(&site), Arc::clone(&self.rooms));
        let doors = listeners.spawn(
            Arc::new(move |accepted| conn::take_in(accepted, &serving.load())),
            Arc::new(move || failing.accept_failed()),
        );
        let covered = Arc::new(CoveredNamespace {
            netns,
            pod,
            doors,
            ways,
            limits,
            room,
            site,
            whose: ArcSwap::from_pointee(whose),
            audit,
            destroyer,
            following: Mutex::new(Some(following)),
        });
        self.covered.add(Arc::clone(&covered));
        covered
    }

    fn site(&self, netns: &Arc<NetNs>, room: &Arc<Room>, whose: &Whose, audit: &Audit) -> Site {
        let policy = &whose.tenant.rules.policy;
        let snapshot = policy.current();
        let outbound = Outbound::new(Arc::clone(policy) as _).of(Arc::clone(&whose.workload));
        let outbound = match &self.tunnels {
            Some(shared) => outbound.by(Arc::clone(shared)),
            None => outbound,
        };
        Site {
            policy: Arc::clone(policy),
            dialer: Dialer {
                netns: Arc::clone(netns),
                resolver: Arc::clone(&self.resolver),
                connect_timeout: snapshot.connect_timeout,
                enforcement: snapshot.enforcement,
                own: None,
            },
            outbound: Arc::new(outbound),
            log: self.log.clone(),
            workload: Arc::clone(&whose.workload),
            audit: audit.clone(),
            room: Arc::clone(room),
            folds: Arc::clone(&self.folds),
            entrance: Entrance::Turned(Captured {
                kernel: Arc::clone(&self.kernel),
                tiers: Arc::clone(&whose.tenant.sync),
            }),
            drain: self.drainer.subscribe(),
        }
    }

    /// Covers a namespace while everything runs. Until it is entered, nothing leaves it.
    ///
    /// # Errors
    /// A table is full, or an interface cannot be covered; it is not covered then.
    pub(super) async fn cover(&self, one: Enrolled, whose: Whose) -> io::Result<()> {
        let key = one.key();
        let entry = whose.entry(one.listeners.addresses());
        // Known, with its routes, and served from the last step on.
        one.enter(Namespace::default(), &mut self.kernel.tables()).map_err(io::Error::other)?;
        self.open(one, whose);
        if let Err(error) = enrol::set_gates(self).await {
            self.withdraw(key).await;
            return Err(error);
        }
        self.kernel.tables().cover(key, entry).map_err(io::Error::other)
    }

    /// Gives a covered namespace other rules, another name or another mode, from its next connection on.
    ///
    /// # Errors
    /// [`TableError`]; what held goes on holding.
    pub(super) fn change(
        &self,
        covered: &CoveredNamespace,
        whose: Whose,
    ) -> Result<(), TableError> {
        let entry = whose.entry(covered.doors.addresses());
        self.kernel.tables().cover(covered.key(), entry)?;
        covered.audit.set(whose.audited);
        let site = self.site(&covered.netns, &covered.room, &whose, &covered.audit);
        covered.site.store(Arc::new(site));
        covered.whose.store(Arc::new(whose));
        Ok(())
    }

    /// Ends the cover of a namespace: its listeners, its rows and the interface layer go, and nothing
    /// leaves it any more, unless it is made exempt. A pod of the node's own passes from then on as the node does.
    pub(super) async fn withdraw(&self, key: u64) {
        let Some(covered) = self.covered.remove(key) else { return };
        covered.stop_following().await;
        let mut forgotten = self.kernel.tables().forget_namespace(key);
        let netns = covered.netns.cookie();
        let shared = self.covered.all().values().any(|other| other.netns.cookie() == netns);
        if covered.pod.is_some() && !shared {
            let routes = self.kernel.tables().set_routes(netns, &[]);
            forgotten = forgotten.and(routes);
        }
        if let Err(error) = forgotten {
            tracing::warn!("namespace {}: {error}", covered.netns.label());
        }
        covered.doors.shut().await;
        if let Err(error) = enrol::set_gates(self).await {
            tracing::warn!("interfaces: {error}");
        }
    }
}
