//! A namespace behind the world's workload, as a pod is behind its node: the product, which runs in the
//! workload's namespace, finds the other end of its link there.
//!
//! ```text
//!  …-pod                              …-workload (the node)                …-net
//!  10.78.0.2, 2001:db8:78::2 ──veth── 10.78.0.1, 2001:db8:78::1 ──veth── (see world.rs)
//! ```

use std::fs;
use std::io::IoSlice;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};

use crate::netns::{Namespace, next_number};
use crate::world::{Finished, World};

/// The pod's IPv4 address.
pub const POD_V4: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 78, 0, 2));
/// The pod's IPv6 address.
pub const POD_V6: IpAddr = IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0x78, 0, 0, 0, 0, 2));
/// Link-layer address of the pod's next hop.
pub const NEXT_HOP: &str = "02:00:0a:4e:00:01";

/// Where the other end of a pod's link is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Behind {
    /// In the namespace where the product runs.
    Node,
    /// In the stub internet: the product does not see the link.
    Internet,
}

/// The pod. Dropping it removes it.
#[derive(Debug)]
pub struct Pod {
    /// Its namespace.
    pub namespace: Namespace,
}

impl Pod {
    /// Makes a pod in a world; there may be one at a time.
    ///
    /// # Errors
    /// When a link, address or route can't be made.
    pub fn new(world: &World, behind: Behind) -> Result<Self> {
        let namespace = Namespace::create(next_number(), "pod")?;
        let (gateway, v4, v6) = match behind {
            Behind::Node => (&world.workload, "10.77.0.2", "2001:db8:77::2"),
            Behind::Internet => (&world.internet, "", ""),
        };
        let link = [
            &["link", "add", "pod0", "address", NEXT_HOP, "type", "veth"][..],
            &["peer", "name", "eth0", "netns", namespace.name()],
        ];
        gateway.ip(&link.concat())?;
        for (at, device, addresses) in [
            (gateway, "pod0", ["10.78.0.1/24", "2001:db8:78::1/64"]),
            (&namespace, "eth0", ["10.78.0.2/24", "2001:db8:78::2/64"]),
        ] {
            at.ip(&["addr", "add", addresses[0], "dev", device])?;
            at.ip(&["addr", "add", addresses[1], "dev", device, "nodad"])?;
            at.ip(&["link", "set", device, "up"])?;
        }
        namespace.ip(&["route", "add", "default", "via", "10.78.0.1"])?;
        namespace.ip(&["-6", "route", "add", "default", "via", "2001:db8:78::1"])?;
        if behind == Behind::Node {
            forward(&world.workload)?;
            world.internet.ip(&["route", "add", "10.78.0.0/24", "via", v4])?;
            // What a tunnel in the pod says that it comes from.
            world.internet.ip(&["route", "add", "10.79.0.0/24", "via", v4])?;
            world.internet.ip(&["-6", "route", "add", "2001:db8:78::/64", "via", v6])?;
        }
        Ok(Self { namespace })
    }

    /// Runs a program in the pod to its end, not intercepted.
    ///
    /// # Errors
    /// As [`World::output`].
    pub fn output(&self, world: &World, command: &[&str]) -> Result<Finished> {
        let name = self.namespace.name();
        let mut whole = world.command("ip");
        whole.args(["netns", "exec", name]).args(command);
        world.output(&mut whole, Duration::from_secs(20))
    }

    /// Lends a socket that `make` makes in the pod, outside every covered cgroup, to whoever connects to
    /// the unix socket at `path`.
    ///
    /// # Errors
    /// When the unix socket can't be made.
    pub fn lend(
        &self,
        path: &Path,
        make: impl FnOnce() -> Result<OwnedFd> + Send,
    ) -> Result<thread::JoinHandle<Result<()>>> {
        let lent = self.namespace.inside(make)??;
        let _ = fs::remove_file(path);
        let listener = UnixListener::bind(path).with_context(|| path.display().to_string())?;
        Ok(thread::spawn(move || {
            let (borrower, _) = listener.accept()?;
            let descriptors = [lent.as_raw_fd()];
            let rights = [ControlMessage::ScmRights(&descriptors)];
            let byte = [IoSlice::new(b"x")];
            sendmsg::<()>(borrower.as_raw_fd(), &byte, &rights, MsgFlags::empty(), None)?;
            Ok(())
        }))
    }
}

/// Makes a router of a namespace.
///
/// # Errors
/// When the settings can't be written.
pub fn forward(namespace: &Namespace) -> Result<()> {
    namespace.inside(|| {
        for setting in ["ipv4/ip_forward", "ipv6/conf/all/forwarding"] {
            let path = Path::new("/proc/sys/net").join(setting);
            fs::write(&path, "1").with_context(|| path.display().to_string())?;
        }
        Ok(())
    })?
}
