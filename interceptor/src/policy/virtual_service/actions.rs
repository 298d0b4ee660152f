//! What a rule does: destinations, redirects, retries, faults and the rest of section 10.3, with
//! what VSV says of each.

use std::time::Duration;

use super::super::fields::{Fields, Located};
use super::super::node::Node;
use super::super::reader::Reader;
use super::super::service_entry::one_of;
use super::Destination;
use super::matches::{is_header_name, pattern, string_match};
use crate::decide::http_route::RewriteRule;
use crate::decide::route::{Abort, Cors, Fault, HeaderChanges, HeaderOps, Retries, RetryOn};
use crate::decide::uri::{Redirect, RegexRewrite};

/// VS-40.
pub(in super::super) fn default_retries(idempotent_only: bool) -> Retries {
    Retries {
        attempts: 2,
        per_try_timeout: None,
        on: default_retry_on(),
        statuses: Vec::new(),
        idempotent_only,
    }
}

fn default_retry_on() -> Vec<RetryOn> {
    vec![
        RetryOn::ConnectFailure,
        RetryOn::RefusedStream,
        RetryOn::Grpc(14),
        RetryOn::Grpc(1),
        RetryOn::StatusCodes,
    ]
}

/// The gRPC statuses, by number.
const GRPC: [&str; 17] = [
    "OK",
    "CANCELLED",
    "UNKNOWN",
    "INVALID_ARGUMENT",
    "DEADLINE_EXCEEDED",
    "NOT_FOUND",
    "ALREADY_EXISTS",
    "PERMISSION_DENIED",
    "RESOURCE_EXHAUSTED",
    "FAILED_PRECONDITION",
    "ABORTED",
    "OUT_OF_RANGE",
    "UNIMPLEMENTED",
    "INTERNAL",
    "UNAVAILABLE",
    "DATA_LOSS",
    "UNAUTHENTICATED",
];

/// A list of `route` items (VS-22, VSV-5, VSV-6).
pub(super) fn route(r: &mut Reader<'_>, nodes: &[Located<&Node>], http: bool) -> Vec<Destination> {
    let mut found = Vec::with_capacity(nodes.len());
    let mut weights = 0_u64;
    for node in nodes {
        let mut f = r.fields(node);
        let weight = r.int(&mut f, "weight");
        let weight = match &weight {
            None => 0,
            Some(weight) => u32::try_from(weight.value).unwrap_or_else(|_| {
                r.reject(weight, "a weight is not negative (VSV-5)");
                0
            }),
        };
        weights += u64::from(weight);
        let headers = if http { headers(r, &mut f).0 } else { HeaderChanges::default() };
        match f.take("destination") {
            Some(at) => {
                found.extend(destination(r, &at).map(|to| Destination { weight, headers, ..to }))
            }
            None => r.reject(node, "destination is required (VSV-6)"),
        }
        r.finish(f);
    }
    if let [only] = found.as_mut_slice() {
        // VS-22: one destination takes everything.
        only.weight = 1;
    } else if weights == 0
        && let Some(first) = nodes.first()
    {
        r.reject(first, "the weights add up to nothing (VSV-5)");
    }
    found
}

/// `destination` (VSV-6, VS-6).
pub(super) fn destination(r: &mut Reader<'_>, node: &Located<&Node>) -> Option<Destination> {
    let mut f = r.fields(node);
    let host = r.some_text(&mut f, "host");
    let subset = r.some_text(&mut f, "subset");
    if let Some(subset) = &subset
        && !super::super::entry::is_dns_label(&subset.value)
    {
        r.reject(subset, format!("\"{}\" is not the name of a subset", subset.value));
    }
    let port = f.take("port").and_then(|port| {
        let mut inner = r.fields(&port);
        if !inner.has("number") {
            r.reject(&port, "number is required");
        }
        let number = r.port(&mut inner, "number");
        r.finish(inner);
        number
    });
    r.finish(f);
    let Some(host) = host else {
        r.reject(node, "host is required (VSV-6)");
        return None;
    };
    let host = r.host(&host)?;
    let subset = subset.map(|subset| subset.value);
    Some(Destination { host, port, subset, weight: 1, headers: HeaderChanges::default() })
}

/// `headers`, and the Host that it sets (VS-27, VSV-13).
pub(super) fn headers(r: &mut Reader<'_>, f: &mut Fields<'_>) -> (HeaderChanges, Option<String>) {
    let Some(node) = f.take("headers") else { return (HeaderChanges::default(), None) };
    let mut f = r.fields(&node);
    let mut authority = None;
    let request = operations(r, &mut f, "request", Some(&mut authority));
    let response = operations(r, &mut f, "response", None);
    r.finish(f);
    (HeaderChanges { request, response }, authority)
}

fn operations(
    r: &mut Reader<'_>,
    f: &mut Fields<'_>,
    side: &str,
    mut authority: Option<&mut Option<String>>,
) -> HeaderOps {
    let Some(node) = f.take(side) else { return HeaderOps::default() };
    let mut f = r.fields(&node);
    let mut ops = HeaderOps::default();
    for (name, value) in r.pairs(&mut f, "set") {
        let names_host = name == ":authority" || name.eq_ignore_ascii_case("host");
        match authority.as_deref_mut().filter(|_| names_host) {
            Some(authority) => {
                if authority.is_some() {
                    r.reject(&value, "Host and :authority are the same; set one (VSV-13)");
                }
                *authority = Some(value.value);
            }
            None => ops.set.extend(operation(r, &name, &value)),
        }
    }
    for (name, value) in r.pairs(&mut f, "add") {
        ops.add.extend(operation(r, &name, &value));
    }
    for name in r.texts(&mut f, "remove") {
        if check_name(r, &name.value, &name) {
            ops.remove.push(name.value);
        }
    }
    r.finish(f);
    ops
}

fn operation(r: &mut Reader<'_>, name: &str, value: &Located<String>) -> Option<(String, String)> {
    let good = check_name(r, name, value);
    if value.value.bytes().any(|b| b < b' ' && b != b'\t' || b == 0x7f) {
        r.reject(value, "a header value has no control characters");
        return None;
    }
    let plain = value.value.replace("%%", "");
    let tokens: Vec<&str> = plain.split('%').collect();
    if tokens.len().is_multiple_of(2)
        || tokens.iter().skip(1).step_by(2).any(|token| token.is_empty())
    {
        r.reject(value, "a single % starts a variable; write %% for the character itself");
        return None;
    }
    if tokens.len() > 1 {
        r.warn(value, "variables between % are sent as written here");
    }
    good.then(|| (name.to_owned(), value.value.replace("%%", "%")))
}

/// Host and the pseudo headers have fields of their own.
fn check_name<T>(r: &mut Reader<'_>, name: &str, at: &Located<T>) -> bool {
    let good = is_header_name(name) && !name.eq_ignore_ascii_case("host");
    if !good {
        r.reject(at, format!("\"{name}\" is not the name of a header that can be changed"));
    }
    good
}

/// `redirect` (VS-24, VSV-12); the flag says that the port is the request's.
pub(super) fn redirect(r: &mut Reader<'_>, node: &Located<&Node>) -> (Redirect, bool) {
    let mut f = r.fields(node);
    let code = r.int(&mut f, "redirectCode").filter(|code| code.value != 0);
    if let Some(code) = &code
        && !(300..=399).contains(&code.value)
    {
        r.reject(code, "must lie between 300 and 399 (VSV-12)");
    }
    let honoured = code.as_ref().and_then(|code| u16::try_from(code.value).ok());
    let honoured = honoured.filter(|code| [301, 302, 303, 307, 308].contains(code));
    if let Some(code) = code.as_ref().filter(|_| honoured.is_none()) {
        r.warn(code, "not honoured: 301 is sent (VSV-12)");
    }
    let uri = r.some_text(&mut f, "uri");
    let prefix = r.some_text(&mut f, "uriPrefix").or_else(|| r.some_text(&mut f, "prefixRewrite"));
    if uri.is_some()
        && let Some(prefix) = &prefix
    {
        r.reject(prefix, "give the whole uri or its prefix, not both");
    }
    let port = r.port(&mut f, "port");
    let derive = [("FROM_PROTOCOL_DEFAULT", false), ("FROM_REQUEST_PORT", true)];
    let derive = one_of(f.text("derivePort", r.cx, r.out), &derive, r.cx, r.out);
    if port.is_some() && derive.is_some() {
        r.reject(node, "give port or derivePort, not both");
    }
    let scheme = r.some_text(&mut f, "scheme");
    if let Some(scheme) = &scheme
        && !matches!(scheme.value.as_str(), "http" | "https")
    {
        r.reject(scheme, "scheme is http or https");
    }
    let authority = r.some_text(&mut f, "authority");
    if uri.is_none()
        && prefix.is_none()
        && authority.is_none()
        && scheme.is_none()
        && port.is_none()
        && derive.is_none()
    {
        r.reject(node, "says nothing: give uri, authority, port or scheme");
    }
    r.finish(f);
    let redirect = Redirect {
        status: honoured.unwrap_or(301),
        uri: uri.map(|uri| uri.value),
        prefix: prefix.map(|prefix| prefix.value),
        authority: authority.map(|authority| authority.value),
        port,
        scheme: scheme.map(|scheme| scheme.value),
    };
    (redirect, derive == Some(true))
}

/// `directResponse` (VS-25).
pub(super) fn direct_response(r: &mut Reader<'_>, node: &Located<&Node>) -> (u16, Vec<u8>) {
    let mut f = r.fields(node);
    let status = r.int(&mut f, "status");
    let found = status.as_ref().and_then(|status| u16::try_from(status.value).ok());
    let found = found.filter(|status| (200..=599).contains(status));
    match (&status, found) {
        (Some(status), None) => r.reject(status, "must lie between 200 and 599"),
        (None, _) => r.reject(node, "status is required"),
        _ => {}
    }
    let mut body = Vec::new();
    if let Some(at) = f.take("body") {
        let mut inner = r.fields(&at);
        let text = r.text(&mut inner, "string");
        let bytes = r.text(&mut inner, "bytes");
        r.finish(inner);
        if let Some(bytes) = &bytes {
            r.warn(bytes, "base64 is not decoded here; use string");
        }
        body = text.or(bytes).map(|text| text.value.into_bytes()).unwrap_or_default();
        if body.len() > 1 << 20 {
            r.reject(&at, "larger than 1 MiB");
        } else if body.len() > 100 << 10 {
            r.warn(&at, "larger than 100 KiB");
        }
    }
    r.finish(f);
    (found.unwrap_or(500), body)
}

/// `rewrite` (VS-26).
pub(super) fn rewrite(r: &mut Reader<'_>, node: &Located<&Node>) -> RewriteRule {
    let mut f = r.fields(node);
    let uri = r.some_text(&mut f, "uri").map(|uri| uri.value);
    let authority = r.some_text(&mut f, "authority").map(|authority| authority.value);
    let regex = f.take("uriRegexRewrite").and_then(|at| {
        let mut inner = r.fields(&at);
        let with = r.text(&mut inner, "rewrite");
        let found = r.text(&mut inner, "match");
        r.finish(inner);
        let (Some(found), Some(with)) = (found, with) else {
            r.reject(&at, "match and rewrite are both required");
            return None;
        };
        let pattern = pattern(r, &found, false)?;
        Some(RegexRewrite { pattern, substitution: with.value })
    });
    r.finish(f);
    if uri.is_some() && regex.is_some() {
        r.reject(node, "give uri or uriRegexRewrite, not both");
    }
    if uri.is_none() && regex.is_none() && authority.is_none() {
        r.reject(node, "says nothing: give uri, uriRegexRewrite or authority");
    }
    RewriteRule { uri, regex, authority }
}

/// `retries` (VS-41, VSV-10). What a resource says holds for all methods (GAP-17).
pub(in super::super) fn retries(r: &mut Reader<'_>, node: &Located<&Node>) -> Retries {
    let mut f = r.fields(node);
    let attempts = r.int(&mut f, "attempts");
    let count = attempts.as_ref().map_or(0, |attempts| attempts.value);
    if count < 0
        && let Some(attempts) = &attempts
    {
        r.reject(attempts, "attempts is not negative (VSV-10)");
    }
    let says_more = ["perTryTimeout", "retryOn", "retryRemoteLocalities"].iter().any(|x| f.has(x));
    if count == 0 && says_more {
        r.reject(node, "attempts: 0 switches retries off and stands alone (VSV-10)");
    }
    let per_try_timeout = r.duration(&mut f, "perTryTimeout", false);
    let on = r.some_text(&mut f, "retryOn");
    f.take("retryIgnorePreviousHosts");
    r.unused(&mut f, "retryRemoteLocalities", "endpoints have no localities");
    r.unused(&mut f, "backoff", "the delays are those of VS-40");
    r.finish(f);
    let mut retries = Retries {
        attempts: u32::try_from(count).unwrap_or(0),
        per_try_timeout,
        on: default_retry_on(),
        statuses: Vec::new(),
        idempotent_only: false,
    };
    if let Some(on) = on {
        retries.on.clear();
        for word in on.value.split(',').map(str::trim) {
            match word.parse::<u16>() {
                Ok(status) if (100..=599).contains(&status) => retries.statuses.push(status),
                _ => match retry_on(word) {
                    Some(condition) => retries.on.push(condition),
                    None => r.reject(&on, format!("unknown condition \"{word}\" (VSV-10)")),
                },
            }
        }
        if !retries.statuses.is_empty() && !retries.on.contains(&RetryOn::StatusCodes) {
            retries.on.push(RetryOn::StatusCodes);
        }
    }
    retries
}

fn retry_on(word: &str) -> Option<RetryOn> {
    Some(match word {
        "connect-failure" => RetryOn::ConnectFailure,
        "refused-stream" => RetryOn::RefusedStream,
        "reset" => RetryOn::Reset,
        "reset-before-request" => RetryOn::ResetBeforeRequest,
        "5xx" => RetryOn::ServerError,
        "gateway-error" => RetryOn::GatewayError,
        "retriable-4xx" => RetryOn::Retriable4xx,
        "retriable-status-codes" => RetryOn::StatusCodes,
        "cancelled" => RetryOn::Grpc(1),
        "deadline-exceeded" => RetryOn::Grpc(4),
        "resource-exhausted" => RetryOn::Grpc(8),
        "internal" => RetryOn::Grpc(13),
        "unavailable" => RetryOn::Grpc(14),
        "envoy-ratelimited" | "retriable-headers" | "http3-post-connect-failure" => RetryOn::Never,
        _ => return None,
    })
}

/// `fault` (VS-50, VSV-9).
pub(super) fn fault(r: &mut Reader<'_>, node: &Located<&Node>) -> Fault {
    let mut f = r.fields(node);
    let delay = f.take("delay").map(|at| delay(r, &at));
    let abort = f.take("abort").map(|at| abort(r, &at));
    r.finish(f);
    if delay.is_none() && abort.is_none() {
        r.reject(node, "delay or abort is required (VSV-9)");
    }
    Fault { delay: delay.flatten(), abort: abort.flatten() }
}

fn delay(r: &mut Reader<'_>, node: &Located<&Node>) -> Option<(Duration, f64)> {
    let mut f = r.fields(node);
    let percent = r.int(&mut f, "percent");
    if let Some(percent) = &percent
        && !(0..=100).contains(&percent.value)
    {
        r.reject(percent, "must lie between 0 and 100 (VSV-9)");
    }
    let share = r.percentage(&mut f, "percentage");
    if let Some(exponential) = f.take("exponentialDelay") {
        r.reject(&exponential, "is not implemented; use fixedDelay");
    }
    let fixed = r.duration(&mut f, "fixedDelay", false);
    if fixed.is_none() {
        r.reject(node, "fixedDelay of at least 1ms is required (VSV-9)");
    }
    r.finish(f);
    // VS-50: without `percentage` the old integer holds, and without that, never.
    let old = || percent.as_ref().and_then(|p| u8::try_from(p.value).ok()).map_or(0.0, f64::from);
    Some((fixed?, share.unwrap_or_else(old)))
}

fn abort(r: &mut Reader<'_>, node: &Located<&Node>) -> Option<(Abort, f64)> {
    let mut f = r.fields(node);
    let share = r.percentage(&mut f, "percentage");
    let http = r.int(&mut f, "httpStatus");
    let grpc = r.text(&mut f, "grpcStatus");
    if let Some(http2) = f.take("http2Error") {
        r.reject(&http2, "is not implemented; use httpStatus");
    }
    r.finish(f);
    let kind = match (&http, &grpc) {
        (Some(status), None) => {
            let found = u16::try_from(status.value).ok().filter(|s| (200..=600).contains(s));
            if found.is_none() {
                r.reject(status, "must lie between 200 and 600 (VSV-9)");
            }
            found.map(Abort::Http)
        }
        (None, Some(name)) => {
            let number = GRPC.iter().position(|known| *known == name.value);
            let number = number.and_then(|number| u8::try_from(number).ok());
            if number.is_none() {
                r.reject(name, format!("\"{}\" is not a gRPC status (VSV-9)", name.value));
            }
            number.map(Abort::Grpc)
        }
        _ => {
            r.reject(node, "one of httpStatus and grpcStatus is required (VSV-9)");
            None
        }
    };
    // VS-50: without `percentage`, never.
    Some((kind?, share.unwrap_or(0.0)))
}

/// `mirror`, `mirrors` and their shares (VS-28, VSV-16).
pub(super) fn mirrors(r: &mut Reader<'_>, f: &mut Fields<'_>) -> Vec<(Destination, f64)> {
    let one = f.take("mirror");
    let many = r.list(f, "mirrors");
    if let Some(one) = &one
        && !many.is_empty()
    {
        r.reject(one, "give mirror or mirrors, not both (VSV-16)");
    }
    let old = r.int(f, "mirrorPercent");
    if let Some(old) = &old
        && !(0..=100).contains(&old.value)
    {
        r.reject(old, "must lie between 0 and 100 (VSV-16)");
    }
    let old = old.and_then(|old| u8::try_from(old.value).ok()).map(f64::from);
    let share = r.percentage(f, "mirrorPercentage").or(old).unwrap_or(100.0);
    let mut found = Vec::new();
    if let Some(one) = one {
        found.extend(destination(r, &one).map(|to| (to, share)));
    }
    for node in many {
        let mut inner = r.fields(&node);
        let share = r.percentage(&mut inner, "percentage").unwrap_or(100.0);
        match inner.take("destination") {
            Some(at) => found.extend(destination(r, &at).map(|to| (to, share))),
            None => r.reject(&node, "destination is required"),
        }
        r.finish(inner);
    }
    found.retain(|(_, share)| *share > 0.0);
    found
}

/// `corsPolicy` (VS-29).
pub(super) fn cors(r: &mut Reader<'_>, node: &Located<&Node>) -> Cors {
    const METHODS: [&str; 9] =
        ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "CONNECT", "OPTIONS", "TRACE"];
    let mut f = r.fields(node);
    let mut origins: Vec<_> = r
        .texts(&mut f, "allowOrigin")
        .into_iter()
        .map(|origin| crate::decide::route::TextMatch::Exact(origin.value))
        .collect();
    for origin in r.list(&mut f, "allowOrigins") {
        origins.extend(string_match(r, &origin, false));
    }
    let methods = r.texts(&mut f, "allowMethods");
    for method in methods.iter().filter(|m| m.value != "*" && !METHODS.contains(&m.value.as_str()))
    {
        r.reject(method, format!("\"{}\" is not an HTTP method", method.value));
    }
    let mut names = |r: &mut Reader<'_>, field: &str| -> Vec<String> {
        let names = r.texts(&mut f, field);
        for name in names.iter().filter(|name| name.value != "*" && !is_header_name(&name.value)) {
            r.reject(name, format!("\"{}\" is not a header name", name.value));
        }
        names.into_iter().map(|name| name.value).collect()
    };
    let headers = names(r, "allowHeaders");
    let expose = names(r, "exposeHeaders");
    let max_age = f.duration("maxAge", r.cx, r.out);
    if let Some(age) = &max_age
        && (age.value.subsec_nanos() != 0 || age.value.is_zero())
    {
        r.reject(age, "must be whole seconds");
    }
    let credentials = r.boolean(&mut f, "allowCredentials").map(|flag| flag.value);
    let ways = [("UNSPECIFIED", true), ("FORWARD", true), ("IGNORE", false)];
    let forward = one_of(f.text("unmatchedPreflights", r.cx, r.out), &ways, r.cx, r.out);
    r.finish(f);
    Cors {
        origins,
        methods: methods.into_iter().map(|method| method.value).collect(),
        headers,
        expose,
        max_age: max_age.map(|age| age.value),
        credentials,
        forward_unmatched: forward.unwrap_or(true),
    }
}
