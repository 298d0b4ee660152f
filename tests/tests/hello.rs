//! A TLS hello is read in whatever pieces it comes; by the proxy (`fastpath.rs` has the kernel).

use std::net::SocketAddr;

use anyhow::Result;
use interceptor_tests::product::{Interceptor, Outcome, Running, binary};
use interceptor_tests::shapes::{passed, refused};
use interceptor_tests::world::{self, World};

const CLIENT: &str = env!("CARGO_BIN_EXE_interceptor-test-client");

/// Every way in which the hello is cut, for a listed and for an unlisted name.
const CUTS: [&str; 11] = [
    "",
    "--segment 1",
    "--segment 1 --pause 1",
    "--segment 5",
    "--segment 6 --pause 2",
    "--segment 43",
    "--record 1",
    "--record 16",
    "--record 1 --segment 1",
    "--grow 30000",
    "--grow 60000 --record 16000",
];

/// The proxy alone, with one listed name.
fn start(world: &World) -> Result<Running<'_>> {
    let entry = world.entry("v4.example.com", 443, "TLS", "  resolution: DNS\n")?;
    let flags = ["--outbound", "registry-only", "--fast-path", "false", "-f", &entry];
    Interceptor::new(world, &binary(), &flags).start()
}

fn hello(running: &Running<'_>, to: SocketAddr, name: &str, cut: &str) -> Result<Outcome> {
    running.exec_client(CLIENT, &format!("hello {to} {name} {cut}"), 1)
}

#[test]
fn a_listed_name_passes_however_the_hello_is_cut() -> Result<()> {
    let Some(world) = World::testable()? else { return Ok(()) };
    let running = start(&world)?;
    let to = SocketAddr::new(world::EXAMPLE_V4, 443);
    let shape = passed(to, "outbound|443||v4.example.com", "v4.example.com");
    for cut in CUTS {
        let outcome = hello(&running, to, "v4.example.com", cut)?;
        outcome.assert_code(0);
        assert!(outcome.finished.stdout.starts_with("200 "), "{cut}: {}", outcome.finished.stdout);
        outcome.assert_log(&[&shape]);
    }
    Ok(())
}

#[test]
fn an_unlisted_name_is_refused_however_the_hello_is_cut() -> Result<()> {
    let Some(world) = World::testable()? else { return Ok(()) };
    let capture = world.capture()?;
    let running = start(&world)?;
    let to = SocketAddr::new(world::EXAMPLE_V4, 443);
    let shape = refused(to, "other.example.com");
    for cut in CUTS {
        let outcome = hello(&running, to, "other.example.com", cut)?;
        outcome.assert_code(1);
        outcome.assert_log(&[&shape]);
    }
    assert_eq!(capture.packets_to(to.ip()), 0);
    Ok(())
}

/// T-28 at an address whose entry has no protocol: other bytes than TLS and HTTP may pass there, so
/// it is time that must not turn a hello into such bytes.
#[test]
fn a_name_that_comes_late_is_judged_all_the_same() -> Result<()> {
    let Some(world) = World::testable()? else { return Ok(()) };
    let address = world::EXAMPLE_V4;
    let entry = world.file(
        "any.yaml",
        &format!(
            "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {{name: any}}\n\
             spec:\n  hosts: [v4.example.com]\n  addresses: [{address}]\n  \
             ports: [{{number: 443, name: any}}]\n  resolution: STATIC\n  \
             endpoints: [{{address: {address}}}]\n"
        ),
    )?;
    let flags = ["--outbound", "registry-only", "-f", &entry];
    let running = Interceptor::new(&world, &binary(), &flags).start()?;
    let to = SocketAddr::new(address, 443);
    let cluster = "outbound|443||v4.example.com";
    for (name, shape) in [
        ("v4.example.com", passed(to, cluster, "v4.example.com")),
        ("dual.example.com", refused(to, "dual.example.com")),
    ] {
        let outcome = hello(&running, to, name, "--segment 80 --pause 20")?;
        outcome.assert_log(&[&shape]);
    }
    Ok(())
}
