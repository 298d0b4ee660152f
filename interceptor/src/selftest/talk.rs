//! Saying something over a connection, and telling in a word what came of it.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::os::fd::OwnedFd;
use std::time::Duration;

use nix::errno::Errno;
use socket2::{Domain, Protocol, Socket, Type};

/// How long a way waits for a refusal: longer than one may take (`Within::Proxy`).
pub(super) const PATIENCE: Duration = Duration::from_millis(2500);

/// How long a way lingers that expects no answer: long enough for a packet to be sent.
const MOMENT: Duration = Duration::from_millis(300);

/// A TCP socket of an address's family, not yet connected.
pub(super) fn tcp(to: SocketAddr) -> io::Result<Socket> {
    Socket::new(Domain::for_address(to), Type::STREAM, Some(Protocol::TCP))
}

/// Connects, says `bytes`, and waits for what comes.
pub(super) fn tell(to: SocketAddr, bytes: &[u8]) -> io::Result<String> {
    tell_pieces(to, &[bytes], Duration::ZERO)
}

/// The same in pieces, each a segment of its own, `pause` between them.
pub(super) fn tell_pieces(to: SocketAddr, pieces: &[&[u8]], pause: Duration) -> io::Result<String> {
    let mut stream = connected(tcp(to)?, to)?;
    stream.set_nodelay(true)?;
    for (number, piece) in pieces.iter().enumerate() {
        if number > 0 {
            std::thread::sleep(pause);
        }
        if let Err(error) = stream.write_all(piece) {
            return Ok(ended(&error));
        }
    }
    Ok(answer(&mut stream))
}

/// Connects a socket, waiting no longer than [`PATIENCE`].
pub(super) fn connected(socket: Socket, to: SocketAddr) -> io::Result<TcpStream> {
    // The time limit of sending is connect's as well (socket(7)).
    socket.set_write_timeout(Some(PATIENCE))?;
    match socket.connect(&to.into()) {
        Err(error) if error.raw_os_error() == Some(libc::EINPROGRESS) => {
            Err(ErrorKind::TimedOut.into())
        }
        other => other.map(|()| TcpStream::from(socket)),
    }
}

/// Says `bytes` over a socket that is connected, and waits for what comes.
pub(super) fn say(socket: impl Into<OwnedFd>, bytes: &[u8]) -> String {
    let mut stream = TcpStream::from(socket.into());
    match stream.write_all(bytes) {
        Ok(()) => answer(&mut stream),
        Err(error) => ended(&error),
    }
}

/// What the other end says: the first line of an answer, or how it ends.
pub(super) fn answer(stream: &mut TcpStream) -> String {
    let mut bytes = [0; 1024];
    if let Err(error) = stream.set_read_timeout(Some(PATIENCE)) {
        return ended(&error);
    }
    // A ring that is taken down interrupts its task, and a read with a time limit is not taken up again.
    let read = loop {
        match stream.read(&mut bytes) {
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            read => break read,
        }
    };
    match read {
        Ok(0) => "closed".to_owned(),
        Ok(length) => {
            let _ = stream.shutdown(Shutdown::Both);
            answered(&bytes[..length])
        }
        Err(error) => ended(&error),
    }
}

/// What becomes, in a moment, of a socket that expects no answer.
pub(super) fn ended_soon(socket: impl Into<OwnedFd>) -> String {
    let stream = TcpStream::from(socket.into());
    let read = stream
        .set_nonblocking(false)
        .and_then(|()| stream.set_read_timeout(Some(MOMENT)))
        .and_then(|()| (&stream).read(&mut [0; 1]));
    match read {
        Ok(0) => "closed".to_owned(),
        Ok(_) => "answer".to_owned(),
        Err(error) => ended(&error),
    }
}

/// What an answer is called.
pub(super) fn answered(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    match text.strip_prefix("HTTP/1.1 ").and_then(|rest| rest.get(..3)) {
        Some(status) => format!("HTTP {status}"),
        None => {
            let line: String = text.chars().take_while(|c| !c.is_control()).take(20).collect();
            match (bytes, line.is_ascii() && !line.is_empty()) {
                ([21, 3, ..], _) => "answer: a TLS alert".to_owned(),
                (_, true) => format!("answer {line:?}"),
                (_, false) => format!("answer of {} bytes", bytes.len()),
            }
        }
    }
}

/// How a connection ended.
pub(super) fn ended(error: &io::Error) -> String {
    match error.kind() {
        ErrorKind::WouldBlock | ErrorKind::TimedOut => "silence".to_owned(),
        ErrorKind::ConnectionReset | ErrorKind::BrokenPipe => "reset".to_owned(),
        _ => name_of(error),
    }
}

/// The error's C name, or its text.
pub(super) fn name_of(error: &io::Error) -> String {
    match error.raw_os_error() {
        Some(code) => format!("{:?}", Errno::from_raw(code)),
        None if error.kind() == ErrorKind::TimedOut => "silence".to_owned(),
        None => error.to_string(),
    }
}
