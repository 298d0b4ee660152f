//! Sidecar: which one a workload has (SC-1), and what it imports (SC-4 to SC-10).

mod read;

use std::collections::HashSet;

use super::Outbound;
use super::fields::{Context, Located};
use super::load::Caller;
use super::metadata::Meta;
use super::virtual_service::VirtualService;
use crate::decide::Group;
use crate::decide::pattern::EntryHost;

/// A Sidecar that holds.
#[derive(Debug, Clone)]
pub(super) struct Sidecar {
    pub(super) meta: Meta,
    /// Empty = every workload of the namespace.
    pub(super) selector: Vec<(String, String)>,
    /// `None` = the mesh's (SC-2).
    pub(super) outbound: Option<Policy>,
    /// Empty = everything (SC-9).
    pub(super) egress: Vec<Egress>,
    pub(super) context: Context,
}

/// `outboundTrafficPolicy`.
#[derive(Debug, Clone)]
pub(super) struct Policy {
    pub(super) mode: Outbound,
    /// `egressProxy`: host, port, subset (SC-3).
    pub(super) proxy: Option<(EntryHost, u16, Option<String>)>,
}

/// `egress[]`.
#[derive(Debug, Clone)]
pub(super) struct Egress {
    /// A listener of its own (SC-7); `None` = all ports that have none.
    pub(super) port: Option<(u16, Group)>,
    /// It is not reached by intercepted traffic: a listener on a unix socket or with capture off.
    pub(super) unreachable: bool,
    pub(super) hosts: Vec<HostItem>,
}

/// `namespace/dnsName` (SC-4).
#[derive(Debug, Clone)]
pub(super) struct HostItem {
    /// It takes away what others bring in.
    pub(super) exclude: bool,
    /// `None` = any; [`OWN`] = the workload's.
    pub(super) namespace: Option<String>,
    /// `None` = any.
    pub(super) host: Option<EntryHost>,
    pub(super) at: Located<()>,
}

/// The workload's namespace, also in a Sidecar of the root namespace, which many share.
const OWN: &str = ".";

impl HostItem {
    fn takes(&self, home: &str, namespace: &str, host: &EntryHost) -> bool {
        let own = self.namespace.as_deref();
        own.is_none_or(|own| namespace == if own == OWN { home } else { own })
            && self.host.as_ref().is_none_or(|own| own.covers(host))
    }
}

impl Egress {
    /// Exclusion beats inclusion wherever it stands (SC-4).
    fn imports(&self, home: &str, namespace: &str, host: &EntryHost) -> bool {
        let takes = |exclude: bool| {
            let mut items = self.hosts.iter().filter(|item| item.exclude == exclude);
            items.any(|item| item.takes(home, namespace, host))
        };
        takes(false) && !takes(true)
    }
}

/// The Sidecar of a workload (SC-1); `sidecars` are in the order of age.
pub(super) fn select<'a>(
    sidecars: &'a [Sidecar],
    caller: &Caller,
    root: &str,
) -> Option<&'a Sidecar> {
    let of = |namespace: &str, selects: bool| {
        let namespace = namespace.to_owned();
        sidecars.iter().find(move |sidecar| {
            *sidecar.meta.namespace == *namespace
                && sidecar.selector.is_empty() != selects
                && caller.has(&sidecar.selector)
        })
    };
    of(&caller.namespace, true).or_else(|| of(&caller.namespace, false)).or_else(|| of(root, false))
}

/// What a workload sees of the registry.
#[derive(Debug)]
pub(super) struct Imports<'a> {
    /// The workload's namespace.
    home: &'a str,
    egress: &'a [Egress],
    own_ports: HashSet<u16>,
    /// Destinations of imported VirtualServices (SC-6).
    also: HashSet<EntryHost>,
}

impl<'a> Imports<'a> {
    /// Everything where `sidecar` is absent or has no `egress` (SC-9).
    pub(super) fn new(sidecar: Option<&'a Sidecar>, home: &'a str) -> Self {
        let egress = sidecar.map_or(&[][..], |sidecar| &sidecar.egress);
        let reachable = egress.iter().filter(|item| !item.unreachable);
        let own_ports = reachable.filter_map(|item| item.port.map(|(port, _)| port)).collect();
        Self { home, egress, own_ports, also: HashSet::new() }
    }

    fn all(&self) -> bool {
        self.egress.is_empty()
    }

    /// Whether a VirtualService of `namespace` is imported (SC-6).
    pub(super) fn brings(&self, service: &VirtualService) -> bool {
        let namespace = &*service.meta.namespace;
        self.all()
            || self.egress.iter().any(|item| {
                service.hosts.iter().any(|host| item.imports(self.home, namespace, host))
            })
    }

    /// Adds what an imported VirtualService leads to.
    pub(super) fn follow(&mut self, service: &VirtualService) {
        if !self.all() {
            self.also.extend(service.destinations().cloned());
        }
    }

    /// Whether a host of an entry in `namespace` is imported at all.
    pub(super) fn sees(&self, namespace: &str, host: &EntryHost) -> bool {
        self.all()
            || self.also.contains(host)
            || self.egress.iter().any(|item| item.imports(self.home, namespace, host))
    }

    /// Where the first item of the Sidecar that imports a host from `namespace` stands; behind all
    /// of them where only a VirtualService leads to it (SC-6). `None` where nothing is restricted.
    pub(super) fn item(&self, namespace: &str, host: &EntryHost) -> Option<usize> {
        let imports = |item: &Egress| item.imports(self.home, namespace, host);
        (!self.all()).then(|| self.egress.iter().position(imports).unwrap_or(self.egress.len()))
    }

    /// Whether workloads reach `port` of the host directly: a listener for one port only serves
    /// the hosts that it lists (SC-7). What is seen but not reached may still be a destination.
    pub(super) fn reaches(&self, namespace: &str, host: &EntryHost, port: u16) -> bool {
        if self.all() || self.also.contains(host) {
            return true;
        }
        let own = self.own_ports.contains(&port);
        self.egress.iter().filter(|item| !item.unreachable).any(|item| {
            let applies = match item.port {
                Some((number, _)) => number == port,
                None => !own,
            };
            applies && item.imports(self.home, namespace, host)
        })
    }

    /// Ports with a listener of their own, used or not (SC-8).
    pub(super) fn listeners(&self) -> Vec<(u16, Group)> {
        let reachable = self.egress.iter().filter(|item| !item.unreachable);
        reachable.filter_map(|item| item.port).collect()
    }
}
