//! sock_ops of the daemon: an accepted socket takes its original destination over while the
//! handshake completes, so that nothing looked up later can be another connection's (T-14).

use aya_ebpf::programs::SockOpsContext;
use interceptor_common::{Finding, HandoverKey};

use crate::count::count;
use crate::ctx::{self, End};
use crate::maps;

const PASSIVE_ESTABLISHED_CB: u32 = 5;

/// One callback.
#[inline(always)]
pub fn daemon(ctx: &SockOpsContext) {
    if ctx.op() != PASSIVE_ESTABLISHED_CB {
        return;
    }
    let key = HandoverKey {
        netns: ctx::netns_cookie(ctx.ops),
        client: ctx::ops_end(ctx, End::Remote),
        listener: ctx::ops_end(ctx, End::Local),
    };
    // SAFETY: only this handshake's own end writes under this key, and it did so before.
    let Some(handover) = (unsafe { maps::HANDOVERS.get(&key) }) else {
        count(Finding::HandoverMissing);
        return;
    };
    let stored = ctx::hand_over(ctx, handover);
    let _ = maps::HANDOVERS.remove(&key);
    count(if stored { Finding::HandoverTaken } else { Finding::NoStorage });
}
