//! Answers to getsockopt.

use core::ptr;

use aya_ebpf::bindings::{bpf_sock, bpf_sockopt};
use interceptor_common::{Endpoint, Tier};

use super::{Slot, storage, words_of_addr};
use crate::maps;

/// The original destination in the storage of an accepted socket, or of a workload's.
#[inline(always)]
pub fn original_dst_of(sk: *mut bpf_sock) -> Option<Endpoint> {
    if let Some(handover) = storage(&maps::ACCEPTED, sk, Slot::Find) {
        return Some(handover.dst);
    }
    let state = storage(&maps::SOCKETS, sk, Slot::Find)?;
    if state.tier == Tier::Redirected as u8 { Some(state.dst) } else { None }
}

/// Marks a getsockopt as answered. Two volatile stores: LLVM otherwise makes one of eight bytes of
/// them, which no context takes.
///
/// # Safety
/// `opt` is the hook's own context.
#[inline(always)]
unsafe fn answered(opt: *mut bpf_sockopt, len: i32) {
    // SAFETY: both fields are writable.
    unsafe {
        ptr::write_volatile(&raw mut (*opt).optlen, len);
        ptr::write_volatile(&raw mut (*opt).retval, 0);
    }
}

/// Answers getsockopt with a `sockaddr_in`.
#[inline(always)]
pub fn answer_sockaddr_in(opt: *mut bpf_sockopt, addr: [u8; 4], port: u16) {
    const AF_INET: u16 = 2;
    // SAFETY: optval..optval_end is the caller's buffer as the kernel mirrors it; the bound is
    // checked in the form that the verifier understands before any write.
    unsafe {
        let start = (*opt).__bindgen_anon_2.optval as usize;
        let end = (*opt).__bindgen_anon_3.optval_end as usize;
        if start + 16 > end {
            return;
        }
        let out = start as *mut u16;
        *out = AF_INET;
        *out.add(1) = port.to_be();
        *out.add(2).cast::<u32>() = u32::from_ne_bytes(addr);
        *out.add(4).cast::<u32>() = 0;
        *out.add(6).cast::<u32>() = 0;
        answered(opt, 16);
    }
}

/// Answers getsockopt with a `sockaddr_in6`.
#[inline(always)]
pub fn answer_sockaddr_in6(opt: *mut bpf_sockopt, addr: [u8; 16], port: u16) {
    const AF_INET6: u16 = 10;
    let words = words_of_addr(addr);
    // SAFETY: as in `answer_sockaddr_in`.
    unsafe {
        let start = (*opt).__bindgen_anon_2.optval as usize;
        let end = (*opt).__bindgen_anon_3.optval_end as usize;
        if start + 28 > end {
            return;
        }
        let out = start as *mut u16;
        *out = AF_INET6;
        *out.add(1) = port.to_be();
        *out.add(2).cast::<u32>() = 0;
        *out.add(4).cast::<u32>() = words[0];
        *out.add(6).cast::<u32>() = words[1];
        *out.add(8).cast::<u32>() = words[2];
        *out.add(10).cast::<u32>() = words[3];
        *out.add(12).cast::<u32>() = 0;
        answered(opt, 28);
    }
}
