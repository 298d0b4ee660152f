//! Connected sockets of a namespace, listed and ended through NETLINK_SOCK_DIAG (sock_diag(7)). What
//! goes direct has no end in the daemon, so this is the only way to end it.

use std::io::{self, ErrorKind};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::sync::{Mutex, MutexGuard, PoisonError};

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
    /// Its number in the socket file system, by which processes hold it; 0: none does.
    pub inode: u32,
    /// Whether its SYN is not answered yet.
    pub connecting: bool,
    /// What BPF programs keep in it, in the maps that were asked for.
    pub storage: Vec<Vec<u8>>,
    family: u8,
    /// What the kernel calls it by: ends, interface and cookie.
    id: [u8; ID],
}

impl Connected {
    /// The kernel's number for it: never another socket's while the machine runs.
    pub fn cookie(&self) -> u64 {
        let word = |at: usize| u32::from_ne_bytes([0, 1, 2, 3].map(|byte| self.id[at + byte]));
        u64::from(word(40)) | u64::from(word(44)) << 32
    }
}

/// What a socket speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    /// A stream.
    Tcp,
    /// Datagrams.
    Udp,
}

/// What became of a socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Destroyed {
    /// Its owner has ECONNABORTED, a TCP peer a reset.
    Now,
    /// It was gone already.
    Before,
}

/// A handle to the sockets of one namespace.
#[derive(Debug)]
pub struct Diag {
    /// One question at a time, or answers would be mixed up.
    netlink: Mutex<OwnedFd>,
}

const SOCK_DIAG_BY_FAMILY: u16 = 20;
const SOCK_DESTROY: u16 = 21;
const REQUEST: u16 = 1;
const ACK: u16 = 4;
const DUMP: u16 = 0x300;
const ERROR: u16 = 2;
const DONE: u16 = 3;
const INET_DIAG_SK_BPF_STORAGES: u16 = 20;
const INET_DIAG_CGROUP_ID: u16 = 21;
const INET_DIAG_REQ_SK_BPF_STORAGES: u16 = 2;
const SK_DIAG_BPF_STORAGE_REQ_MAP_FD: u16 = 1;
const SK_DIAG_BPF_STORAGE: u16 = 1;
const SK_DIAG_BPF_STORAGE_MAP_VALUE: u16 = 3;
const NESTED: u16 = 0x8000;

/// Sizes of nlmsghdr, inet_diag_sockid, inet_diag_req_v2 and inet_diag_msg.
const HEADER: usize = 16;
const ID: usize = 48;
const ASK: usize = 8 + ID;
const MESSAGE: usize = 4 + ID + 20;
/// Where an inet_diag_msg has the socket's inode.
const INODE: usize = 4 + ID + 16;

const SYN_SENT: u8 = 2;

/// Established, connecting, and closing in any way that still moves bytes; by TCP's state numbers.
const STATES: u32 = 1 << 1 | 1 << SYN_SENT | 1 << 4 | 1 << 5 | 1 << 8 | 1 << 9 | 1 << 11;

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
        Ok(Self { netlink: Mutex::new(netlink) })
    }

    /// Makes sure that the kernel ends sockets on demand.
    ///
    /// # Errors
    /// `EOPNOTSUPP`: it was built without that (CONFIG_INET_DIAG_DESTROY).
    pub fn require_destroy(&self) -> io::Result<()> {
        // Nobody has this socket: "there is none" is the answer of a kernel that would.
        let nobody = SocketAddr::from(([127, 0, 0, 1], 1));
        self.destroy_tcp(nobody, nobody, u64::MAX).map(drop)
    }

    /// Every socket of `transport` that has a peer, with what it keeps for the socket-storage maps
    /// `maps`.
    ///
    /// # Errors
    /// Netlink's; before Linux 5.7 it knows no socket storage.
    pub fn connected(
        &self,
        transport: Transport,
        maps: &[BorrowedFd<'_>],
    ) -> io::Result<Vec<Connected>> {
        let mut found = Vec::new();
        let netlink = self.netlink();
        for family in [libc::AF_INET, libc::AF_INET6] {
            let mut request = ask(family as u8, transport, STATES, &[0; ID]).to_vec();
            if !maps.is_empty() {
                let descriptor = |map: &BorrowedFd<'_>| {
                    attribute(SK_DIAG_BPF_STORAGE_REQ_MAP_FD, &map.as_raw_fd().to_ne_bytes())
                };
                let wanted: Vec<u8> = maps.iter().flat_map(descriptor).collect();
                request.extend(attribute(INET_DIAG_REQ_SK_BPF_STORAGES | NESTED, &wanted));
            }
            send(&netlink, SOCK_DIAG_BY_FAMILY, REQUEST | DUMP, &request)?;
            answers(&netlink, |body| found.extend(read(transport, body)))?;
        }
        Ok(found)
    }

    /// Ends a socket that was listed.
    ///
    /// # Errors
    /// The kernel cannot (CONFIG_INET_DIAG_DESTROY).
    pub fn destroy(&self, socket: &Connected) -> io::Result<Destroyed> {
        self.end(&ask(socket.family, socket.transport, STATES, &socket.id))
    }

    /// Ends the TCP socket with this cookie between these ends.
    ///
    /// # Errors
    /// As [`Self::destroy`].
    pub fn destroy_tcp(
        &self,
        src: SocketAddr,
        dst: SocketAddr,
        cookie: u64,
    ) -> io::Result<Destroyed> {
        let family = if src.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
        self.end(&ask(family as u8, Transport::Tcp, u32::MAX, &id(src, dst, cookie)))
    }

    fn end(&self, ask: &[u8; ASK]) -> io::Result<Destroyed> {
        let netlink = self.netlink();
        send(&netlink, SOCK_DESTROY, REQUEST | ACK, ask)?;
        match answers(&netlink, |_| {}) {
            Ok(()) => Ok(Destroyed::Now),
            // No such socket, another one, or one that nobody listens to any more.
            Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ESTALE)) => {
                Ok(Destroyed::Before)
            }
            Err(error) => Err(error),
        }
    }

    fn netlink(&self) -> MutexGuard<'_, OwnedFd> {
        self.netlink.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn send(netlink: &OwnedFd, kind: u16, flags: u16, body: &[u8]) -> io::Result<()> {
    let length = u32::try_from(HEADER + body.len()).unwrap_or(u32::MAX);
    let mut message = Vec::with_capacity(HEADER + body.len());
    message.extend(length.to_ne_bytes());
    message.extend(kind.to_ne_bytes());
    message.extend(flags.to_ne_bytes());
    message.extend([0; 8]);
    message.extend(body);
    let kernel = NetlinkAddr::new(0, 0);
    sendto(netlink.as_raw_fd(), &message, &kernel, MsgFlags::empty())?;
    Ok(())
}

/// Hands over the body of each answer until the last one.
fn answers(netlink: &OwnedFd, mut each: impl FnMut(&[u8])) -> io::Result<()> {
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let length = recv(netlink.as_raw_fd(), &mut buffer, MsgFlags::empty())?;
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

/// A message's kind and body, and what follows it.
fn split(bytes: &[u8]) -> Option<(u16, &[u8], &[u8])> {
    let length = u32::from_ne_bytes(*bytes.first_chunk()?) as usize;
    let kind = u16::from_ne_bytes([*bytes.get(4)?, *bytes.get(5)?]);
    let body = bytes.get(HEADER..length)?;
    Some((kind, body, bytes.get(length.next_multiple_of(4)..).unwrap_or_default()))
}

/// An attribute, padded.
fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let length = 4 + value.len();
    let mut bytes = Vec::with_capacity(length.next_multiple_of(4));
    bytes.extend((length as u16).to_ne_bytes());
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(value);
    bytes.resize(length.next_multiple_of(4), 0);
    bytes
}

/// Kind and value of each attribute in `rest`.
fn attributes(mut rest: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let [a, b, c, d, ..] = *rest else { return None };
        let length = usize::from(u16::from_ne_bytes([a, b]));
        let value = rest.get(4..length)?;
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((u16::from_ne_bytes([c, d]) & !NESTED, value))
    })
}

/// An inet_diag_sockid, for any interface.
fn id(src: SocketAddr, dst: SocketAddr, cookie: u64) -> [u8; ID] {
    let mut id = [0; ID];
    id[..2].copy_from_slice(&src.port().to_be_bytes());
    id[2..4].copy_from_slice(&dst.port().to_be_bytes());
    id[4..20].copy_from_slice(&address(src.ip()));
    id[20..36].copy_from_slice(&address(dst.ip()));
    id[40..44].copy_from_slice(&(cookie as u32).to_ne_bytes());
    id[44..].copy_from_slice(&((cookie >> 32) as u32).to_ne_bytes());
    id
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
    let mut storage = Vec::new();
    for (kind, value) in attributes(body.get(MESSAGE..).unwrap_or_default()) {
        match kind {
            INET_DIAG_CGROUP_ID => cgroup = u64::from_ne_bytes(*value.first_chunk()?),
            INET_DIAG_SK_BPF_STORAGES => {
                let each = attributes(value).filter(|(kind, _)| *kind == SK_DIAG_BPF_STORAGE);
                let values = each.flat_map(|(_, one)| attributes(one));
                let values = values.filter(|(kind, _)| *kind == SK_DIAG_BPF_STORAGE_MAP_VALUE);
                storage.extend(values.map(|(_, value)| value.to_vec()));
            }
            _ => {}
        }
    }
    Some(Connected {
        transport,
        local: SocketAddr::new(address(4), port(0)),
        peer: SocketAddr::new(address(20), port(2)),
        cgroup,
        inode: u32::from_ne_bytes(*body.get(INODE..)?.first_chunk()?),
        connecting: *body.get(1)? == SYN_SENT,
        storage,
        family,
        id,
    })
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;
    use std::net::{TcpListener, TcpStream, UdpSocket};

    use super::*;

    #[expect(unsafe_code, reason = "no crate in use wraps SO_COOKIE")]
    fn cookie_of(stream: &TcpStream) -> u64 {
        let (mut cookie, mut len) = (0_u64, size_of::<u64>() as libc::socklen_t);
        // SAFETY: `cookie` and `len` outlive the call and `len` states the size of `cookie`.
        let result = unsafe {
            libc::getsockopt(
                stream.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_COOKIE,
                (&raw mut cookie).cast(),
                &raw mut len,
            )
        };
        assert_eq!(result, 0);
        cookie
    }

    /// Needs no privilege to list; the cgroup is the one that this process is in.
    #[test]
    fn connected_sockets_are_listed_with_both_ends() {
        let diag = Diag::open(&NetNs::current().expect("a namespace")).expect("sock_diag");
        let listener = TcpListener::bind("127.0.0.1:0").expect("bound");
        let client = TcpStream::connect(listener.local_addr().expect("bound")).expect("connected");
        let (local, peer) = (client.local_addr().expect("ends"), client.peer_addr().expect("ends"));
        let found = diag.connected(Transport::Tcp, &[]).expect("listed");
        let own = found.iter().find(|socket| socket.local == local).expect("ours");
        assert_eq!(own.peer, peer);
        assert_ne!(own.cgroup, 0);
        assert!(!own.connecting);
        let link = format!("/proc/self/fd/{}", client.as_raw_fd());
        let link = std::fs::read_link(link).expect("open");
        assert_eq!(link.to_string_lossy(), format!("socket:[{}]", own.inode));
        assert_eq!(own.cookie(), cookie_of(&client));

        let udp = UdpSocket::bind("[::1]:0").expect("bound");
        let mine = |found: &[Connected]| {
            let local = udp.local_addr().expect("bound");
            found.iter().find(|socket| socket.local == local).map(|socket| socket.peer)
        };
        assert_eq!(
            mine(&diag.connected(Transport::Udp, &[]).expect("listed")),
            None,
            "no peer yet"
        );
        udp.connect("[::1]:9").expect("connected");
        let peer = "[::1]:9".parse().expect("an address");
        assert_eq!(mine(&diag.connected(Transport::Udp, &[]).expect("listed")), Some(peer));
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
        let found = diag.connected(Transport::Tcp, &[]).expect("listed");
        let own = found.iter().find(|socket| socket.local == local).expect("ours");
        assert_eq!(diag.destroy(own).expect("an answer"), Destroyed::Now);
        let error = client.read(&mut [0; 1]).expect_err("aborted");
        assert_eq!(error.kind(), ErrorKind::ConnectionAborted);
        assert_eq!(diag.destroy(own).expect("an answer"), Destroyed::Before);
        diag.require_destroy().expect("it could");
    }

    #[test]
    fn the_request_has_the_kernels_layout() {
        let src = SocketAddr::from(([10, 0, 0, 1], 0x1234));
        let dst = SocketAddr::from(([192, 0, 2, 7], 443));
        let id = id(src, dst, 0x0102_0304_0506_0708);
        let ask = ask(libc::AF_INET as u8, Transport::Tcp, u32::MAX, &id);
        assert_eq!(ask[..8], [libc::AF_INET as u8, 6, 0, 0, 255, 255, 255, 255]);
        assert_eq!(ask[8..12], [0x12, 0x34, 1, 187]);
        assert_eq!(ask[12..20], [10, 0, 0, 1, 0, 0, 0, 0]);
        assert_eq!(ask[28..32], [192, 0, 2, 7]);
        assert_eq!(ask[48..52], 0x0506_0708_u32.to_ne_bytes());
        assert_eq!(ask[52..56], 0x0102_0304_u32.to_ne_bytes());
    }
}
