//! Calls of tools that a model asks for, put together of what they come in: parts of names and of arguments, of several calls
//! and several answers at once.
//!
//! A call is told once it is whole, in each way that clients may put it together. Must never hold more than it was told to, nor
//! take for a whole call what is not: what can't be put together with certainty is an error.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;

use super::ASKED_MAX;
use crate::tool::{Value, ValueError, argument_values};

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
    whole: Vec<Asked>,
    /// Names that came in parts, put together.
    joined: Vec<String>,
    /// Names that are known.
    known: Vec<String>,
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

/// A call that has not ended.
#[derive(Debug)]
struct Open {
    key: Key,
    id: Option<String>,
    /// What came as its name, in order; and whether parts of an earlier one under the same key are among them.
    names: Vec<String>,
    arguments: String,
    /// Arguments that came as values.
    values: Vec<Value>,
    /// Whether they are text, whatever that looks like.
    is_text: bool,
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
            whole: Vec::new(),
            joined: Vec::new(),
            known: Vec::new(),
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
            None if !self.is_model => {}
            None => self.fail(CallsError::TooMuch),
            Some(text) if text.iter().all(u8::is_ascii_whitespace) => {}
            Some(text) if text.trim_ascii() == b"[DONE]" => self.close(|_| true),
            Some(text) => match Value::parse(text) {
                Ok(value) => self.read(&value),
                Err(ValueError::Malformed) if !self.is_model => {}
                Err(_) => self.fail(CallsError::Document),
            },
        }
    }

    /// Notes that a document names this tool.
    pub(super) fn named(&mut self, name: &str) {
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

    /// Names that came in parts.
    pub(super) fn take_joined(&mut self) -> Vec<String> {
        std::mem::take(&mut self.joined)
    }

    fn fail(&mut self, why: CallsError) {
        self.failed.get_or_insert(why);
    }

    /// A document in base64, of Bedrock.
    fn packed(&mut self, text: &str) {
        match BASE64.decode(text).ok().and_then(|text| Value::parse(&text).ok()) {
            Some(value) => self.forms(&value),
            None => self.fail(CallsError::Document),
        }
    }

    /// Adds some of a call; begins it if `begins`, or there is none.
    fn part(&mut self, key: Key, part: Part<'_>, begins: bool) {
        let known = self.open.iter().rposition(|open| open.key == key && open.is_of(part.id));
        let at = match known.filter(|_| !begins) {
            Some(at) => at,
            None if self.open.len() >= ASKED_MAX => return self.fail(CallsError::TooMuch),
            None => {
                // Some clients go by the number alone.
                let before = self.open.iter().rev().find(|open| open.key == key);
                let names = before.map(|open| open.names.clone()).unwrap_or_default();
                self.bytes += names.iter().map(String::len).sum::<usize>();
                self.open.push(Open::new(key, names));
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
            open.names.push(name.to_owned());
            let readings = open.readings();
            let is_joined = open.names.len() > 1;
            for name in readings {
                if is_joined {
                    self.joined.push(name.clone());
                }
                self.know(name);
            }
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
        let names = open.readings();
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
        self.know(name.to_owned());
        if !self.is_whole_wanted() {
            return;
        }
        match asked(name, arguments, is_text) {
            Ok(_) if self.whole.len() >= 4 * ASKED_MAX => self.fail(CallsError::TooMuch),
            Ok(call) if !self.whole.contains(&call) => self.whole.push(call),
            Ok(_) => {}
            Err(why) => self.fail(why),
        }
    }

    fn know(&mut self, name: String) {
        if self.known.len() < 4 * ASKED_MAX && !self.known.contains(&name) {
            self.known.push(name);
        }
    }
}

// === impl Open ===

impl Open {
    fn new(key: Key, names: Vec<String>) -> Open {
        Open { key, id: None, names, arguments: String::new(), values: Vec::new(), is_text: false }
    }

    /// Whether a part of this id belongs to it.
    fn is_of(&self, id: Option<&str>) -> bool {
        match (&self.id, id) {
            (Some(own), Some(id)) => own == id || id.is_empty(),
            _ => true,
        }
    }

    /// What clients may take for its name: parts put together, as the APIs have it; the first, or the last of them.
    fn readings(&self) -> Vec<String> {
        let mut all = vec![self.names.concat()];
        for name in self.names.first().into_iter().chain(self.names.last()) {
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
