//! Kernel events to access-log lines. A destination that is refused again and again is folded:
//! one line at once, then one a second with the count (T-55).

use std::borrow::Cow;
use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::cut::{BYPASS_REMOVED, Ended};
use crate::account::{AccessLog, Flag, Record};
use crate::decide::{ClusterName, Reason};
use crate::kernel::{Closed, EventReader, KernelEvent, Refused};
use crate::policy::{Enforcement, Store};

/// How often folded refusals are written.
const FOLD: Duration = Duration::from_secs(1);

/// Destinations whose refusals are folded at a time; beyond, each refusal has a line of its own.
const MAX_FOLDED: usize = 1024;

/// Writes lines for what the kernel reports.
pub(super) struct Reporter {
    log: AccessLog,
    policy: Arc<Store>,
    bypass_log: bool,
    ended: Ended,
    folded: HashMap<(SocketAddr, &'static str), Folded>,
}

struct Folded {
    since: Instant,
    last: Refused,
    more: u64,
}

impl Reporter {
    /// `bypass_log`: whether direct flows get a line where the profile has it (profiles.md). `ended`
    /// are those that were cut.
    pub(super) fn new(log: AccessLog, policy: Arc<Store>, bypass_log: bool, ended: Ended) -> Self {
        Self { log, policy, bypass_log, ended, folded: HashMap::new() }
    }

    /// Whether refusals say why, and direct flows are accounted.
    fn is_strict(&self) -> bool {
        self.policy.current().enforcement == Enforcement::Strict
    }

    /// Reads events until `stop` resolves, then what is left.
    pub(super) async fn run(mut self, mut events: EventReader, stop: impl Future<Output = ()>) {
        let mut stop = std::pin::pin!(stop);
        let mut tick = tokio::time::interval(FOLD);
        loop {
            let mut each = |event| self.event(event);
            tokio::select! {
                biased;
                () = &mut stop => break,
                _ = tick.tick() => {}
                ended = events.run(&mut each) => {
                    if let Err(error) = ended {
                        tracing::error!("kernel events cannot be read any more: {error}");
                    }
                    break;
                }
            }
            self.unfold(false);
        }
        events.drain_now(&mut |event| self.event(event));
        self.unfold(true);
    }

    fn event(&mut self, event: KernelEvent) {
        match event {
            KernelEvent::Closed(closed) if self.bypass_log && self.is_strict() => {
                let cut = closed.src.is_some_and(|src| self.ended.take(src, closed.dst));
                let mut record = direct(closed);
                if cut {
                    record.connection_termination_details = Some(Cow::Borrowed(BYPASS_REMOVED));
                }
                self.log.write(record);
            }
            KernelEvent::Closed(_) => {}
            KernelEvent::Refused(refused) => self.refused(refused),
        }
    }

    fn refused(&mut self, refused: Refused) {
        let key = (refused.dst, refused.why);
        if let Some(folded) = self.folded.get_mut(&key) {
            folded.more += 1;
            folded.last = refused;
            return;
        }
        self.log.write(self.refusal(&refused, 0));
        if self.folded.len() < MAX_FOLDED {
            self.folded.insert(key, Folded { since: Instant::now(), last: refused, more: 0 });
        }
    }

    /// Writes what was folded long enough; `all`: everything.
    fn unfold(&mut self, all: bool) {
        let due: Vec<_> = self
            .folded
            .iter()
            .filter(|(_, folded)| all || folded.since.elapsed() >= FOLD)
            .map(|(key, _)| *key)
            .collect();
        for key in due {
            let Some(folded) = self.folded.remove(&key) else { continue };
            if folded.more == 0 {
                continue;
            }
            self.log.write(self.refusal(&folded.last, folded.more));
            if !all {
                // Still at it: goes on being folded, with the next line in a second.
                self.folded.insert(key, Folded { since: Instant::now(), more: 0, ..folded });
            }
        }
    }

    fn refusal(&self, refused: &Refused, more: u64) -> Record {
        let mut record = Record::new(refused.at, refused.dst, unspecified_like(refused.dst));
        record.upstream_cluster = Some(ClusterName::black_hole());
        record.flags = vec![Flag::UH];
        record.reason = Reason::NotRegistered;
        if self.is_strict() {
            let protocol = protocol_name(refused.protocol);
            record.connection_termination_details = Some(Cow::Owned(match more {
                0 => format!("{} {protocol}", refused.why),
                _ => format!("{} {protocol} {more} times", refused.why),
            }));
        }
        record
    }
}

fn direct(closed: Closed) -> Record {
    let src = closed.src.unwrap_or(unspecified_like(closed.dst));
    let mut record = Record::new(closed.start, closed.dst, src);
    record.duration = closed.duration;
    record.bytes_received = closed.bytes_sent;
    record.bytes_sent = closed.bytes_received;
    record.upstream_cluster = Some(ClusterName::bypass());
    record.upstream_host = Some(closed.dst);
    record.upstream_local_address = closed.src;
    record.reason = Reason::Bypassed;
    if closed.resolver {
        record.route_name = Some(Arc::from("resolver"));
    }
    if !closed.established {
        record.flags = vec![Flag::UF, Flag::URX];
    }
    record
}

/// Stands for an end that never was: the workload's, of a connect that came to nothing.
fn unspecified_like(addr: SocketAddr) -> SocketAddr {
    let ip: IpAddr = match addr {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    SocketAddr::new(ip, 0)
}

fn protocol_name(number: u32) -> Cow<'static, str> {
    match number {
        1 => "icmp".into(),
        6 => "tcp".into(),
        17 => "udp".into(),
        58 => "icmpv6".into(),
        132 => "sctp".into(),
        other => format!("protocol {other}").into(),
    }
}
