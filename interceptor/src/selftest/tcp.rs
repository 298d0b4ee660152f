//! TCP to an address that no entry names, in every form (T-1 to T-3, T-8).

use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr, SocketAddrV4, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};

use super::sys::{self, Ring};
use super::talk;
use super::way::{DNS, LINK, ROOM4, TCP, Target, Way, unlisted as way};

/// Linux's, from its headers; libc has them for some targets only.
const TCP_FASTOPEN_CONNECT: i32 = 30;
const IP_FREEBIND: i32 = 15;
const IPV6_FREEBIND: i32 = 78;
const IPPROTO_MPTCP: i32 = 262;
/// Option 131 of RFC 791.
const LOOSE_SOURCE_ROUTE: u8 = 131;

pub(super) const WAYS: &[Way] = &[
    way("tcp4", 1, "connect over IPv4", |t| talk::tell(t.canary(TCP), t.token())),
    way("tcp6", 1, "connect over IPv6", |t| talk::tell(t.canary_v6(TCP), t.token())),
    way("tcp-mapped", 1, "IPv6 socket, ::ffff:a.b.c.d", |t| embedded(t, 0)),
    way("tcp-nat64", 1, "IPv6 socket, 64:ff9b::a.b.c.d", |t| embedded(t, 1)),
    way("tcp-6to4", 1, "IPv6 socket, 2002:a.b.c.d::1", |t| embedded(t, 2)),
    way("tcp-compatible", 1, "IPv6 socket, ::a.b.c.d", |t| embedded(t, 3)),
    way("tcp-source-port", 1, "bound to a source port first", source_port),
    way("tcp-low-port", 1, "bound to a source port below 1024", low_port),
    way("tcp-nonblocking", 1, "non-blocking connect", nonblocking),
    way("tcp-dns-port", 4, "DNS over TCP to a server that is not configured", |t| {
        talk::tell(t.canary(DNS), t.token())
    }),
    way("tcp-burst", 1, "a hundred connects at once", burst),
    way("tcp-address-flip", 2, "a thread flips the address during the call", flip),
    way("tcp-second-connect", 2, "connect again after the first was refused", second),
    way("tcp-unspec", 2, "AF_UNSPEC, then connect again", |t| unspec(t, t.allowed(TCP))),
    way("tcp-unspec-loopback", 2, "connected on loopback, AF_UNSPEC, connect again", from_loopback),
    way("tcp-fastopen", 2, "MSG_FASTOPEN", fast_open),
    way("tcp-fastopen-connect", 2, "TCP_FASTOPEN_CONNECT", fast_open_connect),
    way("mptcp4", 2, "multipath TCP over IPv4", |t| multipath(t.canary(TCP), t)),
    way("mptcp6", 2, "multipath TCP over IPv6", |t| multipath(t.canary_v6(TCP), t)),
    way("tcp-freebind4", 2, "IP_FREEBIND to a foreign source address", |t| {
        foreign_source(libc::IPPROTO_IP, IP_FREEBIND, [192, 0, 2, 77].into(), t.canary(TCP))
    }),
    way("tcp-freebind6", 2, "IPV6_FREEBIND to a foreign source address", |t| {
        let source = Ipv6Addr::new(0x2001, 0xdb8, 0x77, 0, 0, 0, 0, 0x77).into();
        foreign_source(libc::IPPROTO_IPV6, IPV6_FREEBIND, source, t.canary_v6(TCP))
    }),
    way("tcp-transparent", 2, "IP_TRANSPARENT with a foreign source address", |t| {
        foreign_source(
            libc::IPPROTO_IP,
            libc::IP_TRANSPARENT,
            [192, 0, 2, 77].into(),
            t.canary(TCP),
        )
    }),
    way("tcp-device", 2, "SO_BINDTODEVICE", bound_to_device),
    way("tcp-device-unicast-if", 2, "IP_UNICAST_IF", unicast_if),
    way("tcp-source-route", 2, "source-route option by way of the canary", source_route),
    way("tcp-routing-header", 2, "IPv6 routing header by way of the canary", routing_header),
    way("tcp-header-on-loopback", 2, "routing header on an open loopback connection", detour),
    way("tcp-repair", 2, "TCP_REPAIR: a connection without a handshake", repair),
    way("tcp-mark", 8, "SO_MARK", |t| {
        let socket = talk::tcp(t.canary(TCP))?;
        sys::set_number(&socket, libc::SOL_SOCKET, libc::SO_MARK, 1337)?;
        finish(socket, t.canary(TCP), t)
    }),
    way("uring-connect", 3, "io_uring socket and connect", |t| ring(Ring::Plain, t)),
    way("uring-worker", 3, "io_uring connect by a kernel worker", |t| ring(Ring::Worker, t)),
    way("uring-polled", 3, "io_uring connect by a kernel thread (SQPOLL)", |t| {
        ring(Ring::Polled, t)
    }),
];

/// Connects and says the token.
fn finish(socket: Socket, to: SocketAddr, t: &Target) -> io::Result<String> {
    let stream = talk::connected(socket, to)?;
    Ok(talk::say(stream, t.token()))
}

fn embedded(t: &Target, form: usize) -> io::Result<String> {
    talk::tell((t.embedded()[form], TCP).into(), t.token())
}

fn source_port(t: &Target) -> io::Result<String> {
    let socket = talk::tcp(t.canary(TCP))?;
    socket.set_reuse_address(true)?;
    socket.bind(&SocketAddr::from((ROOM4, t.port)).into())?;
    finish(socket, t.canary(TCP), t)
}

fn low_port(t: &Target) -> io::Result<String> {
    let socket = talk::tcp(t.canary(TCP))?;
    socket.bind(&SocketAddr::from((ROOM4, 800 + t.port % 200)).into())?;
    finish(socket, t.canary(TCP), t)
}

fn nonblocking(t: &Target) -> io::Result<String> {
    let socket = talk::tcp(t.canary(TCP))?;
    // With a time limit socket2 connects without blocking, and polls.
    socket.connect_timeout(&t.canary(TCP).into(), talk::PATIENCE)?;
    Ok(talk::say(socket, t.token()))
}

fn burst(t: &Target) -> io::Result<String> {
    let mut last = Ok(());
    let mut open = Vec::new();
    for _ in 0..100 {
        let socket = talk::tcp(t.canary(TCP))?;
        socket.set_nonblocking(true)?;
        match socket.connect(&t.canary(TCP).into()) {
            Err(error) if error.raw_os_error() != Some(libc::EINPROGRESS) => last = Err(error),
            _ => open.push(socket),
        }
    }
    last?;
    Ok(open.pop().map_or_else(String::new, |socket| {
        let _ = socket.set_nonblocking(false);
        talk::say(socket, t.token())
    }))
}

fn flip(t: &Target) -> io::Result<String> {
    let to = |ip| SocketAddrV4::new(ip, TCP);
    sys::connect_flipping(to(t.allowed4), to(t.canary4), Duration::from_millis(300))
}

fn second(t: &Target) -> io::Result<String> {
    let socket = talk::tcp(t.canary(TCP))?;
    // Nobody listens there; Linux lets a socket try again.
    if socket.connect(&SocketAddr::from(([127, 0, 0, 1], 1)).into()).is_ok() {
        return Err(io::ErrorKind::AlreadyExists.into());
    }
    finish(socket, t.canary(TCP), t)
}

/// Connects to `first`, undoes it, and connects to the canary.
fn unspec(t: &Target, first: SocketAddr) -> io::Result<String> {
    let socket = talk::tcp(first)?;
    socket.connect_timeout(&first.into(), talk::PATIENCE)?;
    sys::connect(&socket, &sys::of_no_family(first))?;
    finish(socket, t.canary(TCP), t)
}

fn from_loopback(t: &Target) -> io::Result<String> {
    let listener = TcpListener::bind(("127.0.0.1", 0))?;
    unspec(t, listener.local_addr()?)
}

fn fast_open(t: &Target) -> io::Result<String> {
    let socket = talk::tcp(t.canary(TCP))?;
    let to = sys::address_bytes(t.canary(TCP));
    sys::send_to(&socket, t.token(), libc::MSG_FASTOPEN, &to)?;
    Ok(talk::say(socket, b""))
}

fn fast_open_connect(t: &Target) -> io::Result<String> {
    let socket = talk::tcp(t.canary(TCP))?;
    sys::set_number(&socket, libc::IPPROTO_TCP, TCP_FASTOPEN_CONNECT, 1)?;
    finish(socket, t.canary(TCP), t)
}

fn multipath(to: SocketAddr, t: &Target) -> io::Result<String> {
    let protocol = Some(Protocol::from(IPPROTO_MPTCP));
    finish(Socket::new(Domain::for_address(to), Type::STREAM, protocol)?, to, t)
}

fn foreign_source(level: i32, option: i32, source: IpAddr, to: SocketAddr) -> io::Result<String> {
    let socket = talk::tcp(to)?;
    sys::set_number(&socket, level, option, 1)?;
    socket.bind(&SocketAddr::from((source, 0)).into())?;
    begin(socket, to)
}

/// Connects where no answer finds its way back: a SYN is all that can leave.
fn begin(socket: Socket, to: SocketAddr) -> io::Result<String> {
    socket.set_nonblocking(true)?;
    match socket.connect(&to.into()) {
        Err(error) if error.raw_os_error() != Some(libc::EINPROGRESS) => Err(error),
        _ => Ok(talk::ended_soon(socket)),
    }
}

fn bound_to_device(t: &Target) -> io::Result<String> {
    let socket = talk::tcp(t.canary(TCP))?;
    socket.bind_device(Some(LINK.as_bytes()))?;
    finish(socket, t.canary(TCP), t)
}

fn unicast_if(t: &Target) -> io::Result<String> {
    let socket = talk::tcp(t.canary(TCP))?;
    let index = nix::net::if_::if_nametoindex(LINK)?;
    sys::set_option(&socket, libc::IPPROTO_IP, libc::IP_UNICAST_IF, &index.to_be_bytes())?;
    finish(socket, t.canary(TCP), t)
}

/// Loose source route (RFC 791): the canary is the first hop, the allowed address the last.
pub(super) fn source_route_option(t: &Target) -> [u8; 12] {
    let [a, b, c, d] = t.canary4.octets();
    let [e, f, g, h] = t.allowed4.octets();
    [LOOSE_SOURCE_ROUTE, 11, 4, a, b, c, d, e, f, g, h, 0]
}

fn source_route(t: &Target) -> io::Result<String> {
    let socket = talk::tcp(t.allowed(TCP))?;
    sys::set_option(&socket, libc::IPPROTO_IP, libc::IP_OPTIONS, &source_route_option(t))?;
    begin(socket, t.allowed(TCP))
}

/// A type 4 routing header (RFC 8754) with the canary as next hop and one segment left. The kernel
/// puts the destination into the empty place.
pub(super) fn routing_header_option(t: &Target) -> Vec<u8> {
    let mut header = vec![0, 4, 4, 1, 1, 0, 0, 0];
    header.extend_from_slice(&[0; 16]);
    header.extend_from_slice(&t.canary6.octets());
    header
}

fn set_routing_header(socket: &impl AsRawFd, t: &Target) -> io::Result<()> {
    sys::set_option(socket, libc::IPPROTO_IPV6, libc::IPV6_RTHDR, &routing_header_option(t))
}

fn routing_header(t: &Target) -> io::Result<String> {
    let socket = talk::tcp(t.allowed_v6(TCP))?;
    set_routing_header(&socket, t)?;
    begin(socket, t.allowed_v6(TCP))
}

fn detour(t: &Target) -> io::Result<String> {
    let listener = TcpListener::bind(("::1", 0))?;
    let stream = TcpStream::connect(listener.local_addr()?)?;
    set_routing_header(&stream, t)?;
    stream.set_nonblocking(true)?;
    let _ = io::Write::write(&mut &stream, t.token())?;
    Ok(talk::ended_soon(stream))
}

/// In repair mode connect(2) makes an established socket without a packet; then it writes.
fn repair(t: &Target) -> io::Result<String> {
    let socket = talk::tcp(t.canary(TCP))?;
    sys::set_number(&socket, libc::IPPROTO_TCP, libc::TCP_REPAIR, 1)?;
    socket.bind(&SocketAddr::from((IpAddr::from(ROOM4), 0)).into())?;
    socket.connect(&t.canary(TCP).into())?;
    sys::set_number(&socket, libc::IPPROTO_TCP, libc::TCP_REPAIR, 0)?;
    socket.set_nonblocking(true)?;
    socket.send(t.token())?;
    Ok(talk::ended_soon(socket))
}

fn ring(ring: Ring, t: &Target) -> io::Result<String> {
    Ok(talk::say(sys::ring_connect(ring, t.canary(TCP))?, t.token()))
}
