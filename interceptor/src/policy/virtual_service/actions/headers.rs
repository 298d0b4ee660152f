//! What a route changes of a message: headers, path and Host (VS-26, VS-27).

use super::super::super::fields::{Fields, Located};
use super::super::super::node::Node;
use super::super::super::reader::Reader;
use super::super::matches::{is_header_name, pattern};
use crate::account::Substitution;
use crate::decide::http_route::RewriteRule;
use crate::decide::route::{HeaderChanges, HeaderOps};
use crate::decide::uri::RegexRewrite;

/// `headers`, and the Host that it sets (VS-27, VSV-13).
pub(in super::super) fn headers(
    r: &mut Reader<'_>,
    f: &mut Fields<'_>,
) -> (HeaderChanges, Option<String>) {
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
    if let Err(wrong) = Substitution::parse(&value.value) {
        r.reject(value, wrong.to_string());
        return None;
    }
    good.then(|| (name.to_owned(), value.value.clone()))
}

/// Host and the pseudo headers have fields of their own.
fn check_name<T>(r: &mut Reader<'_>, name: &str, at: &Located<T>) -> bool {
    let good = is_header_name(name) && !name.eq_ignore_ascii_case("host");
    if !good {
        r.reject(at, format!("\"{name}\" is not the name of a header that can be changed"));
    }
    good
}

/// `rewrite` (VS-26).
pub(in super::super) fn rewrite(r: &mut Reader<'_>, node: &Located<&Node>) -> RewriteRule {
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
