//! The answers that we give ourselves: refusals and upstream failures, with what the log says of
//! them (LOG-20, LOG-21, LOG-42, LOG-47, LOG-48).

use std::borrow::Cow;
use std::io;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, LOCATION};

use crate::account::{Flag, Record};
use crate::act::carrier::CarryError;
use crate::act::dial::DialError;
use crate::decide::Decision;
use crate::decide::route::{Abort, LocalReply};

use super::cut;
use super::shape::{self, Side};

/// An answer without an upstream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Reply {
    pub(super) status: u16,
    pub(super) flags: Vec<Flag>,
    pub(super) details: Cow<'static, str>,
    /// Field 9.
    pub(super) transport: Option<Box<str>>,
    pub(super) body: Bytes,
    /// Headers besides those that every answer has.
    pub(super) headers: Box<[(HeaderName, HeaderValue)]>,
    /// Whether the connection ends with it.
    pub(super) close: bool,
}

/// How an upstream that was connected failed to answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Failure {
    /// It closed before the response's head.
    Closed,
    /// It reset the request's stream (HTTP/2).
    Reset,
    /// It sent what is not HTTP, or what cannot be passed on as one thing.
    Protocol,
}

impl Reply {
    fn new(status: u16, details: impl Into<Cow<'static, str>>) -> Self {
        Self {
            status,
            flags: Vec::new(),
            details: details.into(),
            transport: None,
            body: Bytes::new(),
            headers: Box::default(),
            close: false,
        }
    }

    /// A refusal by policy. `hosts`: how many names the request gave.
    pub(super) fn refused(status: u16, close: bool, body: String, hosts: usize) -> Self {
        let (flags, details) = match status {
            400 if hosts == 0 => (vec![], "missing_host_header"),
            400 => (vec![], "bad_host"),
            404 => (vec![Flag::NR], "route_not_found"),
            _ => (vec![], "direct_response"),
        };
        Self { flags, body: body.into(), close, ..Self::new(status, details) }
    }

    /// HTTP/1.0 (LIS-18).
    pub(super) fn low_version() -> Self {
        Self { close: true, ..Self::new(426, "low_version") }
    }

    /// An HTTP/2 head with more than one reading in HTTP/1.1, or none (T-36).
    pub(super) fn bad_head() -> Self {
        Self { flags: vec![Flag::DPE], ..Self::new(400, "http2.violation.of.messaging.rule") }
    }

    /// An HTTP/2 head beyond a limit (T-37).
    pub(super) fn large_head() -> Self {
        Self { flags: vec![Flag::DPE], ..Self::new(431, "request_headers_too_large") }
    }

    /// A request body that broke the rules of framing (T-32).
    pub(super) fn bad_body() -> Self {
        Self { flags: vec![Flag::DPE], close: true, ..Self::new(400, "http1.codec_error") }
    }

    /// The client broke off its upload (LOG-53). Nobody reads this answer; the record counts.
    pub(super) fn client_gone() -> Self {
        let flags = vec![Flag::DC];
        Self { flags, close: true, ..Self::new(0, "downstream_remote_disconnect") }
    }

    /// Policy allows the request no more (T-62).
    pub(super) fn withdrawn(why: &str) -> Self {
        Self { flags: vec![Flag::UH], close: true, ..Self::new(502, cut::details(why)) }
    }

    /// What a rule answers itself: redirect, direct response, no route (VS-9, VS-24, VS-25).
    pub(super) fn of_rule(rule: &LocalReply, record: &Record, request: &HeaderMap) -> Self {
        let flags = match rule.flag {
            Some("NR") => vec![Flag::NR],
            Some("NC") => vec![Flag::NC],
            _ => Vec::new(),
        };
        let mut headers = HeaderMap::new();
        if !rule.body.is_empty() {
            headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/plain"));
        }
        if let Some(location) = rule.location.as_ref().and_then(|l| HeaderValue::from_str(l).ok()) {
            headers.insert(LOCATION, location);
        }
        shape::change(&mut headers, &rule.headers, Side::Response(record, request));
        let headers = headers.iter().map(|(name, value)| (name.clone(), value.clone())).collect();
        let body = Bytes::copy_from_slice(&rule.body);
        Self { flags, body, headers, ..Self::new(rule.status, rule.details) }
    }

    /// An injected abort (VS-51).
    pub(super) fn abort(abort: Abort) -> Self {
        let reply =
            |status| Self { flags: vec![Flag::FI], ..Self::new(status, "fault_filter_abort") };
        match abort {
            Abort::Http(status) => Self { body: FAULT.into(), ..reply(status) },
            Abort::Grpc(code) => Self {
                headers: Box::new([
                    (CONTENT_TYPE, HeaderValue::from_static("application/grpc")),
                    (HeaderName::from_static("grpc-status"), HeaderValue::from(u16::from(code))),
                    (HeaderName::from_static("grpc-message"), HeaderValue::from_static(FAULT)),
                ]),
                ..reply(200)
            },
        }
    }

    /// A preflight answered here (VS-29).
    pub(super) fn cors(headers: Vec<(HeaderName, HeaderValue)>) -> Self {
        Self { headers: headers.into(), ..Self::new(200, "cors_response") }
    }

    /// A rewritten path that is none.
    pub(super) fn bad_rewrite() -> Self {
        Self::new(500, "invalid_path_rewrite")
    }

    /// The route's time is over (VS-30), or an attempt's (VS-32).
    pub(super) fn timed_out(details: &'static str) -> Self {
        Self {
            flags: vec![Flag::UT],
            body: "upstream request timeout".into(),
            ..Self::new(504, details)
        }
    }

    /// A cluster's limit is reached (DR-10, LOG-50).
    pub(super) fn overflow() -> Self {
        Self {
            flags: vec![Flag::UO],
            body: format!("{BEFORE_HEADERS}reset reason: overflow").into(),
            headers: Box::new([(
                HeaderName::from_static("x-envoy-overloaded"),
                HeaderValue::from_static("true"),
            )]),
            ..Self::new(503, "upstream_reset_before_response_started{overflow}")
        }
    }

    /// No connection that carries the request.
    pub(super) fn not_carried(error: &CarryError) -> Self {
        match error {
            CarryError::Dial(error) => Self::not_dialled(error),
            CarryError::NoCluster => {
                Self { flags: vec![Flag::NC], ..Self::new(503, "cluster_not_found") }
            }
            CarryError::Overflow(_) => Self::overflow(),
            CarryError::Tls { .. } | CarryError::Tunnel { .. } | CarryError::Door(_) => {
                let transport = error.details();
                Self::reset("remote connection failure", Some(transport))
            }
        }
    }

    /// The name that the request itself gave has no address (MESH-31).
    pub(super) fn not_resolved() -> Self {
        Self {
            flags: vec![Flag::DF],
            body: "DNS resolution failure".into(),
            ..Self::new(503, "dns_resolution_failure")
        }
    }

    /// No connection, or none that lasted until TLS was up (LOG-48, LOG-49).
    fn reset(reason: &str, transport: Option<String>) -> Self {
        let (log, people) = match &transport {
            Some(text) => (format!("|{text}"), format!(", transport failure reason: {text}")),
            None => Default::default(),
        };
        let details = format!(
            "upstream_reset_before_response_started{{{}{}}}",
            reason.replace(' ', "_"),
            log.replace(' ', "_")
        );
        Self {
            flags: vec![Flag::UF],
            transport: transport.map(Into::into),
            body: format!("{BEFORE_HEADERS}reset reason: {reason}{people}").into(),
            ..Self::new(503, details)
        }
    }

    /// The last of several attempts (VS-43, LOG-21). A connect that failed reads the same after one
    /// attempt and after three (LOG-48).
    pub(super) fn exhausted(mut self) -> Self {
        self.flags.insert(0, Flag::URX);
        if !self.flags.contains(&Flag::UF)
            && let Some(rest) = self.body.strip_prefix(BEFORE_HEADERS.as_bytes())
        {
            let retried = [BEFORE_HEADERS.as_bytes(), b"retried and the latest ", rest].concat();
            self.body = retried.into();
        }
        self
    }

    /// No upstream connection.
    pub(super) fn not_dialled(error: &DialError) -> Self {
        match error {
            DialError::NoEndpoint | DialError::Resolve(_) => Self {
                flags: vec![Flag::UH],
                body: "no healthy upstream".into(),
                ..Self::new(503, "no_healthy_upstream")
            },
            DialError::Special(_) | DialError::NotVerified { .. } => Self {
                body: format!("interceptor refused this request: {error}\n").into(),
                ..Self::new(502, "direct_response")
            },
            DialError::Connect { source, .. } | DialError::Unix { source, .. } => {
                Self::not_connected(source)
            }
        }
    }

    fn not_connected(source: &io::Error) -> Self {
        let timed_out = source.kind() == io::ErrorKind::TimedOut && source.raw_os_error().is_none();
        let (reason, transport) = if timed_out {
            ("connection timeout", None)
        } else {
            let why = source.raw_os_error().map_or_else(|| source.to_string(), |n| n.to_string());
            ("remote connection failure", Some(format!("delayed connect error: {why}")))
        };
        Self::reset(reason, transport)
    }

    /// An upstream that gave no answer.
    pub(super) fn no_answer(failure: Failure) -> Self {
        let (status, flag, reason, details) = match failure {
            Failure::Closed => (
                503,
                Flag::UC,
                "connection termination",
                "upstream_reset_before_response_started{connection_termination}",
            ),
            Failure::Reset => (
                503,
                Flag::UR,
                "remote reset",
                "upstream_reset_before_response_started{remote_reset}",
            ),
            Failure::Protocol => (
                502,
                Flag::UPE,
                "protocol error",
                "upstream_reset_before_response_started{protocol_error}",
            ),
        };
        Self {
            flags: vec![flag],
            body: format!("{BEFORE_HEADERS}reset reason: {reason}").into(),
            ..Self::new(status, details)
        }
    }
}

/// LOG-21.
const FAULT: &str = "fault filter abort";
/// LOG-21.
const BEFORE_HEADERS: &str = "upstream connect error or disconnect/reset before headers. ";

/// What a refused client reads (GAP-3): who refused what, why, by which rule, and the way out.
/// `host` is the client's own text, so it is cut and shown without controls.
pub(crate) fn refusal_body(host: &str, port: u16, decision: &Decision) -> String {
    let host: String = host.chars().filter(|c| c.is_ascii_graphic()).take(255).collect();
    let host = if host.is_empty() { "no host".to_owned() } else { host };
    let mut text = format!(
        "interceptor refused this request to {host} port {port} ({}): {}\n",
        decision.reason.label(),
        decision.reason.explain()
    );
    if let Some(rule) = &decision.rule {
        text.push_str(&format!("decided by {rule}\n"));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decide::Reason;

    /// LOG-20, LOG-21, LOG-47, LOG-48: texts and their lengths.
    #[test]
    fn upstream_failures() {
        let tried = "192.0.2.1:80".parse().expect("an address");
        let connect = |source| DialError::Connect { tried, source };
        let refused = Reply::not_dialled(&connect(io::Error::from_raw_os_error(111)));
        assert_eq!(
            (refused.status, refused.flags.as_slice(), &*refused.details, refused.body.len()),
            (
                503,
                &[Flag::UF][..],
                "upstream_reset_before_response_started{remote_connection_failure|delayed_connect_error:_111}",
                152
            )
        );
        assert_eq!(refused.transport.as_deref(), Some("delayed connect error: 111"));

        let late = Reply::not_dialled(&connect(io::ErrorKind::TimedOut.into()));
        assert_eq!(&*late.details, "upstream_reset_before_response_started{connection_timeout}");
        assert_eq!((late.status, late.transport), (503, None));

        let none = Reply::not_dialled(&DialError::NoEndpoint);
        assert_eq!(
            (none.status, none.flags.as_slice(), &*none.details, none.body.len()),
            (503, &[Flag::UH][..], "no_healthy_upstream", 19)
        );
        let special = Reply::not_dialled(&DialError::Special(tried));
        assert_eq!((special.status, &*special.details), (502, "direct_response"));
    }

    /// GAP-3; the client's own bytes cannot forge lines of it.
    #[test]
    fn refusals_explain() {
        let mut decision = Decision {
            action: crate::decide::Action::Http,
            cluster: None,
            route: None,
            reason: Reason::NotRegistered,
            rule: None,
        };
        assert_eq!(
            refusal_body("a.com\r\n\u{1b}x", 80, &decision),
            "interceptor refused this request to a.comx port 80 (not_registered): it is not in the \
             registry and the outbound policy is REGISTRY_ONLY; add a ServiceEntry for this host and \
             port\n"
        );
        decision.reason = Reason::BadHost;
        decision.rule = Some(crate::decide::RuleId {
            kind: "ServiceEntry",
            namespace: "n".into(),
            name: "r".into(),
        });
        assert_eq!(
            refusal_body("", 80, &decision),
            format!(
                "interceptor refused this request to no host port 80 (bad_host): {}\n\
                 decided by ServiceEntry n/r\n",
                Reason::BadHost.explain()
            )
        );
    }
}
