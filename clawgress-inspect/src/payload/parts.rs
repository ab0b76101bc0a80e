//! Parts of a form, as what they say of a call of a model: texts, and documents where the form may have some. Must never take for a text
//! what begins like a document where one belongs, but where none can be: it breaks before it says anything, and no reader goes on there,
//! however lenient (Ruby's, Jackson's, Gson's, Json.NET's, of JSON5 and of YAML).

use super::json::{Event as JsonEvent, Json, JsonError, Kind};
use super::multipart::Event;
use super::{Tally, Unreadable};

/// Bytes by which a document that nobody says to be one has broken off, or has some text: `[1] see there`, `{name}`.
const DOUBT_BYTES_MAX: usize = 64;
/// Bytes by which what has broken off has shown that no reader goes on.
const BROKEN_BYTES_MAX: usize = 512;

/// What the part at hand is of a call.
#[derive(Debug)]
pub(super) enum Part {
    Nothing,
    /// A text, a word or a file.
    Text,
    /// A document, if its first byte says so, which did not come yet; and whether it is said to be one.
    Begun {
        is_said: bool,
    },
    /// What begins like a document, of which nothing came but numbers and signs.
    Doubtful(Box<Doubt>),
    Document(Box<Json>),
}

/// What may be a document.
#[derive(Debug)]
pub(super) struct Doubt {
    held: Vec<u8>,
    json: Json,
    /// What is behind the byte that can't be JSON.
    broken: Option<Broken>,
}

/// What can't be JSON, as a lenient reader goes through it.
#[derive(Debug)]
struct Broken {
    depth: u32,
    /// Whether what is read is an array's, which words alone are no members of.
    in_array: bool,
    /// The byte before, if it was of a word, and what it was.
    word: Option<u8>,
}

/// What became of it.
enum Settled {
    Text,
    Document,
}

// === impl Doubt ===

impl Doubt {
    fn new() -> Doubt {
        Doubt { held: Vec::new(), json: Json::new(false), broken: None }
    }

    /// Takes what comes next, and how much of it was looked at; what it is, once that is known, whatever pieces it comes in.
    fn push(&mut self, bytes: &[u8]) -> (usize, Option<Settled>) {
        let mut taken = 0;
        let mut settled = None;
        if self.broken.is_none() {
            let first = self.hold(bytes, DOUBT_BYTES_MAX);
            taken = first.len();
            let mut has_text = false;
            let read = self.json.push::<JsonError>(first, &mut |event| {
                has_text |= matches!(event, JsonEvent::Begin(Kind::Key | Kind::Text));
                Ok(())
            });
            settled = match read {
                // Servers may read as far as it goes.
                _ if has_text => Some(Settled::Document),
                Ok(()) => (self.held.len() == DOUBT_BYTES_MAX).then_some(Settled::Document),
                Err(_) => {
                    let mut broken =
                        Broken { depth: self.json.depth(), in_array: !self.json.in_object(), word: None };
                    let settled = broken.push(self.json.left(first));
                    self.broken = Some(broken);
                    settled
                }
            };
        }
        if settled.is_none() && self.broken.is_some() {
            let more = self.hold(bytes.get(taken..).unwrap_or_default(), BROKEN_BYTES_MAX);
            taken += more.len();
            let is_full = self.held.len() == BROKEN_BYTES_MAX;
            settled = self.broken.as_mut().and_then(|broken| broken.push(more));
            settled = settled.or(is_full.then_some(Settled::Document));
        }
        (taken, settled)
    }

    /// Holds what comes next, of so many bytes in all; as much of it as that is.
    fn hold<'a>(&mut self, bytes: &'a [u8], max: usize) -> &'a [u8] {
        let room = max.saturating_sub(self.held.len());
        let first = bytes.get(..room.min(bytes.len())).unwrap_or_default();
        self.held.extend_from_slice(first);
        first
    }

    /// Nothing more comes.
    fn ends(mut self, tally: &mut Tally) -> Result<(), Unreadable> {
        if self.json.finish::<JsonError>(&mut |_| Ok(())).is_err() {
            tally.of_call_is_text()?;
            tally.of_call(JsonEvent::Piece(&self.held))?;
            return tally.of_call(JsonEvent::End);
        }
        let mut json = Json::new(false);
        json.push(&self.held, &mut |event| tally.of_call(event))?;
        json.finish(&mut |event| tally.of_call(event))
    }
}

// === impl Broken ===

impl Broken {
    /// Takes what comes next; what it is, once that is known.
    fn push(&mut self, bytes: &[u8]) -> Option<Settled> {
        bytes.iter().find_map(|byte| self.byte(*byte))
    }

    fn byte(&mut self, byte: u8) -> Option<Settled> {
        let word = self.word.take();
        match byte {
            // What is behind the end is not of it, and nothing was before.
            _ if self.depth == 0 => return Some(Settled::Text),
            b'}' | b']' if self.depth <= 1 => return Some(Settled::Text),
            b'}' | b']' => (self.depth, self.in_array) = (self.depth - 1, false),
            b' ' | b'\t' | b'\r' | b'\n' | b',' | b';' => {}
            // A comment, from which nobody knows where it goes on.
            b'#' => return Some(Settled::Document),
            b'/' | b'*' if word == Some(b'/') => return Some(Settled::Document),
            // A document within, or a text.
            b'{' | b'[' | b'"' => return Some(Settled::Document),
            b'\'' | b'`' if word.is_none() => return Some(Settled::Document),
            // A member's name has ended.
            b':' | b'=' if !self.in_array => return Some(Settled::Document),
            0..=0x1f => return Some(Settled::Document),
            byte => self.word = Some(byte),
        }
        None
    }
}

// === impl Part ===

impl Part {
    /// Takes what comes next of the form.
    ///
    /// # Errors
    /// Why what it asks for can't be known.
    pub(super) fn next(&mut self, event: Event<'_>, tally: &mut Tally) -> Result<(), Unreadable> {
        match event {
            Event::Begin(head) => {
                *self = tally.of_call_begins(head)?;
                Ok(())
            }
            Event::Piece(bytes) => self.piece(bytes, tally),
            Event::End => match std::mem::replace(self, Part::Nothing) {
                Part::Nothing => Ok(()),
                Part::Text => tally.of_call(JsonEvent::End),
                Part::Begun { .. } => {
                    tally.of_call_is_text()?;
                    tally.of_call(JsonEvent::End)
                }
                Part::Doubtful(doubt) => doubt.ends(tally),
                Part::Document(mut json) => json.finish(&mut |event| tally.of_call(event)),
            },
        }
    }

    fn piece(&mut self, bytes: &[u8], tally: &mut Tally) -> Result<(), Unreadable> {
        let mut rest = bytes;
        if let Part::Begun { is_said } = *self {
            // Blanks, and a byte order mark.
            let blanks = |b: &&u8| b.is_ascii_whitespace() || matches!(**b, 0xef | 0xbb | 0xbf);
            let skipped = rest.iter().take_while(blanks).count();
            rest = rest.get(skipped..).unwrap_or_default();
            match rest.first() {
                None => return Ok(()),
                Some(b'{' | b'[') if is_said => *self = Part::Document(Box::new(Json::new(false))),
                Some(b'{' | b'[') => *self = Part::Doubtful(Box::new(Doubt::new())),
                Some(_) => {
                    tally.of_call_is_text()?;
                    *self = Part::Text;
                }
            }
        }
        if let Part::Doubtful(doubt) = self {
            let (taken, settled) = doubt.push(rest);
            let Some(settled) = settled else { return Ok(()) };
            let held = std::mem::take(&mut doubt.held);
            rest = rest.get(taken..).unwrap_or_default();
            *self = match settled {
                Settled::Document => Part::Document(Box::new(Json::new(false))),
                Settled::Text => {
                    tally.of_call_is_text()?;
                    Part::Text
                }
            };
            self.value(&held, tally)?;
        }
        self.value(rest, tally)
    }

    /// Takes some of what it is.
    fn value(&mut self, rest: &[u8], tally: &mut Tally) -> Result<(), Unreadable> {
        match self {
            Part::Nothing | Part::Begun { .. } | Part::Doubtful(_) => Ok(()),
            Part::Text => tally.of_call(JsonEvent::Piece(rest)),
            Part::Document(json) => json.push(rest, &mut |event| tally.of_call(event)),
        }
    }
}
