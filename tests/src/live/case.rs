//! Scenario files as the live harness reads them: every key that it knows, and an error for the
//! rest.

use std::collections::BTreeMap;
use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// The only format that there is.
const FORMAT: &str = "egress-scenario/1";

/// Everything that an expectation may name.
const EXPECTED: [&str; 40] = [
    "verdict",
    "status",
    "statuses",
    "body",
    "response_headers",
    "cluster",
    "route",
    "upstream",
    "flags",
    "flags_on_503",
    "details",
    "details_contains",
    "details_on_503",
    "body_bytes_on_503",
    "upstream_tls",
    "upstream_protocol",
    "upstream_path",
    "upstream_host_header",
    "upstream_headers",
    "connect_request",
    "proxy_protocol",
    "also_sent_to",
    "attempts",
    "distribution",
    "tolerance",
    "duration_ms",
    "bytes_sent",
    "bytes_to_client",
    "curl_exit",
    "log",
    "log_regex",
    "log_json_keys",
    "log_json",
    "log_lines",
    "metric",
    "application_result",
    "note_upstream",
    // Of validation cases, which are not played live.
    "accepted",
    "warning",
    "note",
];

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    format: String,
    cases: Vec<Case>,
}

/// One case.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Case {
    /// Its name.
    pub id: String,
    /// For people.
    pub title: Option<String>,
    /// Flow or validation.
    pub kind: Kind,
    /// Of a validation case.
    pub layer: Option<String>,
    /// Where the expectation comes from.
    pub source: Option<Value>,
    /// How surely.
    pub provenance: Option<String>,
    /// What it is a case of.
    pub rules: Option<Vec<String>>,
    /// MeshConfig fragment, with the pseudo fields `values` and `proxyMetadata`.
    #[serde(default)]
    pub mesh: Map<String, Value>,
    /// The caller.
    #[serde(default)]
    pub workload: Workload,
    /// Complete objects.
    #[serde(default)]
    pub resources: Vec<Value>,
    /// The world outside.
    #[serde(default)]
    pub network: Network,
    /// What the caller does; only a flow has one.
    pub flow: Option<Flow>,
    #[serde(default)]
    expect: Map<String, Value>,
    #[serde(default)]
    expect_strict: Map<String, Value>,
    /// A row of the profiles' table.
    pub expect_strict_reason: Option<String>,
    /// For people.
    pub note: Option<String>,
}

/// What a case is about.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// A connection.
    Flow,
    /// Whether resources are accepted.
    Validation,
}

/// The caller.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Workload {
    /// Its namespace.
    pub namespace: Option<String>,
    /// Its labels.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// Pod annotations.
    #[serde(default)]
    pub annotations: BTreeMap<String, String>,
    /// User id.
    pub uid: Option<u32>,
    /// `gateway` when the flow enters a gateway.
    pub role: Option<String>,
}

/// The world outside.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Network {
    /// What names resolve to; an empty list is no answer.
    #[serde(default)]
    pub dns: BTreeMap<String, Vec<IpAddr>>,
    /// Special behaviour of the upstream.
    pub server: Option<String>,
    /// How long it takes to answer.
    #[serde(default)]
    pub server_delay_ms: u64,
    /// Secrets that the proxy can read.
    #[serde(default)]
    pub secrets: Vec<String>,
}

/// What the caller does.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Flow {
    /// `tcp` or `udp`.
    #[serde(default = "tcp")]
    pub transport: String,
    /// Where it dials.
    pub dst: SocketAddr,
    /// What it sends first.
    #[serde(default)]
    pub first_bytes: FirstBytes,
    /// The name in the ClientHello.
    pub sni: Option<String>,
    /// The protocols in it.
    #[serde(default)]
    pub alpn: Vec<String>,
    /// The request.
    pub http: Option<Http>,
    /// How often.
    pub repeat: Option<u32>,
    /// What it does afterwards.
    pub then: Option<Box<Flow>>,
}

fn tcp() -> String {
    "tcp".to_owned()
}

/// What a client sends first.
#[derive(Clone, Copy, Debug, Default, Deserialize, Serialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum FirstBytes {
    /// An HTTP/1 request.
    Http1,
    /// The HTTP/2 preface.
    H2c,
    /// A ClientHello.
    Tls,
    /// Something else.
    Raw,
    /// Nothing.
    #[default]
    None,
}

/// A request.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Http {
    /// Method.
    #[serde(default = "get")]
    pub method: String,
    /// Target.
    #[serde(default = "root")]
    pub path: String,
    /// Host, verbatim.
    pub host: Option<String>,
    /// `1.0`, `1.1` or `2`.
    pub version: Option<String>,
    /// Other headers.
    #[serde(default)]
    pub headers: BTreeMap<String, String>,
}

fn get() -> String {
    "GET".to_owned()
}

fn root() -> String {
    "/".to_owned()
}

/// The profile that a product runs in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Profile {
    /// Istio to the letter.
    Istio,
    /// The stricter one.
    Strict,
}

impl Profile {
    /// As the product's command line says it.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Istio => "istio",
            Self::Strict => "strict",
        }
    }
}

impl Case {
    /// Whether what nobody names passes, and that is said.
    #[must_use]
    pub fn is_open(&self) -> bool {
        let policy = self.mesh.get("outboundTrafficPolicy");
        policy.is_some_and(|policy| policy["mode"] == "ALLOW_ANY")
    }

    /// What is expected in this profile.
    #[must_use]
    pub fn expected(&self, profile: Profile) -> Map<String, Value> {
        let mut expected = self.expect.clone();
        if profile == Profile::Strict {
            expected.extend(self.expect_strict.clone());
        }
        expected
    }

    /// What the product cannot be told, if the case needs that.
    #[must_use]
    pub fn unplayable(&self) -> Option<&'static str> {
        let local = self.flow.as_ref().is_some_and(|flow| flow.dst.ip().is_loopback());
        (self.needs_pod() && local).then_some("nothing listens on a pod's own loopback")
    }

    /// Whether the flow enters a gateway, where it dials.
    #[must_use]
    pub fn is_gateway(&self) -> bool {
        self.workload.role.as_deref() == Some("gateway")
    }

    /// Whether the caller must be a pod: only one has annotations, or may be left out of injection, and
    /// only the node's agent knows of all install-time values.
    #[must_use]
    pub fn needs_pod(&self) -> bool {
        let injection = |key: &String| key.starts_with("sidecar.istio.io/");
        !self.workload.annotations.is_empty()
            || self.workload.labels.keys().any(injection)
            || self.bypass().is_none()
    }

    /// Istio's install-time values, without `global.proxy.` (CAP-3).
    #[must_use]
    pub fn values(&self) -> BTreeMap<String, String> {
        let mut values = BTreeMap::new();
        if let Some(tree) = self.mesh.get("values") {
            flatten("", tree, &mut values);
        }
        values
    }

    /// The networks that install-time values leave alone (CAP-3), as `--bypass` takes them. `None`:
    /// there are other values, or other ways to write them.
    #[must_use]
    pub fn bypass(&self) -> Option<Vec<&str>> {
        let Some(values) = self.mesh.get("values") else { return Some(Vec::new()) };
        let mut networks = Vec::new();
        for (key, value) in values.as_object()? {
            if key != "global.proxy.excludeIPRanges" {
                return None;
            }
            networks.extend(value.as_str()?.split(','));
        }
        Some(networks)
    }

    fn check(&self) -> Result<()> {
        for key in self.expect.keys().chain(self.expect_strict.keys()) {
            if !EXPECTED.contains(&key.as_str()) {
                bail!("an expectation of `{key}`, which is not in the format");
            }
        }
        if self.kind == Kind::Flow && self.flow.is_none() {
            bail!("a flow case without a flow");
        }
        Ok(())
    }
}

/// The leaves of a tree, by their dotted paths, of which some may be written out already.
fn flatten(path: &str, value: &Value, into: &mut BTreeMap<String, String>) {
    match value {
        Value::Object(map) => {
            for (key, value) in map {
                let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
                flatten(&path, value, into);
            }
        }
        leaf => {
            let key = path.strip_prefix("global.proxy.").unwrap_or(path).to_owned();
            let text = leaf.as_str().map_or_else(|| leaf.to_string(), str::to_owned);
            into.insert(key, text);
        }
    }
}

/// Reads the cases of a file.
///
/// # Errors
/// When it can't be read, or holds what is not in the format.
pub fn read(path: &Path) -> Result<Vec<Case>> {
    let text = fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
    // YAML 1.2, as the product reads it: `y` and `no` are words.
    let options = serde_saphyr::options! { strict_booleans: true };
    let file: File = serde_saphyr::from_str_with_options(&text, options)
        .with_context(|| format!("{}", path.display()))?;
    if file.format != FORMAT {
        bail!("{}: the format is {}, not {FORMAT}", path.display(), file.format);
    }
    for case in &file.cases {
        case.check().with_context(|| format!("{}: {}", path.display(), case.id))?;
    }
    Ok(file.cases)
}

/// The cases of files, and of directories of them.
///
/// # Errors
/// As [`expand`] and [`read`].
pub fn read_all(paths: &[PathBuf]) -> Result<Vec<Case>> {
    let mut cases = Vec::new();
    for file in expand(paths)? {
        cases.extend(read(&file)?);
    }
    Ok(cases)
}

/// The files themselves, and the YAML files in directories, which are not searched deeper.
///
/// # Errors
/// When a directory can't be listed or holds none.
pub fn expand(paths: &[PathBuf]) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for path in paths {
        if !path.is_dir() {
            files.push(path.clone());
            continue;
        }
        let listed = fs::read_dir(path).with_context(|| format!("listing {}", path.display()))?;
        let mut inside: Vec<PathBuf> =
            listed.map(|entry| Ok(entry?.path())).collect::<Result<_>>()?;
        inside.retain(|file| file.extension().is_some_and(|end| end == "yaml" || end == "yml"));
        inside.sort();
        if inside.is_empty() {
            bail!("{} holds no scenario file", path.display());
        }
        files.append(&mut inside);
    }
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Vec<Case>> {
        let mut file = tempfile::NamedTempFile::new()?;
        std::io::Write::write_all(&mut file, text.as_bytes())?;
        read(file.path())
    }

    const CASE: &str = "format: egress-scenario/1
cases:
- id: A
  kind: flow
  mesh: {}
  workload: {namespace: default, labels: {app: client}, uid: 1000}
  resources: [{kind: ServiceEntry, name: n}]
  network: {dns: {a.test: [192.0.2.1], b.test: []}, server: drops SYN}
  flow: {transport: tcp, dst: '[2001:db8::1]:80', first_bytes: http1, http: {method: GET, path: /, host: a, version: '1.1'}}
  expect: {verdict: forward, upstream_tls: {sni: null}}
  expectStrict: {verdict: reset}
";

    #[test]
    fn a_case_and_its_strict_side() {
        let cases = parse(CASE).expect("a file");
        let strict = cases[0].expected(Profile::Strict);
        assert_eq!(cases[0].expected(Profile::Istio)["verdict"], "forward");
        assert_eq!(strict["verdict"], "reset");
        assert!(strict["upstream_tls"]["sni"].is_null(), "null is said, not absent");
        assert_eq!((cases[0].unplayable(), cases[0].needs_pod()), (None, false));
        assert_eq!(cases[0].resources[0]["name"], "n", "a word, not false");
    }

    #[test]
    fn what_is_not_in_the_format_is_an_error() {
        for (from, to) in [
            ("id: A", "id: A\n  colour: red"),
            ("verdict: forward", "verdikt: forward"),
            ("first_bytes: http1", "first_bytes: http3"),
            ("egress-scenario/1", "egress-scenario/2"),
            ("server: drops SYN", "servant: none"),
        ] {
            assert!(CASE.contains(from), "{from}");
            assert!(parse(&CASE.replace(from, to)).is_err(), "{to}");
        }
    }

    #[test]
    fn what_needs_a_pod_or_more_is_named() {
        let gateway = parse(&CASE.replace("uid: 1000", "role: gateway")).expect("a file");
        assert!(gateway[0].is_gateway() && gateway[0].unplayable().is_none());
        for (from, to) in [
            ("uid: 1000", "annotations: {a: b}"),
            ("app: client", "sidecar.istio.io/inject: 'false'"),
            ("mesh: {}", "mesh: {values: {global.proxy.excludeOutboundPorts: '25'}}"),
        ] {
            let cases = parse(&CASE.replace(from, to)).expect("a file");
            assert!(cases[0].needs_pod() && cases[0].unplayable().is_none(), "{to}");
        }
    }

    #[test]
    fn install_time_values_in_either_form() {
        let values = "mesh: {values: {global: {proxy: {excludeOutboundPorts: '25'}}, \
                      global.proxy.includeIPRanges: '*'}}";
        let cases = parse(&CASE.replace("mesh: {}", values)).expect("a file");
        let expected = [("excludeOutboundPorts", "25"), ("includeIPRanges", "*")];
        let expected = expected.map(|(key, value)| (key.to_owned(), value.to_owned()));
        assert_eq!(cases[0].values(), BTreeMap::from(expected));
    }

    #[test]
    fn excluded_networks_are_bypassed() {
        let values = "mesh: {values: {global.proxy.excludeIPRanges: '192.0.2.0/24,10.0.0.0/8'}}";
        let cases = parse(&CASE.replace("mesh: {}", values)).expect("a file");
        assert_eq!(cases[0].unplayable(), None);
        assert_eq!(cases[0].bypass(), Some(vec!["192.0.2.0/24", "10.0.0.0/8"]));
    }
}
