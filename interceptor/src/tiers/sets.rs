//! Sets of names in the kernel's table: each lies there once, however many policies point at it.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use interceptor_common::LABEL_REFUSED;

use super::labels::Labels;
use super::rows::NameSet;
use crate::kernel::{DirectTables, NameRow, TableError};

/// How long the number of a set, or of a policy, is not given to another after its last use: a program
/// that read it from one table must not find another's rows in the other.
pub const REST: Duration = Duration::from_secs(2);

/// Numbers from 1 on, each one's until it was given back and has rested.
#[derive(Debug, Default)]
pub struct Numbers {
    /// Those that were given back, and since when.
    resting: HashMap<u16, Instant>,
    last: u16,
}

impl Numbers {
    /// The first number is the one after `last`.
    pub fn after(last: u16) -> Self {
        Self { resting: HashMap::new(), last }
    }

    /// A number up to `most` that is not `taken`; `None`: there is none.
    pub fn take(&mut self, most: u16, now: Instant, taken: impl Fn(u16) -> bool) -> Option<u16> {
        self.resting.retain(|_, since| now.duration_since(*since) < REST);
        let is_free = |number: &u16| {
            (1..=most).contains(number) && !taken(*number) && !self.resting.contains_key(number)
        };
        let number = (1..=u16::MAX).map(|step| self.last.wrapping_add(step)).find(is_free)?;
        self.last = number;
        Some(number)
    }

    /// Nobody uses it any more.
    pub fn give_back(&mut self, number: u16, now: Instant) {
        self.resting.insert(number, now);
    }
}

/// The sets that lie in the table.
#[derive(Debug, Default)]
pub(super) struct NameSets {
    sets: HashMap<Arc<NameSet>, Held>,
    numbers: Numbers,
    /// What a predecessor wrote.
    inherited: BTreeSet<u16>,
}

#[derive(Debug)]
struct Held {
    number: u16,
    /// How many policies point at it.
    users: usize,
}

impl NameSets {
    /// Leaves these numbers alone from now on.
    pub(super) fn inherit(&mut self, numbers: BTreeSet<u16>) {
        self.inherited = numbers;
    }

    /// The number of a set, which lies in the table then; `None`: there are too many. To be
    /// [given back](Self::give_back), a failed one too.
    pub(super) fn take(
        &mut self,
        set: &Arc<NameSet>,
        labels: &Labels,
        tables: &mut DirectTables,
    ) -> Result<Option<u16>, TableError> {
        if let Some(held) = self.sets.get_mut(set) {
            held.users += 1;
            return Ok(Some(held.number));
        }
        let taken: BTreeSet<u16> = self.sets.values().map(|held| held.number).collect();
        let is_taken = |number| taken.contains(&number) || self.inherited.contains(&number);
        let Some(number) = self.numbers.take(u16::MAX, Instant::now(), is_taken) else {
            return Ok(None);
        };
        self.sets.insert(Arc::clone(set), Held { number, users: 1 });
        let written = set.0.iter().try_for_each(|(pattern, label)| {
            let row = NameRow { set: number, name: pattern.name.as_str(), below: pattern.below };
            let label = label.as_ref().map_or(LABEL_REFUSED, |label| labels.number(label));
            tables.set_name(row, label).map(drop)
        });
        if let Err(error) = written {
            // What of it was written goes.
            let _ = self.give_back(set, tables);
            return Err(error);
        }
        Ok(Some(number))
    }

    /// One policy less points at it; the last one's leaving takes it out of the table.
    pub(super) fn give_back(
        &mut self,
        set: &Arc<NameSet>,
        tables: &mut DirectTables,
    ) -> Result<(), TableError> {
        let Some(held) = self.sets.get_mut(set) else { return Ok(()) };
        held.users -= 1;
        if held.users > 0 {
            return Ok(());
        }
        let number = held.number;
        self.sets.remove(set);
        self.numbers.give_back(number, Instant::now());
        let mut result = Ok(());
        for pattern in set.0.keys() {
            let row = NameRow { set: number, name: pattern.name.as_str(), below: pattern.below };
            result = result.and(tables.remove_name(row));
        }
        result
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_rests_before_it_is_anothers() {
        let now = Instant::now();
        let mut numbers = Numbers::after(2);
        let none = |_| false;
        assert_eq!(numbers.take(4, now, none), Some(3));
        assert_eq!(numbers.take(4, now, |number| number == 3), Some(4));
        assert_eq!(numbers.take(4, now, |number| number >= 3), Some(1), "round, without 0");
        numbers.give_back(2, now);
        assert_eq!(numbers.take(4, now, |number| number != 2), None);
        assert_eq!(numbers.take(4, now + REST, |number| number != 2), Some(2));
    }
}
