//! How many tokens a text comes to, estimated as it streams by: by its words, digits, signs and letters, as vocabularies cut
//! them. Must never take more than a step for each byte.

/// Hundredths of a token.
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
    run: Run,
    /// Bytes, or characters, of the run at hand.
    length: u32,
    /// Whether the last one was a small letter.
    was_lower: bool,
}

/// Bytes of one kind that follow one another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
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

// === impl Estimator ===

impl Default for Estimator {
    fn default() -> Self {
        Estimator { sum: REQUEST, run: Run::None, length: 0, was_lower: false }
    }
}

impl Estimator {
    /// An estimate of texts alone, that are not of a request.
    #[must_use]
    pub fn bare() -> Estimator {
        Estimator { sum: 0, run: Run::None, length: 0, was_lower: false }
    }

    /// Some of a text, in any pieces.
    pub fn push(&mut self, bytes: &[u8]) {
        for byte in bytes {
            let run = match byte {
                b'a'..=b'z' | b'A'..=b'Z' | 0xc3..=0xc5 => Run::Word,
                b'0'..=b'9' => Run::Digits,
                b' ' | b'\t' => Run::Blanks,
                b'\n' | b'\r' => Run::Lines,
                0xc6..=0xd7 => Run::Cyrillic,
                0xc0..=0xc2 | 0xd8..=0xdf => Run::Wide,
                0xe0 => Run::Indic,
                0xe1..=0xef => Run::Wider,
                0xf0..=0xff => Run::Widest,
                // The rest of a character.
                0x80..=0xbf => continue,
                _ => Run::Signs,
            };
            if run != self.run {
                self.settle();
                self.run = run;
            }
            if byte.is_ascii_uppercase() && self.was_lower {
                self.sum = self.sum.saturating_add(WORD_WITHIN);
            } else if *byte >= 0xc3 && run == Run::Word {
                self.sum = self.sum.saturating_add(ACCENT);
            }
            self.was_lower = byte.is_ascii_lowercase();
            self.length = self.length.saturating_add(1);
        }
    }

    /// Ends a text.
    pub fn end(&mut self) {
        self.settle();
        (self.run, self.was_lower) = (Run::None, false);
    }

    /// A message.
    pub fn message(&mut self) {
        self.sum = self.sum.saturating_add(MESSAGE);
    }

    /// A token that is given as its number.
    pub fn token(&mut self) {
        self.sum = self.sum.saturating_add(100);
    }

    /// Tokens so far.
    #[must_use]
    pub fn tokens(&self) -> u64 {
        let mut all = self.clone();
        all.settle();
        all.sum.div_ceil(100)
    }

    fn settle(&mut self) {
        let length = u64::from(std::mem::take(&mut self.length));
        let cost = match self.run {
            Run::None => 0,
            // A common word is one token, with the blank before it; a long one is two or more.
            Run::Word => 100 + length.saturating_sub(6) * 14,
            Run::Digits => length.div_ceil(3) * 155,
            // One is part of the word behind it.
            Run::Blanks => length.saturating_sub(1).min(1) * 110 + long_run(length),
            Run::Lines => 25 + long_run(length),
            Run::Signs => 42 + length * 22,
            Run::Cyrillic => 30 + length * 20,
            Run::Wide => 30 + length * 31,
            Run::Indic => length * 36,
            Run::Wider => length * 71,
            Run::Widest => length * 210,
        };
        self.sum = self.sum.saturating_add(cost);
    }
}

/// What blanks or line ends cost beyond those of an indented or empty line: no vocabulary has a token for any number.
fn long_run(length: u64) -> Centi {
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
