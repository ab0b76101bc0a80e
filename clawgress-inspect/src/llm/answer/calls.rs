//! Calls of tools that a model asks for, put together of what they come in: parts of names and of arguments, of several calls
//! and several answers at once.
//!
//! A call is told once it is whole, in each way that clients may put it together. Must never hold more than it was told to, nor
//! take for a whole call what is not: what can't be put together with certainty is an error.

use super::ASKED_MAX;
use super::places::unpacked;
use crate::tool::{NAME_BYTES_MAX, Value, ValueError, argument_values};

mod forms;

/// A call that is whole.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Asked {
    /// The tool.
    pub name: String,
    /// Names of its arguments.
    pub argument_names: Vec<String>,
    /// Each of their values that is no object or array: a JSON pointer, `=` and the value.
    pub values: Vec<String>,
    /// The arguments as canonical JSON; as they are of a tool that takes text; empty if there are none.
    pub arguments: String,
}

/// What is wanted of calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Following {
    /// Names, put together of what they come in.
    Names,
    /// All of each, as it goes on.
    Told,
    /// All of each, before any of it goes on.
    Held,
}

/// Why calls can't be known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CallsError {
    /// Of a document of the answer.
    #[error("a part of the answer is no JSON that all read alike")]
    Document,
    /// Of a call's arguments.
    #[error("the arguments of a call are no JSON that all read alike")]
    Arguments,
    /// A call that comes in a way that is not known.
    #[error("a call comes in parts that can't be put together")]
    Form,
    /// More than is kept.
    #[error("there are too many calls, or too large ones")]
    TooMuch,
}

/// Puts calls together.
#[derive(Debug)]
pub(super) struct Calls {
    /// Bytes of calls that have not ended.
    bytes_max: usize,
    following: Following,
    /// Whether a model is known to answer, so that every document has to be one of its.
    is_model: bool,
    open: Vec<Open>,
    /// Blocks and items, calls or not, as they began.
    blocks: Order,
    items: Order,
    whole: Vec<Asked>,
    /// Names that are known, and how many of them were taken.
    known: Vec<String>,
    taken: usize,
    /// Whether there are others, which are not kept.
    has_more: bool,
    /// Whether no more is kept.
    is_over: bool,
    /// What open calls come to.
    bytes: usize,
    failed: Option<CallsError>,
}

/// Whose parts belong together: what a provider numbers by, and its numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Key {
    /// Of a choice, by its place in that.
    Choice(u64, u64),
    /// The one function of a choice that old clients know.
    Function(u64),
    /// A block of Anthropic's or Amazon's.
    Block(u64),
    /// An item of the Responses API.
    Item(u64),
    /// Of Cohere.
    Cohere(u64),
}

/// Whether what is numbered began in the order of its numbers: clients put one behind the other, and find it by its number.
#[derive(Debug)]
struct Order {
    /// `None` where it may go on from anywhere.
    next: Option<u64>,
    is_kept: bool,
}

/// A call that has not ended.
#[derive(Debug)]
struct Open {
    key: Key,
    id: Option<String>,
    name: Name,
    arguments: String,
    /// Arguments that came as values.
    values: Vec<Value>,
    /// Whether they are text, whatever that looks like.
    is_text: bool,
}

/// A name, as it came so far; that of an earlier call under the same key before it.
#[derive(Clone, Debug, Default)]
struct Name {
    first: String,
    joined: String,
    last: String,
}

/// Some of a call.
#[derive(Clone, Copy, Debug, Default)]
struct Part<'a> {
    id: Option<&'a str>,
    name: Option<&'a str>,
    arguments: Option<&'a Value>,
    is_text: bool,
}

// === impl Calls ===

impl Calls {
    pub(super) fn new(bytes_max: usize, following: Following, is_model: bool) -> Calls {
        Calls {
            bytes_max,
            following,
            is_model,
            open: Vec::new(),
            blocks: Order::default(),
            // A stream that is resumed begins in the middle.
            items: Order { next: None, is_kept: true },
            whole: Vec::new(),
            known: Vec::new(),
            taken: 0,
            has_more: false,
            is_over: false,
            bytes: 0,
            failed: None,
        }
    }

    /// Whether what came last waits for the rest of a call.
    pub(super) fn waits(&self) -> bool {
        self.following == Following::Held && !self.open.is_empty()
    }

    fn is_whole_wanted(&self) -> bool {
        self.following != Following::Names
    }

    /// Bytes that it has.
    pub(super) fn memory_bytes(&self) -> usize {
        self.bytes + self.whole.iter().map(|call| call.arguments.len()).sum::<usize>()
    }

    /// Looks at a document that has ended; `None` of one that was too long to keep.
    pub(super) fn document(&mut self, text: Option<&[u8]>) {
        match text {
            // What it names is asked about all the same.
            None if !self.is_model || !self.is_whole_wanted() => {}
            None => self.fail(CallsError::TooMuch),
            Some(text) if text.iter().all(u8::is_ascii_whitespace) => {}
            Some(text) if text.trim_ascii() == b"[DONE]" => self.close(|_| true),
            Some(text) => match Value::parse(text) {
                Ok(value) => self.read(&value, true),
                Err(_) if !self.is_whole_wanted() => {}
                Err(ValueError::Malformed) if !self.is_model => {}
                Err(_) => self.fail(CallsError::Document),
            },
        }
    }

    /// Notes that a document names this tool.
    pub(super) fn named(&mut self, name: &str) {
        #[cfg(test)]
        crate::steps::add(self.known.len());
        if !self.known.iter().any(|known| known == name) {
            self.fail(CallsError::Form);
        }
    }

    /// Ends the answer: nothing more comes of what is open.
    pub(super) fn end(&mut self) {
        self.close(|_| true);
    }

    /// Calls that became whole.
    pub(super) fn take(&mut self) -> Result<Vec<Asked>, CallsError> {
        self.failed.map_or_else(|| Ok(std::mem::take(&mut self.whole)), Err)
    }

    /// Names that became known since this was asked last, with what parts of them come to; and whether there are more.
    pub(super) fn take_names(&mut self) -> (&[String], bool) {
        let from = std::mem::replace(&mut self.taken, self.known.len());
        (self.known.get(from..).unwrap_or_default(), self.has_more)
    }

    /// Notes that a document broke off, or is none.
    pub(super) fn breaks(&mut self) {
        if self.is_model {
            self.fail(CallsError::Document);
        }
    }

    /// Nothing is kept of what comes behind what can't be known.
    fn fail(&mut self, why: CallsError) {
        match (self.is_whole_wanted(), why) {
            // Names are told as far as there is room; what a call is of is not asked.
            (false, CallsError::TooMuch) => (self.has_more, self.is_over) = (true, true),
            (false, CallsError::Form | CallsError::Arguments) => {}
            _ => {
                self.failed.get_or_insert(why);
                self.is_over = true;
            }
        }
        if self.is_over {
            (self.open, self.whole, self.bytes) = (Vec::new(), Vec::new(), 0);
        }
    }

    /// A document in base64: nothing is packed in that.
    fn packed(&mut self, text: &str) {
        match unpacked(text.as_bytes()).and_then(|text| Value::parse(&text).ok()) {
            Some(value) => self.read(&value, false),
            None => self.fail(CallsError::Document),
        }
    }

    /// Adds some of a call; begins it if `begins`, or there is none.
    fn part(&mut self, key: Key, part: Part<'_>, begins: bool) {
        if self.is_over {
            return;
        }
        #[cfg(test)]
        crate::steps::add(2 * self.open.len() + 1);
        let known = self.open.iter().rposition(|open| open.key == key && open.is_of(part.id));
        let at = match known.filter(|_| !begins) {
            Some(at) => at,
            None if self.open.len() >= ASKED_MAX => return self.fail(CallsError::TooMuch),
            None => {
                // Some clients go by the number alone.
                let before = self.open.iter().rev().find(|open| open.key == key);
                let name = before.map(|open| open.name.clone()).unwrap_or_default();
                self.bytes += 2 * name.joined.len();
                self.open.push(Open::new(key, name));
                self.open.len() - 1
            }
        };
        let Some(open) = self.open.get_mut(at) else { return };
        open.is_text |= part.is_text;
        if let Some(id) = part.id.filter(|id| !id.is_empty() && open.id.is_none()) {
            open.id = Some(id.to_owned());
        }
        let mut bytes = part.id.map_or(0, str::len);
        if let Some(name) = part.name.filter(|name| !name.is_empty()) {
            bytes += name.len();
            if !open.name.push(name) {
                return self.fail(CallsError::TooMuch);
            }
            open.name.readings().into_iter().for_each(|name| self.know(&name));
        }
        if self.is_whole_wanted() {
            bytes += part.arguments.map_or(0, |value| self.add(key, value));
        }
        self.bytes += bytes;
        if self.bytes > self.bytes_max {
            self.fail(CallsError::TooMuch);
        }
    }

    /// Adds to the arguments of the newest call of this key; how many bytes.
    fn add(&mut self, key: Key, value: &Value) -> usize {
        let Some(open) = self.open.iter_mut().rev().find(|open| open.key == key) else { return 0 };
        match value {
            Value::Text(text) => {
                open.arguments.push_str(text);
                text.len()
            }
            Value::Null => 0,
            Value::Object(members) if members.is_empty() => 0,
            value => {
                open.values.push(value.clone());
                value.json().len()
            }
        }
    }

    /// Ends open calls.
    fn close(&mut self, mut is: impl FnMut(Key) -> bool) {
        #[cfg(test)]
        crate::steps::add(self.open.len());
        let mut at = 0;
        while let Some(open) = self.open.get(at) {
            if is(open.key) {
                let open = self.open.remove(at);
                self.ended(&open);
            } else {
                at += 1;
            }
        }
        if self.open.is_empty() {
            self.bytes = 0;
        }
    }

    fn ended(&mut self, open: &Open) {
        if !self.is_whole_wanted() {
            return;
        }
        let names = open.name.readings();
        if names.is_empty() {
            return self.fail(CallsError::Form);
        }
        for name in names {
            let text = Value::Text(open.arguments.clone());
            let is_bare = open.values.is_empty();
            let texts = Some(&text).filter(|_| !open.arguments.is_empty() || is_bare);
            for arguments in texts.into_iter().chain(&open.values) {
                self.whole_call(&name, Some(arguments), open.is_text);
            }
        }
    }

    /// Adds a call that came whole.
    fn whole_call(&mut self, name: &str, arguments: Option<&Value>, is_text: bool) {
        if name.len() > NAME_BYTES_MAX {
            return self.fail(CallsError::TooMuch);
        }
        self.know(name);
        if !self.is_whole_wanted() || self.is_over {
            return;
        }
        #[cfg(test)]
        crate::steps::add(self.whole.len());
        match asked(name, arguments, is_text) {
            Ok(_) if self.whole.len() >= 4 * ASKED_MAX => self.fail(CallsError::TooMuch),
            Ok(call) if !self.whole.contains(&call) => self.whole.push(call),
            Ok(_) => {}
            Err(why) => self.fail(why),
        }
    }

    fn know(&mut self, name: &str) {
        #[cfg(test)]
        crate::steps::add(self.known.len());
        if self.known.iter().any(|known| known == name) {
            return;
        }
        if self.known.len() < 4 * ASKED_MAX {
            self.known.push(name.to_owned());
        } else {
            self.fail(CallsError::TooMuch);
        }
    }
}

// === impl Order ===

impl Default for Order {
    fn default() -> Order {
        Order { next: Some(0), is_kept: true }
    }
}

impl Order {
    /// The next one begins, with this number; its place.
    fn begins(&mut self, number: Option<u64>) -> u64 {
        let place = self.next.or(number).unwrap_or_default();
        self.next = Some(place.saturating_add(1));
        self.is_kept &= number == Some(place);
        number.unwrap_or(place)
    }
}

// === impl Open ===

impl Open {
    fn new(key: Key, name: Name) -> Open {
        Open { key, id: None, name, arguments: String::new(), values: Vec::new(), is_text: false }
    }

    /// Whether a part of this id belongs to it.
    fn is_of(&self, id: Option<&str>) -> bool {
        match (&self.id, id) {
            (Some(own), Some(id)) => own == id || id.is_empty(),
            _ => true,
        }
    }
}

// === impl Name ===

impl Name {
    /// Adds a part of it, unless it becomes longer than names are.
    fn push(&mut self, part: &str) -> bool {
        let is_name = self.joined.len() + part.len() <= NAME_BYTES_MAX;
        if is_name {
            if self.first.is_empty() {
                part.clone_into(&mut self.first);
            }
            self.joined.push_str(part);
            part.clone_into(&mut self.last);
        }
        is_name
    }

    /// What clients may take for it: parts put together, as the APIs have it; the first, or the last of them.
    fn readings(&self) -> Vec<String> {
        let mut all = vec![self.joined.clone()];
        for name in [&self.first, &self.last] {
            if !all.contains(name) {
                all.push(name.clone());
            }
        }
        all.retain(|name| !name.is_empty());
        all
    }
}

/// A call of these arguments.
fn asked(name: &str, arguments: Option<&Value>, is_text: bool) -> Result<Asked, CallsError> {
    let name = name.to_owned();
    let parsed;
    let value = match arguments {
        Some(Value::Text(text)) if is_text => {
            return Ok(Asked {
                values: vec![format!("={text}")],
                arguments: text.clone(),
                name,
                ..Asked::default()
            });
        }
        Some(Value::Text(text)) if text.trim().is_empty() => None,
        Some(Value::Text(text)) => {
            parsed = Value::parse(text.as_bytes()).map_err(|_| CallsError::Arguments)?;
            Some(&parsed)
        }
        value => value,
    };
    let Some(value) = value else { return Ok(Asked { name, ..Asked::default() }) };
    Ok(Asked {
        name,
        argument_names: value.members().iter().map(|(name, _)| name.clone()).collect(),
        values: argument_values(value).map_err(|_| CallsError::TooMuch)?,
        arguments: value.canonical(),
    })
}

#[cfg(test)]
mod tests;
