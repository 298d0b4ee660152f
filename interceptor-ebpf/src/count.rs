//! Counting findings, and reporting refusals.

use aya_ebpf::maps::RingBuf;
use interceptor_common::{Endpoint, Event, Finding, FlowKind, NamedEvent, ShownName, SocketState};

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
pub fn report<T: 'static>(ring: &RingBuf, lost: Finding, event: impl FnOnce() -> T) {
    match ring.reserve::<T>(0) {
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
    let event = || Event { cgroup, ..refused(kind, finding, netns, dst, protocol) };
    report(&maps::REFUSALS, Finding::RefusalLost, event);
}

/// Reports a datagram, or a packet of another protocol, that audit lets pass.
#[inline(always)]
pub fn report_audited(netns: u64, cgroup: u64, dst: Endpoint, protocol: u32) {
    let (kind, finding) = (FlowKind::RefusedDatagram, Finding::DatagramRefused);
    let marks = Event::AUDITED;
    let event = || Event { cgroup, marks, ..refused(kind, finding, netns, dst, protocol) };
    report(&maps::REFUSALS, Finding::RefusalLost, event);
}

/// Reports a packet that was dropped at an interface, or that only audit (`marks`) lets pass there.
#[inline(always)]
pub fn report_dropped(
    finding: Finding,
    netns: u64,
    interface: u32,
    src: Endpoint,
    dst: Endpoint,
    protocol: u32,
    marks: u32,
) {
    let event = || Event {
        src,
        label: interface,
        marks,
        ..refused(FlowKind::RefusedPacket, finding, netns, dst, protocol)
    };
    report(&maps::REFUSALS, Finding::RefusalLost, event);
}

/// What every refusal's event has.
#[inline(always)]
fn refused(kind: FlowKind, finding: Finding, netns: u64, dst: Endpoint, protocol: u32) -> Event {
    Event {
        netns,
        cgroup: 0,
        socket: 0,
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
        label: 0,
        marks: 0,
        error: 0,
        pad: 0,
    }
}

/// Reports the refusal of a direct connection's first bytes, with the name in them.
#[inline(always)]
pub fn report_refused_hello(
    finding: Finding,
    socket: u64,
    state: &SocketState,
    name: Option<&ShownName>,
) {
    let now = ctx::now_ns();
    let event = || Event {
        netns: state.whose,
        cgroup: state.cgroup,
        socket,
        started_ns: state.started_ns,
        duration_ns: now - state.started_ns,
        bytes_sent: 0,
        bytes_received: 0,
        dst: state.dst,
        src: state.local,
        kind: FlowKind::RefusedHello as u32,
        finding: finding as u32,
        established: 1,
        protocol: TCP,
        label: 0,
        marks: if state.ech != 0 { Event::UNPROVEN | Event::ECH } else { Event::UNPROVEN },
        error: 0,
        pad: 0,
    };
    report_named(&maps::REFUSALS, Finding::RefusalLost, event, name);
}

/// [`report`] of an event with a name.
#[inline(always)]
pub fn report_named(
    ring: &RingBuf,
    lost: Finding,
    event: impl FnOnce() -> Event,
    name: Option<&ShownName>,
) {
    let Some(mut slot) = ring.reserve::<NamedEvent>(0) else { return count(lost) };
    let named = slot.as_mut_ptr();
    // SAFETY: the slot is ours until it is submitted, and as large as a NamedEvent; both its parts
    // are written before.
    unsafe {
        (&raw mut (*named).event).write(event());
        ctx::copy_name(name, &raw mut (*named).name);
    }
    slot.submit(0);
}

const TCP: u32 = 6;
