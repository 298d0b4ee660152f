//! Egress proxies (`egressProxy`): real clients without any proxy setting leave through other people's
//! proxies, and no other way. A capture at the far side of the workload's link judges (T-47).

use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use interceptor_tests::capture::Capture;
use interceptor_tests::log::Line;
use interceptor_tests::product::{Interceptor, binary};
use interceptor_tests::proxies::{PASSWORD, Proxy, USER};
use interceptor_tests::servers::port;
use interceptor_tests::world::{CNN, EXAMPLE_V4, WORKLOAD_V4, World, kernel_tests, stop};

const FIRST: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(192, 0, 2, 201)), 3128);
const SECOND: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(192, 0, 2, 202)), 3128);
const GIT: IpAddr = IpAddr::V4(Ipv4Addr::new(203, 0, 113, 60));

/// `egressProxy` with these fields, and entries for `v4.example.com` and `git.example.com`.
fn policy(world: &World, spec: &str) -> Result<String> {
    let entry = |name: &str, port: u16, protocol: &str| {
        format!(
            "---\napiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {{name: \
             {name}-{port}}}\nspec: {{hosts: [{name}.example.com], ports: [{{number: {port}, name: p, \
             protocol: {protocol}}}], resolution: DNS}}\n"
        )
    };
    let config = format!(
        "---\napiVersion: egress.interceptor.io/v1alpha1\nkind: InterceptorConfig\nmetadata: {{name: \
         default}}\nspec:\n  egressProxy: {spec}\n"
    );
    let entries = [
        entry("v4", 443, "TLS"),
        entry("v4", 80, "HTTP"),
        entry("v4", port::ECHO, "TCP"),
        entry("git", 8443, "TLS"),
    ];
    world.file("policy.yaml", &(entries.concat() + &config))
}

/// Captures what goes round the proxies: packets from the workload to the servers themselves.
fn watch(world: &World) -> Result<Capture> {
    Capture::keeping(&world.internet, |packet| {
        let (from, to) = packet.ends();
        from.ip() == WORKLOAD_V4 && [EXAMPLE_V4, GIT, CNN].contains(&to.ip())
    })
}

/// How many of them went to an address.
fn direct(capture: &Capture, to: IpAddr) -> usize {
    capture.packets().iter().filter(|packet| packet.ends().1.ip() == to).count()
}

/// That nothing went round the proxy, and that the capture would have seen it.
fn nothing_went_direct(world: &World, capture: &Capture) -> Result<()> {
    for to in [EXAMPLE_V4, GIT, CNN] {
        assert_eq!(direct(capture, to), 0, "to {to}");
    }
    assert_eq!(capture.lost()?, 0, "packets were missed");
    assert_eq!(world.curl(&["-sS", "-o/dev/null", "https://v4.example.com/"])?.code, 0);
    assert!(direct(capture, EXAMPLE_V4) > 0, "the control is seen");
    Ok(())
}

/// A server for git: a bare repository over HTTPS, as files.
struct GitServer(Child);

impl GitServer {
    fn start(world: &World) -> Result<(Self, String)> {
        let at = world.dir().join("git");
        fs::create_dir(&at)?;
        let run = |program: &str, arguments: &[&str]| -> Result<()> {
            let done = Command::new(program)
                .args(arguments)
                .current_dir(&at)
                .envs([("GIT_CONFIG_GLOBAL", "/dev/null"), ("GIT_AUTHOR_NAME", "a")])
                .envs([("GIT_AUTHOR_EMAIL", "a@a"), ("GIT_COMMITTER_NAME", "a")])
                .env("GIT_COMMITTER_EMAIL", "a@a")
                .output()?;
            ensure!(done.status.success(), "{program} {arguments:?}: {done:?}");
            Ok(())
        };
        run("git", &["init", "-q", "-b", "main", "work"])?;
        run("git", &["-C", "work", "commit", "-q", "--allow-empty", "-m", "first"])?;
        run("git", &["clone", "-q", "--bare", "work", "r.git"])?;
        run("git", &["-C", "r.git", "update-server-info"])?;
        let names =
            ["-subj", "/CN=git.example.com", "-addext", "subjectAltName=DNS:git.example.com"];
        let rest = ["-nodes", "-days", "2", "-keyout", "key.pem", "-out", "cert.pem"];
        run("openssl", &[&["req", "-x509", "-newkey", "rsa:2048"][..], &names, &rest].concat())?;
        let serve = format!(
            "import http.server, ssl\n\
             s = http.server.ThreadingHTTPServer(('{GIT}', 8443), \
             http.server.SimpleHTTPRequestHandler)\n\
             c = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)\nc.load_cert_chain('cert.pem', 'key.pem')\n\
             s.socket = c.wrap_socket(s.socket, server_side=True)\ns.serve_forever()\n"
        );
        let mut command = Command::new("python3");
        command.args(["-c", &serve]).current_dir(&at).stdout(Stdio::null()).stderr(Stdio::null());
        let child = world.internet.inside(|| command.spawn())??;
        let server = Self(child);
        let up = || world.internet.inside(|| std::net::TcpStream::connect((GIT, 8443)).is_ok());
        for _ in 0..200 {
            if up()? {
                world.zone.set("git.example.com", &[GIT]);
                return Ok((server, at.join("cert.pem").to_string_lossy().into_owned()));
            }
            thread::sleep(Duration::from_millis(50));
        }
        anyhow::bail!("the server for git did not start")
    }
}

impl Drop for GitServer {
    fn drop(&mut self) {
        let _ = stop(&mut self.0);
    }
}

const URLLIB: &str = "import sys, urllib.request as u; print(u.urlopen(sys.argv[1]).status)";

/// curl, git, a client as pip is one and one of HTTP/2 reach what is allowed through Squid with basic
/// authentication, and know nothing of it. What is not allowed does not, and Squid hears of judged names
/// only.
#[test]
fn real_clients_leave_through_squid() -> Result<()> {
    if !kernel_tests() {
        return Ok(());
    }
    let world = World::new()?;
    let squid = Proxy::squid(&world, FIRST)?;
    let (_git, certificate) = GitServer::start(&world)?;
    world.zone.set("proxy.corp", &[FIRST.ip()]);
    let credentials = world.file("credentials", &format!("{USER}:{PASSWORD}\n"))?;
    let spec = format!(
        "{{proxies: [{{name: corp, url: 'http://proxy.corp:3128', credentialsFile: '{credentials}'}}]}}"
    );
    let policy = policy(&world, &spec)?;
    let flags = ["--outbound", "registry-only", "-f", &policy];
    let mut running = Interceptor::new(&world, &binary(), &flags).start()?;
    let capture = watch(&world)?;
    let cainfo = format!("GIT_SSL_CAINFO={certificate}");
    let clients: [(&str, &[&str], &str); 6] = [
        (
            "curl",
            &["curl", "-sS", "-w%{http_code}", "-o/dev/null", "https://v4.example.com/"],
            "200",
        ),
        (
            "plain",
            &["curl", "-sS", "-w%{http_code}", "-o/dev/null", "http://v4.example.com/"],
            "200",
        ),
        (
            "git",
            &["env", &cainfo, "git", "ls-remote", "https://git.example.com:8443/r.git"],
            "refs/heads/main",
        ),
        ("urllib", &["python3", "-c", URLLIB, "https://v4.example.com/"], "200"),
        (
            "h2",
            &[
                "curl",
                "-sS",
                "--http2",
                "-w%{http_version}",
                "-o/dev/null",
                "https://v4.example.com/",
            ],
            "2",
        ),
        (
            "h2c",
            &[
                "curl",
                "-sS",
                "--http2-prior-knowledge",
                "-w%{http_code}",
                "-o/dev/null",
                "http://v4.example.com/",
            ],
            "200",
        ),
    ];
    let mut log = Vec::new();
    for (what, command, expected) in clients {
        let done = running.exec(command, 1)?;
        assert_eq!(done.finished.code, 0, "{what}: {:?} {}", done.finished, squid.log());
        assert!(done.finished.stdout.contains(expected), "{what}: {:?}", done.finished);
        let line = Line::parse(&done.log[0]).map_err(anyhow::Error::msg)?;
        assert_eq!(line.field("UPSTREAM_HOST"), FIRST.to_string(), "{what}");
        let cluster = line.field("UPSTREAM_CLUSTER_RAW");
        assert!(cluster.starts_with("outbound|") && cluster.ends_with(".example.com"), "{cluster}");
        log.extend(done.log);
    }
    for url in ["https://edition.cnn.com/", "http://edition.cnn.com/"] {
        let refused = running.exec(&["curl", "-sSf", "-o/dev/null", url], 1)?;
        assert_ne!(refused.finished.code, 0, "{url}");
        assert!(refused.log[0].contains("not_registered") || refused.log[0].contains("block_all"));
    }
    // The first is of whoever looked whether it had started, and said nothing.
    let said = |line: &&str| !line.contains("error:transaction-end-before-headers");
    let heard = squid.log().lines().filter(said).collect::<Vec<_>>().join("\n");
    let judged = [
        "v4.example.com:443",
        "git.example.com:8443",
        "http://v4.example.com/",
        "v4.example.com:80",
    ];
    for line in heard.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        assert!(judged.contains(&words[6]) && words[7] == USER, "{line}");
    }
    assert!(heard.lines().count() >= 6, "{heard}");
    // What status and explain say; and no word of the credentials anywhere.
    let status = running.status()?;
    assert!(status["egress_proxies"][0]["served"].as_u64().context("served")? >= 6, "{status}");
    assert!(status["why_proxy"]["egress_proxy"].as_u64() > Some(0), "{status}");
    let mut explain = world.command(binary());
    explain.args(["explain", "--outbound", "registry-only", "-f", &policy]);
    let explained =
        world.output(explain.arg("https://v4.example.com/"), Duration::from_secs(20))?.stdout;
    assert!(explained.contains("corp (http://proxy.corp:3128)"), "{explained}");
    assert!(explained.contains("v4.example.com:443"), "{explained}");
    let metrics = running.verb(&["status"])?.stdout;
    let said = format!("{log:?} {status} {explained} {metrics} {}", running.stderr()?);
    for secret in [PASSWORD, "d29ya2xvYWQ6czNjcmV0LXdvcmQ="] {
        assert!(!said.contains(secret), "{said}");
    }
    nothing_went_direct(&world, &capture)?;
    // Other credentials: refused, with the proxy's reason, and nothing else.
    fs::write(&credentials, "workload:wrong\n")?;
    let refused = running.exec(&["curl", "-sS", "https://v4.example.com/"], 1)?;
    assert_ne!(refused.finished.code, 0);
    assert!(
        refused.log[0].contains("egress_proxy{corp|the_proxy_answered_407}"),
        "{:?}",
        refused.log
    );
    let refused = running.exec(&["curl", "-sS", "http://v4.example.com/"], 1)?;
    assert!(refused.finished.stdout.contains("answered_407"), "{:?}", refused.finished);
    Ok(())
}

/// A network that lets nobody out but its proxy: the workload has a route to it, and no default route.
/// Without a proxy for it, a connect is told so, as without us; also when the proxy goes while it runs.
#[test]
fn a_workload_without_a_default_route_leaves_through_its_proxy() -> Result<()> {
    if !kernel_tests() {
        return Ok(());
    }
    let world = World::new()?;
    let proxy = Proxy::tinyproxy(&world, FIRST)?;
    let path = policy(&world, &format!("{{proxies: [{{name: corp, url: 'http://{FIRST}'}}]}}"))?;
    world.workload.ip(&["route", "add", &FIRST.ip().to_string(), "via", "10.77.0.1"])?;
    for family in ["-4", "-6"] {
        world.workload.ip(&[family, "route", "del", "default"])?;
    }
    let curl = [
        "curl",
        "-sS",
        "-w%{http_code} %{local_ip}",
        "-o/dev/null",
        "--resolve",
        "v4.example.com:443:203.0.113.40",
        "https://v4.example.com/",
    ];
    let dial = ["python3", "-c", "import socket; socket.create_connection(('203.0.113.40', 443))"];
    let unreachable = "[Errno 101] Network is unreachable";
    let mut plain = world.command(dial[0]);
    let without = world.output(plain.args(&dial[1..]), Duration::from_secs(10))?;
    assert!(without.stderr.contains(unreachable), "without interceptor: {without:?}");
    let flags = ["--outbound", "registry-only", "-f", &path];
    let mut running = Interceptor::new(&world, &binary(), &flags).start()?;
    let capture = watch(&world)?;
    let done = running.exec(&curl, 1)?;
    let expected = format!("200 {WORKLOAD_V4}");
    assert_eq!(done.finished.stdout, expected, "{:?} {}", done.finished, proxy.log());
    let line = Line::parse(&done.log[0]).map_err(anyhow::Error::msg)?;
    assert_eq!(line.field("UPSTREAM_HOST"), FIRST.to_string());
    let entries = fs::read_to_string(&path)?;
    let entries = entries.split("---\napiVersion: egress.interceptor.io").next();
    fs::write(&path, entries.context("entries")?)?;
    let deadline = Instant::now() + Duration::from_secs(5);
    while !running.exec(&dial, 0)?.finished.stderr.contains(unreachable) {
        ensure!(Instant::now() < deadline, "{}", running.stderr()?);
        thread::sleep(Duration::from_millis(50));
    }
    assert_eq!(direct(&capture, EXAMPLE_V4), 0);
    Ok(())
}

/// T-47: a proxy that is down is a refusal; the only way out is none.
#[test]
fn t_47_a_dead_proxy_is_a_refusal() -> Result<()> {
    if !kernel_tests() {
        return Ok(());
    }
    let world = World::new()?;
    let mut proxy = Proxy::tinyproxy(&world, FIRST)?;
    let policy = policy(&world, &format!("{{proxies: [{{name: corp, url: 'http://{FIRST}'}}]}}"))?;
    let flags = ["--outbound", "registry-only", "-f", &policy];
    let running = Interceptor::new(&world, &binary(), &flags).start()?;
    let capture = watch(&world)?;
    let curl = ["curl", "-sS", "-o/dev/null", "https://v4.example.com/"];
    assert_eq!(running.exec(&curl, 1)?.finished.code, 0, "{}", proxy.log());
    proxy.crash()?;
    let refused = running.exec(&curl, 1)?;
    assert_ne!(refused.finished.code, 0);
    assert!(
        refused.log[0].contains("egress_proxy{corp|delayed_connect_error:_111}"),
        "{:?}",
        refused.log
    );
    let plain = running.exec(&["curl", "-sS", "http://v4.example.com/"], 1)?;
    assert!(plain.finished.stdout.contains("egress_proxy{corp|"), "{:?}", plain.finished);
    nothing_went_direct(&world, &capture)
}

/// Connections at a rate, each with the time it began, how long it took, and whether it was answered.
const LOAD: &str = "
import asyncio, json, sys, time
host, port, rate, seconds = sys.argv[1], *map(int, sys.argv[2:])
done = []
async def one():
    wall, start, ok = time.time(), time.monotonic(), False
    try:
        r, w = await asyncio.wait_for(asyncio.open_connection(host, port), 10)
        w.write(b'12345678')
        ok = (await asyncio.wait_for(r.readexactly(8), 10)) == b'12345678'
        w.close()
    except Exception:
        pass
    done.append((wall, time.monotonic() - start, ok))
async def main():
    tasks, start = [], time.monotonic()
    for n in range(int(rate * seconds)):
        await asyncio.sleep(max(0, start + n / rate - time.monotonic()))
        tasks.append(asyncio.create_task(one()))
    await asyncio.gather(*tasks)
asyncio.run(main())
print(json.dumps(done))
";

/// Connections a second under which the first proxy is killed; `INTERCEPTOR_RATE` says otherwise: a release
/// build, with the machine to itself, does 500.
const RATE: u32 = 100;

/// Kill the first of two proxies under load: new connections leave through the second, none waits more
/// than a second longer than before, and none goes direct.
#[test]
fn the_second_proxy_takes_over_under_load() -> Result<()> {
    if !kernel_tests() {
        return Ok(());
    }
    let world = World::new()?;
    let mut first = Proxy::tinyproxy(&world, FIRST)?;
    let second = Proxy::tinyproxy(&world, SECOND)?;
    let spec = format!(
        "{{proxies: [{{name: one, url: 'http://{FIRST}'}}, {{name: two, url: 'http://{SECOND}'}}]}}"
    );
    let policy = policy(&world, &spec)?;
    let flags = ["--outbound", "registry-only", "-f", &policy];
    let running = Interceptor::new(&world, &binary(), &flags).start()?;
    let capture = watch(&world)?;
    let (address, echo) = (EXAMPLE_V4.to_string(), port::ECHO.to_string());
    let rate = std::env::var("INTERCEPTOR_RATE").ok().and_then(|rate| rate.parse().ok());
    let rate: u32 = rate.unwrap_or(RATE);
    let text = rate.to_string();
    let command = running.exec_command(&["python3", "-c", LOAD, &address, &echo, &text, "6"]);
    let load = thread::scope(|scope| -> Result<_> {
        let load = scope.spawn(|| {
            let mut command = command;
            world.output(&mut command, Duration::from_secs(60))
        });
        thread::sleep(Duration::from_secs(3));
        #[expect(clippy::disallowed_methods, reason = "the load says when by the wall clock")]
        let killed = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs_f64();
        first.crash()?;
        let finished = load.join().expect("no panic")?;
        ensure!(finished.code == 0, "{finished:?}");
        Ok((killed, serde_json::from_str::<Vec<(f64, f64, bool)>>(&finished.stdout)?))
    });
    let (killed, connections) = load?;
    let (after, before): (Vec<_>, Vec<_>) =
        connections.iter().partition(|(began, ..)| *began > killed);
    let slowest_of =
        |some: &[&(f64, f64, bool)]| some.iter().map(|(_, took, _)| *took).fold(0.0, f64::max);
    let (usual, slowest, before) = (slowest_of(&before), slowest_of(&after), before.len());
    let answered = after.iter().filter(|(.., ok)| *ok).count();
    let went = running.status()?["egress_proxies"].clone();
    eprintln!(
        "{before} before (slowest {usual:.3} s), {} after the kill (slowest {slowest:.3} s); {went}",
        after.len()
    );
    let enough = usize::try_from(rate)?;
    assert!(before > enough && after.len() > enough, "{before} {}", after.len());
    assert_eq!(answered, after.len(), "{went} {}", second.log());
    assert!(slowest < usual + 1.0, "the slowest took {slowest} s after the kill, {usual} before");
    assert!(went[1]["served"].as_u64() >= Some(after.len() as u64), "{went}");
    nothing_went_direct(&world, &capture)
}

/// A proxy that hangs is not waited for, and by rule something else leaves by another door.
#[test]
fn socks_rules_and_a_proxy_that_hangs() -> Result<()> {
    if !kernel_tests() {
        return Ok(());
    }
    let world = World::new()?;
    let hung = Proxy::tinyproxy(&world, FIRST)?;
    let dante = Proxy::dante(&world, SECOND)?;
    let spec = format!(
        "{{proxies: [{{name: one, url: 'http://{FIRST}'}}, {{name: socks, url: 'socks5://{SECOND}'}}], \
         rules: [{{hosts: ['v4.example.com:80'], direct: true}}]}}"
    );
    let policy = policy(&world, &spec)?;
    let flags = ["--outbound", "registry-only", "-f", &policy];
    let running = Interceptor::new(&world, &binary(), &flags).start()?;
    hung.freeze(true)?;
    let capture = watch(&world)?;
    for _ in 0..2 {
        let done = running.exec(&["curl", "-sS", "-o/dev/null", "https://v4.example.com/"], 1)?;
        assert_eq!(done.finished.code, 0, "{:?} {}", done, dante.log());
        let line = Line::parse(&done.log[0]).map_err(anyhow::Error::msg)?;
        assert_eq!(line.field("UPSTREAM_HOST"), SECOND.to_string());
    }
    assert_eq!(direct(&capture, EXAMPLE_V4), 0);
    let plain = running.exec(&["curl", "-sSf", "-o/dev/null", "http://v4.example.com/"], 1)?;
    assert_eq!(plain.finished.code, 0, "{plain:?}");
    assert!(direct(&capture, EXAMPLE_V4) > 0, "its rule is direct");
    Ok(())
}

/// DR-16: HAProxy reads who is connected to whom from the header of either version.
#[test]
fn dr_16_haproxy_reads_the_proxy_protocol() -> Result<()> {
    if !kernel_tests() {
        return Ok(());
    }
    let world = World::new()?;
    let _haproxy = Proxy::haproxy(&world, FIRST)?;
    world.zone.set("behind.example.com", &[FIRST.ip()]);
    for version in ["V1", "V2"] {
        let text = format!(
            "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {{name: b}}\nspec: \
             {{hosts: [behind.example.com], ports: [{{number: 3128, name: p, protocol: TCP}}], \
             resolution: DNS}}\n---\napiVersion: networking.istio.io/v1\nkind: DestinationRule\n\
             metadata: {{name: b}}\nspec: {{host: behind.example.com, trafficPolicy: {{proxyProtocol: \
             {{version: {version}}}}}}}\n"
        );
        let file = world.file("behind.yaml", &text)?;
        let flags = ["--outbound", "registry-only", "-f", &file];
        let product = Interceptor::new(&world, &binary(), &flags);
        let done = product.run(&["curl", "-sS", "http://behind.example.com:3128/"])?;
        let expected = format!("{WORKLOAD_V4} {} {}\n", FIRST.ip(), FIRST.port());
        assert_eq!(done.finished.stdout, expected, "{version}: {done:?}");
    }
    Ok(())
}
