//! Envoy's command operators (LOG-32): what may stand between two percent signs, and what a record
//! says to it.

use std::borrow::Cow;
use std::net::SocketAddr;
use std::time::Duration;

use super::record::TlsFields;
use super::strftime::TimeFormat;
use super::{Flag, Record};

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
    /// Known when the format was read: HOSTNAME, ENVIRONMENT.
    Fixed(Option<String>),
    /// A parameter of the request's query.
    Query(String),
    /// Between two points of an exchange, in parts of a second of which so many make one.
    Between(Point, Point, Precision),
    Plain(Plain),
    /// A real operator about something that this proxy never has.
    Never,
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
}

/// Operators without arguments and their names.
const PLAIN: &[(&str, Plain)] = &[
    ("RESPONSE_CODE", Plain::ResponseCode),
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
    "TRACE_ID",
    "SPAN_ID",
    "UNIQUE_ID",
    "UPSTREAM_CONNECTION_ID",
    "UPSTREAM_CONNECTION_POOL_READY_DURATION",
    "UPSTREAM_DETECTED_CLOSE_TYPE",
    "UPSTREAM_HEADER_BYTES_RECEIVED",
    "UPSTREAM_HEADER_BYTES_SENT",
    "UPSTREAM_HOST_NAME",
    "UPSTREAM_HOST_NAME_WITHOUT_PORT",
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

/// A value to print.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Value<'a> {
    /// Prints `-`, or `null` in JSON.
    Missing,
    Number(u64),
    Text(Cow<'a, str>),
}

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
            ("HOSTNAME", None) => What::Fixed(host_name()),
            ("ENVIRONMENT", Some(variable)) if !variable.is_empty() => {
                What::Fixed(std::env::var(variable).ok().filter(|value| !value.is_empty()))
            }
            ("REQ" | "RESP" | "TRAILER", None) => {
                return Err(format!("{name} needs a header: %{name}(X-NAME)%"));
            }
            ("ENVIRONMENT", _) => return Err("ENVIRONMENT needs a variable's name".into()),
            ("COMMON_DURATION", points) => common_duration(points.unwrap_or_default())?,
            ("QUERY_PARAM", Some(parameter)) if !parameter.is_empty() => {
                What::Query(parameter.to_owned())
            }
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

    /// What `record` says to it.
    pub(super) fn value<'a>(&'a self, record: &'a Record) -> Value<'a> {
        let value = match &self.what {
            What::Time(Moment::Start, format) => Value::Text(format.print(record.start).into()),
            What::Time(Moment::End, format) => {
                Value::Text(format.print(record.start + record.duration).into())
            }
            What::Header(head, name, alternative) => {
                let alternative = alternative.as_deref();
                let found = [Some(name.as_str()), alternative]
                    .into_iter()
                    .flatten()
                    .find_map(|name| header_value(record, *head, name));
                text(found)
            }
            What::Fixed(value) => text(value.as_deref().map(Cow::Borrowed)),
            What::Query(parameter) => borrowed(query_parameter(record, parameter)),
            What::Between(from, to, precision) => {
                let between = to.of(record).zip(from.of(record));
                let between = between.and_then(|(to, from)| to.checked_sub(from));
                number(between.map(|time| precision.count(time)))
            }
            What::Plain(plain) => plain.value(record),
            What::Never => Value::Missing,
        };
        match (value, self.max) {
            (Value::Text(text), Some(max)) => Value::Text(match text.char_indices().nth(max) {
                Some((end, _)) => Cow::Owned(text[..end].to_owned()),
                None => text,
            }),
            (value, _) => value,
        }
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
    fn value(self, record: &Record) -> Value<'_> {
        let more = &record.more;
        let tls = |field: fn(&TlsFields) -> Option<&str>| {
            text(more.upstream_tls.as_ref().and_then(field).map(Cow::Borrowed))
        };
        match self {
            Self::ResponseCode => Value::Number(record.response_code.into()),
            Self::ResponseFlags => flags(record, short_flag),
            Self::ResponseFlagsLong => flags(record, long_flag),
            Self::ResponseCodeDetails => borrowed(record.response_code_details.as_deref()),
            Self::ConnectionTerminationDetails => {
                borrowed(record.connection_termination_details.as_deref())
            }
            Self::UpstreamTransportFailureReason => {
                borrowed(record.upstream_transport_failure_reason.as_deref())
            }
            Self::BytesReceived => Value::Number(record.bytes_received),
            Self::BytesSent => Value::Number(record.bytes_sent),
            Self::Duration => millis(Some(record.duration)),
            Self::RequestDuration => millis(more.request_duration),
            Self::ResponseDuration => millis(more.response_duration),
            Self::ResponseTxDuration => {
                millis(more.response_duration.map(|start| record.duration.saturating_sub(start)))
            }
            Self::Address(End::UpstreamRemote) | Self::Ip(End::UpstreamRemote)
                if more.upstream_socket.is_some() =>
            {
                text(more.upstream_socket.as_ref().map(|path| path.to_string_lossy()))
            }
            Self::Address(end) => text(end.of(record).map(|at| at.to_string().into())),
            Self::Ip(end) => text(end.of(record).map(|at| at.ip().to_string().into())),
            Self::Port(end) => {
                end.of(record).map_or(Value::Missing, |at| Value::Number(at.port().into()))
            }
            Self::UpstreamCluster => borrowed(record.upstream_cluster.as_ref().map(|c| &*c.0)),
            Self::RequestedServerName => borrowed(record.requested_server_name.as_deref()),
            Self::RouteName => borrowed(record.route_name.as_deref()),
            Self::Protocol => borrowed(record.http.as_ref().map(|http| http.protocol)),
            Self::UpstreamProtocol => borrowed(more.upstream_protocol),
            Self::ConnectionId => number(more.connection_id),
            Self::Attempts => number(more.attempts.map(u64::from)),
            Self::UpstreamTlsVersion => tls(|tls| tls.version.as_deref()),
            Self::UpstreamTlsCipher => tls(|tls| tls.cipher.as_deref()),
            Self::UpstreamPeerSubject => tls(|tls| tls.peer_subject.as_deref()),
            Self::UpstreamPeerIssuer => tls(|tls| tls.peer_issuer.as_deref()),
            Self::UpstreamPeerDnsSan => tls(|tls| tls.peer_dns_san.as_deref()),
            Self::UpstreamPeerUriSan => tls(|tls| tls.peer_uri_san.as_deref()),
            Self::UpstreamPeerIpSan => tls(|tls| tls.peer_ip_san.as_deref()),
            Self::RequestTxDuration => millis(Point::UsTxEnd.of(record)),
            Self::LogType => Value::Text(Cow::Borrowed(match record.http {
                Some(_) => "DownstreamEnd",
                None => "TcpConnectionEnd",
            })),
        }
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

impl Point {
    /// When it was, from the start of the request; `None` where it was not, or for a connection,
    /// of which only its start and end are known. Bytes are passed on as they come: the last byte of
    /// a request leaves as it arrives, or with the attempt that has all of it, and an answer's first
    /// and last leave for the client as they come.
    fn of(self, record: &Record) -> Option<Duration> {
        let more = &record.more;
        match self {
            Self::DsRxBeg => Some(Duration::ZERO),
            Self::DsRxEnd => more.request_duration,
            Self::UsTxBeg => more.sending_duration,
            Self::UsTxEnd => Some(more.request_duration?.max(more.sending_duration?)),
            Self::UsRxBeg | Self::DsTxBeg => more.response_duration,
            Self::UsRxEnd => more.response_duration.map(|_| record.duration),
            Self::DsTxEnd => Some(record.duration),
        }
    }
}

impl Precision {
    fn count(self, time: Duration) -> u64 {
        let count = match self {
            Self::Milliseconds => time.as_millis(),
            Self::Microseconds => time.as_micros(),
            Self::Nanoseconds => time.as_nanos(),
        };
        u64::try_from(count).unwrap_or(u64::MAX)
    }
}

impl End {
    fn of(self, record: &Record) -> Option<SocketAddr> {
        match self {
            Self::UpstreamRemote => record.upstream_host,
            Self::UpstreamLocal => record.upstream_local_address,
            Self::DownstreamRemote => Some(record.downstream_remote_address),
            Self::DownstreamLocal => Some(record.downstream_local_address),
        }
    }
}

/// A header's value: from those that the record carries, else from the fields that it always has.
pub(super) fn header_value<'a>(record: &'a Record, head: Head, name: &str) -> Option<Cow<'a, str>> {
    let more = &record.more;
    let carried = match head {
        Head::Request => &more.request_headers,
        Head::Response => &more.response_headers,
        Head::Trailer => &more.response_trailers,
    };
    if let Some((_, value)) = carried.iter().find(|(carried, _)| carried == name) {
        return Some(Cow::Borrowed(value));
    }
    let http = record.http.as_ref()?;
    let known = match (head, name) {
        // Empty where no request could be read.
        (Head::Request, ":method") => Some(http.method.as_str()).filter(|text| !text.is_empty()),
        (Head::Request, ":path") => Some(http.path.as_str()).filter(|text| !text.is_empty()),
        (Head::Request, ":authority" | "host") => http.authority.as_deref(),
        // Requests are read from plaintext connections only.
        (Head::Request, ":scheme") => Some("http"),
        (Head::Request, "x-forwarded-for") => http.x_forwarded_for.as_deref(),
        (Head::Request, "user-agent") => http.user_agent.as_deref(),
        (Head::Request, "x-request-id") => http.request_id.as_deref(),
        (Head::Response, ":status") if record.response_code > 0 => {
            return Some(record.response_code.to_string().into());
        }
        (Head::Response, "x-envoy-upstream-service-time") => {
            return http.upstream_service_time.map(|time| time.as_millis().to_string().into());
        }
        _ => None,
    };
    known.map(Cow::Borrowed)
}

/// Names that [`header_value`] finds in every record: nobody needs to carry these.
pub(super) const ALWAYS_THERE: &[&str] = &[
    ":method",
    ":path",
    ":authority",
    "host",
    ":scheme",
    "x-forwarded-for",
    "user-agent",
    "x-request-id",
    ":status",
    "x-envoy-upstream-service-time",
    "x-envoy-original-path",
];

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

/// The parameter's first value, as it was sent.
fn query_parameter<'a>(record: &'a Record, name: &str) -> Option<&'a str> {
    let (_, query) = record.http.as_ref()?.path.split_once('?')?;
    let mut pairs = query.split('&').map(|pair| pair.split_once('=').unwrap_or((pair, "")));
    pairs.find(|(key, _)| *key == name).map(|(_, value)| value)
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

fn text(value: Option<Cow<'_, str>>) -> Value<'_> {
    value.map_or(Value::Missing, Value::Text)
}

fn borrowed(value: Option<&str>) -> Value<'_> {
    text(value.map(Cow::Borrowed))
}

fn number(value: Option<u64>) -> Value<'static> {
    value.map_or(Value::Missing, Value::Number)
}

fn millis(time: Option<Duration>) -> Value<'static> {
    number(time.map(|time| u64::try_from(time.as_millis()).unwrap_or(u64::MAX)))
}

fn flags(record: &Record, name: impl Fn(&Flag) -> String) -> Value<'static> {
    let names: Vec<_> = record.flags.iter().map(name).collect();
    text((!names.is_empty()).then(|| names.join(",").into()))
}

pub(super) fn short_flag(flag: &Flag) -> String {
    format!("{flag:?}")
}

fn long_flag(flag: &Flag) -> String {
    let short = short_flag(flag);
    let long = LONG_FLAGS.iter().find(|(known, _)| *known == short);
    long.map_or(short, |(_, long)| (*long).to_owned())
}

/// Envoy's long names of the flags of LOG-15, in the order of its bit mask (`response.flags` of a
/// filter, from bit 0).
pub(super) const LONG_FLAGS: &[(&str, &str)] = &[
    ("LH", "FailedLocalHealthCheck"),
    ("UH", "NoHealthyUpstream"),
    ("UT", "UpstreamRequestTimeout"),
    ("LR", "LocalReset"),
    ("UR", "UpstreamRemoteReset"),
    ("UF", "UpstreamConnectionFailure"),
    ("UC", "UpstreamConnectionTermination"),
    ("UO", "UpstreamOverflow"),
    ("NR", "NoRouteFound"),
    ("DI", "DelayInjected"),
    ("FI", "FaultInjected"),
    ("RL", "RateLimited"),
    ("UAEX", "UnauthorizedExternalService"),
    ("RLSE", "RateLimitServiceError"),
    ("DC", "DownstreamConnectionTermination"),
    ("URX", "UpstreamRetryLimitExceeded"),
    ("SI", "StreamIdleTimeout"),
    ("IH", "InvalidEnvoyRequestHeaders"),
    ("DPE", "DownstreamProtocolError"),
    ("UMSDR", "UpstreamMaxStreamDurationReached"),
    ("RFCF", "ResponseFromCacheFilter"),
    ("NFCF", "NoFilterConfigFound"),
    ("DT", "DurationTimeout"),
    ("UPE", "UpstreamProtocolError"),
    ("NC", "NoClusterFound"),
    ("OM", "OverloadManagerTerminated"),
    ("DF", "DnsResolutionFailed"),
    ("DO", "DropOverload"),
    ("DR", "DownstreamRemoteReset"),
    ("UDO", "UnconditionalDropOverload"),
];
