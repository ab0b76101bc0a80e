//! One run of bytes: a body, a part, a field, or what a coding came to. Must never hold more of it than its first bytes.

use super::coding::{Caps, Coding, Decoder};
use super::detect::Detectors;
use super::disguise::Disguise;
use super::events::Events;
use super::fields::Fields;
use super::hearing::Lane;
use super::json::{Event as JsonEvent, Json, Kind};
use super::media::{Claims, HEAD_BYTES_MAX, Reading, Seen};
use super::multipart::{Event as PartEvent, Multipart};
use super::names::Names;
use super::parts::Part;
use super::{CODINGS_MAX, Finding, LEVELS_MAX, Tally, Unreadable};

/// The layer.
#[derive(Debug)]
pub(super) struct Layer {
    claims: Claims,
    /// Whether it is a field, which is text of some document.
    is_field: bool,
    /// Whether it is the body itself, its coding taken off.
    is_root: bool,
    /// The lane that it is heard in, of a text that a model may be shown.
    lane: Option<Lane>,
    place: Place,
    detectors: Detectors,
    disguise: Disguise,
    state: State,
    /// What reads it as a stream of events besides.
    events: Option<Box<Events>>,
}

/// What is around a layer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Place {
    /// Layers.
    pub(super) level: u8,
    /// Those of them that are codings.
    pub(super) codings: u8,
    /// Codes of text, which were taken off because something might stand in them.
    pub(super) codes: u8,
}

#[derive(Debug)]
enum State {
    /// Its first bytes, but for blanks.
    Head(Head),
    /// Nothing but detectors looks at it.
    Plain,
    Packed {
        decoder: Box<Decoder>,
        inner: Box<Layer>,
        is_claimed: bool,
    },
    Json {
        json: Json,
        fields: Fields,
        names: Names,
        is_claimed: bool,
    },
    Multipart {
        multipart: Multipart,
        part: Option<Box<Layer>>,
        /// What it is of a call of a model.
        of_call: Part,
    },
    Form(Form),
}

/// What a layer begins with.
#[derive(Clone, Copy, Debug)]
struct Head {
    bytes: [u8; HEAD_BYTES_MAX],
    count: usize,
    /// How many tell what it is.
    most: usize,
}

/// A form (WHATWG URL section 5.1).
#[derive(Debug)]
struct Form {
    field: Box<Layer>,
    /// The same bytes as what they look like: clients call anything a form, unless they are told otherwise.
    other: Box<Layer>,
    /// What was seen of a percent-encoded byte.
    escape: Vec<u8>,
    has_begun: bool,
    /// Behind the first `=` of a field; another is text.
    in_value: bool,
}

// === impl State ===

impl State {
    /// Of what has not begun.
    fn first(claims: &Claims) -> State {
        match claims.reading {
            Reading::Multipart { .. } | Reading::Form => State::Plain,
            _ => State::Head(Head::new(claims.head_bytes())),
        }
    }
}

// === impl Head ===

impl Head {
    fn new(most: usize) -> Head {
        Head { bytes: [0; HEAD_BYTES_MAX], count: 0, most: most.min(HEAD_BYTES_MAX) }
    }

    /// Takes as many of the next bytes as it lacks; the others.
    fn take<'a>(&mut self, bytes: &'a [u8]) -> &'a [u8] {
        let room = self.bytes.get_mut(self.count..self.most).unwrap_or_default();
        let (taken, rest) = bytes.split_at_checked(room.len()).unwrap_or((bytes, &[]));
        room.iter_mut().zip(taken).for_each(|(to, from)| *to = *from);
        self.count += taken.len();
        rest
    }

    fn is_full(&self) -> bool {
        self.count == self.most
    }

    fn bytes(&self) -> &[u8] {
        self.bytes.get(..self.count).unwrap_or_default()
    }
}

// === impl Place ===

impl Place {
    /// The place of what is in a layer here.
    fn inside(self) -> Place {
        Place { level: self.level + 1, ..self }
    }
}

// === impl Layer ===

impl Layer {
    /// A body, or part, of which this is said.
    pub(super) fn new(claims: Claims, place: Place) -> Layer {
        let state = State::first(&claims);
        Layer {
            claims,
            is_field: false,
            is_root: false,
            lane: None,
            place,
            detectors: Detectors::default(),
            disguise: Disguise::default(),
            state,
            events: None,
        }
    }

    /// The body itself.
    pub(super) fn root(claims: Claims) -> Layer {
        Layer { is_root: true, ..Layer::new(claims, Place::default()) }
    }

    fn field(place: Place) -> Layer {
        Layer { is_field: true, ..Layer::decoded(place) }
    }

    /// A field of a document, and the lane that it is heard in.
    pub(super) fn of_document(place: Place, lane: Option<Lane>) -> Layer {
        Layer { lane, ..Layer::field(place) }
    }

    /// What something came to that may be anything.
    pub(super) fn decoded(place: Place) -> Layer {
        Layer::new(Claims::new(&[], &[]), place)
    }

    pub(super) fn is_at(&self, place: Place) -> bool {
        self.place == place
    }

    /// Makes it the next field, or the next body of which the same is said.
    pub(super) fn again(&mut self) {
        self.detectors.clear();
        self.disguise.clear();
        self.events = None;
        match &mut self.state {
            State::Head(head) => head.count = 0,
            state => *state = State::first(&self.claims),
        }
    }

    /// The next body of which the same is said, in that coding.
    pub(super) fn again_in(&mut self, coding: Option<Coding>) {
        self.claims.coding = coding;
        self.again();
    }

    /// Why it can't be read, whatever it holds.
    pub(super) fn refusal(&self) -> Option<Unreadable> {
        self.claims.refusal
    }

    pub(super) fn memory_bytes(&self) -> usize {
        let inside = match &self.state {
            State::Packed { decoder, inner, .. } => decoder.memory_bytes() + inner.memory_bytes(),
            State::Json { json, fields, .. } => json.memory_bytes() + fields.memory_bytes(),
            State::Multipart { part: Some(inner), .. } => inner.memory_bytes(),
            State::Form(form) => form.field.memory_bytes() + form.other.memory_bytes(),
            _ => 0,
        };
        let events = self.events.as_ref().map_or(0, |events| events.memory_bytes());
        inside + events + self.disguise.memory_bytes()
    }

    /// Begins to read it as what is said of it, where that is sure before its first byte.
    fn begin(&mut self, tally: &mut Tally) -> Result<(), Unreadable> {
        self.claims.refusal.map_or(Ok(()), Err)?;
        if let Some(coding) = self.claims.coding.take() {
            self.state = self.packed(coding, true, tally)?;
            return Ok(());
        }
        match &self.claims.reading {
            Reading::Multipart { boundary } if self.place.level < LEVELS_MAX => {
                let mut multipart = Multipart::new(boundary)?;
                if tally.is_call || tally.has_parts {
                    multipart = multipart.alone();
                }
                self.state = State::Multipart { multipart, part: None, of_call: Part::Nothing };
            }
            Reading::Multipart { .. } => return Err(Unreadable::NestingTooDeep),
            Reading::Form => {
                let field = Box::new(Layer::field(self.place.inside()));
                let claims = Claims { reading: Reading::Sniffed, ..self.claims.clone() };
                let other = Layer::new(claims, self.place.inside());
                let other = Box::new(Layer { is_root: self.is_root, ..other });
                let escape = Vec::new();
                self.state = State::Form(Form { field, other, escape, has_begun: false, in_value: false });
            }
            Reading::Sniffed => {
                let lane = tally.lane_in(self.lane(tally)).filter(|_| self.claims.has_events());
                self.events = lane.filter(|_| self.is_root).map(|lane| Box::new(Events::new(lane)));
            }
            Reading::Json { .. } => {}
        }
        Ok(())
    }

    fn packed(&self, coding: super::Coding, is_claimed: bool, tally: &Tally) -> Result<State, Unreadable> {
        if self.place.codings == CODINGS_MAX {
            return Err(Unreadable::NestingTooDeep);
        }
        let caps = Caps { bytes_max: tally.limits.decoded_bytes_max, ratio_max: tally.limits.ratio_max };
        // What a packed file holds, nothing says.
        let claims = if is_claimed { self.claims.clone() } else { Claims::new(&[], &[]) };
        let place = Place { codings: self.place.codings + 1, ..self.place.inside() };
        let inner = Layer::new(claims, place);
        let inner = Box::new(Layer { is_root: self.is_root && is_claimed, ..inner });
        Ok(State::Packed { decoder: Box::new(Decoder::new(coding, caps)), inner, is_claimed })
    }

    /// Looks at what comes next.
    pub(super) fn push(&mut self, bytes: &[u8], tally: &mut Tally) -> Result<(), Unreadable> {
        if bytes.is_empty() {
            return Ok(());
        }
        #[cfg(test)]
        crate::steps::add(bytes.len());
        self.start(tally)?;
        tally.looked_bytes += bytes.len() as u64;
        if self.is_leaf() {
            self.disguise.push(bytes, self.place, tally)?;
            if let Some(lane) = self.lane(tally) {
                tally.hear(lane, bytes);
            }
        }
        // Packed bytes too: names, comments and frames that decoders skip hold text as it is.
        let is_leaf = self.is_leaf();
        self.detectors.scan(bytes, is_leaf, &mut |finding| {
            tally.findings.insert(finding);
        });
        if let Some(events) = &mut self.events {
            events.push(bytes, self.place.inside(), tally)?;
        }
        // What is said to be JSON is refused where it breaks.
        let is_sniffed = self.is_root && matches!(self.claims.reading, Reading::Sniffed);
        if let Some(messages) = tally.messages.as_mut().filter(|_| is_sniffed) {
            messages.raw(bytes);
        }
        let State::Head(head) = &mut self.state else { return self.read(bytes, tally) };
        let blanks = |b: &&u8| matches!(**b, b' ' | b'\t' | b'\r' | b'\n');
        let skipped = if head.count == 0 { bytes.iter().take_while(blanks).count() } else { 0 };
        let rest = head.take(bytes.get(skipped..).unwrap_or_default());
        if !head.is_full() {
            return Ok(());
        }
        self.settle(tally)?;
        self.read(rest, tally)
    }

    /// Ends it.
    pub(super) fn finish(&mut self, tally: &mut Tally) -> Result<(), Unreadable> {
        self.start(tally)?;
        if let Some(lane) = self.lane(tally).filter(|_| self.is_leaf()) {
            tally.hear_ends(lane);
        }
        self.detectors.finish(&mut |finding| {
            tally.findings.insert(finding);
        });
        self.disguise.finish(self.place, tally)?;
        if let Some(events) = &mut self.events {
            events.end(self.place.inside(), tally)?;
        }
        if matches!(self.state, State::Head(_)) {
            self.settle(tally)?;
        }
        let (place, is_root) = (self.place.inside(), self.is_root);
        let done = match &mut self.state {
            State::Head(_) | State::Plain => Ok(()),
            State::Packed { decoder, inner, .. } => {
                let decoded = decoder.finish(&mut |bytes| decoded(bytes, inner, tally));
                let counted = tally.has_members(decoder.take_members());
                counted.and(decoded).and_then(|()| inner.finish(tally))
            }
            State::Json { json, fields, names, .. } => {
                json.finish(&mut |event| of_json(event, (fields, names), is_root, place, tally))
            }
            State::Multipart { multipart, .. } => multipart.finish().map_err(Unreadable::from),
            State::Form(form) => form.finish(tally),
        };
        self.forgive(done, tally)
    }

    /// Whether what it holds is not sure to be looked at as the fields and bytes it is made of.
    fn is_leaf(&self) -> bool {
        match &self.state {
            State::Head(_) => matches!(self.claims.reading, Reading::Sniffed),
            State::Plain => true,
            State::Packed { is_claimed, .. } | State::Json { is_claimed, .. } => !is_claimed,
            State::Multipart { .. } | State::Form(_) => false,
        }
    }

    /// The lane that it is heard in.
    fn lane(&self, tally: &Tally) -> Option<Lane> {
        let is_heard = self.is_root && (self.claims.may_be_text() || tally.hears_bytes);
        self.lane.or_else(|| tally.lane().filter(|_| is_heard))
    }

    /// Begins it, if this is its first byte, or its end.
    fn start(&mut self, tally: &mut Tally) -> Result<(), Unreadable> {
        let is_first = match &self.state {
            State::Head(head) => head.count == 0 && !self.is_field,
            // What is read as said of it begins as plain.
            State::Plain => matches!(self.claims.reading, Reading::Multipart { .. } | Reading::Form),
            _ => false,
        };
        if is_first { self.begin(tally) } else { Ok(()) }
    }

    /// Decides how it is read, by its first bytes.
    fn settle(&mut self, tally: &mut Tally) -> Result<(), Unreadable> {
        let State::Head(head) = std::mem::replace(&mut self.state, State::Plain) else { return Ok(()) };
        let marked = head.bytes().strip_prefix(b"\xef\xbb\xbf");
        let first = marked.map_or(head.bytes(), <[u8]>::trim_ascii_start);
        let seen = if self.is_field { Seen::of_text(first) } else { Seen::of(first) };
        if self.place.level == self.place.codings && !self.is_field && tally.seen == Seen::Nothing {
            tally.seen = seen;
        }
        if self.claims.differs(seen) {
            tally.findings.insert(Finding::MediaTypeMismatch);
        }
        let state = match (&self.claims.reading, seen) {
            (Reading::Json { .. }, Seen::Wide) => return Err(Unreadable::Charset),
            (Reading::Json { is_sequence }, _) => State::Json {
                json: Json::new(*is_sequence),
                fields: Fields::heard_in(tally.lane().filter(|_| self.is_root)),
                names: Names::default(),
                is_claimed: true,
            },
            (_, Seen::Wide)
                if self.place.codes == 0
                    && self.claims.may_be_text()
                    && !self.claims.has_frames(head.bytes()) =>
            {
                return Err(Unreadable::Charset);
            }
            // What may stand for a packed file need not be one.
            (_, Seen::Packed(_)) if self.place.codes > 0 && self.place.codings == CODINGS_MAX => {
                tally.findings.insert(Finding::ArchiveUnread);
                State::Plain
            }
            (_, Seen::Packed(coding)) => {
                if self.place.codes > 0 {
                    tally.findings.insert(Finding::EncodedPacked);
                }
                self.packed(coding, false, tally)?
            }
            (_, Seen::Json) if self.place.level < LEVELS_MAX => State::Json {
                json: Json::new(true),
                // The text itself is heard, and in it may be escapes.
                fields: Fields::heard_in(tally.lane_in(self.lane(tally))),
                names: Names::default(),
                is_claimed: false,
            },
            (_, Seen::Archive) => {
                tally.findings.insert(Finding::ArchiveUnread);
                State::Plain
            }
            _ => State::Plain,
        };
        self.state = state;
        self.read(first, tally)
    }

    /// Reads what comes next as what it is.
    fn read(&mut self, bytes: &[u8], tally: &mut Tally) -> Result<(), Unreadable> {
        let (place, is_root) = (self.place.inside(), self.is_root);
        let read = match &mut self.state {
            State::Head(_) | State::Plain => Ok(()),
            State::Packed { decoder, inner, .. } => {
                let decoded = decoder.push(bytes, &mut |bytes| decoded(bytes, inner, tally));
                // First, since what is malformed behind too many may be forgiven, and must not be by how it was cut.
                tally.has_members(decoder.take_members()).and(decoded)
            }
            State::Json { json, fields, names, .. } => {
                json.push(bytes, &mut |event| of_json(event, (fields, names), is_root, place, tally))
            }
            State::Multipart { multipart, part, of_call } => multipart.push(bytes, &mut |event| {
                if is_root {
                    of_call.next(event, tally)?;
                }
                of_part(event, part, place, tally)
            }),
            State::Form(form) => form.push(bytes, tally),
        };
        self.forgive(read, tally)
    }

    /// What only looked like something, and is not, is plain.
    fn forgive(&mut self, read: Result<(), Unreadable>, tally: &mut Tally) -> Result<(), Unreadable> {
        match (&mut self.state, read) {
            (State::Json { is_claimed: false, fields, .. }, Err(Unreadable::JsonMalformed)) => {
                // What broke off is a text as far as it came.
                let ended = fields.end(tally);
                self.state = State::Plain;
                if let Some(messages) = tally.messages.as_mut().filter(|_| self.is_root) {
                    messages.is_no_document();
                }
                ended
            }
            // What only might stand for something refuses nothing but by its size; detectors have seen all of it.
            (State::Json { is_claimed: false, .. }, Err(Unreadable::JsonTooDeep)) if self.place.codes > 0 => {
                self.state = State::Plain;
                Ok(())
            }
            (
                State::Packed { is_claimed: false, .. },
                Err(Unreadable::CodingMalformed | Unreadable::WindowTooLarge),
            ) => {
                tally.findings.insert(Finding::ArchiveUnread);
                self.state = State::Plain;
                Ok(())
            }
            (_, read) => read,
        }
    }
}

/// What a coding came to.
fn decoded(bytes: &[u8], inner: &mut Layer, tally: &mut Tally) -> Result<(), Unreadable> {
    tally.decoded_bytes += bytes.len() as u64;
    if tally.decoded_bytes > tally.limits.decoded_bytes_max {
        return Err(Unreadable::TooLarge);
    }
    inner.push(bytes, tally)
}

/// What comes next of a document, which is the body's own if it `is_root`.
pub(super) fn of_json(
    event: JsonEvent<'_>,
    (fields, names): (&mut Fields, &mut Names),
    is_root: bool,
    place: Place,
    tally: &mut Tally,
) -> Result<(), Unreadable> {
    if is_root {
        tally.of_document(event)?;
    }
    if names.watch(event) {
        tally.findings.insert(Finding::OversizedIdentifier);
    }
    match event {
        JsonEvent::Open { .. } | JsonEvent::Close => Ok(()),
        JsonEvent::Begin(kind) => {
            tally.has_fields(u64::from(kind != Kind::Key))?;
            fields.begin(tally);
            Ok(())
        }
        JsonEvent::Piece(bytes) => fields.push(bytes, place, tally),
        JsonEvent::End => fields.end(tally),
    }
}

fn of_part(
    event: PartEvent<'_>,
    part: &mut Option<Box<Layer>>,
    place: Place,
    tally: &mut Tally,
) -> Result<(), Unreadable> {
    match event {
        PartEvent::Begin(head) => {
            tally.has_fields(1)?;
            let claims = Claims::of_part(head);
            // Before what else is wrong with it, in whatever pieces that comes.
            claims.refusal.map_or(Ok(()), Err)?;
            *part = Some(Box::new(Layer::new(claims, place)));
            Ok(())
        }
        PartEvent::Piece(bytes) => part.as_mut().map_or(Ok(()), |part| part.push(bytes, tally)),
        PartEvent::End => part.take().map_or(Ok(()), |mut part| part.finish(tally)),
    }
}

// === impl Form ===

impl Form {
    fn push(&mut self, mut bytes: &[u8], tally: &mut Tally) -> Result<(), Unreadable> {
        self.other.push(bytes, tally)?;
        while let Some((byte, rest)) = bytes.split_first() {
            if !std::mem::replace(&mut self.has_begun, true) {
                tally.has_fields(1)?;
            }
            let in_value = self.in_value;
            let is_plain = |b: &&u8| !matches!(**b, b'%' | b'+' | b'&') && (in_value || **b != b'=');
            let plain = if self.escape.is_empty() { bytes.iter().take_while(is_plain).count() } else { 0 };
            if plain > 0 {
                let (text, rest) = bytes.split_at_checked(plain).unwrap_or((bytes, &[]));
                self.field.push(text, tally)?;
                bytes = rest;
                continue;
            }
            bytes = rest;
            self.byte(*byte, tally)?;
        }
        Ok(())
    }

    fn byte(&mut self, byte: u8, tally: &mut Tally) -> Result<(), Unreadable> {
        if !self.escape.is_empty() && byte.is_ascii_hexdigit() {
            self.escape.push(byte);
            let [_, high, low] = self.escape[..] else { return Ok(()) };
            let digit = |b: u8| char::from(b).to_digit(16).unwrap_or_default();
            let byte = u8::try_from(digit(high) << 4 | digit(low)).unwrap_or_default();
            self.escape.clear();
            return self.field.push(&[byte], tally);
        }
        // What is no escape is what it looks like.
        let escape = std::mem::take(&mut self.escape);
        self.field.push(&escape, tally)?;
        match byte {
            b'%' => self.escape.push(byte),
            b'+' => return self.field.push(b" ", tally),
            b'=' if self.in_value => return self.field.push(b"=", tally),
            b'&' | b'=' => {
                self.in_value = byte == b'=';
                tally.has_fields(u64::from(byte == b'&'))?;
                self.field.finish(tally)?;
                self.field.again();
            }
            byte => return self.field.push(&[byte], tally),
        }
        Ok(())
    }

    fn finish(&mut self, tally: &mut Tally) -> Result<(), Unreadable> {
        let escape = std::mem::take(&mut self.escape);
        self.field.push(&escape, tally)?;
        self.field.finish(tally)?;
        self.other.finish(tally)
    }
}
