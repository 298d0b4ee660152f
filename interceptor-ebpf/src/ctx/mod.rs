//! The unsafe door: safe readers and writers over hook contexts and socket storage, a file for each
//! kind of context.
//!
//! Context fields are loaded by inline assembly with constant offsets where two arms of an `if`
//! read neighbouring fields: LLVM otherwise merges them into one load through a selected pointer,
//! which the verifier refuses ("dereference of modified ctx ptr").

mod packet;
mod sock_addr;
mod sock_ops;
mod sockopt;

use core::ffi::c_void;
use core::ptr;

use aya_ebpf::Global;
use aya_ebpf::bindings::bpf_sock;
use aya_ebpf::btf_maps::SkStorage;
use aya_ebpf::helpers::generated as helpers;
use aya_ebpf::programs::SockContext;
use interceptor_common::{Endpoint, ShownName};

use crate::maps;

pub use self::packet::*;
pub use self::sock_addr::*;
pub use self::sock_ops::*;
pub use self::sockopt::*;

/// What a hook makes of a socket, call or packet.
#[must_use]
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Goes on.
    Allow,
    /// Ends here, with EPERM unless [`refuse_with`] said otherwise.
    Refuse,
}

/// Set by the loader where the kernel has bpf_set_retval (5.18); a const to the verifier, which
/// then never looks at the call on older ones.
#[unsafe(no_mangle)]
pub static HAS_SET_RETVAL: Global<u8> = Global::new(0);

/// Set by the loader where packet hooks may ask for the namespace cookie (6.12).
#[unsafe(no_mangle)]
pub static HAS_SKB_NETNS: Global<u8> = Global::new(0);

/// Set by the loader: where the kernel keeps a socket's error; 0: it does not say.
#[unsafe(no_mangle)]
pub static SK_ERR_OFFSET: Global<u32> = Global::new(0);

/// ENETUNREACH.
pub const NETUNREACH: i32 = 101;

/// EPROTONOSUPPORT.
pub const PROTONOSUPPORT: i32 = 93;

/// Refuses with another error than EPERM, where the kernel can.
#[inline(always)]
pub fn refuse_with(errno: i32) -> Verdict {
    if HAS_SET_RETVAL.load() != 0 {
        // SAFETY: the helper takes a plain number and is there (see HAS_SET_RETVAL).
        unsafe { helpers::bpf_set_retval(-errno) };
    }
    Verdict::Refuse
}

macro_rules! load {
    ($base:expr, $type:ty, $field:ident, $index:literal) => {{
        let value: u64;
        // SAFETY: a four-byte load at a constant offset inside the context, which the verifier
        // checks.
        unsafe {
            core::arch::asm!(
                "{0} = *(u32 *)({1} + {2})",
                out(reg) value,
                in(reg) $base,
                const core::mem::offset_of!($type, $field) + 4 * $index,
                options(nostack, readonly, preserves_flags)
            );
        }
        value as u32
    }};
}
use load;

#[inline(always)]
fn addr_of_words(words: [u32; 4]) -> [u8; 16] {
    // SAFETY: same size, and every bit pattern is valid in both.
    unsafe { core::mem::transmute(words) }
}

#[inline(always)]
fn words_of_addr(addr: [u8; 16]) -> [u32; 4] {
    // SAFETY: same size, and every bit pattern is valid in both.
    unsafe { core::mem::transmute(addr) }
}

/// Whether an address is a v4-mapped one.
#[inline(always)]
pub fn is_v4_mapped(words: [u32; 4]) -> bool {
    words[0] == 0 && words[1] == 0 && words[2] == 0xffff_u32.to_be()
}

/// An address as words in network order.
#[inline(always)]
pub fn words(addr: [u8; 16]) -> [u32; 4] {
    words_of_addr(addr)
}

/// An end of a packet's flow.
#[inline(always)]
pub fn endpoint(words: [u32; 4], port: u16) -> Endpoint {
    Endpoint::new(addr_of_words(words), port)
}

/// Network namespace cookie of the socket behind a context (sock_addr, sock_ops).
#[inline(always)]
pub fn netns_cookie<T>(ctx: *mut T) -> u64 {
    // SAFETY: the helper takes the hook's own context.
    unsafe { helpers::bpf_get_netns_cookie(ctx.cast()) }
}

/// Cgroup of the calling task.
#[inline(always)]
pub fn current_cgroup() -> u64 {
    // SAFETY: no arguments.
    unsafe { helpers::bpf_get_current_cgroup_id() }
}

/// The cgroup that the calling task's lies in, at this level (the top is 0); 0: it is not so deep.
#[inline(always)]
pub fn current_ancestor(level: u32) -> u64 {
    // SAFETY: a plain number.
    unsafe { helpers::bpf_get_current_ancestor_cgroup_id(level as i32) }
}

/// User and group of the calling task, as the initial user namespace has them.
#[inline(always)]
pub fn current_ids() -> (u32, u32) {
    // SAFETY: no arguments.
    let both = unsafe { helpers::bpf_get_current_uid_gid() };
    (both as u32, (both >> 32) as u32)
}

/// Monotonic nanoseconds.
#[inline(always)]
pub fn now_ns() -> u64 {
    // SAFETY: no arguments.
    unsafe { helpers::bpf_ktime_get_ns() }
}

/// Adds one to a value of a map, whoever else does at the same time.
#[inline(always)]
pub fn add_one(value: *mut u64) {
    // SAFETY: an atomic addition to eight bytes, which the verifier checks. LLVM has no name for it
    // without more than every kernel has.
    unsafe {
        core::arch::asm!(
            "lock *(u64 *)({0} + 0) += {1}",
            in(reg) value,
            in(reg) 1_u64,
            options(nostack)
        );
    }
}

/// Number of the socket behind a context, unique while the machine runs.
#[inline(always)]
pub fn socket_cookie<T>(ctx: *mut T) -> u64 {
    // SAFETY: the helper takes the hook's own context.
    unsafe { helpers::bpf_get_socket_cookie(ctx.cast()) }
}

/// Type and protocol of a socket being made.
#[inline(always)]
pub fn created(ctx: &SockContext) -> (u32, u32) {
    (load!(ctx.sock, bpf_sock, type_, 0), load!(ctx.sock, bpf_sock, protocol, 0))
}

/// Keeps the namespace of a socket being made, where packet hooks cannot ask for it. No memory: what it
/// sends is judged as of a namespace that is not known.
#[inline(always)]
pub fn note_netns(ctx: &SockContext, netns: u64) {
    if HAS_SKB_NETNS.load() == 0
        && let Some(state) = storage(&maps::SOCKETS, ctx.sock, Slot::Make)
    {
        state.netns = netns;
    }
}

/// Whether a missing slot is made (and zeroed).
#[derive(Clone, Copy, PartialEq, Eq)]
enum Slot {
    Find,
    Make,
}

/// The storage slot of type `T` in socket `sk`.
#[inline(always)]
fn storage<T>(map: &SkStorage<T>, sk: *mut bpf_sock, slot: Slot) -> Option<&'static mut T> {
    if sk.is_null() {
        return None;
    }
    let flags = u64::from(slot == Slot::Make);
    // aya-ebpf 0.2.1 offers SkStorage for sock_addr contexts only; the map's address is the same.
    let map = ptr::from_ref(map).cast_mut().cast::<c_void>();
    // SAFETY: `map` is an SK_STORAGE map of `T`, `sk` a socket that the verifier knows; the kernel
    // returns null or a slot of T's size, zeroed when made, that lives as long as the socket.
    unsafe {
        helpers::bpf_sk_storage_get(map, sk.cast(), ptr::null_mut(), flags).cast::<T>().as_mut()
    }
}

/// Copies a name, or writes an empty one. Word by word and in place: the BPF stack has no room for a
/// name, and LLVM would put one there.
#[inline(always)]
pub fn copy_name(from: Option<&ShownName>, to: *mut ShownName) {
    const WORDS: usize = size_of::<ShownName>() / size_of::<u64>();
    let mut at = 0;
    while at < WORDS {
        // SAFETY: both are aligned to eight bytes and WORDS words long.
        unsafe {
            let word = match from {
                Some(name) => ptr::read_volatile(ptr::from_ref(name).cast::<u64>().add(at)),
                None => 0,
            };
            ptr::write_volatile(to.cast::<u64>().add(at), word);
        }
        at += 1;
    }
}

/// Hides from LLVM what is known of a number, so that it keeps the mask that the verifier needs.
#[inline(always)]
pub fn opaque(mut value: usize) -> usize {
    // SAFETY: does nothing.
    unsafe {
        core::arch::asm!("{0} = {0}", inout(reg) value, options(pure, nomem, nostack));
    }
    value
}
