//! Detectors of personal data: numbers of payment cards, accounts, people and telephones, and e-mail addresses in number.
//!
//! Each is told by its form and by what whoever issues it checks. What is found never depends on the pieces that the bytes come
//! in, and no more is kept than one of each. Must never take a number for one by its length alone.

use std::collections::BTreeSet;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};

use super::Finding;

/// Longest run of groups of digits that is looked at at once, bytes: a card with separators has 23.
const RUN_BYTES_MAX: usize = 64;
/// Longest number with its separators, and one of them behind it: five groups of a card of 19 digits.
const NUMBER_BYTES_MAX: usize = 24;
/// Addresses that are told apart before they are a finding: letters have a few, lists have more.
const MAILS_MIN: usize = 10;
/// Longest local part and domain that is looked at, bytes (RFC 5321 section 4.5.3.1.1; domains in use are shorter than 255).
const MAIL_BYTES_MAX: usize = 64;

/// All of them, on one run of bytes.
#[derive(Debug, Default)]
pub(super) struct Personal {
    /// The newest three bytes.
    before: [u8; 3],
    run: Run,
    iban: Iban,
    mail: Mail,
}

/// Groups of digits, with what separates them.
#[derive(Debug, Default)]
struct Run {
    bytes: Vec<u8>,
    /// Whether a plus is before it.
    is_signed: bool,
    /// Whether nothing is before it that it could be a part of.
    is_clean: bool,
}

/// An account number (ISO 13616), without its blanks.
#[derive(Debug, Default)]
struct Iban {
    text: Vec<u8>,
    /// How many it has in its country; 0 where there is none.
    length: usize,
    after_blank: bool,
}

/// E-mail addresses.
#[derive(Debug, Default)]
struct Mail {
    /// What may be the local part, or is where a domain follows.
    local: Vec<u8>,
    domain: Option<Vec<u8>>,
    seen: BTreeSet<u64>,
}

// === impl Personal ===

impl Personal {
    /// Makes it ready for the next.
    pub(super) fn clear(&mut self) {
        self.before = [0; 3];
        self.run.bytes.clear();
        self.iban.length = 0;
        self.mail.local.clear();
        self.mail.domain = None;
        self.mail.seen.clear();
    }

    /// Looks at what comes next: at addresses alone, where numbers are looked at in what it is made of.
    pub(super) fn scan(&mut self, bytes: &[u8], is_leaf: bool, found: &mut dyn FnMut(Finding)) {
        if self.mail.scan(bytes) {
            found(Finding::EmailAddresses);
        }
        if !is_leaf {
            return;
        }
        let mut rest = bytes;
        while !rest.is_empty() {
            if self.run.bytes.is_empty() && self.iban.length == 0 {
                // All of them have digits.
                let (gone, later) = rest.split_at_checked(digit(rest)).unwrap_or((rest, &[]));
                let newest = gone.get(gone.len().saturating_sub(3)..).unwrap_or_default();
                newest.iter().for_each(|byte| self.pass(*byte));
                rest = later;
            }
            let Some((byte, later)) = rest.split_first() else { break };
            self.byte(*byte, found);
            rest = later;
        }
    }

    /// Ends it.
    pub(super) fn finish(&mut self, found: &mut dyn FnMut(Finding)) {
        self.byte(0, found);
        if self.mail.scan(&[0]) {
            found(Finding::EmailAddresses);
        }
    }

    fn pass(&mut self, byte: u8) {
        let [_, second, third] = self.before;
        self.before = [second, third, byte];
    }

    fn byte(&mut self, byte: u8, found: &mut dyn FnMut(Finding)) {
        #[cfg(test)]
        crate::steps::add(1);
        let [third, second, last] = self.before;
        if self.iban.length == 0 && byte.is_ascii_digit() && !is_part(third) {
            self.iban.begin(second, last);
        }
        if self.iban.length > 0 && self.iban.byte(byte) {
            found(Finding::Iban);
        }
        if self.run.bytes.is_empty() && byte.is_ascii_digit() {
            self.run.is_signed = last == b'+';
            self.run.is_clean = !is_part(if self.run.is_signed { second } else { last });
        }
        if self.run.is_full() && (byte.is_ascii_digit() || matches!(byte, b' ' | b'-')) {
            self.run.judge(None, found);
            self.run.slide();
        }
        if !self.run.takes(byte) {
            self.run.judge(Some(!is_part(byte)), found);
            self.run.bytes.clear();
        }
        self.pass(byte);
    }
}

/// Where the first digit is; else the end.
fn digit(bytes: &[u8]) -> usize {
    const ONES: u64 = u64::MAX / 0xff;
    const HIGH: u64 = ONES * 0x80;
    let (mut rest, mut count) = (bytes, 0);
    while let Some((word, behind)) = rest.split_first_chunk::<8>() {
        let word = u64::from_le_bytes(*word);
        // The high bit of each byte that is at least `0`, and of each that is beyond `9`, of those below 0x80.
        let low = word & !HIGH;
        let (least, beyond) = (low + ONES * (0x80 - b'0' as u64), low + ONES * (0x80 - b':' as u64));
        let digits = least & !beyond & !word & HIGH;
        if digits != 0 {
            return count + (digits.trailing_zeros() / 8) as usize;
        }
        (rest, count) = (behind, count + 8);
    }
    count + rest.iter().position(u8::is_ascii_digit).unwrap_or(rest.len())
}

/// Whether what is before or behind this is likely more than what stands beside it.
fn is_part(byte: u8) -> bool {
    byte.is_ascii_alphanumeric()
        || matches!(byte, b'_' | b'.' | b'-' | b'/' | b'=' | b'%' | b'\\')
        || byte >= 0x80
}

// === impl Run ===

impl Run {
    /// Takes the next byte, if it may belong to it.
    fn takes(&mut self, byte: u8) -> bool {
        let Some(last) = self.bytes.last() else {
            if byte.is_ascii_digit() {
                self.bytes.push(byte);
            }
            return byte.is_ascii_digit();
        };
        let separates = match byte {
            b' ' | b'-' => last.is_ascii_digit() || self.is_signed && *last == b')',
            b'(' => self.is_signed && !last.is_ascii_digit(),
            b')' | b'.' => self.is_signed && last.is_ascii_digit(),
            _ => false,
        };
        let takes = (byte.is_ascii_digit() || separates) && self.bytes.len() < RUN_BYTES_MAX;
        if takes {
            self.bytes.push(byte);
        }
        takes
    }

    fn is_full(&self) -> bool {
        self.bytes.len() >= RUN_BYTES_MAX && !self.is_signed
    }

    /// Makes room: what was judged goes, but for as much of its end as a number may begin in.
    fn slide(&mut self) {
        let newest = self.bytes.len().saturating_sub(NUMBER_BYTES_MAX);
        let before = self.bytes.get(..newest).unwrap_or_default();
        let group = before.iter().rposition(|byte| !byte.is_ascii_digit()).map(|at| (at + 1, before.get(at)));
        let (from, is_clean) = match group {
            Some((from, separator)) if newest - from <= NUMBER_BYTES_MAX => (from, separator == Some(&b' ')),
            // In the middle of digits that are too many for any number.
            _ => (newest, false),
        };
        self.bytes.drain(..from);
        self.is_clean = is_clean;
    }

    /// Tells what is in it, where it ends, cleanly or not; `None` if it goes on, and what is last in it may too.
    fn judge(&self, ends: Option<bool>, found: &mut dyn FnMut(Finding)) {
        let is_end_clean = ends.unwrap_or_default();
        let digits = self.bytes.iter().filter(|byte| byte.is_ascii_digit()).count();
        if self.is_signed {
            if self.is_clean && is_end_clean && self.is_phone(digits) {
                found(Finding::PhoneNumber);
            }
            return;
        }
        let is_within = !self.is_clean && self.bytes.iter().all(u8::is_ascii_digit);
        if is_within || digits < 9 {
            return;
        }
        let text = self.bytes.strip_suffix(b" ").or(self.bytes.strip_suffix(b"-")).unwrap_or(&self.bytes);
        let is_end_clean = is_end_clean || ends.is_some() && text.len() < self.bytes.len();
        let groups: Vec<&[u8]> = text.split(|byte| matches!(byte, b' ' | b'-')).collect();
        let separators: Vec<u8> = text.iter().copied().filter(|byte| matches!(byte, b' ' | b'-')).collect();
        let hyphen = |at: Option<usize>| at.and_then(|at| separators.get(at)) == Some(&b'-');
        #[cfg(test)]
        crate::steps::add(groups.len() * FORMS.len());
        for first in 0..groups.len() {
            for (lengths, kind) in FORMS {
                let Some(some) = groups.get(first..first + lengths.len()) else { continue };
                let last = first + lengths.len() - 1;
                let fits = some.iter().zip(*lengths).all(|(group, length)| group.len() == *length);
                let between = separators.get(first..last).unwrap_or_default();
                let is_even = between.windows(2).all(|pair| pair.first() == pair.last());
                let begins = if first == 0 { self.is_clean } else { !hyphen(first.checked_sub(1)) };
                let ends = if last + 1 == groups.len() { is_end_clean } else { !hyphen(Some(last)) };
                if !(fits && is_even && begins && ends) {
                    continue;
                }
                let number: Vec<u8> = some.concat();
                match kind {
                    Finding::UsSsn if between.first() == Some(&b'-') && is_ssn(&number) => found(*kind),
                    Finding::PaymentCard if is_card(&number) => found(*kind),
                    _ => {}
                }
            }
        }
    }

    /// Whether it is a telephone number as E.164 has it, with or without separators.
    fn is_phone(&self, digits: usize) -> bool {
        let code = self.bytes.iter().take_while(|byte| byte.is_ascii_digit()).count();
        let is_separated = code < digits;
        // Written in groups, the first is the country's code.
        if is_separated && code > 3 || !is_separated && digits < 10 || !(8..=15).contains(&digits) {
            return false;
        }
        let number: Vec<u8> = self.bytes.iter().copied().filter(u8::is_ascii_digit).collect();
        match number.as_slice() {
            [b'0', ..] => false,
            // North America's plan: eleven digits, and neither an area nor an exchange begins with 0 or 1.
            [b'1', area, _, _, exchange, ..] => digits == 11 && *area > b'1' && *exchange > b'1',
            _ => true,
        }
    }
}

/// How numbers are written, in groups.
const FORMS: &[(&[usize], Finding)] = &[
    (&[3, 2, 4], Finding::UsSsn),
    (&[14], Finding::PaymentCard),
    (&[15], Finding::PaymentCard),
    (&[16], Finding::PaymentCard),
    (&[19], Finding::PaymentCard),
    (&[4, 4, 4, 4], Finding::PaymentCard),
    (&[4, 6, 5], Finding::PaymentCard),
    (&[4, 6, 4], Finding::PaymentCard),
    (&[4, 4, 4, 4, 3], Finding::PaymentCard),
];

/// Whether it is a number that the Social Security Administration may have assigned (20 CFR 422.103: none has an area of 000, 666
/// or 900 to 999, a group of 00 or a serial of 0000), and none of those that were printed as examples.
fn is_ssn(digits: &[u8]) -> bool {
    let (area, rest) = digits.split_at_checked(3).unwrap_or_default();
    let (group, serial) = rest.split_at_checked(2).unwrap_or_default();
    let is_example = matches!(digits, b"078051120" | b"219099999" | b"123456789" | b"111111111");
    !matches!(area, b"000" | b"666" | [b'9', ..]) && group != b"00" && serial != b"0000" && !is_example
}

/// Whether it is in the range of an issuer that has cards of its length (ISO/IEC 7812), and its check digit is right.
fn is_card(digits: &[u8]) -> bool {
    let number = |n: usize| {
        let first = digits.get(..n).unwrap_or_default();
        first.iter().fold(0_u32, |all, digit| all * 10 + u32::from(digit - b'0'))
    };
    let is_issued = match (digits.len(), number(1), number(2), number(3), number(4)) {
        // Visa; Mastercard; Discover; UnionPay; JCB.
        (16, 4, ..) | (16, _, 51..=55, ..) | (16, _, _, _, 2221..=2720) => true,
        (16 | 19, _, 62 | 65, ..)
        | (16 | 19, _, _, 644..=649, _)
        | (16 | 19, _, _, _, 6011 | 3528..=3589) => true,
        (19, 4, ..) => true,
        // American Express; Diners Club.
        (15, _, 34 | 37, ..) | (14, _, 36 | 38 | 39, ..) | (14, _, _, 300..=305, _) => true,
        _ => false,
    };
    let is_varied = digits.iter().skip(4).collect::<BTreeSet<_>>().len() > 1 || digits.len() < 16;
    is_issued && is_varied && is_luhn(digits)
}

/// The check digit of ISO/IEC 7812-1, annex B.
fn is_luhn(digits: &[u8]) -> bool {
    let of = |(n, digit): (usize, &u8)| match u32::from(digit - b'0') * if n % 2 == 1 { 2 } else { 1 } {
        twice @ 10.. => twice - 9,
        once => once,
    };
    digits.iter().rev().enumerate().map(of).sum::<u32>() % 10 == 0
}

// === impl Iban ===

/// How long account numbers are, by country (the registry of ISO 13616).
const LENGTHS: &[(usize, &str)] = &[
    (15, "NO"),
    (16, "BE"),
    (18, "DKFIFOGLNLSD"),
    (19, "MKSI"),
    (20, "ATBAEEKZLTLUXK"),
    (21, "CHHRLILV"),
    (22, "BGBHCRDEGBGEIEMERSVA"),
    (23, "AEGIILIQTL"),
    (24, "ADCZESMDPKROSASESKTNVG"),
    (25, "LYPTST"),
    (26, "ISTR"),
    (27, "FRGRITMCMRSM"),
    (28, "ALAZBYCYDOGTHULBPLSV"),
    (29, "BREGPSQAUA"),
    (30, "JOKWMU"),
    (31, "MTSC"),
    (32, "LC"),
];

impl Iban {
    /// Begins one of the country of these letters, if there is one.
    fn begin(&mut self, first: u8, second: u8) {
        let is = |(_, countries): &&(usize, &str)| {
            countries.as_bytes().chunks(2).any(|country| country == [first, second])
        };
        if let Some((length, _)) = LENGTHS.iter().find(is) {
            (self.length, self.after_blank) = (*length, false);
            self.text.clear();
            self.text.extend([first, second]);
        }
    }

    /// Takes the next byte; whether it is behind a sound one.
    fn byte(&mut self, byte: u8) -> bool {
        let is_whole = self.text.len() == self.length;
        let is_its = byte.is_ascii_digit() || byte.is_ascii_uppercase();
        // The check digits are two.
        if !is_whole && is_its && (self.text.len() >= 4 || byte.is_ascii_digit()) {
            self.text.push(byte);
            self.after_blank = false;
            return false;
        }
        if !is_whole
            && byte == b' '
            && !self.after_blank
            && self.text.len() >= 4
            && self.text.len().is_multiple_of(4)
        {
            self.after_blank = true;
            return false;
        }
        self.length = 0;
        is_whole && !is_part(byte) && self.is_sound()
    }

    /// ISO/IEC 7064, mod 97-10.
    fn is_sound(&self) -> bool {
        let (head, rest) = self.text.split_at_checked(4).unwrap_or_default();
        let rest = rest.iter().chain(head).fold(0_u32, |all, byte| match byte {
            b'A'..=b'Z' => (all * 100 + u32::from(byte - b'A') + 10) % 97,
            digit => (all * 10 + u32::from(digit - b'0')) % 97,
        });
        rest == 1
    }
}

// === impl Mail ===

impl Mail {
    /// Looks at what comes next; whether there are [`MAILS_MIN`] by now.
    fn scan(&mut self, bytes: &[u8]) -> bool {
        let mut rest = bytes;
        #[cfg(test)]
        crate::steps::add(bytes.len());
        if self.seen.len() >= MAILS_MIN {
            return false;
        }
        while !rest.is_empty() {
            if let Some(domain) = &mut self.domain {
                let length = rest.iter().take_while(|byte| is_of_domain(**byte)).count();
                let (more, later) = rest.split_at_checked(length).unwrap_or((rest, &[]));
                domain.extend(more.iter().take(room(domain)));
                if !later.is_empty() {
                    self.end();
                }
                rest = later;
                continue;
            }
            let at = memchr::memchr(b'@', rest);
            let (before, later) = rest.split_at_checked(at.unwrap_or(rest.len())).unwrap_or((rest, &[]));
            // No more than tells that there are too many.
            let looked = before.len().saturating_sub(MAIL_BYTES_MAX + 1);
            let newest = before.get(looked..).unwrap_or_default();
            let begins = newest.iter().rposition(|byte| !is_of_local(*byte));
            if begins.is_some() || looked > 0 {
                self.local.clear();
            }
            let newest = newest.get(begins.map_or(0, |at| at + 1)..).unwrap_or_default();
            let room = room(&self.local).min(newest.len());
            self.local.extend_from_slice(newest.get(..room).unwrap_or_default());
            self.domain = at.map(|_| Vec::new());
            rest = later.get(1..).unwrap_or_default();
        }
        self.seen.len() >= MAILS_MIN
    }

    /// Ends the address at hand.
    fn end(&mut self) {
        let (local, domain) = (std::mem::take(&mut self.local), self.domain.take().unwrap_or_default());
        let domain = domain.to_ascii_lowercase();
        let name = domain.trim_ascii_end();
        let name = name.strip_suffix(b".").unwrap_or(name);
        let labels: Vec<&[u8]> = name.split(|byte| *byte == b'.').collect();
        let is_top = |top: &&[u8]| top.len() >= 2 && top.iter().all(u8::is_ascii_alphabetic);
        let is_sound = labels.len() > 1
            && labels.iter().all(|label| !label.is_empty())
            && labels.last().is_some_and(is_top)
            && (1..=MAIL_BYTES_MAX).contains(&local.len())
            && domain.len() <= MAIL_BYTES_MAX;
        if is_sound {
            let mut hasher = DefaultHasher::new();
            (local.to_ascii_lowercase(), name).hash(&mut hasher);
            self.seen.insert(hasher.finish());
        }
    }
}

/// How many bytes more are kept: one beyond what is looked at tells that there were more.
fn room(kept: &[u8]) -> usize {
    (MAIL_BYTES_MAX + 1).saturating_sub(kept.len())
}

fn is_of_local(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'%' | b'+' | b'-')
}

fn is_of_domain(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-')
}

#[cfg(test)]
mod tests;
