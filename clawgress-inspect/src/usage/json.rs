//! A JSON scanner in constant memory: it checks the grammar and notes the few values that usage is
//! read from. Must never build a document.

use super::Facts;

/// Deepest nesting followed: one bit a level. Deeper documents are not read.
const DEPTH_MAX: u32 = 64;
/// Levels at which keys are told apart: `response.usage.input_tokens` needs three.
const KEYS_MAX: usize = 3;
/// Longest key or literal noted, bytes.
const KEY_BYTES_MAX: usize = 32;
/// Longest model name noted, bytes; longer ones are left out.
const MODEL_BYTES_MAX: usize = 128;

/// How far a document has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Status {
    /// Not whole yet.
    Open,
    /// One whole value, and nothing after it but blanks.
    Whole,
    /// No JSON.
    Broken,
}

/// Names that matter.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Key {
    #[default]
    Other,
    /// `response` of the responses API, `message` of the Anthropic shape: both wrap a document.
    Wrapper,
    Usage,
    Model,
    Input,
    Output,
}

/// What may come next.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Expect {
    #[default]
    Value,
    /// A value or `]`.
    ValueOrEnd,
    /// A key or `}`.
    KeyOrEnd,
    Key,
    Colon,
    /// `,` or the end of the container.
    Comma,
    /// Inside a string that is a key.
    InKey,
    /// Inside a string that is a value.
    InString,
    /// Inside a number or a literal.
    InWord,
    /// Nothing but blanks.
    End,
    Broken,
}

/// Where in an escape sequence the next byte of a string is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Escape {
    #[default]
    None,
    Start,
    /// This many hex digits are left.
    Unicode(u8),
}

/// The scanner of one document.
#[derive(Debug, Default)]
pub(super) struct Scanner {
    expect: Expect,
    depth: u32,
    /// Bit n: level n is an object.
    objects: u64,
    keys: [Key; KEYS_MAX],
    escape: Escape,
    /// The string or word at hand, unless it is too long to matter or has escapes.
    text: Vec<u8>,
    text_usable: bool,
    facts: Facts,
}

// === impl Scanner ===

impl Scanner {
    pub(super) fn push(&mut self, byte: u8) {
        match self.expect {
            Expect::Broken => return,
            Expect::InKey | Expect::InString => return self.string_byte(byte),
            Expect::InWord if byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'-' | b'.') => {
                return self.note(byte, KEY_BYTES_MAX);
            }
            Expect::InWord => self.word_end(),
            _ => {}
        }
        if matches!(byte, b' ' | b'\t' | b'\r' | b'\n') {
            return;
        }
        match (self.expect, byte) {
            (Expect::Value | Expect::ValueOrEnd, b'{') => self.open(true),
            (Expect::Value | Expect::ValueOrEnd, b'[') => self.open(false),
            (Expect::Value | Expect::ValueOrEnd, b'"') => self.start(Expect::InString),
            (Expect::Value | Expect::ValueOrEnd, b'-' | b'0'..=b'9' | b't' | b'f' | b'n') => {
                self.start(Expect::InWord);
                self.note(byte, KEY_BYTES_MAX);
            }
            (Expect::Key | Expect::KeyOrEnd, b'"') => self.start(Expect::InKey),
            (Expect::Colon, b':') => self.expect = Expect::Value,
            (Expect::Comma, b',') => self.expect = if self.in_object() { Expect::Key } else { Expect::Value },
            (Expect::Comma | Expect::KeyOrEnd, b'}') if self.in_object() => self.close(),
            (Expect::Comma | Expect::ValueOrEnd, b']') if !self.in_object() => self.close(),
            _ => self.expect = Expect::Broken,
        }
    }

    pub(super) fn status(&self) -> Status {
        match self.expect {
            Expect::End => Status::Whole,
            Expect::Broken => Status::Broken,
            _ => Status::Open,
        }
    }

    pub(super) fn into_facts(self) -> Facts {
        self.facts
    }

    fn in_object(&self) -> bool {
        self.depth > 0 && self.objects >> (self.depth - 1) & 1 == 1
    }

    fn open(&mut self, object: bool) {
        if self.depth == DEPTH_MAX {
            self.expect = Expect::Broken;
            return;
        }
        self.objects = self.objects & !(1 << self.depth) | u64::from(object) << self.depth;
        if let Some(key) = self.keys.get_mut(self.depth as usize) {
            // Elements of an array have no name.
            *key = Key::Other;
        }
        self.depth += 1;
        self.expect = if object { Expect::KeyOrEnd } else { Expect::ValueOrEnd };
    }

    fn close(&mut self) {
        self.depth = self.depth.saturating_sub(1);
        self.value_end();
    }

    fn value_end(&mut self) {
        self.expect = if self.depth == 0 { Expect::End } else { Expect::Comma };
    }

    fn start(&mut self, expect: Expect) {
        self.expect = expect;
        self.text.clear();
        self.text_usable = true;
    }

    fn note(&mut self, byte: u8, bytes_max: usize) {
        if self.text.len() < bytes_max {
            self.text.push(byte);
        } else {
            self.text_usable = false;
        }
    }

    fn string_byte(&mut self, byte: u8) {
        self.escape = match (self.escape, byte) {
            (Escape::Start, b'u') => Escape::Unicode(4),
            (Escape::Start, b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't') => Escape::None,
            (Escape::Unicode(n), b) if b.is_ascii_hexdigit() => {
                if n == 1 {
                    Escape::None
                } else {
                    Escape::Unicode(n - 1)
                }
            }
            (Escape::Start | Escape::Unicode(_), _) | (Escape::None, 0..=0x1f) => {
                self.expect = Expect::Broken;
                return;
            }
            (Escape::None, b'\\') => {
                // A name that matters has no reason to be escaped.
                self.text_usable = false;
                Escape::Start
            }
            (Escape::None, b'"') => return self.string_end(),
            (Escape::None, b) => {
                self.note(b, MODEL_BYTES_MAX);
                Escape::None
            }
        };
    }

    fn string_end(&mut self) {
        let text = if self.text_usable { std::str::from_utf8(&self.text).ok() } else { None };
        if self.expect == Expect::InKey {
            let key = match text {
                Some("response" | "message") => Key::Wrapper,
                Some("usage") => Key::Usage,
                Some("model") => Key::Model,
                Some("prompt_tokens" | "input_tokens") => Key::Input,
                Some("completion_tokens" | "output_tokens") => Key::Output,
                _ => Key::Other,
            };
            let level = self.depth.saturating_sub(1) as usize;
            if let Some(slot) = self.keys.get_mut(level) {
                *slot = key;
            }
            self.expect = Expect::Colon;
            return;
        }
        let named =
            matches!((self.depth, self.keys), (1, [Key::Model, ..]) | (2, [Key::Wrapper, Key::Model, _]));
        if let Some(model) = text.filter(|m| named && self.in_object() && !m.is_empty()) {
            self.facts.model = Some(model.to_owned());
        }
        self.value_end();
    }

    fn word_end(&mut self) {
        let text = std::str::from_utf8(&self.text).unwrap_or_default();
        if !self.text_usable || !(matches!(text, "true" | "false" | "null") || number(text)) {
            self.expect = Expect::Broken;
            return;
        }
        let key = match (self.depth, self.keys) {
            (2, [Key::Usage, key, _]) | (3, [Key::Wrapper, Key::Usage, key]) if self.in_object() => key,
            _ => Key::Other,
        };
        if let Ok(count) = text.parse() {
            match key {
                Key::Input => self.facts.input = Some(count),
                Key::Output => self.facts.output = Some(count),
                _ => {}
            }
        }
        self.value_end();
    }
}

/// Whether `text` is a number (RFC 8259 section 6).
fn number(text: &str) -> bool {
    let digits = |s: &str| !s.is_empty() && s.bytes().all(|b| b.is_ascii_digit());
    let (mantissa, exponent) = match text.split_once(['e', 'E']) {
        Some((m, e)) => (m, Some(e.strip_prefix(['+', '-']).unwrap_or(e))),
        None => (text, None),
    };
    let mantissa = mantissa.strip_prefix('-').unwrap_or(mantissa);
    let (whole, fraction) = match mantissa.split_once('.') {
        Some((w, f)) => (w, Some(f)),
        None => (mantissa, None),
    };
    digits(whole)
        && (whole.len() == 1 || !whole.starts_with('0'))
        && fraction.is_none_or(digits)
        && exponent.is_none_or(digits)
}
