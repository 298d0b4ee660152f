//! A packet capture at the far side of the workload's link: the judge of what really left.

use std::collections::BTreeSet;
use std::io::{ErrorKind, Read};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt::RcvBufForce;
use socket2::{Domain, Protocol, Socket, Type};

use crate::netns::Namespace;

/// Bytes kept of each packet: the headers, with room for options.
const SNAPLEN: usize = 128;
/// Packets kept before the rest is only counted; a capture never eats the machine.
const MAX_PACKETS: usize = 500_000;
/// A packet that is under way has arrived after this long without another one.
const QUIET: Duration = Duration::from_millis(60);
/// Bytes that may wait to be read: a second of what the small internet can send.
const BUFFER: usize = 64 << 20;
/// From linux/if_packet.h; `struct tpacket_stats` is two of `u32`: packets, and drops among them.
const PACKET_STATISTICS: i32 = 6;

/// One packet, as far as the judge looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packet {
    /// Source address.
    pub source: IpAddr,
    /// Destination address.
    pub destination: IpAddr,
    /// IP protocol number: 6 TCP, 17 UDP, 1 and 58 ICMP.
    pub protocol: u8,
    /// Source port of TCP and UDP, else 0.
    pub source_port: u16,
    /// Destination port of TCP and UDP, else 0.
    pub destination_port: u16,
    /// TCP flags, else 0.
    pub flags: u8,
    /// Bytes above the TCP header, else above the IP header.
    pub payload: usize,
}

impl Packet {
    /// The first packet of a TCP connection: SYN without ACK.
    #[must_use]
    pub fn is_syn(&self) -> bool {
        self.protocol == 6 && self.flags & 0x12 == 0x02
    }

    /// Where it comes from and where it goes.
    #[must_use]
    pub fn ends(&self) -> (SocketAddr, SocketAddr) {
        (
            SocketAddr::new(self.source, self.source_port),
            SocketAddr::new(self.destination, self.destination_port),
        )
    }

    /// Reads the headers of an IP packet; `None` for anything else or a later fragment.
    #[must_use]
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let (source, destination, protocol, start, total): (IpAddr, IpAddr, _, _, _) =
            match bytes.first()? >> 4 {
                4 => {
                    let header = usize::from(bytes[0] & 0x0f) * 4;
                    if u16::from_be_bytes([*bytes.get(6)?, *bytes.get(7)?]) & 0x1fff != 0 {
                        return None;
                    }
                    let total = usize::from(u16::from_be_bytes([bytes[2], bytes[3]]));
                    let source: [u8; 4] = bytes.get(12..16)?.try_into().ok()?;
                    let destination: [u8; 4] = bytes.get(16..20)?.try_into().ok()?;
                    (
                        Ipv4Addr::from(source).into(),
                        Ipv4Addr::from(destination).into(),
                        bytes[9],
                        header,
                        total,
                    )
                }
                6 => {
                    let source: [u8; 16] = bytes.get(8..24)?.try_into().ok()?;
                    let destination: [u8; 16] = bytes.get(24..40)?.try_into().ok()?;
                    let total = 40 + usize::from(u16::from_be_bytes([bytes[4], bytes[5]]));
                    (
                        Ipv6Addr::from(source).into(),
                        Ipv6Addr::from(destination).into(),
                        bytes[6],
                        40,
                        total,
                    )
                }
                _ => return None,
            };
        let port = |at: usize| {
            let bytes = bytes.get(start + at..start + at + 2)?;
            Some(u16::from_be_bytes([bytes[0], bytes[1]]))
        };
        let (mut header, mut flags) = (0, 0);
        let (mut source_port, mut destination_port) = (0, 0);
        if matches!(protocol, 6 | 17) {
            (source_port, destination_port) = (port(0)?, port(2)?);
        }
        if protocol == 6 {
            header = usize::from(bytes.get(start + 12)? >> 4) * 4;
            flags = *bytes.get(start + 13)?;
        }
        let payload = total.saturating_sub(start + header);
        Some(Self { source, destination, protocol, source_port, destination_port, flags, payload })
    }
}

/// The TCP connections among packets that were let out, each once, in order: where they come from and
/// where they went. One that was made, carried nothing in either direction and was reset from its own
/// end was refused by its first bytes, which are not there.
#[must_use]
pub fn let_out(packets: &[Packet]) -> Vec<(SocketAddr, SocketAddr)> {
    const FIN: u8 = 1;
    const RST: u8 = 4;
    let mut found = Vec::new();
    for syn in packets.iter().filter(|packet| packet.is_syn()) {
        let (from, to) = syn.ends();
        if found.contains(&(from, to)) {
            continue;
        }
        let tcp = || packets.iter().filter(|packet| packet.protocol == 6);
        let sent = |flag| tcp().any(|p| p.ends() == (from, to) && p.flags & flag != 0);
        let carried =
            tcp().any(|p| p.payload > 0 && (p.ends() == (from, to) || p.ends() == (to, from)));
        if carried || !sent(RST) || sent(FIN) {
            found.push((from, to));
        }
    }
    found
}

/// A running capture of everything that enters or leaves a namespace's interfaces.
#[derive(Debug)]
pub struct Capture {
    packets: Arc<Mutex<Vec<Packet>>>,
    read: Arc<AtomicU64>,
    socket: Arc<Socket>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Capture {
    /// Starts to capture; when it returns, no later packet is missed.
    ///
    /// # Errors
    /// When the packet socket can't be opened (`CAP_NET_RAW`).
    pub fn start(namespace: &Namespace) -> Result<Self> {
        Self::keeping(namespace, |_| true)
    }

    /// Starts to capture, for as long as one likes, and keeps only what `keep` says.
    ///
    /// # Errors
    /// As [`Capture::start`].
    pub fn keeping(
        namespace: &Namespace,
        keep: impl Fn(&Packet) -> bool + Send + 'static,
    ) -> Result<Self> {
        let every = Protocol::from(i32::from((libc::ETH_P_ALL as u16).to_be()));
        // Cooked: the packet starts at its IP header, whatever the link below is.
        let socket = namespace
            .inside(|| Socket::new(Domain::PACKET, Type::DGRAM, Some(every)))?
            .context("a packet socket for the capture")?;
        setsockopt(&socket, RcvBufForce, &BUFFER).context("room for the capture")?;
        socket.set_read_timeout(Some(QUIET / 3))?;

        let (socket, read) = (Arc::new(socket), Arc::new(AtomicU64::new(0)));
        let packets = Arc::new(Mutex::new(Vec::new()));
        let stop = Arc::new(AtomicBool::new(false));
        let thread = thread::spawn({
            let (packets, stop) = (Arc::clone(&packets), Arc::clone(&stop));
            let (socket, read) = (Arc::clone(&socket), Arc::clone(&read));
            move || {
                let mut buffer = [0; SNAPLEN];
                while !stop.load(Ordering::Relaxed) {
                    match (&*socket).read(&mut buffer) {
                        Ok(length) => {
                            read.fetch_add(1, Ordering::Relaxed);
                            let Some(packet) = Packet::parse(&buffer[..length]) else { continue };
                            let mut packets =
                                packets.lock().unwrap_or_else(PoisonError::into_inner);
                            if keep(&packet) && packets.len() < MAX_PACKETS {
                                packets.push(packet);
                            }
                        }
                        Err(e)
                            if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
                        Err(e) if e.kind() == ErrorKind::Interrupted => {}
                        Err(_) => return,
                    }
                }
            }
        });
        Ok(Self { packets, read, socket, stop, thread: Some(thread) })
    }

    /// How many packets were looked at, whether kept or not.
    #[must_use]
    pub fn looked_at(&self) -> u64 {
        self.read.load(Ordering::Relaxed)
    }

    /// How many packets the kernel had no room for since this was last asked: a capture with any
    /// proves no absence.
    ///
    /// # Errors
    /// When the socket can't be asked.
    pub fn lost(&self) -> Result<u32> {
        let mut statistics = [0_u32; 2];
        let mut length = libc::socklen_t::try_from(size_of_val(&statistics))?;
        #[expect(unsafe_code, reason = "a socket option that no crate wraps")]
        // SAFETY: pointer and length are of an array that outlives the call, and any bytes are
        // numbers.
        let result = unsafe {
            libc::getsockopt(
                self.socket.as_raw_fd(),
                libc::SOL_PACKET,
                PACKET_STATISTICS,
                statistics.as_mut_ptr().cast(),
                &raw mut length,
            )
        };
        nix::errno::Errno::result(result).context("asking the capture")?;
        Ok(statistics[1])
    }

    /// All packets so far, once the link has been quiet for a moment (or after a second).
    ///
    /// # Panics
    /// When more arrived than the capture keeps: it could no longer prove an absence.
    #[must_use]
    pub fn packets(&self) -> Vec<Packet> {
        let deadline = Instant::now() + Duration::from_secs(1);
        let mut before = usize::MAX;
        loop {
            let packets = self.packets.lock().unwrap_or_else(PoisonError::into_inner).clone();
            assert!(packets.len() < MAX_PACKETS, "the capture is full and proves nothing");
            if packets.len() == before || Instant::now() > deadline {
                return packets;
            }
            before = packets.len();
            thread::sleep(QUIET);
        }
    }

    /// Connection attempts to one address and port. A repeated SYN counts once.
    #[must_use]
    pub fn syns_to(&self, address: IpAddr, port: u16) -> usize {
        let mut sources: Vec<(IpAddr, u16)> = self
            .packets()
            .into_iter()
            .filter(|packet| {
                packet.is_syn() && packet.destination == address && packet.destination_port == port
            })
            .map(|packet| (packet.source, packet.source_port))
            .collect();
        sources.sort_unstable();
        sources.dedup();
        sources.len()
    }

    /// Connections to one address and port that were [let out](let_out).
    #[must_use]
    pub fn let_out_to(&self, to: SocketAddr) -> usize {
        let_out(&self.packets()).iter().filter(|(_, place)| *place == to).count()
    }

    /// Packets of any protocol to an address.
    #[must_use]
    pub fn packets_to(&self, address: IpAddr) -> usize {
        self.packets().iter().filter(|packet| packet.destination == address).count()
    }

    /// The same of those that are here by now, and forgets every packet: a long run is judged in parts,
    /// each no more than is kept.
    ///
    /// # Panics
    /// When more arrived than the capture keeps.
    #[must_use]
    pub fn take_packets_to(&self, address: IpAddr) -> usize {
        let mut packets = self.packets.lock().unwrap_or_else(PoisonError::into_inner);
        assert!(packets.len() < MAX_PACKETS, "the capture is full and proves nothing");
        packets.drain(..).filter(|packet| packet.destination == address).count()
    }

    /// The source ports of TCP connections that carried any byte to an address: more than a
    /// handshake, acknowledgements or an end.
    #[must_use]
    pub fn senders_to(&self, address: IpAddr) -> BTreeSet<u16> {
        let packets = self.packets();
        let sent = packets.iter().filter(|p| p.destination == address && p.payload > 0);
        sent.map(|p| p.source_port).collect()
    }

    /// UDP datagrams to one address and port.
    #[must_use]
    pub fn datagrams_to(&self, address: IpAddr, port: u16) -> usize {
        let to = |p: &&Packet| {
            p.protocol == 17 && p.destination == address && p.destination_port == port
        };
        self.packets().iter().filter(to).count()
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_a_syn_of_either_family_and_refuses_scraps() {
        let tcp = [0x9c, 0x40, 0x01, 0xbb, 0, 0, 0, 0, 0, 0, 0, 0, 0x50, 0x02, 0, 0, 0, 0, 0, 0];
        let mut v4 = vec![0x45, 0, 0, 40, 0, 0, 0x40, 0, 64, 6, 0, 0, 10, 77, 0, 2, 192, 0, 2, 1];
        v4.extend_from_slice(&tcp);
        let packet = Packet::parse(&v4).expect("a packet");
        assert!(packet.is_syn());
        assert_eq!(packet.destination, IpAddr::from([192, 0, 2, 1]));
        assert_eq!((packet.source_port, packet.destination_port), (40_000, 443));
        assert_eq!(packet.payload, 0);

        let mut v6 = vec![0x60, 0, 0, 0, 0, 20, 6, 64];
        v6.extend_from_slice(&[1; 16]);
        v6.extend_from_slice(&[2; 16]);
        v6.extend_from_slice(&tcp);
        v6[40 + 13] = 0x12;
        let packet = Packet::parse(&v6).expect("a packet");
        assert!(!packet.is_syn(), "SYN-ACK opens nothing");
        assert_eq!(packet.destination, IpAddr::from([2; 16]));

        for length in 0..v4.len() {
            let _ = Packet::parse(&v4[..length]);
            let _ = Packet::parse(&v6[..length]);
        }
        assert_eq!(Packet::parse(b"\x10ARP"), None);
    }

    /// What was refused by its first bytes shows as a handshake and a reset.
    #[test]
    fn a_handshake_that_carries_nothing_and_is_reset_lets_nothing_out() {
        const SYN: u8 = 2;
        const ACK: u8 = 0x10;
        let packet = |port, flags, payload| Packet {
            source: IpAddr::from([10, 77, 0, 2]),
            destination: IpAddr::from([192, 0, 2, 1]),
            protocol: 6,
            source_port: port,
            destination_port: 443,
            flags,
            payload,
        };
        let back = |port, payload| {
            let there = packet(port, ACK, payload);
            Packet {
                source: there.destination,
                destination: there.source,
                source_port: there.destination_port,
                destination_port: there.source_port,
                ..there
            }
        };
        let packets = [
            // Refused.
            packet(1, SYN, 0),
            packet(1, ACK, 0),
            packet(1, ACK | 4, 0),
            // Nobody there.
            packet(2, SYN, 0),
            packet(2, SYN, 0),
            // Silent to its end.
            packet(3, SYN, 0),
            packet(3, ACK | 1, 0),
            // Reset later on.
            packet(4, SYN, 0),
            packet(4, ACK, 9),
            packet(4, 4, 0),
            // The server spoke.
            packet(5, SYN, 0),
            back(5, 3),
            packet(5, 4, 0),
        ];
        let ports: Vec<u16> = let_out(&packets).iter().map(|(from, _)| from.port()).collect();
        assert_eq!(ports, [2, 3, 4, 5]);
    }
}
