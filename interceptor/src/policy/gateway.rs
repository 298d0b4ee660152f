//! The gateway role: what a gateway serves to those who send to it (section 11). Its Gateways say
//! which hosts it answers for on which ports, the VirtualServices bound to them where requests go.
//!
//! HTTP servers only so far; TLS ones are not served. `run` has no gateway role yet: policy tests
//! have (`role: gateway`).

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use super::compile::nominal;
use super::entry::{EndpointAddress, Entry, Protocol, ServiceEndpoint, ServicePort};
use super::load::Caller;
use super::metadata::Meta;
use super::node::{Key, Node, Value};
use super::virtual_service::VirtualService;
use super::virtual_service::compile::{Binder, Clusters};
use crate::decide::pattern::EntryHost;
use crate::decide::route::RouteActions;
use crate::decide::{Group, Service};

/// A Gateway, as far as routing asks.
#[derive(Debug, Clone)]
pub(super) struct Gateway {
    /// `namespace/name`, as VirtualServices name it once read.
    pub(super) id: String,
    selector: Vec<(String, String)>,
    servers: Vec<Server>,
}

/// A port that it serves.
#[derive(Debug, Clone)]
struct Server {
    port: u16,
    hosts: Vec<ServerHost>,
}

/// `namespace/host` of a server.
#[derive(Debug, Clone)]
struct ServerHost {
    /// Of VirtualServices; `None` = any.
    namespace: Option<String>,
    /// `None` = every host.
    host: Option<EntryHost>,
}

impl Gateway {
    /// Reads what routing asks. What cannot be read opens nothing.
    pub(super) fn read(meta: &Meta, resource: &Node) -> Self {
        let spec = resource.get("spec");
        let part = |key: &str| spec.and_then(|spec| spec.get(key));
        let label = |(key, value): &(Key, Node)| Some((key.name.clone(), text(value)?.to_owned()));
        let selector = match part("selector").map(|selector| &selector.value) {
            Some(Value::Map(labels)) => labels.iter().filter_map(label).collect(),
            _ => Vec::new(),
        };
        let servers = part("servers").and_then(Node::items).unwrap_or_default();
        Self {
            id: format!("{}/{}", meta.namespace, meta.name),
            selector,
            servers: servers.iter().filter_map(|node| Server::read(meta, node)).collect(),
        }
    }

    /// Whether this workload is it.
    pub(super) fn selects(&self, caller: &Caller) -> bool {
        caller.has(&self.selector)
    }

    /// Whether a VirtualService is bound to it.
    pub(super) fn binds(&self, service: &VirtualService) -> bool {
        service.gateways.contains(&self.id)
    }

    /// What it serves at `address`: for each host of a server that a VirtualService binds, its
    /// routes. `entries` say at which port of the gateway a server's port arrives.
    pub(super) fn services<C: Clusters>(
        &self,
        address: IpAddr,
        entries: &[Entry],
        binder: &mut Binder<'_, C>,
        actions: &Arc<RouteActions>,
    ) -> Vec<Service> {
        let mut services = Vec::new();
        for server in &self.servers {
            for (namespace, host, routes) in binder.served(server.port) {
                let served = server.hosts.iter().filter_map(|own| own.meets(&namespace, &host));
                for host in served.collect::<Vec<_>>() {
                    for port in arrives_at(address, server.port, entries) {
                        services.push(nominal(host.clone(), port, Arc::clone(&routes), actions));
                    }
                }
            }
        }
        services
    }
}

impl Server {
    fn read(meta: &Meta, node: &Node) -> Option<Self> {
        let port = node.get("port")?;
        let protocol = Protocol::parse(port.get_text("protocol")?)?;
        if !matches!(protocol, Protocol::Stream(Group::Http, _)) {
            return None;
        }
        let Value::Int(number) = port.get("number")?.value else { return None };
        let hosts = node.get("hosts").and_then(Node::items).unwrap_or_default();
        let hosts = hosts.iter().filter_map(|host| ServerHost::read(meta, text(host)?));
        Some(Self { port: u16::try_from(number).ok()?, hosts: hosts.collect() })
    }
}

impl ServerHost {
    fn read(meta: &Meta, text: &str) -> Option<Self> {
        let (namespace, host) = text.split_once('/').unwrap_or(("*", text));
        let namespace = match namespace {
            "*" => None,
            "." => Some(meta.namespace.to_string()),
            other => Some(other.to_owned()),
        };
        let host = if host == "*" { None } else { Some(EntryHost::parse(host).ok()?) };
        Some(Self { namespace, host })
    }

    /// The narrower of its host and a VirtualService's, if they meet.
    fn meets(&self, namespace: &str, bound: &EntryHost) -> Option<EntryHost> {
        if self.namespace.as_deref().is_some_and(|own| own != namespace) {
            return None;
        }
        match &self.host {
            None => Some(bound.clone()),
            Some(own) if own.covers(bound) => Some(bound.clone()),
            Some(own) => bound.covers(own).then(|| own.clone()),
        }
    }
}

/// The gateway's own ports for `port` of the services that it is an endpoint of; it itself where
/// there are none.
fn arrives_at(address: IpAddr, port: u16, entries: &[Entry]) -> BTreeSet<u16> {
    let own = |endpoint: &&ServiceEndpoint| endpoint.address == EndpointAddress::Ip(address);
    let target = |port: &ServicePort, endpoint: &ServiceEndpoint| {
        let named = endpoint.ports.iter().find(|(name, _)| *name == port.name);
        named.map(|(_, number)| *number).or(port.target_port).unwrap_or(port.number)
    };
    let mut ports = BTreeSet::new();
    for entry in entries {
        for service_port in entry.ports.iter().filter(|own| own.number == port) {
            let endpoints = entry.endpoints.iter().filter(own);
            ports.extend(endpoints.map(|endpoint| target(service_port, endpoint)));
        }
    }
    if ports.is_empty() {
        ports.insert(port);
    }
    ports
}

fn text(node: &Node) -> Option<&str> {
    match &node.value {
        Value::Text(text) => Some(text),
        _ => None,
    }
}
