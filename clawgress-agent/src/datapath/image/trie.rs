//! Prefixes as a trie of nodes: what the kernel programs walk. A step function over the address space
//! (each boundary with the value from there on) becomes chunks where it is dense and wide, and trees of
//! buckets (a static B-tree over 32 bits of the address at a time) below that; a few that differ further down
//! are one bucket of whole addresses.
//!
//! Must never depend on the order prefixes come in, and never give an address another value than the
//! longest prefix that holds it.

use clawgress_ebpf_common::image::{PAGE_WORDS, PAGES, node};

/// Boundaries from which a level of sixteen bits pays for its quarter of a mebibyte.
const WIDE_BOUNDARIES_MIN: usize = 8_192;
/// Boundaries from which a level of eight bits pays for its page: two bytes for each at most, and two levels of
/// buckets would hold twice as many.
const CHUNK_BOUNDARIES_MIN: usize = 512;
/// Values of the next eight bits that have boundaries, from which a level of eight bits parts them well.
const CHUNK_SPREAD_MIN: usize = 8;
/// Pages with room left that the next bucket may go to.
const OPEN_PAGES: usize = 8;
/// Bits below the part of an address that a bucket compares.
const REST: u128 = u128::MAX >> 32;

/// A prefix: its first address, all bits from the top of 128 (IPv4's are the top 32); length; value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Prefix {
    /// First address.
    pub first: u128,
    /// Bits that count.
    pub bits: u8,
    /// What it stands for: 29 bits, not all zero by convention for "something".
    pub value: u32,
}

/// Why prefixes have no trie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Overflow {
    /// More pages than an image may have.
    Pages,
    /// More than [`node::BUCKETS_MAX`] buckets below one another: tens of thousands of prefixes within one, and as many again
    /// within one of those, and so on.
    Depth,
}

/// Pages in the making.
#[derive(Debug, Default)]
pub struct Pages {
    pages: Vec<[u32; PAGE_WORDS]>,
    /// Where buckets are being put: page and items used; of items, and of long ones.
    open: [Vec<(u32, usize)>; 2],
}

/// A node, and how many buckets are below one another from it on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Node {
    word: u32,
    depth: u32,
}

/// A boundary in a bucket.
type Item = (u32, Node);

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
    let root = chunked(pages, &steps, 0, default, 0, node::CHUNKS_MAX)?;
    if root.depth > node::BUCKETS_MAX { Err(Overflow::Depth) } else { Ok(root.word) }
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
/// value at the first of them unless a step is there. At most `levels` of chunks.
fn chunked(
    pages: &mut Pages,
    steps: &[Step],
    base: u128,
    before: u32,
    consumed: u32,
    levels: u32,
) -> Result<Node, Overflow> {
    let is_wide = consumed == 0 && steps.len() >= WIDE_BOUNDARIES_MIN;
    if levels == 0 || !(is_wide || parts_well(steps, consumed)) {
        return tree(pages, steps, before, consumed, false);
    }
    let stride = if is_wide { 16 } else { 8 };
    let count = 1_usize << stride;
    let first = pages.reserve(count / PAGE_WORDS)?;
    let width = 128 - consumed - stride;
    let (mut rest, mut before, mut depth) = (steps, before, 0);
    for (n, index) in (0_u128..).zip(0..count) {
        let from = base | n << width;
        let end = from | ((1_u128 << width) - 1);
        let within = rest.partition_point(|(at, _)| *at <= end);
        let (mine, others) = rest.split_at(within);
        let child = chunked(pages, mine, from, before, consumed + stride, levels - 1)?;
        pages.set(first, index, child.word);
        depth = depth.max(child.depth);
        before = mine.last().map_or(before, |last| last.1);
        rest = others;
    }
    Ok(Node { word: first | if is_wide { node::WIDE } else { node::CHUNK }, depth })
}

/// Whether a page of children is worth its bytes.
fn parts_well(steps: &[Step], consumed: u32) -> bool {
    let next_eight = |step: &Step| key(step.0, consumed) >> 24;
    steps.len() >= CHUNK_BOUNDARIES_MIN
        && steps.chunk_by(|a, b| next_eight(a) == next_eight(b)).count() >= CHUNK_SPREAD_MIN
}

/// The node of a tree of buckets over the 32 bits below the `consumed` ones. If `is_deep`, these were not taken off
/// before, all 32 of the tree above.
fn tree(
    pages: &mut Pages,
    steps: &[Step],
    before: u32,
    consumed: u32,
    is_deep: bool,
) -> Result<Node, Overflow> {
    let is_fine = steps.iter().any(|step| step.0.checked_shl(consumed).unwrap_or(0) & REST != 0);
    if is_fine && steps.len() < node::LONG_ITEMS_MAX as usize {
        return pages.long_bucket(steps, before, if is_deep { consumed - 32 } else { consumed });
    }
    let mut items = items(pages, steps, before, consumed)?;
    if let [(_, only)] = items.as_slice()
        && (!is_deep || is_value(only.word))
    {
        return Ok(*only);
    }
    let items_max = node::ITEMS_MAX as usize;
    while items.len() > items_max {
        // As few as can be, and all about as full.
        let buckets = items.len().div_ceil(items_max);
        let (count, mut above, mut rest) = (items.len(), Vec::with_capacity(buckets), items.as_slice());
        for n in 0..buckets {
            let (mine, others) = rest.split_at(count * (n + 1) / buckets - count * n / buckets);
            let from = mine.first().map_or(0, |first| first.0);
            above.push((from, pages.bucket(mine, false)?));
            rest = others;
        }
        items = above;
    }
    pages.bucket(&items, is_deep)
}

/// The boundaries that differ in the 32 bits below the `consumed` ones, the first one 0. Where there are finer ones, their
/// tree is from there to the next.
fn items(pages: &mut Pages, steps: &[Step], before: u32, consumed: u32) -> Result<Vec<Item>, Overflow> {
    let mut items: Vec<Item> = Vec::with_capacity(steps.len() + 1);
    let mut put = |key: u32, node: Node| {
        if items.last().is_none_or(|last| last.1 != node) {
            items.push((key, node));
        }
    };
    let mut current = before;
    if steps.first().is_none_or(|first| key(first.0, consumed) != 0) {
        put(0, leaf(current));
    }
    let mut groups = steps.chunk_by(|a, b| key(a.0, consumed) == key(b.0, consumed)).peekable();
    while let Some(group) = groups.next() {
        let [(first, value), others @ ..] = group else { continue };
        let from = key(*first, consumed);
        if others.is_empty() && first.checked_shl(consumed).unwrap_or(0) & REST == 0 {
            put(from, leaf(*value));
            current = *value;
            continue;
        }
        put(from, tree(pages, group, current, consumed + 32, true)?);
        current = others.last().map_or(*value, |last| last.1);
        let next = groups.peek().and_then(|group| group.first()).map(|step| key(step.0, consumed));
        if let Some(after) = from.checked_add(1)
            && next != Some(after)
        {
            put(after, leaf(current));
        }
    }
    Ok(items)
}

/// The 32 bits of an address below the `consumed` ones.
fn key(address: u128, consumed: u32) -> u32 {
    u32::try_from(address.checked_shl(consumed).unwrap_or(0) >> 96).unwrap_or(0)
}

fn leaf(value: u32) -> Node {
    Node { word: node::LEAF | value, depth: 0 }
}

/// Whether it is a value, the same wherever it stands.
fn is_value(word: u32) -> bool {
    word & (node::KIND | node::LONG) == node::LEAF
}

// === impl Pages ===

impl Pages {
    /// Makes `count` pages of zeroes, and gives the number of the first.
    ///
    /// # Errors
    /// If the image would grow beyond its bound.
    pub fn reserve(&mut self, count: usize) -> Result<u32, Overflow> {
        let first = u32::try_from(self.pages.len()).map_err(|_| Overflow::Pages)?;
        if self.pages.len() + count > PAGES as usize {
            return Err(Overflow::Pages);
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

    fn bucket(&mut self, items: &[Item], is_deep: bool) -> Result<Node, Overflow> {
        let (page, start) = self.room(items.len(), node::ITEM_WORDS)?;
        for (n, (key, node)) in items.iter().enumerate() {
            let at = (start + n) * node::ITEM_WORDS as usize;
            self.set(page, at, *key);
            self.set(page, at + 1, node.word);
        }
        let deep = if is_deep { node::DEEP } else { 0 };
        let word = node::BUCKET | deep | place(page, start, items.len())?;
        let depth = 1 + items.iter().map(|(_, node)| node.depth).max().unwrap_or(0);
        Ok(Node { word, depth })
    }

    /// All steps below the `consumed` bits, whole.
    fn long_bucket(&mut self, steps: &[Step], before: u32, consumed: u32) -> Result<Node, Overflow> {
        let below = |at: u128| at.checked_shl(consumed).unwrap_or(0);
        // One at the very first address takes the place of what was before.
        let is_first = steps.first().is_some_and(|step| below(step.0) == 0);
        let before = (!is_first).then_some((0, before));
        let items: Vec<Step> = before.into_iter().chain(steps.iter().copied()).collect();
        let (page, start) = self.room(items.len(), node::LONG_ITEM_WORDS)?;
        for (n, (at, value)) in items.iter().enumerate() {
            let (key, at) = (below(*at), (start + n) * node::LONG_ITEM_WORDS as usize);
            for (offset, shift) in [(0, 64), (1, 96), (2, 0), (3, 32)] {
                self.set(page, at + offset, word(key, shift));
            }
            self.set(page, at + 4, *value);
        }
        Ok(Node { word: node::LEAF | node::LONG | place(page, start, items.len())?, depth: 0 })
    }

    /// Room for `count` items: a page, and where in it. The fullest page that has it is taken, so that little is left over.
    fn room(&mut self, count: usize, words: u32) -> Result<(u32, usize), Overflow> {
        let kind = usize::from(words != node::ITEM_WORDS);
        let most = PAGE_WORDS / words as usize;
        let Some(open) = self.open.get_mut(kind) else { return Err(Overflow::Pages) };
        let fits = open.iter_mut().filter(|(_, used)| used + count <= most);
        if let Some((page, used)) = fits.max_by_key(|(_, used)| *used) {
            let start = *used;
            *used += count;
            return Ok((*page, start));
        }
        if open.len() >= OPEN_PAGES
            && let Some(fullest) = (0..open.len()).max_by_key(|n| open.get(*n).map(|page| page.1))
        {
            open.swap_remove(fullest);
        }
        let page = self.reserve(1)?;
        if let Some(open) = self.open.get_mut(kind) {
            open.push((page, count));
        }
        Ok((page, 0))
    }
}

/// Where a bucket is, as its node tells.
fn place(page: u32, start: usize, count: usize) -> Result<u32, Overflow> {
    let (Ok(start), Ok(last)) = (u32::try_from(start), u32::try_from(count.saturating_sub(1))) else {
        return Err(Overflow::Pages);
    };
    Ok(page << node::PAGE_SHIFT | start << node::START_SHIFT | last)
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
    fn find(pages: &[[u32; PAGE_WORDS]], root: u32, mut address: u128) -> u32 {
        let word = |page: u32, at: usize| pages[page as usize][at];
        let mut at = root;
        for _ in 0..node::CHUNKS_MAX {
            let first = at & !node::KIND;
            match at & node::KIND {
                node::CHUNK => {
                    at = word(first, usize::try_from(address >> 120).unwrap());
                    address <<= 8;
                }
                node::WIDE => {
                    let top = usize::try_from(address >> 112).unwrap();
                    at = word(first + u32::try_from(top / 256).unwrap(), top % 256);
                    address <<= 16;
                }
                _ => break,
            }
        }
        for _ in 0..node::BUCKETS_MAX {
            if at & node::KIND != node::BUCKET {
                break;
            }
            if at & node::DEEP != 0 {
                address <<= 32;
            }
            let page = at >> node::PAGE_SHIFT & node::PAGE_MASK;
            let start = (at >> node::START_SHIFT & node::START_MASK) as usize;
            let last = (at & node::LENGTH_MASK) as usize;
            let n = (0..=last).rev().find(|n| word(page, (start + n) * 2) <= key(address, 0)).unwrap();
            at = word(page, (start + n) * 2 + 1);
        }
        assert_eq!(at & node::KIND, node::LEAF, "too deep");
        if at & node::LONG == 0 {
            return at;
        }
        let page = at >> node::PAGE_SHIFT & node::PAGE_MASK;
        let start = (at >> node::START_SHIFT & node::START_MASK) as usize;
        let part = |n: usize, m: usize| u128::from(word(page, (start + n) * 6 + m));
        let key = |n| part(n, 0) << 64 | part(n, 1) << 96 | part(n, 2) | part(n, 3) << 32;
        let last = (at & node::LENGTH_MASK) as usize;
        let n = (0..=last).rev().find(|n| key(*n) <= address).unwrap();
        word(page, (start + n) * 6 + 4)
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
        for n in 0..400 {
            let address = match prefixes.get(n / 2 % (prefixes.len() + 1)) {
                // Next to a boundary.
                Some(prefix) if n % 2 == 0 => prefix.first,
                Some(prefix) => prefix.first.wrapping_sub(1) & if is_v4 { !REST } else { u128::MAX },
                None => random.address(is_v4, spread),
            };
            let longest = prefixes.iter().filter(|p| holds(p, address)).max_by_key(|p| p.bits);
            let want = longest.map_or(0, |p| p.value);
            assert_eq!(
                find(&pages, root, address),
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
        assert_eq!(find(&pages, root, u128::MAX), 128);
        assert_eq!(find(&pages, root, u128::MAX - 200), 500);
        assert_eq!(find(&pages, root, u128::MAX - 201), 120);
        assert_eq!(find(&pages, root, 0), 0);
    }

    /// Every prefix below one, so many that each 32 bits need a tree of buckets of their own.
    #[test]
    fn crowded_prefixes_have_trees_of_buckets() {
        let mut random = Random(0x5eed_0002);
        let mut prefixes = std::collections::BTreeMap::new();
        for (bits, count) in [(32_u8, 40), (64, 3_000), (96, 3_000), (128, 3_000)] {
            let above = prefixes.keys().next_back().map_or(0, |(first, _): &(u128, u8)| *first);
            for _ in 0..count {
                let first = above | u128::from(random.next() as u32) << (128 - u32::from(bits));
                prefixes.insert((first, bits), 1 + u32::try_from(random.below(9)).unwrap());
            }
        }
        let list = prefixes.iter().map(|(&(first, bits), &value)| Prefix { first, bits, value });
        let mut pages = Pages::default();
        let root = build(&mut pages, list.collect(), 0).unwrap();
        let pages = pages.into_pages();
        for (&(first, bits), &value) in &prefixes {
            // The last address of a prefix has its value, unless a longer one holds it.
            let last = first | u128::MAX.checked_shr(u32::from(bits)).unwrap_or(0);
            for address in [first, last, first.wrapping_sub(1), last.wrapping_add(1)] {
                let masks = [128, 96, 64, 32].map(|bits: u8| (bits, u128::MAX << (128 - u32::from(bits))));
                let longest = masks.iter().find_map(|(bits, mask)| prefixes.get(&(address & mask, *bits)));
                assert_eq!(
                    find(&pages, root, address),
                    longest.copied().unwrap_or(0),
                    "{address:032x}, {value}"
                );
            }
        }
    }

    /// A million prefixes of IPv6, as many allocations of /32 as the global routing table has: what an image is made for.
    #[test]
    fn a_million_prefixes_of_ipv6_have_room() {
        let mut random = Random(0x5eed_0003);
        let prefixes = (0..1_000_000).map(|_| {
            // 2000::/3, by allocation.
            let allocation = Random(random.below(40_000)).next() >> 35 | 1 << 29;
            let bits = [40, 44, 48, 48, 48, 48, 56, 64][usize::try_from(random.below(8)).unwrap()];
            let mask = u128::MAX << (128 - u32::from(bits));
            let first = (u128::from(allocation) << 96 | u128::from(random.next()) << 32) & mask;
            Prefix { first, bits, value: 1 + u32::try_from(random.below(3)).unwrap() }
        });
        let mut pages = Pages::default();
        build(&mut pages, prefixes.collect(), 0).unwrap();
        let mib = pages.into_pages().len() / 1024;
        assert!(mib < 30, "{mib} MiB");
    }

    #[test]
    fn what_is_too_deep_is_refused() {
        let mut prefixes = Vec::new();
        let mut above = 0;
        // All alike where there could be chunks, and then tens of thousands within each 32 bits.
        for bits in [48_u8, 80, 112, 128] {
            let shift = 128 - u32::from(bits);
            for n in 1..40_000_u128 {
                let value = 1 + u32::try_from(n % 2).unwrap();
                prefixes.push(Prefix { first: above | n << shift, bits, value });
            }
            above |= 1 << shift;
        }
        assert_eq!(build(&mut Pages::default(), prefixes, 0), Err(Overflow::Depth));
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
        assert_eq!(build(&mut Pages::default(), prefixes, 0), Err(Overflow::Pages));
    }
}
