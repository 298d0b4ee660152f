//! The harness itself: the small internet is reachable, and the capture sees what reaches it.

use std::io::{Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use anyhow::Result;
use interceptor_tests::servers::{GREETING, port};
use interceptor_tests::snapshot::Snapshot;
use interceptor_tests::world::{self, World, kernel_tests};
use interceptor_tests::{netns, pattern};

const NORMAL: Duration = Duration::from_secs(5);

/// Connects from the workload's namespace.
fn connect(world: &World, to: impl Into<SocketAddr>) -> TcpStream {
    let to = to.into();
    let stream = world.workload.inside(|| TcpStream::connect_timeout(&to, NORMAL));
    let stream = stream.expect("the namespace").unwrap_or_else(|e| panic!("{to}: {e}"));
    stream.set_read_timeout(Some(NORMAL)).expect("a time-out");
    stream
}

fn read_to_end(mut stream: &TcpStream) -> String {
    let mut text = String::new();
    stream.read_to_string(&mut text).expect("the answer");
    text
}

#[test]
fn the_sites_of_the_tutorial_answer() -> Result<()> {
    if !kernel_tests() {
        return Ok(());
    }
    let world = World::new()?;
    let cases: [(&[&str], &str); 8] = [
        (&["-sSI", "https://www.google.com"], "HTTP/2 200"),
        (&["-sSI", "--http1.1", "https://www.google.com"], "HTTP/1.1 200 OK"),
        (&["-sSI", "http://edition.cnn.com/politics"], "https://edition.cnn.com/politics"),
        (&["-sS", "http://httpbin.org/headers"], "\"host\": \"httpbin.org\""),
        (&["-s", "https://en.wikipedia.org/"], "<title>Wikipedia, the free encyclopedia</title>"),
        (&["-s", "https://de.wikipedia.org/"], "<title>Wikipedia – Die freie Enzyklopädie</title>"),
        (&["-sS", "https://v6.example.com/"], "stub internet"),
        (&["-sS", "-o/dev/null", "-w%{http_code}", "http://httpbin.org/status/418"], "418"),
    ];
    for (arguments, expected) in cases {
        let finished = world.curl(arguments)?;
        assert_eq!(finished.code, 0, "curl {arguments:?}: {}", finished.stderr);
        assert!(finished.stdout.contains(expected), "curl {arguments:?}: {}", finished.stdout);
    }
    let page =
        world.curl(&["-sSL", "-w%{http_code} %{num_redirects}", "http://edition.cnn.com/"])?;
    assert!(page.stdout.ends_with("200 1") && page.stdout.len() > 2 << 20);
    assert_eq!(world.curl(&["-sS", "https://nowhere.example.net"])?.code, 6, "no such name");
    let seen = world.seen();
    assert_eq!(seen[0].scheme, "https");
    assert_eq!((seen[0].host.as_str(), seen[0].peer.ip()), ("www.google.com", world::WORKLOAD_V4));
    Ok(())
}

#[test]
fn certificates_are_checked_against_the_throw_away_authority() -> Result<()> {
    if !kernel_tests() {
        return Ok(());
    }
    let world = World::new()?;
    let address = format!("www.google.com:443:{}", world::HTTPBIN);
    let right = world.curl(&["-sSI", "--resolve", &address, "https://www.google.com"])?;
    assert_eq!(right.code, 0, "any address has a certificate for any name: {}", right.stderr);
    let nothing = ["-sSI", "--cacert", "/dev/null", "https://www.google.com"];
    assert!(matches!(world.curl(&nothing)?.code, 60 | 77), "without the authority: no trust");
    Ok(())
}

#[test]
fn the_capture_counts_connections_and_datagrams() -> Result<()> {
    if !kernel_tests() {
        return Ok(());
    }
    let world = World::new()?;
    let capture = world.capture()?;
    for address in [world::EXAMPLE_V4, world::EXAMPLE_V6] {
        for _ in 0..3 {
            connect(&world, (address, port::ECHO));
        }
        assert_eq!(capture.syns_to(address, port::ECHO), 3, "{address}");
    }
    assert_eq!(capture.syns_to(world::EXAMPLE_V4, 443), 0);
    assert_eq!(capture.packets_to(world::GOOGLE), 0);

    let udp = world.workload.inside(|| UdpSocket::bind("0.0.0.0:0"))??;
    udp.set_read_timeout(Some(NORMAL))?;
    udp.send_to(b"hello", (world::UDP_ECHO, port::ECHO))?;
    let mut buffer = [0; 16];
    let (length, from) = udp.recv_from(&mut buffer)?;
    assert_eq!((&buffer[..length], from.ip()), (&b"hello"[..], world::UDP_ECHO));
    assert_eq!(capture.datagrams_to(world::UDP_ECHO, port::ECHO), 1);
    Ok(())
}

#[test]
fn dns_answers_over_udp_and_tcp_and_counts() -> Result<()> {
    if !kernel_tests() {
        return Ok(());
    }
    let world = World::new()?;
    assert_eq!(world.zone.queries("dual.example.com"), 0);
    let page = world.curl(&["-sS", "-o/dev/null", "-w%{remote_ip}", "http://dual.example.com"])?;
    assert_eq!(page.stdout.parse::<IpAddr>()?, world::EXAMPLE_V6, "IPv6 comes first natively");
    assert!(world.zone.queries("dual.example.com") >= 2, "A and AAAA");

    // A query for example.com, AAAA, by hand: id, flags, counts, name, type, class.
    let query = b"\x12\x34\x01\x00\0\x01\0\0\0\0\0\0\x02v6\x07example\x03com\0\0\x1c\0\x01";
    let mut tcp = connect(&world, (world::DNS_V6, 53));
    tcp.write_all(&u16::try_from(query.len())?.to_be_bytes())?;
    tcp.write_all(query)?;
    let mut length = [0; 2];
    tcp.read_exact(&mut length)?;
    let mut answer = vec![0; usize::from(u16::from_be_bytes(length))];
    tcp.read_exact(&mut answer)?;
    assert_eq!(&answer[..2], b"\x12\x34");
    let IpAddr::V6(expected) = world::EXAMPLE_V6 else { unreachable!("it is IPv6") };
    assert!(answer.ends_with(&expected.octets()));
    Ok(())
}

#[test]
fn the_raw_services_do_what_their_ports_say() -> Result<()> {
    if !kernel_tests() {
        return Ok(());
    }
    let world = World::new()?;
    let at = |port| (IpAddr::from([203, 0, 113, 77]), port);

    let whoami = connect(&world, at(port::WHOAMI));
    let expected = format!("203.0.113.77:17 {}\n", whoami.local_addr()?);
    assert_eq!(read_to_end(&whoami), expected, "any address of the ranges answers as itself");

    let mut banner = connect(&world, at(port::BANNER));
    let mut greeting = vec![0; GREETING.len()];
    banner.read_exact(&mut greeting)?;
    assert_eq!(greeting, GREETING.as_bytes());

    for (change, verdict) in [(0, "300000 intact\n"), (1, "300000 corrupt\n")] {
        let mut sink = connect(&world, at(port::SINK));
        let mut bytes = vec![0; 300_000];
        pattern::fill(0, &mut bytes);
        bytes[200_000] ^= change;
        sink.write_all(&bytes)?;
        sink.shutdown(Shutdown::Write)?;
        assert_eq!(read_to_end(&sink), verdict);
    }

    let mut source = connect(&world, at(port::SOURCE));
    source.write_all(b"300000\n")?;
    let mut bytes = Vec::new();
    source.read_to_end(&mut bytes)?;
    assert!(bytes.len() == 300_000 && pattern::matches(0, &bytes));

    let mut reset = connect(&world, at(port::RESET));
    reset.write_all(b"!")?;
    let error = reset.read(&mut [0; 1]).expect_err("a reset");
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);

    let mut stall = connect(&world, at(port::STALL));
    stall.set_read_timeout(Some(Duration::from_millis(100)))?;
    stall.write_all(b"anyone?")?;
    stall.read(&mut [0; 1]).expect_err("no answer");

    let closed = SocketAddr::from(at(4711));
    let refused = world.workload.inside(|| TcpStream::connect_timeout(&closed, NORMAL))?;
    assert_eq!(refused.expect_err("no service").kind(), std::io::ErrorKind::ConnectionRefused);
    Ok(())
}

#[test]
fn a_dead_address_swallows_everything() -> Result<()> {
    if !kernel_tests() {
        return Ok(());
    }
    let world = World::new()?;
    let (start, dead) = (Instant::now(), SocketAddr::from((world::DEAD_V6, 80)));
    let limit = Duration::from_millis(300);
    let refused = world.workload.inside(|| TcpStream::connect_timeout(&dead, limit))?;
    assert_eq!(refused.expect_err("silence").kind(), std::io::ErrorKind::TimedOut);
    assert!(start.elapsed() >= limit);
    Ok(())
}

#[test]
fn nothing_of_a_world_stays_behind_even_after_a_panic() -> Result<()> {
    if !kernel_tests() {
        return Ok(());
    }
    // Other worlds come and go at the same time, so look for the names of this one only.
    let names = std::thread::spawn(|| {
        let world = World::new().expect("a world");
        let names = [world.workload.name().to_owned(), world.internet.name().to_owned()];
        let during = Snapshot::take();
        assert!(names.iter().all(|name| !during.with(name).is_empty()), "the snapshot sees it");
        let directory = world.dir().to_owned();
        let panic = std::panic::catch_unwind(std::panic::AssertUnwindSafe(move || {
            let _world = world;
            panic!("as a failing test would");
        }));
        assert!(panic.is_err());
        assert!(!directory.exists());
        names
    })
    .join()
    .expect("the thread");
    let after = Snapshot::take();
    for name in names {
        assert_eq!(after.with(&name), Vec::<&str>::new());
    }
    Ok(())
}

#[test]
fn a_dead_runs_leftovers_are_swept() -> Result<()> {
    if !kernel_tests() {
        return Ok(());
    }
    // No process has this number: it is above the kernel's largest.
    let name = "ix-4194305-0-net";
    let made = std::process::Command::new("ip").args(["netns", "add", name]).status()?;
    assert!(made.success());
    netns::sweep_leftovers();
    assert_eq!(Snapshot::take().with(name), Vec::<&str>::new());
    Ok(())
}
