//! A room: a network namespace with a cgroup, a node that it hangs on, and a far side with canaries.
//!
//! ```text
//!  near (the workload)          node (the daemon)                far (the canaries)
//!  veth0 10.79.0.2 ───────── port ─ br0 10.79.0.1 ─ uplink ───── veth0 10.79.0.254, everything else
//! ```
//!
//! The node bridges, so that frames of any kind reach the far side. The namespaces have no names: they
//! go with the last process and descriptor that hold them, whatever ends this program.

use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use nix::net::if_::if_nametoindex;
use rtnetlink::packet_route::link::LinkMessage;
use rtnetlink::packet_route::route::RouteType;
use rtnetlink::{Handle, LinkBridge, LinkUnspec, LinkVeth, RouteMessageBuilder};

use super::SelftestError;
use super::allowed::ECHO4;
use super::judge::{Capture, Record};
use super::servers::Servers;
use super::way::{FAR_LINK6, FAR4, FAR6, LINK, NODE4, NODE6, RESOLVER, ROOM4, ROOM6};
use crate::netns::{NetNs, netlink};
use crate::workloads::cgroup::Cgroup;

/// Hardware address of the far side.
pub(super) const FAR_MAC: [u8; 6] = [2, 0x79, 0, 0, 0, 0xfe];
const BRIDGE: &str = "br0";
/// The node's end of the room's link, and of the far side's.
const PORT: &str = "port";
const UPLINK: &str = "uplink";
/// How long killed processes of a room may take to be gone.
const GONE: Duration = Duration::from_secs(3);

/// One room. Dropping it ends what runs in it.
#[derive(Debug)]
pub(super) struct Room {
    /// The workload's namespace.
    pub(super) near: Arc<NetNs>,
    /// Where a daemon has its place.
    pub(super) node: NetNs,
    /// The workload's cgroup.
    pub(super) cgroup: Cgroup,
    /// One below it.
    pub(super) child: Cgroup,
    /// What reached the far side, or the node.
    pub(super) record: Record,
    captures: [Capture; 2],
    _servers: Servers,
    _far: NetNs,
}

impl Room {
    /// Makes a room, its cgroup below `home`.
    ///
    /// # Errors
    /// The system refuses a part of it.
    pub(super) async fn new(name: &str, home: &Cgroup, token: &str) -> Result<Self, SelftestError> {
        let failed = |source| SelftestError::Room { name: name.to_owned(), source };
        let cgroup = home.create(name)?;
        let child = cgroup.create("child")?;
        let made = async {
            let [near, node, far] = ["near", "node", "far"].map(NetNs::anonymous);
            let (near, node, far) = (Arc::new(near?), node?, far?);
            connect(&near, &node, &far).await?;
            let record = Record::new(token);
            let link = |netns: &NetNs, name| netns.run(|| if_nametoindex(name));
            let captures = [
                Capture::start(&far, link(&far, LINK)??, record.clone())?,
                // The far side answers the daemon there, at whatever port that has.
                Capture::start_without(
                    &node,
                    link(&node, BRIDGE)??,
                    Some(FAR_MAC),
                    record.clone(),
                )?,
            ];
            let servers = Servers::start(&far, &record)?;
            Ok::<_, io::Error>((near, node, far, record, captures, servers))
        };
        let (near, node, far, record, captures, servers) = made.await.map_err(failed)?;
        Ok(Self { near, node, cgroup, child, record, captures, _servers: servers, _far: far })
    }

    /// A process of this user may be put into the room's cgroups by who has them open.
    ///
    /// # Errors
    /// The cgroup is gone.
    pub(super) fn open_to(&self, uid: u32) -> io::Result<()> {
        for cgroup in [&self.cgroup, &self.child] {
            std::os::unix::fs::chown(cgroup.path().join("cgroup.procs"), Some(uid), None)?;
        }
        Ok(())
    }

    /// A path by which another process can open the workload's namespace.
    pub(super) fn near_path(&self) -> PathBuf {
        self.near.path()
    }

    /// Waits until nothing arrives any more.
    ///
    /// # Errors
    /// A capture lost packets: its silence would prove nothing.
    pub(super) async fn settle(&self) -> Result<(), SelftestError> {
        self.record.settle().await;
        for capture in &self.captures {
            match capture.lost() {
                Ok(0) => {}
                Ok(lost) => return Err(SelftestError::Lost(lost)),
                Err(source) => {
                    return Err(SelftestError::Room { name: "capture".to_owned(), source });
                }
            }
        }
        Ok(())
    }

    /// Ends what runs in it.
    pub(super) fn clear(&self) {
        kill_all(&self.cgroup);
    }
}

/// Ends everything in a cgroup and waits for it, a while.
pub(super) fn kill_all(cgroup: &Cgroup) {
    // Gone already is as good.
    let _ = fs::write(cgroup.path().join("cgroup.kill"), "1");
    let until = Instant::now() + GONE;
    while cgroup.is_populated().unwrap_or(false) && Instant::now() < until {
        thread::sleep(Duration::from_millis(5));
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        self.clear();
    }
}

/// Interfaces, addresses and routes of all three.
async fn connect(near: &NetNs, node: &NetNs, far: &NetNs) -> io::Result<()> {
    for netns in [near, node, far] {
        // Duplicate address detection would keep IPv6 addresses unusable for a second.
        for scope in ["all", "default"] {
            set(netns, &format!("ipv6/conf/{scope}/accept_dad"), "0")?;
        }
    }
    let (near_links, node_links) = (Links::open(near)?, Links::open(node)?);
    let far_links = Links::open(far)?;

    node_links.add(LinkBridge::new(BRIDGE).build()).await?;
    for (port, netns) in [(PORT, near), (UPLINK, far)] {
        node_links.add(LinkVeth::new(port, LINK).build()).await?;
        let fd = netns.try_clone_fd()?;
        let moved = LinkUnspec::new_with_name(LINK).setns_by_fd(fd.as_raw_fd()).build();
        node_links.change(moved).await?;
        let bridge = node_links.index(BRIDGE)?;
        let joined = LinkUnspec::new_with_name(port).controller(bridge).up().build();
        node_links.change(joined).await?;
    }
    for links in [&near_links, &node_links, &far_links] {
        links.change(LinkUnspec::new_with_name("lo").up().build()).await?;
    }
    let up = LinkUnspec::new_with_name(LINK).address(FAR_MAC.to_vec()).up().build();
    far_links.change(up).await?;
    near_links.change(LinkUnspec::new_with_name(LINK).up().build()).await?;

    node_links.address(BRIDGE, NODE4.into(), 24).await?;
    node_links.address(BRIDGE, NODE6.into(), 64).await?;
    near_links.address(LINK, ROOM4.into(), 24).await?;
    near_links.address(LINK, ROOM6.into(), 64).await?;
    far_links.address(LINK, FAR4.into(), 24).await?;
    far_links.address(LINK, FAR6.into(), 64).await?;
    far_links.address(LINK, FAR_LINK6.into(), 64).await?;
    // Every address is the far side's, but one that is bound must be its own.
    far_links.address("lo", RESOLVER.into(), 32).await?;
    far_links.address("lo", ECHO4.into(), 32).await?;
    far_links.everything_is_local().await?;
    near_links.default_routes().await?;
    node_links.default_routes().await?;

    // What a user may try only where the administrator lets him, the administrator lets him here.
    set(near, "ipv4/ping_group_range", "0 2147483647")?;
    // Clients send data with the SYN without asking for a cookie first, and every listener takes it.
    set(near, "ipv4/tcp_fastopen", "5")?;
    set(far, "ipv4/tcp_fastopen", "1538")
}

fn set(netns: &NetNs, setting: &str, value: &str) -> io::Result<()> {
    let path = Path::new("/proc/sys/net").join(setting);
    netns
        .run(|| fs::write(&path, value))?
        .map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", path.display())))
}

/// Netlink in one namespace.
struct Links<'a> {
    netns: &'a NetNs,
    handle: Handle,
}

impl<'a> Links<'a> {
    fn open(netns: &'a NetNs) -> io::Result<Self> {
        Ok(Self { netns, handle: netlink::open(netns)? })
    }

    fn index(&self, name: &str) -> io::Result<u32> {
        Ok(self.netns.run(|| if_nametoindex(name))??)
    }

    async fn add(&self, link: LinkMessage) -> io::Result<()> {
        self.handle.link().add(link).execute().await.map_err(io::Error::other)
    }

    async fn change(&self, link: LinkMessage) -> io::Result<()> {
        self.handle.link().change(link).execute().await.map_err(io::Error::other)
    }

    async fn address(&self, link: &str, address: IpAddr, prefix: u8) -> io::Result<()> {
        let add = self.handle.address().add(self.index(link)?, address, prefix);
        add.execute().await.map_err(io::Error::other)
    }

    /// By way of the far side.
    async fn default_routes(&self) -> io::Result<()> {
        let v4 = RouteMessageBuilder::<Ipv4Addr>::new().gateway(FAR4).build();
        let v6 = RouteMessageBuilder::<Ipv6Addr>::new().gateway(FAR6).build();
        for route in [v4, v6] {
            self.handle.route().add(route).execute().await.map_err(io::Error::other)?;
        }
        Ok(())
    }

    /// Answers for every address that has no other route.
    async fn everything_is_local(&self) -> io::Result<()> {
        let lo = self.index("lo")?;
        let (v4, v6) = (Ipv4Addr::UNSPECIFIED, Ipv6Addr::UNSPECIFIED);
        let v4 = RouteMessageBuilder::<Ipv4Addr>::new().destination_prefix(v4, 0);
        let v6 = RouteMessageBuilder::<Ipv6Addr>::new().destination_prefix(v6, 0);
        let v4 = v4.kind(RouteType::Local).output_interface(lo);
        let v4 = v4.scope(rtnetlink::packet_route::route::RouteScope::Host).build();
        let v6 = v6.kind(RouteType::Local).output_interface(lo).build();
        for route in [v4, v6] {
            self.handle.route().add(route).execute().await.map_err(io::Error::other)?;
        }
        Ok(())
    }
}
