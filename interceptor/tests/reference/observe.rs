//! What can be seen of a verdict, and the product's verdicts in these terms.

use std::net::SocketAddr;

use interceptor::decide::host::HostName;
use interceptor::decide::route::Destination;
use interceptor::decide::{
    self, Action, Block, ByAddress, Decision, Policy, RequestHead, Upstream, by_address, by_hello,
    by_request,
};
use interceptor::origin::OriginalDst;
use interceptor::sniff::{ClientHello, Hello, Malformed};

use crate::world::{Bytes, Flow};

/// What a client, an upstream and the log's reader see of a verdict.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Seen {
    /// Closed without a byte.
    Close {
        cluster: Option<String>,
    },
    Reset,
    /// Answered here.
    Reply {
        status: u16,
        explain: bool,
        close: bool,
        route: Option<String>,
    },
    /// Relayed, on behalf of a resource.
    Relay {
        to: Vec<Place>,
        rule: Option<String>,
    },
    /// Judged request by request.
    Requests,
    Forward {
        to: Vec<Place>,
        route: Option<String>,
        rule: Option<String>,
        timeout: Option<u64>,
    },
    /// Answered as a rule says.
    Local {
        status: u16,
        location: Option<String>,
        route: Option<String>,
        rule: Option<String>,
    },
    /// Whichever host's resolution holds the dialled address first, else the rest.
    Hanging {
        claims: Vec<(String, Seen)>,
        otherwise: Box<Seen>,
    },
}

/// A destination.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Place {
    pub(crate) weight: u32,
    pub(crate) cluster: Option<String>,
    pub(crate) to: To,
}

/// What is dialled.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum To {
    /// The dialled address; another of this name's where it does not answer.
    Dialled {
        port: u16,
        name: Option<String>,
    },
    /// The dialled address if the name has it, else the name's.
    Checked {
        host: String,
        port: u16,
    },
    Fixed(Vec<(SocketAddr, u32)>),
    Names {
        names: Vec<(String, u16, u32)>,
        first_only: bool,
    },
    Nowhere,
    NoCluster,
}

/// The verdict at each door. The later ones are asked only where the earlier ones ask for more.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Verdicts {
    /// The bytes are looked at before it is final.
    pub(crate) inspects: bool,
    /// What address and port say, or silence means.
    pub(crate) dialled: Seen,
    pub(crate) hello: Option<Seen>,
    pub(crate) request: Option<Seen>,
}

impl Seen {
    /// Whether a request may have to be judged.
    pub(crate) fn serves_http(&self) -> bool {
        match self {
            Self::Requests => true,
            Self::Hanging { claims, otherwise } => {
                otherwise.serves_http() || claims.iter().any(|(_, seen)| seen.serves_http())
            }
            _ => false,
        }
    }
}

/// Asks the product, door by door.
pub(crate) fn decide(policy: &Policy, flow: &Flow) -> Verdicts {
    let asked = decide::Flow { dst: OriginalDst::new(flow.dst), namespace: "default" };
    let dialled = match by_address(policy, &asked) {
        ByAddress::Decided(decision) => {
            let dialled = seen(&decision);
            return Verdicts { inspects: false, dialled, hello: None, request: None };
        }
        ByAddress::Inspect { unless_client_speaks } => seen(&unless_client_speaks),
    };
    let first = seen(&by_hello(policy, &asked, &hello(flow.hello)));
    let request = first.serves_http().then(|| {
        let head = &flow.head;
        let hosts: Vec<&str> = head.hosts.iter().map(String::as_str).collect();
        let head = RequestHead {
            method: head.method,
            authority: head.authority.as_deref(),
            hosts: &hosts,
            path: head.path,
            version: head.version,
            headers: &head.headers,
        };
        seen(&by_request(policy, &asked, &head))
    });
    Verdicts { inspects: true, dialled, hello: Some(first), request }
}

fn hello(bytes: Bytes) -> Hello {
    match bytes {
        Bytes::Tls(sni) => Hello::Tls(ClientHello {
            sni: sni.map(|name| HostName::parse(name).expect("a name")),
            ..ClientHello::default()
        }),
        Bytes::Http1 => Hello::Http1,
        Bytes::Http2 => Hello::Http2,
        Bytes::Opaque => Hello::Opaque,
        Bytes::Silent => Hello::Silent,
        Bytes::Closed => Hello::Closed,
        Bytes::Malformed => Hello::Malformed(Malformed("two names")),
    }
}

fn seen(decision: &Decision) -> Seen {
    let cluster = decision.cluster.as_ref().map(ToString::to_string);
    let route = decision.route.as_deref().map(str::to_owned);
    let rule = decision.rule.as_ref().map(ToString::to_string);
    match &decision.action {
        Action::Block(Block::Close) => Seen::Close { cluster },
        Action::Block(Block::Reset) => Seen::Reset,
        Action::Block(Block::Http { status, explain, close }) => {
            Seen::Reply { status: *status, explain: *explain, close: *close, route }
        }
        Action::Relay(to) => {
            assert_eq!(cluster, to[0].cluster.as_ref().map(ToString::to_string));
            Seen::Relay { to: to.iter().map(place).collect(), rule }
        }
        Action::Http => Seen::Requests,
        Action::Forward(forward) => {
            let to: Vec<_> = forward.destinations.iter().map(place).collect();
            assert_eq!(cluster, to[0].cluster);
            let timeout = forward.route.timeout.map(|timeout| timeout.as_secs());
            Seen::Forward { to, route, rule, timeout }
        }
        Action::Reply(reply) => {
            assert_eq!(cluster, None);
            let location = reply.location.clone();
            Seen::Local { status: reply.status, location, route, rule }
        }
        Action::Audited(_) => panic!("deciding answers it never: {decision:?}"),
        Action::ByResolution(hanging) => Seen::Hanging {
            claims: hanging
                .claims
                .iter()
                .map(|claim| (claim.host.to_string(), seen(&claim.decision)))
                .collect(),
            otherwise: Box::new(seen(&hanging.otherwise)),
        },
    }
}

fn place(destination: &Destination) -> Place {
    let to = match &destination.upstream {
        Upstream::OriginalDst { port, name } => {
            To::Dialled { port: *port, name: name.as_ref().map(ToString::to_string) }
        }
        Upstream::VerifiedOriginalDst { host, port } => {
            To::Checked { host: host.to_string(), port: *port }
        }
        Upstream::Static(endpoints) => {
            To::Fixed(endpoints.iter().map(|e| (e.target, e.weight)).collect())
        }
        Upstream::Dns { endpoints, round_robin } => To::Names {
            names: endpoints
                .iter()
                .map(|e| (e.target.0.to_string(), e.target.1, e.weight))
                .collect(),
            first_only: *round_robin,
        },
        // No world has any.
        Upstream::Unix(_) => unreachable!("a unix socket"),
        Upstream::None => To::Nowhere,
        Upstream::NoCluster => To::NoCluster,
    };
    let cluster = destination.cluster.as_ref().map(ToString::to_string);
    Place { weight: destination.weight, cluster, to }
}
