//! One upstream socket: made in the workload's namespace, connected from ours; or a unix socket.

use std::io;
use std::net::SocketAddr;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, OFlag, OpenHow, ResolveFlag, openat2};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
use socket2::{SockRef, TcpKeepalive};
use tokio::net::{TcpSocket, TcpStream, UnixStream};

use crate::descriptors;
use crate::netns::NetNs;

/// Dead upstreams are noticed after 60 s + 6 x 10 s of silence: the workload's own keep-alive only
/// sees the leg to us.
const KEEPALIVE: TcpKeepalive = TcpKeepalive::new()
    .with_time(Duration::from_secs(60))
    .with_interval(Duration::from_secs(10))
    .with_retries(6);

/// Connects to `address` from `netns`. A socket stays in the namespace where it was made, so only
/// its making happens there.
///
/// # Errors
/// As of setns(2), socket(2) and connect(2); EMFILE also where only the daemon's own descriptors are
/// left (T-50).
pub(super) async fn connect(netns: &NetNs, address: SocketAddr) -> io::Result<TcpStream> {
    let family = if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let fd = netns.run(|| socket(family, SockType::Stream, flags, None))??;
    if descriptors::is_reserved(&fd) {
        descriptors::refused();
        return Err(Errno::EMFILE.into());
    }
    let socket = SockRef::from(&fd);
    socket.set_tcp_nodelay(true)?;
    socket.set_tcp_keepalive(&KEEPALIVE)?;
    TcpSocket::from_std_stream(fd.into()).connect(address).await
}

/// Connects to the unix socket at `path`. No part of the path may be a symbolic link: whoever can
/// write there would choose what the daemon, with its rights, connects to.
///
/// # Errors
/// As of openat2(2) and connect(2); ELOOP: there is a link.
pub(super) async fn connect_unix(path: &Path) -> io::Result<UnixStream> {
    let how = OpenHow::new()
        .flags(OFlag::O_PATH | OFlag::O_CLOEXEC)
        .resolve(ResolveFlag::RESOLVE_NO_SYMLINKS);
    let found = openat2(AT_FDCWD, path, how)?;
    // What was found, whatever the path may mean by now.
    UnixStream::connect(format!("/proc/self/fd/{}", found.as_raw_fd())).await
}
