//! Which listener a steered flow belongs to, wherever the kernel asks. TC assigns a socket to each
//! packet, but the kernel looks a listener up again, by the destination's port, when a SYN meets a
//! socket in TIME_WAIT (RFC 9293 3.10.7.4) or when a half-open connection has lost its listener. Without
//! an answer from here it would be whoever of this machine listens on that port. A local workload's questions
//! to DNS have no TC program on their way: their socket is found here alone.
//!
//! Must never answer for anything but a recorded flow: from an agents' interface, or of a local workload,
//! whose packets come by loopback.

use aya_ebpf::EbpfContext as _;
use aya_ebpf::bindings::{BPF_SK_LOOKUP_F_REPLACE, bpf_sk_lookup};
use aya_ebpf::helpers::generated::{bpf_sk_assign, bpf_sk_release};
use aya_ebpf::macros::sk_lookup;
use aya_ebpf::programs::SkLookupContext;
use clawgress_ebpf_common::{FlowKey, IFINDEX_LOCAL, IFINDEX_LOOPBACK, action, protocol};

use crate::flow;
use crate::map::listener;
use crate::parse::{bytes, mapped};

/// Go on, with the assigned socket or by the ordinary lookup (`SK_PASS`); find none (`SK_DROP`).
const PASS: u32 = 1;
const DROP: u32 = 0;
/// Address family IPv6 (Linux).
const AF_INET6: u32 = 10;
/// Protocols (IANA).
const IPPROTO_TCP: u32 = 6;
const IPPROTO_UDP: u32 = 17;
/// The port of DNS (RFC 1035 4.2).
const DNS_PORT: u32 = 53;

/// Listener lookup of the gateway's network namespace.
#[sk_lookup]
pub fn claw_lookup(ctx: SkLookupContext) -> u32 {
    let asked = ctx.lookup;
    // SAFETY: the context is the program's own.
    let (family, number, port) = unsafe { ((*asked).family, (*asked).protocol, (*asked).local_port) };
    let is_question = number == IPPROTO_UDP && port == DNS_PORT;
    if number != IPPROTO_TCP && !is_question {
        return PASS;
    }
    let is_v6 = family == AF_INET6;
    let key = key(asked, is_v6, if is_question { protocol::UDP } else { protocol::TCP });
    let Some(record) = flow::find(&key) else { return PASS };
    // SAFETY: as in `flow::touch`.
    match unsafe { (*record).action } {
        action::LOCAL => PASS,
        action::STEER => assign(&ctx, &key, is_v6),
        _ => DROP,
    }
}

#[inline(always)]
fn assign(ctx: &SkLookupContext, key: &FlowKey, is_v6: bool) -> u32 {
    let socket = listener(key, is_v6);
    if socket.is_null() {
        return DROP;
    }
    // SAFETY: `socket` is a referenced socket, released exactly once.
    let assigned = unsafe {
        let assigned = bpf_sk_assign(ctx.as_ptr(), socket.cast(), BPF_SK_LOOKUP_F_REPLACE as u64);
        bpf_sk_release(socket.cast());
        assigned
    };
    if assigned == 0 { PASS } else { DROP }
}

/// The flow's key: remote is the agent, local what it dialled.
#[inline(always)]
fn key(asked: *mut bpf_sk_lookup, is_v6: bool, protocol: u8) -> FlowKey {
    // VERIFIER: every field is read, whatever the family, and one by one: a pointer into the context
    // that depends on the family, or an array copied from there, would be refused.
    // SAFETY: the context is the program's own; addresses of the other family read as zeroes.
    let (remote, local, remote_v4, local_v4, source_port_be, port, ifindex) = unsafe {
        (
            words((&raw const (*asked).remote_ip6).cast()),
            words((&raw const (*asked).local_ip6).cast()),
            (&raw const (*asked).remote_ip4).read_volatile(),
            (&raw const (*asked).local_ip4).read_volatile(),
            (&raw const (*asked).remote_port).read_volatile(),
            (&raw const (*asked).local_port).read_volatile(),
            (&raw const (*asked).ingress_ifindex).read_volatile(),
        )
    };
    let of = |v6, v4: u32| if is_v6 { bytes(v6) } else { mapped(v4.to_ne_bytes()) };
    FlowKey {
        source: of(remote, remote_v4),
        destination: of(local, local_v4),
        source_port_be,
        destination_port_be: (port as u16).to_be(),
        ifindex: if ifindex == IFINDEX_LOOPBACK { IFINDEX_LOCAL } else { ifindex },
        protocol,
        pad: [0; 3],
    }
}

/// # Safety
/// `at` points to the four words of an address in the program's context.
#[inline(always)]
unsafe fn words(at: *const u32) -> [u32; 4] {
    // SAFETY: the caller's promise.
    unsafe {
        [at.read_volatile(), at.add(1).read_volatile(), at.add(2).read_volatile(), at.add(3).read_volatile()]
    }
}
