//! What a case expects, as written. Only fields that are given count.

use std::collections::{BTreeMap, BTreeSet};

use regex::Regex;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer};
use serde_json::{Map, Value};

use super::case::OneOrMany;
use super::observed::Verdict;

/// An expectation as written.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Expect {
    pub(super) accepted: Option<bool>,
    pub(super) warning: Option<bool>,

    pub(super) verdict: Option<Verdict>,
    pub(super) status: Option<u16>,
    pub(super) statuses: Option<Vec<u16>>,
    pub(super) body: Option<String>,
    pub(super) response_headers: Option<BTreeMap<String, Option<String>>>,
    pub(super) cluster: Option<String>,
    pub(super) route: Option<String>,
    pub(super) upstream: Option<String>,
    pub(super) flags: Option<BTreeSet<String>>,
    pub(super) details: Option<String>,
    pub(super) details_contains: Option<OneOrMany<String>>,
    pub(super) details_on_503: Option<OneOrMany<String>>,
    pub(super) flags_on_503: Option<OneOrMany<String>>,
    pub(super) body_bytes_on_503: Option<Bounds>,
    pub(super) upstream_tls: Option<ExpectTls>,
    pub(super) upstream_protocol: Option<Version>,
    pub(super) upstream_path: Option<String>,
    pub(super) upstream_host_header: Option<String>,
    pub(super) upstream_headers: Option<BTreeMap<String, Option<String>>>,
    pub(super) connect_request: Option<ExpectConnect>,
    pub(super) proxy_protocol: Option<ProxyVersion>,
    pub(super) also_sent_to: Option<OneOrMany<String>>,
    pub(super) attempts: Option<Bounds>,
    pub(super) distribution: Option<BTreeMap<String, f64>>,
    pub(super) tolerance: Option<f64>,
    pub(super) duration_ms: Option<Bounds>,
    pub(super) bytes_sent: Option<Bounds>,
    pub(super) bytes_to_client: Option<Bounds>,
    pub(super) curl_exit: Option<OneOrMany<u8>>,
    pub(super) log: Option<BTreeMap<String, Value>>,
    pub(super) log_regex: Option<Patterns>,
    pub(super) log_json_keys: Option<BTreeSet<String>>,
    pub(super) log_json: Option<BTreeMap<String, Value>>,
    pub(super) log_lines: Option<u64>,
    pub(super) metric: Option<BTreeMap<String, Value>>,
    // For people.
    pub(super) application_result: Option<Value>,
    pub(super) note_upstream: Option<Value>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ExpectTls {
    pub(super) originated: Option<bool>,
    /// Outer: whether it is given; inner `None`: must not be sent.
    #[serde(default, deserialize_with = "given")]
    pub(super) sni: Option<Option<String>>,
    #[serde(default, deserialize_with = "given")]
    pub(super) alpn: Option<Option<Vec<String>>>,
    pub(super) verify: Option<Verified>,
    pub(super) client_certificate: Option<bool>,
}

/// Tells `null` from absent.
fn given<'de, T: Deserialize<'de>, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<Option<T>>, D::Error> {
    Option::deserialize(deserializer).map(Some)
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ExpectConnect {
    pub(super) method: Option<String>,
    pub(super) authority: Option<String>,
    pub(super) http_version: Option<Version>,
}

/// A closed set of texts: how a server was verified.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Verified(pub(super) String);

impl<'de> Deserialize<'de> for Verified {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let closed = ["system", "file CA", "credential CA", "none", "chain only"];
        if closed.contains(&text.as_str()) || text.starts_with("chain, name ") {
            Ok(Self(text))
        } else {
            Err(D::Error::custom(format!("verify: unknown value \"{text}\"")))
        }
    }
}

/// An HTTP version, in any of the ways that people write it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Version(pub(super) &'static str);

impl<'de> Deserialize<'de> for Version {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let value = Value::deserialize(deserializer)?;
        let text = plain(&value).to_ascii_lowercase();
        match text.trim_start_matches("http/") {
            "1.1" | "http1" | "h1" | "http1.1" => Ok(Self("1.1")),
            "2" | "2.0" | "h2" | "h2c" | "http2" => Ok(Self("2")),
            _ => Err(D::Error::custom(format!("unknown HTTP version \"{text}\""))),
        }
    }
}

/// A version of the PROXY protocol; `null` and `none` say that no header was sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct ProxyVersion(pub(super) &'static str);

impl<'de> Deserialize<'de> for ProxyVersion {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let value = Value::deserialize(deserializer)?;
        match plain(&value).to_ascii_lowercase().as_str() {
            "v1" | "1" => Ok(Self("V1")),
            "v2" | "2" => Ok(Self("V2")),
            "none" | "-" => Ok(Self("-")),
            other => Err(D::Error::custom(format!("proxy_protocol: unknown value \"{other}\""))),
        }
    }
}

/// A number: exact, or between two that both belong to it.
#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
#[serde(untagged)]
pub(super) enum Bounds {
    Exact(u64),
    Range(Range),
}

#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Range {
    pub(super) min: Option<u64>,
    pub(super) max: Option<u64>,
}

impl Bounds {
    pub(super) fn hold(self, value: u64) -> bool {
        match self {
            Self::Exact(exact) => value == exact,
            Self::Range(Range { min, max }) => {
                min.is_none_or(|min| value >= min) && max.is_none_or(|max| value <= max)
            }
        }
    }

    pub(super) fn text(self) -> String {
        let or = |bound: Option<u64>| bound.map_or_else(String::new, |b| b.to_string());
        match self {
            Self::Exact(exact) => exact.to_string(),
            Self::Range(Range { min, max }) => format!("{}..{}", or(min), or(max)),
        }
    }
}

/// Patterns for whole lines. Python's syntax, as far as it is regular: no look-around.
#[derive(Debug, Clone)]
pub(super) struct Patterns(pub(super) Vec<Regex>);

impl<'de> Deserialize<'de> for Patterns {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let texts = OneOrMany::<String>::deserialize(deserializer)?;
        let compile = |text: &String| {
            Regex::new(&format!("^(?:{text})$"))
                .map_err(|error| D::Error::custom(format!("log_regex: {error}")))
        };
        texts.as_slice().iter().map(compile).collect::<Result<_, _>>().map(Self)
    }
}

impl Expect {
    pub(super) fn read(fields: &Map<String, Value>) -> Result<Self, String> {
        serde_json::from_value(Value::Object(fields.clone())).map_err(|error| error.to_string())
    }

    /// What the types cannot say: fields of the other kind of case.
    pub(super) fn check(&self, validation: bool) -> Result<(), String> {
        match (validation, self.accepted.is_some(), self.verdict.is_some()) {
            (true, false, _) => Err("expect.accepted: missing".into()),
            (true, true, true) => Err("expect.verdict: not for a validation case".into()),
            (false, true, _) => Err("expect.accepted: not for a flow case".into()),
            _ => Ok(()),
        }
    }
}

/// A scalar as the text log prints it.
pub(super) fn plain(value: &Value) -> String {
    match value {
        Value::Null => "-".to_owned(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}
