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
}

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
        }
    }

    /// Decodes what comes next.
    ///
    /// # Errors
    /// As soon as it can't be JSON; or what `sink` says.
    pub fn push<E: From<JsonError>>(
        &mut self,
        mut bytes: &[u8],
        sink: &mut dyn FnMut(Event<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        while let Some((byte, rest)) = bytes.split_first() {
            if matches!(self.expect, Expect::InKey | Expect::InText) && self.escape == Escape::None {
                // Most of a document: what is plain goes on as it is.
                let is_plain = |b: &u8| !matches!(*b, b'"' | b'\\' | 0..=0x1f);
                let plain = bytes.iter().take_while(|b| is_plain(b)).count();
                if plain > 0 {
                    self.lone(sink)?;
                    let (text, rest) = bytes.split_at_checked(plain).unwrap_or((bytes, &[]));
                    sink(Event::Piece(text))?;
                    bytes = rest;
                    continue;
                }
            }
            self.byte(*byte, sink)?;
            bytes = rest;
        }
        Ok(())
    }

    /// Ends the input.
    ///
    /// # Errors
    /// If a document is not whole; or what `sink` says. No input at all is no error.
    pub fn finish<E: From<JsonError>>(
        &mut self,
        sink: &mut dyn FnMut(Event<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
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

    fn byte<E: From<JsonError>>(
        &mut self,
        byte: u8,
        sink: &mut dyn FnMut(Event<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        match self.expect {
            Expect::InKey | Expect::InText => return self.string_byte(byte, sink),
            Expect::InWord if byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'-' | b'.') => {
                return sink(Event::Piece(&[byte]));
            }
            Expect::InWord => {
                self.value_end();
                sink(Event::End)?;
            }
            _ => {}
        }
        if matches!(byte, b' ' | b'\t' | b'\r' | b'\n') || byte == 0x1e && self.is_sequence && self.depth == 0
        {
            return Ok(());
        }
        self.has_begun = true;
        if self.expect == Expect::End && self.is_sequence {
            self.expect = Expect::Value;
        }
        match (self.expect, byte) {
            (Expect::Value | Expect::ValueOrEnd, b'{') => self.open(true, sink),
            (Expect::Value | Expect::ValueOrEnd, b'[') => self.open(false, sink),
            (Expect::Value | Expect::ValueOrEnd, b'"') => {
                self.expect = Expect::InText;
                sink(Event::Begin(Kind::Text))
            }
            (Expect::Value | Expect::ValueOrEnd, b'-' | b'0'..=b'9' | b't' | b'f' | b'n' | b'N' | b'I') => {
                self.expect = Expect::InWord;
                sink(Event::Begin(Kind::Word))?;
                sink(Event::Piece(&[byte]))
            }
            (Expect::Key | Expect::KeyOrEnd, b'"') => {
                self.expect = Expect::InKey;
                sink(Event::Begin(Kind::Key))
            }
            (Expect::Colon, b':') => {
                self.expect = Expect::Value;
                Ok(())
            }
            (Expect::Comma, b',') => {
                self.expect = if self.in_object() { Expect::Key } else { Expect::Value };
                Ok(())
            }
            (Expect::Comma | Expect::KeyOrEnd, b'}') if self.in_object() => self.close(sink),
            (Expect::Comma | Expect::ValueOrEnd, b']') if !self.in_object() => self.close(sink),
            _ => Err(JsonError::Malformed.into()),
        }
    }

    fn in_object(&self) -> bool {
        self.depth > 0 && self.objects >> (self.depth - 1) & 1 == 1
    }

    fn open<E: From<JsonError>>(
        &mut self,
        object: bool,
        sink: &mut dyn FnMut(Event<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        if self.depth == DEPTH_MAX {
            return Err(JsonError::TooDeep.into());
        }
        self.objects = self.objects & !(1 << self.depth) | u64::from(object) << self.depth;
        self.depth += 1;
        self.expect = if object { Expect::KeyOrEnd } else { Expect::ValueOrEnd };
        sink(Event::Open { object })
    }

    fn close<E>(&mut self, sink: &mut dyn FnMut(Event<'_>) -> Result<(), E>) -> Result<(), E> {
        self.depth = self.depth.saturating_sub(1);
        self.value_end();
        sink(Event::Close)
    }

    fn value_end(&mut self) {
        self.expect = if self.depth == 0 { Expect::End } else { Expect::Comma };
    }

    /// Hands out what stands for a first half that no second one followed.
    fn lone<E>(&mut self, sink: &mut dyn FnMut(Event<'_>) -> Result<(), E>) -> Result<(), E> {
        match self.high.take() {
            Some(_) => character(char::REPLACEMENT_CHARACTER, sink),
            None => Ok(()),
        }
    }

    fn string_byte<E: From<JsonError>>(
        &mut self,
        byte: u8,
        sink: &mut dyn FnMut(Event<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        let plain = match (self.escape, byte) {
            (Escape::None, b'\\') => {
                self.escape = Escape::Start;
                return Ok(());
            }
            (Escape::None, b'"') => {
                self.lone(sink)?;
                if self.expect == Expect::InKey {
                    self.expect = Expect::Colon;
                } else {
                    self.value_end();
                }
                return sink(Event::End);
            }
            (Escape::Start, b'u') => {
                self.escape = Escape::Unicode(4, 0);
                return Ok(());
            }
            (Escape::Start, b'"' | b'\\' | b'/') => byte,
            (Escape::Start, b'b') => 0x08,
            (Escape::Start, b'f') => 0x0c,
            (Escape::Start, b'n') => b'\n',
            (Escape::Start, b'r') => b'\r',
            (Escape::Start, b't') => b'\t',
            (Escape::Unicode(left, so_far), b) => {
                let Some(digit) = char::from(b).to_digit(16) else {
                    return Err(JsonError::Malformed.into());
                };
                let unit = so_far << 4 | u16::try_from(digit).unwrap_or_default();
                if left > 1 {
                    self.escape = Escape::Unicode(left - 1, unit);
                    return Ok(());
                }
                self.escape = Escape::None;
                return self.unit(unit, sink);
            }
            _ => return Err(JsonError::Malformed.into()),
        };
        self.escape = Escape::None;
        self.lone(sink)?;
        sink(Event::Piece(&[plain]))
    }

    /// A unit of UTF-16.
    fn unit<E>(&mut self, unit: u16, sink: &mut dyn FnMut(Event<'_>) -> Result<(), E>) -> Result<(), E> {
        match (self.high.take(), unit) {
            (Some(high), 0xdc00..=0xdfff) => {
                let code = 0x1_0000 + (u32::from(high - 0xd800) << 10) + u32::from(unit - 0xdc00);
                return character(char::from_u32(code).unwrap_or(char::REPLACEMENT_CHARACTER), sink);
            }
            (Some(_), _) => character(char::REPLACEMENT_CHARACTER, sink)?,
            (None, _) => {}
        }
        if matches!(unit, 0xd800..=0xdbff) {
            self.high = Some(unit);
            return Ok(());
        }
        character(char::from_u32(u32::from(unit)).unwrap_or(char::REPLACEMENT_CHARACTER), sink)
    }
}

fn character<E>(character: char, sink: &mut dyn FnMut(Event<'_>) -> Result<(), E>) -> Result<(), E> {
    sink(Event::Piece(character.encode_utf8(&mut [0; 4]).as_bytes()))
}
