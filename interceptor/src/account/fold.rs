//! Refusals that repeat: one line at once (of connections that were made: some), then one a second
//! with the count, so that counts always add up and no workload writes the log full (T-55).

use std::borrow::Cow;
use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::{AccessLog, Record};

/// How often folded refusals are written.
pub const FOLD: Duration = Duration::from_secs(1);

/// Destinations whose refusals are folded at a time; beyond, each refusal has a line of its own.
const MAX_FOLDED: usize = 1024;

/// What refusals that are folded have in common.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Same {
    /// Where to.
    pub dst: SocketAddr,
    /// Why, as field 8 says it.
    pub why: Cow<'static, str>,
    /// The name that was shown.
    pub name: Option<String>,
}

/// The refusals that are being folded.
#[derive(Debug)]
pub struct Folds {
    log: AccessLog,
    folded: Mutex<HashMap<Same, Folded>>,
}

#[derive(Debug)]
struct Folded {
    since: Instant,
    /// Lines since then.
    lines: u64,
    /// The newest of those without a line, and how many there are.
    last: Record,
    more: u64,
}

impl Folds {
    /// None so far.
    pub fn new(log: AccessLog) -> Self {
        Self { log, folded: Mutex::default() }
    }

    /// Writes a refusal, or folds it into those like it, of which `lines` had one of their own.
    pub fn fold(&self, same: Same, record: Record, lines: u64) {
        let mut all = self.lock();
        if let Some(folded) = all.get_mut(&same) {
            if folded.lines >= lines {
                folded.more += 1;
                folded.last = record;
                return;
            }
            folded.lines += 1;
        } else if all.len() < MAX_FOLDED {
            let folded = Folded { since: Instant::now(), lines: 1, last: record.clone(), more: 0 };
            all.insert(same, folded);
        }
        drop(all);
        self.log.write(record);
    }

    /// Writes what was folded long enough; `all`: everything. With the count where `explain`.
    pub fn unfold(&self, explain: bool, all: bool) {
        let mut due = Vec::new();
        self.lock().retain(|same, folded| {
            if !all && folded.since.elapsed() < FOLD {
                return true;
            }
            if folded.more == 0 {
                return false;
            }
            let mut record = folded.last.clone();
            if explain {
                let times = format!("{}_{}_times", same.why, folded.more);
                record.connection_termination_details = Some(Cow::Owned(times));
            }
            due.push(record);
            // Still at it: goes on being folded, with the next line in a second.
            (folded.since, folded.more) = (Instant::now(), 0);
            !all
        });
        for record in due {
            self.log.write(record);
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Same, Folded>> {
        self.folded.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
