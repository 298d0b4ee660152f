//! Sidecars: which one the workload has, and what it imports (section 3).

use interceptor::policy::Outbound;

use crate::registry::{WORKLOAD_NAMESPACE, fit};
use crate::routing;
use crate::world::{HttpAction, Sidecar, Virtual, World};

pub(crate) const WORKLOAD_TEAM: &str = "blue";
const ROOT_NAMESPACE: &str = "istio-system";

/// SC-1.
fn chosen(world: &World) -> Option<&Sidecar> {
    let oldest = |namespace: &str, selects: Option<&str>| {
        let all = world.sidecars.iter();
        all.filter(|s| s.namespace == namespace && s.selects == selects)
            .min_by_key(|s| (s.created.unwrap_or(0), s.name.clone()))
    };
    oldest(WORKLOAD_NAMESPACE, Some(WORKLOAD_TEAM))
        .or_else(|| oldest(WORKLOAD_NAMESPACE, None))
        .or_else(|| oldest(ROOT_NAMESPACE, None))
}

/// SC-2: the mode in force.
pub(crate) fn mode(world: &World) -> Outbound {
    match chosen(world).and_then(|sidecar| sidecar.policy) {
        None => world.mesh_mode,
        Some(Some("ALLOW_ANY")) => Outbound::AllowAny,
        Some(_) => Outbound::RegistryOnly,
    }
}

/// SC-4: whether the egress item takes a host that `namespace` offers.
fn listed(sidecar: &Sidecar, namespace: &str, host: &str) -> bool {
    let takes = |item: &str| {
        let (from, name) = item.split_once('/').expect("namespace/host");
        let from = match from {
            "." => WORKLOAD_NAMESPACE,
            other => other,
        };
        let inside = host.strip_prefix("*.").unwrap_or(host);
        let name =
            name == "*" || name == host || name.starts_with('*') && fit(name, inside).is_some();
        name && (from.is_empty() || from == "*" || from == namespace)
    };
    let mut included = sidecar.hosts.iter().filter(|item| !item.starts_with('~'));
    let mut excluded = sidecar.hosts.iter().filter_map(|item| item.strip_prefix('~'));
    included.any(|item| takes(item)) && !excluded.any(takes)
}

/// SC-4: whether what `namespace` offers is imported by its name.
pub(crate) fn lists(world: &World, namespace: &str, host: &str) -> bool {
    let sidecar = chosen(world).filter(|sidecar| !sidecar.hosts.is_empty());
    sidecar.is_none_or(|sidecar| listed(sidecar, namespace, host))
}

/// SC-6: whether a VirtualService is imported.
pub(crate) fn brings(world: &World, service: &Virtual) -> bool {
    chosen(world).filter(|sidecar| !sidecar.hosts.is_empty()).is_none_or(|sidecar| {
        let mut hosts = service.hosts.iter().map(|host| host.to_lowercase());
        hosts.any(|host| listed(sidecar, service.namespace, &host))
    })
}

/// SC-5, SC-6, SC-9: whether the workload sees a host of an entry in `namespace`.
pub(crate) fn sees(world: &World, namespace: &str, host: &str) -> bool {
    let Some(sidecar) = chosen(world).filter(|sidecar| !sidecar.hosts.is_empty()) else {
        return true;
    };
    let led_to = |service: &&Virtual| {
        let http = service.http.iter().flat_map(|rule| match &rule.action {
            HttpAction::Route(to) => to.as_slice(),
            HttpAction::Redirect(_) | HttpAction::Reply(_) => &[],
        });
        let streams = service.tls.iter().chain(&service.tcp).flat_map(|rule| &rule.route);
        http.chain(streams).any(|to| to.host.to_lowercase() == host)
    };
    listed(sidecar, namespace, host) || routing::bound(world).iter().any(led_to)
}
