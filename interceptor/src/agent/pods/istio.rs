//! What a pod has to do with Istio's own data plane.

use std::collections::BTreeMap;

use super::{Metadata, Pod};

impl Pod {
    /// CAP-9. The label goes before the annotation, which is the older way.
    pub(super) fn is_left_out(&self) -> bool {
        const INJECT: &str = "sidecar.istio.io/inject";
        let Metadata { labels, annotations, .. } = &self.metadata;
        let inject = labels.get(INJECT).or_else(|| annotations.get(INJECT));
        inject.is_some_and(|value| value == "false")
    }

    /// What of Istio's judges its traffic already, if it is in a mesh.
    pub(super) fn judged_by_istio(
        &self,
        namespace: &BTreeMap<String, String>,
    ) -> Option<&'static str> {
        if self.has_istio_proxy() {
            Some("it has an istio-proxy container, which judges its traffic")
        } else if self.is_ambient(namespace) {
            Some("it is in an ambient mesh, whose ztunnel carries its traffic")
        } else {
            None
        }
    }

    fn has_istio_proxy(&self) -> bool {
        // Native sidecars are init containers.
        let mut all = self.spec.containers.iter().chain(&self.spec.init_containers);
        all.any(|container| container.name == "istio-proxy")
    }

    fn is_ambient(&self, namespace: &BTreeMap<String, String>) -> bool {
        const DATAPLANE: &str = "istio.io/dataplane-mode";
        let label = self.metadata.labels.get(DATAPLANE).or_else(|| namespace.get(DATAPLANE));
        label.is_some_and(|mode| mode == "ambient")
    }
}
