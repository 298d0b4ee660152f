//! The client's side of [`crate::probe`].

use std::fs::{self, File};
use std::io::{self, ErrorKind, IoSlice, Read, Seek, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::{AsFd, AsRawFd};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use io_uring::{IoUring, opcode, types};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{MsgFlags, SockaddrStorage, sendto};
use socket2::{Domain, Protocol, Socket, Type};

use crate::probe::{Case, How, Outcome, PATIENCE, Probed};
use crate::servers::witness::{REPORT, decode};

/// Makes every connection of `file`, `threads` at a time; a line each.
pub(super) fn probe(file: &str, threads: usize) -> Result<String> {
    let text = fs::read_to_string(file).with_context(|| file.to_owned())?;
    let cases: Vec<Case> = text.lines().map(str::parse).collect::<Result<_>>()?;
    let outcomes: Vec<OnceLock<Probed>> = cases.iter().map(|_| OnceLock::new()).collect();
    let next = AtomicUsize::new(0);
    let work = || -> Result<()> {
        // One that is only made where it is used: not every kernel has it.
        let mut ring = None;
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            let Some(case) = cases.get(number) else { return Ok(()) };
            if matches!(case.how, How::IoUring(_)) && ring.is_none() {
                ring = Some(IoUring::new(4).context("io_uring")?);
            }
            let _ = outcomes[number].set(one(case, ring.as_mut())?);
        }
    };
    thread::scope(|scope| {
        let threads: Vec<_> = (0..threads.max(1)).map(|_| scope.spawn(work)).collect();
        threads.into_iter().try_for_each(|thread| thread.join().expect("no panic in it"))
    })?;
    let lines = outcomes.iter().filter_map(OnceLock::get).map(ToString::to_string);
    Ok(lines.collect::<Vec<_>>().join("\n"))
}

fn one(case: &Case, ring: Option<&mut IoUring>) -> Result<Probed> {
    let socket = Socket::new(Domain::for_address(case.to), Type::STREAM, Some(Protocol::TCP))?;
    let source = |stream: &TcpStream| stream.local_addr().map_or(0, |own| own.port());
    let mut rest = &case.bytes[..];
    let opened = match case.how {
        How::FastOpen(at) => fast_open(&socket, case.to, &case.bytes[..at]).map(|sent| {
            rest = &case.bytes[sent..];
        }),
        _ => socket.connect(&case.to.into()),
    };
    let mut stream = TcpStream::from(socket);
    if let Err(error) = opened {
        return Ok(Probed { source: 0, outcome: Outcome::Refused(number(&error)) });
    }
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let source = source(&stream);
    let outcome = match send(&mut stream, rest, case.how, ring) {
        Ok(()) if case.how == How::Leave => Outcome::Left,
        Ok(()) => answer(&mut stream, &case.bytes),
        Err(error) => ended(&error),
    };
    Ok(Probed { source, outcome })
}

fn send(
    stream: &mut TcpStream,
    bytes: &[u8],
    how: How,
    ring: Option<&mut IoUring>,
) -> io::Result<()> {
    match how {
        How::Whole | How::Leave | How::FastOpen(_) => stream.write_all(bytes),
        How::Bytes => bytes.chunks(1).try_for_each(|byte| stream.write_all(byte)),
        How::Split(at) => {
            stream.write_all(&bytes[..at])?;
            stream.write_all(&bytes[at..])
        }
        How::Pause(at) => {
            stream.write_all(&bytes[..at])?;
            thread::sleep(Duration::from_millis(2));
            stream.write_all(&bytes[at..])
        }
        How::NonBlocking(at) => {
            stream.set_nonblocking(true)?;
            write_without_blocking(stream, &bytes[..at])?;
            write_without_blocking(stream, &bytes[at..])?;
            stream.set_nonblocking(false)
        }
        How::Writev(at) => {
            let parts = [IoSlice::new(&bytes[..at]), IoSlice::new(&bytes[at..])];
            let sent = stream.write_vectored(&parts)?;
            stream.write_all(&bytes[sent..])
        }
        How::Sendfile(at) => {
            let mut file = tempfile::tempfile()?;
            file.write_all(bytes)?;
            file.rewind()?;
            sendfile(stream, &file, at)?;
            sendfile(stream, &file, bytes.len() - at)
        }
        How::IoUring(at) => {
            let ring = ring.ok_or(ErrorKind::Unsupported)?;
            send_by_ring(ring, stream, &bytes[..at])?;
            send_by_ring(ring, stream, &bytes[at..])
        }
    }
}

/// Sends the first bytes with the SYN; how many the kernel took.
fn fast_open(socket: &Socket, to: SocketAddr, first: &[u8]) -> io::Result<usize> {
    let to = SockaddrStorage::from(to);
    Ok(sendto(socket.as_raw_fd(), first, &to, MsgFlags::from_bits_retain(libc::MSG_FASTOPEN))?)
}

fn write_without_blocking(stream: &mut TcpStream, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match stream.write(bytes) {
            Ok(sent) => bytes = &bytes[sent..],
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                let mut wait = [PollFd::new(stream.as_fd(), PollFlags::POLLOUT)];
                poll(&mut wait, PollTimeout::MAX)?;
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn sendfile(stream: &TcpStream, file: &File, mut count: usize) -> io::Result<()> {
    while count > 0 {
        // SAFETY: both descriptors are open; without an offset the file's own place moves on.
        let sent = unsafe {
            libc::sendfile(stream.as_raw_fd(), file.as_raw_fd(), std::ptr::null_mut(), count)
        };
        match usize::try_from(sent) {
            Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
            Ok(sent) => count -= sent,
            Err(_) => return Err(io::Error::last_os_error()),
        }
    }
    Ok(())
}

fn send_by_ring(ring: &mut IoUring, stream: &TcpStream, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        let length = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        let entry =
            opcode::Send::new(types::Fd(stream.as_raw_fd()), bytes.as_ptr(), length).build();
        // SAFETY: the descriptor and the bytes outlive the entry, whose end is waited for here.
        unsafe { ring.submission().push(&entry) }.map_err(io::Error::other)?;
        ring.submit_and_wait(1)?;
        let done = ring.completion().next().ok_or(ErrorKind::UnexpectedEof)?.result();
        match usize::try_from(done) {
            Ok(sent) => bytes = &bytes[sent..],
            Err(_) => return Err(io::Error::from_raw_os_error(-done)),
        }
    }
    Ok(())
}

/// Reads the service's report and the echo.
fn answer(stream: &mut TcpStream, sent: &[u8]) -> Outcome {
    let mut report = [0; REPORT];
    let mut echo = vec![0; sent.len()];
    match stream.read_exact(&mut report).and_then(|()| stream.read_exact(&mut echo)) {
        Ok(()) if echo == sent => {
            let (seen, at) = decode(&report);
            Outcome::Echoed(seen, at)
        }
        Ok(()) => Outcome::Ended(libc::EBADMSG),
        Err(error) => ended(&error),
    }
}

fn ended(error: &io::Error) -> Outcome {
    match error.kind() {
        ErrorKind::UnexpectedEof => Outcome::Ended(0),
        ErrorKind::WouldBlock | ErrorKind::TimedOut => Outcome::Silent,
        _ => Outcome::Ended(number(error)),
    }
}

fn number(error: &io::Error) -> i32 {
    error.raw_os_error().unwrap_or(-1)
}
