//! After many connections by the name tier nothing of them is left in the kernel's tables, and the
//! log has every one of them, or says how many it lost.
//!
//! `INTERCEPTOR_CONNECTIONS=200000` makes it longer.

use std::env;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use interceptor_tests::hellos::{HONEST, HOSTILE, Random};
use interceptor_tests::log::Line;
use interceptor_tests::probe::{Case, How, Outcome, probe};
use interceptor_tests::product::{Interceptor, Running, binary};
use interceptor_tests::servers::witness::Witness;
use interceptor_tests::world::{World, kernel_tests};

const CLIENT: &str = env!("CARGO_BIN_EXE_interceptor-test-client");
const PORT: u16 = 443;
const CONNECTIONS: usize = 20_000;
const THREADS: usize = 48;
/// Connections that one client makes: their cases and outcomes are text in memory.
const AT_ONCE: usize = 20_000;

#[test]
fn nothing_is_left_and_every_byte_is_accounted_for() -> Result<()> {
    if !kernel_tests() {
        return Ok(());
    }
    let total = match env::var("INTERCEPTOR_CONNECTIONS") {
        Ok(text) => text.parse().context("INTERCEPTOR_CONNECTIONS")?,
        Err(_) => CONNECTIONS,
    };
    let world = World::bare()?;
    let witness = Witness::start(&world.internet, &[PORT])?;
    let more = "  resolution: NONE\n  addresses: [10.9.0.0/16]\n";
    let entry = world.entry("allowed.test", PORT, "TLS", more)?;
    let mesh = world.file("mesh.yaml", "protocolDetectionTimeout: 1s\n")?;
    let flags = ["--outbound", "registry-only", "--fast-path", "true", "-f", &entry];
    let flags = [&flags[..], &["--mesh-config", &mesh]].concat();
    let running = Interceptor::new(&world, &binary(), &flags).start()?;
    running.wait_for_entries("NAMES", 1)?;

    let mut random = Random::new(200_000);
    let (mut made, mut echoed) = (0, 0);
    while made < total {
        let count = AT_ONCE.min(total - made);
        let cases: Vec<Case> = (0..count).map(|_| case(&mut random)).collect();
        let limit = Duration::from_secs(60 + count as u64 / 100);
        let probed = probe(&world, &running, CLIENT, &cases, THREADS, limit)?;
        for (case, probed) in cases.iter().zip(&probed) {
            ensure!(probed.outcome != Outcome::Silent, "{case}: {probed}");
        }
        echoed += probed.iter().filter(|probed| probed.passed()).count();
        made += count;
    }
    assert!(echoed > total / 4, "{echoed} of {total}");

    for table in ["PENDING", "HANDOVERS"] {
        running.wait_for_entries(table, 0)?;
    }
    let (lines, lost) = wait_for_lines(&running, total)?;
    assert_eq!(lines.len() as u64 + lost, total as u64, "lines, and lost ones");
    let arrived: u64 = witness.arrivals().iter().map(|arrival| arrival.bytes).sum();
    let logged = lines.iter().map(|line| -> Result<u64> {
        let line = Line::parse(line).map_err(|error| anyhow::anyhow!("{error}"))?;
        // The log says what the proxy received from the client: what the client sent.
        Ok(line.field("BYTES_RECEIVED").parse()?)
    });
    let logged: u64 = logged.sum::<Result<u64>>()?;
    eprintln!("{total} connections, {echoed} echoed, {lost} records lost, {logged} bytes");
    if lost == 0 {
        assert_eq!(logged, arrived, "bytes in the log and at the far side");
    } else {
        assert!(logged <= arrived, "{logged} bytes in the log, {arrived} at the far side");
    }
    Ok(())
}

/// Allowed, refused, unfinished, or closed before any of that is told.
fn case(random: &mut Random) -> Case {
    let ip = Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 9, 0, 1)) + random.below(65_000) as u32);
    let name = if random.percent(70) { "allowed.test" } else { "refused.test" };
    let (_, make) = HONEST[random.below(4)];
    let whole = make(random, name);
    let (how, bytes) = match random.below(20) {
        // Unfinished, and waited for; or left.
        0 => (How::Whole, whole[..1 + random.below(whole.len() - 1)].to_vec()),
        1..3 => (How::Leave, whole[..1 + random.below(whole.len() - 1)].to_vec()),
        3 => (How::Leave, Vec::new()),
        4..6 => (How::Leave, whole),
        6 => (How::Whole, random.pick(&HOSTILE[1..16]).1(random, name)),
        _ => (How::Whole, whole),
    };
    Case { to: SocketAddr::from((ip, PORT)), how, bytes }
}

/// The log's lines once they are complete, and how many records the kernel lost.
fn wait_for_lines(running: &Running<'_>, total: usize) -> Result<(Vec<String>, u64)> {
    let mut before = usize::MAX;
    loop {
        let lost = running.counter("flow_record_lost")? + running.counter("refusal_record_lost")?;
        let lines = running.lines();
        if lines.len() as u64 + lost >= total as u64 || lines.len() == before {
            return Ok((lines, lost));
        }
        before = lines.len();
        std::thread::sleep(Duration::from_millis(1500));
    }
}
