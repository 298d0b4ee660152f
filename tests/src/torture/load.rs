//! What the workload does all the time: allowed traffic by each way that there is, and forbidden
//! traffic of each kind, every one at an address of its own. [`is_forbidden`] is what the far side
//! thinks of a packet.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::capture::Packet;
use crate::servers::port;
use crate::world::{self, World};

/// One thing that the workload does again and again.
#[derive(Clone, Copy, Debug)]
pub struct Kind {
    /// What a report calls it.
    pub name: &'static str,
    /// The client's option (see [`crate::client::Dwell`]).
    pub option: &'static str,
    /// The option's value.
    pub place: &'static str,
    /// Whether it needs the daemon, or only what is in the kernel.
    pub needs: Needs,
}

/// What a kind of traffic needs in order to pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Needs {
    /// The kernel's tables, however the daemon is doing.
    Kernel,
    /// The proxy.
    Daemon,
    /// Nothing helps: it is forbidden.
    Leave,
}

const fn kind(name: &'static str, option: &'static str, place: &'static str, needs: Needs) -> Kind {
    Kind { name, option, place, needs }
}

/// What goes on from the first moment to the last.
pub const STEADY: [Kind; 13] = [
    kind("kept", "--keep", "203.0.113.60:7", Needs::Kernel),
    kind("direct", "--again", "203.0.113.61:7", Needs::Kernel),
    kind("TLS by name", "--hello", "203.0.113.62:443/tls.test", Needs::Kernel),
    kind("TLS by proxy", "--hello", "203.0.113.63:443/proxied.test", Needs::Daemon),
    kind("HTTP by proxy", "--get", "203.0.113.64:80/web.test", Needs::Daemon),
    kind("bypass", "--again", "203.0.113.65:7", Needs::Kernel),
    kind("UDP", "--datagrams", "203.0.113.50:7", Needs::Kernel),
    kind("forbidden port 80", "--attempt", "203.0.113.20:80", Needs::Leave),
    kind("forbidden address", "--attempt", "203.0.113.20:7", Needs::Leave),
    kind("forbidden IPv6", "--attempt", "[2001:db8:1::40]:80", Needs::Leave),
    kind("forbidden name", "--hello", "203.0.113.66:443/forbidden.test", Needs::Leave),
    kind("forbidden Host", "--get", "203.0.113.67:80/forbidden.test", Needs::Leave),
    kind("forbidden UDP", "--datagrams", "203.0.113.61:7", Needs::Leave),
];

/// What is done a known number of times, for which the log must have that number of lines.
pub const COUNTED: [Kind; 7] = [
    kind("direct", "--again", "203.0.113.71:7", Needs::Kernel),
    kind("TLS by name", "--hello", "203.0.113.72:443/tls.test", Needs::Kernel),
    kind("TLS by proxy", "--hello", "203.0.113.73:443/proxied.test", Needs::Daemon),
    kind("HTTP by proxy", "--get", "203.0.113.74:80/web.test", Needs::Daemon),
    kind("bypass", "--again", "203.0.113.75:7", Needs::Kernel),
    kind("forbidden address", "--again", "203.0.113.76:7", Needs::Leave),
    kind("forbidden name", "--hello", "203.0.113.66:443/counted.test", Needs::Leave),
];

/// Networks that the operator lets by.
pub const BYPASS: &str = "203.0.113.65/32,203.0.113.75/32";

/// Where TLS for proxied.test is sent instead: the one thing that only the proxy can do.
const DETOUR: u8 = 68;

/// Of 203.0.113.0/24, with their ports: what may be reached by TCP.
const TCP: [(u8, u16); 12] = [
    (60, port::ECHO),
    (61, port::ECHO),
    (71, port::ECHO),
    (65, port::ECHO),
    (75, port::ECHO),
    (62, 443),
    (72, 443),
    (DETOUR, 443),
    (64, 80),
    (74, 80),
    // Where a crowd goes.
    (77, 443),
    (78, 80),
];
/// Where a name is allowed that the workload never says: a handshake may be, and no byte more.
const OTHER_NAME: u8 = 66;

impl Kind {
    /// Its name in the client's report.
    #[must_use]
    pub fn key(&self) -> String {
        let prefix = if self.option == "--datagrams" { "udp/" } else { "" };
        format!("{prefix}{}", self.place)
    }

    /// The address and port that it goes to.
    ///
    /// # Panics
    /// When the table has none.
    #[must_use]
    pub fn to(&self) -> SocketAddr {
        let address = self.place.split('/').next().unwrap_or_default();
        address.parse().expect("the table has addresses")
    }
}

/// The client's options for all of these.
#[must_use]
pub fn options(kinds: &[Kind]) -> Vec<&'static str> {
    kinds.iter().flat_map(|kind| [kind.option, kind.place]).collect()
}

fn host(last: u8) -> IpAddr {
    Ipv4Addr::new(203, 0, 113, last).into()
}

/// The names that the workload's traffic is about.
pub fn name_all(world: &World) {
    world.zone.set("tls.test", &[host(62), host(72)]);
    world.zone.set("proxied.test", &[host(63), host(73)]);
    world.zone.set("detour.test", &[host(DETOUR)]);
    world.zone.set("web.test", &[host(64), host(74)]);
    world.zone.set("other.test", &[host(OTHER_NAME)]);
    world.zone.set("web2.test", &[host(67)]);
    world.zone.set("crowd.test", &[host(77), host(78)]);
}

/// Policy for all that; each generation has another entry that nobody uses. `open`: what must be
/// refused is allowed, which the judge has to notice.
#[must_use]
pub fn policy(generation: u64, open: bool) -> String {
    let entry = |host: &str, port: u16, protocol: &str, more: &str| {
        format!(
            "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\n\
             metadata: {{name: {}-{port}}}\nspec:\n  hosts: [{host}]\n  \
             ports: [{{number: {port}, name: port, protocol: {protocol}}}]\n  {more}\n---\n",
            host.replace('.', "-")
        )
    };
    let dns = "resolution: DNS";
    let mut text = entry(
        "echo.test",
        port::ECHO,
        "TCP",
        "addresses: [203.0.113.60, 203.0.113.61, 203.0.113.71]",
    );
    for name in ["tls.test", "proxied.test", "detour.test", "other.test", "crowd.test"] {
        text += &entry(name, 443, "TLS", dns);
    }
    for name in ["web.test", "web2.test", "crowd.test"] {
        text += &entry(name, 80, "HTTP", dns);
    }
    text += &entry("udp.test", port::ECHO, "UDP", "addresses: [203.0.113.50]");
    text += &entry(&format!("g{generation}.test"), 80, "HTTP", dns);
    if open {
        text += &entry("cnn.test", port::ECHO, "TCP", "addresses: [203.0.113.20]");
    }
    text + "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: proxied}\nspec:\n  \
            hosts: [proxied.test]\n  tls:\n  - match: [{port: 443, sniHosts: [proxied.test]}]\n    \
            route: [{destination: {host: detour.test, port: {number: 443}}}]\n"
}

/// Whether a packet that was seen out there must not be: it comes from the workload's side and goes
/// where nothing allows it.
#[must_use]
pub fn is_forbidden(packet: &Packet) -> bool {
    !(is_from_outside(packet.source) || is_of_the_link(packet) || is_allowed(packet))
}

fn is_from_outside(source: IpAddr) -> bool {
    match source {
        IpAddr::V4(v4) => {
            let outside = [[192, 0, 2], [198, 51, 100], [203, 0, 113]];
            v4.is_loopback()
                || v4 == Ipv4Addr::new(10, 77, 0, 1)
                || outside.contains(&[v4.octets()[0], v4.octets()[1], v4.octets()[2]])
        }
        IpAddr::V6(v6) => {
            v6.is_loopback()
                || v6 == Ipv6Addr::new(0x2001, 0xdb8, 0x77, 0, 0, 0, 0, 1)
                || v6.segments()[..3] == [0x2001, 0xdb8, 1]
        }
    }
}

/// Neighbour discovery and group membership, which stay on the link.
fn is_of_the_link(packet: &Packet) -> bool {
    let IpAddr::V6(to) = packet.destination else { return false };
    let near = to.is_unicast_link_local() || to.segments()[..3] == [0x2001, 0xdb8, 0x77];
    // Hop-by-hop options come before the report of a membership.
    matches!(packet.protocol, 0 | 58) && (near || to.segments()[0] == 0xff02)
}

fn is_allowed(packet: &Packet) -> bool {
    let (to, port) = (packet.destination, packet.destination_port);
    let resolver = (to == world::DNS || to == world::DNS_V6) && port == 53;
    match packet.protocol {
        17 => resolver || (to == world::UDP_ECHO && port == port::ECHO),
        6 if to == host(OTHER_NAME) => port == 443 && packet.payload == 0,
        6 => resolver || TCP.iter().any(|place| (host(place.0), place.1) == (to, port)),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packet(to: &str, protocol: u8, payload: usize) -> Packet {
        let to: SocketAddr = to.parse().expect("an address");
        let source = if to.is_ipv4() { world::WORKLOAD_V4 } else { world::WORKLOAD_V6 };
        Packet {
            source,
            destination: to.ip(),
            protocol,
            source_port: 40_000,
            destination_port: to.port(),
            flags: 0x10,
            payload,
        }
    }

    /// What is allowed by a kind of [`STEADY`] is allowed out there, and what is not is not.
    #[test]
    fn the_far_side_knows_each_kind() {
        for kind in STEADY.iter().chain(&COUNTED) {
            let protocol = if kind.option == "--datagrams" { 17 } else { 6 };
            let mut seen = packet(&kind.to().to_string(), protocol, 9);
            if kind.place.ends_with("/proxied.test") {
                assert!(is_forbidden(&seen), "{}: not where it was dialled", kind.name);
                seen.destination = host(DETOUR);
            }
            assert_eq!(is_forbidden(&seen), kind.needs == Needs::Leave, "{}", kind.name);
        }
    }

    #[test]
    fn everything_else_is_forbidden() {
        for (to, protocol, payload, forbidden) in [
            ("203.0.113.66:443", 6, 0, false),
            ("203.0.113.66:443", 6, 1, true),
            ("203.0.113.60:8", 6, 0, true),
            ("203.0.113.60:7", 17, 0, true),
            ("203.0.113.60:0", 1, 8, true),
            ("192.0.2.53:53", 17, 30, false),
            ("192.0.2.54:53", 17, 30, true),
            ("[ff02::16]:0", 0, 0, false),
            ("[2001:db8:1::99]:0", 58, 8, true),
            ("8.8.8.8:443", 6, 0, true),
        ] {
            assert_eq!(is_forbidden(&packet(to, protocol, payload)), forbidden, "{to} {protocol}");
        }
        let answer = Packet { source: host(60), ..packet("10.77.0.2:40000", 6, 5) };
        assert!(!is_forbidden(&answer));
        let forged = Packet { source: [10, 1, 2, 3].into(), ..packet("203.0.113.20:7", 6, 5) };
        assert!(is_forbidden(&forged));
    }
}
