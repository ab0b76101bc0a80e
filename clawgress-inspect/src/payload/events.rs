//! Streams of events (WHATWG HTML section 9.2.6) as they stream by: the data of each, read as the document or heard as the text that
//! it is, whatever lines it comes in. Must never refuse an event that is no document: who looks at the bytes has seen it.

use super::fields::Fields;
use super::hearing::Lane;
use super::json::{Event, Json, Kind};
use super::layer::{Place, of_json};
use super::names::Names;
use super::{Tally, Unreadable};

const DATA: &[u8] = b"data:";
/// Longest word of a document that begins a text where the document breaks behind it, bytes: what is longer, is none of an order.
const WORD_BYTES_MAX: usize = 32;

/// The stream.
#[derive(Debug)]
pub(super) struct Events {
    line: Line,
    /// Whether anything but a mark of byte order has come.
    has_begun: bool,
    /// Whether the last byte was a CR, whose LF belongs to the same line end.
    after_cr: bool,
    data: Data,
    json: Json,
    fields: Fields,
    names: Names,
    /// The word that was read last, if nothing but blanks came behind it.
    word: Word,
    /// Fields of all before the event at hand: one event is bounded as a body is, since a stream may last for days.
    before: Option<u64>,
}

/// Where in a line the next byte is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Line {
    /// This many bytes of `data:` have been seen.
    Field(usize),
    /// Right after `data:`, where one space is not data.
    Space,
    Data,
    /// In a line of another field.
    Other,
}

/// The beginning of a word.
#[derive(Clone, Copy, Debug, Default)]
struct Word {
    bytes: [u8; WORD_BYTES_MAX],
    count: usize,
    is_at_hand: bool,
}

/// What the data of the event at hand is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Data {
    /// Nothing but blanks has come.
    Nothing,
    Json,
    Text,
    /// What looked like a document, and is none: from there on, text.
    Broken,
}

// === impl Events ===

impl Events {
    /// One whose texts are heard in that lane.
    pub(super) fn new(lane: Lane) -> Events {
        Events {
            line: Line::Field(0),
            has_begun: false,
            after_cr: false,
            data: Data::Nothing,
            json: Json::new(true),
            fields: Fields::heard_in(Some(lane)),
            names: Names::default(),
            word: Word::default(),
            before: None,
        }
    }

    pub(super) fn memory_bytes(&self) -> usize {
        size_of::<Events>() + self.json.memory_bytes() + self.fields.memory_bytes()
    }

    /// Reads what comes next.
    pub(super) fn push(
        &mut self,
        mut bytes: &[u8],
        place: Place,
        tally: &mut Tally,
    ) -> Result<(), Unreadable> {
        while let Some((byte, rest)) = bytes.split_first() {
            if matches!(self.line, Line::Data | Line::Other) {
                let plain = memchr::memchr2(b'\r', b'\n', bytes).unwrap_or(bytes.len());
                let (now, later) = bytes.split_at_checked(plain).unwrap_or((bytes, &[]));
                if plain > 0 {
                    if self.line == Line::Data {
                        self.data(now, place, tally)?;
                    }
                    bytes = later;
                    continue;
                }
            }
            bytes = rest;
            self.byte(*byte, place, tally)?;
        }
        Ok(())
    }

    fn byte(&mut self, byte: u8, place: Place, tally: &mut Tally) -> Result<(), Unreadable> {
        if std::mem::replace(&mut self.after_cr, byte == b'\r') && byte == b'\n' {
            return Ok(());
        }
        if !self.has_begun && matches!(byte, 0xef | 0xbb | 0xbf) {
            return Ok(());
        }
        self.has_begun = true;
        if matches!(byte, b'\r' | b'\n') {
            return match std::mem::replace(&mut self.line, Line::Field(0)) {
                Line::Field(0) => self.end(place, tally),
                // Lines of data are joined by a line feed.
                Line::Space | Line::Data => self.data(b"\n", place, tally),
                Line::Field(_) | Line::Other => Ok(()),
            };
        }
        let (line, data) = match self.line {
            Line::Field(n) if DATA.get(n) == Some(&byte) => {
                (if n + 1 == DATA.len() { Line::Space } else { Line::Field(n + 1) }, None)
            }
            Line::Field(_) | Line::Other => (Line::Other, None),
            Line::Space => (Line::Data, Some(byte).filter(|byte| *byte != b' ')),
            Line::Data => (Line::Data, Some(byte)),
        };
        self.line = line;
        data.map_or(Ok(()), |byte| self.data(&[byte], place, tally))
    }

    /// Some of an event's data.
    fn data(&mut self, bytes: &[u8], place: Place, tally: &mut Tally) -> Result<(), Unreadable> {
        let mut bytes = bytes;
        if self.data == Data::Nothing {
            bytes = bytes.trim_ascii_start();
            let Some(first) = bytes.first() else { return Ok(()) };
            self.data = if matches!(first, b'{' | b'[' | b'"') { Data::Json } else { Data::Text };
            self.before.get_or_insert(tally.fields);
            if self.data == Data::Text {
                tally.has_fields(1)?;
                self.fields.begin(tally);
            }
        }
        match self.data {
            Data::Text | Data::Broken => self.fields.push(bytes, place, tally),
            Data::Json => {
                let (fields, names, word) = (&mut self.fields, &mut self.names, &mut self.word);
                let read = self.json.push(bytes, &mut |event| {
                    word.watch(event);
                    of_json(event, (&mut *fields, &mut *names), false, place, tally)
                });
                match read {
                    Err(Unreadable::JsonMalformed) => self.breaks(self.json.left(bytes), place, tally),
                    read => read,
                }
            }
            Data::Nothing => Ok(()),
        }
    }

    /// What is no document is text: the string that it breaks in goes on, and so does the word before it.
    fn breaks(&mut self, left: &[u8], place: Place, tally: &mut Tally) -> Result<(), Unreadable> {
        self.data = Data::Broken;
        if !self.fields.has_begun() {
            tally.has_fields(1)?;
            self.fields.begin(tally);
            if let Some(word) = self.word.take() {
                self.fields.push(word, place, tally)?;
                self.fields.push(b" ", place, tally)?;
            }
        }
        self.fields.push(left, place, tally)
    }

    /// Ends an event. One that no empty line ended is looked at like any other, since some clients take it.
    pub(super) fn end(&mut self, place: Place, tally: &mut Tally) -> Result<(), Unreadable> {
        let ended = if self.data == Data::Json {
            let (fields, names) = (&mut self.fields, &mut self.names);
            let read = self
                .json
                .finish(&mut |event| of_json(event, (&mut *fields, &mut *names), false, place, tally));
            // As far as it came.
            match read {
                Err(Unreadable::JsonMalformed) => Ok(()),
                read => read,
            }
        } else {
            Ok(())
        };
        let ended = ended.and_then(|()| self.fields.end(tally));
        if self.data != Data::Nothing {
            self.json.again();
            (self.data, self.names, self.word) = (Data::Nothing, Names::default(), Word::default());
        }
        if let Some(before) = self.before.take() {
            tally.fields = before;
        }
        ended
    }
}

// === impl Word ===

impl Word {
    #[inline]
    fn watch(&mut self, event: Event<'_>) {
        match event {
            Event::Begin(Kind::Word) => (self.count, self.is_at_hand) = (0, true),
            Event::Piece(bytes) if self.is_at_hand => {
                let room = self.bytes.get_mut(self.count.min(WORD_BYTES_MAX)..).unwrap_or_default();
                room.iter_mut().zip(bytes).for_each(|(to, from)| *to = *from);
                self.count += bytes.len();
            }
            Event::Piece(_) => {}
            Event::End if self.is_at_hand => self.is_at_hand = false,
            Event::End | Event::Begin(_) | Event::Open { .. } | Event::Close => self.count = 0,
        }
    }

    fn take(&mut self) -> Option<&[u8]> {
        let count = std::mem::take(&mut self.count);
        self.bytes.get(..count).filter(|word| !word.is_empty())
    }
}
