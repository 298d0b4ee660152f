//! Notices that policy files changed: inotify where it works, a look twice a second everywhere.

use std::fs;
use std::future::pending;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use tokio::io::unix::AsyncFd;
use tokio::time::{Instant, sleep, timeout};

use super::Sources;
use super::load::expand;

/// How often files are looked at where inotify stays silent: network file systems, symbolic links
/// to elsewhere.
const POLL: Duration = Duration::from_millis(500);

/// Files that did not change for this long are taken to be whole.
const QUIET: Duration = Duration::from_millis(100);

/// Files that never come to rest are read after this long all the same.
const RESTLESS: Duration = Duration::from_millis(500);

/// What happens to the entries of a directory when a file of it gets new content.
const EVENTS: AddWatchFlags = AddWatchFlags::IN_CLOSE_WRITE
    .union(AddWatchFlags::IN_CREATE)
    .union(AddWatchFlags::IN_DELETE)
    .union(AddWatchFlags::IN_MOVED_FROM)
    .union(AddWatchFlags::IN_MOVED_TO)
    .union(AddWatchFlags::IN_ATTRIB);

/// Watches the files that policy comes from.
#[derive(Debug)]
pub struct Watch {
    paths: Vec<PathBuf>,
    seen: Vec<Look>,
    events: Option<AsyncFd<OwnedFd>>,
}

/// One file as it looked, without its content.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Look {
    path: PathBuf,
    /// Device, inode, size and times; `None` where there is no such file.
    stat: Option<[i128; 5]>,
}

impl Watch {
    /// Starts to watch. What changes from now on is noticed: call it before loading. Must be called
    /// within a runtime.
    pub fn new(sources: &Sources) -> Self {
        let paths: Vec<_> = sources.files.iter().chain(&sources.mesh_config).cloned().collect();
        let events = directories(&paths).map_err(|error| {
            tracing::info!("policy files are polled: inotify: {error}");
        });
        Self { seen: look(&paths), events: events.ok(), paths }
    }

    /// Returns once files differ from what they were at the last return (or the start) and have
    /// come to rest.
    pub async fn changed(&mut self) {
        loop {
            // Either way the files themselves say whether something happened.
            let _ = timeout(POLL, event(self.events.as_ref())).await;
            let mut now = look(&self.paths);
            if now == self.seen {
                // A directory where other files change all the time is not looked at all the time.
                sleep(QUIET).await;
                continue;
            }
            let until = Instant::now() + RESTLESS;
            loop {
                sleep(QUIET).await;
                let next = look(&self.paths);
                let rests = next == now;
                now = next;
                if rests || Instant::now() >= until {
                    break;
                }
            }
            self.seen = now;
            return;
        }
    }
}

/// Watches every directory that holds one of `paths`, or is one.
fn directories(paths: &[PathBuf]) -> std::io::Result<AsyncFd<OwnedFd>> {
    let inotify = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC)?;
    for path in paths {
        let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
        let directory = match path.is_dir() {
            true => path.as_path(),
            false => parent.unwrap_or(Path::new(".")),
        };
        inotify.add_watch(directory, EVENTS)?;
    }
    readable(inotify)
}

#[expect(unsafe_code, reason = "AsyncFd::register asks for a promise about the descriptor")]
fn readable(inotify: Inotify) -> std::io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: An OwnedFd is open and the same for as long as it lives, and the AsyncFd owns it.
    Ok(unsafe { AsyncFd::register(OwnedFd::from(inotify)) }?)
}

/// Waits for an event and takes all that are there; for ever without inotify.
async fn event(events: Option<&AsyncFd<OwnedFd>>) {
    let Some(events) = events else { return pending().await };
    let Ok(mut ready) = events.readable().await else { return pending().await };
    let mut buffer = [0; 4096];
    while nix::unistd::read(events.get_ref(), &mut buffer).is_ok_and(|length| length > 0) {}
    ready.clear_ready();
}

fn look(paths: &[PathBuf]) -> Vec<Look> {
    let files = paths.iter().flat_map(|path| expand(path).unwrap_or_else(|_| vec![path.clone()]));
    files
        .map(|path| {
            let stat = fs::metadata(&path).ok().map(|meta| {
                let time = |seconds: i64, nanos: i64| {
                    i128::from(seconds) * 1_000_000_000 + i128::from(nanos)
                };
                [
                    meta.dev().into(),
                    meta.ino().into(),
                    meta.size().into(),
                    time(meta.mtime(), meta.mtime_nsec()),
                    time(meta.ctime(), meta.ctime_nsec()),
                ]
            });
            Look { path, stat }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whether a change is noticed within a second.
    async fn notices(watch: &mut Watch) -> bool {
        timeout(Duration::from_secs(1), watch.changed()).await.is_ok()
    }

    fn watch(files: &[&Path]) -> Watch {
        let files = files.iter().map(|path| path.to_path_buf()).collect();
        Watch::new(&Sources { files, ..Sources::default() })
    }

    #[tokio::test]
    async fn every_way_to_change_a_file_is_noticed() {
        let dir = tempfile::tempdir().expect("a directory");
        let at = |name: &str| dir.path().join(name);
        fs::write(at("a.yaml"), "a").expect("written");
        for polled in [false, true] {
            let mut watch = watch(&[dir.path(), &at("a.yaml")]);
            if polled {
                watch.events = None;
            }
            assert!(!notices(&mut watch).await, "nothing happened");
            fs::write(at("a.yaml"), "b").expect("written");
            assert!(notices(&mut watch).await, "rewritten");
            fs::write(at("new"), "c").expect("written");
            fs::rename(at("new"), at("a.yaml")).expect("renamed");
            assert!(notices(&mut watch).await, "replaced");
            fs::write(at("b.yaml"), "").expect("written");
            assert!(notices(&mut watch).await, "added");
            fs::remove_file(at("b.yaml")).expect("removed");
            assert!(notices(&mut watch).await, "removed");
            fs::write(at("note.txt"), "x").expect("written");
            assert!(!notices(&mut watch).await, "not a policy file");
        }
    }

    /// Kubernetes mounts a ConfigMap as links through `..data`, which it swaps.
    #[tokio::test]
    async fn swapped_links_are_noticed() {
        let dir = tempfile::tempdir().expect("a directory");
        let at = |name: &str| dir.path().join(name);
        for version in ["..1", "..2"] {
            fs::create_dir(at(version)).expect("made");
            fs::write(at(version).join("p.yaml"), version).expect("written");
        }
        let link = |to: &str, name: &str| std::os::unix::fs::symlink(to, at(name)).expect("linked");
        link("..1", "..data");
        link("..data/p.yaml", "p.yaml");
        let mut watch = watch(&[&at("p.yaml")]);
        link("..2", "..data_tmp");
        fs::rename(at("..data_tmp"), at("..data")).expect("swapped");
        assert!(notices(&mut watch).await);
    }

    /// A change that comes between two calls is not lost, and one that takes long comes in one.
    #[tokio::test]
    async fn changes_are_gathered() {
        let dir = tempfile::tempdir().expect("a directory");
        let file = dir.path().join("a.yaml");
        fs::write(&file, "").expect("written");
        let mut watch = watch(&[&file]);
        let writer = file.clone();
        let writing = tokio::spawn(async move {
            for n in 0..5 {
                fs::write(&writer, "x".repeat(n)).expect("written");
                sleep(Duration::from_millis(30)).await;
            }
        });
        assert!(notices(&mut watch).await);
        assert!(writing.is_finished(), "not before the last write");
        assert!(!notices(&mut watch).await, "once");
        fs::write(&file, "between").expect("written");
        sleep(QUIET).await;
        assert!(notices(&mut watch).await);
    }
}
