//! Where a route goes: destinations by weight, and copies (VS-20, VS-22, VS-28).

use super::super::super::entry::is_dns_label;
use super::super::super::fields::{Fields, Located};
use super::super::super::node::Node;
use super::super::super::reader::Reader;
use super::super::Destination;
use super::headers::headers;
use crate::decide::route::HeaderChanges;

/// A list of `route` items (VS-22, VSV-5, VSV-6).
pub(in super::super) fn route(
    r: &mut Reader<'_>,
    nodes: &[Located<&Node>],
    http: bool,
) -> Vec<Destination> {
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
        let mut changes = HeaderChanges::default();
        if http {
            let (headers, authority) = headers(r, &mut f);
            changes = headers;
            // VS-27: of this destination, so it is no rewrite of the whole rule's.
            changes.request.set.extend(authority.map(|name| (":authority".to_owned(), name)));
        }
        match f.take("destination") {
            Some(at) => {
                let with = |to| Destination { weight, headers: changes, ..to };
                found.extend(destination(r, &at).map(with));
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
pub(in super::super) fn destination(
    r: &mut Reader<'_>,
    node: &Located<&Node>,
) -> Option<Destination> {
    let mut f = r.fields(node);
    let host = r.some_text(&mut f, "host");
    let subset = r.some_text(&mut f, "subset");
    if let Some(subset) = &subset
        && !is_dns_label(&subset.value)
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

/// `mirror`, `mirrors` and their shares (VS-28, VSV-16).
pub(in super::super) fn mirrors(r: &mut Reader<'_>, f: &mut Fields<'_>) -> Vec<(Destination, f64)> {
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
