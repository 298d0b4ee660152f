//! Kernel events to access-log lines. A destination that is refused again and again is folded:
//! one line at once, then one a second with the count (T-55).

use std::borrow::Cow;
use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use interceptor_common::Finding;

use super::direct::Direct;
use crate::account::{AccessLog, Flag, Record};
use crate::decide::{ClusterName, Reason};
use crate::kernel::{Closed, ClosedTier, EventReader, KernelEvent, Refused};
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
    direct: Arc<Direct>,
    folded: HashMap<(SocketAddr, &'static str), Folded>,
}

struct Folded {
    since: Instant,
    last: Refused,
    more: u64,
}

impl Reporter {
    /// `bypass_log`: whether direct flows get a line where the profile has it (profiles.md).
    pub(super) fn new(
        log: AccessLog,
        policy: Arc<Store>,
        bypass_log: bool,
        direct: Arc<Direct>,
    ) -> Self {
        Self { log, policy, bypass_log, direct, folded: HashMap::new() }
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
            KernelEvent::Closed(closed) => match closed.tier {
                ClosedTier::Direct | ClosedTier::Named { .. } => {
                    self.log.write(self.direct.closed(&closed));
                }
                ClosedTier::Bypassed | ClosedTier::Resolver => {
                    if self.bypass_log && self.is_strict() {
                        self.log.write(bypassed(&closed));
                    }
                }
            },
            KernelEvent::Refused(refused) => self.refused(refused),
            KernelEvent::RefusedHello(refused) => self.log.write(self.direct.refused(&refused)),
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
        let mut why = format!("{} {}", refused.why, protocol_name(refused.protocol));
        if refused.why == Finding::AddressRefused.label() {
            // As the proxy would have said it.
            record.reason = self.direct.reason_of(refused.dst);
            record.reason.label().clone_into(&mut why);
        }
        if self.is_strict() {
            record.connection_termination_details = Some(Cow::Owned(match more {
                0 => why,
                _ => format!("{why} {more} times"),
            }));
        }
        record
    }
}

fn bypassed(closed: &Closed) -> Record {
    let mut record = connection(closed);
    record.upstream_cluster = Some(ClusterName::bypass());
    record.reason = Reason::Bypassed;
    if closed.tier == ClosedTier::Resolver {
        record.route_name = Some(Arc::from("resolver"));
    }
    record
}

/// What every direct flow's line has.
pub(super) fn connection(closed: &Closed) -> Record {
    let mut record = Record::new(closed.start, closed.dst, source_of(closed));
    record.duration = closed.duration;
    record.bytes_received = closed.bytes_sent;
    record.bytes_sent = closed.bytes_received;
    record.upstream_host = Some(closed.dst);
    record.upstream_local_address = closed.src;
    if !closed.established {
        record.flags = vec![Flag::UF, Flag::URX];
    }
    record
}

/// The workload's end of a flow, or what stands for it where there never was one.
fn source_of(closed: &Closed) -> SocketAddr {
    closed.src.unwrap_or_else(|| unspecified_like(closed.dst))
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
