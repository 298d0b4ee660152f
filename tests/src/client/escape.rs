//! Ways past the socket hooks: frames and packets made by hand, tunnels, sockets of others.

use std::fs::{self, OpenOptions};
use std::io::{self, IoSliceMut, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpStream, UdpSocket};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};
use socket2::{Domain, Socket, Type};

use super::error_name;

/// One way of getting a packet out. Each sends what its name says and prints `sent`, or the error's
/// name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Way {
    /// A TCP SYN and a datagram from a packet socket
    Packet,
    /// The same, past the queueing discipline
    PacketBypass,
    /// An ICMP echo request from a packet socket
    PacketEcho,
    /// A TCP reset from a packet socket
    PacketReset,
    /// 5,000 TCP SYNs from a packet socket, each to another port
    PacketFlood,
    /// The first fragment of a TCP SYN from a packet socket
    PacketFragment,
    /// A packet of protocol 253 from a raw socket
    Raw,
    /// A TCP SYN and a datagram from a raw socket, IP header included
    HeaderIncluded,
    /// A TCP SYN and a datagram out of a tunnel, forwarded
    Tunnel,
    /// An ICMP echo request from a raw socket
    Echo,
}

/// Where a frame made by hand goes first, and where it says it comes from.
#[derive(Clone, Debug, clap::Args)]
pub struct Frame {
    /// The address that it comes from
    #[arg(long)]
    from: Ipv4Addr,
    /// Link-layer address of the next hop, as six bytes with colons
    #[arg(long)]
    via: String,
    /// The interface
    #[arg(long, default_value = "eth0")]
    interface: String,
}

/// IP protocol numbers.
const ICMP: u8 = 1;
const TCP: u8 = 6;
const UDP: u8 = 17;
const EXPERIMENT: u8 = 253;

pub(super) fn escape(way: Way, to: SocketAddrV4, frame: &Frame) -> Result<String> {
    let said = match way {
        Way::Packet => packet(frame, false, &[syn(frame.from, to), datagram(frame.from, to)]),
        Way::PacketBypass => packet(frame, true, &[syn(frame.from, to), datagram(frame.from, to)]),
        Way::PacketEcho => packet(frame, false, &[echo(frame.from, *to.ip())]),
        Way::PacketReset => packet(frame, false, &[segment(frame.from, to, RST)]),
        Way::PacketFlood => packet(frame, false, &flood(frame.from, to)),
        Way::PacketFragment => packet(frame, false, &[fragment(frame.from, to)]),
        Way::Raw => raw(EXPERIMENT, *to.ip(), &[b"carried out".to_vec()]),
        Way::HeaderIncluded => {
            let packets = [syn(frame.from, to), datagram(frame.from, to)];
            raw(libc::IPPROTO_RAW as u8, *to.ip(), &packets)
        }
        Way::Tunnel => return tunnel(to),
        Way::Echo => raw(ICMP, *to.ip(), &[ECHO_REQUEST.to_vec()]),
    };
    Ok(said.map_or_else(|error| error_name(&error), |()| "sent".to_owned()))
}

/// Frames of a packet socket never enter the IP layer.
fn packet(frame: &Frame, bypass: bool, packets: &[Vec<u8>]) -> io::Result<()> {
    let protocol = (libc::ETH_P_IP as u16).to_be();
    let socket = Socket::new(Domain::PACKET, Type::DGRAM, Some(i32::from(protocol).into()))?;
    if bypass {
        set_option(&socket, libc::SOL_PACKET, libc::PACKET_QDISC_BYPASS, 1)?;
    }
    let hop = frame.via.split(':').map(|byte| u8::from_str_radix(byte, 16));
    let hop: Vec<u8> = hop.collect::<Result<_, _>>().map_err(io::Error::other)?;
    let mut address = [0; 8];
    address[..6].copy_from_slice(hop.get(..6).ok_or_else(|| io::Error::other("six bytes"))?);
    let index = nix::net::if_::if_nametoindex(frame.interface.as_str())?;
    let to = libc::sockaddr_ll {
        sll_family: libc::AF_PACKET as u16,
        sll_protocol: protocol,
        sll_ifindex: i32::try_from(index).map_err(io::Error::other)?,
        sll_hatype: 0,
        sll_pkttype: 0,
        sll_halen: 6,
        sll_addr: address,
    };
    for packet in packets {
        // SAFETY: the buffer and the address outlive the call, and their own lengths are given.
        let sent = unsafe {
            libc::sendto(
                socket.as_raw_fd(),
                packet.as_ptr().cast(),
                packet.len(),
                0,
                (&raw const to).cast(),
                size_of_val(&to) as libc::socklen_t,
            )
        };
        if sent < 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

fn raw(protocol: u8, to: Ipv4Addr, packets: &[Vec<u8>]) -> io::Result<()> {
    let socket = Socket::new(Domain::IPV4, Type::RAW, Some(i32::from(protocol).into()))?;
    for packet in packets {
        socket.send_to(packet, &SocketAddr::from((to, 0)).into())?;
    }
    Ok(())
}

/// Where packets out of the tunnel say that they come from.
const TUNNELLED: Ipv4Addr = Ipv4Addr::new(10, 79, 0, 2);

/// What is written into a tunnel arrives at this namespace as if from elsewhere; forwarding does the
/// rest.
fn tunnel(to: SocketAddrV4) -> Result<String> {
    const NAME: &[u8] = b"tunnel0";
    let mut request = [0_u8; 40];
    request[..NAME.len()].copy_from_slice(NAME);
    let flags = (libc::IFF_TUN | libc::IFF_NO_PI) as u16;
    request[16..18].copy_from_slice(&flags.to_ne_bytes());
    let mut device = match OpenOptions::new().read(true).write(true).open("/dev/net/tun") {
        Ok(device) => device,
        Err(error) => return Ok(error_name(&error)),
    };
    // SAFETY: the request is an ifreq's size, and outlives the call.
    let made = unsafe { libc::ioctl(device.as_raw_fd(), libc::TUNSETIFF, request.as_mut_ptr()) };
    if made < 0 {
        return Ok(error_name(&io::Error::last_os_error()));
    }
    for arguments in ["addr add 10.79.0.1/24 dev tunnel0", "link set tunnel0 up"] {
        let done = Command::new("ip").args(arguments.split(' ')).status()?;
        ensure!(done.success(), "ip {arguments}");
    }
    fs::write("/proc/sys/net/ipv4/ip_forward", "1").context("forwarding in the namespace")?;
    for packet in [syn(TUNNELLED, to), datagram(TUNNELLED, to)] {
        device.write_all(&packet)?;
    }
    // The tunnel goes with the process; what it forwarded must have left by then.
    std::thread::sleep(Duration::from_millis(200));
    Ok("sent".to_owned())
}

/// Takes a socket from a unix socket and uses it: a TCP socket is connected first.
pub(super) fn borrow(from: &str, to: SocketAddr, udp: bool) -> Result<String> {
    let lender = UnixStream::connect(from).context("the lender")?;
    let socket = receive(&lender)?;
    let used = if udp {
        UdpSocket::from(socket).send_to(b"carried out", to).map(drop)
    } else {
        let socket = Socket::from(socket);
        let connected = socket.connect_timeout(&to.into(), Duration::from_secs(2));
        connected.and_then(|()| TcpStream::from(socket).write_all(b"carried out"))
    };
    Ok(used.map_or_else(|error| error_name(&error), |()| "sent".to_owned()))
}

fn receive(lender: &UnixStream) -> Result<OwnedFd> {
    let mut byte = [0];
    let mut buffers = [IoSliceMut::new(&mut byte)];
    let mut room = nix::cmsg_space!([RawFd; 1]);
    let flags = MsgFlags::empty();
    let message = recvmsg::<()>(lender.as_raw_fd(), &mut buffers, Some(&mut room), flags)?;
    let found = message.cmsgs()?.find_map(|control| match control {
        ControlMessageOwned::ScmRights(descriptors) => descriptors.first().copied(),
        _ => None,
    });
    let descriptor = found.context("no descriptor came")?;
    // SAFETY: the kernel just made it for us.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor) })
}

/// Accepts one connection and sends back what comes, to its end.
pub(super) fn serve(at: SocketAddr) -> Result<String> {
    let listener = std::net::TcpListener::bind(at)?;
    println!("serving");
    let (mut stream, _) = listener.accept()?;
    let mut buffer = vec![0; 64 * 1024];
    let mut total = 0;
    loop {
        let length = stream.read(&mut buffer)?;
        if length == 0 {
            return Ok(format!("{total} served"));
        }
        stream.write_all(&buffer[..length])?;
        total += length;
    }
}

fn set_option(socket: &Socket, level: i32, option: i32, value: i32) -> io::Result<()> {
    // SAFETY: the value outlives the call, and its size is given.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            option,
            (&raw const value).cast(),
            size_of_val(&value) as libc::socklen_t,
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Type 8, code 0, its checksum, identifier 7, number 1.
const ECHO_REQUEST: [u8; 8] = [8, 0, 0xf7, 0xf7, 0, 7, 0, 1];

fn echo(from: Ipv4Addr, to: Ipv4Addr) -> Vec<u8> {
    ipv4(from, to, ICMP, &ECHO_REQUEST)
}

const SYN: u8 = 2;
const RST: u8 = 4;

fn syn(from: Ipv4Addr, to: SocketAddrV4) -> Vec<u8> {
    segment(from, to, SYN)
}

/// To many ports.
fn flood(from: Ipv4Addr, to: SocketAddrV4) -> Vec<Vec<u8>> {
    (10_001..=15_000).map(|port| syn(from, SocketAddrV4::new(*to.ip(), port))).collect()
}

/// A SYN of which more is to come.
fn fragment(from: Ipv4Addr, to: SocketAddrV4) -> Vec<u8> {
    const MORE: u8 = 0x20;
    let mut packet = syn(from, to);
    packet[6] |= MORE;
    packet[10..12].fill(0);
    let sum = checksum(&packet[..20]);
    packet[10..12].copy_from_slice(&sum);
    packet
}

/// A TCP header without payload.
fn segment(from: Ipv4Addr, to: SocketAddrV4, flags: u8) -> Vec<u8> {
    let mut segment = vec![0x9c, 0x41];
    segment.extend_from_slice(&to.port().to_be_bytes());
    segment.extend_from_slice(&[0, 0, 0, 1, 0, 0, 0, 0, 0x50, flags, 0xff, 0xff, 0, 0, 0, 0]);
    let mut pseudo: Vec<u8> = [from.octets(), to.ip().octets()].concat();
    pseudo.extend_from_slice(&[0, TCP, 0, segment.len() as u8]);
    pseudo.extend_from_slice(&segment);
    segment[16..18].copy_from_slice(&checksum(&pseudo));
    ipv4(from, *to.ip(), TCP, &segment)
}

fn datagram(from: Ipv4Addr, to: SocketAddrV4) -> Vec<u8> {
    const TEXT: &[u8] = b"carried out";
    let mut packet = vec![0x9c, 0x42];
    packet.extend_from_slice(&to.port().to_be_bytes());
    packet.extend_from_slice(&[0, 8 + TEXT.len() as u8, 0, 0]);
    packet.extend_from_slice(TEXT);
    ipv4(from, *to.ip(), UDP, &packet)
}

fn ipv4(from: Ipv4Addr, to: Ipv4Addr, protocol: u8, payload: &[u8]) -> Vec<u8> {
    let length = (20 + payload.len()) as u16;
    let mut packet = vec![0x45, 0];
    packet.extend_from_slice(&length.to_be_bytes());
    packet.extend_from_slice(&[0, 1, 0, 0, 64, protocol, 0, 0]);
    packet.extend_from_slice(&from.octets());
    packet.extend_from_slice(&to.octets());
    let sum = checksum(&packet);
    packet[10..12].copy_from_slice(&sum);
    packet.extend_from_slice(payload);
    packet
}

/// The internet's (RFC 1071).
fn checksum(bytes: &[u8]) -> [u8; 2] {
    let word = |pair: &[u8]| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0));
    let mut sum: u32 = bytes.chunks(2).map(word).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    (!(sum as u16)).to_be_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packets_made_by_hand_are_whole() {
        let to = SocketAddrV4::new(Ipv4Addr::new(192, 0, 2, 1), 443);
        let from = Ipv4Addr::new(10, 78, 0, 2);
        for packet in [syn(from, to), fragment(from, to), datagram(from, to), echo(from, *to.ip())]
        {
            assert_eq!(checksum(&packet[..20]), [0, 0], "{packet:02x?}");
            let read = crate::capture::Packet::parse(&packet).expect("a packet");
            assert_eq!(read.destination, std::net::IpAddr::from(*to.ip()));
        }
        assert_eq!(checksum(&ECHO_REQUEST), [0, 0]);
    }
}
