//! Pod: an endpoint that ServiceEntries select by its labels (SE-8).

use std::net::IpAddr;
use std::sync::Arc;

use super::super::entry::{EndpointAddress, ServiceEndpoint};
use super::super::metadata::Meta;
use super::super::node::Node;
use super::super::selection::Workload;
use crate::decide::RuleId;

/// The Pod as entries select it; `None` where it does not run or has no address (SE-8).
pub(in crate::policy) fn read_pod(meta: &Meta, node: &Node) -> Option<Workload> {
    let status = node.get("status")?;
    if status.get_text("phase") != Some("Running") {
        return None;
    }
    let first = || status.get("podIPs")?.items()?.first()?.get_text("ip");
    let ip: IpAddr = status.get_text("podIP").or_else(first)?.parse().ok()?;
    Some(Workload {
        id: RuleId {
            kind: "Pod",
            namespace: Arc::clone(&meta.namespace),
            name: Arc::clone(&meta.name),
        },
        namespace: Arc::clone(&meta.namespace),
        labels: meta.labels.clone(),
        endpoint: ServiceEndpoint {
            address: EndpointAddress::Ip(ip.to_canonical()),
            ports: Vec::new(),
            weight: 1,
            labels: meta.labels.clone(),
        },
    })
}
