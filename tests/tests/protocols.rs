//! What real programs speak on top of HTTP goes through the proxy whole.

use std::net::SocketAddr;

use anyhow::Result;
use interceptor_tests::log::Line;
use interceptor_tests::product::{Interceptor, Outcome, binary};
use interceptor_tests::servers::port;
use interceptor_tests::world::{self, World, kernel_tests};

const CLIENT: &str = env!("CARGO_BIN_EXE_interceptor-test-client");

fn listed(world: &World, port: u16, protocol: &str, command: &[&str]) -> Result<Outcome> {
    let entry = world.entry("v4.example.com", port, protocol, "  resolution: DNS\n")?;
    let flags = ["--outbound", "registry-only", "-f", &entry];
    Interceptor::new(world, &binary(), &flags).run(command)
}

fn to(port: u16) -> String {
    SocketAddr::new(world::EXAMPLE_V4, port).to_string()
}

/// SE-15: unary calls, trailers and streams of a real gRPC client and server; each call judged on
/// its own (T-36).
#[test]
fn grpc_calls_trailers_and_streams() -> Result<()> {
    if !kernel_tests() {
        return Ok(());
    }
    let world = World::new()?;
    let authority = format!("v4.example.com:{}", port::GRPC);
    let outcome =
        listed(&world, port::GRPC, "GRPC", &[CLIENT, "grpc", &to(port::GRPC), &authority])?;
    let said = &outcome.finished.stdout;
    let expected = "NOT_SERVING NotFound 5 states 20 messages Aborted \"that was all\" goodbye\n";
    assert_eq!(said, expected, "{}", outcome.finished.stderr);
    assert_eq!(outcome.log.len(), 4, "{:?}", outcome.log);
    for line in &outcome.log {
        let line = Line::parse(line).expect("a line");
        assert_eq!(line.field("PROTOCOL"), "HTTP/2");
        assert_eq!(line.field("METHOD"), "POST");
        let cluster = format!("outbound|{}||v4.example.com", port::GRPC);
        assert_eq!(line.field("UPSTREAM_CLUSTER_RAW"), cluster);
    }
    Ok(())
}

/// LIS-20, T-34.
#[test]
fn a_websocket_echoes() -> Result<()> {
    if !kernel_tests() {
        return Ok(());
    }
    let world = World::new()?;
    let host = format!("v4.example.com:{}", port::WEBSOCKET);
    let command = [CLIENT, "web-socket", &to(port::WEBSOCKET), &host];
    let outcome = listed(&world, port::WEBSOCKET, "HTTP", &command)?;
    let said = &outcome.finished.stdout;
    assert_eq!(said, "101 40 messages\n", "{}", outcome.finished.stderr);
    let line = Line::parse(&outcome.log[0]).expect("a line");
    assert_eq!(line.field("RESPONSE_CODE"), "101");
    Ok(())
}

/// R5, T-31: each request goes to its own host's upstream.
#[test]
fn a_thousand_requests_on_one_connection_for_two_hosts_in_turn() -> Result<()> {
    if !kernel_tests() {
        return Ok(());
    }
    let world = World::new()?;
    let first = world.entry("v4.example.com", 80, "HTTP", "  resolution: DNS\n")?;
    let second = world.entry("httpbin.org", 80, "HTTP", "  resolution: DNS\n")?;
    let flags = ["--outbound", "registry-only", "-f", &first, "-f", &second];
    let hosts = ["v4.example.com", "httpbin.org"];
    let command = [CLIENT, "alternate", &to(80), hosts[0], hosts[1], "--count", "1000"];
    let outcome = Interceptor::new(&world, &binary(), &flags).run(&command)?;
    assert_eq!(outcome.finished.stdout, "1000 answers\n", "{}", outcome.finished.stderr);
    assert_eq!(outcome.log.len(), 1000);
    let seen = world.seen();
    let addresses = [world::EXAMPLE_V4, world::HTTPBIN];
    for (host, address) in hosts.iter().zip(addresses) {
        let arrived = seen.iter().filter(|seen| seen.host == *host).collect::<Vec<_>>();
        assert_eq!(arrived.len(), 500, "{host}");
        assert!(arrived.iter().all(|seen| seen.local.ip() == address), "{host} at its own address");
        let cluster = format!("outbound|80||{host}");
        assert_eq!(outcome.log.iter().filter(|line| line.contains(&cluster)).count(), 500);
    }
    Ok(())
}
