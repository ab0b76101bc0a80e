//! Bodies, as they stream by: content codings taken off, multipart, JSON and forms read to their fields, and detectors on
//! all of it.
//!
//! What is found, and what can't be read, never depends on the pieces a body comes in. Memory is bounded by the windows of
//! the codings, which [`Inspector::memory_bytes`] tells. Must never change or keep the bytes it is shown, and never call
//! readable what a server could read otherwise: who asks about content denies that.

use std::collections::BTreeSet;
use std::sync::Arc;

pub mod coding;
mod detect;
mod disguise;
mod events;
mod fields;
mod finding;
pub mod head;
mod hearing;
pub mod json;
mod layer;
mod media;
pub mod multipart;
mod names;
mod opening;
mod parts;
mod personal;

pub use coding::Coding;
pub(crate) use disguise::CODES_MAX;
pub use finding::Finding;
use hearing::{Hearing, looks_at};
use json::{Event, JsonError};
use layer::Layer;
pub use media::{Claims, Seen};
use multipart::MultipartError;
pub use names::NAME_BYTES_MAX;
use opening::Opening;
use parts::Part;

use crate::encoded::split;
use crate::llm::{CallError, Field, Provenance, Request, Surface};
use crate::prompt::{Assessment, Detector, Rules};
use crate::tool;

/// Codings inside one another that are taken off: a file that was packed, sent as a body that is.
pub const CODINGS_MAX: u8 = 3;
/// Levels of parts, fields and documents inside one another that are looked into.
pub const LEVELS_MAX: u8 = 8;
/// Most fields of one body, in all its documents: each costs the worker more than its bytes do, and a coding makes many of
/// few. The largest batches of vectors that APIs take are within.
pub const FIELDS_MAX: u64 = 1 << 22;
/// What an inspector takes besides its decoders, bytes: heads of parts, and boxes.
const OWN_BYTES: usize = 16 * 1024;

/// Why a body can't be read with certainty.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unreadable {
    /// More than one media type, or coding of it; or one that is none.
    #[error("its Content-Type says more than one thing, or nothing")]
    ClaimAmbiguous,
    /// A charset whose letters are not at ASCII's places.
    #[error("its charset is none that extends ASCII")]
    Charset,
    /// A coding that is not known.
    #[error("its Content-Encoding is none of gzip, deflate, br and zstd")]
    CodingUnknown,
    /// More than one coding.
    #[error("it has more than one Content-Encoding")]
    CodingStacked,
    /// Not what its coding has, or not whole.
    #[error("it is not what its Content-Encoding says")]
    CodingMalformed,
    /// A window larger than the caps.
    #[error("its Content-Encoding needs too large a window")]
    WindowTooLarge,
    /// It comes to more bytes than the caps allow.
    #[error("it comes to too many bytes when it is decoded")]
    TooLarge,
    /// It comes to more bytes for each of its own than the caps allow.
    #[error("it comes to too many bytes for its size when it is decoded")]
    RatioTooLarge,
    /// More than [`coding::MEMBERS_MAX`] members of gzip or frames of zstd, in all its codings.
    #[error("its Content-Encoding has too many members or frames")]
    MembersTooMany,
    /// More than [`FIELDS_MAX`] parts, strings and words.
    #[error("it has too many parts or fields")]
    FieldsTooMany,
    /// More than [`CODINGS_MAX`] codings inside one another.
    #[error("it is packed too often")]
    NestingTooDeep,
    /// It is said to be JSON, and is not.
    #[error("it is no sound JSON")]
    JsonMalformed,
    /// More levels than are followed.
    #[error("its JSON has too many levels")]
    JsonTooDeep,
    /// It is said to be multipart, and is not, or parsers would disagree about it.
    #[error("it is no sound multipart body")]
    MultipartMalformed,
    /// The head of a part is not sound.
    #[error("the head of one of its parts is not sound")]
    PartMalformed,
    /// A part in a transfer encoding.
    #[error("one of its parts has a Content-Transfer-Encoding that is not read")]
    PartCoded,
    /// It calls a model, and servers could read what it asks for in two ways.
    #[error("{0}")]
    Call(CallError),
}

/// Caps of what one body may come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Most bytes that all its codings together may come to.
    pub decoded_bytes_max: u64,
    /// Most bytes for each byte of a coding, beyond the first MiB.
    pub ratio_max: u64,
}

/// What is known of a body besides what was found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// Bytes as they were sent.
    pub bytes: u64,
    /// Bytes that its codings came to; 0 without any.
    pub decoded_bytes: u64,
    /// Parts, and strings and words of JSON, and fields of forms.
    pub fields: u64,
    /// Whether all of it was seen.
    pub complete: bool,
}

/// An inspector of one body.
#[derive(Debug)]
pub struct Inspector {
    layer: Layer,
    tally: Tally,
    bytes: u64,
    complete: bool,
    failed: Option<Unreadable>,
    /// What is said of its coding, which is taken off once it begins.
    coding: Option<Coding>,
    /// Whether it is said to be JSON.
    is_json: bool,
    opening: Opening,
}

/// What all layers of a body add up to.
#[derive(Debug)]
struct Tally {
    limits: Limits,
    findings: BTreeSet<Finding>,
    decoded_bytes: u64,
    fields: u64,
    members: u32,
    looked_bytes: u64,
    seen: Seen,
    /// Texts in other clothes, the first of them.
    pieces: Vec<split::Piece>,
    /// What reads it as a call of a model, if it may be one.
    call: Option<Box<Request>>,
    /// Whether it is one, by where it goes.
    is_call: bool,
    /// Whether parts of a form may be documents of it.
    has_parts: bool,
    /// What looks at its texts.
    prompt: Option<Box<Detector>>,
    /// What puts together the texts of what is no call, where they are looked at.
    heard: Option<Box<Hearing>>,
    /// Whether bytes that are said to be no text are heard like some.
    hears_bytes: bool,
    /// What reads it as messages to a tool server, if they may be some.
    messages: Option<Box<tool::Reader>>,
}

/// What a body is read as, besides what is in it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Readings {
    /// As a call of a model: one that it is by where it goes, to this surface, and has to be readable; or that it may turn out
    /// to be.
    pub call: Option<Option<Surface>>,
    /// As messages to a tool server: whether it goes to one that is known, and so is a document whatever is said of it.
    pub messages: Option<bool>,
    /// Whether where it goes tells that it is a call, whoever is asked: it may be one then, also where several documents are said to
    /// follow one another, since servers may not look at what is said.
    pub is_told: bool,
    /// Whether it is to a server that may take a form of parts, some of which are documents.
    pub has_parts: bool,
}

// === impl Unreadable ===

impl From<JsonError> for Unreadable {
    fn from(error: JsonError) -> Unreadable {
        match error {
            JsonError::Malformed => Unreadable::JsonMalformed,
            JsonError::TooDeep => Unreadable::JsonTooDeep,
        }
    }
}

impl From<MultipartError> for Unreadable {
    fn from(_: MultipartError) -> Unreadable {
        Unreadable::MultipartMalformed
    }
}

// === impl Tally ===

impl Tally {
    /// Begins anew, with the same readers.
    fn again(&mut self) {
        self.findings.clear();
        self.pieces.clear();
        (self.decoded_bytes, self.fields, self.members, self.looked_bytes) = (0, 0, 0, 0);
        self.seen = Seen::Nothing;
        self.call.iter_mut().for_each(|call| **call = Request::default());
        self.messages.iter_mut().for_each(|messages| **messages = tool::Reader::default());
        self.prompt.iter_mut().for_each(|prompt| prompt.again());
        self.heard.iter_mut().for_each(|heard| heard.again());
    }

    /// Counts fields.
    fn has_fields(&mut self, more: u64) -> Result<(), Unreadable> {
        self.fields += more;
        if self.fields > FIELDS_MAX { Err(Unreadable::FieldsTooMany) } else { Ok(()) }
    }

    /// Counts members and frames.
    fn has_members(&mut self, more: u32) -> Result<(), Unreadable> {
        self.members = self.members.saturating_add(more);
        if self.members > coding::MEMBERS_MAX { Err(Unreadable::MembersTooMany) } else { Ok(()) }
    }
}

// === impl Tally, of calls of models ===

impl Tally {
    /// What comes next of the body's own document.
    fn of_call(&mut self, event: Event<'_>) -> Result<(), Unreadable> {
        let Some(call) = &mut self.call else { return Ok(()) };
        let read = call.event(event, &mut looks_at(&mut self.prompt));
        self.sure(read)
    }

    /// The same, of a document that is no form.
    fn of_document(&mut self, event: Event<'_>) -> Result<(), Unreadable> {
        if let Some(messages) = &mut self.messages {
            messages.event(event);
        }
        self.of_call(event)
    }

    /// A part of a form begins; what it is of a call.
    fn of_call_begins(&mut self, head: &[u8]) -> Result<Part, Unreadable> {
        let Some(call) = &mut self.call else { return Ok(Part::Nothing) };
        let documents = self.has_parts.then(|| Claims::of_part(head).is_json());
        let mut begin = |field: Field| {
            let may_be = call.begin_field(&field, documents, &mut looks_at(&mut self.prompt))?;
            let is_said = documents == Some(true);
            Ok(if may_be { Part::Begun { is_said } } else { Part::Text })
        };
        let read = Field::of(head).and_then(|field| field.map_or(Ok(Part::Nothing), &mut begin));
        match read {
            Ok(part) => Ok(part),
            Err(why) => self.sure(Err(why)).map(|()| Part::Nothing),
        }
    }

    /// The value of a part begins that turned out to be no document.
    fn of_call_is_text(&mut self) -> Result<(), Unreadable> {
        let Some(call) = &mut self.call else { return Ok(()) };
        let read = call.begin_value(&mut looks_at(&mut self.prompt));
        self.sure(read)
    }

    fn call_ends(&mut self) -> Result<(), Unreadable> {
        let Some(call) = &mut self.call else { return Ok(()) };
        call.finish(&mut looks_at(&mut self.prompt));
        let has_begun = call.has_begun();
        self.sure(if has_begun { Ok(()) } else { Err(CallError::NoObject) })
    }

    /// What only looks like a call is none where it can't be read.
    fn sure(&self, read: Result<(), CallError>) -> Result<(), Unreadable> {
        read.or_else(|why| if self.is_call { Err(Unreadable::Call(why)) } else { Ok(()) })
    }
}

// === impl Limits ===

impl Default for Limits {
    /// 256 MiB, and 250 bytes for one: texts of logs come to less than a hundred.
    fn default() -> Limits {
        Limits { decoded_bytes_max: 256 * 1024 * 1024, ratio_max: 250 }
    }
}

// === impl Inspector ===

impl Inspector {
    /// An inspector of a body of which this is said.
    #[must_use]
    pub fn new(claims: Claims, limits: Limits) -> Inspector {
        let (failed, coding) = (claims.refusal, claims.coding);
        let tally = Tally {
            limits,
            findings: BTreeSet::new(),
            decoded_bytes: 0,
            fields: 0,
            members: 0,
            looked_bytes: 0,
            seen: Seen::Nothing,
            pieces: Vec::new(),
            call: None,
            is_call: false,
            has_parts: false,
            prompt: None,
            heard: None,
            hears_bytes: false,
            messages: None,
        };
        let layer = Layer::root(claims);
        let opening = Opening::default();
        Inspector { layer, tally, bytes: 0, complete: false, failed, coding, is_json: false, opening }
    }

    /// Makes it the inspector of another body of which the same is said, as if it were new: of the last one it keeps room, and
    /// nothing else.
    pub fn again(&mut self) {
        self.layer.again_in(self.coding);
        self.failed = self.layer.refusal();
        (self.bytes, self.complete, self.opening) = (0, false, Opening::default());
        self.tally.again();
    }

    /// An inspector that reads what a body says as a call of a model: one that it is by where it goes, to this `surface`,
    /// and has to be readable; or that it may turn out to be.
    #[must_use]
    pub fn of_call(claims: Claims, limits: Limits, surface: Option<Surface>) -> Inspector {
        Inspector::reading(claims, limits, Readings { call: Some(surface), ..Readings::default() })
    }

    /// An inspector that reads what a body says as all of this.
    #[must_use]
    pub fn reading(mut claims: Claims, limits: Limits, readings: Readings) -> Inspector {
        let surface = readings.call.flatten();
        if let Some(surface) = surface {
            claims.is_document(surface.takes_forms());
        }
        let may_be =
            readings.call.is_some() && (surface.is_some() || !claims.is_sequence() || readings.is_told);
        if readings.messages == Some(true) {
            claims.is_document(false);
        }
        let is_json = claims.is_json();
        let mut inspector = Inspector::new(claims, limits);
        inspector.is_json = is_json;
        inspector.tally.call = may_be.then(Box::default);
        inspector.tally.is_call = surface.is_some();
        inspector.tally.has_parts = readings.has_parts;
        inspector.tally.messages = readings.messages.is_some().then(Box::default);
        inspector
    }

    /// Has the texts of a call looked at by these rules.
    #[must_use]
    pub fn with_rules(mut self, rules: &Arc<Rules>) -> Inspector {
        self.tally.prompt = self.tally.call.is_some().then(|| Box::new(Detector::new(rules)));
        self
    }

    /// Has the texts of what is no call looked at by these rules, as what comes from there: the body itself, or the strings
    /// and names of its document.
    #[must_use]
    pub fn hearing(mut self, rules: &Arc<Rules>, from: Provenance) -> Inspector {
        let (heard, prompt) = (Box::new(Hearing::new(from)), Box::new(Detector::new(rules)));
        (self.tally.heard, self.tally.prompt) = (Some(heard), Some(prompt));
        self
    }

    /// Has them looked at where it is said to be no text, too.
    #[must_use]
    pub fn hearing_bytes(mut self) -> Inspector {
        self.tally.hears_bytes = true;
        self
    }

    /// What its texts are held against, if they are.
    #[must_use]
    pub fn rules(&self) -> Option<&Rules> {
        self.tally.prompt.as_deref().map(Detector::rules)
    }

    /// What its texts came to as far as they were seen, if they are looked at and it is a call.
    #[must_use]
    pub fn assessment(&self) -> Option<Assessment> {
        let prompt = self.tally.prompt.as_ref().filter(|_| self.failed.is_none());
        let beside = || self.tally.heard.iter().flat_map(|heard| heard.detectors());
        prompt.map(|prompt| prompt.assess_with(beside()))
    }

    /// What it says as a call of a model.
    #[must_use]
    pub fn call(&self) -> Option<&Request> {
        self.tally.call.as_deref()
    }

    /// Whether it may be messages to a tool server, by what is said of it or by how it begins.
    #[must_use]
    pub fn may_be_messages(&self) -> bool {
        self.is_json || self.tally.messages.as_ref().is_some_and(|messages| messages.has_begun())
    }

    /// What it says as messages to a tool server.
    #[must_use]
    pub fn messages(&self) -> Option<&tool::Reader> {
        self.tally.messages.as_deref()
    }

    /// Looks at what comes next, in any segmentation.
    ///
    /// # Errors
    /// Why it can't be read: from then on for good.
    pub fn push(&mut self, bytes: &[u8]) -> Result<(), Unreadable> {
        self.bytes += bytes.len() as u64;
        self.opening.push(bytes);
        self.still_reads()?;
        let looked = self.layer.push(bytes, &mut self.tally);
        self.note(looked)
    }

    /// Ends the body.
    ///
    /// # Errors
    /// As [`push`](Self::push); and if it is not whole.
    pub fn finish(&mut self) -> Result<(), Unreadable> {
        self.still_reads()?;
        if std::mem::replace(&mut self.complete, true) {
            return Ok(());
        }
        if let Some(messages) = &mut self.tally.messages
            && self.opening.is_wide
            && self.opening.is_of_json()
        {
            // Some readers of JSON take UTF-16 and UTF-32, whatever it is said to be.
            messages.breaks();
        }
        let looked = self.layer.finish(&mut self.tally).and_then(|()| self.tally.call_ends());
        self.note(looked)
    }

    /// What was found so far; nothing in what can't be read.
    pub fn findings(&self) -> impl Iterator<Item = Finding> {
        self.tally.findings.iter().copied()
    }

    /// Texts in other clothes that it holds, the first of them, to be counted with those of other requests.
    #[must_use]
    pub fn pieces(&self) -> &[split::Piece] {
        &self.tally.pieces
    }

    /// How many findings there are.
    #[must_use]
    pub fn findings_count(&self) -> usize {
        self.tally.findings.len()
    }

    /// What it looks like, its coding taken off.
    #[must_use]
    pub fn seen(&self) -> Seen {
        self.tally.seen
    }

    /// What else is known.
    #[must_use]
    pub fn facts(&self) -> Facts {
        let Tally { decoded_bytes, fields, .. } = self.tally;
        Facts { bytes: self.bytes, decoded_bytes, fields, complete: self.complete && self.failed.is_none() }
    }

    /// Bytes that were looked at, in all that is inside one another: what its work is proportional to.
    #[must_use]
    pub fn looked_bytes(&self) -> u64 {
        self.tally.looked_bytes
    }

    /// Bytes of memory that it may take by now.
    #[must_use]
    pub fn memory_bytes(&self) -> usize {
        let call = self.tally.call.as_deref().map_or(0, Request::memory_bytes);
        let prompt = self.tally.prompt.as_deref().map_or(0, Detector::memory_bytes);
        let heard = self.tally.heard.as_ref().map_or(0, |heard| heard.memory_bytes());
        let messages = self.tally.messages.as_deref().map_or(0, tool::Reader::memory_bytes);
        OWN_BYTES + self.layer.memory_bytes() + call + prompt + heard + messages
    }

    /// Whether it can be read, as far as it came: what is said of it may be why it can't.
    fn still_reads(&mut self) -> Result<(), Unreadable> {
        let Some(why) = self.failed else { return Ok(()) };
        self.doubt(why);
        Err(why)
    }

    /// Notes that what can't be read may be messages to a tool server: JSON, by what is said of it or by how it began.
    fn doubt(&mut self, why: Unreadable) {
        // Of blanks alone nobody knows what follows.
        let is_unknown = self.opening.first.is_none() && self.bytes > 0;
        let is_json = self.is_json || is_unknown || self.opening.is_of_json();
        if let Some(messages) = &mut self.tally.messages
            && (is_json || why == Unreadable::ClaimAmbiguous || messages.has_begun())
        {
            messages.breaks();
        }
    }

    fn note(&mut self, looked: Result<(), Unreadable>) -> Result<(), Unreadable> {
        looked.err().into_iter().for_each(|why| self.doubt(why));
        if looked.is_err() {
            // How much of it was looked at before depends on the pieces.
            self.tally.findings.clear();
            self.failed = looked.err();
        }
        looked
    }
}

#[cfg(test)]
mod tests;
