//! What a request says in its header fields and in its query, as policy is asked about it: names, and one value of each.
//!
//! A name that comes twice, and what can be read in two ways, has no one value: a policy whose answer depends on it has none,
//! and that denies. INVARIANT: the value of what holds a secret is in nothing that is made here, so that no policy can ask for
//! it and no record can tell it.

use std::borrow::Cow;
use std::fmt;

use crate::fields;

mod facts;
mod mentioned;

pub use facts::HeadFacts;
pub use mentioned::{Mentioned, Mentions};
pub(crate) use mentioned::{questions, review};

/// Most parameters of a query that policy is asked about: as many as there may be header fields.
pub const PARAMETERS_MAX: usize = 128;

/// Stands for names of which a record only tells that there were some. No header field has it, nor a query that can be read.
const OTHERS: &str = "\0";

/// What policies are told whose answer depends on what has no one value.
pub const UNCLEAR: &str =
    "a header field or a parameter of the query comes twice or can't be read, or is not known";

/// A part of a head that policy may ask about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Part {
    Headers,
    Query,
}

impl Part {
    pub(crate) const ALL: [Part; 2] = [Part::Headers, Part::Query];

    /// The attribute of the context that has a tag for each value.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Part::Headers => "headers",
            Part::Query => "query",
        }
    }

    /// The attribute that is the set of names.
    pub(crate) fn names(self) -> &'static str {
        match self {
            Part::Headers => "header_names",
            Part::Query => "query_names",
        }
    }

    /// The part whose values this attribute has.
    pub(crate) fn named(attribute: &str) -> Option<Part> {
        Part::ALL.into_iter().find(|part| part.name() == attribute)
    }

    /// The part whose names it is.
    pub(crate) fn of_names(attribute: &str) -> Option<Part> {
        Part::ALL.into_iter().find(|part| part.names() == attribute)
    }

    /// A name as policy is asked about it: of a header field in lowercase and with `-` for `_`, which servers that hand fields on
    /// as CGI does (RFC 3875 section 4.1.18) take for the same.
    pub(crate) fn plain(self, name: &str) -> Cow<'_, str> {
        match self {
            Part::Headers if name.bytes().any(|b| b.is_ascii_uppercase() || b == b'_') => {
                Cow::Owned(name.to_ascii_lowercase().replace('_', "-"))
            }
            Part::Headers | Part::Query => Cow::Borrowed(name),
        }
    }
}

/// What a name says.
#[derive(Clone, PartialEq, Eq)]
pub(crate) enum Value {
    /// This.
    One(String),
    /// Nothing that policy is asked about: it holds a secret.
    Secret,
    /// No one thing.
    Unclear,
}

/// Names, and what each says.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Named {
    /// Ascending, each once.
    names: Vec<String>,
    /// Of each, in the same order.
    values: Vec<Value>,
    /// Whether they can't be read, or are not known.
    is_unclear: bool,
}

/// What a request says in its header fields and in its query. Its `Debug` shows nothing of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Head {
    headers: Named,
    query: Named,
    /// Whether some of what has no one value here is but not known.
    is_untold: bool,
}

/// Says nothing.
static NONE: Head = Head { headers: Named::new(false), query: Named::new(false), is_untold: false };
/// What it says is not known.
static UNKNOWN: Head = Head { headers: Named::new(true), query: Named::new(true), is_untold: true };

// === impl Head ===

impl Head {
    /// One without header fields and query.
    #[must_use]
    pub fn none() -> &'static Head {
        &NONE
    }

    /// One of which nothing is known.
    #[must_use]
    pub fn unknown() -> &'static Head {
        &UNKNOWN
    }

    /// What these header fields say, by name and value, and this query, without its `?`.
    ///
    /// Fields of one hop and those that frame the message are none of policy's. Names and values of a query are decoded as forms
    /// are (`+`, and `%` with two digits).
    #[must_use]
    pub fn of<'a>(fields: impl IntoIterator<Item = (&'a str, &'a [u8])>, query: &str) -> Head {
        let query = decoded(query).map_or(Named::new(true), Named::of);
        Head { query, ..Head::default() }.with_fields(fields)
    }

    /// The same with these header fields instead of its own.
    #[must_use]
    pub(crate) fn with_fields<'a>(&self, fields: impl IntoIterator<Item = (&'a str, &'a [u8])>) -> Head {
        let headers = fields.into_iter().filter_map(|(name, value)| {
            let name = Part::Headers.plain(name);
            let value = std::str::from_utf8(value).ok().map(|value| value.trim_matches([' ', '\t']));
            fields::is_asked(&name).then(|| (name.into_owned(), value.map(str::to_owned)))
        });
        Head { headers: Named::of(headers), query: self.query.clone(), is_untold: self.is_untold }
    }

    /// One that says this alone.
    pub(crate) fn saying(part: Part, name: &str, value: &str) -> Head {
        let named = Named::of([(name.to_owned(), Some(value.to_owned()))]);
        match part {
            Part::Headers => Head { headers: named, ..Head::default() },
            Part::Query => Head { query: named, ..Head::default() },
        }
    }

    /// Whether anything of it has no one value, or is not known.
    #[must_use]
    pub fn is_unclear(&self) -> bool {
        Part::ALL.into_iter().any(|part| self.part(part).has_unclear())
    }

    /// Whether what has no one value had none when it was sent, rather than that nobody knows it any more.
    pub(crate) fn is_told(&self) -> bool {
        !self.is_untold
    }

    /// Whether the answer of policies that mention these may depend on what has no one value.
    pub(crate) fn lacks(&self, mentions: &Mentions) -> bool {
        Part::ALL.into_iter().any(|part| self.part(part).lacks(mentions.part(part)))
    }

    pub(crate) fn part(&self, part: Part) -> &Named {
        match part {
            Part::Headers => &self.headers,
            Part::Query => &self.query,
        }
    }
}

// === impl Named ===

impl Named {
    const fn new(is_unclear: bool) -> Named {
        Named { names: Vec::new(), values: Vec::new(), is_unclear }
    }

    fn of(pairs: impl IntoIterator<Item = (String, Option<String>)>) -> Named {
        let mut pairs: Vec<_> = pairs.into_iter().collect();
        pairs.sort_by(|(a, _), (b, _)| a.cmp(b));
        let mut named = Named::default();
        for (name, value) in pairs {
            if named.names.last() == Some(&name) {
                // One that holds a secret is none that is asked for.
                if let Some(former @ (Value::One(_) | Value::Unclear)) = named.values.last_mut() {
                    *former = Value::Unclear;
                }
                continue;
            }
            let value = if fields::holds_secret(&name) {
                Value::Secret
            } else {
                value.map_or(Value::Unclear, Value::One)
            };
            named.push(name, value);
        }
        named
    }

    fn push(&mut self, name: String, value: Value) {
        self.names.push(name);
        self.values.push(value);
    }

    fn has_unclear(&self) -> bool {
        self.is_unclear || self.values.contains(&Value::Unclear)
    }

    /// Ascending, each once; `None` where they can't be known.
    pub(crate) fn names(&self) -> Option<&[String]> {
        (!self.is_unclear).then_some(&*self.names)
    }

    /// What a name says, if it is there; `None` where that can't be known.
    pub(crate) fn value(&self, name: &str) -> Option<Option<&Value>> {
        let at = self.names().map(|names| names.binary_search_by(|known| known.as_str().cmp(name)))?;
        Some(at.ok().and_then(|at| self.values.get(at)))
    }

    /// Whether the answer of policies that mention these may depend on what has no one value.
    fn lacks(&self, mentioned: &Mentioned) -> bool {
        let is_unclear = |name: &String| self.value(name).flatten() == Some(&Value::Unclear);
        self.is_unclear && !mentioned.is_empty() || mentioned.values.iter().any(is_unclear)
    }

    /// Each name that is no secret's, and its value; of one that has none, what nobody asks for who may ask.
    pub(crate) fn tags(&self) -> impl Iterator<Item = (&str, &str)> {
        self.names.iter().zip(&self.values).filter_map(|(name, value)| match value {
            Value::One(value) => Some((name.as_str(), value.as_str())),
            Value::Unclear => Some((name.as_str(), "")),
            Value::Secret => None,
        })
    }
}

impl fmt::Debug for Named {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // A name may hold a secret, too.
        let unclear = self.values.iter().filter(|value| **value == Value::Unclear).count();
        write!(f, "{} names, {unclear} without one value", self.names.len())?;
        if self.is_unclear { f.write_str(", or others") } else { Ok(()) }
    }
}

/// Names and values of a query; `None` if servers may read it in more than one way: some take `;` for `&`, each does something
/// else with a `%` that encodes nothing and with what is no text, and some end at a zero byte.
fn decoded(query: &str) -> Option<Vec<(String, Option<String>)>> {
    let mut pairs = Vec::new();
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        if pairs.len() == PARAMETERS_MAX || pair.contains(';') {
            return None;
        }
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        pairs.push((text(name)?, Some(text(value)?)));
    }
    Some(pairs)
}

/// What a name or a value of a query says.
pub(crate) fn text(encoded: &str) -> Option<String> {
    let mut decoded = Vec::with_capacity(encoded.len());
    let mut bytes = encoded.bytes();
    while let Some(byte) = bytes.next() {
        decoded.push(match byte {
            b'+' => b' ',
            b'%' => {
                let digit = |byte: Option<u8>| char::from(byte?).to_digit(16);
                let (high, low) = (digit(bytes.next())?, digit(bytes.next())?);
                u8::try_from(high << 4 | low).ok()?
            }
            other => other,
        });
    }
    String::from_utf8(decoded).ok().filter(|text| !text.contains('\0'))
}

#[cfg(test)]
mod tests;
