//! Signs of life for the kernel programs, and an eye on them: what somebody took away is put back and
//! reported (T-15).

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use tokio::time::{MissedTickBehavior, interval};

use super::covered::Registry;
use super::existing::Existing;
use super::handler::Running;
use crate::account::AccessLog;
use crate::admin::report;
use crate::kernel::{Kernel, Repair};
use crate::policy::Store;
use crate::tiers::Commons;

/// How often attachments and pins are looked at.
const LOOK: Duration = Duration::from_secs(2);

/// How often the kernel programs get a sign of life.
const BEAT: Duration = Duration::from_secs(1);

/// How often it is asked whether the access log can be written.
const LOG_LOOK: Duration = Duration::from_millis(200);

/// `onDaemonLoss: closed`: a sign of life older than this counts for nothing.
pub(super) const LOSS_LIMIT: Duration = Duration::from_secs(5);

/// What was put back so far.
#[derive(Debug, Default)]
pub(super) struct Repairs {
    count: AtomicU64,
    failing: AtomicU64,
    last: ArcSwapOption<String>,
}

impl Repairs {
    pub(super) fn report(&self) -> report::Repairs {
        report::Repairs {
            count: self.count.load(Ordering::Relaxed),
            failing: self.failing.load(Ordering::Relaxed),
            last: self.last.load().as_deref().cloned(),
        }
    }
}

/// Shows the kernel programs that the daemon lives, for ever.
pub(super) async fn beat(kernel: Arc<Kernel>) {
    let mut tick = interval(BEAT);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        if let Err(error) = kernel.tables().beat() {
            tracing::error!("no sign of life for the kernel programs: {error}");
        }
    }
}

/// Where nothing may pass that the access log cannot tell of, gives everything to the proxy, which
/// refuses it, for as long as lines are lost (T-57). For ever.
pub(super) async fn mind_log(
    log: AccessLog,
    policy: Arc<Store>,
    commons: Arc<Commons>,
    covered: Arc<Registry>,
) {
    let mut tick = interval(LOG_LOOK);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut suspended = false;
    loop {
        tick.tick().await;
        let snapshot = policy.current();
        let fails = snapshot.needs_log() && log.fails();
        if fails == suspended {
            continue;
        }
        suspended = fails;
        // Also for those that come under cover meanwhile.
        commons.suspend(suspended);
        for tenant in covered.tenants() {
            if let Err(error) = tenant.sync.apply(&tenant.policy()) {
                tracing::error!("{error}");
            }
        }
        match suspended {
            true => tracing::error!(
                "the access log cannot be written: new connections and requests are refused \
                 (onLogLoss: refuse)"
            ),
            false => tracing::warn!("the access log is written again; nothing is refused for it"),
        }
    }
}

/// Looks after what is attached, for ever. `existing` sees to what was opened while a hook was away.
pub(super) async fn watch(running: Arc<Running>, existing: Arc<Existing>) {
    let mut tick = interval(LOOK);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut failing = HashSet::new();
    loop {
        tick.tick().await;
        let (at, existing) = (Arc::clone(&running), Arc::clone(&existing));
        let looked = tokio::task::spawn_blocking(move || {
            let repairs = at.kernel.repair();
            if repairs.iter().any(|repair| repair.amiss.was_open() && repair.result.is_ok()) {
                existing.settle_gap(&at);
            }
            repairs
        });
        match looked.await {
            Ok(repairs) => failing = say(&running.repairs, repairs, &failing),
            Err(error) => tracing::error!("looking after the attachments broke off: {error}"),
        }
    }
}

/// Reports, and counts. What fails is said once, not every two seconds. Gives what fails now.
fn say(total: &Repairs, repairs: Vec<Repair>, failed: &HashSet<String>) -> HashSet<String> {
    let mut failing = HashSet::new();
    for Repair { what, amiss, result } in repairs {
        let text = match result {
            Ok(()) => {
                total.count.fetch_add(1, Ordering::Relaxed);
                format!("{what} {amiss}, and not by interceptor; it is back")
            }
            Err(error) => {
                let text = format!("{what} {amiss}, and cannot be put back: {error}");
                failing.insert(text.clone());
                text
            }
        };
        if !failed.contains(&text) {
            eprintln!("interceptor: warning: {text}");
        }
        total.last.store(Some(Arc::new(text)));
    }
    total.failing.store(failing.len() as u64, Ordering::Relaxed);
    failing
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::Amiss;

    #[test]
    fn repairs_are_counted_and_failures_are_those_of_the_last_look() {
        let total = Repairs::default();
        let repair = |result: Result<(), String>| Repair {
            what: "map SOCKETS".into(),
            amiss: Amiss::Unpinned,
            result,
        };
        let failing = say(&total, vec![repair(Ok(())), repair(Err("no".into()))], &HashSet::new());
        assert_eq!(failing.len(), 1);
        assert_eq!(
            total.report(),
            report::Repairs {
                count: 1,
                failing: 1,
                last: Some("map SOCKETS was unpinned, and cannot be put back: no".into()),
            }
        );
        assert!(say(&total, vec![repair(Ok(()))], &failing).is_empty());
        let report = total.report();
        assert_eq!((report.count, report.failing), (2, 0));
        assert!(report.last.expect("said").ends_with("it is back"));
    }
}
