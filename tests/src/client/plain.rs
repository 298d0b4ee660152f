//! Jobs without TLS.

use std::collections::BTreeMap;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use socket2::{Domain, Protocol, Socket, Type};

use super::{End, PATIENCE, Style, error_name, name_of, nth_address};

/// How long a datagram's answer may take.
const DATAGRAM_PATIENCE: Duration = Duration::from_millis(500);
/// Where the fixed source ports of [`End::Reset`] start: below the kernel's own choice.
const FIRST_SOURCE_PORT: u16 = 20_000;

pub(super) fn get(to: SocketAddr, host: &str, style: Style) -> Result<String> {
    let mut stream = match style {
        Style::Blocking => TcpStream::connect_timeout(&to, PATIENCE)?,
        Style::NonBlocking => connect_without_blocking(to)?,
        Style::Mapped => connect_mapped(to)?,
    };
    let (peer, own) = (stream.peer_addr()?, stream.local_addr()?);
    if SocketAddr::new(peer.ip().to_canonical(), peer.port()) != to {
        bail!("the socket says that its peer is {peer}, not {to}");
    }
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(request(host).as_bytes())?;
    Ok(format!("{} {peer} {own}", status(&mut stream)?))
}

fn connect_without_blocking(to: SocketAddr) -> Result<TcpStream> {
    let socket = Socket::new(Domain::for_address(to), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_nonblocking(true)?;
    match socket.connect(&to.into()) {
        Err(error) if error.raw_os_error() == Some(libc::EINPROGRESS) => {}
        other => bail!("a non-blocking connect said {other:?} instead of EINPROGRESS"),
    }
    let mut wait = [PollFd::new(std::os::fd::AsFd::as_fd(&socket), PollFlags::POLLOUT)];
    poll(&mut wait, PollTimeout::try_from(PATIENCE)?)?;
    if let Some(error) = socket.take_error()? {
        return Err(error.into());
    }
    socket.set_nonblocking(false)?;
    Ok(socket.into())
}

fn connect_mapped(to: SocketAddr) -> Result<TcpStream> {
    let IpAddr::V4(v4) = to.ip() else { bail!("only IPv4 addresses can be mapped") };
    let mapped = SocketAddr::from((v4.to_ipv6_mapped(), to.port()));
    let socket = Socket::new(Domain::IPV6, Type::STREAM, Some(Protocol::TCP))?;
    socket.connect_timeout(&mapped.into(), PATIENCE)?;
    Ok(socket.into())
}

pub(super) fn many(
    first: IpAddr,
    addresses: u16,
    count: usize,
    concurrency: usize,
    end: End,
) -> Result<String> {
    let (next, results) = (AtomicUsize::new(0), Mutex::new(BTreeMap::<String, usize>::new()));
    thread::scope(|scope| {
        for worker in 0..concurrency {
            let (next, results) = (&next, &results);
            scope.spawn(move || {
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= count {
                        return;
                    }
                    let index = u16::try_from(number % usize::from(addresses)).unwrap_or(0);
                    let to = SocketAddr::new(nth_address(first, index), 80);
                    let result = one(to, end, worker).unwrap_or_else(|error| error_name(&error));
                    let mut results = results.lock().unwrap_or_else(PoisonError::into_inner);
                    *results.entry(result).or_default() += 1;
                }
            });
        }
    });
    let results = results.into_inner().unwrap_or_else(PoisonError::into_inner);
    let words: Vec<_> = results.iter().map(|(result, times)| format!("{result}={times}")).collect();
    Ok(words.join(" "))
}

/// One connection of `many`: its result in a word.
fn one(to: SocketAddr, end: End, worker: usize) -> io::Result<String> {
    let socket = Socket::new(Domain::for_address(to), Type::STREAM, Some(Protocol::TCP))?;
    if end == End::Reset {
        let any = if to.is_ipv4() {
            IpAddr::V4(Ipv4Addr::UNSPECIFIED)
        } else {
            IpAddr::V6(Ipv6Addr::UNSPECIFIED)
        };
        let port = FIRST_SOURCE_PORT + u16::try_from(worker).unwrap_or(0);
        socket.set_reuse_address(true)?;
        socket.bind(&SocketAddr::new(any, port).into())?;
    }
    socket.connect_timeout(&to.into(), PATIENCE)?;
    let mut stream = TcpStream::from(socket);
    if stream.peer_addr()? != to {
        return Ok("wrong-peer".to_owned());
    }
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(request(&name_of(to.ip())).as_bytes())?;
    match end {
        End::Read => status(&mut stream),
        End::Close => Ok("closed".to_owned()),
        End::Reset => {
            socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO))?;
            Ok("reset".to_owned())
        }
    }
}

pub(super) fn listen(to: SocketAddr) -> Result<String> {
    let start = Instant::now();
    let mut stream = TcpStream::connect_timeout(&to, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut buffer = [0; 256];
    let length = stream.read(&mut buffer)?;
    let said = String::from_utf8_lossy(&buffer[..length]);
    Ok(format!("{} ms: {}", start.elapsed().as_millis(), said.trim_end()))
}

pub(super) fn datagram(to: SocketAddr, connect: bool) -> Result<String> {
    let any = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let socket = UdpSocket::bind(any)?;
    socket.set_read_timeout(Some(DATAGRAM_PATIENCE))?;
    let sent = if connect {
        // A UDP connect is not traffic: it must succeed whatever the policy says.
        socket.connect(to).context("a UDP connect")?;
        socket.send(b"anyone?")
    } else {
        socket.send_to(b"anyone?", to)
    };
    Ok(answer(sent.and_then(|_| socket.recv(&mut [0; 64]))))
}

/// An ICMP socket that needs no privilege where `net.ipv4.ping_group_range` lets the group in.
pub(super) fn ping(to: Ipv4Addr) -> Result<String> {
    const ECHO_REQUEST: [u8; 8] = [8, 0, 0, 0, 0, 0, 0, 1];
    let exchange = || {
        let socket = Socket::new(Domain::IPV4, Type::DGRAM, Some(Protocol::ICMPV4))?;
        socket.set_read_timeout(Some(DATAGRAM_PATIENCE))?;
        socket.send_to(&ECHO_REQUEST, &SocketAddr::from((to, 0)).into())?;
        // Reads like a datagram's, which std can do.
        UdpSocket::from(socket).recv(&mut [0; 64])
    };
    Ok(answer(exchange()))
}

/// What came of waiting for a packet.
fn answer(received: io::Result<usize>) -> String {
    match received {
        Ok(_) => "reply".to_owned(),
        Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
            "silence".to_owned()
        }
        Err(error) => error_name(&error),
    }
}

pub(super) fn connect(to: SocketAddr) -> Result<String> {
    Ok(match TcpStream::connect_timeout(&to, PATIENCE) {
        Ok(_) => "connected".to_owned(),
        Err(error) => error_name(&error),
    })
}

/// A request after which the server closes.
pub(super) fn request(host: &str) -> String {
    format!(
        "GET / HTTP/1.1\r\nHost: {host}\r\nUser-Agent: interceptor-test\r\nConnection: close\r\n\r\n"
    )
}

/// Reads an answer to its end and gives its status code.
fn status(stream: &mut impl Read) -> io::Result<String> {
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    let text = String::from_utf8_lossy(&answer);
    let mut words = text.split_whitespace();
    match (words.next(), words.next()) {
        (Some("HTTP/1.1"), Some(code)) => Ok(code.to_owned()),
        _ => Ok("no-answer".to_owned()),
    }
}
