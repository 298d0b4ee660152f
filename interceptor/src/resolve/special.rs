//! Addresses that a public name has no business resolving to (T-13, T-40).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// The metadata address of EC2 for IPv6; the IPv4 one is link-local.
const METADATA_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254);

/// Whether `ip` lies in a special range: "this network", loopback, link-local (the metadata
/// address among them), multicast, broadcast, unspecified. An IPv6 form that carries an IPv4
/// address (mapped, compatible, NAT64) is judged by that address as well.
pub(crate) fn is_special(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(v4) => is_special_v4(v4),
        IpAddr::V6(v6) => {
            v6.is_loopback()
                || v6.is_unspecified()
                || v6.is_multicast()
                || v6.is_unicast_link_local()
                || v6 == METADATA_V6
                || embedded_v4(v6).is_some_and(is_special_v4)
        }
    }
}

fn is_special_v4(ip: Ipv4Addr) -> bool {
    ip.octets()[0] == 0
        || ip.is_loopback()
        || ip.is_link_local()
        || ip.is_multicast()
        || ip.is_broadcast()
}

/// The IPv4 address inside `::ffff:0:0/96`, `::/96` or the NAT64 prefix `64:ff9b::/96` (RFC 6052).
fn embedded_v4(ip: Ipv6Addr) -> Option<Ipv4Addr> {
    let [a, b, rest @ .., _, _] = ip.segments();
    let carries =
        matches!((a, b, rest), (0x64, 0xff9b, [0, 0, 0, 0]) | (0, 0, [0, 0, 0, 0 | 0xffff]));
    let [.., w, x, y, z] = ip.octets();
    carries.then(|| Ipv4Addr::new(w, x, y, z))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn t40_special_ranges_are_known_in_every_form() {
        let cases = [
            ("127.0.0.1", true),
            ("127.255.255.255", true),
            ("0.0.0.0", true),
            ("0.1.2.3", true),
            ("169.254.169.254", true),
            ("169.254.20.10", true),
            ("224.0.0.1", true),
            ("239.255.255.255", true),
            ("255.255.255.255", true),
            ("::", true),
            ("::1", true),
            ("fe80::1", true),
            ("febf::1", true),
            ("ff02::1", true),
            ("fd00:ec2::254", true),
            ("::ffff:127.0.0.1", true),
            ("::ffff:169.254.169.254", true),
            ("::127.0.0.1", true),
            ("64:ff9b::169.254.169.254", true),
            ("64:ff9b::7f00:1", true),
            ("1.0.0.1", false),
            ("10.0.0.1", false),
            ("169.253.255.255", false),
            ("128.0.0.1", false),
            ("240.240.0.1", false),
            ("2001:db8::1", false),
            ("fd00:ec2::253", false),
            ("::ffff:93.184.216.34", false),
            ("64:ff9b::5db8:d822", false),
            ("64:ff9b:1::7f00:1", false),
        ];
        for (text, special) in cases {
            assert_eq!(is_special(text.parse().unwrap()), special, "{text}");
        }
    }
}
