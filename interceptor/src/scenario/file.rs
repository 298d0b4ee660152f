//! Scenario files, as written: format `egress-scenario/1`. A file that is not one is unreadable; a
//! case with an unknown key or value is a case that fails, and the others still run.

use std::collections::BTreeMap;
use std::fs;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};
use serde_saphyr::Spanned;

use super::case::{Case, Flow, Kind, Question, Role, Setting};
use super::expect::Expect;
use crate::policy::Enforcement;
use crate::workloads::annotations::CaptureLists;

/// What the first line of every scenario file says.
const FORMAT: &str = "egress-scenario/1";

/// Larger files are refused.
const MAX_FILE_BYTES: u64 = 50 << 20;

/// Why a file or directory cannot be used at all.
#[derive(Debug, thiserror::Error)]
#[error("{}: {message}", file.display())]
pub struct Unreadable {
    /// The file, or the directory.
    pub file: PathBuf,
    /// What is wrong with it.
    pub message: String,
}

/// Reads every case of `paths`: files, or directories, in which only files that call themselves
/// scenario files are read, since the policies may stand beside them. In the order given.
///
/// # Errors
/// A path that cannot be read, a file that is no scenario file, a directory without one, or no case
/// at all: a run that tested nothing must not look like one that found nothing.
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
    if let (true, Some(first)) = (cases.is_empty(), paths.first()) {
        return Err(unreadable(first, "holds no case"));
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
        let mut setting = self.setting()?;
        let expect = self.expectation(profile)?;
        let kind = match kind {
            KindName::Validation => Kind::Validation(self.take("layer")?.ok_or("layer: missing")?),
            KindName::Flow => {
                let network = self.take("network")?.unwrap_or_default();
                let flow: Flow = self.take("flow")?.ok_or("flow: missing")?;
                flow.check()?;
                if setting.workload.role == Role::Gateway {
                    setting.gateway = Some(flow.dst.ip());
                }
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
        let mut dns_capture = false;
        if let Some(environment) = mesh.remove("proxyMetadata") {
            let environment: BTreeMap<String, String> = serde_json::from_value(environment)
                .map_err(|error| format!("mesh.proxyMetadata: {error}"))?;
            for (name, value) in environment {
                match name.as_str() {
                    "ISTIO_META_DNS_CAPTURE" => dns_capture = value == "true",
                    // Automatic addresses come with it, as in every current version.
                    "ISTIO_META_DNS_AUTO_ALLOCATE" => {}
                    _ => return Err(format!("mesh.proxyMetadata.{name}: unknown key")),
                }
            }
        }
        Ok(Setting {
            mesh,
            values,
            dns_capture,
            gateway: None,
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
    flat.into_iter()
        .map(|(path, value)| {
            let key =
                path.strip_prefix("global.proxy.").filter(|key| CaptureLists::VALUES.contains(key));
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
