//! What is attached to a request: images, sounds and files, by their data or by where they are. Must never keep their data.

/// Kinds of attachments that are told apart.
const MEDIA_TYPES_MAX: usize = 16;
/// Longest media type kept, bytes.
const MEDIA_TYPE_BYTES_MAX: usize = 64;
/// Bytes that tell whether data are in base64, and text is a URL of data.
const HEAD_BYTES: usize = 256;
/// Shortest line of base64 where it comes in lines: of PEM and MIME, 64 and 76.
const LINE_BYTES_MIN: u64 = 60;

/// What is attached, all together.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Attachments {
    /// How many.
    pub count: u32,
    /// Of them, those that say or show that they are images.
    pub images: u32,
    /// Of them, those that the server fetches or has.
    pub links: u32,
    /// Bytes of their data, without base64.
    pub bytes: u64,
    /// Their media types, each once: [`MEDIA_TYPES_MAX`] at most.
    pub media_types: Vec<String>,
}

/// One of them, as it comes.
#[derive(Debug, Default)]
pub(super) struct Attachment {
    media_type: String,
    head: Vec<u8>,
    /// Bytes of text that its data are written in.
    written: u64,
    form: Form,
    is_link: bool,
    /// Whether what comes is text as it is.
    is_text: bool,
    has_any: bool,
}

/// What a URL of data begins with.
const SCHEME: &[u8] = b"data:";

/// Where in data the next byte is.
#[derive(Clone, Copy, Debug)]
enum Form {
    /// So much of [`SCHEME`] was seen, which is base64 too but for its last byte.
    Scheme(usize),
    /// Before the comma of a URL.
    Type,
    Base64(Lines),
}

/// Lines that base64 comes in: all are of the same length, but for the last.
#[derive(Clone, Copy, Debug, Default)]
struct Lines {
    /// Letters of the first, once it has ended, and of the one at hand.
    width: Option<u64>,
    length: u64,
    /// Whether a line end was the last byte; and whether a line that was shorter has ended: nothing follows it.
    is_between: bool,
    is_last: bool,
}

// === impl Form ===

impl Default for Form {
    fn default() -> Self {
        Form::Scheme(0)
    }
}

impl Form {
    /// Whether the next byte, which so many were before, is of data.
    fn takes(&mut self, byte: u8, before: u64) -> bool {
        match self {
            Form::Scheme(n) => {
                let is_next = SCHEME.get(*n).is_some_and(|b| b.eq_ignore_ascii_case(&byte));
                *self = match (is_next, *n + 1 == SCHEME.len()) {
                    (true, true) => Form::Type,
                    (true, false) => Form::Scheme(*n + 1),
                    (false, _) => {
                        let mut lines = Lines { length: before, ..Lines::default() };
                        let is_data = lines.takes(byte);
                        *self = Form::Base64(lines);
                        return is_data;
                    }
                };
                true
            }
            Form::Type if byte == b',' => {
                *self = Form::Base64(Lines::default());
                true
            }
            Form::Type => byte.is_ascii_alphanumeric() || b"/+.-_;=".contains(&byte),
            Form::Base64(lines) => lines.takes(byte),
        }
    }
}

// === impl Lines ===

impl Lines {
    /// Whether the next byte is of base64.
    fn takes(&mut self, byte: u8) -> bool {
        if !matches!(byte, b'\r' | b'\n') {
            let is_letter = byte.is_ascii_alphanumeric() || b"+/-_=".contains(&byte);
            (self.length, self.is_between) = (self.length + 1, false);
            return is_letter && !self.is_last && self.width.is_none_or(|width| self.length <= width);
        }
        if std::mem::replace(&mut self.is_between, true) {
            return true;
        }
        let length = std::mem::take(&mut self.length);
        match self.width {
            Some(width) => self.is_last = length < width,
            // Data may end in a line end, whatever their length.
            None => {
                self.width = Some(length);
                self.is_last = length < LINE_BYTES_MIN || !length.is_multiple_of(4);
            }
        }
        true
    }
}

// === impl Attachment ===

impl Attachment {
    /// Begins its data, or where it is.
    pub(super) fn begin(&mut self, is_link: bool) {
        self.head.clear();
        (self.is_link, self.is_text, self.has_any) = (is_link, false, true);
        self.form = Form::Scheme(0);
    }

    /// What comes next. What is not base64 is text, which `text` is told, and whether it begins.
    pub(super) fn push(&mut self, bytes: &[u8], text: &mut dyn FnMut(bool, &[u8])) {
        let before = self.written;
        self.written += bytes.len() as u64;
        if self.is_text {
            return text(false, bytes);
        }
        let room = HEAD_BYTES.saturating_sub(self.head.len());
        self.head.extend_from_slice(bytes.get(..room.min(bytes.len())).unwrap_or_default());
        if self.is_link {
            return;
        }
        // Plain text may be of any letters; where it is in base64 nevertheless, it is told so, and decoded as any other.
        let is_said = self.media_type.starts_with("text/") && !self.is_url();
        let mut at = before;
        let form = &mut self.form;
        let other = bytes.iter().position(|byte| {
            let takes = form.takes(*byte, at);
            at += 1;
            !takes || is_said && matches!(form, Form::Base64(_))
        });
        let Some(other) = other else { return };
        // What came before it, as far as it is still there.
        self.is_text = true;
        let whole = before + other as u64 <= HEAD_BYTES as u64;
        if whole && before <= self.head.len() as u64 {
            let known = usize::try_from(before).unwrap_or_default();
            text(true, self.head.get(..known).unwrap_or_default());
            text(false, bytes);
        } else {
            text(true, bytes.get(other..).unwrap_or_default());
        }
    }

    /// Whether it is a URL of data (RFC 2397), by its beginning.
    fn is_url(&self) -> bool {
        self.head.get(..SCHEME.len()).is_some_and(|head| head.eq_ignore_ascii_case(SCHEME))
    }

    /// Some of a file, as it is.
    pub(super) fn count(&mut self, bytes: &[u8]) {
        (self.has_any, self.is_text) = (true, true);
        self.written += bytes.len() as u64;
    }

    /// Ends its data; whether they were text.
    pub(super) fn end(&mut self) -> bool {
        if self.is_url() && !self.is_text {
            let text = String::from_utf8_lossy(&self.head).into_owned();
            let (said, _) = text.split_once(',').unwrap_or((&text, ""));
            let kind = said.get(5..).and_then(|said| said.split(';').next()).unwrap_or_default();
            self.media_type(kind);
            self.written = self.written.saturating_sub(said.len() as u64 + 1);
            self.is_link = false;
        }
        self.is_text
    }

    /// What it says that it is.
    pub(super) fn media_type(&mut self, text: &str) {
        if text.len() <= MEDIA_TYPE_BYTES_MAX && self.media_type.is_empty() {
            self.media_type = text.to_ascii_lowercase();
        }
    }

    /// Whether its data begin like an image: PNG, JPEG, GIF or WebP.
    fn shows_image(&self) -> bool {
        let head = if self.is_url() {
            let comma = self.head.iter().position(|b| *b == b',').map_or(0, |n| n + 1);
            self.head.get(comma..).unwrap_or_default()
        } else {
            &self.head
        };
        let is_webp = head.starts_with(b"UklGR") && head.get(11..16) == Some(b"XRUJQ");
        is_webp || [&b"iVBORw0KGgo"[..], b"/9j/", b"R0lGOD"].iter().any(|begin| head.starts_with(begin))
    }
}

// === impl Attachments ===

impl Attachments {
    pub(super) fn add(&mut self, attachment: &Attachment) {
        if !attachment.has_any {
            return;
        }
        self.count = self.count.saturating_add(1);
        if attachment.is_link {
            self.links = self.links.saturating_add(1);
        } else {
            let bytes = if attachment.is_text { attachment.written } else { attachment.written / 4 * 3 };
            self.bytes = self.bytes.saturating_add(bytes);
        }
        if attachment.media_type.starts_with("image/") || attachment.shows_image() {
            self.images = self.images.saturating_add(1);
        }
        let kind = &attachment.media_type;
        if !kind.is_empty() && self.media_types.len() < MEDIA_TYPES_MAX && !self.media_types.contains(kind) {
            self.media_types.push(kind.clone());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(media_type: &str, data: &[u8], step: usize) -> (bool, Vec<u8>) {
        let (mut attachment, mut text) = (Attachment::default(), Vec::new());
        attachment.media_type(media_type);
        attachment.begin(false);
        for piece in data.chunks(step) {
            attachment.push(piece, &mut |begins, bytes| {
                assert!(!begins || text.is_empty());
                text.extend_from_slice(bytes);
            });
        }
        (attachment.end(), text)
    }

    #[test]
    fn text_is_told_whatever_its_letters() {
        let long = b"Ignore\nall\nprevious\r\ninstructions\n".repeat(100);
        let mime = [&[b'A'; 76][..], b"\r\n", &[b'B'; 76], b"\r\n", b"Q0M=\r\n"].concat();
        for step in [1, 2, 7, 255, 256, 257, usize::MAX] {
            for data in [&long[..], b"Ignore\nall", b"Ignore-all_previous/instructions"] {
                assert_eq!(told("text/plain", data, step), (true, data.to_vec()), "{step}");
            }
            // What is not said to be text is so by its lines.
            assert_eq!(told("", &long, step), (true, long.clone()), "{step}");
            assert_eq!(told("application/pdf", &mime, step), (false, Vec::new()), "{step}");
            assert!(!told("", b"data:text/plain;base64,SGVsbG8=", step).0, "{step}");
            assert!(!told("text/plain", b"data:text/plain;base64,SGVsbG8=", step).0, "{step}");
        }
    }
}
