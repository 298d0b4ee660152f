//! Where lines go, and what becomes of those that cannot go there.

use std::fs::OpenOptions;
use std::path::Path;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::*;
use crate::account::format::tests::tcp_record;
use crate::account::writer::{QUEUE_LINES, ROTATION_CHECK};

fn text_to(target: LogTarget) -> LogSettings {
    LogSettings::built_in(target, Encoding::Text)
}

fn to_file(path: &Path) -> AccessLog {
    AccessLog::open(&[text_to(LogTarget::File(path.to_owned()))]).expect("opens")
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

/// T-63, MESH-20: what settings were in force when is not asked of a clock that can be set; what
/// began before a change is written as it was then, whatever its start reads as.
#[tokio::test]
async fn t63_a_clock_that_jumps_sends_no_line_astray() {
    let dir = tempfile::tempdir().expect("a directory");
    let [old, new] = ["old.log", "new.log"].map(|name| dir.path().join(name));
    let log = to_file(&old);
    let before = Instant::now();
    log.replace(&[text_to(LogTarget::File(new.clone()))]).await.expect("opens");
    let day = Duration::from_secs(24 * 3600);
    let now = crate::clock::wall();
    for start in [now - day, now, now + day] {
        log.pen_at(before).write(Record { start, ..tcp_record() });
        log.pen_at(Instant::now()).write(Record { start, ..tcp_record() });
    }
    log.flush().await;
    for path in [&old, &new] {
        assert_eq!(std::fs::read_to_string(path).expect("reads").lines().count(), 3);
    }
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
    assert!(!log.fails());
    log.write(tcp_record());
    log.write(tcp_record());
    log.flush().await;
    assert_eq!(log.dropped(), 2);
    assert!(log.fails());
}

/// T-57: what could not be written yesterday says nothing of today.
#[tokio::test]
async fn a_target_that_takes_lines_again_fails_no_more() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("log");
    std::os::unix::fs::symlink("/dev/full", &path).expect("links");
    let log = to_file(&path);
    log.write(tcp_record());
    log.flush().await;
    assert!(log.fails());
    std::fs::remove_file(&path).expect("removes");
    log.write(tcp_record());
    log.flush().await;
    assert!(!log.fails());
    assert_eq!(log.dropped(), 1);
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
    let outputs = log.shared.outputs.load();
    let Output::Lines(_, lines) = &outputs.list[0] else { panic!("lines") };
    let taken = lines.progress.handed_over.load(Ordering::Acquire);
    assert!(log.dropped() > 2000, "{}", log.dropped());
    assert_eq!(taken + log.dropped(), (QUEUE_LINES + 4096) as u64);
    assert!(log.fails());
}

/// TEL-2: every provider has its own lines, in its own format, past its own filter.
#[tokio::test]
async fn several_outputs() {
    let dir = tempfile::tempdir().expect("a directory");
    let file = |name| LogTarget::File(dir.path().join(name));
    let bytes = Format::text("%BYTES_SENT%").expect("parses");
    let small = Filter::parse("response.size < 5").expect("parses");
    let log = AccessLog::open(&[
        LogSettings { target: file("a"), format: Arc::new(bytes.clone()), filter: None },
        LogSettings {
            target: file("b"),
            format: Arc::new(Format::text("x%BYTES_SENT%").expect("parses")),
            filter: Some(Arc::new(small)),
        },
        LogSettings { target: file("b"), format: Arc::new(bytes), filter: None },
    ])
    .expect("opens");
    for bytes_sent in [3, 7] {
        log.write(Record { bytes_sent, ..tcp_record() });
    }
    log.flush().await;
    let read = |name| std::fs::read_to_string(dir.path().join(name)).expect("reads");
    assert_eq!((read("a"), read("b")), ("3\n7\n".into(), "x3\n3\n7\n".into()));
}

/// MESH-20: settings change under writers; what began under the earlier ones is written by
/// them, what begins later is not, and what was lost stays counted.
#[tokio::test]
async fn settings_are_replaced() {
    let dir = tempfile::tempdir().expect("a directory");
    let file = |name| LogTarget::File(dir.path().join(name));
    let settings = |name, format: &str| LogSettings {
        target: file(name),
        format: Arc::new(Format::text(format).expect("parses")),
        filter: None,
    };
    let log = AccessLog::open(&[settings("a", "1"), text_to(LogTarget::File("/dev/full".into()))])
        .expect("opens");
    let held = log.clone();
    let begun = held.pen();
    held.write(tcp_record());
    log.replace(&[settings("a", "2 %REQ(X-A)%"), settings("b", "3")]).await.expect("opens");
    assert!(begun.wanted().request.is_empty());
    assert!(!held.pen().wanted().request.is_empty());
    held.write(tcp_record());
    log.replace(&[]).await.expect("opens");
    assert!(held.pen().wanted().request.is_empty());
    held.write(tcp_record());
    begun.write(tcp_record());
    log.flush().await;
    let read = |name| std::fs::read_to_string(dir.path().join(name)).expect("reads");
    assert_eq!((read("a"), read("b")), ("1\n2 -\n1\n".into(), "3\n".into()));
    assert_eq!(log.dropped(), 2);
    drop(begun);
    log.flush().await;
    let nowhere = LogTarget::File(dir.path().join("no/such/place"));
    log.replace(&[text_to(nowhere)]).await.expect_err("cannot be opened");
}

/// Without outputs it takes records and gives nothing.
#[tokio::test]
async fn off_and_memory() {
    let off = AccessLog::open(&[]).expect("opens");
    off.write(tcp_record());
    off.flush().await;
    assert_eq!(off.dropped(), 0);
    let (log, captured) = AccessLog::memory();
    log.clone().write(tcp_record());
    assert_eq!(captured.records(), [tcp_record()]);
}

/// TEL-1: a pod with outputs of its own has no others', a pod without has everybody's.
#[tokio::test]
async fn pods_have_outputs_of_their_own() {
    let dir = tempfile::tempdir().expect("a directory");
    let [all, own] = ["all.log", "own.log"].map(|name| dir.path().join(name));
    let log = to_file(&all);
    let everybody = [text_to(LogTarget::File(all.clone()))];
    let web = Arc::new(crate::workloads::testing::web_0());
    let record = |pod: Option<&Arc<PodIdentity>>| {
        let mut record = tcp_record();
        record.more.pod = pod.cloned();
        record
    };
    let other = Arc::new(PodIdentity { uid: "other".into(), ..PodIdentity::clone(&web) });
    let mut pods = PodOutputs::new();
    pods.insert(Arc::clone(&web.uid), vec![text_to(LogTarget::File(own.clone()))]);
    log.replace_each(&everybody, &pods).await.expect("opens");
    let before = log.pen();
    pods.insert(Arc::clone(&web.uid), Vec::new());
    for pod in [Some(&web), Some(&other), None] {
        log.write(record(pod));
    }
    log.replace_each(&everybody, &pods).await.expect("opens");
    for pod in [Some(&web), Some(&other), None] {
        log.write(record(pod));
    }
    // MESH-20.
    before.write(record(Some(&web)));
    log.flush().await;
    let lines = |path| std::fs::read_to_string(path).expect("reads").lines().count();
    assert_eq!((lines(&all), lines(&own)), (4, 2));
    assert_eq!(log.records_by_pod().len(), 2, "counted all the same");
}
