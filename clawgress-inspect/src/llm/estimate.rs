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
    /// Where it stands among [`STEPS`]: which run is at hand, how long it is, and whether its last one was a small letter.
    state: u16,
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

/// What a byte is: where nothing else is said, it is of the [`Run`] of this number.
const UPPER: u8 = 12;
/// The first byte of a letter with a mark.
const MARKED: u8 = 13;
/// One that goes on with a character.
const REST: u8 = 14;
const KINDS: usize = 16;

const CLASSES: [u8; 256] = classes();

#[expect(clippy::indexing_slicing, reason = "evaluated when it is compiled")]
const fn classes() -> [u8; 256] {
    let mut all = [0; 256];
    let mut byte = 0;
    while byte < 256 {
        all[byte] = match byte as u8 {
            b'a'..=b'z' => Run::Word as u8,
            b'A'..=b'Z' => UPPER,
            0xc3..=0xc5 => MARKED,
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

// === impl Estimator ===

impl Default for Estimator {
    fn default() -> Self {
        Estimator { sum: REQUEST, state: 0 }
    }
}

impl Estimator {
    /// An estimate of texts alone, that are not of a request.
    #[must_use]
    pub fn bare() -> Estimator {
        Estimator { sum: 0, state: 0 }
    }

    /// Some of a text, in any pieces.
    pub fn push(&mut self, bytes: &[u8]) {
        #[cfg(test)]
        crate::steps::add(bytes.len());
        let (first, second) = halves(bytes);
        let (mut one, mut other) = ((self.state, self.sum), (0, 0));
        // Each step waits for the one before it, but not for those of the other half.
        for (a, b) in first.iter().zip(second) {
            one = on(one, *a);
            other = on(other, *b);
        }
        let both = first.len().min(second.len());
        // What the longer half has besides.
        let [more, other_more] = [first, second].map(|half| half.get(both..).unwrap_or_default());
        one = more.iter().fold(one, |at, byte| on(at, *byte));
        other = other_more.iter().fold(other, |at, byte| on(at, *byte));
        let state = if second.is_empty() { one.0 } else { other.0 };
        *self = Estimator { sum: one.1 + other.1, state };
    }

    /// Ends a text.
    pub fn end(&mut self) {
        self.state = 0;
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

/// What a byte is.
#[inline]
fn class(byte: u8) -> u8 {
    CLASSES.get(usize::from(byte)).copied().unwrap_or_default()
}

/// One byte on. Without a branch: where what an agent sends changes from words to signs and back, nobody foresees.
#[inline]
fn on((state, sum): (u16, Centi), byte: u8) -> (u16, Centi) {
    let place = usize::from(state | u16::from(class(byte))) % STEPS.len();
    let step = STEPS.get(place).copied().unwrap_or_default();
    ((step & 0xffff) as u16, sum + Centi::from(step >> 16))
}

/// Bytes from which on a text is worth two halves, and among which a place to part them is looked for.
const PARTED: usize = 64;

/// Two halves that cost as much as both together: the second begins with what is no letter and of another kind than what is before.
fn halves(bytes: &[u8]) -> (&[u8], &[u8]) {
    let middle = bytes.len() / 2;
    let is_new = |pair: &[u8]| match *pair {
        [before, byte] => {
            let (before, is) = (class(before), class(byte));
            before != REST && before != is && is > Run::Word as u8 && is < UPPER
        }
        _ => false,
    };
    let found = match bytes.get(middle..middle + PARTED) {
        Some(near) if bytes.len() >= 4 * PARTED => near.windows(2).position(is_new),
        _ => None,
    };
    bytes.split_at(found.map_or(bytes.len(), |n| middle + n + 1))
}

/// The run of each number.
const RUNS: [Run; 11] = [
    Run::None,
    Run::Word,
    Run::Digits,
    Run::Blanks,
    Run::Lines,
    Run::Signs,
    Run::Cyrillic,
    Run::Wide,
    Run::Indic,
    Run::Wider,
    Run::Widest,
];
/// Where a text stands: this long a run, of words one where the last was a small letter, and one where it was not.
const STATES: usize = 64;
/// For each state and what comes then, in the upper half what it costs, and in the lower one where it stands from there on, as the
/// place of its first.
const STEPS: [u32; STATES * KINDS] = steps();

/// Lengths that are told apart: the last one costs what the one behind it does, or the first of its run where they take turns.
const fn lengths(run: Run) -> u64 {
    match run {
        Run::None => 1,
        Run::Word => 7,
        Run::Digits => 3,
        Run::Blanks | Run::Lines => 17,
        _ => 2,
    }
}

/// The state of such a run.
#[expect(clippy::indexing_slicing, reason = "evaluated when it is compiled")]
const fn state(run: Run, length: u64, is_lower: bool) -> usize {
    let (mut first, mut n) = (0, 0);
    while n < run as usize {
        first += lengths(RUNS[n]) * if n == Run::Word as usize { 2 } else { 1 };
        n += 1;
    }
    let lower = if is_lower { lengths(run) } else { 0 };
    (first + lower + if length == 0 { 0 } else { length - 1 }) as usize
}

/// The step from one state, with one kind of byte.
#[expect(clippy::indexing_slicing, reason = "evaluated when it is compiled")]
const fn step(run: Run, length: u64, is_lower: bool, class: u8) -> u32 {
    if class == REST {
        return (state(run, length, is_lower) * KINDS) as u32;
    }
    let to = if class == UPPER || class == MARKED { Run::Word } else { RUNS[class as usize] };
    let before = if to as u8 == run as u8 { length } else { 0 };
    let mut more = cost(to as u8, before + 1) - cost(to as u8, before);
    if class == UPPER && is_lower {
        more += WORD_WITHIN;
    }
    if class == MARKED {
        more += ACCENT;
    }
    let length = match before + 1 {
        length if length <= lengths(to) => length,
        _ if to as u8 == Run::Digits as u8 => 1,
        _ => lengths(to),
    };
    let next = state(to, length, class == Run::Word as u8);
    (more as u32) << 16 | (next * KINDS) as u32
}

#[expect(clippy::indexing_slicing, reason = "evaluated when it is compiled")]
const fn steps() -> [u32; STATES * KINDS] {
    let (mut all, mut run) = ([0; STATES * KINDS], 0);
    while run < RUNS.len() {
        let mut turn = 0;
        let turns = lengths(RUNS[run]) * if run == Run::Word as usize { 2 } else { 1 };
        while turn < turns {
            let (length, is_lower) = (turn % lengths(RUNS[run]) + 1, turn >= lengths(RUNS[run]));
            let mut class = 1;
            while class <= REST {
                let place = state(RUNS[run], length, is_lower) * KINDS + class as usize;
                if class as usize != RUNS.len() {
                    all[place] = step(RUNS[run], length, is_lower, class);
                }
                class += 1;
            }
            turn += 1;
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
        let (mut sum, mut before, mut runs) = (0, 0, Vec::<(u8, u64)>::new());
        for class in text.iter().map(|byte| class(*byte)).filter(|class| *class != REST) {
            let run = if [UPPER, MARKED].contains(&class) { Run::Word as u8 } else { class };
            sum += if class == UPPER && before == Run::Word as u8 { WORD_WITHIN } else { 0 };
            sum += if class == MARKED { ACCENT } else { 0 };
            before = class;
            match runs.last_mut() {
                Some((last, length)) if *last == run => *length += 1,
                _ => runs.push((run, 1)),
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
