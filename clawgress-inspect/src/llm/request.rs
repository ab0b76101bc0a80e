//! What a request says, from its fields as they stream by: which model, of whom it is asked, with which tools, and what
//! it is shown.
//!
//! Works in bounded memory, one step for each field and byte. Must never decide by a value that a server could take for
//! another: names that come twice, or in other letters, and values of another type are refused.

use std::collections::HashSet;

use super::attachment::Attachment;
use super::call::{Call, CallError, Signs};
use super::caps::Holder;
use super::estimate::Estimator;
use super::grammar::{self, Node};
use super::key::{KEY_BYTES_MAX, Key, OTHERS, ROOT_TOOLS};
use super::{Piece, Provenance, Role, Texts};
use crate::payload::json::{DEPTH_MAX, Event, Kind};
use shape::{shape_of_other, signs_of};
use values::{most, name, truth};

/// Longest name of a model or tool, bytes: beyond it, what is asked for can't be judged.
pub const NAME_BYTES_MAX: usize = 256;
/// The same of who it is for: of 256 characters, which is most that a provider takes, each may have four bytes.
pub const USER_BYTES_MAX: usize = 1024;
/// Most tools of a request that are told apart: a policy must see all of them.
pub const TOOLS_MAX: usize = 1024;
/// What a tool without a name and a type is called in policy.
pub const UNNAMED: &str = "unnamed";
/// An object or array that is open.
#[derive(Clone, Copy, Debug)]
struct Frame {
    node: Node,
    is_object: bool,
    /// Known names that were seen.
    keys: u128,
    /// Tools that were named when it began.
    offered: u64,
    role: Role,
    /// What it is, where it may hold limits.
    holder: Holder,
    /// Whether it says that what is attached in it is an image; and what was attached when it began, images and all.
    is_image: bool,
    attached: [u32; 2],
}

/// What becomes of the string or word at hand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Scalar {
    Skip,
    Key,
    /// Kept whole, up to a bound.
    Keep(Node),
    /// Told as a text of its own.
    Text,
    /// Told as a part of the text that all within is.
    Within,
    /// Counted.
    Blob,
    /// A file of a form.
    File,
    /// A token, or another number that stands for a text.
    Token,
}

/// What reads the fields of one request.
#[derive(Debug)]
pub struct Request {
    call: Call,
    texts: Texts,
    estimator: Estimator,
    attachment: Attachment,
    frames: Vec<Frame>,
    /// Where the next value is.
    next: Node,
    scalar: Scalar,
    kind: Kind,
    /// A name, or what is kept of a value.
    buffer: Vec<u8>,
    is_too_long: bool,
    /// Types of the tools that are open, and how deep they are.
    tool_types: Vec<(usize, String)>,
    /// The same of their members that are not known.
    unknown: Vec<(usize, String)>,
    /// Tools that were named, each time.
    offered: u64,
    known: HashSet<String>,
    /// Whether what comes next wraps a call, in a way that not every server knows, and how deep one is that does.
    wraps: bool,
    wrapped: Option<usize>,
    /// What holds limits next, and whether what is attached next is said to be an image.
    holder: Holder,
    says_image: bool,
    /// How deep the text begins that all within is.
    every: Option<usize>,
    error: Option<CallError>,
    /// Whether its one document has begun.
    has_begun: bool,
    is_form: bool,
    /// Events and bytes that were taken, and objects that were looked at besides.
    #[cfg(test)]
    steps: std::cell::Cell<u64>,
}

// === impl Request ===

impl Default for Request {
    fn default() -> Self {
        Request {
            call: Call::default(),
            texts: Texts::default(),
            estimator: Estimator::default(),
            attachment: Attachment::default(),
            frames: Vec::with_capacity(DEPTH_MAX as usize),
            next: Node::Root,
            scalar: Scalar::Skip,
            buffer: Vec::with_capacity(NAME_BYTES_MAX),
            kind: Kind::Key,
            is_too_long: false,
            tool_types: Vec::new(),
            unknown: Vec::new(),
            offered: 0,
            known: HashSet::new(),
            holder: Holder::Root,
            says_image: false,
            every: None,
            wraps: false,
            wrapped: None,
            error: None,
            has_begun: false,
            is_form: false,
            #[cfg(test)]
            steps: std::cell::Cell::default(),
        }
    }
}

impl Request {
    /// Takes what comes next of its document, and tells `sink` the pieces of texts that it shows.
    ///
    /// # Errors
    /// Why what it asks for can't be known: from then on for good.
    pub fn event(&mut self, event: Event<'_>, sink: &mut dyn FnMut(&Piece<'_>)) -> Result<(), CallError> {
        #[cfg(test)]
        self.steps.update(|n| n + if let Event::Piece(bytes) = event { bytes.len() as u64 } else { 1 });
        let taken = match event {
            Event::Open { object } => self.open(object, sink),
            Event::Close => self.close(sink),
            Event::Begin(kind) => self.begin(kind, sink),
            Event::Piece(bytes) => {
                self.piece(bytes, sink);
                Ok(())
            }
            Event::End => self.end(sink),
        };
        // Goes on after one, for its shape: what a server takes nonetheless must be known for a call.
        self.error = self.error.or(taken.err());
        self.error.map_or(Ok(()), Err)
    }

    fn event_fails(&mut self, error: CallError) -> Result<(), CallError> {
        Err(*self.error.get_or_insert(error))
    }

    /// Ends it.
    pub fn finish(&mut self, sink: &mut dyn FnMut(&Piece<'_>)) {
        // Of a form, nothing closes the object that it stands for.
        if self.error.is_none() && self.frames.len() > usize::from(self.is_form) {
            self.error = Some(CallError::NoObject);
        }
        self.call.tokens_estimated = self.estimator.tokens();
        self.texts.finish(sink);
    }

    /// What it says, so far.
    #[must_use]
    pub fn call(&self) -> &Call {
        &self.call
    }

    /// Why what it asks for can't be known.
    #[must_use]
    pub fn error(&self) -> Option<CallError> {
        self.error
    }

    /// Whether any of it was read.
    #[must_use]
    pub fn has_begun(&self) -> bool {
        self.has_begun
    }

    /// Whether it looks like a call of a model, by what was read.
    #[must_use]
    pub fn is_call(&self) -> bool {
        self.call.shape.is_call(self.call.model.is_some())
    }

    /// Bytes that it holds at most by now.
    #[must_use]
    pub fn memory_bytes(&self) -> usize {
        let tools: usize = self.call.tools.iter().map(|tool| tool.len() + size_of::<String>()).sum();
        size_of::<Frame>() * DEPTH_MAX as usize + self.texts.memory_bytes() + 2 * tools
    }

    /// Where the value that begins now is.
    fn place(&mut self) -> Node {
        match self.frames.last() {
            Some(frame) if !frame.is_object => frame.node,
            _ => std::mem::replace(&mut self.next, Node::Skip),
        }
    }

    fn open(&mut self, is_object: bool, sink: &mut dyn FnMut(&Piece<'_>)) -> Result<(), CallError> {
        let mut place = self.place();
        let mut error = None;
        if self.frames.is_empty() {
            if !is_object || self.has_begun {
                (place, error) = (Node::Skip, Some(CallError::NoObject));
            }
            self.has_begun = true;
        }
        // Who it is for can't be known of what is no name.
        if place.is_scalar() || place == Node::EndUser {
            (place, error) = (Node::Skip, Some(CallError::Type));
        }
        self.call.is_partial |= place == Node::Remote;
        self.counts_prompt(place, !is_object);
        self.call.shape.prompt_object |= is_object && place == Node::Prompt && self.frames.len() == 1;
        let node = place.opened(is_object);
        let outer = self.frames.last().map_or(Role::Unknown, |frame| frame.role);
        let defines = self.defines(place);
        let says = match (place, node) {
            (_, Node::Message) => Some(None),
            (Node::Say(role), _) => Some(Some(role)),
            (Node::Prompt, _) => Some(Some(Role::User)),
            // Not of the message before it.
            (Node::Documents, _) if self.frames.len() == 1 => Some(Some(Role::User)),
            (Node::Tools | Node::ToolConfig, _) if self.frames.len() == 1 => Some(Some(Role::System)),
            (Node::Drawing, _) if self.frames.len() == 1 => Some(Some(Role::User)),
            _ if defines => Some(Some(Role::System)),
            _ => None,
        };
        if let Some(role) = says {
            self.texts.message(role, sink);
        }
        if matches!(node, Node::Tool | Node::Document) {
            self.texts.apart();
        }
        let role = says.map_or(outer, Option::unwrap_or_default);
        if let (Node::Every(from), None) = (node, self.every) {
            self.every = Some(self.frames.len());
            self.texts.begin(Some(from));
        }
        if matches!(node, Node::Attachment) && self.attachment_depth() == 0 {
            self.attachment = Attachment::said(self.says_image);
        }
        if is_object && matches!(place, Node::Tools | Node::Tool) {
            self.call.shape.tuned = true;
        }
        let is_one_of_many = self.frames.last().is_some_and(|frame| frame.node == Node::Requests);
        if (std::mem::take(&mut self.wraps) || is_one_of_many) && node == Node::Root {
            self.wrapped.get_or_insert(self.frames.len());
        }
        let holder = if node == Node::Config { self.holder } else { Holder::Root };
        let attached = [self.call.attachments.images, self.call.attachments.count];
        let frame = Frame {
            node,
            is_object,
            keys: 0,
            offered: self.offered,
            role,
            holder,
            is_image: false,
            attached,
        };
        self.frames.push(frame);
        error.map_or(Ok(()), Err)
    }

    /// Whether what begins here is a definition beside the messages, and notes it.
    fn defines(&mut self, place: Node) -> bool {
        let is_aside = self.frames.last().is_some_and(|frame| frame.node.is_aside());
        let defines = place == Node::Every(Provenance::ToolDefinition) && is_aside;
        self.call.has_definitions |= defines;
        defines
    }

    /// How many of the open objects hold the attachment at hand.
    fn attachment_depth(&self) -> usize {
        let depth = self.frames.iter().rev().take_while(|frame| frame.node == Node::Attachment).count();
        #[cfg(test)]
        self.steps.update(|n| n + depth as u64);
        depth
    }

    fn close(&mut self, sink: &mut dyn FnMut(&Piece<'_>)) -> Result<(), CallError> {
        let Some(frame) = self.frames.pop() else { return Ok(()) };
        if self.every == Some(self.frames.len()) {
            self.every = None;
            self.end_text(sink);
        }
        self.wrapped = self.wrapped.filter(|depth| *depth != self.frames.len());
        match frame.node {
            Node::Message => {
                let role = frame.role as usize;
                if let Some(count) = self.call.messages.get_mut(role) {
                    *count = count.saturating_add(1);
                }
                self.estimator.message();
            }
            Node::Attachment if frame.is_object && self.attachment_depth() == 0 => {
                let attachment = std::mem::take(&mut self.attachment);
                self.call.attachments.add(&attachment);
            }
            Node::Tool if frame.is_object => return self.tool_ends(frame),
            Node::Part(None) if frame.is_object => {
                self.images_of_part(frame);
                self.shape_of_part(frame);
            }
            Node::Part(Some(_)) if frame.is_object => self.images_of_part(frame),
            _ => {}
        }
        Ok(())
    }

    fn begin(&mut self, kind: Kind, sink: &mut dyn FnMut(&Piece<'_>)) -> Result<(), CallError> {
        (self.kind, self.is_too_long) = (kind, false);
        self.buffer.clear();
        if kind == Kind::Key {
            self.scalar = Scalar::Key;
            return Ok(());
        }
        let place = self.place();
        if self.frames.is_empty() {
            (self.scalar, self.has_begun) = (Scalar::Skip, true);
            return Err(CallError::NoObject);
        }
        self.counts_prompt(place, kind == Kind::Text);
        self.scalar = match (place, kind) {
            _ if self.every.is_some() => Scalar::Within,
            (Node::Content(from), Kind::Text) => {
                let is_message = self.frames.last().is_some_and(|frame| frame.node == Node::Message);
                self.call.shape.signs.add(if is_message { Signs::PLAIN } else { Signs::default() });
                self.begin_text(from)
            }
            (Node::Every(from), Kind::Text) => {
                if self.defines(place) {
                    self.texts.message(Some(Role::System), sink);
                }
                self.begin_text(Some(from))
            }
            (Node::Offer, Kind::Text) => self.begin_text(Some(Provenance::Unknown)),
            (Node::Output, Kind::Text) => {
                self.texts.message(Some(Role::User), sink);
                self.begin_text(None)
            }
            (Node::Say(role), Kind::Text) => {
                self.texts.message(Some(role), sink);
                self.begin_text(None)
            }
            (Node::Prompt | Node::Input, Kind::Text) => {
                self.call.shape.inputs_text |= self.call.shape.inputs && self.frames.len() == 1;
                self.texts.message(Some(Role::User), sink);
                self.begin_text(None)
            }
            (Node::Messages, Kind::Text) => {
                self.texts.message(None, sink);
                self.begin_text(None)
            }
            (Node::Documents, Kind::Text) => {
                self.texts.message(Some(Role::User), sink);
                self.begin_text(Some(Provenance::Retrieved))
            }
            (Node::Input | Node::Say(_) | Node::Prompt, _) => Scalar::Token,
            (Node::Blob | Node::Link, Kind::Text) => {
                if self.attachment_depth() == 0 {
                    self.attachment = Attachment::said(self.says_image);
                }
                self.attachment.begin(place == Node::Link);
                Scalar::Blob
            }
            (Node::Tools, Kind::Text) => Scalar::Keep(Node::ToolName),
            (Node::Skip, _) => Scalar::Skip,
            (node, _) => Scalar::Keep(node),
        };
        Ok(())
    }

    fn begin_text(&mut self, from: Option<Provenance>) -> Scalar {
        self.texts.begin(from);
        Scalar::Text
    }

    fn end_text(&mut self, sink: &mut dyn FnMut(&Piece<'_>)) {
        self.texts.end(sink);
        self.estimator.end();
        self.call.texts = self.texts.count();
        self.call.tokens_estimated = self.estimator.tokens();
    }

    fn piece(&mut self, bytes: &[u8], sink: &mut dyn FnMut(&Piece<'_>)) {
        match self.scalar {
            Scalar::Skip | Scalar::Token => {}
            Scalar::Text => {
                self.estimator.push(bytes);
                self.texts.push(bytes, sink);
            }
            Scalar::Key if self.every.is_some() => {
                self.estimator.push(bytes);
                self.texts.push(bytes, sink);
            }
            Scalar::Within => {
                self.estimator.push(bytes);
                self.texts.push(bytes, sink);
            }
            Scalar::Key | Scalar::Keep(_) => {
                let bytes_max = match self.scalar {
                    Scalar::Key => KEY_BYTES_MAX,
                    Scalar::Keep(Node::EndUser) => USER_BYTES_MAX,
                    _ => NAME_BYTES_MAX,
                };
                if self.buffer.len() + bytes.len() > bytes_max {
                    self.is_too_long = true;
                } else {
                    self.buffer.extend_from_slice(bytes);
                }
            }
            Scalar::File => self.attachment.count(bytes),
            Scalar::Blob => {
                let (texts, estimator) = (&mut self.texts, &mut self.estimator);
                self.attachment.push(bytes, &mut |begins, text| {
                    if begins {
                        texts.begin(Some(Provenance::Retrieved));
                    }
                    estimator.push(text);
                    texts.push(text, sink);
                });
            }
        }
    }

    fn end(&mut self, sink: &mut dyn FnMut(&Piece<'_>)) -> Result<(), CallError> {
        match self.scalar {
            Scalar::Skip => Ok(()),
            Scalar::Token => {
                self.estimator.token();
                self.call.tokens_estimated = self.estimator.tokens();
                Ok(())
            }
            Scalar::Text => {
                self.end_text(sink);
                Ok(())
            }
            Scalar::Key if self.every.is_none() => self.key(),
            // One text of all there is, whose fields are apart.
            Scalar::Key | Scalar::Within => {
                let between: &[u8] = if self.scalar == Scalar::Key { b": " } else { b"\n" };
                self.estimator.push(between);
                self.texts.push(between, sink);
                Ok(())
            }
            Scalar::File => {
                let attachment = std::mem::take(&mut self.attachment);
                self.call.attachments.add(&attachment);
                Ok(())
            }
            Scalar::Blob => {
                let (texts, estimator) = (&mut self.texts, &mut self.estimator);
                let is_text = self.attachment.end(&mut |begins, text| {
                    if begins {
                        texts.begin(Some(Provenance::Retrieved));
                    }
                    estimator.push(text);
                    texts.push(text, sink);
                });
                if is_text {
                    self.end_text(sink);
                }
                if self.attachment_depth() == 0 {
                    let attachment = std::mem::take(&mut self.attachment);
                    self.call.attachments.add(&attachment);
                }
                Ok(())
            }
            Scalar::Keep(node) => self.keep(node, sink),
        }
    }

    /// A name, and where its value is.
    fn key(&mut self) -> Result<(), CallError> {
        let is_root = self.frames.len() == 1;
        let Some(frame) = self.frames.last_mut() else { return Ok(()) };
        let name = if self.is_too_long { "" } else { std::str::from_utf8(&self.buffer).unwrap_or_default() };
        let exact = Key::exact(name);
        let means = |key: &Key| !matches!(frame.node.member(*key), Node::Skip | Node::Every(_));
        let folded = if exact.is_none() { Key::folded(name).filter(means) } else { None };
        let mut error = folded.is_some().then_some(CallError::Letters);
        let Some(key) = exact.or(folded) else {
            self.next = frame.node.other(name).limit(frame.holder, name);
            self.holder = Holder::of(name);
            if is_root && matches!(name, "input_ids" | "input_embeds") {
                self.call.caps.text();
            }
            self.says_image &= frame.node == Node::Attachment;
            self.wraps = self.next == Node::Root;
            self.call.is_partial |= frame.node == Node::Attachment && self.next == Node::Link;
            if frame.node == Node::Tool && !grammar::NO_TOOLS.contains(&name) {
                let name = if name.is_empty() { UNNAMED } else { name }.to_owned();
                return self.perhaps_tool(name);
            }
            if is_root && let Some(tool) = ROOT_TOOLS.iter().find(|tool| name.eq_ignore_ascii_case(tool)) {
                return self.offer((*tool).to_owned());
            }
            self.call.has_others |= is_root && OTHERS.iter().any(|other| name.eq_ignore_ascii_case(other));
            shape_of_other(&mut self.call.shape, frame.node, is_root, name);
            return Ok(());
        };
        self.next = frame.node.member(key).limit(frame.holder, name);
        self.holder = Holder::of(name);
        if frame.node != Node::Attachment {
            self.says_image = matches!(key, Key::ImageUrl | Key::Image | Key::Blobs);
        }
        self.wraps = false;
        self.call.is_partial |= self.next == Node::Link && matches!(key, Key::FileId | Key::FileUri);
        if self.next != Node::Skip && frame.keys & key.bit() != 0 {
            error = error.or(Some(CallError::Twice));
        }
        frame.keys |= key.bit();
        let node = frame.node;
        let signs = signs_of(node, is_root, key, name);
        let builtin = (self.next == Node::Builtin).then(|| name.to_owned());
        self.shape_of(node, key, signs);
        if let Some(name) = builtin {
            self.offer(name)?;
        }
        error.map_or(Ok(()), Err)
    }

    /// A value that is kept whole.
    fn keep(&mut self, node: Node, sink: &mut dyn FnMut(&Piece<'_>)) -> Result<(), CallError> {
        let is_null = self.kind == Kind::Word && !self.is_too_long && self.buffer == b"null";
        let text = std::str::from_utf8(&self.buffer).ok().filter(|_| !self.is_too_long);
        if is_null {
            return Ok(());
        }
        // Of several requests in one, only the outer says what is asked for.
        let is_outer = self.frames.len() == 1;
        match (node, self.kind, text) {
            (Node::Model | Node::Stream | Node::Store, ..) if !is_outer => {}
            (Node::IncludeUsage, ..) if self.wrapped.is_some() => {}
            (Node::Model, Kind::Text, text) => {
                self.call.model = Some(name(text)?);
            }
            (Node::Stream, Kind::Word, text) => self.call.stream = Some(truth(text)?),
            (Node::IncludeUsage, Kind::Word, text) => self.call.include_usage = Some(truth(text)?),
            (Node::Store, Kind::Word, text) => self.call.store = Some(truth(text)?),
            (Node::Cap(_) | Node::Predict | Node::Copies, Kind::Word, text) => {
                self.limit(node, text.map_or(u64::MAX, most));
            }
            (Node::RoleName, Kind::Text, text) => {
                let role = Role::named(text.unwrap_or_default());
                self.call.shape.messages |= role != Role::Unknown;
                self.call.shape.signs.add(Signs::of_role(role));
                self.is_by(role, sink);
            }
            (node, ..) if node.is_scalar() => return Err(CallError::Type),
            (Node::TypeName, Kind::Text, Some(kind)) => {
                self.call.shape.signs.add(Signs::of_part(kind));
                let is_image = kind.split('_').any(|word| word == "image");
                self.frames.iter_mut().last().into_iter().for_each(|frame| frame.is_image |= is_image);
            }
            (Node::ItemType, Kind::Text, Some(kind)) => {
                self.call.is_partial |= kind == "item_reference";
                match kind {
                    _ if kind.ends_with("_output") => self.is_by(Role::Tool, sink),
                    "reasoning" | "function_call" | "custom_tool_call" => self.is_by(Role::Assistant, sink),
                    _ => {}
                }
            }
            (Node::ToolName, Kind::Text, text) => {
                let name = name(text)?;
                self.estimator.push(name.as_bytes());
                self.estimator.end();
                self.offer(name)?;
            }
            (Node::ToolType, Kind::Text, text) if self.error.is_none() => {
                self.tool_types.push((self.frames.len(), name(text)?));
            }
            (Node::ToolChoice | Node::ChoiceName, Kind::Text, text) => self.choose(name(text)?),
            // A number, too, to servers that take it for its text.
            (Node::EndUser, _, text) if text != Some("") => {
                let user = name(text)?;
                self.call.end_user.get_or_insert(user);
            }
            (Node::MediaType, Kind::Text, Some(text)) => self.attachment.media_type(text),
            (Node::Remote | Node::Container, Kind::Text, _) => self.call.is_partial = true,
            _ => {}
        }
        Ok(())
    }

    fn is_by(&mut self, role: Role, sink: &mut dyn FnMut(&Piece<'_>)) {
        self.texts.is_by(role, sink);
        if let Some(frame) = self.frames.last_mut()
            && frame.role == Role::Unknown
        {
            frame.role = role;
        }
    }
}

mod fields;
mod limits;
mod shape;
mod tools;
mod values;

#[cfg(test)]
mod tests;
