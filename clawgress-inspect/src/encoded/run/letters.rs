//! Letters of runs: which there are, where enough of them follow one another, and what they most likely are. Must never
//! decode more of them than is needed to tell.

use super::{Code, RUN_BYTES_MIN};

/// Letters that a place in a block is tried by.
const TRIED: usize = 16;

/// Classes of letters: of any run, of hexadecimal digits, of base 32 in upper and in lower case.
const LETTER: u8 = 1;
const HEX: u8 = 2;
const UPPER: u8 = 4;
const LOWER: u8 = 8;
const ESCAPE: u8 = 16;

const CLASSES: [u8; 256] = classes();

#[expect(clippy::indexing_slicing, reason = "evaluated when it is compiled")]
const fn classes() -> [u8; 256] {
    let mut all = [0; 256];
    let mut byte = 0;
    while byte < 256 {
        #[expect(clippy::cast_possible_truncation, reason = "below 256")]
        let letter = byte as u8;
        let mut class = 0;
        if letter.is_ascii_alphanumeric() || matches!(letter, b'+' | b'/' | b'-' | b'_' | b'%') {
            class |= LETTER;
        }
        if letter.is_ascii_hexdigit() {
            class |= HEX;
        }
        if matches!(letter, b'A'..=b'Z' | b'2'..=b'7') {
            class |= UPPER;
        }
        if matches!(letter, b'a'..=b'z' | b'2'..=b'7') {
            class |= LOWER;
        }
        if letter == b'%' {
            class |= ESCAPE;
        }
        all[byte] = class;
        byte += 1;
    }
    all
}

fn class(byte: u8) -> u8 {
    CLASSES.get(usize::from(byte)).copied().unwrap_or_default()
}

pub(super) fn is_letter(byte: u8) -> bool {
    class(byte) & LETTER != 0
}

pub(super) fn has_escape(block: &[u8]) -> bool {
    block.windows(3).any(|w| matches!(w, [b'%', a, b] if a.is_ascii_hexdigit() && b.is_ascii_hexdigit()))
}

/// Where the first `%` is that no two hexadecimal digits follow. Of one whose digits may be yet to come, that is not known.
pub(super) fn broken_escape(block: &[u8], is_last: bool) -> Option<usize> {
    let is_broken = |at: usize| {
        let mut digits = block.get(at + 1..).unwrap_or_default().iter().take(2);
        let came = digits.len();
        digits.any(|b| !b.is_ascii_hexdigit()) || is_last && came < 2
    };
    block.iter().enumerate().find(|(at, b)| **b == b'%' && is_broken(*at)).map(|(at, _)| at)
}

/// Where the first run begins that is long enough, or may come to be behind the end; else the end. Looks at few of the bytes
/// of ordinary text: of each place where one may begin, at no more than the end of the shortest.
pub(super) fn start(bytes: &[u8]) -> usize {
    let mut at = 0;
    while let Some(shortest) = bytes.get(at..at + RUN_BYTES_MIN) {
        match shortest.iter().rposition(|b| !is_letter(*b)) {
            Some(last) => at += last + 1,
            None => return at,
        }
    }
    // What is left is short: the letters that it ends in, if it does in some.
    let tail = bytes.get(at..).unwrap_or_default();
    bytes.len() - tail.iter().rev().take_while(|b| is_letter(**b)).count()
}

/// What the letters of a block most likely are.
pub(super) fn code(block: Option<&[u8]>) -> Code {
    let block = block.unwrap_or_default();
    let (all, any) = block.iter().fold((0xff, 0), |(all, any), b| (all & class(*b), any | class(*b)));
    match () {
        () if any & ESCAPE != 0 => Code::Percent,
        () if all & HEX != 0 => Code::Hex,
        () if all & (UPPER | LOWER) != 0 => Code::Base32,
        () => Code::Base64,
    }
}

pub(super) fn value(code: Code, letter: u8) -> u32 {
    let offset = |letter: u8, from: u8, plus: u32| u32::from(letter - from) + plus;
    match (code, letter) {
        (Code::Hex, _) => char::from(letter).to_digit(16).unwrap_or_default(),
        (Code::Base32, b'A'..=b'Z') => offset(letter, b'A', 0),
        (Code::Base32, b'a'..=b'z') => offset(letter, b'a', 0),
        (Code::Base32, b'2'..=b'7') => offset(letter, b'2', 26),
        (_, b'A'..=b'Z') => offset(letter, b'A', 0),
        (_, b'a'..=b'z') => offset(letter, b'a', 26),
        (_, b'0'..=b'9') => offset(letter, b'0', 52),
        (_, b'+' | b'-') => 62,
        _ => 63,
    }
}

/// How many letters to leave out, so that a block reads as text that doesn't otherwise.
pub(super) fn better(block: &[u8], code: Code, left: u32) -> usize {
    let (unit, bits) = match code {
        Code::Base64 => (4, 6),
        Code::Hex => (2, 4),
        Code::Base32 | Code::Percent => return 0,
    };
    // Letters that complete what the last block left over.
    let first = (0..unit).find(|n| (left as usize + n * bits).is_multiple_of(8)).unwrap_or_default();
    let middle = block.len() / 2 / unit * unit;
    let text = |skipped: usize| {
        let from = middle.saturating_sub(TRIED / 2) / unit * unit + skipped;
        let letters = block.get(from..).unwrap_or_default();
        let mut all = letters.chunks_exact(unit).take(TRIED / unit);
        let bytes = |quad: &[u8]| {
            let word = quad.iter().fold(0, |word, letter| word << bits | value(code, *letter));
            let count = unit * bits / 8;
            (0..count).all(|n| {
                let byte = word >> (8 * n) & 0xff;
                matches!(byte, 0x20..=0x7e | 0x09 | 0x0a | 0x0d)
            })
        };
        all.len() > 1 && all.all(bytes)
    };
    if text(first) {
        return 0;
    }
    (0..unit).find(|skipped| *skipped != first && text(*skipped)).map_or(0, |skipped| {
        // What is left over is thrown away, so that the first letter that counts begins a byte.
        if skipped == 0 { unit } else { skipped }
    })
}
