//! A generation as the kernel programs read it: header, tries of sources and destinations, ports, matrix,
//! rows and verdicts, laid out in pages. `clawgress_ebpf_common::image` says what is where.
//!
//! Must never touch a map: it makes pages, and `tables` writes them.

mod trie;

use std::collections::{BTreeMap, BTreeSet};

use clawgress_ebpf_common::image::{
    BINDS_PER_PAGE, Header, Interface, LIMIT_SETS_PER_PAGE, LIMITERS_PER_PAGE, LIMITERS_PER_SET, LimitSet,
    Limiter, PAGE_WORDS, PAGES, PORTS_PER_PAGE, PROTOCOL_UNNAMED, Page, VERDICTS_PER_PAGE, node,
};
use clawgress_ebpf_common::{Address, Bind, DropReason, Verdict, action, bound, protocol};

use self::trie::{Overflow, Pages, Prefix};

/// Bits of `::ffff:0:0`, before an IPv4 address in map form.
pub const MAPPED_BITS: u32 = 96;
const MAPPED: u128 = 0xFFFF << 32;
/// Ports there are.
pub const PORTS: usize = 1 << 16;

/// What a cell of the tables applies to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Cell {
    /// Agent class.
    pub agent_class: u32,
    /// Destination class.
    pub destination_class: u32,
    /// Protocol number.
    pub protocol: u8,
    /// Port class; 0 for protocols without ports.
    pub port_class: u16,
}

/// All that goes into an image. Addresses are in map form.
#[derive(Clone, Debug, Default)]
pub struct Contents {
    /// Generation number.
    pub number: u64,
    /// Bindings by interface index, bits and address; none of them takes in IPv4 and IPv6 at once.
    pub bindings: BTreeMap<(u32, u32, Address), Bind>,
    /// Agents' interfaces without any binding too.
    pub interfaces: Vec<u32>,
    /// Bits and address of each destination prefix, and its class. A prefix of IPv6 that encloses
    /// `::ffff:0:0/96` applies to IPv4 where no other does.
    pub destinations: Vec<(u32, Address, u32)>,
    /// Class of each port; all 0 if empty.
    pub ports: Vec<u16>,
    /// Limiters, by number less one.
    pub limiters: Vec<Limiter>,
    /// Limit sets, by number; the first is empty.
    pub limit_sets: Vec<LimitSet>,
    /// Verdicts that are not the default: deny, `policy_denied`, or `protocol_unsupported` for a protocol
    /// that is dropped unless it is named.
    pub verdicts: Vec<(Cell, Verdict)>,
}

/// Why contents have no image.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ImageError {
    /// A bound of the layout.
    #[error("the tables need more than {max} {what}")]
    TooMany {
        /// Of what.
        what: &'static str,
        /// The bound.
        max: u64,
    },
}

impl From<Overflow> for ImageError {
    fn from(overflow: Overflow) -> Self {
        let (what, max) = match overflow {
            Overflow::Pages => ("pages of 1 KiB; aggregate prefixes", PAGES),
            Overflow::Depth => {
                ("levels of prefixes inside one another; aggregate prefixes", node::BUCKETS_MAX)
            }
        };
        ImageError::TooMany { what, max: max.into() }
    }
}

/// The image of `contents`, page 0 first.
///
/// # Errors
/// If it exceeds a bound of the layout.
pub fn image(contents: &Contents) -> Result<Vec<Page>, ImageError> {
    let mut pages = Pages::default();
    pages.reserve(1)?;
    let mut header = Header {
        number: contents.number,
        destinations_v4: 0,
        destinations_v6: 0,
        destination_classes: 0,
        matrix_page: 0,
        rows_page: 0,
        row_words: 0,
        verdicts_page: 0,
        ports_page: 0,
        binds_page: 0,
        interfaces_page: 0,
        agent_classes: 0,
        limit_sets_page: 0,
        limiters_page: 0,
        pad: [0; 113],
        protocols: [PROTOCOL_UNNAMED; 256],
    };
    sources(&mut pages, &mut header, contents)?;
    destinations(&mut pages, &mut header, &contents.destinations)?;
    ports(&mut pages, &mut header, &contents.ports)?;
    verdicts(&mut pages, &mut header, contents)?;
    limits(&mut pages, &mut header, contents)?;
    let mut pages = pages.into_pages();
    if let Some(first) = pages.first_mut() {
        *first = words_of_header(&header);
    }
    Ok(pages)
}

/// Interfaces with their tries of sources, and the bindings these lead to.
fn sources(pages: &mut Pages, header: &mut Header, contents: &Contents) -> Result<(), ImageError> {
    let max = bound::IMAGE_INTERFACES_MAX;
    let mut numbers = BTreeMap::new();
    let mut binds = vec![Bind::default()];
    let mut by_interface: BTreeMap<u32, [Vec<Prefix>; 2]> =
        contents.interfaces.iter().map(|ifindex| (*ifindex, Default::default())).collect();
    for (&(ifindex, bits, address), bind) in &contents.bindings {
        let number = *numbers.entry(bind_words(bind)).or_insert_with(|| {
            binds.push(*bind);
            binds.len() - 1
        });
        let value = u32::try_from(number).unwrap_or(0);
        let [v4, v6] = by_interface.entry(ifindex).or_default();
        let address = u128::from_be_bytes(address);
        if is_within_mapped(bits, address) {
            v4.push(prefix_v4(bits, address, value));
        } else {
            v6.push(Prefix { first: address, bits: narrow(bits), value });
        }
    }
    if by_interface.len() > max as usize {
        return Err(ImageError::TooMany { what: "agents' interfaces", max: max.into() });
    }
    header.binds_page = pages.reserve(binds.len().div_ceil(BINDS_PER_PAGE as usize))?;
    for (n, bind) in binds.iter().enumerate() {
        for (word, value) in bind_words(bind).into_iter().enumerate() {
            pages.set(header.binds_page, n * 4 + word, value);
        }
    }
    header.interfaces_page = pages.reserve((Interface::SLOTS / Interface::PER_PAGE) as usize)?;
    let mut taken = BTreeSet::new();
    for (ifindex, [v4, v6]) in by_interface {
        let first = Interface::slot(ifindex);
        let slot = (first..first + Interface::PROBES)
            .map(|slot| slot & (Interface::SLOTS - 1))
            .find(|slot| taken.insert(*slot))
            .ok_or(ImageError::TooMany { what: "agents' interfaces of like indices", max: 8 })?;
        let roots = [trie::build(pages, v4, 0)?, trie::build(pages, v6, 0)?];
        let at = slot as usize * 4;
        for (word, value) in [ifindex].into_iter().chain(roots).enumerate() {
            pages.set(header.interfaces_page, at + word, value);
        }
    }
    Ok(())
}

fn destinations(
    pages: &mut Pages,
    header: &mut Header,
    destinations: &[(u32, Address, u32)],
) -> Result<(), ImageError> {
    let (mut v4, mut v6) = (Vec::new(), Vec::new());
    // IPv4 has what the longest prefix around its mapped space has.
    let (mut default_bits, mut default) = (None, 0);
    for &(bits, address, value) in destinations {
        let address = u128::from_be_bytes(address);
        if is_within_mapped(bits, address) {
            v4.push(prefix_v4(bits, address, value));
            continue;
        }
        if takes_in_mapped(bits, address) && default_bits < Some(bits) {
            (default_bits, default) = (Some(bits), value);
        }
        v6.push(Prefix { first: address, bits: narrow(bits), value });
    }
    header.destinations_v4 = trie::build(pages, v4, default)?;
    header.destinations_v6 = trie::build(pages, v6, 0)?;
    Ok(())
}

fn ports(pages: &mut Pages, header: &mut Header, classes: &[u16]) -> Result<(), ImageError> {
    header.ports_page = pages.reserve(PORTS / PORTS_PER_PAGE as usize)?;
    for (index, pair) in classes.chunks(2).enumerate() {
        let [low, high] = [0, 1].map(|n| pair.get(n).copied().map_or(0, u32::from));
        pages.set(header.ports_page, index, low | high << 16);
    }
    Ok(())
}

/// Matrix, rows and verdicts. Equal rows are one, and so are equal verdicts.
fn verdicts(pages: &mut Pages, header: &mut Header, contents: &Contents) -> Result<(), ImageError> {
    let port_classes = contents.ports.iter().max().map_or(0, |class| u32::from(*class)) + 1;
    let named: BTreeSet<u8> = contents.verdicts.iter().map(|(cell, _)| cell.protocol).collect();
    let row_words = offsets(header, &named, port_classes)?;
    let mut numbers: BTreeMap<[u32; 4], u32> =
        BTreeMap::from([(verdict_words(&denied(DropReason::PolicyDenied)), 0)]);
    let mut rows: BTreeMap<(u32, u32), BTreeMap<u32, u32>> = BTreeMap::new();
    for (cell, verdict) in &contents.verdicts {
        let offset = header.protocols.get(usize::from(cell.protocol)).copied().unwrap_or(PROTOCOL_UNNAMED);
        if offset == PROTOCOL_UNNAMED {
            continue;
        }
        let port_class = if protocol::has_ports(cell.protocol) { u32::from(cell.port_class) } else { 0 };
        // A port class that no port has is never asked for.
        if port_class >= port_classes {
            continue;
        }
        let next = u32::try_from(numbers.len()).unwrap_or(0);
        let number = *numbers.entry(verdict_words(verdict)).or_insert(next);
        let row = rows.entry((cell.agent_class, cell.destination_class)).or_default();
        row.insert(u32::from(offset) + port_class, number);
    }
    // A class without a cell has a line of default rows, or, above the last with one, no line and no verdict.
    let agent_classes = rows.keys().map(|(agent, _)| agent + 1).max().unwrap_or(0);
    let classes = contents.destinations.iter().map(|(_, _, class)| *class);
    let classes = classes.chain(rows.keys().map(|(_, class)| *class)).max().unwrap_or(0) + 1;
    let words = u64::from(agent_classes) * u64::from(classes);
    check(words, bound::MATRIX_WORDS_MAX, "combinations of agent classes and destination classes")?;

    // A protocol that one policy names is still unsupported where none does.
    let next = u32::try_from(numbers.len()).unwrap_or(0);
    let unsupported = *numbers.entry(verdict_words(&denied(DropReason::ProtocolUnsupported))).or_insert(next);
    let default: BTreeMap<u32, u32> = named
        .iter()
        .filter(|number| protocol::is_named_only(**number))
        .filter_map(|number| header.protocols.get(usize::from(*number)))
        .map(|offset| (u32::from(*offset), unsupported))
        .collect();
    let mut row_numbers: BTreeMap<BTreeMap<u32, u32>, u32> = BTreeMap::from([(default.clone(), 0)]);
    header.matrix_page = pages.reserve(usize::try_from(words).unwrap_or(0).div_ceil(PAGE_WORDS))?;
    for ((agent, class), row) in rows {
        let next = u32::try_from(row_numbers.len()).unwrap_or(0);
        let row = default.iter().map(|(offset, number)| (*offset, *number)).chain(row).collect();
        let number = *row_numbers.entry(row).or_insert(next);
        pages.set(header.matrix_page, agent as usize * classes as usize + class as usize, number);
    }
    let words = row_numbers.len() as u64 * u64::from(row_words);
    check(words, bound::ROWS_WORDS_MAX, "words of verdict rows; use fewer distinct ports")?;
    header.rows_page = pages.reserve(usize::try_from(words).unwrap_or(0).div_ceil(PAGE_WORDS))?;
    for (row, number) in row_numbers {
        for (offset, verdict) in row {
            pages.set(header.rows_page, (number * row_words + offset) as usize, verdict);
        }
    }
    header.verdicts_page = pages.reserve(numbers.len().div_ceil(VERDICTS_PER_PAGE as usize))?;
    for (words, number) in numbers {
        for (offset, word) in words.into_iter().enumerate() {
            pages.set(header.verdicts_page, number as usize * words.len() + offset, word);
        }
    }
    header.agent_classes = agent_classes;
    (header.destination_classes, header.row_words) = (classes, row_words);
    Ok(())
}

/// Limiters, and the sets of them that verdicts name.
fn limits(pages: &mut Pages, header: &mut Header, contents: &Contents) -> Result<(), ImageError> {
    check(contents.limiters.len() as u64, bound::LIMITERS_MAX + 1, "rate limits")?;
    check(contents.limit_sets.len() as u64, bound::LIMIT_SETS_MAX + 1, "combinations of rate limits")?;
    let count = contents.limiters.len() + 1;
    header.limiters_page = pages.reserve(count.div_ceil(LIMITERS_PER_PAGE as usize))?;
    for (n, limiter) in contents.limiters.iter().enumerate() {
        for (word, value) in limiter_words(limiter).into_iter().enumerate() {
            pages.set(header.limiters_page, (n + 1) * LIMITER_WORDS + word, value);
        }
    }
    let count = contents.limit_sets.len().max(1);
    header.limit_sets_page = pages.reserve(count.div_ceil(LIMIT_SETS_PER_PAGE as usize))?;
    for (n, set) in contents.limit_sets.iter().enumerate() {
        for (word, number) in set.iter().enumerate() {
            pages.set(header.limit_sets_page, n * LIMITERS_PER_SET + word, *number);
        }
    }
    Ok(())
}

/// Gives each protocol its place in a row; the row's length.
fn offsets(header: &mut Header, named: &BTreeSet<u8>, port_classes: u32) -> Result<u32, ImageError> {
    let mut protocols = vec![protocol::ICMP, protocol::TCP, protocol::UDP];
    protocols.extend(named);
    let mut next = 0_u32;
    for number in protocols {
        if let Some(offset) = header.protocols.get_mut(usize::from(number))
            && *offset == PROTOCOL_UNNAMED
        {
            *offset = u16::try_from(next).unwrap_or(PROTOCOL_UNNAMED);
            next += if protocol::has_ports(number) { port_classes } else { 1 };
        }
    }
    check(next.into(), u32::from(PROTOCOL_UNNAMED), "verdicts in a row; use fewer distinct ports")?;
    Ok(next)
}

fn denied(reason: DropReason) -> Verdict {
    Verdict { action: action::DENY, reason: reason.code(), ..Verdict::default() }
}

fn check(count: u64, max: u32, what: &'static str) -> Result<(), ImageError> {
    if count < u64::from(max) { Ok(()) } else { Err(ImageError::TooMany { what, max: max.into() }) }
}

fn narrow(bits: u32) -> u8 {
    u8::try_from(bits).unwrap_or(128)
}

fn is_within_mapped(bits: u32, address: u128) -> bool {
    bits >= MAPPED_BITS && address >> 32 == MAPPED >> 32
}

/// Whether an IPv6 prefix takes in `::ffff:0:0/96`, and with it every IPv4 address in map form.
fn takes_in_mapped(bits: u32, address: u128) -> bool {
    bits < MAPPED_BITS && (address ^ MAPPED).checked_shr(128 - bits).unwrap_or(0) == 0
}

fn prefix_v4(bits: u32, address: u128, value: u32) -> Prefix {
    Prefix { first: address << 96, bits: narrow(bits - MAPPED_BITS), value }
}

fn verdict_words(verdict: &Verdict) -> [u32; 4] {
    let code = u32::from(verdict.action) | u32::from(verdict.reason) << 16;
    [code, verdict.policies, verdict.limits, verdict.pad]
}

/// Words of a limiter.
const LIMITER_WORDS: usize = size_of::<Limiter>() / 4;

fn limiter_words(limiter: &Limiter) -> [u32; LIMITER_WORDS] {
    let [a, b] = halves(limiter.key);
    let [c, d] = halves(limiter.cost);
    let [e, f] = halves(limiter.burst_ns);
    let code = u32::from_le_bytes([limiter.unit, limiter.unit_bits, limiter.flags, limiter.cost_shift]);
    [a, b, c, d, e, f, limiter.policies, code]
}

/// The words of a number, the low one first.
fn halves(number: u64) -> [u32; 2] {
    [number, number >> 32].map(|half| u32::try_from(half & u64::from(u32::MAX)).unwrap_or(0))
}

fn bind_words(bind: &Bind) -> [u32; 4] {
    let [a, b, c, d, e, f] = bind.mac;
    let tail = u32::from_le_bytes([e, f, 0, 0]) | u32::from(bind.flags) << 16;
    [bind.agent, bind.class, u32::from_le_bytes([a, b, c, d]), tail]
}

fn words_of_header(header: &Header) -> Page {
    let mut page = [0; PAGE_WORDS];
    let [low, high] = halves(header.number);
    let words = [
        low,
        high,
        header.destinations_v4,
        header.destinations_v6,
        header.destination_classes,
        header.matrix_page,
        header.rows_page,
        header.row_words,
        header.verdicts_page,
        header.ports_page,
        header.binds_page,
        header.interfaces_page,
        header.agent_classes,
        header.limit_sets_page,
        header.limiters_page,
    ];
    let protocols = header.protocols.chunks_exact(2).map(|pair| match pair {
        [low, high] => u32::from(*low) | u32::from(*high) << 16,
        _ => 0,
    });
    let padded = words.into_iter().chain(std::iter::repeat_n(0, 128 - words.len())).chain(protocols);
    for (place, word) in page.iter_mut().zip(padded) {
        *place = word;
    }
    page
}

#[cfg(test)]
mod tests {
    use clawgress_ebpf_common::image::limiter;

    use super::*;

    /// The words written by hand are the struct the programs read.
    #[test]
    fn records_are_laid_out_as_the_programs_read_them() {
        let bind = Bind { agent: 7, class: 9, mac: [1, 2, 3, 4, 5, 6], flags: 3 };
        let verdict = Verdict { action: 2, reason: 77, policies: 0x0102_0304, limits: 9, pad: 0 };
        let mut header = Header {
            number: 0x0807_0605_0403_0201,
            destinations_v4: 1,
            destinations_v6: 2,
            destination_classes: 3,
            matrix_page: 4,
            rows_page: 5,
            row_words: 6,
            verdicts_page: 7,
            ports_page: 8,
            binds_page: 9,
            interfaces_page: 10,
            agent_classes: 11,
            limit_sets_page: 12,
            limiters_page: 13,
            pad: [0; 113],
            protocols: [PROTOCOL_UNNAMED; 256],
        };
        header.protocols[1] = 0;
        header.protocols[6] = 1;
        header.protocols[255] = 300;
        let page = words_of_header(&header);
        assert_eq!(page[..4], [0x0403_0201, 0x0807_0605, 1, 2]);
        assert_eq!(page[11..15], [10, 11, 12, 13]);
        assert_eq!(page[128], 0xFFFF);
        assert_eq!(page[131], 0xFFFF_0001);
        assert_eq!(page[255], 300 << 16 | 0xFFFF);
        assert_eq!(bind_words(&bind), [7, 9, 0x0403_0201, 0x0003_0605]);
        assert_eq!(verdict_words(&verdict), [77 << 16 | 2, 0x0102_0304, 9, 0]);
        let limiter = Limiter {
            key: 0x0202_0202_0101_0101,
            cost: 3,
            burst_ns: 4 << 32,
            policies: 5,
            unit: limiter::CONNECTIONS,
            unit_bits: limiter::bits(limiter::CONNECTIONS),
            flags: limiter::PACE,
            cost_shift: limiter::FINE,
        };
        assert_eq!(limiter_words(&limiter), [0x0101_0101, 0x0202_0202, 3, 0, 0, 4, 5, 0x1002_0130]);
    }

    /// A class that nothing permits has no line to read from, however full the matrix's last page is.
    #[test]
    fn a_class_without_cells_is_beyond_the_matrix() {
        let cell = |destination_class| Cell {
            agent_class: 1,
            destination_class,
            protocol: protocol::TCP,
            port_class: 0,
        };
        let verdict = Verdict { action: action::DIRECT, ..Verdict::default() };
        let verdicts = (0..128).map(|class| (cell(class), verdict)).collect();
        let pages = image(&Contents { verdicts, ..Contents::default() }).unwrap();
        let words = |n: usize| pages[0][n];
        let (classes, matrix_page, rows_page) = (words(4), words(5), words(6));
        assert_eq!((classes, rows_page - matrix_page, words(12)), (128, 1, 2), "two full lines in one page");
    }

    #[test]
    fn what_no_image_holds_is_refused() {
        let cell = |agent_class, destination_class| Cell {
            agent_class,
            destination_class,
            protocol: protocol::TCP,
            port_class: 0,
        };
        let verdict = Verdict { action: 2, ..Verdict::default() };
        let contents = Contents { verdicts: vec![(cell(4_096, 4_096), verdict)], ..Contents::default() };
        let error = image(&contents).unwrap_err();
        assert!(error.to_string().contains("combinations of agent classes"), "{error}");
        let interfaces = (1..=bound::IMAGE_INTERFACES_MAX + 1).collect();
        let error = image(&Contents { interfaces, ..Contents::default() }).unwrap_err();
        assert!(error.to_string().contains("agents' interfaces"), "{error}");
    }
}
