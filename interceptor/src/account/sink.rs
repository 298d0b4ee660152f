//! Where lines go: stdout, stderr or a file, without ever blocking a connection (T-57).
//!
//! A record becomes its line where it was made; one thread writes the lines, each with one `write`
//! call, so that lines of several writers to one file or pipe never mix.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use tokio::sync::watch;

use super::Record;

/// Lines that may wait for the writer.
const QUEUE_LINES: usize = 16 * 1024;
/// Bytes of lines that may wait for the writer: hostile fields can make each line long (T-51).
const QUEUE_BYTES: usize = 16 * 1024 * 1024;
/// How often a file is compared with what its path names now, to notice a rotation.
const ROTATION_CHECK: Duration = Duration::from_secs(1);

/// The access log: cheap to clone, shared by every connection.
#[derive(Debug, Clone)]
pub struct AccessLog {
    sink: Arc<Sink>,
}

/// Where lines go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LogTarget {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
    /// A file, appended to; made if absent.
    File(PathBuf),
    /// Nowhere.
    Off,
}

/// How lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Encoding {
    /// LOG-1.
    #[default]
    Text,
    /// LOG-30.
    Json,
}

/// What the mesh config, Telemetry and flags make of the log together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogSettings {
    /// Where to.
    pub target: LogTarget,
    /// As what.
    pub encoding: Encoding,
}

/// Records that [`AccessLog::memory`] collected, oldest first.
#[derive(Debug, Clone, Default)]
pub struct Captured(Arc<Mutex<Vec<Record>>>);

#[derive(Debug)]
enum Sink {
    Off,
    Memory(Captured),
    Lines(Lines),
}

/// The near end of the writer's queue.
#[derive(Debug)]
struct Lines {
    encoding: Encoding,
    queue: SyncSender<String>,
    handed_over: AtomicU64,
    shared: Arc<Shared>,
    /// How many lines the writer is done with.
    done: watch::Receiver<u64>,
}

/// What both ends of the queue count.
#[derive(Debug, Default)]
struct Shared {
    queued_bytes: AtomicUsize,
    dropped: AtomicU64,
}

impl AccessLog {
    /// Opens the target and starts the writer. The writer ends when the last clone is gone.
    ///
    /// # Errors
    /// The target cannot be opened, or no thread can be started.
    pub fn open(settings: &LogSettings) -> io::Result<Self> {
        let output = match &settings.target {
            LogTarget::Off => return Ok(Self { sink: Arc::new(Sink::Off) }),
            LogTarget::Stdout => Output::descriptor(io::stdout())?,
            LogTarget::Stderr => Output::descriptor(io::stderr())?,
            LogTarget::File(path) => Output::path(path)?,
        };
        let (queue, lines) = sync_channel(QUEUE_LINES);
        let (progress, done) = watch::channel(0);
        let shared = Arc::new(Shared::default());
        let writers_share = Arc::clone(&shared);
        thread::Builder::new()
            .name("access-log".into())
            .spawn(move || write_lines(&lines, output, &writers_share, &progress))?;
        let sink = Lines {
            encoding: settings.encoding,
            queue,
            handed_over: AtomicU64::new(0),
            shared,
            done,
        };
        Ok(Self { sink: Arc::new(Sink::Lines(sink)) })
    }

    /// A log that keeps its records, for whoever wants to look at them instead of at lines.
    pub fn memory() -> (Self, Captured) {
        let captured = Captured::default();
        (Self { sink: Arc::new(Sink::Memory(captured.clone())) }, captured)
    }

    /// Hands one record to the writer. Never blocks: a full queue drops the line and counts it.
    pub fn write(&self, record: Record) {
        match &*self.sink {
            Sink::Off => {}
            Sink::Memory(captured) => captured.lock().push(record),
            Sink::Lines(lines) => lines.hand_over(super::line(lines.encoding, &record)),
        }
    }

    /// Lines lost so far, because the queue was full or the target refused them.
    pub fn dropped(&self) -> u64 {
        match &*self.sink {
            Sink::Off | Sink::Memory(_) => 0,
            Sink::Lines(lines) => lines.shared.dropped.load(Ordering::Relaxed),
        }
    }

    /// Waits until every line handed over so far is written (or was refused by the target).
    pub async fn flush(&self) {
        if let Sink::Lines(lines) = &*self.sink {
            let goal = lines.handed_over.load(Ordering::Acquire);
            // An error says that the writer is gone: then nothing is left to wait for.
            let _ = lines.done.clone().wait_for(|done| *done >= goal).await;
        }
    }
}

impl Captured {
    /// A copy of the records so far.
    pub fn records(&self) -> Vec<Record> {
        self.lock().clone()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Record>> {
        // A push that panicked left the list whole.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Lines {
    fn hand_over(&self, line: String) {
        let bytes = line.len();
        let queued = self.shared.queued_bytes.fetch_add(bytes, Ordering::Relaxed);
        if queued + bytes <= QUEUE_BYTES && self.queue.try_send(line).is_ok() {
            self.handed_over.fetch_add(1, Ordering::Release);
        } else {
            self.shared.queued_bytes.fetch_sub(bytes, Ordering::Relaxed);
            self.shared.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// The writer: ends when every [`AccessLog`] is gone and the queue is empty.
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::account::format::tests::tcp_record;

    fn to_file(path: &Path) -> AccessLog {
        let target = LogTarget::File(path.to_owned());
        AccessLog::open(&LogSettings { target, encoding: Encoding::Text }).expect("opens")
    }

    /// T-55, T-57: what was handed over is in the file after a flush, in order, after what was
    /// there before.
    #[tokio::test]
    async fn file_is_appended_to() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("access.log");
        std::fs::write(&path, "before\n").expect("writes");
        let log = to_file(&path);
        for bytes in 0..100 {
            log.write(Record { bytes_sent: bytes, ..tcp_record() });
        }
        log.flush().await;
        let text = std::fs::read_to_string(&path).expect("reads");
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines.len(), 101);
        assert_eq!(lines[0], "before");
        for (n, line) in lines[1..].iter().enumerate() {
            assert!(line.contains(&format!("\"-\" 892 {n} 2082 -")), "{line}");
        }
        assert_eq!(log.dropped(), 0);
    }

    /// T-57: a rotated file is left for a new one of the old name.
    #[tokio::test]
    async fn rotation_is_followed() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("access.log");
        let log = to_file(&path);
        log.write(tcp_record());
        log.flush().await;
        std::fs::rename(&path, dir.path().join("access.log.1")).expect("renames");
        tokio::time::sleep(ROTATION_CHECK + Duration::from_millis(50)).await;
        log.write(tcp_record());
        log.flush().await;
        for name in ["access.log", "access.log.1"] {
            let text = std::fs::read_to_string(dir.path().join(name)).expect("reads");
            assert_eq!(text.lines().count(), 1, "{name}");
        }
    }

    /// T-57: a full disk costs lines, which are counted, and nothing else.
    #[tokio::test]
    async fn full_disk_is_counted() {
        let log = to_file(Path::new("/dev/full"));
        log.write(tcp_record());
        log.write(tcp_record());
        log.flush().await;
        assert_eq!(log.dropped(), 2);
    }

    /// T-57: a reader that never reads fills pipe and queue; the caller goes on, drops add up.
    #[test]
    fn stuck_reader_never_blocks() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("fifo");
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).expect("makes");
        // Both ends, so that opening does not wait and nobody ever reads.
        let _reader = OpenOptions::new().read(true).write(true).open(&path).expect("opens");
        let log = to_file(&path);
        let started = Instant::now();
        for _ in 0..QUEUE_LINES + 4096 {
            log.write(tcp_record());
        }
        assert!(started.elapsed() < Duration::from_secs(20));
        let Sink::Lines(lines) = &*log.sink else { panic!("lines") };
        let taken = lines.handed_over.load(Ordering::Acquire);
        assert!(log.dropped() > 2000, "{}", log.dropped());
        assert_eq!(taken + log.dropped(), (QUEUE_LINES + 4096) as u64);
    }

    /// `Off` takes records and gives nothing.
    #[tokio::test]
    async fn off_and_memory() {
        let off =
            AccessLog::open(&LogSettings { target: LogTarget::Off, encoding: Encoding::Json })
                .expect("opens");
        off.write(tcp_record());
        off.flush().await;
        assert_eq!(off.dropped(), 0);
        let (log, captured) = AccessLog::memory();
        log.clone().write(tcp_record());
        assert_eq!(captured.records(), [tcp_record()]);
    }
}
