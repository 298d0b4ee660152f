//! What the test decides about: resources and flows as generated, and the resources as YAML.

use std::fmt::Write as _;
use std::net::SocketAddr;

use interceptor::policy::{Enforcement, Outbound};

/// Everything that a policy is made of.
#[derive(Debug, Clone)]
pub(crate) struct World {
    pub(crate) profile: Enforcement,
    pub(crate) mode: Outbound,
    pub(crate) entries: Vec<Entry>,
}

/// A ServiceEntry.
#[derive(Debug, Clone)]
pub(crate) struct Entry {
    pub(crate) name: String,
    pub(crate) namespace: &'static str,
    /// Day of the year 2020.
    pub(crate) created: Option<u8>,
    pub(crate) labelled: bool,
    pub(crate) hosts: Vec<&'static str>,
    pub(crate) addresses: Vec<&'static str>,
    pub(crate) ports: Vec<Port>,
    pub(crate) resolution: &'static str,
    pub(crate) endpoints: Vec<Endpoint>,
    pub(crate) export_to: Vec<&'static str>,
}

/// A port, named after its number.
#[derive(Debug, Clone)]
pub(crate) struct Port {
    pub(crate) number: u16,
    pub(crate) protocol: &'static str,
    pub(crate) target: Option<u16>,
}

impl Port {
    pub(crate) fn name(&self) -> String {
        format!("p{}", self.number)
    }
}

/// An endpoint; `port` is its own for one of the entry's ports.
#[derive(Debug, Clone)]
pub(crate) struct Endpoint {
    pub(crate) address: &'static str,
    pub(crate) port: Option<(u16, u16)>,
    pub(crate) weight: Option<u32>,
}

/// What a client does.
#[derive(Debug, Clone)]
pub(crate) struct Flow {
    pub(crate) dst: SocketAddr,
    pub(crate) hello: Bytes,
    pub(crate) head: Head,
}

/// The first bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Bytes {
    Tls(Option<&'static str>),
    Http1,
    Http2,
    Opaque,
    Silent,
    Closed,
    Malformed,
}

/// A request head.
#[derive(Debug, Clone)]
pub(crate) struct Head {
    pub(crate) method: &'static str,
    pub(crate) authority: Option<String>,
    pub(crate) hosts: Vec<String>,
    pub(crate) version: u8,
}

impl World {
    /// The resources as a file.
    pub(crate) fn yaml(&self) -> String {
        let mut out = String::new();
        for entry in &self.entries {
            entry.write(&mut out).expect("a String takes everything");
        }
        out
    }
}

impl Entry {
    fn write(&self, out: &mut String) -> std::fmt::Result {
        writeln!(out, "---\napiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata:")?;
        writeln!(out, "  name: {}\n  namespace: {}", self.name, self.namespace)?;
        if let Some(day) = self.created {
            writeln!(out, "  creationTimestamp: \"2020-01-{day:02}T00:00:00Z\"")?;
        }
        if self.labelled {
            writeln!(out, "  labels: {{team: blue}}")?;
        }
        writeln!(out, "spec:\n  resolution: {}", self.resolution)?;
        writeln!(out, "  hosts: {:?}\n  addresses: {:?}", self.hosts, self.addresses)?;
        writeln!(out, "  exportTo: {:?}\n  ports:", self.export_to)?;
        for port in &self.ports {
            write!(out, "  - {{number: {}, name: {}", port.number, port.name())?;
            if !port.protocol.is_empty() {
                write!(out, ", protocol: {}", port.protocol)?;
            }
            if let Some(target) = port.target {
                write!(out, ", targetPort: {target}")?;
            }
            writeln!(out, "}}")?;
        }
        if !self.endpoints.is_empty() {
            writeln!(out, "  endpoints:")?;
        }
        for endpoint in &self.endpoints {
            write!(out, "  - {{address: {}", endpoint.address)?;
            if let Some((service, own)) = endpoint.port {
                write!(out, ", ports: {{p{service}: {own}}}")?;
            }
            if let Some(weight) = endpoint.weight {
                write!(out, ", weight: {weight}")?;
            }
            writeln!(out, "}}")?;
        }
        Ok(())
    }
}
