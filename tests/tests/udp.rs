//! Datagrams: DNS to the configured resolvers, everything else by policy.

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
