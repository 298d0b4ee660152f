//! Ending a workload's TCP connection from outside: SOCK_DESTROY over NETLINK_SOCK_DIAG (sock_diag(7)).
//! The workload gets ECONNABORTED, its peer a reset.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsRawFd, OwnedFd};

use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, recv, sendto, socket,
};

use super::NetNs;

const SOCK_DESTROY: u16 = 21;
const REQUEST_AND_ACK: u16 = 1 | 4;
const NLMSG_ERROR: u16 = 2;
const TCP: u8 = 6;
const ALL_STATES: u32 = u32::MAX;
const HEADER: usize = 16;
/// Of `struct inet_diag_req_v2`.
const REQUEST: usize = 56;

/// Destroys TCP sockets of one network namespace.
#[derive(Debug)]
pub struct Destroyer {
    netlink: OwnedFd,
}

/// What became of a socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Destroyed {
    /// It is.
    Now,
    /// It was gone already.
    Before,
}

impl Destroyer {
    /// Opens the door to a namespace's sockets, and makes sure that the kernel destroys any.
    ///
    /// # Errors
    /// `Unsupported`: this kernel was built without it (CONFIG_INET_DIAG_DESTROY).
    pub fn open(netns: &NetNs) -> io::Result<Self> {
        let netlink = netns.run(|| {
            socket(
                AddressFamily::Netlink,
                SockType::Datagram,
                SockFlag::SOCK_CLOEXEC,
                SockProtocol::NetlinkSockDiag,
            )
        })??;
        let destroyer = Self { netlink };
        // Nobody has this socket: "there is none" is the answer of a kernel that would destroy it.
        let nobody = SocketAddr::from(([127, 0, 0, 1], 1));
        match destroyer.destroy(nobody, nobody, u64::MAX) {
            Ok(_) => Ok(destroyer),
            Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => {
                Err(io::ErrorKind::Unsupported.into())
            }
            Err(error) => Err(error),
        }
    }

    /// Destroys the socket with this cookie between these ends.
    ///
    /// # Errors
    /// The kernel's.
    pub fn destroy(&self, src: SocketAddr, dst: SocketAddr, cookie: u64) -> io::Result<Destroyed> {
        let request = request(src, dst, cookie);
        let kernel = NetlinkAddr::new(0, 0);
        sendto(self.netlink.as_raw_fd(), &request, &kernel, MsgFlags::empty())?;
        // The kernel answers within the call that asks.
        let mut answer = [0; 256];
        let len = recv(self.netlink.as_raw_fd(), &mut answer, MsgFlags::MSG_DONTWAIT)?;
        let error = match (len >= HEADER + 4).then(|| read(&answer)) {
            Some((NLMSG_ERROR, error)) => -error,
            _ => return Err(io::Error::other("an answer that is none")),
        };
        match error {
            0 => Ok(Destroyed::Now),
            // No such socket, another one, or one that nobody listens to any more.
            libc::ENOENT | libc::ESTALE => Ok(Destroyed::Before),
            error => Err(io::Error::from_raw_os_error(error)),
        }
    }
}

/// Message type and error number of an answer.
fn read(answer: &[u8; 256]) -> (u16, i32) {
    let [.., a, b] = *answer.first_chunk::<6>().unwrap_or(&[0; 6]);
    let error = answer[HEADER..].first_chunk::<4>().unwrap_or(&[0; 4]);
    (u16::from_ne_bytes([a, b]), i32::from_ne_bytes(*error))
}

/// `struct nlmsghdr` and `struct inet_diag_req_v2` (linux/inet_diag.h).
fn request(src: SocketAddr, dst: SocketAddr, cookie: u64) -> Vec<u8> {
    let family = if src.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
    let mut message = Vec::with_capacity(HEADER + REQUEST);
    message.extend(((HEADER + REQUEST) as u32).to_ne_bytes());
    message.extend(SOCK_DESTROY.to_ne_bytes());
    message.extend(REQUEST_AND_ACK.to_ne_bytes());
    message.extend([0; 8]);
    message.extend([family as u8, TCP, 0, 0]);
    message.extend(ALL_STATES.to_ne_bytes());
    message.extend(src.port().to_be_bytes());
    message.extend(dst.port().to_be_bytes());
    message.extend(address(src.ip()));
    message.extend(address(dst.ip()));
    // Any interface.
    message.extend([0; 4]);
    message.extend((cookie as u32).to_ne_bytes());
    message.extend(((cookie >> 32) as u32).to_ne_bytes());
    message
}

fn address(ip: IpAddr) -> [u8; 16] {
    match ip {
        IpAddr::V4(ip) => {
            let mut bytes = [0; 16];
            bytes[..4].copy_from_slice(&ip.octets());
            bytes
        }
        IpAddr::V6(ip) => ip.octets(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_request_has_the_kernels_layout() {
        let src = SocketAddr::from(([10, 0, 0, 1], 0x1234));
        let dst = SocketAddr::from(([192, 0, 2, 7], 443));
        let message = request(src, dst, 0x0102_0304_0506_0708);
        assert_eq!(message.len(), HEADER + REQUEST);
        assert_eq!(message[16..24], [libc::AF_INET as u8, 6, 0, 0, 255, 255, 255, 255]);
        assert_eq!(message[24..28], [0x12, 0x34, 1, 187]);
        assert_eq!(message[28..36], [10, 0, 0, 1, 0, 0, 0, 0]);
        assert_eq!(message[44..48], [192, 0, 2, 7]);
        assert_eq!(message[64..68], 0x0506_0708_u32.to_ne_bytes());
        assert_eq!(message[68..72], 0x0102_0304_u32.to_ne_bytes());
    }
}
