//! Policies of many hosts: the time to start, the memory, the time to take one more host, and what
//! a connection costs under it.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::check;
use crate::job::{Job, Until, Work};
use crate::machine::resident_kib;
use crate::peers::{envoy_set_hosts, envoy_with_hosts};
use crate::place::{Kind, Place, Tools, world};
use crate::policy;
use crate::report::Row;
use crate::rounds::Pace;
use crate::scenario::{FORBIDDEN, Service};
use crate::serve::Servers;
use crate::stats::{Better, median, ratio, spread};

/// How long a host may take to be allowed.
const PATIENCE: Duration = Duration::from_secs(120);
/// How long a name may take to come into the kernel's table.
const LEARNING: Duration = Duration::from_secs(3);
/// For memory to settle after the start.
const SETTLE: Duration = Duration::from_secs(1);

/// Measures one program under a policy of so many hosts, against `direct`.
pub(crate) fn run(
    id: &'static str,
    hosts: usize,
    kind: Kind,
    tools: &Tools,
    direct: &mut Place,
    pace: Pace,
) -> Result<Row> {
    let world = world()?;
    for number in 0..=hosts {
        world.zone.set(&policy::host(number), &[policy::address(number).into()]);
    }
    let servers = Servers::start(&world.internet, Arc::clone(&world.authority))?;
    let file = world.file("hosts.yaml", &policy::hosts(hosts))?;
    let begun = Instant::now();
    let mut place = match (kind, tools.peers.envoy()) {
        (Kind::Envoy, Some(program)) => {
            let envoy = envoy_with_hosts(program, &world, hosts)?;
            Place::with_peer(kind, tools, world, servers, Some(envoy))?
        }
        _ => Place::ours(kind, tools, world, servers, &["-f", &file, "--fast-path", "true"])?,
    };
    until_allowed(&mut place, hosts - 1).context("the last host")?;
    let start = begun.elapsed();
    thread::sleep(SETTLE);
    let memory = resident_kib(&place.processes())?;
    let last = policy::address(hosts - 1);
    refused(&mut place, FORBIDDEN, last)?;
    refused(&mut place, &policy::host(hosts), policy::address(hosts))?;

    until_direct(&mut place, hosts - 1)?;
    let connects = connects(&mut place, direct, hosts - 1, pace)?;

    let begun = Instant::now();
    if kind == Kind::Envoy {
        envoy_set_hosts(place.world(), hosts + 1)?;
    } else {
        let partial = place.world().file("hosts.yaml.new", &policy::hosts(hosts + 1))?;
        fs::rename(partial, &file)?;
    }
    until_allowed(&mut place, hosts).context("the host that was added")?;
    let added = begun.elapsed();

    Ok(Row {
        scenario: id,
        rss_mib: Some(memory as f64 / 1024.0),
        start_ms: Some(start.as_secs_f64() * 1e3),
        add_ms: Some(added.as_secs_f64() * 1e3),
        ..connects
    })
}

/// New TLS connections to this host, one at a time, in rounds with `direct`.
fn connects(place: &mut Place, direct: &mut Place, number: usize, pace: Pace) -> Result<Row> {
    let before = place.flows()?;
    let (mut ratios, mut p50, mut p99) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..pace.rounds {
        let until = Until::Milliseconds(pace.milliseconds);
        let job = Service::Tls.job(Kind::Direct, Work::Connect, 1, until);
        let bare = direct.run(&job)?;
        check::done(&job, &bare)?;
        let to = SocketAddr::from((policy::address(number), job.to.port()));
        let job = Job { name: policy::host(number), to, ..job };
        let ours = place.run(&job)?;
        check::done(&job, &ours)?;
        ratios.push(ratio(Better::Less, ours.p50_us, bare.p50_us));
        p50.push(ours.p50_us);
        p99.push(ours.p99_us);
    }
    let tier = match (place.flows()?, before) {
        (Some(now), Some(before)) if now.since(before).proxy == 0 => "name",
        _ => "relay",
    };
    Ok(Row {
        ratio: Some(median(&ratios)),
        spread: Some(spread(&ratios)),
        p50_us: Some(median(&p50)),
        p99_us: Some(median(&p99)),
        rounds: ratios.len(),
        ..Row::new("", tier, place.kind().peer())
    })
}

fn job(work: Work, name: &str, address: Ipv4Addr) -> Job {
    let job = Service::Tls.job(Kind::Direct, work, 1, Until::Operations(1));
    Job { name: name.to_owned(), to: SocketAddr::from((address, job.to.port())), ..job }
}

/// Connects again and again until it is let through.
fn until_allowed(place: &mut Place, number: usize) -> Result<()> {
    let job = job(Work::Connect, &policy::host(number), policy::address(number));
    let deadline = Instant::now() + PATIENCE;
    loop {
        let report = place.run(&job)?;
        match report.failure {
            None => return Ok(()),
            Some(failure) if Instant::now() > deadline => bail!("still refused: {failure}"),
            Some(_) => thread::sleep(Duration::from_millis(5)),
        }
    }
}

/// Connects until the name tier takes it, a while at most: of many names not all are resolved before
/// somebody connects. Which tier it is then is the program's own choice.
fn until_direct(place: &mut Place, number: usize) -> Result<()> {
    let deadline = Instant::now() + LEARNING;
    while let Some(before) = place.flows()? {
        until_allowed(place, number)?;
        let direct = place.flows()?.is_some_and(|now| now.since(before).name > 0);
        if direct || Instant::now() > deadline {
            break;
        }
        thread::sleep(Duration::from_millis(100));
    }
    Ok(())
}

fn refused(place: &mut Place, name: &str, address: Ipv4Addr) -> Result<()> {
    match place.run(&job(Work::Refused, name, address))?.failure {
        None => Ok(()),
        Some(failure) => bail!("{name}: {failure}"),
    }
}
