//! Numbers for what a flow is called. The kernel carries the number; the log wants the words.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Arc, Mutex, PoisonError};

use interceptor_common::{LABEL_KEEPS_NAME, LABEL_REFUSED, LABEL_UNJUDGED};

use super::rows::Label;

/// Labels by number. A label keeps its number for as long as the daemon runs, and mostly in the next
/// run too, since flows may outlive both the policy and the daemon that let them go.
#[derive(Debug, Default)]
pub struct Labels {
    numbers: Mutex<HashMap<u32, Arc<Label>>>,
}

impl Labels {
    /// The number of a label.
    pub fn number(&self, label: &Label) -> u32 {
        let mut numbers = self.numbers.lock().unwrap_or_else(PoisonError::into_inner);
        // With fixed keys: the same in every run.
        let mut hasher = DefaultHasher::new();
        label.hash(&mut hasher);
        let mut number = hasher.finish() as u32;
        loop {
            number &= !LABEL_KEEPS_NAME;
            if label.keeps_name() {
                number |= LABEL_KEEPS_NAME;
            }
            match numbers.get(&number) {
                Some(taken) if **taken == *label => return number,
                None if ![LABEL_REFUSED, LABEL_UNJUDGED].contains(&number) => {
                    numbers.insert(number, Arc::new(label.clone()));
                    return number;
                }
                _ => number = number.wrapping_add(1),
            }
        }
    }

    /// The label behind a number; `None`: it was another run's, or there was none.
    pub fn get(&self, number: u32) -> Option<Arc<Label>> {
        self.numbers.lock().unwrap_or_else(PoisonError::into_inner).get(&number).cloned()
    }
}
