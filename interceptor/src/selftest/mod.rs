//! `interceptor selftest`: every way out that we know, tried from inside a covered room, and judged by
//! what arrives at canaries that are ours.
//!
//! Two rooms are the same but for the interceptor that covers one of them (`room.rs`, `cover.rs`). In
//! each mode every way (`way.rs`, and a file for each family) is tried in the bare room first: one that
//! does not arrive there shows nothing and is not applicable. Then it is tried in the covered one. The
//! verdict is that of the far side (`judge.rs`), never that of the call.

mod allowed;
mod borrowed;

mod cover;
mod doors;
mod hello;
mod http;
mod identity;
mod inside;
mod judge;
mod raw;
mod report;
mod room;
mod servers;
mod sys;
mod talk;
mod tcp;
mod tls;
mod udp;
mod way;

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use caps::Capability;
use serde::{Deserialize, Serialize};
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::task::JoinSet;
use tokio::time::timeout;

use self::borrowed::{Ask, Lender};
use self::cover::Cover;
use self::inside::{Job, Order, Shelf, Tried};
use self::room::Room;
use crate::cli::Exit;
use crate::workloads::cgroup::{Cgroup, CgroupError, Hierarchy};
use crate::workloads::command::{Launch, LaunchError, Launched, RunAs};

pub use self::inside::{VERB, main as inside};
pub use self::report::{Finding, Mark, Report, Row};
pub use self::way::{Way, controls, ways};

/// Ways under way at once, in each mode: most of them wait.
const AT_ONCE: usize = 5;
/// How long all ways of one mode may take in one room.
const PATIENCE: Duration = Duration::from_secs(120);
/// How long a process inside may take to begin.
const START: Duration = Duration::from_secs(10);
/// The first of the ports by which ways that share an address are told apart. Below those that the
/// kernel gives to clients.
const FIRST_PORT: u16 = 20_000;

/// What a container's root has beside what COMMAND's keeps.
const CONTAINER: &[Capability] = &[Capability::CAP_NET_RAW, Capability::CAP_MKNOD];

/// As whom, and with which capabilities, ways are tried.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    /// Root with a container's default capabilities, CAP_NET_RAW among them.
    Container = 1,
    /// Root with what `run -- COMMAND` leaves.
    Command = 2,
    /// An ordinary user, without any capability.
    User = 3,
}

impl Mode {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Container, Self::Command, Self::User];

    /// Its name in tables and results.
    pub fn label(self) -> &'static str {
        match self {
            Self::Container => "container",
            Self::Command => "command",
            Self::User => "user",
        }
    }

    fn run_as(self, uid: u32) -> RunAs {
        match self {
            Self::Container | Self::Command => RunAs::Root,
            Self::User => RunAs::Invoker { uid, gid: uid, user: None },
        }
    }

    fn also_keep(self) -> &'static [Capability] {
        match self {
            Self::Container => CONTAINER,
            Self::Command | Self::User => &[],
        }
    }
}

/// What is to be tried.
#[derive(Debug, Clone)]
pub struct Options {
    /// Only ways and controls whose id contains this, or whose threat is this (`T-17`).
    pub only: Option<String>,
    /// The ordinary user.
    pub uid: u32,
    /// Directories that the workload finds empty, as with `run -- COMMAND`.
    pub hide: Vec<PathBuf>,
}

/// Why there is no result.
#[derive(Debug, thiserror::Error)]
pub enum SelftestError {
    /// `--only` fits nothing.
    #[error("no way and no control has {0:?} in its id or is of that threat; --list shows them")]
    NoMatch(String),
    /// A room could not be made.
    #[error("cannot make the room {name}: {source}")]
    Room {
        /// Which.
        name: String,
        /// Why not.
        source: io::Error,
    },
    /// The interceptor that is to be tested does not run as it should.
    #[error("the interceptor under test: {message}{}", .source.as_ref().map(ToString::to_string).unwrap_or_default())]
    Cover {
        /// What it said.
        message: String,
        /// What the system said.
        source: Option<io::Error>,
    },
    /// The capture could not keep up.
    #[error("the capture lost {0} packets, so it proves nothing; try again when less else runs")]
    Lost(u32),
    /// A process in a room did not do its part.
    #[error("a process in the room {room}: {source}")]
    Inside {
        /// Which room.
        room: String,
        /// What happened.
        source: io::Error,
    },
    /// Cgroups.
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    /// A process could not be started in a room.
    #[error(transparent)]
    Launch(#[from] LaunchError),
}

impl SelftestError {
    /// The status that a process ends with because of this.
    pub fn exit(&self) -> Exit {
        match self {
            Self::NoMatch(_) => Exit::Usage,
            Self::Cgroup(error) => error.exit(),
            Self::Launch(error) => error.exit(),
            Self::Room { .. } | Self::Cover { .. } | Self::Lost(_) | Self::Inside { .. } => {
                Exit::Internal
            }
        }
    }
}

/// Whether `--only` means this one.
pub fn is_meant(way: &Way, only: Option<&str>) -> bool {
    only.is_none_or(|only| {
        way.id.contains(only) || only.eq_ignore_ascii_case(&format!("T-{}", way.threat))
    })
}

/// Tries everything and judges it. Dropped early, it takes everything away as well.
///
/// # Errors
/// There is no result: a part of the test itself failed.
pub async fn run(options: &Options) -> Result<Report, SelftestError> {
    let started = Instant::now();
    let chosen: Vec<(u16, &Way)> =
        way::numbered().filter(|(_, way)| is_meant(way, options.only.as_deref())).collect();
    if chosen.is_empty() {
        return Err(SelftestError::NoMatch(options.only.clone().unwrap_or_default()));
    }
    let name = format!("selftest-{}", std::process::id());
    let prefix = format!("ix{:05x}", std::process::id() & 0xf_ffff);
    let home = Home::new()?;
    let mut bare = Place::new("bare", &home, &prefix, &chosen, options).await?;
    let mut covered = Place::new("covered", &home, &prefix, &chosen, options).await?;
    let cover = Cover::start(&covered.room, &name, home.files.path()).await?;
    covered.doors = cover.doors()?;
    let mut forwarder = JoinSet::new();
    let port = servers::gullible(&bare.room.near, &mut forwarder)
        .map_err(|source| SelftestError::Room { name: "bare".to_owned(), source })?;
    bare.doors = (port, port);

    let everything = |_: Mode, _: &Way| true;
    let in_bare = bare.try_in_all_modes(&chosen, &name, options, everything).await?;
    let got_out = |mode: Mode, way: &Way| {
        way::controls().any(|control| control.id == way.id)
            || in_bare.get(&(mode, way.id)).is_some_and(|(_, arrived)| *arrived)
    };
    let in_covered = covered.try_in_all_modes(&chosen, &name, options, got_out).await?;
    cover.stop()?;

    let rows = chosen.iter().map(|(_, way)| row(way, &in_bare, &in_covered)).collect();
    Ok(Report::new(rows, started.elapsed()))
}

/// What each way met in each mode, and whether it arrived.
type Results = HashMap<(Mode, &'static str), (Tried, bool)>;

fn row(way: &'static Way, bare: &Results, covered: &Results) -> Row {
    let control = way::controls().any(|control| control.id == way.id);
    let judged = |mode: Mode| {
        let key = (mode, way.id);
        let unbiased = bare.get(&key)?;
        if !control {
            return Some(report::judge(way, mode, unbiased, covered.get(&key)));
        }
        let mut without = report::judge_control(way, mode, unbiased);
        if without.mark.is_failure() {
            without.how = format!("without interceptor: {}", without.how);
            return Some(without);
        }
        covered.get(&key).map(|tried| report::judge_control(way, mode, tried))
    };
    let modes = Mode::ALL.into_iter().filter_map(judged).collect();
    Row { id: way.id, threat: way.threat, what: way.what, control, modes }
}

/// What goes away with the test: cgroups, and files.
struct Home {
    cgroup: Cgroup,
    files: TempDir,
}

impl Home {
    fn new() -> Result<Self, SelftestError> {
        use std::os::unix::fs::PermissionsExt;
        let readable = std::fs::Permissions::from_mode(0o755);
        let files = tempfile::Builder::new()
            .prefix("interceptor-selftest-")
            .permissions(readable)
            .tempdir()
            .map_err(|source| SelftestError::Room { name: "files".to_owned(), source })?;
        let cgroup = Hierarchy::discover()?
            .own()?
            .create(&format!("interceptor-selftest-rooms-{}", std::process::id()))?;
        Ok(Self { cgroup, files })
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        room::kill_all(&self.cgroup);
        if let Err(error) = self.cgroup.remove() {
            eprintln!("interceptor: {error}");
        }
    }
}

/// A room with those who lend in it.
struct Place {
    name: &'static str,
    room: Room,
    prefix: String,
    files: PathBuf,
    /// Outside, and inside.
    lenders: [PathBuf; 2],
    /// Ports of the proxy's listeners, or of what stands in for them.
    doors: (u16, u16),
    /// Who lends inside, as long as we hold the other end.
    _lender: Inside,
}

impl Place {
    async fn new(
        name: &'static str,
        home: &Home,
        prefix: &str,
        chosen: &[(u16, &Way)],
        options: &Options,
    ) -> Result<Self, SelftestError> {
        let room = Room::new(name, &home.cgroup, prefix).await?;
        let failed = |source| SelftestError::Room { name: name.to_owned(), source };
        room.open_to(options.uid).map_err(failed)?;
        let files = home.files.path().to_owned();
        let lenders = ["outside", "inside"].map(|who| files.join(format!("{name}-{who}")));
        lend_outside(&room, &lenders[0], early(chosen, Lender::Outside)).map_err(failed)?;
        let order =
            Order::Lend { socket: lenders[1].clone(), early: early(chosen, Lender::Inside) };
        // Ours, so it may see what a workload may not.
        let mut lender =
            Inside::start(name, &room, &files, Mode::Container, options.uid, vec![], &order)
                .await?;
        if lender.line().await?.is_none() {
            let source = io::Error::other("who lends sockets could not make them");
            return Err(SelftestError::Inside { room: name.to_owned(), source });
        }
        let prefix = prefix.to_owned();
        Ok(Self { name, room, prefix, files, lenders, doors: (0, 0), _lender: lender })
    }

    /// All ways that `wanted` wants, in all modes at the same time; those that seemed to hang once more
    /// by themselves, since the machine may have been busy.
    async fn try_in_all_modes(
        &self,
        chosen: &[(u16, &'static Way)],
        interceptor: &str,
        options: &Options,
        wanted: impl Fn(Mode, &Way) -> bool,
    ) -> Result<Results, SelftestError> {
        let jobs = |mode: Mode, wanted: &dyn Fn(&Way) -> bool| -> Vec<Job> {
            let of_mode = chosen.iter().filter(|(_, way)| wanted(way));
            of_mode
                .map(|(number, way)| Job {
                    id: way.id.to_owned(),
                    target: self.target(mode, *number, interceptor),
                })
                .collect()
        };
        let all = Mode::ALL.map(|mode| {
            let jobs = jobs(mode, &|way| wanted(mode, way));
            self.try_jobs(mode, jobs, AT_ONCE, options)
        });
        let tried = futures_util::future::try_join_all(all).await?;
        let mut tried: HashMap<(Mode, String), Tried> = Mode::ALL
            .into_iter()
            .zip(tried)
            .flat_map(|(mode, tried)| {
                tried.into_iter().map(move |one| ((mode, one.id.clone()), one))
            })
            .collect();
        for mode in Mode::ALL {
            let hung = |way: &Way| {
                let limit = way.within.limit();
                // What was lent once is not there a second time.
                borrowed::early(way.id).is_none()
                    && tried
                        .get(&(mode, way.id.to_owned()))
                        .is_some_and(|one| Duration::from_micros(one.micros) > limit)
            };
            for one in self.try_jobs(mode, jobs(mode, &hung), 1, options).await? {
                tried.insert((mode, one.id.clone()), one);
            }
        }
        self.room.settle().await?;
        let mut results = Results::new();
        for (number, way) in chosen {
            for mode in Mode::ALL {
                if let Some(one) = tried.remove(&(mode, way.id.to_owned())) {
                    let target = self.target(mode, *number, interceptor);
                    let arrived = self.room.record.shows(way.shows, &target);
                    results.insert((mode, way.id), (one, arrived));
                }
            }
        }
        Ok(results)
    }

    async fn try_jobs(
        &self,
        mode: Mode,
        jobs: Vec<Job>,
        at_once: usize,
        options: &Options,
    ) -> Result<Vec<Tried>, SelftestError> {
        if jobs.is_empty() {
            return Ok(Vec::new());
        }
        let count = jobs.len();
        let order = Order::Try { jobs, at_once };
        let hide = options.hide.clone();
        let mut inside =
            Inside::start(self.name, &self.room, &self.files, mode, options.uid, hide, &order)
                .await?;
        let read = async {
            let mut found = Vec::new();
            while let Some(line) = inside.line().await? {
                let tried: Tried =
                    serde_json::from_str(&line).map_err(|error| inside.failed(error.into()))?;
                found.push(tried);
            }
            Ok::<_, SelftestError>(found)
        };
        let failed = |text: &str| SelftestError::Inside {
            room: self.name.to_owned(),
            source: io::Error::other(text),
        };
        let found = timeout(PATIENCE, read).await.map_err(|_| failed("it did not end"))??;
        if found.len() == count { Ok(found) } else { Err(failed("it ended early")) }
    }

    fn target(&self, mode: Mode, number: u16, interceptor: &str) -> way::Target {
        way::Target::new(mode as u8, number, |target| {
            target.token = judge::token(&self.prefix, mode as u8, number);
            target.port = FIRST_PORT + 1024 * mode as u16 + number;
            target.doors = self.doors;
            target.interceptor = interceptor.to_owned();
            target.lenders = self.lenders.clone();
            target.far_mac = room::FAR_MAC;
        })
    }
}

/// What must be made before the cover is there.
fn early(chosen: &[(u16, &Way)], lender: Lender) -> Vec<Ask> {
    let mut asks = Vec::new();
    for (number, way) in chosen {
        if let Some((who, loan, port)) = borrowed::early(way.id)
            && who == lender
        {
            asks.extend(Mode::ALL.map(|mode| {
                let target = way::Target::new(mode as u8, *number, |_| {});
                Ask { loan, to: target.canary(port), early: true }
            }));
        }
    }
    asks
}

/// Lends from outside the cover: sockets of this process, made in the room's namespace by a thread that
/// stays there.
fn lend_outside(room: &Room, path: &Path, early: Vec<Ask>) -> io::Result<()> {
    let listener = inside::listen(path)?;
    let (near, child) = (std::sync::Arc::clone(&room.near), room.child.path().to_owned());
    let (ready, made) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let served = near.run(|| match Shelf::fill(early) {
            Ok(shelf) => {
                let _ = ready.send(Ok(()));
                shelf.serve(&listener, Some(&child));
            }
            Err(error) => drop(ready.send(Err(error))),
        });
        drop(served);
    });
    made.recv().map_err(io::Error::other)?
}

/// A process of ours in a room, and the conversation with it.
struct Inside {
    room: &'static str,
    lines: tokio::io::Lines<BufReader<UnixStream>>,
    _process: Launched,
}

impl Inside {
    async fn start(
        name: &'static str,
        room: &Room,
        files: &Path,
        mode: Mode,
        uid: u32,
        hide: Vec<PathBuf>,
        order: &Order,
    ) -> Result<Self, SelftestError> {
        let failed = |source| SelftestError::Inside { room: name.to_owned(), source };
        // A name that nobody had before: a conversation is had once.
        let socket = tempfile::Builder::new()
            .prefix("talk-")
            .make_in(files, |path| inside::listen(path))
            .map_err(failed)?;
        let listener = socket.as_file().try_clone().map_err(failed)?;
        listener.set_nonblocking(true).map_err(failed)?;
        let listener = UnixListener::from_std(listener).map_err(failed)?;
        let argv = ["/proc/self/exe", VERB, "--socket"].map(Into::into);
        let process = Launch {
            argv: argv.into_iter().chain([socket.path().into()]).collect(),
            cgroup: &room.cgroup,
            netns: Some(room.near.try_clone_fd().map_err(failed)?),
            etc_netns: None,
            run_as: mode.run_as(uid),
            keep_caps: false,
            also_keep: mode.also_keep(),
            hide,
            descriptors: None,
        }
        .spawn()?;
        let accepted = timeout(START, listener.accept()).await;
        let (mut stream, _) = accepted.map_err(|late| failed(late.into()))?.map_err(failed)?;
        let text = serde_json::to_string(order).map_err(|error| failed(error.into()))?;
        stream.write_all(format!("{text}\n").as_bytes()).await.map_err(failed)?;
        Ok(Self { room: name, lines: BufReader::new(stream).lines(), _process: process })
    }

    /// The next line that it says; none when it is through.
    async fn line(&mut self) -> Result<Option<String>, SelftestError> {
        let line = self.lines.next_line().await;
        line.map_err(|source| SelftestError::Inside { room: self.room.to_owned(), source })
    }

    fn failed(&self, source: io::Error) -> SelftestError {
        SelftestError::Inside { room: self.room.to_owned(), source }
    }
}
