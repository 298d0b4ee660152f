//! The policy of every workload that nodes may speak for: read once, compiled for each of them.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use super::nodes::{Entry, Nodes};
use crate::account::{AccessLog, Folds};
use crate::act::carrier::Outbound;
use crate::act::dial::Dialer;
use crate::admit::{Room, Rooms};
use crate::conn::{Entrance, Site};
use crate::drain::Drain;
use crate::netns::NetNs;
use crate::policy::{Caller, Checked, Enforcement, Snapshot, Store};
use crate::resolve::Resolver;
use crate::workloads::{Audit, Workload};

/// What all connections of a gateway share.
#[derive(Debug, Clone)]
pub struct Shared {
    /// Where it dials from: its own namespace.
    pub netns: Arc<NetNs>,
    /// Whom it asks for names.
    pub resolver: Arc<Resolver>,
    /// Where lines go.
    pub log: AccessLog,
    /// Refusals that repeat.
    pub folds: Arc<Folds>,
    /// Room for connections.
    pub rooms: Arc<Rooms>,
    /// When connections end.
    pub drain: Drain,
}

/// Policies and the state of who is under them.
pub struct Policies {
    shared: Shared,
    checked: Checked,
    generation: u64,
    profile: Enforcement,
    stores: BTreeMap<Caller, Arc<Store>>,
    sites: HashMap<Arc<Entry>, Site>,
}

impl Policies {
    /// Compiles `checked` for everybody in `nodes`.
    pub fn new(shared: Shared, checked: Checked, nodes: &Nodes) -> Self {
        let (stores, sites) = (BTreeMap::new(), HashMap::new());
        let profile = checked.compile(&Caller::new("default")).snapshot.enforcement;
        let mut policies = Self { shared, checked, generation: 1, profile, stores, sites };
        policies.follow(nodes);
        policies
    }

    /// Puts a changed set of resources in force, for new connections and for requests of open ones.
    pub fn replace(&mut self, checked: Checked) -> u64 {
        self.profile = checked.compile(&Caller::new("default")).snapshot.enforcement;
        self.checked = checked;
        self.generation += 1;
        for (caller, store) in &self.stores {
            store.replace(self.compiled(caller));
        }
        self.generation
    }

    /// Follows a changed table. Who stays in it keeps its state; what is open goes on.
    pub fn follow(&mut self, nodes: &Nodes) {
        let mut sites = HashMap::new();
        let mut stores = BTreeMap::new();
        for entry in nodes.entries() {
            let caller = entry.caller();
            let known = self.stores.get(&caller).or_else(|| stores.get(&caller)).cloned();
            let store = known.unwrap_or_else(|| Arc::new(Store::new(self.compiled(&caller))));
            let site = match self.sites.get(entry) {
                Some(site) => site.clone(),
                None => self.site(entry, &store),
            };
            stores.insert(caller, store);
            sites.insert(Arc::clone(entry), site);
        }
        (self.stores, self.sites) = (stores, sites);
    }

    /// What the connections of an entry's workloads are served by.
    pub(super) fn of(&self, entry: &Arc<Entry>) -> Option<Site> {
        self.sites.get(entry).cloned()
    }

    /// What all connections are served by.
    pub fn sites(&self) -> Vec<Site> {
        self.sites.values().cloned().collect()
    }

    /// The policy of who is nobody in particular: profile, mode, limits.
    pub fn general(&self) -> Snapshot {
        self.compiled(&Caller::new("default"))
    }

    /// The profile in force.
    pub(super) fn enforcement(&self) -> Enforcement {
        self.profile
    }

    fn compiled(&self, caller: &Caller) -> Snapshot {
        let snapshot = self.checked.compile(caller).snapshot;
        Snapshot { generation: self.generation, ..snapshot }
    }

    fn site(&self, entry: &Entry, store: &Arc<Store>) -> Site {
        // Should it leave by another gateway, that one is told of the entry.
        let workload = Arc::new(Workload {
            namespace: entry.namespace.as_str().into(),
            name: entry.name.as_deref().unwrap_or("any").into(),
            service_account: entry.service_account.as_deref().unwrap_or_default().into(),
            labels: entry.labels.clone(),
            pod: None,
        });
        self.shared.site(workload, store, Entrance::Brought, None)
    }
}

impl Shared {
    /// What the connections of `workload` are served by; `own` is where the gateway itself is dialled.
    pub(super) fn site(
        &self,
        workload: Arc<Workload>,
        store: &Arc<Store>,
        entrance: Entrance,
        own: Option<IpAddr>,
    ) -> Site {
        let Self { netns, resolver, log, folds, rooms, drain } = self.clone();
        let snapshot = store.current();
        let outbound = Outbound::new(Arc::clone(store) as _).of(Arc::clone(&workload));
        Site {
            entrance,
            policy: Arc::clone(store),
            dialer: Dialer {
                netns,
                resolver,
                connect_timeout: snapshot.connect_timeout,
                enforcement: snapshot.enforcement,
                own,
            },
            outbound: Arc::new(outbound),
            log,
            workload,
            audit: Audit::default(),
            room: Room::new(rooms, Arc::clone(store)),
            folds,
            drain,
        }
    }
}
