//! What must get through both layers: what is allowed, and what answers those who come from outside.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::thread;
use std::time::Duration;

use anyhow::Result;
use interceptor_tests::pod::{Behind, POD_V4, POD_V6, Pod};
use interceptor_tests::world::{self, World};
use socket2::{Domain, Protocol, Socket, Type};

use super::{ALLOWED, CLIENT, RESOLVER, TCP_AND_UDP, product};

/// What is allowed gets through both layers: direct and by the proxy, over IPv4 and IPv6, and names.
#[test]
fn what_is_allowed_passes() -> Result<()> {
    let Some(world) = World::testable()? else { return Ok(()) };
    let pod = Pod::new(&world, Behind::Node)?;
    let four = world.entry("v4.example.com", 80, "HTTP", "  resolution: DNS\n")?;
    let six = world.entry("v6.example.com", 80, "HTTP", "  resolution: DNS\n")?;
    let running = product(&world, &pod, &["-f", &four, "-f", &six])?.start()?;
    for address in ALLOWED {
        let to = SocketAddr::new(address.parse()?, 7).to_string();
        let echo = running.exec(&[CLIENT, "echo", &to, "--bytes", "1000000"], 1)?;
        assert_eq!(echo.finished.stdout, "1000000 intact\n", "{}", echo.finished.stderr);
    }
    assert_eq!(running.counter("direct")?, 2);
    for (address, own, host) in [
        (world::EXAMPLE_V4, POD_V4, "v4.example.com"),
        (world::EXAMPLE_V6, POD_V6, "v6.example.com"),
    ] {
        let to = SocketAddr::new(address, 80);
        let got = running.exec(&[CLIENT, "get", &to.to_string(), host], 1)?;
        let want =
            format!("200 {to} {}", SocketAddr::new(own, 0).to_string().trim_end_matches('0'));
        assert!(got.finished.stdout.starts_with(&want), "{}, not {want}", got.finished.stdout);
    }
    let before = running.counter("resolver")?;
    let url = "http://v4.example.com/";
    let asked = running.exec(&["curl", "-sS", "-o", "/dev/null", url], 1)?;
    assert_eq!(asked.finished.code, 0, "{}", asked.finished.stderr);
    assert!(running.counter("resolver")? > before, "it asked for the name");
    let by_tcp = running.exec(&[CLIENT, "connect", &format!("{RESOLVER}:53")], 1)?;
    assert_eq!(by_tcp.finished.stdout, "connected\n");
    for name in TCP_AND_UDP {
        assert_eq!(running.counter(name)?, 0, "{name}");
    }
    Ok(())
}

/// T-16: a connection from outside is accepted and answered, by a listener of the workload and by one of
/// another program of the pod; a datagram is answered, and a ping.
#[test]
fn t16_inbound_and_what_answers_it_pass() -> Result<()> {
    const BYTES: usize = 300_000;
    let Some(world) = World::testable()? else { return Ok(()) };
    let pod = Pod::new(&world, Behind::Node)?;
    for at in [SocketAddr::new(POD_V4, 8000), SocketAddr::new(POD_V6, 8000)] {
        let product = product(&world, &pod, &[])?;
        let serve = product.run_command(&[CLIENT, "serve", &at.to_string()]);
        let mut running = product.start_as(serve, "serving")?;
        exchange(&world, at, BYTES)?;
        assert_eq!(running.wait(Duration::from_secs(10))?, 0, "{}", running.stderr()?);
        assert!(running.stdout()?.contains(&format!("{BYTES} served")), "{}", running.stdout()?);
    }
    let running = product(&world, &pod, &[])?.start()?;
    let at = SocketAddr::new(POD_V4, 8001);
    let listener = pod.namespace.inside(|| TcpListener::bind(at))??;
    let other = thread::spawn(move || -> Result<()> {
        let (mut stream, _) = listener.accept()?;
        Ok(std::io::copy(&mut stream.try_clone()?, &mut stream).map(drop)?)
    });
    exchange(&world, at, BYTES)?;
    other.join().expect("no panic in it")?;

    let at = SocketAddr::new(POD_V4, 8002);
    let datagrams = pod.namespace.inside(|| std::net::UdpSocket::bind(at))??;
    let other = thread::spawn(move || -> Result<()> {
        let (length, from) = datagrams.recv_from(&mut [0; 64])?;
        Ok(datagrams.send_to(&vec![1; length], from).map(drop)?)
    });
    let asked = world.internet.inside(|| -> Result<usize> {
        let socket = std::net::UdpSocket::bind("0.0.0.0:0")?;
        socket.set_read_timeout(Some(Duration::from_secs(5)))?;
        socket.send_to(b"anyone?", at)?;
        Ok(socket.recv(&mut [0; 64])?)
    })??;
    assert_eq!(asked, 7);
    other.join().expect("no panic in it")?;

    let pinged = world.internet.inside(|| -> Result<usize> {
        let kind = Some(Protocol::ICMPV4);
        let socket = Socket::new(Domain::IPV4, Type::RAW, kind)?;
        socket.set_read_timeout(Some(Duration::from_secs(5)))?;
        socket.connect(&SocketAddr::new(POD_V4, 0).into())?;
        socket.send(&[8, 0, 0xf7, 0xf7, 0, 7, 0, 1])?;
        Ok((&socket).read(&mut [0; 64])?)
    })??;
    assert_eq!(pinged, 20 + 8);
    assert_eq!(running.counter("passage_table_full")?, 0);
    assert!(running.entries("PASSAGES")? >= 3);
    Ok(())
}

/// From the stub internet to the pod and back.
fn exchange(world: &World, at: SocketAddr, bytes: usize) -> Result<()> {
    let mut sent = vec![0; bytes];
    interceptor_tests::pattern::fill(0, &mut sent);
    let mut stream = world.internet.inside(|| TcpStream::connect(at))??;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    let mut back = Vec::new();
    let mut writer = stream.try_clone()?;
    let outgoing = sent.clone();
    let writing = thread::spawn(move || {
        writer.write_all(&outgoing)?;
        writer.shutdown(std::net::Shutdown::Write)
    });
    stream.read_to_end(&mut back)?;
    writing.join().expect("no panic in it")?;
    assert!(back == sent, "{} of {} bytes came back", back.len(), sent.len());
    Ok(())
}

/// A hundred megabytes there and back, every byte compared.
#[test]
fn bulk_passes_whole() -> Result<()> {
    let Some(world) = World::testable()? else { return Ok(()) };
    let pod = Pod::new(&world, Behind::Node)?;
    let running = product(&world, &pod, &[])?.start()?;
    let to = format!("{}:7", ALLOWED[0]);
    let echo = running.exec(&[CLIENT, "echo", &to, "--bytes", "100000000"], 1)?;
    assert_eq!(echo.finished.stdout, "100000000 intact\n", "{}", echo.finished.stderr);
    assert_eq!(running.counter("direct")?, 1);
    assert_eq!(running.counter("dropped_interface_socket")?, 0);
    Ok(())
}
