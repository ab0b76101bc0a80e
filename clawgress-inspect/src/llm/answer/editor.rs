//! Takes the event out of a stream that tells usage, and nothing else, where the client did not ask for it. Must never hold
//! back more than one event, nor change any other.

use super::Format;
use super::document::Document;
use super::frames::Frames;

/// Largest event that is looked at whole, bytes: the one that is taken out has a few hundred.
const EVENT_BYTES_MAX: usize = 16 * 1024;

/// What edits one stream of events.
#[derive(Debug)]
pub struct Editor {
    frames: Frames,
    document: Document,
    /// The event at hand.
    held: Vec<u8>,
    /// Whether it is too large to be that one.
    is_passed: bool,
    /// Whether the last byte was a CR, and of an event that was taken out.
    after_cr: Option<bool>,
    taken: u32,
}

// === impl Editor ===

impl Default for Editor {
    fn default() -> Self {
        Editor {
            frames: Frames::new(Format::EventStream),
            document: Document::default(),
            held: Vec::new(),
            is_passed: false,
            after_cr: None,
            taken: 0,
        }
    }
}

impl Editor {
    /// Takes the next bytes of the stream, and adds what goes on to `out`.
    pub fn push(&mut self, bytes: &[u8], out: &mut Vec<u8>) {
        let mut rest = bytes;
        while !rest.is_empty() {
            let at = memchr::memchr2(b'\r', b'\n', rest).map_or(rest.len(), |at| at + 1);
            let (line, later) = rest.split_at_checked(at).unwrap_or((rest, &[]));
            rest = later;
            self.line(line, out);
        }
    }

    /// Ends the stream: what is held goes on.
    pub fn finish(&mut self, out: &mut Vec<u8>) {
        out.append(&mut self.held);
    }

    /// How many events were taken out.
    #[must_use]
    pub fn taken(&self) -> u32 {
        self.taken
    }

    /// A line with its end, or some of it.
    fn line(&mut self, line: &[u8], out: &mut Vec<u8>) {
        #[cfg(test)]
        crate::steps::add(line.len());
        if let Some(is_taken) = self.after_cr.take()
            && line == b"\n"
        {
            // Of the line end of the event before.
            if !is_taken {
                out.push(b'\n');
            }
            self.frames.push(line, &mut self.document, &mut |_| {});
            return;
        }
        let mut ended = None;
        self.frames.push(line, &mut self.document, &mut |document| ended = Some(document.is_usage_alone()));
        if self.is_passed {
            out.extend_from_slice(line);
        } else {
            self.held.extend_from_slice(line);
        }
        match ended {
            Some(is_usage) => {
                let is_taken = is_usage && !self.is_passed;
                if is_taken {
                    self.held.clear();
                    self.taken += 1;
                } else {
                    out.append(&mut self.held);
                }
                self.is_passed = false;
                self.after_cr = line.ends_with(b"\r").then_some(is_taken);
            }
            None if self.held.len() > EVENT_BYTES_MAX => {
                out.append(&mut self.held);
                self.is_passed = true;
            }
            None => {}
        }
    }
}
