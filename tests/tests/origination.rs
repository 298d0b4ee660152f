//! TLS origination by DestinationRule: what the site sees, and that it is who it says.

use anyhow::Result;
use interceptor_tests::ca::Authority;
use interceptor_tests::log::Line;
use interceptor_tests::product::{Interceptor, binary};
use interceptor_tests::world::{CNN, World, kernel_tests};

/// The tutorial's step 8.2, as the walkthrough has it.
const FILE: &str =
    concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/walkthrough/08-2-cnn-tls-origination.yaml");
const FLAGS: [&str; 4] = ["--outbound", "registry-only", "-f", FILE];
const CURL: [&str; 6] =
    ["curl", "-sS", "-o/dev/null", "-D-", "-w%{http_code}", "http://edition.cnn.com/politics"];

/// SEED-13: the site gets HTTPS with SNI, Host and ALPN as a browser would send them, once.
#[test]
fn the_site_is_asked_over_tls() -> Result<()> {
    if !kernel_tests() {
        return Ok(());
    }
    let world = World::new()?;
    let capture = world.capture()?;
    let outcome = Interceptor::new(&world, &binary(), &FLAGS).run(&CURL)?;
    assert!(outcome.finished.stdout.starts_with("HTTP/1.1 200 OK"), "{:?}", outcome.finished);

    let seen = world.seen();
    assert_eq!(seen.len(), 1, "{seen:?}");
    assert_eq!((seen[0].scheme, seen[0].local), ("https", (CNN, 443).into()));
    assert_eq!((seen[0].host.as_str(), seen[0].path.as_str()), ("edition.cnn.com", "/politics"));
    assert_eq!(seen[0].sni.as_deref(), Some("edition.cnn.com"));
    assert_eq!(seen[0].alpn.as_deref(), Some("http/1.1"));
    assert_eq!(capture.syns_to(CNN, 80), 0, "nothing leaves in plain text");
    Ok(())
}

/// T-44, LOG-49: a certificate of an authority that the system doesn't trust is no certificate. The
/// request stays here, and the log says why.
#[test]
fn a_site_that_cannot_prove_its_name_gets_nothing() -> Result<()> {
    if !kernel_tests() {
        return Ok(());
    }
    let world = World::new()?;
    let strangers = world.file("strangers.pem", &Authority::generate()?.pem())?;
    let product = Interceptor::new(&world, &binary(), &FLAGS);
    let outcome = product.run_with(&CURL, |run| {
        run.env("SSL_CERT_FILE", &strangers);
    })?;
    assert!(outcome.finished.stdout.ends_with("503"), "{:?}", outcome.finished);
    assert_eq!(world.seen(), [], "no request is sent");

    let [line] = &outcome.log[..] else { panic!("one line: {:?}", outcome.log) };
    let line = Line::parse(line).expect("a line");
    assert_eq!(line.field("RESPONSE_FLAGS"), "URX,UF");
    let reason = line.field("UPSTREAM_TRANSPORT_FAILURE_REASON");
    assert!(reason.contains("CERTIFICATE_VERIFY_FAILED"), "{reason}");
    Ok(())
}
