//! A ServiceEntry that holds: its parts in parsed form.

use std::net::IpAddr;
use std::ops::Deref;
use std::path::Path;
use std::sync::Arc;

use ipnet::IpNet;

use super::destination_rule::PortKind;
use super::fields::{Context, Located};
use super::metadata::Meta;
use super::service_entry::Resolution;
use crate::decide::host::HostName;
use crate::decide::pattern::EntryHost;
use crate::decide::{Group, RuleId};

/// A ServiceEntry that holds, and where it stands. What it says is shared with what the next load
/// need not read again.
#[derive(Debug, Clone)]
pub(super) struct Entry {
    pub(super) says: Arc<Says>,
    pub(super) context: Context,
}

impl Deref for Entry {
    type Target = Says;

    fn deref(&self) -> &Says {
        &self.says
    }
}

/// What a ServiceEntry says, in parsed form.
#[derive(Debug, Clone)]
pub(super) struct Says {
    pub(super) meta: Meta,
    pub(super) id: RuleId,
    pub(super) hosts: Vec<EntryHost>,
    pub(super) addresses: Vec<IpNet>,
    pub(super) ports: Vec<ServicePort>,
    pub(super) resolution: Resolution,
    pub(super) endpoints: Vec<ServiceEndpoint>,
    /// Endpoints are the workloads with these labels (SE-8).
    pub(super) selector: Option<Vec<(String, String)>>,
    /// Sorted; empty = the mesh default (SE-9).
    pub(super) export_to: Vec<String>,
    /// Automatic addresses that a control plane has allocated, by host (RES-18).
    pub(super) allocated: Vec<(EntryHost, IpAddr)>,
    /// Identities of the upstream where TLS is originated (SE-10).
    pub(super) subject_alt_names: Vec<String>,
    /// Set where it stands for a Kubernetes Service.
    pub(super) platform: Option<Platform>,
    /// For messages about the entry as a whole.
    pub(super) notice_at: Located<()>,
}

/// What makes a platform Service different from a ServiceEntry: it wins over those of its name
/// whatever their age (REG-2), and answers to short names, too.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Platform {
    /// `svc`: for callers of its own namespace only (HTTP-9).
    pub(super) local_name: HostName,
    /// `svc.ns` and `svc.ns.svc`, for everybody (HTTP-9).
    pub(super) short_names: Vec<HostName>,
}

/// One port; `protocol` decides everything in LIS-2.
#[derive(Debug, Clone)]
pub(super) struct ServicePort {
    pub(super) number: u16,
    pub(super) name: String,
    pub(super) protocol: Protocol,
    /// What the protocol says of HTTP upstream (SE-15).
    pub(super) kind: PortKind,
    pub(super) target_port: Option<u16>,
}

/// One endpoint.
#[derive(Debug, Clone)]
pub(super) struct ServiceEndpoint {
    pub(super) address: EndpointAddress,
    pub(super) ports: Vec<(String, u16)>,
    pub(super) weight: u32,
    /// What subsets select by (DR-8).
    pub(super) labels: Vec<(String, String)>,
}

/// What an endpoint's address may be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum EndpointAddress {
    Ip(IpAddr),
    Name(HostName),
    /// `unix:///absolute/path`.
    Unix(Arc<Path>),
}

/// Why strict opens no unix socket for a workload.
pub(super) const NO_SOCKETS: &str = "the daemon would open this unix socket with its own rights, \
    and strict reaches none for a workload (T-12); use an IP address, or enforcement istio";

/// What a port's `protocol` means (SE-3, SE-13 to SE-16).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Protocol {
    /// Decided in the data path; the flag is LIS-17's.
    Stream(Group, bool),
    /// Nothing is built for it; datagrams are the kernel's matter.
    Udp,
}

impl Protocol {
    /// Any case (SE-3); absent = sniffed.
    pub(super) fn parse(text: &str) -> Option<Self> {
        Some(match text.to_ascii_uppercase().as_str() {
            "" => Self::Stream(Group::Sniffed, false),
            "HTTP" | "HTTP2" | "GRPC" | "GRPC-WEB" | "HTTP_PROXY" => {
                Self::Stream(Group::Http, false)
            }
            "TLS" | "HTTPS" => Self::Stream(Group::Tls, false),
            "TCP" | "REDIS" => Self::Stream(Group::Tcp, false),
            "MONGO" | "MYSQL" => Self::Stream(Group::Tcp, true),
            "UDP" => Self::Udp,
            _ => return None,
        })
    }
}

/// An address or a CIDR in canonical form; v4-mapped IPv6 reads as IPv4, as flows do.
pub(super) fn parse_network(text: &str) -> Option<IpNet> {
    if text.len() > 64 {
        return None;
    }
    match text.parse::<IpNet>() {
        Ok(network) => Some(unmap(network).trunc()),
        Err(_) => text.parse::<IpAddr>().ok().map(|ip| IpNet::from(ip.to_canonical())),
    }
}

fn unmap(network: IpNet) -> IpNet {
    let mapped = network.prefix_len().checked_sub(96).filter(|_| network.addr().is_ipv6());
    match (network.addr().to_canonical(), mapped) {
        (ip @ IpAddr::V4(_), Some(length)) => IpNet::new(ip, length).unwrap_or(network),
        _ => network,
    }
}

pub(super) fn is_dns_label(text: &str) -> bool {
    let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    let bytes = text.to_ascii_lowercase();
    !text.is_empty()
        && text.len() <= 63
        && bytes.bytes().all(inner)
        && !text.starts_with('-')
        && !text.ends_with('-')
}
