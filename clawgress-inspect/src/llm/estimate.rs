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
    /// Bytes, or characters, of the run at hand; of a long one, such a length as costs the same from there on.
    length: u8,
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
            if class == REST {
                continue;
            }
            // Without a branch: where what an agent sends changes from words to signs and back, nobody foresees.
            let begun = if class & RUN == run { length + 1 } else { 1 };
            length = if begun > LENGTHS { LENGTHS - 2 } else { begun };
            run = class & RUN;
            // One that begins a word within, or has a mark.
            let within = class & (was_lower << 1 | MARKED);
            was_lower = class & LOWER;
            sum += more(run, length) + within_costs(within);
        }
        *self = Estimator { sum, run, length, was_lower };
    }

    /// Ends a text.
    pub fn end(&mut self) {
        (self.run, self.length, self.was_lower) = (Run::None as u8, 0, 0);
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
        self.sum.div_ceil(100)
    }
}

/// What a capital letter inside a word costs, or a mark.
#[inline]
fn within_costs(bits: u8) -> Centi {
    Centi::from(bits / UPPER & 1) * WORD_WITHIN + Centi::from(bits / MARKED) * ACCENT
}

/// What the last one of a run of so many costs.
#[inline]
fn more(run: u8, length: u8) -> Centi {
    let place = usize::from(run) << LENGTH_BITS | usize::from(length);
    MORE.get(place % MORE.len()).copied().map_or(0, Centi::from)
}

/// Lengths whose costs are told apart: from here on, each costs what the third before it did.
const LENGTHS: u8 = 24;
const LENGTH_BITS: u32 = 5;
/// What the last one of a run costs, by run and length.
const MORE: [u16; 16 << LENGTH_BITS] = costs();

#[expect(clippy::indexing_slicing, reason = "evaluated when it is compiled")]
const fn costs() -> [u16; 16 << LENGTH_BITS] {
    let (mut all, mut run) = ([0; 16 << LENGTH_BITS], 0u8);
    while run < 16 {
        let mut length = 1;
        while length < 1 << LENGTH_BITS {
            #[expect(clippy::cast_possible_truncation, reason = "a few hundred")]
            let more = (cost(run, length as u64) - cost(run, length as u64 - 1)) as u16;
            all[(run as usize) << LENGTH_BITS | length] = more;
            length += 1;
        }
        run += 1;
    }
    all
}

/// What a run of so many costs.
const fn cost(run: u8, length: u64) -> Centi {
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
        _ if length == 0 => 0,
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
    use proptest::prelude::*;

    use super::*;

    /// By runs that were told apart first: the same, for every text and wherever it is cut.
    fn by_runs(text: &[u8]) -> u64 {
        let (mut sum, mut lower, mut runs) = (0, 0, Vec::<(u8, u64)>::new());
        for class in text.iter().map(|byte| class(*byte)).filter(|class| *class != REST) {
            sum += if class & UPPER != 0 && lower != 0 { WORD_WITHIN } else { 0 };
            sum += if class & MARKED != 0 { ACCENT } else { 0 };
            lower = class & LOWER;
            match runs.last_mut() {
                Some((run, length)) if *run == class & RUN => *length += 1,
                _ => runs.push((class & RUN, 1)),
            }
        }
        (sum + runs.iter().map(|(run, length)| cost(*run, *length)).sum::<u64>()).div_ceil(100)
    }

    proptest! {
        #[test]
        fn each_byte_costs_what_its_run_does(
            runs in prop::collection::vec((any::<u8>(), 1..90usize), 0..40),
            bytes in prop::collection::vec(any::<u8>(), 0..80),
            cut in any::<prop::sample::Index>(),
        ) {
            let mut text: Vec<u8> = runs.iter().flat_map(|(byte, times)| vec![*byte; *times]).collect();
            text.extend(bytes);
            let mut estimator = Estimator::bare();
            let (before, after) = text.split_at(cut.index(text.len() + 1));
            estimator.push(before);
            estimator.push(after);
            prop_assert_eq!(estimator.tokens(), by_runs(&text));
            estimator.end();
            prop_assert_eq!(estimator.tokens(), by_runs(&text));
        }
    }

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
