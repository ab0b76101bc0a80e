//! One document of an answer: its counts, the tools that it asks for, why it ends; in all dialects at once. Must never
//! take for the provider's what the model says.

mod grammar;
mod kept;
mod parts;
mod said;

pub(in crate::llm) use grammar::is_over;
use grammar::{is_repeat, is_sound, number};
use kept::Kept;
use parts::Parts;
use said::{Choice, Said};

use super::places::{is_call, own_tool, unpacked};
use super::plain::PLAIN_BYTES_MAX;
use super::{Count, Facts};
use crate::llm::Estimator;
use crate::payload::json::{DEPTH_MAX, Event, Json, JsonError, Kind};

/// Longest key, word or name noted, bytes; a longer name is left out.
const TEXT_BYTES_MAX: usize = 128;
/// Most documents inside one another: of Bedrock, one is packed in each.
const INNER_MAX: u8 = 1;
/// Bytes of base64 that are decoded at once: a multiple of four.
const PACK_BYTES: usize = 256;

/// A place in an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Node {
    Skip,
    /// The document, or what wraps it: so many levels of that may follow.
    Top(u8),
    /// What the model says, or part of it.
    Turn,
    /// Answers beside one another.
    Choices,
    /// Which of them it is.
    Index,
    /// A tool that is asked for.
    Call,
    /// The same, or its name alone.
    Function,
    Usage,
    /// What counts of usage are made of; and which of them is of sound.
    Details(Count),
    /// Counts by what they are of, one by one, among which this is of sound.
    Modalities(Count),
    Modality,
    OfModality,
    /// Of Anthropic: what an answer is made of, request by request.
    Iterations,
    OfIteration(Count),
    Count(Count),
    /// What is counted of each of many answers: together.
    Sum(Count),
    Model,
    Finish,
    Error,
    ErrorKind,
    Name,
    Type,
    Text,
    /// All of it, perhaps behind what said it in parts.
    All,
    /// A part of it, by itself; and what is said at the end about all: of TGI.
    Token,
    Ending,
    /// What is said in sound.
    Spoken,
    /// What a tool is asked for: all within.
    Arguments,
    /// Whether the answer is over.
    Done,
    /// What has become of an answer that is made besides.
    Status,
    /// Vectors, in place of an answer.
    Vectors,
    /// What may hold some.
    Items,
    /// Of Vertex: answers to many, and what is counted of each.
    Predictions,
    Statistics,
    /// What is said of an answer: among others, what is billed.
    Meta,
    /// Answers that count themselves.
    Results,
    /// One of a batch.
    Result,
    Feedback,
    /// A document in base64.
    Packed,
}

#[derive(Clone, Copy, Debug)]
struct Frame {
    node: Node,
    is_object: bool,
    is_empty: bool,
}

/// What becomes of the string or word at hand.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Scalar {
    #[default]
    Skip,
    Key,
    Keep(Node),
    Text,
    Arguments,
    Packed,
}

/// What OpenAI's streams end with, in place of a document.
const DONE: &[u8] = b"[DONE]";

/// The document.
#[derive(Debug)]
pub(super) struct Document {
    json: Json,
    state: State,
    /// Its first bytes, as many as [`DONE`] has.
    head: Vec<u8>,
    /// Whether it has but blanks.
    is_empty: bool,
    /// All of them, where they are kept.
    kept: Option<Kept>,
}

#[derive(Debug)]
struct State {
    frames: Vec<Frame>,
    next: Node,
    scalar: Scalar,
    kind: Kind,
    text: Vec<u8>,
    is_too_long: bool,
    facts: Facts,
    estimator: Estimator,
    /// What the model said, and what it asks tools for, until it is taken; if anybody takes it.
    said: Option<Said>,
    /// Which answer is at hand, of those beside one another.
    choice: Choice,
    /// Type and name of the innermost object that has them, and how deep it is.
    typed: Option<(usize, String)>,
    named: Option<(usize, String)>,
    /// Whether it has `choices`, none of them, and a usage.
    has_no_choices: bool,
    has_usage: bool,
    parts: Parts,
    /// Whether it says a part of an answer by itself.
    has_token: bool,
    /// Whether its type says that its text is sound, of which no tokens are estimated.
    is_sound: bool,
    /// What is packed in it.
    inner: Option<Box<Document>>,
    depth: u8,
    is_broken: bool,
    is_whole: bool,
}

// === impl Document ===

impl Default for Document {
    fn default() -> Self {
        Document::nested(0)
    }
}

impl Document {
    fn nested(depth: u8) -> Document {
        let (frames, text) = (Vec::with_capacity(DEPTH_MAX as usize), Vec::with_capacity(TEXT_BYTES_MAX));
        let head = Vec::with_capacity(DONE.len());
        Document {
            json: Json::new(false),
            state: State::new(frames, text, None, depth),
            head,
            is_empty: true,
            kept: None,
        }
    }

    pub(super) fn push(&mut self, bytes: &[u8]) {
        #[cfg(test)]
        crate::steps::add(bytes.len());
        let Document { json, state, head, is_empty, kept } = self;
        kept.iter_mut().for_each(|kept| kept.push(bytes));
        *is_empty &= bytes.iter().all(u8::is_ascii_whitespace);
        if head.len() < DONE.len() {
            head.extend_from_slice(bytes.get(..bytes.len().min(DONE.len() - head.len())).unwrap_or_default());
        }
        if state.is_broken || bytes.is_empty() {
            return;
        }
        let mut plain = kept.as_mut().map(|kept| &mut kept.plain);
        let read = json.push::<JsonError>(bytes, &mut |event| {
            plain.iter_mut().for_each(|plain| plain.event(event));
            state.event(event);
            Ok(())
        });
        state.is_broken = read.is_err();
    }

    /// Ends it.
    pub(super) fn finish(&mut self) {
        let Document { json, state, head, kept, .. } = self;
        state.facts.is_over |= head == DONE;
        let mut plain = kept.as_mut().map(|kept| &mut kept.plain);
        let read = json.finish::<JsonError>(&mut |event| {
            plain.iter_mut().for_each(|plain| plain.event(event));
            state.event(event);
            Ok(())
        });
        state.is_whole = read.is_ok() && !state.is_broken;
        let estimated = std::mem::replace(&mut state.estimator, Estimator::bare());
        if !state.is_sound {
            state.facts.output_estimated += estimated.tokens();
        }
    }

    /// Makes it the next one.
    pub(super) fn again(&mut self) {
        let State { frames, text, said, inner, depth, .. } = &mut self.state;
        let (mut frames, text, depth) = (std::mem::take(frames), std::mem::take(text), *depth);
        let said = said.take().or_else(|| inner.as_mut().and_then(|inner| inner.state.said.take()));
        frames.clear();
        self.head.clear();
        self.is_empty = true;
        self.kept.iter_mut().for_each(Kept::clear);
        self.json.again();
        self.state = State::new(frames, text, said, depth);
    }

    /// Whether it came whole, and has nothing that calls are put together of.
    pub(super) fn is_plain(&self) -> bool {
        let is_plain = |kept: &Kept| {
            let is_short = !kept.is_cut && kept.bytes.len() <= PLAIN_BYTES_MAX;
            is_short && kept.plain.is() && std::str::from_utf8(&kept.bytes).is_ok()
        };
        self.state.is_whole && self.kept.as_ref().is_some_and(is_plain)
    }

    /// Whether it came whole, once it has ended.
    pub(super) fn is_whole(&self) -> bool {
        self.state.is_whole
    }

    /// Whether it has nothing, or says that a stream of OpenAI's is over.
    pub(super) fn is_blank(&self) -> bool {
        self.is_empty || self.state.facts.is_over && self.head == DONE
    }

    /// Has it count nothing: it did not end as documents of its kind do.
    pub(super) fn forget_counts(&mut self) {
        self.state.facts.counts = Default::default();
    }

    /// Whether it tells usage and nothing else, as the last one of a stream does where that is asked for.
    pub(super) fn is_usage_alone(&self) -> bool {
        self.state.is_whole && self.state.has_usage && self.state.has_no_choices
    }

    pub(super) fn facts(&mut self) -> &mut Facts {
        &mut self.state.facts
    }

    /// Has it keep what the model says.
    pub(super) fn keep_texts(&mut self) {
        self.state.said.get_or_insert_default();
    }

    /// Has it keep its own bytes, up to so many.
    pub(super) fn keep_bytes(&mut self, bytes_max: usize) {
        self.kept = Some(Kept::up_to(bytes_max));
    }

    /// Has it keep nothing any longer.
    pub(super) fn keep_nothing(&mut self) {
        (self.kept, self.state.said) = (None, None);
        if let Some(inner) = &mut self.state.inner {
            inner.state.said = None;
        }
    }

    /// Its bytes; `None` where they are too many.
    pub(super) fn bytes(&self) -> Option<&[u8]> {
        self.kept.as_ref().filter(|kept| !kept.is_cut).map(|kept| kept.bytes.as_slice())
    }

    /// Bytes that it keeps.
    pub(super) fn memory_bytes(&self) -> usize {
        let said = self.state.said.as_ref().map_or(0, Said::memory_bytes);
        self.kept.as_ref().map_or(0, Kept::memory_bytes) + said
    }

    /// What it kept of the first answer.
    pub(super) fn take_texts(&mut self) -> [Vec<u8>; 2] {
        self.state.said.as_mut().map(Said::take).unwrap_or_default()
    }

    /// What it kept of others beside it, and which they are.
    pub(super) fn take_more_texts(&mut self) -> Vec<(usize, [Vec<u8>; 2])> {
        self.state.said.as_mut().map(Said::take_more).unwrap_or_default()
    }

    /// Whether it says again what was said in parts, as far as it came.
    pub(super) fn is_repeat(&self) -> bool {
        self.state.facts.is_repeat
    }

    /// Notes that it tells of a failure.
    pub(super) fn fails(&mut self, kind: &str) {
        self.state.facts.error = Some(kind.to_owned());
    }

    /// Tokens of its texts, estimated.
    pub(super) fn tokens(&self) -> u64 {
        let estimated = if self.state.is_sound { 0 } else { self.state.estimator.tokens() };
        self.state.facts.output_estimated + estimated
    }
}

// === impl State ===

impl State {
    fn new(frames: Vec<Frame>, text: Vec<u8>, said: Option<Said>, depth: u8) -> State {
        State {
            frames,
            next: Node::Top(1),
            scalar: Scalar::Skip,
            kind: Kind::Key,
            text,
            is_too_long: false,
            facts: Facts::default(),
            estimator: Estimator::bare(),
            said,
            choice: Choice::default(),
            typed: None,
            named: None,
            has_no_choices: false,
            has_usage: false,
            parts: Parts::default(),
            has_token: false,
            is_sound: false,
            inner: None,
            depth,
            is_broken: false,
            is_whole: false,
        }
    }

    fn event(&mut self, event: Event<'_>) {
        #[cfg(test)]
        crate::steps::add(if let Event::Piece(bytes) = event { bytes.len() } else { 1 });
        match event {
            Event::Open { object } => {
                let node = self.place();
                self.has_usage |= object && node == Node::Usage;
                let is_within = self.frames.last().is_some_and(|frame| frame.node == Node::Usage);
                if object && node == Node::Usage && !is_within {
                    // Of a stream that is one array, each document has its own.
                    self.parts = Parts::default();
                }
                let node = match node {
                    Node::Text | Node::Name | Node::Type | Node::Done | Node::OfIteration(_) => Node::Skip,
                    Node::Vectors | Node::All => Node::Skip,
                    Node::Token if object => {
                        self.has_token = true;
                        Node::Token
                    }
                    Node::Usage | Node::Details(_) | Node::Error if !object => Node::Skip,
                    Node::Top(_) if !object && !self.frames.is_empty() => Node::Turn,
                    Node::Function => Node::Call,
                    Node::Choices if object => self.chooses(),
                    Node::Index => Node::Skip,
                    node => node,
                };
                if object {
                    self.parts.begin(node);
                }
                self.frames.push(Frame { node, is_object: object, is_empty: true });
            }
            Event::Close => self.close(),
            Event::Begin(kind) => self.begin(kind),
            Event::Piece(bytes) => self.piece(bytes),
            Event::End => self.end(),
        }
    }

    /// Where the value that begins now is.
    fn place(&mut self) -> Node {
        match self.frames.last_mut() {
            Some(frame) => {
                frame.is_empty = false;
                if frame.is_object { std::mem::replace(&mut self.next, Node::Skip) } else { frame.node }
            }
            None => Node::Top(1),
        }
    }

    fn begin(&mut self, kind: Kind) {
        (self.kind, self.is_too_long) = (kind, false);
        self.text.clear();
        if kind == Kind::Key {
            self.scalar = Scalar::Key;
            return;
        }
        self.scalar = match (self.place(), kind) {
            (Node::Text | Node::Turn | Node::Choices | Node::Top(0), Kind::Text) => Scalar::Text,
            (Node::All, Kind::Text) => {
                self.facts.is_repeat |= self.has_token;
                Scalar::Text
            }
            (Node::Arguments, _) => Scalar::Arguments,
            (Node::Done, Kind::Word) => Scalar::Keep(Node::Done),
            (Node::Packed, Kind::Text) if self.depth < INNER_MAX => {
                let mut inner = Document::nested(self.depth + 1);
                inner.state.said = self.said.take();
                self.inner = Some(Box::new(inner));
                Scalar::Packed
            }
            (
                node
                @ (Node::Count(_) | Node::Sum(_) | Node::OfModality | Node::OfIteration(_) | Node::Index),
                Kind::Word,
            ) => Scalar::Keep(node),
            (
                Node::Skip
                | Node::Count(_)
                | Node::Sum(_)
                | Node::OfModality
                | Node::Iterations
                | Node::OfIteration(_)
                | Node::Index
                | Node::Usage
                | Node::Top(_),
                _,
            ) => Scalar::Skip,
            (node, Kind::Text) => Scalar::Keep(node),
            _ => Scalar::Skip,
        };
    }

    fn piece(&mut self, bytes: &[u8]) {
        match self.scalar {
            Scalar::Skip => {}
            Scalar::Text => self.says(0, bytes),
            Scalar::Arguments => self.says(1, bytes),
            Scalar::Key | Scalar::Keep(_) => {
                if self.text.len() + bytes.len() > TEXT_BYTES_MAX {
                    self.is_too_long = true;
                } else {
                    self.text.extend_from_slice(bytes);
                }
            }
            Scalar::Packed => {
                for byte in bytes {
                    if self.text.len() == PACK_BYTES {
                        self.unpack(false);
                    }
                    self.text.push(*byte);
                }
            }
        }
    }

    fn says(&mut self, what: usize, bytes: &[u8]) {
        self.estimator.push(bytes);
        if let Some(said) = &mut self.said {
            said.push(self.choice.number(), what, bytes);
        }
    }

    /// The next answer of those beside one another begins, if it is one.
    fn chooses(&mut self) -> Node {
        if self.frames.last().is_some_and(|frame| frame.node == Node::Choices && !frame.is_object) {
            self.choice.begin(self.frames.len() + 1, self.said.as_ref());
        }
        Node::Turn
    }

    /// Decodes what came of a document that is packed: letters that fill it end nowhere but at its end.
    fn unpack(&mut self, is_last: bool) {
        let bytes = unpacked(&self.text).filter(|bytes| is_last || bytes.len() == PACK_BYTES / 4 * 3);
        self.text.clear();
        match (&mut self.inner, bytes) {
            (Some(inner), Some(bytes)) => inner.push(&bytes),
            (Some(inner), None) => {
                self.said = inner.state.said.take();
                self.inner = None;
            }
            (None, _) => {}
        }
    }

    fn end(&mut self) {
        match self.scalar {
            Scalar::Skip => {}
            Scalar::Text => self.estimator.end(),
            Scalar::Arguments => {
                self.estimator.end();
                // Of an object, one value is not the next.
                #[cfg(test)]
                crate::steps::add(self.frames.len());
                if self.frames.iter().any(|frame| frame.node == Node::Arguments) {
                    self.says(1, b"\n");
                }
            }
            Scalar::Key => self.key(),
            Scalar::Keep(node) => self.keep(node),
            Scalar::Packed => {
                self.unpack(true);
                let Some(mut inner) = self.inner.take() else { return };
                inner.finish();
                self.said = inner.state.said.take();
                if inner.is_whole() {
                    self.facts.take(&mut inner);
                }
            }
        }
    }

    fn key(&mut self) {
        let name = if self.is_too_long { "" } else { std::str::from_utf8(&self.text).unwrap_or_default() };
        if self.frames.last().is_some_and(|frame| frame.node == Node::Arguments) {
            self.next = Node::Arguments;
            let text = std::mem::take(&mut self.text);
            self.says(1, &text);
            self.says(1, b": ");
            self.text = text;
            return;
        }
        self.next = self.frames.last().map_or(Node::Skip, |frame| frame.node.member(name));
        self.facts.has_vectors |= self.next == Node::Vectors;
        // Of Bedrock, behind all else.
        let is_last = matches!(name, "metrics" | "amazon-bedrock-invocationMetrics");
        self.facts.is_over |= self.frames.len() == 1 && is_last;
        if self.frames.len() == 1 && name == "choices" {
            self.has_no_choices = true;
        } else if self.frames.len() == 1 && matches!(self.next, Node::Turn | Node::Choices) {
            // It says something besides.
            self.has_no_choices = false;
        }
    }

    fn close(&mut self) {
        let Some(frame) = self.frames.pop() else { return };
        self.choice.end(self.frames.len() + 1, frame.node == Node::Choices);
        if self.frames.len() == 1 && !frame.is_object && !frame.is_empty {
            self.has_no_choices = false;
        }
        let depth = self.frames.len() + 1;
        let here =
            |known: &mut Option<(usize, String)>| known.take_if(|(at, _)| *at == depth).map(|(_, text)| text);
        let (kind, name) = (here(&mut self.typed), here(&mut self.named));
        if frame.is_object {
            self.part(frame.node, kind.as_deref());
        }
        let asked = match (frame.node, kind.as_deref(), name) {
            (Node::Call, _, Some(name)) => Some(name),
            (Node::Turn, Some(kind), Some(name)) => is_call(kind).then_some(name),
            // A tool of the server's own: `web_search_call`.
            (Node::Turn, Some(kind), None) => own_tool(kind).map(str::to_owned),
            _ => None,
        };
        asked.into_iter().for_each(|name| self.facts.ask(name));
    }

    fn keep(&mut self, node: Node) {
        let text = std::str::from_utf8(&self.text).ok().filter(|_| !self.is_too_long);
        let depth = self.frames.len();
        match (node, text) {
            (Node::Count(count), Some(text)) => {
                if let (Some(number), Some(slot)) = (number(text), self.facts.counts.get_mut(count as usize))
                {
                    *slot = Some(number);
                }
            }
            (Node::Sum(count), Some(text)) => {
                if let (Some(number), Some(slot)) = (number(text), self.facts.counts.get_mut(count as usize))
                {
                    *slot = Some(slot.unwrap_or_default().saturating_add(number));
                }
            }
            (Node::OfModality | Node::OfIteration(_) | Node::Modality, Some(text)) => {
                self.parts.keep(node, text);
            }
            (Node::Index, Some(text)) => self.choice.is(depth, number(text), self.said.as_mut()),
            (Node::Done, Some("true")) => self.facts.is_over = true,
            (Node::Name | Node::Function, None) => self.facts.has_more_tools = true,
            (_, Some("") | None) => {}
            (Node::Model, Some(text)) => self.facts.model = Some(text.to_owned()),
            (Node::Finish, Some(text)) => self.facts.finish = Some(text.to_owned()),
            (Node::ErrorKind, Some(text)) => {
                self.facts.error.get_or_insert_with(|| text.to_owned());
            }
            (Node::Error, Some(_)) => {
                // Ollama says it in words.
                self.facts.error.get_or_insert_with(|| "error".to_owned());
            }
            (Node::Name | Node::Function, Some(text)) => {
                let is_plain = !text.chars().any(char::is_control);
                self.facts.has_more_tools |= !is_plain;
                self.named = Some((depth, text.to_owned()));
            }
            (Node::Status, Some(text)) => {
                self.facts.is_waiting = Some(matches!(text, "queued" | "in_progress"));
            }
            (Node::Type, Some(text)) => {
                if depth == 1 {
                    self.facts.is_start |= text == "message_start";
                    self.facts.is_repeat |= is_repeat(text);
                    self.facts.is_over |= is_over(text);
                    // Of two types, clients take the last.
                    self.is_sound = is_sound(text);
                }
                self.typed = Some((depth, text.to_owned()));
            }
            _ => {}
        }
    }
}
