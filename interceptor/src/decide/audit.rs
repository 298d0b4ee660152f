//! Audit: what is refused goes where it was going all the same, and the line says why it would not have. A
//! step after deciding, so that who is audited is judged as everybody else.

use std::sync::Arc;

use super::door::Door;
use super::route::Destination;
use super::traffic::{TrafficPolicy, UpstreamProtocol};
use super::{Action, ClusterName, Decision, Reason, Upstream};
use crate::origin::OriginalDst;

/// The decision that is carried out for an audited workload: a refusal becomes [`Action::Audited`], with its
/// reason and rule kept; everything else stays. The rest of the line is ALLOW_ANY's.
pub fn audited(decision: Decision, dst: OriginalDst) -> Decision {
    if !matches!(decision.action, Action::Block(_)) {
        return decision;
    }
    let to = as_dialled(dst);
    Decision {
        cluster: to.cluster.clone(),
        action: Action::Audited(Box::new(to)),
        route: Some("allow_any".into()),
        ..decision
    }
}

/// Where a connection was going, as without us: no egress proxy, no other family (MESH-21).
pub fn as_dialled(dst: OriginalDst) -> Destination {
    Destination {
        weight: 1,
        cluster: Some(ClusterName::passthrough()),
        upstream: Upstream::OriginalDst { port: dst.addr().port(), name: None },
        judged: None,
        door: Door::Direct,
        traffic: Arc::new(TrafficPolicy {
            protocol: UpstreamProtocol::AsClient,
            ..TrafficPolicy::default()
        }),
        headers: Arc::default(),
    }
}

impl Reason {
    /// The label where the refusal was only noted: `audit:` and its own.
    pub fn audit_label(self) -> &'static str {
        match self {
            Self::Registered => "audit:registered",
            Self::AllowAny => "audit:allow_any",
            Self::NotRegistered => "audit:not_registered",
            Self::PortNotRegistered => "audit:port_not_registered",
            Self::NoServerName => "audit:no_server_name",
            Self::WrongProtocol => "audit:wrong_protocol",
            Self::Malformed => "audit:malformed",
            Self::SniffTimeout => "audit:sniff_timeout",
            Self::EarlyClose => "audit:early_close",
            Self::AddressNotVerified => "audit:address_not_verified",
            Self::SpecialAddress => "audit:special_address",
            Self::NoOriginalDst => "audit:no_original_dst",
            Self::ConnectMethod => "audit:connect_method",
            Self::BadHost => "audit:bad_host",
            Self::HttpVersion => "audit:http_version",
            Self::Bypassed => "audit:bypassed",
            Self::NoPolicy => "audit:no_policy",
            Self::NoRoute => "audit:no_route",
            Self::LimitReached => "audit:limit_reached",
            Self::LogLost => "audit:log_lost",
            Self::HiddenName => "audit:hidden_name",
            Self::ForeignWorkload => "audit:foreign_workload",
            Self::NotServed => "audit:not_served",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decide::{Block, RuleId};

    #[test]
    fn a_refusal_becomes_a_pass_that_says_why_and_nothing_else_changes() {
        let dst = OriginalDst::new("192.0.2.9:443".parse().expect("an address"));
        let rule = RuleId { kind: "Sidecar", namespace: "shop".into(), name: "s".into() };
        let decision = |action| Decision {
            action,
            cluster: Some(ClusterName::black_hole()),
            route: Some("block_all".into()),
            reason: Reason::NotRegistered,
            rule: Some(rule.clone()),
        };
        for block in
            [Block::Close, Block::Reset, Block::Http { status: 502, explain: true, close: true }]
        {
            let became = audited(decision(Action::Block(block)), dst);
            assert_eq!((became.reason, &became.rule), (Reason::NotRegistered, &Some(rule.clone())));
            assert_eq!(became.cluster, Some(ClusterName::passthrough()));
            let Action::Audited(to) = became.action else { panic!("{:?}", became.action) };
            assert_eq!(to.upstream, Upstream::OriginalDst { port: 443, name: None });
            assert_eq!(to.door, Door::Direct);
        }
        let allowed = decision(Action::Relay(vec![as_dialled(dst)]));
        assert_eq!(audited(allowed.clone(), dst), allowed);
        let served = decision(Action::Http);
        assert_eq!(audited(served.clone(), dst), served);
    }

    #[test]
    fn labels_are_the_reasons_own() {
        for reason in Reason::ALL {
            assert_eq!(reason.audit_label(), format!("audit:{}", reason.label()));
        }
    }
}
