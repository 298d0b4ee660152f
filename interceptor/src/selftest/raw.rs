//! What is neither TCP nor UDP, and what does not pass the IP layer at all (T-5, T-6).

use std::io;
use std::net::IpAddr;
use std::os::fd::OwnedFd;

use nix::net::if_::if_nametoindex;

use super::sys;
use super::talk;
use super::udp::sent;
use super::way::{LINK, ROOM4, ROOM6, TCP, Target, UDP, Way, hooked as way};

const ICMP: i32 = libc::IPPROTO_ICMP;
const ICMPV6: i32 = libc::IPPROTO_ICMPV6;
/// For experiments (RFC 3692).
const EXPERIMENT: i32 = 253;
/// Families and protocols that libc does not name everywhere.
const AF_SMC: i32 = 43;
const SCTP: i32 = 132;
const SOCK_DCCP: i32 = 6;
const DCCP: i32 = 33;
const PACKET_QDISC_BYPASS: i32 = 20;
/// Ethernet's types: IPv4, IPv6, ARP, VLAN, and one for experiments (IEEE 802).
const IPV4: u16 = 0x0800;
const IPV6: u16 = 0x86dd;
const ARP: u16 = 0x0806;
const VLAN: u16 = 0x8100;
const LOCAL: u16 = 0x88b5;

pub(super) const WAYS: &[Way] = &[
    way("ping4", 5, "ICMP echo with payload, ping socket", |t| {
        ping(libc::SOCK_DGRAM, ICMP, t.canary4.into(), t)
    }),
    way("ping6", 5, "ICMPv6 echo with payload, ping socket", |t| {
        ping(libc::SOCK_DGRAM, ICMPV6, t.canary6.into(), t)
    }),
    way("raw-icmp4", 5, "ICMP echo with payload, raw socket", |t| {
        ping(libc::SOCK_RAW, ICMP, t.canary4.into(), t)
    }),
    way("raw-icmp6", 5, "ICMPv6 echo with payload, raw socket", |t| {
        ping(libc::SOCK_RAW, ICMPV6, t.canary6.into(), t)
    }),
    way("raw4", 5, "raw IPv4 of protocol 253", |t| raw(EXPERIMENT, t.canary4.into(), t.token())),
    way("raw6", 5, "raw IPv6 of protocol 253", |t| raw(EXPERIMENT, t.canary6.into(), t.token())),
    way("raw-tcp", 5, "a SYN from a raw socket", |t| {
        raw(libc::IPPROTO_TCP, t.canary4.into(), &syn(t))
    }),
    way("raw-udp", 5, "a datagram from a raw socket", |t| {
        raw(libc::IPPROTO_UDP, t.canary4.into(), &datagram(t))
    }),
    way("raw-ipip", 5, "IPv4 in IPv4 from a raw socket", |t| {
        raw(libc::IPPROTO_IPIP, t.canary4.into(), &packet4(t))
    }),
    way("raw-6in4", 5, "IPv6 in IPv4 from a raw socket", |t| {
        raw(libc::IPPROTO_IPV6, t.canary4.into(), &packet6(t))
    }),
    way("raw-gre", 5, "GRE from a raw socket", |t| {
        let bytes = [&[0, 0, 0x08, 0x00][..], &packet4(t)].concat();
        raw(libc::IPPROTO_GRE, t.canary4.into(), &bytes)
    }),
    way("raw-igmp", 5, "IGMP from a raw socket", |t| {
        raw(libc::IPPROTO_IGMP, t.canary4.into(), t.token())
    }),
    way("hdrincl4", 5, "IPv4 header of its own (IP_HDRINCL)", |t| {
        raw(libc::IPPROTO_RAW, t.canary4.into(), &packet4(t))
    }),
    way("hdrincl6", 5, "IPv6 header of its own", |t| {
        raw(libc::IPPROTO_RAW, t.canary6.into(), &packet6(t))
    }),
    way("sctp", 5, "SCTP", |t| stream(sys::socket(libc::AF_INET, libc::SOCK_STREAM, SCTP)?, t)),
    way("dccp", 5, "DCCP", |t| stream(sys::socket(libc::AF_INET, SOCK_DCCP, DCCP)?, t)),
    way("smc", 5, "SMC, which falls back to TCP", |t| {
        stream(sys::socket(AF_SMC, libc::SOCK_STREAM, 0)?, t)
    }),
    way("packet4", 6, "AF_PACKET, IPv4", |t| cooked(IPV4, &packet4(t), 0, t)),
    way("packet6", 6, "AF_PACKET, IPv6", |t| cooked(IPV6, &packet6(t), 0, t)),
    way("packet-frame", 6, "AF_PACKET, whole frame", |t| frame(IPV4, &packet4(t), 0, t)),
    way("packet-bypass", 6, "AF_PACKET with PACKET_QDISC_BYPASS, IPv4", |t| {
        cooked(IPV4, &packet4(t), 1, t)
    }),
    way("packet-bypass-frame", 6, "the same, whole frame", |t| frame(IPV4, &packet4(t), 1, t)),
    way("packet-syn", 6, "AF_PACKET, a SYN", |t| {
        let inner = ipv4(libc::IPPROTO_TCP, 0, &syn(t), t);
        cooked(IPV4, &inner, 0, t)
    }),
    way("packet-fragment", 6, "AF_PACKET, a later fragment", |t| {
        let inner = ipv4(libc::IPPROTO_UDP, 0x0010, t.token(), t);
        cooked(IPV4, &inner, 0, t)
    }),
    way("packet-echo", 6, "AF_PACKET, ICMP echo with payload", |t| {
        let inner = ipv4(ICMP, 0, &echo(8, t), t);
        cooked(IPV4, &inner, 0, t)
    }),
    way("packet-ethertype", 6, "AF_PACKET, an ethertype of no protocol", |t| {
        cooked(LOCAL, t.token(), 0, t)
    }),
    way("packet-arp", 6, "AF_PACKET, ARP with more behind it", |t| {
        let mut bytes = vec![0, 1, 8, 0, 6, 4, 0, 1];
        bytes.resize(28, 0);
        bytes.extend_from_slice(&t.token().repeat(4));
        cooked(ARP, &bytes, 0, t)
    }),
    way("packet-vlan", 6, "AF_PACKET, IPv4 behind a VLAN tag", |t| {
        let tagged = [&[0, 7][..], &IPV4.to_be_bytes(), &packet4(t)].concat();
        frame(VLAN, &tagged, 0, t)
    }),
];

/// One packet from a raw socket.
fn raw(protocol: i32, to: IpAddr, bytes: &[u8]) -> io::Result<String> {
    let socket = sys::socket(domain(to), libc::SOCK_RAW, protocol)?;
    sys::send_to(&socket, bytes, 0, &sys::address_bytes((to, 0).into())).map(sent)
}

fn ping(kind: i32, protocol: i32, to: IpAddr, t: &Target) -> io::Result<String> {
    let socket = sys::socket(domain(to), kind, protocol)?;
    let bytes = echo(if to.is_ipv4() { 8 } else { 128 }, t);
    sys::send_to(&socket, &bytes, 0, &sys::address_bytes((to, 0).into())).map(sent)
}

/// Connects what is like a stream, and says the token.
fn stream(socket: OwnedFd, t: &Target) -> io::Result<String> {
    sys::connect(&socket, &sys::address_bytes(t.canary(TCP)))?;
    Ok(talk::say(socket, t.token()))
}

fn domain(to: IpAddr) -> i32 {
    if to.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 }
}

/// A packet of this ethertype; the kernel makes its frame.
fn cooked(ethertype: u16, bytes: &[u8], bypass: i32, t: &Target) -> io::Result<String> {
    packet(libc::SOCK_DGRAM, ethertype, bytes, bypass, t)
}

/// A packet with a frame of our own.
fn frame(ethertype: u16, bytes: &[u8], bypass: i32, t: &Target) -> io::Result<String> {
    let source = [2, 0x79, 0, 0, 0, 2];
    let whole = [&t.far_mac[..], &source, &ethertype.to_be_bytes(), bytes].concat();
    packet(libc::SOCK_RAW, ethertype, &whole, bypass, t)
}

fn packet(kind: i32, ethertype: u16, bytes: &[u8], bypass: i32, t: &Target) -> io::Result<String> {
    let socket = sys::socket(libc::AF_PACKET, kind, 0)?;
    if bypass != 0 {
        sys::set_number(&socket, libc::SOL_PACKET, PACKET_QDISC_BYPASS, bypass)?;
    }
    send_frame(&socket, ethertype, bytes, t)
}

/// By a packet socket that is there already.
pub(super) fn send_frame(
    socket: &OwnedFd,
    ethertype: u16,
    bytes: &[u8],
    t: &Target,
) -> io::Result<String> {
    let to = sys::link_address(if_nametoindex(LINK)?, ethertype, t.far_mac);
    sys::send_to(socket, bytes, 0, &to).map(sent)
}

/// An echo request with the token as its payload. The kernel sums ICMPv6 and ping sockets; for the
/// rest we do.
fn echo(kind: u8, t: &Target) -> Vec<u8> {
    let mut bytes = vec![kind, 0, 0, 0, 0x49, 0x58, 0, 1];
    bytes.extend_from_slice(t.token());
    let sum = checksum(&bytes).to_be_bytes();
    bytes[2..4].copy_from_slice(&sum);
    bytes
}

/// A UDP datagram to the canary, without a checksum.
fn datagram(t: &Target) -> Vec<u8> {
    let [high, low] = UDP.to_be_bytes();
    let [from_high, from_low] = t.port.to_be_bytes();
    let length = (8 + t.token.len()) as u16;
    let [long, short] = length.to_be_bytes();
    [&[from_high, from_low, high, low, long, short, 0, 0], t.token()].concat()
}

/// A SYN to the canary; its checksum is wrong, which does not matter to who records it.
fn syn(t: &Target) -> Vec<u8> {
    let [high, low] = TCP.to_be_bytes();
    let [from_high, from_low] = t.port.to_be_bytes();
    let mut bytes =
        vec![from_high, from_low, high, low, 0, 0, 0, 1, 0, 0, 0, 0, 0x50, 2, 0xff, 0xff];
    bytes.resize(20, 0);
    bytes
}

/// A whole IPv4 packet with a datagram to the canary.
pub(super) fn packet4(t: &Target) -> Vec<u8> {
    ipv4(libc::IPPROTO_UDP, 0, &datagram(t), t)
}

fn ipv4(protocol: i32, fragment: u16, payload: &[u8], t: &Target) -> Vec<u8> {
    let length = (20 + payload.len()) as u16;
    let mut header = vec![0x45, 0];
    header.extend_from_slice(&length.to_be_bytes());
    header.extend_from_slice(&[0x49, 0x58]);
    header.extend_from_slice(&fragment.to_be_bytes());
    header.extend_from_slice(&[64, protocol as u8, 0, 0]);
    header.extend_from_slice(&ROOM4.octets());
    header.extend_from_slice(&t.canary4.octets());
    let sum = checksum(&header).to_be_bytes();
    header[10..12].copy_from_slice(&sum);
    header.extend_from_slice(payload);
    header
}

/// A whole IPv6 packet with the token, of the protocol for experiments.
fn packet6(t: &Target) -> Vec<u8> {
    let mut bytes = vec![0x60, 0, 0, 0];
    bytes.extend_from_slice(&(t.token.len() as u16).to_be_bytes());
    bytes.extend_from_slice(&[EXPERIMENT as u8, 64]);
    bytes.extend_from_slice(&ROOM6.octets());
    bytes.extend_from_slice(&t.canary6.octets());
    bytes.extend_from_slice(t.token());
    bytes
}

/// The Internet checksum (RFC 1071).
fn checksum(bytes: &[u8]) -> u16 {
    let words = bytes.chunks(2).map(|w| u32::from(w[0]) << 8 | u32::from(*w.get(1).unwrap_or(&0)));
    let mut sum: u32 = words.sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

/// IPv4's ethertype, for those who have a packet socket already.
pub(super) const ETHERTYPE_IPV4: u16 = IPV4;
