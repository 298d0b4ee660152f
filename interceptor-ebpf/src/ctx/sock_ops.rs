//! The life of a TCP socket.

use core::ptr;

use aya_ebpf::bindings::{bpf_sock, bpf_sock_ops};
use aya_ebpf::helpers::generated as helpers;
use aya_ebpf::programs::SockOpsContext;
use interceptor_common::{Endpoint, Handover, ShownName, SocketState};

use super::{SK_ERR_OFFSET, Slot, addr_of_words, load, storage};
use crate::maps;

/// The two ends of a sock_ops socket.
#[derive(Clone, Copy)]
pub enum End {
    /// Ours.
    Local,
    /// The peer's.
    Remote,
}

/// The socket behind a sock_ops hook.
#[inline(always)]
fn sock_of_ops(ctx: &SockOpsContext) -> *mut bpf_sock {
    // SAFETY: the pointer comes from the context.
    unsafe { (*ctx.ops).__bindgen_anon_2.sk }
}

/// What connect decided for the socket of a sock_ops hook.
#[inline(always)]
pub fn state_of_ops(ctx: &SockOpsContext) -> Option<&'static mut SocketState> {
    storage(&maps::SOCKETS, sock_of_ops(ctx), Slot::Find)
}

/// The same, made (and zeroed) where there is none. `None`: no memory.
#[inline(always)]
pub fn make_state_of_ops(ctx: &SockOpsContext) -> Option<&'static mut SocketState> {
    storage(&maps::SOCKETS, sock_of_ops(ctx), Slot::Make)
}

/// The name that a direct connection showed, where it was kept.
#[inline(always)]
pub fn shown_name(ctx: &SockOpsContext) -> Option<&'static ShownName> {
    storage(&maps::SHOWN, sock_of_ops(ctx), Slot::Find).map(|name| &*name)
}

/// Gives an accepted socket its original destination. False: no memory.
#[inline(always)]
pub fn hand_over(ctx: &SockOpsContext, handover: &Handover) -> bool {
    match storage(&maps::ACCEPTED, sock_of_ops(ctx), Slot::Make) {
        Some(slot) => {
            *slot = *handover;
            true
        }
        None => false,
    }
}

/// One end of the socket of a sock_ops hook.
#[inline(always)]
pub fn ops_end(ctx: &SockOpsContext, end: End) -> Endpoint {
    const AF_INET: u32 = 2;
    let ops = ctx.ops;
    let v4 = load!(ops, bpf_sock_ops, family, 0) == AF_INET;
    match end {
        End::Local => {
            let port = load!(ops, bpf_sock_ops, local_port, 0) as u16;
            if v4 {
                Endpoint::v4(load!(ops, bpf_sock_ops, local_ip4, 0).to_ne_bytes(), port)
            } else {
                let words = [
                    load!(ops, bpf_sock_ops, local_ip6, 0),
                    load!(ops, bpf_sock_ops, local_ip6, 1),
                    load!(ops, bpf_sock_ops, local_ip6, 2),
                    load!(ops, bpf_sock_ops, local_ip6, 3),
                ];
                Endpoint::new(addr_of_words(words), port)
            }
        }
        End::Remote => {
            let port = u32::from_be(load!(ops, bpf_sock_ops, remote_port, 0)) as u16;
            if v4 {
                Endpoint::v4(load!(ops, bpf_sock_ops, remote_ip4, 0).to_ne_bytes(), port)
            } else {
                let words = [
                    load!(ops, bpf_sock_ops, remote_ip6, 0),
                    load!(ops, bpf_sock_ops, remote_ip6, 1),
                    load!(ops, bpf_sock_ops, remote_ip6, 2),
                    load!(ops, bpf_sock_ops, remote_ip6, 3),
                ];
                Endpoint::new(addr_of_words(words), port)
            }
        }
    }
}

/// First two arguments of a sock_ops callback (old and new state in STATE_CB).
#[inline(always)]
pub fn ops_args(ctx: &SockOpsContext) -> (u32, u32) {
    // SAFETY: args may be read in every callback.
    unsafe {
        (
            ptr::read_volatile(&raw const (*ctx.ops).__bindgen_anon_1.args[0]),
            ptr::read_volatile(&raw const (*ctx.ops).__bindgen_anon_1.args[1]),
        )
    }
}

/// Bytes acknowledged by and received from the peer, SYN and FIN included as the kernel counts.
#[inline(always)]
pub fn ops_bytes(ctx: &SockOpsContext) -> (u64, u64) {
    // SAFETY: both fields may be read on a full socket.
    unsafe {
        (
            ptr::read_volatile(&raw const (*ctx.ops).bytes_acked),
            ptr::read_volatile(&raw const (*ctx.ops).bytes_received),
        )
    }
}

/// Why the socket of a sock_ops hook failed, as a number of errno(3); 0: it did not, or this kernel
/// does not tell where it keeps that.
#[inline(always)]
pub fn socket_error(ctx: &SockOpsContext) -> u32 {
    let offset = SK_ERR_OFFSET.load();
    if offset == 0 {
        return 0;
    }
    let sk = sock_of_ops(ctx);
    if sk.is_null() {
        return 0;
    }
    // SAFETY: the helper takes a socket that is not null and gives the same one, typed, or null.
    let socket = unsafe { helpers::bpf_skc_to_tcp_sock(sk.cast()) };
    if socket.is_null() {
        return 0;
    }
    // SAFETY: the offset is that of sk_err by the kernel's own type information; the verifier checks
    // the load against that.
    unsafe { ptr::read_volatile(socket.cast::<u8>().add(offset as usize).cast::<u32>()) }
}

/// TCP flags of the packet behind a header-option callback.
#[inline(always)]
pub fn ops_tcp_flags(ctx: &SockOpsContext) -> u32 {
    load!(ctx.ops, bpf_sock_ops, skb_tcp_flags, 0)
}
