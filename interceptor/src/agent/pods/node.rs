//! What a pod has to do with its node beyond being there.

use std::net::SocketAddr;

use super::Pod;

/// Where name servers listen.
const DNS: u16 = 53;

/// Annotation of a pod that kubelet runs from a file of the node's, whoever the API server is.
const STATIC: &str = "kubernetes.io/config.hash";

/// What a cluster's own programs are called by priority.
const CLUSTERS: [&str; 2] = ["system-node-critical", "system-cluster-critical"];

impl Pod {
    /// Whether it is in the node's own network namespace.
    pub fn is_on_host_network(&self) -> bool {
        self.spec.host_network
    }

    /// Why the node, or the cluster, needs what it sends from the node's namespace, if it does: kube-proxy, the
    /// pods' network, the API server itself. A namespace's label was written for its other pods.
    pub(super) fn needed_by_node(&self) -> Option<String> {
        if !self.is_on_host_network() {
            return None;
        }
        if self.metadata.annotations.contains_key(STATIC) {
            return Some("kubelet runs it from a file".to_owned());
        }
        let class = self.spec.priority_class_name.as_deref()?;
        CLUSTERS.contains(&class).then(|| format!("its priority class is {class}"))
    }

    /// The name servers that it is given, as kubelet gives them: by its policy the cluster's or the
    /// node's, and its own. Never what a file in the pod says.
    pub fn resolvers(&self, cluster: &[SocketAddr], node: &[SocketAddr]) -> Vec<SocketAddr> {
        let by_policy = match self.spec.dns_policy.as_deref() {
            Some("None") => &[],
            Some("Default") => node,
            // As kubelet: the cluster's only with ClusterFirstWithHostNet.
            Some("ClusterFirst") | None if self.spec.host_network => node,
            // As kubelet, where it knows of no cluster's.
            _ if cluster.is_empty() => node,
            _ => cluster,
        };
        let own = self.spec.dns_config.nameservers.iter().map(|ip| SocketAddr::new(*ip, DNS));
        let mut all: Vec<_> = by_policy.iter().copied().chain(own).collect();
        all.sort();
        all.dedup();
        all
    }

    /// Which of its containers are privileged and what that means, for people; `None`: none is.
    pub fn privileged(&self) -> Option<String> {
        let spec = &self.spec;
        let all = spec.init_containers.iter().chain(&spec.containers);
        let all = all.chain(&spec.ephemeral_containers);
        let privileged = all.filter(|one| one.security_context.privileged);
        let names: Vec<_> = privileged.map(|one| one.name.as_str()).collect();
        (!names.is_empty()).then(|| {
            format!(
                "privileged ({}): covered as long as it does not take the cover away, which it has the right to",
                names.join(", ")
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use serde_json::{Value, json};

    use super::super::{MODE, Mode};
    use super::*;
    use crate::policy::Enforcement;

    fn pod(metadata: &Value, spec: &Value) -> Pod {
        let mut object = json!({
            "metadata": {"name": "p", "namespace": "shop", "uid": "1"}, "spec": spec,
        });
        for (key, value) in metadata.as_object().expect("an object") {
            object["metadata"][key] = value.clone();
        }
        Pod::parse(&object.to_string()).expect("a pod")
    }

    /// Nothing that a node needs is covered by what somebody wrote about other pods.
    #[test]
    fn on_the_hosts_network_a_label_must_mean_it() {
        let own = |mode: &str| json!({"labels": {MODE: mode}});
        let critical = "system-node-critical";
        type Row = (Value, Option<&'static str>, Option<&'static str>, Mode, Mode, &'static str);
        // Metadata, priority class, the namespace's label, the default; the mode, and what is said.
        let table: [Row; 9] = [
            (json!({}), None, None, Mode::Disabled, Mode::Disabled, ""),
            (json!({}), None, None, Mode::Enforce, Mode::Disabled, "not covered by default"),
            (json!({}), None, Some("enforce"), Mode::Disabled, Mode::Enforce, "by its cgroup"),
            (own("enforce"), None, None, Mode::Disabled, Mode::Enforce, "by its cgroup"),
            (own("disabled"), None, Some("enforce"), Mode::Enforce, Mode::Disabled, ""),
            (json!({}), Some(critical), Some("enforce"), Mode::Enforce, Mode::Disabled, critical),
            (own("enforce"), Some(critical), None, Mode::Disabled, Mode::Enforce, "by its cgroup"),
            (
                json!({"annotations": {STATIC: "b0fae8d3"}}),
                None,
                Some("enforce"),
                Mode::Disabled,
                Mode::Disabled,
                "kubelet runs it from a file",
            ),
            (json!({}), Some("high"), Some("enforce"), Mode::Disabled, Mode::Enforce, "cgroup"),
        ];
        for (row, (metadata, class, namespace, default, mode, said)) in table.iter().enumerate() {
            let mut spec = json!({"hostNetwork": true});
            if let Some(class) = class {
                spec["priorityClassName"] = json!(class);
            }
            let namespace = namespace.map(|value| (MODE.to_owned(), value.to_owned()));
            let namespace: BTreeMap<_, _> = namespace.into_iter().collect();
            let cover = pod(metadata, &spec).cover(&namespace, *default, Enforcement::Strict);
            assert_eq!(cover.mode, *mode, "row {row}: {cover:?}");
            assert_eq!(cover.notes.is_empty(), said.is_empty(), "row {row}: {cover:?}");
            assert!(cover.notes.join("; ").contains(said), "row {row}: {cover:?}");
        }
        // With a network of its own, neither matters.
        let spec = json!({"priorityClassName": critical});
        let cover =
            pod(&json!({}), &spec).cover(&BTreeMap::new(), Mode::Enforce, Enforcement::Strict);
        assert_eq!(cover.mode, Mode::Enforce);
    }

    #[test]
    fn privileged_containers_are_named() {
        let container = |name: &str, privileged: bool| json!({"name": name, "securityContext": {"privileged": privileged}});
        let spec = json!({
            "containers": [container("app", false), container("tool", true)],
            "initContainers": [container("setup", true), {"name": "plain"}],
            "ephemeralContainers": [container("debug", true)],
        });
        let cover =
            pod(&json!({}), &spec).cover(&BTreeMap::new(), Mode::Enforce, Enforcement::Strict);
        assert_eq!(cover.mode, Mode::Enforce);
        assert!(cover.notes[0].starts_with("privileged (setup, tool, debug)"), "{cover:?}");
        let plain = pod(&json!({}), &json!({"containers": [container("app", false)]}));
        assert_eq!(plain.privileged(), None);
    }
}
