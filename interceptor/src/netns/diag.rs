//! Connected sockets of a namespace, listed and ended through NETLINK_SOCK_DIAG (sock_diag(7)). What
//! goes direct has no end in the daemon, so this is the only way to end it.

use std::io::{self, ErrorKind};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsRawFd, OwnedFd};

use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, recv, sendto,
    setsockopt, socket, sockopt,
};
use nix::sys::time::TimeVal;

use super::NetNs;

/// A socket with a peer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Connected {
    /// TCP or UDP.
    pub transport: Transport,
    /// Its own end.
    pub local: SocketAddr,
    /// The other end; a v4-mapped address as IPv4.
    pub peer: SocketAddr,
    /// The cgroup that it was made in.
    pub cgroup: u64,
    family: u8,
    /// What the kernel calls it by: ends, interface and cookie.
    id: [u8; ID],
}

/// What a socket speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    /// A stream.
    Tcp,
    /// Datagrams.
    Udp,
}

/// A handle to the sockets of one namespace.
#[derive(Debug)]
pub struct Diag {
    netlink: OwnedFd,
}

const SOCK_DIAG_BY_FAMILY: u16 = 20;
const SOCK_DESTROY: u16 = 21;
const REQUEST: u16 = 1;
const ACK: u16 = 4;
const DUMP: u16 = 0x300;
const ERROR: u16 = 2;
const DONE: u16 = 3;
const INET_DIAG_CGROUP_ID: u16 = 21;

/// Sizes of nlmsghdr, inet_diag_sockid, inet_diag_req_v2 and inet_diag_msg.
const HEADER: usize = 16;
const ID: usize = 48;
const ASK: usize = 8 + ID;
const MESSAGE: usize = 4 + ID + 20;

/// Established, connecting, and closing in any way that still moves bytes; by TCP's state numbers.
const STATES: u32 = 1 << 1 | 1 << 2 | 1 << 4 | 1 << 5 | 1 << 8 | 1 << 9 | 1 << 11;

impl Diag {
    /// Opens the handle.
    ///
    /// # Errors
    /// The namespace cannot be entered, or the kernel has no sock_diag.
    pub fn open(netns: &NetNs) -> io::Result<Self> {
        let netlink = netns.run(|| {
            socket(
                AddressFamily::Netlink,
                SockType::Raw,
                SockFlag::SOCK_CLOEXEC,
                SockProtocol::NetlinkSockDiag,
            )
        })??;
        // The kernel answers at once; a lost answer must not hang the caller.
        setsockopt(&netlink, sockopt::ReceiveTimeout, &TimeVal::new(2, 0))?;
        Ok(Self { netlink })
    }

    /// Every socket of `transport` that has a peer.
    ///
    /// # Errors
    /// Netlink's.
    pub fn connected(&self, transport: Transport) -> io::Result<Vec<Connected>> {
        let mut found = Vec::new();
        for family in [libc::AF_INET, libc::AF_INET6] {
            let ask = ask(family as u8, transport, STATES, &[0; ID]);
            self.send(SOCK_DIAG_BY_FAMILY, REQUEST | DUMP, &ask)?;
            self.answers(|body| found.extend(read(transport, body)))?;
        }
        Ok(found)
    }

    /// Ends a socket: its owner gets ECONNABORTED, a TCP peer a reset. One that is gone is no error.
    ///
    /// # Errors
    /// The kernel cannot (CONFIG_INET_DIAG_DESTROY).
    pub fn destroy(&self, socket: &Connected) -> io::Result<()> {
        let ask = ask(socket.family, socket.transport, STATES, &socket.id);
        self.send(SOCK_DESTROY, REQUEST | ACK, &ask)?;
        match self.answers(|_| {}) {
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(()),
            result => result,
        }
    }

    fn send(&self, kind: u16, flags: u16, body: &[u8]) -> io::Result<()> {
        let length = u32::try_from(HEADER + body.len()).unwrap_or(u32::MAX);
        let mut message = Vec::with_capacity(HEADER + body.len());
        message.extend(length.to_ne_bytes());
        message.extend(kind.to_ne_bytes());
        message.extend(flags.to_ne_bytes());
        message.extend([0; 8]);
        message.extend(body);
        let kernel = NetlinkAddr::new(0, 0);
        sendto(self.netlink.as_raw_fd(), &message, &kernel, MsgFlags::empty())?;
        Ok(())
    }

    /// Hands over the body of each answer until the last one.
    fn answers(&self, mut each: impl FnMut(&[u8])) -> io::Result<()> {
        let mut buffer = vec![0; 64 * 1024];
        loop {
            let length = recv(self.netlink.as_raw_fd(), &mut buffer, MsgFlags::empty())?;
            let mut rest = buffer.get(..length).unwrap_or_default();
            while !rest.is_empty() {
                let (kind, body, after) = split(rest).ok_or(ErrorKind::InvalidData)?;
                rest = after;
                match kind {
                    DONE => return Ok(()),
                    ERROR => {
                        let code = body.first_chunk().map_or(0, |code| i32::from_ne_bytes(*code));
                        return match code {
                            0 => Ok(()),
                            code => Err(io::Error::from_raw_os_error(-code)),
                        };
                    }
                    _ => each(body),
                }
            }
        }
    }
}

/// A message's kind and body, and what follows it.
fn split(bytes: &[u8]) -> Option<(u16, &[u8], &[u8])> {
    let length = u32::from_ne_bytes(*bytes.first_chunk()?) as usize;
    let kind = u16::from_ne_bytes([*bytes.get(4)?, *bytes.get(5)?]);
    let body = bytes.get(HEADER..length)?;
    Some((kind, body, bytes.get(length.next_multiple_of(4)..).unwrap_or_default()))
}

/// An inet_diag_req_v2.
fn ask(family: u8, transport: Transport, states: u32, id: &[u8; ID]) -> [u8; ASK] {
    let protocol = match transport {
        Transport::Tcp => libc::IPPROTO_TCP,
        Transport::Udp => libc::IPPROTO_UDP,
    };
    let mut ask = [0; ASK];
    ask[0] = family;
    ask[1] = protocol as u8;
    ask[4..8].copy_from_slice(&states.to_ne_bytes());
    ask[8..].copy_from_slice(id);
    ask
}

/// An inet_diag_msg with its attributes. A socket whose cgroup is not told has number 0.
fn read(transport: Transport, body: &[u8]) -> Option<Connected> {
    let family = *body.first()?;
    let id: [u8; ID] = *body.get(4..)?.first_chunk()?;
    let port = |at: usize| u16::from_be_bytes([id[at], id[at + 1]]);
    let address = |at: usize| -> IpAddr {
        let mut sixteen = [0; 16];
        sixteen.copy_from_slice(&id[at..at + 16]);
        match i32::from(family) {
            libc::AF_INET => Ipv4Addr::new(id[at], id[at + 1], id[at + 2], id[at + 3]).into(),
            _ => IpAddr::from(Ipv6Addr::from(sixteen)).to_canonical(),
        }
    };
    let mut cgroup = 0;
    let mut attributes = body.get(MESSAGE..).unwrap_or_default();
    while let [a, b, c, d, ..] = *attributes {
        let length = usize::from(u16::from_ne_bytes([a, b]));
        if u16::from_ne_bytes([c, d]) == INET_DIAG_CGROUP_ID
            && let Some(number) = attributes.get(4..).and_then(<[u8]>::first_chunk)
        {
            cgroup = u64::from_ne_bytes(*number);
        }
        // A length below that of its own header would never end.
        let next = length.max(4).next_multiple_of(4);
        attributes = attributes.get(next..).unwrap_or_default();
    }
    Some(Connected {
        transport,
        local: SocketAddr::new(address(4), port(0)),
        peer: SocketAddr::new(address(20), port(2)),
        cgroup,
        family,
        id,
    })
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;
    use std::net::{TcpListener, TcpStream, UdpSocket};

    use super::*;

    /// Needs no privilege to list; the cgroup is the one that this process is in.
    #[test]
    fn connected_sockets_are_listed_with_both_ends() {
        let diag = Diag::open(&NetNs::current().expect("a namespace")).expect("sock_diag");
        let listener = TcpListener::bind("127.0.0.1:0").expect("bound");
        let client = TcpStream::connect(listener.local_addr().expect("bound")).expect("connected");
        let (local, peer) = (client.local_addr().expect("ends"), client.peer_addr().expect("ends"));
        let found = diag.connected(Transport::Tcp).expect("listed");
        let own = found.iter().find(|socket| socket.local == local).expect("ours");
        assert_eq!(own.peer, peer);
        assert_ne!(own.cgroup, 0);

        let udp = UdpSocket::bind("[::1]:0").expect("bound");
        let mine = |found: &[Connected]| {
            let local = udp.local_addr().expect("bound");
            found.iter().find(|socket| socket.local == local).map(|socket| socket.peer)
        };
        assert_eq!(mine(&diag.connected(Transport::Udp).expect("listed")), None, "no peer yet");
        udp.connect("[::1]:9").expect("connected");
        let peer = "[::1]:9".parse().expect("an address");
        assert_eq!(mine(&diag.connected(Transport::Udp).expect("listed")), Some(peer));
    }

    #[test]
    fn a_destroyed_socket_is_aborted_and_again_is_no_error() {
        if !nix::unistd::geteuid().is_root() {
            eprintln!("NOT TESTED: needs root");
            return;
        }
        let diag = Diag::open(&NetNs::current().expect("a namespace")).expect("sock_diag");
        let listener = TcpListener::bind("127.0.0.1:0").expect("bound");
        let mut client =
            TcpStream::connect(listener.local_addr().expect("bound")).expect("connected");
        let local = client.local_addr().expect("ends");
        let found = diag.connected(Transport::Tcp).expect("listed");
        let own = found.iter().find(|socket| socket.local == local).expect("ours");
        diag.destroy(own).expect("destroyed");
        let error = client.read(&mut [0; 1]).expect_err("aborted");
        assert_eq!(error.kind(), ErrorKind::ConnectionAborted);
        diag.destroy(own).expect("gone already");
    }
}
