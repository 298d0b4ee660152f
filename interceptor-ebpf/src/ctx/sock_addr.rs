//! Calls with an address: connect, sendmsg, and what a socket says of its ends.

use core::ptr;

use aya_ebpf::bindings::bpf_sock_addr;
use aya_ebpf::helpers::generated as helpers;
use aya_ebpf::programs::SockAddrContext;
use interceptor_common::{Endpoint, SocketState};

use super::{Slot, addr_of_words, load, storage, words_of_addr};
use crate::maps;

/// The family of the *socket*: a v6 socket may dial a v4-mapped destination.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// AF_INET.
    V4,
    /// AF_INET6.
    V6,
}

/// The IPv4 destination (or, in getsockname/getpeername, the address) of a sock_addr hook.
#[inline(always)]
pub fn sock_addr_v4(ctx: &SockAddrContext) -> Endpoint {
    let ip = load!(ctx.sock_addr, bpf_sock_addr, user_ip4, 0);
    Endpoint::v4(ip.to_ne_bytes(), sock_addr_port(ctx))
}

/// The IPv6 destination of a sock_addr hook.
#[inline(always)]
pub fn sock_addr_v6(ctx: &SockAddrContext) -> Endpoint {
    let words = [
        load!(ctx.sock_addr, bpf_sock_addr, user_ip6, 0),
        load!(ctx.sock_addr, bpf_sock_addr, user_ip6, 1),
        load!(ctx.sock_addr, bpf_sock_addr, user_ip6, 2),
        load!(ctx.sock_addr, bpf_sock_addr, user_ip6, 3),
    ];
    Endpoint::new(addr_of_words(words), sock_addr_port(ctx))
}

#[inline(always)]
fn sock_addr_port(ctx: &SockAddrContext) -> u16 {
    u16::from_be(load!(ctx.sock_addr, bpf_sock_addr, user_port, 0) as u16)
}

/// IP protocol of the socket of a sock_addr hook.
#[inline(always)]
pub fn sock_addr_protocol(ctx: &SockAddrContext) -> u32 {
    load!(ctx.sock_addr, bpf_sock_addr, protocol, 0)
}

/// Writes the address; the port stays.
#[inline(always)]
pub fn set_addr_v4(ctx: &SockAddrContext, addr: [u8; 4]) {
    // SAFETY: user_ip4 may be written by this hook, as the verifier checks.
    unsafe { ptr::write_volatile(&raw mut (*ctx.sock_addr).user_ip4, u32::from_ne_bytes(addr)) };
}

/// Writes the address; the port stays.
#[inline(always)]
pub fn set_addr_v6(ctx: &SockAddrContext, addr: [u8; 16]) {
    let words = words_of_addr(addr);
    // SAFETY: user_ip6 may be written by this hook, as the verifier checks; one write a word.
    unsafe {
        ptr::write_volatile(&raw mut (*ctx.sock_addr).user_ip6[0], words[0]);
        ptr::write_volatile(&raw mut (*ctx.sock_addr).user_ip6[1], words[1]);
        ptr::write_volatile(&raw mut (*ctx.sock_addr).user_ip6[2], words[2]);
        ptr::write_volatile(&raw mut (*ctx.sock_addr).user_ip6[3], words[3]);
    }
}

/// Writes the port (host order).
#[inline(always)]
pub fn set_port(ctx: &SockAddrContext, port: u16) {
    // SAFETY: user_port may be written by this hook, as the verifier checks.
    unsafe { ptr::write_volatile(&raw mut (*ctx.sock_addr).user_port, u32::from(port.to_be())) };
}

/// Whether the socket is bound to a device (SO_BINDTODEVICE).
#[inline(always)]
pub fn is_bound_to_device(ctx: &SockAddrContext) -> bool {
    // SAFETY: the pointer comes from the context; the verifier knows it as a socket, and
    // bound_dev_if is a readable field of it.
    unsafe {
        let sk = (*ctx.sock_addr).__bindgen_anon_1.sk;
        !sk.is_null() && ptr::read_volatile(&raw const (*sk).bound_dev_if) != 0
    }
}

/// Lifts a binding to a device (SO_BINDTODEVICE), which would lead a redirected connection to the
/// wrong side of the wire. False if the kernel refuses.
#[inline(always)]
pub fn unbind_device(ctx: &SockAddrContext) -> bool {
    const SOL_SOCKET: i32 = 1;
    const SO_BINDTOIFINDEX: i32 = 62;
    // SAFETY: the pointer comes from the context; the verifier knows it as a socket.
    let sk = unsafe { (*ctx.sock_addr).__bindgen_anon_1.sk };
    // SAFETY: a non-null check follows; bound_dev_if is a readable field of bpf_sock.
    if sk.is_null() || unsafe { ptr::read_volatile(&raw const (*sk).bound_dev_if) } == 0 {
        return true;
    }
    let mut none = 0_i32;
    // SAFETY: `none` outlives the call, and the length is its size.
    let result = unsafe {
        helpers::bpf_setsockopt(
            ctx.sock_addr.cast(),
            SOL_SOCKET,
            SO_BINDTOIFINDEX,
            (&raw mut none).cast(),
            4,
        )
    };
    result == 0
}

/// What connect decided for the socket of a sock_addr hook.
#[inline(always)]
pub fn state_of_sock_addr(ctx: &SockAddrContext) -> Option<&'static mut SocketState> {
    // SAFETY: the pointer comes from the context.
    storage(&maps::SOCKETS, unsafe { (*ctx.sock_addr).__bindgen_anon_1.sk }, Slot::Find)
}

/// The storage that connect writes its decision to; made on first use, zeroed. `None`: no memory.
#[inline(always)]
pub fn state_to_fill(ctx: &SockAddrContext) -> Option<&'static mut SocketState> {
    // SAFETY: the pointer comes from the context.
    storage(&maps::SOCKETS, unsafe { (*ctx.sock_addr).__bindgen_anon_1.sk }, Slot::Make)
}
