//! T-62: policy changes again and again under load. Every generation sends the same requests
//! elsewhere, under another name, with another path: what arrives shows whether one decision used two
//! of them.
//!
//! `INTERCEPTOR_RELOADS=1000` reloads more often.

use std::collections::BTreeSet;
use std::env;
use std::fmt::Write as _;
use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use interceptor_tests::cgroup::Cgroup;
use interceptor_tests::client::nth_address;
use interceptor_tests::dweller::Dweller;
use interceptor_tests::log::Line;
use interceptor_tests::product::{Interceptor, binary};
use interceptor_tests::servers::port;
use interceptor_tests::world::{self, World, kernel_tests};

const CLIENT: &str = env!("CARGO_BIN_EXE_interceptor-test-client");

const RELOADS: u64 = 100;
/// After so many the capture is judged, and begun anew.
const PART: u64 = 50;
/// Generations have so many addresses in turn.
const PLACES: u64 = 100;
const FIRST: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(203, 0, 113, 100));
const STEADY: Duration = Duration::from_secs(2);

/// Where generation `number` sends what is asked of front.test.
fn place(number: u64) -> IpAddr {
    nth_address(FIRST, u16::try_from(number % PLACES).expect("below PLACES"))
}

/// One generation: front.test goes to its own place, name and path; echo at a fixed address has its
/// own name.
fn policy(number: u64) -> String {
    let entry = |host: &str, port: u16, protocol: &str, more: &str| {
        format!(
            "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\n\
             metadata: {{name: {}}}\nspec:\n  hosts: [{host}]\n  \
             ports: [{{number: {port}, name: port, protocol: {protocol}}}]\n  {more}\n---\n",
            host.replace('.', "-")
        )
    };
    let mut text = entry("front.test", 80, "HTTP", &format!("addresses: [{}]", world::EXAMPLE_V4));
    text += &entry(
        &format!("g{number}.test"),
        80,
        "HTTP",
        &format!("resolution: STATIC\n  endpoints: [{{address: {}}}]", place(number)),
    );
    let echo = format!("addresses: [{}]", world::HTTPBIN);
    text += &entry(&format!("d{number}.test"), port::ECHO, "TCP", &echo);
    let _ = write!(
        text,
        "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {{name: front}}\nspec:\n  \
         hosts: [front.test]\n  http:\n  - rewrite: {{uri: /g{number}, authority: g{number}.test}}\n    \
         route: [{{destination: {{host: g{number}.test, port: {{number: 80}}}}}}]\n"
    );
    text
}

/// The number in `PREFIX<number>.test`.
fn number_in(name: &str, prefix: &str) -> Result<u64> {
    let digits = name.strip_prefix(prefix).and_then(|rest| rest.strip_suffix(".test"));
    digits.context(name.to_owned())?.parse().context(name.to_owned())
}

#[test]
fn t62_no_decision_uses_two_generations() -> Result<()> {
    if !kernel_tests() {
        return Ok(());
    }
    let reloads = env::var("INTERCEPTOR_RELOADS").ok().and_then(|n| n.parse().ok());
    let reloads: u64 = reloads.unwrap_or(RELOADS);
    let world = World::new()?;
    let file = world.file("policy.yaml", &policy(1))?;
    let cgroup = Cgroup::create("reload")?;
    let flags = ["--outbound", "registry-only", "-f", &file];
    let mut running = Interceptor::new(&world, &binary(), &flags).cover(cgroup.path())?;

    let page = format!("{}/front.test", SocketAddr::new(world::EXAMPLE_V4, 80));
    let direct = SocketAddr::new(world::HTTPBIN, port::ECHO).to_string();
    let forbidden = SocketAddr::new(world::CNN, port::ECHO);
    let tried = forbidden.to_string();
    let what = ["--get", &page, "--again", &direct, "--keep", &direct, "--attempt", &tried];
    let capture = world.capture()?;
    let inside = Dweller::start(&world, &world.workload, Some(&cgroup), CLIENT, &what)?;
    inside.goes_on(&page, STEADY)?;

    let fresh = world.dir().join("policy.new");
    let mut leaked = 0;
    for number in 2..=reloads + 1 {
        fs::write(&fresh, policy(number))?;
        fs::rename(&fresh, &file)?;
        let said = format!("policy generation {number}: ");
        let deadline = Instant::now() + STEADY;
        while !running.stderr()?.contains(&said) {
            ensure!(Instant::now() < deadline, "never {said:?}: {}", running.stderr()?);
            sleep(Duration::from_millis(5));
        }
        if number % PART == 0 {
            leaked += capture.take_packets_to(forbidden.ip());
        }
    }
    inside.goes_on(&page, STEADY)?;
    inside.goes_on(&direct, STEADY)?;
    let (last, tries) = (inside.doing(&page)?, inside.doing(&tried)?.count);
    drop(inside);

    let seen = world.seen();
    let mut generations = BTreeSet::new();
    for request in &seen {
        let number = number_in(&request.host, "g")?;
        assert_eq!(request.path, format!("/g{number}"), "{request:?}");
        assert_eq!(request.local.ip(), place(number), "{request:?}");
        generations.insert(number);
    }
    assert_eq!(generations.first(), Some(&1));
    assert_eq!(generations.last(), Some(&(reloads + 1)));
    println!("{} requests by {} of {} generations", seen.len(), generations.len(), reloads + 1);
    assert_eq!(last.state, "ok", "no request met a generation without its route");
    assert!(seen.len() as u64 >= last.count, "{} of {}", seen.len(), last.count);

    let mut flows = 0;
    for line in running.lines() {
        let line = Line::parse(&line).map_err(|error| anyhow::anyhow!("{error}: {line}"))?;
        if line.field("DOWNSTREAM_LOCAL_ADDRESS") == direct {
            let cluster = line.field("UPSTREAM_CLUSTER_RAW");
            let name = cluster.rsplit('|').next().unwrap_or_default();
            assert!((1..=reloads + 1).contains(&number_in(name, "d")?), "{cluster}");
            flows += 1;
        }
    }
    assert!(flows > 0);
    assert!(tries > 0);
    leaked += capture.packets_to(forbidden.ip());
    assert_eq!(leaked, 0, "after {tries} tries");
    Ok(())
}
