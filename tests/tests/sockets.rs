//! Sockets of every kind, and many of them: each keeps its original destination.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result};
use interceptor_tests::client::{name_of, nth_address};
use interceptor_tests::log::Line;
use interceptor_tests::product::{Interceptor, Outcome, binary};
use interceptor_tests::world::{self, World, kernel_tests};

const CLIENT: &str = env!("CARGO_BIN_EXE_interceptor-test-client");

fn client(product: &Interceptor<'_>, arguments: &str) -> Result<Outcome> {
    let mut command = vec![CLIENT];
    command.extend(arguments.split_whitespace());
    product.run(&command)
}

/// The log proves each line's own destination: the Host names the address that was dialled.
/// How many refusals or requests had a Host.
fn check_destinations(lines: &[String]) -> u64 {
    let mut named = 0;
    for line in lines {
        let line = Line::parse(line).unwrap_or_else(|error| panic!("{error}: {line}"));
        let dialled: SocketAddr =
            line.field("DOWNSTREAM_LOCAL_ADDRESS").parse().expect("checked by parse");
        if line.field("AUTHORITY") != "-" {
            assert_eq!(line.field("AUTHORITY"), name_of(dialled.ip()));
            named += line.stands_for();
        }
    }
    named
}

#[test]
fn every_style_of_socket_reaches_its_destination_and_sees_its_peer() -> Result<()> {
    if !kernel_tests() {
        return Ok(());
    }
    let world = World::new()?;
    let (v4, v6) = (world::EXAMPLE_V4, world::EXAMPLE_V6);
    let resolution = "  resolution: DNS\n";
    let first = world.entry("v4.example.com", 80, "HTTP", resolution)?;
    let second = world.entry("v6.example.com", 80, "HTTP", resolution)?;
    let flags = ["--outbound", "registry-only", "-f", &first, "-f", &second];
    let product = Interceptor::new(&world, &binary(), &flags);
    // The own address is the one that the route would have chosen, not the loopback one.
    let (own4, own6) = (world::WORKLOAD_V4, world::WORKLOAD_V6);
    for (arguments, expected) in [
        (format!("get {v4}:80 v4.example.com"), format!("200 {v4}:80 {own4}:")),
        (format!("get [{v6}]:80 v6.example.com"), format!("200 [{v6}]:80 [{own6}]:")),
        (
            format!("get {v4}:80 v4.example.com --style non-blocking"),
            format!("200 {v4}:80 {own4}:"),
        ),
        (
            format!("get [{v6}]:80 v6.example.com --style non-blocking"),
            format!("200 [{v6}]:80 [{own6}]:"),
        ),
        (
            format!("get {v4}:80 v4.example.com --style mapped"),
            format!("200 [::ffff:{v4}]:80 [::ffff:{own4}]:"),
        ),
    ] {
        let outcome = client(&product, &arguments)?;
        assert_eq!(outcome.finished.code, 0, "{arguments}: {}", outcome.finished.stderr);
        let said = outcome.finished.stdout;
        assert!(said.starts_with(&expected), "{arguments}: {said}, not {expected}");
    }
    Ok(())
}

#[test]
fn five_thousand_connections_keep_their_destinations() -> Result<()> {
    if !kernel_tests() {
        return Ok(());
    }
    let world = World::new()?;
    let first = IpAddr::from([203, 0, 113, 1]);
    for index in 0..200 {
        let address = nth_address(first, index);
        world.zone.set(&name_of(address), &[address]);
    }
    // Resolution NONE: the upstream is the dialled address, so the server's own is the proof.
    let entry = world.entry("*.example.net", 80, "HTTP", "")?;
    let flags = ["--outbound", "registry-only", "-f", &entry];
    let product = Interceptor::new(&world, &binary(), &flags);
    let arguments = format!("many {first} --addresses 200 --count 5000 --concurrency 100");
    let outcome = client(&product, &arguments)?;
    assert_eq!(outcome.finished.stdout, "200=5000\n", "{}", outcome.finished.stderr);
    assert_eq!(outcome.log.len(), 5000);
    assert_eq!(check_destinations(&outcome.log), 5000);

    let mut arrived: HashMap<IpAddr, usize> = HashMap::new();
    for request in world.seen() {
        assert_eq!(request.host, name_of(request.local.ip()), "arrived where it was sent");
        *arrived.entry(request.local.ip()).or_default() += 1;
    }
    assert_eq!(arrived.len(), 200);
    assert!(arrived.values().all(|&count| count == 25), "{arrived:?}");
    Ok(())
}

#[test]
fn refused_ones_are_refused_by_their_own_destination_in_both_families() -> Result<()> {
    if !kernel_tests() {
        return Ok(());
    }
    let world = World::new()?;
    let capture = world.capture()?;
    let product = Interceptor::new(&world, &binary(), &["--outbound", "registry-only"]);
    for first in ["203.0.113.1", "2001:db8:1::100"] {
        let arguments = format!("many {first} --addresses 50 --count 500 --concurrency 50");
        let outcome = client(&product, &arguments)?;
        assert_eq!(outcome.finished.stdout, "502=500\n", "{}", outcome.finished.stderr);
        assert_eq!(check_destinations(&outcome.log), 500);
    }
    assert!(capture.packets().iter().all(|packet| !packet.is_syn()), "nothing left");
    Ok(())
}

#[test]
fn a_client_that_is_gone_before_it_is_accepted_is_still_told_apart() -> Result<()> {
    if !kernel_tests() {
        return Ok(());
    }
    let world = World::new()?;
    let product = Interceptor::new(&world, &binary(), &["--outbound", "registry-only"]);
    // The requests were complete when the client closed, so every one of them is judged.
    let closed = client(&product, "many 203.0.113.1 --count 500 --concurrency 20 --end close")?;
    assert_eq!(closed.finished.stdout, "closed=500\n", "{}", closed.finished.stderr);
    assert_eq!(closed.log.len(), 500);
    assert!(check_destinations(&closed.log) > 0, "the test proves nothing without names");

    // A reset takes unread bytes with it, so a line may lack the name, never have a wrong one.
    let reset = client(&product, "many 203.0.113.1 --count 500 --concurrency 4 --end reset")?;
    assert_eq!(reset.finished.stdout, "reset=500\n", "{}", reset.finished.stderr);
    check_destinations(&reset.log);
    Ok(())
}

/// T-2: neither the SYN of a redirected connection nor a byte of an open one follows a routing
/// header out of the namespace. Without us both do.
#[test]
fn t2_a_routing_header_leads_nothing_out() -> Result<()> {
    if !kernel_tests() {
        return Ok(());
    }
    let world = World::new()?;
    let to = SocketAddr::new(world::EXAMPLE_V6, 80).to_string();
    let via: IpAddr = "2001:db8:1::bad".parse()?;
    let product = Interceptor::new(&world, &binary(), &["--outbound", "registry-only"]);
    for when in ["before-connect", "over-loopback"] {
        let arguments = ["routing-header", &to, &via.to_string(), "--when", when];
        let control = world.capture()?;
        world.output(world.command(CLIENT).args(arguments), Duration::from_secs(10))?;
        assert!(control.packets_to(via) > 0, "{when}: the control does not get out");

        let capture = world.capture()?;
        let covered = product.run(&[&[CLIENT][..], &arguments].concat())?;
        assert_eq!(capture.packets_to(via), 0, "{when}: {}", covered.finished.stdout);
    }
    Ok(())
}

/// T-11: the proxy's listeners, at every address that they have, answer nobody who was not turned to
/// them, whatever is said: one connection, one reset, one line, and nothing leaves.
#[test]
fn t11_the_listeners_themselves_answer_nobody() -> Result<()> {
    if !kernel_tests() {
        return Ok(());
    }
    let world = World::new()?;
    let running = Interceptor::new(&world, &binary(), &[]).start()?;
    let status = running.status()?;
    let listener = |field: &str| -> Result<String> {
        let at = status["namespaces"][0][field].as_str();
        let (_, port) = at.and_then(|at| at.rsplit_once(':')).context(status.to_string())?;
        Ok(port.to_owned())
    };
    let (v4, v6) = (listener("listener_v4")?, listener("listener_v6")?);
    let capture = world.capture()?;
    let addresses = ["127.0.0.1", "127.0.0.4", "0.0.0.0"].map(|ip| format!("{ip}:{v4}"));
    let mut made = 0;
    for at in addresses.into_iter().chain([format!("[::1]:{v6}")]) {
        for more in [&["--haproxy-protocol"][..], &[]] {
            let url = format!("http://{at}/");
            let command = [&["curl", "-sS", "-H", "Host: httpbin.org", &url][..], more].concat();
            let outcome = running.exec(&command, 1)?;
            // Reset; or, for 0.0.0.0, refused at connect already.
            let refused = outcome.finished.code == 7 && outcome.log.is_empty();
            assert!(!refused || at.starts_with("0.0.0.0:"), "{at}: {}", outcome.finished.stderr);
            if !refused {
                // Whether curl was connecting, sending or receiving then.
                let reset = matches!(outcome.finished.code, 7 | 55 | 56);
                assert!(reset, "{at} {more:?}: {}", outcome.finished.stderr);
                let [line] = outcome.log.as_slice() else { panic!("{at}: {:?}", outcome.log) };
                let line = Line::parse(line).expect("a line");
                assert_eq!(line.field("CONNECTION_TERMINATION_DETAILS"), "no_original_dst");
                made += 1;
            }
        }
    }
    assert_eq!(running.status()?["connections"]["total"], made);
    assert_eq!((capture.packets_to(world::HTTPBIN), world.seen().len()), (0, 0));
    Ok(())
}
