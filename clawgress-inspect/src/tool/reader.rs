//! What a client sends, read as it streams by: the document, and whether it looks like messages at all.
//!
//! Must never fail: what can't be read is told by who asks for the messages, since most bodies are none.

use super::value::Builder;
use super::{Head, Message, ToolError, Value, ValueError, read_value};
use crate::letters::fold;
use crate::payload::json::{Event, Kind};

/// The name that every message has, and how many bytes it takes in letters that fold to it.
const SIGN: &str = "jsonrpc";
const SIGN_BYTES_MAX: usize = 8;
/// What a value takes besides its bytes: itself, and its place among others.
const VALUE_BYTES: usize = 96;
/// Most memory that a document may take: what takes more is larger than what is held of messages, or all brackets.
const BYTES_MAX: usize = 16 << 20;

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

    /// The messages, if that was all.
    ///
    /// # Errors
    /// As [`read`](super::read).
    pub fn read(&self, head: &Head<'_>) -> Result<Vec<Message>, ToolError> {
        read_value(self.value()?, head)
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
