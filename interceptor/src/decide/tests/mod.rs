//! Decisions as tables: resources as YAML, flows, and the verdict in one line.

mod doors;
mod istio;
mod matrix;
mod properties;
mod routes;
mod strict;

use super::host::HostName;
use super::*;
use crate::policy::{Caller, Sources, load};
use crate::sniff::{ClientHello, Malformed};

pub(super) use crate::policy::Enforcement::{Istio, Strict};
pub(super) use crate::policy::Outbound::{AllowAny, RegistryOnly};

pub(super) const GOOGLE: &str = include_str!("../../../../examples/google.yaml");
pub(super) const HTTPBIN: &str = include_str!("../../../../examples/httpbin.yaml");
pub(super) const CNN: &str = include_str!("../../../../examples/cnn.yaml");
pub(super) const WIKIPEDIA: &str = include_str!("../../../../examples/wikipedia.yaml");

/// Compiles resources for namespace `default`; nothing may be rejected.
pub(super) fn policy(yaml: &str, profile: Enforcement, outbound: Outbound) -> Policy {
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("policy.yaml");
    std::fs::write(&file, yaml).expect("written");
    let sources = Sources {
        files: vec![file],
        outbound: Some(outbound),
        enforcement: Some(profile),
        ..Sources::default()
    };
    let loaded =
        load(&sources, &Caller::new("default")).unwrap_or_else(|errors| panic!("{errors}"));
    assert!(loaded.rejected.is_empty(), "{:?}", loaded.rejected);
    loaded.snapshot.policy
}

/// A ServiceEntry in namespace `default`; files list entries in the order of their names (REG-4).
pub(super) fn entry(name: &str, spec: &str) -> String {
    format!(
        "---\napiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {{name: {name}}}\n\
         spec: {{{spec}}}\n"
    )
}

pub(super) fn tls(sni: &str) -> Hello {
    Hello::Tls(ClientHello {
        sni: Some(HostName::parse(sni).expect("a name")),
        dotted: sni.ends_with('.'),
        ..ClientHello::default()
    })
}

pub(super) fn tls_nameless() -> Hello {
    Hello::Tls(ClientHello::default())
}

pub(super) fn malformed() -> Hello {
    Hello::Malformed(Malformed("two names"))
}

pub(super) fn flow(dst: &str) -> Flow<'static> {
    Flow { dst: OriginalDst::new(dst.parse().expect("an address")), namespace: "default" }
}

/// What address and port alone say: `decided ...` or `inspect, else ...`.
pub(super) fn dial(policy: &Policy, dst: &str) -> String {
    match by_address(policy, &flow(dst)) {
        ByAddress::Decided(decision) => format!("decided {}", show(&decision)),
        ByAddress::Inspect { unless_client_speaks } => {
            format!("inspect, else {}", show(&unless_client_speaks))
        }
    }
}

/// The verdict on a connection that starts with `hello`.
pub(super) fn connect(policy: &Policy, dst: &str, hello: &Hello) -> String {
    show(&match by_address(policy, &flow(dst)) {
        ByAddress::Decided(decision) => decision,
        ByAddress::Inspect { .. } => by_hello(policy, &flow(dst), hello),
    })
}

/// The verdict on a GET over HTTP/1.1, if the connection is served as HTTP at all.
pub(super) fn get(policy: &Policy, dst: &str, host: &str) -> String {
    let verdict = connect(policy, dst, &Hello::Http1);
    if verdict != "http" {
        return verdict;
    }
    request(policy, dst, "GET", None, &[host], 11)
}

pub(super) fn request(
    policy: &Policy,
    dst: &str,
    method: &str,
    authority: Option<&str>,
    hosts: &[&str],
    version: u8,
) -> String {
    let head = RequestHead { method, authority, hosts, path: "/", version, headers: &() };
    show(&by_request(policy, &flow(dst), &head))
}

/// A decision in one line: action, cluster, route where there is one, reason.
pub(super) fn show(decision: &Decision) -> String {
    let action = match &decision.action {
        Action::Http => return "http".to_owned(),
        Action::Block(Block::Close) => "close".to_owned(),
        Action::Block(Block::Reset) => "reset".to_owned(),
        Action::Block(Block::Http { status, explain, close }) => {
            format!(
                "{status}{}{}",
                if *explain { " explained" } else { "" },
                if *close { " closing" } else { "" }
            )
        }
        Action::Relay(to) => format!("relay {}", show_upstream(&to[0].upstream)),
        Action::Forward(to) => format!("forward {}", show_upstream(&to.destinations[0].upstream)),
        Action::Reply(reply) => format!("reply {}", reply.status),
        Action::Audited(to) => format!("audited {}", show_upstream(&to.upstream)),
        Action::ByResolution(hanging) => {
            let claims: Vec<_> = hanging
                .claims
                .iter()
                .map(|claim| format!("if {}: {}", claim.host, show(&claim.decision)))
                .collect();
            return format!("{}; else {}", claims.join("; "), show(&hanging.otherwise));
        }
    };
    let cluster = decision.cluster.as_ref().map_or("-", |cluster| &*cluster.0);
    let route = decision.route.as_deref().map_or(String::new(), |route| format!(" {route}"));
    let reason = match decision.reason {
        Reason::Registered | Reason::AllowAny => String::new(),
        reason => format!(" {}", reason.label()),
    };
    format!("{action} {cluster}{route}{reason}")
}

fn show_upstream(upstream: &Upstream) -> String {
    match upstream {
        Upstream::OriginalDst { port, name: None } => format!("odst:{port}"),
        Upstream::OriginalDst { port, name: Some(name) } => format!("odst:{port}({name})"),
        Upstream::VerifiedOriginalDst { host, port } => format!("verified:{host}:{port}"),
        Upstream::Static(endpoints) => endpoints
            .iter()
            .map(|e| format!("{}*{}", e.target, e.weight))
            .collect::<Vec<_>>()
            .join(","),
        Upstream::Dns { endpoints, round_robin } => {
            endpoints
                .iter()
                .map(|e| format!("{}:{}*{}", e.target.0, e.target.1, e.weight))
                .collect::<Vec<_>>()
                .join(",")
                + if *round_robin { " rr" } else { "" }
        }
        Upstream::Unix(sockets) => sockets
            .iter()
            .map(|e| format!("{}*{}", e.target.display(), e.weight))
            .collect::<Vec<_>>()
            .join(","),
        Upstream::None => "nowhere".to_owned(),
        Upstream::NoCluster => "no cluster".to_owned(),
    }
}

#[test]
fn t_61_no_policy_refuses_everything() {
    let none = Policy::default();
    assert_eq!(dial(&none, "203.0.113.1:443"), "decided close BlackHoleCluster no_policy");
    let flow = flow("203.0.113.1:443");
    assert_eq!(show(&by_hello(&none, &flow, &tls("a.com"))), "close BlackHoleCluster no_policy");
    assert_eq!(
        request(&none, "203.0.113.1:80", "GET", None, &["a.com"], 11),
        "503 explained closing - no_policy"
    );
}

#[test]
fn rules_compiled_for_one_namespace_do_not_decide_for_another() {
    let policy = policy("", Strict, AllowAny);
    let foreign = Flow { namespace: "other", ..flow("203.0.113.1:443") };
    let ByAddress::Decided(decision) = by_address(&policy, &foreign) else {
        panic!("must be decided at once");
    };
    assert_eq!(decision.reason, Reason::NoPolicy);
}
