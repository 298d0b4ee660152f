//! One direction of a relay: copies through a buffer, and once it has moved some bytes without a
//! pause, through a pipe in the kernel.

use std::cell::RefCell;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use nix::sys::socket::{MsgFlags, Shutdown, recv, send, shutdown};
use tokio::io::Interest;
use tokio::net::TcpStream;
use tokio::task::coop::consume_budget;

use super::Progress;
use super::splice::{Pipe, Spliced};

/// Size of a copy buffer: half the CPU per byte of 8 KiB ones.
const BUFFER: usize = 64 * 1024;
/// Bytes moved without a pause after which a direction is worth a pipe.
const SPLICE_AFTER: u64 = 256 * 1024;
/// Buffers that each thread keeps for the next connection with something to read.
const SPARE_BUFFERS: usize = 8;

/// Which end of a direction failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Broken {
    /// Where bytes come from.
    Source,
    /// Where bytes go.
    Sink,
}

/// Moves `prefix`, then everything from `source`, to `sink`, and passes the FIN on.
///
/// Holds `prefix` until it is written and a buffer only while there are bytes to move: an idle
/// connection costs neither.
///
/// # Errors
/// Which end failed. Everything that was read from a source that failed is written.
pub(super) async fn pump(
    prefix: Bytes,
    source: &TcpStream,
    sink: &TcpStream,
    progress: &Progress,
) -> Result<(), Broken> {
    if !prefix.is_empty() {
        progress.took(prefix.len());
        write_all(sink, &prefix, progress).await?;
    }
    drop(prefix);
    let mut after_splice = false;
    loop {
        if !copy(source, sink, progress, after_splice).await? {
            break;
        }
        // Out of descriptors: copying goes on as well.
        let Ok(pipe) = Pipe::new() else { continue };
        match pipe.move_all(source, sink, progress).await? {
            Spliced::End => break,
            Spliced::Paused => after_splice = true,
        }
    }
    if progress.source_dead.load(Ordering::Relaxed) {
        return Err(Broken::Source);
    }
    shutdown(sink.as_raw_fd(), Shutdown::Write).map_err(|_| Broken::Sink)
}

/// Copies until the end (`false`), or until the direction is worth a pipe (`true`).
///
/// `read_first`: try to read before waiting for readiness. A splice says "nothing to read" in front
/// of an urgent byte, and no event would follow; a plain read steps over it.
async fn copy(
    source: &TcpStream,
    sink: &TcpStream,
    progress: &Progress,
    mut read_first: bool,
) -> Result<bool, Broken> {
    let mut buffer = Buffer::none();
    let mut run = 0;
    while run < SPLICE_AFTER {
        consume_budget().await;
        let mut read = || {
            let result = recv(source.as_raw_fd(), buffer.get(), MsgFlags::MSG_DONTWAIT);
            if result.is_err() {
                buffer = Buffer::none();
                run = 0;
            }
            result.map_err(io::Error::from)
        };
        let result =
            if read_first { read() } else { source.async_io(Interest::READABLE, read).await };
        let n = match result {
            Ok(0) => return Ok(false),
            Ok(n) => n,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                read_first = false;
                continue;
            }
            Err(_) => return Err(Broken::Source),
        };
        progress.took(n);
        run += n as u64;
        write_all(sink, &buffer.get()[..n], progress).await?;
    }
    Ok(true)
}

async fn write_all(sink: &TcpStream, mut bytes: &[u8], progress: &Progress) -> Result<(), Broken> {
    while !bytes.is_empty() {
        let write = || {
            let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
            send(sink.as_raw_fd(), bytes, flags).map_err(io::Error::from)
        };
        let n = match sink.async_io(Interest::WRITABLE, write).await {
            Ok(n) => n,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(_) => return Err(Broken::Sink),
        };
        progress.gave(n);
        bytes = &bytes[n..];
    }
    Ok(())
}

/// A copy buffer, taken when first asked for and given back when dropped.
struct Buffer(Option<Box<[u8]>>);

thread_local! {
    static SPARE: RefCell<Vec<Box<[u8]>>> = const { RefCell::new(Vec::new()) };
}

impl Buffer {
    fn none() -> Self {
        Self(None)
    }

    fn get(&mut self) -> &mut [u8] {
        self.0.get_or_insert_with(|| {
            let spare = SPARE.with_borrow_mut(Vec::pop);
            spare.unwrap_or_else(|| vec![0; BUFFER].into_boxed_slice())
        })
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let Some(buffer) = self.0.take() else { return };
        // While a thread ends, its spare buffers may be gone already: then this one goes too.
        let _ = SPARE.try_with(|spare| {
            let mut spare = spare.borrow_mut();
            if spare.len() < SPARE_BUFFERS {
                spare.push(buffer);
            }
        });
    }
}
