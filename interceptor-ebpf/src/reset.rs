//! What the interface layer drops of TCP is answered as a closed port would (RFC 9293, 3.10.7.1), so that
//! a socket that no hook could refuse hears at once that it gets nowhere (T-7). The segment itself
//! becomes the answer and goes back out of the interface that it came in by: one small packet for each
//! one dropped, to nobody else, and nothing is kept.

use aya_ebpf::programs::SkBuffContext;
use interceptor_common::Finding;

use crate::count::count;
use crate::ctx;
use crate::frame::{ACK, ETHERNET, FIN, IPV4, Packet, RST, SYN, TCP, TcpHead};

/// Bytes of the answer's TCP header.
const TCP_HEADER: usize = 20;
/// Where its checksum is.
const TCP_CHECKSUM: usize = 16;
const V4_CHECKSUM: usize = 10;
const HOPS: u32 = 64;

/// Turns a dropped packet into its answer and sends that back. False: it gets none, and goes as it is.
#[inline(always)]
pub fn answer(ctx: &SkBuffContext) -> bool {
    let Some((packet, reply)) = reply(ctx) else { return false };
    let sent = write(ctx, &packet, &reply).is_some() && ctx::send_back(ctx);
    if sent {
        count(Finding::InterfaceReset);
    }
    sent
}

/// The TCP header of the answer, its checksum zero; `None`: what must not be answered, or is not TCP.
#[inline(always)]
fn reply(ctx: &SkBuffContext) -> Option<(Packet, [u32; 5])> {
    if ctx::packet_is_tagged(ctx) || ctx::packet_is_for_many(ctx) {
        return None;
    }
    let packet = Packet::read(ctx).ok()?;
    if packet.protocol != TCP || packet.fragment {
        return None;
    }
    let head = TcpHead::read(ctx, &packet).ok()?;
    if head.flags & RST != 0 || !is_one(packet.src) || !is_one(packet.dst) {
        return None;
    }
    let (sequence, acknowledged, flags) = if head.flags & ACK != 0 {
        (head.acknowledged, 0, RST)
    } else {
        let payload = packet.length.saturating_sub(head.length) as u32;
        let marks = u32::from(head.flags & SYN != 0) + u32::from(head.flags & FIN != 0);
        (0, head.sequence.wrapping_add(payload + marks), RST | ACK)
    };
    let ports = u32::from(head.to) << 16 | u32::from(head.from);
    let control = (TCP_HEADER as u32 / 4) << 28 | u32::from(flags) << 16;
    Some((packet, [ports, sequence, acknowledged, control, 0].map(u32::to_be)))
}

/// Whether an address is that of one host: neither of a group nor unspecified.
#[inline(always)]
fn is_one(addr: [u32; 4]) -> bool {
    if ctx::is_v4_mapped(addr) {
        let first = u32::from_be(addr[3]) >> 24;
        return first != 0 && first < 224;
    }
    let group = u32::from_be(addr[0]) >> 24 == 0xff;
    !group && addr[0] | addr[1] | addr[2] | addr[3] != 0
}

/// Writes the answer over the packet.
#[inline(always)]
fn write(ctx: &SkBuffContext, packet: &Packet, reply: &[u32; 5]) -> Option<()> {
    ctx::truncate(ctx, packet.at + TCP_HEADER)?;
    let [to, from]: [[u8; 6]; 2] = ctx.load(0).ok()?;
    ctx::store(ctx, 0, &[from, to])?;
    if ctx::packet_ethertype(ctx) == IPV4 {
        let length = (packet.at - ETHERNET + TCP_HEADER) as u32;
        let header = [0x4500_0000 | length, 0x4000, HOPS << 24 | u32::from(TCP) << 16, 0, 0];
        let mut header = header.map(u32::to_be);
        (header[3], header[4]) = (packet.dst[3], packet.src[3]);
        ctx::store(ctx, ETHERNET, &header)?;
        ctx::store(ctx, ETHERNET + V4_CHECKSUM, &!fold(sum(&header)))?;
    } else {
        let header = [0x6000_0000, (TCP_HEADER as u32) << 16 | u32::from(TCP) << 8 | HOPS];
        ctx::store(ctx, ETHERNET, &header.map(u32::to_be))?;
        ctx::store(ctx, ETHERNET + 8, &[packet.dst, packet.src])?;
    }
    ctx::store(ctx, packet.at, reply)?;
    // The sum of the pseudo-header is what a device that adds the rest wants to find. The helper makes
    // it the whole checksum where none does, and leaves it alone there. A v4-mapped address adds
    // nothing to it that the IPv4 address does not.
    let protocol = [u32::from(TCP), TCP_HEADER as u32].map(u32::to_be);
    let pseudo = fold(sum(&packet.src) + sum(&packet.dst) + sum(&protocol));
    ctx::store(ctx, packet.at + TCP_CHECKSUM, &pseudo)?;
    let rest = fold(sum(reply) + 2 * u64::from(pseudo));
    ctx::complete_checksum(ctx, packet.at + TCP_CHECKSUM, rest)
}

/// The words' sum, to be folded. In whichever byte order: RFC 1071, 2(B).
#[inline(always)]
fn sum<const N: usize>(words: &[u32; N]) -> u64 {
    let mut sum = 0;
    let mut at = 0;
    while at < N {
        sum += u64::from(words[at]);
        at += 1;
    }
    sum
}

/// Ones' complement addition of a sum's parts.
#[inline(always)]
fn fold(sum: u64) -> u16 {
    let sum = (sum & 0xffff_ffff) + (sum >> 32);
    let sum = (sum & 0xffff) + (sum >> 16 & 0xffff) + (sum >> 32);
    let sum = (sum & 0xffff) + (sum >> 16);
    ((sum & 0xffff) + (sum >> 16)) as u16
}
