//! Documents of JSON as values: bounded, numbers as they are written, and nothing that two parsers would read in two ways.

use std::fmt::Write as _;

use crate::payload::json::{Event, Json, JsonError, Kind};

/// Most values of one document: a list of some thousand tools with their schemas has a tenth of it.
pub const VALUES_MAX: usize = 1 << 18;

/// A value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    /// `null`.
    Null,
    /// `true` or `false`.
    Bool(bool),
    /// As it is written.
    Number(String),
    /// Without escapes.
    Text(String),
    /// In order.
    Array(Vec<Value>),
    /// In order; no name comes twice.
    Object(Vec<(String, Value)>),
}

/// Why a document is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ValueError {
    /// Not JSON (RFC 8259).
    #[error("it is no JSON")]
    Malformed,
    /// Too many levels.
    #[error("its JSON has too many levels")]
    TooDeep,
    /// More than [`VALUES_MAX`].
    #[error("its JSON has too many values")]
    TooMany,
    /// A name comes twice: some take the first, some the last.
    #[error("the name `{0}` comes twice in one object")]
    Twice(String),
}

impl From<JsonError> for ValueError {
    fn from(error: JsonError) -> ValueError {
        match error {
            JsonError::Malformed => ValueError::Malformed,
            JsonError::TooDeep => ValueError::TooDeep,
        }
    }
}

/// What is put together.
#[derive(Debug, Default)]
pub(super) struct Builder {
    /// Open ones, each with its name in the one around it.
    open: Vec<(Option<String>, Value)>,
    name: Option<String>,
    field: Vec<u8>,
    kind: Option<Kind>,
    root: Option<Value>,
    count: usize,
}

// === impl Value ===

impl Value {
    /// The value of a document.
    ///
    /// # Errors
    /// Why it is refused.
    pub fn parse(text: &[u8]) -> Result<Value, ValueError> {
        let (mut json, mut builder) = (Json::new(false), Builder::default());
        let mut sink = |event: Event<'_>| builder.event(event);
        json.push(text, &mut sink)?;
        json.finish(&mut sink)?;
        builder.root.ok_or(ValueError::Malformed)
    }

    /// A member of an object.
    #[must_use]
    pub fn member(&self, name: &str) -> Option<&Value> {
        let Value::Object(members) = self else { return None };
        #[cfg(test)]
        crate::steps::add(members.len());
        members.iter().find(|(known, _)| known == name).map(|(_, value)| value)
    }

    /// The text, if it is one.
    #[must_use]
    pub fn text(&self) -> Option<&str> {
        if let Value::Text(text) = self { Some(text) } else { None }
    }

    /// Members of an object; none of anything else.
    #[must_use]
    pub fn members(&self) -> &[(String, Value)] {
        if let Value::Object(members) = self { members } else { &[] }
    }

    /// Items of an array; none of anything else.
    #[must_use]
    pub fn items(&self) -> &[Value] {
        if let Value::Array(items) = self { items } else { &[] }
    }

    /// As JSON, names in order of their bytes: the same for what is the same.
    #[must_use]
    pub fn canonical(&self) -> String {
        let mut out = String::new();
        self.write(&mut out, true);
        out
    }

    /// As JSON, names in their order.
    #[must_use]
    pub fn json(&self) -> String {
        let mut out = String::new();
        self.write(&mut out, false);
        out
    }

    /// Bytes of memory that it takes, besides itself.
    #[must_use]
    pub fn memory_bytes(&self) -> usize {
        match self {
            Value::Null | Value::Bool(_) => 0,
            Value::Number(text) | Value::Text(text) => text.capacity(),
            Value::Array(items) => {
                let own = items.capacity() * size_of::<Value>();
                own + items.iter().map(Value::memory_bytes).sum::<usize>()
            }
            Value::Object(members) => {
                let own = members.capacity() * size_of::<(String, Value)>();
                let of = |(name, value): &(String, Value)| name.capacity() + value.memory_bytes();
                own + members.iter().map(of).sum::<usize>()
            }
        }
    }

    /// Levels are bounded by what parsed it.
    fn write(&self, out: &mut String, sorted: bool) {
        match self {
            Value::Null => out.push_str("null"),
            Value::Bool(is) => out.push_str(if *is { "true" } else { "false" }),
            Value::Number(number) => out.push_str(number),
            Value::Text(text) => write_text(text, out),
            Value::Array(items) => {
                out.push('[');
                for (n, item) in items.iter().enumerate() {
                    if n > 0 {
                        out.push(',');
                    }
                    item.write(out, sorted);
                }
                out.push(']');
            }
            Value::Object(members) => {
                let mut members: Vec<_> = members.iter().collect();
                if sorted {
                    members.sort_by(|a, b| a.0.cmp(&b.0));
                }
                out.push('{');
                for (n, (name, value)) in members.into_iter().enumerate() {
                    if n > 0 {
                        out.push(',');
                    }
                    write_text(name, out);
                    out.push(':');
                    value.write(out, sorted);
                }
                out.push('}');
            }
        }
    }
}

fn write_text(text: &str, out: &mut String) {
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            c if u32::from(c) < 0x20 => {
                let _ = write!(out, "\\u{:04x}", u32::from(c));
            }
            c => out.push(c),
        }
    }
    out.push('"');
}

// === impl Builder ===

impl Builder {
    /// The document, once it is whole.
    pub(super) fn root(&self) -> Option<&Value> {
        self.root.as_ref()
    }

    /// What comes next of it.
    ///
    /// # Errors
    /// Why it is refused.
    pub(super) fn event(&mut self, event: Event<'_>) -> Result<(), ValueError> {
        #[cfg(test)]
        crate::steps::add(if let Event::Piece(bytes) = event { bytes.len() } else { 1 });
        match event {
            Event::Open { object } => {
                self.counts()?;
                let value = if object { Value::Object(Vec::new()) } else { Value::Array(Vec::new()) };
                self.open.push((self.name.take(), value));
                Ok(())
            }
            Event::Close => {
                let (name, value) = self.open.pop().ok_or(ValueError::Malformed)?;
                if let Some(twice) = twice(value.members()) {
                    return Err(ValueError::Twice(twice.chars().take(64).collect()));
                }
                self.name = name;
                self.add(value)
            }
            Event::Begin(kind) => {
                self.field.clear();
                self.kind = Some(kind);
                Ok(())
            }
            Event::Piece(bytes) => {
                self.field.extend_from_slice(bytes);
                Ok(())
            }
            Event::End => self.end(),
        }
    }

    fn counts(&mut self) -> Result<(), ValueError> {
        self.count += 1;
        if self.count > VALUES_MAX { Err(ValueError::TooMany) } else { Ok(()) }
    }

    fn end(&mut self) -> Result<(), ValueError> {
        // What is no UTF-8, some parsers replace and some refuse.
        let field = std::str::from_utf8(&self.field).map_err(|_| ValueError::Malformed)?;
        let value = match self.kind.take() {
            Some(Kind::Key) => {
                self.name = Some(field.to_owned());
                return Ok(());
            }
            Some(Kind::Text) => Value::Text(field.to_owned()),
            Some(Kind::Word) => match field {
                "null" => Value::Null,
                "true" => Value::Bool(true),
                "false" => Value::Bool(false),
                number if is_number(number) => Value::Number(number.to_owned()),
                _ => return Err(ValueError::Malformed),
            },
            None => return Err(ValueError::Malformed),
        };
        self.counts()?;
        self.add(value)
    }

    fn add(&mut self, value: Value) -> Result<(), ValueError> {
        match self.open.last_mut() {
            Some((_, Value::Array(items))) => items.push(value),
            Some((_, Value::Object(members))) => {
                let name = self.name.take().ok_or(ValueError::Malformed)?;
                members.push((name, value));
            }
            // Another document behind it, which some would read and some not.
            _ if self.root.is_some() => return Err(ValueError::Malformed),
            _ => self.root = Some(value),
        }
        Ok(())
    }
}

/// Members that are compared one with the other, and no list is made of their names for.
const FEW: usize = 8;

/// The first name, in order of their bytes, that comes twice.
fn twice(members: &[(String, Value)]) -> Option<&str> {
    #[cfg(test)]
    crate::steps::add(members.len());
    let is_again =
        |(n, (name, _)): (usize, &(String, Value))| members.iter().take(n).any(|(before, _)| before == name);
    if members.len() <= FEW && !members.iter().enumerate().any(is_again) {
        return None;
    }
    let mut names: Vec<&str> = members.iter().map(|(name, _)| &**name).collect();
    names.sort_unstable();
    names.windows(2).find(|pair| pair.first() == pair.last())?.first().copied()
}

/// Whether a word is a number (RFC 8259 section 6).
pub(crate) fn is_number(word: &str) -> bool {
    let rest = word.strip_prefix('-').unwrap_or(word);
    let digits = |text: &str| text.bytes().take_while(u8::is_ascii_digit).count();
    let whole = digits(rest);
    let (int, mut rest) = rest.split_at_checked(whole).unwrap_or_default();
    if int.is_empty() || int.len() > 1 && int.starts_with('0') {
        return false;
    }
    if let Some(part) = rest.strip_prefix('.') {
        let n = digits(part);
        if n == 0 {
            return false;
        }
        rest = part.get(n..).unwrap_or_default();
    }
    if let Some(part) = rest.strip_prefix(['e', 'E']) {
        let part = part.strip_prefix(['+', '-']).unwrap_or(part);
        let n = digits(part);
        return n > 0 && n == part.len();
    }
    rest.is_empty()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_document_is_its_value_and_nothing_else() {
        let text = r#"{"b":[1.50,-0,1e+9,null,true],"a":"x\n\u00e9\ud83d\ude00\"","c":{}}"#;
        let value = Value::parse(text.as_bytes()).expect("a document");
        assert_eq!(value.json(), "{\"b\":[1.50,-0,1e+9,null,true],\"a\":\"x\\né😀\\\"\",\"c\":{}}");
        assert_eq!(value.canonical(), "{\"a\":\"x\\né😀\\\"\",\"b\":[1.50,-0,1e+9,null,true],\"c\":{}}");
        assert!((8 * size_of::<Value>()..2048).contains(&value.memory_bytes()), "{}", value.memory_bytes());
        assert_eq!(Value::parse(value.json().as_bytes()), Ok(value));
        for (text, why) in [
            ("", ValueError::Malformed),
            ("NaN", ValueError::Malformed),
            ("01", ValueError::Malformed),
            ("1.", ValueError::Malformed),
            ("{\"a\":1,\"\\u0061\":2}", ValueError::Twice("a".to_owned())),
            ("{} {}", ValueError::Malformed),
            ("\"\u{1}\"", ValueError::Malformed),
        ] {
            assert_eq!(Value::parse(text.as_bytes()), Err(why), "{text}");
        }
        assert_eq!(Value::parse("[".repeat(65).as_bytes()), Err(ValueError::TooDeep));
        let many = format!("[{}0]", "0,".repeat(VALUES_MAX));
        assert_eq!(Value::parse(many.as_bytes()), Err(ValueError::TooMany));
        assert_eq!(Value::parse(b"\"\xff\""), Err(ValueError::Malformed));
    }
}
