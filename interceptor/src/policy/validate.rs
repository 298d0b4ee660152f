//! Whether a ServiceEntry makes sense: the rules of Istio's schema and webhook (SEV-1 to SEV-25),
//! with strict's own where profiles.md has a row.

use std::collections::HashSet;
use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;

use ipnet::IpNet;

use super::Enforcement;
use super::destination_rule::PortKind;
use super::entry::{
    EndpointAddress, Entry, NO_SOCKETS, Protocol, Says, ServiceEndpoint, ServicePort, is_dns_label,
    parse_network,
};
use super::fields::{Findings, Located};
use super::service_entry::{Endpoint, Resolution, ServiceEntry};
use super::workload_entry::bad_label;
use crate::decide::Group;
use crate::decide::host::HostName;
use crate::decide::pattern::EntryHost;

/// Checks `entry`; `None` where a rule rejects it, all rejections noted.
pub(super) fn check(
    entry: &ServiceEntry,
    profile: Enforcement,
    out: &mut Findings,
) -> Option<Entry> {
    let mut check = Check { entry, profile, out, good: true };
    let hosts = check.hosts();
    let addresses = check.addresses();
    let ports = check.ports();
    check.selector();
    let endpoints = check.endpoints(&ports);
    check.resolution(&hosts);
    check.protocols(&ports);
    check.ech(&ports);
    check.export_to();
    check.hints(&hosts, &ports);
    if !check.good {
        return None;
    }
    let mut export_to: Vec<String> = entry.export_to.iter().map(|e| e.value.clone()).collect();
    export_to.sort();
    let says = Says {
        meta: entry.meta.clone(),
        id: entry.id(),
        hosts,
        addresses,
        ports,
        resolution: entry.resolution,
        endpoints,
        selector: entry.selector.as_ref().map(|s| s.value.clone()),
        export_to,
        allocated: entry.allocated.clone(),
        subject_alt_names: entry.subject_alt_names.clone(),
        platform: None,
        notice_at: entry.spec.clone(),
    };
    Some(Entry { says: Arc::new(says), context: entry.context.clone() })
}

struct Check<'a> {
    entry: &'a ServiceEntry,
    profile: Enforcement,
    out: &'a mut Findings,
    good: bool,
}

impl Check<'_> {
    fn reject<T>(&mut self, at: &Located<T>, message: impl Into<String>) {
        self.good = false;
        let notice = self.entry.context.notice(at.at, &at.path, message);
        self.out.rejected.push(notice);
    }

    fn warn<T>(&mut self, at: &Located<T>, message: impl Into<String>) {
        let notice = self.entry.context.notice(at.at, &at.path, message);
        self.out.warnings.push(notice);
    }

    /// T-26: what is not read cannot be forbidden.
    fn ech(&mut self, ports: &[ServicePort]) {
        let entry = self.entry;
        let unread =
            ports.iter().find(|port| matches!(port.protocol, Protocol::Stream(Group::Tcp, _)));
        if let Some(port) = unread.filter(|_| entry.meta.forbids_ech) {
            let message = format!(
                "ech: forbid, but what is said on port {} is not read; its protocol should be TLS",
                port.number
            );
            self.reject(&entry.spec, message);
        }
    }

    /// SEV-1 to SEV-3.
    fn hosts(&mut self) -> Vec<EntryHost> {
        let entry = self.entry;
        if entry.hosts.is_empty() {
            self.reject(&entry.spec, "at least one host is required (SEV-1)");
        }
        if entry.hosts.len() > 256 {
            self.reject(&entry.spec, "more than 256 hosts");
        }
        let mut hosts = Vec::with_capacity(entry.hosts.len());
        for host in &entry.hosts {
            match EntryHost::parse(&host.value) {
                Ok(EntryHost::Partial(_)) if self.profile == Enforcement::Strict => {
                    let message = format!(
                        "\"{0}\" also matches names of other owners; write \"*.{1}\" for its \
                         subdomains (strict refuses what SEV-2 warns of)",
                        host.value,
                        host.value.trim_start_matches('*')
                    );
                    self.reject(host, message);
                }
                Ok(partial @ EntryHost::Partial(_)) => {
                    if entry.resolution == Resolution::DynamicDns {
                        self.reject(host, "a partial wildcard cannot be resolved (SEV-2)");
                    } else {
                        let message =
                            "a partial wildcard works for plaintext HTTP, not for SNI (SEV-2)";
                        self.warn(host, message);
                    }
                    hosts.push(partial);
                }
                Ok(host) => hosts.push(host),
                Err(bad) => self.reject(host, format!("\"{}\": {bad} (SEV-1)", host.value)),
            }
        }
        hosts
    }

    /// SEV-4, SEV-5.
    fn addresses(&mut self) -> Vec<IpNet> {
        let entry = self.entry;
        if entry.addresses.len() > 256 {
            self.reject(&entry.spec, "more than 256 addresses");
        }
        let dns = matches!(
            entry.resolution,
            Resolution::Dns | Resolution::DnsRoundRobin | Resolution::DynamicDns
        );
        let mut addresses = Vec::with_capacity(entry.addresses.len());
        for address in &entry.addresses {
            let Some(network) = parse_network(&address.value) else {
                let message =
                    format!("\"{}\" is neither an IP address nor a CIDR (SEV-4)", address.value);
                self.reject(address, message);
                continue;
            };
            if dns && address.value.contains('/') {
                let message = format!(
                    "a CIDR needs resolution NONE or STATIC, not {} (SEV-5)",
                    entry.resolution.name()
                );
                self.reject(address, message);
            }
            addresses.push(network);
        }
        addresses
    }

    /// SEV-7, SEV-8.
    fn ports(&mut self) -> Vec<ServicePort> {
        let entry = self.entry;
        let (mut names, mut numbers) = (HashSet::new(), HashSet::new());
        let mut ports = Vec::with_capacity(entry.ports.len());
        for port in &entry.ports {
            let number = port.number.as_ref().and_then(|number| self.port_number(number));
            if let (Some(number), Some(at)) = (number, &port.number)
                && !numbers.insert(number)
            {
                self.reject(at, format!("port {number} is given twice (SEV-7)"));
            }
            if !is_dns_label(&port.name.value) {
                let message = format!("\"{}\" is not a DNS label (SEV-7)", port.name.value);
                self.reject(
                    &port.name,
                    if port.name.value.is_empty() { "missing (SEV-7)".to_owned() } else { message },
                );
            } else if !names.insert(port.name.value.as_str()) {
                self.reject(&port.name, format!("\"{}\" is given twice (SEV-7)", port.name.value));
            }
            let target_port = port.target_port.as_ref().and_then(|p| self.port_number(p));
            let Some(protocol) = Protocol::parse(&port.protocol.value) else {
                let message = format!(
                    "unknown protocol \"{}\"; use one of HTTP, HTTPS, HTTP2, GRPC, GRPC-WEB, \
                     HTTP_PROXY, TCP, TLS, UDP, MONGO, REDIS, MYSQL (SEV-8)",
                    port.protocol.value
                );
                self.reject(&port.protocol, message);
                continue;
            };
            let name = port.name.value.clone();
            let kind = PortKind::of(&port.protocol.value);
            ports.extend(number.map(|number| ServicePort {
                number,
                name,
                protocol,
                kind,
                target_port,
            }));
        }
        ports
    }

    fn port_number(&mut self, port: &Located<i64>) -> Option<u16> {
        let number = u16::try_from(port.value).ok().filter(|number| *number > 0);
        if number.is_none() {
            let message = format!("port {} is not between 1 and 65535", port.value);
            self.reject(port, message);
        }
        number
    }

    /// SEV-9 to SEV-11.
    fn selector(&mut self) {
        let entry = self.entry;
        let Some(selector) = &entry.selector else { return };
        if !entry.endpoints.is_empty() {
            self.reject(selector, "give workloadSelector or endpoints, not both (SEV-9)");
        }
        if selector.value.is_empty() {
            self.warn(selector, "selects nothing without labels (SEV-10)");
        }
        if selector.value.iter().any(|(k, v)| k.is_empty() || k.contains('*') || v.contains('*')) {
            self.reject(selector, "label with an empty key or a wildcard (SEV-10)");
        }
        if entry.resolution == Resolution::None {
            self.warn(selector, "has no effect with resolution NONE (SEV-11)");
        }
    }

    /// SEV-12 to SEV-14, SEV-17, SEV-22.
    fn endpoints(&mut self, ports: &[ServicePort]) -> Vec<ServiceEndpoint> {
        let entry = self.entry;
        if entry.endpoints.len() > 4096 {
            self.reject(&entry.spec, "more than 4096 endpoints");
        }
        let mut endpoints = Vec::with_capacity(entry.endpoints.len());
        for endpoint in &entry.endpoints {
            let mut own_ports = Vec::new();
            for (name, port) in &endpoint.ports {
                if !ports.iter().any(|p| p.name == *name) {
                    self.reject(port, format!("the entry has no port named \"{name}\" (SEV-14)"));
                }
                own_ports.extend(self.port_number(port).map(|number| (name.clone(), number)));
            }
            let weight = match &endpoint.weight {
                None => 1,
                Some(weight) => u32::try_from(weight.value).map_or_else(
                    |_| {
                        self.reject(weight, "not a weight between 0 and 4294967295");
                        1
                    },
                    |weight| weight.max(1),
                ),
            };
            for (key, value) in &endpoint.labels {
                if let Some(why) = bad_label(key, value) {
                    self.reject(&endpoint.address, why);
                }
            }
            if let Some(address) = self.endpoint_address(endpoint) {
                let labels = endpoint.labels.clone();
                endpoints.push(ServiceEndpoint { address, ports: own_ports, weight, labels });
            }
        }
        let is_socket = |one: &&ServiceEndpoint| matches!(one.address, EndpointAddress::Unix(_));
        let sockets = endpoints.iter().filter(is_socket).count();
        if self.good && sockets > 0 && sockets < endpoints.len() {
            let at = &entry.endpoints[0].address;
            self.reject(
                at,
                "not supported: addresses beside unix sockets; give each its own entry",
            );
        }
        endpoints
    }

    fn endpoint_address(&mut self, endpoint: &Endpoint) -> Option<EndpointAddress> {
        let entry = self.entry;
        let address = &endpoint.address;
        let fixed = entry.resolution == Resolution::Static;
        if address.value.is_empty() {
            if endpoint.network.is_some() && fixed {
                self.warn(address, "empty: this endpoint is left out (SEV-22)");
            } else {
                self.reject(address, "missing (SEV-22)");
            }
            return None;
        }
        if let Some(path) = address.value.strip_prefix("unix://") {
            if !fixed {
                self.reject(address, "a unix socket needs resolution STATIC (SEV-17)");
            } else if !path.starts_with('/') {
                self.reject(address, "the path of a unix socket must be absolute (SEV-13)");
            } else if !endpoint.ports.is_empty() {
                self.reject(address, "a unix socket has no ports (SEV-13)");
            } else if entry.ports.len() != 1 {
                self.reject(address, "a unix socket needs exactly one port in the entry (SEV-13)");
            } else if self.profile == Enforcement::Strict {
                self.reject(address, NO_SOCKETS);
            } else {
                return Some(EndpointAddress::Unix(Path::new(path).into()));
            }
            return None;
        }
        if let Ok(ip) = address.value.parse::<IpAddr>() {
            return Some(EndpointAddress::Ip(ip.to_canonical()));
        }
        match HostName::parse(&address.value) {
            Ok(_) if fixed => {
                self.reject(address, "STATIC needs IP addresses; use resolution DNS (SEV-12)");
                None
            }
            Ok(name) if !name.is_rfc_1123() => {
                self.reject(address, format!("\"{name}\" is not a host name"));
                None
            }
            Ok(name) => Some(EndpointAddress::Name(name)),
            Err(bad) => {
                self.reject(address, format!("\"{}\": {bad}", address.value));
                None
            }
        }
    }

    /// SEV-11, SEV-15, SEV-16, SEV-20.
    fn resolution(&mut self, hosts: &[EntryHost]) {
        let entry = self.entry;
        let name = entry.resolution.name();
        let wildcard = hosts.iter().position(|host| host.exact().is_none());
        match entry.resolution {
            Resolution::None if !entry.endpoints.is_empty() => {
                self.reject(&entry.endpoints[0].address, "NONE takes no endpoints (SEV-11)");
            }
            Resolution::None | Resolution::Static => {}
            Resolution::Dns | Resolution::DnsRoundRobin => {
                if entry.resolution == Resolution::DnsRoundRobin && entry.endpoints.len() > 1 {
                    let at = &entry.endpoints[1].address;
                    self.reject(at, "DNS_ROUND_ROBIN takes at most one endpoint (SEV-16)");
                }
                // Strict resolves the concrete name on request (GAP-2).
                if let Some(at) = wildcard.and_then(|i| entry.hosts.get(i))
                    && entry.endpoints.is_empty()
                    && entry.selector.is_none()
                    && self.profile == Enforcement::Istio
                {
                    let message = format!(
                        "a wildcard with resolution {name} needs endpoints (SEV-15); use NONE, or \
                         enforcement strict, which resolves the name that the client asks for"
                    );
                    self.reject(at, message);
                }
            }
            Resolution::DynamicDns => {
                if let Some(i) = hosts.iter().position(|host| host.exact().is_some()) {
                    let at = entry.hosts.get(i).unwrap_or(&entry.hosts[0]);
                    self.reject(at, "DYNAMIC_DNS takes wildcard hosts only (SEV-20)");
                }
                if let Some(at) = entry.addresses.first() {
                    self.reject(at, "DYNAMIC_DNS takes no addresses (SEV-20)");
                }
                if let Some(endpoint) = entry.endpoints.first() {
                    self.reject(&endpoint.address, "DYNAMIC_DNS takes no endpoints (SEV-20)");
                }
                let waypoint = |(key, _): &(String, String)| key == "istio.io/use-waypoint";
                if entry.internal && entry.meta.labels.iter().any(waypoint) {
                    self.reject(
                        &entry.spec,
                        "MESH_INTERNAL with DYNAMIC_DNS and a waypoint (SEV-20)",
                    );
                }
            }
        }
    }

    /// SEV-18, SEV-20.
    fn protocols(&mut self, ports: &[ServicePort]) {
        let entry = self.entry;
        for (port, written) in ports.iter().zip(&entry.ports) {
            let named = matches!(port.protocol, Protocol::Stream(Group::Http | Group::Tls, _));
            if entry.hosts.len() > 1 && !named && entry.resolution != Resolution::None {
                let message = "several hosts cannot be told apart on a port that is neither HTTP nor \
                               TLS; give each its own entry (SEV-18)";
                self.reject(&written.protocol, message);
            }
            let upper = written.protocol.value.to_ascii_uppercase();
            let allowed = matches!(upper.as_str(), "HTTP" | "HTTP2" | "GRPC" | "TLS");
            if entry.resolution == Resolution::DynamicDns && !allowed {
                let message = "DYNAMIC_DNS takes HTTP, HTTP2, GRPC or TLS only (SEV-20)";
                self.reject(&written.protocol, message);
            }
        }
    }

    /// SEV-21.
    fn export_to(&mut self) {
        let entry = self.entry;
        let mut seen = HashSet::new();
        for item in &entry.export_to {
            let name = match item.value.as_str() {
                "." => &*entry.meta.namespace,
                other => other,
            };
            if !seen.insert(name) {
                self.reject(item, format!("\"{}\" is given twice (SEV-21)", item.value));
            }
            if matches!(name, "*" | "~") {
                if entry.export_to.len() > 1 {
                    self.reject(item, format!("\"{name}\" stands alone or not at all (SEV-21)"));
                }
            } else if !is_dns_label(name) {
                self.reject(item, format!("\"{name}\" is not a namespace (SEV-21)"));
            }
        }
    }

    /// SEV-6, SEV-19, and what each profile makes of entries without an address behind them.
    fn hints(&mut self, hosts: &[EntryHost], ports: &[ServicePort]) {
        let entry = self.entry;
        let bare = entry.addresses.is_empty();
        let wildcard = hosts.iter().any(|host| host.exact().is_none());
        for written in &entry.ports {
            let protocol = written.protocol.value.as_str();
            let allocates =
                entry.resolution != Resolution::None && !wildcard && entry.meta.allocates();
            if bare && !allocates && matches!(protocol, "" | "TCP") {
                let message = match self.profile {
                    Enforcement::Istio => {
                        "without addresses this port claims all traffic of its number, to any \
                         address (SEV-6, LIS-14); give addresses"
                    }
                    Enforcement::Strict => {
                        "without addresses this port opens only what the daemon resolves for the \
                         entry's hosts (SEV-6, GAP-1); give addresses where that is not enough"
                    }
                };
                self.warn(&written.protocol, message);
            }
        }
        let tcp = |port: &ServicePort| matches!(port.protocol, Protocol::Stream(Group::Tcp, _));
        if !bare && hosts.len() > 1 && ports.iter().any(tcp) {
            let message = "several hosts share these addresses on a TCP port: the first gets \
                           everything (SEV-19)";
            self.warn(&entry.addresses[0], message);
        }
        if bare && entry.resolution == Resolution::None && self.profile == Enforcement::Istio {
            let message = "resolution NONE without addresses: the dialled address is not checked \
                           against the name (spoofable; GAP-9)";
            self.warn(&entry.spec, message);
        }
    }
}
