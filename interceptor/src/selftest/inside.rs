//! What runs inside a room, as processes of this program: one that tries ways, each in a process of its
//! own, and one that lends sockets.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Instant;

use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use nix::unistd::alarm;
use serde::{Deserialize, Serialize};
use socket2::{Domain, Socket, Type};

use super::borrowed::{Ask, Loan};
use super::sys;
use super::talk;
use super::way::{self, Target, Way};

/// Seconds after which a way's process is ended, whatever it waits for.
const LIFE: u32 = 15;

/// The hidden verb by which this program starts itself.
pub const VERB: &str = "selftest-inside";

/// What a process inside is told: a line of JSON.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Order {
    /// Try these, so many at once; a [`Tried`] comes back for each, as a line.
    Try {
        /// What is to be tried.
        jobs: Vec<Job>,
        /// How many at once.
        at_once: usize,
    },
    /// Make these sockets now, say so with an empty line, and lend until the conversation ends.
    Lend {
        /// Where it is asked.
        socket: PathBuf,
        /// What is made at once.
        early: Vec<Ask>,
    },
}

/// One way, and what it is aimed at.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Job {
    /// [`Way::id`].
    pub(super) id: String,
    /// Its target.
    pub(super) target: Target,
}

/// What a way met. Never a verdict: that is the canary's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Tried {
    /// [`Way::id`].
    pub(super) id: String,
    /// What it met.
    pub(super) met: Met,
    /// How long it took, in microseconds.
    pub(super) micros: u64,
}

/// What a way met.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Met {
    /// It did all that it wanted; how that ended.
    Done(String),
    /// A system call refused.
    Refused(String),
    /// Its process ended otherwise: it was not tried.
    Broken(String),
}

impl Met {
    /// For people.
    pub(super) fn text(&self) -> &str {
        match self {
            Self::Done(text) | Self::Refused(text) | Self::Broken(text) => text,
        }
    }
}

/// The hidden verb. With a socket the order comes from there; without, one job from standard input.
/// Must run before any other thread does: some ways make namespaces of their own.
///
/// # Errors
/// Who gave the order is gone, or it cannot be read.
pub fn main(socket: Option<&Path>) -> io::Result<()> {
    let Some(path) = socket else { return one() };
    let mut lines = BufReader::new(UnixStream::connect(path)?);
    let mut line = String::new();
    lines.read_line(&mut line)?;
    let stream = lines.into_inner();
    match serde_json::from_str(&line)? {
        Order::Try { jobs, at_once } => try_all(&jobs, at_once, &stream),
        Order::Lend { socket, early } => {
            let lender = Shelf::fill(early)?;
            let listener = listen(&socket)?;
            (&stream).write_all(b"\n")?;
            thread::spawn(move || lender.serve(&listener, None));
            // Until the other end closes.
            (&stream).read_to_end(&mut Vec::new()).map(drop)
        }
    }
}

/// One way, in this very process.
fn one() -> io::Result<()> {
    let mut text = String::new();
    io::stdin().read_to_string(&mut text)?;
    let job: Job = serde_json::from_str(&text)?;
    let way = find(&job.id).ok_or_else(|| io::Error::other("no such way"))?;
    alarm::set(LIFE);
    let start = Instant::now();
    let met = match (way.attempt)(&job.target) {
        Ok(text) => Met::Done(text),
        Err(error) => Met::Refused(talk::name_of(&error)),
    };
    let micros = u64::try_from(start.elapsed().as_micros()).unwrap_or(u64::MAX);
    let tried = Tried { id: job.id, met, micros };
    writeln!(io::stdout(), "{}", serde_json::to_string(&tried)?)
}

fn find(id: &str) -> Option<&'static Way> {
    way::controls().chain(way::ways()).find(|way| way.id == id)
}

/// Each job in a process of its own, those that take longest first.
fn try_all(jobs: &[Job], at_once: usize, stream: &UnixStream) -> io::Result<()> {
    let mut queue: Vec<&Job> = jobs.iter().collect();
    queue.sort_by_key(|job| std::cmp::Reverse(find(&job.id).map(|way| way.within.limit())));
    let next = AtomicUsize::new(0);
    let report = Mutex::new(stream);
    let work = || -> io::Result<()> {
        while let Some(job) = queue.get(next.fetch_add(1, Ordering::Relaxed)) {
            let tried = in_a_process(job).unwrap_or_else(|error| Tried {
                id: job.id.clone(),
                met: Met::Broken(error.to_string()),
                micros: 0,
            });
            let line = format!("{}\n", serde_json::to_string(&tried)?);
            let mut stream = report.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            stream.write_all(line.as_bytes())?;
        }
        Ok(())
    };
    thread::scope(|scope| {
        let workers: Vec<_> = (0..at_once).map(|_| scope.spawn(work)).collect();
        workers.into_iter().try_for_each(|worker| {
            worker.join().unwrap_or_else(|_| Err(io::Error::other("a worker panicked")))
        })
    })
}

fn in_a_process(job: &Job) -> io::Result<Tried> {
    let mut child = Command::new("/proc/self/exe")
        .arg(VERB)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(serde_json::to_string(job)?.as_bytes())?;
    }
    let output = child.wait_with_output()?;
    if output.status.signal() == Some(libc::SIGALRM) {
        let met = Met::Done(format!("still waiting after {LIFE} s"));
        return Ok(Tried { id: job.id.clone(), met, micros: u64::from(LIFE) * 1_000_000 });
    }
    serde_json::from_slice(&output.stdout).map_err(|_| {
        let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        io::Error::other(format!("its process ended ({}) {said}", output.status))
    })
}

/// Sockets that were made before, and how to make others.
#[derive(Debug)]
pub(super) struct Shelf {
    early: Mutex<Vec<(Ask, OwnedFd)>>,
}

impl Shelf {
    /// Makes what is asked for early.
    ///
    /// # Errors
    /// One cannot be made.
    pub(super) fn fill(early: Vec<Ask>) -> io::Result<Self> {
        let made: io::Result<Vec<_>> =
            early.into_iter().map(|ask| Ok((ask.clone(), make(&ask, None)?))).collect();
        Ok(Self { early: Mutex::new(made?) })
    }

    /// Lends to whoever asks, for ever. `cgroup` is what cgroups are lent of.
    pub(super) fn serve(&self, listener: &UnixListener, cgroup: Option<&Path>) {
        for stream in listener.incoming().flatten() {
            // Who asks for what cannot be made sees its question unanswered.
            let _ = self.lend(&stream, cgroup);
        }
    }

    fn lend(&self, stream: &UnixStream, cgroup: Option<&Path>) -> io::Result<()> {
        let mut line = String::new();
        BufReader::new(stream).read_line(&mut line)?;
        let ask: Ask = serde_json::from_str(&line)?;
        let socket = if ask.early {
            let mut early = self.early.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            let place = early.iter().position(|(have, _)| *have == ask);
            place.map(|place| early.swap_remove(place).1).ok_or(io::ErrorKind::NotFound)?
        } else {
            make(&ask, cgroup)?
        };
        let fds = [socket.as_raw_fd()];
        let control = [ControlMessage::ScmRights(&fds)];
        let byte = [io::IoSlice::new(b"!")];
        let fd = stream.as_fd().as_raw_fd();
        sendmsg::<()>(fd, &byte, &control, MsgFlags::empty(), None)?;
        Ok(())
    }
}

/// Makes one loan, in the network namespace of the calling thread.
fn make(ask: &Ask, cgroup: Option<&Path>) -> io::Result<OwnedFd> {
    let directory = || cgroup.ok_or(io::ErrorKind::Unsupported);
    let any = |port| SocketAddr::from((Ipv4Addr::UNSPECIFIED, port));
    let connected = |kind| {
        let socket = Socket::new(Domain::for_address(ask.to), kind, None)?;
        // Where the interface drops it there is no answer at all.
        socket.connect_timeout(&ask.to.into(), talk::PATIENCE)?;
        Ok::<_, io::Error>(socket.into())
    };
    match ask.loan {
        Loan::Tcp => Ok(talk::tcp(ask.to)?.into()),
        Loan::TcpBound => {
            let socket = talk::tcp(ask.to)?;
            socket.bind(&any(0).into())?;
            Ok(socket.into())
        }
        Loan::TcpConnected => connected(Type::STREAM),
        Loan::Udp => Ok(Socket::new(Domain::for_address(ask.to), Type::DGRAM, None)?.into()),
        Loan::UdpConnected => connected(Type::DGRAM),
        Loan::Raw => sys::socket(libc::AF_INET, libc::SOCK_RAW, 253),
        Loan::Packet => sys::socket(libc::AF_PACKET, libc::SOCK_DGRAM, 0),
        Loan::Cgroup => Ok(File::open(directory()?)?.into()),
        Loan::CgroupProcs => {
            Ok(File::options().write(true).open(directory()?.join("cgroup.procs"))?.into())
        }
    }
}

/// A unix socket that every user may connect to.
///
/// # Errors
/// The path is taken, or not ours to write.
pub(super) fn listen(path: &Path) -> io::Result<UnixListener> {
    use std::os::unix::fs::PermissionsExt;
    let listener = UnixListener::bind(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o666))?;
    Ok(listener)
}
