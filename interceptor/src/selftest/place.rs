//! A room with those who lend in it, and what is tried there.

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use futures_util::future::try_join_all;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::time::timeout;

use super::borrowed::{self, Ask, Lender};
use super::inside::{self, Job, Order, Shelf, Tried};
use super::judge;
use super::room::{self, Room};
use super::way::{Target, Way};
use super::{Home, Mode, Options, SelftestError, VERB};
use crate::workloads::command::{Launch, Launched};

/// Ways under way at once, in each mode: most of them wait.
const AT_ONCE: usize = 5;
/// How long all ways of one mode may take in one room.
const PATIENCE: Duration = Duration::from_secs(120);
/// How long a process inside may take to begin.
const START: Duration = Duration::from_secs(10);
/// The first of the ports by which ways that share an address are told apart. Below those that the
/// kernel gives to clients.
const FIRST_PORT: u16 = 20_000;

/// What each way met in each mode, and whether it arrived.
pub(super) type Results = HashMap<(Mode, &'static str), (Tried, bool)>;

/// A room with those who lend in it.
pub(super) struct Place {
    name: &'static str,
    pub(super) room: Room,
    prefix: String,
    files: PathBuf,
    /// Outside, and inside.
    lenders: [PathBuf; 2],
    /// Ports of the proxy's listeners, or of what stands in for them.
    pub(super) doors: (u16, u16),
    /// Who lends inside, as long as we hold the other end.
    _lender: Inside,
}

impl Place {
    /// Makes room and lenders; the doors are for the caller to say.
    ///
    /// # Errors
    /// A part of it cannot be made.
    pub(super) async fn new(
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
    ///
    /// # Errors
    /// A process in the room did not do its part, or the capture lost packets.
    pub(super) async fn try_in_all_modes(
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
        let tried = try_join_all(all).await?;
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

    fn target(&self, mode: Mode, number: u16, interceptor: &str) -> Target {
        Target::new(mode as u8, number, |target| {
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
                let target = Target::new(mode as u8, *number, |_| {});
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
    let (near, child) = (Arc::clone(&room.near), room.child.path().to_owned());
    let (ready, made) = mpsc::channel();
    thread::spawn(move || {
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
            .make_in(files, inside::listen)
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
            files: Vec::new(),
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
