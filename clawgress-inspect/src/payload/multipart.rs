//! Multipart bodies (RFC 2046 section 5.1, RFC 7578) to their parts, as they stream by.
//!
//! Holds no more than the head of one part, in any segmentation of its input. Where parsers in use disagree about where a
//! part begins (a boundary in the middle of a line, behind another line end than CRLF, or behind the last one; a longer line
//! that begins like one) it must refuse, and never choose.

/// Longest boundary (RFC 2046 section 5.1.1), bytes.
pub const BOUNDARY_BYTES_MAX: usize = 70;
/// Most bytes of a part's head.
pub const HEAD_BYTES_MAX: usize = 8 * 1024;
/// Most parts.
pub const PARTS_MAX: u32 = 1024;

/// Bytes of the line end before a boundary.
const LINE_END: usize = 2;

/// Why it is no multipart body, or one that can't be read with certainty.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MultipartError {
    /// No boundary, or one that no boundary can be.
    #[error("a multipart body without a sound boundary")]
    Boundary,
    /// Not as RFC 2046 has it, or not whole.
    #[error("a malformed multipart body")]
    Malformed,
    /// More than [`HEAD_BYTES_MAX`] bytes.
    #[error("the head of a part has more than {HEAD_BYTES_MAX} bytes")]
    HeadTooLarge,
    /// More than [`PARTS_MAX`] parts.
    #[error("more than {PARTS_MAX} parts")]
    PartsTooMany,
}

/// What comes next in a body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event<'a> {
    /// A part begins: the lines of its head, each with its CRLF.
    Begin(&'a [u8]),
    /// Some of its bytes.
    Piece(&'a [u8]),
    /// It ends.
    End,
}

/// Where in the body the next byte is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Before the first boundary.
    Preamble,
    /// In the bytes of a part.
    Part,
    /// Right behind a boundary.
    Boundary,
    /// Behind the first `-` of the last one.
    Dash,
    /// In blanks behind a boundary.
    Padding,
    /// Behind the CR of its line.
    LineEnd,
    /// In the head of a part.
    Head,
    /// Behind the last boundary.
    Epilogue,
}

/// A decoder of one body.
#[derive(Debug)]
pub struct Multipart {
    /// CRLF, two dashes and the boundary: no CR but the first byte.
    delimiter: Vec<u8>,
    state: State,
    /// Bytes of the delimiter that the last bytes were.
    matched: usize,
    /// The same of the delimiter without its line end, wherever it is.
    bare: usize,
    /// Of so many of its bytes, how many begin it again: where to go on once the next is another (Knuth, Morris, Pratt).
    borders: Vec<usize>,
    head: Vec<u8>,
    parts: u32,
    /// Whether nothing but blanks may be around the parts.
    is_alone: bool,
}

type Sink<'a, E> = &'a mut dyn FnMut(Event<'_>) -> Result<(), E>;

// === impl Multipart ===

impl Multipart {
    /// A decoder of a body with this boundary.
    ///
    /// # Errors
    /// [`MultipartError::Boundary`].
    pub fn new(boundary: &[u8]) -> Result<Multipart, MultipartError> {
        let is_sound = |b: &u8| b.is_ascii_alphanumeric() || b"'()+_,-./:=? ".contains(b);
        let ends = boundary.last().is_some_and(|b| *b != b' ');
        if boundary.len() > BOUNDARY_BYTES_MAX || !ends || !boundary.iter().all(is_sound) {
            return Err(MultipartError::Boundary);
        }
        let delimiter = [b"\r\n--", boundary].concat();
        let borders = borders(delimiter.get(LINE_END..).unwrap_or_default());
        let (state, head) = (State::Preamble, Vec::new());
        // The first boundary may stand at the very beginning: as if a line had ended there.
        Ok(Multipart {
            delimiter,
            state,
            matched: LINE_END,
            bare: 0,
            borders,
            head,
            parts: 0,
            is_alone: false,
        })
    }

    /// Refuses what is before the first boundary and behind the last: servers that take it for no multipart body read that.
    #[must_use]
    pub fn alone(self) -> Multipart {
        Multipart { is_alone: true, ..self }
    }

    /// Decodes what comes next.
    ///
    /// # Errors
    /// As soon as it can't be read with certainty; or what `sink` says.
    pub fn push<E: From<MultipartError>>(&mut self, mut bytes: &[u8], sink: Sink<'_, E>) -> Result<(), E> {
        while let Some((byte, rest)) = bytes.split_first() {
            #[cfg(test)]
            crate::steps::add(1);
            let in_text = matches!(self.state, State::Preamble | State::Part);
            if in_text && self.matched == 0 && self.bare == 0 {
                // Most of a body: nothing else can begin a boundary.
                let plain = bytes.iter().take_while(|b| !matches!(**b, b'\r' | b'-')).count();
                #[cfg(test)]
                crate::steps::add(plain);
                if plain > 0 {
                    let (text, rest) = bytes.split_at_checked(plain).unwrap_or((bytes, &[]));
                    self.piece(text, sink)?;
                    bytes = rest;
                    continue;
                }
            }
            let is_one = self.looks_like_one(*byte);
            match self.state {
                State::Preamble | State::Part => self.text(*byte, is_one, sink)?,
                // In a head, or behind the last one, some look for more, and others don't.
                _ if is_one => return Err(MultipartError::Malformed.into()),
                State::Epilogue => self.around(&[*byte])?,
                _ => self.boundary(*byte, sink)?,
            }
            bytes = rest;
        }
        Ok(())
    }

    /// Ends the input.
    ///
    /// # Errors
    /// [`MultipartError::Malformed`] unless the last boundary was there.
    pub fn finish(&self) -> Result<(), MultipartError> {
        if self.state == State::Epilogue { Ok(()) } else { Err(MultipartError::Malformed) }
    }

    fn piece<E: From<MultipartError>>(&self, bytes: &[u8], sink: Sink<'_, E>) -> Result<(), E> {
        if self.state != State::Part {
            return Ok(self.around(bytes)?);
        }
        #[cfg(test)]
        crate::steps::add(bytes.len());
        if bytes.is_empty() { Ok(()) } else { sink(Event::Piece(bytes)) }
    }

    /// Bytes that are in no part.
    fn around(&self, bytes: &[u8]) -> Result<(), MultipartError> {
        let is_blank = bytes.iter().all(|b| b" \t\r\n".contains(b));
        if self.is_alone && !is_blank { Err(MultipartError::Malformed) } else { Ok(()) }
    }

    /// Whether two dashes and the boundary end with this byte, whatever is before them.
    fn looks_like_one(&mut self, byte: u8) -> bool {
        let mark = self.delimiter.get(LINE_END..).unwrap_or_default();
        self.bare = extended(mark, &self.borders, self.bare, byte);
        self.bare == mark.len()
    }

    fn text<E: From<MultipartError>>(&mut self, byte: u8, is_one: bool, sink: Sink<'_, E>) -> Result<(), E> {
        if self.delimiter.get(self.matched) == Some(&byte) {
            self.matched += 1;
            if self.matched == self.delimiter.len() {
                self.matched = 0;
                let ended = std::mem::replace(&mut self.state, State::Boundary);
                return if ended == State::Part { sink(Event::End) } else { Ok(()) };
            }
            return Ok(());
        }
        if is_one {
            return Err(MultipartError::Malformed.into());
        }
        // What looked like a boundary is text; of a virtual line end nothing was there.
        let matched = std::mem::replace(&mut self.matched, usize::from(byte == b'\r'));
        self.piece(self.delimiter.get(..matched).unwrap_or_default(), sink)?;
        if self.matched == 0 { self.piece(&[byte], sink) } else { Ok(()) }
    }

    fn boundary<E: From<MultipartError>>(&mut self, byte: u8, sink: Sink<'_, E>) -> Result<(), E> {
        self.state = match (self.state, byte) {
            (State::Boundary, b'-') => State::Dash,
            (State::Dash, b'-') => State::Epilogue,
            (State::Boundary | State::Padding, b' ' | b'\t') => State::Padding,
            (State::Boundary | State::Padding, b'\r') => State::LineEnd,
            (State::LineEnd, b'\n') => {
                self.parts += 1;
                if self.parts > PARTS_MAX {
                    return Err(MultipartError::PartsTooMany.into());
                }
                self.head.clear();
                State::Head
            }
            (State::Head, _) => return self.head(byte, sink),
            _ => return Err(MultipartError::Malformed.into()),
        };
        Ok(())
    }

    fn head<E: From<MultipartError>>(&mut self, byte: u8, sink: Sink<'_, E>) -> Result<(), E> {
        let after_cr = self.head.last() == Some(&b'\r');
        if after_cr != (byte == b'\n') || byte == 0 {
            return Err(MultipartError::Malformed.into());
        }
        if self.head.len() == HEAD_BYTES_MAX {
            return Err(MultipartError::HeadTooLarge.into());
        }
        self.head.push(byte);
        let is_whole = self.head == b"\r\n" || self.head.ends_with(b"\r\n\r\n");
        if !is_whole {
            return Ok(());
        }
        self.state = State::Part;
        // Some take the line end of the head for that of a boundary which follows at once, and some don't: refused.
        self.matched = 0;
        let head = std::mem::take(&mut self.head);
        sink(Event::Begin(head.strip_suffix(b"\r\n").unwrap_or(&head)))
    }
}

/// How much of `mark` the last bytes are once `byte` comes, of which they were `matched` before.
fn extended(mark: &[u8], borders: &[usize], mut matched: usize, byte: u8) -> usize {
    loop {
        #[cfg(test)]
        crate::steps::add(1);
        if mark.get(matched) == Some(&byte) {
            return matched + 1;
        }
        if matched == 0 {
            return 0;
        }
        matched = borders.get(matched - 1).copied().unwrap_or_default();
    }
}

fn borders(mark: &[u8]) -> Vec<usize> {
    let mut borders = Vec::with_capacity(mark.len());
    for byte in mark {
        let border = match borders.last() {
            Some(last) => extended(mark, &borders, *last, *byte),
            None => 0,
        };
        borders.push(border);
    }
    borders
}
