//! What the interface layer answers to TCP that it drops: a reset, as a closed port would, so that nobody
//! waits; and nothing where nothing must be answered.

use std::net::SocketAddr;
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use interceptor_tests::netns::Namespace;
use interceptor_tests::pod::{Behind, NEXT_HOP, POD_V4, Pod};
use interceptor_tests::product::{Interceptor, Running, binary};
use interceptor_tests::world::{self, World, kernel_tests};
use socket2::{Domain, Protocol, Socket, Type};

const CLIENT: &str = env!("CARGO_BIN_EXE_interceptor-test-client");

fn start<'w>(world: &'w World, pod: &Pod) -> Result<Running<'w>> {
    let entry = world.entry("direct.example.net", 7, "TCP", "  resolution: DNS\n")?;
    let flags = ["--netns", pod.namespace.name(), "--outbound", "registry-only"];
    let more = ["--resolver", "192.0.2.53", "-f", &entry];
    Interceptor::new(world, &binary(), &[&flags[..], &more[..]].concat()).start()
}

/// Has an interface's packets sent with whole checksums (`ethtool -K DEVICE tx off`).
fn whole_checksums(namespace: &Namespace, device: &str) -> Result<()> {
    const SIOCETHTOOL: libc::c_ulong = 0x8946;
    const ETHTOOL_STXCSUM: u32 = 0x17;
    let mut value = [ETHTOOL_STXCSUM, 0];
    // SAFETY: all zeros is a valid ifreq.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(device.bytes()) {
        *to = from as libc::c_char;
    }
    request.ifr_ifru.ifru_data = value.as_mut_ptr().cast();
    let at = std::ptr::from_mut(&mut request) as usize;
    let done = namespace.inside(move || -> Result<i32> {
        let socket = Socket::new(Domain::IPV4, Type::DGRAM, None)?;
        // SAFETY: the request and what it points at outlive the call, which this thread waits for.
        Ok(unsafe { libc::ioctl(socket.as_raw_fd(), SIOCETHTOOL, at as *mut libc::ifreq) })
    })??;
    ensure!(done == 0, "ethtool: {}", std::io::Error::last_os_error());
    Ok(())
}

/// T-7: a socket that was made outside and lent is refused at once, whoever makes the checksums: nobody
/// (the packet stays on the machine), its own kernel, or the daemon's end.
#[test]
fn t07_a_lent_connect_is_refused_at_once() -> Result<()> {
    if !kernel_tests() {
        return Ok(());
    }
    let world = World::new()?;
    let pod = Pod::new(&world, Behind::Node)?;
    let running = start(&world, &pod)?;
    let capture = world.capture()?;
    let path = world.dir().join("lender");
    let place = path.to_string_lossy().into_owned();
    let mut answered = 0;
    for changed in [None, Some((&world.workload, "pod0")), Some((&pod.namespace, "eth0"))] {
        if let Some((namespace, device)) = changed {
            whole_checksums(namespace, device)?;
        }
        for address in [world::EXAMPLE_V4, world::EXAMPLE_V6] {
            let to = SocketAddr::new(address, 9);
            let kind = (Domain::for_address(to), Type::STREAM, Some(Protocol::TCP));
            let lender = pod.lend(&path, || Ok(Socket::new(kind.0, kind.1, kind.2)?.into()))?;
            let begun = Instant::now();
            let tried = running.exec(&[CLIENT, "borrow", &place, &to.to_string()], 0)?;
            lender.join().expect("no panic in it")?;
            assert_eq!(tried.finished.stdout, "ECONNREFUSED\n", "{to} {changed:?}");
            assert!(begun.elapsed() < Duration::from_secs(1), "{to}: {:?}", begun.elapsed());
            answered += 1;
            assert_eq!(running.counter("interface_reset")?, answered, "{to}: one answer");
            assert_eq!(capture.packets_to(address), 0);
        }
    }
    assert_eq!(running.counter("dropped_interface_socket")?, answered);
    Ok(())
}

/// One answer to one segment; none to a reset, nor to what a group or everybody is meant with.
#[test]
fn t07_no_answer_to_resets_and_groups() -> Result<()> {
    if !kernel_tests() {
        return Ok(());
    }
    let world = World::new()?;
    let pod = Pod::new(&world, Behind::Node)?;
    let running = start(&world, &pod)?;
    let from = POD_V4.to_string();
    let to = SocketAddr::new(world::EXAMPLE_V4, 9).to_string();
    let everybody = "ff:ff:ff:ff:ff:ff";
    for (count, (way, to, via, answers)) in [
        ("packet", to.as_str(), NEXT_HOP, 1),
        ("packet-reset", &to, NEXT_HOP, 1),
        ("packet", "224.0.0.9:9", NEXT_HOP, 1),
        ("packet", &to, everybody, 1),
        ("packet-fragment", &to, NEXT_HOP, 1),
        ("packet", &to, NEXT_HOP, 2),
    ]
    .into_iter()
    .enumerate()
    {
        let escape = [CLIENT, "escape", way, to, "--from", &from, "--via", via];
        let tried = pod.output(&world, &escape)?;
        assert_eq!(tried.stdout, "sent\n", "{}", tried.stderr);
        let dropped = running.counter("dropped_interface_socket")?
            + running.counter("dropped_interface_header")?;
        assert_eq!(dropped, count as u64 + 1, "{way} {to} {via} was not dropped");
        assert_eq!(running.counter("interface_reset")?, answers, "{way} {to} {via}");
    }
    Ok(())
}
