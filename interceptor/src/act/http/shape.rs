//! How a route changes a request and its answer: rewrite (VS-26), headers (VS-27), CORS (VS-29), and
//! what a consistent hash goes by (DR-13).

use http::header::{
    ACCESS_CONTROL_ALLOW_CREDENTIALS, ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS,
    ACCESS_CONTROL_ALLOW_ORIGIN, ACCESS_CONTROL_EXPOSE_HEADERS, ACCESS_CONTROL_MAX_AGE,
    ACCESS_CONTROL_REQUEST_METHOD, CONNECTION, CONTENT_LENGTH, COOKIE, HOST, HeaderMap, HeaderName,
    HeaderValue, ORIGIN, TE, TRAILER, TRANSFER_ENCODING, UPGRADE,
};
use http::request::Parts;
use http::uri::PathAndQuery;
use http::{Method, Uri};
use std::net::IpAddr;
use uuid::Uuid;

use crate::account::{Record, Substitution};
use crate::act::cluster::hash_of;
use crate::decide::route::{Cors, HeaderOps, Rewrite};
use crate::decide::traffic::{HashKey, LoadBalancer};

/// Where a rewritten path came from (VS-26).
const ORIGINAL_PATH: HeaderName = HeaderName::from_static("x-envoy-original-path");
/// What frames a message is ours to say, whatever a rule wants (T-32).
const FRAMING: [HeaderName; 6] =
    [CONNECTION, CONTENT_LENGTH, TE, TRAILER, TRANSFER_ENCODING, UPGRADE];

/// Puts the rule's path in place of the request's. False: it is no path.
pub(super) fn rewrite_path(parts: &mut Parts, rewrite: &Rewrite) -> bool {
    let Some(path) = &rewrite.path else { return true };
    let before = super::canon::path(&parts.uri);
    let (Ok(path), Ok(original)) =
        (PathAndQuery::try_from(path.as_str()), HeaderValue::try_from(&*before))
    else {
        return false;
    };
    let mut uri = std::mem::take(&mut parts.uri).into_parts();
    uri.path_and_query = Some(path);
    let Ok(uri) = Uri::from_parts(uri) else { return false };
    parts.uri = uri;
    parts.headers.insert(ORIGINAL_PATH, original);
    true
}

/// The Host that `ops` set, if they do (VS-27: the same as a rewrite of the authority).
pub(super) fn set_host(ops: &HeaderOps) -> Option<HeaderValue> {
    let is_host = |name: &str| name.eq_ignore_ascii_case("host") || name == ":authority";
    let (_, value) = ops.set.iter().find(|(name, _)| is_host(name))?;
    HeaderValue::from_str(value).ok()
}

/// Whose headers are changed, and what operators in their new values speak of (LOG-32).
#[derive(Clone, Copy)]
pub(super) enum Side<'a> {
    /// The request's.
    Request(&'a Record),
    /// The response's, and the headers of its request.
    Response(&'a Record, &'a HeaderMap),
}

impl Side<'_> {
    /// What `text` stands for beside `headers`; `None`: it cannot be a header's value.
    fn value(self, text: &str, headers: &HeaderMap) -> Option<HeaderValue> {
        if !text.contains('%') {
            return HeaderValue::from_str(text).ok();
        }
        let text = Substitution::parse(text).ok()?;
        let text = match self {
            Self::Request(record) => text.value(record, headers, None),
            Self::Response(record, request) => text.value(record, request, Some(headers)),
        };
        HeaderValue::try_from(text).ok()
    }
}

/// Whether `ops` need more than themselves.
pub(super) fn has_operators(ops: &HeaderOps) -> bool {
    ops.set.iter().chain(&ops.add).any(|(_, value)| value.contains('%'))
}

/// Applies `ops`: remove, set, add. Host is not a header among others, and what frames the message
/// stays as it is.
pub(super) fn change(headers: &mut HeaderMap, ops: &HeaderOps, side: Side<'_>) {
    let name = |text: &str| {
        let name = HeaderName::from_bytes(text.as_bytes()).ok()?;
        (name != HOST && !FRAMING.contains(&name)).then_some(name)
    };
    for removed in ops.remove.iter().filter_map(|text| name(text)) {
        headers.remove(removed);
    }
    for (text, value) in &ops.set {
        if let (Some(name), Some(value)) = (name(text), side.value(value, headers)) {
            headers.insert(name, value);
        }
    }
    for (text, value) in &ops.add {
        if let (Some(name), Some(value)) = (name(text), side.value(value, headers)) {
            headers.append(name, value);
        }
    }
}

/// What CORS says of a request.
pub(super) enum CorsVerdict {
    /// Nothing: it goes on as it is.
    Pass,
    /// It goes on, and its answer gets these headers.
    Allow(Vec<(HeaderName, HeaderValue)>),
    /// A preflight, answered here with these headers.
    Answer(Vec<(HeaderName, HeaderValue)>),
}

/// Judges a request by `cors`.
pub(super) fn cors(parts: &Parts, cors: &Cors) -> CorsVerdict {
    let Some(origin) = parts.headers.get(ORIGIN) else { return CorsVerdict::Pass };
    let is_allowed =
        origin.to_str().is_ok_and(|text| cors.origins.iter().any(|one| one.matches(text)));
    let preflight = parts.method == Method::OPTIONS
        && parts.headers.contains_key(ACCESS_CONTROL_REQUEST_METHOD);
    if !is_allowed {
        return match preflight && !cors.forward_unmatched {
            true => CorsVerdict::Answer(Vec::new()),
            false => CorsVerdict::Pass,
        };
    }
    let mut headers = vec![(ACCESS_CONTROL_ALLOW_ORIGIN, origin.clone())];
    let mut put = |name: HeaderName, text: String| {
        if let (false, Ok(value)) = (text.is_empty(), HeaderValue::try_from(text)) {
            headers.push((name, value));
        }
    };
    if cors.credentials == Some(true) {
        put(ACCESS_CONTROL_ALLOW_CREDENTIALS, "true".into());
    }
    if preflight {
        put(ACCESS_CONTROL_ALLOW_METHODS, cors.methods.join(","));
        put(ACCESS_CONTROL_ALLOW_HEADERS, cors.headers.join(","));
        if let Some(age) = cors.max_age {
            put(ACCESS_CONTROL_MAX_AGE, age.as_secs().to_string());
        }
        CorsVerdict::Answer(headers)
    } else {
        put(ACCESS_CONTROL_EXPOSE_HEADERS, cors.expose.join(","));
        CorsVerdict::Allow(headers)
    }
}

/// The hash of what `balancer` goes by, and the cookie to hand out where one was made for it.
pub(super) fn hash(
    balancer: &LoadBalancer,
    parts: &Parts,
    source: IpAddr,
) -> (Option<u64>, Option<HeaderValue>) {
    let LoadBalancer::Hash(key) = balancer else { return (None, None) };
    let text = match key {
        HashKey::SourceIp => Some(source.to_canonical().to_string()),
        HashKey::Header(name) => {
            let values: Vec<_> = parts.headers.get_all(name.as_str()).iter().collect();
            let values = values.iter().map(|value| String::from_utf8_lossy(value.as_bytes()));
            let values: Vec<_> = values.collect();
            (!values.is_empty()).then(|| values.join(","))
        }
        HashKey::Query(name) => parts.uri.query().and_then(|query| {
            query.split('&').find_map(|pair| match pair.split_once('=') {
                Some((have, value)) => (have == name).then(|| value.to_owned()),
                None => (pair == name).then(String::new),
            })
        }),
        HashKey::Cookie { name, path, ttl } => match (cookie(&parts.headers, name), ttl) {
            (None, Some(ttl)) => {
                let value = Uuid::new_v4().simple().to_string();
                let mut made = format!("{name}=\"{value}\"");
                if !ttl.is_zero() {
                    made.push_str(&format!("; Max-Age={}", ttl.as_secs()));
                }
                if let Some(path) = path {
                    made.push_str(&format!("; Path={path}"));
                }
                made.push_str("; HttpOnly");
                return (Some(hash_of(&value)), HeaderValue::try_from(made).ok());
            }
            (found, _) => found,
        },
    };
    (text.map(|text| hash_of(&text)), None)
}

/// The value of cookie `name`, without quotes.
fn cookie(headers: &HeaderMap, name: &str) -> Option<String> {
    headers.get_all(COOKIE).iter().filter_map(|value| value.to_str().ok()).find_map(|all| {
        all.split(';').find_map(|pair| {
            let (have, value) = pair.trim().split_once('=')?;
            (have == name).then(|| value.trim_matches('"').to_owned())
        })
    })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::decide::route::TextMatch;

    fn parts(method: &str, uri: &str, headers: &[(&str, &str)]) -> Parts {
        let mut builder = http::Request::builder().method(method).uri(uri);
        for (name, value) in headers {
            builder = builder.header(*name, *value);
        }
        builder.body(()).expect("a request").into_parts().0
    }

    fn pairs(list: &[(&str, &str)]) -> Vec<(String, String)> {
        list.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect()
    }

    #[test]
    fn vs_26_path() {
        let mut parts = parts("GET", "/old?x=1", &[]);
        let to = |path: &str| Rewrite { path: Some(path.into()), authority: None };
        assert!(rewrite_path(&mut parts, &to("/new?x=1")));
        assert_eq!(parts.uri, "/new?x=1");
        assert_eq!(parts.headers[ORIGINAL_PATH], "/old?x=1");
        assert!(!rewrite_path(&mut parts, &to("/a b")));
    }

    #[test]
    fn vs_27_headers() {
        let mut headers =
            parts("GET", "/", &[("a", "1"), ("b", "1"), ("content-length", "3")]).headers;
        let ops = HeaderOps {
            set: pairs(&[("B", "%REQ(b)%%%"), ("content-length", "9"), ("host", "x")]),
            add: pairs(&[("b", "3"), ("transfer-encoding", "chunked"), ("bad name", "1")]),
            remove: vec!["A".into(), "content-length".into()],
        };
        let at = "192.0.2.1:80".parse().expect("an address");
        let record = Record::new(std::time::SystemTime::UNIX_EPOCH, at, at);
        change(&mut headers, &ops, Side::Request(&record));
        let mut left: Vec<_> =
            headers.iter().map(|(n, v)| format!("{n}={}", v.to_str().expect("text"))).collect();
        left.sort();
        assert_eq!(left, ["b=1%", "b=3", "content-length=3"]);
        assert_eq!(set_host(&ops).expect("a host"), "x");
    }

    #[test]
    fn vs_29_cors() {
        let mut policy = Cors {
            origins: vec![TextMatch::Exact("https://a.com".into())],
            methods: vec!["GET".into(), "PUT".into()],
            headers: vec!["x-a".into()],
            expose: vec!["x-b".into()],
            max_age: Some(Duration::from_secs(60)),
            credentials: Some(true),
            forward_unmatched: true,
        };
        let verdict = |policy: &Cors, method: &str, origin: &str| {
            let preflight = [("origin", origin), ("access-control-request-method", "PUT")];
            let headers = if method == "OPTIONS" { &preflight[..] } else { &preflight[..1] };
            let text = |headers: Vec<(HeaderName, HeaderValue)>| {
                let lines =
                    headers.iter().map(|(n, v)| format!("{n}={}", v.to_str().expect("text")));
                lines.collect::<Vec<_>>().join(" ")
            };
            match cors(&parts(method, "/", headers), policy) {
                CorsVerdict::Pass => "pass".into(),
                CorsVerdict::Allow(headers) => format!("allow {}", text(headers)),
                CorsVerdict::Answer(headers) => format!("answer {}", text(headers)),
            }
        };
        assert_eq!(
            verdict(&policy, "OPTIONS", "https://a.com"),
            "answer access-control-allow-origin=https://a.com access-control-allow-credentials=true \
             access-control-allow-methods=GET,PUT access-control-allow-headers=x-a \
             access-control-max-age=60"
        );
        assert_eq!(
            verdict(&policy, "GET", "https://a.com"),
            "allow access-control-allow-origin=https://a.com access-control-allow-credentials=true \
             access-control-expose-headers=x-b"
        );
        assert_eq!(verdict(&policy, "GET", "https://b.com"), "pass");
        assert_eq!(verdict(&policy, "OPTIONS", "https://b.com"), "pass");
        policy.forward_unmatched = false;
        assert_eq!(verdict(&policy, "OPTIONS", "https://b.com"), "answer ");
    }

    #[test]
    fn dr_13_hash_keys() {
        let source: IpAddr = "10.0.0.1".parse().expect("an address");
        let of = |key: HashKey, uri: &str, headers: &[(&str, &str)]| {
            hash(&LoadBalancer::Hash(key), &parts("GET", uri, headers), source)
        };
        let want = |text: &str| (Some(hash_of(text)), None);
        assert_eq!(of(HashKey::SourceIp, "/", &[]), want("10.0.0.1"));
        assert_eq!(of(HashKey::Header("x-u".into()), "/", &[("x-u", "7")]), want("7"));
        assert_eq!(of(HashKey::Header("x-u".into()), "/", &[]), (None, None));
        assert_eq!(of(HashKey::Query("q".into()), "/?a=1&q=7", &[]), want("7"));
        let cookie = |ttl| HashKey::Cookie { name: "c".into(), path: Some("/p".into()), ttl };
        assert_eq!(of(cookie(None), "/", &[("cookie", "a=1; c=\"7\"")]), want("7"));
        assert_eq!(of(cookie(None), "/", &[]), (None, None));
        let (hash, made) = of(cookie(Some(Duration::from_secs(5))), "/", &[]);
        let made = made.expect("a cookie");
        let made = made.to_str().expect("text");
        let value = made.split('"').nth(1).expect("a value");
        assert_eq!(hash, Some(hash_of(value)));
        assert!(made.ends_with("\"; Max-Age=5; Path=/p; HttpOnly"), "{made}");
    }
}
