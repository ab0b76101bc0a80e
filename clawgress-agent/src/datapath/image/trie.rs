//! Prefixes as a trie of nodes: what the kernel programs walk. A step function over the address space
//! (each boundary with the value from there on) becomes chunks where it is dense and buckets where it
//! is not.
//!
//! Must never depend on the order prefixes come in, and never give an address another value than the
//! longest prefix that holds it.

use clawgress_ebpf_common::image::{PAGE_WORDS, PAGES, node};

/// Most boundaries of a long bucket: beyond, four comparisons of 24 bytes cost more than a level.
const LONG_ITEMS_MAX: usize = 16;
/// Boundaries from which a level of sixteen bits pays for its quarter of a mebibyte.
const WIDE_BOUNDARIES_MIN: usize = 8_192;
/// Bits below the part of an address that a short bucket compares.
const SHORT_REST: u128 = u128::MAX >> 32;

/// A prefix: its first address, all bits from the top of 128 (IPv4's are the top 32); length; value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Prefix {
    /// First address.
    pub first: u128,
    /// Bits that count.
    pub bits: u8,
    /// What it stands for: 30 bits, not all zero by convention for "something".
    pub value: u32,
}

/// The address space gave more pages than an image may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Overflow;

/// Pages in the making.
#[derive(Debug, Default)]
pub struct Pages {
    pages: Vec<[u32; PAGE_WORDS]>,
    /// Where buckets are being put: page and items used, short and long.
    open: [Option<(u32, usize)>; 2],
}

/// A boundary and the value from there on.
type Step = (u128, u32);

/// The trie's root for `prefixes`; `default` is the value where none is. Of equal prefixes the last in
/// order of value counts; callers have none.
///
/// # Errors
/// If the image grows beyond its bound.
pub fn build(pages: &mut Pages, mut prefixes: Vec<Prefix>, default: u32) -> Result<u32, Overflow> {
    prefixes.sort_unstable();
    let steps = steps(&prefixes, default);
    node(pages, &steps, 0, default, 0)
}

/// The step function of sorted prefixes: ascending, no two neighbours equal, none at 0 with the default.
fn steps(prefixes: &[Prefix], default: u32) -> Vec<Step> {
    let mut steps: Vec<Step> = Vec::with_capacity(prefixes.len() * 2);
    let mut put = |at: u128, value: u32| {
        if steps.last().is_some_and(|last| last.0 == at) {
            steps.pop();
        }
        if steps.last().map_or(default, |last| last.1) != value {
            steps.push((at, value));
        }
    };
    // Open prefixes: last address and value.
    let mut open: Vec<(u128, u32)> = Vec::new();
    for prefix in prefixes {
        while let Some(&(last, _)) = open.last()
            && last < prefix.first
        {
            open.pop();
            put(last + 1, open.last().map_or(default, |enclosing| enclosing.1));
        }
        put(prefix.first, prefix.value);
        let rest = u128::MAX.checked_shr(u32::from(prefix.bits)).unwrap_or(0);
        open.push((prefix.first | rest, prefix.value));
    }
    while let Some((last, _)) = open.pop() {
        if let Some(next) = last.checked_add(1) {
            put(next, open.last().map_or(default, |enclosing| enclosing.1));
        }
    }
    steps
}

/// The node for the addresses that begin with the `consumed` top bits of `base`, where `before` is the
/// value at the first of them unless a step is there.
fn node(pages: &mut Pages, steps: &[Step], base: u128, before: u32, consumed: u32) -> Result<u32, Overflow> {
    let (before, steps) = match steps {
        [(at, value), rest @ ..] if *at == base => (*value, rest),
        _ => (before, steps),
    };
    if steps.is_empty() {
        return Ok(node::LEAF | before);
    }
    let key = |at: u128| at.checked_shl(consumed).unwrap_or(0);
    let is_short = steps.iter().all(|(at, _)| key(*at) & SHORT_REST == 0);
    let items_max = if is_short { node::ITEMS_MAX as usize } else { LONG_ITEMS_MAX };
    if steps.len() < items_max {
        let items = std::iter::once((0, before)).chain(steps.iter().map(|(at, value)| (key(*at), *value)));
        return pages.bucket(items, steps.len() + 1, is_short);
    }
    let is_wide = consumed == 0 && steps.len() >= WIDE_BOUNDARIES_MIN;
    let stride = if is_wide { 16 } else { 8 };
    let count = 1_usize << stride;
    let first = pages.reserve(count / PAGE_WORDS)?;
    let width = 128 - consumed - stride;
    let (mut rest, mut before) = (steps, before);
    for (n, index) in (0_u128..).zip(0..count) {
        let from = base | n << width;
        let end = from | ((1_u128 << width) - 1);
        let within = rest.partition_point(|(at, _)| *at <= end);
        let (mine, others) = rest.split_at(within);
        let child = node(pages, mine, from, before, consumed + stride)?;
        pages.set(first, index, child);
        before = mine.last().map_or(before, |last| last.1);
        rest = others;
    }
    Ok(first | if is_wide { node::WIDE } else { node::CHUNK })
}

// === impl Pages ===

impl Pages {
    /// Makes `count` pages of zeroes, and gives the number of the first.
    ///
    /// # Errors
    /// If the image would grow beyond its bound.
    pub fn reserve(&mut self, count: usize) -> Result<u32, Overflow> {
        let first = u32::try_from(self.pages.len()).map_err(|_| Overflow)?;
        if self.pages.len() + count > PAGES as usize {
            return Err(Overflow);
        }
        self.pages.resize(self.pages.len() + count, [0; PAGE_WORDS]);
        Ok(first)
    }

    /// Writes word `index` of the section that begins with page `first`.
    pub fn set(&mut self, first: u32, index: usize, word: u32) {
        let page = self.pages.get_mut(first as usize + index / PAGE_WORDS);
        if let Some(place) = page.and_then(|p| p.get_mut(index % PAGE_WORDS)) {
            *place = word;
        }
    }

    /// The pages.
    pub fn into_pages(self) -> Vec<[u32; PAGE_WORDS]> {
        self.pages
    }

    fn bucket(
        &mut self,
        items: impl Iterator<Item = Step>,
        count: usize,
        is_short: bool,
    ) -> Result<u32, Overflow> {
        let words = if is_short { node::SHORT_WORDS } else { node::LONG_WORDS } as usize;
        let room = PAGE_WORDS / words;
        let kind = usize::from(!is_short);
        let (page, start) = match self.open.get(kind).copied().flatten() {
            Some((page, used)) if used + count <= room => (page, used),
            _ => (self.reserve(1)?, 0),
        };
        if let Some(open) = self.open.get_mut(kind) {
            *open = Some((page, start + count));
        }
        for (n, (key, value)) in items.enumerate() {
            let at = (start + n) * words;
            if is_short {
                self.set(page, at, word(key, 96));
                self.set(page, at + 1, value);
            } else {
                for (offset, shift) in [(0, 64), (1, 96), (2, 0), (3, 32)] {
                    self.set(page, at + offset, word(key, shift));
                }
                self.set(page, at + 4, value);
            }
        }
        let (start, last) = (u32::try_from(start), u32::try_from(count - 1));
        let (Ok(start), Ok(last)) = (start, last) else { return Err(Overflow) };
        let long = if is_short { 0 } else { node::LONG };
        Ok(node::BUCKET | long | page << node::PAGE_SHIFT | start << node::START_SHIFT | last)
    }
}

/// 32 bits of a key.
fn word(key: u128, shift: u32) -> u32 {
    u32::try_from(key >> shift & 0xFFFF_FFFF).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// SplitMix64.
    struct Random(u64);

    impl Random {
        fn next(&mut self) -> u64 {
            self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
            let mut z = self.0;
            z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
            z ^ (z >> 31)
        }

        fn below(&mut self, n: u64) -> u64 {
            self.next() % n
        }

        fn address(&mut self, is_v4: bool, spread: u64) -> u128 {
            let mut bytes = [0; 16];
            for byte in bytes.iter_mut().take(if is_v4 { 4 } else { 16 }) {
                *byte = u8::try_from(self.below(spread)).unwrap();
            }
            u128::from_be_bytes(bytes)
        }
    }

    /// The walk of the kernel programs.
    fn find(pages: &[[u32; PAGE_WORDS]], root: u32, mut address: u128, depth: u32) -> u32 {
        let word = |page: u32, at: usize| pages[page as usize][at];
        let mut at = root;
        for _ in 0..depth {
            let first = at & !node::KIND;
            match at & node::KIND {
                node::LEAF => return at,
                node::CHUNK => {
                    at = word(first, usize::try_from(address >> 120).unwrap());
                    address <<= 8;
                }
                node::WIDE => {
                    let top = usize::try_from(address >> 112).unwrap();
                    at = word(first + u32::try_from(top / 256).unwrap(), top % 256);
                    address <<= 16;
                }
                _ => {
                    let page = at >> node::PAGE_SHIFT & node::PAGE_MASK;
                    let start = (at >> node::START_SHIFT & node::START_MASK) as usize;
                    let items = 0..=(at & node::LENGTH_MASK) as usize;
                    let key = |n: usize| {
                        if at & node::LONG == 0 {
                            u128::from(word(page, (start + n) * 2)) << 96
                        } else {
                            let part = |m| u128::from(word(page, (start + n) * 6 + m));
                            part(0) << 64 | part(1) << 96 | part(2) | part(3) << 32
                        }
                    };
                    let address = if at & node::LONG == 0 { address & !SHORT_REST } else { address };
                    let n = items.rev().find(|n| key(*n) <= address).unwrap();
                    return if at & node::LONG == 0 {
                        word(page, (start + n) * 2 + 1)
                    } else {
                        word(page, (start + n) * 6 + 4)
                    };
                }
            }
        }
        panic!("more than {depth} nodes");
    }

    #[track_caller]
    fn check(seed: u64, is_v4: bool, count: usize, spread: u64) {
        let mut random = Random(seed);
        let max: u8 = if is_v4 { 32 } else { 128 };
        let mut prefixes = std::collections::BTreeMap::new();
        for _ in 0..count {
            let bits = u8::try_from(random.below(u64::from(max) + 1)).unwrap();
            let first = random.address(is_v4, spread) & !u128::MAX.checked_shr(u32::from(bits)).unwrap_or(0);
            prefixes.insert((first, bits), 1 + u32::try_from(random.below(9)).unwrap());
        }
        let prefixes: Vec<Prefix> =
            prefixes.into_iter().map(|((first, bits), value)| Prefix { first, bits, value }).collect();
        let mut pages = Pages::default();
        let root = build(&mut pages, prefixes.clone(), 0).unwrap();
        let pages = pages.into_pages();
        let holds =
            |p: &Prefix, a: u128| (a ^ p.first).checked_shr(128 - u32::from(p.bits)).unwrap_or(0) == 0;
        let depth = node::DEPTH_MAX;
        for n in 0..400 {
            let address = match prefixes.get(n / 2 % (prefixes.len() + 1)) {
                // Next to a boundary.
                Some(prefix) if n % 2 == 0 => prefix.first,
                Some(prefix) => prefix.first.wrapping_sub(1) & if is_v4 { !SHORT_REST } else { u128::MAX },
                None => random.address(is_v4, spread),
            };
            let longest = prefixes.iter().filter(|p| holds(p, address)).max_by_key(|p| p.bits);
            let want = longest.map_or(0, |p| p.value);
            assert_eq!(
                find(&pages, root, address, depth),
                want,
                "seed {seed}, v4 {is_v4}, {count} prefixes, {address:032x}"
            );
        }
    }

    #[test]
    fn every_address_has_the_value_of_its_longest_prefix() {
        let seed = 0x5eed_0001;
        for (round, count) in (0..).zip([0, 1, 2, 5, 20, 40, 100, 700, 3_000, 20_000]) {
            for (is_v4, spread) in [(true, 256), (true, 4), (false, 256), (false, 3)] {
                check(seed + round, is_v4, count, spread);
            }
        }
    }

    #[test]
    fn the_deepest_trie_is_within_reach() {
        // Every length of one address, and so many neighbours that no bucket takes them.
        let mut prefixes = Vec::new();
        for bits in 1..=128_u8 {
            let first = u128::MAX << (128 - u32::from(bits));
            prefixes.push(Prefix { first, bits, value: u32::from(bits) });
        }
        for n in 0..64 {
            prefixes.push(Prefix { first: u128::MAX - 200 - 2 * n, bits: 128, value: 500 });
        }
        let mut pages = Pages::default();
        let root = build(&mut pages, prefixes, 0).unwrap();
        let pages = pages.into_pages();
        assert_eq!(find(&pages, root, u128::MAX, node::DEPTH_MAX), 128);
        assert_eq!(find(&pages, root, u128::MAX - 200, node::DEPTH_MAX), 500);
        assert_eq!(find(&pages, root, u128::MAX - 201, node::DEPTH_MAX), 120);
        assert_eq!(find(&pages, root, 0, node::DEPTH_MAX), 0);
    }

    #[test]
    fn an_image_is_bounded() {
        let prefixes: Vec<Prefix> = (0..1_u128 << 17)
            .flat_map(|n| (0..40).map(move |m| (n, m)))
            .map(|(n, m)| Prefix {
                first: n << 104 | m << 97,
                bits: 32,
                value: 1 + u32::try_from(m % 2).unwrap(),
            })
            .collect();
        assert_eq!(build(&mut Pages::default(), prefixes, 0), Err(Overflow));
    }
}
