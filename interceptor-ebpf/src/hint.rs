//! Answers of resolvers, as hints: the daemon hears which name a workload asked for, so that it can
//! ask for that itself. Nothing is held back and nothing authorised (T-39).

use aya_ebpf::helpers::generated::bpf_skb_load_bytes;
use aya_ebpf::programs::SkBuffContext;
use interceptor_common::{Endpoint, Finding, HINT_BYTES, Hint};

use crate::count::count;
use crate::{ctx, maps};

/// Header and the shortest question.
const SHORTEST: usize = 12 + 5;

/// A datagram from a resolver, whose payload begins at `offset`.
#[inline(always)]
pub fn heard(ctx: &SkBuffContext, from: Endpoint, offset: usize) {
    let total = ctx.len() as usize;
    if total < offset + SHORTEST {
        return;
    }
    let have = total - offset;
    let len = if have < HINT_BYTES { have } else { HINT_BYTES };
    let Some(mut slot) = maps::HINTS.reserve::<Hint>(0) else { return count(Finding::HintLost) };
    let hint = slot.as_mut_ptr();
    // SAFETY: the slot is ours until it is submitted, and as large as a Hint; every field is written,
    // the bytes by zeros first, in words: the place is aligned to eight and HINT_BYTES a multiple.
    let failed = unsafe {
        (&raw mut (*hint).from).write(from);
        (&raw mut (*hint).len).write(len as u32);
        let bytes = (&raw mut (*hint).bytes).cast::<u8>();
        let mut at = 0;
        while at < HINT_BYTES / 8 {
            core::ptr::write_volatile(bytes.cast::<u64>().add(at), 0);
            at += 1;
        }
        // In the form in which the verifier keeps the bounds.
        let len = (ctx::opaque(len - 1) & (HINT_BYTES - 1)) + 1;
        bpf_skb_load_bytes(ctx.skb.skb.cast(), offset as u32, bytes.cast(), len as u32)
    };
    if failed != 0 {
        return slot.discard(0);
    }
    slot.submit(0);
    count(Finding::HintGiven);
}
