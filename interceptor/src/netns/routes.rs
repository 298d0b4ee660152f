//! A namespace's routes, as the connect hook needs them: a network without a route gets
//! ENETUNREACH at connect, as without us, and the source address that a workload sees is the one
//! that its own routing would have chosen.

use std::collections::HashSet;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};

use futures_util::TryStreamExt;
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use rtnetlink::packet_route::route::{RouteAddress, RouteAttribute, RouteMessage, RouteType};
use rtnetlink::{Handle, MulticastGroup, RouteMessageBuilder};

use super::NetNs;
use super::netlink::Changes;
use crate::kernel::{RouteEntry, RouteKind};

const GROUPS: [MulticastGroup; 5] = [
    MulticastGroup::Link,
    MulticastGroup::Ipv4Ifaddr,
    MulticastGroup::Ipv6Ifaddr,
    MulticastGroup::Ipv4Route,
    MulticastGroup::Ipv6Route,
];

/// Reads a namespace's routes, now and after each change.
pub struct Routes {
    handle: Handle,
    changes: Changes,
}

impl Routes {
    /// Subscribes to changes before anything is read, so that none is missed. Must be called
    /// within a tokio runtime.
    ///
    /// # Errors
    /// No netlink socket could be made in the namespace.
    pub fn open(netns: &NetNs) -> io::Result<Self> {
        let (handle, changes) = Changes::subscribe(netns, &GROUPS)?;
        Ok(Self { handle, changes })
    }

    /// The routes as they are now.
    ///
    /// # Errors
    /// Netlink's.
    pub async fn read(&mut self, netns: &NetNs) -> io::Result<Vec<RouteEntry>> {
        let mut found = Vec::new();
        for request in [
            RouteMessageBuilder::<Ipv4Addr>::new().build(),
            RouteMessageBuilder::<Ipv6Addr>::new().build(),
        ] {
            let mut messages = std::pin::pin!(self.handle.route().get(request).execute());
            while let Some(message) = messages.try_next().await.map_err(io::Error::other)? {
                found.extend(destination(&message));
            }
        }
        netns.run(|| led_by_policy(entries(found, netns.is_home())))
    }

    /// Waits for the next change (and for the burst that it belongs to). False: netlink ended.
    pub async fn changed(&mut self) -> bool {
        self.changes.next().await
    }
}

/// What one netlink route says, of those that decide whether a connect can leave.
fn destination(message: &RouteMessage) -> Option<(IpNet, RouteType)> {
    let kind = message.header.kind;
    if !matches!(
        kind,
        RouteType::Unicast
            | RouteType::Local
            | RouteType::Unreachable
            | RouteType::BlackHole
            | RouteType::Prohibit
    ) {
        return None;
    }
    let addr = message.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Destination(RouteAddress::Inet(v4)) => Some(IpAddr::V4(*v4)),
        RouteAttribute::Destination(RouteAddress::Inet6(v6)) => Some(IpAddr::V6(*v6)),
        _ => None,
    });
    let any: IpAddr = match message.header.address_family {
        rtnetlink::packet_route::AddressFamily::Inet => Ipv4Addr::UNSPECIFIED.into(),
        rtnetlink::packet_route::AddressFamily::Inet6 => Ipv6Addr::UNSPECIFIED.into(),
        _ => return None,
    };
    let prefix = IpNet::new(addr.unwrap_or(any), message.header.destination_prefix_length).ok()?;
    // Link-local needs an interface, which a proxied connection cannot name; loopback never asks.
    let skipped = match prefix.addr() {
        IpAddr::V4(v4) => v4.is_loopback() || v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_loopback() || v6.is_unicast_link_local() || v6.is_multicast(),
    };
    (!skipped).then_some((prefix, kind))
}

/// Gives each prefix one meaning. Several tables or metrics may name it: a way out beats none,
/// since the proxy's own dial then tells the truth. In the daemon's own namespace the addresses are
/// the node's, not the workload's: they are judged like any other (T-13).
fn entries(found: Vec<(IpNet, RouteType)>, home: bool) -> Vec<RouteEntry> {
    let ways: HashSet<IpNet> = found
        .iter()
        .filter(|(_, kind)| *kind == RouteType::Unicast)
        .map(|(prefix, _)| *prefix)
        .collect();
    let mut seen = HashSet::new();
    found
        .into_iter()
        .filter_map(|(prefix, kind)| {
            let route = match kind {
                RouteType::Local if home => RouteKind::Via(prefix.addr()),
                RouteType::Local => RouteKind::Local,
                _ if ways.contains(&prefix) => RouteKind::Via(source_towards(prefix)?),
                _ => RouteKind::Unreachable,
            };
            seen.insert(prefix).then_some(RouteEntry { prefix, route })
        })
        .collect()
}

/// Gives a namespace that has no default route one that only policy may use, in each family in which
/// it gets out at all: behind an egress proxy or gateway that has a route, it needs none of its own.
/// With a default route of one family the other stays without: clients that race families then take
/// the one that has.
fn led_by_policy(mut entries: Vec<RouteEntry>) -> Vec<RouteEntry> {
    let is_default = |entry: &RouteEntry| entry.prefix.prefix_len() == 0;
    let source = |entry: &RouteEntry| match entry.route {
        RouteKind::Via(source) => Some(source),
        _ => None,
    };
    if entries.iter().any(|entry| is_default(entry) && source(entry).is_some()) {
        return entries;
    }
    for any in [Ipv4Net::default().into(), Ipv6Net::default().into()] {
        let of_family = |found: &IpAddr| found.is_ipv4() == matches!(any, IpNet::V4(_));
        if let Some(source) = entries.iter().filter_map(source).find(of_family) {
            entries.retain(|entry| entry.prefix != any);
            entries.push(RouteEntry { prefix: any, route: RouteKind::ByPolicy(source) });
        }
    }
    entries
}

/// The source that routing chooses for a destination in `prefix`: connects a datagram socket, which
/// sends nothing, in the calling thread's namespace.
fn source_towards(prefix: IpNet) -> Option<IpAddr> {
    let towards = representative(prefix);
    let any: SocketAddr = match towards {
        IpAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        IpAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    let socket = UdpSocket::bind(any).ok()?;
    socket.connect((towards, 9)).ok()?;
    Some(socket.local_addr().ok()?.ip())
}

/// An address in `prefix` to ask routing about. For a default route: one that no real network has,
/// so that hardly a more specific route covers it.
fn representative(prefix: IpNet) -> IpAddr {
    match prefix {
        IpNet::V4(net) if net.prefix_len() == 0 => Ipv4Addr::new(203, 0, 113, 1).into(),
        IpNet::V6(net) if net.prefix_len() == 0 => {
            Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1).into()
        }
        _ => prefix.hosts().next().unwrap_or(prefix.addr()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn net(text: &str) -> IpNet {
        text.parse().expect("a prefix")
    }

    #[test]
    fn a_way_out_beats_unreachable_for_the_same_prefix() {
        let unreachable = (net("::/0"), RouteType::Unreachable);
        assert_eq!(
            entries(vec![unreachable], false),
            [RouteEntry { prefix: net("::/0"), route: RouteKind::Unreachable }]
        );
        let twice = vec![(net("192.0.2.9/32"), RouteType::Local); 2];
        let local = entries(twice.clone(), false);
        assert_eq!(local, [RouteEntry { prefix: net("192.0.2.9/32"), route: RouteKind::Local }]);
        // T-13: the node's addresses are not the workload's own.
        let own = "192.0.2.9".parse().expect("an address");
        assert_eq!(entries(twice, true)[0].route, RouteKind::Via(own));
    }

    #[test]
    fn a_namespace_without_a_default_route_has_one_for_policy() {
        let via = |prefix: &str, source: &str| RouteEntry {
            prefix: net(prefix),
            route: RouteKind::Via(source.parse().expect("an address")),
        };
        let by_policy = |prefix: &str, source: &str| RouteEntry {
            prefix: net(prefix),
            route: RouteKind::ByPolicy(source.parse().expect("an address")),
        };
        let unreachable = RouteEntry { prefix: net("0.0.0.0/0"), route: RouteKind::Unreachable };
        let link = via("10.0.0.0/24", "10.0.0.2");
        assert_eq!(led_by_policy(vec![]), []);
        assert_eq!(
            led_by_policy(vec![unreachable, link]),
            [link, by_policy("0.0.0.0/0", "10.0.0.2")]
        );
        // One family with a default route: the other one is left to it.
        let v4 = vec![via("0.0.0.0/0", "10.0.0.2"), via("2001:db8::/64", "2001:db8::2")];
        assert_eq!(led_by_policy(v4.clone()), v4);
    }

    #[test]
    fn representatives_lie_in_their_prefix() {
        for prefix in ["10.0.0.0/8", "192.0.2.4/32", "0.0.0.0/0", "::/0", "2001:db8:1::/48"] {
            let prefix = net(prefix);
            assert!(prefix.contains(&representative(prefix)), "{prefix}");
        }
    }
}
