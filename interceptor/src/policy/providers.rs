//! Where access logs can go by name: `extensionProviders` and `defaultProviders` of the mesh
//! configuration (MESH-14, MESH-15), and `accessLogFormat` (MESH-3).

use std::path::PathBuf;
use std::sync::Arc;

use super::fields::{Context, Fields, Findings, Located};
use super::node::{Node, Value};
use crate::account::{Encoding, Format, LogSettings, LogTarget};

/// `extensionProviders[]`.
#[derive(Debug, Clone)]
pub(super) struct Provider {
    pub(super) name: String,
    pub(super) writes: Writes,
}

/// What a provider does with an access log.
#[derive(Debug, Clone)]
pub(super) enum Writes {
    /// `envoyFileAccessLog`.
    To(LogSettings),
    /// Sends it somewhere that is not supported here, by this field.
    Elsewhere(String),
}

/// What kinds of providers there are besides files.
const OTHER_KINDS: &[&str] = &[
    "datadog",
    "envoyExtAuthzGrpc",
    "envoyExtAuthzHttp",
    "envoyHttpAls",
    "envoyOtelAls",
    "envoyTcpAls",
    "lightstep",
    "opencensus",
    "opentelemetry",
    "prometheus",
    "sds",
    "skywalking",
    "stackdriver",
    "zipkin",
];

/// What a path in Istio's configuration means: `None` for the empty one.
pub(super) fn target(path: &str) -> Option<LogTarget> {
    match path {
        "" => None,
        "/dev/stdout" => Some(LogTarget::Stdout),
        "/dev/stderr" => Some(LogTarget::Stderr),
        path => Some(LogTarget::File(PathBuf::from(path))),
    }
}

/// `accessLogFormat` in the encoding given beside it; the built-in format if it is empty.
pub(super) fn mesh_format(
    given: Option<Located<String>>,
    encoding: Encoding,
    cx: &Context,
    out: &mut Findings,
) -> Arc<Format> {
    let given = given.filter(|format| !format.value.is_empty());
    let parsed = given.as_ref().map(|format| match encoding {
        Encoding::Text => Format::text(&format.value),
        Encoding::Json => Format::json_text(&format.value),
    });
    Arc::new(match (given, parsed) {
        (Some(_), Some(Ok(format))) => format,
        (Some(given), Some(Err(error))) => {
            out.errors.push(cx.notice(given.at, &given.path, error.to_string()));
            Format::built_in(encoding)
        }
        _ => Format::built_in(encoding),
    })
}

/// `extensionProviders`.
pub(super) fn read(mesh: &mut Fields<'_>, cx: &Context, out: &mut Findings) -> Vec<Provider> {
    let items = mesh.list("extensionProviders", cx, out);
    items.into_iter().filter_map(|item| provider(item, cx, out)).collect()
}

/// `defaultProviders.accessLogging`.
pub(super) fn read_defaults(
    mesh: &mut Fields<'_>,
    cx: &Context,
    out: &mut Findings,
) -> Vec<Located<String>> {
    let Some(node) = mesh.take("defaultProviders") else { return Vec::new() };
    let mut f = Fields::of(node.value, node.path, cx, out);
    let names = f.texts("accessLogging", cx, out);
    for other in ["metrics", "tracing"] {
        f.texts(other, cx, out);
    }
    f.finish(cx, out);
    names
}

fn provider(item: Located<&Node>, cx: &Context, out: &mut Findings) -> Option<Provider> {
    let mut f = Fields::of(item.value, item.path.clone(), cx, out);
    let Some(name) = f.text("name", cx, out).filter(|name| !name.value.is_empty()) else {
        out.errors.push(cx.notice(item.at, &f.path_of("name"), "missing"));
        return None;
    };
    let writes = match f.take("envoyFileAccessLog") {
        Some(file) => Writes::To(file_log(file, cx, out)?),
        None => {
            let kind = OTHER_KINDS.iter().find(|kind| f.take(kind).is_some());
            Writes::Elsewhere(kind.map_or("nothing", |kind| kind).to_owned())
        }
    };
    f.finish(cx, out);
    Some(Provider { name: name.value, writes })
}

fn file_log(node: Located<&Node>, cx: &Context, out: &mut Findings) -> Option<LogSettings> {
    let mut f = Fields::of(node.value, node.path.clone(), cx, out);
    let path = f.text("path", cx, out);
    let format = f.take("logFormat").map(|node| log_format(node, cx, out));
    let path_of = f.path_of("path");
    f.finish(cx, out);
    let Some(target) = path.and_then(|path| target(&path.value)) else {
        out.errors.push(cx.notice(node.at, &path_of, "missing; give a file or /dev/stdout"));
        return None;
    };
    let format = format.unwrap_or_else(|| Format::built_in(Encoding::Text));
    Some(LogSettings { target, format: Arc::new(format), filter: None })
}

fn log_format(node: Located<&Node>, cx: &Context, out: &mut Findings) -> Format {
    let mut f = Fields::of(node.value, node.path, cx, out);
    let text = f.text("text", cx, out);
    let labels = f.take("labels");
    f.take("omitEmptyValues");
    f.finish(cx, out);
    let (at, path, parsed) = match (text, labels) {
        (_, Some(labels)) => {
            let parsed = match json(labels.value) {
                Some(serde_json::Value::Object(keys)) if keys.is_empty() => {
                    Ok(Format::built_in(Encoding::Json))
                }
                Some(serde_json::Value::Object(keys)) => Format::json(&keys),
                _ => Format::json_text("[]"),
            };
            (labels.at, labels.path, parsed)
        }
        (Some(text), None) if !text.value.is_empty() => {
            let parsed = Format::text(&text.value);
            (text.at, text.path, parsed)
        }
        _ => return Format::built_in(Encoding::Text),
    };
    parsed.unwrap_or_else(|error| {
        out.errors.push(cx.notice(at, &path, error.to_string()));
        Format::built_in(Encoding::Json)
    })
}

/// A tree as JSON; `None` where it holds what JSON formats do not.
fn json(node: &Node) -> Option<serde_json::Value> {
    Some(match &node.value {
        Value::Null => serde_json::Value::Null,
        Value::Bool(value) => (*value).into(),
        Value::Int(value) => (*value).into(),
        Value::Float(value) => (*value).into(),
        Value::Text(text) => text.as_str().into(),
        Value::List(items) => items.iter().map(json).collect::<Option<Vec<_>>>()?.into(),
        Value::Map(entries) => {
            let entry = |(key, value): &(super::node::Key, Node)| {
                json(value).map(|value| (key.name.clone(), value))
            };
            entries.iter().map(entry).collect::<Option<serde_json::Map<_, _>>>()?.into()
        }
    })
}
