//! sock_ops of the daemon: an accepted socket takes its original destination over while the
//! handshake completes, so that nothing looked up later can be another connection's (T-14). And how its
//! own connections close, where the interface layer asks for that.

use aya_ebpf::programs::SockOpsContext;
use interceptor_common::{Finding, HandoverKey};

use crate::count::count;
use crate::ctx::{self, End};
use crate::{interface, maps, select};

const ACTIVE_ESTABLISHED_CB: u32 = 4;
const PASSIVE_ESTABLISHED_CB: u32 = 5;
const STATE_CB: u32 = 10;

const STATE_CB_FLAG: i32 = 4;
const CLOSE: u32 = 7;

/// One callback.
#[inline(always)]
pub fn daemon(ctx: &SockOpsContext) {
    match ctx.op() {
        PASSIVE_ESTABLISHED_CB => {}
        ACTIVE_ESTABLISHED_CB => {
            if select::has_interface(ctx::netns_cookie(ctx.ops)) {
                let _ = ctx.set_cb_flags(STATE_CB_FLAG);
            }
            return;
        }
        STATE_CB if ctx::ops_args(ctx).1 == CLOSE => {
            let (local, remote) = (ctx::ops_end(ctx, End::Local), ctx::ops_end(ctx, End::Remote));
            return interface::closed(ctx::netns_cookie(ctx.ops), local, remote);
        }
        _ => return,
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
