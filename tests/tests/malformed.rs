//! One daemon, fed with hundreds of files that are no policy: it goes on with what it has (T-61).

use std::fs;
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use interceptor_tests::malformed::documents;
use interceptor_tests::product::{Interceptor, Running, binary};
use interceptor_tests::world::{World, kernel_tests};

/// How many of the documents the daemon gets; each takes a moment to be noticed.
const SAMPLE: usize = 80;

const REFUSED: &str = "interceptor: policy generation 1 stays in force: ";

fn curl(running: &Running<'_>, host: &str) -> Result<i32> {
    let url = format!("https://{host}");
    Ok(running.exec(&["curl", "-sSI", "-o/dev/null", &url], 0)?.finished.code)
}

#[test]
fn malformed_files_never_replace_policy() -> Result<()> {
    if !kernel_tests() {
        return Ok(());
    }
    let scenarios = Path::new(env!("CARGO_MANIFEST_DIR")).join("scenarios/istio");
    let hopeless: Vec<_> =
        documents(&scenarios).into_iter().filter(|document| document.hopeless).collect();
    // Every step'th: all the ways to break a document come up.
    let step = (hopeless.len() / SAMPLE).max(1) | 1;
    let world = World::new()?;
    let dir = world.dir().join("policy");
    fs::create_dir(&dir)?;
    fs::copy(world.entry("www.google.com", 443, "HTTPS", "")?, dir.join("good.yaml"))?;
    let path = dir.to_string_lossy();
    let flags = ["--outbound", "registry-only", "-f", &path];
    let mut running = Interceptor::new(&world, &binary(), &flags).start()?;
    let mut fed = 0;
    for document in hopeless.iter().step_by(step) {
        fs::write(dir.join("new"), &document.bytes)?;
        fs::rename(dir.join("new"), dir.join("malformed.yaml"))?;
        fed += 1;
        let deadline = Instant::now() + Duration::from_secs(10);
        while running.stderr()?.matches(REFUSED).count() < fed {
            ensure!(
                Instant::now() < deadline,
                "not refused: {}\n{}\n{}",
                document.what,
                String::from_utf8_lossy(&document.bytes),
                running.stderr()?
            );
            sleep(Duration::from_millis(20));
        }
        if fed % 10 == 0 {
            assert_eq!(curl(&running, "www.google.com")?, 0, "allowed: {}", document.what);
            assert_eq!(curl(&running, "edition.cnn.com")?, 35, "forbidden: {}", document.what);
        }
    }
    assert!(fed >= SAMPLE / 2, "{fed} documents");
    let status = running.verb(&["status"])?.stdout;
    assert!(status.contains("policy generation  1\n"), "{status}");
    fs::remove_file(dir.join("malformed.yaml"))?;
    fs::copy(world.entry("edition.cnn.com", 443, "HTTPS", "")?, dir.join("more.yaml"))?;
    let deadline = Instant::now() + Duration::from_secs(5);
    while curl(&running, "edition.cnn.com")? != 0 {
        ensure!(Instant::now() < deadline, "a good file is taken again: {}", running.stderr()?);
    }
    Ok(())
}
