//! Policy size: what compiling many entries costs, what adding one more does, and that deciding does
//! not depend on how many there are. `cargo bench -p interceptor --bench policy_size`.
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
use interceptor::policy::{Caller, Inventory, Loaded, Outbound, Sources, load, load_over};
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

/// `count` entries for opaque bytes on one port, without addresses: each claims what its host
/// resolves to.
fn databases(count: usize) -> String {
    let mut text = String::new();
    for n in 0..count {
        let _ = write!(
            text,
            "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata:\n  name: d{n}\nspec:\n  \
             hosts: [d{n}.example]\n  ports:\n  - {{number: 5432, name: p, protocol: TCP}}\n  \
             resolution: DNS\n---\n"
        );
    }
    text
}

fn sources(file: &Path) -> Sources {
    Sources {
        files: vec![file.to_path_buf()],
        outbound: Some(Outbound::RegistryOnly),
        ..Sources::default()
    }
}

fn compile(file: &Path) -> Loaded {
    load(&sources(file), &Caller::new("default")).expect("entries of our own making load")
}

/// How long it takes until a set with one entry more is compiled.
fn add_one(file: &Path, before: &Inventory) -> Duration {
    let mut text = std::fs::read_to_string(file).expect("read");
    text.push_str(&entries(1).replace("name: e0", "name: one-more").replace("h0.", "one-more."));
    let larger = file.with_extension("larger.yaml");
    std::fs::write(&larger, text).expect("written");
    shortest(|| {
        let loaded = load_over(&sources(&larger), &Caller::new("default"), before);
        drop(loaded.expect("one more loads"));
    })
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

/// A connection that only a name's addresses could allow: first bytes, and none.
fn decide_database(policy: &Policy) {
    let flow = flow(5432);
    std::hint::black_box(decide::by_address(policy, &flow));
    std::hint::black_box(decide::by_hello(policy, &flow, &Hello::Opaque));
}

/// The cost of `decide`, `calls` calls of it, at both policies.
fn compare(what: &str, small: &Policy, large: &Policy, calls: usize, decide: fn(&Policy)) {
    let (mut at_10, mut at_10_000) = (Duration::MAX, Duration::MAX);
    for _ in 0..ROUNDS {
        for (policy, best) in [(small, &mut at_10), (large, &mut at_10_000)] {
            let start = Instant::now();
            for _ in 0..DECISIONS {
                decide(policy);
            }
            *best = (*best).min(start.elapsed());
        }
    }
    let each = |total: Duration| total.as_nanos() / (DECISIONS * calls) as u128;
    println!(
        "one {what}: {} ns at 10 entries, {} ns at 10,000: {:.2} times",
        each(at_10),
        each(at_10_000),
        at_10_000.as_secs_f64() / at_10.as_secs_f64()
    );
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
    let file = |name: &str, text: String| {
        let path = dir.path().join(name);
        std::fs::write(&path, text).expect("written");
        path
    };
    let few = file("few.yaml", entries(10));
    let many = file("many.yaml", entries(10_000));
    let huge = file("huge.yaml", entries(100_000));

    let before = resident_kib();
    let large = compile(&many);
    println!("10,000 entries: +{} MiB resident", (resident_kib() - before) / 1024);
    let small = compile(&few);

    println!("load and compile 10,000 entries: {:?}", shortest(|| drop(compile(&many))));
    println!("the same with one more: {:?}", add_one(&many, &large.inventory));
    let start = Instant::now();
    let loaded = compile(&huge);
    println!("load and compile 100,000 entries: {:?} ({})", start.elapsed(), loaded.summary);
    drop(loaded);

    compare("decision", &small.snapshot.policy, &large.snapshot.policy, 9, decide_all);
    let small = compile(&file("few-tcp.yaml", databases(10)));
    let large = compile(&file("many-tcp.yaml", databases(10_000)));
    let (small, large) = (&small.snapshot.policy, &large.snapshot.policy);
    compare("decision among names on a TCP port", small, large, 2, decide_database);
}
