//! The interface layer while it runs: its tables, as typed doors, and interfaces that come and go.

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::AsFd;

use aya::Ebpf;
use aya::maps::{HashMap, MapData};
use interceptor_common::{Interface, Passage, PassageKey, capacity, maps};

use super::direct::monotonic;
use super::tables::{TableError, TableFill, at, was_there};
use super::{
    Attachment, HOOKS, Kernel, KernelError, Side, Target, attach, pin_name, sys, take_typed,
};
use crate::netns::Gate;

impl Kernel {
    /// Makes `gates` the covered interfaces: what is new is covered, what is gone forgotten. Nothing is
    /// done once [`Kernel::detach`] has begun.
    ///
    /// # Errors
    /// [`KernelError`], of one that could not be covered; the others are.
    pub fn set_gates(&self, gates: &[Gate]) -> Result<(), KernelError> {
        // Held to the end, as in `repair`.
        let mut attachments = self.attachments();
        if attachments.is_empty() {
            return Ok(());
        }
        // First the table: a program without an entry drops what nobody's socket vouches for.
        self.interface().set(gates)?;
        let is_gate = |index: u32| gates.iter().any(|gate| gate.index == index);
        attachments.retain(|attachment| match &attachment.target {
            Target::Interface(gate) if !is_gate(gate.index) => {
                self.forget(attachment);
                false
            }
            _ => true,
        });
        let mut result = Ok(());
        for hook in HOOKS.iter().filter(|hook| hook.side == Side::Interface) {
            for gate in gates {
                let covered = attachments
                    .iter()
                    .any(|one| one.hook == hook && one.target_id == u64::from(gate.index));
                if covered {
                    continue;
                }
                let target = Target::Interface(gate.clone());
                match attach(&self.object, &self.pins, hook, &target) {
                    Ok(attachment) => attachments.push(attachment),
                    Err(error) => result = Err(error),
                }
            }
        }
        result
    }

    /// Lets go of an interface that is gone.
    fn forget(&self, attachment: &Attachment) {
        // It went with the interface, unless another one has its index by now.
        let _ = sys::link_detach(attachment.link.as_fd());
        let pin = pin_name(attachment.hook, attachment.target_id);
        let _ = std::fs::remove_file(self.pins.links().join(pin));
    }
}

/// Where the interface layer stands, and what passes it without a socket.
pub struct InterfaceTables {
    interfaces: HashMap<MapData, u32, Interface>,
    passages: HashMap<MapData, PassageKey, Passage>,
    counts: HashMap<MapData, u64, u64>,
    quotas: HashMap<MapData, u64, u64>,
}

impl InterfaceTables {
    pub(super) fn take(ebpf: &mut Ebpf) -> Result<Self, KernelError> {
        Ok(Self {
            interfaces: take_typed(ebpf, maps::INTERFACES)?,
            passages: take_typed(ebpf, maps::PASSAGES)?,
            counts: take_typed(ebpf, maps::PASSAGE_COUNTS)?,
            quotas: take_typed(ebpf, maps::PASSAGE_QUOTAS)?,
        })
    }

    /// Makes `gates` the covered interfaces.
    ///
    /// # Errors
    /// [`TableError`]; the table is full.
    pub(super) fn set(&mut self, gates: &[Gate]) -> Result<(), TableError> {
        let namespaces: BTreeSet<u64> = gates.iter().map(|gate| gate.netns).collect();
        for netns in &namespaces {
            if self.counts.get(netns, 0).is_err() {
                self.counts.insert(netns, 0, 0).map_err(at(maps::PASSAGE_COUNTS))?;
                self.quotas.insert(netns, quota(0, 0), 0).map_err(at(maps::PASSAGE_QUOTAS))?;
            }
        }
        let known: Vec<u64> = self.counts.keys().filter_map(Result::ok).collect();
        for netns in known.iter().filter(|netns| !namespaces.contains(netns)) {
            // In this order: there is no quota without a count.
            remove(&mut self.quotas, maps::PASSAGE_QUOTAS, netns)?;
            remove(&mut self.counts, maps::PASSAGE_COUNTS, netns)?;
        }
        for gate in gates {
            let gateway_v6 = gate.address_v6.map_or([0; 16], |v6| v6.octets());
            let interface = Interface { netns: gate.netns, gateway_v6, ..Interface::default() };
            self.interfaces.insert(gate.index, interface, 0).map_err(at(maps::INTERFACES))?;
        }
        let present: Vec<u32> = self.interfaces.keys().filter_map(Result::ok).collect();
        for index in present.into_iter().filter(|index| gates.iter().all(|g| g.index != *index)) {
            self.interfaces.remove(&index).map_err(at(maps::INTERFACES))?;
        }
        Ok(())
    }

    /// Frees the room of passages that no longer stand, and says how many more each workload may have.
    ///
    /// # Errors
    /// [`TableError`].
    pub fn sweep(&mut self) -> Result<(), TableError> {
        let now = u64::try_from(monotonic().as_nanos()).unwrap_or(u64::MAX);
        // First: what is made meanwhile may be counted twice, never not at all.
        let made: Vec<(u64, u64)> = self.counts.iter().filter_map(Result::ok).collect();
        let mut standing = BTreeMap::<u64, u64>::new();
        let mut old = Vec::new();
        for (key, passage) in
            self.passages.iter().take(capacity::PASSAGES as usize).filter_map(Result::ok)
        {
            if passage.stands(now) {
                *standing.entry(key.netns).or_default() += 1;
            } else {
                old.push(key);
            }
        }
        old.iter().try_for_each(|key| remove(&mut self.passages, maps::PASSAGES, key))?;
        for (netns, made) in made {
            let standing = standing.get(&netns).copied().unwrap_or_default();
            let quota = quota(made, standing);
            self.quotas.insert(netns, quota, 0).map_err(at(maps::PASSAGE_QUOTAS))?;
        }
        Ok(())
    }

    /// How full the tables are.
    pub fn fill(&self) -> [TableFill; 2] {
        let fill =
            |name, entries, capacity: u32| TableFill { name, entries, capacity: capacity as usize };
        [
            fill(
                maps::INTERFACES,
                self.interfaces.keys().take(capacity::INTERFACES as usize).count(),
                capacity::INTERFACES,
            ),
            fill(
                maps::PASSAGES,
                self.passages.keys().take(capacity::PASSAGES as usize).count(),
                capacity::PASSAGES,
            ),
        ]
    }
}

/// How many passages a workload may ever have had that had `made` so far, and of them `standing` now.
fn quota(made: u64, standing: u64) -> u64 {
    (made + u64::from(capacity::PASSAGES_EACH)).saturating_sub(standing)
}

/// Removes an entry that may be gone.
fn remove<K: aya::Pod, V: aya::Pod>(
    map: &mut HashMap<MapData, K, V>,
    name: &'static str,
    key: &K,
) -> Result<(), TableError> {
    was_there(map.remove(key)).map_err(at(name)).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_workload_has_its_part_of_the_passages_at_a_time() {
        let each = u64::from(capacity::PASSAGES_EACH);
        assert_eq!(quota(0, 0), each);
        assert_eq!(quota(each, each), each, "full: not one more");
        assert_eq!(quota(each, each - 7), each + 7, "seven are gone: seven more");
        assert_eq!(quota(3 * each, 0), 4 * each);
        // What an earlier run left uncounted.
        assert_eq!(quota(0, 2 * each), 0);
    }
}
