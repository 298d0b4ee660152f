//! What a way out is: the row of a table, with the function that tries it; and what the function is
//! given.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{allowed, borrowed, doors, http, identity, raw, tcp, tls, udp};

/// One way out.
#[derive(Debug)]
pub struct Way {
    /// How people and `--only` name it.
    pub id: &'static str,
    /// Which threat of docs/threats.md it belongs to.
    pub threat: u8,
    /// What it does, in a line.
    pub what: &'static str,
    /// How long a refusal may take.
    pub within: Within,
    /// What shows at the canary that it got out.
    pub shows: Shows,
    /// Tries it. The text is what it met; an error is a refusal by the kernel.
    pub attempt: Attempt,
}

/// Tries a way.
pub(super) type Attempt = fn(&Target) -> io::Result<String>;

macro_rules! rows {
    ($($(#[$doc:meta])* $name:ident: $within:ident, $shows:ident;)*) => {
        $(
            $(#[$doc])*
            pub(super) const fn $name(
                id: &'static str,
                threat: u8,
                what: &'static str,
                attempt: Attempt,
            ) -> Way {
                Way { id, threat, what, within: Within::$within, shows: Shows::$shows, attempt }
            }
        )*
    };
}

rows! {
    /// To an address that no entry lists: a hook says no in the call itself.
    hooked: Hook, Packet;
    /// To an address that an entry lists, likewise.
    hooked_payload: Hook, Payload;
    /// To where others send as well, likewise.
    hooked_token: Hook, Token;
    /// The same, and the proxy or the interface layer says no.
    unlisted: Proxy, Packet;
    /// To an address that an entry lists, which only this way uses: nothing may be said there.
    shown: Proxy, Payload;
    /// The same, and nothing says no before a deadline.
    late: Deadline, Payload;
    /// Part of it is allowed; the token stands in the other part. Of a control: in what is allowed.
    partly: Proxy, Token;
    /// Never leaves the room.
    inside: Proxy, Nothing;
}

/// How long a refusal may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Within {
    /// A hook says no in the call itself.
    Hook,
    /// The proxy closes, the daemon ends the socket, or the interface layer resets it.
    Proxy,
    /// Only a deadline of ours ends it (T-28): the sniff time-out and a margin.
    Deadline,
}

/// A hook's refusal takes no longer.
const HOOK: Duration = Duration::from_millis(100);
/// The proxy's takes no longer.
const PROXY: Duration = Duration::from_secs(2);
/// The sniff time-out (5 s), and what the proxy may take.
const DEADLINE: Duration = Duration::from_secs(7);

impl Within {
    /// The longest that a refusal may take; more is a hang.
    pub fn limit(self) -> Duration {
        match self {
            Self::Hook => HOOK,
            Self::Proxy => PROXY,
            Self::Deadline => DEADLINE,
        }
    }
}

/// What shows that a way got out. Its token at the far side always does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shows {
    /// Any packet to an address that only this way uses, a SYN too.
    Packet,
    /// Any payload to an address that only this way uses: the address itself is allowed, and a
    /// handshake with it.
    Payload,
    /// Nothing but the token: part of what it sends is allowed.
    Token,
    /// Nothing: it stays inside. For controls, whose answer counts then.
    Nothing,
}

/// What a way is aimed at. Every way has addresses of its own in every mode, so that what arrives can
/// be told apart.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Target {
    /// Stands in what it sends, where policy forbids it. A DNS label.
    pub token: String,
    /// An address that no entry names.
    pub canary4: Ipv4Addr,
    /// The same for IPv6.
    pub canary6: Ipv6Addr,
    /// An address that an entry names, for [`ALLOWED`].
    pub allowed4: Ipv4Addr,
    /// The same for IPv6.
    pub allowed6: Ipv6Addr,
    /// A port of its own, for addresses that ways share.
    pub port: u16,
    /// Ports of the proxy's listeners on loopback, for IPv4 and IPv6.
    pub doors: (u16, u16),
    /// What interceptor covers the room is called.
    pub interceptor: String,
    /// Sockets of those who lend sockets: one outside the cover, one in the cgroup from before.
    pub lenders: [PathBuf; 2],
    /// Hardware address of the far side, for frames.
    pub far_mac: [u8; 6],
}

/// The host that policy allows: TLS, HTTP and TCP at the addresses of its entry.
pub(super) const ALLOWED: &str = "allowed.test";
/// A host that policy allows wherever the daemon's own resolver says that it is.
pub(super) const NAMED: &str = "named.test";
/// `*` before it is allowed.
pub(super) const WILD: &str = "wild.test";

/// Where the entries have TCP that is judged by its address alone.
pub(super) const TCP: u16 = 9000;
/// Where they have UDP.
pub(super) const UDP: u16 = 9001;
/// Where they have TLS.
pub(super) const TLS: u16 = 443;
/// Where they have HTTP.
pub(super) const HTTP: u16 = 80;
/// Name servers'.
pub(super) const DNS: u16 = 53;

/// The room's own addresses.
pub(super) const ROOM4: Ipv4Addr = Ipv4Addr::new(10, 79, 0, 2);
/// The same for IPv6.
pub(super) const ROOM6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0x79, 0, 0, 0, 0, 2);
/// The node's addresses.
pub(super) const NODE4: Ipv4Addr = Ipv4Addr::new(10, 79, 0, 1);
/// The same for IPv6.
pub(super) const NODE6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0x79, 0, 0, 0, 0, 1);
/// The far side's own addresses, by which the room's default routes go.
pub(super) const FAR4: Ipv4Addr = Ipv4Addr::new(10, 79, 0, 254);
/// The same for IPv6.
pub(super) const FAR6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0x79, 0, 0, 0, 0, 0xfe);
/// The far side's link-local address.
pub(super) const FAR_LINK6: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0xfe);
/// The configured resolver.
pub(super) const RESOLVER: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 53);
/// Where [`NAMED`] is.
pub(super) const NAMED4: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 10);
/// The same for IPv6.
pub(super) const NAMED6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0x51, 0, 0, 0, 0, 0x10);
/// The interface of the room. Its index, too, is the same in both rooms.
pub(super) const LINK: &str = "veth0";

/// Every address of the entry has the second octet, or third group, of these.
pub(super) const ALLOWED_NET4: &str = "198.19.0.0/16";
/// The same for IPv6.
pub(super) const ALLOWED_NET6: &str = "2001:db8:19::/48";

impl Target {
    /// The target of way `number` in mode `mode`: both are part of its addresses. The rest is for
    /// `fill` to say.
    pub fn new(mode: u8, number: u16, fill: impl FnOnce(&mut Self)) -> Self {
        let group = u16::from(mode);
        let v6 = |net| Ipv6Addr::new(0x2001, 0xdb8, net, group, 0, 0, 0, number);
        let [high, low] = (group << 10 | number).to_be_bytes();
        let mut target = Self {
            token: String::new(),
            canary4: Ipv4Addr::new(198, 18, high, low),
            canary6: v6(0x18),
            allowed4: Ipv4Addr::new(198, 19, high, low),
            allowed6: v6(0x19),
            port: 0,
            doors: (0, 0),
            interceptor: String::new(),
            lenders: Default::default(),
            far_mac: [0; 6],
        };
        fill(&mut target);
        target
    }

    /// The canary on a port.
    pub fn canary(&self, port: u16) -> SocketAddr {
        (self.canary4, port).into()
    }

    /// The canary's IPv6 address on a port.
    pub fn canary_v6(&self, port: u16) -> SocketAddr {
        (self.canary6, port).into()
    }

    /// The allowed address on a port.
    pub fn allowed(&self, port: u16) -> SocketAddr {
        (self.allowed4, port).into()
    }

    /// The allowed IPv6 address on a port.
    pub fn allowed_v6(&self, port: u16) -> SocketAddr {
        (self.allowed6, port).into()
    }

    /// The canary as IPv6 writes it for IPv4: mapped, NAT64 (RFC 6052), 6to4 (RFC 3056), and the
    /// "compatible" form that nobody uses any more.
    pub fn embedded(&self) -> [Ipv6Addr; 4] {
        let [a, b, c, d] = self.canary4.octets().map(u16::from);
        let (high, low) = (a << 8 | b, c << 8 | d);
        [
            self.canary4.to_ipv6_mapped(),
            Ipv6Addr::new(0x64, 0xff9b, 0, 0, 0, 0, high, low),
            Ipv6Addr::new(0x2002, high, low, 0, 0, 0, 0, 1),
            Ipv6Addr::new(0, 0, 0, 0, 0, 0, high, low),
        ]
    }

    /// The far side's link-local address, over the room's interface.
    pub fn link_local(&self, index: u32) -> SocketAddr {
        SocketAddrV6::new(FAR_LINK6, self.port, 0, index).into()
    }

    /// A host name that no entry allows and that carries the token.
    pub fn forbidden(&self) -> String {
        format!("{}.forbidden.test", self.token)
    }

    /// The token's bytes.
    pub fn token(&self) -> &[u8] {
        self.token.as_bytes()
    }
}

/// All ways out, family by family.
pub fn ways() -> impl Iterator<Item = &'static Way> {
    [
        tcp::WAYS,
        udp::WAYS,
        raw::WAYS,
        borrowed::WAYS,
        identity::WAYS,
        doors::WAYS,
        tls::WAYS,
        http::WAYS,
    ]
    .into_iter()
    .flatten()
}

/// What must go on working.
pub fn controls() -> impl Iterator<Item = &'static Way> {
    allowed::CONTROLS.iter()
}

/// Controls and ways, each with its number, which is part of its addresses.
pub(super) fn numbered() -> impl Iterator<Item = (u16, &'static Way)> {
    (1_u16..).zip(controls().chain(ways()))
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn ids_are_unique_and_numbers_suffice() {
        let all: Vec<_> = controls().chain(ways()).collect();
        let ids: HashSet<_> = all.iter().map(|way| way.id).collect();
        assert_eq!(ids.len(), all.len());
        assert!(all.len() < 1000, "numbers have three digits, and ten bits in addresses");
        assert!(ways().count() >= 60, "{}", ways().count());
        for way in all {
            let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
            assert!(way.id.chars().all(plain), "{}", way.id);
            assert!((1..=66).contains(&way.threat), "{}", way.id);
        }
    }

    #[test]
    fn the_document_lists_them() {
        let document = include_str!("../../../docs/selftest.md");
        for way in controls().chain(ways()) {
            let row = format!("| `{}` | {} | {} |", way.id, way.threat, way.what);
            assert!(document.contains(&row), "docs/selftest.md lacks: {row}");
        }
    }
}
