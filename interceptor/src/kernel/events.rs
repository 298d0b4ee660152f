//! What the kernel reports: closed direct flows and refusals, from two ring buffers.

use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsRawFd;
use std::time::{Duration, SystemTime};

use aya::Ebpf;
use aya::maps::{MapData, RingBuf};
use aya_log::EbpfLogger;
use interceptor_common::{Endpoint, Event, Finding, FlowKind};
use nix::time::{ClockId, clock_gettime};
use tokio::io::unix::AsyncFd;

/// One report.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KernelEvent {
    /// A direct flow closed.
    Closed(Closed),
    /// Something was refused in the kernel.
    Refused(Refused),
}

/// A direct TCP flow, after its end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Closed {
    /// Whether it went direct as a resolver's (TCP port 53) and not by an operator's CIDR.
    pub resolver: bool,
    /// When it was opened.
    pub start: SystemTime,
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
}

/// A refusal in the kernel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused {
    /// When.
    pub at: SystemTime,
    /// Where to.
    pub dst: SocketAddr,
    /// The finding's label: why.
    pub why: &'static str,
    /// IP protocol number.
    pub protocol: u32,
}

/// Reads both ring buffers.
pub struct EventReader {
    flows: AsyncFd<RingBuf<MapData>>,
    refusals: AsyncFd<RingBuf<MapData>>,
}

impl EventReader {
    pub(super) fn new(
        flows: RingBuf<MapData>,
        refusals: RingBuf<MapData>,
    ) -> std::io::Result<Self> {
        Ok(Self { flows: watch(flows)?, refusals: watch(refusals)? })
    }

    /// Waits for reports and hands each to `each`; never returns, loses nothing when cancelled. Flows
    /// come first: a flood of refusals must not delay accounting.
    ///
    /// # Errors
    /// The ring buffers cannot be polled.
    pub async fn run(&mut self, each: &mut impl FnMut(KernelEvent)) -> std::io::Result<()> {
        loop {
            tokio::select! {
                biased;
                guard = self.flows.readable_mut() => drain(guard?, each),
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
        if let Some(event) = read(&item).and_then(|event| translate(&event)) {
            each(event);
        }
    }
}

#[expect(unsafe_code, reason = "reads a plain-data struct from the ring buffer's bytes")]
fn read(bytes: &[u8]) -> Option<Event> {
    if bytes.len() < size_of::<Event>() {
        return None;
    }
    // SAFETY: `bytes` holds at least size_of::<Event>() bytes, Event is plain data (aya::Pod), and
    // the read does not ask for alignment.
    Some(unsafe { std::ptr::read_unaligned(bytes.as_ptr().cast()) })
}

fn translate(event: &Event) -> Option<KernelEvent> {
    let dst = socket_addr(&event.dst);
    let start = wall_clock(event.started_ns);
    let finding =
        Finding::ALL.get(event.finding as usize).map_or("unknown", |finding| finding.label());
    Some(match event.kind {
        kind if kind == FlowKind::Bypassed as u32 || kind == FlowKind::Resolver as u32 => {
            KernelEvent::Closed(Closed {
                resolver: kind == FlowKind::Resolver as u32,
                start,
                duration: Duration::from_nanos(event.duration_ns),
                src: (event.established != 0).then(|| socket_addr(&event.src)),
                dst,
                bytes_sent: event.bytes_sent,
                bytes_received: event.bytes_received,
                established: event.established != 0,
            })
        }
        kind if kind == FlowKind::RefusedConnect as u32
            || kind == FlowKind::RefusedDatagram as u32 =>
        {
            KernelEvent::Refused(Refused { at: start, dst, why: finding, protocol: event.protocol })
        }
        _ => return None,
    })
}

/// An endpoint as an address; v4-mapped becomes IPv4.
pub(super) fn socket_addr(endpoint: &Endpoint) -> SocketAddr {
    SocketAddr::new(IpAddr::from(endpoint.addr()).to_canonical(), endpoint.port())
}

/// When a monotonic time was, on the wall clock: records may be read long after the fact.
fn wall_clock(monotonic_ns: u64) -> SystemTime {
    let now = SystemTime::now();
    let Ok(monotonic_now) = clock_gettime(ClockId::CLOCK_MONOTONIC) else { return now };
    let age = Duration::from(monotonic_now).saturating_sub(Duration::from_nanos(monotonic_ns));
    now.checked_sub(age).unwrap_or(now)
}

#[expect(unsafe_code, reason = "AsyncFd::register asks for a promise about the descriptor")]
fn watch<T: AsRawFd>(inner: T) -> std::io::Result<AsyncFd<T>> {
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
