//! Direct connections that owe a name: what they send is held until their ClientHello is whole, and
//! leaves only if its name is allowed at the address that they dialled (R2, R3).
//!
//! A packet that is refused here stays at the head of TCP's queue: the next bytes that the workload
//! writes join it, and the whole comes back. Nothing is buffered and nothing delayed.

use aya_ebpf::programs::SkBuffContext;
use interceptor_common::{
    CUT, EndpointVerdict, Finding, HELD, LABEL_KEEPS_NAME, LABEL_REFUSED, Proof, SocketState,
};
use interceptor_ebpf::hello::{self, Reading};

use crate::count::{count, report_refused_hello};
use crate::ctx::{self, PacketSocket, Verdict};
use crate::packet::SYN_SENT;
use crate::scratch::{Payload, Scratch};
use crate::{maps, select};

/// A packet of a connection that owes a name, was refused, or whose name is noticed in passing.
#[inline(always)]
pub fn packet(ctx: &SkBuffContext, socket: &PacketSocket, state: &mut SocketState) -> Verdict {
    let total = ctx.len() as usize;
    let Some((offset, flags)) = payload(ctx) else { return unread(state, Finding::Unproven) };
    // Handshake, acknowledgements, the end.
    if offset >= total {
        return Verdict::Allow;
    }
    // Fast Open: the SYN goes without its data, which comes back once established.
    if !is_noticed(state) && (state.proof != Proof::Owed as u8 || socket.state == SYN_SENT) {
        return hold(Finding::Unproven);
    }
    // Urgent data: the server may read other bytes than are judged here (T-29, R4).
    if flags & URG != 0 && !is_noticed(state) {
        return refuse(ctx, socket, state, Finding::HelloUnclear, None);
    }
    let Some(scratch) = socket.scratch() else { return unread(state, Finding::NoStorage) };
    let mut payload = Payload { ctx, offset, scratch };
    let reading = hello::read(&mut payload, total - offset);
    let scratch = payload.scratch;
    if is_noticed(state) {
        // Everything passes there; only the log wants to know, and the first packet has it mostly.
        if let Reading::Named(_) = reading {
            state.ech = u8::from(scratch.offers_ech());
            keep_name(socket, state, scratch);
        }
        state.proof = Proof::Done as u8;
        socket.drop_scratch();
        return Verdict::Allow;
    }
    if matches!(reading, Reading::Named(_) | Reading::NoName) {
        state.ech = u8::from(scratch.offers_ech());
    }
    let (finding, named) = match reading {
        Reading::NeedMore => {
            note_held(ctx, flags, total - offset);
            return hold(Finding::HelloHeld);
        }
        Reading::Named(len) => match allowed(state, scratch, len) {
            Ok(label) => {
                state.label = label;
                if label & LABEL_KEEPS_NAME != 0 {
                    keep_name(socket, state, scratch);
                }
                state.proof = Proof::Done as u8;
                let _ = maps::PENDING.remove(&ctx::socket_cookie(ctx.skb.skb));
                socket.drop_scratch();
                count(Finding::NameAllowed);
                return Verdict::Allow;
            }
            Err(finding) => (finding, true),
        },
        Reading::NoName => (Finding::NameMissing, false),
        Reading::NotTls => (Finding::NotTls, false),
        Reading::Unclear => (Finding::HelloUnclear, false),
    };
    refuse(ctx, socket, state, finding, named.then_some(scratch))
}

/// Whether the connection owes nothing and its name is only noticed. Read anew each time: were it
/// kept, the verifier would go through the reading of a hello twice, and that is too long for it.
#[inline(always)]
fn is_noticed(state: &SocketState) -> bool {
    // SAFETY: a byte of ours.
    unsafe { core::ptr::read_volatile(&raw const state.proof) == Proof::Noticed as u8 }
}

/// What cannot be read: held, where it matters.
#[inline(always)]
fn unread(state: &SocketState, finding: Finding) -> Verdict {
    if is_noticed(state) { Verdict::Allow } else { hold(finding) }
}

/// Whether the name in the key may be shown where this socket is going. The table is asked anew: what
/// it said at connect may no longer hold.
#[inline(always)]
fn allowed(state: &SocketState, scratch: &mut Scratch, len: usize) -> Result<u32, Finding> {
    let Some(rule) = select::endpoint(state.policy, &state.dst) else {
        return Err(Finding::EndpointGone);
    };
    if rule.verdict == EndpointVerdict::Direct as u8 {
        return Ok(rule.label);
    }
    // With names, what is the proxy's by now is retiring: its names have other addresses since.
    let retiring = rule.verdict == EndpointVerdict::Proxy as u8 && rule.names != 0;
    if rule.verdict != EndpointVerdict::Named as u8 && !retiring {
        return Err(Finding::EndpointGone);
    }
    match maps::NAMES.get(scratch.key(rule.names, len)) {
        Some(&label) if label != LABEL_REFUSED => Ok(label),
        _ => Err(Finding::NameRefused),
    }
}

#[inline(always)]
fn keep_name(socket: &PacketSocket, state: &mut SocketState, scratch: &Scratch) {
    if let Some(name) = socket.shown_name() {
        scratch.copy_name(name);
        state.name_kept = 1;
    }
}

/// Nothing of this connection leaves any more; the daemon destroys it.
#[inline(always)]
fn refuse(
    ctx: &SkBuffContext,
    socket: &PacketSocket,
    state: &mut SocketState,
    finding: Finding,
    named: Option<&mut Scratch>,
) -> Verdict {
    state.proof = Proof::Refused as u8;
    count(finding);
    let cookie = ctx::socket_cookie(ctx.skb.skb);
    if let Some(pending) = maps::PENDING.get_ptr_mut(&cookie) {
        // SAFETY: an aligned word of a live entry; whoever reads it meanwhile finds 0 or 1.
        unsafe { (*pending).refused = 1 };
    }
    let name = match named {
        Some(scratch) => socket.shown_name().map(|name| {
            scratch.copy_name(name);
            &*name
        }),
        None => None,
    };
    report_refused_hello(finding, cookie, state, name);
    socket.drop_scratch();
    Verdict::Refuse
}

/// Lets the daemon know that a part of a hello is held, and whether TCP cut it: what was cut off stays
/// a packet of its own. A packet of several segments that are all full was cut, but for a chance in
/// MSS; one of a single segment was, if it lacks the PSH that the last of what was written has. (Later
/// tries have it all the same.) What a small window cut is not always told so.
#[inline(always)]
fn note_held(ctx: &SkBuffContext, flags: u8, payload: usize) {
    let cookie = ctx::socket_cookie(ctx.skb.skb);
    let (segments, size) = ctx::packet_segments(ctx);
    let full = segments > 1 && payload == (segments * size) as usize;
    let held = if full || flags & PSH == 0 { CUT } else { HELD };
    if let Some(pending) = maps::PENDING.get_ptr_mut(&cookie) {
        // SAFETY: as in `refuse`.
        unsafe { (*pending).held |= held };
    }
}

#[inline(always)]
fn hold(finding: Finding) -> Verdict {
    count(finding);
    Verdict::Refuse
}

const URG: u8 = 0x20;
const PSH: u8 = 0x08;

/// Where the payload of a TCP packet without IP options or extension headers begins, and its flags.
#[inline(always)]
pub(crate) fn payload(ctx: &SkBuffContext) -> Option<(usize, u8)> {
    const V4_HEADER: usize = 20;
    const V6_HEADER: usize = 40;
    const DATA_OFFSET: usize = 12;
    let first: u8 = ctx.load(0).ok()?;
    let ip = if first >> 4 == 4 { V4_HEADER } else { V6_HEADER };
    let [words, flags]: [u8; 2] = ctx.load(ip + DATA_OFFSET).ok()?;
    Some((ip + usize::from(words >> 4) * 4, flags))
}
