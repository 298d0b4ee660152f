//! What the kernel's tables of direct traffic say, as rows.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use interceptor_common::EndpointKey;
use ipnet::IpNet;

use crate::decide::host::HostName;
use crate::decide::tier::WhyProxy;
use crate::decide::{Action, ClusterName, Decision, Reason};

/// The rows of `ENDPOINTS`, by port and network. What has no row is the proxy's.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Compiled {
    /// Of the longest network that holds an address, its row counts. Port
    /// [`EndpointKey::ANY_PORT`] is for ports without a row for the address.
    pub rows: BTreeMap<(u16, IpNet), Row>,
    /// Why what has no row is the proxy's.
    pub without: Without,
}

/// Why destinations without a row are the proxy's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Without {
    /// Where a network has a reason of its own.
    pub networks: BTreeMap<(u16, IpNet), WhyProxy>,
    /// At other addresses of a port that entries mention.
    pub ports: BTreeMap<u16, WhyProxy>,
    /// On ports that none mentions.
    pub elsewhere: WhyProxy,
}

impl Default for Without {
    fn default() -> Self {
        Self { networks: BTreeMap::new(), ports: BTreeMap::new(), elsewhere: WhyProxy::Off }
    }
}

impl Compiled {
    /// The row that counts for a destination, or why it is the proxy's. Walks all rows: for people.
    ///
    /// # Errors
    /// The reason.
    pub fn find(&self, dst: SocketAddr) -> Result<&Row, WhyProxy> {
        let (port, ip) = (dst.port(), dst.ip().to_canonical());
        let row = longest(&self.rows, port, ip);
        match row.or_else(|| longest(&self.rows, EndpointKey::ANY_PORT, ip)) {
            Some(Row::Proxy(why)) => Err(*why),
            Some(Row::Retiring(_)) => Err(WhyProxy::Unresolved),
            Some(row) => Ok(row),
            None => {
                let why = longest(&self.without.networks, port, ip);
                let why = why.or_else(|| self.without.ports.get(&port));
                Err(why.copied().unwrap_or(self.without.elsewhere))
            }
        }
    }
}

fn longest<T>(table: &BTreeMap<(u16, IpNet), T>, port: u16, ip: IpAddr) -> Option<&T> {
    let around = table.iter().filter(|((p, network), _)| *p == port && network.contains(&ip));
    around.max_by_key(|((_, network), _)| network.prefix_len()).map(|(_, found)| found)
}

/// What the kernel does with a destination.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Row {
    /// To the proxy: a hole in a larger network.
    Proxy(WhyProxy),
    /// Refused.
    Refused(Reason),
    /// Direct.
    Direct(Label),
    /// Direct, and the log has the name that is shown.
    Noticed(Label),
    /// Direct after a name of the set.
    Named(Arc<NameSet>),
    /// To the proxy, but connections that went direct before may still show a name of the set: the
    /// names have other addresses now.
    Retiring(Arc<NameSet>),
}

/// Names that may be shown at a destination; `None`: one that may not, in spite of a wildcard around
/// it. What is not in the set may not either.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct NameSet(pub BTreeMap<Pattern, Option<Label>>);

/// A name, or all names below it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Pattern {
    /// The name.
    pub name: HostName,
    /// Those below it, instead of itself (T-22).
    pub below: bool,
}

/// What the log says of a direct flow.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Label {
    /// The cluster.
    pub cluster: Option<Arc<str>>,
    /// The pattern that the shown name fits; `None`: no name had to be shown.
    pub shown: Option<Pattern>,
}

impl Label {
    pub(super) fn new(decision: &Decision, shown: Option<Pattern>) -> Self {
        let cluster = match &decision.action {
            Action::Relay(to) => to.first().and_then(|to| to.cluster.clone()),
            _ => None,
        };
        let cluster = cluster.or_else(|| decision.cluster.clone());
        Self { cluster: cluster.map(|ClusterName(name)| name), shown }
    }

    /// Whether several names have this label, so that the name itself is to be kept.
    pub fn keeps_name(&self) -> bool {
        self.shown.as_ref().is_some_and(|pattern| pattern.below)
    }
}
