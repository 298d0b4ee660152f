//! What a verdict consists of. A decision is made once and never edited.

use std::borrow::Cow;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::Arc;

use super::host::HostName;
use super::route::{Destination, Forward, LocalReply};

/// What by-address knowledge says of a new connection.
#[derive(Debug, Clone, PartialEq)]
pub enum ByAddress {
    /// No byte of the client changes the verdict.
    Decided(Decision),
    /// The first bytes are needed.
    Inspect {
        /// How the verdict would read if the server spoke first, or the client stayed silent: in
        /// ALLOW_ANY "pass to the original destination"; else a refusal.
        unless_client_speaks: Decision,
    },
}

/// A verdict on a connection or on one HTTP request of it.
#[derive(Debug, Clone, PartialEq)]
pub struct Decision {
    /// What to do.
    pub action: Action,
    /// The cluster as the access log names it (LOG-10); `None` prints `-`. Where several destinations
    /// may be chosen, the chosen one's name goes before this.
    pub cluster: Option<ClusterName>,
    /// The route as the access log names it (LOG-12); `None` prints `-`.
    pub route: Option<Arc<str>>,
    /// Why, for logs, metrics and people.
    pub reason: Reason,
    /// The resource that decided, where one did.
    pub rule: Option<RuleId>,
}

/// The closed set of things that can be done to a connection or request.
#[derive(Debug, Clone, PartialEq)]
pub enum Action {
    /// Refuse; nothing goes upstream.
    Block(Block),
    /// Relay the client's bytes untouched (TCP and TLS) to one of these, chosen by weight (VS-62).
    /// Never empty.
    Relay(Vec<Destination>),
    /// Serve the connection as HTTP and judge every request on its own by `by_request`. Only ever
    /// an answer of `by_hello`.
    Http,
    /// Forward this HTTP request. Only ever an answer of `by_request`.
    Forward(Box<Forward>),
    /// Answer this HTTP request here, as a rule says. Only ever an answer of `by_request`.
    Reply(Box<LocalReply>),
    /// Refused, and carried to where it was going all the same, since its workload is audited. Never an
    /// answer of deciding itself: [`audited`](super::audited) makes it of one.
    Audited(Box<Destination>),
    /// Only the daemon's own name resolution can tell: settle it with [`ByResolution::settle`] and
    /// do what that decision says. Strict profile only (GAP-1); never an answer of `by_request`,
    /// and never nested.
    ByResolution(Box<ByResolution>),
}

impl Action {
    /// Where bytes are relayed to untouched; `None`: they are not.
    pub fn relays_to(&self) -> Option<&[Destination]> {
        match self {
            Self::Relay(destinations) => Some(destinations),
            Self::Audited(destination) => Some(std::slice::from_ref(destination)),
            _ => None,
        }
    }
}

/// A verdict that hangs on whether the dialled address belongs to one of some hosts.
#[derive(Debug, Clone, PartialEq)]
pub struct ByResolution {
    /// Hosts in the order of precedence, each with the verdict if the daemon's own resolution of it
    /// contains the dialled address.
    pub claims: Arc<[Claim]>,
    /// The verdict if none does, or if a resolution fails.
    pub otherwise: Decision,
}

/// One host that may own the dialled address.
#[derive(Debug, Clone, PartialEq)]
pub struct Claim {
    /// What to resolve.
    pub host: HostName,
    /// The verdict if the dialled address is among its addresses.
    pub decision: Decision,
}

impl ByResolution {
    /// Chooses, given whether the dialled address is among a host's resolved addresses.
    pub fn settle(&self, owns_dialled: impl Fn(&HostName) -> bool) -> &Decision {
        let owner = self.claims.iter().find(|claim| owns_dialled(&claim.host));
        owner.map_or(&self.otherwise, |claim| &claim.decision)
    }
}

/// How a refusal looks to the client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Block {
    /// Close (TLS, before any byte: curl 35) without an answer.
    Close,
    /// TCP reset.
    Reset,
    /// A local HTTP reply; an empty body where `explain` is false (istio).
    Http {
        /// HTTP status, for instance 502 (MESH-27) or 400 (T-30).
        status: u16,
        /// Whether the body names host and reason (strict).
        explain: bool,
        /// Whether the connection ends with this answer.
        close: bool,
    },
}

/// Where an allowed connection or request goes (section 9 of the specification).
#[derive(Debug, Clone, PartialEq)]
pub enum Upstream {
    /// The address that the workload dialled, at this port (RES-1 in istio, MESH-21).
    OriginalDst {
        /// Port to dial; the original one unless a `targetPort` says otherwise (SE-4).
        port: u16,
        /// The name that the client showed, where the profile lets the proxy change the family:
        /// if the dialled address does not answer and the daemon's own resolution of this name
        /// contains it, the name's other addresses may be tried (an honest connect for clients
        /// that race families). `None` in the istio profile (MESH-21).
        name: Option<HostName>,
    },
    /// The dialled address if the daemon's own resolution of `host` contains it, else an address of
    /// that resolution (strict reading of RES-1; threats R3).
    VerifiedOriginalDst {
        /// The concrete name that the client showed.
        host: HostName,
        /// Port to dial.
        port: u16,
    },
    /// Addresses given by the entry (RES-2), balanced by weight.
    Static(Arc<[Endpoint<SocketAddr>]>),
    /// Names that the daemon resolves (RES-3, RES-4).
    Dns {
        /// What to resolve, each with its port.
        endpoints: Arc<[Endpoint<(Place, u16)>]>,
        /// First address of the latest answer only (RES-4).
        round_robin: bool,
    },
    /// Unix sockets given by the entry (SE-4, SE-7), balanced by weight; in strict there are none.
    Unix(Arc<[Endpoint<Arc<Path>>]>),
    /// The entry has no endpoint: UH (RES-2).
    None,
    /// There is no such cluster: NC (VS-21).
    NoCluster,
}

/// How an endpoint is given where names are resolved (RES-3).
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Place {
    /// The daemon resolves it.
    Name(HostName),
    /// It stands for itself.
    Ip(IpAddr),
}

impl From<HostName> for Place {
    fn from(name: HostName) -> Self {
        Self::Name(name)
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(name) => write!(f, "{name}"),
            Self::Ip(IpAddr::V6(ip)) => write!(f, "[{ip}]"),
            Self::Ip(ip) => write!(f, "{ip}"),
        }
    }
}

/// One upstream endpoint and its share.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint<A> {
    /// Address or name and port.
    pub target: A,
    /// Relative weight; at least 1 (SE-7).
    pub weight: u32,
}

/// A cluster's name as the log prints it (LOG-10).
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ClusterName(pub Arc<str>);

impl ClusterName {
    /// Unknown traffic that ALLOW_ANY passes (MESH-21).
    pub fn passthrough() -> Self {
        Self("PassthroughCluster".into())
    }

    /// Unknown traffic that REGISTRY_ONLY refuses (MESH-26).
    pub fn black_hole() -> Self {
        Self("BlackHoleCluster".into())
    }

    /// Unknown requests whose Host the proxy resolves (MESH-31).
    pub fn allow_any_dynamic_dns() -> Self {
        Self("AllowAnyDynamicDNSCluster".into())
    }

    /// Traffic that an operator's CIDR let go in the kernel (profiles.md, SEED-18).
    pub fn bypass() -> Self {
        Self("BypassCluster".into())
    }

    /// A service's own cluster: `outbound|PORT||HOST` with the *service* port.
    pub fn outbound(port: u16, host: &str) -> Self {
        Self::subset(port, "", host)
    }

    /// The cluster of a subset: `outbound|PORT|SUBSET|HOST` (LOG-10).
    pub fn subset(port: u16, subset: &str, host: &str) -> Self {
        Self(format!("outbound|{port}|{subset}|{host}").into())
    }
}

impl fmt::Display for ClusterName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A resource, named as people name it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RuleId {
    /// `ServiceEntry`, `VirtualService`, ...
    pub kind: &'static str,
    /// Namespace of the resource.
    pub namespace: Arc<str>,
    /// Name of the resource.
    pub name: Arc<str>,
}

impl fmt::Display for RuleId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}/{}", self.kind, self.namespace, self.name)
    }
}

/// Why a verdict is what it is. A small closed set: it labels metrics and logs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Reason {
    /// A registry entry claims this host, port or address.
    Registered,
    /// No entry claims it and the mode is ALLOW_ANY.
    AllowAny,
    /// No entry claims it and the mode is REGISTRY_ONLY.
    NotRegistered,
    /// A known host on a port that its entries do not list (MESH-30).
    PortNotRegistered,
    /// TLS without a name where the name decides (T-21).
    NoServerName,
    /// Bytes of another protocol than the entry's port declares (T-27).
    WrongProtocol,
    /// The first bytes broke the rules of their protocol (T-19 to T-23, T-30 to T-33).
    Malformed,
    /// The verdict needed bytes that did not come in time (T-28).
    SniffTimeout,
    /// The client closed before it had sent the bytes that the verdict needed (LIS-25).
    EarlyClose,
    /// A name without an address behind it that the daemon itself knows (R3).
    AddressNotVerified,
    /// A special address that no entry names (T-13, T-40).
    SpecialAddress,
    /// The kernel recorded no original destination (T-11).
    NoOriginalDst,
    /// CONNECT is not proxied (T-35, MESH-29).
    ConnectMethod,
    /// Host and destination disagree, or Host is not readable as one name (T-30).
    BadHost,
    /// An HTTP version that is not served (LIS-18: 426).
    HttpVersion,
    /// An operator's CIDR let it go in the kernel (profiles.md, SEED-18).
    Bypassed,
    /// Policy could not be loaded: deny all (T-61).
    NoPolicy,
    /// Its host has a VirtualService, and no rule of it matches (VS-9).
    NoRoute,
    /// There is no room for it: a limit of the daemon's is reached (T-49, T-50).
    LimitReached,
    /// The access log cannot be written, and then nothing new may pass (T-57).
    LogLost,
    /// TLS that offers to hide the name it means, where the entry forbids that (T-26).
    HiddenName,
    /// A node brought it to a gateway in the name of a workload for which it may not speak.
    ForeignWorkload,
    /// No server of the gateway's is for it (GW-5).
    NotServed,
}

impl Reason {
    /// Every reason, in the order of their numbers.
    pub const ALL: [Self; 23] = [
        Self::Registered,
        Self::AllowAny,
        Self::NotRegistered,
        Self::PortNotRegistered,
        Self::NoServerName,
        Self::WrongProtocol,
        Self::Malformed,
        Self::SniffTimeout,
        Self::EarlyClose,
        Self::AddressNotVerified,
        Self::SpecialAddress,
        Self::NoOriginalDst,
        Self::ConnectMethod,
        Self::BadHost,
        Self::HttpVersion,
        Self::Bypassed,
        Self::NoPolicy,
        Self::NoRoute,
        Self::LimitReached,
        Self::LogLost,
        Self::HiddenName,
        Self::ForeignWorkload,
        Self::NotServed,
    ];

    /// The label used in logs and metrics.
    pub fn label(self) -> &'static str {
        match self {
            Self::Registered => "registered",
            Self::AllowAny => "allow_any",
            Self::NotRegistered => "not_registered",
            Self::PortNotRegistered => "port_not_registered",
            Self::NoServerName => "no_server_name",
            Self::WrongProtocol => "wrong_protocol",
            Self::Malformed => "malformed",
            Self::SniffTimeout => "sniff_timeout",
            Self::EarlyClose => "early_close",
            Self::AddressNotVerified => "address_not_verified",
            Self::SpecialAddress => "special_address",
            Self::NoOriginalDst => "no_original_dst",
            Self::ConnectMethod => "connect_method",
            Self::BadHost => "bad_host",
            Self::HttpVersion => "http_version",
            Self::Bypassed => "bypassed",
            Self::NoPolicy => "no_policy",
            Self::NoRoute => "no_route",
            Self::LimitReached => "limit_reached",
            Self::LogLost => "log_lost",
            Self::HiddenName => "hidden_name",
            Self::ForeignWorkload => "foreign_workload",
            Self::NotServed => "not_served",
        }
    }

    /// The reason as a clause for people; it completes "interceptor refused this request: ".
    pub fn explain(self) -> &'static str {
        match self {
            Self::Registered => "a registry entry allows it",
            Self::AllowAny => "no registry entry claims it and the outbound policy is ALLOW_ANY",
            Self::NotRegistered => {
                "it is not in the registry and the outbound policy is REGISTRY_ONLY; \
                 add a ServiceEntry for this host and port"
            }
            Self::PortNotRegistered => {
                "its host is in the registry, but not with this port, and the outbound policy is \
                 REGISTRY_ONLY; add the port to its ServiceEntry"
            }
            Self::NoServerName => {
                "the TLS handshake names no server, and the outbound policy REGISTRY_ONLY decides \
                 by name; make the client send SNI"
            }
            Self::WrongProtocol => {
                "the client speaks another protocol than the registry declares for this port; \
                 correct the protocol in its ServiceEntry"
            }
            Self::Malformed => "the first bytes break the rules of the protocol they start",
            Self::SniffTimeout => {
                "the verdict needs the client's first bytes, and they did not come in time"
            }
            Self::EarlyClose => "the client closed before it had sent what the verdict needs",
            Self::AddressNotVerified => {
                "the dialled address does not belong to the host as this machine resolves it; \
                 list it in the addresses of the ServiceEntry if it is right"
            }
            Self::SpecialAddress => {
                "the destination is a special address (loopback, link-local, metadata, multicast) \
                 that no ServiceEntry lists in its addresses"
            }
            Self::NoOriginalDst => "the kernel recorded no destination for this connection",
            Self::ConnectMethod => "CONNECT is not proxied",
            Self::BadHost => {
                "its Host is missing, unreadable, or disagrees with the request target or the port \
                 of the connection"
            }
            Self::HttpVersion => "this version of HTTP is not served; use HTTP/1.1",
            Self::Bypassed => "an operator's bypass CIDR covers it",
            Self::NoPolicy => "no policy is in force for it, and then everything is refused",
            Self::NoRoute => "no rule of its host's VirtualService matches it",
            Self::LimitReached => {
                "a limit of interceptor's is reached, which `interceptor status` names; close \
                 connections, or raise it in `limits` of the InterceptorConfig"
            }
            Self::LogLost => {
                "lines of the access log cannot be written, and onLogLoss is refuse; make room for \
                 the log, or free whoever reads it"
            }
            Self::HiddenName => {
                "its TLS hello offers encrypted_client_hello, which the ServiceEntry forbids; switch \
                 ECH off in the client"
            }
            Self::ForeignWorkload => {
                "the node that brought it may not speak for this workload; list it in the gateway's table \
                 of nodes if it may"
            }
            Self::NotServed => {
                "no server of this gateway is for it; list its host in `servers` of a Gateway that selects \
                 the gateway, and bind a VirtualService for it to that Gateway"
            }
        }
    }
}

/// The head of one HTTP request, as far as decisions read it.
#[derive(Clone, Copy)]
pub struct RequestHead<'a> {
    /// Method as sent.
    pub method: &'a str,
    /// Authority of an absolute-form target or `:authority`, verbatim.
    pub authority: Option<&'a str>,
    /// Every `Host` header, verbatim.
    pub hosts: &'a [&'a str],
    /// Path and query.
    pub path: &'a str,
    /// 10, 11 or 20.
    pub version: u8,
    /// The other headers.
    pub headers: &'a dyn Headers,
}

/// Request headers, as VirtualService matches read them (VS-12).
pub trait Headers {
    /// The values of `name` (lower case), joined by `,` where the header is repeated; `None` if it
    /// is absent.
    fn joined(&self, name: &str) -> Option<Cow<'_, str>>;
}

/// No headers at all.
impl Headers for () {
    fn joined(&self, _name: &str) -> Option<Cow<'_, str>> {
        None
    }
}

/// Pairs of lower-case name and value.
impl Headers for Vec<(String, String)> {
    fn joined(&self, name: &str) -> Option<Cow<'_, str>> {
        let mut values =
            self.iter().filter(|(have, _)| have == name).map(|(_, value)| value.as_str());
        let first = values.next()?;
        Some(values.fold(Cow::Borrowed(first), |all, value| Cow::Owned(format!("{all},{value}"))))
    }
}
