//! Mistakes: each gets one clear message and its own exit status, and leaves nothing attached.

use std::time::Duration;

use anyhow::Result;
use interceptor_tests::product::{Interceptor, binary};
use interceptor_tests::world::{Finished, World, kernel_tests};

const USAGE: i32 = 64;
const BAD_RESOURCES: i32 = 65;
const MISSING_KERNEL_FEATURE: i32 = 69;
const BUSY: i32 = 73;
const NO_PRIVILEGE: i32 = 77;

fn check(finished: &Finished, code: i32, word: &str) {
    assert_eq!(finished.code, code, "{word}: {finished:?}");
    assert!(finished.stderr.contains(word), "no `{word}` in: {}", finished.stderr);
    assert!(!finished.stdout.contains("it ran"), "COMMAND must not run");
}

#[test]
fn a_wrong_command_line() -> Result<()> {
    if !kernel_tests() {
        return Ok(());
    }
    let world = World::new()?;
    for (arguments, word) in [
        (&["run", "--outbound", "nonsense", "--", "true"][..], "nonsense"),
        (&["run", "--bypass", "203.0.113.0/33", "--", "true"], "203.0.113.0/33"),
        (&["run", "--no-such-flag", "--", "true"], "--no-such-flag"),
        (&["no-such-verb"], "no-such-verb"),
    ] {
        let mut command = world.command(binary());
        let finished = world.output(command.args(arguments), Duration::from_secs(10))?;
        check(&finished, USAGE, word);
    }
    Ok(())
}

#[test]
fn broken_resources() -> Result<()> {
    if !kernel_tests() {
        return Ok(());
    }
    let world = World::new()?;
    let good = std::fs::read_to_string(world.entry("v4.example.com", 443, "TLS", "")?)?;
    for (name, text, word) in [
        ("broken.yaml", "kind: [".to_owned(), "broken.yaml"),
        ("field.yaml", good.replace("hosts:", "hostz:"), "hostz"),
        ("port.yaml", good.replace("443\n", "70000\n"), "70000"),
        ("protocol.yaml", good.replace("TLS", "SMOKE"), "SMOKE"),
    ] {
        let file = world.file(name, &text)?;
        let product = Interceptor::new(&world, &binary(), &["-f", &file]);
        check(&product.run(&["echo", "it ran"])?.finished, BAD_RESOURCES, word);
    }
    let product = Interceptor::new(&world, &binary(), &["-f", "/nonexistent/entry.yaml"]);
    check(&product.run(&["echo", "it ran"])?.finished, BAD_RESOURCES, "/nonexistent/entry.yaml");
    Ok(())
}

#[test]
fn a_cgroup_that_does_not_exist() -> Result<()> {
    if !kernel_tests() {
        return Ok(());
    }
    let world = World::new()?;
    let mut command = world.command(binary());
    command.args(["run", "--name", "ix-no-cgroup", "--cgroup", "/no/such/cgroup"]);
    let finished = world.output(&mut command, Duration::from_secs(10))?;
    check(&finished, BUSY, "/no/such/cgroup");
    Ok(())
}

/// A kernel that is too old, as far as it says itself: nothing is loaded, and what is missing is
/// named (T-65).
#[test]
fn t65_a_kernel_without_what_is_needed() -> Result<()> {
    if !kernel_tests() {
        return Ok(());
    }
    let world = World::new()?;
    let mut command = world.command("setarch");
    command.arg("--uname-2.6").arg(binary()).args(["run", "--name", "ix-old-kernel"]);
    let finished = world.output(command.args(["--", "echo", "it ran"]), Duration::from_secs(10))?;
    check(&finished, MISSING_KERNEL_FEATURE, "needs Linux 5.15 or later");
    Ok(())
}

/// The namespace has one port to give, and somebody listens on it beside 127.0.0.1.
#[test]
fn no_port_is_free_for_the_listeners() -> Result<()> {
    if !kernel_tests() {
        return Ok(());
    }
    let world = World::new()?;
    let _taken = world.workload.inside(|| {
        std::fs::write("/proc/sys/net/ipv4/ip_local_port_range", "50000 50000")?;
        std::net::TcpListener::bind("127.0.0.2:50000")
    })?;
    let product = Interceptor::new(&world, &binary(), &[]);
    let finished = product.run(&["echo", "it ran"])?.finished;
    check(&finished, BUSY, "net.ipv4.ip_local_port_range");
    Ok(())
}

#[test]
fn a_name_that_is_in_use() -> Result<()> {
    if !kernel_tests() {
        return Ok(());
    }
    let world = World::new()?;
    let running = Interceptor::new(&world, &binary(), &["--outbound", "allow-any"]).start()?;
    let mut second = world.command(binary());
    second.args(["run", "--name", running.name(), "--", "echo", "it ran"]);
    let finished = world.output(&mut second, Duration::from_secs(10))?;
    check(&finished, BUSY, running.name());
    Ok(())
}

#[test]
fn a_missing_privilege() -> Result<()> {
    if !kernel_tests() {
        return Ok(());
    }
    let world = World::new()?;
    // A copy, since the build directory may lie below a home that others can't read.
    let copy = world.dir().join("interceptor");
    std::fs::copy(binary(), &copy)?;
    let mut command = world.command("setpriv");
    command.args(["--reuid=65534", "--regid=65534", "--clear-groups", "--"]).arg(&copy);
    command.args(["run", "--", "echo", "it ran"]).current_dir("/");
    let finished = world.output(&mut command, Duration::from_secs(10))?;
    check(&finished, NO_PRIVILEGE, "root");
    Ok(())
}

#[test]
fn a_command_that_does_not_exist() -> Result<()> {
    if !kernel_tests() {
        return Ok(());
    }
    let world = World::new()?;
    let product = Interceptor::new(&world, &binary(), &["--outbound", "allow-any"]);
    check(&product.run(&["/no/such/command"])?.finished, 127, "/no/such/command");
    Ok(())
}

/// The runner of policy tests needs neither root nor a kernel.
#[test]
fn policy_tests_end_with_what_they_found() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let case = |id: &str, verdict: &str| {
        format!(
            "  - id: {id}\n    title: t\n    kind: flow\n    \
             flow: {{dst: '192.0.2.1:22', first_bytes: none}}\n    \
             expect: {{verdict: {verdict}}}\n"
        )
    };
    let put = |name: &str, text: &str| std::fs::write(dir.path().join(name), text);
    let format = "format: egress-scenario/1\ncases:\n";
    put("good.yaml", &format!("{format}{}", case("A-1", "forward")))?;
    put("bad.yaml", &format!("{format}{}{}", case("A-2", "forward"), case("A-3", "reset")))?;
    put("none.yaml", "format: egress-scenario/1\ncases: []\n")?;
    put("other.yaml", "kind: ServiceEntry\n")?;
    let run = |arguments: &[&str]| {
        let mut command = std::process::Command::new(binary());
        command.current_dir(dir.path()).arg("test").args(arguments).output()
    };
    for (arguments, code, words) in [
        (&["good.yaml"][..], 0, "ok A-1 t\n1 passed, 0 failed\n"),
        (&["good.yaml", "bad.yaml", "--junit", "r.xml"], 1, "2 passed, 1 failed\n"),
        (&["good.yaml", "--enforcement", "lax"], USAGE, "lax"),
        (&[], USAGE, "FILE"),
        (&["none.yaml"], BAD_RESOURCES, "none.yaml: holds no case"),
        (&["other.yaml"], BAD_RESOURCES, "other.yaml: "),
        (&["missing.yaml"], BAD_RESOURCES, "missing.yaml: cannot be read"),
        (&["good.yaml", "--junit", "no/such/r.xml"], BUSY, "no/such/r.xml"),
    ] {
        let done = run(arguments)?;
        let said = String::from_utf8_lossy(&[done.stdout, done.stderr].concat()).into_owned();
        assert_eq!(done.status.code(), Some(code), "{arguments:?}: {said}");
        assert!(said.contains(words), "{arguments:?}: no {words:?} in {said}");
    }
    let report = std::fs::read_to_string(dir.path().join("r.xml"))?;
    assert!(report.contains("tests=\"3\" failures=\"1\""), "{report}");
    let failed = "<testcase classname=\"bad.yaml\" name=\"A-3\"";
    let (_, rest) = report.split_once(failed).unwrap_or_else(|| panic!("{report}"));
    let (_, failure) = rest.split_once("<failure message=\"").unwrap_or_else(|| panic!("{report}"));
    assert!(failure.starts_with("verdict: expected reset, observed forward"), "{report}");
    Ok(())
}
