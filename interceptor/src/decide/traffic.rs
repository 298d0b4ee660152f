//! How traffic to a cluster is carried: what a DestinationRule makes of it (section 11), ready to
//! act on. The default is what a service without one gets.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// Everything that a DestinationRule says of one cluster, after lookup and precedence (DR-1 to
/// DR-8).
#[derive(Debug, Clone, PartialEq, Default)]
pub struct TrafficPolicy {
    /// `connectionPool.tcp.connectTimeout`; `None` = the mesh's (MESH-6).
    pub connect_timeout: Option<Duration>,
    /// `connectionPool` limits.
    pub limits: Limits,
    /// `connectionPool.tcp.tcpKeepalive`; `None` = off.
    pub keepalive: Option<Keepalive>,
    /// How an endpoint is chosen (DR-13).
    pub load_balancer: LoadBalancer,
    /// When endpoints are taken out (DR-12); `None` = never.
    pub outlier: Option<OutlierDetection>,
    /// TLS that the proxy originates (section 12).
    pub tls: Option<Arc<Origination>>,
    /// CONNECT or POST through the cluster as a proxy (GW-20).
    pub tunnel: Option<Tunnel>,
    /// PROXY protocol header on each upstream connection (DR-16).
    pub proxy_protocol: Option<ProxyProtocol>,
    /// HTTP version spoken to the upstream (SE-15, TLS-11, TLS-12).
    pub protocol: UpstreamProtocol,
}

impl TrafficPolicy {
    /// Whether nothing goes around or ahead of a request's bytes.
    pub fn is_bare(&self) -> bool {
        self.tls.is_none() && self.proxy_protocol.is_none()
    }
}

/// Limits of a cluster (DR-9, DR-10). `None` = unlimited.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Limits {
    /// `tcp.maxConnections`.
    pub max_connections: Option<u32>,
    /// `tcp.maxConnectionDuration`.
    pub max_connection_duration: Option<Duration>,
    /// `tcp.idleTimeout`: `None` = 1 h; zero switches it off.
    pub tcp_idle_timeout: Option<Duration>,
    /// `http.http1MaxPendingRequests`.
    pub max_pending_requests: Option<u32>,
    /// `http.http2MaxRequests`.
    pub max_requests: Option<u32>,
    /// `http.maxRequestsPerConnection`; 0 was turned into `None`.
    pub max_requests_per_connection: Option<u32>,
    /// `http.maxRetries`: retries under way at a time.
    pub max_retries: Option<u32>,
    /// `http.idleTimeout`: `None` = 1 h.
    pub http_idle_timeout: Option<Duration>,
    /// `http.maxConcurrentStreams` of one HTTP/2 connection.
    pub max_concurrent_streams: Option<u32>,
    /// `http.http2KeepAlive`: interval of pings and the wait for their answer; `None` = no pings.
    pub http2_keepalive: Option<(Duration, Duration)>,
}

/// SO_KEEPALIVE of upstream connections; `None` = the system's value.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Keepalive {
    /// Unanswered probes that end a connection.
    pub probes: Option<u32>,
    /// Silence before the first probe.
    pub time: Option<Duration>,
    /// Time between probes.
    pub interval: Option<Duration>,
}

/// How an endpoint is chosen.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum LoadBalancer {
    /// The less busy of two random ones, by weight (RES-15).
    #[default]
    LeastRequest,
    /// At random, by weight.
    Random,
    /// In turn.
    RoundRobin,
    /// The address that the workload dialled (DR-13; strict: profiles.md).
    Passthrough,
    /// The same one for the same key.
    Hash(HashKey),
}

/// What is hashed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HashKey {
    /// A request header.
    Header(String),
    /// A cookie; made, with this life, where `ttl` is given and the request has none.
    Cookie {
        /// Its name.
        name: String,
        /// Its path.
        path: Option<String>,
        /// Its life; zero = the session's.
        ttl: Option<Duration>,
    },
    /// The workload's address.
    SourceIp,
    /// A query parameter.
    Query(String),
}

/// When endpoints are taken out, and for how long (DR-12).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OutlierDetection {
    /// Consecutive 5xx that eject; 0 = off.
    pub consecutive_5xx: u32,
    /// Consecutive 502, 503, 504 that eject; 0 = off.
    pub consecutive_gateway_errors: u32,
    /// Consecutive connect failures that eject, where those are counted apart; `None` = they count
    /// as 5xx.
    pub consecutive_local_origin_failures: Option<u32>,
    /// Time between looks.
    pub interval: Duration,
    /// Ejection time, times the number of ejections so far.
    pub base_ejection_time: Duration,
    /// Share of endpoints that may be out, in percent.
    pub max_ejection_percent: u32,
    /// Below this share of healthy ones all count as healthy, in percent; 0 = never.
    pub min_health_percent: u32,
}

/// TLS that the proxy originates.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Origination {
    /// `sni`; `None` = the request's original Host (TLS-5).
    pub sni: Option<String>,
    /// Where trust comes from (TLS-6).
    pub trust: Trust,
    /// Client certificate of MUTUAL (TLS-9).
    pub identity: Option<Identity>,
    /// `subjectAltNames` of the rule, else of the ServiceEntry (TLS-7).
    pub subject_alt_names: Vec<String>,
    /// `caCrl`, or the secret's.
    pub crl: Option<PathBuf>,
    /// What is checked.
    pub verify: Verify,
}

/// Where trust comes from.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Trust {
    /// The operating system's roots.
    #[default]
    System,
    /// `caCertificates`.
    File(PathBuf),
    /// `credentialName`.
    Secret(String),
}

/// The client's certificate and key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Identity {
    /// `clientCertificate` and `privateKey`.
    Files {
        /// Certificate chain, PEM.
        certificate: PathBuf,
        /// Private key, PEM.
        key: PathBuf,
    },
    /// `credentialName`.
    Secret(String),
}

/// What of the server's certificate is checked (TLS-6 to TLS-8).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Verify {
    /// Chain and name: one of `subject_alt_names`, else the Host, else the SNI.
    #[default]
    ChainAndName,
    /// Chain only: istio profile with `sni` set and no names, or non-HTTP without names (TLS-7).
    ChainOnly,
    /// Nothing: `insecureSkipVerify`.
    Nothing,
    /// No TLS can be made of it: refuse (strict: TLS-9, GAP-18, a secret that is not usable here).
    Impossible,
}

/// CONNECT or POST through a proxy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tunnel {
    /// POST instead of CONNECT.
    pub post: bool,
    /// `targetHost`.
    pub host: String,
    /// `targetPort`.
    pub port: u16,
}

/// Version of the PROXY protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProxyProtocol {
    /// The text form.
    V1,
    /// The binary form.
    V2,
}

/// HTTP version spoken to the upstream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum UpstreamProtocol {
    /// HTTP/1.1, whatever the client speaks (HTTP ports).
    #[default]
    Http1,
    /// HTTP/2 (HTTP2, GRPC ports, h2UpgradePolicy UPGRADE).
    Http2,
    /// As the client (sniffed ports, useClientProtocol, PassthroughCluster: MESH-25).
    AsClient,
}
