//! A workload that stays: connections that it keeps, and others that it makes again and again, with
//! a file that says how each is doing.

use std::fmt::Write as _;
use std::fs;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use clap::Args;
use nix::sched::{CloneFlags, setns};
use nix::sys::socket::{MsgFlags, SockaddrStorage, sendto};
use socket2::{Domain, Protocol, Socket, Type};

use super::plain::request;
use super::{error_name, tls};
use crate::pattern;

/// Bytes of one exchange with an echo service.
const PIECE: usize = 256;
/// A kept connection without an answer for so long is silent.
const SILENT: Duration = Duration::from_millis(500);
/// How long one of the repeated connections may take, and one of those that are counted.
const PATIENCE: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(10)];
/// How often the report is written.
const REPORT: Duration = Duration::from_millis(20);

/// What [`super::Job::Dwell`] does until it is killed.
#[derive(Args, Clone, Debug)]
pub struct Dwell {
    /// The file that says how it goes: `NAME STATE COUNT FAILURE` a line, the name being the option's
    /// value, the failure the last one or `-`
    report: PathBuf,
    /// Connects to an echo service, keeps the connection and compares what comes back
    #[arg(long)]
    keep: Vec<SocketAddr>,
    /// The same over its own loopback; named `loopback`
    #[arg(long)]
    loopback: bool,
    /// A UDP socket with this peer, which sends and receives
    #[arg(long)]
    datagrams: Vec<SocketAddr>,
    /// Connects to an echo service for each exchange anew
    #[arg(long)]
    again: Vec<SocketAddr>,
    /// Gets a page over a connection of its own each time, ADDRESS/HOST
    #[arg(long)]
    get: Vec<String>,
    /// The same by TLS, ADDRESS/NAME
    #[arg(long)]
    hello: Vec<String>,
    /// Tries to reach this address in several ways, and counts the tries
    #[arg(long)]
    attempt: Vec<SocketAddr>,
    /// Answers on this port as an echo service
    #[arg(long)]
    echo: Option<u16>,
    /// Moves its main thread to this network namespace once everything is connected
    #[arg(long)]
    netns: Option<PathBuf>,
    /// Milliseconds between two exchanges, and two connections
    #[arg(long, default_value_t = 5)]
    pause: u64,
    /// Does everything so often and ends, instead of going on until it is killed
    #[arg(long)]
    times: Option<u64>,
}

/// How one of them is doing.
#[derive(Clone, Debug)]
struct Doing {
    name: String,
    state: Arc<Mutex<State>>,
    pause: Duration,
    patience: Duration,
    times: u64,
}

#[derive(Clone, Debug)]
struct State {
    now: String,
    count: u64,
    failure: String,
}

impl Doing {
    fn set(&self, state: &str) {
        let mut state_now = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state_now.now != state {
            state.clone_into(&mut state_now.now);
        }
    }

    fn count(&self, state: &str) {
        self.set(state);
        self.state.lock().unwrap_or_else(PoisonError::into_inner).count += 1;
    }

    fn fail(&self, error: &io::Error) {
        let name = error_name(error).replace(' ', "-");
        self.set(&name);
        self.state.lock().unwrap_or_else(PoisonError::into_inner).failure = name;
    }
}

/// Starts everything, and reports for ever or until all is done.
pub(super) fn dwell(what: &Dwell) -> Result<String> {
    let (mut all, mut threads) = (Vec::new(), Vec::new());
    let pause = Duration::from_millis(what.pause);
    let times = what.times.unwrap_or(u64::MAX);
    let patience = PATIENCE[usize::from(what.times.is_some())];
    let mut start = |name: String, work: Box<dyn FnOnce(&Doing) + Send>| {
        let state = State { now: "new".to_owned(), count: 0, failure: "-".to_owned() };
        let doing = Doing { name, state: Arc::new(Mutex::new(state)), pause, patience, times };
        all.push(doing.clone());
        threads.push(thread::spawn(move || work(&doing)));
    };
    if let Some(port) = what.echo {
        let listener = TcpListener::bind((Ipv6Addr::UNSPECIFIED, port)).context("echo")?;
        thread::spawn(move || echo(&listener));
    }
    for to in what.keep.iter().copied() {
        let stream = TcpStream::connect(to).with_context(|| to.to_string())?;
        start(to.to_string(), Box::new(move |doing| keep(stream, doing)));
    }
    if what.loopback {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let stream = TcpStream::connect(listener.local_addr()?)?;
        thread::spawn(move || echo(&listener));
        start("loopback".to_owned(), Box::new(move |doing| keep(stream, doing)));
    }
    for to in what.datagrams.iter().copied() {
        let socket = UdpSocket::bind(any(to))?;
        socket.connect(to)?;
        socket.set_read_timeout(Some(SILENT))?;
        start(format!("udp/{to}"), Box::new(move |doing| datagrams(&socket, doing)));
    }
    for to in what.again.iter().copied() {
        start(
            to.to_string(),
            Box::new(move |doing| again(doing, || exchange_once(to, doing.patience))),
        );
    }
    for page in &what.get {
        let (to, host) = place(page)?;
        start(
            page.clone(),
            Box::new(move |doing| again(doing, || get_once(to, &host, doing.patience))),
        );
    }
    for page in &what.hello {
        let (to, name) = place(page)?;
        start(
            page.clone(),
            Box::new(move |doing| again(doing, || tls_once(to, &name, doing.patience))),
        );
    }
    for to in what.attempt.iter().copied() {
        start(to.to_string(), Box::new(move |doing| attempt(to, doing)));
    }
    if let Some(netns) = &what.netns {
        let file = fs::File::open(netns).with_context(|| netns.display().to_string())?;
        setns(file, CloneFlags::CLONE_NEWNET)?;
    }
    let (report, fresh) = (&what.report, what.report.with_extension("new"));
    loop {
        let mut text = String::new();
        for Doing { name, state, .. } in &all {
            let State { now, count, failure } =
                state.lock().unwrap_or_else(PoisonError::into_inner).clone();
            writeln!(text, "{name} {now} {count} {failure}")?;
        }
        fs::write(&fresh, text)?;
        fs::rename(&fresh, report)?;
        if what.times.is_some() && threads.iter().all(JoinHandle::is_finished) {
            return Ok("done".into());
        }
        thread::sleep(REPORT);
    }
}

/// `ADDRESS/NAME`.
fn place(text: &str) -> Result<(SocketAddr, String)> {
    let (to, name) = text.split_once('/').with_context(|| format!("{text} is no ADDRESS/NAME"))?;
    Ok((to.parse()?, name.to_owned()))
}

/// Sends back what comes, on every connection.
fn echo(listener: &TcpListener) {
    for mut stream in listener.incoming().flatten() {
        thread::spawn(move || {
            let mut buffer = [0; PIECE];
            while let Ok(length @ 1..) = stream.read(&mut buffer) {
                if stream.write_all(&buffer[..length]).is_err() {
                    return;
                }
            }
        });
    }
}

/// Exchanges pieces of the pattern until something is wrong.
fn keep(mut stream: TcpStream, doing: &Doing) {
    let _ = stream.set_nodelay(true);
    let _ = stream.set_read_timeout(Some(SILENT));
    let mut offset = 0;
    for _ in 0..doing.times {
        if let Err(error) = exchange(&mut stream, offset, doing) {
            return doing.fail(&error);
        }
        offset += PIECE as u64;
        doing.count("alive");
        thread::sleep(doing.pause);
    }
}

/// Sends a piece and has it back, however long that takes.
fn exchange(stream: &mut TcpStream, offset: u64, doing: &Doing) -> io::Result<()> {
    let mut piece = [0; PIECE];
    pattern::fill(offset, &mut piece);
    stream.write_all(&piece)?;
    let mut got = 0;
    while got < PIECE {
        match stream.read(&mut piece[got..]) {
            Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
            Ok(length) => got += length,
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                doing.set("silent");
            }
            Err(error) => return Err(error),
        }
    }
    if pattern::matches(offset, &piece) { Ok(()) } else { Err(ErrorKind::InvalidData.into()) }
}

fn datagrams(socket: &UdpSocket, doing: &Doing) {
    for _ in 0..doing.times {
        match socket.send(b"anyone?").and_then(|_| socket.recv(&mut [0; 64])) {
            Ok(_) => doing.count("alive"),
            Err(error) => doing.fail(&error),
        }
        thread::sleep(doing.pause);
    }
}

/// Does something again and again; counts how often it went well.
fn again(doing: &Doing, mut once: impl FnMut() -> io::Result<()>) {
    for _ in 0..doing.times {
        match once() {
            Ok(()) => doing.count("ok"),
            Err(error) => doing.fail(&error),
        }
        thread::sleep(doing.pause);
    }
}

fn connect(to: SocketAddr, patience: Duration) -> io::Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&to, patience)?;
    stream.set_read_timeout(Some(patience))?;
    stream.set_write_timeout(Some(patience))?;
    Ok(stream)
}

fn exchange_once(to: SocketAddr, patience: Duration) -> io::Result<()> {
    let mut stream = connect(to, patience)?;
    let mut piece = [0; PIECE];
    pattern::fill(0, &mut piece);
    stream.write_all(&piece)?;
    stream.read_exact(&mut piece)?;
    if pattern::matches(0, &piece) { Ok(()) } else { Err(ErrorKind::InvalidData.into()) }
}

fn get_once(to: SocketAddr, host: &str, patience: Duration) -> io::Result<()> {
    let mut stream = connect(to, patience)?;
    stream.write_all(request(host).as_bytes())?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    if answer.starts_with(b"HTTP/1.1 200 ") { Ok(()) } else { Err(ErrorKind::InvalidData.into()) }
}

fn tls_once(to: SocketAddr, name: &str, patience: Duration) -> io::Result<()> {
    let mut stream = connect(to, patience)?;
    let mut connection = tls::client(name, 0).map_err(io::Error::other)?;
    let mut tls = rustls::Stream::new(&mut connection, &mut stream);
    tls.write_all(request(name).as_bytes())?;
    let mut status = [0; "HTTP/1.1 200 ".len()];
    tls.read_exact(&mut status)?;
    if status == *b"HTTP/1.1 200 " { Ok(()) } else { Err(ErrorKind::InvalidData.into()) }
}

/// An ordinary connection with a request, one with Fast Open, and a datagram, in turn.
fn attempt(to: SocketAddr, doing: &Doing) {
    for _ in 0..doing.times {
        let deadline = Instant::now() + doing.patience;
        if let Ok(mut stream) = TcpStream::connect_timeout(&to, doing.patience) {
            let _ = stream.set_read_timeout(Some(deadline - Instant::now().min(deadline)));
            let _ = stream.write_all(request("forbidden.test").as_bytes());
            let _ = stream.read(&mut [0; 64]);
        }
        let _ = fast_open(to);
        let _ = UdpSocket::bind(any(to)).and_then(|socket| socket.send_to(b"out?", to));
        doing.count("tried");
        thread::sleep(doing.pause);
    }
}

fn fast_open(to: SocketAddr) -> io::Result<()> {
    let socket = Socket::new(Domain::for_address(to), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_nonblocking(true)?;
    let address = SockaddrStorage::from(to);
    let flags = MsgFlags::from_bits_retain(libc::MSG_FASTOPEN);
    sendto(socket.as_raw_fd(), b"out?", &address, flags)?;
    Ok(())
}

fn any(like: SocketAddr) -> SocketAddr {
    match like {
        SocketAddr::V4(_) => (IpAddr::from(Ipv4Addr::UNSPECIFIED), 0).into(),
        SocketAddr::V6(_) => (IpAddr::from(Ipv6Addr::UNSPECIFIED), 0).into(),
    }
}
