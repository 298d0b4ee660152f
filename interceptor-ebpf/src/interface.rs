//! tcx at the daemon's end of a covered namespace's veth: the second layer (R7). What comes out of the
//! namespace passes if its own socket vouches for it, approved by the socket layer and going where
//! that was approved to go; or if it answers what the other end began. Nothing else does: packet
//! sockets, tunnels, borrowed sockets and address translation in the namespace get nothing out
//! (T-6, T-7).
//!
//! A packet keeps its socket across the veth, and no program can forge that.

use aya_ebpf::programs::SkBuffContext;
use interceptor_common::{Finding, Passage, PassageKey, Tier};

use crate::count::count;
use crate::ctx::{self, PacketSocket, Verdict};
use crate::{maps, select};

const TCP: u8 = 6;
const UDP: u8 = 17;
const ICMP: u8 = 1;
const ICMPV6: u8 = 58;
const STREAM: u32 = 1;
const DGRAM: u32 = 2;

const ETHERNET: usize = 14;
const IPV4: u16 = 0x0800;
const IPV6: u16 = 0x86dd;
const ARP: u16 = 0x0806;

const SYN: u8 = 2;
const RST: u8 = 4;
const ACK: u8 = 0x10;

/// Longest ARP frame, and longest neighbour discovery message.
const NEIGHBOUR_MAX: usize = 64;

/// Longest frame of an ICMP error: what a kernel sends, at the least MTU of IPv6.
const ERROR_MAX: usize = ETHERNET + 1280;

/// A packet on its way out of a covered namespace.
#[inline(always)]
pub fn out(ctx: &SkBuffContext) -> Verdict {
    match judge(ctx) {
        Ok(()) => Verdict::Allow,
        Err(finding) => {
            count(finding);
            Verdict::Refuse
        }
    }
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
        _ if is_unrestricted(ctx::packet_socket(ctx)) => Ok(()),
        _ => Err(Finding::InterfaceProtocol),
    }
}

/// Whether the mode lets pass what is not TCP. A packet socket's frame never had a socket layer's
/// leave.
#[inline(always)]
fn is_unrestricted(socket: Option<PacketSocket>) -> bool {
    let open = select::settings().is_some_and(|settings| settings.refuse_datagrams == 0);
    open && socket.is_some_and(|socket| socket.is_inet() && socket.protocol != u32::from(TCP))
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
    if is_unrestricted(socket) {
        return Ok(());
    }
    if packet.fragment {
        return Err(Finding::InterfaceHeader);
    }
    let [from, to] = ports(ctx, packet)?;
    let plain = |socket: PacketSocket| socket.protocol == u32::from(UDP) && socket.kind == DGRAM;
    // Judged by where the packet goes, which is behind every translation of the namespace.
    if socket.is_some_and(plain) && select::permit(&ctx::endpoint(packet.dst, to)).is_some() {
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
    if passes || is_unrestricted(socket) { Ok(()) } else { Err(Finding::InterfaceIcmp) }
}

/// Neighbour discovery that stays on the link: it could be routed on, so what may be in it, and where
/// it may go, is bounded.
#[inline(always)]
fn is_neighbourly(ctx: &SkBuffContext, packet: &Packet) -> bool {
    if packet.fragment || packet.length > NEIGHBOUR_MAX {
        return false;
    }
    let first = u32::from_be(packet.dst[0]);
    let link_multicast = first >> 16 == 0xff02;
    let link_local = first >> 22 == 0xfe80 >> 6;
    if link_multicast || link_local {
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
            let restricted =
                select::settings().is_some_and(|settings| settings.refuse_datagrams != 0);
            if restricted
                && let Ok([from, to]) = ports(ctx, &packet)
                && select::permit(&ctx::endpoint(packet.src, from)).is_none()
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
    if maps::PASSAGES.insert(&key, &passage, 0).is_err() {
        count(Finding::PassagesFull);
    }
}

/// Lets pass what the kernel still says of a connection that closed: its last acknowledgement, or a
/// reset, comes from no socket of its own.
#[inline(always)]
pub fn closed(
    netns: u64,
    inside: interceptor_common::Endpoint,
    outside: interceptor_common::Endpoint,
) {
    let key = PassageKey { netns, inside, outside, protocol: TCP.into(), pad: 0 };
    let passage = Passage { seen_ns: ctx::now_ns(), kind: Passage::CLOSING, established: 0 };
    // Full: the other end hears nothing more, and gives up by itself.
    let _ = maps::PASSAGES.insert(&key, &passage, 0);
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

/// What of a packet's IP header is asked for.
#[derive(Clone, Copy)]
struct Packet {
    /// Of a fragment: what it is one of.
    protocol: u8,
    fragment: bool,
    /// v4-mapped for IPv4.
    src: [u32; 4],
    dst: [u32; 4],
    /// Where the header of the protocol begins.
    at: usize,
    /// Bytes from there on, as the IP header says.
    length: usize,
}

impl Packet {
    /// A frame's IP header.
    #[inline(always)]
    fn read(ctx: &SkBuffContext) -> Result<Self, Finding> {
        match ctx::packet_ethertype(ctx) {
            IPV4 => Self::v4(ctx, ETHERNET),
            IPV6 => Self::v6(ctx, ETHERNET),
            _ => Err(Finding::InterfaceFrame),
        }
    }

    /// Without options: they could lead the packet elsewhere than it says (T-2).
    #[inline(always)]
    fn v4(ctx: &SkBuffContext, at: usize) -> Result<Self, Finding> {
        const HEADER: usize = 20;
        const VERSION_AND_WORDS: u32 = 0x45;
        const MORE_OR_OFFSET: u32 = 0x3fff;
        let words: [u32; 5] = load(ctx, at)?;
        let [first, second] = [u32::from_be(words[0]), u32::from_be(words[1])];
        if first >> 24 != VERSION_AND_WORDS {
            return Err(Finding::InterfaceHeader);
        }
        let mapped = |word| [0, 0, 0xffff_u32.to_be(), word];
        Ok(Self {
            protocol: (u32::from_be(words[2]) >> 16) as u8,
            fragment: second & MORE_OR_OFFSET != 0,
            src: mapped(words[3]),
            dst: mapped(words[4]),
            at: at + HEADER,
            length: (first as u16 as usize).saturating_sub(HEADER),
        })
    }

    /// Without extension headers but a fragment's.
    #[inline(always)]
    fn v6(ctx: &SkBuffContext, at: usize) -> Result<Self, Finding> {
        const HEADER: usize = 40;
        const FRAGMENT: u8 = 44;
        let words: [u32; 10] = load(ctx, at)?;
        let [first, second] = [u32::from_be(words[0]), u32::from_be(words[1])];
        if first >> 28 != 6 {
            return Err(Finding::InterfaceHeader);
        }
        let next = (second >> 8) as u8;
        let fragment = next == FRAGMENT;
        let protocol = if fragment { load::<[u8; 1]>(ctx, at + HEADER)?[0] } else { next };
        Ok(Self {
            protocol,
            fragment,
            src: [words[2], words[3], words[4], words[5]],
            dst: [words[6], words[7], words[8], words[9]],
            at: at + HEADER,
            length: (second >> 16) as usize,
        })
    }
}

/// What of a TCP header is asked for.
struct TcpHead {
    from: u16,
    to: u16,
    /// Bytes of it.
    length: usize,
    flags: u8,
}

impl TcpHead {
    #[inline(always)]
    fn read(ctx: &SkBuffContext, packet: &Packet) -> Result<Self, Finding> {
        let words: [u32; 4] = load(ctx, packet.at)?;
        let (ports, control) = (u32::from_be(words[0]), u32::from_be(words[3]));
        Ok(Self {
            from: (ports >> 16) as u16,
            to: ports as u16,
            length: (control >> 28) as usize * 4,
            flags: (control >> 16) as u8,
        })
    }
}

/// Source and destination port of UDP or TCP.
#[inline(always)]
fn ports(ctx: &SkBuffContext, packet: &Packet) -> Result<[u16; 2], Finding> {
    let both = u32::from_be(load::<[u32; 1]>(ctx, packet.at)?[0]);
    Ok([(both >> 16) as u16, both as u16])
}

#[inline(always)]
fn load<T>(ctx: &SkBuffContext, at: usize) -> Result<T, Finding> {
    ctx.load(at).map_err(|_| Finding::InterfaceHeader)
}
