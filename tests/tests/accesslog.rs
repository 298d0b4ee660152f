//! The access log of a running daemon: its own format, its filter, its place, and what a line says of
//! connections that are not like others.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use interceptor_tests::log::Line;
use interceptor_tests::product::{Interceptor, Running, binary};
use interceptor_tests::servers::port;
use interceptor_tests::world::{self, World, kernel_tests, wait};
use serde_json::{Value, json};

const CLIENT: &str = env!("CARGO_BIN_EXE_interceptor-test-client");

/// Starts the product in REGISTRY_ONLY, its log where mesh configuration and Telemetry say.
fn start<'w>(world: &'w World, mesh: &str, policy: &str) -> Result<Running<'w>> {
    let mesh = world.file("mesh.yaml", mesh)?;
    let policy = world.file("policy.yaml", policy)?;
    let flags = ["--outbound", "registry-only", "--mesh-config", &mesh, "-f", &policy];
    let product = Interceptor::new(world, &binary(), &flags);
    let command = product.run_visibly(&["sh", "-c", "echo covered; exec sleep 86400"]);
    product.start_as(command, "covered")
}

fn entry(host: &str, ports: &str, more: &str) -> String {
    let name = host.replace('.', "x");
    format!(
        "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {{name: {name}}}\nspec:\n  \
         hosts: [{host}]\n  ports: [{{{ports}}}]\n  {more}\n---\n"
    )
}

/// The lines of a file, once there are as many (or 3 seconds passed) and a moment later.
fn lines(path: &Path, count: usize) -> Vec<String> {
    let read = || -> Vec<String> {
        fs::read_to_string(path).unwrap_or_default().lines().map(str::to_owned).collect()
    };
    let deadline = Instant::now() + Duration::from_secs(3);
    while read().len() < count && Instant::now() < deadline {
        sleep(Duration::from_millis(10));
    }
    sleep(Duration::from_millis(50));
    read()
}

fn ok(running: &Running<'_>, command: &[&str]) -> Result<String> {
    let finished = running.exec(command, 0)?.finished;
    anyhow::ensure!(finished.code == 0, "{command:?}: {finished:?}");
    Ok(finished.stdout)
}

/// MESH-3, MESH-14, TEL-1, TEL-2, TEL-5, LOG-32: a provider of its own, in JSON, filtered; its lines
/// say what curl sent and what was done with it.
#[test]
fn a_provider_prints_what_its_format_asks_for_of_what_its_filter_admits() -> Result<()> {
    if !kernel_tests() {
        return Ok(());
    }
    let world = World::new()?;
    let path = world.dir().join("provider.log");
    let mesh = format!(
        "accessLogFile: /dev/null\nextensionProviders:\n- name: mine\n  envoyFileAccessLog:\n    \
         path: {}\n    logFormat:\n      labels:\n        team: '%REQ(X-TEAM)%'\n        \
         query: '%QUERY_PARAM(q)%'\n        got: '%BYTES_RECEIVED%'\n        \
         code: '%RESPONSE_CODE%'\n        kind: '%RESP(CONTENT-TYPE)%'\n        \
         attempts: '%UPSTREAM_REQUEST_ATTEMPT_COUNT%'\n        connection: '%CONNECTION_ID%'\n        \
         protocol: '%UPSTREAM_PROTOCOL%'\n        tls: '%UPSTREAM_TLS_VERSION%'\n        \
         names: '%UPSTREAM_PEER_DNS_SAN%'\n        why: '%CONNECTION_TERMINATION_DETAILS%'\n        \
         took: '%RESPONSE_DURATION%'\n        type: '%ACCESS_LOG_TYPE%'\n",
        path.display()
    );
    let telemetry = "apiVersion: telemetry.istio.io/v1\nkind: Telemetry\n\
        metadata: {name: mesh-default, namespace: istio-system}\nspec:\n  accessLogging:\n  \
        - providers: [{name: mine}]\n    match: {mode: CLIENT}\n    filter:\n      expression: \
        \"has(response.code) ? response.code >= 400 || 'x-keep' in request.headers : \
        connection.termination_details == 'not_registered'\"\n---\n";
    let rule = format!(
        "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {{name: google}}\nspec:\n  \
         host: www.google.com\n  trafficPolicy: {{tls: {{mode: SIMPLE, caCertificates: {}}}}}\n",
        world.ca_file().display()
    );
    let policy = [
        telemetry,
        &entry("httpbin.org", "number: 80, name: http, protocol: HTTP", "resolution: DNS"),
        &entry(
            "www.google.com",
            "number: 80, name: http, protocol: HTTP, targetPort: 443",
            "resolution: DNS",
        ),
        &rule,
    ]
    .concat();
    let running = start(&world, &mesh, &policy)?;
    let curl = ["curl", "-sS"];
    let post = ["-HX-Team: blue", "-HX-Keep: yes", "-dabc", "http://httpbin.org/upload?a=1&q=7"];
    ok(&running, &[&curl[..], &post].concat())?;
    // Not admitted.
    ok(&running, &["curl", "-sS", "-HX-Team: red", "http://httpbin.org/headers"])?;
    ok(&running, &["curl", "-sS", "http://httpbin.org/status/404"])?;
    ok(&running, &["curl", "-sS", "-HX-Keep: 1", "http://www.google.com/"])?;
    let refused = running.exec(&["curl", "-sS", "https://edition.cnn.com"], 0)?;
    assert_eq!(refused.finished.code, 35);

    let mut seen: Vec<Value> = Vec::new();
    for line in lines(&path, 4) {
        seen.push(serde_json::from_str(&line).with_context(|| line.clone())?);
    }
    assert_eq!(seen.len(), 4, "{seen:?}");
    let mut connections = Vec::new();
    for line in &mut seen {
        let line = line.as_object_mut().expect("an object");
        connections.push(line.remove("connection").and_then(|number| number.as_u64()));
        let took = line.remove("took").expect("the key");
        assert_eq!(took.is_u64(), line["protocol"].is_string(), "{line:?}");
    }
    connections.sort_unstable();
    connections.dedup();
    assert_eq!(connections.len(), 4, "each curl is a connection of its own");
    assert!(connections.iter().all(Option::is_some));
    let request = |changes: Value| {
        let mut line = json!({
            "team": null, "query": null, "got": 0, "code": 200, "kind": null, "attempts": 1,
            "protocol": "HTTP/1.1", "tls": null, "names": null, "why": null, "type": "DownstreamEnd"
        });
        line.as_object_mut().expect("an object").extend(changes.as_object().expect("one").clone());
        line
    };
    assert_eq!(seen[0], request(json!({"team": "blue", "query": "7", "got": 3})));
    assert_eq!(seen[1], request(json!({"code": 404})));
    assert_eq!(seen[2]["tls"], "TLSv1.3", "{}", seen[2]);
    assert!(seen[2]["names"].as_str().is_some_and(|all| all.contains("www.google.com")));
    assert_eq!(seen[2]["kind"], "text/html; charset=utf-8");
    assert_eq!(
        seen[3],
        request(json!({
            "code": 0, "attempts": 0, "protocol": null, "why": "not_registered",
            "type": "TcpConnectionEnd"
        }))
    );
    Ok(())
}

/// MESH-20: new log settings hold for what begins after them; what is open ends by the earlier ones.
#[test]
fn a_connection_is_logged_by_the_settings_of_its_start() -> Result<()> {
    if !kernel_tests() {
        return Ok(());
    }
    let world = World::new()?;
    let place = |name: &str| world.dir().join(name);
    let mesh = |path: PathBuf, word: &str| {
        format!(
            "accessLogFile: {}\naccessLogFormat: '{word} %DOWNSTREAM_LOCAL_PORT%'\n",
            path.display()
        )
    };
    let policy = [
        entry(
            "echo.test",
            &format!("number: {}, name: tcp, protocol: TCP", port::ECHO),
            &format!("addresses: [{}]", world::HTTPBIN),
        ),
        entry("httpbin.org", "number: 80, name: http, protocol: HTTP", "resolution: DNS"),
    ]
    .concat();
    let running = start(&world, &mesh(place("a.log"), "earlier"), &policy)?;
    let (said, go) = (place("said"), place("go"));
    let script = format!(
        "exec 3<>/dev/tcp/{}/{} || exit 3; echo one >&3; read -ru3 x || exit 4; echo > {}; \
         until test -e {}; do sleep 0.05; done",
        world::HTTPBIN,
        port::ECHO,
        said.display(),
        go.display(),
    );
    let mut command = running.exec_command(&["bash", "-c", &script]);
    let mut open = world.spawn(command.stdin(Stdio::null()))?;
    let deadline = Instant::now() + Duration::from_secs(10);
    while !said.exists() {
        anyhow::ensure!(Instant::now() < deadline, "no connection");
        sleep(Duration::from_millis(10));
    }
    world.file("mesh.yaml", &mesh(place("b.log"), "later"))?;
    while !place("b.log").exists() {
        anyhow::ensure!(Instant::now() < deadline, "never reloaded");
        sleep(Duration::from_millis(10));
    }
    ok(&running, &["curl", "-sS", "http://httpbin.org/headers"])?;
    assert_eq!(lines(&place("b.log"), 1), ["later 80"]);
    assert_eq!(lines(&place("a.log"), 0), [""; 0]);
    fs::write(&go, "")?;
    wait(&mut open, Duration::from_secs(10))?.context("the relay ends")?;
    assert_eq!(lines(&place("a.log"), 1), [format!("earlier {}", port::ECHO)]);
    assert_eq!(lines(&place("b.log"), 1), ["later 80"]);
    Ok(())
}

/// T-26, LIS-25: an offer of encrypted_client_hello shows in the line, as does that a client left
/// before it asked for anything.
#[test]
fn hidden_names_and_early_closes_have_words_of_their_own() -> Result<()> {
    if !kernel_tests() {
        return Ok(());
    }
    let world = World::new()?;
    let port = port::ECHO.to_string();
    let entry = world.entry("v4.example.com", port::ECHO, "TLS", "  resolution: DNS\n")?;
    // T-26: another entry may not have its names hidden.
    let forbids = format!(
        "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata:\n  name: cnn\n  \
         annotations: {{egress.interceptor.io/ech: forbid}}\nspec:\n  hosts: [edition.cnn.com]\n  \
         ports: [{{number: {port}, name: t, protocol: TLS}}]\n  resolution: DNS\n"
    );
    let forbids = world.file("forbids.yaml", &forbids)?;
    let flags = ["--outbound", "registry-only", "-f", &entry, "-f", &forbids];
    let running = Interceptor::new(&world, &binary(), &flags).start()?;
    let to = SocketAddr::new(world::EXAMPLE_V4, port::ECHO).to_string();
    let shown = |outcome: interceptor_tests::product::Outcome| -> Result<[String; 4]> {
        let [line] = outcome.log.as_slice() else { anyhow::bail!("{outcome:?}") };
        let line = Line::parse(line).map_err(anyhow::Error::msg)?;
        let field = |name| line.field(name).to_owned();
        Ok([
            field("RESPONSE_FLAGS"),
            field("CONNECTION_TERMINATION_DETAILS"),
            field("UPSTREAM_CLUSTER_RAW"),
            field("REQUESTED_SERVER_NAME"),
        ])
    };
    let echo_at = |to: &str, name: &str, more: &[&str]| {
        let words = [&[CLIENT, "echo", to, "--bytes", "10", "--name", name], more].concat();
        running.exec(&words, 1)
    };
    let echo = |name: &str, more: &[&str]| echo_at(&to, name, more);
    let cluster = format!("outbound|{port}||v4.example.com");
    let listed = "v4.example.com";
    assert_eq!(shown(echo(listed, &[])?)?, ["-", "-", &cluster, listed]);
    assert_eq!(
        shown(echo(listed, &["--ech"])?)?,
        ["-", "encrypted_client_hello", &cluster, listed]
    );
    assert_eq!(
        shown(echo("no.example.com", &["--ech"])?)?,
        ["UH", "not_registered,encrypted_client_hello", "BlackHoleCluster", "no.example.com"]
    );
    let (cnn, name) = (SocketAddr::new(world::CNN, port::ECHO).to_string(), "edition.cnn.com");
    let cluster = format!("outbound|{port}||{name}");
    assert_eq!(shown(echo_at(&cnn, name, &[])?)?, ["-", "-", &cluster, name]);
    assert_eq!(
        shown(echo_at(&cnn, name, &["--ech"])?)?,
        ["UH", "hidden_name,encrypted_client_hello", "BlackHoleCluster", name]
    );
    let closes = format!("exec 3<>/dev/tcp/{}/{port}; exec 3>&-", world::EXAMPLE_V4);
    let begun = Instant::now();
    let outcome = running.exec(&["bash", "-c", &closes], 1)?;
    assert!(begun.elapsed() < Duration::from_secs(4), "not by the time limit");
    assert_eq!(shown(outcome)?, ["DC", "early_close", "-", "-"]);
    Ok(())
}

/// LOG-54: a connect that fails says why, in the same words whoever made it: the workload's own socket,
/// as a destination that its address allows, or the proxy.
#[test]
fn log_54_a_failed_connect_says_why_direct_or_not() -> Result<()> {
    if !kernel_tests() {
        return Ok(());
    }
    const CLOSED: u16 = 4711;
    for fast in ["true", "false"] {
        let world = World::new()?;
        // A reset, a neighbour that is not there, and silence.
        let neighbour = "10.77.0.99".parse()?;
        let ends = [world::HTTPBIN, neighbour, world::DEAD_V6];
        let ends = ends.map(|ip| SocketAddr::new(ip, CLOSED));
        let ports = format!("number: {CLOSED}, name: t, protocol: TCP");
        let addresses = ends.map(|end| format!("'{}'", end.ip())).join(", ");
        let more = format!("addresses: [{addresses}]\n  resolution: NONE");
        let policy = world.file("policy.yaml", &entry("closed.test", &ports, &more))?;
        let flags = ["--outbound", "registry-only", "--fast-path", fast, "-f", &policy];
        let running = Interceptor::new(&world, &binary(), &flags).start()?;
        let direct = fast == "true";
        let mut expected = vec!["delayed_connect_error:_111", "delayed_connect_error:_113"];
        if direct {
            expected.push("delayed_connect_error:_110");
        }
        for (end, why) in ends.iter().zip(&expected) {
            if end.ip() == world::DEAD_V6 {
                // One more SYN than the first: three seconds.
                let retries = "/proc/sys/net/ipv4/tcp_syn_retries";
                world.workload.inside(|| fs::write(retries, "1"))??;
            }
            let script = format!("exec 3<>/dev/tcp/{}/{CLOSED} && read -u3 x", end.ip());
            let outcome = running.exec(&["bash", "-c", &script], 1)?;
            assert_ne!(outcome.finished.code, 0);
            let line = outcome.log.first().context("a line")?;
            let line = Line::parse(line).map_err(anyhow::Error::msg)?;
            assert_eq!(line.field("UPSTREAM_TRANSPORT_FAILURE_REASON"), *why, "{line:?}");
            assert_eq!(line.field("RESPONSE_FLAGS"), "UF,URX", "{line:?}");
            assert_eq!(line.field("UPSTREAM_HOST"), end.to_string(), "{line:?}");
            let cluster = format!("outbound|{CLOSED}||closed.test");
            assert_eq!(line.field("UPSTREAM_CLUSTER_RAW"), cluster, "{line:?}");
        }
        assert_eq!(running.counter("direct")? > 0, direct, "the way that is meant");
    }
    Ok(())
}

/// T-57: with `onLogLoss: refuse` nothing new passes while the log cannot be written: direct connections,
/// those by the proxy, and requests on one that is open. By default traffic goes on.
#[test]
fn t57_without_a_log_new_connections_are_refused_where_that_is_asked_for() -> Result<()> {
    if !kernel_tests() {
        return Ok(());
    }
    for refuses in [true, false] {
        let world = World::new()?;
        let path = world.dir().join("access.log");
        fs::write(&path, "")?;
        let mut policy = entry(
            "echo.test",
            &format!("number: {}, name: t, protocol: TCP", port::ECHO),
            &format!("addresses: [{}]\n  resolution: NONE", world::HTTPBIN),
        );
        let http = "number: 80, name: h, protocol: HTTP";
        policy += &entry("httpbin.org", http, "resolution: DNS");
        if refuses {
            policy += "apiVersion: egress.interceptor.io/v1alpha1\nkind: InterceptorConfig\n\
                       metadata: {name: default}\nspec: {onLogLoss: refuse}\n";
        }
        let mesh = format!("accessLogFile: {}\n", path.display());
        let running = start(&world, &mesh, &policy)?;
        let at = world::HTTPBIN;
        let echo = format!("exec 3<>/dev/tcp/{at}/{}; echo x >&3; read -t 5 -u3 x", port::ECHO);
        let direct =
            || Ok::<_, anyhow::Error>(running.exec(&["bash", "-c", &echo], 0)?.finished.code == 0);
        let get = || {
            Ok::<_, anyhow::Error>(
                running.exec(&["curl", "-sf", "http://httpbin.org/"], 0)?.finished.code == 0,
            )
        };
        assert!(direct()? && get()?, "while there is a log");
        assert!(running.counter("direct")? > 0);
        // A connection that was open before, and two requests on it.
        let said = world.dir().join("said");
        let ask = "printf 'HEAD / HTTP/1.1\\r\\nHost: httpbin.org\\r\\n\\r\\n' >&3; read -ru3 x; echo \"$x\" >>";
        let rest = "while read -t 5 -ru3 y && [ ${#y} -gt 1 ]; do :; done";
        let (file, go) = (said.display(), world.dir().join("go"));
        let script = format!(
            "exec 3<>/dev/tcp/{at}/80; {ask} {file}; {rest}; until [ -e {} ]; do sleep 0.05; done; {ask} {file}",
            go.display()
        );
        let mut open = running.exec_command(&["bash", "-c", &script]);
        let mut open = world.spawn(open.stdin(Stdio::null()).stdout(Stdio::null()))?;
        lines(&said, 1);

        // The disk is full.
        fs::remove_file(&path)?;
        std::os::unix::fs::symlink("/dev/full", &path)?;
        let deadline = Instant::now() + Duration::from_secs(20);
        while running.status()?["access_log_dropped"].as_u64() == Some(0) {
            anyhow::ensure!(Instant::now() < deadline, "no line was ever lost");
            direct()?;
            sleep(Duration::from_millis(100));
        }
        // Looked at several times a second.
        sleep(Duration::from_secs(1));
        let capture = world.capture()?;
        assert_eq!((direct()?, get()?), (!refuses, !refuses), "refuses: {refuses}");
        let left = capture.packets_to(at);
        assert_eq!(left == 0, refuses, "{left} packets left");
        fs::write(&go, "")?;
        assert!(wait(&mut open, Duration::from_secs(20))?.is_some(), "the request has an answer");
        let answers = lines(&said, 2);
        assert!(answers[0].contains(" 200 "), "{answers:?}");
        assert_eq!(answers[1].contains(" 503 "), refuses, "{answers:?}");

        // There is room again.
        fs::remove_file(&path)?;
        fs::write(&path, "")?;
        let deadline = Instant::now() + Duration::from_secs(20);
        while !(direct()? && get()?) {
            anyhow::ensure!(Instant::now() < deadline, "never again");
            sleep(Duration::from_millis(100));
        }
        let log = fs::read_to_string(&path)?;
        assert_eq!(log.contains("log_lost"), refuses, "{log}");
    }
    Ok(())
}
