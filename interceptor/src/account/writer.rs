//! The writing end of the access log: one thread per target writes lines, whole ones with one `write`
//! call, so that lines of several writers to one file or pipe never mix, and no connection ever waits
//! for a slow target (T-57).

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

use tokio::sync::watch;

use super::LogTarget;

/// Lines that may wait for the writer.
pub(super) const QUEUE_LINES: usize = 16 * 1024;
/// Bytes of lines that may wait for the writer: hostile fields can make each line long (T-51).
const QUEUE_BYTES: usize = 16 * 1024 * 1024;
/// Bytes of lines written with one call. A longer line goes alone.
const BATCH_BYTES: usize = 64 * 1024;
/// The same, where the target may be a pipe: what it takes as one piece (pipe(7)).
const PIPE_BATCH_BYTES: usize = libc::PIPE_BUF;
/// How long an idle writer lets lines gather after the first one, instead of waking up for each.
const GATHER: Duration = Duration::from_millis(5);
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
    /// Whether the last line was lost.
    failing: AtomicBool,
}

impl Shared {
    fn lost(&self, lines: u64) {
        self.dropped.fetch_add(lines, Ordering::Relaxed);
        self.failing.store(lines > 0, Ordering::Relaxed);
    }
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
        let shared = Arc::new(Shared {
            queued_bytes: AtomicUsize::new(0),
            dropped: Arc::clone(dropped),
            failing: AtomicBool::new(false),
        });
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
            self.shared.lost(1);
        }
    }

    /// Whether lines are being lost: the newest was, for want of room or because the target refused
    /// it.
    pub(super) fn fails(&self) -> bool {
        self.shared.failing.load(Ordering::Relaxed)
    }
}

/// The writer: ends when the near end is gone and the queue is empty.
fn write_lines(
    lines: &Receiver<String>,
    mut output: Output,
    shared: &Shared,
    progress: &watch::Sender<u64>,
) {
    let mut batch = Batch { room: output.batch_bytes(), ..Batch::default() };
    let mut next = None;
    loop {
        let first = next.take().or_else(|| lines.try_recv().ok()).or_else(|| {
            let line = lines.recv().ok();
            thread::sleep(GATHER);
            line
        });
        let Some(first) = first else {
            let lost = u64::from(!output.owed.is_empty());
            shared.dropped.fetch_add(lost, Ordering::Relaxed);
            return;
        };
        batch.start(&first);
        while next.is_none() {
            let Ok(line) = lines.try_recv() else { break };
            if !batch.take(&line) {
                next = Some(line);
            }
        }
        shared.queued_bytes.fetch_sub(batch.text.len(), Ordering::Relaxed);
        shared.lost(output.write_batch(&batch));
        progress.send_modify(|done| *done += batch.ends.len() as u64);
    }
}

/// Lines that are written together.
#[derive(Default)]
struct Batch {
    text: Vec<u8>,
    /// Where each line ends.
    ends: Vec<usize>,
    /// Most bytes of several lines.
    room: usize,
}

impl Batch {
    /// Holds `line` alone.
    fn start(&mut self, line: &str) {
        self.text.clear();
        self.ends.clear();
        self.add(line);
    }

    /// Takes `line`, too, if there is room.
    fn take(&mut self, line: &str) -> bool {
        let fits = self.text.len() + line.len() <= self.room;
        if fits {
            self.add(line);
        }
        fits
    }

    fn add(&mut self, line: &str) {
        self.text.extend_from_slice(line.as_bytes());
        self.ends.push(self.text.len());
    }

    /// How many lines are not wholly within the first `bytes`.
    fn beyond(&self, bytes: usize) -> u64 {
        self.ends.iter().filter(|end| **end > bytes).count() as u64
    }
}

/// An open target.
struct Output {
    file: File,
    /// Set where the target can be opened again.
    path: Option<PathBuf>,
    checked: Instant,
    /// The end of a line whose beginning is in the file already, when the disk was full in the middle
    /// of it: what comes next must not stand on the same line.
    owed: Vec<u8>,
}

impl Output {
    /// A second handle to a standard stream: std's own is buffered and would split lines.
    fn descriptor(stream: impl AsFd) -> io::Result<Self> {
        let file = File::from(stream.as_fd().try_clone_to_owned()?);
        Ok(Self { file, path: None, checked: Instant::now(), owed: Vec::new() })
    }

    fn path(path: &Path) -> io::Result<Self> {
        let file = append(path)?;
        let (path, checked) = (Some(path.to_owned()), Instant::now());
        Ok(Self { file, path, checked, owed: Vec::new() })
    }

    /// How much is written with one call.
    fn batch_bytes(&self) -> usize {
        let is_file = self.file.metadata().is_ok_and(|target| target.is_file());
        if is_file { BATCH_BYTES } else { PIPE_BATCH_BYTES }
    }

    /// Gives how many lines were lost.
    fn write_batch(&mut self, batch: &Batch) -> u64 {
        let lost = self.follow_rotation();
        let finished = write_whole(&mut self.file, &self.owed);
        self.owed.drain(..finished);
        if !self.owed.is_empty() {
            return lost + batch.beyond(0);
        }
        let mut written = write_whole(&mut self.file, &batch.text);
        let again = self.path.as_ref().filter(|_| written < batch.text.len());
        if let Some(file) = again.and_then(|path| append(path).ok()) {
            if identity(&file) != identity(&self.file) {
                // The line that was broken off is written again from its start.
                written = batch.ends.iter().rfind(|end| **end <= written).copied().unwrap_or(0);
            }
            self.file = file;
            written += write_whole(&mut self.file, &batch.text[written..]);
        }
        let whole = written == 0 || batch.ends.contains(&written);
        let next = batch.ends.iter().copied().find(|end| *end > written);
        if let Some(end) = next.filter(|_| !whole) {
            self.owed.extend_from_slice(&batch.text[written..end]);
            written = end;
        }
        lost + batch.beyond(written)
    }

    /// Opens the path again once it names another file than ours, or none. Gives how many lines were
    /// lost by that: one whose end was owed to the old file.
    fn follow_rotation(&mut self) -> u64 {
        let Some(path) = &self.path else { return 0 };
        if self.checked.elapsed() < ROTATION_CHECK {
            return 0;
        }
        self.checked = Instant::now();
        let named = std::fs::metadata(path).map(|m| (m.dev(), m.ino())).ok();
        // Where the path cannot be opened the old file stays the better place.
        if identity(&self.file) != named
            && let Ok(file) = append(path)
        {
            self.file = file;
            return u64::from(!std::mem::take(&mut self.owed).is_empty());
        }
        0
    }
}

/// Which file it is, whatever it is called.
fn identity(file: &File) -> Option<(u64, u64)> {
    file.metadata().map(|m| (m.dev(), m.ino())).ok()
}

fn append(path: &Path) -> io::Result<File> {
    OpenOptions::new().append(true).create(true).open(path)
}

/// One `write` for everything; more only where the kernel takes less. Someone else may have made a
/// shared pipe non-blocking: this thread may wait for it. Gives how many bytes were written before an
/// error, if there was one.
fn write_whole(file: &mut File, bytes: &[u8]) -> usize {
    let mut written = 0;
    while written < bytes.len() {
        match file.write(&bytes[written..]) {
            Ok(0) => break,
            Ok(n) => written += n,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                thread::sleep(Duration::from_millis(5));
            }
            Err(_) => break,
        }
    }
    written
}

#[cfg(test)]
mod tests {
    use super::*;

    fn batch(lines: &[&str]) -> Batch {
        let mut batch = Batch { room: BATCH_BYTES, ..Batch::default() };
        lines.iter().for_each(|line| batch.add(line));
        batch
    }

    /// T-57: a line that the disk had no room for is ended once there is room, and none is ever glued to
    /// another. (A file larger than the process may write is refused byte by byte as a full disk is;
    /// that limit is not to be set for other tests, so here the state after it is.)
    #[test]
    fn a_line_broken_off_is_ended_before_the_next() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("log");
        let mut output = Output::path(&path).expect("open");
        assert_eq!(output.write_batch(&batch(&["one\n", "tw"])), 0);
        output.owed = b"o\n".to_vec();
        assert_eq!(output.write_batch(&batch(&["three\n"])), 0);
        assert_eq!(std::fs::read_to_string(&path).expect("read"), "one\ntwo\nthree\n");

        // What is owed to a file that is gone is lost, and is not written into the next.
        output.owed = b"rest\n".to_vec();
        std::fs::rename(&path, dir.path().join("old")).expect("renamed");
        output.checked = Instant::now().checked_sub(ROTATION_CHECK).expect("up that long");
        assert_eq!(output.write_batch(&batch(&["four\n"])), 1);
        assert_eq!(std::fs::read_to_string(&path).expect("read"), "four\n");

        // While there is still no room, nothing else is written either.
        let mut output = Output::path(Path::new("/dev/full")).expect("open");
        output.owed = b"rest\n".to_vec();
        assert_eq!(output.write_batch(&batch(&["five\n", "six\n"])), 2);
        assert_eq!(output.owed, b"rest\n");
    }
}
