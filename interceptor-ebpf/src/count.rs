//! Counting findings, and reporting refusals.

use aya_ebpf::maps::RingBuf;
use interceptor_common::{Endpoint, Event, Finding, FlowKind};

use crate::{ctx, maps};

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

/// Reports one refusal: of a connect, or of a datagram or packet of another protocol.
#[inline(always)]
pub fn report_refusal(
    kind: FlowKind,
    finding: Finding,
    netns: u64,
    cgroup: u64,
    dst: Endpoint,
    protocol: u32,
) {
    report(&maps::REFUSALS, Finding::RefusalLost, || Event {
        netns,
        cgroup,
        started_ns: ctx::now_ns(),
        duration_ns: 0,
        bytes_sent: 0,
        bytes_received: 0,
        dst,
        src: Endpoint::default(),
        kind: kind as u32,
        finding: finding as u32,
        established: 0,
        protocol,
    });
}
