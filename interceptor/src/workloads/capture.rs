//! Whether a flow is captured at all (section 4). Pure: what the kernel side and the agent do is
//! this table.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::annotations::{CaptureLists, Ranges};
use crate::policy::Enforcement;

/// The uid that Istio's own proxy runs as (CAP-12).
pub const PROXY_UID: u32 = 1337;

/// The port that captured connections are turned to in Istio (MESH-10).
pub const PROXY_PORT: u16 = 15001;

/// The same for inbound ones.
pub const PROXY_INBOUND_PORT: u16 = 15006;

/// Who sends, as far as capture asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Sender {
    /// Its user.
    pub uid: u32,
    /// Its pod was left out of injection (CAP-9).
    pub opted_out: bool,
}

/// What becomes of a TCP connection before any policy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Capture {
    /// Policy decides.
    Captured,
    /// It goes to the network untouched, for this reason.
    Bypassed(Bypass),
    /// It is for the proxy's own port, and that leads nowhere (CAP-11).
    ProxyPort,
}

/// Why a connection is not captured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bypass {
    /// CAP-9; istio only.
    OptedOut,
    /// CAP-2 (1).
    ExcludedPort,
    /// CAP-2 (2); istio only (T-8).
    ProxyUser,
    /// CAP-2 (3).
    Loopback,
    /// CAP-2 (4).
    ExcludedRange,
    /// CAP-2 (7).
    NotIncluded,
}

impl Bypass {
    /// Whether an operator's list let it go: strict logs those (profiles.md, SEED-18).
    pub fn is_listed(self) -> bool {
        matches!(self, Self::ExcludedPort | Self::ExcludedRange | Self::NotIncluded)
    }
}

/// CAP-2, in its order, for a TCP connection to `dst`.
pub fn capture(
    lists: &CaptureLists,
    sender: Sender,
    dst: SocketAddr,
    profile: Enforcement,
) -> Capture {
    let (ip, port) = (dst.ip().to_canonical(), dst.port());
    let bypassed = if sender.opted_out && profile == Enforcement::Istio {
        Some(Bypass::OptedOut)
    } else if lists.exclude_ports.contains(&port) {
        Some(Bypass::ExcludedPort)
    } else if sender.uid == PROXY_UID && profile == Enforcement::Istio {
        Some(Bypass::ProxyUser)
    } else if own_port(ip, port) {
        return Capture::ProxyPort;
    } else if ip.is_loopback() {
        Some(Bypass::Loopback)
    } else if lists.exclude_ranges.iter().any(|network| network.contains(&ip)) {
        Some(Bypass::ExcludedRange)
    } else if lists.include_ports.contains(&port) || lists.include_ranges.hold(ip) {
        None
    } else {
        Some(Bypass::NotIncluded)
    };
    match bypassed {
        Some(why) => Capture::Bypassed(why),
        None if port == PROXY_PORT => Capture::ProxyPort,
        None => Capture::Captured,
    }
}

/// What a list says of a port (0: of every port without a word of its own) and a network: true where it
/// is not captured. Of the longest network that holds an address its row counts; what has none is
/// captured. These are CAP-2 (1), (4) and (5) to (7) in the order in which the kernel looks.
pub fn rows(lists: &CaptureLists) -> BTreeMap<(u16, IpNet), bool> {
    const ANY_PORT: u16 = 0;
    let everywhere = [IpNet::from(Ipv4Net::default()), IpNet::from(Ipv6Net::default())];
    let excluded = || lists.exclude_ranges.iter().map(IpNet::trunc);
    let mut rows = BTreeMap::new();
    if let Ranges::Only(included) = &lists.include_ranges {
        rows.extend(everywhere.map(|all| ((ANY_PORT, all), true)));
        let is_excluded = |network: &IpNet| excluded().any(|around| around.contains(network));
        let included = included.iter().map(IpNet::trunc).filter(|network| !is_excluded(network));
        rows.extend(included.map(|network| ((ANY_PORT, network), false)));
    }
    rows.extend(excluded().map(|network| ((ANY_PORT, network), true)));
    // Nothing is at port 0, which stands for all others here.
    let included = lists.include_ports.iter().filter(|port| !lists.exclude_ports.contains(port));
    for port in included.filter(|port| **port != ANY_PORT) {
        rows.extend(everywhere.map(|all| ((*port, all), false)));
        rows.extend(excluded().map(|network| ((*port, network), true)));
    }
    for port in lists.exclude_ports.iter().filter(|port| **port != ANY_PORT) {
        rows.extend(everywhere.map(|all| ((*port, all), true)));
    }
    rows
}

/// Loopback is not captured, but the proxy itself listens there.
fn own_port(ip: IpAddr, port: u16) -> bool {
    ip.is_loopback() && matches!(port, PROXY_PORT | PROXY_INBOUND_PORT)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// As the kernel asks: at the port, or if nothing is said there, at any.
    fn is_uncaptured(rows: &BTreeMap<(u16, IpNet), bool>, dst: SocketAddr) -> bool {
        let longest = |port: u16| {
            let around = rows.iter().filter(|((p, net), _)| *p == port && net.contains(&dst.ip()));
            around.max_by_key(|((_, net), _)| net.prefix_len()).map(|(_, out)| *out)
        };
        longest(dst.port()).or_else(|| longest(0)).unwrap_or(false)
    }

    fn network() -> impl Strategy<Value = IpNet> {
        prop_oneof![
            (0..4_u8, prop_oneof![Just(0), Just(8), Just(16), Just(32)]).prop_map(|(b, len)| {
                IpNet::new(IpAddr::from([10, b, 0, b]), len).expect("a network")
            }),
            Just("2001:db8::/32".parse().expect("a network")),
        ]
    }

    fn networks() -> impl Strategy<Value = Vec<IpNet>> {
        prop::collection::vec(network(), 0..4)
    }

    fn ports() -> impl Strategy<Value = Vec<u16>> {
        prop::collection::vec(prop_oneof![Just(25), Just(80), Just(443)], 0..3)
    }

    proptest! {
        /// The kernel's rows say what CAP-2 says.
        #[test]
        fn cap_2_rows_are_the_table(
            include in prop::option::of(networks()),
            exclude_ranges in networks(),
            include_ports in ports(),
            exclude_ports in ports(),
            ip in prop_oneof![
                (0..4_u8, 0..4_u8).prop_map(|(b, d)| IpAddr::from([10, b, 0, d])),
                Just("192.0.2.1".parse().expect("an address")),
                Just("2001:db8::1".parse().expect("an address")),
                Just("2001:db9::1".parse().expect("an address")),
            ],
            port in prop_oneof![Just(25), Just(80), Just(443), Just(8080)],
        ) {
            let include_ranges = include.map_or(Ranges::All, Ranges::Only);
            let lists = CaptureLists { include_ranges, exclude_ranges, include_ports, exclude_ports };
            let dst = SocketAddr::new(ip, port);
            let app = Sender { uid: 1000, opted_out: false };
            let expected = capture(&lists, app, dst, Enforcement::Strict) != Capture::Captured;
            prop_assert_eq!(is_uncaptured(&rows(&lists), dst), expected, "{:?} {}", lists, dst);
        }
    }

    #[test]
    fn cap_2_in_its_order() {
        use Bypass::{ExcludedPort, ExcludedRange, Loopback, NotIncluded, OptedOut, ProxyUser};
        use Capture::{Bypassed, Captured, ProxyPort};
        let all = CaptureLists::default();
        let some = CaptureLists {
            include_ranges: Ranges::Only(vec!["10.0.0.0/8".parse().unwrap()]),
            exclude_ranges: vec!["10.9.0.0/16".parse().unwrap()],
            include_ports: vec![443, 25],
            exclude_ports: vec![25],
        };
        let none = CaptureLists { include_ranges: Ranges::Only(Vec::new()), ..all.clone() };
        let app = Sender { uid: 1000, opted_out: false };
        let proxy = Sender { uid: 1337, opted_out: false };
        let out = Sender { uid: 1000, opted_out: true };
        // lists, sender, destination, istio, strict
        let table = [
            (&all, app, "198.51.100.7:443", Captured, Captured),
            (&all, proxy, "198.51.100.7:443", Bypassed(ProxyUser), Captured),
            (&all, out, "198.51.100.7:443", Bypassed(OptedOut), Captured),
            (&all, app, "127.0.0.1:8080", Bypassed(Loopback), Bypassed(Loopback)),
            (&all, app, "[::1]:8080", Bypassed(Loopback), Bypassed(Loopback)),
            (&all, app, "[::ffff:127.0.0.1]:80", Bypassed(Loopback), Bypassed(Loopback)),
            (&all, app, "127.0.0.1:15001", ProxyPort, ProxyPort),
            (&all, app, "127.0.0.1:15006", ProxyPort, ProxyPort),
            (&all, app, "10.1.1.1:15001", ProxyPort, ProxyPort),
            (&some, app, "10.1.1.1:80", Captured, Captured),
            (&some, app, "10.9.1.1:80", Bypassed(ExcludedRange), Bypassed(ExcludedRange)),
            (&some, app, "10.9.1.1:443", Bypassed(ExcludedRange), Bypassed(ExcludedRange)),
            (&some, app, "198.51.100.7:80", Bypassed(NotIncluded), Bypassed(NotIncluded)),
            (&some, app, "198.51.100.7:443", Captured, Captured),
            (&some, app, "10.1.1.1:25", Bypassed(ExcludedPort), Bypassed(ExcludedPort)),
            (&some, proxy, "10.1.1.1:25", Bypassed(ExcludedPort), Bypassed(ExcludedPort)),
            (&none, app, "198.51.100.7:80", Bypassed(NotIncluded), Bypassed(NotIncluded)),
        ];
        for (lists, sender, dst, istio, strict) in table {
            let dst = dst.parse().unwrap();
            assert_eq!(capture(lists, sender, dst, Enforcement::Istio), istio, "istio {dst}");
            assert_eq!(capture(lists, sender, dst, Enforcement::Strict), strict, "strict {dst}");
        }
        assert!(ExcludedPort.is_listed() && !ProxyUser.is_listed() && !Loopback.is_listed());
    }
}
