//! One access-log record: the fields of LOG-3, before they are text.

use std::borrow::Cow;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use crate::decide::{ClusterName, Reason};

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
    /// The unix socket that stands in the place of `upstream_host`.
    pub upstream_socket: Option<Arc<Path>>,
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
