//! One policy, two engines: random policies and random flows through `decide` with the proxy's reader,
//! and through the loaded BPF programs with real sockets. They may differ in one way only: the kernel
//! hands a flow over to the proxy.
//!
//! `INTERCEPTOR_SEED=N` plays a run again, `INTERCEPTOR_CASES=N` makes it longer.

mod oracle;
mod plan;

use std::collections::{BTreeMap, HashSet};
use std::env;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result};
use interceptor::policy::Outbound;
use interceptor_tests::hellos::Random;
use interceptor_tests::probe::{Case, Outcome, Probed, probe};
use interceptor_tests::product::{Interceptor, binary};
use interceptor_tests::servers::witness::Witness;
use interceptor_tests::world::{World, kernel_tests};
use oracle::{Expected, Oracle};
use plan::{Plan, ports};

const CLIENT: &str = env!("CARGO_BIN_EXE_interceptor-test-client");
const CASES: usize = 10_000;
const THREADS: usize = 64;

/// A flow with what was expected and what became of it.
struct Seen {
    case: Case,
    what: &'static str,
    expected: Expected,
    probed: Probed,
}

#[test]
fn the_kernel_and_decide_say_the_same() -> Result<()> {
    if !kernel_tests() {
        return Ok(());
    }
    let seed = number("INTERCEPTOR_SEED")?.unwrap_or_else(|| {
        let now = SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default();
        now.as_nanos() as u64 & 0xffff_ffff
    });
    let cases = number("INTERCEPTOR_CASES")?.map_or(CASES, |cases| cases as usize);
    eprintln!("INTERCEPTOR_SEED={seed}");
    let mut random = Random::new(seed);
    let plan = Plan::new(&mut random);
    let flows: Vec<(Case, &str)> = (0..cases).map(|n| plan.case(&mut random, n)).collect();

    let world = World::bare()?;
    let witness = Witness::start(&world.internet, &ports())?;
    for (name, addresses) in &plan.zone {
        world.zone.set(name, addresses);
    }
    let file = world.file("policy.yaml", &plan.yaml)?;
    let oracle = Oracle::new(PathBuf::from(&file), Outbound::RegistryOnly, &plan.zone)?;
    let mesh = world.file("mesh.yaml", "protocolDetectionTimeout: 1s\n")?;
    let running = Interceptor::new(
        &world,
        &binary(),
        &[
            "--outbound",
            "registry-only",
            "--fast-path",
            "true",
            "-f",
            &file,
            "--mesh-config",
            &mesh,
        ],
    )
    .start()?;
    running.wait_for_entries("ENDPOINTS", oracle.rows() as u64)?;

    let asked: Vec<Case> = flows.iter().map(|(case, _)| case.clone()).collect();
    let limit = Duration::from_secs(60 + cases as u64 / 50);
    let probed = probe(&world, &running, CLIENT, &asked, THREADS, limit)?;
    let seen: Vec<Seen> = flows
        .into_iter()
        .zip(&probed)
        .map(|((case, what), probed)| {
            let expected = oracle.ask(case.to, &case.bytes);
            Seen { case, what, expected, probed: *probed }
        })
        .collect();
    let tally = compare(&seen);

    // What the kernel refused and `decide` allows is the proxy's from then on.
    let handed: Vec<Case> = seen.iter().filter(|s| is_handed(s)).map(|s| s.case.clone()).collect();
    let again = probe(&world, &running, CLIENT, &handed, THREADS, limit)?;
    for (case, probed) in handed.iter().zip(&again) {
        assert!(probed.passed(), "not handed over: {case}: {probed}");
    }
    // Nothing but what passed brought a byte to anybody.
    let passed = probed.iter().chain(&again).filter_map(arrival);
    let mut arrived: Vec<_> = witness.arrivals().iter().map(|a| (a.peer.port(), a.local)).collect();
    let mut passed: Vec<(u16, SocketAddr)> = passed.collect();
    // Flows that waited are allowed: what they had said leaves when their client ends.
    let waited = seen.iter().filter(|s| s.probed.outcome == Outcome::Silent);
    let waited: HashSet<SocketAddr> = waited.map(|s| s.case.to).collect();
    arrived.retain(|(_, at)| !waited.contains(at));
    passed.retain(|(_, at)| !waited.contains(at));
    arrived.sort_unstable();
    passed.sort_unstable();
    assert_eq!(arrived, passed);
    running.wait_for_entries("PENDING", 0)?;

    let get = |what| tally.get(what).copied().unwrap_or(0);
    eprintln!("{cases} flows: {tally:?}");
    assert!(get("direct") > cases / 10, "{tally:?}");
    assert!(get("refused by the kernel") > cases / 10, "{tally:?}");
    assert!(get("eligible, not direct") * 20 <= get("eligible"), "{tally:?}");
    Ok(())
}

/// Fails at the first flow that became of what it must not; counts the rest.
fn compare(seen: &[Seen]) -> BTreeMap<&'static str, usize> {
    let mut tally = BTreeMap::new();
    for one in seen {
        let Seen { case, what, expected, probed } = one;
        let outcome = match probed.outcome {
            Outcome::Echoed(..) if probed.went_direct() => "direct",
            Outcome::Echoed(..) => "by the proxy",
            Outcome::Refused(libc::EPERM) | Outcome::Ended(libc::ECONNABORTED) => {
                "refused by the kernel"
            }
            Outcome::Ended(_) => "refused by the proxy",
            // The rest may still come, and what it says be noticed; nothing has arrived.
            Outcome::Silent if expected.unfinished && expected.passes => "waited for by the proxy",
            Outcome::Refused(_) | Outcome::Silent | Outcome::Left => {
                panic!("{what}: {case}: {probed}, {expected:?}")
            }
        };
        *tally.entry(outcome).or_insert(0) += 1;
        if expected.eligible {
            *tally.entry("eligible").or_insert(0) += 1;
            if outcome != "direct" {
                *tally.entry("eligible, not direct").or_insert(0) += 1;
            }
        }
        let same = match outcome {
            "direct" | "by the proxy" | "waited for by the proxy" => expected.passes,
            "refused by the kernel" => !expected.passes || is_handed(one),
            _ => !expected.passes,
        };
        assert!(same, "{what}: {case}: {probed}, {expected:?}");
    }
    tally
}

/// Refused by the kernel, at its first bytes, though it is allowed.
fn is_handed(seen: &Seen) -> bool {
    seen.expected.passes && seen.probed.outcome == Outcome::Ended(libc::ECONNABORTED)
}

fn arrival(probed: &Probed) -> Option<(u16, SocketAddr)> {
    match probed.outcome {
        Outcome::Echoed(seen, at) => Some((seen, at)),
        _ => None,
    }
}

fn number(variable: &str) -> Result<Option<u64>> {
    env::var(variable)
        .ok()
        .map(|text| text.parse().with_context(|| variable.to_owned()))
        .transpose()
}
