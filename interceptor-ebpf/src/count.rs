//! Counting findings, and reporting refusals.

use aya_ebpf::maps::RingBuf;
use interceptor_common::{Event, Finding};

use crate::maps;

/// Counts one finding.
#[inline(always)]
pub fn count(finding: Finding) {
    if let Some(counter) = maps::COUNTERS.get_ptr_mut(finding as u32) {
        // SAFETY: the slot is this CPU's own; a program that interrupts this one may lose one
        // count, nothing else.
        unsafe { *counter += 1 };
    }
}

/// Hands an event to the daemon; a full buffer is counted as `lost`. The event is built in the
/// buffer: the BPF stack has no room for it beside a connect's own state.
#[inline(always)]
pub fn report(ring: &RingBuf, lost: Finding, event: impl FnOnce() -> Event) {
    match ring.reserve::<Event>(0) {
        Some(mut slot) => {
            slot.write(event());
            slot.submit(0);
        }
        None => count(lost),
    }
}
