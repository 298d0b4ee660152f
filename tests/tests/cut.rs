//! `onPolicyRemoval: cut`: what a change of policy no longer allows ends, says why, and nothing else
//! does. (What `keep` means is in reload.rs.)

use std::fs;
use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, ensure};
use interceptor_tests::product::{Interceptor, Running, binary};
use interceptor_tests::servers::port;
use interceptor_tests::world::{self, World, kernel_tests, wait};

/// From the change to the end of what it ends, at the latest on a busy machine.
const SOON: Duration = Duration::from_secs(4);

const CLIENT: &str = env!("CARGO_BIN_EXE_interceptor-test-client");

const CONFIG: &str = "apiVersion: egress.interceptor.io/v1alpha1\nkind: InterceptorConfig\n\
                      metadata: {name: default}\nspec: {onPolicyRemoval: cut}\n";

fn entry(name: &str, host: &str, port: u16, protocol: &str, more: &str) -> String {
    format!(
        "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {{name: {name}}}\nspec:\n  \
         hosts: [\"{host}\"]\n  ports: [{{number: {port}, name: port, protocol: {protocol}}}]\n  {more}\n"
    )
}

/// A workload's connection: a script that has it as descriptor 3, writes its first answer into a
/// file, and ends with the connection.
struct Open {
    child: Child,
    said: PathBuf,
}

impl Open {
    fn new(
        world: &World,
        running: &Running<'_>,
        name: &str,
        device: &str,
        rest: &str,
    ) -> Result<Self> {
        let said = world.dir().join(name);
        let script = format!("exec 3<>{device} || exit 3; said={}; {rest}", said.display());
        let mut command = running.exec_command(&["bash", "-c", &script]);
        command.stdin(Stdio::null()).stdout(Stdio::null());
        let child = world.spawn(&mut command)?;
        let open = Self { child, said };
        let deadline = Instant::now() + Duration::from_secs(10);
        while open.said()?.is_empty() {
            ensure!(Instant::now() < deadline, "{name} never had an answer");
            sleep(Duration::from_millis(20));
        }
        Ok(open)
    }

    /// Sends a line, has it back, and waits for the end.
    fn echo(world: &World, running: &Running<'_>, name: &str, device: &str) -> Result<Self> {
        // bash reads bytes one by one, and of a datagram only one is left for it.
        let length = if device.starts_with("/dev/udp") { "-n1" } else { "" };
        let rest = format!(
            "echo one >&3; read -ru3 {length} x; echo \"$x\" > $said; read -ru3 x; exit 42"
        );
        Self::new(world, running, name, device, &rest)
    }

    fn said(&self) -> Result<String> {
        Ok(fs::read_to_string(&self.said).unwrap_or_default())
    }

    /// Whether the script ended because its connection did.
    fn ends(&mut self) -> Result<bool> {
        Ok(wait(&mut self.child, SOON)?.is_some_and(|status| status.code() == Some(42)))
    }

    fn goes_on(&mut self) -> Result<bool> {
        Ok(wait(&mut self.child, Duration::from_millis(300))?.is_none())
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn tcp(ip: std::net::IpAddr, port: u16) -> String {
    format!("/dev/tcp/{ip}/{port}")
}

/// Waits until a line of the access log holds all of `words`.
fn until_logged(running: &Running<'_>, words: &[&str]) -> Result<()> {
    let deadline = Instant::now() + Duration::from_secs(3);
    let holds = |line: &String| words.iter().all(|word| line.contains(word));
    while !running.lines().iter().any(holds) {
        ensure!(Instant::now() < deadline, "no line has {words:?}: {:#?}", running.lines());
        sleep(Duration::from_millis(20));
    }
    Ok(())
}

/// T-62: the relay, the websocket and the request of an entry that was removed end; those of one
/// that stays do not.
#[test]
fn proxied_connections_of_a_removed_entry_end() -> Result<()> {
    if !kernel_tests() {
        return Ok(());
    }
    let world = World::new()?;
    let dir = world.dir().join("policy");
    fs::create_dir(&dir)?;
    let write = |name: &str, text: &str| fs::write(dir.join(name), text);
    let at = |ip: std::net::IpAddr| format!("addresses: [{ip}]");
    write("config.yaml", CONFIG)?;
    write("gone.yaml", &entry("gone", "gone.test", port::ECHO, "TCP", &at(world::HTTPBIN)))?;
    write("stays.yaml", &entry("stays", "stays.test", port::ECHO, "TCP", &at(world::CNN)))?;
    write("ws.yaml", &entry("ws", "httpbin.org", port::WEBSOCKET, "HTTP", "resolution: DNS"))?;
    write("stall.yaml", &entry("stall", "httpbin.org", port::STALL, "HTTP", "resolution: DNS"))?;
    let path = dir.to_string_lossy();
    let flags = ["--outbound", "registry-only", "--fast-path", "false", "-f", &path];
    let running = Interceptor::new(&world, &binary(), &flags).start()?;

    let mut gone = Open::echo(&world, &running, "gone", &tcp(world::HTTPBIN, port::ECHO))?;
    let mut stays = Open::echo(&world, &running, "stays", &tcp(world::CNN, port::ECHO))?;
    let upgrade = format!(
        "printf 'GET / HTTP/1.1\\r\\nHost: httpbin.org:{}\\r\\nConnection: Upgrade\\r\\nUpgrade: websocket\\r\\n\
         Sec-WebSocket-Version: 13\\r\\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\\r\\n\\r\\n' >&3; \
         read -ru3 x; echo \"$x\" > $said; cat <&3 > /dev/null; exit 42",
        port::WEBSOCKET
    );
    let device = tcp(world::HTTPBIN, port::WEBSOCKET);
    let mut websocket = Open::new(&world, &running, "ws", &device, &upgrade)?;
    assert!(websocket.said()?.contains(" 101 "), "{:?}", websocket.said()?);
    // Never answered: what comes back is the proxy's own.
    let request = format!(
        "printf 'GET / HTTP/1.1\\r\\nHost: httpbin.org:{}\\r\\n\\r\\n' >&3; echo sent > $said; read -ru3 x; \
         echo \"$x\" > $said; cat <&3 > /dev/null; exit 42",
        port::STALL
    );
    let device = tcp(world::HTTPBIN, port::STALL);
    let mut request = Open::new(&world, &running, "stall", &device, &request)?;

    // A change that takes nothing away ends nothing.
    write("more.yaml", &entry("more", "more.test", 443, "TLS", "resolution: DNS"))?;
    until_reloaded(&running, 2)?;
    assert!(gone.goes_on()? && websocket.goes_on()? && request.goes_on()?);

    for name in ["gone.yaml", "ws.yaml", "stall.yaml"] {
        fs::remove_file(dir.join(name))?;
    }
    assert!(gone.ends()?, "the relay ends");
    assert!(websocket.ends()?, "the websocket ends");
    assert!(request.ends()?, "the request ends");
    assert!(request.said()?.contains(" 502 "), "{:?}", request.said()?);
    assert!(stays.goes_on()?, "what is still allowed goes on");
    let destination = |port: u16| format!("{}:{port}", world::HTTPBIN);
    for (port, why) in [
        (port::ECHO, "policy_removed{not_registered}"),
        (port::WEBSOCKET, "policy_removed{not_registered}"),
        (port::STALL, "policy_removed{not_registered}"),
    ] {
        until_logged(&running, &[&destination(port), why])?;
    }
    Ok(())
}

fn until_reloaded(running: &Running<'_>, generation: u64) -> Result<()> {
    let deadline = Instant::now() + SOON;
    let words = format!("policy generation  {generation}\n");
    while !running.verb(&["status"])?.stdout.contains(&words) {
        ensure!(Instant::now() < deadline, "never generation {generation}");
        sleep(Duration::from_millis(50));
    }
    Ok(())
}

/// In how many rounds the time is taken; the median counts, for the machine is busy.
const ROUNDS: usize = 5;

/// A workload that goes on until it is refused, and writes down when that was: new connections, requests
/// on one connection, and a connection that stays open.
fn until_refused(at: std::net::IpAddr) -> [(&'static str, String); 3] {
    let echo = port::ECHO;
    let refused = "date +%s%N > $said.tmp; mv $said.tmp $said";
    let ask = "echo one >&3 && read -t 5 -ru3 x";
    let head = r"printf 'HEAD / HTTP/1.1\r\nHost: httpbin.org\r\n\r\n' >&3 && read -t 5 -ru3 x && [[ $x = *' 200 '* ]]";
    let rest = "while read -t 5 -ru3 y && [ ${#y} -gt 1 ]; do :; done";
    [
        (
            "new connections",
            format!(
                "{ask} || exit 3; touch $said.on; while {{ {ask}; }} 3<>/dev/tcp/{at}/{echo}; do :; done; {refused}"
            ),
        ),
        (
            "requests",
            format!(
                "exec 3<>/dev/tcp/{at}/80; while {head}; do {rest}; touch $said.on; done; {refused}"
            ),
        ),
        ("open ones", format!("{ask} || exit 3; touch $said.on; read -ru3 x; {refused}")),
    ]
}

/// T-62: new connections and requests are refused within a second of the change, and old ones end.
#[test]
fn t_62_a_removed_entry_is_gone_within_a_second() -> Result<()> {
    if !kernel_tests() {
        return Ok(());
    }
    for fast in ["true", "false"] {
        let world = World::new()?;
        let dir = world.dir().join("policy");
        fs::create_dir(&dir)?;
        let file = dir.join("gone.yaml");
        let text = format!(
            "{}---\n{}",
            entry(
                "echo",
                "gone.test",
                port::ECHO,
                "TCP",
                &format!("addresses: [{}]", world::HTTPBIN)
            ),
            entry("http", "httpbin.org", 80, "HTTP", "resolution: DNS"),
        );
        fs::write(dir.join("config.yaml"), CONFIG)?;
        fs::write(
            dir.join("stays.yaml"),
            entry("stays", "stays.test", 443, "TLS", "resolution: DNS"),
        )?;
        fs::write(&file, &text)?;
        let path = dir.to_string_lossy();
        let flags = ["--outbound", "registry-only", "--fast-path", fast, "-f", &path];
        let running = Interceptor::new(&world, &binary(), &flags).start()?;
        let mut taken: [Vec<Duration>; 3] = Default::default();
        for round in 0..ROUNDS {
            let mut clients = Vec::new();
            for (n, (_, script)) in until_refused(world::HTTPBIN).into_iter().enumerate() {
                let said = world.dir().join(format!("{fast}-{round}-{n}"));
                let device = tcp(world::HTTPBIN, port::ECHO);
                let script = format!("exec 3<>{device}; said={}; {script}", said.display());
                let mut command = running.exec_command(&["bash", "-c", &script]);
                command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
                clients.push(Open { child: world.spawn(&mut command)?, said });
            }
            for client in &clients {
                until_there(&client.said.with_extension("on"))?;
            }
            #[expect(clippy::disallowed_methods, reason = "the client says when by its `date`")]
            let removed = SystemTime::now();
            fs::remove_file(&file)?;
            for (client, taken) in clients.iter().zip(&mut taken) {
                until_there(&client.said)?;
                let at = Duration::from_nanos(client.said()?.trim().parse()?);
                taken.push((SystemTime::UNIX_EPOCH + at).duration_since(removed)?);
            }
            fs::write(&file, &text)?;
            let generation = 3 + 2 * round as u64;
            until(&running, |status| status["generation"].as_u64() >= Some(generation))?;
        }
        for ((what, _), mut taken) in until_refused(world::HTTPBIN).into_iter().zip(taken) {
            taken.sort();
            println!("fast path {fast}: {what} after {taken:?}");
            assert!(taken[ROUNDS / 2] <= Duration::from_secs(1), "{what}: {taken:?}");
        }
    }
    Ok(())
}

/// Waits for a file.
fn until_there(path: &std::path::Path) -> Result<()> {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !path.exists() {
        ensure!(Instant::now() < deadline, "{} never came", path.display());
        sleep(Duration::from_millis(5));
    }
    Ok(())
}

/// Direct flows: a bypass that is taken away, and a UDP peer that no entry allows any more.
#[test]
fn direct_flows_end_too() -> Result<()> {
    if !kernel_tests() {
        return Ok(());
    }
    let world = World::new()?;
    let dir = world.dir().join("policy");
    fs::create_dir(&dir)?;
    let address = format!("addresses: [{}]", world::UDP_ECHO);
    fs::write(dir.join("udp.yaml"), entry("udp", "udp.test", port::ECHO, "UDP", &address))?;
    fs::write(dir.join("more.yaml"), entry("more", "more.test", 443, "TLS", "resolution: DNS"))?;
    let path = dir.to_string_lossy();
    let flags = [
        "--outbound",
        "registry-only",
        "--on-policy-removal",
        "cut",
        "--bypass",
        "203.0.113.0/28",
        "--bypass",
        "203.0.113.16/28",
        "-f",
        &path,
    ];
    let running = Interceptor::new(&world, &binary(), &flags).start()?;
    let mut gone = Open::echo(&world, &running, "gone", &tcp(world::HTTPBIN, port::ECHO))?;
    let mut stays = Open::echo(&world, &running, "stays", &tcp(world::CNN, port::ECHO))?;
    // Not the workload's, to the same place: none of our business.
    let peer = std::net::SocketAddr::new(world::HTTPBIN, port::ECHO);
    let bystander = world.workload.inside(|| std::net::TcpStream::connect(peer))??;
    let device = format!("/dev/udp/{}/{}", world::UDP_ECHO, port::ECHO);
    let mut datagrams = Open::echo(&world, &running, "udp", &device)?;

    assert_eq!(running.verb(&["bypass", "del", "203.0.113.0/28"])?.code, 0);
    assert!(gone.ends()?, "a connection that is bypassed no more ends");
    assert!(stays.goes_on()? && datagrams.goes_on()?, "others go on");
    let destination = peer.to_string();
    until_logged(&running, &[&destination, "BypassCluster", "policy_removed{not_bypassed}"])?;
    assert!(bystander.take_error().context("the bystander")?.is_none());

    fs::remove_file(dir.join("udp.yaml"))?;
    assert!(datagrams.ends()?, "a UDP socket whose peer is allowed no more ends");
    let destination = format!("{}:{}", world::UDP_ECHO, port::ECHO);
    until_logged(&running, &[&destination, "policy_removed{not_registered}"])?;
    assert!(stays.goes_on()?);
    Ok(())
}

/// Connections that the kernel let go by policy, by address and by name: those of an entry that was
/// removed end, others do not; and with `keep` none does.
#[test]
fn direct_flows_by_policy_end_with_their_entry() -> Result<()> {
    if !kernel_tests() {
        return Ok(());
    }
    for keep in [false, true] {
        let world = World::new()?;
        let dir = world.dir().join("policy");
        fs::create_dir(&dir)?;
        let write = |name: &str, text: &str| fs::write(dir.join(name), text);
        let at = |ip: std::net::IpAddr| format!("addresses: [{ip}]");
        write("gone.yaml", &entry("gone", "gone.test", port::ECHO, "TCP", &at(world::HTTPBIN)))?;
        write("stays.yaml", &entry("stays", "stays.test", port::ECHO, "TCP", &at(world::CNN)))?;
        write("name.yaml", &entry("name", "v4.example.com", 443, "TLS", "resolution: DNS"))?;
        write("other.yaml", &entry("other", "edition.cnn.com", 443, "TLS", "resolution: DNS"))?;
        let path = dir.to_string_lossy();
        let action = if keep { "keep" } else { "cut" };
        let flags = [
            "--outbound",
            "registry-only",
            "--fast-path",
            "true",
            "--on-policy-removal",
            action,
            "-f",
            &path,
        ];
        let running = Interceptor::new(&world, &binary(), &flags).start()?;
        until(&running, |status| table(status, "NAMES") == Some(2))?;
        let mut gone = Open::echo(&world, &running, "gone", &tcp(world::HTTPBIN, port::ECHO))?;
        let mut stays = Open::echo(&world, &running, "stays", &tcp(world::CNN, port::ECHO))?;
        let tls = |name: &str, ip| {
            let said = world.dir().join(name);
            let script = format!("{CLIENT} hold {ip}:443 {name} || exit 42");
            let mut command = running.exec_command(&["bash", "-c", &script]);
            command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
            Ok::<_, anyhow::Error>(Open { child: world.spawn(&mut command)?, said })
        };
        let mut named = tls("v4.example.com", world::EXAMPLE_V4)?;
        let mut other = tls("edition.cnn.com", world::CNN)?;
        until(&running, |status| status["counters"]["name_allowed"] == 2)?;
        assert!(named.goes_on()? && other.goes_on()?);
        let status = running.verb(&["status"])?.stdout;
        assert!(status.contains("bypass 0, direct 2, name 2, proxy 0"), "{status}");

        fs::remove_file(dir.join("gone.yaml"))?;
        fs::remove_file(dir.join("name.yaml"))?;
        until(&running, |status| status["generation"].as_u64() >= Some(2))?;
        if keep {
            assert!(gone.goes_on()? && named.goes_on()?, "keep ends nothing");
            assert!(stays.goes_on()? && other.goes_on()?);
            continue;
        }
        assert!(gone.ends()?, "the connection by address ends");
        assert!(named.ends()?, "the connection by name ends");
        assert!(stays.goes_on()? && other.goes_on()?, "what is still allowed goes on");
        let echo = format!("{}:{}", world::HTTPBIN, port::ECHO);
        until_logged(&running, &[&echo, " UH ", "policy_removed{not_registered}"])?;
        let tls = format!("{}:443", world::EXAMPLE_V4);
        until_logged(&running, &[&tls, "v4.example.com", "policy_removed{not_registered}"])?;
    }
    Ok(())
}

fn table(status: &serde_json::Value, name: &str) -> Option<u64> {
    let tables = status["tables"].as_array()?;
    tables.iter().find(|row| row["name"] == name)?["entries"].as_u64()
}

fn until(running: &Running<'_>, holds: impl Fn(&serde_json::Value) -> bool) -> Result<()> {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        let status = running.verb(&["status", "-o", "json"])?.stdout;
        let status = serde_json::from_str(&status)?;
        if holds(&status) {
            return Ok(());
        }
        ensure!(Instant::now() < deadline, "never: {status}");
        sleep(Duration::from_millis(20));
    }
}
