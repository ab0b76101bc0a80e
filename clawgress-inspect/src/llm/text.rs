//! Texts of a request, put together from how they come and cut again at the same places, in order, and each with its role.
//! Must never hold more than one block and what waits for its role.

use std::borrow::Cow;

use super::{Piece, Provenance, Role};

/// Longest piece, bytes.
pub const BLOCK_BYTES: usize = 4096;
/// Most bytes of a message's texts that wait for its role, where that comes behind them. Beyond that the role is unknown.
pub const PENDING_BYTES_MAX: usize = 64 * 1024;
/// What each piece that waits costs besides its text: an empty one is not for nothing.
const PENDING_BYTES: usize = size_of::<Pending>();

/// A piece that waits for its role.
#[derive(Debug)]
struct Pending {
    provenance: Option<Provenance>,
    number: u32,
    message: u32,
    begins: bool,
    ends: bool,
    text: String,
}

/// What puts texts together.
#[derive(Debug, Default)]
pub struct Texts {
    /// Of the text at hand, what no piece was told of.
    block: Vec<u8>,
    number: u32,
    message: u32,
    begins: bool,
    /// Of the text at hand, where that is not by its role.
    provenance: Option<Provenance>,
    /// Of the message at hand.
    role: Option<Role>,
    pending: Vec<Pending>,
    pending_bytes: usize,
}

// === impl Texts ===

impl Texts {
    /// Begins a message, whose role is known or yet to come.
    pub fn message(&mut self, role: Option<Role>, sink: &mut dyn FnMut(&Piece<'_>)) {
        self.settle(Role::Unknown, sink);
        self.role = role;
        self.apart();
    }

    /// Begins what is not shown as one with what came before: another message, or tool, or document.
    pub fn apart(&mut self) {
        self.message = self.message.saturating_add(1);
    }

    /// The role of the message at hand. The first one counts, as whoever calls refuses another.
    pub fn is_by(&mut self, role: Role, sink: &mut dyn FnMut(&Piece<'_>)) {
        if self.role.is_none() {
            self.settle(role, sink);
            self.role = Some(role);
        }
    }

    /// Begins a text; where it comes from, unless its role says so.
    pub fn begin(&mut self, provenance: Option<Provenance>) {
        self.begins = true;
        self.provenance = provenance;
        self.block.clear();
    }

    /// Some of its bytes.
    pub fn push(&mut self, mut bytes: &[u8], sink: &mut dyn FnMut(&Piece<'_>)) {
        while !bytes.is_empty() {
            let room = BLOCK_BYTES.saturating_sub(self.block.len());
            let (now, later) = bytes.split_at_checked(room).unwrap_or((bytes, &[]));
            self.block.extend_from_slice(now);
            bytes = later;
            if self.block.len() >= BLOCK_BYTES {
                self.tell(false, sink);
            }
        }
    }

    /// Ends it.
    pub fn end(&mut self, sink: &mut dyn FnMut(&Piece<'_>)) {
        self.tell(true, sink);
        self.number = self.number.saturating_add(1);
    }

    /// Ends the request.
    pub fn finish(&mut self, sink: &mut dyn FnMut(&Piece<'_>)) {
        self.settle(Role::Unknown, sink);
    }

    /// How many texts there were.
    #[must_use]
    pub fn count(&self) -> u32 {
        self.number
    }

    /// Bytes that it holds at most by now.
    #[must_use]
    pub fn memory_bytes(&self) -> usize {
        self.block.capacity() + self.pending_bytes
    }

    fn tell(&mut self, ends: bool, sink: &mut dyn FnMut(&Piece<'_>)) {
        let mut block = std::mem::take(&mut self.block);
        // A character that is cut waits for its rest, unless there is none.
        let (whole, text) = match std::str::from_utf8(&block) {
            Ok(text) => (block.len(), Cow::Borrowed(text)),
            Err(error) if !ends && error.error_len().is_none() => {
                let whole = error.valid_up_to();
                (whole, String::from_utf8_lossy(block.get(..whole).unwrap_or_default()))
            }
            Err(_) => (block.len(), String::from_utf8_lossy(&block)),
        };
        let (begins, number, message) = (std::mem::take(&mut self.begins), self.number, self.message);
        match self.role {
            Some(role) => sink(&Piece {
                role,
                provenance: self.provenance.unwrap_or_else(|| role.provenance()),
                number,
                message,
                begins,
                ends,
                text: &text,
            }),
            None => {
                self.pending_bytes += PENDING_BYTES + text.len();
                let (provenance, text) = (self.provenance, text.into_owned());
                self.pending.push(Pending { provenance, number, message, begins, ends, text });
                if self.pending_bytes > PENDING_BYTES_MAX {
                    self.is_by(Role::Unknown, sink);
                }
            }
        }
        // Its room serves the next.
        block.drain(..whole);
        self.block = block;
    }

    fn settle(&mut self, role: Role, sink: &mut dyn FnMut(&Piece<'_>)) {
        self.pending_bytes = 0;
        for Pending { provenance, number, message, begins, ends, text } in self.pending.drain(..) {
            let provenance = provenance.unwrap_or_else(|| role.provenance());
            sink(&Piece { role, provenance, number, message, begins, ends, text: &text });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    type Told = (Role, Provenance, u32, bool, bool, String);

    fn told(role: Option<Role>, late: Option<Role>, texts: &[&[u8]], step: usize) -> Vec<Told> {
        let (mut all, mut out) = (Texts::default(), Vec::new());
        let mut sink = |p: &Piece<'_>| {
            out.push((p.role, p.provenance, p.number, p.begins, p.ends, p.text.to_owned()));
        };
        all.message(role, &mut sink);
        for text in texts {
            all.begin(None);
            text.chunks(step).for_each(|piece| all.push(piece, &mut sink));
            all.end(&mut sink);
        }
        late.into_iter().for_each(|role| all.is_by(role, &mut sink));
        all.finish(&mut sink);
        out
    }

    #[test]
    fn texts_are_the_same_however_they_come() {
        let long = "a\u{20ac}".repeat(BLOCK_BYTES);
        let texts: [&[u8]; 4] = [b"", "\u{1f600}x".as_bytes(), long.as_bytes(), b"\xff\xe2\x82"];
        for (role, late) in
            [(Some(Role::User), None), (None, Some(Role::Tool)), (None, None), (Some(Role::System), None)]
        {
            let whole = told(role, late, &texts, usize::MAX);
            for step in [1, 2, 3, 7, 4095, 4096, 4097] {
                assert_eq!(told(role, late, &texts, step), whole, "{role:?} {late:?} {step}");
            }
            let of = |n: u32| whole.iter().filter(|t| t.2 == n).map(|t| t.5.as_str()).collect::<String>();
            assert_eq!((of(0), of(2)), (String::new(), long.clone()));
            assert_eq!(of(3), "\u{fffd}\u{fffd}");
            assert!(whole.iter().all(|t| t.5.len() <= BLOCK_BYTES + 8));
            let ends: Vec<_> = whole.iter().filter(|t| t.4).map(|t| t.2).collect();
            assert_eq!(ends, [0, 1, 2, 3]);
        }
    }

    #[test]
    fn empty_texts_that_wait_for_their_role_are_bounded_too() {
        let (mut all, mut out) = (Texts::default(), 0);
        let mut sink = |_: &Piece<'_>| out += 1;
        all.message(None, &mut sink);
        for _ in 0..100_000 {
            all.begin(None);
            all.end(&mut sink);
            let held = all.pending.len() * PENDING_BYTES;
            assert!(held <= PENDING_BYTES_MAX + PENDING_BYTES && held <= all.memory_bytes(), "{held}");
        }
        all.finish(&mut sink);
        assert_eq!(out, 100_000);
    }

    #[test]
    fn a_role_counts_for_what_came_before_it() {
        let tool = (Role::Tool, Provenance::ToolOutput);
        assert!(told(None, Some(Role::Tool), &[b"x", b"y"], 1).iter().all(|t| (t.0, t.1) == tool));
        let long = vec![b'a'; PENDING_BYTES_MAX + BLOCK_BYTES];
        let unknown = (Role::Unknown, Provenance::Unknown);
        assert!(told(None, Some(Role::Tool), &[&long], 999).iter().all(|t| (t.0, t.1) == unknown));
    }
}
