//! The load generator: a process in the workload's place that does jobs, one after the other.

use std::io::{self, BufRead, Write};
use std::path::Path;
use std::sync::{Arc, Barrier};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use rustls::ClientConfig;

use crate::client::{self, Duplex};
use crate::job::{Job, PATTERN, Report, Until, Work};
use crate::stats::percentile;

/// What the load generator says first.
pub(crate) const READY: &str = "ready";

/// Reads jobs from standard input until it ends, and answers each on standard output.
pub(crate) fn serve_jobs(authority: &Path) -> Result<()> {
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, most, most)?;
    let tls = client::tls(authority)?;
    // What an earlier job opened stays open until the next one.
    let mut held = Vec::new();
    println!("{READY}");
    for line in io::stdin().lock().lines() {
        held.clear();
        let job: Job = serde_json::from_str(&line?).context("a job")?;
        let report = run(&job, &tls, &mut held);
        println!("{}", serde_json::to_string(&report)?);
        io::stdout().flush()?;
    }
    Ok(())
}

/// What one worker did.
#[derive(Default)]
struct Done {
    connections: u64,
    bytes: u64,
    times: Vec<Duration>,
    held: Vec<Box<dyn Duplex>>,
    failure: Option<String>,
}

fn run(job: &Job, tls: &Arc<ClientConfig>, held: &mut Vec<Box<dyn Duplex>>) -> Report {
    // All connect first, then all begin.
    let gate = Barrier::new(job.at_once + 1);
    let (all, seconds) = thread::scope(|scope| {
        let worker = || scope.spawn(|| work(job, tls, &gate));
        let workers: Vec<_> = (0..job.at_once).map(|_| worker()).collect();
        gate.wait();
        let begun = Instant::now();
        let dead = |_| Done { failure: Some("a worker panicked".into()), ..Done::default() };
        let all: Vec<Done> =
            workers.into_iter().map(|worker| worker.join().unwrap_or_else(dead)).collect();
        (all, begun.elapsed().as_secs_f64())
    });
    let mut report = Report { seconds, ..Report::default() };
    let mut times = Vec::new();
    for done in all {
        report.connections += done.connections;
        report.bytes += done.bytes;
        report.failure = report.failure.or(done.failure);
        times.extend(done.times);
        held.extend(done.held);
    }
    report.operations = times.len() as u64;
    times.sort_unstable();
    let us = |share| percentile(&times, share).map_or(0.0, |time| time.as_secs_f64() * 1e6);
    (report.p50_us, report.p99_us) = (us(0.5), us(0.99));
    report
}

fn work(job: &Job, tls: &Arc<ClientConfig>, gate: &Barrier) -> Done {
    let mut done = Done::default();
    let stays = matches!(job.work, Work::RoundTrip | Work::Bulk | Work::Request);
    let mut stream = None;
    if stays {
        done.connections = 1;
        match client::open(job, tls) {
            Ok(opened) => stream = Some(opened),
            Err(error) => done.failure = Some(format!("connecting: {error}")),
        }
    }
    gate.wait();
    if done.failure.is_some() {
        return done;
    }
    let mut buffer = vec![0; PATTERN.len()];
    let text = client::request_text(&job.name);
    let begun = Instant::now();
    let mut number = 0;
    while match job.until {
        Until::Milliseconds(limit) => begun.elapsed() < Duration::from_millis(limit),
        Until::Operations(limit) => number < limit,
    } {
        let before = Instant::now();
        let result = match (&mut stream, job.work) {
            (Some(stream), Work::RoundTrip) => client::round_trip(stream, number),
            (Some(stream), Work::Bulk) => client::bulk(stream, &mut buffer),
            (Some(stream), _) => client::request(stream, &text, &mut buffer),
            (None, _) => {
                done.connections += 1;
                once(job, tls, &text, &mut buffer, &mut done.held)
            }
        };
        done.times.push(before.elapsed());
        match result {
            Ok(bytes) => done.bytes += bytes,
            Err(error) => {
                done.failure = Some(format!("operation {number}: {error}"));
                return done;
            }
        }
        number += 1;
    }
    done
}

/// An operation with a connection of its own.
fn once(
    job: &Job,
    tls: &Arc<ClientConfig>,
    text: &[u8],
    buffer: &mut [u8],
    held: &mut Vec<Box<dyn Duplex>>,
) -> io::Result<u64> {
    let opened = client::open(job, tls);
    if job.work == Work::Refused {
        // Without TLS a refusal can come as late as the first byte.
        return match opened.and_then(|mut stream| client::one_byte(&mut *stream)) {
            Err(error) if client::is_refusal(&error) => Ok(0),
            Err(error) => Err(error),
            Ok(_) => Err(io::Error::other("it was let through and should have been refused")),
        };
    }
    let mut stream = opened?;
    if job.work == Work::Connect {
        return client::one_byte(&mut *stream);
    }
    let bytes = if job.tls {
        client::round_trip(&mut *stream, 0)?
    } else {
        client::request(&mut *stream, text, buffer)?
    };
    held.push(stream);
    Ok(bytes)
}
