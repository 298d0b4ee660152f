//! Interceptor's kernel side: the entries of the BPF programs and the tables that turn what a hook
//! found into what the kernel does. No policy beyond "is it ours, and where does it go".
//!
//! One hook pair a file; v4 and v6 are two thin entries over one body.
#![no_std]
#![no_main]
#![feature(asm_experimental_arch)]

mod count;
mod create;
mod connect;
mod ctx;
mod datagram;
mod established;
mod frame;
mod handover;
mod hint;
mod interface;
mod maps;
mod names;
mod packet;
mod prove;
mod reset;
mod scratch;
mod select;

use aya_ebpf::macros::{
    cgroup_skb, cgroup_sock, cgroup_sock_addr, cgroup_sockopt, classifier, sock_ops,
};
use aya_ebpf::programs::{
    SkBuffContext, SockAddrContext, SockContext, SockOpsContext, SockoptContext, TcContext,
};

use crate::ctx::Verdict;

/// IPv4 `connect()`.
#[cgroup_sock_addr(connect4)]
pub fn ix_connect4(ctx: SockAddrContext) -> i32 {
    let dst = ctx::sock_addr_v4(&ctx);
    verdict(connect::connect(&ctx, dst, ctx::Family::V4))
}

/// IPv6 `connect()`, v4-mapped destinations included.
#[cgroup_sock_addr(connect6)]
pub fn ix_connect6(ctx: SockAddrContext) -> i32 {
    let dst = ctx::sock_addr_v6(&ctx);
    verdict(connect::connect(&ctx, dst, ctx::Family::V6))
}

/// IPv4 datagram with a destination.
#[cgroup_sock_addr(sendmsg4)]
pub fn ix_sendmsg4(ctx: SockAddrContext) -> i32 {
    let dst = ctx::sock_addr_v4(&ctx);
    verdict(datagram::sendmsg(&ctx, dst))
}

/// IPv6 datagram with a destination.
#[cgroup_sock_addr(sendmsg6)]
pub fn ix_sendmsg6(ctx: SockAddrContext) -> i32 {
    let dst = ctx::sock_addr_v6(&ctx);
    verdict(datagram::sendmsg(&ctx, dst))
}

/// What a workload sees as its peer.
#[cgroup_sock_addr(getpeername4)]
pub fn ix_getpeername4(ctx: SockAddrContext) -> i32 {
    names::peer_v4(&ctx);
    ALLOW
}

/// What a workload sees as its peer.
#[cgroup_sock_addr(getpeername6)]
pub fn ix_getpeername6(ctx: SockAddrContext) -> i32 {
    names::peer_v6(&ctx);
    ALLOW
}

/// What a workload sees as its own end.
#[cgroup_sock_addr(getsockname4)]
pub fn ix_getsockname4(ctx: SockAddrContext) -> i32 {
    names::own_v4(&ctx);
    ALLOW
}

/// What a workload sees as its own end.
#[cgroup_sock_addr(getsockname6)]
pub fn ix_getsockname6(ctx: SockAddrContext) -> i32 {
    names::own_v6(&ctx);
    ALLOW
}

/// `getsockopt(SO_ORIGINAL_DST)`, of a workload's socket and of an accepted one.
#[cgroup_sockopt(getsockopt)]
pub fn ix_getsockopt(ctx: SockoptContext) -> i32 {
    names::original_dst(&ctx);
    ALLOW
}

/// Socket creation: TCP and UDP only where the mode says so; Multipath TCP never.
#[cgroup_sock(sock_create)]
pub fn ix_sock_create(ctx: SockContext) -> i32 {
    verdict(create::create(&ctx))
}

/// Life of the workload's TCP sockets.
#[sock_ops]
pub fn ix_workload_ops(ctx: SockOpsContext) -> u32 {
    established::workload(&ctx);
    1
}

/// Life of the daemon's TCP sockets: accepted ones take their original destination over.
#[sock_ops]
pub fn ix_daemon_ops(ctx: SockOpsContext) -> u32 {
    handover::daemon(&ctx);
    1
}

/// Every packet that a workload's socket sends.
#[cgroup_skb]
pub fn ix_egress(ctx: SkBuffContext) -> i32 {
    verdict(packet::egress(&ctx))
}

/// Every packet that a workload's socket receives: who may be answered, and what a resolver said.
#[cgroup_skb]
pub fn ix_ingress(ctx: SkBuffContext) -> i32 {
    packet::ingress(&ctx);
    ALLOW
}

/// Every packet that comes out of a covered namespace, at the daemon's end of its veth. What TCP may
/// not send is answered with a reset.
#[classifier]
pub fn ix_interface_out(ctx: TcContext) -> i32 {
    let ctx = SkBuffContext::new(ctx.skb.skb);
    match interface::out(&ctx) {
        Verdict::Allow => TCX_NEXT,
        Verdict::Refuse if reset::answer(&ctx) => ctx::TCX_REDIRECT,
        Verdict::Refuse => TCX_DROP,
    }
}

/// Every packet that goes into one: who began is noted, so that it can be answered.
#[classifier]
pub fn ix_interface_in(ctx: TcContext) -> i32 {
    interface::into(&SkBuffContext::new(ctx.skb.skb));
    TCX_NEXT
}

/// Not our last word: programs behind ours are asked too.
const TCX_NEXT: i32 = -1;
const TCX_DROP: i32 = 2;

const ALLOW: i32 = 1;
const REFUSE: i32 = 0;

/// Which return value lets pass in a cgroup.
#[inline(always)]
fn verdict(verdict: Verdict) -> i32 {
    match verdict {
        Verdict::Allow => ALLOW,
        Verdict::Refuse => REFUSE,
    }
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo) -> ! {
    loop {}
}

// The kernel lets only GPL-compatible programs call some helpers used here.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
