//! The fast path and names: addresses that change, and what resolvers' answers are good for.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use hickory_proto::op::{Message, OpCode, Query};
use hickory_proto::rr::{Name, RData, Record, RecordType};
use interceptor_tests::held::Held;
use interceptor_tests::log::Line;
use interceptor_tests::product::{Interceptor, Running, binary};
use interceptor_tests::servers::port;
use interceptor_tests::shapes::passed;
use interceptor_tests::world::{self, World, kernel_tests};

const CLIENT: &str = env!("CARGO_BIN_EXE_interceptor-test-client");
const NAME: &str = "v4.example.com";

/// 2,000 addresses, a TTL of 1 s, four addresses in an answer, the next four after `each`: every
/// connection works, whichever way it takes. Gives how many of `count` went direct.
fn rotate(each: Duration, count: u64) -> Result<u64> {
    let world = World::new()?;
    world.internet.ip(&["route", "add", "local", "10.80.0.0/20", "dev", "lo"])?;
    let first = Ipv4Addr::new(10, 80, 0, 1).to_bits();
    let addresses = (0..2000).map(|n| IpAddr::from(Ipv4Addr::from_bits(first + n)));
    world.zone.rotate(NAME, addresses.collect(), 4, each);
    let entry = world.entry(NAME, 443, "TLS", "  resolution: DNS\n")?;
    let running = Interceptor::fast(&world, &entry, &[]).start()?;
    running.wait_for_entries("NAMES", 1)?;
    let script = format!(
        "for i in $(seq {count}); do curl -sSI -o /dev/null https://{NAME} || echo failed; done"
    );
    let lines = usize::try_from(count)?;
    let outcome = running.exec(&["bash", "-c", &script], lines)?;
    assert_eq!(outcome.finished.stdout, "", "{}", outcome.finished.stderr);
    let refused: Vec<_> = outcome.log.iter().filter(|line| line.contains(" UH ")).collect();
    assert!(refused.is_empty(), "{refused:#?}");
    let (direct, proxied) = (running.counter("name_allowed")?, running.counter("redirected")?);
    assert_eq!(direct + proxied, count);
    println!("2,000 addresses, other ones every {each:?}: {direct} of {count} direct, 0 refused");
    Ok(direct)
}

#[test]
fn rotating_addresses_are_never_refused() -> Result<()> {
    if !kernel_tests() {
        return Ok(());
    }
    // Every question has another answer: the daemon can know few.
    rotate(Duration::ZERO, 100)?;
    // As a cache on the way answers, for as long as the TTL says.
    assert!(rotate(Duration::from_secs(1), 200)? > 0);
    Ok(())
}

/// The address leaves the answers between the connect and the last byte of the hello.
#[test]
fn a_connection_under_way_may_show_its_name_at_an_old_address() -> Result<()> {
    let Some(world) = World::testable()? else { return Ok(()) };
    let second = Duration::from_secs(1);
    world.zone.rotate(NAME, vec![world::EXAMPLE_V4], 1, second);
    let entry = world.entry(NAME, 443, "TLS", "  resolution: DNS\n")?;
    let mesh = world.file("mesh.yaml", "protocolDetectionTimeout: 60s\n")?;
    let running = Interceptor::fast(&world, &entry, &["--mesh-config", &mesh]).start()?;
    running.wait_for_entries("NAMES", 1)?;
    let to = SocketAddr::new(world::EXAMPLE_V4, 443).to_string();
    // Two pieces, and so long between them.
    let slow = [CLIENT, "hello", &to, NAME, "--segment", "150", "--pause", "12000"];
    let mut child = world.spawn(running.exec_command(&slow).stdout(std::process::Stdio::null()))?;
    let deadline = Instant::now() + Duration::from_secs(20);
    while running.counter("hello_held")? == 0 {
        ensure!(Instant::now() < deadline, "nothing was held");
        std::thread::sleep(Duration::from_millis(20));
    }
    world.zone.rotate(NAME, vec![world::CNN], 1, second);
    // New connections are the proxy's by now.
    let deadline = Instant::now() + Duration::from_secs(11);
    while running.counter("redirected")? == 0 {
        ensure!(Instant::now() < deadline, "the address never retired");
        let outcome = running.exec(&[CLIENT, "hello", &to, NAME], 1)?;
        outcome.assert_code(0);
        std::thread::sleep(Duration::from_millis(500));
    }
    let before = running.counter("name_allowed")?;
    let ended = world::wait(&mut child, Duration::from_secs(60))?;
    assert!(ended.is_some_and(|status| status.success()), "{ended:?}");
    assert_eq!(running.counter("name_allowed")?, before + 1);
    assert_eq!(running.counter("refused_endpoint_gone")?, 0);
    Ok(())
}

/// A lookup is enough: the first connection to a name below a wildcard goes direct.
#[test]
fn t_39_a_name_below_a_wildcard_is_known_once_it_was_looked_up() -> Result<()> {
    let Some(world) = World::testable()? else { return Ok(()) };
    let entry = world.entry("*.wikipedia.org", 443, "TLS", "  resolution: DYNAMIC_DNS\n")?;
    let running = Interceptor::fast(&world, &entry, &[]).start()?;
    assert_eq!(running.entries("NAMES")?, 0);
    // Others' names are not asked for.
    let queries = || world.zone.queries("www.google.com");
    running.exec(&["getent", "ahostsv4", "www.google.com"], 0)?;
    let asked = queries();
    running.exec(&["getent", "ahostsv4", "de.wikipedia.org"], 0)?;
    running.wait_for_entries("NAMES", 1)?;
    assert_eq!(queries(), asked, "policy has no use for it");
    let outcome = running.exec(&["curl", "-sSI", "https://de.wikipedia.org"], 1)?;
    outcome.assert_code(0);
    assert_eq!((running.counter("name_allowed")?, running.counter("redirected")?), (1, 0));
    Ok(())
}

/// The forged answer: `name` has the address `ip`.
fn forged(name: &str, ip: Ipv4Addr) -> Result<Vec<u8>> {
    let name = Name::from_ascii(name)?;
    let mut message = Message::response(7, OpCode::Query);
    message.add_query(Query::query(name.clone(), RecordType::A));
    message.add_answer(Record::from_rdata(name, 600, RData::A(ip.into())));
    Ok(message.to_vec()?)
}

/// A resolver that is the workload's accomplice: whatever it is asked, it says `lie`.
struct Accomplice {
    ip: Ipv4Addr,
    socket: UdpSocket,
    lie: Vec<u8>,
}

impl Accomplice {
    fn new(world: &World, lie: Vec<u8>) -> Result<Self> {
        let ip = Ipv4Addr::new(203, 0, 113, 77);
        world.internet.ip(&["addr", "add", &format!("{ip}/32"), "dev", "lo"])?;
        let socket = world.internet.inside(|| UdpSocket::bind((ip, 53)))??;
        socket.set_read_timeout(Some(Duration::from_millis(100)))?;
        Ok(Self { ip, socket, lie })
    }

    /// Lies to the workload, until `heard` is done.
    fn tells(&self, running: &Running<'_>, heard: impl FnOnce() -> Result<()>) -> Result<()> {
        let stop = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let mut buffer = [0; 512];
                while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                    if let Ok((_, from)) = self.socket.recv_from(&mut buffer) {
                        let _ = self.socket.send_to(&self.lie, from);
                    }
                }
            });
            let script = format!(
                "exec 3<>/dev/udp/{}/53; echo ask >&3; read -t 5 -n 1 -u 3 x; echo heard",
                self.ip
            );
            let asked = running.exec(&["bash", "-c", &script], 0);
            let heard = heard();
            stop.store(true, std::sync::atomic::Ordering::Relaxed);
            ensure!(asked?.finished.stdout.contains("heard"), "nothing was heard");
            heard
        })
    }
}

/// Anybody may send what looks like an answer, from a resolver's address too: the daemon asks for the
/// name, and only its own answer counts.
#[test]
fn t_39_a_forged_answer_leads_to_no_byte_at_the_forged_address() -> Result<()> {
    let Some(world) = World::testable()? else { return Ok(()) };
    let evil = Ipv4Addr::new(203, 0, 113, 99);
    let accomplice = Accomplice::new(&world, forged("de.wikipedia.org.", evil)?)?;
    let entry = world.entry("*.wikipedia.org", 443, "TLS", "  resolution: DYNAMIC_DNS\n")?;
    // The daemon asks the first one.
    let resolver = world::DNS.to_string();
    let second = accomplice.ip.to_string();
    let flags = ["--resolver", &resolver, "--resolver", &second];
    let running = Interceptor::fast(&world, &entry, &flags).start()?;
    let capture = world.capture()?;
    accomplice.tells(&running, || running.wait_for_entries("NAMES", 1))?;
    assert!(running.counter("hint_given")? >= 1);
    // To the forged address, with the name: the proxy's, and by it to where the name really is.
    let to = format!("{evil}:443");
    let outcome = running.exec(&[CLIENT, "hello", &to, "de.wikipedia.org"], 1)?;
    outcome.assert_code(0);
    assert_eq!(running.counter("redirected")?, 1);
    assert_eq!(capture.packets_to(evil.into()), 0, "nothing at the forged address");
    // The control: the name's own address is reached, and seen.
    assert!(capture.packets_to(world::WIKIPEDIA_DE) > 0);
    let to = SocketAddr::new(world::WIKIPEDIA_DE, 443);
    let text = to.to_string();
    let outcome = running.exec(&[CLIENT, "hello", &text, "de.wikipedia.org"], 1)?;
    outcome.assert_log(&[&passed(to, "outbound|443||*.wikipedia.org", "de.wikipedia.org")]);
    assert_eq!(running.counter("name_allowed")?, 1);
    Ok(())
}

/// GAP-4: a connection that shows no name has that of its address in field 8, by the proxy and direct:
/// what the workload looked up, and the daemon too. Field 23 has what a client shows and nothing else.
#[test]
fn gap_4_the_name_of_an_address_is_in_the_log_and_no_word_of_the_clients() -> Result<()> {
    let Some(world) = World::testable()? else { return Ok(()) };
    let lied_of = Ipv4Addr::new(203, 0, 113, 99);
    let accomplice = Accomplice::new(&world, forged("www.google.com.", lied_of)?)?;
    let (resolver, second) = (world::DNS.to_string(), accomplice.ip.to_string());
    let flags = ["--fast-path", "true", "--resolver", &resolver, "--resolver", &second];
    let running = Interceptor::new(&world, &binary(), &flags).start()?;
    let line = |to: SocketAddr| -> Result<Line> {
        let to = to.to_string();
        let outcome = running.exec(&[CLIENT, "echo", &to, "--bytes", "10"], 1)?;
        ensure!(outcome.finished.code == 0, "{}", outcome.finished.stderr);
        Line::parse(&outcome.log[0]).map_err(anyhow::Error::msg)
    };
    let details = |line: &Line| line.field("CONNECTION_TERMINATION_DETAILS").to_owned();
    let to = SocketAddr::new(world::EXAMPLE_V4, port::ECHO);
    // Nobody asked for a name.
    assert_eq!(details(&line(to)?), "-");
    running.exec(&["getent", "ahostsv4", NAME], 0)?;
    let deadline = Instant::now() + Duration::from_secs(10);
    let expected = format!("address_of{{{NAME}}}");
    loop {
        let line = line(to)?;
        assert_eq!(line.field("UPSTREAM_CLUSTER_RAW"), "PassthroughCluster");
        assert_eq!(line.field("REQUESTED_SERVER_NAME"), "-", "nothing was shown");
        if details(&line) == expected {
            break;
        }
        ensure!(Instant::now() < deadline, "never: {line:?}");
    }
    // The first one told the proxy that it is not HTTP; those after it went direct.
    assert!(running.counter("direct")? > 0);
    // By the proxy, what is no HTTP either.
    let script = r"exec 3<>/dev/tcp/203.0.113.40/80; printf '\0\1\n\n' >&3; cat <&3";
    let redirected = running.counter("redirected")?;
    let outcome = running.exec(&["bash", "-c", script], 1)?;
    assert_eq!(running.counter("redirected")?, redirected + 1);
    let by_proxy = Line::parse(&outcome.log[0]).map_err(anyhow::Error::msg)?;
    assert_eq!((by_proxy.field("REQUESTED_SERVER_NAME"), details(&by_proxy)), ("-", expected));
    // A name that is shown needs no other.
    let tls = SocketAddr::new(world::EXAMPLE_V4, 443).to_string();
    let outcome = running.exec(&[CLIENT, "hello", &tls, NAME], 1)?;
    let shown = Line::parse(&outcome.log[0]).map_err(anyhow::Error::msg)?;
    assert_eq!((shown.field("REQUESTED_SERVER_NAME"), &*details(&shown)), (NAME, "-"));
    // What only the workload's resolver says is no name; what the daemon's says of the same name is.
    let google = SocketAddr::new(world::GOOGLE, port::ECHO);
    accomplice.tells(&running, || {
        let deadline = Instant::now() + Duration::from_secs(10);
        while details(&line(google)?) != "address_of{www.google.com}" {
            ensure!(Instant::now() < deadline, "the daemon never asked");
        }
        Ok(())
    })?;
    assert_eq!(details(&line(SocketAddr::new(lied_of.into(), port::ECHO))?), "-");
    Ok(())
}

/// Hints that nobody reads are dropped, and more of them than there is room for: names resolve.
#[test]
fn r_6_without_the_daemon_names_resolve() -> Result<()> {
    let Some(world) = World::testable()? else { return Ok(()) };
    let entry = world.entry(NAME, 443, "TLS", "  resolution: DNS\n")?;
    let mut running = Interceptor::fast(&world, &entry, &[]).start()?;
    let asks = 600;
    let script = format!(
        "n=0; for i in $(seq {asks}); do getent ahostsv4 {NAME} > /dev/null && n=$((n + 1)); done; \
         echo $n"
    );
    let held = Held::start(&world, &running, &script)?;
    running.kill()?;
    let said = held.go(Duration::from_secs(120))?;
    assert!(said.ends_with(&format!("\n{asks}\n")), "{said}");
    Ok(())
}
