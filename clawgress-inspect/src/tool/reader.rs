//! What a client sends, read as it streams by: the document, and whether it looks like messages at all.
//!
//! Must never fail: what can't be read is told by who asks for the messages, since most bodies are none.

use super::value::Builder;
use super::{Head, Message, ToolError, Value, ValueError, read_value};
use crate::letters::fold;
use crate::payload::json::{Event, Kind};

/// The name that every message has, and how many bytes it takes in letters that fold to it.
const SIGN: &str = "jsonrpc";
/// The same by the one letter outside of ASCII that folds to one of it.
const SIGN_FOLDED: &str = "j\u{17f}onrpc";
const SIGN_BYTES_MAX: usize = 8;
/// What a value takes besides its bytes: itself, and its place among others.
const VALUE_BYTES: usize = 96;
/// Most memory that a document may take: what takes more is larger than what is held of messages, or all brackets.
const BYTES_MAX: usize = 16 << 20;

/// Looks for [`SIGN`] in bytes as they are: in letters of either case, or where a letter of ASCII is escaped, which nobody
/// does but to hide it.
#[derive(Debug, Default)]
struct Raw {
    /// The newest bytes, in which it may have begun.
    tail: Vec<u8>,
    is_found: bool,
}

/// Whether a document of a server's looks like messages: its object, or one of its array, has the name that all have. What can't be
/// read does if the name is in it anywhere.
#[must_use]
pub fn is_like(text: &[u8]) -> bool {
    let mut raw = Raw::default();
    raw.push(text);
    if !raw.is_found {
        return false;
    }
    let is_one =
        |value: &Value| value.members().iter().any(|(name, _)| fold(name).eq_ignore_ascii_case(SIGN));
    match Value::parse(text) {
        Ok(Value::Array(all)) => all.iter().any(is_one),
        Ok(one) => is_one(&one),
        Err(_) => true,
    }
}

/// A reader of one body.
#[derive(Debug, Default)]
pub struct Reader {
    builder: Builder,
    failed: Option<ValueError>,
    depth: u32,
    /// Whether the outermost is an array.
    is_batch: bool,
    /// The name at hand; `None` if it is no name that counts, or too long for [`SIGN`].
    sign: Option<Vec<u8>>,
    is_like: bool,
    /// Whether it is JSON, by what is said of it or by how it begins, that can't be read to its end.
    is_broken: bool,
    /// Whether it only began like JSON; and what is looked for in it then.
    is_none: bool,
    raw: Raw,
    bytes: usize,
    values: usize,
}

// === impl Reader ===

impl Reader {
    /// What comes next of the document.
    pub fn event(&mut self, event: Event<'_>) {
        self.watch(event);
        if self.failed.is_some() {
            return;
        }
        let is_large = self.memory_bytes() > BYTES_MAX;
        if let Err(why) = if is_large { Err(ValueError::TooMany) } else { self.builder.event(event) } {
            // Nothing more is kept of it.
            self.builder = Builder::default();
            (self.failed, self.bytes, self.values) = (Some(why), 0, 0);
        }
    }

    /// Whether it looks like messages by what was seen: its object, or one of its array, has the name that all have.
    #[must_use]
    pub fn is_like(&self) -> bool {
        self.is_like
    }

    /// Whether it may be messages though it can't be read: some servers read more than JSON.
    #[must_use]
    pub fn is_doubtful(&self) -> bool {
        self.is_broken || self.is_none && self.raw.is_found
    }

    /// Notes that it is JSON which can't be read, whatever it holds.
    pub(crate) fn breaks(&mut self) {
        self.is_broken = true;
        self.fails();
    }

    /// Notes that it began like JSON and is none: it may be messages if the name that all have is in it anywhere.
    pub(crate) fn is_no_document(&mut self) {
        self.is_none = true;
        self.fails();
    }

    /// Looks at its bytes as they are, whatever they are read as.
    pub(crate) fn raw(&mut self, bytes: &[u8]) {
        self.raw.push(bytes);
    }

    /// Whether anything of it was read.
    pub(crate) fn has_begun(&self) -> bool {
        self.values > 0 || self.failed.is_some()
    }

    fn fails(&mut self) {
        if self.failed.is_none() {
            self.builder = Builder::default();
            (self.failed, self.bytes, self.values) = (Some(ValueError::Malformed), 0, 0);
        }
    }

    /// The messages, if that was all.
    ///
    /// # Errors
    /// As [`read`](super::read).
    pub fn read(&self, head: &Head<'_>) -> Result<Vec<Message>, ToolError> {
        read_value(self.value()?, head)
    }

    /// The id of the one message that it is, as JSON, whatever else is wrong with it.
    #[must_use]
    pub fn id(&self) -> Option<String> {
        let id = self.value().ok()?.member("id")?;
        matches!(id, Value::Number(_) | Value::Text(_)).then(|| id.json())
    }

    /// All that it says, where it is no message of JSON-RPC: of an operation that is asked for by its path.
    ///
    /// # Errors
    /// If it can't be read with certainty; nothing is `None`.
    pub fn document(&self) -> Result<Option<&Value>, ToolError> {
        if self.has_begun() { Ok(self.value().map(Some)?) } else { Ok(None) }
    }

    fn value(&self) -> Result<&Value, ValueError> {
        match &self.failed {
            Some(why) => Err(why.clone()),
            None => self.builder.root().ok_or(ValueError::Malformed),
        }
    }

    /// Bytes of memory that it takes.
    #[must_use]
    pub fn memory_bytes(&self) -> usize {
        self.bytes.saturating_add(self.values.saturating_mul(VALUE_BYTES))
    }

    fn watch(&mut self, event: Event<'_>) {
        match event {
            Event::Open { object } => {
                if self.depth == 0 {
                    self.is_batch = !object;
                }
                self.depth += 1;
                self.values += 1;
            }
            Event::Close => self.depth = self.depth.saturating_sub(1),
            Event::Begin(kind) => {
                self.values += 1;
                self.sign = (kind == Kind::Key && self.depth == 1 + u32::from(self.is_batch)).then(Vec::new);
            }
            Event::Piece(bytes) => {
                self.bytes += bytes.len();
                self.sign = self.sign.take().filter(|name| name.len() + bytes.len() <= SIGN_BYTES_MAX);
                self.sign.iter_mut().for_each(|name| name.extend_from_slice(bytes));
            }
            Event::End => {
                let name = self.sign.take().and_then(|name| String::from_utf8(name).ok());
                self.is_like |= name.is_some_and(|name| fold(&name) == SIGN);
            }
        }
    }
}

// === impl Raw ===

impl Raw {
    fn push(&mut self, bytes: &[u8]) {
        if self.is_found {
            return;
        }
        #[cfg(test)]
        crate::steps::add(bytes.len());
        // Across pieces.
        let most = SIGN_FOLDED.len() - 1;
        let known = self.tail.len();
        self.tail.extend_from_slice(bytes.get(..most.min(bytes.len())).unwrap_or_default());
        self.is_found = has_sign(&self.tail) || has_sign(bytes);
        if bytes.len() >= most {
            self.tail.clear();
            self.tail.extend_from_slice(bytes.get(bytes.len() - most..).unwrap_or_default());
        } else {
            let gone = self.tail.len().saturating_sub(most).min(known);
            self.tail.drain(..gone);
        }
    }
}

fn has_sign(bytes: &[u8]) -> bool {
    let is = |at: usize| {
        let rest = bytes.get(at..).unwrap_or_default();
        match rest {
            [b'\\', b'u', b'0', b'0', b'4'..=b'7', ..] | [b'\\', b'u', b'0', b'1', b'7', ..] => true,
            _ => [SIGN, SIGN_FOLDED].iter().any(|sign| {
                rest.get(..sign.len()).is_some_and(|word| word.eq_ignore_ascii_case(sign.as_bytes()))
            }),
        }
    };
    memchr::memchr3_iter(b'j', b'J', b'\\', bytes).any(is)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sign_is_found_in_any_pieces() {
        for (text, is) in [
            ("{'JsonRPC':1", true),
            ("{\"json\\u0072pc\":1", true),
            ("jsonjsonrpc", true),
            ("{'J\u{17f}onrpc':1", true),
            ("{\"j\\u017fonrpc\":1", true),
            ("{\"json\":\"\\u2026\",\"rpc\":1", false),
            ("jsonrp", false),
        ] {
            for size in 1..=text.len() {
                let mut raw = Raw::default();
                text.as_bytes().chunks(size).for_each(|piece| raw.push(piece));
                assert_eq!(raw.is_found, is, "{text} by {size}");
                assert!(raw.tail.len() < 2 * SIGN.len());
            }
        }
    }
}
