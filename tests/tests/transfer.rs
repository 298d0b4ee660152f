//! Bytes through the proxy: all of them, unchanged, to the end of each direction.

use std::net::SocketAddr;

use anyhow::{Context, Result};
use interceptor_tests::log::Line;
use interceptor_tests::product::{Interceptor, Outcome, binary};
use interceptor_tests::servers::port;
use interceptor_tests::world::{self, World, kernel_tests};

const CLIENT: &str = env!("CARGO_BIN_EXE_interceptor-test-client");
const MEGABYTES_100: u64 = 100 << 20;
const GIBIBYTE: u64 = 1 << 30;
/// What the daemon's memory may grow by while a gibibyte passes; some for buffers and caches.
const GROWTH: u64 = 32 << 20;

/// The product with v4.example.com listed on `port`.
fn listed<'w>(world: &'w World, port: u16, protocol: &str) -> Result<Interceptor<'w>> {
    let entry = world.entry("v4.example.com", port, protocol, "  resolution: DNS\n")?;
    let flags = ["--outbound", "registry-only", "--fast-path", "false", "-f", &entry];
    Ok(Interceptor::new(world, &binary(), &flags))
}

/// A number that the log has for the only flow.
fn logged(outcome: &Outcome, field: &str) -> u64 {
    assert_eq!(outcome.log.len(), 1, "{:?}", outcome.log);
    let line = Line::parse(&outcome.log[0]).expect("a line");
    line.field(field).parse().expect("checked by parse")
}

/// The client sends, ends its direction, and still gets everything back: the echo service ends
/// its own direction only then. Both directions carry the pattern at the same time.
#[test]
fn a_hundred_megabytes_each_way_with_half_close() -> Result<()> {
    if !kernel_tests() {
        return Ok(());
    }
    let world = World::new()?;
    let product = listed(&world, port::ECHO, "TLS")?;
    let to = SocketAddr::new(world::EXAMPLE_V4, port::ECHO).to_string();
    let size = MEGABYTES_100.to_string();
    let name = "v4.example.com";
    let outcome = product.run(&[CLIENT, "echo", &to, "--name", name, "--bytes", &size])?;
    assert_eq!(outcome.finished.code, 0, "{}", outcome.finished.stderr);
    assert_eq!(outcome.finished.stdout, format!("{size} intact\n"));
    // The hello goes through as well, so a little more than the pattern; the same both ways.
    let (received, sent) = (logged(&outcome, "BYTES_RECEIVED"), logged(&outcome, "BYTES_SENT"));
    assert_eq!(received, sent);
    assert!((MEGABYTES_100..MEGABYTES_100 + 4096).contains(&received), "{received}");
    Ok(())
}

#[test]
fn a_stream_that_ends_with_the_hello_ends_at_the_upstream_too() -> Result<()> {
    if !kernel_tests() {
        return Ok(());
    }
    let world = World::new()?;
    let product = listed(&world, port::ECHO, "TLS")?;
    let to = SocketAddr::new(world::EXAMPLE_V4, port::ECHO).to_string();
    let outcome =
        product.run(&[CLIENT, "echo", &to, "--name", "v4.example.com", "--bytes", "0"])?;
    assert_eq!(outcome.finished.stdout, "0 intact\n", "{}", outcome.finished.stderr);
    Ok(())
}

/// The upstream's reset reaches the client as a reset, not as an orderly end.
#[test]
fn a_reset_is_carried_back() -> Result<()> {
    if !kernel_tests() {
        return Ok(());
    }
    let world = World::new()?;
    let product = listed(&world, port::RESET, "TLS")?;
    let to = SocketAddr::new(world::EXAMPLE_V4, port::RESET).to_string();
    let outcome =
        product.run(&[CLIENT, "echo", &to, "--name", "v4.example.com", "--bytes", "0"])?;
    assert_eq!(outcome.finished.code, 1);
    let error = outcome.finished.stderr;
    assert!(error.contains("Connection reset by peer"), "{error}");
    Ok(())
}

#[test]
fn a_hundred_megabytes_of_http_up_and_down() -> Result<()> {
    if !kernel_tests() {
        return Ok(());
    }
    let world = World::new()?;
    let product = listed(&world, 80, "HTTP")?;
    let file = world.dir().join("body");
    let mut body = vec![0; usize::try_from(MEGABYTES_100)?];
    interceptor_tests::pattern::fill(0, &mut body);
    std::fs::write(&file, &body)?;

    let path = file.to_string_lossy();
    let upload = product.run(&["curl", "-sST", &path, "http://v4.example.com/upload"])?;
    let verdict = format!("{MEGABYTES_100} intact\n");
    assert_eq!(upload.finished.stdout, verdict, "{}", upload.finished.stderr);
    assert_eq!(logged(&upload, "BYTES_RECEIVED"), MEGABYTES_100);

    let url = format!("http://v4.example.com/bytes/{MEGABYTES_100}");
    let script = format!("curl -sS {url} | cmp - {path}");
    let download = product.run(&["sh", "-c", &script])?;
    assert_eq!(download.finished.code, 0, "{:?}", download.finished);
    assert_eq!(logged(&download, "BYTES_SENT"), MEGABYTES_100);
    Ok(())
}

/// The most memory that a process ever had resident, in bytes.
fn peak_memory(pid: u32) -> Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kibibytes: u64 = peak.context("no VmHWM")?.trim().trim_end_matches(" kB").parse()?;
    Ok(kibibytes << 10)
}

/// Every byte of a gibibyte, in order: uploaded and downloaded over HTTP, and relayed inside TLS
/// both ways at once. The daemon's memory does not grow with them (T-51).
#[test]
fn a_gibibyte_up_and_down() -> Result<()> {
    if !kernel_tests() {
        return Ok(());
    }
    let world = World::new()?;
    let http = world.entry("v4.example.com", 80, "HTTP", "  resolution: DNS\n")?;
    let tls = world.entry("v4.example.com", port::ECHO, "TLS", "  resolution: DNS\n")?;
    let proxied = ["--outbound", "registry-only", "--fast-path", "false"];
    let flags = [&proxied[..], &["-f", &http, "-f", &tls]].concat();
    let running = Interceptor::new(&world, &binary(), &flags).start()?;
    let before = peak_memory(running.pid())?;
    let (size, host) = (GIBIBYTE.to_string(), "v4.example.com");
    let web = SocketAddr::new(world::EXAMPLE_V4, 80).to_string();
    let echo = SocketAddr::new(world::EXAMPLE_V4, port::ECHO).to_string();
    for (command, received, sent) in [
        (vec![CLIENT, "upload", &web, host, &size], GIBIBYTE, 0),
        (vec![CLIENT, "download", &web, host, &size], 0, GIBIBYTE),
        (vec![CLIENT, "echo", &echo, "--name", host, "--bytes", &size], GIBIBYTE, GIBIBYTE),
    ] {
        let outcome = running.exec(&command, 1)?;
        let said = outcome.finished.stdout.as_str();
        assert_eq!(said, format!("{size} intact\n"), "{command:?}: {}", outcome.finished.stderr);
        // Answers to uploads and hellos are small.
        for (field, expected) in [("BYTES_RECEIVED", received), ("BYTES_SENT", sent)] {
            let counted = logged(&outcome, field);
            assert!((expected..expected + 4096).contains(&counted), "{command:?}: {counted}");
        }
        let grown = peak_memory(running.pid())? - before;
        assert!(grown < GROWTH, "{command:?}: the daemon grew by {grown} bytes");
    }
    Ok(())
}

#[test]
fn direct_flows_are_counted_to_the_byte() -> Result<()> {
    if !kernel_tests() {
        return Ok(());
    }
    let world = World::new()?;
    let product = Interceptor::new(&world, &binary(), &["--outbound", "allow-any"]);
    let to = SocketAddr::new(world::EXAMPLE_V4, port::ECHO).to_string();
    let outcome = product.run(&[CLIENT, "echo", &to, "--bytes", "1000000"])?;
    assert_eq!(outcome.finished.stdout, "1000000 intact\n", "{}", outcome.finished.stderr);
    assert_eq!(logged(&outcome, "BYTES_RECEIVED"), 1_000_000);
    assert_eq!(logged(&outcome, "BYTES_SENT"), 1_000_000);
    Ok(())
}
