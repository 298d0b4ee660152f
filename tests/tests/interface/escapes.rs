//! What gets out of a namespace without its sockets' leave: nothing. Each way out is first seen to work in
//! the same pod without the product, and, where the socket layer alone does not hold it, with that layer
//! only.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use interceptor_tests::pod::{Behind, Pod};
use interceptor_tests::product::{Interceptor, Running, binary};
use interceptor_tests::world::{self, World};
use socket2::{Domain, Protocol, Socket, Type};

use super::{ALLOWED, CLIENT, FORBIDDEN, RESOLVER, TCP_AND_UDP, escape, product};

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
    let Some(world) = World::testable()? else { return Ok(()) };
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

fn stopped_escape(way: &str, sockets_hold: bool, counted: &[&str]) -> Result<()> {
    let arguments = escape(way);
    let mut command = vec![CLIENT];
    command.extend(arguments.iter().map(String::as_str));
    stopped(&command, sockets_hold, counted)
}

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
    let Some(world) = World::testable()? else { return Ok(()) };
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
    let Some(world) = World::testable()? else { return Ok(()) };
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
    const DESTINATION_OPTIONS: i32 = 60;
    const ROUTING: i32 = 43;
    let Some(world) = World::testable()? else { return Ok(()) };
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
    let Some(world) = World::testable()? else { return Ok(()) };
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
