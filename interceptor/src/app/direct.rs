//! What becomes of connections that went direct: those that show no allowed name are destroyed, and
//! each leaves the line that the proxy would have written.

use std::borrow::Cow;
use std::collections::HashSet;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use interceptor_common::{Finding, LABEL_UNJUDGED};

use super::covered::Registry;
use super::report::{DirectFlows, connection};
use super::tenant::Tenant;
use crate::account::{Flag, OFFERED_ECH, Record};
use crate::decide::host::HostName;
use crate::decide::{self, Action, ByAddress, ClusterName, Decision, Flow, Reason};
use crate::kernel::{Closed, ClosedTier, Held, HintReader, Kernel, RefusedHello, SocketId};
use crate::netns::diag::Destroyed;
use crate::origin::OriginalDst;
use crate::policy::{Enforcement, Snapshot, Store};
use crate::sniff::{ClientHello, Hello, Malformed};
use crate::tiers::{Labels, name_in};
use crate::workloads::PodIdentity;

/// How often connections that owe a name are looked through, while there are any.
const WATCH: Duration = Duration::from_millis(200);
/// How often they are looked for.
const LOOK: Duration = Duration::from_secs(2);

/// So many hints are read at a time.
const HINTS: usize = 64;
/// Pauses after that: mostly, and where there were as many or more.
const HEARD: Duration = Duration::from_millis(1);
const FLOODED: Duration = Duration::from_millis(100);

/// Direct connections' affairs.
pub(super) struct Direct {
    pub(super) kernel: Arc<Kernel>,
    /// What the daemon itself goes by.
    pub(super) policy: Arc<Store>,
    pub(super) labels: Arc<Labels>,
    pub(super) covered: Arc<Registry>,
}

impl DirectFlows for Direct {
    fn closed(&self, closed: &Closed) -> Record {
        let mut record = connection(closed);
        record.more.attempts = Some(1);
        if closed.tier == (ClosedTier::Named { proven: false }) {
            // Nobody was refused, and whose it would have been its name was to say.
            if !closed.established {
                return record;
            }
            record.upstream_host = None;
            record.upstream_local_address = None;
            let limit = self.policy_of(closed.netns).sniff_timeout;
            if limit.is_some_and(|limit| closed.duration >= limit) {
                record.upstream_cluster = Some(ClusterName::black_hole());
                self.refused_line(&mut record, Reason::SniffTimeout, false);
            } else {
                // It asked for nothing, so nothing was refused (LIS-25).
                self.refused_line(&mut record, Reason::EarlyClose, false);
                record.flags = vec![Flag::DC];
            }
            return record;
        }
        if closed.ech && self.is_strict() {
            record.remark(OFFERED_ECH);
        }
        if closed.label == LABEL_UNJUDGED {
            record.reason = Reason::AllowAny;
            record.upstream_cluster = Some(ClusterName::passthrough());
            record.remark("audit:unjudged");
            return record;
        }
        record.reason = Reason::Registered;
        let Some(label) = self.labels.get(closed.label) else { return record };
        record.upstream_cluster = label.cluster.clone().map(ClusterName);
        let told = label.shown.as_ref().filter(|pattern| !pattern.below);
        // What was noticed in passing may be an address, which is no name (T-20).
        let shown = closed.name.as_deref().filter(|name| HostName::parse(name).is_ok());
        let shown = shown.or_else(|| told.map(|pattern| pattern.name.as_str()));
        record.requested_server_name = shown.map(str::to_owned);
        let name = self.name_of(closed.netns, closed.dst.ip());
        record.note_address_of(name.as_ref(), self.is_strict());
        record
    }

    fn name_of(&self, netns: u64, ip: IpAddr) -> Option<HostName> {
        self.covered.whose(netns)?.tenant.sync.name_of(ip)
    }

    fn pod_of(&self, netns: u64) -> Option<Arc<PodIdentity>> {
        self.covered.whose(netns)?.workload.pod.clone()
    }

    fn reason_of(&self, netns: u64, dst: SocketAddr) -> Reason {
        let Some(whose) = self.covered.whose(netns) else { return Reason::NotRegistered };
        let snapshot = whose.tenant.policy();
        let flow = Flow { dst: OriginalDst::new(dst), namespace: &whose.tenant.rules.namespace };
        match decide::by_address(&snapshot.policy, &flow) {
            ByAddress::Decided(decision) => decision.reason,
            // Policy changed meanwhile.
            ByAddress::Inspect { .. } => Reason::NotRegistered,
        }
    }

    fn refused(&self, refused: &RefusedHello) -> Record {
        self.destroy(&refused.socket);
        let whose = self.covered.whose(refused.socket.netns);
        let dst = refused.socket.dst;
        let mut record = Record::new(refused.start, dst, refused.socket.src);
        record.duration = refused.duration;
        record.requested_server_name.clone_from(&refused.name);
        let mut reason = Reason::NotRegistered;
        if let Some(whose) = whose {
            let decision = judge(&whose.tenant, refused);
            let allowed = !matches!(decision.action, Action::Block(_));
            // The proxy reads more than the kernel, and dials where the client did not.
            if allowed || refused.finding == Finding::HelloUnclear {
                whose.tenant.sync.avoid(dst);
            }
            reason = if allowed { Reason::AddressNotVerified } else { decision.reason };
        }
        record.upstream_cluster = Some(ClusterName::black_hole());
        self.refused_line(&mut record, reason, refused.ech);
        record
    }
}

impl Direct {
    /// The policy of a namespace; the daemon's own where it is gone.
    fn policy_of(&self, netns: u64) -> Arc<Snapshot> {
        let whose = self.covered.whose(netns);
        whose.map_or_else(|| self.policy.current(), |whose| whose.tenant.policy())
    }

    fn refused_line(&self, record: &mut Record, reason: Reason, ech: bool) {
        record.reason = reason;
        record.flags = vec![Flag::UH];
        if self.is_strict() {
            record.connection_termination_details = Some(match ech {
                true => Cow::Owned(format!("{},{OFFERED_ECH}", reason.label())),
                false => Cow::Borrowed(reason.label()),
            });
        }
    }

    fn is_strict(&self) -> bool {
        self.policy.current().enforcement == Enforcement::Strict
    }

    /// Destroys connections that owe a name for too long (T-28), those whose hello TCP cut in two for
    /// a whole turn, and those whose refusal was not reported, for ever. Where a part of a hello was
    /// held to the end, the next connection is the proxy's: it needs no packet with all of it.
    pub(super) async fn watch(self: Arc<Self>) {
        let mut cut = HashSet::new();
        loop {
            let pending = self.kernel.direct().pending();
            let limit = self.policy.current().sniff_timeout;
            let pause = if pending.is_empty() {
                limit.map_or(LOOK, |limit| limit.min(LOOK))
            } else {
                WATCH
            };
            let cut_before = std::mem::take(&mut cut);
            for flow in pending {
                let cookie = flow.socket.cookie;
                if flow.held == Held::Cut {
                    cut.insert(cookie);
                }
                let limit = self.policy_of(flow.socket.netns).sniff_timeout;
                let late = limit.is_some_and(|limit| flow.age >= limit);
                if !(late || flow.refused || cut_before.contains(&cookie)) {
                    continue;
                }
                match self.destroy(&flow.socket) {
                    Some(Destroyed::Now) if flow.held != Held::Nothing && !flow.refused => {
                        if let Some(whose) = self.covered.whose(flow.socket.netns) {
                            whose.tenant.sync.avoid(flow.socket.dst);
                        }
                    }
                    Some(Destroyed::Before) => self.kernel.direct().forget_pending(cookie),
                    _ => {}
                }
            }
            tokio::time::sleep(pause).await;
        }
    }

    fn destroy(&self, socket: &SocketId) -> Option<Destroyed> {
        let all = self.covered.all();
        let destroyer = all.get(&socket.netns)?.destroyer.as_ref()?;
        match destroyer.destroy_tcp(socket.src, socket.dst, socket.cookie) {
            Ok(destroyed) => Some(destroyed),
            // Nothing of it leaves all the same; the watch tries again.
            Err(error) => {
                tracing::warn!("cannot end a refused connection to {}: {error}", socket.dst);
                None
            }
        }
    }
}

/// What the proxy would have said to these bytes.
fn judge(tenant: &Tenant, refused: &RefusedHello) -> Decision {
    let dst = OriginalDst::new(refused.socket.dst);
    let flow = Flow { dst, namespace: &tenant.rules.namespace };
    let tls = |sni| Hello::Tls(ClientHello { sni, ..ClientHello::default() });
    let hello = match refused.finding {
        Finding::NotTls => Hello::Opaque,
        Finding::HelloUnclear => Hello::Malformed(Malformed("unclear")),
        _ => tls(refused.name.as_deref().and_then(|name| HostName::parse(name).ok())),
    };
    decide::by_hello(&tenant.policy().policy, &flow, &hello)
}

/// Takes hints, for ever, but only so many at a time: whoever sends more has them dropped in the
/// kernel.
pub(super) async fn hear(mut hints: HintReader, covered: Arc<Registry>) {
    loop {
        let heard = hints.next(HINTS, |datagram| {
            if let Some(name) = name_in(datagram) {
                covered.tenants().iter().for_each(|tenant| tenant.sync.hear(name.clone()));
            }
        });
        match heard.await {
            Ok(HINTS) => tokio::time::sleep(FLOODED).await,
            Ok(_) => tokio::time::sleep(HEARD).await,
            Err(error) => {
                return tracing::warn!("resolvers' answers are not heard any more: {error}");
            }
        }
    }
}
