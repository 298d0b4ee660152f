//! The account of one TCP or TLS connection: opened when it is accepted, closed exactly once.

use std::borrow::Cow;
use std::net::SocketAddr;

use crate::account::{AccessLog, Flag, Record};
use crate::decide::{ClusterName, Decision, Reason};
use crate::origin::Origin;

/// Writes one record, whatever happens: `close` writes what is known, and a task that is dropped
/// before it came that far (a panic, a stop) still leaves a line.
#[derive(Debug)]
pub struct ConnectionAccount {
    log: AccessLog,
    record: Option<Record>,
    accepted: tokio::time::Instant,
}

impl ConnectionAccount {
    /// Opens the account of a connection.
    pub fn open(log: AccessLog, origin: &Origin) -> Self {
        let record = Record::new(origin.accepted_wall, origin.dst.addr(), origin.src);
        Self { log, record: Some(record), accepted: origin.accepted }
    }

    /// What the decision says of the line. A refusal carries its reason where `explain` (strict,
    /// GAP-3), and `UH` where the black hole took it (LOG-43).
    pub fn decided(&mut self, decision: &Decision, explain: bool) {
        let Some(record) = &mut self.record else { return };
        record.upstream_cluster = decision.cluster.clone();
        record.route_name = decision.route.clone();
        record.reason = decision.reason;
        if matches!(decision.action, crate::decide::Action::Block(_)) {
            self.refused(decision.reason, explain);
        }
    }

    /// A refusal that came after the decision, for instance for an address that did not verify.
    pub fn refused(&mut self, reason: Reason, explain: bool) {
        let Some(record) = &mut self.record else { return };
        record.reason = reason;
        record.flags = vec![Flag::UH];
        if explain {
            record.connection_termination_details = Some(Cow::Borrowed(reason.label()));
        }
    }

    /// The name that the client showed.
    pub fn server_name(&mut self, sni: String) {
        if let Some(record) = &mut self.record {
            record.requested_server_name = Some(sni);
        }
    }

    /// The cluster that was chosen.
    pub fn cluster(&mut self, cluster: Option<ClusterName>) {
        if let Some(record) = &mut self.record {
            record.upstream_cluster = cluster;
        }
    }

    /// The upstream connection.
    pub fn upstream(&mut self, upstream: SocketAddr, local: SocketAddr) {
        if let Some(record) = &mut self.record {
            record.upstream_host = Some(upstream);
            record.upstream_local_address = Some(local);
        }
    }

    /// There is no upstream connection (LOG-54).
    pub fn upstream_failed(
        &mut self,
        tried: Option<SocketAddr>,
        flags: Vec<Flag>,
        why: Option<String>,
    ) {
        if let Some(record) = &mut self.record {
            record.upstream_host = tried;
            record.flags = flags;
            record.upstream_transport_failure_reason = why;
        }
    }

    /// The proxy itself ended the connection.
    pub fn terminated(&mut self, flag: Option<Flag>, why: impl Into<Cow<'static, str>>) {
        if let Some(record) = &mut self.record {
            record.flags.extend(flag);
            record.connection_termination_details = Some(why.into());
        }
    }

    /// Ends the account.
    pub fn close(mut self, bytes_received: u64, bytes_sent: u64) {
        if let Some(record) = &mut self.record {
            record.bytes_received = bytes_received;
            record.bytes_sent = bytes_sent;
        }
        self.write();
    }

    /// No line: the connection is logged request by request (LOG-5).
    pub fn per_request(mut self) {
        self.record = None;
    }

    fn write(&mut self) {
        if let Some(mut record) = self.record.take() {
            record.duration = self.accepted.elapsed();
            self.log.write(record);
        }
    }
}

impl Drop for ConnectionAccount {
    fn drop(&mut self) {
        self.write();
    }
}
