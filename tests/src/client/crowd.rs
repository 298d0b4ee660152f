//! Many connections at once, held in ways that cost their peer something; and one client among them
//! that only wants its answers.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsConnector;

use super::tls::client_config;
use super::{PATIENCE, error_name};
use crate::hellos::{HONEST, Random};

/// Connects under way at the same time.
const CONNECTING: usize = 256;
/// The pause between two bytes of a slow one: no timer of idleness ever runs out.
const DRIP: Duration = Duration::from_millis(200);
/// How long a slow one goes on if nobody ends it.
const AT_LONGEST: Duration = Duration::from_secs(30);
/// Requests of one who is steady that are under way at the same time.
const STEADY: usize = 4;
/// The pause between two of these.
const PACE: Duration = Duration::from_millis(10);

/// What a connection of the crowd does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Manner {
    /// Nothing, until standard input ends
    Idle,
    /// A TLS hello for `www.google.com`, a byte at a time, until it is closed
    Hello,
    /// The head of an HTTP request, a byte at a time, until it is closed
    Head,
    /// Connects and resets
    Reset,
}

/// Opens `count` connections, says `connected` on a line of its own once all are, and when they
/// have ended how often each end came.
pub(super) fn crowd(to: SocketAddr, count: usize, manner: Manner) -> Result<String> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).with_context(|| format!("from {soft}"))?;
    runtime()?.block_on(async {
        let (done, _) = watch::channel(false);
        let connecting = Arc::new(Semaphore::new(CONNECTING));
        let mut tasks = JoinSet::new();
        let (connected, mut waiting) = tokio::sync::mpsc::channel::<()>(1);
        for _ in 0..count {
            let (connecting, connected) = (Arc::clone(&connecting), connected.clone());
            let mut done = done.subscribe();
            tasks.spawn(async move {
                let (start, stream) = {
                    let _turn = connecting.acquire_owned().await;
                    (Instant::now(), timeout(PATIENCE, TcpStream::connect(to)).await)
                };
                let stream = match stream {
                    Ok(Ok(stream)) => stream,
                    Ok(Err(error)) => return format!("connect-{}", error_name(&error)),
                    Err(_) => return "connect-timeout".to_owned(),
                };
                drop(connected);
                one(stream, start, manner, &mut done).await
            });
        }
        drop(connected);
        // Ends when the last task has dropped its end.
        let _ = waiting.recv().await;
        println!("connected");
        io::stdout().flush()?;
        if manner == Manner::Idle {
            tokio::task::spawn_blocking(wait_for_the_end).await?;
            done.send_replace(true);
        }
        let mut ends = BTreeMap::<String, usize>::new();
        while let Some(end) = tasks.join_next().await {
            *ends.entry(end?).or_default() += 1;
        }
        Ok(words(&ends))
    })
}

/// One connection, begun at `start`; its end in a word.
async fn one(
    mut stream: TcpStream,
    start: Instant,
    manner: Manner,
    done: &mut watch::Receiver<bool>,
) -> String {
    let bytes = match manner {
        Manner::Reset => {
            return stream.set_zero_linger().map_or_else(|e| error_name(&e), |()| "reset".into());
        }
        Manner::Idle => {
            let mut byte = [0];
            return tokio::select! {
                _ = done.wait_for(|done| *done) => "held".to_owned(),
                end = stream.read(&mut byte) => ended(&end),
            };
        }
        Manner::Hello => HONEST[4].1(&mut Random::new(1), "www.google.com"),
        Manner::Head => b"GET / HTTP/1.1\r\nHost: httpbin.org\r\nX-Slow: ".repeat(20),
    };
    let (mut read, mut write) = stream.split();
    let drip = async {
        for byte in bytes {
            // Refused bytes are no end: what is read tells it.
            let _ = write.write_all(&[byte]).await;
            sleep(DRIP).await;
        }
        std::future::pending::<()>().await;
    };
    let mut answer = Vec::new();
    let end = tokio::select! {
        () = drip => unreachable!("it waits for ever"),
        end = timeout(AT_LONGEST, read.read_to_end(&mut answer)) => end,
    };
    match end {
        Err(_) => "never-ended".to_owned(),
        Ok(_) => format!("ended-after-{}s", start.elapsed().as_secs()),
    }
}

fn ended(end: &io::Result<usize>) -> String {
    match end {
        Ok(0) => "closed".to_owned(),
        Ok(_) => "bytes".to_owned(),
        Err(error) => error_name(error),
    }
}

/// Requests, each on a connection of its own and a few at a time, until standard input ends: how many
/// were answered with 200, what became of the others, and how long the slowest took.
pub(super) fn steady(to: SocketAddr, host: &str, tls: bool) -> Result<String> {
    let tls = tls.then(|| anyhow::Ok(Arc::new(client_config(0)?))).transpose()?;
    runtime()?.block_on(async {
        let (done, _) = watch::channel(false);
        let mut tasks = JoinSet::new();
        for _ in 0..STEADY {
            let (done, host, tls) = (done.subscribe(), host.to_owned(), tls.clone());
            tasks.spawn(async move {
                let mut seen = Vec::new();
                while !*done.borrow() {
                    let start = Instant::now();
                    let result = match timeout(PATIENCE, request(to, &host, tls.as_ref())).await {
                        Ok(Ok(status)) => status,
                        Ok(Err(error)) => error_name(&error),
                        Err(_) => "timeout".to_owned(),
                    };
                    seen.push((result, start.elapsed()));
                    sleep(PACE).await;
                }
                seen
            });
        }
        tokio::task::spawn_blocking(wait_for_the_end).await?;
        done.send_replace(true);
        let (mut ends, mut times) = (BTreeMap::<String, usize>::new(), Vec::new());
        while let Some(seen) = tasks.join_next().await {
            for (result, took) in seen? {
                *ends.entry(result).or_default() += 1;
                times.push(took.as_millis());
            }
        }
        times.sort_unstable();
        let late = |part: usize| times.get(times.len() * part / 1000).copied().unwrap_or(0);
        Ok(format!(
            "{} p50-ms={} p99-ms={} p999-ms={}",
            words(&ends),
            late(500),
            late(990),
            late(999)
        ))
    })
}

async fn request(
    to: SocketAddr,
    host: &str,
    tls: Option<&Arc<ClientConfig>>,
) -> io::Result<String> {
    let stream = TcpStream::connect(to).await?;
    match tls {
        None => ask(stream, host).await,
        Some(config) => {
            let name = ServerName::try_from(host.to_owned()).map_err(io::Error::other)?;
            let connector = TlsConnector::from(Arc::clone(config));
            ask(connector.connect(name, stream).await?, host).await
        }
    }
}

async fn ask(mut stream: impl AsyncRead + AsyncWrite + Unpin, host: &str) -> io::Result<String> {
    let head = format!("GET / HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
    stream.write_all(head.as_bytes()).await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    Ok(answer.split(' ').nth(1).unwrap_or("no-answer").to_owned())
}

/// Returns when standard input does.
pub(super) fn wait_for_the_end() {
    let _ = io::copy(&mut io::stdin().lock(), &mut io::sink());
}

fn words(ends: &BTreeMap<String, usize>) -> String {
    let words: Vec<_> = ends.iter().map(|(end, times)| format!("{end}={times}")).collect();
    words.join(" ")
}

pub(super) fn runtime() -> io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()
}
