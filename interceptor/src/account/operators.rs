//! Envoy's command operators (LOG-32): what may stand between two percent signs. What a record says
//! to it: [`super::values`].

use super::strftime::TimeFormat;
use crate::workloads::PodIdentity;

/// One operator with its arguments, `%REQ(X-FORWARDED-FOR?USER-AGENT):20%`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Operator {
    pub(super) what: What,
    /// At most this many characters of the value.
    pub(super) max: Option<usize>,
}

/// What an operator asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum What {
    Time(Moment, TimeFormat),
    /// A header and the one to take where it is absent, both in lower case.
    Header(Head, String, Option<String>),
    /// HOSTNAME, ENVIRONMENT: what a pod's own proxy would print, else what was known when the format
    /// was read.
    Fixed(Option<PodField>, Option<String>),
    /// A parameter of the request's query.
    Query(String),
    /// Between two points of an exchange, in parts of a second of which so many make one.
    Between(Point, Point, Precision),
    Plain(Plain),
    /// A real operator about something that this proxy never has.
    Never,
}

/// What is said of the pod that a record is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum PodField {
    Namespace,
    Name,
    ServiceAccount,
}

impl PodField {
    /// What a variable tells in the environment of a sidecar, as Istio sets it.
    fn of_variable(variable: &str) -> Option<Self> {
        match variable {
            "POD_NAMESPACE" => Some(Self::Namespace),
            "POD_NAME" => Some(Self::Name),
            "SERVICE_ACCOUNT" => Some(Self::ServiceAccount),
            _ => None,
        }
    }

    pub(super) fn of(self, pod: &PodIdentity) -> &str {
        match self {
            Self::Namespace => &pod.namespace,
            Self::Name => &pod.name,
            Self::ServiceAccount => &pod.service_account,
        }
    }
}

/// Which point in time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Moment {
    Start,
    End,
}

/// A point of an exchange, as COMMON_DURATION names them (DS: client, US: upstream, RX: received,
/// TX: sent, BEG and END: first and last byte).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Point {
    DsRxBeg,
    DsRxEnd,
    UsTxBeg,
    UsTxEnd,
    UsRxBeg,
    UsRxEnd,
    DsTxBeg,
    DsTxEnd,
}

const POINTS: &[(&str, Point)] = &[
    ("DS_RX_BEG", Point::DsRxBeg),
    ("DS_RX_END", Point::DsRxEnd),
    ("US_TX_BEG", Point::UsTxBeg),
    ("US_TX_END", Point::UsTxEnd),
    ("US_RX_BEG", Point::UsRxBeg),
    ("US_RX_END", Point::UsRxEnd),
    ("DS_TX_BEG", Point::DsTxBeg),
    ("DS_TX_END", Point::DsTxEnd),
];

/// The unit of a duration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Precision {
    Milliseconds,
    Microseconds,
    Nanoseconds,
}

/// Whose headers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Head {
    Request,
    Response,
    Trailer,
}

/// Which end of which connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    UpstreamRemote,
    UpstreamLocal,
    DownstreamRemote,
    DownstreamLocal,
}

/// Operators without arguments.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Plain {
    ResponseCode,
    ResponseFlags,
    ResponseFlagsLong,
    ResponseCodeDetails,
    ConnectionTerminationDetails,
    UpstreamTransportFailureReason,
    BytesReceived,
    BytesSent,
    Duration,
    RequestDuration,
    ResponseDuration,
    ResponseTxDuration,
    Address(End),
    Ip(End),
    Port(End),
    UpstreamCluster,
    RequestedServerName,
    RouteName,
    Protocol,
    UpstreamProtocol,
    ConnectionId,
    Attempts,
    UpstreamTlsVersion,
    UpstreamTlsCipher,
    UpstreamPeerSubject,
    UpstreamPeerIssuer,
    UpstreamPeerDnsSan,
    UpstreamPeerUriSan,
    UpstreamPeerIpSan,
    RequestTxDuration,
    LogType,
    UpstreamName,
    UpstreamNameWithoutPort,
    EgressProxy,
    ProxyTarget,
    TraceId,
    Node,
    Workload,
}

/// Operators without arguments and their names.
const PLAIN: &[(&str, Plain)] = &[
    ("RESPONSE_CODE", Plain::ResponseCode),
    ("TRACE_ID", Plain::TraceId),
    ("RESPONSE_FLAGS", Plain::ResponseFlags),
    ("RESPONSE_FLAGS_LONG", Plain::ResponseFlagsLong),
    ("RESPONSE_CODE_DETAILS", Plain::ResponseCodeDetails),
    ("CONNECTION_TERMINATION_DETAILS", Plain::ConnectionTerminationDetails),
    ("UPSTREAM_TRANSPORT_FAILURE_REASON", Plain::UpstreamTransportFailureReason),
    ("BYTES_RECEIVED", Plain::BytesReceived),
    ("BYTES_SENT", Plain::BytesSent),
    ("DURATION", Plain::Duration),
    ("REQUEST_DURATION", Plain::RequestDuration),
    ("RESPONSE_DURATION", Plain::ResponseDuration),
    ("RESPONSE_TX_DURATION", Plain::ResponseTxDuration),
    ("UPSTREAM_HOST", Plain::Address(End::UpstreamRemote)),
    ("UPSTREAM_REMOTE_ADDRESS", Plain::Address(End::UpstreamRemote)),
    ("UPSTREAM_REMOTE_ADDRESS_WITHOUT_PORT", Plain::Ip(End::UpstreamRemote)),
    ("UPSTREAM_REMOTE_PORT", Plain::Port(End::UpstreamRemote)),
    ("UPSTREAM_LOCAL_ADDRESS", Plain::Address(End::UpstreamLocal)),
    ("UPSTREAM_LOCAL_ADDRESS_WITHOUT_PORT", Plain::Ip(End::UpstreamLocal)),
    ("UPSTREAM_LOCAL_PORT", Plain::Port(End::UpstreamLocal)),
    ("DOWNSTREAM_REMOTE_ADDRESS", Plain::Address(End::DownstreamRemote)),
    ("DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT", Plain::Ip(End::DownstreamRemote)),
    ("DOWNSTREAM_REMOTE_PORT", Plain::Port(End::DownstreamRemote)),
    ("DOWNSTREAM_DIRECT_REMOTE_ADDRESS", Plain::Address(End::DownstreamRemote)),
    ("DOWNSTREAM_DIRECT_REMOTE_ADDRESS_WITHOUT_PORT", Plain::Ip(End::DownstreamRemote)),
    ("DOWNSTREAM_DIRECT_REMOTE_PORT", Plain::Port(End::DownstreamRemote)),
    ("DOWNSTREAM_LOCAL_ADDRESS", Plain::Address(End::DownstreamLocal)),
    ("DOWNSTREAM_LOCAL_ADDRESS_WITHOUT_PORT", Plain::Ip(End::DownstreamLocal)),
    ("DOWNSTREAM_LOCAL_PORT", Plain::Port(End::DownstreamLocal)),
    ("DOWNSTREAM_DIRECT_LOCAL_ADDRESS", Plain::Address(End::DownstreamLocal)),
    ("DOWNSTREAM_DIRECT_LOCAL_ADDRESS_WITHOUT_PORT", Plain::Ip(End::DownstreamLocal)),
    ("DOWNSTREAM_DIRECT_LOCAL_PORT", Plain::Port(End::DownstreamLocal)),
    ("UPSTREAM_CLUSTER", Plain::UpstreamCluster),
    ("UPSTREAM_CLUSTER_RAW", Plain::UpstreamCluster),
    ("REQUESTED_SERVER_NAME", Plain::RequestedServerName),
    ("ROUTE_NAME", Plain::RouteName),
    ("PROTOCOL", Plain::Protocol),
    ("UPSTREAM_PROTOCOL", Plain::UpstreamProtocol),
    ("CONNECTION_ID", Plain::ConnectionId),
    ("UPSTREAM_REQUEST_ATTEMPT_COUNT", Plain::Attempts),
    ("UPSTREAM_TLS_VERSION", Plain::UpstreamTlsVersion),
    ("UPSTREAM_TLS_CIPHER", Plain::UpstreamTlsCipher),
    ("UPSTREAM_PEER_SUBJECT", Plain::UpstreamPeerSubject),
    ("UPSTREAM_PEER_ISSUER", Plain::UpstreamPeerIssuer),
    ("UPSTREAM_PEER_DNS_SAN", Plain::UpstreamPeerDnsSan),
    ("UPSTREAM_PEER_URI_SAN", Plain::UpstreamPeerUriSan),
    ("UPSTREAM_PEER_IP_SAN", Plain::UpstreamPeerIpSan),
    ("REQUEST_TX_DURATION", Plain::RequestTxDuration),
    ("ACCESS_LOG_TYPE", Plain::LogType),
    ("UPSTREAM_HOST_NAME", Plain::UpstreamName),
    ("UPSTREAM_HOST_NAME_WITHOUT_PORT", Plain::UpstreamNameWithoutPort),
];

/// Operators of Envoy about things that this proxy never has: TLS is never terminated, filters and
/// their state are Envoy's own, bytes are not counted on the wire.
const NEVER: &[&str] = &[
    "CUSTOM_FLAGS",
    "DOWNSTREAM_DETECTED_CLOSE_TYPE",
    "DOWNSTREAM_HEADER_BYTES_RECEIVED",
    "DOWNSTREAM_HEADER_BYTES_SENT",
    "DOWNSTREAM_LOCAL_DNS_SAN",
    "DOWNSTREAM_LOCAL_EMAIL_SAN",
    "DOWNSTREAM_LOCAL_IP_SAN",
    "DOWNSTREAM_LOCAL_SUBJECT",
    "DOWNSTREAM_LOCAL_URI_SAN",
    "DOWNSTREAM_PEER_CERT",
    "DOWNSTREAM_PEER_CERT_V_END",
    "DOWNSTREAM_PEER_CERT_V_START",
    "DOWNSTREAM_PEER_DNS_SAN",
    "DOWNSTREAM_PEER_EMAIL_SAN",
    "DOWNSTREAM_PEER_FINGERPRINT_1",
    "DOWNSTREAM_PEER_FINGERPRINT_256",
    "DOWNSTREAM_PEER_IP_SAN",
    "DOWNSTREAM_PEER_ISSUER",
    "DOWNSTREAM_PEER_SERIAL",
    "DOWNSTREAM_PEER_SUBJECT",
    "DOWNSTREAM_PEER_URI_SAN",
    "DOWNSTREAM_TLS_CIPHER",
    "DOWNSTREAM_TLS_SESSION_ID",
    "DOWNSTREAM_TLS_VERSION",
    "DOWNSTREAM_TRANSPORT_FAILURE_REASON",
    "DOWNSTREAM_WIRE_BYTES_RECEIVED",
    "DOWNSTREAM_WIRE_BYTES_SENT",
    "EMIT_TIME_LOCAL",
    "FILTER_CHAIN_NAME",
    "GRPC_STATUS_NUMBER",
    "LOCAL_REPLY_BODY",
    "REQUEST_HEADERS_BYTES",
    "RESPONSE_HEADERS_BYTES",
    "RESPONSE_TRAILERS_BYTES",
    "ROUNDTRIP_DURATION",
    "START_TIME_LOCAL",
    "STREAM_ID",
    "TLS_JA3_FINGERPRINT",
    "TLS_JA4_FINGERPRINT",
    "SPAN_ID",
    "UNIQUE_ID",
    "UPSTREAM_CONNECTION_ID",
    "UPSTREAM_CONNECTION_POOL_READY_DURATION",
    "UPSTREAM_DETECTED_CLOSE_TYPE",
    "UPSTREAM_HEADER_BYTES_RECEIVED",
    "UPSTREAM_HEADER_BYTES_SENT",
    "UPSTREAM_LOCAL_DNS_SAN",
    "UPSTREAM_LOCAL_IP_SAN",
    "UPSTREAM_LOCAL_SUBJECT",
    "UPSTREAM_LOCAL_URI_SAN",
    "UPSTREAM_PEER_CERT",
    "UPSTREAM_PEER_CERT_V_END",
    "UPSTREAM_PEER_CERT_V_START",
    "UPSTREAM_SERVER_NAME",
    "UPSTREAM_TLS_SESSION_ID",
    "UPSTREAM_WIRE_BYTES_RECEIVED",
    "UPSTREAM_WIRE_BYTES_SENT",
    "VIRTUAL_CLUSTER_NAME",
];

/// The same, of those that take arguments, which are not looked at.
const NEVER_WITH_ARGUMENTS: &[&str] = &[
    "CLUSTER_METADATA",
    "DYNAMIC_METADATA",
    "FILTER_STATE",
    "GRPC_STATUS",
    "METADATA",
    "UPSTREAM_FILTER_STATE",
    "UPSTREAM_METADATA",
];

/// Operators with arguments of their own.
const WITH_ARGUMENTS: &[&str] = &[
    "START_TIME",
    "EMIT_TIME",
    "REQ",
    "RESP",
    "TRAILER",
    "HOSTNAME",
    "ENVIRONMENT",
    "COMMON_DURATION",
    "QUERY_PARAM",
];

impl Operator {
    /// Reads what stands between the percent signs, split into its parts.
    ///
    /// # Errors
    /// What is wrong with it, without the place.
    pub(super) fn parse(
        name: &str,
        argument: Option<&str>,
        max: Option<usize>,
    ) -> Result<Self, String> {
        let what = match (name, argument) {
            ("START_TIME", text) => What::Time(Moment::Start, time_format(text)?),
            ("EMIT_TIME", text) => What::Time(Moment::End, time_format(text)?),
            ("REQ" | "RESP" | "TRAILER", Some(headers)) => header(name, headers)?,
            // A pod's host is called as the pod.
            ("HOSTNAME", None) => What::Fixed(Some(PodField::Name), host_name()),
            ("ENVIRONMENT", Some(variable)) if !variable.is_empty() => {
                let own = std::env::var(variable).ok().filter(|value| !value.is_empty());
                What::Fixed(PodField::of_variable(variable), own)
            }
            ("REQ" | "RESP" | "TRAILER", None) => {
                return Err(format!("{name} needs a header: %{name}(X-NAME)%"));
            }
            ("ENVIRONMENT", _) => return Err("ENVIRONMENT needs a variable's name".into()),
            ("COMMON_DURATION", points) => common_duration(points.unwrap_or_default())?,
            ("QUERY_PARAM", Some(parameter)) if !parameter.is_empty() => {
                What::Query(parameter.to_owned())
            }
            ("DYNAMIC_METADATA", Some("interceptor:egress_proxy")) => {
                What::Plain(Plain::EgressProxy)
            }
            ("DYNAMIC_METADATA", Some("interceptor:proxy_target")) => {
                What::Plain(Plain::ProxyTarget)
            }
            ("DYNAMIC_METADATA", Some("interceptor:node")) => What::Plain(Plain::Node),
            ("DYNAMIC_METADATA", Some("interceptor:workload")) => What::Plain(Plain::Workload),
            ("QUERY_PARAM", _) => return Err("QUERY_PARAM needs a parameter's name".into()),
            (name, _) if NEVER_WITH_ARGUMENTS.contains(&name) => What::Never,
            (name, argument) => {
                let plain = PLAIN.iter().find(|(known, _)| *known == name);
                let what = match plain {
                    Some((_, plain)) => What::Plain(*plain),
                    None if NEVER.contains(&name) => What::Never,
                    None => return Err(unknown(name)),
                };
                if argument.is_some_and(|a| !a.is_empty()) {
                    return Err(format!("{name} takes no argument"));
                }
                what
            }
        };
        Ok(Self { what, max })
    }

    /// LOG-4: fields whose free text shows its spaces as underscores.
    pub(super) fn joins_words(&self) -> bool {
        matches!(
            self.what,
            What::Plain(
                Plain::ResponseCodeDetails
                    | Plain::ConnectionTerminationDetails
                    | Plain::UpstreamTransportFailureReason
            )
        )
    }
}

impl Plain {
    /// Whether it says something about TLS towards the upstream.
    pub(super) fn is_tls(self) -> bool {
        matches!(
            self,
            Self::UpstreamTlsVersion
                | Self::UpstreamTlsCipher
                | Self::UpstreamPeerSubject
                | Self::UpstreamPeerIssuer
                | Self::UpstreamPeerDnsSan
                | Self::UpstreamPeerUriSan
                | Self::UpstreamPeerIpSan
        )
    }
}

fn header(operator: &str, argument: &str) -> Result<What, String> {
    let head = match operator {
        "REQ" => Head::Request,
        "RESP" => Head::Response,
        _ => Head::Trailer,
    };
    let (name, alternative) = match argument.split_once('?') {
        Some((name, alternative)) => (name, Some(alternative)),
        None => (argument, None),
    };
    let is_name = |name: &str| {
        let name = name.strip_prefix(':').unwrap_or(name);
        http::HeaderName::from_bytes(name.as_bytes()).is_ok()
    };
    for name in [Some(name), alternative].into_iter().flatten() {
        if !is_name(name) {
            return Err(format!("\"{name}\" is not a header name"));
        }
    }
    let lower = str::to_ascii_lowercase;
    Ok(What::Header(head, lower(name), alternative.map(lower)))
}

/// `START:END:PRECISION`.
fn common_duration(argument: &str) -> Result<What, String> {
    let usage = || {
        let points: Vec<_> = POINTS.iter().map(|(name, _)| *name).collect();
        format!(
            "COMMON_DURATION needs two points and a precision, \
             %COMMON_DURATION(DS_RX_BEG:US_RX_BEG:ms)%; points: {}; precisions: ms, us, ns",
            points.join(", ")
        )
    };
    let parts: Vec<_> = argument.split(':').collect();
    let &[from, to, precision] = parts.as_slice() else { return Err(usage()) };
    let point = |text: &str| {
        POINTS.iter().find(|(name, _)| *name == text).map(|(_, point)| *point).ok_or_else(usage)
    };
    let precision = match precision {
        "ms" => Precision::Milliseconds,
        "us" => Precision::Microseconds,
        "ns" => Precision::Nanoseconds,
        _ => return Err(usage()),
    };
    Ok(What::Between(point(from)?, point(to)?, precision))
}

fn time_format(argument: Option<&str>) -> Result<TimeFormat, String> {
    match argument {
        None | Some("") => Ok(TimeFormat::default()),
        Some(text) => TimeFormat::parse(text),
    }
}

fn host_name() -> Option<String> {
    nix::unistd::gethostname().ok().and_then(|name| name.into_string().ok())
}

fn unknown(name: &str) -> String {
    let mut known: Vec<&str> = PLAIN.iter().map(|(name, _)| *name).collect();
    known.extend_from_slice(WITH_ARGUMENTS);
    known.extend_from_slice(NEVER);
    known.extend_from_slice(NEVER_WITH_ARGUMENTS);
    known.sort_unstable();
    format!("unknown operator {name}; known: {}", known.join(", "))
}
