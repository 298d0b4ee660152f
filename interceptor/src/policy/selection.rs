//! Which workloads an entry selects as its endpoints (SE-8, SE-11).

use std::sync::Arc;

use super::Enforcement;
use super::entry::{EndpointAddress, Entry, NO_SOCKETS, ServiceEndpoint};
use super::fields::Findings;
use super::service_entry::Resolution;
use crate::decide::RuleId;

/// A workload that entries may select.
#[derive(Debug, Clone)]
pub(super) struct Workload {
    pub(super) id: RuleId,
    pub(super) namespace: Arc<str>,
    pub(super) labels: Vec<(String, String)>,
    pub(super) endpoint: ServiceEndpoint,
}

/// The workloads that a selector of `namespace` takes; one without labels takes none (SEV-10).
pub(super) fn selected<'a>(
    workloads: &'a [Workload],
    namespace: &str,
    selector: &[(String, String)],
) -> impl Iterator<Item = &'a Workload> {
    workloads.iter().filter(move |workload| {
        *workload.namespace == *namespace
            && !selector.is_empty()
            && selector.iter().all(|label| workload.labels.contains(label))
    })
}

/// Gives an entry that selects workloads its endpoints. What does not fit its resolution has no
/// part, which is said.
pub(super) fn select_endpoints(
    entry: &mut Entry,
    workloads: &[Workload],
    profile: Enforcement,
    out: &mut Findings,
) {
    let Some(selector) = &entry.selector else { return };
    let found: Vec<_> = selected(workloads, &entry.meta.namespace, selector).collect();
    let is_ip = |one: &&Workload| matches!(one.endpoint.address, EndpointAddress::Ip(_));
    let any_ip = found.iter().any(is_ip);
    let mut endpoints = Vec::new();
    for workload in found {
        match unfit(&workload.endpoint.address, entry, any_ip, profile) {
            None => endpoints.push(workload.endpoint.clone()),
            Some(why) => {
                let message = format!("{} is left out: {why}", workload.id);
                let at = &entry.notice_at;
                out.warnings.push(entry.context.notice(at.at, "spec.workloadSelector", message));
            }
        }
    }
    Arc::make_mut(&mut entry.says).endpoints = endpoints;
}

/// Why an address is no endpoint of `entry`; `None` if it is one. STATIC resolves nothing.
fn unfit(
    address: &EndpointAddress,
    entry: &Entry,
    any_ip: bool,
    profile: Enforcement,
) -> Option<String> {
    let why = match (address, entry.resolution) {
        (EndpointAddress::Name(name), Resolution::Static) => {
            return Some(format!(
                "{name} is a name, and STATIC takes addresses; use resolution DNS (SE-8)"
            ));
        }
        (EndpointAddress::Unix(_), Resolution::Static) if profile == Enforcement::Strict => {
            NO_SOCKETS
        }
        (EndpointAddress::Unix(_), Resolution::Static) if entry.ports.len() != 1 => {
            "a unix socket needs exactly one port in the entry (SEV-13)"
        }
        (EndpointAddress::Unix(_), Resolution::Static) if any_ip => {
            "not supported: unix sockets beside addresses; give each its own entry"
        }
        (EndpointAddress::Unix(_), Resolution::Dns | Resolution::DnsRoundRobin) => {
            "a unix socket needs resolution STATIC (SEV-17)"
        }
        _ => return None,
    };
    Some(why.to_owned())
}
