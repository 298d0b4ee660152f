//! One workload takes all that it can get; another one, in a namespace of its own under the same
//! daemon, notices nothing, and all is given back (threats, section 9).

use std::fmt::Write as _;
use std::fs;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use interceptor_tests::cgroup::Cgroup;
use interceptor_tests::log::Line;
use interceptor_tests::product::{Interceptor, Running, binary};
use interceptor_tests::servers::port;
use interceptor_tests::world::{self, World, kernel_tests};

const CLIENT: &str = env!("CARGO_BIN_EXE_interceptor-test-client");
/// How long everything may take to be given back.
const GIVEN_BACK: Duration = Duration::from_secs(30);

/// Two worlds with one daemon, whose workloads are a crowd and one that is steady.
struct Scene {
    crowd: World,
    steady: World,
    cgroups: [Cgroup; 2],
    residents: Vec<Child>,
}

impl Scene {
    fn new(name: &str) -> Result<Self> {
        let cgroups =
            [Cgroup::create(&format!("{name}-crowd"))?, Cgroup::create(&format!("{name}-steady"))?];
        let mut scene =
            Self { crowd: World::new()?, steady: World::new()?, cgroups, residents: Vec::new() };
        // Somebody is in each cgroup when it is enrolled, so that its namespace is known.
        for which in 0..2 {
            let mut resident = scene.start(which, &["sleep", "86400"], Stdio::null())?;
            let deadline = Instant::now() + Duration::from_secs(5);
            let procs = scene.cgroups[which].path().join("cgroup.procs");
            while fs::read_to_string(&procs)?.is_empty() {
                ensure!(Instant::now() < deadline, "{:?}", resident.try_wait());
                std::thread::sleep(Duration::from_millis(5));
            }
            scene.residents.push(resident);
        }
        Ok(scene)
    }

    fn world(&self, which: usize) -> &World {
        [&self.crowd, &self.steady][which]
    }

    /// Starts a program of workload `which`; its output goes to a pipe where `stdin` is one.
    fn start(&self, which: usize, command: &[&str], stdin: Stdio) -> Result<Child> {
        let script = format!("{}; exec \"$@\"", self.cgroups[which].enter());
        let mut shell = self.world(which).command("sh");
        shell.args(["-c", &script, "sh"]).args(command);
        shell.stdin(stdin).stdout(Stdio::piped()).stderr(Stdio::inherit());
        self.world(which).spawn(&mut shell)
    }

    /// The daemon, with these limits and at most so many file descriptors.
    fn daemon(&self, limits: &str, descriptors: Option<u64>) -> Result<Running<'_>> {
        let world = &self.crowd;
        let config = format!(
            "apiVersion: egress.interceptor.io/v1alpha1\nkind: InterceptorConfig\n\
             metadata: {{name: default}}\nspec: {{fastPath: false, limits: {{{limits}}}}}\n"
        );
        let addresses = format!("  resolution: NONE\n  addresses: [{}]\n", world::EXAMPLE_V4);
        let dns = "  resolution: DNS\n";
        let files = [
            world.file("config.yaml", &config)?,
            world.entry("echo.test", port::ECHO, "TCP", &addresses)?,
            world.entry("www.google.com", 443, "TLS", dns)?,
            world.entry("httpbin.org", 80, "HTTP", dns)?,
        ];
        let mut flags = vec!["--outbound", "registry-only"];
        flags.extend(files.iter().flat_map(|file| ["-f", file]));
        let paths = self.cgroups.each_ref().map(|cgroup| cgroup.path().to_string_lossy());
        flags.extend(paths.iter().flat_map(|path| ["--cgroup", path.as_ref()]));
        let product = Interceptor::new(world, &binary(), &flags);
        let run = product.run_command(&[]);
        let mut command = world.command("sh");
        let limit = descriptors.map_or(String::new(), |most| format!("ulimit -n {most}; "));
        command.args(["-c", &format!("{limit}exec \"$@\""), "sh"]);
        command.arg(run.get_program()).args(run.get_args());
        let running = product.start_as(command, "")?;
        running.wait_for_status()?;
        Ok(running)
    }

    /// A crowd of so many, and where to.
    fn crowd(&self, manner: &str, to: &str, count: u64) -> Result<Crowd> {
        let count = count.to_string();
        let command = [CLIENT, "crowd", to, "--count", &count, "--manner", manner];
        Ok(Crowd { child: self.start(0, &command, Stdio::piped())? })
    }

    /// The steady workload's requests, until they are ended.
    fn requests(&self) -> Result<Crowd> {
        let to = format!("{}:80", world::HTTPBIN);
        Ok(Crowd { child: self.start(1, &[CLIENT, "steady", &to, "httpbin.org"], Stdio::piped())? })
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        for resident in &mut self.residents {
            if let Err(error) = world::stop(resident) {
                eprintln!("cannot stop a resident: {error:#}");
            }
        }
    }
}

/// A client that goes on until its standard input ends.
struct Crowd {
    child: Child,
}

impl Crowd {
    /// Waits until all are connected.
    fn wait_until_connected(&mut self) -> Result<()> {
        let mut word = [0; "connected\n".len()];
        let output = self.child.stdout.as_mut().context("its output")?;
        std::io::Read::read_exact(output, &mut word)?;
        ensure!(word == *b"connected\n", "{word:?}");
        Ok(())
    }

    /// Tells it to end; what it says then.
    fn end(mut self) -> Result<String> {
        drop(self.child.stdin.take());
        let mut said = String::new();
        let output = self.child.stdout.as_mut().context("its output")?;
        std::io::Read::read_to_string(output, &mut said)?;
        ensure!(self.child.wait()?.success(), "{said}");
        Ok(said.lines().last().unwrap_or_default().to_owned())
    }
}

impl Drop for Crowd {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The number behind `WORD=` in what a client said.
fn said(text: &str, word: &str) -> u64 {
    let words = text.split_whitespace().filter_map(|pair| pair.split_once('='));
    words.filter(|(have, _)| *have == word).filter_map(|(_, n)| n.parse::<u64>().ok()).sum()
}

/// Connections that were refused at once, while they were made or right after.
fn refused(text: &str) -> u64 {
    said(text, "ECONNRESET") + said(text, "connect-ECONNRESET")
}

/// At least 999 of 1,000 requests were answered, and there were some.
fn expect_steady(text: &str) {
    let answered = said(text, "200");
    let all: u64 = text
        .split_whitespace()
        .filter_map(|pair| pair.split_once('='))
        .filter(|(word, _)| *word != "p99-ms")
        .filter_map(|(_, times)| times.parse::<u64>().ok())
        .sum();
    eprintln!("the other workload: {text}");
    assert!(answered >= 10, "{text}");
    assert!(answered * 1000 >= all * 999, "{text}");
}

/// What a process holds: its file descriptors, and its memory in KiB.
fn held(running: &Running<'_>) -> Result<(u64, u64)> {
    let process = format!("/proc/{}", running.pid());
    let descriptors = fs::read_dir(format!("{process}/fd"))?.count() as u64;
    let status = fs::read_to_string(format!("{process}/status"))?;
    let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("VmRSS")?;
    Ok((descriptors, resident.trim().trim_end_matches(" kB").parse()?))
}

/// Waits until no connection is open at the proxy but the steady workload's own.
fn wait_until_given_back(running: &Running<'_>) -> Result<Duration> {
    let start = Instant::now();
    loop {
        let status = running.status()?;
        if status["connections"]["active"].as_u64().context("active")? <= 2
            && running.entries("HANDOVERS")? <= 2
        {
            return Ok(start.elapsed());
        }
        ensure!(start.elapsed() < GIVEN_BACK, "still held after {GIVEN_BACK:?}: {status}");
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// How often a limit was reached, by `status`.
fn refused_for(running: &Running<'_>, limit: &str) -> Result<u64> {
    let status = running.status()?;
    let limits = status["limits"].as_array().context("limits")?;
    let row = limits.iter().find(|row| row["name"] == limit);
    row.and_then(|row| row["refused"].as_u64()).with_context(|| format!("{limit}: {status}"))
}

/// Field 8 of the lines that say that a limit was reached, each with its count.
fn limit_lines(running: &Running<'_>) -> Vec<String> {
    let lines = running.lines();
    let lines = lines.iter().map(|line| Line::parse(line).expect("a line"));
    lines
        .filter(|line| line.field("RESPONSE_FLAGS") == "OM")
        .map(|line| line.field("CONNECTION_TERMINATION_DETAILS").to_owned())
        .collect()
}

fn echo() -> String {
    format!("{}:{}", world::EXAMPLE_V4, port::ECHO)
}

/// T-48: a byte now and then gains nothing.
#[test]
fn t48_slow_hellos_and_heads_end_at_an_absolute_deadline() -> Result<()> {
    if !kernel_tests() {
        return Ok(());
    }
    let scene = Scene::new("t48")?;
    let running = scene.daemon("", None)?;
    let steady = scene.requests()?;
    let hellos = scene.crowd("hello", &format!("{}:443", world::GOOGLE), 200)?;
    let heads = scene.crowd("head", &format!("{}:80", world::HTTPBIN), 200)?;
    let (hellos, heads) = (hellos.end()?, heads.end()?);
    let within = |text: &str, seconds: [u64; 3]| -> u64 {
        seconds.iter().map(|second| said(text, &format!("ended-after-{second}s"))).sum()
    };
    // Sniffing has 5 seconds, a head 10 from its first byte.
    // The daemon's clock starts a moment before the client's.
    assert_eq!(within(&hellos, [4, 5, 6]), 200, "{hellos}");
    assert_eq!(within(&heads, [9, 10, 11]), 200, "{heads}");
    expect_steady(&steady.end()?);
    wait_until_given_back(&running)?;
    Ok(())
}

/// T-49: connections that are not judged yet have a cap of their own, heads of later requests
/// included.
#[test]
fn t49_undecided_connections_have_a_cap_of_their_own() -> Result<()> {
    if !kernel_tests() {
        return Ok(());
    }
    let scene = Scene::new("undecided")?;
    let running = scene.daemon("undecidedPerWorkload: 40", None)?;
    let steady = scene.requests()?;
    let hellos = scene.crowd("hello", &format!("{}:443", world::GOOGLE), 60)?.end()?;
    assert_eq!(said(&hellos, "ended-after-0s") + refused(&hellos), 20, "{hellos}");
    assert_eq!(refused_for(&running, "undecided_per_workload")?, 20);
    let heads = scene.crowd("head", &format!("{}:80", world::HTTPBIN), 60)?.end()?;
    assert!(said(&heads, "ended-after-10s") <= 40, "{heads}");
    let at_once = said(&heads, "ended-after-0s") + said(&heads, "ended-after-1s");
    assert!(at_once + refused(&heads) >= 20, "{heads}");
    expect_steady(&steady.end()?);
    Ok(())
}

/// T-50: the last descriptors stay the daemon's, which answers, does not spin, and recovers.
#[test]
fn t50_the_last_descriptors_are_the_daemon_s_own() -> Result<()> {
    if !kernel_tests() {
        return Ok(());
    }
    let scene = Scene::new("t50")?;
    let running = scene.daemon("connections: 100000, descriptorReserve: 150", Some(600))?;
    let mut idle = scene.crowd("idle", &echo(), 1_000)?;
    idle.wait_until_connected()?;
    let deadline = Instant::now() + Duration::from_secs(5);
    while refused_for(&running, "descriptors")? == 0 {
        ensure!(Instant::now() < deadline, "{}", running.status()?);
    }
    let (descriptors, _) = held(&running)?;
    assert!(descriptors <= 460, "{descriptors} of 600, of which 150 are the daemon's own");
    let spent = processor_time(&running)?;
    std::thread::sleep(Duration::from_secs(2));
    let spent = processor_time(&running)? - spent;
    assert!(spent < Duration::from_millis(400), "{spent:?} of 2 s while nothing happens");
    assert_eq!(running.status()?["connections"]["accept_failures"], 0);

    let idle = idle.end()?;
    let refused = said(&idle, "ECONNRESET");
    assert!(refused >= 500, "{idle}");
    assert_eq!(said(&idle, "held") + refused, 1_000, "{idle}");
    wait_until_given_back(&running)?;
    let steady = scene.requests()?;
    std::thread::sleep(Duration::from_secs(3));
    expect_steady(&steady.end()?);
    let lines = limit_lines(&running);
    assert!(lines.iter().any(|line| line.starts_with("limit_reached{descriptors}")), "{lines:?}");
    Ok(())
}

/// T-52: what comes and goes leaves nothing: no descriptor, no entry, no memory.
#[test]
fn t52_connections_that_come_and_go_leave_nothing() -> Result<()> {
    if !kernel_tests() {
        return Ok(());
    }
    let scene = Scene::new("t52")?;
    let running = scene.daemon("", None)?;
    let steady = scene.requests()?;
    let mut before = None;
    for round in 0..3 {
        let resets = scene.crowd("reset", &echo(), 5_000)?.end()?;
        // Beyond the cap of undecided ones they are refused, which is a reset as well.
        assert_eq!(said(&resets, "reset") + refused(&resets), 5_000, "{resets}");
        // Where nothing is allowed: a scan, and refusals at once.
        let mut counts = String::new();
        for (to, count) in [("203.0.113.99:7", 2_000), ("203.0.113.40:1", 500)] {
            let refused = scene.crowd("idle", to, count)?.end()?;
            write!(counts, "{refused} ")?;
        }
        let took = wait_until_given_back(&running)?;
        let after = held(&running)?;
        eprintln!("round {round}: {after:?} after {took:?}; {counts}");
        if let Some((descriptors, memory)) = before.replace(after).filter(|_| round == 2) {
            assert!(after.0 <= descriptors + 10, "{descriptors} descriptors, then {}", after.0);
            assert!(after.1 <= memory + memory / 2, "{memory} KiB, then {}", after.1);
        }
    }
    expect_steady(&steady.end()?);
    Ok(())
}

/// T-53, T-56: names that nobody knows, however many, make no metric: the same ones as before, and
/// nothing of the names in them.
#[test]
fn t53_names_that_nobody_knows_make_no_metric() -> Result<()> {
    if !kernel_tests() {
        return Ok(());
    }
    let scene = Scene::new("t53")?;
    let running = scene.daemon("", None)?;
    let series = || -> Result<Vec<String>> {
        let text = running.verb(&["metrics"])?.stdout;
        let lines = text.lines().filter(|line| !line.starts_with('#'));
        let names = lines.filter_map(|line| line.rsplit_once(' ').map(|(name, _)| name.to_owned()));
        Ok(names.collect())
    };
    let names = |first: &str| -> Result<()> {
        let command = [CLIENT, "many", first, "--count", "400", "--concurrency", "8"];
        let said = Crowd { child: scene.start(0, &command, Stdio::piped())? }.end()?;
        assert_eq!(said, "502=400");
        Ok(())
    };
    // A first time, so that reasons that had no count yet have one.
    names("198.51.100.10")?;
    let before = series()?;
    assert!(before.len() > 50, "{before:?}");
    names("203.0.113.10")?;
    assert_eq!(series()?, before);
    for series in before {
        let word = series.split('"').nth(1).unwrap_or_default();
        assert!(!word.contains("example") && !word.contains('.'), "{series}");
    }
    Ok(())
}

/// What the daemon has used of the processors.
fn processor_time(running: &Running<'_>) -> Result<Duration> {
    let stat = fs::read_to_string(format!("/proc/{}/stat", running.pid()))?;
    let (_, fields) = stat.rsplit_once(") ").context("stat")?;
    let fields: Vec<_> = fields.split(' ').collect();
    let ticks = fields[11].parse::<u64>()? + fields[12].parse::<u64>()?;
    // USER_HZ is 100 on every architecture that Linux still has.
    Ok(Duration::from_millis(ticks * 10))
}
