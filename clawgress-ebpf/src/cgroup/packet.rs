//! Packets of this machine's own sockets, as the kernel made or reassembled them: no link-layer header,
//! whole datagrams. Whatever a socket's owner added to them is refused.

use core::mem::{MaybeUninit, size_of};

use aya_ebpf::bindings::{__sk_buff, BPF_F_NO_PREALLOC};
use aya_ebpf::helpers::generated::bpf_skb_load_bytes;
use aya_ebpf::macros::map;
use aya_ebpf::maps::HashMap;
use clawgress_ebpf_common::{DropReason, Generation, bound, counter, protocol};

use crate::judge::Judgement;
use crate::limit::{self, Charge};
use crate::map::count;
use crate::parse::{Packet, bytes, mapped};

// Here, since the programs of agents' interfaces have no use for it.
#[map(name = "claw_edt_v1")]
static PACED: HashMap<u32, u32> = HashMap::with_max_entries(bound::INTERFACES_MAX, BPF_F_NO_PREALLOC);

/// Offsets of the transport header without options, and of the TCP flags in it.
const L4_V4: u32 = 20;
const L4_V6: u32 = 40;
const TCP_FLAGS: u32 = 13;

/// IPv4 (RFC 791 3.1), in words.
type Ipv4 = [u32; 5];
/// IPv6 (RFC 8200 3), in words.
type Ipv6 = [u32; 10];

/// Reads the packet into `packet`, or gives the code of the reason against it.
#[inline(always)]
pub fn read(skb: *mut __sk_buff, packet: &mut Packet) -> Result<(), u16> {
    match code(skb, packet) {
        0 => Ok(()),
        code => Err(code as u16),
    }
}

/// Charges a packet that leaves to the limiters of what `judged` permits. Of TCP, what is over leaves later where
/// the interface's queue heeds that: its sender waits for what it has sent, so that it sends no more than goes.
#[inline(always)]
pub fn charge(
    skb: *mut __sk_buff,
    generation: Generation,
    judged: &Judgement,
    packet: &Packet,
    cgroup: u64,
    is_new: bool,
) -> Result<(), Judgement> {
    if judged.limits == 0 {
        return Ok(());
    }
    // SAFETY: the context is the program's own.
    let ifindex = unsafe { (&raw const (*skb).ifindex).read_volatile() };
    // SAFETY: only presence is looked at.
    let is_heeded = unsafe { PACED.get(&ifindex) }.is_some();
    let may_wait = packet.key.protocol == protocol::TCP && is_heeded;
    let leaves_ns = limit::charge(generation, judged, Charge { skb, packet, is_new, cgroup, may_wait })?;
    // SAFETY: as above, and a packet hook may write when the packet leaves.
    unsafe {
        // TCP may have chosen a later time itself.
        if leaves_ns > (*skb).tstamp {
            (*skb).tstamp = leaves_ns;
            count(counter::PACED);
        }
    }
    Ok(())
}

// VERIFIER: a function of its own, so that the programs share its instructions; such a function returns a
// number, and no reason has number 0.
#[inline(never)]
fn code(skb: *mut __sk_buff, packet: &mut Packet) -> u32 {
    match parse(skb, packet) {
        Ok(()) => 0,
        Err(reason) => reason.code() as u32,
    }
}

#[inline(always)]
fn parse(skb: *mut __sk_buff, packet: &mut Packet) -> Result<(), DropReason> {
    // SAFETY: the context is the program's own.
    packet.bytes = unsafe { (*skb).len };
    let Some(version) = field::<u8>(skb, 0) else { return Err(DropReason::Malformed) };
    let (next, offset) = match version >> 4 {
        4 => (ipv4(skb, packet, version)?, L4_V4),
        6 => (ipv6(skb, packet)?, L4_V6),
        _ => return Err(DropReason::Malformed),
    };
    packet.key.protocol = next;
    if next != protocol::TCP && next != protocol::UDP {
        return Err(DropReason::ProtocolUnsupported);
    }
    let Some([source_be, destination_be]) = field::<[u16; 2]>(skb, offset) else {
        return Err(DropReason::Malformed);
    };
    packet.key.source_port_be = source_be;
    packet.key.destination_port_be = destination_be;
    if next == protocol::TCP {
        let Some(flags) = field::<u8>(skb, offset + TCP_FLAGS) else { return Err(DropReason::Malformed) };
        packet.tcp_flags = flags;
    }
    Ok(())
}

#[inline(always)]
fn ipv4(skb: *mut __sk_buff, packet: &mut Packet, version: u8) -> Result<u8, DropReason> {
    let Some([_, second, third, source, destination]) = field::<Ipv4>(skb, 0) else {
        return Err(DropReason::Malformed);
    };
    packet.key.source = mapped(source.to_ne_bytes());
    packet.key.destination = mapped(destination.to_ne_bytes());
    if version != 0x45 {
        // A workload may ask for options on its own packets, source routes among them.
        return Err(DropReason::Ipv4Options);
    }
    let [_, _, high, low] = second.to_ne_bytes();
    // More fragments, or an offset: datagrams are whole here, on their way out and in.
    if high & 0x3F != 0 || low != 0 {
        return Err(DropReason::Fragment);
    }
    let [_, next, ..] = third.to_ne_bytes();
    Ok(next)
}

#[inline(always)]
fn ipv6(skb: *mut __sk_buff, packet: &mut Packet) -> Result<u8, DropReason> {
    let Some([_, second, a, b, c, d, e, f, g, h]) = field::<Ipv6>(skb, 0) else {
        return Err(DropReason::Malformed);
    };
    packet.is_v6 = true;
    packet.key.source = bytes([a, b, c, d]);
    packet.key.destination = bytes([e, f, g, h]);
    // An IPv4-mapped address on the wire (RFC 4291 2.5.5.2) would be read as the IPv4 address.
    let mapped = 0xFFFFu32.to_be();
    if (a == 0 && b == 0 && c == mapped) || (e == 0 && f == 0 && g == mapped) {
        return Err(DropReason::Malformed);
    }
    let [_, _, next, _] = second.to_ne_bytes();
    match next {
        protocol::TCP | protocol::UDP => Ok(next),
        // Routing, options, fragment headers.
        0 | 43 | 44 | 60 => Err(DropReason::Ipv6Extension),
        other => Ok(if other == protocol::ICMP { u8::MAX } else { other }),
    }
}

/// The `T` at `offset`. `T` must be plain bytes.
#[inline(always)]
fn field<T: Copy>(skb: *mut __sk_buff, offset: u32) -> Option<T> {
    let mut value = MaybeUninit::<T>::uninit();
    // SAFETY: the helper fills the whole of `value`, or fails.
    unsafe {
        let rc = bpf_skb_load_bytes(skb.cast(), offset, value.as_mut_ptr().cast(), size_of::<T>() as u32);
        if rc == 0 { Some(value.assume_init()) } else { None }
    }
}
