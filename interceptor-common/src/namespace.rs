//! Network namespaces that are known: covered ones with their listeners and routes, and exempt ones. And
//! pods that are known by their cgroup, since the node's namespace is not theirs alone.

/// A known namespace. In one whose cookie has no entry, connections are refused. Under
/// [`Namespace::by_cgroup`] it is a pod's cgroup, whose entry goes before that of an exempt namespace.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Namespace {
    /// Port of the listeners on 127.0.0.1 and its neighbours, host order; 0: IPv4 is refused.
    pub port_v4: u16,
    /// Port of the listener on `::1`, host order; 0: IPv6 is refused.
    pub port_v6: u16,
    /// How many loopback addresses listen, from 127.0.0.1 on. More than one, so that a single
    /// destination does not exhaust the source ports of one address pair.
    pub v4_listeners: u8,
    /// [`Namespace::COVERED`] or [`Namespace::EXEMPT`]; any other number is the former.
    pub kind: u8,
    /// Whose rows in `ENDPOINTS` and `DATAGRAMS` are asked; 0: nobody's, everything goes to the proxy.
    pub policy: u16,
    /// [`Namespace::OPEN`], [`Namespace::PARTLY_CAPTURED`], [`Namespace::REROUTES`] and [`Namespace::AUDIT`].
    pub flags: u8,
    /// Always zero.
    pub pad: u8,
}

const _: () = assert!(size_of::<Namespace>() == 10);

impl Namespace {
    /// What leaves it is judged. Without a port of either family it is known and not served yet:
    /// everything is refused.
    pub const COVERED: u8 = 0;
    /// What leaves it passes, as the daemon's own does.
    pub const EXEMPT: u8 = 1;

    /// In [`Namespace::flags`]: datagrams, and sockets that are neither TCP nor UDP, pass.
    pub const OPEN: u8 = 1;
    /// In [`Namespace::flags`]: rows of `ENDPOINTS` under [`EndpointKey::CAPTURE`] say which
    /// destinations are not captured.
    ///
    /// [`EndpointKey::CAPTURE`]: crate::EndpointKey::CAPTURE
    pub const PARTLY_CAPTURED: u8 = 2;
    /// In [`Namespace::flags`]: policy may lead connections elsewhere than where they were dialled, so
    /// [`Route::BY_POLICY`] counts.
    pub const REROUTES: u8 = 4;
    /// In [`Namespace::flags`]: nothing is refused. What would be goes to the proxy, or passes, and is told.
    pub const AUDIT: u8 = 8;

    /// The key of what is known of a cgroup (a number of the kernel's, which uses no such high ones): no
    /// namespace's cookie, which are counted from one.
    #[inline(always)]
    pub const fn by_cgroup(id: u64) -> u64 {
        id | BY_CGROUP
    }

    /// Whether a key is a cgroup's.
    #[inline(always)]
    pub const fn is_by_cgroup(key: u64) -> bool {
        key & BY_CGROUP != 0
    }

    /// Whether what leaves it passes.
    #[inline(always)]
    pub const fn is_exempt(&self) -> bool {
        self.kind == Self::EXEMPT
    }

    /// Whether it is covered, and what would be refused passes.
    #[inline(always)]
    pub const fn is_audited(&self) -> bool {
        !self.is_exempt() && self.flags & Self::AUDIT != 0
    }

    /// Whether it is covered and nobody listens for it yet.
    #[inline(always)]
    pub const fn is_unserved(&self) -> bool {
        self.port_v4 == 0 && self.port_v6 == 0
    }
}

const BY_CGROUP: u64 = 1 << 63;

/// Key of a route: the namespace and family match exactly, the address by prefix.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RouteKey {
    netns: [u8; 8],
    family: [u8; 4],
    addr: [u8; 16],
}

const _: () = assert!(size_of::<RouteKey>() == 28);

impl RouteKey {
    /// Bits in front of the address.
    pub const FIXED_BITS: u32 = 96;

    /// A v4 address (in network order) in a namespace.
    #[inline(always)]
    pub const fn v4(netns: u64, a: [u8; 4]) -> Self {
        let addr = [a[0], a[1], a[2], a[3], 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        Self { netns: netns.to_ne_bytes(), family: [4, 0, 0, 0], addr }
    }

    /// The namespace's cookie.
    pub const fn netns(&self) -> u64 {
        u64::from_ne_bytes(self.netns)
    }

    /// A v6 address (in network order) in a namespace.
    #[inline(always)]
    pub const fn v6(netns: u64, addr: [u8; 16]) -> Self {
        Self { netns: netns.to_ne_bytes(), family: [6, 0, 0, 0], addr }
    }
}

/// Where a route leads, as far as connect needs it.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Route {
    /// Source address that the namespace's routing chooses (v4-mapped for IPv4).
    pub src: [u8; 16],
    /// [`Route::VIA`], [`Route::LOCAL`], [`Route::UNREACHABLE`] or [`Route::BY_POLICY`].
    pub kind: u8,
    /// Always zero.
    pub pad: [u8; 3],
}

const _: () = assert!(size_of::<Route>() == 20);

impl Route {
    /// Out of the namespace.
    pub const VIA: u8 = 0;
    /// To an address of the namespace itself.
    pub const LOCAL: u8 = 1;
    /// The namespace's routing says unreachable.
    pub const UNREACHABLE: u8 = 2;
    /// No route of the namespace leads there. Connections that policy leads elsewhere have this source.
    pub const BY_POLICY: u8 = 3;
}
