//! T-60: a daemon takes the place of another that lives. No connection notices, but those that last,
//! which end as they are told.

use std::net::{IpAddr, SocketAddr};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command};
use std::thread::sleep;
use std::time::{Duration, Instant};
use std::{env, fs};

use anyhow::{Context, Result, ensure};
use interceptor_tests::capture::Capture;
use interceptor_tests::cgroup::Cgroup;
use interceptor_tests::dweller::Dweller;
use interceptor_tests::log::Line;
use interceptor_tests::ongoing::{Ongoing, numbers, said};
use interceptor_tests::product::{Interceptor, Running, binary};
use interceptor_tests::servers::port;
use interceptor_tests::world::{self, World, kernel_tests};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

const CLIENT: &str = env!("CARGO_BIN_EXE_interceptor-test-client");

const UPGRADES: u64 = 20;
const STEADY: Duration = Duration::from_secs(5);
/// From the start of a daemon to its having the place.
const START: Duration = Duration::from_secs(30);

/// A covered cgroup with traffic by every way: HTTP by the proxy, TLS by its name, a bypassed network,
/// an echo by address.
struct Scene {
    world: World,
    cgroup: Cgroup,
    flags: Vec<String>,
}

impl Scene {
    fn new(name: &str, flags: &[&str]) -> Result<Self> {
        let world = World::new()?;
        let addresses = format!("  addresses: [{}]\n", world::GOOGLE);
        let files = [
            world.entry("v4.example.com", 80, "HTTP", "  resolution: DNS\n")?,
            world.entry("www.google.com", 443, "TLS", "  resolution: DNS\n")?,
            world.entry("echo.test", port::ECHO, "TCP", &addresses)?,
        ];
        let bypass = format!("{}/32", world::HTTPBIN);
        let mut all = vec!["--take-over", "--outbound", "registry-only", "--bypass", &bypass];
        all.extend(files.iter().flat_map(|file| ["-f", file]));
        all.extend(flags);
        let flags = all.into_iter().map(str::to_owned).collect();
        Ok(Self { cgroup: Cgroup::create(name)?, world, flags })
    }

    fn cover(&self) -> Result<Running<'_>> {
        let flags: Vec<&str> = self.flags.iter().map(String::as_str).collect();
        Interceptor::new(&self.world, &binary(), &flags).cover(self.cgroup.path())
    }

    fn client(&self, arguments: &[&str]) -> Result<Ongoing> {
        Ongoing::start(&self.world, &self.cgroup, &[&[CLIENT][..], arguments].concat())
    }

    fn dweller(&self, what: &[&str]) -> Result<Dweller> {
        Dweller::start(&self.world, &self.world.workload, Some(&self.cgroup), CLIENT, what)
    }
}

fn at(ip: IpAddr, port: u16) -> String {
    SocketAddr::new(ip, port).to_string()
}

/// A daemon whose place was taken. Dropping it kills it.
struct Before(Child);

impl Before {
    fn is_running(&mut self) -> Result<bool> {
        Ok(self.0.try_wait()?.is_none())
    }

    /// Its exit status, once it has ended by itself.
    fn ended(mut self, limit: Duration) -> Result<i32> {
        let status = world::wait(&mut self.0, limit)?;
        Ok(world::exit_code(status.with_context(|| format!("it drains for more than {limit:?}"))?))
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        Ok(kill(Pid::from_raw(i32::try_from(self.0.id())?), signal)?)
    }
}

impl Drop for Before {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The process that answers at the control socket.
fn in_place(running: &Running<'_>) -> Result<u64> {
    running.status()?["pid"].as_u64().context("a pid")
}

/// The listeners of each covered namespace.
fn listeners(running: &Running<'_>) -> Result<Vec<[serde_json::Value; 3]>> {
    let status = running.status()?;
    let namespaces = status["namespaces"].as_array().context("namespaces")?;
    let of = |one: &serde_json::Value| {
        ["cookie", "listener_v4", "listener_v6"].map(|field| one[field].clone())
    };
    Ok(namespaces.iter().map(of).collect())
}

fn until_in_place(running: &mut Running<'_>) -> Result<()> {
    let deadline = Instant::now() + START;
    while in_place(running)? != u64::from(running.pid()) {
        ensure!(Instant::now() < deadline, "not in place: {}", running.stderr()?);
        sleep(Duration::from_millis(20));
    }
    Ok(())
}

/// Starts the same command line once more; gives the one before once the new one is in place.
fn upgrade(running: &mut Running<'_>, scene: &Scene) -> Result<Before> {
    let again = running.cover_command(scene.cgroup.path());
    let before = Before(running.start_again(again)?);
    until_in_place(running)?;
    Ok(before)
}

/// Waits until a process has come as far as preparing: it is where daemons are.
fn until_prepares(child: &mut Child) -> Result<()> {
    let deadline = Instant::now() + START;
    while !fs::read_to_string(format!("/proc/{}/cgroup", child.id()))?.contains("/daemon\n") {
        ensure!(child.try_wait()?.is_none(), "it ended");
        ensure!(Instant::now() < deadline, "it does not get so far");
        sleep(Duration::from_millis(1));
    }
    Ok(())
}

/// All requests were answered with 200; gives how many there were.
fn all_answered(text: &str) -> u64 {
    let ends: Vec<_> = numbers(text).filter(|(word, _)| !word.ends_with("-ms")).collect();
    assert!(matches!(ends[..], [("200", 1..)]), "{text}");
    ends[0].1
}

/// The lines of one destination.
fn lines_to(running: &Running<'_>, to: &str) -> Result<Vec<Line>> {
    let mut found = Vec::new();
    for line in running.lines() {
        let line = Line::parse(&line).map_err(|error| anyhow::anyhow!("{error}: {line}"))?;
        if line.field("DOWNSTREAM_LOCAL_ADDRESS") == to {
            found.push(line);
        }
    }
    Ok(found)
}

/// Waits until a destination has so many lines; more than that are a failure, as are less.
fn expect_lines(running: &Running<'_>, to: &str, count: u64) -> Result<Vec<Line>> {
    let deadline = Instant::now() + STEADY;
    while (lines_to(running, to)?.len() as u64) < count && Instant::now() < deadline {
        sleep(Duration::from_millis(50));
    }
    sleep(Duration::from_millis(100));
    let lines = lines_to(running, to)?;
    assert_eq!(lines.len() as u64, count, "lines of {to}");
    Ok(lines)
}

#[test]
fn t60_twenty_upgrades_under_load_refuse_nothing_and_let_nothing_out() -> Result<()> {
    if !kernel_tests() {
        return Ok(());
    }
    let scene = Scene::new("upgrade", &["--drain-time", "20"])?;
    let mut running = scene.cover()?;
    let [page, named, bypassed] =
        [at(world::EXAMPLE_V4, 80), at(world::GOOGLE, 443), at(world::HTTPBIN, 80)];
    let (kept, tried) = (at(world::GOOGLE, port::ECHO), at(world::CNN, 80));
    let capture =
        Capture::keeping(&scene.world.internet, |packet| packet.destination == world::CNN)?;
    let inside = scene.dweller(&["--keep", &kept, "--attempt", &tried])?;
    let clients = [
        (&page, scene.client(&["steady", &page, "v4.example.com"])?),
        (&named, scene.client(&["steady", &named, "www.google.com", "--tls"])?),
        (&bypassed, scene.client(&["steady", &bypassed, "httpbin.org"])?),
    ];
    let sockets = listeners(&running)?;

    let mut slowest = Duration::ZERO;
    for number in 1..=UPGRADES {
        let begun = Instant::now();
        let before = upgrade(&mut running, &scene)?;
        slowest = slowest.max(begun.elapsed());
        assert_eq!(before.ended(STEADY)?, 0, "upgrade {number}");
        assert_eq!(listeners(&running)?, sockets, "the same listeners");
        inside.goes_on(&kept, STEADY)?;
        inside.goes_on(&tried, STEADY)?;
    }

    let mut sum = 0;
    for (to, client) in clients {
        let text = client.end()?;
        println!("{to}: {text}");
        let count = all_answered(&text);
        expect_lines(&running, to, count)?;
        sum += count;
    }
    println!("{UPGRADES} upgrades, {} ms at most; {sum} connections", slowest.as_millis());
    let tiers = running.status()?["tiers"].clone();
    for tier in ["bypass", "direct", "name", "proxy"] {
        assert!(tiers[tier].as_u64() > Some(0), "{tier}: {tiers}");
    }
    assert_eq!(inside.doing(&kept)?.state, "alive", "every byte came back as it was sent");
    let tries = inside.doing(&tried)?.count;
    assert!(tries > UPGRADES, "{tries} tries");
    assert_eq!(capture.packets_to(world::CNN), 0, "after {tries} tries");

    // The control: what tried all the time gets out once nothing covers it.
    running.stop()?;
    let deadline = Instant::now() + STEADY;
    while capture.packets_to(world::CNN) == 0 {
        ensure!(Instant::now() < deadline, "the control does not get out");
    }
    Ok(())
}

/// Relays go on with the old one; HTTP is told to go elsewhere; a bypass of the time before stays.
#[test]
fn t60_what_lasts_goes_on_or_is_told() -> Result<()> {
    if !kernel_tests() {
        return Ok(());
    }
    let scene = Scene::new("lasting", &["--fast-path", "false", "--drain-time", "600"])?;
    let mut running = scene.cover()?;
    let (page, kept) = (at(world::EXAMPLE_V4, 80), at(world::GOOGLE, port::ECHO));
    let inside = scene.dweller(&["--keep", &kept])?;
    let mut clients = [
        (scene.client(&["linger", &page, "v4.example.com"])?, "close"),
        (scene.client(&["linger", &page, "v4.example.com", "--http2"])?, "goodbye"),
    ];
    assert_eq!(running.verb(&["bypass", "add", "192.0.2.99"])?.code, 0);
    inside.goes_on(&kept, STEADY)?;
    let deadline = Instant::now() + STEADY;
    while lines_to(&running, &page)?.len() < 10 {
        ensure!(Instant::now() < deadline, "{:?}", running.lines());
        sleep(Duration::from_millis(20));
    }

    let mut before = upgrade(&mut running, &scene)?;
    let mut answered = 0;
    for (client, end) in &mut clients {
        let deadline = Instant::now() + STEADY;
        while client.goes_on()? {
            ensure!(Instant::now() < deadline, "nobody tells it to {end}");
            sleep(Duration::from_millis(20));
        }
    }
    for (client, end) in clients {
        let text = client.end()?;
        println!("{text}");
        assert_eq!(said(&text, end), 1, "{text}");
        answered += said(&text, "answered");
    }
    expect_lines(&running, &page, answered)?;
    let bypass = running.verb(&["bypass", "list"])?.stdout;
    assert_eq!(bypass.lines().collect::<Vec<_>>(), ["192.0.2.99/32", "203.0.113.10/32"]);

    // Whoever comes now is the new one's.
    let client = scene.client(&["steady", &page, "v4.example.com"])?;
    sleep(Duration::from_millis(500));
    let count = all_answered(&client.end()?);
    assert_eq!(running.status()?["connections"]["total"], count);

    // What manages daemons sends SIGTERM when the new one is ready.
    before.signal(Signal::SIGTERM)?;
    inside.goes_on(&kept, STEADY)?;
    assert!(before.is_running()? && lines_to(&running, &kept)?.is_empty());
    let attached = running.status()?["attachments"].as_array().context("attachments")?.len();
    drop(inside);
    assert_eq!(before.ended(STEADY)?, 0, "it ends with its last connection");
    let relay = &expect_lines(&running, &kept, 1)?[0];
    assert_ne!(relay.field("BYTES_SENT"), "0");
    assert_eq!(relay.field("CONNECTION_TERMINATION_DETAILS"), "-");
    let still = running.status()?["attachments"].as_array().context("attachments")?.len();
    assert_eq!((still, running.status()?["repairs"]["count"].as_u64()), (attached, Some(0)));
    Ok(())
}

#[test]
fn t60_what_does_not_end_in_time_is_cut() -> Result<()> {
    if !kernel_tests() {
        return Ok(());
    }
    let scene = Scene::new("drained", &["--fast-path", "false", "--drain-time", "1"])?;
    let mut running = scene.cover()?;
    let kept = at(world::GOOGLE, port::ECHO);
    let inside = scene.dweller(&["--keep", &kept])?;
    inside.goes_on(&kept, STEADY)?;
    assert_eq!(upgrade(&mut running, &scene)?.ended(STEADY)?, 0);
    let relay = &expect_lines(&running, &kept, 1)?[0];
    assert_eq!(relay.field("CONNECTION_TERMINATION_DETAILS"), "drain_timeout");
    assert_ne!(relay.field("BYTES_SENT"), "0");
    let state = inside.doing(&kept)?.state;
    assert_eq!(state, "ECONNRESET", "as the relay of a killed upstream");
    Ok(())
}

/// A new one that dies before it has the place leaves everything to the old one; one that dies after
/// that is what any killed daemon is.
#[test]
fn t60_a_new_one_that_dies_leaves_the_old_one_enforcing() -> Result<()> {
    if !kernel_tests() {
        return Ok(());
    }
    let scene = Scene::new("dies", &["--fast-path", "false", "--drain-time", "600"])?;
    let mut running = scene.cover()?;
    let (page, kept) = (at(world::EXAMPLE_V4, 80), at(world::GOOGLE, port::ECHO));
    let client = scene.client(&["steady", &page, "v4.example.com"])?;
    let inside = scene.dweller(&["--keep", &kept])?;
    let first = u64::from(running.pid());
    for _ in 0..5 {
        let mut new = running.start_beside(running.cover_command(scene.cgroup.path()))?;
        until_prepares(&mut new)?;
        new.kill()?;
        new.wait()?;
        assert_eq!(in_place(&running)?, first);
        inside.goes_on(&kept, STEADY)?;
    }
    assert_eq!(running.status()?["repairs"]["count"], 0, "nothing was changed");
    println!("{} requests", all_answered(&client.end()?));

    let mut before = upgrade(&mut running, &scene)?;
    running.kill()?;
    let again = running.cover_command(scene.cgroup.path());
    running.start_again(again)?;
    running.until_ready()?;
    let client = scene.client(&["steady", &page, "v4.example.com"])?;
    sleep(Duration::from_millis(500));
    all_answered(&client.end()?);
    assert!(before.is_running()?, "it drains all the same");
    inside.goes_on(&kept, STEADY)?;
    before.signal(Signal::SIGINT)?;
    assert_eq!(before.ended(STEADY)?, 0, "somebody does not want to wait");
    Ok(())
}

/// The listeners are the new one's already: whoever comes meanwhile waits, and is not refused.
#[test]
fn t60_an_old_one_that_dies_meanwhile_is_inherited() -> Result<()> {
    if !kernel_tests() {
        return Ok(());
    }
    let scene = Scene::new("inherits", &["--fast-path", "false"])?;
    let mut running = scene.cover()?;
    let page = at(world::EXAMPLE_V4, 80);
    let client = scene.client(&["steady", &page, "v4.example.com"])?;
    let sockets = listeners(&running)?;
    let mut new = running.start_beside(running.cover_command(scene.cgroup.path()))?;
    until_prepares(&mut new)?;
    running.kill()?;
    // From here on `running` is the new one.
    running.adopt(new);
    running.until_ready()?;
    assert_eq!(in_place(&running)?, u64::from(running.pid()));
    assert_eq!(listeners(&running)?, sockets, "the same listeners");
    sleep(Duration::from_millis(500));
    let text = client.end()?;
    println!("{text}");
    assert_eq!(said(&text, "ECONNREFUSED"), 0, "{text}");
    assert!(said(&text, "200") > 20, "{text}");
    assert!(running.stderr()?.contains("died while it handed over"), "{}", running.stderr()?);
    Ok(())
}

#[test]
fn t60_a_place_is_roots_and_a_commands_is_nobodys() -> Result<()> {
    if !kernel_tests() {
        return Ok(());
    }
    let scene = Scene::new("refused", &[])?;
    let running = scene.cover()?;
    let name = running.name();
    let ends = |mut command: Command| scene.world.output(&mut command, START);

    let mut another = running.cover_command(scene.cgroup.path());
    another.uid(1000).gid(1000);
    let refused = ends(another)?;
    assert_eq!(refused.code, 77, "{}", refused.stderr);
    // Nor by way of the socket.
    let socket = format!("/run/interceptor/{name}.sock");
    let mut another = scene.world.command("test");
    another.args(["-w", &socket]).uid(1000).gid(1000);
    assert_ne!(ends(another)?.code, 0);

    let mut without = scene.world.command(binary());
    without.args(["run", "--name", name, "--cgroup"]).arg(scene.cgroup.path());
    let refused = ends(without)?;
    assert_eq!(refused.code, 73, "{}", refused.stderr);
    assert!(refused.stderr.contains("--take-over takes its place"), "{}", refused.stderr);
    assert_eq!(in_place(&running)?, u64::from(running.pid()));

    let of_command = Interceptor::new(&scene.world, &binary(), &["--outbound", "registry-only"]);
    let of_command = of_command.start()?;
    let mut taking = scene.world.command(binary());
    taking.args(["run", "--take-over", "--name", of_command.name(), "--cgroup"]);
    taking.arg(scene.cgroup.path());
    let refused = ends(taking)?;
    assert_eq!(refused.code, 1, "{}", refused.stderr);
    assert!(refused.stderr.contains("runs a command of its own"), "{}", refused.stderr);
    assert_eq!(in_place(&of_command)?, u64::from(of_command.pid()));
    Ok(())
}
