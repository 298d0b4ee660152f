//! What a node and a gateway say to each other: CONNECT streams of HTTP/2 (RFC 9113 8.5) in mutual TLS,
//! each one connection of a workload, with whose it is in its head. Both ends read it here.
//!
//! The head's metadata is as good as the connection that it comes by: the node's certificate vouches
//! for it, and the gateway holds it against what that node may vouch for (`gateway/nodes.rs`).

mod refusal;
mod stream;
mod trace;

use std::net::{IpAddr, SocketAddr};

use http::header::FORWARDED;
use http::{HeaderMap, HeaderName, HeaderValue};

pub use refusal::Refusal;
pub use stream::Tunnel;
pub use trace::Trace;

/// Bytes that one stream may have under way and unread. More are sent when these were taken: a stream
/// whose reader stands still holds this much, and nobody else.
pub const STREAM_WINDOW: u32 = 256 * 1024;
/// Streams of one connection. A node opens another connection for more.
pub const STREAMS_MAX: u32 = 2048;
/// So much that streams that all stand still do not stop one that moves.
pub const CONNECTION_WINDOW: u32 = STREAM_WINDOW * STREAMS_MAX;
/// Bytes of one DATA frame.
pub const FRAME_MAX: u32 = 64 * 1024;
/// Bytes of a head.
pub const HEAD_MAX: u32 = 8 * 1024;

/// W3C baggage: whose connection it is, by the names that OpenTelemetry gives.
const BAGGAGE: HeaderName = HeaderName::from_static("baggage");
/// W3C trace context: what the lines of both ends have in common.
const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
/// Where the connection goes, as policy is asked: address and port.
const DESTINATION: HeaderName = HeaderName::from_static("interceptor-destination");

const NAMESPACE: &str = "k8s.namespace.name";
const POD: &str = "k8s.pod.name";
const SERVICE_ACCOUNT: &str = "k8s.serviceaccount.name";

/// No name of Kubernetes is longer.
const NAME_MAX: usize = 253;

/// Whose connection a stream is, as the node says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claim {
    /// The workload's namespace.
    pub namespace: String,
    /// Its name: the pod's, or what `run --name` says.
    pub name: String,
    /// Its service account; empty: it has none.
    pub service_account: String,
}

/// What the head of a stream says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Metadata {
    /// Whose it is.
    pub claim: Claim,
    /// Where it goes.
    pub dst: SocketAddr,
    /// The workload's end.
    pub src: SocketAddr,
    /// Its trace.
    pub trace: Trace,
}

/// Which part of a stream's head cannot be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{0} is missing or cannot be read")]
pub struct Unreadable(&'static str);

impl Metadata {
    /// As headers.
    ///
    /// # Errors
    /// A name that Kubernetes would not give.
    pub fn to_headers(&self) -> Result<HeaderMap, Unreadable> {
        let Claim { namespace, name, service_account } = &self.claim;
        let mut baggage = Vec::new();
        for (key, value) in
            [(NAMESPACE, namespace), (POD, name), (SERVICE_ACCOUNT, service_account)]
        {
            if !value.is_empty() {
                if !is_name(value) {
                    return Err(Unreadable(key));
                }
                baggage.push(format!("{key}={value}"));
            }
        }
        let texts = [
            (BAGGAGE, baggage.join(",")),
            (FORWARDED, format!("for=\"{}\"", self.src)),
            (DESTINATION, self.dst.to_string()),
            (TRACEPARENT, self.trace.to_string()),
        ];
        let mut headers = HeaderMap::with_capacity(texts.len());
        for (name, text) in texts {
            let value = HeaderValue::try_from(text).map_err(|_| Unreadable("the head"))?;
            headers.insert(name, value);
        }
        Ok(headers)
    }

    /// From a stream's head.
    ///
    /// # Errors
    /// Something is missing, is there twice, or reads as nothing that [`Metadata::to_headers`] writes.
    pub fn of_headers(headers: &HeaderMap) -> Result<Self, Unreadable> {
        let baggage = only(headers, &BAGGAGE, "baggage")?;
        let (mut namespace, mut name, mut service_account) = (None, None, None);
        for member in baggage.split(',') {
            let member = member.split(';').next().unwrap_or_default();
            let Some((key, value)) = member.split_once('=') else { continue };
            let (key, value) = (key.trim(), value.trim());
            let (slot, which) = match key {
                NAMESPACE => (&mut namespace, NAMESPACE),
                POD => (&mut name, POD),
                SERVICE_ACCOUNT => (&mut service_account, SERVICE_ACCOUNT),
                _ => continue,
            };
            // Of two that differ, nobody knows which one is meant.
            if !is_name(value) || slot.replace(value.to_owned()).is_some() {
                return Err(Unreadable(which));
            }
        }
        let src = only(headers, &FORWARDED, "forwarded")?;
        let src = src.strip_prefix("for=\"").and_then(|rest| rest.strip_suffix('"'));
        let dst = only(headers, &DESTINATION, "interceptor-destination")?;
        let trace = only(headers, &TRACEPARENT, "traceparent")?;
        Ok(Self {
            claim: Claim {
                namespace: namespace.ok_or(Unreadable(NAMESPACE))?,
                name: name.ok_or(Unreadable(POD))?,
                service_account: service_account.unwrap_or_default(),
            },
            dst: src_or_dst(Some(dst), "interceptor-destination")?,
            src: src_or_dst(src, "forwarded")?,
            trace: Trace::parse(trace).ok_or(Unreadable("traceparent"))?,
        })
    }
}

/// A header that is there exactly once.
fn only<'h>(
    headers: &'h HeaderMap,
    name: &HeaderName,
    what: &'static str,
) -> Result<&'h str, Unreadable> {
    let mut all = headers.get_all(name).iter();
    match (all.next().map(HeaderValue::to_str), all.next()) {
        (Some(Ok(text)), None) => Ok(text),
        _ => Err(Unreadable(what)),
    }
}

fn src_or_dst(text: Option<&str>, what: &'static str) -> Result<SocketAddr, Unreadable> {
    let address: SocketAddr = text.and_then(|text| text.parse().ok()).ok_or(Unreadable(what))?;
    let ip: IpAddr = address.ip().to_canonical();
    Ok(SocketAddr::new(ip, address.port()))
}

/// Whether Kubernetes would give an object this name (RFC 1123 names; long ones have dots).
pub fn is_name(text: &str) -> bool {
    let plain = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, b'-' | b'.');
    (1..=NAME_MAX).contains(&text.len()) && text.bytes().all(plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn metadata() -> Metadata {
        Metadata {
            claim: Claim {
                namespace: "shop".into(),
                name: "checkout-7".into(),
                service_account: "checkout".into(),
            },
            dst: "203.0.113.4:443".parse().expect("an address"),
            src: "[2001:db8::7]:4711".parse().expect("an address"),
            trace: Trace::new(),
        }
    }

    #[test]
    fn what_one_end_writes_the_other_reads() {
        let written = metadata();
        let headers = written.to_headers().expect("headers");
        let baggage = "k8s.namespace.name=shop,k8s.pod.name=checkout-7,\
                       k8s.serviceaccount.name=checkout";
        assert_eq!(headers[BAGGAGE], baggage);
        assert_eq!(Metadata::of_headers(&headers), Ok(written));
    }

    /// Nothing in a name can make it two, and nothing that says two things is believed.
    #[test]
    fn what_cannot_be_read_is_refused() {
        let mut other = metadata();
        other.claim.name = "a,k8s.namespace.name=bank".into();
        assert_eq!(other.to_headers(), Err(Unreadable(POD)));
        let headers = metadata().to_headers().expect("headers");
        let set = |name: &HeaderName, value: &'static str| {
            let mut headers = headers.clone();
            headers.insert(name, HeaderValue::from_static(value));
            Metadata::of_headers(&headers)
        };
        for (name, value, wrong) in [
            (&BAGGAGE, "k8s.namespace.name=a,k8s.namespace.name=b,k8s.pod.name=c", NAMESPACE),
            (&BAGGAGE, "k8s.namespace.name=a", POD),
            (&BAGGAGE, "k8s.namespace.name=A,k8s.pod.name=c", NAMESPACE),
            (&DESTINATION, "a.com:443", "interceptor-destination"),
            (&FORWARDED, "for=_hidden", "forwarded"),
            (&TRACEPARENT, "00-0-0-01", "traceparent"),
        ] {
            assert_eq!(set(name, value), Err(Unreadable(wrong)), "{value}");
        }
        let mut twice = headers.clone();
        twice.append(&BAGGAGE, headers[BAGGAGE].clone());
        assert_eq!(Metadata::of_headers(&twice), Err(Unreadable("baggage")));
        let more = "k8s.namespace.name=a;x=y, k8s.pod.name=c,k8s.node.name=d";
        assert_eq!(set(&BAGGAGE, more).expect("read").claim.name, "c");
    }
}
