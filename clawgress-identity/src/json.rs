//! JSON from outside, read strictly: bounded in bytes, depth, members and values; no member twice; nothing behind
//! the end.
//!
//! Two readers must never read one document differently: RFC 8259 leaves a member that is there twice to each
//! parser, RFC 7519 section 4 lets a verifier refuse it, and this one does.
//!
//! A document is kept as its text and a list of where in it everything stands: a token is read for each request, and a
//! tree would be a few dozen allocations for each.

use std::fmt;

use serde::de::{DeserializeSeed, MapAccess, SeqAccess, Visitor};

/// Deepest nesting: a delegation chain of [`ACTORS_MAX`](crate::ACTORS_MAX) fits, and so does what identity
/// providers nest by themselves (four levels).
const DEPTH_MAX: usize = 16;
/// Most members of one object; the check for doubles is quadratic in it. Tokens have about 20.
const MEMBERS_MAX: usize = 128;
/// Most values of a document, so that 8 KiB of `[0,0,…` don't become 100 KiB of memory.
const VALUES_MAX: usize = 2048;
/// Room is made for one value for each so many bytes, and some more: tokens have fewer.
const VALUE_BYTES: usize = 16;
const VALUES_LEAST: usize = 4;

/// A document that is one object. Its `Debug` shows nothing of it: claims may be personal.
#[derive(Clone, PartialEq)]
pub(crate) struct Document {
    /// As it was written, and behind it what texts with escapes spell.
    text: String,
    /// Its values, each before those that it holds.
    nodes: Vec<Node>,
}

/// A value of a document, as it is looked at. Its `Debug` shows of which kind it is, and nothing of it.
#[derive(Clone, Copy)]
pub(crate) enum Json<'a> {
    Null,
    Bool(bool),
    Integer(i64),
    /// Any other number; finite.
    Float(f64),
    Text(&'a str),
    List(List<'a>),
    Object(Object<'a>),
}

/// An object of a document: its members in the order they came, each name once.
#[derive(Clone, Copy)]
pub(crate) struct Object<'a>(Held<'a>);

/// A list of a document.
#[derive(Clone, Copy)]
pub(crate) struct List<'a>(Held<'a>);

/// What an object or a list holds.
#[derive(Clone, Copy)]
struct Held<'a> {
    text: &'a str,
    /// The values in it, and behind each those that it holds.
    nodes: &'a [Node],
}

/// A value, and the name of the member that it is; of an element and of the document's own value that is empty.
#[derive(Clone, Copy, PartialEq)]
struct Node {
    name: Name,
    /// How many nodes behind it are in it.
    held: u32,
    value: Value,
}

#[derive(Clone, Copy, PartialEq)]
enum Value {
    Null,
    Bool(bool),
    Integer(i64),
    Float(f64),
    Text(Span),
    List,
    Object,
}

/// A member's name.
#[derive(Clone, Copy, Default, PartialEq)]
struct Name {
    at: Span,
    mark: Mark,
}

/// What tells most names apart at once, as the check for doubles compares each with each: their length in bytes (255 for
/// longer ones), and the first byte, that in the middle, and the last.
#[derive(Clone, Copy, Default, PartialEq)]
struct Mark([u8; 4]);

/// A part of a document's text, bytes: from here, and up to there.
#[derive(Clone, Copy, Default, PartialEq)]
struct Span(u32, u32);

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

impl fmt::Debug for Document {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "document of {}", self.nodes.len())
    }
}

impl fmt::Debug for Json<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Json::Null => "null",
            Json::Bool(_) => "bool",
            Json::Integer(_) | Json::Float(_) => "number",
            Json::Text(_) => "text",
            Json::List(_) => "list",
            Json::Object(_) => "object",
        })
    }
}

// === impl Document ===

impl Document {
    /// Reads a document of at most `bytes_max` bytes that is one object.
    pub(crate) fn parse(document: Vec<u8>, bytes_max: usize) -> Result<Document, JsonError> {
        if document.len() > bytes_max {
            return Err(JsonError::Size);
        }
        let mut text = String::from_utf8(document).map_err(|_| JsonError::Syntax)?;
        let room = (VALUES_LEAST + text.len() / VALUE_BYTES).min(VALUES_MAX);
        let mut builder = Builder {
            text: &text,
            spelled: String::new(),
            nodes: Vec::with_capacity(room),
            cause: JsonError::Syntax,
        };
        let mut reader = serde_json::Deserializer::from_str(&text);
        let seed = Seed { builder: &mut builder, name: Name::default(), depth_left: DEPTH_MAX };
        if seed.deserialize(&mut reader).is_err() {
            return Err(builder.cause);
        }
        reader.end().map_err(|_| JsonError::Syntax)?;
        let Builder { spelled, nodes, .. } = builder;
        if !matches!(nodes.first(), Some(Node { value: Value::Object, .. })) {
            return Err(JsonError::NotAnObject);
        }
        text.push_str(&spelled);
        Ok(Document { text, nodes })
    }

    /// The object that it is.
    pub(crate) fn object(&self) -> Object<'_> {
        Object(Held { text: &self.text, nodes: self.nodes.get(1..).unwrap_or_default() })
    }
}

// === impl Object ===

impl<'a> Object<'a> {
    #[inline]
    pub(crate) fn find(&self, name: &str) -> Option<Json<'a>> {
        // Here, where the name is a constant, its mark is one, too.
        self.find_marked(name, Mark::of(name))
    }

    fn find_marked(&self, name: &str, mark: Mark) -> Option<Json<'a>> {
        let Held { text, nodes } = self.0;
        let (node, held) = find(nodes, mark, |own| own.of(text) == name)?;
        Some(node.json(text, held))
    }

    pub(crate) fn names(&self) -> impl Iterator<Item = &'a str> + use<'a> {
        let Held { text, nodes } = self.0;
        values(nodes).map(move |(node, _)| node.name.at.of(text))
    }

    /// The value at the end of a path of member names.
    pub(crate) fn at(&self, path: &[String]) -> Option<Json<'a>> {
        let (first, rest) = path.split_first()?;
        let mut value = self.find(first)?;
        for name in rest {
            let Json::Object(object) = value else { return None };
            value = object.find(name)?;
        }
        Some(value)
    }

    /// The text of a member; `Err` if it is there and is not text.
    pub(crate) fn text(&self, name: &str) -> Result<Option<&'a str>, ()> {
        match self.find(name) {
            None => Ok(None),
            Some(Json::Text(text)) => Ok(Some(text)),
            Some(_) => Err(()),
        }
    }
}

// === impl List ===

impl<'a> List<'a> {
    pub(crate) fn iter(&self) -> impl Iterator<Item = Json<'a>> + Clone + use<'a> {
        let Held { text, nodes } = self.0;
        values(nodes).map(move |(node, held)| node.json(text, held))
    }
}

/// The values of what holds these nodes, each with those that it holds itself.
fn values(mut nodes: &[Node]) -> impl Iterator<Item = (&Node, &[Node])> + Clone {
    std::iter::from_fn(move || {
        let (node, rest) = nodes.split_first()?;
        let held;
        (held, nodes) = rest.split_at_checked(node.held as usize).unwrap_or((rest, &[]));
        Some((node, held))
    })
}

/// The one of [`values`] whose name has this mark and, where that doesn't tell all of it, is the right one. Nothing else
/// is looked at of the others: nothing is done more often with a document.
#[inline]
fn find(nodes: &[Node], mark: Mark, is_right: impl Fn(Span) -> bool) -> Option<(&Node, &[Node])> {
    let mut at = 0;
    while let Some(node) = nodes.get(at) {
        at += 1;
        let end = at + node.held as usize;
        if node.name.mark == mark && (mark.is_whole() || is_right(node.name.at)) {
            return Some((node, nodes.get(at..end)?));
        }
        at = end;
    }
    None
}

// === impl Mark ===

impl Mark {
    #[inline]
    fn of(name: &str) -> Mark {
        let bytes = name.as_bytes();
        let at = |place: usize| bytes.get(place).copied().unwrap_or_default();
        let length = u8::try_from(bytes.len()).unwrap_or(u8::MAX);
        Mark([length, at(0), at(bytes.len() / 2), at(bytes.len().wrapping_sub(1))])
    }

    /// Whether names with this mark are the same: all their bytes are in it.
    fn is_whole(self) -> bool {
        let Mark([length, ..]) = self;
        length <= 3
    }

    /// One of 64 bits.
    fn bit(self) -> u64 {
        const SPREAD: u32 = 0x9e37_79b1;
        1 << (u32::from_le_bytes(self.0).wrapping_mul(SPREAD) >> 26)
    }
}

// === impl Node ===

impl Node {
    fn json<'a>(&self, text: &'a str, nodes: &'a [Node]) -> Json<'a> {
        match self.value {
            Value::Null => Json::Null,
            Value::Bool(value) => Json::Bool(value),
            Value::Integer(value) => Json::Integer(value),
            Value::Float(value) => Json::Float(value),
            Value::Text(span) => Json::Text(span.of(text)),
            Value::List => Json::List(List(Held { text, nodes })),
            Value::Object => Json::Object(Object(Held { text, nodes })),
        }
    }
}

// === impl Span ===

impl Span {
    /// INVARIANT: it is within `text`, between characters, for it was a text's there when that was read.
    fn of(self, text: &str) -> &str {
        text.get(self.0 as usize..self.1 as usize).unwrap_or_default()
    }
}

// === impl Builder ===

/// A document while it is read.
struct Builder<'t> {
    text: &'t str,
    /// What texts with escapes spell.
    spelled: String,
    nodes: Vec<Node>,
    /// Tells what the reader's own error can't.
    cause: JsonError,
}

impl Builder<'_> {
    fn refuse<E: serde::de::Error>(&mut self, cause: JsonError) -> E {
        self.cause = cause;
        E::custom("refused")
    }

    /// Where a text stands that the reader lends of the document.
    fn lent<E: serde::de::Error>(&mut self, text: &str) -> Result<Span, E> {
        let from = text.as_ptr().addr().wrapping_sub(self.text.as_ptr().addr());
        let span = from.checked_add(text.len()).filter(|end| *end <= self.text.len());
        let span = span.and_then(|end| Some(Span(u32::try_from(from).ok()?, u32::try_from(end).ok()?)));
        span.ok_or_else(|| self.refuse(JsonError::Syntax))
    }

    /// Where a text will stand that the reader had to spell out.
    fn spelled<E: serde::de::Error>(&mut self, text: &str) -> Result<Span, E> {
        let from = self.text.len() + self.spelled.len();
        let (from, end) = (u32::try_from(from), u32::try_from(from + text.len()));
        let (Ok(from), Ok(end)) = (from, end) else { return Err(self.refuse(JsonError::Size)) };
        self.spelled.push_str(text);
        Ok(Span(from, end))
    }

    fn text(&self, span: Span) -> &str {
        let own = self.text.len();
        match (span.0 as usize).checked_sub(own) {
            None => span.of(self.text),
            Some(from) => self.spelled.get(from..(span.1 as usize).saturating_sub(own)).unwrap_or_default(),
        }
    }

    /// Whether the object whose members begin at `first` has one of this name.
    fn has(&self, first: usize, name: Name) -> bool {
        let members = self.nodes.get(first..).unwrap_or_default();
        find(members, name.mark, |own| self.text(own) == self.text(name.at)).is_some()
    }

    /// That all nodes from `first` on are in the one before.
    fn close(&mut self, first: usize) {
        let held = self.nodes.len().saturating_sub(first);
        if let (Some(node), Ok(held)) = (self.nodes.get_mut(first.wrapping_sub(1)), u32::try_from(held)) {
            node.held = held;
        }
    }
}

// === impl Seed ===

/// A value to be read.
struct Seed<'b, 't> {
    builder: &'b mut Builder<'t>,
    name: Name,
    depth_left: usize,
}

impl Seed<'_, '_> {
    fn push<E>(self, value: Value) -> Result<(), E> {
        self.builder.nodes.push(Node { name: self.name, held: 0, value });
        Ok(())
    }

    /// Begins a value that holds others. Returns where they begin, and how much deeper they may nest.
    fn open<E: serde::de::Error>(&mut self, value: Value) -> Result<(usize, usize), E> {
        let depth_left = self.depth_left.checked_sub(1);
        let depth_left = depth_left.ok_or_else(|| self.builder.refuse(JsonError::Depth))?;
        self.builder.nodes.push(Node { name: self.name, held: 0, value });
        Ok((self.builder.nodes.len(), depth_left))
    }
}

impl<'de> DeserializeSeed<'de> for Seed<'_, '_> {
    type Value = ();

    fn deserialize<D: serde::Deserializer<'de>>(self, reader: D) -> Result<(), D::Error> {
        if self.builder.nodes.len() >= VALUES_MAX {
            return Err(self.builder.refuse(JsonError::Size));
        }
        reader.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Seed<'_, '_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        self.push(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<(), E> {
        self.push(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<(), E> {
        self.push(Value::Integer(value))
    }

    fn visit_u64<E>(self, value: u64) -> Result<(), E> {
        #[expect(clippy::cast_precision_loss, reason = "beyond i64 it is only ever compared with bounds")]
        self.push(i64::try_from(value).map_or(Value::Float(value as f64), Value::Integer))
    }

    fn visit_f64<E: serde::de::Error>(self, value: f64) -> Result<(), E> {
        if value.is_finite() { self.push(Value::Float(value)) } else { Err(E::custom("not finite")) }
    }

    fn visit_borrowed_str<E: serde::de::Error>(self, text: &'de str) -> Result<(), E> {
        let span = self.builder.lent(text)?;
        self.push(Value::Text(span))
    }

    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<(), E> {
        let span = self.builder.spelled(text)?;
        self.push(Value::Text(span))
    }

    fn visit_seq<A: SeqAccess<'de>>(mut self, mut values: A) -> Result<(), A::Error> {
        let (first, depth_left) = self.open(Value::List)?;
        let builder = self.builder;
        while let Some(()) =
            values.next_element_seed(Seed { builder: &mut *builder, name: Name::default(), depth_left })?
        {
        }
        builder.close(first);
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(mut self, mut members: A) -> Result<(), A::Error> {
        let (first, depth_left) = self.open(Value::Object)?;
        let builder = self.builder;
        // Which bits its members' names have: only where one is there already may a name be there twice.
        let mut seen: u64 = 0;
        let mut count = 0;
        while let Some(name) = members.next_key_seed(NameSeed(&mut *builder))? {
            let bit = name.mark.bit();
            if seen & bit != 0 && builder.has(first, name) {
                return Err(builder.refuse(JsonError::Duplicate));
            }
            seen |= bit;
            if count == MEMBERS_MAX {
                return Err(builder.refuse(JsonError::Size));
            }
            count += 1;
            members.next_value_seed(Seed { builder: &mut *builder, name, depth_left })?;
        }
        builder.close(first);
        Ok(())
    }
}

// === impl NameSeed ===

/// A member's name to be read.
struct NameSeed<'b, 't>(&'b mut Builder<'t>);

impl<'de> DeserializeSeed<'de> for NameSeed<'_, '_> {
    type Value = Name;

    fn deserialize<D: serde::Deserializer<'de>>(self, reader: D) -> Result<Name, D::Error> {
        reader.deserialize_str(self)
    }
}

impl<'de> Visitor<'de> for NameSeed<'_, '_> {
    type Value = Name;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a name")
    }

    fn visit_borrowed_str<E: serde::de::Error>(self, text: &'de str) -> Result<Name, E> {
        Ok(Name { at: self.0.lent(text)?, mark: Mark::of(text) })
    }

    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Name, E> {
        Ok(Name { at: self.0.spelled(text)?, mark: Mark::of(text) })
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::{hash_map, vec};
    use proptest::prelude::*;
    use serde_json::Value;

    use super::{DEPTH_MAX, Document, Json, JsonError, MEMBERS_MAX, VALUES_MAX};

    fn check(text: &str, expected: Result<(), JsonError>) {
        let read = Document::parse(text.into(), 1 << 16).map(drop);
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
        // Of the same length, with the same bytes at its ends and in the middle.
        check(r#"{"abcde":1,"axcye":2,"abcyf":3}"#, Ok(()));
        check(r#"{"abcde":1,"axcye":2,"abcde":3}"#, Err(Duplicate));
        check(r#"{"":1,"a":2,"":3}"#, Err(Duplicate));
        let long = "n".repeat(300);
        check(&format!(r#"{{"{long}":1,"{long}n":2}}"#), Ok(()));
        check(&format!(r#"{{"{long}":1,"b":2,"{long}":3}}"#), Err(Duplicate));
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
        assert_eq!(Document::parse(b"{\"a\":\"\xff\"}".to_vec(), 100), Err(Syntax));
        assert_eq!(Document::parse(b"{\"a\":1}".to_vec(), 6), Err(Size));
    }

    #[test]
    fn paths_end_where_objects_end() {
        let text = r#"{"a":{"x":[[1],{"c":0}],"b":{"c":1}},"a.b":2,"l":[{"b":3}]}"#;
        let document = Document::parse(text.into(), 100).unwrap();
        let at = |path: &[&str]| {
            let path: Vec<String> = path.iter().map(|p| (*p).to_owned()).collect();
            document.object().at(&path)
        };
        assert!(matches!(at(&["a", "b", "c"]), Some(Json::Integer(1))));
        assert!(matches!(at(&["a.b"]), Some(Json::Integer(2))));
        for nothing in [&["l", "b"][..], &["a", "b", "c", "d"], &["a", "c"], &["b"], &[]] {
            assert!(at(nothing).is_none(), "{nothing:?}");
        }
    }

    /// What serde_json reads.
    fn plain(value: Json<'_>) -> Value {
        match value {
            Json::Null => Value::Null,
            Json::Bool(value) => value.into(),
            Json::Integer(value) => value.into(),
            Json::Float(value) => value.into(),
            Json::Text(text) => text.into(),
            Json::List(list) => list.iter().map(plain).collect(),
            Json::Object(object) => {
                let names = object.names();
                names.map(|name| (name.to_owned(), plain(object.find(name).unwrap()))).collect()
            }
        }
    }

    fn values() -> impl Strategy<Value = Value> {
        let text = r#"[a-c"\\\n\u{1}é€😀]{0,4}"#;
        let one = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            (-1e9..1e9).prop_map(Value::from),
            text.prop_map(Value::from),
        ];
        one.prop_recursive(5, 60, 6, move |inner| {
            prop_oneof![
                vec(inner.clone(), 0..6).prop_map(Value::from),
                hash_map(text, inner, 0..6).prop_map(|members| members.into_iter().collect()),
            ]
        })
    }

    proptest! {
        #[test]
        fn a_document_is_what_another_reader_reads(member in values(), name in "[a\"é]{0,3}", is_pretty: bool) {
            let value = Value::Object([(name, member)].into_iter().collect());
            let text = if is_pretty { serde_json::to_vec_pretty(&value) } else { serde_json::to_vec(&value) };
            // Quotes and others that have to be escaped, and one that needn't be.
            let text = String::from_utf8(text.unwrap()).unwrap().replace('b', "\\u0062");
            let document = Document::parse(text.clone().into_bytes(), 1 << 16).unwrap();
            let other: Value = serde_json::from_str(&text).unwrap();
            prop_assert_eq!(plain(Json::Object(document.object())), other);
        }
    }
}
