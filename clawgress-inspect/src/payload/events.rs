//! Streams of events (WHATWG HTML section 9.2.6) as they stream by: the data of each, read as the document or heard as the text that
//! it is, whatever lines it comes in. Must never refuse an event that is no document: who looks at the bytes has seen it.

use super::fields::Fields;
use super::hearing::Lane;
use super::json::Json;
use super::layer::{Place, of_json};
use super::names::Names;
use super::{Tally, Unreadable};

const DATA: &[u8] = b"data:";

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

/// What the data of the event at hand is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Data {
    /// Nothing but blanks has come.
    Nothing,
    Json,
    Text,
    /// What looked like a document, and is none.
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
            Data::Text => self.fields.push(bytes, place, tally),
            Data::Json => {
                let (fields, names) = (&mut self.fields, &mut self.names);
                let read = self.json.push(bytes, &mut |event| {
                    of_json(event, (&mut *fields, &mut *names), false, place, tally)
                });
                self.forgive(read, tally)
            }
            Data::Nothing | Data::Broken => Ok(()),
        }
    }

    /// Ends an event. One that no empty line ended is looked at like any other, since some clients take it.
    pub(super) fn end(&mut self, place: Place, tally: &mut Tally) -> Result<(), Unreadable> {
        let ended = if self.data == Data::Json {
            let (fields, names) = (&mut self.fields, &mut self.names);
            let read = self
                .json
                .finish(&mut |event| of_json(event, (&mut *fields, &mut *names), false, place, tally));
            self.forgive(read, tally)
        } else {
            Ok(())
        };
        let ended = ended.and_then(|()| self.fields.end(tally));
        if self.data != Data::Nothing {
            self.json.again();
            (self.data, self.names) = (Data::Nothing, Names::default());
        }
        if let Some(before) = self.before.take() {
            tally.fields = before;
        }
        ended
    }

    /// What is no document is text, as far as it came.
    fn forgive(&mut self, read: Result<(), Unreadable>, tally: &mut Tally) -> Result<(), Unreadable> {
        match read {
            Err(Unreadable::JsonMalformed) => {
                self.data = Data::Broken;
                self.fields.end(tally)
            }
            read => read,
        }
    }
}
