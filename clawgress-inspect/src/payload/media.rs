//! What a body is said to be, by its head, and what it looks like. Must never take two claims for one.

use super::coding::Coding;
use super::{Unreadable, multipart};
use crate::llm::answer::frames::{PRELUDE_BYTES, is_prelude};

/// Longest media type that is told apart from others, bytes (RFC 6838 section 4.2).
const TYPE_BYTES_MAX: usize = 255;
/// Bytes that tell what a body looks like, and the most that do: of Amazon's frames.
const HEAD_BYTES: usize = 8;
pub(super) const HEAD_BYTES_MAX: usize = PRELUDE_BYTES;
/// Frames of Amazon's.
const AMAZON: &str = "application/vnd.amazon.eventstream";

/// What is said of a body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claims {
    /// Media type in lowercase, without parameters; empty if none is given.
    pub media_type: String,
    /// Content coding; `None` for none.
    pub coding: Option<Coding>,
    pub(super) reading: Reading,
    /// Why it can't be read, whatever it holds.
    pub(super) refusal: Option<Unreadable>,
    /// Whether it may be a stream of events, whatever is said of it.
    pub(super) has_events: bool,
}

/// How a body is read, by what is said of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Reading {
    /// By what it looks like.
    Sniffed,
    Json {
        is_sequence: bool,
    },
    Multipart {
        boundary: Vec<u8>,
    },
    Form,
}

/// What a body looks like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seen {
    /// Not enough bytes to tell, or none.
    Nothing,
    /// An object, array or string of JSON, perhaps.
    Json,
    /// A file that is a coding of another.
    Packed(Coding),
    /// An archive that is not read: zip, 7z, rar, xz, bzip2.
    Archive,
    /// PDF.
    Pdf,
    /// PNG, JPEG, GIF or WebP.
    Image,
    /// Text that is not ASCII's extension, by its byte order mark, or by where its first bytes are 0 (RFC 4627 section 3).
    Wide,
    /// Anything else.
    Other,
}

// === impl Claims ===

impl Claims {
    /// What the fields of a head say: all there are of `Content-Type` and of `Content-Encoding`.
    #[must_use]
    pub fn new(types: &[&[u8]], codings: &[&[u8]]) -> Claims {
        let (coding, refused) = coding(codings);
        let mut claims = Claims::of_type(types);
        claims.coding = coding;
        claims.refusal = claims.refusal.or(refused);
        claims
    }

    /// Whether more than one media type is said, or something that is none, so that it is not known.
    #[must_use]
    pub fn is_type_unclear(&self) -> bool {
        self.media_type.is_empty() && self.refusal == Some(Unreadable::ClaimAmbiguous)
    }

    /// What the head of a part says.
    pub(super) fn of_part(head: &[u8]) -> Claims {
        let lines = head.split(|b| *b == b'\n').map(|line| line.strip_suffix(b"\r").unwrap_or(line));
        let (mut types, mut codings, mut refusal) = (Vec::new(), Vec::new(), None);
        for line in lines.filter(|line| !line.is_empty()) {
            let Some(colon) = line.iter().position(|b| *b == b':') else {
                // Folded, or no field: what one parser takes for a value, another drops.
                refusal = Some(Unreadable::PartMalformed);
                continue;
            };
            let (name, value) = line.split_at_checked(colon).unwrap_or_default();
            let value = value.strip_prefix(b":").unwrap_or(value).trim_ascii();
            let is = |known: &str| name.eq_ignore_ascii_case(known.as_bytes());
            if name.is_empty() || name.iter().any(u8::is_ascii_whitespace) {
                refusal = Some(Unreadable::PartMalformed);
            } else if is("content-type") {
                types.push(value);
            } else if is("content-encoding") {
                codings.push(value);
            } else if is("content-transfer-encoding") {
                let is_plain =
                    ["7bit", "8bit", "binary"].iter().any(|p| value.eq_ignore_ascii_case(p.as_bytes()));
                refusal = refusal.or((!is_plain).then_some(Unreadable::PartCoded));
            }
        }
        let mut claims = Claims::of_type(&types);
        let (coding, refused) = coding(&codings);
        claims.coding = coding;
        claims.refusal = claims.refusal.or(refused).or(refusal);
        claims
    }

    fn of_type(types: &[&[u8]]) -> Claims {
        let none = |refusal| Claims {
            media_type: String::new(),
            coding: None,
            reading: Reading::Sniffed,
            refusal,
            has_events: false,
        };
        let value = match types {
            [] => return none(None),
            [value] => value,
            _ => return none(Some(Unreadable::ClaimAmbiguous)),
        };
        let Some((media_type, parameters)) = split(value) else {
            return none(Some(Unreadable::ClaimAmbiguous));
        };
        let only = |name: &str| {
            let mut all = parameters.iter().filter(|known| known.name == name).map(|known| &known.value);
            match (all.next(), all.next()) {
                (found, None) => Ok(found),
                _ => Err(Unreadable::ClaimAmbiguous),
            }
        };
        let mut refusal = only("charset").map_or_else(Some, |charset| {
            let is_ascii = charset.is_none_or(|charset| extends_ascii(charset));
            (!is_ascii).then_some(Unreadable::Charset)
        });
        let subtype = media_type.split_once('/').map_or("", |(_, subtype)| subtype);
        let lines = [
            "x-ndjson",
            "ndjson",
            "jsonl",
            "x-jsonl",
            "x-jsonlines",
            "jsonlines",
            "json-seq",
            "jsonl+json",
            "stream+json",
        ];
        let reading = match &*media_type {
            "application/x-www-form-urlencoded" => Reading::Form,
            kind if kind.starts_with("multipart/") => match only("boundary") {
                // One that another parser may take for the boundary, or read to another end.
                _ if parameters.iter().any(Parameter::is_doubtful) => {
                    refusal = refusal.or(Some(Unreadable::ClaimAmbiguous));
                    Reading::Sniffed
                }
                Ok(Some(boundary)) if multipart::Multipart::new(boundary).is_ok() => {
                    Reading::Multipart { boundary: boundary.clone() }
                }
                _ => {
                    refusal = refusal.or(Some(Unreadable::MultipartMalformed));
                    Reading::Sniffed
                }
            },
            _ if lines.contains(&subtype) => Reading::Json { is_sequence: true },
            _ if subtype == "json" || subtype.ends_with("+json") => Reading::Json { is_sequence: false },
            _ => Reading::Sniffed,
        };
        Claims { media_type, coding: None, reading, refusal, has_events: false }
    }

    /// Takes it for a JSON document, or a form of parts if the server `takes_forms`: servers that take nothing else often
    /// don't look at what is said.
    pub(super) fn is_document(&mut self, takes_forms: bool) {
        if !takes_forms || !matches!(self.reading, Reading::Multipart { .. }) {
            self.reading = Reading::Json { is_sequence: false };
        }
    }

    /// Whether it is said to be JSON.
    pub(super) fn is_json(&self) -> bool {
        matches!(self.reading, Reading::Json { .. })
    }

    /// Whether it is said to be a stream of events.
    pub(super) fn has_events(&self) -> bool {
        self.has_events || self.media_type == "text/event-stream"
    }

    /// Whether what is said to be so may be one document, or a text: no form of parts, and nothing that is known to be none.
    #[must_use]
    pub fn may_be_document(&self) -> bool {
        self.may_be_text() && !matches!(self.reading, Reading::Multipart { .. })
    }

    /// Whether it is said to be a form of parts, as servers take one.
    #[must_use]
    pub fn is_form(&self) -> bool {
        matches!(self.reading, Reading::Multipart { .. })
            && matches!(&*self.media_type, "multipart/form-data" | "multipart/mixed")
    }

    /// Whether it is said to be messages of Protocol Buffers, alone or in frames of gRPC: what is in them only their server knows.
    #[must_use]
    pub fn is_protobuf(&self) -> bool {
        let subtype = self.media_type.strip_prefix("application/").unwrap_or_default();
        subtype.starts_with("grpc") && subtype != "grpc+json" || subtype.ends_with("protobuf")
    }

    /// Has it read as a stream of events besides, whatever is said of it: some clients look at nothing else.
    #[must_use]
    pub fn as_events(self) -> Claims {
        Claims { has_events: true, ..self }
    }

    /// Whether it is said to be documents that follow one another.
    pub(super) fn is_sequence(&self) -> bool {
        self.reading == Reading::Json { is_sequence: true }
    }

    /// Whether what is said to be so may be read as text, in whatever charset it seems to be: all but what is known to be
    /// none.
    pub(super) fn may_be_text(&self) -> bool {
        let (kind, subtype) = self.media_type.split_once('/').unwrap_or_default();
        subtype.ends_with("+xml")
            || !(matches!(kind, "image" | "audio" | "video") || self.media_type == "application/octet-stream")
    }

    /// How many of its first bytes tell what it is.
    pub(super) fn head_bytes(&self) -> usize {
        if self.media_type == AMAZON { HEAD_BYTES_MAX } else { HEAD_BYTES }
    }

    /// Whether it is said to be frames, each behind its length, and begins as they do: so may text in UTF-32.
    pub(super) fn has_frames(&self, head: &[u8]) -> bool {
        if self.media_type == AMAZON {
            return is_prelude(head);
        }
        if !self.media_type.starts_with("application/grpc") {
            return false;
        }
        // A flag, a length and a message of less than 64 KiB. No message of Protocol Buffers begins with a byte below 8, nor does what is
        // packed with 0; and text in UTF-32 has a 0 there, or what no character in use has.
        match head {
            [0, 0, 0, 1..=255, _, first, ..] => *first >= 8,
            [1, 0, 0, 0, 1..=255, first, ..] => *first > 0,
            _ => false,
        }
    }

    /// Whether what is `seen` is not what is said.
    pub(super) fn differs(&self, seen: Seen) -> bool {
        if self.media_type.is_empty() {
            return false;
        }
        let (kind, subtype) = self.media_type.split_once('/').unwrap_or_default();
        match (kind, subtype, seen) {
            (_, _, Seen::Nothing) => false,
            ("image", "png" | "jpeg" | "gif" | "webp", seen) => seen != Seen::Image,
            ("application", "pdf", seen) => seen != Seen::Pdf,
            ("application", "zip", seen) => seen != Seen::Archive,
            ("application", "gzip" | "x-gzip", seen) => seen != Seen::Packed(Coding::Gzip),
            ("application", "zstd", seen) => seen != Seen::Packed(Coding::Zstd),
            ("text", ..) | (_, "x-www-form-urlencoded", _) => !matches!(seen, Seen::Json | Seen::Other),
            _ => false,
        }
    }
}

// === impl Seen ===

impl Seen {
    /// What a body looks like that begins like this, but for blanks and a byte order mark of UTF-8.
    pub(super) fn of(head: &[u8]) -> Seen {
        if let Some(coding) = Coding::seen(head) {
            return Seen::Packed(coding);
        }
        match head {
            [] => Seen::Nothing,
            [0xff, 0xfe, ..]
            | [0xfe, 0xff, ..]
            | [0, 0, 0xfe, 0xff, ..]
            | [0, 0, 0, 1..=255, ..]
            | [0, 1..=255, 0, 1..=255, ..]
            | [1..=255, 0, 0, 0, ..]
            | [1..=255, 0, 1..=255, 0, ..] => Seen::Wide,
            [b'{' | b'[' | b'"', ..] => Seen::Json,
            [b'P', b'K', 3 | 5, 4 | 6, ..]
            | [b'7', b'z', 0xbc, 0xaf, ..]
            | [b'R', b'a', b'r', b'!', ..]
            | [0xfd, b'7', b'z', b'X', b'Z', ..]
            | [b'B', b'Z', b'h', b'1'..=b'9', ..] => Seen::Archive,
            [b'%', b'P', b'D', b'F', b'-', ..] => Seen::Pdf,
            [0x89, b'P', b'N', b'G', ..]
            | [0xff, 0xd8, 0xff, ..]
            | [b'G', b'I', b'F', b'8', ..]
            | [b'R', b'I', b'F', b'F', ..] => Seen::Image,
            _ => Seen::Other,
        }
    }
}

impl Seen {
    /// The same of a field, which can only be text.
    pub(super) fn of_text(head: &[u8]) -> Seen {
        if !matches!(head, [] | [b'{' | b'[' | b'"', ..]) {
            return Seen::Other;
        }
        match Seen::of(head) {
            seen @ (Seen::Nothing | Seen::Json) => seen,
            _ => Seen::Other,
        }
    }
}

/// The one coding of a body. More than one could be taken off in another order, or not at all.
fn coding(fields: &[&[u8]]) -> (Option<Coding>, Option<Unreadable>) {
    let names = fields.iter().flat_map(|value| value.split(|b| *b == b',')).map(<[u8]>::trim_ascii);
    let mut names = names.filter(|name| !name.is_empty() && !name.eq_ignore_ascii_case(b"identity"));
    match (names.next(), names.next()) {
        (None, _) => (None, None),
        (Some(_), Some(_)) => (None, Some(Unreadable::CodingStacked)),
        (Some(name), None) => match Coding::named(name) {
            Some(coding) => (Some(coding), None),
            None => (None, Some(Unreadable::CodingUnknown)),
        },
    }
}

/// Whether text of a charset has ASCII's characters at ASCII's places.
fn extends_ascii(charset: &[u8]) -> bool {
    let name = charset.to_ascii_lowercase();
    ["utf-8", "utf8", "us-ascii", "ascii", "latin1"].iter().any(|known| name == known.as_bytes())
        || name.starts_with(b"iso-8859-")
        || name.starts_with(b"windows-125")
}

/// A parameter of a media type.
struct Parameter {
    /// In lowercase.
    name: String,
    value: Vec<u8>,
    is_quoted: bool,
}

impl Parameter {
    /// Whether parsers of multipart bodies may take it for another, or end its value elsewhere.
    fn is_doubtful(&self) -> bool {
        let is_token = std::str::from_utf8(&self.value).is_ok_and(is_token);
        self.name != "boundary" && self.name.contains("boundary") || !self.is_quoted && !is_token
    }
}

fn is_token(text: &str) -> bool {
    text.bytes().all(|b| b.is_ascii_graphic() && !b"\"(),/:;<=>?@[\\]{}".contains(&b))
}

/// A media type in lowercase and its parameters, their names in lowercase (RFC 9110 section 8.3.1).
fn split(value: &[u8]) -> Option<(String, Vec<Parameter>)> {
    let end = value.iter().position(|b| *b == b';').unwrap_or(value.len());
    let (media_type, mut rest) = value.split_at_checked(end)?;
    let media_type = std::str::from_utf8(media_type.trim_ascii()).ok()?.to_ascii_lowercase();
    let parts = media_type.split('/').collect::<Vec<_>>();
    let is_type = parts.len() == 2 && parts.iter().all(|part| !part.is_empty() && is_token(part));
    if !is_type || media_type.len() > TYPE_BYTES_MAX {
        return None;
    }
    let mut parameters = Vec::new();
    while let Some(after) = rest.strip_prefix(b";") {
        let after = after.trim_ascii_start();
        if after.is_empty() || after.starts_with(b";") {
            rest = after;
            continue;
        }
        let equals = after.iter().position(|b| *b == b'=')?;
        let (name, value) = after.split_at_checked(equals)?;
        let name = std::str::from_utf8(name).ok()?.to_ascii_lowercase();
        // A charset, or a part, is said of a value so (RFC 2231), which some read and others don't.
        if name.is_empty() || !is_token(&name) || name.contains('*') {
            return None;
        }
        let value = value.strip_prefix(b"=")?;
        let is_quoted = value.starts_with(b"\"");
        let (value, left) = parameter(value)?;
        parameters.push(Parameter { name, value, is_quoted });
        rest = left.trim_ascii_start();
    }
    rest.is_empty().then_some((media_type, parameters))
}

/// The value of a parameter, and what follows it.
fn parameter(text: &[u8]) -> Option<(Vec<u8>, &[u8])> {
    let Some(quoted) = text.strip_prefix(b"\"") else {
        let end = text.iter().position(|b| *b == b';').unwrap_or(text.len());
        let (value, rest) = text.split_at_checked(end)?;
        return Some((value.trim_ascii_end().to_vec(), rest));
    };
    let (mut value, mut escaped) = (Vec::new(), false);
    for (n, byte) in quoted.iter().enumerate() {
        match byte {
            b'\\' if !escaped => escaped = true,
            b'"' if !escaped => return Some((value, quoted.get(n + 1..)?)),
            byte => {
                escaped = false;
                value.push(*byte);
            }
        }
    }
    None
}
