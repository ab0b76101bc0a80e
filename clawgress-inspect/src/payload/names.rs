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
    /// Whether a name or id becomes too long here.
    #[inline]
    pub(super) fn watch(&mut self, event: Event<'_>) -> bool {
        match event {
            Event::Begin(kind) => {
                if kind == Kind::Key {
                    self.key.clear();
                }
                (self.bytes, self.has_blank, self.kind) = (0, false, Some(kind));
            }
            Event::Piece(bytes) => return self.piece(bytes),
            Event::End => self.is_id = self.kind.take() == Some(Kind::Key) && self.names_an_id(),
            Event::Open { .. } | Event::Close => self.is_id = false,
        }
        false
    }

    fn piece(&mut self, bytes: &[u8]) -> bool {
        let before = self.bytes;
        self.bytes += bytes.len();
        let is_looked_at = match self.kind {
            Some(Kind::Key) => {
                let room = KEPT.saturating_sub(self.key.len());
                self.key.extend_from_slice(bytes.get(..room.min(bytes.len())).unwrap_or_default());
                true
            }
            Some(Kind::Text) => self.is_id,
            _ => false,
        };
        if !is_looked_at || before > NAME_BYTES_MAX {
            return false;
        }
        // A text has blanks, and an id none: those within the bound tell, wherever it is cut.
        let is_text = self.kind == Some(Kind::Text);
        self.has_blank |= is_text && bytes.iter().take(NAME_BYTES_MAX - before).any(u8::is_ascii_whitespace);
        self.bytes > NAME_BYTES_MAX && !self.has_blank
    }

    fn names_an_id(&self) -> bool {
        // All of them end in one of few letters.
        let is_whole =
            self.bytes <= KEPT && matches!(self.key.last(), Some(b'd' | b'D' | b'r' | b'n' | b'e'));
        is_whole && (IDS.contains(&&*self.key) || ENDS.iter().any(|end| self.key.ends_with(end)))
    }
}
