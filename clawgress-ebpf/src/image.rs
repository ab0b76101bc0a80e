//! Reading the live generation's image, as `clawgress_ebpf_common::image` lays it out.
//!
//! Must never write one, and never read another slot's than that of the generation read for this packet.

use core::arch::asm;
use core::ffi::c_void;

use aya_ebpf::helpers::generated::bpf_map_lookup_elem;
use clawgress_ebpf_common::image::{
    BINDS_PER_PAGE, Header, Interface, LIMIT_SETS_PER_PAGE, LIMITERS_PER_PAGE, LIMITERS_PER_SET, Limiter,
    PAGE_WORDS, PORTS_PER_PAGE, PROTOCOL_UNNAMED, VERDICTS_PER_PAGE, node,
};
use clawgress_ebpf_common::{Address, Bind, DropReason, FlowKey, Generation, Verdict, action, protocol};

use crate::map::IMAGES;
use crate::parse::is_v4;

/// An image: the inner map of a slot, and its first page. With `LAID_OUT`, whoever reads it has the instructions
/// laid out in it, and makes no comparison in vain, which the verifier walks several times over. A call costs
/// several times what is done in it where returns are guarded against speculation; but most programs share
/// instructions.
#[derive(Clone, Copy)]
pub struct Image<const LAID_OUT: bool = false> {
    map: *mut c_void,
    header: *const Header,
}

/// Offset of `protocols` in a [`Header`], in half-words, and the mask that keeps an index in a page.
const PROTOCOLS_AT: usize = 256;
const HALFWORDS: usize = PAGE_WORDS * 2;

/// The image of `generation`. There is none before the first one was committed.
#[inline(always)]
pub fn image(generation: Generation) -> Option<Image> {
    live(generation)
}

/// As [`image`], to be read in either way.
#[inline(always)]
pub fn live<const LAID_OUT: bool>(generation: Generation) -> Option<Image<LAID_OUT>> {
    let slot = generation.slot;
    // SAFETY: a lookup in an array of maps gives null or a map, which stays while this program runs.
    let map = unsafe {
        bpf_map_lookup_elem(core::ptr::from_ref(&IMAGES).cast_mut().cast(), core::ptr::from_ref(&slot).cast())
    };
    if map.is_null() {
        return None;
    }
    let header: *const Header = page(map, 0)?.cast();
    // A hook in process context may be preempted for so long that the slot has another generation by now, and
    // the classes of its own mean something else there.
    // SAFETY: the first page of an image is a header, and lives as long as the map.
    let number = unsafe { (&raw const (*header).number).read_volatile() };
    if generation.number != 0 && generation.number != number {
        return None;
    }
    Some(Image { map, header })
}

/// Page `number` of the map.
#[inline(always)]
fn page(map: *mut c_void, number: u32) -> Option<*const u32> {
    // SAFETY: `map` is an inner map of `IMAGES`; the key is a word, as that map's are.
    let page = unsafe { bpf_map_lookup_elem(map, core::ptr::from_ref(&number).cast()) };
    if page.is_null() { None } else { Some(page.cast_const().cast()) }
}

/// Word `index` of a page.
// VERIFIER: masked where it is used, so that the bounds are plain.
#[inline(always)]
fn word(page: *const u32, index: usize) -> u32 {
    // SAFETY: a page has `PAGE_WORDS` words, and the mask is one less.
    unsafe { *page.add(index & (PAGE_WORDS - 1)) }
}

/// Half-word `index` of a page.
#[inline(always)]
fn half(page: *const u32, index: usize) -> u16 {
    // SAFETY: a page has twice `PAGE_WORDS` half-words, and the mask is one less.
    unsafe { *page.cast::<u16>().add(index & (HALFWORDS - 1)) }
}

/// The value of the address whose bits, from the top, are `high` and `low`; 0 if more nodes than there can
/// be would have to be followed.
// VERIFIER: a function of its own, so that the programs share its instructions.
#[inline(never)]
fn find(map: *mut c_void, header: *const Header, root: u32, high: u64, low: u64) -> u32 {
    descend::<false>(map, header, root, high, low)
}

#[inline(always)]
fn descend<const LAID_OUT: bool>(
    map: *mut c_void,
    header: *const Header,
    root: u32,
    high: u64,
    low: u64,
) -> u32 {
    // VERIFIER: knowing more of an address on one path than on another would keep the paths apart, and
    // there are two to each level. So it is made to know nothing: it can't tell that this word is zero.
    // SAFETY: the first page of an image is a header, and lives as long as the map.
    let zero = unsafe { (&raw const (*header).pad).cast::<u64>().read_volatile() };
    let (mut high, mut low) = (high | zero, low | zero);
    let mut node = root;
    for _ in 0..node::CHUNKS_MAX {
        let kind = node & node::KIND;
        if kind == node::LEAF || kind == node::BUCKET {
            break;
        }
        let first = node & !node::KIND;
        let (number, bits, index) = if kind == node::CHUNK {
            (first, 8, high >> 56)
        } else {
            (first.wrapping_add((high >> 56) as u32), 16, high >> 48)
        };
        // VERIFIER: one way out of the loop, with unknown words, so that the paths through it end as one.
        let Some(children) = page(map, number) else {
            node = 0;
            break;
        };
        node = word(children, index as usize);
        high = high << bits | low >> (64 - bits);
        low = low << bits | zero;
    }
    for _ in 0..node::BUCKETS_MAX {
        if node & node::KIND != node::BUCKET {
            break;
        }
        // All ones where 32 bits are to be taken off.
        let deep = 0u64.wrapping_sub(hidden((node & node::DEEP) as u64) >> 29);
        high ^= (high ^ (high << 32 | low >> 32)) & deep;
        low ^= (low ^ (low << 32 | zero)) & deep;
        let Some(items) = page(map, node >> node::PAGE_SHIFT & node::PAGE_MASK) else {
            node = 0;
            break;
        };
        node = search::<LAID_OUT>(items, node, high >> 32);
    }
    match node & (node::KIND | node::LONG) {
        node::LEAF => node,
        kind if kind == node::LEAF | node::LONG => {
            match page(map, node >> node::PAGE_SHIFT & node::PAGE_MASK) {
                Some(items) => search_long::<LAID_OUT>(items, node, high, low),
                None => 0,
            }
        }
        _ => 0,
    }
}

/// The node at the last boundary of the bucket that is not above `key`.
// VERIFIER: no branch depends on what is compared; each would double the paths that are walked.
#[inline(always)]
fn search<const LAID_OUT: bool>(items: *const u32, bucket: u32, key: u64) -> u32 {
    let (mut at, last) = reach(bucket);
    let end = at + last;
    // The first boundary is 0, so there is always one that is not above.
    // VERIFIER: where a loop ends is one more path for each of its rounds; a program with many cannot have that.
    let mut step = if LAID_OUT { first_step(last) } else { halved(node::ITEMS_MAX as u64) };
    while step != 0 {
        let next = at + step;
        let item = word(items, next as usize * node::ITEM_WORDS as usize) as u64;
        at += step & !(above(next, end) | above(item, key));
        step = halved(step);
    }
    word(items, at as usize * node::ITEM_WORDS as usize + 1)
}

/// As [`search`], of what is left of the address; the value there.
#[inline(always)]
fn search_long<const LAID_OUT: bool>(items: *const u32, bucket: u32, high: u64, low: u64) -> u32 {
    let (mut at, last) = reach(bucket);
    let end = at + last;
    let mut step = if LAID_OUT { first_step(last) } else { halved(node::LONG_ITEMS_MAX as u64) };
    while step != 0 {
        let next = at + step;
        let item = next as usize * node::LONG_ITEM_WORDS as usize;
        let first = word(items, item) as u64 | (word(items, item + 1) as u64) << 32;
        let second = word(items, item + 2) as u64 | (word(items, item + 3) as u64) << 32;
        let is_above = above(first, high) | (!above(high, first) & above(second, low));
        at += step & !(above(next, end) | is_above);
        step = halved(step);
    }
    word(items, at as usize * node::LONG_ITEM_WORDS as usize + 4)
}

/// A bucket's first item in its page, and how many follow.
#[inline(always)]
fn reach(bucket: u32) -> (u64, u64) {
    let start = (bucket >> node::START_SHIFT & node::START_MASK) as u64;
    (start, (bucket & node::LENGTH_MASK) as u64)
}

/// The highest bit of `last`, which is less than [`node::ITEMS_MAX`]: steps from there on reach every item.
#[inline(always)]
fn first_step(last: u64) -> u64 {
    let filled = last | last >> 1;
    let filled = filled | filled >> 2;
    let filled = filled | filled >> 4;
    // VERIFIER: it knows no bound of a difference, and would walk a round for each bit of a word.
    hidden(filled - (filled >> 1)) & node::LENGTH_MASK as u64
}

/// All ones if `a` is above `b`, else zero: the borrow of `b - a` (Warren, Hacker's Delight, 2-13).
// VERIFIER: hidden at the end, too: of what is all ones or none the compiler makes a branch.
#[inline(always)]
fn above(a: u64, b: u64) -> u64 {
    let borrow = (!b & a) | ((!b | a) & hidden(b.wrapping_sub(a)));
    hidden(0u64.wrapping_sub(borrow >> 63))
}

/// Half of `step`, without telling the compiler what it is.
// VERIFIER: it would lay the loop out five times over.
#[inline(always)]
fn halved(step: u64) -> u64 {
    hidden(step >> 1)
}

/// `value`, of which the compiler knows nothing.
#[inline(always)]
pub fn hidden(mut value: u64) -> u64 {
    // SAFETY: no instruction at all.
    unsafe { asm!("/* {value} */", value = inout(reg) value, options(nomem, nostack, preserves_flags)) }
    value
}

/// Where `address` is looked up in the tries of both families: a root, and its bits from the top.
#[inline(always)]
fn place(roots: (u32, u32), address: &Address) -> (u32, u64, u64) {
    let [high, low] = halves(address);
    if is_v4(address) { (roots.0, low << 32, 0) } else { (roots.1, high, low) }
}

/// The two halves of an address, as numbers.
#[inline(always)]
fn halves(address: &Address) -> [u64; 2] {
    // SAFETY: 16 plain bytes either way.
    let [high, low] = unsafe { core::mem::transmute::<Address, [u64; 2]>(*address) };
    [u64::from_be(high), u64::from_be(low)]
}

// VERIFIER: functions of their own, so that the programs share their instructions; such functions return
// numbers, so results go through memory.
#[inline(never)]
fn bind_into(
    map: *mut c_void,
    header: *const Header,
    ifindex: u32,
    address: &Address,
    bind: &mut Bind,
) -> bool {
    match (Image::<false> { map, header }).find_bind(ifindex, address) {
        Some(found) => {
            *bind = found;
            true
        }
        None => false,
    }
}

#[inline(never)]
fn verdict_into(
    map: *mut c_void,
    header: *const Header,
    class: u32,
    key: &FlowKey,
    verdict: &mut Verdict,
) -> bool {
    *verdict = said((Image::<false> { map, header }).find_verdict(class, key));
    true
}

/// What the tables say, as a verdict.
#[inline(always)]
fn said(found: Result<Verdict, DropReason>) -> Verdict {
    match found {
        Ok(verdict) => verdict,
        Err(reason) => {
            Verdict { action: action::DENY, reason: reason.code(), policies: 0, limits: 0, pad: 0 }
        }
    }
}

impl<const LAID_OUT: bool> Image<LAID_OUT> {
    #[inline(always)]
    fn header(&self) -> &Header {
        // SAFETY: the first page of an image is a header, and lives as long as the map.
        unsafe { &*self.header }
    }

    /// The binding of `address` on this interface.
    #[inline(always)]
    pub fn bind(&self, ifindex: u32, address: &Address) -> Option<Bind> {
        if LAID_OUT {
            return self.find_bind(ifindex, address);
        }
        let mut bind = Bind { agent: 0, class: 0, mac: [0; 6], flags: 0 };
        if bind_into(self.map, self.header, ifindex, address, &mut bind) { Some(bind) } else { None }
    }

    #[inline(always)]
    fn find_bind(&self, ifindex: u32, address: &Address) -> Option<Bind> {
        let roots = self.interface(ifindex)?;
        let number = self.find(roots, address);
        self.record(self.header().binds_page, number)
    }

    /// The value of `address`.
    #[inline(always)]
    fn find(&self, roots: (u32, u32), address: &Address) -> u32 {
        let (root, high, low) = place(roots, address);
        if LAID_OUT {
            descend::<true>(self.map, self.header, root, high, low)
        } else {
            find(self.map, self.header, root, high, low)
        }
    }

    /// The roots of an interface's sources.
    #[inline(always)]
    fn interface(&self, ifindex: u32) -> Option<(u32, u32)> {
        for probe in 0..Interface::PROBES {
            let slot = (Interface::slot(ifindex) + probe) & (Interface::SLOTS - 1);
            let page = page(self.map, self.header().interfaces_page + slot / Interface::PER_PAGE)?;
            let at = (slot % Interface::PER_PAGE) as usize * 4;
            match word(page, at) {
                0 => return None,
                index if index == ifindex => return Some((word(page, at + 1), word(page, at + 2))),
                _ => {}
            }
        }
        None
    }

    #[inline(always)]
    fn record(&self, first: u32, number: u32) -> Option<Bind> {
        if number == 0 {
            return None;
        }
        let page = page(self.map, first + number / BINDS_PER_PAGE)?;
        let at = (number % BINDS_PER_PAGE) as usize;
        // SAFETY: a page has `BINDS_PER_PAGE` records, and `at` is less.
        Some(unsafe { *page.cast::<Bind>().add(at) })
    }

    /// The verdict for an agent class and a destination.
    #[inline(always)]
    pub fn verdict(&self, class: u32, key: &FlowKey) -> Verdict {
        if LAID_OUT {
            return said(self.find_verdict(class, key));
        }
        let mut verdict = Verdict { action: 0, reason: 0, policies: 0, limits: 0, pad: 0 };
        verdict_into(self.map, self.header, class, key, &mut verdict);
        verdict
    }

    #[inline(always)]
    fn find_verdict(&self, class: u32, key: &FlowKey) -> Result<Verdict, DropReason> {
        let number = key.protocol;
        let Some(offset) = self.protocol(number) else { return Err(DropReason::ProtocolUnsupported) };
        let header = self.header();
        let roots = (header.destinations_v4, header.destinations_v6);
        let destination_class = self.find(roots, &key.destination);
        let has_ports = number == protocol::TCP || number == protocol::UDP;
        let port_class = if has_ports { self.port_class(u16::from_be(key.destination_port_be)) } else { 0 };
        match self.cell(class, destination_class, offset + port_class) {
            Some(verdict) => Ok(verdict),
            None if protocol::is_named_only(number) => Err(DropReason::ProtocolUnsupported),
            None => Err(DropReason::PolicyDenied),
        }
    }

    /// The number of limiter `at` of a limit set, or 0; a number there can't be where there is no set.
    #[inline(always)]
    pub fn limiter_of(&self, set: u32, at: u32) -> u32 {
        let page = page(self.map, self.header().limit_sets_page.wrapping_add(set / LIMIT_SETS_PER_PAGE));
        // VERIFIER: hidden, or the compiler leaves the mask out that the verifier of Linux 6.1 needs.
        let index = hidden((set % LIMIT_SETS_PER_PAGE * LIMITERS_PER_SET as u32 + at) as u64);
        page.map_or(u32::MAX, |page| word(page, index as usize))
    }

    /// A limiter; it stays as long as this program runs.
    #[inline(always)]
    pub fn limiter(&self, number: u32) -> Option<&'static Limiter> {
        let page = page(self.map, self.header().limiters_page.wrapping_add(number / LIMITERS_PER_PAGE))?;
        let at = (number % LIMITERS_PER_PAGE) as usize;
        // SAFETY: a page has `LIMITERS_PER_PAGE` limiters, and `at` is less; it lives as long as the map.
        Some(unsafe { &*page.cast::<Limiter>().add(at) })
    }

    /// Where a protocol's verdicts begin in a row; `None` if no policy names the protocol.
    #[inline(always)]
    fn protocol(&self, protocol: u8) -> Option<u32> {
        let offset = half(self.header.cast(), PROTOCOLS_AT + protocol as usize);
        if offset == PROTOCOL_UNNAMED { None } else { Some(offset as u32) }
    }

    /// The class of a port.
    #[inline(always)]
    fn port_class(&self, port: u16) -> u32 {
        let number = self.header().ports_page + port as u32 / PORTS_PER_PAGE;
        page(self.map, number).map_or(0, |page| half(page, port as usize)) as u32
    }

    /// The verdict for these classes, `offset` words into their row.
    #[inline(always)]
    fn cell(&self, agent_class: u32, destination_class: u32, offset: u32) -> Option<Verdict> {
        let header = self.header();
        // What is beyond the matrix are other sections.
        if agent_class >= header.agent_classes || destination_class >= header.destination_classes {
            return None;
        }
        let cell = agent_class.wrapping_mul(header.destination_classes).wrapping_add(destination_class);
        let row = self.at(header.matrix_page, cell)?;
        let index = row.wrapping_mul(header.row_words).wrapping_add(offset);
        let verdict = self.at(header.rows_page, index)?;
        let page = page(self.map, header.verdicts_page + verdict / VERDICTS_PER_PAGE)?;
        // SAFETY: a page has `VERDICTS_PER_PAGE` verdicts, and the index is less.
        Some(unsafe { *page.cast::<Verdict>().add((verdict % VERDICTS_PER_PAGE) as usize) })
    }

    /// Word `index` of the section that begins with page `first`.
    #[inline(always)]
    fn at(&self, first: u32, index: u32) -> Option<u32> {
        let page = page(self.map, first.wrapping_add(index / PAGE_WORDS as u32))?;
        Some(word(page, index as usize))
    }
}
