//! The proxy's own doors, what administers it, and addresses that are nobody's business (T-11 to
//! T-13, T-15). In the room without interceptor a forwarder that believes everything stands behind
//! the same kind of door.

use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;

use nix::net::if_::if_nametoindex;

use super::talk;
use super::udp::send;
use super::way::{
    FAR4, LINK, NODE4, NODE6, ROOM4, ROOM6, TCP, Target, Way, hooked as datagram, unlisted as way,
};
use crate::admin::client;

const fn loopback(last: u8) -> IpAddr {
    IpAddr::V4(Ipv4Addr::new(127, 0, 0, last))
}

pub(super) const WAYS: &[Way] = &[
    way("door-1", 11, "the proxy's listener on 127.0.0.1", |t| door(loopback(1), t)),
    way("door-2", 11, "the same on 127.0.0.2", |t| door(loopback(2), t)),
    way("door-3", 11, "the same on 127.0.0.3", |t| door(loopback(3), t)),
    way("door-4", 11, "the same on 127.0.0.4", |t| door(loopback(4), t)),
    way("door-zero", 11, "the same by 0.0.0.0", |t| door(Ipv4Addr::UNSPECIFIED.into(), t)),
    way("door-own", 11, "the same by the room's own address", |t| door(ROOM4.into(), t)),
    way("door6", 11, "the same on ::1", |t| door(Ipv6Addr::LOCALHOST.into(), t)),
    way("door6-zero", 11, "the same by ::", |t| door(Ipv6Addr::UNSPECIFIED.into(), t)),
    way("door6-own", 11, "the same by the room's own IPv6 address", |t| door(ROOM6.into(), t)),
    way("door-mapped", 11, "the same by ::ffff:127.0.0.1", |t| {
        let to = SocketAddr::from((Ipv4Addr::LOCALHOST.to_ipv6_mapped(), t.doors.0));
        talk::tell(to, &request(t))
    }),
    way("door-connect", 11, "a CONNECT to the listener", |t| {
        let (to, token) = (t.canary(TCP), &t.token);
        let text = format!("CONNECT {to} HTTP/1.1\r\nHost: {to}\r\nX: {token}\r\n\r\n");
        talk::tell((loopback(1), t.doors.0).into(), text.as_bytes())
    }),
    way("door-proxy-v1", 11, "a PROXY header to the listener", |t| {
        let text = format!("PROXY TCP4 {ROOM4} {} {} {TCP}\r\n", t.canary4, t.port);
        talk::tell((loopback(1), t.doors.0).into(), &[text.as_bytes(), t.token()].concat())
    }),
    way("door-proxy-v2", 11, "a binary PROXY header to the listener", |t| {
        let mut bytes = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c".to_vec();
        bytes.extend_from_slice(&ROOM4.octets());
        bytes.extend_from_slice(&t.canary4.octets());
        bytes.extend_from_slice(&t.port.to_be_bytes());
        bytes.extend_from_slice(&TCP.to_be_bytes());
        bytes.extend_from_slice(t.token());
        talk::tell((loopback(1), t.doors.0).into(), &bytes)
    }),
    way("admin-bypass", 12, "asks the control socket for a bypass, then connects", |t| {
        let network = IpAddr::from(t.canary4).into();
        // What it answers is not judged; what leaves then is.
        let _ = client::bypass_add(&t.interceptor, network);
        talk::tell(t.canary(TCP), t.token())
    }),
    way("bpf-pins", 15, "removes what is pinned in bpffs, then connects", |t| {
        for directory in ["links", "maps", ""] {
            let path = Path::new("/sys/fs/bpf/interceptor").join(&t.interceptor).join(directory);
            for entry in fs::read_dir(path).into_iter().flatten().flatten() {
                let _ = fs::remove_file(entry.path());
            }
        }
        talk::tell(t.canary(TCP), t.token())
    }),
    way("metadata4", 13, "the cloud's metadata service", |t| {
        talk::tell(([169, 254, 169, 254], t.port).into(), t.token())
    }),
    way("metadata6", 13, "the same over IPv6", |t| {
        let to = Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254);
        talk::tell((to, t.port).into(), t.token())
    }),
    way("metadata-mapped", 13, "the same, ::ffff:169.254.169.254", |t| {
        let to = Ipv4Addr::new(169, 254, 169, 254).to_ipv6_mapped();
        talk::tell((to, t.port).into(), t.token())
    }),
    datagram("metadata-udp", 13, "the same over UDP", |t| {
        send(([169, 254, 169, 254], t.port).into(), t.token())
    }),
    way("link-local4", 13, "a link-local address", |t| {
        talk::tell(([169, 254, 7, 7], t.port).into(), t.token())
    }),
    way("link-local6", 13, "a link-local address over IPv6", |t| {
        talk::tell(t.link_local(if_nametoindex(LINK)?), t.token())
    }),
    datagram("link-local-udp6", 13, "the same over UDP", |t| {
        send(t.link_local(if_nametoindex(LINK)?), t.token())
    }),
    way("node4", 13, "the node's address", |t| talk::tell((NODE4, t.port).into(), t.token())),
    way("node6", 13, "the node's IPv6 address", |t| talk::tell((NODE6, t.port).into(), t.token())),
    datagram("node-udp", 13, "the node's address over UDP", |t| {
        send((NODE4, t.port).into(), t.token())
    }),
    way("gateway4", 13, "the gateway's address", |t| talk::tell((FAR4, t.port).into(), t.token())),
    way("reserved4", 13, "an address of class E", |t| {
        talk::tell(([240, 0, 0, 7], t.port).into(), t.token())
    }),
];

/// A request that names the canary as plainly as it can.
fn request(t: &Target) -> Vec<u8> {
    let to = t.canary(TCP);
    format!("GET http://{to}/{token} HTTP/1.1\r\nHost: {to}\r\n\r\n", token = t.token).into_bytes()
}

fn door(ip: IpAddr, t: &Target) -> io::Result<String> {
    let port = if ip.is_ipv4() { t.doors.0 } else { t.doors.1 };
    talk::tell((ip, port).into(), &request(t))
}
