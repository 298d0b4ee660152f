//! What the node agent takes: processor time and memory for so many pods and ServiceEntries, and for so
//! many changes of endpoints, which an API server in this process gives it. docs/scale.md has the
//! figures.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use std::{fs, thread};

use anyhow::{Context as _, Result, bail, ensure};
use bytes::Bytes;
use clap::Parser;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use interceptor_tests::node::Node;
use interceptor_tests::world::World;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::UnboundedReceiverStream;

/// Measures the node agent.
#[derive(Parser)]
struct Args {
    /// The program.
    #[arg(long)]
    interceptor: PathBuf,
    /// ServiceEntries, with four hosts each.
    #[arg(long, value_delimiter = ',', default_value = "100,10000")]
    entries: Vec<usize>,
    /// Pods of the node.
    #[arg(long, value_delimiter = ',', default_value = "10,100,250")]
    pods: Vec<usize>,
    /// Namespaces over which both are spread.
    #[arg(long, default_value_t = 20)]
    namespaces: usize,
    /// Services with one EndpointSlice each.
    #[arg(long, default_value_t = 500)]
    services: usize,
    /// Seconds of changes, ten EndpointSlices a second.
    #[arg(long, default_value_t = 10)]
    seconds: u64,
    /// Make the pods, each with a network namespace, a link and a process, and have them covered: needs root,
    /// and at most 250.
    #[arg(long)]
    cover: bool,
    /// Put the table into this file, between the lines `<!-- interceptor-scale -->` and
    /// `<!-- interceptor-scale end -->`.
    #[arg(long, value_name = "FILE")]
    write: Option<PathBuf>,
}

/// Pods that a node of the harness has networks for.
const MOST_PODS: usize = 250;
const BEGIN: &str = "<!-- interceptor-scale -->\n";
const END: &str = "<!-- interceptor-scale end -->";

const HEAD: &str = "| entries | pods | in force, s | covered, s | CPU, s | RSS, MiB | peak, MiB | state, KiB | \
                    listed, KiB | ten changes a second, % of a core |\n|---|---|---|---|---|---|---|---|---|---|";

const NODE: &str = "node-1";
const GROUPS: [(&str, &[&str]); 2] = [
    (
        "networking.istio.io/v1",
        &["serviceentries", "workloadentries", "virtualservices", "destinationrules", "sidecars"],
    ),
    ("telemetry.istio.io/v1", &["telemetries"]),
];

/// How long it may take until a policy is in force.
const PATIENCE: Duration = Duration::from_secs(300);
/// Changed EndpointSlices in a second.
const CHANGES: u64 = 10;

fn main() -> Result<()> {
    let args = Args::parse();
    if args.cover && args.pods.iter().any(|pods| !(1..=MOST_PODS).contains(pods)) {
        bail!("--cover: 1 to {MOST_PODS} pods");
    }
    // Before hours are spent.
    args.write.as_deref().map(|file| with_table(file, "")).transpose()?;
    let mut table = HEAD.to_owned();
    println!("{table}");
    for entries in &args.entries {
        for pods in &args.pods {
            let row = if args.cover {
                measure_covered(&args, *entries, *pods)?
            } else {
                measure(&args, *entries, *pods)?
            };
            println!("{row}");
            table = format!("{table}\n{row}");
            // What was measured is there even if the next size is too much.
            if let Some(file) = &args.write {
                fs::write(file, with_table(file, &table)?)?;
            }
        }
    }
    Ok(())
}

/// A file's text with this table in its place.
fn with_table(file: &Path, table: &str) -> Result<String> {
    let text = fs::read_to_string(file).with_context(|| file.display().to_string())?;
    let places = text.split_once(BEGIN).and_then(|(before, rest)| {
        rest.split_once(END).map(|(_, after)| format!("{before}{BEGIN}{table}\n{END}{after}"))
    });
    places.with_context(|| format!("{} has no place for the table", file.display()))
}

/// With pods that are there.
fn measure_covered(args: &Args, entries: usize, pods: usize) -> Result<String> {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let world = World::bare()?;
    // As the node's processes reach it.
    let listener = world.workload.inside(|| std::net::TcpListener::bind("127.0.0.1:0"))??;
    listener.set_nonblocking(true)?;
    let kubeconfig = config(&listener.local_addr()?.to_string());
    let flags = ["--default-mode", "enforce", "--outbound", "registry-only"];
    let mut node = Node::with(&world, &args.interceptor, &kubeconfig, &flags)?;
    let mut server = Server::new(args, entries, pods);
    let listed = server.lists.get_mut(&("v1".to_owned(), "pods".to_owned())).context("pods")?;
    let mut made = Vec::new();
    for (number, object) in listed.iter_mut().enumerate() {
        let [namespace, name] = ["namespace", "name"]
            .map(|field| object["metadata"][field].as_str().unwrap_or_default().to_owned());
        let mut pod = node.pod(u8::try_from(number + 1)?, &namespace, &name)?;
        // Its cgroup is called by it.
        object["metadata"]["uid"] = pod.object()["metadata"]["uid"].clone();
        made.push(pod);
    }
    for pod in &made {
        pod.until_up()?;
    }
    let server = Arc::new(server);
    let listener = runtime.block_on(async { TcpListener::from_std(listener) })?;
    runtime.spawn(serve(listener, Arc::clone(&server)));
    let begun = Instant::now();
    node.start()?;
    let agent = Process { id: node.pid()? };
    while !node.said().contains("interceptor: covering ") {
        ensure!(begun.elapsed() < PATIENCE, "it never attached: {}", node.said());
        thread::sleep(Duration::from_millis(20));
    }
    let in_force = begun.elapsed();
    let covered = loop {
        let status = node.verb(&["status", "-o", "json"])?;
        let report: Value = serde_json::from_str(&status.stdout).unwrap_or_default();
        if report["namespaces"].as_array().is_some_and(|all| all.len() == pods) {
            break begun.elapsed();
        }
        ensure!(begun.elapsed() < PATIENCE, "not all are covered: {}", node.said());
        thread::sleep(Duration::from_millis(50));
    };
    finish(args, &server, &agent, &world.dir().join("state"), [entries, pods], [in_force, covered])
}

fn measure(args: &Args, entries: usize, pods: usize) -> Result<String> {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let server = Arc::new(Server::new(args, entries, pods));
    let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0"))?;
    let address = listener.local_addr()?;
    runtime.spawn(serve(listener, Arc::clone(&server)));

    let directory = tempfile::tempdir()?;
    let kubeconfig = directory.path().join("config");
    fs::write(&kubeconfig, config(&address.to_string()))?;
    let state = directory.path().join("state");
    let begun = Instant::now();
    let mut agent = Agent::start(&args.interceptor, &kubeconfig, &state)?;
    // Said when everything is known and compiled.
    agent.wait_for("waiting for the pods' cgroup")?;
    let in_force = begun.elapsed();
    let process = Process { id: agent.child.id() };
    finish(args, &server, &process, &state, [entries, pods], [in_force, Duration::ZERO])
}

/// What an agent takes from here on, and took so far. `took`: until policy was in force, and pods covered.
fn finish(
    args: &Args,
    server: &Server,
    agent: &Process,
    state: &Path,
    [entries, pods]: [usize; 2],
    took: [Duration; 2],
) -> Result<String> {
    // The state is written, freed memory given back.
    thread::sleep(Duration::from_secs(12));
    let (settled, memory, peak) = (agent.cpu()?, agent.status("VmRSS:")?, agent.status("VmHWM:")?);
    let kept: u64 =
        fs::read_dir(state)?.map(|file| Ok(file?.metadata()?.len())).sum::<Result<_>>()?;

    let before = agent.cpu()?;
    let churn = Instant::now();
    for number in 0..args.seconds * CHANGES {
        server.change(number);
        let next = churn + Duration::from_millis(1000 / CHANGES) * (number as u32 + 1);
        thread::sleep(next.saturating_duration_since(Instant::now()));
    }
    let busy = (agent.cpu()? - before).as_secs_f64() / churn.elapsed().as_secs_f64() * 100.0;
    let listed = *server.sent.lock().expect("no thread panics with it");
    let [in_force, covered] = took.map(|took| match took {
        Duration::ZERO => "-".to_owned(),
        took => format!("{:.2}", took.as_secs_f64()),
    });
    Ok(format!(
        "| {entries} | {pods} | {in_force} | {covered} | {:.2} | {:.1} | {:.1} | {} | {} | {busy:.1} |",
        settled.as_secs_f64(),
        memory as f64 / 1024.0,
        peak as f64 / 1024.0,
        kept / 1024,
        listed / 1024,
    ))
}

fn config(address: &str) -> String {
    json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "c",
        "clusters": [{"name": "c", "cluster": {"server": format!("http://{address}")}}],
        "users": [{"name": "c", "user": {}}],
        "contexts": [{"name": "c", "context": {"cluster": "c", "user": "c"}}],
    })
    .to_string()
}

/// The agent, ended with the value.
struct Agent {
    child: Child,
    said: PathBuf,
}

impl Agent {
    fn start(program: &Path, kubeconfig: &Path, state: &Path) -> Result<Self> {
        let said = kubeconfig.with_file_name("said");
        let mut command = Command::new(program);
        command.args(["agent", "--node", NODE, "--default-mode", "enforce"]);
        // Nothing of this machine is to be covered: there is no such cgroup.
        command.args(["--name", "scale", "--cgroup-root", "/interceptor-scale"]);
        command.arg("--state-dir").arg(state);
        command.arg("--secrets-dir").arg(kubeconfig.with_file_name("secrets"));
        command.env("KUBECONFIG", kubeconfig).stdin(Stdio::null());
        let child = command.stderr(fs::File::create(&said)?).spawn()?;
        Ok(Self { child, said })
    }

    fn wait_for(&mut self, words: &str) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let said = fs::read_to_string(&self.said)?;
            if said.contains(words) {
                return Ok(());
            }
            if Instant::now() > deadline || self.child.try_wait()?.is_some() {
                bail!("the agent did not say {words:?}, but:\n{said}");
            }
            thread::sleep(Duration::from_millis(20));
        }
    }
}

/// A process by its number.
struct Process {
    id: u32,
}

impl Process {
    /// Processor time so far.
    fn cpu(&self) -> Result<Duration> {
        let text = fs::read_to_string(format!("/proc/{}/stat", self.id))?;
        let (_, fields) = text.rsplit_once(") ").context("/proc/PID/stat")?;
        let fields: Vec<_> = fields.split(' ').collect();
        let ticks: u64 = fields[11].parse::<u64>()? + fields[12].parse::<u64>()?;
        // USER_HZ is 100 wherever Linux runs these days.
        Ok(Duration::from_millis(ticks * 10))
    }

    /// A number of /proc/PID/status, in KiB.
    fn status(&self, name: &str) -> Result<u64> {
        let text = fs::read_to_string(format!("/proc/{}/status", self.id))?;
        let line = text.lines().find_map(|line| line.strip_prefix(name)).context("no such line")?;
        Ok(line.trim().trim_end_matches(" kB").parse()?)
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

type Answer = Response<BoxBody<Bytes, Infallible>>;

/// Lists, and watches on which nothing comes but changed EndpointSlices.
struct Server {
    /// By group and version, and plural.
    lists: BTreeMap<(String, String), Vec<Value>>,
    watches: Mutex<Vec<mpsc::UnboundedSender<Bytes>>>,
    /// Bytes of lists and events so far.
    sent: Mutex<u64>,
}

impl Server {
    fn new(args: &Args, entries: usize, pods: usize) -> Self {
        let namespace = |number: usize| format!("ns-{}", number % args.namespaces);
        let mut lists = BTreeMap::new();
        let mut put = |group: &str, plural: &str, objects: Vec<Value>| {
            lists.insert((group.to_owned(), plural.to_owned()), objects);
        };
        let all = 0..args.namespaces;
        let spaces =
            all.map(|n| json!({"metadata": {"name": namespace(n), "resourceVersion": "1"}}));
        put("v1", "namespaces", spaces.collect());
        put("v1", "pods", (0..pods).map(|number| pod(number, &namespace(number))).collect());
        let one = |number| service_entry(number, &namespace(number));
        put("networking.istio.io/v1", "serviceentries", (0..entries).map(one).collect());
        let one = |number| service(number, &namespace(number));
        put("v1", "services", (0..args.services).map(one).collect());
        let one = |number| slice(number, &namespace(number), 0);
        put("discovery.k8s.io/v1", "endpointslices", (0..args.services).map(one).collect());
        let kinds = GROUPS.iter().flat_map(|(group, plurals)| {
            let group = group.trim_end_matches("/v1");
            plurals.iter().map(move |plural| json!({"metadata": {"name": format!("{plural}.{group}"), "resourceVersion": "1"}}))
        });
        put("apiextensions.k8s.io/v1", "customresourcedefinitions", kinds.collect());
        Self { lists, watches: Mutex::default(), sent: Mutex::default() }
    }

    fn count(&self, bytes: usize) {
        *self.sent.lock().expect("no thread panics with it") += bytes as u64;
    }

    /// An endpoint comes or goes.
    fn change(&self, number: u64) {
        let slices = &self.lists[&("discovery.k8s.io/v1".to_owned(), "endpointslices".to_owned())];
        let at = number as usize % slices.len();
        let namespace = slices[at]["metadata"]["namespace"].as_str().expect("a namespace of ours");
        let event = json!({"type": "MODIFIED", "object": slice(at, namespace, number + 1)});
        let line = Bytes::from(format!("{event}\n"));
        let mut watches = self.watches.lock().expect("no thread panics with it");
        watches.retain(|watch| watch.send(line.clone()).is_ok());
        self.count(line.len() * watches.len());
    }

    fn answer(&self, request: &Request<Incoming>) -> Answer {
        let path = request.uri().path().trim_matches('/').to_owned();
        let query = request.uri().query().unwrap_or_default();
        let parameter = |name: &str| {
            let mut pairs = query.split('&').filter_map(|pair| pair.split_once('='));
            pairs.find(|(key, _)| *key == name).map(|(_, value)| value)
        };
        let parts: Vec<&str> = path.split('/').collect();
        let (group, rest) = match parts.as_slice() {
            ["api", version, rest @ ..] => ((*version).to_owned(), rest),
            ["apis", group, version, rest @ ..] => (format!("{group}/{version}"), rest),
            _ => return full(StatusCode::NOT_FOUND, "{}".into()),
        };
        let Some(plural) = rest.last() else {
            let plurals = GROUPS.iter().find(|(name, _)| *name == group).map(|(_, all)| *all);
            let one = |name: &&str| json!({"name": name, "singularName": "", "namespaced": true, "kind": "", "verbs": []});
            let resources: Vec<_> = plurals.unwrap_or_default().iter().map(one).collect();
            let list = json!({"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": group, "resources": resources});
            let code = if plurals.is_some() { StatusCode::OK } else { StatusCode::NOT_FOUND };
            return full(code, list.to_string());
        };
        if matches!(parameter("watch"), Some("true" | "1")) {
            let (out, lines) = mpsc::unbounded_channel();
            // The others' lines never come, and their channel stays open with the connection.
            let mut watches = self.watches.lock().expect("no thread panics with it");
            if *plural == "endpointslices" {
                watches.push(out);
            } else {
                std::mem::forget(out);
            }
            let lines = UnboundedReceiverStream::new(lines);
            return Response::new(BodyExt::boxed(StreamBody::new(
                lines.map(|line| Ok(Frame::data(line))),
            )));
        }
        let none = Vec::new();
        // A request for one namespace is for the mesh configuration, which is not there.
        let objects = self.lists.get(&(group.clone(), (*plural).to_owned())).unwrap_or(&none);
        let start: usize = parameter("continue").and_then(|at| at.parse().ok()).unwrap_or(0);
        let limit: usize =
            parameter("limit").and_then(|most| most.parse().ok()).unwrap_or(usize::MAX);
        let end = objects.len().min(start.saturating_add(limit));
        let next = if end < objects.len() { end.to_string() } else { String::new() };
        let mut items = String::new();
        for object in &objects[start..end] {
            let comma = if items.is_empty() { "" } else { "," };
            // Writing to a string cannot fail.
            let _ = write!(items, "{comma}{object}");
        }
        let body = format!(
            r#"{{"kind":"List","apiVersion":"{group}","metadata":{{"resourceVersion":"1","continue":"{next}"}},"items":[{items}]}}"#
        );
        self.count(body.len());
        full(StatusCode::OK, body)
    }
}

fn full(code: StatusCode, body: String) -> Answer {
    let mut response = Response::new(BodyExt::boxed(Full::new(Bytes::from(body))));
    *response.status_mut() = code;
    response
}

async fn serve(listener: TcpListener, server: Arc<Server>) {
    while let Ok((client, _)) = listener.accept().await {
        let server = Arc::clone(&server);
        let service = service_fn(move |request| {
            let answer = server.answer(&request);
            async move { Ok::<_, Infallible>(answer) }
        });
        tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(client), service));
    }
}

fn pod(number: usize, namespace: &str) -> Value {
    let environment: Vec<_> =
        (0..20).map(|n| json!({"name": format!("VARIABLE_{n}"), "value": "some value"})).collect();
    json!({
        "metadata": {"name": format!("pod-{number}"), "namespace": namespace, "resourceVersion": "1",
            "uid": format!("00000000-0000-0000-0000-{number:012}"),
            "labels": {"app": format!("app-{}", number % 50), "pod-template-hash": format!("{number:08x}")}},
        "spec": {"nodeName": NODE, "serviceAccountName": "default",
            "containers": [{"name": "main", "image": "registry.example/app:1", "env": environment}]},
        "status": {"phase": "Running", "qosClass": "Burstable", "podIP": "10.0.0.1",
            "containerStatuses": [{"name": "main", "containerID": format!("containerd://{number:064x}")}]},
    })
}

fn service_entry(number: usize, namespace: &str) -> Value {
    let hosts: Vec<_> = (0..4).map(|n| format!("host-{n}.site-{number}.example.com")).collect();
    json!({
        "metadata": {"name": format!("entry-{number}"), "namespace": namespace, "resourceVersion": "1",
            "uid": format!("10000000-0000-0000-0000-{number:012}"), "generation": 1,
            "creationTimestamp": "2026-01-01T00:00:00Z",
            "managedFields": [{"manager": "kubectl", "operation": "Update", "fieldsType": "FieldsV1",
                "fieldsV1": {"f:spec": {"f:hosts": {}, "f:ports": {}, "f:resolution": {}, "f:exportTo": {}}}}]},
        "spec": {"hosts": hosts, "resolution": "DNS", "exportTo": if number.is_multiple_of(10) { ["*"] } else { ["."] },
            "ports": [{"number": 443, "name": "tls", "protocol": "TLS"}]},
    })
}

fn service(number: usize, namespace: &str) -> Value {
    json!({
        "metadata": {"name": format!("service-{number}"), "namespace": namespace, "resourceVersion": "1"},
        "spec": {"clusterIP": format!("10.96.{}.{}", number / 250, number % 250 + 1), "type": "ClusterIP",
            "ports": [{"name": "http", "port": 80, "protocol": "TCP", "targetPort": 8080}]},
    })
}

/// With ten endpoints, of which one has an address of this `round`.
fn slice(number: usize, namespace: &str, round: u64) -> Value {
    let address = |n: usize| match n {
        0 => format!("10.200.{}.{}", round / 250 % 250, round % 250 + 1),
        n => format!("10.{}.{}.{}", 100 + number / 250, number % 250, n),
    };
    let endpoint = |n| {
        json!({"addresses": [address(n)], "conditions": {"ready": true, "serving": true, "terminating": false},
        "nodeName": format!("node-{n}"), "zone": "zone-a",
        "targetRef": {"kind": "Pod", "namespace": namespace, "name": format!("pod-{n}"), "uid": "00000000-0000-0000-0000-000000000000"}})
    };
    json!({
        "metadata": {"name": format!("service-{number}-x"), "namespace": namespace,
            "resourceVersion": (round + 1).to_string(),
            "labels": {"kubernetes.io/service-name": format!("service-{number}")}},
        "addressType": "IPv4", "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}],
        "endpoints": (0..10).map(endpoint).collect::<Vec<_>>(),
    })
}
