//! When a failed attempt is repeated (VS-40, VS-41, VSV-10).

use super::super::super::fields::Located;
use super::super::super::node::Node;
use super::super::super::reader::Reader;
use crate::decide::route::{BACK_OFF, Retries, RetryOn};

/// VS-40.
pub(in super::super::super) fn default_retries(idempotent_only: bool) -> Retries {
    Retries {
        attempts: 2,
        per_try_timeout: None,
        on: default_retry_on(),
        statuses: Vec::new(),
        idempotent_only,
        back_off: BACK_OFF,
        elsewhere: true,
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

/// `retries` (VS-41, VSV-10). What a resource says holds for all methods (GAP-17).
pub(in super::super::super) fn retries(r: &mut Reader<'_>, node: &Located<&Node>) -> Retries {
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
    let elsewhere = r.boolean(&mut f, "retryIgnorePreviousHosts");
    r.unused(&mut f, "retryRemoteLocalities", "all endpoints are equally near");
    let back_off = r.duration(&mut f, "backoff", false);
    r.finish(f);
    let mut retries = Retries {
        attempts: u32::try_from(count).unwrap_or(0),
        per_try_timeout,
        on: default_retry_on(),
        statuses: Vec::new(),
        idempotent_only: false,
        back_off: back_off.unwrap_or(BACK_OFF),
        elsewhere: elsewhere.is_none_or(|flag| flag.value),
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
