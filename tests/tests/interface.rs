//! The interface layer at a pod's link: what gets out of a namespace without its sockets' leave, and
//! what must still get through. The judge is a capture at the far side; each way out is first seen to
//! work in the same pod without the product, and, where the socket layer alone does not hold it, with
//! that layer only.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use interceptor_tests::pod::{Behind, NEXT_HOP, POD_V4, POD_V6, Pod};
use interceptor_tests::product::{Interceptor, Running, binary};
use interceptor_tests::world::{self, World, kernel_tests};
use socket2::{Domain, Protocol, Socket, Type};

const CLIENT: &str = env!("CARGO_BIN_EXE_interceptor-test-client");
const RESOLVER: &str = "192.0.2.53";
/// What no entry allows.
const FORBIDDEN: IpAddr = world::EXAMPLE_V4;
/// What an entry allows by address, on the echo service's port.
const ALLOWED: [&str; 2] = ["203.0.113.60", "2001:db8:1::60"];

/// The product around the pod, with what a root command has without it.
fn product<'w>(world: &'w World, pod: &Pod, more: &[&str]) -> Result<Interceptor<'w>> {
    let addresses = format!("  resolution: NONE\n  addresses: [{}]\n", ALLOWED.join(", "));
    let entry = world.entry("direct.example.net", 7, "TCP", &addresses)?;
    let mut flags = vec!["--netns", pod.namespace.name(), "--outbound", "registry-only"];
    flags.extend(["--resolver", RESOLVER, "-f", &entry, "--keep-caps"]);
    flags.extend(more);
    Ok(Interceptor::new(world, &binary(), &flags))
}

/// The product around the pod, with a command that was covered and is done.
fn after<'w>(product: Interceptor<'w>, command: &[&str]) -> Result<Running<'w>> {
    let script = format!("{}; echo tried; exec sleep 86400", command.join(" "));
    let run = product.run_command(&["sh", "-c", &script]);
    product.start_as(run, "tried")
}

/// Sees that a way out gets out of the pod without the product, whether it does with the socket layer
/// alone (`sockets_hold`), and that it does not with both; `counted` says that it was the interface
/// layer.
fn stopped(command: &[&str], sockets_hold: bool, counted: &[&str]) -> Result<()> {
    let world = World::new()?;
    {
        let pod = Pod::new(&world, Behind::Internet)?;
        let capture = world.capture()?;
        let running = after(product(&world, &pod, &[])?, command)?;
        let status = running.status()?;
        assert_ne!(status["namespaces"][0]["gaps"], serde_json::json!([]), "it has one layer only");
        let leaked = capture.packets_to(FORBIDDEN);
        assert_eq!(leaked == 0, sockets_hold, "the socket layer alone let out {leaked}");
    }
    let pod = Pod::new(&world, Behind::Node)?;
    let control = world.capture()?;
    let done = pod.output(&world, command)?;
    assert_eq!(done.stdout, "sent\n", "{command:?}: {}", done.stderr);
    assert!(control.packets_to(FORBIDDEN) > 0, "{command:?}: the control does not get out");
    drop(control);

    let capture = world.capture()?;
    let mut running = after(product(&world, &pod, &[])?, command)?;
    let said = running.stdout()?;
    assert_eq!(capture.packets_to(FORBIDDEN), 0, "{command:?}: {said}");
    for name in counted {
        assert!(running.counter(name)? > 0, "{name}: {said}");
    }
    let status = running.status()?;
    assert_eq!(status["namespaces"][0]["interfaces"], serde_json::json!(["pod0"]), "{status}");
    assert_eq!(status["namespaces"][0]["gaps"], serde_json::json!([]), "{status}");
    Ok(())
}

fn escape(way: &str) -> Vec<String> {
    let to = SocketAddr::new(FORBIDDEN, 9).to_string();
    let from = POD_V4.to_string();
    ["escape", way, &to, "--from", &from, "--via", NEXT_HOP].map(str::to_owned).into()
}

fn stopped_escape(way: &str, sockets_hold: bool, counted: &[&str]) -> Result<()> {
    if !kernel_tests() {
        return Ok(());
    }
    let arguments = escape(way);
    let mut command = vec![CLIENT];
    command.extend(arguments.iter().map(String::as_str));
    stopped(&command, sockets_hold, counted)
}

const TCP_AND_UDP: [&str; 2] = ["dropped_interface_socket", "dropped_interface_datagram"];

#[test]
fn t06_af_packet_frames_stay_inside() -> Result<()> {
    stopped_escape("packet", false, &TCP_AND_UDP)
}

#[test]
fn t06_af_packet_past_the_queueing_discipline_stays_inside() -> Result<()> {
    stopped_escape("packet-bypass", false, &TCP_AND_UDP)
}

#[test]
fn t06_af_packet_icmp_echo_stays_inside() -> Result<()> {
    stopped_escape("packet-echo", false, &["dropped_interface_icmp"])
}

#[test]
fn t06_a_tunnel_with_forwarding_stays_inside() -> Result<()> {
    stopped_escape("tunnel", false, &TCP_AND_UDP)
}

#[test]
fn t05_raw_ip_gets_no_socket() -> Result<()> {
    stopped_escape("raw", true, &[])
}

#[test]
fn t05_raw_ip_with_a_header_of_its_own_gets_no_socket() -> Result<()> {
    stopped_escape("header-included", true, &[])
}

#[test]
fn t05_icmp_echo_gets_no_socket() -> Result<()> {
    stopped_escape("echo", true, &[])
}

/// Sees that a lent socket of each of these kinds gets nothing out with both layers, and does without
/// the product, and with the socket layer alone.
fn lent(make: fn() -> Result<OwnedFd>, datagram: bool, counted: &str) -> Result<()> {
    if !kernel_tests() {
        return Ok(());
    }
    let world = World::new()?;
    let path = world.dir().join("lender");
    let place = path.to_string_lossy().into_owned();
    let to = SocketAddr::new(FORBIDDEN, 9).to_string();
    let mut command = vec![CLIENT, "borrow", &place, &to];
    command.extend(datagram.then_some("--udp"));

    for (behind, covered) in [(Behind::Internet, true), (Behind::Node, false), (Behind::Node, true)]
    {
        let pod = Pod::new(&world, behind)?;
        let capture = world.capture()?;
        let lender = pod.lend(&path, make)?;
        let held = if covered {
            let running = after(product(&world, &pod, &[])?, &command)?;
            behind == Behind::Node && running.counter(counted)? > 0
        } else {
            pod.output(&world, &command)?;
            false
        };
        lender.join().expect("no panic in it")?;
        let out = capture.packets_to(FORBIDDEN);
        assert_eq!(out == 0, held, "{behind:?}, covered {covered}: {out}");
        assert_eq!(held, covered && behind == Behind::Node, "{counted}");
        // The pod's address is in one place at a time.
        drop(pod);
        let _ = world.internet.ip(&["route", "del", "10.79.0.0/24"]);
        let _ = world.internet.ip(&["route", "del", "10.78.0.0/24"]);
        let _ = world.internet.ip(&["-6", "route", "del", "2001:db8:78::/64"]);
    }
    Ok(())
}

fn socket(kind: Type, protocol: i32) -> Result<OwnedFd> {
    Ok(Socket::new(Domain::IPV4, kind, Some(Protocol::from(protocol)))?.into())
}

#[test]
fn t07_a_tcp_socket_from_outside_the_cgroup_connects_nowhere() -> Result<()> {
    lent(|| socket(Type::STREAM, libc::IPPROTO_TCP), false, "dropped_interface_socket")
}

#[test]
fn t07_a_datagram_socket_from_outside_the_cgroup_sends_nothing() -> Result<()> {
    lent(|| socket(Type::DGRAM, libc::IPPROTO_UDP), true, "dropped_interface_datagram")
}

#[test]
fn t07_a_raw_socket_from_outside_the_cgroup_sends_nothing() -> Result<()> {
    lent(|| socket(Type::RAW, 253), true, "dropped_interface_protocol")
}

#[test]
fn t07_a_connection_from_before_the_attach_carries_nothing_more() -> Result<()> {
    if !kernel_tests() {
        return Ok(());
    }
    let world = World::new()?;
    let pod = Pod::new(&world, Behind::Node)?;
    let to = SocketAddr::new(FORBIDDEN, 7);
    let mut early = pod.namespace.inside(|| TcpStream::connect(to))??;
    early.set_read_timeout(Some(Duration::from_secs(5)))?;
    early.write_all(b"before")?;
    early.read_exact(&mut [0; 6]).context("the control is not echoed")?;

    let running = product(&world, &pod, &[])?.start()?;
    let capture = world.capture()?;
    early.write_all(b"after")?;
    early.set_read_timeout(Some(Duration::from_secs(1)))?;
    assert!(early.read(&mut [0; 5]).is_err(), "nobody answers what nobody got");
    assert_eq!(capture.packets_to(FORBIDDEN), 0);
    assert!(running.counter("dropped_interface_socket")? > 0);
    Ok(())
}

/// T-2: in ALLOW_ANY other protocols pass, but no TCP behind an extension header, which its receiver would
/// take for TCP.
#[test]
fn t02_extension_headers_hide_no_tcp_in_allow_any() -> Result<()> {
    if !kernel_tests() {
        return Ok(());
    }
    const DESTINATION_OPTIONS: i32 = 60;
    const ROUTING: i32 = 43;
    let world = World::new()?;
    let pod = Pod::new(&world, Behind::Node)?;
    let to = SocketAddr::new(world::EXAMPLE_V6, 0);
    // Next header TCP, padding, and a SYN to port 9.
    let mut packet = vec![6, 0, 1, 4, 0, 0, 0, 0];
    packet.extend([0x9c, 0x41, 0, 9, 0, 0, 0, 1, 0, 0, 0, 0, 0x50, 2, 0xff, 0xff, 0, 0, 0, 0]);
    let send = |protocol: i32| -> Result<()> {
        pod.namespace.inside(|| {
            let socket = Socket::new(Domain::IPV6, Type::RAW, Some(Protocol::from(protocol)))?;
            socket.send_to(&packet, &to.into()).map(drop).context("a raw socket")
        })?
    };
    let control = world.capture()?;
    let deadline = Instant::now() + Duration::from_secs(5);
    while control.packets_to(to.ip()) == 0 {
        assert!(Instant::now() < deadline, "the control does not get out");
        // The first ones may be lost while addresses are looked up.
        send(DESTINATION_OPTIONS)?;
    }
    drop(control);

    let flags = ["--netns", pod.namespace.name(), "--resolver", RESOLVER];
    let running = Interceptor::new(&world, &binary(), &flags).start()?;
    let capture = world.capture()?;
    for protocol in [DESTINATION_OPTIONS, ROUTING] {
        send(protocol)?;
    }
    assert_eq!(capture.packets_to(to.ip()), 0);
    assert_eq!(running.counter("dropped_interface_header")?, 2);
    send(253)?;
    assert_eq!(capture.packets_to(to.ip()), 1, "other protocols pass");
    Ok(())
}

/// The pod's own translation turns what is allowed to where nothing is.
fn translate(pod: &Pod, world: &World) -> Result<()> {
    let rules = format!(
        "table ip detour {{\n  chain out {{\n    type nat hook output priority -100;\n    \
         ip daddr {} dnat to {FORBIDDEN}\n    ip daddr {} dnat to {FORBIDDEN}\n  }}\n}}",
        ALLOWED[0],
        world::HTTPBIN
    );
    let done = pod.output(world, &["nft", &rules])?;
    anyhow::ensure!(done.code == 0, "nft (package nftables): {}", done.stderr);
    Ok(())
}

/// An approved socket's packets go where it was approved to go, or nowhere: a direct connection, and one
/// that the daemon dials.
#[test]
fn t07_address_translation_in_the_namespace_leads_nowhere_else() -> Result<()> {
    if !kernel_tests() {
        return Ok(());
    }
    let world = World::new()?;
    let pod = Pod::new(&world, Behind::Node)?;
    let proxied = world.entry("httpbin.org", 80, "HTTP", "  resolution: DNS\n")?;
    let direct = format!("{}:7", ALLOWED[0]);
    let by_proxy = format!("{}:80", world::HTTPBIN);

    translate(&pod, &world)?;
    let control = world.capture()?;
    pod.output(&world, &[CLIENT, "connect", &direct])?;
    assert_eq!(control.syns_to(FORBIDDEN, 7), 1, "the control does not get out");
    drop(control);

    let running = product(&world, &pod, &["-f", &proxied])?.start()?;
    let capture = world.capture()?;
    let connected = running.exec(&["timeout", "2", CLIENT, "connect", &direct], 0)?;
    assert_ne!(connected.finished.stdout, "connected\n");
    let asked = running.exec(&["timeout", "2", CLIENT, "get", &by_proxy, "httpbin.org"], 0)?;
    assert!(!asked.finished.stdout.starts_with("200"), "{}", asked.finished.stdout);
    assert_eq!(capture.packets_to(FORBIDDEN), 0);
    assert!(running.counter("dropped_interface_elsewhere")? >= 2);
    Ok(())
}

/// What is allowed gets through both layers: direct and by the proxy, over IPv4 and IPv6, and names.
#[test]
fn what_is_allowed_passes() -> Result<()> {
    if !kernel_tests() {
        return Ok(());
    }
    let world = World::new()?;
    let pod = Pod::new(&world, Behind::Node)?;
    let four = world.entry("v4.example.com", 80, "HTTP", "  resolution: DNS\n")?;
    let six = world.entry("v6.example.com", 80, "HTTP", "  resolution: DNS\n")?;
    let running = product(&world, &pod, &["-f", &four, "-f", &six])?.start()?;
    for address in ALLOWED {
        let to = SocketAddr::new(address.parse()?, 7).to_string();
        let echo = running.exec(&[CLIENT, "echo", &to, "--bytes", "1000000"], 1)?;
        assert_eq!(echo.finished.stdout, "1000000 intact\n", "{}", echo.finished.stderr);
    }
    assert_eq!(running.counter("direct")?, 2);
    for (address, own, host) in [
        (world::EXAMPLE_V4, POD_V4, "v4.example.com"),
        (world::EXAMPLE_V6, POD_V6, "v6.example.com"),
    ] {
        let to = SocketAddr::new(address, 80);
        let got = running.exec(&[CLIENT, "get", &to.to_string(), host], 1)?;
        let want =
            format!("200 {to} {}", SocketAddr::new(own, 0).to_string().trim_end_matches('0'));
        assert!(got.finished.stdout.starts_with(&want), "{}, not {want}", got.finished.stdout);
    }
    let before = running.counter("resolver")?;
    let url = "http://v4.example.com/";
    let asked = running.exec(&["curl", "-sS", "-o", "/dev/null", url], 1)?;
    assert_eq!(asked.finished.code, 0, "{}", asked.finished.stderr);
    assert!(running.counter("resolver")? > before, "it asked for the name");
    let by_tcp = running.exec(&[CLIENT, "connect", &format!("{RESOLVER}:53")], 1)?;
    assert_eq!(by_tcp.finished.stdout, "connected\n");
    for name in TCP_AND_UDP {
        assert_eq!(running.counter(name)?, 0, "{name}");
    }
    Ok(())
}

/// T-16: a connection from outside is accepted and answered, by a listener of the workload and by one of
/// another program of the pod; a datagram is answered, and a ping.
#[test]
fn t16_inbound_and_what_answers_it_pass() -> Result<()> {
    if !kernel_tests() {
        return Ok(());
    }
    const BYTES: usize = 300_000;
    let world = World::new()?;
    let pod = Pod::new(&world, Behind::Node)?;
    for at in [SocketAddr::new(POD_V4, 8000), SocketAddr::new(POD_V6, 8000)] {
        let product = product(&world, &pod, &[])?;
        let serve = product.run_command(&[CLIENT, "serve", &at.to_string()]);
        let mut running = product.start_as(serve, "serving")?;
        exchange(&world, at, BYTES)?;
        assert_eq!(running.wait(Duration::from_secs(10))?, 0, "{}", running.stderr()?);
        assert!(running.stdout()?.contains(&format!("{BYTES} served")), "{}", running.stdout()?);
    }
    let running = product(&world, &pod, &[])?.start()?;
    let at = SocketAddr::new(POD_V4, 8001);
    let listener = pod.namespace.inside(|| TcpListener::bind(at))??;
    let other = thread::spawn(move || -> Result<()> {
        let (mut stream, _) = listener.accept()?;
        Ok(std::io::copy(&mut stream.try_clone()?, &mut stream).map(drop)?)
    });
    exchange(&world, at, BYTES)?;
    other.join().expect("no panic in it")?;

    let at = SocketAddr::new(POD_V4, 8002);
    let datagrams = pod.namespace.inside(|| std::net::UdpSocket::bind(at))??;
    let other = thread::spawn(move || -> Result<()> {
        let (length, from) = datagrams.recv_from(&mut [0; 64])?;
        Ok(datagrams.send_to(&vec![1; length], from).map(drop)?)
    });
    let asked = world.internet.inside(|| -> Result<usize> {
        let socket = std::net::UdpSocket::bind("0.0.0.0:0")?;
        socket.set_read_timeout(Some(Duration::from_secs(5)))?;
        socket.send_to(b"anyone?", at)?;
        Ok(socket.recv(&mut [0; 64])?)
    })??;
    assert_eq!(asked, 7);
    other.join().expect("no panic in it")?;

    let pinged = world.internet.inside(|| -> Result<usize> {
        let kind = Some(Protocol::ICMPV4);
        let socket = Socket::new(Domain::IPV4, Type::RAW, kind)?;
        socket.set_read_timeout(Some(Duration::from_secs(5)))?;
        socket.connect(&SocketAddr::new(POD_V4, 0).into())?;
        socket.send(&[8, 0, 0xf7, 0xf7, 0, 7, 0, 1])?;
        Ok((&socket).read(&mut [0; 64])?)
    })??;
    assert_eq!(pinged, 20 + 8);
    assert_eq!(running.counter("passage_table_full")?, 0);
    assert!(running.entries("PASSAGES")? >= 3);
    Ok(())
}

/// From the stub internet to the pod and back.
fn exchange(world: &World, at: SocketAddr, bytes: usize) -> Result<()> {
    let mut sent = vec![0; bytes];
    interceptor_tests::pattern::fill(0, &mut sent);
    let mut stream = world.internet.inside(|| TcpStream::connect(at))??;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    let mut back = Vec::new();
    let mut writer = stream.try_clone()?;
    let outgoing = sent.clone();
    let writing = thread::spawn(move || {
        writer.write_all(&outgoing)?;
        writer.shutdown(std::net::Shutdown::Write)
    });
    stream.read_to_end(&mut back)?;
    writing.join().expect("no panic in it")?;
    assert!(back == sent, "{} of {} bytes came back", back.len(), sent.len());
    Ok(())
}

/// A hundred megabytes there and back, every byte compared.
#[test]
fn bulk_passes_whole() -> Result<()> {
    if !kernel_tests() {
        return Ok(());
    }
    let world = World::new()?;
    let pod = Pod::new(&world, Behind::Node)?;
    let running = product(&world, &pod, &[])?.start()?;
    let to = format!("{}:7", ALLOWED[0]);
    let echo = running.exec(&[CLIENT, "echo", &to, "--bytes", "100000000"], 1)?;
    assert_eq!(echo.finished.stdout, "100000000 intact\n", "{}", echo.finished.stderr);
    assert_eq!(running.counter("direct")?, 1);
    assert_eq!(running.counter("dropped_interface_socket")?, 0);
    Ok(())
}

/// R6: the layer stands while the daemon is dead, and the next start adopts it.
#[test]
fn the_layer_outlives_the_daemon() -> Result<()> {
    if !kernel_tests() {
        return Ok(());
    }
    let world = World::new()?;
    let pod = Pod::new(&world, Behind::Node)?;
    let arguments = escape("packet").join(" ");
    let script = format!(
        "echo ready; while true; do {CLIENT} {arguments} >/dev/null; echo tried; sleep 0.1; done"
    );
    let first = product(&world, &pod, &[])?;
    let run = first.run_command(&["sh", "-c", &script]);
    let mut running = first.start_as(run, "tried")?;
    let links = |running: &Running<'_>| -> Result<Vec<String>> {
        let status = running.status()?;
        let all = status["attachments"].as_array().context("attachments")?.clone();
        let at = |one: &serde_json::Value| one["target"] == "interface pod0";
        Ok(all.iter().filter(|one| at(one)).map(|one| one["hook"].to_string()).collect())
    };
    assert_eq!(links(&running)?, ["\"interface_in\"", "\"interface_out\""]);
    let capture = world.capture()?;
    let before = running.stdout()?.lines().count();
    running.kill()?;
    let deadline = Instant::now() + Duration::from_secs(10);
    while running.stdout()?.lines().count() < before + 3 {
        assert!(Instant::now() < deadline, "the command does not try any more");
        thread::sleep(Duration::from_millis(20));
    }
    assert_eq!(capture.packets_to(FORBIDDEN), 0, "the daemon is dead, the layer is not");
    let detached = running.detach()?;
    assert_eq!(detached.code, 0, "{}", detached.stderr);
    Ok(())
}

/// The links on the pod's interface, and the program on each, by the kernel's numbers.
fn links_of(programs: &[u64]) -> Result<Vec<(u64, u64)>> {
    let listed = Command::new("bpftool").args(["-j", "link", "show"]).output()?;
    let listed: serde_json::Value = serde_json::from_slice(&listed.stdout)?;
    let number = |link: &serde_json::Value, key: &str| link[key].as_u64().unwrap_or(0);
    let all = listed.as_array().context("links")?.iter();
    let all = all.map(|link| (number(link, "id"), number(link, "prog_id")));
    Ok(all.filter(|(_, program)| programs.contains(program)).collect())
}

/// T-60: the next start puts its programs into the links that are there; there is no moment without.
#[test]
fn t60_the_next_start_adopts_the_links() -> Result<()> {
    if !kernel_tests() {
        return Ok(());
    }
    let world = World::new()?;
    let pod = Pod::new(&world, Behind::Node)?;
    let programs = |status: &serde_json::Value| -> Vec<u64> {
        let all = status["attachments"].as_array().cloned().unwrap_or_default();
        let mine = all.iter().filter(|one| one["target"] == "interface pod0");
        mine.filter_map(|one| one["program_id"].as_u64()).collect()
    };
    let mut first = product(&world, &pod, &[])?.start()?;
    let before = programs(&first.status()?);
    let old = links_of(&before)?;
    assert_eq!(old.len(), 2, "{before:?}");
    first.kill()?;
    assert_eq!(links_of(&before)?, old, "they outlive the daemon");

    let mut again = world.command(binary());
    again.args(["run", "--name", first.name(), "--netns", pod.namespace.name()]);
    again.args(["--resolver", RESOLVER, "--", "sleep", "86400"]);
    let mut second = world.spawn(&mut again)?;
    let deadline = Instant::now() + Duration::from_secs(15);
    let after = loop {
        if let Ok(status) = first.status() {
            break programs(&status);
        }
        assert!(Instant::now() < deadline, "the second one does not answer");
        thread::sleep(Duration::from_millis(50));
    };
    let new = links_of(&after)?;
    let ids = |links: &[(u64, u64)]| links.iter().map(|(id, _)| *id).collect::<Vec<_>>();
    assert_eq!(ids(&new), ids(&old), "the same links");
    assert!(before.iter().all(|program| !after.contains(program)), "{before:?} {after:?}");
    world::stop(&mut second)?;
    assert_eq!(links_of(&after)?, []);
    Ok(())
}
