//! JSON from outside, read strictly: bounded in bytes, depth, members and values; no member twice; nothing behind
//! the end.
//!
//! Two readers must never read one document differently: RFC 8259 leaves a member that is there twice to each
//! parser, RFC 7519 section 4 lets a verifier refuse it, and this one does.

use std::cell::Cell;
use std::fmt;

use serde::de::{DeserializeSeed, MapAccess, SeqAccess, Visitor};

/// Deepest nesting: a delegation chain of [`ACTORS_MAX`](crate::ACTORS_MAX) fits, and so does what identity
/// providers nest by themselves (four levels).
const DEPTH_MAX: usize = 16;
/// Most members of one object; the check for doubles is quadratic in it. Tokens have about 20.
const MEMBERS_MAX: usize = 128;
/// Most values of a document, so that 8 KiB of `[0,0,…` don't become 100 KiB of memory.
const VALUES_MAX: usize = 2048;

/// A value. Its `Debug` shows of which kind it is, and nothing of it: claims may be personal.
#[derive(Clone, PartialEq)]
pub(crate) enum Json {
    Null,
    Bool(bool),
    Integer(i64),
    /// Any other number; finite.
    Float(f64),
    Text(Box<str>),
    List(Vec<Json>),
    Object(Object),
}

/// An object: its members in the order they came, each name once. Its `Debug` shows how many.
#[derive(Clone, Default, PartialEq)]
pub(crate) struct Object(Vec<(Box<str>, Json)>);

/// Why a document was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum JsonError {
    /// Not JSON, not UTF-8, or with something behind its end.
    #[error("not JSON")]
    Syntax,
    /// A member is there twice.
    #[error("a member is there twice")]
    Duplicate,
    /// Nested deeper than 16 levels.
    #[error("nested deeper than {DEPTH_MAX} levels")]
    Depth,
    /// More bytes, members or values than may be.
    #[error("too large")]
    Size,
    /// Not an object.
    #[error("not an object")]
    NotAnObject,
}

impl fmt::Debug for Json {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Json::Null => f.write_str("null"),
            Json::Bool(_) => f.write_str("bool"),
            Json::Integer(_) | Json::Float(_) => f.write_str("number"),
            Json::Text(_) => f.write_str("text"),
            Json::List(values) => write!(f, "list of {}", values.len()),
            Json::Object(object) => object.fmt(f),
        }
    }
}

impl fmt::Debug for Object {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "object of {}", self.0.len())
    }
}

// === impl Object ===

impl Object {
    /// Reads a document of at most `bytes_max` bytes that is one object.
    pub(crate) fn parse(document: &[u8], bytes_max: usize) -> Result<Object, JsonError> {
        if document.len() > bytes_max {
            return Err(JsonError::Size);
        }
        let (values_left, cause) = (Cell::new(VALUES_MAX), Cell::new(JsonError::Syntax));
        let seed = Seed { depth_left: DEPTH_MAX, values_left: &values_left, cause: &cause };
        let mut reader = serde_json::Deserializer::from_slice(document);
        let value = seed.deserialize(&mut reader).map_err(|_| cause.get())?;
        reader.end().map_err(|_| JsonError::Syntax)?;
        match value {
            Json::Object(object) => Ok(object),
            _ => Err(JsonError::NotAnObject),
        }
    }

    pub(crate) fn find(&self, name: &str) -> Option<&Json> {
        self.0.iter().find(|(n, _)| is_same(n, name)).map(|(_, value)| value)
    }

    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(|(name, _)| &**name)
    }

    /// The value at the end of a path of member names.
    pub(crate) fn at(&self, path: &[String]) -> Option<&Json> {
        let (first, rest) = path.split_first()?;
        let mut value = self.find(first)?;
        for name in rest {
            let Json::Object(object) = value else { return None };
            value = object.find(name)?;
        }
        Some(value)
    }

    /// The text of a member; `Err` if it is there and is not text.
    pub(crate) fn text(&self, name: &str) -> Result<Option<&str>, ()> {
        match self.find(name) {
            None => Ok(None),
            Some(Json::Text(text)) => Ok(Some(text)),
            Some(_) => Err(()),
        }
    }
}

/// Byte by byte and in place: names are short, most have three bytes and differ in the first, and the check for
/// doubles compares each with each. A call to compare memory costs more than that.
fn is_same(name: &str, other: &str) -> bool {
    name.len() == other.len() && name.bytes().zip(other.bytes()).all(|(a, b)| a == b)
}

// === impl Seed ===

/// What is left to read with, on the way down. `cause` tells what the reader's own error can't.
#[derive(Clone, Copy)]
struct Seed<'a> {
    depth_left: usize,
    values_left: &'a Cell<usize>,
    cause: &'a Cell<JsonError>,
}

impl<'a> Seed<'a> {
    fn refuse<E: serde::de::Error>(self, cause: JsonError) -> E {
        self.cause.set(cause);
        E::custom("refused")
    }

    fn deeper<E: serde::de::Error>(self) -> Result<Seed<'a>, E> {
        let depth_left = self.depth_left.checked_sub(1).ok_or_else(|| self.refuse(JsonError::Depth))?;
        Ok(Seed { depth_left, ..self })
    }
}

impl<'de> DeserializeSeed<'de> for Seed<'_> {
    type Value = Json;

    fn deserialize<D: serde::Deserializer<'de>>(self, reader: D) -> Result<Json, D::Error> {
        let left = self.values_left.get().checked_sub(1);
        self.values_left.set(left.ok_or_else(|| self.refuse(JsonError::Size))?);
        reader.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Seed<'_> {
    type Value = Json;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<Json, E> {
        Ok(Json::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Json, E> {
        Ok(Json::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Json, E> {
        Ok(Json::Integer(value))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Json, E> {
        #[expect(clippy::cast_precision_loss, reason = "beyond i64 it is only ever compared with bounds")]
        Ok(i64::try_from(value).map_or(Json::Float(value as f64), Json::Integer))
    }

    fn visit_f64<E: serde::de::Error>(self, value: f64) -> Result<Json, E> {
        if value.is_finite() { Ok(Json::Float(value)) } else { Err(E::custom("not finite")) }
    }

    fn visit_str<E>(self, value: &str) -> Result<Json, E> {
        Ok(Json::Text(value.into()))
    }

    fn visit_string<E>(self, value: String) -> Result<Json, E> {
        Ok(Json::Text(value.into()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut values: A) -> Result<Json, A::Error> {
        let below = self.deeper()?;
        let mut list = Vec::new();
        while let Some(value) = values.next_element_seed(below)? {
            list.push(value);
        }
        Ok(Json::List(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Json, A::Error> {
        let below = self.deeper()?;
        let mut object = Object::default();
        while let Some(name) = members.next_key::<Box<str>>()? {
            if object.find(&name).is_some() {
                return Err(self.refuse(JsonError::Duplicate));
            }
            if object.0.len() == MEMBERS_MAX {
                return Err(self.refuse(JsonError::Size));
            }
            object.0.push((name, members.next_value_seed(below)?));
        }
        Ok(Json::Object(object))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, expected: Result<(), JsonError>) {
        let read = Object::parse(text.as_bytes(), 1 << 16).map(drop);
        assert_eq!(read, expected, "{}", &text[..text.len().min(200)]);
    }

    #[test]
    fn documents() {
        use JsonError::*;
        check("{}", Ok(()));
        check(r#" {"a":[1,-1,1.5,true,null,"x",{"a":1}],"b":18446744073709551615} "#, Ok(()));
        for text in ["", "{", "{} {}", "{}x", r#"{"a":1,}"#, r#"{'a':1}"#, r#"{"a":NaN}"#, "{\"a\":\"\n\"}"] {
            check(text, Err(Syntax));
        }
        check(r#"{"a":1e999}"#, Err(Syntax));
        check(r#"{"a":"\ud800"}"#, Err(Syntax));
        check("[]", Err(NotAnObject));
        check("7", Err(NotAnObject));
        check(r#"{"a":1,"a":1}"#, Err(Duplicate));
        check(r#"{"a":1,"\u0061":2}"#, Err(Duplicate));
        check(r#"{"x":[{"a":1,"b":2,"a":3}]}"#, Err(Duplicate));
        let nested = |n: usize| format!("{}1{}", r#"{"a":"#.repeat(n), "}".repeat(n));
        check(&nested(DEPTH_MAX), Ok(()));
        check(&nested(DEPTH_MAX + 1), Err(Depth));
        check(&format!("{{\"a\":{}", "[".repeat(10_000)), Err(Depth));
        let wide = |n: usize| {
            let members: Vec<String> = (0..n).map(|n| format!("\"m{n}\":0")).collect();
            format!("{{{}}}", members.join(","))
        };
        check(&wide(MEMBERS_MAX), Ok(()));
        check(&wide(MEMBERS_MAX + 1), Err(Size));
        check(&format!("{{\"a\":[0{}]}}", ",0".repeat(VALUES_MAX)), Err(Size));
        assert_eq!(Object::parse(b"{\"a\":\"\xff\"}", 100), Err(Syntax));
        assert_eq!(Object::parse(b"{\"a\":1}", 6), Err(Size));
    }

    #[test]
    fn paths_end_where_objects_end() {
        let object = Object::parse(br#"{"a":{"b":{"c":1}},"a.b":2,"l":[{"b":3}]}"#, 100).unwrap();
        let at = |path: &[&str]| {
            let path: Vec<String> = path.iter().map(|p| (*p).to_owned()).collect();
            object.at(&path).cloned()
        };
        assert_eq!(at(&["a", "b", "c"]), Some(Json::Integer(1)));
        assert_eq!(at(&["a.b"]), Some(Json::Integer(2)));
        for nothing in [&["l", "b"][..], &["a", "b", "c", "d"], &["b"], &[]] {
            assert_eq!(at(nothing), None, "{nothing:?}");
        }
    }
}
