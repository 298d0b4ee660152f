//! Policy files change under a running interceptor: what new connections meet within a second, and
//! that nothing established ends.

use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Stdio;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use interceptor_tests::product::{Interceptor, Running, binary};
use interceptor_tests::servers::port;
use interceptor_tests::world::{self, World, kernel_tests, wait};

const CLIENT: &str = env!("CARGO_BIN_EXE_interceptor-test-client");

/// From the change of a file to the first connection that meets it.
const IN_FORCE: Duration = Duration::from_secs(1);

const CURL: [&str; 5] = ["curl", "-sSI", "-o/dev/null", "-w%{http_code}", "https://www.google.com"];

/// A directory of policy, with which everything else is refused.
struct Policy {
    dir: PathBuf,
}

impl Policy {
    fn new(world: &World) -> Result<Self> {
        let dir = world.dir().join("policy");
        fs::create_dir(&dir)?;
        Ok(Self { dir })
    }

    fn start<'w>(&self, world: &'w World, more: &[&str]) -> Result<Running<'w>> {
        let dir = self.dir.to_string_lossy();
        let flags = [&["--outbound", "registry-only", "-f", &dir], more].concat();
        Interceptor::new(world, &binary(), &flags).start()
    }

    fn write(&self, name: &str, text: &str) -> Result<()> {
        Ok(fs::write(self.dir.join(name), text)?)
    }

    fn remove(&self, name: &str) -> Result<()> {
        Ok(fs::remove_file(self.dir.join(name))?)
    }
}

fn entry(host: &str, port: u16, protocol: &str, more: &str) -> String {
    let name = host.replace(['*', '.'], "x");
    format!(
        "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {{name: {name}}}\nspec:\n  \
         hosts: [\"{host}\"]\n  ports: [{{number: {port}, name: port, protocol: {protocol}}}]\n  {more}\n"
    )
}

fn google() -> String {
    entry("www.google.com", 443, "HTTPS", "resolution: DNS")
}

/// Asks again and again until curl's exit status is `code`; how long that took.
fn until_curl_says(running: &Running<'_>, code: i32) -> Result<Duration> {
    let begun = Instant::now();
    loop {
        let asked = begun.elapsed();
        let outcome = running.exec(&CURL, 0)?;
        if outcome.finished.code == code {
            return Ok(asked);
        }
        anyhow::ensure!(asked < Duration::from_secs(5), "never {code}: {:?}", outcome.finished);
    }
}

/// Waits for a line on standard error that contains `words`.
fn until_said(running: &mut Running<'_>, words: &str) -> Result<()> {
    let deadline = Instant::now() + Duration::from_secs(3);
    while !running.stderr()?.contains(words) {
        anyhow::ensure!(Instant::now() < deadline, "never {words:?}: {}", running.stderr()?);
        sleep(Duration::from_millis(20));
    }
    Ok(())
}

/// MESH-20, T-62: what was taken away refuses new connections within a second, while a relay that
/// is open goes on; what came passes.
#[test]
fn a_removed_entry_stops_new_connections_and_no_open_one() -> Result<()> {
    if !kernel_tests() {
        return Ok(());
    }
    let world = World::new()?;
    let policy = Policy::new(&world)?;
    let address = format!("addresses: [{}]", world::HTTPBIN);
    policy.write("google.yaml", &google())?;
    policy.write("echo.yaml", &entry("echo.test", port::ECHO, "TCP", &address))?;
    let mut running = policy.start(&world, &[])?;
    assert_eq!(until_curl_says(&running, 0)?.as_secs(), 0);

    let (said, go) = (world.dir().join("said"), world.dir().join("go"));
    let script = format!(
        "exec 3<>/dev/tcp/{}/{} || exit 3; echo one >&3; read -ru3 x || exit 4; echo \"$x\" > {said}; \
         until test -e {go}; do sleep 0.05; done; echo two >&3; read -ru3 x; echo \"$x\"",
        world::HTTPBIN,
        port::ECHO,
        said = said.display(),
        go = go.display(),
    );
    let output = world.dir().join("relayed");
    let mut command = running.exec_command(&["bash", "-c", &script]);
    command.stdin(Stdio::null()).stdout(fs::File::create(&output)?);
    let mut relay = world.spawn(&mut command)?;
    let deadline = Instant::now() + Duration::from_secs(10);
    while !said.exists() {
        assert!(Instant::now() < deadline, "the relay never opened: {}", running.stderr()?);
        sleep(Duration::from_millis(20));
    }

    policy.remove("google.yaml")?;
    policy.remove("echo.yaml")?;
    let took = until_curl_says(&running, 35)?;
    assert!(took < IN_FORCE, "{took:?}");
    until_said(&mut running, "interceptor: policy generation 2: -2 ServiceEntry\n")?;
    let refused = running.exec(&["bash", "-c", &script], 0)?;
    assert_eq!(refused.finished.code, 4, "new connections are refused: {:?}", refused.finished);

    fs::write(&go, "")?;
    let status = wait(&mut relay, Duration::from_secs(10))?.context("the relay hangs")?;
    assert!(status.success());
    assert_eq!(fs::read_to_string(&output)?, "two\n", "the open relay went on");

    policy.write("google.yaml", &google())?;
    let took = until_curl_says(&running, 0)?;
    assert!(took < IN_FORCE, "{took:?}");
    until_said(&mut running, "interceptor: policy generation 3: +1 ServiceEntry\n")?;
    let status = running.verb(&["status"])?.stdout;
    assert!(status.contains("policy generation  3\n"), "{status}");
    assert!(status.contains(": policy generation 3: +1 ServiceEntry\n"), "{status}");
    Ok(())
}

/// T-61: what is no policy changes nothing and is reported with its place; an invalid resource
/// leaves its last good version in force.
#[test]
fn a_broken_file_leaves_the_old_policy_in_force() -> Result<()> {
    if !kernel_tests() {
        return Ok(());
    }
    let world = World::new()?;
    let policy = Policy::new(&world)?;
    policy.write("google.yaml", &google())?;
    let mut running = policy.start(&world, &[])?;
    let file = policy.dir.join("google.yaml");
    for (text, place) in [
        ("kind: [\n", ":1:7: not readable as YAML"),
        ("", ": is empty"),
        ("kind: X\n", ":1:7: kind: unknown"),
    ] {
        policy.write("google.yaml", text)?;
        let words = format!("{}{place}", file.display());
        until_said(&mut running, &words)?;
        until_said(&mut running, "interceptor: policy generation 1 stays in force: ")?;
        assert_eq!(until_curl_says(&running, 0)?.as_secs(), 0, "{text}");
    }
    let status = running.verb(&["status"])?.stdout;
    assert!(status.contains("policy generation  1\n"), "{status}");
    assert!(status.contains("REFUSED at "), "{status}");

    let invalid = google().replace("[\"www.google.com\"]", "[\"*\"]");
    let more = entry("en.wikipedia.org", 443, "HTTPS", "resolution: DNS");
    policy.write("google.yaml", &format!("{invalid}---\n{more}"))?;
    until_said(&mut running, "interceptor: policy generation 2: +1 ServiceEntry\n")?;
    until_said(&mut running, "its last good version stays")?;
    assert_eq!(until_curl_says(&running, 0)?.as_secs(), 0);
    Ok(())
}

/// The kernel's own table and the log's format follow too.
#[test]
fn datagrams_and_the_access_log_follow() -> Result<()> {
    if !kernel_tests() {
        return Ok(());
    }
    let world = World::new()?;
    let policy = Policy::new(&world)?;
    policy.write("google.yaml", &google())?;
    let mesh = world.file("mesh.conf", "accessLogFormat: \"first %UPSTREAM_CLUSTER%\"\n")?;
    let mut running = policy.start(&world, &["--mesh-config", &mesh])?;
    let to = SocketAddr::new(world::UDP_ECHO, port::ECHO).to_string();
    let datagram = |running: &Running<'_>| -> Result<String> {
        Ok(running.exec(&[CLIENT, "datagram", &to], 0)?.finished.stdout)
    };
    assert_eq!(datagram(&running)?, "EPERM\n");
    let address = format!("addresses: [{}]", world::UDP_ECHO);
    policy.write("udp.yaml", &entry("udp.test", port::ECHO, "UDP", &address))?;
    until_said(&mut running, "policy generation 2: +1 ServiceEntry\n")?;
    assert_eq!(datagram(&running)?, "reply\n");
    policy.remove("udp.yaml")?;
    until_said(&mut running, "policy generation 3: -1 ServiceEntry\n")?;
    assert_eq!(datagram(&running)?, "EPERM\n");

    let of_curl = |running: &Running<'_>| -> Result<Vec<String>> {
        let lines = running.exec(&CURL, 1)?.log;
        Ok(lines.into_iter().filter(|line| line.contains("google")).collect())
    };
    assert_eq!(of_curl(&running)?, ["first outbound|443||www.google.com"]);
    world.file("mesh.conf", "accessLogFormat: \"second %UPSTREAM_CLUSTER%\"\n")?;
    until_said(&mut running, "policy generation 4: ~1 MeshConfig\n")?;
    assert_eq!(of_curl(&running)?, ["second outbound|443||www.google.com"]);
    Ok(())
}

/// A Secret as JSON, which is YAML too.
fn secret(name: &str, parts: &[(&str, &str)]) -> String {
    let data: serde_json::Map<_, _> =
        parts.iter().map(|(key, pem)| ((*key).to_owned(), (*pem).into())).collect();
    serde_json::json!({
        "apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}, "stringData": data,
    })
    .to_string()
}

/// TLS-9, TLS-10, T-44: MUTUAL with a `credentialName`. The Secret's revocation list counts, a
/// Secret that goes takes the connections with it, and never is anything sent in plaintext.
#[test]
fn a_secret_changes_and_goes() -> Result<()> {
    if !kernel_tests() {
        return Ok(());
    }
    let world = World::new()?;
    let policy = Policy::new(&world)?;
    let (certificate, key) = world.authority.client("client.test")?;
    let ca = world.authority.pem();
    let good = [("tls.crt", &*certificate), ("tls.key", &key), ("ca.crt", &ca)];
    let entry = "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {name: e}\nspec:\n  \
                 hosts: [www.google.com]\n  resolution: DNS\n  \
                 ports: [{number: 80, name: http, protocol: HTTP, targetPort: 443}]\n---\n";
    let rule = "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {name: d}\nspec:\n  \
                host: www.google.com\n  workloadSelector: {matchLabels: {app: client}}\n  \
                trafficPolicy: {portLevelSettings: [{port: {number: 80}, \
                tls: {mode: MUTUAL, credentialName: cred}}]}\n";
    policy.write("entry.yaml", &format!("{entry}{rule}"))?;
    policy.write("secret.yaml", &secret("cred", &good))?;
    let mut running = policy.start(&world, &["--labels", "app=client"])?;
    let curl = ["curl", "-sS", "-w%{http_code}", "http://www.google.com/"];
    let ask =
        |running: &Running<'_>| -> Result<String> { Ok(running.exec(&curl, 0)?.finished.stdout) };
    let answer = ask(&running)?;
    assert!(answer.ends_with("200"), "{answer}");
    let seen = world.seen().len();

    let revoked = world.authority.revocations(true)?;
    policy.write("secret.yaml", &secret("cred", &[&good[..], &[("ca.crl", &revoked)]].concat()))?;
    until_said(&mut running, "policy generation 2: ~1 Secret\n")?;
    let answer = ask(&running)?;
    assert!(answer.ends_with("503") && answer.contains("certificate_is_revoked"), "{answer}");

    policy.remove("secret.yaml")?;
    until_said(&mut running, "policy generation 3: -1 Secret\n")?;
    let answer = ask(&running)?;
    assert!(answer.ends_with("503") && answer.contains("no_credential_\"cred\""), "{answer}");
    assert_eq!(world.seen().len(), seen, "a request left without its credential");

    let others = world.authority.revocations(false)?;
    policy.write("secret.yaml", &secret("cred", &[&good[..], &[("ca.crl", &others)]].concat()))?;
    until_said(&mut running, "policy generation 4: +1 Secret\n")?;
    let answer = ask(&running)?;
    assert!(answer.ends_with("200"), "{answer}");
    Ok(())
}
