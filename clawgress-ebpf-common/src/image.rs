//! The image of a generation: all that a stateless verdict reads, laid out as pages of words in one
//! array map. User space writes an image aside, and one write of the generation index makes it live.
//!
//! Page 0 is the [`Header`]. Prefixes are held as a trie of [`node`]s over the address, its bits taken
//! from the top: eight (a page of children) or sixteen (256 pages) at a time where boundaries are many, and
//! then by sorted buckets of them, each eight bytes. So a lookup costs about one memory access in a small
//! image, and two or three in one of a million prefixes.

use core::mem::{offset_of, size_of};

/// Bytes of a page: the value of an image's array.
pub const PAGE_BYTES: usize = 1024;
/// Words of a page.
pub const PAGE_WORDS: usize = PAGE_BYTES / 4;
/// Pages of an image, used or not: 32 MiB, twice what a million prefixes of ordinary lengths take. All images
/// are of one length, because the kernel then lays the look-up of a page into the programs: a call is several
/// times the cost of the rest, where returns are guarded against speculation. (A page of buckets must have a
/// number of 17 bits.)
pub const PAGES: u32 = 1 << 15;

/// One page.
pub type Page = [u32; PAGE_WORDS];

/// Page 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Header {
    /// The generation's number.
    pub number: u64,
    /// Root of the IPv4 destinations: [`node`] whose values are destination classes.
    pub destinations_v4: u32,
    /// Root of the IPv6 destinations.
    pub destinations_v6: u32,
    /// Destination classes: columns of the matrix.
    pub destination_classes: u32,
    /// First page of the matrix: a word for each agent class and destination class, the number of a row.
    pub matrix_page: u32,
    /// First page of the rows: [`Header::row_words`] words each, indices of verdicts.
    pub rows_page: u32,
    /// Words of a row.
    pub row_words: u32,
    /// First page of the verdicts: [`Verdict`](crate::Verdict)s, [`VERDICTS_PER_PAGE`] to a page.
    pub verdicts_page: u32,
    /// First page of the port classes: 65,536 half-words, [`PORTS_PER_PAGE`] to a page.
    pub ports_page: u32,
    /// First page of the bindings: [`Bind`](crate::Bind)s, [`BINDS_PER_PAGE`] to a page; number 0 is
    /// none.
    pub binds_page: u32,
    /// First page of the interfaces: [`Interface`]s by [`Interface::slot`].
    pub interfaces_page: u32,
    /// Agent classes: lines of the matrix. A class beyond, or a destination class beyond, has no verdict.
    pub agent_classes: u32,
    /// First page of the limit sets: [`LimitSet`]s, [`LIMIT_SETS_PER_PAGE`] to a page; number 0 is empty.
    pub limit_sets_page: u32,
    /// First page of the limiters: [`Limiter`]s, [`LIMITERS_PER_PAGE`] to a page; number 0 is none.
    pub limiters_page: u32,
    /// Zero.
    pub pad: [u32; 113],
    /// Where in a row a protocol's verdicts begin, by protocol number; [`PROTOCOL_UNNAMED`] if no policy
    /// names it. A protocol with ports has one for each port class, any other just one.
    pub protocols: [u16; 256],
}

const _: () = assert!(size_of::<Header>() == PAGE_BYTES && offset_of!(Header, protocols) == 512);
#[cfg(feature = "user")]
// SAFETY: `repr(C)`, no padding (the assertion above equals the sum of the fields), and every bit
// pattern is valid.
unsafe impl crate::user::Pod for Header {}

/// In [`Header::protocols`]: a protocol that no policy names.
pub const PROTOCOL_UNNAMED: u16 = u16::MAX;

/// Verdicts in a page.
pub const VERDICTS_PER_PAGE: u32 = (PAGE_BYTES / size_of::<crate::Verdict>()) as u32;
/// Port classes in a page.
pub const PORTS_PER_PAGE: u32 = (PAGE_BYTES / 2) as u32;
/// Bindings in a page.
pub const BINDS_PER_PAGE: u32 = (PAGE_BYTES / size_of::<crate::Bind>()) as u32;

/// Limit sets in a page.
pub const LIMIT_SETS_PER_PAGE: u32 = (PAGE_BYTES / size_of::<LimitSet>()) as u32;
/// Limiters in a page.
pub const LIMITERS_PER_PAGE: u32 = (PAGE_BYTES / size_of::<Limiter>()) as u32;

/// Most limiters that apply to one packet.
pub const LIMITERS_PER_SET: usize = 4;

/// The limiters that apply to a packet: their numbers, and zeroes behind them.
pub type LimitSet = [u32; LIMITERS_PER_SET];

/// How much may pass in a time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Limiter {
    /// Which, across generations: the buckets of one whose rate or burst changes are others.
    pub key: u64,
    /// What a unit costs, ns times 2 to the power of [`Limiter::cost_shift`], rounded up.
    pub cost: u64,
    /// How far a bucket may be from full, ns: the burst.
    pub burst_ns: u64,
    /// Index of the policy id in the generation's table.
    pub policies: u32,
    /// [`limiter`] unit: where its count is in a [load](limiter::load).
    pub unit: u8,
    /// Bits of that count.
    pub unit_bits: u8,
    /// Flags of [`limiter`].
    pub flags: u8,
    /// [`FINE`](limiter::FINE) for what is cheap, else 0.
    pub cost_shift: u8,
}

const _: () = assert!(size_of::<Limiter>() == 32);
#[cfg(feature = "user")]
// SAFETY: `repr(C)`, no padding (the assertion above equals the sum of the fields), and every bit
// pattern is valid.
unsafe impl crate::user::Pod for Limiter {}

/// Codes in a [`Limiter`].
pub mod limiter {
    /// Unit: bytes sent (layer 3 and above).
    pub const BYTES: u8 = 0;
    /// Unit: packets sent.
    pub const PACKETS: u8 = 32;
    /// Unit: flows begun.
    pub const CONNECTIONS: u8 = 48;

    /// Bits of a unit's count.
    #[must_use]
    pub const fn bits(unit: u8) -> u8 {
        match unit {
            BYTES => 32,
            PACKETS => 16,
            _ => 1,
        }
    }

    /// What a packet counts for, in every unit.
    #[must_use]
    #[inline(always)]
    pub const fn load(bytes: u32, packets: u16, is_new: bool) -> u64 {
        bytes as u64 | (packets as u64) << PACKETS | (is_new as u64) << CONNECTIONS
    }

    /// Flag: each local workload has a bucket of its own; what comes by an interface has its agent's.
    pub const BY_WORKLOAD: u8 = 1;
    /// Flag: of TCP that this machine sends, what is over is sent later where the interface's queue heeds that.
    pub const PACE: u8 = 2;
    /// Flag: all that it applies to have one bucket.
    pub const SHARED: u8 = 4;
    /// Bits behind the point of a cost that needs them: a byte at 100 GB/s then is exact to 1 in 600.
    pub const FINE: u8 = 16;
    /// Most bytes a buffer counts for: the largest (Linux: 512 KiB), and seven times as much again for the headers
    /// of what it is on the wire.
    pub const UNITS_MAX: u64 = 1 << 22;
    /// Most a unit may cost, as a [`Limiter::cost`]: so that of the most units still fits.
    pub const COST_MAX: u64 = u64::MAX / UNITS_MAX;
    /// Longest burst, an hour and what rounding adds, ns: far from overflowing, with what a packet costs.
    pub const BURST_NS_MAX: u64 = 2 * 3_600_000_000_000;
}

/// The sources of one agents' interface.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Interface {
    /// Its index; 0 for an empty slot.
    pub ifindex: u32,
    /// Root of its IPv4 sources: [`node`] whose values are numbers of bindings.
    pub sources_v4: u32,
    /// Root of its IPv6 sources.
    pub sources_v6: u32,
    /// Zero.
    pub pad: u32,
}

const _: () = assert!(size_of::<Interface>() == 16);

impl Interface {
    /// Interfaces in a page.
    pub const PER_PAGE: u32 = (PAGE_BYTES / size_of::<Interface>()) as u32;
    /// Slots there are.
    pub const SLOTS: u32 = 256;
    /// Slots looked at, from its own on, until an interface is found: at half load longer runs are rare,
    /// and an image that would need one is refused.
    pub const PROBES: u32 = 8;

    /// The slot an interface belongs in, or the first free one after it.
    #[must_use]
    #[inline(always)]
    pub const fn slot(ifindex: u32) -> u32 {
        // Fibonacci hashing: the top eight bits of the product.
        ifindex.wrapping_mul(0x9E37_79B1) >> 24
    }
}

/// Nodes of a trie: one word, its kind in the top two bits. Chunks come first, buckets below them.
pub mod node {
    /// Bits of the kind.
    pub const KIND: u32 = 3 << 30;
    /// A value, in the low 29 bits: the same for all addresses below.
    pub const LEAF: u32 = 0;
    /// A page of 256 nodes, by the next eight bits of the address.
    pub const CHUNK: u32 = 1 << 30;
    /// 256 pages of nodes, by the next sixteen bits of the address.
    pub const WIDE: u32 = 2 << 30;
    /// A bucket: boundaries in ascending order, the first one 0, each with the node from there on: a leaf or another
    /// bucket. It compares the next 32 bits of the address and takes none of them off.
    pub const BUCKET: u32 = 3 << 30;

    /// In a bucket: 32 bits of the address are taken off before it is searched.
    pub const DEEP: u32 = 1 << 29;
    /// In a leaf: it is a last bucket, of all that is left of the address; the other bits as a bucket's.
    pub const LONG: u32 = 1 << 29;
    /// Bits of a bucket's page, start and length less one.
    pub const PAGE_SHIFT: u32 = 12;
    /// See [`PAGE_SHIFT`].
    pub const PAGE_MASK: u32 = (1 << 17) - 1;
    /// See [`PAGE_SHIFT`].
    pub const START_SHIFT: u32 = 5;
    /// See [`PAGE_SHIFT`].
    pub const START_MASK: u32 = 127;
    /// See [`PAGE_SHIFT`].
    pub const LENGTH_MASK: u32 = 31;

    /// Most items of a bucket: five comparisons.
    pub const ITEMS_MAX: u32 = 32;
    /// An item: 32 bits of the address, the node.
    pub const ITEM_WORDS: u32 = 2;
    /// Most items of a long bucket: four comparisons.
    pub const LONG_ITEMS_MAX: u32 = 16;
    /// A long item: what is left of the address as two 64-bit words (each low half first), the value, zero.
    pub const LONG_ITEM_WORDS: u32 = 6;
    /// Most chunks below one another: 40 bits, if the first is wide.
    pub const CHUNKS_MAX: u32 = 4;
    /// Most buckets below one another: three for each 32 bits of an address, which hold 32,768 boundaries.
    pub const BUCKETS_MAX: u32 = 12;
}
