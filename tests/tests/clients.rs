//! Real TLS clients through the name tier: what is allowed works, what is not is refused, and of that
//! nothing reaches the far side.

use std::env;
use std::net::SocketAddr;

use anyhow::Result;
use interceptor_tests::log::Line;
use interceptor_tests::product::{Interceptor, binary};
use interceptor_tests::world::{self, World, kernel_tests};

const CLIENT: &str = env!("CARGO_BIN_EXE_interceptor-test-client");
const ALLOWED: &str = "v4.example.com";
const REFUSED: &str = "other.example.com";

/// Address, port and name are its arguments; it prints the status.
const PYTHON: &str = "
import socket, ssl, sys
host, port, name = sys.argv[1:]
plain = socket.create_connection((host, int(port)), 5)
with ssl.create_default_context().wrap_socket(plain, server_hostname=name) as tls:
    tls.sendall(f'GET / HTTP/1.1\\r\\nHost: {name}\\r\\nConnection: close\\r\\n\\r\\n'.encode())
    print(tls.recv(4096)[9:12].decode())
";

/// As [`PYTHON`], with the hello of a Chrome.
const CHROME_LIKE: &str = "
import os, sys
from curl_cffi import CurlOpt, requests
host, port, name = sys.argv[1:]
options = {CurlOpt.RESOLVE: [f'{name}:{port}:{host}']}
answer = requests.get(f'https://{name}:{port}/', impersonate='chrome', timeout=5,
                      verify=os.environ['SSL_CERT_FILE'], curl_options=options)
print(answer.status_code)
";

fn there() -> SocketAddr {
    SocketAddr::new(world::EXAMPLE_V4, 443)
}

/// A client's name, and its command for a host.
type Client<'a> = (&'a str, &'a dyn Fn(&str) -> Vec<String>);

/// Runs each client, as its command line for a name, with both names.
fn work(clients: &[Client<'_>]) -> Result<()> {
    let world = World::new()?;
    let entry = world.entry(ALLOWED, 443, "TLS", "  resolution: DNS\n")?;
    let flags = ["--outbound", "registry-only", "--fast-path", "true", "-f", &entry];
    let running = Interceptor::new(&world, &binary(), &flags).start()?;
    running.wait_for_entries("NAMES", 1)?;
    let run = |command: Vec<String>| {
        let words: Vec<&str> = command.iter().map(String::as_str).collect();
        running.exec(&words, 1)
    };
    for (number, (what, command)) in (1..).zip(clients) {
        let capture = world.capture()?;
        let refused = run(command(REFUSED))?;
        assert_ne!(refused.finished.code, 0, "{what}: {}", refused.finished.stdout);
        assert!(refused.log[0].contains("not_registered"), "{what}: {}", refused.log[0]);
        assert!(capture.packets_to(there().ip()) > 0, "{what}: the handshake went direct");
        assert!(capture.senders_to(there().ip()).is_empty(), "{what}");
        let allowed = run(command(ALLOWED))?;
        assert_eq!(allowed.finished.code, 0, "{what}: {}", allowed.finished.stderr);
        assert!(allowed.finished.stdout.contains("200"), "{what}: {}", allowed.finished.stdout);
        assert_eq!(running.counter("name_allowed")?, number, "{what}");
    }
    assert_eq!(running.counter("redirected")?, 0);
    Ok(())
}

fn words<const N: usize>(words: [&str; N]) -> Vec<String> {
    words.map(str::to_owned).to_vec()
}

/// With `INTERCEPTOR_CLIENTS`, also those that a plain machine lacks: it is a directory with
/// `go-client ADDRESS:PORT NAME`, made with Go, `venv`, in which Python has curl_cffi, and a link
/// `chromium`.
#[test]
fn real_clients_names_are_judged() -> Result<()> {
    if !kernel_tests() {
        return Ok(());
    }
    let (host, to) = (there().ip().to_string(), there().to_string());
    let curl = |name: &str| {
        let resolve = format!("{name}:443:{host}");
        words(["curl", "-sSi", "--resolve", &resolve, &format!("https://{name}/")])
    };
    let python = |name: &str| words(["python3", "-c", PYTHON, &host, "443", name]);
    let rustls = |name: &str| words([CLIENT, "hello", &to, name]);
    work(&[("curl", &curl), ("python", &python), ("rustls", &rustls)])?;
    let Ok(dir) = env::var("INTERCEPTOR_CLIENTS") else { return Ok(()) };
    let (go, python) = (format!("{dir}/go-client"), format!("{dir}/venv/bin/python"));
    let go = |name: &str| words([&go, &to, name]);
    let chrome_like = |name: &str| words([&python, "-c", CHROME_LIKE, &host, "443", name]);
    work(&[("Go", &go), ("Chrome-like", &chrome_like)])?;
    for (flags, alpn) in [(&[][..], "h2"), (&["--disable-http2"], "http/1.1")] {
        browse(&format!("{dir}/chromium"), flags, alpn)?;
    }
    Ok(())
}

/// A browser loads a page of many parts, and one of a site that is not allowed.
fn browse(browser: &str, flags: &[&str], alpn: &str) -> Result<()> {
    const PARTS: usize = 50;
    let world = World::new()?;
    let entry = world.entry(ALLOWED, 443, "TLS", "  resolution: DNS\n")?;
    let policy = ["--outbound", "registry-only", "-f", &entry];
    let running = Interceptor::new(&world, &binary(), &policy).start()?;
    running.wait_for_entries("NAMES", 1)?;
    let capture = world.capture()?;
    let (profile, ip) = (world.dir().join("profile"), there().ip());
    let profile = format!("--user-data-dir={}", profile.display());
    let hosts = format!("--host-resolver-rules=MAP {ALLOWED} {ip}, MAP {REFUSED} {ip}");
    let page = format!("https://{ALLOWED}/page/{PARTS}");
    let common = [
        browser,
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--disable-background-networking",
        "--disable-component-update",
        "--no-first-run",
        "--ignore-certificate-errors",
        "--dump-dom",
        &profile,
        &hosts,
        &page,
    ];
    let shown = running.exec(&[&common[..], flags].concat(), 2)?;
    let said = &shown.finished.stdout;
    assert!(said.contains(&format!("{PARTS} parts, refused")), "{said}{}", shown.finished.stderr);

    let seen = world.seen();
    assert!(seen.iter().all(|request| request.host == ALLOWED), "{seen:?}");
    assert!(seen.iter().all(|request| request.alpn.as_deref() == Some(alpn)), "{seen:?}");
    let parts = seen.iter().filter(|request| request.path.starts_with("/part/")).count();
    assert_eq!(parts, PARTS);
    assert_eq!(running.counter("redirected")?, 0);
    let carried = capture.senders_to(ip);
    let mut refused = 0;
    for line in running.lines() {
        let line = Line::parse(&line).map_err(anyhow::Error::msg)?;
        let from: SocketAddr = line.field("DOWNSTREAM_REMOTE_ADDRESS").parse()?;
        let is_allowed = line.field("REQUESTED_SERVER_NAME") == ALLOWED;
        assert_eq!(carried.contains(&from.port()), is_allowed, "{alpn}: {line:?}");
        refused += u32::from(!is_allowed);
    }
    assert!(refused > 0, "{alpn}: the picture was asked for");
    Ok(())
}
