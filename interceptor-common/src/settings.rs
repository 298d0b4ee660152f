//! What user space tells every program.

/// The one element of `SETTINGS`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Settings {
    /// Cgroup ids of the daemon (the old one too during an upgrade); 0 = unused. Exempt, and
    /// tested before the namespace, since upstream sockets carry the workload's cookie.
    pub daemon_cgroups: [u64; 2],
    /// 1: in a namespace that is not known, datagrams and protocols are refused that nothing allows.
    pub refuse_datagrams: u32,
    /// Whose connections are not captured, by user or group id: Istio's proxy's (CAP-2) in istio.
    /// 0: nobody's.
    pub exempt_id: u32,
    /// How old the daemon's last sign of life in `HEARTBEAT` may be, in nanoseconds, where nothing may
    /// go direct without a daemon that lives (`onDaemonLoss: closed`). 0: it is not asked for.
    pub loss_limit_ns: u64,
    /// The first and the last level at which cgroups may lie that are known by
    /// [`Namespace::by_cgroup`](crate::Namespace::by_cgroup); the top is level 0. Zeros: none is.
    pub pod_levels: [u32; 2],
}

const _: () = assert!(size_of::<Settings>() == 40);
