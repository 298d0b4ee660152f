//! The hooks: which program attaches where, and since when kernels have it.

/// What a program is attached to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// The covered cgroups.
    Workload,
    /// The daemon's own cgroup.
    Daemon,
    /// The daemon's ends of covered namespaces' veths.
    Interface,
}

/// Program type, as far as loading differs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// `BPF_PROG_TYPE_CGROUP_SOCK_ADDR`.
    SockAddr,
    /// `BPF_PROG_TYPE_CGROUP_SOCKOPT`.
    Sockopt,
    /// `BPF_PROG_TYPE_CGROUP_SOCK`.
    Sock,
    /// `BPF_PROG_TYPE_SOCK_OPS`.
    SockOps,
    /// `BPF_PROG_TYPE_CGROUP_SKB`.
    Skb,
    /// `BPF_PROG_TYPE_SCHED_CLS`.
    Classifier,
}

/// One program at one attach point.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hook {
    /// Name of the program in the object.
    pub program: &'static str,
    /// Name of the hook, as `bpftool cgroup tree` shows it; also the pin's name.
    pub name: &'static str,
    /// `enum bpf_attach_type` of the kernel's UAPI.
    pub attach_type: u32,
    /// How to load it.
    pub kind: Kind,
    /// Where it goes.
    pub side: Side,
    /// First kernel that has it, with every helper that the program calls there.
    pub since: (u32, u32),
}

const fn hook(
    program: &'static str,
    name: &'static str,
    attach_type: u32,
    kind: Kind,
    side: Side,
    since: (u32, u32),
) -> Hook {
    Hook { program, name, attach_type, kind, side, since }
}

/// Every hook. The order is the order of attaching: what only observes or answers comes before
/// what redirects, and the daemon's side of the hand-over before the workload's. The interface layer
/// comes before what lets packets out to it.
pub const HOOKS: &[Hook] = &[
    hook("ix_daemon_ops", "daemon_sock_ops", 3, Kind::SockOps, Side::Daemon, (5, 15)),
    hook("ix_getsockopt", "daemon_getsockopt", 21, Kind::Sockopt, Side::Daemon, (5, 3)),
    hook("ix_interface_in", "interface_in", 47, Kind::Classifier, Side::Interface, (6, 6)),
    hook("ix_interface_out", "interface_out", 46, Kind::Classifier, Side::Interface, (6, 6)),
    hook("ix_workload_ops", "sock_ops", 3, Kind::SockOps, Side::Workload, (5, 15)),
    hook("ix_getsockopt", "getsockopt", 21, Kind::Sockopt, Side::Workload, (5, 3)),
    hook("ix_getpeername4", "getpeername4", 29, Kind::SockAddr, Side::Workload, (5, 8)),
    hook("ix_getpeername6", "getpeername6", 30, Kind::SockAddr, Side::Workload, (5, 8)),
    hook("ix_getsockname4", "getsockname4", 31, Kind::SockAddr, Side::Workload, (5, 8)),
    hook("ix_getsockname6", "getsockname6", 32, Kind::SockAddr, Side::Workload, (5, 8)),
    hook("ix_ingress", "ingress", 0, Kind::Skb, Side::Workload, (5, 7)),
    hook("ix_egress", "egress", 1, Kind::Skb, Side::Workload, (5, 7)),
    hook("ix_sock_create", "sock_create", 2, Kind::Sock, Side::Workload, (5, 7)),
    hook("ix_sendmsg4", "sendmsg4", 14, Kind::SockAddr, Side::Workload, (5, 15)),
    hook("ix_sendmsg6", "sendmsg6", 15, Kind::SockAddr, Side::Workload, (5, 15)),
    hook("ix_connect4", "connect4", 10, Kind::SockAddr, Side::Workload, (5, 15)),
    hook("ix_connect6", "connect6", 11, Kind::SockAddr, Side::Workload, (5, 15)),
];
