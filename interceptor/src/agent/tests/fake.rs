//! An API server in the process: a tower service under a real `kube::Client`. It lists in pages,
//! watches with a history, and can be told to misbehave.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::convert::Infallible;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::StreamBody;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::Frame;
use kube::Client;
use kube::client::Body;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio_stream::StreamExt as _;

use super::super::kinds::Kind;

#[path = "fake_writes.rs"]
mod writes;

/// The server. Clones are the same one.
#[derive(Clone, Default)]
pub(crate) struct Fake(Arc<Mutex<Server>>);

#[derive(Default)]
struct Server {
    version: u64,
    /// By API group, version and plural, then by namespace and name.
    objects: BTreeMap<Path, BTreeMap<(String, String), Value>>,
    /// What the server serves of Istio's.
    served: BTreeSet<Path>,
    history: Vec<Entry>,
    /// Versions below this are gone.
    compacted: u64,
    watches: Vec<Watching>,
    /// Answers that go before all others, by plural.
    faults: VecDeque<(String, Fault)>,
    /// Nothing at all is answered with anything but 503.
    is_down: bool,
    /// Verbs and plurals that access reviews say no to.
    denied: BTreeSet<(String, String)>,
    log: Vec<String>,
    written: Vec<Value>,
    /// What Events are answered with.
    events: Option<u16>,
}

/// API group and version (`networking.istio.io/v1`, `v1`), and plural.
type Path = (String, String);

struct Entry {
    version: u64,
    path: Path,
    kind: &'static str,
    object: Value,
}

struct Watching {
    path: Path,
    selected: Selected,
    out: mpsc::UnboundedSender<Result<Frame<Bytes>, std::io::Error>>,
}

/// What a request's path and selector leave.
#[derive(Clone, Default)]
struct Selected {
    namespace: Option<String>,
    name: Option<String>,
    node: Option<String>,
}

/// One answer that is not as it should be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fault {
    /// To a list.
    List(u16),
    /// To the second page of a list.
    Page(u16),
    /// To a watch, before it begins.
    Watch(u16),
    /// To what is written.
    Write(u16),
}

type Answer = Response<BoxBody<Bytes, std::io::Error>>;

impl Fake {
    /// One that has Istio's kinds, each in its newest version.
    pub(crate) fn with_istio() -> Self {
        let fake = Self::default();
        for kind in Kind::ALL.into_iter().filter(|kind| kind.is_custom()) {
            fake.define(kind, kind.versions()[0]);
        }
        fake
    }

    pub(crate) fn client(&self) -> Client {
        let fake = self.clone();
        let service = tower::service_fn(move |request: Request<Body>| {
            let fake = fake.clone();
            async move {
                let answer = match request.uri().path().ends_with("/selfsubjectaccessreviews") {
                    true => fake.review(request).await,
                    false if request.method() == http::Method::GET => fake.answer(&request),
                    false => fake.write(request).await,
                };
                Ok::<_, Infallible>(answer)
            }
        });
        Client::new(service, "default")
    }

    /// From here on an access review says no to this.
    pub(crate) fn deny(&self, verb: &str, plural: &str) {
        self.lock().denied.insert((verb.to_owned(), plural.to_owned()));
    }

    /// Whether what a review asks for is allowed.
    async fn review(&self, request: Request<Body>) -> Answer {
        let body = request.into_body().collect().await.expect("a body of ours").to_bytes();
        let mut review: Value = serde_json::from_slice(&body).expect("JSON");
        let asked = |field: &str| {
            let value = review["spec"]["resourceAttributes"][field].as_str();
            value.unwrap_or_default().to_owned()
        };
        let is_denied = self.lock().denied.contains(&(asked("verb"), asked("resource")));
        review["status"] = json!({"allowed": !is_denied});
        full(StatusCode::CREATED, &review)
    }

    /// Adds a custom resource definition, and serves it.
    pub(super) fn define(&self, kind: Kind, version: &str) {
        let definition = format!("{}.{}", kind.plural(), kind.group());
        let group = format!("{}/{version}", kind.group());
        self.lock().served.insert((group, kind.plural().to_owned()));
        self.put_at(
            &("apiextensions.k8s.io/v1".to_owned(), "customresourcedefinitions".to_owned()),
            json!({"metadata": {"name": definition}}),
        );
    }

    /// Takes a custom resource definition away, and its objects.
    pub(crate) fn undefine(&self, kind: Kind) {
        let plural = kind.plural();
        self.lock().served.retain(|(_, served)| served != plural);
        self.lock().objects.retain(|(_, held), _| held != plural);
        self.lock().watches.retain(|watch| watch.path.1 != plural);
        let path = ("apiextensions.k8s.io/v1".to_owned(), "customresourcedefinitions".to_owned());
        self.delete_at(&path, "", &format!("{plural}.{}", kind.group()));
    }

    /// Creates or changes an object, as its `apiVersion` and `kind` say.
    pub(crate) fn put(&self, object: Value) {
        let kind = object["kind"].as_str().expect("a kind");
        let kind = Kind::ALL.into_iter().find(|one| one.name() == kind).expect("a known kind");
        let group = object["apiVersion"].as_str().expect("a version").to_owned();
        self.put_at(&(group, kind.plural().to_owned()), object);
    }

    pub(super) fn delete(&self, kind: Kind, namespace: &str, name: &str) {
        let group = match kind.group() {
            "" => "v1".to_owned(),
            group => format!("{group}/{}", kind.versions()[0]),
        };
        self.delete_at(&(group, kind.plural().to_owned()), namespace, name);
    }

    fn put_at(&self, path: &Path, mut object: Value) {
        let mut server = self.lock();
        server.version += 1;
        object["metadata"]["resourceVersion"] = json!(server.version.to_string());
        let name = name_of(&object);
        let known = server.objects.entry(path.clone()).or_default();
        if path.0.contains(".io/") && object.get("spec").is_some() {
            let before = known.get(&name);
            let generation = before.and_then(|one| one["metadata"]["generation"].as_i64());
            let same = before.is_some_and(|one| one["spec"] == object["spec"]);
            let generation = generation.unwrap_or(0) + i64::from(!same);
            object["metadata"]["generation"] = json!(generation);
            object["metadata"]["uid"] = json!(format!("{}-{}", name.0, name.1));
        }
        let kind = if known.insert(name, object.clone()).is_some() { "MODIFIED" } else { "ADDED" };
        server.happened(path, kind, object);
    }

    fn delete_at(&self, path: &Path, namespace: &str, name: &str) {
        let mut server = self.lock();
        let name = (namespace.to_owned(), name.to_owned());
        let objects = server.objects.get_mut(path).expect("the kind");
        let mut object = objects.remove(&name).expect("the object");
        server.version += 1;
        object["metadata"]["resourceVersion"] = json!(server.version.to_string());
        server.happened(path, "DELETED", object);
    }

    /// Takes an object away without a word to those who watch.
    pub(super) fn lose(&self, kind: Kind, namespace: &str, name: &str) {
        let name = (namespace.to_owned(), name.to_owned());
        for ((_, plural), objects) in &mut self.lock().objects {
            if plural == kind.plural() {
                objects.remove(&name);
            }
        }
    }

    /// From here on everything is answered as it should be.
    pub(super) fn fault_no_more(&self) {
        self.lock().faults.clear();
    }

    /// Answers the next fitting request for `plural` so.
    pub(super) fn fail(&self, kind: Kind, fault: Fault) {
        self.lock().faults.push_back((kind.plural().to_owned(), fault));
    }

    /// Answers each request for an Event so.
    pub(super) fn fail_events(&self, code: u16) {
        self.lock().events = Some(code);
    }

    /// Ends every watch; what comes after has another connection.
    pub(super) fn disconnect(&self) {
        for watch in std::mem::take(&mut self.lock().watches) {
            let _ = watch.out.send(Err(std::io::ErrorKind::ConnectionReset.into()));
        }
    }

    /// Whether anything is answered.
    pub(crate) fn set_down(&self, is_down: bool) {
        self.lock().is_down = is_down;
        if is_down {
            self.disconnect();
        }
    }

    /// Forgets its history: who watches from an older version is told 410.
    pub(super) fn compact(&self) {
        let mut server = self.lock();
        server.version += 1;
        server.compacted = server.version;
        server.history.clear();
    }

    /// Sends a line within the running watches of a kind.
    pub(super) fn stream(&self, kind: Kind, line: &Value) {
        let server = self.lock();
        for watch in server.watches.iter().filter(|watch| watch.path.1 == kind.plural()) {
            let _ = watch.out.send(Ok(frame(line)));
        }
    }

    /// A bookmark at the newest version.
    pub(super) fn bookmark(&self, kind: Kind) {
        let version = self.lock().version.to_string();
        self.stream(
            kind,
            &json!({"type": "BOOKMARK", "object": {
                "apiVersion": "v1", "kind": "Bookmark",
                "metadata": {"resourceVersion": version, "annotations": {}},
            }}),
        );
    }

    /// The version of its newest object.
    pub(super) fn version(&self) -> u64 {
        self.lock().version
    }

    /// The requests so far whose line contains `part`.
    pub(crate) fn requests(&self, part: &str) -> Vec<String> {
        self.lock().log.iter().filter(|line| line.contains(part)).cloned().collect()
    }

    /// How many watches of a kind are open.
    pub(super) fn watching(&self, kind: Kind) -> usize {
        let mut server = self.lock();
        server.watches.retain(|watch| !watch.out.is_closed());
        server.watches.iter().filter(|watch| watch.path.1 == kind.plural()).count()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Server> {
        self.0.lock().expect("no test panics while it asks")
    }

    fn answer(&self, request: &Request<Body>) -> Answer {
        let mut server = self.lock();
        let line = request.uri().to_string();
        server.log.push(line.clone());
        if server.is_down {
            return status(503, "the server is down");
        }
        let query: BTreeMap<String, String> = request
            .uri()
            .query()
            .into_iter()
            .flat_map(|query| query.split('&'))
            .filter_map(|pair| pair.split_once('='))
            .map(|(key, value)| (key.trim_start_matches('?').to_owned(), decode(value)))
            .collect();
        let parts: Vec<&str> = request.uri().path().trim_matches('/').split('/').collect();
        let (group, rest) = match parts.as_slice() {
            ["api", version, rest @ ..] => ((*version).to_owned(), rest),
            ["apis", group, version, rest @ ..] => (format!("{group}/{version}"), rest),
            ["version"] => return full(StatusCode::OK, &version()),
            _ => return status(404, "no such path"),
        };
        let (namespace, plural) = match rest {
            [] => return server.resources(&group),
            [plural] => (None, *plural),
            ["namespaces", namespace, plural] => (Some((*namespace).to_owned()), *plural),
            _ => return status(404, "no such path"),
        };
        let path = (group, plural.to_owned());
        if [".istio.io/", "egress.interceptor.io/"].iter().any(|ours| path.0.contains(ours))
            && !server.served.contains(&path)
        {
            return status(404, "the server could not find the requested resource");
        }
        let mut selected = Selected { namespace, ..Selected::default() };
        for selector in query.get("fieldSelector").into_iter().flat_map(|all| all.split(',')) {
            match selector.split_once('=') {
                Some(("metadata.name", name)) => selected.name = Some(name.to_owned()),
                Some(("spec.nodeName", node)) => selected.node = Some(node.to_owned()),
                _ => return status(400, "a field selector that is not supported"),
            }
        }
        match query.get("watch").map(String::as_str) {
            Some("true" | "1") => server.watch(path, selected, &query),
            _ => server.list(&path, &selected, &query),
        }
    }
}

impl Server {
    /// Takes the next fault off that fits.
    fn fault(&mut self, plural: &str, fits: impl Fn(Fault) -> Option<u16>) -> Option<Answer> {
        let at =
            self.faults.iter().position(|(of, fault)| of == plural && fits(*fault).is_some())?;
        let (_, fault) = self.faults.remove(at)?;
        fits(fault).map(|code| status(code, "as the test wants it"))
    }

    fn resources(&self, group: &str) -> Answer {
        let served: Vec<_> = self.served.iter().filter(|(of, _)| of == group).collect();
        if served.is_empty() {
            return status(404, "no such group");
        }
        let one = |plural: &str| json!({"name": plural, "singularName": "", "namespaced": true, "kind": "", "verbs": []});
        let resources: Vec<_> = served.iter().map(|(_, plural)| one(plural)).collect();
        let list = json!({
            "kind": "APIResourceList", "apiVersion": "v1", "groupVersion": group,
            "resources": resources,
        });
        full(StatusCode::OK, &list)
    }

    fn list(
        &mut self,
        path: &Path,
        selected: &Selected,
        query: &BTreeMap<String, String>,
    ) -> Answer {
        let next = query.get("continue");
        let fault = self.fault(&path.1, |fault| match fault {
            Fault::List(code) if next.is_none() => Some(code),
            Fault::Page(code) if next.is_some() => Some(code),
            _ => None,
        });
        if let Some(answer) = fault {
            return answer;
        }
        let start: usize = next.map_or(0, |next| next.parse().expect("our own token"));
        let limit: usize =
            query.get("limit").map_or(usize::MAX, |limit| limit.parse().expect("a number"));
        let empty = BTreeMap::new();
        let objects = self.objects.get(path).unwrap_or(&empty).values();
        let all: Vec<_> = objects.filter(|object| selected.has(object)).collect();
        let end = all.len().min(start.saturating_add(limit));
        let token = if end < all.len() { end.to_string() } else { String::new() };
        let list = json!({
            "kind": "List", "apiVersion": path.0,
            "metadata": {"resourceVersion": self.version.to_string(), "continue": token},
            "items": &all[start..end],
        });
        full(StatusCode::OK, &list)
    }

    fn watch(
        &mut self,
        path: Path,
        selected: Selected,
        query: &BTreeMap<String, String>,
    ) -> Answer {
        let fault = self.fault(&path.1, |fault| match fault {
            Fault::Watch(code) => Some(code),
            _ => None,
        });
        if let Some(answer) = fault {
            return answer;
        }
        let from: u64 = query["resourceVersion"].parse().expect("a version that we gave");
        if from < self.compacted {
            return status(410, "too old resource version");
        }
        let (out, body) = mpsc::unbounded_channel();
        let missed = self.history.iter().filter(|one| one.path == path && one.version > from);
        for one in missed.filter(|one| selected.has(&one.object)) {
            let _ = out.send(Ok(frame(&json!({"type": one.kind, "object": one.object}))));
        }
        self.watches.push(Watching { path, selected, out });
        let body = tokio_stream::wrappers::UnboundedReceiverStream::new(body);
        Response::new(BodyExt::boxed(StreamBody::new(body.map(|frame| frame))))
    }

    fn happened(&mut self, path: &Path, kind: &'static str, object: Value) {
        for watch in
            self.watches.iter().filter(|one| one.path == *path && one.selected.has(&object))
        {
            let _ = watch.out.send(Ok(frame(&json!({"type": kind, "object": object}))));
        }
        let version = self.version;
        self.history.push(Entry { version, path: path.clone(), kind, object });
    }
}

impl Selected {
    fn has(&self, object: &Value) -> bool {
        let fits = |wanted: &Option<String>, pointer: &str| {
            let found = object.pointer(pointer).and_then(Value::as_str);
            wanted.as_deref().is_none_or(|wanted| found == Some(wanted))
        };
        fits(&self.namespace, "/metadata/namespace")
            && fits(&self.name, "/metadata/name")
            && fits(&self.node, "/spec/nodeName")
    }
}

/// As /version says it.
fn version() -> Value {
    let field = |name: &str| (name.to_owned(), json!(""));
    let fields = ["buildDate", "compiler", "gitCommit", "gitTreeState", "goVersion", "platform"];
    let mut version: serde_json::Map<_, _> = fields.into_iter().map(field).collect();
    version.extend(
        [("major", "1"), ("minor", "36"), ("gitVersion", "v1.36.0")]
            .map(|(name, value)| (name.to_owned(), json!(value))),
    );
    version.into()
}

fn name_of(object: &Value) -> (String, String) {
    let text = |field: &str| object["metadata"][field].as_str().unwrap_or_default().to_owned();
    (text("namespace"), text("name"))
}

fn frame(line: &Value) -> Frame<Bytes> {
    Frame::data(format!("{line}\n").into())
}

fn full(code: StatusCode, body: &Value) -> Answer {
    let body = Full::new(Bytes::from(body.to_string())).map_err(|never| match never {});
    Response::builder().status(code).body(BodyExt::boxed(body)).expect("a response")
}

fn status(code: u16, message: &str) -> Answer {
    let body = json!({
        "kind": "Status", "apiVersion": "v1", "status": "Failure", "message": message,
        "reason": "", "code": code,
    });
    full(StatusCode::from_u16(code).expect("a status"), &body)
}

/// Percent-decoding, as far as selectors need it.
fn decode(text: &str) -> String {
    let mut bytes = text.bytes();
    let mut plain = Vec::new();
    while let Some(byte) = bytes.next() {
        match byte {
            b'%' => {
                let hex = [bytes.next(), bytes.next()].map(|digit| digit.expect("two digits"));
                let hex = std::str::from_utf8(&hex).expect("digits");
                plain.push(u8::from_str_radix(hex, 16).expect("hexadecimal"));
            }
            b'+' => plain.push(b' '),
            byte => plain.push(byte),
        }
    }
    String::from_utf8(plain).expect("UTF-8")
}
