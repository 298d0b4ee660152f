//! Datagrams: DNS to the configured resolvers, everything else by policy; and what is neither TCP
//! nor UDP.

use std::net::SocketAddr;

use anyhow::Result;
use interceptor_tests::product::{Interceptor, Outcome, binary};
use interceptor_tests::servers::port;
use interceptor_tests::world::{self, World, kernel_tests};

const CLIENT: &str = env!("CARGO_BIN_EXE_interceptor-test-client");

fn datagram(world: &World, outbound: &str, to: SocketAddr, more: &[&str]) -> Result<Outcome> {
    let product = Interceptor::new(world, &binary(), &["--outbound", outbound]);
    let to = to.to_string();
    product.run(&[&[CLIENT, "datagram", &to], more].concat())
}

#[test]
fn registry_only_refuses_datagrams_at_once_quic_included() -> Result<()> {
    if !kernel_tests() {
        return Ok(());
    }
    let world = World::new()?;
    let capture = world.capture()?;
    for to in [
        SocketAddr::new(world::UDP_ECHO, port::ECHO),
        SocketAddr::new(world::GOOGLE, 443),
        SocketAddr::new(world::EXAMPLE_V6, 443),
        // DNS, but not to a resolver that anybody configured.
        SocketAddr::new(world::GOOGLE, 53),
    ] {
        for more in [&[][..], &["--connect"]] {
            let outcome = datagram(&world, "registry-only", to, more)?;
            assert_eq!(outcome.finished.stdout, "EPERM\n", "{to} {more:?} {:?}", outcome.finished);
        }
        assert_eq!(capture.packets_to(to.ip()), 0, "{to}");
    }
    Ok(())
}

#[test]
fn allow_any_lets_datagrams_through() -> Result<()> {
    if !kernel_tests() {
        return Ok(());
    }
    let world = World::new()?;
    let to = SocketAddr::new(world::UDP_ECHO, port::ECHO);
    for more in [&[][..], &["--connect"]] {
        let outcome = datagram(&world, "allow-any", to, more)?;
        assert_eq!(outcome.finished.stdout, "reply\n", "{more:?} {:?}", outcome.finished);
    }
    Ok(())
}

#[test]
fn the_configured_resolver_answers_in_every_mode() -> Result<()> {
    if !kernel_tests() {
        return Ok(());
    }
    let world = World::new()?;
    for outbound in ["registry-only", "allow-any"] {
        let product = Interceptor::new(&world, &binary(), &["--outbound", outbound]);
        let outcome = product.run(&["getent", "ahostsv4", "www.google.com"])?;
        let address = world::GOOGLE.to_string();
        assert!(outcome.finished.stdout.starts_with(&address), "{:?}", outcome.finished);
    }
    Ok(())
}

#[test]
fn registry_only_refuses_other_protocols_where_they_begin() -> Result<()> {
    if !kernel_tests() {
        return Ok(());
    }
    let world = World::new()?;
    // Every group may ping here, so that only the policy can say no.
    let groups = "/proc/sys/net/ipv4/ping_group_range";
    world.workload.inside(|| std::fs::write(groups, "0 2147483647"))??;
    let to = world::GOOGLE;
    let capture = world.capture()?;
    let ping = |enforcement: &str, outbound: &str| {
        let flags = ["--enforcement", enforcement, "--outbound", outbound];
        Interceptor::new(&world, &binary(), &flags).run(&[CLIENT, "ping", &to.to_string()])
    };
    let refused = ping("strict", "registry-only")?;
    assert_eq!(refused.finished.stdout, "EPROTONOSUPPORT\n", "{:?}", refused.finished);
    assert_eq!(capture.packets_to(to), 0);
    for (enforcement, outbound) in [("strict", "allow-any"), ("istio", "registry-only")] {
        let passed = ping(enforcement, outbound)?;
        assert_eq!(passed.finished.stdout, "reply\n", "{enforcement} {outbound}");
    }
    Ok(())
}
