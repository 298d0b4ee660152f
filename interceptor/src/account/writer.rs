//! The writing end of the access log: one thread per target writes lines, each with one `write` call,
//! so that lines of several writers to one file or pipe never mix, and no connection ever waits for
//! a slow target (T-57).

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

use tokio::sync::watch;

use super::LogTarget;

/// Lines that may wait for the writer.
pub(super) const QUEUE_LINES: usize = 16 * 1024;
/// Bytes of lines that may wait for the writer: hostile fields can make each line long (T-51).
const QUEUE_BYTES: usize = 16 * 1024 * 1024;
/// How often a file is compared with what its path names now, to notice a rotation.
pub(super) const ROTATION_CHECK: Duration = Duration::from_secs(1);

/// The near end of a writer's queue.
#[derive(Debug)]
pub(super) struct Lines {
    pub(super) target: LogTarget,
    queue: SyncSender<String>,
    shared: Arc<Shared>,
    pub(super) progress: Progress,
}

/// What both ends of the queue count.
#[derive(Debug)]
struct Shared {
    queued_bytes: AtomicUsize,
    /// Lines lost by all writers of one log.
    dropped: Arc<AtomicU64>,
}

/// How far a writer has come.
#[derive(Debug, Clone)]
pub(super) struct Progress {
    pub(super) handed_over: Arc<AtomicU64>,
    /// How many lines the writer is done with.
    done: watch::Receiver<u64>,
}

impl Progress {
    /// Waits until every line handed over so far is written (or was refused by the target).
    pub(super) async fn flush(&self) {
        let goal = self.handed_over.load(Ordering::Acquire);
        // An error says that the writer is gone: then nothing is left to wait for.
        let _ = self.done.clone().wait_for(|done| *done >= goal).await;
    }

    /// Whether the writer has ended, its queue empty.
    pub(super) fn ended(&self) -> bool {
        self.done.has_changed().is_err()
    }
}

impl Lines {
    /// Opens the target and starts its writer, which ends when this is dropped and the queue empty.
    /// Lines that are lost are counted in `dropped`.
    ///
    /// # Errors
    /// The target cannot be opened, or no thread can be started.
    pub(super) fn open(target: &LogTarget, dropped: &Arc<AtomicU64>) -> io::Result<Self> {
        let output = match target {
            LogTarget::Stdout => Output::descriptor(io::stdout())?,
            LogTarget::Stderr => Output::descriptor(io::stderr())?,
            LogTarget::File(path) => Output::path(path)?,
        };
        let (queue, lines) = sync_channel(QUEUE_LINES);
        let (progress, done) = watch::channel(0);
        let shared =
            Arc::new(Shared { queued_bytes: AtomicUsize::new(0), dropped: Arc::clone(dropped) });
        let writers_share = Arc::clone(&shared);
        thread::Builder::new()
            .name("access-log".into())
            .spawn(move || write_lines(&lines, output, &writers_share, &progress))?;
        let progress = Progress { handed_over: Arc::default(), done };
        Ok(Self { target: target.clone(), queue, shared, progress })
    }

    /// Never blocks: a full queue drops the line and counts it.
    pub(super) fn hand_over(&self, line: String) {
        let bytes = line.len();
        let queued = self.shared.queued_bytes.fetch_add(bytes, Ordering::Relaxed);
        if queued + bytes <= QUEUE_BYTES && self.queue.try_send(line).is_ok() {
            self.progress.handed_over.fetch_add(1, Ordering::Release);
        } else {
            self.shared.queued_bytes.fetch_sub(bytes, Ordering::Relaxed);
            self.shared.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// The writer: ends when the near end is gone and the queue is empty.
fn write_lines(
    lines: &Receiver<String>,
    mut output: Output,
    shared: &Shared,
    progress: &watch::Sender<u64>,
) {
    for line in lines {
        shared.queued_bytes.fetch_sub(line.len(), Ordering::Relaxed);
        if output.write_line(line.as_bytes()).is_err() {
            shared.dropped.fetch_add(1, Ordering::Relaxed);
        }
        progress.send_modify(|done| *done += 1);
    }
}

/// An open target.
struct Output {
    file: File,
    /// Set where the target can be opened again.
    path: Option<PathBuf>,
    checked: Instant,
}

impl Output {
    /// A second handle to a standard stream: std's own is buffered and would split lines.
    fn descriptor(stream: impl AsFd) -> io::Result<Self> {
        let file = File::from(stream.as_fd().try_clone_to_owned()?);
        Ok(Self { file, path: None, checked: Instant::now() })
    }

    fn path(path: &Path) -> io::Result<Self> {
        Ok(Self { file: append(path)?, path: Some(path.to_owned()), checked: Instant::now() })
    }

    fn write_line(&mut self, line: &[u8]) -> io::Result<()> {
        self.follow_rotation();
        match write_whole(&mut self.file, line) {
            Ok(()) => Ok(()),
            Err(error) => {
                let Some(path) = &self.path else { return Err(error) };
                self.file = append(path)?;
                write_whole(&mut self.file, line)
            }
        }
    }

    /// Opens the path again once it names another file than ours, or none.
    fn follow_rotation(&mut self) {
        let Some(path) = &self.path else { return };
        if self.checked.elapsed() < ROTATION_CHECK {
            return;
        }
        self.checked = Instant::now();
        let ours = self.file.metadata().map(|m| (m.dev(), m.ino())).ok();
        let named = std::fs::metadata(path).map(|m| (m.dev(), m.ino())).ok();
        // Where the path cannot be opened the old file stays the better place.
        if ours != named
            && let Ok(file) = append(path)
        {
            self.file = file;
        }
    }
}

fn append(path: &Path) -> io::Result<File> {
    OpenOptions::new().append(true).create(true).open(path)
}

/// One `write` for the whole line; more only where the kernel takes less. Someone else may have
/// made a shared pipe non-blocking: this thread may wait for it.
fn write_whole(file: &mut File, mut line: &[u8]) -> io::Result<()> {
    while !line.is_empty() {
        match file.write(line) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(n) => line = &line[n..],
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                thread::sleep(Duration::from_millis(5));
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
