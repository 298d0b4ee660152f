//! Sockets that others made (T-7): outside the cover, or in the cgroup before it was covered.

use std::io::{self, Write};
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;

use serde::{Deserialize, Serialize};

use super::raw;
use super::sys;
use super::talk;
use super::udp::sent;
use super::way::{TCP, Target, UDP, Way, partly as open, unlisted as way};

/// A socket that is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Loan {
    /// TCP, as socket(2) made it.
    Tcp,
    /// TCP, bound to a source port.
    TcpBound,
    /// TCP, connected to the canary.
    TcpConnected,
    /// UDP, as socket(2) made it.
    Udp,
    /// UDP, connected to the canary.
    UdpConnected,
    /// A raw socket.
    Raw,
    /// A packet socket.
    Packet,
    /// The directory of a cgroup below the room's.
    Cgroup,
    /// Its cgroup.procs, open for writing.
    CgroupProcs,
}

/// A question to a lender: a line of JSON.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Ask {
    /// What is wanted.
    pub loan: Loan,
    /// Where the canary is, for what is connected.
    pub to: SocketAddr,
    /// Made before the cover was there; else now.
    pub early: bool,
}

/// Who lends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Lender {
    /// Somebody outside the cover.
    Outside = 0,
    /// Who was in the cgroup before it was covered.
    Inside = 1,
}

use Lender::{Inside, Outside};

pub(super) const WAYS: &[Way] = &[
    way("lent-tcp", 7, "made outside, connected here", |t| {
        connect(borrow(Outside, Loan::Tcp, false, t)?, t)
    }),
    way("lent-tcp-bound", 7, "made and bound outside, connected here", |t| {
        connect(borrow(Outside, Loan::TcpBound, false, t)?, t)
    }),
    open("lent-tcp-open", 7, "connected outside, written here", |t| {
        Ok(talk::say(borrow(Outside, Loan::TcpConnected, false, t)?, t.token()))
    }),
    open("lent-tcp-early", 7, "connected outside before the attach, written here", |t| {
        Ok(talk::say(borrow(Outside, Loan::TcpConnected, true, t)?, t.token()))
    }),
    way("lent-udp", 7, "UDP made outside, sent here", |t| {
        UdpSocket::from(borrow(Outside, Loan::Udp, false, t)?)
            .send_to(t.token(), t.canary(UDP))
            .map(|_| sent(()))
    }),
    way("lent-udp-connected", 7, "UDP connected outside, sent here", |t| {
        let socket = UdpSocket::from(borrow(Outside, Loan::UdpConnected, false, t)?);
        socket.send(t.token()).map(|_| sent(()))
    }),
    way("lent-raw", 7, "raw socket made outside", |t| {
        let socket = borrow(Outside, Loan::Raw, false, t)?;
        sys::send_to(&socket, t.token(), 0, &sys::address_bytes((t.canary4, 0).into())).map(sent)
    }),
    way("lent-packet", 7, "packet socket made outside", |t| {
        let socket = borrow(Outside, Loan::Packet, false, t)?;
        raw::send_frame(&socket, raw::ETHERTYPE_IPV4, &raw::packet4(t), t)
    }),
    way("own-tcp", 7, "own, from before the attach, connected after it", |t| {
        connect(borrow(Inside, Loan::Tcp, true, t)?, t)
    }),
    open("own-tcp-open", 7, "own, connected before the attach", |t| {
        Ok(talk::say(borrow(Inside, Loan::TcpConnected, true, t)?, t.token()))
    }),
    way("own-udp", 7, "own UDP from before the attach", |t| {
        UdpSocket::from(borrow(Inside, Loan::Udp, true, t)?)
            .send_to(t.token(), t.canary(UDP))
            .map(|_| sent(()))
    }),
    way("own-udp-connected", 7, "own UDP, connected before the attach", |t| {
        let socket = UdpSocket::from(borrow(Inside, Loan::UdpConnected, true, t)?);
        socket.send(t.token()).map(|_| sent(()))
    }),
    way("own-raw", 7, "own raw socket from before the attach", |t| {
        let socket = borrow(Inside, Loan::Raw, true, t)?;
        sys::send_to(&socket, t.token(), 0, &sys::address_bytes((t.canary4, 0).into())).map(sent)
    }),
    way("own-packet", 7, "own packet socket from before the attach", |t| {
        let socket = borrow(Inside, Loan::Packet, true, t)?;
        raw::send_frame(&socket, raw::ETHERTYPE_IPV4, &raw::packet4(t), t)
    }),
];

/// The loans that must be made before the cover is there, for a way's canary.
pub(super) fn early(id: &str) -> Option<(Lender, Loan, u16)> {
    Some(match id {
        "lent-tcp-early" => (Outside, Loan::TcpConnected, TCP),
        "own-tcp" => (Inside, Loan::Tcp, TCP),
        "own-tcp-open" => (Inside, Loan::TcpConnected, TCP),
        "own-udp" => (Inside, Loan::Udp, UDP),
        "own-udp-connected" => (Inside, Loan::UdpConnected, UDP),
        "own-raw" => (Inside, Loan::Raw, UDP),
        "own-packet" => (Inside, Loan::Packet, UDP),
        _ => return None,
    })
}

/// Asks a lender.
pub(super) fn borrow(lender: Lender, loan: Loan, early: bool, t: &Target) -> io::Result<OwnedFd> {
    let mut stream = UnixStream::connect(&t.lenders[lender as usize])?;
    let port =
        if matches!(loan, Loan::Tcp | Loan::TcpBound | Loan::TcpConnected) { TCP } else { UDP };
    let ask = Ask { loan, to: t.canary(port), early };
    writeln!(stream, "{}", serde_json::to_string(&ask)?)?;
    sys::receive(&stream)
}

fn connect(socket: OwnedFd, t: &Target) -> io::Result<String> {
    let stream = talk::connected(socket.into(), t.canary(TCP))?;
    Ok(talk::say(stream, t.token()))
}
