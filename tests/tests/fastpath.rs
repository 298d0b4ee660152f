//! Allowed traffic without the proxy: the kernel decides by address and by name.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Result;
use interceptor_tests::capture::Capture;
use interceptor_tests::held::Held;
use interceptor_tests::log::Line;
use interceptor_tests::product::{Interceptor, Outcome, Running, binary};
use interceptor_tests::shapes::{passed, refused};
use interceptor_tests::world::{self, World};
use nix::sys::signal::Signal;
use serde_json::json;

const CLIENT: &str = env!("CARGO_BIN_EXE_interceptor-test-client");
const NAME: &str = "v4.example.com";
const CLUSTER: &str = "outbound|443||v4.example.com";

fn there() -> SocketAddr {
    SocketAddr::new(world::EXAMPLE_V4, 443)
}

/// The product with the fast path, and every address of its entry in the kernel's table.
fn start<'w>(world: &'w World, more: &[&str]) -> Result<Running<'w>> {
    let entry = world.entry(NAME, 443, "TLS", "  resolution: DNS\n")?;
    let running = Interceptor::fast(world, &entry, more).start()?;
    // One of its own, and those that are refused on every port.
    running.wait_for_entries("NAMES", 1)?;
    Ok(running)
}

/// A client that sends a hello for this name, cut like this.
fn hello(running: &Running<'_>, to: SocketAddr, name: &str, cut: &str) -> Result<Outcome> {
    running.exec_client(CLIENT, &format!("hello {to} {name} {cut}"), 1)
}

#[test]
fn an_allowed_name_goes_from_the_workloads_own_socket() -> Result<()> {
    let Some(world) = World::testable()? else { return Ok(()) };
    let running = start(&world, &[])?;
    let outcome = running.exec(&["curl", "-sSI", "https://v4.example.com"], 1)?;
    outcome.assert_code(0);
    outcome.assert_log(&[&passed(there(), CLUSTER, NAME)]);
    let line = Line::parse(&outcome.log[0]).expect("a line");
    let own = line.field("DOWNSTREAM_REMOTE_ADDRESS");
    assert_eq!(line.field("UPSTREAM_LOCAL_ADDRESS"), own);
    let seen = world.seen();
    let seen = seen.last().expect("a request arrived");
    assert_eq!(seen.peer.to_string(), own, "the server's peer is the workload");
    assert_eq!(running.counter("name_allowed")?, 1);
    let status = running.verb(&["status"])?.stdout;
    assert!(status.contains("bypass 0, direct 0, name 1, proxy 0"), "{status}");
    Ok(())
}

#[test]
fn t_25_another_name_at_the_address_is_refused_and_nothing_of_it_leaves() -> Result<()> {
    let Some(world) = World::testable()? else { return Ok(()) };
    let running = start(&world, &[])?;
    let capture = world.capture()?;
    let outcome = hello(&running, there(), "other.example.com", "")?;
    outcome.assert_code(1);
    // ECONNABORTED, while the client was sending or waiting.
    assert!(outcome.finished.stderr.contains("os error 103"), "{}", outcome.finished.stderr);
    outcome.assert_log(&[&refused(there(), "other.example.com")]);
    assert!(outcome.log[0].contains("not_registered"), "{}", outcome.log[0]);
    assert!(capture.packets_to(there().ip()) > 0, "the handshake went direct");
    assert!(capture.senders_to(there().ip()).is_empty());
    assert_eq!(running.counter("refused_name")?, 1);
    running.wait_for_entries("PENDING", 0)
}

/// Ways in which a hello is cut that the kernel reads.
const CUTS: [&str; 9] = [
    "--segment 1",
    "--segment 1 --pause 1",
    "--segment 5",
    "--segment 6 --pause 2",
    "--segment 43",
    "--record 1",
    "--record 16",
    "--record 1 --segment 1",
    "--grow 3000",
];

#[test]
fn t_17_an_allowed_name_passes_however_the_hello_is_cut() -> Result<()> {
    let Some(world) = World::testable()? else { return Ok(()) };
    let running = start(&world, &[])?;
    for (number, cut) in (1..).zip(CUTS) {
        let outcome = hello(&running, there(), NAME, cut)?;
        outcome.assert_code(0);
        outcome.assert_log(&[&passed(there(), CLUSTER, NAME)]);
        assert_eq!(running.counter("name_allowed")?, number, "{cut}");
    }
    assert_eq!(running.counter("redirected")?, 0);
    Ok(())
}

#[test]
fn t_17_another_name_is_refused_however_the_hello_is_cut() -> Result<()> {
    let Some(world) = World::testable()? else { return Ok(()) };
    let running = start(&world, &[])?;
    let capture = world.capture()?;
    for (number, cut) in (1..).zip(CUTS) {
        let outcome = hello(&running, there(), "other.example.com", cut)?;
        outcome.assert_code(1);
        outcome.assert_log(&[&refused(there(), "other.example.com")]);
        assert_eq!(running.counter("refused_name")?, number, "{cut}");
    }
    assert!(capture.senders_to(there().ip()).is_empty());
    Ok(())
}

#[test]
fn t_18_hellos_to_16_kib_are_the_kernels() -> Result<()> {
    let Some(world) = World::testable()? else { return Ok(()) };
    let running = start(&world, &[])?;
    let capture = world.capture()?;
    // Jumbo frames: with smaller ones TCP would cut them (below).
    for namespace in [&world.workload, &world.internet] {
        namespace.ip(&["link", "set", "veth0", "mtu", "9000"])?;
    }
    let cuts = ["--grow 5000", "--grow 14000", "--grow 15900", "--grow 15900 --record 100"];
    for (number, cut) in (1..).zip(cuts) {
        let refused = hello(&running, there(), "other.example.com", cut)?;
        refused.assert_code(1);
        assert_eq!(running.counter("refused_name")?, number, "{cut}");
        assert_eq!(capture.senders_to(there().ip()).len() + 1, number as usize, "{cut}");
        let allowed = hello(&running, there(), NAME, cut)?;
        allowed.assert_code(0);
        assert_eq!(running.counter("name_allowed")?, number, "{cut}");
    }
    assert_eq!(running.counter("redirected")?, 0);
    Ok(())
}

#[test]
fn t_18_what_the_kernel_cannot_read_is_refused_once_and_then_the_proxys() -> Result<()> {
    let Some(world) = World::testable()? else { return Ok(()) };
    let running = start(&world, &[])?;
    let capture = world.capture()?;
    refused_once(&running, &capture, there(), "--grow 30000")?;
    assert_eq!(running.counter("refused_hello_unclear")?, 1);
    assert_eq!(running.status()?["why_proxy"], json!({"remembered": 1}));
    Ok(())
}

/// T-29: an urgent byte is on the wire, and in no reading of the server's: what the kernel would read
/// is not what the server does.
#[test]
fn t29_a_hello_with_urgent_data_is_refused_once_and_then_the_proxys() -> Result<()> {
    let Some(world) = World::testable()? else { return Ok(()) };
    let running = start(&world, &[])?;
    let capture = world.capture()?;
    refused_once(&running, &capture, there(), "--urgent 60")?;
    assert_eq!(running.counter("refused_hello_unclear")?, 1);
    Ok(())
}

/// The first hello that is cut like this is refused without a byte on the wire; the second is the
/// proxy's.
fn refused_once(running: &Running<'_>, capture: &Capture, to: SocketAddr, cut: &str) -> Result<()> {
    let first = hello(running, to, NAME, cut)?;
    first.assert_code(1);
    assert!(first.finished.stderr.contains("os error 103"), "{}", first.finished.stderr);
    assert!(capture.senders_to(to.ip()).is_empty());
    assert_eq!(running.counter("redirected")?, 0);
    let second = hello(running, to, NAME, cut)?;
    second.assert_code(0);
    assert_eq!(running.counter("redirected")?, 1);
    running.wait_for_entries("PENDING", 0)
}

/// As on a path whose round trip is long: there TCP makes no packet of more than two segments.
#[test]
fn t_18_a_hello_that_tcp_cuts_is_refused_soon_and_then_the_proxys() -> Result<()> {
    let Some(world) = World::testable()? else { return Ok(()) };
    world.workload.ip(&["link", "set", "veth0", "gso_max_segs", "2"])?;
    let mesh = world.file("mesh.yaml", "protocolDetectionTimeout: 30s\n")?;
    let running = start(&world, &["--mesh-config", &mesh])?;
    let capture = world.capture()?;
    // What fits in two segments passes.
    let fits = hello(&running, there(), NAME, "--grow 2400")?;
    fits.assert_code(0);
    let before = capture.senders_to(there().ip());
    // The client gives up after 10 seconds; the refusal comes before.
    let first = hello(&running, there(), NAME, "--grow 6000")?;
    assert!(first.finished.stderr.contains("os error 103"), "{}", first.finished.stderr);
    assert_eq!(capture.senders_to(there().ip()), before);
    let second = hello(&running, there(), NAME, "--grow 6000")?;
    second.assert_code(0);
    assert_eq!(running.counter("redirected")?, 1);
    running.wait_for_entries("PENDING", 0)
}

/// The server's window is smaller than the hello, and than a segment: TCP sends what fits, once its
/// persist timer runs.
#[test]
fn t_18_a_hello_larger_than_the_window_is_refused_once_and_then_the_proxys() -> Result<()> {
    let Some(world) = World::testable()? else { return Ok(()) };
    world.internet.ip(&["route", "replace", "10.77.0.0/24", "dev", "veth0", "window", "700"])?;
    let mesh = world.file("mesh.yaml", "protocolDetectionTimeout: 2s\n")?;
    let running = start(&world, &["--mesh-config", &mesh])?;
    let capture = world.capture()?;
    refused_once(&running, &capture, there(), "--grow 3000")
}

#[test]
fn t_21_and_t_27_what_shows_no_name_is_refused() -> Result<()> {
    let Some(world) = World::testable()? else { return Ok(()) };
    let running = start(&world, &[])?;
    let capture = world.capture()?;
    let url = format!("http://{NAME}:443/");
    for (command, finding, reason) in [
        (vec!["curl", "-sS", url.as_str()], "refused_not_tls", "wrong_protocol"),
        // curl sends no name for an address.
        (vec!["curl", "-sSk", "https://203.0.113.40/"], "refused_no_name", "no_server_name"),
    ] {
        let outcome = running.exec(&command, 1)?;
        assert_ne!(outcome.finished.code, 0, "{command:?}: {}", outcome.finished.stdout);
        outcome.assert_log(&[&refused(there(), "-")]);
        assert!(outcome.log[0].contains(reason), "{}", outcome.log[0]);
        assert_eq!(running.counter(finding)?, 1, "{command:?}");
    }
    assert!(capture.senders_to(there().ip()).is_empty());
    Ok(())
}

#[test]
fn t_28_a_hello_that_is_never_completed_ends_at_the_deadline() -> Result<()> {
    let Some(world) = World::testable()? else { return Ok(()) };
    let mesh = world.file("mesh.yaml", "protocolDetectionTimeout: 1s\n")?;
    let running = start(&world, &["--mesh-config", &mesh])?;
    let capture = world.capture()?;
    let script = r"exec 3<>/dev/tcp/203.0.113.40/443; printf '\x16\x03\x01\x00\x40\x01' >&3; \
                   start=$SECONDS; cat <&3; echo after $((SECONDS - start))";
    let outcome = running.exec(&["bash", "-c", script], 1)?;
    assert!(outcome.finished.stderr.contains("abort"), "{}", outcome.finished.stderr);
    outcome.assert_log(&[&refused(there(), "-")]);
    assert!(outcome.log[0].contains("sniff_timeout"), "{}", outcome.log[0]);
    assert!(running.counter("hello_held")? >= 1);
    assert!(capture.senders_to(there().ip()).is_empty());
    running.wait_for_entries("PENDING", 0)
}

/// The kernel alone: allowed names work, others leak nothing, while the daemon stands still and when
/// it is dead.
#[test]
fn r_6_without_the_daemon_names_are_still_judged() -> Result<()> {
    let Some(world) = World::testable()? else { return Ok(()) };
    let mut running = start(&world, &[])?;
    let capture = world.capture()?;
    let to = there().to_string();
    // What is covered is covered without the daemon: these start before it stands still.
    let script = format!(
        "{CLIENT} hello {to} {NAME} && echo passed; timeout 2 {CLIENT} hello {to} other.example.com; \
         echo ended $?"
    );
    for kill in [false, true] {
        let held = Held::start(&world, &running, &script)?;
        if kill {
            running.kill()?;
        } else {
            running.signal(Signal::SIGSTOP)?;
        }
        let said = held.go(Duration::from_secs(20));
        if !kill {
            running.signal(Signal::SIGCONT)?;
        }
        let said = said?;
        assert!(said.contains("passed"), "{said}");
        // Nobody ends it: it hangs until it is told to stop.
        assert!(said.contains("ended 124"), "{said}");
        let sources = capture.senders_to(there().ip());
        assert_eq!(sources.len(), 1 + usize::from(kill), "connections that sent anything");
    }
    Ok(())
}

#[test]
fn a_new_address_of_a_name_is_never_refused() -> Result<()> {
    let Some(world) = World::testable()? else { return Ok(()) };
    let running = start(&world, &[])?;
    let direct = running.exec(&["curl", "-sSI", "https://v4.example.com"], 1)?;
    direct.assert_code(0);
    world.zone.set(NAME, &[world::CNN]);
    let moved = running.exec(&["curl", "-sSI", "https://v4.example.com"], 1)?;
    moved.assert_code(0);
    assert_eq!(running.counter("redirected")?, 1, "the new address is not in the table yet");
    assert_eq!(running.status()?["why_proxy"], json!({"name_not_resolved": 1}));
    Ok(())
}

#[test]
fn opaque_entries_go_direct_with_their_cluster() -> Result<()> {
    let Some(world) = World::testable()? else { return Ok(()) };
    let entry = world.entry(
        "echo.example.net",
        7,
        "TCP",
        "  resolution: NONE\n  addresses: [203.0.113.0/24]\n",
    )?;
    let running = Interceptor::fast(&world, &entry, &[]).start()?;
    let to = SocketAddr::new(world::EXAMPLE_V4, 7);
    let dial = to.to_string();
    let outcome = running.exec(&[CLIENT, "echo", &dial, "--bytes", "3000000"], 1)?;
    outcome.assert_code(0);
    outcome.assert_log(&[&passed(to, "outbound|7||echo.example.net", "-")]);
    let line = Line::parse(&outcome.log[0]).expect("a line");
    assert_eq!(line.field("BYTES_RECEIVED"), "3000000");
    assert_eq!(line.field("BYTES_SENT"), "3000000");
    assert_eq!(running.counter("direct")?, 1);
    assert_eq!(running.counter("redirected")?, 0);
    Ok(())
}

/// GAP-1: the addresses that the daemon resolved count for an opaque entry.
#[test]
fn an_opaque_entry_by_name_goes_direct_at_its_addresses() -> Result<()> {
    let Some(world) = World::testable()? else { return Ok(()) };
    let entry = world.entry(NAME, 7, "TCP", "  resolution: DNS\n")?;
    let running = Interceptor::fast(&world, &entry, &[]).start()?;
    let to = SocketAddr::new(world::EXAMPLE_V4, 7);
    let dial = to.to_string();
    let echo = [CLIENT, "echo", &dial, "--bytes", "1000"];
    // The first one may come before the daemon has the addresses.
    let _ = running.exec(&echo, 1)?;
    let before = running.counter("redirected")?;
    let outcome = running.exec(&echo, 1)?;
    outcome.assert_code(0);
    outcome.assert_log(&[&passed(to, "outbound|7||v4.example.com", "-")]);
    assert!(running.counter("direct")? >= 1);
    assert_eq!(running.counter("redirected")?, before);
    Ok(())
}

/// MESH-21: nothing is judged, so nothing is held; the name is read in passing.
#[test]
fn in_allow_any_what_nobody_claims_goes_direct_and_its_name_is_noticed() -> Result<()> {
    let Some(world) = World::testable()? else { return Ok(()) };
    let flags = ["--outbound", "allow-any", "--fast-path", "true"];
    let running = Interceptor::new(&world, &binary(), &flags).start()?;
    let outcome = running.exec(&["curl", "-sSI", "https://v4.example.com"], 1)?;
    outcome.assert_code(0);
    outcome.assert_log(&[&passed(there(), "PassthroughCluster", NAME)]);
    assert_eq!((running.counter("direct")?, running.counter("redirected")?), (1, 0));
    // Another port: the first client shows that it is not HTTP.
    let to = SocketAddr::new(world::EXAMPLE_V4, 7);
    let dial = to.to_string();
    for redirected in [1, 1] {
        let outcome = running.exec(&[CLIENT, "echo", &dial, "--bytes", "1000"], 1)?;
        outcome.assert_code(0);
        // It shows no name; curl had asked for one that has this address (GAP-4).
        let nameless = passed(to, "PassthroughCluster", "-");
        let known = nameless.replacen("0 - - -", &format!("0 - - address_of{{{NAME}}}"), 1);
        outcome.assert_log(&[&known]);
        assert_eq!(running.counter("redirected")?, redirected);
    }
    // HTTP has a line for each request, from the proxy.
    for _ in 0..2 {
        let outcome = running.exec(&["curl", "-sSI", "http://v4.example.com"], 1)?;
        assert!(outcome.log[0].contains("\"HEAD / HTTP/1.1\" 200"), "{}", outcome.log[0]);
    }
    assert_eq!(running.status()?["why_proxy"], json!({"protocol_unknown": 3}));
    Ok(())
}

#[test]
fn t_13_a_refused_address_is_refused_at_connect() -> Result<()> {
    let Some(world) = World::testable()? else { return Ok(()) };
    let running = start(&world, &[])?;
    let capture = world.capture()?;
    let to: SocketAddr = "169.254.169.254:80".parse()?;
    let outcome = running.exec(&[CLIENT, "connect", "169.254.169.254:80"], 1)?;
    assert!(outcome.finished.stdout.contains("EPERM"), "{}", outcome.finished.stdout);
    assert!(outcome.log[0].contains("special_address"), "{}", outcome.log[0]);
    assert_eq!(capture.packets_to(to.ip()), 0);
    Ok(())
}

#[test]
fn fast_path_false_is_the_proxy_alone() -> Result<()> {
    let Some(world) = World::testable()? else { return Ok(()) };
    let entry = world.entry(NAME, 443, "TLS", "  resolution: DNS\n")?;
    let flags = ["--outbound", "registry-only", "--fast-path", "false", "-f", &entry];
    let running = Interceptor::new(&world, &binary(), &flags).start()?;
    for _ in 0..2 {
        let outcome = running.exec(&["curl", "-sSI", "https://v4.example.com"], 1)?;
        outcome.assert_code(0);
    }
    assert_eq!(running.counter("redirected")?, 2);
    assert_eq!(running.status()?["why_proxy"], json!({"fast_path_off": 2}));
    assert_eq!(running.counter("name_asked")?, 0);
    Ok(())
}
