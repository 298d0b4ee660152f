//! What surrounds the node agent: the manifests' privileges, its preflight, metrics on a port, kubectl's
//! plugin.

use std::ffi::OsString;
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use interceptor_tests::cgroup::Cgroup;
use interceptor_tests::product::{Interceptor, binary};
use interceptor_tests::snapshot::cgroup2_mount;
use interceptor_tests::world::{World, kernel_tests};

const LIMIT: Duration = Duration::from_secs(20);

fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the tests lie in it")
}

/// The capabilities that the plain manifests give the agent, as setpriv calls them.
fn capabilities() -> Result<Vec<String>> {
    let text = fs::read_to_string(repository().join("deploy/interceptor.yaml"))?;
    let (_, added) =
        text.split_once("              add:\n").context("no capabilities are added")?;
    let lines = added.lines().map(str::trim).filter(|line| !line.starts_with('#'));
    let names = lines.map_while(|line| line.strip_prefix("- ")).map(str::to_lowercase);
    let names: Vec<_> = names.collect();
    assert!(names.len() >= 3, "{names:?}");
    Ok(names)
}

/// setpriv's arguments for root with these capabilities, which nothing raises again.
fn with(capabilities: &[String]) -> Vec<OsString> {
    let added = capabilities.iter().map(|name| format!(",+{name}"));
    let bounds = format!("--bounding-set=-all{}", added.collect::<String>());
    vec![bounds.into(), "--inh-caps=-all".into(), "--no-new-privs".into()]
}

/// What the preflight says in a cgroup, as a container has one.
fn check(cgroup: &Cgroup, capabilities: &[String]) -> Result<String> {
    let mut shell = Command::new("sh");
    shell.env("KUBECONFIG", "/nowhere");
    let command = cgroup.command(&mut shell, &["setpriv"]);
    command.args(with(capabilities)).arg(binary()).args(["agent", "--check", "--node", "n"]);
    let output = command.output()?;
    assert_eq!(output.status.code(), Some(1), "there is no cluster: {output:?}");
    Ok(String::from_utf8(output.stdout)?)
}

#[test]
fn the_manifests_capabilities_are_enough_and_none_too_many() -> Result<()> {
    if !kernel_tests() {
        return Ok(());
    }
    let (cgroup, all) = (Cgroup::create("check")?, capabilities()?);
    let text = check(&cgroup, &all)?;
    for good in ["✓ capabilities", "✓ programs", "✓ bpffs", "✓ cgroups"] {
        assert!(text.lines().any(|line| line.starts_with(good)), "no {good:?} in\n{text}");
    }
    // What is a part of another one shows in nothing here.
    for name in all.iter().filter(|name| *name != "bpf") {
        let others: Vec<_> = all.iter().filter(|one| *one != name).cloned().collect();
        let text = check(&cgroup, &others)?;
        let line = text.lines().find(|line| line.starts_with("✗ capabilities"));
        let named = format!("CAP_{}", name.to_uppercase());
        assert!(line.is_some_and(|line| line.contains(&named)), "{named} in\n{text}");
    }
    Ok(())
}

/// A directory that goes with the value, where nobody took it away before.
struct Made(PathBuf);

impl Drop for Made {
    fn drop(&mut self) {
        let _ = fs::remove_dir(&self.0);
    }
}

/// An interceptor with nothing but these capabilities allows and refuses.
#[test]
fn with_the_manifests_capabilities_a_cgroup_is_covered() -> Result<()> {
    if !kernel_tests() {
        return Ok(());
    }
    let world = World::new()?;
    let cgroup = Cgroup::create("few")?;
    let entry = world.entry("www.google.com", 443, "TLS", "")?;
    let product =
        Interceptor::new(&world, &binary(), &["--outbound", "registry-only", "-f", &entry]);
    // Only root of the host makes cgroups at the top; a pod's is there already.
    let daemon = format!("interceptor-{}", product.name());
    let daemon = Made(cgroup2_mount().context("no cgroup v2 mount")?.join(daemon));
    fs::create_dir(&daemon.0)?;
    let plain = product.cover_command(cgroup.path());
    let mut few = world.command("setpriv");
    few.args(with(&capabilities()?)).arg(plain.get_program()).args(plain.get_args());
    let mut running = product.start_as(few, "")?;
    running.until_ready()?;
    let curl = |url: &str| {
        let mut shell = world.command("sh");
        cgroup.command(&mut shell, &["curl", "-sSI", "--max-time", "10", url]);
        world.output(&mut shell, LIMIT)
    };
    let allowed = curl("https://www.google.com")?;
    assert_eq!(allowed.code, 0, "{allowed:?}");
    let refused = curl("https://edition.cnn.com")?;
    assert_eq!(refused.code, 35, "{refused:?}");
    running.stop()?;
    Ok(())
}

/// A container has a cgroup namespace of its own; the agent finds its place in the host's all the same.
#[test]
fn the_agent_leaves_its_cgroup_namespace() -> Result<()> {
    if !kernel_tests() {
        return Ok(());
    }
    let cgroup = Cgroup::create("pod")?;
    let product = binary();
    let program = product.to_str().context("a path in UTF-8")?;
    let mut shell = Command::new("sh");
    // Process 1, as the host's, has the namespace that is to be joined.
    let script = "unshare --cgroup \"$0\" agent --check --node n; true";
    let inside = ["unshare", "--pid", "--fork", "--mount-proc", "sh", "-c", script, program];
    let output = cgroup.command(shell.env("KUBECONFIG", "/nowhere"), &inside).output()?;
    let text = String::from_utf8(output.stdout)?;
    let own = format!("our own is {}", cgroup.path().display());
    let line = text.lines().find(|line| line.starts_with("✓ cgroups"));
    assert!(line.is_some_and(|line| line.ends_with(&own)), "no {own:?} in\n{text}");
    Ok(())
}

/// The metrics of one that runs, over HTTP, by a process without any capability.
#[test]
fn metrics_are_served_by_somebody_without_privileges() -> Result<()> {
    if !kernel_tests() {
        return Ok(());
    }
    let world = World::new()?;
    let running = Interceptor::new(&world, &binary(), &[]).start()?;
    let address = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
    let mut server = Command::new("setpriv");
    server.args(with(&[])).arg(binary());
    server.args(["metrics", "--name", running.name(), "--listen", &address.to_string()]);
    let mut server = server.spawn()?;
    let text = get(address, "/metrics");
    let ready = running.verb(&["status", "--ready", "--allow-single-layer"])?;
    running.stop()?;
    let gone = get(address, "/metrics");
    server.kill()?;
    server.wait()?;
    let text = text?;
    assert!(text.starts_with("HTTP/1.1 200 OK\r\n"), "{text}");
    assert!(text.lines().any(|line| line.starts_with("interceptor_uptime_seconds ")), "{text}");
    assert_eq!((ready.code, ready.stdout.as_str()), (0, ""), "{ready:?}");
    let gone = gone?;
    assert!(gone.starts_with("HTTP/1.1 503 "), "{gone}");
    Ok(())
}

fn get(address: SocketAddr, path: &str) -> Result<String> {
    let deadline = Instant::now() + LIMIT;
    let mut stream = loop {
        match TcpStream::connect(address) {
            Ok(stream) => break stream,
            Err(error) if Instant::now() > deadline => return Err(error.into()),
            Err(_) => std::thread::sleep(Duration::from_millis(20)),
        }
    };
    stream.set_read_timeout(Some(LIMIT))?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    Ok(text)
}

/// A kubectl that knows one pod and one agent, and writes down what it was asked.
const KUBECTL: &str = r#"#!/bin/sh
{ for word in "$@"; do printf '[%s]' "$word"; done; echo; } >>"$ASKED"
case "$*" in
    *nodeName=lonely*) ;;
    *'get pods'*) printf 'old-agent new-agent' ;;
    *'.spec.nodeName'*pending* | *pending*'.spec.nodeName'*) ;;
    *'{.spec.nodeName}'*) printf node-7 ;;
    *'{.metadata.namespace}'*) printf shop ;;
    *go-template*) printf 'app=web\nexample.com/tier=front\n' ;;
    *exec*/dev/stdin*) cat; exit 1 ;;
    *exec* | *logs*) echo answered ;;
    *) exit 9 ;;
esac
"#;

/// The plugin with such a kubectl.
struct Plugin {
    directory: tempfile::TempDir,
}

impl Plugin {
    fn new() -> Result<Self> {
        let plugin = Self { directory: tempfile::tempdir()? };
        fs::write(plugin.file("kubectl"), KUBECTL)?;
        fs::set_permissions(plugin.file("kubectl"), fs::Permissions::from_mode(0o755))?;
        Ok(plugin)
    }

    fn file(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// What it ended with, and kubectl's command lines.
    fn run(&self, words: &[&str]) -> Result<(Output, Vec<String>)> {
        let _ = fs::remove_file(self.file("asked"));
        let mut plugin = Command::new(repository().join("deploy/kubectl/kubectl-interceptor"));
        plugin.env("KUBECTL", self.file("kubectl")).env("ASKED", self.file("asked"));
        let output = plugin.env_remove("INTERCEPTOR_NAMESPACE").args(words).output()?;
        let asked = fs::read_to_string(self.file("asked")).unwrap_or_default();
        Ok((output, asked.lines().map(str::to_owned).collect()))
    }
}

#[test]
fn the_plugin_asks_the_agent_of_the_pods_node() -> Result<()> {
    let plugin = Plugin::new()?;
    let exec =
        "[exec][--namespace][interceptor-system][new-agent][--container][agent][--][/interceptor]";

    let (output, asked) = plugin.run(&["status", "-n", "shop", "web-0", "-o", "json"])?;
    assert!(output.status.success() && output.stdout == b"answered\n", "{output:?}");
    assert_eq!(
        asked[0],
        "[get][pod][--namespace][shop][web-0][--output][jsonpath={.spec.nodeName}]"
    );
    assert!(asked[1].contains("[--field-selector][spec.nodeName=node-7,status.phase=Running]"));
    assert_eq!(asked[2], format!("{exec}[status][--name][agent][-o][json]"));

    let (output, asked) = plugin.run(&[
        "explain",
        "--context",
        "c",
        "pod/web-0",
        "https://www.example.com",
        "-o",
        "json",
    ])?;
    assert!(output.status.success(), "{output:?}");
    let last = asked.last().context("kubectl was asked")?;
    let question = "[explain][--filename][/var/lib/interceptor/policy.yaml][--namespace][shop]\
                    [https://www.example.com][-o][json][--labels][app=web][--labels][example.com/tier=front]";
    assert_eq!(*last, format!("[--context][c]{exec}{question}"));

    // The file is read here, and the exit status is the far one's.
    fs::write(plugin.file("cases.yaml"), "cases\n")?;
    let file = plugin.file("cases.yaml");
    let (output, _) = plugin.run(&["test", "web-0", file.to_str().context("UTF-8")?])?;
    assert_eq!((output.status.code(), output.stdout.as_slice()), (Some(1), &b"cases\n"[..]));

    let (output, asked) = plugin.run(&["bypass", "--node", "node-9", "add", "192.0.2.0/24"])?;
    assert!(output.status.success(), "{output:?}");
    assert!(asked[0].contains("spec.nodeName=node-9,"), "{asked:?}");
    assert_eq!(asked[1], format!("{exec}[bypass][--name][agent][add][192.0.2.0/24]"));
    Ok(())
}

#[test]
fn the_plugin_says_what_is_missing() -> Result<()> {
    let plugin = Plugin::new()?;
    for (words, code, says) in [
        (&[][..], 64, ""),
        (&["flows", "web-0"], 64, "there is no flows"),
        (&["status"], 64, "which pod?"),
        (&["status", "--output", "web-0"], 64, "options of interceptor come behind the pod"),
        (&["status", "pending"], 1, "pod pending is on no node yet"),
        (&["status", "--node", "lonely"], 1, "no agent runs on node lonely"),
        (&["explain", "web-0"], 64, "which URL"),
        (&["explain", "--node", "node-9", "a:1"], 64, "explain needs a pod"),
        (&["test", "web-0", "/nowhere"], 65, "/nowhere cannot be read"),
    ] {
        let (output, _) = plugin.run(words)?;
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{words:?}: {output:?}");
        assert!(stderr.contains(says), "{words:?}: {stderr}");
    }
    Ok(())
}
