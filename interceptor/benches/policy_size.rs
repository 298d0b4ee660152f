//! Policy size: what compiling many entries costs, and that deciding does not depend on how many
//! there are. `cargo bench -p interceptor --bench policy_size`.
//!
//! Figures are taken interleaved, so that noise hits both sides of a ratio alike; the smallest of
//! several runs counts.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::path::Path;
use std::time::{Duration, Instant};

use interceptor::decide::host::HostName;
use interceptor::decide::{self, Flow, Policy, RequestHead};
use interceptor::origin::OriginalDst;
use interceptor::policy::{Caller, Loaded, Outbound, Sources, load};
use interceptor::sniff::{ClientHello, Hello};

const ROUNDS: usize = 7;
const DECISIONS: usize = 20_000;

/// `count` entries of one host each: HTTPS and HTTP in turn, every tenth a wildcard.
fn entries(count: usize) -> String {
    let mut text = String::new();
    for n in 0..count {
        let host = if n % 10 == 9 { format!("'*.w{n}.example'") } else { format!("h{n}.example") };
        let (port, protocol) = if n % 2 == 0 { (443, "HTTPS") } else { (80, "HTTP") };
        let resolution = if n % 10 == 9 { "NONE" } else { "DNS" };
        let _ = write!(
            text,
            "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata:\n  name: e{n}\nspec:\n  \
             hosts: [{host}]\n  ports:\n  - {{number: {port}, name: p, protocol: {protocol}}}\n  \
             resolution: {resolution}\n---\n"
        );
    }
    text
}

fn compile(file: &Path) -> Loaded {
    let sources = Sources {
        files: vec![file.to_path_buf()],
        outbound: Some(Outbound::RegistryOnly),
        ..Sources::default()
    };
    load(&sources, &Caller::new("default")).expect("entries of our own making load")
}

/// The shortest of several runs.
fn shortest(mut run: impl FnMut()) -> Duration {
    (0..ROUNDS)
        .map(|_| {
            let start = Instant::now();
            run();
            start.elapsed()
        })
        .min()
        .unwrap_or_default()
}

fn flow(port: u16) -> Flow<'static> {
    let dst = SocketAddr::from(([198, 51, 100, 7], port));
    Flow { dst: OriginalDst::new(dst), namespace: "default" }
}

/// One known name, one under a wildcard, one unknown; as TLS and as HTTP.
fn decide_all(policy: &Policy) {
    for name in ["h2.example", "a.w9.example", "unknown.example"] {
        let hello = ClientHello { sni: HostName::parse(name).ok(), ..ClientHello::default() };
        let tls = flow(443);
        std::hint::black_box(decide::by_address(policy, &tls));
        std::hint::black_box(decide::by_hello(policy, &tls, &Hello::Tls(hello)));
        let head = RequestHead {
            method: "GET",
            authority: None,
            hosts: &[name],
            path: "/",
            version: 11,
            headers: &(),
        };
        std::hint::black_box(decide::by_request(policy, &flow(80), &head));
    }
}

/// Resident memory of this process, in KiB.
fn resident_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    line.and_then(|line| line.split_whitespace().next()?.parse().ok()).unwrap_or(0)
}

fn main() {
    let dir = tempfile::tempdir().expect("a directory");
    let file = |count: usize| {
        let path = dir.path().join(format!("{count}.yaml"));
        std::fs::write(&path, entries(count)).expect("written");
        path
    };
    let (few, many, huge) = (file(10), file(10_000), file(100_000));

    let before = resident_kib();
    let large = compile(&many);
    println!("10,000 entries: +{} MiB resident", (resident_kib() - before) / 1024);
    let small = compile(&few);

    println!("load and compile 10,000 entries: {:?}", shortest(|| drop(compile(&many))));
    let start = Instant::now();
    let loaded = compile(&huge);
    println!("load and compile 100,000 entries: {:?} ({})", start.elapsed(), loaded.summary);

    let (mut at_10, mut at_10_000) = (Duration::MAX, Duration::MAX);
    for _ in 0..ROUNDS {
        for (policy, best) in
            [(&small.snapshot.policy, &mut at_10), (&large.snapshot.policy, &mut at_10_000)]
        {
            let start = Instant::now();
            for _ in 0..DECISIONS {
                decide_all(policy);
            }
            *best = (*best).min(start.elapsed());
        }
    }
    let each = |total: Duration| total.as_nanos() / (DECISIONS as u128 * 9);
    println!(
        "one decision: {} ns at 10 entries, {} ns at 10,000: {:.2} times",
        each(at_10),
        each(at_10_000),
        at_10_000.as_secs_f64() / at_10.as_secs_f64()
    );
}
