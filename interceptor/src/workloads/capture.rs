//! Whether a flow is captured at all (section 4). Pure: what the kernel side and the agent do is
//! this table.

use std::net::{IpAddr, SocketAddr};

use super::annotations::CaptureLists;
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
    /// CAP-9.
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
    let bypassed = if sender.opted_out {
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

/// Loopback is not captured, but the proxy itself listens there.
fn own_port(ip: IpAddr, port: u16) -> bool {
    ip.is_loopback() && matches!(port, PROXY_PORT | PROXY_INBOUND_PORT)
}

#[cfg(test)]
mod tests {
    use super::super::annotations::Ranges;
    use super::*;

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
            (&all, out, "198.51.100.7:443", Bypassed(OptedOut), Bypassed(OptedOut)),
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
