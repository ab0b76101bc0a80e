//! Runs of letters that may stand for other bytes, as they stream by: found, decoded in blocks, and told.
//!
//! A run is decoded where it begins, and where a block reads as text from another letter on, from there: what stands before
//! it (a path, a prefix) doesn't hide it. Holds one block, in any segmentation of its input. Must never take a run for
//! another because of how it was cut.

mod letters;

use super::{entropy, key};
use letters::{better, broken_escape, code, has_escape, is_letter, start, value};

/// Shortest run that is decoded, letters: words are shorter, but for few.
pub const RUN_BYTES_MIN: usize = 32;
/// Letters that are decoded at once, and judged together.
pub const BLOCK_BYTES: usize = 256;
/// A long run is told of before it ends, each time it came to so many blocks: who cuts it must not wait for that.
pub const TOLD_BYTES: u64 = 16 * BLOCK_BYTES as u64;
/// What a detector takes, bytes: two blocks and a histogram.
pub const MEMORY_BYTES: usize = 1024;
/// Bytes of text that follow one another, where a block has some: of random bytes, one in 2.6 could be text. A block of less
/// is text if all of it is, and at least so much.
const TEXT_BYTES: usize = 24;
const TEXT_BYTES_MIN: usize = 16;
/// Of UTF-16, so many of a hundred bytes are zeroes, or letters.
const WIDE_PERCENT: usize = 95;
/// Letters that tell a run from others: as many as no two have in common that don't mean to.
pub const KEYED_LETTERS: u64 = 4096;
/// Fowler, Noll and Vo's hash, of 64 bits.
const FNV_OFFSET: u64 = 0xcbf2_9ce4_8422_2325;
const FNV_PRIME: u64 = 0x0100_0000_01b3;
/// Line ends inside a run that don't end it: CR and LF.
const LINE_ENDS: u8 = 2;

/// What letters stand for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Code {
    /// RFC 4648 section 4 or 5.
    Base64,
    /// RFC 4648 section 6, in either case.
    Base32,
    /// RFC 4648 section 8, in either case.
    Hex,
    /// RFC 3986 section 2.1: letters, some of them escaped.
    Percent,
}

/// What a run came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// Its last block's.
    pub code: Code,
    /// Whether it ended.
    pub is_whole: bool,
    /// Letters.
    pub letters: u64,
    /// Bytes they stand for.
    pub decoded: u64,
    /// Those of them that are text, of each block the longest.
    pub text: u64,
    /// Whether a dot is right before or behind it: a part of a token of JOSE, or of a name.
    pub is_dotted: bool,
    /// Whether what it stands for begins like an object of JSON.
    pub is_object: bool,
    /// Whether it begins like a private key in DER.
    pub is_key: bool,
    /// Bytes that are at the place of an exponent in numbers of four bytes, and are one of a number below 2.
    pub exponents: u64,
    /// Whether it begins like a file whose bytes are always even: an image, audio, video, a font, PDF, a certificate.
    pub is_media: bool,
    /// Of its letters, hundredths of a bit each.
    pub entropy: u32,
    /// What tells it from others: of its first letters, [`KEYED_LETTERS`] or so, and not of those of escapes.
    pub key: u64,
}

/// What comes next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event<'a> {
    /// Decoded bytes worth looking at follow.
    Begin(Code),
    /// Some of them.
    Piece(&'a [u8]),
    /// No more of them.
    End,
    /// A run of at least [`RUN_BYTES_MIN`] letters ended; or came by [`TOLD_BYTES`] more of them.
    Run(Run),
}

/// A detector of runs.
#[derive(Debug, Default)]
pub struct Runs {
    /// Letters that are not decoded yet.
    block: Vec<u8>,
    /// Line ends behind them.
    line_ends: u8,
    /// The byte before the run, or the last one.
    before: u8,
    /// The run at hand, once a block of it was decoded.
    open: Option<Box<Open>>,
    /// Kept for the next.
    spare: Option<Box<Open>>,
}

#[derive(Debug)]
struct Open {
    run: Run,
    counts: [u32; 64],
    /// Bits that are left over from the last block, and how many.
    bits: u32,
    left: u32,
    /// Whether pieces are handed out; and whether they are of a packed file, which ends where the run does.
    is_told: bool,
    is_packed: bool,
    out: Vec<u8>,
}

type Sink<'a, E> = &'a mut dyn FnMut(Event<'_>) -> Result<(), E>;

// === impl Runs ===

impl Runs {
    /// Looks at what comes next.
    ///
    /// # Errors
    /// What `sink` says.
    pub fn push<E>(&mut self, bytes: &[u8], sink: Sink<'_, E>) -> Result<(), E> {
        let mut rest = bytes;
        while !rest.is_empty() {
            if self.block.is_empty() && self.open.is_none() {
                let at = start(rest);
                let (passed, run) = rest.split_at_checked(at).unwrap_or((rest, &[]));
                self.before = passed.last().copied().unwrap_or(self.before);
                rest = run;
            }
            let room = BLOCK_BYTES - self.block.len();
            let n = rest.iter().take(room).take_while(|b| is_letter(**b)).count();
            let (letters, behind) = rest.split_at_checked(n).unwrap_or((rest, &[]));
            self.block.extend_from_slice(letters);
            rest = behind;
            if n > 0 {
                self.line_ends = 0;
            }
            if self.block.len() == BLOCK_BYTES {
                self.split(false, sink)?;
                if self.block.len() == BLOCK_BYTES {
                    self.decode(false, sink)?;
                }
            } else if let Some((next, behind)) = rest.split_first() {
                let is_long = self.open.is_some() || self.block.len() >= RUN_BYTES_MIN;
                if matches!(next, b'\r' | b'\n') && is_long && self.line_ends < LINE_ENDS {
                    self.line_ends += 1;
                    rest = behind;
                    continue;
                }
                self.end(*next, sink)?;
            }
        }
        Ok(())
    }

    /// Ends the input. What comes next is another.
    ///
    /// # Errors
    /// As [`push`](Self::push).
    pub fn finish<E>(&mut self, sink: Sink<'_, E>) -> Result<(), E> {
        self.end(0, sink)?;
        self.before = 0;
        Ok(())
    }

    /// Forgets what was begun.
    pub fn clear(&mut self) {
        self.block.clear();
        (self.line_ends, self.before) = (0, 0);
        self.spare = self.open.take().or_else(|| self.spare.take());
    }

    /// Bytes of memory that it takes by now.
    #[must_use]
    pub fn memory_bytes(&self) -> usize {
        let opened = usize::from(self.open.is_some() || self.spare.is_some());
        self.block.capacity() + opened * MEMORY_BYTES
    }

    fn end<E>(&mut self, next: u8, sink: Sink<'_, E>) -> Result<(), E> {
        self.split(true, sink)?;
        self.end_one(next, sink)
    }

    /// Ends the run at each escape that is none, as it is no letter of any code; what stands behind it is another. Among
    /// escapes it stays, as whoever takes those off leaves it: what they decode to is looked at again.
    fn split<E>(&mut self, is_last: bool, sink: Sink<'_, E>) -> Result<(), E> {
        if broken_escape(&self.block, is_last).is_none() || has_escape(&self.block) {
            return Ok(());
        }
        let mut block = std::mem::take(&mut self.block);
        let mut from = 0;
        while let Some(rest) = block.get(from..)
            && let Some(at) = broken_escape(rest, is_last)
        {
            self.block.extend_from_slice(rest.get(..at).unwrap_or_default());
            self.end_one(b'%', sink)?;
            from += at + 1;
        }
        block.drain(..from);
        self.block = block;
        Ok(())
    }

    fn end_one<E>(&mut self, next: u8, sink: Sink<'_, E>) -> Result<(), E> {
        if self.open.is_some() || self.block.len() >= RUN_BYTES_MIN {
            self.decode(true, sink)?;
            if let Some(mut open) = self.open.take() {
                open.tell(false, sink)?;
                let is_dotted = open.run.is_dotted || next == b'.';
                let entropy = entropy::hundredth_bits(&open.counts);
                let run = Run { is_whole: true, is_dotted, entropy, ..open.run };
                self.spare = Some(open);
                sink(Event::Run(run))?;
            }
        }
        self.block.clear();
        (self.line_ends, self.before) = (0, next);
        Ok(())
    }

    fn decode<E>(&mut self, is_last: bool, sink: Sink<'_, E>) -> Result<(), E> {
        let mut open = match self.open.take() {
            Some(open) => open,
            None => {
                let mut open = self.spare.take().unwrap_or_default();
                open.again(self.before == b'.');
                if matches!(self.block.get(..2), Some(b"0x" | b"0X"))
                    && code(self.block.get(2..)) == Code::Hex
                {
                    self.block.drain(..2);
                }
                open
            }
        };
        let before = open.run.letters / TOLD_BYTES;
        let kept = open.block(&self.block, is_last, sink)?;
        self.block.drain(..self.block.len() - kept);
        let is_much = !is_last && open.run.letters / TOLD_BYTES > before;
        let told = if is_much {
            let entropy = entropy::hundredth_bits(&open.counts);
            sink(Event::Run(Run { entropy, ..open.run }))
        } else {
            Ok(())
        };
        self.open = Some(open);
        told
    }
}

// === impl Open ===

impl Default for Open {
    fn default() -> Open {
        let run = Run {
            code: Code::Base64,
            is_whole: false,
            letters: 0,
            decoded: 0,
            text: 0,
            is_dotted: false,
            is_object: false,
            is_key: false,
            exponents: 0,
            is_media: false,
            entropy: 0,
            key: FNV_OFFSET,
        };
        Open {
            run,
            counts: [0; 64],
            bits: 0,
            left: 0,
            is_told: false,
            is_packed: false,
            out: Vec::with_capacity(BLOCK_BYTES),
        }
    }
}

impl Open {
    fn again(&mut self, is_dotted: bool) {
        let out = std::mem::take(&mut self.out);
        *self = Open { out, ..Open { out: Vec::new(), ..Open::default() } };
        self.run.is_dotted = is_dotted;
    }

    /// Decodes a block; says how many of its last letters are to come again.
    fn block<E>(&mut self, block: &[u8], is_last: bool, sink: Sink<'_, E>) -> Result<usize, E> {
        if block.is_empty() {
            return Ok(0);
        }
        let mut code = code(Some(block));
        let is_first = self.run.letters == 0;
        if self.is_told && self.run.code == Code::Base64 && code != Code::Percent {
            // Some blocks have letters that others codes have, too.
            code = Code::Base64;
        }
        if code != self.run.code && !is_first {
            self.turn(sink)?;
        }
        self.run.code = code;
        // What begins like a file is one, whatever is in its middle.
        let is_file = self.is_packed || is_first && is_file(&head(block, code));
        let skipped = if is_file { 0 } else { better(block, code, self.left) };
        if skipped > 0 {
            self.turn(sink)?;
        }
        let is_fresh = is_first || skipped > 0;
        self.out.clear();
        let kept = self.letters(block.get(skipped..).unwrap_or_default(), is_last);
        self.run.letters += (block.len() - kept) as u64;
        if code == Code::Base64 {
            let at = usize::try_from(self.run.decoded % 4).unwrap_or_default();
            let exponents = self.out.iter().skip(3 - at).step_by(4);
            self.run.exponents += exponents.filter(|b| matches!(**b & 0x7f, 0x38..=0x3f)).count() as u64;
        }
        self.run.decoded += self.out.len() as u64;
        self.is_packed |= is_fresh && is_packed(&self.out);
        if !self.is_packed && is_wide(&self.out) {
            self.out.retain(|b| *b != 0);
        }
        let text = text_bytes(&self.out);
        self.run.text += text as u64;
        if is_fresh {
            let head = &self.out[..];
            self.run.is_key |= code != Code::Percent && key::begins(head);
            self.run.is_media |= is_media(head);
            self.run.is_object |= head.starts_with(b"{\"");
        }
        // Escapes may hide anything; of other letters, most stand for nothing.
        let is_telling = text > 0 || code == Code::Percent || self.is_packed;
        if is_telling && !self.is_told {
            self.tell(true, sink)?;
        }
        if self.is_told && !self.out.is_empty() {
            sink(Event::Piece(&self.out))?;
        }
        Ok(kept)
    }

    /// Begins anew, at the next letter.
    fn turn<E>(&mut self, sink: Sink<'_, E>) -> Result<(), E> {
        (self.bits, self.left, self.is_packed) = (0, 0, false);
        self.tell(false, sink)
    }

    fn tell<E>(&mut self, on: bool, sink: Sink<'_, E>) -> Result<(), E> {
        if self.is_told == on {
            return Ok(());
        }
        self.is_told = on;
        sink(if on { Event::Begin(self.run.code) } else { Event::End })
    }

    /// Decodes letters to `out`.
    fn letters(&mut self, letters: &[u8], is_last: bool) -> usize {
        let bits = match self.run.code {
            Code::Percent => return self.escapes(letters, is_last),
            Code::Base64 => 6,
            Code::Base32 => 5,
            Code::Hex => 4,
        };
        let is_keyed = self.run.letters < KEYED_LETTERS;
        for letter in letters.iter().filter(|_| is_keyed) {
            self.run.key = (self.run.key ^ u64::from(*letter)).wrapping_mul(FNV_PRIME);
        }
        for letter in letters {
            let value = value(self.run.code, *letter);
            if let Some(count) = self.counts.get_mut(value as usize) {
                *count = count.saturating_add(1);
            }
            self.bits = self.bits << bits | value;
            self.left += bits;
            if self.left >= 8 {
                self.left -= 8;
                self.out.push(u8::try_from(self.bits >> self.left & 0xff).unwrap_or_default());
                self.bits &= (1 << self.left) - 1;
            }
        }
        0
    }

    fn escapes(&mut self, mut letters: &[u8], is_last: bool) -> usize {
        while let Some((letter, rest)) = letters.split_first() {
            if *letter == b'%' && rest.len() < 2 && !is_last {
                return letters.len();
            }
            let digit = |n: usize| rest.get(n).and_then(|b| char::from(*b).to_digit(16));
            match (letter, digit(0), digit(1)) {
                (b'%', Some(high), Some(low)) => {
                    self.out.push(u8::try_from(high << 4 | low).unwrap_or_default());
                    letters = rest.get(2..).unwrap_or_default();
                }
                _ => {
                    self.out.push(*letter);
                    letters = rest;
                }
            }
        }
        0
    }
}

// === what is decoded ===

/// How many bytes that follow one another read as text, in UTF-8; 0 if too few do.
#[must_use]
pub fn text_bytes(bytes: &[u8]) -> usize {
    let (mut longest, mut now) = (0, 0);
    for chunk in bytes.utf8_chunks() {
        for c in chunk.valid().chars() {
            now = if c.is_control() && !matches!(c, '\t' | '\n' | '\r') { 0 } else { now + c.len_utf8() };
            longest = longest.max(now);
        }
        if !chunk.invalid().is_empty() {
            now = 0;
        }
    }
    let is_text = longest >= TEXT_BYTES || longest == bytes.len() && longest >= TEXT_BYTES_MIN;
    if is_text { longest } else { 0 }
}

/// Whether they look like UTF-16 of letters of ASCII.
fn is_wide(bytes: &[u8]) -> bool {
    let zeroes = bytes.iter().filter(|b| **b == 0).count();
    let bare = bytes.iter().filter(|b| matches!(**b, 0x20..=0x7e | b'\n' | b'\r' | b'\t')).count();
    zeroes * 100 >= bytes.len() * 45
        && bare * 100 >= bytes.len() * 35
        && (zeroes + bare) * 100 >= bytes.len() * WIDE_PERCENT
}

/// What the first letters of a run stand for.
fn head(block: &[u8], code: Code) -> [u8; key::HEAD_BYTES] {
    let (mut head, mut bits, mut left) = ([0; key::HEAD_BYTES], 0, 0);
    let unit = match code {
        Code::Base64 => 6,
        Code::Base32 => 5,
        Code::Hex => 4,
        Code::Percent => return head,
    };
    let mut room = head.iter_mut();
    for letter in block {
        (bits, left) = ((bits << unit | value(code, *letter)) & 0xffff, left + unit);
        if left >= 8 {
            left -= 8;
            let Some(byte) = room.next() else { break };
            *byte = u8::try_from(bits >> left & 0xff).unwrap_or_default();
        }
    }
    head
}

fn is_file(head: &[u8]) -> bool {
    is_packed(head) || is_media(head) || key::begins(head)
}

/// Whether they begin like a file that is looked into, or an archive.
fn is_packed(bytes: &[u8]) -> bool {
    matches!(
        bytes,
        [0x1f, 0x8b, 8, ..]
            | [0x28, 0xb5, 0x2f, 0xfd, ..]
            | [b'P', b'K', 3 | 5, 4 | 6, ..]
            | [b'7', b'z', 0xbc, 0xaf, ..]
            | [b'R', b'a', b'r', b'!', ..]
            | [0xfd, b'7', b'z', b'X', b'Z', ..]
            | [b'B', b'Z', b'h', b'1'..=b'9', ..]
    )
}

/// Whether they begin like a file whose bytes are as even as those of what was enciphered.
fn is_media(bytes: &[u8]) -> bool {
    let is_certificate = matches!(bytes, [0x30, 0x82, _, _, 0x30, 0x82, ..]);
    is_certificate
        || bytes.get(4..8) == Some(b"ftyp")
        || matches!(
            bytes,
            [0x89, b'P', b'N', b'G', ..]
                | [0xff, 0xd8, 0xff, ..]
                | [b'G', b'I', b'F', b'8', ..]
                | [b'R', b'I', b'F', b'F', ..]
                | [b'B', b'M', _, _, _, _, 0, 0, 0, 0, ..]
                | [0, 0, 1, 0, ..]
                | [b'%', b'P', b'D', b'F', b'-', ..]
                | [b'I', b'D', b'3', ..]
                | [0xff, 0xfb | 0xf3 | 0xf2 | 0xf1 | 0xf9, ..]
                | [b'O', b'g', b'g', b'S', ..]
                | [b'f', b'L', b'a', b'C', ..]
                | [0x1a, 0x45, 0xdf, 0xa3, ..]
                | [b'w', b'O', b'F', b'F' | b'2', ..]
                | [b'O', b'T', b'T', b'O', ..]
                | [0, 1, 0, 0, 0, ..]
        )
}

#[cfg(test)]
mod tests;
