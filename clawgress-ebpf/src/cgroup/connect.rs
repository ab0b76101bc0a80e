//! Socket hooks of local workloads: which sockets they may make, and where those may be pointed. A TCP
//! connection that L7 has to read, and a question to DNS, get the mark by which they are routed to L7, with
//! their destination as it was dialled; no address is ever rewritten, so `getpeername` and `recvmsg` have
//! nothing to undo.

use aya_ebpf::EbpfContext as _;
use aya_ebpf::bindings::{bpf_sock_addr, sockaddr};
use aya_ebpf::helpers::generated::{bpf_bind, bpf_getsockopt, bpf_setsockopt};
use aya_ebpf::macros::{cgroup_sock, cgroup_sock_addr};
use aya_ebpf::programs::{SockAddrContext, SockContext};
use clawgress_ebpf_common::{Address, DropReason, action, counter, hook, mark, protocol};

use super::{ALLOW, REFUSE, caller, destination, weigh_workload};
use crate::event::{self, Place};
use crate::judge::Judgement;
use crate::lease;
use crate::map::{count, generation};
use crate::parse::mapped;

/// Socket types, protocols, families and options (Linux, IANA).
const SOCK_STREAM: u32 = 1;
const SOCK_DGRAM: u32 = 2;
const IPPROTO_TCP: u32 = 6;
const IPPROTO_UDP: u32 = 17;
const AF_INET: u16 = 2;
const AF_INET6: u16 = 10;
const SOL_SOCKET: i32 = 1;
const SO_MARK: i32 = 36;

/// What [`decide`] says besides [`REFUSE`]: the packets go where routes lead, or to L7.
const ROUTED: i32 = ALLOW;
const STEERED: i32 = 2;

/// `struct sockaddr_in`.
#[repr(C)]
struct Inet {
    family: u16,
    port_be: u16,
    address: [u8; 4],
    zero: [u8; 8],
}

/// `struct sockaddr_in6`.
#[repr(C)]
struct Inet6 {
    family: u16,
    port_be: u16,
    flow: u32,
    address: [u32; 4],
    scope: u32,
}

/// `connect` over IPv4, and TCP Fast Open.
#[cgroup_sock_addr(connect4)]
pub fn claw_connect4(ctx: SockAddrContext) -> i32 {
    point(&ctx, judge4(&ctx, false), |ctx| {
        let mut address = Inet { family: AF_INET, port_be: 0, address: [127, 0, 0, 1], zero: [0; 8] };
        // SAFETY: a whole address of its family, which the helper only reads.
        unsafe { bpf_bind(ctx.sock_addr, (&raw mut address).cast::<sockaddr>(), size_of::<Inet>() as i32) };
    })
}

/// `connect` over IPv6, IPv4-mapped addresses included, and TCP Fast Open.
#[cgroup_sock_addr(connect6)]
pub fn claw_connect6(ctx: SockAddrContext) -> i32 {
    point(&ctx, judge6(&ctx, false), |ctx| {
        // SAFETY: the context is the program's own.
        let prefix = unsafe { (&raw const (*ctx.sock_addr).user_ip6).cast::<u32>().add(2).read_volatile() };
        let is_mapped = prefix == 0xFFFFu32.to_be();
        let last = if is_mapped { 0x7F00_0001u32.to_be() } else { 1u32.to_be() };
        let address = [0, 0, if is_mapped { prefix } else { 0 }, last];
        let mut address = Inet6 { family: AF_INET6, port_be: 0, flow: 0, address, scope: 0 };
        // SAFETY: as above.
        unsafe { bpf_bind(ctx.sock_addr, (&raw mut address).cast::<sockaddr>(), size_of::<Inet6>() as i32) };
    })
}

/// A datagram to an explicit address over IPv4.
#[cgroup_sock_addr(sendmsg4)]
pub fn claw_sendmsg4(ctx: SockAddrContext) -> i32 {
    send(&ctx, judge4(&ctx, true))
}

/// A datagram to an explicit address over IPv6.
#[cgroup_sock_addr(sendmsg6)]
pub fn claw_sendmsg6(ctx: SockAddrContext) -> i32 {
    send(&ctx, judge6(&ctx, true))
}

/// Only TCP and UDP sockets: raw, ping, SCTP, MPTCP and the like have no hook that judges where they
/// send.
#[cgroup_sock(sock_create)]
pub fn claw_sock(ctx: SockContext) -> i32 {
    // SAFETY: the context is the program's own.
    let (kind, protocol) = unsafe { ((*ctx.sock).type_, (*ctx.sock).protocol) };
    let is_known =
        (kind == SOCK_STREAM && protocol == IPPROTO_TCP) || (kind == SOCK_DGRAM && protocol == IPPROTO_UDP);
    if is_known {
        return ALLOW;
    }
    let generation = generation();
    let agent = caller(generation).map_or(0, |bind| bind.agent);
    let key = destination([0; 16], 0, protocol as u8);
    count(counter::CGROUP_DENIED);
    let place = Place { hook: hook::CGROUP, generation: generation.number };
    event::refusal(&place, &key, &Judgement::deny(DropReason::ProtocolUnsupported, agent), 0);
    REFUSE
}

/// Lets a socket go on as `decided`. One that is steered is bound to loopback by `bind`: the route that
/// leads to L7 would have it speak from the address it dialled. Where the workload has bound it already,
/// that address stays, and the packets are judged by it.
#[inline(always)]
fn point(ctx: &SockAddrContext, decided: i32, bind: impl Fn(&SockAddrContext)) -> i32 {
    if decided == REFUSE {
        return REFUSE;
    }
    // A socket that was steered once and is connected again has the mark still.
    if !set_mark(ctx, mark_of(decided)) {
        return REFUSE;
    }
    // SAFETY: the context is the program's own. A socket of datagrams may be pointed elsewhere later: its route
    // says what it speaks from.
    if decided == STEERED && unsafe { (*ctx.sock_addr).protocol } == IPPROTO_TCP {
        bind(ctx);
    }
    ALLOW
}

/// Lets a datagram of a socket that isn't connected go on as `decided`. The kernel has read the socket's mark before
/// it asks here, so the first of those that go another way is refused, and goes when it is sent again.
#[inline(always)]
fn send(ctx: &SockAddrContext, decided: i32) -> i32 {
    if decided == REFUSE {
        return REFUSE;
    }
    let (mut mark, wanted) = (0u32, mark_of(decided));
    // SAFETY: the helper fills the four bytes of `mark`.
    let rc = unsafe {
        bpf_getsockopt(ctx.as_ptr(), SOL_SOCKET, SO_MARK, (&raw mut mark).cast(), size_of::<u32>() as i32)
    };
    if rc == 0 && mark == wanted {
        return ALLOW;
    }
    set_mark(ctx, wanted);
    REFUSE
}

#[inline(always)]
fn mark_of(decided: i32) -> u32 {
    if decided == STEERED { mark::STEER } else { 0 }
}

#[inline(always)]
fn set_mark(ctx: &SockAddrContext, mut mark: u32) -> bool {
    // SAFETY: the option's value is the four bytes of `mark`.
    let rc = unsafe {
        bpf_setsockopt(ctx.as_ptr(), SOL_SOCKET, SO_MARK, (&raw mut mark).cast(), size_of::<u32>() as i32)
    };
    rc == 0
}

#[inline(always)]
fn judge4(ctx: &SockAddrContext, may_live: bool) -> i32 {
    decide(ctx.sock_addr, &address4(ctx), may_live)
}

#[inline(always)]
fn judge6(ctx: &SockAddrContext, may_live: bool) -> i32 {
    decide(ctx.sock_addr, &address6(ctx), may_live)
}

/// The IPv4 address of the call, mapped.
#[inline(always)]
pub(super) fn address4(ctx: &SockAddrContext) -> Address {
    // SAFETY: the context is the program's own.
    mapped(unsafe { (*ctx.sock_addr).user_ip4 }.to_ne_bytes())
}

/// The IPv6 address of the call.
#[inline(always)]
pub(super) fn address6(ctx: &SockAddrContext) -> Address {
    // VERIFIER: context fields are read one by one; an array copy would be a pointer into the context.
    // SAFETY: the context is the program's own.
    let (a, b, c, d) = unsafe {
        let sock_addr = ctx.sock_addr;
        let base = (&raw const (*sock_addr).user_ip6).cast::<u32>();
        (
            base.read_volatile(),
            base.add(1).read_volatile(),
            base.add(2).read_volatile(),
            base.add(3).read_volatile(),
        )
    };
    let ([q, r, s, t], [e, f, g, h]) = (a.to_ne_bytes(), b.to_ne_bytes());
    let ([i, j, k, l], [m, n, o, p]) = (c.to_ne_bytes(), d.to_ne_bytes());
    [q, r, s, t, e, f, g, h, i, j, k, l, m, n, o, p]
}

/// Port and protocol number of the call.
#[inline(always)]
pub(super) fn port(sock_addr: *mut bpf_sock_addr) -> (u16, u8) {
    // SAFETY: the context is the program's own. The port is 16 bits in network byte order.
    let (port_be, protocol) = unsafe { ((*sock_addr).user_port as u16, (*sock_addr).protocol) };
    let protocol = match protocol {
        IPPROTO_TCP => protocol::TCP,
        IPPROTO_UDP => protocol::UDP,
        _ => 0,
    };
    (port_be, protocol)
}

/// What a socket may do; `may_live`: the call may be of a flow that lives, which goes on when what was learned has
/// expired. Which flow, only the packet tells: it is judged again there.
// VERIFIER: a function of its own, so that the four programs share its instructions.
#[inline(never)]
fn decide(sock_addr: *mut bpf_sock_addr, address: &Address, may_live: bool) -> i32 {
    let generation = generation();
    let (port_be, protocol) = port(sock_addr);
    let key = destination(*address, port_be, protocol);
    let judged = match caller(generation) {
        Some(bind) => {
            let mut judged = Judgement::none();
            weigh_workload(generation.pack(), &bind, &key, may_live, &mut judged);
            match judged.action {
                action::DENY => Err(judged),
                action::DIRECT if !lease::is_live() => {
                    Err(Judgement::deny(DropReason::LeaseLapsed, bind.agent))
                }
                _ => Ok(judged),
            }
        }
        None => Err(Judgement::deny(DropReason::Anonymous, 0)),
    };
    match judged {
        Ok(judged) => {
            count(counter::CGROUP_ALLOWED);
            if judged.action == action::STEER { STEERED } else { ROUTED }
        }
        Err(judged) => {
            count(counter::CGROUP_DENIED);
            let place = Place { hook: hook::CGROUP, generation: generation.number };
            event::refusal(&place, &key, &judged, 0);
            REFUSE
        }
    }
}
