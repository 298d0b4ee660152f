//! Bytes both ways after an upgrade (LIS-20, T-34).

use std::sync::Arc;

use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;

use crate::account::Flag;
use crate::act::relay::{RelayEnd, RelayLimits, join};

use super::entry::Entry;

/// Relays until both sides ended, one broke, or nothing moved for the limit (T-54); then writes the
/// record (LOG-5).
pub(super) async fn run(
    client: OnUpgrade,
    upstream: OnUpgrade,
    limits: RelayLimits,
    mut entry: Entry,
) {
    let (Ok(client), Ok(upstream)) = tokio::join!(client, upstream) else {
        return;
    };
    let (received, sent) = (Arc::clone(&entry.received), Arc::clone(&entry.sent));
    let (client, upstream) = (TokioIo::new(client), TokioIo::new(upstream));
    // A reset on either side ends the tunnel like a close; the bytes are counted either way.
    match join(client, upstream, limits, &received, &sent).await {
        RelayEnd::Idle => entry.edit(|record| {
            record.flags.push(Flag::SI);
            record.response_code_details = Some("stream_idle_timeout".into());
        }),
        RelayEnd::TooLong => entry.edit(|record| {
            record.flags.push(Flag::UMSDR);
            record.response_code_details = Some("max_duration_timeout".into());
        }),
        _ => {}
    }
    entry.finish();
}
