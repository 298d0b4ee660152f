//! Headers of a frame, as the interface layer reads them.

use aya_ebpf::programs::SkBuffContext;
use interceptor_common::Finding;

use crate::ctx;

pub const TCP: u8 = 6;
pub const UDP: u8 = 17;
pub const ICMP: u8 = 1;
pub const ICMPV6: u8 = 58;

/// Bytes of a frame's own header.
pub const ETHERNET: usize = 14;
pub const IPV4: u16 = 0x0800;
pub const IPV6: u16 = 0x86dd;
pub const ARP: u16 = 0x0806;

pub const FIN: u8 = 1;
pub const SYN: u8 = 2;
pub const RST: u8 = 4;
pub const ACK: u8 = 0x10;

/// What of a packet's IP header is asked for.
#[derive(Clone, Copy)]
pub struct Packet {
    /// Of a fragment: what it is one of.
    pub protocol: u8,
    pub fragment: bool,
    /// v4-mapped for IPv4.
    pub src: [u32; 4],
    pub dst: [u32; 4],
    /// Where the header of the protocol begins.
    pub at: usize,
    /// Bytes from there on, as the IP header says.
    pub length: usize,
}

impl Packet {
    /// A frame's IP header.
    #[inline(always)]
    pub fn read(ctx: &SkBuffContext) -> Result<Self, Finding> {
        match ctx::packet_ethertype(ctx) {
            IPV4 => Self::v4(ctx, ETHERNET),
            IPV6 => Self::v6(ctx, ETHERNET),
            _ => Err(Finding::InterfaceFrame),
        }
    }

    /// Without options: they could lead the packet elsewhere than it says (T-2).
    #[inline(always)]
    pub fn v4(ctx: &SkBuffContext, at: usize) -> Result<Self, Finding> {
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
    pub fn v6(ctx: &SkBuffContext, at: usize) -> Result<Self, Finding> {
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
pub struct TcpHead {
    pub from: u16,
    pub to: u16,
    pub sequence: u32,
    pub acknowledged: u32,
    /// Bytes of it.
    pub length: usize,
    pub flags: u8,
}

impl TcpHead {
    #[inline(always)]
    pub fn read(ctx: &SkBuffContext, packet: &Packet) -> Result<Self, Finding> {
        let words: [u32; 4] = load(ctx, packet.at)?;
        let (ports, control) = (u32::from_be(words[0]), u32::from_be(words[3]));
        Ok(Self {
            from: (ports >> 16) as u16,
            to: ports as u16,
            sequence: u32::from_be(words[1]),
            acknowledged: u32::from_be(words[2]),
            length: (control >> 28) as usize * 4,
            flags: (control >> 16) as u8,
        })
    }
}

/// Source and destination port of UDP or TCP.
#[inline(always)]
pub fn ports(ctx: &SkBuffContext, packet: &Packet) -> Result<[u16; 2], Finding> {
    let both = u32::from_be(load::<[u32; 1]>(ctx, packet.at)?[0]);
    Ok([(both >> 16) as u16, both as u16])
}

#[inline(always)]
pub fn load<T>(ctx: &SkBuffContext, at: usize) -> Result<T, Finding> {
    ctx.load(at).map_err(|_| Finding::InterfaceHeader)
}
