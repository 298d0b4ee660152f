//! What goes ahead of the client's bytes on an upstream connection: the PROXY protocol (DR-16).

use std::net::{IpAddr, SocketAddr};

use crate::decide::traffic::ProxyProtocol;

/// The header that says who is connected to whom: `src` is the workload's end, `dst` what it
/// dialled.
pub(super) fn proxy_header(version: ProxyProtocol, src: SocketAddr, dst: SocketAddr) -> Vec<u8> {
    let ends = (src.ip().to_canonical(), dst.ip().to_canonical());
    match version {
        ProxyProtocol::V1 => {
            let family = match ends {
                (IpAddr::V4(_), IpAddr::V4(_)) => "TCP4",
                (IpAddr::V6(_), IpAddr::V6(_)) => "TCP6",
                _ => return b"PROXY UNKNOWN\r\n".to_vec(),
            };
            let (from, to) = (src.port(), dst.port());
            format!("PROXY {family} {} {} {from} {to}\r\n", ends.0, ends.1).into_bytes()
        }
        ProxyProtocol::V2 => {
            let mut header = b"\r\n\r\n\0\r\nQUIT\n".to_vec();
            let mut addresses = Vec::with_capacity(36);
            let family = match ends {
                (IpAddr::V4(src), IpAddr::V4(dst)) => {
                    addresses.extend(src.octets());
                    addresses.extend(dst.octets());
                    0x11
                }
                (IpAddr::V6(src), IpAddr::V6(dst)) => {
                    addresses.extend(src.octets());
                    addresses.extend(dst.octets());
                    0x21
                }
                // Version 2, PROXY, but of no one family: the receiver uses the connection's own.
                _ => {
                    header.extend([0x21, 0x00, 0, 0]);
                    return header;
                }
            };
            addresses.extend(src.port().to_be_bytes());
            addresses.extend(dst.port().to_be_bytes());
            header.extend([0x21, family, 0, addresses.len() as u8]);
            header.extend(addresses);
            header
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(version: ProxyProtocol, src: &str, dst: &str) -> Vec<u8> {
        proxy_header(version, src.parse().expect("an address"), dst.parse().expect("an address"))
    }

    #[test]
    fn dr_16_version_1() {
        for (src, dst, expected) in [
            ("10.0.0.1:4000", "192.0.2.1:80", "PROXY TCP4 10.0.0.1 192.0.2.1 4000 80\r\n"),
            ("[::ffff:10.0.0.1]:4000", "192.0.2.1:80", "PROXY TCP4 10.0.0.1 192.0.2.1 4000 80\r\n"),
            ("[2001:db8::1]:1", "[2001:db8::2]:2", "PROXY TCP6 2001:db8::1 2001:db8::2 1 2\r\n"),
            ("[2001:db8::1]:1", "192.0.2.1:2", "PROXY UNKNOWN\r\n"),
        ] {
            assert_eq!(header(ProxyProtocol::V1, src, dst), expected.as_bytes(), "{src} {dst}");
        }
    }

    #[test]
    fn dr_16_version_2() {
        let signature = b"\x0d\x0a\x0d\x0a\x00\x0d\x0a\x51\x55\x49\x54\x0a";
        let v4 = header(ProxyProtocol::V2, "10.0.0.1:4000", "192.0.2.1:80");
        assert_eq!(&v4[..12], signature);
        assert_eq!(v4[12..], [0x21, 0x11, 0, 12, 10, 0, 0, 1, 192, 0, 2, 1, 0x0f, 0xa0, 0, 80]);
        let v6 = header(ProxyProtocol::V2, "[2001:db8::1]:1", "[2001:db8::2]:2");
        assert_eq!((v6[13], v6[15], v6.len()), (0x21, 36, 52));
    }
}
