//! Datagrams to where no entry leads (T-4, T-13).

use std::io::{self, IoSlice};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::fd::{AsRawFd, OwnedFd};

use nix::net::if_::if_nametoindex;
use nix::sys::socket::{ControlMessage, MsgFlags, SockaddrIn, sendmsg};

use super::sys;
use super::tcp::{routing_header_option, source_route_option};
use super::way::{
    ALLOWED, DNS, LINK, RESOLVER, ROOM4, TLS, Target, UDP, Way, hooked as way,
    hooked_payload as payload, hooked_token as token,
};

const UDPLITE: i32 = 136;

pub(super) const WAYS: &[Way] = &[
    way("udp4", 4, "sendto over IPv4", |t| send(t.canary(UDP), t.token())),
    way("udp6", 4, "sendto over IPv6", |t| send(t.canary_v6(UDP), t.token())),
    way("udp-mapped", 4, "IPv6 socket, ::ffff:a.b.c.d", |t| {
        send_from((Ipv6Addr::UNSPECIFIED, 0).into(), (t.embedded()[0], UDP).into(), t.token())
    }),
    way("udp-nat64", 4, "IPv6 socket, 64:ff9b::a.b.c.d", |t| {
        send((t.embedded()[1], UDP).into(), t.token())
    }),
    way("udp-connected4", 4, "connected socket over IPv4", |t| connected(t.canary(UDP), t)),
    way("udp-connected6", 4, "connected socket over IPv6", |t| connected(t.canary_v6(UDP), t)),
    way("udp-unspec", 4, "sendto with an address of no family", unspec),
    way("udp-elsewhere", 4, "connected to the resolver, then sendto elsewhere", |t| {
        let socket = UdpSocket::bind("0.0.0.0:0")?;
        socket.connect((RESOLVER, DNS))?;
        sys::send_to(&socket, t.token(), 0, &sys::address_bytes(t.canary(UDP))).map(sent)
    }),
    way("udp-reconnect", 4, "connected to the resolver, AF_UNSPEC, connected elsewhere", |t| {
        let socket = UdpSocket::bind("0.0.0.0:0")?;
        socket.connect((RESOLVER, DNS))?;
        sys::connect(&socket, &sys::of_no_family((RESOLVER, DNS).into()))?;
        socket.connect(t.canary(UDP))?;
        socket.send(t.token()).map(|_| sent(()))
    }),
    way("udp-pktinfo", 4, "sendmsg with IP_PKTINFO", pktinfo),
    way("udp-sendmmsg", 4, "two datagrams in one call", |t| {
        let socket = UdpSocket::bind("0.0.0.0:0")?;
        sys::send_many(&socket, t.token(), &[t.canary(UDP), t.canary(DNS)]).map(|_| sent(()))
    }),
    way("udp-corked", 4, "two sends in one datagram (MSG_MORE)", |t| {
        let socket = UdpSocket::bind("0.0.0.0:0")?;
        let to = sys::address_bytes(t.canary(UDP));
        sys::send_to(&socket, t.token(), libc::MSG_MORE, &to)?;
        sys::send_to(&socket, t.token(), 0, &to).map(sent)
    }),
    way("udp-segments", 4, "one send, many datagrams (UDP_SEGMENT)", |t| {
        let socket = UdpSocket::bind("0.0.0.0:0")?;
        sys::set_number(&socket, libc::SOL_UDP, libc::UDP_SEGMENT, 100)?;
        socket.send_to(&t.token().repeat(30), t.canary(UDP)).map(|_| sent(()))
    }),
    way("udp-fragments", 4, "a datagram that needs fragments", |t| {
        send(t.canary(UDP), &t.token().repeat(400))
    }),
    way("udp-source-port", 4, "from port 53", |t| {
        send_from((ROOM4, DNS).into(), t.canary(UDP), t.token())
    }),
    way("udp-device", 4, "SO_BINDTODEVICE", |t| {
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::DGRAM, None)?;
        socket.bind_device(Some(LINK.as_bytes()))?;
        UdpSocket::from(socket).send_to(t.token(), t.canary(UDP)).map(|_| sent(()))
    }),
    way("udp-source-route", 4, "to the resolver, source route by way of the canary", |t| {
        let socket = UdpSocket::bind("0.0.0.0:0")?;
        sys::set_option(&socket, libc::IPPROTO_IP, libc::IP_OPTIONS, &source_route_option(t))?;
        // Without the token: what reached the resolver itself would be allowed.
        socket.send_to(&query(ALLOWED), (RESOLVER, DNS)).map(|_| sent(()))
    }),
    way("udp-routing-header", 4, "routing header by way of the canary", |t| {
        let socket = UdpSocket::bind("[::]:0")?;
        let header = routing_header_option(t);
        sys::set_option(&socket, libc::IPPROTO_IPV6, libc::IPV6_RTHDR, &header)?;
        socket.send_to(b"x", t.allowed_v6(UDP)).map(|_| sent(()))
    }),
    way("udplite4", 4, "UDP-Lite over IPv4", |t| lite(t.canary(UDP), t)),
    way("udplite6", 4, "UDP-Lite over IPv6", |t| lite(t.canary_v6(UDP), t)),
    way("quic", 4, "QUIC-like, to an address that no entry names", |t| {
        send(t.canary(TLS), &initial(t))
    }),
    payload("quic-allowed", 4, "QUIC-like, to an address of an allowed TLS host", |t| {
        send(t.allowed(TLS), &initial(t))
    }),
    way("dns-elsewhere4", 4, "DNS to a server that is not configured", |t| {
        send(t.canary(DNS), &question(t))
    }),
    way("dns-elsewhere6", 4, "the same over IPv6", |t| send(t.canary_v6(DNS), &question(t))),
    token("dns-resolver-other-port", 4, "the resolver's address on another port", |t| {
        send((RESOLVER, UDP).into(), t.token())
    }),
    token("udp-multicast4", 13, "multicast DNS over IPv4", |t| {
        send((Ipv4Addr::new(224, 0, 0, 251), 5353).into(), t.token())
    }),
    token("udp-multicast6", 13, "multicast DNS over IPv6", |t| {
        let group = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 0xfb);
        let scope = if_nametoindex(LINK)?;
        let to = std::net::SocketAddrV6::new(group, 5353, 0, scope);
        send(to.into(), t.token())
    }),
    token("udp-broadcast", 13, "broadcast", |t| {
        let socket = UdpSocket::bind((ROOM4, 0))?;
        socket.set_broadcast(true)?;
        socket.send_to(t.token(), (Ipv4Addr::BROADCAST, t.port)).map(|_| sent(()))
    }),
    way("uring-sendmsg", 3, "io_uring sendmsg", |t| {
        let socket = OwnedFd::from(UdpSocket::bind("0.0.0.0:0")?);
        sys::ring_send(&socket, t.token(), t.canary(UDP)).map(sent)
    }),
];

/// What a datagram that the kernel took is called.
pub(super) fn sent((): ()) -> String {
    "sent".to_owned()
}

/// One datagram from a fresh socket.
pub(super) fn send(to: SocketAddr, bytes: &[u8]) -> io::Result<String> {
    let any: IpAddr =
        if to.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    send_from((any, 0).into(), to, bytes)
}

fn send_from(from: SocketAddr, to: SocketAddr, bytes: &[u8]) -> io::Result<String> {
    UdpSocket::bind(from)?.send_to(bytes, to).map(|_| sent(()))
}

fn connected(to: SocketAddr, t: &Target) -> io::Result<String> {
    let any = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let socket = UdpSocket::bind(any)?;
    socket.connect(to)?;
    socket.send(t.token()).map(|_| sent(()))
}

/// IPv4 takes AF_UNSPEC for AF_INET here.
fn unspec(t: &Target) -> io::Result<String> {
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    sys::send_to(&socket, t.token(), 0, &sys::of_no_family(t.canary(UDP))).map(sent)
}

fn pktinfo(t: &Target) -> io::Result<String> {
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    let info = libc::in_pktinfo {
        ipi_ifindex: if_nametoindex(LINK)? as i32,
        ipi_spec_dst: libc::in_addr { s_addr: u32::from_ne_bytes(ROOM4.octets()) },
        ipi_addr: libc::in_addr { s_addr: 0 },
    };
    let to = SockaddrIn::from(std::net::SocketAddrV4::new(t.canary4, UDP));
    let control = [ControlMessage::Ipv4PacketInfo(&info)];
    let parts = [IoSlice::new(t.token())];
    sendmsg(socket.as_raw_fd(), &parts, &control, MsgFlags::empty(), Some(&to))?;
    Ok(sent(()))
}

fn lite(to: SocketAddr, t: &Target) -> io::Result<String> {
    let domain = if to.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
    let socket = sys::socket(domain, libc::SOCK_DGRAM, UDPLITE)?;
    sys::send_to(&socket, t.token(), 0, &sys::address_bytes(to)).map(sent)
}

/// A QUIC version 1 Initial in size and first bytes (RFC 9000, 17.2.2); what is in it is the token.
fn initial(t: &Target) -> Vec<u8> {
    let mut bytes = vec![0xc3, 0, 0, 0, 1, 8];
    bytes.extend_from_slice(t.token());
    bytes.resize(1200, 0);
    bytes
}

/// A DNS question for a name with the token.
pub(super) fn question(t: &Target) -> Vec<u8> {
    query(&t.forbidden())
}

/// A DNS question for the IPv4 addresses of a name.
pub(super) fn query(name: &str) -> Vec<u8> {
    let mut bytes = vec![0x49, 0x58, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in name.split('.') {
        bytes.push(label.len() as u8);
        bytes.extend_from_slice(label.as_bytes());
    }
    bytes.extend_from_slice(&[0, 0, 1, 0, 1]);
    bytes
}
