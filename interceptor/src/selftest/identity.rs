//! Becoming somebody else, or moving elsewhere (T-8, T-9), and then an ordinary connect.

use std::fs;
use std::io;
use std::net::UdpSocket;
use std::os::fd::OwnedFd;

use nix::sched::{CloneFlags, unshare};
use nix::unistd::{Gid, Uid, chroot, setresgid, setresuid, setsid};

use super::borrowed::{Lender, Loan, borrow};
use super::sys;
use super::talk;
use super::udp::sent;
use super::way::{TCP, Target, UDP, Way, unlisted as way};
use crate::workloads::capture::PROXY_UID;
use crate::workloads::cgroup::Hierarchy;

pub(super) const WAYS: &[Way] = &[
    way("uid-proxy", 8, "as the uid of Istio's proxy", |t| {
        let uid = Uid::from_raw(PROXY_UID);
        setresuid(uid, uid, uid)?;
        tcp(t)
    }),
    way("gid-proxy", 8, "as the gid of Istio's proxy", |t| {
        let gid = Gid::from_raw(PROXY_UID);
        setresgid(gid, gid, gid)?;
        tcp(t)
    }),
    way("uid-daemon", 8, "as root", |t| {
        setresuid(Uid::from_raw(0), Uid::from_raw(0), Uid::from_raw(0))?;
        tcp(t)
    }),
    way("session", 9, "in a session of its own", |t| {
        setsid()?;
        tcp(t)
    }),
    way("daemonized", 9, "in an orphan of init's", |t| {
        sys::as_daemon(|| tcp(t).map(drop)).map(|()| "closed".to_owned())
    }),
    way("chroot", 9, "in a changed root", |t| {
        chroot("/")?;
        tcp(t)
    }),
    way("cgroup-child", 9, "in a child cgroup", |t| {
        let procs = borrow(Lender::Outside, Loan::CgroupProcs, false, t)?;
        io::Write::write_all(&mut fs::File::from(procs), b"0")?;
        tcp(t)
    }),
    way("cgroup-child-udp", 9, "UDP from a child cgroup", |t| {
        let procs = borrow(Lender::Outside, Loan::CgroupProcs, false, t)?;
        io::Write::write_all(&mut fs::File::from(procs), b"0")?;
        UdpSocket::bind("0.0.0.0:0")?.send_to(t.token(), t.canary(UDP)).map(|_| sent(()))
    }),
    way("cgroup-clone", 9, "cloned into a child cgroup (CLONE_INTO_CGROUP)", |t| {
        let cgroup: OwnedFd = borrow(Lender::Outside, Loan::Cgroup, false, t)?;
        sys::in_cgroup(&cgroup, || tcp(t).map(drop)).map(|()| "closed".to_owned())
    }),
    way("cgroup-leave", 9, "writes itself into the topmost cgroup, if it can", |t| {
        let hierarchy = Hierarchy::discover().map_err(io::Error::other)?;
        // Where it may not, it is where it was; what then leaves is judged all the same.
        let _ = fs::write(hierarchy.mount_point().join("cgroup.procs"), "0");
        tcp(t)
    }),
    way("cgroup-mount", 9, "mounts cgroups in a user namespace, leaves if it can", |t| {
        new_namespaces(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWCGROUP)?;
        leave_by_own_mount();
        tcp(t)
    }),
    way("userns", 9, "in a user namespace of its own", |t| {
        new_namespaces(CloneFlags::empty())?;
        tcp(t)
    }),
    way("userns-pid", 9, "in user, mount, IPC and UTS namespaces of its own", |t| {
        new_namespaces(
            CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWIPC | CloneFlags::CLONE_NEWUTS,
        )?;
        tcp(t)
    }),
    way("netns", 9, "in a network namespace of its own", |t| {
        new_namespaces(CloneFlags::CLONE_NEWNET)?;
        tcp(t)
    }),
    way("netns-old-socket", 9, "a socket from before a network namespace of its own", |t| {
        let socket = talk::tcp(t.canary(TCP))?;
        new_namespaces(CloneFlags::CLONE_NEWNET)?;
        Ok(talk::say(talk::connected(socket, t.canary(TCP))?, t.token()))
    }),
    way("netns-old-udp", 9, "a UDP socket from before it", |t| {
        let socket = UdpSocket::bind("0.0.0.0:0")?;
        new_namespaces(CloneFlags::CLONE_NEWNET)?;
        socket.send_to(t.token(), t.canary(UDP)).map(|_| sent(()))
    }),
    way("userns-raw", 6, "a raw socket with the capabilities of a user namespace", |t| {
        new_namespaces(CloneFlags::empty())?;
        let socket = sys::socket(libc::AF_INET, libc::SOCK_RAW, libc::IPPROTO_RAW)?;
        let to = sys::address_bytes((t.canary4, 0).into());
        sys::send_to(&socket, &super::raw::packet4(t), 0, &to).map(sent)
    }),
    way("userns-packet", 6, "a packet socket with the capabilities of a user namespace", |t| {
        new_namespaces(CloneFlags::empty())?;
        let socket = sys::socket(libc::AF_PACKET, libc::SOCK_DGRAM, 0)?;
        super::raw::send_frame(&socket, super::raw::ETHERTYPE_IPV4, &super::raw::packet4(t), t)
    }),
];

fn tcp(t: &Target) -> io::Result<String> {
    talk::tell(t.canary(TCP), t.token())
}

/// A user namespace, with these beside it.
fn new_namespaces(more: CloneFlags) -> io::Result<()> {
    Ok(unshare(CloneFlags::CLONE_NEWUSER | more)?)
}

/// Mounts cgroup2 anew, where that is allowed, and tries to leave by it.
fn leave_by_own_mount() {
    use nix::mount::{MsFlags, mount};
    let none: Option<&str> = None;
    let at = "/tmp";
    let private = MsFlags::MS_PRIVATE | MsFlags::MS_REC;
    let mounted = mount(none, "/", none, private, none)
        .and_then(|()| mount(Some("none"), at, Some("cgroup2"), MsFlags::empty(), none));
    if mounted.is_ok() {
        for above in ["../../..", "../..", "..", "."] {
            let _ = fs::write(format!("{at}/{above}/cgroup.procs"), "0");
        }
    }
}
