//! `corsPolicy` (VS-29).

use super::super::super::fields::Located;
use super::super::super::node::Node;
use super::super::super::reader::Reader;
use super::super::super::service_entry::one_of;
use super::super::matches::{is_header_name, string_match};
use crate::decide::route::{Cors, TextMatch};

/// `corsPolicy` (VS-29).
pub(in super::super) fn cors(r: &mut Reader<'_>, node: &Located<&Node>) -> Cors {
    const METHODS: [&str; 9] =
        ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "CONNECT", "OPTIONS", "TRACE"];
    let mut f = r.fields(node);
    let mut origins: Vec<_> = r
        .texts(&mut f, "allowOrigin")
        .into_iter()
        .map(|origin| TextMatch::Exact(origin.value))
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
