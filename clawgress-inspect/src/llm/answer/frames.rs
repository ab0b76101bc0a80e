//! Responses to their documents: server-sent events, lines, and frames of Amazon's. Must never take for whole what is not.

use super::Format;
use super::document::Document;

/// Most bytes of one of Amazon's frames: its own limit is 16 MiB.
const FRAME_BYTES_MAX: u32 = 16 * 1024 * 1024;
/// Most bytes of a frame's headers, of which the kind of message is one.
const HEADERS_BYTES_MAX: u32 = 128 * 1024;
/// Bytes of headers that are kept: their kinds come first.
const HEADERS_KEPT: usize = 1024;
const DATA: &[u8] = b"data:";
/// What a frame of Amazon's begins with: its length, that of its headers, and a checksum of both.
pub(crate) const PRELUDE_BYTES: usize = 12;
/// The checksum at its end.
const CHECKSUM_BYTES: u32 = 4;

/// Where in a response the next byte is.
#[derive(Debug)]
pub(super) enum Frames {
    Json,
    Events(Events),
    Lines,
    Amazon(Amazon),
}

/// Of an event stream.
#[derive(Debug)]
pub(super) struct Events {
    line: Line,
    /// Whether the last byte was a CR, whose LF belongs to the same line end; and whether that ended an event.
    after_cr: bool,
    has_ended: bool,
}

/// Where in a line of an event stream the next byte is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Line {
    /// This many bytes of `data:` have been seen.
    Field(usize),
    /// Right after `data:`, where one space is not data.
    Space,
    /// In data.
    Data,
    /// In a line of another field.
    Other,
}

/// Of frames of Amazon's.
#[derive(Debug)]
pub(super) struct Amazon {
    /// What came of the prelude, or of the headers.
    head: Vec<u8>,
    state: Frame,
}

#[derive(Clone, Copy, Debug)]
enum Frame {
    Prelude,
    Headers {
        left: u32,
        payload: u32,
    },
    Payload {
        left: u32,
    },
    Checksum {
        left: u32,
    },
    /// Out of step: nothing more is read.
    Broken,
}

/// What is told that a document has ended.
type Ends<'a> = &'a mut dyn FnMut(&mut Document);

// === impl Frames ===

impl Frames {
    pub(super) fn new(format: Format) -> Frames {
        match format {
            Format::Json => Frames::Json,
            Format::EventStream => {
                Frames::Events(Events { line: Line::Field(0), after_cr: false, has_ended: false })
            }
            Format::Lines => Frames::Lines,
            Format::Amazon => Frames::Amazon(Amazon { head: Vec::new(), state: Frame::Prelude }),
        }
    }

    /// Whether documents follow one another, so that what is whole need not be all.
    pub(super) fn is_stream(&self) -> bool {
        !matches!(self, Frames::Json)
    }

    /// Whether it is out of step, so that nobody knows where a document ends.
    pub(super) fn is_lost(&self) -> bool {
        matches!(self, Frames::Amazon(Amazon { state: Frame::Broken, .. }))
    }

    /// Reads what comes next, no further than the end of a document: how many bytes that is, and whether they end one.
    pub(super) fn step(&mut self, bytes: &[u8], document: &mut Document, ends: Ends<'_>) -> (usize, bool) {
        match self {
            Frames::Json => {
                document.push(bytes);
                (bytes.len(), false)
            }
            Frames::Events(events) => events.step(bytes, document, ends),
            Frames::Lines => {
                let at = memchr::memchr(b'\n', bytes).map(|at| at + 1);
                document.push(at.and_then(|at| bytes.get(..at)).unwrap_or(bytes));
                if at.is_some() {
                    end(document, ends);
                }
                (at.unwrap_or(bytes.len()), at.is_some())
            }
            Frames::Amazon(amazon) => amazon.step(bytes, document, ends),
        }
    }

    /// Reads all that comes next.
    pub(super) fn push(&mut self, mut bytes: &[u8], document: &mut Document, ends: Ends<'_>) {
        while !bytes.is_empty() {
            let (n, _) = self.step(bytes, document, ends);
            bytes = bytes.get(n..).unwrap_or_default();
        }
    }

    pub(super) fn finish(&mut self, document: &mut Document, ends: Ends<'_>) {
        match self {
            Frames::Json | Frames::Lines => end(document, ends),
            // An event that no empty line ended is to be discarded (WHATWG HTML section 9.2.6), and some clients take it: what
            // it asks for counts, what it counts does not.
            Frames::Events(_) | Frames::Amazon(_) => {
                document.finish();
                document.forget_counts();
                if !document.is_blank() {
                    ends(document);
                }
                document.again();
            }
        }
    }
}

fn end(document: &mut Document, ends: Ends<'_>) {
    document.finish();
    ends(document);
    document.again();
}

// === impl Events ===

impl Events {
    fn step(&mut self, mut bytes: &[u8], document: &mut Document, ends: Ends<'_>) -> (usize, bool) {
        let all = bytes.len();
        while let Some((byte, rest)) = bytes.split_first() {
            if matches!(self.line, Line::Data | Line::Other) {
                self.after_cr = false;
                let plain = memchr::memchr2(b'\r', b'\n', bytes).unwrap_or(bytes.len());
                let (now, later) = bytes.split_at_checked(plain).unwrap_or((bytes, &[]));
                if self.line == Line::Data {
                    document.push(now);
                }
                if plain > 0 {
                    bytes = later;
                    continue;
                }
            }
            bytes = rest;
            if self.byte(*byte, document, ends) {
                return (all - rest.len(), true);
            }
        }
        (all, false)
    }

    /// Whether an event ends with it.
    fn byte(&mut self, byte: u8, document: &mut Document, ends: Ends<'_>) -> bool {
        if std::mem::replace(&mut self.after_cr, byte == b'\r') && byte == b'\n' {
            return self.has_ended;
        }
        self.has_ended = false;
        if matches!(byte, b'\r' | b'\n') {
            if self.line == Line::Field(0) {
                end(document, ends);
                self.has_ended = true;
            } else if matches!(self.line, Line::Space | Line::Data) {
                // Lines of data are joined by a line feed, which JSON takes for blank.
                document.push(b"\n");
            }
            self.line = Line::Field(0);
            return self.has_ended;
        }
        match self.line {
            Line::Field(n) => {
                self.line = match DATA.get(n) {
                    Some(b) if *b == byte && n + 1 == DATA.len() => Line::Space,
                    Some(b) if *b == byte => Line::Field(n + 1),
                    _ => Line::Other,
                }
            }
            Line::Space => {
                self.line = Line::Data;
                if byte != b' ' {
                    document.push(&[byte]);
                }
            }
            Line::Data => document.push(&[byte]),
            Line::Other => {}
        }
        false
    }
}

// === impl Amazon ===

impl Amazon {
    fn step(&mut self, mut bytes: &[u8], document: &mut Document, ends: Ends<'_>) -> (usize, bool) {
        let all = bytes.len();
        while !bytes.is_empty() {
            let wanted = match self.state {
                Frame::Prelude => PRELUDE_BYTES - self.head.len(),
                Frame::Headers { left, .. } | Frame::Payload { left } | Frame::Checksum { left } => {
                    usize::try_from(left).unwrap_or(usize::MAX)
                }
                Frame::Broken => break,
            };
            let (now, later) = bytes.split_at_checked(wanted).unwrap_or((bytes, &[]));
            bytes = later;
            self.part(now, document, ends);
            if matches!(self.state, Frame::Prelude) && self.head.is_empty() {
                return (all - bytes.len(), true);
            }
        }
        (all, false)
    }

    fn part(&mut self, now: &[u8], document: &mut Document, ends: Ends<'_>) {
        let taken = u32::try_from(now.len()).unwrap_or(u32::MAX);
        match &mut self.state {
            Frame::Prelude => {
                self.head.extend_from_slice(now);
                if self.head.len() == PRELUDE_BYTES {
                    self.state = prelude(&self.head);
                    self.head.clear();
                    self.skip_empty(document, ends);
                }
            }
            Frame::Headers { left, .. } => {
                let room = HEADERS_KEPT.saturating_sub(self.head.len());
                self.head.extend_from_slice(now.get(..room.min(now.len())).unwrap_or_default());
                *left -= taken;
                self.skip_empty(document, ends);
            }
            Frame::Payload { left } => {
                document.push(now);
                *left -= taken;
                self.skip_empty(document, ends);
            }
            Frame::Checksum { left } => {
                *left -= taken;
                self.skip_empty(document, ends);
            }
            Frame::Broken => {}
        }
    }

    /// Goes on to what has any bytes.
    fn skip_empty(&mut self, document: &mut Document, ends: Ends<'_>) {
        if let Frame::Headers { left: 0, payload } = self.state {
            if let Some(kind) = exception(&self.head) {
                document.fails(kind);
            }
            self.head.clear();
            self.state = Frame::Payload { left: payload };
        }
        if let Frame::Payload { left: 0 } = self.state {
            self.state = Frame::Checksum { left: CHECKSUM_BYTES };
        }
        if let Frame::Checksum { left: 0 } = self.state {
            end(document, ends);
            self.state = Frame::Prelude;
        }
    }
}

/// Whether a frame of Amazon's begins so: by its lengths, and their checksum.
pub(crate) fn is_prelude(head: &[u8]) -> bool {
    head.get(..PRELUDE_BYTES).is_some_and(|head| matches!(prelude(head), Frame::Headers { .. }))
}

fn prelude(head: &[u8]) -> Frame {
    let number = |at: usize| {
        head.get(at..at + 4).and_then(|b| b.try_into().ok()).map(u32::from_be_bytes).unwrap_or_default()
    };
    let (total, headers, checksum) = (number(0), number(4), number(8));
    let mut sum = flate2::Crc::new();
    sum.update(head.get(..8).unwrap_or_default());
    let around = u32::try_from(PRELUDE_BYTES).unwrap_or_default() + CHECKSUM_BYTES;
    let payload = total.checked_sub(around).and_then(|rest| rest.checked_sub(headers));
    match payload {
        Some(payload)
            if sum.sum() == checksum && total <= FRAME_BYTES_MAX && headers <= HEADERS_BYTES_MAX =>
        {
            Frame::Headers { left: headers, payload }
        }
        _ => Frame::Broken,
    }
}

/// The type of the exception that a frame is, by its headers.
fn exception(mut headers: &[u8]) -> Option<&str> {
    /// Strings, by their number in the headers.
    const STRING: u8 = 7;
    let mut kind = None;
    let mut is_exception = false;
    while let Some((length, rest)) = headers.split_first() {
        let (name, rest) = rest.split_at_checked(usize::from(*length))?;
        let (tag, rest) = rest.split_first()?;
        if *tag != STRING {
            // Kinds are strings, and come first.
            break;
        }
        let (length, rest) = rest.split_first_chunk::<2>()?;
        let (value, rest) = rest.split_at_checked(usize::from(u16::from_be_bytes(*length)))?;
        match name {
            b":message-type" => is_exception = matches!(value, b"exception" | b"error"),
            b":exception-type" | b":error-code" => kind = std::str::from_utf8(value).ok(),
            _ => {}
        }
        headers = rest;
    }
    kind.filter(|_| is_exception)
}
