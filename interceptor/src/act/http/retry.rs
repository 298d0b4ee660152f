//! When an attempt is repeated, and after how long (VS-40 to VS-44).

use std::time::Duration;

use http::HeaderMap;

use crate::act::dial::random_below;
use crate::decide::route::{Retries, RetryOn};

/// No wait is longer than so many times the base.
const BACK_OFF_MAX: u64 = 10;

/// How an attempt ended without an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Cause {
    /// No connection, or no TLS on it.
    Connect,
    /// The connection broke before an answer.
    Reset {
        /// Whether any byte of the request may have been sent.
        sent: bool,
    },
    /// The upstream refused the stream unprocessed (HTTP/2).
    Refused,
    /// The attempt's own time was over (VS-32).
    Late,
    /// What another attempt would not change: a limit, a missing endpoint, a broken request.
    Other,
}

/// Whether an attempt that ended by `cause` is repeated.
pub(super) fn after_failure(retries: &Retries, cause: Cause) -> bool {
    let on = |condition| retries.on.contains(&condition);
    if cause == Cause::Other {
        return false;
    }
    // No answer counts as the 5xx that it becomes.
    if on(RetryOn::Reset) || on(RetryOn::ServerError) || on(RetryOn::GatewayError) {
        return true;
    }
    match cause {
        Cause::Connect => on(RetryOn::ConnectFailure) || on(RetryOn::ResetBeforeRequest),
        Cause::Reset { sent } => !sent && on(RetryOn::ResetBeforeRequest),
        Cause::Refused => on(RetryOn::RefusedStream) || on(RetryOn::ResetBeforeRequest),
        Cause::Late | Cause::Other => false,
    }
}

/// Whether an attempt that was answered so is repeated.
pub(super) fn after_answer(retries: &Retries, status: u16, headers: &HeaderMap) -> bool {
    let grpc = headers.get("grpc-status").and_then(|value| value.to_str().ok()?.parse::<u8>().ok());
    retries.statuses.contains(&status)
        || retries.on.iter().any(|condition| match condition {
            RetryOn::ServerError => status >= 500,
            RetryOn::GatewayError => matches!(status, 502..=504),
            RetryOn::Retriable4xx => status == 409,
            RetryOn::Grpc(code) => grpc == Some(*code),
            _ => false,
        })
}

/// The wait before attempt number `next`, counted from 1 for the first repetition: random, so that
/// clients that failed together do not come back together. `base`: the first one's bound.
pub(super) fn back_off(next: u32, base: Duration) -> Duration {
    let doubled = 1u64.checked_shl(next).unwrap_or(u64::MAX);
    let times = doubled.saturating_sub(1).min(BACK_OFF_MAX);
    // Read as a protobuf duration of whole milliseconds; centuries would be cut short.
    let base = u64::try_from(base.as_micros()).unwrap_or(u64::MAX);
    Duration::from_micros(random_below(base.saturating_mul(times)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decide::route::BACK_OFF;

    #[test]
    fn vs_40_conditions() {
        use RetryOn::*;
        let by = |on: RetryOn| Retries { attempts: 1, on: vec![on], ..Retries::default() };
        let (unsent, cut) = (Cause::Reset { sent: false }, Cause::Reset { sent: true });
        // Connect, unsent, cut, refused, late, other
        for (on, expected) in [
            (ConnectFailure, [true, false, false, false, false, false]),
            (RefusedStream, [false, false, false, true, false, false]),
            (Reset, [true, true, true, true, true, false]),
            (ResetBeforeRequest, [true, true, false, true, false, false]),
            (ServerError, [true, true, true, true, true, false]),
            (GatewayError, [true, true, true, true, true, false]),
            (StatusCodes, [false; 6]),
            (Never, [false; 6]),
        ] {
            let causes = [Cause::Connect, unsent, cut, Cause::Refused, Cause::Late, Cause::Other];
            assert_eq!(causes.map(|cause| after_failure(&by(on), cause)), expected, "{on:?}");
        }
        let mut grpc = HeaderMap::new();
        grpc.insert("grpc-status", http::HeaderValue::from_static("14"));
        // 200, 409, 500, 503
        for (on, expected) in [
            (ServerError, [false, false, true, true]),
            (GatewayError, [false, false, false, true]),
            (Retriable4xx, [false, true, false, false]),
            (ConnectFailure, [false; 4]),
            (Grpc(14), [true; 4]),
            (Grpc(1), [false; 4]),
        ] {
            let answers = [200, 409, 500, 503].map(|status| after_answer(&by(on), status, &grpc));
            assert_eq!(answers, expected, "{on:?}");
        }
        // VS-41: numbers are status codes.
        let listed = Retries { statuses: vec![429], ..Retries::default() };
        assert!(after_answer(&listed, 429, &HeaderMap::new()));
        assert!(!after_answer(&listed, 430, &HeaderMap::new()));
    }

    #[test]
    fn vs_40_back_off() {
        for (next, times) in [(1, 1), (2, 3), (3, 7), (4, 10), (70, 10)] {
            for base in [BACK_OFF, Duration::from_secs(2)] {
                let waits: Vec<_> = (0..100).map(|_| back_off(next, base)).collect();
                let longest = waits.iter().max().expect("a wait");
                assert!(*longest < base * times && *longest > base * times / 2, "{next} {base:?}");
            }
        }
    }
}
