//! How many tokens a text comes to, estimated as it streams by: by its words, digits, signs and letters, as vocabularies cut
//! them. Must never take more than a step for each byte.

/// Hundredths of a token.
type Centi = u64;

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
}

/// Bytes of one kind that follow one another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Run {
    None,
    /// Letters of ASCII.
    Word,
    Digits,
    Blanks,
    Lines,
    /// Anything else of ASCII.
    Signs,
    /// Letters of two bytes: Latin with marks, Cyrillic, Greek, Arabic.
    Wide,
    /// Of three: most others.
    Wider,
    /// Of four: emoji.
    Widest,
}

// === impl Estimator ===

impl Default for Estimator {
    fn default() -> Self {
        Estimator { sum: REQUEST, run: Run::None, length: 0 }
    }
}

impl Estimator {
    /// An estimate of texts alone, that are not of a request.
    #[must_use]
    pub fn bare() -> Estimator {
        Estimator { sum: 0, run: Run::None, length: 0 }
    }

    /// Some of a text, in any pieces.
    pub fn push(&mut self, bytes: &[u8]) {
        for byte in bytes {
            let run = match byte {
                b'a'..=b'z' | b'A'..=b'Z' => Run::Word,
                b'0'..=b'9' => Run::Digits,
                b' ' | b'\t' => Run::Blanks,
                b'\n' | b'\r' => Run::Lines,
                0xc0..=0xdf => Run::Wide,
                0xe0..=0xef => Run::Wider,
                0xf0..=0xff => Run::Widest,
                // The rest of a character.
                0x80..=0xbf => continue,
                _ => Run::Signs,
            };
            if run != self.run {
                self.settle();
                self.run = run;
            }
            self.length = self.length.saturating_add(1);
        }
    }

    /// Ends a text.
    pub fn end(&mut self) {
        self.settle();
        self.run = Run::None;
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
            Run::Digits => length.div_ceil(3) * 100,
            // One is part of the word behind it.
            Run::Blanks => length.saturating_sub(1).min(1) * 90,
            Run::Lines => 80,
            Run::Signs => 60 + length * 25,
            Run::Wide => 30 + length * 42,
            Run::Wider => length * 80,
            Run::Widest => length * 200,
        };
        self.sum = self.sum.saturating_add(cost);
    }
}
