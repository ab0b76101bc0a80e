//! What XDP said lately of packets like this one, so that it need not judge each packet of a flow, or of a flood,
//! anew. For untagged IPv4 and IPv6 without options or extension headers, over TCP and UDP; everything else is read
//! and judged each time.
//!
//! XDP permits nothing: what it lets go on TC judges in full, whatever was said here; and what is dropped here was
//! denied at this very generation a moment ago. Must never hold what depends on anything but the packet's shape, the
//! generation, and maps after whose every change user space turns the epoch.

use aya_ebpf::helpers::generated::bpf_jiffies64;
use clawgress_ebpf_common::{DropReason, Generation, Recent, bound, protocol};

use crate::event;
use crate::frame::{Frame, Raw};
use crate::map::{EPOCH, RECENT};
use crate::parse::{
    ETHERTYPE_IPV4_BE, ETHERTYPE_IPV6_BE, L3, L4_V4, L4_V6, Packet, TCP_ACK, TCP_FIN, TCP_RST, TCP_SYN,
};

/// What a verdict depends on: see [`Recent::shape`].
type Words = [u64; 6];

/// The same, by family.
enum Shape {
    V4(Words),
    V6(Words),
}

/// Where the words of a frame begin that are looked at: its source MAC and EtherType.
const LINK: usize = 6;
/// First bytes of an IPv4 header as a word: version and length, the reserved and the more-fragments bit and the
/// offset, and what they are in a packet without options or fragments.
const V4_FIXED: u64 = 0xFFBF_0000_0000_00FF;
const V4_PLAIN: u64 = 0x45;
/// The same of IPv6: its version.
const V6_FIXED: u64 = 0xF0;
const V6_PLAIN: u64 = 0x60;
/// An IPv4 address in the low half of a mapped one.
const MAPPED: u64 = 0xFFFF_0000;
/// Bytes of the headers.
const IPV4_BYTES: u32 = 20;
const IPV6_BYTES: u32 = 40;
const UDP_BYTES: u32 = 8;
const TCP_BYTES: u32 = 20;
/// Flags that a verdict looks at.
const FLAGS: u8 = TCP_FIN | TCP_SYN | TCP_RST | TCP_ACK;

/// What was said of a packet.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Said {
    /// Nothing that still counts.
    Nothing,
    /// It may go on to TC.
    Pass,
    /// It is dropped, and that was counted.
    Drop,
}

/// What is to be read before anything else is.
#[derive(Clone, Copy)]
pub struct Now {
    /// The epoch's number, its low half.
    pub epoch: u32,
    ticks: u64,
}

/// What tells verdicts of now from those of before; none only where the verifier thinks there may be none, as
/// [`written`](crate::map::written).
#[inline(always)]
pub fn now() -> Option<Now> {
    let epoch = EPOCH.get_ptr(0)?;
    // SAFETY: array elements live as long as the map; volatile makes the number one 8-byte read.
    unsafe { Some(Now { epoch: (&raw const (*epoch).number).read_volatile() as u32, ticks: (*epoch).ticks }) }
}

/// What was said lately of a packet like this one.
#[inline(always)]
pub fn said(frame: &Raw, ifindex: u32, generation: Generation, now: Now) -> Said {
    // Laid out for each family: that of IPv4 has two words less to compare.
    let stamp = stamped(generation, now.epoch);
    match shape(frame, ifindex) {
        Some(Shape::V4(shape)) => recall(&shape, stamp, now.ticks),
        Some(Shape::V6(shape)) => recall(&shape, stamp, now.ticks),
        None => Said::Nothing,
    }
}

#[inline(always)]
fn recall(shape: &Words, stamp: u64, ticks: u64) -> Said {
    let Some(recent) = RECENT.get_ptr_mut(slot(shape)) else { return Said::Nothing };
    // SAFETY: the element belongs to this CPU, and XDP is not interrupted by XDP.
    let kept = unsafe { &*recent };
    if !is_same(&kept.shape, shape) || kept.stamp != stamp || Recent::age(kept.said, tick()) >= ticks {
        return Said::Nothing;
    }
    let (reason, seen_slot) = Recent::told(kept.said);
    let [_, b, c, d, e, f] = *shape;
    if reason == 0 {
        Said::Pass
    } else if event::is_counted([b, c, d, e, seen_word(f, reason)], seen_slot, reason) {
        Said::Drop
    } else {
        Said::Nothing
    }
}

/// Remembers that a packet went on to TC; a packet that begins a connection has no successor like it.
#[inline(always)]
pub fn passed(frame: Raw, generation: Generation, packet: &Packet) {
    if packet.tcp_flags & TCP_SYN == 0 {
        note(frame, generation, packet, 0);
    }
}

/// Remembers that a packet was dropped, if it would be again. Worth it for what comes again.
#[inline(always)]
pub fn dropped(frame: Raw, generation: Generation, packet: &Packet, reason: u16) {
    let is_of_now = |of: DropReason| reason == of.code();
    // These depend on the time.
    let passes_soon = is_of_now(DropReason::RateLimited)
        || is_of_now(DropReason::BucketTableFull)
        || is_of_now(DropReason::BucketShareFull);
    if !passes_soon {
        note(frame, generation, packet, reason);
    }
}

#[inline(always)]
fn note(frame: Raw, generation: Generation, packet: &Packet, reason: u16) {
    // Before the first generation, what an interface fails open for decides.
    if generation.number != 0 {
        let (_, start, end, _) = frame.parts();
        remember(start, end, packet.key.ifindex, stamped(generation, packet.epoch), reason);
    }
}

#[inline(always)]
fn stamped(generation: Generation, epoch: u32) -> u64 {
    generation.pack() << 32 | epoch as u64
}

// VERIFIER: a function of its own, so that what is remembered need not be kept meanwhile, on a stack that has no room.
#[inline(never)]
fn remember(start: usize, end: usize, ifindex: u32, stamp: u64, reason: u16) {
    let frame = Raw::from_parts(core::ptr::null_mut(), start, end, true);
    let (Some(Shape::V4(shape)) | Some(Shape::V6(shape))) = shape(&frame, ifindex) else { return };
    let Some(recent) = RECENT.get_ptr_mut(slot(&shape)) else { return };
    let [_, b, c, d, e, f] = shape;
    let seen_slot = event::slot(&[b, c, d, e, seen_word(f, reason)]);
    // SAFETY: the element belongs to this CPU.
    unsafe {
        (*recent).shape = shape;
        (*recent).stamp = stamp;
        (*recent).said = Recent::said(tick(), reason, seen_slot);
    }
}

// Word by word, since the compiler would call a function for the whole.
#[inline(always)]
fn is_same(kept: &Words, shape: &Words) -> bool {
    let [a, b, c, d, e, f] = *shape;
    kept[0] == a && kept[1] == b && kept[2] == c && kept[3] == d && kept[4] == e && kept[5] == f
}

/// The last word of a `SeenKey`: what came by an interface has its reason where the flags are, and all else in common.
#[inline(always)]
fn seen_word(last: u64, reason: u16) -> u64 {
    last & !0x00FF_0000 | (reason as u64) << 16
}

#[inline(always)]
fn slot(shape: &Words) -> u32 {
    let [a, b, c, d, e, f] = *shape;
    // One multiplication: what differs has to be at other places of the words.
    let folded = (a ^ b ^ d ^ e).wrapping_add(c >> 29 ^ f << 17);
    (folded.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 54) as u32 & (bound::RECENT_SLOTS - 1)
}

/// The clock's ticks: read without a call, in a unit that user space knows.
#[inline(always)]
fn tick() -> u64 {
    // SAFETY: the helper takes nothing and only reads a counter.
    unsafe { bpf_jiffies64() }
}

/// The shape of a frame that has one: then all its headers are there and say nothing untrue of their lengths, as
/// [`parse`](crate::parse) would find.
#[inline(always)]
fn shape(frame: &Raw, ifindex: u32) -> Option<Shape> {
    let (start, end) = frame.bounds();
    if start + L4_V4 + UDP_BYTES as usize > end {
        return None;
    }
    let room = (end - start) as u32 - L3 as u32;
    // SAFETY: within what was compared above.
    let (link, first): (u64, u64) = unsafe { (word(start + LINK), word(start + L3)) };
    let ethertype_be = (link >> 48) as u16;
    if ethertype_be == ETHERTYPE_IPV4_BE {
        // SAFETY: as above.
        let (second, destination, ports): (u64, u32, u32) =
            unsafe { (word(start + L3 + 8), word(start + L3 + 16), word(start + L4_V4)) };
        let length = u16::from_be((first >> 16) as u16) as u32;
        if first & V4_FIXED != V4_PLAIN || length > room || length < IPV4_BYTES + UDP_BYTES {
            return None;
        }
        let number = (second >> 8) as u8;
        let flags = transport::<L4_V4>(start, end, number, length - IPV4_BYTES)?;
        let (source, destination) = (second & !0xFFFF_FFFF | MAPPED, (destination as u64) << 32 | MAPPED);
        let last = Recent::last((ports >> 16) as u16, flags, number, ifindex);
        return Some(Shape::V4([link, 0, source, 0, destination, last]));
    }
    if ethertype_be != ETHERTYPE_IPV6_BE || start + L4_V6 + UDP_BYTES as usize > end {
        return None;
    }
    // SAFETY: within what was compared just now.
    let ([a, b, c, d], ports): ([u64; 4], u32) = unsafe {
        let at = start + L3 + 8;
        ([word(at), word(at + 8), word(at + 16), word(at + 24)], word(start + L4_V6))
    };
    let length = u16::from_be((first >> 32) as u16) as u32;
    if first & V6_FIXED != V6_PLAIN || length + IPV6_BYTES > room {
        return None;
    }
    let number = (first >> 48) as u8;
    let flags = transport::<L4_V6>(start, end, number, length)?;
    Some(Shape::V6([link, a, b, c, d, Recent::last((ports >> 16) as u16, flags, number, ifindex)]))
}

/// The flags of TCP that count, 0 for UDP; none for other protocols and wrong lengths.
#[inline(always)]
fn transport<const AT: usize>(start: usize, end: usize, number: u8, length: u32) -> Option<u8> {
    if number == protocol::UDP {
        // SAFETY: the caller has compared so far.
        let said = u16::from_be(unsafe { word(start + AT + 4) }) as u32;
        return if said >= UDP_BYTES && said <= length { Some(0) } else { None };
    }
    if number != protocol::TCP || start + AT + TCP_BYTES as usize > end {
        return None;
    }
    // SAFETY: within what was compared just now.
    let [offset, flags]: [u8; 2] = unsafe { word(start + AT + 12) };
    let header = (offset as u32 >> 4) * 4;
    if header >= TCP_BYTES && header <= length { Some(flags & FLAGS) } else { None }
}

/// # Safety
/// `at` is within the frame, as far as a `T` is wide.
#[inline(always)]
unsafe fn word<T: Copy>(at: usize) -> T {
    // SAFETY: the caller's promise; as in `frame::at` for the alignment.
    unsafe { *(at as *const T) }
}
