//! What the kernel reports: closed direct flows and refusals, from two ring buffers.

use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsRawFd;
use std::time::{Duration, SystemTime};

use aya::Ebpf;
use aya::maps::{MapData, RingBuf};
use aya_log::EbpfLogger;
use interceptor_common::{Endpoint, Event, Finding, FlowKind, NamedEvent, ShownName};
use nix::time::{ClockId, clock_gettime};
use tokio::io::unix::AsyncFd;
use tokio::time::{Instant, sleep_until};

use super::direct::SocketId;
use crate::clock;

/// How long closed flows gather after some were read: one wake-up for all of them, where many
/// connections close, instead of one each.
const GATHER: Duration = Duration::from_millis(20);

/// One report.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KernelEvent {
    /// A direct flow closed.
    Closed(Closed),
    /// Something was refused in the kernel.
    Refused(Refused),
    /// The first bytes of a direct connection were refused in the kernel.
    RefusedHello(RefusedHello),
}

/// How a closed flow had gone direct.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClosedTier {
    /// By an operator's CIDR.
    Bypassed,
    /// To a configured resolver (TCP port 53).
    Resolver,
    /// By its address.
    Direct,
    /// By a name that it had to show.
    Named {
        /// Whether it did.
        proven: bool,
    },
}

/// A direct TCP flow, after its end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Closed {
    /// Cookie of its network namespace.
    pub netns: u64,
    /// How it went direct.
    pub tier: ClosedTier,
    /// The number of its label; 0: none.
    pub label: u32,
    /// The name that it showed, where the label does not tell it.
    pub name: Option<String>,
    /// When it was opened.
    pub start: SystemTime,
    /// The same, on the clock that nobody sets.
    pub opened: std::time::Instant,
    /// Open to close.
    pub duration: Duration,
    /// The workload's end; `None` if it never got one.
    pub src: Option<SocketAddr>,
    /// Destination.
    pub dst: SocketAddr,
    /// Payload bytes from the workload that the peer acknowledged.
    pub bytes_sent: u64,
    /// Payload bytes to the workload.
    pub bytes_received: u64,
    /// Whether the connection was ever established.
    pub established: bool,
    /// Why it was not, as a number of errno(3), where the kernel tells; `None` too where its program
    /// gave up first.
    pub error: Option<i32>,
    /// Whether its hello was seen to offer encrypted_client_hello.
    pub ech: bool,
}

/// A refusal in the kernel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused {
    /// Cookie of the network namespace; 0 where the kernel does not tell.
    pub netns: u64,
    /// When.
    pub at: SystemTime,
    /// Where from, as a packet said it that was dropped at an interface.
    pub src: Option<SocketAddr>,
    /// Where to.
    pub dst: SocketAddr,
    /// The finding's label: why.
    pub why: &'static str,
    /// IP protocol number; [`Event::FRAME`] and the ethertype, of what is not IP.
    pub protocol: u32,
    /// The interface at which it was dropped; `None`: at its socket.
    pub interface: Option<String>,
    /// It was not refused: its namespace is audited.
    pub audited: bool,
}

/// A direct connection that showed no allowed name. It still has its socket, which can send nothing
/// any more.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RefusedHello {
    /// When it was opened.
    pub start: SystemTime,
    /// Open to refusal.
    pub duration: Duration,
    /// Its socket.
    pub socket: SocketId,
    /// Why.
    pub finding: Finding,
    /// The name that it showed.
    pub name: Option<String>,
    /// Whether its hello offered encrypted_client_hello.
    pub ech: bool,
}

/// Reads both ring buffers.
pub struct EventReader {
    flows: AsyncFd<RingBuf<MapData>>,
    refusals: AsyncFd<RingBuf<MapData>>,
    /// When flows are read again at the earliest.
    rested: Instant,
}

impl EventReader {
    pub(super) fn new(
        flows: RingBuf<MapData>,
        refusals: RingBuf<MapData>,
    ) -> std::io::Result<Self> {
        Ok(Self { flows: watch(flows)?, refusals: watch(refusals)?, rested: Instant::now() })
    }

    /// Waits for reports and hands each to `each`; never returns, loses nothing when cancelled. Flows
    /// come first: a flood of refusals must not delay accounting.
    ///
    /// # Errors
    /// The ring buffers cannot be polled.
    pub async fn run(&mut self, each: &mut impl FnMut(KernelEvent)) -> std::io::Result<()> {
        loop {
            let flows = async {
                sleep_until(self.rested).await;
                self.flows.readable_mut().await
            };
            tokio::select! {
                biased;
                guard = flows => {
                    drain(guard?, each);
                    self.rested = Instant::now() + GATHER;
                }
                guard = self.refusals.readable_mut() => drain(guard?, each),
            }
        }
    }

    /// Hands over what is in the buffers now.
    pub fn drain_now(&mut self, each: &mut impl FnMut(KernelEvent)) {
        for ring in [self.flows.get_mut(), self.refusals.get_mut()] {
            take_all(ring, each);
        }
    }
}

fn drain(
    mut guard: tokio::io::unix::AsyncFdReadyMutGuard<'_, RingBuf<MapData>>,
    each: &mut impl FnMut(KernelEvent),
) {
    take_all(guard.get_inner_mut(), each);
    guard.clear_ready();
}

fn take_all(ring: &mut RingBuf<MapData>, each: &mut impl FnMut(KernelEvent)) {
    while let Some(item) = ring.next() {
        if let Some(named) = read_record(&item)
            && let Some(event) = translate(&named.event, &named.name)
        {
            each(event);
        }
    }
}

/// A record: an event, with a name or without.
fn read_record(bytes: &[u8]) -> Option<NamedEvent> {
    if let Some(named) = read::<NamedEvent>(bytes) {
        return Some(named);
    }
    Some(NamedEvent { event: read::<Event>(bytes)?, name: ShownName::default() })
}

#[expect(unsafe_code, reason = "reads a plain-data struct from the kernel's bytes")]
pub(super) fn read<T: aya::Pod>(bytes: &[u8]) -> Option<T> {
    if bytes.len() < size_of::<T>() {
        return None;
    }
    // SAFETY: `bytes` holds at least size_of::<T>() bytes, T is plain data (aya::Pod), and the read
    // does not ask for alignment.
    Some(unsafe { std::ptr::read_unaligned(bytes.as_ptr().cast()) })
}

fn translate(event: &Event, name: &ShownName) -> Option<KernelEvent> {
    let dst = socket_addr(&event.dst);
    let age = age(event.started_ns);
    let start = clock::wall_before(age);
    let finding = Finding::ALL.get(event.finding as usize).copied();
    let ech = event.marks & Event::ECH != 0;
    let closed = |tier| {
        KernelEvent::Closed(Closed {
            netns: event.netns,
            tier,
            label: event.label,
            name: shown(name),
            start,
            opened: earlier(age),
            duration: Duration::from_nanos(event.duration_ns),
            src: (event.established != 0).then(|| socket_addr(&event.src)),
            dst,
            bytes_sent: event.bytes_sent,
            bytes_received: event.bytes_received,
            established: event.established != 0,
            error: i32::try_from(event.error).ok().filter(|error| *error != 0),
            ech,
        })
    };
    const BYPASSED: u32 = FlowKind::Bypassed as u32;
    const RESOLVER: u32 = FlowKind::Resolver as u32;
    const DIRECT: u32 = FlowKind::Direct as u32;
    const NAMED: u32 = FlowKind::Named as u32;
    const REFUSED_CONNECT: u32 = FlowKind::RefusedConnect as u32;
    const REFUSED_DATAGRAM: u32 = FlowKind::RefusedDatagram as u32;
    const REFUSED_PACKET: u32 = FlowKind::RefusedPacket as u32;
    const REFUSED_HELLO: u32 = FlowKind::RefusedHello as u32;
    Some(match event.kind {
        BYPASSED => closed(ClosedTier::Bypassed),
        RESOLVER => closed(ClosedTier::Resolver),
        DIRECT => closed(ClosedTier::Direct),
        NAMED => closed(ClosedTier::Named { proven: event.marks & Event::UNPROVEN == 0 }),
        REFUSED_CONNECT | REFUSED_DATAGRAM | REFUSED_PACKET => {
            let packet = event.kind == REFUSED_PACKET;
            KernelEvent::Refused(Refused {
                netns: event.netns,
                at: start,
                src: packet.then(|| socket_addr(&event.src)),
                dst,
                why: finding.map_or("unknown", Finding::label),
                protocol: event.protocol,
                interface: packet.then(|| interface_name(event.label)),
                audited: event.marks & Event::AUDITED != 0,
            })
        }
        REFUSED_HELLO => KernelEvent::RefusedHello(RefusedHello {
            start,
            duration: Duration::from_nanos(event.duration_ns),
            socket: SocketId {
                netns: event.netns,
                cookie: event.socket,
                src: socket_addr(&event.src),
                dst,
            },
            finding: finding?,
            name: shown(name),
            ech,
        }),
        _ => return None,
    })
}

/// What an interface is called, or its number if it is gone.
fn interface_name(index: u32) -> String {
    let name = nix::net::if_::if_indextoname(index);
    name.map_or_else(|_| index.to_string(), |name| name.to_string_lossy().into_owned())
}

/// The name that a client showed, the right way round; `None`: none.
pub(super) fn shown(name: &ShownName) -> Option<String> {
    let end = name.bytes.iter().position(|byte| *byte == 0)?;
    let name: Vec<u8> = name.bytes[..end].iter().rev().copied().collect();
    // The kernel's reader lets only bytes of host names pass.
    String::from_utf8(name).ok().filter(|name| !name.is_empty())
}

/// An endpoint as an address; v4-mapped becomes IPv4.
pub(super) fn socket_addr(endpoint: &Endpoint) -> SocketAddr {
    SocketAddr::new(IpAddr::from(endpoint.addr()).to_canonical(), endpoint.port())
}

/// So long ago.
fn earlier(age: Duration) -> std::time::Instant {
    let now = std::time::Instant::now();
    now.checked_sub(age).unwrap_or(now)
}

/// How long ago a monotonic time was: records may be read long after the fact.
fn age(monotonic_ns: u64) -> Duration {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC).map_or(Duration::ZERO, Duration::from);
    now.saturating_sub(Duration::from_nanos(monotonic_ns))
}

#[expect(unsafe_code, reason = "AsyncFd::register asks for a promise about the descriptor")]
pub(super) fn watch<T: AsRawFd>(inner: T) -> std::io::Result<AsyncFd<T>> {
    // SAFETY: the types used here own their descriptor, return the same one for their whole life,
    // and the AsyncFd owns them.
    Ok(unsafe { AsyncFd::register(inner) }?)
}

/// Sends what the programs log (`--bpf-log`) to our own log.
pub(super) fn forward_bpf_log(ebpf: &mut Ebpf) -> Result<(), String> {
    let logger = EbpfLogger::init(ebpf).map_err(|error| error.to_string())?;
    let mut logger = watch(logger).map_err(|error| error.to_string())?;
    tokio::spawn(async move {
        while let Ok(mut guard) = logger.readable_mut().await {
            guard.get_inner_mut().flush();
            guard.clear_ready();
        }
    });
    Ok(())
}
