//! What a redirected socket's owner sees: its real peer, and the source that the route to it
//! would have given, not our loopback addresses.

use aya_ebpf::bindings::bpf_sockopt;
use aya_ebpf::programs::{SockAddrContext, SockoptContext};
use interceptor_common::{SocketState, Tier};

use crate::ctx;

#[inline(always)]
fn redirected(ctx: &SockAddrContext) -> Option<&'static mut SocketState> {
    ctx::state_of_sock_addr(ctx).filter(|state| state.tier == Tier::Redirected as u8)
}

/// getpeername4.
#[inline(always)]
pub fn peer_v4(ctx: &SockAddrContext) {
    if let Some(state) = redirected(ctx)
        && let Some(v4) = state.dst.as_v4()
    {
        ctx::set_addr_v4(ctx, v4);
        ctx::set_port(ctx, state.dst.port());
    }
}

/// getpeername6.
#[inline(always)]
pub fn peer_v6(ctx: &SockAddrContext) {
    if let Some(state) = redirected(ctx) {
        ctx::set_addr_v6(ctx, state.dst.addr());
        ctx::set_port(ctx, state.dst.port());
    }
}

/// getsockname4. A socket that was bound to an address of its own keeps showing it.
#[inline(always)]
pub fn own_v4(ctx: &SockAddrContext) {
    if let Some(state) = redirected(ctx)
        && let Some(src) = state.src.as_v4()
        && ctx::sock_addr_v4(ctx).is_loopback()
    {
        ctx::set_addr_v4(ctx, src);
    }
}

/// getsockname6. As [`own_v4`].
#[inline(always)]
pub fn own_v6(ctx: &SockAddrContext) {
    if let Some(state) = redirected(ctx)
        && ctx::sock_addr_v6(ctx).is_loopback()
    {
        ctx::set_addr_v6(ctx, state.src.addr());
    }
}

const SOL_IP: i32 = 0;
const SOL_IPV6: i32 = 41;
/// SO_ORIGINAL_DST and IP6T_SO_ORIGINAL_DST have the same number.
const ORIGINAL_DST: i32 = 80;
const PAGE: i32 = 4096;

/// getsockopt(SO_ORIGINAL_DST): as netfilter would answer, for programs that know that protocol.
#[inline(always)]
pub fn original_dst(ctx: &SockoptContext) {
    let opt: *mut bpf_sockopt = ctx.sockopt;
    // SAFETY: fields of the hook's own context; optlen is writable.
    let (level, name, len) = unsafe { ((*opt).level, (*opt).optname, (*opt).optlen) };
    if (level != SOL_IP && level != SOL_IPV6) || name != ORIGINAL_DST {
        if len > PAGE {
            // More than the kernel buffers for us: without this the call fails with EFAULT.
            // SAFETY: as above; 0 means "leave the kernel's own answer as it is".
            unsafe { (*opt).optlen = 0 };
        }
        return;
    }
    // SAFETY: the pointer comes from the context.
    let sk = unsafe { (*opt).__bindgen_anon_1.sk };
    let Some(dst) = ctx::original_dst_of(sk) else { return };
    if level == SOL_IP {
        if let Some(v4) = dst.as_v4() {
            ctx::answer_sockaddr_in(opt, v4, dst.port());
        }
    } else {
        ctx::answer_sockaddr_in6(opt, dst.addr(), dst.port());
    }
}
