//! The tables of what goes direct, as typed doors: destinations, names, and connections that have not
//! shown their name yet.

use std::collections::{BTreeSet, HashSet};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use aya::Ebpf;
use aya::maps::lpm_trie::{Key, LpmTrie};
use aya::maps::{HashMap, MapData};
use interceptor_common::{
    CUT, EndpointKey, EndpointRule, EndpointVerdict, Label, NameKey, Pending, Proof, ShownName,
    SocketState, Tier, capacity, maps,
};
use ipnet::IpNet;
use nix::time::{ClockId, clock_gettime};

use super::events::{read, shown, socket_addr};
use super::tables::{TableError, TableFill, at, was_there};
use super::{KernelError, take_typed};

/// The tables of what goes direct.
pub struct DirectTables {
    endpoints: LpmTrie<MapData, EndpointKey, EndpointRule>,
    names: LpmTrie<MapData, NameKey, Label>,
    pending: HashMap<MapData, u64, Pending>,
}

/// A row of the table of destinations: one policy's port and network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct EndpointRow {
    /// Whose.
    pub policy: u16,
    /// [`EndpointKey::ANY_PORT`]: every port without a row of its own.
    pub port: u16,
    /// Of the longest that holds an address, the row counts.
    pub network: IpNet,
}

/// A row of the table of names: a name of a set, or (`below`) the names below it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct NameRow<'a> {
    /// The set.
    pub set: u16,
    /// A host name in normal form.
    pub name: &'a str,
    /// Those below it, instead of itself.
    pub below: bool,
}

/// Rows that a predecessor wrote: they hold until they are replaced or forgotten.
pub struct Inherited {
    endpoints: Vec<(Key<EndpointKey>, EndpointRule)>,
    names: Vec<Key<NameKey>>,
    sets: BTreeSet<u16>,
}

impl Inherited {
    /// The numbers of the sets of names among them.
    pub fn sets(&self) -> &BTreeSet<u16> {
        &self.sets
    }

    fn leave_out(&mut self, ours: impl Iterator<Item = EndpointRow>) {
        let ours: HashSet<_> = ours.map(|row| identity(&endpoint_key(row))).collect();
        self.endpoints.retain(|(key, _)| !ours.contains(&identity(key)));
    }
}

fn identity(key: &Key<EndpointKey>) -> (u32, EndpointKey) {
    (key.prefix_len(), key.data())
}

/// A direct connection that has not shown its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PendingFlow {
    /// Its socket.
    pub socket: SocketId,
    /// Since the connect.
    pub age: Duration,
    /// What it sent was refused: it only waits to be destroyed.
    pub refused: bool,
    /// What it sent is held.
    pub held: Held,
}

/// Whether a part of a hello is held back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Held {
    /// Nothing was sent yet.
    Nothing,
    /// A part, until the rest joins it.
    Part,
    /// A part that the rest cannot join: TCP makes no longer packet there.
    Cut,
}

/// A workload's socket, so that it can be told from every other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SocketId {
    /// Cookie of its network namespace.
    pub netns: u64,
    /// Its own cookie: never another socket's while the machine runs.
    pub cookie: u64,
    /// The workload's end.
    pub src: SocketAddr,
    /// The other.
    pub dst: SocketAddr,
}

/// An open connection that went direct by policy, and showed its name if it owed one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DirectFlow {
    /// The address dialled.
    pub dst: SocketAddr,
    /// The number of its label; 0: none.
    pub label: u32,
    /// The name that it showed, where the label does not tell it.
    pub name: Option<String>,
}

impl DirectFlow {
    /// What a socket's storage in [`super::Kernel::socket_storage`] tells; `None`: it is no such
    /// connection.
    pub fn of(storage: &[Vec<u8>]) -> Option<Self> {
        let of_size = |size: usize| storage.iter().find(|value| value.len() == size);
        let state = socket_state(storage)?;
        let direct = [Tier::Direct as u8, Tier::Named as u8].contains(&state.tier);
        let judged = [Proof::Done as u8, Proof::Noticed as u8].contains(&state.proof);
        let name = || shown(&read::<ShownName>(of_size(size_of::<ShownName>())?)?);
        (direct && judged).then(|| Self {
            dst: socket_addr(&state.dst),
            label: state.label,
            name: (state.name_kept != 0).then(name).flatten(),
        })
    }
}

/// What the hooks keep in a socket, from its storage in [`super::Kernel::socket_storage`]; `None`: no
/// hook had to do with it.
pub fn socket_state(storage: &[Vec<u8>]) -> Option<SocketState> {
    read(storage.iter().find(|value| value.len() == size_of::<SocketState>())?)
}

/// What the kernel programs take for the time.
pub(super) fn monotonic() -> Duration {
    clock_gettime(ClockId::CLOCK_MONOTONIC).map_or(Duration::ZERO, Duration::from)
}

impl DirectTables {
    pub(super) fn take(ebpf: &mut Ebpf) -> Result<Self, KernelError> {
        Ok(Self {
            endpoints: take_typed(ebpf, maps::ENDPOINTS)?,
            names: take_typed(ebpf, maps::NAMES)?,
            pending: take_typed(ebpf, maps::PENDING)?,
        })
    }

    /// Removes every destination, then every name: everything is the proxy's.
    ///
    /// # Errors
    /// [`TableError`].
    pub fn clear(&mut self) -> Result<(), TableError> {
        let endpoints: Vec<_> = self.endpoints.keys().filter_map(Result::ok).collect();
        for key in endpoints {
            self.endpoints.remove(&key).map_err(at(maps::ENDPOINTS))?;
        }
        let names: Vec<_> = self.names.keys().filter_map(Result::ok).collect();
        for key in names {
            self.names.remove(&key).map_err(at(maps::NAMES))?;
        }
        Ok(())
    }

    /// Removes every destination of one policy.
    ///
    /// # Errors
    /// [`TableError`].
    pub fn clear_policy(&mut self, policy: u16) -> Result<(), TableError> {
        let rows = self.endpoints.keys().filter_map(Result::ok);
        let rows: Vec<_> = rows.filter(|key| key.data().policy() == policy).collect();
        for key in rows {
            was_there(self.endpoints.remove(&key)).map_err(at(maps::ENDPOINTS))?;
        }
        Ok(())
    }

    /// Sets what is done with a destination.
    ///
    /// # Errors
    /// [`TableError`]; the table is full.
    pub fn set_endpoint(&mut self, row: EndpointRow, rule: EndpointRule) -> Result<(), TableError> {
        self.endpoints.insert(&endpoint_key(row), rule, 0).map_err(at(maps::ENDPOINTS))
    }

    /// Gives a destination back to the proxy, or to the wider row around it.
    ///
    /// # Errors
    /// [`TableError`].
    pub fn remove_endpoint(&mut self, row: EndpointRow) -> Result<(), TableError> {
        self.endpoints.remove(&endpoint_key(row)).map_err(at(maps::ENDPOINTS))
    }

    /// Adds a name to a set. False: no name is as long as that.
    ///
    /// # Errors
    /// [`TableError`]; the table is full.
    pub fn set_name(&mut self, row: NameRow<'_>, label: Label) -> Result<bool, TableError> {
        let Some((key, bits)) = NameKey::row(row.set, row.name, row.below) else {
            return Ok(false);
        };
        self.names.insert(&Key::new(bits, key), label, 0).map_err(at(maps::NAMES))?;
        Ok(true)
    }

    /// Takes a name out of a set.
    ///
    /// # Errors
    /// [`TableError`].
    pub fn remove_name(&mut self, row: NameRow<'_>) -> Result<(), TableError> {
        match NameKey::row(row.set, row.name, row.below) {
            Some((key, bits)) => self.names.remove(&Key::new(bits, key)).map_err(at(maps::NAMES)),
            None => Ok(()),
        }
    }

    /// What lies in the tables already.
    pub fn inherited(&self) -> Inherited {
        let endpoints = self.endpoints.iter().filter_map(Result::ok).collect();
        let names: Vec<_> = self.names.keys().filter_map(Result::ok).collect();
        let sets = names.iter().map(|key| key.data().set()).collect();
        Inherited { endpoints, names, sets }
    }

    /// Ends what was inherited for new connections, but for `ours`, which were written over it.
    /// Connections under way may still show the names that they were let go for.
    ///
    /// # Errors
    /// [`TableError`].
    pub fn retire(
        &mut self,
        inherited: &mut Inherited,
        ours: impl Iterator<Item = EndpointRow>,
    ) -> Result<(), TableError> {
        inherited.leave_out(ours);
        for (key, rule) in &inherited.endpoints {
            let verdict = EndpointVerdict::Proxy as u8;
            let retired = EndpointRule { verdict, label: 0, ..*rule };
            self.endpoints.insert(key, retired, 0).map_err(at(maps::ENDPOINTS))?;
        }
        Ok(())
    }

    /// Removes what was [retired](Self::retire), but for `ours`, which were written over it since.
    ///
    /// # Errors
    /// [`TableError`].
    pub fn forget(
        &mut self,
        mut inherited: Inherited,
        ours: impl Iterator<Item = EndpointRow>,
    ) -> Result<(), TableError> {
        inherited.leave_out(ours);
        for (key, _) in &inherited.endpoints {
            was_there(self.endpoints.remove(key)).map_err(at(maps::ENDPOINTS))?;
        }
        for key in &inherited.names {
            was_there(self.names.remove(key)).map_err(at(maps::NAMES))?;
        }
        Ok(())
    }

    /// The connections that have not shown their name yet, or showed one that was refused.
    pub fn pending(&self) -> Vec<PendingFlow> {
        let now = monotonic();
        let flow = |(cookie, pending): (u64, Pending)| PendingFlow {
            socket: SocketId {
                netns: pending.netns,
                cookie,
                src: socket_addr(&pending.src),
                dst: socket_addr(&pending.dst),
            },
            age: now.saturating_sub(Duration::from_nanos(pending.started_ns)),
            refused: pending.refused != 0,
            held: match pending.held {
                0 => Held::Nothing,
                held if held & CUT != 0 => Held::Cut,
                _ => Held::Part,
            },
        };
        // A walk over what changes meanwhile may begin anew again and again.
        let most = capacity::PENDING as usize;
        self.pending.iter().take(most).filter_map(Result::ok).map(flow).collect()
    }

    /// Forgets a connection whose socket is gone.
    pub fn forget_pending(&mut self, cookie: u64) {
        // Mostly it went with its socket.
        let _ = self.pending.remove(&cookie);
    }

    /// How full the tables are.
    pub fn fill(&self) -> Vec<TableFill> {
        let fill =
            |name, entries, capacity: u32| TableFill { name, entries, capacity: capacity as usize };
        vec![
            fill(
                maps::ENDPOINTS,
                self.endpoints.keys().take(capacity::ENDPOINTS as usize).count(),
                capacity::ENDPOINTS,
            ),
            fill(
                maps::NAMES,
                self.names.keys().take(capacity::NAMES as usize).count(),
                capacity::NAMES,
            ),
            fill(
                maps::PENDING,
                self.pending.keys().take(capacity::PENDING as usize).count(),
                capacity::PENDING,
            ),
        ]
    }
}

pub(super) fn endpoint_key(row: EndpointRow) -> Key<EndpointKey> {
    let bits = EndpointKey::FIXED_BITS + u32::from(row.network.prefix_len());
    let key = match row.network.network() {
        IpAddr::V4(ip) => EndpointKey::v4(row.policy, ip.octets(), row.port),
        IpAddr::V6(ip) => EndpointKey::v6(row.policy, ip.octets(), row.port),
    };
    Key::new(bits, key)
}
