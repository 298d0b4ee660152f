//! The tables of the interface layer, as typed doors.

use aya::Ebpf;
use aya::maps::{HashMap, MapData};
use interceptor_common::{Interface, Passage, PassageKey, capacity, maps};

use super::direct::monotonic;
use super::tables::{TableError, TableFill, at, was_there};
use super::{KernelError, take_typed};
use crate::netns::Gate;

/// Where the interface layer stands, and what passes it without a socket.
pub struct InterfaceTables {
    interfaces: HashMap<MapData, u32, Interface>,
    passages: HashMap<MapData, PassageKey, Passage>,
}

impl InterfaceTables {
    pub(super) fn take(ebpf: &mut Ebpf) -> Result<Self, KernelError> {
        Ok(Self {
            interfaces: take_typed(ebpf, maps::INTERFACES)?,
            passages: take_typed(ebpf, maps::PASSAGES)?,
        })
    }

    /// Makes `gates` the covered interfaces.
    ///
    /// # Errors
    /// [`TableError`]; the table is full.
    pub(super) fn set(&mut self, gates: &[Gate]) -> Result<(), TableError> {
        for gate in gates {
            let gateway_v6 = gate.address_v6.map_or([0; 16], |v6| v6.octets());
            let interface = Interface { netns: gate.netns, gateway_v6 };
            self.interfaces.insert(gate.index, interface, 0).map_err(at(maps::INTERFACES))?;
        }
        let present: Vec<u32> = self.interfaces.keys().filter_map(Result::ok).collect();
        for index in present.into_iter().filter(|index| gates.iter().all(|g| g.index != *index)) {
            self.interfaces.remove(&index).map_err(at(maps::INTERFACES))?;
        }
        Ok(())
    }

    /// Frees the room of passages that no longer stand. Gives how many.
    ///
    /// # Errors
    /// [`TableError`].
    pub fn sweep(&mut self) -> Result<usize, TableError> {
        let now = u64::try_from(monotonic().as_nanos()).unwrap_or(u64::MAX);
        let old = self.passages.iter().filter_map(Result::ok);
        let old: Vec<_> = old.filter(|(_, passage)| !passage.stands(now)).collect();
        let mut swept = 0;
        for (key, _) in old {
            let removed = was_there(self.passages.remove(&key)).map_err(at(maps::PASSAGES))?;
            swept += usize::from(removed);
        }
        Ok(swept)
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
