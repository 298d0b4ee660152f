//! A pod as the agent sees it: whether it is to be covered, by its labels; who it is to policy; what
//! its annotations say. Pure.

mod istio;
mod node;

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::cgroups::{ContainerId, PodUid, Qos, pod_paths};
use crate::policy::{Caller, Enforcement};
use crate::workloads::PodIdentity;
use crate::workloads::annotations::{BadList, CaptureLists};

/// The label of a pod, or of its namespace, that says whether it is covered.
pub const MODE: &str = "egress.interceptor.io/mode";

/// What is done to the connections of a pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, clap::ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// What policy does not allow is refused.
    Enforce,
    /// What policy would refuse is reported, and passes.
    Audit,
    /// Nothing: the pod is not covered.
    Disabled,
}

impl Mode {
    fn parse(text: &str) -> Option<Self> {
        match text {
            "enforce" => Some(Self::Enforce),
            "audit" => Some(Self::Audit),
            "disabled" => Some(Self::Disabled),
            _ => None,
        }
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Enforce => "enforce",
            Self::Audit => "audit",
            Self::Disabled => "disabled",
        })
    }
}

/// A Pod object, as far as the agent reads it.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Pod {
    metadata: Metadata,
    #[serde(default)]
    spec: Spec,
    #[serde(default)]
    status: Status,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
struct Metadata {
    name: String,
    #[serde(default)]
    namespace: String,
    #[serde(default)]
    uid: String,
    #[serde(default)]
    labels: BTreeMap<String, String>,
    #[serde(default)]
    annotations: BTreeMap<String, String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Spec {
    service_account_name: Option<String>,
    host_network: bool,
    dns_policy: Option<String>,
    dns_config: DnsConfig,
    priority_class_name: Option<String>,
    containers: Vec<Named>,
    init_containers: Vec<Named>,
    ephemeral_containers: Vec<Named>,
}

#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(default)]
struct DnsConfig {
    nameservers: Vec<IpAddr>,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Named {
    name: String,
    #[serde(default)]
    security_context: SecurityContext,
}

#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(default)]
struct SecurityContext {
    privileged: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Status {
    phase: Option<String>,
    qos_class: Option<Qos>,
    container_statuses: Vec<Running>,
    init_container_statuses: Vec<Running>,
    ephemeral_container_statuses: Vec<Running>,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
struct Running {
    name: String,
    #[serde(rename = "containerID")]
    id: Option<String>,
}

/// What becomes of a pod, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cover {
    /// What is done to its connections.
    pub mode: Mode,
    /// Why, for people: which label, or what else.
    pub because: String,
    /// What its owner should mend or know.
    pub notes: Vec<String>,
}

impl Pod {
    /// Reads a Pod object.
    ///
    /// # Errors
    /// It is none.
    pub fn parse(json: &str) -> Result<Self, serde_json::Error> {
        serde_json::from_str(json)
    }

    /// Its namespace.
    pub fn namespace(&self) -> &str {
        &self.metadata.namespace
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.metadata.name
    }

    /// The service account that it runs as.
    pub fn service_account(&self) -> &str {
        self.spec.service_account_name.as_deref().unwrap_or("default")
    }

    /// Who it is to log lines, metrics and Events.
    pub fn identity(&self) -> PodIdentity {
        PodIdentity {
            namespace: self.namespace().into(),
            name: self.name().into(),
            uid: self.metadata.uid.as_str().into(),
            service_account: self.service_account().into(),
        }
    }

    /// Its labels.
    pub fn labels(&self) -> &BTreeMap<String, String> {
        &self.metadata.labels
    }

    /// Who it is to policy.
    pub fn caller(&self) -> Caller {
        let labels = self.metadata.labels.iter().map(|(key, value)| (key.clone(), value.clone()));
        Caller { namespace: self.metadata.namespace.clone(), labels: labels.collect() }
    }

    /// Its uid in cgroup paths; `None` where the object has none that could be one.
    pub fn uid(&self) -> Option<PodUid> {
        let own = self.metadata.annotations.get("kubernetes.io/config.hash");
        PodUid::parse(own.unwrap_or(&self.metadata.uid))
    }

    /// The classes that its cgroup may be in: the one that its status says, else any.
    pub fn qos(&self) -> &[Qos] {
        self.status.qos_class.as_ref().map_or(&Qos::ALL, std::slice::from_ref)
    }

    /// Where its cgroup may be, relative to the mount of cgroup v2; `root` is kubelet's `--cgroup-root`.
    pub fn cgroup_paths(&self, root: &Path) -> Vec<PathBuf> {
        let Some(uid) = self.uid() else { return Vec::new() };
        let paths = self.qos().iter().flat_map(|qos| pod_paths(root, *qos, &uid));
        paths.map(|(_, path)| path).collect()
    }

    /// Its containers that were started, by name; init and ephemeral ones too.
    pub fn containers(&self) -> impl Iterator<Item = (&str, ContainerId)> {
        let status = &self.status;
        let all = status.init_container_statuses.iter().chain(&status.container_statuses);
        let all = all.chain(&status.ephemeral_container_statuses);
        all.filter_map(|one| Some((one.name.as_str(), ContainerId::parse(one.id.as_deref()?)?)))
    }

    /// Whether none of its processes runs any more.
    pub fn has_ended(&self) -> bool {
        matches!(self.status.phase.as_deref(), Some("Succeeded" | "Failed"))
    }

    /// What is captured of it: `defaults`, and what Istio's annotations say in their place (CAP-3).
    ///
    /// # Errors
    /// A list is malformed (CAP-4).
    pub fn capture_lists(&self, defaults: CaptureLists) -> Result<CaptureLists, BadList> {
        defaults.replaced_by(&self.metadata.annotations)
    }

    /// Whether it is to be covered: its own label, else its namespace's, else `default`. A value
    /// that cannot be read counts as `enforce`: whoever wrote it wanted something of us. A pod that was
    /// left out of Istio's injection, without a label of ours, is left alone in istio only (CAP-9). A pod with
    /// `hostNetwork` is not covered by `default`, and one that the node needs by its own label only.
    pub fn cover(
        &self,
        namespace: &BTreeMap<String, String>,
        default: Mode,
        profile: Enforcement,
    ) -> Cover {
        let mut notes = Vec::new();
        let labelled =
            [("the pod's label", &self.metadata.labels), ("the namespace's label", namespace)]
                .into_iter()
                .find_map(|(whose, labels)| labels.get(MODE).map(|value| (whose, value)));
        let (mode, because) = match labelled {
            None if default != Mode::Disabled && self.is_on_host_network() => {
                notes.push(format!(
                    "hostNetwork: not covered by default; the label {MODE} of the pod or its namespace would \
                     cover it"
                ));
                (Mode::Disabled, "hostNetwork without a label".to_owned())
            }
            None => (default, "the default".to_owned()),
            Some((whose, value)) => match Mode::parse(value) {
                Some(mode) => (mode, whose.to_owned()),
                None => {
                    notes.push(format!(
                        "{MODE}: \"{value}\" is not enforce, audit or disabled; taken as enforce"
                    ));
                    (Mode::Enforce, whose.to_owned())
                }
            },
        };
        if mode == Mode::Disabled {
            return Cover { mode, because, notes };
        }
        let left = |because: &str, notes| Cover {
            mode: Mode::Disabled,
            because: because.to_owned(),
            notes,
        };
        if self.has_ended() {
            return left("it has ended", notes);
        }
        if let Some(other) = self.judged_by_istio(namespace) {
            if !self.metadata.labels.contains_key(MODE) {
                notes.push(format!("not covered: {other}; its own label {MODE} would cover it"));
                return left(other, notes);
            }
            notes.push(format!("{other}; what that sends for it is judged too"));
        }
        if !self.metadata.labels.contains_key(MODE)
            && let Some(why) = self.needed_by_node()
        {
            notes.push(format!(
                "not covered: hostNetwork, and {why}; its own label {MODE} would cover it"
            ));
            return left("hostNetwork, and the node needs it", notes);
        }
        if self.is_on_host_network() {
            notes.push(
                "hostNetwork: covered by its cgroup, at its sockets alone; `interceptor status` says what \
                 gets round that"
                    .to_owned(),
            );
        }
        notes.extend(self.privileged());
        if self.is_left_out() && !self.metadata.labels.contains_key(MODE) {
            match profile {
                Enforcement::Istio => return left("sidecar.istio.io/inject: \"false\"", notes),
                Enforcement::Strict => notes.push(format!(
                    "sidecar.istio.io/inject: \"false\" does not exempt it in strict; the label \
                     {MODE}: disabled does"
                )),
            }
        }
        if let Err(bad) = self.capture_lists(CaptureLists::default()) {
            notes.push(format!("{bad}; everything is captured"));
        }
        if self.uid().is_none() {
            notes.push("it has no uid that could be a cgroup's".to_owned());
        }
        Cover { mode, because, notes }
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use serde_json::{Value, json};

    use super::*;

    fn pod(mut change: impl FnMut(&mut Value)) -> Pod {
        let mut object = json!({
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {
                "name": "web-0",
                "namespace": "shop",
                "uid": "0f0d9b4e-6c1f-4f7c-9a55-0b7d0e0a1c11",
                "labels": {"app": "web"},
            },
            "spec": {
                "nodeName": "n",
                "serviceAccountName": "web",
                "containers": [{"name": "app", "image": "i"}],
            },
            "status": {
                "phase": "Running",
                "qosClass": "Burstable",
                "initContainerStatuses": [{
                    "name": "init",
                    "containerID": format!("containerd://{}", "ab".repeat(32)),
                }],
                "containerStatuses": [{"name": "app", "containerID": format!("cri-o://{}", "cd".repeat(32))}],
            },
        });
        change(&mut object);
        Pod::parse(&object.to_string()).expect("a pod")
    }

    fn labels(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn who_it_is() {
        let pod = pod(|_| {});
        assert_eq!((pod.namespace(), pod.name(), pod.service_account()), ("shop", "web-0", "web"));
        let labels = vec![("app".to_owned(), "web".to_owned())];
        assert_eq!(pod.caller(), Caller { namespace: "shop".to_owned(), labels });
        assert_eq!(pod.qos(), [Qos::Burstable]);
        let started: Vec<_> = pod.containers().map(|(name, _)| name.to_owned()).collect();
        assert_eq!(started, ["init", "app"]);
    }

    #[test]
    fn whom_it_may_ask() {
        let at = |text: &str| vec![SocketAddr::new(text.parse().unwrap(), 53)];
        let (cluster, node) = (at("10.96.0.10"), at("192.0.2.1"));
        let both = [cluster.clone(), at("192.0.2.9")].concat();
        for (policy, own, expected) in [
            (None, None, &cluster),
            (Some("ClusterFirst"), None, &cluster),
            (Some("Default"), None, &node),
            (Some("ClusterFirst"), Some("192.0.2.9"), &both),
            (Some("None"), Some("192.0.2.9"), &at("192.0.2.9")),
        ] {
            let pod = pod(|object| {
                if let Some(policy) = policy {
                    object["spec"]["dnsPolicy"] = json!(policy);
                }
                if let Some(own) = own {
                    object["spec"]["dnsConfig"] = json!({"nameservers": [own]});
                }
            });
            assert_eq!(&pod.resolvers(&cluster, &node), expected, "{policy:?} {own:?}");
        }
        assert_eq!(pod(|_| {}).resolvers(&[], &node), node, "kubelet knows of no cluster's");
    }

    /// A static pod's object has a uid of its own; its cgroup has kubelet's.
    #[test]
    fn uid_of_a_static_pod() {
        let hash = "b0fae8d3c1a9e2f4d5c6b7a8990a1b2c";
        let mirror = pod(|object| {
            object["metadata"]["annotations"] = json!({"kubernetes.io/config.hash": hash});
        });
        assert_eq!(mirror.uid(), PodUid::parse(hash));
        let plain = pod(|_| {}).uid().expect("a uid").to_string();
        assert_eq!(plain, "0f0d9b4e-6c1f-4f7c-9a55-0b7d0e0a1c11");
    }

    #[test]
    fn what_is_covered() {
        use Mode::{Audit, Disabled, Enforce};
        type Row = (Option<&'static str>, Option<&'static str>, Mode, Mode, &'static str);
        // The pod's label, the namespace's, the default; the mode, and who decided.
        let table: &[Row] = &[
            (None, None, Disabled, Disabled, "the default"),
            (None, None, Enforce, Enforce, "the default"),
            (None, Some("enforce"), Disabled, Enforce, "the namespace's label"),
            (None, Some("audit"), Enforce, Audit, "the namespace's label"),
            (None, Some("disabled"), Enforce, Disabled, "the namespace's label"),
            (Some("disabled"), Some("enforce"), Enforce, Disabled, "the pod's label"),
            (Some("enforce"), Some("disabled"), Disabled, Enforce, "the pod's label"),
            (Some("audit"), None, Disabled, Audit, "the pod's label"),
            (Some("off"), None, Disabled, Enforce, "the pod's label"),
            (Some(""), Some("disabled"), Disabled, Enforce, "the pod's label"),
            (None, Some("Enforce"), Disabled, Enforce, "the namespace's label"),
        ];
        for (own, namespace, default, mode, because) in table {
            let pod = pod(|object| {
                if let Some(own) = own {
                    object["metadata"]["labels"][MODE] = json!(own);
                }
            });
            let namespace = namespace.map(|value| labels(&[(MODE, value)])).unwrap_or_default();
            let cover = pod.cover(&namespace, *default, Enforcement::Strict);
            assert_eq!((cover.mode, cover.because.as_str()), (*mode, *because), "{own:?}");
            let readable = |value: &str| Mode::parse(value).is_some();
            let said = own.or(namespace.get(MODE).map(String::as_str));
            assert_eq!(cover.notes.is_empty(), said.is_none_or(readable), "{own:?} {cover:?}");
        }
    }

    #[test]
    fn what_else_decides() {
        let ambient = labels(&[("istio.io/dataplane-mode", "ambient")]);
        let none = BTreeMap::new();
        type Change = fn(&mut Value);
        let table: &[(Change, &BTreeMap<String, String>, Mode, &str)] = &[
            (|o| o["status"]["phase"] = json!("Succeeded"), &none, Mode::Disabled, "ended"),
            (
                |o| o["spec"]["containers"] = json!([{"name": "istio-proxy"}]),
                &none,
                Mode::Disabled,
                "istio-proxy",
            ),
            (
                |o| o["spec"]["initContainers"] = json!([{"name": "istio-proxy"}]),
                &none,
                Mode::Disabled,
                "istio-proxy",
            ),
            (|_| {}, &ambient, Mode::Disabled, "ambient"),
            (
                |o| o["metadata"]["labels"]["istio.io/dataplane-mode"] = json!("none"),
                &ambient,
                Mode::Enforce,
                "default",
            ),
            (|o| o["status"]["phase"] = json!("Pending"), &none, Mode::Enforce, "default"),
        ];
        for (change, namespace, mode, because) in table {
            let cover = pod(change).cover(namespace, Mode::Enforce, Enforcement::Strict);
            assert_eq!(cover.mode, *mode, "{because}");
            assert!(cover.because.contains(because), "{}", cover.because);
        }
        // Each of these is covered, and something is said.
        let table: &[(Change, &str)] = &[
            (|o| o["metadata"]["uid"] = json!("../x"), "uid"),
            (
                |o| {
                    o["metadata"]["annotations"] =
                        json!({"traffic.sidecar.istio.io/excludeOutboundPorts": "http"});
                },
                "excludeOutboundPorts: \"http\" is not a port",
            ),
        ];
        for (change, note) in table {
            let cover = pod(change).cover(&none, Mode::Enforce, Enforcement::Strict);
            assert_eq!(cover.mode, Mode::Enforce);
            assert!(cover.notes.iter().any(|said| said.contains(note)), "{:?}", cover.notes);
        }
    }

    #[test]
    fn cap_3_lists_are_the_annotations() {
        let lists = pod(|object| {
            object["metadata"]["annotations"] = json!({
                "traffic.sidecar.istio.io/excludeOutboundIPRanges": "10.1.0.0/16",
                "traffic.sidecar.istio.io/excludeOutboundPorts": "5432",
            });
        })
        .capture_lists(CaptureLists::default())
        .expect("readable");
        assert_eq!(lists.exclude_ports, [5432]);
        assert_eq!(lists.exclude_ranges, ["10.1.0.0/16".parse().unwrap()]);
    }
}
