//! Addresses: which are special (T-13), and the table that finds the most specific network.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net};

/// Cloud metadata services: credentials for whoever asks.
const METADATA_V4: Ipv4Addr = Ipv4Addr::new(169, 254, 169, 254);
const METADATA_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254);

/// Whether this is a cloud's metadata service (T-13), in whatever form.
pub fn is_metadata(ip: IpAddr) -> bool {
    match carried(ip) {
        IpAddr::V4(ip) => ip == METADATA_V4,
        IpAddr::V6(ip) => ip == METADATA_V6,
    }
}

/// Whether this is an address that names must not lead to and that only an entry by address opens
/// (T-13, T-40): loopback, "this network", link-local, metadata, multicast, broadcast. IPv6
/// forms that carry an IPv4 address (mapped, NAT64, 6to4) are judged as that.
pub fn is_special(ip: IpAddr) -> bool {
    let is_special_v6 = |ip: Ipv6Addr| {
        ip.is_loopback() || ip.is_unspecified() || ip.is_multicast() || ip.is_unicast_link_local()
    };
    match (carried(ip), ip) {
        (IpAddr::V4(carried), IpAddr::V6(ip)) => is_special_v4(carried) || is_special_v6(ip),
        (IpAddr::V4(ip), _) => is_special_v4(ip),
        (IpAddr::V6(ip), _) => ip == METADATA_V6 || is_special_v6(ip),
    }
}

fn is_special_v4(ip: Ipv4Addr) -> bool {
    ip.octets()[0] == 0
        || ip.is_loopback()
        || ip.is_link_local()
        || ip.is_multicast()
        || ip.is_broadcast()
}

/// The IPv4 address that an IPv6 one stands for: mapped (RFC 4291), NAT64 (RFC 6052), 6to4
/// (RFC 3056), compatible. Any other address as it is.
fn carried(ip: IpAddr) -> IpAddr {
    let IpAddr::V6(v6) = ip.to_canonical() else { return ip.to_canonical() };
    match v6.segments() {
        [0x64, 0xff9b, 0, 0, 0, 0, a, b] | [0x2002, a, b, ..] | [0, 0, 0, 0, 0, 0, a, b] => {
            Ipv4Addr::from((u32::from(a) << 16) | u32::from(b)).into()
        }
        _ => ip,
    }
}

/// The IPv6 networks whose addresses stand for those of `network`, mapped ones apart.
fn carriers(network: Ipv4Net) -> [IpNet; 3] {
    let bits = u128::from(u32::from(network.network()));
    const NAT64: u128 = 0x0064_ff9b << 96;
    const SIX_TO_FOUR: u128 = 0x2002 << 112;
    let net = |bits: u128, before: u8| {
        IpNet::new_assert(Ipv6Addr::from(bits).into(), before + network.prefix_len())
    };
    [net(NAT64 | bits, 96), net(SIX_TO_FOUR | (bits << 80), 16), net(bits, 96)]
}

/// Networks of special addresses, and metadata services: where tables that are made of networks need
/// rows of their own. Loopback itself is in none of them.
pub(crate) fn special_networks() -> impl Iterator<Item = IpNet> {
    const fn v4(first: u8, second: u8, length: u8) -> Ipv4Net {
        Ipv4Net::new_assert(Ipv4Addr::new(first, second, 0, 0), length)
    }
    const fn v6(first: u16, length: u8) -> IpNet {
        IpNet::new_assert(IpAddr::V6(Ipv6Addr::new(first, 0, 0, 0, 0, 0, 0, 0)), length)
    }
    const LOOPBACK: Ipv4Net = v4(127, 0, 8);
    const V4: [Ipv4Net; 5] = [
        v4(0, 0, 8),
        v4(169, 254, 16),
        v4(224, 0, 4),
        Ipv4Net::new_assert(METADATA_V4, 32),
        Ipv4Net::new_assert(Ipv4Addr::BROADCAST, 32),
    ];
    const V6: [IpNet; 3] =
        [v6(0xfe80, 10), v6(0xff00, 8), IpNet::new_assert(IpAddr::V6(METADATA_V6), 128)];
    let carried = V4.into_iter().chain([LOOPBACK]).flat_map(carriers);
    V4.into_iter().map(IpNet::from).chain(V6).chain(carried)
}

/// Networks to values; a lookup costs one hash per prefix length in use.
#[derive(Debug, Clone)]
pub(crate) struct Prefixes<T> {
    networks: HashMap<IpNet, T>,
    /// Prefix lengths in use, longest first, for IPv4 and for IPv6.
    lengths: [Vec<u8>; 2],
}

impl<T> Default for Prefixes<T> {
    fn default() -> Self {
        Self { networks: HashMap::new(), lengths: [Vec::new(), Vec::new()] }
    }
}

impl<T> Prefixes<T> {
    /// The value of `network` (host bits ignored), made by `default` if it is new.
    pub(crate) fn entry(&mut self, network: IpNet, default: impl FnOnce() -> T) -> &mut T {
        let network = network.trunc();
        let lengths = &mut self.lengths[usize::from(network.addr().is_ipv6())];
        let length = network.prefix_len();
        if let Err(slot) = lengths.binary_search_by(|have| length.cmp(have)) {
            lengths.insert(slot, length);
        }
        self.networks.entry(network).or_insert_with(default)
    }

    /// The value of the longest network that holds `ip` (LIS-6, LIS-7).
    pub(crate) fn longest(&self, ip: IpAddr) -> Option<&T> {
        self.best(ip).map(|(_, value)| value)
    }

    /// The same, with the network's prefix length.
    pub(super) fn best(&self, ip: IpAddr) -> Option<(u8, &T)> {
        self.lengths[usize::from(ip.is_ipv6())].iter().find_map(|length| {
            // A length in the list was taken from a network of this family, so it is in range.
            let network = IpNet::new(ip, *length).ok()?.trunc();
            self.networks.get(&network).map(|value| (*length, value))
        })
    }

    /// Whether some network holds `ip`.
    pub(super) fn contains(&self, ip: IpAddr) -> bool {
        self.longest(ip).is_some()
    }
}

/// The one address of a full-length network (LIS-3).
pub(super) fn single(network: &IpNet) -> Option<IpAddr> {
    (network.prefix_len() == network.max_prefix_len()).then_some(network.addr())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn t_13_special_networks_hold_special_addresses() {
        for network in special_networks() {
            assert!(is_special(network.network()) && is_special(network.broadcast()), "{network}");
        }
    }

    #[test]
    fn t_13_metadata_has_networks_of_its_own_in_every_form() {
        for (ip, network) in [
            ("169.254.169.254", "169.254.169.254/32"),
            ("fd00:ec2::254", "fd00:ec2::254/128"),
            ("64:ff9b::a9fe:a9fe", "64:ff9b::a9fe:a9fe/128"),
            ("2002:a9fe:a9fe:1::2", "2002:a9fe:a9fe::/48"),
            ("::a9fe:a9fe", "::a9fe:a9fe/128"),
        ] {
            assert!(is_metadata(ip.parse().expect("an address")), "{ip}");
            let network: IpNet = network.parse().expect("a network");
            assert!(special_networks().any(|special| special == network), "{network}");
        }
        for ip in ["169.254.169.253", "64:ff9b::a9fe:a9fd", "2002:a9fe:a9fd::1", "2001:db8::1"] {
            assert!(!is_metadata(ip.parse().expect("an address")), "{ip}");
        }
    }

    #[test]
    fn t_13_special_addresses() {
        for (ip, special) in [
            ("127.0.0.1", true),
            ("127.9.9.9", true),
            ("0.1.2.3", true),
            ("169.254.1.1", true),
            ("169.254.169.254", true),
            ("224.0.0.1", true),
            ("255.255.255.255", true),
            ("::1", true),
            ("::", true),
            ("fe80::1", true),
            ("ff02::1", true),
            ("fd00:ec2::254", true),
            ("::ffff:127.0.0.1", true),
            ("::ffff:169.254.169.254", true),
            ("64:ff9b::7f00:1", true),
            ("2002:a9fe:a9fe::", true),
            ("10.0.0.1", false),
            ("203.0.113.1", false),
            ("2001:db8::1", false),
            ("fd00:ec2::253", false),
            ("64:ff9b::cb00:7101", false),
            ("::127.0.0.1", true),
            ("64:ff9b::169.254.169.254", true),
            ("64:ff9b:1::7f00:1", false),
            ("febf::1", true),
            ("169.253.255.255", false),
            ("128.0.0.1", false),
        ] {
            assert_eq!(is_special(ip.parse().expect("an address")), special, "{ip}");
        }
    }

    #[test]
    fn lis_7_longest_prefix_wins_in_both_families() {
        let mut table = Prefixes::default();
        for net in ["10.0.0.0/8", "10.1.2.3/16", "10.1.2.3/32", "2001:db8::/32", "2001:db8:1::/48"]
        {
            *table.entry(net.parse().expect("a network"), || "") = net;
        }
        for (ip, expected) in [
            ("10.9.9.9", Some("10.0.0.0/8")),
            ("10.1.9.9", Some("10.1.2.3/16")),
            ("10.1.2.3", Some("10.1.2.3/32")),
            ("11.0.0.1", None),
            ("2001:db8:1::5", Some("2001:db8:1::/48")),
            ("2001:db8:2::5", Some("2001:db8::/32")),
            ("::1", None),
        ] {
            let found = table.longest(ip.parse().expect("an address")).copied();
            assert_eq!(found, expected, "{ip}");
        }
    }
}
