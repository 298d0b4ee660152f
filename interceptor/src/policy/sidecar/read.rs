//! Sidecar as written, field by field, with what SC says of validity.

use std::collections::HashSet;

use super::super::Outbound;
use super::super::entry::{Protocol, is_dns_label};
use super::super::fields::{Context, Fields, Findings, Located};
use super::super::metadata::Meta;
use super::super::node::Node;
use super::super::reader::Reader;
use super::super::service_entry::one_of;
use super::{Egress, HostItem, OWN, Policy, Sidecar};
use crate::decide::Group;
use crate::decide::pattern::EntryHost;

impl Sidecar {
    /// Reads and checks `spec`; `None` where a rule rejects it, all rejections noted.
    pub(in super::super) fn read(
        meta: Meta,
        spec: Fields<'_>,
        cx: &Context,
        out: &mut Findings,
    ) -> Option<Self> {
        let before = (out.rejected.len(), out.errors.len());
        let mut f = spec;
        let at = Located { value: (), at: f.at(), path: "spec".to_owned() };
        let namespace = meta.namespace.clone();
        let mut r = Reader { cx, out, namespace: &namespace };
        let selector = f.take("workloadSelector").map(|node| {
            let mut inner = r.fields(&node);
            let labels = r.labels(&mut inner, "labels");
            r.finish(inner);
            if labels
                .iter()
                .any(|(key, value)| key.is_empty() || key.contains('*') || value.contains('*'))
            {
                r.reject(&node, "label with an empty key or a wildcard");
            }
            labels
        });
        let selector = selector.unwrap_or_default();
        let outbound = f.take_present("outboundTrafficPolicy").map(|node| policy(&mut r, &node));
        let ingress = r.list(&mut f, "ingress");
        let mut ingress_ports = HashSet::new();
        for node in &ingress {
            listener(&mut r, node, &mut ingress_ports);
        }
        let nodes = r.list(&mut f, "egress");
        let egress = egress(&mut r, &nodes);
        let mut other = false;
        for field in ["inboundConnectionPool", "inboundTrafficPolicy"] {
            other |= f.take(field).is_some();
        }
        r.finish(f);
        if ingress.is_empty() && nodes.is_empty() && outbound.is_none() && !other {
            r.reject(&at, "says nothing: give egress or outboundTrafficPolicy (SC-9)");
        }
        if (out.rejected.len(), out.errors.len()) != before {
            return None;
        }
        Some(Self { meta, selector, outbound, egress, context: cx.clone() })
    }
}

/// SC-2, SC-3, SC-9.
fn policy(r: &mut Reader<'_>, node: &Located<&Node>) -> Policy {
    let mut f = r.fields(node);
    let mode = r.text(&mut f, "mode");
    let proxy = f.take("egressProxy");
    r.finish(f);
    if let Some(mode) = &mode
        && mode.value == "ALLOW_ANY_DYNAMIC_DNS"
    {
        r.reject(mode, "ALLOW_ANY_DYNAMIC_DNS is for the mesh configuration only (SC-9)");
        return Policy { mode: Outbound::RegistryOnly, proxy: None };
    }
    let modes = [("REGISTRY_ONLY", Outbound::RegistryOnly), ("ALLOW_ANY", Outbound::AllowAny)];
    let mode = one_of(mode, &modes, r.cx, r.out).unwrap_or(Outbound::RegistryOnly);
    let proxy = proxy.and_then(|node| {
        if mode == Outbound::RegistryOnly {
            r.reject(&node, "egressProxy needs mode ALLOW_ANY (SC-3)");
        }
        let mut f = r.fields(&node);
        let host = r.some_text(&mut f, "host");
        let subset = r.some_text(&mut f, "subset").map(|subset| subset.value);
        let port = f.take("port").and_then(|at| {
            let mut inner = r.fields(&at);
            let number = r.port(&mut inner, "number");
            r.finish(inner);
            number
        });
        r.finish(f);
        let (Some(host), Some(port)) = (host, port) else {
            r.reject(&node, "host and port.number are required (SC-3)");
            return None;
        };
        match r.host(&host)? {
            EntryHost::Exact(name) if host.value.contains('.') => {
                Some((EntryHost::Exact(name), port, subset))
            }
            _ => {
                r.reject(&host, "a fully qualified host is required (SC-3)");
                None
            }
        }
    });
    Policy { mode, proxy }
}

/// `ingress[]`: nothing of it concerns egress, so only its shape is checked.
fn listener(r: &mut Reader<'_>, node: &Located<&Node>, ports: &mut HashSet<u16>) {
    let mut f = r.fields(node);
    match f.take("port") {
        None => r.reject(node, "port is required"),
        Some(at) => {
            if let Some((port, _)) = port(r, &at, false)
                && !ports.insert(port)
            {
                r.reject(&at, format!("port {port} is given twice"));
            }
        }
    }
    if let Some(endpoint) = r.some_text(&mut f, "defaultEndpoint") {
        check_endpoint(r, &endpoint);
    }
    if let Some(bind) = r.some_text(&mut f, "bind") {
        check_bind(r, &bind);
    }
    for field in ["captureMode", "tls", "connectionPool"] {
        f.take(field);
    }
    r.finish(f);
}

/// `127.0.0.1:PORT`, `0.0.0.0:PORT`, their IPv6 forms, or a unix socket.
fn check_endpoint(r: &mut Reader<'_>, endpoint: &Located<String>) {
    let good = match endpoint.value.strip_prefix("unix://") {
        Some(path) => path.starts_with('/') && path.len() > 1 || path.starts_with('@'),
        None => endpoint.value.parse::<std::net::SocketAddr>().is_ok_and(|address| {
            address.port() > 0 && (address.ip().is_loopback() || address.ip().is_unspecified())
        }),
    };
    if !good {
        let message = "must be 127.0.0.1:PORT, 0.0.0.0:PORT, [::1]:PORT, [::]:PORT or unix:///path";
        r.reject(endpoint, message);
    }
}

/// Whether it is a unix socket; `None` where it is neither that nor an IP address.
fn check_bind(r: &mut Reader<'_>, bind: &Located<String>) -> Option<bool> {
    if bind.value.parse::<std::net::IpAddr>().is_ok() {
        return Some(false);
    }
    let path = bind.value.strip_prefix("unix://");
    if path.is_some_and(|path| path.len() > 1 && (path.starts_with('/') || path.starts_with("@/")))
    {
        return Some(true);
    }
    // The abstract form also comes with a third slash.
    if path.is_some_and(|path| path.starts_with("/@")) {
        return Some(true);
    }
    r.reject(bind, "must be an IP address or unix:///absolute/path");
    None
}

/// Number and handling; a port on a unix socket has number 0.
fn port(r: &mut Reader<'_>, node: &Located<&Node>, unix: bool) -> Option<(u16, Group)> {
    let mut f = r.fields(node);
    let number = r.int(&mut f, "number");
    let protocol = r.text(&mut f, "protocol");
    r.some_text(&mut f, "name");
    f.take("targetPort");
    r.finish(f);
    let found = number.as_ref().map_or(0, |number| number.value);
    let found = u16::try_from(found).ok().filter(|number| (*number > 0) != unix);
    if found.is_none() {
        let message =
            if unix { "a unix socket has no port" } else { "port must lie between 1 and 65535" };
        match &number {
            Some(number) => r.reject(number, message),
            None => r.reject(node, message),
        }
    }
    let group = match &protocol {
        None => Some(Group::Sniffed),
        Some(text) => match Protocol::parse(&text.value) {
            Some(Protocol::Stream(group, _)) => Some(group),
            Some(Protocol::Udp) => Some(Group::Tcp),
            None => {
                r.reject(text, format!("unknown protocol \"{}\"", text.value));
                None
            }
        },
    };
    Some((found?, group?))
}

/// SC-7, SC-9.
fn egress(r: &mut Reader<'_>, nodes: &[Located<&Node>]) -> Vec<Egress> {
    let (mut ports, mut binds) = (HashSet::new(), HashSet::new());
    let mut catch_all = false;
    let mut items = Vec::with_capacity(nodes.len());
    for (index, node) in nodes.iter().enumerate() {
        let mut f = r.fields(node);
        let bind = r.some_text(&mut f, "bind");
        let unix = bind.as_ref().and_then(|bind| check_bind(r, bind)).unwrap_or(false);
        let modes = [("DEFAULT", false), ("IPTABLES", false), ("NONE", true)];
        let mode = f.text("captureMode", r.cx, r.out);
        let explicit = mode.as_ref().is_some_and(|mode| mode.value == "IPTABLES");
        if let Some(mode) = mode.as_ref().filter(|_| unix && explicit) {
            r.reject(mode, "a unix socket cannot be captured (SC-7)");
        }
        let uncaptured = one_of(mode, &modes, r.cx, r.out) == Some(true);
        let own = f.take("port");
        let own = match &own {
            Some(at) => port(r, at, unix),
            None => {
                if bind.is_some() {
                    r.reject(node, "bind needs a port (SC-7)");
                } else if catch_all || index + 1 != nodes.len() {
                    r.reject(node, "the item without a port comes last, and once (SC-7)");
                }
                catch_all = true;
                None
            }
        };
        let address = bind.as_ref().map(|bind| bind.value.clone());
        if let Some((number, _)) = own
            && !ports.insert((number, address.clone()))
        {
            r.reject(node, format!("port {number} is given twice (SC-7)"));
        }
        if unix && !binds.insert(address) {
            r.reject(node, "this unix socket is given twice (SC-7)");
        }
        let unreachable = unix || uncaptured || bind.is_some();
        let listed = r.texts(&mut f, "hosts");
        if listed.is_empty() {
            r.reject(node, "at least one host is required (SC-9)");
        }
        let hosts: Vec<_> = listed.iter().filter_map(|host| host_item(r, host)).collect();
        duplicates(r, &hosts);
        r.finish(f);
        items.push(Egress { port: own, unreachable, hosts });
    }
    items
}

/// SC-4.
fn host_item(r: &mut Reader<'_>, text: &Located<String>) -> Option<HostItem> {
    let Some((namespace, host)) = text.value.split_once('/') else {
        r.reject(text, "write namespace/host (SC-4)");
        return None;
    };
    let (exclude, namespace) = match namespace.strip_prefix('~') {
        Some(rest) => (true, rest),
        None => (false, namespace),
    };
    let namespace = match namespace {
        "" if exclude => None,
        "*" => None,
        "." => Some(OWN.to_owned()),
        name if is_dns_label(name) => Some(name.to_owned()),
        name => {
            r.reject(text, format!("\"{name}\" is not a namespace (SC-4)"));
            return None;
        }
    };
    let host = match host {
        "*" => None,
        host => match EntryHost::parse(host) {
            Ok(host) => Some(host),
            Err(bad) => {
                r.reject(text, format!("\"{host}\": {bad} (SC-4)"));
                return None;
            }
        },
    };
    let at = Located { value: (), at: text.at, path: text.path.clone() };
    Some(HostItem { exclude, namespace, host, at })
}

/// SC-9: what another item of the list says already.
fn duplicates(r: &mut Reader<'_>, items: &[HostItem]) {
    for (index, item) in items.iter().enumerate() {
        let repeats = items.iter().enumerate().any(|(other_index, other)| {
            let same = item.namespace == other.namespace && item.host == other.host;
            let wider = (other.namespace == item.namespace && other.host.is_none())
                || (other.namespace.is_none() && other.host == item.host);
            item.exclude == other.exclude
                && if same { other_index < index } else { wider && other_index != index }
        });
        if repeats {
            r.warn(&item.at, "says nothing new: another host of this list covers it (SC-9)");
        }
    }
}
