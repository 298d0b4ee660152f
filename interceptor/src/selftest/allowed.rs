//! What policy allows: it must get out of both rooms, and be answered.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::thread;

use super::hello::{self, Hello};
use super::http::get_path;
use super::sys::{self, Ring};
use super::talk;
use super::udp::query;
use super::way::{
    ALLOWED, DNS, HTTP, NAMED, NAMED4, NAMED6, RESOLVER, ROOM4, TCP, TLS, Target, UDP, WILD, Way,
    inside, partly as control,
};

/// An extension that nobody knows, to carry the token past those who only look at names.
const UNKNOWN: u16 = 0xfafa;
/// Where datagrams of the entry are answered.
pub(super) const ECHO4: Ipv4Addr = Ipv4Addr::new(198, 19, 255, 1);

pub(super) const CONTROLS: &[Way] = &[
    control("allowed-tcp4", 1, "TCP by its address", |t| talk::tell(t.allowed(TCP), t.token())),
    control("allowed-tcp6", 1, "the same over IPv6", |t| talk::tell(t.allowed_v6(TCP), t.token())),
    control("allowed-tcp-mapped", 1, "the same, ::ffff:a.b.c.d", |t| {
        talk::tell((t.allowed4.to_ipv6_mapped(), TCP).into(), t.token())
    }),
    control("allowed-uring", 3, "the same by io_uring", |t| {
        Ok(talk::say(sys::ring_connect(Ring::Plain, t.allowed(TCP))?, t.token()))
    }),
    control("allowed-tls4", 22, "a TLS name", |t| talk::tell(t.allowed(TLS), &named(ALLOWED, t))),
    control("allowed-tls6", 22, "the same over IPv6", |t| {
        talk::tell(t.allowed_v6(TLS), &named(ALLOWED, t))
    }),
    control("allowed-tls-case", 20, "a TLS name in upper case", |t| {
        talk::tell(t.allowed(TLS), &named(&ALLOWED.to_uppercase(), t))
    }),
    control("allowed-tls-wildcard", 22, "a TLS name below a wildcard", |t| {
        talk::tell(t.allowed(TLS), &named(&format!("a.b.{WILD}"), t))
    }),
    control("allowed-tls-pieces", 17, "a TLS name in segments of one byte", |t| {
        let bytes = named(ALLOWED, t);
        let pieces: Vec<&[u8]> = bytes.chunks(1).collect();
        talk::tell_pieces(t.allowed(TLS), &pieces, std::time::Duration::ZERO)
    }),
    control("allowed-tls-resolved4", 24, "a TLS name where DNS says it is", |t| {
        talk::tell((NAMED4, TLS).into(), &named(NAMED, t))
    }),
    control("allowed-tls-resolved6", 24, "the same over IPv6", |t| {
        talk::tell((NAMED6, TLS).into(), &named(NAMED, t))
    }),
    control("allowed-http4", 30, "an HTTP request", |t| request(t.allowed(HTTP), ALLOWED, t)),
    control("allowed-http6", 30, "the same over IPv6", |t| request(t.allowed_v6(HTTP), ALLOWED, t)),
    control("allowed-http-resolved", 24, "an HTTP request where DNS says the host is", |t| {
        request((NAMED4, HTTP).into(), NAMED, t)
    }),
    control("allowed-dns-udp", 4, "DNS to the configured resolver", |t| {
        datagram((RESOLVER, DNS).into(), &query(&format!("{}.{NAMED}", t.token)))
    }),
    control("allowed-dns-tcp", 4, "the same over TCP", |t| {
        let message = query(&format!("{}.{NAMED}", t.token));
        let bytes = [&(message.len() as u16).to_be_bytes()[..], &message].concat();
        talk::tell((RESOLVER, DNS).into(), &bytes)
    }),
    control("allowed-udp", 4, "a datagram that an entry allows", |t| {
        datagram((ECHO4, UDP).into(), t.token())
    }),
    inside("loopback-tcp", 16, "TCP over loopback", |_| to_itself(Ipv4Addr::LOCALHOST)),
    inside("own-address", 16, "TCP to the room's own address", |_| to_itself(ROOM4)),
    inside("loopback-udp", 16, "UDP over loopback", |_| {
        let (one, other) = (UdpSocket::bind("127.0.0.1:0")?, UdpSocket::bind("127.0.0.1:0")?);
        other.set_read_timeout(Some(talk::PATIENCE))?;
        one.send_to(b"hello", other.local_addr()?)?;
        other.recv(&mut [0; 16]).map(|_| talk::answered(b"hello"))
    }),
];

/// Whether a control's text says that it was answered as it should be.
pub(super) fn is_answer(text: &str) -> bool {
    text == "HTTP 200" || text.starts_with("answer")
}

/// A hello for an allowed name, with the token where no reader looks.
fn named(name: &str, t: &Target) -> Vec<u8> {
    Hello::of(vec![hello::names(&[(0, name)]), hello::extension(UNKNOWN, t.token())]).record()
}

fn request(to: SocketAddr, host: &str, t: &Target) -> io::Result<String> {
    talk::tell(to, get_path(&t.token, host, "").as_bytes())
}

fn datagram(to: SocketAddr, bytes: &[u8]) -> io::Result<String> {
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    socket.set_read_timeout(Some(talk::PATIENCE))?;
    socket.send_to(bytes, to)?;
    let mut answer = [0; 1024];
    let length = socket.recv(&mut answer)?;
    Ok(talk::answered(&answer[..length]))
}

fn to_itself(ip: Ipv4Addr) -> io::Result<String> {
    let listener = TcpListener::bind((ip, 0))?;
    let to = listener.local_addr()?;
    thread::scope(|scope| {
        scope.spawn(|| {
            let (mut stream, _) = listener.accept()?;
            stream.read_exact(&mut [0; 1])?;
            stream.write_all(b"hello")
        });
        talk::tell(to, b"x")
    })
}
