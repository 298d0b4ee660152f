//! Ways to lead a TCP connection's packets elsewhere than its socket says.

use std::io::{self, Write};
use std::net::{Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::time::Duration;

use anyhow::Result;
use socket2::{Domain, Protocol, Socket, Type};

use super::{When, error_name};

/// Long enough for a packet and its first retransmission.
const LINGER: Duration = Duration::from_millis(600);

/// Puts a segment-routing header by way of `via` on a connection, which asks for no privilege, and
/// lets it send. Prints what the socket said.
pub(super) fn routing_header(to: SocketAddr, via: Ipv6Addr, when: When) -> Result<String> {
    let said = match when {
        When::BeforeConnect => {
            let socket = Socket::new(Domain::IPV6, Type::STREAM, Some(Protocol::TCP))?;
            set_routing_header(&socket, via)?;
            socket.connect_timeout(&to.into(), LINGER)
        }
        When::OverLoopback => {
            // An open connection to ourselves: no connect to the outside was ever asked for.
            let listener = TcpListener::bind((Ipv6Addr::LOCALHOST, 0))?;
            let mut stream = TcpStream::connect(listener.local_addr()?)?;
            set_routing_header(&stream, via)?;
            let sent = stream.write_all(b"carried out");
            std::thread::sleep(LINGER);
            sent
        }
    };
    Ok(said.map_or_else(|error| error_name(&error), |()| "sent".to_owned()))
}

/// A type 4 routing header (RFC 8754) with one segment left.
fn set_routing_header(socket: &impl AsRawFd, via: Ipv6Addr) -> io::Result<()> {
    // Next header (filled in by the kernel), length in 8 bytes, type, segments left, last entry,
    // flags, tag; then the segments, last one first. The kernel replaces the first with the
    // destination.
    let mut header = vec![0, 4, 4, 1, 1, 0, 0, 0];
    header.extend_from_slice(&[0; 16]);
    header.extend_from_slice(&via.octets());
    // SAFETY: the pointer and length are those of `header`, which outlives the call.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_IPV6,
            libc::IPV6_RTHDR,
            header.as_ptr().cast(),
            header.len() as libc::socklen_t,
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
