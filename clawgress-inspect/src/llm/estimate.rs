//! How many tokens a text comes to, estimated as it streams by: by its words, digits, signs and letters, as vocabularies cut
//! them. Must never take more than a step for each byte.

/// Hundredths of a token: a few hundred for each byte at most, so that no text in the world comes to more than there are.
type Centi = u64;

/// A capital letter inside a word, and a letter with a mark.
const WORD_WITHIN: Centi = 79;
const ACCENT: Centi = 30;
/// What surrounds each message: its role, and the marks at its ends.
const MESSAGE: Centi = 400;
/// What makes the model answer.
const REQUEST: Centi = 300;

/// What counts.
#[derive(Clone, Debug)]
pub struct Estimator {
    sum: Centi,
    /// A [`Run`].
    run: u8,
    /// Bytes, or characters, of the run at hand.
    length: u64,
    /// [`LOWER`] if the last one was a small letter.
    was_lower: u8,
}

/// Bytes of one kind that follow one another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
enum Run {
    None,
    /// Letters of ASCII, and Latin ones with marks.
    Word,
    Digits,
    Blanks,
    Lines,
    /// Anything else of ASCII.
    Signs,
    /// Letters of two bytes: Cyrillic and Greek.
    Cyrillic,
    /// Arabic, Hebrew and others of two bytes.
    Wide,
    /// The letters of India.
    Indic,
    /// Most others of three bytes.
    Wider,
    /// Of four: emoji.
    Widest,
}

/// What a byte is besides its [`Run`], which is in the lower bits: a small letter, a capital one, the first byte of a letter with a
/// mark, and one that goes on with a character.
const LOWER: u8 = 0x10;
const UPPER: u8 = 0x20;
const MARKED: u8 = 0x40;
const REST: u8 = 0x80;
const RUN: u8 = 0x0f;

const CLASSES: [u8; 256] = classes();

#[expect(clippy::indexing_slicing, reason = "evaluated when it is compiled")]
const fn classes() -> [u8; 256] {
    let mut all = [0; 256];
    let mut byte = 0;
    while byte < 256 {
        all[byte] = match byte as u8 {
            b'a'..=b'z' => Run::Word as u8 | LOWER,
            b'A'..=b'Z' => Run::Word as u8 | UPPER,
            0xc3..=0xc5 => Run::Word as u8 | MARKED,
            b'0'..=b'9' => Run::Digits as u8,
            b' ' | b'\t' => Run::Blanks as u8,
            b'\n' | b'\r' => Run::Lines as u8,
            0xc6..=0xd7 => Run::Cyrillic as u8,
            0xc0..=0xc2 | 0xd8..=0xdf => Run::Wide as u8,
            0xe0 => Run::Indic as u8,
            0xe1..=0xef => Run::Wider as u8,
            0xf0..=0xff => Run::Widest as u8,
            0x80..=0xbf => REST,
            _ => Run::Signs as u8,
        };
        byte += 1;
    }
    all
}

fn class(byte: u8) -> u8 {
    CLASSES.get(usize::from(byte)).copied().unwrap_or_default()
}

// === impl Estimator ===

impl Default for Estimator {
    fn default() -> Self {
        Estimator { sum: REQUEST, run: Run::None as u8, length: 0, was_lower: 0 }
    }
}

impl Estimator {
    /// An estimate of texts alone, that are not of a request.
    #[must_use]
    pub fn bare() -> Estimator {
        Estimator { sum: 0, run: Run::None as u8, length: 0, was_lower: 0 }
    }

    /// Some of a text, in any pieces.
    pub fn push(&mut self, bytes: &[u8]) {
        let Estimator { mut sum, mut run, mut length, mut was_lower } = *self;
        for byte in bytes {
            let class = class(*byte);
            if class & (was_lower << 1 | MARKED | REST) != 0 {
                if class == REST {
                    continue;
                }
                // One that begins a word within, or has a mark.
                sum += if class & UPPER != 0 { WORD_WITHIN } else { ACCENT };
            }
            if class & RUN != run {
                sum += cost(run, length);
                (run, length) = (class & RUN, 0);
            }
            was_lower = class & LOWER;
            length += 1;
        }
        *self = Estimator { sum, run, length, was_lower };
    }

    /// Ends a text.
    pub fn end(&mut self) {
        self.settle();
        (self.run, self.was_lower) = (Run::None as u8, 0);
    }

    /// A message.
    pub fn message(&mut self) {
        self.sum += MESSAGE;
    }

    /// A token that is given as its number.
    pub fn token(&mut self) {
        self.sum += 100;
    }

    /// Tokens so far.
    #[must_use]
    pub fn tokens(&self) -> u64 {
        (self.sum + cost(self.run, self.length)).div_ceil(100)
    }

    fn settle(&mut self) {
        self.sum += cost(self.run, std::mem::take(&mut self.length));
    }
}

/// What a run of so many costs.
#[inline]
fn cost(run: u8, length: u64) -> Centi {
    if length < COSTS_OF {
        COSTS.get((u64::from(run) * COSTS_OF + length) as usize).copied().map_or(0, Centi::from)
    } else {
        cost_of_any(run, length)
    }
}

/// Lengths whose costs are known beforehand: most runs are shorter.
const COSTS_OF: u64 = 16;
const COSTS: [u16; 16 * COSTS_OF as usize] = costs();

#[expect(clippy::indexing_slicing, reason = "evaluated when it is compiled")]
const fn costs() -> [u16; 16 * COSTS_OF as usize] {
    let (mut all, mut n) = ([0; 16 * COSTS_OF as usize], 0);
    while n < all.len() as u64 {
        #[expect(clippy::cast_possible_truncation, reason = "a few thousand")]
        let cost = cost_of_any((n / COSTS_OF) as u8, n % COSTS_OF) as u16;
        all[n as usize] = cost;
        n += 1;
    }
    all
}

const fn cost_of_any(run: u8, length: u64) -> Centi {
    const NONE: u8 = Run::None as u8;
    const WORD: u8 = Run::Word as u8;
    const DIGITS: u8 = Run::Digits as u8;
    const BLANKS: u8 = Run::Blanks as u8;
    const LINES: u8 = Run::Lines as u8;
    const SIGNS: u8 = Run::Signs as u8;
    const CYRILLIC: u8 = Run::Cyrillic as u8;
    const WIDE: u8 = Run::Wide as u8;
    const INDIC: u8 = Run::Indic as u8;
    const WIDER: u8 = Run::Wider as u8;
    match run {
        NONE => 0,
        // A common word is one token, with the blank before it; a long one is two or more.
        WORD => 100 + length.saturating_sub(6) * 14,
        DIGITS => length.div_ceil(3) * 155,
        // One is part of the word behind it.
        BLANKS => (if length > 1 { 110 } else { 0 }) + long_run(length),
        LINES => 25 + long_run(length),
        SIGNS => 42 + length * 22,
        CYRILLIC => 30 + length * 20,
        WIDE => 30 + length * 31,
        INDIC => length * 36,
        WIDER => length * 71,
        // Of four bytes.
        _ => length * 210,
    }
}

/// What blanks or line ends cost beyond those of an indented or empty line: no vocabulary has a token for any number.
const fn long_run(length: u64) -> Centi {
    length.saturating_sub(16) * 7
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blanks_and_line_ends_are_not_for_nothing() {
        for byte in [b'\n', b' ', b'\t', b'\r'] {
            let mut estimator = Estimator::bare();
            (0..1000).for_each(|_| estimator.push(&[byte; 1000]));
            estimator.end();
            assert!(estimator.tokens() >= 10_000, "{byte} {}", estimator.tokens());
        }
    }
}
