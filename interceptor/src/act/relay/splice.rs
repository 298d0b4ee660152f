//! Bytes from socket to socket through a pipe in the kernel (splice(2)), never copied to user
//! space: half the CPU of a copy for bulk.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::Ordering;
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, SpliceFFlags, fcntl, splice};
use nix::unistd::pipe2;
use tokio::io::Interest;
use tokio::net::TcpStream;
use tokio::task::coop::consume_budget;
use tokio::time::timeout;

use super::Progress;
use super::pump::Broken;
use crate::descriptors::is_reserved;

/// Sizes to ask for, best first; unprivileged users may have pipes of up to 1 MiB
/// (/proc/sys/fs/pipe-max-size). The kernel's default of 64 KiB does where neither is granted.
const PIPE_SIZES: [i32; 2] = [1024 * 1024, 256 * 1024];
/// Most bytes for one call.
const CHUNK: usize = 1024 * 1024;
/// How long a direction may pause before it gives its pipe's descriptors back.
const PAUSE: Duration = Duration::from_secs(1);

/// Why bytes no longer come through the pipe.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Spliced {
    /// The source ended.
    End,
    /// Nothing came for a while. The pipe is empty.
    Paused,
}

/// A pipe: two descriptors and nothing in it between two calls of [`Pipe::fill`].
#[derive(Debug)]
pub(super) struct Pipe {
    out: OwnedFd,
    into: OwnedFd,
}

impl Pipe {
    /// # Errors
    /// Out of descriptors, or of the user's share of pipe memory.
    pub(super) fn new() -> io::Result<Self> {
        let (out, into) = pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK)?;
        if is_reserved(&out) || is_reserved(&into) {
            return Err(Errno::EMFILE.into());
        }
        for size in PIPE_SIZES {
            if fcntl(&into, FcntlArg::F_SETPIPE_SZ(size)).is_ok() {
                break;
            }
        }
        Ok(Self { out, into })
    }

    /// Moves bytes until the source ends or pauses.
    pub(super) async fn move_all(
        &self,
        source: &TcpStream,
        sink: &TcpStream,
        progress: &Progress,
    ) -> Result<Spliced, Broken> {
        loop {
            consume_budget().await;
            let filled = source.async_io(Interest::READABLE, || step(source, &self.into, CHUNK));
            let mut held = match timeout(PAUSE, filled).await {
                Err(_) => return Ok(Spliced::Paused),
                Ok(Err(_)) => return Err(Broken::Source),
                Ok(Ok(0)) => return Ok(Spliced::End),
                Ok(Ok(n)) => n,
            };
            progress.took(held);
            while held > 0 {
                // The pipe is not empty: "would block" can only mean the sink.
                let drained = sink.async_io(Interest::WRITABLE, || step(&self.out, sink, held));
                let n = drained.await.map_err(|_| Broken::Sink)?;
                progress.gave(n);
                progress.spliced.fetch_add(n as u64, Ordering::Relaxed);
                held -= n;
            }
        }
    }
}

/// One splice that does not wait.
fn step(from: impl AsFd, to: impl AsFd, len: usize) -> io::Result<usize> {
    let flags = SpliceFFlags::SPLICE_F_MOVE | SpliceFFlags::SPLICE_F_NONBLOCK;
    loop {
        match splice(&from, None, &to, None, len, flags) {
            Err(Errno::EINTR) => {}
            result => return result.map_err(io::Error::from),
        }
    }
}
