//! Istio's own form of an egress gateway: one set of resources for the node and for the gateway. The
//! workload's namespace has a route to the gateway only; a capture outside judges.

use std::fs;
use std::net::IpAddr;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use interceptor_tests::capture::Capture;
use interceptor_tests::gateway::{FIRST, Gateway, OUTSIDE, Passage};
use interceptor_tests::log::Line;
use interceptor_tests::product::{Interceptor, Running, binary};
use interceptor_tests::world::{EXAMPLE_V4, HTTPBIN, WORKLOAD_V4, World, kernel_tests};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

const EGRESS: &str = "istio-egressgateway.istio-system.svc.cluster.local";

/// The gateway's Service; the outside, of which the Gateway lists one host, and a VirtualService binds one
/// more; and the way through.
fn resources() -> String {
    format!(
        "
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {{name: egw, namespace: istio-system}}
spec:
  hosts: [{EGRESS}]
  ports:
  - {{number: 80, name: http2, protocol: HTTP, targetPort: 8080}}
  - {{number: 443, name: https, protocol: TLS, targetPort: 8443}}
  - {{number: 444, name: mtls, protocol: HTTP, targetPort: 8444}}
  location: MESH_INTERNAL
  resolution: STATIC
  endpoints: [{{address: {at}}}]
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {{name: outside, namespace: default}}
spec:
  hosts: [v4.example.com, httpbin.org, dual.example.com]
  ports:
  - {{number: 80, name: http, protocol: HTTP}}
  - {{number: 443, name: tls, protocol: TLS}}
  resolution: DNS
---
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {{name: egress, namespace: default}}
spec:
  selector: {{istio: egressgateway}}
  servers:
  - port: {{number: 80, name: http, protocol: HTTP}}
    hosts: [v4.example.com]
  - port: {{number: 443, name: tls, protocol: TLS}}
    hosts: [v4.example.com]
    tls: {{mode: PASSTHROUGH}}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {{name: egress, namespace: default}}
spec:
  host: {EGRESS}
  subsets: [{{name: example}}]
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {{name: through, namespace: default}}
spec:
  hosts: [v4.example.com, dual.example.com]
  gateways: [egress, mesh]
  http:
  - match: [{{gateways: [mesh], port: 80}}]
    route: [{{destination: {{host: {EGRESS}, subset: example, port: {{number: 80}}}}}}]
  - match: [{{gateways: [egress], port: 80}}]
    route: [{{destination: {{host: v4.example.com, port: {{number: 80}}}}}}]
  tls:
  - match: [{{gateways: [mesh], port: 443, sniHosts: [v4.example.com]}}]
    route: [{{destination: {{host: {EGRESS}, subset: example, port: {{number: 443}}}}}}]
  - match: [{{gateways: [egress], port: 443, sniHosts: [v4.example.com, dual.example.com]}}]
    route: [{{destination: {{host: v4.example.com, port: {{number: 443}}}}}}]
",
        at = FIRST.ip()
    )
}

/// A world with a passage, and a file of resources for both ends.
struct Scene<'w> {
    world: &'w World,
    passage: Passage<'w>,
    file: String,
}

impl<'w> Scene<'w> {
    fn set(world: &'w World, resources: &str) -> Result<Self> {
        let file = world.file("mesh-and-gateway.yaml", resources)?;
        Ok(Self { passage: Passage::between(world)?, world, file })
    }

    fn gateway(&self, more: &[&str]) -> Result<Gateway> {
        let own = ["-f", &self.file, "--outbound", "registry-only", "--namespace", "istio-system"];
        let flags = [&own[..], &["--labels", "istio=egressgateway"], more].concat();
        self.passage.dialled("gw-1.test", FIRST.ip(), &flags)
    }

    fn node(&self) -> Result<Running<'w>> {
        let flags = ["--outbound", "registry-only", "-f", &self.file];
        Interceptor::new(self.world, &binary(), &flags).start()
    }

    /// What leaves for the outside, from whomever.
    fn outside(&self) -> Result<Outside> {
        let capture = Capture::keeping(&self.world.internet, |packet| {
            let (from, to) = packet.ends();
            [from.ip(), to.ip()].iter().any(|ip| [WORKLOAD_V4, EXAMPLE_V4, HTTPBIN].contains(ip))
        })?;
        Ok(Outside(capture))
    }
}

struct Outside(Capture);

impl Outside {
    fn sent(&self, from: IpAddr, to: IpAddr) -> usize {
        let packets = self.0.packets();
        packets.iter().filter(|packet| (packet.source, packet.destination) == (from, to)).count()
    }
}

fn line(lines: &[String]) -> Result<Line> {
    let [line] = lines else { anyhow::bail!("one line: {lines:?}") };
    Line::parse(line).map_err(anyhow::Error::msg)
}

const HTTPS: [&str; 5] =
    ["curl", "-sS", "-o/dev/null", "-w%{http_code}", "https://v4.example.com/"];
const HTTP: [&str; 5] = ["curl", "-sS", "-o/dev/null", "-w%{http_code}", "http://v4.example.com/"];

/// GW-1 to GW-3: the same YAML leads the node's connections to the gateway, and on from there.
#[test]
fn gw_1_one_yaml_leads_through_the_gateway() -> Result<()> {
    if !kernel_tests() {
        return Ok(());
    }
    let world = World::new()?;
    let scene = Scene::set(&world, &resources())?;
    let mut gateway = scene.gateway(&[])?;
    let running = scene.node()?;
    let outside = scene.outside()?;
    for (command, port, target) in [(HTTP, 80, 8080), (HTTPS, 443, 8443)] {
        let before = gateway.lines().len();
        let done = running.exec(&command, 1)?;
        assert_eq!(done.finished.stdout, "200", "{done:?} {}", gateway.stderr()?);
        let (ours, theirs) = (line(&done.log)?, line(&gateway.wait_for_lines(before, 1))?);
        assert_eq!(
            (ours.field("UPSTREAM_CLUSTER_RAW"), ours.field("UPSTREAM_HOST")),
            (&*format!("outbound|{port}|example|{EGRESS}"), &*format!("{}:{target}", FIRST.ip()))
        );
        assert_eq!(
            (theirs.field("UPSTREAM_CLUSTER_RAW"), theirs.field("UPSTREAM_HOST")),
            (&*format!("outbound|{port}||v4.example.com"), &*format!("{EXAMPLE_V4}:{port}"))
        );
        let local = format!("{}:{target}", FIRST.ip());
        assert_eq!(theirs.field("DOWNSTREAM_LOCAL_ADDRESS"), local, "what was dialled");
    }
    // The node allows it, and has no route; the gateway is not asked.
    let before = gateway.lines().len();
    let direct = running.exec(&["curl", "-sSf", "-m5", "http://httpbin.org/"], 1)?;
    assert_ne!(direct.finished.code, 0);
    assert_eq!(gateway.lines().len(), before);
    assert_eq!(outside.sent(WORKLOAD_V4, EXAMPLE_V4) + outside.sent(WORKLOAD_V4, HTTPBIN), 0);
    assert!(outside.sent(OUTSIDE, EXAMPLE_V4) > 0, "the control is seen");
    assert_eq!(outside.sent(OUTSIDE, HTTPBIN), 0);
    drop(running);
    gateway.signal(Signal::SIGTERM)?;
    assert_eq!(gateway.ended(Duration::from_secs(5))?, Some(0), "{}", gateway.stderr()?);
    Ok(())
}

/// GW-5: whoever dials the gateway gets what its YAML serves, and nothing else, in both profiles.
#[test]
fn gw_5_the_gateway_judges_by_itself() -> Result<()> {
    if !kernel_tests() {
        return Ok(());
    }
    for profile in ["strict", "istio"] {
        let world = World::new()?;
        let scene = Scene::set(&world, &resources())?;
        let gateway = scene.gateway(&["--enforcement", profile])?;
        let outside = scene.outside()?;
        let (plain, tls) =
            (format!("http://{}:8080/", FIRST.ip()), format!("::{}:8443", FIRST.ip()));
        let known = "Host: v4.example.com";
        // Of neither; bound by the VirtualService, and not in the Gateway.
        let foreign = ["httpbin.org", "dual.example.com"];
        let ask = |args: &[&str]| -> Result<(String, Option<Line>)> {
            let before = gateway.lines().len();
            let common = ["-sS", "-k", "-m5", "-o/dev/null", "-w%{http_code}"];
            let done = world.curl(&[&common[..], args].concat())?;
            let lines = gateway.wait_for_lines(before, 1);
            Ok((done.stdout, lines.first().and_then(|line| Line::parse(line).ok())))
        };
        let (status, _) = ask(&["-H", known, &plain])?;
        assert_eq!(status, "200", "{profile}: the control");
        for host in foreign {
            let (status, said) = ask(&["-H", &format!("Host: {host}"), &plain])?;
            let said = said.context("a line")?;
            assert_eq!(status, "404", "{profile}, {host}");
            let fields = ["RESPONSE_FLAGS", "RESPONSE_CODE_DETAILS"].map(|field| said.field(field));
            assert_eq!(fields, ["NR", "route_not_found"], "{profile}, {host}");
        }
        // An address in the place of a name, no name at all, and a proxy's verb.
        let addressed = format!("Host: {HTTPBIN}");
        let proxied = format!("http://{}:8080", FIRST.ip());
        for args in [
            &["-H", &addressed, &plain][..],
            &[&plain],
            &["-x", &proxied, "http://httpbin.org/"],
            &["-x", &proxied, "-p", "http://v4.example.com/"],
        ] {
            let (status, _) = ask(args)?;
            assert!(!status.starts_with('2'), "{profile} {args:?}: {status}");
        }
        let (status, _) = ask(&["--connect-to", &tls, "https://v4.example.com/"])?;
        assert_eq!(status, "200", "{profile}: the control");
        for host in foreign {
            let (status, said) = ask(&["--connect-to", &tls, &format!("https://{host}/")])?;
            let said = said.context("a line")?;
            assert_eq!(status, "000", "{profile}, {host}");
            let fields = ["RESPONSE_FLAGS", "RESPONSE_CODE_DETAILS", "UPSTREAM_CLUSTER_RAW"];
            let fields = fields.map(|field| said.field(field));
            assert_eq!(fields, ["NR", "filter_chain_not_found", "-"], "{profile}, {host}");
        }
        // No name; and the one server's host in the other one's protocol.
        let nameless = format!("https://{}:8443/", FIRST.ip());
        let crossed = ["-H", known, &nameless.replace("https", "http")];
        for args in [&[nameless.as_str()][..], &crossed] {
            let (status, _) = ask(args)?;
            assert!(!status.starts_with('2'), "{profile} {args:?}: {status}");
        }
        assert_eq!(outside.sent(OUTSIDE, HTTPBIN), 0, "{profile}");
        assert!(outside.sent(OUTSIDE, EXAMPLE_V4) > 0, "{profile}: the control is seen");
        assert_eq!(outside.sent(WORKLOAD_V4, EXAMPLE_V4), 0, "{profile}");
    }
    Ok(())
}

/// The served host's status by plain HTTP, straight at the gateway, once it is `wanted` or 5 s are over.
fn comes_to(world: &World, wanted: &str) -> Result<String> {
    let at = format!("http://{}:8080/", FIRST.ip());
    let ask = ["-sS", "-m5", "-o/dev/null", "-w%{http_code}", "-H", "Host: v4.example.com", &at];
    let mut status = String::new();
    for _ in 0..50 {
        status = world.curl(&ask)?.stdout;
        if status == wanted {
            break;
        }
        thread::sleep(Duration::from_millis(100));
    }
    Ok(status)
}

/// Files are followed: what is taken out of them is not served any more; what cannot be read changes
/// nothing; a port whose server goes is not listened on any more.
#[test]
fn the_gateway_follows_its_files() -> Result<()> {
    if !kernel_tests() {
        return Ok(());
    }
    let world = World::new()?;
    let scene = Scene::set(&world, &resources())?;
    let mut gateway = scene.gateway(&[])?;
    assert_eq!(comes_to(&world, "200")?, "200", "the control");
    fs::write(&scene.file, resources().replace("kind: Gateway", "kind: [Gateway"))?;
    thread::sleep(Duration::from_millis(1500));
    assert!(
        gateway.stderr()?.contains("the policy before stays in force"),
        "{}",
        gateway.stderr()?
    );
    assert_eq!(comes_to(&world, "200")?, "200", "what was good");
    let bound = "gateways: [egress, mesh]";
    fs::write(&scene.file, resources().replace(bound, "gateways: [mesh]"))?;
    assert_eq!(comes_to(&world, "404")?, "404");
    // The port of the server moves.
    let moved = resources().replace(
        "number: 80, name: http2, protocol: HTTP, targetPort: 8080",
        "number: 80, name: http2, protocol: HTTP, targetPort: 8090",
    );
    fs::write(&scene.file, moved)?;
    assert_eq!(comes_to(&world, "000")?, "000", "{}", gateway.stderr()?);
    let at = format!("http://{}:8090/", FIRST.ip());
    let there =
        world.curl(&["-sS", "-o/dev/null", "-w%{http_code}", "-H", "Host: v4.example.com", &at])?;
    assert_eq!(there.stdout, "200", "{}", gateway.stderr()?);
    Ok(())
}

/// What leads back to the gateway, or to wherever its client dialled, leads nowhere (RES-12): one answer,
/// and no loop.
#[test]
fn res_12_nothing_leads_back_to_the_gateway() -> Result<()> {
    if !kernel_tests() {
        return Ok(());
    }
    let outward = "host: v4.example.com, port: {number: 80}";
    let back = format!("host: {EGRESS}, port: {{number: 80}}");
    let by_name = resources().replace(
        "resolution: DNS",
        "resolution: DNS\n  endpoints: [{address: gw-1.test, ports: {http: 8080}}]",
    );
    let unresolved = resources().replace("resolution: DNS", "resolution: NONE");
    for (what, changed) in [
        ("the gateway's own Service", resources().replace(outward, &back)),
        ("a name of the gateway", by_name),
        ("where it was dialled", unresolved),
    ] {
        assert_ne!(changed, resources(), "{what}");
        for profile in ["strict", "istio"] {
            let world = World::new()?;
            let scene = Scene::set(&world, &changed)?;
            let gateway = scene.gateway(&["--enforcement", profile])?;
            let at = format!("http://{}:8080/", FIRST.ip());
            let ask = ["-sS", "-m5", "-o/dev/null", "-w%{http_code}", "-H", "Host: v4.example.com"];
            let status = world.curl(&[&ask[..], &[&at]].concat())?.stdout;
            assert!(["502", "503"].contains(&&*status), "{what}, {profile}: {status}");
            thread::sleep(Duration::from_millis(500));
            assert_eq!(gateway.lines().len(), 1, "{what}, {profile}: {:?}", gateway.lines());
        }
    }
    Ok(())
}

/// GW-4: plain HTTP at the workload, mutual TLS to the gateway, TLS that the gateway originates outside.
/// Who has no certificate gets nowhere.
#[test]
fn gw_4_mutual_tls_inside_and_tls_outside() -> Result<()> {
    if !kernel_tests() {
        return Ok(());
    }
    let world = World::new()?;
    let scene = Scene::set(&world, "")?;
    let (certificate, key) = scene.passage.node_keys("node-1.nodes.test")?;
    let ca = world.ca_file();
    let server =
        "  - port: {number: 80, name: http, protocol: HTTP}\n    hosts: [v4.example.com]\n";
    let mutual = "  - port: {number: 444, name: mtls, protocol: HTTPS}\n    hosts: [v4.example.com]\n    tls: \
                  {mode: ISTIO_MUTUAL}\n";
    let subset = "subsets: [{name: example}]";
    let wrapped = format!(
        "subsets:\n  - name: example\n    trafficPolicy:\n      portLevelSettings:\n      - port: {{number: \
         444}}\n        tls: {{mode: MUTUAL, clientCertificate: '{certificate}', privateKey: '{key}', \
         caCertificates: '{}', sni: gw-1.test, subjectAltNames: [gw-1.test]}}",
        ca.display()
    );
    let legs = [
        ("subset: example, port: {number: 80}", "subset: example, port: {number: 444}"),
        ("[{gateways: [egress], port: 80}]", "[{gateways: [egress], port: 444}]"),
        ("host: v4.example.com, port: {number: 80}", "host: v4.example.com, port: {number: 443}"),
        (server, mutual),
        (subset, &wrapped),
        (
            "{number: 443, name: tls, protocol: TLS}\n  resolution: DNS",
            "{number: 443, name: tls, protocol: HTTP}\n  resolution: DNS",
        ),
    ];
    let mut text = resources();
    for (from, to) in legs {
        assert_eq!(text.matches(from).count(), 1, "{from}");
        text = text.replace(from, to);
    }
    text += &format!(
        "---\napiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {{name: outside, namespace: \
         default}}\nspec: {{host: v4.example.com, trafficPolicy: {{portLevelSettings: [{{port: {{number: \
         443}}, tls: {{mode: SIMPLE, caCertificates: '{}'}}}}]}}}}\n",
        ca.display()
    );
    fs::write(&scene.file, &text)?;
    let mut gateway = scene.gateway(&[])?;
    let running = scene.node()?;
    let outside = scene.outside()?;
    let done = running.exec(&HTTP, 1)?;
    assert_eq!(done.finished.stdout, "200", "{done:?} {:?} {}", gateway.lines(), gateway.stderr()?);
    let (ours, theirs) = (line(&done.log)?, line(&gateway.wait_for_lines(0, 1))?);
    assert_eq!(ours.field("UPSTREAM_HOST"), format!("{}:8444", FIRST.ip()));
    assert_eq!(theirs.field("UPSTREAM_HOST"), format!("{EXAMPLE_V4}:443"));
    assert_eq!(theirs.field("UPSTREAM_CLUSTER_RAW"), "outbound|443||v4.example.com");
    let before = outside.sent(OUTSIDE, EXAMPLE_V4);
    assert!(before > 0, "the control is seen");
    // Without a certificate: in plain text, and in TLS.
    let plain = format!("http://{}:8444/", FIRST.ip());
    let tls = format!("https://{}:8444/", FIRST.ip());
    for at in [plain, tls] {
        let none = world.curl(&["-skS", "-m5", "-H", "Host: v4.example.com", &at])?;
        assert_ne!(none.code, 0, "{at}: {none:?}");
    }
    assert_eq!(outside.sent(OUTSIDE, EXAMPLE_V4), before);
    assert_eq!(outside.sent(WORKLOAD_V4, EXAMPLE_V4), 0);
    Ok(())
}

/// `status` and `metrics` of a gateway that has a name, in both forms.
#[test]
fn a_gateway_with_a_name_tells_how_it_is() -> Result<()> {
    if !kernel_tests() {
        return Ok(());
    }
    let world = World::new()?;
    let scene = Scene::set(&world, &resources())?;
    let name = format!("gw-{}", std::process::id());
    let ask = |verb: &[&str]| -> Result<String> {
        let mut asking = world.command(binary());
        asking.args(verb).args(["--name", &name]);
        let done = world.output(&mut asking, Duration::from_secs(20))?;
        ensure!(done.code == 0, "{verb:?}: {done:?}");
        Ok(done.stdout)
    };
    let status =
        || -> Result<Value> { Ok(serde_json::from_str(&ask(&["status", "-o", "json"])?)?) };
    {
        let _gateway = scene.gateway(&["--name", &name])?;
        assert_eq!(comes_to(&world, "200")?, "200");
        let status = status()?;
        let at = [8080, 8443].map(|port| format!("{}:{port}", FIRST.ip()));
        assert_eq!(status["gateway"]["listens"], json!(at));
        assert_eq!(status["connections"]["total"], 1);
        assert_eq!(status["records"]["registered"], 1);
        let shown = ask(&["status"])?;
        assert!(shown.contains("gateway on") && !shown.contains("fast path"), "{shown}");
        let metrics = ask(&["metrics"])?;
        assert!(metrics.contains("interceptor_connections_total 1"), "{metrics}");
        // A change is counted, and one that is refused as well.
        fs::write(&scene.file, "kind: [")?;
        thread::sleep(Duration::from_millis(1500));
        assert_eq!(refused(&ask(&["status", "-o", "json"])?)?, 1);
    }
    assert!(ask(&["status"]).is_err(), "its socket goes with it");
    let nodes = "nodes: [{identity: node-1.nodes.test, workloads: [{namespace: default}]}]\n";
    let nodes = world.file("nodes.yaml", nodes)?;
    let flags = ["--outbound", "registry-only", "--nodes", &nodes, "--name", &name];
    let _gateway = scene.passage.start("gw-1.test", FIRST, &flags)?;
    let status = status()?;
    assert_eq!(status["gateway"]["listens"], json!([FIRST.to_string()]));
    assert_eq!(
        (&status["gateway"]["nodes"], &status["gateway"]["connected"]),
        (&json!(1), &json!(0))
    );
    Ok(())
}

/// Changes of the files that did not become policy.
fn refused(status: &str) -> Result<u64> {
    let status: Value = serde_json::from_str(status)?;
    ensure!(status["last_reload"]["accepted"] == false, "{}", status["last_reload"]);
    status["reloads"]["refused"].as_u64().context("a count")
}
