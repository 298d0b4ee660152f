//! The policies of the node's workloads: one set of documents, compiled for each of them. Pure.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use super::documents::Documents;
use super::piecewise::{self, StandIns};
use crate::policy::{
    Caller, Changes, Checked, Enforcement, Inventory, LoadErrors, Loaded, Notice, Snapshot,
    Sources, Store, Summary,
};

/// What is in force, for whom.
#[derive(Debug)]
pub(super) struct Policies {
    /// What flags say over the documents.
    overrides: Sources,
    checked: Option<Arc<Checked>>,
    /// What is in force in the place of objects that cannot be used.
    stand_ins: StandIns,
    generation: u64,
    stores: HashMap<Caller, Compiled>,
    /// Why the newest documents are not in force.
    errors: Vec<Notice>,
}

/// One workload's policy.
#[derive(Debug, Clone)]
pub struct Compiled {
    /// The snapshot in force, swapped whole.
    pub store: Arc<Store>,
    /// What it is made of.
    pub summary: Summary,
    /// What there is to say of it.
    pub warnings: Vec<Notice>,
}

impl Policies {
    /// None yet. Nothing has a policy until documents are set.
    pub(super) fn new(overrides: Sources) -> Self {
        let (checked, stand_ins, errors) = (None, StandIns::new(), Vec::new());
        Self { overrides, checked, stand_ins, generation: 0, stores: HashMap::new(), errors }
    }

    /// Puts `documents` in force for every workload. An object that cannot be used keeps its last good
    /// version or, without one, has a stand-in that refuses what it is about.
    ///
    /// # Errors
    /// None of them can be used ([`piecewise::check`]); what was in force stays.
    pub(super) fn set_documents(&mut self, documents: &Documents) -> Result<Changes, LoadErrors> {
        let before = self.inventory().cloned().unwrap_or_default();
        let (checked, stand_ins) = piecewise::check(documents, &self.overrides, &before)
            .inspect_err(|errors| self.errors.clone_from(&errors.0))?;
        self.stand_ins = stand_ins;
        self.errors.clear();
        let changes = before.changes(checked.inventory());
        self.generation += 1;
        for (caller, compiled) in &mut self.stores {
            let Loaded { snapshot, summary, warnings, .. } = checked.compile(caller);
            let generation = self.generation;
            compiled.store.replace(Snapshot { generation, ..snapshot });
            (compiled.summary, compiled.warnings) = (summary, warnings);
        }
        self.checked = Some(Arc::new(checked));
        Ok(changes)
    }

    /// Compiles for those of `callers` that have no policy, and forgets everybody else.
    pub(super) fn set_callers(&mut self, callers: &BTreeSet<Caller>) {
        self.stores.retain(|caller, _| callers.contains(caller));
        let Some(checked) = &self.checked else { return };
        for caller in callers {
            if !self.stores.contains_key(caller) {
                let Loaded { snapshot, summary, warnings, .. } = checked.compile(caller);
                let snapshot = Snapshot { generation: self.generation, ..snapshot };
                let store = Arc::new(Store::new(snapshot));
                self.stores.insert(caller.clone(), Compiled { store, summary, warnings });
            }
        }
    }

    /// The policy of a workload, if it has one.
    pub(super) fn of(&self, caller: &Caller) -> Option<&Compiled> {
        self.stores.get(caller)
    }

    /// Counts up with each set of documents that came into force; 0 before the first.
    pub(super) fn generation(&self) -> u64 {
        self.generation
    }

    /// The profile in force, or what flags say it will be.
    pub(super) fn enforcement(&self) -> Enforcement {
        let in_force = self.checked.as_ref().map(|checked| checked.enforcement());
        self.overrides.enforcement.or(in_force).unwrap_or_default()
    }

    /// What is in force in the place of objects that cannot be used.
    pub(super) fn stand_ins(&self) -> &StandIns {
        &self.stand_ins
    }

    /// Resources of the set in force that are left out.
    pub(super) fn rejected(&self) -> &[Notice] {
        self.checked.as_ref().map_or(&[], |checked| checked.rejected())
    }

    /// Why the newest documents are not in force; nothing, if they are.
    pub(super) fn errors(&self) -> &[Notice] {
        &self.errors
    }

    /// Of InterceptorConfigs in force that have no effect, or not all of it.
    pub(super) fn overruled(&self) -> &[Notice] {
        self.checked.as_ref().map_or(&[], |checked| checked.overruled())
    }

    /// Whether some version of a resource is in force.
    pub(super) fn has(&self, resource: &str) -> bool {
        self.inventory().is_some_and(|inventory| inventory.has(resource))
    }

    fn inventory(&self) -> Option<&Inventory> {
        self.checked.as_ref().map(|checked| checked.inventory())
    }
}
