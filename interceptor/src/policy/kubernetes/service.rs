//! Service and EndpointSlice: platform entries of the registry (REG-2, REG-12, SE-17, HTTP-9).

use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use super::super::destination_rule::PortKind;
use super::super::entry::{
    EndpointAddress, Entry, Platform, Protocol, Says, ServiceEndpoint, ServicePort,
};
use super::super::fields::{Context, Fields, Findings, Located, text};
use super::super::metadata::Meta;
use super::super::node::{Node, Value};
use super::super::service_entry::Resolution;
use crate::decide::host::HostName;
use crate::decide::pattern::EntryHost;
use crate::decide::{Group, RuleId};

/// A Service (v1).
#[derive(Debug, Clone)]
pub(in crate::policy) struct KubernetesService {
    pub(in crate::policy) meta: Meta,
    context: Context,
    spec: Located<()>,
    kind: Kind,
    ports: Vec<Port>,
    /// Annotation `networking.istio.io/exportTo`; sorted.
    export_to: Vec<String>,
}

/// How a Service is reached.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Kind {
    /// By these addresses.
    ClusterIp(Vec<IpAddr>),
    /// By the addresses of its endpoints.
    Headless,
    /// `type: ExternalName`: by another name.
    External(HostName),
}

#[derive(Debug, Clone)]
struct Port {
    name: String,
    number: u16,
    /// `None` where it is a name, which only endpoints know, or absent.
    target: Option<u16>,
    /// As of a ServiceEntry (SE-17).
    protocol: String,
}

/// An EndpointSlice (`discovery.k8s.io/v1`).
#[derive(Debug, Clone)]
pub(in crate::policy) struct EndpointSlice {
    namespace: Arc<str>,
    /// Label `kubernetes.io/service-name`.
    service: String,
    /// Of endpoints that are ready.
    addresses: Vec<IpAddr>,
    ports: Vec<(String, u16)>,
}

impl KubernetesService {
    /// Reads `spec`; `None`, with a warning, where there is nothing that could be reached.
    pub(in crate::policy) fn read(
        meta: Meta,
        node: &Node,
        mut f: Fields<'_>,
        cx: &Context,
        out: &mut Findings,
    ) -> Option<Self> {
        let spec = Located { value: (), at: f.at(), path: "spec".into() };
        let external = f.text("type", cx, out).is_some_and(|kind| kind.value == "ExternalName");
        let name = f.text("externalName", cx, out);
        let mut ips = f.texts("clusterIPs", cx, out);
        let first = f.text("clusterIP", cx, out);
        if ips.is_empty() {
            ips.extend(first);
        }
        let headless = ips.iter().any(|ip| ip.value == "None");
        let ips: Vec<IpAddr> = ips
            .iter()
            .filter_map(|ip| ip.value.parse().ok())
            .map(|ip: IpAddr| ip.to_canonical())
            .collect();
        let kind = if external {
            match name.as_ref().map(|name| HostName::parse(&name.value)) {
                Some(Ok(name)) => Kind::External(name),
                _ => {
                    let message = "not a host name; the Service is ignored";
                    out.warnings.push(cx.notice(spec.at, "spec.externalName", message));
                    return None;
                }
            }
        } else if headless {
            Kind::Headless
        } else if ips.is_empty() {
            let message = "absent; the Service is ignored";
            out.warnings.push(cx.notice(spec.at, "spec.clusterIP", message));
            return None;
        } else {
            Kind::ClusterIp(ips)
        };
        let ports = f.list("ports", cx, out);
        let ports = ports.iter().filter_map(|port| Port::read(port, cx, out)).collect();
        let export_to = exports(node, &meta.namespace);
        Some(Self { meta, context: cx.clone(), spec, kind, ports, export_to })
    }

    /// The entry that it stands for. Where no rule concerns its host (REG-12) traffic goes to the
    /// ClusterIP and the platform balances, else to its endpoints. `None` where its name is no host
    /// name.
    pub(in crate::policy) fn to_entry(
        &self,
        slices: &[EndpointSlice],
        concerned: impl Fn(&HostName) -> bool,
    ) -> Option<Entry> {
        let (name, namespace) = (&*self.meta.name, &*self.meta.namespace);
        let host = |text: String| HostName::parse(&text).ok();
        let platform = Platform {
            local_name: host(name.to_owned())?,
            short_names: vec![
                host(format!("{name}.{namespace}"))?,
                host(format!("{name}.{namespace}.svc"))?,
            ],
        };
        let full = host(format!("{name}.{namespace}.svc.cluster.local"))?;
        let slices = if self.kind == Kind::Headless || concerned(&full) { slices } else { &[] };
        let mine = slices.iter().filter(|s| *s.namespace == *namespace && s.service == name);
        let behind: Vec<ServiceEndpoint> = mine.flat_map(EndpointSlice::endpoints).collect();
        let mut ports: Vec<ServicePort> = self.ports.iter().filter_map(Port::to_port).collect();
        let (addresses, resolution, endpoints) = match &self.kind {
            Kind::ClusterIp(ips) if behind.is_empty() => {
                for port in &mut ports {
                    port.target_port = None;
                }
                (
                    nets(ips.iter().copied()),
                    Resolution::Static,
                    ips.iter().map(|ip| at(*ip)).collect(),
                )
            }
            Kind::ClusterIp(ips) => (nets(ips.iter().copied()), Resolution::Static, behind),
            Kind::Headless => {
                let ips = behind.iter().filter_map(|endpoint| match endpoint.address {
                    EndpointAddress::Ip(ip) => Some(ip),
                    EndpointAddress::Name(_) | EndpointAddress::Unix(_) => None,
                });
                let addresses = nets(ips);
                if addresses.is_empty() {
                    // Without an address a port without names would claim everybody's traffic.
                    let named = |p: &ServicePort| {
                        matches!(p.protocol, Protocol::Stream(Group::Http | Group::Tls, _))
                    };
                    ports.retain(named);
                }
                for port in &mut ports {
                    port.target_port = None;
                }
                (addresses, Resolution::None, Vec::new())
            }
            Kind::External(name) => {
                let endpoint = ServiceEndpoint {
                    address: EndpointAddress::Name(name.clone()),
                    ports: Vec::new(),
                    weight: 1,
                    labels: Vec::new(),
                };
                (Vec::new(), Resolution::Dns, vec![endpoint])
            }
        };
        let says = Says {
            meta: self.meta.clone(),
            id: RuleId {
                kind: "Service",
                namespace: Arc::clone(&self.meta.namespace),
                name: Arc::clone(&self.meta.name),
            },
            hosts: vec![EntryHost::Exact(full)],
            addresses,
            ports,
            resolution,
            endpoints,
            selector: None,
            export_to: self.export_to.clone(),
            allocated: Vec::new(),
            subject_alt_names: Vec::new(),
            platform: Some(platform),
            notice_at: self.spec.clone(),
        };
        Some(Entry { says: Arc::new(says), context: self.context.clone() })
    }
}

fn at(ip: IpAddr) -> ServiceEndpoint {
    let address = EndpointAddress::Ip(ip);
    ServiceEndpoint { address, ports: Vec::new(), weight: 1, labels: Vec::new() }
}

fn nets(ips: impl Iterator<Item = IpAddr>) -> Vec<IpNet> {
    ips.map(IpNet::from).collect()
}

fn exports(node: &Node, namespace: &str) -> Vec<String> {
    let annotations = node.get("metadata").and_then(|m| m.get("annotations"));
    let text = annotations.and_then(|a| a.get_text("networking.istio.io/exportTo"));
    let items = text.unwrap_or_default().split(',').map(str::trim).filter(|item| !item.is_empty());
    let mut items: Vec<String> =
        items.map(|item| if item == "." { namespace } else { item }.to_owned()).collect();
    items.sort();
    items.dedup();
    items
}

impl Port {
    fn read(node: &Located<&Node>, cx: &Context, out: &mut Findings) -> Option<Self> {
        let mut f = Fields::of(node.value, node.path.clone(), cx, out);
        let small = |n: i64| u16::try_from(n).ok().filter(|n| *n > 0);
        let name = f.text("name", cx, out).map_or(String::new(), |name| name.value);
        let transport = f.text("protocol", cx, out).map(|n| n.value);
        let app = f.text("appProtocol", cx, out).map(|n| n.value);
        let given = f.int("port", cx, out);
        let Some(number) = given.as_ref().and_then(|port| small(port.value)) else {
            let at = given.map_or(node.at, |port| port.at);
            out.errors.push(cx.notice(at, &format!("{}.port", node.path), "not a port"));
            return None;
        };
        let target = f.take("targetPort").and_then(|target| match &target.value.value {
            Value::Int(number) => small(*number),
            _ => None,
        });
        let transport = transport.unwrap_or_default();
        let protocol = protocol(&transport, app.as_deref(), &name, number)?;
        Some(Self { name, number, target, protocol: protocol.to_owned() })
    }

    fn to_port(&self) -> Option<ServicePort> {
        Some(ServicePort {
            number: self.number,
            name: self.name.clone(),
            protocol: Protocol::parse(&self.protocol)?,
            kind: PortKind::of(&self.protocol),
            target_port: self.target,
        })
    }
}

/// SE-17, in the words of a ServiceEntry: appProtocol, else the prefix of the name, else what the
/// port is known for. `None` for what is neither TCP nor UDP.
fn protocol(transport: &str, app: Option<&str>, name: &str, number: u16) -> Option<&'static str> {
    match transport {
        "" | "TCP" => {}
        "UDP" => return Some("UDP"),
        _ => return None,
    }
    let app = app.map(str::to_ascii_lowercase);
    let by_app = app.as_deref().and_then(|app| match app {
        "kubernetes.io/h2c" => Some("HTTP2"),
        "kubernetes.io/ws" => Some("HTTP"),
        "kubernetes.io/wss" => Some("HTTPS"),
        other => known(other),
    });
    let name = name.to_ascii_lowercase();
    // "grpc-web" is a name of its own, not "grpc" with a suffix.
    let web = name == "grpc-web" || name.starts_with("grpc-web-");
    let prefix = if web { "grpc-web" } else { name.split('-').next().unwrap_or_default() };
    Some(by_app.or_else(|| known(prefix)).unwrap_or(match number {
        25 | 53 | 3306 | 27017 => "TCP",
        _ => "",
    }))
}

fn known(word: &str) -> Option<&'static str> {
    let words = [
        ("http", "HTTP"),
        ("http2", "HTTP2"),
        ("https", "HTTPS"),
        ("tcp", "TCP"),
        ("tls", "TLS"),
        ("grpc", "GRPC"),
        ("grpc-web", "GRPC-WEB"),
        ("mongo", "MONGO"),
        ("mysql", "MYSQL"),
        ("redis", "REDIS"),
        ("udp", "UDP"),
    ];
    words.iter().find(|(have, _)| *have == word).map(|(_, protocol)| *protocol)
}

impl EndpointSlice {
    /// Reads the whole resource; `None` where it belongs to no Service.
    pub(in crate::policy) fn read(
        meta: &Meta,
        top: &mut Fields<'_>,
        cx: &Context,
        out: &mut Findings,
    ) -> Option<Self> {
        let owner = meta.labels.iter().find(|(key, _)| key == "kubernetes.io/service-name")?;
        let mut addresses = Vec::new();
        for endpoint in top.list("endpoints", cx, out) {
            let mut f = Fields::of(endpoint.value, endpoint.path.clone(), cx, out);
            // Unknown counts as ready, as the API says.
            let ready = f.take("conditions").and_then(|node| node.value.get("ready"));
            if matches!(ready.map(|node| &node.value), Some(Value::Bool(false))) {
                continue;
            }
            let texts = f.texts("addresses", cx, out);
            let ips = texts.iter().filter_map(|text| text.value.parse::<IpAddr>().ok());
            addresses.extend(ips.map(|ip| ip.to_canonical()));
        }
        let mut ports = Vec::new();
        for port in top.list("ports", cx, out) {
            let mut f = Fields::of(port.value, port.path.clone(), cx, out);
            let name = f.take("name").and_then(|name| text(name, cx, out));
            let number = f.int("port", cx, out).and_then(|port| u16::try_from(port.value).ok());
            let name = name.map_or(String::new(), |name| name.value);
            ports.extend(number.map(|number| (name, number)));
        }
        top.rest();
        let service = owner.1.clone();
        Some(Self { namespace: Arc::clone(&meta.namespace), service, addresses, ports })
    }

    fn endpoints(&self) -> impl Iterator<Item = ServiceEndpoint> + '_ {
        self.addresses.iter().map(|ip| ServiceEndpoint { ports: self.ports.clone(), ..at(*ip) })
    }
}
