//! One workload takes all that it can get; another one, in a namespace of its own under the same
//! daemon, notices nothing, and all is given back (threats, section 9).

use std::fmt::Write as _;
use std::fs;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use interceptor_tests::cgroup::Cgroup;
use interceptor_tests::log::Line;
use interceptor_tests::ongoing::{Ongoing, numbers, reset_at_once, said};
use interceptor_tests::process::{Held, processor_time};
use interceptor_tests::product::{Interceptor, Running, binary};
use interceptor_tests::servers::port;
use interceptor_tests::world::{self, World, kernel_tests};
use nix::sys::resource::{Resource, getrlimit, setrlimit};

const CLIENT: &str = env!("CARGO_BIN_EXE_interceptor-test-client");
/// Idle connections of the big crowd, where the machine has the descriptors.
const CROWD: u64 = 9_000;
/// What of them is fewer than worth the name.
const FEWEST: u64 = 1_000;
/// Connections that the steady workload has at a time.
const STEADY: u64 = 4;
/// How long everything may take to be given back.
const GIVEN_BACK: Duration = Duration::from_secs(30);

/// When slow ones are closed, in whole seconds: sniffing has 5, a head 10 from its first byte.
const HELLO_SECONDS: [u64; 2] = [5, 6];
const HEAD_SECONDS: [u64; 2] = [10, 11];
/// Slow ones of each kind.
const SLOW: u64 = 200;

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
        let site = format!("  resolution: STATIC\n  endpoints:\n  - address: {}\n", world::HTTPBIN);
        let files = [
            world.file("config.yaml", &config)?,
            world.entry("echo.test", port::ECHO, "TCP", &addresses)?,
            world.entry("www.google.com", 443, "TLS", dns)?,
            // Not by a name: the resolver is the crowd's server, and as busy.
            world.entry("httpbin.org", 80, "HTTP", &site)?,
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
    fn crowd(&self, manner: &str, to: &str, count: u64) -> Result<Ongoing> {
        let count = count.to_string();
        let command = [CLIENT, "crowd", to, "--count", &count, "--manner", manner];
        Ok(self.start(0, &command, Stdio::piped())?.into())
    }

    /// The steady workload's requests, until they are ended.
    fn requests(&self) -> Result<Ongoing> {
        let to = format!("{}:80", world::HTTPBIN);
        Ok(self.start(1, &[CLIENT, "steady", &to, "httpbin.org"], Stdio::piped())?.into())
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

/// At least 999 of 1,000 requests were answered, and there were `enough` to tell.
fn expect_steady(text: &str, enough: u64) {
    eprintln!("the other workload: {text}");
    let ends = numbers(text).filter(|(word, _)| !word.ends_with("-ms"));
    let all: u64 = ends.map(|(_, times)| times).sum();
    let answered = said(text, "200");
    assert!(answered >= enough, "{text}");
    assert!(answered * 1000 >= all * 999, "{text}");
}

/// How many of a crowd of slow ones were closed in these seconds.
fn within(text: &str, seconds: [u64; 2]) -> u64 {
    seconds.iter().map(|second| said(text, &format!("ended-after-{second}s"))).sum()
}

/// Waits until no connection is open at the proxy but the steady workload's own, and the daemon holds
/// at most a tenth more than `before`; what it holds then.
fn given_back(running: &Running<'_>, before: Option<Held>) -> Result<Held> {
    let start = Instant::now();
    loop {
        let status = running.status()?;
        let open = status["connections"]["active"].as_u64().context("active")?;
        let handovers = running.entries("HANDOVERS")?;
        let now = Held::by(running.pid())?;
        let fits = before.is_none_or(|before| now.is_like(before));
        if open <= STEADY && handovers <= STEADY && fits {
            return Ok(now);
        }
        ensure!(
            start.elapsed() < GIVEN_BACK,
            "after {GIVEN_BACK:?}: {now:?} (before: {before:?}), {open} open, {handovers} on their way"
        );
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

/// The lines that say that a limit was reached.
fn limit_lines(running: &Running<'_>) -> Vec<Line> {
    let lines = running.lines();
    let lines = lines.iter().map(|line| Line::parse(line).expect("a line"));
    lines.filter(|line| line.field("RESPONSE_FLAGS") == "OM").collect()
}

/// Refusals that those lines stand for.
fn refusals(lines: &[Line]) -> u64 {
    lines.iter().map(Line::stands_for).sum()
}

/// Why they were, with how often.
fn why(line: &Line) -> &str {
    line.field("CONNECTION_TERMINATION_DETAILS")
}

/// Refusals for a limit so far, of any limit, by `status`.
fn refused_in_all(running: &Running<'_>) -> Result<u64> {
    let status = running.status()?;
    let limits = status["limits"].as_array().context("limits")?;
    Ok(limits.iter().filter_map(|row| row["refused"].as_u64()).sum())
}

/// Waits until the crowd has so many connections at the proxy.
fn wait_until_open(running: &Running<'_>, count: u64) -> Result<()> {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        let status = running.status()?;
        let open = status["connections"]["active"].as_u64().context("active")?;
        if open >= count {
            return Ok(());
        }
        ensure!(Instant::now() < deadline, "{open} of {count}: {}", status["limits"]);
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// How many idle connections this machine can hold: two descriptors of the daemon's each, one of
/// the client's, one of the servers' in this process.
fn crowd_size() -> Result<u64> {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
    let size = CROWD.min(hard.saturating_sub(1_000) * 9 / 19);
    ensure!(size >= FEWEST, "the hard limit of {hard} open files is too low: 4,000 are needed");
    if size < CROWD {
        eprintln!("{size} connections instead of {CROWD}: the hard limit is {hard} open files");
    }
    Ok(size)
}

/// Slow ones were each reaped at their deadline, or refused before it, and told of as such.
fn expect_slow_ends(ends: &str, deadline: u64, to: &str, lines: &[Line]) {
    let told = lines.iter().filter(|line| line.field("DOWNSTREAM_LOCAL_ADDRESS") == to);
    let told: u64 = told.map(Line::stands_for).sum();
    let between = |seconds: std::ops::Range<u64>| -> u64 {
        seconds.map(|second| said(ends, &format!("ended-after-{second}s"))).sum()
    };
    let refused = said(ends, "connect-ECONNRESET") + between(0..deadline);
    assert_eq!(refused, told, "to {to}: {ends}");
    // Seconds more, where the machine is busy; t48 looks at the deadline itself.
    assert_eq!(refused + between(deadline..deadline + 15), SLOW, "to {to}: {ends}");
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
    let hellos = scene.crowd("hello", &format!("{}:443", world::GOOGLE), SLOW)?;
    let heads = scene.crowd("head", &format!("{}:80", world::HTTPBIN), SLOW)?;
    let (hellos, heads) = (hellos.end()?, heads.end()?);
    assert_eq!(within(&hellos, HELLO_SECONDS), SLOW, "{hellos}");
    assert_eq!(within(&heads, HEAD_SECONDS), SLOW, "{heads}");
    expect_steady(&steady.end()?, 20);
    given_back(&running, None)?;
    Ok(())
}

/// T-48, T-49, T-51, T-52: the whole of it at once and twice, by the limits that hold where nobody set
/// any. What is one workload's too many is refused to it, for a reason that is told.
#[test]
fn t49_nine_thousand_idle_connections_and_more_leave_the_other_workload_alone() -> Result<()> {
    if !kernel_tests() {
        return Ok(());
    }
    let size = crowd_size()?;
    let scene = Scene::new("t49")?;
    let running = scene.daemon("", None)?;
    let (google, httpbin) = (format!("{}:443", world::GOOGLE), format!("{}:80", world::HTTPBIN));
    let steady = scene.requests()?;
    std::thread::sleep(Duration::from_secs(3));
    let before = Held::by(running.pid())?;
    for round in 0..2 {
        let lines_before = limit_lines(&running).len();
        let refused_before = refused_in_all(&running)?;
        let mut idle = scene.crowd("idle", &echo(), size)?;
        idle.wait_for("connected")?;
        wait_until_open(&running, size)?;
        let mut hellos = scene.crowd("hello", &google, SLOW)?;
        let mut heads = scene.crowd("head", &httpbin, SLOW)?;
        hellos.wait_for("connected")?;
        heads.wait_for("connected")?;
        let resets = scene.crowd("reset", &echo(), 5_000)?.end()?;
        assert_eq!(said(&resets, "reset") + reset_at_once(&resets), 5_000, "{resets}");
        let full = Held::by(running.pid())?;
        let (hellos, heads) = (hellos.end()?, heads.end()?);
        let idle = idle.end()?;
        assert_eq!(said(&idle, "held"), size, "{idle}; {}", running.status()?["limits"]);
        let after = given_back(&running, Some(before))?;

        let refused = refused_in_all(&running)? - refused_before;
        let deadline = Instant::now() + Duration::from_secs(5);
        let mut lines = limit_lines(&running).split_off(lines_before);
        while refusals(&lines) < refused && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(100));
            lines = limit_lines(&running).split_off(lines_before);
        }
        assert_eq!(refusals(&lines), refused, "each refusal is told of");
        expect_slow_ends(&hellos, HELLO_SECONDS[0], &google, &lines);
        expect_slow_ends(&heads, HEAD_SECONDS[0], &httpbin, &lines);
        eprintln!(
            "round {round}: {before:?}, {full:?} with the crowd, then {after:?}; {refused} refused; \
             {hellos}; {heads}"
        );
    }
    for limit in ["undecided", "undecided_per_workload"] {
        assert_eq!(refused_for(&running, limit)?, 0, "{limit}");
    }
    expect_steady(&steady.end()?, 1_000);
    Ok(())
}

/// T-49: the cap is each workload's own, what is beyond is refused at once, said once for many, and
/// shown; a higher one acts on the next connection.
#[test]
fn t49_what_one_workload_has_too_many_is_refused_at_once() -> Result<()> {
    if !kernel_tests() {
        return Ok(());
    }
    let scene = Scene::new("cap")?;
    let running = scene.daemon("connectionsPerWorkload: 50", None)?;
    let steady = scene.requests()?;
    let mut idle = scene.crowd("idle", &echo(), 80)?;
    idle.wait_for("connected")?;
    let deadline = Instant::now() + Duration::from_secs(3);
    while refused_for(&running, "connections_per_workload")? < 30 {
        ensure!(Instant::now() < deadline, "{}", running.status()?);
    }
    let metrics = running.verb(&["metrics"])?.stdout;
    let metric = "interceptor_limit_reached_total{limit=\"connections_per_workload\"} 30\n";
    assert!(metrics.contains(metric), "{metrics}");
    let status = running.verb(&["status"])?.stdout;
    let row = status.lines().find(|line| line.contains("connections_per_workload"));
    let row: Vec<_> = row.context(status.clone())?.split_whitespace().collect();
    assert_eq!(row, ["connections_per_workload", "50", "50", "30"]);

    let raised = scene.crowd.dir().join("config.yaml");
    let text = fs::read_to_string(&raised)?.replace("50", "500");
    fs::write(&raised, text)?;
    let before = running.status()?["generation"].as_u64();
    let deadline = Instant::now() + Duration::from_secs(5);
    while running.status()?["generation"].as_u64() == before {
        ensure!(Instant::now() < deadline, "no reload: {}", running.status()?);
    }
    let mut more = scene.crowd("idle", &echo(), 80)?;
    more.wait_for("connected")?;
    let more = more.end()?;
    assert_eq!(said(&more, "held"), 80, "{more}");

    let idle = idle.end()?;
    assert_eq!((said(&idle, "held"), reset_at_once(&idle)), (50, 30), "{idle}");
    expect_steady(&steady.end()?, 20);
    // What is folded is written within two seconds.
    let deadline = Instant::now() + Duration::from_secs(3);
    let mut lines = limit_lines(&running);
    while refusals(&lines) < 30 && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(50));
        lines = limit_lines(&running);
    }
    assert!(lines.len() < 10, "{lines:?}");
    assert_eq!(refusals(&lines), 30, "{lines:?}");
    assert_eq!(why(&lines[0]), "limit_reached{connections_per_workload}");
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
    assert_eq!(reset_at_once(&hellos), 20, "{hellos}");
    assert_eq!(refused_for(&running, "undecided_per_workload")?, 20);
    let heads = scene.crowd("head", &format!("{}:80", world::HTTPBIN), 60)?.end()?;
    assert!(said(&heads, "ended-after-10s") <= 40, "{heads}");
    assert!(reset_at_once(&heads) + said(&heads, "ended-after-1s") >= 20, "{heads}");
    expect_steady(&steady.end()?, 20);
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
    idle.wait_for("connected")?;
    let deadline = Instant::now() + Duration::from_secs(5);
    while refused_for(&running, "descriptors")? == 0 {
        ensure!(Instant::now() < deadline, "{}", running.status()?);
    }
    let descriptors = Held::by(running.pid())?.descriptors;
    assert!(descriptors <= 460, "{descriptors} of 600, of which 150 are the daemon's own");
    let spent = processor_time(running.pid())?;
    std::thread::sleep(Duration::from_secs(2));
    let spent = processor_time(running.pid())? - spent;
    assert!(spent < Duration::from_millis(400), "{spent:?} of 2 s while nothing happens");
    assert_eq!(running.status()?["connections"]["accept_failures"], 0);

    let idle = idle.end()?;
    let refused = reset_at_once(&idle);
    assert!(refused >= 500, "{idle}");
    assert_eq!(said(&idle, "held") + refused, 1_000, "{idle}");
    given_back(&running, None)?;
    let steady = scene.requests()?;
    std::thread::sleep(Duration::from_secs(3));
    expect_steady(&steady.end()?, 20);
    let lines = limit_lines(&running);
    assert!(
        lines.iter().any(|line| why(line).starts_with("limit_reached{descriptors}")),
        "{lines:?}"
    );
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
        assert_eq!(said(&resets, "reset"), 5_000, "{resets}");
        // Where nothing is allowed: a scan, and refusals at once.
        let mut counts = String::new();
        for (to, count) in [("203.0.113.99:7", 2_000), ("203.0.113.40:1", 500)] {
            let refused = scene.crowd("idle", to, count)?.end()?;
            write!(counts, "{refused} ")?;
        }
        before = Some(given_back(&running, before)?);
        eprintln!("round {round}: {before:?}; {counts}");
    }
    expect_steady(&steady.end()?, 20);
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
        let said = Ongoing::from(scene.start(0, &command, Stdio::piped())?).end()?;
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
