//! What of a head is passed on (R4): one Host, the target in origin form, the end-to-end headers in
//! their order and spelling. What concerns only one hop stays behind.

use std::borrow::Cow;

use bytes::Bytes;
use http::header::{
    CONNECTION, CONTENT_LENGTH, COOKIE, EXPECT, HOST, HeaderMap, HeaderName, HeaderValue,
    PROXY_AUTHORIZATION, TE, TRAILER, TRANSFER_ENCODING, UPGRADE,
};
use http::request::Parts;
use http::uri::{Authority, Scheme};
use http::{Request, Uri, Version};
use hyper::body::Frame;

use super::framing;
use crate::act::door::Absolute;

/// Made by us where the client has none.
pub(super) const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// A client's order to Envoy (VS-31).
pub(super) const ENVOY_TIMEOUT: HeaderName =
    HeaderName::from_static("x-envoy-upstream-rq-timeout-ms");
const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");

/// Rewrites `parts`, whose authority was judged to be `host`. `websocket`: the request asks for
/// that upgrade and is to keep asking. `strict`: the client's timeout header goes too.
pub(super) fn request(parts: &mut Parts, host: HeaderValue, websocket: bool, strict: bool) {
    let named = connection_options(&parts.headers);
    let drops = |name: &HeaderName| {
        // The server side has seen to `100-continue`.
        *name == EXPECT || is_hop_by_hop(name, &named) || (strict && *name == ENVOY_TIMEOUT)
    };
    let headers = &mut parts.headers;
    if headers.contains_key(HOST) && !headers.keys().any(drops) {
        // Most requests: every header stays where it is.
        headers.insert(HOST, host);
    } else {
        *headers = rebuilt(headers, host, drops);
    }
    if parts.version == Version::HTTP_2 {
        join_cookies(headers);
    }
    if websocket {
        headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
        headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
    }
    parts.uri = origin_form(&parts.uri);
    parts.version = Version::HTTP_11;
}

/// The headers of a request without those that stay behind, in their order.
fn rebuilt(
    received: &HeaderMap,
    host: HeaderValue,
    drops: impl Fn(&HeaderName) -> bool,
) -> HeaderMap {
    let mut headers = HeaderMap::with_capacity(received.len() + 1);
    if !received.contains_key(HOST) {
        headers.insert(HOST, host.clone());
    }
    for (name, value) in received {
        if *name == HOST {
            headers.insert(HOST, host.clone());
        } else if *name == TE {
            // The only value that promises something about the whole way (RFC 9110 10.1.4).
            if value.as_bytes().to_ascii_lowercase().windows(8).any(|w| w == b"trailers") {
                headers.insert(TE, HeaderValue::from_static("trailers"));
            }
        } else if *name == TRANSFER_ENCODING || *name == CONTENT_LENGTH || !drops(name) {
            // Of framing there is `chunked`, or the length, which are used again.
            headers.append(name, value.clone());
        }
    }
    if headers.contains_key(TE) {
        headers.insert(CONNECTION, HeaderValue::from_static("TE"));
    }
    headers
}

/// Makes a request one for an egress proxy, or one for the upstream itself where there is none or a
/// tunnel through it (RFC 9112 3.2.2).
pub(super) fn address<B>(request: &mut Request<B>, absolute: Option<&Absolute>) {
    request.headers_mut().remove(PROXY_AUTHORIZATION);
    let is_origin_form = request.uri().authority().is_none();
    if request.version() == Version::HTTP_2 || (absolute.is_none() && is_origin_form) {
        return;
    }
    let mut target = origin_form(request.uri()).into_parts();
    if let Some(Absolute { authority, authorization }) = absolute {
        target.scheme = Some(Scheme::HTTP);
        target.authority = Some(authority.clone());
        if let Some(authorization) = authorization {
            request.headers_mut().insert(PROXY_AUTHORIZATION, authorization.clone());
        }
    }
    *request.uri_mut() = Uri::from_parts(target).unwrap_or_default();
}

/// HTTP/2 may spread cookies over several headers, HTTP/1.1 may not (RFC 9113 8.2.3).
fn join_cookies(headers: &mut HeaderMap) {
    let crumbs: Vec<_> = headers.get_all(COOKIE).iter().map(HeaderValue::as_bytes).collect();
    if crumbs.len() > 1
        && let Ok(joined) = HeaderValue::from_bytes(&crumbs.join(&b"; "[..]))
    {
        headers.insert(COOKIE, joined);
    }
}

/// The same for HTTP/2, which knows no hop-by-hop headers (RFC 9113 8.2.2). The name goes into
/// `:authority` only (T-36). `tls`: the scheme is `https` (TLS-4).
pub(super) fn request_h2(parts: &mut Parts, host: &HeaderValue, tls: bool, strict: bool) {
    let named = connection_options(&parts.headers);
    let mut headers = HeaderMap::with_capacity(parts.headers.len());
    for (name, value) in &parts.headers {
        let trailers = *name == TE
            && value.as_bytes().to_ascii_lowercase().windows(8).any(|w| w == b"trailers");
        let drop = [HOST, EXPECT, TRANSFER_ENCODING].contains(name)
            || is_hop_by_hop(name, &named)
            || (strict && *name == ENVOY_TIMEOUT);
        if trailers {
            headers.insert(TE, HeaderValue::from_static("trailers"));
        } else if !drop {
            headers.append(name, value.clone());
        }
    }
    parts.headers = headers;
    let mut target = std::mem::take(&mut parts.uri).into_parts();
    target.scheme = Some(if tls { Scheme::HTTPS } else { Scheme::HTTP });
    target.authority = Authority::try_from(host.as_bytes()).ok();
    parts.uri = Uri::from_parts(target).unwrap_or_default();
    parts.version = Version::HTTP_2;
}

/// Leaves of a response's headers what is passed on; false if they cannot be framed again.
pub(super) fn response(headers: &mut HeaderMap, websocket: bool) -> bool {
    let named = connection_options(headers);
    let chunked = headers.contains_key(TRANSFER_ENCODING);
    let mut codings = headers.get_all(TRANSFER_ENCODING).iter();
    if chunked
        && !(codings.next().is_some_and(|c| c.as_bytes().eq_ignore_ascii_case(b"chunked"))
            && codings.next().is_none())
    {
        return false;
    }
    let mut lengths = headers.get_all(CONTENT_LENGTH).iter().map(HeaderValue::as_bytes);
    let first = lengths.next();
    let mut once = true;
    if !chunked
        && first.is_some_and(|one| {
            framing::content_length(one).is_err()
                || lengths.inspect(|_| once = false).any(|other| other != one)
        })
    {
        return false;
    }
    if !headers.keys().all(is_name) {
        return false;
    }
    let drops =
        |name: &HeaderName| is_hop_by_hop(name, &named) || (chunked && *name == CONTENT_LENGTH);
    if !once || headers.keys().any(drops) {
        let mut kept = HeaderMap::with_capacity(headers.len());
        for (name, value) in &*headers {
            match *name {
                TRANSFER_ENCODING => drop(kept.append(name, value.clone())),
                // Once, however often it was said.
                CONTENT_LENGTH if !chunked => drop(kept.insert(name, value.clone())),
                _ if drops(name) => {}
                _ => drop(kept.append(name, value.clone())),
            }
        }
        *headers = kept;
    }
    if websocket {
        headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
        headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
    }
    true
}

/// A piece of a body as it is passed on: trailers without what frames or routes a message (RFC 9110
/// 6.5.1).
pub(super) fn frame(frame: Frame<Bytes>) -> Frame<Bytes> {
    match frame.into_trailers() {
        Err(data) => data,
        Ok(mut trailers) => {
            let named = connection_options(&trailers);
            for name in [CONTENT_LENGTH, HOST, TRAILER, TRANSFER_ENCODING] {
                trailers.remove(name);
            }
            let drop = |name: &&HeaderName| is_hop_by_hop(name, &named) || !is_name(name);
            let dropped: Vec<_> = trailers.keys().filter(drop).cloned().collect();
            for name in dropped {
                trailers.remove(name);
            }
            Frame::trailers(trailers)
        }
    }
}

/// Whether the head asks for, or grants, an upgrade to websocket and nothing else.
pub(super) fn is_websocket(headers: &HeaderMap) -> bool {
    let mut upgrades = headers.get_all(UPGRADE).iter();
    let websocket =
        upgrades.next().is_some_and(|u| u.as_bytes().eq_ignore_ascii_case(b"websocket"))
            && upgrades.next().is_none();
    websocket && connection_options(headers).contains(&UPGRADE)
}

/// The header names that Connection lists (RFC 9110 7.6.1).
fn connection_options(headers: &HeaderMap) -> Vec<HeaderName> {
    headers
        .get_all(CONNECTION)
        .iter()
        .flat_map(|value| value.as_bytes().split(|b| *b == b','))
        .filter_map(|option| HeaderName::from_bytes(option.trim_ascii()).ok())
        .collect()
}

fn is_name(name: &HeaderName) -> bool {
    framing::is_name(name.as_str().as_bytes())
}

fn is_hop_by_hop(name: &HeaderName, named: &[HeaderName]) -> bool {
    [CONNECTION, KEEP_ALIVE, PROXY_CONNECTION, PROXY_AUTHORIZATION, TE, UPGRADE].contains(name)
        || named.contains(name)
        // Goes with an upgrade to h2c only (T-34).
        || name.as_str() == "http2-settings"
}

/// Path and query of `uri`, byte for byte as received; an absolute form may lack the slash, and HTTP/2 all
/// of it (`:path` is a fragment, which is none's business but the client's).
fn origin_form(uri: &Uri) -> Uri {
    match uri.path_and_query() {
        // Of a path that is empty it says the same, and prints nothing.
        Some(path) if path.as_str() == "/" => Uri::from_static("/"),
        Some(path) if path.as_str().starts_with('?') => {
            path.to_string().parse().unwrap_or_default()
        }
        Some(path) => Uri::from(path.clone()),
        None => Uri::default(),
    }
}

/// The target as it is judged, logged and sent; empty for CONNECT, which has none.
pub(super) fn path(uri: &Uri) -> Cow<'_, str> {
    match uri.path_and_query() {
        None => Cow::Borrowed(""),
        Some(path) if path.as_str().starts_with(['/', '*']) => Cow::Borrowed(path.as_str()),
        // A query alone is printed with the slash that it lacks.
        Some(path) => Cow::Owned(path.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rewritten(uri: &str, headers: &[(&str, &str)], websocket: bool, strict: bool) -> String {
        let mut builder = http::Request::builder().uri(uri);
        for (name, value) in headers {
            builder = builder.header(*name, *value);
        }
        let (mut parts, ()) = builder.body(()).expect("a request").into_parts();
        request(&mut parts, HeaderValue::from_static("judged.com"), websocket, strict);
        let headers: String = parts
            .headers
            .iter()
            .map(|(name, value)| format!(" {name}={}", value.to_str().expect("text")))
            .collect();
        format!("{}{headers}", parts.uri)
    }

    /// R4, T-34 (h2c), VS-31.
    #[test]
    fn requests() {
        type Case =
            (&'static str, &'static [(&'static str, &'static str)], bool, bool, &'static str);
        let cases: &[Case] = &[
            (
                "/a?b=%20c",
                &[("accept", "*/*"), ("host", "A.com"), ("x", "1")],
                false,
                true,
                "/a?b=%20c accept=*/* host=judged.com x=1",
            ),
            ("http://A.com/x?y", &[("host", "b.com")], false, true, "/x?y host=judged.com"),
            ("http://a.com", &[], false, true, "/ host=judged.com"),
            ("http://a.com?x", &[], false, true, "/?x host=judged.com"),
            ("//a/../b", &[("host", "a")], false, true, "//a/../b host=judged.com"),
            ("*", &[("host", "a")], false, true, "* host=judged.com"),
            (
                "/",
                &[
                    ("host", "a"),
                    ("connection", "close, X-A , host"),
                    ("x-a", "1"),
                    ("keep-alive", "5"),
                    ("proxy-connection", "x"),
                    ("proxy-authorization", "s"),
                    ("te", "gzip"),
                    ("expect", "100-continue"),
                    ("x-b", "2"),
                ],
                false,
                true,
                "/ host=judged.com x-b=2",
            ),
            (
                "/",
                &[("host", "a"), ("te", "Trailers")],
                false,
                true,
                "/ host=judged.com te=trailers connection=TE",
            ),
            (
                "/",
                &[
                    ("host", "a"),
                    ("upgrade", "h2c"),
                    ("connection", "Upgrade, HTTP2-Settings"),
                    ("http2-settings", "AA"),
                ],
                false,
                true,
                "/ host=judged.com",
            ),
            (
                "/",
                &[
                    ("host", "a"),
                    ("upgrade", "WebSocket"),
                    ("connection", "keep-alive, upgrade"),
                    ("sec-websocket-key", "k"),
                ],
                true,
                true,
                "/ host=judged.com sec-websocket-key=k connection=Upgrade upgrade=websocket",
            ),
            (
                "/",
                &[("host", "a"), ("x-envoy-upstream-rq-timeout-ms", "5")],
                false,
                true,
                "/ host=judged.com",
            ),
            (
                "/",
                &[("host", "a"), ("x-envoy-upstream-rq-timeout-ms", "5")],
                false,
                false,
                "/ host=judged.com x-envoy-upstream-rq-timeout-ms=5",
            ),
        ];
        for (uri, headers, websocket, strict, expected) in cases {
            assert_eq!(rewritten(uri, headers, *websocket, *strict), *expected, "{headers:?}");
        }
    }

    #[test]
    fn responses() {
        let map = |headers: &[(&'static str, &'static str)]| {
            let mut map = HeaderMap::new();
            for (name, value) in headers {
                map.append(*name, HeaderValue::from_static(value));
            }
            map
        };
        let cases: [(HeaderMap, Option<HeaderMap>); 9] = [
            (
                map(&[
                    ("server", "x"),
                    ("connection", "close, y"),
                    ("y", "1"),
                    ("keep-alive", "1"),
                ]),
                Some(map(&[("server", "x")])),
            ),
            (
                map(&[("set-cookie", "a"), ("set-cookie", "b"), ("content-length", "3")]),
                Some(map(&[("set-cookie", "a"), ("set-cookie", "b"), ("content-length", "3")])),
            ),
            (
                map(&[("content-length", "3"), ("transfer-encoding", "Chunked")]),
                Some(map(&[("transfer-encoding", "Chunked")])),
            ),
            (
                map(&[("content-length", "3"), ("content-length", "3")]),
                Some(map(&[("content-length", "3")])),
            ),
            (map(&[("content-length", "3"), ("content-length", "4")]), None),
            (map(&[("content-length", "3, 3")]), None),
            (map(&[("content-length", "")]), None),
            (map(&[("transfer-encoding", "gzip, chunked")]), None),
            (map(&[("transfer-encoding", "chunked"), ("transfer-encoding", "chunked")]), None),
        ];
        for (received, expected) in cases {
            let mut kept = received.clone();
            let framed = response(&mut kept, false);
            assert_eq!(framed.then_some(kept), expected, "{received:?}");
        }
    }

    /// RFC 9110 6.5.1.
    #[test]
    fn trailers() {
        let mut sent = HeaderMap::new();
        for name in [
            "host",
            "content-length",
            "transfer-encoding",
            "trailer",
            "te",
            "upgrade",
            "x-hop",
            "grpc-status",
        ] {
            sent.append(name, HeaderValue::from_static("1"));
        }
        sent.append(CONNECTION, HeaderValue::from_static("x-hop"));
        let passed = frame(Frame::trailers(sent)).into_trailers().expect("trailers");
        assert_eq!(passed.keys().map(HeaderName::as_str).collect::<Vec<_>>(), ["grpc-status"]);
        let data = frame(Frame::data(Bytes::from_static(b"host: a"))).into_data();
        assert_eq!(data.expect("data"), "host: a");
    }

    #[test]
    fn websocket_only() {
        for (upgrade, connection, expected) in [
            ("websocket", "Upgrade", true),
            ("WebSocket", "keep-alive, upgrade", true),
            ("websocket", "close", false),
            ("h2c", "upgrade", false),
            ("websocket, h2c", "upgrade", false),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(UPGRADE, HeaderValue::from_static(upgrade));
            headers.insert(CONNECTION, HeaderValue::from_static(connection));
            assert_eq!(is_websocket(&headers), expected, "{upgrade} {connection}");
        }
    }
}
