//! One policy, two engines: random policies and random flows through `decide` with the proxy's reader,
//! and through the loaded BPF programs with real sockets, in both profiles and modes. They may differ
//! in one way only: the kernel hands a flow over to the proxy.
//!
//! `INTERCEPTOR_SEED=N` plays a run again, `INTERCEPTOR_CASES=N` makes it longer.

mod oracle;
mod plan;
mod resources;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::env;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, ensure};
use interceptor::policy::{Enforcement, Outbound};
use interceptor_tests::hellos::{HONEST, Random};
use interceptor_tests::log::Line;
use interceptor_tests::probe::{Case, How, Outcome, Probed, probe};
use interceptor_tests::product::{Interceptor, Running, binary};
use interceptor_tests::servers::witness::Witness;
use interceptor_tests::world::{World, kernel_tests};
use oracle::{Expected, Oracle};
use plan::{Mode, Plan, ports};

const CLIENT: &str = env!("CARGO_BIN_EXE_interceptor-test-client");
const CASES: usize = 10_000;
const THREADS: usize = 64;

/// A policy of its own for each, and the same share of the cases.
const MODES: [Mode; 4] = [
    Mode { enforcement: Enforcement::Strict, outbound: Outbound::RegistryOnly },
    Mode { enforcement: Enforcement::Strict, outbound: Outbound::AllowAny },
    Mode { enforcement: Enforcement::Istio, outbound: Outbound::RegistryOnly },
    Mode { enforcement: Enforcement::Istio, outbound: Outbound::AllowAny },
];

/// A flow with what was expected and what became of it.
struct Seen {
    case: Case,
    what: &'static str,
    expected: Expected,
    probed: Probed,
}

/// How many flows became of what.
type Tally = BTreeMap<&'static str, usize>;

#[test]
fn the_kernel_and_decide_say_the_same() -> Result<()> {
    if !kernel_tests() {
        return Ok(());
    }
    let seed = seed()?;
    let cases = number("INTERCEPTOR_CASES")?.map_or(CASES, |cases| cases as usize);
    for mode in MODES {
        let tally = compare(mode, &mut Random::new(seed), cases / MODES.len())
            .with_context(|| format!("{mode:?}"))?;
        let get = |what| tally.get(what).copied().unwrap_or(0);
        let (eligible, not) = (get("eligible"), get("eligible, not direct"));
        let share = not as f64 * 100.0 / eligible as f64;
        eprintln!("{mode:?}: {share:.1} % of {eligible} eligible flows by the proxy: {tally:?}");
        assert!(not * 20 <= eligible, "{tally:?}");
        assert!(get("direct") > cases / 40, "{tally:?}");
        if mode.outbound == Outbound::RegistryOnly {
            assert!(get("refused by the kernel") > cases / 80, "{tally:?}");
        }
    }
    Ok(())
}

/// Random flows under a random policy.
fn compare(mode: Mode, random: &mut Random, cases: usize) -> Result<Tally> {
    let plan = Plan::new(random, mode);
    let flows: Vec<(Case, &str)> = (0..cases).map(|n| plan.case(random, n)).collect();

    let world = World::bare()?;
    let witness = Witness::start(&world.internet, &ports())?;
    for (name, addresses) in &plan.zone {
        world.zone.set(name, addresses);
    }
    let file = world.file("policy.yaml", &plan.yaml)?;
    let mut oracle = Oracle::new(PathBuf::from(&file), mode, &plan.zone)?;
    let mesh = world.file("mesh.yaml", "protocolDetectionTimeout: 1s\n")?;
    let outbound = match mode.outbound {
        Outbound::RegistryOnly => "registry-only",
        _ => "allow-any",
    };
    let enforcement = match mode.enforcement {
        Enforcement::Strict => "strict",
        Enforcement::Istio => "istio",
    };
    let flags = ["--outbound", outbound, "--enforcement", enforcement, "--fast-path", "true"];
    let files = ["-f", &file, "--mesh-config", &mesh];
    let running = Interceptor::new(&world, &binary(), &[&flags[..], &files].concat()).start()?;
    running.wait_for_entries("ENDPOINTS", oracle.rows() as u64)?;

    let limit = Duration::from_secs(60 + cases as u64 / 50);
    let ask = |asked: &[Case]| match asked {
        [] => Ok(Vec::new()),
        asked => probe(&world, &running, CLIENT, asked, THREADS, limit),
    };
    let visits = plan.visits(random);
    let visited = ask(&visits)?;
    oracle.visit(&plan.visited());
    let asked: Vec<Case> = flows.iter().map(|(case, _)| case.clone()).collect();
    let probed = ask(&asked)?;
    let seen: Vec<Seen> = flows
        .into_iter()
        .zip(&probed)
        .map(|((case, what), probed)| {
            let expected = oracle.ask(case.to, &case.bytes);
            Seen { case, what, expected, probed: *probed }
        })
        .collect();
    let tally = judge(&seen);

    // What the kernel refused and `decide` allows is the proxy's from then on.
    let handed: Vec<Case> = seen.iter().filter(|s| is_handed(s)).map(|s| s.case.clone()).collect();
    let again = ask(&handed)?;
    for (case, probed) in handed.iter().zip(&again) {
        ensure!(probed.passed(), "not handed over: {case}: {probed}");
    }
    // Nothing but what passed brought a byte to anybody.
    let passed = probed.iter().chain(&again).chain(&visited).filter_map(arrival);
    let mut arrived: Vec<_> = witness.arrivals().iter().map(|a| (a.peer.port(), a.local)).collect();
    let mut passed: Vec<(u16, SocketAddr)> = passed.collect();
    // Flows that are allowed and had no echo may have come there: what had been said of those that
    // waited leaves when their client ends, and requests and tunnels are not echoed.
    let may = seen.iter().filter(|s| !s.probed.passed());
    let may: HashSet<SocketAddr> = may.flat_map(|s| s.expected.ends.iter().copied()).collect();
    arrived.retain(|(_, at)| !may.contains(at));
    passed.retain(|(_, at)| !may.contains(at));
    arrived.sort_unstable();
    passed.sort_unstable();
    assert_eq!(arrived, passed);
    running.wait_for_entries("PENDING", 0)?;
    check_log(&running, &seen)?;
    Ok(tally)
}

/// Fails at the first flow that became of what it must not; counts the rest.
fn judge(seen: &[Seen]) -> Tally {
    let mut tally = Tally::new();
    for one in seen {
        let Seen { case, what, expected, probed } = one;
        let outcome = match probed.outcome {
            Outcome::Echoed(..) if probed.went_direct() => "direct",
            Outcome::Echoed(..) => "by the proxy",
            Outcome::Refused(libc::EPERM) | Outcome::Ended(libc::ECONNABORTED) => {
                "refused by the kernel"
            }
            Outcome::Ended(_) if expected.passes() && !(expected.plainly && expected.surely) => {
                "carried by the proxy"
            }
            Outcome::Ended(_) => "refused by the proxy",
            // The rest may still come, and what it says be noticed; nothing has arrived.
            Outcome::Silent if expected.unfinished && expected.passes() => {
                "waited for by the proxy"
            }
            Outcome::Refused(_) | Outcome::Silent | Outcome::Left => {
                panic!("{what}: {case}: {probed}, {expected:?}")
            }
        };
        let mut count = |what| *tally.entry(what).or_insert(0) += 1;
        count(outcome);
        if expected.eligible {
            count("eligible");
        }
        if expected.eligible && outcome != "direct" {
            count("eligible, not direct");
        }
        if expected.alone {
            count("without need of the proxy");
        }
        let same = match (outcome, probed.outcome) {
            ("direct", Outcome::Echoed(_, at)) => expected.alone && at == case.to,
            (_, Outcome::Echoed(_, at)) => expected.plainly && expected.ends.contains(&at),
            ("carried by the proxy" | "waited for by the proxy", _) => true,
            ("refused by the kernel", _) => !expected.passes() || is_handed(one),
            _ => !expected.passes(),
        };
        assert!(same, "{what}: {case}: {probed}, {expected:?}");
    }
    tally
}

/// Refused by the kernel, at its first bytes, though it is allowed.
fn is_handed(seen: &Seen) -> bool {
    seen.expected.passes() && seen.probed.outcome == Outcome::Ended(libc::ECONNABORTED)
}

/// What the log says of direct flows is what `decide` says: the cluster, and the name that was shown,
/// where the profile has it.
fn check_log(running: &Running<'_>, seen: &[Seen]) -> Result<()> {
    let direct: Vec<&Seen> = seen.iter().filter(|one| one.probed.went_direct()).collect();
    let mut lines: HashMap<(u16, String), Vec<[String; 2]>> = HashMap::new();
    for line in running.wait_for_lines(0, seen.len()) {
        let line = Line::parse(&line).map_err(|error| anyhow::anyhow!("{error}: {line}"))?;
        let field = |name| line.field(name).to_owned();
        let source: SocketAddr = field("DOWNSTREAM_REMOTE_ADDRESS").parse()?;
        let told = [field("UPSTREAM_CLUSTER_RAW"), field("REQUESTED_SERVER_NAME")];
        lines.entry((source.port(), field("DOWNSTREAM_LOCAL_ADDRESS"))).or_default().push(told);
    }
    for Seen { case, what, expected, probed } in direct {
        let told = lines.get(&(probed.source, case.to.to_string()));
        let told = told.with_context(|| format!("no line: {what}: {case}: {probed}"))?;
        let cluster = expected.cluster.as_deref().unwrap_or("-");
        let honest = HONEST.iter().any(|(honest, _)| honest == what) && case.how == How::Whole;
        let shown = if expected.unread { None } else { expected.shown.as_deref() };
        let fits = |[of, name]: &[String; 2]| {
            // Bytes that nobody waits for may show their name in the second packet.
            let noticed = name == shown.unwrap_or("-") || (!honest && name == "-");
            of == cluster && noticed
        };
        ensure!(told.iter().any(fits), "{told:?}: {what}: {case}: {probed}, {expected:?}");
    }
    Ok(())
}

fn arrival(probed: &Probed) -> Option<(u16, SocketAddr)> {
    match probed.outcome {
        Outcome::Echoed(seen, at) => Some((seen, at)),
        _ => None,
    }
}

fn seed() -> Result<u64> {
    let seed = number("INTERCEPTOR_SEED")?.unwrap_or_else(|| {
        #[expect(clippy::disallowed_methods, reason = "any number that is another one each time")]
        let now = SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default();
        now.as_nanos() as u64 & 0xffff_ffff
    });
    eprintln!("INTERCEPTOR_SEED={seed}");
    Ok(seed)
}

fn number(variable: &str) -> Result<Option<u64>> {
    env::var(variable)
        .ok()
        .map(|text| text.parse().with_context(|| variable.to_owned()))
        .transpose()
}

/// Without a kernel: over many policies, what the tables let go is what `decide` lets the client do
/// by itself.
#[test]
fn tables_let_go_what_needs_no_proxy() -> Result<()> {
    let seed = seed()?;
    for round in 0..20 {
        for mode in MODES {
            let mut random = Random::new(seed + round);
            let plan = Plan::new(&mut random, mode);
            let file = tempfile::NamedTempFile::new()?;
            std::fs::write(file.path(), &plan.yaml)?;
            let mut oracle = Oracle::new(file.path().to_owned(), mode, &plan.zone)
                .with_context(|| format!("{mode:?}, {}", plan.yaml))?;
            oracle.visit(&plan.visited());
            for number in 0..500 {
                let (case, what) = plan.case(&mut random, number);
                let expected = oracle.ask(case.to, &case.bytes);
                let right = !expected.eligible || expected.alone;
                ensure!(right, "{mode:?}: {what}: {case}, {expected:?}\n{}", plan.yaml);
            }
        }
    }
    Ok(())
}
