//! The tables that the kernel programs read, as typed doors.

use std::collections::{BTreeMap, HashSet};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use aya::Ebpf;
use aya::maps::lpm_trie::{Key, LpmTrie};
use aya::maps::{Array, HashMap, MapData, MapError, PerCpuArray};
use interceptor_common::{
    Endpoint, EndpointKey, Finding, Handover, HandoverKey, Namespace, Permit, Route, RouteKey,
    Settings, capacity, maps,
};
use ipnet::IpNet;
use nix::time::{ClockId, clock_gettime};

use super::direct::{EndpointRow, endpoint_key};
use super::{KernelError, Pins, take_typed};

/// The kernel's tables.
pub struct Tables {
    settings: Array<MapData, Settings>,
    namespaces: HashMap<MapData, u64, Namespace>,
    routes: LpmTrie<MapData, RouteKey, Route>,
    bypass4: LpmTrie<MapData, [u8; 4], u32>,
    bypass6: LpmTrie<MapData, [u8; 16], u32>,
    datagrams: LpmTrie<MapData, EndpointKey, u32>,
    handovers: HashMap<MapData, HandoverKey, Handover>,
    kept: HashMap<MapData, u64, u32>,
    heartbeat: Array<MapData, u64>,
    counters: PerCpuArray<MapData, u64>,
}

/// A table that could not be changed or read.
#[derive(Debug, thiserror::Error)]
#[error("kernel table {table}: {source}")]
pub struct TableError {
    table: &'static str,
    source: MapError,
}

/// How full a table is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TableFill {
    /// Its name.
    pub name: &'static str,
    /// Entries in it.
    pub entries: usize,
    /// Entries that fit.
    pub capacity: usize,
}

pub(super) fn at(table: &'static str) -> impl Fn(MapError) -> TableError {
    move |source| TableError { table, source }
}

/// Whether what was to be removed was there.
pub(super) fn was_there(removed: Result<(), MapError>) -> Result<bool, MapError> {
    match removed {
        Ok(()) => Ok(true),
        Err(MapError::KeyNotFound) => Ok(false),
        Err(MapError::SyscallError(error))
            if error.io_error.raw_os_error() == Some(libc::ENOENT) =>
        {
            Ok(false)
        }
        Err(source) => Err(source),
    }
}

/// A route of a namespace, in user space's words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct RouteEntry {
    /// Destination.
    pub prefix: IpNet,
    /// What the kernel programs do with it.
    pub route: RouteKind,
}

/// Where a route leads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum RouteKind {
    /// Out, with this source address.
    Via(IpAddr),
    /// To an address of the namespace itself.
    Local,
    /// Nowhere: the namespace says unreachable.
    Unreachable,
    /// Nowhere, but where policy leads elsewhere: with this source address.
    ByPolicy(IpAddr),
}

/// The highest number of a policy that a namespace has by what an interceptor of this name left pinned;
/// 0: none has one.
pub fn last_policy(pins: &Pins) -> u16 {
    let pinned = MapData::from_pin(pins.maps().join(maps::NAMESPACES));
    let table =
        pinned.map(aya::maps::Map::HashMap).and_then(HashMap::<_, u64, Namespace>::try_from);
    let Ok(table) = table else { return 0 };
    let most = capacity::NAMESPACES as usize;
    let policies = table.iter().take(most).filter_map(Result::ok);
    policies.map(|(_, namespace)| namespace.policy).max().unwrap_or(0)
}

impl Tables {
    pub(super) fn take(ebpf: &mut Ebpf) -> Result<Self, KernelError> {
        Ok(Self {
            settings: take_typed(ebpf, maps::SETTINGS)?,
            namespaces: take_typed(ebpf, maps::NAMESPACES)?,
            routes: take_typed(ebpf, maps::ROUTES)?,
            bypass4: take_typed(ebpf, maps::BYPASS4)?,
            bypass6: take_typed(ebpf, maps::BYPASS6)?,
            datagrams: take_typed(ebpf, maps::DATAGRAMS)?,
            handovers: take_typed(ebpf, maps::HANDOVERS)?,
            kept: take_typed(ebpf, maps::KEPT)?,
            heartbeat: take_typed(ebpf, maps::HEARTBEAT)?,
            counters: take_typed(ebpf, maps::COUNTERS)?,
        })
    }

    /// Replaces the settings.
    ///
    /// # Errors
    /// [`TableError`].
    pub fn set_settings(&mut self, settings: Settings) -> Result<(), TableError> {
        self.settings.set(0, settings, 0).map_err(at(maps::SETTINGS))
    }

    /// A sign of life of the daemon.
    ///
    /// # Errors
    /// [`TableError`].
    pub fn beat(&mut self) -> Result<(), TableError> {
        // CLOCK_MONOTONIC cannot fail; were there no time, it would be long ago.
        let now = clock_gettime(ClockId::CLOCK_MONOTONIC).map_or(Duration::ZERO, Duration::from);
        let nanoseconds = u64::try_from(now.as_nanos()).unwrap_or(u64::MAX);
        self.heartbeat.set(0, nanoseconds, 0).map_err(at(maps::HEARTBEAT))
    }

    /// Lets a connection from before the attach go on.
    ///
    /// # Errors
    /// [`TableError`]; the table is full.
    pub fn keep(&mut self, socket: u64) -> Result<(), TableError> {
        self.kept.insert(socket, 1, 0).map_err(at(maps::KEPT))
    }

    /// Whether [`Self::keep`] was told of it.
    pub fn is_kept(&self, socket: u64) -> bool {
        self.kept.get(&socket, 0).is_ok()
    }

    /// Every connection that [`Self::keep`] was told of.
    pub fn kept(&self) -> HashSet<u64> {
        self.kept.keys().filter_map(Result::ok).collect()
    }

    /// Lets a connection go on no longer.
    ///
    /// # Errors
    /// [`TableError`].
    pub fn unkeep(&mut self, socket: u64) -> Result<(), TableError> {
        was_there(self.kept.remove(&socket)).map(drop).map_err(at(maps::KEPT))
    }

    /// Whether packets to this address stay inside the namespace: what connect would call loopback.
    pub fn stays_inside(&self, cookie: u64, ip: IpAddr) -> bool {
        if ip.is_loopback() {
            return true;
        }
        let key = route_row(cookie, &RouteEntry { prefix: ip.into(), route: RouteKind::Local }).0;
        self.routes.get(&key, 0).is_ok_and(|route| route.kind == Route::LOCAL)
    }

    /// Covers a namespace, or changes what is known of it.
    ///
    /// # Errors
    /// [`TableError`]; the table is full.
    pub fn cover(&mut self, cookie: u64, namespace: Namespace) -> Result<(), TableError> {
        self.namespaces.insert(cookie, namespace, 0).map_err(at(maps::NAMESPACES))
    }

    /// What is known of a namespace.
    pub fn namespace(&self, cookie: u64) -> Option<Namespace> {
        self.namespaces.get(&cookie, 0).ok()
    }

    /// What is known of each namespace.
    pub fn namespaces(&self) -> Vec<(u64, Namespace)> {
        let most = capacity::NAMESPACES as usize;
        self.namespaces.iter().take(most).filter_map(Result::ok).collect()
    }

    /// Forgets a namespace, with its routes: nothing leaves it any more.
    ///
    /// # Errors
    /// [`TableError`].
    pub fn forget_namespace(&mut self, cookie: u64) -> Result<(), TableError> {
        was_there(self.namespaces.remove(&cookie)).map_err(at(maps::NAMESPACES))?;
        self.set_routes(cookie, &[])
    }

    /// Removes every namespace but `kept` (an earlier run's leftovers), with its routes.
    ///
    /// # Errors
    /// [`TableError`].
    pub fn keep_namespaces(&mut self, kept: &[u64]) -> Result<(), TableError> {
        let covered: Vec<u64> =
            self.namespaces.keys().collect::<Result<_, _>>().map_err(at(maps::NAMESPACES))?;
        for cookie in covered.into_iter().filter(|cookie| !kept.contains(cookie)) {
            self.forget_namespace(cookie)?;
        }
        Ok(())
    }

    /// Makes `wanted` the routes of a namespace: new ones go in before old ones go out.
    ///
    /// # Errors
    /// [`TableError`]; the table is full.
    pub fn set_routes(&mut self, cookie: u64, wanted: &[RouteEntry]) -> Result<(), TableError> {
        let mut keep = HashSet::new();
        for entry in wanted {
            let (key, value) = route_row(cookie, entry);
            self.routes.insert(&key, value, 0).map_err(at(maps::ROUTES))?;
            keep.insert(route_identity(&key));
        }
        let stale: Vec<Key<RouteKey>> = self
            .routes
            .keys()
            .filter_map(Result::ok)
            .filter(|key| {
                let (prefix_len, data) = route_identity(key);
                data.netns() == cookie && !keep.contains(&(prefix_len, data))
            })
            .collect();
        for key in stale {
            self.routes.remove(&key).map_err(at(maps::ROUTES))?;
        }
        Ok(())
    }

    /// Lets a prefix go direct from the next connect on.
    ///
    /// # Errors
    /// [`TableError`]; the table is full.
    pub fn bypass_add(&mut self, prefix: IpNet) -> Result<(), TableError> {
        match prefix {
            IpNet::V4(net) => {
                let key = Key::new(net.prefix_len().into(), net.network().octets());
                self.bypass4.insert(&key, 1, 0).map_err(at(maps::BYPASS4))
            }
            IpNet::V6(net) => {
                let key = Key::new(net.prefix_len().into(), net.network().octets());
                self.bypass6.insert(&key, 1, 0).map_err(at(maps::BYPASS6))
            }
        }
    }

    /// Ends a prefix's bypass for every later connect. False: it was not there.
    ///
    /// # Errors
    /// [`TableError`].
    pub fn bypass_del(&mut self, prefix: IpNet) -> Result<bool, TableError> {
        let (table, result) = match prefix {
            IpNet::V4(net) => {
                let key = Key::new(net.prefix_len().into(), net.network().octets());
                (maps::BYPASS4, self.bypass4.remove(&key))
            }
            IpNet::V6(net) => {
                let key = Key::new(net.prefix_len().into(), net.network().octets());
                (maps::BYPASS6, self.bypass6.remove(&key))
            }
        };
        was_there(result).map_err(at(table))
    }

    /// The prefixes that go direct, sorted.
    pub fn bypass_list(&self) -> Vec<IpNet> {
        let v4 = self
            .bypass4
            .keys()
            .filter_map(Result::ok)
            .map(|key| (IpAddr::from(key.data()), key.prefix_len()));
        let v6 = self
            .bypass6
            .keys()
            .filter_map(Result::ok)
            .map(|key| (IpAddr::from(key.data()), key.prefix_len()));
        let mut list: Vec<IpNet> =
            v4.chain(v6).filter_map(|(addr, len)| IpNet::new(addr, len as u8).ok()).collect();
        list.sort();
        list
    }

    /// Makes `prefixes` the whole bypass list.
    ///
    /// # Errors
    /// [`TableError`].
    pub fn set_bypass(&mut self, prefixes: &[IpNet]) -> Result<(), TableError> {
        for stale in self.bypass_list().into_iter().filter(|old| !prefixes.contains(old)) {
            self.bypass_del(stale)?;
        }
        prefixes.iter().try_for_each(|prefix| self.bypass_add(*prefix))
    }

    /// Makes `resolvers` and `allowed` the whole list of a policy's datagram destinations.
    ///
    /// # Errors
    /// [`TableError`]; the table is full.
    pub fn set_datagrams(
        &mut self,
        policy: u16,
        resolvers: &[SocketAddr],
        allowed: &[(IpNet, u16)],
    ) -> Result<(), TableError> {
        let entries = allowed.iter().map(|(prefix, port)| (*prefix, *port, Permit::Entry));
        // Last, so that a resolver stays one where an entry covers it too.
        let resolvers = resolvers.iter().map(|resolver| {
            (IpNet::from(resolver.ip().to_canonical()), resolver.port(), Permit::Resolver)
        });
        let wanted: BTreeMap<_, _> =
            entries.chain(resolvers).map(|(net, port, permit)| ((net, port), permit)).collect();
        let mut kept = HashSet::with_capacity(wanted.len());
        for ((net, port), permit) in wanted {
            let key = endpoint_key(EndpointRow { policy, port, network: net });
            self.datagrams.insert(&key, permit as u32, 0).map_err(at(maps::DATAGRAMS))?;
            kept.insert((key.prefix_len(), key.data()));
        }
        // Only now, so that what stays allowed is so all the time.
        let present: Vec<_> = self.datagrams.keys().filter_map(Result::ok).collect();
        for key in present {
            if key.data().policy() == policy && !kept.contains(&(key.prefix_len(), key.data())) {
                self.datagrams.remove(&key).map_err(at(maps::DATAGRAMS))?;
            }
        }
        Ok(())
    }

    /// Removes the datagram destinations of every policy but these.
    ///
    /// # Errors
    /// [`TableError`].
    pub fn keep_datagrams(&mut self, policies: &[u16]) -> Result<(), TableError> {
        let present: Vec<_> = self.datagrams.keys().filter_map(Result::ok).collect();
        for key in present.iter().filter(|key| !policies.contains(&key.data().policy())) {
            self.datagrams.remove(key).map_err(at(maps::DATAGRAMS))?;
        }
        Ok(())
    }

    /// Counts by finding since the maps were made.
    pub fn counters(&self) -> BTreeMap<&'static str, u64> {
        Finding::ALL
            .iter()
            .map(|&finding| {
                let cpus = self.counters.get(&(finding as u32), 0);
                (finding.label(), cpus.map_or(0, |cpus| cpus.iter().sum()))
            })
            .collect()
    }

    /// How full the tables are.
    pub fn fill(&self) -> Vec<TableFill> {
        fn fill(name: &'static str, entries: usize, capacity: u32) -> TableFill {
            TableFill { name, entries, capacity: capacity as usize }
        }
        vec![
            fill(
                maps::NAMESPACES,
                self.namespaces.keys().take(capacity::NAMESPACES as usize).count(),
                capacity::NAMESPACES,
            ),
            fill(
                maps::ROUTES,
                self.routes.keys().take(capacity::ROUTES as usize).count(),
                capacity::ROUTES,
            ),
            fill(
                maps::BYPASS4,
                self.bypass4.keys().take(capacity::BYPASS as usize).count(),
                capacity::BYPASS,
            ),
            fill(
                maps::BYPASS6,
                self.bypass6.keys().take(capacity::BYPASS as usize).count(),
                capacity::BYPASS,
            ),
            fill(
                maps::DATAGRAMS,
                self.datagrams.keys().take(capacity::DATAGRAMS as usize).count(),
                capacity::DATAGRAMS,
            ),
            fill(
                maps::KEPT,
                self.kept.keys().take(capacity::KEPT as usize).count(),
                capacity::KEPT,
            ),
            fill(
                maps::HANDOVERS,
                self.handovers.keys().take(capacity::HANDOVERS as usize).count(),
                capacity::HANDOVERS,
            ),
        ]
    }
}

fn route_row(cookie: u64, entry: &RouteEntry) -> (Key<RouteKey>, Route) {
    let bits = RouteKey::FIXED_BITS + u32::from(entry.prefix.prefix_len());
    let key = match entry.prefix {
        IpNet::V4(net) => Key::new(bits, RouteKey::v4(cookie, net.network().octets())),
        IpNet::V6(net) => Key::new(bits, RouteKey::v6(cookie, net.network().octets())),
    };
    let mapped = |ip: IpAddr| match ip {
        IpAddr::V4(v4) => Endpoint::v4(v4.octets(), 0).addr(),
        IpAddr::V6(v6) => v6.octets(),
    };
    let value = match entry.route {
        RouteKind::Via(src) => Route { src: mapped(src), kind: Route::VIA, pad: [0; 3] },
        RouteKind::Local => {
            Route { src: mapped(entry.prefix.addr()), kind: Route::LOCAL, pad: [0; 3] }
        }
        RouteKind::Unreachable => Route { src: [0; 16], kind: Route::UNREACHABLE, pad: [0; 3] },
        RouteKind::ByPolicy(src) => Route { src: mapped(src), kind: Route::BY_POLICY, pad: [0; 3] },
    };
    (key, value)
}

fn route_identity(key: &Key<RouteKey>) -> (u32, RouteKey) {
    (key.prefix_len(), key.data())
}
