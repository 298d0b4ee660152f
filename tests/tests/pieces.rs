//! T-17 in the kernel: however a hello is cut and sent, the verdict is that of the whole one.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use anyhow::Result;
use interceptor_tests::hellos::{HONEST, Random};
use interceptor_tests::probe::{Case, How, Outcome, probe};
use interceptor_tests::product::{Interceptor, Running, binary};
use interceptor_tests::servers::witness::Witness;
use interceptor_tests::world::{World, kernel_tests};

const CLIENT: &str = env!("CARGO_BIN_EXE_interceptor-test-client");
const PORT: u16 = 443;
const LIMIT: Duration = Duration::from_secs(120);

/// The ways to send two pieces.
const WAYS: [fn(usize) -> How; 6] =
    [How::Split, How::Pause, How::NonBlocking, How::Writev, How::Sendfile, How::IoUring];

/// One name is allowed, in a network where every case has an address of its own.
fn start(world: &World) -> Result<Running<'_>> {
    let more = "  resolution: NONE\n  addresses: [10.9.0.0/16]\n";
    let entry = world.entry("allowed.test", PORT, "TLS", more)?;
    let flags = ["--outbound", "registry-only", "--fast-path", "true", "-f", &entry];
    let running = Interceptor::new(world, &binary(), &flags).start()?;
    running.wait_for_entries("NAMES", 1)?;
    Ok(running)
}

fn to(number: usize) -> SocketAddr {
    let ip = Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 9, 0, 1)) + number as u32);
    SocketAddr::new(IpAddr::V4(ip), PORT)
}

/// Runs the cases, the allowed name for every second one, and holds each to the whole's verdict.
fn verdicts_hold(pieces: Vec<(How, Vec<u8>, bool)>, world: &World) -> Result<()> {
    let witness = Witness::start(&world.internet, &[PORT])?;
    let running = start(world)?;
    let case = |(number, (how, bytes, _)): (usize, &(How, Vec<u8>, bool))| Case {
        to: to(number),
        how: *how,
        bytes: bytes.clone(),
    };
    let cases: Vec<Case> = pieces.iter().enumerate().map(case).collect();
    let probed = probe(world, &running, CLIENT, &cases, 32, LIMIT)?;
    let mut passed = Vec::new();
    for ((case, (.., allowed)), probed) in cases.iter().zip(&pieces).zip(&probed) {
        assert_eq!(probed.went_direct(), *allowed, "{case}: {probed}");
        match probed.outcome {
            Outcome::Echoed(seen, at) => passed.push((seen, at, case.bytes.len() as u64)),
            Outcome::Ended(_) => {}
            other => panic!("{case}: {other:?}"),
        }
    }
    let arrivals = witness.arrivals();
    let mut arrived: Vec<_> = arrivals.iter().map(|a| (a.peer.port(), a.local, a.bytes)).collect();
    arrived.sort_unstable();
    passed.sort_unstable();
    assert_eq!(arrived, passed, "nothing else reached anybody");
    assert!(passed.len() * 3 > cases.len() && passed.len() < cases.len());
    assert_eq!(running.counter("redirected")?, 0);
    running.wait_for_entries("PENDING", 0)
}

fn name(allowed: bool) -> &'static str {
    if allowed { "allowed.test" } else { "refused.test" }
}

#[test]
fn t_17_every_boundary_of_a_hello_in_every_way() -> Result<()> {
    if !kernel_tests() {
        return Ok(());
    }
    let world = World::bare()?;
    let mut random = Random::new(17);
    let mut pieces = Vec::new();
    for allowed in [true, false] {
        let (_, make) = HONEST[0];
        let bytes = make(&mut random, name(allowed));
        pieces.push((How::Bytes, bytes.clone(), allowed));
        for at in 1..bytes.len() {
            pieces.extend(WAYS.map(|way| (way(at), bytes.clone(), allowed)));
        }
    }
    assert!(pieces.len() > 1000, "{}", pieces.len());
    verdicts_hold(pieces, &world)
}

#[test]
fn t_17_a_thousand_hellos_cut_anywhere() -> Result<()> {
    if !kernel_tests() {
        return Ok(());
    }
    let world = World::bare()?;
    let mut random = Random::new(1000);
    let pieces = (0..1000).map(|number| {
        let allowed = number % 2 == 0;
        let (_, make) = HONEST[number % HONEST.len()];
        let bytes = make(&mut random, name(allowed));
        let at = 1 + random.below(bytes.len() - 1);
        // Behind the hello, its early data is no part of what is judged.
        let how = if random.percent(10) { How::Bytes } else { random.pick(&WAYS)(at) };
        (how, bytes, allowed)
    });
    let pieces = pieces.collect();
    verdicts_hold(pieces, &world)
}

/// TCP Fast Open: the SYN goes without its data, which is judged like any other.
#[test]
fn t_2_fast_open_carries_nothing_before_the_verdict() -> Result<()> {
    if !kernel_tests() {
        return Ok(());
    }
    let world = World::bare()?;
    // Clients need no cookie, and every listener takes data with a SYN.
    for (namespace, value) in [(&world.workload, "5"), (&world.internet, "1538")] {
        namespace.inside(|| fs::write("/proc/sys/net/ipv4/tcp_fastopen", value))??;
    }
    let capture = world.capture()?;
    let mut random = Random::new(2);
    let pieces = (0..40).map(|number| {
        let allowed = number % 2 == 0;
        let (_, make) = HONEST[number % 4];
        let bytes = make(&mut random, name(allowed));
        let at = if number % 3 == 0 { bytes.len() } else { 1 + random.below(bytes.len() - 1) };
        (How::FastOpen(at), bytes, allowed)
    });
    let pieces = pieces.collect();
    verdicts_hold(pieces, &world)?;
    let syns: Vec<_> = capture.packets().into_iter().filter(|packet| packet.is_syn()).collect();
    assert!(syns.len() >= 40, "{}", syns.len());
    assert!(syns.iter().all(|syn| syn.payload == 0), "{syns:?}");
    Ok(())
}
