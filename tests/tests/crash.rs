//! T-59: the daemon is killed again and again, at any moment, while its workload does what it can.
//! Nothing forbidden leaves, what is established goes on, and what is allowed is soon back.
//!
//! `INTERCEPTOR_KILLS=1000` kills more often; `INTERCEPTOR_SEED=N` at the same moments again.

use std::env;
use std::net::SocketAddr;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use interceptor_tests::cgroup::Cgroup;
use interceptor_tests::dweller::Dweller;
use interceptor_tests::product::{Interceptor, binary};
use interceptor_tests::servers::port;
use interceptor_tests::world::{self, World, kernel_tests};

const CLIENT: &str = env!("CARGO_BIN_EXE_interceptor-test-client");

const KILLS: u64 = 100;
/// Every so many starts come to their end, and have to bring everything back.
const WHOLE: u64 = 10;
/// From the start of a daemon to allowed traffic by it (T-59).
const BACK: Duration = Duration::from_secs(2);
/// What must go on in any case.
const STEADY: Duration = Duration::from_secs(2);

fn number(name: &str) -> Option<u64> {
    env::var(name).ok()?.parse().ok()
}

/// xorshift64: the moments of the kills.
struct Moments(u64);

impl Moments {
    fn below(&mut self, limit: Duration) -> Duration {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        Duration::from_micros(self.0 % u64::try_from(limit.as_micros()).unwrap_or(1).max(1))
    }
}

#[test]
fn t59_a_daemon_that_is_killed_again_and_again_lets_nothing_out() -> Result<()> {
    if !kernel_tests() {
        return Ok(());
    }
    let kills = number("INTERCEPTOR_KILLS").unwrap_or(KILLS);
    let seed = number("INTERCEPTOR_SEED").unwrap_or_else(|| u64::from(std::process::id())) | 1;
    println!("INTERCEPTOR_SEED={seed}");
    let mut moments = Moments(seed);

    let world = World::new()?;
    let (forbidden, direct) = (world::CNN, SocketAddr::new(world::HTTPBIN, port::ECHO).to_string());
    let kept = SocketAddr::new(world::GOOGLE, port::ECHO).to_string();
    let page = format!("{}/v4.example.com", SocketAddr::new(world::EXAMPLE_V4, 80));
    let addresses = format!("  addresses: [{}, {}]\n", world::HTTPBIN, world::GOOGLE);
    let echo = world.entry("echo.test", port::ECHO, "TCP", &addresses)?;
    let http = world.entry("v4.example.com", 80, "HTTP", "  resolution: DNS\n")?;
    let cgroup = Cgroup::create("crash")?;
    let flags = ["--outbound", "registry-only", "-f", &echo, "-f", &http];
    let mut running = Interceptor::new(&world, &binary(), &flags).cover(cgroup.path())?;

    let tried: Vec<String> =
        [80, port::ECHO].map(|port| SocketAddr::new(forbidden, port).to_string()).into();
    let what = [
        &["--keep", &kept, "--again", &direct, "--get", &page][..],
        &["--attempt", &tried[0], "--attempt", &tried[1]],
    ]
    .concat();
    let capture = world.capture()?;
    let inside = Dweller::start(&world, &world.workload, Some(&cgroup), CLIENT, &what)?;
    for name in [&kept, &direct, &page] {
        inside.goes_on(name, STEADY)?;
    }

    // How long a start takes bounds the moments at which one is killed.
    let mut start_takes = Duration::from_millis(500);
    let mut slowest = Duration::ZERO;
    for kill in 1..=kills {
        running.kill()?;
        let again = running.cover_command(cgroup.path());
        running.start_again(again)?;
        let begun = Instant::now();
        if kill % WHOLE == 0 {
            inside.goes_on(&page, BACK).context("proxied traffic is not back")?;
            slowest = slowest.max(begun.elapsed());
            inside.goes_on(&direct, BACK).context("direct traffic is not back")?;
            inside.goes_on(&kept, STEADY).context("the established flow")?;
            start_takes = begun.elapsed();
        } else {
            sleep(moments.below(start_takes));
        }
    }
    println!("{kills} kills; allowed traffic back after {} ms at most", slowest.as_millis());

    running.until_ready()?;
    inside.goes_on(&kept, STEADY)?;
    let bytes = inside.doing(&kept)?;
    assert_eq!(bytes.state, "alive", "every byte came back as it was sent");
    let tries: u64 = tried.iter().map(|name| inside.doing(name).map_or(0, |it| it.count)).sum();
    assert!(tries > kills, "{tries} tries");
    assert_eq!(capture.packets_to(forbidden), 0, "after {tries} tries in {kills} kills");
    running.stop()?;

    // The control: what tried all the time gets out now.
    let deadline = Instant::now() + STEADY;
    while capture.packets_to(forbidden) == 0 {
        anyhow::ensure!(Instant::now() < deadline, "the control does not get out");
    }
    Ok(())
}
