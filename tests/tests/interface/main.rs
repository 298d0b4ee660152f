//! The interface layer at a pod's link. The judge is a capture at the far side.

mod escapes;
mod lasting;
mod passing;

use std::net::{IpAddr, SocketAddr};

use anyhow::Result;
use interceptor_tests::pod::{NEXT_HOP, POD_V4, Pod};
use interceptor_tests::product::{Interceptor, binary};
use interceptor_tests::world::{self, World};

const CLIENT: &str = env!("CARGO_BIN_EXE_interceptor-test-client");
const RESOLVER: &str = "192.0.2.53";
/// What no entry allows.
const FORBIDDEN: IpAddr = world::EXAMPLE_V4;
/// What an entry allows by address, on the echo service's port.
const ALLOWED: [&str; 2] = ["203.0.113.60", "2001:db8:1::60"];
/// The counters of what the layer dropped of these.
const TCP_AND_UDP: [&str; 2] = ["dropped_interface_socket", "dropped_interface_datagram"];

/// The product around the pod, with what a root command has without it.
fn product<'w>(world: &'w World, pod: &Pod, more: &[&str]) -> Result<Interceptor<'w>> {
    let addresses = format!("  resolution: NONE\n  addresses: [{}]\n", ALLOWED.join(", "));
    let entry = world.entry("direct.example.net", 7, "TCP", &addresses)?;
    let mut flags = vec!["--netns", pod.namespace.name(), "--outbound", "registry-only"];
    flags.extend(["--resolver", RESOLVER, "-f", &entry, "--keep-caps"]);
    flags.extend(more);
    Ok(Interceptor::new(world, &binary(), &flags))
}

/// The arguments of a client that tries this way out.
fn escape(way: &str) -> Vec<String> {
    let to = SocketAddr::new(FORBIDDEN, 9).to_string();
    let from = POD_V4.to_string();
    ["escape", way, &to, "--from", &from, "--via", NEXT_HOP].map(str::to_owned).into()
}
