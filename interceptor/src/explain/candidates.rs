//! Which resources might have taken the connection, and why each but one did not.

use serde::Serialize;

use super::Dialled;
use super::question::{FirstBytes, Question};
use crate::decide::pattern::EntryHost;
use crate::decide::{Action, Decision, Group, Policy, Service};

/// No more than this many are listed.
const MAX_LISTED: usize = 20;

/// A resource that was considered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Candidate {
    /// The resource.
    pub resource: String,
    /// Its host and port, and what it declares the port to be.
    pub offers: String,
    /// Whether it took the connection.
    pub chosen: bool,
    /// Why, or why not.
    pub because: String,
}

/// Everything that names the host, or the port and the dialled address, the chosen one first.
/// The number says how many more there are than are listed.
pub(super) fn candidates(
    policy: &Policy,
    question: &Question,
    dialled: &Dialled,
    decision: &Decision,
) -> (Vec<Candidate>, usize) {
    let related: Vec<&Service> = policy
        .services()
        .iter()
        .filter(|service| is_chosen(service, decision) || concerns(service, question, dialled))
        .collect();
    let chosen = related.iter().position(|service| is_chosen(service, decision));
    let mut listed: Vec<Candidate> = related
        .iter()
        .enumerate()
        .map(|(at, service)| Candidate {
            resource: service.rule.to_string(),
            offers: offers(service),
            chosen: chosen == Some(at),
            because: if chosen == Some(at) {
                why_chosen(service, question)
            } else {
                why_not(service, question, dialled, decision, chosen.map(|at| related[at]))
            },
        })
        .collect();
    listed.sort_by_key(|candidate| !candidate.chosen);
    let more = listed.len().saturating_sub(MAX_LISTED);
    listed.truncate(MAX_LISTED);
    (listed, more)
}

/// `HOST:PORT (declared PROTOCOL)`.
pub(super) fn offers(service: &Service) -> String {
    format!("{}:{} ({})", service.cluster.host, service.port, declared(service.group))
}

/// What a port was declared to be, as far as it matters.
pub(super) fn declared(group: Group) -> &'static str {
    match group {
        Group::Http => "HTTP",
        Group::Tls => "TLS",
        Group::Tcp => "TCP",
        Group::Sniffed => "no protocol",
    }
}

/// Whether the port's protocol takes these first bytes.
pub(super) fn takes(group: Group, first: FirstBytes) -> bool {
    match group {
        Group::Sniffed | Group::Tcp => true,
        Group::Http => first.is_http(),
        Group::Tls => first == FirstBytes::Tls,
    }
}

/// Whether the host covers the name.
pub(super) fn covers(host: &EntryHost, question: &Question) -> bool {
    let Some(name) = question.name() else { return false };
    match host {
        EntryHost::Exact(exact) => exact == name,
        EntryHost::Wildcard(suffix) => name.parents().any(|parent| parent == suffix.as_str()),
        EntryHost::Partial(suffix) => {
            name.as_str().len() > suffix.as_str().len() && name.as_str().ends_with(suffix.as_str())
        }
    }
}

fn concerns(service: &Service, question: &Question, dialled: &Dialled) -> bool {
    covers(&service.cluster.host, question)
        || (service.port == question.port && service.cluster.lists(dialled.addr.ip()))
}

/// Whether a decision names this service. Rule and cluster together do.
fn is_chosen(service: &Service, decision: &Decision) -> bool {
    if decision.rule.is_none() {
        return false;
    }
    let destinations = match &decision.action {
        Action::Relay(destinations) => destinations.as_slice(),
        Action::Forward(forward) => forward.destinations.as_slice(),
        _ => return false,
    };
    let cluster = |destination: &crate::decide::route::Destination| {
        destination.cluster.as_ref() == Some(&service.cluster.name)
    };
    destinations.iter().any(cluster)
        && decision.rule.as_ref().is_some_and(|rule| {
            // A VirtualService decides in its own name; what it chose is still the service.
            rule.kind != service.rule.kind || *rule == service.rule
        })
}

fn why_chosen(service: &Service, question: &Question) -> String {
    if !covers(&service.cluster.host, question) {
        return "its addresses hold the dialled one".to_owned();
    }
    match &service.cluster.host {
        EntryHost::Exact(_) => "its host is the name asked for".to_owned(),
        EntryHost::Wildcard(_) | EntryHost::Partial(_) => {
            "its wildcard covers the name asked for".to_owned()
        }
    }
}

fn why_not(
    service: &Service,
    question: &Question,
    dialled: &Dialled,
    decision: &Decision,
    winner: Option<&Service>,
) -> String {
    let ip = dialled.addr.ip();
    if service.port != question.port {
        return format!("it is for port {}, not {}", service.port, question.port);
    }
    if !takes(service.group, question.first) {
        return format!(
            "it declares {}, and the client sends {}",
            declared(service.group),
            sends(question.first)
        );
    }
    if !covers(&service.cluster.host, question) && matches!(service.group, Group::Http | Group::Tls)
    {
        return format!("it holds the address, but its name {} is another", service.cluster.host);
    }
    if !service.cluster.holds(ip) && (winner.is_none() || service.group != Group::Http) {
        let unknown = if dialled.assumed { "are not known to hold" } else { "do not hold" };
        let more = if dialled.assumed { " (give --dst)" } else { "" };
        return format!("its addresses {unknown} the dialled one{more}");
    }
    match winner {
        Some(winner)
            if winner.cluster.host != service.cluster.host
                && matches!(winner.cluster.host, EntryHost::Exact(_)) =>
        {
            format!("{} is exact and goes first (HTTP-2)", winner.cluster.host)
        }
        Some(winner) if winner.cluster.host != service.cluster.host => {
            format!("{} is more specific or older and goes first (HTTP-2, REG-4)", winner.rule)
        }
        Some(winner) => format!("{} goes first (REG-4)", winner.rule),
        None => match &decision.rule {
            Some(rule) => format!("{rule} decides in its place"),
            None => decision.reason.explain().to_owned(),
        },
    }
}

fn sends(first: FirstBytes) -> &'static str {
    match first {
        FirstBytes::Http1 => "plaintext HTTP/1.1",
        FirstBytes::H2c => "plaintext HTTP/2",
        FirstBytes::Tls => "TLS",
        FirstBytes::Raw => "bytes that are neither TLS nor HTTP",
        FirstBytes::None => "nothing before the server speaks",
    }
}
