//! A record as one line: Envoy's default formats (LOG-1, LOG-30) and custom ones (MESH-3), read once
//! when policy is loaded. Whatever a client or upstream chose is escaped (T-56), so one record stays
//! one line and no field can be mistaken for its neighbour.

use std::fmt::Write as _;

use serde::ser::{Serialize, SerializeMap as _, SerializeSeq as _, Serializer};

use super::Record;
use super::escape::{AsciiControls, Spaces, cut, escape};
use super::operators::{Operator, PodField, What};
use super::values::Value;
use super::wanted::Wanted;

/// LOG-1, byte for byte.
const TEXT: &str = concat!(
    r#"[%START_TIME%] "%REQ(:METHOD)% %REQ(X-ENVOY-ORIGINAL-PATH?:PATH)% %PROTOCOL%" "#,
    "%RESPONSE_CODE% %RESPONSE_FLAGS% %RESPONSE_CODE_DETAILS% %CONNECTION_TERMINATION_DETAILS% ",
    r#""%UPSTREAM_TRANSPORT_FAILURE_REASON%" %BYTES_RECEIVED% %BYTES_SENT% %DURATION% "#,
    r#"%RESP(X-ENVOY-UPSTREAM-SERVICE-TIME)% "%REQ(X-FORWARDED-FOR)%" "%REQ(USER-AGENT)%" "#,
    r#""%REQ(X-REQUEST-ID)%" "%REQ(:AUTHORITY)%" "%UPSTREAM_HOST%" %UPSTREAM_CLUSTER_RAW% "#,
    "%UPSTREAM_LOCAL_ADDRESS% %DOWNSTREAM_LOCAL_ADDRESS% %DOWNSTREAM_REMOTE_ADDRESS% ",
    "%REQUESTED_SERVER_NAME% %ROUTE_NAME%\n",
);

/// LOG-30: keys and what they hold.
const JSON: &[(&str, &str)] = &[
    ("start_time", "%START_TIME%"),
    ("route_name", "%ROUTE_NAME%"),
    ("method", "%REQ(:METHOD)%"),
    ("path", "%REQ(X-ENVOY-ORIGINAL-PATH?:PATH)%"),
    ("protocol", "%PROTOCOL%"),
    ("response_code", "%RESPONSE_CODE%"),
    ("response_flags", "%RESPONSE_FLAGS%"),
    ("response_code_details", "%RESPONSE_CODE_DETAILS%"),
    ("connection_termination_details", "%CONNECTION_TERMINATION_DETAILS%"),
    ("bytes_received", "%BYTES_RECEIVED%"),
    ("bytes_sent", "%BYTES_SENT%"),
    ("duration", "%DURATION%"),
    ("upstream_service_time", "%RESP(X-ENVOY-UPSTREAM-SERVICE-TIME)%"),
    ("x_forwarded_for", "%REQ(X-FORWARDED-FOR)%"),
    ("user_agent", "%REQ(USER-AGENT)%"),
    ("request_id", "%REQ(X-REQUEST-ID)%"),
    ("authority", "%REQ(:AUTHORITY)%"),
    ("upstream_host", "%UPSTREAM_HOST%"),
    ("upstream_cluster", "%UPSTREAM_CLUSTER_RAW%"),
    ("upstream_local_address", "%UPSTREAM_LOCAL_ADDRESS%"),
    ("downstream_local_address", "%DOWNSTREAM_LOCAL_ADDRESS%"),
    ("downstream_remote_address", "%DOWNSTREAM_REMOTE_ADDRESS%"),
    ("requested_server_name", "%REQUESTED_SERVER_NAME%"),
    ("upstream_transport_failure_reason", "%UPSTREAM_TRANSPORT_FAILURE_REASON%"),
];

/// Further keys where workloads are pods: a line of a node tells whose it is, as a sidecar's does by where it
/// is found. The text form has none: its readers count its fields (LOG-1).
const POD: &[(&str, PodField)] = &[
    ("pod_namespace", PodField::Namespace),
    ("pod_name", PodField::Name),
    ("service_account", PodField::ServiceAccount),
];

/// How lines look, apart from the format's own words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Encoding {
    /// A format string (LOG-1).
    #[default]
    Text,
    /// One JSON object a line (LOG-30).
    Json,
}

/// How a record becomes a line.
#[derive(Debug, Clone, PartialEq)]
pub struct Format(Shape);

#[derive(Debug, Clone, PartialEq)]
enum Shape {
    Text(Vec<Piece>),
    Json(Vec<(String, Template)>),
}

/// A value of a JSON format.
#[derive(Debug, Clone, PartialEq)]
enum Template {
    /// Text with operators; one operator alone keeps its type (LOG-31).
    Pieces(Vec<Piece>),
    Object(Vec<(String, Template)>),
    List(Vec<Template>),
    /// Absent where there is no pod.
    Pod(PodField),
    /// A number, `true`, `false` or `null` of the format itself.
    Constant(serde_json::Value),
}

/// A part of a format string.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Piece {
    Literal(String),
    Operator(Operator),
}

/// Why a format cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FormatError {
    /// In a format string.
    #[error("character {at}: {message}")]
    Operator {
        /// From 1.
        at: usize,
        /// What is wrong.
        message: String,
    },
    /// In the value of one key of a JSON format.
    #[error("{key}: {source}")]
    Key {
        /// The key.
        key: String,
        /// What is wrong with its value.
        source: Box<FormatError>,
    },
    /// Not a JSON object.
    #[error("{0}")]
    Json(String),
}

impl Default for Format {
    /// LOG-1.
    fn default() -> Self {
        Self::built_in(Encoding::Text)
    }
}

impl Format {
    /// The built-in format of an encoding (LOG-1, LOG-30).
    pub fn built_in(encoding: Encoding) -> Self {
        let own = "the built-in formats name known operators only";
        match encoding {
            Encoding::Text => Self(Shape::Text(pieces(TEXT).expect(own))),
            Encoding::Json => {
                let value = |text: &str| Template::Pieces(pieces(text).expect(own));
                let keys = JSON.iter().map(|(key, text)| ((*key).to_owned(), value(text)));
                let pod = POD.iter().map(|(key, field)| ((*key).to_owned(), Template::Pod(*field)));
                Self(Shape::Json(keys.chain(pod).collect()))
            }
        }
    }

    /// A custom format string; ends its lines with a newline if it does not say so (MESH-3).
    ///
    /// # Errors
    /// An operator that is unknown or written wrongly, with its place.
    pub fn text(format: &str) -> Result<Self, FormatError> {
        let mut pieces = pieces(format)?;
        if !format.ends_with('\n') {
            push_literal(&mut pieces, "\n");
        }
        Ok(Self(Shape::Text(pieces)))
    }

    /// A custom JSON format: key to format string, or to an object or list of such.
    ///
    /// # Errors
    /// As for [`Format::text`], with the key.
    pub fn json(labels: &serde_json::Map<String, serde_json::Value>) -> Result<Self, FormatError> {
        Ok(Self(Shape::Json(object(labels)?)))
    }

    /// A custom JSON format as JSON text (MESH-3 with `accessLogEncoding: JSON`).
    ///
    /// # Errors
    /// Not a JSON object, or as for [`Format::json`].
    pub fn json_text(format: &str) -> Result<Self, FormatError> {
        match serde_json::from_str(format) {
            Ok(serde_json::Value::Object(labels)) => Self::json(&labels),
            Ok(_) => Err(FormatError::Json("expected a JSON object of key to format".into())),
            Err(error) => Err(FormatError::Json(format!("not a JSON object: {error}"))),
        }
    }

    /// The line of `record`, its newline included.
    pub fn line(&self, record: &Record) -> String {
        match &self.0 {
            Shape::Text(pieces) => text_line(pieces, record),
            Shape::Json(keys) => json_line(keys, record),
        }
    }

    /// Adds what lines of this format print.
    pub(super) fn want(&self, wanted: &mut Wanted) {
        match &self.0 {
            Shape::Text(pieces) => want_pieces(pieces, wanted),
            Shape::Json(keys) => keys.iter().for_each(|(_, value)| value.want(wanted)),
        }
    }
}

impl Template {
    fn parse(value: &serde_json::Value) -> Result<Self, FormatError> {
        Ok(match value {
            serde_json::Value::String(text) => Self::Pieces(pieces(text)?),
            serde_json::Value::Object(labels) => Self::Object(object(labels)?),
            serde_json::Value::Array(items) => {
                Self::List(items.iter().map(Self::parse).collect::<Result<_, _>>()?)
            }
            constant => Self::Constant(constant.clone()),
        })
    }

    fn want(&self, wanted: &mut Wanted) {
        match self {
            Self::Pieces(pieces) => want_pieces(pieces, wanted),
            Self::Object(keys) => keys.iter().for_each(|(_, value)| value.want(wanted)),
            Self::List(items) => items.iter().for_each(|value| value.want(wanted)),
            Self::Constant(_) | Self::Pod(_) => {}
        }
    }
}

fn object(
    labels: &serde_json::Map<String, serde_json::Value>,
) -> Result<Vec<(String, Template)>, FormatError> {
    let read = |(key, value): (&String, &serde_json::Value)| match Template::parse(value) {
        Ok(template) => Ok((key.clone(), template)),
        Err(source) => Err(FormatError::Key { key: key.clone(), source: Box::new(source) }),
    };
    labels.iter().map(read).collect()
}

pub(super) fn want_pieces(pieces: &[Piece], wanted: &mut Wanted) {
    for piece in pieces {
        let Piece::Operator(Operator { what, .. }) = piece else { continue };
        match what {
            What::Header(head, name, other) => {
                wanted.add(*head, name);
                other.iter().for_each(|other| wanted.add(*head, other));
            }
            What::Plain(plain) => wanted.tls |= plain.is_tls(),
            _ => {}
        }
    }
}

/// Reads a format string.
pub(super) fn pieces(format: &str) -> Result<Vec<Piece>, FormatError> {
    let mut pieces = Vec::new();
    let mut done = 0;
    while let Some(found) = format[done..].find('%') {
        let start = done + found;
        push_literal(&mut pieces, &format[done..start]);
        let inside = &format[start + 1..];
        if inside.starts_with('%') {
            push_literal(&mut pieces, "%");
            done = start + 2;
            continue;
        }
        let (operator, length) = operator(inside).map_err(|message| FormatError::Operator {
            at: format[..start].chars().count() + 1,
            message,
        })?;
        pieces.push(Piece::Operator(operator));
        done = start + 1 + length;
    }
    push_literal(&mut pieces, &format[done..]);
    Ok(pieces)
}

/// Reads `NAME(ARGUMENT):LENGTH%` at the start of `text`; gives its length too.
fn operator(text: &str) -> Result<(Operator, usize), String> {
    let is_name = |c: char| c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_';
    let name_end = text.find(|c| !is_name(c)).unwrap_or(text.len());
    let (name, mut rest) = text.split_at(name_end);
    if name.is_empty() {
        return Err("a % starts an operator like %PROTOCOL%; write %% for the sign itself".into());
    }
    let mut argument = None;
    if let Some(inside) = rest.strip_prefix('(') {
        let (inside, after) =
            inside.split_once(')').ok_or_else(|| format!("{name}( is not closed"))?;
        (argument, rest) = (Some(inside), after);
    }
    let mut max = None;
    if let Some(digits) = rest.strip_prefix(':') {
        let end = digits.find(|c: char| !c.is_ascii_digit()).unwrap_or(digits.len());
        let parsed = digits[..end].parse();
        max = Some(parsed.map_err(|_| format!("{name}: a length follows the colon"))?);
        rest = &digits[end..];
    }
    let Some(rest) = rest.strip_prefix('%') else {
        return Err(format!("{name} is not ended by %"));
    };
    Ok((Operator::parse(name, argument, max)?, text.len() - rest.len()))
}

fn push_literal(pieces: &mut Vec<Piece>, text: &str) {
    if text.is_empty() {
        return;
    }
    match pieces.last_mut() {
        Some(Piece::Literal(before)) => before.push_str(text),
        _ => pieces.push(Piece::Literal(text.to_owned())),
    }
}

fn text_line(pieces: &[Piece], record: &Record) -> String {
    let mut line = String::with_capacity(512);
    for (i, piece) in pieces.iter().enumerate() {
        match piece {
            Piece::Literal(text) => line.push_str(text),
            Piece::Operator(operator) => match operator.value(record) {
                Value::Missing => line.push('-'),
                Value::Text(text) if text.is_empty() => line.push('-'),
                // Writing to a String cannot fail.
                Value::Number(number) => _ = write!(line, "{number}"),
                Value::Text(text) => {
                    let spaces = if operator.joins_words() {
                        Spaces::Underscore
                    } else if in_quotes(pieces, i) {
                        Spaces::Keep
                    } else {
                        Spaces::Escape
                    };
                    escape(&text, spaces, &mut line);
                }
            },
        }
    }
    line
}

/// Whether the operator at `i` stands alone between two quotes, so that spaces cannot end it.
fn in_quotes(pieces: &[Piece], i: usize) -> bool {
    let before = i.checked_sub(1).and_then(|i| pieces.get(i));
    let starts = matches!(before, Some(Piece::Literal(text)) if text.ends_with('"'));
    let ends = matches!(pieces.get(i + 1), Some(Piece::Literal(text)) if text.starts_with('"'));
    starts && ends
}

fn json_line(keys: &[(String, Template)], record: &Record) -> String {
    let mut out = Vec::with_capacity(1024);
    Printed::object(keys, record)
        .serialize(&mut serde_json::Serializer::with_formatter(&mut out, AsciiControls))
        .expect("strings and numbers always serialise, and a Vec takes every write");
    out.push(b'\n');
    String::from_utf8(out).expect("serde_json writes UTF-8 only")
}

/// A template with the record that fills it.
enum Printed<'a> {
    Value(&'a Template, &'a Record),
    Object(&'a [(String, Template)], &'a Record),
}

impl<'a> Printed<'a> {
    fn object(keys: &'a [(String, Template)], record: &'a Record) -> Self {
        Self::Object(keys, record)
    }
}

impl Serialize for Printed<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let (template, record) = match self {
            Self::Value(template, record) => (template, record),
            Self::Object(keys, record) => {
                let has_pod = record.more.pod.is_some();
                let there = |value: &Template| has_pod || !matches!(value, Template::Pod(_));
                let mut map = serializer.serialize_map(None)?;
                for (key, value) in keys.iter().filter(|(_, value)| there(value)) {
                    map.serialize_entry(key, &Printed::Value(value, record))?;
                }
                return map.end();
            }
        };
        match template {
            Template::Constant(value) => value.serialize(serializer),
            Template::Pod(field) => {
                let value = record.more.pod.as_deref().map(|pod| field.of(pod));
                serializer.serialize_str(cut(value.unwrap_or_default()))
            }
            Template::Object(keys) => Printed::object(keys, record).serialize(serializer),
            Template::List(items) => {
                let mut list = serializer.serialize_seq(Some(items.len()))?;
                for item in items {
                    list.serialize_element(&Printed::Value(item, record))?;
                }
                list.end()
            }
            Template::Pieces(pieces) => match pieces.as_slice() {
                [Piece::Operator(operator)] => match operator.value(record) {
                    Value::Missing => serializer.serialize_unit(),
                    Value::Number(number) => serializer.serialize_u64(number),
                    Value::Text(text) => serializer.serialize_str(cut(&text)),
                },
                pieces => serializer.serialize_str(&mixed(pieces, record)),
            },
        }
    }
}

/// LOG-31: text and operators in one value make a string, with `-` for what is missing.
fn mixed(pieces: &[Piece], record: &Record) -> String {
    let mut out = String::new();
    for piece in pieces {
        match piece {
            Piece::Literal(text) => out.push_str(text),
            Piece::Operator(operator) => match operator.value(record) {
                Value::Missing => out.push('-'),
                // Writing to a String cannot fail.
                Value::Number(number) => _ = write!(out, "{number}"),
                Value::Text(text) => out.push_str(cut(&text)),
            },
        }
    }
    out
}

#[cfg(test)]
#[path = "format_tests.rs"]
pub(super) mod tests;

#[cfg(test)]
#[path = "custom_format_tests.rs"]
mod custom_tests;
