//! Descriptors on a unix socket: a line of text, then what it speaks of.

use std::io::{self, IoSlice, IoSliceMut, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;

use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg};

/// Descriptors in one message; the kernel takes 253 at most.
const AT_ONCE: usize = 128;

/// Sends `line`, which ends with its line feed, and `fds` behind it.
///
/// # Errors
/// The other end is gone, or does not read.
pub(super) fn send(stream: &UnixStream, line: &[u8], fds: &[OwnedFd]) -> io::Result<()> {
    (&*stream).write_all(line)?;
    for some in fds.chunks(AT_ONCE) {
        let some: Vec<RawFd> = some.iter().map(AsRawFd::as_raw_fd).collect();
        let (byte, control) = ([IoSlice::new(b"\n")], [ControlMessage::ScmRights(&some)]);
        sendmsg::<()>(stream.as_raw_fd(), &byte, &control, MsgFlags::MSG_NOSIGNAL, None)?;
    }
    Ok(())
}

/// Receives a line of at most `most` bytes, and the descriptors that `count` finds it to speak of.
///
/// # Errors
/// The other end is gone, or says nothing; the line is too long; `count` cannot read it.
pub(super) fn receive(
    stream: &UnixStream,
    most: u64,
    count: impl Fn(&[u8]) -> io::Result<usize>,
) -> io::Result<(Vec<u8>, Vec<OwnedFd>)> {
    let (mut bytes, mut fds) = (Vec::new(), Vec::new());
    loop {
        if let Some(end) = bytes.iter().position(|byte| *byte == b'\n') {
            let line = bytes.get(..end).unwrap_or_default();
            if fds.len() >= count(line)? {
                return Ok((line.to_owned(), fds));
            }
        }
        if bytes.len() as u64 >= most || receive_some(stream, &mut bytes, &mut fds)? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
}

#[expect(unsafe_code, reason = "takes ownership of descriptors that the kernel just made")]
fn receive_some(
    stream: &UnixStream,
    bytes: &mut Vec<u8>,
    fds: &mut Vec<OwnedFd>,
) -> io::Result<usize> {
    let mut buffer = [0; 4096];
    let mut parts = [IoSliceMut::new(&mut buffer)];
    let mut space = nix::cmsg_space!([RawFd; AT_ONCE]);
    let flags = MsgFlags::MSG_CMSG_CLOEXEC;
    let message = recvmsg::<()>(stream.as_raw_fd(), &mut parts, Some(&mut space), flags)?;
    for control in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(received) = control {
            // SAFETY: the kernel made these descriptors for this call, and nobody else knows them.
            fds.extend(received.into_iter().map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }));
        }
    }
    let length = message.bytes;
    bytes.extend_from_slice(buffer.get(..length).unwrap_or_default());
    Ok(length)
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::unix::fs::MetadataExt;

    use super::*;

    /// More than fit into one message, and a line longer than one read.
    #[test]
    fn every_descriptor_arrives_in_order() {
        let (ours, theirs) = UnixStream::pair().expect("a pair");
        let (null, zero) = (File::open("/dev/null"), File::open("/dev/zero"));
        let (null, zero) = (null.expect("open"), zero.expect("open"));
        let fds: Vec<OwnedFd> = (0..300)
            .map(|n| if n == 257 { &zero } else { &null }.try_clone().expect("cloned").into())
            .collect();
        let line = [&[b'x'; 10_000][..], b"\n"].concat();
        let expected = line.clone();
        let sender = std::thread::spawn(move || send(&ours, &line, &fds));
        let (line, fds) = receive(&theirs, 1 << 20, |_| Ok(300)).expect("received");
        sender.join().expect("no panic").expect("sent");
        assert_eq!([&line[..], b"\n"].concat(), expected);
        let device = |file: &File| file.metadata().expect("metadata").rdev();
        for (at, fd) in fds.into_iter().enumerate() {
            let which = if at == 257 { &zero } else { &null };
            assert_eq!(device(&File::from(fd)), device(which), "{at}");
        }
    }

    #[test]
    fn whoever_hangs_up_or_talks_too_long_is_no_sender() {
        let (ours, theirs) = UnixStream::pair().expect("a pair");
        send(&ours, b"one\n", &[]).expect("sent");
        assert!(receive(&theirs, 2, |_| Ok(1)).is_err(), "too long");
        let (ours, theirs) = UnixStream::pair().expect("a pair");
        send(&ours, b"one\n", &[]).expect("sent");
        drop(ours);
        assert!(receive(&theirs, 100, |_| Ok(1)).is_err(), "gone");
    }
}
