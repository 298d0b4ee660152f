//! The parts of a Telemetry that nothing here acts on: read all the same, so that a mistake in them
//! is found here as Istio would find it, then said to have no effect.

use super::super::fields::{Context, Fields, Findings, Located};
use super::super::node::Node;
use super::super::service_entry::{not_yet, one_of};
use super::{matched, providers};

/// `metrics` and `tracing` of `spec`.
pub(super) fn read_unused(spec: &mut Fields<'_>, cx: &Context, out: &mut Findings) {
    for (field, read) in [("metrics", metrics as Reader), ("tracing", tracing)] {
        let items = spec.list(field, cx, out);
        if let Some(first) = items.first() {
            let found = Located { value: (), at: first.at, path: spec.path_of(field) };
            not_yet(cx, out, &found, "only accessLogging has an effect");
        }
        for item in items {
            let mut f = Fields::of(item.value, item.path, cx, out);
            providers(&mut f, cx, out);
            read(&mut f, cx, out);
            f.finish(cx, out);
        }
    }
}

/// Reads what one item has besides its providers.
type Reader = fn(&mut Fields<'_>, &Context, &mut Findings);

/// What `overrides[].match.metric` may be.
const METRICS: [&str; 11] = [
    "ALL_METRICS",
    "REQUEST_COUNT",
    "REQUEST_DURATION",
    "REQUEST_SIZE",
    "RESPONSE_SIZE",
    "TCP_OPENED_CONNECTIONS",
    "TCP_CLOSED_CONNECTIONS",
    "TCP_SENT_BYTES",
    "TCP_RECEIVED_BYTES",
    "GRPC_REQUEST_MESSAGES",
    "GRPC_RESPONSE_MESSAGES",
];

fn metrics(f: &mut Fields<'_>, cx: &Context, out: &mut Findings) {
    f.duration("reportingInterval", cx, out);
    for item in f.list("overrides", cx, out) {
        let mut one = Fields::of(item.value, item.path, cx, out);
        one.boolean("disabled", cx, out);
        matched(&mut one, cx, out, |inner, cx, out| {
            let metric = inner.text("metric", cx, out);
            let custom = inner.text("customMetric", cx, out);
            if let (Some(_), Some(custom)) = (&metric, custom) {
                let message = "only one of metric and customMetric";
                out.rejected.push(cx.notice(custom.at, &custom.path, message));
            }
            one_of(metric, &METRICS.map(|name| (name, ())), cx, out);
        });
        for (_, tag) in one.entries("tagOverrides", cx, out).unwrap_or_default() {
            tag_override(tag, cx, out);
        }
        one.finish(cx, out);
    }
}

fn tag_override(tag: Located<&Node>, cx: &Context, out: &mut Findings) {
    let mut f = Fields::of(tag.value, tag.path.clone(), cx, out);
    let operations = [("UPSERT", true), ("REMOVE", false)];
    let upsert = one_of(f.text("operation", cx, out), &operations, cx, out).unwrap_or(true);
    let value = f.text("value", cx, out).is_some_and(|value| !value.value.is_empty());
    if upsert != value {
        let message = match upsert {
            true => "UPSERT needs a value",
            false => "REMOVE takes no value",
        };
        out.rejected.push(cx.notice(tag.at, &tag.path, message));
    }
    f.finish(cx, out);
}

fn tracing(f: &mut Fields<'_>, cx: &Context, out: &mut Findings) {
    matched(f, cx, out, |_, _, _| {});
    for flag in ["disableSpanReporting", "useRequestIdForTraceSampling", "enableIstioTags"] {
        f.boolean(flag, cx, out);
    }
    if let Some(share) = f.number("randomSamplingPercentage", cx, out)
        && !(0.0..=100.0).contains(&share.value)
    {
        out.rejected.push(cx.notice(share.at, &share.path, "must lie between 0 and 100"));
    }
    for (name, tag) in f.entries("customTags", cx, out).unwrap_or_default() {
        custom_tag(&name, tag, cx, out);
    }
}

/// A tag's value comes from exactly one of these, each with what it cannot do without.
const TAG_SOURCES: [(&str, &str); 4] =
    [("literal", "value"), ("environment", "name"), ("header", "name"), ("formatter", "value")];

fn custom_tag(name: &str, tag: Located<&Node>, cx: &Context, out: &mut Findings) {
    let mut f = Fields::of(tag.value, tag.path.clone(), cx, out);
    let mut sources = 0;
    for (kind, needed) in TAG_SOURCES {
        let Some(found) = f.take(kind) else { continue };
        sources += 1;
        let mut inner = Fields::of(found.value, found.path.clone(), cx, out);
        if needed == "name" {
            inner.text("defaultValue", cx, out);
        }
        if inner.text(needed, cx, out).is_none_or(|text| text.value.is_empty()) {
            out.rejected.push(cx.notice(found.at, &inner.path_of(needed), "missing"));
        }
        inner.finish(cx, out);
    }
    f.finish(cx, out);
    if name.is_empty() {
        out.rejected.push(cx.notice(tag.at, &tag.path, "a tag needs a name"));
    } else if sources != 1 {
        let message = "exactly one of literal, environment, header and formatter";
        out.rejected.push(cx.notice(tag.at, &tag.path, message));
    }
}
