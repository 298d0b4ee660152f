//! tcx at the daemon's end of a covered namespace's veth: the second layer (R7). What comes out of the
//! namespace passes if its own socket vouches for it, approved by the socket layer and going where
//! that was approved to go; or if it answers what the other end began. Nothing else does: packet
//! sockets, tunnels, borrowed sockets and address translation in the namespace get nothing out
//! (T-6, T-7).
//!
//! A packet keeps its socket across the veth, and no program can forge that.

use core::ptr;

use aya_ebpf::programs::SkBuffContext;
use interceptor_common::{
    Endpoint, Event, Finding, Namespace, Passage, PassageKey, TOLD, TOLD_NS, Tier,
};

use crate::count::{count, report_dropped};
use crate::ctx::{self, PacketSocket, Verdict};
use crate::frame::{
    ACK, ARP, ETHERNET, ICMP, ICMPV6, Packet, RST, SYN, TCP, TcpHead, UDP, load, ports,
};
use crate::{maps, select};

const STREAM: u32 = 1;
const DGRAM: u32 = 2;

/// Longest ARP frame, and longest neighbour discovery message.
const NEIGHBOUR_MAX: usize = 64;

/// Longest frame of an ICMP error: what a kernel sends, at the least MTU of IPv6.
const ERROR_MAX: usize = ETHERNET + 1280;

/// A packet on its way out of a covered namespace.
#[inline(always)]
pub fn out(ctx: &SkBuffContext) -> Verdict {
    match judge(ctx) {
        Ok(()) => Verdict::Allow,
        // It was covered until a moment ago.
        Err(_) if namespace(ctx).is_some_and(Namespace::is_exempt) => Verdict::Allow,
        Err(finding) if select::is_audited(namespace(ctx)) => {
            count(Finding::Audited);
            tell(ctx, finding, Event::AUDITED);
            Verdict::Allow
        }
        Err(finding) => {
            count(finding);
            tell(ctx, finding, 0);
            Verdict::Refuse
        }
    }
}

/// Reports a dropped packet, or one that only audit (`marks`) lets pass, unless its interface had its share: a flood is counted, and neither fills
/// the buffer that others' refusals go by nor keeps the daemon busy (T-55). What is for the link's own
/// groups is counted only: a kernel says which it is in by itself.
#[inline(always)]
fn tell(ctx: &SkBuffContext, finding: Finding, marks: u32) {
    let packet = Packet::read(ctx);
    if packet.as_ref().is_ok_and(|packet| is_link_group(packet.dst)) {
        return;
    }
    let index = ctx::packet_ifindex(ctx);
    let Some(interface) = maps::INTERFACES.get_ptr_mut(&index) else { return };
    // SAFETY: a live entry. Processors that count at once count a few too little, and none waits.
    let interface = unsafe { &mut *interface };
    let now = ctx::now_ns();
    if now.wrapping_sub(interface.told_since_ns) > TOLD_NS {
        interface.told_since_ns = now;
        interface.told = 0;
    }
    if interface.told >= TOLD {
        return count(Finding::InterfaceUntold);
    }
    interface.told += 1;
    let netns = interface.netns;
    let Ok(packet) = packet else {
        let kind = Event::FRAME | u32::from(ctx::packet_ethertype(ctx));
        let nowhere = Endpoint::default();
        return report_dropped(finding, netns, index, nowhere, nowhere, kind, marks);
    };
    let has_ports = matches!(packet.protocol, TCP | UDP) && !packet.fragment;
    let [from, to] = if has_ports { ports(ctx, &packet).unwrap_or_default() } else { [0, 0] };
    let (src, dst) = (ctx::endpoint(packet.src, from), ctx::endpoint(packet.dst, to));
    report_dropped(finding, netns, index, src, dst, packet.protocol.into(), marks);
}

#[inline(always)]
fn judge(ctx: &SkBuffContext) -> Result<(), Finding> {
    if ctx::packet_is_tagged(ctx) {
        return Err(Finding::InterfaceFrame);
    }
    if ctx::packet_ethertype(ctx) == ARP {
        let short = ctx.len() as usize <= NEIGHBOUR_MAX;
        return if short { Ok(()) } else { Err(Finding::InterfaceFrame) };
    }
    let packet = Packet::read(ctx)?;
    // The socket is asked for where it is used: carried through the match, LLVM copies the fields of
    // one that is not there, and the verifier refuses to read them.
    match packet.protocol {
        TCP => tcp(ctx, &packet, ctx::packet_socket(ctx)),
        UDP => datagram(ctx, &packet, ctx::packet_socket(ctx)),
        ICMP | ICMPV6 => icmp(ctx, &packet, ctx::packet_socket(ctx)),
        _ if leads_on(ctx, &packet) => Err(Finding::InterfaceHeader),
        _ if is_unrestricted(ctx, ctx::packet_socket(ctx)) => Ok(()),
        _ => Err(Finding::InterfaceProtocol),
    }
}

/// Whether an extension header comes first, behind which the receiver would find anything, TCP too. Before
/// group membership there is always one.
#[inline(always)]
fn leads_on(ctx: &SkBuffContext, packet: &Packet) -> bool {
    const HOP_BY_HOP: u8 = 0;
    const ROUTING: u8 = 43;
    const DESTINATION: u8 = 60;
    match packet.protocol {
        ROUTING | DESTINATION => true,
        HOP_BY_HOP => {
            packet.fragment || !load::<[u8; 1]>(ctx, packet.at).is_ok_and(|next| next == [ICMPV6])
        }
        _ => false,
    }
}

/// Whether the mode lets pass what is not TCP, or the socket layer told what only audit lets pass. A packet
/// socket's frame never had a socket layer's leave.
#[inline(always)]
fn is_unrestricted(ctx: &SkBuffContext, socket: Option<PacketSocket>) -> bool {
    (is_open(ctx) || select::is_audited(namespace(ctx)))
        && socket.is_some_and(|socket| socket.is_inet() && socket.protocol != u32::from(TCP))
}

/// Whether the mode of this interface's namespace lets pass what is not TCP.
#[inline(always)]
fn is_open(ctx: &SkBuffContext) -> bool {
    select::settings().is_some_and(|settings| select::is_open(settings, namespace(ctx)))
}

/// The namespace that this interface leads out of, as far as it is known.
#[inline(always)]
fn namespace(ctx: &SkBuffContext) -> Option<&'static Namespace> {
    // SAFETY: written once, before the first packet.
    let interface = unsafe { maps::INTERFACES.get(&ctx::packet_ifindex(ctx)) }?;
    select::namespace(interface.netns)
}

#[inline(always)]
fn tcp(ctx: &SkBuffContext, packet: &Packet, socket: Option<PacketSocket>) -> Result<(), Finding> {
    if packet.fragment {
        return Err(Finding::InterfaceHeader);
    }
    let head = TcpHead::read(ctx, packet)?;
    if let Some(socket) = socket
        && socket.protocol == u32::from(TCP)
        && socket.kind == STREAM
        && is_approved(ctx, &socket)
    {
        // The source is not compared: a closing socket may have given its port back.
        if socket.is_connected_to(packet.dst, head.to) {
            return Ok(());
        }
        return Err(Finding::InterfaceElsewhere);
    }
    let Some(passage) = passage(ctx, packet, head.from, head.to) else {
        return Err(Finding::InterfaceSocket);
    };
    let inbound = passage.kind == Passage::INBOUND;
    let bare_syn = head.flags & (SYN | ACK) == SYN;
    let passes =
        if inbound { !bare_syn } else { head.flags & SYN == 0 && packet.length == head.length };
    if !passes {
        return Err(Finding::InterfaceSocket);
    }
    // Beyond the handshake: a listener that no covered cgroup made is served by this entry alone.
    if inbound && head.flags & (SYN | RST | ACK) == ACK {
        passage.established = 1;
        passage.seen_ns = ctx::now_ns();
    }
    Ok(())
}

/// Whether the socket layer let this socket's packets out: the workload's by what connect or accept
/// wrote into it, one from before the attach by its cookie, the daemon's by its cgroup.
#[inline(always)]
fn is_approved(ctx: &SkBuffContext, socket: &PacketSocket) -> bool {
    if let Some(state) = socket.state_slot() {
        return Tier::may_leave(state.tier);
    }
    if select::is_kept(ctx) {
        return true;
    }
    select::settings().is_some_and(|settings| select::is_daemon(settings, ctx::packet_cgroup(ctx)))
}

#[inline(always)]
fn datagram(
    ctx: &SkBuffContext,
    packet: &Packet,
    socket: Option<PacketSocket>,
) -> Result<(), Finding> {
    if is_unrestricted(ctx, socket) {
        return Ok(());
    }
    if packet.fragment {
        return Err(Finding::InterfaceHeader);
    }
    let [from, to] = ports(ctx, packet)?;
    let plain = |socket: PacketSocket| socket.protocol == u32::from(UDP) && socket.kind == DGRAM;
    // Judged by where the packet goes, which is behind every translation of the namespace.
    let dst = ctx::endpoint(packet.dst, to);
    if socket.is_some_and(plain) && select::permit(select::policy(namespace(ctx)), &dst).is_some() {
        return Ok(());
    }
    match passage(ctx, packet, from, to) {
        Some(_) => Ok(()),
        None => Err(Finding::InterfaceDatagram),
    }
}

#[inline(always)]
fn icmp(ctx: &SkBuffContext, packet: &Packet, socket: Option<PacketSocket>) -> Result<(), Finding> {
    let [kind, _, _, _, id @ ..]: [u8; 6] = load(ctx, packet.at)?;
    let v6 = packet.protocol == ICMPV6;
    let passes = match (v6, kind) {
        (true, 133..=136) => is_neighbourly(ctx, packet),
        (false, 3 | 11 | 12) | (true, 1..=4) => quotes_a_passage(ctx, packet),
        (false, 0) | (true, 129) => {
            passage(ctx, packet, u16::from_be_bytes(id), 0).is_some() && !packet.fragment
        }
        _ => false,
    };
    if passes || is_unrestricted(ctx, socket) { Ok(()) } else { Err(Finding::InterfaceIcmp) }
}

/// Whether an address is of a group of the link's, ff02::/16 or 224.0.0.0/24.
#[inline(always)]
fn is_link_group(addr: [u32; 4]) -> bool {
    if ctx::is_v4_mapped(addr) {
        return u32::from_be(addr[3]) >> 8 == 0xe0_0000;
    }
    u32::from_be(addr[0]) >> 16 == 0xff02
}

/// Neighbour discovery that stays on the link: it could be routed on, so what may be in it, and where
/// it may go, is bounded.
#[inline(always)]
fn is_neighbourly(ctx: &SkBuffContext, packet: &Packet) -> bool {
    if packet.fragment || packet.length > NEIGHBOUR_MAX {
        return false;
    }
    let link_local = u32::from_be(packet.dst[0]) >> 22 == 0xfe80 >> 6;
    if is_link_group(packet.dst) || link_local {
        return true;
    }
    // SAFETY: written once, before the first packet.
    let interface = unsafe { maps::INTERFACES.get(&ctx::packet_ifindex(ctx)) };
    interface.is_some_and(|interface| ctx::words(interface.gateway_v6) == packet.dst)
}

/// Whether an ICMP error is about a packet that a passage let in, and goes where that came from.
#[inline(always)]
fn quotes_a_passage(ctx: &SkBuffContext, packet: &Packet) -> bool {
    const ICMP_HEADER: usize = 8;
    if packet.fragment || ctx.len() as usize > ERROR_MAX {
        return false;
    }
    let at = packet.at + ICMP_HEADER;
    let quoted = if packet.protocol == ICMPV6 { Packet::v6(ctx, at) } else { Packet::v4(ctx, at) };
    let Ok(quoted) = quoted else { return false };
    if quoted.src != packet.dst || quoted.fragment || !matches!(quoted.protocol, TCP | UDP) {
        return false;
    }
    let Ok([from, to]) = ports(ctx, &quoted) else { return false };
    let answer = Packet { src: quoted.dst, dst: quoted.src, ..quoted };
    passage(ctx, &answer, to, from).is_some()
}

/// A packet on its way into a covered namespace: all pass. Who begins may be answered.
#[inline(always)]
pub fn into(ctx: &SkBuffContext) {
    let Ok(packet) = Packet::read(ctx) else { return };
    if packet.fragment {
        return;
    }
    match packet.protocol {
        TCP => {
            if let Ok(head) = TcpHead::read(ctx, &packet)
                && head.flags & (SYN | ACK) == SYN
            {
                open(ctx, &packet, head.from, head.to);
            }
        }
        UDP => {
            if !is_open(ctx)
                && let Ok([from, to]) = ports(ctx, &packet)
                && select::permit(select::policy(namespace(ctx)), &ctx::endpoint(packet.src, from))
                    .is_none()
            {
                open(ctx, &packet, from, to);
            }
        }
        ICMP | ICMPV6 => {
            const ECHO: u8 = 8;
            const ECHO_V6: u8 = 128;
            let Ok([kind, _, _, _, id @ ..]) = load::<[u8; 6]>(ctx, packet.at) else { return };
            if kind == if packet.protocol == ICMP { ECHO } else { ECHO_V6 } {
                open(ctx, &packet, 0, u16::from_be_bytes(id));
            }
        }
        _ => {}
    }
}

/// Lets pass what answers this packet.
#[inline(always)]
fn open(ctx: &SkBuffContext, packet: &Packet, from: u16, to: u16) {
    let Some(key) = key(ctx, packet.protocol, (packet.dst, to), (packet.src, from)) else { return };
    let passage = Passage { seen_ns: ctx::now_ns(), kind: Passage::INBOUND, established: 0 };
    if !enter(&key, &passage) {
        count(Finding::PassagesFull);
    }
}

/// Enters a passage. False: there is no room, in the table or in the namespace's part of it.
#[inline(always)]
fn enter(key: &PassageKey, passage: &Passage) -> bool {
    if let Some(known) = maps::PASSAGES.get_ptr_mut(key) {
        // SAFETY: a live entry of the map, as in `passage` below.
        unsafe { *known = *passage };
        return true;
    }
    let quota = maps::PASSAGE_QUOTAS.get_ptr(&key.netns);
    let (Some(quota), Some(made)) = (quota, maps::PASSAGE_COUNTS.get_ptr_mut(&key.netns)) else {
        return false;
    };
    // SAFETY: live entries of both maps; what another processor adds meanwhile is seen or not.
    let full = unsafe { ptr::read_volatile(made) >= *quota };
    if full || maps::PASSAGES.insert(key, passage, 0).is_err() {
        return false;
    }
    ctx::add_one(made);
    true
}

/// Lets pass what the kernel still says of a connection that closed: its last acknowledgement, or a
/// reset, comes from no socket of its own.
#[inline(always)]
pub fn closed(netns: u64, inside: Endpoint, outside: Endpoint) {
    let key = PassageKey { netns, inside, outside, protocol: TCP.into(), pad: 0 };
    let passage = Passage { seen_ns: ctx::now_ns(), kind: Passage::CLOSING, established: 0 };
    // No room: the other end hears nothing more, and gives up by itself.
    let _ = enter(&key, &passage);
}

/// The passage that a packet on its way out belongs to.
#[inline(always)]
fn passage(
    ctx: &SkBuffContext,
    packet: &Packet,
    from: u16,
    to: u16,
) -> Option<&'static mut Passage> {
    let key = key(ctx, packet.protocol, (packet.src, from), (packet.dst, to))?;
    // SAFETY: a live entry of the map; its words are read and written one by one, and any mix of old
    // and new is one or the other's permission.
    let passage = unsafe { &mut *maps::PASSAGES.get_ptr_mut(&key)? };
    passage.stands(ctx::now_ns()).then_some(passage)
}

#[inline(always)]
fn key(
    ctx: &SkBuffContext,
    protocol: u8,
    inside: ([u32; 4], u16),
    outside: ([u32; 4], u16),
) -> Option<PassageKey> {
    // SAFETY: written once, before the first packet.
    let interface = unsafe { maps::INTERFACES.get(&ctx::packet_ifindex(ctx)) }?;
    Some(PassageKey {
        netns: interface.netns,
        inside: ctx::endpoint(inside.0, inside.1),
        outside: ctx::endpoint(outside.0, outside.1),
        protocol: protocol.into(),
        pad: 0,
    })
}
