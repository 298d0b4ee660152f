//! The unsafe door: safe readers and writers over hook contexts and socket storage.
//!
//! Context fields are loaded by inline assembly with constant offsets where two arms of an `if`
//! read neighbouring fields: LLVM otherwise merges them into one load through a selected pointer,
//! which the verifier refuses ("dereference of modified ctx ptr").

use core::ffi::c_void;
use core::ptr;

use aya_ebpf::Global;
use aya_ebpf::bindings::{__sk_buff, bpf_sock, bpf_sock_addr, bpf_sock_ops, bpf_sockopt};
use aya_ebpf::btf_maps::SkStorage;
use aya_ebpf::helpers::generated as helpers;
use aya_ebpf::programs::{SkBuffContext, SockAddrContext, SockContext, SockOpsContext};
use interceptor_common::{Endpoint, Handover, ShownName, SocketState, Tier};

use crate::maps;
use crate::scratch::Scratch;

/// What a hook makes of a socket, call or packet.
#[must_use]
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Goes on.
    Allow,
    /// Ends here, with EPERM unless [`refuse_with`] said otherwise.
    Refuse,
}

/// The family of the *socket*: a v6 socket may dial a v4-mapped destination.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// AF_INET.
    V4,
    /// AF_INET6.
    V6,
}

/// Set by the loader where the kernel has bpf_set_retval (5.18); a const to the verifier, which
/// then never looks at the call on older ones.
#[unsafe(no_mangle)]
pub static HAS_SET_RETVAL: Global<u8> = Global::new(0);

/// Set by the loader where packet hooks may ask for the namespace cookie (6.12).
#[unsafe(no_mangle)]
pub static HAS_SKB_NETNS: Global<u8> = Global::new(0);

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

/// Number of the socket behind a context, unique while the machine runs.
#[inline(always)]
pub fn socket_cookie<T>(ctx: *mut T) -> u64 {
    // SAFETY: the helper takes the hook's own context.
    unsafe { helpers::bpf_get_socket_cookie(ctx.cast()) }
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

/// The name that a direct connection showed, where it was kept.
#[inline(always)]
pub fn shown_name(ctx: &SockOpsContext) -> Option<&'static ShownName> {
    storage(&maps::SHOWN, sock_of_ops(ctx), Slot::Find).map(|name| &*name)
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

/// The two ends of a sock_ops socket.
#[derive(Clone, Copy)]
pub enum End {
    /// Ours.
    Local,
    /// The peer's.
    Remote,
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

/// TCP flags of the packet behind a header-option callback.
#[inline(always)]
pub fn ops_tcp_flags(ctx: &SockOpsContext) -> u32 {
    load!(ctx.ops, bpf_sock_ops, skb_tcp_flags, 0)
}

/// A full socket as a packet hook sees it.
#[derive(Clone, Copy)]
pub struct PacketSocket {
    sk: *mut bpf_sock,
    /// IP protocol.
    pub protocol: u32,
    /// `SOCK_STREAM`, ...
    pub kind: u32,
    /// TCP state.
    pub state: u32,
}

impl PacketSocket {
    /// What connect decided for it.
    #[inline(always)]
    pub fn state_slot(&self) -> Option<&'static mut SocketState> {
        storage(&maps::SOCKETS, self.sk, Slot::Find)
    }

    /// Where its hello is read; made on first use. `None`: no memory.
    #[inline(always)]
    pub fn scratch(&self) -> Option<&'static mut Scratch> {
        storage(&maps::SCRATCH, self.sk, Slot::Make)
    }

    /// Gives the memory of [`Self::scratch`] back.
    #[inline(always)]
    pub fn drop_scratch(&self) {
        let map = ptr::from_ref(&maps::SCRATCH).cast_mut().cast::<c_void>();
        // SAFETY: an SK_STORAGE map and a socket that the verifier knows; what it held is freed
        // only when no program can be looking at it any more.
        unsafe { helpers::bpf_sk_storage_delete(map, self.sk.cast()) };
    }

    /// Where the name that it shows is kept; made on first use. `None`: no memory.
    #[inline(always)]
    pub fn shown_name(&self) -> Option<&'static mut ShownName> {
        storage(&maps::SHOWN, self.sk, Slot::Make)
    }
}

/// Copies `len` bytes (1 to [`Scratch::MESSAGE`]) of a packet from `from` on into `scratch`'s message
/// from place `to` (below [`Scratch::MESSAGE`]) on. Not 0: they cannot be read.
#[inline(always)]
pub fn load_message(
    ctx: &SkBuffContext,
    from: usize,
    scratch: &mut Scratch,
    to: usize,
    len: usize,
) -> u64 {
    const MASK: usize = Scratch::MESSAGE - 1;
    // In the form in which the verifier keeps the bounds.
    let to = opaque(to) & MASK;
    let len = (opaque(len - 1) & MASK) + 1;
    // SAFETY: the buffer is twice as long as place and length can be.
    unsafe {
        let into = scratch.message.as_mut_ptr().add(to);
        helpers::bpf_skb_load_bytes(ctx.skb.skb.cast(), from as u32, into.cast(), len as u32) as u64
    }
}

/// `N` bytes of a packet; zeros if they cannot be read, as the helper leaves them.
#[inline(always)]
pub fn load_or_zeros<const N: usize>(ctx: &SkBuffContext, at: usize) -> [u8; N] {
    let mut bytes = [0; N];
    // SAFETY: `bytes` outlives the call and is N bytes long.
    unsafe {
        helpers::bpf_skb_load_bytes(
            ctx.skb.skb.cast(),
            at as u32,
            bytes.as_mut_ptr().cast(),
            N as u32,
        );
    }
    bytes
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

/// The socket that a packet belongs to; `None` for packets without a full one.
#[inline(always)]
pub fn packet_socket(ctx: &SkBuffContext) -> Option<PacketSocket> {
    let skb: *mut __sk_buff = ctx.skb.skb;
    // SAFETY: the pointer comes from the context.
    let sk = unsafe { (*skb).__bindgen_anon_2.sk };
    if sk.is_null() {
        return None;
    }
    // SAFETY: `sk` is a non-null socket pointer of the context.
    let sk = unsafe { helpers::bpf_sk_fullsock(sk) };
    if sk.is_null() {
        return None;
    }
    // SAFETY: readable fields of a full socket.
    unsafe {
        Some(PacketSocket {
            sk,
            protocol: ptr::read_volatile(&raw const (*sk).protocol),
            kind: ptr::read_volatile(&raw const (*sk).type_),
            state: ptr::read_volatile(&raw const (*sk).state),
        })
    }
}

/// Interface that a packet goes out by. 1 is loopback in every namespace.
#[inline(always)]
pub fn packet_ifindex(ctx: &SkBuffContext) -> u32 {
    load!(ctx.skb.skb, __sk_buff, ifindex, 0)
}

/// Type and protocol of a socket being made.
#[inline(always)]
pub fn created(ctx: &SockContext) -> (u32, u32) {
    (load!(ctx.sock, bpf_sock, type_, 0), load!(ctx.sock, bpf_sock, protocol, 0))
}

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

/// Cgroup of the socket that a packet belongs to.
#[inline(always)]
pub fn packet_cgroup(ctx: &SkBuffContext) -> u64 {
    // SAFETY: the helper takes the hook's own context.
    unsafe { helpers::bpf_skb_cgroup_id(ctx.skb.skb) }
}

/// Namespace cookie of the socket that a packet belongs to; 0 below Linux 6.12, where packet hooks
/// cannot ask.
#[inline(always)]
pub fn packet_netns(ctx: &SkBuffContext) -> u64 {
    if HAS_SKB_NETNS.load() != 0 { netns_cookie(ctx.skb.skb) } else { 0 }
}
