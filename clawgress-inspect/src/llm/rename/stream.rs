//! Answers, with the names of tools that their client knows. Must never hold back more than the event at hand, and nothing of it
//! may go on that has the model's name of a tool in a form that is not known.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;

use super::Renamed;
use super::places::{Found, Of, names_and_packed};
use crate::events::{self, Ends};
use crate::llm::answer::Format;
use crate::llm::answer::places::unpacked;
use crate::splice::{Edits, quoted};
use crate::tool::Value;

/// Why the names of an answer can't be changed back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RenameError {
    /// A document or event that is no JSON, or more nested than any dialect's.
    #[error("what names a tool in the answer can't be read")]
    Form,
    /// A name that may be a part of one.
    #[error("the name of a tool comes in parts")]
    Parts,
    /// A document or event beyond the bound.
    #[error("a part of the answer that may name a tool is larger than what is held")]
    TooLarge,
}

/// Gives the tools of one answer their clients' names.
#[derive(Debug)]
pub struct Renamer {
    renamed: Renamed,
    /// `None` until it has begun, where that tells.
    manner: Option<Manner>,
    ends: Ends,
    held: Vec<u8>,
    /// Bytes of `held` that were looked at: for what it begins like, or for the end of a line.
    looked: usize,
    bytes_max: usize,
    /// Whether any name was changed.
    is_changed: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Manner {
    Document,
    Events,
    Lines,
}

// === impl Renamer ===

impl Renamer {
    /// For an answer of this format; `None` if that has no form in which it could be changed. Of it no more than `bytes_max` are
    /// held.
    #[must_use]
    pub fn new(renamed: Renamed, format: Format, bytes_max: usize) -> Option<Renamer> {
        let manner = match format {
            Format::Json => Some(Manner::Document),
            Format::Lines => Some(Manner::Lines),
            // Clients of models look at a document, whatever it is said to be.
            Format::EventStream => None,
            Format::Amazon => return None,
        };
        let (ends, held) = (Ends::default(), Vec::new());
        Some(Renamer { renamed, manner, ends, held, looked: 0, bytes_max, is_changed: false })
    }

    /// Takes what comes next: what goes on now.
    ///
    /// # Errors
    /// Why it must not go on.
    pub fn push(&mut self, bytes: &[u8], end: bool) -> Result<Vec<u8>, RenameError> {
        self.held.extend_from_slice(bytes);
        let manner = *match &mut self.manner {
            Some(manner) => manner,
            none => {
                // A byte order mark may stand before it.
                let is_blank = |byte: &u8| byte.is_ascii_whitespace() || matches!(byte, 0xef | 0xbb | 0xbf);
                let fresh = self.held.get(self.looked..).unwrap_or_default();
                #[cfg(test)]
                crate::steps::add(fresh.len());
                let manner = match fresh.iter().find(|byte| !is_blank(byte)) {
                    Some(b'{' | b'[') => Manner::Document,
                    Some(_) => Manner::Events,
                    None if end => Manner::Document,
                    None => {
                        self.looked = self.held.len();
                        return self.bounded(Vec::new());
                    }
                };
                none.insert(manner)
            }
        };
        let whole = match manner {
            _ if end => self.held.len(),
            Manner::Document => 0,
            Manner::Events => self.ends.next(&self.held),
            Manner::Lines => {
                let fresh = self.held.get(self.looked..).unwrap_or_default();
                memchr::memrchr(b'\n', fresh).map_or(0, |at| self.looked + at + 1)
            }
        };
        if whole == 0 && !end {
            self.looked = self.held.len();
            return self.bounded(Vec::new());
        }
        let rest = self.held.split_off(whole);
        let part = std::mem::replace(&mut self.held, rest);
        self.looked = self.held.len();
        let out = self.changed(part, manner)?;
        self.bounded(out)
    }

    /// Bytes that are held.
    #[must_use]
    pub fn memory_bytes(&self) -> usize {
        self.held.capacity()
    }

    /// Whether any name was changed.
    #[must_use]
    pub fn is_changed(&self) -> bool {
        self.is_changed
    }

    fn bounded(&self, out: Vec<u8>) -> Result<Vec<u8>, RenameError> {
        if self.held.len() > self.bytes_max { Err(RenameError::TooLarge) } else { Ok(out) }
    }

    fn changed(&mut self, part: Vec<u8>, manner: Manner) -> Result<Vec<u8>, RenameError> {
        #[cfg(test)]
        crate::steps::add(part.len());
        // Events are text, whether they name a tool or not: what is refused must not depend on how they come.
        let is_text = manner != Manner::Events || std::str::from_utf8(&part).is_ok();
        if !may_name(&part) {
            return if is_text { Ok(part) } else { Err(RenameError::Form) };
        }
        let other = match manner {
            Manner::Document => self.document(&part, false, true)?,
            Manner::Events => {
                let text = std::str::from_utf8(&part).map_err(|_| RenameError::Form)?;
                let changed = events::changed(text, &mut |data| {
                    let other = self.document(data.as_bytes(), true, true)?;
                    other.map(String::from_utf8).transpose().map_err(|_| RenameError::Form)
                });
                changed?.map(String::into_bytes)
            }
            Manner::Lines => {
                let (mut out, mut is_changed) = (Vec::with_capacity(part.len()), false);
                for line in part.split_inclusive(|byte| *byte == b'\n') {
                    let other = self.document(line, true, true)?;
                    is_changed |= other.is_some();
                    out.extend_from_slice(other.as_deref().unwrap_or(line));
                }
                is_changed.then_some(out)
            }
        };
        self.is_changed |= other.is_some();
        Ok(other.unwrap_or(part))
    }

    /// A document, changed; `None` if it is as it was. Others may be packed in it, or not.
    fn document(&self, text: &[u8], in_parts: bool, may_pack: bool) -> Result<Option<Vec<u8>>, RenameError> {
        if !may_name(text) {
            return Ok(None);
        }
        let text_only = text.strip_prefix(b"\xef\xbb\xbf").unwrap_or(text);
        let before = text.len() - text_only.len();
        let Some((found, packed)) = names_and_packed(text_only, Of::Answer) else {
            // What does not even begin like JSON names no tool.
            let begins = text_only.trim_ascii_start().first();
            return if matches!(begins, Some(b'{' | b'[')) { Err(RenameError::Form) } else { Ok(None) };
        };
        let mut edits = Edits::default();
        for Found { at, name, .. } in found {
            match self.renamed.back.get(&name) {
                Some(own) => edits.replace(at.start + before..at.end + before, quoted(own)),
                None if in_parts && self.may_be_part(&name) => return Err(RenameError::Parts),
                None => {}
            }
        }
        for at in packed.into_iter().filter(|_| may_pack) {
            let inner = text_only.get(at.clone()).and_then(|text| Value::parse(text).ok());
            let inner = inner.as_ref().and_then(Value::text).and_then(|text| unpacked(text.as_bytes()));
            // What is no base64, nobody reads.
            let Some(inner) = inner else { continue };
            if let Some(other) = self.document(&inner, in_parts, false)? {
                edits.replace(at.start + before..at.end + before, quoted(&BASE64.encode(other)));
            }
        }
        Ok((!edits.is_empty()).then(|| edits.apply(text)))
    }

    /// Whether a name that no tool has is how one begins or ends that was renamed.
    fn may_be_part(&self, name: &str) -> bool {
        let is_part = |other: &String| other.starts_with(name) || other.ends_with(name);
        !name.is_empty() && !self.renamed.known.contains(name) && self.renamed.back.keys().any(is_part)
    }
}

/// Whether there may be a name: in most events there is none, and they need not be read. All members that hold one end so; an
/// escape may be any letter, and a document that is packed have any name.
fn may_name(text: &[u8]) -> bool {
    memchr::memmem::find(text, b"name\"").is_some()
        || memchr::memmem::find(text, b"tool").is_some()
        || memchr::memmem::find(text, b"bytes\"").is_some()
        || memchr::memmem::find(text, b"\\u").is_some()
}
