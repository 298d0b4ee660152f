//! How a verdict came about, for people: what was considered on the way, and why each lost.

use super::host::HostName;
use super::request::{Host, effective_host};
use super::{
    Action, ByAddress, ByResolution, Decision, Flow, Group, Inner, Policy, RequestHead, RuleId,
    Service, by_address, by_hello, by_request,
};
use crate::sniff::Hello;

/// One thing that was considered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TraceStep {
    /// What was being chosen.
    pub stage: Stage,
    /// The resource considered; `None` where the step is not about one (the mode, the flow).
    pub considered: Option<RuleId>,
    /// What became of it: a clause such as `taken` or `lost: its addresses do not hold 192.0.2.1`.
    pub outcome: String,
}

/// The questions on the way to a verdict, in their order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Stage {
    /// Which port handler has the connection (section 5).
    Handler,
    /// Which service the connection or request belongs to (sections 5 and 8).
    Service,
    /// Which rule of a VirtualService applies (section 10).
    Route,
    /// What the mode says where nothing claims the flow (section 2).
    Mode,
    /// The verdict.
    Verdict,
}

impl Stage {
    /// The word for tables and JSON.
    pub fn label(self) -> &'static str {
        match self {
            Self::Handler => "handler",
            Self::Service => "service",
            Self::Route => "route",
            Self::Mode => "mode",
            Self::Verdict => "verdict",
        }
    }
}

/// The verdict on `flow`, given as much as is known of its first bytes, and how it came about.
///
/// Pure like the deciding functions, which it asks for the verdict itself.
pub fn trace(
    policy: &Policy,
    flow: &Flow<'_>,
    hello: Option<&Hello>,
    head: Option<&RequestHead<'_>>,
) -> Vec<TraceStep> {
    let mut steps = Vec::new();
    let Some(rules) = policy.rules(flow) else {
        push(&mut steps, Stage::Mode, None, "no policy is in force: everything is refused");
        return steps;
    };
    let dialled = by_address(policy, flow);
    let (mut decision, inspected) = match dialled {
        ByAddress::Decided(decision) => (decision, false),
        ByAddress::Inspect { unless_client_speaks } => (unless_client_speaks, true),
    };
    let said = if inspected {
        "the first bytes are inspected"
    } else {
        "address and port decide; the bytes are not looked at"
    };
    push(&mut steps, Stage::Handler, None, said);
    if let Some(hello) = hello.filter(|_| inspected) {
        decision = by_hello(policy, flow, hello);
    }
    let request = head.filter(|_| decision.action == Action::Http);
    if let Some(head) = request {
        decision = by_request(policy, flow, head);
    }
    let name = shown_name(rules, flow, hello.filter(|_| inspected), request);
    services(rules, flow, name.as_ref(), &decision, request.is_some(), &mut steps);
    verdict(rules, &decision, &mut steps);
    steps
}

fn push(
    steps: &mut Vec<TraceStep>,
    stage: Stage,
    considered: Option<&RuleId>,
    outcome: impl Into<String>,
) {
    steps.push(TraceStep { stage, considered: considered.cloned(), outcome: outcome.into() });
}

/// The name that the client showed.
fn shown_name(
    rules: &Inner,
    flow: &Flow<'_>,
    hello: Option<&Hello>,
    head: Option<&RequestHead<'_>>,
) -> Option<HostName> {
    match (head, hello) {
        (Some(head), _) => match effective_host(head, flow.dst.addr(), rules.profile()) {
            Ok((Host::Name(name), _)) => Some(name),
            _ => None,
        },
        (None, Some(Hello::Tls(hello))) => hello.sni.clone(),
        _ => None,
    }
}

/// Every service that has to do with this port or name.
fn services(
    rules: &Inner,
    flow: &Flow<'_>,
    name: Option<&HostName>,
    decision: &Decision,
    request: bool,
    steps: &mut Vec<TraceStep>,
) {
    let dst = flow.dst.addr();
    for service in &rules.services {
        let named = name.is_some_and(|name| service.host().matches(name));
        let address = service.lists(dst.ip());
        if service.port != dst.port() && !named && !address {
            continue;
        }
        let outcome = if taken(service, decision) {
            "taken".to_owned()
        } else if service.port != dst.port() {
            format!("lost: {} has port {}, not {}", service.host(), service.port, dst.port())
        } else if !service.holds(dst.ip()) {
            format!("lost: the addresses of {} do not hold {}", service.host(), dst.ip())
        } else if let Some(name) = name.filter(|_| !named) {
            format!("lost: {} is not {name}", service.host())
        } else {
            lost_by_protocol(service, name, request)
        };
        push(steps, Stage::Service, Some(&service.rule), outcome);
    }
}

fn taken(service: &Service, decision: &Decision) -> bool {
    let claimed = |decision: &Decision| {
        decision.rule.as_ref() == Some(&service.rule)
            && decision.cluster.as_ref() == Some(&service.cluster.name)
    };
    match &decision.action {
        Action::ByResolution(hanging) => {
            let ByResolution { claims, otherwise } = &**hanging;
            claims.iter().any(|claim| claimed(&claim.decision)) || claimed(otherwise)
        }
        _ => claimed(decision),
    }
}

fn lost_by_protocol(service: &Service, name: Option<&HostName>, request: bool) -> String {
    let host = service.host();
    match service.group {
        Group::Http if !request => format!("lost: {host} takes plaintext HTTP on this port"),
        Group::Tls if request => format!("lost: {host} takes TLS on this port"),
        Group::Tls if name.is_none() => format!("lost: {host} is told by SNI, and there is none"),
        _ => format!("lost: another service comes before {host}"),
    }
}

fn verdict(rules: &Inner, decision: &Decision, steps: &mut Vec<TraceStep>) {
    if decision.rule.is_none() && !matches!(decision.action, Action::Http | Action::ByResolution(_))
    {
        push(
            steps,
            Stage::Mode,
            None,
            format!("{:?}: {}", rules.outbound, decision.reason.explain()),
        );
    }
    let cluster = decision.cluster.as_ref().map_or("-", |cluster| &*cluster.0);
    let route = decision.route.as_deref().unwrap_or("-");
    let does = match &decision.action {
        Action::Block(_) => "refused",
        Action::Relay(_) => "relayed",
        Action::Http => "served as HTTP, request by request",
        Action::Forward(_) => "forwarded",
        Action::Reply(_) => "answered here",
        Action::Audited(_) => "refused, and carried to where it was going all the same",
        Action::ByResolution(_) => "hangs on what the hosts resolve to",
    };
    let outcome = format!("{does}; cluster {cluster}, route {route}, {}", decision.reason.label());
    push(steps, Stage::Verdict, decision.rule.as_ref(), outcome);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decide::tests::{AllowAny, Istio, RegistryOnly, Strict, entry, flow, policy, tls};

    #[test]
    fn every_candidate_has_its_reason() {
        let yaml = [
            entry(
                "a",
                "hosts: [a.com], ports: [{number: 443, name: p, protocol: TLS}], resolution: DNS",
            ),
            entry("b", "hosts: [\"*.com\"], ports: [{number: 443, name: p, protocol: TLS}]"),
            entry(
                "c",
                "hosts: [a.com], ports: [{number: 80, name: p, protocol: HTTP}], resolution: DNS",
            ),
        ]
        .concat();
        let policy = policy(&yaml, Istio, RegistryOnly);
        let steps = trace(&policy, &flow("192.0.2.1:443"), Some(&tls("a.com")), None);
        let said: Vec<_> = steps.iter().map(|step| (step.stage, step.outcome.as_str())).collect();
        assert_eq!(
            said,
            [
                (Stage::Handler, "the first bytes are inspected"),
                (Stage::Service, "taken"),
                (Stage::Service, "lost: another service comes before *.com"),
                (Stage::Service, "lost: a.com has port 80, not 443"),
                (Stage::Verdict, "relayed; cluster outbound|443||a.com, route -, registered"),
            ]
        );
    }

    #[test]
    fn the_mode_is_named_where_nothing_claims_the_flow() {
        let policy = policy("", Strict, AllowAny);
        let steps = trace(&policy, &flow("192.0.2.1:443"), Some(&tls("a.com")), None);
        assert!(steps.iter().any(|step| step.stage == Stage::Mode), "{steps:?}");
    }
}
