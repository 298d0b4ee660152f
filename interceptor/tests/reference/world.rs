//! What the test decides about: resources and flows as generated, and the resources as YAML.

use std::fmt::Write as _;
use std::net::SocketAddr;

use interceptor::policy::{Enforcement, Outbound};

/// Everything that a policy is made of.
#[derive(Debug, Clone)]
pub struct World {
    pub profile: Enforcement,
    pub mode: Outbound,
    pub entries: Vec<Entry>,
}

/// A ServiceEntry.
#[derive(Debug, Clone)]
pub struct Entry {
    pub name: String,
    pub namespace: &'static str,
    /// Day of the year 2020.
    pub created: Option<u8>,
    pub labelled: bool,
    pub hosts: Vec<&'static str>,
    pub addresses: Vec<&'static str>,
    pub ports: Vec<Port>,
    pub resolution: &'static str,
    pub endpoints: Vec<Endpoint>,
    pub export_to: Vec<&'static str>,
}

/// A port, named after its number.
#[derive(Debug, Clone)]
pub struct Port {
    pub number: u16,
    pub protocol: &'static str,
    pub target: Option<u16>,
}

impl Port {
    pub fn name(&self) -> String {
        format!("p{}", self.number)
    }
}

/// An endpoint; `port` is its own for one of the entry's ports.
#[derive(Debug, Clone)]
pub struct Endpoint {
    pub address: &'static str,
    pub port: Option<(u16, u16)>,
    pub weight: Option<u32>,
}

/// What a client does.
#[derive(Debug, Clone)]
pub struct Flow {
    pub dst: SocketAddr,
    pub hello: Bytes,
    pub head: Head,
}

/// The first bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bytes {
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
pub struct Head {
    pub method: &'static str,
    pub authority: Option<String>,
    pub hosts: Vec<String>,
    pub version: u8,
}

impl World {
    /// The resources as a file.
    pub fn yaml(&self) -> String {
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
