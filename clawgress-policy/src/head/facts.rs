//! What a record holds of a head: of the names that policy asks for, what it was told. Must never hold the name or the value of
//! anything that no policy names.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{Head, Mentioned, Mentions, Named, OTHERS, Part, Value};
use crate::fields;

/// Most bytes of names and values that a record holds of one part: a record is one line of a log.
const FACTS_BYTES_MAX: usize = 4096;

/// What a record holds of a head.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeadFacts {
    /// Of its header fields.
    #[serde(default, skip_serializing_if = "Facts::is_nothing")]
    headers: Facts,
    /// Of its query.
    #[serde(default, skip_serializing_if = "Facts::is_nothing")]
    query: Facts,
}

/// What it holds of one part.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Facts {
    /// Names that policy asks for.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    named: BTreeMap<String, Fact>,
    /// Whether there are other names.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    others: bool,
    /// Whether it could not be read.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    unread: bool,
    /// Whether it has more than a record holds; records of before tell so of what could not be read, too.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    unclear: bool,
}

/// What it holds of one name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Fact {
    /// It is not there.
    Absent,
    /// It is there, and its value is not told.
    Present,
    /// It is there, without one value.
    Unclear,
    /// It says this.
    Value(String),
}

// === impl Facts ===

impl Facts {
    fn is_nothing(&self) -> bool {
        *self == Facts::default()
    }

    fn of(named: &Named, mentioned: &Mentioned) -> Facts {
        // Who reads records as they were before is told at least that it is not known.
        let unread = Facts { unread: true, unclear: true, ..Facts::default() };
        let Some(names) = named.names() else { return unread };
        let mut facts =
            Facts { others: names.iter().any(|name| !mentioned.names.contains(name)), ..Facts::default() };
        let mut bytes = 0;
        for name in &mentioned.names {
            let fact = match named.value(name).flatten() {
                None => Fact::Absent,
                Some(Value::Unclear) => Fact::Unclear,
                Some(Value::One(value)) if mentioned.values.contains(name) => Fact::Value(value.clone()),
                Some(Value::One(_) | Value::Secret) => Fact::Present,
            };
            let length = |fact: &Fact| if let Fact::Value(value) = fact { value.len() } else { 0 };
            let is_long = bytes + length(&fact) > FACTS_BYTES_MAX;
            let fact = if is_long { Fact::Present } else { fact };
            bytes += name.len() + length(&fact);
            if bytes > FACTS_BYTES_MAX {
                return Facts { unclear: true, ..Facts::default() };
            }
            facts.named.insert(name.clone(), fact);
        }
        facts
    }

    /// Whether it holds everything that is `mentioned`: what then has no one value had none.
    fn tells(&self, mentioned: &Mentioned) -> bool {
        let is_cut = |name: &String| {
            matches!(self.named.get(name), Some(Fact::Present)) && !fields::holds_secret(name)
        };
        mentioned.is_empty()
            || self.unread
            || !self.unclear && self.names(mentioned) && !mentioned.values.iter().any(is_cut)
    }

    /// Whether it says of each name that is `mentioned` whether it was there.
    fn names(&self, mentioned: &Mentioned) -> bool {
        !self.others || mentioned.names.iter().all(|name| self.named.contains_key(name))
    }

    /// The same as it was, as far as policies go that name no more than is `mentioned`.
    fn named(&self, mentioned: &Mentioned) -> Named {
        if self.unread || self.unclear || !self.names(mentioned) {
            return Named::new(true);
        }
        let mut named = Named::new(false);
        let mut others = self.others;
        for (name, fact) in &self.named {
            // In its place: a name may be empty, which comes before it.
            if others && name.as_str() > OTHERS {
                named.push(OTHERS.to_owned(), Value::Secret);
                others = false;
            }
            let value = match fact {
                Fact::Absent => continue,
                Fact::Present if fields::holds_secret(name) => Value::Secret,
                // Whatever it says: that is not asked.
                Fact::Present | Fact::Unclear if !mentioned.values.contains(name) => {
                    Value::One(String::new())
                }
                Fact::Present | Fact::Unclear => Value::Unclear,
                Fact::Value(value) => Value::One(value.clone()),
            };
            named.push(name.clone(), value);
        }
        if others {
            named.push(OTHERS.to_owned(), Value::Secret);
        }
        named
    }
}

// === impl HeadFacts ===

impl HeadFacts {
    /// What a record holds of `head`, where policies mention these.
    #[must_use]
    pub fn of(head: &Head, mentions: &Mentions) -> HeadFacts {
        if head.is_untold {
            let nothing = Facts { unclear: true, ..Facts::default() };
            return HeadFacts { headers: nothing.clone(), query: nothing };
        }
        let facts = |part| Facts::of(head.part(part), mentions.part(part));
        HeadFacts { headers: facts(Part::Headers), query: facts(Part::Query) }
    }

    /// The head as it was, as far as policies go that mention these: they answer as they would have then, or not at all.
    #[must_use]
    pub fn head(&self, mentions: &Mentions) -> Head {
        let HeadFacts { headers, query } = self;
        let (of_headers, of_query) = (mentions.part(Part::Headers), mentions.part(Part::Query));
        Head {
            headers: headers.named(of_headers),
            query: query.named(of_query),
            is_untold: !headers.tells(of_headers) || !query.tells(of_query),
        }
    }
}
