//! The wall clock, which somebody may set at any moment (T-63).
//!
//! It says when something happened, for people to read. Nothing is waited for by it, and nothing is
//! judged to be before something else: that is asked of `Instant`, which goes on. (Certificates are
//! checked by the wall clock as well, in rustls.) Clippy forbids other ways to it.

use std::time::{Duration, SystemTime};

/// What the wall clock says now.
#[expect(clippy::disallowed_methods, reason = "the one place")]
pub(crate) fn wall() -> SystemTime {
    SystemTime::now()
}

/// What it would have said so long ago, had nobody set it since.
pub(crate) fn wall_before(age: Duration) -> SystemTime {
    let now = wall();
    now.checked_sub(age).unwrap_or(now)
}
