//! Scenario files, as written: format `egress-scenario/1`. A file that is not one is unreadable; a
//! case with an unknown key or value is a case that fails, and the others still run.

use std::collections::BTreeMap;
use std::fs;
use std::io::Read as _;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde::de::{DeserializeOwned, Error as _};
use serde_json::{Map, Value};
use serde_saphyr::Spanned;

use super::expect::Expect;
use crate::policy::Enforcement;

/// What the first line of every scenario file says.
const FORMAT: &str = "egress-scenario/1";

/// Larger files are refused.
const MAX_FILE_BYTES: u64 = 50 << 20;

/// Most requests that one case may repeat.
const MAX_REPEAT: u32 = 100_000;

/// Why a file or directory cannot be used at all.
#[derive(Debug, thiserror::Error)]
#[error("{}: {message}", file.display())]
pub struct Unreadable {
    /// The file, or the directory.
    pub file: PathBuf,
    /// What is wrong with it.
    pub message: String,
}

/// One case of a file.
#[derive(Debug, Clone)]
pub struct Case {
    /// The file that it stands in.
    pub file: PathBuf,
    /// Where it starts, from 1.
    pub line: u64,
    /// `FLOW-MODE-001`; of a case without one, where it stands.
    pub id: String,
    /// For people.
    pub title: String,
    /// What is asked, or why that cannot be told.
    pub(super) question: Result<Question, String>,
}

/// What a case asks.
#[derive(Debug, Clone)]
pub(super) struct Question {
    pub(super) setting: Setting,
    pub(super) kind: Kind,
    pub(super) expect: Expect,
}

#[derive(Debug, Clone)]
pub(super) enum Kind {
    Validation(Layer),
    Flow { network: Network, flow: Box<Flow> },
}

/// The layer that a validation case judges.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Layer {
    Webhook,
    Crd,
    Meshconfig,
    PodAnnotation,
}

/// Everything but the flow: rules and caller.
#[derive(Debug, Clone, Default)]
pub(super) struct Setting {
    /// The MeshConfig fragment, without the pseudo fields.
    pub(super) mesh: Map<String, Value>,
    /// `values: {global.proxy.*}`, keyed without that prefix.
    pub(super) values: BTreeMap<String, String>,
    pub(super) workload: Workload,
    pub(super) resources: Vec<Value>,
}

/// The caller.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Workload {
    pub(super) namespace: String,
    pub(super) labels: BTreeMap<String, String>,
    pub(super) annotations: BTreeMap<String, String>,
    pub(super) uid: u32,
    pub(super) role: Role,
}

impl Default for Workload {
    fn default() -> Self {
        Self {
            namespace: "default".into(),
            labels: BTreeMap::new(),
            annotations: BTreeMap::new(),
            uid: 1000,
            role: Role::Sidecar,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Role {
    #[default]
    Sidecar,
    Gateway,
}

/// The world outside.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Network {
    pub(super) dns: BTreeMap<String, Vec<IpAddr>>,
    pub(super) server: Server,
    pub(super) server_delay_ms: u64,
    pub(super) secrets: Vec<Secret>,
}

/// How the upstream behaves.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) enum Server {
    /// Accepts, answers 200, shows a trusted certificate for the name asked.
    #[default]
    Plain,
    RedirectsToHttps,
    WantsClientCertificate,
    /// A valid chain for this name.
    NamedOnly(String),
    SelfSigned,
    Revoked,
    RefusesConnections,
    DropsSyn,
}

impl<'de> Deserialize<'de> for Server {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Ok(match text.as_str() {
            "301 to https on port 80" => Self::RedirectsToHttps,
            "requires a client certificate" => Self::WantsClientCertificate,
            "self-signed certificate" => Self::SelfSigned,
            "certificate listed in the CRL" => Self::Revoked,
            "refuses connections" => Self::RefusesConnections,
            "drops SYN" => Self::DropsSyn,
            other => match other.strip_prefix("presents a valid chain for ") {
                Some(name) if !name.is_empty() => Self::NamedOnly(name.to_ascii_lowercase()),
                _ => return Err(D::Error::custom(format!("server: unknown value \"{other}\""))),
            },
        })
    }
}

/// Secrets that the proxy can read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Secret {
    /// CA, certificate and key.
    GoodCred,
    /// There, but malformed.
    FakeCred,
    /// CA, certificate, key, and a CRL that lists the server.
    CredWithCrl,
    /// CA, certificate, key, and a CRL that lists somebody else.
    CredWithDummyCrl,
}

impl Secret {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::GoodCred => "good-cred",
            Self::FakeCred => "fake-cred",
            Self::CredWithCrl => "cred-with-crl",
            Self::CredWithDummyCrl => "cred-with-dummy-crl",
        }
    }
}

/// One outbound flow.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Flow {
    #[serde(default)]
    pub(super) transport: Transport,
    pub(super) dst: SocketAddr,
    pub(super) first_bytes: FirstBytes,
    pub(super) sni: Option<String>,
    #[serde(default)]
    pub(super) alpn: Vec<String>,
    pub(super) http: Option<Http>,
    pub(super) repeat: Option<u32>,
    /// What the same client does next.
    pub(super) then: Option<Box<Flow>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Transport {
    #[default]
    Tcp,
    Udp,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum FirstBytes {
    Http1,
    H2c,
    Tls,
    Raw,
    /// The server speaks first.
    None,
}

/// One request.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Http {
    #[serde(default = "get")]
    pub(super) method: String,
    #[serde(default = "root")]
    pub(super) path: String,
    /// Sent verbatim; absent = no Host header.
    pub(super) host: Option<String>,
    #[serde(default, deserialize_with = "version")]
    pub(super) version: Option<u8>,
    #[serde(default)]
    pub(super) headers: BTreeMap<String, OneOrMany<String>>,
}

fn get() -> String {
    "GET".into()
}

fn root() -> String {
    "/".into()
}

/// `'1.1'`, quoted or not.
fn version<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<u8>, D::Error> {
    let value = Value::deserialize(deserializer)?;
    let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    Ok(Some(match text.as_str() {
        "1.0" => 10,
        "1.1" => 11,
        "2" | "2.0" => 20,
        other => return Err(D::Error::custom(format!("version: unknown value \"{other}\""))),
    }))
}

/// One value, or a list of them.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(untagged)]
pub(super) enum OneOrMany<T> {
    One(T),
    Many(Vec<T>),
}

impl<T> OneOrMany<T> {
    pub(super) fn as_slice(&self) -> &[T] {
        match self {
            Self::One(one) => std::slice::from_ref(one),
            Self::Many(many) => many,
        }
    }
}

/// Reads every case of `paths`: files, or directories, in which only files that call themselves
/// scenario files are read, since the policies may stand beside them. In the order given.
///
/// # Errors
/// A path that cannot be read, a file that is no scenario file, or a directory without one.
pub fn read(paths: &[PathBuf], profile: Enforcement) -> Result<Vec<Case>, Unreadable> {
    let mut cases = Vec::new();
    for path in paths {
        if path.is_dir() {
            let before = cases.len();
            for file in listed(path)? {
                let text = text_of(&file)?;
                if claims_format(&text) {
                    cases.extend(read_text(&file, &text, profile)?);
                }
            }
            if cases.len() == before {
                return Err(unreadable(path, "holds no scenario file"));
            }
        } else {
            cases.extend(read_text(path, &text_of(path)?, profile)?);
        }
    }
    let mut seen = std::collections::HashMap::new();
    for case in &mut cases {
        if let Some(first) = seen.insert(case.id.clone(), (case.file.clone(), case.line)) {
            let message =
                format!("id: also the id of the case at {}:{}", first.0.display(), first.1);
            case.question = Err(message);
        }
    }
    Ok(cases)
}

fn unreadable(file: &Path, message: impl Into<String>) -> Unreadable {
    Unreadable { file: file.to_owned(), message: message.into() }
}

fn listed(dir: &Path) -> Result<Vec<PathBuf>, Unreadable> {
    let fail = |error: std::io::Error| unreadable(dir, format!("cannot be listed: {error}"));
    let mut files = Vec::new();
    for entry in fs::read_dir(dir).map_err(fail)? {
        let path = entry.map_err(fail)?.path();
        if path.extension().is_some_and(|e| e == "yaml" || e == "yml") && !path.is_dir() {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

fn text_of(file: &Path) -> Result<String, Unreadable> {
    let mut bytes = Vec::new();
    fs::File::open(file)
        .and_then(|f| f.take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes))
        .map_err(|error| unreadable(file, format!("cannot be read: {error}")))?;
    if bytes.len() as u64 > MAX_FILE_BYTES {
        return Err(unreadable(file, "is larger than 50 MiB"));
    }
    String::from_utf8(bytes).map_err(|_| unreadable(file, "is not UTF-8"))
}

/// Whether a file among others in a directory is meant to be a scenario file.
fn claims_format(text: &str) -> bool {
    text.lines().any(|line| line.starts_with("format:") && line.contains("egress-scenario"))
}

/// The file before its cases are looked at.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    format: String,
    cases: Vec<Spanned<Map<String, Value>>>,
}

/// Reads the cases of one file's text.
///
/// # Errors
/// It is not YAML, or no scenario file.
pub(super) fn read_text(
    file: &Path,
    text: &str,
    profile: Enforcement,
) -> Result<Vec<Case>, Unreadable> {
    let document: Document = serde_saphyr::from_str_with_options(text, options())
        .map_err(|error| unreadable(file, error.without_snippet().to_string()))?;
    if document.format != FORMAT {
        let message = format!("format is \"{}\"; this program reads {FORMAT}", document.format);
        return Err(unreadable(file, message));
    }
    let cases = document.cases.into_iter().map(|spanned| {
        let line = spanned.referenced.line();
        let mut parts = Parts(spanned.value);
        let id = parts.take::<String>("id");
        let title = parts.take::<String>("title");
        let name = |found: &Result<Option<String>, String>| found.clone().ok().flatten();
        Case {
            file: file.to_owned(),
            line,
            id: name(&id).unwrap_or_else(|| format!("{}:{line}", file.display())),
            title: name(&title).unwrap_or_default(),
            question: parts.question(id, title, profile),
        }
    });
    Ok(cases.collect())
}

fn options() -> serde_saphyr::Options {
    serde_saphyr::options! {
        strict_booleans: true,
        budget: serde_saphyr::budget! {
            max_events: 30_000_000,
            max_nodes: 20_000_000,
        },
    }
}

/// The parts of a case that nobody has asked for yet.
struct Parts(Map<String, Value>);

impl Parts {
    /// The part `key`, if it is there; `null` counts as absent.
    fn take<T: DeserializeOwned>(&mut self, key: &str) -> Result<Option<T>, String> {
        match self.0.remove(key) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => {
                serde_json::from_value(value).map(Some).map_err(|error| format!("{key}: {error}"))
            }
        }
    }

    fn question(
        mut self,
        id: Result<Option<String>, String>,
        title: Result<Option<String>, String>,
        profile: Enforcement,
    ) -> Result<Question, String> {
        id?.ok_or("id: missing")?;
        title?.ok_or("title: missing")?;
        let kind: KindName = self.take("kind")?.ok_or("kind: missing")?;
        let setting = self.setting()?;
        let expect = self.expectation(profile)?;
        let kind = match kind {
            KindName::Validation => Kind::Validation(self.take("layer")?.ok_or("layer: missing")?),
            KindName::Flow => {
                let network = self.take("network")?.unwrap_or_default();
                let flow: Flow = self.take("flow")?.ok_or("flow: missing")?;
                flow.check()?;
                Kind::Flow { network, flow: Box::new(flow) }
            }
        };
        // For people: read for mistakes, and not used.
        self.take::<Source>("source")?;
        self.take::<Provenance>("provenance")?;
        self.take::<Vec<String>>("rules")?;
        self.take::<String>("note")?;
        if let Some(key) = self.0.keys().next() {
            return Err(format!("{key}: unknown key, or not one of this kind of case"));
        }
        expect.check(matches!(kind, Kind::Validation(_)))?;
        Ok(Question { setting, kind, expect })
    }

    fn setting(&mut self) -> Result<Setting, String> {
        let mut mesh: Map<String, Value> = self.take("mesh")?.unwrap_or_default();
        let values = match mesh.remove("values") {
            Some(values) => install_values(values)?,
            None => BTreeMap::new(),
        };
        if let Some(environment) = mesh.remove("proxyMetadata") {
            // Where MeshConfig itself has it.
            let config = mesh.entry("defaultConfig").or_insert_with(|| Value::Object(Map::new()));
            let config = config.as_object_mut().ok_or("mesh.defaultConfig: not a mapping")?;
            config.insert("proxyMetadata".into(), environment);
        }
        Ok(Setting {
            mesh,
            values,
            workload: self.take("workload")?.unwrap_or_default(),
            resources: self.take("resources")?.unwrap_or_default(),
        })
    }

    /// `expect`, and in strict `expectStrict` field by field over it.
    fn expectation(&mut self, profile: Enforcement) -> Result<Expect, String> {
        let mut fields: Map<String, Value> = self.take("expect")?.ok_or("expect: missing")?;
        let strict: Map<String, Value> = self.take("expectStrict")?.unwrap_or_default();
        self.take::<String>("expectStrictReason")?;
        // Read in both profiles, so that a mistake in it shows in both.
        Expect::read(&strict).map_err(|error| format!("expectStrict: {error}"))?;
        if fields.is_empty() {
            return Err("expect: asks nothing".into());
        }
        if profile == Enforcement::Strict {
            fields.extend(strict);
        }
        Expect::read(&fields).map_err(|error| format!("expect: {error}"))
    }
}

impl Flow {
    /// What the types cannot say.
    fn check(&self) -> Result<(), String> {
        let http = matches!(self.first_bytes, FirstBytes::Http1 | FirstBytes::H2c);
        if http && self.http.is_none() {
            return Err("flow.http: missing, and first_bytes are HTTP".into());
        }
        if !http && self.first_bytes != FirstBytes::Tls && self.http.is_some() {
            return Err("flow.http: given, and first_bytes are not HTTP".into());
        }
        if self.first_bytes != FirstBytes::Tls && (self.sni.is_some() || !self.alpn.is_empty()) {
            return Err("flow: sni and alpn are for first_bytes tls".into());
        }
        if !self.repeat.is_none_or(|n| (1..=MAX_REPEAT).contains(&n)) {
            return Err(format!("flow.repeat: must lie between 1 and {MAX_REPEAT}"));
        }
        self.then.as_ref().map_or(Ok(()), |then| then.check())
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum KindName {
    Flow,
    Validation,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Provenance {
    Golden,
    GoldenWrapped,
    GoldenAdapted,
    Code,
    Doc,
    Inferred,
}

/// Where an expectation comes from.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(dead_code, reason = "read for mistakes only")]
struct Source {
    repo: Option<String>,
    path: Option<String>,
    at: Option<Value>,
    commit: Option<String>,
}

/// `{global.proxy.excludeIPRanges: ..}`, or the same nested, or a mix of both.
fn install_values(values: Value) -> Result<BTreeMap<String, String>, String> {
    let mut flat = BTreeMap::new();
    flatten(String::new(), values, &mut flat);
    let known =
        ["includeIPRanges", "excludeIPRanges", "includeOutboundPorts", "excludeOutboundPorts"];
    flat.into_iter()
        .map(|(path, value)| {
            let key = path.strip_prefix("global.proxy.").filter(|key| known.contains(key));
            let key = key.ok_or_else(|| format!("mesh.values.{path}: unknown key"))?;
            let text = match value {
                Value::String(text) => text,
                Value::Number(number) => number.to_string(),
                _ => return Err(format!("mesh.values.{path}: not text")),
            };
            Ok((key.to_owned(), text))
        })
        .collect()
}

fn flatten(path: String, value: Value, into: &mut BTreeMap<String, Value>) {
    match value {
        Value::Object(map) => {
            for (key, value) in map {
                let path = if path.is_empty() { key } else { format!("{path}.{key}") };
                flatten(path, value, into);
            }
        }
        value => {
            into.insert(path, value);
        }
    }
}
