//! Between accept and origin: whether there is room for one more connection (R8, T-49 to T-51).
//!
//! Room is counted for each workload, which is a covered network namespace, and for all together. A
//! connection holds its place until it ends, and a second one, of which there are fewer, while its
//! first bytes or the head of its next request are read: that is when it may cost memory without
//! having been judged.

use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::policy::{Limits, Store};
use crate::{descriptors, memory};

/// A limit that a connection was refused for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Full {
    /// Connections in total.
    Connections,
    /// Connections of one workload.
    WorkloadConnections,
    /// Connections in total that are not judged yet.
    Undecided,
    /// Connections of one workload that are not judged yet.
    WorkloadUndecided,
    /// The last file descriptors are the daemon's own.
    Descriptors,
}

impl Full {
    /// Every limit.
    pub const ALL: [Self; 5] = [
        Self::Connections,
        Self::WorkloadConnections,
        Self::Undecided,
        Self::WorkloadUndecided,
        Self::Descriptors,
    ];

    /// Its name in status, metrics and the access log.
    pub fn label(self) -> &'static str {
        match self {
            Self::Connections => "connections",
            Self::WorkloadConnections => "connections_per_workload",
            Self::Undecided => "undecided",
            Self::WorkloadUndecided => "undecided_per_workload",
            Self::Descriptors => "descriptors",
        }
    }
}

/// How full a limit is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Use {
    /// Which.
    pub limit: Full,
    /// Taken now; for a limit of each workload, by the one that has most.
    pub now: u64,
    /// The most that may be.
    pub most: u64,
    /// Refused for it so far.
    pub refused: u64,
}

/// The places of all workloads together.
#[derive(Debug, Default)]
pub struct Rooms {
    all: Places,
    /// Connections so far, refused ones included.
    total: AtomicU64,
    refused: [AtomicU64; Full::ALL.len()],
    accept_failures: AtomicU64,
}

/// Places that are taken.
#[derive(Debug, Default)]
struct Places {
    open: AtomicU64,
    undecided: AtomicU64,
}

/// The places of one workload.
#[derive(Debug)]
pub struct Room {
    rooms: Arc<Rooms>,
    own: Places,
    policy: Arc<Store>,
}

/// A connection that was let in. Its place is given back when this is dropped.
#[derive(Debug)]
pub struct Admitted {
    /// Its number.
    pub number: u64,
    _open: Open,
}

/// The place of an open connection.
#[derive(Debug)]
struct Open(Arc<Room>);

/// The place of a connection whose bytes are being read and not judged yet.
#[derive(Debug)]
pub struct Undecided(Arc<Room>);

impl Rooms {
    /// Connections that are open.
    pub fn active(&self) -> u64 {
        self.all.open.load(Ordering::Relaxed)
    }

    /// Connections so far.
    pub fn total(&self) -> u64 {
        self.total.load(Ordering::Relaxed)
    }

    /// Counts an accept that failed, mostly for want of a descriptor.
    pub fn accept_failed(&self) {
        self.accept_failures.fetch_add(1, Ordering::Relaxed);
    }

    /// Accepts that failed so far.
    pub fn accept_failures(&self) -> u64 {
        self.accept_failures.load(Ordering::Relaxed)
    }

    /// How full everything is; `workloads` are those of these rooms, `descriptors` how many are
    /// open.
    pub fn used<'r>(
        &self,
        limits: &Limits,
        workloads: impl Iterator<Item = &'r Arc<Room>> + Clone,
        descriptors: u64,
    ) -> [Use; Full::ALL.len()] {
        let fullest = |count: fn(&Places) -> &AtomicU64| {
            let counts = workloads.clone().map(|room| count(&room.own).load(Ordering::Relaxed));
            counts.max().unwrap_or(0)
        };
        let open: fn(&Places) -> &AtomicU64 = |places| &places.open;
        let undecided: fn(&Places) -> &AtomicU64 = |places| &places.undecided;
        Full::ALL.map(|limit| Use {
            limit,
            now: match limit {
                Full::Connections => self.active(),
                Full::WorkloadConnections => fullest(open),
                Full::Undecided => self.all.undecided.load(Ordering::Relaxed),
                Full::WorkloadUndecided => fullest(undecided),
                Full::Descriptors => descriptors,
            },
            most: most(limit, limits),
            refused: match limit {
                Full::Descriptors => descriptors::refusals(),
                other => self.refused[other as usize].load(Ordering::Relaxed),
            },
        })
    }

    fn refuse(&self, full: Full) -> Full {
        match full {
            Full::Descriptors => descriptors::refused(),
            other => drop(self.refused[other as usize].fetch_add(1, Ordering::Relaxed)),
        }
        full
    }
}

impl Room {
    /// A workload's, within `rooms`. Its limits are those of the newest policy.
    pub fn new(rooms: Arc<Rooms>, policy: Arc<Store>) -> Arc<Self> {
        Arc::new(Self { rooms, own: Places::default(), policy })
    }

    /// Lets a connection in that was just accepted, or says for which limit not.
    ///
    /// # Errors
    /// The limit that is reached. It is counted.
    pub fn admit(self: &Arc<Self>, accepted: impl AsFd) -> Result<Admitted, (u64, Full)> {
        let number = self.rooms.total.fetch_add(1, Ordering::Relaxed) + 1;
        let limits = self.policy.current().limits;
        let refuse = |full| (number, self.rooms.refuse(full));
        if descriptors::is_reserved(accepted) {
            return Err(refuse(Full::Descriptors));
        }
        // The narrower first: what one workload has too many is its own fault.
        let [own, all] = [Full::WorkloadConnections, Full::Connections];
        take([&self.own.open, &self.rooms.all.open], [own, all], &limits).map_err(refuse)?;
        Ok(Admitted { number, _open: Open(Arc::clone(self)) })
    }

    /// A place for a connection of which something is read before it is judged, to be given back
    /// then.
    ///
    /// # Errors
    /// The limit that is reached. It is counted.
    pub fn undecided(self: &Arc<Self>) -> Result<Undecided, Full> {
        let [own, all] = [Full::WorkloadUndecided, Full::Undecided];
        let limits = self.policy.current().limits;
        take([&self.own.undecided, &self.rooms.all.undecided], [own, all], &limits)
            .map_err(|full| self.rooms.refuse(full))?;
        Ok(Undecided(Arc::clone(self)))
    }
}

/// One place of each count, or none: never more than the limits, however many ask at once.
fn take(counts: [&AtomicU64; 2], limits: [Full; 2], set: &Limits) -> Result<(), Full> {
    for (at, (count, limit)) in counts.iter().zip(limits).enumerate() {
        if count.fetch_add(1, Ordering::Relaxed) >= most(limit, set) {
            for taken in &counts[..=at] {
                taken.fetch_sub(1, Ordering::Relaxed);
            }
            return Err(limit);
        }
    }
    Ok(())
}

/// What a limit is now.
fn most(limit: Full, set: &Limits) -> u64 {
    let descriptors = descriptors::for_connections();
    match limit {
        Full::Connections => set.connections(descriptors),
        Full::WorkloadConnections => set.connections_per_workload(descriptors),
        Full::Undecided => set.undecided,
        Full::WorkloadUndecided => set.undecided_per_workload,
        Full::Descriptors => descriptors,
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        for places in [&self.0.own, &self.0.rooms.all] {
            places.open.fetch_sub(1, Ordering::Relaxed);
        }
        memory::spent();
    }
}

impl Drop for Undecided {
    fn drop(&mut self) {
        for places in [&self.0.own, &self.0.rooms.all] {
            places.undecided.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;

    use super::*;
    use crate::policy::Snapshot;

    fn rooms(limits: Limits) -> (Arc<Rooms>, [Arc<Room>; 2]) {
        let snapshot = Snapshot { limits, ..Snapshot::nothing() };
        let (rooms, policy) = (Arc::new(Rooms::default()), Arc::new(Store::new(snapshot)));
        let room = || Room::new(Arc::clone(&rooms), Arc::clone(&policy));
        let two = [room(), room()];
        (rooms, two)
    }

    fn full(result: Result<Admitted, (u64, Full)>) -> Full {
        result.expect_err("refused").1
    }

    /// T-49: what one workload takes too much is refused to it alone; places come back.
    #[test]
    fn t49_each_workload_has_its_own_cap_and_all_have_one_together() {
        let limits =
            Limits { connections: Some(5), connections_per_workload: Some(3), ..Limits::default() };
        let (rooms, [one, other]) = rooms(limits);
        let any = UdpSocket::bind("127.0.0.1:0").expect("a socket");
        let mut held: Vec<_> = (0..3).map(|_| one.admit(&any).expect("room")).collect();
        assert_eq!(full(one.admit(&any)), Full::WorkloadConnections);
        held.extend((0..2).map(|_| other.admit(&any).expect("room")));
        assert_eq!(full(other.admit(&any)), Full::Connections);
        assert_eq!((rooms.active(), rooms.total()), (5, 7));
        held.remove(0);
        held.push(other.admit(&any).expect("the place that came back"));
        let used = rooms.used(&limits, [&one, &other].into_iter(), 9);
        let row = |limit: Full| used[limit as usize];
        let refused = |limit: Full| (row(limit).now, row(limit).most, row(limit).refused);
        assert_eq!(refused(Full::WorkloadConnections), (3, 3, 1));
        assert_eq!(refused(Full::Connections), (5, 5, 1));
        assert_eq!(row(Full::Descriptors).now, 9);
        drop(held);
        assert_eq!(rooms.active(), 0);
    }

    /// T-49, T-51: those that are not judged have fewer places, which judging gives back.
    #[test]
    fn t49_undecided_connections_have_places_of_their_own() {
        let limits = Limits { undecided: 3, undecided_per_workload: 2, ..Limits::default() };
        let (rooms, [one, other]) = rooms(limits);
        let mut held: Vec<_> = (0..2).map(|_| one.undecided().expect("a place")).collect();
        assert_eq!(one.undecided().err(), Some(Full::WorkloadUndecided));
        held.push(other.undecided().expect("a place"));
        assert_eq!(other.undecided().err(), Some(Full::Undecided));
        let used = |limit: Full| rooms.used(&limits, [&one].into_iter(), 0)[limit as usize];
        assert_eq!((used(Full::Undecided).now, used(Full::Undecided).refused), (3, 1));
        held.remove(0);
        held.push(one.undecided().expect("the place that came back"));
        assert!(one.undecided().is_err());
        drop(held);
        assert_eq!(used(Full::Undecided).now, 0);
        assert_eq!(used(Full::WorkloadUndecided).refused, 2);
    }

    /// However many ask at once, there are never more than the limit.
    #[test]
    fn t49_a_cap_holds_against_many_at_once() {
        let limits = Limits { connections_per_workload: Some(10), ..Limits::default() };
        let (_, [one, _]) = rooms(limits);
        let any = UdpSocket::bind("127.0.0.1:0").expect("a socket");
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for _ in 0..2_000 {
                        let held = one.admit(&any);
                        assert!(one.own.open.load(Ordering::Relaxed) <= 10 + 8);
                        drop(held);
                    }
                });
            }
        });
        assert_eq!(one.own.open.load(Ordering::Relaxed), 0);
    }
}
