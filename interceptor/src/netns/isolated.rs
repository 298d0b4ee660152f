//! A network namespace of a command's own, joined to the daemon's by a veth pair (`run --isolate`).
//!
//! ```text
//! COMMAND's namespace                   the daemon's namespace
//! eth0 198.19.x.y+1 ───── veth ───── ix-… 198.19.x.y ── routing, masquerade ── the world
//! ```
//!
//! Forwarding is the machine's own setting and is not touched: it would make a router of it.

use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::AsRawFd;
use std::path::PathBuf;

use futures_util::TryStreamExt;
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use rtnetlink::packet_route::address::{AddressAttribute, AddressFlags};
use rtnetlink::packet_route::link::{InfoData, InfoVeth};
use rtnetlink::packet_route::route::{RouteAddress, RouteAttribute, RouteMessage, RouteScope};
use rtnetlink::{Error, Handle, LinkUnspec, LinkVeth, RouteMessageBuilder};

use super::{NetNs, nat, netlink};

/// Where a pair's IPv4 addresses are taken from: half of what RFC 2544 sets apart for benchmarks, which
/// no host in the world has.
const RANGE_V4: Ipv4Net = Ipv4Net::new_assert(Ipv4Addr::new(198, 19, 0, 0), 16);

/// Addresses of a pair: its network, both ends, its broadcast.
const PAIR_PREFIX: u8 = 30;

/// Where its IPv6 addresses are taken from: a unique local prefix (RFC 4193), a /64 for each pair.
const RANGE_V6: Ipv6Net =
    Ipv6Net::new_assert(Ipv6Addr::new(0xfd69, 0x7863, 0x7074, 0, 0, 0, 0, 0), 48);

/// Pairs that are tried before giving up.
const PAIRS: u16 = 1 << 14;

/// The interface in the command's namespace.
const INSIDE: &str = "eth0";

/// Why a namespace for a command could not be made; nothing of it is left.
#[derive(Debug, thiserror::Error)]
pub enum IsolateError {
    /// The machine does not forward.
    #[error(
        "--isolate needs a machine that forwards IPv4, since the command gets a network of its own behind \
         it, and does not turn that on by itself: sysctl -w net.ipv4.ip_forward=1"
    )]
    Forwarding,
    /// Addresses cannot be translated.
    #[error(transparent)]
    Nat(#[from] nat::NatError),
    /// Every pair of addresses is taken.
    #[error("--isolate finds no free network in {RANGE_V4}: routes of this machine cover it all")]
    Full,
    /// A step failed.
    #[error("--isolate: cannot {what}: {source}")]
    Step {
        /// Which.
        what: &'static str,
        /// Why.
        source: io::Error,
    },
}

fn step<E>(what: &'static str) -> impl FnOnce(E) -> IsolateError
where
    E: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    move |error| IsolateError::Step { what, source: io::Error::other(error) }
}

/// The namespace's link to the daemon's. Dropped, it takes the translation away; the link itself goes
/// with the last process and socket of the namespace.
#[derive(Debug)]
pub struct Isolated {
    interface: String,
    translation: nat::Translation,
}

impl Isolated {
    /// Makes a namespace for the interceptor of this name, with its link, addresses and routes; what an
    /// earlier one of the name left must be gone.
    ///
    /// # Errors
    /// [`IsolateError`].
    pub async fn create(name: &str) -> Result<(NetNs, Self), IsolateError> {
        if !is_on("/proc/sys/net/ipv4/ip_forward") {
            return Err(IsolateError::Forwarding);
        }
        let netns = NetNs::anonymous("isolated").map_err(step("make a network namespace"))?;
        let home = NetNs::current().map_err(step("open the daemon's network namespace"))?;
        let outside = netlink::open(&home).map_err(step("speak to netlink"))?;
        let inside = netlink::open(&netns).map_err(step("speak to netlink"))?;

        let interface = interface_of(name);
        let peer = LinkUnspec::new_with_name(INSIDE).setns_by_fd(netns.file.as_raw_fd()).build();
        let pair = LinkVeth::new(&interface, INSIDE)
            .set_info_data(InfoData::Veth(InfoVeth::Peer(peer)))
            .up();
        outside.link().add(pair.build()).execute().await.map_err(step("make a veth pair"))?;
        let near = index_of(&outside, &interface).await?;
        let far = index_of(&inside, INSIDE).await?;
        for index in [index_of(&inside, "lo").await?, far] {
            let up = LinkUnspec::new_with_index(index).up().build();
            inside.link().set(up).execute().await.map_err(step("bring the namespace up"))?;
        }
        let settings = [
            ("ipv4", "forwarding", "1"),
            ("ipv6", "forwarding", "1"),
            // Nobody on this link routes for the machine.
            ("ipv6", "accept_ra", "0"),
        ];
        for (family, key, value) in settings {
            // A machine without IPv6 has no such file, and needs none.
            let _ = fs::write(format!("/proc/sys/net/{family}/conf/{interface}/{key}"), value);
        }
        let with_v6 = speaks_v6(&outside).await?;
        let pair = claim(&outside, near, with_v6).await?;
        pair.set_up(&outside, near, &inside, far).await?;
        let sources = pair.sources();
        let translation = nat::Translation::set_up(name, &sources)?;
        Ok((netns, Self { interface, translation }))
    }

    /// Writes the resolv.conf for commands in the namespace: these servers, where they are at the usual
    /// port, with what else the machine's own says.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn resolv_conf(&self, servers: &[SocketAddr]) -> io::Result<PathBuf> {
        let own = fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
        self.translation.keep(&resolv_conf(&own, servers))
    }

    /// Takes everything away.
    ///
    /// # Errors
    /// Netlink's.
    pub async fn remove(self) -> Result<(), IsolateError> {
        remove_link(&self.interface).await.map(drop)
    }

    /// Removes what a killed interceptor of this name left. What runs in its namespace is cut off.
    /// Gives whether there was anything.
    ///
    /// # Errors
    /// Netlink's, or nft's.
    pub async fn clean_stale(name: &str) -> Result<bool, IsolateError> {
        let linked = remove_link(&interface_of(name)).await?;
        let translated = nat::Translation::clean_stale(name)?;
        Ok(linked || translated)
    }
}

/// The daemon's end is found again by the interceptor's name. Interface names have 15 bytes at most,
/// interceptors' up to 32.
fn interface_of(name: &str) -> String {
    // FNV-1a: short, and the same in every version.
    let hash = name
        .bytes()
        .fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193));
    format!("ix-{hash:08x}")
}

/// A resolv.conf with other servers.
fn resolv_conf(own: &str, servers: &[SocketAddr]) -> String {
    const PORT: u16 = 53;
    let server = |server: &&SocketAddr| server.port() == PORT;
    let servers =
        servers.iter().filter(server).map(|server| format!("nameserver {}\n", server.ip()));
    let rest = own.lines().filter(|line| {
        matches!(line.split_whitespace().next(), Some("search" | "domain" | "options"))
    });
    servers.chain(rest.map(|line| format!("{line}\n"))).collect()
}

fn is_on(setting: &str) -> bool {
    fs::read_to_string(setting).is_ok_and(|value| value.trim() != "0")
}

async fn index_of(handle: &Handle, name: &str) -> Result<u32, IsolateError> {
    find(handle, name)
        .await?
        .ok_or_else(|| step("find an interface")(format!("{name} is not there")))
}

async fn find(handle: &Handle, name: &str) -> Result<Option<u32>, IsolateError> {
    let mut found = handle.link().get().match_name(name.to_owned()).execute();
    match found.try_next().await {
        Ok(link) => Ok(link.map(|link| link.header.index)),
        Err(Error::NetlinkError(error)) if error.raw_code() == -libc::ENODEV => Ok(None),
        Err(error) => Err(step("find an interface")(error)),
    }
}

/// Removes one end, and with it the other. False: it went with its namespace, or never was.
async fn remove_link(interface: &str) -> Result<bool, IsolateError> {
    let home = NetNs::current().map_err(step("open the daemon's network namespace"))?;
    let handle = netlink::open(&home).map_err(step("speak to netlink"))?;
    let Some(index) = find(&handle, interface).await? else { return Ok(false) };
    handle.link().del(index).execute().await.map_err(step("remove the veth pair"))?;
    Ok(true)
}

/// Whether IPv6 leads anywhere: the machine has a default route for it, and forwards.
async fn speaks_v6(handle: &Handle) -> Result<bool, IsolateError> {
    let question = RouteMessageBuilder::<Ipv6Addr>::new().build();
    let mut routes = handle.route().get(question).execute();
    let mut default = false;
    while let Some(route) = routes.try_next().await.map_err(step("read the routes"))? {
        default |= route.header.destination_prefix_length == 0
            && route.attributes.iter().any(|one| matches!(one, RouteAttribute::Gateway(_)));
    }
    let forwards = is_on("/proc/sys/net/ipv6/conf/all/forwarding");
    if default && !forwards {
        eprintln!(
            "interceptor: the command has no IPv6: the machine does not forward it \
             (net.ipv6.conf.all.forwarding is 0)"
        );
    }
    Ok(default && forwards)
}

/// The addresses of a pair.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Pair {
    number: u16,
    with_v6: bool,
}

impl Pair {
    fn network_v4(self) -> Ipv4Net {
        let first = RANGE_V4.network().to_bits() + (u32::from(self.number) << (32 - PAIR_PREFIX));
        Ipv4Net::new_assert(first.into(), PAIR_PREFIX)
    }

    fn network_v6(self) -> Ipv6Net {
        let first = RANGE_V6.network().to_bits() | u128::from(self.number) << 64;
        Ipv6Net::new_assert(first.into(), 64)
    }

    /// The daemon's end and the command's, IPv4 first, with the length of their prefix.
    fn ends(self) -> Vec<(IpAddr, IpAddr, u8)> {
        let v4 = self.network_v4().network().to_bits();
        let mut ends = vec![(
            IpAddr::from(Ipv4Addr::from(v4 + 1)),
            IpAddr::from(Ipv4Addr::from(v4 + 2)),
            PAIR_PREFIX,
        )];
        if self.with_v6 {
            let v6 = self.network_v6().network().to_bits();
            ends.push((Ipv6Addr::from(v6 + 1).into(), Ipv6Addr::from(v6 + 2).into(), 64));
        }
        ends
    }

    /// What is translated.
    fn sources(self) -> Vec<IpAddr> {
        self.ends().into_iter().map(|(_, theirs, _)| theirs).collect()
    }

    fn collides_with(self, routes: &[IpNet]) -> bool {
        let (v4, v6) = (IpNet::from(self.network_v4()), IpNet::from(self.network_v6()));
        let overlap = |a: &IpNet, b: &IpNet| a.contains(b) || b.contains(a);
        // A default route leads to everything there is.
        routes
            .iter()
            .filter(|route| route.prefix_len() > 0)
            .any(|route| overlap(route, &v4) || (self.with_v6 && overlap(route, &v6)))
    }

    /// Addresses at both ends, and the way out.
    async fn set_up(
        self,
        outside: &Handle,
        near: u32,
        inside: &Handle,
        far: u32,
    ) -> Result<(), IsolateError> {
        for (ours, theirs, prefix) in self.ends() {
            let whole = if ours.is_ipv4() { 32 } else { 128 };
            add_address(outside, near, ours, whole).await?;
            if ours.is_ipv6() {
                add_route(outside, to_host(theirs, near)).await.map_err(step("add a route"))?;
            }
            add_address(inside, far, theirs, prefix).await?;
            let default = match ours {
                IpAddr::V4(v4) => {
                    RouteMessageBuilder::<Ipv4Addr>::new().gateway(v4).output_interface(far).build()
                }
                IpAddr::V6(v6) => {
                    RouteMessageBuilder::<Ipv6Addr>::new().gateway(v6).output_interface(far).build()
                }
            };
            add_route(inside, default).await.map_err(step("add a route"))?;
        }
        Ok(())
    }
}

async fn add_route(handle: &Handle, route: RouteMessage) -> Result<(), Error> {
    handle.route().add(route).execute().await
}

async fn add_address(
    handle: &Handle,
    index: u32,
    address: IpAddr,
    prefix: u8,
) -> Result<(), IsolateError> {
    let mut request = handle.address().add(index, address, prefix);
    if address.is_ipv6() {
        // Nobody else is on the link; without this the address cannot be used for a second.
        let message = request.message_mut();
        message.attributes.push(AddressAttribute::Flags(AddressFlags::Nodad));
    }
    request.execute().await.map_err(step("add an address"))
}

/// The route to one end of the pair.
fn to_host(end: IpAddr, index: u32) -> RouteMessage {
    match end {
        IpAddr::V4(v4) => RouteMessageBuilder::<Ipv4Addr>::new()
            .destination_prefix(v4, 32)
            .output_interface(index)
            .scope(RouteScope::Link)
            .build(),
        IpAddr::V6(v6) => RouteMessageBuilder::<Ipv6Addr>::new()
            .destination_prefix(v6, 128)
            .output_interface(index)
            .build(),
    }
}

/// Finds a pair of addresses that no route of the machine covers. Its own route is made on the spot:
/// two that look at the same time cannot both have it.
async fn claim(outside: &Handle, near: u32, with_v6: bool) -> Result<Pair, IsolateError> {
    let routes = routes(outside).await?;
    for number in 0..PAIRS {
        let pair = Pair { number, with_v6 };
        if pair.collides_with(&routes) {
            continue;
        }
        let (_, theirs, _) = pair.ends()[0];
        match add_route(outside, to_host(theirs, near)).await {
            Ok(()) => return Ok(pair),
            Err(Error::NetlinkError(error)) if error.raw_code() == -libc::EEXIST => {}
            Err(error) => return Err(step("add a route")(error)),
        }
    }
    Err(IsolateError::Full)
}

/// Every network that the machine has a route to.
async fn routes(handle: &Handle) -> Result<Vec<IpNet>, IsolateError> {
    let mut found = Vec::new();
    for question in [
        RouteMessageBuilder::<Ipv4Addr>::new().build(),
        RouteMessageBuilder::<Ipv6Addr>::new().build(),
    ] {
        let mut messages = handle.route().get(question).execute();
        while let Some(message) = messages.try_next().await.map_err(step("read the routes"))? {
            found.extend(destination(&message));
        }
    }
    Ok(found)
}

fn destination(message: &RouteMessage) -> Option<IpNet> {
    let prefix = message.header.destination_prefix_length;
    message.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Destination(RouteAddress::Inet(v4)) => {
            IpNet::new((*v4).into(), prefix).ok()
        }
        RouteAttribute::Destination(RouteAddress::Inet6(v6)) => {
            IpNet::new((*v6).into(), prefix).ok()
        }
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn net(text: &str) -> IpNet {
        text.parse().expect("a network")
    }

    #[test]
    fn pairs_lie_in_their_ranges_and_apart() {
        for number in [0, 1, PAIRS - 1] {
            let pair = Pair { number, with_v6: true };
            assert!(RANGE_V4.contains(&pair.network_v4()), "{pair:?}");
            assert!(RANGE_V6.contains(&pair.network_v6()), "{pair:?}");
            for (ours, theirs, prefix) in pair.ends() {
                let network = IpNet::new(ours, prefix).expect("a network");
                assert!(network.contains(&theirs), "{pair:?}");
            }
        }
        let one = Pair { number: 1, with_v6: true };
        assert_eq!(
            one.sources(),
            ["198.19.0.6", "fd69:7863:7074:1::2"].map(|a| a.parse::<IpAddr>().expect("an address"))
        );
    }

    #[test]
    fn a_covered_pair_is_passed_over() {
        let collides =
            |number, with_v6, route| Pair { number, with_v6 }.collides_with(&[net(route)]);
        assert!(!collides(0, true, "0.0.0.0/0"), "a default route covers nothing");
        assert!(collides(0, false, "198.19.0.0/24"));
        assert!(collides(0, false, "198.18.0.0/15"));
        assert!(collides(0, false, "198.19.0.1/32"));
        assert!(!collides(64, false, "198.19.0.0/24"));
        assert!(collides(3, true, "fd69:7863:7074:3::/64"));
        assert!(!collides(3, false, "fd69:7863:7074:3::/64"), "it has no IPv6");
    }

    #[test]
    fn a_resolv_conf_keeps_all_but_the_servers() {
        let own = "# of the machine\nnameserver 127.0.0.53\nsearch corp.test\noptions ndots:2\n";
        let servers = ["192.0.2.53:53", "192.0.2.54:5353", "[2001:db8::53]:53"]
            .map(|text| text.parse().expect("an address"));
        assert_eq!(
            resolv_conf(own, &servers),
            "nameserver 192.0.2.53\nnameserver 2001:db8::53\nsearch corp.test\noptions ndots:2\n"
        );
    }

    #[test]
    fn interfaces_of_interceptors_have_short_names_of_their_own() {
        let long = interface_of(&"a".repeat(32));
        assert!(long.len() <= 15, "{long}");
        assert_ne!(interface_of("default"), interface_of("other"));
    }
}
