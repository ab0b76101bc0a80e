//! What is known of a frame once it has been read, and how addresses are held.

use clawgress_ebpf_common::{Address, FlowKey};

/// What a frame is.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Kind {
    /// ARP or neighbour discovery: `key.source` is the address the sender claims.
    Neighbour,
    /// A packet of a flow.
    Flow,
    /// An ICMP error about a flow: `key` is the flow it quotes, source and destination as quoted.
    Error,
}

/// A MAC address as it is copied: bytes one by one would be a loop.
pub type Mac = [u16; 3];

/// A parsed frame. Fields keep what was read before a refusal, so that the report has it.
#[derive(Clone, Copy)]
#[repr(C, align(8))]
pub struct Packet {
    /// Addresses and ports as they are in the packet.
    pub key: FlowKey,
    /// Source MAC address.
    pub mac: Mac,
    /// TCP flags, else 0.
    pub tcp_flags: u8,
    /// Whether it is IPv6.
    pub is_v6: bool,
    /// Bytes from layer 3 on.
    pub bytes: u32,
    /// XDP's epoch before it was looked at, the low half.
    pub epoch: u32,
    /// Whether it is an ICMP echo reply.
    pub is_reply: bool,
    /// VLAN tags that the driver took off the frame.
    pub tags: u8,
    /// Zero.
    pub pad: u16,
    /// Source address of the packet itself, which `key` does not hold for [`Kind::Error`].
    pub outer: Address,
}

// Else it would be written byte by byte.
const _: () = assert!(core::mem::offset_of!(Packet, outer) % 8 == 0);

impl Packet {
    /// Nothing read yet.
    #[inline(always)]
    pub fn new(ifindex: u32) -> Self {
        Packet {
            key: FlowKey {
                source: [0; 16],
                destination: [0; 16],
                source_port_be: 0,
                destination_port_be: 0,
                ifindex,
                protocol: 0,
                pad: [0; 3],
            },
            mac: [0; 3],
            tcp_flags: 0,
            is_v6: false,
            bytes: 0,
            epoch: 0,
            is_reply: false,
            tags: 0,
            pad: 0,
            outer: [0; 16],
        }
    }
}

/// Makes the verifier forget what it knows of the packet from the way it was parsed, `zero` being one it can't
/// tell is one.
// VERIFIER: else it would walk all that follows once for each protocol, family and refusal.
#[inline(always)]
pub fn conceal(packet: &mut Packet, zero: u64) {
    // Each as wide as it was written: a processor can't hand a read what several writes have not yet brought to
    // memory, and waits.
    let addresses = (&raw mut packet.key).cast::<u64>();
    for n in 0..ADDRESS_WORDS {
        // SAFETY: the packet is aligned to 8 and begins with the two addresses, which are plain bytes.
        unsafe { blur(addresses.add(n), zero) }
    }
    // SAFETY: fields of the packet.
    unsafe {
        blur(&raw mut packet.key.source_port_be, zero as u16);
        blur(&raw mut packet.key.destination_port_be, zero as u16);
        blur(&raw mut packet.key.protocol, zero as u8);
        blur(&raw mut packet.tcp_flags, zero as u8);
        // No other bit of it is looked at.
        blur((&raw mut packet.is_v6).cast::<u8>(), zero as u8);
        blur(&raw mut packet.bytes, zero as u32);
    }
}

/// Words of the two addresses of a key.
const ADDRESS_WORDS: usize = 4;
const _: () = assert!(core::mem::offset_of!(FlowKey, source_port_be) == ADDRESS_WORDS * 8);

/// Leaves the number at `at` as it is, `zero` being 0.
///
/// # Safety
/// `at` points to a number, which nobody else has.
#[inline(always)]
unsafe fn blur<T: Copy + core::ops::BitXor<Output = T>>(at: *mut T, zero: T) {
    // SAFETY: the caller's promise.
    unsafe { at.write_volatile(at.read_volatile() ^ zero) }
}

/// `address` as `::ffff:a.b.c.d`.
#[inline(always)]
pub fn mapped(address: [u8; 4]) -> Address {
    bytes([0, 0, 0xFFFFu32.to_be(), u32::from_ne_bytes(address)])
}

/// Whether `address` is `::ffff:a.b.c.d`.
#[inline(always)]
pub fn is_v4(address: &Address) -> bool {
    // SAFETY: 16 plain bytes either way.
    is_mapped(unsafe { core::mem::transmute::<Address, [u32; 4]>(*address) })
}

/// A MAC address from its bytes.
#[inline(always)]
pub fn mac(bytes: [u8; 6]) -> Mac {
    // SAFETY: six plain bytes either way.
    unsafe { core::mem::transmute::<[u8; 6], Mac>(bytes) }
}

/// An address read as words.
#[inline(always)]
pub fn bytes(words: [u32; 4]) -> Address {
    let [a, b, c, d] = words;
    // In two parts, as it is read again: see `conceal`.
    let [high, low] = [joined(a, b), joined(c, d)];
    // SAFETY: 16 plain bytes either way.
    unsafe { core::mem::transmute::<[u64; 2], Address>([high, low]) }
}

/// Two words as they follow each other in memory; the target is little-endian.
#[inline(always)]
fn joined(first: u32, second: u32) -> u64 {
    first as u64 | (second as u64) << 32
}

/// Whether it is an IPv4-mapped address.
#[inline(always)]
pub fn is_mapped(words: [u32; 4]) -> bool {
    let [a, b, c, _] = words;
    a == 0 && b == 0 && c == 0xFFFFu32.to_be()
}
