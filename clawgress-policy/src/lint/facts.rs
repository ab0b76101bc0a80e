//! What is taken for true of one request, and whether it can be true together. Must only ever say that it can't where
//! that is certain.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use cedar_policy_core::ast::Pattern;

use super::search::HostSets;
use super::spans::Spans;
use crate::Host;
use crate::members::Members;
use crate::set::syntax::Named;

/// What has a value in a request, by its name.
pub(super) type Slot = String;
/// A text that many share.
pub(super) type Word = Rc<str>;
/// The slot of the host's name.
pub(super) const HOST: &str = "resource.name";
/// The slot of the address.
pub(super) const ADDRESS: &str = "context.ip";

/// One thing that holds, or doesn't.
#[derive(Clone, Debug)]
pub(super) enum Literal<'a> {
    /// The number is among these.
    Number(Slot, Spans),
    /// The text is this.
    Text(Slot, Word, bool),
    /// The text is like this.
    Like(Slot, &'a Pattern, bool),
    /// The principal is this, or in this.
    Principal(Named, bool),
    /// The principal has a team, project or environment.
    HasGroup(&'static str, bool),
    /// The host is in a set.
    HostSet(Word, bool),
    /// Something else, as it is written.
    Written(String, bool),
}

/// A text, as far as it is known.
#[derive(Clone, Debug, Default)]
struct Text<'a> {
    only: Option<BTreeSet<Word>>,
    not: BTreeSet<Word>,
    like: Vec<(&'a Pattern, bool)>,
}

/// What is known of a request.
#[derive(Clone, Debug, Default)]
pub(super) struct Facts<'a> {
    numbers: BTreeMap<Slot, Spans>,
    texts: BTreeMap<Slot, Text<'a>>,
    is: BTreeSet<Named>,
    is_not: BTreeSet<Named>,
    groups: BTreeMap<&'static str, bool>,
    host_sets: BTreeMap<Word, bool>,
    written: BTreeMap<String, bool>,
}

impl<'a> Facts<'a> {
    /// Takes one more thing for true; `false` if it can't be, with the others.
    pub(super) fn add(&mut self, literal: &Literal<'a>, members: &Members, exact: &HostSets) -> bool {
        match literal {
            Literal::Number(slot, spans) => {
                let both = match self.numbers.get(slot) {
                    Some(known) => known.and(spans),
                    None => spans.and(&domain(slot)),
                };
                let is_possible = !both.is_empty();
                self.numbers.insert(slot.clone(), both);
                is_possible
            }
            Literal::Text(slot, word, holds) => {
                let text = self.texts.entry(slot.clone()).or_default();
                if *holds {
                    text.narrow(std::slice::from_ref(word));
                } else {
                    text.not.insert(word.clone());
                }
                self.has_text(slot, members)
            }
            Literal::Like(slot, pattern, holds) => {
                self.texts.entry(slot.clone()).or_default().like.push((pattern, *holds));
                self.has_text(slot, members)
            }
            Literal::HostSet(name, holds) => {
                if *holds && let Some(hosts) = exact.get(name) {
                    self.texts.entry(HOST.to_owned()).or_default().narrow(hosts);
                }
                *self.host_sets.entry(name.clone()).or_insert(*holds) == *holds
                    && self.has_text(HOST, members)
            }
            Literal::HasGroup(kind, holds) => {
                *self.groups.entry(kind).or_insert(*holds) == *holds
                    && (*holds || self.is.iter().all(|named| named.kind != *kind))
            }
            Literal::Principal(named, holds) => self.principal(named, *holds),
            Literal::Written(text, holds) => *self.written.entry(text.clone()).or_insert(*holds) == *holds,
        }
    }

    /// An agent is one agent, of one tenant, and in one team, project and environment at most.
    fn principal(&mut self, named: &Named, holds: bool) -> bool {
        if !holds {
            self.is_not.insert(named.clone());
            let is_of = |other: &Named| named.kind == "Tenant" && tenant(other) == named.id;
            return !self.is.contains(named) && !self.is.iter().any(is_of);
        }
        let own = Named { kind: "Tenant".to_owned(), id: tenant(named).to_owned() };
        let is_possible = !self.is_not.contains(named)
            && !self.is_not.contains(&own)
            && self.groups.get(named.kind.as_str()) != Some(&false)
            && self
                .is
                .iter()
                .all(|other| tenant(other) == own.id && (other.kind != named.kind || other.id == named.id));
        self.is.insert(named.clone());
        is_possible
    }

    /// Whether there can be a text of this slot.
    fn has_text(&self, slot: &str, members: &Members) -> bool {
        let Some(text) = self.texts.get(slot) else { return true };
        let Some(only) = &text.only else { return !text.is_split() };
        let is_host = slot == HOST;
        only.iter()
            .any(|candidate| text.takes(candidate) && (!is_host || self.is_in_sets(candidate, members)))
    }

    fn is_in_sets(&self, candidate: &str, members: &Members) -> bool {
        if self.host_sets.is_empty() {
            return true;
        }
        let Ok(host) = Host::parse(candidate) else { return true };
        let sets = members.sets_of_host(&host, candidate);
        self.host_sets.iter().all(|(name, holds)| sets.contains(&**name) == *holds)
    }
}

impl Text<'_> {
    fn narrow(&mut self, words: &[Word]) {
        self.only = Some(match self.only.take() {
            Some(only) => words.iter().filter(|word| only.contains(*word)).cloned().collect(),
            None => words.iter().cloned().collect(),
        });
    }

    /// Whether a pattern both matches and doesn't.
    fn is_split(&self) -> bool {
        let Some((last, before)) = self.like.split_last() else { return false };
        before.iter().any(|(pattern, holds)| pattern == &last.0 && *holds != last.1)
    }

    fn takes(&self, candidate: &str) -> bool {
        !self.not.contains(candidate)
            && self.like.iter().all(|(pattern, holds)| pattern.wildcard_match(candidate) == *holds)
    }
}

fn tenant(named: &Named) -> &str {
    if named.kind == "Tenant" {
        return &named.id;
    }
    named.id.split_once('/').map_or("", |(tenant, _)| tenant)
}

/// What a number can be at all.
fn domain(slot: &str) -> Spans {
    match slot {
        "context.port" => Spans::of_longs([(0, i64::from(u16::MAX))]),
        "context.hour" => Spans::of_longs([(0, 23)]),
        "context.minute" => Spans::of_longs([(0, 59)]),
        "context.weekday" => Spans::of_longs([(1, 7)]),
        ADDRESS => Spans::new(vec![(0, u128::MAX)]),
        _ => Spans::of_longs([(i64::MIN, i64::MAX)]),
    }
}
