//! One access-log record: the fields of LOG-3, before they are text.

use std::borrow::Cow;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use crate::act::door::Left;
use crate::decide::host::HostName;
use crate::decide::{ClusterName, Reason};
use crate::origin::Origin;
use crate::workloads::{PodIdentity, Workload};

/// Everything that a line may print. `None` prints `-` (LOG-2) or `null` in JSON (LOG-31).
#[derive(Debug, Clone, PartialEq)]
pub struct Record {
    /// Connection accepted, or first byte of the request.
    pub start: SystemTime,
    /// Present for an HTTP request.
    pub http: Option<HttpFields>,
    /// Status sent to the client; 0 for TCP.
    pub response_code: u16,
    /// Response flags in print order (LOG-15).
    pub flags: Vec<Flag>,
    /// LOG-20.
    pub response_code_details: Option<Cow<'static, str>>,
    /// Why the proxy ended the connection, if it did: in strict, the refusal's reason (GAP-3).
    pub connection_termination_details: Option<Cow<'static, str>>,
    /// Connect or TLS failure, as text.
    pub upstream_transport_failure_reason: Option<String>,
    /// From the client: connection bytes, or request body bytes.
    pub bytes_received: u64,
    /// To the client: connection bytes, or response body bytes.
    pub bytes_sent: u64,
    /// Start to last byte.
    pub duration: Duration,
    /// Address connected to, or tried last.
    pub upstream_host: Option<SocketAddr>,
    /// Cluster chosen.
    pub upstream_cluster: Option<ClusterName>,
    /// Our end of the upstream connection.
    pub upstream_local_address: Option<SocketAddr>,
    /// The original destination.
    pub downstream_local_address: SocketAddr,
    /// The workload's end.
    pub downstream_remote_address: SocketAddr,
    /// SNI, where TLS was inspected.
    pub requested_server_name: Option<String>,
    /// LOG-12.
    pub route_name: Option<Arc<str>>,
    /// Why (metrics and structured logs; not part of Envoy's format).
    pub reason: Reason,
    /// Nothing was refused: `reason` is why it would be, were its workload not audited only.
    pub audited: bool,
    /// What only custom formats and filters ask for.
    pub more: More,
}

/// Fields of a record that the default formats do not print. Whoever serves the request fills what
/// it knows; what is absent prints `-`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct More {
    /// Request headers as received, names in lower case: those that
    /// [`Pen::wanted`](super::Pen::wanted) asks for, no others.
    pub request_headers: Vec<(String, String)>,
    /// Response headers as sent to the client, likewise.
    pub response_headers: Vec<(String, String)>,
    /// Response trailers, likewise.
    pub response_trailers: Vec<(String, String)>,
    /// Start to the last byte of the request from the client.
    pub request_duration: Option<Duration>,
    /// Start to the first byte of the (last) attempt upstream.
    pub sending_duration: Option<Duration>,
    /// Start to the first byte of the upstream's answer.
    pub response_duration: Option<Duration>,
    /// `HTTP/1.1` or `HTTP/2` towards the upstream.
    pub upstream_protocol: Option<&'static str>,
    /// How often an upstream was tried, retries included; `None` where this proxy tries none, as
    /// for flows that pass it by.
    pub attempts: Option<u32>,
    /// Number of the client's connection, unique while the daemon runs.
    pub connection_id: Option<u64>,
    /// TLS that was originated towards the upstream.
    pub upstream_tls: Option<TlsFields>,
    /// The name that the daemon knows the dialled address by (see [`Record::note_address_of`]).
    pub address_of: Option<String>,
    /// The unix socket that stands in the place of `upstream_host`.
    pub upstream_socket: Option<Arc<Path>>,
    /// The egress proxy through which it left, or that gave no way out.
    pub egress_proxy: Option<Arc<str>>,
    /// What that was asked for, as an authority.
    pub proxy_target: Option<Arc<str>>,
    /// The pod whose it is, where the workloads are pods.
    pub pod: Option<Arc<PodIdentity>>,
    /// The trace that the lines of a node and of its gateway share.
    pub trace_id: Option<Arc<str>>,
    /// At a gateway: the node that it came from.
    pub node: Option<Arc<str>>,
    /// At a gateway: whose it is, `namespace/name`.
    pub workload: Option<String>,
}

/// What a log line may say of a TLS session.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct TlsFields {
    /// `TLSv1.3`.
    pub version: Option<String>,
    /// As OpenSSL writes it: `TLS_AES_256_GCM_SHA384`.
    pub cipher: Option<String>,
    /// The server certificate's subject, the most specific part first (RFC 2253).
    pub peer_subject: Option<String>,
    /// Who signed it, likewise.
    pub peer_issuer: Option<String>,
    /// Its names, joined by commas.
    pub peer_dns_san: Option<String>,
    /// Its URIs, likewise.
    pub peer_uri_san: Option<String>,
    /// Its addresses, likewise.
    pub peer_ip_san: Option<String>,
}

impl Record {
    /// The name that the client asked for: its SNI, or the Host of its request.
    pub fn named(&self) -> Option<&str> {
        let host = self.http.as_ref().and_then(|http| http.authority.as_deref());
        self.requested_server_name.as_deref().or(host)
    }

    /// What is known of the dialled address without the client's word: it is one of `name`'s, for
    /// which the workload asked its resolver and then the daemon its own. Where no name was shown, and
    /// the cluster is none of one host, field 8 says so if `explain` (GAP-4).
    pub fn note_address_of(&mut self, name: Option<&HostName>, explain: bool) {
        let Some(name) = name else { return };
        self.more.address_of = Some(name.to_string());
        let of_host =
            |cluster: &ClusterName| cluster.0.starts_with("outbound|") && !cluster.0.contains("|*");
        let told = self.named().is_some() || self.upstream_cluster.as_ref().is_some_and(of_host);
        if explain && !told {
            self.remark(format!("address_of{{{name}}}"));
        }
    }

    /// Field 8 says why it would be refused, where it is only audited.
    pub fn note_audited(&mut self) {
        if self.audited {
            self.remark(self.reason.audit_label());
        }
    }

    /// The way out.
    pub fn note_door(&mut self, left: Option<&Left>) {
        self.more.egress_proxy = left.map(|left| Arc::clone(&left.proxy));
        self.more.proxy_target = left.map(|left| Arc::clone(&left.target));
        if let Some(trace) = left.and_then(|left| left.trace.as_ref()) {
            self.more.trace_id = Some(Arc::clone(trace));
        }
    }

    /// Whose it is, and the way in at a gateway.
    pub fn note_arrival(&mut self, origin: &Origin) {
        self.more.pod.clone_from(&origin.workload.pod);
        let Some(arrival) = &origin.arrival else { return };
        let Workload { namespace, name, .. } = &*origin.workload;
        self.more.trace_id = Some(Arc::clone(&arrival.trace));
        self.more.node = Some(Arc::clone(&arrival.node));
        self.more.workload = Some(format!("{namespace}/{name}"));
    }

    /// Adds a word to field 8.
    pub fn remark(&mut self, word: impl Into<Cow<'static, str>>) {
        let word = word.into();
        self.connection_termination_details =
            Some(match self.connection_termination_details.take() {
                Some(before) => Cow::Owned(format!("{before},{word}")),
                None => word,
            });
    }

    /// The record of something that went to `dst` from `src` and of which nothing else is known yet.
    pub fn new(start: SystemTime, dst: SocketAddr, src: SocketAddr) -> Self {
        Self {
            start,
            http: None,
            response_code: 0,
            flags: Vec::new(),
            response_code_details: None,
            connection_termination_details: None,
            upstream_transport_failure_reason: None,
            bytes_received: 0,
            bytes_sent: 0,
            duration: Duration::ZERO,
            upstream_host: None,
            upstream_cluster: None,
            upstream_local_address: None,
            downstream_local_address: dst,
            downstream_remote_address: src,
            requested_server_name: None,
            route_name: None,
            reason: Reason::NoPolicy,
            audited: false,
            more: More::default(),
        }
    }
}

/// The fields that only an HTTP request has. Strings are raw; the writer escapes them.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct HttpFields {
    /// Method.
    pub method: String,
    /// Path with query, as received.
    pub path: String,
    /// `HTTP/1.1`, `HTTP/2`, ...
    pub protocol: &'static str,
    /// Time from sending the request to the response head.
    pub upstream_service_time: Option<Duration>,
    /// As received.
    pub x_forwarded_for: Option<String>,
    /// As received.
    pub user_agent: Option<String>,
    /// As received, or made by us.
    pub request_id: Option<String>,
    /// Host or `:authority` as received.
    pub authority: Option<String>,
}

/// Response flags (LOG-15).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Flag {
    /// No healthy (or no) upstream host.
    UH,
    /// Could not connect to upstream.
    UF,
    /// No route.
    NR,
    /// Retry or connect-attempt limit exhausted.
    URX,
    /// Client went away first.
    DC,
    /// Request timeout at upstream.
    UT,
    /// Upstream reset the stream (HTTP/2).
    UR,
    /// Upstream closed the connection mid-request.
    UC,
    /// Protocol error by the client.
    DPE,
    /// Protocol error by the upstream.
    UPE,
    /// Idle timeout.
    SI,
    /// A cluster's limit is reached.
    UO,
    /// The named cluster does not exist.
    NC,
    /// An injected delay.
    DI,
    /// An injected abort.
    FI,
    /// The longest duration of a stream is reached.
    UMSDR,
    /// The longest duration of a connection is reached.
    DT,
    /// Reset by us.
    LR,
    /// The upstream's health check failed.
    LH,
    /// A name did not resolve (dynamic resolution).
    DF,
    /// One of the daemon's own limits is reached.
    OM,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::account::Format;
    use crate::account::format::tests::tcp_record;

    /// GAP-4: the name of an address, which nobody showed; as in Envoy the address where there is none.
    #[test]
    fn upstream_host_name() {
        let format = Format::text("%UPSTREAM_HOST_NAME% %UPSTREAM_HOST_NAME_WITHOUT_PORT%");
        let format = format.expect("parses");
        let mut record = tcp_record();
        let dst = record.downstream_local_address;
        record.upstream_host = Some(dst);
        record.requested_server_name = None;
        record.upstream_cluster = Some(ClusterName::passthrough());
        assert_eq!(format.line(&record), format!("{dst} {}\n", dst.ip()));
        let name = HostName::parse("db.test").expect("a name");
        record.note_address_of(Some(&name), true);
        assert_eq!(format.line(&record), "db.test db.test\n");
        let details = |record: &Record| record.connection_termination_details.clone();
        assert_eq!(details(&record).as_deref(), Some("address_of{db.test}"));
        // Somewhere else.
        record.upstream_host = Some("192.0.2.250:7".parse().expect("an address"));
        assert_eq!(format.line(&record), "192.0.2.250:7 192.0.2.250\n");
        // The line tells already, or the profile does not.
        let told = |change: fn(&mut Record), explain| {
            let mut record = Record { upstream_cluster: None, ..tcp_record() };
            record.requested_server_name = None;
            change(&mut record);
            record.note_address_of(Some(&name), explain);
            details(&record)
        };
        assert_eq!(told(|_| {}, false), None);
        assert_eq!(told(|r| r.requested_server_name = Some("a.test".into()), true), None);
        assert_eq!(
            told(|r| r.upstream_cluster = Some(ClusterName::outbound(1, "a.test")), true),
            None
        );
        let wide = told(|r| r.upstream_cluster = Some(ClusterName::outbound(1, "*.test")), true);
        assert_eq!(wide.as_deref(), Some("address_of{db.test}"));
        let twice = told(|r| r.remark("not_registered"), true);
        assert_eq!(twice.as_deref(), Some("not_registered,address_of{db.test}"));
    }
}
