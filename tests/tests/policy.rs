//! What passes and what is refused, how it looks to the client, and what the log says.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::Result;
use interceptor_tests::log::{Line, expect_lines};
use interceptor_tests::product::{Interceptor, Outcome, binary};
use interceptor_tests::servers::port;
use interceptor_tests::shapes::{answered, blocked, passed, refused};
use interceptor_tests::world::{self, World, kernel_tests};

const CLIENT: &str = env!("CARGO_BIN_EXE_interceptor-test-client");
const DNS: &str = "  resolution: DNS\n";

/// The acceptance case: REGISTRY_ONLY with www.google.com on 443 and nothing else.
fn google_only(world: &World, more: &[&str], command: &[&str]) -> Result<Outcome> {
    let entry = world.entry("www.google.com", 443, "HTTPS", DNS)?;
    let flags = [&["--outbound", "registry-only", "-f", &entry], more].concat();
    Interceptor::new(world, &binary(), &flags).run(command)
}

fn check_log(outcome: &Outcome, shapes: &[String]) {
    let shapes: Vec<_> = shapes.iter().map(String::as_str).collect();
    if let Err(problems) = expect_lines(&outcome.log, &shapes) {
        panic!("{problems}\nstderr: {}", outcome.finished.stderr);
    }
}

fn at(address: std::net::IpAddr, port: u16) -> SocketAddr {
    SocketAddr::new(address, port)
}

#[test]
fn a_listed_name_passes_with_its_cluster_and_sni() -> Result<()> {
    if !kernel_tests() {
        return Ok(());
    }
    let world = World::new()?;
    let outcome = google_only(&world, &[], &["curl", "-sSI", "https://www.google.com"])?;
    assert_eq!(outcome.finished.code, 0, "{}", outcome.finished.stderr);
    assert!(outcome.finished.stdout.starts_with("HTTP/2 200"), "{}", outcome.finished.stdout);
    let cluster = "outbound|443||www.google.com";
    check_log(&outcome, &[passed(at(world::GOOGLE, 443), cluster, "www.google.com")]);
    Ok(())
}

#[test]
fn an_unlisted_name_is_refused_and_nothing_leaves() -> Result<()> {
    if !kernel_tests() {
        return Ok(());
    }
    let world = World::new()?;
    let capture = world.capture()?;
    let tls = google_only(&world, &[], &["curl", "-sSI", "https://edition.cnn.com"])?;
    assert_eq!(tls.finished.code, 35, "{}", tls.finished.stderr);
    check_log(&tls, &[refused(at(world::CNN, 443), "edition.cnn.com")]);

    let status = ["curl", "-sS", "-w%{http_code}", "http://httpbin.org/headers"];
    let http = google_only(&world, &[], &status)?;
    assert_eq!(http.finished.code, 0);
    assert!(http.finished.stdout.ends_with("502"), "{}", http.finished.stdout);
    assert!(http.finished.stdout.contains("httpbin.org"), "the body names the host");
    check_log(&http, &[blocked(at(world::HTTPBIN, 80), "GET /headers", "httpbin.org")]);

    assert_eq!(capture.packets_to(world::CNN), 0);
    assert_eq!(capture.packets_to(world::HTTPBIN), 0);
    Ok(())
}

/// MESH-28: without an HTTP handler on the port, istio closes the connection instead of a 502.
#[test]
fn istio_closes_plain_http_on_a_port_without_a_handler() -> Result<()> {
    if !kernel_tests() {
        return Ok(());
    }
    let world = World::new()?;
    let istio = ["--enforcement", "istio"];
    let http = google_only(&world, &istio, &["curl", "-sS", "http://httpbin.org/headers"])?;
    assert!(matches!(http.finished.code, 52 | 56), "{:?}", http.finished);
    check_log(&http, &[refused(at(world::HTTPBIN, 80), "-")]);

    let tls = google_only(&world, &istio, &["curl", "-sS", "https://edition.cnn.com"])?;
    assert_eq!(tls.finished.code, 35, "{}", tls.finished.stderr);
    check_log(&tls, &[refused(at(world::CNN, 443), "edition.cnn.com")]);
    Ok(())
}

/// MESH-27: with an HTTP handler on the port, istio answers 502 with an empty body.
#[test]
fn istio_answers_502_without_a_body_where_a_handler_is() -> Result<()> {
    if !kernel_tests() {
        return Ok(());
    }
    let world = World::new()?;
    let entry = world.entry("httpbin.org", 80, "HTTP", DNS)?;
    let flags = ["--outbound", "registry-only", "--enforcement", "istio", "-f", &entry];
    let product = Interceptor::new(&world, &binary(), &flags);
    let outcome = product.run(&["curl", "-sS", "-w%{http_code}", "http://v4.example.com/"])?;
    assert_eq!(outcome.finished.stdout, "502", "{}", outcome.finished.stderr);
    let line = Line::parse(&outcome.log[0]).expect("a line");
    assert_eq!((line.field("ROUTE_NAME"), line.field("BYTES_SENT")), ("block_all", "0"));
    assert_eq!(line.field("RESPONSE_FLAGS"), "-", "LOG-16: no flag");
    Ok(())
}

/// T-21: in REGISTRY_ONLY a hello without a name is refused, even to a listed host's address.
#[test]
fn tls_without_a_name_is_refused() -> Result<()> {
    if !kernel_tests() {
        return Ok(());
    }
    let world = World::new()?;
    let url = format!("https://{}/", world::GOOGLE);
    let outcome = google_only(&world, &[], &["curl", "-sSk", &url])?;
    assert_eq!(outcome.finished.code, 35, "{}", outcome.finished.stderr);
    check_log(&outcome, &[refused(at(world::GOOGLE, 443), "-")]);
    Ok(())
}

/// T-30: each request of a keep-alive connection is judged on its own.
#[test]
fn every_request_of_a_connection_is_judged() -> Result<()> {
    if !kernel_tests() {
        return Ok(());
    }
    let world = World::new()?;
    let entry = world.entry("httpbin.org", 80, "HTTP", DNS)?;
    let product =
        Interceptor::new(&world, &binary(), &["--outbound", "registry-only", "-f", &entry]);
    let form = "-w%{http_code}/%{num_connects}\n";
    let outcome = product.run(&[
        "curl",
        "-sS",
        "-o/dev/null",
        form,
        "http://httpbin.org/status/204",
        "--next",
        "-sS",
        "-o/dev/null",
        form,
        "-HHost: v4.example.com",
        "http://httpbin.org/",
    ])?;
    let mut answers = outcome.finished.stdout.lines();
    assert_eq!(answers.next(), Some("204/1"), "{:?}", outcome.finished);
    assert!(answers.next().is_some_and(|last| last.starts_with("502/")), "{:?}", outcome.finished);
    let to = at(world::HTTPBIN, 80);
    let cluster = "outbound|80||httpbin.org";
    check_log(
        &outcome,
        &[
            answered(to, "GET /status/204", 204, "httpbin.org", cluster, "default"),
            blocked(to, "GET /", "v4.example.com"),
        ],
    );
    let seen = world.seen();
    assert_eq!(seen.len(), 1, "the second request never arrives: {seen:?}");
    Ok(())
}

#[test]
fn ipv6_is_judged_like_ipv4() -> Result<()> {
    if !kernel_tests() {
        return Ok(());
    }
    let world = World::new()?;
    let capture = world.capture()?;
    let entry = world.entry("v6.example.com", 443, "TLS", DNS)?;
    let flags = ["--outbound", "registry-only", "-f", &entry];
    let product = Interceptor::new(&world, &binary(), &flags);
    let listed = product.run(&["curl", "-sSI", "https://v6.example.com"])?;
    assert_eq!(listed.finished.code, 0, "{}", listed.finished.stderr);
    let to = at(world::EXAMPLE_V6, 443);
    check_log(&listed, &[passed(to, "outbound|443||v6.example.com", "v6.example.com")]);

    // What is said to the address; the handshake alone may reach it (R2).
    let payloads = || {
        let packets = capture.packets();
        packets.iter().filter(|p| p.destination == world::EXAMPLE_V6 && p.payload > 0).count()
    };
    let before = payloads();
    let resolve = format!("other.example.com:443:[{}]", world::EXAMPLE_V6);
    let other =
        product.run(&["curl", "-sSI", "--resolve", &resolve, "https://other.example.com"])?;
    assert_eq!(other.finished.code, 35, "{}", other.finished.stderr);
    check_log(&other, &[refused(to, "other.example.com")]);
    assert_eq!(payloads(), before);
    Ok(())
}

/// An honest connect: a client with a dead IPv6 path ends on IPv4 in under a second.
#[test]
fn a_dead_ipv6_path_costs_less_than_a_second() -> Result<()> {
    if !kernel_tests() {
        return Ok(());
    }
    let world = World::new()?;
    let entry = world.entry("deadv6.example.com", 443, "TLS", DNS)?;
    for flags in
        [vec!["--outbound", "registry-only", "-f", &entry], vec!["--outbound", "allow-any"]]
    {
        let product = Interceptor::new(&world, &binary(), &flags);
        let command = ["curl", "-sSo/dev/null", "-w%{time_total}", "https://deadv6.example.com"];
        let outcome = product.run(&command)?;
        assert_eq!(outcome.finished.code, 0, "{flags:?}: {}", outcome.finished.stderr);
        let seconds: f32 = outcome.finished.stdout.parse()?;
        assert!(seconds < 1.0, "{flags:?}: {seconds} s");
    }
    Ok(())
}

/// ALLOW_ANY holds nothing back: a server that speaks first is heard at once, on any port.
#[test]
fn a_banner_arrives_at_once_under_allow_any() -> Result<()> {
    if !kernel_tests() {
        return Ok(());
    }
    let world = World::new()?;
    let product = Interceptor::new(&world, &binary(), &["--outbound", "allow-any"]);
    let to = at(world::EXAMPLE_V4, port::BANNER).to_string();
    // On a busy machine one of them may wait for a processor.
    let mut fastest = u32::MAX;
    for _ in 0..5 {
        let outcome = product.run(&[CLIENT, "listen", &to])?;
        let (milliseconds, said) = outcome.finished.stdout.split_once(" ms: ").expect("a banner");
        assert_eq!(said, "220 stub ready\n");
        fastest = fastest.min(milliseconds.parse()?);
    }
    assert!(fastest < 50, "{fastest} ms at best; natively it is 0 or 1");
    Ok(())
}

/// GAP-4, LOG-41: ALLOW_ANY dials a client that is slow to speak, and still tells what it said.
#[test]
fn a_late_request_is_read_under_allow_any() -> Result<()> {
    if !kernel_tests() {
        return Ok(());
    }
    let world = World::new()?;
    let product = Interceptor::new(&world, &binary(), &["--outbound", "allow-any"]);
    let to = at(world::HTTPBIN, 80);
    let script = format!(
        "exec 3<>/dev/tcp/{}/{}; sleep 0.2; printf 'GET /headers HTTP/1.1\\r\\nHost: httpbin.org\\r\\n\
         User-Agent: curl/late\\r\\nConnection: close\\r\\n\\r\\n' >&3; cat <&3",
        to.ip(),
        to.port()
    );
    let outcome = product.run(&["bash", "-c", &script])?;
    assert!(outcome.finished.stdout.starts_with("HTTP/1.1 200"), "{:?}", outcome.finished);
    let cluster = "PassthroughCluster";
    check_log(&outcome, &[answered(to, "GET /headers", 200, "httpbin.org", cluster, "allow_any")]);
    Ok(())
}

/// A dead upstream is not hidden behind the proxy's own accept: HTTP gets 503 (MESH-24), anything
/// else the reset that a connect without us would have been told of.
#[test]
fn a_closed_port_is_an_error_for_the_client_too() -> Result<()> {
    if !kernel_tests() {
        return Ok(());
    }
    let world = World::new()?;
    let product = Interceptor::new(&world, &binary(), &["--outbound", "allow-any"]);
    let to = at(world::EXAMPLE_V4, 4711).to_string();
    let outcome = product.run(&[CLIENT, "get", &to, "v4.example.com"])?;
    assert!(outcome.finished.stdout.starts_with("503 "), "{}", outcome.finished.stdout);
    assert!(outcome.log[0].contains(" 503 UF "), "{}", outcome.log[0]);

    let outcome = product.run(&["curl", "-sS", &format!("https://{to}/")])?;
    assert_eq!(outcome.finished.code, 35, "{}", outcome.finished.stderr);
    assert!(outcome.finished.stderr.contains("reset by peer"), "{}", outcome.finished.stderr);
    assert!(outcome.log[0].contains(" 0 UF,URX "), "{}", outcome.log[0]);
    Ok(())
}

/// Opaque TCP to somewhere that is not listed: nothing leaves, and the client isn't kept waiting.
#[test]
fn unlisted_tcp_is_refused_before_anything_leaves() -> Result<()> {
    if !kernel_tests() {
        return Ok(());
    }
    let world = World::new()?;
    let capture = world.capture()?;
    let product = Interceptor::new(&world, &binary(), &["--outbound", "registry-only"]);
    let to = at(world::EXAMPLE_V4, port::ECHO).to_string();
    let start = Instant::now();
    let outcome = product.run(&[CLIENT, "echo", &to, "--bytes", "1000"])?;
    assert_eq!(outcome.finished.code, 1, "{}", outcome.finished.stdout);
    assert!(start.elapsed() < Duration::from_secs(9), "refused, not timed out");
    assert_eq!(capture.packets_to(world::EXAMPLE_V4), 0);
    assert_eq!(outcome.log.len(), 1, "{:?}", outcome.log);
    Ok(())
}

/// R1, HTTP-9: a client that takes its time is judged like any other. Where a silent client would
/// pass, only the server's own words may settle that.
#[test]
fn a_client_that_waits_is_judged_all_the_same() -> Result<()> {
    if !kernel_tests() {
        return Ok(());
    }
    let world = World::new()?;
    let entry = world.file(
        "auto.yaml",
        &format!(
            "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {{name: auto}}\nspec:\n  \
             hosts: [v4.example.com]\n  addresses: [{}]\n  ports: [{{number: 80, name: auto}}]\n  \
             resolution: STATIC\n  endpoints: [{{address: {}}}]\n",
            world::HTTPBIN,
            world::EXAMPLE_V4,
        ),
    )?;
    let flags = ["--outbound", "registry-only", "-f", &entry];
    let running = Interceptor::new(&world, &binary(), &flags).start()?;
    for (host, code, route) in
        [("v4.example.com", "200", "default"), ("no.example.com", "502", "block_all")]
    {
        let script = format!(
            "exec 3<>/dev/tcp/{}/80; sleep 0.3; \
             printf 'GET / HTTP/1.1\\r\\nHost: {host}\\r\\nConnection: close\\r\\n\\r\\n' >&3; cat <&3",
            world::HTTPBIN
        );
        let outcome = running.exec(&["bash", "-c", &script], 1)?;
        let answer = &outcome.finished.stdout;
        assert!(answer.starts_with(&format!("HTTP/1.1 {code} ")), "{host}: {answer}");
        let line = Line::parse(&outcome.log[0]).expect("a line");
        assert_eq!((line.field("RESPONSE_CODE"), line.field("ROUTE_NAME")), (code, route));
    }
    Ok(())
}
