//! JSON (RFC 8259) to its fields, as it streams by: keys, texts without their escapes, and words.
//!
//! Works in constant memory, in any segmentation of its input: pieces of a field come as they are there, and joined they
//! are always the same. It accepts what servers in use accept besides the grammar and what can't hide text (`NaN`, lone
//! surrogates), and must never accept what they read otherwise: comments, single quotes, bare control characters.

/// Deepest nesting: one bit a level.
pub const DEPTH_MAX: u32 = 64;

/// Why it is no JSON.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum JsonError {
    /// Not as the grammar has it.
    #[error("malformed JSON")]
    Malformed,
    /// More than [`DEPTH_MAX`] levels.
    #[error("JSON of more than {DEPTH_MAX} levels")]
    TooDeep,
}

/// What a field is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The name of an object's member.
    Key,
    /// A string.
    Text,
    /// A number, `true`, `false` or `null`, as it is written.
    Word,
}

/// What comes next in a document.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event<'a> {
    /// An object begins, or an array.
    Open {
        /// Whether it is an object.
        object: bool,
    },
    /// The innermost of them ends.
    Close,
    /// A field begins.
    Begin(Kind),
    /// Some of its bytes: UTF-8 if the document is.
    Piece(&'a [u8]),
    /// It ends.
    End,
}

/// What may come next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Expect {
    Value,
    /// A value or `]`.
    ValueOrEnd,
    /// A key or `}`.
    KeyOrEnd,
    Key,
    Colon,
    /// `,` or the end of the container.
    Comma,
    InKey,
    InText,
    InWord,
    /// Nothing but blanks; or the next document.
    End,
}

/// Where in an escape sequence the next byte of a string is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Escape {
    None,
    Start,
    /// This many hex digits are left, of what the others say.
    Unicode(u8, u16),
}

/// A decoder of one document, or of documents that follow one another.
#[derive(Debug)]
pub struct Json {
    expect: Expect,
    depth: u32,
    /// Bit n: level n is an object.
    objects: u64,
    escape: Escape,
    /// The first half of a surrogate pair, whose second half may follow.
    high: Option<u16>,
    /// Whether documents may follow one another.
    is_sequence: bool,
    /// Whether anything but blanks was seen.
    has_begun: bool,
    /// What a string with escapes came to that was not handed out yet; empty between two pieces of input.
    joined: Vec<u8>,
    /// Bytes of the last input from that on which can't be JSON.
    left: usize,
}

/// Bytes of a string with escapes that are handed out at once: each piece costs those who look at it more than a copy does.
const JOINED_BYTES: usize = 1024;

/// Who is told what comes next.
type Sink<'a, E> = &'a mut dyn FnMut(Event<'_>) -> Result<(), E>;

// === impl Json ===

impl Json {
    /// A decoder of one document; of any number of them if it `is_sequence` (NDJSON, RFC 7464).
    #[must_use]
    pub fn new(is_sequence: bool) -> Json {
        Json {
            expect: Expect::Value,
            depth: 0,
            objects: 0,
            escape: Escape::None,
            high: None,
            is_sequence,
            has_begun: false,
            joined: Vec::new(),
            left: 0,
        }
    }

    /// Makes it the decoder of another input, as if it were new.
    pub fn again(&mut self) {
        let joined = std::mem::take(&mut self.joined);
        *self = Json { joined, ..Json::new(self.is_sequence) };
        self.joined.clear();
    }

    /// Decodes what comes next.
    ///
    /// # Errors
    /// As soon as it can't be JSON; or what `sink` says.
    pub fn push<E: From<JsonError>>(&mut self, mut bytes: &[u8], sink: Sink<'_, E>) -> Result<(), E> {
        while !bytes.is_empty() {
            self.left = bytes.len();
            bytes = match self.expect {
                Expect::InKey | Expect::InText if self.escape == Escape::None => self.string(bytes, sink)?,
                Expect::InKey | Expect::InText => self.escape(bytes, sink)?,
                Expect::InWord => self.word(bytes, sink)?,
                _ => self.structure(bytes, sink)?,
            };
        }
        self.tell(sink)
    }

    /// Ends the input.
    ///
    /// # Errors
    /// If a document is not whole; or what `sink` says. No input at all is no error.
    pub fn finish<E: From<JsonError>>(&mut self, sink: Sink<'_, E>) -> Result<(), E> {
        if self.expect == Expect::InWord {
            self.value_end();
            sink(Event::End)?;
        }
        match self.expect {
            Expect::End => Ok(()),
            Expect::Value if !self.has_begun => Ok(()),
            _ => Err(JsonError::Malformed.into()),
        }
    }

    /// What [`push`](Json::push) has failed at, of what it was told then: from the first byte that can't be JSON on, wherever its
    /// input was cut.
    #[must_use]
    pub fn left<'a>(&self, bytes: &'a [u8]) -> &'a [u8] {
        bytes.get(bytes.len().saturating_sub(self.left)..).unwrap_or_default()
    }

    /// Bytes of memory that it takes besides itself.
    #[must_use]
    pub fn memory_bytes(&self) -> usize {
        self.joined.capacity()
    }

    /// Reads what is neither string nor word, up to where one begins; what is left.
    fn structure<'a, E: From<JsonError>>(
        &mut self,
        bytes: &'a [u8],
        sink: Sink<'_, E>,
    ) -> Result<&'a [u8], E> {
        let Some((&byte, rest)) = bytes.split_first() else { return Ok(bytes) };
        if matches!(byte, b' ' | b'\t' | b'\r' | b'\n') || byte == 0x1e && self.is_sequence && self.depth == 0
        {
            return Ok(rest);
        }
        self.has_begun = true;
        if self.expect == Expect::End && self.is_sequence {
            self.expect = Expect::Value;
        }
        match (self.expect, byte) {
            (Expect::Value | Expect::ValueOrEnd, b'"') => {
                self.expect = Expect::InText;
                sink(Event::Begin(Kind::Text))?;
            }
            (Expect::Key | Expect::KeyOrEnd, b'"') => {
                self.expect = Expect::InKey;
                sink(Event::Begin(Kind::Key))?;
            }
            (Expect::Colon, b':') => self.expect = Expect::Value,
            (Expect::Comma, b',') => {
                self.expect = if self.in_object() { Expect::Key } else { Expect::Value };
            }
            (Expect::Value | Expect::ValueOrEnd, b'{') => self.open(true, sink)?,
            (Expect::Value | Expect::ValueOrEnd, b'[') => self.open(false, sink)?,
            (Expect::Value | Expect::ValueOrEnd, b'-' | b'0'..=b'9' | b't' | b'f' | b'n' | b'N' | b'I') => {
                self.expect = Expect::InWord;
                sink(Event::Begin(Kind::Word))?;
                // Its first byte belongs to it.
                return Ok(bytes);
            }
            (Expect::Comma | Expect::KeyOrEnd, b'}') if self.in_object() => self.close(sink)?,
            (Expect::Comma | Expect::ValueOrEnd, b']') if !self.in_object() => self.close(sink)?,
            _ => return Err(JsonError::Malformed.into()),
        }
        Ok(rest)
    }

    /// Reads a word, or what comes next of it; what is left.
    fn word<'a, E>(&mut self, bytes: &'a [u8], sink: Sink<'_, E>) -> Result<&'a [u8], E> {
        let is_of_word = |b: &&u8| b.is_ascii_alphanumeric() || matches!(**b, b'+' | b'-' | b'.');
        let length = bytes.iter().take_while(is_of_word).count();
        let (word, rest) = bytes.split_at_checked(length).unwrap_or((bytes, &[]));
        if !word.is_empty() {
            sink(Event::Piece(word))?;
        }
        if !rest.is_empty() {
            self.value_end();
            sink(Event::End)?;
        }
        Ok(rest)
    }

    /// Reads a string up to its end, or to an escape; what is left.
    fn string<'a, E: From<JsonError>>(&mut self, bytes: &'a [u8], sink: Sink<'_, E>) -> Result<&'a [u8], E> {
        let (text, rest) = bytes.split_at_checked(plain(bytes)).unwrap_or((bytes, &[]));
        if !text.is_empty() {
            self.lone(sink)?;
        }
        let Some((byte, behind)) = rest.split_first() else {
            self.add(text, sink)?;
            return Ok(rest);
        };
        match byte {
            b'"' => {
                if self.joined.is_empty() && !text.is_empty() {
                    sink(Event::Piece(text))?;
                } else {
                    self.add(text, sink)?;
                }
                self.lone(sink)?;
                self.tell(sink)?;
                if self.expect == Expect::InKey {
                    self.expect = Expect::Colon;
                } else {
                    self.value_end();
                }
                sink(Event::End)?;
            }
            b'\\' => {
                self.add(text, sink)?;
                self.escape = Escape::Start;
            }
            _ => {
                self.left = rest.len();
                self.add(text, sink)?;
                return self.malformed(sink);
            }
        }
        Ok(behind)
    }

    /// Reads an escape, or what comes next of it; what is left.
    fn escape<'a, E: From<JsonError>>(&mut self, bytes: &'a [u8], sink: Sink<'_, E>) -> Result<&'a [u8], E> {
        let Some((&byte, rest)) = bytes.split_first() else { return Ok(bytes) };
        let plain = match (self.escape, byte) {
            (Escape::Start, b'u') => {
                self.escape = Escape::Unicode(4, 0);
                return Ok(rest);
            }
            (Escape::Start, b'"' | b'\\' | b'/') => byte,
            (Escape::Start, b'b') => 0x08,
            (Escape::Start, b'f') => 0x0c,
            (Escape::Start, b'n') => b'\n',
            (Escape::Start, b'r') => b'\r',
            (Escape::Start, b't') => b'\t',
            (Escape::Unicode(left, so_far), b) => {
                let Some(digit) = char::from(b).to_digit(16) else { return self.malformed(sink) };
                let unit = so_far << 4 | u16::try_from(digit).unwrap_or_default();
                if left > 1 {
                    self.escape = Escape::Unicode(left - 1, unit);
                } else {
                    self.escape = Escape::None;
                    self.unit(unit, sink)?;
                }
                return Ok(rest);
            }
            _ => return self.malformed(sink),
        };
        self.escape = Escape::None;
        self.lone(sink)?;
        self.add(&[plain], sink)?;
        Ok(rest)
    }

    /// Hands out what came before that which can't be JSON: who looks at it sees the same, however it was cut.
    fn malformed<T, E: From<JsonError>>(&mut self, sink: Sink<'_, E>) -> Result<T, E> {
        self.tell(sink)?;
        Err(JsonError::Malformed.into())
    }

    /// Adds to what a string came to.
    fn add<E>(&mut self, text: &[u8], sink: Sink<'_, E>) -> Result<(), E> {
        if self.joined.len() + text.len() > JOINED_BYTES {
            self.tell(sink)?;
        }
        if text.len() > JOINED_BYTES {
            return sink(Event::Piece(text));
        }
        if self.joined.capacity() == 0 && !text.is_empty() {
            self.joined.reserve_exact(JOINED_BYTES);
        }
        self.joined.extend_from_slice(text);
        Ok(())
    }

    /// Hands it out.
    fn tell<E>(&mut self, sink: Sink<'_, E>) -> Result<(), E> {
        if self.joined.is_empty() {
            return Ok(());
        }
        let told = sink(Event::Piece(&self.joined));
        self.joined.clear();
        told
    }

    /// How many objects and arrays are open.
    pub(super) fn depth(&self) -> u32 {
        self.depth
    }

    /// Whether the innermost of them is an object.
    pub(super) fn in_object(&self) -> bool {
        self.depth > 0 && self.objects >> (self.depth - 1) & 1 == 1
    }

    fn open<E: From<JsonError>>(&mut self, object: bool, sink: Sink<'_, E>) -> Result<(), E> {
        if self.depth == DEPTH_MAX {
            return Err(JsonError::TooDeep.into());
        }
        self.objects = self.objects & !(1 << self.depth) | u64::from(object) << self.depth;
        self.depth += 1;
        self.expect = if object { Expect::KeyOrEnd } else { Expect::ValueOrEnd };
        sink(Event::Open { object })
    }

    fn close<E>(&mut self, sink: Sink<'_, E>) -> Result<(), E> {
        self.depth = self.depth.saturating_sub(1);
        self.value_end();
        sink(Event::Close)
    }

    fn value_end(&mut self) {
        self.expect = if self.depth == 0 { Expect::End } else { Expect::Comma };
    }

    /// Adds what stands for a first half that no second one followed.
    fn lone<E>(&mut self, sink: Sink<'_, E>) -> Result<(), E> {
        match self.high.take() {
            Some(_) => self.character(char::REPLACEMENT_CHARACTER, sink),
            None => Ok(()),
        }
    }

    /// A unit of UTF-16.
    fn unit<E>(&mut self, unit: u16, sink: Sink<'_, E>) -> Result<(), E> {
        match (self.high.take(), unit) {
            (Some(high), 0xdc00..=0xdfff) => {
                let code = 0x1_0000 + (u32::from(high - 0xd800) << 10) + u32::from(unit - 0xdc00);
                return self.character(char::from_u32(code).unwrap_or(char::REPLACEMENT_CHARACTER), sink);
            }
            (Some(_), _) => self.character(char::REPLACEMENT_CHARACTER, sink)?,
            (None, _) => {}
        }
        if matches!(unit, 0xd800..=0xdbff) {
            self.high = Some(unit);
            return Ok(());
        }
        self.character(char::from_u32(u32::from(unit)).unwrap_or(char::REPLACEMENT_CHARACTER), sink)
    }

    fn character<E>(&mut self, character: char, sink: Sink<'_, E>) -> Result<(), E> {
        self.add(character.encode_utf8(&mut [0; 4]).as_bytes(), sink)
    }
}

/// How many bytes a string goes on with that stand for themselves: up to a quotation mark, a backslash or a control character.
fn plain(bytes: &[u8]) -> usize {
    let (mut rest, mut count) = (bytes, 0);
    while let Some((word, behind)) = rest.split_first_chunk::<8>() {
        let odd = odd(u64::from_le_bytes(*word));
        if odd != 0 {
            return count + (odd.trailing_zeros() / 8) as usize;
        }
        (rest, count) = (behind, count + 8);
    }
    count + rest.iter().take_while(|b| !matches!(**b, b'"' | b'\\' | 0..=0x1f)).count()
}

/// The high bit of each byte of eight that is none of those; above the first, perhaps of others.
fn odd(word: u64) -> u64 {
    const ONES: u64 = u64::MAX / 0xff;
    let zero = |word: u64| word.wrapping_sub(ONES) & !word;
    let quote = zero(word ^ (ONES * b'"' as u64));
    let backslash = zero(word ^ (ONES * b'\\' as u64));
    let control = word.wrapping_sub(ONES * 0x20) & !word;
    (quote | backslash | control) & (ONES * 0x80)
}
