//! Names whose addresses belong to services of opaque bytes (GAP-1): verdicts that hang on what the
//! names resolve to.

use std::net::SocketAddr;
use std::sync::Arc;

use super::{Chain, asked};
use crate::decide::host::HostName;
use crate::decide::{Claim, Service, StreamRule, Target};

/// Who claims the addresses of names on one port.
#[derive(Debug, Default)]
pub(super) struct Claims {
    /// Hosts, each with the chain of what its addresses get.
    pub(super) hosts: Vec<Claiming>,
    /// The verdicts, made once, so that a decision costs the same however many there are; `None`
    /// where one depends on the dialled address (a rule that leads to where the workload dialled).
    pub(super) ready: Option<Arc<[Claim]>>,
}

/// A host, and the chain of what its addresses get.
type Claiming = (HostName, u32);

impl Claims {
    /// Makes the verdicts that are the same for every dialled address; `any` stands for all of them.
    pub(super) fn prepare(&mut self, services: &[Service], chains: &[Chain], any: SocketAddr) {
        let varies = |(_, number): &Claiming| {
            let rule = rule_of(services, chains, *number);
            let clusters =
                rule.into_iter().flat_map(|rule| rule.to.iter()).flat_map(|to| &to.cluster);
            clusters.into_iter().any(|cluster| matches!(cluster.target(), Target::Original(_)))
        };
        if !self.hosts.iter().any(varies) {
            self.ready = Some(self.made(services, chains, any));
        }
    }

    /// The verdicts for a dialled address.
    pub(super) fn made(
        &self,
        services: &[Service],
        chains: &[Chain],
        dst: SocketAddr,
    ) -> Arc<[Claim]> {
        let claim = |(host, number): &Claiming| {
            let (id, rule) = chains.get(*number as usize)?;
            let service = services.get(*id as usize)?;
            let decision = match rule {
                None => service.relay_claimed(dst.port()),
                rule => service.relay(*rule, &asked(dst, Some(host))),
            };
            Some(Claim { host: host.clone(), decision })
        };
        self.hosts.iter().filter_map(claim).collect()
    }

    /// Adds a host's first chain; a host has one service on a port, its chains come one after the
    /// other.
    pub(super) fn add(&mut self, host: &HostName, number: u32) {
        if self.hosts.last().is_none_or(|(other, _)| other != host) {
            self.hosts.push((host.clone(), number));
        }
    }
}

/// The rule that a chain number stands for, if it stands for one.
fn rule_of<'s>(services: &'s [Service], chains: &[Chain], number: u32) -> Option<&'s StreamRule> {
    let (id, rule) = chains.get(number as usize)?;
    services.get(*id as usize)?.chains.get((*rule)? as usize)
}
