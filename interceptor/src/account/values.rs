//! What a record says to Envoy's command operators (LOG-32).

use std::borrow::Cow;
use std::net::SocketAddr;
use std::time::Duration;

use super::operators::{End, Head, Moment, Operator, Plain, Point, Precision, What};
use super::record::TlsFields;
use super::{Flag, Record};

/// A value to print.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Value<'a> {
    /// Prints `-`, or `null` in JSON.
    Missing,
    Number(u64),
    Text(Cow<'a, str>),
}

impl Operator {
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
            What::Fixed(field, own) => {
                let pod = record.more.pod.as_deref();
                let of_pod = field.zip(pod).map(|(field, pod)| field.of(pod));
                borrowed(of_pod.or(own.as_deref()))
            }
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
            // As in Envoy: the address, where no name is known.
            Self::EgressProxy => borrowed(more.egress_proxy.as_deref()),
            Self::ProxyTarget => borrowed(more.proxy_target.as_deref()),
            Self::TraceId => borrowed(more.trace_id.as_deref()),
            Self::Node => borrowed(more.node.as_deref()),
            Self::Workload => borrowed(more.workload.as_deref()),
            Self::UpstreamName => name_or(record, Self::Address(End::UpstreamRemote)),
            Self::UpstreamNameWithoutPort => name_or(record, Self::Ip(End::UpstreamRemote)),
            Self::LogType => Value::Text(Cow::Borrowed(match record.http {
                Some(_) => "DownstreamEnd",
                None => "TcpConnectionEnd",
            })),
        }
    }
}

/// The name of the address that was connected to, or else what `address` prints.
fn name_or(record: &Record, address: Plain) -> Value<'_> {
    let dialled = record.downstream_local_address.ip();
    let there = record.upstream_host.is_some_and(|upstream| upstream.ip() == dialled);
    match record.more.address_of.as_deref().filter(|_| there) {
        Some(name) => borrowed(Some(name)),
        None => address.value(record),
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

/// The parameter's first value, as it was sent.
fn query_parameter<'a>(record: &'a Record, name: &str) -> Option<&'a str> {
    let (_, query) = record.http.as_ref()?.path.split_once('?')?;
    let mut pairs = query.split('&').map(|pair| pair.split_once('=').unwrap_or((pair, "")));
    pairs.find(|(key, _)| *key == name).map(|(_, value)| value)
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
