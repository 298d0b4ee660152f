//! Bytes both ways after an upgrade (LIS-20, T-34).

use std::sync::Arc;

use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;

use crate::account::Flag;
use crate::act::relay::{RelayEnd, RelayLimits, join};

use super::cut::{self, Withdrawal};
use super::entry::Entry;

/// Relays until both sides ended, one broke, or nothing moved for the limit (T-54); then writes the
/// record (LOG-5).
pub(super) async fn run(
    client: OnUpgrade,
    upstream: OnUpgrade,
    limits: RelayLimits,
    mut entry: Entry,
    mut withdrawal: Option<Withdrawal>,
) {
    let (Ok(client), Ok(upstream)) = tokio::join!(client, upstream) else {
        return;
    };
    let (received, sent) = (Arc::clone(&entry.received), Arc::clone(&entry.sent));
    let (client, upstream) = (TokioIo::new(client), TokioIo::new(upstream));
    // A reset on either side ends the tunnel like a close; the bytes are counted either way.
    let end = tokio::select! {
        end = join(client, upstream, limits, &received, &sent) => end,
        why = cut::withdrawn(&mut withdrawal) => {
            entry.edit(|record| {
                record.flags.push(Flag::UH);
                record.response_code_details = Some(cut::details(why).into());
            });
            RelayEnd::Cut
        }
    };
    match end {
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
