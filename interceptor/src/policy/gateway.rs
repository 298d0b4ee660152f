//! The gateway role: what a gateway serves to those who send to it (section 11). Its Gateways say
//! which hosts it answers for on which ports, the VirtualServices bound to them where requests go.
//!
//! Served are HTTP, HTTPS with `ISTIO_MUTUAL`, and TLS with `PASSTHROUGH`: what an egress gateway is made
//! of. A server of another kind opens nothing, and is said.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use super::compile::{host_without_entry, nominal};
use super::entry::{EndpointAddress, Entry, ServiceEndpoint, ServicePort};
use super::fields::Context;
use super::load::Caller;
use super::metadata::Meta;
use super::node::{Key, Node, Value};
use super::notice::Notice;
use super::virtual_service::VirtualService;
use super::virtual_service::compile::{Binder, Clusters, Passed};
use crate::decide::gateway::{Listener, Listeners};
use crate::decide::pattern::EntryHost;
use crate::decide::route::RouteActions;
use crate::decide::{Group, Service, StreamRule};

/// A Gateway, as far as routing asks.
#[derive(Debug, Clone)]
pub(super) struct Gateway {
    /// `namespace/name`, as VirtualServices name it once read.
    pub(super) id: String,
    selector: Vec<(String, String)>,
    servers: Vec<Server>,
    /// What of it is not served, and why.
    pub(super) problems: Vec<Notice>,
}

/// A port that it serves.
#[derive(Debug, Clone)]
struct Server {
    port: u16,
    kind: Kind,
    hosts: Vec<ServerHost>,
}

/// What a server speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// Plaintext HTTP.
    Http,
    /// HTTP in mutual TLS of the mesh.
    Mutual,
    /// TLS that is not opened, by its name (GW-3).
    Passthrough,
}

/// What gateways serve.
#[derive(Debug, Default)]
pub(super) struct Served {
    pub(super) services: Vec<Service>,
    pub(super) listeners: Listeners,
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
    pub(super) fn read(meta: &Meta, resource: &Node, cx: &Context) -> Self {
        let spec = resource.get("spec");
        let part = |key: &str| spec.and_then(|spec| spec.get(key));
        let label = |(key, value): &(Key, Node)| Some((key.name.clone(), text(value)?.to_owned()));
        let selector = match part("selector").map(|selector| &selector.value) {
            Some(Value::Map(labels)) => labels.iter().filter_map(label).collect(),
            _ => Vec::new(),
        };
        let written = part("servers").and_then(Node::items).unwrap_or_default();
        let (mut servers, mut problems) = (Vec::new(), Vec::new());
        for (number, node) in written.iter().enumerate() {
            match Server::read(meta, node) {
                Ok(server) => servers.push(server),
                Err(why) => {
                    let path = format!("spec.servers[{number}]");
                    problems.push(cx.notice(node.at, &path, format!("not served: {why}")));
                }
            }
        }
        Self { id: format!("{}/{}", meta.namespace, meta.name), selector, servers, problems }
    }

    /// Whether this workload is it.
    pub(super) fn selects(&self, caller: &Caller) -> bool {
        caller.has(&self.selector)
    }

    /// Whether a VirtualService is bound to it.
    pub(super) fn binds(&self, service: &VirtualService) -> bool {
        service.gateways.contains(&self.id)
    }

    /// Adds to `served` what it serves at `address`: for each host of a server that a VirtualService
    /// binds, its routes. `entries` say at which port of the gateway a server's port arrives.
    pub(super) fn serve<C: Clusters>(
        &self,
        address: IpAddr,
        entries: &[Entry],
        binder: &mut Binder<'_, C>,
        actions: &Arc<RouteActions>,
        served: &mut Served,
    ) {
        for server in &self.servers {
            for port in arrives_at(address, server.port, entries) {
                let server_port = server.port;
                let new = Listener { server_port, http: false, mutual: false, plain: false };
                let listener = served.listeners.entry(port).or_insert(new);
                listener.server_port = listener.server_port.min(server_port);
                listener.http |= server.kind != Kind::Passthrough;
                listener.mutual |= server.kind == Kind::Mutual;
                listener.plain |= server.kind != Kind::Mutual;
                match server.kind {
                    Kind::Http | Kind::Mutual => {
                        for (namespace, host, routes) in binder.served(server.port) {
                            let met =
                                server.hosts.iter().filter_map(|own| own.meets(&namespace, &host));
                            served.services.extend(
                                met.map(|host| nominal(host, port, Arc::clone(&routes), actions)),
                            );
                        }
                    }
                    Kind::Passthrough => {
                        let bound = binder.passed(server.port);
                        served.services.extend(
                            bound.into_iter().filter_map(|bound| server.passes(port, bound)),
                        );
                    }
                }
            }
        }
    }
}

impl Server {
    /// A server, or why it cannot be one.
    fn read(meta: &Meta, node: &Node) -> Result<Self, String> {
        let port = node.get("port");
        let part = |key: &str| port.and_then(|port| port.get(key));
        let protocol = port.and_then(|port| port.get_text("protocol")).unwrap_or_default();
        let tls = node.get("tls");
        let mode = tls.map(|tls| tls.get_text("mode").unwrap_or("PASSTHROUGH"));
        let kind = match (protocol.to_ascii_uppercase().as_str(), mode) {
            ("HTTP" | "HTTP2" | "GRPC", None) => Kind::Http,
            ("HTTPS", Some("ISTIO_MUTUAL")) => Kind::Mutual,
            ("TLS" | "HTTPS", Some("PASSTHROUGH")) => Kind::Passthrough,
            _ => {
                return Err("port.protocol HTTP, HTTP2 or GRPC without tls, HTTPS with tls.mode \
                            ISTIO_MUTUAL, or TLS or HTTPS with PASSTHROUGH is what an egress gateway \
                            serves here"
                    .into());
            }
        };
        let redirects = tls.and_then(|tls| tls.get("httpsRedirect")).map(|flag| &flag.value);
        if matches!(redirects, Some(Value::Bool(true))) {
            return Err("tls.httpsRedirect is not supported; remove it".into());
        }
        let number = match part("number").map(|number| &number.value) {
            Some(Value::Int(number)) => u16::try_from(*number).ok().filter(|number| *number > 0),
            _ => None,
        };
        let number = number.ok_or("port.number is no port; give one of 1 to 65535")?;
        let hosts = node.get("hosts").and_then(Node::items).unwrap_or_default();
        let hosts = hosts.iter().filter_map(|host| ServerHost::read(meta, text(host)?));
        Ok(Self { port: number, kind, hosts: hosts.collect() })
    }

    /// What it passes on of a VirtualService's host, by the names of its `tls` rules, at `port`.
    fn passes(&self, port: u16, bound: Passed) -> Option<Service> {
        let Passed { namespace, host, rules } = bound;
        let met = |name: &EntryHost| {
            self.hosts.iter().filter_map(|own| own.meets(&namespace, name)).collect::<Vec<_>>()
        };
        let names = |rule: StreamRule| {
            let sni: Vec<_> = rule.sni.iter().flat_map(met).collect();
            (!sni.is_empty()).then_some(StreamRule { sni, ..rule })
        };
        let chains: Vec<_> = rules.into_iter().filter_map(names).collect();
        let rule = chains.first()?.rule.clone();
        Some(Service {
            group: Group::Tls,
            chains: chains.into(),
            ..host_without_entry(host, port, rule)
        })
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
