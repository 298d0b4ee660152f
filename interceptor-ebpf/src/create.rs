//! inet_sock_create: protocols that neither hook nor proxy can follow never get a socket.

use aya_ebpf::programs::SockContext;
use interceptor_common::Finding;

use crate::count::count;
use crate::ctx::{self, Verdict};
use crate::select;

const STREAM: u32 = 1;
const DGRAM: u32 = 2;
const TCP: u32 = 6;
const UDP: u32 = 17;
const MPTCP: u32 = 262;

/// Judges one `socket()` of family AF_INET or AF_INET6.
#[inline(always)]
pub fn create(ctx: &SockContext) -> Verdict {
    let (kind, protocol) = ctx::created(ctx);
    let netns = ctx::netns_cookie(ctx.sock);
    let sender = select::sender(netns, ctx::current_ancestor);
    // TCP in a covered namespace gets its storage at connect, or has none.
    if protocol != TCP || sender.is_exempt() {
        ctx::note_netns(ctx, netns);
    }
    match (kind, protocol) {
        (STREAM, TCP) | (DGRAM, UDP) => return Verdict::Allow,
        _ if sender.is_exempt() => return Verdict::Allow,
        // In every mode: its subflows would go round the proxy. Clients fall back to TCP.
        (_, MPTCP) => {
            count(Finding::Mptcp);
            return ctx::refuse_with(ctx::PROTONOSUPPORT);
        }
        _ => {}
    }
    let Some(settings) = select::settings() else {
        count(Finding::NoSettings);
        return Verdict::Refuse;
    };
    if select::passes(settings, sender.known) || select::is_daemon(settings, ctx::current_cgroup())
    {
        return Verdict::Allow;
    }
    count(Finding::Protocol);
    ctx::refuse_with(ctx::PROTONOSUPPORT)
}
