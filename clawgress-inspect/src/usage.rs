//! Token usage from model providers' responses, as they stream by: JSON documents and server-sent
//! events of the OpenAI shape (chat completions, responses) and of the Anthropic shape.
//!
//! Works in constant memory and must never alter, hold back or buffer the bytes it is shown. What it
//! can't read with certainty it doesn't report: usage is then unknown, not zero.

use crate::usage::json::{Scanner, Status};

mod json;

/// How the response is delimited.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// One JSON document (RFC 8259).
    Json,
    /// Server-sent events whose data are JSON documents (WHATWG HTML section 9.2).
    EventStream,
}

impl Format {
    /// The format of a `Content-Type`, if it is one of ours.
    #[must_use]
    pub fn of(content_type: &str) -> Option<Format> {
        let media = content_type.split(';').next().unwrap_or_default().trim();
        if media.eq_ignore_ascii_case("text/event-stream") {
            Some(Format::EventStream)
        } else if media.eq_ignore_ascii_case("application/json") {
            Some(Format::Json)
        } else {
            None
        }
    }
}

/// What a provider reported.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Model, if the response named it.
    pub model: Option<String>,
    /// Tokens of the prompt.
    pub input: u64,
    /// Tokens of the completion.
    pub output: u64,
}

/// Facts found so far; later ones replace earlier ones, because streamed counts are cumulative.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Facts {
    model: Option<String>,
    input: Option<u64>,
    output: Option<u64>,
}

/// Reads usage from one response body.
#[derive(Debug)]
pub struct Extractor {
    format: Format,
    facts: Facts,
    scanner: Scanner,
    line: Line,
    /// Whether the last byte was a CR, whose LF belongs to the same line end.
    after_cr: bool,
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

const DATA: &[u8] = b"data:";

// === impl Extractor ===

impl Extractor {
    /// For a response of this format.
    #[must_use]
    pub fn new(format: Format) -> Self {
        Extractor {
            format,
            facts: Facts::default(),
            scanner: Scanner::default(),
            line: Line::Field(0),
            after_cr: false,
        }
    }

    /// Looks at the next bytes of the body, in any segmentation.
    pub fn push(&mut self, bytes: &[u8]) {
        for byte in bytes {
            match self.format {
                Format::Json => self.scanner.push(*byte),
                Format::EventStream => self.event_byte(*byte),
            }
        }
    }

    /// What was reported; `None` unless both counts were found in whole, well-formed documents.
    #[must_use]
    pub fn finish(mut self) -> Option<Usage> {
        // An event that no empty line ended is to be discarded (WHATWG HTML section 9.2.6).
        if self.format == Format::Json {
            self.commit();
        }
        Some(Usage { model: self.facts.model, input: self.facts.input?, output: self.facts.output? })
    }

    fn event_byte(&mut self, byte: u8) {
        if std::mem::replace(&mut self.after_cr, byte == b'\r') && byte == b'\n' {
            return;
        }
        if matches!(byte, b'\r' | b'\n') {
            if self.line == Line::Field(0) {
                self.commit();
            } else if matches!(self.line, Line::Space | Line::Data) {
                // Lines of data are joined by a line feed, which JSON takes for blank.
                self.scanner.push(b'\n');
            }
            self.line = Line::Field(0);
            return;
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
                    self.scanner.push(byte);
                }
            }
            Line::Data => self.scanner.push(byte),
            Line::Other => {}
        }
    }

    /// Takes over what a document said, if it was one whole document.
    fn commit(&mut self) {
        let scanner = std::mem::take(&mut self.scanner);
        if scanner.status() == Status::Whole {
            let found = scanner.into_facts();
            self.facts.model = found.model.or(self.facts.model.take());
            self.facts.input = found.input.or(self.facts.input);
            self.facts.output = found.output.or(self.facts.output);
        }
    }
}

#[cfg(test)]
mod tests;
