//! `interceptor gateway`: only its namespace has a way out. Workloads reach what both policies allow
//! through it, and nothing else; a capture outside judges.

use std::fs;
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use interceptor_tests::capture::Capture;
use interceptor_tests::gateway::{FIRST, Gateway, OUTSIDE, Passage, SECOND};
use interceptor_tests::product::{Interceptor, Running, binary};
use interceptor_tests::servers::port;
use interceptor_tests::world::{EXAMPLE_V4, HTTPBIN, WORKLOAD_V4, World, kernel_tests, stop};
use nix::sys::signal::Signal;

const CLIENT: &str = env!("CARGO_BIN_EXE_interceptor-test-client");
const NODE: &str = "node-1.nodes.test";

/// What both ends' lines have to say.
const MESH: &str = "
accessLogFile: /dev/stdout
accessLogFormat: \"%TRACE_ID% %DYNAMIC_METADATA(interceptor:node)% \
%DYNAMIC_METADATA(interceptor:workload)% %DYNAMIC_METADATA(interceptor:egress_proxy)% \
%DYNAMIC_METADATA(interceptor:proxy_target)% %UPSTREAM_HOST% %DOWNSTREAM_REMOTE_ADDRESS% \
%CONNECTION_TERMINATION_DETAILS% %UPSTREAM_TRANSPORT_FAILURE_REASON% %RESPONSE_CODE%\\n\"
";

/// A line of that form.
#[derive(Debug)]
struct Said {
    trace: String,
    node: String,
    workload: String,
    door: String,
    target: String,
    upstream: String,
    from: String,
    why: String,
    failure: String,
    status: String,
}

impl Said {
    fn of(line: &str) -> Result<Self> {
        let words: Vec<String> = line.split(' ').map(str::to_owned).collect();
        let all: [String; 10] = words.try_into().map_err(|_| anyhow::anyhow!("{line}"))?;
        let [trace, node, workload, door, target, upstream, from, why, failure, status] = all;
        Ok(Self { trace, node, workload, door, target, upstream, from, why, failure, status })
    }

    fn all(lines: &[String]) -> Result<Vec<Self>> {
        lines.iter().map(|line| Self::of(line)).collect()
    }
}

fn entry(name: &str, port: u16, protocol: &str) -> String {
    format!(
        "---\napiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {{name: \
         {}-{port}}}\nspec: {{hosts: [{name}], ports: [{{number: {port}, name: p, protocol: \
         {protocol}}}], resolution: DNS}}\n",
        name.replace('.', "-")
    )
}

/// What a gateway allows.
fn allowed() -> String {
    [("TLS", 443), ("HTTP", 80), ("TCP", port::ECHO), ("TCP", port::SOURCE), ("TCP", port::BANNER)]
        .map(|(protocol, port)| entry("v4.example.com", port, protocol))
        .concat()
}

/// A node's `egressProxy` with gateways, known by the certificate of `node`.
fn doors(world: &World, passage: &Passage<'_>, node: &str, gateways: &[&str]) -> Result<String> {
    let (certificate, key) = passage.node_keys(node)?;
    let ca = world.ca_file();
    let proxies: Vec<_> = gateways
        .iter()
        .map(|name| {
            format!(
                "{{name: {name}, url: 'hbone://{name}.test:{}', tls: {{caCertificates: '{}', \
                 clientCertificate: '{certificate}', privateKey: '{key}'}}}}",
                FIRST.port(),
                ca.display()
            )
        })
        .collect();
    Ok(format!(
        "---\napiVersion: egress.interceptor.io/v1alpha1\nkind: InterceptorConfig\nmetadata: {{name: \
         default}}\nspec: {{egressProxy: {{proxies: [{}]}}}}\n",
        proxies.join(", ")
    ))
}

/// A world with a passage, where the node allows one host more than the gateways.
struct Scene<'w> {
    world: &'w World,
    passage: Passage<'w>,
    mesh: String,
    policy: String,
    nodes: String,
}

impl<'w> Scene<'w> {
    fn set(world: &'w World) -> Result<Self> {
        let passage = Passage::between(world)?;
        let nodes = format!(
            "nodes:\n- identity: {NODE}\n  workloads: [{{namespace: default}}]\n\
             - identity: node-2.nodes.test\n  workloads: [{{namespace: bank}}]\n"
        );
        Ok(Self {
            mesh: world.file("mesh.yaml", MESH)?,
            policy: world.file("gateway.yaml", &allowed())?,
            nodes: world.file("nodes.yaml", &nodes)?,
            passage,
            world,
        })
    }

    fn gateway(&self, name: &str, at: SocketAddr) -> Result<Gateway> {
        let policy = ["--outbound", "registry-only", "-f", &self.policy, "--nodes", &self.nodes];
        let flags = [&policy[..], &["--mesh-config", &self.mesh]].concat();
        self.passage.start(&format!("{name}.test"), at, &flags)
    }

    fn node_policy(&self, node: &str, gateways: &[&str]) -> Result<String> {
        let doors = doors(self.world, &self.passage, node, gateways)?;
        let more = [entry("httpbin.org", 80, "HTTP"), entry("httpbin.org", 443, "TLS")].concat();
        self.world.file(&format!("{node}.yaml"), &(allowed() + &more + &doors))
    }

    fn node(&self, node: &str, gateways: &[&str]) -> Result<Running<'w>> {
        let policy = self.node_policy(node, gateways)?;
        let flags = ["--outbound", "registry-only", "-f", &policy, "--mesh-config", &self.mesh];
        Interceptor::new(self.world, &binary(), &flags).start()
    }
}

const CURL: [&str; 5] = ["curl", "-sS", "-o/dev/null", "-w%{http_code}", "https://v4.example.com/"];

/// SEED-17: the workload reaches what both allow, and nothing else; each connection has a line on both
/// sides, with one trace.
#[test]
fn only_the_gateway_leads_out() -> Result<()> {
    if !kernel_tests() {
        return Ok(());
    }
    let world = World::new()?;
    let scene = Scene::set(&world)?;
    let gateway = scene.gateway("gw-1", FIRST)?;
    let running = scene.node(NODE, &["gw-1"])?;
    let outside = Capture::keeping(&world.internet, |packet| {
        let (from, to) = packet.ends();
        [from.ip(), to.ip()].iter().any(|ip| [WORKLOAD_V4, EXAMPLE_V4, HTTPBIN].contains(ip))
    })?;
    let sent = |from, to| {
        let packets = outside.packets();
        packets.iter().filter(|packet| (packet.source, packet.destination) == (from, to)).count()
    };
    let banner = format!("v4.example.com:{}", port::BANNER);
    let banner = format!("telnet://{banner}");
    for (what, command, expected) in [
        ("tls", CURL.to_vec(), "200"),
        ("http", vec!["curl", "-sS", "-w%{http_code}", "http://v4.example.com/"], "200"),
        (
            "h2c",
            vec![
                "curl",
                "-sS",
                "--http2-prior-knowledge",
                "-w%{http_code}",
                "http://v4.example.com/",
            ],
            "200",
        ),
        ("server first", vec!["timeout", "2", "curl", "-sS", "-m1", &banner], "220 stub ready"),
    ] {
        let before = gateway.lines().len();
        let done = running.exec(&command, 1)?;
        assert!(done.finished.stdout.contains(expected), "{what}: {done:?}");
        let theirs = gateway.wait_for_lines(before, 1);
        let (ours, theirs) = (Said::all(&done.log)?, Said::all(&theirs)?);
        let ([ours], [theirs]) = (&ours[..], &theirs[..]) else {
            panic!("{what}: one line each: {ours:?} {theirs:?}")
        };
        assert_eq!(ours.trace, theirs.trace, "{what}");
        assert_eq!(ours.trace.len(), 32, "{what}: {ours:?}");
        assert_eq!((ours.door.as_str(), ours.upstream.as_str()), ("gw-1", &*FIRST.to_string()));
        assert!(ours.target.starts_with("v4.example.com:"), "{what}: {ours:?}");
        assert_eq!(theirs.node, NODE, "{what}");
        assert!(theirs.workload.starts_with("default/ix-"), "{what}: {theirs:?}");
        assert_eq!(theirs.from, ours.from, "{what}: the workload's own end");
        assert!(theirs.upstream.starts_with(&EXAMPLE_V4.to_string()), "{what}: {theirs:?}");
    }
    assert_eq!(scene.passage.connections(FIRST)?, 1, "one connection for all");

    // Forbidden at the node: the gateway hears nothing of it.
    let before = gateway.lines().len();
    let refused = running.exec(&["curl", "-sS", "https://edition.cnn.com/"], 1)?;
    assert_ne!(refused.finished.code, 0);
    assert_eq!(Said::of(&refused.log[0])?.why, "not_registered");
    // Allowed at the node, forbidden at the gateway.
    let told = "egress_proxy{gw-1|the_gateway_refused_(not_registered)}";
    for (url, why, failure) in
        [("https://httpbin.org/", "not_registered", told), ("http://httpbin.org/", "-", "-")]
    {
        let before = gateway.lines().len();
        let refused = running.exec(&["curl", "-sSf", "-m10", url], 1)?;
        assert_ne!(refused.finished.code, 0, "{url}");
        let (ours, theirs) = (Said::of(&refused.log[0])?, gateway.wait_for_lines(before, 1));
        let theirs = Said::of(theirs.first().context("a line")?)?;
        assert_eq!((ours.trace, theirs.why.as_str()), (theirs.trace, why), "{url}");
        assert_eq!(ours.failure, failure, "{url}");
        assert!(theirs.status == "0" || theirs.status == "502", "{url}: {}", theirs.status);
    }
    assert_eq!(gateway.lines().len(), before + 2, "nothing of what the node refused");

    // No other way leads out: not for who is not covered at all, not to the gateway's own port.
    for url in ["http://203.0.113.40/", "http://203.0.113.10/"] {
        assert_ne!(world.curl(&["-sS", "-m2", url])?.code, 0, "{url}");
    }
    let bare = format!("https://{FIRST}/");
    assert_ne!(world.curl(&["-skS", "-m2", &bare])?.code, 0, "without a certificate");
    assert_eq!(sent(WORKLOAD_V4, EXAMPLE_V4) + sent(WORKLOAD_V4, HTTPBIN), 0);
    assert_eq!(sent(OUTSIDE, HTTPBIN), 0, "what the gateway refuses does not leave it");
    assert!(sent(OUTSIDE, EXAMPLE_V4) > 0, "the control is seen");
    assert_eq!(outside.lost()?, 0);

    // What people see.
    let status = running.status()?;
    let shown = status["egress_proxies"][0]["proxy"].as_str().context("a proxy")?;
    assert_eq!(shown, format!("gw-1 (hbone://gw-1.test:{})", FIRST.port()));
    let policy = scene.node_policy(NODE, &["gw-1"])?;
    let mut explain = world.command(binary());
    explain.args(["explain", "--outbound", "registry-only", "-f", &policy]);
    let explained =
        world.output(explain.arg("https://v4.example.com/"), Duration::from_secs(20))?.stdout;
    assert!(explained.contains("gw-1 (hbone://gw-1.test:15008)"), "{explained}");
    Ok(())
}

/// Opens many at once, and keeps all; one does not read what it asked for. Then all others talk.
const MANY: &str = "
import asyncio, sys
host, echo, source, count = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
async def one(n):
    r, w = await asyncio.wait_for(asyncio.open_connection(host, echo), 60)
    w.write(b'%08d' % n)
    assert await asyncio.wait_for(r.readexactly(8), 60) == b'%08d' % n
    return r, w
async def talk(n, r, w):
    for turn in range(3):
        w.write(b'%08d' % (n + turn))
        assert await asyncio.wait_for(r.readexactly(8), 60) == b'%08d' % (n + turn)
async def main():
    gate = asyncio.Semaphore(200)
    async def limited(n):
        async with gate:
            return await one(n)
    all = await asyncio.gather(*(limited(n) for n in range(count)))
    r, stalled = await asyncio.open_connection(host, source, limit=1024)
    stalled.write(b'200000000\\n')
    await asyncio.sleep(2)
    print('open', flush=True)
    await asyncio.gather(*(talk(n, *both) for n, both in enumerate(all)))
    print('talked', flush=True)
    sys.stdin.readline()
asyncio.run(main())
print('done', flush=True)
";

/// A thousand streams of one connection, and one of them stalls.
#[test]
fn a_thousand_streams_on_one_connection() -> Result<()> {
    if !kernel_tests() {
        return Ok(());
    }
    let world = World::new()?;
    let scene = Scene::set(&world)?;
    let mut gateway = scene.gateway("gw-1", FIRST)?;
    let running = scene.node(NODE, &["gw-1"])?;
    let (host, count) = (EXAMPLE_V4.to_string(), "1000");
    let (echo, source) = (port::ECHO.to_string(), port::SOURCE.to_string());
    let mut talk = Talk::start(
        &world,
        running.exec_command(&["python3", "-c", MANY, &host, &echo, &source, count]),
    )?;
    talk.until("talked", 120).with_context(|| gateway.stderr().unwrap_or_default())?;
    assert_eq!(scene.passage.connections(FIRST)?, 1);
    let served = running.status()?["egress_proxies"][0]["served"].as_u64();
    assert!(served >= Some(1001), "{served:?}");
    talk.say("\n")?;
    talk.until("done", 30)
}

/// A program in the workload that talks.
struct Talk<'w> {
    child: Child,
    out: std::path::PathBuf,
    _world: &'w World,
}

impl<'w> Talk<'w> {
    fn start(world: &'w World, mut command: Command) -> Result<Self> {
        let out = world.dir().join(format!("talk-{}", world.dir().read_dir()?.count()));
        command.stdin(Stdio::piped()).stdout(fs::File::create(&out)?);
        Ok(Self { child: world.spawn(&mut command)?, out, _world: world })
    }

    fn until(&mut self, word: &str, seconds: u64) -> Result<()> {
        for _ in 0..seconds * 20 {
            if fs::read_to_string(&self.out)?.lines().any(|line| line == word) {
                return Ok(());
            }
            if let Some(status) = self.child.try_wait()? {
                let said = fs::read_to_string(&self.out)?;
                ensure!(said.lines().any(|line| line == word), "ended ({status}): {said}");
            }
            thread::sleep(Duration::from_millis(50));
        }
        anyhow::bail!("not {word} after {seconds} s: {}", fs::read_to_string(&self.out)?)
    }

    fn say(&mut self, text: &str) -> Result<()> {
        use std::io::Write as _;
        let stdin = self.child.stdin.as_mut().context("a pipe")?;
        Ok(stdin.write_all(text.as_bytes())?)
    }
}

impl Drop for Talk<'_> {
    fn drop(&mut self) {
        let _ = stop(&mut self.child);
    }
}

/// Every byte of a gibibyte.
#[test]
fn a_gibibyte_through_the_gateway() -> Result<()> {
    if !kernel_tests() {
        return Ok(());
    }
    let world = World::new()?;
    let scene = Scene::set(&world)?;
    let _gateway = scene.gateway("gw-1", FIRST)?;
    let running = scene.node(NODE, &["gw-1"])?;
    let (size, web) = ((1_u64 << 30).to_string(), SocketAddr::new(EXAMPLE_V4, 80).to_string());
    let mut command = running.exec_command(&[CLIENT, "download", &web, "v4.example.com", &size]);
    let done = world.output(&mut command, Duration::from_secs(240))?;
    assert_eq!(done.stdout, format!("{size} intact\n"), "{}", done.stderr);
    Ok(())
}

/// Whoever has a node's key speaks for that node's workloads, and for nobody else's; whoever has none
/// for nobody.
#[test]
fn a_stolen_certificate_speaks_for_its_own_node_only() -> Result<()> {
    if !kernel_tests() {
        return Ok(());
    }
    let world = World::new()?;
    let scene = Scene::set(&world)?;
    let gateway = scene.gateway("gw-1", FIRST)?;
    let outside = Capture::keeping(&world.internet, |packet| packet.destination == EXAMPLE_V4)?;
    {
        let thief = scene.node("node-2.nodes.test", &["gw-1"])?;
        let refused = thief.exec(&CURL, 1)?;
        assert_ne!(refused.finished.code, 0);
        let (ours, theirs) =
            (Said::of(&refused.log[0])?, Said::of(&gateway.wait_for_lines(0, 1)[0])?);
        assert_eq!(ours.failure, "egress_proxy{gw-1|the_gateway_answered_403_(foreign_workload)}");
        assert_eq!(
            (theirs.why.as_str(), theirs.node.as_str()),
            ("foreign_workload", "node-2.nodes.test")
        );
    }
    {
        let stranger = scene.node("node-3.nodes.test", &["gw-1"])?;
        let refused = stranger.exec(&CURL, 1)?;
        assert_ne!(refused.finished.code, 0);
        let ours = Said::of(&refused.log[0])?;
        assert!(ours.failure.contains("foreign_workload"), "{ours:?}");
    }
    assert_eq!(outside.packets().len(), 0);
    // The control: the node whose workload it is. And its workload is taken from it while it runs.
    let running = scene.node(NODE, &["gw-1"])?;
    assert_eq!(running.exec(&CURL, 1)?.finished.stdout, "200");
    assert!(!outside.packets().is_empty());
    let moved = "nodes: [{identity: node-2.nodes.test, workloads: [{namespace: default}]}]\n";
    fs::write(&scene.nodes, moved)?;
    for _ in 0..40 {
        let refused = running.exec(&CURL, 1)?;
        if Said::of(&refused.log[0])?.failure.contains("foreign_workload") {
            return Ok(());
        }
        thread::sleep(Duration::from_millis(100));
    }
    anyhow::bail!("the gateway's table is not followed")
}

/// Keeps one connection to the echo service, and says when a word came back.
const KEEP: &str = "
import socket, sys
s = socket.create_connection((sys.argv[1], int(sys.argv[2])))
for line in sys.stdin:
    s.sendall(line.encode())
    got = b''
    while len(got) < len(line):
        more = s.recv(100)
        assert more, 'ended'
        got += more
    print(got.decode().strip(), flush=True)
";

fn keep<'w>(world: &'w World, running: &Running<'_>) -> Result<Talk<'w>> {
    let (host, echo) = (EXAMPLE_V4.to_string(), port::ECHO.to_string());
    let mut talk =
        Talk::start(world, running.exec_command(&["python3", "-c", KEEP, &host, &echo]))?;
    talk.say("first\n")?;
    talk.until("first", 20)?;
    Ok(talk)
}

/// Certificates of both ends change: what is open goes on, what is new has the new ones.
#[test]
fn certificates_change_without_a_dropped_stream() -> Result<()> {
    if !kernel_tests() {
        return Ok(());
    }
    let world = World::new()?;
    let scene = Scene::set(&world)?;
    let _gateway = scene.gateway("gw-1", FIRST)?;
    let running = scene.node(NODE, &["gw-1"])?;
    let mut kept = keep(&world, &running)?;
    assert_eq!(scene.passage.connections(FIRST)?, 1);
    scene.passage.node_keys(NODE)?;
    scene.passage.server_keys("gw-1.test")?;
    assert_eq!(running.exec(&CURL, 1)?.finished.stdout, "200");
    assert_eq!(scene.passage.connections(FIRST)?, 2, "a new one beside the old one");
    kept.say("second\n")?;
    kept.until("second", 20)?;
    drop(kept);
    for _ in 0..100 {
        if scene.passage.connections(FIRST)? == 1 {
            assert_eq!(running.exec(&CURL, 1)?.finished.stdout, "200");
            return Ok(());
        }
        thread::sleep(Duration::from_millis(50));
    }
    anyhow::bail!("the old connection does not end with its last stream")
}

/// Two gateways share the load; one dies, and no new connection is lost. Then the other drains: what
/// is open goes on, new ones go to the first, which is back.
#[test]
fn gateways_share_fail_over_and_drain() -> Result<()> {
    if !kernel_tests() {
        return Ok(());
    }
    let world = World::new()?;
    let scene = Scene::set(&world)?;
    let mut first = scene.gateway("gw-1", FIRST)?;
    let mut second = scene.gateway("gw-2", SECOND)?;
    let running = scene.node(NODE, &["gw-1", "gw-2"])?;
    let answered = |count: usize| -> Result<()> {
        for n in 0..count {
            let done = running.exec(&CURL, 1)?;
            assert_eq!(done.finished.stdout, "200", "{n}: {done:?}");
        }
        Ok(())
    };
    answered(16)?;
    let shares = [first.lines().len(), second.lines().len()];
    assert!(shares[0] > 0 && shares[1] > 0 && shares[0] + shares[1] == 16, "{shares:?}");

    first.signal(Signal::SIGKILL)?;
    first.ended(Duration::from_secs(5))?.context("killed")?;
    answered(8)?;

    // At the second, since there is no other.
    let mut kept = keep(&world, &running)?;
    let first = scene.gateway("gw-1", FIRST)?;
    for _ in 0..50 {
        if scene.passage.connections(FIRST)? > 0 {
            break;
        }
        answered(1)?;
    }
    second.signal(Signal::SIGTERM)?;
    thread::sleep(Duration::from_millis(300));
    let before = first.lines().len();
    answered(8)?;
    assert!(first.lines().len() >= before + 8, "all went to the first");
    kept.say("second\n")?;
    kept.until("second", 20)?;
    assert_eq!(second.ended(Duration::from_millis(200))?, None, "a stream is open");
    drop(kept);
    let status = second.ended(Duration::from_secs(10))?;
    assert_eq!(status, Some(0), "{}", second.stderr()?);
    Ok(())
}
