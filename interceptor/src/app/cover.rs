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

impl Running {
    /// Serves a namespace that is in the kernel's tables.
    pub(super) fn open(&self, one: Enrolled, whose: Whose) -> Arc<CoveredNamespace> {
        let room = Room::new(Arc::clone(&self.rooms), Arc::clone(&self.policy));
        let netns = Arc::clone(&one.netns);
        let site = self.site(&netns, &room, &whose);
        let site = Arc::new(ArcSwap::from_pointee(site));
        let ways = ArcSwap::from_pointee(one.ways.clone());
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
            doors,
            ways,
            room,
            site,
            whose: ArcSwap::from_pointee(whose),
            destroyer,
            following: Mutex::new(Some(following)),
        });
        self.covered.add(Arc::clone(&covered));
        covered
    }

    fn site(&self, netns: &Arc<NetNs>, room: &Arc<Room>, whose: &Whose) -> Site {
        let policy = &whose.tenant.rules.policy;
        let snapshot = policy.current();
        Site {
            policy: Arc::clone(policy),
            dialer: Dialer {
                netns: Arc::clone(netns),
                resolver: Arc::clone(&self.resolver),
                connect_timeout: snapshot.connect_timeout,
                enforcement: snapshot.enforcement,
                own: None,
            },
            outbound: Arc::new(
                Outbound::new(Arc::clone(policy) as _).of(Arc::clone(&whose.workload)),
            ),
            log: self.log.clone(),
            workload: Arc::clone(&whose.workload),
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
        let cookie = one.netns.cookie();
        let rules = Arc::clone(&whose.tenant.rules);
        let entry = rules.entry(one.listeners.addresses(), &rules.policy.current());
        // Known, with its routes, and served from the last step on.
        one.enter(Namespace::default(), &mut self.kernel.tables()).map_err(io::Error::other)?;
        self.open(one, whose);
        if let Err(error) = enrol::set_gates(self).await {
            self.withdraw(cookie).await;
            return Err(error);
        }
        self.kernel.tables().cover(cookie, entry).map_err(io::Error::other)
    }

    /// Gives a covered namespace other rules, or another name, from its next connection on.
    ///
    /// # Errors
    /// [`TableError`]; what held goes on holding in the kernel.
    pub(super) fn change(
        &self,
        covered: &CoveredNamespace,
        whose: Whose,
    ) -> Result<(), TableError> {
        let rules = &whose.tenant.rules;
        let entry = rules.entry(covered.doors.addresses(), &rules.policy.current());
        covered.site.store(Arc::new(self.site(&covered.netns, &covered.room, &whose)));
        covered.whose.store(Arc::new(whose.clone()));
        self.kernel.tables().cover(covered.netns.cookie(), entry)
    }

    /// Ends the cover of a namespace: its listeners, its rows and the interface layer go, and nothing
    /// leaves it any more, unless it is made exempt.
    pub(super) async fn withdraw(&self, cookie: u64) {
        let Some(covered) = self.covered.remove(cookie) else { return };
        covered.stop_following().await;
        if let Err(error) = self.kernel.tables().forget_namespace(cookie) {
            tracing::warn!("namespace {}: {error}", covered.netns.label());
        }
        covered.doors.shut().await;
        if let Err(error) = enrol::set_gates(self).await {
            tracing::warn!("interfaces: {error}");
        }
    }
}
