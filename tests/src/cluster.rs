//! A small Kubernetes API server on a real socket: it lists and watches what a test puts there, and can
//! be taken away and brought back.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use crate::world::World;

/// The kinds that it serves, as CustomResourceDefinitions are called, with their versions.
const DEFINED: [(&str, &str, &str); 7] = [
    ("serviceentries", "networking.istio.io", "v1"),
    ("workloadentries", "networking.istio.io", "v1"),
    ("virtualservices", "networking.istio.io", "v1"),
    ("destinationrules", "networking.istio.io", "v1"),
    ("sidecars", "networking.istio.io", "v1"),
    ("telemetries", "telemetry.istio.io", "v1"),
    ("interceptorconfigs", "egress.interceptor.io", "v1alpha1"),
];

/// The server. Dropping it ends it.
#[derive(Debug)]
pub struct Cluster {
    shared: Arc<Shared>,
    at: SocketAddr,
}

#[derive(Debug, Default)]
struct Shared {
    server: Mutex<Server>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Server {
    version: u64,
    /// By path (`api/v1/pods`), then by namespace and name.
    objects: BTreeMap<String, BTreeMap<(String, String), Value>>,
    history: Vec<Entry>,
    /// Events that were written.
    events: Vec<Value>,
    is_down: bool,
    has_ended: bool,
}

#[derive(Clone, Debug)]
struct Entry {
    version: u64,
    path: String,
    kind: &'static str,
    object: Value,
}

impl Cluster {
    /// Starts it on loopback of the world's workload namespace, which is the node.
    ///
    /// # Errors
    /// When it can't listen.
    pub fn start(world: &World) -> Result<Self> {
        let listener = world.workload.inside(|| TcpListener::bind("127.0.0.1:0"))??;
        let at = listener.local_addr()?;
        let shared = Arc::new(Shared::default());
        let cluster = Self { shared: Arc::clone(&shared), at };
        for (plural, group, _) in DEFINED {
            let name = format!("{plural}.{group}");
            let definition = json!({"metadata": {"name": name}});
            cluster.put("apis/apiextensions.k8s.io/v1/customresourcedefinitions", definition);
        }
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                if shared.lock().has_ended {
                    return;
                }
                let shared = Arc::clone(&shared);
                // A client that goes away is no failure.
                thread::spawn(move || serve(&shared, &stream).ok());
            }
        });
        Ok(cluster)
    }

    /// A kubeconfig that leads to it.
    #[must_use]
    pub fn kubeconfig(&self) -> String {
        format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: c\n\
             clusters: [{{name: c, cluster: {{server: 'http://{}'}}}}]\n\
             users: [{{name: u, user: {{}}}}]\n\
             contexts: [{{name: c, context: {{cluster: c, user: u}}}}]\n",
            self.at
        )
    }

    /// Creates or changes an object at a path such as `api/v1/pods`.
    pub fn put(&self, path: &str, mut object: Value) {
        let mut server = self.shared.lock();
        server.version += 1;
        object["metadata"]["resourceVersion"] = json!(server.version.to_string());
        let known = server.objects.entry(path.to_owned()).or_default();
        let known = known.insert(name_of(&object), object.clone()).is_some();
        server.happened(path, if known { "MODIFIED" } else { "ADDED" }, object);
        self.shared.changed.notify_all();
    }

    /// Creates or changes an object where its `apiVersion` and `kind` say; of Istio's in the one version
    /// that is served here. Without a namespace it is in `default`.
    ///
    /// # Errors
    /// When nobody knows where objects of its kind are.
    pub fn apply(&self, mut object: Value) -> Result<()> {
        let kind = object["kind"].as_str().context("a kind")?;
        let plural = match kind {
            "ServiceEntry" => "serviceentries",
            "WorkloadEntry" => "workloadentries",
            "VirtualService" => "virtualservices",
            "DestinationRule" => "destinationrules",
            "Sidecar" => "sidecars",
            "Telemetry" => "telemetries",
            "Gateway" => "gateways",
            "Service" => "services",
            "EndpointSlice" => "endpointslices",
            "Secret" => "secrets",
            "ConfigMap" => "configmaps",
            "Namespace" => "namespaces",
            "Pod" => "pods",
            other => bail!("nothing is known of {other}"),
        };
        let version = object["apiVersion"].as_str().unwrap_or("v1").to_owned();
        let path = match version.split_once('/') {
            None => format!("api/{version}/{plural}"),
            Some((group, _)) => {
                object["apiVersion"] = json!(format!("{group}/v1"));
                format!("apis/{group}/v1/{plural}")
            }
        };
        if kind_has_namespace(&object) && object["metadata"]["namespace"].is_null() {
            object["metadata"]["namespace"] = json!("default");
        }
        self.put(&path, object);
        Ok(())
    }

    /// Takes an object away.
    pub fn delete(&self, path: &str, namespace: &str, name: &str) {
        let mut server = self.shared.lock();
        let name = (namespace.to_owned(), name.to_owned());
        let objects = server.objects.get_mut(path);
        if let Some(object) = objects.and_then(|objects| objects.remove(&name)) {
            server.version += 1;
            server.happened(path, "DELETED", object);
        }
        self.shared.changed.notify_all();
    }

    /// An object as it is now.
    #[must_use]
    pub fn object(&self, path: &str, namespace: &str, name: &str) -> Option<Value> {
        let name = (namespace.to_owned(), name.to_owned());
        self.shared.lock().objects.get(path)?.get(&name).cloned()
    }

    /// The Events that were written.
    #[must_use]
    pub fn events(&self) -> Vec<Value> {
        self.shared.lock().events.clone()
    }

    /// Answers nothing any more, and ends what is under way; or answers again.
    pub fn set_down(&self, is_down: bool) {
        self.shared.lock().is_down = is_down;
        self.shared.changed.notify_all();
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.shared.lock().has_ended = true;
        self.set_down(true);
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Server> {
        self.server.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Server {
    fn happened(&mut self, path: &str, kind: &'static str, object: Value) {
        let version = self.version;
        self.history.push(Entry { version, path: path.to_owned(), kind, object });
    }
}

fn kind_has_namespace(object: &Value) -> bool {
    object["kind"] != "Namespace"
}

fn name_of(object: &Value) -> (String, String) {
    let text = |field: &str| object["metadata"][field].as_str().unwrap_or_default().to_owned();
    (text("namespace"), text("name"))
}

/// One connection: requests, one after the other.
fn serve(shared: &Shared, stream: &TcpStream) -> Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line)? == 0 {
            return Ok(());
        }
        let (mut header, mut length) = (String::new(), 0);
        while reader.read_line(&mut header)? > 2 {
            if let Some((name, value)) = header.split_once(':')
                && name.eq_ignore_ascii_case("content-length")
            {
                length = value.trim().parse()?;
            }
            header.clear();
        }
        let mut body = vec![0; length];
        reader.read_exact(&mut body)?;
        if shared.lock().is_down {
            return Ok(());
        }
        let target = line.split(' ').nth(1).context("a request line")?;
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        let path = path.trim_matches('/');
        if length > 0 {
            write(shared, stream, path, &serde_json::from_slice(&body)?)?;
            continue;
        }
        let query: BTreeMap<_, _> = query
            .split('&')
            .filter_map(|pair| pair.trim_start_matches('?').split_once('='))
            .collect();
        match query.get("watch") {
            Some(_) => return watch(shared, stream, path, &query),
            None => answer(shared, stream, path)?,
        }
    }
}

/// A status that is patched, or an Event.
fn write(shared: &Shared, mut stream: &TcpStream, path: &str, body: &Value) -> Result<()> {
    let mut parts: Vec<_> = path.split('/').collect();
    let mut answer = body.clone();
    if parts.last() == Some(&"status") {
        parts.pop();
        let name = parts.pop().context("a name")?.to_owned();
        let parts = parts.join("/");
        let (path, namespace) = of_namespace(&parts);
        let name = (namespace.unwrap_or_default().to_owned(), name);
        let mut server = shared.lock();
        let known = server.objects.get(&path).and_then(|objects| objects.get(&name));
        let mut object = known.context("an object that is there")?.clone();
        object["status"] = body["status"].clone();
        server.version += 1;
        object["metadata"]["resourceVersion"] = json!(server.version.to_string());
        server.objects.entry(path.clone()).or_default().insert(name, object.clone());
        server.happened(&path, "MODIFIED", object.clone());
        shared.changed.notify_all();
        answer = object;
    } else {
        shared.lock().events.push(body.clone());
    }
    let answer = answer.to_string();
    write!(
        stream,
        "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{answer}",
        answer.len()
    )?;
    Ok(())
}

/// A list, or what a group serves.
fn answer(shared: &Shared, mut stream: &TcpStream, path: &str) -> Result<()> {
    let group: Vec<_> = path.split('/').collect();
    let body = if let ["apis", group, version] = group[..] {
        let served =
            DEFINED.iter().filter(|(_, of, in_version)| *of == group && version == *in_version);
        let resources: Vec<_> = served
            .map(|(plural, ..)| {
                json!({"name": plural, "singularName": "", "namespaced": true, "kind": "", "verbs": []})
            })
            .collect();
        json!({"kind": "APIResourceList", "apiVersion": "v1",
            "groupVersion": format!("{group}/{version}"), "resources": resources})
    } else {
        let server = shared.lock();
        let (path, namespace) = of_namespace(path);
        let objects = server.objects.get(&path).into_iter().flatten();
        let fits = |name: &(String, String)| namespace.is_none_or(|ours| name.0 == ours);
        let items: Vec<_> = objects.filter(|(name, _)| fits(name)).map(|(_, one)| one).collect();
        json!({"kind": "List", "apiVersion": "v1", "items": items,
            "metadata": {"resourceVersion": server.version.to_string()}})
    };
    let body = body.to_string();
    write!(
        stream,
        "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )?;
    Ok(())
}

/// `api/v1/namespaces/shop/pods` is `api/v1/pods` of a namespace.
fn of_namespace(path: &str) -> (String, Option<&str>) {
    match path
        .split_once("/namespaces/")
        .and_then(|(group, rest)| Some((group, rest.split_once('/')?)))
    {
        Some((group, (namespace, plural))) => (format!("{group}/{plural}"), Some(namespace)),
        None => (path.to_owned(), None),
    }
}

/// What happens from a version on, until the server goes down or the client away.
fn watch(
    shared: &Shared,
    mut stream: &TcpStream,
    path: &str,
    query: &BTreeMap<&str, &str>,
) -> Result<()> {
    let mut from: u64 = query.get("resourceVersion").context("a version")?.parse()?;
    let (path, namespace) = of_namespace(path);
    stream.write_all(
        b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n",
    )?;
    loop {
        let news: Vec<Entry> = {
            let server = shared.lock();
            let wait = Duration::from_secs(1);
            let none_yet = |server: &mut Server| !server.is_down && server.version <= from;
            let waited = shared.changed.wait_timeout_while(server, wait, none_yet);
            let (server, _) = waited.unwrap_or_else(PoisonError::into_inner);
            if server.is_down {
                return Ok(());
            }
            let seen = std::mem::replace(&mut from, server.version);
            let news = server.history.iter().filter(|one| one.version > seen && one.path == path);
            let ours = |one: &&Entry| namespace.is_none_or(|ours| name_of(&one.object).0 == ours);
            news.filter(ours).cloned().collect()
        };
        for Entry { kind, object, .. } in news {
            let line = format!("{}\n", json!({"type": kind, "object": object}));
            write!(stream, "{:x}\r\n{line}\r\n", line.len())?;
        }
    }
}
