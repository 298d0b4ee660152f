//! What stands in for an object that cannot be used and never could: an object that refuses what the
//! real one was about, since without it more could be allowed. Pure, JSON to JSON.

use serde_json::{Value, json};

use super::kinds::Kind;
use crate::decide::pattern::EntryHost;

/// What is in force in an object's place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum StandIn {
    /// Its last good version.
    LastGood(String),
    /// An object that refuses what it is about.
    Closed(String),
    /// Nothing: without it less is allowed.
    Nothing,
}

impl StandIn {
    /// The document, if there is one.
    pub(super) fn text(&self) -> Option<&str> {
        match self {
            Self::LastGood(text) | Self::Closed(text) => Some(text),
            Self::Nothing => None,
        }
    }

    /// What there is to say of it, after what is wrong with the object.
    pub(super) fn remark(&self) -> &'static str {
        match self {
            Self::LastGood(_) => "; its last good version stays",
            Self::Closed(_) => "; until it is mended, what it is about is refused",
            Self::Nothing => "",
        }
    }
}

/// A host that no resource has: what is routed to it goes nowhere.
const NOWHERE: &str = "nowhere.interceptor.invalid";

/// No object has this label, so that what selects by it selects nothing.
const NOBODY: &str = "egress.interceptor.io/nobody";

/// A credential that nobody can have: an object's name has no capitals. Of a ConfigMap, since others are
/// passed over in istio where the rule selects no workloads (TLS-9).
const NO_CREDENTIAL: &str = "configmap://NONE";

/// What stands in for an object that was never good. `None`: nobody can tell what it is about, and
/// leaving it out might allow something.
pub(super) fn closed(kind: Kind, document: &str) -> Option<StandIn> {
    // What is not even JSON cannot be read as anything.
    let object: Value = serde_json::from_str(document).unwrap_or_default();
    let spec = match kind {
        Kind::ServiceEntry => {
            return Some(
                service_entry(&object).map_or(StandIn::Nothing, |spec| whole(&object, spec)),
            );
        }
        Kind::VirtualService => virtual_service(&object["spec"]),
        Kind::DestinationRule => destination_rule(&object["spec"]),
        Kind::Sidecar => object.is_object().then(|| Some(sidecar(&object["spec"]))),
        // The mesh configuration is about everything.
        Kind::ConfigMap if object.pointer("/data/mesh").is_some() => None,
        Kind::InterceptorConfig => Some(interceptor_config(&object["spec"])),
        // Endpoints, credentials and what is logged: without them less is reached.
        _ => return Some(StandIn::Nothing),
    };
    spec.map(|spec| spec.map_or(StandIn::Nothing, |spec| whole(&object, spec)))
}

/// `spec` as the object's.
fn whole(object: &Value, spec: Value) -> StandIn {
    let mut metadata = json!({});
    for field in ["name", "namespace", "creationTimestamp"] {
        copy(&mut metadata, &object["metadata"], field, Value::is_string);
    }
    let (version, kind) = (&object["apiVersion"], &object["kind"]);
    let whole = json!({"apiVersion": version, "kind": kind, "metadata": metadata, "spec": spec});
    StandIn::Closed(whole.to_string())
}

/// The same hosts and ports, without an endpoint. `None`: they cannot be read; its hosts are then as if
/// nobody named them.
fn service_entry(object: &Value) -> Option<Value> {
    let spec = &object["spec"];
    let ports = spec["ports"].as_array()?;
    let ports: Option<Vec<Value>> = ports
        .iter()
        .map(|port| {
            let mut kept =
                json!({"number": port["number"].as_u64()?, "name": port["name"].as_str()?});
            copy(&mut kept, port, "protocol", Value::is_string);
            Some(kept)
        })
        .collect();
    let mut kept = json!({
        "hosts": hosts(&spec["hosts"])?, "ports": ports?, "resolution": "STATIC",
        "workloadSelector": {"labels": {NOBODY: "true"}},
    });
    for field in ["exportTo", "addresses"] {
        copy(&mut kept, spec, field, is_texts);
    }
    Some(kept)
}

/// Its hosts get no answer but ours, whatever the protocol. `Some(None)`: it is about no host.
#[expect(clippy::option_option, reason = "not known, nothing, something")]
fn virtual_service(spec: &Value) -> Option<Option<Value>> {
    let reply = json!([{"directResponse": {"status": 503}}]);
    let delegate = spec["hosts"].as_array().is_none_or(Vec::is_empty) && spec.is_object();
    let mut kept = if delegate && (spec["hosts"].is_null() || spec["hosts"].is_array()) {
        json!({"http": reply})
    } else {
        let hosts = hosts(&spec["hosts"])?;
        if hosts.is_empty() {
            return Some(None);
        }
        let route = json!([{"destination": {"host": NOWHERE}}]);
        json!({
            "hosts": hosts, "http": reply, "tcp": [{"route": route}],
            "tls": [{"match": [{"sniHosts": hosts}], "route": route}],
        })
    };
    for field in ["exportTo", "gateways"] {
        copy(&mut kept, spec, field, is_texts);
    }
    Some(Some(kept))
}

/// TLS with a credential that is not there: nothing is sent (TLS-10).
#[expect(clippy::option_option, reason = "not known, nothing, something")]
fn destination_rule(spec: &Value) -> Option<Option<Value>> {
    let host = spec["host"].as_str()?;
    let name = host.trim_start_matches("*.").trim_start_matches('*');
    if host != "*" && EntryHost::parse(name).is_err() {
        return Some(None);
    }
    let tls = json!({"mode": "SIMPLE", "credentialName": NO_CREDENTIAL});
    let mut kept = json!({"host": host, "trafficPolicy": {"tls": tls}});
    copy(&mut kept, spec, "exportTo", is_texts);
    let labels = &spec["workloadSelector"]["matchLabels"];
    if is_labels(labels) {
        kept["workloadSelector"] = json!({"matchLabels": labels});
    }
    Some(Some(kept))
}

/// What was to leave through proxies leaves through none, and so not at all (T-47). Without proxies it is as
/// if nobody had written it.
fn interceptor_config(spec: &Value) -> Option<Value> {
    spec.get("egressProxy").filter(|proxies| !proxies.is_null())?;
    let proxies = json!([{"name": "nowhere", "url": format!("http://{NOWHERE}:1")}]);
    let mut kept = json!({"egressProxy": {"proxies": proxies}});
    let labels = &spec["selector"]["matchLabels"];
    if is_labels(labels) {
        kept["selector"] = json!({"matchLabels": labels});
    }
    Some(kept)
}

/// Its workloads see nothing; whom it selects is taken for everybody where that cannot be read.
fn sidecar(spec: &Value) -> Value {
    let mut kept = json!({
        "egress": [{"hosts": ["~/*"]}], "outboundTrafficPolicy": {"mode": "REGISTRY_ONLY"},
    });
    let labels = &spec["workloadSelector"]["labels"];
    if is_labels(labels) {
        kept["workloadSelector"] = json!({"labels": labels});
    }
    kept
}

/// Those texts of a list that can be hosts; `None` where it is no list of texts.
fn hosts(list: &Value) -> Option<Vec<&str>> {
    let texts: Option<Vec<&str>> = list.as_array()?.iter().map(Value::as_str).collect();
    Some(texts?.into_iter().filter(|text| EntryHost::parse(text).is_ok()).collect())
}

fn is_texts(list: &Value) -> bool {
    list.as_array().is_some_and(|items| items.iter().all(Value::is_string))
}

/// Labels that can select (SEV-10).
fn is_labels(labels: &Value) -> bool {
    let good = |(key, value): (&String, &Value)| {
        !key.is_empty()
            && !key.contains('*')
            && value.as_str().is_some_and(|value| !value.contains('*'))
    };
    labels.as_object().is_some_and(|labels| !labels.is_empty() && labels.iter().all(good))
}

fn copy(to: &mut Value, from: &Value, field: &str, is_good: impl Fn(&Value) -> bool) {
    if let Some(value) = from.get(field).filter(|value| is_good(value)) {
        to[field] = value.clone();
    }
}
