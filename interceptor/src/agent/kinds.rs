//! What the agent reads from the API server, and what of each object is kept: what policy reads and
//! nothing else, so that an update of anything else is none.

use std::fmt;

use serde_json::{Map, Value, json};

/// A kind of object.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// `networking.istio.io`.
    ServiceEntry,
    /// `networking.istio.io`.
    WorkloadEntry,
    /// `networking.istio.io`.
    VirtualService,
    /// `networking.istio.io`.
    DestinationRule,
    /// `networking.istio.io`.
    Sidecar,
    /// `telemetry.istio.io`.
    Telemetry,
    /// `egress.interceptor.io`: our own.
    InterceptorConfig,
    /// Core.
    Service,
    /// `discovery.k8s.io`.
    EndpointSlice,
    /// Core; the mesh configuration and what `configmap://` names.
    ConfigMap,
    /// Core; what `credentialName` names.
    Secret,
    /// Core; for its labels.
    Namespace,
    /// Core; those of this node.
    Pod,
}

/// Where objects of a kind are to be kept on disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Shelf {
    /// What policy is made of.
    Policy,
    /// Private keys.
    Secrets,
    /// Who there is to cover.
    Workloads,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 13] = [
        Self::ServiceEntry,
        Self::WorkloadEntry,
        Self::VirtualService,
        Self::DestinationRule,
        Self::Sidecar,
        Self::Telemetry,
        Self::InterceptorConfig,
        Self::Service,
        Self::EndpointSlice,
        Self::ConfigMap,
        Self::Secret,
        Self::Namespace,
        Self::Pod,
    ];

    /// As `kind` has it.
    pub fn name(self) -> &'static str {
        match self {
            Self::ServiceEntry => "ServiceEntry",
            Self::WorkloadEntry => "WorkloadEntry",
            Self::VirtualService => "VirtualService",
            Self::DestinationRule => "DestinationRule",
            Self::Sidecar => "Sidecar",
            Self::Telemetry => "Telemetry",
            Self::InterceptorConfig => "InterceptorConfig",
            Self::Service => "Service",
            Self::EndpointSlice => "EndpointSlice",
            Self::ConfigMap => "ConfigMap",
            Self::Secret => "Secret",
            Self::Namespace => "Namespace",
            Self::Pod => "Pod",
        }
    }

    /// As paths of the API have it.
    pub fn plural(self) -> &'static str {
        match self {
            Self::ServiceEntry => "serviceentries",
            Self::WorkloadEntry => "workloadentries",
            Self::VirtualService => "virtualservices",
            Self::DestinationRule => "destinationrules",
            Self::Sidecar => "sidecars",
            Self::Telemetry => "telemetries",
            Self::InterceptorConfig => "interceptorconfigs",
            Self::Service => "services",
            Self::EndpointSlice => "endpointslices",
            Self::ConfigMap => "configmaps",
            Self::Secret => "secrets",
            Self::Namespace => "namespaces",
            Self::Pod => "pods",
        }
    }

    /// Its API group; empty for the core.
    pub fn group(self) -> &'static str {
        match self {
            Self::Telemetry => "telemetry.istio.io",
            Self::InterceptorConfig => "egress.interceptor.io",
            Self::EndpointSlice => "discovery.k8s.io",
            kind if kind.is_custom() => "networking.istio.io",
            _ => "",
        }
    }

    /// The versions that can be read, the best first: all say the same of what is read.
    pub fn versions(self) -> &'static [&'static str] {
        match self {
            Self::Telemetry => &["v1", "v1alpha1"],
            Self::InterceptorConfig => &["v1alpha1"],
            kind if kind.is_custom() => &["v1", "v1beta1", "v1alpha3"],
            _ => &["v1"],
        }
    }

    /// Whether it is one of Istio's.
    pub fn is_istios(self) -> bool {
        matches!(
            self,
            Self::ServiceEntry
                | Self::WorkloadEntry
                | Self::VirtualService
                | Self::DestinationRule
                | Self::Sidecar
                | Self::Telemetry
        )
    }

    /// Whether it has a definition of its own, which a cluster may not have.
    pub fn is_custom(self) -> bool {
        self.is_istios() || self == Self::InterceptorConfig
    }

    /// Whether its objects are told in their status what became of them.
    pub fn has_conditions(self) -> bool {
        matches!(
            self,
            Self::ServiceEntry
                | Self::VirtualService
                | Self::DestinationRule
                | Self::InterceptorConfig
        )
    }

    /// Where it is kept.
    pub fn shelf(self) -> Shelf {
        match self {
            Self::Secret => Shelf::Secrets,
            Self::Namespace | Self::Pod => Shelf::Workloads,
            _ => Shelf::Policy,
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// An object's name and namespace; the latter is empty for what has none.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Name {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

impl Name {
    /// Whether a text can be the name of an object: what stands in paths and selectors.
    pub fn is_plain(text: &str) -> bool {
        let good = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'-' | b'.');
        (1..=253).contains(&text.len()) && text.bytes().all(good) && !text.starts_with('.')
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.namespace.as_str() {
            "" => f.write_str(&self.name),
            namespace => write!(f, "{namespace}/{}", self.name),
        }
    }
}

/// An object as it is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Object {
    /// What it is called.
    pub name: Name,
    /// One line of JSON that YAML reads alike.
    pub text: String,
    /// What its status says, of a kind that has conditions.
    pub standing: Option<Standing>,
}

/// What an object's status says of what became of it. No part of what policy reads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Standing {
    /// Tells it from another object of the same name.
    pub uid: String,
    /// Counts up with each change of its `spec`.
    pub generation: i64,
    /// Of this one and no other: a status is written over this version only.
    pub resource_version: String,
    /// `status.conditions`, others' too.
    pub conditions: Vec<Value>,
}

impl Standing {
    fn of(object: &Value) -> Option<Self> {
        let text = |path: &str| object.pointer(path).and_then(Value::as_str).unwrap_or_default();
        let conditions = object.pointer("/status/conditions").and_then(Value::as_array);
        Some(Self {
            uid: text("/metadata/uid").to_owned(),
            generation: object.pointer("/metadata/generation").and_then(Value::as_i64)?,
            resource_version: text("/metadata/resourceVersion").to_owned(),
            conditions: conditions.cloned().unwrap_or_default(),
        })
    }
}

impl Object {
    /// What is kept of `object`, which the API server gave in `version`; `None` without a name.
    pub fn of(kind: Kind, version: &str, object: &Value) -> Option<Self> {
        let text = |path: &str| object.pointer(path).and_then(Value::as_str);
        let name = Name {
            namespace: text("/metadata/namespace").unwrap_or_default().to_owned(),
            name: text("/metadata/name").filter(|name| !name.is_empty())?.to_owned(),
        };
        let api_version = match kind.group() {
            "" => version.to_owned(),
            group => format!("{group}/{version}"),
        };
        let mut kept = json!({
            "apiVersion": api_version,
            "kind": kind.name(),
            "metadata": metadata(kind, object),
        });
        for (field, value) in content(kind, object) {
            kept[field] = value;
        }
        let standing = kind.has_conditions().then(|| Standing::of(object)).flatten();
        Some(Self { name, text: one_line(kept), standing })
    }

    /// The mesh configuration's ConfigMap, of which nothing but the key `mesh` is kept; `None` where
    /// it has none.
    pub fn of_mesh(object: &Value) -> Option<Self> {
        let mesh = object.pointer("/data/mesh")?.clone();
        let mut kept = Self::of(Kind::ConfigMap, "v1", object)?;
        let whole = json!({
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": metadata(Kind::ConfigMap, object),
            "data": {"mesh": mesh},
        });
        kept.text = one_line(whole);
        Some(kept)
    }

    /// Reads a line that [`Self::of`] wrote; `None` where it is none.
    pub fn read(line: &str) -> Option<(Kind, Self)> {
        let value: Value = serde_json::from_str(line).ok()?;
        let kind = value.get("kind")?.as_str()?;
        let kind = Kind::ALL.into_iter().find(|known| known.name() == kind)?;
        let text = |path: &str| value.pointer(path).and_then(Value::as_str);
        let name = Name {
            namespace: text("/metadata/namespace").unwrap_or_default().to_owned(),
            name: text("/metadata/name")?.to_owned(),
        };
        Some((kind, Self { name, text: line.to_owned(), standing: None }))
    }
}

/// The metadata that is read. `resourceVersion` and `managedFields` change with every touch.
fn metadata(kind: Kind, object: &Value) -> Value {
    let mut kept = Map::new();
    let mut fields = vec!["name", "namespace", "creationTimestamp", "labels"];
    if kind == Kind::Pod {
        fields.push("uid");
    }
    for field in fields {
        keep(&mut kept, field, object.pointer(&format!("/metadata/{field}")));
    }
    if let Some(annotations) = object.pointer("/metadata/annotations").and_then(Value::as_object) {
        let read = |key: &str| {
            let domain = key.split('/').next().unwrap_or_default();
            domain.ends_with("istio.io") || key == "kubernetes.io/config.hash"
        };
        let annotations: Map<_, _> = annotations
            .iter()
            .filter(|(key, _)| read(key))
            .map(|(key, value)| (key.clone(), value.clone()))
            .collect();
        if !annotations.is_empty() {
            kept.insert("annotations".to_owned(), annotations.into());
        }
    }
    kept.into()
}

/// The rest of an object, field by field.
fn content(kind: Kind, object: &Value) -> Map<String, Value> {
    let mut kept = Map::new();
    let all: &[&str] = match kind {
        Kind::ServiceEntry
        | Kind::InterceptorConfig
        | Kind::WorkloadEntry
        | Kind::VirtualService
        | Kind::DestinationRule
        | Kind::Sidecar
        | Kind::Telemetry
        | Kind::Service => &["spec"],
        Kind::EndpointSlice => &["addressType", "ports"],
        Kind::ConfigMap | Kind::Secret | Kind::Namespace | Kind::Pod => &[],
    };
    for field in all {
        keep(&mut kept, field, object.get(*field));
    }
    match kind {
        // The addresses that a controller allocated (RES-18).
        Kind::ServiceEntry => {
            if let Some(addresses) = object.pointer("/status/addresses") {
                kept.insert("status".to_owned(), json!({"addresses": addresses}));
            }
        }
        Kind::EndpointSlice => {
            let endpoints = object.get("endpoints").and_then(Value::as_array);
            let endpoints = endpoints.into_iter().flatten();
            let endpoints =
                endpoints.map(|one| pick(one, &["addresses", "conditions", "hostname"]));
            kept.insert("endpoints".to_owned(), endpoints.collect());
        }
        // Nothing but credentials: a ConfigMap with the key `mesh` is the mesh configuration, and a
        // credential's owner has no say in that.
        Kind::ConfigMap | Kind::Secret => {
            let keys = [
                "tls.crt", "cert", "tls.key", "key", "ca.crt", "cacert", "ca.crl", "crl",
                // An egress proxy's.
                "username", "password",
            ];
            let data = object.get("data").map(|data| pick(data, &keys));
            keep(&mut kept, "data", data.as_ref());
        }
        Kind::Pod => {
            let empty = Value::Null;
            let spec = object.get("spec").unwrap_or(&empty);
            let mut kept_spec = pick(
                spec,
                &[
                    "nodeName",
                    "serviceAccountName",
                    "hostNetwork",
                    "dnsPolicy",
                    "priorityClassName",
                ],
            );
            if let Some(dns) = spec.get("dnsConfig") {
                kept_spec["dnsConfig"] = pick(dns, &["nameservers"]);
            }
            for list in ["containers", "initContainers", "ephemeralContainers"] {
                each(&mut kept_spec, spec, list, &["name"]);
                let all = spec.get(list).and_then(Value::as_array).into_iter().flatten();
                for (place, one) in all.enumerate() {
                    if one.pointer("/securityContext/privileged") == Some(&Value::Bool(true)) {
                        kept_spec[list][place]["securityContext"] = json!({"privileged": true});
                    }
                }
            }
            let status = object.get("status").unwrap_or(&empty);
            let mut kept_status = pick(status, &["phase", "qosClass"]);
            let lists =
                ["containerStatuses", "initContainerStatuses", "ephemeralContainerStatuses"];
            for list in lists {
                each(&mut kept_status, status, list, &["name", "containerID"]);
            }
            kept.insert("spec".to_owned(), kept_spec);
            kept.insert("status".to_owned(), kept_status);
        }
        _ => {}
    }
    kept
}

fn keep(kept: &mut Map<String, Value>, field: &str, value: Option<&Value>) {
    if let Some(value) = value.filter(|value| !value.is_null()) {
        kept.insert(field.to_owned(), value.clone());
    }
}

fn pick(object: &Value, fields: &[&str]) -> Value {
    let mut kept = Map::new();
    for field in fields {
        keep(&mut kept, field, object.get(*field));
    }
    kept.into()
}

fn each(kept: &mut Value, object: &Value, list: &str, fields: &[&str]) {
    if let Some(items) = object.get(list).and_then(Value::as_array) {
        kept[list] = items.iter().map(|item| pick(item, fields)).collect();
    }
}

/// Longer keys are cut: no field, label (317) or key of a Secret (253) is as long as this.
const LONGEST_KEY: usize = 400;

/// Makes each key one that YAML can have: at most 1024 characters on its line, escapes included. One
/// that it cannot would make the whole set unreadable.
fn tame_keys(value: &mut Value) {
    let is_tame = |c: char| matches!(c, ' '..='~') && !matches!(c, '"' | '\\' | '&');
    match value {
        Value::Object(fields) => {
            if fields.keys().any(|key| key.len() > LONGEST_KEY || !key.chars().all(is_tame)) {
                let all = std::mem::take(fields).into_iter();
                // No name of anything has a question mark.
                let tamed = |key: String| -> String {
                    let kept = key.chars().take(LONGEST_KEY);
                    kept.map(|c| if is_tame(c) { c } else { '?' }).collect()
                };
                *fields = all.map(|(key, value)| (tamed(key), value)).collect();
            }
            fields.values_mut().for_each(tame_keys);
        }
        Value::Array(items) => items.iter_mut().for_each(tame_keys),
        _ => {}
    }
}

/// JSON that YAML reads as the same document, cut from its neighbours by `---`: what YAML gives a
/// meaning, or cannot have, is escaped.
fn one_line(mut value: Value) -> String {
    tame_keys(&mut value);
    let json = value.to_string();
    let plain = |c: char| {
        matches!(c, ' '..='~' | '\u{a0}'..='\u{d7ff}' | '\u{e000}'..='\u{fffd}' | '\u{10000}'..)
            && !matches!(c, '&' | '\u{feff}' | '\u{2028}' | '\u{2029}')
    };
    if json.chars().all(plain) {
        return json;
    }
    let mut text = String::with_capacity(json.len() + 16);
    for c in json.chars() {
        match c {
            c if plain(c) => text.push(c),
            // None of them is a part of JSON's own notation, so they stand within strings.
            c => {
                let mut units = [0; 2];
                for unit in c.encode_utf16(&mut units) {
                    text.push_str(&format!("\\u{unit:04x}"));
                }
            }
        }
    }
    text
}

#[cfg(test)]
#[path = "kinds_tests.rs"]
mod tests;
