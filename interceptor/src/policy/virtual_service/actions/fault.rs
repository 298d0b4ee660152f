//! Faults that a route injects (VS-50, VS-51, VSV-9).

use std::time::Duration;

use super::super::super::fields::Located;
use super::super::super::node::Node;
use super::super::super::reader::Reader;
use crate::decide::route::{Abort, Fault};

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

/// `fault` (VS-50, VSV-9).
pub(in super::super) fn fault(r: &mut Reader<'_>, node: &Located<&Node>) -> Fault {
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
