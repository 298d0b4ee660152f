//! The judge: what reached the far side, packet by packet and stream by stream.

use std::collections::HashSet;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use nix::sys::socket::{LinkAddr, recvfrom};

use super::sys;
use super::way::{Shows, Target};
use crate::netns::NetNs;

/// What a packet socket says of packets that its own machine sends (packet(7)).
const OUTGOING: u8 = 4;
/// Longest packet that is looked at: more than any way sends in one.
const LARGEST: usize = 65_536;
/// Memory for packets that were not read yet. When it is full the capture says that it lost some.
const BUFFER: i32 = 32 << 20;
/// How long a read waits, and so how long a capture takes to end.
const TURN: Duration = Duration::from_millis(50);
/// A link that was silent for so long has nothing under way.
const QUIET: Duration = Duration::from_millis(250);

const ANY: u16 = 0x0003;
const TCP: u8 = 6;
const UDP: u8 = 17;

/// Everything that arrived somewhere.
#[derive(Debug, Default)]
struct Arrived {
    packets: u64,
    /// Destinations of packets.
    addresses: HashSet<IpAddr>,
    /// Destinations with ports.
    ports: HashSet<(IpAddr, u16)>,
    /// Destinations of payload.
    payload: HashSet<IpAddr>,
    /// Tokens seen, in packets and streams.
    tokens: HashSet<String>,
}

/// What arrived, shared by captures and servers of one room.
#[derive(Debug, Clone)]
pub(super) struct Record {
    arrived: Arc<Mutex<Arrived>>,
    /// What every token begins with.
    prefix: Arc<str>,
}

/// Bytes of a token behind its prefix: mode and number of the way.
const TOKEN_TAIL: usize = 4;

/// The token of a way: part of host names, so lower-case letters and digits.
pub(super) fn token(prefix: &str, mode: u8, number: u16) -> String {
    format!("{prefix}{mode}{number:03}")
}

impl Record {
    /// Empty; tokens begin with `prefix`.
    pub(super) fn new(prefix: &str) -> Self {
        Self { arrived: Arc::default(), prefix: prefix.into() }
    }

    fn arrived(&self) -> MutexGuard<'_, Arrived> {
        self.arrived.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes the tokens in `bytes`.
    pub(super) fn note(&self, bytes: &[u8]) {
        let prefix = self.prefix.as_bytes();
        let whole = prefix.len() + TOKEN_TAIL;
        for window in bytes.windows(whole).filter(|window| window.starts_with(prefix)) {
            self.arrived().tokens.insert(String::from_utf8_lossy(window).into_owned());
        }
    }

    /// Notes a packet, from its network header on.
    fn packet(&self, bytes: &[u8]) {
        self.note(bytes);
        let mut arrived = self.arrived();
        arrived.packets += 1;
        let Some(packet) = Packet::parse(bytes) else { return };
        arrived.addresses.insert(packet.to);
        arrived.ports.insert((packet.to, packet.port));
        if packet.payload {
            arrived.payload.insert(packet.to);
        }
    }

    /// Whether a way got out.
    pub(super) fn shows(&self, shows: Shows, target: &Target) -> bool {
        let arrived = self.arrived();
        let packet = || {
            let mut canaries = [IpAddr::from(target.canary4), target.canary6.into()]
                .into_iter()
                .chain(target.embedded().map(IpAddr::from));
            canaries.any(|ip| arrived.addresses.contains(&ip))
                || arrived.ports.iter().any(|(_, port)| *port == target.port)
        };
        let payload = || {
            let mut allowed = [IpAddr::from(target.allowed4), target.allowed6.into()].into_iter();
            allowed.any(|ip| arrived.payload.contains(&ip))
        };
        arrived.tokens.contains(&target.token)
            || match shows {
                Shows::Packet => packet(),
                Shows::Payload => payload(),
                Shows::Token | Shows::Nothing => false,
            }
    }

    /// Waits until nothing arrives any more.
    pub(super) async fn settle(&self) {
        let mut before = None;
        loop {
            let now = self.arrived().packets;
            if before == Some(now) {
                return;
            }
            before = Some(now);
            tokio::time::sleep(QUIET).await;
        }
    }
}

/// A packet, as far as the judge looks.
#[derive(Debug, PartialEq, Eq)]
struct Packet {
    to: IpAddr,
    /// Destination port of TCP and UDP, else 0.
    port: u16,
    /// More than a TCP header.
    payload: bool,
}

impl Packet {
    fn parse(bytes: &[u8]) -> Option<Self> {
        let (to, protocol, header, total): (IpAddr, _, _, _) = match bytes.first()? >> 4 {
            4 => {
                let to: [u8; 4] = bytes.get(16..20)?.try_into().ok()?;
                let total = u16::from_be_bytes([bytes[2], bytes[3]]);
                (Ipv4Addr::from(to).into(), bytes[9], usize::from(bytes[0] & 15) * 4, total.into())
            }
            6 => {
                let to: [u8; 16] = bytes.get(24..40)?.try_into().ok()?;
                let total = 40 + usize::from(u16::from_be_bytes([bytes[4], bytes[5]]));
                (Ipv6Addr::from(to).into(), bytes[6], 40, total)
            }
            _ => return None,
        };
        let port = match bytes.get(header + 2..header + 4) {
            Some(port) if matches!(protocol, TCP | UDP) => u16::from_be_bytes([port[0], port[1]]),
            _ => 0,
        };
        let above = match bytes.get(header + 12) {
            Some(offset) if protocol == TCP => usize::from(offset >> 4) * 4,
            _ => 0,
        };
        Some(Self { to, port, payload: total > header + above })
    }
}

/// A capture of what comes into a namespace. Dropping it ends it.
#[derive(Debug)]
pub(super) struct Capture {
    socket: Arc<OwnedFd>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Capture {
    /// From here on nothing that comes in by interface `link` is missed.
    ///
    /// # Errors
    /// No packet socket can be made.
    pub(super) fn start(netns: &NetNs, link: u32, record: Record) -> io::Result<Self> {
        Self::start_without(netns, link, None, record)
    }

    /// The same, but for frames from the hardware address `without`: answers, which may well go to a
    /// port that a way has.
    ///
    /// # Errors
    /// As [`Capture::start`].
    pub(super) fn start_without(
        netns: &NetNs,
        link: u32,
        without: Option<[u8; 6]>,
        record: Record,
    ) -> io::Result<Self> {
        let socket = netns.run(|| {
            let protocol = i32::from(ANY.to_be());
            let socket = sys::socket(libc::AF_PACKET, libc::SOCK_DGRAM, protocol)?;
            sys::set_number(&socket, libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, BUFFER)?;
            Ok::<_, io::Error>(socket)
        })??;
        let socket = socket2::Socket::from(socket);
        socket.set_read_timeout(Some(TURN))?;
        let socket = Arc::new(OwnedFd::from(socket));
        let stop = Arc::new(AtomicBool::new(false));
        let thread = thread::spawn({
            let (socket, stop) = (Arc::clone(&socket), Arc::clone(&stop));
            move || capture(&socket, link, without, &record, &stop)
        });
        Ok(Self { socket, stop, thread: Some(thread) })
    }

    /// How many packets it could not keep: more than none, and it proves nothing.
    ///
    /// # Errors
    /// getsockopt(2)'s.
    pub(super) fn lost(&self) -> io::Result<u32> {
        sys::lost_packets(&*self.socket)
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

fn capture(
    socket: &OwnedFd,
    link: u32,
    without: Option<[u8; 6]>,
    record: &Record,
    stop: &AtomicBool,
) {
    let mut buffer = vec![0; LARGEST];
    while !stop.load(Ordering::Relaxed) {
        // A time-out is the only error here that has no packet behind it, and it looks at `stop`.
        if let Ok((length, Some(from))) = recvfrom::<LinkAddr>(socket.as_raw_fd(), &mut buffer)
            && from.pkttype() != OUTGOING
            && from.ifindex() == link as usize
            && (without.is_none() || from.addr() != without)
        {
            record.packet(&buffer[..length]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packets_and_scraps() {
        let tcp = [0, 1, 0, 80, 0, 0, 0, 0, 0, 0, 0, 0, 0x50, 2, 0, 0, 0, 0, 0, 0];
        let mut v4 = vec![0x45, 0, 0, 40, 0, 0, 0, 0, 64, 6, 0, 0, 10, 0, 0, 1, 192, 0, 2, 7];
        v4.extend_from_slice(&tcp);
        let to = IpAddr::from([192, 0, 2, 7]);
        assert_eq!(Packet::parse(&v4), Some(Packet { to, port: 80, payload: false }));
        v4[3] = 41;
        v4.push(b'x');
        assert!(Packet::parse(&v4).is_some_and(|packet| packet.payload));
        for length in 0..v4.len() {
            let _ = Packet::parse(&v4[..length]);
        }
        assert_eq!(Packet::parse(b"\x10ARP"), None);
    }

    #[test]
    fn a_token_is_found_wherever_it_stands() {
        let record = Record::new("ixabcd");
        let token = token("ixabcd", 1, 42);
        record.note(format!("Host: {token}.forbidden.test").as_bytes());
        assert!(record.arrived().tokens.contains(&token));
        record.note(b"ixabcd1");
        assert_eq!(record.arrived().tokens.len(), 1);
    }
}
