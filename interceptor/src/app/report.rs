//! Kernel events to access-log lines, and the beat at which folded refusals are written.

use std::borrow::Cow;
use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use interceptor_common::{Event, Finding};

use super::cut::Ended;
use crate::account::{AccessLog, FOLD, Flag, Folds, Record, Same};
use crate::act::dial::connect_error;
use crate::decide::host::HostName;
use crate::decide::{ClusterName, Reason};
use crate::kernel::{Closed, ClosedTier, EventReader, KernelEvent, Refused, RefusedHello};
use crate::policy::{Enforcement, Store};
use crate::workloads::PodIdentity;

/// Refused hellos of one destination and name that have a line of their own before they are folded:
/// a client's own retries do.
const HELLOS: u64 = 8;

/// Begins field 8 where what is told of passed.
const AUDIT: &str = "audit:";

/// What is known of connections that went direct by policy.
pub(super) trait DirectFlows: Send + Sync {
    /// The line of a closed one.
    fn closed(&self, closed: &Closed) -> Record;

    /// Ends one whose first bytes were refused; gives its line.
    fn refused(&self, refused: &RefusedHello) -> Record;

    /// Why every connection of a namespace to `dst` is refused.
    fn reason_of(&self, netns: u64, dst: SocketAddr) -> Reason;

    /// The pod that a namespace is of.
    fn pod_of(&self, netns: u64) -> Option<Arc<PodIdentity>>;

    /// The name that the daemon knows an address by, for a namespace.
    fn name_of(&self, netns: u64, ip: IpAddr) -> Option<HostName>;
}

/// Writes lines for what the kernel reports.
pub(super) struct Reporter {
    log: AccessLog,
    policy: Arc<Store>,
    bypass_log: bool,
    ended: Ended,
    direct: Arc<dyn DirectFlows>,
    folds: Arc<Folds>,
}

impl Reporter {
    /// `folds` are unfolded here, whoever folds. `bypass_log`: whether direct flows get a line where
    /// the profile has it (profiles.md). `ended` are those that were cut.
    pub(super) fn new(
        log: AccessLog,
        folds: Arc<Folds>,
        policy: Arc<Store>,
        bypass_log: bool,
        ended: Ended,
        direct: Arc<dyn DirectFlows>,
    ) -> Self {
        Self { log, policy, bypass_log, ended, direct, folds }
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
            self.folds.unfold(self.is_strict(), false);
        }
        events.drain_now(&mut |event| self.event(event));
        self.folds.unfold(self.is_strict(), true);
    }

    fn event(&mut self, event: KernelEvent) {
        match event {
            KernelEvent::Closed(closed) => match closed.tier {
                ClosedTier::Direct | ClosedTier::Named { .. } => {
                    let mut record = self.direct.closed(&closed);
                    record.more.pod = self.direct.pod_of(closed.netns);
                    if let Some(why) = self.cut(&closed) {
                        record.flags = vec![Flag::UH];
                        record.connection_termination_details = Some(why);
                    }
                    // MESH-20.
                    self.log.pen_at(closed.opened).write(record);
                }
                ClosedTier::Bypassed | ClosedTier::Resolver => {
                    if self.bypass_log && self.is_strict() {
                        let mut record = bypassed(&closed);
                        record.more.pod = self.direct.pod_of(closed.netns);
                        record.connection_termination_details = self.cut(&closed);
                        let name = self.direct.name_of(closed.netns, closed.dst.ip());
                        record.note_address_of(name.as_ref(), true);
                        self.log.pen_at(closed.opened).write(record);
                    }
                }
            },
            KernelEvent::Refused(refused) => self.refused(&refused),
            KernelEvent::RefusedHello(refused) => {
                let mut record = self.direct.refused(&refused);
                record.more.pod = self.direct.pod_of(refused.socket.netns);
                let why = Cow::Borrowed(record.reason.label());
                let same = Same { dst: refused.socket.dst, why, name: refused.name };
                self.folds.fold(same, record, HELLOS);
            }
        }
    }

    /// Why a closed connection was cut, if it was.
    fn cut(&self, closed: &Closed) -> Option<Cow<'static, str>> {
        self.ended.take(closed.src?, closed.dst)
    }

    fn refused(&mut self, refused: &Refused) {
        let src = refused.src.unwrap_or_else(|| unspecified_like(refused.dst));
        let mut record = Record::new(refused.at, refused.dst, src);
        record.more.pod = self.direct.pod_of(refused.netns);
        record.upstream_cluster = Some(ClusterName::black_hole());
        record.flags = vec![Flag::UH];
        record.reason = Reason::NotRegistered;
        // Without spaces in JSON too: a word to search for is the same in both (LOG-4).
        let mut why = format!("{}_{}", refused.why, protocol_name(refused.protocol));
        if let Some(interface) = &refused.interface {
            let _ = write!(why, "{{{interface}}}");
        }
        if refused.why == Finding::AddressRefused.label() {
            // As the proxy would have said it.
            record.reason = self.direct.reason_of(refused.netns, refused.dst);
            record.reason.label().clone_into(&mut why);
        }
        if refused.audited {
            why.insert_str(0, AUDIT);
            record.upstream_cluster = Some(ClusterName::passthrough());
            record.flags.clear();
            record.audited = true;
        }
        if self.is_strict() || refused.audited {
            record.connection_termination_details = Some(Cow::Owned(why.clone()));
        }
        self.folds.fold(Same { dst: refused.dst, why: Cow::Owned(why), name: None }, record, 1);
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
        record.upstream_transport_failure_reason = closed.error.map(connect_error);
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
        Event::FRAME.. => format!("ethertype_{:04x}", number - Event::FRAME).into(),
        1 => "icmp".into(),
        6 => "tcp".into(),
        17 => "udp".into(),
        58 => "icmpv6".into(),
        132 => "sctp".into(),
        other => format!("protocol_{other}").into(),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::account::Captured;
    use crate::policy::Snapshot;

    const DST: &str = "192.0.2.9:443";

    /// No connection goes direct but by bypass.
    struct NoneDirect;

    impl DirectFlows for NoneDirect {
        fn closed(&self, closed: &Closed) -> Record {
            connection(closed)
        }

        fn refused(&self, refused: &RefusedHello) -> Record {
            let mut record = Record::new(refused.start, refused.socket.dst, refused.socket.src);
            record.reason = Reason::NotRegistered;
            record
        }

        fn reason_of(&self, _netns: u64, _dst: SocketAddr) -> Reason {
            Reason::NotRegistered
        }

        fn pod_of(&self, netns: u64) -> Option<Arc<PodIdentity>> {
            (netns == 1).then(|| Arc::new(crate::workloads::testing::web_0()))
        }

        fn name_of(&self, _netns: u64, ip: IpAddr) -> Option<HostName> {
            (ip == IpAddr::from([192, 0, 2, 80]))
                .then(|| HostName::parse("a.test").expect("a name"))
        }
    }

    fn reporter(enforcement: Enforcement, bypass_log: bool) -> (Reporter, Captured) {
        let snapshot = Snapshot { enforcement, ..Snapshot::nothing() };
        let (log, captured) = AccessLog::memory();
        let folds = Arc::new(Folds::new(log.clone()));
        let (policy, ended) = (Arc::new(Store::new(snapshot)), Ended::default());
        (Reporter::new(log, folds, policy, bypass_log, ended, Arc::new(NoneDirect)), captured)
    }

    fn refused(protocol: u32) -> KernelEvent {
        KernelEvent::Refused(Refused {
            netns: 1,
            at: crate::clock::wall(),
            src: None,
            dst: DST.parse().expect("an address"),
            why: "refused_datagram",
            protocol,
            interface: None,
            audited: false,
        })
    }

    fn details(captured: &Captured) -> Vec<String> {
        let text = |record: &Record| record.connection_termination_details.clone();
        captured.records().iter().map(|r| text(r).unwrap_or("-".into()).into_owned()).collect()
    }

    /// T-55: one line at once, what follows folded with its count; protocols apart; counts add up.
    #[test]
    fn refusals_are_folded_and_add_up() {
        let (mut reporter, captured) = reporter(Enforcement::Strict, true);
        for _ in 0..5 {
            reporter.event(refused(17));
        }
        reporter.event(refused(41));
        reporter.folds.unfold(true, false);
        assert_eq!(details(&captured), ["refused_datagram_udp", "refused_datagram_protocol_41"]);
        reporter.folds.unfold(true, true);
        assert_eq!(details(&captured)[2..], ["refused_datagram_udp_4_times"]);
        let record = captured.records().remove(0);
        assert_eq!((record.flags, record.upstream_host), (vec![Flag::UH], None));
        assert_eq!(record.upstream_cluster, Some(ClusterName::black_hole()));
        assert_eq!(record.downstream_local_address.to_string(), DST);
    }

    /// What audit let pass is told as that, in both profiles, and folded as refusals are.
    #[test]
    fn what_audit_lets_pass_is_told() {
        for profile in [Enforcement::Strict, Enforcement::Istio] {
            let (mut reporter, captured) = reporter(profile, true);
            let KernelEvent::Refused(refused) = refused(17) else { unreachable!() };
            for _ in 0..3 {
                let refused = Refused { audited: true, ..refused.clone() };
                reporter.event(KernelEvent::Refused(refused));
            }
            reporter.folds.unfold(profile == Enforcement::Strict, true);
            let told = ["audit:refused_datagram_udp", "audit:refused_datagram_udp_2_times"];
            assert_eq!(details(&captured), told);
            let record = captured.records().remove(0);
            assert_eq!(record.upstream_cluster, Some(ClusterName::passthrough()));
            assert_eq!((record.flags, record.audited), (vec![], true));
        }
    }

    /// A packet that was dropped at an interface says where, and from where it was.
    #[test]
    fn dropped_packets_have_both_ends_and_their_interface() {
        let (mut reporter, captured) = reporter(Enforcement::Strict, true);
        let src: SocketAddr = "10.0.0.2:40001".parse().expect("an address");
        for (protocol, interface) in [(6, "veth1"), (6, "veth2"), (Event::FRAME | 0x88b5, "veth1")]
        {
            let KernelEvent::Refused(refused) = refused(protocol) else { unreachable!() };
            reporter.event(KernelEvent::Refused(Refused {
                src: Some(src),
                why: "dropped_interface_socket",
                interface: Some(interface.into()),
                ..refused
            }));
        }
        assert_eq!(
            details(&captured),
            [
                "dropped_interface_socket_tcp{veth1}",
                "dropped_interface_socket_tcp{veth2}",
                "dropped_interface_socket_ethertype_88b5{veth1}"
            ]
        );
        assert!(captured.records().iter().all(|record| record.downstream_remote_address == src));
    }

    /// Hellos too, but only after so many that no honest client notices; names apart.
    #[test]
    fn refused_hellos_are_folded_after_some() {
        let (mut reporter, captured) = reporter(Enforcement::Strict, true);
        let hello = |name: &str| {
            KernelEvent::RefusedHello(RefusedHello {
                start: crate::clock::wall(),
                duration: Duration::ZERO,
                socket: crate::kernel::SocketId {
                    netns: 1,
                    cookie: 1,
                    src: "192.0.2.1:5".parse().expect("an address"),
                    dst: DST.parse().expect("an address"),
                },
                finding: Finding::NameRefused,
                name: Some(name.into()),
                ech: false,
            })
        };
        for _ in 0..HELLOS + 3 {
            reporter.event(hello("a.test"));
        }
        reporter.event(hello("b.test"));
        assert_eq!(captured.records().len() as u64, HELLOS + 1);
        reporter.folds.unfold(true, true);
        let details = details(&captured);
        assert_eq!(details.len() as u64, HELLOS + 2);
        assert_eq!(details.last().map(String::as_str), Some("not_registered_3_times"));
    }

    /// profiles.md: the reason of a refusal, and the line of a direct flow, are strict's.
    #[test]
    fn istio_says_less() {
        let direct = || {
            KernelEvent::Closed(Closed {
                netns: 1,
                tier: ClosedTier::Resolver,
                label: 0,
                name: None,
                start: crate::clock::wall(),
                opened: std::time::Instant::now(),
                duration: Duration::from_millis(7),
                src: None,
                dst: DST.parse().expect("an address"),
                bytes_sent: 3,
                bytes_received: 5,
                established: false,
                error: Some(111),
                ech: false,
            })
        };
        let (mut istio, captured) = reporter(Enforcement::Istio, true);
        istio.event(refused(17));
        istio.event(direct());
        assert_eq!(details(&captured), ["-"]);
        let (mut silent, captured) = reporter(Enforcement::Strict, false);
        silent.event(direct());
        assert_eq!(captured.records(), []);
        let (mut strict, captured) = reporter(Enforcement::Strict, true);
        strict.event(direct());
        let record = captured.records().remove(0);
        assert_eq!(record.upstream_cluster, Some(ClusterName::bypass()));
        assert_eq!((record.bytes_received, record.bytes_sent), (3, 5));
        assert_eq!(record.flags, [Flag::UF, Flag::URX]);
        let why = record.upstream_transport_failure_reason.as_deref();
        assert_eq!(why, Some("delayed_connect_error:_111"));
        assert_eq!(record.route_name.as_deref(), Some("resolver"));
    }
}
