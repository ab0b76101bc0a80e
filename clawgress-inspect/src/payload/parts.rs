//! Parts of a form, as what they say of a call of a model: texts, and documents where the form may have some. Must never take for a text
//! what begins like a document where one belongs.

use super::json::{Event as JsonEvent, Json};
use super::multipart::Event;
use super::{Tally, Unreadable};

/// What the part at hand is of a call.
#[derive(Debug)]
pub(super) enum Part {
    Nothing,
    /// A text, a word or a file.
    Text,
    /// A document, if its first byte says so, which did not come yet.
    Begun,
    Document(Box<Json>),
}

// === impl Part ===

impl Part {
    /// Takes what comes next of the form.
    ///
    /// # Errors
    /// Why what it asks for can't be known.
    pub(super) fn next(&mut self, event: Event<'_>, tally: &mut Tally) -> Result<(), Unreadable> {
        match event {
            Event::Begin(head) => {
                *self = tally.of_call_begins(head)?;
                Ok(())
            }
            Event::Piece(bytes) => self.piece(bytes, tally),
            Event::End => match std::mem::replace(self, Part::Nothing) {
                Part::Nothing => Ok(()),
                Part::Text => tally.of_call(JsonEvent::End),
                Part::Begun => {
                    tally.of_call_is_text()?;
                    tally.of_call(JsonEvent::End)
                }
                Part::Document(mut json) => json.finish(&mut |event| tally.of_call(event)),
            },
        }
    }

    fn piece(&mut self, bytes: &[u8], tally: &mut Tally) -> Result<(), Unreadable> {
        let mut rest = bytes;
        if let Part::Begun = self {
            // Blanks, and a byte order mark.
            let blanks = |b: &&u8| b.is_ascii_whitespace() || matches!(**b, 0xef | 0xbb | 0xbf);
            let skipped = rest.iter().take_while(blanks).count();
            rest = rest.get(skipped..).unwrap_or_default();
            match rest.first() {
                None => return Ok(()),
                Some(b'{' | b'[') => *self = Part::Document(Box::new(Json::new(false))),
                Some(_) => {
                    tally.of_call_is_text()?;
                    *self = Part::Text;
                }
            }
        }
        match self {
            Part::Nothing | Part::Begun => Ok(()),
            Part::Text => tally.of_call(JsonEvent::Piece(rest)),
            Part::Document(json) => json.push(rest, &mut |event| tally.of_call(event)),
        }
    }
}
