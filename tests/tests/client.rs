//! The test client does what it says, without the product: so that a failure under interception
//! is the product's.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::Result;
use interceptor_tests::client::name_of;
use interceptor_tests::servers::port;
use interceptor_tests::world::{self, Finished, World, kernel_tests};

const CLIENT: &str = env!("CARGO_BIN_EXE_interceptor-test-client");

fn client(world: &World, arguments: &str) -> Result<Finished> {
    let mut command = world.command(CLIENT);
    command.args(arguments.split_whitespace());
    world.output(&mut command, Duration::from_secs(60))
}

fn says(world: &World, arguments: &str, expected: &str) -> Result<()> {
    let finished = client(world, arguments)?;
    assert_eq!(finished.code, 0, "{arguments}: {}", finished.stderr);
    assert!(finished.stdout.starts_with(expected), "{arguments}: {}", finished.stdout);
    Ok(())
}

#[test]
fn requests_in_every_style_arrive_where_they_were_sent() -> Result<()> {
    if !kernel_tests() {
        return Ok(());
    }
    let world = World::new()?;
    let (v4, v6) = (world::EXAMPLE_V4, world::EXAMPLE_V6);
    says(&world, &format!("get {v4}:80 v4.example.com"), "200 203.0.113.40:80 10.77.0.2:")?;
    says(&world, &format!("get [{v6}]:80 v6.example.com"), "200 [2001:db8:1::40]:80 ")?;
    says(&world, &format!("get {v4}:80 v4.example.com --style non-blocking"), "200 ")?;
    let mapped = "200 [::ffff:203.0.113.40]:80 [::ffff:10.77.0.2]:";
    says(&world, &format!("get {v4}:80 v4.example.com --style mapped"), mapped)?;
    Ok(())
}

#[test]
fn many_requests_name_the_address_that_they_dial() -> Result<()> {
    if !kernel_tests() {
        return Ok(());
    }
    let world = World::new()?;
    says(&world, "many 203.0.113.1 --addresses 50 --count 300 --concurrency 20", "200=300")?;
    let seen = world.seen();
    assert_eq!(seen.len(), 300);
    for request in seen {
        assert_eq!(request.host, name_of(request.local.ip()));
    }
    says(&world, "many 203.0.113.1 --count 50 --end close", "closed=50")?;
    says(&world, "many 2001:db8:1::100 --count 50 --end reset", "reset=50")?;
    Ok(())
}

#[test]
fn a_hello_in_any_pieces_is_a_hello_to_the_servers() -> Result<()> {
    if !kernel_tests() {
        return Ok(());
    }
    let world = World::new()?;
    let to = SocketAddr::new(world::EXAMPLE_V4, 443);
    for cut in [
        "",
        "--segment 1",
        "--segment 7 --pause 1",
        "--record 16",
        "--record 1 --segment 3",
        "--grow 30000",
        "--grow 60000 --record 16000",
    ] {
        says(&world, &format!("hello {to} v4.example.com {cut}"), "200 after a hello of ")?;
    }
    Ok(())
}

#[test]
fn streams_datagrams_and_banners() -> Result<()> {
    if !kernel_tests() {
        return Ok(());
    }
    let world = World::new()?;
    let at = |port: u16| SocketAddr::new(IpAddr::from([203, 0, 113, 50]), port);
    says(&world, &format!("echo {} --bytes 5000000", at(port::ECHO)), "5000000 intact")?;
    says(
        &world,
        &format!("echo {} --name v4.example.com --bytes 1000", at(port::ECHO)),
        "1000 intact",
    )?;
    let listened = client(&world, &format!("listen {}", at(port::BANNER)))?;
    assert!(listened.stdout.ends_with("ms: 220 stub ready\n"), "{}", listened.stdout);
    says(&world, &format!("datagram {}", at(port::ECHO)), "reply")?;
    says(&world, &format!("datagram {} --connect", at(port::ECHO)), "reply")?;
    says(&world, &format!("datagram {} --connect", at(4711)), "ECONNREFUSED")?;
    says(&world, &format!("datagram [{}]:443", world::DEAD_V6), "silence")?;
    says(&world, &format!("connect {}", at(80)), "connected")?;
    says(&world, &format!("connect {}", at(4711)), "ECONNREFUSED")?;
    Ok(())
}

#[test]
fn protocols_on_top_of_http() -> Result<()> {
    if !kernel_tests() {
        return Ok(());
    }
    let world = World::new()?;
    let v4 = world::EXAMPLE_V4;
    says(
        &world,
        &format!("grpc {v4}:{} v4.example.com:50051", port::GRPC),
        "NOT_SERVING NotFound 5 states 20 messages Aborted \"that was all\" goodbye\n",
    )?;
    says(
        &world,
        &format!("web-socket {v4}:{} v4.example.com:8081", port::WEBSOCKET),
        "101 40 messages\n",
    )?;
    says(&world, &format!("alternate {v4}:80 a.example b.example --count 10"), "10 answers\n")
}
