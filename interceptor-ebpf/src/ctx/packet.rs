//! Packets, and the sockets that they belong to.

use core::ffi::c_void;
use core::mem::MaybeUninit;
use core::ptr;

use aya_ebpf::bindings::{__sk_buff, bpf_sock};
use aya_ebpf::helpers::generated as helpers;
use aya_ebpf::programs::SkBuffContext;
use interceptor_common::{ShownName, SocketState};
use interceptor_ebpf::hello::{MAX_MESSAGE, PIECE};

use super::{HAS_SKB_NETNS, Slot, is_v4_mapped, load, netns_cookie, opaque, storage};
use crate::maps;
use crate::scratch::Scratch;

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

    /// Cookie of its network namespace. Below Linux 6.12, where packet hooks cannot ask, what was noted
    /// when it was made; 0: nothing.
    #[inline(always)]
    pub fn netns(&self, ctx: &SkBuffContext) -> u64 {
        if HAS_SKB_NETNS.load() != 0 {
            return netns_cookie(ctx.skb.skb);
        }
        self.state_slot().map_or(0, |state| state.netns)
    }

    /// Whether it speaks IPv4 or IPv6, and is no packet socket.
    #[inline(always)]
    pub fn is_inet(&self) -> bool {
        const AF_INET: u32 = 2;
        const AF_INET6: u32 = 10;
        matches!(load!(self.sk, bpf_sock, family, 0), AF_INET | AF_INET6)
    }

    /// Whether its peer is `addr` (v4-mapped for IPv4) and `port`.
    #[inline(always)]
    pub fn is_connected_to(&self, addr: [u32; 4], port: u16) -> bool {
        // SAFETY: a readable field of a full socket.
        let peer = unsafe { ptr::read_volatile(&raw const (*self.sk).dst_port) };
        if u16::from_be(peer) != port {
            return false;
        }
        if is_v4_mapped(addr) {
            return load!(self.sk, bpf_sock, dst_ip4, 0) == addr[3];
        }
        load!(self.sk, bpf_sock, dst_ip6, 0) == addr[0]
            && load!(self.sk, bpf_sock, dst_ip6, 1) == addr[1]
            && load!(self.sk, bpf_sock, dst_ip6, 2) == addr[2]
            && load!(self.sk, bpf_sock, dst_ip6, 3) == addr[3]
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

/// Its link-layer protocol, as in the frame.
#[inline(always)]
pub fn packet_ethertype(ctx: &SkBuffContext) -> u16 {
    u16::from_be(load!(ctx.skb.skb, __sk_buff, protocol, 0) as u16)
}

/// Whether its frame was tagged for a VLAN.
#[inline(always)]
pub fn packet_is_tagged(ctx: &SkBuffContext) -> bool {
    load!(ctx.skb.skb, __sk_buff, vlan_present, 0) != 0
}

/// Whether its frame is for a group or for all.
#[inline(always)]
pub fn packet_is_for_many(ctx: &SkBuffContext) -> bool {
    const PACKET_BROADCAST: u32 = 1;
    const PACKET_MULTICAST: u32 = 2;
    let kind = load!(ctx.skb.skb, __sk_buff, pkt_type, 0);
    matches!(kind, PACKET_BROADCAST | PACKET_MULTICAST)
}

/// How many segments a packet is sent in, and the payload of a full one; zeros where it is one.
#[inline(always)]
pub fn packet_segments(ctx: &SkBuffContext) -> (u32, u32) {
    (load!(ctx.skb.skb, __sk_buff, gso_segs, 0), load!(ctx.skb.skb, __sk_buff, gso_size, 0))
}

/// Cgroup of the socket that a packet belongs to.
#[inline(always)]
pub fn packet_cgroup(ctx: &SkBuffContext) -> u64 {
    // SAFETY: the helper takes the hook's own context.
    unsafe { helpers::bpf_skb_cgroup_id(ctx.skb.skb) }
}

/// The cgroup that a packet's socket's lies in, at this level (the top is 0); 0: it is not so deep.
#[inline(always)]
pub fn packet_ancestor(ctx: &SkBuffContext, level: u32) -> u64 {
    // SAFETY: the helper takes the hook's own context, and a plain number.
    unsafe { helpers::bpf_skb_ancestor_cgroup_id(ctx.skb.skb, level as i32) }
}

/// Copies `len` bytes (1 to [`PIECE`]) of a packet from `from` on into `scratch`'s message from place
/// `to` (below [`MAX_MESSAGE`]) on. Not 0: they cannot be read.
#[inline(always)]
pub fn load_message(
    ctx: &SkBuffContext,
    from: usize,
    scratch: &mut Scratch,
    to: usize,
    len: usize,
) -> u64 {
    // In the form in which the verifier keeps the bounds.
    let to = opaque(to) & (MAX_MESSAGE - 1);
    let len = (opaque(len - 1) & (PIECE - 1)) + 1;
    // SAFETY: the buffer is a piece longer than the places are.
    unsafe {
        let into = scratch.message.as_mut_ptr().add(to);
        helpers::bpf_skb_load_bytes(ctx.skb.skb.cast(), from as u32, into.cast(), len as u32) as u64
    }
}

/// `N` bytes of a packet; zeros if they cannot be read, as the helper leaves them.
#[inline(always)]
pub fn load_or_zeros<const N: usize>(ctx: &SkBuffContext, at: usize) -> [u8; N] {
    // Not zeroed here: that would be a call, and a loop in it.
    let mut bytes = MaybeUninit::<[u8; N]>::uninit();
    // SAFETY: `bytes` outlives the call and is N bytes long; the helper writes them all, zeros when it
    // fails.
    unsafe {
        helpers::bpf_skb_load_bytes(
            ctx.skb.skb.cast(),
            at as u32,
            bytes.as_mut_ptr().cast(),
            N as u32,
        );
        bytes.assume_init()
    }
}

/// Cuts a packet to `length` bytes, of one segment.
#[inline(always)]
pub fn truncate(ctx: &SkBuffContext, length: usize) -> Option<()> {
    // SAFETY: the helper takes the hook's own context; whatever length, the kernel checks it.
    let failed = unsafe { helpers::bpf_skb_change_tail(ctx.skb.skb, length as u32, 0) };
    (failed == 0).then_some(())
}

/// Writes over a packet's bytes.
#[inline(always)]
pub fn store<T>(ctx: &SkBuffContext, at: usize, bytes: &T) -> Option<()> {
    let (from, length) = (ptr::from_ref(bytes).cast(), size_of::<T>() as u32);
    // SAFETY: `bytes` is `length` bytes long and outlives the call; the kernel checks the place.
    let failed = unsafe { helpers::bpf_skb_store_bytes(ctx.skb.skb, at as u32, from, length, 0) };
    (failed == 0).then_some(())
}

/// Adds `rest` to a checksum in a packet, unless a device will add it (CHECKSUM_PARTIAL).
#[inline(always)]
pub fn complete_checksum(ctx: &SkBuffContext, at: usize, rest: u16) -> Option<()> {
    let rest = u64::from(rest);
    // SAFETY: the helper takes the hook's own context; the kernel checks the place.
    let failed = unsafe { helpers::bpf_l4_csum_replace(ctx.skb.skb, at as u32, 0, rest, 0) };
    (failed == 0).then_some(())
}

/// Has a packet sent out of the interface that it came in by, once the program returned
/// [`TCX_REDIRECT`].
#[inline(always)]
pub fn send_back(ctx: &SkBuffContext) -> bool {
    // SAFETY: plain numbers.
    unsafe { helpers::bpf_redirect(packet_ifindex(ctx), 0) == i64::from(TCX_REDIRECT) }
}

/// The packet goes where `bpf_redirect` said.
pub const TCX_REDIRECT: i32 = 7;
