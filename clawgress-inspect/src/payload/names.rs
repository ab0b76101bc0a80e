//! Names and ids of a document, which are short unless they carry something else. Must never hold more of a name than tells
//! whether it is an id's.

use super::json::{Event, Kind};

/// Longest name of a member, and longest id, bytes: ids of stored responses and conversations have up to some 400.
pub const NAME_BYTES_MAX: usize = 512;
/// Bytes of a name that are kept.
const KEPT: usize = 16;
/// Names whose values are ids; and how such names end.
const IDS: [&[u8]; 5] = [b"id", b"user", b"session", b"filename", b"file_name"];
const ENDS: [&[u8]; 4] = [b"_id", b"-id", b"Id", b"ID"];

/// What is watched of one document.
#[derive(Debug, Default)]
pub(super) struct Names {
    key: Vec<u8>,
    bytes: usize,
    has_blank: bool,
    kind: Option<Kind>,
    is_id: bool,
}

impl Names {
    /// Whether a name or id that ends here is too long.
    pub(super) fn watch(&mut self, event: Event<'_>) -> bool {
        match event {
            Event::Begin(kind) => {
                if kind == Kind::Key {
                    self.key.clear();
                }
                (self.bytes, self.has_blank, self.kind) = (0, false, Some(kind));
            }
            Event::Piece(bytes) => {
                self.bytes += bytes.len();
                match self.kind {
                    Some(Kind::Key) => {
                        let room = KEPT.saturating_sub(self.key.len());
                        self.key.extend(bytes.iter().take(room));
                    }
                    Some(Kind::Text) if self.is_id && self.bytes <= NAME_BYTES_MAX => {
                        self.has_blank |= bytes.iter().any(u8::is_ascii_whitespace);
                    }
                    _ => {}
                }
            }
            Event::End => {
                let is_key = self.kind.take() == Some(Kind::Key);
                let is_long = self.bytes > NAME_BYTES_MAX && (is_key || self.is_id && !self.has_blank);
                self.is_id = is_key && self.names_an_id();
                return is_long;
            }
            Event::Open { .. } | Event::Close => self.is_id = false,
        }
        false
    }

    fn names_an_id(&self) -> bool {
        let is_whole = self.bytes <= KEPT;
        is_whole && (IDS.contains(&&*self.key) || ENDS.iter().any(|end| self.key.ends_with(end)))
    }
}
