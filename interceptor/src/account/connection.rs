//! The account of one TCP or TLS connection: opened when it is accepted, closed exactly once.

use std::borrow::Cow;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use crate::account::{AccessLog, Flag, Folds, Pen, Record, TlsFields};
use crate::act::door::Left;
use crate::decide::host::HostName;
use crate::decide::{Action, ClusterName, Decision, Reason};
use crate::origin::Origin;

/// Writes one record, whatever happens: `close` writes what is known, and a task that is dropped
/// before it came that far (a panic, a stop) still leaves a line.
#[derive(Debug)]
pub struct ConnectionAccount {
    pen: Pen,
    record: Option<Record>,
    /// The hello offered to hide the true name (T-26); shown where refusals are explained.
    ech: bool,
    /// The name that the daemon knows the dialled address by, and whether lines say why (strict).
    address_of: Option<HostName>,
    explain: bool,
    accepted: tokio::time::Instant,
}

/// How field 8 says it.
pub const OFFERED_ECH: &str = "encrypted_client_hello";

impl ConnectionAccount {
    /// Opens the account of a connection, to be written by the settings of this moment (MESH-20).
    pub fn open(log: AccessLog, origin: &Origin) -> Self {
        let mut record = Record::new(origin.accepted_wall, origin.dst.addr(), origin.src);
        record.more.connection_id = Some(origin.id);
        record.more.attempts = Some(0);
        record.note_arrival(origin);
        Self {
            pen: log.pen(),
            record: Some(record),
            ech: false,
            address_of: None,
            explain: false,
            accepted: origin.accepted,
        }
    }

    /// What the decision says of the line. A refusal carries its reason where `explain` (strict,
    /// GAP-3), and `UH` where the black hole took it (LOG-43).
    pub fn decided(&mut self, decision: &Decision, explain: bool) {
        let Some(record) = &mut self.record else { return };
        record.upstream_cluster = decision.cluster.clone();
        record.route_name = decision.route.clone();
        record.reason = decision.reason;
        match decision.action {
            Action::Block(_) => self.refused(decision.reason, explain),
            Action::Audited(_) => self.audited(decision.reason),
            _ => {}
        }
    }

    /// It passes although it would be refused, in both profiles told so.
    pub fn audited(&mut self, reason: Reason) {
        let Some(record) = &mut self.record else { return };
        (record.reason, record.audited) = (reason, true);
    }

    /// A refusal that came after the decision, for instance for an address that did not verify.
    pub fn refused(&mut self, reason: Reason, explain: bool) {
        let Some(record) = &mut self.record else { return };
        record.reason = reason;
        // A client that was gone before it asked for anything is not refused: it left (LOG-15).
        let left = reason == Reason::EarlyClose;
        record.flags = vec![match reason {
            _ if left => Flag::DC,
            Reason::NotServed => Flag::NR,
            _ => Flag::UH,
        }];
        if reason == Reason::NotServed {
            record.response_code_details = Some("filter_chain_not_found".into());
        }
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

    /// The client offered encrypted_client_hello, or pretended to: the name that it showed need not
    /// be the one that it means (T-26).
    pub fn offered_ech(&mut self) {
        self.ech = true;
    }

    /// The name that the daemon knows the dialled address by, for the log where the client shows none
    /// (GAP-4). In strict a line says so: `explain`.
    pub fn address_of(&mut self, name: Option<HostName>, explain: bool) {
        (self.address_of, self.explain) = (name, explain);
    }

    /// The cluster that was chosen.
    pub fn cluster(&mut self, cluster: Option<ClusterName>) {
        if let Some(record) = &mut self.record {
            record.upstream_cluster = cluster;
        }
    }

    /// The upstream connection, and what its TLS says if the log asks for that.
    pub fn upstream(
        &mut self,
        upstream: SocketAddr,
        local: SocketAddr,
        tls: impl FnOnce() -> Option<TlsFields>,
    ) {
        if let Some(record) = &mut self.record {
            record.upstream_host = Some(upstream);
            record.upstream_local_address = Some(local);
        }
        self.connected(tls);
    }

    fn connected(&mut self, tls: impl FnOnce() -> Option<TlsFields>) {
        if let Some(record) = &mut self.record {
            record.more.attempts = Some(1);
            if self.pen.wanted().tls {
                record.more.upstream_tls = tls();
            }
        }
    }

    /// The upstream connection, where it is one to a unix socket.
    pub fn upstream_socket(&mut self, path: Arc<Path>, tls: impl FnOnce() -> Option<TlsFields>) {
        if let Some(record) = &mut self.record {
            record.more.upstream_socket = Some(path);
        }
        self.connected(tls);
    }

    /// The way out: through an egress proxy, or none.
    pub fn left(&mut self, left: Option<&Left>) {
        if let Some(record) = &mut self.record {
            record.note_door(left);
        }
    }

    /// The egress proxy that gave no way out.
    pub fn shut(&mut self, proxy: Arc<str>) {
        if let Some(record) = &mut self.record {
            record.more.egress_proxy = Some(proxy);
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
            record.more.attempts = Some(u32::from(tried.is_some()));
            record.flags = flags;
            record.upstream_transport_failure_reason = why;
        }
    }

    /// A gateway that it was led to refused it, and said why.
    pub fn refused_beyond(&mut self, why: String) {
        if let Some(record) = &mut self.record {
            record.upstream_transport_failure_reason = Some(why);
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

    /// Ends the account of a connection that was refused, of which there may be many (T-55).
    pub fn close_refused(mut self, folds: &Folds) {
        if let Some(record) = self.finished() {
            folds.refused(record);
        }
    }

    /// No line: the connection is logged request by request (LOG-5).
    pub fn per_request(mut self) {
        self.record = None;
    }

    fn write(&mut self) {
        if let Some(record) = self.finished() {
            self.pen.write(record);
        }
    }

    /// The record with what is known at the end; `None`: it was taken before.
    fn finished(&mut self) -> Option<Record> {
        let mut record = self.record.take()?;
        record.duration = self.accepted.elapsed();
        record.note_audited();
        if self.ech {
            record.remark(OFFERED_ECH);
        }
        record.note_address_of(self.address_of.take().as_ref(), self.explain);
        Some(record)
    }
}

impl Drop for ConnectionAccount {
    fn drop(&mut self) {
        self.write();
    }
}
