//! A case as written: rules and caller, the world outside, the flow.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use serde::Deserialize;
use serde::de::Error as _;
use serde_json::{Map, Value};

use super::expect::Expect;

/// Most requests that one case may repeat.
const MAX_REPEAT: u32 = 100_000;

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
    /// `proxyMetadata` switches DNS capture on (RES-18).
    pub(super) dns_capture: bool,
    /// The flow enters a gateway at this address.
    pub(super) gateway: Option<IpAddr>,
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

impl Flow {
    /// What the types cannot say.
    pub(super) fn check(&self) -> Result<(), String> {
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
