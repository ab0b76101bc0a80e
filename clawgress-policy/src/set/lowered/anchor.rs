//! Policies found by what a text must begin or end with for them to match.
//!
//! Many rules of an organisation are for any resource and ask for a pattern: one look finds those whose pattern can match, however
//! many there are. INVARIANT: what is not found is certainly false, and would not have failed either. So a condition has an anchor
//! only where everything that is asked before it has a certain answer.

use std::cmp::Ordering;

use super::node::{Const, Elements, Node};

/// A text that every request of an action has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Subject {
    Host,
    Method,
    Path,
}

/// Where an anchor stands in the text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    First,
    Last,
}

/// What a text must begin or end with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Anchor {
    subject: Subject,
    end: End,
    /// Never empty.
    text: Box<str>,
}

/// Policies by their anchors.
#[derive(Debug, Default)]
pub(super) struct Anchored {
    kinds: Vec<Kind>,
}

/// Those of one kind.
#[derive(Debug)]
struct Kind {
    subject: Subject,
    end: End,
    /// Ascending, as texts are read from their end.
    found: Vec<Found>,
}

/// What is found by one text.
#[derive(Debug)]
struct Found {
    text: Box<str>,
    policies: Vec<u32>,
    /// The longest other one that this text begins with, read from its end.
    within: Option<usize>,
}

// === impl Anchor ===

impl Anchor {
    /// The longest of a condition, if it has one.
    pub(super) fn of(condition: &Node) -> Option<Anchor> {
        match condition {
            Node::And(pair) => {
                let first = Anchor::of(&pair.0);
                let second = is_certain(&pair.0).then(|| Anchor::of(&pair.1)).flatten();
                [first, second].into_iter().flatten().max_by_key(|anchor| anchor.text.len())
            }
            Node::Like(of, like) => {
                let subject = subject(of)?;
                let (first, last) = like.ends();
                let (end, text) =
                    if first.len() >= last.len() { (End::First, first) } else { (End::Last, last) };
                (!text.is_empty()).then(|| Anchor { subject, end, text: text.into() })
            }
            Node::Eq(pair) => {
                let (of, text) = match (&pair.0, &pair.1) {
                    (of, Node::Const(Const::Str(text))) | (Node::Const(Const::Str(text)), of) => (of, text),
                    _ => return None,
                };
                let subject = subject(of)?;
                (!text.is_empty()).then(|| Anchor { subject, end: End::First, text: text.clone() })
            }
            _ => None,
        }
    }
}

/// The text that a tree is.
fn subject(node: &Node) -> Option<Subject> {
    match node {
        Node::HostName => Some(Subject::Host),
        Node::Method => Some(Subject::Method),
        Node::Path => Some(Subject::Path),
        _ => None,
    }
}

/// Whether a tree is true or false of whatever request of its action.
fn is_certain(node: &Node) -> bool {
    match node {
        Node::Const(Const::Bool(_)) => true,
        Node::Not(a) => is_certain(a),
        Node::And(pair) | Node::Or(pair) => is_certain(&pair.0) && is_certain(&pair.1),
        Node::Like(of, _) => subject(of).is_some(),
        Node::Eq(pair) => {
            let is_known = |node: &Node| matches!(node, Node::Const(_)) || subject(node).is_some();
            is_known(&pair.0) && is_known(&pair.1)
        }
        Node::Contains(pair) => {
            matches!(&pair.0, Node::Set(Elements::Strings(_))) && subject(&pair.1).is_some()
        }
        _ => false,
    }
}

// === impl End ===

impl End {
    fn is_in(self, text: &str, anchor: &str) -> bool {
        match self {
            End::First => text.starts_with(anchor),
            End::Last => text.ends_with(anchor),
        }
    }

    /// The order of texts that are read from this end.
    fn order(self, a: &str, b: &str) -> Ordering {
        match self {
            End::First => a.cmp(b),
            End::Last => a.bytes().rev().cmp(b.bytes().rev()),
        }
    }
}

// === impl Anchored ===

impl Anchored {
    pub(super) fn push(&mut self, Anchor { subject, end, text }: Anchor, number: u32) {
        let is_kind = |kind: &Kind| (kind.subject, kind.end) == (subject, end);
        let kind = match self.kinds.iter().position(is_kind) {
            Some(at) => self.kinds.get_mut(at),
            None => {
                self.kinds.push(Kind { subject, end, found: Vec::new() });
                self.kinds.last_mut()
            }
        };
        let Some(kind) = kind else { return };
        match kind.found.binary_search_by(|found| end.order(&found.text, &text)) {
            Ok(at) => {
                if let Some(found) = kind.found.get_mut(at) {
                    found.policies.push(number);
                }
            }
            Err(at) => kind.found.insert(at, Found { text, policies: vec![number], within: None }),
        }
    }

    /// Makes it ready to be looked into, once all are there.
    pub(super) fn close(&mut self) {
        for Kind { end, found, .. } in &mut self.kinds {
            for at in 1..found.len() {
                let mut within = Some(at - 1);
                while let Some(before) = within.and_then(|before| found.get(before)) {
                    if found.get(at).is_some_and(|own| end.is_in(&own.text, &before.text)) {
                        break;
                    }
                    within = before.within;
                }
                if let Some(own) = found.get_mut(at) {
                    own.within = within;
                }
            }
        }
    }

    /// The policies that may match where the request has these texts.
    pub(super) fn candidates<'a>(
        &'a self,
        text: impl Fn(Subject) -> Option<&'a str> + 'a,
    ) -> impl Iterator<Item = u32> + 'a {
        self.kinds.iter().flat_map(move |kind| kind.candidates(text(kind.subject)))
    }
}

// === impl Kind ===

impl Kind {
    /// Those whose anchor `text` has; all, of a request that has no such text.
    fn candidates(&self, text: Option<&str>) -> impl Iterator<Item = u32> {
        let (longest, all) = match text {
            Some(text) => (self.longest(text), &[][..]),
            None => (None, &self.found[..]),
        };
        let shorter = |found: &&Found| self.found.get(found.within?);
        std::iter::successors(longest, shorter).chain(all).flat_map(|found| &found.policies).copied()
    }

    /// The longest that `text` has. Whatever stands between one that it has and `text` begins with that too; so the one just before
    /// `text` is it, or is in it.
    fn longest(&self, text: &str) -> Option<&Found> {
        let after = self.found.partition_point(|found| self.end.order(&found.text, text).is_le());
        let mut found = self.found.get(after.checked_sub(1)?)?;
        while !self.end.is_in(text, &found.text) {
            found = self.found.get(found.within?)?;
        }
        Some(found)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #![proptest_config(ProptestConfig { cases: 20_000, ..ProptestConfig::default() })]

        /// Few letters, one of two bytes, so that many are in others.
        #[test]
        fn finds_what_a_text_has(anchors in prop::collection::vec("[abé]{1,5}", 0..12), text in "[abé]{0,8}") {
            for end in [End::First, End::Last] {
                let mut anchored = Anchored::default();
                for (number, anchor) in (0..).zip(&anchors) {
                    let text = anchor.as_str().into();
                    anchored.push(Anchor { subject: Subject::Path, end, text }, number);
                }
                anchored.close();
                let mut found: Vec<u32> = anchored.candidates(|_| Some(&text)).collect();
                found.sort_unstable();
                let wanted: Vec<u32> =
                    (0..).zip(&anchors).filter(|(_, anchor)| end.is_in(&text, anchor)).map(|(n, _)| n).collect();
                prop_assert_eq!(found, wanted);
                prop_assert_eq!(anchored.candidates(|_| None).count(), anchors.len());
            }
        }
    }

    #[test]
    fn only_what_comes_after_certain_answers_is_an_anchor() {
        let like = |node, pattern: &str| {
            let elem = |letter| match letter {
                '*' => cedar_policy_core::ast::PatternElem::Wildcard,
                letter => cedar_policy_core::ast::PatternElem::Char(letter),
            };
            let pattern: cedar_policy_core::ast::Pattern = pattern.chars().map(elem).collect();
            Node::Like(Box::new(node), super::super::like::Like::of(&pattern))
        };
        let both = |a, b| Node::And(Box::new((a, b)));
        let anchor = |node: Node| Anchor::of(&node).map(|anchor| (anchor.end, anchor.text.to_string()));
        let host = || like(Node::HostName, "*.a.test");
        assert_eq!(anchor(host()), Some((End::Last, ".a.test".to_owned())));
        assert_eq!(anchor(like(Node::Path, "/v1/*x")), Some((End::First, "/v1/".to_owned())));
        assert_eq!(anchor(like(Node::Path, "*a*")), None);
        assert_eq!(anchor(both(host(), like(Node::Path, "/longer/than/it*"))).unwrap().1, "/longer/than/it");
        // A label may be missing, which is an error; and so may what is told of a hello.
        let label = || Node::GetTag(Box::new(Node::Const(Const::Str("tier".into()))));
        let low = || Node::Eq(Box::new((label(), Node::Const(Const::Str("low".into())))));
        assert_eq!(anchor(both(low(), host())), None);
        assert_eq!(anchor(both(host(), low())), Some((End::Last, ".a.test".to_owned())));
        assert_eq!(anchor(like(Node::Ja4, "t13*")), None);
        assert_eq!(anchor(Node::Or(Box::new((host(), host())))), None);
        assert_eq!(anchor(Node::Not(Box::new(host()))), None);
    }
}
